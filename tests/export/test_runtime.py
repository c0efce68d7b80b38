"""Sampling without PyTorch is the pipelines' sampling, convention by convention; every stage is timed."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
import torch
from cosmos_export import runtime, solvers
from cosmos_export.bundle import Bundle, choose_variant, fixed_sizes
from cosmos_export.compare import CALL_LIMIT, SAMPLING_LIMIT, compare, compare_sampling, torch_call
from cosmos_export.errors import BundleError
from cosmos_export.sampling import give_frames, guided, sample
from cosmos_export.text import look_up, read_embedding, read_table, words_embedding
from cosmos_export.to_onnx import export_bundle
from cosmos_export.video import frame_rate, read_last_frames, write_mp4
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from cosmos_ref.conditioning import condition
from cosmos_ref.conditioning.text import WordsEncoder, build_text_encoder
from cosmos_ref.conditioning.text_table import TextTable, write_text_table
from cosmos_ref.config import preset
from cosmos_ref.errors import UserError
from cosmos_ref.model.initialization import new_model
from cosmos_ref.pipelines.text2world import text2world
from cosmos_ref.pipelines.video2world import video2world
from cosmos_ref.pipelines.world_model import in_memory

PROMPTS = ["a red marble falls", "two blue marbles", None, "four", "five green marbles"]


ARGUMENTS = {"solver", "num_steps", "guidance", "augment_sigma", "seed"}
"""What a request may say; the other conventions are the preset's."""


def with_settings(bundle, settings):
    """A bundle of a preset that is sampled otherwise."""
    config = bundle.config | {"sample": bundle.config["sample"] | settings}
    return dataclasses.replace(bundle, manifest=bundle.manifest | {"config": config})


def both(exported, prompts, given_video=None, frames=5, height=16, width=16, fps=24.0, **settings):
    """The same request to the pipelines in PyTorch and to the bundle."""
    config = dataclasses.replace(exported.config, sample=dataclasses.replace(exported.config.sample, **settings))
    model = in_memory(config, exported.denoiser, exported.tokenizer, build_text_encoder(config.text))
    clip = dataclasses.replace(config.clip, frames=frames, height=height, width=width, fps=fps)
    if given_video is None:
        theirs = text2world(model, prompts, clip, config.sample)
    else:
        theirs = video2world(model, torch.from_numpy(given_video), prompts, clip, config.sample)
    asked = {name: settings[name] for name in settings if name in ARGUMENTS}
    bundle = with_settings(exported.bundle, {name: settings[name] for name in settings if name not in ARGUMENTS})
    size = dict(frames=frames, height=height, width=width, fps=fps)
    return theirs, sample(bundle, prompts, given_video=given_video, **size, **asked)


BYTE = 1 / 255
"""Half a step between two shades of a file, of the largest value: no difference that could be seen."""


def assert_same(theirs, ours, limit=SAMPLING_LIMIT, video_limit=BYTE):
    latents = compare("latents", theirs.x0.numpy(), ours.x0, limit)
    video = compare("video", theirs.video.numpy(), ours.video, video_limit)
    assert latents.ok and video.ok, (latents, video)


def film(batch, frames, height=16, width=16, seed=1):
    return np.random.default_rng(seed).uniform(-1, 1, (batch, 3, frames, height, width)).astype(np.float32)


@given(st.lists(st.text(min_size=1, max_size=40) | st.none(), min_size=1, max_size=3))
def test_the_words_are_the_text_encoders_words(prompts):
    try:
        expected = WordsEncoder(6, 8).encode(prompts).numpy()
    except UserError:
        with pytest.raises(BundleError):
            words_embedding(prompts, 6, 8)
        return
    assert (words_embedding(prompts, 6, 8) == expected).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_a_file_of_embeddings_says_what_it_says_to_pytorch(exported, tmp_path, dtype):
    text = exported.config.text
    rows = torch.randn(7, text.width, generator=torch.Generator().manual_seed(0)).to(dtype)
    save_file({"a": rows, "b": rows[None, :3].clone()}, tmp_path / "t.safetensors", {"format": "pt"})
    expected = TextTable(tmp_path / "t.safetensors", text).encode(["b", None, "a"]).numpy()
    table = read_table(tmp_path / "t.safetensors")
    ours = look_up(tmp_path / "t.safetensors", table, ["b", None, "a"], text.length, text.width)
    assert ours.dtype == np.float32 and (ours == expected).all()
    np.save(tmp_path / "a.npy", rows.double().numpy())
    assert (read_embedding(tmp_path / "a.npy", text.length, text.width) == expected[2:]).all()


@pytest.mark.parametrize("solver", ["euler", "heun", "res_2ab"])
@pytest.mark.parametrize("guidance", [0.0, 1.5])
@pytest.mark.parametrize("given_frames", [0, 1, 3])
def test_a_whole_sampling_ends_where_pytorch_ends(exported, solver, guidance, given_frames):
    video = film(2, given_frames) if given_frames else None
    # an augmentation that is passed on the way down, so that both sides of the switch are compared
    same = dict(solver=solver, guidance=guidance, num_steps=6, augment_sigma=0.1, seed=5)
    assert_same(*both(exported, PROMPTS[:2], video, **same))


@pytest.mark.parametrize("batch, frames, given_frames, height, width", [
    (1, 1, 0, 8, 24),  # one frame out
    (1, 5, 1, 16, 16),  # one frame in
    (2, 9, 5, 24, 8),  # more given latents than in training
    (5, 3, 1, 8, 8),
])  # fmt: skip
def test_clips_of_other_sizes_end_where_pytorch_ends(exported, batch, frames, given_frames, height, width):
    video = film(batch, given_frames, height, width) if given_frames else None
    assert_same(*both(exported, PROMPTS[:batch], video, frames, height, width, fps=30.0, seed=2**64 - 1))


@settings(max_examples=15)
@given(
    batch=st.sampled_from([1, 2, 5]),
    frames=st.sampled_from([1, 3, 7, 11]),
    given_frames=st.sampled_from([0, 1, 3]),
    height=st.sampled_from([8, 24, 40]),
    width=st.sampled_from([8, 16, 32]),
    fps=st.floats(6, 60),
    solver=st.sampled_from(["euler", "heun", "res_2ab"]),
    num_steps=st.integers(2, 5),
    guidance=st.sampled_from([0.0, 1.0, 7.0]),
    augment_sigma=st.floats(0.001, 2),
    seed=st.integers(0, 2**64 - 1),
)
def test_any_request_ends_where_pytorch_ends(exported, batch, frames, given_frames, height, width, fps, **same):
    video = film(batch, given_frames, height, width) if 0 < given_frames < frames else None
    assert_same(*both(exported, PROMPTS[:batch], video, frames, height, width, fps, **same))


CONVENTIONS = [
    dict(last_sigma="sigma_min"),
    dict(initial_noise="total"),
    dict(given_noise="fresh"),
    dict(given_noise="fresh", solver="heun", guidance=0.0),
    dict(last_sigma="sigma_min", given_noise="fresh", solver="euler"),
]


@pytest.mark.parametrize("conventions", CONVENTIONS, ids=str)
def test_a_convention_of_the_preset_is_kept(exported, conventions):
    same = dict(num_steps=4, augment_sigma=0.1) | conventions
    theirs, ours = both(exported, PROMPTS[:2], film(2, 1), **same)
    assert_same(theirs, ours)
    plain = sample(exported.bundle, PROMPTS[:2], given_video=film(2, 1), num_steps=4, augment_sigma=0.1)
    # "total" adds 1 to 80 in the root of squares, 8e-5 of it: still more than rounding
    assert not compare("convention", ours.x0, plain.x0, CALL_LIMIT).ok


def test_a_sample_rounded_to_bfloat16_is_rounded_after_every_step(exported):
    theirs, ours = both(exported, PROMPTS[:2], film(2, 1), num_steps=4, state="bf16")
    assert (ours.x0 == solvers.bf16(ours.x0)).all()
    # where the calls differ by rounding, a sample may fall to the next bfloat16: a step of 2**-8, and what it leads to
    assert_same(theirs, ours, limit=2**-7, video_limit=8 * BYTE)


@pytest.mark.parametrize("name, value", [
    ("last_sigma", "nothing"), ("initial_noise", "none"), ("given_noise", "stale"), ("state", "fp8"), ("solver", "dpm"),
])  # fmt: skip
def test_a_convention_that_is_not_known_is_refused_by_name(exported, name, value):
    bundle = with_settings(exported.bundle, {name: value})
    with pytest.raises(BundleError, match=f"{name} '{value}'"):
        sample(bundle, given_video=film(1, 1))


def test_compare_sampling_leads_both_engines_from_the_same_noise(exported):
    noise = solvers.noise_from_seed(0, 0, (1, 16, 3, 4, 4))
    condition = give_frames(np.zeros_like(noise), 0, 0, noise) | {
        "text_embeddings": np.zeros((1, 24, 16), np.float32),
        "fps": np.full(1, 24, np.float32),
        "padding_mask": np.zeros((1, 1, 4, 4), np.float32),
    }
    call = torch_call(exported.denoiser)
    engines = [lambda **inputs: call(inputs), exported.bundle.denoise]
    denoisers = [guided(engine, condition, condition["text_embeddings"], 0) for engine in engines]
    sigmas = solvers.karras_sigmas(5, 0.002, 80, 7).tolist()
    row = compare_sampling(*denoisers, noise, sigmas, "heun")
    assert row.ok and row.max_abs > 0  # two engines, not one twice
    assert not compare_sampling(denoisers[0], lambda x, s: 1.01 * denoisers[1](x, s), noise, sigmas, "heun").ok


def test_a_clip_depends_on_its_seed_and_place_not_on_its_neighbours(exported):
    together = sample(exported.bundle, PROMPTS[:2], seed=2).x0
    alone = sample(exported.bundle, PROMPTS[:1], seed=2).x0
    assert compare("first", together[:1], alone, SAMPLING_LIMIT).ok
    assert not compare("seed", alone, sample(exported.bundle, PROMPTS[:1], seed=3).x0, SAMPLING_LIMIT).ok


FORMS = {
    "cpu": ["onnxruntime"],
    "fp32": ["onnxruntime", "tensorrt"],
    "bf16": ["tensorrt"],
    "int8": ["tensorrt"],
}


@pytest.mark.parametrize("wanted, backend, on_cpu, taken", [
    (None, "onnxruntime", True, "cpu"),  # the bundle's default
    (None, "onnxruntime", False, "fp32"),  # which is not for a GPU
    (None, "tensorrt", False, "fp32"),
    ("fp32", "onnxruntime", True, "fp32"),
    ("bf16", "tensorrt", False, "bf16"),
    ("bf16", "onnxruntime", False, "runs on tensorrt, not on onnxruntime; these do: cpu, fp32"),
    ("cpu", "tensorrt", False, "runs on onnxruntime, not on tensorrt; these do: fp32, bf16, int8"),
    ("fp64", "onnxruntime", True, "no variant 'fp64'; it has: cpu, fp32, bf16, int8"),
])  # fmt: skip
def test_a_variant_is_the_one_asked_for_or_the_first_that_runs_here(wanted, backend, on_cpu, taken):
    forms = {name: {"engines": runs_on} for name, runs_on in FORMS.items()}
    manifest = {"default": {"denoiser": "cpu"}, "graphs": {"denoiser": {"variants": forms}}}
    if taken in FORMS:
        assert choose_variant(manifest, "denoiser", wanted, backend, on_cpu) == taken
    else:
        with pytest.raises(BundleError, match=taken):
            choose_variant(manifest, "denoiser", wanted, backend, on_cpu)


def test_a_tokenizer_without_the_variant_of_the_denoiser_is_taken_in_its_own():
    halves = {"denoiser": ["fp32", "int8"], "tokenizer_decoder": ["fp32", "fp16"]}
    both_run = {"engines": ["tensorrt"]}
    manifest = {
        "default": dict.fromkeys(halves, "fp32"),
        "graphs": {name: {"variants": dict.fromkeys(forms, both_run)} for name, forms in halves.items()},
    }
    assert [choose_variant(manifest, name, "int8", "tensorrt", False) for name in halves] == ["int8", "fp32"]


def test_a_profile_of_one_size_samples_the_same_and_takes_no_other(exported):
    bundle = Bundle.load(exported.path, threads=1, profile="native")
    assert fixed_sizes(bundle.manifest, "native") == dict(batch=2, frames=3, height=4, width=4, text_length=24)
    assert fixed_sizes(bundle.manifest, "preview") == {}
    ours, free = (sample(b, PROMPTS[:1], seed=2, guidance=1.5).x0 for b in (bundle, exported.bundle))
    assert compare("native", free, ours, SAMPLING_LIMIT).ok
    with pytest.raises(BundleError, match=r"is 4; accepted: 2 in the profile 'native'; these .* the profile 'preview'"):
        sample(bundle, PROMPTS[:2], guidance=1.5)
    with pytest.raises(BundleError, match=r"is 10; accepted: 2 in the profile 'native'; no profile fits"):
        sample(bundle, PROMPTS, guidance=1.5)


def test_every_stage_is_timed_and_every_step(exported):
    seconds = sample(exported.bundle, given_video=film(1, 1), num_steps=3).seconds
    assert len(seconds.steps) == 3
    assert min(seconds.text, seconds.encode, seconds.decode, *seconds.steps) > 0
    line = runtime.timings(1.0, dataclasses.replace(seconds, steps=[0.5, 0.25, 0.35]), 2.0)
    assert line.startswith("load 1.00 s, ") and line.endswith("write 2.00 s")
    assert "3 steps 1.10 s (first 0.500 s, 0.300 s each after the first)" in line


def test_the_command_line_writes_a_clip_from_a_prompt_and_one_from_frames(exported, tmp_path, capsys):
    first, second = tmp_path / "first.mp4", tmp_path / "second.mp4"
    assert runtime.main([str(exported.path), "--prompt", "a red marble", "--num-frames", "9", "--out", str(first)]) == 0
    told = capsys.readouterr()
    assert "step 1/4, " in told.err and "step 4/4, 0 s left" in told.err
    assert "9 frames of 16x16 at 24 fps; cpu denoiser, fp32 tokenizer, ONNX Runtime" in told.out
    assert all(stage in told.out for stage in ("load ", "text ", "encode ", "4 steps ", "decode ", "write "))
    assert read_last_frames(first, 9).shape == (3, 9, 16, 16)
    more = ["--frames", str(first), "--given", "3", "--height", "8", "--width", "24", "--resize", "--warm-up"]
    assert runtime.main([str(exported.path), *more, "--out", str(second)]) == 0
    assert read_last_frames(second, 5).shape == (3, 5, 8, 24)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["first.mp4", "second.mp4"]


def test_the_command_line_makes_the_clip_that_python_makes(exported, tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(runtime, "write_mp4", lambda path, video, fps: written.append((video, fps)))
    table = tmp_path / "prompts.safetensors"
    text = exported.config.text
    write_text_table(table, WordsEncoder(text.length, text.width), ["a red marble", "blur"])
    rest = ["--seed", "7", "--num-steps", "3", "--guidance", "2", "--out", str(tmp_path / "a.mp4")]
    prompts = ["--prompt", "a red marble", "--negative-prompt", "blur"]
    assert runtime.main([str(exported.path), *prompts, *rest]) == 0
    assert runtime.main([str(exported.path), *prompts, "--text-embeddings", str(table), *rest]) == 0
    made = sample(exported.bundle, ["a red marble"], negative_prompt="blur", seed=7, num_steps=3, guidance=2)
    (words, fps), (looked_up, _) = written
    assert fps == 24 and compare("words", made.video[0], words, SAMPLING_LIMIT).ok
    assert (words == looked_up).all()


def test_warming_up_runs_every_graph_at_the_sizes_that_follow(exported, tmp_path, monkeypatch):
    asked = []
    run = Bundle._run

    def seen(self, graph, engine, inputs):
        asked.append((graph, next(iter(inputs.values())).shape))
        return run(self, graph, engine, inputs)

    monkeypatch.setattr(Bundle, "_run", seen)
    write_mp4(tmp_path / "given.mp4", film(1, 1)[0], 24)
    request = [
        "--frames",
        str(tmp_path / "given.mp4"),
        "--warm-up",
        "--num-steps",
        "2",
        "--out",
        str(tmp_path / "a.mp4"),
    ]
    assert runtime.main([str(exported.path), *request]) == 0
    assert len(asked) > 3 and {graph for graph, _ in asked[:3]} == {graph for graph, _ in asked[3:]}
    assert set(asked[:3]) == set(asked[3:])


def test_given_frames_lend_their_number_and_rate_as_in_the_pytorch_command(exported, tmp_path, monkeypatch):
    path, out, given_frames = tmp_path / "given.mp4", tmp_path / "out.mp4", []

    def seen(bundle, prompts, given_video, **rest):
        given_frames.append(given_video.shape[2])
        return sample(bundle, prompts, given_video=given_video, **rest)

    monkeypatch.setattr(runtime, "sample", seen)
    for frames in (5, 2):  # the model was trained for three; of fewer, the last one
        write_mp4(path, film(1, frames)[0], fps=30)
        assert runtime.main([str(exported.path), "--frames", str(path), "--out", str(out)]) == 0
        assert frame_rate(out) == 30
    assert given_frames == [3, 1]


def test_the_runtime_loads_neither_pytorch_nor_the_reference_and_costs_little_beside_its_engine():
    program = (
        "import time, numpy, onnxruntime, sys; start = time.process_time(); import cosmos_export.runtime;"
        "print(time.process_time() - start, *sorted(m for m in sys.modules if '.' not in m))"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    seconds, *modules = run.stdout.split()
    heavy = {"torch", "cosmos_ref", "jaxtyping", "einops", "onnx", "av", "tensorrt", "tensorrt_rtx", "safetensors"}
    assert not heavy & set(modules)
    assert float(seconds) < 0.3


def test_the_engine_library_is_loaded_with_the_first_graph_and_not_before():
    program = "import sys, cosmos_export.runtime; print('onnxruntime' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout == "False\n"  # TensorRT's engines run without it


def test_what_a_request_leaves_out_is_as_the_preset_says(exported):
    assert exported.bundle.config["sample"] == dataclasses.asdict(preset("micro").sample)
    other = dict(solver="heun", num_steps=3, guidance=2.5, augment_sigma=0.3, seed=8)
    asked = sample(exported.bundle, given_video=film(1, 1), **other).x0
    left_out = sample(with_settings(exported.bundle, other), given_video=film(1, 1))
    assert (left_out.x0 == asked).all() and len(left_out.seconds.steps) == 3
    clip = exported.bundle.config["clip"]
    assert left_out.video.shape == (1, 3, clip["frames"], clip["height"], clip["width"])


@given(st.integers(0, 3), st.floats(0, 2), st.integers(0, 1000))
def test_the_denoiser_is_told_of_given_frames_as_in_the_pipelines(given_frames, augment_sigma, seed):
    x0, noise = np.random.default_rng(seed).standard_normal((2, 2, 4, 3, 2, 2), dtype=np.float32)
    counts, levels = torch.full((2,), given_frames), torch.full((2,), augment_sigma)
    theirs = condition.give_frames({}, torch.from_numpy(x0), counts, levels, torch.from_numpy(noise))
    ours = give_frames(x0, given_frames, augment_sigma, noise)
    assert ours.keys() == theirs.keys()
    assert all((ours[name] == theirs[name].numpy()).all() for name in ours)


@pytest.mark.slow
def test_a_text2world_model_is_exported_without_the_inputs_for_given_frames(exported, tmp_path):
    model = dataclasses.replace(exported.config.model, video2world=False, depth=1)
    config = dataclasses.replace(exported.config, model=model)
    denoiser, _ = new_model(config, torch.Generator().manual_seed(1))
    path = export_bundle(config, denoiser.eval(), exported.tokenizer, tmp_path / "bundle")
    other = dataclasses.replace(exported, config=config, denoiser=denoiser, path=path, bundle=Bundle.load(path))
    ports = [port["name"] for port in other.bundle.manifest["graphs"]["denoiser"]["inputs"]]
    assert ports == ["x", "sigma", "text_embeddings", "fps", "padding_mask"]
    assert_same(*both(other, PROMPTS[:1], seed=4, num_steps=4, guidance=1.5, solver="res_2ab"))
    with pytest.raises(BundleError, match="takes no frames"):
        sample(other.bundle, given_video=film(1, 1))
