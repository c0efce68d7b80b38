"""What TensorRT's parser says of a node, told by the part of the network that the node belongs to.

The graphs hold no places in source files, by design. But weights have the names of their modules, so a node belongs to
the modules whose weights come in before it and go out after it. The file is read here without the package `onnx`, which
a machine that builds engines need not have.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

GRAPH, NODE, INITIALIZER = 7, 1, 5
INPUT, OUTPUT, NODE_NAME, OPERATOR = 1, 2, 3, 4
TENSOR_NAME = 8
"""Fields of onnx.proto."""


class Node(NamedTuple):
    """A node of an ONNX graph."""

    name: str
    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


class OnnxFile(NamedTuple):
    """The nodes of an ONNX file, and for every value that is made of weights alone, their names."""

    nodes: tuple[Node, ...]
    weights: Mapping[str, frozenset[str]]


def read_onnx(path: Path) -> OnnxFile:
    """Read an ONNX file. Constants that the exporter made are no weights: their names have no dot."""
    graph = next(value for field, value in _fields(path.read_bytes()) if field == GRAPH)
    nodes: list[Node] = []
    weights: dict[str, frozenset[str]] = {"": frozenset()}  # an input that is left out
    for field, value in _fields(graph):
        if field == NODE:
            texts = defaultdict(list)
            for part, text in _fields(value):
                if part in (INPUT, OUTPUT, NODE_NAME, OPERATOR):
                    texts[part].append(bytes(text).decode())
            name, operator = ("".join(texts[part]) for part in (NODE_NAME, OPERATOR))
            nodes.append(Node(name, operator, tuple(texts[INPUT]), tuple(texts[OUTPUT])))
        elif field == INITIALIZER:
            name = next(bytes(text).decode() for part, text in _fields(value) if part == TENSOR_NAME)
            weights[name] = frozenset({name} if "." in name else ())
    for node in nodes:  # each stands behind those that it reads
        if all(name in weights for name in node.inputs):
            made = frozenset().union(*(weights[name] for name in node.inputs))
            weights |= dict.fromkeys(node.outputs, made)
    return OnnxFile(tuple(nodes), weights)


def module_of(file: OnnxFile, node: Node) -> str:
    """The innermost module that holds a node, as in `network.blocks.3.self_attention`; empty where none is known."""
    makers = {name: other for other in file.nodes for name in other.outputs}
    readers = defaultdict(list)
    for other in file.nodes:
        for name in other.inputs:
            readers[name].append(other)
    before = _nearest(file, node, lambda at: [makers[name] for name in at.inputs if name in makers])
    if _weights(file, node):
        return _common(before)
    after = _nearest(file, node, lambda at: [other for name in at.outputs for other in readers[name]])
    return _common(before + after)


def complain(path: Path, errors: Sequence[Mapping[str, str]]) -> str:
    """The parser's errors (`node`, `operator`, `why`) in words: which operator of which module, and why."""
    file, lines = read_onnx(path), []
    for error in errors:
        at = next((node for node in file.nodes if node.name and node.name == error["node"]), None)
        module = module_of(file, at) if at else ""
        where = f" in {module}" if module else ""
        lines.append(f"{error['operator'] or 'the graph'}{where} (node {error['node'] or '?'}): {error['why']}")
    return "; ".join(lines)


def _nearest(file: OnnxFile, node: Node, beside: Callable[[Node], list[Node]]) -> list[str]:
    """Modules of the weights that are met first, going from node to node."""
    seen, ring = {node.name}, [node]
    while ring:
        if found := set().union(*(_weights(file, at) for at in ring)):
            return sorted(name.rpartition(".")[0] for name in found)
        ring = [other for at in ring for other in beside(at) if other.name not in seen]
        seen |= {at.name for at in ring}
    return []


def _weights(file: OnnxFile, node: Node) -> set[str]:
    """The weights that a node reads, as they are stored or laid out anew."""
    return {weight for name in node.inputs for weight in file.weights.get(name, ())}


def _common(modules: Sequence[str]) -> str:
    parts = [module.split(".") for module in modules]
    common = []
    for level in zip(*parts, strict=False):
        if len(set(level)) > 1:
            break
        common.append(level[0])
    return ".".join(common)


def _fields(message: bytes | memoryview) -> Iterator[tuple[int, memoryview]]:
    """Number and bytes of every field of a protobuf message that holds bytes; numbers are skipped."""
    data, at = memoryview(message), 0

    def number() -> int:
        nonlocal at
        value, shift = 0, 0
        while True:
            byte = data[at]
            at, value, shift = at + 1, value | (byte & 0x7F) << shift, shift + 7
            if byte < 0x80:
                return value

    while at < len(data):
        key = number()
        if key & 7 == 2:
            length = number()
            yield key >> 3, data[at : at + length]
            at += length
        elif key & 7 == 0:
            number()
        else:
            at += 8 if key & 7 == 1 else 4
