"""Where training starts. Models are built without memory, then filled once, from a generator."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from cosmos_ref.blocks.attention import RMSNorm
from cosmos_ref.blocks.dit_block import DiTBlock
from cosmos_ref.blocks.embeddings import NoiseEmbedding, PositionEmbedding
from cosmos_ref.blocks.lora import LoRALinear, add_lora, initialize_A
from cosmos_ref.config import Config
from cosmos_ref.errors import UserError
from cosmos_ref.model.denoiser import Denoiser, Text2WorldDenoiser, Video2WorldDenoiser
from cosmos_ref.model.dit import CosmosDiT
from cosmos_ref.model.uncertainty import Uncertainty

Write = Callable[[Tensor, Tensor], object]
"""Puts a whole value into a tensor."""


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
        denoiser = kind(CosmosDiT(config.model), config.diffusion.sigma_data)
        if config.lora.rank:
            add_lora(denoiser.network, config.lora)
        return denoiser


def build_uncertainty(config: Config) -> Uncertainty:
    """u(sigma) of a preset without values, on the meta device."""
    with torch.device("meta"):
        return Uncertainty(config.diffusion.uncertainty_channels)


def new_model(
    config: Config,
    generator: torch.Generator,
    place: Callable[[nn.Module], None] = lambda module: None,
    write: Write = Tensor.copy_,
    device: torch.device | None = None,
) -> tuple[Denoiser, Uncertainty]:
    """Denoiser and u(sigma) as they are before training, in float32: the same numbers however they are spread.

    Args:
        config: what to build.
        generator: every process has one in the same state, and draws all numbers from it.
        place: spreads a module that is still on the meta device, in place.
        write: puts a whole value into a tensor, of which this process may have a part.
        device: where the modules are to be, the generator's unless told otherwise.
    """
    denoiser, uncertainty = build_denoiser(config), build_uncertainty(config)
    for module in (denoiser, uncertainty):
        place(module)
        module.to_empty(device=device or generator.device)
    initialize(denoiser.network, generator, write)
    initialize_uncertainty(uncertainty, generator, write)
    return denoiser, uncertainty


@torch.no_grad()
def initialize(network: CosmosDiT, generator: torch.Generator, write: Write = Tensor.copy_) -> None:
    """Xavier for every linear layer; small for the noise embedding; zero for the blocks' second AdaLN half; unit norms.

    With that half at zero, all sub-blocks start from the shared AdaLN term alone. Nothing of the final layer is zeroed.
    """

    def fill(tensor: Tensor, draw: Callable[..., object], **how: Any) -> None:
        write(tensor, drawn(tensor, generator.device, draw, **how))

    for module in network.modules():
        if isinstance(module, nn.Linear):
            fill(module.weight, nn.init.xavier_uniform_, generator=generator)
        elif isinstance(module, RMSNorm):
            fill(module.weight, nn.init.ones_)
        elif isinstance(module, PositionEmbedding):
            for table in (module.t, module.h, module.w):
                fill(table, nn.init.trunc_normal_, std=0.02, generator=generator)
    for module in network.modules():  # a second pass, since these set what the first one did
        if isinstance(module, DiTBlock):
            for adaln in (module.adaln_self, module.adaln_cross, module.adaln_mlp):
                fill(adaln.up.weight, nn.init.zeros_)
        elif isinstance(module, NoiseEmbedding):
            fill(module.linear_1.weight, nn.init.normal_, std=0.02, generator=generator)
            fill(module.linear_2.weight, nn.init.normal_, std=0.02, generator=generator)
        elif isinstance(module, LoRALinear):
            fill(module.lora_A, initialize_A, generator=generator)
            fill(module.lora_B, nn.init.zeros_)


@torch.no_grad()
def initialize_uncertainty(uncertainty: Uncertainty, generator: torch.Generator, write: Write = Tensor.copy_) -> None:
    """Fresh frequencies and phases; u = 0 everywhere."""
    frequencies = drawn(uncertainty.frequencies, generator.device, Tensor.normal_, generator=generator)
    phases = drawn(uncertainty.phases, generator.device, Tensor.uniform_, generator=generator)
    write(uncertainty.frequencies, frequencies * (2 * math.pi))
    write(uncertainty.phases, phases * (2 * math.pi))
    write(uncertainty.linear.weight, drawn(uncertainty.linear.weight, generator.device, nn.init.zeros_))


def drawn(tensor: Tensor, device: torch.device, draw: Callable[..., object], **how: Any) -> Tensor:
    """A whole tensor like `tensor`, of which there may be only a part here, filled by `draw`."""
    value = torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
    draw(value, **how)
    return value
