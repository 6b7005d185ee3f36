"""Snappy blocks, inflated in plain Python: clients may send their values packed.

Source: google/snappy ``format_description.txt``.
"""

from __future__ import annotations

from cbframe.errors import ProtocolError


def inflate(block: bytes, limit: int) -> bytes:
    """The bytes in a raw block of at most `limit` of them.

    Raises
    ------
    ProtocolError
        The block is none, or holds more than `limit` bytes.
    """
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
