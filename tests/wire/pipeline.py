"""The two ways from bytes to messages, in one shape, so that they can be compared."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise

import numpy as np

from cbframe.errors import ProtocolError
from cbframe.wire.blocks import DataBlock, decode_block
from cbframe.wire.constants import MAX_BODY_LENGTH
from cbframe.wire.frame import Frame
from cbframe.wire.index import index_frames
from cbframe.wire.reference import DataMessage, decode_data, decode_frames, is_data

Item = DataMessage | Frame
Decoder = Callable[..., tuple[list[Item], int]]


def slow(data: bytes, *, collections: bool, max_body: int = MAX_BODY_LENGTH) -> tuple[list[Item], int]:
    """The reference decoder: all whole messages, and the offset of the tail."""
    frames, end = decode_frames(data, max_body=max_body)
    return [decode_data(f, collections=collections) if is_data(f) else f for f in frames], end


def fast(data: bytes, *, collections: bool, max_body: int = MAX_BODY_LENGTH) -> tuple[list[Item], int]:
    """Index, one block for all documents, the rest frame by frame: as a connection does it."""
    # Behind `stop` a receive buffer holds the bytes of an earlier use.
    buffer = bytearray(data) + b"\x57" * 64
    index = index_frames(buffer, len(data), max_body=max_body)
    documents: Iterator[DataMessage] = iter(())
    if index.is_data.any():
        rows = np.flatnonzero(index.is_data)
        documents = iter(messages(decode_block(buffer, index.bounds, frames=rows, collections=collections)))
    items: list[Item] = []
    for document, start, end in zip(
        index.is_data.tolist(), index.bounds[:-1].tolist(), index.bounds[1:].tolist(), strict=True
    ):
        if document:
            items.append(next(documents))
            continue
        parsed = Frame.parse(buffer, start, max_body=max_body)
        assert parsed is not None
        assert parsed[1] == end
        items.append(parsed[0])
    assert next(documents, None) is None
    return items, int(index.bounds[-1])


def messages(block: DataBlock) -> list[DataMessage]:
    """A block, one object a message."""
    columns = (
        block.opcode,
        block.datatype,
        block.vbucket,
        block.opaque,
        block.cas,
        block.seqno,
        block.rev_seqno,
        block.flags,
        block.expiry,
        block.collection_id,
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
