from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbframe.errors import ProtocolError
from cbframe.wire.constants import MAX_BODY_LENGTH, Magic, Opcode
from cbframe.wire.framing import Frame, parse_header, request, response

from .strategies import streams
from .vectors import (
    ALL,
    MUTATION,
    NOOP,
    NOOP_REPLY,
    SET_FLEX,
    STREAM_END_SID,
    STREAM_REQ_ROLLBACK,
    frame_of,
    octets,
)


@pytest.mark.parametrize("data", ALL.values(), ids=ALL.keys())
@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_vectors_come_back_as_they_were(data: bytes, kind: type) -> None:
    for offset in (0, 5):
        parsed = Frame.parse(kind(b"x" * offset + data + b"\x80"), offset)
        assert parsed is not None
        frame, end = parsed
        assert end == offset + len(data) == offset + len(frame)
        assert frame.encode() == data
        parts = (frame.extras, frame.key, frame.value, frame.framing_extras)
        assert [type(part) for part in parts] == [bytes] * 4


@pytest.mark.parametrize("data", ALL.values(), ids=ALL.keys())
def test_incomplete_frames_wait(data: bytes) -> None:
    for stop in range(len(data)):
        assert Frame.parse(data[:stop]) is None
        assert Frame.parse(NOOP + data[:stop], len(NOOP)) is None


def test_parts_of_a_mutation() -> None:
    assert frame_of(MUTATION) == Frame(
        Magic.REQUEST, Opcode.DCP_MUTATION, 0x102, 0x102, 0x18, 1, MUTATION[24:55], b"\0k", b"{}"
    )


def test_parts_of_a_flexible_frame() -> None:
    frame = frame_of(SET_FLEX)
    assert frame.framing_extras == octets("5013012328")
    assert frame.extras == octets("0200000000000000")
    assert (frame.key, frame.value, frame.vbucket, frame.datatype) == (b"\0k", b"1", 3, 1)
    frame = frame_of(STREAM_END_SID)
    assert (frame.framing_extras, frame.extras) == (octets("220005"), bytes(4))


def test_header() -> None:
    header = parse_header(b"..." + MUTATION, 3)
    assert (header.key_length, header.extras_length, header.body_length) == (2, 31, 35)
    assert (header.framing_length, header.body_length) == (0, 35)
    header = parse_header(SET_FLEX)
    assert (header.framing_length, header.extras_length, header.key_length) == (5, 8, 2)
    assert header.body_length == 16


def test_status_is_that_of_responses_only() -> None:
    frame = frame_of(STREAM_REQ_ROLLBACK)
    assert (frame.status, frame.is_response) == (0x23, True)
    for magic in (Magic.RESPONSE, Magic.FLEX_RESPONSE, Magic.SERVER_RESPONSE):
        assert Frame(magic, 0, 7).status == 7
        assert Frame(magic, 0, 7).is_response
    for magic in (Magic.REQUEST, Magic.FLEX_REQUEST, Magic.SERVER_REQUEST):
        assert not Frame(magic, 0, 7).is_response
        with pytest.raises(ValueError, match="has no status"):
            _ = Frame(magic, 0, 7).status


def test_noop_and_its_reply() -> None:
    assert request(Opcode.DCP_NOOP, opaque=10_000_001).encode() == NOOP
    assert response(Opcode.DCP_NOOP, opaque=10_000_001).encode() == NOOP_REPLY


@pytest.mark.parametrize("byte", sorted(set(range(256)) - set(Magic)))
def test_a_bad_magic_is_refused_by_its_first_byte(byte: int) -> None:
    for length in (1, 10, 24, 60):
        with pytest.raises(ProtocolError, match=f"0x{byte:02x} is no magic byte") as caught:
            Frame.parse(NOOP + bytes([byte]) * length, len(NOOP))
        assert caught.value.offset == len(NOOP)


def test_a_body_over_the_limit() -> None:
    header = bytearray(NOOP)
    header[8:12] = (MAX_BODY_LENGTH + 1).to_bytes(4, "big")
    with pytest.raises(ProtocolError, match="over the limit of 26214400"):
        Frame.parse(header)
    assert Frame.parse(header, max_body=MAX_BODY_LENGTH + 1) is None
    header[8:12] = MAX_BODY_LENGTH.to_bytes(4, "big")
    assert Frame.parse(header) is None


@pytest.mark.parametrize(
    ("at", "octet", "need"), [(2, 0xFF, 0xFF02 + 31), (3, 5, 36), (4, 34, 36)], ids=["key", "key+3", "extras"]
)
def test_parts_that_do_not_fit_the_body(at: int, octet: int, need: int) -> None:
    bad = bytearray(MUTATION)
    bad[at] = octet
    for stop in (24, len(bad)):
        with pytest.raises(ProtocolError, match=f"need {need} bytes, the body has 35") as caught:
            Frame.parse(bad[:stop])
        assert caught.value.opcode == Opcode.DCP_MUTATION
        assert caught.value.offset == 0


def test_framing_extras_that_do_not_fit_the_body() -> None:
    bad = bytearray(SET_FLEX)
    bad[2] = 7
    with pytest.raises(ProtocolError, match="need 17 bytes, the body has 16"):
        Frame.parse(bad)
    bad[2] = 6  # takes the value's byte
    assert Frame.parse(bad) is not None


def test_what_cannot_be_encoded() -> None:
    with pytest.raises(ValueError, match="need a flexible magic"):
        Frame(Magic.REQUEST, 0, framing_extras=b"\0").encode()
    with pytest.raises(ValueError, match="at most 255 bytes"):
        Frame(Magic.FLEX_REQUEST, 0, key=bytes(256)).encode()
    with pytest.raises(ValueError, match="at most 255 bytes"):
        Frame(Magic.FLEX_RESPONSE, 0, framing_extras=bytes(256)).encode()
    assert len(Frame(Magic.FLEX_REQUEST, 0, key=bytes(255), framing_extras=bytes(255)).encode()) == 24 + 510


def test_repr_shows_neither_key_nor_value() -> None:
    frame = request(Opcode.SASL_AUTH, key=b"user-key", value=b"\0user\0hunter2", extras=b"extra")
    text = repr(frame)
    assert "hunter2" not in text
    assert "user" not in text
    assert "opcode=0x21" in text
    assert f"{len(frame)} bytes" in text


@given(stream=streams(collections=True, max_size=6), offset=st.integers(0, 3))
def test_any_frame_survives_the_wire(stream: list[tuple[Frame, object]], offset: int) -> None:
    data = bytes(offset) + b"".join(frame.encode() for frame, _ in stream)
    for frame, _ in stream:
        assert Frame.parse(data, offset) == (frame, offset + len(frame))
        offset += len(frame)
    assert Frame.parse(data, offset) is None
