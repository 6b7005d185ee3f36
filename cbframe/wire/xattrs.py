"""Extended attributes: the section in front of a document when its datatype has the XATTR bit."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import NamedTuple

from cbframe.errors import ProtocolError
from cbframe.typing import ReadableBuffer

_U32 = struct.Struct(">I")


class XattrSplit(NamedTuple):
    """Attributes (JSON text by name, in the order sent) and the document behind them."""

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
