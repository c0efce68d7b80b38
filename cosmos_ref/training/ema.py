"""The average of the weights over training: what is sampled from."""

import torch
from torch import Tensor, nn

from cosmos_ref.equations.schedules import ema_beta, ema_gamma


class PowerEMA:
    """Power-function average of a module's weights, in float32.

    Its width is a share of the training so far, so the beginning is forgotten however long the training becomes.

    Args:
        module: whose weights.
        relative_std: standard deviation of the averaging window over the number of updates.
    """

    def __init__(self, module: nn.Module, relative_std: float):
        self.gamma = ema_gamma(relative_std)
        self.weights: dict[str, Tensor] = {name: t.detach().float().clone() for name, t in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Take in the weights after update number `step`, counted from 0."""
        beta = ema_beta(step, self.gamma)
        for name, tensor in module.state_dict().items():
            self.weights[name].lerp_(tensor.float(), 1 - beta)
