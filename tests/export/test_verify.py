"""What is wrong is refused and named: a layer that was changed, a constant picture, what is not a number."""

import hashlib
import json
import shutil
import subprocess
import sys

import numpy as np
import onnx
import pytest
from cosmos_export import verify
from cosmos_export.calibration import calibration_inputs
from cosmos_export.compare import LIMITS, torch_call
from cosmos_export.onnx_graph import save
from cosmos_export.sides import LAYERS, Side, bundle_side, open_layers
from cosmos_export.verify import compare_layers, random_cases, ranges_of, verify_variant

from cosmos_ref.checkpoint import save_checkpoint
from cosmos_ref.cli import main

RANGES = {"batch": (1, 2, 1), "frames": (1, 3, 1), "height": (2, 6, 2), "width": (2, 4, 2), "text_length": (1, 7, 1)}


@pytest.fixture
def copy(exported, tmp_path):
    """A bundle to be changed."""
    return shutil.copytree(exported.path, tmp_path / "bundle")


def change(bundle, name, factor):
    """Multiply a weight in its file; the manifest's hash goes with it."""
    path = bundle / "denoiser.safetensors"
    graph = onnx.load(bundle / "denoiser.onnx", load_external_data=False).graph
    (tensor,) = (tensor for tensor in graph.initializer if tensor.name == name)
    where = {entry.key: entry.value for entry in tensor.external_data}
    raw, begin, length = bytearray(path.read_bytes()), int(where["offset"]), int(where["length"])
    values = np.frombuffer(raw[begin : begin + length], np.float32) * np.float32(factor)
    raw[begin : begin + length] = values.tobytes()
    path.write_bytes(raw)
    rehash(bundle, path.name)


def rehash(bundle, name):
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["files"][name] = hashlib.sha256((bundle / name).read_bytes()).hexdigest()
    (bundle / "manifest.json").write_text(json.dumps(manifest))


def measured(exported, candidate, variant="cpu"):
    """What a candidate is found to be against the float32 graph, over few steps."""
    config, bundle = exported.bundle.config, exported.bundle
    clips = calibration_inputs(exported.config, exported.tokenizer, clips=2, seed=2)
    return verify_variant(
        lambda inputs: bundle.denoise(**inputs),
        candidate,
        LIMITS[variant],
        config,
        cases=random_cases(exported.config, RANGES, 3, seed=0),
        condition={name: np.concatenate([clip[name] for clip in clips]) for name in clips[0]},
        decode=lambda x0: bundle.decode((x0 / config["diffusion"]["sigma_data"]).astype(np.float32)),
        steps=4,
    )


def test_pytorch_keeps_the_contract_of_float32_in_calls_and_in_a_sampling(exported):
    rows = measured(exported, torch_call(exported.denoiser), "fp32")
    assert len(rows) == 3 + 2 and all(row.ok for row in rows), rows
    assert rows[-1].what == "sampling, res_2ab, 4 steps" and rows[-1].psnr > 90
    assert "worst call of a sampling" in rows[-2].what


def test_a_small_bias_is_found_in_calls_and_adds_up_in_a_sampling(exported):
    rows = measured(exported, lambda inputs: exported.bundle.denoise(**inputs) * np.float32(1.0001), "fp32")
    assert not any(row.ok for row in rows[:4])
    assert rows[-1].relative > 2e-5


@pytest.mark.parametrize("value, fault", [(0.3, "constant"), (np.nan, "not finite"), (np.inf, "not finite")])
def test_a_worthless_output_is_refused_by_name_and_not_sampled_with(exported, value, fault):
    rows = measured(exported, lambda inputs: np.full_like(inputs["x"], value), "fp8")
    assert {row.fault for row in rows} == {fault} and not any(row.ok for row in rows)
    assert not any(row.what.startswith("sampling") for row in rows)


def test_the_cases_hold_the_least_and_the_most_and_all_noise_levels(exported):
    cases = list(random_cases(exported.config, RANGES, 6, seed=1).values())
    assert cases[0]["x"].shape == (1, 16, 1, 2, 2) and cases[0]["text_embeddings"].shape[1] == 1
    assert cases[1]["x"].shape == (2, 16, 3, 6, 4)
    assert all(case["x"].shape[3] % 2 == 0 for case in cases)
    levels = sorted(float(case["sigma"][0]) for case in cases)
    diffusion = exported.config.diffusion
    np.testing.assert_allclose([levels[0], levels[-1]], [diffusion.sigma_min, diffusion.sigma_max], rtol=1e-6)
    assert np.diff(np.log(levels)).std() < 1e-3  # even ratios; sigma is float32


def test_sizes_stay_in_the_profile_that_is_asked_for(exported):
    manifest = exported.bundle.manifest
    usual = calibration_inputs(exported.config, exported.tokenizer, clips=1)[0]
    free = ranges_of(manifest, usual, None)
    assert free["frames"][:2] == (1, 2 * usual["x"].shape[2]) and free["height"][2] == 2
    native = ranges_of(manifest, usual, "native")
    assert all(low == high for low, high, _ in native.values())


@pytest.mark.parametrize(
    "weight, layer",
    [
        ("network.blocks.0.self_attention.to_v.weight", "network.blocks.0.self_attention.to_out"),
        ("network.blocks.1.cross_attention.norm_q.weight", "network.blocks.1.cross_attention.to_out"),
        ("network.blocks.1.mlp.layer1.weight", "network.blocks.1.mlp.layer2"),
        ("network.patch_embedding.weight", "network.patch_embedding"),
    ],
)
def test_the_first_layer_that_drifts_is_the_one_whose_weight_was_changed(exported, copy, weight, layer):
    change(copy, weight, 1.01)
    inputs = calibration_inputs(exported.config, exported.tokenizer, clips=1)[0]
    reference = Side(
        "fp32", lambda i: exported.bundle.denoise(**i), open_layers(exported.path / "denoiser.onnx", "fp32")
    )
    changed = bundle_side(copy, exported.bundle.manifest, "fp32", threads=1)
    rows = compare_layers(reference, changed, LIMITS["fp32"], inputs)
    assert next((row.what for row in rows if not row.ok), None) == layer
    assert all(row.ok for row in compare_layers(reference, reference, LIMITS["fp32"], inputs))
    assert len(rows) == 2 + 3 * 2 and all(row.what.endswith(LAYERS) for row in rows)


@pytest.fixture
def checkpoint(exported, tmp_path):
    """The module that was exported, as a checkpoint."""
    parts = {"model": exported.denoiser.state_dict(), "tokenizer": exported.tokenizer.state_dict()}
    save_checkpoint(tmp_path / "weights", exported.config, parts, {})
    return tmp_path / "weights"


def command(*arguments):
    try:
        main(["verify", *map(str, arguments)])
    except SystemExit as exit_:
        return exit_.code or 0
    return 0


def test_the_command_holds_a_bundle_against_pytorch_and_writes_what_it_measured(exported, checkpoint, tmp_path, capsys):
    out = tmp_path / "measured.json"
    few = ("--steps", "3", "--threads", "1")
    assert command(exported.path, "--weights", checkpoint, "--variants", "fp32", "--layers", "--json", out, *few) == 0
    said = capsys.readouterr()
    assert "noise levels from 0.002 to 80" in said.out and "the contract holds" in said.out
    assert "no layer is beyond the limit" in said.out and "call 12/12" in said.err
    variant = json.loads(out.read_text())["variants"]["fp32"]
    assert variant["ok"] and variant["seconds"] > 0 and len(variant["rows"]) == 14 + 2 and len(variant["layers"]) == 8


def test_a_broken_contract_is_exit_code_1_and_names_the_layer(exported, checkpoint, copy, capsys):
    change(copy, "network.blocks.1.mlp.layer2.weight", 1.02)
    assert command(copy, "--weights", checkpoint, "--variants", "fp32", "--steps", "3", "--threads", "1") == 1
    said = capsys.readouterr().out
    assert "THE CONTRACT IS BROKEN" in said and "TOO FAR" in said
    assert "the first layer beyond the limit is network.blocks.1.mlp.layer2" in said


def test_without_pytorch_a_graph_that_gives_a_constant_picture_is_exit_code_1(exported, copy, capsys):
    proto = onnx.load(copy / "denoiser.onnx", load_external_data=False)
    (last,) = (node for node in proto.graph.node if "denoised" in node.output)
    last.output[0] = "before"
    nothing = onnx.helper.make_node("Sub", ["before", "before"], ["denoised"], "nothing")
    proto.graph.node.append(nothing)
    save(proto, copy / "denoiser.cpu.onnx")
    manifest = json.loads((copy / "manifest.json").read_text())
    form = manifest["graphs"]["denoiser"]["variants"]["fp32"]
    manifest["graphs"]["denoiser"]["variants"]["cpu"] = form | {"file": "denoiser.cpu.onnx"}
    (copy / "manifest.json").write_text(json.dumps(manifest))
    rehash(copy, "denoiser.cpu.onnx")
    assert verify.main([str(copy), "--variants", "cpu", "--threads", "1"]) == 1
    assert "constant" in capsys.readouterr().out


def test_a_bundle_is_verified_where_there_is_no_pytorch(exported):
    program = (
        "import sys; sys.modules['torch'] = None; from cosmos_export import verify;"
        f"sys.exit(verify.main([{str(exported.path)!r}, '--variants', 'fp32', '--steps', '2', '--threads', '1']))"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.returncode == 0 and "Against fp32" in run.stdout, run.stderr


BAD_REQUESTS = {
    "no bundle": (["nowhere"], "no such folder"),
    "variant": (["BUNDLE", "--variants", "int3"], "no variant 'int3'; it has: fp32"),
    "reference": (["BUNDLE", "--variants", "fp32", "--reference", "int3"], "no variant 'int3'"),
    "steps": (["BUNDLE", "--variants", "fp32", "--steps", "1"], "--steps 1 is too few"),
    "no engine": (["BUNDLE", "--variants", "fp32", "--backend", "tensorrt"], "build-engine"),
    "provider": (["BUNDLE", "--variants", "fp32", "--provider", "abacus"], "unknown provider 'abacus'"),
    "profile": (["BUNDLE", "--variants", "fp32", "--profile", "8k"], "no profile '8k'"),
    "json": (["BUNDLE", "--variants", "fp32", "--json", "nowhere/a.json"], "cannot write"),
}


@pytest.mark.parametrize("arguments, said", BAD_REQUESTS.values(), ids=BAD_REQUESTS.keys())
def test_a_request_that_cannot_be_met_is_one_line_and_exit_code_2(exported, capsys, arguments, said):
    arguments = [str(exported.path) if argument == "BUNDLE" else argument for argument in arguments]
    assert verify.main(arguments) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert said in line
    assert command(*arguments) == 2
    assert said in " ".join(capsys.readouterr().err.split())


def test_pytorch_is_compared_with_where_its_weights_are_given_and_only_there(exported, checkpoint, capsys):
    assert command(exported.path, "--reference", "torch") == 2
    assert "needs --weights" in " ".join(capsys.readouterr().err.split())
    assert command(exported.path, "--reference", "fp32", "--weights", checkpoint) == 2


def test_an_altered_file_is_refused_before_anything_is_measured(exported, copy, capsys):
    with (copy / "denoiser.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x7f")
    assert verify.main([str(copy)]) == 2
    assert "is not the file that was exported" in capsys.readouterr().err
