"""The ways from bytes to messages, in one shape, so that they can be compared."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from typing import Any

import numpy as np

from cbframe.core import COMPILED
from cbframe.errors import ProtocolError
from cbframe.wire.blocks import DataBlock, Decoded, FrameDecoder, data_block, frame_decoder, refuse
from cbframe.wire.constants import HEADER_LENGTH, MAX_BODY_LENGTH, Opcode
from cbframe.wire.framing import Frame, response
from cbframe.wire.messages import OsoSnapshot

from .oracle import DataMessage, decode_data, decode_frames, is_data

Item = DataMessage | Frame
Decoder = Callable[..., tuple[list[Item], int]]
CORES: dict[str, Callable[[int], FrameDecoder]] = {"python": FrameDecoder}
"""Decoders of frames by the name of their core."""
if COMPILED is not None:
    CORES["rust"] = COMPILED.FrameDecoder
OPAQUE = 0x5A00_0000


def opaque_of(vbucket: int) -> int:
    """The opaque of a vbucket's stream in these tests."""
    return OPAQUE + vbucket


def unified(data: bytes) -> bytes:
    """The bytes with data messages of one stream for each vbucket."""
    out = bytearray(data)
    offset = 0
    for frame in decode_frames(data)[0]:
        if is_data(frame):
            out[offset + 12 : offset + 16] = opaque_of(frame.vbucket).to_bytes(4, "big")
        offset += len(frame)
    return bytes(out)


def decoder_of(
    data: bytes,
    *,
    collections: bool,
    max_body: int = MAX_BODY_LENGTH,
    make: Callable[[int], FrameDecoder] = frame_decoder,
) -> FrameDecoder:
    """A decoder that takes the documents in these bytes, with any seqnos."""
    decoder = make(max_body)
    decoder.ready(collections)
    said = bytearray()
    with_data: set[int] = set()
    offset = 0
    while len(data) - offset >= HEADER_LENGTH:
        with_data.add(int.from_bytes(data[offset + 6 : offset + 8], "big"))
        offset += HEADER_LENGTH + int.from_bytes(data[offset + 8 : offset + 12], "big")
    for vbucket in sorted(with_data):
        opaque = opaque_of(vbucket)
        decoder.open(vbucket, opaque, 0)
        said += response(Opcode.DCP_STREAM_REQ, opaque=opaque).encode()
        said += OsoSnapshot(vbucket, 1).frame(opaque).encode()
    if max_body > 4:
        assert decoder.decode(said, 0, len(said)).consumed == len(said)
    return decoder


def blocks_of(
    decoder: FrameDecoder, buffer: bytearray | memoryview, stop: int
) -> Iterator[tuple[Decoded, DataBlock | None]]:
    """Decode a buffer to its end, as a connection does."""
    start, more = 0, True
    while more:
        decoded = decoder.decode(buffer, start, stop)
        start, more = decoded.consumed, decoded.more
        yield decoded, data_block(buffer, decoded) if len(decoded) else None


def block_of(data: bytes, **options: Any) -> DataBlock:
    """The data messages of some bytes as one block, whatever the streams that they are of."""
    sent = b"".join(frame.encode() for frame in decode_frames(data)[0] if is_data(frame))
    # Behind `stop` a receive buffer holds the bytes of an earlier use.
    buffer = bytearray(unified(sent) + b"\x57" * 50)
    ((decoded, block),) = blocks_of(decoder_of(sent, **options), buffer, len(sent))
    if decoded.error is not None:
        refuse(buffer, decoded, MAX_BODY_LENGTH)
    assert block is not None
    return block


def slow(data: bytes, *, collections: bool, max_body: int = MAX_BODY_LENGTH) -> tuple[list[Item], int]:
    """The oracle: all whole messages, and the offset of the tail."""
    frames, end = decode_frames(data, max_body=max_body)
    return [decode_data(f, collections=collections) if is_data(f) else f for f in frames], end


def fast(
    data: bytes,
    *,
    collections: bool,
    max_body: int = MAX_BODY_LENGTH,
    make: Callable[[int], FrameDecoder] = frame_decoder,
) -> tuple[list[Item], int]:
    """A decoder: the documents as columns, the rest frame by frame."""
    buffer = bytearray(data) + b"\x57" * 64
    decoder = decoder_of(data, collections=collections, max_body=max_body, make=make)
    ends: dict[int, Item] = {}
    end = 0
    for decoded, block in blocks_of(decoder, buffer, len(data)):
        end = decoded.consumed
        for offset in (*decoded.before, *decoded.after):
            parsed = Frame.parse(buffer, offset, max_body=max_body)
            assert parsed is not None
            ends[parsed[1]] = parsed[0]
        if block is not None:
            ends.update(zip(block.value_end.tolist(), messages(block), strict=True))
        if decoded.error is not None:
            header = refuse(buffer, decoded, max_body)
            raise ProtocolError("a document of no stream", opcode=header.opcode, offset=end)
    return [ends[place] for place in sorted(ends)], end


def messages(block: DataBlock) -> list[DataMessage]:
    """A block, one object a message."""
    columns = (
        *(block.opcode, block.datatype, block.vbucket, block.opaque, block.cas, block.seqno, block.rev_seqno),
        *(block.flags, block.expiry, block.collection_id),
    )
    expected = ["u1", "u1", "u2", "u4", "u8", "u8", "u8", "u4", "u4", "u4"]
    assert [column.dtype for column in columns] == [np.dtype(name) for name in expected]
    positions = (block.key_start, block.value_start, block.value_end)
    assert all(column.dtype == np.int64 for column in positions)
    assert all(len(column) == len(block) for column in (*columns, *positions))
    rows = zip(*(column.tolist() for column in columns), strict=True)
    return [DataMessage(*row, block.key(i), block.value(i)) for i, row in enumerate(rows)]


def feed(decoder: Decoder, chunks: Iterable[bytes], *, collections: bool) -> tuple[list[Item], bytes]:
    """Decode bytes as they arrive; what is no whole message waits for more."""
    items: list[Item] = []
    buffer = b""
    for chunk in chunks:
        buffer += chunk
        more, end = decoder(buffer, collections=collections)
        items += more
        buffer = buffer[end:]
    return items, buffer


def cut(data: bytes, points: Iterable[int]) -> list[bytes]:
    """The pieces of `data` between the given offsets."""
    edges = sorted({0, len(data), *(point for point in points if 0 < point < len(data))})
    return [data[start:stop] for start, stop in pairwise(edges)]


def outcome(
    decoder: Decoder, data: bytes, *, collections: bool, max_body: int = MAX_BODY_LENGTH
) -> tuple[list[Item], int] | type[ProtocolError]:
    """The result, or that the bytes were refused. Any other exception passes."""
    try:
        return decoder(data, collections=collections, max_body=max_body)
    except ProtocolError:
        return ProtocolError
