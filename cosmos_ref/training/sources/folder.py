"""Training clips from a folder of ordinary videos and images; `name.txt` beside `name.mp4` is its caption."""

import hashlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from cosmos_ref import video_io
from cosmos_ref.config import ClipConfig, DataConfig
from cosmos_ref.equations.buckets import fit_size, nearest_bucket, padding_mask, reflection_padding
from cosmos_ref.equations.pixels import from_bytes, to_bytes
from cosmos_ref.errors import UserError
from cosmos_ref.training.random import philox
from cosmos_ref.training.sources.clips import (
    CLIP_STREAM,
    Bucket,
    Clips,
    Domain,
    bucket_sizes,
    draw_bucket,
    fullest,
)

KEEP_FRAMES, KEEP_BYTES = 2000, 2**30
"""A folder of at most this size is decoded once and kept in memory."""


@dataclass(frozen=True)
class File:
    """A video or an image, and the size that it is brought to."""

    path: Path
    domain: Domain
    frames: int
    height: int
    width: int
    caption: str | None
    bucket: Bucket
    fitted: Bucket
    """Height and width of what is not padding."""


@dataclass(frozen=True)
class LeftOut:
    """A file, or a window of one, that is not used, and why."""

    path: Path
    reason: str


class FolderSource:
    """Windows of the videos of a folder, and as images its images and single frames of its videos.

    Without buckets a file has the clip's size, or is brought there by `resize`. With them it goes into the one whose
    aspect ratio is nearest: scaled until it fits, and padded to both sides by its mirror image.

    Args:
        folder: where the files are.
        clip: the clips wanted.
        resize: without buckets, scale and centre-crop files of another size.
        seed: decides which window a number stands for.
        data: which buckets, and which files are left out.
        domains: what is wanted. Image files are looked at for images only, and only then may videos be missing.
        skip: leave files out that cannot be used, instead of refusing the folder; `left_out` lists them.
        keep: decode a small folder once and keep it in memory.
        progress: called after each file that was looked at.

    Raises:
        UserError: there are no files, or some are unreadable, too short, or of another size without `resize`.
    """

    def __init__(
        self,
        folder: str | Path,
        clip: ClipConfig,
        *,
        resize: bool,
        seed: int,
        data: DataConfig | None = None,
        domains: Collection[Domain] = ("video",),
        skip: bool = False,
        keep: bool = True,
        progress: Callable[[], None] = lambda: None,
    ):
        data = data or DataConfig()
        self.clip, self.resize, self.seed, self.data = clip, resize, seed, data
        if data.min_sharpness > 0:
            raise UserError(f"data.min_sharpness {data.min_sharpness:g} needs prepared clips: run `cosmos-ref prepare`")
        self.shortest = clip.frames if "video" in domains else 1
        images = video_io.find_images(folder) if "image" in domains else []
        paths = sorted([*images, *video_io.find_videos(folder, required=not images)])
        self.files: list[File] = []
        self.left_out: list[LeftOut] = []
        faults = []
        for path in paths:
            try:
                file = self._examine(path, "image" if path in images else "video")
                if file.height < data.min_height:
                    self.left_out.append(LeftOut(path, f"{file.height} lines, fewer than {data.min_height}"))
                else:
                    self.files.append(file)
            except UserError as error:
                faults.append(LeftOut(path, str(error)))
            progress()
        if faults and not skip:
            raise UserError(_refusal(folder, faults, len(paths)))
        self.left_out = sorted(self.left_out + faults, key=lambda out: out.path)
        self.held = {domain: self._sort_into_buckets(domain) for domain in domains}
        for domain, held in self.held.items():
            if not held:
                reasons = "".join(f"\n  {out.path}: {out.reason}" for out in self.left_out)
                raise UserError(f"{folder} holds no {domain} that could be used: add some{reasons}")
        self.captions = [file.caption for file in self.files]
        self.kept: dict[Path, tuple[Tensor, float]] = {}
        frames = sum(file.frames for file in self.files)
        size = sum(3 * file.frames * file.bucket[0] * file.bucket[1] for file in self.files)
        if keep and frames <= KEEP_FRAMES and size <= KEEP_BYTES:
            for file in self.files:
                whole = self._read(file.path, file.bucket, 0, file.frames)
                self.kept[file.path] = to_bytes(whole.video), whole.fps
        content = [(file.path.name, file.path.stat().st_size, file.caption) for file in self.files]
        settings = (content, resize)
        if (data.buckets, tuple(domains)) != ("one", ("video",)):
            settings += (data.buckets, tuple(domains))
        digest = hashlib.sha256(repr(settings).encode()).hexdigest()[:16]
        self.identity = f"{len(self.files)} {'files' if images else 'video files'}, {digest}, seed {seed}"

    def clips(self, indices: Sequence[int], domain: Domain = "video", bucket: Bucket | None = None) -> Clips:
        """The clips of these numbers: a file of this bucket at random, a window in it at random."""
        files = self.held[domain][bucket or fullest(self._counts(domain))]
        frames = 1 if domain == "image" else self.clip.frames
        videos, masks, captions, rates = [], [], [], []
        for index in indices:
            random = philox(self.seed, index, CLIP_STREAM[domain])
            file = files[int(random.integers(len(files)))]
            video, fps = self.window(file, int(random.integers(file.frames - frames + 1)), frames)
            videos.append(video)
            masks.append(padding_mask(*file.fitted, *file.bucket))
            captions.append(file.caption)
            rates.append(video_io.IMAGE_FPS if domain == "image" else fps)
        mask = None if self.data.buckets == "one" else torch.stack(masks)
        return Clips(torch.stack(videos), captions, torch.tensor(rates), mask)

    def bucket(self, micro_batch: int, domain: Domain = "video") -> Bucket:
        """The size of a micro-batch; each is as likely as it holds files."""
        return draw_bucket(self._counts(domain), self.seed, micro_batch, domain)

    def window(self, file: File, start: int, frames: int) -> tuple[Float[Tensor, "3 T H W"], float]:
        """Consecutive frames of a file, as large as its bucket, and their rate.

        Raises:
            UserError: they cannot be decoded.
        """
        if file.path in self.kept:
            pixels, fps = self.kept[file.path]
            video = from_bytes(pixels[:, start : start + frames])
        else:
            read = self._read(file.path, file.bucket, start, frames)
            video, fps = read.video, read.fps
        return (video if file.fitted == file.bucket else reflection_padding(video, *file.bucket)), fps

    def _examine(self, path: Path, domain: Domain) -> File:
        """What a file holds; its first window is decoded, which raises now what it would raise later."""
        probe = video_io.probe(path)
        low, high = self.clip.fps_range
        if domain == "video" and not low <= probe.fps <= high:
            raise UserError(f"{path} has {probe.fps:g} frames a second: the model takes {low:g} to {high:g}")
        sizes = bucket_sizes(self.clip, self.data.buckets)
        bucket = nearest_bucket(probe.height, probe.width, sizes)
        self._read(path, bucket, 0, 1 if domain == "image" else self.shortest)
        fitted = bucket if self.data.buckets == "one" else fit_size(probe.height, probe.width, *bucket)
        caption = video_io.caption_of(path)
        return File(path, domain, probe.frames, probe.height, probe.width, caption, bucket, fitted)

    def _read(self, path: Path, bucket: Bucket, start: int, frames: int) -> video_io.Clip:
        """Frames before they are padded."""
        if self.data.buckets != "one":
            return video_io.read_clip(path, frames=frames, start=start, inside=bucket)
        height, width = bucket
        return video_io.read_clip(path, frames=frames, start=start, height=height, width=width, resize=self.resize)

    def _sort_into_buckets(self, domain: Domain) -> dict[Bucket, list[File]]:
        """Files that give clips of a domain, by bucket: videos give images too."""
        held: dict[Bucket, list[File]] = {}
        for file in self.files:
            if domain == "image" or file.domain == "video":
                held.setdefault(file.bucket, []).append(file)
        return held

    def _counts(self, domain: Domain) -> dict[Bucket, int]:
        return {bucket: len(files) for bucket, files in self.held[domain].items()}


def _refusal(folder: str | Path, faults: list[LeftOut], total: int) -> str:
    listed = "\n  ".join(fault.reason for fault in faults)
    return (
        f"{len(faults)} of the {total} files in {folder} cannot be used: mend or remove them, or run `cosmos-ref "
        f"prepare`, which leaves them out:\n  {listed}"
    )
