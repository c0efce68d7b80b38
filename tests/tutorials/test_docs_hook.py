"""A notebook as a page of the docs: prose, folded figures, outputs, pictures, and links that start from the docs."""

import base64
import importlib.util

import pytest

from tests.tutorials.test_build import ROOT

SPEC = importlib.util.spec_from_file_location("tutorials_hook", ROOT / "docs" / "hooks" / "tutorials.py")
hook = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(hook)


def cell(kind, source, outputs=(), tags=()):
    return {"cell_type": kind, "source": [source], "metadata": {"tags": list(tags)}, "outputs": list(outputs)}


PICTURE = {"output_type": "display_data", "data": {"image/png": base64.b64encode(b"png").decode(), "text/plain": "<F>"}}
NOTEBOOK = {
    "cells": [
        cell("markdown", "# Title\n\nProse."),
        cell("code", "print(1)", [{"output_type": "stream", "name": "stdout", "text": ["1\n", "2\n"]}]),
        cell("markdown", "## The [$x$](a.md)\n\n*Held by* `tests/a/test_b.py::test_c`\n\nMore."),
        cell("code", "plot()", [PICTURE], ["figure"]),
    ]
}


@pytest.fixture(scope="module")
def page():
    return hook.page_of(NOTEBOOK, "01_trial", "en")


def test_code_is_fenced_and_what_it_printed_stands_below_as_output(page):
    assert "```python\nprint(1)\n```\n\n```{ .text .output }\n1\n2\n```" in page[0]


def test_the_code_of_a_figure_is_folded_and_its_picture_named_after_the_section(page):
    text, pictures = page
    assert '??? abstract "Code of this figure"\n\n    ```python\n    plot()\n    ```' in text
    assert "![Figure: The x(a.md)](../../assets/tutorials/01_trial/0.png)" in text
    assert pictures == {"01_trial/0.png": b"png"}


def test_below_the_title_the_notebook_can_be_had(page):
    assert page[0].startswith(
        "# Title\n\nProse.\n\nThis page is a notebook: [download it](../../assets/tutorials/en/01_"
    )


def test_the_line_that_names_tests_is_set_apart(page):
    assert "*Held by* `tests/a/test_b.py::test_c`\n{ .held }\n\nMore." in page[0]


@pytest.mark.parametrize(
    ("language", "link", "wanted"),
    [
        ("en", "../docs/en/equations/edm.md#eq-edm.c_in", "../equations/edm.md#eq-edm.c_in"),
        ("pt", "../../docs/pt/equations/edm.md", "../equations/edm.md"),
        ("en", "02_loss.ipynb", "02_loss.md"),
        ("en", "https://example.org/01_a.ipynb", "https://example.org/01_a.ipynb"),
    ],
)
def test_links_start_from_the_docs(language, link, wanted):
    assert hook.within_the_docs(f"[a]({link})", language) == f"[a]({wanted})"


def test_long_names_of_tests_may_be_broken_between_words():
    html = hook.on_page_content("<code>tests/a.py::test_b_c</code> <code>a_b</code>", None, None, None)
    assert html == "<code>tests/<wbr>a.py::<wbr>test_<wbr>b_<wbr>c</code> <code>a_b</code>"


def test_other_pages_stay_as_they_are():
    assert hook.on_page_markdown("# A\n\n<!-- tutorial: 01_a -->", None, None, None) == "# A\n\n<!-- tutorial: 01_a -->"
