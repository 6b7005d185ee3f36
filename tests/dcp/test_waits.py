"""How long a connection may be silent, with the time told by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cbframe.dcp.waits import Timeouts, Waits
from cbframe.errors import ReadTimeoutError

LIMITS = Timeouts(connect=10, silence=240, request=60, ping=30)


def test_a_handshake_has_its_time_however_much_comes() -> None:
    waits = Waits(LIMITS, 0)
    waits.heard(9)
    waits.check(9.9, ready=False, unanswered=0, answers=0)
    assert not waits.wants_ping(9.9, ready=False)
    assert waits.left(9, ready=False, unanswered=0) == 1
    with pytest.raises(ReadTimeoutError, match="handshake took longer than 10 s"):
        waits.check(10, ready=False, unanswered=0, answers=0)


def test_silence_counts_from_the_last_byte_of_the_node() -> None:
    waits = Waits(LIMITS, 0)
    waits.heard(5)
    waits.sent(200)
    waits.check(244, ready=True, unanswered=0, answers=0)
    with pytest.raises(ReadTimeoutError, match="silent for 240 s"):
        waits.check(245, ready=True, unanswered=0, answers=0)


def test_a_ping_counts_from_the_last_byte_in_either_direction() -> None:
    waits = Waits(LIMITS, 0)
    waits.heard(5)
    waits.sent(10)
    assert (waits.wants_ping(39, ready=True), waits.wants_ping(40, ready=True)) == (False, True)
    assert waits.left(35, ready=True, unanswered=0) == 5


def test_stream_requests_that_are_answered_one_after_the_other() -> None:
    """Regression: an answer that came with a new request looked like no answer."""
    waits = Waits(LIMITS, 0)
    for now in range(0, 300, 50):
        waits.heard(now)
        waits.check(now, ready=True, unanswered=1, answers=now)
    assert waits.left(250, ready=True, unanswered=0) == 30
    waits.sent(300)
    waits.heard(300)
    with pytest.raises(ReadTimeoutError, match="2 stream requests were not answered for 60 s"):
        waits.check(310, ready=True, unanswered=2, answers=250)


def test_no_stream_request_is_waited_for() -> None:
    waits = Waits(LIMITS, 0)
    waits.heard(100)
    waits.check(100, ready=True, unanswered=0, answers=0)
    waits.check(159, ready=True, unanswered=1, answers=0)
    assert waits.left(110, ready=True, unanswered=1) == 20


def test_streams_that_get_nothing() -> None:
    """From the last message, or from when there was last nothing to wait for."""
    waits = Waits(replace(LIMITS, idle=50), 0)

    def look(now: float, messages: int, *, waiting: bool = True) -> None:
        waits.heard(now)
        waits.progress(now, messages, waiting=waiting)
        waits.check(now, ready=True, unanswered=0, answers=0)

    look(0, 0, waiting=False)
    look(40, 0, waiting=False)
    look(80, 0)
    assert waits.left(80, ready=True, unanswered=0) == 10
    look(89, 1)
    look(138, 1)
    with pytest.raises(ReadTimeoutError, match="for 50 s"):
        look(139, 1)
