"""The other ways of macOS and Windows, forced on Linux."""

from __future__ import annotations

import ast
import errno
import fcntl
import socket
import sys
import threading
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any

import pytest

from cbframe import system
from cbframe.dcp.transport import SocketTransport, Waker
from cbframe.errors import ConnectError
from cbframe.local import loop

PACKAGE = Path(system.__file__).parent


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system, "WINDOWS", True)


def busy(times: int, seen: list[Path]) -> Callable[[Path, Path], Path]:
    """What Windows does while another program has the file open, so many times."""

    def replace(path: Path, other: Path) -> Path:
        seen.append(path)
        if len(seen) <= times:
            raise PermissionError(errno.EACCES, "Access is denied")
        path.rename(other)
        return other

    return replace


# -- waits


class Waits(list[Any]):
    """Seconds of each wait for something that does not happen; they pass at once."""

    now = 100.0

    def __call__(self, seconds: float | None) -> bool:
        self.append(seconds)
        self.now += seconds or 0
        return False


def test_a_wait_of_the_main_thread_lets_ctrl_c_through(windows: None) -> None:
    waits = Waits()

    def wait(seconds: float | None) -> bool:
        if len(waits) == 3:
            raise KeyboardInterrupt  # Windows raises it between two waits, never inside of one
        return waits(seconds)

    with pytest.raises(KeyboardInterrupt):
        system.waited(wait, None)
    assert len(waits) == 3
    assert all(0 < seconds <= 0.25 for seconds in waits)


@pytest.mark.parametrize(("seconds", "parts"), [(0.625, [0.25, 0.25, 0.125]), (-1, [0.0])])
def test_short_waits_are_as_long_as_the_whole(
    windows: None, monkeypatch: pytest.MonkeyPatch, seconds: float, parts: list[float]
) -> None:
    waits = Waits()
    monkeypatch.setattr(system, "time", SimpleNamespace(monotonic=lambda: waits.now))
    assert not system.waited(waits, seconds)
    assert waits == parts


def test_other_threads_and_other_systems_wait_once(windows: None, monkeypatch: pytest.MonkeyPatch) -> None:
    waits = Waits()
    thread = threading.Thread(target=system.waited, args=(waits, 9.0))
    thread.start()
    thread.join()
    monkeypatch.setattr(system, "WINDOWS", False)
    system.waited(waits, None)
    assert waits == [9.0, None]


def test_what_is_ready() -> None:
    one, other = socket.socketpair()
    with one, other:
        assert system.ready(0, (one, system.EVENT_READ)) == []
        assert system.ready(None, (one, system.EVENT_WRITE)) == [one]
        other.send(b"x")
        assert system.ready(5, (one, system.EVENT_READ), (other, system.EVENT_READ)) == [one]


# -- events


def disturbed(work: Callable[[], object], at: int, disturb: Callable[[], object]) -> bool:
    """Do some work, disturbed before that instruction of it; whether it has as many."""
    disturbances: list[object] = []

    def run() -> None:
        instructions = count()

        def trace(frame: FrameType, event: str, _arg: object) -> Any:
            frame.f_trace_opcodes = True
            if event == "opcode" and next(instructions) == at:
                disturbances.append(at)
                disturb()
            return trace

        sys.settrace(trace)
        try:
            work()
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(None)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive(), f"it hangs, disturbed before instruction {at}"
    return bool(disturbances)


def ctrl_c() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("was_set", [False, True])
@pytest.mark.parametrize("method", ["set", "clear", "wait"])
def test_ctrl_c_at_any_instruction_of_an_event(method: str, was_set: bool) -> None:
    for at in count():
        event = system.Event()
        if was_set:
            event.set()
        more = disturbed(partial(getattr(event, method), *[0] * (method == "wait")), at, ctrl_c)
        assert method != "wait" or event.is_set() is was_set
        for each in (event.set, event.clear, event.set):
            assert not disturbed(each, -1, ctrl_c)
        assert event.is_set()
        assert event.wait()
        if not more:
            break
    assert at > 4


def test_a_signal_handler_may_set_an_event() -> None:
    for at in count():
        event = system.Event()
        if not disturbed(partial(event.wait, 0), at, event.set):
            break
        assert event.is_set()
    assert at > 10


def test_an_event_wakes_all_who_wait() -> None:
    event = system.Event()
    outcomes: list[bool] = []
    threads = [threading.Thread(target=lambda: outcomes.append(event.wait(20))) for _ in range(4)]
    for thread in threads:
        thread.start()
    event.set()
    event.set()
    for thread in threads:
        thread.join()
    assert outcomes == [True] * 4
    event.clear()
    event.clear()
    assert not event.is_set()
    assert [event.wait(0), event.wait(-1), event.wait(0.001)] == [False] * 3


def test_a_call_on_another_thread() -> None:
    calls = [system.Call(lambda: 5), system.Call(lambda: 5 // 0)]
    for call in calls:
        threading.Thread(target=call).start()
    assert calls[0].outcome() == 5
    with pytest.raises(ZeroDivisionError):
        calls[1].outcome()
    call = system.Call(partial(sys.exit, 3))
    threading.Thread(target=call).start()
    with pytest.raises(SystemExit):
        call.outcome()


def test_who_may_be_interrupted_waits_with_no_lock_of_python_code() -> None:
    """Another thread could wait for that lock without end; the public receiver of tests is its user's."""
    refused = {"Event", "Condition", "Semaphore", "BoundedSemaphore", "Barrier", "Future", "Queue"}
    found = [
        f"{path.name}:{node.lineno}"
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if (
            isinstance(node, ast.Attribute)
            and node.attr in refused
            and isinstance(node.value, ast.Name)
            and node.value.id in ("threading", "futures", "queue", "concurrent")
        )
        or (isinstance(node, ast.ImportFrom) and node.module in ("threading", "queue", "concurrent.futures"))
    ]
    assert [place for place in found if not place.startswith("testing.py")] == []
    assert len(found) == 1


@pytest.mark.parametrize("code", [errno.ECONNREFUSED, 10061])
def test_a_connection_that_is_refused_at_once(code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its error is not asked for again: it would be gone, and the socket looks connected."""
    monkeypatch.setattr(socket.socket, "connect_ex", lambda _self, _address: code)
    monkeypatch.setattr(socket, "errorTab", {10061: "Connection refused."}, raising=False)
    waker = Waker()
    try:
        with pytest.raises(ConnectError, match=r"cannot connect: Connection refused \["):
            SocketTransport().connect("127.0.0.1:1", waker, 5)
    finally:
        waker.close()


# -- files


def test_a_file_that_is_open_for_a_moment_is_replaced(
    windows: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Path] = []
    pauses: list[float] = []
    monkeypatch.setattr(system.time, "sleep", pauses.append)
    monkeypatch.setattr(Path, "replace", busy(3, seen))
    (tmp_path / "new").write_bytes(b"new")
    system.replace(tmp_path / "new", tmp_path / "name")
    assert (tmp_path / "name").read_bytes() == b"new"
    assert pauses == [0.01, 0.02, 0.04]


def test_a_file_that_stays_open_is_named(
    windows: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Path] = []
    monkeypatch.setattr(system.time, "sleep", lambda _: None)
    monkeypatch.setattr(Path, "replace", busy(99, seen))
    with pytest.raises(PermissionError, match="is it open in another program") as caught:
        system.replace(tmp_path / "new", tmp_path / "name")
    assert caught.value.filename == str(tmp_path / "name")
    assert len(seen) == 7


def test_elsewhere_what_is_not_permitted_is_not_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Path] = []
    monkeypatch.setattr(Path, "replace", busy(99, seen))
    monkeypatch.setattr(Path, "unlink", lambda path, **_: busy(99, seen)(path, path))
    with pytest.raises(PermissionError, match=r"^\[Errno 13\] Access is denied$"):
        system.replace(tmp_path / "new", tmp_path / "name")
    with pytest.raises(PermissionError):
        system.remove(tmp_path / "name")
    assert len(seen) == 2


def test_a_file_that_is_open_stays(windows: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert system.remove(tmp_path / "nothing")
    monkeypatch.setattr(Path, "unlink", lambda path, **_: busy(99, [])(path, path))
    assert not system.remove(tmp_path / "name")


def test_macos_writes_through_the_cache_of_the_drive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, int]] = []
    full = SimpleNamespace(F_FULLFSYNC=51, fcntl=lambda _fd, command: calls.append(("fcntl", command)))
    monkeypatch.setattr(system.os, "fsync", lambda fd: calls.append(("fsync", fd)))
    with (tmp_path / "file").open("wb") as file:
        monkeypatch.setitem(sys.modules, "fcntl", full)
        system.sync(file)
        full.fcntl = lambda _fd, _command: open("/nowhere/at/all")  # noqa: PTH123, SIM115 - raises OSError
        system.sync(file)
        monkeypatch.setitem(sys.modules, "fcntl", None)
        system.sync(file)
        assert calls == [("fcntl", 51), ("fsync", file.fileno()), ("fsync", file.fileno())]


class Msvcrt:
    """Windows' locks of bytes, by Linux' ones; both are the file's, not the process's."""

    LK_NBLCK, LK_UNLCK = 2, 0

    def __init__(self) -> None:
        self.places: list[int] = []

    def locking(self, fd: int, mode: int, nbytes: int) -> None:
        self.places.append(system.os.lseek(fd, 0, 1))
        assert nbytes == 1
        try:
            fcntl.flock(fd, fcntl.LOCK_UN if mode == self.LK_UNLCK else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PermissionError(errno.EACCES, "Permission denied") from None


@pytest.mark.parametrize("other_way", [False, True], ids=["fcntl", "msvcrt"])
def test_a_lock_has_one_owner(other_way: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    msvcrt = Msvcrt()
    if other_way:
        monkeypatch.setitem(sys.modules, "fcntl", None)
        monkeypatch.setitem(sys.modules, "msvcrt", msvcrt)
    path = tmp_path / "lock"
    with path.open("a+b") as mine, path.open("a+b") as yours, system.locked(mine):
        mine.write(b"mine")
        mine.flush()
        with pytest.raises(BlockingIOError), system.locked(yours):
            pass
        # Windows would refuse to read what is locked.
        assert path.read_bytes() == b"mine"
    with path.open("a+b") as yours, system.locked(yours):
        assert path.read_bytes() == b"mine"
    assert all(place >= 1 << 30 for place in msvcrt.places)
    assert bool(msvcrt.places) is other_way


def test_a_pipe_that_nobody_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    said = OSError(errno.EINVAL, "Invalid argument")
    assert system.nobody_reads(BrokenPipeError(errno.EPIPE, "Broken pipe"))
    assert not system.nobody_reads(said)
    monkeypatch.setattr(system, "WINDOWS", True)
    assert system.nobody_reads(said)
    assert not system.nobody_reads(OSError(errno.EINVAL, "Invalid argument", "a:b"))
    assert not system.nobody_reads(OSError(errno.ENOSPC, "No space left on device"))


# -- the embedded cluster


def test_buffers_are_joined_where_a_socket_takes_one() -> None:
    sent: list[bytes] = []

    def send(data: bytes) -> int:
        sent.append(data)
        return len(data)

    sock: Any = SimpleNamespace(send=send)
    assert loop.send_buffers(sock, [b"ab", memoryview(b"cd")]) == 4
    assert loop.send_buffers(sock, [b"x" * 60_000, b"y" * 60_000]) == 1 << 16
    assert sent[0] == b"abcd"
    assert sent[1] == b"x" * 60_000 + b"y" * 5_536


def test_a_client_that_has_gone_already(monkeypatch: pytest.MonkeyPatch) -> None:
    """macOS raises when its socket is set up: the next one is served all the same."""
    node = loop.Loop("test")
    left = [OSError(errno.EINVAL, "Invalid argument")]
    setsockopt = socket.socket.setsockopt

    def refusing(sock: socket.socket, *args: Any) -> None:
        if left:
            raise left.pop()
        setsockopt(sock, *args)

    class Echo(loop.Channel):
        def received(self, data: bytes) -> None:
            self.send(data)

    port = node.listen(lambda sock: Echo(node, sock))
    monkeypatch.setattr(socket.socket, "setsockopt", refusing)
    node.start()
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=10) as gone:
            assert gone.recv(1) == b""
        with socket.create_connection(("127.0.0.1", port), timeout=10) as served:
            served.sendall(b"x")
            assert served.recv(1) == b"x"
    finally:
        node.stop()


# -- texts


def test_what_is_printed_has_letters_of_every_console() -> None:
    """cp1252 is what consoles of Windows have, and files that text goes to: print() raises for others."""
    not_printed = {"local/sample.py", "cluster/connection_string.py", "ui/show.py"}
    for path in sorted(PACKAGE.rglob("*.py")):
        inside = path.relative_to(PACKAGE)
        # What builds and fuzzes the core, or makes the documentation, is no part of the package.
        if inside.as_posix() in not_printed or inside.parts[0] in ("_rust", "docs"):
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        docstrings = {node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in docstrings:
                known = node.value.encode("cp1252", "replace").decode("cp1252")
                assert known == node.value, f"{path}:{node.lineno}"
