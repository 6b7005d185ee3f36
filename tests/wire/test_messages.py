from __future__ import annotations

import struct
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbframe.errors import ProtocolError
from cbframe.wire.constants import FAILOVER_LOG_MAX_ENTRIES, Opcode, StreamEndReason, SystemEventId
from cbframe.wire.framing import Frame, request
from cbframe.wire.messages import (
    Abort,
    Commit,
    FailoverEntry,
    Observed,
    ObserveSeqno,
    OsoSnapshot,
    Prepare,
    SeqnoAdvanced,
    ServerMessage,
    SnapshotMarker,
    StreamEnd,
    SystemEvent,
    Unknown,
    encode_failover_log,
    encode_vbucket_seqnos,
    parse_failover_log,
    parse_message,
    parse_rollback_seqno,
    parse_vbucket_seqnos,
)

from .strategies import u16, u32, u64
from .vectors import STREAM_END_SID, octets

VB = 7
Sendable = SnapshotMarker | StreamEnd | SeqnoAdvanced | OsoSnapshot


def frame_of(data: bytes) -> Frame:
    parsed = Frame.parse(data)
    assert parsed is not None
    assert parsed[1] == len(data)
    return parsed[0]


seqnos = st.tuples(u64, u64).map(sorted)
known: st.SearchStrategy[Sendable] = st.one_of(
    st.builds(lambda vb, a, b, flags: SnapshotMarker(vb, min(a, b), max(a, b), flags), u16, u64, u64, u32),
    st.builds(
        lambda vb, ab, flags, v, m, h: SnapshotMarker(vb, *ab, flags, v, m, h),
        u16,
        seqnos,
        u32,
        st.sampled_from(["v2.0", "v2.1"]),
        u64,
        u64,
    ),
    st.builds(
        lambda vb, ab, flags, *more: SnapshotMarker(vb, *ab, flags, "v2.2", *more),
        u16,
        seqnos,
        u32,
        u64,
        u64,
        u64,
        u64,
    ),
    st.builds(StreamEnd, u16, u32),
    st.builds(SeqnoAdvanced, u16, u64),
    st.builds(OsoSnapshot, u16, u32),
)


@given(message=known, opaque=u32, sid=st.none() | u16)
def test_every_message_survives_the_wire(message: Sendable, opaque: int, sid: int | None) -> None:
    data = replace(message, sid=sid).frame(opaque).encode()
    frame = frame_of(data)
    assert (frame.opaque, frame.sid) == (opaque, sid)
    decoded = parse_message(frame)
    assert decoded == message
    assert isinstance(decoded, Sendable)
    assert decoded.sid == sid
    assert decoded.frame(opaque).encode() == data


def test_framing_extras_that_name_a_stream_or_none() -> None:
    assert StreamEnd(3, 0, sid=5).frame(9).encode() == STREAM_END_SID
    for framing in (b"", b"\x22", b"\x22\0", b"\x21\5", b"\x12\0\5", b"\x50"):
        frame = replace(frame_of(STREAM_END_SID), framing_extras=framing)
        assert frame.sid is None
        assert parse_message(frame) == StreamEnd(3, StreamEndReason.OK)


# --- snapshot markers


def marker(extras: bytes, value: bytes = b"") -> ServerMessage:
    return parse_message(request(Opcode.DCP_SNAPSHOT_MARKER, vbucket=VB, extras=extras, value=value))


def test_marker_v20_and_v21() -> None:
    value = struct.pack(">QQIQQ", 3, 9, 0x2, 8, 5)
    assert marker(b"\0", value) == SnapshotMarker(VB, 3, 9, 2, "v2.0", 8, 5)
    # 2.1 was withdrawn: its timestamp is ignored.
    assert marker(b"\1", value + bytes(8)) == SnapshotMarker(VB, 3, 9, 2, "v2.1", 8, 5)


def test_marker_keeps_flags_unknown_today() -> None:
    assert marker(struct.pack(">QQI", 1, 1, 0x8000_0005)) == SnapshotMarker(VB, 1, 1, 0x8000_0005)


def test_marker_sizes_that_cannot_be() -> None:
    good = {(20, None)} | {(1, version, size) for version, size in [(0, 36), (1, 44), (2, 52)]}
    for length in [*range(24), 36, 255]:
        if (length, None) not in good and length != 1:
            with pytest.raises(ProtocolError, match=f"with {length} bytes of extras") as caught:
                marker(bytes(length))
            assert (caught.value.opcode, caught.value.vbucket) == (Opcode.DCP_SNAPSHOT_MARKER, VB)
    for version in (0, 1, 2, 3, 255):
        for size in range(61):
            if (1, version, size) in good:
                assert isinstance(marker(bytes([version]), bytes(size)), SnapshotMarker)
            else:
                with pytest.raises(ProtocolError, match=f"a value of {size}"):
                    marker(bytes([version]), bytes(size))


def test_a_snapshot_that_ends_before_it_starts() -> None:
    for extras, value in [
        (struct.pack(">QQI", 9, 8, 1), b""),
        (b"\0", struct.pack(">QQIQQ", 9, 8, 1, 0, 0)),
        (b"\2", struct.pack(">QQIQQQQ", 9, 8, 1, 0, 0, 0, 0)),
    ]:
        with pytest.raises(ProtocolError, match="from 9 to 8") as caught:
            marker(extras, value)
        assert caught.value.vbucket == VB
    assert marker(struct.pack(">QQI", 9, 9, 1)) == SnapshotMarker(VB, 9, 9, 1)


# --- system events


def event(kind: int, version: int, value: str, name: str = "") -> ServerMessage:
    extras = struct.pack(">QIB", 17, kind, version)
    return parse_message(
        request(Opcode.DCP_SYSTEM_EVENT, vbucket=VB, extras=extras, key=name.encode(), value=octets(value))
    )


COLLECTION = "0000000000000007 00000008 00000009"
SCOPE = "0000000000000007 00000008"
FLATBUFFER = (
    "18000000 00000000 10002000 18001400 10000f00 08000400 10000000 1c000000 3c000000 00000001 09000000"
    "08000000 02000000 00000000 02000000 63310000"
)


@pytest.mark.parametrize(
    ("kind", "version", "value", "name", "numbers"),
    [
        (SystemEventId.CREATE_COLLECTION, 0, COLLECTION, "c1", (7, 8, 9)),
        (SystemEventId.CREATE_COLLECTION, 1, COLLECTION + "0000003c", "c1", (7, 8, 9, 60)),
        (SystemEventId.DROP_COLLECTION, 0, COLLECTION, "", (7, 8, 9)),
        (SystemEventId.CREATE_SCOPE, 0, SCOPE, "s1", (7, 8)),
        (SystemEventId.DROP_SCOPE, 0, SCOPE, "", (7, 8)),
        (SystemEventId.CREATE_COLLECTION, 2, FLATBUFFER, "c1", (2, 8, 9, 60, False)),
        (SystemEventId.MODIFY_COLLECTION, 2, FLATBUFFER, "c1", (2, 8, 9, 60, False)),
        (SystemEventId.DROP_COLLECTION, 2, FLATBUFFER, "", (2, 8, 9)),
        (SystemEventId.DROP_SCOPE, 2, FLATBUFFER, "", (2, 8)),
        (SystemEventId.CREATE_SCOPE, 3, "", "new", ()),
    ],
)
def test_system_events(kind: int, version: int, value: str, name: str, numbers: tuple[int, ...]) -> None:
    decoded = event(kind, version, value, name)
    assert isinstance(decoded, SystemEvent)
    assert decoded == SystemEvent(VB, 17, kind, version, name, octets(value), *numbers)
    for sid in (None, 0, 0x1234):
        frame = frame_of(replace(decoded, sid=sid).frame(5).encode())
        again = parse_message(frame)
        assert again == decoded
        assert isinstance(again, SystemEvent)
        assert again.frame(5) == frame
        assert again.sid == sid


@pytest.mark.parametrize(
    ("kind", "version", "value"),
    [
        (0, 0, SCOPE),
        (0, 0, COLLECTION + "00"),
        (0, 0, COLLECTION + "0000003c"),
        (0, 1, COLLECTION),
        (1, 0, ""),
        (3, 0, COLLECTION),
        (3, 0, SCOPE[:-2]),
        (4, 0, ""),
    ],
)
def test_system_events_of_a_wrong_size(kind: int, version: int, value: str) -> None:
    with pytest.raises(ProtocolError, match=f"system event {kind} version {version}") as caught:
        event(kind, version, value)
    assert caught.value.vbucket == VB


def test_repr_of_a_system_event_shows_ids_not_bytes() -> None:
    text = repr(event(0, 0, COLLECTION, "c1"))
    assert "collection_id=9" in text
    assert "value" not in text


def test_flatbuffers_that_are_none() -> None:
    """Cut short, or with any byte changed to any other: understood or refused."""
    whole = octets(FLATBUFFER)
    refused = 0
    for bad in [whole[:n] for n in range(len(whole))] + [
        whole[:at] + bytes([value]) + whole[at + 1 :] for at in range(len(whole)) for value in range(256)
    ]:
        try:
            found = event(0, 2, bad.hex(), "c1")
        except ProtocolError as error:
            refused += 1
            assert (error.opcode, error.vbucket) == (Opcode.DCP_SYSTEM_EVENT, VB)  # noqa: PT017
        else:
            assert isinstance(found, SystemEvent)
            assert found.value == bad
    assert refused > len(whole)


# --- writes that are not settled


def test_a_prepared_write_and_what_becomes_of_it() -> None:
    """What nobody may see is not even decoded: neither key nor value."""
    extras = struct.pack(">QQIIIBBB", 18, 1, 0, 0, 0, 2, 1, 3)
    frame = request(Opcode.DCP_PREPARE, vbucket=VB, extras=extras, key=b"\0k", value=b"{}")
    assert parse_message(frame) == Prepare(VB, 18, 3, True)
    for opcode, kind in ((Opcode.DCP_COMMIT, Commit), (Opcode.DCP_ABORT, Abort)):
        frame = request(opcode, vbucket=VB, extras=struct.pack(">QQ", 18, 19), key=b"\0k")
        assert parse_message(frame) == kind(VB, 18, 19)


# --- the others


@pytest.mark.parametrize(
    ("opcode", "good"),
    [
        (Opcode.DCP_STREAM_END, 4),
        (Opcode.DCP_SEQNO_ADVANCED, 8),
        (Opcode.DCP_OSO_SNAPSHOT, 4),
        (Opcode.DCP_SYSTEM_EVENT, 13),
        (Opcode.DCP_PREPARE, 31),
        (Opcode.DCP_COMMIT, 16),
        (Opcode.DCP_ABORT, 16),
    ],
)
def test_extras_of_a_wrong_length(opcode: int, good: int) -> None:
    for length in set(range(40)) - {good}:
        with pytest.raises(ProtocolError, match=f"extras of {length} bytes, expected {good}") as caught:
            parse_message(request(opcode, vbucket=VB, extras=bytes(length)))
        assert (caught.value.opcode, caught.value.vbucket) == (opcode, VB)


def test_reasons_unknown_today_are_kept() -> None:
    assert parse_message(request(Opcode.DCP_STREAM_END, extras=octets("000000ff"))) == StreamEnd(0, 255)


def test_unknown_messages_are_no_error() -> None:
    for opcode in set(range(256)) - {*range(0x55, 0x57), 0x5C, 0x5F, 0x60, 0x62, 0x63, 0x64, 0x65}:
        frame = request(opcode, vbucket=VB, extras=b"abc", key=b"k", value=b"v")
        assert parse_message(frame) == Unknown(opcode, VB)


def test_vbucket_seqnos() -> None:
    value = octets("0000 0000000000000017 03ff ffffffffffffffff")
    assert parse_vbucket_seqnos(value) == {0: 23, 1023: 2**64 - 1}
    assert encode_vbucket_seqnos({0: 23, 1023: 2**64 - 1}) == value
    assert parse_vbucket_seqnos(b"") == {}
    for length in (1, 9, 11, 19):
        with pytest.raises(ProtocolError, match="no multiple of 10"):
            parse_vbucket_seqnos(bytes(length))


@given(seqnos=st.dictionaries(u16, u64, max_size=30))
def test_vbucket_seqnos_survive_the_wire(seqnos: dict[int, int]) -> None:
    assert parse_vbucket_seqnos(encode_vbucket_seqnos(seqnos)) == seqnos


def test_rollback_seqno() -> None:
    assert parse_rollback_seqno(octets("0000000000000005")) == 5
    for length in (0, 4, 7, 9, 16):
        with pytest.raises(ProtocolError, match=f"a value of {length} bytes"):
            parse_rollback_seqno(bytes(length))


@given(log=st.lists(st.tuples(u64, u64), max_size=FAILOVER_LOG_MAX_ENTRIES))
def test_every_log_survives_the_wire(log: list[tuple[int, int]]) -> None:
    assert list(parse_failover_log(encode_failover_log(log))) == log


def test_logs_in_any_bytes() -> None:
    assert parse_failover_log(b"") == ()
    value = encode_failover_log([(0xABCDEF, 4), (0x1234, 0)])
    log = (FailoverEntry(0xABCDEF, 4), FailoverEntry(0x1234, 0))
    assert parse_failover_log(memoryview(value)) == parse_failover_log(bytearray(value)) == log


@pytest.mark.parametrize("length", [1, 8, 15, 17, 40])
def test_a_length_that_is_no_multiple_of_an_entry(length: int) -> None:
    with pytest.raises(ProtocolError, match=f"of {length} bytes is no multiple of 16"):
        parse_failover_log(bytes(length))


@given(u16, u64, u64.filter(bool), u64, u64, u64.filter(bool), u64)
def test_what_a_copy_has(
    vb: int, asked: int, vbuuid: int, persisted: int, high: int, old: int, ends: int
) -> None:
    question = ObserveSeqno(vb, asked)
    assert ObserveSeqno.parse(frame_of(question.frame(3).encode())) == question
    newest = Observed(vb, vbuuid, persisted, high)
    assert Observed.parse(newest.encode()) == newest
    assert len(newest.encode()) == 27
    assert newest.shared == persisted
    older = Observed(vb, vbuuid, persisted, high, old, ends)
    assert Observed.parse(older.encode()) == older
    assert len(older.encode()) == 43
    assert older.shared == min(persisted, ends)


@pytest.mark.parametrize(
    "value", [b"", b"\0", bytes(26), bytes(28), bytes(43), b"\1" + bytes(26), b"\2" + bytes(42)]
)
def test_what_no_copy_says(value: bytes) -> None:
    with pytest.raises(ProtocolError, match=f"an answer of {len(value)} bytes"):
        Observed.parse(value)


def test_a_question_without_a_history() -> None:
    with pytest.raises(ProtocolError, match="a value of 8 bytes"):
        ObserveSeqno.parse(request(Opcode.OBSERVE_SEQNO, value=b"1234"))
