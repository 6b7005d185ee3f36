"""Where files of snapshots and consumer groups are: a local folder, or anything that pyarrow or fsspec reach.

Files are written once and never changed. One kind of file decides: a manifest, or a lease, is published
whole, and never over another one.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import platform
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

from cbframe.errors import CbframeError, SnapshotError
from cbframe.scan.parquet import located
from cbframe.scan.result import Clock, utc_now
from cbframe.system import locked, remove, replace, shortage, sync, sync_folder

_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK, errno.EINVAL)
"""How systems say that a disk knows no links; the last is Windows."""


class Output(io.RawIOBase):
    """A file that is being written, with its size and digest; who opened the file below closes that."""

    def __init__(self, sink: Any) -> None:
        self._sink = sink
        self._digest = hashlib.sha256()
        self.nbytes = 0

    def write(self, data: Any) -> int:
        """Add bytes."""
        self._sink.write(data)
        size = memoryview(data).nbytes
        self._digest.update(data)
        self.nbytes += size
        return size

    def tell(self) -> int:
        """Where the next byte goes."""
        return self.nbytes

    def writable(self) -> bool:
        return True

    @property
    def sha256(self) -> str:
        """Of what was written so far, in hex."""
        return self._digest.hexdigest()


class Store(ABC):
    """The files of one folder, by name relative to it, parts divided by ``/``."""

    root: str
    """For messages."""

    @abstractmethod
    def names(self, folder: str) -> dict[str, int]:
        """Files of a folder and their sizes; none if it does not exist."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """A whole file."""

    @abstractmethod
    def input(self, name: str) -> pa.NativeFile:
        """A file to read from anywhere in it."""

    @abstractmethod
    def create(self, name: str) -> Any:
        """A context manager of an :class:`Output`; the file is safe on the disk after it, or gone."""

    @abstractmethod
    def publish(self, name: str, data: bytes) -> None:
        """Write a file that appears whole, and not where there is one already."""

    @abstractmethod
    def decides(self) -> bool:
        """Whether of two who publish one name at the same moment the file system itself refuses one."""

    @abstractmethod
    def remove(self, name: str) -> bool:
        """Delete a file, if it is there; False if it stays, since somebody reads it (on Windows)."""

    @abstractmethod
    def rename(self, name: str, other: str) -> None:
        """Give a file another name."""

    def where(self, name: str) -> str:
        """A file's name for messages."""
        return f"{self.root.rstrip('/')}/{name}"

    @contextmanager
    def reporting(self, name: str, doing: str) -> Iterator[None]:
        """Say of an error of the system which file it met, and what to do."""
        try:
            yield
        except OSError as exc:
            # Errors of ours that are OSErrors, too, come from elsewhere: the spool's disk may be another one.
            if isinstance(exc, CbframeError | FileExistsError):
                raise
            if (refusal := shortage(exc)) is not None:
                raise refusal from exc
            hint = "nothing was lost: the last version is as it was. Try again when the cause is gone"
            if exc.errno in (errno.ENOSPC, errno.EDQUOT):
                hint = "the disk is full. The last version is as it was: make room, and try again"
            raise SnapshotError(
                f"cannot {doing}: {exc.strerror or exc}", hint=hint, path=self.where(name)
            ) from exc


class LocalStore(Store):
    """A folder."""

    def __init__(self, root: Path) -> None:
        self.root = str(root)
        self._root = root

    def names(self, folder: str) -> dict[str, int]:
        place = self._root / folder
        found: dict[str, int] = {}
        with suppress(FileNotFoundError, NotADirectoryError), os.scandir(place) as entries:
            for entry in entries:
                # Another process may delete files meanwhile.
                with suppress(FileNotFoundError):
                    if entry.is_file():
                        found[entry.name] = entry.stat().st_size
        return dict(sorted(found.items()))

    def read(self, name: str) -> bytes:
        return (self._root / name).read_bytes()

    def input(self, name: str) -> pa.NativeFile:
        return pa.OSFile(str(self._root / name))

    @contextmanager
    def create(self, name: str) -> Iterator[Output]:
        path = self._root / name
        with self.reporting(name, "write a file"):
            make_folder(path.parent)
            try:
                with path.open("xb") as file:
                    yield Output(file)
                    sync(file)
                sync_folder(path.parent)
            except BaseException:  # Ctrl-C, too: no half of a file is left, and it is raised again
                with suppress(OSError):
                    path.unlink(missing_ok=True)
                raise

    def publish(self, name: str, data: bytes) -> None:
        path = self._root / name
        scratch = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        with self.reporting(name, "publish a version"):
            make_folder(path.parent)
            try:
                with scratch.open("xb") as file:
                    file.write(data)
                    sync(file)
                _name(scratch, path)
            finally:
                scratch.unlink(missing_ok=True)
            sync_folder(path.parent)

    def decides(self) -> bool:
        make_folder(self._root)
        with TemporaryDirectory(prefix=".probe.", dir=self._root) as probe:
            (Path(probe) / "a").touch()
            try:
                os.link(f"{probe}/a", f"{probe}/b")
            except OSError as exc:
                if exc.errno not in _NO_LINKS:
                    raise
                return False
        return True

    def remove(self, name: str) -> bool:
        with self.reporting(name, "delete a file"):
            return remove(self._root / name)

    def rename(self, name: str, other: str) -> None:
        with self.reporting(name, "rename a file"):
            replace(self._root / name, self._root / other)
            sync_folder((self._root / other).parent)

    def path(self, name: str) -> Path:
        """A file of the operating system."""
        return self._root / name


class RemoteStore(Store):
    """An object store, or any other file system of pyarrow's; fsspec's are wrapped by pyarrow.

    Object stores show a file when it is complete. A version is published with a conditional put where
    fsspec offers it; elsewhere, the file is read again to see whose it is.
    """

    def __init__(self, filesystem: pafs.FileSystem, root: str) -> None:
        self._filesystem = filesystem
        handler = getattr(filesystem, "handler", None)
        self._fsspec: Any = handler.fs if isinstance(handler, pafs.FSSpecHandler) else None
        self._root = root.rstrip("/")
        self.root = f"{filesystem.type_name}://{self._root}"
        if self._fsspec is not None:
            self.root = self._fsspec.unstrip_protocol(self._root)

    def _fresh(self, name: str) -> str:
        """A file's path, of which nothing is remembered that may not be so any more.

        fsspec's file systems keep what they once listed, and do not see what other machines do there.
        """
        if self._fsspec is not None:
            self._fsspec.invalidate_cache()
        return f"{self._root}/{name}"

    def names(self, folder: str) -> dict[str, int]:
        selector = pafs.FileSelector(self._fresh(folder), allow_not_found=True)
        with self.reporting(folder, "list a folder"):
            found = self._filesystem.get_file_info(selector)
        return {info.base_name: info.size for info in found if info.type == pafs.FileType.File}

    def read(self, name: str) -> bytes:
        with self._filesystem.open_input_stream(self._fresh(name)) as stream:
            data: bytes = stream.read()
        return data

    def input(self, name: str) -> pa.NativeFile:
        return self._filesystem.open_input_file(self._fresh(name))

    @contextmanager
    def create(self, name: str) -> Iterator[Output]:
        with self.reporting(name, "write a file"):
            path = self._fresh(name)
            self._filesystem.create_dir(path.rpartition("/")[0], recursive=True)
            try:
                with self._filesystem.open_output_stream(path) as stream:
                    yield Output(stream)
            except BaseException:  # Ctrl-C, too: no half of a file is left, and it is raised again
                # Closing the stream has put down what was written so far.
                with suppress(OSError):
                    self._filesystem.delete_file(path)
                raise

    def publish(self, name: str, data: bytes) -> None:
        path = self._fresh(name)
        with self.reporting(name, "publish a version"):
            self._filesystem.create_dir(path.rpartition("/")[0], recursive=True)
            # Also before a conditional put: some file systems take its condition and ignore it.
            if self._filesystem.get_file_info(path).type != pafs.FileType.NotFound:
                raise FileExistsError(errno.EEXIST, "there is such a version", path)
            if self._fsspec is not None and self._created(path, data):
                return
            with self._filesystem.open_output_stream(path) as stream:
                stream.write(data)
            if self.read(name) != data:
                raise FileExistsError(errno.EEXIST, "another writer was there at the same moment", path)

    def _created(self, path: str, data: bytes) -> bool:
        """Whether a conditional put did it; False where the file system has none."""
        try:
            self._fsspec.pipe_file(path, data, mode="create")
        except (TypeError, NotImplementedError, ValueError):
            # Each says in its own way that it knows no mode: it is written without, and read again.
            return False
        return True

    def decides(self) -> bool:
        if self._fsspec is None:
            return False
        self._filesystem.create_dir(self._root, recursive=True)
        path = self._fresh(name := f".probe.{uuid.uuid4().hex}")
        try:
            return self._created(path, b"1") and not self._created(path, b"2")
        except FileExistsError:
            return True
        finally:
            self.remove(name)

    def remove(self, name: str) -> bool:
        with self.reporting(name, "delete a file"), suppress(FileNotFoundError):
            self._filesystem.delete_file(self._fresh(name))
        return True

    def rename(self, name: str, other: str) -> None:
        with self.reporting(name, "rename a file"):
            self._filesystem.move(self._fresh(name), self._fresh(other))


def open_store(
    path: str | os.PathLike[str],  # A folder, or a URI such as `s3://bucket/folder`
    *,
    filesystem: pafs.FileSystem | None = None,  # what `path` is in, as pyarrow has it
    storage_options: Mapping[str, Any] | None = None,  # for the fsspec file system that the URI names
) -> Store:
    """The files of the snapshot at `path`."""
    try:
        found = located(path, filesystem=filesystem, storage_options=storage_options)
    except OSError as exc:
        raise SnapshotError(f"cannot reach it ({exc})", path=os.fspath(path)) from exc
    return LocalStore(found) if isinstance(found, Path) else RemoteStore(*found)


def make_folder(folder: Path) -> None:
    """Make a folder, unless it is there; a file of its name is an error of the system like others."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as exc:
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder)) from exc


def _name(scratch: Path, path: Path) -> None:
    """Give a file its name, if nothing has it."""
    try:
        # Unlike a rename, it never replaces what is there.
        os.link(scratch, path)
    except OSError as exc:
        if exc.errno not in _NO_LINKS:
            raise
        # Some disks know no links. The lock keeps other writers out between the two.
        if path.exists():
            raise FileExistsError(errno.EEXIST, "there is such a file", str(path)) from None
        scratch.rename(path)


LOCK = "lock.json"


@contextmanager
def writing(store: Store, *, clock: Clock = utc_now, break_lock: bool = False) -> Iterator[None]:
    """Be the only writer of a snapshot.

    In a local folder the system holds the lock, and lets go of it when the process ends, however it
    ends. Elsewhere it is a file, which a writer that is killed leaves behind.
    """
    mine = {
        "host": platform.node(),
        "pid": os.getpid(),
        "since": clock().isoformat(timespec="seconds"),
        "token": uuid.uuid4().hex,
    }
    hold = _held_by_system if isinstance(store, LocalStore) else _held_by_file
    with hold(store, mine, clock, break_lock):
        yield


@contextmanager
def _held_by_system(store: Store, mine: dict[str, Any], clock: Clock, _break_lock: bool) -> Iterator[None]:
    assert isinstance(store, LocalStore)
    path = store.path(LOCK)
    with store.reporting(LOCK, "lock the snapshot"):
        make_folder(path.parent)
        file = path.open("a+b")
    with file, ExitStack() as stack:
        try:
            stack.enter_context(locked(file))
        except BlockingIOError:
            file.seek(0)
            raise _locked(store, file.read(), clock, killed="ended: the lock ends with it") from None
        file.truncate(0)
        file.write(json.dumps(mine).encode())
        file.flush()
        yield
        # Not deleted: whoever waits for this very file would lock one that nobody sees any more.
        file.truncate(0)


@contextmanager
def _held_by_file(store: Store, mine: dict[str, Any], clock: Clock, break_lock: bool) -> Iterator[None]:
    data = json.dumps(mine).encode()
    if break_lock:
        store.remove(LOCK)
    try:
        store.publish(LOCK, data)
    except FileExistsError:
        try:
            owner = store.read(LOCK)
        except FileNotFoundError:
            owner = b""
        killed = "dead: then give break_lock=True"
        raise _locked(store, owner, clock, killed=killed) from None
    try:
        yield
    finally:
        # It may be another's by now, who broke ours.
        with suppress(FileNotFoundError):
            if store.read(LOCK) == data:
                store.remove(LOCK)


def _locked(store: Store, owner: bytes, clock: Clock, *, killed: str) -> SnapshotError:
    holder = "another writer"
    try:
        fields = json.loads(owner)
        since = datetime.fromisoformat(fields["since"])
        holder = (
            f"process {int(fields['pid'])} on {fields['host']}, since {since:%Y-%m-%d %H:%M:%S} UTC "
            f"({_age((clock() - since).total_seconds())})"
        )
    except (ValueError, KeyError, TypeError):
        pass  # it has just begun, or just ended
    return SnapshotError(
        f"the snapshot is being written by {holder}",
        path=store.root,
        hint=f"wait until it is done, or see whether it is {killed}",
    )


def _age(seconds: float) -> str:
    for size, unit in ((86400, "day"), (3600, "hour"), (60, "minute")):
        if seconds >= size:
            count = int(seconds // size)
            return f"{count} {unit}{'s' if count > 1 else ''}"
    return f"{max(0, int(seconds))} s"
