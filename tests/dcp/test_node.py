"""A node's thread over a scripted network, in no time."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from cbframe.dcp import messages
from cbframe.dcp.messages import StreamRolledBack
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
from cbframe.testing import FakeClock, RecordingReceiver
from cbframe.wire.blocks import DataBlock
from cbframe.wire.constants import MAX_SEQNO, Opcode, Status, StreamEndReason, StreamFlag
from cbframe.wire.framing import Frame
from cbframe.wire.messages import (
    FailoverEntry,
    OsoSnapshot,
    SelectBucket,
    SeqnoAdvanced,
    SnapshotMarker,
    StreamEnd,
    SystemEvent,
    parse_request,
)

from .rig import NODE, Listening, Rig, Sent, alive, down, refusing, sending, serving
from .server import LOG, LOGIN, good_answer, mutation, push, replaced


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
    rig = Rig(alive(serving(), 3))
    failure = down(rig.run())
    assert type(failure.error) is ConnectError
    assert rig.clock.now == 1000 + 4 * 30
    stats = rig.stats
    assert (stats.tot_ping_timeout, stats.tot_ping_req, stats.tot_ping_req_done) == (4, 4, 4)


def test_a_stream_request_that_is_never_answered() -> None:
    """Regression: a node that answers pings and sends NOOPs was waited for without end."""
    silent = {Opcode.DCP_STREAM_REQ: lambda frame: b"" if frame.vbucket == 2 else serving()(frame)}
    rig = Rig(replaced(alive(serving(), 100), silent))
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
    receiver, node = RecordingReceiver(), Listening()
    Rig(node, receiver).run((1, 3))
    Rig(refusing(Status.ETMPFAIL), receiver).run((1, 9))
    Rig(node, receiver).run((1, 9))
    first, second = node.streams()
    assert (first.start, first.vbuuid) == (0, 0)
    # seqno 3 lies before the newest history began (5), so it belongs to the older one.
    assert (second.start, second.vbuuid, second.snap_start, second.snap_end) == (3, 11, 3, 3)
    assert first.flags == second.flags == StreamFlag.ACTIVE_ONLY


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
    rig = Rig(sending(StreamEnd(1, reason)))
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

ANNOUNCED = SnapshotMarker(0, 0, 3, 1)
"""A snapshot of which nothing comes."""


@pytest.mark.parametrize("idle", [None, 5, 100, 1000])
def test_a_node_that_answers_and_sends_nothing(idle: float | None, caplog: pytest.LogCaptureFixture) -> None:
    rig = Rig(alive(sending(ANNOUNCED), 50), idle=idle)  # it is asked every 30 s
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
    rig = Rig(alive(sending(ANNOUNCED, (1, b" " * (1000 if held else 500))), 50), Holder(), idle=100)
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
    sent: tuple[Sent, ...] = (SnapshotMarker(0, 0, marker, 1), 5) if marker else ()
    down(Rig(alive(sending(*sent), 50)).run((0, end)))
    assert any("owes vbucket 0" in record.getMessage() for record in caplog.records) == owed


def test_high_seqnos_that_are_never_reported() -> None:
    """Regression: a node that kept its high seqnos to itself was waited for without end."""
    once = iter([True])

    def sampled(frame: Frame) -> bytes:
        return good_answer(frame).encode() if next(once, False) else b""

    rig = Rig(replaced(alive(sending(ANNOUNCED), 50), {Opcode.GET_ALL_VB_SEQNOS: sampled}))
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


def test_a_map_that_is_pushed_is_handed_on() -> None:
    rig = Rig(replaced(serving(), {Opcode.DCP_STREAM_REQ: lambda frame: push() + (serving()(frame) or b"")}))
    rig.run((1, 3))
    assert rig.pushes == [((1, 7), b'{"rev":7}')]
    assert sorted(rig.receiver.values()) == [b"a", b"b", b"c"]


def test_no_trace_is_kept_without_capacity() -> None:
    rig = Rig(serving(), trace_capacity=0)
    rig.run((1, 3))
    assert rig.thread.trace.lines() == []


def test_a_rollback_names_the_history_that_remains() -> None:
    """Regression: the vbuuid was always 0, since a refused stream has no failover log."""
    told: list[tuple[int, int, int]] = []

    class Receiver(RecordingReceiver):
        def rollback_ex(self, vbucket: int, vbuuid: int, seqno: int) -> None:
            told.append((vbucket, vbuuid, seqno))

    receiver = Receiver()
    Rig(serving(), receiver).run((1, 3))  # under the failover log [(22, 5), (11, 0)]
    for seqno in (2, 0):
        Rig(refusing(Status.ROLLBACK, seqno.to_bytes(8, "big")), receiver).run((1, 9))
    receiver.seqnos[1] = 9
    Rig(refusing(Status.ROLLBACK, (6).to_bytes(8, "big")), receiver).run((1, 9))
    assert told == [(1, 11, 2), (1, 0, 0), (1, 22, 6)]


# --- what the receiver is told

CREATED = SystemEvent(1, 4, 0, 0, "c", bytes(16), 0, 0, 0)


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


def told(*sent: Sent) -> list[object]:
    """What a receiver that wants to know everything hears of a stream that carries this."""
    receiver = Observer()
    events = Rig(sending(*sent, StreamEnd(1, 2)), receiver).run((1, MAX_SEQNO))
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
    marker = SnapshotMarker(1, 0, 9, 2, "v2.2", 9, 0, 6, 0)
    receiver = RecordingReceiver()
    values = []
    for sent in ((marker, 9), (), ()):
        node = Listening(sending(*sent, StreamEnd(1, 2)))
        Rig(node, receiver).run((1, MAX_SEQNO))
        assert json.loads(receiver.metadata[1])["purgeSeqno"] == 6
        values += [request.value for request in node.streams()]
    known = b'{"purge_seqno": "6"}'
    assert values == [b"", known, known]


@pytest.mark.parametrize(
    ("seqno", "answers"),
    [
        # A receiver that stores what it is given, and gives an older seqno after a rollback.
        (4, {}),
        # A node that does not know purge seqnos.
        (9, {Opcode.DCP_CONTROL: lambda asked: no_such_marker(asked).encode()}),
    ],
)
def test_who_does_not_know_of_a_purge(seqno: int, answers: dict[int, Any]) -> None:
    stored = VBucketMetaData(snap_start=7, snap_end=9, failover_log=tuple(LOG), purge_seqno=6)  # type: ignore[arg-type]
    receiver = RecordingReceiver()
    receiver.metadata[1], receiver.seqnos[1] = stored.to_json(), seqno
    node = Listening(replaced(serving(), answers))
    Rig(node, receiver).run((1, MAX_SEQNO))
    assert [request.value for request in node.streams()] == [b""]


def no_such_marker(asked: Frame) -> Frame:
    return replace(good_answer(asked), vbucket=4 if asked.key == b"max_marker_version" else 0)


# --- gathered receives, and max_bytes_per_sec, over a clock that goes only while the client waits


class Sender:
    """A node that sends as much as flow control allows, at once; it knows when it sent how much."""

    def __init__(self, window: int, documents: int, size: int) -> None:
        self.window = window
        self.documents = documents
        self.size = size
        self.clock: FakeClock | None = None
        self.sent: list[tuple[float, int]] = []
        self._unacked = 0
        self._next = 1
        self._opaque = 0

    @property
    def total(self) -> int:
        return sum(nbytes for _, nbytes in self.sent)

    def __call__(self, frame: Frame) -> bytes:
        if frame.opcode == Opcode.DCP_STREAM_REQ:
            self._opaque = frame.opaque
            marker = SnapshotMarker(1, 0, self.documents, 1).frame(frame.opaque).encode()
            self._unacked = len(marker)
            return good_answer(frame).encode() + marker + self._more()
        if frame.opcode == Opcode.DCP_BUFFER_ACK:
            self._unacked -= struct.unpack(">I", frame.extras)[0]
            return self._more()
        if frame.is_response or frame.opcode == Opcode.NOOP:
            return b""
        return good_answer(frame).encode()

    def _more(self) -> bytes:
        out = b""
        while self._next <= self.documents and self._unacked < self.window:
            document = mutation(1, self._opaque, self._next, b"%d" % self._next, b"x" * self.size)
            out += document
            self._unacked += len(document)
            self._next += 1
            if self._next > self.documents:
                out += StreamEnd(1, 0).frame(self._opaque).encode()
        assert self.clock is not None
        self.sent.append((self.clock.now, len(out)))
        return out


def paced(sender: Sender, **options: Any) -> Rig:
    """What reads all that a node sends, by the clock of both."""
    rig = Rig(sender, ping_timeout=10_000, **options)
    sender.clock = rig.clock
    return rig


@pytest.mark.parametrize("rate", [20_000, 100_000, 1_000_000])
@pytest.mark.parametrize("size", [10, 500, 3000])
def test_it_holds_within_ten_percent(rate: int, size: int) -> None:
    window = rate // 10
    sender = Sender(window, documents=20 * rate // (size + 60), size=size)
    rig = paced(sender, max_rate=rate, window=window)
    began = rig.clock.now
    rig.run((1, sender.documents))
    assert len(rig.receiver.values()) == sender.documents
    last = max(at for at, nbytes in sender.sent if nbytes)
    assert 0.9 * rate < sender.total / (last - began) < 1.1 * rate
    # Also over every few seconds in between, and not only on the whole.
    for start in range(0, int(last - began) - 5, 5):
        some = sum(nbytes for at, nbytes in sender.sent if start <= at - began < start + 5)
        assert 0.85 * 5 * rate < some < 1.15 * 5 * rate


def test_without_it_no_time_passes() -> None:
    sender = Sender(1000, documents=1000, size=100)
    paced(sender).run((1, sender.documents))
    assert {at for at, _ in sender.sent} == {1000.0}


def test_a_pause_is_not_idleness() -> None:
    """Nothing comes for a while, because the node may not send."""
    rig = paced(Sender(1000, documents=40, size=500), max_rate=1024, idle=0.4)
    rig.run((1, 40))
    assert len(rig.receiver.values()) == 40


class Flow:
    """A stream over which bytes come as the clock goes: `sent` gives how many, by milliseconds.

    Attributes
    ----------
    receives
        When bytes were received, and how many.
    marks
        The low-water mark of each wait.
    """

    def __init__(self, stream: Any, clock: FakeClock, sent: Callable[[int], int]) -> None:
        self._stream, self._clock, self._sent = stream, clock, sent
        self._received = stream.receive_into
        self._began = clock()
        self._taken = 0
        self.receives: list[tuple[float, int]] = []
        self.marks: list[int] = []
        stream.receive_into, stream.wait = self.receive_into, self.wait

    def _there(self) -> int:
        sent = self._sent(round((self._clock() - self._began) * 1000)) - self._taken
        return min(len(self._stream._incoming), sent)

    def wait(self, timeout: float | None, least: int = 1) -> bool:
        assert timeout is not None
        self.marks.append(least)
        until = self._clock() + timeout
        while self._there() < least and not (self._stream._over and not self._stream._incoming):
            if self._clock() + 0.001 > until + 1e-9 or not self._stream._incoming:
                self._clock.now = until
                return False
            self._clock.advance(0.001)
        return True

    def receive_into(self, view: memoryview) -> int | None:
        if self._stream._over and not self._stream._incoming:
            return 0
        count: int | None = self._received(view[: self._there()]) if self._there() else None
        if count:
            self._taken += count
            self.receives.append((self._clock(), count))
        return count


def flowing(rig: Rig, sent: Callable[[int], int]) -> Flow:
    """Have the rig read one stream whose bytes come as `sent` says."""
    flows: list[Flow] = []
    rig.transport.on_connect = lambda stream: flows.append(Flow(stream, rig.clock, sent))
    rig.run((1, 2000))
    return flows[0]


@pytest.mark.parametrize("window", [0, 1_000_000, 40_000, 3000])
def test_a_flow_of_small_messages_is_received_in_few_calls(window: int) -> None:
    """Whatever the window is: what the node may not send is never waited for."""
    rig = paced(Sender(window or 10**9, documents=2000, size=200), window=window, receive_bytes=20_000)
    flow = flowing(rig, lambda milliseconds: 5000 * milliseconds)
    assert len(rig.receiver.values()) == 2000
    total = sum(count for _, count in flow.receives)
    enough = min(20_000, window // 5) if window else 20_000
    assert rig.stats.receives == len(flow.receives) < 1.5 * total / enough + 20
    assert max(flow.marks) <= enough
    # 5000 bytes come in a millisecond, and the client adds little to that.
    last, _ = flow.receives[-1]
    assert last - 1000.0 < 1.1 * total / 5_000_000 + 0.02


def test_a_quiet_stream_is_not_waited_for() -> None:
    """100 bytes come ten times a second: each is received when it comes."""
    rig = paced(Sender(10**9, documents=50, size=40), window=10**9)
    flow = flowing(rig, lambda milliseconds: 100 * (milliseconds // 100))
    assert len(rig.receiver.values()) == 50
    late = [now - round(now * 10) / 10 for now, _ in flow.receives]
    assert max(late) < 1e-6


def test_blocks_are_acknowledged_together() -> None:
    """A fifth of the window at a time, however little is consumed at once."""
    sender = Sender(10_000, documents=500, size=300)
    rig = paced(sender, window=10_000)
    rig.run((1, sender.documents))
    assert rig.stats.buffer_acks <= sender.total / 2000


# --- faults


def test_a_position_behind_the_end_asks_for_nothing_and_loses_nothing() -> None:
    receiver, node = RecordingReceiver(), Listening()
    receiver.seqnos[1] = 7
    events = Rig(node, receiver).run((1, 5))
    (asked,) = node.streams()
    assert (asked.start, asked.end, asked.snap_start, asked.snap_end) == (7, 7, 7, 7)
    assert not [event for event in events if isinstance(event, StreamRolledBack)]
    assert receiver.rollbacks == []


def test_a_user_named_as_the_bucket_selects_it_too() -> None:
    node = Listening()
    Rig(node, login=replace(LOGIN, username="bucket")).run()
    (frame,) = node.asked(Opcode.SELECT_BUCKET)
    assert parse_request(frame) == SelectBucket("bucket")


def test_metadata_is_stored_with_the_log_and_with_the_first_item_of_a_snapshot() -> None:
    calls: list[str] = []

    class Receiver(RecordingReceiver):
        def get_metadata(self, vbucket: int) -> tuple[bytes | None, int]:
            calls.append("get")
            return super().get_metadata(vbucket)

        def set_metadata(self, vbucket: int, metadata: bytes) -> None:
            calls.append("set")
            super().set_metadata(vbucket, metadata)

        def snapshot_start(self, vbucket: int, start: int, end: int, flags: int) -> None:
            calls.append("snapshot")

        def data_update(self, vbucket: int, key: bytes, *rest: Any) -> None:
            calls.append(key.decode())

    Rig(serving(), Receiver()).run((2, 3))
    assert calls == ["get", "set", "snapshot", "set", "a", "b", "c"]
