"""Unsigned LEB128: the collection id in front of every key on a collections connection."""

from __future__ import annotations

from cbframe.errors import ProtocolError
from cbframe.typing import ReadableBuffer

MAX_LENGTH = 5
"""Bytes that a 32-bit collection id needs at most."""


def encode(number: int) -> bytes:
    """The canonical (shortest) form of an unsigned 32-bit number."""
    if not 0 <= number <= 0xFFFF_FFFF:
        raise ValueError(f"{number} is no unsigned 32-bit number")
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def decode(buffer: ReadableBuffer, offset: int = 0, end: int | None = None) -> tuple[int, int]:
    """Read a number that ends at `end` or before; None: anywhere in the buffer."""
    number = 0
    stop = len(buffer) if end is None else end
    for position in range(MAX_LENGTH):
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
    number, end = decode(key)
    return number, key[end:]
