"""Where training starts. Models are built without memory, then filled once, from a generator."""

import math

import torch
from torch import nn

from cosmos_ref.blocks.attention import RMSNorm
from cosmos_ref.blocks.dit_block import DiTBlock
from cosmos_ref.blocks.embeddings import NoiseEmbedding, PositionEmbedding
from cosmos_ref.config import Config
from cosmos_ref.errors import UserError
from cosmos_ref.model.denoiser import Denoiser, Text2WorldDenoiser, Video2WorldDenoiser
from cosmos_ref.model.dit import CosmosDiT
from cosmos_ref.model.uncertainty import Uncertainty


def find_device(name: str | torch.device) -> torch.device:
    """The device called `name`.

    Raises:
        UserError: if it is neither the CPU nor a GPU that torch finds.
    """
    try:
        device = torch.device(name)
    except RuntimeError:  # torch lists kinds that no model of ours runs on
        raise UserError(f"no device is called {str(name)!r}: give cpu, or cuda where there is a GPU") from None
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"device {device} is not supported: give cpu, or cuda where there is a GPU")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"device {device} is not there: torch finds {torch.cuda.device_count()} GPU(s); use cpu")
    return device


def build_denoiser(config: Config) -> Denoiser:
    """The denoiser of a preset without values, on the meta device."""
    with torch.device("meta"):
        kind = Video2WorldDenoiser if config.model.video2world else Text2WorldDenoiser
        return kind(CosmosDiT(config.model), config.diffusion.sigma_data)


def build_uncertainty(config: Config) -> Uncertainty:
    """u(sigma) of a preset without values, on the meta device."""
    with torch.device("meta"):
        return Uncertainty(config.diffusion.uncertainty_channels)


def new_model(config: Config, generator: torch.Generator) -> tuple[Denoiser, Uncertainty]:
    """Denoiser and u(sigma) as they are before training, in float32 on the generator's device."""
    denoiser = build_denoiser(config).to_empty(device=generator.device)
    uncertainty = build_uncertainty(config).to_empty(device=generator.device)
    initialize(denoiser.network, generator)
    initialize_uncertainty(uncertainty, generator)
    return denoiser, uncertainty


@torch.no_grad()
def initialize(network: CosmosDiT, generator: torch.Generator) -> None:
    """Xavier for every linear layer; small for the noise embedding; zero for the blocks' second AdaLN half; unit norms.

    With that half at zero, all sub-blocks start from the shared AdaLN term alone. Nothing of the final layer is zeroed.
    """
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight, generator=generator)
        elif isinstance(module, RMSNorm):
            nn.init.ones_(module.weight)
        elif isinstance(module, PositionEmbedding):
            for table in (module.t, module.h, module.w):
                nn.init.trunc_normal_(table, std=0.02, generator=generator)
    for module in network.modules():  # a second pass, since these set what the first one did
        if isinstance(module, DiTBlock):
            for adaln in (module.adaln_self, module.adaln_cross, module.adaln_mlp):
                nn.init.zeros_(adaln.up.weight)
        elif isinstance(module, NoiseEmbedding):
            nn.init.normal_(module.linear_1.weight, std=0.02, generator=generator)
            nn.init.normal_(module.linear_2.weight, std=0.02, generator=generator)


@torch.no_grad()
def initialize_uncertainty(uncertainty: Uncertainty, generator: torch.Generator) -> None:
    """Fresh frequencies and phases; u = 0 everywhere."""
    uncertainty.frequencies.normal_(generator=generator).mul_(2 * math.pi)
    uncertainty.phases.uniform_(generator=generator).mul_(2 * math.pi)
    nn.init.zeros_(uncertainty.linear.weight)
