"""Finds marbles in a video by their hue, without a network: a palette, a threshold and a centre of mass."""

from dataclasses import dataclass

import torch
from einops import einsum, rearrange, reduce, repeat
from jaxtyping import Float
from torch import Tensor

from cosmos_ref.errors import UserError
from cosmos_ref.worlds import PALETTE

# A pixel belongs to a marble if its hue has this share of the marble's full hue. Half covered pixels in mid-tone
# have 0.4 of it, the middle of the highlight too.
HUE_THRESHOLD = 0.35


@dataclass(frozen=True)
class Tracks:
    """Where each colour of the palette (its order, `K` colours) is in each frame.

    Centres are (right, down) in pixels from the upper left corner, NaN where the colour is not in the frame.
    """

    centres: Float[Tensor, "B T K 2"]
    areas: Float[Tensor, "B T K"]  # in pixels


def track(video: Float[Tensor, "B 3 T H W"]) -> Tracks:
    """Find the marbles of each colour: which pixels have its hue, how many they are, and their centre.

    The hue of a pixel is what remains when its mean over red, green and blue is taken away. Background, wall and
    highlights are grey, so the hue of a pixel is that of its marble, in proportion to how much of it is seen.
    """
    hue = (video - reduce(video, "B C T H W -> B 1 T H W", "mean")) / 2
    palette = torch.tensor(list(PALETTE.values()), device=video.device)
    palette = palette - palette.mean(dim=1, keepdim=True)
    full = palette.norm(dim=1)
    likeness = einsum(hue, palette / full[:, None], "B C T H W, K C -> B T K H W")
    nearest = likeness == likeness.amax(dim=2, keepdim=True)
    mask = (nearest & (likeness > HUE_THRESHOLD * full[:, None, None])).float()
    areas = reduce(mask, "B T K H W -> B T K", "sum")
    x = torch.arange(video.shape[-1], device=video.device) + 0.5
    y = torch.arange(video.shape[-2], device=video.device) + 0.5
    moments = torch.stack([einsum(mask, x, "B T K H W, W -> B T K"), einsum(mask, y, "B T K H W, H -> B T K")], -1)
    return Tracks(moments / areas[..., None], areas)  # 0 / 0 is NaN: not in the frame


def copy_last_frame(video: Float[Tensor, "B 3 T H W"], given_frames: int) -> Float[Tensor, "B 3 T H W"]:
    """Predict that nothing moves: the last given frame is repeated to the end of the clip."""
    _check_given(given_frames, video.shape[2])
    last = repeat(video[:, :, given_frames - 1], "B C H W -> B C T H W", T=video.shape[2] - given_frames)
    return torch.cat([video[:, :, :given_frames], last], dim=2)


def extrapolate(tracks: Tracks, given_frames: int) -> Tracks:
    """Predict that every marble goes on in a straight line, from its centres in the last two given frames.

    With one given frame, or a marble that is seen in the last one only, it stays where it is.
    """
    frames = tracks.areas.shape[1]
    _check_given(given_frames, frames)
    last, before = tracks.centres[:, given_frames - 1], tracks.centres[:, max(given_frames - 2, 0)]
    velocity = (last - before).nan_to_num()
    ahead = torch.arange(1, frames - given_frames + 1, device=last.device)
    future = rearrange(last, "B K xy -> B 1 K xy") + einsum(ahead, velocity, "T, B K xy -> B T K xy")
    areas = repeat(tracks.areas[:, given_frames - 1], "B K -> B T K", T=len(ahead))
    return Tracks(
        torch.cat([tracks.centres[:, :given_frames], future], dim=1),
        torch.cat([tracks.areas[:, :given_frames], areas], dim=1),
    )


def _check_given(given_frames: int, frames: int) -> None:
    if not 1 <= given_frames < frames:
        raise UserError(f"{given_frames} given frames of {frames}: give at least 1 and leave at least 1 to predict")
