"""Mutation testing: `python -m tests.mutation [run | show] [MODULE ...]`.

Without a module, everything in scope is run and the scores are written to `results.json`, which the docs show. A mutant
once killed is not run again until its function changes; `--fresh` forgets that.
"""

import argparse
import ast
import hashlib
import json
import os
import subprocess
import sys
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import yaml
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn
from rich.table import Table

from tests.mutation.mutants import PACKAGE, ROOT, Mutant, functions, mutants
from tests.mutation.runner import run_all

MEMORY = ROOT / "reports" / "mutants"
RESULTS = Path(__file__).with_name("results.json")
SURVIVORS = Path(__file__).with_name("survivors.yml")
GOALS = {"equations": 97.0, "blocks": 90.0, "model": 90.0, "training": 90.0}
"""Least percentage of mutants killed, by folder."""
NOTHING_TO_CHANGE: set[tuple[str, str]] = set()
"""Functions without a mutant, by module and name."""


def scope() -> list[str]:
    """The modules whose mutants are run, as paths below cosmos_ref."""
    paths = [*PACKAGE.glob("equations/*.py"), *PACKAGE.glob("blocks/*.py")]
    paths = [path for path in paths if path.name != "__init__.py"]
    paths += [PACKAGE / "training" / "step.py", PACKAGE / "model" / "denoiser.py"]
    return sorted(str(path.relative_to(PACKAGE)) for path in paths)


def run(modules: list[str], workers: int, fresh: bool, console: Console) -> None:
    """Run the mutants of modules and remember how they ended."""
    with Progress(*Progress.get_default_columns()[:-1], MofNCompleteColumn(), TimeRemainingColumn()) as progress:
        for module in modules:
            remembered = {} if fresh else recall(module)
            everyone = mutants(module)
            ended = {m.digest: "killed" for m in everyone if remembered.get(key(m)) in ("killed", "slow")}
            bad = check_originals(module, {m.function for m in everyone if m.digest not in ended}, workers)
            for function, outcome in bad.items():
                progress.console.print(
                    f"[red]{module}: the tests of {function} are no judge: unchanged, it is {outcome}"
                )
            left = [m for m in everyone if m.digest not in ended and m.function not in bad]
            for mutant, outcome in progress.track(run_all(left, workers), len(left), description=module):
                remembered[key(mutant)] = outcome
                if outcome not in ("killed", "slow"):
                    progress.console.print(f"{outcome}: {module} {mutant.function}:{mutant.line}\n{mutant.change}\n")
                remember(module, remembered)
            remember(module, {key(m): remembered.get(key(m), "not run") for m in everyone})


def check_originals(module: str, names: set[str], workers: int) -> dict[str, str]:
    """Functions whose tests do not pass as they are, with the outcome: they would kill every mutant, or none runs."""
    source = (PACKAGE / module).read_text()
    unchanged = [Mutant(module, name, 0, source, "") for name in sorted(names)]
    return {m.function: outcome for m, outcome in run_all(unchanged, workers) if outcome != "survived"}


def key(mutant: Mutant) -> str:
    """What a mutant is remembered by: its function, changed."""
    function = functions(mutant.source)[mutant.function]
    return hashlib.sha256(f"{mutant.function} {ast.dump(function)}".encode()).hexdigest()[:16]


def recall(module: str) -> dict[str, str]:
    """Earlier outcomes of a module's mutants."""
    path = MEMORY / f"{module.replace('/', '.')}.json"
    return json.loads(path.read_text()) if path.exists() else {}


def remember(module: str, outcomes: dict[str, str]) -> None:
    """Write outcomes where `recall` finds them."""
    MEMORY.mkdir(parents=True, exist_ok=True)
    path = MEMORY / f"{module.replace('/', '.')}.json"
    beside = path.with_suffix(f".{os.getpid()}")
    beside.write_text(json.dumps(outcomes, indent=0, sort_keys=True))
    os.replace(beside, path)


def collect(modules: list[str]) -> dict[str, dict]:
    """Scores and survivors of modules, from what is remembered."""
    found = {}
    for module in modules:
        outcomes = recall(module)
        everyone = mutants(module)
        named = [(m, outcomes.get(key(m), "not run")) for m in everyone]
        counts = Counter(m.function for m in everyone)
        found[module] = {
            "functions": {name: counts[name] for name in functions((PACKAGE / module).read_text())},
            "mutants": len(everyone),
            "killed": sum(outcome in ("killed", "slow") for _, outcome in named),
            "survivors": [
                {"function": m.function, "change": m.change, "outcome": outcome}
                for m, outcome in named
                if outcome not in ("killed", "slow")
            ],
        }
    return found


def unexplained(results: dict[str, dict]) -> list[tuple[str, str, str]]:
    """Survivors that `survivors.yml` says nothing about."""
    known = {(e["module"], e["function"], e["change"].strip()) for e in explanations()}
    survivors = [(module, s["function"], s["change"]) for module, r in results.items() for s in r["survivors"]]
    return [survivor for survivor in survivors if survivor not in known]


def explanations() -> list[dict[str, str]]:
    """Why each known survivor may survive."""
    return yaml.safe_load(SURVIVORS.read_text()) or []


def failures(results: dict[str, dict]) -> list[str]:
    """Everything that keeps a run from being good."""
    bad = [f"{module}: survivor without explanation in {name}" for module, name, _ in unexplained(results)]
    for module, result in results.items():
        idle = [name for name, count in result["functions"].items() if not count]
        bad += [f"{module}: no mutant of {name}" for name in idle if (module, name) not in NOTHING_TO_CHANGE]
    for folder, goal in GOALS.items():
        if (reached := score(results, folder)) < goal:
            bad.append(f"{folder}: {reached:.1f} % killed, {goal:g} % wanted")
    return bad


def score(results: dict[str, dict], folder: str) -> float:
    """Percentage of the mutants of a folder's modules that were killed."""
    inside = [result for module, result in results.items() if module.startswith(folder + "/")]
    return 100 * sum(r["killed"] for r in inside) / max(1, sum(r["mutants"] for r in inside))


def table(results: dict[str, dict]) -> Table:
    """Scores, module by module."""
    shown = Table("module", "functions", "mutants", "killed", "%", box=None)
    for column in shown.columns[1:]:
        column.justify = "right"
    for module, r in results.items():
        percent = 100 * r["killed"] / max(1, r["mutants"])
        shown.add_row(module, str(len(r["functions"])), str(r["mutants"]), str(r["killed"]), f"{percent:.1f}")
    for folder in GOALS:
        shown.add_row(f"[bold]{folder}", "", "", "", f"[bold]{score(results, folder):.1f}")
    return shown


def describe() -> str:
    """The commit that is run."""
    git = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    return subprocess.run(git, cwd=ROOT, capture_output=True, text=True).stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__)
    parser.add_argument("command", nargs="?", choices=["run", "show"], default="run")
    parser.add_argument(
        "modules", nargs="*", metavar="MODULE", help="for example equations/edm.py; all, if none is named"
    )
    parser.add_argument("--fresh", action="store_true", help="run every mutant, also those killed before")
    parser.add_argument("--workers", type=int, help="processes at a time; as many as there are cores, if all is run")
    arguments = parser.parse_args()
    if unknown := sorted(set(arguments.modules) - set(scope())):
        parser.error(f"not in scope: {', '.join(unknown)}; in scope are {', '.join(scope())}")
    console, modules = Console(), arguments.modules or scope()
    if arguments.command == "run":
        workers = arguments.workers or (1 if arguments.modules else os.cpu_count() or 1)
        run(modules, workers, arguments.fresh, console)
    results = collect(modules)
    if arguments.command == "show":
        for module, result in results.items():
            for s in result["survivors"]:
                print(f"{s['outcome']}: {module} {s['function']}\n{s['change']}\n")  # as `survivors.yml` wants it
    console.print(table(results))
    if arguments.modules:
        return
    record = {"commit": describe(), "date": datetime.now(UTC).date().isoformat(), "modules": results}
    RESULTS.write_text(json.dumps(record, indent=1) + "\n")
    if bad := failures(results):
        console.print("\n".join(bad), markup=False)
        sys.exit(1)


if __name__ == "__main__":
    main()
