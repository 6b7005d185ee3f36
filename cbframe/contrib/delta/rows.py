"""Rows of changes that wait on disk, and rows of a table, found by document."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import IO, Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cbframe.arrow.columns import COLLECTION_ID, KEY, SEQNO, VBUCKET
from cbframe.arrow.shelf import told
from cbframe.arrow.spill import spill_folder

HEAD = (KEY, COLLECTION_ID, VBUCKET, SEQNO)
"""What tells which rows count."""
Mask = npt.NDArray[np.bool_]
_PLACE = np.dtype([("vbucket", np.uint16), ("seqno", np.uint64)])


class Waiting:
    """Tables of one schema in a temporary file without a name, to be read as often as needed.

    What their columns are is known only when all of them are there.
    """

    def __init__(self, directory: str | os.PathLike[str] | None) -> None:
        self._directory = spill_folder(directory)
        self._file: IO[bytes] | None = None
        self._writer: Any = None
        self._reader: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()

    def put(self, table: pa.Table) -> None:
        """Put down one more."""
        with told(self._directory):
            if self._file is None:
                self._file = tempfile.TemporaryFile(dir=self._directory)  # noqa: SIM115 - lives as long as this
                codec = "lz4" if pa.Codec.is_available("lz4") else None
                options = pa.ipc.IpcWriteOptions(compression=codec, use_threads=False)
                self._writer = pa.ipc.new_file(self._file, table.schema, options=options)
            self._writer.write_table(table)

    def complete(self) -> None:
        """Nothing more comes."""
        if self._file is not None:
            with told(self._directory):
                self._writer.close()
                self._file.flush()
                self._reader = pa.ipc.open_file(self._file)

    def tables(self) -> Iterator[pa.Table]:
        """All that was put down."""
        for number in range(0 if self._reader is None else self._reader.num_record_batches):
            with told(self._directory):
                batch = self._reader.get_batch(number)
            yield pa.Table.from_batches([batch])


def identities(head: pa.Table) -> pa.ChunkedArray:
    """What documents are known by: collection and key."""
    collection = head[COLLECTION_ID].cast(pa.string()).cast(pa.large_binary())
    separator = pa.scalar(b":", pa.large_binary())
    return pc.binary_join_element_wise(collection, head[KEY].cast(pa.large_binary()), separator)


class Documents:
    """A set of documents."""

    def __init__(self, heads: Sequence[pa.Table]) -> None:
        chunks = [chunk for head in heads for chunk in identities(head).chunks]
        self._values = pa.chunked_array(chunks, pa.large_binary()).unique()

    def have(self, head: pa.Table) -> Mask:
        """Which rows are of them."""
        found: Mask = pc.is_in(identities(head), value_set=self._values).to_numpy()
        return found


class Places:
    """A set of versions of documents, each known by vbucket and seqno."""

    def __init__(self, head: pa.Table) -> None:
        self._values = _places(head)

    def have(self, head: pa.Table) -> Mask:
        """Which rows are of them."""
        found: Mask = np.isin(_places(head), self._values)
        return found


def _places(head: pa.Table) -> npt.NDArray[np.void]:
    places = np.empty(len(head), _PLACE)
    places["vbucket"], places["seqno"] = head[VBUCKET].to_numpy(), head[SEQNO].to_numpy()
    return places


def beyond(head: pa.Table, limits: dict[int, int]) -> Mask:
    """Which rows have a higher seqno than their vbucket's limit, if it has one."""
    ceiling = np.full(0x10000, (1 << 64) - 1, np.uint64)
    ceiling[list(limits)] = np.array(list(limits.values()), np.uint64)
    found: Mask = head[SEQNO].to_numpy() > ceiling[head[VBUCKET].to_numpy()]
    return found
