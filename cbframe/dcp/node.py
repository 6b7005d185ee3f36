"""The thread of a data node: it owns the node's socket and connection object.

It takes orders from an inbox and posts what happens to the supervisor. Receiver callbacks run on
it, with no lock held.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from cbframe.dcp import connection as dcp
from cbframe.dcp import plan, verdicts
from cbframe.dcp.connection import DcpConnection
from cbframe.dcp.positions import Position
from cbframe.dcp.receiver import BlockReceiver, Callbacks, DeferringReceiver, Receipt
from cbframe.dcp.stats import NodeStats
from cbframe.dcp.streams import Stream, VBucketState
from cbframe.dcp.timers import Gather, Pace, Timeouts, Waits
from cbframe.dcp.transport import Stream as ByteStream
from cbframe.dcp.transport import Transport, Waker
from cbframe.errors import (
    CbframeError,
    ConnectError,
    ProtocolError,
    ReadCancelledError,
    ReadTimeoutError,
    ReceiverError,
    ResourceError,
    StreamError,
)
from cbframe.system import OwnThread, allocate
from cbframe.wire.constants import HEADER_LENGTH, MAX_SEQNO, Status, StreamEndReason, StreamFlag
from cbframe.wire.messages import StreamFilter, StreamRequest


@dataclass(slots=True)
class _Entry:
    vbucket: int | None
    what: str
    times: int = 1

    def __str__(self) -> str:
        where = "" if self.vbucket is None else f"vbucket {self.vbucket} "
        return f"{where}{self.what}{f' ×{self.times}' if self.times > 1 else ''}"


class Trace:
    """A ring of events; the same one again is counted, not repeated. Never holds a document's key."""

    def __init__(self, capacity: int) -> None:
        self._entries: deque[_Entry] = deque(maxlen=max(0, capacity))

    def note(self, vbucket: int | None, what: str) -> None:
        """Add what happened, to a vbucket or to the connection."""
        last = self._entries[-1] if self._entries else None
        if last is not None and last.vbucket == vbucket and last.what == what:
            last.times += 1
        else:
            self._entries.append(_Entry(vbucket, what))

    def event(self, event: dcp.Event) -> None:
        """Add an event of the connection, by its name."""
        stream: Stream | None = getattr(event, "stream", None)
        self.note(None if stream is None else stream.vbucket, type(event).__name__)

    def lines(self) -> list[str]:
        """Oldest first; callable from any thread."""
        return [str(entry) for entry in list(self._entries)]

    def __str__(self) -> str:
        return ", ".join(self.lines()) or "nothing"


Order: TypeAlias = plan.StopNode | plan.OpenStreams | plan.CloseStreams | plan.SampleNode | dcp.RolledBack


@dataclass(frozen=True, slots=True)
class NodeSetup:
    """What every node's thread of one data source needs."""

    transport: Transport
    receiver: BlockReceiver | DeferringReceiver
    make_connection: Callable[[NodeStats], DcpConnection]
    post: Callable[[plan.Event], None]
    on_config: Callable[[str, bytes], None]
    on_push: Callable[[str, tuple[int, int], bytes], None]
    on_time: Callable[[str, int], None]
    on_error: Callable[[CbframeError], None]
    clock: Callable[[], float]
    timeouts: Timeouts
    buffer_bytes: int
    max_body: int
    receive_bytes: int
    receive_latency: float
    wanted: StreamFilter
    stream_flags: StreamFlag
    trace_capacity: int
    logger: logging.Logger
    max_rate: int | None = None


class NodeThread:
    """One connection to one data node, on a thread of its own.

    It ends when the connection ends; the supervisor starts another if the node is still needed.
    """

    def __init__(self, node: str, setup: NodeSetup, stats: NodeStats) -> None:
        self.node = node
        self._address = plan.address_of(node)
        self._setup = setup
        self._stats = stats
        self._inbox: deque[Order] = deque()
        self._consumed: deque[int] = deque()
        self._owed = 0
        """Bytes that the receiver has and has not consumed: until then the node may have to wait."""
        self._high_seqnos: Mapping[int, int] = {}
        """Of the node's vbuckets, as reported last."""
        self._stopping = False
        self._progressed = False
        self._calls = Callbacks(setup.receiver, stats, setup.wanted, setup.stream_flags)
        self.trace = Trace(setup.trace_capacity)
        """What happened last."""
        self._waker = Waker()
        self._connection: DcpConnection | None = None
        self.thread = OwnThread(self._run, f"cbframe-node-{node}")

    def start(self) -> None:
        """Begin; ResourceError if there is no thread, and nothing is left of this object then."""
        try:
            self.thread.start()
        except ResourceError:
            self._waker.close()
            raise

    def post(self, order: Order) -> None:
        """Give an order; callable from any thread."""
        self._inbox.append(order)
        self._waker.wake()

    def stop(self) -> None:
        """Ask the thread to end; callable from any thread."""
        self._stopping = True
        self._waker.wake()

    def _on_consumed(self, nbytes: int) -> None:
        """Have bytes acknowledged; callable from any thread."""
        self._consumed.append(nbytes)
        if threading.current_thread() is not self.thread:
            self._waker.wake()

    def join(self) -> None:
        """Wait for the end, and let the waker go."""
        self.thread.join()
        self._waker.close()

    def streams(self) -> dict[int, VBucketState]:
        """The streams at this moment by vbucket, for looking at."""
        connection = self._connection
        if connection is None:
            return {}
        return {vb: stream.picture(self.node) for vb, stream in connection.streams.all()}

    def open_streams(self) -> list[Stream]:
        """The streams themselves: look, and touch nothing."""
        connection = self._connection
        return [] if connection is None else [stream for _, stream in connection.streams.all()]

    def seqnos(self, vbuckets: npt.NDArray[np.intp]) -> npt.NDArray[np.uint64]:
        """What came last of vbuckets; 0 of those without a stream here."""
        connection = self._connection
        if connection is None:
            return np.zeros(len(vbuckets), np.uint64)
        return connection.streams.seqnos(vbuckets)

    def held(self) -> int:
        """Bytes that came and that the receiver has not consumed."""
        return 0 if self._connection is None else self._owed

    def sample(self) -> None:
        """Have the node tell its high seqnos once more, if it is ready to; callable from any thread."""
        connection = self._connection
        if connection is not None and connection.session is not None:
            self.post(plan.SampleNode(self.node))

    # -- on the thread

    def _run(self) -> None:
        stats = self._stats
        stats.tot_worker_start += 1
        self._calls.bind()
        error: CbframeError
        try:
            self._serve()
        except CbframeError as exc:
            error = exc
        except Exception as exc:  # noqa: BLE001 - whatever went wrong here must end the read, not hang it
            error = verdicts.unexpected(exc, "on the thread of the node", ReceiverError)
        else:
            stats.tot_refresh_worker += 1
            stats.tot_refresh_worker_done += 1
            stats.tot_worker_done += 1
            return
        cancelled = isinstance(error, ReadCancelledError) and self._stopping
        stats.errors += not cancelled
        # Before the error is posted: the next thread of this node may begin at once, with these counters.
        stats.tot_worker_done += 1
        if cancelled:
            return
        if isinstance(error, ReadTimeoutError):
            error.permanent = False  # a new connection may be faster
        if error.node in (None, self._address):
            error.node = self.node
        self.trace.note(None, f"over: {type(error).__name__}")
        self._setup.logger.debug("%s: %s; before that: %s", self.node, error.message, self.trace)
        self._setup.on_error(error)
        self._setup.post(plan.NodeDown(self.node, error, self._progressed))

    def _serve(self) -> None:
        setup, stats = self._setup, self._stats
        stats.tot_worker_body += 1
        if self._stopping:
            return
        stats.tot_worker_connect += 1
        try:
            stream = setup.transport.connect(self._address, self._waker, setup.timeouts.connect)
        except CbframeError as exc:
            stats.tot_worker_connect_err += 1
            if isinstance(exc, ReadCancelledError) and not self._stopping:
                raise self._given_up() from exc
            raise
        stats.tot_worker_connect_ok += 1
        self.trace.note(None, "connected")
        connection: DcpConnection | None = None
        try:
            connection = self._connection = setup.make_connection(stats)
            self._converse(stream, connection)
        except CbframeError as exc:
            if connection is not None:
                connection.broke_off(exc)
                if isinstance(exc, ProtocolError) and connection.session is None:
                    # What speaks another protocol now will not speak ours next time.
                    exc.permanent = True
            raise
        finally:
            self._connection = None
            stats.tot_worker_client_close += 1
            stream.close()
            stats.tot_worker_client_close_done += 1

    def _given_up(self) -> ConnectError:
        """An order came while the node was being connected to; there is nobody yet to carry it out."""
        reasons = (order.why for order in self._inbox if isinstance(order, plan.StopNode))
        why = next(reasons, "there are new orders")
        return ConnectError(f"{why}: the attempt to connect is given up")

    def _converse(self, stream: ByteStream, connection: DcpConnection) -> None:
        stats = self._stats
        stats.tot_worker_transmit_start += 1
        stats.tot_worker_receive_start += 1
        stats.tot_worker_receive += 1
        try:
            self._talk(stream, connection)
        finally:
            stats.tot_worker_cleanup += 1
            stats.tot_worker_transmit_done += 1
            stats.tot_worker_receive_done += 1
            stats.tot_worker_cleanup_done += 1

    def _talk(self, stream: ByteStream, connection: DcpConnection) -> None:
        setup, stats = self._setup, self._stats
        waits = Waits(setup.timeouts, setup.clock())
        pace = Pace(setup.max_rate, setup.clock())
        enough = min(setup.receive_bytes, connection.ack_at or setup.receive_bytes)
        gather = Gather(enough, setup.receive_latency)
        buffer = allocate(setup.buffer_bytes)
        have = 0
        readable = True
        while True:
            self._carry_out_orders(connection)
            while self._consumed:
                nbytes = self._consumed.popleft()
                self._owed -= nbytes
                connection.acknowledge(nbytes)
            pause = pace.acknowledge(connection, self._owed, setup.clock())
            if data := connection.data_to_send():
                self._send(stream, data, connection.handed)
                waits.sent(setup.clock())
            if self._stopping:
                return
            count = None
            if readable or not gather.left(setup.clock()):
                readable = False
                count = self._receive(stream, memoryview(buffer)[have:], connection)
                if count is None or not connection.streams:
                    gather.quiet()
            now = setup.clock()
            if count is not None:
                waits.heard(now)
                have += count
                # Closed here, not when it is collected: it counts what was left untaken.
                with closing(connection.receive(buffer, have)) as events:
                    self._handle(events)
                buffer, have = self._keep_tail(buffer, connection.consumed, have)
                if connection.streams:
                    gather.received(setup.clock())
            ready, unanswered = connection.session is not None, connection.unanswered
            may_send = bool(connection.streams) and connection.room(self._owed) > 0
            waits.progress(now, connection.messages, waiting=may_send)
            if waits.wants_look(now):
                owing = connection.streams.owed(self._high_seqnos, filtered=setup.wanted.filters)
                if warning := waits.looked(now, owing):
                    setup.logger.warning("%s: %s", self.node, warning)
            try:
                waits.check(now, ready=ready, unanswered=unanswered, answers=connection.answers)
            except ReadTimeoutError:
                stats.tot_worker_receive_err += 1
                stats.tot_worker_recv_end_ch += 1
                raise
            if count is None:
                if waits.wants_ping(now, ready=ready):
                    stats.tot_ping_timeout += 1
                    connection.ping()
                else:
                    left = waits.left(now, ready=ready, unanswered=unanswered)
                    room = min(connection.room(self._owed + have), len(buffer) - have)
                    least = gather.least(now, room)
                    readable = stream.wait(min(left, pause or left, gather.left(now) or left), least)

    def _send(self, stream: ByteStream, data: bytes, messages: int) -> None:
        try:
            stream.send_all(data, self._setup.timeouts.connect)
        except CbframeError:
            self._stats.tot_worker_transmit_err += 1
            self._stats.tot_worker_send_end_ch += 1
            raise
        self._stats.tot_worker_transmit_ok += messages

    def _receive(self, stream: ByteStream, view: memoryview, connection: DcpConnection) -> int | None:
        stats = self._stats
        try:
            count = stream.receive_into(view)
            if count == 0:
                raise ConnectError(
                    "the node closed the connection"
                    + (" during the handshake" if connection.session is None else "")
                )
        except CbframeError:
            stats.tot_worker_receive_err += 1
            stats.tot_worker_recv_end_ch += 1
            raise
        if count is not None:
            stats.receives += 1
            stats.bytes_received += count
        return count

    def _handle(self, events: Iterator[dcp.Event]) -> None:
        try:
            for event in events:
                self.trace.event(event)
                self._on_event(event)
        except CbframeError:
            self._stats.tot_worker_recv_end_ch += 1
            raise

    def _keep_tail(self, buffer: bytearray, consumed: int, have: int) -> tuple[bytearray, int]:
        """Move what belongs to the next frame to the front, in a buffer that this frame fits into."""
        tail = have - consumed
        size = self._setup.buffer_bytes
        if tail >= HEADER_LENGTH:
            body = int.from_bytes(buffer[consumed + 8 : consumed + 12], "big")
            size = max(size, HEADER_LENGTH + min(body, self._setup.max_body))
        if size != len(buffer):
            fresh = allocate(size)
            fresh[:tail] = memoryview(buffer)[consumed:have]
            return fresh, tail
        if consumed and tail:
            buffer[:tail] = buffer[consumed:have]
        return buffer, tail

    def _carry_out_orders(self, connection: DcpConnection) -> None:
        while self._inbox:
            order = self._inbox.popleft()
            self._stats.tot_refresh_worker += 1
            match order:
                case plan.StopNode(why=why):
                    raise ConnectError(f"{why}: the connection is closed")
                case plan.SampleNode():
                    connection.sample()
                case dcp.RolledBack():
                    self._roll_back(order)
                case plan.CloseStreams(vbuckets=vbuckets):
                    for vbucket in vbuckets:
                        connection.close_stream(vbucket)
                case plan.OpenStreams(streams=streams):
                    for vbucket, end in streams:
                        connection.want_stream(self._request(connection, vbucket, end))
                    if any(end != MAX_SEQNO for _, end in streams):
                        connection.sample()
            self._stats.tot_refresh_worker_ok += 1

    def _request(self, connection: DcpConnection, vbucket: int, end: int) -> StreamRequest:
        session = connection.session
        collections = session is not None and session.collections
        return self._calls.request(vbucket, end, connection.granted, collections=collections)

    # -- events of the connection

    def _on_event(self, event: dcp.Event) -> None:
        stats, setup, calls = self._stats, self._setup, self._calls
        match event:
            case dcp.Data(block=block, fresh=fresh, nbytes=nbytes):
                for stream in fresh:
                    calls.save(stream)
                self._owed += nbytes
                calls.deliver(block, Receipt(nbytes, self._on_consumed))
                self._progressed = True
            case dcp.Snapshot(stream=stream):
                calls.snapshot(stream)
            case dcp.Opened(stream=stream) | dcp.Ordered(stream=stream):
                calls.save(stream)
            case dcp.Ended(stream=stream, reason=reason):
                self._on_ended(stream, reason)
            case dcp.Ready(session=session):
                stats.tot_worker_body_kick += 1
                self._high_seqnos = session.seqnos
                setup.post(plan.NodeReady(self.node, session.seqnos))
            case dcp.Sampled(seqnos=seqnos):
                self._high_seqnos = seqnos
                setup.post(plan.NodeSampled(self.node, seqnos))
            case dcp.Timed(seconds=seconds):
                setup.on_time(self.node, seconds)
            case dcp.Refused():
                self._on_refused(event)
            case dcp.RolledBack():
                self._roll_back(event)
            case dcp.MapPushed(revision=revision, body=body):
                setup.on_push(self._address, revision, body)
            case dcp.Nooped():
                stats.tot_upr_noop += 1
            case dcp.Advanced(stream=stream):
                calls.advanced(stream)
                self._progressed = True
            case dcp.CollectionEvent(stream=stream, event=message):
                calls.system_event(stream, message)
                self._progressed = True

    def _on_ended(self, stream: Stream, reason: int | None) -> None:
        progressed = stream.seqno > stream.start
        end_reason = StreamEndReason.CLOSED if reason is None else reason
        ended = plan.StreamEnded(self.node, stream.vbucket, end_reason, _position(stream), progressed)
        if reason is not None and reason != StreamEndReason.OK:
            self._stats.tot_upr_stream_end_kick += 1
            if (error := verdicts.ended(ended)) is not None:
                self._setup.on_error(error)
        self._setup.post(ended)
        self._progressed |= progressed or reason == StreamEndReason.OK

    def _on_refused(self, refusal: dcp.Refused) -> None:
        stream, status = refusal.stream, refusal.status
        if refusal.body.startswith(b"{"):
            self._setup.on_config(self._address, refusal.body)
        if status == Status.ERANGE:
            self._start_over(stream)
        else:
            self._stats.tot_upr_stream_req_res_kick += 1
            self._setup.post(plan.StreamRefused(self.node, stream.vbucket, status))

    def _start_over(self, stream: Stream) -> None:
        """Read a vbucket from the beginning: the position that the receiver stored cannot be right."""
        self._setup.on_error(
            StreamError(
                f"the stored position {stream.start} lies outside the vbucket's history: "
                "it is read from the start",
                node=self.node,
                vbucket=stream.vbucket,
                hint="the bucket was flushed or created again, or what was stored belongs to another one",
            )
        )
        self._roll_back(dcp.RolledBack(stream, 0))

    def _roll_back(self, event: dcp.RolledBack) -> None:
        """Roll back now, or when the receiver is ready to."""
        if self._calls.roll_back(event.stream, event.seqno, lambda: self.post(event)):
            self._setup.post(plan.StreamRolledBack(self.node, event.stream.vbucket))


def _position(stream: Stream) -> Position:
    """The state that the stream left complete: its last snapshot's end."""
    seqno = stream.seqno
    if stream.snapshots and not stream.unordered:
        seqno = max(seqno, stream.snap_end)
    return Position.at(stream.vbuuid, seqno)
