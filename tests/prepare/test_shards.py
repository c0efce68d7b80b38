"""Training from shards: the clips that files would have given, encoded already."""

import dataclasses

import pytest
import torch

from cosmos_ref.config import DataConfig
from cosmos_ref.errors import UserError
from cosmos_ref.tokenizer.haar_pca import HaarPCATokenizer
from cosmos_ref.training.sources import FolderSource, ShardSource, open_source
from tests.prepare.conftest import CONFIG, TEXT, contents


@pytest.fixture(scope="module")
def source(shards):
    return ShardSource(shards, CONFIG)


@pytest.fixture(scope="module")
def folder(files):
    return FolderSource(files, CONFIG.clip, resize=False, seed=0, data=CONFIG.data, domains=("video", "image"))


def copied(shards, out):
    out.mkdir()
    for name, content in contents(shards).items():
        (out / name).write_bytes(content)
    return out


def test_a_clip_is_its_files_latents_text_and_padding(source, folder):
    """Whatever is drawn is what the folder holds there, down to the text and the mask."""
    assert isinstance(source.tokenizer, HaarPCATokenizer)
    for size in source.held["video"]:
        clips = source.clips(range(8), "video", size)
        file = next(file for file in folder.files if file.bucket == size and file.domain == "video")
        windows = torch.stack([folder.window(file, start, 5)[0] for start in range(0, file.frames - 4, 5)])
        encoded = source.tokenizer.encode(windows)
        seen = set()
        for latents in clips.latents:
            distance = (encoded - latents).abs().amax((1, 2, 3, 4))
            assert distance.min() < 1e-4  # matrix products of other shapes round otherwise
            seen.add(int(distance.argmin()))
        assert len(seen) == len(windows)
        assert clips.video is None
        assert torch.equal(clips.text_embeddings, TEXT.encode([file.caption] * 8))
        assert clips.captions == [file.caption] * 8
        assert torch.equal(clips.padding_mask, folder.clips(range(8), "video", size).padding_mask)
        assert torch.equal(clips.fps, folder.clips(range(8), "video", size).fps)


def test_an_image_is_the_first_latent_frame_of_a_video_or_an_image(source, folder):
    """The tokenizer is causal: so it would encode the first frame alone."""
    for size in source.held["image"]:
        clips = source.clips(range(12), "image", size)
        files = [file for file in folder.files if file.bucket == size]
        starts = [(file, start) for file in files for start in range(0, max(1, file.frames - 4), 5)]
        frames = torch.stack([folder.window(file, start, 1)[0] for file, start in starts])
        encoded = source.tokenizer.encode(frames)
        for latents in clips.latents:
            assert latents.shape == encoded.shape[1:]
            assert (encoded - latents).abs().amax((1, 2, 3, 4)).min() < 1e-4
        assert set(clips.fps.tolist()) == {24.0}
    assert (32, 32) in source.held["image"]
    assert (32, 32) not in source.held["video"]


def test_a_clip_does_not_depend_on_the_batch_nor_on_the_process(shards, source):
    size = (24, 32)
    whole = source.clips(range(6), "video", size).latents
    other = ShardSource(shards, CONFIG)
    assert torch.equal(torch.cat([other.clips([4, 1], "video", size).latents, whole[[0]]]), whole[[4, 1, 0]])
    assert [source.bucket(n) for n in range(30)] == [other.bucket(n) for n in range(30)]
    assert {source.bucket(n) for n in range(30)} == {(24, 32), (32, 24)}
    another = ShardSource(shards, dataclasses.replace(CONFIG, train=dataclasses.replace(CONFIG.train, seed=1)))
    assert not torch.equal(another.clips(range(6), "video", size).latents, whole)


def test_a_training_may_have_shorter_clips(shards, source):
    """Three frames are two latent frames, those of the five that were prepared."""
    short = ShardSource(shards, dataclasses.replace(CONFIG, clip=dataclasses.replace(CONFIG.clip, frames=3)))
    assert torch.equal(short.clips([0, 1]).latents, source.clips([0, 1]).latents[:, :, :2])


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"data": DataConfig(buckets="48")}, "buckets: 32, now 48"),
        ({"data": DataConfig()}, "buckets: 32, now one"),
        ({"clip": dataclasses.replace(CONFIG.clip, frames=7)}, "frames: 5, now 7"),
        ({"text": dataclasses.replace(CONFIG.text, length=20)}, "text: "),
        ({"tokenizer": dataclasses.replace(CONFIG.tokenizer, levels=(1, 1, 1))}, "tokenizer: "),
    ],
)
def test_shards_of_other_settings_are_refused(shards, changes, named):
    with pytest.raises(UserError, match=named):
        ShardSource(shards, dataclasses.replace(CONFIG, **changes))


def test_blurred_clips_and_small_files_are_left_out(shards, source):
    records = [record for sizes in source.held.values() for samples in sizes.values() for record in samples]
    sharpest = max(record["sharpness"] for record in records)
    data = dataclasses.replace(CONFIG.data, min_sharpness=sharpest, image_share=1.0)
    held = ShardSource(shards, dataclasses.replace(CONFIG, data=data)).held
    assert {record["sharpness"] for samples in held["image"].values() for record in samples} == {sharpest}
    data = dataclasses.replace(CONFIG.data, min_height=21)
    held = ShardSource(shards, dataclasses.replace(CONFIG, data=data)).held
    assert held["video"].keys() == held["image"].keys() == {(32, 24)}
    data = dataclasses.replace(CONFIG.data, min_height=100)
    with pytest.raises(UserError, match=r"holds no video.*min_height 100"):
        ShardSource(shards, dataclasses.replace(CONFIG, data=data))


@pytest.mark.parametrize("damage", ["truncated", "missing"])
def test_a_truncated_shard_is_found_at_the_start(shards, tmp_path, damage):
    out = copied(shards, tmp_path / "out")
    victim = out / "shard-00001.tar"
    content = victim.read_bytes()
    victim.unlink()
    if damage == "truncated":
        victim.write_bytes(content[:-1])
    with pytest.raises(UserError, match=r"shard-00001.tar.*cosmos-ref prepare"):
        ShardSource(out, CONFIG)


def test_a_broken_sample_is_found_when_it_is_read(shards, source, tmp_path):
    out = copied(shards, tmp_path / "out")
    sample = source.held["video"][(32, 24)][0]
    victim = out / f"shard-{sample['shard']:05d}.tar"
    content = bytearray(victim.read_bytes())
    content[sample["offset"] + sample["bytes"] // 2] ^= 1
    victim.write_bytes(content)
    damaged = ShardSource(out, CONFIG)
    damaged.clips([0], "video", (24, 32))
    with pytest.raises(RuntimeError, match=rf"{sample['key']}.*{victim.name}.*cosmos-ref prepare"):
        damaged.clips([0], "video", (32, 24))


@pytest.mark.parametrize("damage", ["no JSON", '{"format": 0}', "altered", "gone"])
def test_a_damaged_index_is_refused(shards, tmp_path, damage):
    out = copied(shards, tmp_path / "out")
    index = out / "index.json"
    text = index.read_text()
    index.unlink()
    if damage != "gone":
        index.write_text(text.replace('"a.mp4"', '"x.mp4"') if damage == "altered" else damage)
    with pytest.raises(UserError, match="index"):
        ShardSource(out, CONFIG)


def test_the_data_of_a_training_are_what_the_folder_holds(files, shards):
    assert isinstance(open_source(shards, CONFIG), ShardSource)
    assert isinstance(open_source(files, CONFIG), FolderSource)
    assert open_source(None, CONFIG).identity.startswith("world mixed")
    assert open_source(shards, CONFIG).identity == open_source(shards, CONFIG).identity


def test_other_shards_are_another_source(files, shards, tmp_path):
    from tests.prepare.conftest import make

    identity = ShardSource(shards, CONFIG).identity
    assert ShardSource(copied(shards, tmp_path / "copy"), CONFIG).identity == identity
    (tmp_path / "files").mkdir()
    for path in files.iterdir():
        (tmp_path / "files" / path.name).write_bytes(path.read_bytes())
    (tmp_path / "files" / "b.txt").write_text("a caption")
    make(tmp_path / "files", tmp_path / "other")
    assert ShardSource(tmp_path / "other", CONFIG).identity != identity
