"""Everything random about a batch.

Every sample has a number, counted over the whole training, and all that is random about it is drawn from that number
and the seed. So a batch does not depend on the batches before it, on its own size, or on how it is spread over devices.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from cosmos_ref.conditioning.condition import Condition, give_frames, text_condition
from cosmos_ref.conditioning.dropout import drop_text
from cosmos_ref.conditioning.text import TextEncoder
from cosmos_ref.config import Config
from cosmos_ref.equations.edm import scale_latents
from cosmos_ref.equations.noise import log_normal_sigma
from cosmos_ref.shapes import Latents
from cosmos_ref.tokenizer import VideoTokenizer
from cosmos_ref.training.random import philox
from cosmos_ref.training.sources import Source


@dataclass(frozen=True)
class Batch:
    """The arguments of the training loss."""

    x0: Latents
    condition: Condition
    noise: Latents
    sigma: Float[Tensor, "B"]


@torch.no_grad()
def draw_batch(
    source: Source,
    config: Config,
    tokenizer: VideoTokenizer,
    text_encoder: TextEncoder,
    samples: Sequence[int],
    device: torch.device | str = "cpu",
) -> Batch:
    """The training samples of these numbers: clean latents, their condition, noise and its level.

    Args:
        source: the clips.
        config: which noise levels, how many given frames, how often the text is dropped, the seed.
        tokenizer: from video to standardised latents; it is on `device`.
        text_encoder: from captions to embeddings.
        samples: numbers of the samples, counted over the whole training.
        device: where the batch goes.
    """
    clips = source.clips(samples)
    x0 = scale_latents(tokenizer.encode(clips.video.to(device)), config.diffusion.sigma_data)
    draws = [_draw(config, sample, tuple(x0.shape[1:])) for sample in samples]
    normals, uniforms, noises = (torch.from_numpy(np.stack(part)).to(device) for part in zip(*draws, strict=True))

    diffusion, train = config.diffusion, config.train
    sigma = log_normal_sigma(normals[:, 0], diffusion.p_mean, diffusion.p_std)
    text = drop_text(text_encoder.encode(clips.captions).to(device), keep=uniforms[:, 0] >= train.text_dropout)
    condition = text_condition(text, x0, clips.fps.to(device))
    if config.model.video2world:
        augment_sigma = log_normal_sigma(normals[:, 1], diffusion.augment_p_mean, diffusion.augment_p_std)
        borders = torch.tensor(train.given_latents, device=device).cumsum(0)[:-1]
        given = (uniforms[:, 1:] >= borders).sum(1)
        condition = give_frames(condition, x0, given, augment_sigma, noises[:, 1])
    return Batch(x0, condition, noises[:, 0], sigma)


def _draw(config: Config, sample: int, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two normals (noise levels), two uniforms (text, given frames), two noises (sample, given frames)."""
    random = philox(config.train.seed, sample, stream=0)
    normals, uniforms = random.standard_normal(2, np.float32), random.random(2, np.float32)
    return normals, uniforms, random.standard_normal((2, *shape), np.float32)
