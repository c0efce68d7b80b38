"""From a module to an ONNX graph whose weights stay outside.

We call `torch.export.export` ourselves: `torch.onnx.export` would answer a dynamic dimension that the model violates by
fixing it in silence. What that cannot see (a branch on a size that happened to go the same way) the parity check finds.
"""

import copy
import logging
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import jaxtyping
import onnx
import onnx_ir
import torch
from torch import nn
from torch._dynamo import config as dynamo
from torch.fx.experimental import _config as symbolic_shapes

from cosmos_export.ports import Graph
from cosmos_export.translation import simplify, translate

Module = TypeVar("Module", bound=nn.Module)

CONTROL_FLOW = {"If", "Loop", "Scan", "NonZero"}
"""Operators whose course or size depends on data; engines refuse or slow down on them. Sequences are refused too."""
MISTRANSLATED = {getattr(torch.ops.aten.repeat_interleave, name) for name in ("self_int", "self_Tensor", "Tensor")}
"""Operators that PyTorch exports with the sizes of the example inside."""
REMEDY = (
    "a graph is one program for all sizes: compute with sizes as tensors (arange, expand, reshape), without branches, "
    "loops or numbers of Python that depend on them"
)


_LINE = re.compile(r'File "(.+)", line (\d+), in (\w+)')


class ExportError(RuntimeError):
    """The model cannot become a graph that is right at every size in range."""


def to_proto(module: nn.Module, graph: Graph, weights: Sequence[str], opset: int) -> onnx.ModelProto:
    """The graph of a module; tensors named in `weights` stay outside, as declared initializers without values.

    The module may be on the meta device if all its tensors are in `weights`. What the graph does not use is left out.

    Raises:
        ExportError: if a dimension cannot vary as declared, or control flow is in the graph.
    """
    with _tracing():
        model = translate(_trace(module, graph), graph.output.name, opset)
    for name in weights:  # as inputs, so that the optimiser neither folds nor merges nor renames them
        value = model.graph.initializers.pop(name, None)
        if value is not None and value.uses():
            value.const_value = None
            model.graph.inputs.append(value)
    simplify(model)
    proto = onnx_ir.to_proto(model)
    found = {node.op_type for node in proto.graph.node}
    if forbidden := found & CONTROL_FLOW | {op for op in found if "Sequence" in op}:
        raise ExportError(f"{graph.name} holds operators that depend on data: {', '.join(sorted(forbidden))}; {REMEDY}")
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


def save(proto: onnx.ModelProto, path: Path) -> None:
    """Write a graph and let ONNX check it, shapes included."""
    path.write_bytes(proto.SerializeToString(deterministic=True))
    onnx.checker.check_model(path, full_check=True)


def recast(module: Module, dtype: torch.dtype, device: str) -> Module:
    """A copy of a module with its parameters in another type, without values on the device `meta`. Buffers keep theirs.

    What is the same already is shared, not copied.
    """
    parameters = {id(p): nn.Parameter(p.detach().to(device, dtype), requires_grad=False) for p in module.parameters()}
    return copy.deepcopy(module, {**parameters, **{id(buffer): buffer.to(device) for buffer in module.buffers()}})


def _trace(module: nn.Module, graph: Graph) -> torch.export.ExportedProgram:
    """The program of a module.

    Raises:
        ExportError: if it is not the same for all sizes.
    """
    tensors = [*module.parameters(), *module.buffers()]
    device = tensors[0].device if tensors else torch.device("cpu")
    example = {name: value.to(device) for name, value in graph.example.items()}

    def run() -> torch.export.ExportedProgram:
        return torch.export.export(module, (), example, dynamic_shapes=graph.dynamic_shapes(), strict=False)

    try:
        program = run()
    except Exception as error:  # the tracer has many kinds, none of them public
        with _decisions() as places, suppress(Exception):
            run()  # again, and slower, to learn where
        said = re.split(r"\n(?:Suggested fixes|consider using|For more|\s*\nThe error above)", str(error))[0].strip()
        lines = [f"  decided at {place}" for place in places]
        lines += [f"  raised at {file}:{line} in {name}" for file, line, name in _LINE.findall(str(error))]
        message = f"{graph.name} cannot be traced with dynamic sizes: {said}"
        raise ExportError("\n".join([message, *lines, REMEDY])) from error
    for node in program.graph.nodes:
        if node.target in MISTRANSLATED:
            places = [f"{file}:{line}" for file, line, _ in _LINE.findall(node.meta.get("stack_trace") or "")]
            raise ExportError(
                f"{graph.name} uses {node.target}, whose graph is wrong at other sizes than those that it was traced "
                f"with: use expand and reshape instead. It is called at {places[-1] if places else 'an unknown place'}"
            )
    return program


@contextmanager
def _decisions() -> Iterator[list[str]]:
    """Collects the source lines where the tracer has to decide something about a size, from what it logs."""
    places: list[str] = []

    def collect(record: logging.LogRecord) -> bool:
        if found := re.search(r"\[guard added\] \((\S+:\d+ in \w+)", record.getMessage()):
            places.append(found[1])
        return False  # nobody else hears of it

    logger = logging.getLogger("torch.fx.experimental.symbolic_shapes")
    level = logger.level
    logger.addFilter(collect)
    logger.setLevel(logging.INFO)
    try:
        yield places
    finally:
        logger.removeFilter(collect)
        logger.setLevel(level)


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
