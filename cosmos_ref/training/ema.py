"""The average of the weights over training: what is sampled from."""

import torch
from torch import Tensor, nn

from cosmos_ref.equations.schedules import ema_beta, ema_gamma


class PowerEMA:
    """Power-function average of a module's weights, in float32.

    Its width is a share of the training so far, so the beginning is forgotten however long the training becomes.
    What is not trained is its own average, and shared.

    Args:
        module: whose weights.
        relative_std: standard deviation of the averaging window over the number of updates.
    """

    def __init__(self, module: nn.Module, relative_std: float):
        self.gamma = ema_gamma(relative_std)
        self.trained = {name for name, p in module.named_parameters() if p.requires_grad}
        self.weights: dict[str, Tensor] = {
            name: t.float().clone() if name in self.trained else t for name, t in module.state_dict().items()
        }

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Take in the weights after update number `step`, counted from 0."""
        beta = ema_beta(step, self.gamma)
        for name, tensor in module.state_dict().items():
            if name in self.trained:
                self.weights[name].lerp_(tensor.float(), 1 - beta)
