"""Plots as SVG that takes its ink from the page: they follow light and dark."""

import re
from collections.abc import Callable, Sequence
from io import StringIO
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BLUE, AMBER, GREEN, GREY = "#4f7df3", "#e3972b", "#2fa36b", "#939aa8"
INK = "#0a0b0c"
"""Stands for the page's text colour, and is replaced by it."""


def running_mean(values: Sequence[float]) -> list[float]:
    """Mean of the last twentieth of the run, at every point."""
    window = max(1, len(values) // 20)
    return [sum(values[max(0, i + 1 - window) : i + 1]) / min(i + 1, window) for i in range(len(values))]


def svg(name: str, draw: Callable[["Axes"], None]) -> str:
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
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text)  # inside a page they mean nothing, and they look like addresses
    text = re.sub(r"<style.*?</style>|font-family: [^;]*;", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*"', "<g", text)  # the plots of a page would have the same names
    text = re.sub(r"font: (\d+(?:\.\d+)?px)[^;\"]*", r"font-size: \1", text)
    text = re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', r'<svg \1 role="img">', text, count=1)
    return text.replace(INK, "currentColor")
