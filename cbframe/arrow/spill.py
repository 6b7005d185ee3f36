"""Where the rows of a read wait: in memory up to a budget, then in a folder on a disk that has room."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from math import inf
from pathlib import Path
from typing import IO, Any, TypeAlias

import numpy as np
import pyarrow as pa

from cbframe.errors import SpoolError
from cbframe.public import warn
from cbframe.system import shortage

SPILL_BYTES = 16 << 20
"""Bytes of rows that wait in memory."""

LITTLE = 64 << 20
"""Free bytes below which a warning names the folder."""
_NOTHING = 1 << 20
"""Free bytes below which nothing can be put there at all."""
_IN_MEMORY = {"tmpfs", "ramfs", "devtmpfs"}
_TABLE = Path("/proc/self/mounts")
_OTHER = "/var/tmp"  # noqa: S108 - for files that are larger, or live longer, than those in /tmp
Progressed: TypeAlias = Callable[[], tuple[int, int]]
"""Sequence numbers that a read has reached, and that it will reach."""


class Spill:
    """Record batches that wait, and are read any number of times.

    What is beyond the budget is in a temporary file, which has no name and is gone with the process.
    """

    def __init__(self, directory: str | os.PathLike[str] | None = None, budget: int | None = None) -> None:
        self._directory = spill_folder(directory)
        self._forecast = Forecast(self._directory)
        self._room = SPILL_BYTES if budget is None else budget
        self._held = 0
        self._file: IO[bytes] | None = None
        self._end = 0

    def put(self, batch: pa.RecordBatch) -> Callable[[], pa.RecordBatch]:
        """Put a batch away; what is returned gives it again, any number of times."""
        if self._keeps(batch.nbytes):
            return lambda: batch
        data = batch.serialize()
        return partial(self._batch, self._write([data]), data.size, batch.schema)

    def _batch(self, begin: int, size: int, schema: pa.Schema) -> pa.RecordBatch:
        return pa.ipc.read_record_batch(self._read(begin, size), schema)

    def put_values(self, values: pa.Array) -> Callable[[], pa.Array]:
        """Put a binary array without nulls away: its bytes are written as they are."""
        if self._keeps(values.nbytes):
            return lambda: values
        rows = len(values)
        _, offsets, data = values.buffers()
        bounds = np.frombuffer(offsets, np.int32)[values.offset : values.offset + rows + 1]
        first, length = int(bounds[0]), int(bounds[-1] - bounds[0])
        content = [] if data is None else [data.slice(first, length)]
        return partial(self._values, self._write([bounds - first, *content]), rows, length)

    def _values(self, begin: int, rows: int, length: int) -> pa.Array:
        size = (rows + 1) * 4
        octets = self._read(begin, size + length)
        buffers = [None, octets.slice(0, size), octets.slice(size)]
        return pa.Array.from_buffers(pa.binary(), rows, buffers, null_count=0)

    def _keeps(self, nbytes: int) -> bool:
        """Whether these bytes are kept in memory."""
        fits = self._held + nbytes <= self._room
        self._held += nbytes if fits else 0
        return fits

    def _write(self, parts: Iterable[Any]) -> int:
        """Add to the file; where it begins."""
        begin = self._end
        with disk_errors(self._directory):
            if self._file is None:
                self._file = tempfile.TemporaryFile(dir=self._directory)  # noqa: SIM115 - lives as long as this
                self._close = weakref.finalize(self, _close, self._file)
            self._file.seek(begin)
            for part in parts:
                self._end += self._file.write(memoryview(part).cast("B"))
        return begin

    def _read(self, begin: int, size: int) -> pa.Buffer:
        assert self._file is not None
        with disk_errors(self._directory):
            self._file.seek(begin)
            data = self._file.read(size)
            if len(data) != size:
                raise OSError("a temporary file was cut")
        return pa.py_buffer(data)

    def foresee(self, progress: Progressed) -> None:
        """Warn where the rest of a read will not fit."""
        if self._end:
            # What is in memory came at the same rate.
            self._forecast.look(self._end + self._held, progress)

    def close(self) -> None:
        """Delete the file; allowed at any time, and more than once."""
        if self._file is not None:
            self._close()


def _close(file: IO[bytes]) -> None:
    # Of a full disk: what is not written yet cannot be written, and is not wanted.
    with suppress(OSError):
        file.close()


@contextmanager
def disk_errors(directory: str) -> Iterator[None]:
    """Turns an error of the disk into one that says what to do."""
    try:
        yield
    except (OSError, pa.ArrowInvalid) as exc:
        if (error := shortage(exc)) is not None:
            raise error from exc
        raise SpoolError(
            f"documents cannot be kept in {directory!r} while the bucket is read: {exc}",
            hint="free some space there, or name another place with spool_dir=",
        ) from exc


class Forecast:
    """Warns where the rest of a read will not fit in its folder, as what was written so far tells.

    It is no error: changes that replace each other, and other programs that free space, make it fit.
    """

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._next: float = LITTLE

    def look(self, written: int, progress: Progressed) -> None:
        """Compare, each time that twice as much was written."""
        if written < self._next:
            return
        self._next = 2 * written
        reached, total = progress()
        try:
            free = shutil.disk_usage(self._folder).free
        except OSError:  # the folder was removed: files that are open stay
            return
        rest = written * (total - reached) // max(reached, 1)
        if reached and rest > free:
            self._next = inf
            _warn(
                f"about {rest / 1e6:,.0f} MB more will wait in {self._folder!r} during this read, "
                f"and {free / 1e6:,.0f} MB are free there"
            )


def spill_folder(
    directory: str | os.PathLike[str] | None,
    *,
    other: str = _OTHER,
    free_bytes: Callable[[str], int] = lambda folder: shutil.disk_usage(folder).free,
    mounts: Callable[[], Iterable[str]] | None = None,
) -> str:
    """The folder for temporary files, looked at before the read."""
    table = list((_mounts if mounts is None else mounts)())
    chosen = os.fspath(directory if directory is not None else tempfile.gettempdir())
    free = _free(chosen, free_bytes)
    in_memory = _kind(chosen, table) in _IN_MEMORY
    if (
        directory is None
        and (in_memory or free < LITTLE)
        and _is_better(other, free, in_memory, free_bytes, table)
    ):
        return other
    if free < _NOTHING:
        raise SpoolError(
            f"there is no room in {chosen!r}, where documents wait on disk while a bucket is read: "
            f"{free:,} bytes are free",
            hint="free some space there, or name another place with spool_dir=",
        )
    if in_memory:
        _warn(f"{chosen!r} is in memory ({_kind(chosen, table)}), and documents wait there during a read")
    elif free < LITTLE:
        _warn(f"only {free / 1e6:,.0f} MB are free in {chosen!r}, where documents wait during a read")
    return chosen


def _is_better(
    other: str, free: int, in_memory: bool, free_bytes: Callable[[str], int], table: list[str]
) -> bool:
    if not os.access(other, os.W_OK | os.X_OK) or _kind(other, table) in _IN_MEMORY:
        return False
    room = _free(other, free_bytes)
    return room >= LITTLE if in_memory else room > free


def _free(folder: str, free_bytes: Callable[[str], int]) -> int:
    try:
        return free_bytes(folder)
    except OSError as exc:
        raise SpoolError(
            f"documents cannot be kept in {folder!r} while the bucket is read: {exc.strerror or exc}",
            hint="make that folder, or name another place with spool_dir=",
        ) from None


def _kind(folder: str, table: list[str]) -> str:
    """The type of the file system that a folder is in; empty where the system does not say."""
    place = Path(folder).resolve()
    depth, kind = -1, ""
    for line in table:
        fields = line.split()
        if len(fields) < 3:
            continue
        # A space in a name is written \040.
        mounted = Path(re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), fields[1]))
        # Of two at one place, the later one is seen.
        if place.is_relative_to(mounted) and len(mounted.parts) >= depth:
            depth, kind = len(mounted.parts), fields[2]
    return kind


def _mounts() -> list[str]:
    try:
        return _TABLE.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except FileNotFoundError:  # only Linux has it, and not in every container
        return []


def _warn(text: str) -> None:
    warn(f"{text}; name a folder on a disk with more room with spool_dir=")
