"""From pixels to unscaled latents: wavelets, three levels of causal residual blocks, attention."""

from itertools import pairwise

import torch.nn.functional as nnf
from torch import nn

from cosmos_ref.blocks.causal_attention import MidBlock
from cosmos_ref.blocks.causal_conv import CausalSequential, FactorizedConv3d, Past, downsample, with_frames_before
from cosmos_ref.blocks.resnet import FrameNorm, ResnetLevel
from cosmos_ref.equations.wavelets import haar_3d
from cosmos_ref.shapes import Latents, Video


class Encoder(nn.Module):
    """The contracting half; `strides` (time, space) lie between the levels."""

    def __init__(
        self,
        patch_levels: int,
        widths: tuple[int, ...],
        strides: tuple[tuple[int, int], ...],
        num_blocks: int,
        channels: int,
    ):
        super().__init__()
        self.patch_levels = patch_levels
        self.conv_in = FactorizedConv3d(3 * 8**patch_levels, widths[0])
        self.levels = CausalSequential(
            *(
                ResnetLevel(before, after, num_blocks, downsample(after, stride))
                for (before, after), stride in zip(pairwise(widths), (*strides, (1, 1)), strict=True)
            )
        )
        self.mid = MidBlock(widths[-1])
        self.norm_out = FrameNorm(widths[-1])
        self.conv_out = FactorizedConv3d(widths[-1], channels)

    def forward(self, video: Video, past: Past | None = None) -> Latents:
        """Latents of a video, as the network gives them; with a past, of its next chunk."""
        x = with_frames_before(video, self, past, at_start=2**self.patch_levels - 1, later=0)
        x = haar_3d(x, (self.patch_levels, self.patch_levels, self.patch_levels))
        x = self.conv_in(x, past)
        x = self.levels(x, past)
        x = self.mid(x, past)
        return self.conv_out(nnf.silu(self.norm_out(x)), past)
