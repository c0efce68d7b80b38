"""From a traced program to ONNX operators, without tracing it again.

`torch.onnx.export` decomposes every program first, which runs the tracer a second time and takes longer than everything
else. The few operators of our models that have no translation get one here.
"""

from typing import Any

import onnx_ir
import onnxscript
import torch
from onnx_ir.passes import common as passes
from onnxscript.optimizer import fold_constants_ir
from onnxscript.rewriter import rewrite
from onnxscript.rewriter.rules import common as rules
from torch.onnx import OnnxExporterError

RULES = (
    *rules.add_0_rule.commute(),
    *rules.mul_by_1_rule.commute(),
    rules.sub_0_rule,
    rules.div_by_1_rule,
    rules.no_op_cast_rule,
    rules.cast_cast_rule,
    rules.no_op_expand_rule,
    rules.reshape_reshape_rule,
    rules.flatten_to_reshape_rule,
    rules.squeeze_reshape_1d_rule,
    rules.unsqueeze_unsqueeze_rule,
    rules.no_op_transpose_rule,
    rules.transpose_transpose_rule,
    rules.collapse_slice_rule,
    rules.collapse_slice2_rule,
    rules.materialize_reshape_shape_rule,
)
"""Rewritings that make a graph smaller and change no value."""
_aten = torch.ops.aten
_op: Any = onnxscript.opset22


def translate(program: torch.export.ExportedProgram, output: str, opset: int) -> onnx_ir.Model:
    """The program in ONNX, not optimised, its weights under their own names."""
    _without_notes(program.graph)
    own: dict[Any, Any] = {
        _aten.rsub.Scalar: _rsub,
        _aten.group_norm.default: _frame_norm,
        _aten.linalg_vector_norm.default: _length,
    }
    if opset < 23:  # which has an operator for it
        own[_aten.rms_norm.default] = _rms_norm
    decompose = program.run_decompositions
    program.run_decompositions = lambda *_: program  # type: ignore[method-assign]
    try:
        model = _to_onnx(program, output, opset, own)
    except OnnxExporterError:  # another operator of PyTorch's that is made of others
        program.run_decompositions = decompose
        model = _to_onnx(program, output, opset, {})
    return model


def simplify(model: onnx_ir.Model) -> None:
    """What ONNX Script's optimiser does, without one rule that compares all nodes with all others, for a minute."""
    passes.InlinePass()(model)
    for _ in range(2):
        fold_constants_ir(model, onnx_shape_inference=True)
        rewrite(model, RULES)
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    for tidy in (
        passes.DeduplicateInitializersPass(),
        passes.CommonSubexpressionEliminationPass(),
        passes.OutputFixPass(),
        passes.NameFixPass(),
        passes.ClearMetadataAndDocStringPass(),
    ):
        tidy(model)


def _to_onnx(program: torch.export.ExportedProgram, output: str, opset: int, own: dict[Any, Any]) -> onnx_ir.Model:
    exported = torch.onnx.export(
        program,
        dynamo=True,
        opset_version=opset,
        output_names=[output],
        optimize=False,  # ours follows, which leaves the weights alone
        verbose=False,
        custom_translation_table=own,
    )
    assert exported is not None
    return exported.model


def _without_notes(graph: torch.fx.Graph) -> None:
    """Take away what the tracer noted for itself, and say the rest in words that have a translation."""
    device = next(node.meta["val"].device for node in graph.nodes if node.op == "placeholder")
    for node in list(graph.nodes):
        if "device" in node.kwargs:  # what is made on the CPU meets what has no values
            node.update_kwarg("device", device)
        if node.target is _aten._assert_tensor_metadata.default:
            graph.erase_node(node)
        elif node.target in (_aten.to.dtype, _aten.to.device, _aten.to.dtype_layout):
            before, after = node.args[0], node.meta["val"].dtype
            if before.meta["val"].dtype != after:
                node.target, node.args, node.kwargs = torch.ops.prims.convert_element_type.default, (before, after), {}
            elif any(user.op == "output" for user in node.users):  # whose name is known outside of the graph
                node.target, node.args, node.kwargs = _aten.clone.default, (before,), {}
            else:
                node.replace_all_uses_with(before)
                graph.erase_node(node)
        elif node.target is _aten.numpy_T.default:
            axes = list(range(node.meta["val"].dim()))[::-1]
            node.target, node.args = _aten.permute.default, (node.args[0], axes)
    graph.eliminate_dead_code()


def _rsub(x, other: float, alpha: float = 1.0):
    """A number minus x; alpha is always 1."""
    return _op.Sub(_op.CastLike(_op.Constant(value_float=float(other)), x), x)


def _length(x, ord: float = 2.0, dim=(-1,), keepdim: bool = False, dtype: int = -1):
    """Euclidean, over the last axis, which stays, as all ours are; the sum is float32, whatever x is."""
    return _op.CastLike(_op.ReduceL2(_op.Cast(x, to=1), _op.Constant(value_ints=[-1]), keepdims=1), x)


def _frame_norm(x, num_groups, weight, bias, eps: float, cudnn_enabled=True):
    """One group `B C H W`, as all ours are; the sums are float32. ONNX has an operator, but not all know its types."""
    axes, channels = _op.Constant(value_ints=[1, 2, 3]), _op.Constant(value_ints=[-1, 1, 1])
    wide = _op.Cast(x, to=1)
    centred = _op.Sub(wide, _op.ReduceMean(wide, axes, keepdims=1))
    variance = _op.ReduceMean(_op.Mul(centred, centred), axes, keepdims=1)
    normed = _op.Mul(centred, _op.Reciprocal(_op.Sqrt(_op.Add(variance, _op.Constant(value_float=float(eps))))))
    scaled = _op.Mul(_op.CastLike(normed, x), _op.Reshape(weight, channels))
    return _op.Add(scaled, _op.Reshape(bias, channels))


def _rms_norm(x, normalized_shape, weight, eps: float):
    """Over the last axis, as all our norms are."""
    square = _op.ReduceMean(_op.Mul(x, x), _op.Constant(value_ints=[-1]), keepdims=1)
    eps_ = _op.CastLike(_op.Constant(value_float=float(eps)), x)
    return _op.Mul(_op.Mul(x, _op.Reciprocal(_op.Sqrt(_op.Add(square, eps_)))), weight)
