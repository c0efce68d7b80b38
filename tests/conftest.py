"""Checks that only the test runner switches on, and the record of which equation every test verified."""

import json
import os
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import hypothesis
import pytest
import torch
from jaxtyping import install_import_hook

# Shapes in the signatures of blocks and model are checked at every call made by a test.
install_import_hook(["cosmos_ref.blocks", "cosmos_ref.model"], "beartype.beartype")

PHASES = [hypothesis.Phase.explicit, hypothesis.Phase.generate, hypothesis.Phase.shrink]  # explaining takes minutes
hypothesis.settings.register_profile(
    "suite", deadline=None, derandomize=True, max_examples=40, database=None, phases=PHASES
)
hypothesis.settings.load_profile("suite")
torch.set_num_threads(1)

ROOT = Path(__file__).parent.parent
REPORT = ROOT / "reports" / "equations.json"
RANK = ["passed", "skipped", "failed"]


def pytest_addoption(parser):
    parser.addoption("--verifies", metavar="ID", help="run only the tests that are evidence for this equation")


def pytest_collection_modifyitems(config, items):
    for item in items:
        for mark in item.iter_markers("verifies"):
            item.user_properties += [("verifies", id) for id in mark.args]
    if wanted := config.getoption("--verifies"):
        others = [item for item in items if ("verifies", wanted) not in item.user_properties]
        items[:] = [item for item in items if ("verifies", wanted) in item.user_properties]
        config.hook.pytest_deselected(items=others)


class Recorder:
    """Collects the worst outcome of every test, equation by equation, and writes it when the run ends.

    Each equation's outcomes stand with their own commit and date, so that a run of a few tests leaves the results of
    the other equations as they are.
    """

    def __init__(self):
        self.outcomes: dict[str, dict[str, str]] = {}
        self.commit = commit()  # of the code that is about to be loaded, whatever is committed while it runs

    def pytest_runtest_logreport(self, report):
        for name, id in report.user_properties:
            if name == "verifies":
                tests = self.outcomes.setdefault(id, {})
                tests[report.nodeid] = max(tests.get(report.nodeid, "passed"), report.outcome, key=RANK.index)

    def pytest_sessionfinish(self):
        if not self.outcomes:
            return
        record = json.loads(REPORT.read_text()) if REPORT.exists() else {}
        equations = {id: entry for id, entry in record.get("equations", {}).items() if "tests" in entry}
        date = datetime.now(UTC).isoformat(timespec="seconds")
        for id, tests in self.outcomes.items():
            earlier = equations.get(id, {})
            if earlier.get("commit") == self.commit:
                tests = earlier["tests"] | tests
            equations[id] = {"commit": self.commit, "date": date, "tests": tests}
        REPORT.parent.mkdir(exist_ok=True)
        beside = REPORT.with_suffix(f".{os.getpid()}.partial")  # runs may overlap, and readers come at any time
        beside.write_text(json.dumps({"equations": equations}, indent=1, sort_keys=True))
        os.replace(beside, REPORT)


def commit() -> str:
    """The checkout's commit, marked where package or tests have changed since; `unknown` without git."""
    try:
        head = git("rev-parse", "--short=12", "HEAD").strip()
        return head + ("-dirty" if git("status", "--porcelain", "--", "cosmos_ref", "tests") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def pytest_configure(config):
    if not hasattr(config, "workerinput"):  # under xdist only the controller sees every report
        config.pluginmanager.register(Recorder(), "equations-recorder")  # -p no:equations-recorder leaves no record


@pytest.fixture(autouse=True)
def _one_thread_each():
    """A test that raised the number of threads does not change the next one."""
    yield
    torch.set_num_threads(1)
