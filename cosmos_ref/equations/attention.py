"""Attention, and the norm that keeps it from saturating."""

import torch
import torch.nn.functional as nnf
from einops import rearrange
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

    The queries are divided before they meet the keys: no product is larger than the logit that it becomes.
    """
    scores = torch.einsum("bnlk,bnmk->bnlm", q / q.shape[-1] ** 0.5, k)
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


@equation(
    "attention.qk_norm",
    source="Henry et al. 2020 (arXiv 2010.04245), its place; Cosmos code: RMS norm, one weight for all heads",
)
def qk_norm(x: Float[Tensor, "B L D"], weight: Float[Tensor, "K"], eps: float) -> Float[Tensor, "B N L K"]:
    r"""Queries or keys cut into heads, each of them normalised by itself.

    $$y_{n, l} = \operatorname{RMSNorm}\big(x_{l,\ nK : (n+1)K}\big)$$

    The norm comes before the swap of axes: on swapped ones it asks whether memory is contiguous, which an export with
    a text length of one cannot answer.
    """
    heads = rearrange(x, "B L (N K) -> B L N K", K=len(weight))
    return rearrange(rms_norm(heads, weight, eps), "B L N K -> B N L K")
