"""Sampling without PyTorch is the pipelines' sampling; bad bundles and bad requests are refused in one line."""

import dataclasses
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from cosmos_export import runtime, solvers
from cosmos_export.bundle import Bundle, BundleError, words_embedding
from cosmos_export.compare import SAMPLING_LIMIT, compare, compare_sampling, torch_call
from cosmos_export.runtime import sample
from cosmos_export.to_onnx import export_bundle
from cosmos_export.video import frame_rate, read_last_frames, write_mp4
from hypothesis import given
from hypothesis import strategies as st

from cosmos_ref.conditioning.condition import give_frames, text_condition
from cosmos_ref.conditioning.text import WordsEncoder
from cosmos_ref.config import SampleConfig, preset
from cosmos_ref.equations.edm import scale_latents, unscale_latents
from cosmos_ref.equations.noise import karras_sigmas
from cosmos_ref.equations.solvers import euler_step, heun_step, res_2ab_step
from cosmos_ref.errors import UserError
from cosmos_ref.model.initialization import new_model
from cosmos_ref.pipelines import sample as pipeline

PROMPTS = ["a red marble falls", "two blue marbles"]


@pytest.mark.parametrize("num_steps", [2, 3, 35])
def test_the_schedule_is_the_equations(num_steps):
    ours, theirs = solvers.karras_sigmas(num_steps, 0.002, 80, 7), karras_sigmas(num_steps, 0.002, 80, 7)
    # torch counts its ramp from both ends, numpy from one: a few units in the last place, raised to the 7th power
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-13)


@given(
    st.integers(0, 1000),
    st.floats(0.01, 80).flatmap(lambda s: st.tuples(st.just(s), st.just(0.0) | st.floats(0.3 * s, 0.95 * s))),
)
def test_the_steps_are_the_equations(seed, levels):
    sigma = levels[0]
    x, D, D_previous = np.random.default_rng(seed).standard_normal((3, 4, 5))
    tensors = [torch.from_numpy(a) for a in (x, D, D_previous)]

    def denoise(x, sigma):
        return x / (1 + sigma**2)

    pairs = [
        (solvers.euler_step(x, D, *levels), euler_step(*tensors[:2], *levels)),
        (solvers.heun_step(denoise, x, *levels), heun_step(denoise, tensors[0], *levels)),
        (solvers.res_2ab_step(x, D, D_previous, *levels, 1.4 * sigma), res_2ab_step(*tensors, *levels, 1.4 * sigma)),
    ]
    for ours, theirs in pairs:
        np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-12, atol=1e-12)  # float64, the same operations


@pytest.mark.parametrize("solver", ["euler", "heun", "res_2ab"])
def test_the_loop_is_the_pipelines_loop(solver):
    noise, sigmas = np.random.default_rng(0).standard_normal((2, 3)), karras_sigmas(9, 0.002, 80, 7)

    def denoise(x, sigma):
        return x / (1 + sigma**2) + 0.1

    theirs = pipeline.sample(denoise, torch.from_numpy(noise), sigmas, SampleConfig(solver=solver))
    np.testing.assert_allclose(solvers.integrate(denoise, noise, sigmas, solver), theirs.numpy(), rtol=1e-12)


def test_the_noise_is_the_pipelines_noise():
    for seed, index in ((0, 0), (7, 1), (1, runtime.AUGMENT_STREAM + 3), (2**64 - 1, 2)):
        ours, theirs = (module.noise_from_seed(seed, index, (2, 3)) for module in (solvers, pipeline))
        assert (ours == theirs.numpy()).all()


@given(st.lists(st.text(min_size=1, max_size=40) | st.none(), min_size=1, max_size=3))
def test_the_words_are_the_text_encoders_words(prompts):
    try:
        expected = WordsEncoder(6, 8).encode(prompts).numpy()
    except UserError:
        with pytest.raises(BundleError):
            words_embedding(prompts, 6, 8)
        return
    assert (words_embedding(prompts, 6, 8) == expected).all()


def in_torch(exported, prompts, given_video, seed, solver, guidance, augment_sigma):
    """The same sampling with the modules, PyTorch's solvers and PyTorch's guidance."""
    config = exported.config
    encoder = WordsEncoder(config.text.length, config.text.width)
    shape = (16, 3, 4, 4)
    noise = torch.stack([pipeline.noise_from_seed(seed, i, shape) for i in range(len(prompts))])
    condition = text_condition(encoder.encode(prompts), noise, torch.full((len(prompts),), config.clip.fps))
    x0, n = torch.zeros_like(noise), 0
    augment_noise = torch.stack([pipeline.noise_from_seed(seed, 2**32 + i, shape) for i in range(len(prompts))])
    if given_video is not None:
        latents = scale_latents(exported.tokenizer.encode(torch.from_numpy(given_video)), config.diffusion.sigma_data)
        n = latents.shape[2]
        x0[:, :, :n] = latents
    counts, levels = torch.full((len(prompts),), n), torch.full((len(prompts),), augment_sigma)
    condition = give_frames(condition, x0, counts, levels, augment_noise)
    null_text = encoder.encode([None] * len(prompts))
    settings = SampleConfig(solver=solver, num_steps=6)
    sigmas = pipeline.schedule(config.diffusion, settings)
    denoise = pipeline.guided(exported.denoiser, noise, sigmas, condition, null_text, guidance, x0)
    x0 = pipeline.sample(denoise, noise, sigmas, settings)
    return x0, exported.tokenizer.decode(unscale_latents(x0, config.diffusion.sigma_data))


@pytest.mark.parametrize("solver", ["euler", "heun", "res_2ab"])
@pytest.mark.parametrize("guidance", [0.0, 1.5])
@pytest.mark.parametrize("given_frames", [0, 1, 3])
def test_a_whole_sampling_ends_where_pytorch_ends(exported, solver, guidance, given_frames):
    video = None
    if given_frames:
        video = np.random.default_rng(1).uniform(-1, 1, (2, 3, given_frames, 16, 16)).astype(np.float32)
    # an augmentation that is passed on the way down, so that both sides of the switch are compared
    expected, pictures = in_torch(exported, PROMPTS, video, 5, solver, guidance, augment_sigma=0.1)
    made = sample(
        exported.bundle, PROMPTS, given_video=video, seed=5, solver=solver,
        guidance=guidance, num_steps=6, augment_sigma=0.1,
    )  # fmt: skip
    assert compare("latents", expected.numpy(), made.x0, SAMPLING_LIMIT).ok
    assert compare("video", pictures.numpy(), made.video, SAMPLING_LIMIT).ok


def test_compare_sampling_leads_both_engines_from_the_same_noise(exported):
    noise = solvers.noise_from_seed(0, 0, (1, 16, 3, 4, 4))
    condition = runtime._give_frames(np.zeros_like(noise), 0, 0, noise) | {
        "text_embeddings": np.zeros((1, 24, 16), np.float32),
        "fps": np.full(1, 24, np.float32),
        "padding_mask": np.zeros((1, 1, 4, 4), np.float32),
    }
    call = torch_call(exported.denoiser)
    engines = [lambda **inputs: call(inputs), exported.bundle.denoise]
    denoisers = [runtime.guided(engine, condition, condition["text_embeddings"], 0) for engine in engines]
    sigmas = solvers.karras_sigmas(5, 0.002, 80, 7)
    row = compare_sampling(*denoisers, noise, sigmas, "heun")
    assert row.ok and row.max_abs > 0  # two engines, not one twice
    assert not compare_sampling(denoisers[0], lambda x, s: 1.01 * denoisers[1](x, s), noise, sigmas, "heun").ok


def test_a_clip_depends_on_its_seed_and_place_not_on_its_neighbours(exported):
    both = sample(exported.bundle, PROMPTS, seed=2).x0
    alone = sample(exported.bundle, PROMPTS[:1], seed=2).x0
    assert compare("first", both[:1], alone, SAMPLING_LIMIT).ok
    assert not compare("seed", alone, sample(exported.bundle, PROMPTS[:1], seed=3).x0, SAMPLING_LIMIT).ok


REFUSED = {
    "steps": dict(num_steps=1),
    "no noise": dict(augment_sigma=0.0),
    "noise not a number": dict(augment_sigma=float("nan")),
    "no rate": dict(fps=0.0),
    "seed below": dict(seed=-1),
    "seed above": dict(seed=2**64),
    "solver": dict(solver="magic"),
    "frames": dict(frames=4),
    "too long": dict(frames=99),
    "height": dict(height=12),
    "width": dict(width=4096),
    "empty prompt": dict(prompts=["  "]),
    "long prompt": dict(prompts=["marble " * 25]),
    "noise": dict(noise=np.zeros((1, 16, 3, 4, 5), np.float32)),
    "text": dict(text_embeddings=np.zeros((1, 24, 5), np.float32)),
    "negative": dict(text_embeddings=np.zeros((1, 9, 16), np.float32), negative_prompt="blur"),
    "given": dict(given_video=np.zeros((1, 3, 5, 16, 16), np.float32)),
    "given length": dict(given_video=np.zeros((1, 3, 2, 16, 16), np.float32)),
    "given batch": dict(given_video=np.zeros((2, 3, 1, 16, 16), np.float32)),
}


@pytest.mark.parametrize("request_", REFUSED.values(), ids=REFUSED.keys())
def test_a_request_that_does_not_fit_is_refused_before_the_first_call(exported, request_, monkeypatch):
    monkeypatch.setattr(Bundle, "denoise", None)
    with pytest.raises(BundleError):
        sample(exported.bundle, **request_)


def truncate(folder):
    path = folder / "denoiser.safetensors"
    path.write_bytes(path.read_bytes()[:-4])


def flip(folder):
    path = folder / "tokenizer_decoder.onnx"
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


def of_the_future(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"format": 99}))


TAMPER = {
    "truncated": (truncate, "not the file that was exported"),
    "altered": (flip, "not the file that was exported"),
    "missing": (lambda folder: (folder / "denoiser.onnx").unlink(), "is missing"),
    "no manifest": (lambda folder: (folder / "manifest.json").unlink(), "not a bundle"),
    "no JSON": (lambda folder: (folder / "manifest.json").write_text("{"), "cannot be read"),
    "no object": (lambda folder: (folder / "manifest.json").write_text("[1]"), "cannot be read"),
    "of the future": (of_the_future, "format 99"),
}


@pytest.mark.parametrize("tamper, message", TAMPER.values(), ids=TAMPER.keys())
def test_a_bundle_that_is_not_as_exported_is_refused(exported, tmp_path, capsys, tamper, message):
    folder = shutil.copytree(exported.path, tmp_path / "bundle")
    tamper(folder)
    assert runtime.main([str(folder), "--out", str(tmp_path / "clip.mp4")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and message in lines[0]
    assert not (tmp_path / "clip.mp4").exists()


def test_a_provider_that_is_not_there_is_said_not_replaced(exported):
    with pytest.raises(BundleError, match=r"it has: .*CPUExecutionProvider"):
        Bundle.load(exported.path, ("NoSuchExecutionProvider",))


def test_the_command_line_writes_a_clip_from_a_prompt_and_one_from_frames(exported, tmp_path, capsys):
    first, second = tmp_path / "first.mp4", tmp_path / "second.mp4"
    assert runtime.main([str(exported.path), "--prompt", "a red marble", "--num-frames", "9", "--out", str(first)]) == 0
    assert "step 4/4" in capsys.readouterr().err
    assert read_last_frames(first, 9).shape == (3, 9, 16, 16)
    more = ["--frames", str(first), "--given", "3", "--height", "8", "--width", "24", "--resize"]
    assert runtime.main([str(exported.path), *more, "--out", str(second)]) == 0
    assert read_last_frames(second, 5).shape == (3, 5, 8, 24)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["first.mp4", "second.mp4"]


def test_given_frames_lend_their_number_and_rate_as_in_the_pytorch_command(exported, tmp_path, capsys):
    given, out = tmp_path / "given.mp4", tmp_path / "out.mp4"
    write_mp4(given, np.zeros((3, 5, 16, 16), np.float32), fps=30)
    assert runtime.main([str(exported.path), "--frames", str(given), "--out", str(out)]) == 0
    assert frame_rate(out) == 30
    write_mp4(given, np.zeros((3, 2, 16, 16), np.float32), fps=30)  # the model was trained for three
    assert runtime.main([str(exported.path), "--frames", str(given), "--out", str(out)]) == 2
    assert "3 are needed" in capsys.readouterr().err


BAD_ARGUMENTS = {
    "suffix": ["--out", "clip.avi"],
    "folder": ["--out", "nowhere/clip.mp4"],
    "is a folder": ["--out", "folder.mp4"],
    "frames": ["--out", "clip.mp4", "--frames", "no.mp4"],
    "no video": ["--out", "clip.mp4", "--frames", "text.mp4"],
    "short video": ["--out", "clip.mp4", "--frames", "two.mp4", "--given", "3"],
    "size": ["--out", "clip.mp4", "--frames", "two.mp4"],
    "size asked": ["--out", "clip.mp4", "--frames", "two.mp4", "--height", "8"],
    "given frames": ["--out", "clip.mp4", "--frames", "two.mp4", "--given", "2"],
    "steps": ["--out", "clip.mp4", "--num-steps", "1"],
    "guidance": ["--out", "clip.mp4", "--guidance", "nan"],
    "seed": ["--out", "clip.mp4", "--seed", "-1"],
    "seed above": ["--out", "clip.mp4", "--seed", str(2**64)],
    "augment sigma": ["--out", "clip.mp4", "--augment-sigma", "0"],
    "fps": ["--out", "clip.mp4", "--fps", "0"],
    "prompt": ["--out", "clip.mp4", "--prompt", ""],
    "embeddings": ["--out", "clip.mp4", "--text-embeddings", "text.mp4"],
    "embeddings' rank": ["--out", "clip.mp4", "--text-embeddings", "flat.npy"],
    "both texts": ["--out", "clip.mp4", "--prompt", "a", "--text-embeddings", "flat.npy"],
    "provider": ["--out", "clip.mp4", "--provider", "NoSuchExecutionProvider"],
    "threads": ["--out", "clip.mp4", "--threads", "-2"],
}


@pytest.mark.parametrize("arguments", BAD_ARGUMENTS.values(), ids=BAD_ARGUMENTS.keys())
def test_a_bad_argument_is_one_line_and_exit_code_2(exported, tmp_path, capsys, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.mp4").write_text("not a video")
    (tmp_path / "folder.mp4").mkdir()
    write_mp4(tmp_path / "two.mp4", np.zeros((3, 2, 20, 20), np.float32), 24)
    np.save(tmp_path / "flat.npy", np.zeros(24, np.float32))
    assert runtime.main([str(exported.path), *arguments]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line]
    assert line.startswith("error: ")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["flat.npy", "folder.mp4", "text.mp4", "two.mp4"]


def test_an_engine_that_fails_is_exit_code_1_and_leaves_no_clip(exported, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(Bundle, "denoise", lambda self, x, **rest: np.full_like(x, np.nan))
    assert runtime.main([str(exported.path), "--out", str(tmp_path / "clip.mp4")]) == 1
    assert "not finite" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_option_is_exit_code_2(capsys):
    with pytest.raises(SystemExit) as exit_:
        runtime.main(["bundle", "--out", "clip.mp4", "--magic"])
    assert exit_.value.code == 2 and "--magic" in capsys.readouterr().err


def test_the_runtime_loads_neither_pytorch_nor_the_reference_and_costs_little_beside_its_engine():
    program = (
        "import time, numpy, onnxruntime, sys; start = time.process_time(); import cosmos_export.runtime;"
        "print(time.process_time() - start, *sorted(m for m in sys.modules if '.' not in m))"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    seconds, *modules = run.stdout.split()
    assert not {"torch", "cosmos_ref", "jaxtyping", "einops", "onnx", "av"} & set(modules)
    assert float(seconds) < 0.3


def test_an_exported_preset_samples_as_the_preset_says(exported):
    assert exported.bundle.config["sample"]["num_steps"] == preset("micro").sample.num_steps
    counted = []
    sample(exported.bundle, progress=lambda steps: counted.extend(steps) or steps)
    assert len(counted) == preset("micro").sample.num_steps


@pytest.mark.slow
def test_a_text2world_model_is_exported_without_the_inputs_for_given_frames(exported, tmp_path):
    model = dataclasses.replace(exported.config.model, video2world=False, depth=1)
    config = dataclasses.replace(exported.config, model=model)
    denoiser, _ = new_model(config, torch.Generator().manual_seed(1))
    bundle = Bundle.load(export_bundle(config, denoiser.eval(), exported.tokenizer, tmp_path / "bundle"))
    ports = [port["name"] for port in bundle.manifest["graphs"]["denoiser"]["inputs"]]
    assert ports == ["x", "sigma", "text_embeddings", "fps", "padding_mask"]
    encoder = WordsEncoder(config.text.length, config.text.width)
    noise = pipeline.noise_from_seed(4, 0, (16, 3, 4, 4))[None]
    condition = text_condition(encoder.encode(PROMPTS[:1]), noise, torch.full((1,), config.clip.fps))
    settings = SampleConfig(solver="res_2ab", num_steps=4)
    sigmas = pipeline.schedule(config.diffusion, settings)
    denoise = pipeline.guided(denoiser, noise, sigmas, condition, encoder.encode([None]), 1.5)
    expected = pipeline.sample(denoise, noise, sigmas, settings)
    made = sample(bundle, PROMPTS[:1], seed=4, num_steps=4, guidance=1.5, solver="res_2ab")
    assert compare("latents", expected.numpy(), made.x0, SAMPLING_LIMIT).ok
    with pytest.raises(BundleError, match="takes no frames"):
        sample(bundle, given_video=np.zeros((1, 3, 1, 16, 16), np.float32))
