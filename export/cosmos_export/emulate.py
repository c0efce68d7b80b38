"""Graphs of narrow numbers on ONNX Runtime's CPU provider, which has no bfloat16 and runs float16 as float32.

Every narrow value is held in float32 and rounded after the operator that made it, so what is too large for float16
becomes infinite here as it does on a GPU. Products are summed in float32 and rounded once, as tensor cores do.
"""

import onnx
from onnx import TensorProto, helper

from cosmos_export.onnx_graph import attribute

NARROW, F32 = (TensorProto.BFLOAT16, TensorProto.FLOAT16), TensorProto.FLOAT
MOVES = {"Concat", "Expand", "Gather", "GatherND", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose",
         "Unsqueeze"}  # fmt: skip
"""Operators that make no new numbers: what goes in is rounded already."""


def emulate(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A graph that computes in float32 what `proto` does in bfloat16 or float16; the weights stay where they are."""
    typed = onnx.shape_inference.infer_shapes(proto, strict_mode=True).graph
    kinds = {value.name: value.type.tensor_type.elem_type for value in [*typed.value_info, *typed.output]}
    weights = [tensor.name for tensor in proto.graph.initializer if tensor.data_type in NARROW]
    wide = {name: f"{name}_wide" for name in weights}
    nodes = [helper.make_node("Cast", [name], [wide[name]], f"widen_{name}", to=F32) for name in weights]
    for node in proto.graph.node:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        del copy.input[:], copy.output[:]
        copy.input.extend(wide.get(name, name) for name in node.input)
        if node.op_type == "Cast" and attribute(node, "to") in NARROW:
            del copy.attribute[:]
            copy.attribute.append(helper.make_attribute("to", F32))
        rounds = [] if node.op_type in MOVES else [name for name in node.output if kinds.get(name) in NARROW]
        copy.output.extend(f"{name}_exact" if name in rounds else name for name in node.output)
        nodes.append(copy)
        for name in rounds:
            nodes.append(
                helper.make_node("Cast", [f"{name}_exact"], [f"{name}_narrow"], f"round_{name}", to=kinds[name])
            )
            nodes.append(helper.make_node("Cast", [f"{name}_narrow"], [name], f"back_{name}", to=F32))
    emulated = onnx.ModelProto()
    emulated.CopyFrom(proto)
    del emulated.graph.node[:], emulated.graph.value_info[:]
    emulated.graph.node.extend(nodes)
    return emulated
