"""What is measured of a clip before it is encoded, to choose by later; both in 8-bit levels."""

import torch.nn.functional as nnf
from jaxtyping import Float
from torch import Tensor

LEVELS = 127.5
"""8-bit levels in a unit of a video in [-1, 1]."""


def sharpness(video: Float[Tensor, "3 T H W"]) -> float:
    """Variance of the Laplacian of the grey frames: a blurred one has none. Below three pixels a side it is zero."""
    grey = LEVELS * video.mean(0)
    if min(grey.shape[1:]) < 3:
        return 0.0
    kernel = grey.new_tensor([[0, 1, 0], [1, -4, 1], [0, 1, 0]])
    laplacian = nnf.conv2d(grey[:, None], kernel[None, None])
    return laplacian.var(dim=(1, 2, 3), correction=0).mean().item()


def motion(video: Float[Tensor, "3 T H W"]) -> float:
    """Mean absolute difference of a frame from the one before; of an image it is zero."""
    return LEVELS * video.diff(dim=1).abs().mean().item() if video.shape[1] > 1 else 0.0
