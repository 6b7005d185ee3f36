"""``max_bytes_per_sec``: bytes counted over a clock that goes only while the client waits."""

from __future__ import annotations

import struct

import pytest

from cbframe import BucketDataSourceOptions, ConfigurationError, LocalCluster, scan_bucket
from cbframe.dcp.controls import DcpSettings
from cbframe.dcp.pace import Pace
from cbframe.testing import FakeClock
from cbframe.wire.constants import Opcode
from cbframe.wire.frame import Frame
from cbframe.wire.messages import SnapshotMarker, StreamEnd

from .rig import Rig
from .server import good_answer, mutation


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
    rig = Rig(sender, max_rate=1000, ping_timeout=10_000, idle=0.4)
    sender.clock = rig.clock
    rig.run((1, sender.documents))
    assert len(rig.receiver.values()) == sender.documents


def test_who_is_late_catches_up_a_little() -> None:
    pace = Pace(1000, 0.0)
    pace.told(100, 0.0)
    assert pace.left(0.0) == pytest.approx(0.1)
    pace.told(100, 0.15)  # 0.05 late
    assert pace.left(0.15) == pytest.approx(0.05)
    pace.told(100, 10.0)  # long after, only a tenth of a second is made up for
    assert pace.left(10.0) == 0
    pace.told(100, 10.0)
    assert pace.left(10.0) == pytest.approx(0.1)


def test_the_window_is_a_tenth_of_a_second() -> None:
    assert DcpSettings.of(BucketDataSourceOptions(max_bytes_per_sec=50_000), "n").buffer_size == 5000
    assert DcpSettings.of(BucketDataSourceOptions(max_bytes_per_sec=10**10), "n").buffer_size == 20_000_000
    with pytest.raises(ConfigurationError, match="at least 1024"):
        BucketDataSourceOptions(max_bytes_per_sec=100)
    with pytest.raises(ConfigurationError, match="needs flow control"):
        BucketDataSourceOptions(max_bytes_per_sec=10_000, feed_buffer_size_bytes=0)


def test_a_whole_read() -> None:
    with LocalCluster(nodes=2, vbuckets=16) as cluster:
        cluster.bulk_load((b"%d" % n, b'{"n":%d}' % n) for n in range(2000))
        options = BucketDataSourceOptions(noop_interval_secs=20, max_bytes_per_sec=1_000_000)
        assert scan_bucket(cluster, options=options).to_arrow().num_rows == 2000
