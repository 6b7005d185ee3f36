"""The stored form of one change: a whole DCP frame, as the richest connection would get it.

A change is kept as the bytes of the message that announces it (opaque 0, collection prefix on the
key, XATTR section in the value, delete time on tombstones). A backfill is then a join of stored
bytes, and everything else about a change is read back from fixed offsets.

What one kind of connection (a :class:`Variant`) gets is made of the stored frames, whole backfills at a
time. The expensive part (joining, dropping prefixes, stripping attributes) happens once per vbucket,
state and variant. A stream then only stamps its opaque into the ready bytes (:class:`Encoded`).

Snappy blocks and FlatBuffers are written here as well: the embedded cluster stands on the standard library.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from cbframe.errors import ProtocolError
from cbframe.wire.constants import MAX_VALUE_LENGTH, Datatype, Magic, Opcode, SystemEventId
from cbframe.wire.framing import ReadableBuffer, stream_id_framing
from cbframe.wire.messages import body_offset, decode_leb128, encode_leb128

Bytes: TypeAlias = npt.NDArray[np.uint8]
Offsets: TypeAlias = npt.NDArray[np.int64]

MUTATION = int(Opcode.DCP_MUTATION)
DELETION = int(Opcode.DCP_DELETION)
EXPIRATION = int(Opcode.DCP_EXPIRATION)
PREPARE = int(Opcode.DCP_PREPARE)
COMMIT = int(Opcode.DCP_COMMIT)
ABORT = int(Opcode.DCP_ABORT)
EVENT = int(Opcode.DCP_SYSTEM_EVENT)
REMOVALS = (DELETION, EXPIRATION)
_SYNC_WRITES = (PREPARE, COMMIT, ABORT)
# Plain numbers: flag enumerations are slow, and these are asked of every frame.
SNAPPY = int(Datatype.SNAPPY)
_XATTR = int(Datatype.XATTR)
EVENT_KEY_PREFIX = b"\x01"
"""Collection id 1 is reserved for system events, so their keys never meet a document's."""
PREPARED_KEY_PREFIX = b"\x02"
"""Collection id 2 is reserved as well: a prepared write stands beside the document, not above it."""

# A header's magic and opcode as one number; its opaque, and all extras that are 0 here, as padding.
_MUTATION = struct.Struct(">HHBBHI4xQQQII7x")
_DELETION = struct.Struct(">HHBBHI4xQQQIx")
_EXPIRATION = struct.Struct(">HHBBHI4xQQQI")
_PREPARE = struct.Struct(">HHBBHI4xQQQII4xBBB")
_COMPLETION = struct.Struct(">HHBBHI12xQQ")
_EVENT = struct.Struct(">HHBBHI12xQIB")
_REQUEST = Magic.REQUEST << 8
_U16 = struct.Struct(">H")
_U32 = struct.Struct(">I")
_U64 = struct.Struct(">Q")
_LITTLE_U16 = struct.Struct("<H")
_LITTLE_U32 = struct.Struct("<I")

_INFLATED_LIMIT = 2 * MAX_VALUE_LENGTH
"""Room for the attributes beside the document."""
_SHORTEST_COPY, _LONGEST_COPY = 4, 64
_WINDOW = 1 << 16
"""Distances that fit the two bytes of a copy; longer ones would save next to nothing."""
_SCOPE_EVENTS = (SystemEventId.CREATE_SCOPE, SystemEventId.DROP_SCOPE)
_DROPS = (SystemEventId.DROP_COLLECTION, SystemEventId.DROP_SCOPE)
_SEQNO_ADVANCED = struct.pack(">BBHB", Magic.REQUEST, Opcode.DCP_SEQNO_ADVANCED, 0, 8)
"""The beginning of its header."""
_KEY_ONLY = struct.pack(">QIIIHB", 1, 0, 0, 0, 0, 2)
"""Revision, flags, expiry, lock time, length of metadata and use of a mutation that a backfill invents."""


# ------------------------------------------------------------------ stored frames


def mutation(
    vbucket: int,
    key: bytes,
    value: ReadableBuffer,
    *,
    seqno: int,
    rev: int,
    cas: int,
    flags: int,
    expiry: int,
    datatype: int,
) -> bytes:
    """The frame of a document's new version; `key` carries its collection prefix."""
    size, body = len(key), 31 + len(key) + len(value)
    opcode = _REQUEST | MUTATION
    head = _MUTATION.pack(opcode, size, 31, datatype, vbucket, body, cas, seqno, rev, flags, expiry)
    return b"".join((head, key, value))


def tombstone(
    vbucket: int, key: bytes, xattrs: bytes, *, seqno: int, rev: int, cas: int, when: int, expired: bool
) -> bytes:
    """The frame of a document's end; `xattrs` is the section of system attributes, or empty."""
    opcode, layout = (EXPIRATION, _EXPIRATION) if expired else (DELETION, _DELETION)
    extras = layout.size - 24
    body = extras + len(key) + len(xattrs)
    fields = len(key), extras, _XATTR if xattrs else 0, vbucket, body, cas, seqno, rev, when
    return layout.pack(_REQUEST | opcode, *fields) + key + xattrs


def prepare(
    vbucket: int,
    key: bytes,
    value: ReadableBuffer,
    *,
    seqno: int,
    rev: int,
    cas: int,
    flags: int,
    expiry: int,
    datatype: int,
    deleted: bool,
    level: int,
) -> bytes:
    """The frame of a write that waits for its durability `level`."""
    head = _REQUEST | PREPARE, len(key), 31, datatype, vbucket, 31 + len(key) + len(value), cas
    extras = seqno, rev, flags, expiry, 0, deleted, level
    return b"".join((_PREPARE.pack(*head, *extras), key, value))


def completion(opcode: int, vbucket: int, key: bytes, *, prepared: int, seqno: int) -> bytes:
    """The frame that commits or aborts the write prepared at seqno `prepared`."""
    head = _REQUEST | opcode, len(key), 16, 0, vbucket, 16 + len(key)
    return _COMPLETION.pack(*head, prepared, seqno) + key


def system_event(vbucket: int, event: int, name: bytes, value: bytes, *, seqno: int, version: int) -> bytes:
    """The frame of a scope's or collection's coming or going."""
    head = _REQUEST | EVENT, len(name), 13, 0, vbucket, 13 + len(name) + len(value)
    return _EVENT.pack(*head, seqno, event, version) + name + value


def key_of(frame: bytes) -> bytes:
    """Key of a document's frame, with its collection prefix."""
    start = 24 + frame[4]
    return frame[start : start + int(_U16.unpack_from(frame, 2)[0])]


def value_of(frame: bytes) -> bytes:
    """Value as stored: XATTR section, if any, and document."""
    return frame[24 + frame[4] + int(_U16.unpack_from(frame, 2)[0]) :]


def cas_of(frame: bytes) -> int:
    return int(_U64.unpack_from(frame, 16)[0])


def seqno_of(frame: bytes) -> int:
    """Its own seqno, not that of a prepared write that it completes."""
    return int(_U64.unpack_from(frame, 32 if frame[1] in (COMMIT, ABORT) else 24)[0])


def prepared_of(frame: bytes) -> int:
    """Seqno of the write that a commit or an abort completes."""
    return int(_U64.unpack_from(frame, 24)[0])


def rev_of(frame: bytes) -> int:
    return int(_U64.unpack_from(frame, 32)[0])


def flags_of(frame: bytes) -> int:
    """Item flags of a mutation."""
    return int(_U32.unpack_from(frame, 40)[0])


def expiry_of(frame: bytes) -> int:
    """Expiry of a mutation, absolute seconds; 0 for never."""
    return int(_U32.unpack_from(frame, 44)[0])


def inflated(value: bytes, datatype: int) -> tuple[bytes, int]:
    """Value and datatype with the Snappy block, if it is one, undone."""
    if not datatype & SNAPPY:
        return value, datatype
    return inflate(value, _INFLATED_LIMIT), datatype & ~SNAPPY


def prefixed(cid: int, key: bytes) -> bytes:
    """The stored key: collection id, then the document's key."""
    return encode_leb128(cid) + key


def collection_of(key: bytes) -> int:
    """Collection id of a prefixed key."""
    return key[0] if key[0] < 0x80 else decode_leb128(key)[0]


def event_of(frame: bytes) -> tuple[int, int, int]:
    """Event number, scope id and collection id (0 for scope events) of a system event."""
    value = value_of(frame)
    event = int(_U32.unpack_from(frame, 32)[0])
    scope = int(_U32.unpack_from(value, 8)[0])
    return event, scope, int(_U32.unpack_from(value, 12)[0]) if len(value) >= 16 else 0


def stored_key(frame: bytes) -> bytes:
    """What the frame supersedes: the prefixed key, or the name of the scope or collection."""
    if frame[1] in (PREPARE, ABORT):
        return PREPARED_KEY_PREFIX + key_of(frame)
    if frame[1] != EVENT:
        return key_of(frame)
    event, scope, cid = event_of(frame)
    if event == SystemEventId.MODIFY_COLLECTION:
        return modification_key(cid)
    return event_key(scope, None if event in _SCOPE_EVENTS else cid)


def modification_key(cid: int) -> bytes:
    """Key of a collection's newest modification: it does not replace the creation."""
    return EVENT_KEY_PREFIX + b"modify:%x" % cid


def event_key(scope: int, cid: int | None) -> bytes:
    """Key under which create and drop of the same thing meet."""
    return EVENT_KEY_PREFIX + (b"scope:%x" % scope if cid is None else b"collection:%x" % cid)


# ------------------------------------------------------------------ what a connection gets


class Variant(NamedTuple):
    """What decides how a change looks on a connection, and whether it is sent at all."""

    collections: bool = True
    xattrs: bool = False
    no_value: bool = False
    underlying_datatype: bool = False
    key_only: bool = False
    """A mutation with no more than its key in place of each change of a document, deletions included."""
    packed: bool = False
    """Values are stored packed, as on disk: datatypes say so where they are sent without a value."""
    delete_times: bool = False
    expirations: bool = False
    filter_ids: frozenset[int] | None = None
    """Only these collections; None for all."""
    filter_scope: int | None = None
    """The scope that `filter_ids` was made from; its own events pass too."""
    snappy: bool = False
    """Values that are stored packed are sent packed."""
    force_snappy: bool = False
    """Values that packing makes smaller are sent packed, however they are stored."""
    flatbuffers: bool = False
    """System events of version 2."""
    collection_history: bool = False
    """What system events of version 2 say about the history of collections."""
    history: bool = False
    """Every version of a document, not only the newest."""
    sync_writes: bool = False
    """Prepared writes, commits and aborts as such."""
    sid: int = 0
    """Number of the stream in the framing extras; 0 for none."""
    skip_deletions: bool = False


class Encoded:
    """Frames of one vbucket for one variant, back to back, with one opaque in all of them."""

    __slots__ = ("_data", "_opaque", "busy", "generation", "seqnos", "starts")

    def __init__(self, data: Bytes, starts: Offsets, seqnos: Offsets, generation: int) -> None:
        self._data = data
        self.starts = starts
        self.seqnos = seqnos
        self.generation = generation
        """State of the vbucket that the frames are from."""
        self.busy = False
        """A stream sends from these bytes: nobody else may stamp them."""
        self._opaque = 0

    @classmethod
    def join(cls, frames: list[bytes], generation: int, *, special: bool = False) -> Encoded:
        """Put frames together; `special` if there may be framing extras, commits or aborts."""
        data = np.frombuffer(bytearray().join(frames), np.uint8)
        starts = np.zeros(len(frames) + 1, np.int64)
        np.cumsum(np.fromiter(map(len, frames), np.int64, len(frames)), out=starts[1:])
        # Frames have their seqno in the first 8 bytes of the extras, but for those that name two.
        at = starts[:-1] + 24
        if special and frames:
            at += data[starts[:-1] + 2] * (data[starts[:-1]] == Magic.FLEX_REQUEST)
            at += 8 * np.isin(data[starts[:-1] + 1], (COMMIT, ABORT))
        columns = at[:, None] + np.arange(8)
        seqnos = data[columns].view(">u8").ravel().astype(np.int64)
        return cls(data, starts, seqnos, generation)

    def without_prefixes(self, which: npt.NDArray[np.bool_]) -> Encoded:
        """The same with the one byte of collection id taken off the keys of `which` mutations."""
        data, at = self._data, self.starts[:-1][which]
        for offset, width in ((2, 2), (8, 4)):  # key length, body length
            columns = at[:, None] + np.arange(offset, offset + width)
            numbers = data[columns].view(f">u{width}") - 1
            data[columns] = numbers.astype(f">u{width}").view(np.uint8).reshape(-1, width)
        keep = np.ones(len(data), np.bool_)
        keep[at + 55] = False
        starts = self.starts.copy()
        starts[1:] -= np.cumsum(which)
        return Encoded(data[keep], starts, self.seqnos, self.generation)

    def in_key_order(self) -> Encoded:
        """The same frames sorted by key, system events first."""
        frames = [self._data[a:b].tobytes() for a, b in pairwise(self.starts.tolist())]
        frames.sort(key=lambda frame: (frame[1] != EVENT, _sent_key(frame)))
        return Encoded.join(frames, self.generation, special=True)

    def __len__(self) -> int:
        return len(self.seqnos)

    @property
    def nbytes(self) -> int:
        return len(self._data)

    def view(self) -> memoryview:
        """The bytes, with the opaque stamped last."""
        return self._data.data

    def stamp(self, opaque: int) -> None:
        """Write `opaque` into every frame; only while nobody sends from the bytes."""
        if opaque == self._opaque:
            return
        first = self.starts[:-1] + 12
        for position, byte in enumerate(_U32.pack(opaque)):
            self._data[first + position] = byte
        self._opaque = opaque

    def copy(self) -> Encoded:
        """An independent copy, for a second stream at the same time."""
        other = Encoded(self._data.copy(), self.starts, self.seqnos, self.generation)
        other._opaque = self._opaque
        return other


def _sent_key(frame: bytes) -> bytes:
    """Key of a frame as it is sent."""
    framing, length = 0, int(_U16.unpack_from(frame, 2)[0])
    if frame[0] == Magic.FLEX_REQUEST:
        framing, length = frame[2], frame[3]
    start = 24 + framing + frame[4]
    return frame[start : start + length]


def ready(frame: bytes) -> bool:
    """Whether a stored frame is sent as it is: a default collection's document without attributes."""
    return frame[1] == MUTATION and frame[5] < _XATTR and not frame[55]


def encode(frames: Iterable[bytes], variant: Variant, generation: int, *, uniform: bool = False) -> Encoded:
    """What a connection of this kind gets of `frames`; `uniform` if all of them are `ready`."""
    adapt = adapter(variant)
    if (
        variant.no_value
        or variant.underlying_datatype
        or variant.force_snappy
        or variant.sync_writes
        or variant.sid
        or variant.filter_ids is not None
    ):
        adapted = [out for out in map(adapt, frames) if out is not None]
        return Encoded.join(adapted, generation, special=True)
    # The common case costs a few comparisons a frame: a mutation without attributes is ready, but
    # for the prefix of its key where the client does not want one.
    kept: list[bytes] = []
    prefixes = bytearray()
    legacy = not variant.collections
    too_special = _XATTR if variant.snappy else SNAPPY
    if uniform:
        kept = list(frames)
        prefixes = bytearray(b"\1") * len(kept)
        frames = ()
    for frame in frames:
        if frame[1] == MUTATION and frame[5] < too_special and not (legacy and frame[55]):
            kept.append(frame)
            prefixes.append(1)
        elif (out := adapt(frame)) is not None:
            kept.append(out)
            prefixes.append(0)
    encoded = Encoded.join(kept, generation)
    return encoded.without_prefixes(np.frombuffer(prefixes, np.bool_)) if legacy else encoded


def adapter(variant: Variant) -> Callable[[bytes], bytes | None]:
    """The function that turns a stored frame into the variant's, or into None if it is not sent."""

    def adapt(frame: bytes) -> bytes | None:
        if frame[1] == EVENT:
            return _event(frame, variant) if _event_passes(frame, variant) else None
        if frame[1] in _SYNC_WRITES and not variant.sync_writes:
            return None
        if variant.skip_deletions and frame[1] in REMOVALS:
            return None
        extras_end = 24 + frame[4]
        key_end = extras_end + int(_U16.unpack_from(frame, 2)[0])
        key = frame[extras_end:key_end]
        cid = collection_of(key)
        if not variant.collections:
            if cid:
                return None
            key = key[1:]
        elif variant.filter_ids is not None and cid not in variant.filter_ids:
            return None
        value, datatype = _value(frame, key_end, variant)
        opcode, extras, cas = frame[1], frame[24:extras_end], frame[12:24]
        if variant.key_only and opcode in (MUTATION, *REMOVALS):
            opcode, extras, cas = MUTATION, frame[24:32] + _KEY_ONLY, bytes(12)
        if opcode == EXPIRATION and not (variant.expirations and variant.delete_times):
            opcode, extras = DELETION, extras + b"\0"
        if opcode == DELETION and not variant.delete_times:
            extras = extras[:16] + b"\0\0"
        lengths = bytes((len(extras), datatype)) + frame[6:8]
        body = _U32.pack(len(extras) + len(key) + len(value))
        head = bytes((Magic.REQUEST, opcode)) + _U16.pack(len(key))
        return b"".join((head, lengths, body, cas, extras, key, value))

    if not variant.sid:
        return adapt
    framing = stream_id_framing(variant.sid)

    def adapt_for_stream(frame: bytes) -> bytes | None:
        out = adapt(frame)
        if out is None:
            return None
        # One byte is left for the length of the key.
        head = bytes((Magic.FLEX_REQUEST, out[1], len(framing), out[3])) + out[4:8]
        body = int(_U32.unpack_from(out, 8)[0]) + len(framing)
        return head + _U32.pack(body) + out[12:24] + framing + out[24:]

    return adapt_for_stream


def _event(frame: bytes, variant: Variant) -> bytes:
    """A system event in the version that the connection asked for."""
    event = int(_U32.unpack_from(frame, 32)[0])
    if not variant.flatbuffers:
        if event != SystemEventId.MODIFY_COLLECTION:
            return frame
        # There is no such event before version 2: only that the seqno is past.
        return _SEQNO_ADVANCED + frame[5:8] + _U32.pack(8) + frame[12:32]
    name, value = key_of(frame), value_of(frame)
    uid, scope, *more = struct.unpack(f">Q{len(value) // 4 - 2}I", value)
    cid, *max_ttl = more or [0]
    value = event_value(
        event, name, uid, scope, cid, max_ttl[0] if max_ttl else None, history=variant.collection_history
    )
    return b"".join((frame[:8], _U32.pack(13 + len(name) + len(value)), frame[12:36], b"\x02", name, value))


def _event_passes(frame: bytes, variant: Variant) -> bool:
    if not variant.collections:
        return False
    if variant.filter_ids is None:
        return True
    event, scope, cid = event_of(frame)
    if variant.filter_scope is not None:
        return scope == variant.filter_scope
    return event not in _SCOPE_EVENTS and cid in variant.filter_ids


def _value(frame: bytes, start: int, variant: Variant) -> tuple[bytes, int]:
    """Value and datatype: attributes and body each as the connection asked."""
    value, datatype = frame[start:], frame[5]
    stored = datatype
    if variant.packed and value and frame[1] == MUTATION:
        stored |= SNAPPY
    stored = stored if variant.snappy else stored & ~SNAPPY
    whole = not (variant.no_value or variant.underlying_datatype)
    if whole and variant.snappy and datatype & SNAPPY and (variant.xattrs or not datatype & _XATTR):
        return value, datatype
    value, datatype = inflated(value, datatype)
    section = b""
    if datatype & _XATTR:
        split = body_offset(value)
        section, value = value[:split] if variant.xattrs else b"", value[split:]
    if not whole:
        value = b""
    if variant.underlying_datatype:
        return section, stored
    sent = datatype & ~_XATTR if value else 0
    value, datatype = section + value, sent | (_XATTR if section else 0)
    if variant.force_snappy and len(packed := deflate(value)) < len(value):
        return packed, datatype | SNAPPY
    return value, datatype


# ------------------------------------------------------------------ FlatBuffers


class _Table:
    """One table of FlatBuffers with numbers and a string; the buffer grows at its front."""

    def __init__(self) -> None:
        self._data = b""
        self._fields: dict[int, int] = {}
        self._widest = 4
        self._table_end = 0

    def string(self, text: bytes) -> int:
        """Write a string; where it is, counted from the end."""
        self._align(4, len(text) + 1)
        self._data = _LITTLE_U32.pack(len(text)) + text + b"\0" + self._data
        self._table_end = len(self._data)
        return len(self._data)

    def number(self, slot: int, value: int, width: int) -> None:
        """Write a field, unless it has the default value of 0."""
        if value:
            self._align(width)
            self._data = value.to_bytes(width, "little") + self._data
            self._fields[slot] = len(self._data)

    def reference(self, slot: int, target: int) -> None:
        """Write a field that refers to a string."""
        self._align(4)
        self._data = _LITTLE_U32.pack(len(self._data) + 4 - target) + self._data
        self._fields[slot] = len(self._data)

    def finish(self) -> bytes:
        self._align(4)
        fields, end = self._data, self._table_end
        table = len(fields) + 4
        slots = [table - self._fields.get(s, table) for s in range(max(self._fields, default=-1) + 1)]
        vtable = [4 + 2 * len(slots), table - end, *slots]
        self._data = b"".join(map(_LITTLE_U16.pack, vtable)) + _LITTLE_U32.pack(2 * len(vtable)) + fields
        self._align(self._widest, 4)
        return _LITTLE_U32.pack(len(self._data) + 4 - table) + self._data

    def _align(self, width: int, more: int = 0) -> None:
        self._widest = max(self._widest, width)
        self._data = bytes(-(len(self._data) + more) % width) + self._data


def event_value(
    event: int, name: bytes, uid: int, scope: int, cid: int, max_ttl: int | None, *, history: bool
) -> bytes:
    """The value of a system event of version 2; `max_ttl` None for a collection without one."""
    table = _Table()
    named, of_scope = event not in _DROPS, event in _SCOPE_EVENTS
    text = table.string(name) if named else 0
    # As a node writes them: the widest first, those of one width from the last slot down.
    table.number(0, uid, 8)
    if named:
        table.reference(2 if of_scope else 5, text)
    if not of_scope:
        table.number(4, max_ttl or 0, 4)
        table.number(2, cid, 4)
    table.number(1, scope, 4)
    if named and not of_scope:
        table.number(6, history, 1)
        table.number(3, max_ttl is not None, 1)
    return table.finish()


# ------------------------------------------------------------------ Snappy


def inflate(block: bytes, limit: int) -> bytes:
    """The bytes in a raw block of at most `limit` of them."""
    try:
        length, at = decode_leb128(block)
    except ProtocolError as exc:
        raise ProtocolError("the length of a Snappy block is no number of 32 bits") from exc
    if length > limit:
        raise ProtocolError(f"a Snappy block of {length} bytes is over the limit of {limit}")
    out = bytearray()
    try:
        while at < len(block) and len(out) <= length:
            at = _element(block, at, out)
    except IndexError as exc:
        raise ProtocolError("a Snappy block ends in the middle") from exc
    if len(out) != length or at != len(block):
        raise ProtocolError(f"a Snappy block of {len(out)} bytes says that it has {length}")
    return bytes(out)


def _element(block: bytes, at: int, out: bytearray) -> int:
    """Append what the element at `at` stands for; where the next one begins."""
    tag = block[at]
    kind, size = tag & 3, tag >> 2
    at += 1
    if kind == 0:
        if size >= 60:
            width = size - 59
            size = _little(block, at, width)
            at += width
        end = at + size + 1
        _ = block[end - 1]
        out += block[at:end]
        return end
    if kind == 1:
        length, width, distance = (size & 7) + 4, 1, (tag >> 5) << 8 | block[at]
    else:
        length, width = size + 1, 2 if kind == 2 else 4
        distance = _little(block, at, width)
    if not 0 < distance <= len(out):
        raise ProtocolError("a Snappy block copies from before its beginning")
    start = len(out) - distance
    chunk = out[start : start + length]
    if len(chunk) < length:
        # The copy reaches into itself: a repeated pattern.
        chunk = (chunk * (length // distance + 1))[:length]
    out += chunk
    return at + width


def _little(block: bytes, at: int, width: int) -> int:
    """A number of the block; IndexError beyond its end."""
    _ = block[at + width - 1]
    return int.from_bytes(block[at : at + width], "little")


def deflate(data: bytes) -> bytes:
    """A raw block that inflates to `data`; copies of what came before where four bytes agree."""
    out = bytearray(encode_leb128(len(data)))
    seen: dict[bytes, int] = {}
    at = literal = 0
    while at + _SHORTEST_COPY <= len(data):
        word = data[at : at + _SHORTEST_COPY]
        found = seen.get(word)
        seen[word] = at
        if found is None or at - found >= _WINDOW:
            at += 1
            continue
        length = _SHORTEST_COPY
        while at + length < len(data) and data[found + length] == data[at + length]:
            length += 1
        _add_literal(out, data[literal:at])
        literal = at + length
        while length:
            step = min(length, _LONGEST_COPY)
            out.append((step - 1) << 2 | 2)
            out += (at - found).to_bytes(2, "little")
            length -= step
        at = literal
    _add_literal(out, data[literal:])
    return bytes(out)


def _add_literal(out: bytearray, piece: bytes) -> None:
    if not piece:
        return
    size = len(piece) - 1
    if size < 60:
        out.append(size << 2)
    else:
        width = (size.bit_length() + 7) // 8
        out.append((59 + width) << 2)
        out += size.to_bytes(width, "little")
    out += piece
