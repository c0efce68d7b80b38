"""The folder says what it holds, truly; what cannot be exported is refused and leaves nothing behind."""

import copy
import dataclasses
import hashlib
import json
import shutil

import numpy as np
import onnx
import pytest
import torch
from cosmos_export import to_onnx
from cosmos_export.card import Variant, parity_rows, profiles
from cosmos_export.compare import CALL_LIMIT, LIMITS, Parity, compare
from cosmos_export.parity import DenoiserParity
from cosmos_export.ports import denoiser_graph, tokenizer_graphs
from cosmos_export.sides import open_variant
from cosmos_export.to_onnx import export_bundle
from cosmos_export.tracing import ExportError
from safetensors.torch import load_file

from cosmos_ref.config import TOKENIZERS, preset
from cosmos_ref.equations.noise import karras_sigmas
from cosmos_ref.errors import UserError
from cosmos_ref.interop.sources import held
from cosmos_ref.model.initialization import build_denoiser
from cosmos_ref.tokenizer.discrete import DiscreteTokenizer
from tests.tokenizer.small import drawn_video


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
    rows = [Parity(**row) for row in parity_rows(manifest)]
    assert all(row.ok for row in rows) and sum("35 steps" in row.what for row in rows) == 7  # of every variant
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
    # the frames that a clip goes on from, or all of it
    assert [made[which].pop("video_frames") for which in ("min", "opt", "max")] == [1, 9, 121]
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
    def those_of_another_model(config, denoiser, tokenizer, weights, variants, folder, say):
        for name in ("denoiser.onnx", "denoiser.safetensors"):
            shutil.copy(exported.path / name, folder)
        return [Variant("fp32", "denoiser.onnx", "denoiser.safetensors", 22, ("onnxruntime",))]

    monkeypatch.setattr(to_onnx, "write_denoiser", those_of_another_model)
    monkeypatch.setattr(to_onnx, "write_tokenizer", lambda *_: {})
    denoiser = type(exported.denoiser)(exported.denoiser.network, exported.denoiser.sigma_data * 1.001)
    with pytest.raises(ExportError, match=r"denoiser.onnx differs from the model: call, batch"):
        export_bundle(exported.config, denoiser, exported.tokenizer, tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value, reason", [(0.0, "constant"), (np.nan, "not finite")])
def test_an_output_that_is_one_grey_picture_or_no_number_is_refused_by_name(exported, value, reason):
    inputs = np.load(exported.path / "sample_inputs.npz")
    condition = {name.split("/")[1]: inputs[name] for name in inputs if name.startswith("denoiser/")}
    parity = DenoiserParity(exported.config, exported.denoiser, condition, lambda x0: x0)
    rows = parity.measure("fp32", lambda inputs: np.full_like(inputs["x"], value))
    assert [row.fault for row in rows] == [reason] * len(rows) and not any(row.ok for row in rows)


def test_weights_that_are_attached_later_make_the_same_graph_and_are_read_one_by_one(exported, tmp_path):
    reads = []

    def counted(name, value):
        return held(name, value)._replace(read=lambda: (reads.append(name), value)[1])

    empty = build_denoiser(exported.config)
    assert {weight.device.type for weight in empty.parameters()} == {"meta"}
    weights = {name: counted(name, value) for name, value in exported.denoiser.state_dict().items()}
    config, tokenizer = exported.config, exported.tokenizer
    (form,) = to_onnx.write_denoiser(config, empty, tokenizer, weights, ["bf16"], tmp_path, lambda line: None)
    assert reads == list(weights)
    for name in (form.file, form.weights):
        assert (tmp_path / name).read_bytes() == (exported.path / name).read_bytes()


def test_no_weight_is_inside_a_graph_however_small_so_none_outgrows_the_two_gigabytes_of_a_message(exported):
    for variant in exported.bundle.manifest["graphs"]["denoiser"]["variants"].values():
        graph = onnx.load(exported.path / variant["file"], load_external_data=False).graph
        inside = [tensor for tensor in graph.initializer if tensor.data_location != onnx.TensorProto.EXTERNAL]
        most = 4 * exported.config.model.width  # scales of a quantised weight's channels
        assert max(int(np.prod(tensor.dims)) for tensor in inside) <= most


def test_without_values_there_is_nothing_to_compare(exported, tmp_path):
    empty, weights = build_denoiser(exported.config), {"any": held("any", torch.zeros(1))}
    with pytest.raises(UserError, match="--no-verify"):
        export_bundle(exported.config, empty, exported.tokenizer, tmp_path / "b", weights=weights)


def test_a_bundle_that_was_not_verified_says_so(exported, tmp_path, monkeypatch):
    form = Variant("bf16", "denoiser.bf16.onnx", "denoiser.bf16.safetensors", 23, ("tensorrt",))
    monkeypatch.setattr(to_onnx, "write_denoiser", lambda *_: [form])
    fp32 = {graph: [Variant("fp32", "x.onnx", None, 22, ())] for graph in ("tokenizer_encoder", "tokenizer_decoder")}
    monkeypatch.setattr(to_onnx, "write_tokenizer", lambda *_: fp32)
    config, tokenizer = exported.config, exported.tokenizer
    out = export_bundle(config, exported.denoiser, tokenizer, tmp_path / "b", variants=["bf16"], verify=False)
    manifest = json.loads((out / "manifest.json").read_text())
    assert not manifest["graphs"]["denoiser"]["variants"]["bf16"]["verified"]
    assert (
        "| denoiser | bf16 | denoiser.bf16.onnx | tensorrt | **not verified** |" in (out / "MODEL_CARD.md").read_text()
    )


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


def test_a_discrete_tokenizer_is_refused(exported, tmp_path):
    small = dataclasses.replace(TOKENIZERS["DV4x8x8"], encoder_widths=(6, 8, 10, 12), decoder_widths=(14, 10, 8, 6))
    with pytest.raises(UserError, match="discrete"):
        export_bundle(exported.config, exported.denoiser, DiscreteTokenizer(small), tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


# a clip longer than the tokenizer has statistics for goes on with the last row: three latent frames, here up to five
@pytest.mark.parametrize("clips, frames, height, width", [(1, 1, 8, 8), (2, 17, 8, 24), (3, 5, 24, 16)])
@pytest.mark.parametrize("variant", ["fp32", "fp16", "bf16"])
def test_a_convolutional_tokenizers_graphs_are_the_tokenizer(convolutional, variant, clips, frames, height, width):
    video = drawn_video(1, frames, height, width, clips).float()
    latents = convolutional.tokenizer.encode(video)
    decoded = convolutional.tokenizer.decode(latents)
    for half, given, expected in (
        ("encoder", {"video": video}, latents),
        ("decoder", {"latents": latents}, decoded),
    ):
        call = open_variant(convolutional.path / file_of(half, variant), variant, threads=1)
        answer = call({name: value.numpy() for name, value in given.items()})
        row = compare(half, expected.numpy(), answer, *LIMITS[variant].call)
        assert row.ok, row


@pytest.mark.parametrize("variant", ["fp32", "fp16", "bf16"])
def test_both_halves_of_a_tokenizer_point_into_one_file_under_the_checkpoints_names(convolutional, variant):
    weights = "tokenizer.safetensors" if variant == "fp32" else f"tokenizer.{variant}.safetensors"
    used = set()
    for half in ("encoder", "decoder"):
        graph = onnx.load(convolutional.path / file_of(half, variant), load_external_data=False).graph
        outside = [t for t in graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL]
        assert {entry.value for t in outside for entry in t.external_data if entry.key == "location"} == {weights}
        types = {value.name: value.type.tensor_type.elem_type for value in [*graph.input, *graph.output]}
        assert types == dict.fromkeys(["video", "latents"], onnx.TensorProto.FLOAT)
        assert not any(op in node.op_type for node in graph.node for op in ("If", "Loop", "Sequence", "Resize"))
        used.update(t.name for t in outside)
    assert used == set(convolutional.tokenizer.state_dict()) == set(load_file(convolutional.path / weights))


def file_of(half, variant):
    return f"tokenizer_{half}.onnx" if variant == "fp32" else f"tokenizer_{half}.{variant}.onnx"


@pytest.mark.slow
def test_two_exports_are_the_same_bytes(exported, tmp_path):
    variants = list(exported.bundle.manifest["graphs"]["denoiser"]["variants"])
    model = exported.config, exported.denoiser, exported.tokenizer
    again = export_bundle(*model, tmp_path / "bundle", variants=variants)
    for file in exported.path.iterdir():
        assert file.read_bytes() == (again / file.name).read_bytes(), file.name
