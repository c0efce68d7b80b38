"""The training loop. A run that is killed and resumed ends in the very weights of an undisturbed one.

That holds on one machine with one number of threads: everything random is drawn from the seed and the number of the
sample, everything else is in the checkpoint, and torch's CPU kernels are asked to be deterministic.
"""

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch

from cosmos_ref.checkpoint import Checkpoint, list_checkpoints, read_checkpoint
from cosmos_ref.conditioning.text import TextEncoder, build_text_encoder
from cosmos_ref.config import Config
from cosmos_ref.errors import UserError
from cosmos_ref.training.checks import check_config
from cosmos_ref.training.data import Batch, make_batch
from cosmos_ref.training.initial import load_initial
from cosmos_ref.training.layout import Layout, OneProcess
from cosmos_ref.training.log import TrainingLog
from cosmos_ref.training.run import Run, Tokenizer, resume_run, save_run, say, start_run
from cosmos_ref.training.schedule import check_shares, domain_of, plan_step, share_out
from cosmos_ref.training.sources import Domain, Source
from cosmos_ref.training.update import advance

T = TypeVar("T")


def train(
    config: Config,
    out: str | Path,
    source: Source,
    *,
    layout: Layout | None = None,
    initial: str | Path | None = None,
    tokenizer: Tokenizer | None = None,
    resume: bool = False,
    progress: bool = True,
    t5_folder: str | Path | None = None,
) -> Path:
    """Train a preset and return its last checkpoint.

    Writes `checkpoints/step_*`, `train.jsonl`, `loss.png` and, if TensorBoard is installed, `tensorboard/`.

    Args:
        config: what to train, and how.
        out: the run folder.
        source: the clips.
        layout: the processes; None is this one alone, on the CPU.
        initial: checkpoint, or folder of a run, whose averaged weights to start from; None is fresh ones.
        tokenizer: the tokenizer, where it is not fitted to the clips and does not come with `initial`.
        resume: go on from the newest checkpoint in `out`; from the start, where a run was stopped before its first.
        progress: show a progress bar.
        t5_folder: the text encoder, if the preset uses T5.

    Raises:
        UserError: the configuration cannot be trained, or not on these processes; a caption is too long; `out` cannot
            be written, or holds checkpoints and `resume` is off, or `resume` is on and they come from another
            configuration or other data; there is no tokenizer, or `initial` does not fit.
        TrainingDiverged: the loss or its gradient is not finite.
        KeyboardInterrupt: after Ctrl-C, when the step is finished and its checkpoint written.
    """
    layout, out = layout or OneProcess(), Path(out)
    prepared = getattr(source, "tokenizer", None)  # the clips are latents already, and their text embeddings
    first = layout.rank == 0
    shares = _shares(layout, config)

    def prepare() -> tuple[TextEncoder | None, list[Path], Checkpoint | None]:
        check_config(config)
        check_shares(config, {domain: size for domain, (_, size) in shares.items()})
        text_encoder = None if prepared else build_text_encoder(config.text, t5_folder)
        if text_encoder and source.captions:
            text_encoder.encode(source.captions)
        checkpoints = list_checkpoints(out)
        if checkpoints and not resume:
            raise UserError(
                f"{out} already holds checkpoints, up to {checkpoints[-1].name}: add --resume or change --out"
            )
        _check_writable(out)
        checkpoint = read_checkpoint(checkpoints[-1], ()) if checkpoints else None
        return text_encoder, checkpoints, checkpoint

    def see_the_same() -> None:
        step = checkpoint.state["step"] if checkpoint else 0
        if layout.mean(torch.tensor(float(step), device=layout.device)).item() != step:
            raise UserError(f"not all processes see the same checkpoints in {out}: they need a file system in common")

    def begin() -> Run:
        if checkpoint:
            return resume_run(checkpoints[-1], checkpoint, config, source, layout)
        if resume and first:
            say(f"{out} holds no checkpoint yet: starting from the beginning")
        weights = None if initial is None else load_initial(config, initial)
        return start_run(config, source, layout, initial=weights, tokenizer=tokenizer or prepared)

    def next_batches(domain: Domain) -> list[Batch]:
        mine = share_out(plan_step(config, run.step), *shares[domain])
        return [
            make_batch(
                source.clips(part.samples, domain, source.bucket(part.number, domain)),
                config,
                run.tokenizer,
                text_encoder,
                part.samples,
                layout.device,
                domain=domain,
                images=run.images,
            )
            for part in mine
        ]

    text_encoder, checkpoints, checkpoint = together(layout, prepare)
    together(layout, see_the_same)
    with _deterministic(layout.device), _interruptible(quiet=not first) as interrupted:
        run = together(layout, begin)
        log = TrainingLog(out, run.step) if first else None
        last = checkpoints[-1] if checkpoints else None
        with _progress_bar(config, run.step, progress and first) as show:
            while run.step < config.train.num_steps:
                started = time.perf_counter()
                domain = domain_of(run.step, config.data.image_share)
                batches = together(layout, partial(next_batches, domain))
                with _only(layout, domain):
                    record = advance(run, batches, config, layout)
                stop = _any(layout, interrupted())
                rate = config.train.batch_size / (time.perf_counter() - started)
                if log:
                    log.write(run.step, **record, clips_per_second=rate)
                show(record)
                if stop or run.step == config.train.num_steps or run.step % config.train.checkpoint_every == 0:
                    last = save_run(run, config, source, out, layout)
                    if log:
                        log.draw()
                if stop:
                    break
        if log:
            log.close()
    assert last is not None
    if run.step < config.train.num_steps:
        message = f"stopped after step {run.step} of {config.train.num_steps}, saved as {last}: go on with --resume"
        if first:
            say(message)
        raise KeyboardInterrupt(message)
    return last


def together(layout: Layout, work: Callable[[], T]) -> T:
    """Do something in all processes; if it fails in one, it fails in all, and none is left waiting."""
    try:
        result = work()
    except Exception as error:
        layout.agree(error)
        raise
    layout.agree(None)
    return result


def _shares(layout: Layout, config: Config) -> dict[Domain, tuple[int, int]]:
    """For each domain the number of this process among those that see different clips, and how many there are."""
    shares: dict[Domain, tuple[int, int]] = {"video": (layout.data_rank, layout.data_size)}
    if config.data.image_share:
        with layout.images():
            shares["image"] = layout.data_rank, layout.data_size
    return shares


def _only(layout: Layout, domain: Domain) -> AbstractContextManager[None]:
    return layout.images() if domain == "image" else nullcontext()


def _any(layout: Layout, flag: bool) -> bool:
    """Whether it is so in any process: all stop after the same step."""
    return layout.mean(torch.tensor(float(flag), device=layout.device)).item() > 0


def _check_writable(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / f".writable.{threading.get_native_id()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"cannot write into {out} ({error.strerror}): give another --out") from error


@contextmanager
def _deterministic(device: torch.device) -> Iterator[None]:
    """On the CPU, sums that run in parallel are added in a fixed order."""
    before = torch.are_deterministic_algorithms_enabled()
    if device.type == "cpu":
        torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


@contextmanager
def _interruptible(quiet: bool) -> Iterator[Callable[[], bool]]:
    """Within it Ctrl-C only sets a flag, so that a step and a checkpoint are finished; the second one stops at once."""
    if threading.current_thread() is not threading.main_thread():  # signals reach the main thread only
        yield lambda: False
        return
    before = signal.getsignal(signal.SIGINT)
    caught = False

    def handle(*_: Any) -> None:
        nonlocal caught
        caught = True
        signal.signal(signal.SIGINT, before)
        if not quiet:
            say("finishing this step; press Ctrl-C again to stop at once")

    signal.signal(signal.SIGINT, handle)
    try:
        yield lambda: caught
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _progress_bar(config: Config, step: int, enabled: bool) -> Iterator[Callable[[dict[str, float]], None]]:
    if not enabled:
        yield lambda record: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = [
        TextColumn("training {task.fields[name]}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:6.3f}  λL {task.fields[error]:.3f}  {task.fields[speed]:.1f} steps/s"),
        TimeRemainingColumn(),
    ]
    started, done = time.perf_counter(), 0
    with Progress(*columns) as bar:
        task = bar.add_task(
            "", total=config.train.num_steps, completed=step, name=config.name, loss=math.nan, error=math.nan, speed=0.0
        )

        def show(record: dict[str, float]) -> None:
            nonlocal done
            done += 1
            smoothed = bar.tasks[task].fields
            for name, key in (("loss", "loss"), ("error", "weighted_error")):
                value = record[key] if math.isnan(smoothed[name]) else 0.95 * smoothed[name] + 0.05 * record[key]
                smoothed[name] = value
            bar.update(task, advance=1, speed=done / (time.perf_counter() - started))

        yield show
