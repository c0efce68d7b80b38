"""Mean and deviation of more latents than fit into memory."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from cosmos_ref.equations.whitening import merge_moments


class RunningMoments:
    """Count, mean and sum of squared deviations of numbers that come in pieces, in float64."""

    def __init__(self):
        self.count = 0
        self.mean = torch.zeros((), dtype=torch.float64)
        self.m2 = torch.zeros((), dtype=torch.float64)

    @property
    def std(self) -> Tensor:
        """Standard deviation of all numbers so far (of the sample itself: divided by their count)."""
        return (self.m2 / self.count).sqrt()

    def update(self, x: Tensor, over: Sequence[int]) -> None:
        """Take in all numbers of a tensor.

        Args:
            x: numbers; a tensor without any changes nothing.
            over: axes that are samples of the same quantity; along the others there is a mean for each place.
        """
        x, over = x.detach().cpu().double(), tuple(over)
        piece = RunningMoments()
        piece.count = math.prod(x.shape[axis] for axis in over)
        piece.mean = x.mean(over)
        piece.m2 = (x - x.mean(over, keepdim=True)).square().sum(over)
        self.merge(piece)

    def merge(self, other: "RunningMoments") -> None:
        """Take in all numbers that others have seen."""
        if other.count:
            moments = (self.count, self.mean, self.m2, other.count, other.mean, other.m2)
            self.mean, self.m2 = merge_moments(*moments)
            self.count += other.count
