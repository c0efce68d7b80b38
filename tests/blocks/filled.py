"""Modules whose every weight is drawn, so that no law holds because something happens to be zero or one."""

import torch
from torch import nn

from tests.strategies import normal


def filled(module: nn.Module, seed: int = 0) -> nn.Module:
    """The module in float64 with unit-gain random weights; the weights of norms lie around one."""
    module = module.double()
    with torch.no_grad():
        for i, (name, weight) in enumerate(sorted(module.named_parameters())):
            drawn = normal(seed * 1009 + i, *weight.shape)
            is_norm = name.split(".")[-2:-1] in (["norm"], ["norm_q"], ["norm_k"])
            weight.copy_(1 + 0.3 * drawn if is_norm else drawn / weight.shape[-1] ** 0.5)
    return module
