"""A record batch of either core holds what the obvious decoder reads, row by row."""

from __future__ import annotations

import json
import random
import struct
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cbframe.arrow import columns
from cbframe.arrow.columns import (
    METADATA_TYPES,
    XATTRS,
    XATTRS_TYPE,
    formed,
    formed_key,
    has_literals,
    key_bytes,
    raw_schema,
)
from cbframe.core import COMPILED
from cbframe.errors import ProtocolError
from cbframe.local import items as plain
from cbframe.wire.blocks import DataBlock
from cbframe.wire.constants import Datatype, Opcode
from cbframe.wire.framing import Frame, request
from cbframe.wire.messages import encode_leb128, join_xattrs, split_xattrs
from tests.wire import pipeline
from tests.wire.oracle import decode_data

ALL = tuple(name for name in METADATA_TYPES if name != XATTRS)


def record_batch(block: DataBlock, schema: pa.Schema, **options: int) -> pa.RecordBatch:
    """As both cores make it: they are one, also in what they refuse."""
    found: list[pa.RecordBatch | tuple[str, int | None]] = []
    failed: ProtocolError | None = None
    for core in dict.fromkeys((None, COMPILED)):
        with patch.object(columns, "COMPILED", core):
            try:
                found.append(columns.record_batch(block, schema, **options))
            except ProtocolError as exc:
                failed = exc
                found.append((str(exc), exc.vbucket))
    if not isinstance(found[0], tuple) and failed is None:
        for batch in found:
            batch.validate(full=True)
            assert batch.schema == schema
    assert all(other == found[0] for other in found)
    if failed is not None:
        raise failed
    return found[0]


def block_with(values: list[tuple[bytes, int]]) -> DataBlock:
    """A block of values with their datatypes; row i is of vbucket i."""
    rows = len(values)
    lengths = np.array([(1, len(value)) for value, _ in values], np.int64).reshape(-1, 2)
    bounds = np.concatenate(([0], np.cumsum(lengths)))
    zeros = {name: np.zeros(rows, np.uint64) for name in ("cas", "seqno", "rev_seqno")}
    words = {name: np.zeros(rows, np.uint32) for name in ("opaque", "flags", "expiry", "collection_id")}
    return DataBlock(
        buffer=bytearray(b"".join(b"k" + value for value, _ in values)),
        opcode=np.full(rows, Opcode.DCP_MUTATION, np.uint8),
        datatype=np.array([datatype for _, datatype in values], np.uint8),
        vbucket=np.arange(rows, dtype=np.uint16),
        key_start=bounds[:-1:2].copy(),
        value_start=bounds[1::2].copy(),
        value_end=bounds[2::2].copy(),
        nbytes=0,
        **zeros,
        **words,
    )


def block_of(frames: list[Frame]) -> DataBlock:
    return pipeline.block_of(b"".join(frame.encode() for frame in frames), collections=True)


def document(value: bytes = b"", *, key: bytes = b"k", vbucket: int = 0, datatype: int = 0) -> Frame:
    extras = struct.pack(">QQIIIHB", 1, 1, 0, 0, 0, 0, 0)
    return request(
        Opcode.DCP_MUTATION, vbucket=vbucket, datatype=datatype, extras=extras, key=b"\0" + key, value=value
    )


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
                key=encode_leb128(rng.choice((0, 8, 200, 2**32 - 1))) + rng.randbytes(rng.randint(1, 200)),
                value=rng.randbytes(rng.choice((0, 0, 1, 3, 500))),
            )
        )
    return frames


@pytest.mark.parametrize("seed", range(30))
def test_rows_are_those_of_the_reference(seed: int) -> None:
    rng = random.Random(seed)
    frames = random_frames(rng, rng.choice((1, 2, 3, 100)))
    batch = record_batch(block_of(frames), raw_schema(ALL))
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
    batch = record_batch(block_of([document(key=key)] * 2), raw_schema())
    assert batch["_cb_key"].to_pylist() == [key, key]
    assert batch["_cb_value"].to_pylist() == [b"", b""]


def test_compressed_values_are_inflated() -> None:
    """Also where there are none: of the stored document only the datatype came."""
    values = [(b"plain", 1), (b"", 3), (bytes.fromhex("07187b2261223a317d"), 3), (b"\0binary", 0), (b"", 2)]
    frames = [document(value, datatype=datatype) for value, datatype in values]
    batch = record_batch(block_of(frames), raw_schema(ALL))
    assert batch["_cb_value"].to_pylist() == [b"plain", b"", b'{"a":1}', b"\0binary", b""]
    assert batch["_cb_datatype"].to_pylist() == [1, 1, 1, 0, 0]


def recorded(name: str) -> DataBlock:
    """The documents of a conversation with a real node."""
    data = (Path(__file__).parent.parent / "golden" / f"{name}.s2c.bin").read_bytes()
    return pipeline.block_of(data, collections=False)


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
    block = block_of([document(bytes.fromhex("0f086162632e0300"), vbucket=7, datatype=2)])
    assert record_batch(block, raw_schema(), max_value=15)["_cb_value"][0].as_py() == b"abc" * 5
    with pytest.raises(ProtocolError, match="claims 15") as caught:
        record_batch(block, raw_schema(), max_value=14)
    assert caught.value.vbucket == 7


def test_the_schema() -> None:
    always = ["_cb_key", "_cb_value", "_cb_opcode", "_cb_collection_id", "_cb_vbucket", "_cb_seqno"]
    assert raw_schema().names == [*always, "_cb_datatype"]
    assert raw_schema(("_cb_cas", "_cb_seqno", "_cb_scope")).names == [*always, "_cb_datatype", "_cb_cas"]
    assert not any(field.nullable for field in raw_schema(ALL))
    assert raw_schema().field("_cb_seqno").type == pa.uint64()


# --- compressed values come out as they went in, or not at all

LIMIT = 1 << 20
CODEC = pa.Codec("snappy")
texts = st.one_of(
    st.binary(max_size=100),
    st.builds(lambda piece, times: piece * times, st.binary(min_size=1, max_size=9), st.integers(0, 3000)),
)


def unpack(values: list[bytes], packed: list[bool] | None = None, limit: int = LIMIT) -> list[bytes]:
    kinds = [True] * len(values) if packed is None else packed
    block = block_with([(value, 2 * kind) for value, kind in zip(values, kinds, strict=True)])
    return record_batch(block, raw_schema(), max_value=limit)["_cb_value"].to_pylist()


@pytest.mark.parametrize(
    ("block", "text"),
    [
        ("07187b2261223a317d", b'{"a":1}'),
        ("0f086162632e0300", b"abc" * 5),
        ("0b086162631103", b"abcabcabcab"),
    ],
)
def test_vectors(block: str, text: bytes) -> None:
    assert unpack([bytes.fromhex(block)]) == [text]


@given(items=st.lists(st.tuples(texts.filter(bool), st.sampled_from(["plain", "real", "ours"])), max_size=12))
def test_mixed_values(items: list[tuple[bytes, str]]) -> None:
    """By two compressors: Arrow's own, and the one of LocalCluster, which makes other elements."""
    pack = {"plain": bytes, "real": lambda text: CODEC.compress(text, asbytes=True), "ours": plain.deflate}
    values = [pack[how](text) for text, how in items]
    assert unpack(values, [how != "plain" for _, how in items]) == [text for text, _ in items]


def good(text: bytes) -> bytes:
    return bytes(CODEC.compress(text, asbytes=True))


A, B = good(b"first " * 50), good(b"second " * 50)


@pytest.mark.parametrize(
    "block",
    [
        b"\x80",
        b"\xff" * 5,
        b"\xff\xff\xff\xff\x0f" + A[2:],
        b"\x05",
        b"\x05\x10abcd",  # four of five bytes
        b"\x03\x10abcde",  # five of three
        b"\x00\x00x",
        b"\x08\x0cabcd\x2e\x09\x00",  # copies from before its beginning
        A[:-1],
        A + b"\x00x",
        A[:2] + b"\xfc" + A[3:],
    ],
)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_broken_blocks(block: bytes, place: int) -> None:
    values = [A, B]
    values.insert(place, block)
    with pytest.raises(ProtocolError, match="compressed value") as caught:
        unpack(values)
    assert caught.value.vbucket == place


def test_blocks_whose_lengths_are_wrong_together() -> None:
    """One a byte too long, the next as much too short: their sum is right, and both rows are not."""
    longer, shorter = b"\x04\x10abcde", b"\x06\x10abcde"
    assert unpack([b"\x05\x10abcde"] * 2) == [b"abcde"] * 2
    with pytest.raises(ProtocolError, match="a compressed value is broken") as caught:
        unpack([A, longer, shorter])
    assert caught.value.vbucket == 1


def test_a_block_that_claims_more_than_it_can_hold_takes_no_memory() -> None:
    claim = b"\x80\x80\x80\x08" + b"\x00a"  # 16 MiB in two bytes
    with pytest.raises(ProtocolError, match=r"of 2 bytes that claims 16777216"):
        unpack([claim], limit=1 << 30)
    with pytest.raises(ProtocolError, match="claims 300"):
        unpack([A], limit=299)
    assert unpack([A], limit=300) == [b"first " * 50]


def test_the_longest_that_a_block_can_put_out() -> None:
    """Copies only: 64 bytes for each three."""
    text = b"x" * 1_000_000
    assert len(good(text)) * 22 > len(text) > len(good(text)) * 21
    assert unpack([good(text)]) == [text]


@settings(max_examples=150)
@given(data=st.data())
def test_changed_blocks(data: st.DataObject) -> None:
    """Refused, or other bytes of the same length: no value becomes longer or shorter in silence."""
    texts = data.draw(
        st.lists(st.binary(min_size=1, max_size=60).map(lambda b: b * 3), min_size=1, max_size=4)
    )
    blocks = [good(text) for text in texts]
    which = data.draw(st.integers(0, len(blocks) - 1))
    at = data.draw(st.integers(0, len(blocks[which]) - 1))
    changed = bytearray(blocks[which])
    changed[at] = data.draw(st.integers(0, 255))
    blocks[which] = bytes(changed)
    try:
        found = unpack(blocks)
    except ProtocolError as error:
        assert error.vbucket == which  # noqa: PT017
    else:
        assert [f for i, f in enumerate(found) if i != which] == [
            t for i, t in enumerate(texts) if i != which
        ]
        assert len(found[which]) == changed[0] if changed[0] < 0x80 else found[which]


def documents_of(name: str) -> tuple[dict[bytes, bytes], int]:
    """Documents of a conversation, and how many of them came packed."""
    block = recorded(name)
    batch = record_batch(block, raw_schema())
    found = dict(zip(batch["_cb_key"].to_pylist(), batch["_cb_value"].to_pylist(), strict=True))
    for kind, value in zip(batch["_cb_datatype"].to_pylist(), found.values(), strict=True):
        assert kind & Datatype.JSON == 0 or not value or isinstance(json.loads(value), dict)
    return found, int(block.compressed().sum())


@pytest.mark.parametrize("name", ["disk_snappy", "stream_snappy", "disk_force_snappy", "stream_force_snappy"])
def test_what_a_real_node_packed(name: str) -> None:
    """It is the JSON that it is said to be; where it was recorded unpacked too, it is the same."""
    found, packed = documents_of(name)
    assert packed
    plain_ones, none = documents_of("disk_no_snappy")
    assert none == 0
    same = found.keys() & plain_ones.keys()
    assert {key: found[key] for key in same} == {key: plain_ones[key] for key in same}
    assert same or "force" in name


# --- extended attributes, as the plain decoder reads them one by one

VECTOR = bytes.fromhex("0000001a0000000e5f73796e63007b2261223a317d00000000047500320" + "07b2264223a337d")
Rows = list[tuple[bytes, dict[str, str]]]


def split(values: list[bytes], which: list[bool] | None = None, *, packed: bool = False) -> Rows:
    kinds = [True] * len(values) if which is None else which
    datatype = Datatype.XATTR | (Datatype.SNAPPY if packed else 0)
    block = block_with([(value, datatype * kind) for value, kind in zip(values, kinds, strict=True)])
    batch = record_batch(block, raw_schema((XATTRS,)))
    assert batch[XATTRS].type == XATTRS_TYPE
    without = record_batch(block, raw_schema())
    assert without["_cb_value"] == batch["_cb_value"]
    rows = zip(batch["_cb_value"].to_pylist(), batch[XATTRS].to_pylist(), strict=True)
    return [(body, dict(pairs)) for body, pairs in rows]


def test_vector() -> None:
    assert (
        split([VECTOR])
        == split([good(VECTOR)], packed=True)
        == [(b'{"d":3}', {"_sync": '{"a":1}', "u": "2"})]
    )


def test_none_at_all() -> None:
    assert split([]) == []
    assert split([b"ab", b""], [False, False]) == [(b"ab", {}), (b"", {})]
    assert split([bytes(4), bytes(4) + b"x"]) == [(b"", {}), (b"x", {})]


names = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=16)
attributes = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=30)
sections = st.dictionaries(names, attributes, max_size=5)


@given(rows=st.lists(st.tuples(st.binary(max_size=40), st.none() | sections), max_size=12))
def test_as_they_were_joined(rows: list[tuple[bytes, dict[str, str] | None]]) -> None:
    values = [
        body if section is None else join_xattrs({k: v.encode() for k, v in section.items()}, body)
        for body, section in rows
    ]
    found = split(values, [section is not None for _, section in rows])
    assert found == [(body, section or {}) for body, section in rows]


def section(*pairs: bytes) -> bytes:
    joined = b"".join(struct.pack(">I", len(pair)) + pair for pair in pairs)
    return struct.pack(">I", len(joined)) + joined


@pytest.mark.parametrize(
    "value",
    [
        b"\0\0\0",
        b"\0\0\0\x05abcd",
        b"\xff\xff\xff\xff",
        struct.pack(">I", 3) + b"abc",
        struct.pack(">II", 4, 0),
        struct.pack(">II", 4, 5) + b"a\0b\0x",
        struct.pack(">II", 5, 1) + b"\0",
        section(b"a\0b"),
        section(b"ab\0"),
        section(b"a\0b\0c\0"),
        section(b"a\0b\0", b"a"),
        section(b"\xff\0b\0"),
        section(b"a\0\xff\0"),
        struct.pack(">I", 12) + section(b"a\0b\0")[4:] + struct.pack(">I", 2**31),
    ],
)
def test_broken_sections(value: bytes) -> None:
    values = [VECTOR, value, VECTOR]
    with pytest.raises(ProtocolError) as caught:
        split(values)
    assert caught.value.vbucket == 1


@settings(max_examples=300)
@given(data=st.data())
def test_changed_sections(data: st.DataObject) -> None:
    """What the plain decoder reads is read, what it refuses is refused."""
    value = bytearray(VECTOR + b"\0more")
    for _ in range(data.draw(st.integers(1, 3))):
        value[data.draw(st.integers(0, len(value) - 1))] = data.draw(
            st.sampled_from([0, 1, 2, 4, 9, 97, 255])
        )
    try:
        expected = split_xattrs(bytes(value))
        plain = {name: text.decode() for name, text in expected.xattrs.items()}
    except (ProtocolError, UnicodeDecodeError):
        with pytest.raises(ProtocolError):
            split([bytes(value)])
    else:
        assert split([b"other", bytes(value)], [False, True]) == [(b"other", {}), (expected.body, plain)]


# --- keys as text: nothing depends on other keys, and no two keys become one

TEXTS = {
    b"": "",
    b"airline_10": "airline_10",
    "caf\u00e9 \u4eac \U0001f600".encode(): "caf\u00e9 \u4eac \U0001f600",
    b"a\x00\n": "a\x00\n",
    b"\xff\x00": "\\xff\x00",
    b"caf\xc3": "caf\\xc3",
    b"\xed\xa0\x80": "\\xed\\xa0\\x80",
    b"\xc0\x80": "\\xc0\\x80",
    b"\xf4\x90\x80\x80": "\\xf4\\x90\\x80\\x80",
    b"C:\\temp": "C:\\temp",
    b"\\x": "\\x",
    b"\\x4": "\\x4",
    b"\\xg0": "\\xg0",
    b"\\x41": "\\x5cx41",
    b"\\xFF": "\\x5cxFF",
    b"\\xff": "\\x5cxff",
    b"\\x5cxff": "\\x5cx5cxff",
    b"\\\\x41": "\\\\x5cx41",
    b"\\x4\xff": "\\x4\\xff",
    b"\\xff\xff": "\\x5cxff\\xff",
}
PIECES = st.sampled_from([b"\\", b"x", b"5", b"c", b"f", b"F", b"\xff", b"\xc3", b"\xa9", b"\xc3\xa9", b"\0"])
KEYS = st.lists(PIECES, max_size=12).map(b"".join) | st.binary(max_size=20)


@pytest.mark.parametrize(("key", "text"), TEXTS.items())
def test_the_text_of_a_key(key: bytes, text: str) -> None:
    assert formed_key(key, "text") == text
    assert formed_key(key, "binary") == key


def test_columns() -> None:
    keys = pa.chunked_array([[*TEXTS], [None, b"\xff"], []], pa.binary())
    texts = formed(keys, "text")
    assert texts.type == pa.string()
    assert texts.to_pylist() == [*TEXTS.values(), None, "\\xff"]
    assert key_bytes(texts).equals(keys)
    assert formed(keys, "binary").equals(keys)
    assert key_bytes(keys).equals(keys)
    # What was stored as strings is no text in this sense: it has no escapes.
    stored = pa.array(["\\xff", "a"])
    assert formed(stored, "text").to_pylist() == ["\\x5cxff", "a"]
    assert formed(stored, "binary").to_pylist() == [b"\\xff", b"a"]
    assert has_literals(stored)
    assert not has_literals(stored.slice(1))
    assert not has_literals(pa.chunked_array([], pa.string()))


@given(st.lists(KEYS), st.integers(0, 3), st.integers(0, 20))
def test_text_is_injective_and_depends_on_nothing_else(keys: list[bytes], start: int, count: int) -> None:
    column = pa.array(keys, pa.binary())
    texts = formed(column, "text")
    texts.validate(full=True)
    assert texts.to_pylist() == [formed_key(key, "text") for key in keys]
    assert key_bytes(texts).equals(column)
    part = column.slice(start, count)
    assert formed(part, "text").equals(texts.slice(start, count))
    assert key_bytes(texts.slice(start, count)).equals(part)
    for key, text in zip(keys, texts.to_pylist(), strict=True):
        try:
            plain = key.decode()
        except UnicodeDecodeError:
            assert "\\x" in text
        else:
            assert text == plain or "\\x5cx" in text
