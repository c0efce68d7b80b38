"""A bfloat16 graph on ONNX Runtime's CPU provider, which has no bfloat16 arithmetic.

Every bfloat16 value is held in float32 and rounded after the operator that made it. Products are summed in float32 and
rounded once, as tensor cores do, so what is measured is what a bfloat16 engine gives.
"""

import onnx
from onnx import TensorProto, helper

from cosmos_export.onnx_graph import attribute

BF16, F32 = TensorProto.BFLOAT16, TensorProto.FLOAT
MOVES = {"Concat", "Expand", "Gather", "GatherND", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose",
         "Unsqueeze"}  # fmt: skip
"""Operators that make no new numbers: what goes in is rounded already."""


def emulate_bfloat16(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A graph that computes in float32 what `proto` does in bfloat16; the weights stay where they are."""
    typed = onnx.shape_inference.infer_shapes(proto, strict_mode=True).graph
    kinds = {value.name: value.type.tensor_type.elem_type for value in [*typed.value_info, *typed.output]}
    weights = [tensor.name for tensor in proto.graph.initializer if tensor.data_type == BF16]
    wide = {name: f"{name}_wide" for name in weights}
    nodes = [helper.make_node("Cast", [name], [wide[name]], f"widen_{name}", to=F32) for name in weights]
    for node in proto.graph.node:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        del copy.input[:], copy.output[:]
        copy.input.extend(wide.get(name, name) for name in node.input)
        if node.op_type == "Cast" and attribute(node, "to") == BF16:
            del copy.attribute[:]
            copy.attribute.append(helper.make_attribute("to", F32))
        rounds = [] if node.op_type in MOVES else [name for name in node.output if kinds.get(name) == BF16]
        copy.output.extend(f"{name}_exact" if name in rounds else name for name in node.output)
        nodes.append(copy)
        for name in rounds:
            nodes.append(helper.make_node("Cast", [f"{name}_exact"], [f"{name}_bf16"], f"round_{name}", to=BF16))
            nodes.append(helper.make_node("Cast", [f"{name}_bf16"], [name], f"back_{name}", to=F32))
    emulated = onnx.ModelProto()
    emulated.CopyFrom(proto)
    del emulated.graph.node[:], emulated.graph.value_info[:]
    emulated.graph.node.extend(nodes)
    return emulated
