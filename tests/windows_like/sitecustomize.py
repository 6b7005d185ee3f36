"""Makes a Python on Linux one that has only what Windows has.

Python runs it at its start, and so do the processes that it starts, if this folder is on ``PYTHONPATH``.
"""

# ruff: noqa: E402, I001, PTH112, PTH115, PTH208 - what is taken away has to be gone before others look for it

import errno
import fcntl
import io
import math
import os
import select
import sys
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import _socket

for module, names in {
    select: ("poll", "epoll", "kqueue", "devpoll"),
    _socket: ("AF_UNIX", "SO_REUSEPORT", "socketpair"),
    os: ("fork", "forkpty", "getuid", "geteuid", "getloadavg", "sched_getaffinity", "pread", "pwrite"),
}.items():
    for name in names:
        if hasattr(module, name):
            delattr(module, name)
errno.WSAEWOULDBLOCK = 10035  # type: ignore[attr-defined]

_monotonic, _open, _os_open = time.monotonic, io.open, os.open
time.monotonic = lambda: math.floor(_monotonic() * 64) / 64

import socket
import subprocess  # noqa: F401 - before there is an msvcrt: it would believe that this is Windows

_connect_ex = socket.socket.connect_ex


def _connecting(sock: socket.socket, address: Any) -> int:
    code = _connect_ex(sock, address)
    return 10035 if code == errno.EINPROGRESS else code


def _no_sendmsg(_sock: socket.socket) -> None:
    raise AttributeError("sendmsg")


_setsockopt = socket.socket.setsockopt


def _set_option(sock: socket.socket, level: int, option: int, *value: Any) -> None:
    if (level, option) == (socket.SOL_SOCKET, socket.SO_RCVLOWAT):
        raise OSError(10042, "An unknown, invalid, or unsupported option or level was specified")
    _setsockopt(sock, level, option, *value)


socket.socket.connect_ex = _connecting  # type: ignore[method-assign]
socket.socket.setsockopt = _set_option  # type: ignore[assignment,method-assign]
socket.socket.sendmsg = property(_no_sendmsg)  # type: ignore[assignment,method-assign]


# -- files that are open, and names that there cannot be


def _in_use(path: Any) -> bool:
    """Whether this process has a file open or mapped, or one in a folder."""
    place = os.path.realpath(path)
    held = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            held.append(os.readlink(f"/proc/self/fd/{fd}"))
        except OSError:
            continue  # it was the one of the listing
    with _open("/proc/self/maps", encoding="utf-8", errors="replace") as maps:
        held += [line.split(maxsplit=5)[5].rstrip("\n") for line in maps if line.count("/")]
    return any(each == place or each.startswith(f"{place}/") for each in held)


def _check_name(path: Any) -> None:
    if isinstance(path, int) or os.fspath(path).startswith(("/proc/", "/dev/", "/sys/")):
        return
    for part in os.fsdecode(path).split("/"):
        stem = part.partition(".")[0].upper()
        if (
            set(part) & set('<>:"|?*\\')
            or (part not in (".", "..") and part.endswith((".", " ")))
            or stem in {"CON", "PRN", "AUX", "NUL", "COM1", "LPT1"}
        ):
            raise OSError(errno.EINVAL, "The file name's syntax is incorrect", path)


def _moving(move: Callable[..., None], *, replaces: bool) -> Callable[..., None]:
    def moved(source: Any, target: Any, **named: Any) -> None:
        _check_name(target)
        if not replaces and os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, "Cannot create a file when that file already exists", source)
        for path in (source, target):
            if _in_use(path):
                raise PermissionError(errno.EACCES, "Access is denied", source)
        move(source, target, **named)

    return moved


def _deleting(delete: Callable[..., None]) -> Callable[..., None]:
    def deleted(path: Any, **named: Any) -> None:
        if _in_use(path):
            raise PermissionError(errno.EACCES, "It is being used by another process", path)
        delete(path, **named)

    return deleted


def _opened(file: Any, *args: Any, **named: Any) -> Any:
    _check_name(file)
    return _open(file, *args, **named)


def _opened_by_system(path: Any, flags: int, *args: Any, **named: Any) -> int:
    _check_name(path)
    # What tempfile does with O_TMPFILE has another way on Windows, which is its own.
    if os.path.isdir(path) and flags & os.O_TMPFILE != os.O_TMPFILE:
        raise PermissionError(errno.EACCES, "Permission denied", path)
    return _os_open(path, flags, *args, **named)


os.replace, os.rename = _moving(os.replace, replaces=True), _moving(os.rename, replaces=False)
os.unlink = os.remove = _deleting(os.unlink)
os.rmdir = _deleting(os.rmdir)
io.open = _opened  # what pathlib takes
os.open = _opened_by_system


# -- locks


def _locking(fd: int, mode: int, _nbytes: int) -> None:
    if os.lseek(fd, 0, os.SEEK_CUR) < 1 << 20:
        raise AssertionError("what is locked cannot be read by others there")
    try:
        fcntl.flock(fd, fcntl.LOCK_UN if mode == 0 else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise PermissionError(errno.EACCES, "Permission denied") from None


import cbframe.system

cbframe.system.WINDOWS = True
sys.modules["msvcrt"] = SimpleNamespace(LK_UNLCK=0, LK_NBLCK=2, locking=_locking)  # type: ignore[assignment]
for absent in ("fcntl", "grp", "pwd", "resource", "termios"):
    sys.modules[absent] = None  # type: ignore[assignment]
