"""What there is, for people to read: the equations with their evidence, the presets with what they need."""

import ast
import difflib
import inspect
from collections.abc import Callable, Iterable
from dataclasses import fields, is_dataclass

import torch
from rich import box
from rich.console import Console, Group
from rich.markup import escape
from rich.padding import Padding
from rich.syntax import Syntax
from rich.table import Table

from cosmos_ref import evidence
from cosmos_ref.config import PRESETS, ClipConfig, Config, ConvTokenizerConfig, latent_shape, preset
from cosmos_ref.equations import costs
from cosmos_ref.errors import UserError
from cosmos_ref.model.sizes import flops, parameter_count, parameters, token_count
from cosmos_ref.tokenizer.continuous import ContinuousTokenizer
from cosmos_ref.traceability import EQUATIONS, Equation

WORDS = (
    {"passed": "holds", "failed": "fails", "skipped": "skipped", "not run": "not run"},
    {"passed": "rejected", "failed": "not rejected", "skipped": "skipped", "not run": "not run"},
)
"""What the outcome of a test means for a law, and for an impostor."""
T5_11B = {
    "vocabulary": 32_128,
    "width": 1024,
    "depth": 24,
    "num_heads": 128,
    "head_dim": 128,
    "mlp_width": 65_536,
    "distances": 32,
}
"""The text encoder of Cosmos, google-t5/t5-11b."""
RESOLUTIONS = (
    ("720p", "16:9", 121, 704, 1280),
    ("720p", "4:3", 121, 704, 960),
    ("720p", "1:1", 121, 960, 960),
    ("720p", "3:4", 121, 960, 704),
    ("720p", "9:16", 121, 1280, 704),
    ("512p", "16:9", 57, 384, 640),
    ("512p", "4:3", 57, 512, 640),
    ("512p", "1:1", 57, 512, 512),
    ("512p", "3:4", 57, 640, 512),
    ("512p", "9:16", 57, 640, 384),
)
"""What Cosmos was trained on: name, width to height, frames, height, width."""


def show_equations(console: Console, id: str | None) -> None:
    """Print all equations, or one with its formula, code, laws and impostors.

    Raises:
        UserError: if no equation has this id.
    """
    record = evidence.read_record()
    if id is None:
        results = [evidence.result(known, record) for known in EQUATIONS]
        console.print(equation_table(results))
        console.print(f"{len(EQUATIONS)} equations. {record_note(results)}")
        console.print("[dim]`cosmos-ref equations ID` shows one whole, `--test [ID]` runs what verifies it.[/dim]")
        return
    check_equation(id)
    console.print(equation_page(EQUATIONS[id]))
    show_result(console, id, record)


def run_tests(console: Console, id: str | None) -> bool:
    """Run what verifies an equation, or all of them; print how it ended, and say whether all of it held.

    Raises:
        UserError: if no equation has this id, or there are no tests.
    """
    if id is not None:
        check_equation(id)
    held = evidence.run_tests(id)
    record = evidence.read_record()
    if id is not None:
        show_result(console, id, record)
        return held
    results = {known: evidence.result(known, record) for known in EQUATIONS}
    passed = {p.test: p.kind for result in results.values() for p, how in result.outcomes.items() if how == "passed"}
    rejected = list(passed.values()).count("impostor")
    console.print(
        f"{len(results)} equations: {len(passed) - rejected} laws and values hold, {rejected} impostors are rejected."
    )
    for known, result in results.items():
        if result.verdict != "holds":
            console.print(
                f"[bold]{known}[/bold] {shown(result.verdict)}: `cosmos-ref equations {known}`", soft_wrap=True
            )
    return held


def check_equation(id: str) -> None:
    """Refuse the id of no equation.

    Raises:
        UserError: if no equation has this id; it names those that are near.
    """
    if id in EQUATIONS:
        return
    near = [known for known in EQUATIONS if id in known or known.split(".")[1] == id.split(".")[-1]]
    near = near or difflib.get_close_matches(id, EQUATIONS, n=3)
    raise UserError(
        f"no equation is called {id!r}; "
        + (f"did you mean {', '.join(near[:3])}?" if near else "`cosmos-ref equations` lists them all")
    )


def record_note(results: list[evidence.Result]) -> str:
    """Which runs the results are from."""
    if not evidence.has_tests():
        return (
            "Laws, impostors and results are in the tests, which an installed package does not carry: see a checkout."
        )
    runs: dict[str, list[str]] = {}
    for result in results:
        if result.date:
            runs.setdefault(result.at, []).append(result.when)
    if not runs:
        return "Not run yet in this checkout: `cosmos-ref equations --test` fills in the results."
    if len(results) == 1:
        return f"Last run: {results[0].when}, commit {results[0].at}."
    said = (f"{len(dates)} at commit {at}, {max(dates)}" for at, dates in runs.items())
    return f"Last runs: {'; '.join(said)}."


def location(equation: Equation) -> str:
    """Module and line of an equation's function."""
    function = equation.function
    return f"{function.__module__.removeprefix('cosmos_ref.equations.')}.py:{function.__code__.co_firstlineno}"


def equation_table(results: list[evidence.Result]) -> Table:
    """One line an equation; `results` are in the order of the register."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=0)
    for heading in ("equation", "place", "laws", "impostors", "result"):
        table.add_column(heading, justify="right" if heading in ("laws", "impostors") else "left", no_wrap=True)
    topic = None
    for equation, result in sorted(zip(EQUATIONS.values(), results, strict=True), key=lambda pair: pair[0].id):
        if topic not in (None, topic := equation.id.split(".")[0]):
            table.add_section()
        proofs = list(result.outcomes)
        numbers = [len(evidence.laws(proofs)), len(evidence.impostors(proofs))] if evidence.has_tests() else ["-", "-"]
        table.add_row(equation.id, location(equation), *map(str, numbers), shown(result.verdict))
    return table


def equation_page(equation: Equation) -> Group:
    """Formula, source and code of one equation."""
    doc = inspect.getdoc(equation.function) or ""
    return Group(
        f"[bold]{equation.id}[/bold]   {location(equation)}",
        f"Source: {escape(equation.source)}",
        Padding(escape(doc), (1, 0, 1, 2)),
        Syntax(source_code(equation.function), "python", theme="ansi_dark", background_color="default", word_wrap=True),
    )


def source_code(function: Callable) -> str:
    """The text of a function without its docstring."""
    lines = inspect.getsource(function).splitlines()
    (definition,) = ast.parse("\n".join(lines)).body
    assert isinstance(definition, ast.FunctionDef)
    doc = definition.body[0]
    if ast.get_docstring(definition) is not None:
        del lines[doc.lineno - 1 : doc.end_lineno]
    return "\n".join(lines)


def show_result(console: Console, id: str, record: dict) -> None:
    """Print the laws and impostors of one equation, and how they last ended."""
    result = evidence.result(id, record)
    for heading, group in (
        ("laws and values", evidence.laws(list(result.outcomes))),
        ("impostors: wrong forms, which the laws reject", evidence.impostors(list(result.outcomes))),
    ):
        if not group:
            continue
        table = Table(title=heading, title_justify="left", title_style="bold", show_header=False, box=None)
        table.add_column(no_wrap=True)
        table.add_column()
        for proof in group:
            kind = f" ({proof.kind})" if proof.kind not in ("law", "impostor") else ""
            table.add_row(shown(WORDS[proof.kind == "impostor"][result.outcomes[proof]]), escape(proof.claim + kind))
        console.print(table)
    console.print(f"[bold]{id}[/bold] {shown(result.verdict)}. {record_note([result])}")


def shown(outcome: str) -> str:
    """An outcome, coloured where there are colours."""
    colour = {"holds": "green", "rejected": "green", "fails": "bold red", "not rejected": "bold red"}.get(outcome)
    return f"[{colour}]{outcome}[/]" if colour else outcome


def show_presets(console: Console, name: str | None) -> None:
    """Print all presets, or every number of one and what it costs.

    Raises:
        UserError: if no preset has this name.
    """
    if name is None:
        console.print(preset_table())
        console.print("[dim]Clips are frames x height x width. `cosmos-ref presets NAME` shows one whole.[/dim]")
        return
    config = preset(name)
    console.print(f"[bold]{config.name}[/bold]")
    for section in fields(config):
        value = getattr(config, section.name)
        if is_dataclass(value):
            table = Table(title=section.name, title_justify="left", show_header=False, box=None)
            for field in fields(value):
                table.add_row(field.name, written(getattr(value, field.name)))
            console.print(table)
    for part in (size_table, size_note, memory_table, memory_note, resolution_table, resolution_note):
        console.print(part(config))


def preset_table() -> Table:
    """One line a preset."""
    table = headed("presets", "preset", "size", "clip", "tokens", "a call", "weights")
    for config in PRESETS.values():
        table.add_row(
            config.name,
            counted(parameter_count(config)),
            times((config.clip.frames, config.clip.height, config.clip.width)),
            f"{token_count(config, config.clip):,}",
            flop(sum(flops(config, config.clip).values())),
            memory(weight_bytes(config)),
        )
    return table


def size_table(config: Config) -> Table:
    """Parameters and arithmetic of a preset's network, group by group."""
    size, work = parameters(config), flops(config, config.clip)
    table = headed("network", "", "parameters", "%", "FLOP of a call", "%")
    for group in dict.fromkeys(["patch embedding", "position tables", *work]):
        cells = []
        for numbers, show in ((size, lambda number: f"{number:,}"), (work, flop)):
            number, total = numbers.get(group), sum(numbers.values())
            cells += [show(number), f"{100 * number / total:.2f}"] if number else ["-", ""]
        table.add_row(group, *cells)
    table.add_section()
    table.add_row("together", f"{sum(size.values()):,}", "", flop(sum(work.values())), "")
    return table


def size_note(config: Config) -> str:
    """What the table of sizes does not say: dense AdaLN, what is counted as an operation."""
    model = config.model
    dense = sum((parameters(config) | costs.dense_adaln(model.width, model.depth)).values())
    saved = costs.adaln_saving(parameters(config), model.width, model.depth)
    tokens, work = token_count(config, config.clip), sum(flops(config, config.clip).values())
    leading = costs.leading_flops(tokens, model.width, model.depth)
    return (
        f"Dense AdaLN would make it {dense:,} parameters: AdaLN-LoRA saves {saved:.2%}.\n"
        f"A call is one of the network for one clip: {tokens:,} tokens, {config.text.length} text tokens. Counted are "
        "matrix products, a multiply-add as two operations. The leading terms, 28 L D\u00b2 + 4 L\u00b2 D a block, "
        f"are {flop(leading)}; all else adds {work / leading - 1:.2%}.\n"
    )


def memory_table(config: Config) -> Table:
    """Weights of all parts of a preset, in both precisions."""
    table = headed("weights", "", "parameters", "float32", "bfloat16")
    parts = part_sizes(config)
    for part, number in parts.items():
        table.add_row(part, f"{number:,}", memory(4 * number), memory(2 * number))
    if len(parts) > 1:
        table.add_section()
        table.add_row("together", f"{(number := sum(parts.values())):,}", memory(4 * number), memory(2 * number))
    return table


def memory_note(config: Config) -> str:
    """What a training takes."""
    batch = config.train.batch_size
    return (
        f"Training holds {memory(costs.training_bytes(parameter_count(config)))} (20 bytes a parameter: weights, "
        f"average, gradients, moments of AdamW) and stored activations of {memory(activation_bytes(config))} "
        f"({'one clip' if batch == 1 else f'{batch} clips'} at a time, if norms and GELU are computed again).\n"
    )


def resolution_table(config: Config) -> Table:
    """What a preset's own clip takes, and for a Cosmos model all clips that Cosmos was trained on."""
    table = headed("resolutions", "", "clip", "latents", "tokens", "a call", "a sample")
    own = (config.clip.frames, config.clip.height, config.clip.width)
    clips = [("", "own", *own)]
    if isinstance(config.tokenizer, ConvTokenizerConfig):
        clips = [*RESOLUTIONS] if own in [clip[2:] for clip in RESOLUTIONS] else [*clips, *RESOLUTIONS]
    for name, ratio, frames, height, width in clips:
        clip = ClipConfig(frames, height, width)
        work = sum(flops(config, clip).values())
        table.add_row(
            f"{name} {ratio}".strip(),
            times((frames, height, width)),
            times(latent_shape(config, clip)),
            f"{token_count(config, clip):,}",
            flop(work),
            flop(calls(config) * work),
        )
    return table


def resolution_note(config: Config) -> str:
    """How many calls a sample takes."""
    settings = config.sample
    twice = ", each with the text and without it" if settings.guidance else ""
    return (
        "Clips are frames x height x width, latents have their channels in front. A sample is "
        f"{calls(config)} calls: {settings.num_steps} steps of {settings.solver}{twice}."
    )


def calls(config: Config) -> int:
    """Calls of the network for one sample; both branches of guidance count."""
    settings = config.sample
    to_zero = settings.last_sigma == "zero"
    steps = settings.num_steps - (not to_zero)  # the last step, from sigma_min to sigma_min, is none
    evaluations = 2 * steps - to_zero if settings.solver == "heun" else steps  # Heun's step to zero is one of Euler
    return evaluations * (2 if settings.guidance else 1)


def part_sizes(config: Config) -> dict[str, int]:
    """Numbers in the weights of each part that has trained weights."""
    parts = {"denoiser": parameter_count(config)}
    if config.text.encoder == "t5":
        parts["T5-11b encoder"] = costs.t5_parameters(**T5_11B)
    if isinstance(config.tokenizer, ConvTokenizerConfig):
        with torch.device("meta"):
            tokenizer = ContinuousTokenizer(config.tokenizer)
        parts["tokenizer"] = sum(parameter.numel() for parameter in tokenizer.parameters())
    return parts


def weight_bytes(config: Config) -> int:
    """Bytes of the denoiser's weights as it samples."""
    return parameter_count(config) * (2 if config.sample.precision == "bf16" else 4)


def activation_bytes(config: Config) -> int:
    """Bytes that one training step stores for the backward pass."""
    model, train = config.model, config.train
    number = 2 if train.precision == "bf16" else 4
    return costs.stored_activations(
        token_count(config, config.clip), train.batch_size, model.width, model.depth, number
    )


def headed(title: str, *headings: str) -> Table:
    """An empty table: names in its first column, then numbers."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for i, heading in enumerate(headings):
        table.add_column(heading, justify="right" if i else "left", no_wrap=True)
    return table


def written(value: object) -> str:
    """A number of a preset as one would write it."""
    if isinstance(value, tuple):
        return f"({', '.join(written(item) for item in value)})"
    return f"{value:g}" if isinstance(value, float) else str(value)


def times(sizes: Iterable[int]) -> str:
    """Sizes along the axes of a tensor or clip."""
    return "x".join(map(str, sizes))


def counted(number: int) -> str:
    """A number of things, in thousands, millions, billions."""
    return scaled(number, 1000, ("", " k", " M", " B"))


def flop(number: int) -> str:
    """A number of floating-point operations."""
    return scaled(number, 1000, tuple(f" {prefix}FLOP" for prefix in ("", "k", "M", "G", "T", "P", "E")))


def memory(number: int) -> str:
    """A number of bytes, in powers of 1024."""
    return scaled(number, 1024, (" B", " KiB", " MiB", " GiB", " TiB"))


def scaled(number: float, base: int, units: tuple[str, ...]) -> str:
    """Three digits of a number, with the unit that lets it have no more than that before the point."""
    power = 0
    while number >= 999.5 and power < len(units) - 1:
        number, power = number / base, power + 1
    digits = 0 if number >= 99.95 or power == 0 else 1 if number >= 9.995 else 2
    return f"{number:.{digits}f}{units[power]}"
