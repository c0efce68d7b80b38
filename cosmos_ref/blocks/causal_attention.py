"""The attention of the tokenizer: within each frame, then along time without looking ahead."""

import torch.nn.functional as nnf
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from cosmos_ref.blocks.causal_conv import PointwiseConv3d
from cosmos_ref.blocks.resnet import FrameNorm, ResnetBlock

WITHIN_FRAMES = "B T (H W) C"
ALONG_TIME = "B (H W) T C"


class AxisAttention(nn.Module):
    """Attention with one head over the third axis of `layout`, added to the input."""

    def __init__(self, width: int, layout: str, causal: bool):
        super().__init__()
        self.layout = layout
        self.causal = causal
        self.norm = FrameNorm(width)
        self.to_q = PointwiseConv3d(width, width)
        self.to_k = PointwiseConv3d(width, width)
        self.to_v = PointwiseConv3d(width, width)
        self.to_out = PointwiseConv3d(width, width)

    def forward(self, x: Float[Tensor, "B C T H W"]) -> Float[Tensor, "B C T H W"]:
        """Features after attention."""
        y = self.norm(x)
        q, k, v = (rearrange(to(y), f"B C T H W -> {self.layout}") for to in (self.to_q, self.to_k, self.to_v))
        y = nnf.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return x + self.to_out(rearrange(y, f"{self.layout} -> B C T H W", H=x.shape[3], T=x.shape[2]))


class MidBlock(nn.Module):
    """What stands between encoder levels and latents, and between latents and decoder levels."""

    def __init__(self, width: int):
        super().__init__()
        self.resnet_in = ResnetBlock(width, width)
        self.spatial_attention = AxisAttention(width, WITHIN_FRAMES, causal=False)
        self.temporal_attention = AxisAttention(width, ALONG_TIME, causal=True)
        self.resnet_out = ResnetBlock(width, width)

    def forward(self, x: Float[Tensor, "B C T H W"]) -> Float[Tensor, "B C T H W"]:
        """Features after this block."""
        x = self.resnet_in(x)
        x = self.spatial_attention(x)
        x = self.temporal_attention(x)
        return self.resnet_out(x)
