"""The streams of one connection: a table of vbuckets, and every transition that one can make."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import KW_ONLY, dataclass, field
from enum import Enum
from itertools import count

import numpy as np
import numpy.typing as npt

from cbframe.dcp.positions import VBucketOffset
from cbframe.errors import ProtocolError
from cbframe.wire.constants import MAX_SEQNO, SnapshotFlag
from cbframe.wire.messages import FailoverLog, SnapshotMarker, StreamRequest

_FIRST_OPAQUE = 0x0100_0000
"""Stream opaques count up from here, far above those of a handshake."""
_VBUCKETS = 1 << 16
"""As many as a frame can name."""


class StreamState(Enum):
    """Where a stream is in its life."""

    __hash__ = object.__hash__  # that of Enum is a call in Python, made for every message

    REQUESTED = "requested"
    RUNNING = "running"
    CLOSING = "closing"
    OVER = "over"


class StreamEvent(Enum):
    """What can happen to a stream."""

    __hash__ = object.__hash__  # as above

    ACCEPTED = "accepted"
    REFUSED = "refused"
    MARKER = "snapshot marker"
    ITEM = "item"
    CLOSE = "close"
    CLOSED = "closed"
    END = "end"


TRANSITIONS: dict[tuple[StreamState, StreamEvent], StreamState] = {
    (StreamState.REQUESTED, StreamEvent.ACCEPTED): StreamState.RUNNING,
    (StreamState.REQUESTED, StreamEvent.REFUSED): StreamState.OVER,
    (StreamState.RUNNING, StreamEvent.MARKER): StreamState.RUNNING,
    (StreamState.RUNNING, StreamEvent.ITEM): StreamState.RUNNING,
    (StreamState.RUNNING, StreamEvent.END): StreamState.OVER,
    (StreamState.RUNNING, StreamEvent.CLOSE): StreamState.CLOSING,
    # What was in flight when the stream was closed may still arrive.
    (StreamState.CLOSING, StreamEvent.MARKER): StreamState.CLOSING,
    (StreamState.CLOSING, StreamEvent.ITEM): StreamState.CLOSING,
    (StreamState.CLOSING, StreamEvent.END): StreamState.OVER,
    (StreamState.CLOSING, StreamEvent.CLOSED): StreamState.OVER,
}
"""Everything that may happen; anything else is the peer's error."""


class StreamStateError(ProtocolError):
    """A message that a stream in its state cannot get."""

    def __init__(self, state: StreamState, event: StreamEvent, vbucket: int) -> None:
        super().__init__(f"stream {state.value}: {event.value} is out of place", vbucket=vbucket)
        self.event = event


@dataclass(frozen=True, slots=True)
class VBucketState:
    """The state of a vbucket's stream at one moment.

    Attributes
    ----------
    state
        ``requested``, ``running``, ``closing`` or ``over``.
    snap_start, snap_end
        Range of the snapshot that is being received.
    failover_log
        As the server sent it when it granted the stream, newest history first.
    snap_saved
        Whether the receiver was given the range to store.
    node
        ``host:port`` of the node that streams it.
    seqno
        What was received last.
    """

    state: str
    snap_start: int
    snap_end: int
    failover_log: FailoverLog
    snap_saved: bool
    node: str
    seqno: int


@dataclass(slots=True)
class Stream:
    """One vbucket's stream on one connection, with the position that it has reached."""

    vbucket: int
    opaque: int
    start: int
    end: int
    state: StreamState = StreamState.REQUESTED
    failover_log: FailoverLog = ()
    _: KW_ONLY
    reached: npt.NDArray[np.uint64] = field(default_factory=lambda: np.zeros(1, np.uint64), repr=False)
    """A view of the table's: its documents move it, for all streams at once."""
    snap_start: int = 0
    snap_end: int = 0
    snap_flags: int = 0
    snap_saved: bool = True
    """Whether the receiver knows the snapshot's range: it is given with the first item, not before."""
    snapshots: int = 0
    unwanted: bool = False
    """To be closed as soon as the server has granted it."""
    unordered: bool = False
    """Inside an out-of-order snapshot: seqnos come in any order and mark no progress."""
    purge_seqno: int = 0
    """Deletions up to here are gone from the vbucket; 0 where the server does not report it."""
    manifest_uid: int = 0
    """The newest version of the collections manifest that was reported; 0 before any."""

    @property
    def seqno(self) -> int:
        """What came last; inside an out-of-order snapshot there is no progress."""
        return 0 if self.unordered else int(self.reached[0])

    @property
    def vbuuid(self) -> int:
        """The history that is streamed; 0 until the server granted the stream."""
        return self.failover_log[0].vbuuid if self.failover_log else 0

    def step(self, event: StreamEvent) -> None:
        """Make a transition."""
        try:
            self.state = TRANSITIONS[self.state, event]
        except KeyError:
            raise StreamStateError(self.state, event, self.vbucket) from None

    def state_now(self, node: str) -> VBucketState:
        """The state at this moment."""
        return VBucketState(
            self.state.value,
            self.snap_start,
            self.snap_end,
            self.failover_log,
            self.snap_saved,
            node,
            self.seqno,
        )

    def is_owed(self, high_seqno: int, *, filtered: bool) -> bool:
        """Whether the server has something for the stream, given the vbucket's high seqno.

        Where it is `filtered`, changes of other collections may move that seqno alone.
        """
        inside = self.snapshots > 0 and self.seqno < self.snap_end
        return inside or self.end <= high_seqno or (self.seqno < high_seqno and not filtered)

    def mark(self, marker: SnapshotMarker) -> None:
        """Begin a snapshot."""
        self.step(StreamEvent.MARKER)
        if self.unordered:
            raise ProtocolError("a snapshot marker inside an out-of-order snapshot", vbucket=self.vbucket)
        self.purge_seqno = marker.purge_seqno or self.purge_seqno
        self._begin(marker.start, marker.end, marker.flags)

    def begin_unordered(self) -> None:
        """Begin an out-of-order snapshot: everything there is, in any order.

        Its range says that nothing is complete before all of it is: whoever breaks off inside and comes
        back with this range is sent back to the start by the server.
        """
        self.step(StreamEvent.MARKER)
        if self.unordered or self.start or self.snapshots:
            raise ProtocolError("an out-of-order snapshot that is not the first", vbucket=self.vbucket)
        self.unordered = True
        self.reached[0] = 0
        self._begin(0, MAX_SEQNO, SnapshotFlag.DISK)

    def end_unordered(self) -> None:
        """All of an out-of-order snapshot is here: from now on seqnos mark progress."""
        self.step(StreamEvent.MARKER)
        if not self.unordered:
            raise ProtocolError("the end of an out-of-order snapshot without one", vbucket=self.vbucket)
        self.unordered = False
        self.snap_start = self.snap_end = self.seqno

    def _begin(self, start: int, end: int, flags: int) -> None:
        self.snap_start, self.snap_end, self.snap_flags = start, end, flags
        self.snap_saved = False
        self.snapshots += 1

    def reach(self, seqno: int) -> None:
        """Take note of progress that is no document."""
        self.step(StreamEvent.ITEM)
        self.reached[0] = max(int(self.reached[0]), seqno)

    def misplaced(self, seqno: int, *, vbucket: int, opcode: int, offset: int) -> ProtocolError:
        """What is wrong with a document that the decoder refused."""
        if vbucket == self.vbucket and self.state is not StreamState.RUNNING:
            return StreamStateError(self.state, StreamEvent.ITEM, vbucket)
        message = f"seqno {seqno} after {self.seqno} in "
        message += f"the snapshot {self.snap_start}-{self.snap_end}" if self.snapshots else "no snapshot"
        if vbucket != self.vbucket:
            message = f"a document under the opaque of vbucket {self.vbucket}"
        return ProtocolError(message, opcode=opcode, vbucket=vbucket, offset=offset)


@dataclass(slots=True)
class StreamTable:
    """The streams of a connection, by vbucket and by opaque.

    Messages are matched by opaque: what still arrives for an earlier stream of the same vbucket has
    the earlier opaque, and is dropped.
    """

    _by_opaque: dict[int, Stream] = field(default_factory=dict)
    _by_vbucket: dict[int, Stream] = field(default_factory=dict)
    _opaques: Iterator[int] = field(default_factory=lambda: count(_FIRST_OPAQUE))
    reached: npt.NDArray[np.uint64] = field(default_factory=lambda: np.zeros(_VBUCKETS, np.uint64))
    """By vbucket: the seqno that its stream has reached."""

    def __len__(self) -> int:
        return len(self._by_vbucket)

    def __iter__(self) -> Iterator[Stream]:
        return iter(self._by_vbucket.values())

    def all(self) -> list[tuple[int, Stream]]:
        """Vbuckets and their streams, at once: other threads may read them."""
        return list(self._by_vbucket.items())

    def owed(self, high_seqnos: Mapping[int, int], *, filtered: bool) -> list[int]:
        """Vbuckets of which the server has something to send; see :meth:`Stream.is_owed`."""
        return [vb for vb, s in self.all() if s.is_owed(high_seqnos.get(vb, 0), filtered=filtered)]

    def seqnos(self, vbuckets: npt.NDArray[np.intp]) -> npt.NDArray[np.uint64]:
        """What came last of vbuckets, as :attr:`Stream.seqno`; 0 of those without a stream."""
        found = self.reached[vbuckets]
        unordered = [stream.vbucket for stream in list(self._by_vbucket.values()) if stream.unordered]
        if unordered:
            found[np.isin(vbuckets, unordered)] = 0
        return found

    def open(self, request: StreamRequest) -> Stream:
        """Note a request that is about to be sent."""
        if request.vbucket in self._by_vbucket:
            raise ValueError(f"vbucket {request.vbucket} already has a stream here")
        stream = Stream(
            request.vbucket,
            next(self._opaques) & 0xFFFF_FFFF,
            request.start,
            request.end,
            reached=self.reached[request.vbucket : request.vbucket + 1],
            snap_start=request.snap_start,
            snap_end=request.snap_end,
        )
        stream.reached[0] = request.start
        self._by_opaque[stream.opaque] = self._by_vbucket[stream.vbucket] = stream
        return stream

    def get(self, opaque: int) -> Stream | None:
        """The stream that a message belongs to, or None if that stream is over."""
        return self._by_opaque.get(opaque)

    def of_vbucket(self, vbucket: int) -> Stream | None:
        return self._by_vbucket.get(vbucket)

    def remove(self, stream: Stream) -> None:
        """Forget a stream that is over; it keeps its seqno, whatever comes of the vbucket."""
        stream.reached = stream.reached.copy()
        self.reached[stream.vbucket] = 0
        del self._by_opaque[stream.opaque]
        del self._by_vbucket[stream.vbucket]


def request_from(
    vbucket: int, position: VBucketOffset, end: int = MAX_SEQNO, flags: int = 0, value: bytes = b""
) -> StreamRequest:
    """A request that continues from a position.

    Once a snapshot is complete the state at its end is consistent, and a range of its own says so. In the
    middle of a snapshot it is not: versions up to the seqno were left out for newer ones in the rest. So the
    stream may not end before the snapshot does, even if it has passed `end`.

    A snapshot of changes in memory begins with its first change. Who has that, and nothing else of it, would
    pass for one who has nothing of it, and so for consistent: a failover before the end of the snapshot would
    be no rollback, and versions that were left out before the first change are lost.
    """
    seqno, snap_start, snap_end = position.seqno, position.snap_start, position.snap_end
    if seqno == snap_end:
        snap_start = seqno
    elif seqno:
        snap_start = min(snap_start, seqno - 1)
        end = max(end, snap_end)
    vbuuid = position.vbuuid
    return StreamRequest(vbucket, seqno, max(end, seqno), vbuuid, snap_start, snap_end, flags, value)
