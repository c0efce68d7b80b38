"""What there is, for people to read: the equations with their evidence, the presets with what they need."""

import inspect
import json
from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from math import prod
from pathlib import Path

import torch
from rich import box
from rich.console import Console, Group
from rich.markup import escape
from rich.padding import Padding
from rich.syntax import Syntax
from rich.table import Table

import cosmos_ref.equations  # fills the register
from cosmos_ref.config import PRESETS, ClipConfig, Config, ConvTokenizerConfig, latent_shape, preset
from cosmos_ref.equations import costs
from cosmos_ref.errors import UserError
from cosmos_ref.tokenizer.continuous import ContinuousTokenizer
from cosmos_ref.traceability import EQUATIONS, Equation

CHECKOUT = Path(cosmos_ref.__file__).parent.parent
REPORT = CHECKOUT / "reports" / "equations.json"
WORST = ["passed", "skipped", "failed"]

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
    model, total = config.model, parameter_count(config)
    dense = sum((parameters(config) | costs.dense_adaln(model.width, model.depth)).values())
    tokens, work = token_count(config, config.clip), sum(flops(config, config.clip).values())
    leading = costs.leading_flops(tokens, model.width, model.depth)
    return (
        f"Dense AdaLN would make it {dense:,} parameters: AdaLN-LoRA saves {1 - total / dense:.2%}.\n"
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


def network_sizes(config: Config) -> dict[str, int]:
    """What both parameters and arithmetic of the network depend on."""
    model, patch = config.model, prod(config.model.patch_size)
    return {
        "width": model.width,
        "depth": model.depth,
        "text_width": model.text_width,
        "mlp_width": int(model.mlp_ratio * model.width),
        "adaln_lora_dim": model.adaln_lora_dim,
        "patch_in": model.in_channels * patch,
        "patch_out": model.channels * patch,
    }


def parameters(config: Config) -> dict[str, int]:
    """Numbers in the denoiser's weights, by group."""
    model = config.model
    return costs.parameters(**network_sizes(config), head_dim=model.head_dim, position_rows=sum(model.max_tokens))


def parameter_count(config: Config) -> int:
    """Numbers in the denoiser's weights."""
    return sum(parameters(config).values())


def flops(config: Config, clip: ClipConfig) -> dict[str, int]:
    """Operations of a call of the network for one clip, by group."""
    return costs.flops(token_count(config, clip), config.text.length, **network_sizes(config))


def calls(config: Config) -> int:
    """Calls of the network for one sample; both branches of guidance count."""
    settings = config.sample
    to_zero = settings.last_sigma == "zero"
    steps = settings.num_steps - (not to_zero)  # the last step, from sigma_min to sigma_min, is none
    evaluations = 2 * steps - to_zero if settings.solver == "heun" else steps  # Heun's step to zero is one of Euler
    return evaluations * (2 if settings.guidance else 1)


def token_count(config: Config, clip: ClipConfig) -> int:
    """Tokens of a clip."""
    _, *grid = latent_shape(config, clip)
    return prod(grid) // prod(config.model.patch_size)


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
