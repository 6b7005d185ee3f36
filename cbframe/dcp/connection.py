"""One DCP connection without its socket: bytes in, events out, bytes to send.

Owned by one thread at a time. Blocks point into the buffer that was handed to :meth:`receive` and
are valid until the next event is taken.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NoReturn, TypeAlias

import numpy as np

from cbframe.dcp.handshake import TIME, Login, Session, Steps, open_dcp, sample_seqnos, time_of, window_of
from cbframe.dcp.stats import NodeStats
from cbframe.dcp.streams import Stream, StreamEvent, StreamState, StreamStateError, StreamTable
from cbframe.errors import AuthFailError, CbframeError, ProtocolError
from cbframe.options import BucketDataSourceOptions
from cbframe.wire.blocks import DataBlock, Decoded, data_block, frame_decoder, refuse
from cbframe.wire.constants import (
    MAX_BODY_LENGTH,
    Datatype,
    Magic,
    Opcode,
    ServerOpcode,
    SnapshotFlag,
    Status,
    StreamEndReason,
)
from cbframe.wire.framing import Frame, response
from cbframe.wire.messages import (
    BufferAck,
    CloseStream,
    Commit,
    DcpNoop,
    FailoverLog,
    OsoSnapshot,
    Plain,
    Prepare,
    SeqnoAdvanced,
    SnapshotMarker,
    StreamEnd,
    StreamRequest,
    SystemEvent,
    noop_reply,
    parse_failover_log,
    parse_map_revision,
    parse_message,
    parse_rollback_seqno,
)


@dataclass(frozen=True, slots=True)
class Ready:
    """The handshake is done; streams can be requested."""

    session: Session


@dataclass(frozen=True, slots=True)
class Sampled:
    """The answer to :meth:`DcpConnection.sample`: high seqnos by vbucket."""

    seqnos: dict[int, int]


@dataclass(frozen=True, slots=True)
class Timed:
    """What time it is at the node: seconds since the epoch."""

    seconds: int


@dataclass(frozen=True, slots=True)
class Data:
    """Documents, to be acknowledged with :meth:`DcpConnection.acknowledge` when they are consumed.

    `fresh` lists the streams whose snapshot has its first item in this block; `nbytes` is what the
    documents, and dropped ones among them, took on the wire.
    """

    block: DataBlock
    fresh: tuple[Stream, ...]
    nbytes: int


@dataclass(frozen=True, slots=True)
class Opened:
    """The server accepted a stream request; the stream has its failover log."""

    stream: Stream


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A snapshot begins."""

    stream: Stream


@dataclass(frozen=True, slots=True)
class Advanced:
    """Progress without a document."""

    stream: Stream


@dataclass(frozen=True, slots=True)
class Ordered:
    """An out-of-order snapshot is complete: the stream has a position again."""

    stream: Stream


@dataclass(frozen=True, slots=True)
class CollectionEvent:
    """A scope or collection came, went or changed."""

    stream: Stream
    event: SystemEvent


@dataclass(frozen=True, slots=True)
class RollbackRequired:
    """The server requires a rollback of the vbucket to `seqno` before it streams."""

    stream: Stream
    seqno: int


@dataclass(frozen=True, slots=True)
class Refused:
    """The server will not stream this vbucket; `body` may hold a cluster map (NOT_MY_VBUCKET)."""

    stream: Stream
    status: int
    body: bytes


@dataclass(frozen=True, slots=True)
class Ended:
    """A stream is over; `reason` is None when the client closed it."""

    stream: Stream
    reason: int | None


@dataclass(frozen=True, slots=True)
class MapPushed:
    """The node has a new cluster map, of this revision; an empty `body` if it does not show it."""

    revision: tuple[int, int]
    body: bytes


@dataclass(frozen=True, slots=True)
class Nooped:
    """The server asked whether the client lives, and the answer is on its way."""


ConnectionEvent: TypeAlias = (
    Ready
    | Sampled
    | Timed
    | Data
    | Opened
    | Snapshot
    | Advanced
    | Ordered
    | CollectionEvent
    | RollbackRequired
    | Refused
    | Ended
    | MapPushed
    | Nooped
)


StreamMessage: TypeAlias = SnapshotMarker | StreamEnd | SeqnoAdvanced | OsoSnapshot | SystemEvent | Commit
_OUT_OF_PLACE = {
    StreamEvent.ACCEPTED: "tot_upr_stream_req_res_state_err",
    StreamEvent.REFUSED: "tot_upr_stream_req_res_state_err",
    StreamEvent.MARKER: "tot_upr_snapshot_state_err",
    StreamEvent.ITEM: "tot_upr_data_change_state_err",
    StreamEvent.END: "tot_upr_stream_end_state_err",
    StreamEvent.CLOSED: "tot_upr_close_stream_res_state_err",
}
"""What counts an event that a stream in its state cannot have."""
_REFUSALS: dict[int, str] = {
    Status.ROLLBACK: "tot_upr_stream_req_res_rollback",
    Status.NOT_MY_VBUCKET: "tot_upr_stream_req_res_fail_not_my_vbucket",
    Status.ERANGE: "tot_upr_stream_req_res_fail_erange",
    Status.ENOMEM: "tot_upr_stream_req_res_fail_enomem",
}
"""What counts a stream request that was refused with a status, besides the sum."""
_SASL = (Opcode.SASL_LIST_MECHS, Opcode.SASL_AUTH, Opcode.SASL_STEP)
_OSO_START, _OSO_END = 1, 2
_TO_BE_ANSWERED = int(SnapshotFlag.ACK)
_PREPARE_COUNTS_MORE = 2
"""Bytes by which servers count a prepared write longer than it is."""


def take(message: StreamMessage, stream: Stream) -> ConnectionEvent:
    """Have the stream take a message; the event of it."""
    match message:
        case SnapshotMarker():
            stream.mark(message)
            return Snapshot(stream)
        case StreamEnd(reason=reason):
            closing = stream.state is StreamState.CLOSING
            stream.step(StreamEvent.END)
            if stream.unordered and reason == StreamEndReason.OK and not closing:
                problem = "the stream is said to be complete inside an out-of-order snapshot"
                raise _refused(problem, Opcode.DCP_STREAM_END, stream)
            return Ended(stream, None if closing else reason)
        case SeqnoAdvanced(seqno=seqno):
            stream.reach(seqno)
            return Advanced(stream)
        case SystemEvent(seqno=seqno, manifest_uid=uid):
            stream.reach(seqno)
            stream.manifest_uid = max(stream.manifest_uid, uid or 0)
            return CollectionEvent(stream, message)
        case OsoSnapshot(flags=flags) if flags == _OSO_START:
            stream.begin_unordered()
            return Snapshot(stream)
        case OsoSnapshot(flags=flags) if flags == _OSO_END:
            stream.end_unordered()
            return Ordered(stream)
        case OsoSnapshot(flags=flags):
            raise _refused(f"an out-of-order snapshot with flags {flags}", Opcode.DCP_OSO_SNAPSHOT, stream)
        case Commit():
            # Servers send the whole document instead, unless they are asked not to.
            raise _refused("a commit of a write that was never shown", Opcode.DCP_COMMIT, stream)


def _refused(message: str, opcode: Opcode, stream: Stream) -> ProtocolError:
    return ProtocolError(message, opcode=opcode, vbucket=stream.vbucket)


class PendingRequests:
    """Runs the handshake, and samples after it; a node answers in the order in which it is asked."""

    def __init__(
        self,
        login: Login,
        options: BucketDataSourceOptions,
        name: str,
        queue: Callable[[Frame], None],
        stats: NodeStats,
    ) -> None:
        self._queue = queue
        self._stats = stats
        self._user = login.username is not None
        self._opaque = 0
        self._waiting: deque[tuple[int, int]] = deque()
        """Opaques and opcodes of the requests that have no answer yet, in order."""
        self._last = -1
        """Opcode of the request whose answer comes next."""
        self._handshake: Steps[Session] | None = open_dcp(login, options, name)
        self._sampling: Steps[dict[int, int]] | None = None
        self._collections = options.collections or ()
        self._asks_time = options.ask_time
        self._time_opaque: int | None = None
        self.answers = 0
        """Requests that were answered so far."""
        self._ask(next(self._handshake))

    def __len__(self) -> int:
        """Requests that have no answer yet, other than the one for the time."""
        return len(self._waiting)

    def sample(self) -> None:
        """Ask for the node's high seqnos, unless that is under way."""
        if self._sampling is None:
            self._sampling = sample_seqnos(self._collections)
            self._ask(next(self._sampling))

    def awaits(self, answer: Frame) -> bool:
        """Whether this is the next answer."""
        if answer.opcode == Opcode.STAT:
            return answer.opaque == self._time_opaque
        return bool(self._waiting) and (answer.opaque, answer.opcode) == self._waiting[0]

    def answered(self, answer: Frame) -> Ready | Sampled | Timed | None:
        """Take the answer and ask on; what has come to its end with it."""
        if answer.opcode == Opcode.STAT:
            if answer.status != Status.SUCCESS or not answer.key:
                self._time_opaque = None  # the last line, or a refusal: nothing but the time depends on it
            seconds = time_of(answer)
            return None if seconds is None else Timed(seconds)
        self._waiting.popleft()
        self.answers += 1
        self._count(answer)
        try:
            if self._handshake is not None:
                self._ask(self._handshake.send(answer))
            elif self._sampling is not None:
                self._ask(self._sampling.send(answer))
        except StopIteration as done:
            if self._handshake is None:
                self._sampling = None
                return Sampled(done.value)
            self._handshake = None
            self._stats.tot_worker_upr_open_ok += 1
            if self._asks_time:
                # Before the first stream, and without waiting for it.
                self._opaque += 1
                self._time_opaque = self._opaque
                self._queue(replace(TIME.frame(), opaque=self._opaque))
            return Ready(done.value)
        return None

    def _ask(self, frames: Sequence[Frame]) -> None:
        for frame in frames:
            self._opaque += 1
            self._waiting.append((self._opaque, frame.opcode))
            self._queue(replace(frame, opaque=self._opaque))
        self._last = self._waiting[0][1]
        self._stats.tot_worker_auth_ok += self._user and self._last == Opcode.SELECT_BUCKET

    def _count(self, answer: Frame) -> None:
        stats, granted = self._stats, answer.status == Status.SUCCESS
        if answer.opcode == Opcode.DCP_CONTROL:
            stats.tot_upr_control += 1
            stats.tot_upr_control_err += not granted
        elif answer.opcode == Opcode.SELECT_BUCKET and granted and not self._user:
            stats.tot_worker_authenticate_memcached_conn_ok += 1

    def broke_off(self, error: CbframeError) -> None:
        """Count with what a handshake ended, if it is not done."""
        if self._handshake is None:
            return
        stats, last = self._stats, self._last
        if last in _SASL:
            stats.count("tot_worker_auth_fail" if isinstance(error, AuthFailError) else "tot_worker_auth_err")
        elif last == Opcode.HELLO:
            stats.tot_handshake_err += 1
        elif last == Opcode.SELECT_BUCKET:
            stats.tot_select_bucket_err += 1
            stats.tot_worker_authenticate_memcached_conn_err += not self._user
        else:
            stats.tot_worker_upr_open_err += 1


class DcpConnection:
    """The protocol of one connection to one data node."""

    def __init__(
        self,
        login: Login,
        options: BucketDataSourceOptions,
        name: str = "",  # of the connection; that of the options if empty
        stats: NodeStats | None = None,  # counters to move
    ) -> None:
        self.streams = StreamTable()
        self.session: Session | None = None
        self.stats = NodeStats() if stats is None else stats
        self.consumed = 0
        """Bytes of the last received buffer that were whole frames; the rest must come again."""
        self.unacked = 0
        """Bytes that were consumed, and not acknowledged yet."""
        self.handed = 0
        """Messages in the bytes that :meth:`data_to_send` gave last."""
        self.messages = 0
        """What came over the streams so far."""
        self._window = window_of(options)
        self.ack_at = int(self._window * options.feed_buffer_ack_threshold)
        """Bytes beyond which the server is sent an acknowledgement; 0 without flow control."""
        self._paced = options.max_bytes_per_sec is not None
        """Acknowledgements wait until :meth:`send_ack` is called."""
        self._bucket = login.bucket.encode()
        self._stream_id = options.stream_id
        self._max_body = options.max_body_bytes
        self._decoder = frame_decoder(self._max_body)
        self._out: list[bytes] = []
        self._again: dict[int, StreamRequest] = {}
        """Streams to request when the present one of the vbucket is closed."""
        self._unanswered = self._stream_answers = 0
        self._pending = PendingRequests(login, options, name or options.name, self._queue, self.stats)

    @property
    def unanswered(self) -> int:
        """Requests that the server has not answered yet."""
        return self._unanswered + len(self._pending)

    @property
    def answers(self) -> int:
        """Requests that the server has answered so far."""
        return self._stream_answers + self._pending.answers

    def room(self, held: int) -> int:
        """Bytes that the server may send, as we count: `held` are not consumed yet."""
        return self._window - held - self.unacked if self._window else MAX_BODY_LENGTH

    @property
    def granted(self) -> Mapping[str, str]:
        """Options that the node granted, with their values; none before the handshake is done."""
        return {} if self.session is None else self.session.granted

    def data_to_send(self) -> bytes:
        """Take what is to be written to the socket."""
        data = b"".join(self._out)
        self.handed = len(self._out)
        self._out.clear()
        return data

    def broke_off(self, error: CbframeError) -> None:
        """Take note that the connection is over, with `error`."""
        self._pending.broke_off(error)

    def want_stream(self, request: StreamRequest) -> None:
        """Ask for a vbucket's stream, now or when its present one is closed."""
        self.stats.tot_upr_stream_req_want += 1
        closing = self.streams.of_vbucket(request.vbucket)
        if closing is not None and closing.state is StreamState.CLOSING:
            self.stats.tot_want_closing_vbucket_err += 1
            self._again[request.vbucket] = request
        else:
            self.request_stream(request)

    def request_stream(self, request: StreamRequest) -> Stream:
        """Ask for a vbucket's stream."""
        stream = self.streams.open(request)
        self._decoder.open(request.vbucket, stream.opaque, request.start)
        self._queue(request.frame(stream.opaque))
        self.stats.tot_upr_stream_req += 1
        self._unanswered += 1
        return stream

    def close_stream(self, vbucket: int) -> None:
        """Ask the server to end a stream; `Ended` follows."""
        stream = self.streams.of_vbucket(vbucket)
        if stream is None:
            return
        if stream.state is StreamState.REQUESTED:
            # The server knows of no such stream before it has answered.
            self.stats.tot_want_close_requested_vbucket_err += 1
            stream.unwanted = True
            self._decoder.close(vbucket)
        elif stream.state is StreamState.RUNNING:
            stream.step(StreamEvent.CLOSE)
            self._decoder.close(vbucket)
            self._queue(CloseStream(vbucket, self._stream_id).frame(stream.opaque))
            self.stats.tot_upr_close_stream += 1

    def ping(self) -> None:
        """Ask whether the node lives; any answer will do."""
        self._queue(Plain(Opcode.NOOP).frame())

    def sample(self) -> None:
        """Ask for the node's high seqnos once more; `Sampled` follows."""
        self._pending.sample()

    def acknowledge(self, nbytes: int) -> None:
        """Count bytes as consumed; the server is sent an acknowledgement once enough have come together.

        For the documents of :class:`Data`; the connection itself counts everything else.
        """
        if not self._window:
            return
        self.unacked += nbytes
        if not self._paced:
            self.send_ack()

    @property
    def ack_is_due(self) -> bool:
        """Whether enough was consumed for an acknowledgement."""
        return self.unacked > self.ack_at

    def send_ack(self, *, little: bool = False) -> int:
        """Acknowledge what was consumed, if it is enough, or also if it is `little`; how much it is."""
        nbytes = self.unacked
        if not self.ack_is_due and not (little and nbytes):
            return 0
        self._queue(BufferAck(nbytes).frame())
        self.unacked = 0
        self.stats.buffer_acks += 1
        return nbytes

    def receive(self, buffer: bytearray, stop: int) -> Generator[ConnectionEvent, None, None]:
        """Take the whole frames in ``buffer[:stop]``."""
        try:
            yield from self._take(buffer, stop)
        except StreamStateError as exc:
            self.stats.count(_OUT_OF_PLACE[exc.event])
            raise

    def _take(self, buffer: bytearray, stop: int) -> Iterator[ConnectionEvent]:
        stats = self.stats
        self.consumed, more = 0, True
        while more:
            decoded = self._decoder.decode(buffer, self.consumed, stop)
            self.consumed, more = decoded.consumed, decoded.more
            frames = decoded.messages + len(decoded.before) + len(decoded.after)
            stats.tot_worker_receive_ok += frames
            stats.tot_upr_data_change += decoded.messages
            self.messages += decoded.messages
            yield from self._handle(buffer, decoded.before)
            if len(decoded):
                yield self._data(buffer, decoded)
            else:
                self.acknowledge(decoded.nbytes)
            yield from self._handle(buffer, decoded.after)
            if decoded.error is not None:
                self._refuse(buffer, decoded)

    def _data(self, buffer: bytearray, decoded: Decoded) -> Data:
        vbuckets, seqnos = decoded.positions()
        self.streams.reached[np.frombuffer(vbuckets, np.uint16)] = np.frombuffer(seqnos, np.uint64)
        fresh = []
        for vbucket in decoded.fresh:
            stream = self.streams.of_vbucket(vbucket)
            if stream is not None and not stream.snap_saved:
                stream.snap_saved = True
                fresh.append(stream)
        return Data(data_block(buffer, decoded), tuple(fresh), decoded.nbytes)

    def _refuse(self, buffer: bytearray, decoded: Decoded) -> NoReturn:
        header = refuse(buffer, decoded, self._max_body)
        stream = self.streams.get(header.opaque)
        assert stream is not None, "both tables have the same streams"
        frame = Frame.parse(buffer, decoded.consumed, max_body=self._max_body)
        assert frame is not None, "the decoder takes whole frames only"
        raise stream.misplaced(
            int.from_bytes(frame[0].extras[:8], "big"),
            vbucket=header.vbucket,
            opcode=header.opcode,
            offset=decoded.consumed,
        )

    def _handle(self, buffer: bytearray, offsets: Sequence[int]) -> Iterator[ConnectionEvent]:
        """Handle frames that are no data messages."""
        stats = self.stats
        for offset in offsets:
            parsed = Frame.parse(buffer, offset, max_body=self._max_body)
            assert parsed is not None, "the decoder takes whole frames only"
            handled = False
            try:
                if (event := self._on_frame(parsed[0])) is not None:
                    yield event
                    if isinstance(event, Opened):
                        stats.tot_upr_stream_req_res_success_ok += 1
                        if event.stream.unwanted:
                            self.close_stream(event.stream.vbucket)
                handled = True
            finally:
                # Left early too: the receiver raised at an event, and no more are taken.
                stats.tot_worker_handle_recv_ok += handled
                stats.tot_worker_handle_recv_err += not handled

    def _on_frame(self, frame: Frame) -> ConnectionEvent | None:
        if frame.is_response:
            return self._on_response(frame)
        if frame.magic == Magic.SERVER_REQUEST:
            # No push needs an answer, also not one of another kind.
            if frame.opcode == ServerOpcode.CLUSTERMAP_CHANGE_NOTIFICATION and frame.key == self._bucket:
                # One that is packed is fetched instead.
                body = b"" if frame.datatype & Datatype.SNAPPY else frame.value
                return MapPushed(parse_map_revision(frame), body)
            return None
        if self.session is None and frame.opcode != Opcode.DCP_NOOP:
            raise ProtocolError(
                "a request from the server before the handshake was done", opcode=frame.opcode
            )
        return self._on_message(frame)

    # -- what the server says on its own

    def _on_message(self, frame: Frame) -> ConnectionEvent | None:
        message = parse_message(frame)
        if isinstance(message, DcpNoop):
            self._queue(noop_reply(frame))
            return Nooped()
        event = None
        stream = self.streams.get(frame.opaque)
        if stream is not None and isinstance(message, StreamMessage):
            self.messages += 1
            if stream.vbucket != frame.vbucket:
                raise ProtocolError(
                    f"a message under the opaque of vbucket {stream.vbucket}",
                    opcode=frame.opcode,
                    vbucket=frame.vbucket,
                )
            event = self._on_stream_message(message, stream, frame)
        # Ignored messages were sent under flow control too, what is not settled among them.
        self.acknowledge(len(frame) + (_PREPARE_COUNTS_MORE if isinstance(message, Prepare) else 0))
        return event

    def _on_stream_message(self, message: StreamMessage, stream: Stream, frame: Frame) -> ConnectionEvent:
        event = take(message, stream)
        if isinstance(message, SnapshotMarker) and message.flags & _TO_BE_ANSWERED:
            self._queue(response(Opcode.DCP_SNAPSHOT_MARKER, opaque=frame.opaque))
        elif isinstance(event, Ended):
            self.stats.tot_upr_stream_end += 1
            self._forget(stream)
        return event

    # -- answers

    def _on_response(self, frame: Frame) -> ConnectionEvent | None:
        if frame.opcode == Opcode.DCP_STREAM_REQ:
            return self._on_stream_answer(frame)
        if frame.opcode == Opcode.DCP_CLOSE_STREAM:
            return self._on_close_answer(frame)
        if self._pending.awaits(frame):
            event = self._pending.answered(frame)
            if isinstance(event, Ready):
                self.session = event.session
                self._decoder.ready(event.session.collections)
            return event
        if frame.opcode == Opcode.NOOP:
            return None  # that it came is all that matters
        if frame.opcode != Opcode.DCP_BUFFER_ACK:
            raise ProtocolError("an answer to nothing that was asked", opcode=frame.opcode)
        raise ProtocolError(
            f"an acknowledgement was refused ({Status.describe(frame.status)})", opcode=frame.opcode
        )

    def _on_close_answer(self, frame: Frame) -> ConnectionEvent | None:
        stats = self.stats
        if frame.status == Status.SUCCESS:
            stats.tot_upr_close_stream_res_ok += 1
        else:
            stats.tot_upr_close_stream_res_err += 1  # it had no such stream: closed all the same
        stream = self.streams.get(frame.opaque)
        if stream is None:
            return None
        stream.step(StreamEvent.CLOSED)
        self._forget(stream)
        return Ended(stream, None)

    def _forget(self, stream: Stream) -> None:
        """Let go of a stream that is over, and open the next one of its vbucket."""
        self._remove(stream)
        again = self._again.pop(stream.vbucket, None)
        if again is not None:
            self.request_stream(again)

    def _remove(self, stream: Stream) -> None:
        self.streams.remove(stream)
        self._decoder.forget(stream.vbucket)

    def _on_stream_answer(self, frame: Frame) -> ConnectionEvent:
        stats = self.stats
        stream = self.streams.get(frame.opaque)
        if stream is None:
            stats.tot_upr_stream_req_res_state_err += 1
            raise ProtocolError("an answer to a stream that was not asked for", opcode=frame.opcode)
        self._unanswered -= 1
        self._stream_answers += 1
        if frame.status == Status.SUCCESS:
            stream.step(StreamEvent.ACCEPTED)
            stats.streams_opened += 1
            try:
                stream.failover_log = _failover_log(frame, stream.vbucket)
            except ProtocolError:
                stats.tot_upr_stream_req_res_flog_err += 1
                raise
            return Opened(stream)
        stream.step(StreamEvent.REFUSED)
        self._remove(stream)
        stats.tot_upr_stream_req_res_fail += 1
        if (counter := _REFUSALS.get(frame.status)) is not None:
            stats.count(counter)
        if frame.status == Status.ROLLBACK:
            return RollbackRequired(stream, parse_rollback_seqno(frame.value))
        return Refused(stream, frame.status, frame.value)

    def _queue(self, frame: Frame) -> None:
        self._out.append(frame.encode())
        self.stats.tot_worker_transmit += 1


def _failover_log(answer: Frame, vbucket: int) -> FailoverLog:
    """The log that a granted stream comes with; it has at least one entry."""
    log = parse_failover_log(answer.value)
    if not log:
        raise ProtocolError("an empty failover log", opcode=answer.opcode, vbucket=vbucket)
    return log
