"""The nonlinearity of the feed-forward half of a block."""

import torch.nn.functional as nnf
from jaxtyping import Float
from torch import Tensor

from cosmos_ref.traceability import equation


@equation("mlp.gelu", source="Hendrycks & Gimpel 2016 (arXiv 1606.08415), Sec. 2; Cosmos code: not the tanh form")
def gelu(x: Float[Tensor, "*S"]) -> Float[Tensor, "*S"]:
    r"""Each number times the probability that a unit Gaussian lies below it.

    $$y = x\, \Phi(x) = \frac{x}{2} \left(1 + \operatorname{erf} \frac{x}{\sqrt 2}\right)$$
    """
    return nnf.gelu(x)
