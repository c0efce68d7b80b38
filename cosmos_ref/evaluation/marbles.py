"""How well a generated clip follows the true marbles: centre error, missing rate, colours asked for."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from cosmos_ref.errors import UserError
from cosmos_ref.evaluation.tracking import Tracks, track
from cosmos_ref.worlds import PALETTE, WorldBatch

VISIBLE = 0.5  # a marble is judged while at least half of its disc is to be seen
FOUND = 0.3  # ... and is missing if less than this share of its area is there
SMALLEST_DISC = 3.14159 * 0.09**2  # area of the smallest marble drawn, in box heights squared


@dataclass(frozen=True)
class MarbleReport:
    """Errors per predicted frame (NaN where no marble could be judged) and over all of them."""

    frames: list[int]  # the predicted frames
    centre_error: list[float]  # mean distance in pixels between found and true centres
    missing_rate: list[float]  # share of the visible marbles that are not there
    mean_centre_error: float  # over all marbles and predicted frames
    mean_missing_rate: float
    judged: int  # how many (marble, frame) pairs were visible


def compare(tracks: Tracks, truth: WorldBatch, given_frames: int = 0) -> MarbleReport:
    """Compare tracked marbles with the true clips, for the frames after the given ones.

    Both sides are seen through the same tracker, so that a half hidden marble is compared with the visible half
    of the true one. A missing marble has no centre: read the centre error together with the missing rate.

    Args:
        tracks: `track(generated_video)`, or a prediction such as `extrapolate(track(truth.video), given_frames)`.
        truth: The true clips, of the same size.
        given_frames: Frames at the start that were given and are not judged.

    Raises:
        UserError: The clips differ in number or length, or no frame is left to judge.
    """
    true = track(truth.video)
    if tracks.areas.shape != true.areas.shape or not 0 <= given_frames < true.areas.shape[1]:
        raise UserError(
            f"cannot compare {tuple(tracks.areas.shape[:2])} (clips, frames) with {tuple(true.areas.shape[:2])} "
            f"after {given_frames} given frames; both must be of one size, with a frame left to judge"
        )
    visible = _visible(truth)[:, given_frames:]
    found = (tracks.areas >= FOUND * true.areas)[:, given_frames:] & (tracks.areas > 0)[:, given_frames:] & visible
    distance = (tracks.centres - true.centres).norm(dim=-1)[:, given_frames:]
    distance = torch.where(found, distance, 0.0)

    def over(dims: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        return distance.sum(dims) / found.sum(dims), 1 - found.sum(dims) / visible.sum(dims)

    error_per_frame, missing_per_frame = over((0, 2))
    error, missing = over((0, 1, 2))
    return MarbleReport(
        frames=list(range(given_frames, true.areas.shape[1])),
        centre_error=error_per_frame.tolist(),
        missing_rate=missing_per_frame.tolist(),
        mean_centre_error=error.item(),
        mean_missing_rate=missing.item(),
        judged=int(visible.sum()),
    )


def colour_accuracy(video: Float[Tensor, "B 3 T H W"], captions: Sequence[str]) -> float:
    """Share of the clips that show exactly the colours their caption names, no more and no fewer.

    A colour is shown if at least 30 % of the smallest disc has it in a third of the frames, so that neither a stray
    pixel adds a colour nor a wall that hides a marble for a while takes one away.
    """
    if len(captions) != len(video):
        raise UserError(f"{len(captions)} captions for {len(video)} clips; give one for each")
    smallest = FOUND * SMALLEST_DISC * video.shape[-2] ** 2
    shown = (track(video).areas >= smallest).float().mean(dim=1) >= 1 / 3
    named = torch.tensor(
        [[name in caption.replace(",", " ").split() for name in PALETTE] for caption in captions],
        device=video.device,
    )
    return (shown == named).all(dim=1).float().mean().item()


def _visible(truth: WorldBatch) -> Bool[Tensor, "B T K"]:
    """Which colours show at least half of a marble, by frame: from the marbles' places to the palette's order."""
    clips, frames, _ = truth.visibility.shape
    visible = torch.zeros(clips, frames, len(PALETTE), dtype=torch.bool, device=truth.visibility.device)
    names = list(PALETTE)
    for clip, scene in enumerate(truth.scenes):
        for place, marble in enumerate(scene.marbles):
            visible[clip, :, names.index(marble.colour)] = truth.visibility[clip, :, place] >= VISIBLE
    return visible
