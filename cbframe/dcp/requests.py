"""Questions over an ordinary connection: the cluster map, the collections manifest, where vbuckets are."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace

from cbframe.dcp.handshake import Steps, T
from cbframe.dcp.transport import Transport, Waker
from cbframe.errors import CbframeError, ConnectError, ProtocolError, ReadCancelledError, ReadTimeoutError
from cbframe.system import allocate
from cbframe.wire.constants import MAX_BODY_LENGTH, Opcode, Status
from cbframe.wire.framing import Frame

_PORTS = "is this port the data service (couchbase:// is 11210, couchbases:// is 11207)?"
_WINDOW = 512
"""Requests under way at most: they are small, and fit in the buffers of a socket, so that sending them does
not wait for a node that waits for us to read."""
_MOST_ANSWERS = 1 << 20
"""To one request: a node has no more to report of 1024 vbuckets and their replicas."""
TURNS = 12
"""A conversation may take this many times the time-out of a turn. No healthy one has more turns that each
take all of their time; a node that answers a little at a time must not delay a caller without end."""
_RECEIVE = 256 * 1024


class Line:
    """A connection to a node, for one conversation after the other."""

    def __init__(
        self, node: str, *, transport: Transport, waker: Waker, clock: Callable[[], float], timeout: float
    ) -> None:
        self._node = node
        self._clock = clock
        self._timeout = timeout
        self._began = self._progressed = clock()
        self._buffer = bytearray()
        self._view = memoryview(allocate(_RECEIVE))
        self._opaque = 0
        self._unsent: deque[Frame] = deque()
        self._waiting: deque[tuple[int, int]] = deque()
        self._lines = 0
        """Of the answer that is coming, where it has several."""
        self._answered = False
        # Last: what else may fail would leave it open.
        self._stream = transport.connect(node, waker, timeout)

    def run(self, steps: Steps[T]) -> T:
        """The result of a conversation; after an error, the connection is of no more use."""
        self._began = self._progressed = self._clock()
        try:
            frames = next(steps)
            while True:
                frames = steps.send(self._exchange(frames))
        except StopIteration as done:
            result: T = done.value
            return result
        except CbframeError as exc:
            _complete(exc, self._node)
            raise
        finally:
            steps.close()

    def close(self) -> None:
        """Hang up."""
        self._stream.close()

    def _exchange(self, frames: Sequence[Frame]) -> Frame:
        """Send requests, and give the next answer."""
        self._unsent += frames
        # Not one by one: each time a packet would go out.
        if len(self._waiting) <= _WINDOW // 2:
            self._send(_WINDOW - len(self._waiting))
        assert self._waiting, "whoever waits has asked"
        answer = self._answer()
        opcode = answer.opcode
        if (answer.opaque, opcode) != self._waiting[0]:
            raise ProtocolError("an answer to nothing that was asked", opcode=opcode)
        if opcode == Opcode.STAT and answer.key and answer.status == Status.SUCCESS:
            self._lines += 1
            if self._lines >= _MOST_ANSWERS:
                raise ProtocolError(f"over {self._lines:,} answers to one question", opcode=opcode)
        else:
            self._lines = 0
            self._waiting.popleft()
        return answer

    def _send(self, count: int) -> None:
        data = bytearray()
        while self._unsent and count:
            frame = self._unsent.popleft()
            count -= 1
            self._opaque += 1
            self._waiting.append((self._opaque, frame.opcode))
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
                self._answered, self._progressed = True, self._clock()
                return frame

    def _receive(self) -> None:
        last = self._began + TURNS * self._timeout
        deadline = min(self._progressed + self._timeout, last)
        left = deadline - self._clock()
        if left <= 0:
            raise ReadTimeoutError(
                f"no answer within {self._timeout:g} s"
                if deadline < last
                else f"not all answers came within {TURNS * self._timeout:g} s",
                hint="it answered before, and may be too busy now: try again, or give connect_timeout more"
                if self._answered
                else "the port is open but silent: is it the data service?",
            )
        if not self._stream.wait(left):
            if self._clock() < deadline:
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
