"""The folder says what it holds, truly; what cannot be exported is refused and leaves nothing behind."""

import copy
import hashlib
import json
import shutil

import numpy as np
import onnx
import pytest
import torch
from cosmos_export.card import parity_rows, profiles
from cosmos_export.compare import CALL_LIMIT, compare
from cosmos_export.ports import denoiser_graph, tokenizer_graphs
from cosmos_export.to_onnx import export_bundle
from cosmos_export.tracing import ExportError

from cosmos_ref.config import preset
from cosmos_ref.equations.noise import karras_sigmas
from cosmos_ref.errors import UserError
from tests.tokenizer.small import SMALL, drawn_tokenizer


def test_what_varies_is_declared_by_name_and_nothing_of_this_machine_is_in_the_files(exported):
    manifest = exported.bundle.manifest
    for name, entry in manifest["graphs"].items():
        for variant in entry["variants"].values():
            raw = (exported.path / variant["file"]).read_bytes()
            assert b"site-packages" not in raw and b".py" not in raw, name
            graph = onnx.load(exported.path / variant["file"], load_external_data=False).graph
            for value, port in zip([*graph.input, *graph.output], [*entry["inputs"], *entry["outputs"]], strict=True):
                assert value.name == port["name"]
                assert onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type) == port["dtype"]
                dims = [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
                assert dims == list(port["dims"])
    x = manifest["graphs"]["denoiser"]["inputs"][0]
    assert x["dims"] == ["batch", 16, "frames", "height", "width"]


def test_the_manifest_holds_a_parity_within_the_limit_for_every_variant(exported):
    manifest = exported.bundle.manifest
    for name, entry in manifest["graphs"].items():
        assert manifest["default"][name] in entry["variants"]
        for variant in entry["variants"].values():
            assert variant["verified"] and variant["parity"]
    assert all(row["relative"] <= CALL_LIMIT for row in parity_rows(manifest))
    assert manifest["sigma_data"] == manifest["config"]["diffusion"]["sigma_data"] == 0.5


def test_the_schedule_in_the_manifest_is_the_equations(exported):
    schedule, diffusion = exported.bundle.manifest["schedule"], exported.config.diffusion
    expected = karras_sigmas(exported.config.sample.num_steps, diffusion.sigma_min, diffusion.sigma_max, diffusion.rho)
    # torch counts its ramp from both ends, numpy from one: a few units in the last place, raised to the 7th power
    np.testing.assert_allclose(schedule["sigmas"], expected.numpy(), rtol=1e-13)


def test_every_profile_lies_within_the_sizes_that_the_graphs_take_and_holds_their_usual_size(exported):
    manifest = exported.bundle.manifest
    assert list(manifest["profiles"]) == ["preview", "native"]  # 480p and 720p are beyond the tables of this model
    for limits in manifest["profiles"].values():
        for name, size in manifest["dims"].items():
            low, usual, high = (limits[which][name] for which in ("min", "opt", "max"))
            assert size["min"] <= low <= usual <= high <= (size["max"] or high)
            assert all((value - size["plus"]) % size["multiple_of"] == 0 for value in (low, usual, high))


@pytest.mark.parametrize("name, latents", [("480p", (16, 54, 96)), ("720p", (16, 88, 160)), ("native", (16, 88, 160))])
def test_a_released_model_has_profiles_of_fixed_size(name, latents):
    config = preset("7b-video2world")
    made = profiles(config, [denoiser_graph(config), *tokenizer_graphs(config)])[name]
    assert [made[which].pop("video_frames") for which in ("min", "opt", "max")] == [1, 9, 121]  # given ones, or the clip
    assert made["min"] == made["opt"] == made["max"]
    assert tuple(made["opt"][side] for side in ("frames", "height", "width")) == latents
    assert (made["opt"]["batch"], made["opt"]["text_length"]) == (2, 512)


def test_the_commands_name_every_input_with_the_sizes_of_the_profile(exported):
    manifest = exported.bundle.manifest
    line = manifest["commands"]["denoiser"]["fp32"]["native"]["trtexec"]
    assert "--onnx=denoiser.onnx " in line
    assert "--maxShapes=x:2x16x3x4x4,sigma:2,text_embeddings:2x24x16,fps:2,padding_mask:2x1x4x4," in line
    line = manifest["commands"]["tokenizer_decoder"]["fp32"]["preview"]["polygraphy"]
    assert "--trt-min-shapes latents:[1,16,1,2,2] --trt-opt-shapes latents:[1,16,3,4,4] " in line


def test_the_examples_in_the_bundle_are_what_pytorch_gives_and_the_graphs_repeat_them(exported):
    inputs, expected = (np.load(exported.path / f"{name}.npz") for name in ("sample_inputs", "expected"))
    run = {"denoiser": exported.bundle.denoise, "tokenizer_encoder": exported.bundle.encode}
    run["tokenizer_decoder"] = exported.bundle.decode
    for name, entry in exported.bundle.manifest["graphs"].items():
        feeds = {port["name"]: inputs[f"{name}/{port['name']}"] for port in entry["inputs"]}
        answer = expected[f"{name}/{entry['outputs'][0]['name']}"]
        assert compare(name, answer, run[name](**feeds), CALL_LIMIT).ok


def test_the_card_names_every_port_and_every_variant(exported):
    card = (exported.path / "MODEL_CARD.md").read_text()
    for name, entry in exported.bundle.manifest["graphs"].items():
        assert all(f"| {name} | in | {port['name']} |" in card for port in entry["inputs"])
        assert all(f"| {name} | {variant} |" in card for variant in entry["variants"])


def test_the_manifest_knows_every_file(exported):
    files = json.loads((exported.path / "manifest.json").read_text())["files"]
    assert set(files) == {path.name for path in exported.path.iterdir()} - {"manifest.json"}
    assert files["MODEL_CARD.md"] == hashlib.sha256((exported.path / "MODEL_CARD.md").read_bytes()).hexdigest()


def test_a_graph_that_differs_from_the_model_is_refused_and_nothing_is_left(exported, tmp_path, monkeypatch):
    def write_those_of_another_model(config, denoiser, tokenizer, folder):
        for file in exported.path.iterdir():
            shutil.copy(file, folder)
        return {}

    monkeypatch.setattr("cosmos_export.to_onnx._write_graphs", write_those_of_another_model)
    denoiser = type(exported.denoiser)(exported.denoiser.network, exported.denoiser.sigma_data * 1.001)
    with pytest.raises(ExportError, match="differs from the model: denoiser"):
        export_bundle(exported.config, denoiser, exported.tokenizer, tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


def test_a_variant_that_does_not_exist_is_refused_before_work_starts(exported, tmp_path):
    with pytest.raises(UserError, match=r"'fp64'; there are: fp32"):
        export_bundle(exported.config, exported.denoiser, exported.tokenizer, tmp_path / "b", variants=["fp64"])
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_no_bundle_is_left_alone(exported, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="not a bundle"):
        export_bundle(exported.config, exported.denoiser, exported.tokenizer, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.txt"]


def test_only_float32_is_exported(exported, tmp_path):
    half = copy.deepcopy(exported.denoiser).to(torch.bfloat16)
    with pytest.raises(UserError, match="bfloat16"):
        export_bundle(exported.config, half, exported.tokenizer, tmp_path / "bundle")


def test_a_convolutional_tokenizer_is_refused(exported, tmp_path):
    with pytest.raises(UserError, match="cannot be exported yet"):
        export_bundle(exported.config, exported.denoiser, drawn_tokenizer(SMALL["CV8x8x8"]), tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


@pytest.mark.slow
def test_two_exports_are_the_same_bytes(exported, tmp_path):
    again = export_bundle(exported.config, exported.denoiser, exported.tokenizer, tmp_path / "bundle")
    for file in exported.path.iterdir():
        assert file.read_bytes() == (again / file.name).read_bytes(), file.name
