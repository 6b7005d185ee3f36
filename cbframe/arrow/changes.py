"""The receiver of a stream of changes: record batches with the positions that they lead to.

Node threads put items in, in the order of each vbucket; one consumer takes them out, and says when the
documents in them are consumed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cbframe.arrow.columns import distinct, raw_schema, record_batch
from cbframe.dcp.handover import MergingHandover
from cbframe.dcp.positions import Position, Track, VBucketMetaData
from cbframe.dcp.receiver import PositionReceiver, Receipt
from cbframe.errors import CbframeError, RollbackError
from cbframe.wire.blocks import DataBlock
from cbframe.wire.constants import MAX_BODY_LENGTH, MAX_VBUCKETS
from cbframe.wire.messages import SystemEvent

_ERRORS = 20
"""Problems that are remembered."""


@dataclass(frozen=True, slots=True)
class Arrived:
    """Documents, their receipt, and where each of their vbuckets is after them."""

    batch: pa.RecordBatch
    receipt: Receipt
    positions: Mapping[int, Position]


@dataclass(frozen=True, slots=True)
class Reached:
    """A vbucket got on without documents for us."""

    vbucket: int
    position: Position


@dataclass(frozen=True, slots=True)
class EventArrived:
    """A scope or collection came, went or changed."""

    event: SystemEvent
    position: Position


@dataclass(frozen=True, slots=True)
class Withdrawn:
    """The server took back everything after `asked`; all that came after `position` is void."""

    vbucket: int
    position: Position
    asked: int


Item: TypeAlias = Arrived | Reached | EventArrived | Withdrawn


@dataclass(slots=True)
class ChangeReceiver(PositionReceiver):
    """Takes the changes of a bucket, whatever becomes of the connections."""

    takes_compressed: ClassVar[bool] = True

    start: Mapping[int, Position]  # positions to go on from; other vbuckets begin at their start
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
        self._tracks = [Track.at(self.start.get(vb, Position())) for vb in range(MAX_VBUCKETS)]
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

    def position(self, vbucket: int) -> Position:
        return self._tracks[vbucket].requested()

    def rollback(self, vbucket: int, seqno: int) -> Position:
        if self.refuse:
            raise RollbackError(
                f"the server has withdrawn everything behind seqno {seqno}",
                vbucket=vbucket,
                hint="a failover lost changes that were streamed already: take back what was stored of this "
                'vbucket behind a snapshot at or before that seqno; on_rollback="emit" says behind which',
            )
        position = self._tracks[vbucket].rolled_back(seqno, to_base=self.to_base)
        self._items.put(Withdrawn(vbucket, position, seqno), (vbucket,))
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
