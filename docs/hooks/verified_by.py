"""MkDocs hook: `<!-- verified-by: ID -->` becomes the source of that equation, its tests and how they last ended."""

import json
import re
from pathlib import Path

import cosmos_ref.equations  # noqa: F401 (fills the register)
from cosmos_ref.traceability import EQUATIONS

WORDS = {
    "en": {
        "source": "Source: {source}.",
        "verified": "Verified by {laws} tests; impostors rejected: {impostors}",
        "failed": "Not verified: {failed} of {total} tests failed",
        "not run": "Verified by: not run",
        "how to": "The tests have not been run in this checkout. `make test` runs them and records their results.",
        "last run": "Last run on {date}, commit `{commit}`.",
        "laws": "Laws and values computed by hand",
        "impostors": "Impostors",
        "outcomes": {
            "laws": {"passed": "holds", "failed": "**fails**", "skipped": "skipped"},
            "impostors": {"passed": "rejected", "failed": "**not rejected**", "skipped": "skipped"},
        },
    },
    "pt": {
        "source": "Fonte: {source}.",
        "verified": "Verificada por {laws} testes; impostores rejeitados: {impostors}",
        "failed": "Não verificada: {failed} de {total} testes falharam",
        "not run": "Verificação: não executada",
        "how to": "Os testes não foram executados nesta cópia. `make test` executa-os e registra os resultados.",
        "last run": "Última execução em {date}, commit `{commit}`.",
        "laws": "Leis e valores calculados à mão",
        "impostors": "Impostores",
        "outcomes": {
            "laws": {"passed": "vale", "failed": "**não vale**", "skipped": "omitido"},
            "impostors": {"passed": "rejeitado", "failed": "**não rejeitado**", "skipped": "omitido"},
        },
    },
}


def on_page_markdown(markdown, page, config, files):
    """Replace every marker on the page, in the language of the page's folder."""
    report = Path(config.config_file_path).parent / "reports" / "equations.json"
    record = json.loads(report.read_text()) if report.exists() else {"equations": {}}
    words = WORDS[page.file.src_uri.split("/")[0]]

    def evidence(match):
        source = words["source"].format(source=EQUATIONS[match[1]].source)
        return f"{source}\n\n{shown(match[1], record, words)}"

    return re.sub(r"^<!-- verified-by: (\S+) -->$", evidence, markdown, flags=re.MULTILINE)


def shown(id: str, record: dict, words: dict) -> str:
    """The record of one equation as a folded admonition."""
    tests = record["equations"].get(id, {})
    impostors = {name: outcome for name, outcome in tests.items() if "::test_no_impostor_passes[" in name}
    laws = {name: outcome for name, outcome in tests.items() if name not in impostors}
    passed, rejected = list(laws.values()).count("passed"), list(impostors.values()).count("passed")
    failed = list(tests.values()).count("failed")
    if failed:
        kind, title = "failure", words["failed"].format(failed=failed, total=len(tests))
    elif passed:
        kind, title = "success", words["verified"].format(laws=passed, impostors=rejected)
    else:
        return box("note", words["not run"], [words["how to"]])
    lines = [words["last run"].format(date=record["date"][:10], commit=record["commit"])]
    for heading, group in (("laws", laws), ("impostors", impostors)):
        if group:
            lines += ["", f"| {words[heading]} | |", "|---|---|"]
            outcomes = words["outcomes"][heading]
            lines += [f"| {sentence(name)} | {outcomes[outcome]} |" for name, outcome in sorted(group.items())]
    return box(kind, title, lines)


def sentence(test: str) -> str:
    """What a test claims: its name without the file, in words."""
    name = test.partition("::")[2]
    if match := re.fullmatch(r"test_no_impostor_passes\[.*-(\w+)\]", name):
        name = match[1]
    return name.removeprefix("test_").replace("_", " ")


def box(kind: str, title: str, lines: list[str]) -> str:
    return "\n".join([f'??? {kind} "{title}"', "", *(f"    {line}".rstrip() for line in lines)])
