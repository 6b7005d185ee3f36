"""Queues from threads to one consumer, threads that wait for the network, and processes for work.

The consumer of a read or a stream waits at a :class:`Handover` or :class:`MergingHandover`, and nowhere else.
Neither blocks a thread that puts something in: flow control is the brake, not the queue.
"""

from __future__ import annotations

import logging
import pickle
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Generic, TypeVar, cast

from cbframe.dcp.transport import Waker
from cbframe.errors import CbframeError
from cbframe.system import OwnThread, reported, starting_process, waited

S = TypeVar("S")
T = TypeVar("T")
_log = logging.getLogger("cbframe.ui")


class Handover(Generic[T]):
    """Items put in by many threads, taken out by one, numbered in the order of arrival.

    It never blocks a thread that puts in: flow control is the brake, not this queue. Waking the consumer has
    a price, so it is woken when there is `enough` in the sum of what the items count for.
    """

    def __init__(self) -> None:
        self._items: deque[T] = deque()
        self._count = 0
        self.enough = 0
        self._waiting = 0
        self._lock = threading.Lock()
        self._arrived = threading.Event()

    def put(self, item: T, nbytes: int = 0) -> None:
        """Add an item that counts for a number of bytes; callable from any thread."""
        with self._lock:
            self._items.append(item)
            self._count += 1
            self._waiting += nbytes
            enough = self._waiting >= self.enough
        if enough and not self._arrived.is_set():
            self._arrived.set()

    def count(self) -> int:
        """How many items were put in so far: the number of the next one."""
        with self._lock:
            return self._count

    def take(self, timeout: float | None = None) -> list[T]:
        """All items since the last call, after waiting up to `timeout` seconds for enough of them."""
        waited(self._arrived.wait, timeout)
        with self._lock:
            self._arrived.clear()
            self._waiting = 0
            items = list(self._items)
            self._items.clear()
        return items

    def wake(self) -> None:
        """End the consumer's wait."""
        self._arrived.set()


class MergingHandover(Generic[T]):
    """Items put in by many threads, taken out by one; some of them replace what waits.

    For news that come again and again, of which only the last counts: however long the consumer stays
    away, they take room once for each key.
    """

    def __init__(self) -> None:
        self._items: deque[list[T]] = deque()
        self._open: dict[int, list[T]] = {}
        """By key: the news that may still be replaced."""
        self._lock = threading.Lock()
        self._arrived = threading.Event()

    def put(self, item: T, keys: Iterable[int]) -> None:
        """Add an item; what waits for one of its keys is not replaced any more."""
        with self._lock:
            for key in keys:
                self._open.pop(key, None)
            self._items.append([item])
        self._arrived.set()

    def news(self, key: int, item: T) -> None:
        """Add an item, in place of the last one of this key if nothing else of the key came since."""
        with self._lock:
            place = self._open.get(key)
            if place is None:
                self._open[key] = place = [item]
                self._items.append(place)
            place[0] = item
        self._arrived.set()

    def wait(self, timeout: float | None = None) -> None:
        """Wait up to `timeout` seconds for an item, or for :meth:`wake`."""
        waited(self._arrived.wait, timeout)

    def take(self) -> list[T]:
        """All items since the last call."""
        with self._lock:
            self._arrived.clear()
            items = [place[0] for place in self._items]
            self._items.clear()
            self._open.clear()
        return items

    def wake(self) -> None:
        """End the consumer's wait."""
        self._arrived.set()


class Switch:
    """On or off, by any thread; what is done meanwhile on one thread is put off until it is off."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._on = False
        self._put_off: list[Callable[[], None]] = []

    def __bool__(self) -> bool:
        return self._on

    def on(self) -> None:
        with self._lock:
            self._on = True

    def off(self) -> None:
        """Do what was put off."""
        with self._lock:
            self._on = False
            waiting, self._put_off = self._put_off, []
        for work in waiting:
            work()

    def when_off(self, work: Callable[[], None]) -> None:
        """Do it now, or when it is off."""
        with self._lock:
            if self._on:
                self._put_off.append(work)
                return
        work()


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
        except Exception:  # noqa: BLE001 - what cannot be drawn is no reason to print, or to stop
            # Of another thread a notebook would print it into whichever cell ran last.
            _log.exception("what is shown of a stream is no longer updated")


def at_once(works: Sequence[Callable[[Waker], T]]) -> list[T | CbframeError]:
    """Run functions that wait for the network, all at the same time; their results or errors, in order."""
    if not works:
        return []
    with ExitStack() as stack:
        wakers = [stack.enter_context(closing(Waker())) for _ in works]
        pool = ThreadPoolExecutor(len(works), thread_name_prefix="cbframe-ask")
        stack.callback(pool.shutdown)
        try:
            with reported():
                futures: list[Future[T]] = [
                    pool.submit(work, waker) for work, waker in zip(works, wakers, strict=True)
                ]
            outcomes: list[T | CbframeError] = []
            for future in futures:
                try:
                    outcomes.append(future.result())
                except CbframeError as exc:
                    outcomes.append(exc)
            return outcomes
        except BaseException:  # Ctrl-C, too: nobody is waited for any more, and it is raised again
            for waker in wakers:
                waker.wake()
            raise


def in_processes(work: Callable[[S], T], items: Sequence[S], count: int) -> list[T]:
    """What `work` returns for each item, done by `count` processes of this machine.

    Whatever goes wrong, and if Ctrl-C is pressed, all of them are ended before this returns. No thread is
    needed, so none can be missing.
    """
    todo = deque(enumerate(items))
    busy: dict[Connection, int] = {}
    results: dict[int, T] = {}
    with ExitStack() as stack:
        for _ in range(min(count, len(items))):
            connection = _start(work, stack)
            busy[connection] = _hand_out(connection, todo)
        while busy:
            for connection in cast("list[Connection]", wait(list(busy))):
                number = busy.pop(connection)
                results[number] = _outcome(connection)
                if todo:
                    busy[connection] = _hand_out(connection, todo)
    return [results[number] for number in range(len(items))]


def _start(work: Callable[[S], T], stack: ExitStack) -> Connection:
    """Start a process, which the stack ends; the connection to it."""
    context = get_context("spawn")
    with starting_process():
        ends: tuple[Any, Any] = context.Pipe()
        ours, theirs = ends
        stack.callback(ours.close)
        with closing(theirs):
            process = context.Process(target=_serve, args=(theirs, work))
            process.start()
    stack.callback(_end, process)
    connection: Connection = ours
    return connection


def _end(process: BaseProcess) -> None:
    # Not by closing its connection: to wait until it has done its work may take hours.
    process.terminate()
    process.join()
    process.close()


def _hand_out(connection: Connection, todo: deque[tuple[int, S]]) -> int:
    """Send the next item; its number."""
    number, item = todo.popleft()
    with _lost():
        connection.send(item)
    return number


def _outcome(connection: Connection) -> Any:
    """The result that a process has; or its error is raised."""
    with _lost():
        result, error = connection.recv()
    if error is not None:
        raise error
    return result


@contextmanager
def _lost() -> Iterator[None]:
    try:
        yield
    except (EOFError, ConnectionError):
        raise CbframeError(
            "a worker process ended before its work was done",
            hint="is the memory of the machine used up? And a script that starts processes has to do so "
            'below: if __name__ == "__main__":',
        ) from None


def _serve(connection: Connection, work: Callable[[S], T]) -> None:
    """In a process: one item after the other, until there is no parent any more."""
    with suppress(EOFError, ConnectionError, KeyboardInterrupt):
        while True:
            item = connection.recv()
            try:
                outcome: tuple[T | None, Exception | None] = work(item), None
            except Exception as exc:  # noqa: BLE001 - raised again in the parent
                outcome = None, _sendable(exc)
            connection.send(outcome)


def _sendable(exc: Exception) -> Exception:
    """The error, or words about it: neither its traceback nor every error can be pickled."""
    if not isinstance(exc, CbframeError):
        exc.add_note("".join(traceback.format_exception(exc)))
    try:
        pickle.loads(pickle.dumps(exc))  # noqa: S301 - our own
    except Exception:  # noqa: BLE001 - whatever pickle, or a constructor, raises
        return CbframeError(f"an unexpected {type(exc).__name__} in a worker process: {exc}")
    return exc
