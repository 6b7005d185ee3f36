"""How long a connection may be silent, with the time told by hand."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from cbframe.dcp.timers import Backoff, Gather, Pace, Waits, exponential_backoff_loop, vbucket_ranges
from cbframe.dcp.transport import TURNS
from cbframe.errors import ConfigurationError, ReadTimeoutError
from cbframe.options import BucketDataSourceOptions
from cbframe.wire.constants import Opcode

from .server import connect, frames

LIMITS = BucketDataSourceOptions(
    connect_timeout=10, noop_interval_secs=120, stream_request_timeout=60, ping_timeout_ms=30_000
)


def test_each_turn_of_a_handshake_has_its_time() -> None:
    waits = Waits(LIMITS, 0)
    for now, answers in ((9, 1), (18, 2), (27, 3)):
        waits.heard(now)
        waits.check(now, ready=False, unanswered=5, answers=answers)
        assert not waits.wants_ping(now, ready=False)
    waits.heard(36.9)  # bytes that are no whole answer
    waits.check(36.9, ready=False, unanswered=2, answers=3)
    assert waits.left(36, ready=False, unanswered=2) == 1
    with pytest.raises(ReadTimeoutError, match="no answer within 10 s during the handshake"):
        waits.check(37, ready=False, unanswered=2, answers=3)


def test_a_handshake_ends_however_slowly_it_goes_on() -> None:
    """A node that answers a request every 9 s makes progress, and must not hold anybody for ever."""
    waits = Waits(LIMITS, 0)
    last = TURNS * LIMITS.connect_timeout
    for answers, now in enumerate(range(0, int(last), 9)):
        waits.check(now, ready=False, unanswered=5, answers=answers)
        assert waits.left(now, ready=False, unanswered=5) == min(10, last - now)
    with pytest.raises(ReadTimeoutError, match=f"handshake took longer than {last:g} s"):
        waits.check(last, ready=False, unanswered=5, answers=answers + 1)


def test_silence_counts_from_the_last_byte_of_the_node() -> None:
    """A ping from the last byte in either direction."""
    waits = Waits(LIMITS, 0)
    waits.heard(5)
    waits.sent(10)
    assert (waits.wants_ping(39, ready=True), waits.wants_ping(40, ready=True)) == (False, True)
    assert waits.left(35, ready=True, unanswered=0) == 5
    waits.sent(200)
    waits.check(244, ready=True, unanswered=0, answers=0)
    with pytest.raises(ReadTimeoutError, match="silent for 240 s"):
        waits.check(245, ready=True, unanswered=0, answers=0)


def test_stream_requests_that_are_answered_one_after_the_other() -> None:
    """Regression: an answer that came with a new request looked like no answer."""
    waits = Waits(LIMITS, 0)
    for now in range(0, 300, 50):
        waits.heard(now)
        waits.check(now, ready=True, unanswered=1, answers=now)
    assert waits.left(250, ready=True, unanswered=0) == 30
    waits.sent(300)
    waits.heard(300)
    with pytest.raises(ReadTimeoutError, match="2 requests were not answered for 60 s"):
        waits.check(310, ready=True, unanswered=2, answers=250)


def test_no_stream_request_is_waited_for() -> None:
    waits = Waits(LIMITS, 0)
    waits.heard(100)
    waits.check(100, ready=True, unanswered=0, answers=0)
    waits.check(159, ready=True, unanswered=1, answers=0)
    assert waits.left(110, ready=True, unanswered=1) == 20


def test_streams_that_get_nothing() -> None:
    """From the last message, or from when the node could not or had nothing to send."""
    waits = Waits(replace(LIMITS, seq_end={}, idle_timeout=50), 0)
    warnings: list[tuple[float, str]] = []

    def look(now: float, messages: int, *, waiting: bool = True, owing: tuple[int, ...] = (4,)) -> None:
        waits.heard(now)
        waits.progress(now, messages, waiting=waiting)
        if waits.owed_is_due(now) and (warning := waits.owed(now, owing)):
            warnings.append((now, warning))
        waits.check(now, ready=True, unanswered=0, answers=0)

    look(0, 0, waiting=False)
    look(40, 0, waiting=False)
    look(45, 0)
    assert waits.left(45, ready=True, unanswered=0) == 5
    look(50, 0, owing=())
    look(55, 0)
    assert not warnings
    look(61, 0)
    look(89, 0)
    assert waits.left(89, ready=True, unanswered=0) == 11
    look(90, 1)
    look(101, 1)
    look(139, 1)
    assert [now for now, _ in warnings] == [61, 101]
    with pytest.raises(ReadTimeoutError, match="for 50 s, and owes vbucket 4"):
        look(140, 1)


@pytest.mark.parametrize(
    ("seq_end", "idle", "ends_at"), [("now", 300.0, 300), ({0: 1}, 7, 7), (None, 7, None)]
)
def test_only_bounded_sources_end_for_it(seq_end: Any, idle: float, ends_at: float | None) -> None:
    waits = Waits(replace(LIMITS, noop_interval_secs=1e6, seq_end=seq_end, idle_timeout=idle), 0)
    waits.progress(0, 0, waiting=True)
    waits.check(299 if ends_at is None else ends_at - 1, ready=True, unanswered=0, answers=0)
    if ends_at is None:
        waits.check(1e5, ready=True, unanswered=0, answers=0)
        return
    with pytest.raises(ReadTimeoutError, match=f"sent nothing for {ends_at} s"):
        waits.check(ends_at, ready=True, unanswered=0, answers=0)


@pytest.mark.parametrize(
    ("vbuckets", "text"),
    [
        ([3], "vbucket 3"),
        ([9, 0, 1, 2], "vbuckets 0-2, 9"),
        (range(1024), "vbuckets 0-1023"),
        (range(0, 1024, 2), f"512 vbuckets ({', '.join(str(vb) for vb in range(0, 40, 2))}, …)"),
    ],
)
def test_vbuckets_in_messages(vbuckets: Sequence[int], text: str) -> None:
    assert vbucket_ranges(vbuckets) == text


# --- back-off, by the tables of the reference


def slept(results: list[int], *settings: float) -> tuple[int, list[float]]:
    """Number of calls, and what was slept in milliseconds."""
    left = list(results)
    sleeps: list[float] = []
    exponential_backoff_loop(lambda: left.pop(0), *settings, sleep=lambda s: sleeps.append(s * 1000))  # type: ignore[arg-type]
    return len(results) - len(left), sleeps


@pytest.mark.parametrize(
    ("results", "settings", "calls", "sleeps"),
    [
        ([-1, 0], (), 1, []),
        ([1, -1], (), 2, []),
        ([1, 0, -1], (), 3, [100]),
        ([0, 0, 0, 0, 0, 0, 0, 0, -1], (), 9, [100, 150, 225, 337, 505, 757, 1000, 1000]),
        ([0, 0, 1, 0, 0, -5], (), 6, [100, 150, 100, 150]),
        *(([1, 0, 0, 0, -1], (1, huge, 1), 5, [1, 1, 1]) for huge in (1e6, 1e300, float("inf"))),
        *(([0, 0, -1], (0, huge, 1), 3, [0, 0]) for huge in (1e6, 1e300, float("inf"))),
        ([0, 0, -1], (50, 2, 10), 3, [50, 10]),  # the first may be over the maximum
    ],
)
def test_loop(results: list[int], settings: tuple[float, ...], calls: int, sleeps: list[float]) -> None:
    assert slept(results, *settings) == (calls, pytest.approx(sleeps))


def test_errors_of_the_function_pass() -> None:
    with pytest.raises(ZeroDivisionError):
        exponential_backoff_loop(lambda: 1 // 0, sleep=lambda _: None)


def test_backoff() -> None:
    backoff = Backoff()
    assert [backoff.next_delay() for _ in range(3)] == [0.1, 0.15, 0.225]
    assert "next 337 ms" in repr(backoff)
    backoff.reset()
    assert backoff.next_delay() == 0.1


@pytest.mark.parametrize("settings", [(-1, 1.5, 10), (1, 1.5, -1), (1, 0.5, 10), (1, float("nan"), 10)])
def test_wrong_settings(settings: tuple[int, float, int]) -> None:
    with pytest.raises(ConfigurationError):
        Backoff(*settings)


# --- gathered receives, and max_bytes_per_sec


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


# --- receives are gathered


def test_what_comes_after_a_silence_is_taken_at_once() -> None:
    """And so is everything where the latency is nothing; no more is waited for than can come."""
    gather = Gather(1000, 0.005)
    assert (gather.left(1.0), gather.least(1.0, 10**6)) == (0.0, 1)
    gather.received(1.0)
    assert gather.least(1.0, 10**6) == 1000
    assert gather.least(1.0, 300) == 300
    assert gather.least(1.0, -20) == 1  # the node may not send: an answer or a NOOP is all that may come
    gather.quiet()
    assert (gather.left(1.0), gather.least(1.0, 10**6)) == (0.0, 1)
    eager = Gather(1000, 0.0)
    eager.received(1.0)
    assert (eager.left(1.0), eager.least(1.0, 10**6)) == (0.0, 1)


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
