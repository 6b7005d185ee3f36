"""Threads for conversion: results and errors come back, and nothing is left."""

from __future__ import annotations

import selectors
import threading
from concurrent.futures import CancelledError
from functools import partial

import pytest

from cbframe.dcp import workers
from cbframe.dcp.transport import Waker
from cbframe.dcp.workers import Workers, at_once
from cbframe.errors import ConnectError


def test_results_and_errors_come_back() -> None:
    pool = Workers()
    assert pool.count >= 1
    waits = [pool.submit(lambda n=n: n * n) for n in range(20)]  # type: ignore[misc]
    failing = pool.submit(lambda: 1 // 0)
    assert [wait() for wait in waits] == [n * n for n in range(20)]
    with pytest.raises(ZeroDivisionError):
        failing()
    pool.close()
    pool.close()


def test_no_thread_before_the_first_work_and_none_after_the_end() -> None:
    before = set(threading.enumerate())
    pool = Workers()
    assert set(threading.enumerate()) == before
    pool.submit(int)()
    assert {thread.name for thread in set(threading.enumerate()) - before} == {"cbframe-convert_0"}
    pool.close()
    assert set(threading.enumerate()) == before


def test_what_has_not_begun_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_processors", lambda: 1)
    pool = Workers()
    begun, go = threading.Event(), threading.Event()
    done: list[int] = []

    def first() -> None:
        begun.set()
        assert go.wait(20)

    pool.submit(first)
    second = pool.submit(lambda: done.append(1))
    assert begun.wait(20)
    closing = threading.Thread(target=pool.close)
    closing.start()
    with pytest.raises(CancelledError):
        second()
    go.set()
    closing.join(20)
    assert done == []


def test_as_many_as_processors_but_few(monkeypatch: pytest.MonkeyPatch) -> None:
    for processors, count in ((1, 1), (3, 3), (64, 4)):
        monkeypatch.setattr(workers, "_processors", lambda n=processors: n)
        assert Workers().count == count


def test_at_once() -> None:
    """None waits for another; an error of ours is a result, too."""
    everybody = threading.Barrier(9)

    def work(number: int, waker: Waker) -> int:
        assert waker.fileno() >= 0
        everybody.wait(20)
        if number == 5:
            raise ConnectError("gone")
        return number

    before = set(threading.enumerate())
    outcomes = at_once([partial(work, number) for number in range(9)])
    assert isinstance(outcomes.pop(5), ConnectError)
    assert outcomes == [0, 1, 2, 3, 4, 6, 7, 8]
    assert set(threading.enumerate()) == before
    assert at_once([]) == []


def test_at_once_is_over_at_once() -> None:
    """As with Ctrl-C: what others wait for is of no interest any more, and no thread is left."""
    rung = []

    def wait(waker: Waker) -> None:
        selector = selectors.DefaultSelector()
        with selector:
            selector.register(waker.fileno(), selectors.EVENT_READ)
            rung.append(bool(selector.select(20)))

    def fail(_: Waker) -> None:
        raise LookupError("unforeseen")

    before = set(threading.enumerate())
    with pytest.raises(LookupError):
        at_once([fail, wait, wait])
    assert rung == [True, True]
    assert set(threading.enumerate()) == before
