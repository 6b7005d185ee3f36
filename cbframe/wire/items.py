"""An item inside its frame: what stands before its key and before its value.

A key has its collection id before it, as unsigned LEB128, on a connection with collections; the key
without it decides the vbucket. A value has its extended attributes before it if its datatype has the
XATTR bit.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import NamedTuple
from zlib import crc32

from cbframe.errors import ProtocolError
from cbframe.typing import ReadableBuffer

_U32 = struct.Struct(">I")
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
