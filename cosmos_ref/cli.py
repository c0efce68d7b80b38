"""The command line: cosmos-ref demo | presets | equations | doctor | train | sample | tokenize | convert | ..."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console
from rich.markup import escape
from safetensors import SafetensorError

from cosmos_ref.commands.benchmark import benchmark
from cosmos_ref.commands.build_engine import build_engine
from cosmos_ref.commands.ema import ema
from cosmos_ref.commands.export import export
from cosmos_ref.commands.merge_lora import merge_lora
from cosmos_ref.commands.plan import plan
from cosmos_ref.commands.prepare import prepare
from cosmos_ref.commands.verify import verify
from cosmos_ref.config import preset as preset_called
from cosmos_ref.errors import EVERYWHERE, UserError
from cosmos_ref.interop.names import Layout

USAGE, FAILURE, INTERRUPTED = 2, 1, 130


def demo(out: Path = Path("runs/demo"), video: Path | None = None) -> None:
    """From noise to a world: simulate, train, generate, export, and a report to look at.

    Args:
        out: folder for everything the demo writes.
        video: a video of your own to tokenize, instead of the demo's.
    """
    from cosmos_ref.demo.run import run_demo

    run_demo(out, video)


def presets(name: Annotated[str | None, tyro.conf.Positional] = None) -> None:
    """Show the presets, or every number of one.

    Args:
        name: a preset.
    """
    from cosmos_ref.catalogue import show_presets

    show_presets(Console(), name)


def equations(id: Annotated[str | None, tyro.conf.Positional] = None, test: bool = False) -> None:
    """Show all equations with their laws, impostors and last result, or one of them whole.

    Args:
        id: an equation, for example edm.loss_weight.
        test: run the tests that verify it, or those of all equations; the exit code is 1 if a law fails.
    """
    from cosmos_ref.catalogue import run_tests, show_equations

    if not test:
        show_equations(Console(), id)
    elif not run_tests(Console(), id):
        sys.exit(FAILURE)


def doctor() -> None:
    """Say what this machine can do and what each preset would need."""
    from cosmos_ref.doctor import examine

    examine(Console())


def train_command(arguments: list[str]) -> Callable[..., None]:
    """The train command, whose defaults are those of the preset that is asked for."""
    from cosmos_ref.commands.train import train_from

    return train_from(requested_preset(arguments) if arguments[:1] == ["train"] else "tiny")


def train_tokenizer_command(arguments: list[str]) -> Callable[..., None]:
    """The train-tokenizer command, whose defaults are those of the tokenizer that is asked for."""
    from cosmos_ref.commands.train_tokenizer import train_tokenizer_from

    return train_tokenizer_from(arguments)


@dataclass(frozen=True)
class Request:
    """Generate a clip, from a prompt or from the last frames of a video. What is not said is the preset's."""

    weights: Path
    """Folder of a checkpoint or of a training run; with --preset, a release of NVIDIA's or diffusers'."""
    out: Path
    """File to write; .mp4, .gif, or .png for a strip of frames."""
    prompt: str | None = None
    """What the clip shows; without one, Video2World goes on without text."""
    negative_prompt: str | None = None
    """What to lead away from."""
    frames: Path | None = None
    """Video or image to go on from (Video2World); its last frames are used."""
    given: int | None = None
    """How many of its frames to use: 1 + k * temporal_factor, for Cosmos 1 or 9."""
    clips: int = 1
    """Clips in the video, each going on from the last frames of the one before."""
    resize: bool = False
    """Resize and crop the given frames to the clip's size."""
    num_frames: int | None = None
    """Length of a clip: 1 + k * temporal_factor."""
    height: int | None = None
    """Height in pixels."""
    width: int | None = None
    """Width in pixels."""
    fps: float | None = None
    """Frames a second; with given frames, theirs, whatever --like says."""
    solver: Literal["euler", "heun", "res_2ab"] | None = None
    """How the steps are taken."""
    num_steps: int | None = None
    """Noise levels of the sampler."""
    guidance: float | None = None
    """g in D_c + g (D_c - D_u); 0 is none."""
    augment_sigma: float | None = None
    """Noise on the given frames."""
    seed: int | None = None
    """Which noise to start from."""
    like: Literal["nvidia", "original", "diffusers"] | None = None
    """Sample as another implementation does: its solver, steps, noise levels and roundings."""
    precision: Literal["fp32", "bf16"] | None = None
    """Of the denoiser's weights and matrix products."""
    preset: str | None = None
    """What a release is: 7b, 7b-video2world, 14b or 14b-video2world."""
    lora: Path | None = None
    """Folder of an adapter, in PEFT's format, to merge into the weights."""
    tokenizer: Path | None = None
    """Folder of a release's tokenizer, where it is not with the weights."""
    allow_torchscript: bool = False
    """Open a tokenizer that came as TorchScript. It may run code: only from a source that you trust."""
    t5: Path | None = None
    """Local folder of the T5 encoder, where it is not with the weights."""
    text_embeddings: Path | None = None
    """Embeddings of the prompts, written by `cosmos-ref encode-text`, instead of a text encoder."""
    offload: Literal["none", "cpu", "disk"] = "none"
    """Parts of the model that are not in use: they stay, wait in the CPU's memory, or are read again."""
    max_memory: float | None = None
    """GiB that may be used; without it, what is free."""
    device: str = "cpu"
    """Where to run: cpu, or cuda where there is a GPU."""


def sample(request: Annotated[Request, tyro.conf.arg(name="")]) -> None:
    """Generate a clip, from a prompt or from the last frames of a video. What is not said is the preset's."""
    from cosmos_ref.generate import generate

    generate(request, Console(), progress)


def encode_text(
    prompts: Annotated[list[str], tyro.conf.Positional], out: Path, t5: Path, preset: str = "7b", device: str = "cpu"
) -> None:
    """Encode prompts once, for `sample --text-embeddings`: the text encoder is larger than some models.

    Args:
        prompts: prompts, and the negative prompt if one is used.
        out: safetensors file to write, with a tensor for each prompt.
        t5: local folder of the T5 encoder.
        preset: the model that the embeddings are for.
        device: where to run.
    """
    from cosmos_ref.conditioning.text import build_text_encoder
    from cosmos_ref.conditioning.text_table import check_text_table, write_text_table
    from cosmos_ref.model.initialization import find_device
    from cosmos_ref.pipelines.world_model import DTYPES

    config = preset_called(preset)
    check_text_table(out)
    encoder = build_text_encoder(config.text, t5, DTYPES[config.sample.precision]).to(find_device(device))
    write_text_table(out, encoder, prompts)
    Console().print(
        f"{out}: {len(prompts)} prompt(s); use it by `cosmos-ref sample --text-embeddings {out}`", soft_wrap=True
    )


def tokenize(
    video: Annotated[Path, tyro.conf.Positional],
    out: Path = Path("runs/tokenize"),
    weights: Path | None = None,
    tokenizer: Path | None = None,
    allow_torchscript: bool = False,
    resize: bool = False,
    num_frames: int | None = None,
    height: int | None = None,
    width: int | None = None,
    max_memory: float | None = None,
) -> None:
    """Turn a video into latents and back; writes latents.safetensors and both videos side by side.

    Args:
        video: video file or image.
        out: folder to write into.
        weights: checkpoint whose tokenizer to use; with neither this nor --tokenizer, one is fitted to this video.
        tokenizer: a released tokenizer: diffusers' vae folder, or NVIDIA's folder, continuous or discrete.
        allow_torchscript: open a tokenizer that came as TorchScript, which may run code: only from a trusted source.
        resize: resize and crop the video.
        num_frames: frames to read from its beginning: 1 + k * temporal_factor.
        height: height in pixels.
        width: width in pixels.
        max_memory: GiB that a released tokenizer may take; without it, what is free.
    """
    from cosmos_ref.generate import tokenize_video

    chosen = dict(frames=num_frames, height=height, width=width)
    clip = {name: value for name, value in chosen.items() if value is not None}
    tokenize_video(video, out, weights, tokenizer, allow_torchscript, resize, clip, max_memory, Console())


def convert(
    source: Annotated[Path, tyro.conf.Positional],
    out: Path,
    to: Layout,
    source_layout: Annotated[Layout | None, tyro.conf.arg(name="from")] = None,
    preset: str | None = None,
    tokenizer: Path | None = None,
    weights: Literal["model", "ema"] | None = None,
    allow_torchscript: bool = False,
    without_statistics: bool = False,
) -> None:
    """Write weights under the names of another program; memory holds one tensor at a time.

    Args:
        source: a checkpoint of ours, a pipeline, transformer or vae of diffusers, NVIDIA's folder, or a file.
        out: folder that does not exist yet.
        to: whose names to write: ours (a checkpoint to sample from), NVIDIA's release or training, or diffusers'.
        source_layout: whose names the source has; found out, if not given.
        preset: which model it is; found out from the sizes, if not given.
        tokenizer: folder of the tokenizer, where it is not with the weights.
        weights: the weights of the last step or their average, for a layout that holds only one.
        allow_torchscript: open a tokenizer that came as TorchScript, which may run code: only from a trusted source.
        without_statistics: take a tokenizer although mean and deviation of its latents are missing.
    """
    from cosmos_ref.interop.convert import convert

    with copying() as progress:
        made = convert(
            source,
            out,
            to,
            None if preset is None else preset_called(preset),
            layout_from=source_layout,
            tokenizer=tokenizer,
            weights=weights,
            allow_torchscript=allow_torchscript,
            without_statistics=without_statistics,
            progress=progress,
        )
    left_out = f"; {', '.join(made.left_out)} left out, {to} has no place for it" if made.left_out else ""
    Console().print(
        f"{out}: {' and '.join(made.written)} of {made.config.name}, from {made.layout_from} to {to}{left_out}",
        soft_wrap=True,
    )


@contextmanager
def copying() -> Iterator[Callable[[int], Callable[[int], None]]]:
    """Show how many bytes were copied, how fast, and how long the rest takes."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    columns = "copying", BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True)) as bar:

        def begin(total: int) -> Callable[[int], None]:
            task = bar.add_task("", total=total)
            return lambda done: bar.advance(task, done)

        yield begin


def progress(steps):
    """Show how far a sampler is."""
    from rich.progress import track

    return track(steps, description="sampling", console=Console(stderr=True))


def requested_preset(arguments: list[str]) -> str:
    """The preset named on the command line: its numbers are the defaults of all other options."""
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=True):
        if argument == "--preset":
            return following
        if argument.startswith("--preset="):
            return argument.removeprefix("--preset=")
    return "tiny"


def main(arguments: list[str] | None = None) -> None:
    """Entry point: exit code 0 for success, 2 for a request that cannot be met, 1 for a failure, 130 for Ctrl-C."""
    arguments = sys.argv[1:] if arguments is None else arguments
    console = Console(stderr=True)
    first = os.environ.get("RANK", "0") == "0"  # of the processes that torchrun started; what all say, it says
    try:
        commands = {
            "demo": demo,
            "presets": presets,
            "equations": equations,
            "doctor": doctor,
            "plan": plan,
            "prepare": prepare,
            "train": train_command(arguments),
            "train-tokenizer": train_tokenizer_command(arguments),
            "sample": sample,
            "encode-text": encode_text,
            "convert": convert,
            "tokenize": tokenize,
            "export": export,
            "verify": verify,
            "build-engine": build_engine,
            "benchmark": benchmark,
            "merge-lora": merge_lora,
            "ema": ema,
        }
        tyro.extras.subcommand_cli_from_dict(
            commands,
            prog="cosmos-ref",
            description="Readable, proven and deployable reference implementation of Cosmos-1.0.",
            args=arguments,
            console_outputs=first,
        )
    except UserError as error:
        fail(console, str(error), USAGE, quiet=not first)
    except KeyboardInterrupt as interrupt:
        if str(interrupt):  # training has said how to go on
            sys.exit(INTERRUPTED)
        fail(console, "interrupted", INTERRUPTED, quiet=not first)
    except BrokenPipeError:  # the reader of our output has seen enough
        sys.stderr.close()
    except (OSError, RuntimeError, SafetensorError) as error:
        quiet = not first and EVERYWHERE in getattr(error, "__notes__", ())
        fail(console, f"{type(error).__name__}: {error}", FAILURE, quiet)


def fail(console: Console, message: str, code: int, quiet: bool = False) -> None:
    """End with one message, or none, and an exit code."""
    if quiet:
        sys.exit(code)
    console.print(f"[bold red]cosmos-ref:[/bold red] {escape(message)}", highlight=False, soft_wrap=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
