"""What a message of the server makes of its stream."""

from __future__ import annotations

from typing import TypeAlias

from cbframe.dcp.events import Advanced, CollectionEvent, Ended, Event, Ordered, Snapshot
from cbframe.dcp.streams import Stream, StreamEvent, StreamState
from cbframe.errors import ProtocolError
from cbframe.wire.constants import Opcode, StreamEndReason
from cbframe.wire.messages import (
    Commit,
    OsoSnapshot,
    SeqnoAdvanced,
    SnapshotMarker,
    StreamEnd,
    SystemEvent,
)

StreamMessage: TypeAlias = SnapshotMarker | StreamEnd | SeqnoAdvanced | OsoSnapshot | SystemEvent | Commit
_OSO_START, _OSO_END = 1, 2


def take(message: StreamMessage, stream: Stream) -> Event:
    """Have the stream take a message; what there is to tell of it."""
    match message:
        case SnapshotMarker():
            stream.mark(message)
            return Snapshot(stream)
        case StreamEnd(reason=reason):
            closing = stream.state is StreamState.CLOSING
            stream.step(StreamEvent.END)
            if stream.unordered and reason == StreamEndReason.OK and not closing:
                problem = "the stream is said to be complete inside an out-of-order snapshot"
                raise _refused(problem, Opcode.DCP_STREAM_END, stream)
            return Ended(stream, None if closing else reason)
        case SeqnoAdvanced(seqno=seqno):
            stream.reach(seqno)
            return Advanced(stream)
        case SystemEvent(seqno=seqno, manifest_uid=uid):
            stream.reach(seqno)
            stream.manifest_uid = max(stream.manifest_uid, uid or 0)
            return CollectionEvent(stream, message)
        case OsoSnapshot(flags=flags) if flags == _OSO_START:
            stream.begin_unordered()
            return Snapshot(stream)
        case OsoSnapshot(flags=flags) if flags == _OSO_END:
            stream.end_unordered()
            return Ordered(stream)
        case OsoSnapshot(flags=flags):
            raise _refused(f"an out-of-order snapshot with flags {flags}", Opcode.DCP_OSO_SNAPSHOT, stream)
        case Commit():
            # Servers send the whole document instead, unless they are asked not to.
            raise _refused("a commit of a write that was never shown", Opcode.DCP_COMMIT, stream)


def _refused(message: str, opcode: Opcode, stream: Stream) -> ProtocolError:
    return ProtocolError(message, opcode=opcode, vbucket=stream.vbucket)
