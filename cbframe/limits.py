"""What the system may refuse: threads, descriptors, memory.

Every thread of cbframe is an :class:`OwnThread`, every large buffer comes from :func:`allocate`, and what
is raised for a refusal anywhere else is recognised by :func:`shortage`: all become a
:class:`~cbframe.errors.ResourceError` that names the limit.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from cbframe.errors import ResourceError

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
