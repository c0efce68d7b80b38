"""Denoising score matching: the error, its weight, and the learned uncertainty that balances noise levels."""

import torch
from einops import reduce
from jaxtyping import Float
from torch import Tensor

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
