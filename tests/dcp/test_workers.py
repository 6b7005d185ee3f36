"""Threads that wait for the network: results and errors come back, and nothing is left."""

from __future__ import annotations

import selectors
import threading
from functools import partial

import pytest

from cbframe.dcp.transport import Waker, at_once
from cbframe.errors import ConnectError


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
