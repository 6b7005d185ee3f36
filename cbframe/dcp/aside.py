"""Work that cannot be interrupted, done beside a caller who can leave it.

A request over HTTP, and the look-up of a name before it, end when they want to: neither Ctrl-C nor
another thread can stop them. So they run on a thread of their own, and who waits for them can be
asked to stop waiting. What was left ends at its own timeout, and its outcome is thrown away.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, InvalidStateError
from typing import Any, TypeVar

from cbframe.errors import ReadCancelledError
from cbframe.limits import OwnThread
from cbframe.system import waited

T = TypeVar("T")


class Aside:
    """Runs one thing at a time on a thread of its own."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._outcome: Future[Any] = Future()
        self._cancelled = False

    def run(self, work: Callable[[], T]) -> T:
        """What `work` returns or raises."""
        with self._lock:
            outcome: Future[T] = Future()
            self._outcome = outcome
            settled = threading.Event()
            outcome.add_done_callback(lambda _: settled.set())
            if self._cancelled:
                outcome.cancel()
            else:
                thread = OwnThread(_settle, "cbframe-rest", (outcome, work))
                thread.start()
        try:
            waited(settled.wait, None)
            return outcome.result()
        except CancelledError:
            raise ReadCancelledError("cancelled while the cluster manager was asked") from None
        finally:
            if not outcome.cancelled():
                thread.join()  # it has nothing more to do

    def cancel(self) -> None:
        """End what runs, and whatever would run; callable from any thread."""
        with self._lock:
            self._cancelled = True
            self._outcome.cancel()


def _settle(outcome: Future[T], work: Callable[[], T]) -> None:
    # A cancelled outcome takes neither a result nor an error: nobody waits for them.
    with contextlib.suppress(InvalidStateError):
        try:
            result = work()
        except BaseException as exc:  # noqa: BLE001 - raised again where it is waited for
            outcome.set_exception(exc)
        else:
            outcome.set_result(result)
