"""Variants of the denoiser made from its float32 graph: other attention (cpu), 8-bit numbers (int8, fp8, cpu-int8).

Weights are quantised by rows (output channels): `weight` of 8 bits times `weight.scale`. They keep the checkpoint's
names and layout, so an engine can be refitted by name.
"""

import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from cosmos_export.onnx_graph import STORED, GraphError, Walk, attach, open_graph, prune, save
from cosmos_export.rewrite import fuse_for_cpu, fuse_for_engines

INT8, FP8 = np.dtype(np.int8), np.dtype(ml_dtypes.float8_e4m3fn)
STATIC = {"int8": INT8, "fp8": FP8}
LARGEST = {INT8: 127, FP8: 448}
"""The largest magnitude that is used: of int8 without -128, so that the zero point is zero."""
ZERO = "zero_point"
"""Name of a constant: the zero point of all activations, which says what 8 bits are."""
LARGEST_DYNAMIC = 64
"""The same for weights in cpu-int8: a CPU without VNNI adds two products in 16 bits, which 2 * 255 * 64 still fits.

With 127, sums are cut off on such a CPU: a call of the trained tiny is then 6.8 % from float32 instead of 1.9 %.
"""
KEPT = ("network.patch_embedding.weight", "network.final_layer.linear.weight")
"""Layers left in float32: they are cheap. With them a call of the trained tiny is 2.8 % off in int8 and 3.3 % in fp8,
else 1.8 % and 2.4 %. So are modulations, which are computed once a call, and the products of attention itself: 8 bits
there make it 2.2 % and 3.6 %."""


class Linear(NamedTuple):
    """A matrix product with a weight of the model, `x @ weight.T`."""

    node: onnx.NodeProto
    x: str
    weight: str


def make_variant(variant: str, fp32_graph: Path, calibration: Sequence[Mapping[str, np.ndarray]], folder: Path) -> Path:
    """Write a variant of the denoiser, and its weights beside it unless it shares those of the float32 graph.

    Args:
        variant: "cpu", "cpu-int8", "int8" or "fp8".
        fp32_graph: the graph that it is made from, with its weights beside it.
        calibration: inputs as in use, for the ranges of activations in int8 and fp8.
        folder: where to write; for `cpu` that of the float32 graph.

    Raises:
        GraphError: if the graph is not built as it was known here.
    """
    proto, path = onnx.load(fp32_graph, load_external_data=False), folder / f"{fp32_graph.stem}.{variant}.onnx"
    if variant == "cpu":
        return save(fuse_for_cpu(proto), path)
    stored = {
        tensor.name: read_weight(tensor, fp32_graph.parent)
        for tensor in proto.graph.initializer
        if tensor.data_location == TensorProto.EXTERNAL
    }
    if variant == "cpu-int8":
        quantize_dynamically(fuse_for_cpu(proto), stored)
    else:
        quantize_statically(proto, stored, STATIC[variant], calibration, fp32_graph.parent)
    write_weights(path.with_suffix(".safetensors"), stored)
    attach(proto, path.with_suffix(".safetensors"))
    return save(prune(proto), path)


def linear_layers(proto: onnx.ModelProto) -> list[Linear]:
    """What is multiplied with a weight for every token, but for the first and the last layer."""
    walk, found = Walk(proto), []
    for node in proto.graph.node:
        weight = walk.weight(node.input[1]) if node.op_type == "MatMul" else None
        if weight is not None and weight not in KEPT:
            found.append(Linear(node, node.input[0], weight))
    if not found:
        raise GraphError("the graph holds no layer that could be quantised: export it again with this version")
    return found


def quantize_dynamically(proto: onnx.ModelProto, stored: dict[str, np.ndarray]) -> None:
    """Let ONNX Runtime find the range of every activation when it comes, and multiply in int8."""
    layers = {layer.node.name: layer for layer in linear_layers(proto)}
    nodes, done = list(proto.graph.node), set()
    del proto.graph.node[:]

    def add(op_type: str, inputs: list[str], *outputs: str, **attributes: Any) -> None:
        proto.graph.node.append(helper.make_node(op_type, inputs, list(outputs), f"node_{outputs[0]}", **attributes))

    for node in nodes:
        layer = layers.get(node.name)
        if layer is None:
            proto.graph.node.append(node)
            continue
        x, out = layer.x, node.output[0]
        if x not in done:
            done.add(x)
            add("DynamicQuantizeLinear", [x], f"{x}_8bit", f"{x}_scale", f"{x}_zero")
        add("MatMulInteger", [f"{x}_8bit", node.input[1], f"{x}_zero"], f"{out}_32bit")
        add("Cast", [f"{out}_32bit"], f"{out}_unscaled", to=TensorProto.FLOAT)
        add("Mul", [f"{x}_scale", f"{layer.weight}.scale"], f"{out}_scale")
        add("Mul", [f"{out}_unscaled", f"{out}_scale"], out)
        _store(proto, stored, layer.weight, *quantize_rows(stored[layer.weight], INT8, LARGEST_DYNAMIC))


def quantize_statically(
    proto: onnx.ModelProto,
    stored: dict[str, np.ndarray],
    dtype: np.dtype,
    calibration: Sequence[Mapping[str, np.ndarray]],
    folder: Path,
) -> None:
    """Round weights and inputs of the linear layers to 8 bits, by pairs that engines turn into products in 8 bits.

    Attention becomes one operator in float16, as engines have none in float32.
    """
    layers = linear_layers(proto)
    weights = {layer.weight for layer in layers}
    readers = {layer.node.name for layer in layers}
    largest = largest_magnitudes(proto, folder, list(dict.fromkeys(layer.x for layer in layers)), calibration)
    fuse_for_engines(proto)
    nodes, done = list(proto.graph.node), set()
    del proto.graph.node[:]

    def add(op_type: str, name: str, packed: str, out: str, *zero: str, **attributes: Any) -> None:
        inputs = [packed, f"{name}.scale", *zero]
        proto.graph.node.append(helper.make_node(op_type, inputs, [out], f"node_{out}", **attributes))

    proto.graph.initializer.append(numpy_helper.from_array(np.zeros((), dtype), ZERO))
    for node in nodes:
        for place, name in enumerate(node.input):
            if name in weights:
                _store(proto, stored, name, *quantize_rows(stored[name], dtype))
                add("DequantizeLinear", name, name, f"{name}_8bit", axis=0)
            elif node.name in readers and name in largest:
                if name not in done:
                    done.add(name)
                    scale = np.asarray((largest[name] or 1) / LARGEST[dtype], np.float32)
                    proto.graph.initializer.append(numpy_helper.from_array(scale, f"{name}.scale"))
                    add("QuantizeLinear", name, name, f"{name}_packed", ZERO)
                    add("DequantizeLinear", name, f"{name}_packed", f"{name}_8bit", ZERO)
            else:
                continue
            node.input[place] = f"{name}_8bit"
        proto.graph.node.append(node)


def largest_magnitudes(
    proto: onnx.ModelProto, folder: Path, names: list[str], calibration: Sequence[Mapping[str, np.ndarray]]
) -> dict[str, float]:
    """The largest magnitude of every activation over the calibration.

    What is larger in use is cut off. Cutting off sooner is better for single calls and worse for what they lead to:
    with the trained tiny in int8, a sampling is 51 dB from float32 as it is here, 46 dB with the range of least squared
    error (equal errors lead to 46 to 50 dB), 39 dB with the 99.99th percentile; the range of least entropy makes single
    calls 16 % wrong.
    """
    watched = onnx.ModelProto()
    watched.CopyFrom(proto)
    watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session, largest = open_graph(watched, folder), np.zeros(len(names))
    for inputs in calibration:
        largest = np.maximum(largest, [np.abs(value).max() for value in session.run(names, dict(inputs))])
    return dict(zip(names, largest.tolist(), strict=True))


def quantize_rows(weight: np.ndarray, dtype: np.dtype, most: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """A weight `O I` in 8 bits, and the scales of its O rows, whose largest magnitude becomes the number `most`."""
    most = most or LARGEST[dtype]
    largest = np.abs(weight).max(axis=1)
    scale = np.where(largest > 0, largest / most, 1).astype(np.float32)
    scaled = np.clip(weight / scale[:, None], -most, most)
    return (np.rint(scaled) if dtype == INT8 else scaled).astype(dtype), scale


def _store(
    proto: onnx.ModelProto, stored: dict[str, np.ndarray], weight: str, packed: np.ndarray, scale: np.ndarray
) -> None:
    stored[weight], stored[f"{weight}.scale"] = packed, scale
    proto.graph.initializer.add(name=f"{weight}.scale")


def read_weight(tensor: TensorProto, folder: Path) -> np.ndarray:
    """A weight beside the graph, left on the disk until it is read."""
    where = {entry.key: entry.value for entry in tensor.external_data}
    dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
    return np.memmap(folder / where["location"], dtype, "r", int(where["offset"]), tuple(tensor.dims))


def write_weights(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Write a safetensors file; wider numbers come first, so that all are aligned."""
    names = {kind: name for name, kind in STORED.items()}
    order = sorted(tensors, key=lambda name: (-tensors[name].itemsize, name))
    header, end = dict[str, Any](__metadata__={"format": "pt"}), 0
    for name in order:
        tensor, begin = tensors[name], end
        end += tensor.nbytes
        kind = names[helper.np_dtype_to_tensor_dtype(tensor.dtype)]
        header[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in order:
            file.write(np.ascontiguousarray(tensors[name]).tobytes())
