"""Snappy blocks in plain Python: clients may send their values packed, and get them so.

Source: google/snappy ``format_description.txt``.
"""

from __future__ import annotations

from cbframe.errors import ProtocolError
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
