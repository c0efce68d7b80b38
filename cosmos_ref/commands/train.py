"""cosmos-ref train: one training, in this process or in all that torchrun starts."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.console import Console

from cosmos_ref.config import (
    ClipConfig,
    Config,
    DataConfig,
    DiffusionConfig,
    LoRAConfig,
    ModelConfig,
    ParallelConfig,
    SampleConfig,
    TextConfig,
    TokenizerConfig,
    TrainConfig,
)
from cosmos_ref.config import preset as preset_called
from cosmos_ref.errors import UserError

if TYPE_CHECKING:
    import torch

    from cosmos_ref.training.layout import Layout
    from cosmos_ref.training.run import Tokenizer
    from cosmos_ref.training.sources import Source


@dataclass(frozen=True)
class Train:
    """Train a model, from the simulated world or from a folder of videos."""

    out: Path
    """Folder of the run: checkpoints, log, loss curve."""
    model: ModelConfig
    diffusion: DiffusionConfig
    tokenizer: tyro.conf.AvoidSubcommands[TokenizerConfig]
    text: TextConfig
    clip: ClipConfig
    data: DataConfig
    train: TrainConfig
    lora: LoRAConfig
    sample: SampleConfig
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    preset: str = "tiny"
    """What to start from; every number below can be changed."""
    recipe: str | None = None
    """All stages of Cosmos' training one after the other, each with numbers of its own: toy, 7b or 14b. It goes on by
    itself where it was stopped."""
    prompt: tuple[str, ...] = ()
    """With --recipe: what to generate after each stage, instead of captions of held-out clips."""
    held_out: int | None = None
    """With --recipe: clips that the first process measures each stage on; 0 measures and generates nothing. Without
    it, 48, and 0 for a model of more than a billion parameters."""
    videos: Annotated[Path | None, tyro.conf.arg(name="data")] = None
    """Folder of ordinary videos and images (captions in name.txt beside name.mp4), or one that `cosmos-ref prepare`
    wrote; none is the simulated world."""
    resize: bool = False
    """Resize and crop videos of another size."""
    resume: bool = False
    """Go on from the last checkpoint in the run's folder."""
    changed: bool = False
    """With --resume: go on although the data, the learning rate or its schedule, or the number of steps changed."""
    initial: Path | None = None
    """Checkpoint, or folder of a run, whose averaged weights to start from."""
    tokenizer_weights: Path | None = None
    """Folder of the tokenizer, where it is not fitted to the clips: of a run of ours, whose numbers the model then
    takes over, or of a released one."""
    allow_torchscript: bool = False
    """Open a tokenizer that came as TorchScript. It may run code: only from a source that you trust."""
    t5: Path | None = None
    """Local folder of the T5 encoder, for presets that use it."""
    peak: float | None = None
    """TFLOP/s that a device can do at most, for MFU; without it, what is known of the GPU."""
    device: str = "cpu"
    """Where to train: cpu, or cuda where there is a GPU; under torchrun each process takes its own."""

    def run(self) -> None:
        """Train."""
        self.check()
        if self.recipe is not None:
            return self.run_recipe()
        from cosmos_ref.training.loop import together, train

        config = Config(name=self.preset, **{name: getattr(self, name) for name in SECTIONS})
        if self.tokenizer_weights is not None and self.tokenizer == preset_called(self.preset).tokenizer:
            config = with_tokenizer_of(self.tokenizer_weights, config)
        with chosen_layout(self.parallel, config, self.device) as layout:
            tokenizer = together(layout, partial(self.given_tokenizer, config, layout.device))
            checkpoint = train(
                config,
                self.out,
                together(layout, partial(self.source, config)),
                layout=layout,
                initial=self.initial,
                tokenizer=tokenizer,
                resume=self.resume,
                changed=self.changed,
                t5_folder=self.t5,
                peak_tflops=self.peak,
            )
            if layout.rank == 0:
                line = f"{checkpoint}: generate from it by `cosmos-ref sample --weights {self.out}`"
                Console().print(line, soft_wrap=True)

    def run_recipe(self) -> None:
        """Train stage after stage."""
        from cosmos_ref.model.sizes import parameter_count
        from cosmos_ref.recipe.run import run_recipe
        from cosmos_ref.training.loop import together
        from cosmos_ref.training.stages import recipe

        assert self.recipe is not None
        stages = recipe(self.recipe)
        own = preset_called(self.preset)
        if changed := [name for name in SECTIONS if getattr(self, name) != getattr(own, name)]:
            raise UserError(
                f"a recipe has numbers of its own: leave out what begins with --{', --'.join(changed)}; stages with "
                "other numbers are single trainings, each with --initial of the one before"
            )
        small = parameter_count(stages[0].config) < 10**9
        held_out = self.held_out if self.held_out is not None else 48 if small else 0
        with chosen_layout(self.parallel, stages[0].config, self.device) as layout:
            tokenizer = together(layout, partial(self.given_tokenizer, stages[0].config, layout.device))
            page = run_recipe(
                stages,
                self.out,
                lambda stage: self.source(stage.config, stage.name),
                layout=layout,
                initial=self.initial,
                tokenizer=tokenizer,
                held_out=held_out,
                prompts=self.prompt,
                t5_folder=self.t5,
                peak_tflops=self.peak,
            )
            if layout.rank == 0:
                Console().print(f"{page if page.is_file() else self.out}: all stages are done", soft_wrap=True)

    def check(self) -> None:
        """Refuse numbers that mean nothing, and options that would do nothing.

        Raises:
            UserError: there are some.
        """
        if self.peak is not None and not self.peak > 0:
            raise UserError(f"--peak {self.peak:g} is no number of TFLOP/s: give one above 0")
        if self.held_out is not None and self.held_out < 0:
            raise UserError(f"--held-out {self.held_out} is no number of clips: give 0 for none, or more")
        if self.changed and (not self.resume or self.recipe is not None):
            raise UserError("--changed is for a single training that goes on: give it with --resume, or leave it out")
        if self.recipe is None and (self.prompt or self.held_out is not None):
            raise UserError("--prompt and --held-out are for the stages of a --recipe: leave them out, or give one")
        if self.recipe is not None and self.preset != Train.preset:
            raise UserError(
                f"--preset {self.preset} and --recipe {self.recipe} both have all numbers: give one of them"
            )

    def given_tokenizer(self, config: Config, device: "torch.device") -> "Tokenizer | None":
        """The tokenizer that was given, if one was.

        Raises:
            UserError: it cannot be read, or is another than the configuration's.
        """
        if self.tokenizer_weights is None:
            return None
        return read_tokenizer(self.tokenizer_weights, config, device, self.allow_torchscript)

    def source(self, config: Config, stage: str = "") -> "Source":
        """The clips; of a stage those that fit it, in the data's folder of its name where there is one."""
        from cosmos_ref.training.sources import open_source

        own = self.videos / stage if self.videos is not None and stage else None
        folder = own if own is not None and own.is_dir() else self.videos
        return open_source(folder, config, resize=self.resize, skip=bool(stage))


SECTIONS = [field.name for field in fields(Config) if field.name != "name"]


@contextmanager
def chosen_layout(parallel: ParallelConfig, config: Config, device: str) -> Iterator["Layout"]:
    """One process, or under torchrun all that it started.

    Raises:
        UserError: the numbers of `parallel` do not fit the processes that there are.
    """
    if "RANK" in os.environ:
        import torch

        from cosmos_ref.distributed.layout import ManyProcesses, joined

        with joined(device) as own:
            if own.type == "cpu" and torch.cuda.is_available() and os.environ["RANK"] == "0":
                Console(stderr=True).print("training on CPUs, though there is a GPU: --device cuda takes it")
            yield ManyProcesses(parallel, config.model.num_heads, own, config.train.precision)
        return
    from cosmos_ref.distributed.fsdp import prepare_blocks
    from cosmos_ref.distributed.mesh import split_processes
    from cosmos_ref.training.layout import OneProcess

    asked = max(parallel.world, parallel.replicate * parallel.cp)
    if asked > 1:
        raise UserError(
            f"--parallel asks for {asked} processes, and this is one: start it by `torchrun --nproc-per-node {asked} "
            "-m cosmos_ref.cli train ...`"
        )
    split_processes(parallel, 1, config.model.num_heads)
    yield OneProcess(device, place=partial(prepare_blocks, parallel=parallel))


def with_tokenizer_of(path: Path, config: Config) -> Config:
    """The configuration of a model of the latents in a run of ours; of anything else, the configuration as it is."""
    from cosmos_ref.checkpoint import find_checkpoint, read_checkpoint

    if not is_ours(path):
        return config
    found = read_checkpoint(find_checkpoint(path), ()).config.tokenizer
    model = replace(config.model, channels=found.channels)
    return replace(config, tokenizer=found, model=model)


def is_ours(path: Path) -> bool:
    """Whether a folder is a checkpoint of ours, or a run with some."""
    from cosmos_ref.checkpoint import list_checkpoints

    return (path / "manifest.json").is_file() or bool(list_checkpoints(path))


def read_tokenizer(path: Path, config: Config, device: "torch.device", allow_torchscript: bool) -> "Tokenizer":
    """The tokenizer of a checkpoint of ours, or a released one.

    Raises:
        UserError: there is none, it is discrete, or it is another than the configuration's.
    """
    import torch

    from cosmos_ref.interop.released import open_tokenizer
    from cosmos_ref.tokenizer.discrete import DiscreteTokenizer
    from cosmos_ref.training.tokenizer import load_tokenizer

    if is_ours(path):
        found, tokenizer = load_tokenizer(path)
    else:
        found, load = open_tokenizer(path, device, torch.float32, allow_torchscript)
        tokenizer = load()
    if isinstance(tokenizer, DiscreteTokenizer):
        raise UserError(
            f"the tokenizer in {path} is discrete, and diffusion is trained on continuous latents: give a continuous "
            "one, as `cosmos-ref train-tokenizer --tokenizer CV-tiny` trains"
        )
    if found != config.tokenizer:
        raise UserError(f"the tokenizer in {path} is another than the preset's:\n  {found}\n  {config.tokenizer}")
    return tokenizer.to(device)


def train_from(name: str) -> Callable[..., None]:
    """The train command with a preset's numbers as its defaults."""
    config = preset_called(name)
    defaults = {section: getattr(config, section) for section in SECTIONS}

    def train(arguments: Annotated[Train, tyro.conf.arg(name="")]) -> None:
        """Train a model, from the simulated world or from a folder of videos."""
        arguments.run()

    train.__defaults__ = (Train(out=tyro.MISSING, preset=name, **defaults),)
    return train
