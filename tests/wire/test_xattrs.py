from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbframe.errors import ProtocolError
from cbframe.wire.xattrs import XattrSplit, body_offset, join_xattrs, split_xattrs

from .vectors import octets

VECTOR = octets("0000001a 0000000e 5f73796e63 00 7b2261223a317d 00 00000004 75 00 32 00 7b2264223a337d")


def pair(octets_: bytes) -> bytes:
    return struct.pack(">I", len(octets_)) + octets_


def section(*pairs: bytes) -> bytes:
    return pair(b"".join(pairs))


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_vector(kind: type) -> None:
    expected = XattrSplit({"_sync": b'{"a":1}', "u": b"2"}, b'{"d":3}')
    assert split_xattrs(kind(VECTOR)) == expected
    assert body_offset(kind(VECTOR)) == 0x1A + 4
    assert join_xattrs(expected.xattrs, expected.body) == VECTOR
    assert list(split_xattrs(VECTOR).xattrs) == ["_sync", "u"]


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


@given(value=st.binary(max_size=60))
def test_noise_is_split_or_refused(value: bytes) -> None:
    check_noise(value)


@given(position=st.integers(0, len(VECTOR) - 1), flip=st.integers(1, 255), missing=st.integers(0, 20))
def test_damage_is_split_or_refused(position: int, flip: int, missing: int) -> None:
    damaged = bytearray(VECTOR)
    damaged[position] ^= flip
    check_noise(bytes(damaged[: len(damaged) - missing]))


def check_noise(value: bytes) -> None:
    try:
        xattrs, body = split_xattrs(value)
    except ProtocolError as error:
        assert error.permanent is False  # noqa: PT017
    else:
        assert value.endswith(body)
        assert len(body) == len(value) - body_offset(value)
        assert all(b"\0" not in text for text in xattrs.values())
