"""Self-attention over all tokens, cross-attention to the text."""

from collections.abc import Callable

import torch
import torch.nn.functional as nnf
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from cosmos_ref.equations import attention, rope

NORM_EPS = 1e-6


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last axis with a learned weight."""

    def __init__(self, dim: int, eps: float = NORM_EPS):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(dim))

    def forward(self, x: Float[Tensor, "*S K"]) -> Float[Tensor, "*S K"]:
        """Normalise x."""
        return attention.rms_norm(x, self.weight.to(x), self.eps)  # autocast: one precision, or nothing is fused


class SelfAttention(nn.Module):
    """Full attention among the tokens of a clip: heads, QK-norm, rotary positions.

    `attend` is the attention itself, `(q, k, v) -> out` on `B N L K`; context parallelism puts its own there.
    """

    def __init__(self, width: int, num_heads: int, qk_norm_eps: float):
        super().__init__()
        self.num_heads = num_heads
        self.attend: Callable[[Tensor, Tensor, Tensor], Tensor] = nnf.scaled_dot_product_attention
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(width, width, bias=False)
        self.to_v = nn.Linear(width, width, bias=False)
        self.norm_q = RMSNorm(width // num_heads, qk_norm_eps)
        self.norm_k = RMSNorm(width // num_heads, qk_norm_eps)
        self.to_out = nn.Linear(width, width, bias=False)

    def forward(
        self, x: Float[Tensor, "B L D"], cos: Float[Tensor, "B L K"], sin: Float[Tensor, "B L K"]
    ) -> Float[Tensor, "B L D"]:
        """Attend among x, whose tokens stand at the angles of `cos` and `sin`."""
        q = normed_heads(self.to_q(x), self.norm_q)
        k = normed_heads(self.to_k(x), self.norm_k)
        v = split_heads(self.to_v(x), self.num_heads)
        q = rope.rotate(q, cos, sin).to(v)  # the angles are float32; q and k come back in v's precision
        k = rope.rotate(k, cos, sin).to(v)
        return self.to_out(merge_heads(self.attend(q, k, v)))


class CrossAttention(nn.Module):
    """Attention from tokens to the text embeddings; padded text is zero and is attended like the rest."""

    def __init__(self, width: int, text_width: int, num_heads: int, qk_norm_eps: float):
        super().__init__()
        self.num_heads = num_heads
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(text_width, width, bias=False)
        self.to_v = nn.Linear(text_width, width, bias=False)
        self.norm_q = RMSNorm(width // num_heads, qk_norm_eps)
        self.norm_k = RMSNorm(width // num_heads, qk_norm_eps)
        self.to_out = nn.Linear(width, width, bias=False)

    def keys_values(
        self, text_embeddings: Float[Tensor, "B M E"]
    ) -> tuple[Float[Tensor, "B N M K"], Float[Tensor, "B N M K"]]:
        """What the text offers to this block: the same for every step of a sampler."""
        k = normed_heads(self.to_k(text_embeddings), self.norm_k)
        return k, split_heads(self.to_v(text_embeddings), self.num_heads)

    def forward(
        self, x: Float[Tensor, "B L D"], k: Float[Tensor, "B N M K"], v: Float[Tensor, "B N M K"]
    ) -> Float[Tensor, "B L D"]:
        """Attend from x to the text's keys and values."""
        q = normed_heads(self.to_q(x), self.norm_q)
        return self.to_out(merge_heads(nnf.scaled_dot_product_attention(q, k, v)))


def split_heads(x: Float[Tensor, "B L D"], num_heads: int) -> Float[Tensor, "B N L K"]:
    """One row of channels a head."""
    return rearrange(x, "B L (N K) -> B N L K", N=num_heads)


def normed_heads(x: Float[Tensor, "B L D"], norm: RMSNorm) -> Float[Tensor, "B N L K"]:
    """One row of channels a head, each normalised."""
    return attention.qk_norm(x, norm.weight.to(x), norm.eps)  # autocast: as in RMSNorm


def merge_heads(x: Float[Tensor, "B N L K"]) -> Float[Tensor, "B L D"]:
    """The heads side by side again."""
    return rearrange(x, "B N L K -> B L (N K)")
