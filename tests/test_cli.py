"""The command line as its users meet it: what works, and what a bad request is told before anything is written."""

import math
import os
import shutil
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from cosmos_ref.cli import main
from cosmos_ref.config import TOKENIZERS
from cosmos_ref.errors import UserError
from cosmos_ref.traceability import EQUATIONS
from cosmos_ref.training.layout import OneProcess
from cosmos_ref.video_io import read_clip, write_video
from tests.interop.files import CODER, DISCRETE, write_jit


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A training run of the micro preset, four steps long."""
    folder = tmp_path_factory.mktemp("cli") / "run"
    main(["train", "--preset", "micro", "--out", str(folder), "--train.num-steps", "4", "--train.cooling-steps", "1"])
    return folder


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """A short video of 24x20 pixels."""
    ramp = np.linspace(-1, 1, 24, dtype=np.float32)
    clip = torch.from_numpy(np.broadcast_to(ramp, (3, 9, 20, 24)).copy())
    return write_video(tmp_path_factory.mktemp("video") / "clip.mp4", clip, fps=25.0)


def refused(capsys, *arguments: object) -> str:
    """What the command says when it ends with exit code 2."""
    with pytest.raises(SystemExit) as ending:
        main([str(argument) for argument in arguments])
    assert ending.value.code == 2
    output = capsys.readouterr()
    assert "Traceback" not in output.err
    return " ".join((output.err + output.out).split())


def test_equations_lists_every_equation(capsys):
    main(["equations"])
    listing = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line.split()]
    assert set(EQUATIONS) <= set(listing)


def test_equations_shows_formula_source_code_laws_and_impostors_of_one(capsys):
    main(["equations", "edm.loss_weight"])
    page = capsys.readouterr().out
    assert r"\lambda(\sigma)" in page and "Karras et al. 2022" in page and "def loss_weight(" in page
    assert "the weighted error is the error of the network" in page and "as the seed text prints it" in page


def test_presets_shows_every_number_of_one(capsys):
    main(["presets", "tiny"])
    page = capsys.readouterr().out
    assert "p_mean" in page and "num_heads" in page


def test_doctor_names_the_threads_and_every_preset(capsys):
    main(["doctor"])
    page = capsys.readouterr().out
    assert f"{torch.get_num_threads()} threads" in " ".join(page.split())
    assert "micro" in page and "tiny" in page


def test_plan_says_that_14b_does_not_fit_on_64_without_recomputation_and_with_what_it_does(capsys):
    options = "--preset 14b --parallel.world 64 --parallel.cp 8 --frames 121 --resolution 720"
    main(["plan", *options.split()])
    page = " ".join(capsys.readouterr().out.split())
    assert "56,320 tokens; 7,040 a process" in page and "285 GB / 64 = 4.46 GB" in page and "311 GB / 8" in page
    assert "It does not fit" in page and "--parallel.recompute" in page.split("what to change")[1]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--parallel.world 64 --parallel.cp 3", "must divide the 64 processes"),
        ("--resolution 333", "HEIGHTxWIDTH"),
        ("--resolution 100x100", "multiple of"),
        ("--gpu-memory 0", "above 0"),
    ],
)
def test_plan_refuses_what_cannot_be(capsys, options, words):
    assert words in refused(capsys, "plan", "--preset", "14b", *options.split())


def test_plan_shows_a_model_that_fits_everywhere(capsys):
    main(["plan", "--preset", "micro"])
    assert "It fits" in capsys.readouterr().out


def test_a_prompt_becomes_a_clip_of_the_size_that_was_asked_for(run, tmp_path):
    out = tmp_path / "clip.mp4"
    main(
        [
            "sample",
            "--weights",
            str(run),
            "--prompt",
            "a red marble",
            "--num-frames",
            "7",
            "--width",
            "24",
            "--out",
            str(out),
        ]
    )
    clip = read_clip(out, frames=7)
    assert clip.video.shape == (3, 7, 16, 24)


def test_given_frames_lend_their_rate_to_the_clip(run, video, tmp_path):
    out = tmp_path / "clip.mp4"
    main(["sample", "--weights", str(run), "--frames", str(video), "--resize", "--out", str(out)])
    assert read_clip(out, frames=5).fps == 25


def test_the_same_seed_gives_the_same_file_and_another_seed_another(run, tmp_path):
    def sampled(seed):
        out = tmp_path / f"{seed}.png"
        main(["sample", "--weights", str(run), "--prompt", "a red marble", "--seed", str(seed), "--out", str(out)])
        return out.read_bytes()

    assert sampled(3) == sampled(3)
    assert sampled(3) != sampled(4)


def test_tokenize_writes_latents_and_both_videos_side_by_side(video, tmp_path, capsys):
    main(["tokenize", str(video), "--resize", "--height", "32", "--width", "40", "--out", str(tmp_path / "out")])
    assert read_clip(tmp_path / "out" / "reconstruction.mp4", frames=9).video.shape == (3, 9, 32, 80)
    assert (tmp_path / "out" / "latents.safetensors").exists()
    assert "PSNR" in capsys.readouterr().out


@pytest.mark.parametrize("config", [CODER, DISCRETE], ids=["continuous", "discrete"])
def test_a_released_tokenizer_is_recognised_and_used(config, video, tmp_path, capsys, monkeypatch):
    """TorchScript only if allowed; a discrete tokenizer gives numbers of codes."""
    monkeypatch.setitem(TOKENIZERS, "small", config)
    folder, out = tmp_path / "release", tmp_path / "out"
    write_jit(folder, config)
    size = ["--resize", "--height", "32", "--width", "40", "--num-frames", "9", "--out", out]
    arguments = ["tokenize", video, "--tokenizer", folder, *size]
    assert "--allow-torchscript" in refused(capsys, *arguments)
    assert not out.exists()
    main([str(argument) for argument in [*arguments, "--allow-torchscript"]])
    latents = load_file(out / "latents.safetensors")["latents"]
    if config.fsq_levels:
        assert latents.shape == (1, 2, 4, 5) and set(latents.unique().tolist()) <= set(range(6))
    else:
        assert latents.shape == (1, 5, 2, 4, 5)
    assert read_clip(out / "reconstruction.mp4").video.shape == (3, 9, 32, 80)


def test_a_video_that_cannot_be_tokenized_leaves_no_folder(video, tmp_path, capsys):
    assert "--resize" in refused(capsys, "tokenize", video, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_preset_whose_tokenizer_is_not_fitted_is_not_trained(capsys, tmp_path):
    assert "weights of its own" in refused(capsys, "train", "--preset", "7b", "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_unknown_preset_is_told_which_there_are(capsys, tmp_path):
    assert "micro, tiny" in refused(capsys, "train", "--preset", "nano", "--out", tmp_path / "run")


def test_an_unknown_equation_is_told_which_is_near(capsys):
    assert "edm.loss_weight" in refused(capsys, "equations", "loss_weight")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["train", "--out", "x", "--train.batch-size", "two"], "batch-size"),
        (["train", "--out", "x", "--train.bach-size", "2"], "bach-size"),
        (["sample", "--weights", "x", "--out", "y.mp4", "--solver", "rk4"], "rk4"),
        (["train"], "--out"),
        (["paint"], "paint"),
    ],
)
def test_an_option_that_does_not_parse_is_named(capsys, arguments, says):
    assert says in refused(capsys, *arguments)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--prompt", ""], "empty"),
        (["--prompt", "marble " * 50], "50"),
        ([], "--prompt"),
        (["--given", "3", "--prompt", "a"], "--given"),
        (["--prompt", "a", "--num-frames", "6"], "5 or 7"),
        (["--prompt", "a", "--height", "18"], "18"),
        (["--prompt", "a", "--width", "100000"], "100000"),
        (["--prompt", "a", "--num-frames", "1001"], "1001"),
        (["--prompt", "a", "--seed", "-1"], "-1"),
        (["--prompt", "a", "--num-steps", "1"], "num_steps 1"),
        (["--prompt", "a", "--fps", "0"], "fps 0"),
        (["--frames", "missing.mp4"], "missing.mp4"),
        (["--frames", "{text}"], "text.mp4"),
        (["--frames", "{truncated}"], "truncated.mp4"),
        (["--frames", "{video}"], "--resize"),
        (["--prompt", "a", "--guidance", "nan"], "guidance nan"),
        (["--prompt", "a", "--guidance", "1e38"], "guidance 1e+38"),
        (["--prompt", "a", "--fps", "0.0001"], "fps 0.0001"),
        (["--prompt", "a", "--device", "warp"], "'warp'"),
        (["--prompt", "a", "--t5", "t5_folder"], "without T5"),
        (["--prompt", "a", "--device", "cuda:99"], "cuda:99"),
        (["--prompt", "a", "--max-memory", "0"], "0 GiB"),
        (["--prompt", "a", "--max-memory", "-1"], "-1 GiB"),
        (["--prompt", "a", "--max-memory", "nan"], "nan GiB"),
        (["--prompt", "a", "--clips", "0"], "0 clips"),
        (["--prompt", "a", "--clips", "2", "--given", "2"], "1 or 3"),
        (["--prompt", "a", "--clips", "2", "--given", "5"], "5 given frames"),
        (["--prompt", "a", "--clips", "2", "--num-frames", "3"], "3 given frames"),
        (["--frames", "{video}", "--resize", "--given", "0"], "0 frames"),
        (["--frames", "{video}", "--resize", "--given", "2"], "1 or 3"),
        (["--frames", "{video}", "--resize", "--given", "11"], "9"),
        (["--frames", "{video}", "--resize", "--given", "5"], "5"),
    ],
)
def test_a_clip_that_cannot_be_made_is_refused_and_nothing_is_written(
    run, video, tmp_path, capsys, monkeypatch, arguments, says
):
    """Before anything is sampled, too."""
    monkeypatch.delattr("cosmos_ref.pipelines.text2world.sample")
    (tmp_path / "text.mp4").write_text("this is not a video")
    (tmp_path / "truncated.mp4").write_bytes(video.read_bytes()[: video.stat().st_size // 2])
    places = {"text": tmp_path / "text.mp4", "truncated": tmp_path / "truncated.mp4", "video": video}
    before = sorted(tmp_path.iterdir())
    arguments = [argument.format(**places) for argument in arguments]
    assert says in refused(capsys, "sample", "--weights", run, "--out", tmp_path / "clip.mp4", *arguments)
    assert sorted(tmp_path.iterdir()) == before


def test_what_is_not_finite_is_not_written(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("cosmos_ref.pipelines.text2world.sample", lambda denoise, noise, *_: noise * math.nan)
    out = tmp_path / "clip.mp4"
    assert "not finite" in refused(capsys, "sample", "--weights", run, "--prompt", "a", "--out", out)
    assert not out.exists()


@pytest.mark.parametrize(
    ("out", "says"), [("table.bin", ".safetensors"), ("none/a.safetensors", "none"), ("x.safetensors", "folder")]
)
def test_a_table_that_cannot_be_written_is_refused_before_the_encoder_is_sought(tmp_path, capsys, out, says):
    (tmp_path / "x.safetensors").mkdir()
    message = refused(capsys, "encode-text", "a", "--out", tmp_path / out, "--t5", "no_t5")
    assert says in message and "no_t5" not in message


@pytest.mark.parametrize(("out", "says"), [("clip.avi", ".avi"), ("locked/clip.mp4", "locked")])
def test_an_output_that_cannot_be_written_is_refused_before_sampling(run, tmp_path, capsys, out, says):
    (tmp_path / "locked").write_text("a file where a folder should be")
    assert says in refused(capsys, "sample", "--weights", run, "--prompt", "a", "--out", tmp_path / out)


def test_a_missing_checkpoint_is_named(tmp_path, capsys):
    assert "nothing" in refused(
        capsys, "sample", "--weights", tmp_path / "nothing", "--prompt", "a", "--out", tmp_path / "a.mp4"
    )


@pytest.mark.parametrize("damage", ["truncate", "alter", "remove"])
def test_a_damaged_checkpoint_is_refused(run, tmp_path, capsys, damage):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    weights = next(copy.glob("checkpoints/*/ema.safetensors"))
    content = bytearray(weights.read_bytes())
    if damage == "truncate":
        weights.write_bytes(content[: len(content) // 2])
    elif damage == "alter":
        content[-1] ^= 1
        weights.write_bytes(content)
    else:
        weights.unlink()
    message = refused(capsys, "sample", "--weights", copy, "--prompt", "a", "--out", tmp_path / "a.mp4")
    assert "ema.safetensors" in message


def test_a_checkpoint_of_another_preset_is_refused(run, tmp_path, capsys):
    """Weights of one size under the config of another."""
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    message = refused(capsys, "train", "--preset", "tiny", "--out", copy, "--resume")
    assert "model.width" in message


def test_a_run_is_not_overwritten_by_accident(run, capsys):
    assert "--resume" in refused(capsys, "train", "--preset", "micro", "--out", run)


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write anywhere")
def test_a_folder_without_permission_is_refused(tmp_path, capsys):
    tmp_path.chmod(0o500)
    assert str(tmp_path) in refused(capsys, "train", "--preset", "micro", "--out", tmp_path / "run")


def test_videos_of_another_size_are_refused_with_the_way_out(video, tmp_path, capsys):
    message = refused(capsys, "train", "--preset", "micro", "--out", tmp_path / "run", "--data", video.parent)
    assert "20" in message and "--resize" in message
    assert not (tmp_path / "run").exists()


def test_a_number_that_is_refused_is_not_dressed_up_by_the_parser(tmp_path, capsys):
    message = refused(capsys, "train", "--preset", "micro", "--out", tmp_path / "run", "--clip.fps", "0")
    assert message.startswith("cosmos-ref: fps 0")


def test_numbers_that_contradict_each_other_are_refused(tmp_path, capsys):
    message = refused(capsys, "train", "--preset", "micro", "--out", tmp_path / "run", "--text.width", "24")
    assert "24" in message and "16" in message


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("--model.num-heads 0", "model.num_heads is 0"),
        ("--model.depth 0", "model.depth is 0"),
        ("--model.patch-size 0 2 2", "model.patch_size is 0"),
        ("--model.rope-ratios -1 1 1", "model.rope_ratios is -1"),
        ("--text.width 15 --model.text-width 15", "text.width 15"),
        ("--tokenizer.levels -1 2 2", "tokenizer.levels (-1, 2, 2)"),
        ("--tokenizer.levels 0 0 0", "3 bands"),
        ("--diffusion.sigma-data 0", "diffusion.sigma_data is 0"),
        ("--diffusion.sigma-max 0.001", "diffusion.sigma_max 0.001"),
        ("--train.learning-rate inf", "train.learning_rate is inf"),
        ("--train.betas 0.9 1", "train.betas is (0.9, 1.0)"),
        ("--train.eps -1", "train.eps is -1"),
        ("--train.weight-decay -1", "train.weight_decay is -1"),
        ("--device warp", "'warp'"),
        ("--peak -3", "--peak -3"),
        ("--held-out -3", "--held-out -3"),
        ("--prompt ball", "for the stages of a --recipe"),
        ("--recipe toy", "--preset micro and --recipe toy"),
        ("--parallel.cp 0", "--parallel.cp 0"),
        ("--parallel.ulysses 2", "--parallel.ulysses 2"),
        ("--parallel.cp 3", "--nproc-per-node 3"),
    ],
)
def test_a_number_that_nothing_can_be_built_from_is_refused_before_training(tmp_path, capsys, options, says):
    assert says in refused(capsys, "train", "--preset", "micro", "--out", tmp_path / "run", *options.split())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("options", ["--data missing", "--tokenizer-weights missing", "--recipe toy --data missing"])
def test_what_one_process_cannot_open_all_are_told(tmp_path, capsys, monkeypatch, options):
    """Else it would end without a word, where another one speaks for all."""
    told = []

    class Told(OneProcess):
        def agree(self, error):
            told.append(error)

    monkeypatch.setattr("cosmos_ref.commands.train.chosen_layout", lambda *arguments: nullcontext(Told()))
    preset = [] if "--recipe" in options else ["--preset", "micro"]
    assert "missing" in refused(capsys, "train", *preset, "--out", tmp_path / "run", *options.split())
    assert isinstance(told[-1], UserError)
