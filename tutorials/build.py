"""Build the tutorials: `python tutorials/build.py [NAME ...]` runs each source once and writes it in both languages.

A source is `src/NN_name.py`, py:percent. Its markdown cells come in pairs, tagged "en" and then "pt"; its code cells
stand once and have no language. `--check` runs nothing: it fails where a notebook's cells are not its source's.
`--smoke` runs everything in its small size and writes nothing.
"""

import argparse
import base64
import io
import json
import os
import re
import sys
import tempfile
from pathlib import Path

import jupytext
import nbclient
import nbformat
from PIL import Image
from traitlets.config import Config

HERE = Path(__file__).parent
LANGUAGES = {"en": HERE, "pt": HERE / "pt"}
LIMIT_KB = 300
LIMIT_SECONDS = 600
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"file_extension": ".py", "name": "python"},
}
BLEMISHES = {  # what a reader elsewhere should not see, or what no second run would repeat
    "a path of this machine": r"""(?:^|[\s'"(=])(?:/[\w.-]+/[\w.-]+|[A-Z]:\\)""",
    "an address in memory": r"0x[0-9a-f]{6,}",
    "a time": r"\d\s?(?:ms|µs|seconds|sec)\b",
}


class Refused(Exception):
    """A tutorial that cannot be built as it is, and which cell is to blame."""


def read(source: Path) -> list[dict]:
    """The cells of a source in order: code as `{"code": ..., "tags": ...}`, prose as `{"en": ..., "pt": ...}`.

    Raises:
        Refused: if prose does not come in pairs.
    """
    cells, waiting = [], None
    for number, cell in enumerate(jupytext.read(source, fmt="py:percent").cells, start=1):
        tags = cell.metadata.get("tags", [])
        languages = [tag for tag in tags if tag in LANGUAGES]
        place = f"{source.name}, cell {number} ({cell.source.strip().splitlines()[:1]})"
        wanted = [] if cell.cell_type == "code" else ["pt"] if waiting else ["en"]
        if languages != wanted or (waiting and cell.cell_type == "code"):
            raise Refused(f"{place}: tags {tags}; prose comes in pairs, tagged en and then pt, code has neither")
        if cell.cell_type == "code":
            cells.append({"code": cell.source, "tags": tags})
        elif waiting is None:
            waiting = cell.source
        else:
            cells.append({"en": waiting, "pt": cell.source})
            waiting = None
    if waiting is not None:
        raise Refused(f"{source.name}: its last cell has no Portuguese")
    return cells


def execute(source: Path, size: str) -> list[dict]:
    """The cells of a source after one run, code with its outputs.

    Raises:
        Refused: if a cell fails, or prints what it should not.
    """
    cells = read(source)
    code = [cell for cell in cells if "code" in cell]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell["code"]) for cell in code])
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {
            "COSMOS_REF_SIZE": size,
            "IPYTHONDIR": folder,
            "OMP_NUM_THREADS": "1",
            "PYTHONHASHSEED": "0",
            "PYTHONPATH": os.pathsep.join([str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]),
        }
        config = Config()
        if os.name == "posix":  # files, not ports: nobody else can listen, and builds side by side do not meet
            config.KernelManager.update({"transport": "ipc", "ip": f"{folder}/kernel"})
        client = nbclient.NotebookClient(
            notebook,
            config=config,
            kernel_name="python3",
            timeout=LIMIT_SECONDS,
            startup_timeout=LIMIT_SECONDS,
            record_timing=False,
            resources={"metadata": {"path": folder}},
        )
        try:
            client.execute(env=environment)
        except nbclient.exceptions.CellExecutionError as error:
            raise Refused(f"{source.name}: {error}") from None
    for cell, run in zip(code, notebook.cells, strict=True):
        cell["outputs"] = [in_few_colours(output) for output in joined(run.outputs) if not bare(output)]
        if found := blemish(cell["outputs"]):
            raise Refused(f"{source.name}: the outputs have {found}; the cell is\n{cell['code']}")
    return cells


def joined(outputs: list) -> list:
    """Outputs with what was printed in pieces put together."""
    together: list = []
    for output in outputs:
        last = together[-1] if together else {}
        if output["output_type"] == last.get("output_type") == "stream" and output["name"] == last["name"]:
            last["text"] += output["text"]
        else:
            together.append(output)
    return together


def bare(output: dict) -> bool:
    """Whether an output is only the value of a cell's last line: tutorials print what they want to show."""
    return output["output_type"] == "execute_result" and set(output["data"]) == {"text/plain"}


def in_few_colours(output: dict) -> dict:
    """An output whose picture, if it has one, has a palette: a figure looks the same in a third of the bytes."""
    if "image/png" not in output.get("data", {}):
        return output
    image = Image.open(io.BytesIO(base64.b64decode(output["data"]["image/png"]))).convert("RGB")
    written = io.BytesIO()
    image.quantize(128, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(written, "PNG", optimize=True)
    return output | {"data": output["data"] | {"image/png": base64.b64encode(written.getvalue()).decode() + "\n"}}


def blemish(outputs: list) -> str | None:
    """What these outputs should not have."""
    for output in outputs:
        if output.get("name") == "stderr":
            return f"text on stderr: {output['text']}"
        data = output.get("data", {"text/plain": output.get("text", "")})
        text = "\n".join("".join(value) for kind, value in data.items() if kind.startswith("text/"))
        for name, pattern in BLEMISHES.items():
            if match := re.search(pattern, text):
                return f"{name}: {match[0].strip()}"
    return None


def notebook(cells: list[dict], language: str) -> dict:
    """The notebook of one language."""
    written = []
    for number, cell in enumerate(cells, start=1):
        if "code" not in cell:
            kind = {"cell_type": "markdown", "source": cell[language], "metadata": {}}
        else:
            kind = {
                "cell_type": "code",
                "source": cell["code"],
                "metadata": {"tags": cell["tags"]} if cell["tags"] else {},
                "execution_count": None,
                "outputs": cell.get("outputs", []),
            }
        written.append(kind | {"id": f"cell-{number:02d}"})
    return {"cells": written, "metadata": METADATA, "nbformat": 4, "nbformat_minor": 5}


def target(source: Path, language: str) -> Path:
    """Where the notebook of a source is written."""
    return LANGUAGES[language] / f"{source.stem}.ipynb"


def build(source: Path, size: str = "cpu", targets: dict[str, Path] | None = None) -> dict[str, Path]:
    """Run a source and write its notebooks; returns them by language.

    Raises:
        Refused: if it cannot be built, or its outputs are too large.
    """
    targets = targets or {language: target(source, language) for language in LANGUAGES}
    cells = execute(source, size)
    kilobytes = output_kilobytes(cells)
    if kilobytes > LIMIT_KB:
        raise Refused(f"{source.name}: {kilobytes:.0f} KB of outputs, at most {LIMIT_KB} are accepted")
    for language, path in targets.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        made = nbformat.from_dict(notebook(cells, language))
        nbformat.validate(made)
        path.write_text(nbformat.writes(made) + "\n", encoding="utf-8")
    return targets


def output_kilobytes(cells: list[dict]) -> float:
    """Size of all outputs as they are written."""
    return sum(len(json.dumps(cell.get("outputs", []), ensure_ascii=False).encode()) for cell in cells) / 1000


def differences(source: Path, targets: dict[str, Path] | None = None) -> list[str]:
    """Where the notebooks of a source are not what it says, first cell first; runs nothing."""
    targets = targets or {language: target(source, language) for language in LANGUAGES}
    cells, found = read(source), []
    for language, path in targets.items():
        if not path.exists():
            found.append(f"{path.name} ({language}): is missing")
            continue
        wanted = notebook(cells, language)["cells"]
        there = json.loads(nbformat.writes(nbformat.read(path, as_version=4)))["cells"]
        there = [cell | {"source": "".join(cell["source"])} for cell in there]
        keys = ("cell_type", "source", "metadata", "id")
        for number, (ours, theirs) in enumerate(zip(wanted, there, strict=False), start=1):
            if any(ours[key] != theirs[key] for key in keys):
                found.append(f"{path.name} ({language}): cell {number} is not the source's: {ours['source'][:60]!r}")
                break
        else:
            if len(wanted) != len(there):
                found.append(f"{path.name} ({language}): {len(there)} cells, the source has {len(wanted)}")
        if problem := blemish([output for cell in there for output in cell.get("outputs", [])]):
            found.append(f"{path.name} ({language}): the outputs have {problem}")
    return found


def sources(names: list[str]) -> list[Path]:
    """Sources by name or by the beginning of it; all of them if none is named."""
    every = sorted((HERE / "src").glob("[0-9][0-9]_*.py"))
    chosen = [path for path in every if not names or any(path.stem.startswith(name) for name in names)]
    for name in names:
        if not any(path.stem.startswith(name) for path in every):
            raise Refused(f"no tutorial is called {name!r}; there are {', '.join(path.stem for path in every)}")
    return chosen


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="which tutorials, say 01; all if none is named")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--check", action="store_true", help="compare the notebooks with their sources, run nothing")
    mode.add_argument("--smoke", action="store_true", help="run in the small size, write nothing")
    options = parser.parse_args(arguments)
    try:
        chosen = sources(options.names)
        if options.check:
            found = [difference for source in chosen for difference in differences(source)]
            print("\n".join([*found, "Run python tutorials/build.py"]) if found else "notebooks and sources agree")
            return 1 if found else 0
        for source in chosen:
            if options.smoke:
                execute(source, "smoke")
                print(f"{source.stem}: runs")
            else:
                paths = build(source)
                print(f"{source.stem}: {', '.join(f'{path.stat().st_size / 1000:.0f} KB' for path in paths.values())}")
    except Refused as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
