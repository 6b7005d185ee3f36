"""The decoders of frames of both cores: what they must see; they equal the oracle, and each other."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cbframe.errors import ProtocolError
from cbframe.wire.constants import MAX_BODY_LENGTH, Magic, Opcode
from cbframe.wire.framing import Frame, request
from cbframe.wire.messages import encode_leb128, parse_message, parse_request

from . import pipeline, vectors
from .oracle import DataMessage
from .pipeline import (
    CORES,
    Decoder,
    Item,
    block_of,
    blocks_of,
    cut,
    decoder_of,
    feed,
    messages,
    opaque_of,
    outcome,
    slow,
    unified,
)
from .strategies import streams

DELETION_V1, DELETION_V2, EXPIRATION, MUTATION = map(
    unified, (vectors.DELETION_V1, vectors.DELETION_V2, vectors.EXPIRATION, vectors.MUTATION)
)
OURS = opaque_of(258)
FAST = [partial(pipeline.fast, make=make) for make in CORES.values()]


each_decoder = pytest.mark.parametrize("fast", FAST, ids=list(CORES))


# --- the vectors of the protocol


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (MUTATION, DataMessage(0x57, 1, 258, OURS, 0x18, 8, 1, 0x2000000, 0, 0, b"k", b"{}")),
        (DELETION_V1, DataMessage(0x58, 0, 258, OURS, 0x19, 9, 2, 0, 0, 0, b"k", b"")),
        (DELETION_V2, DataMessage(0x58, 0, 258, OURS, 0x19, 9, 2, 0, 1_700_000_000, 0, b"k", b"")),
        (EXPIRATION, DataMessage(0x59, 0, 258, OURS, 0x19, 9, 2, 0, 1_700_000_000, 0, b"k", b"")),
    ],
    ids=["mutation", "deletion v1", "deletion v2", "expiration"],
)
def test_vectors(data: bytes, expected: DataMessage) -> None:
    for decoder in (*FAST, slow):
        assert decoder(data, collections=True) == ([expected], len(data))
        items, _ = decoder(data, collections=False)
        assert isinstance(items[0], DataMessage)
        assert (items[0].key, items[0].collection_id) == (b"\0k", 0)


def test_all_kinds_in_one_block() -> None:
    data = DELETION_V1 + MUTATION + EXPIRATION + DELETION_V2 + DELETION_V1
    block = block_of(data, collections=True)
    assert messages(block) == slow(data, collections=True)[0]
    assert block.expiry.tolist() == [0, 0, 1_700_000_000, 1_700_000_000, 0]
    assert block.flags.tolist() == [0, 0x2000000, 0, 0, 0]
    assert (len(block), block.nbytes) == (5, len(data))


def test_a_deletion_at_the_very_end_is_not_read_past() -> None:
    """Behind the shortest deletion v1 the buffer ends."""
    data = unified(request(Opcode.DCP_DELETION, extras=bytes(15) + b"\x05" + bytes(2)).encode())
    assert messages(block_of(data, collections=False)) == slow(data, collections=False)[0]


@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize("kind", [bytearray, lambda octets: memoryview(bytearray(octets))])
def test_keys_and_values_are_not_copied(core: str, kind: Callable[[bytes], bytearray]) -> None:
    data = vectors.STREAM_END + MUTATION + DELETION_V2
    buffer = kind(data)
    decoder = decoder_of(data, collections=True, make=CORES[core])
    ((decoded, block),) = blocks_of(decoder, buffer, len(data))
    assert block is not None
    assert block.buffer is buffer
    assert messages(block) == slow(MUTATION + DELETION_V2, collections=True)[0]
    assert (block.nbytes, decoded.before) == (len(MUTATION) + len(DELETION_V2), [0])
    assert block.key_start[0] == len(vectors.STREAM_END) + len(MUTATION) - 3
    # Fixed fields are copies: a later use of the buffer does not change them.
    before = [getattr(block, name).copy() for name in ("opcode", "datatype", "cas", "seqno", "vbucket")]
    buffer[:] = bytes(len(data))
    after = [getattr(block, name) for name in ("opcode", "datatype", "cas", "seqno", "vbucket")]
    assert all(np.array_equal(old, new) for old, new in zip(before, after, strict=True))
    assert (block.key(0), block.value(0)) == (b"\0", b"\0\0")


def test_select() -> None:
    block = block_of(MUTATION + DELETION_V1 + DELETION_V2 + EXPIRATION, collections=True)
    whole = messages(block)
    assert messages(block.select(slice(1, 3))) == whole[1:3]
    chosen = block.select(block.opcode == Opcode.DCP_DELETION)
    assert messages(chosen) == whole[1:3]
    assert chosen.nbytes == block.nbytes
    assert len(block.select(slice(0, 0))) == 0


def test_repr_shows_no_document() -> None:
    assert repr(block_of(MUTATION, collections=True)) == f"DataBlock(1 messages, {len(MUTATION)} bytes)"


# --- what is refused

BAD_EXTRAS = [
    (opcode, length)
    for opcode, good in [(0x57, {31}), (0x58, {18, 21}), (0x59, {20})]
    for length in [0, 1, 15, 16, 17, 18, 19, 20, 21, 22, 30, 31, 32, 255]
    if length not in good
]


@each_decoder
@pytest.mark.parametrize(("opcode", "length"), BAD_EXTRAS)
@pytest.mark.parametrize("surroundings", [b"", MUTATION], ids=["alone", "among others"])
def test_extras_of_a_wrong_length(fast: Decoder, opcode: int, length: int, surroundings: bytes) -> None:
    bad = request(opcode, vbucket=7, extras=bytes(length), key=b"\0key").encode()
    data = surroundings + bad + surroundings
    with pytest.raises(ProtocolError) as caught:
        fast(data, collections=True)
    assert (caught.value.opcode, caught.value.vbucket) == (opcode, 7)
    assert caught.value.offset == len(surroundings)
    with pytest.raises(ProtocolError):
        slow(data, collections=True)


@pytest.mark.parametrize("magic", [Magic.REQUEST, Magic.FLEX_REQUEST])
def test_a_key_longer_than_the_body(magic: int) -> None:
    bad = bytearray(request(Opcode.DCP_MUTATION, vbucket=7, extras=bytes(31), key=b"\0key").encode())
    bad[0] = magic
    bad[3] += 1
    data = MUTATION + bytes(bad) + MUTATION
    for decoder in (*FAST, slow):
        with pytest.raises(ProtocolError) as caught:
            decoder(data, collections=True)
        assert caught.value.offset == len(MUTATION)
        assert caught.value.opcode == Opcode.DCP_MUTATION


def test_framing_extras_longer_than_the_body() -> None:
    frame = Frame(Magic.FLEX_REQUEST, Opcode.DCP_DELETION, extras=bytes(18), framing_extras=b"\x22\0\5")
    bad = bytearray(frame.encode())
    for fast in FAST:
        assert len(fast(unified(bytes(bad)), collections=False)[0]) == 1
    bad[2] += 1
    for decoder in (*FAST, slow):
        with pytest.raises(ProtocolError):
            decoder(bytes(bad), collections=False)


@each_decoder
@pytest.mark.parametrize(
    "prefix",
    [
        *("", "80", "8080", "8000", "808000", "ffffffff7f", "ffffffff1f", "ffffffffff"),
        *("808080808001", "8080808000"),
    ],
)
def test_a_broken_collection_id(fast: Decoder, prefix: str) -> None:
    bad = request(
        Opcode.DCP_DELETION, vbucket=7, extras=bytes(18), key=bytes.fromhex(prefix), value=b"\x01\x01"
    ).encode()
    data = MUTATION + bad + MUTATION
    with pytest.raises(ProtocolError) as caught:
        fast(data, collections=True)
    assert (caught.value.opcode, caught.value.vbucket) == (Opcode.DCP_DELETION, 7)
    assert caught.value.offset == len(MUTATION)
    with pytest.raises(ProtocolError):
        slow(data, collections=True)
    data = unified(data)
    assert fast(data, collections=False) == slow(data, collections=False)


@each_decoder
def test_the_first_of_several_broken_collection_ids_is_named(fast: Decoder) -> None:
    def deletion(vbucket: int, key: str) -> bytes:
        return request(
            Opcode.DCP_DELETION, vbucket=vbucket, extras=bytes(18), key=bytes.fromhex(key)
        ).encode()

    # The first is found broken at its third byte, the last at its first.
    data = deletion(1, "6b6b") + deletion(2, "8080") + deletion(3, "8000") + deletion(4, "")
    with pytest.raises(ProtocolError) as caught:
        fast(data, collections=True)
    assert (caught.value.vbucket, caught.value.offset) == (2, 24 + 18 + 2)


@pytest.mark.parametrize("cid", [0, 8, 0x7F, 0x80, 0x3FFF, 0x4000, 0x8000, 0xCAFEF00D, 0xFFFFFFFF])
def test_collection_ids_of_every_length(cid: int) -> None:
    data = request(Opcode.DCP_DELETION, extras=bytes(18), key=encode_leb128(cid) + b"key").encode()
    block = block_of(MUTATION + data, collections=True)
    assert block.collection_id.tolist() == [0, cid]
    assert block.key(1) == b"key"


# --- the decoders and the oracle are one


def wire(stream: list[tuple[Frame, Item]]) -> bytes:
    return b"".join(frame.encode() for frame, _ in stream)


@pytest.mark.parametrize("collections", [False, True])
@given(data=st.data())
@settings(max_examples=80)
def test_whole_and_in_pieces(collections: bool, data: st.DataObject) -> None:
    stream = data.draw(streams(collections=collections))
    octets = wire(stream)
    points = data.draw(st.lists(st.integers(0, len(octets)), max_size=12))
    expected = [item for _, item in stream]
    for decoder in (slow, *FAST):
        assert decoder(octets, collections=collections) == (expected, len(octets))
        assert feed(decoder, cut(octets, points), collections=collections) == (expected, b"")


@pytest.mark.parametrize("collections", [False, True])
@given(data=st.data())
@settings(max_examples=80)
def test_with_a_tail(collections: bool, data: st.DataObject) -> None:
    stream = data.draw(streams(collections=collections, max_size=5).filter(bool))
    octets = wire(stream)
    last = stream[-1][0].encode()
    short = data.draw(st.integers(1, len(last)))
    expected = [item for _, item in stream[:-1]], len(octets) - len(last)
    for decoder in (slow, *FAST):
        assert decoder(octets[:-short], collections=collections) == expected


# --- damage


def understand(decoder: Callable[..., tuple[list[Item], int]]) -> Callable[..., tuple[list[Item], int]]:
    """Decode the messages inside the frames too: they may be refused, and nothing else."""

    def decode(data: bytes, **options: object) -> tuple[list[Item], int]:
        items, end = decoder(data, **options)
        for item in items:
            if isinstance(item, Frame) and not item.is_response:
                parse_message(item)
                if item.magic != Magic.SERVER_REQUEST:
                    parse_request(item)
        return items, end

    return decode


def same_outcome(data: bytes, *, collections: bool, max_body: int = MAX_BODY_LENGTH) -> None:
    """Both cores take the same, and refuse the same with the same words; the oracle knows of no streams."""
    found = [what_comes_of(decoder, data, collections=collections, max_body=max_body) for decoder in FAST]
    assert all(other == found[0] for other in found)
    if isinstance(found[0], str):
        assert "of no stream" in found[0] or outcome(slow, data, collections=collections) is ProtocolError
    for decoder in FAST:
        outcome(understand(decoder), data, collections=collections, max_body=max_body)


def what_comes_of(decoder: Decoder, data: bytes, **options: Any) -> tuple[list[Item], int] | str:
    try:
        return decoder(data, **options)
    except ProtocolError as exc:
        return f"{exc.message} {exc.opcode} {exc.vbucket} {exc.offset}"


@pytest.mark.parametrize("collections", [False, True])
@given(data=st.data())
@settings(max_examples=80)
def test_flipped_bytes(collections: bool, data: st.DataObject) -> None:
    stream = data.draw(streams(collections=collections, max_size=5).filter(bool))
    octets = bytearray(wire(stream))
    # Mostly in headers, extras and key: flips inside values change nothing.
    starts = [0]
    for frame, _ in stream[:-1]:
        starts.append(starts[-1] + len(frame))
    for _ in range(data.draw(st.integers(1, 3))):
        position = data.draw(st.sampled_from(starts)) + data.draw(st.integers(0, 70))
        octets[min(position, len(octets) - 1)] ^= data.draw(st.integers(1, 255))
    same_outcome(bytes(octets), collections=collections)


@pytest.mark.parametrize("collections", [False, True])
@given(data=st.data())
@settings(max_examples=60)
def test_missing_and_added_bytes(collections: bool, data: st.DataObject) -> None:
    octets = wire(data.draw(streams(collections=collections, max_size=4).filter(bool)))
    start, length = data.draw(st.integers(0, len(octets))), data.draw(st.integers(0, 40))
    added = data.draw(st.binary(max_size=30))
    same_outcome(octets[:start] + added + octets[start + length :], collections=collections)


@given(
    octets=st.binary(max_size=200), magic=st.sampled_from(Magic), opcode=st.sampled_from([0x57, 0x58, 0x59])
)
@settings(max_examples=80)
def test_noise(octets: bytes, magic: int, opcode: int) -> None:
    same_outcome(octets, collections=True)
    same_outcome(bytes([magic, opcode]) + octets, collections=True)


HEADER_DAMAGE = [
    pytest.param(at, octets, id=f"{name}={octets.hex()}")
    for name, at, damages in [
        ("magic", 0, ["00", "08", "18", "55", "81", "82", "83", "ff"]),
        ("opcode", 1, ["00", "56", "58", "59", "60", "ff"]),
        ("key", 2, ["0000", "0001", "0005", "0006", "00ff", "ffff", "ff00"]),
        ("extras", 4, ["00", "12", "14", "15", "1e", "20", "ff"]),
        ("body", 8, ["00000000", "0000001f", "00000023", "00000025", "01900000", "01900001", "ffffffff"]),
    ]
    for octets in map(bytes.fromhex, damages)
]


@pytest.mark.parametrize(("at", "octets"), HEADER_DAMAGE)
@pytest.mark.parametrize("collections", [False, True])
@pytest.mark.parametrize("behind", [b"", MUTATION], ids=["last", "followed"])
def test_damaged_headers(at: int, octets: bytes, collections: bool, behind: bytes) -> None:
    bad = bytearray(MUTATION)
    bad[at : at + len(octets)] = octets
    same_outcome(MUTATION + bytes(bad) + behind, collections=collections)


def test_a_body_of_four_gigabytes_is_refused_by_its_header() -> None:
    bad = MUTATION[:8] + b"\xff\xff\xff\xff" + MUTATION[12:24]
    for decoder in (*FAST, slow):
        with pytest.raises(ProtocolError, match="4294967295 bytes is over the limit") as caught:
            decoder(MUTATION + bad, collections=True)
        assert caught.value.offset == len(MUTATION)
        assert caught.value.opcode == Opcode.DCP_MUTATION


def test_the_limit_of_a_body_can_be_set() -> None:
    body = len(MUTATION) - 24
    for decoder in (*FAST, slow):
        assert len(decoder(MUTATION, collections=True, max_body=body)[0]) == 1
        with pytest.raises(ProtocolError, match="over the limit"):
            decoder(MUTATION, collections=True, max_body=body - 1)
