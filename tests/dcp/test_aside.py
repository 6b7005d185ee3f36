"""Waiting can be cancelled; what is waited for cannot."""

from __future__ import annotations

import threading

import pytest

from cbframe.dcp.threads import Aside
from cbframe.errors import ConnectError, ReadCancelledError


def test_gives_the_result_and_raises_the_error() -> None:
    aside = Aside()
    assert aside.run(lambda: threading.current_thread().name) == "cbframe-rest"

    def fail() -> None:
        raise ConnectError("no way", node="a:1")

    with pytest.raises(ConnectError, match="no way"):
        aside.run(fail)
    assert aside.run(lambda: 2) == 2


def test_cancel_ends_the_waiting_and_throws_the_late_outcome_away() -> None:
    aside = Aside()
    began, go_on = threading.Event(), threading.Event()
    workers: list[threading.Thread] = []

    def work() -> int:
        workers.append(threading.current_thread())
        began.set()
        assert go_on.wait(10)
        return 1

    def cancel() -> None:
        assert began.wait(10)
        aside.cancel()

    canceller = threading.Thread(target=cancel)
    canceller.start()
    with pytest.raises(ReadCancelledError):
        aside.run(work)
    assert workers[0].is_alive()
    go_on.set()
    workers[0].join(10)
    assert not workers[0].is_alive()
    canceller.join()


def test_nothing_runs_after_cancel() -> None:
    aside = Aside()
    aside.cancel()
    ran: list[int] = []
    with pytest.raises(ReadCancelledError):
        aside.run(lambda: ran.append(1))
    assert not ran
