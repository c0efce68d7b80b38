"""cosmos-ref prepare: files to shards of latents and text."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from rich.console import Console

from cosmos_ref.config import Config, HaarPCAConfig
from cosmos_ref.config import preset as preset_called
from cosmos_ref.errors import UserError

if TYPE_CHECKING:
    from cosmos_ref.prepare.run import Progress, Tokenizer


def prepare(
    folder: Annotated[Path, tyro.conf.Positional],
    out: Path,
    preset: str = "tiny",
    buckets: str | None = None,
    num_frames: int | None = None,
    resize: bool = False,
    min_height: int = 0,
    weights: Path | None = None,
    tokenizer: Path | None = None,
    allow_torchscript: bool = False,
    t5: Path | None = None,
    precision: Literal["fp32", "bf16"] | None = None,
    seed: int = 0,
    clips_per_shard: int = 64,
    max_memory: float | None = None,
    device: str = "cpu",
) -> None:
    """Cut videos into clips and encode them and their captions once, into shards to train from.

    Files that cannot be used are left out and listed. A run that was stopped goes on where it was.

    Args:
        folder: videos and images with captions (name.txt beside name.mp4), or WebDataset tars of them.
        out: folder of the shards.
        preset: the model they are for.
        buckets: sizes that clips are brought to by their aspect ratio, for example 720; `one` is the preset's own.
        num_frames: length of a clip: 1 + k * temporal_factor.
        resize: without buckets, scale and crop files of another size.
        min_height: leave out files with fewer lines.
        weights: checkpoint whose preset and tokenizer to use.
        tokenizer: a released tokenizer, for presets that have one; the others fit theirs to the folder.
        allow_torchscript: open a tokenizer that came as TorchScript, which may run code: only from a trusted source.
        t5: local folder of the T5 encoder, for presets that use it.
        precision: of stored latents and text; without it, the preset's in training.
        seed: which clips a tokenizer is fitted to; give the one of the training.
        clips_per_shard: clips in a tar.
        max_memory: GiB that a released tokenizer may take; without it, what is free.
        device: where to run: cpu, or cuda where there is a GPU.
    """
    from cosmos_ref.conditioning.text import build_text_encoder
    from cosmos_ref.generate import memory_budget
    from cosmos_ref.model.initialization import find_device
    from cosmos_ref.prepare.run import prepare as prepare_folder

    place = find_device(device)
    config, load = _tokenizer_of(preset, weights, tokenizer, allow_torchscript)
    config = replace(
        config,
        clip=replace(config.clip, frames=num_frames or config.clip.frames),
        data=replace(config.data, buckets=buckets or config.data.buckets, min_height=min_height),
        train=replace(config.train, seed=seed, precision=precision or config.train.precision),
    )
    text_encoder = build_text_encoder(config.text, t5).to(place)
    with _progress() as progress:
        made = prepare_folder(
            folder,
            out,
            config,
            text_encoder,
            load,
            resize=resize,
            clips_per_shard=clips_per_shard,
            max_memory=memory_budget(max_memory, place),
            device=place,
            progress=progress,
        )
    console = Console(soft_wrap=True, highlight=False, markup=False)
    for left_out in made.left_out:
        console.print(f"left out: {left_out.path.name}: {left_out.reason}")
    for size, held in sorted(made.counts.items()):
        console.print(f"{size}: {', '.join(f'{count} {domain}s' for domain, count in sorted(held.items()))}")
    console.print(f"{out}: {made.shards} shard(s); train from them by `cosmos-ref train --data {out}`")


def _tokenizer_of(
    name: str, weights: Path | None, released: Path | None, allow_torchscript: bool
) -> "tuple[Config, Callable[[], Tokenizer] | None]":
    """The configuration, and what loads its tokenizer; None if one is to be fitted."""
    import torch

    from cosmos_ref.checkpoint import find_checkpoint, load_strict, read_checkpoint, read_group
    from cosmos_ref.interop.released import open_tokenizer
    from cosmos_ref.tokenizer.build import build_tokenizer

    if weights is not None and released is not None:
        raise UserError("--weights and --tokenizer both name a tokenizer: give one")
    if weights is not None:
        folder = find_checkpoint(weights)
        checkpoint = read_checkpoint(folder, names=())
        if "tokenizer" not in checkpoint.groups:
            raise UserError(f"{folder} holds no tokenizer: give one by --tokenizer")

        def load() -> "Tokenizer":
            tokenizer = build_tokenizer(checkpoint.config.tokenizer)
            load_strict(tokenizer, read_group(folder, "tokenizer"), "the tokenizer")
            return tokenizer

        return checkpoint.config, load
    config = preset_called(name)
    if released is not None:
        found, load_released = open_tokenizer(released, torch.device("cpu"), torch.float32, allow_torchscript)
        if found != config.tokenizer:
            raise UserError(
                f"{released} holds another tokenizer than preset {name!r} has: give the one it was made for"
            )
        return config, load_released
    if not isinstance(config.tokenizer, HaarPCAConfig):
        raise UserError(f"the tokenizer of preset {name!r} has weights: give its folder by --tokenizer")
    return config, None


@contextmanager
def _progress() -> "Iterator[Progress]":
    """Show how far each piece of work is, and how long the rest takes."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True)) as bar:

        def begin(description: str, total: int) -> Callable[[int], None]:
            task = bar.add_task(description, total=total)
            return lambda done: bar.advance(task, done)

        yield begin
