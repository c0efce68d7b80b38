"""The mutants of a module: its text with one change inside one function."""

import ast
import difflib
import hashlib
from dataclasses import dataclass
from pathlib import Path

from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code

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
    where = {line: name for name, function in functions(source).items() for line in mutable_lines(function)}
    found: dict[str, Mutant] = {}
    for operator in operators():
        positions = [start for node in ast_nodes(get_ast(source)) for start, _ in operator.mutation_positions(node)]
        for occurrence, (line, _) in enumerate(positions):
            if line not in where:
                continue
            changed = mutate_code(source, operator, occurrence)
            if changed is None or changed == source or not parses(changed):
                continue
            found.setdefault(changed, Mutant(module, where[line], line, changed, difference(source, changed)))
    same = ast.dump(ast.parse(source))
    return sorted(
        (m for m in found.values() if ast.dump(ast.parse(m.source)) != same), key=lambda m: (m.line, m.change)
    )


def parses(source: str) -> bool:
    try:
        ast.parse(source)
    except SyntaxError:
        return False
    return True


def difference(before: str, after: str) -> str:
    """The changed lines, without their indentation."""
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), n=0, lineterm="")
    return "\n".join(
        f"{line[0]} {line[1:].strip()}" for line in lines if line[0] in "+-" and not line.startswith(("+++", "---"))
    )
