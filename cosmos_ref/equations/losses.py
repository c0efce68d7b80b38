"""Denoising score matching: the error, its weight, and the learned uncertainty that balances noise levels."""

import torch
from einops import einsum, reduce
from jaxtyping import Float
from torch import Tensor

from cosmos_ref.equations import edm, embeddings
from cosmos_ref.traceability import equation


@equation(
    "losses.denoising_error",
    source="Cosmos (arXiv 2501.03575), Sec. 5.1, Eq. 1 (mean over elements instead of sum)",
)
def denoising_error(
    D: Float[Tensor, "B C T H W"], x0: Float[Tensor, "B C T H W"], frame_mask: Float[Tensor, "B 1 T 1 1"]
) -> Float[Tensor, "B"]:
    r"""Mean squared error of the denoised estimate, per sample; given frames ($m = 1$) have none.

    $$L = \frac{1}{CTHW} \sum (1 - m)\, (D - x_0)^2$$
    """
    return reduce((1 - frame_mask) * (D - x0) ** 2, "B C T H W -> B", "mean")


@equation(
    "losses.log_variance",
    source="Cosmos (arXiv 2501.03575), Sec. 5.1, u(sigma); Cosmos code: 128 Fourier features, one bias-free layer",
)
def log_variance(
    sigma: Float[Tensor, "B"],
    frequencies: Float[Tensor, "C"],
    phases: Float[Tensor, "C"],
    weight: Float[Tensor, "C"],
) -> Float[Tensor, "B"]:
    r"""The learned log-variance of the weighted error: one linear layer on Fourier features of the noise level.

    $$u(\sigma) = \sum_j w_j\, \phi_j(c_\text{noise}(\sigma))$$

    Only w is learned; it starts at zero, so that all levels start with the weight $\lambda(\sigma)$.
    """
    features = embeddings.fourier_features(edm.c_noise(sigma), frequencies, phases)
    return einsum(features, weight, "B C, C -> B")


@equation(
    "losses.uncertainty_weighted",
    source="Cosmos (arXiv 2501.03575), Sec. 5.1, Eq. 2; Karras et al. 2024 (arXiv 2312.02696), Eq. 21 "
    "(the seed text drops the division by e^u)",
)
def uncertainty_weighted(
    L: Float[Tensor, "B"], loss_weight: Float[Tensor, "B"], logvar: Float[Tensor, "B"]
) -> Float[Tensor, "B"]:
    r"""Loss per sample, with the learned log-variance $u(\sigma)$ of the weighted error.

    $$\mathcal L = \frac{\lambda(\sigma)}{e^{u(\sigma)}}\, L + u(\sigma)$$

    At its minimum over u, $e^{u(\sigma)} = \mathbb E[\lambda(\sigma) L \mid \sigma]$: all noise levels weigh the same.
    """
    return loss_weight * L * torch.exp(-logvar) + logvar


@equation("losses.summed", source='Cosmos code: loss_reduce = "sum", its default')
def summed(loss: Float[Tensor, "B"], elements: int) -> Float[Tensor, ""]:
    r"""The batch's loss where each of N elements of a sample counts, and u counts with each: N times the mean.

    $$\frac{1}{B} \sum_b \sum_{i=1}^{N} \left( \frac{\lambda}{e^{u}}\, (D_i - x_{0,i})^2 + u \right)
      = \frac{N}{B} \sum_b \mathcal L_b$$

    The optimum is the mean's, but an image (N elements) weighs 1/T of a video of T latent frames, and a gradient
    clipped to a fixed norm is clipped N times as hard.
    """
    return elements * reduce(loss, "B ->", "mean")
