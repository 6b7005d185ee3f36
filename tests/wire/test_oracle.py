"""The oracle itself, against the protocol's own words."""

from __future__ import annotations

import pytest
from hypothesis import given

from cbframe.errors import ProtocolError
from cbframe.wire.constants import DATA_OPCODES, Magic, Opcode
from cbframe.wire.framing import Frame, request

from .oracle import DataMessage, decode_data, decode_frames, is_data
from .strategies import data_messages
from .vectors import DELETION_V1, MUTATION, NOOP


def test_frames_and_tail() -> None:
    frames, end = decode_frames(MUTATION + NOOP + DELETION_V1[:-1])
    assert [frame.opcode for frame in frames] == [Opcode.DCP_MUTATION, Opcode.DCP_NOOP]
    assert end == len(MUTATION) + len(NOOP)
    assert decode_frames(b"") == ([], 0)


def test_which_frames_carry_data() -> None:
    for magic in Magic:
        for opcode in range(256):
            expected = magic in (Magic.REQUEST, Magic.FLEX_REQUEST) and opcode in DATA_OPCODES
            assert is_data(Frame(magic, opcode)) is expected


def test_a_mutation_field_by_field() -> None:
    frame = request(
        Opcode.DCP_MUTATION,
        vbucket=1,
        opaque=2,
        cas=3,
        datatype=4,
        extras=b"".join(number.to_bytes(size, "big") for number, size in [(5, 8), (6, 8), (7, 4), (8, 4)])
        + (9).to_bytes(4, "big")
        + bytes(3),
        key=b"\x0akey",
        value=b"value",
    )
    assert decode_data(frame, collections=True) == DataMessage(
        opcode=0x57,
        vbucket=1,
        opaque=2,
        cas=3,
        datatype=4,
        seqno=5,
        rev_seqno=6,
        flags=7,
        expiry=8,
        collection_id=10,
        key=b"key",
        value=b"value",
    )


@given(pair=data_messages(collections=True))
def test_data_messages_mean_what_was_put_in(pair: tuple[Frame, DataMessage]) -> None:
    frame, message = pair
    assert decode_data(frame, collections=True) == message
    assert decode_data(frame, collections=False).key == frame.key


def test_what_is_refused() -> None:
    for opcode in DATA_OPCODES:
        with pytest.raises(ProtocolError, match="extras of 3 bytes") as caught:
            decode_data(request(opcode, vbucket=9, extras=b"abc", key=b"\0k"), collections=True)
        assert (caught.value.opcode, caught.value.vbucket) == (opcode, 9)
    with pytest.raises(ProtocolError, match="collection id"):
        decode_data(request(Opcode.DCP_DELETION, extras=bytes(18)), collections=True)
