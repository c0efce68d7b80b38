"""How well each noise level is denoised, and what the learned uncertainty thinks of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cosmos_ref.model.denoiser import Denoiser, weighted_error
from cosmos_ref.model.uncertainty import Uncertainty
from cosmos_ref.shapes import Latents


@dataclass(frozen=True)
class NoiseLevelLoss:
    """One row of the table: what happens at a noise level."""

    sigma: float
    weighted_error: float
    """Mean of lambda L over the clips. With nothing given, a network that always says 0 has 1."""
    uncertainty: float
    """e^u, which training pulls towards the mean of lambda L."""


@torch.no_grad()
def loss_over_sigma(
    denoiser: Denoiser,
    uncertainty: Uncertainty,
    x0: Latents,
    condition: Mapping[str, Tensor],
    sigmas: Sequence[float],
    seed: int,
    sigma_data: float,
) -> list[NoiseLevelLoss]:
    r"""Mean weighted error $\lambda(\sigma) L$ and $e^{u(\sigma)}$ at each noise level, without gradients.

    Given frames (`frame_mask` in the condition) have no error, as in training. The same seed gives the same noise, so
    two models, or one before and after training, are compared on the same noisy clips.

    Args:
        denoiser: D_theta.
        uncertainty: u(sigma).
        x0: clean latents at the diffusion's scale.
        condition: what the denoiser is told besides, for these clips.
        sigmas: noise levels.
        seed: of the noise.
        sigma_data: standard deviation of `x0`.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for level in sigmas:
        sigma = x0.new_full((len(x0),), level)
        noise = torch.randn(x0.shape, generator=generator, dtype=x0.dtype).to(x0.device)
        error = weighted_error(denoiser, x0, condition, noise, sigma, sigma_data)
        rows.append(NoiseLevelLoss(level, error.mean().item(), uncertainty(sigma[:1]).exp().item()))
    return rows
