"""MkDocs hook: what holds the equations.

`<!-- verified-by: ID -->` becomes the source of that equation, its laws, its impostors and how they last ended;
`<!-- all-equations -->` becomes a table of all of them. Portuguese sentences stand in docs/pt/laws.
"""

import re
from functools import cache
from html import escape
from pathlib import Path

import yaml

from cosmos_ref import evidence
from cosmos_ref.traceability import EQUATIONS

ROOT = Path(__file__).parents[2]
WORDS = {
    "en": {
        "source": "Source: {source}.",
        "holds": "Verified: {laws} laws and values hold, {impostors} impostors are rejected",
        "fails": "Not verified: {failed} of {total} tests failed",
        "partly run": "Partly verified: {unknown} of {total} tests have not been run",
        "not run": "Held by {laws} laws and values, which reject {impostors} impostors: not run",
        "run": "Last run on {date}, commit {commit}.",
        "no run": "The tests have not been run in this checkout.",
        "changed": "with changes",
        "again": "To run them",
        "groups": {
            "law": "Laws",
            "point": "Values computed by hand",
            "exact": "Exact solutions",
            "impostor": "Impostors: wrong forms, and who writes them",
        },
        "law": {"passed": "holds", "failed": "fails", "skipped": "skipped", "not run": "not run"},
        "impostor": {"passed": "rejected", "failed": "not rejected", "skipped": "skipped", "not run": "not run"},
        "table": ("Equation", "Name", "Laws", "Impostors", "Last result"),
        "verdicts": {"holds": "holds", "fails": "**fails**", "partly run": "partly run", "not run": "not run"},
        "runs": "{count} at commit {commit} ({date})",
        "last": "Last runs: {runs}.",
        "colon": ": ",
    },
    "pt": {
        "source": "Fonte: {source}.",
        "holds": "Verificada: {laws} leis e valores valem, {impostors} impostores são rejeitados",
        "fails": "Não verificada: {failed} de {total} testes falharam",
        "partly run": "Verificada em parte: {unknown} de {total} testes não foram executados",
        "not run": "Sustentada por {laws} leis e valores, que rejeitam {impostors} impostores: não executados",
        "run": "Última execução em {date}, commit {commit}.",
        "no run": "Os testes não foram executados nesta cópia.",
        "changed": "com alterações",
        "again": "Para executá-los",
        "groups": {
            "law": "Leis",
            "point": "Valores calculados à mão",
            "exact": "Soluções exatas",
            "impostor": "Impostores: formas erradas, e quem as escreve",
        },
        "law": {"passed": "vale", "failed": "não vale", "skipped": "omitida", "not run": "não executada"},
        "impostor": {
            "passed": "rejeitado",
            "failed": "não rejeitado",
            "skipped": "omitido",
            "not run": "não executado",
        },
        "table": ("Equação", "Nome", "Leis", "Impostores", "Último resultado"),
        "verdicts": {
            "holds": "vale",
            "fails": "**não vale**",
            "partly run": "executada em parte",
            "not run": "não executada",
        },
        "runs": "{count} no commit {commit} ({date})",
        "last": "Últimas execuções: {runs}.",
        "colon": ": ",
    },
}


def on_page_markdown(markdown, page, config, files):
    """Put the table of all equations in its place."""
    if "<!-- all-equations -->" not in markdown:
        return markdown
    language = page.file.src_uri.split("/")[0]
    return markdown.replace("<!-- all-equations -->", all_equations(language, pages_in(config["nav"])))


def on_page_content(html, page, config, files):
    """Put source and evidence of each equation in their place, in the language of the page's folder."""
    language = page.file.src_uri.split("/")[0]
    return re.sub(r"<!-- verified-by: (\S+) -->", lambda marker: shown(marker[1], language), html)


def shown(id: str, language: str) -> str:
    """Source of an equation, then its evidence, folded."""
    words = WORDS[language]
    result = evidence.result(id, evidence.read_record(ROOT), ROOT)
    proofs, outcomes = list(result.outcomes), list(result.outcomes.values())
    title = words[result.verdict].format(
        laws=len(evidence.laws(proofs)),
        impostors=len(evidence.impostors(proofs)),
        failed=outcomes.count("failed"),
        unknown=outcomes.count("not run"),
        total=len(proofs),
    )
    kind = {"holds": "success", "fails": "failure"}.get(result.verdict, "note")
    run = words["run"].format(date=result.when, commit=commit(result, words)) if result.date else words["no run"]
    again = f"{words['again']}{words['colon']}<code>cosmos-ref equations --test {id}</code>"
    lines = [f"<p>{marked(words['source'].format(source=EQUATIONS[id].source))}</p>"]
    lines += [f'<details class="{kind}"{" open" if kind == "failure" else ""}><summary>{title}</summary>']
    lines += [f"<p>{run}<br>{again}</p>", '<table class="evidence">']
    for group, heading in words["groups"].items():
        rows = [proof for proof in proofs if (proof.kind if proof.kind in words["groups"] else "law") == group]
        if rows:
            lines += [f'<tr><th colspan="2">{heading}</th></tr>']
        for proof in rows:
            outcome = result.outcomes[proof]
            said = words["impostor" if group == "impostor" else "law"][outcome]
            lines += [f'<tr><td>{marked(claim(proof, language))}</td><td class="{outcome}">{said}</td></tr>']
    return "\n".join([*lines, "</table>", "</details>"])


def commit(result: evidence.Result, words: dict) -> str:
    name, _, dirty = result.commit.partition("-")
    return f"<code>{name}</code>" + (f" ({words['changed']})" if dirty else "")


def claim(proof: evidence.Proof, language: str) -> str:
    """A law as a sentence, an impostor's story, in the language of the page where it is translated."""
    return catalogue(language, Path(proof.file).stem.removeprefix("test_")).get(proof.name, proof.claim)


@cache
def catalogue(language: str, topic: str) -> dict[str, str]:
    """Translated sentences about the laws and impostors of one file of tests."""
    path = ROOT / "docs" / language / "laws" / f"{topic}.yml"
    return yaml.safe_load(path.read_text(encoding="utf-8")) or {} if path.exists() else {}


def marked(text: str) -> str:
    """Text as HTML; names with underscores, and what stands in backquotes, as code; `*word*` stressed."""
    text = re.sub(r"`([^`]+)`|\b(\w+_[\w.]*\w)\b", r"`\1\2`", text)
    text = re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text, quote=False))
    return re.sub(r"(?<!\S)\*(\w+)\*(?!\w)", r"<em>\1</em>", text)


def pages_in(nav) -> list[str]:
    """All pages of a navigation, in their order."""
    if isinstance(nav, str):
        return [nav]
    return [page for item in (nav.values() if isinstance(nav, dict) else nav) for page in pages_in(item)]


def all_equations(language: str, nav: list[str]) -> str:
    """A table of the equations on all pages, with their evidence in numbers and the last result."""
    words, record = WORDS[language], evidence.read_record(ROOT)
    rows = [f"| {' | '.join(words['table'])} |", "|---|---|--:|--:|---|"]
    runs: dict[str, list[evidence.Result]] = {}
    folder = ROOT / "docs" / language
    for path in [folder / page for page in nav if page.startswith("equations/") and (folder / page).exists()]:
        text = path.read_text(encoding="utf-8")
        found = re.findall(r"^## (.*?) *\{ #eq-(\S+) \}$", text, re.MULTILINE)
        if found:
            title = re.search(r"^# (.*)$", text, re.MULTILINE)
            rows += [f"| **[{title[1]}]({path.name})** | | | | |"]
        for heading, id in found:
            result = evidence.result(id, record, ROOT)
            laws, impostors = evidence.laws(list(result.outcomes)), evidence.impostors(list(result.outcomes))
            verdict = words["verdicts"][result.verdict]
            link = f"[{heading}]({path.name}#eq-{id})"
            rows += [f"| {link} | `{id}` | {len(laws)} | {len(impostors)} | {verdict} |"]
            if result.date:
                runs.setdefault(result.commit, []).append(result)
    said = [
        words["runs"].format(count=len(r), commit=commit(r[0], words), date=max(one.when for one in r))
        for r in runs.values()
    ]
    return "\n".join([*rows, "", words["last"].format(runs="; ".join(said)) if said else words["no run"]])
