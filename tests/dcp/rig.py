"""One node's thread over a scripted network, in no time."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from queue import SimpleQueue
from typing import TypeAlias

from cbframe.dcp import messages
from cbframe.dcp.handshake import Login
from cbframe.dcp.node import NodeThread
from cbframe.dcp.receiver import taker_of_blocks
from cbframe.dcp.stats import NodeStats
from cbframe.dcp.streams import Stream
from cbframe.errors import CbframeError
from cbframe.testing import FakeClock, Peer, RecordingReceiver, ScriptedTransport
from cbframe.wire.constants import Opcode
from cbframe.wire.framing import Frame, response
from cbframe.wire.messages import (
    OsoSnapshot,
    SeqnoAdvanced,
    SnapshotMarker,
    StreamEnd,
    StreamRequest,
    SystemEvent,
    parse_request,
)

from .server import LOGIN, SETTINGS, good_answer, mutation, replaced

NODE = "n:11210"


class Rig:
    """One thread, its stats, its receiver and what it posted."""

    def __init__(
        self,
        peer: Peer,
        receiver: RecordingReceiver | None = None,
        login: Login = LOGIN,
        ping_timeout: float = 30,
        trace_capacity: int = 20,
        idle: float | None = None,
        max_rate: int | None = None,
        window: int = 1000,
        receive_bytes: int = 256 * 1024,
    ) -> None:
        self.clock = FakeClock()
        self.events: SimpleQueue[messages.Event] = SimpleQueue()
        self.errors: list[CbframeError] = []
        self.receiver = receiver or RecordingReceiver()
        self.stats = NodeStats()
        self.transport = ScriptedTransport({NODE: peer}, self.clock)
        self.configs: list[bytes] = []
        self.pushes: list[tuple[tuple[int, int], bytes]] = []
        self.times: list[int] = []
        self.histories: list[tuple[int, int, int]] = []
        options = replace(
            SETTINGS,
            feed_buffer_size_bytes=window,
            max_bytes_per_sec=max_rate,
            seq_end={},
            noop_interval_secs=120,
            ping_timeout_ms=int(ping_timeout * 1000),
            idle_timeout=idle,
            receive_buffer_bytes=64 * 1024,
            max_body_bytes=1 << 20,
            receive_bytes=receive_bytes,
            receive_latency=0.005,
            trace_capacity=trace_capacity,
            logger=logging.getLogger("cbframe.test"),
        )
        self.thread = NodeThread(
            NODE,
            options,
            taker_of_blocks(self.receiver),
            self,
            self.stats,
            login=lambda: login,
            transport=self.transport,
            clock=self.clock,
        )
        self.leaving = False
        self.wanted: tuple[tuple[int, int], ...] = ()

    def post(self, event: messages.Event) -> None:
        if isinstance(event, messages.NodeReady) and self.leaving:
            self.thread.post(messages.StopNode(NODE, "the node has left the cluster map"))
        if isinstance(event, messages.NodeReady) and self.wanted:
            self.thread.post(messages.OpenStreams(NODE, self.wanted))
        self.events.put(event)

    def on_config(self, _: str, body: bytes) -> None:
        self.configs.append(body)

    def on_push(self, _: str, revision: tuple[int, int], body: bytes) -> None:
        self.pushes.append((revision, body))

    def on_time(self, _: str, seconds: int) -> None:
        self.times.append(seconds)

    def on_history(self, _: str, stream: Stream, before: int) -> None:
        self.histories.append((stream.vbucket, before, stream.vbuuid))

    def on_error(self, error: CbframeError) -> None:
        self.errors.append(error)

    def run(self, *wanted: tuple[int, int]) -> list[messages.Event]:
        """Run to the end of the connection."""
        self.wanted = wanted
        self.thread.start()
        self.thread.join()
        # The sample that follows each request with an end is looked at in its own test.
        return [e for e in iter_queue(self.events) if not isinstance(e, messages.NodeSampled)]


def iter_queue(queue: SimpleQueue[messages.Event]) -> Iterator[messages.Event]:
    while not queue.empty():
        yield queue.get()


def serving(*, large: int = 0) -> Peer:
    """A node that grants every stream, and sends documents 1 to 3 of it."""

    def peer(frame: Frame) -> bytes | None:
        if frame.is_response or frame.opcode in {Opcode.DCP_BUFFER_ACK, Opcode.NOOP}:
            return b""
        answer = good_answer(frame).encode()
        if frame.opcode == Opcode.DCP_STREAM_REQ:
            vb, opaque = frame.vbucket, frame.opaque
            answer += SnapshotMarker(vb, 0, 3, 1).frame(opaque).encode()
            answer += mutation(vb, opaque, 1, b"a", b"1" + b" " * large)
            answer += mutation(vb, opaque, 2, b"b", b"2") + mutation(vb, opaque, 3, b"c", b"3")
            answer += StreamEnd(vb, 0).frame(opaque).encode()
        return answer

    return peer


def down(events: list[messages.Event]) -> messages.NodeDown:
    last = events[-1]
    assert isinstance(last, messages.NodeDown)
    return last


Message: TypeAlias = SnapshotMarker | StreamEnd | SeqnoAdvanced | OsoSnapshot | SystemEvent
Sent: TypeAlias = Message | int | tuple[int, bytes]


def sending(*sent: Sent) -> Peer:
    """A node that grants every stream, and sends this on it: documents are seqnos, or seqnos and values."""

    def granted(frame: Frame) -> bytes:
        vb, opaque = frame.vbucket, frame.opaque
        answer = good_answer(frame).encode()
        for what in sent:
            match what:
                case int(seqno):
                    answer += mutation(vb, opaque, seqno, b"%d" % seqno)
                case (seqno, value):
                    answer += mutation(vb, opaque, seqno, b"%d" % seqno, value)
                case _:
                    answer += replace(what, vbucket=vb).frame(opaque).encode()
        return answer

    return replaced(serving(), {Opcode.DCP_STREAM_REQ: granted})


def alive(peer: Peer, pings: int) -> Peer:
    """A node that answers so many pings, and hangs up at the next."""
    left = iter(range(pings))

    def answer(frame: Frame) -> bytes | None:
        return None if next(left, None) is None else response(Opcode.NOOP, opaque=frame.opaque).encode()

    return replaced(peer, {Opcode.NOOP: answer})


def refusing(status: int, value: bytes = b"") -> Peer:
    """A node that refuses every stream."""

    def refuse(frame: Frame) -> bytes:
        return response(frame.opcode, opaque=frame.opaque, status=status, value=value).encode()

    return replaced(serving(), {Opcode.DCP_STREAM_REQ: refuse})


class Listening:
    """A node that answers as another does, and remembers what it was asked."""

    def __init__(self, peer: Peer | None = None) -> None:
        self._peer = peer or serving()
        self.frames: list[Frame] = []

    def __call__(self, frame: Frame) -> bytes | None:
        self.frames.append(frame)
        return self._peer(frame)

    def asked(self, opcode: int) -> list[Frame]:
        return [frame for frame in self.frames if frame.opcode == opcode]

    def streams(self) -> list[StreamRequest]:
        requests = [parse_request(frame) for frame in self.asked(Opcode.DCP_STREAM_REQ)]
        return [each for each in requests if isinstance(each, StreamRequest)]
