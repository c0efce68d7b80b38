"""Guidance: how strongly the text pulls."""

from jaxtyping import Float
from torch import Tensor

from cosmos_ref.traceability import equation


@equation(
    "guidance.cfg",
    source="Ho & Salimans 2022 (arXiv 2207.12598); Cosmos code: g counts from the conditional estimate",
)
def cfg(
    D_conditional: Float[Tensor, "*S"], D_unconditional: Float[Tensor, "*S"], guidance: float
) -> Float[Tensor, "*S"]:
    r"""Classifier-free guidance of the denoised estimate, in NVIDIA's convention: g = 0 is no guidance.

    $$D = D_c + g\, (D_c - D_u)$$

    The other convention, $D_u + w (D_c - D_u)$, has $w = 1 + g$: the default g = 7 is w = 8.
    """
    return D_conditional + guidance * (D_conditional - D_unconditional)
