"""The site builds without a warning, in both languages, and fetches nothing from elsewhere."""

import re
from html import unescape
from pathlib import Path
from urllib.parse import unquote

import pytest
import yaml

from cosmos_ref import evidence
from cosmos_ref.cli import main
from cosmos_ref.traceability import EQUATIONS
from tests.site import built_site

ROOT = Path(__file__).parent.parent
LANGUAGES = {"en": "", "pt": "pt"}  # folder of the sources, folder of the site

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The built site."""
    return built_site(tmp_path_factory)


def pages(site: Path) -> list[Path]:
    found = sorted(site.rglob("*.html"))
    assert found
    return found


def loaded(page: Path) -> list[str]:
    """What the browser fetches by itself: scripts, styles, fonts, icons and pictures."""
    html = page.read_text()
    links = re.findall(r"<link\b[^>]*\brel=\"?(?:stylesheet|preload|preconnect|icon)\"?[^>]*>", html)
    hrefs = [match[1] for link in links if (match := re.search(r'\bhref="?([^"\s>]+)', link))]
    return hrefs + re.findall(r'<(?:script|img|iframe|video|source)\b[^>]*\bsrc="?([^"\s>]+)', html)


def test_every_page_stands_in_both_languages(site):
    sources = {
        language: {path.relative_to(ROOT / "docs" / language) for path in (ROOT / "docs" / language).rglob("*.md")}
        for language in LANGUAGES
    }
    assert sources["en"] == sources["pt"]
    for folder in LANGUAGES.values():
        for source in sources["en"]:
            name = source if source.stem == "index" else source.with_suffix("") / "index.md"
            assert (site / folder / name.with_suffix(".html")).exists()


def test_nothing_is_fetched_from_elsewhere(site):
    for page in pages(site):
        assert not [address for address in loaded(page) if re.match(r"(https?:)?//", address)], page
    for style in site.rglob("*.css"):
        assert not re.search(r"""(url\(|@import)\s*["']?(https?:)?//""", style.read_text()), style


def test_everything_a_page_loads_is_in_the_site(site):
    for page in pages(site):
        assert any("katex.min.js" in address for address in loaded(page))
        for address in loaded(page):
            address = unquote(address.split("?")[0].split("#")[0])
            base = site if address.startswith("/") else page.parent
            assert (base / address.lstrip("/")).resolve().is_file(), (page, address)
    fonts = re.findall(r"url\((fonts/[^)]+\.woff2)\)", (site / "assets/katex/katex.min.css").read_text())
    assert fonts
    for font in fonts:
        assert (site / "assets/katex" / font).is_file()


def test_every_equation_shows_its_function_and_its_record_in_both_languages(site):
    for folder, source in (("", "Source: "), ("pt", "Fonte: ")):
        html = {page: page.read_text() for page in (site / folder / "equations").rglob("*.html")}
        assert not [page for page, text in html.items() if "verified-by" in text]  # a marker nobody replaced
        for id, equation in EQUATIONS.items():
            (section,) = [
                match[0] for text in html.values() for match in re.finditer(section_of(id), text, flags=re.DOTALL)
            ]
            assert f'id="{equation.function.__module__}.{equation.function.__name__}"' in section
            assert source in section
            assert re.search(r'<details class="(success|failure|note)"', section)


def section_of(id: str) -> str:
    return rf'<h2 id="eq-{re.escape(id)}">.*?(?=<h2|</article)'


def test_every_picture_has_its_place_in_both_languages():
    drawn = re.findall(r'^@picture\(\s*"([^"]+)"', (ROOT / "docs/hooks/drawings.py").read_text(), re.MULTILINE)
    assert len(drawn) >= 15
    for language in LANGUAGES:
        pages = (ROOT / "docs" / language).rglob("*.md")
        assert sorted(drawn) == sorted(
            id for page in pages for id in re.findall(r"^<!-- picture: (\S+) -->$", page.read_text(), re.MULTILINE)
        )


@pytest.mark.parametrize(("kind", "pattern"), [("diagram", r'^@diagram\(\s*"([^"]+)"'), ("table", r'^    "([^"]+)": ')])
def test_every_diagram_and_table_has_its_place_in_both_languages(site, kind, pattern):
    file = "drawings" if kind == "diagram" else "tables"
    source = (ROOT / f"docs/hooks/{file}_training.py").read_text()
    made = re.findall(pattern, source[source.index("TABLES") :] if kind == "table" else source, re.MULTILINE)
    assert len(made) >= 5
    for language, folder in LANGUAGES.items():
        written = [page.read_text() for page in (ROOT / "docs" / language).rglob("*.md")]
        assert sorted(made) == sorted(
            id for text in written for id in re.findall(rf"^<!-- {kind}: (\S+) -->$", text, re.MULTILINE)
        )
        for page in ("training", "distributed"):
            assert f"<!-- {kind}:" not in (site / folder / page / "index.html").read_text()


GUIDES = [
    ROOT / "docs" / language / f"{page}.md" for language in LANGUAGES for page in ("training", "distributed", "deploy")
]


@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: f"{guide.parent.name}/{guide.stem}")
def test_every_test_that_a_guide_names_is_there(guide):
    named = set(re.findall(r"`(test_\w+)`", guide.read_text()))
    there = {
        name for file in (ROOT / "tests").rglob("test_*.py") for name in re.findall(r"def (test_\w+)", file.read_text())
    }
    assert len(named) > 5 and named <= there, named - there


def test_every_command_of_the_guides_is_one_that_the_program_takes(monkeypatch, capsys):
    """Names of commands and options; `torchrun ... -m cosmos_ref.cli` is another way to say `cosmos-ref`."""
    monkeypatch.setenv("COLUMNS", "200")
    wanted: dict[str, set[str]] = {}
    for guide in GUIDES:
        for block in re.findall(r"```console\n(.*?)```", guide.read_text(), re.DOTALL):
            for line in re.sub(r"\s*\\\n\s*", " ", block).splitlines():
                if said := re.search(r"(?:^cosmos-ref|-m cosmos_ref.cli) ([a-z-]+)(.*)", line):
                    wanted.setdefault(said[1], set()).update(re.findall(r"--[a-z0-9.-]+", said[2]))
    assert {"train", "prepare", "plan", "ema", "merge-lora", "train-tokenizer", "export", "verify"} <= wanted.keys()
    for command, options in wanted.items():
        with pytest.raises(SystemExit) as end:
            main([command, "--help"])
        taken = set(re.findall(r"--[a-z0-9.-]+", capsys.readouterr().out))
        assert end.value.code == 0 and options <= taken, (command, options - taken)


def test_a_picture_is_beside_the_evidence_of_its_impostors(site):
    """What a line means is said below it: the equation, and each impostor with its story."""
    html = (site / "equations/edm/index.html").read_text()
    section = re.search(section_of("edm.loss_weight"), html, flags=re.DOTALL)[0]
    figure = re.search(r'<figure class="picture">.*?</figure>', section, flags=re.DOTALL)[0]
    assert "no square in the denominator, as the seed text prints it" in figure
    assert figure.count("var(--picture-1)") and figure.count("var(--picture-2)")
    assert "#0a0a0" not in figure, "a colour was not named"


def test_evidence_tells_laws_and_stories_in_both_languages(site):
    for folder, language in (("", "en"), ("pt", "pt")):
        html = (site / folder / "equations/edm/index.html").read_text()
        section = re.search(section_of("edm.loss_weight"), html, flags=re.DOTALL)[0]
        found = re.search(r'<details class="(success|failure|note)".*?</details>', section, flags=re.DOTALL)
        box = unescape(re.sub(r"<[^>]+>", "", found[0]))
        proofs = evidence.read_proofs(ROOT)["edm.loss_weight"]
        assert len(proofs) > 5
        for proof in proofs:
            topic = Path(proof.file).stem.removeprefix("test_")
            told = yaml.safe_load((ROOT / f"docs/pt/laws/{topic}.yml").read_text()) if language == "pt" else {}
            assert told.get(proof.name, proof.claim).replace("`", "") in box
        assert "cosmos-ref equations --test edm.loss_weight" in box
    assert not list(site.rglob("*.yml")) and not list(site.rglob("*.py"))


def test_all_equations_stand_in_one_table_in_both_languages(site):
    for folder in LANGUAGES.values():
        html = (site / folder / "equations/index.html").read_text()
        for id in EQUATIONS:
            assert re.search(rf'href="[a-z]+/#eq-{re.escape(id)}"', html), (folder, id)
