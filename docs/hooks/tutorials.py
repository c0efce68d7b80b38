"""MkDocs hook: `<!-- tutorial: NN_name -->` becomes that notebook, in the language of the page's folder.

Prose is taken as it is, code is fenced (a figure's is folded), and outputs stand below it. Pictures and the notebook
itself are served from assets/tutorials.
"""

import base64
import json
import re
from pathlib import Path

from mkdocs.structure.files import File

NOTEBOOKS = {"en": "tutorials", "pt": "tutorials/pt"}
WORDS = {
    "en": {
        "notebook": "This page is a notebook: [download it]({address}) and run it.",
        "figure": "Code of this figure",
        "picture": "Figure: {heading}",
    },
    "pt": {
        "notebook": "Esta página é um caderno: [baixe-o]({address}) e rode-o.",
        "figure": "Código desta figura",
        "picture": "Figura: {heading}",
    },
}
SERVED = "assets/tutorials"
UP = "../../"  # from the folder of the pages to that of assets
HEADING = re.compile(r"^#+ (.+)$", flags=re.MULTILINE)


def on_page_markdown(markdown, page, config, files):
    """Put the notebook in place of its marker."""
    match = re.fullmatch(r"\s*<!-- tutorial: (\w+) -->\s*", markdown)
    if not match:
        return markdown
    language = page.file.src_uri.split("/")[0]
    path = Path(config.config_file_path).parent / NOTEBOOKS[language] / f"{match[1]}.ipynb"
    text, pictures = page_of(json.loads(path.read_text(encoding="utf-8")), match[1], language)
    pictures[f"{language}/{path.name}"] = path.read_bytes()
    for name, content in pictures.items():
        address = f"{SERVED}/{name}"
        if files.get_file_from_path(address) is None:
            files.append(File.generated(config, address, content=content))
    return text


def page_of(notebook: dict, name: str, language: str) -> tuple[str, dict[str, bytes]]:
    """A notebook as Markdown, and its pictures by the name under which the text calls them."""
    words, pictures, parts, heading = WORDS[language], {}, [], ""
    for number, cell in enumerate(notebook["cells"]):
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(within_the_docs(source, language))
            heading = plain((HEADING.findall(source) or [heading])[-1])
            if number == 0:
                address = f"{UP}{SERVED}/{language}/{name}.ipynb"
                parts.append(words["notebook"].format(address=address))
            continue
        if "figure" in cell["metadata"].get("tags", []):
            parts.append(f'??? abstract "{words["figure"]}"\n\n' + indented(fenced(source, "python")))
        else:
            parts.append(fenced(source, "python"))
        for output in cell["outputs"]:
            data = output.get("data", {"text/plain": output.get("text", "")})
            if "image/png" in data:
                file = f"{name}/{len(pictures)}.png"
                pictures[file] = base64.b64decode("".join(data["image/png"]))
                parts.append(f"![{words['picture'].format(heading=heading)}]({UP}{SERVED}/{file})")
            else:
                parts.append(fenced("".join(data["text/plain"]).rstrip("\n"), "{ .text .output }"))
    return "\n\n".join(parts) + "\n", pictures


def within_the_docs(prose: str, language: str) -> str:
    """Prose whose links start from the docs, not from the notebook: `../docs/en/equations/edm.md`, `02_name.ipynb`."""
    prose = re.sub(rf"\]\((?:\.\./)+docs/{language}/", "](../", prose)
    prose = re.sub(r"\]\((\d\d_\w+)\.ipynb", r"](\1.md", prose)
    return re.sub(
        r"^\*(?:Held by|Garantido por)\*.*?(?=\n\n|\Z)", r"\g<0>\n{ .held }", prose, flags=re.DOTALL | re.MULTILINE
    )


def on_page_content(html, page, config, files):
    """Let the browser break the names of tests between their words."""
    return re.sub(
        r"(?<=<code>)tests/[^<]*(?=</code>)", lambda name: re.sub(r"(?<=[/_:])(?=\w)", "<wbr>", name[0]), html
    )


def plain(heading: str) -> str:
    """A heading as the text of a picture may have it."""
    return re.sub(r"[\[\]$*`\\]", "", heading)


def fenced(text: str, language: str) -> str:
    return f"```{language}\n{text}\n```"


def indented(text: str) -> str:
    return "\n".join(f"    {line}".rstrip() for line in text.splitlines())
