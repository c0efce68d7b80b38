"""What the network is shown: given frames, how they enter it and stay what they are, and where the camera stands."""

import torch
import torch.nn.functional as nnf
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from cosmos_ref.equations import edm
from cosmos_ref.errors import UserError
from cosmos_ref.shapes import Sigma, expand
from cosmos_ref.traceability import equation

_SOURCE = "Cosmos (arXiv 2501.03575), Sec. 5.1.4; Cosmos code: extend_model"


@equation("conditioning.last_frames", source="Cosmos code: inference_utils, the last num_input_frames of the input")
def last_frames(video: Float[Tensor, "B C T H W"], count: int) -> Float[Tensor, "B C T2 H W"]:
    r"""The frames that a clip goes on from: the last ones of what is given, in their order.

    $$y_t = x_{T - n + t}$$

    Raises:
        UserError: if the video has fewer frames.
    """
    T = video.shape[2]
    if not 0 <= count <= T:
        raise UserError(f"{count} frames are to be taken of a video of {T}: take at most {T}")
    return video[:, :, T - count :]  # not -count: with none to take that would be all


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


@equation("conditioning.pluecker_rays", source="Cosmos (arXiv 2501.03575), Sec. 6.1, camera control; Plücker 1865")
def pluecker_rays(
    intrinsics: Float[Tensor, "B 3 3"], camera_to_world: Float[Tensor, "B 3 4"], height: int, width: int
) -> Float[Tensor, "B 6 H W"]:
    r"""The line of sight of every pixel: its moment about the origin, then its direction, of length 1.

    $$(c \times d,\ d), \qquad d = \frac{R K^{-1} p}{\lVert R K^{-1} p \rVert}, \qquad
      p = (k + \tfrac12,\ j + \tfrac12,\ 1)^\top$$

    for the pixel in row j and column k. The camera looks along +z, with x to the right and y down.

    Args:
        intrinsics: $K$, in pixels of this height and width; the corner of the image is (0, 0).
        camera_to_world: $(R \mid c)$, a rotation and the camera's centre.
        height: of the image.
        width: of the image.
    """
    rotation, centre = camera_to_world[:, :, :3], camera_to_world[:, :, 3]
    rows, columns = (torch.arange(n, dtype=centre.dtype, device=centre.device) + 0.5 for n in (height, width))
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    p = torch.stack([x, y, torch.ones_like(x)])
    directions = torch.einsum("bij,jhw->bihw", rotation @ torch.linalg.inv(intrinsics), p)
    d = nnf.normalize(directions, dim=1)
    return torch.cat([torch.linalg.cross(rearrange(centre, "B i -> B i 1 1"), d, dim=1), d], dim=1)
