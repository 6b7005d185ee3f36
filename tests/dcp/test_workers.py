"""Threads for conversion: results and errors come back, and nothing is left."""

from __future__ import annotations

import threading
from concurrent.futures import CancelledError

import pytest

from cbframe.dcp import workers
from cbframe.dcp.workers import Workers


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
