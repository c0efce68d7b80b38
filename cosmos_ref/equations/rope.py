"""Rotary position embedding in three dimensions, with NTK-aware frequencies and a frame rate."""

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from cosmos_ref.traceability import equation

_SOURCE = "Su et al. 2021 (arXiv 2104.09864); Cosmos (arXiv 2501.03575), Sec. 5.1.2"


@equation("rope.axis_dims", source=_SOURCE + "; code: 44/42/42 of 128")
def axis_dims(head_dim: int) -> tuple[int, int, int]:
    r"""Shares of a head's channels for (t, h, w): even, about a third each, the remainder to time.

    $$d_h = d_w = 2 \lfloor d / 6 \rfloor, \qquad d_t = d - 2 d_h$$
    """
    spatial = head_dim // 6 * 2
    return head_dim - 2 * spatial, spatial, spatial


@equation(
    "rope.ntk_frequencies",
    source="NTK-aware scaling (as in arXiv 2309.00071, Sec. 3.1); Cosmos code: one ratio per axis",
)
def ntk_frequencies(dim: int, ratio: float, base: float, dtype: torch.dtype) -> Float[Tensor, "F"]:
    r"""Rotary frequencies of one axis; `ratio` stretches the longest wavelength and spares the shortest.

    In float64, unless `dtype` is bfloat16: then with the roundings of NVIDIA's buffers, which begin at the exponents.

    $$\theta_i = \left(b\, r^{d/(d-2)}\right)^{-2i/d}, \qquad i = 0, \dots, d/2 - 1$$
    """
    theta = base * ratio ** (dim / (dim - 2))
    exponents = torch.arange(0, dim, 2, dtype=torch.float64) / dim
    return 1 / theta ** (exponents.to(dtype) if dtype == torch.bfloat16 else exponents)


@equation("rope.angles_3d", source=_SOURCE + "; code: latent frame index times 24 / fps")
def angles_3d(
    positions: Int[Tensor, "L 3"],
    fps: Float[Tensor, "B"],
    head_dim: int,
    ratios: tuple[float, float, float],
    base: float,
    base_fps: float,
) -> Float[Tensor, "B L K"]:
    r"""Rotation angles of every token: axes (t, h, w) side by side, the whole list twice (first and second half).

    $$\alpha = \left[\tfrac{f_0}{f} t\, \theta^t,\ h\, \theta^h,\ w\, \theta^w\right],
      \qquad f_0 = 24\ \text{frames a second}$$

    The products are made in the precision of `fps`.
    """
    dims = axis_dims(head_dim)
    theta_t, theta_h, theta_w = (
        ntk_frequencies(dim, ratio, base, fps.dtype).to(fps) for dim, ratio in zip(dims, ratios, strict=True)
    )
    t, h, w = positions.to(fps.dtype).unbind(dim=1)
    t = t / fps[:, None] * base_fps
    angles_t = t[..., None] * theta_t
    angles_hw = torch.cat([h[:, None] * theta_h, w[:, None] * theta_w], dim=1)
    angles = torch.cat([angles_t, angles_hw.expand(angles_t.shape[0], -1, -1)], dim=-1)
    return torch.cat([angles, angles], dim=-1)


@equation("rope.rotate", source=_SOURCE + "; code: halves, not neighbours")
def rotate(
    x: Float[Tensor, "B N L K"], cos: Float[Tensor, "B L K"], sin: Float[Tensor, "B L K"]
) -> Float[Tensor, "B N L K"]:
    r"""Rotate channel i of the first half with channel i of the second half.

    $$[x_1, x_2] \mapsto [x_1 \cos\alpha - x_2 \sin\alpha,\ x_2 \cos\alpha + x_1 \sin\alpha]$$
    """
    cos, sin = (rearrange(table, "B L K -> B 1 L K") for table in (cos, sin))
    cos, sin = (table.chunk(2, dim=-1)[0] for table in (cos, sin))  # each angle stands there twice
    first, second = x.chunk(2, dim=-1)
    turned = torch.addcmul(first * cos, second, sin, value=-1), torch.addcmul(second * cos, first, sin)
    return torch.cat(turned, dim=-1)
