r"""Solvers: from noise to a sample along the ODE $\mathrm dx / \mathrm d\sigma = (x - D(x; \sigma)) / \sigma$."""

import math
from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor

from cosmos_ref.traceability import equation

_EDM = "Karras et al. 2022 (arXiv 2206.00364)"
_RES = "Zhang et al. 2023 (arXiv 2308.02157), refined exponential solver; Cosmos code: "


@equation("solvers.initial_std", source=_EDM + ", Algorithm 1, line 2; released code: data_std 1, the original's: 0")
def initial_std(sigma_max: float, data_std: float) -> float:
    r"""Standard deviation of the first sample: that of data with noise `sigma_max` on them.

    $$\sqrt{\sigma_\text{max}^2 + s^2}$$

    With $s = 0$ the data are neglected beside the noise.
    """
    return math.hypot(sigma_max, data_std)


@equation("solvers.ode_derivative", source=_EDM + ", Algorithm 1, line 4")
def ode_derivative(x: Float[Tensor, "*S"], D: Float[Tensor, "*S"], sigma: float) -> Float[Tensor, "*S"]:
    r"""Slope of the probability-flow ODE: the estimate of the unit noise in x.

    $$\frac{\mathrm dx}{\mathrm d\sigma} = \frac{x - D}{\sigma}$$
    """
    return (x - D) / sigma


@equation("solvers.euler_step", source=_EDM + ", Algorithm 1, line 5")
def euler_step(x: Float[Tensor, "*S"], D: Float[Tensor, "*S"], sigma: float, sigma_next: float) -> Float[Tensor, "*S"]:
    r"""First-order step: along the slope, which is towards D; a step to zero returns D itself.

    $$x' = x + (\sigma' - \sigma)\, \frac{x - D}{\sigma} = D + \frac{\sigma'}{\sigma}\, (x - D)$$

    Computed in the second form: in the first, x rounds D away where $\sigma$ is large.
    """
    return D + sigma_next / sigma * (x - D)


@equation("solvers.heun_step", source=_EDM + ", Algorithm 1, lines 4-8")
def heun_step(
    denoise: Callable[[Tensor, float], Tensor], x: Float[Tensor, "*S"], sigma: float, sigma_next: float
) -> Float[Tensor, "*S"]:
    r"""Second-order step: along the mean of the slopes at both ends (two evaluations; one where $\sigma' = 0$).

    $$x' = x + \frac{\sigma' - \sigma}{2} \left(\frac{x - D}{\sigma} + \frac{\tilde x - \tilde D}{\sigma'}\right)
      = \tilde x + \frac12 \left(\frac{\sigma}{\sigma'} - 1\right) (\tilde D - D),$$

    with $\tilde x$ the Euler step and $\tilde D = D(\tilde x; \sigma')$. Computed in the second form: in the first,
    $\tilde x$ rounds the slope away where $\sigma'$ is small.
    """
    D = denoise(x, sigma)
    x_euler = euler_step(x, D, sigma, sigma_next)
    if sigma_next == 0:
        return x_euler
    return x_euler + (sigma / sigma_next - 1) / 2 * (denoise(x_euler, sigma_next) - D)


@equation("solvers.phi1", source="Hochbruck & Ostermann 2010, Exponential integrators; " + _RES + "phi1")
def phi1(z: float) -> float:
    r"""Weight of a constant in an exponential step: the mean of $e^{z s}$ over $0 \le s \le 1$.

    $$\varphi_1(z) = \frac{e^z - 1}{z}, \qquad \varphi_1(0) = 1$$
    """
    return math.expm1(z) / z if z else 1.0


@equation("solvers.phi2", source="Hochbruck & Ostermann 2010, Exponential integrators; " + _RES + "phi2")
def phi2(z: float) -> float:
    r"""Weight of a change in an exponential step: the mean of $(1 - s)\, e^{z s}$ over $0 \le s \le 1$.

    $$\varphi_2(z) = \frac{\varphi_1(z) - 1}{z} = \sum_{k \ge 0} \frac{z^k}{(k + 2)!}$$

    Near zero it is the series: there the numerator of the quotient cancels.
    """
    if abs(z) > 1:
        return (phi1(z) - 1) / z
    return sum(z**k / math.factorial(k + 2) for k in range(16))  # the next term is 2e-16 at most


@equation("solvers.res_2ab_step", source=_RES + "2ab, the original default")
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

    $$x' = e^{-h} x + h\, (b_1 D + b_2 D_\text{previous}) = \tilde x + h\, b_2 (D_\text{previous} - D),$$

    $$b_2 = \varphi_2(-h) / c_2, \qquad b_1 = \varphi_1(-h) - b_2,$$

    with $\tilde x$ the Euler step. Computed in the second form: in the first, weights far larger than one cancel where
    a long step follows a short one. A step to zero returns D: the "clean" call that ends the original sampler.
    """
    if sigma_next == 0:
        return D
    h = math.log(sigma / sigma_next)
    c2 = -math.log(sigma_previous / sigma) / h
    b2 = phi2(-h) / c2
    return euler_step(x, D, sigma, sigma_next) + h * b2 * (D_previous - D)


@equation("solvers.res_2mid_step", source=_RES + "2mid")
def res_2mid_step(
    denoise: Callable[[Tensor, float], Tensor], x: Float[Tensor, "*S"], sigma: float, sigma_next: float
) -> Float[Tensor, "*S"]:
    r"""Second-order exponential step with a second evaluation in the middle (one alone where $\sigma' = 0$).

    The step of RES 2AB with the estimate half-way ahead in place of the one before, so that $c_2 = \tfrac12$:

    $$x' = e^{-h} x + h\, (b_1 D + b_2 D_\text{mid}), \quad b_2 = 2 \varphi_2(-h), \quad b_1 = \varphi_1(-h) - b_2,$$

    where $D_\text{mid}$ is the estimate at $\sigma_\text{mid} = \sqrt{\sigma \sigma'}$, reached by an Euler step.
    """
    D = denoise(x, sigma)
    if sigma_next == 0:
        return D
    sigma_mid = math.sqrt(sigma * sigma_next)
    D_mid = denoise(euler_step(x, D, sigma, sigma_mid), sigma_mid)
    return res_2ab_step(x, D, D_mid, sigma, sigma_next, sigma_mid)


@equation(
    "solvers.churn_gamma", source=_EDM + ", Algorithm 2, line 3; Cosmos code: num_steps + 1, and limit sqrt(1.2) - 1"
)
def churn_gamma(sigma: float, s_churn: float, num_steps: int, s_min: float, s_max: float, limit: float) -> float:
    r"""Share by which `churn` raises the noise level in each step between `s_min` and `s_max`; elsewhere none.

    $$\gamma = \min\!\left(\frac{S_\text{churn}}{N},\ \gamma_\text{max}\right)
      [\,S_\text{min} \le \sigma \le S_\text{max}\,], \qquad \gamma_\text{max} = \sqrt 2 - 1$$

    Args:
        sigma: level at the beginning of the step.
        s_churn: how much the levels are raised in all the steps together, as a sum of shares.
        num_steps: N.
        s_min: lowest level that is raised.
        s_max: highest level that is raised.
        limit: the largest share; at $\sqrt 2 - 1$ there is never more fresh noise than old.
    """
    return min(s_churn / num_steps, limit) if s_min <= sigma <= s_max else 0.0


@equation("solvers.churn", source=_EDM + ", Algorithm 2, lines 4-6")
def churn(
    x: Float[Tensor, "*S"], noise: Float[Tensor, "*S"], sigma: float, gamma: float
) -> tuple[Float[Tensor, "*S"], float]:
    r"""Raise the noise level by fresh unit noise before a step (stochastic sampling); returns x and its new level.

    $$\hat\sigma = \sigma (1 + \gamma), \qquad \hat x = x + \sqrt{\hat\sigma^2 - \sigma^2}\ n
      = x + \sigma \sqrt{\gamma (2 + \gamma)}\ n$$

    Computed in the second form: in the first, the difference of the squares cancels where $\gamma$ is small.
    """
    return x + sigma * math.sqrt(gamma * (2 + gamma)) * noise, sigma * (1 + gamma)
