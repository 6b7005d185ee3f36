"""Conversations with nodes that are far away, or slow: what each turn may take, and all of them together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from cbframe.dcp.handshake import fetch_config, fetch_manifest
from cbframe.dcp.survey import survey_time
from cbframe.dcp.transport import TURNS, Waker
from cbframe.errors import ReadTimeoutError
from cbframe.testing import FakeClock, ScriptedTransport
from cbframe.wire.constants import Opcode
from cbframe.wire.framing import Frame, response

from .server import LOGIN, ask, good_answer

NODE = "a:11210"
TIMEOUT = 7.0


class Far:
    """A stream whose bytes come some at a time, each time after some seconds.

    Attributes
    ----------
    turns
        How often something was sent after something had come, and the first time.
    """

    def __init__(self, stream: Any, clock: FakeClock, seconds: float, step: int) -> None:
        self._stream, self._clock = stream, clock
        self._seconds, self._step = seconds, step
        self._sent, self._received = stream.send_all, stream.receive_into
        self._left = 0
        self._heard = True
        self.turns = 0
        stream.send_all, stream.receive_into, stream.wait = self.send_all, self.receive_into, self.wait

    def send_all(self, data: bytes, timeout: float) -> None:
        self.turns += self._heard
        self._heard = False
        self._sent(data, timeout)

    def wait(self, timeout: float | None, least: int = 1) -> bool:
        assert timeout is not None
        if not self._stream._incoming or timeout < self._seconds:
            self._clock.advance(timeout)
            return False
        self._clock.advance(self._seconds)
        self._left = self._step
        return True

    def receive_into(self, view: memoryview) -> int | None:
        self._heard = True
        count: int | None = self._received(view[: self._left])
        return count


def talk(steps: Any, waker: Waker, *, seconds: float, step: int, peer: Callable[[Frame], bytes]) -> Any:
    """The result, the seconds that it took, and the stream."""
    clock = FakeClock()
    transport = ScriptedTransport({NODE: peer}, clock)
    streams: list[Far] = []
    transport.on_connect = lambda stream: streams.append(Far(stream, clock, seconds, step))
    began = clock()
    try:
        found = ask(NODE, steps, transport=transport, waker=waker, clock=clock, timeout=TIMEOUT)
    except ReadTimeoutError as exc:
        found = exc
    return found, clock() - began, streams[0]


def peer(frame: Frame) -> bytes:
    return good_answer(frame).encode()


@pytest.mark.parametrize("steps", [fetch_config, fetch_manifest])
def test_each_turn_has_its_time(steps: Callable[..., Any], waker: Waker) -> None:
    """Regression: all turns together had it, and at a great distance that was too little."""
    found, took, stream = talk(steps(LOGIN), waker, seconds=6, step=1 << 16, peer=peer)
    assert not isinstance(found, Exception), found
    # A node of today takes the first mechanism, and the bucket with its last step: as here.
    assert stream.turns == 2
    assert took == 12 > TIMEOUT


def test_a_byte_now_and_then_is_no_progress(waker: Waker) -> None:
    found, took, _ = talk(fetch_config(LOGIN), waker, seconds=2, step=1, peer=peer)
    assert isinstance(found, ReadTimeoutError)
    assert "no answer within 7 s" in found.message
    assert took == TIMEOUT


def test_an_answer_now_and_then_is_not_progress_for_ever(waker: Waker) -> None:
    """One request with answers without end, each of them in time."""

    def endless(frame: Frame) -> bytes:
        if frame.opcode != Opcode.STAT:
            return peer(frame)
        return response(Opcode.STAT, opaque=frame.opaque, key=b"pid", value=b"1").encode() * 1000

    found, took, _ = talk(survey_time(LOGIN), waker, seconds=5, step=50, peer=endless)
    assert isinstance(found, ReadTimeoutError)
    assert "not all answers came within 84 s" in found.message
    assert took == TURNS * TIMEOUT
