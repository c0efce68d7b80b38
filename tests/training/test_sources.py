"""Sources of clips: a number always stands for the same clip."""

import dataclasses

import pytest
import torch

from cosmos_ref import video_io
from cosmos_ref.conditioning.text import build_text_encoder
from cosmos_ref.config import PRESETS
from cosmos_ref.errors import UserError
from cosmos_ref.tokenizer.haar_pca import HaarPCATokenizer
from cosmos_ref.training.data import draw_batch
from cosmos_ref.training.sources import TRAINING_SCENES, FolderSource, WorldSource
from cosmos_ref.worlds import simulate

MICRO = PRESETS["micro"]
TEXT = build_text_encoder(MICRO.text)

# --- The simulated world


@pytest.fixture(scope="module")
def world():
    return WorldSource(MICRO.clip, "mixed", seed=0)


@pytest.fixture(scope="module")
def tokenizer(world):
    return HaarPCATokenizer.fit(MICRO.tokenizer, world.clips(range(2**39, 2**39 + 64)).video)


def test_training_scenes_are_all_different_and_none_is_held_out(world):
    clips = world.clips(range(16)).video
    other = WorldSource(MICRO.clip, "mixed", seed=1).clips(range(16)).video
    held_out = simulate(range(16), frames=5, height=16, width=16).video
    assert len(torch.cat([clips, other, held_out]).flatten(1).unique(dim=0)) == 48
    first = simulate([TRAINING_SCENES], frames=5, height=16, width=16).video
    assert torch.equal(clips[:1], first)


def test_a_scene_that_cannot_be_simulated_is_refused_at_once():
    with pytest.raises(UserError, match="circus"):
        WorldSource(MICRO.clip, "circus", seed=0)
    with pytest.raises(UserError, match="seed -1"):
        WorldSource(MICRO.clip, "mixed", seed=-1)


# --- A folder of files


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two clips of 7 and 12 frames at 12 and 30 frames a second; the brightness of each frame is its number."""
    folder = tmp_path_factory.mktemp("videos")
    for name, frames, fps in (("long", 12, 30), ("short", 7, 12)):
        brightness = torch.arange(frames) / 15 - (1 if name == "long" else 0.0)
        video = brightness.reshape(1, -1, 1, 1).expand(3, -1, 16, 16)
        video_io.write_video(folder / f"{name}.mp4", video, fps)
    (folder / "short.txt").write_text("a short one")
    return folder


def frame_numbers(video):
    """Of a clip of the fixture, to the nearest number."""
    level = video.mean((0, 2, 3))
    return ((level + (1 if level[0] < -0.1 else 0)) * 15).round().int().tolist()


@pytest.mark.parametrize("keep", [True, False])
def test_a_folder_gives_all_windows_with_their_caption_and_rate(folder, keep, monkeypatch):
    if not keep:
        monkeypatch.setattr("cosmos_ref.training.sources.folder.KEEP_FRAMES", 0)
    source = FolderSource(folder, MICRO.clip, resize=False, seed=0)
    assert bool(source.kept) == keep
    clips = source.clips(range(120))
    seen = set()
    for video, caption, fps in zip(clips.video, clips.captions, clips.fps, strict=True):
        numbers = frame_numbers(video)
        assert numbers == list(range(numbers[0], numbers[0] + 5))
        assert (caption, round(fps.item())) in {("a short one", 12), (None, 30)}
        seen.add((caption, numbers[0]))
    assert seen == {("a short one", start) for start in range(3)} | {(None, start) for start in range(8)}


def test_a_window_does_not_depend_on_the_batch_nor_on_memory(folder, monkeypatch):
    source = FolderSource(folder, MICRO.clip, resize=False, seed=0)
    whole = source.clips(range(8)).video
    assert torch.equal(torch.cat([source.clips([3]).video, source.clips([7, 0]).video]), whole[[3, 7, 0]])
    monkeypatch.setattr("cosmos_ref.training.sources.folder.KEEP_FRAMES", 0)
    again = FolderSource(folder, MICRO.clip, resize=False, seed=0)
    assert again.identity == source.identity
    torch.testing.assert_close(again.clips(range(8)).video, whole, rtol=0, atol=1e-6)


def test_a_clip_without_caption_has_the_null_text(folder, tokenizer):
    source = FolderSource(folder, MICRO.clip, resize=False, seed=0)
    config = dataclasses.replace(MICRO, train=dataclasses.replace(MICRO.train, text_dropout=0.0))
    text = draw_batch(source, config, tokenizer, TEXT, range(20)).condition["text_embeddings"]
    captioned = torch.tensor([caption is not None for caption in source.clips(range(20)).captions])
    assert 0 < captioned.sum() < 20
    assert torch.equal((text != 0).any(-1).any(-1), captioned)


def test_a_folder_of_other_files_is_another_source(folder, tmp_path):
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    identity = FolderSource(folder, MICRO.clip, resize=False, seed=0).identity
    assert FolderSource(tmp_path, MICRO.clip, resize=False, seed=0).identity == identity
    (tmp_path / "long.txt").write_text("now with a caption")
    assert FolderSource(tmp_path, MICRO.clip, resize=False, seed=0).identity != identity


@pytest.mark.parametrize(
    ("changes", "named"),
    [(dict(frames=9), "short.mp4 holds 7"), (dict(height=8, width=8), "long.mp4 has frames of 16x16.*--resize")],
)
def test_unfit_videos_are_refused_before_training(folder, changes, named):
    with pytest.raises(UserError, match=named):
        FolderSource(folder, dataclasses.replace(MICRO.clip, **changes), resize=False, seed=0)


def test_videos_of_another_size_are_resized(folder):
    clip = dataclasses.replace(MICRO.clip, height=8, width=8)
    video = FolderSource(folder, clip, resize=True, seed=0).clips([0, 1]).video
    assert video.shape == (2, 3, 5, 8, 8)
    assert all(frame_numbers(v) == list(range(frame_numbers(v)[0], frame_numbers(v)[0] + 5)) for v in video)


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(UserError):
        FolderSource(tmp_path, MICRO.clip, resize=False, seed=0)
