"""Compressed values come out as they went in, or not at all."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cbframe.arrow.snappy import inflate
from cbframe.errors import ProtocolError
from cbframe.local import snappy as plain
from cbframe.wire.blocks import decode_block
from cbframe.wire.constants import Datatype
from cbframe.wire.index import index_frames

LIMIT = 1 << 20
CODEC = pa.Codec("snappy")
texts = st.one_of(
    st.binary(max_size=100),
    st.builds(lambda piece, times: piece * times, st.binary(min_size=1, max_size=9), st.integers(0, 3000)),
)


def unpack(values: list[bytes], packed: list[bool] | None = None, limit: int = LIMIT) -> list[bytes]:
    mask = np.array([True] * len(values) if packed is None else packed, bool)
    array = pa.array(values, pa.binary())
    result = inflate(array, mask, np.arange(len(values), dtype=np.uint16), limit)
    result.validate(full=True)
    return result.to_pylist()


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


def test_none_at_all() -> None:
    values = pa.array([b"a", b""], pa.binary())
    assert inflate(values, np.zeros(2, bool), np.zeros(2, np.uint16), 0) is values
    assert unpack([]) == []


@given(items=st.lists(st.tuples(texts, st.sampled_from(["plain", "real", "ours"])), max_size=12))
def test_mixed_values(items: list[tuple[bytes, str]]) -> None:
    """By two compressors: Arrow's own, and the one of LocalCluster, which makes other elements."""
    pack = {"plain": bytes, "real": lambda text: CODEC.compress(text, asbytes=True), "ours": plain.deflate}
    values = [pack[how](text) for text, how in items]
    assert unpack(values, [how != "plain" for _, how in items]) == [text for text, _ in items]


def test_slices_of_arrays() -> None:
    texts = [b"%d" % n * 30 for n in range(10)]
    whole = pa.array([CODEC.compress(text, asbytes=True) for text in texts], pa.binary())
    part = inflate(whole.slice(3, 4), np.ones(4, bool), np.zeros(4, np.uint16), LIMIT)
    assert part.to_pylist() == texts[3:7]


# --- what is no block, or not as long as it says


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


@settings(max_examples=300)
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


# --- from a real node


def recorded(name: str) -> tuple[dict[bytes, bytes], int]:
    """Documents of a conversation, and how many of them came packed."""
    data = bytearray((Path(__file__).parent.parent / "golden" / f"{name}.s2c.bin").read_bytes())
    index = index_frames(data, len(data))
    block = decode_block(data, index.bounds, frames=np.flatnonzero(index.is_data), collections=False)
    mask = block.compressed()
    values = pa.array([block.value(row) for row in range(len(block))], pa.binary())
    inflated = inflate(values, mask, block.vbucket, LIMIT).to_pylist()
    for is_json, value in zip((block.datatype & Datatype.JSON).tolist(), inflated, strict=True):
        assert not is_json or not value or isinstance(json.loads(value), dict)
    return {block.key(row): value for row, value in enumerate(inflated)}, int(mask.sum())


@pytest.mark.parametrize("name", ["disk_snappy", "stream_snappy", "disk_force_snappy", "stream_force_snappy"])
def test_what_a_real_node_packed(name: str) -> None:
    """It is the JSON that it is said to be; where it was recorded unpacked too, it is the same."""
    found, packed = recorded(name)
    assert packed
    plain_ones, none = recorded("disk_no_snappy")
    assert none == 0
    same = found.keys() & plain_ones.keys()
    assert {key: found[key] for key in same} == {key: plain_ones[key] for key in same}
    assert same or "force" in name


def test_many_at_once() -> None:
    rng = random.Random(7)
    texts = [rng.randbytes(rng.randrange(40)) * rng.randrange(1, 60) for _ in range(3000)]
    assert unpack([good(text) for text in texts]) == texts
