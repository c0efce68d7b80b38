"""Training clips from the simulated world."""

from collections.abc import Sequence

import torch

from cosmos_ref import worlds
from cosmos_ref.config import ClipConfig
from cosmos_ref.errors import UserError
from cosmos_ref.training.sources.clips import Bucket, Clips, Domain, bucket_sizes, draw_bucket
from cosmos_ref.worlds.scene import ASPECTS

TRAINING_SCENES = 2**62
"""Scene seeds from here on are for training; all below are held out."""
IMAGE_SCENES = 2**63
"""Scene seeds from here on are for images."""
SCENES_PER_SEED = 2**40
MAX_SEED = 2**22
"""Seeds of a training, and how many scenes of either domain each has: together they stay below 2**63 and 2**64."""


class WorldSource:
    """Simulated scenes, made when they are asked for. Each is simulated in the shape of its bucket: none is padded.

    Buckets narrower than the world's box may be (9:16) hold no scenes.

    Args:
        clip: the clips wanted.
        kind: kind of scene.
        seed: of the training.
        buckets: a key of BUCKETS, or `one`, the clip's own size.

    Raises:
        UserError: the kind of scene is unknown, the clip cannot be simulated, or the seed is not accepted.
    """

    def __init__(self, clip: ClipConfig, kind: str, seed: int, buckets: str = "one"):
        if not 0 <= seed < MAX_SEED:
            raise UserError(f"seed {seed} is not accepted: give one from 0 to {MAX_SEED - 1}")
        self.clip, self.kind, self.seed = clip, kind, seed
        sizes = bucket_sizes(clip, buckets)
        fitting = [size for size in sizes if buckets == "one" or ASPECTS[0] <= size[1] / size[0] <= ASPECTS[1]]
        self.buckets: dict[Bucket, int] = dict.fromkeys(fitting, 1)
        self.identity = f"world {kind}, seed {seed}" + ("" if buckets == "one" else f", buckets {buckets}")
        self.captions = []
        self.clips([0])  # raises now what it would raise later

    def clips(self, indices: Sequence[int], domain: Domain = "video", bucket: Bucket | None = None) -> Clips:
        """The clips of these numbers, each from a scene of its own; an image is how a scene begins."""
        scenes, frames = (IMAGE_SCENES, 1) if domain == "image" else (TRAINING_SCENES, self.clip.frames)
        height, width = bucket or next(iter(self.buckets))
        seeds = [scenes + self.seed * SCENES_PER_SEED + index for index in indices]
        batch = worlds.simulate(seeds, frames=frames, height=height, width=width, kind=self.kind)
        return Clips(batch.video, list(batch.captions), torch.full((len(seeds),), float(batch.fps)))

    def bucket(self, micro_batch: int, domain: Domain = "video") -> Bucket:
        """The size of a micro-batch; all are equally likely."""
        return draw_bucket(self.buckets, self.seed, micro_batch, domain)
