"""What a data node says on its own: control messages from server to client.

Data messages are not here: they travel in blocks (:mod:`cbframe.wire.blocks`).

Where streams have numbers, ``sid`` of a message is its stream's. As the opaque, it names the stream and
is no part of what the message says: messages are equal without regard to it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple, Self, TypeAlias

from cbframe.errors import ProtocolError
from cbframe.typing import ReadableBuffer
from cbframe.wire.constants import Opcode, SystemEventId
from cbframe.wire.framing import Frame, request

_MARKER_V1 = struct.Struct(">QQI")
_MARKER_V2 = struct.Struct(">QQIQQ")
_MARKER_V22 = struct.Struct(">QQIQQQQ")
_EVENT = struct.Struct(">QIB")
_U32 = struct.Struct(">I")
_U64 = struct.Struct(">Q")
_PREPARE = struct.Struct(">QQIIIBBB")
_REVISION = struct.Struct(">qq")
_SETTLED = struct.Struct(">QQ")
_MARKER_VERSIONS = {"v2.0": b"\0", "v2.1": b"\1", "v2.2": b"\2"}
_SEQNO = struct.Struct(">HQ")
_FAILOVER = struct.Struct(">QQ")
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
        extras, value = _MARKER_V1.pack(self.start, self.end, self.flags), b""
        if self.version != "v1":
            numbers = (self.max_visible_seqno, self.high_completed_seqno)
            value = _MARKER_V2.pack(self.start, self.end, self.flags, *(number or 0 for number in numbers))
            if self.version == "v2.1":
                value += bytes(_U64.size)  # a timestamp that nobody reads
            elif self.version == "v2.2":
                value += _SETTLED.pack(self.purge_seqno or 0, self.high_prepared_seqno or 0)
            extras = _MARKER_VERSIONS[self.version]
        return request(
            Opcode.DCP_SNAPSHOT_MARKER,
            vbucket=self.vbucket,
            opaque=opaque,
            extras=extras,
            value=value,
            sid=self.sid,
        )

    @classmethod
    def parse(cls, frame: Frame) -> SnapshotMarker:
        vb, extras, value = frame.vbucket, frame.extras, frame.value
        if len(extras) == _MARKER_V1.size:
            start, end, flags = _MARKER_V1.unpack(extras)
            return cls(vb, start, end, flags, sid=frame.sid)
        if len(extras) == 1:
            version = extras[0]
            if version == 0 and len(value) == _MARKER_V2.size:
                return cls(vb, *_fields(_MARKER_V2.unpack(value), "v2.0"), sid=frame.sid)
            if version == 1 and len(value) == _MARKER_V2.size + 8:
                return cls(vb, *_fields(_MARKER_V2.unpack_from(value), "v2.1"), sid=frame.sid)
            if version == 2 and len(value) == _MARKER_V22.size:
                start, end, flags, mvs, hcs, purge, prepared = _MARKER_V22.unpack(value)
                return cls(vb, start, end, flags, "v2.2", mvs, hcs, purge, prepared, sid=frame.sid)
        raise ProtocolError(
            f"a snapshot marker with {len(extras)} bytes of extras and a value of {len(value)}",
            opcode=frame.opcode,
            vbucket=vb,
        )


def _fields(numbers: tuple[int, ...], version: str) -> tuple[int, int, int, str, int, int]:
    start, end, flags, mvs, hcs = numbers
    return start, end, flags, version, mvs, hcs


@dataclass(frozen=True, slots=True)
class StreamEnd:
    """The stream is over; ``reason`` is a :class:`StreamEndReason` or a number unknown today."""

    vbucket: int
    reason: int
    sid: int | None = field(default=None, compare=False, kw_only=True)

    def frame(self, opaque: int = 0) -> Frame:
        return request(
            Opcode.DCP_STREAM_END,
            vbucket=self.vbucket,
            opaque=opaque,
            extras=_U32.pack(self.reason),
            sid=self.sid,
        )

    @classmethod
    def parse(cls, frame: Frame) -> StreamEnd:
        (reason,) = _U32.unpack(_extras(frame, 4))
        return cls(frame.vbucket, reason, sid=frame.sid)


@dataclass(frozen=True, slots=True)
class SeqnoAdvanced:
    """Progress without an item: the vbucket's seqno is at least this."""

    vbucket: int
    seqno: int
    sid: int | None = field(default=None, compare=False, kw_only=True)

    def frame(self, opaque: int = 0) -> Frame:
        return request(
            Opcode.DCP_SEQNO_ADVANCED,
            vbucket=self.vbucket,
            opaque=opaque,
            extras=_U64.pack(self.seqno),
            sid=self.sid,
        )

    @classmethod
    def parse(cls, frame: Frame) -> SeqnoAdvanced:
        (seqno,) = _U64.unpack(_extras(frame, 8))
        return cls(frame.vbucket, seqno, sid=frame.sid)


@dataclass(frozen=True, slots=True)
class OsoSnapshot:
    """Start (1) or end (2) of a backfill whose seqnos are unordered."""

    vbucket: int
    flags: int
    sid: int | None = field(default=None, compare=False, kw_only=True)

    def frame(self, opaque: int = 0) -> Frame:
        return request(
            Opcode.DCP_OSO_SNAPSHOT,
            vbucket=self.vbucket,
            opaque=opaque,
            extras=_U32.pack(self.flags),
            sid=self.sid,
        )

    @classmethod
    def parse(cls, frame: Frame) -> OsoSnapshot:
        (flags,) = _U32.unpack(_extras(frame, 4))
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
        return request(
            Opcode.DCP_SYSTEM_EVENT,
            vbucket=self.vbucket,
            opaque=opaque,
            extras=_EVENT.pack(self.seqno, self.event, self.version),
            key=self.name.encode(),
            value=self.value,
            sid=self.sid,
        )

    @classmethod
    def parse(cls, frame: Frame) -> SystemEvent:
        seqno, event, version = _EVENT.unpack(_extras(frame, _EVENT.size))
        value = frame.value
        name = frame.key.decode(errors="replace")
        if version > _LAST_EVENT_VERSION:
            return cls(frame.vbucket, seqno, event, version, name, value, sid=frame.sid)
        if version == _LAST_EVENT_VERSION:
            numbers = _flatbuffer_fields(frame, event)
            return cls(frame.vbucket, seqno, event, version, name, value, *numbers, sid=frame.sid)
        scope_event = event in (SystemEventId.CREATE_SCOPE, SystemEventId.DROP_SCOPE)
        expected = 12 if scope_event else 20 if version == 1 else 16
        if len(value) != expected:
            raise ProtocolError(
                f"system event {event} version {version} with a value of {len(value)} bytes",
                opcode=frame.opcode,
                vbucket=frame.vbucket,
            )
        numbers = struct.unpack(f">Q{(expected - 8) // 4}I", value)
        return cls(frame.vbucket, seqno, event, version, name, value, *numbers, sid=frame.sid)


_LAST_EVENT_VERSION = 2


def _flatbuffer_fields(
    frame: Frame, event: int
) -> tuple[int, int] | tuple[int, int, int] | tuple[int, int, int, int | None, bool]:
    """What the table of a system event holds, in the order of the fields of :class:`SystemEvent`."""
    try:
        table = FlatTable(frame.value)
        ids = table.number(0, 8), table.number(1, 4)
        if event in (SystemEventId.CREATE_SCOPE, SystemEventId.DROP_SCOPE):
            return ids
        collection = table.number(2, 4)
        if event == SystemEventId.DROP_COLLECTION:
            return *ids, collection
        ttl = table.number(4, 4) if table.number(3, 1) else None
        return *ids, collection, ttl, bool(table.number(6, 1))
    except ProtocolError as exc:
        exc.opcode, exc.vbucket = frame.opcode, frame.vbucket
        raise


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
            _extras(frame, _PREPARE.size)
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
        return cls(frame.vbucket, *_SETTLED.unpack(_extras(frame, _SETTLED.size)))


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
    epoch, revision = _REVISION.unpack(_extras(frame, _REVISION.size))
    return int(epoch), int(revision)


def parse_rollback_seqno(value: bytes) -> int:
    """The seqno to roll back to, from a STREAM_REQ answer with status ROLLBACK."""
    if len(value) != 8:
        raise ProtocolError(
            f"a rollback answer with a value of {len(value)} bytes", opcode=Opcode.DCP_STREAM_REQ
        )
    return int(_U64.unpack(value)[0])


def _extras(frame: Frame, length: int) -> bytes:
    if len(frame.extras) != length:
        raise ProtocolError(
            f"extras of {len(frame.extras)} bytes, expected {length}",
            opcode=frame.opcode,
            vbucket=frame.vbucket,
        )
    return frame.extras
