from __future__ import annotations

import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbframe.errors import ProtocolError
from cbframe.wire.messages import (
    MAX_LEB128_LENGTH,
    XattrSplit,
    body_offset,
    decode_leb128,
    encode_leb128,
    join_xattrs,
    split_key,
    split_xattrs,
    vbucket_of,
)

from .golden import NAMES, load
from .vectors import octets

COLLECTION_IDS = {
    0: "00",
    8: "08",
    0x7F: "7f",
    0x80: "8001",
    0x22B: "ab04",
    0x555: "d50a",
    0x8000: "808002",
    0xCAFEF00D: "8de0fbd70c",
    0xFFFFFFFF: "ffffffff0f",
}


@pytest.mark.parametrize(("number", "text"), COLLECTION_IDS.items())
def test_vectors_of_leb128(number: int, text: str) -> None:
    data = bytes.fromhex(text)
    assert encode_leb128(number) == data
    assert decode_leb128(data) == (number, len(data))
    assert decode_leb128(b"\xff\xff" + data + b"\xff", 2) == (number, 2 + len(data))
    assert split_key(data + b"key") == (number, b"key")


@given(number=st.integers(0, 0xFFFF_FFFF), behind=st.binary(max_size=3))
def test_every_number_survives(number: int, behind: bytes) -> None:
    data = encode_leb128(number)
    assert 1 <= len(data) <= MAX_LEB128_LENGTH
    for kind in (bytes, bytearray, memoryview):
        assert decode_leb128(kind(data + behind)) == (number, len(data))


@pytest.mark.parametrize("number", [-1, 2**32, 2**64])
def test_only_32_bits_can_be_encoded(number: int) -> None:
    with pytest.raises(ValueError, match="no unsigned 32-bit number"):
        encode_leb128(number)


@pytest.mark.parametrize("text", ["", "80", "ff", "8080", "ffffffff"])
def test_bytes_that_end_too_early(text: str) -> None:
    with pytest.raises(ProtocolError, match="ends in the middle") as caught:
        decode_leb128(b"ab" + bytes.fromhex(text), 2)
    assert caught.value.offset == 2


@pytest.mark.parametrize(
    "text", ["8000", "ff00", "808000", "8080808000", "ffffffff1f", "ffffffff7f", "ffffffff8f00", "8080808080"]
)
def test_what_is_not_canonical_or_too_big(text: str) -> None:
    with pytest.raises(ProtocolError, match="no canonical 32-bit"):
        decode_leb128(bytes.fromhex(text))


@given(data=st.binary(max_size=8))
def test_anything_decodes_to_its_own_encoding_or_is_refused(data: bytes) -> None:
    try:
        number, end = decode_leb128(data)
    except ProtocolError:
        return
    assert encode_leb128(number) == data[:end]


def test_a_key_may_be_empty_behind_its_prefix() -> None:
    assert split_key(b"\x08") == (8, b"")


COUNTS = (1024, 128, 64, 256, 48)
KEYS = [
    ("", 0x00000000, (0, 0, 0, 0, 0)),
    ("hello", 0x3610A686, (528, 16, 16, 16, 16)),
    ("foo", 0x8C736521, (115, 115, 51, 115, 19)),
    ("k0", 0xE109903F, (265, 9, 9, 9, 25)),
    ("k1", 0x960EA0A9, (526, 14, 14, 14, 30)),
    ("k2", 0x0F07F113, (775, 7, 7, 7, 7)),
    ("k3", 0x7800C185, (0, 0, 0, 0, 0)),
    ("k4", 0xE6645426, (612, 100, 36, 100, 4)),
    ("k5", 0x916364B0, (355, 99, 35, 99, 35)),
    ("airline_10", 0x0D694EA7, (361, 105, 41, 105, 25)),
    ("user::1", 0x63E571B2, (997, 101, 37, 229, 37)),
    ("été", 0x44D16CD4, (209, 81, 17, 209, 1)),
    ("日本", 0xC7B7CDCC, (951, 55, 55, 183, 23)),
]


@pytest.mark.parametrize(("key", "checksum", "expected"), KEYS)
def test_vbuckets_of_keys(key: str, checksum: int, expected: tuple[int, ...]) -> None:
    assert zlib.crc32(key.encode()) == checksum
    assert tuple(vbucket_of(key.encode(), count) for count in COUNTS) == expected


@given(key=st.binary(max_size=250), count=st.integers(1, 1024))
def test_in_range(key: bytes, count: int) -> None:
    assert 0 <= vbucket_of(key, count) < count


def test_golden_keys(golden_keys: list[tuple[int, bytes]]) -> None:
    """A real node with 64 vbuckets was asked by the SDK for these."""
    assert len(golden_keys) > 500
    assert all(vbucket_of(key, 64) == vbucket for vbucket, key in golden_keys)


@pytest.fixture
def golden_keys() -> list[tuple[int, bytes]]:
    return [
        (message["vb"], message["key"].encode())
        for name in NAMES
        if name.startswith("sdk_")
        for message in load(name, "c2s").messages
        if "collection_id" in message.get("fields", {}) and not message["key"].startswith("hex:")
    ]


XATTRS = octets("0000001a 0000000e 5f73796e63 00 7b2261223a317d 00 00000004 75 00 32 00 7b2264223a337d")


def pair(octets_: bytes) -> bytes:
    return struct.pack(">I", len(octets_)) + octets_


def section(*pairs: bytes) -> bytes:
    return pair(b"".join(pairs))


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_vector(kind: type) -> None:
    expected = XattrSplit({"_sync": b'{"a":1}', "u": b"2"}, b'{"d":3}')
    assert split_xattrs(kind(XATTRS)) == expected
    assert body_offset(kind(XATTRS)) == 0x1A + 4
    assert join_xattrs(expected.xattrs, expected.body) == XATTRS
    assert list(split_xattrs(XATTRS).xattrs) == ["_sync", "u"]


def test_no_attributes_and_no_body() -> None:
    assert split_xattrs(bytes(4)) == ({}, b"")
    assert split_xattrs(bytes(4) + b"{}") == ({}, b"{}")
    assert join_xattrs({}, b"") == bytes(4)
    assert split_xattrs(section(pair(b"a\0\0"))) == ({"a": b""}, b"")


names = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=16)
texts = st.binary(max_size=30).filter(lambda octets_: b"\0" not in octets_)


@given(xattrs=st.dictionaries(names, texts, max_size=5), body=st.binary(max_size=40))
def test_every_section_survives(xattrs: dict[str, bytes], body: bytes) -> None:
    value = join_xattrs(xattrs, body)
    assert split_xattrs(value) == (xattrs, body)
    assert body_offset(value) == len(value) - len(body)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (b"", "needs 4 bytes, the value has 0"),
        (bytes(3), "needs 4 bytes, the value has 3"),
        (octets("00000001"), "of 5 bytes is longer than its value of 4"),
        (octets("ffffffff") + bytes(40), "is longer than its value"),
        (pair(b"\0\0\0"), "middle of its length"),
        (section(pair(b"a\0b\0"), b"\0\0"), "middle of its length"),
        (pair(octets("00000005") + b"a\0b\0"), "does not fit its section"),
        (pair(octets("ffffffff") + b"a\0b\0"), "does not fit its section"),
        (pair(octets("00000005") + b"a\0b\0") + b"\0body", "does not fit its section"),
        (section(pair(b"")), "does not fit its section"),
        (section(pair(b"\0")), "does not fit its section"),
        (section(pair(b"a\0b")), "does not fit its section"),
        (section(pair(b"ab\0")), "not NAME NUL VALUE NUL"),
        (section(pair(b"a\0b\0c\0")), "not NAME NUL VALUE NUL"),
        (section(pair(b"\xff\xfe\0b\0")), "not UTF-8"),
    ],
)
def test_what_is_refused(value: bytes, message: str) -> None:
    with pytest.raises(ProtocolError, match=message):
        split_xattrs(value)


def test_body_offset_checks_only_the_length() -> None:
    assert body_offset(section(b"garbage") + b"{}") == 11
    for value in (b"", bytes(3), octets("00000001"), octets("ffffffff 00")):
        with pytest.raises(ProtocolError):
            body_offset(value)
