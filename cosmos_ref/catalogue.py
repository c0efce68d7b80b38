"""What there is, for people to read: the equations with their evidence, the presets with what they need."""

import inspect
import json
from dataclasses import fields
from math import prod
from pathlib import Path

from rich.console import Console, Group
from rich.markup import escape
from rich.padding import Padding
from rich.syntax import Syntax
from rich.table import Table

import cosmos_ref.equations  # fills the register
from cosmos_ref.config import PRESETS, Config, latent_shape, preset
from cosmos_ref.errors import UserError
from cosmos_ref.model.initialization import build_denoiser
from cosmos_ref.traceability import EQUATIONS, Equation

CHECKOUT = Path(cosmos_ref.__file__).parent.parent
REPORT = CHECKOUT / "reports" / "equations.json"
WORST = ["passed", "skipped", "failed"]


def show_equations(console: Console, id: str | None) -> None:
    """Print all equations, or one with its formula, code and tests.

    Raises:
        UserError: if no equation has this id.
    """
    record = read_record()
    if id is None:
        for known in sorted(EQUATIONS):
            console.print(equation_line(EQUATIONS[known], record))
        console.print(f"{len(EQUATIONS)} equations. {record_note(record)}")
        return
    if id not in EQUATIONS:
        near = [known for known in EQUATIONS if id in known or known.split(".")[1] == id.split(".")[-1]]
        raise UserError(
            f"no equation is called {id!r}; "
            + (f"did you mean {', '.join(near)}?" if near else "`cosmos-ref equations` lists them all")
        )
    console.print(equation_page(EQUATIONS[id], record))
    console.print(record_note(record))


def read_record() -> dict:
    """Outcomes of the last test run in this checkout; empty where there was none."""
    return json.loads(REPORT.read_text()) if REPORT.exists() else {}


def record_note(record: dict) -> str:
    """Which run the results are from."""
    if record:
        return f"Last result: commit {record['commit']}, {record['date']}."
    if (CHECKOUT / "tests").is_dir():
        return "Not run yet in this checkout: `make test` fills in the results."
    return "Results are recorded by the tests, which an installed package does not carry: see them in a checkout."


def outcome(tests: dict[str, str]) -> str:
    """The worst outcome of an equation's tests."""
    return max(tests.values(), key=WORST.index) if tests else "not run"


def location(equation: Equation) -> str:
    """Module and line of an equation's function."""
    function = equation.function
    return f"{function.__module__.removeprefix('cosmos_ref.equations.')}.py:{function.__code__.co_firstlineno}"


def equation_line(equation: Equation, record: dict) -> str:
    """Id, place, number of tests and last result of an equation; its source below."""
    tests = record.get("equations", {}).get(equation.id, {})
    head = f"[bold]{equation.id:<32}[/bold]{location(equation):<22}{len(tests) or '-':>4} tests  {outcome(tests)}"
    return f"{head}\n    [dim]{escape(equation.source)}[/dim]"


def equation_page(equation: Equation, record: dict) -> Group:
    """Formula, source, code and tests of one equation."""
    tests = record.get("equations", {}).get(equation.id, {})
    code = inspect.getsource(equation.function)
    doc = inspect.getdoc(equation.function) or ""
    results = [
        f"{result:<8}{escape(test.split('::')[-1].removeprefix('test_'))}" for test, result in sorted(tests.items())
    ]
    return Group(
        f"[bold]{equation.id}[/bold]   {location(equation)}",
        f"Source: {equation.source}",
        Padding(escape(doc), (1, 0, 1, 2)),
        Syntax(code, "python", theme="ansi_dark", background_color="default", word_wrap=True),
        *results,
    )


def show_presets(console: Console, name: str | None) -> None:
    """Print all presets, or every number of one.

    Raises:
        UserError: if no preset has this name.
    """
    if name is None:
        console.print(preset_table())
        return
    config = preset(name)
    for section in fields(config):
        value = getattr(config, section.name)
        if isinstance(value, str):
            console.print(f"[bold]{value}[/bold]")
            continue
        table = Table(title=section.name, title_justify="left", show_header=False, box=None)
        for field in fields(value):
            table.add_row(field.name, str(getattr(value, field.name)))
        console.print(table)


def parameter_count(config: Config) -> int:
    """Numbers in the denoiser's weights."""
    return sum(parameter.numel() for parameter in build_denoiser(config).parameters())


def token_count(config: Config) -> int:
    """Tokens of the preset's own clip."""
    _, *grid = latent_shape(config, config.clip)
    return prod(grid) // prod(config.model.patch_size)


def memory_gib(config: Config) -> tuple[float, float]:
    """Memory that sampling and training need at least, in GiB: weights; weights, gradients, AdamW and average."""
    weights = 4 * parameter_count(config) / 2**30
    return weights, 5 * weights


def preset_table() -> Table:
    """One line a preset."""
    table = Table(title="presets", title_justify="left", box=None)
    for heading in ("preset", "parameters", "clip", "latents", "tokens", "width x depth", "training"):
        table.add_column(heading, no_wrap=True)
    for config in PRESETS.values():
        clip, train = config.clip, config.train
        table.add_row(
            config.name,
            f"{parameter_count(config):,}",
            f"{clip.frames}x{clip.height}x{clip.width}",
            "x".join(map(str, latent_shape(config, clip))),
            str(token_count(config)),
            f"{config.model.width} x {config.model.depth}",
            f"{train.num_steps} steps of {train.batch_size}",
        )
    return table
