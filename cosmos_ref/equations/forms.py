r"""One denoiser, four languages: a network may be asked for $x_0$, for the noise, for a velocity, or for EDM's $F$.

Given $x$ and $\sigma$ each answer determines the others, and with the right weight each error is the same loss:

$$\lambda\, \lVert D - x_0 \rVert^2 = \lambda \sigma^2\, \lVert \hat n - n \rVert^2
  = \lVert \hat v - v \rVert^2 = \lVert F - F^* \rVert^2.$$
"""

import torch
from jaxtyping import Float
from torch import Tensor

from cosmos_ref.equations import edm
from cosmos_ref.shapes import Sigma, expand
from cosmos_ref.traceability import equation


@equation("forms.noise_estimate", source="Karras et al. 2022 (arXiv 2206.00364), Eq. 3; Cosmos code: eps_pred")
def noise_estimate(D: Float[Tensor, "B *S"], x: Float[Tensor, "B *S"], sigma: Sigma) -> Float[Tensor, "B *S"]:
    r"""Estimate of the unit noise in x, from the estimate `D` of what is clean in it.

    $$\hat n = \frac{x - D}{\sigma}$$
    """
    return (x - D) / expand(sigma, x)


@equation("forms.denoised_from_noise", source="forms.noise_estimate, solved for D")
def denoised_from_noise(noise: Float[Tensor, "B *S"], x: Float[Tensor, "B *S"], sigma: Sigma) -> Float[Tensor, "B *S"]:
    r"""Estimate of the clean sample, from an estimate of the unit noise: the inverse of `noise_estimate`.

    $$D = x - \sigma\, \hat n$$
    """
    return x - expand(sigma, x) * noise


@equation("forms.score", source="Tweedie's formula; Karras et al. 2022 (arXiv 2206.00364), Eq. 3")
def score(D: Float[Tensor, "B *S"], x: Float[Tensor, "B *S"], sigma: Sigma) -> Float[Tensor, "B *S"]:
    r"""Slope of the log-density of noisy samples: from x towards the denoised estimate.

    $$\nabla_x \ln p(x; \sigma) = \frac{D - x}{\sigma^2} = -\frac{\hat n}{\sigma}$$

    Divided by sigma twice: its square underflows long before the score overflows.
    """
    return -noise_estimate(D, x, sigma) / expand(sigma, x)


@equation(
    "forms.velocity",
    source="Salimans & Ho 2022 (arXiv 2202.00512), Sec. 4, for data of standard deviation sigma_data",
)
def velocity(
    x0: Float[Tensor, "B *S"], noise: Float[Tensor, "B *S"], sigma: Sigma, sigma_data: float
) -> Float[Tensor, "B *S"]:
    r"""How the noisy sample, at unit variance, turns from data into noise; EDM's network target is its negative.

    $$v = \cos\varphi\; n - \sin\varphi\, \frac{x_0}{\sigma_\text{data}} = -F^*, \qquad
      \tan\varphi = \frac{\sigma}{\sigma_\text{data}}$$

    Where both parts are known, this is the accurate way to $F^*$: at small noise `edm.network_target` subtracts two
    numbers that are nearly the same.
    """
    c_in = edm.c_in(sigma, sigma_data)  # cos = sigma_data c_in, sin = sigma c_in
    return expand(sigma_data * c_in, x0) * noise - expand(sigma * c_in, x0) * (x0 / sigma_data)


@equation("forms.noise_loss_weight", source="lambda(sigma) of Karras et al. 2022, Table 1, for the error of the noise")
def noise_loss_weight(sigma: Sigma, sigma_data: float) -> Sigma:
    r"""Weight with which the error of the noise estimate is the same loss as the weighted error of D.

    $$\lambda(\sigma)\, \sigma^2 = 1 + \frac{\sigma^2}{\sigma_\text{data}^2} = \frac{1}{\cos^2\varphi}$$

    It is 1 only at small noise: the unweighted "epsilon loss" asks far less of a model where noise is strong. Computed
    in float32 at least, as `edm.loss_weight` is: at the strongest noise float16 has no such number.
    """
    wide = sigma.to(torch.promote_types(sigma.dtype, torch.float32))
    return 1 + (wide / sigma_data) ** 2
