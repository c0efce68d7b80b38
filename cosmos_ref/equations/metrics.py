"""How far two videos are apart."""

import torch
from jaxtyping import Float
from torch import Tensor

from cosmos_ref.traceability import equation


@equation("metrics.psnr", source="ITU-T J.340; Cosmos (arXiv 2501.03575), Sec. 4.3")
def psnr(a: Float[Tensor, "*S"], b: Float[Tensor, "*S"], peak: float) -> Float[Tensor, ""]:
    r"""Peak signal-to-noise ratio in decibels; `peak` is the whole range of a pixel, 2 for [-1, 1].

    $$\text{PSNR} = 10 \log_{10} \frac{p^2}{\operatorname{mean}\left((a - b)^2\right)}$$

    Infinite where a = b. In float32 at least: in float16 the square of a small error is zero, and its mean of many too.
    """
    wide = torch.promote_types(a.dtype, torch.float32)
    return 10 * torch.log10(peak**2 / ((a.to(wide) - b) ** 2).mean())
