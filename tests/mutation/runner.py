"""Runs the tests of a changed function, mutant after mutant, each in a fork that finds the heavy libraries loaded."""

import ast
import contextlib
import importlib.machinery
import os
import resource
import signal
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from tests.mutation.mutants import PACKAGE, ROOT, Mutant

SECONDS = 60
"""A mutant that takes longer has been noticed: the tests of one function take a few seconds."""
BYTES = 24 * 2**30
"""Address space of a mutant's process: one that asks for more has been noticed, too."""

TESTS = {
    "blocks/attention.py": ["blocks/test_attention.py", "blocks/test_dit_block.py"],
    "blocks/causal_attention.py": ["blocks/test_causal_attention.py", "blocks/test_past.py"],
    "blocks/causal_conv.py": ["blocks/test_causal_conv.py", "blocks/test_past.py"],
    "blocks/modulation.py": ["blocks/test_dit_block.py"],
    "blocks/resnet.py": ["blocks/test_resnet.py", "blocks/test_past.py"],
    "model/denoiser.py": ["model/test_denoiser.py"],
}
"""Test files of modules outside of `equations`, where they are not just those of the module's own name."""


def preload() -> None:
    """Import what every mutant needs and none changes."""
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    import beartype  # noqa: F401
    import einops  # noqa: F401
    import hypothesis.extra.numpy
    import hypothesis.strategies  # noqa: F401
    import jaxtyping  # noqa: F401
    import pytest  # noqa: F401
    import scipy.optimize  # noqa: F401
    import torch

    torch.set_num_threads(1)  # the only count that survives a fork


def tests_of(mutant: Mutant) -> tuple[list[Path], str | None]:
    """Test files to run for a mutant and, if its function is an equation, the id that tests must verify."""
    folder, _, name = mutant.module.partition("/")
    if folder != "equations":
        files = TESTS.get(mutant.module, [f"{folder}/test_{name}"])
        return [ROOT / "tests" / file for file in files], None
    own = ROOT / "tests" / "equations" / f"test_{name}"
    id = equation_id(PACKAGE / mutant.module, mutant.function)
    if id is None:
        return [own], None
    files = [path for path in sorted(own.parent.glob("test_*.py")) if f'"{id}"' in path.read_text()]
    return [path for path in files if path.name != "test_impostors.py"], id


def equation_id(path: Path, function: str) -> str | None:
    """The id under which a function is registered, if it is."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef) and node.name == function:
            for decorator in node.decorator_list:
                if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "equation":
                    return ast.literal_eval(decorator.args[0])
    return None


def run_all(mutants: Iterable[Mutant], workers: int) -> Iterator[tuple[Mutant, str]]:
    """Every mutant with its outcome, as they end: `killed`, `survived`, `slow`, or `untested` where no test ran."""
    preload()
    waiting, running = list(reversed(list(mutants))), {}
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                mutant = waiting.pop()
                running[start(mutant)] = (mutant, time.monotonic())
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid in running:
                mutant, _ = running.pop(pid)
                yield mutant, outcome(status)
                continue
            for pid, (_, since) in running.items():
                if time.monotonic() - since > SECONDS:
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.005)
    finally:
        for pid in running:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def outcome(status: int) -> str:
    """What the end of a mutant's process says. pytest: 0 all passed, 1 some failed, 5 none ran."""
    if os.WIFSIGNALED(status):
        return "slow" if os.WTERMSIG(status) == signal.SIGKILL else "killed"
    return {0: "survived", 5: "untested"}.get(os.WEXITSTATUS(status), "killed")


def start(mutant: Mutant) -> int:
    """Fork, and run the mutant's tests in the child."""
    files, id = tests_of(mutant)
    if pid := os.fork():
        return pid
    code = 70
    try:
        silence = os.open(os.devnull, os.O_RDWR)
        for descriptor in range(3):
            os.dup2(silence, descriptor)
        resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        put_in_place(mutant)
        code = run_tests(files, id)
    finally:
        os._exit(code)


def put_in_place(mutant: Mutant) -> None:
    """Whoever imports the module from now on gets the mutant."""
    target, loader = str(PACKAGE / mutant.module), importlib.machinery.SourceFileLoader
    read, stats = loader.get_data, loader.path_stats

    def get_data(self, path):
        return mutant.source.encode() if os.path.abspath(path) == target else read(self, path)

    def path_stats(self, path):
        if os.path.abspath(path) == target:
            raise OSError("the compiled original is not the mutant")
        return stats(self, path)

    loader.get_data, loader.path_stats = get_data, path_stats


def run_tests(files: list[Path], id: str | None) -> int:
    """Run test files until the first failure, in this process; with an id, only what verifies it."""
    import pytest

    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    options = ["-x", "-q", "-p", "no:cacheprovider", "--no-header", "--tb=no"]
    return int(pytest.main([*options, *map(str, files)], plugins=[Only(id)]))


class Only:
    """Leaves tests of other equations out, shrinks no counterexample and leaves no record."""

    def __init__(self, id: str | None):
        self.id = id

    def pytest_collection_modifyitems(self, config, items):
        import hypothesis

        phases = [hypothesis.Phase.explicit, hypothesis.Phase.generate]
        for item in items:
            test = getattr(item.obj, "__func__", item.obj)
            if hasattr(test, "_hypothesis_internal_use_settings"):
                usual = test._hypothesis_internal_use_settings
                test._hypothesis_internal_use_settings = hypothesis.settings(
                    usual, phases=phases, report_multiple_bugs=False
                )
        if self.id is not None:
            items[:] = [item for item in items if any(self.id in mark.args for mark in item.iter_markers("verifies"))]
        for plugin in list(config.pluginmanager.get_plugins()):
            if type(plugin).__name__ == "Recorder":
                config.pluginmanager.unregister(plugin)
