"""The thread of those who only look: how it begins, is woken, and ends."""

from __future__ import annotations

import logging
import threading

import pytest

from cbframe.ui.show import Ticker

LONG = 30.0
NEVER = 3600.0


class Calls:
    """Counts, and lets a test wait for a count."""

    def __init__(self, enough: int | None = None) -> None:
        self.count = 0
        self.changed = threading.Condition()
        self._enough = enough

    def __call__(self) -> bool:
        with self.changed:
            self.count += 1
            self.changed.notify_all()
            return self.count != self._enough

    def until(self, count: int) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: self.count >= count, LONG)


def test_it_calls_until_the_function_has_had_enough() -> None:
    calls = Calls(enough=3)
    ticker = Ticker(0.001, calls)
    assert not ticker.running
    ticker.start()
    ticker._thread.join(LONG)
    assert (calls.count, ticker.running) == (3, False)
    ticker.stop()


def test_it_waits_between_calls_and_can_be_woken() -> None:
    calls = Calls()
    ticker = Ticker(NEVER, calls)
    ticker.start()
    calls.until(1)
    ticker.wake()
    calls.until(2)
    ticker.stop()
    assert (calls.count, ticker.running) == (2, False)
    ticker.stop()


def test_it_can_be_stopped_before_it_starts() -> None:
    ticker = Ticker(NEVER, Calls())
    ticker.stop()
    assert not ticker.running


def test_it_can_be_stopped_from_within() -> None:
    calls = Calls()

    def call() -> bool:
        ticker.stop()
        return calls()

    ticker = Ticker(NEVER, call)
    ticker.start()
    ticker._thread.join(LONG)
    assert (calls.count, ticker.running) == (1, False)


def test_a_call_that_raises_is_the_last(caplog: pytest.LogCaptureFixture) -> None:
    def call() -> bool:
        raise RuntimeError("broken")

    ticker = Ticker(NEVER, call)
    with caplog.at_level(logging.ERROR):
        ticker.start()
        ticker._thread.join(LONG)
    assert "no longer updated" in caplog.text
    assert not ticker.running
