"""Finite scalar quantization: a few numbers, each rounded to one of a few levels, are a word of a vocabulary."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cosmos_ref.traceability import equation

_SOURCE = "Mentzer et al. 2023 (arXiv 2309.15505), Sec. 3.1"
_CODE = _SOURCE + "; Cosmos (arXiv 2501.03575), Sec. 4.1"


@equation("quantization.fsq_bound", source=_SOURCE + "; code: the inverse of tanh, and a range wider than the levels")
def fsq_bound(z: Float[Tensor, "*B D"], levels: tuple[int, ...], margin: float) -> Float[Tensor, "*B D"]:
    r"""Squeeze each number into the range whose integers are its levels.

    $$b = a \tanh\!\left(z + \operatorname{artanh}\frac{o}{a}\right) - o, \qquad a = (1 + \epsilon)\,\frac{L - 1}{2},
    \qquad o = \begin{cases} 1/2 & L \text{ even} \\ 0 & L \text{ odd} \end{cases}$$

    The integers are $-\lfloor L/2 \rfloor, \dots, \lceil L/2 \rceil - 1$.

    Args:
        z: what the encoder says, one number a dimension of the code.
        levels: L of each dimension.
        margin: how much wider than its levels the range is, relative: epsilon.
    """
    L = torch.tensor(levels, dtype=z.dtype, device=z.device)
    reach = (L - 1) * (1 + margin) / 2
    offset = (1 - L % 2) / 2
    return reach * torch.tanh(z + torch.atanh(offset / reach)) - offset


@equation("quantization.fsq_round", source=_SOURCE)
def fsq_round(x: Float[Tensor, "*B"]) -> Float[Tensor, "*B"]:
    r"""Round to the nearest integer, and let the gradient through as if nothing had happened (straight-through).

    $$y = \operatorname{round}(x), \qquad \frac{\partial y}{\partial x} := 1$$
    """
    return x + (torch.round(x) - x).detach()


@equation("quantization.fsq_quantize", source=_CODE)
def fsq_quantize(z: Float[Tensor, "*B D"], levels: tuple[int, ...], margin: float) -> Float[Tensor, "*B D"]:
    r"""Code of what the encoder says: evenly spaced numbers, from -1 on.

    $$c = \frac{\operatorname{round}(b(z))}{\lfloor L/2 \rfloor}$$

    Computed in float32 at least: in bfloat16 one number in a hundred would get another level.
    """
    precise = z.to(torch.promote_types(z.dtype, torch.float32))
    half = torch.tensor(levels, dtype=precise.dtype, device=z.device) // 2
    return (fsq_round(fsq_bound(precise, levels, margin)) / half).to(z.dtype)


@equation("quantization.fsq_index", source=_CODE)
def fsq_index(code: Float[Tensor, "*B D"], levels: tuple[int, ...]) -> Int[Tensor, "*B"]:
    r"""Number of a code: its levels, counted from 0, are the digits, the first one running fastest.

    $$i = \sum_k d_k \prod_{j<k} L_j, \qquad d_k = (c_k + 1) \lfloor L_k/2 \rfloor$$
    """
    half = torch.tensor(levels, device=code.device) // 2
    digits = torch.round((code + 1) * half).long()
    return (digits * _places(levels, code.device)).sum(-1)


@equation("quantization.fsq_code", source=_CODE)
def fsq_code(index: Int[Tensor, "*B"], levels: tuple[int, ...], dtype: torch.dtype) -> Float[Tensor, "*B D"]:
    r"""Code of a number, the inverse of `fsq_index`.

    $$c_k = \frac{d_k}{\lfloor L_k/2 \rfloor} - 1, \qquad
    d_k = \left\lfloor \frac{i}{\prod_{j<k} L_j} \right\rfloor \bmod L_k$$
    """
    L = torch.tensor(levels, device=index.device)
    digits = index[..., None] // _places(levels, index.device) % L
    half = L // 2
    return (digits - half) / half.to(dtype)


def _places(levels: tuple[int, ...], device: torch.device) -> Int[Tensor, "D"]:
    """What a digit's 1 is worth: the number of codes of the dimensions before it."""
    return torch.tensor([math.prod(levels[:k]) for k in range(len(levels))], device=device)
