"""Video2World: which frames are given, how they enter the network, and how they stay what they are."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cosmos_ref.equations import edm
from cosmos_ref.shapes import Sigma, expand
from cosmos_ref.traceability import equation

_SOURCE = "Cosmos (arXiv 2501.03575), Sec. 5.1.4; Cosmos code: extend_model"


@equation("conditioning.frame_mask", source=_SOURCE)
def frame_mask(given: Int[Tensor, "B"], frames: int) -> Float[Tensor, "B 1 T 1 1"]:
    r"""Indicator of the given latent frames: the first $n$ of each sample.

    $$m_t = [\,t < n\,]$$
    """
    index = torch.arange(frames, device=given.device)
    return (index < given[:, None]).float().reshape(-1, 1, frames, 1, 1)


@equation("conditioning.active_frames", source=_SOURCE + "; Cosmos code: model_v2w")
def active_frames(
    frame_mask: Float[Tensor, "B 1 T 1 1"], sigma: Sigma, augment_sigma: Sigma
) -> Float[Tensor, "B 1 T 1 1"]:
    r"""Given frames that still know more than the sample: all of them, until its noise has fallen to theirs.

    $$m' = m\, [\,\sigma > \sigma_a\,]$$
    """
    return frame_mask * expand((sigma > augment_sigma).to(frame_mask.dtype), frame_mask)


@equation("conditioning.replace_frames", source=_SOURCE)
def replace_frames(
    D: Float[Tensor, "B C T H W"], x0: Float[Tensor, "B C T H W"], frame_mask: Float[Tensor, "B 1 T 1 1"]
) -> Float[Tensor, "B C T H W"]:
    r"""Denoised estimate in which the given frames are the given ones.

    $$D \leftarrow m\, x_0 + (1 - m)\, D$$
    """
    return frame_mask * x0 + (1 - frame_mask) * D


@equation("conditioning.augment_frames", source=_SOURCE + "; Ho et al. 2022 (arXiv 2106.15282), noise augmentation")
def augment_frames(
    x: Float[Tensor, "B C T H W"],
    given: Float[Tensor, "B C T H W"],
    frame_mask: Float[Tensor, "B 1 T 1 1"],
    sigma: Sigma,
    augment_sigma: Sigma,
    sigma_data: float,
) -> Float[Tensor, "B C T H W"]:
    r"""Network input with given frames in it, each part at unit variance for its own noise level.

    $$m\, c_\text{in}(\sigma_a)\, x_a + (1 - m)\, c_\text{in}(\sigma)\, x$$

    `given` ($x_a$) holds the given frames already noised by `augment_sigma` ($\sigma_a$); `frame_mask` is the active
    one.
    """
    given = expand(edm.c_in(augment_sigma, sigma_data), x) * given
    return frame_mask * given + (1 - frame_mask) * expand(edm.c_in(sigma, sigma_data), x) * x
