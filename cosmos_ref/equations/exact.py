r"""Data whose perfect denoiser is known in closed form: what solvers, losses and tutorials are measured against.

For data of density $p$, the denoiser that no other can beat is the posterior mean
$D^*(x; \sigma) = \mathbb E[x_0 \mid x]$. A Gaussian blob and a mixture of them are the two cases in which it can be
written down. Here all blobs have the same standard deviation $s$ in every direction; $K$ counts the coordinates.
"""

import math

import torch
from einops import einsum, rearrange, reduce
from jaxtyping import Float
from torch import Tensor

from cosmos_ref.equations import edm
from cosmos_ref.shapes import Sigma, expand
from cosmos_ref.traceability import equation

_BAYES = "Bayes' rule for Gaussians; "


@equation("exact.gaussian_denoiser", source=_BAYES + "Karras et al. 2022 (arXiv 2206.00364), Appendix B.3")
def gaussian_denoiser(
    x: Float[Tensor, "*B K"], sigma: Sigma, mean: Float[Tensor, "*#B K"], std: float
) -> Float[Tensor, "*B K"]:
    r"""The perfect denoiser of $\mathcal N(\mu, s^2 I)$: from the mean, `c_skip` of the way to the noisy input.

    $$D^*(x; \sigma) = \mu + \frac{s^2}{\sigma^2 + s^2}\, (x - \mu)$$

    With $\mu = 0$ and $s = \sigma_\text{data}$ it is what `edm.denoise` makes of a network that says nothing.
    """
    return mean + expand(edm.c_skip(sigma, std), x) * (x - mean)


@equation("exact.gaussian_flow", source="the probability-flow ODE (Karras et al. 2022, Eq. 1) solved for a Gaussian")
def gaussian_flow(
    x: Float[Tensor, "*B K"], sigma: Sigma, sigma_next: Sigma, mean: Float[Tensor, "*#B K"], std: float
) -> Float[Tensor, "*B K"]:
    r"""Where the probability-flow ODE takes $x$ from $\sigma$ to $\sigma'$, for data $\mathcal N(\mu, s^2 I)$.

    $$x' = \mu + \sqrt{\frac{\sigma'^2 + s^2}{\sigma^2 + s^2}}\, (x - \mu)
      = \mu + \frac{c_\text{in}(\sigma)}{c_\text{in}(\sigma')}\, (x - \mu)$$

    In words: scaled to unit variance, the sample stands still.
    """
    return mean + expand(edm.c_in(sigma, std) / edm.c_in(sigma_next, std), x) * (x - mean)


@equation("exact.mixture_log_density", source=_BAYES + "noise adds its variance to that of every blob")
def mixture_log_density(
    x: Float[Tensor, "B K"],
    sigma: Float[Tensor, "B"],
    weights: Float[Tensor, "M"],
    means: Float[Tensor, "M K"],
    std: float,
) -> Float[Tensor, "B"]:
    r"""Log-density of the noisy data of a mixture of M Gaussians; `weights` add up to 1.

    $$\ln p(x; \sigma) = \ln \sum_m w_m\, \mathcal N\!\left(x;\ \mu_m, (\sigma^2 + s^2) I\right)$$

    The sum is taken by log-sum-exp: far from every blob each term is zero in floating point, their logarithm is not.
    """
    log_scale = torch.log(math.sqrt(2 * math.pi) / edm.c_in(sigma, std))
    return torch.logsumexp(_log_terms(x, sigma, weights, means, std), dim=1) - x.shape[1] * log_scale


@equation("exact.mixture_denoiser", source=_BAYES + "Karras et al. 2022 (arXiv 2206.00364), Appendix B.3")
def mixture_denoiser(
    x: Float[Tensor, "B K"],
    sigma: Float[Tensor, "B"],
    weights: Float[Tensor, "M"],
    means: Float[Tensor, "M K"],
    std: float,
) -> Float[Tensor, "B K"]:
    r"""The perfect denoiser of a mixture of M Gaussians: that of one Gaussian, around the mean to be expected at x.

    $$D^*(x; \sigma) = \bar\mu + \frac{s^2}{\sigma^2 + s^2}\, (x - \bar\mu), \qquad \bar\mu = \sum_m r_m\, \mu_m,$$

    $$r = \operatorname{softmax}_m\!\left(\ln w_m - \frac{\lVert x - \mu_m \rVert^2}{2 (\sigma^2 + s^2)}\right)$$

    $r_m$ is the probability that x came from blob m. With $s = 0$ the data are M points, as a finite training set is.
    """
    responsibilities = torch.softmax(_log_terms(x, sigma, weights, means, std), dim=1)
    mean = einsum(responsibilities, means, "B M, M K -> B K")
    return gaussian_denoiser(x, sigma, mean, std)


def _log_terms(x: Tensor, sigma: Tensor, weights: Tensor, means: Tensor, std: float) -> Float[Tensor, "B M"]:
    """Logarithm of every blob's share of the density at x, but for the factor that all of them have."""
    distance = rearrange(x, "B K -> B 1 K") - means
    # scaled before it is squared: the square of a distance over a variance may overflow where this does not
    scaled = expand(edm.c_in(sigma, std), distance) * distance
    return torch.log(weights) - reduce(scaled**2, "B M K -> B M", "sum") / 2
