"""From unscaled latents to pixels: the encoder in reverse, with one residual block more at every level."""

from itertools import pairwise

import torch.nn.functional as nnf
from torch import nn

from cosmos_ref.blocks.causal_attention import MidBlock
from cosmos_ref.blocks.causal_conv import CausalSequential, FactorizedConv3d, Past, upsample, without_start
from cosmos_ref.blocks.resnet import FrameNorm, ResnetLevel
from cosmos_ref.equations.wavelets import inverse_haar_3d
from cosmos_ref.shapes import Latents, Video


class Decoder(nn.Module):
    """The expanding half; `strides` (time, space) lie between the levels, in the decoder's order."""

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
        self.conv_in = FactorizedConv3d(channels, widths[0])
        self.mid = MidBlock(widths[0])
        self.levels = CausalSequential(
            *(
                ResnetLevel(before, after, num_blocks, upsample(after, stride))
                for (before, after), stride in zip(pairwise(widths), (*strides, (1, 1)), strict=True)
            )
        )
        self.norm_out = FrameNorm(widths[-1])
        self.conv_out = FactorizedConv3d(widths[-1], 3 * 8**patch_levels)

    def forward(self, latents: Latents, past: Past | None = None) -> Video:
        """Video of latents, with a past of their next chunk; values a little outside [-1, 1] stay."""
        x = self.conv_in(latents, past)
        x = self.mid(x, past)
        x = self.levels(x, past)
        x = self.conv_out(nnf.silu(self.norm_out(x)), past)
        x = inverse_haar_3d(x, (self.patch_levels, self.patch_levels, self.patch_levels))
        return without_start(x, self, past, 2**self.patch_levels - 1)
