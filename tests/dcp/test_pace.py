"""Gathered receives, and ``max_bytes_per_sec``, over a clock that goes only while the client waits."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import pytest

from cbframe import BucketDataSourceOptions, ConfigurationError, LocalCluster, scan_bucket
from cbframe.dcp.handshake import rate_of, window_of
from cbframe.dcp.timers import Gather, Pace
from cbframe.testing import FakeClock
from cbframe.wire.constants import Opcode
from cbframe.wire.framing import Frame
from cbframe.wire.messages import SnapshotMarker, StreamEnd

from .rig import Rig
from .server import connect, frames, good_answer, mutation


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


@pytest.mark.parametrize("rate", [20_000, 100_000, 1_000_000])
@pytest.mark.parametrize("size", [10, 500, 3000])
def test_it_holds_within_ten_percent(rate: int, size: int) -> None:
    window = rate // 10
    sender = Sender(window, documents=20 * rate // (size + 60), size=size)
    rig = Rig(sender, max_rate=rate, window=window, ping_timeout=10_000)
    sender.clock = rig.clock
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
    rig = Rig(sender, ping_timeout=10_000)
    sender.clock = rig.clock
    rig.run((1, sender.documents))
    assert {at for at, _ in sender.sent} == {1000.0}


def test_a_pause_is_not_idleness() -> None:
    """Nothing comes for a while, because the node may not send."""
    sender = Sender(1000, documents=40, size=500)
    rig = Rig(sender, max_rate=1024, ping_timeout=10_000, idle=0.4)
    sender.clock = rig.clock
    rig.run((1, sender.documents))
    assert len(rig.receiver.values()) == sender.documents


def test_who_is_late_catches_up_a_little() -> None:
    pace = Pace(1000, 0.0)
    pace.acknowledged(100, 0.0)
    assert pace.left(0.0) == pytest.approx(0.1)
    pace.acknowledged(100, 0.15)  # 0.05 late
    assert pace.left(0.15) == pytest.approx(0.05)
    pace.acknowledged(100, 10.0)  # long after, only a tenth of a second is made up for
    assert pace.left(10.0) == 0
    pace.acknowledged(100, 10.0)
    assert pace.left(10.0) == pytest.approx(0.1)


def test_the_window_is_a_tenth_of_a_second() -> None:
    assert window_of(BucketDataSourceOptions(max_bytes_per_sec=50_000)) == 5000
    assert window_of(BucketDataSourceOptions(max_bytes_per_sec=10**10)) == 20_000_000
    several = BucketDataSourceOptions(max_bytes_per_sec=50_000, connections_per_node=5)
    assert (window_of(several), rate_of(several)) == (1000, 10_000)
    with pytest.raises(ConfigurationError, match="at least 1024"):
        BucketDataSourceOptions(max_bytes_per_sec=100)
    with pytest.raises(ConfigurationError, match="needs flow control"):
        BucketDataSourceOptions(max_bytes_per_sec=10_000, feed_buffer_size_bytes=0)


def test_the_window_is_divided_among_connections() -> None:
    for each, size in ((1, 20_000_000), (4, 5_000_000), (16, 1_250_000), ("auto", 5_000_000)):
        assert window_of(BucketDataSourceOptions(connections_per_node=each)) == size  # type: ignore[arg-type]
    assert window_of(BucketDataSourceOptions(connections_per_node=4, feed_buffer_size_bytes=0)) == 0
    assert window_of(BucketDataSourceOptions(connections_per_node=4, feed_buffer_size_bytes=3)) == 1


def test_a_whole_read() -> None:
    with LocalCluster(nodes=2, vbuckets=16) as cluster:
        cluster.bulk_load((b"%d" % n, b'{"n":%d}' % n) for n in range(2000))
        options = BucketDataSourceOptions(noop_interval_secs=20, max_bytes_per_sec=1_000_000)
        assert scan_bucket(cluster, options=options).to_arrow().num_rows == 2000


# --- receives are gathered


def test_what_comes_after_a_silence_is_taken_at_once() -> None:
    gather = Gather(1000, 0.005)
    assert (gather.left(1.0), gather.least(1.0, 10**6)) == (0.0, 1)
    gather.received(1.0)
    assert gather.least(1.0, 10**6) == 1000
    gather.quiet()
    assert (gather.left(1.0), gather.least(1.0, 10**6)) == (0.0, 1)


def test_the_patience_grows_with_the_flow_and_ends() -> None:
    gather = Gather(1000, 0.005)
    waited = []
    for now in range(5):
        gather.received(float(now))
        waited.append(round(gather.left(float(now)), 6))
    assert waited == [0.001, 0.002, 0.004, 0.005, 0.005]
    assert gather.left(4.003) == pytest.approx(0.002)
    assert (gather.left(4.006), gather.least(4.006, 10**6)) == (0.0, 1)
    gather.quiet()
    gather.received(9.0)
    assert gather.left(9.0) == pytest.approx(0.001)


def test_no_more_is_waited_for_than_can_come() -> None:
    gather = Gather(1000, 0.005)
    gather.received(1.0)
    assert gather.least(1.0, 300) == 300
    assert gather.least(1.0, -20) == 1  # the node may not send: an answer or a NOOP is all that may come


def test_a_latency_of_nothing_takes_everything_as_it_comes() -> None:
    gather = Gather(1000, 0.0)
    gather.received(1.0)
    assert (gather.left(1.0), gather.least(1.0, 10**6)) == (0.0, 1)


def test_how_long_a_receive_waits() -> None:
    assert BucketDataSourceOptions(receive_latency=0.0).receive_latency == 0.0
    with pytest.raises(ConfigurationError, match="receive_latency must be from 0 to 1"):
        BucketDataSourceOptions(receive_latency=1.5)
    with pytest.raises(ConfigurationError, match="receive_bytes must be at least 1"):
        BucketDataSourceOptions(receive_bytes=0)


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
    sender = Sender(window or 10**9, documents=2000, size=200)
    rig = Rig(sender, window=window, receive_bytes=20_000, ping_timeout=10_000)
    sender.clock = rig.clock
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
    sender = Sender(10**9, documents=50, size=40)
    rig = Rig(sender, window=10**9, ping_timeout=10_000)
    sender.clock = rig.clock
    flow = flowing(rig, lambda milliseconds: 100 * (milliseconds // 100))
    assert len(rig.receiver.values()) == 50
    late = [now - round(now * 10) / 10 for now, _ in flow.receives]
    assert max(late) < 1e-6


def test_a_little_is_acknowledged_where_the_node_stands_still() -> None:
    """The receiver holds most of the window, and has consumed too little for an acknowledgement."""
    connection = connect()
    connection.data_to_send()
    pace = Pace(None, 0.0)
    connection.acknowledge(150)
    assert pace.acknowledge(connection, 849, 1.0) == 0.0  # one byte is free: the node may send
    assert pace.acknowledge(connection, 850, 1.0) == pytest.approx(0.005)
    connection.acknowledge(20)
    assert pace.acknowledge(connection, 830, 1.004) == pytest.approx(0.005)  # more may be consumed soon
    assert not connection.data_to_send()
    assert pace.acknowledge(connection, 830, 1.009) == 0.0
    (frame,) = frames(connection.data_to_send())
    assert (frame.opcode, frame.extras) == (Opcode.DCP_BUFFER_ACK, struct.pack(">I", 170))


def test_blocks_are_acknowledged_together() -> None:
    """A fifth of the window at a time, however little is consumed at once."""
    sender = Sender(10_000, documents=500, size=300)
    rig = Rig(sender, window=10_000, ping_timeout=10_000)
    sender.clock = rig.clock
    rig.run((1, sender.documents))
    assert rig.stats.buffer_acks <= sender.total / 2000
