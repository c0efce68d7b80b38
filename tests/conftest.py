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


def pytest_collection_modifyitems(items):
    for item in items:
        for mark in item.iter_markers("verifies"):
            item.user_properties += [("verifies", id) for id in mark.args]


class Recorder:
    """Collects the worst outcome of every test, equation by equation, and writes it when the run ends."""

    def __init__(self):
        self.outcomes: dict[str, dict[str, str]] = {}

    def pytest_runtest_logreport(self, report):
        for name, id in report.user_properties:
            if name == "verifies":
                tests = self.outcomes.setdefault(id, {})
                tests[report.nodeid] = max(tests.get(report.nodeid, "passed"), report.outcome, key=RANK.index)

    def pytest_sessionfinish(self):
        git = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        if not self.outcomes or git.returncode:
            return
        commit = git.stdout.strip()
        earlier = json.loads(REPORT.read_text()) if REPORT.exists() else {}
        merged = earlier["equations"] if earlier.get("commit") == commit else {}
        for id, tests in self.outcomes.items():
            merged[id] = merged.get(id, {}) | tests
        REPORT.parent.mkdir(exist_ok=True)
        record = {
            "commit": commit,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "equations": merged,
        }
        beside = REPORT.with_suffix(f".{os.getpid()}.partial")  # runs may overlap, and readers come at any time
        beside.write_text(json.dumps(record, indent=1, sort_keys=True))
        os.replace(beside, REPORT)


def pytest_configure(config):
    if not hasattr(config, "workerinput"):  # under xdist only the controller sees every report
        config.pluginmanager.register(Recorder())


@pytest.fixture(autouse=True)
def _one_thread_each():
    """A test that raised the number of threads does not change the next one."""
    yield
    torch.set_num_threads(1)
