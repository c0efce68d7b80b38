"""Every tutorial runs, its notebooks are its source's, and it has what a tutorial needs, in both languages."""

import ast
import json
import re

import pytest

from cosmos_ref.exercises.checking import exercise_of
from tests.tutorials.test_build import ROOT, build

SOURCES = build.sources([])
NAMES = [source.stem for source in SOURCES]
PARTS = {  # what both languages of a tutorial say
    "en": (r"^#+ .*\bBreak it", r"\*\*The numbers? first\.\*\*"),
    "pt": (r"^#+ .*\bQuebre", r"\*\*Primeiro os? números?\.\*\*"),
}


def prose(source, language):
    return "\n\n".join(cell[language] for cell in build.read(source) if "en" in cell)


def code(source):
    return "\n\n".join(cell["code"] for cell in build.read(source) if "code" in cell)


@pytest.mark.slow
@pytest.mark.parametrize("source", SOURCES, ids=NAMES)
def test_it_runs_in_its_small_size(source):
    build.execute(source, "smoke")


@pytest.mark.parametrize("source", SOURCES, ids=NAMES)
def test_its_notebooks_are_its_source(source):
    assert build.differences(source) == []


@pytest.mark.parametrize("source", SOURCES, ids=NAMES)
def test_its_outputs_are_small_and_the_same_in_both_languages(source):
    english, portuguese = (
        [
            cell
            for cell in json.loads(build.target(source, language).read_text())["cells"]
            if cell["cell_type"] == "code"
        ]
        for language in ("en", "pt")
    )
    assert english == portuguese
    assert build.output_kilobytes(english) <= build.LIMIT_KB


@pytest.mark.parametrize("source", SOURCES, ids=NAMES)
def test_it_has_two_exercises_that_exist_and_are_still_holes(source):
    ids = re.findall(r'check\("([^"]+)"', code(source))
    assert len(ids) >= 2 and len(set(ids)) == len(ids)
    for id in ids:
        assert id.startswith(source.stem[:2]) and exercise_of(id)
    notebook = build.target(source, "en").read_text()
    assert notebook.count("not written yet / ainda não escrito") == len(ids)


@pytest.mark.parametrize("source", SOURCES, ids=NAMES)
def test_it_has_a_figure(source):
    assert "image/png" in build.target(source, "en").read_text()


@pytest.mark.parametrize("language", build.LANGUAGES)
@pytest.mark.parametrize("source", SOURCES, ids=NAMES)
def test_it_states_numbers_first_and_ends_in_break_it(source, language):
    for part in PARTS[language]:
        assert re.search(part, prose(source, language), flags=re.MULTILINE), part


@pytest.mark.parametrize("source", SOURCES, ids=NAMES)
def test_both_languages_have_the_same_formulas_tests_and_depth_of_headings(source):
    """Formulas may differ in the decimal separator and in what stands between two numbers."""
    english, portuguese = prose(source, "en"), prose(source, "pt")
    for pattern in (r"tests/\w+/test_\w+\.py::\w+", r"^#+(?= )", r"\$\$"):
        assert re.findall(pattern, english, re.MULTILINE) == re.findall(pattern, portuguese, re.MULTILINE)


@pytest.mark.parametrize("source", SOURCES, ids=NAMES)
def test_the_tests_that_it_names_exist(source):
    named = re.findall(r"(tests/[\w/]+\.py)::(\w+)", prose(source, "en"))
    assert named
    for file, test in named:
        functions = [
            node.name for node in ast.parse((ROOT / file).read_text()).body if isinstance(node, ast.FunctionDef)
        ]
        assert test in functions, f"{file}::{test}"


@pytest.mark.parametrize("language", build.LANGUAGES)
@pytest.mark.parametrize("source", SOURCES, ids=NAMES)
def test_its_links_lead_to_pages_and_anchors_that_exist(source, language):
    for link in re.findall(r"\]\(([^)]+)\)", prose(source, language)):
        file, _, anchor = link.partition("#")
        path = (build.LANGUAGES[language] / file).resolve()
        assert path.is_file(), link
        assert not anchor or f"#{anchor}" in path.read_text(), link
        assert f"/{'en' if language == 'pt' else 'pt'}/" not in link, "a link into the other language"


@pytest.mark.parametrize("source", SOURCES, ids=NAMES)
def test_code_holds_no_prose(source):
    """Code is shared: what a figure or a cell writes is symbols and numbers, and it has no docstrings."""
    tree = ast.parse(code(source))
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and ast.get_docstring(node)]


def test_no_notebook_is_left_over():
    names = {f"{name}.ipynb" for name in NAMES}
    for folder in build.LANGUAGES.values():
        assert {path.name for path in folder.glob("*.ipynb")} == names
