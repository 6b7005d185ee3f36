"""From the threads of the nodes to the one consumer: the only place where they meet."""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")

monotonic = time.monotonic
"""The clock of everything that waits, in seconds; the floors above have no other."""


class Handover(Generic[T]):
    """Items put in by many threads, taken out by one, numbered in the order of arrival.

    It never blocks a thread that puts in: flow control is the brake, not this queue.
    """

    def __init__(self) -> None:
        self._items: deque[T] = deque()
        self._count = 0
        self._lock = threading.Lock()
        self._arrived = threading.Event()

    def put(self, item: T) -> None:
        """Add an item; callable from any thread."""
        with self._lock:
            self._items.append(item)
            self._count += 1
        if not self._arrived.is_set():
            self._arrived.set()

    def count(self) -> int:
        """How many items were put in so far: the number of the next one."""
        with self._lock:
            return self._count

    def take(self, timeout: float | None = None) -> list[T]:
        """All items since the last call, after waiting up to `timeout` seconds for one."""
        self._arrived.wait(timeout)
        with self._lock:
            self._arrived.clear()
            items = list(self._items)
            self._items.clear()
        return items

    def wake(self) -> None:
        """End the consumer's wait."""
        self._arrived.set()
