"""Clips of many shapes: the size that a clip is brought to, and what fills the rest of the frame."""

from collections.abc import Sequence
from fractions import Fraction

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cosmos_ref.errors import UserError
from cosmos_ref.traceability import equation

_SOURCE = "Cosmos (arXiv 2501.03575), Sec. 5.1.3, multi-aspect training"


@equation("buckets.nearest_bucket", source=_SOURCE + "; which ratio is closest is not defined there: here, in its log")
def nearest_bucket(height: int, width: int, sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    r"""The bucket, as (height, width), whose aspect ratio is nearest to that of a clip; of equally near ones the first.

    $$\arg\min_{(h, w)} \left|\, \ln \frac{W}{H} - \ln \frac wh \,\right|$$

    Once a clip is fitted into its bucket, $e^{-|\dots|}$ of the frame is real: the nearest is padded least. Compared in
    fractions, as $e^{|\dots|}$, so that rounding does not decide between equally near ones.

    Args:
        height: of the clip, in pixels.
        width: of the clip, in pixels.
        sizes: of the buckets, each (height, width); their own ratio counts, not the nominal one.
    """

    def times_too_wide_or_too_high(size: tuple[int, int]) -> Fraction:
        ratio = Fraction(width * size[0], height * size[1])
        return max(ratio, 1 / ratio)

    return min(sizes, key=times_too_wide_or_too_high)


@equation("buckets.fit_size", source=_SOURCE + "; code of Cosmos-Transfer1: largest side")
def fit_size(height: int, width: int, target_height: int, target_width: int) -> tuple[int, int]:
    r"""Largest (height, width) with the aspect ratio of a clip that fits into the target, to whole pixels.

    $$(h, w) = \operatorname{round}\!\left(s H, s W\right), \qquad
      s = \min\!\left(\frac{h_\text{target}}{H}, \frac{w_\text{target}}{W}\right)$$

    Computed in fractions, so that one side is the target's to the pixel. A side is at least one pixel.
    """
    scale = min(Fraction(target_height, height), Fraction(target_width, width))
    return max(1, round(scale * height)), max(1, round(scale * width))


@equation("buckets.reflected_index", source=_SOURCE + "; code of Cosmos-Transfer1: edge where it cannot be reflected")
def reflected_index(size: int, target: int) -> Int[Tensor, "target"]:
    r"""Which of `size` pixels stands at each place of a line of `target`: the line centred, both ends mirrored.

    $$i_j = n - 1 - \bigl|\, n - 1 - |j - b|\, \bigr|, \qquad b = \left\lfloor \frac{n' - n}{2} \right\rfloor$$

    The pixel at the border is not repeated. Where either end is as long as the line itself or longer, so that a mirror
    image does not fill it, the pixel at the border fills both ends.

    Raises:
        UserError: if there are more pixels than places, or none.
    """
    if not 0 < size <= target:
        raise UserError(f"{size} pixels cannot be padded to {target}: give at least 1 and at most {target}")
    before = (target - size) // 2
    place = torch.arange(target) - before
    if target - size - before >= size:
        return place.clamp(0, size - 1)
    return size - 1 - (size - 1 - place.abs()).abs()


@equation("buckets.reflection_padding", source=_SOURCE)
def reflection_padding(x: Float[Tensor, "*S h w"], height: int, width: int) -> Float[Tensor, "*S H W"]:
    r"""Frames in the middle of a larger one, their surroundings a mirror image of them.

    $$y_{jk} = x_{i_j\, i_k}$$

    Raises:
        UserError: if the frames are larger than (height, width), or empty.
    """
    rows = reflected_index(x.shape[-2], height)
    columns = reflected_index(x.shape[-1], width)
    return x[..., rows, :][..., columns]


@equation("buckets.padding_mask", source=_SOURCE + "; code of Cosmos-Transfer1: 1 on padded pixels")
def padding_mask(height: int, width: int, target_height: int, target_width: int) -> Float[Tensor, "1 H W"]:
    r"""Where a frame of (height, width) in the middle of its target was padded: 1 there, 0 on real pixels.

    $$m_{jk} = 1 - [\,0 \le j - b_h < h\,]\,[\,0 \le k - b_w < w\,], \qquad
      b = \left\lfloor \frac{\text{target} - \text{size}}{2} \right\rfloor$$
    """
    top, left = (target_height - height) // 2, (target_width - width) // 2
    mask = torch.ones(1, target_height, target_width)
    mask[:, top : top + height, left : left + width] = 0
    return mask
