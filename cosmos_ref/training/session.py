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
        probe = out / f".writable.{threading.get_native_id()}"
        probe.touch()
        probe.unlink()
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
    """Within it Ctrl-C only sets a flag, so that a step and a checkpoint are finished; the second one stops at once."""
    if threading.current_thread() is not threading.main_thread():  # signals reach the main thread only
        yield lambda: False
        return
    before = signal.getsignal(signal.SIGINT)
    caught = False

    def handle(*_: Any) -> None:
        nonlocal caught
        caught = True
        signal.signal(signal.SIGINT, before)
        if not quiet:
            say("finishing this step; press Ctrl-C again to stop at once")

    signal.signal(signal.SIGINT, handle)
    try:
        yield lambda: caught
    finally:
        signal.signal(signal.SIGINT, before)
