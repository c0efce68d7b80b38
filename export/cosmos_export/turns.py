"""Seconds and memory of calls that take turns, each in a process of its own.

In every round each of them runs for a moment: what disturbs the machine disturbs all alike, so that ratios hold where
the seconds do not. One that fails, crashes or hangs takes no other with it.
"""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from importlib import import_module
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

from cosmos_export.errors import BundleError, EngineFailure

TURN = 0.1
"""Seconds that a turn lasts at least: short calls are made several times."""
PAUSE = 0.02
"""Seconds between turns, in which threads that wait by spinning fall asleep."""
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")

Run = Callable[[], object]
"""One call, waited for."""
Open = Callable[[], tuple[str, Run]]
"""Gives library and device, and a call. It is sent to a process: a module's function, perhaps with its arguments."""


@dataclass(frozen=True)
class Entry:
    """What is to be measured."""

    name: str
    open: Open
    library: str = "onnxruntime"
    """Imported before memory is counted."""
    sample: Open | None = None
    """A whole sampling instead of a call, where that can be."""


@dataclass
class Measured:
    """What was measured of an entry."""

    name: str
    engine: str = ""
    """Library, version and device."""
    first_seconds: float | None = None
    """To open it and make the first call."""
    turns: list[float] = field(default_factory=list)
    """Seconds a call in each turn: the median, where there were several."""
    memory_mib: float | None = None
    """The most that its process held, beyond its libraries."""
    process_mib: float | None = None
    """The same with them."""
    gpu_mib: float | None = None
    """What it took of the first GPU up to its first calls."""
    failure: str = ""
    """Why there is nothing more."""

    @property
    def seconds(self) -> float | None:
        """Median over the turns."""
        return None if self.failure or not self.turns else median(self.turns)


def measure(
    entries: Sequence[Entry],
    rounds: int,
    *,
    warm: int = 1,
    threads: int = 0,
    limit: float = 600,
    gpu: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> list[Measured]:
    """Open one after the other, then let them take turns.

    Args:
        entries: what is measured.
        rounds: turns of each.
        warm: turns of each before them, which do not count.
        threads: of PyTorch and numpy; 0 is as many as they like.
        limit: seconds that opening, or a turn, may take.
        gpu: whether to ask for the GPU's memory.
        say: is told how far it is.
    """
    with ExitStack() as stack:
        workers = []
        for entry in entries:
            say(f"{entry.name}: first call")
            workers.append(stack.enter_context(_Worker(entry, threads, limit, gpu)))
        started = time.perf_counter()
        for number in range(1, warm + rounds + 1):
            for worker in workers:
                worker.turn(counts=number > warm)
            left = (time.perf_counter() - started) / number * (warm + rounds - number)
            say(f"round {number}/{warm + rounds}, {left:.0f} s left")
        return [worker.found for worker in workers]


class _Worker:
    """A process that makes calls when it is told to."""

    def __init__(self, entry: Entry, threads: int, limit: float, gpu: bool):
        self.found = Measured(entry.name)
        self._limit = limit
        context = get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, entry))
        before = gpu_memory() if gpu else None
        with _threads(threads):
            self._process.start()
        theirs.close()
        self._take()
        if before is not None and (after := gpu_memory()) is not None:
            self.found.gpu_mib = after - before

    def __enter__(self) -> "_Worker":
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        self._pipe.close()
        if kind is None:  # it waits to be told, and so learns of the end
            self._process.join(10)
        self._process.terminate()
        self._process.join()

    def turn(self, counts: bool) -> None:
        """Let it run for a moment, if it can."""
        if self.found.failure:
            return
        time.sleep(PAUSE)
        with suppress(OSError):  # it died in between: the answer says how
            self._pipe.send(None)
        seconds = self._take()
        if counts and seconds is not None:
            self.found.turns.append(seconds)

    def _take(self) -> float | None:
        """Keep what it answers; the seconds of a turn."""
        try:
            told: dict[str, Any]
            told = self._pipe.recv() if self._pipe.poll(self._limit) else {"failure": f"not done in {self._limit:g} s"}
        except (EOFError, OSError):
            self._process.join(10)
            code = self._process.exitcode
            told = {
                "failure": "its process was killed, as it is when memory is short"
                if code == -signal.SIGKILL
                else f"its process ended with {code}"
            }
        seconds = told.pop("turn", None)
        for name, value in told.items():
            setattr(self.found, name, value)
        if self.found.failure:
            self._process.terminate()
        return seconds


def _serve(pipe: Connection, entry: Entry) -> None:
    """The process: open, then a turn for every message, until there is nobody to tell."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the one that asks is interrupted, and ends this
    try:
        with suppress(ImportError):
            import_module(entry.library)
        before, started = _held().get("VmRSS"), time.perf_counter()
        engine, run = entry.open()
        run()
        told: dict[str, Any] = {"engine": engine, "first_seconds": time.perf_counter() - started}
        while True:
            peak = _held().get("VmHWM")
            if before is not None and peak is not None:
                told |= {"process_mib": peak, "memory_mib": peak - before}
            pipe.send(told)
            pipe.recv()
            told = {"turn": _turn(run)}
    except (EOFError, BrokenPipeError):
        pass
    except Exception as error:  # engines have many kinds, and each is a result
        with suppress(OSError):
            pipe.send({"failure": said(error)})


def _turn(run: Run) -> float:
    times, begun = [], time.perf_counter()
    while not times or time.perf_counter() - begun < TURN:
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return median(times)


def said(error: Exception) -> str:
    """An error on one line, not a long one."""
    ours = isinstance(error, BundleError | EngineFailure)  # words for users already
    text = " ".join((str(error) if ours else f"{type(error).__name__}: {error}").split())
    return text if len(text) < 700 else f"{text[:450]} ... {text[-250:]}"


def _held() -> Mapping[str, float]:
    """MiB of this process, where the system tells (Linux). Not by getrusage: there a child begins with its parent's."""
    with suppress(OSError):
        lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
        return {words[0][:-1]: int(words[1]) / 2**10 for words in lines if words[0].startswith("Vm")}
    return {}


def gpu_memory() -> float | None:
    """MiB of the first GPU that are in use, where NVIDIA's tool tells."""
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", f"--id={first}"]
    try:
        return float(subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout)
    except (OSError, ValueError, subprocess.SubprocessError):
        return None


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Processes that are started here have so many threads."""
    before = {name: os.environ.get(name) for name in THREADS}
    os.environ |= dict.fromkeys(THREADS, str(count)) if count else {}
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
