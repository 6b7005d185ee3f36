"""Threads, descriptors and memory that the system refuses: an error at once, and nothing left behind."""

from __future__ import annotations

import ast
import errno
import gc
import itertools
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import doors
import pytest
from doors import Door

import cbframe
from cbframe import LocalCluster, ResourceError, system
from cbframe.system import OwnThread, allocate, reported, shortage, starting_process

resource = pytest.importorskip("resource", reason="Windows has no such limits")

PACKAGE = Path(cbframe.__file__).parent
SECONDS = 5.0
"""An error that comes later did not come at once: connect_timeout is 10."""


# -- what is recognised


@pytest.mark.parametrize(
    ("exc", "message", "hint"),
    [
        (OSError(errno.EMFILE, "Too many open files"), "out of file descriptors", "ulimit -n"),
        (OSError(errno.ENFILE, "Too many open files in system"), "out of file descriptors", "fs.file-max"),
        (MemoryError(), "out of memory", "buffer_bytes="),
        (OSError(errno.ENOBUFS, "No buffer space available"), "out of memory", "buffer_bytes="),
        (RuntimeError("can't start new thread"), "no thread can be started", "ulimit -u"),
    ],
)
def test_the_limit_is_named(exc: Exception, message: str, hint: str) -> None:
    with pytest.raises(ResourceError, match=message) as caught, reported("h:1"):
        raise exc
    assert caught.value.node == "h:1"
    assert hint in (caught.value.hint or "")
    assert caught.value.permanent
    assert caught.value.__suppress_context__


@pytest.mark.parametrize("exc", [OSError(errno.ECONNREFUSED, "refused"), RuntimeError("dictionary changed")])
def test_other_exceptions_pass(exc: Exception) -> None:
    assert shortage(exc) is None
    with pytest.raises(type(exc)) as caught, reported():
        raise exc
    assert caught.value is exc


def test_the_hint_has_the_number() -> None:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    error = shortage(OSError(errno.EMFILE, "Too many open files"))
    assert error is not None
    assert f"ulimit -n: {soft}" in str(error)


def test_no_process() -> None:
    with pytest.raises(ResourceError, match="no process can be started"), starting_process():
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")


def test_a_buffer_that_there_is_no_memory_for() -> None:
    assert allocate(16) == bytearray(16)
    with pytest.raises(ResourceError, match="out of memory"):
        allocate(1 << 62)


def test_a_thread_that_was_never_started_can_be_joined() -> None:
    OwnThread(int, "idle").join()


def test_a_thread_can_be_started_when_there_is_one_again(monkeypatch: pytest.MonkeyPatch) -> None:
    ran = threading.Event()
    thread = OwnThread(ran.set, "later")
    with monkeypatch.context() as patch:
        _refuse_thread(patch, 0)
        with pytest.raises(ResourceError):
            thread.start()
    thread.start()
    thread.join()
    assert ran.is_set()


def test_threads_start_in_one_place() -> None:
    """All others are OwnThread."""
    found = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute | ast.Name)
        and (node.attr if isinstance(node, ast.Attribute) else node.id)
        in ("Thread", "Timer", "ThreadPoolExecutor", "ProcessPoolExecutor")
    }
    assert found == {"system.py"}


# -- each start fails in turn


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(nodes=2, vbuckets=8, process=True) as cluster:
        cluster.bulk_load([(b"k%d" % n, b'{"a": %d, "b": [1, "x"]}' % n) for n in range(200)])
        yield cluster


Action = Callable[[LocalCluster, Path], None]


def read_over_rest(cluster: LocalCluster, _folder: Path) -> None:
    auth = (cluster.username, cluster.password)
    assert len(cbframe.read_bucket(cluster.rest_urls, "default", auth=auth)) == 200


def read_by_name(cluster: LocalCluster, _folder: Path) -> None:
    seed = cluster.connection_string.replace("127.0.0.1", "localhost")
    assert len(cbframe.read_bucket(seed, auth=(cluster.username, cluster.password))) == 200


def local_cluster(_cluster: LocalCluster, _folder: Path) -> None:
    with LocalCluster(nodes=2, vbuckets=4) as small:
        small.upsert("k", {})


def diagnosis(cluster: LocalCluster, _folder: Path) -> None:
    found = cbframe.doctor(cluster)
    if (step := found.failed) is not None:
        raise ResourceError(step.detail, hint=step.remedy)


def whole(door: Door) -> Action:
    def action(cluster: LocalCluster, folder: Path) -> None:
        assert len(door(cluster, folder)) == 200

    action.__name__ = getattr(door, "__name__", "")
    return action


ACTIONS = [
    *map(whole, (doors.read, doors.batches, doors.stream, doors.snapshot, doors.partitions)),
    *(read_over_rest, read_by_name, local_cluster, diagnosis),
]


def _raising_once(real: Callable[..., Any], after: int, exc: Exception) -> Callable[..., Any]:
    """The same function, whose calls succeed but for the one after so many."""
    calls = itertools.count()

    def call(*arguments: Any) -> Any:
        if next(calls) == after:
            raise exc
        return real(*arguments)

    return call


def _refuse_thread(patch: pytest.MonkeyPatch, after: int) -> None:
    refused = RuntimeError("can't start new thread")
    patch.setattr(threading.Thread, "start", _raising_once(threading.Thread.start, after, refused))


def _refuse_buffer(patch: pytest.MonkeyPatch, after: int) -> None:
    patch.setattr(system, "bytearray", _raising_once(bytearray, after, MemoryError()), raising=False)


def _refuse_descriptor(patch: pytest.MonkeyPatch, after: int) -> None:
    """Let the process open so many more than it has now, and no more."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free: list[int] = []
    try:
        # The limit is on numbers: those below the highest one in use that are free count, too.
        while len(free) <= after:
            free.append(os.open(os.devnull, os.O_RDONLY))
        most = free[-1]
    finally:
        for number in free:
            os.close(number)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def _await_new(threads: set[threading.Thread]) -> None:
    """A request that cannot be interrupted ends by itself."""
    for thread in set(threading.enumerate()) - threads:
        thread.join(SECONDS)
        assert not thread.is_alive()


@contextmanager
def _refusing(kind: Callable[[pytest.MonkeyPatch, int], None], after: int) -> Iterator[None]:
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    with pytest.MonkeyPatch.context() as patch:
        try:
            kind(patch, after)
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limit)


@pytest.mark.parametrize(
    "kind", [_refuse_thread, _refuse_buffer, _refuse_descriptor], ids=lambda kind: kind.__name__
)
@pytest.mark.parametrize("action", ACTIONS, ids=lambda action: action.__name__)
def test_each_start_fails_in_turn(
    action: Action, kind: Callable[[pytest.MonkeyPatch, int], None], cluster: LocalCluster, tmp_path: Path
) -> None:
    threads = set(threading.enumerate())
    action(cluster, tmp_path)  # what is imported once for all is there now
    _await_new(threads)
    gc.collect()
    files = _open_files()
    failures = 0
    while True:
        began = time.monotonic()
        error: Any = None
        try:
            with _refusing(kind, failures):
                action(cluster, tmp_path)
        except cbframe.CbframeError as exc:
            error = exc
        assert time.monotonic() - began < SECONDS
        _await_new(threads)
        assert _open_files() <= files
        if error is None:
            break
        assert isinstance(error, ResourceError), error
        assert error.hint
        failures += 1
    assert failures or (action, kind) == (local_cluster, _refuse_buffer)
