"""The part of FlatBuffers that system events are written in: one table of numbers and a string.

Little-endian, unlike everything else on the wire. Offsets and lengths are the peer's: each is checked
before it is followed.

Source: the FlatBuffers internals document.
"""

from __future__ import annotations

import struct

from cbframe.errors import ProtocolError

_U16 = struct.Struct("<H")
_U32 = struct.Struct("<I")
_I32 = struct.Struct("<i")
_NUMBERS = {1: struct.Struct("<B"), 4: _U32, 8: struct.Struct("<Q")}


class Table:
    """The root table of a FlatBuffers value."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = self._unpack(_U32, 0)
        self._slots = self._at - self._unpack(_I32, self._at)
        self._size = self._unpack(_U16, self._slots)

    def number(self, slot: int, width: int) -> int:
        """The unsigned integer of `width` bytes in a slot; 0 where the slot is empty."""
        at = self._field(slot)
        return 0 if at is None else self._unpack(_NUMBERS[width], at)

    def text(self, slot: int) -> bytes | None:
        """The string in a slot, or None where the slot is empty."""
        at = self._field(slot)
        if at is None:
            return None
        start = at + self._unpack(_U32, at)
        length = self._unpack(_U32, start)
        stop = start + _U32.size + length
        if stop > len(self._data):
            raise ProtocolError(f"a FlatBuffers string of {length} bytes ends behind its value")
        return self._data[start + _U32.size : stop]

    def _field(self, slot: int) -> int | None:
        entry = 2 * _U16.size + slot * _U16.size
        if entry + _U16.size > self._size:
            return None
        offset = self._unpack(_U16, self._slots + entry)
        return self._at + offset if offset else None

    def _unpack(self, number: struct.Struct, at: int) -> int:
        if not 0 <= at <= len(self._data) - number.size:
            raise ProtocolError(f"a FlatBuffers offset of {at} in a value of {len(self._data)} bytes")
        return int(number.unpack_from(self._data, at)[0])
