"""The data messages of a receive buffer as columns, checked against their streams.

Keys and values are not copied: they are positions in the receive buffer, which must stay untouched
while a block is in use.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from cbframe.core import COMPILED
from cbframe.errors import ProtocolError
from cbframe.wire.constants import DATA_OPCODES, HEADER_LENGTH, Datatype, Magic, Opcode, Status
from cbframe.wire.framing import Header, ReadableBuffer, bad_magic, is_magic, parse_header
from cbframe.wire.messages import decode_leb128

_U8 = npt.NDArray[np.uint8]
_U32 = npt.NDArray[np.uint32]
_U64 = npt.NDArray[np.uint64]
_I64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class DataBlock:
    """Mutations, deletions and expirations in the order in which they arrived.

    All arrays have one entry a message.

    Attributes
    ----------
    buffer
        The bytes that ``key_start``, ``value_start`` and ``value_end`` point into.
    opcode
        uint8: DCP_MUTATION, DCP_DELETION or DCP_EXPIRATION.
    datatype
        uint8: bits of :class:`~cbframe.wire.constants.Datatype`.
    vbucket
        uint16.
    opaque
        uint32: that of the stream request which the message answers.
    cas, seqno, rev_seqno
        uint64.
    flags
        uint32: the item's flags; 0 for deletions and expirations.
    expiry
        uint32, Unix seconds: when a mutation expires (0: never), or when a deletion or expiration
        happened (0: not known).
    collection_id
        uint32: 0 on connections without collections.
    key_start, value_start, value_end
        int64: the key (without its collection prefix) ends where the value starts.
    """

    buffer: bytearray | memoryview
    opcode: _U8
    datatype: _U8
    vbucket: npt.NDArray[np.uint16]
    opaque: _U32
    cas: _U64
    seqno: _U64
    rev_seqno: _U64
    flags: _U32
    expiry: _U32
    collection_id: _U32
    key_start: _I64
    value_start: _I64
    value_end: _I64
    nbytes: int
    """Bytes of the whole messages on the wire: what flow control counts."""

    def __len__(self) -> int:
        return len(self.opcode)

    def __repr__(self) -> str:
        return f"DataBlock({len(self)} messages, {self.nbytes} bytes)"

    def key(self, row: int) -> bytes:
        """The document key of one message."""
        return bytes(self.buffer[int(self.key_start[row]) : int(self.value_start[row])])

    def value(self, row: int) -> bytes:
        """The value of one message, as transmitted."""
        return bytes(self.buffer[int(self.value_start[row]) : int(self.value_end[row])])

    def compressed(self) -> npt.NDArray[np.bool_]:
        """Which values are Snappy blocks.

        On connections without values the datatype is that of the stored document: the bit may come with
        an empty value, or with extended attributes that are not compressed. Their section begins with a
        zero byte, and a Snappy block that begins so is empty.
        """
        marked: npt.NDArray[np.bool_] = (self.datatype & Datatype.SNAPPY) != 0
        if not marked.any():
            return marked
        marked &= self.value_end > self.value_start
        rows = np.flatnonzero(marked & ((self.datatype & Datatype.XATTR) != 0))
        octets = np.frombuffer(self.buffer, np.uint8)
        marked[rows] = octets[self.value_start[rows]] != 0
        return marked

    def select(self, rows: slice | npt.NDArray[np.bool_]) -> DataBlock:
        """The block of some of the messages; ``nbytes`` stays that of the whole block."""
        columns = {name: getattr(self, name)[rows] for name in _COLUMNS}
        return replace(self, **columns)


_COLUMNS = tuple(f.name for f in fields(DataBlock) if f.name not in ("buffer", "nbytes"))

_COLUMN_TYPES = ("u1", "u1", "u2", "u4", "u8", "u8", "u8", "u4", "u4", "u4", "i8", "i8", "i8")
_REQUESTS = frozenset(map(int, (Magic.REQUEST, Magic.FLEX_REQUEST)))
_DATA = frozenset(map(int, DATA_OPCODES))
_EXTRAS: dict[tuple[int, int], struct.Struct] = {
    (Opcode.DCP_MUTATION, 31): struct.Struct(">QQII"),
    (Opcode.DCP_DELETION, 18): struct.Struct(">QQ"),
    (Opcode.DCP_DELETION, 21): struct.Struct(">QQI"),
    (Opcode.DCP_EXPIRATION, 20): struct.Struct(">QQI"),
}
"""How the extras of data messages begin: seqno, revision, flags of a mutation, and a time."""
_OSO_START, _OSO_END = 1, 2


class FrameError(Exception):
    """A frame that cannot be taken; `args` has what is wrong with it."""


@dataclass(slots=True)
class Decoded:
    """What :meth:`FrameDecoder.decode` found; its length is the number of rows."""

    consumed: int  # where the first frame begins that was not taken
    before: list[int] = field(default_factory=list)
    after: list[int] = field(default_factory=list)
    fresh: list[int] = field(default_factory=list)  # vbuckets whose snapshot has its first row here
    messages: int = 0
    nbytes: int = 0
    more: bool = False  # whole frames may follow: the buffer is to be decoded again, from `consumed` on
    error: str | None = None  # what is wrong with the frame at `consumed`: all before it is sound. See refuse
    cells: list[int] = field(default_factory=list, repr=False)
    """Those of all rows, one row after the other: a tuple for each would keep the garbage collector busy."""
    places: dict[int, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.cells) // len(_COLUMN_TYPES)

    def columns(self) -> list[ReadableBuffer]:
        """The columns of a :class:`DataBlock`, in its order."""
        width = len(_COLUMN_TYPES)
        return [np.array(self.cells[at::width], kind).data for at, kind in enumerate(_COLUMN_TYPES)]

    def positions(self) -> tuple[ReadableBuffer, ReadableBuffer]:
        """Vbuckets with rows, and the seqno that each is at after them; uint16 and uint64.

        In an out-of-order snapshot that is the highest that came.
        """
        return np.array([*self.places], "u2").data, np.array([*self.places.values()], "u8").data


@dataclass(slots=True)
class _Stream:
    """A stream of a vbucket, as far as its data messages are checked."""

    opaque: int
    seqno: int
    running: bool = False
    """The server has granted it."""
    closing: bool = False
    unordered: bool = False
    marked: bool = False
    """There was a snapshot marker."""
    fresh: bool = False
    """Nothing of the last snapshot came yet."""
    snapshot_end: int = 0

    def admit(self, seqno: int) -> bool:
        """Check a document; whether it is wanted."""
        if self.closing:
            return False
        if not self.running:
            raise FrameError("stream")
        if self.unordered:
            self.seqno = max(self.seqno, seqno)
            return True
        if not self.marked or not self.seqno < seqno <= self.snapshot_end:
            raise FrameError("stream")
        self.seqno = seqno
        return True

    def note(self, header: Header, body: bytes) -> None:
        """Take note of what a message says of the documents after it; `body` begins with the extras."""
        if header.opcode == Opcode.DCP_SNAPSHOT_MARKER:
            # In later versions the extras are a byte, and the value has the range.
            fields = body[1 + header.key_length :] if header.extras_length == 1 else body
            self.snapshot_end = _number(fields[8:16], 8)
            self.marked = self.fresh = True
        elif header.opcode == Opcode.DCP_OSO_SNAPSHOT:
            flags = _number(body[:4], 4)
            if flags == _OSO_START:
                self.unordered = self.marked = self.fresh = True
                self.seqno = 0
            elif flags == _OSO_END:
                self.unordered, self.snapshot_end = False, self.seqno
        elif header.opcode in (Opcode.DCP_SYSTEM_EVENT, Opcode.DCP_SEQNO_ADVANCED):
            self.seqno = max(self.seqno, _number(body[:8], 8))


def _number(octets: bytes, length: int) -> int:
    """A big-endian number; 0 if it is not there as a whole."""
    return int.from_bytes(octets, "big") if len(octets) == length else 0


class FrameDecoder:
    """The frames of one connection, read one by one.

    The compiled core has one with the same methods: this one is the reference, and does the work where
    there is none. It knows the streams: its caller opens and closes them, their markers and ends it reads.
    """

    def __init__(self, max_body: int) -> None:
        self._max_body = max_body
        self._collections: bool | None = None
        self._streams: dict[int, _Stream] = {}

    def ready(self, collections: bool) -> None:
        """The handshake is done: documents may come, their keys with the id of a collection or without."""
        self._collections = collections

    def open(self, vbucket: int, opaque: int, seqno: int) -> None:
        """A stream is asked for, to go on after `seqno`."""
        self._streams[vbucket] = _Stream(opaque, seqno)

    def close(self, vbucket: int) -> None:
        """The documents of a stream are passed over from now on."""
        if vbucket in self._streams:
            self._streams[vbucket].closing = True

    def forget(self, vbucket: int) -> None:
        """A stream is over."""
        self._streams.pop(vbucket, None)

    def decode(self, buffer: bytearray | memoryview, start: int, stop: int) -> Decoded:
        """Take the whole frames in ``buffer[start:stop]``.

        It stops early at a message of a stream that has rows already, since its place among them matters;
        after the end of a stream nothing of it follows, so that may come after the rows. It stops, too, at an
        answer after such an end, which would be handled before that.
        """
        found = Decoded(start)
        try:
            while (header := self._header(buffer, found.consumed, stop)) is not None:
                at = found.consumed
                end = at + HEADER_LENGTH + header.body_length
                if header.opcode in _DATA and header.magic in _REQUESTS:
                    self._take(buffer, at, end, header, found)
                    found.messages += 1
                    found.nbytes += end - at
                else:
                    answer = header.magic not in _REQUESTS
                    follows = not answer and header.vbucket in found.places
                    if (answer and found.after) or (follows and not self._ends(header)):
                        found.more = True
                        break
                    (found.after if follows else found.before).append(at)
                    self._note(buffer, at, end, header)
                found.consumed = end
        except FrameError as exc:
            found.error = str(exc)
        return found

    def _header(self, buffer: ReadableBuffer, at: int, stop: int) -> Header | None:
        """The header of a frame that is there as a whole."""
        if stop - at < HEADER_LENGTH:
            if at < stop and not is_magic(buffer[at]):
                raise FrameError("magic")
            return None
        try:
            header = parse_header(buffer, at, max_body=self._max_body)
        except ProtocolError:
            raise FrameError("header" if is_magic(buffer[at]) else "magic") from None
        return header if stop - at >= HEADER_LENGTH + header.body_length else None

    def _take(self, buffer: ReadableBuffer, at: int, end: int, header: Header, found: Decoded) -> None:
        if self._collections is None:
            raise FrameError("early")
        _, opcode, framing, key_length, extras_length, datatype, vbucket, _, opaque, cas = header
        layout = _EXTRAS.get((opcode, extras_length))
        if layout is None:
            raise FrameError("extras")
        extras = at + HEADER_LENGTH + framing
        key = extras + extras_length
        value = key + key_length
        seqno, rev_seqno, *words = layout.unpack_from(buffer, extras)
        flags, expiry = (0, 0, *words)[-2:]
        collection_id = 0
        if self._collections:
            try:
                collection_id, key = decode_leb128(buffer, key, value)
            except ProtocolError:
                raise FrameError("collection_id") from None
        stream = self._streams.get(vbucket)
        if stream is None or stream.opaque != opaque:
            if any(s.opaque == opaque and not s.closing for s in self._streams.values()):
                raise FrameError("stream")
            return  # of a stream that is over
        if not stream.admit(seqno):
            return
        found.places[vbucket] = stream.seqno
        if stream.fresh:
            stream.fresh = False
            found.fresh.append(vbucket)
        metadata = (opcode, datatype, vbucket, opaque, cas, seqno, rev_seqno, flags, expiry)
        found.cells.extend((*metadata, collection_id, key, value, end))

    def _note(self, buffer: ReadableBuffer, at: int, end: int, header: Header) -> None:
        """Take note of what a message says of the messages after it.

        What is wrong with it is found where it is handled.
        """
        if header.magic in (Magic.RESPONSE, Magic.FLEX_RESPONSE) and header.opcode == Opcode.DCP_STREAM_REQ:
            for vbucket, stream in self._streams.items():
                if stream.opaque == header.opaque and not stream.running:
                    stream.running = header.vbucket == Status.SUCCESS
                    if not stream.running:
                        self.forget(vbucket)
                    return
        elif (asked := self._running(header)) is None:
            return
        elif header.opcode == Opcode.DCP_STREAM_END:
            self.forget(header.vbucket)
        else:
            asked.note(header, bytes(buffer[at + HEADER_LENGTH + header.framing_length : end]))

    def _running(self, header: Header) -> _Stream | None:
        """The stream of a message, rather than an earlier one of its vbucket."""
        asked = self._streams.get(header.vbucket) if header.magic in _REQUESTS else None
        return asked if asked is not None and asked.running and asked.opaque == header.opaque else None

    def _ends(self, header: Header) -> bool:
        return header.opcode == Opcode.DCP_STREAM_END and self._running(header) is not None


def frame_decoder(max_body: int) -> FrameDecoder:
    """The decoder of the core that runs."""
    decoder: type[FrameDecoder] = FrameDecoder if COMPILED is None else COMPILED.FrameDecoder
    return decoder(max_body)


def data_block(buffer: bytearray | memoryview, decoded: Decoded) -> DataBlock:
    """The rows that were found in a buffer; there is at least one."""
    named = zip(_COLUMNS, decoded.columns(), _COLUMN_TYPES, strict=True)
    columns: dict[str, Any] = {name: np.frombuffer(column, kind) for name, column, kind in named}
    return DataBlock(buffer=buffer, nbytes=decoded.nbytes, **columns)


def refuse(buffer: ReadableBuffer, decoded: Decoded, max_body: int) -> Header:
    """Raise what is wrong with the frame that was not taken; its header, where only its stream knows."""
    offset = decoded.consumed
    if decoded.error == "magic":
        raise bad_magic(buffer[offset], offset)
    header = parse_header(buffer, offset, max_body=max_body)
    if decoded.error == "early":
        raise ProtocolError("documents before the handshake was done", offset=offset)
    message = "a key without a canonical collection id"
    if decoded.error == "extras":
        lengths = f"extras of {header.extras_length} bytes and a key of {header.key_length}"
        message = f"{lengths} in a body of {header.body_length}"
    if decoded.error != "stream":
        raise ProtocolError(message, opcode=header.opcode, vbucket=header.vbucket, offset=offset)
    return header
