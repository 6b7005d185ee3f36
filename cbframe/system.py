"""What differs between operating systems: waiting for sockets, Ctrl-C, files that are open, locks; threads.

And what a system refuses: threads, descriptors, processes and memory, each a ``ResourceError`` that names it.

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
from typing import IO, Any, Generic, TypeVar

from cbframe.errors import ResourceError

T = TypeVar("T")

__all__ = [
    "CONNECTING",
    "EVENT_READ",
    "EVENT_WRITE",
    "Call",
    "Event",
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


class Event:
    """As ``threading.Event``; but Ctrl-C in one of its methods leaves no lock behind that others wait for.

    Those of ``threading`` are Python code: KeyboardInterrupt may come when they have a lock and are not in
    the ``with`` block yet. A signal handler, or a finalizer, may set this one.
    """

    def __init__(self) -> None:
        self._set = False
        self._gate = threading.Lock()  # held while it is not set
        self._gate.acquire()

    def is_set(self) -> bool:
        return self._set

    def set(self) -> None:
        """Have all who wait go on."""
        self._set = True
        try:  # noqa: SIM105 - suppress() is Python code again
            self._gate.release()
        except RuntimeError:
            pass  # it was set

    def clear(self) -> None:
        """Have the next wait wait; if several wait, none of them may clear it."""
        self._set = False
        self._gate.acquire(blocking=False)

    def wait(self, timeout: float | None = None) -> bool:
        """Whether it is set, after waiting up to `timeout` seconds; rarely less, if it is cleared too."""
        try:
            if not self._set:
                self._gate.acquire(timeout=-1 if timeout is None else max(0.0, timeout))
        finally:
            if self._set:
                try:  # noqa: SIM105 - for the next one who waits; as above
                    self._gate.release()
                except RuntimeError:
                    pass
        return self._set


class Call(Generic[T]):
    """A call of a function on one thread, for whose outcome another one waits."""

    def __init__(self, function: Callable[[], T]) -> None:
        self._function, self._ended = function, Event()
        self._value: T
        self._error: BaseException | None = None

    def __call__(self) -> None:
        try:
            self._value = self._function()
        except BaseException as exc:  # noqa: BLE001 - raised where it is waited for
            self._error = exc
        finally:
            self._ended.set()

    def outcome(self) -> T:
        """What it returned; raises what it raised."""
        self._ended.wait()
        if self._error is not None:
            raise self._error
        return self._value


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


_DESCRIPTORS = (errno.EMFILE, errno.ENFILE)
_MEMORY = (errno.ENOMEM, errno.ENOBUFS)


class OwnThread(threading.Thread):
    """A daemon thread that may be joined whether or not it was started, by any thread."""

    def __init__(self, target: Callable[..., object], name: str, args: tuple[Any, ...] = ()) -> None:
        super().__init__(target=target, name=name, args=args, daemon=True)

    def start(self) -> None:
        """Begin to run."""
        with reported():
            super().start()

    def join(self, timeout: float | None = None) -> None:
        """Wait for the end: at once if it was never started, or is the caller."""
        if self.ident is not None and self is not threading.current_thread():
            super().join(timeout)


def allocate(nbytes: int) -> bytearray:
    """A buffer."""
    with reported():
        return bytearray(nbytes)


@contextmanager
def reported(node: str | None = None) -> Iterator[None]:
    """Raise what the system refuses as ResourceError; all other exceptions pass."""
    try:
        yield
    except (OSError, MemoryError, RuntimeError) as exc:
        error = shortage(exc, node)
        if error is None:
            raise
        raise error from None


@contextmanager
def starting_process() -> Iterator[None]:
    """As :func:`reported`, for what starts a process of this machine."""
    try:
        with reported():
            yield
    except BlockingIOError:
        raise ResourceError(
            "no process can be started",
            hint=f"raise the limit of the user (ulimit -u{_soft_limit('RLIMIT_NPROC')}) or of the container "
            "(pids.max)",
        ) from None


def shortage(exc: BaseException, node: str | None = None) -> ResourceError | None:
    """The error for an exception that a limit of the system has caused; None for any other."""
    if isinstance(exc, ResourceError):
        return exc
    if isinstance(exc, MemoryError) or (isinstance(exc, OSError) and exc.errno in _MEMORY):
        return ResourceError(
            "out of memory",
            node=node,
            hint="free some, or ask for less: a smaller buffer_bytes=, batch_bytes= or receive_buffer_bytes",
        )
    if isinstance(exc, OSError) and exc.errno in _DESCRIPTORS:
        return ResourceError(
            "out of file descriptors: no socket or file can be opened",
            node=node,
            hint=f"{_open_files(exc)}; close some, or raise the limit",
        )
    if isinstance(exc, RuntimeError) and "start new thread" in str(exc):
        return ResourceError(
            "no thread can be started",
            node=node,
            hint=f"this process has {threading.active_count()} threads; raise the limit of the user "
            f"(ulimit -u{_soft_limit('RLIMIT_NPROC')}) or of the container (pids.max)",
        )
    return None


def _open_files(exc: OSError) -> str:
    if exc.errno == errno.ENFILE:
        return "all processes of the system together have as many open as it allows (fs.file-max)"
    return f"this process has as many open as it may have (ulimit -n{_soft_limit('RLIMIT_NOFILE')})"


def _soft_limit(name: str) -> str:
    """``: 1024``; empty where it is not known or there is none."""
    try:
        resource: Any = import_module("resource")  # not on Windows
    except (ImportError, OSError):  # out of descriptors, nothing can be imported
        return ""
    soft, _ = resource.getrlimit(getattr(resource, name, -1))
    return "" if soft == resource.RLIM_INFINITY else f": {soft}"
