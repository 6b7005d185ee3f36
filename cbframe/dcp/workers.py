"""A few threads for work that lets go of the interpreter's lock."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

_MOST = 4
"""Of what conversion costs a part needs the interpreter's lock: more threads only wait for each other."""


class Workers:
    """Runs functions on other threads, which are started with the first and end with :meth:`close`.

    Attributes
    ----------
    count
        How many run at a time: as many as there are processors for this process, four at most.
    """

    def __init__(self) -> None:
        self.count = min(_MOST, _processors())
        self._pool: ThreadPoolExecutor | None = None

    def submit(self, work: Callable[[], T]) -> Callable[[], T]:
        """Begin with some work; what is returned waits for its end, and returns or raises what it does."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self.count, thread_name_prefix="cbframe-convert")
        future: Future[T] = self._pool.submit(work)
        return future.result

    def close(self) -> None:
        """End the threads; what has not begun is dropped. Allowed more than once."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None


def _processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
