"""Reading ahead changes when something is read, and nothing else."""

import threading
import time

import pytest

from cosmos_ref.training.ahead import read_ahead


@pytest.mark.parametrize("count", [1, 3, 100])
def test_the_items_are_the_same_in_the_same_order(count):
    with read_ahead(range(20), count) as items:
        assert list(items) == list(range(20))


def test_no_more_is_read_than_was_asked_for():
    read = []

    def source():
        for i in range(100):
            read.append(i)
            yield i

    with read_ahead(source(), 3) as items:
        assert next(items) == 0
        time.sleep(0.2)
        assert len(read) <= 1 + 3 + 1  # taken, waiting, and one in the hand


def test_items_are_read_while_the_reader_is_busy():
    second = threading.Event()

    def source():
        yield 1
        second.set()
        yield 2

    with read_ahead(source(), 1) as items:
        assert next(items) == 1
        assert second.wait(5)  # nobody has asked for it yet


def test_an_error_comes_where_its_item_would_have_been():
    def source():
        yield 1
        yield 2
        raise OSError("the disk is gone")

    with read_ahead(source(), 10) as items:
        assert [next(items), next(items)] == [1, 2]
        with pytest.raises(OSError, match="the disk is gone"):
            next(items)


def test_who_stops_early_leaves_no_thread_behind():
    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt), read_ahead(iter(int, 1), 2) as items:
        next(items)
        raise KeyboardInterrupt
    assert threading.active_count() == before
