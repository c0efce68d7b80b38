"""MkDocs hook: `<!-- mutants: scores -->` and `<!-- mutants: survivors -->` become tables of the last mutation run."""

import json
import re
from pathlib import Path

import yaml

FOLDER = Path(__file__).parents[2] / "tests" / "mutation"
WORDS = {
    "en": {
        "scores": "| Module | Functions | Mutants | Killed | |",
        "together": "Together",
        "survivors": "| Function | Change | Why it may live |",
        "none": "No mutant survived.",
        "run": "Run on {date}, commit `{commit}`.",
    },
    "pt": {
        "scores": "| Módulo | Funções | Mutantes | Mortos | |",
        "together": "No total",
        "survivors": "| Função | Mudança | Por que pode viver |",
        "none": "Nenhum mutante sobreviveu.",
        "run": "Execução de {date}, commit `{commit}`.",
    },
}


def on_page_markdown(markdown, page, config, files):
    """Replace the markers, in the language of the page's folder."""
    if "<!-- mutants: " not in markdown:
        return markdown
    language = page.file.src_uri.split("/")[0]
    record = json.loads((FOLDER / "results.json").read_text())
    tables = {"scores": scores(record, WORDS[language]), "survivors": survivors(language)}
    return re.sub(r"^<!-- mutants: (\w+) -->$", lambda match: tables[match[1]], markdown, flags=re.MULTILINE)


def scores(record: dict, words: dict) -> str:
    """Killed mutants, module by module and folder by folder."""
    lines = [words["run"].format(**record), "", words["scores"], "|---|--:|--:|--:|--:|"]
    folders: dict[str, list[dict]] = {}
    for module, result in record["modules"].items():
        lines.append(row(f"`{module}`", [result]))
        folders.setdefault(module.split("/")[0], []).append(result)
    lines += [row(f"**{words['together']}: `{folder}/`**", results) for folder, results in folders.items()]
    return "\n".join(lines)


def row(name: str, results: list[dict]) -> str:
    """One line of the scores."""
    functions, everyone = sum(len(r["functions"]) for r in results), sum(r["mutants"] for r in results)
    killed = sum(r["killed"] for r in results)
    return f"| {name} | {functions} | {everyone} | {killed} | {100 * killed / everyone:.1f} % |"


def survivors(language: str) -> str:
    """Every survivor beside its explanation."""
    words, entries = WORDS[language], yaml.safe_load((FOLDER / "survivors.yml").read_text()) or []
    if not entries:
        return words["none"]
    lines = [words["survivors"], "|---|---|---|"]
    for entry in entries:
        name = f"{Path(entry['module']).stem}.{entry['function']}"
        change = "<br>".join(f"`{line}`".replace("|", "\\|") for line in entry["change"].strip().splitlines())
        lines.append(f"| `{name}` | {change} | {' '.join(entry[language].split())} |")
    return "\n".join(lines)
