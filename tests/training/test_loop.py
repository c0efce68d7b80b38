"""A training that is stopped, in whatever way, goes on as if nothing had happened, or says why it does not."""

import dataclasses
import errno
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from cosmos_ref.checkpoint import find_checkpoint, list_checkpoints, load_strict, read_checkpoint, save_checkpoint
from cosmos_ref.config import PRESETS, ConvTokenizerConfig, DataConfig
from cosmos_ref.errors import UserError
from cosmos_ref.model.initialization import build_denoiser
from cosmos_ref.tokenizer.build import build_tokenizer
from cosmos_ref.training.data import make_batch
from cosmos_ref.training.layout import OneProcess
from cosmos_ref.training.log import TrainingLog, running_mean
from cosmos_ref.training.loop import train
from cosmos_ref.training.sources import WorldSource
from cosmos_ref.training.update import TrainingDiverged

ROOT = Path(__file__).parents[2]


def changed(config, **settings):
    return dataclasses.replace(config, train=dataclasses.replace(config.train, **settings))


TIMINGS = {"seconds", "clips_per_second", "tokens_per_second", "tflops", "data_wait", "memory_gib"}
CONFIG = changed(PRESETS["micro"], num_steps=10, checkpoint_every=4, keep_checkpoints=2)


class Disturbed(WorldSource):
    """The same clips; calls `disturb` when the batch of update `step` (from 1) is asked for."""

    def __init__(self, step, disturb, config=CONFIG):
        self.sample, self.disturb = (step - 1) * config.train.batch_size, disturb
        super().__init__(config.clip, config.data.world, config.train.seed)

    def clips(self, indices, domain="video", bucket=None):
        if indices[0] == self.sample and len(indices) > 1:
            self.disturb()
        return super().clips(indices, domain, bucket)


def undisturbed_source(config=CONFIG):
    return WorldSource(config.clip, config.data.world, config.train.seed)


def tensor_files(run):
    files = json.loads((find_checkpoint(run) / "manifest.json").read_text())["files"]
    return {name: entry["sha256"] for name, entry in files.items() if name.endswith(".safetensors")}


def records(run):
    lines = [json.loads(line) for line in (run / "train.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMINGS} for line in lines]


def disturb(monkeypatch, step, action, config=CONFIG):
    """Do something when update `step` (from 1) is about to begin: clips are read earlier, in another thread."""

    def make(clips, config_, tokenizer, text, samples, *rest, **named):
        if samples[0] == (step - 1) * config.train.batch_size:
            action()
        return make_batch(clips, config_, tokenizer, text, samples, *rest, **named)

    monkeypatch.setattr("cosmos_ref.training.loop.make_batch", make)


def press_ctrl_c():
    """As Python does when the signal comes; sent twice to a process with threads, it may arrive once."""
    send(signal.SIGINT)


def send(number):
    handler = signal.getsignal(number)
    assert callable(handler)
    handler(number, None)


def crash():
    raise RuntimeError("crash")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    run = tmp_path_factory.mktemp("undisturbed")
    train(CONFIG, run, undisturbed_source(), progress=False)
    return run


@pytest.fixture(autouse=True)
def no_page(monkeypatch):
    """The page takes a second, and one is enough."""
    monkeypatch.setattr("cosmos_ref.training.loop.write_report", lambda *arguments: None)


def test_a_run_leaves_what_it_promises(undisturbed):
    assert [path.name for path in list_checkpoints(undisturbed)] == ["step_0000008", "step_0000010"]
    assert [record["step"] for record in records(undisturbed)] == list(range(1, 11))
    last = json.loads((undisturbed / "train.jsonl").read_text().splitlines()[-1])
    by_sigma = {key for key in last if key.startswith("video_")}
    assert last.keys() - by_sigma == TIMINGS | {"step", "domain", "loss", "weighted_error", "grad_norm", "lr"}
    assert sum(last[key] for key in by_sigma if "clips" in key) == CONFIG.train.batch_size
    assert all(last[key] > 0 for key in TIMINGS - {"data_wait"}) and 0 <= last["data_wait"] <= 1
    assert (undisturbed / "loss.png").read_bytes()[:4] == b"\x89PNG"
    checkpoint = read_checkpoint(find_checkpoint(undisturbed))
    for name in ("model", "ema"):
        load_strict(build_denoiser(CONFIG), checkpoint.tensors[name], name)
    moved = [
        name for name, t in checkpoint.tensors["ema"].items() if not torch.equal(t, checkpoint.tensors["model"][name])
    ]
    assert len(moved) > 20  # the average lags behind


def test_the_same_seed_ends_in_the_same_bits_and_another_does_not(undisturbed, tmp_path):
    train(CONFIG, tmp_path / "same", undisturbed_source(), progress=False)
    assert tensor_files(tmp_path / "same") == tensor_files(undisturbed)
    other = changed(CONFIG, seed=1)
    train(other, tmp_path / "other", undisturbed_source(other), progress=False)
    assert tensor_files(tmp_path / "other") != tensor_files(undisturbed)


@pytest.mark.parametrize("step", [3, 7])  # before the first checkpoint, and between two
def test_a_crashed_run_is_resumed_to_the_bit(undisturbed, tmp_path, step):
    with pytest.raises(RuntimeError, match="crash"):
        train(CONFIG, tmp_path, Disturbed(step, crash), progress=False)
    assert len(records(tmp_path)) == step - 1
    train(CONFIG, tmp_path, undisturbed_source(), resume=True, progress=False)
    assert tensor_files(tmp_path) == tensor_files(undisturbed)
    assert records(tmp_path) == records(undisturbed)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_finishes_the_step_and_leaves_a_checkpoint_to_resume_from(
    undisturbed, tmp_path, capsys, monkeypatch, number
):
    before = signal.getsignal(number)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        disturb(patch, 6, lambda: send(number))
        train(CONFIG, tmp_path, undisturbed_source(), progress=True)
    assert "--resume" in capsys.readouterr().err
    assert signal.getsignal(number) is before
    assert find_checkpoint(tmp_path).name == "step_0000006"
    train(CONFIG, tmp_path, undisturbed_source(), resume=True, progress=False)
    assert tensor_files(tmp_path) == tensor_files(undisturbed)
    assert records(tmp_path) == records(undisturbed)


def test_the_second_ctrl_c_stops_at_once(tmp_path, monkeypatch):
    def press_twice():
        press_ctrl_c()
        press_ctrl_c()

    disturb(monkeypatch, 2, press_twice)
    with pytest.raises(KeyboardInterrupt):
        train(CONFIG, tmp_path, undisturbed_source(), progress=False)
    assert list_checkpoints(tmp_path) == []


def test_ctrl_c_in_the_last_step_is_no_interruption(undisturbed, tmp_path, monkeypatch):
    disturb(monkeypatch, 10, press_ctrl_c)
    train(CONFIG, tmp_path, undisturbed_source(), progress=False)
    assert tensor_files(tmp_path) == tensor_files(undisturbed)


def test_a_run_goes_on_with_other_numbers_only_where_that_is_asked_for(undisturbed, tmp_path, capsys):
    shutil.copytree(undisturbed, tmp_path / "run")
    slower = changed(CONFIG, learning_rate=CONFIG.train.learning_rate / 2, num_steps=11)
    with pytest.raises(UserError, match=r"(?s)train\.learning_rate.*train\.num_steps") as error:
        train(slower, tmp_path / "run", undisturbed_source(), resume=True, changed=False, progress=False)
    assert "--changed" in str(error.value)
    capsys.readouterr()
    train(slower, tmp_path / "run", undisturbed_source(), resume=True, changed=True, progress=False)
    assert "changed at step 10: train.learning_rate" in capsys.readouterr().err
    assert records(tmp_path / "run")[:10] == records(undisturbed)
    wider = dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, width=64))
    with pytest.raises(UserError, match=r"model\.width: 32, now 64") as error:
        train(wider, tmp_path / "run", undisturbed_source(), resume=True, changed=True, progress=False)
    assert "--changed" not in str(error.value)


def test_a_full_disk_under_the_log_ends_in_what_to_do(tmp_path):
    log = TrainingLog(tmp_path, 0)
    full = OSError(errno.ENOSPC, "No space left on device")
    log.file = SimpleNamespace(name="train.jsonl", write=Mock(side_effect=full))
    with pytest.raises(UserError, match=r"step 3 was not written into train\.jsonl.*make room, then --resume"):
        log.write(3, loss=1.0)


def test_a_half_written_log_line_is_dropped(undisturbed, tmp_path):
    with pytest.raises(RuntimeError):
        train(CONFIG, tmp_path, Disturbed(7, crash), progress=False)
    with (tmp_path / "train.jsonl").open("a") as file:
        file.write('{"step": 7, "lo')
    train(CONFIG, tmp_path, undisturbed_source(), resume=True, progress=False)
    assert records(tmp_path) == records(undisturbed)


def test_a_finished_run_is_left_alone(undisturbed):
    before = tensor_files(undisturbed)
    assert train(CONFIG, undisturbed, undisturbed_source(), resume=True, progress=False).name == "step_0000010"
    assert tensor_files(undisturbed) == before
    assert len(records(undisturbed)) == 10


def test_a_folder_with_checkpoints_is_not_begun_again(undisturbed):
    with pytest.raises(UserError, match="--resume"):
        train(CONFIG, undisturbed, undisturbed_source(), progress=False)


def test_resuming_with_other_settings_is_refused_and_lists_them(undisturbed):
    other = dataclasses.replace(changed(CONFIG, num_steps=11, text_dropout=0.5), name="other")
    with pytest.raises(UserError) as error:
        train(other, undisturbed, undisturbed_source(), resume=True, progress=False)
    listed = [line.strip() for line in str(error.value).splitlines()[1:]]
    assert listed == [
        "name: 'micro', now 'other'",
        "train.num_steps: 10, now 11",
        "train.text_dropout: 0.2, now 0.5",
    ]


def test_resuming_with_other_data_is_refused(undisturbed, monkeypatch):
    """Before any process begins to read weights with the others, who may have the right data."""
    monkeypatch.setattr("cosmos_ref.training.loop.resume_run", None)
    single = WorldSource(CONFIG.clip, "single", CONFIG.train.seed)
    with pytest.raises(UserError, match="data: world mixed, seed 0, now world single, seed 0"):
        train(CONFIG, undisturbed, single, resume=True, progress=False)


class Alike(OneProcess):
    """As if 257 processes brought the same numbers, whose sum is rounded after each."""

    def mean(self, value):
        total = torch.zeros_like(value)
        for _ in range(257):
            total += value
        return total / 257


class Unlike(OneProcess):
    """As if there were another process, with other clips."""

    def mean(self, value):
        return value + torch.tensor([0.0, 0.5])


def test_late_in_a_training_many_processes_still_find_that_they_see_the_same(undisturbed, tmp_path):
    """In float32 the sum of their steps would not be exact."""
    found = read_checkpoint(find_checkpoint(undisturbed))
    state = {**found.state, "step": 1_000_003}
    last = save_checkpoint(tmp_path / "checkpoints" / "step_1000003", found.config, found.tensors, state)
    assert train(CONFIG, tmp_path, undisturbed_source(), layout=Alike(), resume=True, progress=False) == last


def test_processes_with_other_clips_are_refused(tmp_path):
    with pytest.raises(UserError, match="not all processes see the same clips"):
        train(CONFIG, tmp_path, undisturbed_source(), layout=Unlike(), progress=False)


def test_how_often_checkpoints_are_written_may_change(undisturbed, tmp_path):
    with pytest.raises(RuntimeError):
        train(CONFIG, tmp_path, Disturbed(6, crash), progress=False)
    other = changed(CONFIG, checkpoint_every=3, keep_checkpoints=1)
    train(other, tmp_path, undisturbed_source(), resume=True, progress=False)
    assert tensor_files(tmp_path) == tensor_files(undisturbed)
    assert len(list_checkpoints(tmp_path)) == 1


def test_a_damaged_checkpoint_is_not_resumed(undisturbed, tmp_path):
    with pytest.raises(RuntimeError):
        train(CONFIG, tmp_path, Disturbed(6, crash), progress=False)
    path = find_checkpoint(tmp_path) / "optimizer.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(UserError, match=r"optimizer\.safetensors.*truncated"):
        train(CONFIG, tmp_path, undisturbed_source(), resume=True, progress=False)


def test_a_checkpoint_without_moments_is_not_resumed(undisturbed, tmp_path):
    whole = read_checkpoint(find_checkpoint(undisturbed))
    tensors = {name: group for name, group in whole.tensors.items() if name != "optimizer"}
    save_checkpoint(tmp_path / "checkpoints" / "step_0000004", whole.config, tensors, whole.state)
    with pytest.raises(UserError, match=r"optimizer\.safetensors is missing"):
        train(CONFIG, tmp_path, undisturbed_source(), resume=True, progress=False)


def test_a_diverged_run_stops_before_it_spoils_its_weights(tmp_path, monkeypatch):
    """And closes its log: what TensorBoard was told last is on the disk."""
    closed = []
    monkeypatch.setattr("cosmos_ref.training.log.TrainingLog.close", lambda log: closed.append(log.records[-1]["step"]))

    class Broken(WorldSource):
        def clips(self, indices, domain="video", bucket=None):
            clips = super().clips(indices, domain, bucket)
            if indices[0] == 5 * CONFIG.train.batch_size:
                clips.video[:] = float("nan")
            return clips

    with pytest.raises(TrainingDiverged, match=r"step 6: loss is nan.*clips of video samples 20, 21, 22, 23 are not"):
        train(CONFIG, tmp_path, Broken(CONFIG.clip, "mixed", 0), progress=False)
    assert read_checkpoint(find_checkpoint(tmp_path)).state["step"] == 4
    assert closed == [5]


def test_a_configuration_that_does_not_fit_is_refused_before_anything_is_written(tmp_path):
    config = changed(CONFIG, batch_size=0, given_latents=(0.5, 0.2))
    with pytest.raises(UserError) as error:
        train(config, tmp_path / "run", undisturbed_source(), progress=False)
    for named in ("batch_size is 0", "sum 1"):
        assert named in str(error.value)
    config = dataclasses.replace(CONFIG, clip=dataclasses.replace(CONFIG.clip, frames=6))
    with pytest.raises(UserError, match=r"6 frames does not fit.* 1 \+ k \* 2"):
        train(config, tmp_path / "run", undisturbed_source(), progress=False)
    assert not (tmp_path / "run").exists()


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="--out"):
        train(CONFIG, tmp_path / "file" / "run", undisturbed_source(), progress=False)


def test_a_caption_that_is_too_long_is_refused_before_training(tmp_path):
    source = undisturbed_source()
    source.captions = ["word " * 100]
    with pytest.raises(UserError, match="100 words"):
        train(CONFIG, tmp_path, source, progress=False)
    assert list(tmp_path.iterdir()) == []


def test_bf16_trains_and_keeps_its_weights_in_float32(undisturbed, tmp_path):
    config = changed(CONFIG, precision="bf16")
    train(config, tmp_path, undisturbed_source(), progress=False)
    tensors = read_checkpoint(find_checkpoint(tmp_path)).tensors
    assert {t.dtype for group in ("model", "ema", "optimizer") for t in tensors[group].values()} == {torch.float32}
    for rounded, exact in zip(records(tmp_path), records(undisturbed), strict=True):
        # Rounding changes the updates as well: after ten the two runs have drifted apart by a few percent.
        assert rounded["weighted_error"] == pytest.approx(exact["weighted_error"], rel=0.05)


def test_a_text2world_model_trains(tmp_path):
    config = dataclasses.replace(
        changed(CONFIG, num_steps=2), model=dataclasses.replace(CONFIG.model, video2world=False)
    )
    train(config, tmp_path, undisturbed_source(), progress=False)
    assert all(np.isfinite(record["loss"]) for record in records(tmp_path))


def test_tensorboard_is_told_where_it_is_installed(tmp_path, monkeypatch):
    told = []

    class Writer:
        def __init__(self, folder, purge_step):
            told.append((folder, purge_step))

        def add_scalar(self, name, value, step):
            told.append((name, value, step))

        def close(self):
            told.append("closed")

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=Writer))
    log = TrainingLog(tmp_path, step=3)
    log.write(4, loss=0.5)
    log.close()
    assert told == [(tmp_path / "tensorboard", 4), ("train/loss", 0.5, 4), "closed"]


def test_the_running_mean_keeps_constants_and_smooths_the_rest():
    assert running_mean(np.full(7, 3.0), 4) == pytest.approx(np.full(7, 3.0))
    assert running_mean(np.array([0.0, 3, 0, 3, 0]), 3) == pytest.approx([1.5, 1, 2, 1, 1.5])


@pytest.mark.slow
def test_three_kills_at_random_moments_end_in_the_same_weights():
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "kill_and_resume.py", "3"], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("3 kills")


IMAGES = dataclasses.replace(
    changed(CONFIG, micro_batch=2, ema_stds=(0.1, 0.05), video_noise_shift=True),
    data=dataclasses.replace(CONFIG.data, image_share=0.3),
)


def test_a_training_on_images_alone_asks_for_no_video(tmp_path):
    """Not even for its tokenizer: a folder of images has none."""
    config = dataclasses.replace(changed(CONFIG, num_steps=1), data=DataConfig(image_share=1.0))
    source, domains = undisturbed_source(config), set()
    simulated = source.clips
    source.clips = lambda indices, domain="video", bucket=None: (
        domains.add(domain) or simulated(indices, domain, bucket)
    )
    train(config, tmp_path, source, progress=False)
    assert domains == {"image"}


def test_a_training_with_images_is_resumed_to_the_bit(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(IMAGES, whole, undisturbed_source(IMAGES), progress=False)
    assert [record["domain"] for record in records(whole)].count("image") == 3
    with pytest.raises(RuntimeError, match="crash"):
        train(IMAGES, parts, Disturbed(6, crash, IMAGES), progress=False)
    train(IMAGES, parts, undisturbed_source(IMAGES), resume=True, progress=False)
    assert {"ema.safetensors", "ema_2.safetensors", "images.safetensors"} <= tensor_files(whole).keys()
    assert tensor_files(parts) == tensor_files(whole)
    assert records(parts) == records(whole)


def test_a_training_starts_from_the_averaged_weights_of_another_with_its_tokenizer(undisturbed, tmp_path):
    class Other(WorldSource):
        """Clips on which another tokenizer would be fitted."""

        def clips(self, indices, domain="video", bucket=None):
            clips = super().clips(indices, domain, bucket)
            return dataclasses.replace(clips, video=clips.video * 0.5)

    config = changed(CONFIG, num_steps=1, learning_rate=1e-12, warmup_steps=0)
    train(config, tmp_path, Other(config.clip, "mixed", 0), initial=undisturbed, progress=False)
    before, after = (read_checkpoint(find_checkpoint(run)).tensors for run in (undisturbed, tmp_path))
    for name, tensor in after["model"].items():
        torch.testing.assert_close(tensor, before["ema"][name], rtol=0, atol=1e-9)
    assert all(torch.equal(tensor, before["tokenizer"][name]) for name, tensor in after["tokenizer"].items())


def test_a_tokenizer_with_weights_of_its_own_must_be_given_and_is_kept(tmp_path):
    narrow = ConvTokenizerConfig(
        patch_levels=1, strides=((1, 2),), encoder_widths=(8, 8, 8), decoder_widths=(8, 8, 8), num_blocks=1
    )
    config = dataclasses.replace(changed(CONFIG, num_steps=1), tokenizer=narrow)
    with pytest.raises(UserError, match="weights of its own: give them by --tokenizer-weights"):
        train(config, tmp_path / "none", undisturbed_source(), progress=False)
    assert not (tmp_path / "none").exists()
    tokenizer = build_tokenizer(narrow)
    train(config, tmp_path / "run", undisturbed_source(), tokenizer=tokenizer, progress=False)
    kept = read_checkpoint(find_checkpoint(tmp_path / "run")).tensors["tokenizer"]
    assert all(torch.equal(tensor, tokenizer.state_dict()[name]) for name, tensor in kept.items())


def test_a_run_ends_with_a_page(undisturbed):
    page = (undisturbed / "report.html").read_text()
    assert "10 of 10 updates" in page and "train.learning_rate" in page
