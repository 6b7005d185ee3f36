"""One node's thread over a scripted network, in no time."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from queue import SimpleQueue

from cbframe.dcp import plan
from cbframe.dcp.connection import DcpConnection
from cbframe.dcp.handshake import Login
from cbframe.dcp.node import NodeSetup, NodeThread
from cbframe.dcp.receiver import taker_of_blocks
from cbframe.dcp.stats import NodeStats
from cbframe.dcp.timers import Timeouts
from cbframe.errors import CbframeError
from cbframe.testing import FakeClock, Peer, RecordingReceiver, ScriptedTransport
from cbframe.wire.constants import Opcode, StreamFlag
from cbframe.wire.framing import Frame, response
from cbframe.wire.messages import SnapshotMarker, StreamEnd, StreamFilter

from .server import LOGIN, SETTINGS, good_answer, mutation

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
        self.events: SimpleQueue[plan.Event] = SimpleQueue()
        self.errors: list[CbframeError] = []
        self.receiver = receiver or RecordingReceiver()
        self.stats = NodeStats()
        self.transport = ScriptedTransport({NODE: peer}, self.clock)
        self.configs: list[bytes] = []
        self.pushes: list[tuple[tuple[int, int], bytes]] = []
        self.times: list[int] = []
        settings = replace(SETTINGS, buffer_size=window)
        setup = NodeSetup(
            transport=self.transport,
            receiver=taker_of_blocks(self.receiver),
            make_connection=lambda stats: DcpConnection(
                login, settings, stats=stats, paced=max_rate is not None
            ),
            post=self._post,
            on_config=lambda _, body: self.configs.append(body),
            on_time=lambda _, seconds: self.times.append(seconds),
            on_push=lambda _, revision, body: self.pushes.append((revision, body)),
            on_error=self.errors.append,
            clock=self.clock,
            timeouts=Timeouts(connect=10, silence=240, request=60, ping=ping_timeout, idle=idle),
            buffer_bytes=64 * 1024,
            max_body=1 << 20,
            receive_bytes=receive_bytes,
            receive_latency=0.005,
            wanted=StreamFilter(),
            stream_flags=StreamFlag.ACTIVE_ONLY,
            trace_capacity=trace_capacity,
            logger=logging.getLogger("cbframe.test"),
            max_rate=max_rate,
        )
        self.thread = NodeThread(NODE, setup, self.stats)
        self.leaving = False
        self.wanted: tuple[tuple[int, int], ...] = ()

    def _post(self, event: plan.Event) -> None:
        if isinstance(event, plan.NodeReady) and self.leaving:
            self.thread.post(plan.StopNode(NODE, "the node has left the cluster map"))
        if isinstance(event, plan.NodeReady) and self.wanted:
            self.thread.post(plan.OpenStreams(NODE, self.wanted))
        self.events.put(event)

    def run(self, *wanted: tuple[int, int]) -> list[plan.Event]:
        """Run to the end of the connection."""
        self.wanted = wanted
        self.thread.start()
        self.thread.join()
        # The sample that follows each request with an end is looked at in its own test.
        return [e for e in iter_queue(self.events) if not isinstance(e, plan.NodeSampled)]


def iter_queue(queue: SimpleQueue[plan.Event]) -> Iterator[plan.Event]:
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


def down(events: list[plan.Event]) -> plan.NodeDown:
    last = events[-1]
    assert isinstance(last, plan.NodeDown)
    return last


def refusing(status: int, value: bytes = b"") -> Peer:
    def peer(frame: Frame) -> bytes | None:
        if frame.opcode == Opcode.DCP_STREAM_REQ:
            return response(frame.opcode, opaque=frame.opaque, status=status, value=value).encode()
        return serving()(frame)

    return peer
