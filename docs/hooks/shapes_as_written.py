"""Griffe extension: annotations are shown as the code has them.

`Float[Tensor, "B C *S"]` names a shape in a string; Griffe would take the string for a forward reference, and print
`B`, `C` and `*S` as if they were types.
"""

import ast

import griffe


class ShapesAsWritten(griffe.Extension):
    """Replaces parsed annotations by their text."""

    def on_function_instance(self, *, node, func, **kwargs):
        arguments = {a.arg: a for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)}
        for parameter in func.parameters:
            if parameter.annotation is not None and parameter.name in arguments:
                parameter.annotation = written(arguments[parameter.name].annotation)
        if func.returns is not None:
            func.returns = written(node.returns)


def written(annotation: ast.expr) -> str:
    return ast.unparse(annotation).replace("'", '"')
