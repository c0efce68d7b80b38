"""Between latents and tokens; the two directions order the channels of a patch differently, as checkpoints need it."""

from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from cosmos_ref.traceability import equation

_SOURCE = "Cosmos (arXiv 2501.03575), Sec. 5.1.2"


@equation("patches.patchify", source=_SOURCE + "; code: channel outermost (c r m n)")
def patchify(x: Float[Tensor, "B C T H W"], patch_size: tuple[int, int, int]) -> Float[Tensor, "B L P"]:
    r"""Cut a grid into patches, one token each: channel outermost, tokens in (t, h, w) order.

    $$y_{(t, h, w),\, (c, r, m, n)} = x_{c,\ t p_t + r,\ h p_h + m,\ w p_w + n}$$
    """
    r, m, n = patch_size
    return rearrange(x, "B C (T r) (H m) (W n) -> B (T H W) (C r m n)", r=r, m=m, n=n)


@equation("patches.unpatchify", source=_SOURCE + "; code: channel innermost (p1 p2 t C)")
def unpatchify(
    tokens: Float[Tensor, "B L P"], grid: tuple[int, int, int], patch_size: tuple[int, int, int]
) -> Float[Tensor, "B C T H W"]:
    r"""Put patches back on a `grid` of (t, h, w) tokens: channel innermost.

    $$x_{c,\ t p_t + r,\ h p_h + m,\ w p_w + n} = y_{(t, h, w),\, (m, n, r, c)}$$
    """
    (T, H, W), (r, m, n) = grid, patch_size
    return rearrange(tokens, "B (T H W) (m n r C) -> B C (T r) (H m) (W n)", T=T, H=H, W=W, r=r, m=m, n=n)
