"""cosmos-ref plan: what a training would take on machines that need not be there."""

from dataclasses import replace
from typing import TYPE_CHECKING

from rich.console import Console

from cosmos_ref.config import ParallelConfig

if TYPE_CHECKING:
    from rich.table import Table

    from cosmos_ref.distributed.plan import Change, Plan

ON = ParallelConfig()
KINDS = {
    "weights": "weights, gathered before each pass",
    "gradients": "gradients, summed and scattered",
    "replicas": "gradients, summed over replicas",
    "heads": "heads for tokens (Ulysses)",
    "ring": "keys and values (ring)",
    "tokens": "patches, at the end",
}
"""What messages are for."""
OPTIONS = {
    "recompute": "--parallel.recompute",
    "cp": "--parallel.cp",
    "micro_batch": "--micro-batch",
    "replicate": "--parallel.replicate",
    "world": "--parallel.world",
    "frames": "--frames",
}
"""Options of this command that `changes` changes."""
SHORTEST = 0.01
"""Seconds of a step below which its time is not predicted: then starting kernels takes longer than arithmetic."""


def plan(
    preset: str = "tiny",
    parallel: ParallelConfig = ON,
    frames: int | None = None,
    resolution: str | None = None,
    batch_size: int | None = None,
    micro_batch: int = 0,
    gpu_memory: float = 80,
    usable: float = 0.9,
    peak: float = 989,
    efficiency: float = 0.5,
    neighbours: int = 8,
    bandwidth: float = 450,
    network: float = 50,
) -> None:
    """Say what a training would take: memory, communication, time; and what to change where it does not fit.

    Nothing is allocated, and no GPU is needed. The machine's numbers are those of an H100.

    Args:
        preset: what is trained.
        parallel: how it is spread over processes, one a GPU; a world of 0 is the smallest that it fits.
        frames: length of the clips; the preset's, if not given.
        resolution: HEIGHTxWIDTH in pixels, or 256, 480, 512, 720, 1080, of which the 16:9 size is taken.
        batch_size: clips of a step; one for each group of processes, if the preset's cannot be shared out.
        micro_batch: clips that a process takes at once; 0 is all of its share.
        gpu_memory: of a GPU, in GB (10^9 bytes).
        usable: share of it that can be planned with; the driver and NCCL take some, and gaps.
        peak: dense bfloat16 operations of a GPU, in TFLOP/s.
        efficiency: share of the peak that matrix products and attention reach; an assumption, so measure it.
        neighbours: GPUs that are joined by fast links.
        bandwidth: GB/s that a GPU sends to its neighbours.
        network: GB/s that a GPU sends to all others.
    """
    from cosmos_ref.config import preset as preset_called
    from cosmos_ref.distributed import plan as planning

    config = preset_called(preset)
    clip = planning.clip_of(config, frames, resolution)
    machine = planning.Machine(gpu_memory, usable, peak, efficiency, neighbours, bandwidth, network)
    asked = planning.plan(replace(config, clip=clip), parallel, machine, batch_size, micro_batch)
    show(Console(), asked, [] if asked.fits else planning.changes(asked))


def show(console: Console, asked: "Plan", found: "list[Change]") -> None:
    """Print a plan, and what to change if it does not fit."""
    console.print(overview(asked))
    console.print()
    console.print(memory_table(asked))
    console.print(paper_note(asked))
    console.print(verdict(asked) + "\n")
    if found:
        console.print(change_table(found))
    elif not asked.fits:
        console.print(
            "Nothing that this command can change makes it fit: take a smaller preset, or GPUs with more memory.\n"
        )
    if sum(asked.sent().values()):
        console.print(communication_table(asked))
    console.print(time_table(asked))
    console.print(f"[dim]{assumptions(asked)}[/dim]")


def overview(asked: "Plan") -> "Table":
    """What is trained on what."""
    from rich.table import Table

    split, clip, at_once = asked.split, asked.clip, asked.micro_batches
    table = Table(title=f"{asked.config.name}: a step of training", title_justify="left", show_header=False, box=None)
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    groups = f"{split.data} group{'s' * (split.data > 1)} of {split.cp} that share a clip" if split.cp > 1 else ""
    inside = f"{split.ulysses} exchange heads" * (split.ulysses > 1) + " x " * (min(split.ulysses, split.ring) > 1)
    inside += f"a ring of {split.ring}" * (split.ring > 1)
    table.add_row("processes", f"{split.world}" + (f": {groups} ({inside})" if groups else ""))
    copies = f"{split.replicate} copies, each " if split.replicate > 1 else ""
    table.add_row("weights", copies + (f"spread over {split.shard} processes" if split.shard > 1 else "whole"))
    parts = asked.parameters / asked.local_parameters
    table.add_row("parameters", f"{asked.parameters:,}; {asked.local_parameters:,} a process, one in {parts:.1f}")
    local = f"; {asked.local_tokens:,} a process" if split.cp > 1 else ""
    table.add_row("clip", f"{clip.frames} frames of {clip.height}x{clip.width}: {asked.tokens:,} tokens{local}")
    times = f"{len(at_once)} x {at_once[0]}" if len(at_once) > 1 else f"{at_once[0]}"
    whose = "" if split.data == 1 else f"; {times} a {'group' if split.cp > 1 else 'process'}"
    table.add_row("a step", f"{_counted(asked.clips, 'clip')}, {asked.clips * asked.tokens:,} tokens{whose}")
    return table


def memory_table(asked: "Plan") -> "Table":
    """Memory of a process, with and without recomputation."""
    from cosmos_ref.catalogue import headed

    needed = [asked.memory(recompute) for recompute in (False, True)]
    unit, name = _unit(min(needed))
    marks = [" <- this plan" * (asked.parallel.recompute == recompute) for recompute in (False, True)]
    table = headed(f"memory of a process, {name}", "", "all kept" + marks[0], "blocks recomputed" + marks[1])

    def row(label: str, sizes: list[int | None]) -> None:
        table.add_row(label, *("-" if size is None else f"{size / unit:,.2f}" for size in sizes))

    for label, size in asked.state().items():
        row(f"{label}, float32", [size] * 2)
    row("gathered blocks and their gradients", [asked.gathered] * 2)
    kept, again = asked.activations(False), asked.activations(True)
    for label in again:
        row("activations of the blocks" if label == "blocks" else label, [kept.get(label), again[label]])
    table.add_section()
    cells = (f"[{'green' if size <= asked.room else 'red'}]{size / unit:,.2f}[/]" for size in needed)
    table.add_row("[bold]together[/]", *cells)
    return table


def paper_note(asked: "Plan") -> str:
    """The same as the paper counts it."""
    split, state, stored = asked.split, asked.paper_state, asked.paper_activations
    return (
        f"[dim]The paper's count: 20 bytes a parameter, {_bytes(state)} / {split.shard} = "
        f"{_bytes(state / split.shard)}; 15 numbers a token, channel and block, {_bytes(stored)} / {split.cp} = "
        f"{_bytes(stored / split.cp)}.[/dim]"
    )


def verdict(asked: "Plan") -> str:
    """Whether it fits."""
    machine = asked.machine
    needed = f"{_bytes(asked.memory(asked.parallel.recompute))} are needed"
    usable = f"of {machine.memory:g} GB, {machine.usable:.0%} can be planned with"
    return f"[bold]{'[green]It fits' if asked.fits else '[red]It does not fit'}[/][/]: {needed}; {usable}."


def change_table(found: "list[Change]") -> "Table":
    """The smallest changes that fit, best first."""
    from cosmos_ref.catalogue import headed

    table = headed("what to change: with any one of these it fits", "", "memory", "clips", "a step", "GPU s/clip")
    for options, plan in found:
        written = [OPTIONS[name] + (f" {value}" if name != "recompute" else "") for name, value in options.items()]
        table.add_row(
            "\n".join(written),
            _bytes(plan.memory(plan.parallel.recompute)),
            str(plan.clips),
            _seconds(plan.seconds),
            f"{plan.seconds * plan.split.world / plan.clips:,.1f}",
        )
    return table


def communication_table(asked: "Plan") -> "Table":
    """What a process sends in a step."""
    from cosmos_ref.catalogue import headed

    table = headed("sent by a process in a step", "", "", "at GB/s", "takes")
    sent, seconds = asked.sent(), asked.seconds_sent()
    for kind, size in sent.items():
        if size:
            table.add_row(KINDS[kind], _bytes(size), f"{asked.link(kind):g}", _seconds(seconds[kind]))
    table.add_section()
    table.add_row("[bold]together[/]", _bytes(sum(sent.values())), "", _seconds(sum(seconds.values())))
    return table


def time_table(asked: "Plan") -> "Table":
    """Arithmetic, time and utilisation of a step."""
    from cosmos_ref.catalogue import flop, headed

    table = headed("arithmetic and time", "", "")
    times = "4 x forward: blocks are computed twice" if asked.parallel.recompute else "3 x forward"
    table.add_row("forward pass of a clip", flop(asked.forward_flops // asked.clips))
    table.add_row(f"a step, all processes ({times})", flop(asked.done_flops))
    if asked.seconds < SHORTEST:
        table.add_row("a step", "too short to predict: kernels take longer to start")
        return table
    table.add_row("a step, arithmetic alone", _seconds(asked.compute_seconds))
    table.add_row("a step, if all communication waits", _seconds(asked.most_seconds))
    table.add_row("[bold]a step, expected[/]", f"[bold]{_seconds(asked.seconds)}[/]")
    table.add_row("model FLOPs utilisation (MFU)", f"{asked.utilization(asked.seconds):.1%}")
    table.add_row("tokens a second, all processes", f"{asked.clips * asked.tokens / asked.seconds:,.0f}")
    table.add_row("clips a day, all processes", f"{asked.clips * 86_400 / asked.seconds:,.0f}")
    return table


def assumptions(asked: "Plan") -> str:
    """What is exact here and what is assumed."""
    machine = asked.machine
    narrow = "" if asked.number_bytes == 2 else "; this preset trains in float32, so give --peak for that"
    return (
        "Exact, for our modules: parameters, what is sent, FLOPs, activations (as a CPU keeps them; fused norms "
        "and compiled blocks keep less). Estimated: gathered blocks, working memory. Assumed: arithmetic runs at "
        f"{machine.efficiency:.0%} of {machine.peak:g} TFLOP/s{narrow}; weights, gradients and the ring travel "
        "meanwhile, heads and patches are waited for. Left out: loading, encoding, checkpoints, the optimizer's time."
    )


def _unit(size: float) -> tuple[float, str]:
    return next(((unit, name) for unit, name in ((1e9, "GB"), (1e6, "MB")) if size >= unit), (1e3, "kB"))


def _bytes(size: float) -> str:
    unit, name = _unit(size)
    return f"{size / unit:,.3g} {name}" if size < 999.5 * unit else f"{size / unit:,.0f} {name}"


def _seconds(seconds: float) -> str:
    return f"{seconds:,.1f} s" if seconds >= 1 else f"{seconds * 1000:,.3g} ms"


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"
