"""Everything a checkpoint holds that generating needs, loaded and ready."""

from dataclasses import dataclass
from pathlib import Path

import torch

from cosmos_ref.checkpoint import find_checkpoint, load_strict, read_checkpoint
from cosmos_ref.conditioning.text import TextEncoder, build_text_encoder
from cosmos_ref.config import Config
from cosmos_ref.model.denoiser import Denoiser
from cosmos_ref.model.initialization import build_denoiser, build_uncertainty, find_device
from cosmos_ref.model.uncertainty import Uncertainty
from cosmos_ref.tokenizer.haar_pca import HaarPCATokenizer


@dataclass(frozen=True)
class WorldModel:
    """A trained model: text encoder, denoiser with averaged weights, u(sigma), tokenizer, and their numbers."""

    config: Config
    denoiser: Denoiser
    uncertainty: Uncertainty
    tokenizer: HaarPCATokenizer
    text_encoder: TextEncoder

    @property
    def device(self) -> torch.device:
        """Where the denoiser runs; text, noise and given frames are brought there."""
        return next(self.denoiser.parameters()).device


def load_world_model(path: Path, t5_folder: Path | None = None, device: torch.device | str = "cpu") -> WorldModel:
    """The model of a checkpoint, or of the newest checkpoint of a training run.

    Args:
        path: folder of a checkpoint or of a run.
        t5_folder: local folder of the T5 encoder, for presets that use it.
        device: where it runs.

    Raises:
        UserError: if there is no checkpoint, or it is damaged, or the device or the text encoder's folder is missing.
    """
    device = find_device(device)
    checkpoint = read_checkpoint(find_checkpoint(path), names=("ema", "uncertainty", "tokenizer"))
    config = checkpoint.config
    modules = build_denoiser(config), build_uncertainty(config), HaarPCATokenizer(config.tokenizer)
    for module, name in zip(modules, ("ema", "uncertainty", "tokenizer"), strict=True):
        load_strict(module, checkpoint.tensors[name], what=name)
        module.to(device).eval().requires_grad_(False)
    denoiser, uncertainty, tokenizer = modules
    return WorldModel(config, denoiser, uncertainty, tokenizer, build_text_encoder(config.text, t5_folder))
