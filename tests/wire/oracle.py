"""The slow, obvious decoder of data messages: the oracle that the fast one is tested against."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from cbframe.errors import ProtocolError
from cbframe.wire.constants import DATA_OPCODES, MAX_BODY_LENGTH, Magic, Opcode
from cbframe.wire.framing import Frame, ReadableBuffer
from cbframe.wire.messages import split_key


@dataclass(frozen=True, slots=True)
class DataMessage:
    """One mutation, deletion or expiration; fields as in :class:`~cbframe.wire.blocks.DataBlock`."""

    opcode: int
    datatype: int
    vbucket: int
    opaque: int
    cas: int
    seqno: int
    rev_seqno: int
    flags: int
    expiry: int
    collection_id: int
    key: bytes
    value: bytes


def is_data(frame: Frame) -> bool:
    """Whether a frame carries a document or takes one away."""
    return frame.magic in (Magic.REQUEST, Magic.FLEX_REQUEST) and frame.opcode in DATA_OPCODES


def decode_frames(data: ReadableBuffer, *, max_body: int = MAX_BODY_LENGTH) -> tuple[list[Frame], int]:
    """All whole frames, and the offset of the first byte that belongs to none."""
    frames = []
    offset = 0
    while (parsed := Frame.parse(data, offset, max_body=max_body)) is not None:
        frame, offset = parsed
        frames.append(frame)
    return frames, offset


def decode_data(frame: Frame, *, collections: bool) -> DataMessage:
    """Read a data message field by field."""
    flags = expiry = 0
    extras = frame.extras
    try:
        if frame.opcode == Opcode.DCP_MUTATION:
            seqno, rev_seqno, flags, expiry, _lock, _nmeta, _nru = struct.unpack(">QQIIIHB", extras)
        elif frame.opcode == Opcode.DCP_EXPIRATION:
            seqno, rev_seqno, expiry = struct.unpack(">QQI", extras)
        elif len(extras) == 18:
            seqno, rev_seqno, _nmeta = struct.unpack(">QQH", extras)
        else:
            seqno, rev_seqno, expiry, _unused = struct.unpack(">QQIB", extras)
    except struct.error as exc:
        raise ProtocolError(
            f"extras of {len(extras)} bytes", opcode=frame.opcode, vbucket=frame.vbucket
        ) from exc
    collection_id, key = split_key(frame.key) if collections else (0, frame.key)
    return DataMessage(
        frame.opcode,
        frame.datatype,
        frame.vbucket,
        frame.opaque,
        frame.cas,
        seqno,
        rev_seqno,
        flags,
        expiry,
        collection_id,
        key,
        frame.value,
    )
