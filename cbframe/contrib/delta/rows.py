"""Rows of changes that wait on disk, and rows of a table, found by document."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cbframe.arrow.columns import COLLECTION_ID, KEY, SEQNO, VBUCKET
from cbframe.arrow.spill import Spill

HEAD = (KEY, COLLECTION_ID, VBUCKET, SEQNO)
"""What tells which rows count."""
Mask = npt.NDArray[np.bool_]
_PLACE = np.dtype([("vbucket", np.uint16), ("seqno", np.uint64)])


class Waiting:
    """Tables of one schema that wait, to be read as often as needed.

    What their columns are is known only when all of them are there.
    """

    def __init__(self, directory: str | os.PathLike[str] | None) -> None:
        self._spill = Spill(directory)
        self._batches: list[Callable[[], pa.RecordBatch]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._spill.close()

    def put(self, table: pa.Table) -> None:
        """Put one more away."""
        self._batches += map(self._spill.put, table.to_batches())

    def tables(self) -> Iterator[pa.Table]:
        """All that was put away."""
        for load in self._batches:
            yield pa.Table.from_batches([load()])


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
