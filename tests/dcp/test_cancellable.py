"""Calls that cannot be interrupted: waiting for them can."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from cbframe.dcp.transport import Waker, run_cancellable
from cbframe.errors import ConnectError, ReadCancelledError


def run(work: Callable[[], object], waker: Waker, timeout: float | None = None) -> object:
    return run_cancellable(work, "cbframe-rest", waker, timeout, "it was asked")


def test_gives_the_result_and_raises_the_error(waker: Waker) -> None:
    assert run(lambda: threading.current_thread().name, waker) == "cbframe-rest"

    def fail() -> None:
        raise ConnectError("no way", node="a:1")

    with pytest.raises(ConnectError, match="no way"):
        run(fail, waker)
    assert run(lambda: 2, waker) == 2


@pytest.mark.parametrize("cancelled", [True, False])
def test_the_waiting_ends_and_the_late_outcome_is_thrown_away(waker: Waker, cancelled: bool) -> None:
    began, go_on = threading.Event(), threading.Event()
    workers: list[threading.Thread] = []

    def work() -> int:
        workers.append(threading.current_thread())
        began.set()
        assert go_on.wait(10)
        return 1

    def cancel() -> None:
        assert began.wait(10)
        waker.wake()

    if cancelled:
        canceller = threading.Thread(target=cancel)
        canceller.start()
        with pytest.raises(ReadCancelledError, match="cancelled while it was asked"):
            run(work, waker)
        canceller.join()
    else:
        with pytest.raises(TimeoutError):
            run(work, waker, 0.01)
        assert began.wait(10)
    assert workers[0].is_alive()
    go_on.set()
    workers[0].join(10)
    assert not workers[0].is_alive()


def test_a_cancelled_one_is_not_waited_for(waker: Waker) -> None:
    waker.wake()
    go_on = threading.Event()
    with pytest.raises(ReadCancelledError):
        run(lambda: go_on.wait(10), waker)
    go_on.set()
