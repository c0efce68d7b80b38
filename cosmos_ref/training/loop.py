"""The training loop. A run that is killed and resumed ends in the very weights of an undisturbed one.

That holds on one machine with one number of threads: everything random is drawn from the seed and the number of the
sample, everything else is in the checkpoint, and torch's CPU kernels are asked to be deterministic.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, nullcontext
from functools import partial
from pathlib import Path
from typing import TypeVar
from zlib import crc32

import torch

from cosmos_ref.checkpoint import Checkpoint, list_checkpoints, read_checkpoint
from cosmos_ref.conditioning.text import TextEncoder, build_text_encoder
from cosmos_ref.config import Config
from cosmos_ref.errors import UserError
from cosmos_ref.training.ahead import read_ahead
from cosmos_ref.training.checks import check_config, check_fitted
from cosmos_ref.training.data import Batch, make_batch
from cosmos_ref.training.initial import load_initial
from cosmos_ref.training.layout import Layout, OneProcess
from cosmos_ref.training.log import TrainingLog
from cosmos_ref.training.metrics import memory_gib, peak_flops
from cosmos_ref.training.progress import progress_bar
from cosmos_ref.training.report import write_report
from cosmos_ref.training.run import (
    Run,
    Tokenizer,
    check_same,
    check_same_latents,
    resume_run,
    save_run,
    say,
    start_run,
)
from cosmos_ref.training.schedule import MicroBatch, check_shares, domain_of, plan_step, share_out
from cosmos_ref.training.session import check_writable, deterministic, interruptible
from cosmos_ref.training.sources import Clips, Domain, Source, domains_of
from cosmos_ref.training.update import advance

T = TypeVar("T")
READ_AHEAD = 2
"""Micro-batches whose clips are read before they are needed, at least those of a step."""


def train(
    config: Config,
    out: str | Path,
    source: Source,
    *,
    layout: Layout | None = None,
    initial: str | Path | None = None,
    tokenizer: Tokenizer | None = None,
    resume: bool = False,
    changed: bool | None = None,
    progress: bool = True,
    t5_folder: str | Path | None = None,
    peak_tflops: float | None = None,
) -> Path:
    """Train a preset and return its last checkpoint.

    Writes `checkpoints/step_*`, `train.jsonl`, `loss.png`, at the end `report.html`, and `tensorboard/` if TensorBoard
    is installed.

    Args:
        config: what to train, and how.
        out: the run folder.
        source: the clips.
        layout: the processes; None is this one alone, on the CPU.
        initial: checkpoint, or folder of a run, whose averaged weights to start from; None is fresh ones.
        tokenizer: the tokenizer, where it is not fitted to the clips and does not come with `initial`.
        resume: go on from the newest checkpoint in `out`; from the start, where a run was stopped before its first.
        changed: on resuming, whether to go on although the data or the numbers in `run.MAY_CHANGE` are others; None is
            no, and messages do not offer it.
        progress: show a progress bar.
        t5_folder: the text encoder, if the preset uses T5.
        peak_tflops: what a process's device can do at most, for MFU; None looks the GPU up.

    Raises:
        UserError: the configuration cannot be trained, or not on these processes; a caption is too long; `out` cannot
            be written, or holds checkpoints and `resume` is off, or `resume` is on and they come from another
            configuration or other data; there is no tokenizer, or `initial` does not fit.
        TrainingDiverged: the loss or its gradient is not finite.
        KeyboardInterrupt: after Ctrl-C, when the step is finished and its checkpoint written.
    """
    layout, out = layout or OneProcess(), Path(out)
    prepared = getattr(source, "tokenizer", None)  # the clips are latents already, and their text embeddings
    first, peak = layout.rank == 0, peak_flops(layout.device, config.train.precision, peak_tflops)
    shares = _shares(layout, config)

    def prepare() -> tuple[TextEncoder | None, list[Path], Checkpoint | None]:
        check_config(config)
        check_shares(config, {domain: size for domain, (_, size, _) in shares.items()})
        if not (list_checkpoints(out) or tokenizer or prepared or initial):
            check_fitted(config)
        text_encoder = None if prepared else build_text_encoder(config.text, t5_folder)
        if text_encoder and source.captions:
            text_encoder.encode(source.captions)
        checkpoints = list_checkpoints(out)
        if checkpoints and not resume:
            raise UserError(
                f"{out} already holds checkpoints, up to {checkpoints[-1].name}: add --resume or change --out"
            )
        check_writable(out)
        checkpoint = read_checkpoint(checkpoints[-1], ()) if checkpoints else None
        if checkpoint:
            for change in check_same(checkpoint, config, source, changed):
                if first:
                    say(f"changed at step {checkpoint.state['step']}: {change}")
        return text_encoder, checkpoints, checkpoint

    def see_the_same() -> None:
        step, clips = checkpoint.state["step"] if checkpoint else 0, crc32(source.identity.encode())
        mine = torch.tensor([step, clips], dtype=torch.float64, device=layout.device)  # its sums are exact
        same_step, same_clips = (layout.mean(mine) == mine).tolist()
        if not same_step:
            raise UserError(f"not all processes see the same checkpoints in {out}: they need a file system in common")
        if not same_clips:
            raise UserError(f"not all processes see the same clips, here {source.identity}: give all the same --data")

    def begin() -> Run:
        if checkpoint:
            run = resume_run(checkpoints[-1], checkpoint, config, layout)
            if prepared:
                check_same_latents(prepared, run.tokenizer.state_dict(), checkpoints[-1])
            return run
        if resume and first:
            say(f"{out} holds no checkpoint yet: starting from the beginning")
        weights = None if initial is None else load_initial(config, initial)
        return start_run(config, source, layout, initial=weights, tokenizer=tokenizer or prepared)

    def parts(step: int) -> list[MicroBatch]:
        return share_out(plan_step(config, step), *shares[domain_of(step, config.data.image_share)])

    def read_parts(first_step: int) -> Iterator[Clips]:
        for step in range(first_step, config.train.num_steps):
            for part in parts(step):
                yield source.clips(part.samples, part.domain, source.bucket(part.number, part.domain))

    def next_batches(clips: Iterator[Clips]) -> tuple[list[Batch], float]:
        """The micro-batches of this step, and the seconds spent waiting for clips."""
        batches, waited = [], 0.0
        for part in parts(run.step):
            started = time.perf_counter()
            read = next(clips)
            waited += time.perf_counter() - started
            batches.append(
                make_batch(
                    read,
                    config,
                    run.tokenizer,
                    text_encoder,
                    part.samples,
                    layout.device,
                    domain=part.domain,
                    images=run.images,
                )
            )
        return batches, waited

    text_encoder, checkpoints, checkpoint = together(layout, prepare)
    together(layout, see_the_same)
    with deterministic(layout.device), interruptible(quiet=not first) as interrupted:
        run = together(layout, begin)
        log = TrainingLog(out, run.step) if first else None
        last = checkpoints[-1] if checkpoints else None
        ahead = max(READ_AHEAD, len(parts(run.step)))
        with (
            closing(log) if log else nullcontext(),
            progress_bar(config, run.step, progress and first) as show,
            read_ahead(read_parts(run.step), ahead) as clips,
        ):
            while run.step < config.train.num_steps:
                started = time.perf_counter()
                plan = plan_step(config, run.step)
                batches, waited = together(layout, partial(next_batches, clips))
                with _only(layout, plan[0].domain):
                    record = advance(run, batches, config, layout)
                stop = _any(layout, interrupted())
                record = _per_second(record, plan, time.perf_counter() - started, waited)
                record["memory_gib"] = memory_gib(layout.device)
                if peak:
                    record["mfu"] = record["tflops"] * 1e12 / (peak * layout.world)
                if log:
                    log.write(run.step, domain=plan[0].domain, **record)
                show(plan[0].domain, record)
                if stop or run.step == config.train.num_steps or run.step % config.train.checkpoint_every == 0:
                    last = save_run(run, config, source, out, layout)
                    if log:
                        log.draw()
                if stop:
                    break
        if log and log.records:
            write_report(config, log.records, out / "report.html")
    assert last is not None
    if run.step < config.train.num_steps:
        message = f"stopped after step {run.step} of {config.train.num_steps}, saved as {last}: go on with --resume"
        if first:
            say(message)
        raise KeyboardInterrupt(message)
    return last


def _per_second(record: dict[str, float], plan: list[MicroBatch], seconds: float, waited: float) -> dict[str, float]:
    """The record of a step with what it cost as speeds, of all processes together."""
    return {name: value for name, value in record.items() if name not in ("tokens", "flops")} | {
        "seconds": seconds,
        "clips_per_second": sum(len(part.samples) for part in plan) / seconds,
        "tokens_per_second": record["tokens"] / seconds,
        "tflops": record["flops"] / seconds / 1e12,
        "data_wait": waited / seconds,
    }


def together(layout: Layout, work: Callable[[], T]) -> T:
    """Do something in all processes; if it fails in one, it fails in all, and none is left waiting."""
    try:
        result = work()
    except Exception as error:
        layout.agree(error)
        raise
    layout.agree(None)
    return result


def _shares(layout: Layout, config: Config) -> dict[Domain, tuple[int, int, int]]:
    """For each domain what `share_out` asks: which of the groups that see different clips, how many, how split."""
    shares: dict[Domain, tuple[int, int, int]] = {"video": (layout.data_rank, layout.data_size, 1)}
    if config.data.image_share:
        split = layout.world // layout.data_size
        with layout.images():
            shares["image"] = layout.data_rank, layout.data_size, split
    return {domain: shares[domain] for domain in domains_of(config.data)}


def _only(layout: Layout, domain: Domain) -> AbstractContextManager[None]:
    return layout.images() if domain == "image" else nullcontext()


def _any(layout: Layout, flag: bool) -> bool:
    """Whether it is so in any process: all stop after the same step."""
    return layout.mean(torch.tensor(float(flag), device=layout.device)).item() > 0
