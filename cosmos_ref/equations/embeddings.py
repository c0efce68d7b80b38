"""Embeddings of the noise level and of positions."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from cosmos_ref.traceability import equation


@equation(
    "embeddings.sinusoidal",
    source="Vaswani et al. 2017 (arXiv 1706.03762), Sec. 3.5; Cosmos code: cosines first, no factor 1000",
)
def sinusoidal(c_noise: Float[Tensor, "B"], width: int) -> Float[Tensor, "B D"]:
    r"""Sinusoidal embedding of the noise level.

    $$s = [\cos(c f_0), \dots, \cos(c f_{D/2-1}), \sin(c f_0), \dots, \sin(c f_{D/2-1})], \qquad f_i = 10000^{-2i/D}$$
    """
    exponent = torch.arange(width // 2, dtype=c_noise.dtype, device=c_noise.device) / (width // 2)
    angles = c_noise[:, None] * torch.exp(-math.log(10000) * exponent)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


@equation(
    "embeddings.fourier_features",
    source="Karras et al. 2024 (arXiv 2312.02696), Sec. 2.2; Cosmos code: input of u(sigma)",
)
def fourier_features(
    c_noise: Float[Tensor, "B"], frequencies: Float[Tensor, "C"], phases: Float[Tensor, "C"]
) -> Float[Tensor, "B C"]:
    r"""Random Fourier features of unit variance.

    $$\phi_j(c) = \sqrt 2 \cos(f_j c + \varphi_j), \qquad
      f_j \sim 2\pi\, \mathcal N(0, 1),\ \varphi_j \sim 2\pi\, \mathcal U(0, 1)$$
    """
    return math.sqrt(2) * torch.cos(c_noise[:, None] * frequencies + phases)


@equation(
    "embeddings.position_embedding",
    source="Cosmos (arXiv 2501.03575), Sec. 5.1.2; code: eps outside the root",
)
def position_embedding(
    t: Float[Tensor, "*L D"], h: Float[Tensor, "*L D"], w: Float[Tensor, "*L D"], eps: float
) -> Float[Tensor, "*L D"]:
    r"""Learned absolute position of a token, the sum of three axes at unit root mean square.

    $$e = \frac{e_t + e_h + e_w}{\epsilon + \lVert e_t + e_h + e_w \rVert_2 / \sqrt D}$$
    """
    e = t + h + w
    return e / (eps + torch.linalg.vector_norm(e, dim=-1, keepdim=True) / math.sqrt(e.shape[-1]))
