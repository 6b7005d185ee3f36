from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbframe.errors import ProtocolError
from cbframe.wire.constants import (
    FAILOVER_LOG_MAX_ENTRIES,
    MAX_SEQNO,
    Magic,
    Opcode,
    StreamEndReason,
    SystemEventId,
    VBucketStateCode,
)
from cbframe.wire.framing import Frame, request
from cbframe.wire.messages import (
    MAX_LEB128_LENGTH,
    Abort,
    BufferAck,
    CloseStream,
    Commit,
    DcpControl,
    DcpOpen,
    FailoverEntry,
    GetAllVBucketSeqnos,
    GetFailoverLog,
    Hello,
    Observed,
    ObserveSeqno,
    OsoSnapshot,
    Plain,
    Prepare,
    Request,
    SaslAuth,
    SelectBucket,
    SeqnoAdvanced,
    ServerMessage,
    SnapshotMarker,
    StreamEnd,
    StreamFilter,
    StreamRequest,
    SystemEvent,
    Unknown,
    XattrSplit,
    body_offset,
    decode_leb128,
    encode_failover_log,
    encode_leb128,
    encode_vbucket_seqnos,
    join_xattrs,
    noop_reply,
    parse_failover_log,
    parse_features,
    parse_message,
    parse_request,
    parse_rollback_seqno,
    parse_vbucket_seqnos,
    split_key,
    split_xattrs,
    vbucket_of,
)

from .golden import NAMES, load
from .strategies import u16, u32, u64
from .vectors import NOOP, NOOP_REPLY, STREAM_END_SID, frame_of, octets

VB = 7
Sendable = SnapshotMarker | StreamEnd | SeqnoAdvanced | OsoSnapshot


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
    ("parse", "opcode", "good"),
    [
        (parse_message, Opcode.DCP_STREAM_END, {4}),
        (parse_message, Opcode.DCP_SEQNO_ADVANCED, {8}),
        (parse_message, Opcode.DCP_OSO_SNAPSHOT, {4}),
        (parse_message, Opcode.DCP_SYSTEM_EVENT, {13}),
        (parse_message, Opcode.DCP_PREPARE, {31}),
        (parse_message, Opcode.DCP_COMMIT, {16}),
        (parse_message, Opcode.DCP_ABORT, {16}),
        (parse_request, Opcode.DCP_STREAM_REQ, {48}),
        (parse_request, Opcode.DCP_OPEN, {8}),
        (parse_request, Opcode.DCP_BUFFER_ACK, {4}),
        (parse_request, Opcode.GET_ALL_VB_SEQNOS, {0, 4, 8}),
    ],
)
def test_extras_of_a_wrong_length(parse: Callable[[Frame], Any], opcode: int, good: set[int]) -> None:
    for length in set(range(60)) - good:
        with pytest.raises(ProtocolError, match=f"extras of {length} bytes") as caught:
            parse(request(opcode, vbucket=VB, extras=bytes(length)))
        assert (caught.value.opcode, caught.value.vbucket) == (opcode, VB)
        assert parse is parse_request or f"expected {min(good)}" in caught.value.message
    for length in good if parse is parse_request else ():
        assert parse(request(opcode, vbucket=VB, extras=bytes(length))).frame() is not None


def test_what_is_unknown_today_is_kept() -> None:
    assert parse_message(request(Opcode.DCP_STREAM_END, extras=octets("000000ff"))) == StreamEnd(0, 255)
    assert marker(struct.pack(">QQI", 1, 1, 0x8000_0005)) == SnapshotMarker(VB, 1, 1, 0x8000_0005)


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
    for length in (1, 8, 15, 17, 40):
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
    with pytest.raises(ProtocolError, match="a value of 8 bytes"):  # a question without a history
        ObserveSeqno.parse(request(Opcode.OBSERVE_SEQNO, value=b"1234"))


# --- requests


def test_noop_reply() -> None:
    assert noop_reply(frame_of(NOOP)).encode() == NOOP_REPLY


text = st.text(st.characters(codec="utf-8"), max_size=30)
any_request: st.SearchStrategy[Request] = st.one_of(
    st.builds(Hello, text, st.lists(u16, max_size=8).map(tuple)),
    st.builds(SaslAuth, text, st.binary(max_size=40), st.sampled_from([Opcode.SASL_AUTH, Opcode.SASL_STEP])),
    st.builds(SelectBucket, text),
    st.builds(GetAllVBucketSeqnos, u32, st.none() | u32),
    st.just(GetAllVBucketSeqnos()),
    st.builds(DcpOpen, text, u32),
    st.builds(DcpControl, text, text),
    st.builds(StreamRequest, u16, u64, u64, u64, u64, u64, u32, st.binary(max_size=30)),
    st.builds(CloseStream, u16, st.none() | u16),
    st.builds(GetFailoverLog, u16, st.sampled_from([Opcode.DCP_GET_FAILOVER_LOG, Opcode.GET_FAILOVER_LOG])),
    st.builds(BufferAck, u32),
    st.builds(
        Plain,
        st.sampled_from([Opcode.NOOP, Opcode.SASL_LIST_MECHS, Opcode.GET_CLUSTER_CONFIG, 0xEE]),
        st.binary(max_size=10),
        st.binary(max_size=10),
    ),
)


@given(message=any_request, opaque=u32)
def test_every_request_survives_the_wire(message: Request, opaque: int) -> None:
    frame = frame_of(message.frame(opaque).encode())
    magic = Magic.REQUEST if frame.sid is None else Magic.FLEX_REQUEST
    assert (frame.magic, frame.opaque, frame.cas, frame.datatype) == (magic, opaque, 0, 0)
    assert parse_request(frame) == message


def test_a_collection_without_a_state_asks_for_any_alive() -> None:
    frame = GetAllVBucketSeqnos(collection_id=8).frame()
    assert frame.extras == octets("00000000 00000008")
    assert parse_request(frame) == GetAllVBucketSeqnos(VBucketStateCode.ANY_ALIVE, 8)
    assert GetAllVBucketSeqnos().frame().extras == b""
    assert GetAllVBucketSeqnos(VBucketStateCode.ACTIVE).frame().extras == octets("00000001")


def test_a_stream_request_asks_for_everything_by_default() -> None:
    assert parse_request(StreamRequest(5).frame()) == StreamRequest(5, 0, MAX_SEQNO, 0, 0, 0, 0, b"")


def test_only_requests_are_requests() -> None:
    for magic in (Magic.RESPONSE, Magic.SERVER_REQUEST, Magic.SERVER_RESPONSE, Magic.FLEX_RESPONSE):
        with pytest.raises(ProtocolError, match="is no request"):
            parse_request(Frame(magic, Opcode.HELLO))
    flexible = Frame(Magic.FLEX_REQUEST, Opcode.DCP_BUFFER_ACK, extras=bytes(4), framing_extras=b"\x22\0\5")
    assert parse_request(flexible) == BufferAck(0)


def test_features_come_in_pairs_of_bytes() -> None:
    assert parse_features(b"") == ()
    assert parse_features(octets("0006 0012 ffff")) == (6, 0x12, 0xFFFF)
    with pytest.raises(ProtocolError, match="odd length") as caught:
        parse_features(octets("0006 00"))
    assert caught.value.opcode == Opcode.HELLO
    with pytest.raises(ProtocolError, match="odd length"):
        parse_request(request(Opcode.HELLO, key=b"agent", value=b"\0"))


def test_names_that_are_no_utf8_are_no_reason_to_fail() -> None:
    for opcode in (Opcode.HELLO, Opcode.SASL_AUTH, Opcode.SELECT_BUCKET, Opcode.DCP_CONTROL):
        parse_request(request(opcode, key=b"\xff\xfe", value=b"\xff\xfe"))
    parse_request(request(Opcode.DCP_OPEN, key=b"\xff\xfe", extras=bytes(8)))


def test_stream_filters() -> None:
    assert StreamFilter().encode() == b""
    assert json.loads(StreamFilter(collections=(8, 0xAB, 0)).encode()) == {"collections": ["8", "ab", "0"]}
    assert json.loads(StreamFilter(collections=()).encode()) == {"collections": []}
    assert json.loads(StreamFilter(scope=0xB).encode()) == {"scope": "b"}
    assert json.loads(StreamFilter(scope=0).encode()) == {"scope": "0"}


def test_no_secret_in_a_repr() -> None:
    secret = "hunter2"
    for opcode in (Opcode.SASL_AUTH, Opcode.SASL_STEP):
        message = SaslAuth("PLAIN", f"\0user\0{secret}".encode(), opcode)
        assert secret not in repr(message) + str(message)
        assert secret not in repr(message.frame())
        assert secret not in repr(parse_request(message.frame()))
        assert "PLAIN" in repr(message)


def test_no_document_in_a_repr() -> None:
    """A server reads writes of documents as plain requests."""
    message = parse_request(request(Opcode.SET, key=b"user::smith", value=b'{"ssn": 1}', extras=bytes(8)))
    assert isinstance(message, Plain)
    assert "smith" not in repr(message)
    assert "ssn" not in repr(message)
    assert repr(message).startswith("Plain(opcode=")


# --- keys and values

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
    assert split_key(data) == (number, b"")


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


@pytest.mark.parametrize(
    ("text", "message"),
    [
        *((text, "ends in the middle") for text in ("", "80", "ff", "8080", "ffffffff")),
        *((text, "no canonical 32-bit") for text in ("8000", "ff00", "808000", "8080808000", "ffffffff1f")),
        *((text, "no canonical 32-bit") for text in ("ffffffff7f", "ffffffff8f00", "8080808080")),
    ],
)
def test_what_is_no_number(text: str, message: str) -> None:
    with pytest.raises(ProtocolError, match=message) as caught:
        decode_leb128(b"ab" + bytes.fromhex(text), 2)
    assert caught.value.offset == 2


@given(data=st.binary(max_size=8))
def test_anything_decodes_to_its_own_encoding_or_is_refused(data: bytes) -> None:
    try:
        number, end = decode_leb128(data)
    except ProtocolError:
        return
    assert encode_leb128(number) == data[:end]


COUNTS = (1024, 128, 64, 256, 48)
KEYS_AND_VBUCKETS = [
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


@pytest.mark.parametrize(("key", "checksum", "expected"), KEYS_AND_VBUCKETS)
def test_vbuckets_of_keys(key: str, checksum: int, expected: tuple[int, ...]) -> None:
    assert zlib.crc32(key.encode()) == checksum
    assert tuple(vbucket_of(key.encode(), count) for count in COUNTS) == expected


@given(key=st.binary(max_size=250), count=st.integers(1, 1024))
def test_in_range(key: bytes, count: int) -> None:
    assert 0 <= vbucket_of(key, count) < count


def test_golden_keys() -> None:
    """A real node with 64 vbuckets was asked by the SDK for these."""
    keys = [
        (message["vb"], message["key"].encode())
        for name in NAMES
        if name.startswith("sdk_")
        for message in load(name, "c2s").messages
        if "collection_id" in message.get("fields", {}) and not message["key"].startswith("hex:")
    ]
    assert len(keys) > 500
    assert all(vbucket_of(key, 64) == vbucket for vbucket, key in keys)


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
