from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbframe.errors import ProtocolError
from cbframe.wire.constants import MAX_SEQNO, Magic, Opcode, VBucketStateCode
from cbframe.wire.framing import Frame, request
from cbframe.wire.messages import (
    BufferAck,
    CloseStream,
    DcpControl,
    DcpOpen,
    GetAllVBucketSeqnos,
    GetFailoverLog,
    Hello,
    Plain,
    Request,
    SaslAuth,
    SelectBucket,
    StreamFilter,
    StreamRequest,
    noop_reply,
    parse_features,
    parse_request,
)

from .strategies import u16, u32, u64
from .vectors import NOOP, NOOP_REPLY, octets


def frame_of(data: bytes) -> Frame:
    parsed = Frame.parse(data)
    assert parsed is not None
    assert parsed[1] == len(data)
    return parsed[0]


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
    message = parse_request(StreamRequest(5).frame())
    assert message == StreamRequest(5, 0, MAX_SEQNO, 0, 0, 0, 0, b"")


@pytest.mark.parametrize(
    ("opcode", "good"),
    [
        (Opcode.DCP_STREAM_REQ, {48}),
        (Opcode.DCP_OPEN, {8}),
        (Opcode.DCP_BUFFER_ACK, {4}),
        (Opcode.GET_ALL_VB_SEQNOS, {0, 4, 8}),
    ],
)
def test_extras_of_a_wrong_length(opcode: int, good: set[int]) -> None:
    for length in range(60):
        frame = request(opcode, vbucket=3, extras=bytes(length))
        if length in good:
            assert parse_request(frame).frame() is not None
        else:
            with pytest.raises(ProtocolError, match=f"extras of {length} bytes") as caught:
                parse_request(frame)
            assert (caught.value.opcode, caught.value.vbucket) == (opcode, 3)


@pytest.mark.parametrize(
    "magic", [Magic.RESPONSE, Magic.SERVER_REQUEST, Magic.SERVER_RESPONSE, Magic.FLEX_RESPONSE]
)
def test_only_requests_are_requests(magic: int) -> None:
    with pytest.raises(ProtocolError, match="is no request"):
        parse_request(Frame(magic, Opcode.HELLO))


def test_flexible_requests_are_requests() -> None:
    frame = Frame(Magic.FLEX_REQUEST, Opcode.DCP_BUFFER_ACK, extras=bytes(4), framing_extras=b"\x22\0\5")
    assert parse_request(frame) == BufferAck(0)


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
