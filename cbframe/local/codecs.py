"""Two formats without a library: Snappy blocks, and system events as FlatBuffers.

Clients may send their values as Snappy blocks, and get them so. Source: google/snappy
``format_description.txt``.

System events of version 2 have FlatBuffers as their values. They are written backwards, as the format
asks, with the fields in the order of the real node, so that the bytes are equal as well. Sources: the
FlatBuffers internals document, kv_engine ``engines/ep/src/collections/events.fbs``.
"""

from __future__ import annotations

import struct

from cbframe.errors import ProtocolError
from cbframe.wire.constants import SystemEventId
from cbframe.wire.items import encode_leb128

_SHORTEST_COPY = 4
_LONGEST_COPY = 64
_WINDOW = 1 << 16
"""Distances that fit the two bytes of a copy; longer ones would save next to nothing."""


def inflate(block: bytes, limit: int) -> bytes:
    """The bytes in a raw block of at most `limit` of them."""
    try:
        length, at = _varint(block)
        if length > limit:
            raise ProtocolError(f"a Snappy block of {length} bytes is over the limit of {limit}")
        out = bytearray()
        while at < len(block) and len(out) <= length:
            at = _element(block, at, out)
    except IndexError as exc:
        raise ProtocolError("a Snappy block ends in the middle") from exc
    if len(out) != length or at != len(block):
        raise ProtocolError(f"a Snappy block of {len(out)} bytes says that it has {length}")
    return bytes(out)


def _varint(block: bytes) -> tuple[int, int]:
    number = 0
    for at in range(5):
        number |= (block[at] & 0x7F) << (7 * at)
        if block[at] < 0x80:
            return number, at + 1
    raise ProtocolError("the length of a Snappy block is too long")


def _element(block: bytes, at: int, out: bytearray) -> int:
    """Append what the element at `at` stands for; where the next one begins."""
    tag = block[at]
    kind, size = tag & 3, tag >> 2
    at += 1
    if kind == 0:
        if size >= 60:
            width = size - 59
            _ = block[at + width - 1]
            size = int.from_bytes(block[at : at + width], "little")
            at += width
        end = at + size + 1
        _ = block[end - 1]
        out += block[at:end]
        return end
    if kind == 1:
        length, width, distance = (size & 7) + 4, 1, (tag >> 5) << 8 | block[at]
    else:
        length, width = size + 1, 2 if kind == 2 else 4
        _ = block[at + width - 1]
        distance = int.from_bytes(block[at : at + width], "little")
    if not 0 < distance <= len(out):
        raise ProtocolError("a Snappy block copies from before its beginning")
    start = len(out) - distance
    chunk = out[start : start + length]
    if len(chunk) < length:
        # The copy reaches into itself: a repeated pattern.
        chunk = (chunk * (length // distance + 1))[:length]
    out += chunk
    return at + width


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
        _add_copies(out, at - found, length)
        at += length
        literal = at
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


def _add_copies(out: bytearray, distance: int, length: int) -> None:
    while length:
        step = min(length, _LONGEST_COPY)
        out.append((step - 1) << 2 | 2)
        out += distance.to_bytes(2, "little")
        length -= step


_U16 = struct.Struct("<H")
_U32 = struct.Struct("<I")
_FORMATS = {1: "<B", 4: "<I", 8: "<Q"}


class _Builder:
    """One table with numbers and a string; the buffer grows at its front."""

    def __init__(self) -> None:
        self._data = b""
        self._fields: dict[int, int] = {}
        self._widest = 4
        self._table_end = 0

    def string(self, text: bytes) -> int:
        """Write a string; where it is, counted from the end."""
        self._align(4, len(text) + 1)
        self._data = _U32.pack(len(text)) + text + b"\0" + self._data
        self._table_end = len(self._data)
        return len(self._data)

    def number(self, slot: int, value: int, width: int) -> None:
        """Write a field, unless it has the default value of 0."""
        if not value:
            return
        self._align(width)
        self._data = struct.pack(_FORMATS[width], value) + self._data
        self._fields[slot] = len(self._data)

    def reference(self, slot: int, target: int) -> None:
        """Write a field that refers to a string."""
        self._align(4)
        self._data = _U32.pack(len(self._data) + 4 - target) + self._data
        self._fields[slot] = len(self._data)

    def finish(self) -> bytes:
        self._align(4)
        fields, end = self._data, self._table_end
        table = len(fields) + 4
        slots = [table - self._fields.get(s, table) for s in range(max(self._fields, default=-1) + 1)]
        vtable = [4 + 2 * len(slots), table - end, *slots]
        self._data = b"".join(map(_U16.pack, vtable)) + _U32.pack(2 * len(vtable)) + fields
        self._align(self._widest, 4)
        return _U32.pack(len(self._data) + 4 - table) + self._data

    def _align(self, width: int, more: int = 0) -> None:
        self._widest = max(self._widest, width)
        self._data = bytes(-(len(self._data) + more) % width) + self._data


def event_value(
    event: int, name: bytes, uid: int, scope: int, cid: int, max_ttl: int | None, *, history: bool
) -> bytes:
    """The value of a system event; `max_ttl` None for a collection without one."""
    builder = _Builder()
    named = event not in (SystemEventId.DROP_COLLECTION, SystemEventId.DROP_SCOPE)
    text = builder.string(name) if named else 0
    # The widest first, those of one width from the last slot down.
    builder.number(0, uid, 8)
    if event in (SystemEventId.CREATE_SCOPE, SystemEventId.DROP_SCOPE):
        if named:
            builder.reference(2, text)
    else:
        if named:
            builder.reference(5, text)
            builder.number(4, max_ttl or 0, 4)
        builder.number(2, cid, 4)
    builder.number(1, scope, 4)
    if named and event != SystemEventId.CREATE_SCOPE:
        builder.number(6, history, 1)
        builder.number(3, max_ttl is not None, 1)
    return builder.finish()
