"""Extended attributes, for all rows at once and as the plain decoder reads them one by one."""

from __future__ import annotations

import struct

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cbframe.arrow.xattrs import XATTRS_TYPE, split_sections
from cbframe.errors import ProtocolError
from cbframe.wire.xattrs import join_xattrs, split_xattrs

VECTOR = bytes.fromhex("0000001a0000000e5f73796e63007b2261223a317d00000000047500320" + "07b2264223a337d")
Rows = list[tuple[bytes, dict[str, str]]]


def split(values: list[bytes], which: list[bool] | None = None) -> Rows:
    mask = np.array([True] * len(values) if which is None else which, bool)
    bodies, xattrs = split_sections(
        pa.array(values, pa.binary()), mask, np.arange(100, 100 + len(values), dtype=np.uint16)
    )
    bodies.validate(full=True)
    xattrs.validate(full=True)
    assert xattrs.type == XATTRS_TYPE
    return [(body, dict(pairs)) for body, pairs in zip(bodies.to_pylist(), xattrs.to_pylist(), strict=True)]


def test_vector() -> None:
    assert split([VECTOR]) == [(b'{"d":3}', {"_sync": '{"a":1}', "u": "2"})]


def test_none_at_all() -> None:
    assert split([]) == []
    assert split([b"ab", b""], [False, False]) == [(b"ab", {}), (b"", {})]
    assert split([bytes(4), bytes(4) + b"x"]) == [(b"", {}), (b"x", {})]


names = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=16)
texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=30)
sections = st.dictionaries(names, texts, max_size=5)


@given(rows=st.lists(st.tuples(st.binary(max_size=40), st.none() | sections), max_size=12))
def test_as_they_were_joined(rows: list[tuple[bytes, dict[str, str] | None]]) -> None:
    values = [
        body if section is None else join_xattrs({k: v.encode() for k, v in section.items()}, body)
        for body, section in rows
    ]
    found = split(values, [section is not None for _, section in rows])
    assert found == [(body, section or {}) for body, section in rows]


def test_slices_of_arrays() -> None:
    values = pa.array([b"first", VECTOR, b"second", VECTOR + b"x", b"last"], pa.binary()).slice(1, 3)
    bodies, xattrs = split_sections(values, np.array([True, False, True]), np.zeros(3, np.uint16))
    assert bodies.to_pylist() == [b'{"d":3}', b"second", b'{"d":3}x']
    assert [len(pairs) for pairs in xattrs.to_pylist()] == [2, 0, 2]


def section(*pairs: bytes) -> bytes:
    joined = b"".join(struct.pack(">I", len(pair)) + pair for pair in pairs)
    return struct.pack(">I", len(joined)) + joined


@pytest.mark.parametrize(
    "value",
    [
        b"",
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
    assert caught.value.vbucket == 101


@settings(max_examples=500)
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
