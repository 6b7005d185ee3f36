"""The thread of a data node: it owns the node's socket and connection object.

It takes orders from an inbox and posts what happens to its owner, the supervisor. Callbacks of the receiver
run on it, with no lock held: while one runs, nothing is received. It waits in one place only, for the
socket or its waker, which every order rings.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from cbframe.dcp import connection as dcp
from cbframe.dcp import messages
from cbframe.dcp.connection import DcpConnection
from cbframe.dcp.handshake import Login, connection_name, rate_of
from cbframe.dcp.positions import VBucketOffset
from cbframe.dcp.receiver import BlockReceiver, Callbacks, DeferringReceiver, Receipt
from cbframe.dcp.stats import NodeStats
from cbframe.dcp.streams import Stream
from cbframe.dcp.timers import Gather, Pace, Waits
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
from cbframe.options import BucketDataSourceOptions
from cbframe.system import OwnThread, allocate
from cbframe.wire.constants import HEADER_LENGTH, MAX_SEQNO, Status, StreamEndReason

Order: TypeAlias = (
    messages.StopNode
    | messages.OpenStreams
    | messages.CloseStreams
    | messages.SampleNode
    | dcp.RollbackRequired
)


class NodeOwner(Protocol):
    """Who is called by the threads of nodes: with what happened, and with what a node has shown."""

    def post(self, event: messages.Event) -> None: ...
    def on_error(self, error: CbframeError) -> None: ...
    def on_config(self, node: str, body: bytes) -> None:
        """A node refused a stream, and sent its cluster map."""

    def on_push(self, node: str, revision: tuple[int, int], body: bytes) -> None:
        """A node has a new cluster map; an empty body if it does not show it."""

    def on_time(self, node: str, seconds: int) -> None:
        """What time it is at a node."""

    def on_history(self, node: str, stream: Stream, before: int) -> None:
        """A stream is granted; the receiver knew of this history, or of none (0)."""


class Trace:
    """A ring of events; the same one again is counted, not repeated. Never holds a document's key."""

    def __init__(self, capacity: int) -> None:
        self._entries: deque[tuple[int | None, str, int]] = deque(maxlen=max(0, capacity))

    def note(self, vbucket: int | None, what: str) -> None:
        """Add what happened, to a vbucket or to the connection."""
        times = 1
        if self._entries and self._entries[-1][:2] == (vbucket, what):
            times += self._entries.pop()[2]
        self._entries.append((vbucket, what, times))

    def lines(self) -> list[str]:
        """Oldest first; callable from any thread."""
        return [
            ("" if vbucket is None else f"vbucket {vbucket} ") + what + (f" ×{times}" if times > 1 else "")
            for vbucket, what, times in self._entries.copy()
        ]

    def __str__(self) -> str:
        return ", ".join(self.lines()) or "nothing"


class NodeThread:
    """One connection to one data node, on a thread of its own.

    It ends when the connection ends; the supervisor starts another if the node is still needed.
    """

    def __init__(
        self,
        name: str,  # of the connection
        options: BucketDataSourceOptions,
        receiver: BlockReceiver | DeferringReceiver,
        owner: NodeOwner,
        stats: NodeStats,
        *,
        login: Callable[[], Login],
        transport: Transport,
        clock: Callable[[], float],
    ) -> None:
        self.node = name
        self.trace = Trace(options.trace_capacity)
        self.thread = OwnThread(self._run, f"cbframe-node-{name}")
        self._address = messages.address_of(name)
        self._options = options
        self._owner = owner
        self._stats = stats
        self._login = login
        self._transport = transport
        self._clock = clock
        self._log = options.logger or logging.getLogger("cbframe.dcp")
        self._calls = Callbacks(receiver, options, stats)
        self._inbox: deque[Order] = deque()
        self._consumed: deque[int] = deque()
        self._owed = 0
        """Bytes that the receiver has and has not consumed: until then the node may have to wait."""
        self._high_seqnos: Mapping[int, int] = {}
        """Of the node's vbuckets, as reported last."""
        self._stopping = False
        self.received = 0
        """How often documents, a seqno or an event of a collection came."""
        self._waker = Waker()
        self._connection: DcpConnection | None = None

    # -- callable from any thread

    def start(self) -> None:
        """Begin; ResourceError if there is no thread, and nothing is left of this object then."""
        try:
            self.thread.start()
        except ResourceError:
            self._waker.close()
            raise

    def post(self, order: Order) -> None:
        """Give an order."""
        self._inbox.append(order)
        self._waker.wake()

    def stop(self) -> None:
        """Ask the thread to end."""
        self._stopping = True
        self._waker.wake()

    def join(self) -> None:
        """Wait for the end, and let the waker go."""
        self.thread.join()
        self._waker.close()

    def open_streams(self) -> list[Stream]:
        """The streams themselves: read them, and touch nothing."""
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
        """Have the node report its high seqnos once more, if it is ready to."""
        connection = self._connection
        if connection is not None and connection.session is not None:
            self.post(messages.SampleNode(self.node))

    def _on_consumed(self, nbytes: int) -> None:
        """Have bytes acknowledged."""
        self._consumed.append(nbytes)
        if threading.current_thread() is not self.thread:
            self._waker.wake()

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
            error = messages.unexpected(exc, "on the thread of the node", ReceiverError)
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
        self._log.debug("%s: %s; before that: %s", self.node, error.message, self.trace)
        self._owner.on_error(error)
        self._owner.post(messages.NodeDown(self.node, error, bool(self.received)))

    def _serve(self) -> None:
        if self._stopping:
            return
        options, stats = self._options, self._stats
        try:
            stream = self._transport.connect(self._address, self._waker, options.connect_timeout)
        except CbframeError as exc:
            stats.tot_worker_connect_err += 1
            if isinstance(exc, ReadCancelledError) and not self._stopping:
                # An order came while the node was being connected to; there is nobody yet to carry it out.
                reasons = (order.why for order in self._inbox if isinstance(order, messages.StopNode))
                why = next(reasons, "there are new orders")
                raise ConnectError(f"{why}: the attempt to connect is given up") from exc
            raise
        stats.reconnects += stats.tot_worker_connect_ok > 0
        stats.tot_worker_connect_ok += 1
        self.trace.note(None, "connected")
        connection: DcpConnection | None = None
        try:
            connection = DcpConnection(self._login(), options, connection_name(options.name), stats)
            self._connection = connection
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
            stream.close()
            stats.tot_worker_client_close += 1

    def _converse(self, stream: ByteStream, connection: DcpConnection) -> None:
        """Orders, bytes to send, bytes that came, and a wait for more: until the connection is over."""
        options, stats, clock = self._options, self._stats, self._clock
        waits = Waits(options, clock())
        pace = Pace(rate_of(options), clock())
        enough = min(options.receive_bytes, connection.ack_at or options.receive_bytes)
        gather = Gather(enough, options.receive_latency)
        buffer = allocate(options.receive_buffer_bytes)
        have = 0
        readable = True
        while True:
            self._carry_out_orders(connection)
            while self._consumed:
                nbytes = self._consumed.popleft()
                self._owed -= nbytes
                connection.acknowledge(nbytes)
            pause = pace.acknowledge(connection, self._owed, clock())
            if data := connection.data_to_send():
                self._send(stream, data, connection.handed)
                waits.sent(clock())
            if self._stopping:
                return
            count = None
            if readable or not gather.left(clock()):
                readable = False
                count = self._receive(stream, memoryview(buffer)[have:], connection)
                if count is None or not connection.streams:
                    gather.quiet()
            now = clock()
            if count is not None:
                waits.heard(now)
                have += count
                # Closed here, not when it is collected: it counts what was left untaken.
                with closing(connection.receive(buffer, have)) as events:
                    self._handle(events)
                buffer, have = self._keep_tail(buffer, connection.consumed, have)
                if connection.streams:
                    gather.received(clock())
            ready, unanswered = connection.session is not None, connection.unanswered
            may_send = bool(connection.streams) and connection.room(self._owed) > 0
            waits.progress(now, connection.messages, waiting=may_send)
            if waits.owed_is_due(now):
                filtered = self._calls.wanted.filters
                owing = connection.streams.owed(self._high_seqnos, filtered=filtered)
                if warning := waits.owed(now, owing):
                    self._log.warning("%s: %s", self.node, warning)
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

    def _send(self, stream: ByteStream, data: bytes, count: int) -> None:
        try:
            stream.send_all(data, self._options.connect_timeout)
        except CbframeError:
            self._stats.tot_worker_transmit_err += 1
            raise
        self._stats.tot_worker_transmit_ok += count

    def _receive(self, stream: ByteStream, view: memoryview, connection: DcpConnection) -> int | None:
        stats = self._stats
        try:
            count = stream.receive_into(view)
            if count == 0:
                when = " during the handshake" if connection.session is None else ""
                raise ConnectError(f"the node closed the connection{when}")
        except CbframeError:
            stats.tot_worker_receive_err += 1
            stats.tot_worker_recv_end_ch += 1
            raise
        if count is not None:
            stats.receives += 1
            stats.bytes_received += count
        return count

    def _handle(self, events: Iterator[dcp.ConnectionEvent]) -> None:
        try:
            for event in events:
                stream: Stream | None = getattr(event, "stream", None)
                self.trace.note(None if stream is None else stream.vbucket, type(event).__name__)
                self._on_event(event)
        except CbframeError:
            self._stats.tot_worker_recv_end_ch += 1
            raise

    def _keep_tail(self, buffer: bytearray, consumed: int, have: int) -> tuple[bytearray, int]:
        """Move what belongs to the next frame to the front, in a buffer that this frame fits into."""
        tail = have - consumed
        size = self._options.receive_buffer_bytes
        if tail >= HEADER_LENGTH:
            body = int.from_bytes(buffer[consumed + 8 : consumed + 12], "big")
            size = max(size, HEADER_LENGTH + min(body, self._options.max_body_bytes))
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
                case messages.StopNode(why=why):
                    raise ConnectError(f"{why}: the connection is closed")
                case messages.SampleNode():
                    connection.sample()
                case dcp.RollbackRequired():
                    self._roll_back(order)
                case messages.CloseStreams(vbuckets=vbuckets):
                    for vbucket in vbuckets:
                        connection.close_stream(vbucket)
                case messages.OpenStreams(streams=streams):
                    for vbucket, end in streams:
                        connection.want_stream(self._calls.request(vbucket, end, connection.session))
                    if any(end != MAX_SEQNO for _, end in streams):
                        connection.sample()
            self._stats.tot_refresh_worker_ok += 1

    # -- events of the connection

    def _on_event(self, event: dcp.ConnectionEvent) -> None:
        owner, calls = self._owner, self._calls
        match event:
            case dcp.Data(block=block, fresh=fresh, nbytes=nbytes):
                for stream in fresh:
                    calls.save(stream)
                self._owed += nbytes
                calls.deliver(block, Receipt(nbytes, self._on_consumed))
                self.received += 1
            case dcp.Snapshot(stream=stream):
                calls.snapshot(stream)
            case dcp.Opened(stream=stream) | dcp.Ordered(stream=stream):
                owner.on_history(self.node, stream, calls.save(stream))
            case dcp.Ended(stream=stream, reason=reason):
                self._on_ended(stream, reason)
            case dcp.Ready(session=session):
                self._high_seqnos = session.seqnos
                owner.post(messages.NodeReady(self.node, session.seqnos))
            case dcp.Sampled(seqnos=seqnos):
                self._high_seqnos = seqnos
                owner.post(messages.NodeSampled(self.node, seqnos))
            case dcp.Timed(seconds=seconds):
                owner.on_time(self.node, seconds)
            case dcp.Refused():
                self._on_refused(event)
            case dcp.RollbackRequired():
                self._roll_back(event)
            case dcp.MapPushed(revision=revision, body=body):
                owner.on_push(self._address, revision, body)
            case dcp.Nooped():
                self._stats.noops += 1
            case dcp.Advanced(stream=stream):
                calls.advanced(stream)
                self.received += 1
            case dcp.CollectionEvent(stream=stream, event=message):
                calls.system_event(stream, message)
                self.received += 1

    def _on_ended(self, stream: Stream, reason: int | None) -> None:
        progressed = stream.seqno > stream.start
        end_reason = StreamEndReason.CLOSED if reason is None else reason
        ended = messages.StreamEnded(self.node, stream.vbucket, end_reason, _position(stream), progressed)
        if reason is not None and reason != StreamEndReason.OK:
            self._stats.tot_upr_stream_end_kick += 1
            if (error := messages.ended(ended)) is not None:
                self._owner.on_error(error)
        self._owner.post(ended)
        self.received += progressed or reason == StreamEndReason.OK

    def _on_refused(self, refusal: dcp.Refused) -> None:
        stream, status = refusal.stream, refusal.status
        if refusal.body.startswith(b"{"):
            self._owner.on_config(self._address, refusal.body)
        if status == Status.ERANGE:
            self._start_over(stream)
        else:
            self._stats.tot_upr_stream_req_res_kick += 1
            self._owner.post(messages.StreamRefused(self.node, stream.vbucket, status))

    def _start_over(self, stream: Stream) -> None:
        """Read a vbucket from the beginning: the position that the receiver stored cannot be right."""
        self._owner.on_error(
            StreamError(
                f"the stored position {stream.start} lies outside the vbucket's history: "
                "it is read from the start",
                node=self.node,
                vbucket=stream.vbucket,
                hint="the bucket was flushed or created again, or what was stored belongs to another one",
            )
        )
        self._roll_back(dcp.RollbackRequired(stream, 0))

    def _roll_back(self, event: dcp.RollbackRequired) -> None:
        """Roll back now, or when the receiver is ready to."""
        if self._calls.roll_back(event.stream, event.seqno, lambda: self.post(event)):
            self._owner.post(messages.StreamRolledBack(self.node, event.stream.vbucket, event.seqno))


def _position(stream: Stream) -> VBucketOffset:
    """The state that the stream left complete: its last snapshot's end."""
    seqno = stream.seqno
    if stream.snapshots and not stream.unordered:
        seqno = max(seqno, stream.snap_end)
    return VBucketOffset.at(stream.vbuuid, seqno)
