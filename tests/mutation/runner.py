"""Runs the tests of a changed function, mutant after mutant.

A judge collects the tests once; each mutant is then a fork of it, in which one function has other code. Whoever
survives that is tried once more alone, in a process that imports the changed module as everyone would.
"""

import ast
import contextlib
import importlib.machinery
import os
import resource
import selectors
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from types import CodeType, FunctionType

import hypothesis
import pytest
from _pytest.runner import runtestprotocol

from tests.mutation.mutants import PACKAGE, ROOT, Mutant

SECONDS = 60
"""A mutant that takes longer has been noticed: the tests of one function take a few seconds."""
BYTES = 24 * 2**30
"""Address space of a mutant's process: one that asks for more has been noticed, too."""
CHUNK = 25
"""Mutants of one module that a judge takes: enough to make collecting worth it, few enough to share among cores."""

TESTS = {
    "blocks/attention.py": ["blocks/test_attention.py", "blocks/test_dit_block.py"],
    "blocks/causal_attention.py": ["blocks/test_causal_attention.py", "blocks/test_past.py"],
    "blocks/causal_conv.py": ["blocks/test_causal_conv.py", "blocks/test_past.py"],
    "blocks/modulation.py": ["blocks/test_dit_block.py"],
    "blocks/resnet.py": ["blocks/test_resnet.py", "blocks/test_past.py"],
    "model/denoiser.py": ["model/test_denoiser.py"],
}
"""Test files of modules outside of `equations`, where they are not just those of the module's own name."""


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
    waiting = [(judge, chunk) for chunk in reversed(chunks(mutants))]
    running: dict[int, tuple[int, list[Mutant], Callable]] = {}  # end of a pipe: process, mutants left, what it does
    selector = selectors.DefaultSelector()
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                work, chunk = waiting.pop()
                process, pipe = fork(work, chunk)
                running[pipe] = process, list(chunk), work
                selector.register(pipe, selectors.EVENT_READ)
            for event, _ in selector.select():
                process, left, work = running[event.fd]
                if message := os.read(event.fd, 1):
                    outcome = {b"k": "killed", b"s": "survived", b"t": "slow", b"u": "untested"}[message]
                    mutant = left.pop(0)
                    if outcome == "survived" and work is judge:
                        waiting.append((alone, [mutant]))
                    else:
                        yield mutant, outcome
                    continue
                selector.unregister(event.fd)
                os.close(event.fd)
                os.waitpid(process, 0)
                del running[event.fd]
                if work is judge:
                    waiting += [(alone, [mutant]) for mutant in left]
                else:
                    yield from ((mutant, "untested") for mutant in left)
    finally:
        for process, _, _ in running.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process, signal.SIGKILL)
            os.waitpid(process, 0)


def chunks(mutants: Iterable[Mutant]) -> list[list[Mutant]]:
    """Mutants of the same module, a few dozen at most together."""
    modules: dict[str, list[Mutant]] = {}
    for mutant in mutants:
        modules.setdefault(mutant.module, []).append(mutant)
    return [found[i : i + CHUNK] for found in modules.values() for i in range(0, len(found), CHUNK)]


def preload() -> None:
    """Import what every mutant needs and none changes."""
    import beartype  # noqa: F401
    import einops  # noqa: F401
    import jaxtyping  # noqa: F401
    import scipy.optimize  # noqa: F401
    import torch

    torch.set_num_threads(1)  # the only count that survives a fork


def fork(work: Callable, chunk: list[Mutant]) -> tuple[int, int]:
    """Let a process of its own do the work, silently; one letter a mutant comes out of the pipe."""
    out, into = os.pipe()
    if process := os.fork():
        os.close(into)
        return process, out
    try:
        os.setpgid(0, 0)
        silence = os.open(os.devnull, os.O_RDWR)
        for descriptor in range(3):
            os.dup2(silence, descriptor)
        os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
        os.chdir(ROOT)
        sys.path.insert(0, str(ROOT))
        resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        work(chunk, lambda letter: os.write(into, letter))
    finally:
        os._exit(0)


def judge(chunk: list[Mutant], tell: Callable[[bytes], object]) -> None:
    """Collect the tests of a module; then fork for every mutant, put its code in place and run its tests."""

    def loop(session) -> bool:
        for mutant in chunk:
            tell(letter(partial(fails, select(session.items, mutant), mutant)))
        return True

    pytest_main({path for mutant in chunk for path in tests_of(mutant)[0]}, loop)


def alone(chunk: list[Mutant], tell: Callable[[bytes], object]) -> None:
    """Import the changed module and run its tests."""
    [mutant] = chunk
    put_in_place(mutant)
    told = []

    def loop(session) -> bool:
        told.append(tell(letter(partial(fails, select(session.items, mutant)))))
        return True

    code = pytest_main(tests_of(mutant)[0], loop)
    if not told:
        tell(b"k" if code == pytest.ExitCode.INTERRUPTED else b"u")  # the module cannot be imported; pytest has no test


def letter(outcome: Callable[[], bytes]) -> bytes:
    """What a fork of this process answers: an outcome, `t` where it takes too long, `k` where it brings itself down."""
    if not (process := os.fork()):
        code = b"u"
        try:
            signal.alarm(SECONDS)
            code = outcome()
        finally:
            os._exit(code[0])
    _, status = os.waitpid(process, 0)
    if os.WIFSIGNALED(status):
        return b"t" if os.WTERMSIG(status) == signal.SIGALRM else b"k"
    return bytes([os.WEXITSTATUS(status)])


def pytest_main(files: Iterable[Path], loop: Callable) -> int:
    """Collect tests and hand them to `loop` instead of running them; nothing is recorded."""

    class Instead:
        @pytest.hookimpl(tryfirst=True)
        def pytest_runtestloop(self, session):
            return loop(session) if not session.testsfailed else True

    options = ["-q", "-p", "no:cacheprovider", "-p", "no:equations-recorder"]
    return pytest.main([*options, *map(str, sorted(files))], plugins=[Instead()])


def select(items: list, mutant: Mutant) -> list:
    """The tests that judge a mutant, with hypothesis told not to shrink what it finds."""
    files, id = tests_of(mutant)
    chosen = [item for item in items if item.path in files]
    if id is not None:
        chosen = [item for item in chosen if any(id in mark.args for mark in item.iter_markers("verifies"))]
    phases = [hypothesis.Phase.explicit, hypothesis.Phase.generate]
    for item in chosen:
        test = getattr(item.obj, "__func__", item.obj)
        if usual := getattr(test, "_hypothesis_internal_use_settings", None):
            quick = hypothesis.settings(usual, phases=phases, report_multiple_bugs=False)
            test._hypothesis_internal_use_settings = quick
    return chosen


def fails(tests: list, mutant: Mutant | None = None) -> bytes:
    """Run tests, first putting a mutant's code in place, until one fails: `k` if one does, `s` if none."""
    if not tests:
        return b"u"
    if mutant and not replace(mutant):
        return b"s"
    reports = (report for test in tests for report in runtestprotocol(test, log=False, nextitem=None))
    return b"k" if any(report.failed for report in reports) else b"s"


def replace(mutant: Mutant) -> bool:
    """Give the function the mutant's code, wherever it has been imported to; say whether that is possible."""
    module = sys.modules["cosmos_ref." + mutant.module.removesuffix(".py").replace("/", ".")]
    code, function = compile(mutant.source, str(PACKAGE / mutant.module), "exec"), module
    for name in mutant.function.split("."):
        code = next(c for c in code.co_consts if isinstance(c, CodeType) and c.co_name == name)
        function = vars(function)[name]
    function = getattr(function, "fget", None) or getattr(function, "__func__", function)
    while wrapped := getattr(function, "__wrapped__", None):
        function = wrapped
    assert isinstance(function, FunctionType)
    if len(code.co_freevars) != len(function.__code__.co_freevars):
        return False
    function.__code__ = code
    return True


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
