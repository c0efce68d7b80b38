"""Pixels: bytes of a video file, and the numbers from -1 to 1 that a tokenizer reads."""

import torch
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor

from cosmos_ref.traceability import equation


@equation("pixels.from_bytes", source="Cosmos code: training; its inference divides by 128, and white becomes 0.992")
def from_bytes(pixels: Shaped[Tensor, "*S"]) -> Float[Tensor, "*S"]:
    r"""Numbers of a video from its bytes: black is -1, white is 1.

    $$v = \frac{b}{127.5} - 1$$
    """
    return pixels / 127.5 - 1


@equation("pixels.to_bytes", source="pixels.from_bytes, solved for the bytes; Cosmos code: clamped first")
def to_bytes(video: Float[Tensor, "*S"]) -> UInt8[Tensor, "*S"]:
    r"""The nearest bytes to the numbers of a video; what lies beyond black or white is black or white.

    $$b = \operatorname{round}\!\left(127.5\, (\operatorname{clamp}(v, -1, 1) + 1)\right)$$

    Computed in float32 at least: bfloat16 has steps of a whole grey level around white.
    """
    wide = video.to(torch.promote_types(video.dtype, torch.float32))
    return ((wide.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
