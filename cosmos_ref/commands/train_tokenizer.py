"""cosmos-ref train-tokenizer: a tokenizer from videos, in the paper's two stages."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from cosmos_ref.config import ClipConfig, ConvTokenizerConfig
from cosmos_ref.errors import UserError
from cosmos_ref.training.tokenizer import TOKENIZER_TRAININGS, TokenizerTrainConfig, TokenizerTraining


@dataclass(frozen=True)
class TrainTokenizer:
    """Train a tokenizer, continuous or discrete, from the simulated world or from a folder of videos."""

    out: Path
    """Folder of the run: checkpoints, log, curves, a picture of reconstructions."""
    network: ConvTokenizerConfig
    clip: ClipConfig
    train: TokenizerTrainConfig
    tokenizer: str = "CV-tiny"
    """What to start from: CV-tiny, DV-tiny, or one of NVIDIA's; every number below can be changed."""
    world: str = "mixed"
    """Kind of simulated scene, where there are no files."""
    data: Path | None = None
    """Folder of ordinary videos, and images if there are any; none is the simulated world."""
    resize: bool = False
    """Resize and crop videos of another size."""
    resume: bool = False
    """Go on from the last checkpoint in the run's folder."""
    device: str = "cpu"
    """Where to train: cpu, or cuda where there is a GPU."""

    def run(self) -> None:
        """Train, and say what became of it."""
        from cosmos_ref.checkpoint import read_checkpoint
        from cosmos_ref.training.sources import FolderSource, WorldSource
        from cosmos_ref.training.tokenizer import baselines, check_training, train_tokenizer

        training = TokenizerTraining(self.tokenizer, self.network, self.clip, self.world, self.train)
        check_training(training)
        if self.data is None:
            source = WorldSource(self.clip, self.world, self.train.seed)
        else:
            domains = ("video", "image") if self.train.image_share else ("video",)
            source = FolderSource(self.data, self.clip, resize=self.resize, seed=self.train.seed, domains=domains)
        checkpoint = train_tokenizer(training, self.out, source, resume=self.resume, device=self.device)

        console, state = Console(), read_checkpoint(checkpoint, names=()).state
        before, now = state["before"], state["now"]
        clips = "scenes that training did not see" if self.data is None else "windows of the same files"
        others = ", ".join(f"{name} {value:.2f}" for name, value in baselines(training, source).items())
        console.print(
            f"PSNR {before['psnr']:.2f} dB before training, {now['psnr']:.2f} dB now, on {clips} ({others})",
            soft_wrap=True,
        )
        if "codes" in now:
            console.print(
                f"{now['codes']:.0f} different codes occur; {now['perplexity']:.0f} equally frequent ones would say as "
                "much",
                soft_wrap=True,
            )
        console.print(f"{self.out}/reconstructions.png, {self.out}/loss.png", soft_wrap=True)
        console.print(f"{checkpoint}: use it by `cosmos-ref tokenize VIDEO --weights {self.out}`", soft_wrap=True)


def train_tokenizer_from(arguments: list[str]) -> Callable[..., None]:
    """The command with the numbers of the tokenizer that is named on the command line as its defaults.

    Raises:
        UserError: no tokenizer has this name.
    """
    name = requested_tokenizer(arguments) if arguments[:1] == ["train-tokenizer"] else "CV-tiny"
    if name not in TOKENIZER_TRAININGS:
        raise UserError(f"no tokenizer is called {name!r}; there are: {', '.join(TOKENIZER_TRAININGS)}")
    known = TOKENIZER_TRAININGS[name]

    def train_tokenizer(arguments: Annotated[TrainTokenizer, tyro.conf.arg(name="")]) -> None:
        """Train a tokenizer, continuous or discrete, from the simulated world or from a folder of videos."""
        arguments.run()

    default = TrainTokenizer(tyro.MISSING, known.network, known.clip, known.train, tokenizer=name, world=known.world)
    train_tokenizer.__defaults__ = (default,)
    return train_tokenizer


def requested_tokenizer(arguments: list[str]) -> str:
    """The tokenizer named on the command line."""
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=True):
        if argument == "--tokenizer":
            return following
        if argument.startswith("--tokenizer="):
            return argument.removeprefix("--tokenizer=")
    return "CV-tiny"
