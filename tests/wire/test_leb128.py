from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbframe.errors import ProtocolError
from cbframe.wire import leb128

VECTORS = {
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


@pytest.mark.parametrize(("number", "text"), VECTORS.items())
def test_vectors(number: int, text: str) -> None:
    data = bytes.fromhex(text)
    assert leb128.encode(number) == data
    assert leb128.decode(data) == (number, len(data))
    assert leb128.decode(b"\xff\xff" + data + b"\xff", 2) == (number, 2 + len(data))
    assert leb128.split_key(data + b"key") == (number, b"key")


@given(number=st.integers(0, 0xFFFF_FFFF), behind=st.binary(max_size=3))
def test_every_number_survives(number: int, behind: bytes) -> None:
    data = leb128.encode(number)
    assert 1 <= len(data) <= leb128.MAX_LENGTH
    for kind in (bytes, bytearray, memoryview):
        assert leb128.decode(kind(data + behind)) == (number, len(data))


@pytest.mark.parametrize("number", [-1, 2**32, 2**64])
def test_only_32_bits_can_be_encoded(number: int) -> None:
    with pytest.raises(ValueError, match="no unsigned 32-bit number"):
        leb128.encode(number)


@pytest.mark.parametrize("text", ["", "80", "ff", "8080", "ffffffff"])
def test_bytes_that_end_too_early(text: str) -> None:
    with pytest.raises(ProtocolError, match="ends in the middle") as caught:
        leb128.decode(b"ab" + bytes.fromhex(text), 2)
    assert caught.value.offset == 2


@pytest.mark.parametrize(
    "text", ["8000", "ff00", "808000", "8080808000", "ffffffff1f", "ffffffff7f", "ffffffff8f00", "8080808080"]
)
def test_what_is_not_canonical_or_too_big(text: str) -> None:
    with pytest.raises(ProtocolError, match="no canonical 32-bit"):
        leb128.decode(bytes.fromhex(text))


@given(data=st.binary(max_size=8))
def test_anything_decodes_to_its_own_encoding_or_is_refused(data: bytes) -> None:
    try:
        number, end = leb128.decode(data)
    except ProtocolError:
        return
    assert leb128.encode(number) == data[:end]


def test_a_key_may_be_empty_behind_its_prefix() -> None:
    assert leb128.split_key(b"\x08") == (8, b"")
