"""A file gives the same pixels with and without PyTorch, and so the same clip."""

import struct
from dataclasses import replace

import numpy as np
import pytest
from cosmos_export.compare import SAMPLING_LIMIT, compare
from cosmos_export.runtime import sample
from cosmos_export.video import fit, read_last_frames, write_mp4
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cosmos_ref.conditioning.text import build_text_encoder
from cosmos_ref.pipelines.video2world import video2world
from cosmos_ref.pipelines.world_model import in_memory
from cosmos_ref.video_io import read_clip


def film(path, height=90, width=150, frames=7, quarter_turn=False):
    """A video of moving waves and noise, with a quarter turn in its header as a telephone held upright writes it."""
    t, y, x = np.meshgrid(np.arange(frames), np.arange(height), np.arange(width), indexing="ij")
    waves = np.stack([np.sin(x / (5 + k) + y / 9 + t) for k in range(3)])
    noise = np.random.default_rng(0).uniform(-0.3, 0.3, waves.shape)
    write_mp4(path, (0.7 * waves + noise).astype(np.float32), 24)
    if quarter_turn:
        data, one = bytearray(path.read_bytes()), 1 << 16
        struct.pack_into(">9i", data, data.index(b"tkhd") + 44, 0, one, 0, -one, 0, 0, 0, 0, 1 << 30)
        path.write_bytes(data)
    return path


@pytest.mark.parametrize("quarter_turn", [False, True])
@pytest.mark.parametrize("size", [None, (32, 32), (8, 24), (96, 208)], ids=str)
@pytest.mark.parametrize("count", [1, 5])
def test_both_readers_give_the_same_pixels(tmp_path, quarter_turn, size, count):
    path = film(tmp_path / "a.mp4", quarter_turn=quarter_turn)
    height, width = size or (None, None)
    theirs = read_clip(path, frames=count, from_end=True, height=height, width=width, resize=True).video.numpy()
    assert theirs.shape == (3, count, *(size or ((150, 90) if quarter_turn else (90, 150))))
    assert (read_last_frames(path, count, size) == theirs).all()


@given(
    found=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    wanted=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    seed=st.integers(0, 1000),
    contrast=st.booleans(),
)
def test_both_fit_a_picture_of_any_shape_to_any_shape_alike(tmp_path_factory, found, wanted, seed, contrast):
    picture = np.random.default_rng(seed).integers(0, 256, (*found, 3), np.uint8)
    if contrast:  # black and white, where the kernel overshoots
        picture = np.where(picture > 127, 255, 0).astype(np.uint8)
    path = tmp_path_factory.getbasetemp() / "fit.png"
    Image.fromarray(picture).save(path)
    theirs = read_clip(path, height=wanted[0], width=wanted[1], resize=True).video[:, 0].permute(1, 2, 0).numpy()
    assert (fit(picture, *wanted).astype(np.float32) / 127.5 - 1 == theirs).all()


def test_a_fine_checkerboard_shrunk_forty_times_is_grey():
    board = np.indices((1280, 1280)).sum(axis=0) % 2 * 255
    shrunk = fit(np.repeat(board[..., None], 3, axis=2).astype(np.uint8), 32, 32)
    assert np.abs(shrunk - 127.5).max() <= 1  # bytes are rounded twice


def test_a_file_is_continued_as_pytorch_continues_it(exported, tmp_path):
    path, config = film(tmp_path / "a.mp4", quarter_turn=True), exported.config
    model = in_memory(config, exported.denoiser, exported.tokenizer, build_text_encoder(config.text))
    clip, settings = config.clip, replace(config.sample, num_steps=6, augment_sigma=0.1, seed=2**64 - 1)
    ours = read_clip(path, frames=3, from_end=True, height=clip.height, width=clip.width, resize=True).video[None]
    expected = video2world(model, ours, ["a red marble"], clip, settings)
    theirs = read_last_frames(path, 3, (clip.height, clip.width))[None]
    same = dict(num_steps=settings.num_steps, augment_sigma=settings.augment_sigma, seed=settings.seed)
    made = sample(exported.bundle, ["a red marble"], given_video=theirs, **same)
    assert compare("latents", expected.x0.numpy(), made.x0, SAMPLING_LIMIT).ok
    assert compare("video", expected.video.numpy(), made.video, SAMPLING_LIMIT).ok
