"""A node's thread over a scripted network, in no time."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from cbframe.dcp import messages
from cbframe.dcp.positions import VBucketMetaData, VBucketOffset
from cbframe.dcp.receiver import Receipt
from cbframe.dcp.transport import Waker
from cbframe.errors import (
    CbframeError,
    ConnectError,
    ProtocolError,
    ReadCancelledError,
    ReadTimeoutError,
    ReceiverError,
    StreamError,
)
from cbframe.testing import Peer, RecordingReceiver
from cbframe.wire.blocks import DataBlock
from cbframe.wire.constants import MAX_SEQNO, Opcode, Status, StreamEndReason
from cbframe.wire.framing import Frame, response
from cbframe.wire.messages import FailoverEntry, SnapshotMarker, StreamEnd, parse_request

from .rig import NODE, Rig, down, refusing, serving
from .server import good_answer, mutation


@pytest.mark.parametrize("large", [0, 300_000])
def test_a_stream(large: int) -> None:
    rig = Rig(serving(large=large))
    events = rig.run((1, 3))
    assert events[:2] == [
        messages.NodeReady(NODE, {0: 5, 1: 0}),
        messages.StreamEnded(NODE, 1, StreamEndReason.OK, VBucketOffset.at(22, 3), progressed=True),
    ]
    assert rig.receiver.values() == {b"a": b"1" + b" " * large, b"b": b"2", b"c": b"3"}
    assert rig.receiver.snapshots == [(1, 0, 3, 1)]
    assert rig.receiver.threads[1] == {f"cbframe-node-{NODE}"}
    stats = rig.stats
    assert (stats.mutations, stats.blocks, stats.snapshots) == (3, 2 if large else 1, 1)
    assert (stats.tot_upr_stream_req, stats.streams_opened, stats.streams_ended) == (1, 1, 1)
    assert (stats.tot_worker_connect, stats.tot_worker_done, stats.errors) == (1, 1, 1)
    assert stats.buffer_acks == 1
    assert rig.transport.closed == 1


def test_silence_is_death_after_two_noop_intervals() -> None:
    rig = Rig(serving())
    failure = down(rig.run())
    assert isinstance(failure.error, ReadTimeoutError)
    assert not failure.error.permanent
    assert failure.error.node == NODE
    assert rig.clock.now == 1240
    assert rig.errors == [failure.error]


def test_a_ping_that_is_answered_shows_that_the_node_lives() -> None:
    """Three times, and then the node hangs up."""
    pings = 0

    def peer(frame: Frame) -> bytes | None:
        nonlocal pings
        if frame.opcode != Opcode.NOOP:
            return serving()(frame)
        pings += 1
        return None if pings > 3 else response(frame.opcode, opaque=frame.opaque).encode()

    rig = Rig(peer)
    failure = down(rig.run())
    assert type(failure.error) is ConnectError
    assert rig.clock.now == 1000 + 4 * 30
    stats = rig.stats
    assert (stats.tot_ping_timeout, stats.tot_ping_req, stats.tot_ping_req_done) == (4, 4, 4)


def test_a_stream_request_that_is_never_answered() -> None:
    """Regression: a node that answers pings and sends NOOPs was waited for without end."""

    def peer(frame: Frame) -> bytes | None:
        if frame.opcode == Opcode.NOOP:
            return response(frame.opcode, opaque=frame.opaque).encode()
        return b"" if frame.opcode == Opcode.DCP_STREAM_REQ and frame.vbucket == 2 else serving()(frame)

    rig = Rig(peer)
    failure = down(rig.run((1, 3), (2, 3)))
    assert isinstance(failure.error, ReadTimeoutError)
    assert "1 request was not answered" in str(failure.error)
    assert not failure.error.permanent
    assert rig.clock.now == 1060
    assert set(rig.receiver.documents) == {1}


def test_a_silent_handshake() -> None:
    rig = Rig(lambda frame: b"")
    failure = down(rig.run())
    assert isinstance(failure.error, ReadTimeoutError)
    assert "handshake" in str(failure.error)
    assert rig.clock.now == 1010


@pytest.mark.parametrize(("answer", "kind"), [(None, ConnectError), (b"HTTP/1.1 400 Bad", ProtocolError)])
def test_a_handshake_with_something_else(answer: bytes | None, kind: type[CbframeError]) -> None:
    failure = down(Rig(lambda frame: answer).run())
    assert type(failure.error) is kind
    assert failure.error.node == NODE
    assert failure.error.permanent == (kind is ProtocolError)


@pytest.mark.parametrize("callback", ["data_update", "snapshot_start", "set_metadata", "get_metadata"])
def test_a_callback_that_raises(callback: str, monkeypatch: pytest.MonkeyPatch) -> None:
    receiver = RecordingReceiver()

    def fail(*args: object) -> None:
        raise LookupError("nothing here")

    monkeypatch.setattr(receiver, callback, fail)
    rig = Rig(serving(), receiver)
    failure = down(rig.run((1, 3)))
    assert isinstance(failure.error, ReceiverError)
    assert "raised LookupError" in str(failure.error)
    assert isinstance(failure.error.__cause__, LookupError)
    # Regression: a block that was not taken counted as progress, and the retries had no end.
    assert not failure.progressed
    assert not failure.error.permanent
    assert rig.transport.closed == 1


@pytest.mark.parametrize(("asked", "told"), [(3, 3), (5, 0), (9, 0)])
def test_rollback(asked: int, told: int) -> None:
    """A rollback to the start or beyond would repeat for ever: it becomes one to 0."""
    receiver = RecordingReceiver()
    receiver.seqnos[1] = 5
    rig = Rig(refusing(Status.ROLLBACK, asked.to_bytes(8, "big")), receiver)
    event = rig.run((1, 9))[1]
    assert isinstance(event, messages.StreamRolledBack)
    assert event == messages.StreamRolledBack(NODE, 1)
    assert event.seqno == asked, "the event log has what the server said"
    assert receiver.rollbacks == [(1, told)]


def test_the_history_of_a_stream_and_the_one_that_was_known() -> None:
    receiver = RecordingReceiver()
    receiver.metadata[1] = VBucketMetaData(failover_log=(FailoverEntry(77, 0),)).to_json()
    rig = Rig(serving(), receiver)
    rig.run((0, 3), (1, 3))
    assert sorted(rig.histories) == [(0, 0, 22), (1, 77, 22)]


def test_a_position_outside_the_history_is_read_anew() -> None:
    receiver = RecordingReceiver()
    receiver.seqnos[1] = 5
    rig = Rig(refusing(Status.ERANGE), receiver)
    assert rig.run((1, 9))[1] == messages.StreamRolledBack(NODE, 1)
    assert receiver.rollbacks == [(1, 0)]
    assert "position 5" in str(rig.errors[0])


def test_a_refusal_brings_a_map() -> None:
    rig = Rig(refusing(Status.NOT_MY_VBUCKET, b'{"rev":1}'))
    assert rig.run((1, 9))[1] == messages.StreamRefused(NODE, 1, Status.NOT_MY_VBUCKET)
    assert rig.configs == [b'{"rev":1}']


def test_a_resumed_stream_asks_from_where_it_was() -> None:
    asked = []

    def peer(frame: Frame) -> bytes | None:
        if frame.opcode == Opcode.DCP_STREAM_REQ:
            asked.append(parse_request(frame))
        return serving()(frame)

    receiver = RecordingReceiver()
    Rig(peer, receiver).run((1, 3))
    Rig(refusing(Status.ETMPFAIL), receiver).run((1, 9))
    rig = Rig(peer, receiver)
    rig.run((1, 9))
    first, second = asked
    assert (first.start, first.vbuuid) == (0, 0)
    # seqno 3 lies before the newest history began (5), so it belongs to the older one.
    assert (second.start, second.vbuuid, second.snap_start, second.snap_end) == (3, 11, 3, 3)


def test_a_node_that_left_the_cluster_is_disconnected() -> None:
    rig = Rig(serving())
    rig.leaving = True
    failure = down(rig.run())
    assert "left the cluster" in str(failure.error)
    assert not failure.error.permanent
    assert rig.clock.now == 1000
    assert rig.transport.closed == 1


@pytest.mark.parametrize(
    ("reason", "loud"), [(0, False), (StreamEndReason.STATE_CHANGED, False), (3, True), (200, True)]
)
def test_a_stream_that_ends_without_need_is_told_of(reason: int, loud: bool) -> None:
    def peer(frame: Frame) -> bytes | None:
        if frame.opcode == Opcode.DCP_STREAM_REQ:
            end = StreamEnd(frame.vbucket, reason).frame(frame.opaque)
            return good_answer(frame).encode() + end.encode()
        return serving()(frame)

    rig = Rig(peer)
    rig.run((1, 3))
    told = [error for error in rig.errors if isinstance(error, StreamError)]
    assert [(error.node, error.vbucket) for error in told] == ([(NODE, 1)] if loud else [])


def test_a_node_that_leaves_while_it_is_being_connected_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """Regression: the order to stop rang, and the read ended as if someone had cancelled it."""
    rig = Rig(serving())

    def connect(node: str, waker: Waker, timeout: float) -> None:
        raise ReadCancelledError("cancelled while connecting", node=node)

    monkeypatch.setattr(rig.transport, "connect", connect)
    rig.thread.post(messages.StopNode(NODE, "the node has left the cluster map"))
    error = down(rig.run()).error
    assert isinstance(error, ConnectError)
    assert not error.permanent
    assert error.message.startswith("the node has left the cluster map: ")
    assert rig.stats.tot_worker_connect_err == 1
    assert rig.errors == [error]


# --- a node that answers, and sends nothing


def answering_only(times: int) -> Peer:
    """A node that grants streams, announces a snapshot, and then only answers, so many times."""
    left = iter(range(times))

    def peer(frame: Frame) -> bytes | None:
        if frame.opcode == Opcode.NOOP:
            return None if next(left, None) is None else response(Opcode.NOOP, opaque=frame.opaque).encode()
        if frame.opcode != Opcode.DCP_STREAM_REQ:
            return serving()(frame)
        answer = good_answer(frame).encode()
        return answer + SnapshotMarker(frame.vbucket, 0, 3, 1).frame(frame.opaque).encode()

    return peer


@pytest.mark.parametrize("idle", [None, 5, 100, 1000])
def test_a_node_that_answers_and_sends_nothing(idle: float | None, caplog: pytest.LogCaptureFixture) -> None:
    rig = Rig(answering_only(50), idle=idle)  # it is asked every 30 s
    began = rig.clock()
    error = down(rig.run((1, 3), (2, 3), (3, 3), (7, 3))).error
    passed = rig.clock() - began
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    if idle is None:
        assert type(error) is ConnectError
        assert passed == 51 * 30
    else:
        assert isinstance(error, ReadTimeoutError)
        assert f"for {idle:g} s, and owes vbuckets 1-3, 7" in error.message
        assert error.hint is not None
        assert "idle_timeout" in error.hint
        assert (error.permanent, error.node) == (False, NODE)
        assert passed == idle
    if idle == 5:
        assert not warnings
        return
    (warning,) = warnings
    assert f"{NODE}: the node answers, but has sent nothing for 10 s, and owes vbuckets 1-3, 7" in warning
    assert (f"after {idle:g} s (idle_timeout)" in warning) if idle else "idle_timeout" not in warning


class Holder(RecordingReceiver):
    """Consumes nothing."""

    def take_block(self, block: DataBlock, receipt: Receipt) -> None:
        """The receipt is never done."""


@pytest.mark.parametrize("held", [False, True])
def test_a_window_that_we_hold_closed_is_no_fault_of_the_node(
    held: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """It counts what was sent and not consumed; as long as there is room, it may send."""

    def peer(frame: Frame) -> bytes | None:
        sent = answering(frame)
        if frame.opcode == Opcode.DCP_STREAM_REQ:
            assert sent is not None
            sent += mutation(frame.vbucket, frame.opaque, 1, b"a", b" " * (1000 if held else 500))
        return sent

    answering = answering_only(50)
    rig = Rig(peer, Holder(), idle=100)
    error = down(rig.run((1, 3))).error
    warned = any("has sent nothing" in record.getMessage() for record in caplog.records)
    assert (type(error), warned) == ((ConnectError, False) if held else (ReadTimeoutError, True))


@pytest.mark.parametrize(
    ("end", "marker", "owed"),
    [
        (5, 0, True),  # it is there, and the stream is not over
        (9, 0, True),  # 5 is the node's high seqno, and nothing came
        (9, 5, False),  # the caller waits for what is not written yet
        (9, 7, True),  # in the middle of a snapshot
        (MAX_SEQNO, 5, False),
    ],
)
def test_what_is_owed(end: int, marker: int, owed: bool, caplog: pytest.LogCaptureFixture) -> None:
    def peer(frame: Frame) -> bytes | None:
        sent = answering(frame)
        if frame.opcode == Opcode.DCP_STREAM_REQ:
            sent = good_answer(frame).encode()
            if marker:
                sent += SnapshotMarker(0, 0, marker, 1).frame(frame.opaque).encode()
                sent += mutation(0, frame.opaque, 5)
        return sent

    answering = answering_only(50)
    rig = Rig(peer)
    down(rig.run((0, end)))
    assert any("owes vbucket 0" in record.getMessage() for record in caplog.records) == owed


def test_high_seqnos_that_are_never_reported() -> None:
    """Regression: a node that kept its high seqnos to itself was waited for without end."""
    asked = 0

    def peer(frame: Frame) -> bytes | None:
        nonlocal asked
        asked += frame.opcode == Opcode.GET_ALL_VB_SEQNOS
        silent = frame.opcode == Opcode.GET_ALL_VB_SEQNOS and asked > 1
        return b"" if silent else answering(frame)

    answering = answering_only(50)
    rig = Rig(peer)
    began = rig.clock()
    error = down(rig.run((0, 5))).error
    assert isinstance(error, ReadTimeoutError)
    assert "1 request was not answered for 60 s" in error.message
    assert rig.clock() - began == 60


def test_nothing_to_come_is_no_reason_to_wait_for_it(caplog: pytest.LogCaptureFixture) -> None:
    """All streams are complete: silence of another kind ends it, later."""
    rig = Rig(serving(), ping_timeout=1000, idle=30)
    error = down(rig.run((1, 3))).error
    assert "silent" in error.message
    assert not caplog.records


class Preparing(RecordingReceiver):
    """Rolls back once it was asked whether it can, and has said that it can."""

    def __init__(self, *, delayed: bool = True, target: int = 0) -> None:
        super().__init__()
        self.delayed = delayed
        self.target = target
        self.seqnos[1] = 5
        self.metadata[1] = VBucketMetaData(snap_start=5, snap_end=5).to_json()

    def on_block(self, block: DataBlock) -> None:
        raise AssertionError("nothing comes")

    def prepare_rollback(self, ready: Callable[[], None]) -> bool:
        if self.delayed:
            assert not self.rollbacks
            self.delayed = False
            ready()
            return False
        return True

    def rollback(self, vbucket: int, seqno: int) -> VBucketOffset:
        super().rollback(vbucket, seqno)
        return VBucketOffset.at(0, self.target)


@pytest.mark.parametrize("status", [Status.ROLLBACK, Status.ERANGE])
def test_a_rollback_waits_for_a_receiver_that_has_to_prepare(status: Status) -> None:
    receiver = Preparing()
    rig = Rig(refusing(status, (2).to_bytes(8, "big") if status is Status.ROLLBACK else b""), receiver)
    events = rig.run((1, 9))
    assert events.count(messages.StreamRolledBack(NODE, 1)) == 1
    assert receiver.rollbacks == [(1, 2 if status is Status.ROLLBACK else 0)]
    assert not receiver.delayed


def test_a_receiver_that_does_not_go_back_far_enough() -> None:
    rig = Rig(refusing(Status.ROLLBACK, (2).to_bytes(8, "big")), Preparing(delayed=False, target=3))
    events = rig.run((1, 9))
    assert messages.StreamRolledBack(NODE, 1) not in events
    error = down(events).error
    assert isinstance(error, ReceiverError)
    assert (error.vbucket, error.message) == (
        1,
        "the receiver rolled back to seqno 3, and not to 2 or before",
    )
