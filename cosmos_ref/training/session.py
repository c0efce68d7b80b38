"""Around the loop of every training: a folder to write into, sums in a fixed order, Ctrl-C that loses nothing."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from cosmos_ref.errors import UserError
from cosmos_ref.training.run import say


def check_writable(out: Path) -> None:
    """Make the run folder, and see that it can be written into.

    Raises:
        UserError: it cannot.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / f".writable.{threading.get_native_id()}"  # on several machines there may be two of that name
        probe.touch()
        probe.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"cannot write into {out} ({error.strerror}): give another --out") from error


@contextmanager
def deterministic(device: torch.device) -> Iterator[None]:
    """On the CPU, sums that run in parallel are added in a fixed order."""
    before = torch.are_deterministic_algorithms_enabled()
    if device.type == "cpu":
        torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


@contextmanager
def interruptible(quiet: bool) -> Iterator[Callable[[], bool]]:
    """Within it Ctrl-C, or the SIGTERM of a cluster, only sets a flag: a step and a checkpoint are finished.

    The second one stops at once.
    """
    if threading.current_thread() is not threading.main_thread():  # signals reach the main thread only
        yield lambda: False
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    caught = False

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def handle(*_: Any) -> None:
        nonlocal caught
        caught = True
        restore()
        if not quiet:
            say("finishing this step; press Ctrl-C again to stop at once")

    for number in before:
        signal.signal(number, handle)
    try:
        yield lambda: caught
    finally:
        restore()
