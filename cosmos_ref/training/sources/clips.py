"""What a source of clips is: the same number always gives the same clip, on any process, after any other."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from jaxtyping import Float
from torch import Tensor

from cosmos_ref.config import BUCKETS, ClipConfig, DataConfig
from cosmos_ref.shapes import Latents, Video
from cosmos_ref.training.random import philox

Domain = Literal["video", "image"]
"""Videos and images are counted apart: each has sample numbers, micro-batches and random numbers of its own."""
Bucket = tuple[int, int]
"""Height and width in pixels that clips are brought to."""

CLIP_STREAM: dict[Domain, int] = {"video": 1, "image": 16}
BUCKET_STREAM: dict[Domain, int] = {"video": 17, "image": 18}
"""Streams of random numbers: which clip a sample is, and which bucket a micro-batch has."""


@dataclass(frozen=True)
class Clips:
    """Clips of one size, with what is known of them. An image is a clip of one frame at 24 frames a second."""

    video: Video | None
    """In [-1, 1]; None where `latents` are given instead."""
    captions: list[str | None]
    """None: not known."""
    fps: Float[Tensor, "B"]
    padding_mask: Float[Tensor, "B 1 H W"] | None = None
    """In pixels: 1 where the frame was padded. None: nothing is padded."""
    latents: Latents | None = None
    """Standardised, by the source's own tokenizer."""
    text_embeddings: Float[Tensor, "B M E"] | None = None
    """Of the captions, zeros where there is none."""


class Source(Protocol):
    """An endless row of clips, in each domain: the same number always gives the same clip."""

    identity: str
    """What the clips depend on; a training is resumed only with the same."""
    captions: list[str | None]
    """Captions that are known before training: they are tried on the text encoder first."""

    def clips(self, indices: Sequence[int], domain: Domain = "video", bucket: Bucket | None = None) -> Clips:
        """The clips of these numbers.

        Args:
            indices: numbers of samples of this domain.
            domain: videos, or images.
            bucket: height and width, as `bucket` gives them; None is the size that the source has most of.
        """
        ...

    def bucket(self, micro_batch: int, domain: Domain = "video") -> Bucket:
        """Height and width that the micro-batch of this number has; it follows from the number and the seed alone."""
        ...


def domains_of(data: DataConfig) -> tuple[Domain, ...]:
    """What a training sees: videos, images, or both."""
    wanted: dict[Domain, bool] = {"video": data.image_share < 1, "image": data.image_share > 0}
    return tuple(domain for domain, seen in wanted.items() if seen)


def bucket_sizes(clip: ClipConfig, buckets: str) -> tuple[Bucket, ...]:
    """Sizes that clips are brought to: those called `buckets`, or the clip's own if that is `one`."""
    return ((clip.height, clip.width),) if buckets == "one" else BUCKETS[buckets]


def draw_bucket(held: dict[Bucket, int], seed: int, micro_batch: int, domain: Domain) -> Bucket:
    """A bucket at random, each as often as it holds clips: then every clip is seen as often as any other."""
    sizes, weights = list(held), np.array(list(held.values()))
    if len(sizes) == 1:
        return sizes[0]
    number = philox(seed, micro_batch, BUCKET_STREAM[domain]).integers(weights.sum())
    return sizes[int(np.searchsorted(weights.cumsum(), number, side="right"))]


def fullest(held: dict[Bucket, int]) -> Bucket:
    """The bucket that holds most; of equally full ones the first."""
    return max(held, key=lambda size: held[size])
