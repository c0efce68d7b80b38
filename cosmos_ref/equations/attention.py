"""Attention, and the norm that keeps it from saturating."""

import torch
import torch.nn.functional as nnf
from jaxtyping import Float
from torch import Tensor

from cosmos_ref.traceability import equation


@equation(
    "attention.softmax_attention",
    source="Vaswani et al. 2017 (arXiv 1706.03762), Eq. 1; Cosmos: full, never masked",
)
def softmax_attention(
    q: Float[Tensor, "B N L K"], k: Float[Tensor, "B N M K"], v: Float[Tensor, "B N M K"]
) -> Float[Tensor, "B N L K"]:
    r"""Attention, the way it is defined (the model calls PyTorch's fused one, which a test compares with this).

    $$A = \operatorname{softmax}\!\left(\frac{q k^\top}{\sqrt K}\right) v$$
    """
    scores = torch.einsum("bnlk,bnmk->bnlm", q, k) / q.shape[-1] ** 0.5
    return scores.softmax(dim=-1) @ v


@equation(
    "attention.rms_norm",
    source="Zhang & Sennrich 2019 (arXiv 1910.07467), Eq. 4; Cosmos: on queries and keys, per head",
)
def rms_norm(x: Float[Tensor, "*S K"], weight: Float[Tensor, "K"], eps: float) -> Float[Tensor, "*S K"]:
    r"""Scale to unit root mean square over the last axis, then by a learned weight.

    $$y = \frac{x}{\sqrt{\operatorname{mean}(x^2) + \epsilon}} \odot w$$
    """
    return nnf.rms_norm(x, weight.shape, weight, eps)
