"""Walking and writing an ONNX graph: who makes a value, who reads it, which weight is behind it."""

import json
import struct
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

LAYOUT_OPS = ("Transpose", "Cast", "DequantizeLinear", "Identity")
"""What may stand between a stored weight and its use."""
STORED = {
    "F32": TensorProto.FLOAT,
    "F16": TensorProto.FLOAT16,
    "BF16": TensorProto.BFLOAT16,
    "I8": TensorProto.INT8,
    "F8_E4M3": TensorProto.FLOAT8E4M3FN,
}
"""Number formats by their names in a safetensors file."""


class GraphError(RuntimeError):
    """A graph is not built as a rewriting of it expects."""


class Walk:
    """The links of a graph, as they are when this is made."""

    def __init__(self, proto: onnx.ModelProto):
        self.initializers = {tensor.name: tensor for tensor in proto.graph.initializer}
        self.producers = {name: node for node in proto.graph.node for name in node.output}
        self.consumers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in proto.graph.node:
            for name in node.input:
                self.consumers[name].append(node)

    def made_by(self, name: str, *op_types: str) -> onnx.NodeProto | None:
        """The node that makes a value, if it is of one of these types."""
        node = self.producers.get(name)
        return node if node is not None and node.op_type in op_types else None

    def read_by(self, name: str, *op_types: str) -> onnx.NodeProto | None:
        """The only reader of a value, if it is of one of these types."""
        readers = self.consumers[name]
        return readers[0] if len(readers) == 1 and readers[0].op_type in op_types else None

    def constant(self, name: str) -> np.ndarray | None:
        """The value of a constant in the graph itself."""
        tensor = self.initializers.get(name)
        if tensor is None or tensor.data_location == TensorProto.EXTERNAL:
            return None
        return numpy_helper.to_array(tensor)

    def weight(self, name: str) -> str | None:
        """The weight outside of the graph that a value is, but for its layout and number format."""
        while (node := self.made_by(name, *LAYOUT_OPS)) is not None:
            name = node.input[0]
        tensor = self.initializers.get(name)
        return name if tensor is not None and tensor.data_location == TensorProto.EXTERNAL else None


def attribute(node: onnx.NodeProto, name: str) -> Any:
    """An attribute of a node, or None."""
    return next((onnx.helper.get_attribute_value(a) for a in node.attribute if a.name == name), None)


def attach(proto: onnx.ModelProto, path: Path) -> None:
    """Let the initializers be what a safetensors file beside the graph holds under their names.

    The weights are stored once: the graph points into that file, and takes number format and shape from it.
    """
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    for tensor in proto.graph.initializer:
        name, entry = tensor.name, header.get(tensor.name)
        if entry is None:
            continue
        begin, end = entry["data_offsets"]
        tensor.Clear()
        tensor.name, tensor.data_type = name, STORED[entry["dtype"]]
        tensor.dims.extend(entry["shape"])
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", path.name), ("offset", 8 + length + begin), ("length", end - begin)):
            tensor.external_data.add(key=key, value=str(value))


def prune(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph without what no output depends on."""
    needed, kept = {value.name for value in proto.graph.output}, []
    for node in reversed(proto.graph.node):
        if needed.intersection(node.output):
            needed.update(node.input)
            kept.append(node)
    tensors = [tensor for tensor in proto.graph.initializer if tensor.name in needed]
    del proto.graph.node[:], proto.graph.initializer[:], proto.graph.value_info[:]
    proto.graph.node.extend(reversed(kept))
    proto.graph.initializer.extend(tensors)
    return proto


def save(proto: onnx.ModelProto, path: Path) -> Path:
    """Write a graph whose weights are beside it already; equal graphs make equal bytes."""
    path.write_bytes(proto.SerializeToString(deterministic=True))
    return path


def open_graph(proto: onnx.ModelProto, folder: Path, *, optimise: bool = True, threads: int = 0) -> Any:
    """A session of ONNX Runtime on the CPU for a graph that was not written; its weights are in `folder`."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    if not optimise:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])


def outputs_of_layers(proto: onnx.ModelProto, layers: Sequence[str]) -> dict[str, str]:
    """Names of the values that leave linear layers whose names end so, by the layer's name, in the order of the graph.

    Raises:
        GraphError: if there are none.
    """
    walk, found = Walk(proto), {}
    for node in proto.graph.node:
        weight = walk.weight(node.input[1]) if node.op_type in ("MatMul", "MatMulInteger") else None
        layer = (weight or "").removesuffix(".weight")
        if not layer.endswith(tuple(layers)):
            continue
        out = node.output[0]
        while (scaled := walk.read_by(out, "Cast", "Mul")) is not None and node.op_type == "MatMulInteger":
            out = scaled.output[0]
            if scaled.op_type == "Mul":
                break
        found[layer] = out
    if not found:
        raise GraphError(f"the graph has no layer called {' or '.join(layers)}: export it again with this version")
    return found
