"""MkDocs hook: `<!-- picture: ID -->` becomes a drawing of that equation, its impostors beside it.

Drawings (see drawings.py) are inline SVG in the page's own colours, so that they follow its light and dark theme. What
a line means stands below in the page's language, an impostor with its story.
"""

import io
import re
import sys
from functools import cache
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from cosmos_ref import evidence
from cosmos_ref.traceability import EQUATIONS

ROOT = Path(__file__).parents[2]
for folder in (str(ROOT), str(Path(__file__).parent)):  # the tests and the other hooks are imported from there
    if folder not in sys.path:
        sys.path.insert(0, folder)

import drawings  # noqa: E402
from verified_by import claim, marked  # noqa: E402

import tests.equations.test_impostors  # noqa: E402, F401 (registers every impostor)
from tests.impostors import IMPOSTORS  # noqa: E402

STYLE = {
    "svg.hashsalt": "cosmos_ref",  # the same picture from every build
    "svg.fonttype": "path",
    "mathtext.fontset": "cm",
    "font.size": 9,
    "axes.labelsize": 12,  # letters of mathematics, which are small
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "lines.linewidth": 1.8,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
} | dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), drawings.TEXT)
COLOURS = {
    drawings.TEXT: "currentColor",
    drawings.RIGHT: "var(--picture-1)",
    drawings.WRONG[0]: "var(--picture-2)",
    drawings.WRONG[1]: "var(--picture-3)",
    drawings.FAINT: "var(--picture-faint)",
}
WORDS = {"en": "the equation", "pt": "a equação"}


def on_page_content(html, page, config, files):
    """Draw each picture of the page in its place."""
    language = page.file.src_uri.split("/")[0]
    return re.sub(r"<!-- picture: (\S+) -->", lambda marker: figure(marker[1], language), html)


def figure(id: str, language: str) -> str:
    """A picture with what stands below it."""
    picture = drawings.PICTURES[id]
    legend = [f'<span class="line-1">{WORDS[language]}</span>']
    for number, name in enumerate(picture.wrong, start=2):
        (proof,) = [p for p in evidence.read_proofs(ROOT)[id] if p.kind == "impostor" and p.name == name]
        legend.append(f'<span class="line-{number}">{marked(claim(proof, language))}</span>')
    caption = f"{picture.caption[language]} {' '.join(legend)}"
    svg = drawn(id).replace("<svg ", f'<svg role="img" aria-label="{id}" ', 1)
    return f'<figure class="picture">\n{svg}\n<figcaption>{caption}</figcaption>\n</figure>'


@cache
def drawn(id: str) -> str:
    """The drawing of one equation as SVG; it has no words, and so is the same in all languages."""
    picture = drawings.PICTURES[id]
    functions = {impostor.function.__name__: impostor.function for impostor in IMPOSTORS if impostor.id == id}
    with matplotlib.rc_context(STYLE):
        canvas = Figure(figsize=picture.size)  # a layout that measures its text would take twice the time
        canvas.subplots_adjust(left=0.12, right=0.96, bottom=0.46 / picture.size[1], top=0.95)
        picture.draw(canvas.subplots(), EQUATIONS[id].function, *(functions[name] for name in picture.wrong))
        file = io.StringIO()
        canvas.savefig(file, format="svg", metadata={"Date": None})
    return inline(file.getvalue(), id)


def inline(svg: str, id: str) -> str:
    """An SVG file as part of a page: without head, sizes and styles, with ids that no other picture has."""
    svg = svg[svg.index("<svg") :]
    for part in (r"<metadata>.*?</metadata>", r"<style[^>]*>.*?</style>", r"<!--.*?-->", r"<defs>\s*</defs>"):
        svg = re.sub(part, "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg)
    svg = re.sub(r'(\bid="|xlink:href="#|url\(#)', rf"\g<1>{id}-", svg)
    for written, shown in COLOURS.items():
        svg = svg.replace(written, shown)
    return re.sub(r"\s*\n\s*", "\n", svg).strip()
