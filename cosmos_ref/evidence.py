"""What holds an equation: its laws, its impostors, and how the tests of both last ended.

Laws and impostors are read from the text of the tests, so that nothing needs to be imported to list them; an installed
package carries no tests and says so.
"""

import ast
import importlib.util
import inspect
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import cosmos_ref.equations  # fills the register
from cosmos_ref.errors import UserError
from cosmos_ref.traceability import EQUATIONS

CHECKOUT = Path(cosmos_ref.__file__).parent.parent
IMPOSTORS_ARE_REJECTED = "tests/equations/test_impostors.py::test_no_impostor_passes"
WORST = ["passed", "skipped", "not run", "failed"]
NAMES = (
    {"edms": "EDM's", "nvidias": "NVIDIA's", "pytorch": "PyTorch", "pytorchs": "PyTorch's"}
    | {name: name.upper() for name in ("edm", "ema", "ntk", "ode", "psnr", "rms", "t5")}
    | {name: name.title() for name in ("cosmos", "euler", "fourier", "gaussian", "haar", "heun", "karras", "wiener")}
)
"""Words that a test's name cannot write as they are written."""


@dataclass(frozen=True)
class Proof:
    """A law that holds for an equation, or an impostor that its laws reject."""

    equation: str
    name: str
    kind: str
    """What the test says it is evidence by: `law`, `point`, ...; or `impostor`."""
    claim: str
    """The law as a sentence, or the impostor's story."""
    test: str
    """Id of the test in pytest, without the parameters of a law."""
    file: str
    """Where it is written, as a path in the checkout."""


@dataclass(frozen=True)
class Result:
    """How the proofs of an equation ended when they were last run."""

    outcomes: dict[Proof, str]
    """Of each proof: `passed`, `failed`, `skipped` or `not run`."""
    commit: str
    date: str

    @property
    def verdict(self) -> str:
        """One of `holds`, `fails`, `partly run` and `not run`."""
        found = set(self.outcomes.values())
        if "failed" in found:
            return "fails"
        if "passed" not in found:
            return "not run"
        return "partly run" if "not run" in found else "holds"

    @property
    def when(self) -> str:
        """The time of the run, to the minute."""
        return f"{self.date[:16].replace('T', ' ')} UTC" if self.date else ""

    @property
    def at(self) -> str:
        """The commit, in words."""
        commit, _, dirty = self.commit.partition("-")
        return f"{commit}, changed" if dirty else commit


def laws(proofs: list[Proof]) -> list[Proof]:
    """The proofs that are laws, values or exact solutions."""
    return [proof for proof in proofs if proof.kind != "impostor"]


def impostors(proofs: list[Proof]) -> list[Proof]:
    """The proofs that are impostors."""
    return [proof for proof in proofs if proof.kind == "impostor"]


def has_tests(checkout: Path = CHECKOUT) -> bool:
    """Whether the tests are there: in a checkout they are, in an installed package not."""
    return (checkout / "tests" / "impostors.py").is_file()


@cache
def read_proofs(checkout: Path = CHECKOUT) -> dict[str, list[Proof]]:
    """Laws and impostors of every equation, in the order of the tests; none where there are no tests."""
    found: dict[str, list[Proof]] = {id: [] for id in EQUATIONS}
    for path in sorted((checkout / "tests").rglob("test_*.py")) if has_tests(checkout) else []:
        text = path.read_text(encoding="utf-8")
        if "verifies(" in text or "@impostor(" in text:
            for proof in proofs_in(text, path.relative_to(checkout).as_posix()):
                found.setdefault(proof.equation, []).append(proof)
    return found


def proofs_in(text: str, file: str) -> Iterator[Proof]:
    """Laws and impostors in the text of one file of tests."""
    functions = [node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)]
    for function in functions:
        for mark in function.decorator_list:
            if not isinstance(mark, ast.Call):
                continue
            called = mark.func.attr if isinstance(mark.func, ast.Attribute) else getattr(mark.func, "id", "")
            if called == "verifies":
                kind = next((ast.literal_eval(k.value) for k in mark.keywords if k.arg == "by"), "law")
                for id in map(ast.literal_eval, mark.args):
                    yield Proof(id, function.name, kind, sentence(function.name), f"{file}::{function.name}", file)
            elif called == "impostor":
                id, story = map(ast.literal_eval, mark.args)
                test = f"{IMPOSTORS_ARE_REJECTED}[{id}-{function.name}]"
                yield Proof(id, function.name, "impostor", story, test, file)


def sentence(name: str) -> str:
    """What a test claims: its name in words, in which the names of functions and arguments stay whole."""
    words, said = name.removeprefix("test_").split("_"), []
    while words:
        whole = next((n for n in range(len(words), 1, -1) if "_".join(words[:n]) in identifiers()), 1)
        said.append("_".join(words[:whole]) if whole > 1 else NAMES.get(words[0], words[0]))
        words = words[whole:]
    return " ".join(said)


@cache
def identifiers() -> set[str]:
    """Names of the equations' functions and of their arguments."""
    functions = [equation.function for equation in EQUATIONS.values()]
    return {f.__name__ for f in functions} | {name for f in functions for name in inspect.signature(f).parameters}


def read_record(checkout: Path = CHECKOUT) -> dict[str, dict]:
    """Outcomes of the last tests of each equation in a checkout, with commit and date; empty where there was no run."""
    report = checkout / "reports" / "equations.json"
    record = json.loads(report.read_text(encoding="utf-8"))["equations"] if report.exists() else {}
    return {id: entry for id, entry in record.items() if "tests" in entry}


def result(id: str, record: dict[str, dict], checkout: Path = CHECKOUT) -> Result:
    """How the proofs of an equation ended when they were last run."""
    entry = record.get(id, {"tests": {}, "commit": "", "date": ""})

    def outcome(proof: Proof) -> str:
        runs = [o for test, o in entry["tests"].items() if test == proof.test or test.startswith(proof.test + "[")]
        return max(runs, key=WORST.index, default="not run")

    proofs = read_proofs(checkout).get(id, [])
    return Result({proof: outcome(proof) for proof in proofs}, entry["commit"], entry["date"])


def run_tests(id: str | None, checkout: Path = CHECKOUT) -> bool:
    """Run what verifies an equation, or all of them, and say whether all of it held.

    Raises:
        UserError: if the tests, or what runs them, are not there.
        RuntimeError: if the tests could not be run.
    """
    if not has_tests(checkout):
        raise UserError("--test needs the tests, which an installed package does not carry: run it in a checkout")
    missing = [name for name in ("pytest", "hypothesis") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"--test needs {' and '.join(missing)}: install them by pip install -e '.[dev]'")
    proofs = [proof for known, proofs in read_proofs(checkout).items() if id in (None, known) for proof in proofs]
    if not proofs:
        raise RuntimeError(f"no test verifies {id}")
    files = sorted({proof.test.partition("::")[0] for proof in proofs})
    command = [sys.executable, "-m", "pytest", *files, "-q", "--no-header", "--tb=short", "-p", "no:cacheprovider"]
    command += ["-m", "verifies"] if id is None else ["--verifies", id]
    if id is None and importlib.util.find_spec("xdist") is not None:
        command += ["-n", "auto", "--maxprocesses", "8"]
    ended = subprocess.run(command, cwd=checkout, check=False).returncode
    if ended not in (0, 1):
        raise RuntimeError(f"pytest could not run the tests: it ended with exit code {ended}")
    return ended == 0
