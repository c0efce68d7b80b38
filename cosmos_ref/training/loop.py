"""The training loop. A run that is killed and resumed ends in the very weights of an undisturbed one.

That holds on one machine with one number of threads: everything random is drawn from the seed and the number of the
sample, everything else is in the checkpoint, and torch's CPU kernels are asked to be deterministic.
"""

import dataclasses
import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cosmos_ref.checkpoint import (
    Checkpoint,
    list_checkpoints,
    load_strict,
    prune_checkpoints,
    read_checkpoint,
    save_checkpoint,
)
from cosmos_ref.conditioning.text import build_text_encoder
from cosmos_ref.config import Config
from cosmos_ref.errors import UserError
from cosmos_ref.model.denoiser import Denoiser
from cosmos_ref.model.initialization import build_denoiser, build_uncertainty, find_device, new_model
from cosmos_ref.model.uncertainty import Uncertainty
from cosmos_ref.tokenizer.haar_pca import HaarPCATokenizer
from cosmos_ref.training.checks import check_config, fitted_tokenizer
from cosmos_ref.training.data import Batch, draw_batch
from cosmos_ref.training.ema import PowerEMA
from cosmos_ref.training.log import TrainingLog
from cosmos_ref.training.optimizer import build_optimizer, learning_rate, load_optimizer, optimizer_tensors
from cosmos_ref.training.sources import Source
from cosmos_ref.training.step import training_loss

TOKENIZER_CLIPS = range(2**39, 2**39 + 256)
"""Numbers of the clips the tokenizer is fitted on; no training sample comes so far."""

GROUPS = ("model", "ema", "uncertainty", "tokenizer", "optimizer")
"""Groups of tensors that a run is resumed from."""

MAY_DIFFER = ("train.checkpoint_every", "train.keep_checkpoints", "sample.")
"""Fields that may change on resuming: they do not touch the weights."""


class TrainingDiverged(RuntimeError):
    """The loss or its gradient is not finite; the checkpoints so far are kept."""


@dataclasses.dataclass
class Run:
    """All that changes during a training, and the tokenizer, which does not."""

    denoiser: Denoiser
    uncertainty: Uncertainty
    optimizer: torch.optim.Optimizer
    ema: PowerEMA
    tokenizer: HaarPCATokenizer
    step: int = 0

    @property
    def modules(self) -> dict[str, torch.nn.Module]:
        """The modules that are trained."""
        return {"denoiser": self.denoiser, "uncertainty": self.uncertainty}

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        """The tensors that are trained."""
        return [parameter for module in self.modules.values() for parameter in module.parameters()]


def train(
    config: Config,
    out: str | Path,
    source: Source,
    *,
    resume: bool = False,
    device: str | torch.device = "cpu",
    progress: bool = True,
    t5_folder: str | Path | None = None,
) -> Path:
    """Train a preset and return its last checkpoint.

    Writes `checkpoints/step_*`, `train.jsonl`, `loss.png` and, if TensorBoard is installed, `tensorboard/`.

    Args:
        config: what to train, and how.
        out: the run folder.
        source: the clips.
        resume: go on from the newest checkpoint in `out`; from the start, where a run was stopped before its first.
        device: where to train.
        progress: show a progress bar.
        t5_folder: the text encoder, if the preset uses T5.

    Raises:
        UserError: the configuration cannot be trained, the device is not there, a caption is too long, `out` cannot be
            written, it holds checkpoints and `resume` is off, or `resume` is on and they come from another
            configuration or other data.
        TrainingDiverged: the loss or its gradient is not finite.
        KeyboardInterrupt: after Ctrl-C, when the step is finished and its checkpoint written.
    """
    check_config(config)
    out, device = Path(out), find_device(device)
    text_encoder = build_text_encoder(config.text, t5_folder)
    if source.captions:
        text_encoder.encode(source.captions)
    checkpoints = list_checkpoints(out)
    if checkpoints and not resume:
        raise UserError(f"{out} already holds checkpoints, up to {checkpoints[-1].name}: add --resume or change --out")
    _check_writable(out)

    with _deterministic(device), _interruptible() as interrupted:
        if checkpoints:
            run = resume_run(read_checkpoint(checkpoints[-1], GROUPS), config, source, device)
        else:
            if resume:
                _say(f"{out} holds no checkpoint yet: starting from the beginning")
            run = start_run(config, source, device)
        log = TrainingLog(out, run.step)
        train_config = config.train
        last = checkpoints[-1] if checkpoints else None
        with _progress_bar(config, run.step, progress) as show:
            while run.step < train_config.num_steps:
                started = time.perf_counter()
                first = run.step * train_config.batch_size
                samples = range(first, first + train_config.batch_size)
                batch = draw_batch(source, config, run.tokenizer, text_encoder, samples, device)
                record = advance(run, batch, config)
                rate = train_config.batch_size / (time.perf_counter() - started)
                log.write(run.step, **record, clips_per_second=rate)
                show(record)
                stop = interrupted() or run.step == train_config.num_steps
                if stop or run.step % train_config.checkpoint_every == 0:
                    last = save_run(run, config, source, out)
                    log.draw()
                if interrupted():
                    break
        log.close()
    assert last is not None
    if run.step < train_config.num_steps:
        message = f"stopped after step {run.step} of {train_config.num_steps}, saved as {last}: go on with --resume"
        _say(message)
        raise KeyboardInterrupt(message)
    return last


def advance(run: Run, batch: Batch, config: Config) -> dict[str, float]:
    """Do one update and return what is worth recording of it.

    Raises:
        TrainingDiverged: the loss or its gradient is not finite; nothing was changed.
    """
    rate = learning_rate(run.step, config.train)
    for group in run.optimizer.param_groups:
        group["lr"] = rate
    denoiser = in_bf16(run.denoiser, batch.x0.device) if config.train.precision == "bf16" else run.denoiser
    loss, weighted = training_loss(
        denoiser, run.uncertainty, batch.x0, batch.condition, batch.noise, batch.sigma, config.diffusion.sigma_data
    )
    run.optimizer.zero_grad()
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(run.parameters, config.train.max_grad_norm)
    record = {
        "loss": loss.item(),
        "weighted_error": weighted.mean().item(),
        "grad_norm": norm.item(),
        "lr": rate,
    }
    for name, value in record.items():
        if not math.isfinite(value):
            raise TrainingDiverged(
                f"step {run.step + 1}: {name} is {value}; the checkpoints so far are kept."
                " Try a lower --train.learning-rate or a longer --train.warmup-steps"
            )
    run.optimizer.step()
    run.ema.update(run.denoiser, run.step)
    run.step += 1
    return record


def in_bf16(denoiser: Denoiser, device: torch.device) -> Callable[..., Tensor]:
    """The denoiser with bfloat16 matrix products; its weights, its preconditioning and the loss stay float32."""

    def call(*args: Tensor, **condition: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            return denoiser(*args, **condition)

    return call


def start_run(config: Config, source: Source, device: torch.device) -> Run:
    """Fresh weights, and a tokenizer fitted on clips of the source."""
    tokenizer = HaarPCATokenizer.fit(fitted_tokenizer(config), source.clips(TOKENIZER_CLIPS).video).to(device)
    denoiser, uncertainty = new_model(config, torch.Generator().manual_seed(config.train.seed))
    denoiser, uncertainty = denoiser.to(device), uncertainty.to(device)
    optimizer = build_optimizer(denoiser, uncertainty, config.train)
    return Run(denoiser, uncertainty, optimizer, PowerEMA(denoiser, config.train.ema_stds[0]), tokenizer)


def resume_run(checkpoint: Checkpoint, config: Config, source: Source, device: torch.device) -> Run:
    """The run as it was when the checkpoint was written.

    Raises:
        UserError: the checkpoint is of another configuration or other data, or its tensors do not fit.
    """
    then, now = _fields(checkpoint.config), _fields(config)
    changed = [
        f"{name}: {then.get(name)!r}, now {now.get(name)!r}"
        for name in sorted(then.keys() | now.keys())
        if then.get(name) != now.get(name) and not name.startswith(MAY_DIFFER)
    ]
    if checkpoint.state["source"] != source.identity:
        changed.append(f"data: {checkpoint.state['source']}, now {source.identity}")
    if changed:
        listed = "\n  ".join(changed)
        raise UserError(
            f"cannot resume, the run was begun with other settings; give the old ones or another --out:\n  {listed}"
        )
    if (threads := checkpoint.state["threads"]) != torch.get_num_threads():
        _say(f"the run had {threads} thread(s), now {torch.get_num_threads()}: the same only up to rounding")
    denoiser, uncertainty = build_denoiser(config), build_uncertainty(config)
    tokenizer = HaarPCATokenizer(fitted_tokenizer(config))
    load_strict(build_denoiser(config), checkpoint.tensors["ema"], "the averaged denoiser")
    load_strict(denoiser, checkpoint.tensors["model"], "the denoiser")
    load_strict(uncertainty, checkpoint.tensors["uncertainty"], "u(sigma)")
    load_strict(tokenizer, checkpoint.tensors["tokenizer"], "the tokenizer")
    denoiser, uncertainty = denoiser.to(device), uncertainty.to(device)
    optimizer = build_optimizer(denoiser, uncertainty, config.train)
    ema = PowerEMA(denoiser, config.train.ema_stds[0])
    ema.weights = {name: tensor.to(device) for name, tensor in checkpoint.tensors["ema"].items()}
    run = Run(denoiser, uncertainty, optimizer, ema, tokenizer.to(device), checkpoint.state["step"])
    load_optimizer(optimizer, run.modules, checkpoint.tensors["optimizer"])
    return run


def save_run(run: Run, config: Config, source: Source, out: Path) -> Path:
    """Write the run's checkpoint and delete those that are too old."""
    tensors = {
        "model": run.denoiser.state_dict(),
        "ema": run.ema.weights,
        "uncertainty": run.uncertainty.state_dict(),
        "tokenizer": run.tokenizer.state_dict(),
        "optimizer": optimizer_tensors(run.optimizer, run.modules),
    }
    state = {"step": run.step, "source": source.identity, "threads": torch.get_num_threads()}
    folder = save_checkpoint(out / "checkpoints" / f"step_{run.step:07d}", config, tensors, state)
    prune_checkpoints(out, config.train.keep_checkpoints)
    return folder


def _fields(config: Config) -> dict[str, Any]:
    """All fields of a configuration by their dotted names."""

    def walk(value: Any, name: str) -> Iterator[tuple[str, Any]]:
        if isinstance(value, dict):
            for key, part in value.items():
                yield from walk(part, f"{name}.{key}" if name else key)
        else:
            yield name, value

    return dict(walk(dataclasses.asdict(config), ""))


def _check_writable(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"cannot write into {out} ({error.strerror}): give another --out") from error


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


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
def _interruptible() -> Iterator[Callable[[], bool]]:
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
        _say("finishing this step; press Ctrl-C again to stop at once")

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
