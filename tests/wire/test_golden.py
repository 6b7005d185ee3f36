"""Every byte of the golden conversations is understood as the recording says."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest

from cbframe.errors import ProtocolError
from cbframe.wire.constants import (
    DATA_OPCODES,
    HEADER_LENGTH,
    Datatype,
    Feature,
    Magic,
    Opcode,
    SnapshotFlag,
    Status,
    StreamEndReason,
    SystemEventId,
)
from cbframe.wire.framing import Frame
from cbframe.wire.messages import (
    BufferAck,
    CloseStream,
    Commit,
    DcpControl,
    DcpNoop,
    DcpOpen,
    FailoverEntry,
    GetAllVBucketSeqnos,
    GetFailoverLog,
    Hello,
    OsoSnapshot,
    Plain,
    Prepare,
    SaslAuth,
    SelectBucket,
    SeqnoAdvanced,
    SnapshotMarker,
    StreamEnd,
    StreamRequest,
    SystemEvent,
    Unknown,
    encode_failover_log,
    encode_leb128,
    encode_vbucket_seqnos,
    join_xattrs,
    parse_failover_log,
    parse_features,
    parse_message,
    parse_request,
    parse_rollback_seqno,
    parse_vbucket_seqnos,
    split_key,
    split_xattrs,
)

from .golden import (
    BAD_MAGIC,
    FEATURES,
    FOLDER,
    FOLDER8,
    NAMES,
    NAMES8,
    SIDES,
    Message,
    Side,
    feature_codes,
    label,
    load,
    number,
    same_bytes,
)
from .oracle import DataMessage, decode_data, is_data
from .pipeline import CORES, block_of, cut, decoder_of, fast, feed, messages, slow, unified

each_side = pytest.mark.parametrize(("name", "side"), SIDES, ids=[f"{name}.{side}" for name, side in SIDES])
STATUS_NAMES = {int(status): status.name for status in Status}
OTHER_FEATURE_NAMES = {"TCPNODELAY": "TCP_NODELAY", "OPEN_TRACING": "SNAPPY_EVERYWHERE"}


def frames_of(side: Side) -> list[tuple[Frame, Message]]:
    pairs = []
    for message in side.messages:
        parsed = Frame.parse(side.data, message["offset"])
        assert parsed is not None
        pairs.append((parsed[0], message))
    return pairs


def test_all_conversations_are_here() -> None:
    assert len(NAMES) == 154
    assert len(NAMES8) == 149
    assert sum(name.startswith("sdk_") for name in NAMES) == 42


# --- frames


@each_side
def test_frames_are_those_of_the_recording(name: str, side: str) -> None:
    golden = load(name, side)
    offset = 0
    for message in golden.messages:
        assert message["offset"] == offset
        parsed = Frame.parse(golden.data, offset)
        assert parsed is not None
        frame, end = parsed
        assert end - offset == len(frame) == message["len"]
        check_header(frame, message)
        check_body(frame, message)
        assert frame.encode() == golden.data[offset:end]
        offset = end
    if (name.removeprefix("../golden8/"), side) == BAD_MAGIC:
        assert len(golden.data) - offset == HEADER_LENGTH
    else:
        assert offset == len(golden.data)
        assert Frame.parse(golden.data, offset) is None


def check_header(frame: Frame, message: Message) -> None:
    assert frame.magic == number(message["magic"])
    assert frame.opcode == number(message["opcode"])
    assert frame.opaque == number(message["opaque"])
    assert frame.cas == number(message.get("cas", 0))
    assert frame.datatype == number(message.get("datatype", 0))
    if "status" in message:
        assert frame.is_response
        assert frame.status == number(message["status"])
    else:
        assert not frame.is_response
        assert frame.vbucket == message["vb"]


def check_body(frame: Frame, message: Message) -> None:
    assert frame.extras == bytes.fromhex(message.get("extras", ""))
    assert len(frame.extras) == message.get("extlen", 0)
    assert frame.framing_extras == bytes.fromhex(message.get("framing_extras", ""))
    assert len(frame.value) == message.get("vallen", 0)
    if "key_hex" in message:
        assert frame.key == bytes.fromhex(message["key_hex"])
    else:
        assert same_bytes(message.get("key", ""), frame.key)
    if "value_hex" in message:
        assert frame.value == bytes.fromhex(message["value_hex"])
    if "value" in message and not frame.datatype & Datatype.SNAPPY:
        document = frame.value
        if frame.datatype & Datatype.XATTR:
            document = split_xattrs(frame.value).body
        assert same_bytes(message["value"], document)


@each_side
def test_names_of_numbers_are_those_of_the_recording(name: str, side: str) -> None:
    for message in load(name, side).messages:
        opcode = number(message["opcode"])
        if message["op"] != "?" and number(message["magic"]) != Magic.SERVER_REQUEST:
            assert Opcode(opcode).name == message["op"]
        status = message.get("status", "0x0 SUCCESS")
        if number(status) in STATUS_NAMES:
            assert label(status) == STATUS_NAMES[number(status)]
        if "datatype" in message:
            bits = {str(bit.name) for bit in Datatype(number(message["datatype"])) if bit}
            assert bits == set(label(message["datatype"]).split("|"))


@each_side
def test_fast_way_with_bytes_one_at_a_time(name: str, side: str) -> None:
    golden = load(name, side)
    # Every byte of short conversations; of the others those around the edges of a message's parts.
    points: set[int] = set(range(len(golden.sound)) if len(golden.sound) < 800 else ())
    for message in golden.messages:
        start, end = message["offset"], message["offset"] + message["len"]
        points.update((start, start + 1, start + 9, start + 11, start + 12, start + 23, start + 24))
        points.update((start + 25, end - 1))
    buffer = bytearray()
    found = 0
    data = unified(golden.sound)
    decoder = decoder_of(data, collections=golden.collections)
    for piece in cut(data, points):
        buffer += piece
        decoded = decoder.decode(buffer, 0, len(buffer))
        assert decoded.error is None
        assert len(decoded) + len(decoded.before) <= 1
        if decoded.consumed:
            message = golden.messages[found]
            assert decoded.consumed == message["len"]
            assert len(decoded) == data_message(message)
            found += 1
            del buffer[: message["len"]]
    assert not buffer
    assert found == len(golden.messages)


def data_message(message: Message) -> bool:
    opcode, magic = number(message["opcode"]), number(message["magic"])
    return opcode in DATA_OPCODES and magic in (Magic.REQUEST, Magic.FLEX_REQUEST)


@each_side
def test_an_incomplete_message_waits(name: str, side: str) -> None:
    golden = load(name, side)
    data = unified(golden.sound)
    last = golden.messages[-1]
    start, end = last["offset"], last["offset"] + last["len"]
    for stop in sorted({start, start + 1, start + 8, start + 23, start + 24, (start + end) // 2, end - 1}):
        if not start <= stop < end:
            continue
        items, tail = slow(data[:stop], collections=golden.collections)
        assert tail == start
        assert fast(data[:stop], collections=golden.collections) == (items, start)
        assert len(items) == len(golden.messages) - 1


@each_side
def test_both_cores_equal_the_oracle(name: str, side: str) -> None:
    golden = load(name, side)
    data = unified(golden.sound)
    expected = slow(data, collections=golden.collections)
    assert len(expected[0]) == len(golden.messages)
    assert expected[1] == len(data)
    for make in CORES.values():
        decoder = partial(fast, make=make)
        assert decoder(data, collections=golden.collections) == expected
        pieces = cut(data, range(0, len(data), 1009))
        assert feed(decoder, pieces, collections=golden.collections) == (expected[0], b"")


@pytest.mark.parametrize("name", NAMES8)
def test_conversations_with_8_0(name: str) -> None:
    """All of the above and below that is about one conversation."""
    for side in ("c2s", "s2c"):
        test_frames_are_those_of_the_recording(name, side)
        test_names_of_numbers_are_those_of_the_recording(name, side)
        test_an_incomplete_message_waits(name, side)
        test_both_cores_equal_the_oracle(name, side)
    test_requests(name)
    test_server_messages(name)
    test_answers(name)


def test_a_bad_magic_is_refused() -> None:
    """One byte of it is enough."""
    golden = load(*BAD_MAGIC)
    offset = len(golden.sound)
    for decoder in (slow, fast):
        for end in (len(golden.data), offset + 1):
            with pytest.raises(ProtocolError, match="0x55 is no magic") as caught:
                decoder(golden.data[:end], collections=False)
            assert caught.value.offset == offset


# --- data messages


def test_mutations_deletions_and_expirations_mean_what_the_recording_says() -> None:
    seen = dict.fromkeys(DATA_OPCODES, 0)
    split = 0
    for name in NAMES:
        golden = load(name, "s2c")
        for frame, message in frames_of(golden):
            if not is_data(frame):
                continue
            fields = message["fields"]
            assert ("collection_id" in fields) == golden.collections
            decoded = decode_data(frame, collections=golden.collections)
            check_data(decoded, message, fields)
            if frame.datatype & Datatype.XATTR and not frame.datatype & Datatype.SNAPPY and frame.value:
                check_xattrs(frame.value, message, fields)
                split += 1
            seen[Opcode(frame.opcode)] += 1
    assert seen == {Opcode.DCP_MUTATION: 778, Opcode.DCP_DELETION: 157, Opcode.DCP_EXPIRATION: 10}
    assert split == 40


def check_data(decoded: DataMessage, message: Message, fields: dict[str, Any]) -> None:
    assert decoded.vbucket == message["vb"]
    assert decoded.opaque == number(message["opaque"])
    assert decoded.cas == number(message["cas"])
    assert decoded.seqno == fields["by_seqno"]
    assert decoded.rev_seqno == fields["rev_seqno"]
    assert decoded.flags == fields.get("flags", 0)
    assert decoded.expiry == fields.get("expiry", fields.get("delete_time", 0))
    assert decoded.collection_id == number(fields.get("collection_id", 0))
    assert same_bytes(message["key"], decoded.key)
    assert len(decoded.value) == message.get("vallen", 0)
    if decoded.opcode == Opcode.DCP_DELETION:
        assert message["extlen"] == {"v1": 18, "v2": 21}[fields["version"]]


def check_xattrs(value: bytes, message: Message, fields: dict[str, Any]) -> None:
    xattrs, body = split_xattrs(value)
    assert {name: text.decode() for name, text in xattrs.items()} == fields["xattrs"]
    assert same_bytes(message["value"], body)
    assert join_xattrs(xattrs, body) == value


def test_a_value_that_only_claims_to_be_compressed_can_be_split() -> None:
    """With NO_VALUE_WITH_UNDERLYING_DATATYPE the Snappy bit is that of the value left out."""
    found = 0
    for frame, message in frames_of(load("stream_xattr_no_value.1", "s2c")):
        if "decode_error" in message.get("fields", {}):
            assert frame.datatype == Datatype.SNAPPY | Datatype.XATTR
            assert "_sync" in split_xattrs(frame.value).xattrs
            found += 1
    assert found == 2


# --- what the client says

TYPED_REQUESTS: dict[int, type] = {
    Opcode.HELLO: Hello,
    Opcode.SASL_AUTH: SaslAuth,
    Opcode.SASL_STEP: SaslAuth,
    Opcode.SELECT_BUCKET: SelectBucket,
    Opcode.GET_ALL_VB_SEQNOS: GetAllVBucketSeqnos,
    Opcode.DCP_OPEN: DcpOpen,
    Opcode.DCP_CONTROL: DcpControl,
    Opcode.DCP_STREAM_REQ: StreamRequest,
    Opcode.DCP_CLOSE_STREAM: CloseStream,
    Opcode.DCP_GET_FAILOVER_LOG: GetFailoverLog,
    Opcode.GET_FAILOVER_LOG: GetFailoverLog,
    Opcode.DCP_BUFFER_ACK: BufferAck,
}


@pytest.mark.parametrize("name", NAMES)
def test_requests(name: str) -> None:
    for frame, message in frames_of(load(name, "c2s")):
        if frame.is_response:
            assert frame == Frame(Magic.RESPONSE, Opcode.DCP_NOOP, opaque=frame.opaque)
            continue
        fields = message.get("fields", {})
        if "decode_error" in fields or (frame.opcode == Opcode.GET_ALL_VB_SEQNOS and len(frame.extras) == 1):
            with pytest.raises(ProtocolError) as caught:
                parse_request(frame)
            assert caught.value.opcode == frame.opcode
            continue
        request = parse_request(frame)
        assert type(request) is TYPED_REQUESTS.get(frame.opcode, Plain)
        assert request == EXPECTED_REQUESTS[type(request)](frame, message, fields)
        if name == "dcp_open_json_value" and isinstance(request, DcpOpen) and frame.value:
            continue  # for replication between nodes; cbframe neither sends nor reads it
        if type(request) is not Plain or frame.opcode in (
            Opcode.NOOP,
            Opcode.SASL_LIST_MECHS,
            *(() if frame.extras else (Opcode.GET_CLUSTER_CONFIG,)),  # never asked by revision
        ):
            assert request.frame(frame.opaque).encode() == frame.encode()


EXPECTED_REQUESTS: dict[type, Callable[[Frame, Message, dict[str, Any]], object]] = {
    Hello: lambda frame, message, fields: Hello(message.get("key", ""), feature_codes(fields["features"])),
    SaslAuth: lambda frame, message, fields: SaslAuth(message["key"], frame.value, frame.opcode),
    SelectBucket: lambda frame, message, fields: SelectBucket(message.get("key", "")),
    DcpOpen: lambda frame, message, fields: DcpOpen(message.get("key", ""), fields["flags"]),
    DcpControl: lambda frame, message, fields: DcpControl(message.get("key", ""), fields["value"]),
    StreamRequest: lambda frame, message, fields: StreamRequest(
        vbucket=message["vb"],
        start=fields["start"],
        end=fields["end"],
        vbuuid=number(fields["vbuuid"]),
        snap_start=fields["snap_start"],
        snap_end=fields["snap_end"],
        flags=number(fields["flags"]),
        value=frame.value,
    ),
    BufferAck: lambda frame, message, fields: BufferAck(fields["ack_bytes"]),
    GetAllVBucketSeqnos: lambda frame, message, fields: GetAllVBucketSeqnos(
        *(int(message["extras"][i : i + 8], 16) for i in range(0, 2 * len(frame.extras), 8))
    ),
    CloseStream: lambda frame, message, fields: CloseStream(message["vb"], frame.sid),
    GetFailoverLog: lambda frame, message, fields: GetFailoverLog(message["vb"], frame.opcode),
    Plain: lambda frame, message, fields: Plain(frame.opcode, frame.key, frame.value),
}


# --- what the server says

TYPED_MESSAGES: dict[int, type] = {
    Opcode.DCP_SNAPSHOT_MARKER: SnapshotMarker,
    Opcode.DCP_STREAM_END: StreamEnd,
    Opcode.DCP_SEQNO_ADVANCED: SeqnoAdvanced,
    Opcode.DCP_OSO_SNAPSHOT: OsoSnapshot,
    Opcode.DCP_SYSTEM_EVENT: SystemEvent,
    Opcode.DCP_PREPARE: Prepare,
    Opcode.DCP_COMMIT: Commit,
    Opcode.DCP_NOOP: DcpNoop,
}


@pytest.mark.parametrize("name", NAMES)
def test_server_messages(name: str) -> None:
    for frame, message in frames_of(load(name, "s2c")):
        if frame.is_response or is_data(frame):
            continue
        decoded = parse_message(frame)
        server_push = frame.magic == Magic.SERVER_REQUEST
        expected = Unknown if server_push else TYPED_MESSAGES.get(frame.opcode, Unknown)
        assert type(decoded) is expected
        check_server_message(decoded, frame, message)
        if not isinstance(decoded, Unknown | Prepare | Commit):
            assert decoded.frame(frame.opaque).encode() == frame.encode()


def test_messages_of_numbered_streams_encode_to_the_same_bytes() -> None:
    """In both directions; ``golden8`` has the conversation about them."""
    seen: set[tuple[str, Opcode, int]] = set()
    for folder in (FOLDER, FOLDER8):
        for path in folder.glob("*.bin"):
            name, side, _ = path.name.rsplit(".", 2)
            for frame, _ in frames_of(load(name, side, folder)):
                if frame.sid is None:
                    continue
                seen.add((side, Opcode(frame.opcode), frame.sid))
                if not is_data(frame):
                    message: Any = parse_request(frame) if side == "c2s" else parse_message(frame)
                    assert message.sid == frame.sid
                    assert message.frame(frame.opaque).encode() == frame.encode()
    sent = {"SNAPSHOT_MARKER", "SYSTEM_EVENT", "MUTATION", "SEQNO_ADVANCED"}
    assert seen == {
        ("c2s", Opcode.DCP_CLOSE_STREAM, 1),
        ("s2c", Opcode.DCP_DELETION, 1),
        *(("s2c", Opcode[f"DCP_{name}"], sid) for name in sent for sid in (1, 2)),
    }


def check_server_message(decoded: object, frame: Frame, message: Message) -> None:
    vb, fields = message["vb"], message.get("fields", {})
    match decoded:
        case SnapshotMarker():
            assert decoded == SnapshotMarker(
                vb,
                fields["start"],
                fields["end"],
                number(fields["flags"]),
                fields["version"],
                fields.get("max_visible_seqno"),
                fields.get("high_completed_seqno"),
                # Purge seqno and high prepared seqno, which the recording does not take apart.
                *(struct.unpack(">QQ", frame.value[36:]) if frame.extras == b"\2" else ()),
            )
            names = {str(flag.name) for flag in SnapshotFlag(decoded.flags)}
            assert names == set(label(fields["flags"]).split("|"))
        case StreamEnd():
            assert decoded == StreamEnd(vb, number(fields["reason"]))
            assert StreamEndReason(decoded.reason).name == label(fields["reason"])
        case SeqnoAdvanced():
            assert decoded == SeqnoAdvanced(vb, fields["by_seqno"])
        case OsoSnapshot():
            assert decoded == OsoSnapshot(vb, number(fields["flags"]))
        case SystemEvent(version=2):
            # The recording shows its bytes only; the test below has another form of the same event.
            assert (decoded.seqno, decoded.event) == (fields["by_seqno"], number(fields["event"]))
            assert decoded.value == bytes.fromhex(fields["value_hex"])
        case SystemEvent():
            assert decoded == SystemEvent(
                vb,
                fields["by_seqno"],
                number(fields["event"]),
                fields["version"],
                message.get("key", ""),
                bytes.fromhex(fields["value_hex"]),
                fields.get("manifest_uid"),
                fields.get("scope"),
                fields.get("collection"),
                fields.get("max_ttl"),
            )
            assert SystemEventId(decoded.event).name == label(fields["event"])
        case Prepare():
            assert decoded == Prepare(vb, fields["by_seqno"], fields["level"], bool(fields["deleted"]))
        case Commit():
            assert decoded == Commit(vb, fields["prepared_seqno"], fields["by_seqno"])
        case DcpNoop():
            assert decoded == DcpNoop(number(message["opaque"]))
        case Unknown():
            assert decoded == Unknown(frame.opcode, vb)
        case _:
            pytest.fail(f"unexpected {decoded!r}")


def test_the_same_events_as_numbers_and_as_flatbuffers() -> None:
    plain, packed = (
        [
            event
            for frame, _ in frames_of(load(f"disk_coll_events.{i}", "s2c"))
            if not frame.is_response and isinstance(event := parse_message(frame), SystemEvent)
        ]
        for i in (0, 1)
    )
    assert [event.version for event in plain] == [0] * 7
    assert [event.version for event in packed] == [2] * 7
    collection = (SystemEventId.CREATE_COLLECTION, SystemEventId.MODIFY_COLLECTION)
    assert packed == [
        replace(event, version=2, value=other.value, history=False if event.event in collection else None)
        for event, other in zip(plain, packed, strict=True)
    ]


@pytest.mark.parametrize("name", NAMES)
def test_answers(name: str) -> None:
    for frame, message in frames_of(load(name, "s2c")):
        if not frame.is_response:
            continue
        fields = message.get("fields", {})
        if "decode_error" in fields:
            # An error text where features would be.
            assert frame.opcode == Opcode.HELLO
            with pytest.raises(ProtocolError):
                parse_features(frame.value)
        if "features" in fields:
            assert parse_features(frame.value) == feature_codes(fields["features"])
        if "failover_log" in fields:
            log = parse_failover_log(frame.value)
            assert log == tuple(
                FailoverEntry(number(entry["vbuuid"]), entry["seqno"]) for entry in fields["failover_log"]
            )
            assert encode_failover_log(log) == frame.value
        if "rollback_seqno" in fields:
            assert frame.status == Status.ROLLBACK
            assert parse_rollback_seqno(frame.value) == fields["rollback_seqno"]
        if "seqnos" in fields:
            seqnos = parse_vbucket_seqnos(frame.value)
            assert list(seqnos.items()) == [tuple(pair) for pair in fields["seqnos"]]
            assert encode_vbucket_seqnos(seqnos) == frame.value


def test_every_successful_answer_with_a_table_was_compared() -> None:
    kinds = dict.fromkeys(("features", "failover_log", "rollback_seqno", "seqnos", "decode_error"), 0)
    for name in NAMES:
        for message in load(name, "s2c").messages:
            for kind in kinds:
                kinds[kind] += kind in message.get("fields", {})
    assert kinds == {
        "features": 176,
        "failover_log": 144,
        "rollback_seqno": 8,
        "seqnos": 14,
        "decode_error": 4,
    }


def test_feature_names() -> None:
    ours = {feature.name: int(feature) for feature in Feature}
    for name, code in FEATURES.items():
        assert ours.get(OTHER_FEATURE_NAMES.get(name, name), code) == code


def test_collection_ids_of_keys() -> None:
    """In both directions: the SDK's keys carry the id too."""
    seen = set()
    for name, side in SIDES:
        for frame, message in frames_of(load(name, side)):
            collection = message.get("fields", {}).get("collection_id")
            if collection is not None and "key_hex" in message:
                cid, key = split_key(frame.key)
                assert cid == number(collection)
                assert same_bytes(message["key"], key)
                assert encode_leb128(cid) + key == frame.key
                seen.add(cid)
    assert {0, 8, 9} <= seen


def test_blocks_count_the_bytes_of_flow_control() -> None:
    """A block's size is that of its whole messages on the wire."""
    for name in NAMES:
        golden = load(name, "s2c")
        lengths = [message["len"] for message in golden.messages if data_message(message)]
        if lengths:
            block = block_of(golden.sound, collections=golden.collections)
            assert block.nbytes == sum(lengths)
            assert np.array_equal(block.value_end, np.cumsum(lengths))
            assert messages(block.select(slice(1, None))) == messages(block)[1:]
