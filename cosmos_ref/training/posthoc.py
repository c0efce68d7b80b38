"""Weight averages of widths that were not kept, put together from those that were."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cosmos_ref.checkpoint import find_checkpoint, list_checkpoints, read_checkpoint, read_group
from cosmos_ref.equations.schedules import ema_gamma, posthoc_weights, profile_overlap
from cosmos_ref.errors import UserError

WORST = 0.05
"""Largest misfit of a profile, relative to its own norm, that is still called an average of that width."""


@dataclass(frozen=True)
class Snapshot:
    """An average that a run has kept."""

    folder: Path
    group: str
    step: int
    """Updates that it has seen."""
    std: float
    """Its relative width."""


@dataclass(frozen=True)
class Combination:
    """Coefficients of snapshots, with the sum 1."""

    snapshots: tuple[Snapshot, ...]
    weights: tuple[float, ...]
    misfit: float
    """Norm of what is left of the wanted profile, relative to its own."""

    def tensors(self) -> dict[str, Tensor]:
        """The combined weights, in float32; memory holds two copies."""
        total: dict[str, Tensor] = {}
        for snapshot, weight in zip(self.snapshots, self.weights, strict=True):
            for name, tensor in read_group(snapshot.folder, snapshot.group, dtype=torch.float32).items():
                total[name] = total[name].add_(tensor, alpha=weight) if name in total else weight * tensor
        return total


def find_snapshots(run: str | Path) -> list[Snapshot]:
    """All averages in the checkpoints of a run, or in one checkpoint, oldest first.

    Raises:
        UserError: there is none.
    """
    found = []
    for folder in list_checkpoints(run) or [find_checkpoint(run)]:
        checkpoint = read_checkpoint(folder, names=())
        for i, std in enumerate(checkpoint.config.train.ema_stds, 1):
            group = "ema" if i == 1 else f"ema_{i}"
            if group in checkpoint.groups and checkpoint.state.get("step"):
                found.append(Snapshot(folder, group, checkpoint.state["step"], std))
    if not found:
        raise UserError(f"{run} holds no averages of a training: give the folder of a run")
    return found


def combine(snapshots: Sequence[Snapshot], std: float) -> Combination:
    """The combination that comes closest to the average of width `std` at the end.

    Raises:
        UserError: no combination is close; the widths that can be reached are named.
    """
    if not 0 < std < 0.28:  # the widest is 1 / sqrt(12), at which all moments count the same
        raise UserError(f"an average of width {std:g} does not exist: give a --std between 0 and 0.28")
    found = _fit(snapshots, std)
    if found.misfit > WORST:
        reached = [width for width in np.arange(1, 280) / 1000 if _fit(snapshots, float(width)).misfit <= WORST]
        ranges = [
            (low, high)
            for low, high in zip(
                [w for w in reached if round(w - 0.001, 3) not in reached],
                [w for w in reached if round(w + 0.001, 3) not in reached],
                strict=True,
            )
        ]
        listed = ", ".join(f"{low:g} to {high:g}" for low, high in ranges) or "none"
        raise UserError(
            f"the averages that were kept do not make one of width {std:g} (misfit {found.misfit:.0%}); --std can be "
            f"{listed}. Train with more --train.ema-stds or --train.keep-checkpoints to reach more"
        )
    return found


def _fit(snapshots: Sequence[Snapshot], std: float) -> Combination:
    times = np.array([float(snapshot.step) for snapshot in snapshots])
    gammas = np.array([ema_gamma(snapshot.std) for snapshot in snapshots])
    time, gamma = times.max(), ema_gamma(std)
    weights = posthoc_weights(times, gammas, time, gamma)
    overlaps = profile_overlap(times[:, None], gammas[:, None], times, gammas)
    square = profile_overlap(time, gamma, time, gamma)
    left = square - 2 * weights @ profile_overlap(times, gammas, time, gamma) + weights @ overlaps @ weights
    # Divided by their sum, which is 1 only up to the misfit: a weight that never moved must stay where it is.
    shares = tuple(float(weight) for weight in weights / weights.sum())
    return Combination(tuple(snapshots), shares, float(np.sqrt(max(0.0, left / square))))
