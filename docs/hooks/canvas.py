"""Diagrams: boxes, lines and words as inline SVG, in the colours and the type of the page, in both languages.

A diagram is a function of the canvas to draw on and of `word`, which gives each of its words in the page's language.
"""

import base64
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from matplotlib.image import imsave

WIDTH = 680
"""Of every diagram; a pixel each where there is room."""
HUES = ("var(--picture-1)", "var(--picture-2)", "var(--picture-3)", "var(--picture-4)")
FAINT, TEXT = "var(--picture-faint)", "currentColor"


@dataclass(frozen=True)
class Diagram:
    """How something is drawn, and what is said about it."""

    draw: Callable
    height: int
    caption: dict[str, str]
    words: dict[str, dict[str, str]]
    """By language."""


DIAGRAMS: dict[str, Diagram] = {}


def diagram(id: str, height: int, *, en: str, pt: str, **words: tuple[str, str]) -> Callable:
    """Register a diagram.

    Args:
        id: as the page asks for it.
        height: of a canvas that is `WIDTH` wide.
        en: caption.
        pt: caption.
        words: what stands in it, in English and in Portuguese.
    """

    def register(draw: Callable) -> Callable:
        by_language = {
            language: {key: pair[i] for key, pair in words.items()} for i, language in enumerate(("en", "pt"))
        }
        DIAGRAMS[id] = Diagram(draw, height, {"en": en, "pt": pt}, by_language)
        return draw

    return register


def drawn(id: str, language: str) -> str:
    """A diagram with its caption."""
    made = DIAGRAMS[id]
    canvas = Canvas(id)
    made.draw(canvas, made.words[language])
    body = "\n".join(canvas.parts)
    return (
        f'<figure class="picture wide">\n<svg role="img" aria-label="{escape(id)}" viewBox="0 0 {WIDTH} {made.height}" '
        f'font-size="13" stroke-width="1">\n{canvas.heads()}{body}\n</svg>\n'
        f"<figcaption>{made.caption[language]}</figcaption>\n</figure>"
    )


class Canvas:
    """Where a diagram is drawn; the origin is above and to the left."""

    def __init__(self, id: str):
        self.id, self.parts, self.colours = id.replace(".", "-"), [], []

    def box(
        self, x: float, y: float, width: float, height: float, fill: str = "none", alpha: float = 0.3, line: str = TEXT
    ) -> None:
        """A rectangle."""
        self.parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" style="fill:{fill};stroke:{line}" '
            f'fill-opacity="{alpha:g}" stroke-width="0.8"/>'
        )

    def text(
        self, x: float, y: float, text: object, anchor: str = "middle", size: float = 13, fill: str = TEXT, bold=False
    ) -> None:
        """Words, centred on y; lines are parted by a line break."""
        lines = str(text).split("\n")
        for number, line in enumerate(lines):
            at = y + 0.35 * size + (number - (len(lines) - 1) / 2) * 1.2 * size
            weight = ' font-weight="600"' if bold else ""
            self.parts.append(
                f'<text x="{x:g}" y="{at:.1f}" text-anchor="{anchor}" font-size="{size:g}"{weight} '
                f'style="fill:{fill}">{escape(line)}</text>'
            )

    def line(
        self, points: Sequence[tuple[float, float]], colour: str = TEXT, width: float = 1, dash: str = "", arrow=False
    ) -> None:
        """A line through points, at its end perhaps an arrow."""
        if arrow and colour not in self.colours:
            self.colours.append(colour)
        head = f' marker-end="url(#{self.id}-{self.colours.index(colour)})"' if arrow else ""
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        dashes = f' stroke-dasharray="{dash}"' if dash else ""
        self.parts.append(
            f'<polyline points="{path}" style="fill:none;stroke:{colour}" stroke-width="{width:g}"{dashes}{head}/>'
        )

    def curve(self, start: tuple[float, float], end: tuple[float, float], bend: float, colour: str = TEXT) -> None:
        """An arrow that bends to its left by so much."""
        (x0, y0), (x1, y1) = start, end
        length = math.hypot(x1 - x0, y1 - y0)
        cx, cy = (x0 + x1) / 2 + bend * (y1 - y0) / length, (y0 + y1) / 2 - bend * (x1 - x0) / length
        if colour not in self.colours:
            self.colours.append(colour)
        self.parts.append(
            f'<path d="M{x0:.1f},{y0:.1f} Q{cx:.1f},{cy:.1f} {x1:.1f},{y1:.1f}" style="fill:none;stroke:{colour}" '
            f'marker-end="url(#{self.id}-{self.colours.index(colour)})"/>'
        )

    def image(self, x: float, y: float, scale: float, pixels: np.ndarray) -> None:
        """Pixels, (height, width, 3) bytes, each `scale` wide."""
        file = io.BytesIO()
        imsave(file, pixels, format="png", metadata={"Software": None})
        content = base64.b64encode(file.getvalue()).decode()
        height, width = pixels.shape[:2]
        self.parts.append(
            f'<image x="{x:g}" y="{y:g}" width="{width * scale:g}" height="{height * scale:g}" '
            f'style="image-rendering:pixelated" href="data:image/png;base64,{content}"/>'
        )

    def heads(self) -> str:
        """Heads of arrows, one of each colour."""
        return "".join(
            f'<defs><marker id="{self.id}-{i}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
            f'orient="auto"><path d="M0,0.5 L8,4 L0,7.5 z" style="fill:{colour}"/></marker></defs>'
            for i, colour in enumerate(self.colours)
        )
