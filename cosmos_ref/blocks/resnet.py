"""The residual block of the tokenizer and the norm before every convolution in it."""

import torch.nn.functional as nnf
from jaxtyping import Float
from torch import Tensor, nn

from cosmos_ref.blocks.causal_conv import CausalSequential, FactorizedConv3d, Past, PointwiseConv3d
from cosmos_ref.equations.causal import frame_norm


class FrameNorm(nn.GroupNorm):
    """Normalise each frame by itself, over all its channels and pixels: no frame sees another one's statistics."""

    def __init__(self, width: int):
        super().__init__(num_groups=1, num_channels=width, eps=1e-6)

    def forward(self, x: Float[Tensor, "B C T H W"]) -> Float[Tensor, "B C T H W"]:
        """Normalise x."""
        return frame_norm(x, self.weight, self.bias, self.eps)


class ResnetBlock(nn.Module):
    """Twice norm, swish, convolution, added to the input."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.norm1 = FrameNorm(in_channels)
        self.conv1 = FactorizedConv3d(in_channels, out_channels)
        self.norm2 = FrameNorm(out_channels)
        self.conv2 = FactorizedConv3d(out_channels, out_channels)
        same = in_channels == out_channels
        self.shortcut = nn.Identity() if same else PointwiseConv3d(in_channels, out_channels)

    def forward(self, x: Float[Tensor, "B C T H W"], past: Past | None = None) -> Float[Tensor, "B C2 T H W"]:
        """Features after this block."""
        y = self.conv1(nnf.silu(self.norm1(x)), past)
        y = self.conv2(nnf.silu(self.norm2(y)), past)
        return self.shortcut(x) + y


class ResnetLevel(nn.Module):
    """Residual blocks at one resolution, then the step to the next."""

    def __init__(self, in_channels: int, out_channels: int, num_blocks: int, resample: CausalSequential):
        super().__init__()
        widths = [in_channels] + [out_channels] * (num_blocks - 1)
        self.resnets = CausalSequential(*(ResnetBlock(width, out_channels) for width in widths))
        self.resample = resample

    def forward(self, x: Float[Tensor, "B C T H W"], past: Past | None = None) -> Float[Tensor, "B C2 T2 H2 W2"]:
        """Features at the next resolution."""
        return self.resample(self.resnets(x, past), past)
