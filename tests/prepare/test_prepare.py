"""Preparing: which clips there are, and that disturbances change nothing."""

import dataclasses
import json
import os
import random
import signal
import tarfile
import time

import pytest
import torch
from safetensors.torch import load, load_file

from cosmos_ref.cli import main
from cosmos_ref.config import PRESETS, DataConfig
from cosmos_ref.errors import UserError
from cosmos_ref.prepare import run
from cosmos_ref.prepare.measures import motion, sharpness
from cosmos_ref.tokenizer.build import build_tokenizer
from cosmos_ref.training.sources import FolderSource, ShardSource
from tests.prepare.conftest import CONFIG, TEXT, contents, drifting, make
from tests.tokenizer.small import SMALL, drawn_tokenizer


def read_by_webdataset(folder):
    """The samples as a reader of WebDataset's sees them that knows nothing of us."""
    from webdataset import WebDataset

    urls = [str(path) for path in sorted(folder.glob("*.tar"))]
    return [
        (json.loads(sample["json"]), load(sample["safetensors"]))
        for sample in WebDataset(urls, shardshuffle=False, empty_check=False)
    ]


def test_every_window_of_every_file_is_a_sample_once(shards):
    samples = [record for record, _ in read_by_webdataset(shards)]
    assert [(s["file"], s["start"], s["frames"], s["bucket"], s["caption"]) for s in samples] == [
        ("a.mp4", 0, 5, [24, 32], "a red marble falls"),
        ("a.mp4", 5, 5, [24, 32], "a red marble falls"),
        ("b.mp4", 0, 5, [32, 24], None),
        ("c.png", 0, 1, [32, 32], None),
    ]
    index = json.loads((shards / "index.json").read_text())
    assert index["counts"] == {"24x32": {"video": 2}, "32x24": {"video": 1}, "32x32": {"image": 1}}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_stored_latents_are_those_of_the_clip(files, shards, tmp_path, precision):
    out = shards
    if precision == "bf16":
        out = tmp_path / "shards"
        make(files, out, config=dataclasses.replace(CONFIG, train=dataclasses.replace(CONFIG.train, precision="bf16")))
    source = FolderSource(files, CONFIG.clip, resize=False, seed=0, data=CONFIG.data, domains=("video", "image"))
    tokenizer = build_tokenizer(CONFIG.tokenizer)
    tokenizer.load_state_dict(load_file(out / "tokenizer.safetensors"))
    by_name = {file.path.name: file for file in source.files}
    for record, tensors in read_by_webdataset(out):
        video, _ = source.window(by_name[record["file"]], record["start"], record["frames"])
        expected = tokenizer.encode(video[None])[0]
        if precision == "bf16":
            assert tensors["latents"].dtype == torch.bfloat16
            torch.testing.assert_close(tensors["latents"].float(), expected, rtol=2**-8, atol=1e-6)  # 8 bits
        else:
            torch.testing.assert_close(tensors["latents"], expected, rtol=1e-5, atol=1e-5)  # kept clips are aligned


def test_statistics_are_those_of_all_latents_seen_at_once(shards):
    """Per channel for images, which first latent frames of videos are; per channel and frame for videos."""
    latents = [tensors["latents"].double() for _, tensors in read_by_webdataset(shards)]
    flat = torch.stack([z.flatten(2) for z in latents[:3]])  # both shapes have 48 cells
    first = torch.cat([z[:, 0].flatten(1) for z in latents], dim=1)
    statistics = load_file(shards / "statistics.safetensors")
    expected = {
        "video.mean": flat.mean((0, 3)),
        "video.std": flat.std((0, 3), correction=0),
        "image.mean": first.mean(1),
        "image.std": first.std(1, correction=0),
    }
    assert statistics.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(statistics[name].double(), value, rtol=1e-6, atol=1e-7)  # stored in float32


def test_the_fitted_tokenizer_standardises_what_it_was_fitted_to(shards):
    """The first latent frame for itself, the later ones together; at most, for what hardly moves is not blown up."""
    latents = torch.stack([tensors["latents"] for _, tensors in read_by_webdataset(shards)[:2]])
    for part in (latents[:, :, :1], latents[:, :, 1:]):
        assert part.mean((0, 2, 3, 4)).abs().max() < 1e-4
        assert part.var((0, 2, 3, 4)).max() == pytest.approx(1, abs=1e-4)


class Killed(BaseException):
    """Nothing catches it, as nothing catches a signal."""


def killed_after(steps):
    left = steps

    def begin(description, total):
        def advance(done):
            nonlocal left
            left -= 1
            if left < 0:
                raise Killed

        return advance

    return begin


@pytest.mark.parametrize("seed", range(2))
def test_a_run_killed_again_and_again_ends_in_the_same_bytes(files, shards, tmp_path, seed):
    """And whatever bears its final name in between is whole."""
    whole, out, generator, deaths = contents(shards), tmp_path / "out", random.Random(seed), 0
    while True:
        try:
            make(files, out, progress=killed_after(generator.randint(2, 12)))  # of 3 + 2 + 4 steps
            break
        except Killed:
            deaths += 1
            if out.exists():
                there = contents(out)
                assert all(whole[name] == content for name, content in there.items() if not name.startswith("."))
    assert deaths
    assert contents(out) == whole


def test_a_run_killed_by_the_system_ends_in_the_same_bytes(files, shards, tmp_path):
    out = tmp_path / "out"
    child = os.fork()
    if child == 0:

        def slow(description, total):
            return lambda done: time.sleep(0.05)

        try:
            make(files, out, progress=slow)
        finally:
            os._exit(0)
    while not any(out.glob("shard-*.tar")):  # killed while the second shard is made
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert not (out / "index.json").exists()
    with pytest.raises(UserError, match="not finished"):
        ShardSource(out, CONFIG)
    make(files, out)
    assert contents(out) == contents(shards)


def test_a_full_disk_is_said_and_nothing_finished_is_lost(files, shards, tmp_path, monkeypatch):
    from webdataset.writer import TarWriter

    write, out = TarWriter.write, tmp_path / "out"

    def full(self, sample):
        if sample["__key__"] == "00000003":
            raise OSError(28, "No space left on device")
        return write(self, sample)

    with monkeypatch.context() as patched:
        patched.setattr(TarWriter, "write", full)
        with pytest.raises(RuntimeError, match=r"shard-00001.tar cannot be written \(No space left.*make room"):
            make(files, out)
    before = (out / "shard-00000.tar").stat().st_mtime_ns
    assert sorted(path.name for path in out.glob("*shard*")) == ["shard-00000.tar"]
    make(files, out)
    assert (out / "shard-00000.tar").stat().st_mtime_ns == before
    assert contents(out) == contents(shards)


@pytest.mark.parametrize("damage", ["half", "end", "altered"])
def test_preparing_again_mends_a_damaged_shard_and_leaves_the_others(files, shards, tmp_path, damage):
    out = tmp_path / "out"
    out.mkdir()
    for name, content in contents(shards).items():
        (out / name).write_bytes(content)
    victim = out / "shard-00001.tar"
    content = bytearray(victim.read_bytes())
    if damage == "altered":
        content[3000] ^= 1
    else:
        content = content[: len(content) // 2] if damage == "half" else content[:-1000]  # the end is only zeros
    victim.write_bytes(content)
    other = (out / "shard-00000.tar").stat().st_mtime_ns
    make(files, out)
    assert contents(out) == contents(shards)
    assert (out / "shard-00000.tar").stat().st_mtime_ns == other


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"config": dataclasses.replace(CONFIG, data=DataConfig(buckets="48"))}, "buckets: 32, now 48"),
        ({"config": dataclasses.replace(CONFIG, clip=dataclasses.replace(CONFIG.clip, frames=7))}, "frames: 5, now 7"),
        ({"clips_per_shard": 3}, "clips_per_shard: 2, now 3"),
    ],
)
def test_a_folder_of_other_settings_is_refused_and_left_alone(files, shards, changes, named):
    before = contents(shards)
    with pytest.raises(UserError, match=named):
        make(files, shards, **changes)
    assert contents(shards) == before


def test_a_folder_of_other_files_or_another_tokenizer_is_refused(files, shards, tmp_path):
    for path in files.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "b.txt").write_text("now with a caption")
    with pytest.raises(UserError, match="source: "):
        make(tmp_path, shards)

    def another():
        tokenizer = build_tokenizer(CONFIG.tokenizer)
        tokenizer.load_state_dict(load_file(shards / "tokenizer.safetensors"))
        tokenizer.mean += 1
        return tokenizer

    with pytest.raises(UserError, match="another tokenizer"):
        make(files, shards, load_tokenizer=another)
    with pytest.raises(UserError, match="holds something else"):
        make(files, files)


def test_what_cannot_be_used_is_left_out_and_listed_and_changes_nothing_else(files, shards, tmp_path):
    folder, out = tmp_path / "files", tmp_path / "out"
    folder.mkdir()
    for path in files.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    whole = (files / "a.mp4").read_bytes()
    (folder / "broken.mp4").write_bytes(whole[: len(whole) // 2])
    (folder / "short.mp4").write_bytes(b"")
    (folder / "strange.png").write_bytes(b"no picture")
    made = make(folder, out)
    assert [left.path.name for left in made.left_out] == ["broken.mp4", "short.mp4", "strange.png"]
    listed = json.loads((out / "skipped.json").read_text())
    assert [entry["file"] for entry in listed] == ["broken.mp4", "short.mp4", "strange.png"]
    assert all(entry["reason"] and str(folder) not in entry["reason"] for entry in listed)
    for name in ("shard-00000.tar", "shard-00001.tar", "tokenizer.safetensors", "statistics.safetensors"):
        assert (out / name).read_bytes() == (shards / name).read_bytes()


def test_a_video_that_is_damaged_further_on_gives_the_clips_before(files, tmp_path, monkeypatch):
    window = FolderSource.window

    def damaged(self, file, start, frames):
        if file.path.name == "a.mp4" and start == 5:
            raise UserError(f"{file.path} is truncated or damaged")
        return window(self, file, start, frames)

    monkeypatch.setattr(FolderSource, "window", damaged)
    made = make(files, tmp_path / "out")
    assert [(left.path.name, left.reason.split(":")[0]) for left in made.left_out] == [("a.mp4", "frames 5 to 9")]
    records = [record for record, _ in read_by_webdataset(tmp_path / "out")]
    assert [(record["file"], record["start"]) for record in records] == [("a.mp4", 0), ("b.mp4", 0), ("c.png", 0)]
    again = contents(tmp_path / "out")
    assert make(files, tmp_path / "out").left_out == made.left_out
    assert contents(tmp_path / "out") == again


def test_a_caption_that_cannot_be_encoded_leaves_its_video_out(files, tmp_path):
    folder = tmp_path / "files"
    folder.mkdir()
    for path in files.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "b.txt").write_text("word " * 25)
    made = make(folder, tmp_path / "out")
    assert len(made.left_out) == 1
    assert "b.mp4: frames 0 to 4: the prompt 'word" in f"{made.left_out[0].path.name}: {made.left_out[0].reason}"


# --- WebDataset tars of raw videos


def raw_tar(path, files, names):
    with tarfile.open(path, "w") as tar:
        for name in names:
            tar.add(files / name, arcname=f"some/folder/{name}")


def test_raw_tars_give_what_their_files_give(files, shards, tmp_path):
    (tmp_path / "raw").mkdir()
    raw_tar(tmp_path / "raw" / "0.tar", files, ["a.mp4", "a.txt"])
    raw_tar(tmp_path / "raw" / "1.tar", files, ["b.mp4", "c.png"])
    make(tmp_path / "raw", tmp_path / "out")
    ours, theirs = (read_by_webdataset(folder) for folder in (tmp_path / "out", shards))
    assert len(ours) == len(theirs)
    for (record, tensors), (expected, same) in zip(ours, theirs, strict=True):
        assert {**record, "file": ""} == {**expected, "file": ""}
        assert tensors.keys() == same.keys()
        assert all(torch.equal(tensors[name], same[name]) for name in same)
    assert not (tmp_path / "out" / ".unpacked").exists()


def test_a_run_killed_while_it_unpacked_tars_is_begun_again(files, shards, tmp_path):
    out = tmp_path / "out"
    (out / ".unpacked").mkdir(parents=True)
    (out / ".unpacked" / "0-000000.mp4").write_bytes(b"half of a video")
    make(files, out)
    assert contents(out) == contents(shards)


def test_of_a_truncated_tar_what_comes_before_is_used(files, tmp_path):
    (tmp_path / "raw").mkdir()
    raw_tar(tmp_path / "raw" / "0.tar", files, ["b.mp4", "c.png", "a.mp4"])
    tar = tmp_path / "raw" / "0.tar"
    with tarfile.open(tar) as whole:
        end = whole.getmember("some/folder/a.mp4").offset_data + 100
    tar.write_bytes(tar.read_bytes()[:end])
    made = make(tmp_path / "raw", tmp_path / "out")
    assert [(left.path.name, left.reason.split(":")[0]) for left in made.left_out] == [
        ("0.tar", "truncated or damaged")
    ]
    assert made.counts == {"32x24": {"video": 1}}
    tar.write_bytes(tar.read_bytes()[:700])
    with pytest.raises(UserError, match=r"nothing that could be used:\n  0.tar"):
        make(tmp_path / "raw", tmp_path / "none")


# --- Tokenizers with weights


def test_a_convolutional_tokenizer_is_taken_as_it_is(files, tmp_path):
    tokenizer = drawn_tokenizer(SMALL["CV4x8x8"]).float()
    model = dataclasses.replace(PRESETS["micro"].model, channels=5)
    config = dataclasses.replace(CONFIG, tokenizer=SMALL["CV4x8x8"], model=model)
    make(files, tmp_path / "out", config=config, load_tokenizer=lambda: tokenizer)
    stored = load_file(tmp_path / "out" / "tokenizer.safetensors")
    assert all(torch.equal(stored[name], tensor) for name, tensor in tokenizer.state_dict().items())
    source = FolderSource(files, CONFIG.clip, resize=False, seed=0, data=CONFIG.data, domains=("video", "image"))
    for file, (_, tensors) in zip(
        [source.files[n] for n in (0, 0, 1, 2)], read_by_webdataset(tmp_path / "out"), strict=True
    ):
        frames = 1 if file.domain == "image" else 5
        encoded = [
            tokenizer.encode(source.window(file, start, frames)[0][None])[0]
            for start in ((0, 5) if file.frames > 9 else (0,))
        ]
        assert any(torch.allclose(z, tensors["latents"], rtol=1e-4, atol=1e-4) for z in encoded)


def test_too_little_memory_is_said_before_any_file_is_read(files, tmp_path):
    model = dataclasses.replace(PRESETS["micro"].model, channels=5)
    config = dataclasses.replace(CONFIG, tokenizer=SMALL["CV4x8x8"], model=model)
    with pytest.raises(UserError, match="do not suffice"):
        make(files, tmp_path / "out", config=config, load_tokenizer=lambda: None, max_memory=1e6)
    assert not (tmp_path / "out").exists()


def test_a_discrete_tokenizer_is_refused(files, tmp_path):
    model = dataclasses.replace(PRESETS["micro"].model, channels=16)
    codes = dataclasses.replace(SMALL["CV8x8x8"], channels=16, fsq_levels=(8, 8, 8, 5, 5, 5))
    with pytest.raises(UserError, match="codes"):
        make(files, tmp_path / "out", config=dataclasses.replace(CONFIG, tokenizer=codes, model=model))


# --- What is measured


def test_sharpness_is_the_variance_of_the_laplacian_in_grey_levels():
    """Of a checkerboard of 0 and 255 each pixel differs by 255 from all four neighbours: +-4 x 255."""
    place = torch.arange(8)
    board = ((place[:, None] + place) % 2 * 2.0 - 1).expand(3, 2, 8, 8)
    assert sharpness(board) == pytest.approx((4 * 255) ** 2)
    assert sharpness(torch.full((3, 2, 8, 8), 0.3)) == pytest.approx(0, abs=1e-6)
    ramp = (place / 8).expand(3, 2, 8, 8)
    assert sharpness(ramp) == pytest.approx(0, abs=1e-6)
    noise = drifting(0, 2, 32, 32)
    blurred = torch.nn.functional.avg_pool2d(noise, 3, stride=1)
    assert sharpness(blurred) < 0.5 * sharpness(noise)


def test_motion_is_the_mean_change_from_frame_to_frame_in_levels():
    video = torch.zeros(3, 3, 4, 4)
    video[:, 1:, :2] = 2 / 255  # half the frame by one level, once in two steps
    assert motion(video) == pytest.approx(0.25)
    assert motion(video[:, :1]) == 0


# --- The command


def test_the_command_prepares_lists_and_refuses(files, tmp_path, capsys):
    folder, out = tmp_path / "files", tmp_path / "out"
    folder.mkdir()
    for path in files.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "empty.mp4").touch()
    arguments = ["prepare", str(folder), "--out", str(out), "--preset", "micro", "--buckets", "32"]
    main(arguments)
    printed = capsys.readouterr().out
    assert "left out: empty.mp4: " in printed
    assert "24x32: 2 videos" in printed
    assert f"--data {out}" in printed
    source = ShardSource(out, CONFIG)
    assert source.clips([0]).latents is not None
    for wrong in (["--seed", "1"], ["--preset", "7b"], ["--num-frames", "6"], ["--weights", str(folder)]):
        with pytest.raises(SystemExit) as ended:
            main([*arguments, *wrong])
        assert ended.value.code == 2


def test_the_text_encoder_reads_each_caption_once(files, tmp_path):
    asked = []

    class Counting:
        length, width = TEXT.length, TEXT.width

        def encode(self, prompts):
            asked.extend(prompts)
            return TEXT.encode(prompts)

    make(files, tmp_path / "out", text_encoder=Counting())
    assert asked == ["a red marble falls"]


def test_more_clips_than_a_tokenizer_is_fitted_to_are_drawn_by_the_seed(files, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "FIT_CLIPS", 1)
    fitted = []
    for name, seed in (("a", 0), ("b", 0), ("c", 6)):
        make(
            files,
            tmp_path / name,
            config=dataclasses.replace(CONFIG, train=dataclasses.replace(CONFIG.train, seed=seed)),
        )
        fitted.append((tmp_path / name / "tokenizer.safetensors").read_bytes())
    assert fitted[0] == fitted[1]
    assert fitted[2] != fitted[0]  # the shape there is most of has two windows, and this seed draws the other one
