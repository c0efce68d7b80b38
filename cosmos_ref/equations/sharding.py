"""Context parallelism: attention computed block by block, as if all the keys had been in one place."""

import torch
from jaxtyping import Float
from torch import Tensor

from cosmos_ref.traceability import equation


@equation("sharding.block_attention", source="Liu et al. 2023 (arXiv 2310.01889), ring attention, Sec. 3")
def block_attention(
    q: Float[Tensor, "B N L K"], k: Float[Tensor, "B N M K"], v: Float[Tensor, "B N M K"]
) -> tuple[Float[Tensor, "B N L K"], Float[Tensor, "B N L"]]:
    r"""Attention to one block of keys, and the logarithm of its softmax's denominator.

    $$A = \operatorname{softmax}(s)\, v, \qquad \ell = \ln \sum_m e^{s_m}, \qquad s = \frac{q k^\top}{\sqrt K}$$

    A block without keys ($M = 0$) has $A = 0$ and $\ell = -\infty$.
    """
    scores = torch.einsum("bnlk,bnmk->bnlm", q / q.shape[-1] ** 0.5, k)
    return scores.softmax(dim=-1) @ v, scores.logsumexp(dim=-1)


@equation("sharding.merge", source="Liu et al. 2023 (arXiv 2310.01889), ring attention; Milakov & Gimelshein 2018")
def merge(
    A: Float[Tensor, "B N L K"], lse: Float[Tensor, "B N L"], A2: Float[Tensor, "B N L K"], lse2: Float[Tensor, "B N L"]
) -> tuple[Float[Tensor, "B N L K"], Float[Tensor, "B N L"]]:
    r"""Attention to two blocks of keys together, from `block_attention` to each; it has the same two parts again.

    $$A' = \frac{e^{\ell_1} A_1 + e^{\ell_2} A_2}{e^{\ell_1} + e^{\ell_2}}
      = \operatorname{sigmoid}(\ell_1 - \ell_2)\, A_1 + \operatorname{sigmoid}(\ell_2 - \ell_1)\, A_2, \qquad
      \ell' = \ln\!\left(e^{\ell_1} + e^{\ell_2}\right)$$

    Computed in the second form, in which nothing overflows. An empty block has $\ell = -\infty$; two of them make one.
    """
    difference = torch.where(lse == lse2, 0.0, lse - lse2)  # infinities of two empty blocks have none
    share, share2 = torch.sigmoid(difference).unsqueeze(-1), torch.sigmoid(-difference).unsqueeze(-1)
    return share * A + share2 * A2, torch.logaddexp(lse, lse2)
