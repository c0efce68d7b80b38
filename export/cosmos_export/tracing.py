"""From a module to an ONNX graph whose weights stay outside.

We call `torch.export.export` ourselves: `torch.onnx.export` would answer a dynamic dimension that the model violates by
fixing it in silence. What that cannot see (a branch on a size that happened to go the same way) the parity check finds.
"""

import json
import logging
import struct
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import jaxtyping
import onnx
import onnx_ir
import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass
from onnxscript.optimizer import optimize_ir
from torch import nn
from torch._dynamo import config as dynamo
from torch.fx.experimental import _config as symbolic_shapes

from cosmos_export.ports import Graph

CONTROL_FLOW = {"If", "Loop", "Scan", "NonZero"}
"""Operators whose course or size depends on data; engines refuse or slow down on them. Sequences are refused too."""


class ExportError(RuntimeError):
    """The model cannot become a graph that is right at every size in range."""


def to_proto(module: nn.Module, graph: Graph, weights: Sequence[str], opset: int) -> onnx.ModelProto:
    """The graph of a module; tensors named in `weights` stay outside, as declared initializers without values.

    Raises:
        ExportError: if a dimension cannot vary as declared, a weight is missing, or control flow is in the graph.
    """
    with _tracing():
        model = _trace(module, graph, opset)
    for name in weights:  # as inputs, so that the optimiser neither folds nor merges nor renames them
        value = model.graph.initializers.pop(name)
        value.const_value = None
        model.graph.inputs.append(value)
    optimize_ir(model)
    ClearMetadataAndDocStringPass()(model)
    proto = onnx_ir.to_proto(model)
    found = {node.op_type for node in proto.graph.node}
    if forbidden := found & CONTROL_FLOW | {op for op in found if "Sequence" in op}:
        raise ExportError(f"{graph.name} holds operators that depend on data: {', '.join(sorted(forbidden))}")
    outside = [value for value in proto.graph.input if value.name in weights]
    inside = [value for value in proto.graph.input if value.name not in weights]
    if [value.name for value in inside] != [port.name for port in graph.inputs]:
        raise ExportError(f"{graph.name} does not use all of its inputs: {[value.name for value in inside]}")
    del proto.graph.input[:], proto.graph.value_info[:]  # the exporter's names of sizes mean nothing
    proto.graph.input.extend(inside)
    for value in outside:
        dims = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        proto.graph.initializer.add(name=value.name, data_type=value.type.tensor_type.elem_type, dims=dims)
    for value, port in zip([*proto.graph.input, *proto.graph.output], [*graph.inputs, graph.output], strict=True):
        for dim, name in zip(value.type.tensor_type.shape.dim, port.dims, strict=True):
            if isinstance(name, str):
                dim.dim_param = name
            elif dim.dim_value != name:
                raise ExportError(f"{graph.name} gives {port.name} the size {dim.dim_value}, not {name}")
    return proto


def _trace(module: nn.Module, graph: Graph, opset: int) -> onnx_ir.Model:
    shapes = graph.dynamic_shapes()
    try:
        program = torch.export.export(module, (), dict(graph.example), dynamic_shapes=shapes, strict=False)
    except Exception as error:  # the tracer has many kinds, none of them public
        raise ExportError(f"{graph.name} cannot be traced with dynamic sizes: {error}") from error
    exported = torch.onnx.export(
        program,
        dynamo=True,
        opset_version=opset,
        output_names=[graph.output.name],
        optimize=False,  # ours follows, which leaves the weights alone
        verbose=False,
    )
    assert exported is not None
    return exported.model


def attach_safetensors(proto: onnx.ModelProto, path: Path) -> None:
    """Let the initializers without values point into a safetensors file, by name: the weights are stored once."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    for tensor in proto.graph.initializer:
        if tensor.name in header:
            begin, end = header[tensor.name]["data_offsets"]
            tensor.data_location = onnx.TensorProto.EXTERNAL
            for key, value in (("location", path.name), ("offset", 8 + length + begin), ("length", end - begin)):
                tensor.external_data.add(key=key, value=str(value))


def save(proto: onnx.ModelProto, path: Path) -> None:
    """Write a graph and let ONNX check it, shapes included."""
    path.write_bytes(proto.SerializeToString(deterministic=True))
    onnx.checker.check_model(path, full_check=True)


@contextmanager
def _tracing() -> Iterator[None]:
    """A size of one is a size like others. The tracer's cache is off: it costs more than it saves for such sizes."""
    oblivious = symbolic_shapes.patch(backed_size_oblivious=True)  # type: ignore[attr-defined]
    with torch.no_grad(), _quiet(), _without_shape_checks(), oblivious, dynamo.patch(fake_tensor_cache_enabled=False):
        yield


@contextmanager
def _without_shape_checks() -> Iterator[None]:
    """The tests' checks of annotations look at sizes, which are symbols during tracing."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", before)


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter warns of packages that it does not need here and of its own deprecated calls."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
