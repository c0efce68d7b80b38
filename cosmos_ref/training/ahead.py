"""Reading ahead: while the network is busy, a thread gets the next clips."""

import queue
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")


@contextmanager
def read_ahead(items: Iterable[T], count: int) -> Iterator[Iterator[T]]:
    """Within it, an iterator over the same items, which a thread takes from `items` up to `count` at a time ahead.

    An error in the thread is raised where its item would have been.
    """
    waiting: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(maxsize=count)
    stopped = threading.Event()

    def hand_over(entry: tuple[T | None, BaseException | None]) -> None:
        while not stopped.is_set():
            try:
                return waiting.put(entry, timeout=0.1)
            except queue.Full:
                pass

    def read() -> None:
        try:
            for item in items:
                hand_over((item, None))
                if stopped.is_set():
                    return
            hand_over((None, StopIteration()))
        except BaseException as error:
            hand_over((None, error))

    def taken() -> Iterator[T]:
        while True:
            item, error = waiting.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item  # type: ignore[misc]

    thread = threading.Thread(target=read, name="reading ahead", daemon=True)
    thread.start()
    try:
        yield taken()
    finally:
        stopped.set()
        thread.join()
