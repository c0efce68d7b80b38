"""Files to shards: cut clips, bring them to buckets, encode them and their captions once.

A sample's number is its place in the plan, and the plan follows from the files and the settings. So do all bytes: a run
that was killed goes on behind its last whole shard and ends in what an undisturbed one would have written.
"""

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save
from torch import Tensor

from cosmos_ref.conditioning.text import TextEncoder
from cosmos_ref.config import Config, ConvTokenizerConfig, HaarPCAConfig
from cosmos_ref.equations.causal import check_side, latent_length
from cosmos_ref.errors import UserError
from cosmos_ref.prepare.measures import motion, sharpness
from cosmos_ref.prepare.raw import find_tars, unpack
from cosmos_ref.prepare.tar import Record, Sample, scan_shard, write_json, write_shard, write_whole
from cosmos_ref.shapes import Latents, Video
from cosmos_ref.tokenizer.build import build_tokenizer
from cosmos_ref.tokenizer.continuous import ContinuousTokenizer
from cosmos_ref.tokenizer.discrete import DiscreteTokenizer
from cosmos_ref.tokenizer.haar_pca import HaarPCATokenizer
from cosmos_ref.tokenizer.pieces import encode_in_pieces
from cosmos_ref.tokenizer.plan import Plan, plan_tokenizer
from cosmos_ref.tokenizer.statistics import RunningMoments
from cosmos_ref.training.random import philox
from cosmos_ref.training.sources.clips import Bucket, Domain, bucket_sizes
from cosmos_ref.training.sources.folder import File, FolderSource, LeftOut
from cosmos_ref.training.sources.shards import (
    FORMAT,
    INDEX,
    STATISTICS,
    TOKENIZER,
    identity_of,
    read_index,
    read_tensors,
    what_latents_depend_on,
)
from cosmos_ref.video_io import IMAGE_FPS, find_images, find_videos

SETTINGS, SKIPPED, UNPACKED = "settings.json", "skipped.json", ".unpacked"
FIT_CLIPS, FIT_BYTES, FIT_STREAM = 256, 2**28, 20
"""The most clips that a tokenizer is fitted to, the most bytes of them, and the stream that they are drawn from."""
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}

Tokenizer = HaarPCATokenizer | ContinuousTokenizer | DiscreteTokenizer
Progress = Callable[[str, int], Callable[[int], None]]
"""Begins a piece of work, what it is and how many parts it has; what it gives is told how many more are done."""


@dataclass(frozen=True)
class Prepared:
    """What became of a folder."""

    shards: int
    counts: dict[str, dict[Domain, int]]
    """Clips by size and domain."""
    left_out: list[LeftOut]


class Window(NamedTuple):
    """Consecutive frames of a file."""

    file: File
    start: int
    frames: int


Numbered = tuple[int, Window]
"""A window and its place in the plan."""


def prepare(
    folder: Path,
    out: Path,
    config: Config,
    text_encoder: TextEncoder,
    load_tokenizer: Callable[[], Tokenizer] | None = None,
    *,
    resize: bool = False,
    clips_per_shard: int = 64,
    max_memory: float = float("inf"),
    device: torch.device | str = "cpu",
    progress: Progress = lambda description, total: lambda done: None,
) -> Prepared:
    """Write shards, the tokenizer, statistics of the latents, what was left out and, last, the index.

    Args:
        folder: videos and images with their captions, or WebDataset tars of them.
        out: where the shards go; what is there of an earlier run with the same settings is not made again.
        config: its clip, buckets, tokenizer, text, seed and precision.
        text_encoder: for the captions.
        load_tokenizer: gives the tokenizer; None fits one to the folder.
        resize: without buckets, scale and crop files of another size.
        clips_per_shard: clips in a tar.
        max_memory: bytes that a convolutional tokenizer may take; it works in pieces that fit.
        device: where the tokenizer works.
        progress: shows how far it is.

    Raises:
        UserError: the folder holds nothing usable, or `out` something else.
    """
    if clips_per_shard < 1:
        raise UserError(f"a shard cannot hold {clips_per_shard} clips: give at least 1")
    plans = _plan(config, max_memory)
    _check_out(out)
    unpacked = out / UNPACKED
    try:
        left_out = []
        if tars := find_tars(folder):
            if find_images(folder) or find_videos(folder, required=False):
                raise UserError(f"{folder} holds tars and files: put them into two folders, and prepare both")
            shutil.rmtree(unpacked, ignore_errors=True)
            unpacked.mkdir()
            left_out = unpack(tars, unpacked)
            if not any(unpacked.iterdir()):
                raise UserError(f"the tars of {folder} hold nothing that could be used:{_lines(left_out)}")
            folder = unpacked
        source = _open(folder, config, resize, progress)
        preparation = Preparation(source, out, config, plans, clips_per_shard, device)
        preparation.claim(resize)
        preparation.take_tokenizer(load_tokenizer, progress)
        return preparation.run(text_encoder, left_out + source.left_out, progress)
    finally:
        shutil.rmtree(unpacked, ignore_errors=True)


class Preparation:
    """One folder on its way into shards."""

    def __init__(
        self,
        source: FolderSource,
        out: Path,
        config: Config,
        plans: dict[Bucket, Plan],
        clips_per_shard: int,
        device: torch.device | str,
    ):
        self.source, self.out, self.config, self.plans, self.device = source, out, config, plans, device
        self.dtype = DTYPES[config.train.precision]
        windows = list(cut(source.files, config.clip.frames))
        numbered = list(enumerate(windows))
        self.shards: list[list[Numbered]] = [
            numbered[i : i + clips_per_shard] for i in range(0, len(windows), clips_per_shard)
        ]
        self.clips_per_shard = clips_per_shard
        self.tokenizer: Tokenizer
        self.embedded: tuple[str | None, Tensor] = (None, torch.empty(0))

    def claim(self, resize: bool) -> None:
        """Write the settings, or compare them with those of the run that is gone on with.

        Raises:
            UserError: they are others.
        """
        self.settings: dict[str, Any] = what_latents_depend_on(self.config) | {
            "frames": self.config.clip.frames,
            "source": self.source.identity,
            "min_height": self.config.data.min_height,
            "resize": resize,
            "precision": self.config.train.precision,
            "clips_per_shard": self.clips_per_shard,
        }
        path = self.out / SETTINGS
        if path.exists():
            before = json.loads(path.read_text(encoding="utf-8"))
            other = [f"{k}: {before.get(k)}, now {v}" for k, v in self.settings.items() if before.get(k) != v]
            if other:
                listed = "\n  ".join(other)
                raise UserError(f"{self.out} was begun with other settings or files; give another --out:\n  {listed}")
        write_json(path, self.settings)

    def take_tokenizer(self, load: Callable[[], Tokenizer] | None, progress: Progress) -> None:
        """The tokenizer of the run that is gone on with, else what `load` gives, else one fitted to the folder.

        Raises:
            UserError: no clip can be decoded to fit one to, or the one that is there is another.
        """
        path = self.out / TOKENIZER
        tokenizer = None if load is None else load()
        if path.exists():
            tensors = read_tensors(path)
            if tokenizer is not None:
                state = tokenizer.state_dict()
                if tensors.keys() != state.keys() or not all(
                    torch.equal(tensors[k], v.cpu()) for k, v in state.items()
                ):
                    raise UserError(f"{self.out} was begun with another tokenizer: give another --out")
            tokenizer = build_tokenizer(self.config.tokenizer)
            tokenizer.load_state_dict(tensors)
        elif tokenizer is None:
            tokenizer = self._fit(progress)
        state = {name: tensor.cpu().contiguous() for name, tensor in tokenizer.state_dict().items()}
        write_whole(path, lambda partial: partial.write_bytes(save(state)))
        self.tokenizer = tokenizer.to(self.device).eval().requires_grad_(False)

    def run(self, text_encoder: TextEncoder, left_out: list[LeftOut], progress: Progress) -> Prepared:
        """Make the shards that are missing or damaged, then count and measure what is in all of them."""
        self.text_encoder = text_encoder
        before = self._records_of_last_time()
        moments = {name: RunningMoments() for name in ("image", "video")}
        records: list[Record] = []
        windows = sum(map(len, self.shards))
        advance = progress("encoding", windows)
        for number, shard in enumerate(self.shards):
            path = self.out / shard_name(number)
            found = self._take_in(path, number) if path.exists() else None
            if found is None or (before is not None and found.records != before.get(number)):
                write_shard(path, self._samples(shard, advance))
                found = self._take_in(path, number)
                if found is None:
                    raise RuntimeError(f"{path} was written, but what is there now is something else: check the disk")
            else:
                advance(len(shard))
            records += found.records
            for name, part in found.moments.items():
                moments[name].merge(part)
        left_out = left_out + self._windows_left_out({record["key"] for record in records})
        if not records:
            raise UserError(f"no clip could be decoded:{_lines(left_out)}")
        return self._finish(records, moments, left_out)

    def _samples(self, shard: list[Numbered], advance: Callable[[int], None]) -> Iterator[Sample]:
        """The samples of a shard; windows that cannot be used are left out."""
        for number, window in shard:
            with suppress(UserError):  # found again, with the reason, when all are counted
                yield self._sample(number, window)
            advance(1)

    def _sample(self, number: int, window: Window) -> Sample:
        """One clip, encoded.

        Raises:
            UserError: it cannot be decoded, or its caption cannot be encoded.
        """
        file = window.file
        video, fps = self.source.window(file, window.start, window.frames)
        latents = self._encode(video[None])[0]
        if not torch.isfinite(latents).all():
            raise UserError("its latents are not finite")
        tensors = {"latents": latents.to(self.dtype)}
        if file.caption is not None:
            tensors["text_embeddings"] = self._embed(file.caption).to(self.dtype)
        top, left = ((whole - part) // 2 for whole, part in zip(file.bucket, file.fitted, strict=True))
        real = video[:, :, top : top + file.fitted[0], left : left + file.fitted[1]]
        record = {
            "file": file.path.name,
            "start": window.start,
            "frames": window.frames,
            "domain": file.domain,
            "caption": file.caption,
            "fps": IMAGE_FPS if file.domain == "image" else fps,
            "height": file.height,
            "width": file.width,
            "bucket": list(file.bucket),
            "fitted": list(file.fitted),  # with the bucket it gives the padding mask
            "sharpness": round(sharpness(real), 3),
            "motion": round(motion(real), 3),
        }
        return Sample(key_of(number), record, tensors)

    def _encode(self, video: Video) -> Latents:
        if isinstance(self.tokenizer, HaarPCATokenizer):
            return self.tokenizer.encode(video.to(self.device)).cpu()
        return encode_in_pieces(self.tokenizer, video, self.plans[video.shape[3], video.shape[4]])

    def _embed(self, caption: str) -> Tensor:
        """Rows of a caption up to its last word; the zeros behind it are not stored."""
        if self.embedded[0] != caption:  # all windows of a video have the same
            rows = self.text_encoder.encode([caption])[0].cpu()
            used = int(rows.abs().amax(1).nonzero().max()) + 1
            self.embedded = caption, rows[:used]
        return self.embedded[1]

    def _fit(self, progress: Progress) -> HaarPCATokenizer:
        """A tokenizer fitted to some of the clips, drawn by the seed: those of the size there is most of."""
        assert isinstance(self.config.tokenizer, HaarPCAConfig)
        windows = [window for shard in self.shards for _, window in shard]
        sizes = Counter((window.frames, window.file.bucket) for window in windows)
        (frames, bucket), _ = max(sizes.items(), key=lambda item: (item[0][0] > 1, item[1]))  # videos before images
        windows = [window for window in windows if (window.frames, window.file.bucket) == (frames, bucket)]
        most = max(1, min(FIT_CLIPS, FIT_BYTES // (12 * frames * bucket[0] * bucket[1]), len(windows)))
        drawn = philox(self.config.train.seed, 0, FIT_STREAM).permutation(len(windows))[:most]
        advance, videos = progress("fitting the tokenizer", most), []
        for number in sorted(drawn):
            with suppress(UserError):  # of a file that is damaged further on
                videos.append(self.source.window(windows[number].file, windows[number].start, frames)[0])
            advance(1)
        if not videos:
            raise UserError("no clip could be decoded to fit a tokenizer to")
        return HaarPCATokenizer.fit(self.config.tokenizer, torch.stack(videos))

    def _take_in(self, path: Path, number: int) -> "Found | None":
        """What is in a shard; None if it is damaged."""
        found = Found([], {name: RunningMoments() for name in ("image", "video")})
        try:
            for record, tensors in scan_shard(path):
                found.records.append({"shard": number, **record})
                latents = tensors["latents"]
                # The first latent frame of a video is that of an image: it depends on the first frame alone.
                found.moments["image"].update(latents[:, :1], over=(1, 2, 3))
                if record["domain"] == "video":
                    found.moments["video"].update(latents, over=(2, 3))
        except (ValueError, KeyError):
            return None
        return found

    def _records_of_last_time(self) -> dict[int, list[Record]] | None:
        """Samples by shard, if a run was finished: what differs now was damaged."""
        try:
            samples = read_index(self.out)["samples"]
        except UserError:
            return None
        return {number: [s for s in samples if s["shard"] == number] for number in range(len(self.shards))}

    def _windows_left_out(self, there: set[str]) -> list[LeftOut]:
        """Windows that no shard has, tried again for the reason: so it need not be kept while the work goes on."""
        left_out = []
        for number, window in (numbered for shard in self.shards for numbered in shard):
            if key_of(number) not in there:
                try:
                    self._sample(number, window)
                    reason = "could not be used when its shard was made, but can be now: prepare another folder"
                except UserError as error:
                    reason = str(error)
                last = window.start + window.frames - 1
                left_out.append(LeftOut(window.file.path, f"frames {window.start} to {last}: {reason}"))
        return left_out

    def _finish(self, records: list[Record], moments: dict[str, RunningMoments], left_out: list[LeftOut]) -> Prepared:
        """Write what is known of all shards; the index comes last and says that they are whole."""
        statistics = {}
        for name, part in moments.items():
            if part.count:
                statistics |= {f"{name}.mean": part.mean.float(), f"{name}.std": part.std.float()}
        counts: dict[str, Counter[Domain]] = {}
        for record in records:
            counts.setdefault("x".join(map(str, record["bucket"])), Counter())[record["domain"]] += 1
        shards = [shard_name(number) for number in range(len(self.shards))]
        index = {
            "format": FORMAT,
            "identity": identity_of(self.settings, records),
            "settings": self.settings,
            "counts": counts,
            "shards": [{"name": name, "bytes": (self.out / name).stat().st_size} for name in shards],
        }
        listed = [
            {"file": out.path.name, "reason": out.reason.replace(str(out.path), out.path.name)} for out in left_out
        ]
        write_whole(self.out / STATISTICS, lambda partial: partial.write_bytes(save(statistics)))
        write_json(self.out / SKIPPED, listed)
        lines = ",\n".join(json.dumps(record, ensure_ascii=False) for record in records)  # one to a line
        text = json.dumps(index, indent=1, ensure_ascii=False).removesuffix("\n}") + f',\n "samples": [\n{lines}\n]}}\n'
        write_whole(self.out / INDEX, lambda partial: partial.write_text(text, encoding="utf-8"))
        return Prepared(len(shards), {size: dict(held) for size, held in counts.items()}, left_out)


class Found(NamedTuple):
    """What is in a shard."""

    records: list[Record]
    moments: dict[str, RunningMoments]


def cut(files: list[File], frames: int) -> Iterator[Window]:
    """All clips of all files: an image is one, a video as many as it has room for side by side."""
    for file in files:
        if file.domain == "image":
            yield Window(file, 0, 1)
        else:
            yield from (Window(file, start, frames) for start in range(0, file.frames - frames + 1, frames))


def key_of(number: int) -> str:
    """Name of a sample, from its place in the plan."""
    return f"{number:08d}"


def shard_name(number: int) -> str:
    """Name of a shard, from its place in the plan."""
    return f"shard-{number:05d}.tar"


def _lines(left_out: list[LeftOut]) -> str:
    return "".join(f"\n  {out.path.name}: {out.reason}" for out in left_out)


def _open(folder: Path, config: Config, resize: bool, progress: Progress) -> FolderSource:
    """The files that can be used."""
    images, videos = find_images(folder), find_videos(folder, required=False)
    advance = progress("looking at files", len(images) + len(videos))
    domains: tuple[Domain, ...] = ("video", "image") if videos else ("image",)
    return FolderSource(
        folder,
        config.clip,
        resize=resize,
        seed=config.train.seed,
        data=config.data,
        domains=domains,
        skip=True,
        keep=False,
        progress=lambda: advance(1),
    )


def _plan(config: Config, max_memory: float) -> dict[Bucket, Plan]:
    """How clips of each size go through a tokenizer with weights; none for one that is fitted.

    Raises:
        UserError: the tokenizer cannot take such clips, gives no latents, or the memory is not enough.
    """
    plans, frames, tokenizer = {}, config.clip.frames, config.tokenizer
    if isinstance(tokenizer, ConvTokenizerConfig) and tokenizer.fsq_levels:
        raise UserError("a discrete tokenizer gives codes, and diffusion needs latents: choose a continuous one")
    latent_length(frames, tokenizer.temporal_factor)
    for height, width in bucket_sizes(config.clip, config.data.buckets):
        check_side("height", height, tokenizer.spatial_factor)
        check_side("width", width, tokenizer.spatial_factor)
        if isinstance(tokenizer, ConvTokenizerConfig):
            plans[height, width] = plan_tokenizer(tokenizer, frames, height, width, max_memory)
    return plans


def _check_out(out: Path) -> None:
    there = {path.name for path in out.iterdir()} if out.is_dir() else set()
    if there - {UNPACKED} and not (out / SETTINGS).is_file():
        raise UserError(
            f"{out} holds something else: give a folder that is new, empty or begun by `cosmos-ref prepare`"
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write into {out} ({error.strerror}): give another --out") from error
    if not os.access(out, os.W_OK | os.X_OK):
        raise UserError(f"cannot write into {out}: give another --out")
