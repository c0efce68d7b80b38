"""Clips with their ground truth, from seeds: the data set takes no space and nobody has to download it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from cosmos_ref.errors import UserError
from cosmos_ref.worlds.physics import Contact
from cosmos_ref.worlds.render import render
from cosmos_ref.worlds.scene import MAX_MARBLES, Scene, describe, draw_scene

FPS = 24


@dataclass(frozen=True)
class WorldBatch:
    """Clips of the marble world and everything that is true about them (N = 3 places for marbles)."""

    video: Float[Tensor, "B 3 T H W"]  # float32 in [-1, 1]
    captions: list[str]
    states: Float[Tensor, "B T N 6"]  # float64: position and velocity, NaN where there is no marble
    contacts: list[tuple[Contact, ...]]
    visibility: Float[Tensor, "B T N"]  # visible fraction of the disc, 0 where there is no marble
    actions: Float[Tensor, "B 2"]  # change of velocity (right, down) by the push, zeros without a push
    camera: Float[Tensor, "B 3"]  # centre of the view (right, down) and its height, in box heights
    scenes: list[Scene]
    fps: int = FPS

    @property
    def present(self) -> Bool[Tensor, "B N"]:
        """Which of the N places hold a marble."""
        return ~self.states[:, 0, :, 0].isnan()


def simulate(seeds: Sequence[int], *, frames: int, height: int, width: int, kind: str = "mixed") -> WorldBatch:
    """Simulate and render one clip per seed.

    A clip depends on its seed, the kind and the aspect of the image only: not on the other seeds, and its
    physics not on the resolution.

    Args:
        seeds: Integers in [0, 2**64).
        frames: Number of frames, at least 1.
        height: Image height in pixels, at least 8.
        width: Image width in pixels; the box is `width / height` wide.
        kind: A kind of scene, see `draw_scene`.

    Raises:
        UserError: A size, a seed or the kind is not accepted.
    """
    if len(seeds) == 0 or frames < 1 or min(height, width) < 8:
        raise UserError(
            f"cannot simulate {len(seeds)} clips of {frames} frames of {height}x{width} pixels; "
            "give at least 1 seed, 1 frame and 8x8 pixels"
        )
    return film([draw_scene(int(seed), kind, aspect=width / height) for seed in seeds], frames, height, width)


def film(scenes: Sequence[Scene], frames: int, height: int, width: int) -> WorldBatch:
    """Simulate and render given scenes, drawn from seeds or composed by hand (at most three marbles each)."""
    trajectories = [scene.run(frames) for scene in scenes]
    states = np.full((len(scenes), frames, MAX_MARBLES, 6), np.nan)
    actions = np.zeros((len(scenes), 2))
    for i, (scene, trajectory) in enumerate(zip(scenes, trajectories, strict=True)):
        states[i, :, : len(scene.marbles)] = trajectory.states
        if any(c.kind == "push" for c in trajectory.contacts):
            assert scene.push is not None
            actions[i] = scene.push.velocity_change[:2]
    video, visibility = render(scenes, torch.from_numpy(states), height=height, width=width)
    return WorldBatch(
        video=video,
        captions=[describe(s, t) for s, t in zip(scenes, trajectories, strict=True)],
        states=torch.from_numpy(states),
        contacts=[t.contacts for t in trajectories],
        visibility=visibility,
        actions=torch.from_numpy(actions).float(),
        camera=torch.tensor([[*s.camera.centre, s.camera.view_height] for s in scenes]),
        scenes=list(scenes),
    )
