"""From latents to tokens and back; the way back orders the channels of a patch differently, as checkpoints need it."""

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from cosmos_ref.traceability import equation

_SOURCE = "Cosmos (arXiv 2501.03575), Sec. 5.1.2"


@equation("patches.network_input", source="Cosmos code: general_dit_video_conditioned, general_dit; padding mask last")
def network_input(
    x: Float[Tensor, "B C T H W"], frame_mask: Float[Tensor, "B 1 T 1 1"] | None, padding_mask: Float[Tensor, "B 1 H W"]
) -> Float[Tensor, "B C2 T H W"]:
    r"""Latents, already scaled by c_in, and behind them the masks: given frames (Video2World only), then padding.

    $$y = [x_1, \dots, x_C,\ m_t,\ p_{h, w}]$$

    `frame_mask` is 1 in given frames, None in Text2World; `padding_mask` is 1 where a pixel is padding.
    """
    given = [] if frame_mask is None else [frame_mask.expand(-1, 1, -1, *x.shape[3:])]
    padding = padding_mask[:, :, None].expand(-1, 1, x.shape[2], -1, -1)
    return torch.cat([x, *given, padding], dim=1)


@equation("patches.patchify", source=_SOURCE + "; code: channel outermost (c r m n)")
def patchify(x: Float[Tensor, "B C T H W"], patch_size: tuple[int, int, int]) -> Float[Tensor, "B L P"]:
    r"""Cut a grid into patches, one token each: channel outermost, tokens in (t, h, w) order.

    $$y_{(t, h, w),\, (c, r, m, n)} = x_{c,\ t p_t + r,\ h p_h + m,\ w p_w + n}$$
    """
    r, m, n = patch_size
    return rearrange(x, "B C (T r) (H m) (W n) -> B (T H W) (C r m n)", r=r, m=m, n=n)


@equation("patches.grid_positions", source=_SOURCE + "; code: tokens flattened as (t h w)")
def grid_positions(grid: tuple[int, int, int], device: torch.device) -> Int[Tensor, "L 3"]:
    r"""Index (t, h, w) of every token of a `grid`, in the order in which `patchify` lists them.

    $$l = (t\, H + h)\, W + w$$
    """
    t, h, w = (torch.arange(size, device=device) for size in grid)
    axes = t[:, None, None].expand(grid), h[None, :, None].expand(grid), w[None, None, :].expand(grid)
    return torch.stack(axes, dim=-1).reshape(-1, 3)


@equation("patches.unpatchify", source=_SOURCE + "; code: channel innermost (p1 p2 t C)")
def unpatchify(
    tokens: Float[Tensor, "B L P"], grid: tuple[int, int, int], patch_size: tuple[int, int, int]
) -> Float[Tensor, "B C T H W"]:
    r"""Put patches back on a `grid` of (t, h, w) tokens: channel innermost.

    $$x_{c,\ t p_t + r,\ h p_h + m,\ w p_w + n} = y_{(t, h, w),\, (m, n, r, c)}$$
    """
    (T, H, W), (r, m, n) = grid, patch_size
    return rearrange(tokens, "B (T H W) (m n r C) -> B C (T r) (H m) (W n)", T=T, H=H, W=W, r=r, m=m, n=n)
