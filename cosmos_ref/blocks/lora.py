"""LoRA: linear layers that stay as they are, each with a small adapter beside it that learns."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cosmos_ref.config import LoRAConfig
from cosmos_ref.equations import adapters
from cosmos_ref.errors import UserError


class LoRALinear(nn.Linear):
    """A linear layer with an adapter beside it. The weight keeps its name.

    Args:
        layer: the layer, without a bias; its weight is taken over.
        rank: rows of A, columns of B.
        alpha: scale of the adapter, before it is divided by the rank.
    """

    def __init__(self, layer: nn.Linear, rank: int, alpha: float):
        super().__init__(layer.in_features, layer.out_features, bias=False, device="meta")
        self.alpha = alpha
        self.weight = layer.weight
        self.lora_A = nn.Parameter(layer.weight.new_empty(rank, layer.in_features))
        self.lora_B = nn.Parameter(layer.weight.new_zeros(layer.out_features, rank))

    def forward(self, x: Float[Tensor, "*S I"]) -> Float[Tensor, "*S O"]:
        """Output of the layer and its adapter together."""
        return adapters.lora_output(x, self.weight, self.lora_A, self.lora_B, self.alpha)


def add_lora(network: nn.Module, config: LoRAConfig) -> list[str]:
    """Put adapters beside the chosen linear layers of a network, in place; nothing else of it learns any more.

    A is not filled yet: see `initialize_lora`.

    Args:
        network: the network, on any device, not yet sharded.
        config: rank, alpha, and the names of the layers.

    Returns:
        The layers that have an adapter now, by their paths in the network.

    Raises:
        UserError: a name fits no linear layer of the network.
    """
    layers = {name: module for name, module in network.named_modules() if isinstance(module, nn.Linear)}
    if any(isinstance(layer, LoRALinear) for layer in layers.values()):
        raise ValueError("the network has adapters already: merge them first")
    chosen = [name for name in layers if name.rpartition(".")[2] in config.targets]
    names = sorted({name.rpartition(".")[2] for name in layers})
    if unknown := sorted(set(config.targets) - set(names)):
        raise UserError(f"lora.targets {unknown} are no linear layers of the network: choose from {', '.join(names)}")
    network.requires_grad_(False)
    for name in chosen:
        _replace(network, name, LoRALinear(layers[name], config.rank, config.alpha))
    return chosen


@torch.no_grad()
def initialize_lora(network: nn.Module, generator: torch.Generator) -> None:
    """Random A and B = 0: the output is as it was."""
    for module in network.modules():
        if isinstance(module, LoRALinear):
            initialize_A(module.lora_A, generator)
            nn.init.zeros_(module.lora_B)


def initialize_A(A: Float[Tensor, "R I"], generator: torch.Generator) -> None:
    """Kaiming-uniform, as PEFT has it: entries up to 1 / sqrt(inputs)."""
    nn.init.kaiming_uniform_(A, a=math.sqrt(5), generator=generator)


@torch.no_grad()
def merge_lora(network: nn.Module) -> None:
    """Add every adapter to its weight, in place: the layers are ordinary ones again.

    The sum is formed in at least float32 and then rounded to the weight's precision.
    """
    for name, module in list(network.named_modules()):
        if isinstance(module, LoRALinear):
            exact = torch.promote_types(module.weight.dtype, torch.float32)
            W, A, B = (tensor.to(exact) for tensor in (module.weight, module.lora_A, module.lora_B))
            layer = nn.Linear(module.in_features, module.out_features, bias=False, device="meta")
            merged = adapters.lora(W, A, B, module.alpha).to(module.weight.dtype)
            layer.weight = nn.Parameter(merged, requires_grad=False)
            _replace(network, name, layer)


def _replace(network: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, own = name.rpartition(".")
    setattr(network.get_submodule(parent), own, module)
