"""The rows of a bounded read of changes: put down on disk as they come, then those that count, typed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cbframe.arrow.batcher import DeferringBatchReceiver
from cbframe.arrow.columns import OPCODE, SEQNO, VBUCKET
from cbframe.arrow.current_rows import CurrentRows
from cbframe.cluster.collections_manifest import CollectionsManifest
from cbframe.dcp.positions import Position, VBucketMetaData
from cbframe.dcp.receiver import Receipt
from cbframe.errors import ConversionError
from cbframe.json.typer import OURS
from cbframe.scan.changes import CHANGE_TYPE, CHANGE_TYPES
from cbframe.scan.pipeline import Pipeline, Typed, beside
from cbframe.scan.spec import ScanSpec
from cbframe.wire.constants import DATA_OPCODES, MAX_SEQNO, MAX_VBUCKETS, SystemEventId
from cbframe.wire.messages import SystemEvent

_OPCODES = np.array(DATA_OPCODES, np.uint8)


class SpanReceiver(DeferringBatchReceiver):
    """Gathers changes behind some marks."""

    __slots__ = ("_ends", "_events", "_histories", "fallen")

    fallen: set[int]  # vbuckets that the server sent back: they were read from their beginning then

    def begin(self, marks: Mapping[int, Position], *, of_scope: bool) -> None:
        """Begin there; call it before anything is received."""
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
        """The newest history of a vbucket, as the server last reported; None if it was not asked."""
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


class SpanSink(Pipeline):
    """Takes the changes of one run to disk."""

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
        """Rows that count, in the order of each vbucket: what happened, metadata, fields."""
        receiver = self._receiver
        manifest = self.complete()
        current = CurrentRows(self.heads(), receiver, versions=True)

        def mask(number: int, heads: pa.RecordBatch) -> npt.NDArray[np.bool_]:
            given = kept.mask(heads.column(VBUCKET).to_numpy(), heads.column(SEQNO).to_numpy())
            return given & current.mask(number, heads)

        self.keep(mask, manifest, documents=False)
        self._refuse_nameless()
        return self._formed(self.typed(lenient=True), manifest)

    def _refuse_nameless(self) -> None:
        """Two documents with one key must not look like one."""
        needed = _name_columns(self._target)
        if self.collections - {0} and not needed.issubset(self._target.metadata):
            columns = " and ".join(OURS + name for name in sorted(needed, reverse=True))
            raise ConversionError(
                "documents are of collections, and the schema has no columns for them",
                hint=f"declare {columns} as string, or read one collection only",
            )

    def _formed(self, typed: Typed, manifest: CollectionsManifest | None) -> Iterator[pa.Table]:
        for number in range(len(self)):
            raw = self.all_of(number)
            if not len(raw):
                continue
            kinds = (raw[OPCODE].to_numpy()[:, None] == _OPCODES).argmax(axis=1)
            head = self._names.head(raw, manifest)
            head = head.append_column(CHANGE_TYPE, CHANGE_TYPES.take(pa.array(kinds)))
            table = (
                typed.form(self.raw(number), self.table(number, typed))[1] if typed.settled else pa.table({})
            )
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
