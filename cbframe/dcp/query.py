"""Questions over an ordinary connection: the cluster map, the collections manifest, where vbuckets are."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import replace
from itertools import islice

from cbframe.dcp.handshake import Steps, T
from cbframe.dcp.talk import Talk, Volley, one_by_one
from cbframe.dcp.transport import Stream, Transport, Waker
from cbframe.errors import (
    CbframeError,
    ConnectError,
    ProtocolError,
    ReadCancelledError,
    ReadTimeoutError,
)
from cbframe.limits import allocate
from cbframe.wire.constants import MAX_BODY_LENGTH, Status
from cbframe.wire.frame import Frame

_PORTS = "is this port the data service (couchbase:// is 11210, couchbases:// is 11207)?"
_WINDOW = 128
"""Requests on their way at most: what answers them fits in the buffers of a socket, so that neither side
waits for the other to read."""
_MOST_ANSWERS = 1 << 20
"""To one request: a node has no more to tell of 1024 vbuckets and their replicas."""
_RECEIVE = 256 * 1024


def ask(
    node: str,
    steps: Steps[T],
    *,
    transport: Transport,
    waker: Waker,
    clock: Callable[[], float],
    timeout: float,
) -> T:
    """Run a handshake to its result on a connection of its own, and close it.

    Raises
    ------
    CbframeError
        As :func:`converse`.
    """
    return converse(node, one_by_one(steps), transport=transport, waker=waker, clock=clock, timeout=timeout)


def converse(
    node: str,
    talk: Talk[T],
    *,
    transport: Transport,
    waker: Waker,
    clock: Callable[[], float],
    timeout: float,
) -> T:
    """Run a conversation to its result on a connection of its own, and close it.

    Raises
    ------
    ReadTimeoutError
        The whole took longer than `timeout` seconds.
    ReadCancelledError
        The waker rang.
    ConnectError, ProtocolError, ServerError
        As the conversation and the transport raise them, naming the node.
    """
    deadline = clock() + timeout
    stream = transport.connect(node, waker, timeout)
    try:
        line = _Line(stream, clock, deadline, timeout)
        while True:
            try:
                volley = next(talk)
            except StopIteration as done:
                result: T = done.value
                return result
            line.exchange(volley)
    except CbframeError as exc:
        _complete(exc, node)
        raise
    finally:
        talk.close()
        stream.close()


class _Line:
    """A connection on which questions are asked, and answered in the same order."""

    def __init__(self, stream: Stream, clock: Callable[[], float], deadline: float, timeout: float) -> None:
        self._stream = stream
        self._clock = clock
        self._deadline = deadline
        self._timeout = timeout
        self._buffer = bytearray()
        self._view = memoryview(allocate(_RECEIVE))
        self._opaque = 0
        self._answered = False

    def exchange(self, volley: Volley) -> None:
        """Ask everything, and hand each answer over as it comes."""
        left = iter(enumerate(volley.frames))
        waiting: deque[tuple[int, int, int]] = deque()
        answers = 0
        while True:
            # Not one by one: each time a packet would go out.
            if len(waiting) <= _WINDOW // 2:
                self._send(islice(left, _WINDOW - len(waiting)), waiting)
            if not waiting:
                return
            opaque, opcode, number = waiting[0]
            answer = self._answer()
            if (answer.opaque, answer.opcode) != (opaque, opcode):
                raise ProtocolError("an answer to nothing that was asked", opcode=answer.opcode)
            volley.take(number, answer)
            answers += 1
            if volley.series and answer.key and answer.status == Status.SUCCESS:
                if answers >= _MOST_ANSWERS:
                    raise ProtocolError(f"over {answers:,} answers to one question", opcode=answer.opcode)
                continue
            answers = 0
            waiting.popleft()

    def _send(self, some: islice[tuple[int, Frame]], waiting: deque[tuple[int, int, int]]) -> None:
        data = bytearray()
        for number, frame in some:
            self._opaque += 1
            waiting.append((self._opaque, frame.opcode, number))
            data += replace(frame, opaque=self._opaque).encode()
        if data:
            self._stream.send_all(bytes(data), self._timeout)

    def _answer(self) -> Frame:
        """The next answer; what the node says by itself is passed over."""
        while True:
            parsed = Frame.parse(self._buffer, max_body=MAX_BODY_LENGTH)
            if parsed is None:
                self._receive()
                continue
            frame, end = parsed
            del self._buffer[:end]
            if frame.is_response:
                self._answered = True
                return frame

    def _receive(self) -> None:
        left = self._deadline - self._clock()
        if left <= 0:
            raise ReadTimeoutError(
                f"no answer within {self._timeout:g} s",
                hint="it answered before, and may be too busy now: try again, or give connect_timeout more"
                if self._answered
                else "the port is open but silent: is it the data service?",
            )
        if not self._stream.wait(left):
            if self._clock() < self._deadline:
                # Nothing to read, and time is left: the waker rang.
                raise ReadCancelledError("cancelled while waiting for an answer")
            return
        count = self._stream.receive_into(self._view)
        if count == 0:
            raise ConnectError("the node closed the connection during the handshake", hint=_PORTS)
        if count:
            self._buffer += self._view[:count]


def _complete(error: CbframeError, node: str) -> None:
    """Say of an error where it was, and whether another attempt may do better."""
    error.node = error.node or node
    if type(error) in (ConnectError, ProtocolError):
        # A TLS port resets the connection of a client that speaks in plain text.
        error.hint = error.hint or _PORTS
    if isinstance(error, ProtocolError):
        error.permanent = True  # what speaks another protocol now will not speak ours next time
    if isinstance(error, ReadTimeoutError):
        error.permanent = False
