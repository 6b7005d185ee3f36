"""A record batch holds what the slow, obvious decoder reads, row by row."""

from __future__ import annotations

import random
import struct
from pathlib import Path

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


def recorded(name: str) -> DataBlock:
    """The documents of a conversation with a real node."""
    data = bytearray((Path(__file__).parent.parent / "golden" / f"{name}.s2c.bin").read_bytes())
    index = index_frames(data, len(data))
    return decode_block(data, index.bounds, frames=np.flatnonzero(index.is_data), collections=False)


def types_of(batch: pa.RecordBatch) -> dict[bytes, int]:
    return dict(zip(batch["_cb_key"].to_pylist(), batch["_cb_datatype"].to_pylist(), strict=True))


def test_documents_without_values_keep_their_datatype() -> None:
    """From disk a node calls the values compressed that it leaves out, and marks attributes nobody sees."""
    block = recorded("disk_no_value.1")
    assert (block.datatype == 7).any(), "the recording has a document of all kinds"
    batch = record_batch(block, raw_schema())
    assert set(batch["_cb_value"].to_pylist()) == {b""}
    found, memory = types_of(batch), recorded("stream_no_value_underlying")
    assert found == types_of(record_batch(memory, raw_schema()))
    assert (found[b"doc::00000005"], found[b"raw::00000014"], found[b"snx::00000002"]) == (1, 0, 1)


def test_attributes_without_values_are_plain_whatever_their_datatype_says() -> None:
    block = recorded("stream_xattr_no_value.1")
    assert (block.datatype == 6).sum() == 2, "the recording has two of the kind"
    batch = record_batch(block, raw_schema((XATTRS,)))
    assert set(batch["_cb_value"].to_pylist()) == {b""}
    found = types_of(batch)
    assert (found[b"plain::00000002"], found[b"xat::00000005"], found[b"xat::00000031"]) == (1, 5, 4)
    xattrs = dict(zip(batch["_cb_key"].to_pylist(), batch[XATTRS].to_pylist(), strict=True))
    assert xattrs[b"xexp::00000000"] == [("_sync", '{"rev":"9-x"}')]
    assert not xattrs[b"plain::00000002"]


@pytest.mark.parametrize("name", ["stream_xattr", "stream_xattr_expiry"])
def test_the_datatype_says_which_documents_have_attributes(name: str) -> None:
    """Where they are kept; a column of the datatype alone is that of what was asked for."""
    block = recorded(name)
    batch = record_batch(block, raw_schema((XATTRS,)))
    marked = (batch["_cb_datatype"].to_numpy() & 4) != 0
    assert marked.any()
    assert marked.tolist() == [bool(pairs) for pairs in batch[XATTRS].to_pylist()]
    assert not (record_batch(block, raw_schema())["_cb_datatype"].to_numpy() & 4).any()


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
