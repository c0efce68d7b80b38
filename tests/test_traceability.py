"""Code, docs in both languages and tests speak of the same equations."""

import ast
import re
from pathlib import Path

import pytest

import cosmos_ref.equations
from cosmos_ref.traceability import EQUATIONS, equation

ROOT = Path(__file__).parent.parent


def anchors(language: str) -> list[str]:
    pages = sorted((ROOT / "docs" / language / "equations").glob("*.md"))
    return [id for page in pages for id in re.findall(r"^## .*\{ #eq-(\S+) \}$", page.read_text(), re.MULTILINE)]


def markers() -> dict[str, set[str]]:
    """Ids named by `verifies` and `impostor` anywhere in the tests, each with the kinds of evidence."""
    found: dict[str, set[str]] = {}
    for path in (ROOT / "tests").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            literals = [a.value for a in node.args if isinstance(a, ast.Constant)]
            if name == "verifies":
                by = next((k.value.value for k in node.keywords if k.arg == "by"), "law")
                for id in literals:
                    found.setdefault(id, set()).add(by)
            elif name == "impostor":
                found.setdefault(literals[0], set()).add("impostor")
    return found


def test_both_languages_and_the_code_have_the_same_equations():
    for language in ("en", "pt"):
        assert sorted(anchors(language)) == sorted(EQUATIONS)


def test_every_page_shows_the_function_and_the_record_of_each_of_its_equations():
    for language in ("en", "pt"):
        for page in (ROOT / "docs" / language / "equations").glob("*.md"):
            for section in re.split(r"^(?=## )", page.read_text(), flags=re.MULTILINE)[1:]:
                if match := re.match(r"## .*\{ #eq-(\S+) \}", section):
                    function = EQUATIONS[match[1]].function
                    assert f"::: {function.__module__}.{function.__name__}\n" in section
                    assert f"<!-- verified-by: {match[1]} -->" in section


def test_every_equation_has_a_law_a_point_value_and_an_impostor():
    found = markers()
    assert set(found) == set(EQUATIONS)
    lacking = {id: {"law", "point", "impostor"} - kinds for id, kinds in found.items()}
    assert not {id: kinds for id, kinds in lacking.items() if kinds}


def test_an_id_is_registered_once():
    with pytest.raises(ValueError, match=r"edm\.c_skip"):
        equation("edm.c_skip", source="elsewhere")(lambda: None)


def test_registering_does_not_wrap_the_function():
    assert EQUATIONS["edm.c_skip"].function is cosmos_ref.equations.edm.c_skip
