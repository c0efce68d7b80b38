"""Convolutions of the tokenizer, which never look ahead in time, and the halving and doubling made of them."""

import torch
import torch.nn.functional as nnf
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor, nn

from cosmos_ref.equations.causal import causal_pad


class Past(dict[nn.Module, Tensor]):
    """What layers keep of the chunks before, so that a clip passed in chunks gives what the whole clip gives.

    Empty before the first frame. Every causal layer reads what it kept and replaces it. Convolutions keep their last
    frames, temporal attention all keys and values: that part grows with the clip.
    """

    def __init__(self):
        super().__init__()
        self.latent_frames = 0
        """Latent frames passed so far; the tokenizer counts them."""


def with_frames_before(
    x: Float[Tensor, "B C T H W"], layer: nn.Module, past: Past | None, at_start: int, later: int
) -> Float[Tensor, "B C T2 H W"]:
    """Frames x with `at_start` copies of the first in front, or in a later chunk with the last `later` frames before x.

    Without a past, x is the whole clip.
    """
    if past is None or layer not in past:
        x = causal_pad(x, at_start)
    elif later:
        x = torch.cat([past[layer], x], dim=2)
    if past is not None:
        past[layer] = x[:, :, x.shape[2] - later :].clone()  # a view would keep the whole chunk in memory
    return x


def without_start(
    x: Float[Tensor, "B C T H W"], layer: nn.Module, past: Past | None, count: int
) -> Float[Tensor, "B C T2 H W"]:
    """Frames x without the first `count` of the clip: a later chunk loses none."""
    at_start = past is None or layer not in past
    if past is not None:
        past[layer] = x.new_empty(0)
    return x[:, :, count:] if at_start else x


class CausalConv3d(nn.Conv3d):
    """Convolution with the first frame repeated in front, nothing behind, and zeros around every frame."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: tuple[int, int, int],
        stride: tuple[int, int, int] = (1, 1, 1),
    ):
        time, height, width = kernel_size
        super().__init__(in_channels, out_channels, kernel_size, stride, padding=(0, height // 2, width // 2))
        self.frames_at_start = time - 1
        self.frames_later = time - stride[0]

    def forward(self, x: Float[Tensor, "B C T H W"], past: Past | None = None) -> Float[Tensor, "B C2 T2 H2 W2"]:
        """Convolve x; frame t of the result has seen frames up to stride * t."""
        if self.frames_at_start:
            x = with_frames_before(x, self, past, self.frames_at_start, self.frames_later)
        return super().forward(x)


class PointwiseConv3d(CausalConv3d):
    """A linear map of the channels of every pixel."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(in_channels, out_channels, (1, 1, 1))


class CausalSequential(nn.Sequential):
    """Layers one after the other, all with the same past."""

    def forward(self, x: Float[Tensor, "B C T H W"], past: Past | None = None) -> Float[Tensor, "B C2 T2 H2 W2"]:
        """Pass x through every layer."""
        for layer in self:
            x = layer(x, past)
        return x


class FactorizedConv3d(nn.Module):
    """A 3x3x3 neighbourhood in two steps: within the frame, then along time."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.space = CausalConv3d(in_channels, out_channels, (1, 3, 3))
        self.time = CausalConv3d(out_channels, out_channels, (3, 1, 1))

    def forward(self, x: Float[Tensor, "B C T H W"], past: Past | None = None) -> Float[Tensor, "B C2 T H W"]:
        """Convolve x."""
        return self.time(self.space(x), past)


class HalveSpace(nn.Module):
    """Half the height and width: what a strided convolution finds, added to the mean of each 2x2 pixels."""

    def __init__(self, width: int):
        super().__init__()
        self.conv = nn.Conv3d(width, width, (1, 3, 3), stride=(1, 2, 2))

    def forward(self, x: Float[Tensor, "B C T H W"], past: Past | None = None) -> Float[Tensor, "B C T H2 W2"]:
        """Halve x, whose height and width are even."""
        below_and_right = (0, 1, 0, 1)
        return self.conv(nnf.pad(x, below_and_right)) + mean_of_pixels(x)


class HalveTime(nn.Module):
    """From T frames to (T + 1) / 2: the first stands alone, each later one is made of two and what came before."""

    def __init__(self, width: int):
        super().__init__()
        self.conv = CausalConv3d(width, width, (3, 1, 1), stride=(2, 1, 1))

    def forward(self, x: Float[Tensor, "B C T H W"], past: Past | None = None) -> Float[Tensor, "B C T2 H W"]:
        """Halve x, whose number of frames is odd; a later chunk's is even."""
        pairs = with_frames_before(x, self, past, at_start=1, later=0)
        return self.conv(x, past) + mean_of_pairs(pairs)


# Both as pooling in two dimensions, since torch's in three takes no bfloat16 on a CPU.


def mean_of_pixels(x: Float[Tensor, "B C T H W"]) -> Float[Tensor, "B C T H2 W2"]:
    """Mean of each 2x2 pixels."""
    means = nnf.avg_pool2d(rearrange(x, "B C T H W -> B (C T) H W"), 2)
    return rearrange(means, "B (C T) H W -> B C T H W", C=x.shape[1])


def mean_of_pairs(x: Float[Tensor, "B C T H W"]) -> Float[Tensor, "B C T2 H W"]:
    """Mean of each two frames."""
    means = nnf.avg_pool2d(rearrange(x, "B C T H W -> B C T (H W)"), (2, 1))
    return rearrange(means, "B C T (H W) -> B C T H W", H=x.shape[3])


class DoubleTime(nn.Module):
    """From T frames to 2 T - 1: every frame but the first twice, corrected by a convolution."""

    def __init__(self, width: int):
        super().__init__()
        self.conv = CausalConv3d(width, width, (3, 1, 1))

    def forward(self, x: Float[Tensor, "B C T H W"], past: Past | None = None) -> Float[Tensor, "B C T2 H W"]:
        """Double x."""
        x = without_start(repeat(x, "B C T H W -> B C (T t) H W", t=2), self, past, 1)
        return x + self.conv(x, past)


class DoubleSpace(nn.Module):
    """Twice the height and width: every pixel becomes 2x2, corrected by a convolution."""

    def __init__(self, width: int):
        super().__init__()
        self.conv = CausalConv3d(width, width, (1, 3, 3))

    def forward(self, x: Float[Tensor, "B C T H W"], past: Past | None = None) -> Float[Tensor, "B C T H2 W2"]:
        """Double x."""
        x = repeat(x, "B C T H W -> B C T (H h) (W w)", h=2, w=2)
        return x + self.conv(x)


def downsample(width: int, stride: tuple[int, int]) -> CausalSequential:
    """Halve space, then time, then mix the channels; `stride` (time, space) says which, (1, 1) does nothing."""
    time, space = stride
    steps = CausalSequential()
    if space == 2:
        steps.add_module("space", HalveSpace(width))
    if time == 2:
        steps.add_module("time", HalveTime(width))
    if len(steps):
        steps.add_module("mix", PointwiseConv3d(width, width))
    return steps


def upsample(width: int, stride: tuple[int, int]) -> CausalSequential:
    """Double time, then space, then mix the channels; `stride` (time, space) says which, (1, 1) does nothing."""
    time, space = stride
    steps = CausalSequential()
    if time == 2:
        steps.add_module("time", DoubleTime(width))
    if space == 2:
        steps.add_module("space", DoubleSpace(width))
    if len(steps):
        steps.add_module("mix", PointwiseConv3d(width, width))
    return steps
