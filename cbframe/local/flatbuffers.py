"""System events as FlatBuffers, version 2 of their values: written backwards, as the format asks.

Sources: the FlatBuffers internals document, kv_engine ``engines/ep/src/collections/events.fbs``.
The order of the fields is that of the real node, so that the bytes are equal as well.
"""

from __future__ import annotations

import struct

from cbframe.wire.constants import SystemEventId

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
