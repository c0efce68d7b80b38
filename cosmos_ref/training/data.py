"""Everything random about a batch.

Every sample has a number, counted over the whole training, and all that is random about it is drawn from that number
and the seed. So a batch does not depend on the batches before it, on its own size, or on how it is spread over devices.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from cosmos_ref.conditioning.condition import Condition, give_frames, text_condition
from cosmos_ref.conditioning.dropout import drop_text
from cosmos_ref.conditioning.text import TextEncoder
from cosmos_ref.config import Config
from cosmos_ref.equations.edm import scale_latents
from cosmos_ref.equations.noise import log_normal_sigma, video_noise_shift
from cosmos_ref.equations.whitening import standardize
from cosmos_ref.shapes import Latents
from cosmos_ref.tokenizer import VideoTokenizer
from cosmos_ref.tokenizer.statistics import RunningMoments
from cosmos_ref.training.random import philox
from cosmos_ref.training.sources import Bucket, Clips, Domain, Source

NOISE_STREAM: dict[Domain, int] = {"video": 0, "image": 19}
"""Streams of random numbers: noise and its level, dropped text, given frames."""
IMAGE_CLIPS = range(2**39, 2**39 + 1024)
"""Numbers of the images that the statistics of images are taken of; no training sample comes so far."""
MIN_STD = 1e-3
"""Least deviation, relative to videos, that a channel of images is divided by."""


@dataclass(frozen=True)
class Batch:
    """The arguments of the training loss, and whose they are."""

    x0: Latents
    condition: Condition
    noise: Latents
    sigma: Float[Tensor, "B"]
    domain: Domain = "video"
    samples: Sequence[int] = ()
    """Numbers of the samples."""


@dataclass(frozen=True)
class ImageStatistics:
    """Mean and deviation of the latents of images, which the tokenizer has standardised as those of videos."""

    mean: Float[Tensor, "C"]
    std: Float[Tensor, "C"]

    def standardize(self, latents: Latents) -> Latents:
        """Latents of images with zero mean and unit variance in each channel."""
        return standardize(latents, rearrange(self.mean, "C -> C 1 1 1"), rearrange(self.std, "C -> C 1 1 1"))

    def to(self, device: torch.device) -> "ImageStatistics":
        """The same on another device."""
        return ImageStatistics(self.mean.to(device), self.std.to(device))


@torch.no_grad()
def image_statistics(source: Source, tokenizer: VideoTokenizer, device: torch.device, chunk: int) -> ImageStatistics:
    """Statistics of the images of a source, in one pass over `IMAGE_CLIPS`, `chunk` images at a time, in float64."""
    moments = RunningMoments()
    for start in range(0, len(IMAGE_CLIPS), chunk):
        clips = source.clips(IMAGE_CLIPS[start : start + chunk], "image")
        moments.update(encode(clips, tokenizer, device), over=(0, 2, 3, 4))
    return ImageStatistics(moments.mean.float(), moments.std.clamp(min=MIN_STD).float()).to(device)


def draw_batch(
    source: Source,
    config: Config,
    tokenizer: VideoTokenizer,
    text_encoder: TextEncoder,
    samples: Sequence[int],
    device: torch.device | str = "cpu",
    *,
    domain: Domain = "video",
    bucket: Bucket | None = None,
    images: ImageStatistics | None = None,
) -> Batch:
    """The training samples of these numbers: clean latents, their condition, noise and its level.

    Args:
        source: the clips.
        config: which noise levels, how many given frames, how often the text is dropped, the seed.
        tokenizer: from video to standardised latents; it is on `device`.
        text_encoder: from captions to embeddings.
        samples: numbers of the samples, counted over the whole training in their domain.
        device: where the batch goes.
        domain: videos or images.
        bucket: height and width of the clips; None is the source's own.
        images: statistics of image latents; None leaves them as the tokenizer gives them.
    """
    clips = source.clips(samples, domain, bucket)
    return make_batch(clips, config, tokenizer, text_encoder, samples, device, domain=domain, images=images)


@torch.no_grad()
def make_batch(
    clips: Clips,
    config: Config,
    tokenizer: VideoTokenizer,
    text_encoder: TextEncoder | None,
    samples: Sequence[int],
    device: torch.device | str = "cpu",
    *,
    domain: Domain = "video",
    images: ImageStatistics | None = None,
) -> Batch:
    """The batch that `draw_batch` makes of clips which are there already."""
    latents = encode(clips, tokenizer, device)
    if domain == "image" and images is not None:
        latents = images.standardize(latents)
    x0 = scale_latents(latents, config.diffusion.sigma_data)
    draws = [_draw(config, sample, NOISE_STREAM[domain], tuple(x0.shape[1:])) for sample in samples]
    normals, uniforms, noises = (torch.from_numpy(np.stack(part)).to(device) for part in zip(*draws, strict=True))

    diffusion, train = config.diffusion, config.train
    sigma = noise_levels(normals[:, 0], config, domain, x0.shape[2])
    if clips.text_embeddings is not None:
        text = clips.text_embeddings
    else:
        assert text_encoder is not None, "clips bring their text, or something encodes it"
        text = text_encoder.encode(clips.captions)
    text = drop_text(text.to(x0), keep=uniforms[:, 0] >= train.text_dropout)
    condition = text_condition(text, x0, clips.fps.to(device))
    if clips.padding_mask is not None:
        condition["padding_mask"] = latent_mask(clips.padding_mask.to(x0), x0)
    if config.model.video2world:
        augment_sigma = log_normal_sigma(normals[:, 1], diffusion.augment_p_mean, diffusion.augment_p_std)
        borders = torch.tensor(train.given_latents, device=device).cumsum(0)[:-1]
        given = (uniforms[:, 1:] >= borders).sum(1)
        if domain == "image":
            given = torch.zeros_like(given)  # the mask marks frames that something follows
        condition = give_frames(condition, x0, given, augment_sigma, noises[:, 1])
    return Batch(x0, condition, noises[:, 0], sigma, domain, samples)


def noise_levels(normal: Float[Tensor, "B"], config: Config, domain: Domain, latent_frames: int) -> Float[Tensor, "B"]:
    """Noise levels of a domain from unit Gaussian numbers, those of videos raised if the training wants that."""
    sigma = log_normal_sigma(normal, config.diffusion.p_mean, config.diffusion.p_std)
    raised = config.train.video_noise_shift and domain == "video"
    return video_noise_shift(sigma, latent_frames) if raised else sigma


def encode(clips: Clips, tokenizer: VideoTokenizer, device: torch.device | str) -> Latents:
    """Standardised latents of clips, in float32: those that came with them, else the tokenizer's."""
    if clips.latents is not None:
        return clips.latents.to(device, torch.float32)
    assert clips.video is not None, "clips have a video or latents"
    return tokenizer.encode(clips.video.to(tokenizer.mean)).to(device, torch.float32)


def latent_mask(padding_mask: Float[Tensor, "B 1 H W"], latents: Latents) -> Float[Tensor, "B 1 h w"]:
    """A mask of pixels at the size of the latents, by the nearest pixel (up and to the left), as NVIDIA's code does."""
    return F.interpolate(padding_mask, tuple(latents.shape[-2:]), mode="nearest")


def _draw(
    config: Config, sample: int, stream: int, shape: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two normals (noise levels), two uniforms (text, given frames), two noises (sample, given frames)."""
    random = philox(config.train.seed, sample, stream)
    normals, uniforms = random.standard_normal(2, np.float32), random.random(2, np.float32)
    return normals, uniforms, random.standard_normal((2, *shape), np.float32)
