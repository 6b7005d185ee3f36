"""What a data node says, as bytes: the other end of a :class:`DcpConnection`."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from contextlib import closing
from typing import Any, TypeAlias

from cbframe.dcp.connection import Data, DcpConnection, Opened
from cbframe.dcp.handshake import Login, Steps, T
from cbframe.dcp.streams import Stream
from cbframe.dcp.transport import Line
from cbframe.options import BucketDataSourceOptions
from cbframe.testing import Peer
from cbframe.wire.constants import Datatype, Feature, Magic, Opcode, Status
from cbframe.wire.framing import Frame, request, response
from cbframe.wire.messages import StreamRequest, encode_failover_log, encode_leb128, encode_vbucket_seqnos

LOGIN = Login("user", "secret", "bucket", False, True, lambda: "nonce")
SETTINGS = BucketDataSourceOptions(
    name="test", feed_buffer_size_bytes=1000, compression=False, flatbuffers_system_events=False
)
GRANTED = (Feature.XATTR, Feature.XERROR, Feature.SELECT_BUCKET, Feature.JSON, Feature.COLLECTIONS)
LOG = [(22, 5), (11, 0)]


def hello(*features: int) -> bytes:
    return struct.pack(f">{len(features)}H", *features)


def good_answer(asked: Frame, features: tuple[int, ...] = GRANTED) -> Frame:
    """How a healthy node, an old one that knows only PLAIN, answers the frames of a handshake."""
    if asked.opcode == Opcode.SASL_AUTH and asked.key != b"PLAIN":
        return refusal(asked, Status.AUTH_ERROR)
    value = {
        Opcode.HELLO: hello(*features),
        Opcode.SASL_LIST_MECHS: b"PLAIN",
        Opcode.GET_ALL_VB_SEQNOS: encode_vbucket_seqnos({0: 5, 1: 0}),
        Opcode.DCP_STREAM_REQ: encode_failover_log(LOG),
    }.get(Opcode(asked.opcode), b"")
    return response(asked.opcode, opaque=asked.opaque, value=value)


def refusal(asked: Frame, status: int) -> Frame:
    return response(asked.opcode, opaque=asked.opaque, status=status)


def replaced(peer: Peer, answers: Mapping[Any, Callable[[Frame], bytes | None] | bytes | int | None]) -> Peer:
    """A node that answers some opcodes with a value, or a status; with None it hangs up."""

    def answer(frame: Frame) -> bytes | None:
        if frame.is_response or frame.opcode not in answers:
            return peer(frame)
        match answers[frame.opcode]:
            case None:
                return None
            case bytes(value):
                return response(frame.opcode, opaque=frame.opaque, value=value).encode()
            case int(status):
                return refusal(frame, status).encode()
            case how:
                return how(frame)

    return answer


def frames(data: bytes) -> list[Frame]:
    found, offset = [], 0
    while offset < len(data):
        parsed = Frame.parse(data, offset)
        assert parsed is not None
        found.append(parsed[0])
        offset = parsed[1]
    return found


def mutation(vb: int, opaque: int, seqno: int, key: bytes = b"k", value: bytes = b"{}") -> bytes:
    extras = struct.pack(">QQIIIHB", seqno, 1, 0, 0, 0, 0, 0)
    prefixed = encode_leb128(0) + key
    return request(
        Opcode.DCP_MUTATION, vbucket=vb, opaque=opaque, extras=extras, key=prefixed, value=value
    ).encode()


def deletion(vb: int, opaque: int, seqno: int, key: bytes = b"k") -> bytes:
    extras = struct.pack(">QQIB", seqno, 1, 77, 0)
    return request(
        Opcode.DCP_DELETION, vbucket=vb, opaque=opaque, extras=extras, key=encode_leb128(0) + key
    ).encode()


def consumed(connection: DcpConnection, buffer: bytearray) -> list[object]:
    """Events of a buffer, whose documents are acknowledged at once."""
    events: list[object] = []
    for event in connection.receive(buffer, len(buffer)):
        events.append(event)
        if isinstance(event, Data):
            connection.acknowledge(event.nbytes)
    return events


def feed(connection: DcpConnection, data: bytes) -> list[object]:
    """Events of bytes that arrive in one piece, which must be whole frames."""
    buffer = bytearray(data)
    events = consumed(connection, buffer)
    assert connection.consumed == len(data)
    return events


Answerer: TypeAlias = Callable[[Frame], Frame]


def shake_hands(connection: DcpConnection, answer: Answerer = good_answer) -> list[list[Frame]]:
    """Answer until the handshake is done, or nothing is asked any more; what was asked in each turn."""
    turns = []
    while connection.session is None and (asked := frames(connection.data_to_send())):
        turns.append(asked)
        for frame in asked:
            feed(connection, answer(frame).encode())
    return turns


def connect(
    options: BucketDataSourceOptions = SETTINGS, features: tuple[int, ...] = GRANTED
) -> DcpConnection:
    """A connection whose handshake is done."""
    connection = DcpConnection(LOGIN, options)
    shake_hands(connection, lambda asked: good_answer(asked, features))
    assert connection.session is not None
    return connection


STATUSES = [Status.EINVAL, Status.EACCESS, Status.NOT_SUPPORTED, Status.ETMPFAIL, Status.EINTERNAL]


def ask(node: str, steps: Steps[T], **connection: Any) -> T:
    """Run a conversation on a connection of its own."""
    with closing(Line(node, **connection)) as line:
        return line.run(steps)


def open_stream(connection: DcpConnection, vb: int = 0, **fields: int) -> Stream:
    """A stream that is granted."""
    stream = connection.request_stream(StreamRequest(vb, **fields))
    (asked,) = frames(connection.data_to_send())
    assert feed(connection, good_answer(asked).encode()) == [Opened(stream)]
    return stream


# --- maps that nodes push


def push(
    body: bytes = b'{"rev":7}',
    *,
    bucket: bytes = b"bucket",
    extras: bytes = struct.pack(">qq", 1, 7),
    opcode: int = 1,
    datatype: int = Datatype.JSON,
) -> bytes:
    return Frame(
        Magic.SERVER_REQUEST, opcode, extras=extras, key=bucket, value=body, datatype=int(datatype)
    ).encode()
