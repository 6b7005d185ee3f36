"""Where files are: folders, pyarrow's file systems, fsspec's; each with the same promises."""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import pyarrow.fs as pafs
import pytest
from snapshot.conftest import Calendar

from cbframe import ConfigurationError, LocalCluster, Snapshot, SnapshotError, SpoolError, write_snapshot
from cbframe.scan.store import LOCK, LocalStore, RemoteStore, Store, open_store, writing
from scan.kit import QUICK, fill, truth


@pytest.fixture
def memory() -> Iterator[str]:
    """A folder of fsspec's file system in memory."""
    filesystem = fsspec.filesystem("memory")
    yield "memory://snapshots/one"
    filesystem.store.clear()


@pytest.fixture(params=["local", "pyarrow", "fsspec"])
def store(request: pytest.FixtureRequest, tmp_path: Path, memory: str) -> Store:
    if request.param == "local":
        return open_store(tmp_path / "here")
    if request.param == "pyarrow":
        return RemoteStore(pafs.SubTreeFileSystem(str(tmp_path), pafs.LocalFileSystem()), "here")
    return open_store(memory, storage_options={})


def test_files(store: Store) -> None:
    assert store.names("data") == {}
    with store.create("data/a") as output:
        output.write(b"abc")
        output.write(memoryview(b"def"))
        assert (output.nbytes, output.tell()) == (6, 6)
        assert output.sha256 == hashlib.sha256(b"abcdef").hexdigest()
    assert store.names("data") == {"a": 6}
    assert store.read("data/a") == b"abcdef"
    with store.input("data/a") as source:
        source.seek(3)
        assert source.read() == b"def"
    store.rename("data/a", "data/b")
    store.remove("data/b")
    store.remove("data/b")
    assert store.names("data") == {}
    with pytest.raises(FileNotFoundError):
        store.read("data/a")
    assert store.where("data/a").endswith("/data/a")


def test_publication(store: Store) -> None:
    store.publish("manifest/1", b"one")
    with pytest.raises(FileExistsError):
        store.publish("manifest/1", b"two")
    assert store.read("manifest/1") == b"one"
    assert store.names("manifest") == {"1": 3}


@pytest.mark.parametrize("how", ["options", "filesystem"])
def test_what_another_machine_wrote(how: str, memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """fsspec's file systems may remember what they listed, however they came here."""
    other = fsspec.filesystem("memory")
    remembered: dict[str, list[str]] = {}
    listed = type(other).ls

    def ls(self: Any, path: str, detail: bool = True, **named: Any) -> Any:
        if path not in remembered:
            remembered[path] = listed(self, path, detail, **named)
        return remembered[path]

    monkeypatch.setattr(type(other), "ls", ls)
    monkeypatch.setattr(type(other), "invalidate_cache", lambda *_: remembered.clear())
    store = (
        open_store(memory, storage_options={})
        if how == "options"
        else open_store("/snapshots/one", filesystem=pafs.PyFileSystem(pafs.FSSpecHandler(other)))
    )
    store.publish("manifest/1", b"one")
    assert store.names("manifest") == {"1": 3}
    other.pipe_file("/snapshots/one/manifest/2", b"more")
    assert store.names("manifest") == {"1": 3, "2": 4}
    assert store.where("manifest/1") == "memory:///snapshots/one/manifest/1"


def test_a_disk_without_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr("os.link", link)
    test_publication(LocalStore(tmp_path))


def test_an_error_says_where(store: Store) -> None:
    """What is read while a file is written has its own place and its own remedy."""
    with (
        pytest.raises(SnapshotError, match=r"cannot write a file: .*data/a") as caught,
        store.create("data/a"),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.path == store.where("data/a")
    assert "make room" in str(caught.value.hint)
    with pytest.raises(SpoolError, match="the spool is full"), store.create("data/a"):
        raise SpoolError("the spool is full")
    assert store.names("data") == {}


def test_one_writer(store: Store) -> None:
    calendar = Calendar()
    with writing(store, clock=calendar):
        calendar.go_on(minutes=5)
        told = r"being written by process \d+ on .*5 minutes"
        with pytest.raises(SnapshotError, match=told), writing(store, clock=calendar):
            pass
    with writing(store):
        pass


def test_a_lock_that_was_left(memory: str) -> None:
    """Where no system lets go of it: told whose it is, and broken when asked."""
    store = open_store(memory, storage_options={})
    store.publish(LOCK, b'{"host": "gone", "pid": 7, "since": "2026-01-01T00:00:00+00:00"}')
    calendar = Calendar()
    calendar.go_on(days=2)
    with pytest.raises(SnapshotError, match="process 7 on gone, since 2026-01-01 00:00:00 UTC") as caught:
        writing(store, clock=calendar).__enter__()
    assert "2 days" in str(caught.value)
    assert "break_lock=True" in str(caught.value.hint)
    with writing(store, break_lock=True):
        assert b"gone" not in store.read(LOCK)
    assert LOCK not in store.names("")


def test_a_lock_that_was_broken_is_not_given_back(memory: str) -> None:
    store = open_store(memory, storage_options={})
    with writing(store):
        first = store.read(LOCK)
        with writing(store, break_lock=True):
            second = store.read(LOCK)
            assert first != second
    assert LOCK not in store.names("")


@pytest.mark.parametrize("kind", ["fsspec", "pyarrow", "uri"])
def test_a_snapshot_elsewhere(kind: str, cluster: LocalCluster, tmp_path: Path, memory: str) -> None:
    path, place = {
        "fsspec": (memory, {"storage_options": {}}),
        "pyarrow": ("one", {"filesystem": pafs.SubTreeFileSystem(str(tmp_path), pafs.LocalFileSystem())}),
        "uri": ((tmp_path / "one").as_uri(), {}),
    }[kind]
    fill(cluster, 100)
    arguments: dict[str, Any] = {"options": QUICK, "parse": False, **place}
    write_snapshot(cluster, path, **arguments)
    cluster.delete("key-000001")
    cluster.fail_over(2, lose=3)
    cluster.upsert("more", {})
    assert write_snapshot(cluster, path, **arguments).version == 2
    snapshot = Snapshot(path, **place)
    found = snapshot.to_arrow(metadata=("key", "seqno"))
    expected = {(key.decode(), row.seqno) for key, row in truth(cluster).items()}
    assert set(zip(*(found[name].to_pylist() for name in ("_cb_key", "_cb_seqno")), strict=True)) == expected
    snapshot.compact(keep="0s")
    snapshot.vacuum()
    assert snapshot.verify().ok
    assert len(snapshot) == len(expected)


def test_a_conditional_put_that_is_beaten(memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two writers that both saw no such version: the file system decides."""
    store = open_store(memory, storage_options={})
    assert isinstance(store, RemoteStore)
    publish = store._fsspec.pipe_file

    def beaten(path: str, data: bytes, **named: Any) -> None:
        publish(path, b"another's")
        publish(path, data, **named)

    monkeypatch.setattr(store._fsspec, "pipe_file", beaten)
    with pytest.raises(FileExistsError):
        store.publish("manifest/1", b"mine")
    assert store.read("manifest/1") == b"another's"


@pytest.mark.parametrize(
    ("path", "named", "message"),
    [
        ("nothing://x/y", {}, "is no place for files"),
        ("s 3://x", {}, "is no place for files"),
        ("file://other/folder", {}, "is no place for files"),
        ("x", {"storage_options": {}, "filesystem": pafs.LocalFileSystem()}, "exclude each other"),
    ],
)
def test_no_such_place(path: str, named: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        open_store(path, **named)


def test_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As pandas has it."""
    monkeypatch.setenv("HOME", str(tmp_path))
    assert open_store("~/kept").root == f"{tmp_path}/kept"


@pytest.mark.parametrize("name", ["a b", "ä ß", "a%20b", "a#b?c"])
def test_one_folder_however_it_is_named(name: str, tmp_path: Path) -> None:
    """Another kind of store would have another kind of lock."""
    path = tmp_path / name
    plain = "file://" + str(path).replace("%", "%25")
    for store in (
        open_store(path.as_uri()),
        open_store(plain),
        open_store(plain, storage_options={}),
        open_store(str(path), storage_options={}),
        open_store(str(path), filesystem=pafs.LocalFileSystem()),
    ):
        assert isinstance(store, LocalStore)
        assert store.root == str(path)


@pytest.mark.parametrize("name", ["file", "file/snapshot"])
def test_a_folder_that_cannot_be_written(name: str, cluster: LocalCluster, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("here")
    with pytest.raises(SnapshotError, match="cannot lock the snapshot: Not a directory"):
        write_snapshot(cluster, tmp_path / name)


def test_files_that_go_while_a_folder_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = LocalStore(tmp_path)
    for name in ("a", "b"):
        with store.create(f"data/{name}") as output:
            output.write(b"x")

    def is_file() -> bool:
        raise FileNotFoundError

    there = SimpleNamespace(name="b", is_file=lambda: True, stat=lambda: SimpleNamespace(st_size=1))
    entries = [SimpleNamespace(name="a", is_file=is_file), there]
    monkeypatch.setattr("os.scandir", lambda _: nullcontext(iter(entries)))
    assert store.names("data") == {"b": 1}
