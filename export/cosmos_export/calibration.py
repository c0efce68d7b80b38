"""What a trained denoiser is given in use: clips of our own world, noised as a sampler meets them. Needs PyTorch."""

from dataclasses import replace

import numpy as np
import torch

from cosmos_ref.conditioning.text import TextEncoder, WordsEncoder
from cosmos_ref.config import Config
from cosmos_ref.equations.noise import add_noise
from cosmos_ref.tokenizer import VideoTokenizer
from cosmos_ref.training.data import draw_batch
from cosmos_ref.training.sources.world import WorldSource


def calibration_inputs(
    config: Config,
    tokenizer: VideoTokenizer,
    text_encoder: TextEncoder | None = None,
    *,
    clips: int = 32,
    seed: int = 1,
) -> list[dict[str, np.ndarray]]:
    """Inputs of the denoiser, one clip each, with given frames and without as in training; the same for a seed.

    The noise levels go from the preset's lowest to its highest in even ratios, so every part of a sampling counts.

    Args:
        config: the preset's numbers.
        tokenizer: what makes latents of the clips.
        text_encoder: what reads their captions; None is the words encoder, or the null text where the preset has T5.
        clips: how many.
        seed: which clips and which noise; training has 0 unless it was told otherwise.
    """
    dropout = config.train.text_dropout if text_encoder or config.text.encoder == "words" else 1.0
    text_encoder = text_encoder or WordsEncoder(config.text.length, config.text.width)
    config = replace(config, train=replace(config.train, seed=seed, text_dropout=dropout))
    source = WorldSource(config.clip, config.data.world, seed)
    batch = draw_batch(source, config, tokenizer, text_encoder, range(clips))
    levels = np.geomspace(config.diffusion.sigma_min, config.diffusion.sigma_max, clips)
    sigma = torch.from_numpy(levels.astype(np.float32))
    inputs = {"x": add_noise(batch.x0, batch.noise, sigma), "sigma": sigma, **batch.condition}
    return [{name: value[i : i + 1].numpy() for name, value in inputs.items()} for i in range(clips)]
