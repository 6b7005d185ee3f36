"""Hypothesis strategies of this folder: data messages with their meaning, and what surrounds them."""

from __future__ import annotations

import struct

from hypothesis import strategies as st

from cbframe.wire.constants import Magic, Opcode
from cbframe.wire.framing import Frame
from cbframe.wire.messages import encode_leb128

from .oracle import DataMessage
from .pipeline import OPAQUE, opaque_of

u8 = st.integers(0, 0xFF)
u16 = st.integers(0, 0xFFFF)
u32 = st.one_of(st.sampled_from([0, 1, 0x7F, 0x80, 0x3FFF, 0x4000, 0xFFFF_FFFF]), st.integers(0, 0xFFFF_FFFF))
u64 = st.one_of(st.sampled_from([0, 1, 2**63 - 1, 2**63, 2**64 - 1]), st.integers(0, 2**64 - 1))
keys = st.one_of(
    st.binary(min_size=1, max_size=12),
    st.builds(lambda byte, length: bytes([byte]) * length, u8, st.sampled_from([127, 128, 249, 250])),
)
values = st.one_of(
    st.just(b""),
    st.binary(max_size=40),
    # Values that look like messages, and long ones.
    st.just(bytes.fromhex("80570001 1f000000 00000020 00000000 0000000000000000".replace(" ", ""))),
    st.builds(lambda byte, length: bytes([byte]) * length, u8, st.sampled_from([255, 256, 65_535, 70_000])),
)
kinds = st.sampled_from(["mutation", "deletion v1", "deletion v2", "expiration"])


@st.composite
def data_messages(draw: st.DrawFn, *, collections: bool) -> tuple[Frame, DataMessage]:
    """A data message as a frame, and what it means."""
    kind = draw(kinds)
    seqno, rev_seqno, cas = draw(u64), draw(u64), draw(u64)
    flags = expiry = 0
    if kind == "mutation":
        opcode, flags, expiry = Opcode.DCP_MUTATION, draw(u32), draw(u32)
        extras = struct.pack(">QQIIIHB", seqno, rev_seqno, flags, expiry, draw(u32), 0, draw(u8))
    elif kind == "deletion v1":
        opcode = Opcode.DCP_DELETION
        extras = struct.pack(">QQH", seqno, rev_seqno, draw(u16))
    elif kind == "deletion v2":
        opcode, expiry = Opcode.DCP_DELETION, draw(u32)
        extras = struct.pack(">QQIB", seqno, rev_seqno, expiry, draw(u8))
    else:
        opcode, expiry = Opcode.DCP_EXPIRATION, draw(u32)
        extras = struct.pack(">QQI", seqno, rev_seqno, expiry)
    key, value = draw(keys), draw(values)
    collection_id = draw(u32) if collections else 0
    prefix = encode_leb128(collection_id) if collections else b""
    stream_id = draw(st.none() | u16)
    vbucket = draw(u16)
    frame = Frame(
        Magic.REQUEST if stream_id is None else Magic.FLEX_REQUEST,
        int(opcode),
        vbucket,
        opaque_of(vbucket),
        cas,
        draw(st.integers(0, 7)),
        extras,
        prefix + key,
        value,
        b"" if stream_id is None else b"\x22" + struct.pack(">H", stream_id),
    )
    message = DataMessage(
        frame.opcode,
        frame.datatype,
        frame.vbucket,
        frame.opaque,
        cas,
        seqno,
        rev_seqno,
        flags,
        expiry,
        collection_id,
        key,
        value,
    )
    return frame, message


@st.composite
def other_frames(draw: st.DrawFn) -> Frame:
    """Anything that is no data message, also answers and pushes whose opcode is that of one."""
    data_opcodes = [0x57, 0x58, 0x59]
    magic = draw(st.sampled_from(Magic))
    opcode = draw(st.sampled_from([*data_opcodes, 0x01, 0x53, 0x55, 0x56, 0x5C, 0x5F, 0x64, 0x65, 0xEE]))
    if magic in (Magic.REQUEST, Magic.FLEX_REQUEST) and opcode in data_opcodes:
        opcode = Opcode.DCP_NOOP
    flex = magic in (Magic.FLEX_REQUEST, Magic.FLEX_RESPONSE)
    return Frame(
        int(magic),
        int(opcode),
        draw(u16),
        draw(u32.filter(lambda opaque: not OPAQUE <= opaque < OPAQUE + (1 << 16))),
        draw(u64),
        draw(st.integers(0, 7)),
        draw(st.binary(max_size=52)),
        draw(st.binary(max_size=20)),
        draw(st.binary(max_size=60)),
        draw(st.binary(max_size=6)) if flex else b"",
    )


@st.composite
def streams(
    draw: st.DrawFn, *, collections: bool, max_size: int = 12
) -> list[tuple[Frame, DataMessage | Frame]]:
    """Messages as they arrive on one connection, each with what a decoder must make of it."""
    other = other_frames().map(lambda frame: (frame, frame))
    data = data_messages(collections=collections)
    return draw(st.lists(st.one_of(data, data, data, other), max_size=max_size))
