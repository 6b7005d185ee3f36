"""A record batch holds what the slow, obvious decoder reads, row by row."""

from __future__ import annotations

import random
import struct

import numpy as np
import pyarrow as pa
import pytest

from cbframe.arrow.columns import METADATA_TYPES, XATTRS, raw_schema, record_batch
from cbframe.errors import ProtocolError
from cbframe.wire import leb128
from cbframe.wire.blocks import DataBlock, decode_block
from cbframe.wire.constants import Opcode
from cbframe.wire.frame import Frame, request
from cbframe.wire.index import index_frames
from cbframe.wire.reference import decode_data

ALL = tuple(name for name in METADATA_TYPES if name != XATTRS)


def block_of(frames: list[Frame]) -> DataBlock:
    data = b"".join(frame.encode() for frame in frames)
    # Behind the frames a receive buffer holds the bytes of an earlier use.
    buffer = bytearray(b"\x99" * 3 + data + b"\x57" * 50)[3:]
    index = index_frames(buffer, len(data))
    return decode_block(buffer, index.bounds, collections=True)


def random_frames(rng: random.Random, count: int) -> list[Frame]:
    frames = []
    for _ in range(count):
        seqno, rev = rng.choice((1, 2**63, 2**64 - 1)), rng.getrandbits(64)
        word, when = rng.getrandbits(32), rng.getrandbits(32)
        opcode, extras = rng.choice(
            (
                (Opcode.DCP_MUTATION, struct.pack(">QQIIIHB", seqno, rev, word, when, 0, 0, 0)),
                (Opcode.DCP_DELETION, struct.pack(">QQH", seqno, rev, 0)),
                (Opcode.DCP_DELETION, struct.pack(">QQIB", seqno, rev, when, 0)),
                (Opcode.DCP_EXPIRATION, struct.pack(">QQI", seqno, rev, when)),
            )
        )
        frames.append(
            request(
                opcode,
                vbucket=rng.randrange(1024),
                opaque=rng.getrandbits(32),
                cas=rng.getrandbits(64),
                datatype=rng.choice((0, 1)),
                extras=extras,
                key=leb128.encode(rng.choice((0, 8, 200, 2**32 - 1))) + rng.randbytes(rng.randint(1, 200)),
                value=rng.randbytes(rng.choice((0, 0, 1, 3, 500))),
            )
        )
    return frames


@pytest.mark.parametrize("seed", range(30))
def test_rows_are_those_of_the_reference(seed: int) -> None:
    rng = random.Random(seed)
    frames = random_frames(rng, rng.choice((1, 2, 3, 100)))
    batch = record_batch(block_of(frames), raw_schema(ALL))
    batch.validate(full=True)
    expected = [
        {f"_cb_{name}": getattr(message, name) for name in ("key", "value", "opcode", "collection_id")}
        | {name: getattr(message, name.removeprefix("_cb_")) for name in ALL}
        for message in (decode_data(frame, collections=True) for frame in frames)
    ]
    assert batch.to_pylist() == [{name: row[name] for name in batch.schema.names} for row in expected]


@pytest.mark.parametrize("seed", range(10))
def test_some_rows_of_a_block(seed: int) -> None:
    """A block that lost rows has gaps between its documents."""
    rng = random.Random(seed)
    block = block_of(random_frames(rng, 40))
    keep = np.array([rng.random() < 0.4 for _ in range(40)])
    keep[rng.randrange(40)] = True
    whole = record_batch(block, raw_schema(ALL)).to_pylist()
    some = record_batch(block.select(keep), raw_schema(ALL)).to_pylist()
    assert some == [row for row, kept in zip(whole, keep, strict=True) if kept]


def test_the_batch_does_not_look_into_the_buffer() -> None:
    block = block_of(random_frames(random.Random(1), 20))
    batch = record_batch(block, raw_schema(ALL))
    before = batch.to_pylist()
    block.buffer[:] = bytes(len(block.buffer))
    assert batch.to_pylist() == before


@pytest.mark.parametrize("key", [b"k", b""])
def test_values_and_keys_of_no_length(key: bytes) -> None:
    """Servers send no empty keys; if one did, that would be no reason to fall over."""
    extras = struct.pack(">QQIIIHB", 1, 1, 0, 0, 0, 0, 0)
    frame = request(Opcode.DCP_MUTATION, extras=extras, key=b"\0" + key)
    batch = record_batch(block_of([frame, frame]), raw_schema())
    assert batch["_cb_key"].to_pylist() == [key, key]
    assert batch["_cb_value"].to_pylist() == [b"", b""]


def test_compressed_values_are_inflated() -> None:
    """Also where there are none: of the stored document only the datatype came."""
    extras = struct.pack(">QQIIIHB", 1, 1, 0, 0, 0, 0, 0)
    values = [(b"plain", 1), (b"", 3), (bytes.fromhex("07187b2261223a317d"), 3), (b"\0binary", 0), (b"", 2)]
    frames = [
        request(Opcode.DCP_MUTATION, datatype=datatype, extras=extras, key=b"\0k", value=value)
        for value, datatype in values
    ]
    batch = record_batch(block_of(frames), raw_schema(ALL))
    assert batch["_cb_value"].to_pylist() == [b"plain", b"", b'{"a":1}', b"\0binary", b""]
    assert batch["_cb_datatype"].to_pylist() == [1, 1, 1, 0, 0]


def test_a_compressed_value_that_is_too_long() -> None:
    extras = struct.pack(">QQIIIHB", 1, 1, 0, 0, 0, 0, 0)
    packed = bytes.fromhex("0f086162632e0300")
    frame = request(Opcode.DCP_MUTATION, vbucket=7, datatype=2, extras=extras, key=b"\0k", value=packed)
    assert record_batch(block_of([frame]), raw_schema(), max_value=15)["_cb_value"][0].as_py() == b"abc" * 5
    with pytest.raises(ProtocolError, match="claims 15") as caught:
        record_batch(block_of([frame]), raw_schema(), max_value=14)
    assert caught.value.vbucket == 7


def test_the_schema() -> None:
    always = ["_cb_key", "_cb_value", "_cb_opcode", "_cb_collection_id", "_cb_vbucket", "_cb_seqno"]
    assert raw_schema().names == [*always, "_cb_datatype"]
    assert raw_schema(("_cb_cas", "_cb_seqno", "_cb_scope")).names == [*always, "_cb_datatype", "_cb_cas"]
    assert not any(field.nullable for field in raw_schema(ALL))
    assert raw_schema().field("_cb_seqno").type == pa.uint64()
