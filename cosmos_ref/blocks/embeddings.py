"""Embeddings of the noise level and of token positions."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from cosmos_ref.blocks.attention import RMSNorm
from cosmos_ref.equations import embeddings

POSITION_EPS = 1e-6


class NoiseEmbedding(nn.Module):
    """What the blocks are told of the noise level: a normalised sinusoid, and the term that all AdaLN share.

    The MLP's output enters through the shared term only; the embedding itself is the raw sinusoid, normalised.
    """

    def __init__(self, width: int):
        super().__init__()
        self.width = width
        self.linear_1 = nn.Linear(width, width, bias=False)
        self.linear_2 = nn.Linear(width, 3 * width, bias=False)
        self.norm = RMSNorm(width)

    def forward(self, c_noise: Float[Tensor, "B"]) -> tuple[Float[Tensor, "B D"], Float[Tensor, "B 3*D"]]:
        """Noise embedding and shared AdaLN term."""
        sinusoid = embeddings.sinusoidal(c_noise, self.width).to(self.norm.weight.dtype)
        weights = self.norm.weight, self.linear_1.weight, self.linear_2.weight
        return embeddings.noise_embedding(sinusoid, *weights, self.norm.eps)


class PositionEmbedding(nn.Module):
    """Learned absolute positions, one table an axis; the same tensor is added before every block."""

    def __init__(self, width: int, max_tokens: tuple[int, int, int]):
        super().__init__()
        self.t, self.h, self.w = (nn.Parameter(torch.empty(size, width)) for size in max_tokens)

    def forward(self, positions: Int[Tensor, "L 3"]) -> Float[Tensor, "L D"]:
        """Rows of the tables at `positions`, summed and normalised."""
        t, h, w = positions.unbind(dim=1)
        return embeddings.position_embedding(self.t[t], self.h[h], self.w[w], POSITION_EPS)
