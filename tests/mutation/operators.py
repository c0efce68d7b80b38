"""How a mutant differs from the code: one change of those that people make by mistake.

Most operators are cosmic-ray's. The four here change what it leaves alone: which call, which order, which axis.
"""

import functools
import itertools
import re

import parso
from cosmic_ray import plugins
from cosmic_ray.operators.operator import Example, Operator
from parso.python.tree import Name, PythonNode, String

NOT_UNWRAPPED = {"range", "zip", "len", "isinstance", "enumerate", "super", "max", "min"}
COMMUTATIVE = re.compile(r"\b(max|min|maximum|minimum|hypot|logaddexp|promote_types)$")
"""Functions whose arguments may change places without changing anything."""
SEQUENCES = ("arglist", "testlist_comp", "testlist", "testlist_star_expr")


class RemoveCall(Operator):
    """`f(a, b)` becomes `a`, and `a.f(b)` becomes `a`."""

    def mutation_positions(self, node):
        for _ in unwrapped(node):
            yield node.start_pos, node.end_pos

    def mutate(self, node, index):
        code = list(unwrapped(node))[index]
        return Name(code, node.start_pos, prefix=node.get_first_leaf().prefix)

    @classmethod
    def examples(cls):
        return (
            Example("y = f(a, b)", "y = a"),
            Example("import torch\ny = torch.exp(a)", "import torch\ny = a"),
            Example("y = a.sum(0).exp()", "y = a.exp()"),
            Example("y = a.sum(0).exp()", "y = a.sum(0)", occurrence=1),
            Example("y = a.exp() ** 2", "y = a ** 2"),
        )


class SwapNeighbours(Operator):
    """Two neighbours change places: arguments of a call, elements of a list or tuple, names that are assigned."""

    def mutation_positions(self, node):
        for _ in neighbours(node):
            yield node.start_pos, node.end_pos

    def mutate(self, node, index):
        i, j = list(neighbours(node))[index]
        first, second = node.children[i], node.children[j]
        first_leaf, second_leaf = first.get_first_leaf(), second.get_first_leaf()
        first_leaf.prefix, second_leaf.prefix = second_leaf.prefix, first_leaf.prefix
        node.children[i], node.children[j] = second, first
        return node

    @classmethod
    def examples(cls):
        return (
            Example("y = f(a, b, c=1)", "y = f(b, a, c=1)"),
            Example("y = [a, b, c]", "y = [b, a, c]"),
            Example("y = [a, b, c]", "y = [a, c, b]", occurrence=1),
            Example("a, b = y", "b, a = y"),
        )


class SwapAxes(Operator):
    """Two neighbouring axes of an einops pattern change places, right of its arrow."""

    def mutation_positions(self, node):
        for _ in axis_swaps(node):
            yield node.start_pos, node.end_pos

    def mutate(self, node, index):
        node.value = list(axis_swaps(node))[index]
        return node

    @classmethod
    def examples(cls):
        return (
            Example('"a b -> b a"', '"a b -> a b"'),
            Example('"a (b c) -> a b c"', '"a (b c) -> b a c"'),
            Example('"a (b c) -> a b c"', '"a (b c) -> a c b"', occurrence=1),
        )


class ChooseOther(Operator):
    """`a if c else b` becomes `a`, or `b`."""

    def mutation_positions(self, node):
        if is_choice(node):
            yield from [(node.start_pos, node.end_pos)] * 2

    def mutate(self, node, index):
        code = node.children[0 if index == 0 else 4].get_code().strip()
        return Name(f"({code})", node.start_pos, prefix=node.get_first_leaf().prefix)

    @classmethod
    def examples(cls):
        return (
            Example("y = a if c else b", "y = (a)"),
            Example("y = a if c else b", "y = (b)", occurrence=1),
        )


def unwrapped(node: parso.tree.NodeOrLeaf):
    """Code of a chain of calls with one call left out, for each of them."""
    if node.type not in ("atom_expr", "power"):
        return
    parts = node.children
    for i, part in enumerate(parts[1:], start=1):
        if part.type != "trailer" or part.children[0] != "(":
            continue
        rest = "".join(other.get_code() for other in parts[i + 1 :])
        function = "".join(other.get_code() for other in parts[:i]).strip()
        method = i > 1 and parts[i - 1].type == "trailer" and parts[i - 1].children[0] == "."
        if method and function.split(".")[0] not in imported(node):
            yield "".join(other.get_code() for other in parts[: i - 1]).strip() + rest
        elif function not in NOT_UNWRAPPED and (first := first_argument(part)):
            yield f"({first}){rest}" if rest or " " in first else first


def imported(node: parso.tree.NodeOrLeaf) -> set[str]:
    """Names that the module of a node imports: what stands before the dot in `torch.exp` is no value."""
    module = node.get_root_node()
    return {name.value for statement in module.iter_imports() for name in statement.get_defined_names()}


def first_argument(call: PythonNode) -> str:
    """Code of the first argument of a call, if it has one without a name."""
    if len(call.children) < 3:
        return ""
    argument = call.children[1]
    first = argument.children[0] if argument.type == "arglist" else argument
    return "" if first.type == "argument" else first.get_code().strip()


def neighbours(node: parso.tree.NodeOrLeaf):
    """Pairs of neighbouring elements that differ."""
    if node.type not in SEQUENCES or (node.type == "arglist" and COMMUTATIVE.search(called(node))):
        return
    places = [i for i, child in enumerate(node.children) if child.type not in ("argument", "operator", "sync_comp_for")]
    for i, j in itertools.pairwise(places):
        if j == i + 2 and node.children[i].get_code().strip() != node.children[j].get_code().strip():
            yield i, j


def called(arguments: parso.tree.NodeOrLeaf) -> str:
    """Code of what is called with these arguments."""
    parts = arguments.parent.parent.children if arguments.parent else []
    return "".join(part.get_code() for part in parts[: parts.index(arguments.parent)]) if parts else ""


def axis_swaps(node: parso.tree.NodeOrLeaf):
    """Versions of an einops pattern, each with two neighbouring axes swapped."""
    if not isinstance(node, String) or "->" not in node.value:
        return
    left, right = node.value.split("->")
    names = list(re.finditer(r"[A-Za-z_]\w*", right))
    for a, b in itertools.pairwise(names):
        yield f"{left}->{right[: a.start()]}{b[0]}{right[a.end() : b.start()]}{a[0]}{right[b.end() :]}"


def is_choice(node: parso.tree.NodeOrLeaf) -> bool:
    """Whether this is `a if c else b`."""
    return node.type == "ternary" or (node.type == "test" and len(node.children) == 5)


OWN = [RemoveCall, SwapNeighbours, SwapAxes, ChooseOther]
ARITHMETIC = {"Add", "Sub", "Mul", "Div", "FloorDiv", "Mod", "Pow"}
"""Replaced by one another. Shifts and bits are left out: on floating-point numbers they only crash."""


@functools.cache
def operators() -> list[Operator]:
    """All operators, in a fixed order."""
    found = []
    for name in sorted(plugins.operator_names()):
        kind = name.partition("/")[2]
        if match := re.fullmatch(r"ReplaceBinaryOperator_(\w+?)_(\w+)", kind):
            if not {match[1], match[2]} <= ARITHMETIC:
                continue
        elif kind in ("RemoveDecorator", "VariableReplacer", "VariableInserter"):
            continue
        found.append(plugins.get_operator(name)())
    return found + [operator() for operator in OWN]
