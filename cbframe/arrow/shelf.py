"""Values that are hardly ever wanted again, put aside where they take no memory."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import IO

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cbframe.arrow.spill import Forecast, Progressed, spill_folder
from cbframe.errors import SpoolError
from cbframe.limits import shortage

_IN_MEMORY = 4 << 20
"""Bytes that are kept as they are: a small bucket needs no disk."""


class Shelf:
    """Binary arrays without nulls, in a temporary file that has no name and is gone with the process.

    Parameters
    ----------
    directory
        Where the file is made; None for the system's directory for such.

    Raises
    ------
    SpoolError
        By any method, and by what :meth:`put` returns: the disk is full, or cannot be read.
    """

    def __init__(self, directory: str | os.PathLike[str] | None = None) -> None:
        self._directory = spill_folder(directory)
        self._forecast = Forecast(self._directory)
        self._file: IO[bytes] | None = None
        self._room = _IN_MEMORY
        self._end = 0

    def put(self, array: pa.Array) -> Callable[[], pa.Array]:
        """Put an array aside; what is returned takes it up again, any number of times."""
        offsets, data = _buffers(array)
        if (self._room - data.size) >= 0:
            self._room -= data.size
            return lambda: array
        with told(self._directory):
            if self._file is None:
                self._file = tempfile.TemporaryFile(dir=self._directory)  # noqa: SIM115 - lives as long as this
            self._file.seek(self._end)
            self._file.write(memoryview(data))
        begin, self._end = self._end, self._end + data.size
        return partial(self._take, begin, offsets, array.type)

    def _take(self, begin: int, offsets: npt.NDArray[np.int64], kind: pa.DataType) -> pa.Array:
        assert self._file is not None
        with told(self._directory):
            self._file.seek(begin)
            data = self._file.read(int(offsets[-1]))
            if len(data) != offsets[-1]:
                raise OSError("a temporary file was cut")
        buffers = [None, pa.py_buffer(offsets), pa.py_buffer(data)]
        return pa.Array.from_buffers(kind, len(offsets) - 1, buffers, null_count=0)

    def foresee(self, progress: Progressed) -> None:
        """Warn where the rest of a read will not fit."""
        self._forecast.look(self._end, progress)

    def close(self) -> None:
        """Nothing is taken up any more; allowed more than once."""
        if self._file is not None:
            self._file.close()


def _buffers(array: pa.Array) -> tuple[npt.NDArray[np.int64], pa.Buffer]:
    """Offsets that begin at zero, and the bytes from there on."""
    assert array.null_count == 0
    width = np.int64 if pa.types.is_large_binary(array.type) else np.int32
    _, offsets, data = array.buffers()
    places = np.frombuffer(offsets, width)[array.offset : array.offset + len(array) + 1]
    if data is None:
        return np.zeros(len(array) + 1, width), pa.py_buffer(b"")
    begin = int(places[0])
    return places - places[0], data.slice(begin, int(places[-1]) - begin)


@contextmanager
def told(directory: str | os.PathLike[str] | None) -> Iterator[None]:
    """Turns an error of the disk into one that says what to do."""
    try:
        yield
    except (OSError, pa.ArrowInvalid) as exc:
        if (error := shortage(exc)) is not None:
            raise error from exc
        where = os.fspath(directory or tempfile.gettempdir())
        raise SpoolError(
            f"documents cannot be kept in {where!r} while the bucket is read: {exc}",
            hint="free some space there, or name another place with spool_dir=",
        ) from exc
