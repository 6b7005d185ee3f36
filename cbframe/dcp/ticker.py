"""A thread that does something several times a second, for those who only look."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from cbframe.limits import OwnThread

_log = logging.getLogger("cbframe.ui")


class Ticker:
    """Calls a function again and again on a thread of its own, until the function has had enough."""

    def __init__(self, every: float, call: Callable[[], bool]) -> None:
        self._every = every
        self._call = call
        self._stopping = False
        self._bell = threading.Event()
        self._thread = OwnThread(self._run, "cbframe-ticker")

    @property
    def running(self) -> bool:
        """Whether there may be another call."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Begin, once; ResourceError if there is no thread."""
        self._thread.start()

    def wake(self) -> None:
        """Have the next call now; callable from any thread."""
        self._bell.set()

    def stop(self) -> None:
        """Have no more calls, and wait for one that runs; from within that call it does not wait."""
        self._stopping = True
        self._bell.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            while not self._stopping and self._call():
                self._bell.wait(self._every)
                self._bell.clear()
        except Exception:  # noqa: BLE001 - a picture that cannot be drawn is no reason to print, or to stop
            # Of another thread a notebook would print it into whichever cell ran last.
            _log.exception("what is shown of a stream is no longer updated")
