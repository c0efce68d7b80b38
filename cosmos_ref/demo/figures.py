"""The report's plots, as SVG that takes its ink from the page: they follow light and dark."""

import re
from collections.abc import Callable, Mapping, Sequence
from io import StringIO
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BLUE, AMBER, GREEN, GREY = "#4f7df3", "#e3972b", "#2fa36b", "#939aa8"
INK = "#0a0b0c"
"""Stands for the page's text colour, and is replaced by it."""


def loss_curve(steps: Sequence[int], errors: Sequence[float]) -> str:
    """Weighted error of every logged step, and its running mean."""

    def draw(axes: "Axes") -> None:
        axes.plot(steps, errors, color=GREY, alpha=0.35, linewidth=0.8)
        axes.plot(steps, _running_mean(errors), color=BLUE, linewidth=2, label="running mean")
        axes.set(xlabel="training step", ylabel="λ L", yscale="log")

    return _svg("loss", draw)


def error_over_sigma(
    sigmas: Sequence[float], before: Sequence[float], after: Sequence[float], uncertainty: Sequence[float]
) -> str:
    """Weighted error on held-out clips before and after training, and what the model expects it to be."""

    def draw(axes: "Axes") -> None:
        axes.plot(sigmas, before, color=GREY, marker="o", markersize=4, label="λL, untrained")
        axes.plot(sigmas, after, color=BLUE, marker="o", markersize=4, linewidth=2, label="λL, trained")
        axes.plot(sigmas, uncertainty, color=AMBER, linestyle=(0, (4, 2)), linewidth=2, label="e^u, trained")
        axes.set(xlabel="noise level σ", xscale="log", yscale="log")

    return _svg("sigma", draw)


def error_over_frames(frames: Sequence[int], errors: Mapping[str, Sequence[float]]) -> str:
    """Distance to the true centre, frame by frame: the model first, then the predictions without one."""

    def draw(axes: "Axes") -> None:
        for (name, values), colour in zip(errors.items(), (BLUE, GREY, AMBER), strict=True):
            axes.plot(frames, values, color=colour, marker="o", markersize=4, linewidth=2, label=name)
        axes.set(xlabel="frame", ylabel="centre error (pixels)", xticks=list(frames))
        axes.set_ylim(bottom=0)

    return _svg("frames", draw)


def _running_mean(values: Sequence[float]) -> list[float]:
    """Mean of the last twentieth of the run, at every point."""
    window = max(1, len(values) // 20)
    return [sum(values[max(0, i + 1 - window) : i + 1]) / min(i + 1, window) for i in range(len(values))]


def _svg(name: str, draw: Callable[["Axes"], None]) -> str:
    """Draw one plot and return it as an SVG element that stands in a page as it is."""
    import matplotlib
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {
        "font.family": "sans-serif",
        "font.size": 11,
        "svg.fonttype": "none",  # text stays text, in the page's font
        "svg.hashsalt": name,  # marks of two plots on one page do not clash
        **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
    }
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(6.4, 3.7), layout="constrained")
        axes = figure.subplots()
        draw(axes)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter("{x:g}")
        if axes.get_yscale() == "log":  # at most two decades: 2 and 5 have room between the powers of ten
            axes.yaxis.set_minor_formatter(lambda y, _: f"{y:g}" if f"{y:.0e}"[0] in "25" else "")
        axes.grid(color=INK, alpha=0.1, which="major")
        axes.spines[["top", "right"]].set_visible(False)
        if axes.get_legend_handles_labels()[1]:
            axes.legend(frameon=False)
        buffer = StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg)  # inside a page they mean nothing, and they look like addresses
    svg = re.sub(r"<style.*?</style>|font-family: [^;]*;", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # the plots of a page would have the same names
    svg = re.sub(r"font: (\d+(?:\.\d+)?px)[^;\"]*", r"font-size: \1", svg)
    svg = re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', r'<svg \1 role="img">', svg, count=1)
    return svg.replace(INK, "currentColor")
