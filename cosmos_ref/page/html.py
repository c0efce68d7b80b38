"""Pieces of the pages that a run ends with: one HTML file with everything in it, in English and Portuguese."""

import base64
import os
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from cosmos_ref.page.style import CSS, SCRIPT


@dataclass(frozen=True)
class Film:
    """An MP4 and what stands around it."""

    path: Path
    caption: str = ""
    heads: tuple[tuple[str, str], ...] = ()
    """(English, Portuguese) names of the parts that stand side by side in the picture."""


def write_page(path: Path, page: str) -> Path:
    """Write a page; it appears whole or not at all."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_text(page, encoding="utf-8")
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
    return path


def document(title: str, body: str) -> str:
    """The whole page."""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{CSS}</style>
</head>
<body>
<main>
{body}
</main>
<script>{SCRIPT}</script>
</body>
</html>
"""


def switch() -> str:
    """The buttons that choose the language."""
    return '<div class="switch"><button value="en">EN</button><button value="pt">PT</button></div>'


def both(en: str, pt: str) -> str:
    """A text in both languages; the page shows one of them."""
    return f'<span lang="en">{en}</span><span lang="pt">{pt}</span>'


def paragraph(en: str, pt: str, kind: str = "") -> str:
    """A paragraph."""
    return f'<p class="{kind}">{both(en, pt)}</p>' if kind else f"<p>{both(en, pt)}</p>"


def heading(number: int, en: str, pt: str) -> str:
    """A numbered heading."""
    return f'<h2><span class="number">{number}</span>{both(en, pt)}</h2>'


def film(clip: Film, kind: str = "") -> str:
    """A film under the names of its parts, with its caption."""
    data = base64.b64encode(clip.path.read_bytes()).decode()
    heads = "".join(f"<span>{both(*head)}</span>" for head in clip.heads)
    return (
        f'<figure class="{kind}">'
        + (f'<div class="heads">{heads}</div>' if heads else "")
        + f'<video src="data:video/mp4;base64,{data}" autoplay loop muted playsinline controls></video>'
        + (f"<figcaption>{escape(clip.caption)}</figcaption>" if clip.caption else "")
        + "</figure>"
    )


def films(clips: Sequence[Film], kind: str = "") -> str:
    """Films in a grid."""
    return f'<div class="grid {kind}">' + "".join(film(clip) for clip in clips) + "</div>"


def plot(svg: str, en: str, pt: str) -> str:
    """A plot and what it says."""
    return f"<figure>{svg}<figcaption>{both(en, pt)}</figcaption></figure>"


def tiles(*tiles: tuple[str, str, str]) -> str:
    """Numbers to be seen first: (value, English, Portuguese)."""
    cells = (f'<div class="tile"><b>{value}</b><small>{both(en, pt)}</small></div>' for value, en, pt in tiles)
    return f'<div class="tiles">{"".join(cells)}</div>'


def table(head: Sequence[str], rows: Sequence[Sequence[str]], numbers_from: int, kind: str = "") -> str:
    """A table; columns from `numbers_from` on hold numbers."""

    def line(cells: Sequence[str], tag: str) -> str:
        kinds = (' class="number"' if i >= numbers_from else "" for i in range(len(cells)))
        return "<tr>" + "".join(f"<{tag}{k}>{c}</{tag}>" for k, c in zip(kinds, cells, strict=True)) + "</tr>"

    lines = ([line(head, "th")] if head else []) + [line(row, "td") for row in rows]
    return f'<div class="table"><table class="{kind}">{"".join(lines)}</table></div>'


def power_of_ten(value: float) -> str:
    """A small number as it is printed: 3 x 10^-7."""
    mantissa, exponent = f"{value:.0e}".split("e")
    return f"{mantissa} × 10<sup>{int(exponent)}</sup>".replace("-", "−")
