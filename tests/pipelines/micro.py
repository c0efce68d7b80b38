"""The smallest world model that is not trivial anywhere: untrained, but with every part at work."""

from dataclasses import replace
from functools import cache

import torch

from cosmos_ref.conditioning.text import build_text_encoder
from cosmos_ref.config import PRESETS, Config
from cosmos_ref.model.initialization import new_model
from cosmos_ref.pipelines.world_model import WorldModel, in_memory
from cosmos_ref.tokenizer.haar_pca import HaarPCATokenizer
from tests.strategies import normal

CONFIG = PRESETS["micro"]


def moving_waves(seed: int, clips: int = 1, frames: int = 5) -> torch.Tensor:
    """Clips of 16x16 pixels in [-0.6, 0.6]: a plane wave a colour, and a little noise."""
    t, h, w = (torch.arange(size).float() for size in (frames, 16, 16))
    a, b, c, phase = normal(seed, 4, clips, 3).float()[..., None, None, None]
    waves = torch.sin(a * t[:, None, None] + b * h[:, None] + c * w + 3 * phase)
    return 0.4 * waves + 0.03 * normal(seed + 1, clips, 3, frames, 16, 16).float().clamp(-6, 6)


@cache
def micro(video2world: bool = True) -> WorldModel:
    """The micro preset with its AdaLN opened, so that noise level and text are felt."""
    config: Config = replace(CONFIG, model=replace(CONFIG.model, video2world=video2world))
    denoiser, _ = new_model(config, torch.Generator().manual_seed(0))
    with torch.no_grad():
        for i, (name, weight) in enumerate(denoiser.named_parameters()):
            if ".up." in name or "noise_embedding.linear" in name:
                weight.copy_(normal(i, *weight.shape) / weight.shape[1] ** 0.5)
    denoiser.eval().requires_grad_(False)
    tokenizer = HaarPCATokenizer.fit(config.tokenizer, moving_waves(0, clips=8))
    return in_memory(config, denoiser, tokenizer, build_text_encoder(config.text))


def condition_of(text: torch.Tensor) -> dict[str, torch.Tensor]:
    """What the denoiser is told for latents 3x4x4, with no frames given."""
    B = len(text)
    return {
        "text_embeddings": text,
        "fps": torch.full((B,), 24.0),
        "padding_mask": torch.zeros(B, 1, 4, 4),
        "frame_mask": torch.zeros(B, 1, 3, 1, 1),
        "given_latents": torch.zeros(B, 16, 3, 4, 4),
        "augment_sigma": torch.zeros(B),
    }
