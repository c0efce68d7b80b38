"""Attention as one operator, in place of products and a softmax with all scores in memory at once."""

from typing import NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from cosmos_export.onnx_graph import GraphError, Walk, attribute, prune

SWAP = [0, 2, 1, 3]
"""From heads before tokens to tokens before heads, and back."""
MERGE = "merge_heads"
"""Name of a constant: the shape `B L D`, as a Reshape is told it."""
KINDS = ("self_attention", "cross_attention")


class Attention(NamedTuple):
    """Softmax attention, as it is written out in a graph at opset 22."""

    kind: str
    q: str
    """Queries `B N L K`."""
    k: str
    """Keys `B N M K`."""
    v: str
    """Values `B N M K`."""
    values: str
    """The same before the heads are split, `B M D`."""
    num_heads: int
    scale: float
    heads: str
    """What comes out, `B N L K`."""
    out: str
    """The same with the heads merged, `B L D`."""


def fuse_for_cpu(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Let com.microsoft.MultiHeadAttention do what MatMul, Softmax and MatMul did. Changes and returns the graph.

    Queries, keys and values go in as `B L D`: with the heads apart, the same operator takes a slower way.

    Raises:
        GraphError: if there is not one self-attention and one cross-attention for every block, and nothing else.
    """
    walk = Walk(proto)
    found = {match.out: match for match in find_attentions(walk, proto)}
    nodes = list(proto.graph.node)
    del proto.graph.node[:]
    swapped: dict[str, str] = {}
    for node in nodes:
        match = found.get(node.output[0])
        if match is None:
            proto.graph.node.append(node)
            continue
        tokens = []
        for heads in (match.q, match.k):
            tokens.append(f"{match.out}_{len(tokens)}")
            first = _tokens_first(walk, proto, heads, swapped)
            proto.graph.node.append(helper.make_node("Reshape", [first, MERGE], [tokens[-1]], f"node_{tokens[-1]}"))
        attend = helper.make_node(
            "MultiHeadAttention",
            [*tokens, match.values],
            [match.out],
            f"node_{match.out}",
            domain="com.microsoft",
            num_heads=match.num_heads,
            scale=match.scale,
        )
        proto.graph.node.append(attend)
    proto.graph.initializer.append(numpy_helper.from_array(np.array([0, 0, -1]), MERGE))
    proto.opset_import.add(domain="com.microsoft", version=1)
    return prune(proto)


def fuse_for_engines(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Let ONNX's own Attention do it, in float16, for which engines have a kernel. Changes and returns the graph.

    Queries and keys are normalised and so are of order one, values are of the order of activations: float16 holds them.

    Raises:
        GraphError: as `fuse_for_cpu`.
    """
    found = {match.heads: match for match in find_attentions(Walk(proto), proto)}
    nodes = list(proto.graph.node)
    del proto.graph.node[:]
    for node in nodes:
        match = found.get(node.output[0])
        if match is None:
            proto.graph.node.append(node)
            continue
        half = [f"{match.heads}_{part}" for part in "qkv"]
        for wide, narrow in zip((match.q, match.k, match.v), half, strict=True):
            proto.graph.node.append(
                helper.make_node("Cast", [wide], [narrow], f"node_{narrow}", to=TensorProto.FLOAT16)
            )
        out = f"{match.heads}_half"
        proto.graph.node.append(helper.make_node("Attention", half, [out], f"node_{out}", scale=match.scale))
        back = helper.make_node("Cast", [out], [match.heads], f"node_{match.heads}", to=TensorProto.FLOAT)
        proto.graph.node.append(back)
    (opset,) = (opset for opset in proto.opset_import if opset.domain == "")
    opset.version = 23  # of Attention; what else is in the graph is the same as in 22
    return prune(proto)


def find_attentions(walk: Walk, proto: onnx.ModelProto) -> list[Attention]:
    """All of a denoiser's.

    Raises:
        GraphError: if there is not one self-attention and one cross-attention for every block, and nothing else.
    """
    softmaxes = [node for node in proto.graph.node if node.op_type == "Softmax"]
    found = [match for node in softmaxes if (match := find_attention(walk, node)) is not None]
    blocks = sum(name.endswith("self_attention.to_v.weight") for name in walk.initializers)
    counts = {kind: sum(match.kind == kind for match in found) for kind in KINDS}
    if len(softmaxes) != len(found) or set(counts.values()) != {blocks} or not blocks:
        raise GraphError(
            f"the graph has {blocks} blocks and {len(softmaxes)} softmaxes; known as attention are {counts}: export it "
            "again with this version, at opset 22"
        )
    return found


def find_attention(walk: Walk, softmax: onnx.NodeProto) -> Attention | None:
    """The attention around a softmax, or None if it is built in another way."""
    scores = walk.made_by(softmax.input[0], "MatMul")
    weighted = walk.read_by(softmax.output[0], "MatMul")
    if scores is None or weighted is None:
        return None
    (q, q_scale), (k, k_scale) = (_unscaled(walk, name) for name in scores.input)
    k = _untransposed(walk, k)
    v = walk.made_by(weighted.input[1], "Transpose")
    split = v and walk.made_by(v.input[0], "Reshape")
    swap = walk.read_by(weighted.output[0], "Transpose")
    merge = swap and walk.read_by(swap.output[0], "Reshape")
    if k is None or v is None or split is None or swap is None or merge is None:
        return None
    if attribute(v, "perm") != SWAP or attribute(swap, "perm") != SWAP:
        return None
    shape = walk.made_by(split.input[1], "Concat")
    heads = walk.constant(shape.input[2]) if shape is not None and len(shape.input) == 4 else None
    project = walk.made_by(split.input[0], "MatMul")
    weight = walk.weight(project.input[1]) if project is not None else None
    kind = next((kind for kind in KINDS if weight and weight.endswith(f"{kind}.to_v.weight")), None)
    if heads is None or kind is None:
        return None
    ends = weighted.output[0], merge.output[0]
    return Attention(kind, q, k, v.output[0], split.input[0], int(heads[0]), q_scale * k_scale, *ends)


def _unscaled(walk: Walk, name: str) -> tuple[str, float]:
    """A value before it was multiplied by a constant number, and the number."""
    node = walk.made_by(name, "Mul")
    factor = walk.constant(node.input[1]) if node is not None else None
    if node is None or factor is None or factor.size != 1:
        return name, 1.0
    return node.input[0], float(factor.reshape(()))


def _untransposed(walk: Walk, name: str) -> str | None:
    """Keys before their last two axes were swapped, at once or with the heads among the batch for the while."""
    node = walk.made_by(name, "Transpose")
    if node is not None:
        return node.input[0] if attribute(node, "perm") == [0, 1, 3, 2] else None
    back = walk.made_by(name, "Reshape")
    swap = back and walk.made_by(back.input[0], "Transpose")
    there = swap and walk.made_by(swap.input[0], "Reshape")
    return there.input[0] if swap and there and attribute(swap, "perm") == [0, 2, 1] else None


def _tokens_first(walk: Walk, proto: onnx.ModelProto, name: str, swapped: dict[str, str]) -> str:
    """A value `B N L K` as `B L N K`. What was done to it with the heads first is done with the tokens first instead.

    The rotation only combines channels, so the transposition before it and the one back cancel; what remains to be
    transposed are the angles, which all heads share.
    """
    tensor = walk.initializers.get(name)
    if tensor is not None and len(tensor.dims) < 2:
        return name
    if name in swapped:
        return swapped[name]
    node = walk.producers[name]
    swapped |= {output: f"{output}_swapped" for output in node.output}
    if node.op_type == "Transpose" and attribute(node, "perm") == SWAP:
        swapped[name] = node.input[0]
    elif node.op_type in ("Add", "Mul", "Concat", "Split") and attribute(node, "axis") in (None, 3, -1):
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.name = f"{node.name}_swapped"
        del copy.input[:], copy.output[:]
        copy.input.extend(_tokens_first(walk, proto, input_, swapped) for input_ in node.input)
        copy.output.extend(swapped[output] for output in node.output)
        proto.graph.node.append(copy)
    else:
        proto.graph.node.append(helper.make_node("Transpose", [name], [swapped[name]], f"{name}_swap", perm=SWAP))
    return swapped[name]
