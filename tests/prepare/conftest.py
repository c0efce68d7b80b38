"""A small folder of ordinary files, and what becomes of it."""

import dataclasses

import pytest
import torch
from PIL import Image

from cosmos_ref import video_io
from cosmos_ref.conditioning.text import build_text_encoder
from cosmos_ref.config import PRESETS, DataConfig
from cosmos_ref.prepare.run import prepare

CONFIG = dataclasses.replace(PRESETS["micro"], data=DataConfig(buckets="32", image_share=0.5))
TEXT = build_text_encoder(CONFIG.text)


def drifting(seed: int, frames: int, height: int, width: int) -> torch.Tensor:
    """Coarse noise that brightens from frame to frame: no two windows are alike."""
    noise = torch.rand(3, 1, height // 4, width // 4, generator=torch.Generator().manual_seed(seed))
    still = noise.repeat_interleave(4, 2).repeat_interleave(4, 3) - 0.9
    return still + torch.linspace(0, 0.8, frames).reshape(1, -1, 1, 1)


def make(folder, out, **changes):
    """Prepare as most tests do."""
    arguments = {"config": CONFIG, "text_encoder": TEXT, "clips_per_shard": 2} | changes
    return prepare(folder, out, **arguments)


def contents(folder):
    """Every file of a folder, hidden ones too."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    """Two videos of 13 and 8 frames (2 and 1 windows of 5) of two shapes, an image; one video has a caption."""
    folder = tmp_path_factory.mktemp("files")
    video_io.write_video(folder / "a.mp4", drifting(1, 13, 20, 28), 12)
    video_io.write_video(folder / "b.mp4", drifting(2, 8, 28, 20), 24)
    (folder / "a.txt").write_text("a red marble falls")
    pixels = (drifting(3, 1, 20, 20)[:, 0].permute(1, 2, 0) * 127 + 128).byte().numpy()
    Image.fromarray(pixels).save(folder / "c.png")
    return folder


@pytest.fixture(scope="session")
def shards(files, tmp_path_factory):
    """The folder, prepared without disturbance: 4 samples in 2 shards."""
    out = tmp_path_factory.mktemp("shards") / "shards"
    make(files, out)
    return out
