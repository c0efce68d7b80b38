"""The builder refuses what would not make two good notebooks, and builds the same bytes twice."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
SPEC = importlib.util.spec_from_file_location("tutorials_build", ROOT / "tutorials" / "build.py")
build = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(build)

HEAD = "# ---\n# jupyter:\n#   jupytext:\n#     text_representation:\n#       format_name: percent\n# ---\n\n"
EN = '# %% [markdown] tags=["en"]\n# Hello\n\n'
PT = '# %% [markdown] tags=["pt"]\n# Olá\n\n'
CODE = "# %%\nprint(1)\n"
FIGURE = """# %% tags=["figure"]
import matplotlib.pyplot as plt
figure, panel = plt.subplots(figsize=(2, 2))
panel.plot([0, 1], [1, 0])
plt.show()
print("a")
print("b")
panel
"""


@pytest.fixture
def source(tmp_path):
    """Write a source, and give its path."""

    def written(*cells):
        path = tmp_path / "99_trial.py"
        path.write_text(HEAD + "\n".join(cells), encoding="utf-8")
        return path

    return written


def targets(folder):
    return {"en": folder / "en" / "99_trial.ipynb", "pt": folder / "pt" / "99_trial.ipynb"}


def test_prose_is_read_in_pairs_and_code_once(source):
    cells = build.read(source(EN, PT, CODE))
    assert cells == [{"en": "Hello", "pt": "Olá"}, {"code": "print(1)", "tags": []}]


@pytest.mark.parametrize(
    "cells",
    [
        (EN, CODE),
        (PT, EN, CODE),
        (EN, EN, PT, CODE),
        (EN, PT, PT),
        (EN, PT, CODE, EN),
        (EN.replace(' tags=["en"]', ""), CODE),
        (EN, PT, CODE.replace("# %%", '# %% tags=["en"]')),
        (EN.replace('["en"]', '["en", "pt"]'), PT),
    ],
)
def test_prose_without_its_other_language_is_refused(source, cells):
    with pytest.raises(build.Refused, match=r"99_trial\.py"):
        build.read(source(*cells))


@pytest.mark.slow
def test_two_builds_are_byte_identical_and_languages_share_code_and_outputs(source, tmp_path):
    path = source(EN, PT, FIGURE)
    first, second = (
        build.build(path, "smoke", targets(tmp_path / "a")),
        build.build(path, "smoke", targets(tmp_path / "b")),
    )
    for language in ("en", "pt"):
        assert first[language].read_bytes() == second[language].read_bytes()
    english, portuguese = (json.loads(first[language].read_text())["cells"] for language in ("en", "pt"))
    assert english[1:] == portuguese[1:]
    assert (english[0]["source"], portuguese[0]["source"]) == (["Hello"], ["Olá"])
    picture, printed = english[1]["outputs"]  # the value of the last line is left out
    assert set(picture["data"]) == {"image/png", "text/plain"}
    assert "".join(printed["text"]) == "a\nb\n"
    assert build.differences(path, first) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("1 / 0", "ZeroDivisionError"),
        ("import sys\nprint('oops', file=sys.stderr)", "stderr: oops"),
        ("import os\nprint(os.getcwd())", "a path of this machine"),
        ("print(object())", "an address in memory"),
        ("print('took 3.1 ms')", "a time: 1 ms"),
    ],
)
def test_a_cell_that_fails_or_prints_what_no_reader_should_see_is_named(source, code, said):
    with pytest.raises(build.Refused, match=said):
        build.execute(source(EN, PT, f"# %%\n{code}\n"), "smoke")


def test_what_readers_may_see_is_no_blemish():
    for text in ("x = 1/2, 3 / 4", "must be / deve ser: 0.5", "N = 18, sigma = 20", "1.0 m/s"):
        assert build.blemish([{"output_type": "stream", "name": "stdout", "text": text}]) is None


@pytest.fixture(scope="module")
def committed(tmp_path_factory):
    """A copy of the first tutorial's source and notebooks."""
    folder = tmp_path_factory.mktemp("tutorials")
    source = build.sources(["01"])[0]
    copies = {language: folder / f"{language}.ipynb" for language in build.LANGUAGES}
    for language, path in copies.items():
        shutil.copy(build.target(source, language), path)
    return source, copies


def test_check_names_the_first_cell_that_differs(committed, tmp_path):
    source, copies = committed
    changed = tmp_path / source.name
    changed.write_text(source.read_text().replace("## 2. Adding noise", "## 2. Adding some noise"))
    (difference,) = build.differences(changed, copies)
    assert difference.startswith("en.ipynb (en): cell 5 is not the source's: '## 2. Adding some noise")


def test_check_sees_changed_code_in_both_languages(committed, tmp_path):
    source, copies = committed
    changed = tmp_path / source.name
    changed.write_text(source.read_text().replace("s = 0.25\n", "s = 0.5\n"))
    assert [difference[:19] for difference in build.differences(changed, copies)] == [
        "en.ipynb (en): cell",
        "pt.ipynb (pt): cell",
    ]


def test_check_sees_a_missing_cell_and_a_missing_notebook(committed, tmp_path):
    source, copies = committed
    shorter = json.loads(copies["en"].read_text())
    shorter["cells"].pop()
    path = tmp_path / "short.ipynb"
    path.write_text(json.dumps(shorter))
    found = build.differences(source, {"en": path, "pt": tmp_path / "none.ipynb"})
    assert len(found) == 2
    assert "cells, the source has" in found[0] and found[1].endswith("is missing")


def test_the_command_line_says_by_its_exit_code_whether_all_agree(monkeypatch, capsys):
    assert build.main(["--check"]) == 0
    monkeypatch.setattr(build, "differences", lambda source: [f"{source.name}: cell 3"])
    assert build.main(["--check", "01"]) == 1
    assert "cell 3" in capsys.readouterr().out
    assert build.main(["zz"]) == 1
    assert "no tutorial is called 'zz'; there are 01" in capsys.readouterr().err
