"""The rows of a bounded read of changes: put down on disk as they come, then those that count, typed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cbframe.arrow.batcher import of_dropped
from cbframe.arrow.columns import COLLECTION_ID, OPCODE, OURS, SEQNO, VBUCKET
from cbframe.arrow.spool import ARRIVED, DeferringBatchReceiver, Spool
from cbframe.cluster.manifest import Manifest
from cbframe.dcp.positions import Position, VBucketMetaData
from cbframe.dcp.receiver import Receipt
from cbframe.errors import ConversionError
from cbframe.frame.assemble import beside
from cbframe.frame.changes import CHANGE_TYPE, CHANGE_TYPES
from cbframe.frame.names import alive
from cbframe.frame.streamed import SpooledRows, SpoolingSink
from cbframe.scan.spec import ScanSpec
from cbframe.wire.constants import MAX_SEQNO, MAX_VBUCKETS, Opcode, SystemEventId
from cbframe.wire.messages import SystemEvent

_OPCODES = np.array([Opcode.DCP_MUTATION, Opcode.DCP_DELETION, Opcode.DCP_EXPIRATION])


class SpanReceiver(DeferringBatchReceiver):
    """Gathers changes behind some marks.

    Attributes
    ----------
    fallen
        Vbuckets that the server sent back: they were read from their beginning then.
    """

    __slots__ = ("_ends", "_events", "_histories", "fallen")

    fallen: set[int]

    def begin(self, marks: Mapping[int, Position], *, of_scope: bool) -> None:
        """Begin there; call it before anything is received.

        Parameters
        ----------
        marks
            Where, by vbucket.
        of_scope
            All collections of one scope are asked for.
        """
        self.fallen = set()
        # Servers tell that a collection was emptied by telling once more that it was created.
        self._ends = {SystemEventId.CREATE_COLLECTION, SystemEventId.DROP_COLLECTION}
        if of_scope:
            # One that has the name of another that was dropped: of the other's end nothing is sent.
            self._ends.add(SystemEventId.CREATE_SCOPE)
        self._events: list[tuple[int, int]] = []
        self._histories: dict[int, int] = {}
        for vbucket, position in marks.items():
            # It is not known in which snapshot the seqno lay. The server takes it for the end of one,
            # which it need not have been: that is why a new history voids it in any case.
            if position.seqno:
                self._vbuckets[vbucket].metadata = position.metadata
                self._last_seqno[vbucket] = position.seqno

    # -- on the threads of the nodes

    def rollback(self, vbucket: int, seqno: int) -> Position:
        self.fallen.add(vbucket)
        return DeferringBatchReceiver.rollback(self, vbucket, seqno)

    def store(self, vbucket: int, metadata: VBucketMetaData) -> None:
        DeferringBatchReceiver.store(self, vbucket, metadata)
        if metadata.failover_log:
            self._histories[vbucket] = metadata.failover_log[0].vbuuid

    def system_event(self, vbucket: int, event: SystemEvent) -> None:
        DeferringBatchReceiver.system_event(self, vbucket, event)
        if event.event in self._ends:
            self._events.append((vbucket, event.seqno))

    # -- afterwards

    def ends_of_collections(self, vbucket: int) -> list[int]:
        """Seqnos at which collections of a vbucket, or their scope, were created, emptied or dropped."""
        return [seqno for vb, seqno in self._events if vb == vbucket]

    def history(self, vbucket: int) -> int | None:
        """The newest history of a vbucket, as the server told last; None if it was not asked."""
        return self._histories.get(vbucket)

    def counts_from(self, vbucket: int) -> int:
        """In batches with a smaller number there is nothing of a vbucket that counts."""
        return self._vbuckets[vbucket].void_before


class Kept:
    """Which seqnos of which vbuckets are given."""

    def __init__(self) -> None:
        self._low = np.full(MAX_VBUCKETS, MAX_SEQNO, np.uint64)
        self._high = np.zeros(MAX_VBUCKETS, np.uint64)

    def add(self, vbucket: int, behind: int, most: int | None) -> None:
        """Give those of a vbucket that are behind a seqno, up to another or to where it ends."""
        self._low[vbucket] = behind
        self._high[vbucket] = MAX_SEQNO if most is None else most

    def mask(self, vbucket: npt.NDArray[np.uint16], seqno: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
        """Which rows are given."""
        found: npt.NDArray[np.bool_] = (seqno > self._low[vbucket]) & (seqno <= self._high[vbucket])
        return found


class SpanSink(SpoolingSink):
    """Takes the changes of one run to disk."""

    of_changes = True
    _receiver: SpanReceiver

    def stop_at(self, ends: Mapping[int, int]) -> None:
        """Have enough once all vbuckets are there, whatever more the server would send; never, if none."""
        self._ends = dict(ends)
        self._vbs = np.array([*ends], np.int64)
        self._goals = np.array([*ends.values()], np.uint64)
        self._seqno = np.zeros(MAX_VBUCKETS, np.uint64)
        self._number = np.zeros(MAX_VBUCKETS, np.int64)

    def add(self, arrived: list[tuple[pa.RecordBatch, Receipt]]) -> None:
        for number, (batch, _) in enumerate(arrived, self._arrived):
            # Ascending within a vbucket, but for a rollback: of several, the last is where it is.
            vbucket = batch.column(VBUCKET).to_numpy()
            self._seqno[vbucket] = batch.column(SEQNO).to_numpy()
            self._number[vbucket] = number
        super().add(arrived)

    def has_enough(self) -> bool:
        if not len(self._vbs) or not (self._seqno[self._vbs] >= self._goals).all():
            return False
        return all(self.reached(vbucket) is not None for vbucket in self._ends)

    def reached(self, vbucket: int) -> int | None:
        """How far a vbucket came; None if that is void, or not as far as it was to come."""
        seqno = int(self._seqno[vbucket])
        if vbucket not in self._ends or seqno < self._ends[vbucket]:
            return None
        return seqno if self._number[vbucket] >= self._receiver.counts_from(vbucket) else None

    def changes(self, kept: Kept) -> Iterator[pa.Table]:
        """Rows that count, in the order of each vbucket: what happened, metadata, fields.

        Raises
        ------
        ConversionError
            Documents do not fit the schema.
        ConfigurationError
            A collection that was asked for is gone.
        """
        if self._pending:
            self._put_down()
        self._spool.complete()
        self._names.refuse_dropped(self._receiver)
        ids = np.array(sorted(self._collections), np.uint32)
        manifest = self._names.manifest_of(ids, self._receiver)
        rows = _Rows(self._spool, _Given(self._receiver, kept), manifest)
        self._refuse_nameless(rows)
        return self._formed(rows, self._fields(rows), manifest)

    def _refuse_nameless(self, rows: _Rows) -> None:
        """Two documents with one key must not look like one."""
        needed = _name_columns(self._target)
        if needed.issubset(self._target.metadata):
            return
        if self._collections - {0} and any(
            rows.given(number)[COLLECTION_ID].to_numpy().any() for number in range(len(rows))
        ):
            columns = " and ".join(OURS + name for name in sorted(needed, reverse=True))
            raise ConversionError(
                "documents are of collections, and the schema has no columns for them",
                hint=f"declare {columns} as string, or read one collection only",
            )

    def _fields(self, rows: _Rows) -> Iterator[pa.Table]:
        """The fields of each batch's documents."""
        if self._typer is None:
            return (pa.table({}) for _ in range(len(rows)))
        typing = self._typing(self._typer, rows, some_went=rows.some_went())
        return (typing.form(rows.raw(number), table)[1] for number, table in typing.tables())

    def _formed(
        self, rows: _Rows, fields: Iterator[pa.Table], manifest: Manifest | None
    ) -> Iterator[pa.Table]:
        for number, table in enumerate(fields):
            raw = rows.given(number)
            if not len(raw):
                continue
            opcode = raw[OPCODE].to_numpy()
            kinds = (opcode[:, None] == _OPCODES).argmax(axis=1)
            head = self._names.head(raw, manifest)
            head = head.append_column(CHANGE_TYPE, CHANGE_TYPES.take(pa.array(kinds)))
            if table.num_columns:
                # Each row takes its document; where there is none, there is no index, and so null.
                there = kinds == 0
                head = beside(head, table.take(pa.array(np.cumsum(there) - 1, mask=~there)))
            yield head


def _name_columns(target: ScanSpec) -> set[str]:
    """Metadata without which documents of two collections may look alike."""
    if target.named is None:
        return {"scope", "collection"} if target.scope is None else {"collection"}
    places = {
        tuple(name.split(".", 1)) if "." in name else (target.scope or "_default", name)
        for name in target.named
    }
    several = {"scope": {scope for scope, _ in places}, "collection": {name for _, name in places}}
    found = {what for what, names in several.items() if len(names) > 1}
    # One of them is enough where it tells all apart.
    return next(({what} for what in sorted(found) if len(several[what]) == len(places)), found)


class _Given:
    """Which rows are given: other than in a picture of a bucket, older versions and deletions, too."""

    def __init__(self, receiver: SpanReceiver, kept: Kept) -> None:
        self._kept = kept
        self._void_before = receiver.void_before()
        self._dropped, self._emptied = receiver.dropped, receiver.emptied()

    def all(self, heads: pa.RecordBatch) -> npt.NDArray[np.bool_]:
        """Of a batch, whatever they tell."""
        vbucket = heads.column(VBUCKET).to_numpy()
        keep: npt.NDArray[np.bool_] = heads.column(ARRIVED).to_numpy() >= self._void_before[vbucket]
        keep &= self._kept.mask(vbucket, heads.column(SEQNO).to_numpy())
        gone = of_dropped(pa.Table.from_batches([heads]), self._dropped, self._emptied)
        return keep if gone is None else keep & ~gone

    def mask(self, number: int, heads: pa.RecordBatch) -> npt.NDArray[np.bool_]:  # noqa: ARG002 - as of others
        """Of a batch, those that are documents."""
        keep = self.all(heads)
        keep &= heads.column(OPCODE).to_numpy() == Opcode.DCP_MUTATION
        return keep


class _Rows(SpooledRows):
    """The documents of a spool that are given, by batch, and :meth:`given` with deletions among them."""

    def __init__(self, spool: Spool, given: _Given, manifest: Manifest | None) -> None:
        super().__init__(spool, given, manifest)
        self._given = given

    def given(self, number: int) -> pa.Table:
        """Keys and metadata of all that is given of a batch."""
        heads = self._spool.heads(number)
        keep = self._given.all(heads)
        if self.manifest is not None:
            keep &= alive(pa.Table.from_batches([heads]), self.manifest)
        return pa.Table.from_batches([heads.filter(pa.array(keep))])
