"""The receivers of documents: they make record batches of them, and keep the positions of their vbuckets.

:class:`GatheringReceiver` is that of bounded reads. Batches are numbered in the order in which they arrive:
which of them are rolled back, or may be replaced by newer versions, is known by number when the read is
complete (:mod:`cbframe.arrow.current_rows`). :class:`ChangeReceiver` is that of streams, which deliver
changes as they come, with the positions that they lead to.

The threads of the nodes put items in, one consumer takes them out. What belongs to a vbucket is touched by
one thread at a time, that of the node which has it, and needs no lock; the queues have their own.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Generic, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cbframe.arrow.columns import distinct, raw_schema, record_batch
from cbframe.dcp.positions import Track, VBucketMetaData, VBucketOffset
from cbframe.dcp.receiver import Handover, MergingHandover, PositionReceiver, Receipt
from cbframe.errors import CbframeError, RollbackError
from cbframe.wire.blocks import DataBlock
from cbframe.wire.constants import MAX_BODY_LENGTH, MAX_VBUCKETS, SnapshotFlag, SystemEventId
from cbframe.wire.messages import FailoverLog, SystemEvent

T = TypeVar("T")

_ERRORS = 20
"""Problems that are remembered."""
_SEVERAL_VERSIONS = int(SnapshotFlag.HISTORY | SnapshotFlag.MAY_CONTAIN_DUPLICATE_KEYS)


@dataclass(slots=True)
class _VBucketState:
    """What is known of one vbucket; touched by one thread at a time."""

    metadata: VBucketMetaData | None = None
    snapshots: int = 0
    later_from: int = 0
    """In batches from this number on there may be newer versions of documents in earlier ones."""
    ended: list[tuple[int, int]] = field(default_factory=list)
    """Collections that were dropped or emptied: id and seqno."""


def ended_collection(event: SystemEvent, *, existed: bool) -> int | None:
    """The id of the collection whose documents with a smaller seqno an event ends, in its vbucket.

    There is no event of a collection that was emptied: the server sends CREATE_COLLECTION once more. So that
    ends the documents of one that `existed`; whether it did is known to whoever has seen what came before.
    """
    ends = event.event == SystemEventId.DROP_COLLECTION or (
        existed and event.event == SystemEventId.CREATE_COLLECTION
    )
    return event.collection_id if ends else None


@dataclass(slots=True)
class GatheringReceiver(PositionReceiver, Generic[T]):
    """What gathers a bounded read, but for how it takes documents."""

    takes_compressed: ClassVar[bool] = True

    metadata: tuple[str, ...] = ()  # metadata columns to keep besides those that the read itself needs
    max_value: int = MAX_BODY_LENGTH  # bytes that no value may be longer than when it is inflated
    schema: pa.Schema = field(init=False)
    created: dict[int, SystemEvent] = field(default_factory=dict, init=False)
    """Collections, by id, that exist, as the streams reported."""
    scopes: dict[int, str] = field(default_factory=dict, init=False)
    """Scopes, by id, that exist, as the streams reported."""
    dropped: set[int] = field(default_factory=set, init=False)
    """Ids of collections that are gone, as the streams reported."""
    dropped_scopes: set[int] = field(default_factory=set, init=False)
    rolled_back_before: npt.NDArray[np.int64] = field(init=False, repr=False)
    """By vbucket: what batches with a smaller number have of it was rolled back."""
    last_error: CbframeError | None = field(default=None, init=False)
    _vbuckets: list[_VBucketState] = field(init=False, repr=False)
    _last_seqno: npt.NDArray[np.uint64] = field(init=False, repr=False)
    _batches: Handover[T] = field(default_factory=Handover, init=False, repr=False)

    def __post_init__(self) -> None:
        self.schema = raw_schema(self.metadata)
        self._vbuckets = [_VBucketState() for _ in range(MAX_VBUCKETS)]
        self._last_seqno = np.zeros(MAX_VBUCKETS, np.uint64)
        self.rolled_back_before = np.zeros(MAX_VBUCKETS, np.int64)

    def read_from(self, vbucket: int, position: VBucketOffset) -> VBucketOffset:
        """Read a vbucket from this position: before anything is received, or after a rollback.

        What came of it before is rolled back, and its events come again, at other seqnos.
        """
        self.rolled_back_before[vbucket] = self._batches.count()
        self._vbuckets[vbucket] = _VBucketState(position.metadata if position.seqno else None)
        self._last_seqno[vbucket] = position.seqno
        return position

    # -- the receiver's side, on the threads of the nodes

    def _record_batch(self, block: DataBlock) -> pa.RecordBatch:
        batch = record_batch(block, self.schema, max_value=self.max_value)
        # Ascending within a vbucket, so of several assignments to one place the last is the highest.
        # Not in an out-of-order snapshot; wherever the stream is continued, more comes than needed.
        self._last_seqno[block.vbucket] = block.seqno
        return batch

    def on_error(self, error: CbframeError) -> None:
        self.last_error = error

    def snapshot_start(self, vbucket: int, start: int, end: int, flags: int) -> None:  # noqa: ARG002
        state = self._vbuckets[vbucket]
        if state.snapshots == 1:
            state.later_from = self._batches.count()
        # One with the history of documents counts as many.
        state.snapshots += 2 if flags & _SEVERAL_VERSIONS else 1

    def seqno_advanced(self, vbucket: int, seqno: int) -> None:
        self._last_seqno[vbucket] = seqno

    def system_event(self, vbucket: int, event: SystemEvent) -> None:
        # At the start of a vbucket nothing existed. Of one that is new, later on, there is nothing before.
        ended = ended_collection(event, existed=bool(self._last_seqno[vbucket]))
        if ended is not None:
            self._vbuckets[vbucket].ended.append((ended, event.seqno))
        cid, scope = event.collection_id, event.scope_id
        match event.event:
            case SystemEventId.CREATE_COLLECTION if cid is not None:
                self.created[cid] = event
            case SystemEventId.DROP_COLLECTION if cid is not None:
                self.dropped.add(cid)
            case SystemEventId.CREATE_SCOPE if scope is not None:
                self.scopes[scope] = event.name
            case SystemEventId.DROP_SCOPE if scope is not None:
                self.dropped_scopes.add(scope)

    def store(self, vbucket: int, metadata: VBucketMetaData) -> None:
        self._vbuckets[vbucket].metadata = metadata

    def position(self, vbucket: int) -> VBucketOffset:
        return self.position_at(vbucket, int(self._last_seqno[vbucket]))

    def rollback(self, vbucket: int, seqno: int) -> VBucketOffset:  # noqa: ARG002
        """Forget the vbucket altogether and read it from the start.

        The server sends only what comes after `seqno` again. Versions at or before it that a rolled-back
        change had replaced were never sent: they were de-duplicated away.
        """
        return self.read_from(vbucket, VBucketOffset())

    # -- the consumer's side

    def position_at(self, vbucket: int, seqno: int) -> VBucketOffset:
        """Where to continue, once all up to `seqno` was received."""
        return VBucketOffset.of(self._vbuckets[vbucket].metadata, seqno)

    def failover_log(self, vbucket: int) -> FailoverLog:
        """The histories that a vbucket had when its last snapshot began; none before any."""
        metadata = self._vbuckets[vbucket].metadata
        return () if metadata is None else metadata.failover_log

    def take(self, timeout: float | None = None) -> list[T]:
        """All that arrived since the last call, after waiting up to `timeout` seconds for enough of it."""
        return self._batches.take(timeout)

    def wake_at(self, nbytes: int) -> None:
        """From now on :meth:`take` waits for as many bytes."""
        self._batches.enough = nbytes

    def wake(self) -> None:
        """End the wait of :meth:`take`."""
        self._batches.wake()

    def ended(self) -> dict[tuple[int, int], int]:
        """By vbucket and collection: the last seqno at which it was dropped or emptied."""
        return {(vb, cid): seqno for vb, state in enumerate(self._vbuckets) for cid, seqno in state.ended}

    def ended_at(self, vbucket: int) -> list[int]:
        """All seqnos at which collections of a vbucket were dropped or emptied."""
        return [seqno for _, seqno in self._vbuckets[vbucket].ended]

    def several_versions(self) -> npt.NDArray[np.bool_]:
        """Vbuckets that may have several versions of a document."""
        # Within one snapshot a key occurs once. Only vbuckets with more than one can hold it twice.
        return np.array([state.snapshots > 1 for state in self._vbuckets])

    def later_from(self) -> npt.NDArray[np.int64]:
        """By vbucket, if it may have several versions: where those begin that can replace others."""
        return np.array([state.later_from for state in self._vbuckets])


class DeferringBatchReceiver(GatheringReceiver[tuple[pa.RecordBatch, Receipt]]):
    """Gathers a bounded read for someone who says when documents are consumed."""

    __slots__ = ()

    def take_block(self, block: DataBlock, receipt: Receipt) -> None:
        self._batches.put((self._record_batch(block), receipt), receipt.nbytes)


@dataclass(frozen=True, slots=True)
class Arrived:
    """Documents, their receipt, and where each of their vbuckets is after them."""

    batch: pa.RecordBatch
    receipt: Receipt
    positions: Mapping[int, VBucketOffset]


@dataclass(frozen=True, slots=True)
class Reached:
    """A vbucket got on without documents for us."""

    vbucket: int
    position: VBucketOffset


@dataclass(frozen=True, slots=True)
class EventArrived:
    """A scope or collection came, went or changed."""

    event: SystemEvent
    position: VBucketOffset


@dataclass(frozen=True, slots=True)
class RolledBack:
    """The server rolled the vbucket back to `server_seqno`: all that came after `position` is rolled back."""

    vbucket: int
    position: VBucketOffset
    server_seqno: int


Item: TypeAlias = Arrived | Reached | EventArrived | RolledBack


@dataclass(slots=True)
class ChangeReceiver(PositionReceiver):
    """Takes the changes of a bucket, across all connections."""

    takes_compressed: ClassVar[bool] = True

    start: Mapping[int, VBucketOffset]  # positions to go on from; other vbuckets begin at their start
    metadata: tuple[str, ...] = ()  # metadata columns to keep
    to_base: bool = False  # after a rollback, read the vbucket again from where its stream began
    refuse: bool = False  # A rollback is an error
    max_value: int = MAX_BODY_LENGTH  # bytes that no value may be longer than when it is inflated
    schema: pa.Schema = field(init=False)
    errors: deque[CbframeError] = field(default_factory=lambda: deque(maxlen=_ERRORS), init=False)
    _tracks: list[Track] = field(init=False, repr=False)
    _seqnos: npt.NDArray[np.uint64] = field(init=False, repr=False)
    _items: MergingHandover[Item] = field(default_factory=MergingHandover, init=False, repr=False)

    def __post_init__(self) -> None:
        self.schema = raw_schema(self.metadata)
        self._tracks = [Track.at(self.start.get(vb, VBucketOffset())) for vb in range(MAX_VBUCKETS)]
        self._seqnos = np.zeros(MAX_VBUCKETS, np.uint64)

    # -- the receiver's side, on the threads of the nodes

    def take_block(self, block: DataBlock, receipt: Receipt) -> None:
        batch = record_batch(block, self.schema, max_value=self.max_value)
        # Ascending within a vbucket, so of several assignments to one place the last is the highest.
        self._seqnos[block.vbucket] = block.seqno
        positions = {}
        for vbucket in distinct(block.vbucket):
            track = self._tracks[vbucket]
            track.advanced(int(self._seqnos[vbucket]))
            positions[vbucket] = track.position()
        self._items.put(Arrived(batch, receipt, positions), positions)

    def on_error(self, error: CbframeError) -> None:
        self.errors.append(error)

    def snapshot_start(self, vbucket: int, start: int, end: int, flags: int) -> None:  # noqa: ARG002
        if self._tracks[vbucket].marked(end):
            self._reached(vbucket)

    def seqno_advanced(self, vbucket: int, seqno: int) -> None:
        self._tracks[vbucket].advanced(seqno)
        self._reached(vbucket)

    def system_event(self, vbucket: int, event: SystemEvent) -> None:
        track = self._tracks[vbucket]
        track.advanced(event.seqno)
        self._items.put(EventArrived(event, track.position()), (vbucket,))

    def store(self, vbucket: int, metadata: VBucketMetaData) -> None:
        if self._tracks[vbucket].stored(metadata):
            self._reached(vbucket)

    def position(self, vbucket: int) -> VBucketOffset:
        return self._tracks[vbucket].requested()

    def rollback(self, vbucket: int, seqno: int) -> VBucketOffset | None:
        if self.refuse:
            raise RollbackError(
                f"the server has rolled the vbucket back to seqno {seqno}",
                vbucket=vbucket,
                hint="a failover lost changes that were delivered already: delete what was stored of this "
                'vbucket after a snapshot end at or before that seqno; on_rollback="emit" reports that end',
            )
        position = self._tracks[vbucket].rolled_back(seqno, to_base=self.to_base)
        self._items.put(RolledBack(vbucket, position, seqno), (vbucket,))
        return position

    def _reached(self, vbucket: int) -> None:
        self._items.news(vbucket, Reached(vbucket, self._tracks[vbucket].position()))

    # -- the consumer's side

    def wait(self, timeout: float) -> None:
        """Wait up to `timeout` seconds for something to arrive."""
        self._items.wait(timeout)

    def take(self) -> list[Item]:
        """All that arrived since the last call."""
        return self._items.take()

    def wake(self) -> None:
        """End the consumer's wait."""
        self._items.wake()
