"""Embeddings of the noise level and of positions."""

import math

import torch
import torch.nn.functional as nnf
from jaxtyping import Float
from torch import Tensor

from cosmos_ref.equations import attention
from cosmos_ref.traceability import equation


@equation(
    "embeddings.sinusoidal",
    source="Vaswani et al. 2017 (arXiv 1706.03762), Sec. 3.5; Cosmos code: cosines first, no factor 1000",
)
def sinusoidal(c_noise: Float[Tensor, "B"], width: int) -> Float[Tensor, "B D"]:
    r"""Sinusoidal embedding of the noise level.

    $$s = [\cos(c f_0), \dots, \cos(c f_{D/2-1}), \sin(c f_0), \dots, \sin(c f_{D/2-1})], \qquad f_i = 10000^{-2i/D}$$

    A noise level in half precision is told as exactly as it is known: the angles are made in float32.
    """
    c = c_noise.to(torch.promote_types(c_noise.dtype, torch.float32))
    exponent = torch.arange(0, width, 2, dtype=c.dtype, device=c.device) / width
    angles = c[:, None] * torch.exp(-math.log(10000) * exponent)
    return torch.cat([angles.cos(), angles.sin()], dim=1).to(c_noise)


@equation(
    "embeddings.noise_embedding",
    source="Cosmos code: t_embedder, affline_norm; the sinusoid itself is normalised, not what the layers make of it",
)
def noise_embedding(
    sinusoid: Float[Tensor, "B D"],
    weight: Float[Tensor, "D"],
    linear_1: Float[Tensor, "D D"],
    linear_2: Float[Tensor, "P D"],
    eps: float,
) -> tuple[Float[Tensor, "B D"], Float[Tensor, "B P"]]:
    r"""What the blocks are told of the noise level: an embedding $e$, and the term $A$ that all AdaLN share.

    $$e = \operatorname{RMSNorm}(s), \qquad A = W_2 \operatorname{SiLU}(W_1 s)$$
    """
    shared = nnf.linear(nnf.silu(nnf.linear(sinusoid, linear_1)), linear_2)
    return attention.rms_norm(sinusoid, weight, eps), shared


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

    Half precision is computed in float32: an angle of 20 is known in bfloat16 to 0.06 only.
    """
    c = c_noise.to(torch.promote_types(c_noise.dtype, torch.float32))
    features = math.sqrt(2) * torch.cos(c[:, None] * frequencies + phases)
    return features.to(torch.result_type(c_noise, frequencies))


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
