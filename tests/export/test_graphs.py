"""The graphs do what the modules do, at sizes and noise levels that they were never traced with."""

import inspect
from collections import Counter

import numpy as np
import onnx
import pytest
import torch
from cosmos_export.compare import CALL_LIMIT, LIMITS, call_inputs, compare, compare_calls, table, torch_call
from cosmos_export.onnx_graph import attribute
from cosmos_export.ports import Graph, Port, Size
from cosmos_export.sides import open_variant
from cosmos_export.tracing import ExportError, to_proto
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn

SIZES = [
    dict(batch=1, frames=1, height=2, width=2, text_length=1),
    dict(batch=1, frames=16, height=2, width=4, text_length=40),
    dict(batch=5, frames=1, height=6, width=2, text_length=3),
    dict(batch=2, frames=4, height=4, width=10, text_length=1),
    dict(batch=1, frames=2, height=32, width=32, text_length=24),
]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("sigma", [0.002, 0.3, 80.0])
def test_a_call_in_onnx_runtime_is_a_call_in_pytorch(exported, size, sigma):
    inputs = call_inputs(exported.config, **size, sigma=sigma, seed=3)
    (row,) = compare_calls(torch_call(exported.denoiser), lambda i: exported.bundle.denoise(**i), {"call": inputs})
    assert row.ok, row


@given(
    size=st.fixed_dictionaries({
        "batch": st.integers(1, 3),
        "frames": st.integers(1, 5),
        "height": st.sampled_from([2, 4, 6, 8]),
        "width": st.sampled_from([2, 4, 6, 8]),
        "text_length": st.integers(1, 12),
    }),
    log_sigma=st.floats(np.log(0.002), np.log(80)),
    seed=st.integers(0, 1000),
)  # fmt: skip
def test_a_call_agrees_at_any_size_and_noise_level(exported, size, log_sigma, seed):
    inputs = call_inputs(exported.config, **size, sigma=float(np.exp(log_sigma)), seed=seed)
    row = compare("call", torch_call(exported.denoiser)(inputs), exported.bundle.denoise(**inputs), CALL_LIMIT)
    assert row.ok, row


@pytest.mark.parametrize("name", ["sigma", "text_embeddings", "fps", "padding_mask", "frame_mask", "given_latents"])
def test_every_input_reaches_the_output(exported, name):
    inputs = call_inputs(exported.config, batch=2, frames=3, height=4, width=6, text_length=4, sigma=2.0, seed=0)
    other = {"sigma": 2, "text_embeddings": -1, "fps": 0.5, "padding_mask": 0, "frame_mask": 0, "given_latents": -1}
    changed = exported.bundle.denoise(**inputs | {name: inputs[name] * np.float32(other[name])})
    # far above what rounding leaves (1e-5), so that the input itself has arrived
    assert not compare(name, exported.bundle.denoise(**inputs), changed, 1e-3).ok


def test_given_frames_are_let_go_once_the_sample_is_as_clean_as_they_are(exported):
    inputs = call_inputs(exported.config, batch=1, frames=3, height=4, width=4, text_length=4, sigma=0.1, seed=0)
    other = {"given_latents": inputs["given_latents"] + 1}

    def change(augment_sigma):
        level = {"augment_sigma": np.full(1, augment_sigma, np.float32)}
        first, second = exported.bundle.denoise(**inputs | level), exported.bundle.denoise(**inputs | other | level)
        return np.abs(first - second).max()

    assert change(0.099) > 1e-3
    assert change(0.1) == 0  # sigma = augment_sigma is not larger any more


@pytest.mark.parametrize("variant, dtype", [("fp32", torch.float32), ("fp16", torch.float16), ("bf16", torch.bfloat16)])
def test_the_graph_holds_the_checkpoints_names_and_its_weights_are_the_safetensors_file(exported, variant, dtype):
    form = exported.bundle.manifest["graphs"]["denoiser"]["variants"][variant]
    graph = onnx.load(exported.path / form["file"], load_external_data=False).graph
    outside = {t.name: t for t in graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL}
    assert set(outside) == set(exported.denoiser.state_dict())
    stored = load_file(exported.path / form["weights"])
    raw = (exported.path / form["weights"]).read_bytes()
    for name, tensor in outside.items():
        where = {entry.key: entry.value for entry in tensor.external_data}
        assert where["location"] == form["weights"]
        begin, length = int(where["offset"]), int(where["length"])
        values = torch.frombuffer(bytearray(raw[begin : begin + length]), dtype=dtype).reshape(tuple(tensor.dims))
        assert torch.equal(values, exported.denoiser.state_dict()[name].to(dtype))
        assert torch.equal(values, stored[name])


def test_all_float32_variants_share_one_file_of_weights(exported):
    forms = exported.bundle.manifest["graphs"]["denoiser"]["variants"]
    assert forms["cpu"]["weights"] == forms["fp32"]["weights"] == "denoiser.safetensors"


@pytest.mark.parametrize("variant", ["fp16", "bf16"])
def test_a_narrow_graph_keeps_attention_and_norms_whole_and_its_islands_in_float32(exported, variant):
    form = exported.bundle.manifest["graphs"]["denoiser"]["variants"][variant]
    proto = onnx.shape_inference.infer_shapes(onnx.load(exported.path / form["file"], load_external_data=False))
    assert form["opset"] == 23 and [(o.domain, o.version) for o in proto.opset_import] == [("", 23)]
    types = {value.name: value.type.tensor_type.elem_type for value in proto.graph.value_info}
    types |= {value.name: value.type.tensor_type.elem_type for value in proto.graph.input}
    count = Counter(node.op_type for node in proto.graph.node)
    depth = exported.config.model.depth
    assert (count["Attention"], count["Softmax"]) == (2 * depth, 0)
    assert count["RMSNormalization"] == 4 * depth + 1  # queries and keys of both attentions; the noise embedding
    narrow = {"fp16": onnx.TensorProto.FLOAT16, "bf16": onnx.TensorProto.BFLOAT16}[variant]
    for node in proto.graph.node:
        if node.op_type in ("Cos", "Sin", "Log", "Sqrt", "Exp", "ReduceL2"):  # angles, noise level, norm of positions
            assert types[node.input[0]] == onnx.TensorProto.FLOAT, node.name
        if node.op_type in ("MatMul", "Attention"):
            assert types[node.output[0]] == narrow, node.name
        if node.op_type in ("RMSNormalization", "LayerNormalization"):
            assert attribute(node, "stash_type") in (None, onnx.TensorProto.FLOAT)  # of the sums; None is float32 too


@pytest.mark.parametrize("variant", ["cpu", "fp16", "bf16"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_every_variant_is_the_model_at_sizes_of_one_and_others(exported, variant, size):
    form = exported.bundle.manifest["graphs"]["denoiser"]["variants"][variant]
    call = open_variant(exported.path / form["file"], variant)
    for sigma in (0.002, 1.0, 80.0):
        inputs = call_inputs(exported.config, **size, sigma=sigma, seed=5)
        row = compare("call", torch_call(exported.denoiser)(inputs), call(inputs), *LIMITS[variant].call)
        assert row.ok, row


@pytest.mark.parametrize("batch, frames, height, width", [(1, 1, 8, 8), (5, 3, 8, 24), (1, 9, 40, 16)])
def test_the_tokenizers_graphs_are_the_tokenizer(exported, batch, frames, height, width):
    video = torch.rand(batch, 3, frames, height, width, generator=torch.Generator().manual_seed(1)) * 2 - 1
    latents = exported.tokenizer.encode(video)
    assert compare("encoder", latents.numpy(), exported.bundle.encode(video.numpy()), CALL_LIMIT).ok
    pictures = exported.tokenizer.decode(latents).numpy()
    assert compare("decoder", pictures, exported.bundle.decode(latents.numpy()), CALL_LIMIT).ok


class SpecialCase(nn.Module):
    """Does something else with long clips: right in eager mode, one branch of the two in a graph."""

    def __init__(self, at: int):
        super().__init__()
        self.at = at

    def forward(self, x):
        return 2 * x if x.shape[1] > self.at else x


class OneFrame(nn.Module):
    """Does something else with images."""

    def forward(self, x):
        if x.shape[1] == 1:
            return 2 * x
        return x


class FrameByFrame(nn.Module):
    """A Python loop over frames: the graph would hold as many as the example had."""

    def forward(self, x):
        return torch.cat([x[:, t : t + 1] * (t + 1) for t in range(x.shape[1])], dim=1)


class Repeated(nn.Module):
    """Exported by PyTorch without a complaint, and wrong at all sizes but the example's."""

    def forward(self, x):
        return torch.arange(x.shape[1]).repeat_interleave(x.shape[0]).reshape(x.shape[0], -1) * x


class OfValues(nn.Module):
    """Looks at the values."""

    def forward(self, x):
        return 2 * x if x.sum() > 0 else x


REFUSED = {
    "taken": (SpecialCase(2), "Not all values of frames"),
    "not taken": (SpecialCase(5), "Not all values of frames"),
    "one frame": (OneFrame(), "Not all values of frames"),
    "loop": (FrameByFrame(), "specialized it to be a constant"),
    "repeat": (Repeated(), "use expand and reshape"),
    "values": (OfValues(), "data-dependent"),
}


@pytest.mark.parametrize("module, reason", REFUSED.values(), ids=REFUSED.keys())
def test_a_model_whose_graph_depends_on_a_size_or_value_is_refused_with_the_line_and_a_remedy(module, reason):
    with pytest.raises(ExportError, match=reason) as refused:
        to_proto(module, network(), [], 22)
    line = inspect.getsourcelines(type(module).forward)[1]
    assert any(f"test_graphs.py:{line + n}" in str(refused.value) for n in (1, 2)), refused.value
    assert "expand" in str(refused.value)


def network() -> Graph:
    sizes = {"batch": Size(1, None, 1, 0, ""), "frames": Size(1, 16, 1, 0, "")}
    port = Port("x", ("batch", "frames"), "")
    return Graph("network", (port,), Port("y", port.dims, ""), sizes, {"x": torch.zeros(2, 3)})


def test_a_value_that_is_not_a_number_is_never_within_the_limit():
    row = compare("call", np.ones(3), np.array([1, np.nan, 1]), CALL_LIMIT)
    assert not row.ok and "TOO FAR" in table([row])
