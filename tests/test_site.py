"""The site in a real browser: every page in both languages, without an error, with its formulas set."""

import re

import pytest

from tests.demo.test_browser import CHROMIUM
from tests.site import ROOT, built_site, visit

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (Debian package chromium)"),
]


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """What every page of the site says of itself in a browser."""
    site = built_site(tmp_path_factory)
    pages = [f"/{path.parent.relative_to(site).as_posix()}/".replace("/./", "/") for path in site.rglob("index.html")]
    assert {"/", "/pt/", "/equations/edm/", "/pt/equations/edm/"} <= set(pages)
    found = visit(site, sorted(pages), tmp_path_factory.mktemp("profile"))
    assert sorted(report["page"] for report in found) == sorted(pages)
    return found


def test_no_page_has_an_error_in_the_console_or_a_request_that_fails(reports):
    assert not {r["page"]: r["faults"] for r in reports if r["faults"]}


def test_no_page_asks_for_anything_from_elsewhere(reports):
    assert not {r["page"]: r["elsewhere"] for r in reports if r["elsewhere"]}


def test_every_formula_is_set(reports):
    for kind in ("unset", "broken", "raw"):
        assert not {report["page"]: report[kind] for report in reports if report[kind]}, kind
    for report in reports:
        if "/equations/" in report["page"]:
            assert report["formulas"] > 0, report["page"]


def test_every_picture_is_shown(reports):
    for report in reports:
        folder = "pt" if report["page"].startswith("/pt/") else "en"
        source = ROOT / "docs" / folder / f"{report['page'].removeprefix('/pt').strip('/')}.md"
        if source.exists():
            drawn = re.findall(r"<!-- (?:picture|diagram): ", source.read_text())
            assert report["pictures"] == len(drawn), report["page"]


def test_no_page_is_wider_than_the_window(reports):
    assert not {r["page"]: r["wide"] for r in reports if r["wide"] > 0}


FAULTS = {
    "error": "<script>nothing.there()</script>",
    "console": "<script>console.error('this went wrong')</script>",
    "picture": "<img src='https://127.0.0.1:9/absent.png'>",
    "formula": r"<span class='arithmatex'>\(x\)</span>",
    "dollars": "<p>so $x^2$ is not set</p>",
    "katex": "<span class='katex-error' title='ParseError'>x</span>",
    "wide": "<div style='width: 3000px'>x</div>",
}


def test_the_browser_would_tell(tmp_path):
    """Each kind of fault is found on a page that has it, and none on one that has none."""
    for name, body in (FAULTS | {"good": "<p><code>$x$</code> costs 5 $</p>"}).items():
        (tmp_path / name).mkdir()
        page = f"<!doctype html><html><head><link rel='icon' href='data:,'></head><body>{body}</body></html>"
        (tmp_path / name / "index.html").write_text(page)
    found = visit(tmp_path, [f"/{name}/" for name in [*FAULTS, "good"]], tmp_path / "profile")
    of = {report["page"].strip("/"): report for report in found}
    assert "nothing is not defined" in of["error"]["faults"][0]
    assert of["console"]["faults"] == ["this went wrong"]
    assert "absent.png" in of["picture"]["faults"][0] and of["picture"]["elsewhere"]
    assert of["formula"]["unset"] == 1 and of["formula"]["raw"] == [r"\(x\)"]
    assert of["dollars"]["raw"] and of["katex"]["broken"] == ["ParseError"] and of["wide"]["wide"] > 0
    good = of["good"]
    assert not any(good[kind] for kind in ("faults", "raw", "unset", "broken", "elsewhere", "wide"))


def test_a_missing_file_is_told(tmp_path):
    (tmp_path / "index.html").write_text("<html><head></head><body><img src='absent.png'></body></html>")
    with pytest.raises(AssertionError, match=r"404 /absent\.png"):
        visit(tmp_path, ["/"], tmp_path / "profile")
