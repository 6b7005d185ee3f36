"""A few threads for work that lets go of the interpreter's lock, and processes for work that does not."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any, TypeVar

from cbframe.errors import CbframeError

S = TypeVar("S")
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


def in_processes(work: Callable[[S], T], items: Sequence[S], count: int) -> list[T]:
    """What `work` returns for each item, done by `count` processes of this machine.

    Whatever goes wrong, and if Ctrl-C is pressed, all of them are ended before this returns.

    Parameters
    ----------
    work
        Importable, as the items have to be picklable: the processes are fresh ones.

    Raises
    ------
    CbframeError
        A process was ended from outside. What `work` raises is raised, too.
    """
    pool = ProcessPoolExecutor(min(count, len(items)) or 1, mp_context=get_context("spawn"))
    try:
        futures = [pool.submit(work, item) for item in items]
        results = [future.result() for future in futures]
    except BaseException as exc:
        _end(pool)
        if isinstance(exc, BrokenProcessPool):
            raise CbframeError(
                "a worker process ended before its work was done",
                hint="is the memory of the machine used up? And a script that starts processes has to do so "
                'below: if __name__ == "__main__":',
            ) from exc
        raise
    pool.shutdown()
    return results


def _end(pool: ProcessPoolExecutor) -> None:
    # There is no public way before Python 3.14; to wait until the others have done their work may take hours.
    processes: dict[int, Any] = getattr(pool, "_processes", None) or {}
    for process in list(processes.values()):
        process.terminate()
    pool.shutdown(cancel_futures=True)


def _processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
