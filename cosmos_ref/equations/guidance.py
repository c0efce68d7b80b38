"""Guidance: how strongly the text pulls."""

from jaxtyping import Float
from torch import Tensor

from cosmos_ref.traceability import equation


@equation(
    "guidance.cfg",
    source="Ho & Salimans 2022 (arXiv 2207.12598), Eq. 6; Cosmos code: g counts from the conditional estimate",
)
def cfg(
    D_conditional: Float[Tensor, "*S"], D_unconditional: Float[Tensor, "*S"], guidance: float
) -> Float[Tensor, "*S"]:
    r"""Classifier-free guidance of the denoised estimate, in NVIDIA's convention: g = 0 is no guidance.

    $$D = D_c + g\, (D_c - D_u)$$

    The other convention, `cfg_from_unconditional`, has $w = 1 + g$: the default g = 7 is w = 8.
    """
    return D_conditional + guidance * (D_conditional - D_unconditional)


@equation("guidance.cfg_from_unconditional", source="Saharia et al. 2022 (arXiv 2205.11487), Sec. 2.2; diffusers")
def cfg_from_unconditional(
    D_conditional: Float[Tensor, "*S"], D_unconditional: Float[Tensor, "*S"], guidance_scale: float
) -> Float[Tensor, "*S"]:
    r"""The same guidance in the convention of most other code: w = 1 is no guidance, w = 0 is no text.

    $$D = D_u + w\, (D_c - D_u), \qquad w = 1 + g$$
    """
    return cfg(D_conditional, D_unconditional, guidance_scale - 1)
