"""Noise: how it is added, how strong it is in training, and which levels a sampler visits."""

import torch
from jaxtyping import Float
from torch import Tensor

from cosmos_ref.shapes import Sigma, expand
from cosmos_ref.traceability import equation


@equation(
    "noise.add_noise",
    source="Karras et al. 2022 (arXiv 2206.00364), Sec. 2; Cosmos (arXiv 2501.03575), Sec. 5.1",
)
def add_noise(x0: Float[Tensor, "B *S"], noise: Float[Tensor, "B *S"], sigma: Sigma) -> Float[Tensor, "B *S"]:
    r"""Noisy latents from clean ones and unit noise `noise` $\sim \mathcal N(0, I)$.

    $$x = x_0 + \sigma\, n$$
    """
    return x0 + expand(sigma, x0) * noise


@equation("noise.log_normal_sigma", source="Cosmos (arXiv 2501.03575), Sec. 5.1; Karras et al. 2022, Table 1")
def log_normal_sigma(normal: Float[Tensor, "*B"], p_mean: float, p_std: float) -> Sigma:
    r"""Training noise level from a standard normal draw.

    $$\ln \sigma = P_\text{mean} + P_\text{std}\, z, \qquad z \sim \mathcal N(0, 1)$$
    """
    return torch.exp(p_mean + p_std * normal)


@equation("noise.video_noise_shift", source="Cosmos (arXiv 2501.03575), Sec. 5.1.3; the code counts latent frames")
def video_noise_shift(sigma: Sigma, latent_frames: int) -> Sigma:
    r"""Noise level of a video batch relative to an image batch: frames repeat each other, so more noise is needed.

    $$\sigma \leftarrow \sqrt{T_\text{latent}}\ \sigma$$
    """
    return sigma * latent_frames**0.5


@equation("noise.karras_sigmas", source="Karras et al. 2022 (arXiv 2206.00364), Eq. 5")
def karras_sigmas(num_steps: int, sigma_min: float, sigma_max: float, rho: float) -> Float[Tensor, "N+1"]:
    r"""The noise levels of an N-step sampler, in float64: N levels, evenly spaced in $\sigma^{1/\rho}$, then zero.

    $$\sigma_i = \left(\sigma_\text{max}^{1/\rho} + \tfrac{i}{N-1} \left(\sigma_\text{min}^{1/\rho}
      - \sigma_\text{max}^{1/\rho}\right)\right)^{\rho}, \quad i = 0, \dots, N-1; \qquad \sigma_N = 0$$

    Raises:
        ValueError: if there are fewer than two steps.
    """
    if num_steps < 2:
        raise ValueError(f"num_steps is {num_steps}; the schedule needs at least 2")
    ramp = torch.linspace(0, 1, num_steps, dtype=torch.float64)
    levels = (sigma_max ** (1 / rho) + ramp * (sigma_min ** (1 / rho) - sigma_max ** (1 / rho))) ** rho
    return torch.cat([levels, levels.new_zeros(1)])
