"""Stand-ins for engines that the benchmark's processes open; alone here, so that a process starts soon."""

import os
import signal
import time
from collections.abc import Callable
from functools import partial


def nothing() -> None:
    """A call that takes no time."""


def opened() -> tuple[str, Callable[[], object]]:
    return "an engine", nothing


def slow(seconds: float) -> tuple[str, Callable[[], object]]:
    return "a slow engine", partial(time.sleep, seconds)


def broken() -> tuple[str, Callable[[], object]]:
    raise RuntimeError("no such kernel")


def killed() -> tuple[str, Callable[[], object]]:
    os.kill(os.getpid(), signal.SIGKILL)
    return "not reached", nothing


def breaks_later() -> tuple[str, Callable[[], object]]:
    left = iter([None])
    return "an engine that ends", partial(next, left)


def holds(mib: int) -> tuple[str, Callable[[], object]]:
    held = bytearray(mib * 2**20)
    held[:: 2**10] = bytes(1) * len(held[:: 2**10])  # touched, so that it is really there
    return "a large engine", lambda: len(held)
