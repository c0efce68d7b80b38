"""What training says about itself: a line of JSON for every step, a picture, TensorBoard if it is installed."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from cosmos_ref.errors import UserError


class TrainingLog:
    """The records of a run: `train.jsonl`, `loss.png`, and `tensorboard/` if that package is installed.

    Args:
        folder: the run folder.
        step: steps done before; records beyond it come from a disturbed run and are dropped.
    """

    def __init__(self, folder: Path, step: int):
        self.folder = folder
        self.records = [record for record in _read_records(folder / "train.jsonl") if record["step"] <= step]
        beside = folder / ".train.jsonl.partial"
        beside.write_text("".join(json.dumps(record) + "\n" for record in self.records), encoding="utf-8")
        os.replace(beside, folder / "train.jsonl")
        self.file = (folder / "train.jsonl").open("a", buffering=1, encoding="utf-8")  # a line at a time
        self.tensorboard = None
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            return
        self.tensorboard = SummaryWriter(folder / "tensorboard", purge_step=step + 1)

    def write(self, step: int, **values: float | str) -> None:
        """Add the record of a step; TensorBoard is told the numbers.

        Raises:
            UserError: the disk is full, or gone.
        """
        self.records.append({"step": step, **values})
        try:
            self.file.write(json.dumps(self.records[-1]) + "\n")
        except OSError as error:
            raise UserError(
                f"step {step} was not written into {self.file.name} ({error.strerror}): make room, then --resume; the "
                "checkpoints so far are kept"
            ) from error
        if self.tensorboard:
            for name, value in values.items():
                if isinstance(value, str):
                    continue
                self.tensorboard.add_scalar(f"train/{name}", value, step)

    def draw(self) -> Path:
        """Draw the curve of all records so far."""
        return draw_curve(self.records, self.folder / "loss.png")

    def close(self) -> None:
        """Close the files."""
        self.file.close()
        if self.tensorboard:
            self.tensorboard.close()


def draw_curve(records: list[dict[str, Any]], path: Path) -> Path:
    """Draw weighted error and loss over the steps as PNG: every step pale, a running mean strong."""
    from matplotlib.figure import Figure

    steps = np.array([record["step"] for record in records])
    panels = [
        ("weighted_error", r"weighted error  $\lambda L$", "#1f6fb2"),
        ("loss", r"loss  $\lambda L / e^u + u$", "#c2571a"),
    ]
    figure = Figure(figsize=(8, 5.5), dpi=120, layout="constrained")
    for axes, (name, label, colour) in zip(figure.subplots(2, 1, sharex=True), panels, strict=True):
        values = np.array([record[name] for record in records])
        axes.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8)
        axes.plot(steps, running_mean(values, max(1, len(values) // 20)), color=colour, linewidth=2)
        axes.set_ylabel(label)
        axes.grid(color="#e6e6e6", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(x=0.01)
        if name == "weighted_error":
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter("{x:g}")
            axes.axhline(1, color="#777777", linewidth=1, linestyle="--")
            axes.annotate("a network that says nothing", (1, 1), xycoords=("axes fraction", "data"), color="#777777")
            axes.texts[-1].set(ha="right", va="bottom", fontsize=8)
            axes.set_title("Training", loc="left", fontweight="bold")
        else:
            axes.set_xlabel("step")
    beside = path.with_name(f".{path.name}.partial")
    figure.savefig(beside, format="png")
    os.replace(beside, path)
    return path


def running_mean(values: np.ndarray, width: int) -> np.ndarray:
    """Mean over about `width` values around each one; fewer at the ends."""
    kernel = np.ones(2 * (width // 2) + 1)
    padded = np.convolve(values, kernel), np.convolve(np.ones_like(values), kernel)
    total, count = (part[width // 2 : width // 2 + len(values)] for part in padded)
    return total / count


def _read_records(path: Path) -> list[dict[str, Any]]:
    records = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            records.append(json.loads(line))
        except ValueError:  # the line during which the process was killed
            break
    return records
