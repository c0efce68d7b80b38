"""Low-rank adaptation: a large matrix stays as it is, and a small one beside it learns."""

from jaxtyping import Float
from torch import Tensor

from cosmos_ref.traceability import equation

_SOURCE = "Hu et al. 2021 (arXiv 2106.09685), Eq. 3; scale: Sec. 4.1"


@equation("adapters.lora", source=_SOURCE)
def lora(
    W: Float[Tensor, "O I"], A: Float[Tensor, "R I"], B: Float[Tensor, "O R"], alpha: float
) -> Float[Tensor, "O I"]:
    r"""Weight with its adapter in it: the change has at most rank r, however large W is.

    $$W' = W + \frac{\alpha}{r}\, B A$$
    """
    return W + alpha / len(A) * B @ A


@equation("adapters.lora_output", source=_SOURCE)
def lora_output(
    x: Float[Tensor, "*S I"],
    W: Float[Tensor, "O I"],
    A: Float[Tensor, "R I"],
    B: Float[Tensor, "O R"],
    alpha: float,
) -> Float[Tensor, "*S O"]:
    r"""Output of a linear layer with an adapter beside it: W' is never formed, nor is its gradient.

    $$y = W x + \frac{\alpha}{r}\, B\, (A x)$$
    """
    return x @ W.T + alpha / len(A) * (x @ A.T) @ B.T
