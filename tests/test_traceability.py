"""Code, docs in both languages and tests speak of the same equations."""

import ast
import re
from pathlib import Path

import pytest
import yaml

import cosmos_ref.equations
from cosmos_ref import evidence
from cosmos_ref.traceability import EQUATIONS, equation
from tests.equations.test_impostors import LAWS
from tests.impostors import IMPOSTORS

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


@pytest.mark.parametrize("id", EQUATIONS)
def test_displayed_formulas_do_not_run_into_one(id):
    """Two formulas in `$$` on lines that follow each other are one paragraph, which no page can set."""
    for paragraph in re.split(r"\n\s*\n", EQUATIONS[id].function.__doc__):
        assert paragraph.count("$$") in (0, 2), paragraph


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


def test_the_evidence_that_people_are_shown_is_the_one_that_runs():
    """The command line and the docs read laws and impostors from the text of the tests; pytest imports them."""
    proofs = [proof for proofs in evidence.read_proofs(ROOT).values() for proof in proofs]
    assert {(p.equation, p.name, p.claim) for p in evidence.impostors(proofs)} == {
        (impostor.id, impostor.function.__name__, impostor.story) for impostor in IMPOSTORS
    }
    assert {(p.equation, p.name) for p in evidence.laws(proofs)} == {
        (id, law.__name__) for id, laws in LAWS.items() for law in laws
    }


@pytest.mark.parametrize("path", sorted((ROOT / "tests" / "equations").glob("test_*.py")), ids=lambda path: path.stem)
def test_the_catalogue_of_evidence_names_every_law_and_impostor(path):
    """Portuguese sentences stand for the very laws and impostors that there are: whoever deletes a law fails here."""
    proofs = [p for proofs in evidence.read_proofs(ROOT).values() for p in proofs if ROOT / p.file == path]
    translated = ROOT / "docs" / "pt" / "laws" / f"{path.stem.removeprefix('test_')}.yml"
    text = translated.read_text() if translated.exists() else ""
    sentences = yaml.safe_load(text) or {}
    assert sorted(sentences) == sorted({proof.name for proof in proofs})
    assert len(sentences) == len(re.findall(r"^\w+:", text, re.MULTILINE)), "a name stands there twice"
    assert all(isinstance(said, str) and said.strip() for said in sentences.values())


def test_every_catalogue_of_evidence_belongs_to_a_file_of_tests():
    files = {path.stem for path in (ROOT / "docs" / "pt" / "laws").glob("*")}
    assert files <= {path.stem.removeprefix("test_") for path in (ROOT / "tests" / "equations").glob("test_*.py")}
