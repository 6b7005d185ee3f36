from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbframe.errors import ProtocolError
from cbframe.wire.constants import DATA_OPCODES, MAX_BODY_LENGTH, Magic
from cbframe.wire.frame import Frame
from cbframe.wire.index import FrameIndex, index_frames
from cbframe.wire.reference import decode_frames, is_data

from .strategies import streams
from .vectors import DELETION_V2, MUTATION, NOOP, NOOP_REPLY, STREAM_END


def index_of(data: bytes, **options: int) -> FrameIndex:
    return index_frames(bytearray(data), len(data), **options)


def test_nothing() -> None:
    index = index_of(b"")
    assert index.bounds.tolist() == [0]
    assert index.is_data.tolist() == []


def test_bounds_and_kinds() -> None:
    parts = [NOOP, MUTATION, DELETION_V2, STREAM_END, NOOP_REPLY, MUTATION]
    index = index_of(b"".join(parts))
    assert np.diff(index.bounds).tolist() == [len(part) for part in parts]
    assert index.is_data.tolist() == [False, True, True, False, False, True]
    assert (index.bounds.dtype, index.is_data.dtype) == (np.int64, np.bool_)


def test_nothing_is_read_behind_the_stop() -> None:
    buffer = bytearray(MUTATION + MUTATION[:30] + b"\xff" * 100)
    for stop in range(len(MUTATION), len(MUTATION) + 30):
        index = index_frames(buffer, stop)
        assert index.bounds.tolist() == [0, len(MUTATION)]


@pytest.mark.parametrize("magic", Magic)
@pytest.mark.parametrize("opcode", DATA_OPCODES)
def test_only_requests_carry_data(magic: int, opcode: int) -> None:
    """A server push and an answer may have the opcode of a mutation; they are none."""
    index = index_of(Frame(magic, opcode).encode())
    assert index.is_data.tolist() == [magic in (Magic.REQUEST, Magic.FLEX_REQUEST)]


@pytest.mark.parametrize("opcode", [code for code in range(256) if code not in DATA_OPCODES])
def test_other_opcodes_are_no_data(opcode: int) -> None:
    assert not index_of(Frame(Magic.REQUEST, opcode).encode()).is_data.any()


@pytest.mark.parametrize("magic", sorted(set(range(256)) - set(Magic)))
def test_a_byte_that_is_no_magic(magic: int) -> None:
    for tail in (b"", bytes(10), bytes(23), bytes(200)):
        with pytest.raises(ProtocolError, match=f"0x{magic:02x} is no magic byte") as caught:
            index_of(STREAM_END + bytes([magic]) + tail)
        assert caught.value.offset == len(STREAM_END)
        assert "data service" in str(caught.value)


def test_the_first_bad_byte_is_the_one_named() -> None:
    with pytest.raises(ProtocolError, match="no magic") as caught:
        index_of(NOOP + b"\x55" + bytes(23) + NOOP + b"\x66")
    assert caught.value.offset == 24


def test_a_body_over_the_limit_is_refused_by_its_header() -> None:
    def header(body: int) -> bytes:
        return MUTATION[:8] + body.to_bytes(4, "big") + MUTATION[12:24]

    assert index_of(NOOP + header(MAX_BODY_LENGTH)).bounds.tolist() == [0, 24]
    for body in (MAX_BODY_LENGTH + 1, 2**31 - 1, 2**31, 2**32 - 1):
        with pytest.raises(ProtocolError, match=f"{body} bytes is over the limit") as caught:
            index_of(NOOP + header(body))
        assert (caught.value.opcode, caught.value.offset) == (0x57, 24)
        # Without its last byte the header says nothing yet.
        assert index_of(NOOP + header(body)[:-1]).bounds.tolist() == [0, 24]


@pytest.mark.parametrize("damage", ["key", "extras", "framing"])
def test_an_incomplete_frame_whose_parts_do_not_fit_is_refused_by_its_header(damage: str) -> None:
    """As :meth:`Frame.parse` does: nothing waits for a body that cannot be read."""
    header = bytearray(MUTATION[:24])
    if damage == "key":
        header[2] = 0xFF
    elif damage == "extras":
        header[4] = 0xFF
    else:
        header[0], header[2] = Magic.FLEX_REQUEST, 0xFF
    for data in (bytes(header), bytes(header) + MUTATION[24:-1]):
        with pytest.raises(ProtocolError) as caught:
            decode_frames(NOOP + data)
        assert caught.value.offset == 24
        with pytest.raises(ProtocolError) as caught:
            index_of(NOOP + data)
        assert (caught.value.opcode, caught.value.offset) == (0x57, 24)


def test_errors_come_from_the_first_bad_frame_of_a_kind() -> None:
    with pytest.raises(ProtocolError) as caught:
        index_of(NOOP + b"\x55" + bytes(7) + b"\xff" * 16)
    assert caught.value.offset == 24
    assert caught.value.opcode is None


@given(stream=streams(collections=True), extra=st.integers(0, 80))
def test_it_finds_what_the_plain_way_finds(stream: list[tuple[Frame, object]], extra: int) -> None:
    data = b"".join(frame.encode() for frame, _ in stream)
    data = data[: len(data) - min(extra, len(data))]
    frames, end = decode_frames(data)
    index = index_of(data)
    assert np.diff(index.bounds).tolist() == [len(frame) for frame in frames]
    assert index.is_data.tolist() == [is_data(frame) for frame in frames]
    assert index.bounds[-1] == end
