"""Walking and writing an ONNX graph: who makes a value, who reads it, which weight is behind it."""

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

LAYOUT_OPS = ("Transpose", "Cast", "DequantizeLinear", "Identity")
"""What may stand between a stored weight and its use."""


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
        if tensor is None or tensor.data_location == onnx.TensorProto.EXTERNAL:
            return None
        return numpy_helper.to_array(tensor)

    def weight(self, name: str) -> str | None:
        """The weight outside of the graph that a value is, but for its layout and number format."""
        while (node := self.made_by(name, *LAYOUT_OPS)) is not None:
            name = node.input[0]
        tensor = self.initializers.get(name)
        return name if tensor is not None and tensor.data_location == onnx.TensorProto.EXTERNAL else None


def attribute(node: onnx.NodeProto, name: str) -> Any:
    """An attribute of a node, or None."""
    return next((onnx.helper.get_attribute_value(a) for a in node.attribute if a.name == name), None)


def point_into(tensor: onnx.TensorProto, file: str, offset: int, length: int) -> None:
    """Let an initializer be a part of a file beside the graph."""
    tensor.ClearField("raw_data")
    del tensor.external_data[:]
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", file), ("offset", offset), ("length", length)):
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
