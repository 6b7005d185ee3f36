"""One DCP connection without its socket: bytes in, events out, bytes to send.

Owned by one thread at a time. Blocks point into the buffer that was handed to :meth:`receive` and
are valid until the next event is taken.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from cbframe.dcp.events import (
    Advanced,
    CollectionEvent,
    Ended,
    Event,
    Nooped,
    Opened,
    Ready,
    Refused,
    RolledBack,
    Sampled,
    Snapshot,
)
from cbframe.dcp.handshake import DcpSettings, Login, Session, Steps, open_dcp, sample_seqnos
from cbframe.dcp.pending import Pending
from cbframe.dcp.streams import Stream, StreamEvent, StreamState, StreamTable
from cbframe.errors import ProtocolError
from cbframe.wire.blocks import decode_block
from cbframe.wire.constants import MAX_BODY_LENGTH, Magic, Opcode, SnapshotFlag, Status
from cbframe.wire.failover import parse_failover_log
from cbframe.wire.frame import Frame, response
from cbframe.wire.index import index_frames
from cbframe.wire.messages import (
    DcpNoop,
    OsoSnapshot,
    SeqnoAdvanced,
    SnapshotMarker,
    StreamEnd,
    SystemEvent,
    parse_message,
    parse_rollback_seqno,
)
from cbframe.wire.requests import BufferAck, CloseStream, StreamRequest, noop_reply

_STREAM_MESSAGES = SnapshotMarker | StreamEnd | SeqnoAdvanced | OsoSnapshot | SystemEvent


class DcpConnection:
    """The protocol of one connection to one data node.

    Parameters
    ----------
    login, settings
        Whom to connect as, and what to ask of the node.
    ack_threshold
        Part of the flow-control window that is acknowledged at once.
    max_body
        Longest body accepted, in bytes.
    """

    def __init__(
        self,
        login: Login,
        settings: DcpSettings,
        *,
        ack_threshold: float = 0.2,
        max_body: int = MAX_BODY_LENGTH,
    ) -> None:
        self.streams = StreamTable()
        self.session: Session | None = None
        self.consumed = 0
        """Bytes of the last received buffer that were whole frames; the rest must come again."""
        self.unacked = 0
        self.acks = 0
        self._ack_at = int(settings.buffer_size * ack_threshold)
        self._flow_control = settings.buffer_size > 0
        self._max_body = max_body
        self._out = bytearray()
        self._opaque = 0
        self._asked = -1
        self._steps: Steps[Session] | None = open_dcp(login, settings)
        self._sampling: Steps[dict[int, int]] | None = None
        self._send_step(next(self._steps))

    def data_to_send(self) -> bytes:
        """Take what is to be written to the socket."""
        data = bytes(self._out)
        self._out.clear()
        return data

    def request_stream(self, request: StreamRequest) -> Stream:
        """Ask for a vbucket's stream."""
        stream = self.streams.open(request)
        self._out += request.frame(stream.opaque).encode()
        return stream

    def close_stream(self, vbucket: int) -> None:
        """Ask the server to end a stream; `Ended` follows."""
        stream = self.streams.of_vbucket(vbucket)
        if stream is not None and stream.state is StreamState.RUNNING:
            stream.step(StreamEvent.CLOSE)
            self._out += CloseStream(vbucket).frame(stream.opaque).encode()

    def sample(self) -> None:
        """Ask for the node's high seqnos once more; `Sampled` follows."""
        if self._sampling is None:
            self._sampling = sample_seqnos()
            self._send_step(next(self._sampling))

    def acknowledge(self, nbytes: int) -> None:
        """Count bytes as consumed; the server is told once enough have come together."""
        if not self._flow_control:
            return
        self.unacked += nbytes
        if self.unacked > self._ack_at:
            self._out += BufferAck(self.unacked).frame().encode()
            self.unacked = 0
            self.acks += 1

    def receive(self, buffer: bytearray, stop: int) -> Iterator[Event]:
        """Take the whole frames in ``buffer[:stop]``.

        Raises
        ------
        ProtocolError
            The peer broke the rules; the connection is of no more use.
        AuthFailError, AccessError, BucketNotFoundError, ServerError
            The handshake failed.
        """
        index = index_frames(buffer, stop, max_body=self._max_body)
        self.consumed = int(index.bounds[-1])
        data = np.flatnonzero(index.is_data)
        pending: Pending | None = None
        if len(data):
            if self.session is None:
                raise ProtocolError(
                    "documents before the handshake was done", offset=int(index.bounds[data[0]])
                )
            block = decode_block(buffer, index.bounds, frames=data, collections=self.session.collections)
            pending = Pending(block, np.diff(index.bounds)[data], data, self.streams)
        for number, frame_number in enumerate(np.flatnonzero(~index.is_data).tolist()):
            if pending is not None:
                pending.take_until(frame_number - number)
            parsed = Frame.parse(buffer, int(index.bounds[frame_number]), max_body=self._max_body)
            assert parsed is not None, "the index holds whole frames only"
            for event in self._on_frame(parsed[0]):
                if pending is None or not pending.holds_back(event):
                    yield event
                elif not pending.hold(event):
                    yield from self._flush(pending)
                    yield event
        if pending is not None:
            pending.take_until(len(data))
            yield from self._flush(pending)

    def _flush(self, pending: Pending) -> Iterator[Event]:
        """Deliver the documents that have come together, and what had to wait for them."""
        delivery = pending.deliver()
        if delivery.data is not None:
            yield delivery.data
        self.acknowledge(delivery.nbytes)
        yield from delivery.held

    def _on_frame(self, frame: Frame) -> Iterator[Event]:
        if frame.is_response:
            yield from self._on_response(frame)
        elif frame.magic == Magic.SERVER_REQUEST:
            return  # a push that was not asked for needs no answer
        elif self.session is None and frame.opcode != Opcode.DCP_NOOP:
            raise ProtocolError(
                "a request from the server before the handshake was done", opcode=frame.opcode
            )
        else:
            yield from self._on_message(frame)

    # -- what the server says on its own

    def _on_message(self, frame: Frame) -> Iterator[Event]:
        message = parse_message(frame)
        if isinstance(message, DcpNoop):
            self._out += noop_reply(frame).encode()
            yield Nooped()
            return
        stream = self.streams.get(frame.opaque)
        if stream is not None and isinstance(message, _STREAM_MESSAGES):
            if stream.vbucket != frame.vbucket:
                raise ProtocolError(
                    f"a message under the opaque of vbucket {stream.vbucket}",
                    opcode=frame.opcode,
                    vbucket=frame.vbucket,
                )
            yield from self._on_stream_message(message, stream, frame)
        # Ignored messages were sent under flow control too.
        self.acknowledge(len(frame))

    def _on_stream_message(
        self,
        message: SnapshotMarker | StreamEnd | SeqnoAdvanced | OsoSnapshot | SystemEvent,
        stream: Stream,
        frame: Frame,
    ) -> Iterator[Event]:
        match message:
            case SnapshotMarker():
                stream.mark(message)
                if message.flags & SnapshotFlag.ACK:
                    self._out += response(Opcode.DCP_SNAPSHOT_MARKER, opaque=frame.opaque).encode()
                yield Snapshot(stream)
            case SeqnoAdvanced(seqno=seqno):
                stream.step(StreamEvent.ITEM)
                stream.seqno = max(stream.seqno, seqno)
                yield Advanced(stream)
            case SystemEvent(seqno=seqno):
                stream.step(StreamEvent.ITEM)
                stream.seqno = max(stream.seqno, seqno)
                yield CollectionEvent(stream, message)
            case OsoSnapshot(flags=flags):
                stream.step(StreamEvent.ITEM)
                stream.unordered = flags == 1
            case StreamEnd(reason=reason):
                closing = stream.state is StreamState.CLOSING
                stream.step(StreamEvent.END)
                self.streams.remove(stream)
                yield Ended(stream, None if closing else reason)

    # -- answers

    def _on_response(self, frame: Frame) -> Iterator[Event]:
        if frame.opcode == Opcode.DCP_STREAM_REQ:
            yield from self._on_stream_answer(frame)
        elif frame.opcode == Opcode.DCP_CLOSE_STREAM:
            stream = self.streams.get(frame.opaque)
            if stream is not None:
                stream.step(StreamEvent.CLOSED)
                self.streams.remove(stream)
                yield Ended(stream, None)
        elif (frame.opaque, frame.opcode) == (self._opaque, self._asked):
            yield from self._step(frame)
        elif frame.opcode != Opcode.DCP_BUFFER_ACK:
            raise ProtocolError("an answer to nothing that was asked", opcode=frame.opcode)
        else:
            raise ProtocolError(
                f"an acknowledgement was refused ({Status.describe(frame.status)})", opcode=frame.opcode
            )

    def _on_stream_answer(self, frame: Frame) -> Iterator[Event]:
        stream = self.streams.get(frame.opaque)
        if stream is None:
            raise ProtocolError("an answer to a stream that was not asked for", opcode=frame.opcode)
        if frame.status == Status.SUCCESS:
            stream.step(StreamEvent.ACCEPTED)
            stream.failover_log = parse_failover_log(frame.value)
            if not stream.failover_log:
                raise ProtocolError("an empty failover log", opcode=frame.opcode, vbucket=stream.vbucket)
            yield Opened(stream)
            return
        stream.step(StreamEvent.REFUSED)
        self.streams.remove(stream)
        if frame.status == Status.ROLLBACK:
            yield RolledBack(stream, parse_rollback_seqno(frame.value))
        else:
            yield Refused(stream, frame.status, frame.value)

    def _step(self, answer: Frame) -> Iterator[Event]:
        self._asked = -1
        try:
            if self._steps is not None:
                self._send_step(self._steps.send(answer))
            elif self._sampling is not None:
                self._send_step(self._sampling.send(answer))
        except StopIteration as done:
            if self._steps is not None:
                self._steps = None
                self.session = done.value
                yield Ready(done.value)
            else:
                self._sampling = None
                yield Sampled(done.value)

    def _send_step(self, frame: Frame) -> None:
        self._opaque += 1
        self._asked = frame.opcode
        self._out += Frame(
            frame.magic,
            frame.opcode,
            frame.vbucket,
            self._opaque,
            extras=frame.extras,
            key=frame.key,
            value=frame.value,
        ).encode()
