"""Training of a tokenizer: two stages, images and videos, and a run that goes on as if nothing had happened."""

import dataclasses
import json
import math
import signal

import pytest
import torch

from cosmos_ref import worlds
from cosmos_ref.checkpoint import find_checkpoint, list_checkpoints, read_checkpoint, save_checkpoint
from cosmos_ref.cli import main
from cosmos_ref.config import PRESETS, ClipConfig, ConvTokenizerConfig
from cosmos_ref.errors import UserError
from cosmos_ref.tokenizer.discrete import DiscreteTokenizer
from cosmos_ref.tokenizer.haar_pca import HaarPCATokenizer
from cosmos_ref.tokenizer.losses import TokenizerLoss, default_loss
from cosmos_ref.training import tokenizer as training_of
from cosmos_ref.training.sources import WorldSource
from cosmos_ref.training.tokenizer import (
    TOKENIZER_TRAININGS,
    TokenizerTrainConfig,
    TokenizerTraining,
    advance,
    averaged_tokenizer,
    baselines,
    check_training,
    draw_videos,
    learning_rate,
    load_tokenizer,
    loss_weights,
    quality,
    start_run,
    train_tokenizer,
    unclamped_reconstruction,
)
from cosmos_ref.training.tokenizer_start import new_tokenizer
from cosmos_ref.training.update import TrainingDiverged
from cosmos_ref.video_io import write_video
from tests.training.test_loop import crash, press_ctrl_c

MICRO = ConvTokenizerConfig(
    patch_levels=1,
    strides=((1, 2), (1, 1)),
    encoder_widths=(6, 8, 8, 8),
    decoder_widths=(8, 8, 8, 6),
    num_blocks=1,
    channels=4,
    latent_frames=4,
)
SETTINGS = TokenizerTrainConfig(
    num_steps=6,
    stage_2=4,
    batch_size=2,
    image_share=0.34,
    warmup_steps=2,
    cooling_steps=2,
    checkpoint_every=4,
    learning_rate=1e-3,
)
CONTINUOUS = TokenizerTraining("CV-micro", MICRO, ClipConfig(5, 16, 16), "single", SETTINGS)
DISCRETE = dataclasses.replace(
    CONTINUOUS, name="DV-micro", network=dataclasses.replace(MICRO, fsq_levels=(8, 5, 5), latent_frames=3)
)
LINEAR = dataclasses.replace(
    CONTINUOUS,
    name="CV-linear",
    network=dataclasses.replace(MICRO, strides=(), encoder_widths=(12, 12), decoder_widths=(14, 14), channels=4),
    train=dataclasses.replace(SETTINGS, start="wavelets", image_share=0.0),
)
BOTH = pytest.mark.parametrize("training", [CONTINUOUS, DISCRETE], ids=["continuous", "discrete"])


@pytest.fixture(scope="module", autouse=True)
def few_clips():
    """Statistics and quality are measured on a few clips, which is what these tests would wait for."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_of, "STATISTICS_CLIPS", range(2**39, 2**39 + 6))
        patch.setattr(training_of, "HELD_OUT_CLIPS", range(2**39 + 256, 2**39 + 260))
        yield


def with_train(training, **settings):
    return dataclasses.replace(training, train=dataclasses.replace(training.train, **settings))


def source_of(training):
    return WorldSource(training.clip, training.world, training.train.seed)


def fresh(training):
    return start_run(training, source_of(training), torch.device("cpu"))


class Disturbed(WorldSource):
    """The same clips; calls `disturb` when the training clip of this number is asked for."""

    def __init__(self, training, sample, disturb):
        self.sample, self.disturb = sample, disturb
        super().__init__(training.clip, training.world, training.train.seed)

    def clips(self, indices, domain="video", bucket=None):
        if domain == "video" and len(indices) > 1 and indices[0] == self.sample:
            self.disturb()
        return super().clips(indices, domain, bucket)


def tensor_files(run):
    files = json.loads((find_checkpoint(run) / "manifest.json").read_text())["files"]
    return {name: entry["sha256"] for name, entry in files.items() if name.endswith(".safetensors")}


def records(run):
    lines = [json.loads(line) for line in (run / "train.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "clips_per_second"} for line in lines]


@pytest.fixture(scope="module")
def runs(tmp_path_factory, few_clips):
    """An undisturbed run of each kind."""
    folders = {}
    for training in (CONTINUOUS, DISCRETE):
        folders[training.name] = tmp_path_factory.mktemp(training.name)
        train_tokenizer(training, folders[training.name], source_of(training), progress=False)
    return folders


@pytest.fixture(autouse=True)
def no_pictures(runs, monkeypatch):
    """One run of each kind has them, which is enough: drawing takes longer than these trainings."""
    for name in ("draw_losses", "draw_reconstructions"):
        monkeypatch.setattr(training_of, name, lambda *_: None)


# --- runs


@BOTH
def test_a_run_leaves_what_it_promises(runs, training):
    run = runs[training.name]
    assert [path.name for path in list_checkpoints(run)] == ["step_0000004", "step_0000006"]
    assert [record["step"] for record in records(run)] == [1, 2, 3, 4, 5, 6]
    assert [record["frames"] for record in records(run)] == [5, 5, 1, 5, 5, 1]  # every third update sees images
    for picture in ("loss.png", "reconstructions.png"):
        assert (run / picture).read_bytes()[:4] == b"\x89PNG"
    state = read_checkpoint(find_checkpoint(run), names=()).state
    assert math.isfinite(state["before"]["psnr"]) and math.isfinite(state["now"]["psnr"])


@BOTH
def test_a_crashed_run_is_resumed_to_the_bit(runs, training, tmp_path):
    """Killed in the fifth update, after the checkpoint of the fourth: videos 6 and 7 are its batch."""
    with pytest.raises(RuntimeError, match="crash"):
        train_tokenizer(training, tmp_path, Disturbed(training, 6, crash), progress=False)
    assert find_checkpoint(tmp_path).name == "step_0000004"
    train_tokenizer(training, tmp_path, source_of(training), resume=True, progress=False)
    assert tensor_files(tmp_path) == tensor_files(runs[training.name])
    assert records(tmp_path) == records(runs[training.name])
    states = [read_checkpoint(find_checkpoint(run), names=()).state for run in (tmp_path, runs[training.name])]
    assert states[0] == states[1]


def test_ctrl_c_finishes_the_step_and_leaves_a_checkpoint_to_resume_from(runs, tmp_path, capsys):
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train_tokenizer(CONTINUOUS, tmp_path, Disturbed(CONTINUOUS, 4, press_ctrl_c), progress=False)
    assert "--resume" in capsys.readouterr().err and signal.getsignal(signal.SIGINT) is before
    train_tokenizer(CONTINUOUS, tmp_path, source_of(CONTINUOUS), resume=True, progress=False)
    assert tensor_files(tmp_path) == tensor_files(runs["CV-micro"])


def test_a_run_is_neither_overwritten_nor_resumed_with_other_settings(runs):
    run = runs["CV-micro"]
    with pytest.raises(UserError, match="--resume"):
        train_tokenizer(CONTINUOUS, run, source_of(CONTINUOUS))
    for other, says in (
        (with_train(CONTINUOUS, stage_2=3), "stage_2: 4, now 3"),
        (dataclasses.replace(CONTINUOUS, world="collision"), "data"),
        (dataclasses.replace(CONTINUOUS, network=dataclasses.replace(MICRO, channels=5)), "tokenizer"),
    ):
        with pytest.raises(UserError, match=says):
            train_tokenizer(other, run, source_of(CONTINUOUS), resume=True)


def test_a_run_of_a_model_is_not_taken_for_one_of_a_tokenizer(tmp_path):
    config, source = PRESETS["micro"], source_of(CONTINUOUS)
    fitted = HaarPCATokenizer.fit(config.tokenizer, source.clips(range(8)).video)
    save_checkpoint(tmp_path / "checkpoints" / "step_0000001", config, {"tokenizer": fitted.state_dict()}, {"step": 1})
    with pytest.raises(UserError, match=r"missing|no run"):
        train_tokenizer(CONTINUOUS, tmp_path, source, resume=True)
    network, tokenizer = load_tokenizer(tmp_path)  # but its tokenizer is one
    assert network == config.tokenizer and torch.equal(tokenizer.mean, fitted.mean)


# --- what is learned


@BOTH
def test_a_small_step_lowers_the_loss_of_the_same_batch(training):
    training = with_train(training, learning_rate=1e-4, warmup_steps=0, cooling_steps=0)
    run, video = fresh(training), draw_videos(training, source_of(training), 0)
    losses = [advance(run, video, training.train, default_loss())["loss"] for _ in range(4)]
    assert losses[-1] < losses[0]


@BOTH
def test_gradients_reach_every_weight(training):
    """Through the quantizer too, which is flat almost everywhere."""
    run, video = fresh(training), draw_videos(training, source_of(training), 0)
    (unclamped_reconstruction(run.tokenizer, video) - video).abs().mean().backward()
    silent = [name for name, p in run.tokenizer.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    # What is added to every query and key alike, or to keys alone, the softmax does not see.
    assert [name for name in silent if not name.endswith(("to_k.bias", "k.bias"))] == []


def test_a_pixel_beyond_white_still_learns():
    """`decode` cuts off at 1; the training does not."""
    run, video = fresh(CONTINUOUS), draw_videos(CONTINUOUS, source_of(CONTINUOUS), 0)
    with torch.no_grad():
        run.tokenizer.decoder.conv_out.time.bias.fill_(9.0)
    back = unclamped_reconstruction(run.tokenizer, video)
    assert back.max() > 1.5
    (back[back > 1.5] - 1).sum().backward()
    bias = run.tokenizer.decoder.conv_out.time.bias
    assert bias.grad is not None and bias.grad.abs().max() > 0


def test_the_second_stage_begins_with_its_very_update():
    train = dataclasses.replace(SETTINGS, stage_2=4, perceptual=(0.1, 0.07), gram=(0.0, 0.06), flow=(0.0, 0.01))
    before, at = loss_weights(3, train), loss_weights(4, train)
    assert (before.absolute, before.perceptual, before.gram, before.flow) == (1.0, 0.1, 0.0, 0.0)
    assert (at.absolute, at.perceptual, at.gram, at.flow) == (1.0, 0.07, 0.06, 0.01)


def test_a_run_shows_when_the_second_stage_began(runs):
    parts = [{"absolute", "perceptual", "gram", "flow"} & record.keys() for record in records(runs["CV-micro"])]
    first, second = {"absolute", "perceptual"}, {"absolute", "perceptual", "gram", "flow"}
    assert parts == [first] * 4 + [second, second - {"flow"}]  # the last update sees images, which do not move


def test_a_minute_part_of_a_training_brings_clips_it_never_saw_ten_decibels_nearer(tmp_path):
    """In a few seconds, which is not enough to beat the mean colour on these scenes: that takes the real preset."""
    network = dataclasses.replace(MICRO, encoder_widths=(16,) * 4, decoder_widths=(16,) * 4, channels=8)
    training = dataclasses.replace(CONTINUOUS, network=network)
    training = with_train(
        training, num_steps=40, stage_2=38, learning_rate=2e-3, warmup_steps=5, cooling_steps=20, checkpoint_every=40
    )
    state = read_checkpoint(train_tokenizer(training, tmp_path, source_of(training), progress=False), names=()).state
    assert state["now"]["psnr"] > state["before"]["psnr"] + 10


def test_a_loss_that_is_not_finite_stops_the_training_and_changes_nothing():
    run, video = fresh(CONTINUOUS), draw_videos(CONTINUOUS, source_of(CONTINUOUS), 0)
    before = {name: tensor.clone() for name, tensor in run.tokenizer.state_dict().items()}
    broken = TokenizerLoss(lambda frames: [frames * math.nan], default_loss().flow, (1.0,))
    with pytest.raises(TrainingDiverged, match="step 1: loss is nan"):
        advance(run, video, SETTINGS, broken)
    assert all(torch.equal(tensor, before[name]) for name, tensor in run.tokenizer.state_dict().items())
    assert run.step == 0


def test_before_training_the_reconstruction_is_made_of_the_video():
    """Of its size, and different for different videos; with torch's own first weights nine tenths are constants."""
    tokenizer = new_tokenizer(TOKENIZER_TRAININGS["CV-tiny"].network, torch.Generator().manual_seed(0))
    video = worlds.simulate([0, 1, 2, 3], frames=9, height=32, width=32, kind="mixed").video
    with torch.no_grad():
        back = unclamped_reconstruction(tokenizer, video)
    assert 0.1 < back.std() < 2
    assert back.std(dim=0).mean() > 0.3 * back.std()


def test_what_begins_as_wavelets_is_as_good_as_principal_components():
    """To a third of a decibel, which the norms take: they see that not all frames have the same energy."""
    source = source_of(LINEAR)
    start = quality(fresh(LINEAR).tokenizer, source, chunk=4)["psnr"]
    known = baselines(LINEAR, source)
    assert abs(start - known["Haar-PCA"]) < 0.33
    assert start > known["mean colour"] + 5


def test_codes_that_begin_as_wavelets_say_more_than_the_mean_colour():
    """Three numbers of 8, 5 and 5 levels for 2 x 2 x 2 pixels; random weights are ten decibels below."""
    discrete = dataclasses.replace(LINEAR, network=dataclasses.replace(LINEAR.network, fsq_levels=(8, 5, 5)))
    source = source_of(discrete)
    found = quality(fresh(discrete).tokenizer, source, chunk=4)
    assert found["psnr"] > baselines(discrete, source)["mean colour"] + 1.5
    assert found["codes"] > 20


def test_branches_that_begin_at_zero_learn_from_the_second_update_on():
    """At the first only their last weights have a gradient."""
    run, source = fresh(LINEAR), source_of(LINEAR)
    for step in range(2):
        advance(run, draw_videos(LINEAR, source, step), LINEAR.train, default_loss())
    silent = [name for name, p in run.tokenizer.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert [name for name in silent if not name.endswith("to_k.bias")] == []


# --- what it is trained on


def test_updates_see_every_sample_once_and_as_many_latent_frames_of_images_as_of_videos():
    asked = []

    class Watched(WorldSource):
        def clips(self, indices, domain="video", bucket=None):
            asked.append((domain, list(indices)))
            return super().clips(indices, domain, bucket)

    source = Watched(CONTINUOUS.clip, "single", 0)
    asked.clear()
    for step in range(9):
        draw_videos(CONTINUOUS, source, step)
    videos, images = (
        [n for domain, numbers in asked if domain == kind for n in numbers] for kind in ("video", "image")
    )
    assert videos == list(range(6 * 2)) and images == list(range(3 * 2 * 3))  # 5 frames are 3 latent frames


def test_the_learning_rate_rises_stays_and_falls_to_nothing():
    train = dataclasses.replace(SETTINGS, num_steps=100, warmup_steps=10, cooling_steps=20, learning_rate=0.5)
    rates = [learning_rate(step, train) for step in range(101)]
    assert rates[0] < 1e-6 and rates[10] == rates[80] == 0.5 and rates[100] == 0
    assert rates[90] == pytest.approx(0.25)


@pytest.mark.parametrize(
    "training, says",
    [
        (with_train(CONTINUOUS, learning_rate=math.nan), "train.learning_rate"),
        (with_train(CONTINUOUS, stage_2=-1), "train.stage_2"),
        (with_train(CONTINUOUS, gram=(0.0, -1.0)), "train.gram"),
        (with_train(CONTINUOUS, image_share=1.5), "train.image_share"),
        (with_train(CONTINUOUS, ema_std=0.3), "train.ema_std"),
        (with_train(CONTINUOUS, start="wavelets"), "strides"),
        (dataclasses.replace(LINEAR, network=dataclasses.replace(LINEAR.network, channels=6)), "at least 14"),
        (dataclasses.replace(CONTINUOUS, clip=ClipConfig(6, 16, 16)), "6 frames"),
        (dataclasses.replace(CONTINUOUS, clip=ClipConfig(5, 16, 18)), "width 18"),
        (dataclasses.replace(CONTINUOUS, clip=ClipConfig(9, 16, 16)), "latent_frames must be at least 5"),
    ],
)
def test_what_cannot_be_trained_is_said_before_anything_is_written(training, says, tmp_path):
    with pytest.raises(UserError, match=says):
        train_tokenizer(training, tmp_path / "run", source_of(CONTINUOUS))
    assert not (tmp_path / "run").exists()


def test_every_tokenizer_that_is_known_by_name_can_be_trained():
    for name, training in TOKENIZER_TRAININGS.items():
        check_training(training)
        assert training.name == name and training.config.tokenizer == training.network


# --- what is kept


def test_kept_latents_are_standardised_by_channel_and_frame(runs):
    """On the clips of the statistics pass: zero mean, unit deviation, the first frame's for itself."""
    _, tokenizer = load_tokenizer(runs["CV-micro"])
    video = source_of(CONTINUOUS).clips(training_of.STATISTICS_CLIPS).video
    latents = tokenizer.encode(video).double()
    assert latents.mean(dim=(0, 3, 4)).abs().max() < 1e-4  # float32, and far from zero before
    assert (latents.std(dim=(0, 3, 4), correction=0) - 1).abs().max() < 1e-4
    assert not torch.equal(tokenizer.mean[:, 0], tokenizer.mean[:, 1])
    assert torch.equal(tokenizer.mean[:, 3], tokenizer.mean[:, 2])  # a frame beyond the clip's has the last one's


def test_the_average_of_the_weights_is_kept_and_statistics_change_no_reconstruction(runs):
    training = CONTINUOUS
    run, source = fresh(training), source_of(training)
    for step in range(3):
        advance(run, draw_videos(training, source, step), training.train, default_loss())
    kept = averaged_tokenizer(run, training.network, source, chunk=2)
    for name, weight in kept.named_parameters():
        assert torch.equal(weight, run.ema.weights[name])
    video = draw_videos(training, source, 9)
    with torch.no_grad():
        there_and_back, straight = kept.decode(kept.encode(video)), unclamped_reconstruction(kept, video).clamp(-1, 1)
    torch.testing.assert_close(there_and_back, straight, rtol=0, atol=1e-4)  # latents may be a thousand deviations off


@BOTH
def test_what_was_trained_is_loaded_and_takes_a_video_there_and_back(runs, training, tmp_path, capsys):
    network, tokenizer = load_tokenizer(runs[training.name])
    assert network == training.network
    assert not any(parameter.requires_grad for parameter in tokenizer.parameters())
    state = read_checkpoint(find_checkpoint(runs[training.name]), names=()).state
    assert quality(tokenizer, source_of(training), chunk=3)["psnr"] == pytest.approx(state["now"]["psnr"], abs=1e-3)
    clip = source_of(training).clips([5]).video[0]
    video = write_video(tmp_path / "clip.mp4", clip, fps=24.0)
    main(["tokenize", str(video), "--weights", str(runs[training.name]), "--out", str(tmp_path / "out")])
    assert "PSNR" in capsys.readouterr().out


def test_the_command_trains_a_model_on_its_latents_and_generates_from_it(tmp_path, capsys):
    """The preset's own tokenizer has another size and more channels: the model takes over the numbers of this one."""
    tokenizer, model = tmp_path / "tokenizer", tmp_path / "model"
    train_tokenizer(LINEAR, tokenizer, source_of(LINEAR), progress=False)
    short = "--train.num-steps 2 --train.warmup-steps 1 --train.cooling-steps 1"
    main(f"train --preset micro {short} --tokenizer-weights {tokenizer} --out {model}".split())
    config = read_checkpoint(find_checkpoint(model), names=()).config
    assert config.tokenizer == LINEAR.network and config.model.channels == 4
    kept = [load_tokenizer(run)[1].state_dict() for run in (tokenizer, model)]
    assert all(torch.equal(tensor, kept[1][name]) for name, tensor in kept[0].items())
    main(["sample", "--weights", str(model), "--prompt", "a red marble", "--out", str(tmp_path / "clip.mp4")])
    main(["tokenize", str(tmp_path / "clip.mp4"), "--weights", str(tokenizer), "--out", str(tmp_path / "out")])
    assert "PSNR" in capsys.readouterr().out


def test_a_model_is_not_trained_on_codes(runs, tmp_path, capsys):
    with pytest.raises(SystemExit) as ending:
        main(f"train --preset micro --tokenizer-weights {runs['DV-micro']} --out {tmp_path / 'model'}".split())
    assert ending.value.code == 2 and "discrete" in capsys.readouterr().err
    assert not (tmp_path / "model").exists()


def test_a_tokenizer_of_other_numbers_than_were_asked_for_is_refused(runs, tmp_path, capsys):
    asked = "--tokenizer.levels 1 1 1 --tokenizer.channels 8 --model.channels 8"
    with pytest.raises(SystemExit) as ending:
        main(f"train --preset micro {asked} --tokenizer-weights {runs['CV-micro']} --out {tmp_path / 'model'}".split())
    assert ending.value.code == 2 and "another than" in capsys.readouterr().err


def test_a_checkpoint_of_a_tokenizer_is_no_model_to_sample_from(runs, tmp_path, capsys):
    with pytest.raises(SystemExit) as ending:
        main(["sample", "--weights", str(runs["CV-micro"]), "--prompt", "x", "--out", str(tmp_path / "x.mp4")])
    assert ending.value.code == 2 and "no network" in capsys.readouterr().err


def test_codes_are_counted(monkeypatch):
    """Four cells, two codes equally often: two codes, and a perplexity of two."""

    class TwoCodes(DiscreteTokenizer):
        def encode(self, video, past=None):
            return torch.tensor([3, 7]).repeat(len(video), 3, 2, 1)

        def decode(self, indices, past=None):
            return torch.zeros(len(indices), 3, 5, 16, 16)

    found = quality(TwoCodes(DISCRETE.network), source_of(DISCRETE), chunk=4)
    assert found["codes"] == 2 and found["perplexity"] == pytest.approx(2)


# --- the command


def test_the_command_trains_and_says_how_good_it_is(tmp_path, capsys):
    small = "--network.encoder-widths 14 14 --network.decoder-widths 14 14 --train.num-steps 2 --train.stage-2 1"
    main(["train-tokenizer", "--tokenizer", "DV-tiny", "--out", str(tmp_path / "run"), *small.split()])
    said = " ".join(capsys.readouterr().out.split())
    for words in ("dB before training", "mean colour", "different codes", "cosmos-ref tokenize"):
        assert words in said
    assert read_checkpoint(find_checkpoint(tmp_path / "run"), names=()).config.name == "DV-tiny"


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["--tokenizer", "CV-huge"], "no tokenizer is called 'CV-huge'; there are: CV-tiny"),
        (["--tokenizer=DV-tiny", "--train.batch-size", "0"], "train.batch_size must be above 0"),
        (["--data", "nowhere"], "nowhere"),
    ],
)
def test_a_request_that_cannot_be_met_is_refused(tmp_path, capsys, arguments, says):
    with pytest.raises(SystemExit) as ending:
        main(["train-tokenizer", "--out", str(tmp_path / "run"), *arguments])
    assert ending.value.code == 2
    assert says in " ".join(capsys.readouterr().err.split()) and not (tmp_path / "run").exists()
