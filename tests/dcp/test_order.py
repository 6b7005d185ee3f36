"""Snapshots without an order, and progress without documents."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from cbframe.dcp import messages
from cbframe.dcp.connection import Advanced, Data, DcpConnection, Ordered, Snapshot
from cbframe.dcp.positions import VBucketMetaData
from cbframe.dcp.streams import Stream
from cbframe.errors import ProtocolError
from cbframe.testing import RecordingReceiver
from cbframe.wire.constants import DATA_OPCODES, MAX_SEQNO, Opcode, SnapshotFlag, StreamEndReason
from cbframe.wire.framing import Frame
from cbframe.wire.messages import (
    OsoSnapshot,
    SeqnoAdvanced,
    SnapshotMarker,
    StreamEnd,
    StreamRequest,
    SystemEvent,
)

from .rig import Rig, serving
from .server import LOG, SETTINGS, connect, feed, frames, good_answer, mutation

CREATED = SystemEvent(1, 4, 0, 0, "c", bytes(16), 0, 0, 0)


def open_stream(start: int = 0) -> tuple[DcpConnection, Stream]:
    connection = connect(replace(SETTINGS, feed_buffer_size_bytes=1 << 20))
    stream = connection.request_stream(StreamRequest(1, start, vbuuid=22 if start else 0))
    (asked,) = frames(connection.data_to_send())
    feed(connection, good_answer(asked).encode())
    return connection, stream


def message(stream: Stream, what: OsoSnapshot | SeqnoAdvanced | SnapshotMarker | StreamEnd) -> bytes:
    return what.frame(stream.opaque).encode()


def begin(stream: Stream) -> bytes:
    return message(stream, OsoSnapshot(1, 1))


def end(stream: Stream) -> bytes:
    return message(stream, OsoSnapshot(1, 2))


@pytest.mark.parametrize("advanced", [0, 7, 9, 12], ids=lambda seqno: f"advanced to {seqno}")
@pytest.mark.parametrize("after", [False, True])
def test_an_out_of_order_snapshot(advanced: int, after: bool) -> None:
    """No position inside of it; behind it, the highest seqno that was seen or told."""
    connection, stream = open_stream()
    told = message(stream, SeqnoAdvanced(1, advanced)) if advanced else b""
    documents = b"".join(mutation(1, stream.opaque, seqno) for seqno in (9, 3, 5))
    events = feed(connection, begin(stream) + documents)
    assert isinstance(events[0], Snapshot)
    assert (stream.snap_start, stream.snap_end, stream.snap_flags) == (0, MAX_SEQNO, SnapshotFlag.DISK)
    assert (stream.unordered, stream.seqno) == (True, 0)
    assert isinstance(events[1], Data)
    assert events[1].block.seqno.tolist() == [9, 3, 5]
    events = feed(connection, end(stream) + told if after else told + end(stream))
    kinds = [Ordered, Advanced] if after else [Advanced, Ordered]
    assert [type(event) for event in events] == (kinds if advanced else [Ordered])
    assert not stream.unordered
    assert stream.seqno == max(9, advanced)
    # What follows has an order again.
    feed(connection, message(stream, SnapshotMarker(1, 13, 14, 1)) + mutation(1, stream.opaque, 14))
    assert stream.seqno == 14
    with pytest.raises(ProtocolError):
        feed(connection, mutation(1, stream.opaque, 13))


def test_what_a_real_node_sends() -> None:
    """As recorded: a bounded stream, and one that goes on after such a snapshot."""
    recorded = frames((Path(__file__).parent.parent / "golden" / "oso.s2c.bin").read_bytes())
    opaques = {frame.opaque: frame.vbucket for frame in recorded if frame.opcode == Opcode.DCP_OSO_SNAPSHOT}
    reached = []
    for opaque, vbucket in opaques.items():
        connection = connect(replace(SETTINGS, feed_buffer_size_bytes=1 << 20))
        stream = connection.request_stream(StreamRequest(vbucket))
        (asked,) = frames(connection.data_to_send())
        feed(connection, good_answer(asked).encode())
        sent = [frame for frame in recorded if frame.opaque == opaque and not frame.is_response]
        events = feed(connection, b"".join(replace(f, opaque=stream.opaque).encode() for f in sent))
        kinds = [type(event) for event in events]
        assert kinds.index(Snapshot) < kinds.index(Data) < kinds.index(Ordered)
        found = [seqno for event in events if isinstance(event, Data) for seqno in event.block.seqno.tolist()]
        assert found == [int.from_bytes(f.extras[:8], "big") for f in sent if f.opcode in DATA_OPCODES]
        reached.append((stream.seqno, max(found)))
    assert len(reached) == 2
    assert all(seqno == highest for seqno, highest in reached)


def test_order_broken_off() -> None:
    connection, stream = open_stream()
    feed(connection, begin(stream) + mutation(1, stream.opaque, 9))
    with pytest.raises(ProtocolError, match="complete inside an out-of-order snapshot") as caught:
        feed(connection, message(stream, StreamEnd(1, StreamEndReason.OK)))
    assert caught.value.vbucket == 1


def test_other_ends_may_come_at_any_time() -> None:
    connection, stream = open_stream()
    feed(connection, begin(stream) + mutation(1, stream.opaque, 9))
    feed(connection, message(stream, StreamEnd(1, StreamEndReason.STATE_CHANGED)))
    assert connection.streams.of_vbucket(1) is None


@pytest.mark.parametrize(
    "say",
    [
        lambda s: begin(s) + begin(s),
        end,
        lambda s: begin(s) + end(s) + begin(s),
        lambda s: begin(s) + message(s, SnapshotMarker(1, 0, 9, 1)),
        lambda s: message(s, SnapshotMarker(1, 0, 9, 1)) + begin(s),
        lambda s: message(s, OsoSnapshot(1, 0)),
        lambda s: message(s, OsoSnapshot(1, 3)),
    ],
    ids=["twice", "end only", "again", "marker inside", "after a marker", "flags 0", "flags 3"],
)
def test_out_of_order_snapshots_out_of_place(say: object) -> None:
    connection, stream = open_stream()
    assert callable(say)
    with pytest.raises(ProtocolError, match="out-of-order snapshot") as caught:
        feed(connection, say(stream))
    assert caught.value.vbucket == 1


def test_an_out_of_order_snapshot_is_for_a_start_from_nothing() -> None:
    connection, stream = open_stream(start=5)
    with pytest.raises(ProtocolError, match="not the first"):
        feed(connection, begin(stream))


# --- what the receiver is told


class Observer(RecordingReceiver):
    """Wants to know everything, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[object] = []

    def set_metadata(self, vbucket: int, metadata: bytes) -> None:
        super().set_metadata(vbucket, metadata)
        found = json.loads(metadata)
        self.calls.append((found["snapStart"], found["snapEnd"]))

    def _took(self, vbucket: int, seqno: int) -> None:
        super()._took(vbucket, seqno)
        self.calls.append(seqno)

    def system_event(self, vbucket: int, event: SystemEvent) -> None:
        assert vbucket == event.vbucket
        self.calls.append(event)

    def seqno_advanced(self, vbucket: int, seqno: int) -> None:
        self.calls.append(f"{seqno} of {vbucket}")


def sending(*sent: object) -> object:
    """A node whose streams carry these messages: seqnos are documents."""

    def peer(frame: Frame) -> bytes | None:
        if frame.opcode != Opcode.DCP_STREAM_REQ or frame.is_response:
            return serving()(frame)
        answer = good_answer(frame).encode()
        for what in sent:
            if isinstance(what, int):
                answer += mutation(1, frame.opaque, what, str(what).encode())
            else:
                assert isinstance(
                    what, OsoSnapshot | SeqnoAdvanced | SnapshotMarker | StreamEnd | SystemEvent
                )
                answer += what.frame(frame.opaque).encode()
        return answer

    return peer


def told(*sent: object) -> list[object]:
    receiver = Observer()
    rig = Rig(sending(*sent, StreamEnd(1, 2)), receiver)  # type: ignore[arg-type]
    rig.leaving = False
    events = rig.run((1, MAX_SEQNO))
    assert any(isinstance(event, messages.StreamEnded) for event in events)
    assert receiver.calls[0] == (0, 0)  # the stream is granted
    return receiver.calls[1:]


def test_the_range_comes_with_the_first_that_is_told() -> None:
    ranges = (SnapshotMarker(1, 0, 9, 1), SnapshotMarker(1, 10, 12, 1))
    assert told(ranges[0], CREATED, 5, SeqnoAdvanced(1, 9), ranges[1], SeqnoAdvanced(1, 12)) == [
        (0, 9),
        CREATED,
        5,
        "9 of 1",
        (10, 12),
        "12 of 1",
    ]


def test_inside_an_out_of_order_snapshot_there_is_no_progress() -> None:
    """Whoever stores what is told, and comes back after a crash, is sent back to the start."""
    assert told(OsoSnapshot(1, 1), CREATED, 9, 3, SeqnoAdvanced(1, 10), OsoSnapshot(1, 2)) == [
        (0, MAX_SEQNO),
        CREATED,
        9,
        3,
        (10, 10),
    ]


def test_purge_seqnos_are_stored_and_given_back() -> None:
    requests = []

    def peer(frame: Frame) -> bytes | None:
        if frame.opcode == Opcode.DCP_STREAM_REQ and not frame.is_response:
            requests.append(frame.value)
            answer = good_answer(frame).encode()
            if not frame.extras[8:16].strip(b"\0"):
                answer += SnapshotMarker(1, 0, 9, 2, "v2.2", 9, 0, 6, 0).frame(frame.opaque).encode()
                answer += mutation(1, frame.opaque, 9)
            return answer + StreamEnd(1, 2).frame(frame.opaque).encode()
        return serving()(frame)

    receiver = RecordingReceiver()
    for _ in range(3):
        rig = Rig(peer, receiver)
        rig.run((1, MAX_SEQNO))
        assert json.loads(receiver.metadata[1])["purgeSeqno"] == 6
    known = b'{"purge_seqno": "6"}'
    assert requests == [b"", known, known]


def test_who_went_back_before_a_purge_does_not_know_of_it() -> None:
    """A receiver that stores what it is given, and gives an older seqno after a rollback."""
    stored = VBucketMetaData(snap_start=7, snap_end=9, failover_log=tuple(LOG), purge_seqno=6)  # type: ignore[arg-type]
    receiver = RecordingReceiver()
    receiver.metadata[1], receiver.seqnos[1] = stored.to_json(), 4
    asked = []

    def peer(frame: Frame) -> bytes | None:
        if frame.opcode == Opcode.DCP_STREAM_REQ:
            asked.append(frame.value)
        return serving()(frame)

    Rig(peer, receiver).run((1, MAX_SEQNO))
    assert asked == [b""]


def test_a_node_that_does_not_know_purge_seqnos_gets_none() -> None:
    stored = VBucketMetaData(snap_start=9, snap_end=9, failover_log=tuple(LOG), purge_seqno=6)  # type: ignore[arg-type]
    receiver = RecordingReceiver()
    receiver.metadata[1], receiver.seqnos[1] = stored.to_json(), 9
    asked = []

    def peer(frame: Frame) -> bytes | None:
        if frame.opcode == Opcode.DCP_STREAM_REQ:
            asked.append(frame.value)
        if frame.opcode == Opcode.DCP_CONTROL and frame.key == b"max_marker_version":
            return replace(good_answer(frame), vbucket=4).encode()
        return serving()(frame)

    Rig(peer, receiver).run((1, MAX_SEQNO))
    assert asked == [b""]
