"""The training loss. Read this file, then model/denoiser.py, then equations/: there is no other place to look.

A clean sample is noised, the denoiser estimates it back, and the squared error is weighted so that every noise level
counts the same: at first by lambda(sigma), then also by the learned uncertainty u(sigma).
"""

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor

from cosmos_ref.conditioning.condition import Condition
from cosmos_ref.equations.edm import loss_weight
from cosmos_ref.equations.losses import denoising_error, uncertainty_weighted
from cosmos_ref.equations.noise import add_noise
from cosmos_ref.model.uncertainty import Uncertainty
from cosmos_ref.shapes import Latents


def sample_error(
    denoiser: Callable[..., Latents], x0: Latents, condition: Condition, noise: Latents, sigma: Float[Tensor, "B"]
) -> Float[Tensor, "B"]:
    r"""Denoising error L of every sample, in float32; given frames have none.

    $$L = \lVert D_\theta(x_0 + \sigma n;\ \sigma, c) - x_0 \rVert^2$$

    Args:
        denoiser: D_theta, `denoiser(x, sigma, **condition)`.
        x0: clean latents, scaled to `sigma_data`.
        condition: what else the denoiser is told; `frame_mask` marks the given frames, if there are any.
        noise: unit Gaussian.
        sigma: noise level of every sample.
    """
    D = denoiser(add_noise(x0, noise, sigma), sigma, **condition)
    none_given = x0.new_zeros(len(x0), 1, x0.shape[2], 1, 1)
    return denoising_error(D.float(), x0.float(), condition.get("frame_mask", none_given))


def weighted_error(
    denoiser: Callable[..., Latents],
    x0: Latents,
    condition: Condition,
    noise: Latents,
    sigma: Float[Tensor, "B"],
    sigma_data: float,
) -> Float[Tensor, "B"]:
    r"""Weighted error $\lambda(\sigma) L$ of every sample: 1 for a network that says nothing.

    Arguments as for `sample_error`; `sigma_data` is the standard deviation of x0.
    """
    return loss_weight(sigma, sigma_data) * sample_error(denoiser, x0, condition, noise, sigma)


def training_loss(
    denoiser: Callable[..., Latents],
    uncertainty: Uncertainty,
    x0: Latents,
    condition: Condition,
    noise: Latents,
    sigma: Float[Tensor, "B"],
    sigma_data: float,
) -> tuple[Float[Tensor, ""], Float[Tensor, "B"]]:
    r"""The scalar that training lowers and, for the curve, the weighted error $\lambda L$ of every sample.

    $$\mathcal L = \operatorname{mean}_B \left( \frac{\lambda(\sigma)}{e^{u(\sigma)}}\, L + u(\sigma) \right)$$

    Arguments as for `weighted_error`; `uncertainty` is u.
    """
    L = sample_error(denoiser, x0, condition, noise, sigma)
    weight = loss_weight(sigma, sigma_data)
    loss = uncertainty_weighted(L, weight, uncertainty(sigma)).mean()
    return loss, (weight * L).detach()
