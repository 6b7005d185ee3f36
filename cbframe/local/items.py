"""The stored form of one change: a whole DCP frame, as the richest connection would get it.

A change is kept as the bytes of the message that announces it (opaque 0, collection prefix on the
key, XATTR section in the value, delete time on tombstones). A backfill is then a join of stored
bytes, and everything else about a change is read back from fixed offsets.
"""

from __future__ import annotations

import struct

from cbframe.local.snappy import inflate
from cbframe.typing import ReadableBuffer
from cbframe.wire.constants import MAX_VALUE_LENGTH, Datatype, Opcode, SystemEventId
from cbframe.wire.items import decode_leb128

HEADER = struct.Struct(">BBHBBHIIQ")
_MUTATION = struct.Struct(">BBHBBHIIQQQIIIHB")
_DELETION = struct.Struct(">BBHBBHIIQQQIB")
_EXPIRATION = struct.Struct(">BBHBBHIIQQQI")
_PREPARE = struct.Struct(">BBHBBHIIQQQIIIBBB")
_COMPLETION = struct.Struct(">BBHBBHIIQQQ")
_EVENT = struct.Struct(">BBHBBHIIQQIB")
_U16 = struct.Struct(">H")
_U32 = struct.Struct(">I")
_U64 = struct.Struct(">Q")

MUTATION = int(Opcode.DCP_MUTATION)
DELETION = int(Opcode.DCP_DELETION)
EXPIRATION = int(Opcode.DCP_EXPIRATION)
PREPARE = int(Opcode.DCP_PREPARE)
COMMIT = int(Opcode.DCP_COMMIT)
ABORT = int(Opcode.DCP_ABORT)
EVENT = int(Opcode.DCP_SYSTEM_EVENT)
SNAPPY = int(Datatype.SNAPPY)
"""A plain number: flag enumerations are slow, and this is asked of every frame."""
_INFLATED_LIMIT = 2 * MAX_VALUE_LENGTH
"""Room for the attributes beside the document."""
EVENT_KEY_PREFIX = b"\x01"
"""Collection id 1 is reserved for system events, so their keys never meet a document's."""
PREPARED_KEY_PREFIX = b"\x02"
"""Collection id 2 is reserved as well: a prepared write stands beside the document, not above it."""


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
    return b"".join(
        (
            _MUTATION.pack(
                0x80,
                MUTATION,
                len(key),
                31,
                datatype,
                vbucket,
                31 + len(key) + len(value),
                0,
                cas,
                seqno,
                rev,
                flags,
                expiry,
                0,
                0,
                0,
            ),
            key,
            value,
        )
    )


def tombstone(
    vbucket: int, key: bytes, xattrs: bytes, *, seqno: int, rev: int, cas: int, when: int, expired: bool
) -> bytes:
    """The frame of a document's end; `xattrs` is the section of system attributes, or empty."""
    datatype = int(Datatype.XATTR) if xattrs else 0
    fields = len(key), 20 if expired else 21, datatype, vbucket
    body = fields[1] + len(key) + len(xattrs)
    if expired:
        head = _EXPIRATION.pack(0x80, EXPIRATION, *fields, body, 0, cas, seqno, rev, when)
    else:
        head = _DELETION.pack(0x80, DELETION, *fields, body, 0, cas, seqno, rev, when, 0)
    return head + key + xattrs


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
    head = 0x80, PREPARE, len(key), 31, datatype, vbucket, 31 + len(key) + len(value), 0, cas
    extras = seqno, rev, flags, expiry, 0, 0, deleted, level
    return b"".join((_PREPARE.pack(*head, *extras), key, value))


def completion(opcode: int, vbucket: int, key: bytes, *, prepared: int, seqno: int) -> bytes:
    """The frame that commits or aborts the write prepared at seqno `prepared`."""
    return (
        _COMPLETION.pack(0x80, opcode, len(key), 16, 0, vbucket, 16 + len(key), 0, 0, prepared, seqno) + key
    )


def system_event(vbucket: int, event: int, name: bytes, value: bytes, *, seqno: int, version: int) -> bytes:
    """The frame of a scope's or collection's coming or going."""
    body = 13 + len(name) + len(value)
    head = _EVENT.pack(0x80, EVENT, len(name), 13, 0, vbucket, body, 0, 0, seqno, event, version)
    return head + name + value


def key_of(frame: bytes) -> bytes:
    """Key of a document's frame, with its collection prefix."""
    start = 24 + frame[4]
    return frame[start : start + int(_U16.unpack_from(frame, 2)[0])]


def value_of(frame: bytes) -> bytes:
    """Value as stored: XATTR section, if any, and document."""
    return frame[24 + frame[4] + int(_U16.unpack_from(frame, 2)[0]) :]


def plain_value_of(frame: bytes) -> tuple[bytes, int]:
    """Value and datatype without Snappy: what KV operations work on."""
    return inflated(value_of(frame), frame[5])


def inflated(value: bytes, datatype: int) -> tuple[bytes, int]:
    """Value and datatype with the Snappy block, if it is one, undone."""
    if not datatype & SNAPPY:
        return value, datatype
    return inflate(value, _INFLATED_LIMIT), datatype & ~SNAPPY


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
    return event_key(scope, None if event in (3, 4) else cid)


def modification_key(cid: int) -> bytes:
    """Key of a collection's newest modification: it does not replace the creation."""
    return EVENT_KEY_PREFIX + b"modify:%x" % cid


def event_key(scope: int, cid: int | None) -> bytes:
    """Key under which create and drop of the same thing meet."""
    return EVENT_KEY_PREFIX + (b"scope:%x" % scope if cid is None else b"collection:%x" % cid)
