"""All that changes during a training: how it begins, how it is kept, how it goes on."""

import dataclasses
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cosmos_ref.adapter import save_adapter
from cosmos_ref.checkpoint import Checkpoint, fill_group, load_strict, prune_checkpoints, save_checkpoint
from cosmos_ref.config import Config, HaarPCAConfig
from cosmos_ref.errors import UserError
from cosmos_ref.model.denoiser import Denoiser
from cosmos_ref.model.initialization import build_denoiser, build_uncertainty, new_model
from cosmos_ref.model.uncertainty import Uncertainty
from cosmos_ref.tokenizer.build import build_tokenizer
from cosmos_ref.tokenizer.continuous import ContinuousTokenizer
from cosmos_ref.tokenizer.haar_pca import HaarPCATokenizer
from cosmos_ref.training.checks import check_fitted
from cosmos_ref.training.data import MIN_STD, ImageStatistics, image_statistics
from cosmos_ref.training.ema import PowerEMA
from cosmos_ref.training.initial import Initial
from cosmos_ref.training.layout import Layout, OneProcess
from cosmos_ref.training.optimizer import begin_moments, build_optimizer, optimizer_tensors
from cosmos_ref.training.sources import ShardSource, Source, domains_of

TOKENIZER_CLIPS = range(2**39, 2**39 + 256)
"""Numbers of the clips the tokenizer is fitted on; no training sample comes so far."""
FIT_BYTES = 2**28
"""Of those clips, at most so many bytes are taken."""

MAY_DIFFER = ("train.checkpoint_every", "train.keep_checkpoints", "sample.")
"""Fields that may change on resuming: they do not touch the weights."""
MAY_CHANGE = {
    "data",
    *(f"data.{name}" for name in ("world", "buckets", "min_height", "min_sharpness")),
    *(f"train.{name}" for name in ("num_steps", "learning_rate", "warmup_steps", "cooling_steps")),
    *(f"train.{name}" for name in ("weight_decay", "max_grad_norm")),
}
"""Those that may change if that is asked for: moments and averages keep their meaning."""

Tokenizer = HaarPCATokenizer | ContinuousTokenizer


@dataclasses.dataclass
class Run:
    """All that changes during a training, and what is settled at its start: the tokenizer and statistics of images."""

    denoiser: Denoiser
    uncertainty: Uncertainty
    optimizer: torch.optim.Optimizer
    emas: dict[float, PowerEMA]
    """Averages of the denoiser's weights, by their relative width; the first is sampled from."""
    tokenizer: Tokenizer
    images: ImageStatistics | None = None
    step: int = 0

    @property
    def modules(self) -> dict[str, nn.Module]:
        """The modules that are trained."""
        return {"denoiser": self.denoiser, "uncertainty": self.uncertainty}

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The tensors that are trained."""
        return [p for module in self.modules.values() for p in module.parameters() if p.requires_grad]


def ema_groups(config: Config) -> dict[float, str]:
    """Which group of a checkpoint holds which average: `ema`, `ema_2`, ..."""
    return {std: f"ema_{i}" if i > 1 else "ema" for i, std in enumerate(config.train.ema_stds, 1)}


def start_run(
    config: Config,
    source: Source,
    layout: Layout | None = None,
    *,
    initial: Initial | None = None,
    tokenizer: Tokenizer | None = None,
) -> Run:
    """A run before its first update.

    Args:
        config: what is trained.
        source: the clips that what is measured at the start is measured on.
        layout: the processes; None is this one alone.
        initial: weights to start from, with the tokenizer whose latents they know; None is fresh ones.
        tokenizer: the tokenizer, if it is neither fitted nor comes with `initial`.

    Raises:
        UserError: there is no tokenizer, and none can be fitted; or adapters would stand beside untrained weights.
    """
    if config.lora.rank and initial is None:
        raise UserError("adapters stand beside trained weights: give some by --initial, or --lora.rank 0 for none")
    layout = layout or OneProcess()
    tokenizer = start_tokenizer(config, source, initial, tokenizer).to(layout.device)
    tokenizer.load_state_dict({name: layout.first(tensor) for name, tensor in tokenizer.state_dict().items()})
    generator = torch.Generator().manual_seed(config.train.seed)
    denoiser, uncertainty = new_model(config, generator, layout.place, layout.write, layout.device)
    for module, whole in ((denoiser, initial and initial.denoiser), (uncertainty, initial and initial.uncertainty)):
        for name, tensor in (whole or {}).items():
            layout.write(module.state_dict()[name], tensor)
    images = None
    if config.data.image_share and initial is not None and initial.images is not None:
        images = ImageStatistics(**initial.images).to(layout.device)
    elif config.data.image_share and isinstance(source, ShardSource):
        mean, std = (source.statistics[f"image.{name}"] for name in ("mean", "std"))
        images = ImageStatistics(mean, std.clamp(min=MIN_STD)).to(layout.device)
    elif config.data.image_share:
        chunk = config.train.micro_batch or config.train.batch_size
        images = image_statistics(source, tokenizer, layout.device, chunk)
    if images is not None:
        images = ImageStatistics(layout.first(images.mean), layout.first(images.std))
    optimizer = build_optimizer(denoiser, uncertainty, config.train)
    emas = {std: PowerEMA(denoiser, std) for std in config.train.ema_stds}
    return Run(denoiser, uncertainty, optimizer, emas, tokenizer, images)


def start_tokenizer(config: Config, source: Source, initial: Initial | None, given: Tokenizer | None) -> Tokenizer:
    """The tokenizer of a run: the given one, that of the weights it starts from, or one fitted on clips of the source.

    Raises:
        UserError: it is another than the configuration's, or there is none.
    """
    tokenizer = build_tokenizer(config.tokenizer)
    if not isinstance(tokenizer, Tokenizer):
        raise UserError(f"preset {config.name!r} has a discrete tokenizer: diffusion is trained on continuous latents")
    if given is not None:
        load_strict(tokenizer, given.state_dict(), "the given tokenizer")
        if initial is not None and initial.tokenizer is not None:
            check_same_latents(tokenizer, initial.tokenizer, initial.folder)
    elif initial is not None and initial.tokenizer is not None:
        load_strict(tokenizer, initial.tokenizer, f"the tokenizer in {initial.folder}")
    else:
        check_fitted(config)
        clip = config.clip
        fitting = max(1, FIT_BYTES // (12 * clip.frames * clip.height * clip.width))
        domain, *_ = domains_of(config.data)  # videos, but where a training sees none
        video = source.clips(TOKENIZER_CLIPS[:fitting], domain).video
        assert isinstance(config.tokenizer, HaarPCAConfig) and video is not None, "who has latents has their tokenizer"
        tokenizer = HaarPCATokenizer.fit(config.tokenizer, video)
    return tokenizer.requires_grad_(False).eval()


def check_same_latents(tokenizer: Tokenizer, known: Mapping[str, Tensor], folder: Path) -> None:
    """Check that the weights in a folder, which know the latents of one tokenizer, know those of this one.

    Raises:
        UserError: they know those of another.
    """
    ours = tokenizer.state_dict()
    if any(not torch.equal(ours[name].cpu(), tensor.to(ours[name]).cpu()) for name, tensor in known.items()):
        raise UserError(
            f"the weights in {folder} know the latents of another tokenizer than that of the data: leave out "
            f"--tokenizer-weights, or prepare the data with `--weights {folder}`"
        )


def resume_run(folder: Path, checkpoint: Checkpoint, config: Config, layout: Layout) -> Run:
    """The run as it was when the checkpoint was written, by however many processes; each reads what it will keep.

    Args:
        folder: the checkpoint.
        checkpoint: what was read of it: configuration and state, which `check_same` has seen.
        config: what is trained.
        layout: the processes.

    Raises:
        UserError: the checkpoint is damaged, or its tensors do not fit.
    """
    if (threads := checkpoint.state["threads"]) != torch.get_num_threads() and layout.rank == 0:
        say(f"the run had {threads} thread(s), now {torch.get_num_threads()}: the same only up to rounding")
    denoiser, uncertainty = build_denoiser(config), build_uncertainty(config)
    for module in (denoiser, uncertainty):
        layout.place(module)
        module.to_empty(device=layout.device)
    tokenizer = build_tokenizer(config.tokenizer).to(layout.device).requires_grad_(False).eval()
    assert isinstance(tokenizer, Tokenizer)
    optimizer = build_optimizer(denoiser, uncertainty, config.train)
    emas = {std: PowerEMA(denoiser, std) for std in config.train.ema_stds}
    run = Run(denoiser, uncertainty, optimizer, emas, tokenizer, step=checkpoint.state["step"])
    if config.data.image_share:
        channels = config.tokenizer.channels
        run.images = ImageStatistics(torch.empty(channels), torch.empty(channels)).to(layout.device)
    begin_moments(optimizer, run.modules)
    for group, tensors in run_tensors(run, config).items():
        fill_group(folder, group, tensors, f"the group {group!r}")
    return run


def run_tensors(run: Run, config: Config) -> dict[str, dict[str, Tensor]]:
    """All tensors that a run is kept in, not copied, by the groups of its checkpoints."""
    tensors = {
        "model": run.denoiser.state_dict(),
        **{group: run.emas[std].weights for std, group in ema_groups(config).items()},
        "uncertainty": run.uncertainty.state_dict(),
        "tokenizer": run.tokenizer.state_dict(),
        "optimizer": optimizer_tensors(run.optimizer, run.modules),
    }
    if run.images is not None:
        tensors["images"] = {"mean": run.images.mean, "std": run.images.std}
    return tensors


def save_run(run: Run, config: Config, source: Source, out: Path, layout: Layout) -> Path:
    """Write the run's checkpoint and delete those that are too old; of adapters also their average, as PEFT has it."""
    state = {"step": run.step, "source": source.identity, "threads": torch.get_num_threads()}
    folder = save_checkpoint(out / "checkpoints" / f"step_{run.step:07d}", config, run_tensors(run, config), state)
    if config.lora.rank:
        save_adapters(run, config, out / "lora", layout)
    if layout.rank == 0:
        prune_checkpoints(out, config.train.keep_checkpoints)
    return folder


def save_adapters(run: Run, config: Config, folder: Path, layout: Layout) -> None:
    """Write the average of a run's adapters into a folder that `sample --lora`, `merge-lora` and PEFT read."""
    weights = run.emas[config.train.ema_stds[0]].weights
    adapters = {name: weights[name] for name in weights if name.endswith(("lora_A", "lora_B"))}
    average = {  # whole, also of what is sharded
        name.removeprefix("network."): getattr(tensor, "full_tensor", tensor.detach)()
        for name, tensor in adapters.items()
    }
    error = None
    if layout.rank == 0:
        try:
            save_adapter(folder, run.denoiser.network, average)
        except OSError as failure:
            error = failure
    layout.agree(error)


def check_same(checkpoint: Checkpoint, config: Config, source: Source, changed: bool | None = None) -> list[str]:
    """Check that a run goes on as it was begun.

    Args:
        checkpoint: what was read of it: configuration and state.
        config: what is trained now.
        source: the clips now.
        changed: whether what is in `MAY_CHANGE` may be different; None is no, and nobody can ask for it.

    Returns:
        What is different.

    Raises:
        UserError: the checkpoint is of another configuration or other data; all differences are listed.
    """
    then = _fields(checkpoint.config) | {"data": checkpoint.state["source"]}
    now = _fields(config) | {"data": source.identity}
    different = [
        name
        for name in sorted(then.keys() | now.keys())
        if then.get(name) != now.get(name) and not name.startswith(MAY_DIFFER)
    ]
    listed = [f"{name}: {then.get(name)!r}, now {now.get(name)!r}" for name in different if name != "data"]
    if "data" in different:
        listed.append(f"data: {then['data']}, now {now['data']}")
    allowed = MAY_CHANGE.issuperset(different)
    if different and not (changed and allowed):
        remedy = "give the old ones or another --out"
        if allowed and changed is not None:
            remedy += ", or --changed to go on with these"
        raise UserError("\n  ".join([f"cannot resume, the run was begun with other settings; {remedy}:", *listed]))
    return listed


def say(message: str) -> None:
    """A line for the person who waits."""
    print(message, file=sys.stderr, flush=True)


def _fields(config: Config) -> dict[str, Any]:
    """All fields of a configuration by their dotted names."""

    def walk(value: Any, name: str) -> Iterator[tuple[str, Any]]:
        if isinstance(value, dict):
            for key, part in value.items():
                yield from walk(part, f"{name}.{key}" if name else key)
        else:
            yield name, value

    return dict(walk(dataclasses.asdict(config), ""))
