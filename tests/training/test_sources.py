"""Sources of clips: a number always stands for the same clip."""

import dataclasses
from collections import Counter

import numpy as np
import pytest
import torch
import torch.nn.functional as nnf
from PIL import Image

from cosmos_ref import video_io
from cosmos_ref.conditioning.text import build_text_encoder
from cosmos_ref.config import BUCKETS, PRESETS, DataConfig
from cosmos_ref.equations.pixels import to_bytes
from cosmos_ref.errors import UserError
from cosmos_ref.tokenizer.haar_pca import HaarPCATokenizer
from cosmos_ref.training.data import draw_batch
from cosmos_ref.training.sources import TRAINING_SCENES, FolderSource, WorldSource, open_source
from cosmos_ref.training.sources.clips import draw_bucket
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


def test_an_image_is_one_frame_of_a_scene_that_no_video_shows(world):
    images, videos = world.clips(range(16), "image").video, world.clips(range(16)).video
    assert images.shape == (16, 3, 1, 16, 16)
    frames = torch.cat([images[:, :, 0], videos.transpose(1, 2).flatten(0, 1)])
    assert len(frames[:16].flatten(1).unique(dim=0)) == 16
    assert not any(torch.equal(image, frame) for image in frames[:16] for frame in frames[16:])
    assert torch.equal(images[[3]], world.clips([3], "image").video)


def test_scenes_are_simulated_in_the_shape_of_their_bucket():
    """Nothing is padded, and there are none as narrow as the world's box cannot be."""
    source = WorldSource(MICRO.clip, "mixed", seed=0, buckets="32")
    drawn = {source.bucket(number) for number in range(100)}
    assert drawn == set(BUCKETS["32"]) - {(40, 24)}
    for height, width in drawn:
        clips = source.clips([1], bucket=(height, width))
        assert clips.padding_mask is None
        same_scene = simulate([TRAINING_SCENES + 1], frames=5, height=height, width=width)
        assert torch.equal(clips.video, same_scene.video)


# --- Buckets


def test_a_bucket_comes_as_often_as_it_holds_clips():
    held, count = {(24, 32): 1, (32, 32): 6, (32, 24): 3}, 3000
    drawn = Counter(draw_bucket(held, 7, number, "video") for number in range(count))
    for size, share in held.items():
        assert drawn[size] / count == pytest.approx(share / 10, abs=5 * (0.25 / count) ** 0.5)


def test_the_bucket_of_a_micro_batch_follows_from_its_number_alone(mixed):
    """Not from the process that asks, nor from what was asked before; images and videos have draws of their own."""

    def source():
        return FolderSource(mixed, MICRO.clip, resize=False, seed=3, data=ALL, domains=BOTH)

    once, again = source(), source()
    in_order = [once.bucket(number) for number in range(40)]
    again.clips([5], "image")
    backwards = [again.bucket(number, "image") and again.bucket(number) for number in reversed(range(40))]
    assert in_order == backwards[::-1]
    assert in_order != [once.bucket(number, "image") for number in range(40)]


@pytest.mark.parametrize("domain", ["video", "image"])
@pytest.mark.parametrize("kind", ["world", "folder"])
def test_what_all_processes_see_together_is_what_one_would_see(mixed, kind, domain):
    """Each takes every third micro-batch of two, from a source of its own."""

    def source():
        config = dataclasses.replace(MICRO, data=dataclasses.replace(ALL, image_share=0.5))
        return open_source(mixed if kind == "folder" else None, config)

    def micro_batch(source, number):
        return source.clips([2 * number, 2 * number + 1], domain, source.bucket(number, domain)).video

    alone = source()
    whole = [micro_batch(alone, number) for number in range(6)]
    ranks = [source() for _ in range(3)]
    spread = [[micro_batch(ranks[rank], number) for number in range(rank, 6, 3)] for rank in range(3)]
    assert all(torch.equal(whole[number], spread[number % 3][number // 3]) for number in range(6))


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


def test_all_files_that_cannot_be_used_are_named_at_once_or_left_out(folder, tmp_path):
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    whole = (tmp_path / "long.mp4").read_bytes()
    (tmp_path / "broken.mp4").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "picture.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"2 of the 4 files(.|\n)*broken.mp4(.|\n)*empty.mp4"):
        FolderSource(tmp_path, MICRO.clip, resize=False, seed=0)
    with pytest.raises(UserError, match=r"3 of the 5 files(.|\n)*picture.png"):
        FolderSource(tmp_path, MICRO.clip, resize=False, seed=0, domains=BOTH)
    source = FolderSource(tmp_path, MICRO.clip, resize=False, seed=0, skip=True)
    assert [file.path.name for file in source.files] == ["long.mp4", "short.mp4"]
    assert [out.path.name for out in source.left_out] == ["broken.mp4", "empty.mp4"]


# --- A folder of files of many sizes

ALL = DataConfig(buckets="32")
BOTH = ("video", "image")


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """Videos and an image of many shapes: nearest are 24x40, 24x40, 40x24, 32x32, and 24x32 for the image."""
    folder = tmp_path_factory.mktemp("mixed")
    sizes = {"wide": (20, 30), "wider": (12, 40), "tall": (60, 34), "square": (16, 16)}
    for number, (name, (height, width)) in enumerate(sizes.items()):
        noise = torch.rand(3, 7, height, width, generator=torch.Generator().manual_seed(number))
        video_io.write_video(folder / f"{name}.mp4", noise * 1.6 - 0.8, 12)
    pixels = np.random.default_rng(0).integers(0, 256, (30, 41, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "picture.png")
    (folder / "picture.txt").write_text("a picture")
    return folder


@pytest.fixture(scope="module")
def source(mixed):
    return FolderSource(mixed, MICRO.clip, resize=False, seed=0, data=ALL, domains=BOTH)


def test_files_go_to_the_bucket_of_the_nearest_aspect(source):
    buckets = {file.path.stem: file.bucket for file in source.files}
    assert buckets == {
        "wide": (24, 40),
        "wider": (24, 40),
        "tall": (40, 24),
        "square": (32, 32),
        "picture": (24, 32),
    }


@pytest.mark.parametrize(("name", "fitted"), [("wide", (24, 36)), ("wider", (12, 40)), ("tall", (40, 23))])
def test_the_middle_of_a_padded_clip_is_the_clip_and_the_mask_is_one_exactly_around_it(source, name, fitted):
    file = next(file for file in source.files if file.path.stem == name)
    video, _ = source.window(file, 1, 5)
    (height, width), (rows, columns) = file.bucket, fitted
    assert video.shape == (3, 5, height, width)
    top, left = (height - rows) // 2, (width - columns) // 2
    middle = video[:, :, top : top + rows, left : left + columns]

    whole = to_bytes(video_io.read_clip(file.path).video)[:, 1:6].permute(1, 2, 3, 0).numpy()
    resized = [np.asarray(Image.fromarray(f).resize((columns, rows), Image.Resampling.BICUBIC)) for f in whole]
    expected = torch.from_numpy(np.stack(resized)).permute(3, 0, 1, 2)
    difference = (to_bytes(middle).int() - expected.int()).abs()
    assert difference.max() <= 1  # Pillow rounds to 8 bits between columns and rows, in an order of its own

    around = (left, width - columns - left, top, height - rows - top)
    assert torch.equal(video, nnf.pad(middle, around, mode="reflect"))
    clips = source.clips(range(20), bucket=file.bucket)
    mask = next(m for m, v in zip(clips.padding_mask, clips.video, strict=True) if is_frame_of(v, source, file))
    assert torch.equal(mask, nnf.pad(torch.zeros(1, rows, columns), around, value=1.0))


def is_frame_of(video, source, file):
    return any(torch.equal(video, source.window(file, start, 5)[0]) for start in range(3))


def test_videos_give_images_too_and_images_give_no_video(source):
    """All frames of all videos and the image, each at the rate that leaves temporal frequencies as they are."""
    seen = Counter()
    for bucket in source.held["image"]:
        clips = source.clips(range(60), "image", bucket)
        assert clips.video.shape == (60, 3, 1, *bucket)
        assert set(clips.fps.tolist()) == {24.0}
        seen[bucket] = len(clips.video.flatten(1).unique(dim=0))
    assert seen == {(24, 40): 14, (40, 24): 7, (32, 32): 7, (24, 32): 1}
    assert (24, 32) not in source.held["video"]
    assert source.clips([0], "image", (24, 32)).captions == ["a picture"]


def test_clips_of_a_bucket_do_not_depend_on_memory(mixed, source, monkeypatch):
    monkeypatch.setattr("cosmos_ref.training.sources.folder.KEEP_FRAMES", 0)
    again = FolderSource(mixed, MICRO.clip, resize=False, seed=0, data=ALL, domains=BOTH)
    assert source.kept and not again.kept
    for domain in BOTH:
        one, two = (s.clips(range(4), domain, (24, 40)) for s in (source, again))
        torch.testing.assert_close(one.video, two.video, rtol=0, atol=1e-6)  # kept in 8 bits, which they had
        assert torch.equal(one.padding_mask, two.padding_mask)


def test_files_of_few_lines_are_left_out(mixed):
    data = dataclasses.replace(ALL, min_height=17)
    source = FolderSource(mixed, MICRO.clip, resize=False, seed=0, data=data, domains=BOTH)
    assert {file.path.stem for file in source.files} == {"wide", "tall", "picture"}
    assert [out.path.stem for out in source.left_out] == ["square", "wider"]
    with pytest.raises(UserError, match="holds no video"):
        FolderSource(mixed, MICRO.clip, resize=False, seed=0, data=dataclasses.replace(ALL, min_height=99))


def test_how_blurred_a_file_is_has_to_be_measured_first(mixed):
    data = dataclasses.replace(ALL, min_sharpness=1.0)
    with pytest.raises(UserError, match="cosmos-ref prepare"):
        FolderSource(mixed, MICRO.clip, resize=False, seed=0, data=data)


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(UserError):
        FolderSource(tmp_path, MICRO.clip, resize=False, seed=0)


def test_a_video_of_a_frame_rate_that_the_model_does_not_take_is_refused(tmp_path):
    video_io.write_video(tmp_path / "fast.mp4", torch.zeros(3, 9, 16, 16), 60)
    clip = dataclasses.replace(PRESETS["micro"].clip, fps_range=(12.0, 40.0))
    with pytest.raises(UserError, match=r"fast\.mp4 has 60 frames a second: the model takes 12 to 40"):
        FolderSource(tmp_path, clip, resize=False, seed=0)
