r"""Solvers: from noise to a sample along the ODE $\mathrm dx / \mathrm d\sigma = (x - D(x; \sigma)) / \sigma$."""

import math
from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor

from cosmos_ref.traceability import equation

_EDM = "Karras et al. 2022 (arXiv 2206.00364)"


@equation("solvers.ode_derivative", source=_EDM + ", Algorithm 1, line 4")
def ode_derivative(x: Float[Tensor, "*S"], D: Float[Tensor, "*S"], sigma: float) -> Float[Tensor, "*S"]:
    r"""Slope of the probability-flow ODE: the estimate of the unit noise in x.

    $$\frac{\mathrm dx}{\mathrm d\sigma} = \frac{x - D}{\sigma}$$
    """
    return (x - D) / sigma


@equation("solvers.euler_step", source=_EDM + ", Algorithm 1, line 5")
def euler_step(x: Float[Tensor, "*S"], D: Float[Tensor, "*S"], sigma: float, sigma_next: float) -> Float[Tensor, "*S"]:
    r"""First-order step; a step to zero returns D itself.

    $$x' = x + (\sigma' - \sigma)\, \frac{x - D}{\sigma}$$
    """
    return x + (sigma_next - sigma) * ode_derivative(x, D, sigma)


@equation("solvers.heun_step", source=_EDM + ", Algorithm 1, lines 4-8")
def heun_step(
    denoise: Callable[[Tensor, float], Tensor], x: Float[Tensor, "*S"], sigma: float, sigma_next: float
) -> Float[Tensor, "*S"]:
    r"""Second-order step: the mean of the slopes at both ends (two evaluations; one where $\sigma' = 0$).

    $$x' = x + \frac{\sigma' - \sigma}{2} \left(d(x, \sigma) + d(\tilde x, \sigma')\right), \qquad
      \tilde x = x + (\sigma' - \sigma)\, d(x, \sigma)$$
    """
    D = denoise(x, sigma)
    x_euler = euler_step(x, D, sigma, sigma_next)
    if sigma_next == 0:
        return x_euler
    slope = ode_derivative(x, D, sigma)
    slope_next = ode_derivative(x_euler, denoise(x_euler, sigma_next), sigma_next)
    return x + (sigma_next - sigma) * (slope + slope_next) / 2


@equation(
    "solvers.res_2ab_step",
    source="Zhang et al. 2023 (arXiv 2308.02157), refined exponential solver; Cosmos code: 2ab, the original default",
)
def res_2ab_step(
    x: Float[Tensor, "*S"],
    D: Float[Tensor, "*S"],
    D_previous: Float[Tensor, "*S"],
    sigma: float,
    sigma_next: float,
    sigma_previous: float,
) -> Float[Tensor, "*S"]:
    r"""Second-order exponential multistep: one evaluation, and the estimate of the step before.

    With $h = \ln(\sigma / \sigma')$ and $c_2 = -\ln(\sigma_\text{previous} / \sigma) / h$,

    $$x' = e^{-h} x + h\, (b_1 D + b_2 D_\text{previous}), \quad b_2 = \varphi_2(-h) / c_2,
      \quad b_1 = \varphi_1(-h) - b_2,$$
    $$\varphi_1(z) = \frac{e^z - 1}{z}, \qquad \varphi_2(z) = \frac{\varphi_1(z) - 1}{z}.$$

    A step to zero returns D: the "clean" call that ends the original sampler.
    """
    if sigma_next == 0:
        return D
    h = math.log(sigma / sigma_next)
    c2 = -math.log(sigma_previous / sigma) / h
    phi1 = math.expm1(-h) / -h
    phi2 = (phi1 - 1) / -h
    b2 = phi2 / c2
    return math.exp(-h) * x + h * ((phi1 - b2) * D + b2 * D_previous)


@equation("solvers.churn", source=_EDM + ", Algorithm 2, lines 4-6")
def churn(
    x: Float[Tensor, "*S"], noise: Float[Tensor, "*S"], sigma: float, gamma: float
) -> tuple[Float[Tensor, "*S"], float]:
    r"""Raise the noise level by fresh unit noise before a step (stochastic sampling); returns x and its new level.

    $$\hat\sigma = \sigma (1 + \gamma), \qquad \hat x = x + \sqrt{\hat\sigma^2 - \sigma^2}\ n$$
    """
    sigma_hat = sigma * (1 + gamma)
    return x + (sigma_hat**2 - sigma**2) ** 0.5 * noise, sigma_hat
