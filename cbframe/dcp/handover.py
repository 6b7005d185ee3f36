"""From the threads of the nodes to the one consumer: the only place where they meet."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

from cbframe.system import waited

T = TypeVar("T")

monotonic = time.monotonic
"""The clock of everything that waits, in seconds; the floors above have no other."""


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
        """Add an item of so many bytes; callable from any thread."""
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
