"""The training loss. Read this file, then model/denoiser.py, then equations/: there is no other place to look.

A clean sample is noised, the denoiser estimates it back, and the squared error is weighted so that every noise level
counts the same: at first by lambda(sigma), then also by the learned uncertainty u(sigma).
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from cosmos_ref.conditioning.condition import Condition
from cosmos_ref.equations.losses import uncertainty_weighted
from cosmos_ref.model.denoiser import weighted_error
from cosmos_ref.shapes import Latents


def training_loss(
    denoiser: Callable[..., Latents],
    uncertainty: Callable[[Float[Tensor, "B"]], Float[Tensor, "B"]],
    x0: Latents,
    condition: Condition,
    noise: Latents,
    sigma: Float[Tensor, "B"],
    sigma_data: float,
) -> tuple[Float[Tensor, ""], Float[Tensor, "B"]]:
    r"""The scalar that training lowers and, for the curve, the weighted error $\lambda L$ of every sample.

    $$\mathcal L = \operatorname{mean}_B \left( \frac{\lambda(\sigma)}{e^{u(\sigma)}}\, L + u(\sigma) \right)$$

    Args:
        denoiser: D_theta, `denoiser(x, sigma, **condition)`.
        uncertainty: u(sigma).
        x0: clean latents, scaled to `sigma_data`.
        condition: what else the denoiser is told; `frame_mask` marks the given frames, if there are any.
        noise: unit Gaussian.
        sigma: noise level of every sample.
        sigma_data: standard deviation of x0.
    """
    error = weighted_error(denoiser, x0, condition, noise, sigma, sigma_data)
    already_in_it = torch.ones_like(error)
    loss = uncertainty_weighted(error, loss_weight=already_in_it, logvar=uncertainty(sigma))
    return loss.mean(), error.detach()
