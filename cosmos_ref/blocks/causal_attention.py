"""The attention of the tokenizer: within each frame, then along time without looking ahead."""

import torch
import torch.nn.functional as nnf
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from cosmos_ref.blocks.causal_conv import Past, PointwiseConv3d
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

    def forward(self, x: Float[Tensor, "B C T H W"], past: Past | None = None) -> Float[Tensor, "B C T H W"]:
        """Features after attention."""
        y = self.norm(x)
        # Only rows that lie together go to the kernels that never hold the matrix of all pairs.
        q, k, v = (
            rearrange(to(y), f"B C T H W -> {self.layout}").contiguous() for to in (self.to_q, self.to_k, self.to_v)
        )
        if self.causal and past is not None:
            k, v = _with_all_before(k, self.to_k, past), _with_all_before(v, self.to_v, past)
        y = _attend_up_to_own(q, k, v) if self.causal else nnf.scaled_dot_product_attention(q, k, v)
        return x + self.to_out(rearrange(y, f"{self.layout} -> B C T H W", H=x.shape[3], T=x.shape[2]))


def _with_all_before(x: Float[Tensor, "B L T C"], layer: nn.Module, past: Past) -> Float[Tensor, "B L T2 C"]:
    """What `layer` made of all frames so far; all of it is kept."""
    past[layer] = torch.cat([past.pop(layer), x], dim=2) if layer in past else x
    return past[layer]


def _attend_up_to_own(
    q: Float[Tensor, "B L T C"], k: Float[Tensor, "B L T2 C"], v: Float[Tensor, "B L T2 C"]
) -> Float[Tensor, "B L T C"]:
    """Attention of the last T of T2 frames, each to itself and all before it."""
    frames, earlier = q.shape[2], k.shape[2] - q.shape[2]
    if not earlier:
        return nnf.scaled_dot_product_attention(q, k, v, is_causal=True)
    seen = torch.ones(frames, earlier + frames, dtype=torch.bool, device=q.device).tril(earlier)
    return nnf.scaled_dot_product_attention(q, k, v, attn_mask=seen)


class MidBlock(nn.Module):
    """What stands between encoder levels and latents, and between latents and decoder levels."""

    def __init__(self, width: int):
        super().__init__()
        self.resnet_in = ResnetBlock(width, width)
        self.spatial_attention = AxisAttention(width, WITHIN_FRAMES, causal=False)
        self.temporal_attention = AxisAttention(width, ALONG_TIME, causal=True)
        self.resnet_out = ResnetBlock(width, width)

    def forward(self, x: Float[Tensor, "B C T H W"], past: Past | None = None) -> Float[Tensor, "B C T H W"]:
        """Features after this block."""
        x = self.resnet_in(x, past)
        x = self.spatial_attention(x)
        x = self.temporal_attention(x, past)
        return self.resnet_out(x, past)
