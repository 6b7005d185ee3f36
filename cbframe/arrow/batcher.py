"""The receiver that gathers documents into record batches, and knows which of them still count.

Node threads put batches in; one consumer takes them out. Batches are numbered in the order in which
they arrive: what a rollback or a newer version makes void is told by number, afterwards, by
:meth:`BatchingReceiver.surviving`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cbframe.arrow.columns import COLLECTION_ID, KEY, OPCODE, SEQNO, VBUCKET, raw_schema, record_batch
from cbframe.dcp.handover import Handover
from cbframe.errors import CbframeError
from cbframe.wire.blocks import DataBlock
from cbframe.wire.constants import MAX_VBUCKETS, Opcode


@dataclass(slots=True)
class _VBucketState:
    """What is known of one vbucket; touched by one thread at a time."""

    metadata: bytes | None = None
    snapshots: int = 0
    void_before: int = 0
    """Batches with a smaller number hold nothing of this vbucket that counts."""


@dataclass(slots=True)
class BatchingReceiver:
    """Gathers a bounded read.

    Parameters
    ----------
    metadata
        Metadata columns to keep besides those that the read itself needs.
    """

    metadata: tuple[str, ...] = ()
    schema: pa.Schema = field(init=False)
    last_error: CbframeError | None = field(default=None, init=False)
    _vbuckets: list[_VBucketState] = field(init=False, repr=False)
    _last_seqno: npt.NDArray[np.uint64] = field(init=False, repr=False)
    _batches: Handover[pa.RecordBatch] = field(default_factory=Handover, init=False, repr=False)

    def __post_init__(self) -> None:
        self.schema = raw_schema(self.metadata)
        self._vbuckets = [_VBucketState() for _ in range(MAX_VBUCKETS)]
        self._last_seqno = np.zeros(MAX_VBUCKETS, np.uint64)

    # -- the receiver's side, on the threads of the nodes

    def on_block(self, block: DataBlock) -> None:
        batch = record_batch(block, self.schema)
        # Ascending within a vbucket, so of several assignments to one place the last is the highest.
        self._last_seqno[block.vbucket] = block.seqno
        self._batches.put(batch)

    def on_error(self, error: CbframeError) -> None:
        self.last_error = error

    def snapshot_start(self, vbucket: int, start: int, end: int, flags: int) -> None:  # noqa: ARG002
        self._vbuckets[vbucket].snapshots += 1

    def set_metadata(self, vbucket: int, metadata: bytes) -> None:
        self._vbuckets[vbucket].metadata = metadata

    def get_metadata(self, vbucket: int) -> tuple[bytes | None, int]:
        return self._vbuckets[vbucket].metadata, int(self._last_seqno[vbucket])

    def rollback(self, vbucket: int, seqno: int) -> None:  # noqa: ARG002
        """Forget the vbucket altogether and read it from the start.

        The server sends only what lies behind `seqno` again. Versions at or before it that a
        withdrawn change had replaced were never sent: they were de-duplicated away.
        """
        state = self._vbuckets[vbucket]
        state.void_before = self._batches.count()
        state.metadata = None
        state.snapshots += 1
        self._last_seqno[vbucket] = 0

    # -- the consumer's side

    def take(self, timeout: float | None = None) -> list[pa.RecordBatch]:
        """All batches that arrived since the last call, waiting up to `timeout` seconds for one."""
        return self._batches.take(timeout)

    def surviving(self, batches: list[pa.RecordBatch]) -> npt.NDArray[np.bool_] | None:
        """Which rows are the newest version of their document, and no deletion.

        Parameters
        ----------
        batches
            All batches of the read, in the order in which :meth:`take` gave them.

        Returns
        -------
        numpy.ndarray of bool or None
            One entry a row over all batches; None if every row counts.
        """
        table = pa.Table.from_batches(batches, self.schema)
        mutation: npt.NDArray[np.bool_] = _column(table, OPCODE) == Opcode.DCP_MUTATION
        # Within one snapshot a key occurs once. Only vbuckets with more than one can hold it twice.
        mixed = np.array([state.snapshots > 1 for state in self._vbuckets])
        vbucket = _column(table, VBUCKET)
        suspects = np.flatnonzero(mixed[vbucket])
        if not len(suspects):
            return None if mutation.all() else mutation
        keep = mutation.copy()
        number = np.repeat(np.arange(len(batches)), [batch.num_rows for batch in batches])
        void_before = np.array([state.void_before for state in self._vbuckets])
        void = number[suspects] < void_before[vbucket[suspects]]
        keep[suspects[void]] = False
        suspects = suspects[~void]
        keep[suspects[~_newest(table, suspects)]] = False
        return keep


def _newest(table: pa.Table, rows: npt.NDArray[np.intp]) -> npt.NDArray[np.bool_]:
    """Which of `rows` has the highest seqno of its document.

    A document is a key in a collection; its vbucket follows from the key.
    """
    some = table.select([KEY, COLLECTION_ID, SEQNO]).take(pa.array(rows))
    key = some[KEY].combine_chunks().dictionary_encode()
    if isinstance(key, pa.ChunkedArray):
        key = key.unify_dictionaries().combine_chunks()
    codes = np.asarray(key.indices)
    collection = _column(some, COLLECTION_ID)
    order = np.lexsort((_column(some, SEQNO), codes, collection))
    last = np.ones(len(order), bool)
    if len(order) > 1:
        same = (codes[order][1:] == codes[order][:-1]) & (collection[order][1:] == collection[order][:-1])
        last[:-1] = ~same
    newest = np.empty(len(order), bool)
    newest[order] = last
    return newest


def _column(table: pa.Table, name: str) -> npt.NDArray[Any]:
    return np.asarray(table[name].to_numpy())
