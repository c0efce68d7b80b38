"""Training clips from a folder of ordinary files."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from cosmos_ref import video_io
from cosmos_ref.config import ClipConfig
from cosmos_ref.equations.pixels import from_bytes, to_bytes
from cosmos_ref.training.random import philox
from cosmos_ref.training.sources.clips import Bucket, Clips, Domain

KEEP_FRAMES, KEEP_BYTES = 2000, 2**30
"""A folder of at most this size is decoded once and kept in memory."""


class FolderSource:
    """Windows of ordinary video files; `name.txt` beside `name.mp4` is its caption.

    Args:
        folder: where the files are.
        clip: the clips wanted.
        resize: scale and centre-crop files of another size.
        seed: decides which window a number stands for.

    Raises:
        UserError: no videos, or one that is unreadable, too short, or of another size without `resize`.
    """

    def __init__(self, folder: str | Path, clip: ClipConfig, *, resize: bool, seed: int):
        self.clip, self.resize, self.seed = clip, resize, seed
        self.paths = video_io.find_videos(folder)
        self.captions = [video_io.caption_of(path) for path in self.paths]
        self.lengths: list[int] = []
        for path in self.paths:
            self._read(path, 0)  # raises now what it would raise later
            self.lengths.append(video_io.probe(path).frames)
        self.kept: list[tuple[Tensor, float]] = []
        frames = sum(self.lengths)
        if frames <= KEEP_FRAMES and frames * 3 * clip.height * clip.width <= KEEP_BYTES:
            whole = [self._read(path, 0, length) for path, length in zip(self.paths, self.lengths, strict=True)]
            self.kept = [(to_bytes(read.video), read.fps) for read in whole]
        content = [(p.name, p.stat().st_size, c) for p, c in zip(self.paths, self.captions, strict=True)]
        digest = hashlib.sha256(repr((content, resize)).encode()).hexdigest()[:16]
        self.identity = f"{len(self.paths)} video files, {digest}, seed {seed}"

    def clips(self, indices: Sequence[int], domain: Domain = "video", bucket: Bucket | None = None) -> Clips:
        """The clips of these numbers: a file at random, a window in it at random."""
        videos, captions, rates = [], [], []
        for index in indices:
            random = philox(self.seed, index, stream=1)
            file = int(random.integers(len(self.paths)))
            start = int(random.integers(self.lengths[file] - self.clip.frames + 1))
            if self.kept:
                frames, fps = self.kept[file]
                video = from_bytes(frames[:, start : start + self.clip.frames])
            else:
                read = self._read(self.paths[file], start)
                video, fps = read.video, read.fps
            videos.append(video)
            captions.append(self.captions[file])
            rates.append(fps)
        return Clips(torch.stack(videos), captions, torch.tensor(rates))

    def bucket(self, micro_batch: int, domain: Domain = "video") -> Bucket:
        """The clip's own size."""
        return self.clip.height, self.clip.width

    def _read(self, path: Path, start: int, frames: int | None = None) -> video_io.Clip:
        clip = self.clip
        return video_io.read_clip(
            path,
            frames=frames or clip.frames,
            start=start,
            height=clip.height,
            width=clip.width,
            resize=self.resize,
        )
