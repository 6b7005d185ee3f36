"""The thread of a data node: it owns the node's socket and connection object.

It takes orders from an inbox and posts what happens to the supervisor. Receiver callbacks run on
it, with no lock held.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

from cbframe.dcp import events as dcp
from cbframe.dcp import plan, verdicts
from cbframe.dcp.connection import DcpConnection
from cbframe.dcp.metadata import VBucketMetaData
from cbframe.dcp.receiver import BlockReceiver, ReceiverEx
from cbframe.dcp.stats import NodeStats
from cbframe.dcp.streams import Stream, request_from
from cbframe.dcp.transport import Stream as ByteStream
from cbframe.dcp.transport import Transport, Waker
from cbframe.errors import (
    CbframeError,
    ConnectError,
    ProtocolError,
    ReadCancelledError,
    ReadTimeoutError,
    ReceiverError,
    StreamError,
)
from cbframe.wire.blocks import DataBlock
from cbframe.wire.constants import HEADER_LENGTH, MAX_SEQNO, Opcode, Status, StreamEndReason, StreamFlag
from cbframe.wire.requests import StreamRequest

T = TypeVar("T")
Order: TypeAlias = plan.StopNode | plan.OpenStreams | plan.CloseStreams | plan.SampleNode


@dataclass(frozen=True, slots=True)
class NodeSetup:
    """What every node's thread of one data source needs."""

    transport: Transport
    receiver: BlockReceiver
    make_connection: Callable[[], DcpConnection]
    post: Callable[[plan.Event], None]
    on_config: Callable[[str, bytes], None]
    on_error: Callable[[CbframeError], None]
    clock: Callable[[], float]
    connect_timeout: float
    silence_timeout: float
    idle_wait: float
    buffer_bytes: int
    max_body: int
    filter_value: bytes


class NodeThread:
    """One connection to one data node, on a thread of its own.

    It ends when the connection ends; the supervisor starts another if the node is still needed.
    """

    def __init__(self, node: str, setup: NodeSetup, stats: NodeStats) -> None:
        self.node = node
        self._setup = setup
        self._stats = stats
        self._inbox: deque[Order] = deque()
        self._stopping = False
        self._progressed = False
        self._waker = Waker()
        self._connection: DcpConnection | None = None
        self._thread = threading.Thread(target=self._run, name=f"cbframe-node-{node}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def post(self, order: Order) -> None:
        """Give an order; callable from any thread."""
        self._inbox.append(order)
        self._waker.wake()

    def stop(self) -> None:
        """Ask the thread to end; callable from any thread."""
        self._stopping = True
        self._waker.wake()

    def join(self) -> None:
        """Wait for the end, and let the waker go."""
        self._thread.join()
        self._waker.close()

    def streams(self) -> list[Stream]:
        """The streams at this moment, for looking at."""
        connection = self._connection
        return [] if connection is None else list(connection.streams)

    # -- on the thread

    def _run(self) -> None:
        error: CbframeError
        try:
            self._serve()
            return
        except CbframeError as exc:
            error = exc
        except Exception as exc:  # noqa: BLE001 - whatever went wrong here must end the read, not hang it
            error = ReceiverError(f"an unexpected {type(exc).__name__} on the thread of the node: {exc}")
            error.__cause__ = exc
            error.permanent = True
        finally:
            self._stats.disconnects += 1
        if isinstance(error, ReadCancelledError) and self._stopping:
            return
        if isinstance(error, ReadTimeoutError):
            error.permanent = False  # a new connection may be faster
        error.node = error.node or self.node
        self._stats.errors += 1
        self._setup.on_error(error)
        self._setup.post(plan.NodeDown(self.node, error, self._progressed))

    def _serve(self) -> None:
        setup = self._setup
        self._stats.connects += 1
        stream = setup.transport.connect(self.node, self._waker, setup.connect_timeout)
        try:
            connection = self._connection = setup.make_connection()
            try:
                self._converse(stream, connection)
            except ProtocolError as exc:
                if connection.session is None:
                    # What speaks another protocol now will not speak ours next time.
                    exc.permanent = True
                raise
        finally:
            self._connection = None
            stream.close()

    def _converse(self, stream: ByteStream, connection: DcpConnection) -> None:
        setup = self._setup
        buffer = bytearray(setup.buffer_bytes)
        have = 0
        heard = setup.clock()
        deadline = heard + setup.connect_timeout
        while True:
            self._carry_out_orders(connection)
            if data := connection.data_to_send():
                stream.send_all(data, setup.connect_timeout)
            if self._stopping:
                return
            count = stream.receive_into(memoryview(buffer)[have:])
            if count is None:
                now = setup.clock()
                limit = deadline if connection.session is None else heard + setup.silence_timeout
                if now >= limit:
                    self._give_up(connection)
                stream.wait(min(setup.idle_wait, limit - now))
                continue
            if count == 0:
                raise ConnectError(
                    "the node closed the connection"
                    + (" during the handshake" if connection.session is None else "")
                )
            heard = setup.clock()
            have += count
            self._stats.receives += 1
            self._stats.bytes_received += count
            acks = connection.acks
            for event in connection.receive(buffer, have):
                self._on_event(event)
            self._stats.buffer_acks += connection.acks - acks
            buffer, have = self._keep_tail(buffer, connection.consumed, have)

    def _give_up(self, connection: DcpConnection) -> None:
        if connection.session is None:
            raise ReadTimeoutError(
                f"the handshake took longer than {self._setup.connect_timeout:g} s",
                hint="the port is open but silent: is it the data service?",
            )
        raise ReadTimeoutError(
            f"the node was silent for {self._setup.silence_timeout:g} s, not even a NOOP came"
        )

    def _keep_tail(self, buffer: bytearray, consumed: int, have: int) -> tuple[bytearray, int]:
        """Move what belongs to the next frame to the front, in a buffer that this frame fits into."""
        tail = have - consumed
        size = self._setup.buffer_bytes
        if tail >= HEADER_LENGTH:
            body = int.from_bytes(buffer[consumed + 8 : consumed + 12], "big")
            size = max(size, HEADER_LENGTH + min(body, self._setup.max_body))
        if size != len(buffer):
            fresh = bytearray(size)
            fresh[:tail] = memoryview(buffer)[consumed:have]
            return fresh, tail
        if consumed and tail:
            buffer[:tail] = buffer[consumed:have]
        return buffer, tail

    def _carry_out_orders(self, connection: DcpConnection) -> None:
        while self._inbox:
            order = self._inbox.popleft()
            if isinstance(order, plan.SampleNode):
                connection.sample()
                continue
            if isinstance(order, plan.StopNode):
                raise ConnectError("the node has left the cluster map: its connection is closed")
            if isinstance(order, plan.CloseStreams):
                for vbucket in order.vbuckets:
                    connection.close_stream(vbucket)
                continue
            for vbucket, end in order.streams:
                connection.request_stream(self._request(vbucket, end))
                self._stats.streams_requested += 1
            if any(end != MAX_SEQNO for _, end in order.streams):
                connection.sample()

    def _request(self, vbucket: int, end: int) -> StreamRequest:
        stored, seqno = self._call(self._setup.receiver.get_metadata, vbucket)
        metadata = VBucketMetaData() if stored is None else VBucketMetaData.from_json(stored)
        return request_from(
            vbucket,
            vbuuid=metadata.vbuuid_at(seqno),
            seqno=seqno,
            snap_start=metadata.snap_start,
            snap_end=metadata.snap_end,
            end=end,
            flags=StreamFlag.ACTIVE_ONLY,
            value=self._setup.filter_value,
        )

    # -- events of the connection

    def _on_event(self, event: dcp.Event) -> None:
        stats, setup = self._stats, self._setup
        match event:
            case dcp.Data(block=block, fresh=fresh):
                for stream in fresh:
                    self._save(stream)
                self._deliver(block)
                self._progressed = True
            case dcp.Snapshot(stream=stream):
                stats.snapshots += 1
                self._call(
                    setup.receiver.snapshot_start,
                    stream.vbucket,
                    stream.snap_start,
                    stream.snap_end,
                    stream.snap_flags,
                )
            case dcp.Ready(session=session):
                setup.post(plan.NodeReady(self.node, session.seqnos))
            case dcp.Sampled(seqnos=seqnos):
                setup.post(plan.NodeSampled(self.node, seqnos))
            case dcp.Opened(stream=stream):
                stats.streams_opened += 1
                self._save(stream)
            case dcp.Ended(stream=stream, reason=reason):
                stats.streams_ended += 1
                told = StreamEndReason.CLOSED if reason is None else reason
                progressed = stream.seqno > stream.start
                ended = plan.StreamEnded(self.node, stream.vbucket, told, _position(stream), progressed)
                if reason is not None and (error := verdicts.ended(ended)) is not None:
                    setup.on_error(error)
                setup.post(ended)
                self._progressed |= progressed or reason == StreamEndReason.OK
            case dcp.Refused(stream=stream, status=status, body=body):
                stats.streams_refused += 1
                if body.startswith(b"{"):
                    setup.on_config(self.node, body)
                if status == Status.ERANGE:
                    self._start_over(stream)
                else:
                    setup.post(plan.StreamRefused(self.node, stream.vbucket, status))
            case dcp.RolledBack(stream=stream, seqno=seqno):
                stats.rollbacks += 1
                self._roll_back(stream, seqno)
                setup.post(plan.StreamRolledBack(self.node, stream.vbucket))
            case dcp.Nooped():
                stats.noops += 1
            case dcp.Advanced() | dcp.CollectionEvent():
                self._progressed = True

    def _deliver(self, block: DataBlock) -> None:
        stats = self._stats
        mutations = int((block.opcode == Opcode.DCP_MUTATION).sum())
        deletions = int((block.opcode == Opcode.DCP_DELETION).sum())
        stats.mutations += mutations
        stats.deletions += deletions
        stats.expirations += len(block) - mutations - deletions
        stats.blocks += 1
        self._call(self._setup.receiver.on_block, block)

    def _save(self, stream: Stream) -> None:
        metadata = VBucketMetaData(
            snap_start=stream.snap_start, snap_end=stream.snap_end, failover_log=stream.failover_log
        )
        self._call(self._setup.receiver.set_metadata, stream.vbucket, metadata.to_json())

    def _roll_back(self, stream: Stream, seqno: int) -> None:
        receiver = self._setup.receiver
        if seqno >= stream.start:
            seqno = 0  # a rollback that leads nowhere back would repeat for ever
        if isinstance(receiver, ReceiverEx):
            self._call(receiver.rollback_ex, stream.vbucket, stream.vbuuid, seqno)
        else:
            self._call(receiver.rollback, stream.vbucket, seqno)

    def _start_over(self, stream: Stream) -> None:
        """Read a vbucket from the beginning: the position that the receiver stored cannot be right."""
        self._setup.on_error(
            StreamError(
                f"the stored position {stream.start} lies outside the vbucket's history: it is read anew",
                node=self.node,
                vbucket=stream.vbucket,
                hint="the bucket was flushed or created anew, or what was stored belongs to another one",
            )
        )
        self._roll_back(stream, 0)
        self._setup.post(plan.StreamRolledBack(self.node, stream.vbucket))

    def _call(self, callback: Callable[..., T], *args: object) -> T:
        assert threading.current_thread() is self._thread, "callbacks run on the node's thread"
        try:
            return callback(*args)
        except CbframeError:
            raise
        except Exception as exc:
            name = getattr(callback, "__name__", "a callback")
            error = ReceiverError(f"the receiver's {name} raised {type(exc).__name__}: {exc}")
            raise error from exc


def _position(stream: Stream) -> plan.Position:
    """The state that the stream left complete: its last snapshot's end."""
    seqno = stream.seqno
    if stream.snapshots and not stream.unordered:
        seqno = max(seqno, stream.snap_end)
    return plan.Position(stream.vbuuid, seqno)
