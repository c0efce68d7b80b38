"""Variants do what the float32 graph does: exactly so, or as far as their number format allows."""

import copy
import json
import struct
import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch
from cosmos_export.calibration import calibration_inputs
from cosmos_export.compare import CALL_LIMIT, LIMITS, call_inputs, compare, fault, psnr, torch_call
from cosmos_export.emulate import emulate
from cosmos_export.islands import keep_tokens_wide
from cosmos_export.onnx_graph import GraphError, Walk, attach, open_graph, outputs_of_layers, prune
from cosmos_export.quantize import FP8, INT8, KEPT, make_variant, quantize_rows, write_weights
from cosmos_export.rewrite import fuse_for_cpu, fuse_for_engines
from cosmos_export.sides import open_variant
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from safetensors.numpy import load_file
from torch import nn

SIZES = [
    dict(batch=1, frames=1, height=2, width=2, text_length=1),
    dict(batch=3, frames=2, height=6, width=4, text_length=7),
    dict(batch=1, frames=16, height=2, width=4, text_length=40),
]


def graph_of(exported):
    return onnx.load(exported.path / "denoiser.onnx", load_external_data=False)


@pytest.fixture(scope="module")
def variants(exported, tmp_path_factory):
    """Every variant that is made from the float32 graph, in a folder of its own."""
    folder = tmp_path_factory.mktemp("variants")
    for name in ("denoiser.onnx", "denoiser.safetensors"):
        (folder / name).write_bytes((exported.path / name).read_bytes())
    calibration = calibration_inputs(exported.config, exported.tokenizer, clips=4)
    for variant in ("cpu", "cpu-int8", "int8", "fp8"):
        make_variant(variant, folder / "denoiser.onnx", calibration, folder)
    return folder


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_cpu_variant_is_the_float32_graph_at_sizes_never_traced(exported, variants, size):
    inputs = call_inputs(exported.config, **size, sigma=0.7, seed=1)
    call = open_variant(variants / "denoiser.cpu.onnx", "cpu", threads=1)
    row = compare("call", exported.bundle.denoise(**inputs), call(inputs), CALL_LIMIT)
    assert row.ok, row


def test_the_cpu_variant_shares_the_weights_and_has_no_matrix_of_all_scores(variants):
    proto = onnx.load(variants / "denoiser.cpu.onnx", load_external_data=False)
    outside = [t for t in proto.graph.initializer if t.data_location == TensorProto.EXTERNAL]
    assert {e.value for t in outside for e in t.external_data if e.key == "location"} == {"denoiser.safetensors"}
    assert not (variants / "denoiser.cpu.safetensors").exists()
    found = [node.op_type for node in proto.graph.node]
    assert "Softmax" not in found and found.count("MultiHeadAttention") == 4  # two blocks, self and cross


def test_a_rewriting_refuses_a_graph_with_an_attention_that_it_does_not_know(exported):
    for fuse in (fuse_for_cpu, fuse_for_engines):
        proto = graph_of(exported)
        softmax = next(node for node in proto.graph.node if node.op_type == "Softmax")
        masked = helper.make_node("Add", [softmax.input[0], "bias"], ["masked"], "node_masked")
        proto.graph.initializer.append(numpy_helper.from_array(np.zeros((), np.float32), "bias"))
        proto.graph.node.insert(list(proto.graph.node).index(softmax), masked)
        softmax.input[0] = "masked"
        with pytest.raises(GraphError, match="2 blocks and 4 softmaxes"):
            fuse(proto)


@pytest.mark.parametrize("variant", ["cpu-int8", "int8", "fp8"])
def test_eight_bits_keep_their_contract_on_clips_that_were_not_calibrated_with(exported, variants, variant):
    call = open_variant(variants / f"denoiser.{variant}.onnx", variant, threads=1)
    for inputs in calibration_inputs(exported.config, exported.tokenizer, clips=3, seed=2):
        row = compare("call", exported.bundle.denoise(**inputs), call(inputs), *LIMITS[variant].call)
        assert row.ok, row
        assert row.relative > 1e-5  # it is not float32 by mistake


@pytest.mark.parametrize("variant, dtype", [("int8", INT8), ("fp8", FP8)])
def test_zero_points_are_zero_and_all_pairs_are_of_one_kind(variants, variant, dtype):
    graph = onnx.load(variants / f"denoiser.{variant}.onnx", load_external_data=False)
    walk, pairs = Walk(graph), [n for n in graph.graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear")]
    for node in pairs:
        if len(node.input) == 3:
            zero = walk.constant(node.input[2])
            assert zero.dtype == dtype and zero.shape == () and float(zero) == 0
        else:  # of weights, whose zero point is zero because it is left out
            assert node.op_type == "DequantizeLinear" and node.input[0].endswith(".weight")
    # ten products a block from six inputs (q, k and v share one), and the text, which all blocks share
    assert sum(node.op_type == "QuantizeLinear" for node in pairs) == 2 * 6 + 1
    assert sum(node.op_type == "DequantizeLinear" and len(node.input) == 2 for node in pairs) == 2 * 10


@pytest.mark.parametrize("variant", ["cpu-int8", "int8", "fp8"])
def test_weights_keep_the_checkpoints_names_and_layout_and_are_stored_once(exported, variants, variant):
    path = variants / f"denoiser.{variant}.safetensors"
    (length,) = struct.unpack("<Q", path.read_bytes()[:8])
    header = json.loads(path.read_bytes()[8 : 8 + length])
    state = exported.denoiser.state_dict()
    packed = {name.removesuffix(".scale") for name in header if name.endswith(".scale")}
    assert set(header) - {"__metadata__"} == set(state) | {f"{name}.scale" for name in packed}
    assert not packed & set(KEPT) and len(packed) == 20
    for name, tensor in state.items():
        assert header[name]["shape"] == list(tensor.shape)
        assert header[name]["dtype"] == (("F8_E4M3" if variant == "fp8" else "I8") if name in packed else "F32")
    graph = onnx.load(variants / f"denoiser.{variant}.onnx", load_external_data=False).graph
    inside = sum(len(t.raw_data) for t in graph.initializer if t.data_location != TensorProto.EXTERNAL)
    assert inside < 4000  # constants, but no weight


def test_an_int8_weight_times_its_scale_is_within_half_a_step(exported, variants):
    stored = load_file(variants / "denoiser.int8.safetensors")
    for name, weight in exported.denoiser.state_dict().items():
        if f"{name}.scale" in stored:
            scale = stored[f"{name}.scale"][:, None]
            error = np.abs(stored[name] * scale - weight.numpy())
            assert (error <= scale * (0.5 + 1e-5)).all()  # rounding of the division comes on top
            assert (np.abs(stored[name]).max(axis=1) == 127).all()


@given(seed=st.integers(0, 1000), spread=st.floats(0, 3))
def test_a_scale_a_row_is_never_worse_than_one_for_all(seed, spread):
    random = np.random.default_rng(seed)
    weight = (random.standard_normal((8, 16)) * np.exp(spread * random.standard_normal((8, 1)))).astype(np.float32)

    def error(scale):
        return np.abs(np.rint(weight / scale) * scale - weight).max(axis=1)

    packed, scale = quantize_rows(weight, INT8)
    by_rows, by_tensor = np.abs(packed * scale[:, None] - weight).max(axis=1), np.abs(weight).max() / 127
    assert (by_rows <= scale * (0.5 + 1e-5)).all() and (scale <= by_tensor * (1 + 1e-6)).all()
    largest = np.abs(weight).max(axis=1).argmin()  # the row with most to gain
    assert spread < 2 or by_rows[largest] <= error(by_tensor)[largest] + 1e-7


def test_a_row_of_zeros_stays_zeros():
    for dtype in (INT8, FP8):
        packed, scale = quantize_rows(np.zeros((2, 3), np.float32), dtype)
        assert (packed.astype(np.float32) == 0).all() and (scale == 1).all()


def test_no_sum_of_two_products_overflows_16_bits_in_the_variant_for_cpus(variants):
    stored = load_file(variants / "denoiser.cpu-int8.safetensors")
    largest = max(int(np.abs(w.astype(int)).max()) for w in stored.values() if w.dtype == np.int8)
    assert 2 * 255 * largest <= 2**15 - 1


def test_two_makings_are_the_same_bytes(exported, variants, tmp_path):
    calibration = calibration_inputs(exported.config, exported.tokenizer, clips=4)
    for variant in ("int8", "cpu-int8"):
        again = make_variant(variant, variants / "denoiser.onnx", calibration, tmp_path)
        for path in (again, again.with_suffix(".safetensors")):
            assert path.read_bytes() == (variants / path.name).read_bytes(), path.name


def test_a_written_file_is_one_that_safetensors_reads_and_onnx_points_into(tmp_path):
    tensors = {"b": np.arange(6, dtype=np.int8).reshape(2, 3), "a": np.ones(3, np.float32)}
    write_weights(tmp_path / "w.safetensors", tensors)
    for name, value in load_file(tmp_path / "w.safetensors").items():
        assert (value == tensors[name]).all()
    graph = helper.make_graph([], "g", [], [], [TensorProto(name="b"), TensorProto(name="other")])
    proto = helper.make_model(graph)
    attach(proto, tmp_path / "w.safetensors")
    b, other = proto.graph.initializer
    assert list(b.dims) == [2, 3] and b.data_type == TensorProto.INT8 and not other.external_data


def test_calibration_follows_from_its_seed_and_covers_the_noise_levels(exported):
    first, again, other = (
        calibration_inputs(exported.config, exported.tokenizer, clips=8, seed=seed) for seed in (1, 1, 2)
    )
    assert all((a[name] == b[name]).all() for a, b in zip(first, again, strict=True) for name in a)
    assert not any((a["x"] == b["x"]).all() for a, b in zip(first, other, strict=True))
    diffusion = exported.config.diffusion
    levels = [float(clip["sigma"][0]) for clip in first]
    np.testing.assert_allclose([levels[0], levels[-1]], [diffusion.sigma_min, diffusion.sigma_max], rtol=1e-6)
    given_frames = {int(clip["frame_mask"].sum()) for clip in first}
    assert 0 in given_frames and len(given_frames) > 1  # Text2World and Video2World
    assert first[0].keys() == call_inputs(exported.config, **SIZES[0], sigma=1.0, seed=0).keys()


class Small(nn.Module):
    """A layer of every kind that rounds: products, a norm, a nonlinearity, a gate."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(32, 64, bias=False), nn.Linear(64, 32, bias=False)

    def forward(self, x):
        hidden = nn.functional.gelu(self.first(x))
        return x + self.second(nn.functional.rms_norm(hidden, (64,)))


def small_graph(module, kind=TensorProto.BFLOAT16):
    """The same by hand in a narrow type, from and to float32."""
    first, second = (w.detach().float().numpy() for w in (module.first.weight, module.second.weight))
    tensors = [
        helper.make_tensor(name, kind, w.shape, np.asarray(w, np.float32).ravel())
        for name, w in (("first", first.T), ("second", second.T), ("ones", np.ones(64)))
    ]
    nodes = [
        helper.make_node("Cast", ["in"], ["x"], to=kind),
        helper.make_node("MatMul", ["x", "first"], ["h"]),
        helper.make_node("Gelu", ["h"], ["g"]),
        helper.make_node("RMSNormalization", ["g", "ones"], ["n"], axis=-1, epsilon=1e-6),
        helper.make_node("MatMul", ["n", "second"], ["s"]),
        helper.make_node("Add", ["x", "s"], ["y"]),
        helper.make_node("Cast", ["y"], ["out"], to=TensorProto.FLOAT),
    ]
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["B", 32]) for name in ("in", "out")]
    graph = helper.make_graph(nodes, "small", ports[:1], ports[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)


def test_the_emulation_is_pytorchs_bfloat16_and_rounds_less_than_an_evaluator_that_sums_in_it(tmp_path):
    torch.manual_seed(0)
    module, exact, x = Small().requires_grad_(False).bfloat16(), Small().requires_grad_(False), torch.randn(16, 32)
    exact.load_state_dict(module.state_dict())
    proto = small_graph(module)
    found = open_graph(emulate(proto), tmp_path).run(None, {"in": x.numpy()})[0]
    assert (torch.from_numpy(found).bfloat16().float().numpy() == found).all()  # bfloat16 numbers
    # where sums in another order fall on the two sides of a middle, a number is a step apart
    assert np.mean(found == module(x.bfloat16()).float().numpy()) > 0.98
    summed = np.asarray(ReferenceEvaluator(proto).run(None, {"in": x.numpy()})[0], np.float32)
    ours, theirs = (compare("bfloat16", exact(x).numpy(), other, 1).l2 for other in (found, summed))
    assert 0.4 * theirs < ours < theirs < 0.01  # 2**-8 is a step


def test_the_emulation_loads_where_the_graph_itself_does_not(tmp_path):
    proto = small_graph(Small().bfloat16())
    with pytest.raises(Exception, match=r"NOT_IMPLEMENTED|MatMul"):
        open_graph(proto, tmp_path)
    open_graph(emulate(proto), tmp_path)


def test_what_is_too_large_for_float16_is_not_hidden_by_a_cpu_that_computes_in_float32(tmp_path):
    torch.manual_seed(0)
    module, x = Small().requires_grad_(False).half(), torch.randn(4, 32)
    proto = small_graph(module, TensorProto.FLOAT16)
    emulated, plain = open_graph(emulate(proto), tmp_path), open_graph(proto, tmp_path)
    (found,) = emulated.run(None, {"in": x.numpy()})
    assert np.mean(found == module(x.half()).float().numpy()) > 0.95  # else a step apart, by the order of summation
    module.first.weight.mul_(2.0**17)  # what leaves the first layer is too large, what enters the second is not
    proto = small_graph(module, TensorProto.FLOAT16)
    emulated, plain = open_graph(emulate(proto), tmp_path), open_graph(proto, tmp_path)
    assert np.isfinite(plain.run(None, {"in": x.numpy()})[0]).all()
    assert not module(x.half()).isfinite().all()
    assert not np.isfinite(emulated.run(None, {"in": x.numpy()})[0]).all()


def wide_and_narrow(denoiser, dtype):
    """A denoiser in a narrow type, its tokens in float32, and without that."""
    wide, narrow = copy.deepcopy(denoiser).to(dtype), copy.deepcopy(denoiser).to(dtype)
    keep_tokens_wide(wide.network)
    return torch_call(wide), torch_call(narrow)


def test_tokens_in_float32_make_bfloat16_better_on_average_over_all_noise_levels(exported):
    wide, narrow = wide_and_narrow(exported.denoiser, torch.bfloat16)
    errors = []
    for inputs in calibration_inputs(exported.config, exported.tokenizer, clips=8, seed=2):
        exact = exported.bundle.denoise(**inputs)
        errors.append([compare("call", exact, call(inputs), 1).l2 for call in (wide, narrow)])
    better, worse = np.mean(errors, axis=0)
    assert better < 0.95 * worse


def test_tokens_may_grow_beyond_float16_between_its_parts(exported):
    inputs, grown = call_inputs(exported.config, **SIZES[1], sigma=2.0, seed=1), copy.deepcopy(exported.denoiser)
    with torch.no_grad():  # float16 has the gate and what it lets through, but not their product
        grown.network.blocks[0].adaln_mlp.up.weight[-exported.config.model.width :] *= 2.0**12
        grown.network.blocks[0].mlp.layer2.weight *= 2.0**8
    exact = torch_call(grown)(inputs)
    wide, narrow = wide_and_narrow(grown, torch.float16)
    assert not np.isfinite(narrow(inputs)).all()
    assert compare("call", exact, wide(inputs), *LIMITS["fp16"].call).ok


def test_tokens_in_float32_change_nothing_in_a_network_of_float32(exported):
    inputs = call_inputs(exported.config, **SIZES[1], sigma=2.0, seed=1)
    wide, plain = wide_and_narrow(exported.denoiser, torch.float32)
    assert (wide(inputs) == plain(inputs)).all()


def test_pruning_leaves_what_an_output_needs(exported):
    proto = graph_of(exported)
    before = [node.name for node in proto.graph.node]
    proto.graph.node.append(helper.make_node("Neg", ["x"], ["nowhere"], "useless"))
    proto.graph.initializer.append(numpy_helper.from_array(np.zeros(3), "unused"))
    prune(proto)
    assert [node.name for node in proto.graph.node] == before
    assert "unused" not in {tensor.name for tensor in proto.graph.initializer}


def test_layers_are_found_under_the_checkpoints_names_in_every_form(exported, variants):
    wanted = {f"network.blocks.{i}.{part}" for i in (0, 1) for part in ("self_attention.to_out", "mlp.layer2")}
    for variant in ("", ".cpu", ".cpu-int8", ".int8", ".fp8"):
        proto = onnx.load(variants / f"denoiser{variant}.onnx", load_external_data=False)
        assert set(outputs_of_layers(proto, ("self_attention.to_out", "mlp.layer2"))) == wanted
    with pytest.raises(GraphError, match="no layer called nothing"):
        outputs_of_layers(proto, ("nothing",))


def test_a_constant_picture_and_what_is_not_a_number_are_faults_whatever_the_limit():
    video = np.random.default_rng(0).uniform(-1, 1, (1, 3, 2, 8, 8)).astype(np.float32)
    grey = np.broadcast_to(video.mean(axis=(-2, -1), keepdims=True), video.shape)  # each frame a colour of its own
    assert fault(grey, video) == "constant" and fault(video * np.nan, video) == "not finite"
    assert fault(0.1 * video, video) == "" and fault(grey, grey) == ""
    assert not compare("grey", video, grey, -1.0, "cosine").ok
    assert "constant" in str(compare("grey", video, grey, -1.0, "cosine"))


def test_psnr_is_that_of_what_is_shown():
    video = np.linspace(-1, 1, 48, dtype=np.float32).reshape(1, 3, 1, 4, 4)
    assert psnr(video, video) == 150
    assert abs(psnr(video, video + 0.02 * np.sign(-video)) - 40) < 1e-3  # a hundredth of the range: 40 dB
    assert psnr(np.ones_like(video), 3 * np.ones_like(video)) == 150  # brighter than white is white


def test_a_call_in_pytorch_is_the_reference_of_all_of_this(exported):
    inputs = call_inputs(exported.config, **SIZES[1], sigma=0.7, seed=1)
    assert compare("call", torch_call(exported.denoiser)(inputs), exported.bundle.denoise(**inputs), CALL_LIMIT).ok


def test_variants_are_made_and_compared_without_pytorch():
    program = (
        "import cosmos_export.quantize, cosmos_export.emulate, cosmos_export.verify, sys; print('torch' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"
