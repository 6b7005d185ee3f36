"""Control messages: the requests of a client, then what a data node says on its own.

Data messages are not here: they travel in blocks (:mod:`cbframe.wire.blocks`). What stands before a key
(collection id) and before a value (extended attributes) is in both, and comes first of all.

Where streams have numbers, ``sid`` of a message is its stream's. As the opaque, it names the stream and
is no part of what the message says: messages are equal without regard to it.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self, TypeAlias
from zlib import crc32

from cbframe.errors import ProtocolError
from cbframe.wire.constants import MAX_SEQNO, Magic, Opcode, SystemEventId
from cbframe.wire.framing import Frame, ReadableBuffer, exact_extras, request, response

_STREAM_REQ = struct.Struct(">IIQQQQQ")
_OPEN = struct.Struct(">II")
_U32 = struct.Struct(">I")


# --- before a key its collection id, before a value its extended attributes

MAX_LEB128_LENGTH = 5
"""Bytes that a 32-bit collection id needs at most."""


def encode_leb128(number: int) -> bytes:
    """The canonical (shortest) form of an unsigned 32-bit number, as a collection id has."""
    if not 0 <= number <= 0xFFFF_FFFF:
        raise ValueError(f"{number} is no unsigned 32-bit number")
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def decode_leb128(buffer: ReadableBuffer, offset: int = 0, end: int | None = None) -> tuple[int, int]:
    """Read a number that ends at `end` or before; None: anywhere in the buffer."""
    number = 0
    stop = len(buffer) if end is None else end
    for position in range(MAX_LEB128_LENGTH):
        if offset + position >= stop:
            raise ProtocolError("a collection id ends in the middle", offset=offset)
        byte = buffer[offset + position]
        number |= (byte & 0x7F) << (7 * position)
        if byte < 0x80:
            if (position and byte == 0) or number > 0xFFFF_FFFF:
                break
            return number, offset + position + 1
    raise ProtocolError("a collection id is no canonical 32-bit LEB128 number", offset=offset)


def split_key(key: bytes) -> tuple[int, bytes]:
    """Collection id and document key of a prefixed key."""
    number, end = decode_leb128(key)
    return number, key[end:]


def vbucket_of(key: bytes, vbuckets: int) -> int:
    """Number of the vbucket that holds `key` (without its collection prefix).

    The modulo, not a mask: serverless buckets have 48 vbuckets, which is no power of two.
    """
    return ((crc32(key) >> 16) & 0x7FFF) % vbuckets


class XattrSplit(NamedTuple):
    """Attributes (JSON text by name, in the order sent) and the document after them."""

    xattrs: dict[str, bytes]
    body: bytes


def body_offset(value: ReadableBuffer) -> int:
    """Where the document begins in a value whose datatype has the XATTR bit."""
    if len(value) < 4:
        raise ProtocolError(f"an xattr section needs 4 bytes, the value has {len(value)}")
    end = 4 + int(_U32.unpack_from(value)[0])
    if end > len(value):
        raise ProtocolError(f"an xattr section of {end} bytes is longer than its value of {len(value)}")
    return end


def split_pairs(value: ReadableBuffer) -> tuple[list[tuple[str, bytes]], bytes]:
    """Take a value with the XATTR bit apart: names and texts as they were sent, and the document."""
    end = body_offset(value)
    pairs = []
    offset = 4
    while offset < end:
        if end - offset < 4:
            raise ProtocolError("an xattr pair ends in the middle of its length", offset=offset)
        stop = offset + 4 + int(_U32.unpack_from(value, offset)[0])
        pair = bytes(value[offset + 4 : stop])
        if stop > end or len(pair) < 2 or pair[-1]:
            raise ProtocolError("an xattr pair does not fit its section", offset=offset)
        name, terminator, text = pair[:-1].partition(b"\0")
        if not terminator or b"\0" in text:
            raise ProtocolError("an xattr pair is not NAME NUL VALUE NUL", offset=offset)
        try:
            pairs.append((name.decode(), text))
        except UnicodeDecodeError as exc:
            raise ProtocolError("an xattr name is not UTF-8", offset=offset) from exc
        offset = stop
    return pairs, bytes(value[end:])


def split_xattrs(value: ReadableBuffer) -> XattrSplit:
    """Take a value with the XATTR bit apart; raises as :func:`split_pairs`."""
    pairs, body = split_pairs(value)
    return XattrSplit(dict(pairs), body)


def join_xattrs(xattrs: Mapping[str, bytes], body: bytes) -> bytes:
    """The value that carries `xattrs` and `body`; its datatype must have the XATTR bit."""
    pairs = []
    for name, text in xattrs.items():
        pair = name.encode() + b"\0" + text + b"\0"
        pairs.append(_U32.pack(len(pair)) + pair)
    section = b"".join(pairs)
    return _U32.pack(len(section)) + section + body


# --- requests: client to data node


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
class ObserveSeqno:
    """Ask a copy of a vbucket, active or replica, how much of a history it has on disk."""

    vbucket: int
    vbuuid: int

    def frame(self, opaque: int = 0) -> Frame:
        value = _U64.pack(self.vbuuid)
        return request(Opcode.OBSERVE_SEQNO, vbucket=self.vbucket, opaque=opaque, value=value)

    @classmethod
    def parse(cls, frame: Frame) -> ObserveSeqno:
        if len(frame.value) != _U64.size:
            raise ProtocolError("OBSERVE_SEQNO has a value of 8 bytes", opcode=frame.opcode)
        return cls(frame.vbucket, *_U64.unpack(frame.value))


@dataclass(frozen=True, slots=True)
class Observed:
    """The answer to OBSERVE_SEQNO: `asked` and `ends` are of an older history, where that was asked about."""

    vbucket: int
    vbuuid: int  # the copy's newest history
    persisted: int
    current: int  # what it has in memory
    asked: int = 0
    ends: int = MAX_SEQNO

    @property
    def shared(self) -> int:
        """Up to where the copy has on disk what was asked about."""
        return min(self.persisted, self.ends)

    def encode(self) -> bytes:
        older = _FAILOVER.pack(self.asked, self.ends) if self.asked else b""
        fields = self.vbucket, self.vbuuid, self.persisted, self.current
        return _OBSERVED.pack(bool(older), *fields) + older

    @classmethod
    def parse(cls, value: bytes) -> Observed:
        older = len(value) - _OBSERVED.size
        if older not in (0, _FAILOVER.size) or value[0] != bool(older):
            raise ProtocolError(f"an answer of {len(value)} bytes", opcode=Opcode.OBSERVE_SEQNO)
        more = _FAILOVER.unpack_from(value, _OBSERVED.size) if older else ()
        return cls(*_OBSERVED.unpack_from(value)[1:], *more)


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

_REQUEST_PARSERS: dict[int, Callable[[Frame], Request]] = {
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
    return _REQUEST_PARSERS.get(frame.opcode, Plain.parse)(frame)


# --- what a data node says on its own

_MARKER_V1 = struct.Struct(">QQI")
_MARKERS = {
    0: ("v2.0", struct.Struct(">QQIQQ")),
    1: ("v2.1", struct.Struct(">QQIQQ8x")),  # a timestamp that nobody reads
    2: ("v2.2", struct.Struct(">QQIQQQQ")),
}
"""Version and value of a marker, by its only byte of extras. The numbers are the fields in their order."""
_MARKER_CODES = {version: code for code, (version, _) in _MARKERS.items()}
_EVENT = struct.Struct(">QIB")
_U64 = struct.Struct(">Q")
_PREPARE = struct.Struct(">QQIIIBBB")
_REVISION = struct.Struct(">qq")
_COMPLETED = struct.Struct(">QQ")
_SEQNO = struct.Struct(">HQ")
_FAILOVER = struct.Struct(">QQ")
_OBSERVED = struct.Struct(">BHQQQ")
_FLAT_U16 = struct.Struct("<H")
_FLAT_U32 = struct.Struct("<I")
_FLAT_I32 = struct.Struct("<i")
_FLAT_NUMBERS = {1: struct.Struct("<B"), 4: _FLAT_U32, 8: struct.Struct("<Q")}


@dataclass(frozen=True, slots=True)
class SnapshotMarker:
    """All items until the next marker have ``start <= seqno <= end``.

    ``version`` is ``v1``, ``v2.0``, ``v2.1`` or ``v2.2``; the optional fields are None where the
    version has none.
    """

    vbucket: int
    start: int
    end: int
    flags: int
    version: str = "v1"
    max_visible_seqno: int | None = None
    high_completed_seqno: int | None = None
    purge_seqno: int | None = None
    high_prepared_seqno: int | None = None
    sid: int | None = field(default=None, compare=False, kw_only=True)

    def __post_init__(self) -> None:
        if self.start > self.end:
            raise ProtocolError(
                f"a snapshot from {self.start} to {self.end}",
                opcode=Opcode.DCP_SNAPSHOT_MARKER,
                vbucket=self.vbucket,
            )

    def frame(self, opaque: int = 0) -> Frame:
        """The message; fields of later versions that are None are sent as 0."""
        numbers = (self.start, self.end, self.flags)
        if self.version == "v1":
            return _frame(self, Opcode.DCP_SNAPSHOT_MARKER, opaque, _MARKER_V1.pack(*numbers))
        code = _MARKER_CODES[self.version]
        later = [self.max_visible_seqno, self.high_completed_seqno]
        if self.version == "v2.2":
            later += [self.purge_seqno, self.high_prepared_seqno]
        value = _MARKERS[code][1].pack(*numbers, *(number or 0 for number in later))
        return _frame(self, Opcode.DCP_SNAPSHOT_MARKER, opaque, bytes((code,)), value=value)

    @classmethod
    def parse(cls, frame: Frame) -> SnapshotMarker:
        vb, extras, value = frame.vbucket, frame.extras, frame.value
        if len(extras) == _MARKER_V1.size:
            start, end, flags = _MARKER_V1.unpack(extras)
            return cls(vb, start, end, flags, sid=frame.sid)
        if len(extras) == 1 and extras[0] in _MARKERS:
            version, layout = _MARKERS[extras[0]]
            if len(value) == layout.size:
                start, end, flags, *later = layout.unpack(value)
                return cls(vb, start, end, flags, version, *later, sid=frame.sid)
        raise ProtocolError(
            f"a snapshot marker with {len(extras)} bytes of extras and a value of {len(value)}",
            opcode=frame.opcode,
            vbucket=vb,
        )


@dataclass(frozen=True, slots=True)
class StreamEnd:
    """The stream is over; ``reason`` is a :class:`StreamEndReason` or a number unknown today."""

    vbucket: int
    reason: int
    sid: int | None = field(default=None, compare=False, kw_only=True)

    def frame(self, opaque: int = 0) -> Frame:
        return _frame(self, Opcode.DCP_STREAM_END, opaque, _U32.pack(self.reason))

    @classmethod
    def parse(cls, frame: Frame) -> StreamEnd:
        (reason,) = _U32.unpack(exact_extras(frame, _U32.size))
        return cls(frame.vbucket, reason, sid=frame.sid)


@dataclass(frozen=True, slots=True)
class SeqnoAdvanced:
    """Progress without an item: the vbucket's seqno is at least this."""

    vbucket: int
    seqno: int
    sid: int | None = field(default=None, compare=False, kw_only=True)

    def frame(self, opaque: int = 0) -> Frame:
        return _frame(self, Opcode.DCP_SEQNO_ADVANCED, opaque, _U64.pack(self.seqno))

    @classmethod
    def parse(cls, frame: Frame) -> SeqnoAdvanced:
        (seqno,) = _U64.unpack(exact_extras(frame, _U64.size))
        return cls(frame.vbucket, seqno, sid=frame.sid)


@dataclass(frozen=True, slots=True)
class OsoSnapshot:
    """Start (1) or end (2) of a backfill whose seqnos are unordered."""

    vbucket: int
    flags: int
    sid: int | None = field(default=None, compare=False, kw_only=True)

    def frame(self, opaque: int = 0) -> Frame:
        return _frame(self, Opcode.DCP_OSO_SNAPSHOT, opaque, _U32.pack(self.flags))

    @classmethod
    def parse(cls, frame: Frame) -> OsoSnapshot:
        (flags,) = _U32.unpack(exact_extras(frame, _U32.size))
        return cls(frame.vbucket, flags, sid=frame.sid)


@dataclass(frozen=True, slots=True)
class SystemEvent:
    """A scope or collection came, went or changed.

    Attributes
    ----------
    vbucket, seqno
        Where in whose history.
    event
        A :class:`~cbframe.wire.constants.SystemEventId`, or a number unknown today.
    version
        Form of ``value``: 0 and 1 are plain numbers, 2 is FlatBuffers. Of later ones only the bytes
        are there, and all that follows is None.
    name
        Of the scope or collection; empty when it went.
    value
        The bytes as they came.
    manifest_uid
        Which change of the manifest it belongs to; only its last event has the new number.
    scope_id, collection_id
        The latter is None for events of scopes.
    max_ttl
        Seconds that documents live unless they say otherwise; None where the collection has none.
    history
        Whether the collection keeps its history; None where the version does not tell.
    """

    vbucket: int
    seqno: int
    event: int
    version: int
    name: str
    value: bytes = field(repr=False)
    manifest_uid: int | None = None
    scope_id: int | None = None
    collection_id: int | None = None
    max_ttl: int | None = None
    history: bool | None = None
    sid: int | None = field(default=None, compare=False, kw_only=True)

    def frame(self, opaque: int = 0) -> Frame:
        extras = _EVENT.pack(self.seqno, self.event, self.version)
        return _frame(self, Opcode.DCP_SYSTEM_EVENT, opaque, extras, key=self.name.encode(), value=self.value)

    @classmethod
    def parse(cls, frame: Frame) -> SystemEvent:
        seqno, event, version = _EVENT.unpack(exact_extras(frame, _EVENT.size))
        name = frame.key.decode(errors="replace")
        numbers = _event_fields(frame, event, version)
        return cls(frame.vbucket, seqno, event, version, name, frame.value, *numbers, sid=frame.sid)


_SCOPE_EVENTS = (SystemEventId.CREATE_SCOPE, SystemEventId.DROP_SCOPE)
_FLATBUFFERS = 2
"""The version of system events whose value is FlatBuffers; lower ones are numbers, higher ones unknown."""


def _event_fields(frame: Frame, event: int, version: int) -> tuple[Any, ...]:
    """What the value of a system event holds, in the order of the fields of :class:`SystemEvent`."""
    if version > _FLATBUFFERS:
        return ()
    if version == _FLATBUFFERS:
        try:
            return _flatbuffer_fields(frame.value, event)
        except ProtocolError as exc:
            exc.opcode, exc.vbucket = frame.opcode, frame.vbucket
            raise
    expected = 12 if event in _SCOPE_EVENTS else 20 if version == 1 else 16
    if len(frame.value) != expected:
        raise ProtocolError(
            f"system event {event} version {version} with a value of {len(frame.value)} bytes",
            opcode=frame.opcode,
            vbucket=frame.vbucket,
        )
    return struct.unpack(f">Q{(expected - 8) // 4}I", frame.value)


def _flatbuffer_fields(value: bytes, event: int) -> tuple[Any, ...]:
    table = FlatTable(value)
    ids = table.number(0, 8), table.number(1, 4)
    if event in _SCOPE_EVENTS:
        return ids
    collection = table.number(2, 4)
    if event == SystemEventId.DROP_COLLECTION:
        return *ids, collection
    ttl = table.number(4, 4) if table.number(3, 1) else None
    return *ids, collection, ttl, bool(table.number(6, 1))


class FlatTable:
    """The part of FlatBuffers that system events are written in: one table of numbers.

    Little-endian, unlike everything else on the wire. Offsets and lengths are the peer's: each is checked
    before it is followed. Source: the FlatBuffers internals document.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = self._unpack(_FLAT_U32, 0)
        self._slots = self._at - self._unpack(_FLAT_I32, self._at)
        self._size = self._unpack(_FLAT_U16, self._slots)

    def number(self, slot: int, width: int) -> int:
        """The unsigned integer of `width` bytes in a slot; 0 where the slot is empty."""
        at = self._field(slot)
        return 0 if at is None else self._unpack(_FLAT_NUMBERS[width], at)

    def _field(self, slot: int) -> int | None:
        entry = 2 * _FLAT_U16.size + slot * _FLAT_U16.size
        if entry + _FLAT_U16.size > self._size:
            return None
        offset = self._unpack(_FLAT_U16, self._slots + entry)
        return self._at + offset if offset else None

    def _unpack(self, number: struct.Struct, at: int) -> int:
        if not 0 <= at <= len(self._data) - number.size:
            raise ProtocolError(f"a FlatBuffers offset of {at} in a value of {len(self._data)} bytes")
        return int(number.unpack_from(self._data, at)[0])


@dataclass(frozen=True, slots=True)
class Prepare:
    """DCP_PREPARE: a durable write that is neither committed nor aborted, and not visible yet.

    Flow control counts two bytes more than the message has.
    """

    vbucket: int
    seqno: int
    level: int
    deleted: bool
    """Whether a deletion is what waits."""

    @classmethod
    def parse(cls, frame: Frame) -> Prepare:
        seqno, _rev, _flags, _expiry, _lock, _nru, deleted, level = _PREPARE.unpack(
            exact_extras(frame, _PREPARE.size)
        )
        return cls(frame.vbucket, seqno, level, bool(deleted))


@dataclass(frozen=True, slots=True)
class CompletedPrepare:
    """The end of a prepared write: the seqno of the prepare, and the seqno from which the end holds."""

    vbucket: int
    prepared_seqno: int
    seqno: int

    @classmethod
    def parse(cls, frame: Frame) -> Self:
        return cls(frame.vbucket, *_COMPLETED.unpack(exact_extras(frame, _COMPLETED.size)))


class Commit(CompletedPrepare):
    """DCP_COMMIT: a prepared write is committed."""

    __slots__ = ()


class Abort(CompletedPrepare):
    """DCP_ABORT: a prepared write is discarded."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class DcpNoop:
    """The server wants to know whether the client lives; the answer is mandatory."""

    opaque: int

    def frame(self, opaque: int | None = None) -> Frame:
        return request(Opcode.DCP_NOOP, opaque=self.opaque if opaque is None else opaque)

    @classmethod
    def parse(cls, frame: Frame) -> DcpNoop:
        return cls(frame.opaque)


@dataclass(frozen=True, slots=True)
class Unknown:
    """A message that this version does not know. It counts for flow control like any other."""

    opcode: int
    vbucket: int

    @classmethod
    def parse(cls, frame: Frame) -> Unknown:
        return cls(frame.opcode, frame.vbucket)


ServerMessage: TypeAlias = (
    SnapshotMarker
    | StreamEnd
    | SeqnoAdvanced
    | OsoSnapshot
    | SystemEvent
    | Prepare
    | Commit
    | Abort
    | DcpNoop
    | Unknown
)

_PARSERS: dict[int, Callable[[Frame], ServerMessage]] = {
    Opcode.DCP_SNAPSHOT_MARKER: SnapshotMarker.parse,
    Opcode.DCP_STREAM_END: StreamEnd.parse,
    Opcode.DCP_SEQNO_ADVANCED: SeqnoAdvanced.parse,
    Opcode.DCP_OSO_SNAPSHOT: OsoSnapshot.parse,
    Opcode.DCP_SYSTEM_EVENT: SystemEvent.parse,
    Opcode.DCP_PREPARE: Prepare.parse,
    Opcode.DCP_COMMIT: Commit.parse,
    Opcode.DCP_ABORT: Abort.parse,
    Opcode.DCP_NOOP: DcpNoop.parse,
}


def parse_message(frame: Frame) -> ServerMessage:
    """The message that a request frame from the server carries."""
    return _PARSERS.get(frame.opcode, Unknown.parse)(frame)


class FailoverEntry(NamedTuple):
    """One history: its name, and the seqno at which it began."""

    vbuuid: int
    seqno: int


FailoverLog = tuple[FailoverEntry, ...]


def parse_failover_log(body: ReadableBuffer) -> FailoverLog:
    """Read the value of a STREAM_REQ or GET_FAILOVER_LOG answer.

    Returns
    -------
    tuple of FailoverEntry
        Newest first, as sent.

    Raises
    ------
    ProtocolError
        The length is no multiple of 16.
    """
    if len(body) % _FAILOVER.size:
        raise ProtocolError(f"a failover log of {len(body)} bytes is no multiple of {_FAILOVER.size}")
    return tuple(map(FailoverEntry._make, _FAILOVER.iter_unpack(body)))


def encode_failover_log(log: Iterable[tuple[int, int]]) -> bytes:
    """The value of an answer, newest first."""
    return b"".join(_FAILOVER.pack(vbuuid, seqno) for vbuuid, seqno in log)


def parse_vbucket_seqnos(value: bytes) -> dict[int, int]:
    """High seqno by vbucket, from the answer to GET_ALL_VB_SEQNOS."""
    if len(value) % _SEQNO.size:
        raise ProtocolError(
            f"vbucket seqnos of {len(value)} bytes are no multiple of {_SEQNO.size}",
            opcode=Opcode.GET_ALL_VB_SEQNOS,
        )
    return dict(_SEQNO.iter_unpack(value))


def encode_vbucket_seqnos(seqnos: dict[int, int]) -> bytes:
    """The value of the answer to GET_ALL_VB_SEQNOS."""
    return b"".join(_SEQNO.pack(vbucket, seqno) for vbucket, seqno in seqnos.items())


def parse_map_revision(frame: Frame) -> tuple[int, int]:
    """Epoch and revision of the cluster map that a node pushes; servers before 7.0 know no epochs."""
    extras = frame.extras
    if len(extras) == _U32.size:
        return 0, int(_U32.unpack(extras)[0])
    epoch, revision = _REVISION.unpack(exact_extras(frame, _REVISION.size))
    return int(epoch), int(revision)


def parse_rollback_seqno(value: bytes) -> int:
    """The seqno to roll back to, from a STREAM_REQ answer with status ROLLBACK."""
    if len(value) != 8:
        raise ProtocolError(
            f"a rollback answer with a value of {len(value)} bytes", opcode=Opcode.DCP_STREAM_REQ
        )
    return int(_U64.unpack(value)[0])


def _frame(
    message: SnapshotMarker | StreamEnd | SeqnoAdvanced | OsoSnapshot | SystemEvent,
    opcode: int,
    opaque: int,
    extras: bytes,
    *,
    key: bytes = b"",
    value: bytes = b"",
) -> Frame:
    return request(
        opcode, vbucket=message.vbucket, opaque=opaque, extras=extras, key=key, value=value, sid=message.sid
    )
