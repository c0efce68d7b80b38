"""What one sees while a training runs."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from cosmos_ref.config import Config
from cosmos_ref.training.sources import Domain

SMOOTHING = 0.95


@contextmanager
def progress_bar(config: Config, step: int, enabled: bool) -> Iterator[Callable[[Domain, Mapping[str, float]], None]]:
    """Within it, a function that shows the record of a step: smoothed errors of each domain, speed, and time left."""
    if not enabled:
        yield lambda domain, record: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = [
        TextColumn("training {task.fields[name]}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TextColumn("{task.fields[numbers]}"),
        TimeRemainingColumn(),
    ]
    smoothed: dict[str, float] = {}

    def smooth(name: str, value: float) -> None:
        smoothed[name] = SMOOTHING * smoothed.get(name, value) + (1 - SMOOTHING) * value

    with Progress(*columns) as bar:
        task = bar.add_task("", total=config.train.num_steps, completed=step, name=config.name, numbers="")

        def show(domain: Domain, record: Mapping[str, float]) -> None:
            smooth("loss", record["loss"])
            smooth(domain, record["weighted_error"])
            smooth("tokens", record["tokens_per_second"])
            parts = [f"loss {smoothed['loss']:6.3f}"]
            parts += [f"{name}s λL {smoothed[name]:.3f}" for name in ("video", "image") if name in smoothed]
            bar.update(task, advance=1, numbers="  ".join([*parts, f"{thousands(smoothed['tokens'])} tokens/s"]))

        yield show


def thousands(value: float) -> str:
    """A large number in three digits: 12.3k."""
    if not value > 0 or value < 1000:
        return f"{value:.0f}" if math.isfinite(value) else "?"
    power = min(3, int(math.log10(value) // 3))
    return f"{value / 1000**power:.3g}{'kMG'[power - 1]}"
