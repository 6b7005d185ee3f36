"""What a client says: control messages from client to data node.

Every class encodes to a :class:`Frame` and is read back from one by :func:`parse_request`, so that
a server can use the same definitions.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

from cbframe.errors import ProtocolError
from cbframe.wire.constants import MAX_SEQNO, Magic, Opcode
from cbframe.wire.framing import Frame, exact_extras, request, response

_STREAM_REQ = struct.Struct(">IIQQQQQ")
_OPEN = struct.Struct(">II")
_U32 = struct.Struct(">I")


@dataclass(frozen=True, slots=True)
class Hello:
    """Offer features; the answer holds those that the server grants."""

    agent: str
    features: tuple[int, ...]

    def frame(self, opaque: int = 0) -> Frame:
        value = struct.pack(f">{len(self.features)}H", *self.features)
        return request(Opcode.HELLO, opaque=opaque, key=self.agent.encode(), value=value)

    @classmethod
    def parse(cls, frame: Frame) -> Hello:
        return cls(frame.key.decode(errors="replace"), parse_features(frame.value))


def parse_features(value: bytes) -> tuple[int, ...]:
    """The 16-bit feature codes of a HELLO request or answer."""
    if len(value) % 2:
        raise ProtocolError("a HELLO value has an odd length", opcode=Opcode.HELLO)
    return struct.unpack(f">{len(value) // 2}H", value)


@dataclass(frozen=True, slots=True)
class SaslAuth:
    """First message of an authentication. The payload is secret and stays out of the repr."""

    mechanism: str
    payload: bytes
    opcode: int = Opcode.SASL_AUTH

    def frame(self, opaque: int = 0) -> Frame:
        return request(self.opcode, opaque=opaque, key=self.mechanism.encode(), value=self.payload)

    @classmethod
    def parse(cls, frame: Frame) -> SaslAuth:
        return cls(frame.key.decode(errors="replace"), frame.value, frame.opcode)

    def __repr__(self) -> str:
        return f"SaslAuth(mechanism={self.mechanism!r})"


@dataclass(frozen=True, slots=True)
class SelectBucket:
    bucket: str

    def frame(self, opaque: int = 0) -> Frame:
        return request(Opcode.SELECT_BUCKET, opaque=opaque, key=self.bucket.encode())

    @classmethod
    def parse(cls, frame: Frame) -> SelectBucket:
        return cls(frame.key.decode(errors="replace"))


@dataclass(frozen=True, slots=True)
class GetAllVBucketSeqnos:
    """Ask for the high seqnos of a node's vbuckets; ``state`` is a :class:`VBucketStateCode`."""

    state: int | None = None
    collection_id: int | None = None

    def frame(self, opaque: int = 0) -> Frame:
        extras = b""
        if self.state is not None or self.collection_id is not None:
            extras = _U32.pack(self.state or 0)
        if self.collection_id is not None:
            extras += _U32.pack(self.collection_id)
        return request(Opcode.GET_ALL_VB_SEQNOS, opaque=opaque, extras=extras)

    @classmethod
    def parse(cls, frame: Frame) -> GetAllVBucketSeqnos:
        numbers = [n for (n,) in _U32.iter_unpack(exact_extras(frame, 0, 4, 8))]
        return cls(*numbers)


@dataclass(frozen=True, slots=True)
class DcpOpen:
    """Turn the connection into a DCP producer's; ``flags`` is an :class:`OpenFlag`."""

    name: str
    flags: int

    def frame(self, opaque: int = 0) -> Frame:
        return request(
            Opcode.DCP_OPEN, opaque=opaque, extras=_OPEN.pack(0, self.flags), key=self.name.encode()
        )

    @classmethod
    def parse(cls, frame: Frame) -> DcpOpen:
        _, flags = _OPEN.unpack(exact_extras(frame, 8))
        return cls(frame.key.decode(errors="replace"), flags)


@dataclass(frozen=True, slots=True)
class DcpControl:
    """Set one option of the DCP connection."""

    key: str
    value: str

    def frame(self, opaque: int = 0) -> Frame:
        return request(Opcode.DCP_CONTROL, opaque=opaque, key=self.key.encode(), value=self.value.encode())

    @classmethod
    def parse(cls, frame: Frame) -> DcpControl:
        return cls(frame.key.decode(errors="replace"), frame.value.decode(errors="replace"))


@dataclass(frozen=True, slots=True)
class StreamFilter:
    """The value of a stream request: which collections it carries, and more; only with collections."""

    collections: tuple[int, ...] | None = None  # ids to filter by; None for all. They exclude each other
    scope: int | None = None
    sid: int | None = None  # number of the stream, where streams are numbered
    uid: int | None = None  # version of the manifest that the client knows of; for the server's log
    purge_seqno: int | None = None

    @property
    def filters(self) -> bool:
        """Whether it leaves out collections."""
        return self.scope is not None or self.collections is not None

    def encode(self) -> bytes:
        wish: dict[str, object] = {}
        if self.scope is not None:
            wish["scope"] = f"{self.scope:x}"
        elif self.collections is not None:
            wish["collections"] = [f"{cid:x}" for cid in self.collections]
        if self.sid is not None:
            wish["sid"] = self.sid
        if self.uid is not None:
            wish["uid"] = f"{self.uid:x}"
        if self.purge_seqno is not None:
            wish["purge_seqno"] = str(self.purge_seqno)
        return json.dumps(wish).encode() if wish else b""


@dataclass(frozen=True, slots=True)
class StreamRequest:
    """Ask for the changes of one vbucket after ``start``.

    ``start`` is the last seqno that the client has; ``end`` is the seqno after which the stream may
    end (the whole snapshot that contains it is sent).
    """

    vbucket: int
    start: int = 0
    end: int = MAX_SEQNO
    vbuuid: int = 0
    snap_start: int = 0
    snap_end: int = 0
    flags: int = 0
    value: bytes = b""

    def frame(self, opaque: int = 0) -> Frame:
        extras = _STREAM_REQ.pack(
            self.flags, 0, self.start, self.end, self.vbuuid, self.snap_start, self.snap_end
        )
        return request(
            Opcode.DCP_STREAM_REQ, vbucket=self.vbucket, opaque=opaque, extras=extras, value=self.value
        )

    @classmethod
    def parse(cls, frame: Frame) -> StreamRequest:
        flags, _, start, end, vbuuid, snap_start, snap_end = _STREAM_REQ.unpack(exact_extras(frame, 48))
        return cls(frame.vbucket, start, end, vbuuid, snap_start, snap_end, flags, frame.value)


@dataclass(frozen=True, slots=True)
class CloseStream:
    """End a stream; ``sid`` is its number, None where streams have none."""

    vbucket: int
    sid: int | None = None

    def frame(self, opaque: int = 0) -> Frame:
        return request(Opcode.DCP_CLOSE_STREAM, vbucket=self.vbucket, opaque=opaque, sid=self.sid)

    @classmethod
    def parse(cls, frame: Frame) -> CloseStream:
        return cls(frame.vbucket, frame.sid)


@dataclass(frozen=True, slots=True)
class GetFailoverLog:
    vbucket: int
    opcode: int = Opcode.DCP_GET_FAILOVER_LOG

    def frame(self, opaque: int = 0) -> Frame:
        return request(self.opcode, vbucket=self.vbucket, opaque=opaque)

    @classmethod
    def parse(cls, frame: Frame) -> GetFailoverLog:
        return cls(frame.vbucket, frame.opcode)


@dataclass(frozen=True, slots=True)
class BufferAck:
    """Tell the server how many bytes were consumed since the last acknowledgement."""

    nbytes: int

    def frame(self, opaque: int = 0) -> Frame:
        return request(Opcode.DCP_BUFFER_ACK, opaque=opaque, extras=_U32.pack(self.nbytes))

    @classmethod
    def parse(cls, frame: Frame) -> BufferAck:
        return cls(*_U32.unpack(exact_extras(frame, 4)))


@dataclass(frozen=True, slots=True)
class Plain:
    """A request without parameters of its own: LIST_MECHS, GET_CLUSTER_CONFIG, NOOP…

    A server meets writes of documents as such too: key and value stay out of the repr.
    """

    opcode: int
    key: bytes = field(default=b"", repr=False)
    value: bytes = field(default=b"", repr=False)

    def frame(self, opaque: int = 0) -> Frame:
        return request(self.opcode, opaque=opaque, key=self.key, value=self.value)

    @classmethod
    def parse(cls, frame: Frame) -> Plain:
        return cls(frame.opcode, frame.key, frame.value)


def noop_reply(frame: Frame) -> Frame:
    """The mandatory answer to the server's DCP_NOOP: same opaque, no body."""
    return response(Opcode.DCP_NOOP, opaque=frame.opaque)


Request: TypeAlias = (
    Hello
    | SaslAuth
    | SelectBucket
    | GetAllVBucketSeqnos
    | DcpOpen
    | DcpControl
    | StreamRequest
    | CloseStream
    | GetFailoverLog
    | BufferAck
    | Plain
)

_PARSERS: dict[int, Callable[[Frame], Request]] = {
    Opcode.HELLO: Hello.parse,
    Opcode.SASL_AUTH: SaslAuth.parse,
    Opcode.SASL_STEP: SaslAuth.parse,
    Opcode.SELECT_BUCKET: SelectBucket.parse,
    Opcode.GET_ALL_VB_SEQNOS: GetAllVBucketSeqnos.parse,
    Opcode.DCP_OPEN: DcpOpen.parse,
    Opcode.DCP_CONTROL: DcpControl.parse,
    Opcode.DCP_STREAM_REQ: StreamRequest.parse,
    Opcode.DCP_CLOSE_STREAM: CloseStream.parse,
    Opcode.DCP_GET_FAILOVER_LOG: GetFailoverLog.parse,
    Opcode.GET_FAILOVER_LOG: GetFailoverLog.parse,
    Opcode.DCP_BUFFER_ACK: BufferAck.parse,
}


def parse_request(frame: Frame) -> Request:
    """The message that a request frame carries."""
    if frame.magic not in (Magic.REQUEST, Magic.FLEX_REQUEST):
        raise ProtocolError(f"magic 0x{frame.magic:02x} is no request", opcode=frame.opcode)
    return _PARSERS.get(frame.opcode, Plain.parse)(frame)
