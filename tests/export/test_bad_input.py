"""Bad bundles, arguments, files and machines: one line that names value and remedy, the right code, nothing written."""

import hashlib
import json
import os
import re
import shutil
import sys

import numpy as np
import onnxruntime as ort
import pytest
from cosmos_export import engines, manifest, runtime
from cosmos_export.bundle import Bundle
from cosmos_export.compare import call_inputs
from cosmos_export.errors import BundleError, EngineFailure
from cosmos_export.manifest import read_manifest
from cosmos_export.sampling import sample
from cosmos_export.video import write_mp4
from safetensors.numpy import save_file

from tests.export.test_engines import fake_package


@pytest.fixture
def place(exported, tmp_path, monkeypatch):
    """The folder that commands run in: with files that are not what they should be."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.mp4").write_text("not a video")
    (tmp_path / "cut.mp4").write_bytes(b"\0\0\0\x20ftypisom")
    (tmp_path / "folder.mp4").mkdir()
    write_mp4(tmp_path / "two.mp4", np.zeros((3, 2, 20, 20), np.float32), 24)
    np.save(tmp_path / "flat.npy", np.zeros(24, np.float32))
    np.save(tmp_path / "wide.npy", np.zeros((3, 17), np.float32))
    np.save(tmp_path / "long.npy", np.zeros((25, 16), np.float32))
    np.save(tmp_path / "nan.npy", np.full((3, 16), np.nan, np.float32))
    np.save(tmp_path / "whole.npy", np.zeros((3, 16), np.int64))
    np.save(tmp_path / "good.npy", np.ones((3, 16), np.float32))
    save_file({"a red marble": np.zeros((3, 16), np.float32)}, tmp_path / "table.safetensors")
    save_file({"a": np.zeros((3, 17), np.float32)}, tmp_path / "wide.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "table.safetensors").read_bytes()[:-8])
    (tmp_path / "prompts.txt").write_text("a red marble")
    return tmp_path


def refused(capsys, *arguments):
    """Exit code and message of a command that ends with one line and leaves the folder as it was."""
    before = sorted(os.listdir())
    code = runtime.main([str(argument) for argument in arguments])
    lines = [line for line in capsys.readouterr().err.splitlines() if line and not line.startswith("step ")]
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ") and "Traceback" not in lines[0]
    assert sorted(os.listdir()) == before
    return code, lines[0]


ARGUMENTS = {
    "suffix": ["--out clip.avi", "cannot write clip.avi: the suffix must be .mp4"],
    "no folder": ["--out nowhere/clip.mp4", "nowhere is not a writable folder"],
    "is a folder": ["--out folder.mp4", "folder.mp4: it is a folder; give a file name"],
    "no video there": ["--frames no.mp4", "no.mp4 cannot be read as a video: .*No such file"],
    "text as video": ["--frames text.mp4", "text.mp4 cannot be read as a video"],
    "truncated video": ["--frames cut.mp4", "cut.mp4 cannot be read as a video"],
    "short video": ["--frames two.mp4 --given 3", r"two.mp4 has 2 frame\(s\), 3 are needed: use a longer video"],
    "size of the video": ["--frames two.mp4", "height 20 does not fit: a multiple of 8, at most 128"],
    "another size": ["--frames two.mp4 --height 8", "the given frames are 20 x 20, not 8 x 20: add --resize"],
    "given frames": ["--frames two.mp4 --given 2", r"a clip of 2 frames does not fit: its length must be 1 \+ k \* 2"],
    "all given": ["--frames two.mp4 --given 1 --resize --num-frames 1", "1 given frames leave nothing to generate"],
    "given of nothing": ["--given 3", "--given counts the frames to use of --frames, and there are none"],
    "no frames": ["--num-frames 0", "--num-frames is 0; it must be above 0"],
    "frames": ["--num-frames 4", r"a clip of 4 frames does not fit: its length must be 1 \+ k \* 2"],
    "too long": ["--num-frames 99", "99 frames do not fit: this model takes at most 31"],
    "height": ["--height 12", "height 12 does not fit: a multiple of 8, at most 128"],
    "width": ["--width 4096", "width 4096 does not fit: a multiple of 8, at most 128"],
    "steps": ["--num-steps 1", "num_steps 1 is too few: a sampler takes at least 2"],
    "guidance": ["--guidance nan", "guidance nan is not a number to guide with: give 0 for none"],
    "much guidance": ["--guidance 1e9", r"guidance 1000000000.0 is not a number to guide with"],
    "seed": ["--seed -1", r"seed -1 is not accepted: give one from 0 to 2\*\*64 - 1"],
    "seed above": [f"--seed {2**64}", rf"seed {2**64} is not accepted: give one from 0"],
    "augment sigma": ["--augment-sigma 0", "augment_sigma 0 is not a noise level: give one above 0"],
    "rate": ["--fps 0", "fps 0 is not accepted: give frames a second above 0"],
    "rate without end": ["--fps inf", "fps inf is not accepted"],
    "blank prompt": ["--prompt .", r"the prompt '.' is empty: write what should be seen, or leave the prompt out"],
    "long prompt": ["--prompt " + "_a," * 25, "has 25 words; at most 24 are accepted"],
    "no array": ["--text-embeddings text.npy", "text.npy cannot be read as an array: .*No such file"],
    "flat array": ["--text-embeddings flat.npy", r"has the shape \(24,\); accepted: up to 24 rows of 16"],
    "wide array": ["--text-embeddings wide.npy", r"wide.npy: .* the shape \(3, 17\); accepted: up to 24 rows of 16"],
    "long array": ["--text-embeddings long.npy", r"the shape \(25, 16\); accepted: up to 24 rows of 16"],
    "no numbers": ["--text-embeddings nan.npy", "nan.npy: the embedding is not made of finite numbers"],
    "whole numbers": ["--text-embeddings whole.npy", r"not made of finite numbers \(it is int64\)"],
    "other suffix": ["--text-embeddings prompts.txt", "prompts.txt is neither a .npy nor a .safetensors file"],
    "both texts": ["--text-embeddings good.npy --prompt a", "--prompt and --text-embeddings exclude each other"],
    "cut table": ["--text-embeddings cut.safetensors --prompt a", "cut.safetensors is no whole safetensors file"],
    "not in the table": ["--text-embeddings table.safetensors --prompt b", "no embedding of 'b'; it has 1, .*'a red"],
    "wide table": ["--text-embeddings wide.safetensors --prompt a", r"wide.safetensors, 'a': .*\(3, 17\); accepted"],
    "provider": ["--provider gpu", "unknown provider 'gpu'; accepted: cpu, cuda, tensorrt"],
    "provider not there": ["--provider CoreMLExecutionProvider", "has no CoreMLExecutionProvider; it has: .*CPU"],
    "variant": ["--variant fp64", r"this bundle has no variant 'fp64'; it has: fp32.*`cosmos-ref export` makes"],
    "profile": ["--profile 4k", "has no profile '4k'; it has: preview, native"],
    "size of a profile": ["--profile native --height 24", r"height .* is 6; accepted: 4 in the .*'native'; .*'prev"],
    "batch of a profile": ["--profile native --guidance 0", r"batch .* is 1; accepted: 2 in the profile 'native'"],
    "threads": ["--threads -2", "--threads -2 is not accepted: give a number, 0 is one per core"],
}  # fmt: skip


@pytest.mark.parametrize("arguments, message", ARGUMENTS.values(), ids=ARGUMENTS.keys())
def test_a_request_that_cannot_be_met(exported, place, capsys, arguments, message):
    arguments = arguments.split() if "--out" in arguments else [*arguments.split(), "--out", "clip.mp4"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Bundle, "denoise", None)  # refused before the first call
        code, line = refused(capsys, exported.path, *arguments)
    assert code == 2
    assert re.search(message, line), line


@pytest.mark.parametrize("arguments, named", [
    (["--magic"], "--magic"), (["--solver", "dpm"], "dpm"), (["--engine", "tvm"], "tvm"), (["--seed", "x"], "--seed"),
])  # fmt: skip
def test_an_option_that_does_not_exist_is_exit_code_2(capsys, arguments, named):
    with pytest.raises(SystemExit) as exit_:
        runtime.main(["bundle", "--out", "clip.mp4", *arguments])
    assert exit_.value.code == 2 and named in capsys.readouterr().err


def truncate(folder):
    path = folder / "denoiser.safetensors"
    path.write_bytes(path.read_bytes()[:-4])


def flip(folder):
    path = folder / "tokenizer_decoder.onnx"
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


def edit(change):
    def tamper(folder):
        file = folder / "manifest.json"
        told = json.loads(file.read_text())
        change(told)
        file.write_text(json.dumps(told))

    return tamper


def drop(*keys):
    def change(told):
        for key in keys[:-1]:
            told = told[key]
        del told[keys[-1]]

    return edit(change)


def elsewhere(name):
    def change(told):
        told["graphs"]["denoiser"]["variants"]["fp32"]["weights"] = name
        told["files"][name] = hashlib.sha256(b"").hexdigest()

    return edit(change)


TAMPER = {
    "truncated": (truncate, "denoiser.safetensors is not the file that was exported: copy it again"),
    "altered": (flip, "tokenizer_decoder.onnx is not the file that was exported: copy it again"),
    "missing": (lambda f: (f / "denoiser.cpu.onnx").unlink(), "denoiser.cpu.onnx is missing: copy the whole folder"),
    "no folder": (shutil.rmtree, "is not a bundle: there is no such folder"),
    "no manifest": (lambda f: (f / "manifest.json").unlink(), "is not a bundle: it has no manifest.json"),
    "no JSON": (lambda f: (f / "manifest.json").write_text("{"), "manifest.json cannot be read .*: copy it again"),
    "no text": (lambda f: (f / "manifest.json").write_bytes(b"\xff\xfe"), "manifest.json cannot be read"),
    "no object": (lambda f: (f / "manifest.json").write_text("[1]"), "has format None; this runtime reads 2"),
    "of the past": (edit(lambda m: m.update(format=1)), "has format 1; this runtime reads 2: export it again"),
    "of the future": (edit(lambda m: m.update(format=99)), "format 99; this runtime reads 2: update cosmos-export"),
    "no graph": (drop("graphs", "tokenizer_encoder"), "graphs has no 'tokenizer_encoder': export it again"),
    "no solver": (drop("config", "sample", "solver"), "config: sample has no 'solver': export it again"),
    "no number": (edit(lambda m: m.update(temporal_factor="2")), "temporal_factor is '2', which .* not understand"),
    "no hash": (drop("files", "denoiser.cpu.onnx"), "manifest.json has no hash of denoiser.cpu.onnx: export it again"),
    "other hash": (edit(lambda m: m["files"].update({"denoiser.cpu.onnx": "0" * 64})), "denoiser.cpu.onnx is not the"),
    "folder above": (elsewhere("../secret"), r"names the file '../secret': a bundle's files lie in its folder"),
    "root": (elsewhere("/etc/passwd"), r"names the file '/etc/passwd'"),
    "backslash": (elsewhere("..\\secret"), r"names the file '\.\..*secret'"),
    "two dots": (elsewhere(".."), r"names the file '\.\.'"),
}


@pytest.mark.parametrize("tamper, message", TAMPER.values(), ids=TAMPER.keys())
def test_a_bundle_that_is_not_as_it_was_exported(exported, tmp_path, monkeypatch, capsys, tamper, message):
    monkeypatch.chdir(tmp_path)
    folder = shutil.copytree(exported.path, tmp_path / "bundle")
    tamper(folder)
    code, line = refused(capsys, "bundle", "--out", "clip.mp4")
    assert code == 2
    assert re.search(message, line), line


def test_only_what_is_to_run_is_checked_and_all_of_it_on_demand(exported, tmp_path):
    """A card that somebody has corrected, or the weights of another precision left at home, stop nobody."""
    folder = shutil.copytree(exported.path, tmp_path / "bundle")
    (folder / "MODEL_CARD.md").unlink()
    Bundle.load(folder, threads=1)
    with pytest.raises(BundleError, match=r"MODEL_CARD.md is missing"):
        read_manifest(folder)


def test_checking_much_is_told_and_done_once(exported, monkeypatch):
    told, read = [], []
    monkeypatch.setattr(manifest, "LARGE", 1)
    sha256 = hashlib.sha256
    monkeypatch.setattr(hashlib, "sha256", lambda: read.append(1) or sha256())
    Bundle.load(exported.path, threads=1, say=told.append)
    assert told[-1].endswith(", 100%") and told[0].startswith("checking denoiser.cpu.onnx, ")
    assert len(read) == 4  # three graphs and the weights of one


def test_a_provider_that_does_not_load(exported, place, capsys):
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        pytest.skip("this ONNX Runtime was built without CUDA")
    try:
        engines.open_engine(exported.path / "denoiser.onnx", engines.providers_of("cuda"))
    except BundleError:
        code, line = refused(capsys, exported.path, "--provider", "cuda", "--out", "clip.mp4")
        assert code == 2 and "CUDAExecutionProvider cannot be loaded" in line and "or --fallback" in line
        arguments = ["--provider", "cuda", "--fallback", "--num-steps", "2", "--out", "clip.mp4"]
        assert runtime.main([str(exported.path), *arguments]) == 0
        assert "CPUExecutionProvider" in capsys.readouterr().out
    else:
        pytest.skip("this machine has a GPU")


def test_two_onnx_runtimes_at_once(exported, place, capsys, monkeypatch):
    fake_package(place / "packages", "onnxruntime")
    fake_package(place / "packages", "onnxruntime-gpu")
    monkeypatch.setattr(sys, "path", [str(place / "packages"), *sys.path])
    code, line = refused(capsys, exported.path, "--out", "clip.mp4")
    assert code == 2 and "pip uninstall onnxruntime onnxruntime-gpu, then install one of them" in line


def test_an_engine_of_tensorrt_that_was_not_built(exported, place, capsys):
    code, line = refused(capsys, exported.path, "--engine", "tensorrt", "--profile", "native", "--out", "clip.mp4")
    assert code == 2
    assert "cosmos-ref build-engine" in line and "--variant fp32" in line and "--profile native" in line


def test_a_text_encoder_that_is_not_in_the_bundle(exported, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = shutil.copytree(exported.path, tmp_path / "bundle")
    edit(lambda m: m["config"]["text"].update(encoder="t5"))(folder)
    code, line = refused(capsys, "bundle", "--prompt", "a", "--out", "clip.mp4")
    assert code == 2 and "'t5' is not in the bundle: write embeddings by `cosmos-ref encode-text`" in line


def test_a_call_with_a_wrong_type_or_size_from_python(exported):
    inputs = call_inputs(exported.config, batch=1, frames=1, height=4, width=4, text_length=3, sigma=1.0, seed=0)
    with pytest.raises(BundleError, match=r"denoiser: input 'x' is float64; accepted: an array of float32"):
        exported.bundle.denoise(**inputs | {"x": inputs["x"].astype(np.float64)})
    inputs = call_inputs(exported.config, batch=1, frames=17, height=4, width=4, text_length=3, sigma=1.0, seed=0)
    with pytest.raises(BundleError, match=r"denoiser: frames \(frames of latents\) is 17; accepted: 1 to 16$"):
        exported.bundle.denoise(**inputs)
    inputs = call_inputs(exported.config, batch=1, frames=1, height=3, width=4, text_length=3, sigma=1.0, seed=0)
    with pytest.raises(BundleError, match=r"height \(height of latents\) is 3; accepted: 2 to 32 in multiples of 2"):
        exported.bundle.denoise(**inputs)
    with pytest.raises(BundleError, match=r"tokenizer_encoder: video_frames .* is 2; accepted: 1 to 31, 1 \+ k \* 2"):
        exported.bundle.encode(np.zeros((1, 3, 2, 16, 16), np.float32))


REQUESTS = {
    "noise": (dict(noise=np.zeros((1, 16, 3, 4, 5), np.float32)), r"noise has shape .*; this request needs \(1, 16, 3"),
    "no prompts": (dict(prompts=[]), "there are no prompts: give at least one, None for the null text"),
    "text": (
        dict(text_embeddings=np.zeros((1, 24, 5), np.float32)),
        r"shape \(1, 24, 5\); accepted: batch, length, 16",
    ),
    "negative": (
        dict(text_embeddings=np.zeros((1, 9, 16), np.float32), negative_prompt="blur"),
        r"\(1, 9, 16\) do not go with negative ones of \(1, 24, 16\): give both alike",
    ),
    "given batch": (dict(given_video=np.zeros((2, 3, 1, 16, 16), np.float32)), "2 given videos for 1 prompts"),
    "solver": (dict(solver="magic"), "unknown solver 'magic'; accepted: euler, heun, res_2ab"),
}


@pytest.mark.parametrize("request_, message", REQUESTS.values(), ids=REQUESTS.keys())
def test_a_request_from_python_that_does_not_fit(exported, request_, message, monkeypatch):
    monkeypatch.setattr(Bundle, "denoise", None)  # refused before the first call
    with pytest.raises(BundleError, match=message):
        sample(exported.bundle, **request_)


def broken(value):
    return lambda self, x, **rest: np.full_like(x, value)


MADE = {
    "not a number": (
        "denoise",
        broken(np.nan),
        "what the denoiser made at sigma 80 is not finite: take another variant",
    ),
    "endless": ("denoise", broken(np.inf), "what the denoiser made at sigma 80 is not finite"),
    "constant": ("denoise", broken(0.25), "the latents made is constant, 0.25 everywhere: the model is not trained"),
    "grey": ("decode", lambda self, latents: np.full((1, 3, 5, 16, 16), 0.5, np.float32), "the clip made is constant"),
    "no picture": ("decode", lambda self, latents: np.full((1, 3, 5, 16, 16), np.nan), "the clip made is not finite"),
    "broken engine": ("denoise", lambda self, **rest: 1 / 0, "ZeroDivisionError: division by zero"),
    "memory": ("decode", lambda self, latents: np.zeros((1 << 40, 1 << 10)), "out of memory .*: lower --num-frames"),
}


@pytest.mark.parametrize("method, does, message", MADE.values(), ids=MADE.keys())
def test_what_is_made_and_worthless_is_exit_code_1_and_nothing_is_written(
    exported, place, capsys, monkeypatch, method, does, message
):
    monkeypatch.setattr(Bundle, method, does)
    code, line = refused(capsys, exported.path, "--out", "clip.mp4")
    assert code == 1
    assert re.search(message, line), line


def test_a_full_disk_or_a_broken_encoder_leaves_no_half_a_clip(exported, place, capsys, monkeypatch):
    def fail(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("cosmos_export.video.os.replace", fail)
    code, line = refused(capsys, exported.path, "--out", "clip.mp4")
    assert code == 1 and "No space left on device" in line


def test_ctrl_c_is_exit_code_130(exported, place, capsys, monkeypatch):
    def interrupt(self, **inputs):
        raise KeyboardInterrupt

    monkeypatch.setattr(Bundle, "denoise", interrupt)
    assert refused(capsys, exported.path, "--out", "clip.mp4") == (130, "error: interrupted")


def test_a_failure_says_what_to_lower_in_the_command_line_too(exported, place, capsys, monkeypatch):
    def run_out(self, **inputs):
        raise EngineFailure("denoiser ran out of memory: lower the number of frames")

    monkeypatch.setattr(Bundle, "denoise", run_out)
    code, line = refused(capsys, exported.path, "--out", "clip.mp4")
    assert code == 1 and line == "error: denoiser ran out of memory: lower the number of frames"
