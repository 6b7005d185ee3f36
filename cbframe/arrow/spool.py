"""The documents of a bounded read, put down on disk while they come, so that memory stays bounded.

Which of them count is known only when the read is complete: a rollback takes back, a later snapshot
replaces, a collection is dropped. So nothing is handed on before, and everything is read again then.
"""

from __future__ import annotations

import os
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cbframe.arrow.batcher import VERSION, GatheringReceiver, newest, of_dropped
from cbframe.arrow.columns import KEY, OPCODE, VALUE, VBUCKET
from cbframe.arrow.exclusion import is_document
from cbframe.arrow.shelf import told
from cbframe.arrow.spill import Forecast, Progressed, spill_folder
from cbframe.dcp.receiver import Receipt
from cbframe.wire.blocks import DataBlock

ARRIVED = "_cb_number"
"""In which batch a row arrived."""


class DeferringBatchReceiver(GatheringReceiver[tuple[pa.RecordBatch, Receipt]]):
    """Gathers a bounded read for someone who says when documents are consumed."""

    __slots__ = ()

    def take_block(self, block: DataBlock, receipt: Receipt) -> None:
        self._batches.put((self._record_batch(block), receipt))


class Spool:
    """Record batches on disk: written once, then read as often as needed.

    Keys and metadata are apart from values, so that what counts is found without reading these.

    Parameters
    ----------
    schema
        Of the batches.
    directory
        Where the files are made; None for the system's directory for such. They have no names: also
        a process that is killed leaves nothing behind.

    Raises
    ------
    SpoolError
        By any method: the disk is full, or cannot be written.
    """

    def __init__(self, schema: pa.Schema, directory: str | os.PathLike[str] | None = None) -> None:
        self._values_schema = pa.schema([schema.field(VALUE)])
        heads = [field for field in schema if field.name != VALUE]
        self._heads_schema = pa.schema([*heads, pa.field(ARRIVED, pa.int64(), nullable=False)])
        self._directory = directory = spill_folder(directory)
        self._forecast = Forecast(directory)
        self._readers: list[Any] = []
        self._count = 0
        codec = "lz4" if pa.Codec.is_available("lz4") else None
        options = pa.ipc.IpcWriteOptions(compression=codec, use_threads=False)
        self._files: list[IO[bytes]] = []
        self._close = weakref.finalize(self, _close, self._files)
        with told(self._directory), ExitStack() as undo:
            undo.callback(self._close)
            for _ in range(2):
                self._files.append(tempfile.TemporaryFile(dir=directory))  # noqa: SIM115 - they live as long as this
            self._writers = [
                pa.ipc.new_file(file, kind, options=options)
                for file, kind in zip(self._files, (self._heads_schema, self._values_schema), strict=True)
            ]
            undo.pop_all()

    def __len__(self) -> int:
        """How many batches there are."""
        return self._count

    def write(self, batch: pa.RecordBatch, numbers: npt.NDArray[np.int64]) -> None:
        """Put down a batch; `numbers` tells of each row in which batch it arrived."""
        arrays = [batch.column(name) for name in self._heads_schema.names[:-1]]
        heads = pa.RecordBatch.from_arrays([*arrays, pa.array(numbers)], schema=self._heads_schema)
        values = pa.RecordBatch.from_arrays([batch.column(VALUE)], schema=self._values_schema)
        with told(self._directory):
            for writer, part in zip(self._writers, (heads, values), strict=True):
                writer.write_batch(part)
        self._count += 1

    def foresee(self, progress: Progressed) -> None:
        """Warn where the rest of a read will not fit."""
        self._forecast.look(sum(file.tell() for file in self._files), progress)

    def complete(self) -> None:
        """Nothing more comes: from now on it can be read."""
        with told(self._directory):
            for writer, file in zip(self._writers, self._files, strict=True):
                writer.close()
                file.flush()
            self._readers = [pa.ipc.open_file(file) for file in self._files]

    def heads(self, number: int) -> pa.RecordBatch:
        """Keys and metadata of a batch, and in which batch each row arrived."""
        with told(self._directory):
            return self._readers[0].get_batch(number)

    def values(self, number: int) -> pa.Array:
        """Values of a batch."""
        with told(self._directory):
            return self._readers[1].get_batch(number).column(0)

    def close(self) -> None:
        """Delete the files; allowed at any time, and more than once."""
        self._readers.clear()
        self._close()


def _close(files: list[IO[bytes]]) -> None:
    for file in files:
        # Of a full disk: what is not written yet cannot be written, and is not wanted.
        with suppress(OSError):
            file.close()


class Survivors:
    """Which rows of a complete spool are the newest version of their document, and no deletion.

    Keys are held in memory only of documents that came in a vbucket's second snapshot or later:
    of what changed while the bucket was read.

    Attributes
    ----------
    stale
        Rows of which there is a newer one, be it a deletion, by batch.
    """

    def __init__(self, spool: Spool, receiver: DeferringBatchReceiver) -> None:
        self._spool = spool
        self._dropped, self._emptied = receiver.dropped, receiver.emptied()
        self._mixed = receiver.several_versions()
        self._void_before = receiver.void_before()
        self._later_from = receiver.later_from()
        self.stale = self._find_stale() if self._mixed.any() else {}

    def mask(self, number: int, heads: pa.RecordBatch) -> npt.NDArray[np.bool_]:
        """Which rows of a batch count, documents that are left out among them."""
        keep = is_document(_numpy(heads, OPCODE))
        gone = of_dropped(pa.Table.from_batches([heads]), self._dropped, self._emptied)
        if gone is not None:
            keep &= ~gone
        keep &= ~self._void(heads)
        stale = self.stale.get(number)
        if stale is not None:
            keep[stale] = False
        return keep

    def _void(self, heads: pa.RecordBatch) -> npt.NDArray[np.bool_]:
        void: npt.NDArray[np.bool_] = _numpy(heads, ARRIVED) < self._void_before[_numpy(heads, VBUCKET)]
        return void

    def _suspects(self) -> Iterator[tuple[int, pa.RecordBatch, npt.NDArray[np.bool_]]]:
        """Batches with rows that may have several versions, and which rows these are."""
        for number in range(len(self._spool)):
            heads = self._spool.heads(number)
            suspects: npt.NDArray[np.bool_] = self._mixed[_numpy(heads, VBUCKET)] & ~self._void(heads)
            if suspects.any():
                yield number, heads, suspects

    def _find_stale(self) -> dict[int, npt.NDArray[np.int64]]:
        """Rows of which there is a newer version, by batch."""
        later = [
            heads.column(KEY).filter(pa.array(suspects & self._is_later(heads)))
            for _, heads, suspects in self._suspects()
        ]
        keys = pa.chunked_array(later, pa.binary()).unique()
        some = []
        numbers: list[npt.NDArray[np.int64]] = []
        rows: list[npt.NDArray[np.int64]] = []
        for number, heads, suspects in self._suspects():
            named = pc.is_in(heads.column(KEY), value_set=keys).to_numpy(zero_copy_only=False)
            found = np.flatnonzero(suspects & named)
            some.append(heads.select(VERSION).take(pa.array(found)))
            numbers.append(np.full(len(found), number))
            rows.append(found)
        if not some:
            return {}
        stale = ~newest(pa.Table.from_batches(some))
        where, row = np.concatenate(numbers)[stale], np.concatenate(rows)[stale]
        return {int(each): row[where == each] for each in np.unique(where)}

    def _is_later(self, heads: pa.RecordBatch) -> npt.NDArray[np.bool_]:
        later: npt.NDArray[np.bool_] = _numpy(heads, ARRIVED) >= self._later_from[_numpy(heads, VBUCKET)]
        return later


def _numpy(heads: pa.RecordBatch, name: str) -> npt.NDArray[Any]:
    return np.asarray(heads.column(name).to_numpy())
