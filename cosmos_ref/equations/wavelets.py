"""The Haar transform in three dimensions, the first and last step of the tokenizers."""

import torch
from jaxtyping import Float
from torch import Tensor

from cosmos_ref.traceability import equation

_SOURCE = "Cosmos (arXiv 2501.03575), Sec. 4.1; code: every level scaled so that the low band is the mean"


@equation("wavelets.haar_3d", source=_SOURCE)
def haar_3d(x: Float[Tensor, "B C T H W"], levels: tuple[int, int, int]) -> Float[Tensor, "B C2 T2 H2 W2"]:
    r"""Split every pair along each axis into its mean and half its difference, `levels` times per axis (t, h, w).

    $$l = \frac{a + b}{2}, \qquad h = \frac{a - b}{2}$$

    All bands are split again at the next level. Bands stand outside the channels, in the order lll, llh, lhl, ..., hhh
    over (t, h, w), the last level outermost.
    """
    for level in range(max(levels)):
        for axis in (4, 3, 2):
            if level < levels[axis - 2]:
                a, b = x.unflatten(axis, (-1, 2)).unbind(axis + 1)
                x = torch.cat([(a + b) / 2, (a - b) / 2], dim=1)
    return x


@equation("wavelets.inverse_haar_3d", source=_SOURCE)
def inverse_haar_3d(x: Float[Tensor, "B C T H W"], levels: tuple[int, int, int]) -> Float[Tensor, "B C2 T2 H2 W2"]:
    r"""Undo `haar_3d`.

    $$a = l + h, \qquad b = l - h$$
    """
    for level in reversed(range(max(levels))):
        for axis in (2, 3, 4):
            if level < levels[axis - 2]:
                low, high = x.chunk(2, dim=1)
                x = torch.stack([low + high, low - high], dim=axis + 1).flatten(axis, axis + 1)
    return x
