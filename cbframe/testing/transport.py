"""A network of functions, what a node answers to each frame, and a clock that goes only when it is moved."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

from cbframe.dcp.transport import Stream, Waker
from cbframe.errors import ConnectError
from cbframe.wire.framing import Frame

Peer: TypeAlias = Callable[[Frame], bytes | None]
"""Bytes that follow a frame from the client; None hangs up."""


class FakeClock:
    """Seconds since some moment; call it to read it."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds


class ScriptedTransport:
    """Connects to peers by address; any other address cannot be reached.

    Waiting for bytes that do not come moves the clock on by the whole wait.
    """

    def __init__(self, peers: Mapping[str, Peer], clock: FakeClock) -> None:
        self._peers = dict(peers)
        self._clock = clock
        self.connected: list[str] = []
        self.closed = 0
        self.on_connect: Callable[[Stream], object] | None = None
        """Called with each stream before it is used."""

    def forget(self, node: str) -> None:
        """A node cannot be reached any more."""
        del self._peers[node]

    def connect(self, node: str, waker: Waker, timeout: float) -> Stream:  # noqa: ARG002
        self.connected.append(node)
        if node not in self._peers:
            raise ConnectError("cannot connect", node=node)
        stream = _ScriptedStream(self, self._peers[node], self._clock)
        if self.on_connect is not None:
            self.on_connect(stream)
        return stream


class _ScriptedStream:
    def __init__(self, transport: ScriptedTransport, peer: Peer, clock: FakeClock) -> None:
        self._transport = transport
        self._peer = peer
        self._clock = clock
        self._incoming = bytearray()
        self._over = False

    def receive_into(self, view: memoryview) -> int | None:
        count = min(len(view), len(self._incoming))
        if not count:
            return 0 if self._over else None
        view[:count] = self._incoming[:count]
        del self._incoming[:count]
        return count

    def send_all(self, data: bytes, timeout: float) -> None:  # noqa: ARG002
        offset = 0
        while (parsed := Frame.parse(data, offset)) is not None:
            frame, offset = parsed
            answer = self._peer(frame)
            if answer is None:
                self._over = True
                return
            self._incoming += answer

    def wait(self, timeout: float | None, least: int = 1) -> bool:
        if len(self._incoming) >= least or self._over:
            return True
        self._clock.advance(timeout or 0.0)
        return False

    def close(self) -> None:
        self._transport.closed += 1
