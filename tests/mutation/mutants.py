"""The mutants of a module: its text with one change inside one function."""

import ast
import difflib
import hashlib
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.operators.operator import Operator

from tests.mutation.operators import operators

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "cosmos_ref"


@dataclass(frozen=True)
class Mutant:
    """A module with one function changed."""

    module: str
    """Path below cosmos_ref."""
    function: str
    """The changed function's qualified name."""
    line: int
    source: str
    """The whole module, changed."""
    change: str
    """Lines taken away and put in, as a diff writes them."""

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.source.encode()).hexdigest()[:16]


def functions(source: str) -> dict[str, ast.FunctionDef]:
    """All functions and methods by qualified name, those within functions left out."""
    found = {}

    def visit(node: ast.AST, prefix: str):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef):
                found[prefix + child.name] = child
            elif isinstance(child, ast.ClassDef):
                visit(child, f"{prefix}{child.name}.")

    visit(ast.parse(source), "")
    return found


def mutable_lines(function: ast.FunctionDef) -> set[int]:
    """Lines of a function's body, without its docstring and what it raises."""
    body = function.body[1:] if ast.get_docstring(function, clean=False) is not None else function.body
    lines = {line for node in body for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)}
    for node in ast.walk(function):
        if isinstance(node, ast.Raise):
            lines -= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return lines


def mutants(module: str) -> list[Mutant]:
    """All mutants of a module that parse, each once."""
    source = (PACKAGE / module).read_text()
    lines = source.splitlines(keepends=True)
    # An operator may ask what a name is: it sees the function below the module's imports, not the whole module.
    imports = "".join(
        f"{ast.unparse(n)}\n" for n in ast.parse(source).body if isinstance(n, ast.Import | ast.ImportFrom)
    )
    found: dict[str, Mutant] = {}
    for name, function in functions(source).items():
        first, last = function.lineno - 1, function.end_lineno
        indent = " " * function.col_offset
        original = imports + textwrap.dedent("".join(lines[first:last]))
        same, offset = ast.dump(ast.parse(original)), first - imports.count("\n")
        for operator, occurrence in places(original, {line - offset for line in mutable_lines(function)}):
            changed = mutate_code(original, operator, occurrence)
            if changed is None or not (tree := parsed(changed)) or ast.dump(tree) == same:
                continue
            text = textwrap.indent(changed.removeprefix(imports), indent)
            mutant = "".join([*lines[:first], text, *lines[last:]])
            pairs = zip(lines[first:], text.splitlines(keepends=True), strict=False)
            line = next(i for i, (before, after) in enumerate(pairs, start=first + 1) if before != after)
            found.setdefault(mutant, Mutant(module, name, line, mutant, difference(source, mutant)))
    return sorted(found.values(), key=lambda mutant: (mutant.line, mutant.change))


def places(source: str, lines: set[int]) -> Iterator[tuple[Operator, int]]:
    """Every operator that changes something on these lines, with the number of its occurrence."""
    nodes = list(ast_nodes(get_ast(source)))
    for operator in operators():
        starts = [start for node in nodes for start, _ in operator.mutation_positions(node)]
        yield from ((operator, i) for i, (line, _) in enumerate(starts) if line in lines)


def parsed(source: str) -> ast.Module | None:
    """The syntax tree of a text, if it is Python."""
    try:
        return ast.parse(source)
    except SyntaxError:
        return None


def difference(before: str, after: str) -> str:
    """The changed lines, without their indentation."""
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), n=0, lineterm="")
    return "\n".join(
        f"{line[0]} {line[1:].strip()}" for line in lines if line[0] in "+-" and not line.startswith(("+++", "---"))
    )
