"""What differs between operating systems: waiting for sockets, Ctrl-C, files that are open, locks.

Developed on Linux. Where macOS or Windows has another way, it is here, and the tests force it.
"""

from __future__ import annotations

import errno
import os
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from itertools import count
from pathlib import Path
from selectors import EVENT_READ, EVENT_WRITE
from typing import IO, Any, TypeVar

T = TypeVar("T")

__all__ = [
    "CONNECTING",
    "EVENT_READ",
    "EVENT_WRITE",
    "Selector",
    "error_text",
    "locked",
    "nobody_reads",
    "ready",
    "remove",
    "replace",
    "sync",
    "sync_folder",
    "waited",
]

WINDOWS = sys.platform == "win32"

Selector: type[selectors.BaseSelector] = getattr(selectors, "PollSelector", selectors.DefaultSelector)
"""poll() needs no descriptor of its own, and takes any. Windows has only select(), which takes any socket."""

CONNECTING = {errno.EINPROGRESS, getattr(errno, "WSAEWOULDBLOCK", errno.EINPROGRESS)}
"""What ``connect_ex`` returns while a connection is being made; Windows has its own."""

_TURN = 0.25
"""Seconds after which a wait looks for Ctrl-C, where that does not end it."""
_TRIES = 6
_FIRST_PAUSE = 0.01
"""Seconds; doubled with every try, 0.6 s in all."""
_LOCKED_BYTE = 1 << 30
"""Windows refuses to let others read what is locked: a byte that no file has."""


def waited(wait: Callable[[float | None], T], timeout: float | None) -> T:
    """What ``wait(timeout)`` returns, which is true if it was not the time that ended it.

    On Windows Ctrl-C ends no wait of the main thread, and is seen between two short ones.
    """
    if not WINDOWS or threading.current_thread() is not threading.main_thread():
        return wait(timeout)
    until = None if timeout is None else time.monotonic() + timeout
    while True:
        left = _TURN if until is None else until - time.monotonic()
        outcome = wait(max(0.0, min(left, _TURN)))
        if outcome or (until is not None and left <= _TURN):
            return outcome


def ready(timeout: float | None, *waits: tuple[Any, int]) -> list[Any]:
    """Which of some sockets can be read or written, after waiting up to `timeout` seconds for one."""
    with Selector() as selector:
        for each, event in waits:
            selector.register(each, event)
        return [key.fileobj for key, _ in waited(selector.select, timeout)]


def error_text(code: int) -> str:
    """The text of an error of a socket; on Windows ``os.strerror`` does not know these."""
    texts: dict[int, str] = getattr(socket, "errorTab", {})
    return texts.get(code, "").rstrip(".") or os.strerror(code)


def nobody_reads(exc: OSError) -> bool:
    """Whether writing to a pipe has failed since its other end is closed."""
    return isinstance(exc, BrokenPipeError) or (WINDOWS and exc.errno == errno.EINVAL and not exc.filename)


def sync(file: IO[bytes]) -> None:
    """Have the bytes of a file on the disk."""
    file.flush()
    with suppress(ImportError, AttributeError, OSError):
        # On macOS fsync() leaves them in the drive's cache. Not every file system there knows better.
        fcntl: Any = import_module("fcntl")
        fcntl.fcntl(file.fileno(), fcntl.F_FULLFSYNC)
        return
    os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Have the names in a folder on the disk, where the system can do that."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def replace(path: Path, other: Path) -> None:
    """Give a file a name that another may have, which is gone then.

    Windows refuses while that one is open. A virus scanner or an indexer closes it soon, so this tries
    again for a moment.
    """
    for attempt in count():
        try:
            path.replace(other)
        except PermissionError as exc:
            if not WINDOWS:
                raise
            if attempt == _TRIES:
                raise PermissionError(
                    exc.errno, f"{exc.strerror} (is it open in another program? It is as it was)", str(other)
                ) from exc
            time.sleep(_FIRST_PAUSE * 2**attempt)
        else:
            return


def remove(path: Path) -> bool:
    """Delete a file, if it is there; False if Windows refuses because it is open."""
    try:
        path.unlink(missing_ok=True)
    except PermissionError:
        if not WINDOWS:
            raise
        return False
    return True


@contextmanager
def locked(file: IO[bytes]) -> Iterator[None]:
    """Hold a file's lock. It also ends with the process, however that ends."""
    try:
        fcntl: Any = import_module("fcntl")
    except ImportError:
        msvcrt: Any = import_module("msvcrt")
        file.seek(_LOCKED_BYTE)
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError as exc:  # the number that it has differs
            raise BlockingIOError(errno.EWOULDBLOCK, "another process holds the lock") from exc
        try:
            yield
        finally:
            file.seek(_LOCKED_BYTE)
            msvcrt.locking(file.fileno(), msvcrt.LK_UNLCK, 1)
    else:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
