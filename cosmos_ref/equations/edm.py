r"""Preconditioning of the denoiser (EDM).

A sample $x = x_0 + \sigma n$ has variance $\sigma^2 + \sigma_\text{data}^2$, which grows without bound with $\sigma$.
The denoiser $D_\theta$ therefore wraps a network $F_\theta$ whose input and training target both have unit variance at
every noise level:

$$D_\theta(x; \sigma) = c_\text{skip}(\sigma)\, x
  + c_\text{out}(\sigma)\, F_\theta(c_\text{in}(\sigma)\, x;\ c_\text{noise}(\sigma)).$$

Coefficients are computed in float32 at least: the square of 256 is infinite in float16, and bfloat16 rounds at every
operation. What multiplies x comes back in the precision of sigma; what is told or weighed stays in float32.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from cosmos_ref.shapes import Sigma, expand
from cosmos_ref.traceability import equation

_TABLE_1 = "Karras et al. 2022 (arXiv 2206.00364), Table 1; Cosmos (arXiv 2501.03575), Sec. 5.1"


@equation("edm.c_skip", source=_TABLE_1)
def c_skip(sigma: Sigma, sigma_data: float) -> Sigma:
    r"""Weight of the noisy input in the denoised output.

    $$c_\text{skip}(\sigma) = \frac{\sigma_\text{data}^2}{\sigma^2 + \sigma_\text{data}^2}$$
    """
    return (sigma_data**2 / (_wide(sigma) ** 2 + sigma_data**2)).to(sigma.dtype)


@equation("edm.c_out", source=_TABLE_1)
def c_out(sigma: Sigma, sigma_data: float) -> Sigma:
    r"""Weight of the network's output in the denoised output.

    $$c_\text{out}(\sigma) = \frac{\sigma\, \sigma_\text{data}}{\sqrt{\sigma^2 + \sigma_\text{data}^2}}$$
    """
    return (_wide(sigma) * sigma_data / (_wide(sigma) ** 2 + sigma_data**2).sqrt()).to(sigma.dtype)


@equation("edm.c_in", source=_TABLE_1)
def c_in(sigma: Sigma, sigma_data: float) -> Sigma:
    r"""Scale that gives the network's input unit variance.

    $$c_\text{in}(\sigma) = \frac{1}{\sqrt{\sigma^2 + \sigma_\text{data}^2}}$$
    """
    return (1 / (_wide(sigma) ** 2 + sigma_data**2).sqrt()).to(sigma.dtype)


@equation("edm.c_noise", source=_TABLE_1)
def c_noise(sigma: Sigma) -> Sigma:
    r"""What the network is told of the noise level.

    $$c_\text{noise}(\sigma) = \tfrac{1}{4} \ln \sigma$$
    """
    return 0.25 * torch.log(_wide(sigma))


@equation("edm.denoise", source="Karras et al. 2022 (arXiv 2206.00364), Eq. 7; Cosmos (arXiv 2501.03575), Sec. 5.1")
def denoise(
    F: Float[Tensor, "B *S"], x: Float[Tensor, "B *S"], sigma: Sigma, sigma_data: float
) -> Float[Tensor, "B *S"]:
    r"""Denoised estimate from the network's output.

    $$D = c_\text{skip}(\sigma)\, x + c_\text{out}(\sigma)\, F$$
    """
    return expand(c_skip(sigma, sigma_data), x) * x + expand(c_out(sigma, sigma_data), x) * F


@equation("edm.network_target", source="Karras et al. 2022 (arXiv 2206.00364), Eq. 8, solved for the target")
def network_target(
    D: Float[Tensor, "B *S"], x: Float[Tensor, "B *S"], sigma: Sigma, sigma_data: float
) -> Float[Tensor, "B *S"]:
    r"""Network output that gives the denoised estimate `D`: the inverse of `denoise`.

    $$F = \frac{D - c_\text{skip}(\sigma)\, x}{c_\text{out}(\sigma)}$$
    """
    return (D - expand(c_skip(sigma, sigma_data), x) * x) / expand(c_out(sigma, sigma_data), x)


@equation(
    "edm.loss_weight",
    source=_TABLE_1 + " (the seed text drops the square)",
)
def loss_weight(sigma: Sigma, sigma_data: float) -> Sigma:
    r"""Weight of the denoising error that makes every noise level count the same at initialisation.

    $$\lambda(\sigma) = \frac{\sigma^2 + \sigma_\text{data}^2}{(\sigma\, \sigma_\text{data})^2}
      = \frac{1}{c_\text{out}(\sigma)^2}$$
    """
    return (_wide(sigma) ** 2 + sigma_data**2) / (_wide(sigma) * sigma_data) ** 2


@equation("edm.scale_latents", source="Cosmos code: encode and decode; Karras et al. 2022, Table 1, sigma_data")
def scale_latents(latents: Float[Tensor, "*S"], sigma_data: float) -> Float[Tensor, "*S"]:
    r"""The tokenizer's latents (unit variance) at the standard deviation the diffusion works with.

    $$x_0 = \sigma_\text{data}\, z$$
    """
    return latents * sigma_data


@equation("edm.unscale_latents", source="edm.scale_latents, solved for the latents")
def unscale_latents(x0: Float[Tensor, "*S"], sigma_data: float) -> Float[Tensor, "*S"]:
    r"""The way back to the tokenizer: undoes `scale_latents`.

    $$z = x_0 / \sigma_\text{data}$$
    """
    return x0 / sigma_data


def _wide(sigma: Sigma) -> Sigma:
    """The level in float32, or as it is where it is more precise."""
    return sigma.to(torch.promote_types(sigma.dtype, torch.float32))
