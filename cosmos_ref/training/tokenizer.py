"""Training of a tokenizer, in the paper's two stages: pixels and features first, then texture and motion too.

Batches of videos and of images alternate. What is kept is the average of the weights, with the statistics that make its
latents zero-mean and unit-variance: every checkpoint holds a tokenizer ready for use. As in `loop.py`, a run that is
killed and resumed ends in the very weights of an undisturbed one.
"""

import dataclasses
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from cosmos_ref.checkpoint import (
    Checkpoint,
    find_checkpoint,
    list_checkpoints,
    load_strict,
    prune_checkpoints,
    read_checkpoint,
    save_checkpoint,
)
from cosmos_ref.config import (
    PRESETS,
    TOKENIZERS,
    ClipConfig,
    Config,
    ConvTokenizerConfig,
    DataConfig,
    HaarPCAConfig,
    TokenizerConfig,
)
from cosmos_ref.equations.causal import check_side, latent_length
from cosmos_ref.equations.metrics import psnr
from cosmos_ref.equations.reconstruction import scheduled_weight
from cosmos_ref.equations.schedules import cooling_down, warmup
from cosmos_ref.errors import UserError
from cosmos_ref.model.initialization import find_device
from cosmos_ref.shapes import Video
from cosmos_ref.tokenizer.build import build_tokenizer
from cosmos_ref.tokenizer.continuous import ContinuousTokenizer
from cosmos_ref.tokenizer.discrete import DiscreteTokenizer
from cosmos_ref.tokenizer.haar_pca import HaarPCATokenizer
from cosmos_ref.tokenizer.losses import LossWeights, TokenizerLoss, default_loss
from cosmos_ref.tokenizer.statistics import RunningMoments
from cosmos_ref.training.ema import PowerEMA
from cosmos_ref.training.log import TrainingLog
from cosmos_ref.training.optimizer import WARMUP_START, load_optimizer, optimizer_tensors
from cosmos_ref.training.run import say
from cosmos_ref.training.schedule import domain_of, image_steps
from cosmos_ref.training.session import check_writable, deterministic, interruptible
from cosmos_ref.training.sources import MAX_SEED, Domain, Source
from cosmos_ref.training.tokenizer_pictures import draw_losses, draw_reconstructions
from cosmos_ref.training.tokenizer_start import ConvTokenizer, begin_as_wavelets, new_tokenizer, wavelet_rules
from cosmos_ref.training.update import TrainingDiverged

STATISTICS_CLIPS = range(2**39, 2**39 + 64)
"""Numbers of the clips that latents are standardised on; no training sample comes so far."""
HELD_OUT_CLIPS = range(2**39 + 256, 2**39 + 320)
"""Numbers of the clips that quality is measured on."""
MIN_STD = 1e-4
"""Least standard deviation that a channel of latents is divided by: one that says nothing stays so."""
GROUPS = ("tokenizer", "last", "optimizer")
"""Groups of a checkpoint: the averaged weights with statistics, ready for use; the last weights; AdamW's moments."""
MAY_DIFFER = ("checkpoint_every", "keep_checkpoints")
"""Numbers that may change on resuming: they do not touch the weights."""


@dataclasses.dataclass(frozen=True)
class TokenizerTrainConfig:
    """How a tokenizer is trained. The weights of the losses are pairs: in the first stage, and in the second."""

    start: Literal["random", "wavelets"] = "random"
    """Weights to begin with; `wavelets`, for networks without strides, is the best linear tokenizer of the clips."""
    num_steps: int = 400
    stage_2: int = 340
    """Update, counted from 0, that the second stage begins with."""
    batch_size: int = 4
    """Videos in an update; of images, as many latent frames as these have."""
    image_share: float = 0.2
    """Share of the updates that see images."""
    perceptual: tuple[float, float] = (0.1, 0.073)
    gram: tuple[float, float] = (0.0, 0.062)
    flow: tuple[float, float] = (0.0, 0.01)
    learning_rate: float = 5e-4
    warmup_steps: int = 30
    cooling_steps: int = 200
    """Last updates, over which the learning rate falls to zero."""
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.5, 0.999)
    eps: float = 1e-8
    max_grad_norm: float = 1.0
    ema_std: float = 0.05
    """Width of the weights' average, relative to the length of the training. NVIDIA's average has a fixed 0.9999, which
    after a thousand updates would still be nine tenths of the first weights."""
    seed: int = 0
    checkpoint_every: int = 200
    keep_checkpoints: int = 2


@dataclasses.dataclass(frozen=True)
class TokenizerTraining:
    """A tokenizer, the clips it is trained on, and how."""

    name: str
    network: ConvTokenizerConfig
    clip: ClipConfig = dataclasses.field(default_factory=ClipConfig)
    world: str = "mixed"
    """Kind of simulated scene, where there are no files."""
    train: TokenizerTrainConfig = TokenizerTrainConfig()

    @property
    def config(self) -> Config:
        """What a checkpoint of it says that it is; the model is one that could be trained on its latents."""
        base = PRESETS["tiny"]
        return dataclasses.replace(
            base,
            name=self.name,
            model=dataclasses.replace(base.model, channels=self.network.channels),
            tokenizer=self.network,
            clip=self.clip,
            data=DataConfig(world=self.world),
        )


_TINY = ConvTokenizerConfig(strides=(), encoder_widths=(48, 48), decoder_widths=(48, 48), num_blocks=1, latent_frames=3)
_SMALL = TokenizerTrainConfig(
    start="wavelets",
    num_steps=1200,
    stage_2=1000,
    learning_rate=1e-3,
    warmup_steps=50,
    cooling_steps=1100,
    betas=(0.9, 0.99),
)
_LARGE = TokenizerTrainConfig(
    num_steps=1_000_000,
    stage_2=500_000,
    learning_rate=1e-4,
    warmup_steps=5000,
    cooling_steps=0,
    checkpoint_every=1000,
)

TOKENIZER_TRAININGS: dict[str, TokenizerTraining] = {
    "CV-tiny": TokenizerTraining("CV-tiny", _TINY, train=_SMALL),
    "DV-tiny": TokenizerTraining(
        "DV-tiny",
        dataclasses.replace(_TINY, fsq_levels=(8, 8, 8, 5, 5, 5)),
        train=dataclasses.replace(_SMALL, num_steps=600, stage_2=500, cooling_steps=550, learning_rate=5e-4),
    ),
    **{
        name: TokenizerTraining(name, network, ClipConfig(121 if name == "CV8x8x8" else 49, 256, 256), train=_LARGE)
        for name, network in TOKENIZERS.items()
    },
}
"""What `cosmos-ref train-tokenizer` knows by name: two of ours that train in minutes, and NVIDIA's, on crops of 256."""


@dataclasses.dataclass
class TokenizerRun:
    """All that changes during the training."""

    tokenizer: ConvTokenizer
    optimizer: torch.optim.Optimizer
    ema: PowerEMA
    step: int = 0
    before: dict[str, float] = dataclasses.field(default_factory=dict)
    """Quality before the first update."""


def train_tokenizer(
    training: TokenizerTraining,
    out: str | Path,
    source: Source,
    *,
    loss: TokenizerLoss | None = None,
    resume: bool = False,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> Path:
    """Train a tokenizer and return its last checkpoint.

    Writes `checkpoints/step_*`, `train.jsonl`, `loss.png`, `reconstructions.png` and, if TensorBoard is installed,
    `tensorboard/`. `state.json` of a checkpoint holds its quality and that before the first update.

    Args:
        training: what to train, and how.
        out: the run folder.
        source: the clips; also images, if there are updates that see some.
        loss: the loss with its networks; None is `default_loss()`. It is not kept: resume with the same.
        resume: go on from the newest checkpoint in `out`; from the start, where a run was stopped before its first.
        device: where to train.
        progress: show a progress bar.

    Raises:
        UserError: the numbers cannot be trained with, the device is not there, `out` cannot be written, it holds
            checkpoints and `resume` is off, or `resume` is on and they come from another training.
        TrainingDiverged: the loss or its gradient is not finite.
        KeyboardInterrupt: after Ctrl-C, when the step is finished and its checkpoint written.
    """
    check_training(training)
    out, device, train = Path(out), find_device(device), training.train
    loss = loss or default_loss()
    checkpoints = list_checkpoints(out)
    if checkpoints and not resume:
        raise UserError(f"{out} already holds checkpoints, up to {checkpoints[-1].name}: add --resume or change --out")
    check_writable(out)

    with deterministic(device), interruptible(quiet=False) as interrupted:
        if checkpoints:
            run = resume_run(read_checkpoint(checkpoints[-1], GROUPS), training, source, device)
        else:
            if resume:
                say(f"{out} holds no checkpoint yet: starting from the beginning")
            run = start_run(training, source, device)
            run.before = quality(run.tokenizer, source, train.batch_size)
        log = TrainingLog(out, run.step)
        last = checkpoints[-1] if checkpoints else None
        with _progress_bar(training, run.step, progress) as show:
            while run.step < train.num_steps:
                started = time.perf_counter()
                record = advance(run, draw_videos(training, source, run.step).to(device), train, loss)
                log.write(run.step, **record, clips_per_second=train.batch_size / (time.perf_counter() - started))
                show(record)
                stop = interrupted()
                if stop or run.step == train.num_steps or run.step % train.checkpoint_every == 0:
                    last = save_run(run, training, source, out)
                    draw_losses(log.records, train.stage_2, out / "loss.png")
                if stop:
                    break
        log.close()
    assert last is not None
    if run.step < train.num_steps:
        message = f"stopped after step {run.step} of {train.num_steps}, saved as {last}: go on with --resume"
        say(message)
        raise KeyboardInterrupt(message)
    return last


def load_tokenizer(path: str | Path) -> tuple[TokenizerConfig, HaarPCATokenizer | ConvTokenizer]:
    """The tokenizer of a checkpoint or of the newest checkpoint of a run, ready for use, with its numbers.

    Any checkpoint of ours has one: also of the training of a model.

    Raises:
        UserError: there is no checkpoint, it is damaged, or it holds no tokenizer.
    """
    folder = find_checkpoint(path)
    if "tokenizer" not in read_checkpoint(folder, names=()).groups:
        raise UserError(f"{folder} holds no tokenizer: give the folder of a run of `cosmos-ref train-tokenizer`")
    checkpoint = read_checkpoint(folder, ["tokenizer"])
    with torch.device("meta"):
        tokenizer = build_tokenizer(checkpoint.config.tokenizer)
    load_strict(tokenizer, checkpoint.tensors["tokenizer"], f"the tokenizer in {folder}")
    return checkpoint.config.tokenizer, tokenizer.eval().requires_grad_(False)


def check_training(training: TokenizerTraining) -> None:
    """Check that the tokenizer takes the clips and that every number can be trained with.

    Raises:
        UserError: they do not; all that is wrong is listed.
    """
    train, clip, network = training.train, training.clip, training.network
    frames = latent_length(clip.frames, network.temporal_factor)
    check_side("height", clip.height, network.spatial_factor)
    check_side("width", clip.width, network.spatial_factor)
    above_zero = ("num_steps", "batch_size", "learning_rate", "max_grad_norm", "checkpoint_every", "keep_checkpoints")
    not_below = ("stage_2", "warmup_steps", "cooling_steps", "weight_decay", "eps")
    rules = [
        *((0 < getattr(train, name) < math.inf, f"train.{name} must be above 0") for name in above_zero),
        *((0 <= getattr(train, name) < math.inf, f"train.{name} must not be negative") for name in not_below),
        *(
            (all(0 <= weight < math.inf for weight in getattr(train, name)), f"train.{name} must not be negative")
            for name in ("perceptual", "gram", "flow")
        ),
        (all(0 <= beta < 1 for beta in train.betas), "train.betas must both be from 0 to below 1"),
        (0 <= train.image_share <= 1, "train.image_share must be from 0 to 1"),
        (0 < train.ema_std < 0.25, "train.ema_std must be between 0 and 0.25"),
        (0 <= train.seed < MAX_SEED, f"train.seed must be from 0 to {MAX_SEED - 1}"),
        *(wavelet_rules(network) if train.start == "wavelets" else ()),
        (frames <= network.latent_frames, f"network.latent_frames must be at least {frames}, of a clip of this length"),
    ]
    wrong = [rule for holds, rule in rules if not holds]
    if wrong:
        raise UserError("this tokenizer cannot be trained:\n  " + "\n  ".join(wrong))


def build_optimizer(tokenizer: nn.Module, train: TokenizerTrainConfig) -> torch.optim.AdamW:
    """AdamW. Kernels decay; norms and biases do not."""
    decayed = [parameter for parameter in tokenizer.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in tokenizer.parameters() if parameter.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": train.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=train.learning_rate, betas=train.betas, eps=train.eps)


def start_run(training: TokenizerTraining, source: Source, device: torch.device) -> TokenizerRun:
    """Fresh weights: random ones, or those of the best linear tokenizer of clips of the source."""
    train = training.train
    tokenizer = new_tokenizer(training.network, torch.Generator().manual_seed(train.seed))
    if train.start == "wavelets":
        begin_as_wavelets(tokenizer, training.network, videos_of(source, STATISTICS_CLIPS))
    tokenizer = tokenizer.to(device)
    return TokenizerRun(tokenizer, build_optimizer(tokenizer, train), PowerEMA(tokenizer, train.ema_std))


def draw_videos(training: TokenizerTraining, source: Source, step: int) -> Video:
    """The clips of update number `step`: videos, or images, of which there are as many latent frames."""
    train, network = training.train, training.network
    domain: Domain = domain_of(step, train.image_share)
    images = image_steps(step, train.image_share)
    size, number = train.batch_size, step - images
    if domain == "image":
        size, number = size * latent_length(training.clip.frames, network.temporal_factor), images
    return videos_of(source, range(number * size, (number + 1) * size), domain)


def videos_of(source: Source, samples: Sequence[int], domain: Domain = "video") -> Video:
    """The pixels of these samples.

    Raises:
        UserError: the source has latents only.
    """
    video = source.clips(samples, domain).video
    if video is None:
        raise UserError("these clips are latents already, and a tokenizer is trained on pixels: give videos by --data")
    return video


def loss_weights(step: int, train: TokenizerTrainConfig) -> LossWeights:
    """How much each part of the loss counts in update number `step`, counted from 0."""
    pairs = {"perceptual": train.perceptual, "gram": train.gram, "flow": train.flow}
    weights = {name: scheduled_weight(step, (train.stage_2,), pair) for name, pair in pairs.items()}
    return LossWeights(absolute=1.0, **weights)


def learning_rate(step: int, train: TokenizerTrainConfig) -> float:
    """Learning rate of update number `step`, counted from 0: warm-up, then constant, then down to zero."""
    factor = warmup(step, train.warmup_steps, WARMUP_START)
    if train.cooling_steps:
        factor *= cooling_down(step, max(0, train.num_steps - train.cooling_steps), train.num_steps)
    return train.learning_rate * factor


def unclamped_reconstruction(tokenizer: ConvTokenizer, video: Video) -> Video:
    """What the decoder makes of the encoder's answer, with gradients also where a pixel leaves [-1, 1].

    `decode` would cut it off there, and what was cut off could not learn to come back. Standardised or not, a latent is
    the same to the decoder, so statistics do not enter.
    """
    if isinstance(tokenizer, DiscreteTokenizer):
        latents = tokenizer.quantize(video)
    else:
        latents = tokenizer.quant_conv(tokenizer.encoder(video))
    return tokenizer.decoder(tokenizer.post_quant_conv(latents))


def advance(run: TokenizerRun, video: Video, train: TokenizerTrainConfig, loss: TokenizerLoss) -> dict[str, float]:
    """Do one update and return what is worth recording of it.

    Raises:
        TrainingDiverged: the loss or its gradient is not finite; nothing was changed.
    """
    rate = learning_rate(run.step, train)
    for group in run.optimizer.param_groups:
        group["lr"] = rate
    total, parts = loss(unclamped_reconstruction(run.tokenizer, video), video, loss_weights(run.step, train))
    run.optimizer.zero_grad()
    total.backward()
    norm = nn.utils.clip_grad_norm_(run.tokenizer.parameters(), train.max_grad_norm)
    record = {"loss": total.item(), **{name: part.item() for name, part in parts.items()}}
    record |= {"grad_norm": norm.item(), "lr": rate, "frames": video.shape[2]}
    for name, value in record.items():
        if not math.isfinite(value):
            raise TrainingDiverged(
                f"step {run.step + 1}: {name} is {value}; the checkpoints so far are kept."
                " Try a lower --train.learning-rate or a longer --train.warmup-steps"
            )
    run.optimizer.step()
    run.ema.update(run.tokenizer, run.step)
    run.step += 1
    return record


@torch.no_grad()
def averaged_tokenizer(run: TokenizerRun, network: ConvTokenizerConfig, source: Source, chunk: int) -> ConvTokenizer:
    """The tokenizer of the averaged weights, its latents standardised on clips of the source, `chunk` at a time."""
    with torch.device("meta"):
        tokenizer = build_tokenizer(network)
    assert isinstance(tokenizer, ConvTokenizer)
    load_strict(tokenizer, {name: tensor.clone() for name, tensor in run.ema.weights.items()}, "the averaged tokenizer")
    tokenizer.eval().requires_grad_(False)
    if isinstance(tokenizer, ContinuousTokenizer):
        moments = RunningMoments()
        for samples in _chunks(STATISTICS_CLIPS, chunk):
            moments.update(tokenizer.encode(videos_of(source, samples).to(tokenizer.mean)), over=(0, 3, 4))
        later = torch.arange(network.latent_frames).clamp(max=moments.mean.shape[1] - 1)
        tokenizer.mean.copy_(moments.mean[:, later])
        tokenizer.std.copy_(moments.std[:, later].clamp(min=MIN_STD))
    return tokenizer


@torch.no_grad()
def quality(tokenizer: HaarPCATokenizer | ConvTokenizer, source: Source, chunk: int) -> dict[str, float]:
    """How good a tokenizer is on clips that no training sees, if the source has such: those of the world are.

    `psnr` is the mean over the clips, in decibels. Of a discrete tokenizer also `codes`, how many different ones occur,
    and `perplexity`, how many equally frequent ones would say as much.
    """
    device = next(tokenizer.buffers(), next(tokenizer.parameters(), torch.empty(0))).device
    ratios, indices = [], []
    for samples in _chunks(HELD_OUT_CLIPS, chunk):
        video = videos_of(source, samples).to(device)
        latents = tokenizer.encode(video)
        back = tokenizer.decode(latents)
        ratios += [psnr(ours, theirs, peak=2.0).item() for ours, theirs in zip(back, video, strict=True)]
        indices.append(latents.flatten())
    found = {"psnr": sum(ratios) / len(ratios)}
    if isinstance(tokenizer, DiscreteTokenizer):
        _, counts = torch.cat(indices).unique(return_counts=True)
        shares = counts.double() / counts.sum()
        found |= {"codes": float(len(counts)), "perplexity": (-(shares * shares.log()).sum()).exp().item()}
    return found


@torch.no_grad()
def baselines(training: TokenizerTraining, source: Source) -> dict[str, float]:
    """PSNR of the mean colour, and of the training-free tokenizer that gives as many numbers, on the same clips."""
    network = training.network
    fitted_on, videos = videos_of(source, STATISTICS_CLIPS), videos_of(source, HELD_OUT_CLIPS)
    mean = fitted_on.mean(dim=(0, 2, 3, 4), keepdim=True)
    colour = sum(psnr(video, mean[0].expand_as(video), peak=2.0).item() for video in videos) / len(videos)
    found = {"mean colour": colour}
    space = round(math.log2(network.spatial_factor))
    levels = (round(math.log2(network.temporal_factor)), space, space)
    if not network.fsq_levels and network.channels <= 3 * 2 ** sum(levels):
        haar = HaarPCATokenizer.fit(HaarPCAConfig(levels, network.channels), fitted_on)
        found["Haar-PCA"] = quality(haar, source, training.train.batch_size)["psnr"]
    return found


def save_run(run: TokenizerRun, training: TokenizerTraining, source: Source, out: Path) -> Path:
    """Write the run's checkpoint and a picture of what it does, and delete checkpoints that are too old."""
    train = training.train
    tokenizer = averaged_tokenizer(run, training.network, source, train.batch_size)
    tensors = {
        "tokenizer": tokenizer.state_dict(),
        "last": run.tokenizer.state_dict(),
        "optimizer": optimizer_tensors(run.optimizer, {"tokenizer": run.tokenizer}),
    }
    state = {
        "step": run.step,
        "source": source.identity,
        "threads": torch.get_num_threads(),
        "training": dataclasses.asdict(train),
        "before": run.before,
        "now": quality(tokenizer, source, train.batch_size),
    }
    folder = save_checkpoint(out / "checkpoints" / f"step_{run.step:07d}", training.config, tensors, state)
    prune_checkpoints(out, train.keep_checkpoints)
    draw_reconstructions(tokenizer, videos_of(source, HELD_OUT_CLIPS[:4]), out / "reconstructions.png")
    return folder


def resume_run(
    checkpoint: Checkpoint, training: TokenizerTraining, source: Source, device: torch.device
) -> TokenizerRun:
    """The run as it was when the checkpoint was written.

    Raises:
        UserError: the checkpoint is of another training or other data, or its tensors do not fit.
    """
    state, train = checkpoint.state, training.train
    if "training" not in state:
        raise UserError("this is no run of `cosmos-ref train-tokenizer`: give another --out")
    now = json.loads(json.dumps(dataclasses.asdict(train)))
    changed = [
        f"train.{name}: {state['training'].get(name)!r}, now {value!r}"
        for name, value in now.items()
        if state["training"].get(name) != value and name not in MAY_DIFFER
    ]
    for name in ("name", "tokenizer", "clip", "data"):
        if (then := getattr(checkpoint.config, name)) != getattr(training.config, name):
            changed.append(f"{name}: {then}, now {getattr(training.config, name)}")
    if state["source"] != source.identity:
        changed.append(f"data: {state['source']}, now {source.identity}")
    if changed:
        listed = "\n  ".join(changed)
        raise UserError(
            f"cannot resume, the run was begun with other settings; give the old ones or another --out:\n  {listed}"
        )
    if state["threads"] != torch.get_num_threads():
        say(f"the run had {state['threads']} thread(s), now {torch.get_num_threads()}: the same only up to rounding")
    tokenizer = new_tokenizer(training.network, torch.Generator())
    load_strict(tokenizer, checkpoint.tensors["last"], "the tokenizer")
    tokenizer = tokenizer.to(device)
    ema = PowerEMA(tokenizer, train.ema_std)
    averaged = dict(tokenizer.named_parameters()).keys()  # not the statistics, which were measured with them
    ema.weights |= {name: checkpoint.tensors["tokenizer"][name].to(device) for name in averaged}
    run = TokenizerRun(tokenizer, build_optimizer(tokenizer, train), ema, state["step"], state["before"])
    load_optimizer(run.optimizer, {"tokenizer": tokenizer}, checkpoint.tensors["optimizer"])
    return run


def _chunks(samples: range, size: int) -> list[range]:
    return [samples[start : start + size] for start in range(0, len(samples), size)]


@contextmanager
def _progress_bar(
    training: TokenizerTraining, step: int, enabled: bool
) -> Iterator[Callable[[dict[str, float]], None]]:
    if not enabled:
        yield lambda record: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("training {task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("stage {task.fields[stage]}  loss {task.fields[loss]:.4f}  L1 {task.fields[absolute]:.4f}"),
        TimeRemainingColumn(),
    )
    fields: dict[str, Any] = {"loss": math.nan, "absolute": math.nan}
    with Progress(*columns) as bar:
        task = bar.add_task(training.name, total=training.train.num_steps, completed=step, stage=1, **fields)

        def show(record: dict[str, float]) -> None:
            nonlocal step
            for name in fields:
                fields[name] = record[name] if math.isnan(fields[name]) else 0.95 * fields[name] + 0.05 * record[name]
            bar.update(task, advance=1, stage=2 if step >= training.train.stage_2 else 1, **fields)
            step += 1

        yield show
