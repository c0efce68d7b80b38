"""Causality in time: what is coded of a frame never depends on later ones, so the first frame stands alone."""

import torch
import torch.nn.functional as nnf
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from cosmos_ref.errors import UserError
from cosmos_ref.traceability import equation

_SOURCE = "Cosmos (arXiv 2501.03575), Sec. 4.1"


@equation("causal.causal_pad", source=_SOURCE + "; code: the first frame repeated, nothing behind")
def causal_pad(x: Float[Tensor, "B C T H W"], count: int) -> Float[Tensor, "B C T2 H W"]:
    r"""Put `count` copies of the first frame in front.

    $$y_t = x_{\max(0,\ t - k)}$$
    """
    return torch.cat([x[:, :, :1].expand(-1, -1, count, -1, -1), x], dim=2)


@equation(
    "causal.frame_norm", source="Wu & He 2018 (arXiv 1803.08494), Sec. 3, with one group; code: each frame by itself"
)
def frame_norm(
    x: Float[Tensor, "B C T H W"], weight: Float[Tensor, "C"], bias: Float[Tensor, "C"], eps: float
) -> Float[Tensor, "B C T H W"]:
    r"""Zero mean and unit variance in each frame, over all channels and pixels; then a scale and shift by channel.

    $$y = w_c\, \frac{x - \mu_t}{\sqrt{s_t^2 + \epsilon}} + b_c$$

    No frame sees another one's mean $\mu_t$ and variance $s_t^2$.
    """
    frames = nnf.group_norm(rearrange(x, "B C T H W -> (B T) C H W"), 1, weight, bias, eps)
    return rearrange(frames, "(B T) C H W -> B C T H W", T=x.shape[2])


@equation("causal.latent_length", source=_SOURCE)
def latent_length(frames: int, temporal_factor: int) -> int:
    r"""Latent frames of a clip: one for the first frame, one for every `temporal_factor` frames after it.

    $$t = 1 + \frac{T - 1}{s}$$

    Raises:
        UserError: if the clip length is not 1 + k * temporal_factor.
    """
    if frames < 1 or (frames - 1) % temporal_factor:
        below = max(1, frames - (frames - 1) % temporal_factor)
        raise UserError(
            f"a clip of {frames} frames does not fit: its length must be 1 + k * {temporal_factor}, "
            f"for example {below} or {below + temporal_factor}"
        )
    return 1 + (frames - 1) // temporal_factor


def check_side(name: str, size: int, unit: int) -> None:
    """Refuse a side of a clip that is no whole number of latent pixels.

    Args:
        name: what an error calls the side.
        size: of the side, in pixels.
        unit: pixels to a latent pixel.

    Raises:
        UserError: if the size is no positive multiple of the unit.
    """
    if size < 1 or size % unit:
        raise UserError(f"{name} {size} does not fit: it must be a multiple of {unit}")


@equation("causal.clip_length", source=_SOURCE)
def clip_length(latent_frames: int, temporal_factor: int) -> int:
    r"""Frames of a clip from its latent frames, the inverse of `latent_length`.

    $$T = 1 + (t - 1)\, s$$
    """
    return 1 + (latent_frames - 1) * temporal_factor
