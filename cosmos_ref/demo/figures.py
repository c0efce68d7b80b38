"""The report's plots."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from cosmos_ref.page.plots import AMBER, BLUE, GREY, running_mean, svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def loss_curve(steps: Sequence[int], errors: Sequence[float]) -> str:
    """Weighted error of every logged step, and its running mean."""

    def draw(axes: "Axes") -> None:
        axes.plot(steps, errors, color=GREY, alpha=0.35, linewidth=0.8)
        axes.plot(steps, running_mean(errors), color=BLUE, linewidth=2, label="running mean")
        axes.set(xlabel="training step", ylabel="λ L", yscale="log")

    return svg("loss", draw)


def error_over_sigma(
    sigmas: Sequence[float], before: Sequence[float], after: Sequence[float], uncertainty: Sequence[float]
) -> str:
    """Weighted error on held-out clips before and after training, and what the model expects it to be."""

    def draw(axes: "Axes") -> None:
        axes.plot(sigmas, before, color=GREY, marker="o", markersize=4, label="λL, untrained")
        axes.plot(sigmas, after, color=BLUE, marker="o", markersize=4, linewidth=2, label="λL, trained")
        axes.plot(sigmas, uncertainty, color=AMBER, linestyle=(0, (4, 2)), linewidth=2, label="e^u, trained")
        axes.set(xlabel="noise level σ", xscale="log", yscale="log")

    return svg("sigma", draw)


def error_over_frames(frames: Sequence[int], errors: Mapping[str, Sequence[float]]) -> str:
    """Distance to the true centre, frame by frame: the model first, then the predictions without one."""

    def draw(axes: "Axes") -> None:
        for (name, values), colour in zip(errors.items(), (BLUE, GREY, AMBER), strict=True):
            axes.plot(frames, values, color=colour, marker="o", markersize=4, linewidth=2, label=name)
        axes.set(xlabel="frame", ylabel="centre error (pixels)", xticks=list(frames))
        axes.set_ylim(bottom=0)

    return svg("frames", draw)
