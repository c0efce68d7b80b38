"""Adaptive layer norm: the noise level shifts, scales and gates every sub-block."""

import torch
import torch.nn.functional as nnf
from jaxtyping import Float
from torch import Tensor

from cosmos_ref.traceability import equation

_SOURCE = "Peebles & Xie 2023 (arXiv 2212.09748), Sec. 3.2; Cosmos (arXiv 2501.03575), Sec. 5.1.2"


@equation("modulation.adaln_lora", source=_SOURCE + "; Hu et al. 2021 (arXiv 2106.09685)")
def adaln_lora(
    noise_embedding: Float[Tensor, "B D"],
    down: Float[Tensor, "R D"],
    up: Float[Tensor, "P R"],
    shared: Float[Tensor, "B P"],
    parts: int,
) -> tuple[Float[Tensor, "B D"], ...]:
    r"""Shift, scale (and gate) of a sub-block: a low-rank map of the noise embedding plus a term all sub-blocks share.

    $$[\beta, \gamma, g] = W_2 W_1 \operatorname{SiLU}(e) + A$$
    """
    modulation = nnf.linear(nnf.linear(nnf.silu(noise_embedding), down), up) + shared
    return modulation.chunk(parts, dim=1)


@equation("modulation.layer_norm", source="Ba et al. 2016 (arXiv 1607.06450), Eq. 3; gain and bias come from AdaLN")
def layer_norm(x: Float[Tensor, "*S D"], eps: float) -> Float[Tensor, "*S D"]:
    r"""Subtract the mean of each token's channels and scale them to unit variance.

    $$y = \frac{x - \operatorname{mean}(x)}{\sqrt{\operatorname{var}(x) + \epsilon}}, \qquad
      \operatorname{var}(x) = \operatorname{mean}\big((x - \operatorname{mean}(x))^2\big)$$
    """
    return nnf.layer_norm(x, x.shape[-1:], eps=eps)


@equation("modulation.modulate", source=_SOURCE)
def modulate(
    x: Float[Tensor, "B L D"], shift: Float[Tensor, "B D"], scale: Float[Tensor, "B D"]
) -> Float[Tensor, "B L D"]:
    r"""Shift and scale normalised tokens; scale 0 and shift 0 leave them alone.

    $$y = x (1 + \gamma) + \beta$$
    """
    return torch.addcmul(shift[:, None], x, 1 + scale[:, None])  # one pass over x


@equation("modulation.gate", source=_SOURCE)
def gate(
    x: Float[Tensor, "B L D"], update: Float[Tensor, "B L D"], gate: Float[Tensor, "B D"]
) -> Float[Tensor, "B L D"]:
    r"""Residual update let through by a gate; gate 0 makes the sub-block the identity.

    $$y = x + g\, f(x)$$
    """
    return torch.addcmul(x, gate[:, None], update)
