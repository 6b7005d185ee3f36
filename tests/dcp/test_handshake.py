"""What is asked of a DCP connection, and what becomes of each answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest
from local.client import Client

from cbframe import AccessError, ConnectError, ProtocolError
from cbframe.dcp.connection import DcpConnection, Opened
from cbframe.dcp.handshake import CONTROLS, connection_name, rate_of, upr_open, window_of
from cbframe.errors import CbframeError, ConfigurationError, ServerError
from cbframe.local import LocalCluster
from cbframe.local.release import missing_need
from cbframe.options import BucketDataSourceOptions
from cbframe.wire.constants import Feature, Magic, Opcode, OpenFlag, Status
from cbframe.wire.framing import Frame, request, response
from cbframe.wire.messages import CloseStream, DcpOpen, Hello, StreamRequest, parse_request

from . import server
from .server import GRANTED, LOGIN, SETTINGS, feed, frames, good_answer, refusal

ALWAYS = [
    ("enable_noop", "true"),
    ("set_noop_interval", "20"),
    ("connection_buffer_size", "1000"),
    ("supports_cursor_dropping", "true"),
    ("supports_cursor_dropping_vulcan", "true"),
    ("enable_expiry_opcode", "true"),
    ("send_stream_end_on_client_close_stream", "true"),
    ("v7_dcp_status_codes", "true"),
    ("max_marker_version", "2.2"),
]
ALL = replace(
    SETTINGS,
    priority="high",
    backfill_order="sequential",
    out_of_order=True,
    change_streams=True,
    flatbuffers_system_events=True,
    stream_id=7,
    compression="force",
)
NEEDED = {"enable_noop", "set_noop_interval", "connection_buffer_size", "change_streams", "enable_stream_id"}
Refused = Mapping[tuple[str, str], int]
M = TypeVar("M")


def shake_hands(options: BucketDataSourceOptions, refused: Refused) -> tuple[DcpConnection, list[Frame]]:
    """A connection, and what it asked, with a node that refuses these controls with these statuses."""
    connection = DcpConnection(LOGIN, options)

    def answer(asked: Frame) -> Frame:
        status = refused.get((asked.key.decode(), asked.value.decode())) if is_control(asked) else None
        return good_answer(asked) if status is None else refusal(asked, status)

    turns = server.shake_hands(connection, answer)
    assert connection.session is not None
    return connection, [frame for asked in turns for frame in asked]


def is_control(frame: Frame) -> bool:
    return frame.opcode == Opcode.DCP_CONTROL


def controls(asked: list[Frame]) -> list[tuple[str, str]]:
    return [(frame.key.decode(), frame.value.decode()) for frame in asked if is_control(frame)]


def only(kind: type[M], asked: list[Frame]) -> M:
    """The one message of a kind among what was asked."""
    (found,) = [message for message in map(parse_request, asked) if isinstance(message, kind)]
    return found


@pytest.mark.parametrize(
    ("wish", "more"),
    [
        ({}, []),
        ({"compression": True}, []),
        ({"compression": "force"}, [("force_value_compression", "true")]),
        ({"priority": "low"}, [("set_priority", "low")]),
        ({"backfill_order": "round-robin"}, [("backfill_order", "round-robin")]),
        ({"out_of_order": True}, [("enable_out_of_order_snapshots", "true_with_seqno_advanced")]),
        ({"flatbuffers_system_events": True}, [("flatbuffers_system_events", "true")]),
        ({"change_streams": True}, [("change_streams", "true")]),
        ({"stream_id": 7}, [("enable_stream_id", "true")]),
    ],
)
def test_what_is_asked(wish: dict[str, Any], more: list[tuple[str, str]]) -> None:
    connection, asked = shake_hands(replace(SETTINGS, **wish), {})
    expected = [c for c in ALWAYS if "stream_id" not in wish or c[0] != "enable_expiry_opcode"] + more
    assert controls(asked) == expected
    assert dict(connection.granted) == dict(expected)


def test_what_is_asked_by_default() -> None:
    """As the server's developers recommend, in kv_engine's ``docs/dcp/documentation/recommended-apis.md``."""
    options = BucketDataSourceOptions()
    _, asked = shake_hands(options, {})
    hello, opened = only(Hello, asked), only(DcpOpen, asked)
    opcodes = [frame.opcode for frame in asked]
    assert opcodes.index(Opcode.HELLO) < opcodes.index(Opcode.DCP_OPEN)
    pushes = {Feature.DUPLEX, Feature.CLUSTERMAP_CHANGE_NOTIFICATION}
    assert {Feature.SNAPPY, Feature.COLLECTIONS, *pushes} <= set(hello.features)
    window = ("connection_buffer_size", str(options.feed_buffer_size_bytes))
    assert dict(controls(asked)) == dict([*ALWAYS, window, ("flatbuffers_system_events", "true")])
    assert options.feed_buffer_ack_threshold == 0.2
    assert opened.flags & OpenFlag.INCLUDE_DELETE_TIMES
    no_value = OpenFlag.NO_VALUE | OpenFlag.NO_VALUE_WITH_UNDERLYING_DATATYPE
    assert not opened.flags & (no_value | OpenFlag.INCLUDE_XATTRS)


@pytest.mark.parametrize("wish", [False, True, "force"])
def test_compression_is_a_feature(wish: bool | str) -> None:
    """A node that misses what another feature needs refuses the whole of it."""
    for settings in (SETTINGS, ALL):
        features = only(Hello, shake_hands(replace(settings, compression=wish), {})[1]).features
        assert (Feature.SNAPPY in features) == bool(wish)
        assert len(features) >= 8
        assert {missing_need(features, is_8=is_8) for is_8 in (False, True)} == {""}


@pytest.mark.parametrize("wish", [False, True])
@pytest.mark.parametrize("granted", [(), (0x26,), (0x26, Feature.COLLECTIONS)])
def test_deletions_are_skipped_where_the_node_can(wish: bool, granted: tuple[int, ...]) -> None:
    """It refuses the flag as a whole where it cannot, and keys without collections."""
    asked = asked_with(replace(SETTINGS, skip_first_deletions=wish), WITHOUT_COLLECTIONS + granted)
    features = only(Hello, asked).features
    assert (Feature.SKIP_DELETIONS_IN_FIRST_BACKFILL in features) == wish
    assert bool(only(DcpOpen, asked).flags & 0x200) == (wish and len(granted) == 2)


WITHOUT_COLLECTIONS = tuple(code for code in GRANTED if code != Feature.COLLECTIONS)


def asked_with(options: BucketDataSourceOptions, features: tuple[int, ...]) -> list[Frame]:
    """What is asked of a node that grants these features."""
    connection = DcpConnection(LOGIN, options)
    turns = server.shake_hands(connection, lambda asked: good_answer(asked, features))
    return [frame for asked in turns for frame in asked]


@pytest.mark.parametrize(
    ("wish", "flag", "asked_for"),
    [
        ({"include_xattrs": False}, OpenFlag.INCLUDE_XATTRS, False),
        ({"include_xattrs": True}, OpenFlag.INCLUDE_XATTRS, True),
        ({"stream_id": None}, OpenFlag.INCLUDE_DELETE_TIMES, True),
        ({"stream_id": 7}, OpenFlag.INCLUDE_DELETE_TIMES, False),
    ],
)
def test_flags_that_are_wanted(wish: dict[str, Any], flag: OpenFlag, asked_for: bool) -> None:
    _, asked = shake_hands(replace(SETTINGS, **wish), {})
    assert bool(only(DcpOpen, asked).flags & flag) == asked_for


def test_no_window_and_other_intervals() -> None:
    _, asked = shake_hands(replace(SETTINGS, feed_buffer_size_bytes=0, noop_interval_secs=0.5), {})
    found = dict(controls(asked))
    assert found["set_noop_interval"] == "0.5"
    assert "connection_buffer_size" not in found


@pytest.mark.parametrize("status", [Status.EINVAL, Status.NOT_SUPPORTED])
@pytest.mark.parametrize("place", range(len(CONTROLS)), ids=lambda place: CONTROLS[place].key)
def test_a_refusal(place: int, status: Status) -> None:
    """Of each control of the table, with all of its values: absent, or no connection at all."""
    control = CONTROLS[place]
    settings = replace(ALL, stream_id=None) if control.key == "enable_expiry_opcode" else ALL
    refused = {(control.key, value): status for value in control.values(settings)}
    assert refused
    if control.key not in NEEDED:
        connection, asked = shake_hands(settings, refused)
        assert [c for c in controls(asked) if c[0] == control.key] == list(refused)
        assert set(connection.granted) == {key for key, _ in controls(asked)} - {control.key}
        return
    with pytest.raises(ServerError, match=control.key) as caught:
        shake_hands(settings, refused)
    assert (caught.value.status, caught.value.permanent) == (status, True)
    assert caught.value.hint == control.hint


def keys_only(version: bytes | None) -> list[OpenFlag]:
    """The flags asked for, one after the other, at a node that does not know 0x40."""
    unknown = OpenFlag.NO_VALUE_WITH_UNDERLYING_DATATYPE
    flags: list[OpenFlag] = []
    opened = False

    def answer(asked: Frame) -> Frame:
        nonlocal opened
        message = parse_request(asked)
        if isinstance(message, DcpOpen):
            flags.append(OpenFlag(message.flags))
            opened = not message.flags & unknown
            return good_answer(asked) if opened else refusal(asked, Status.EINVAL)
        if is_control(asked) and not opened:
            return refusal(asked, Status.EINVAL)
        if asked.opcode == Opcode.VERSION:
            if version is None:
                return refusal(asked, Status.UNKNOWN_COMMAND)
            return replace(good_answer(asked), value=version)
        return good_answer(asked)

    connection = DcpConnection(LOGIN, replace(SETTINGS, no_value=True))
    server.shake_hands(connection, answer)
    assert connection.session is not None
    assert dict(connection.granted) == dict(ALWAYS), "of the connection that was opened"
    return flags


@pytest.mark.parametrize("version", [b"5.0.1-5003-enterprise", b"6.6.0", b"7.5.9"])
def test_servers_before_the_flag_for_keys_are_asked_as_ever(version: bytes) -> None:
    first, second = keys_only(version)
    assert first & OpenFlag.NO_VALUE_WITH_UNDERLYING_DATATYPE
    assert not first & OpenFlag.NO_VALUE
    assert second == first ^ (OpenFlag.NO_VALUE_WITH_UNDERLYING_DATATYPE | OpenFlag.NO_VALUE)


@pytest.mark.parametrize("version", [b"7.6.0-2176-enterprise", b"8.0.2", b"10.0.0", b"unknown", b"", None])
def test_no_server_with_invented_rows_is_asked_for_keys_alone(version: bytes | None) -> None:
    """From 7.6 on NO_VALUE gives deleted documents as mutations; what is not known may be newer."""
    with pytest.raises(ServerError, match="DCP_OPEN was refused") as caught:
        keys_only(version)
    assert (caught.value.status, caught.value.permanent) == (Status.EINVAL, True)


def test_the_second_best() -> None:
    refused = {("enable_out_of_order_snapshots", "true_with_seqno_advanced"): Status.EINVAL}
    connection, asked = shake_hands(replace(SETTINGS, out_of_order=True), refused)
    assert [value for key, value in controls(asked) if key == "enable_out_of_order_snapshots"] == [
        "true_with_seqno_advanced",
        "true",
    ]
    assert connection.granted["enable_out_of_order_snapshots"] == "true"


@pytest.mark.parametrize("status", [Status.ETMPFAIL, Status.EINTERNAL, Status.EACCESS])
def test_an_option_that_fails_for_another_reason_is_not_absent(status: Status) -> None:
    with pytest.raises(CbframeError, match="v7_dcp_status_codes") as caught:
        shake_hands(SETTINGS, {("v7_dcp_status_codes", "true"): status})
    assert caught.value.permanent == (status != Status.ETMPFAIL)


def test_nothing_is_granted_before_the_handshake() -> None:
    assert dict(DcpConnection(LOGIN, SETTINGS).granted) == {}


def recorded_answers() -> dict[tuple[str, str], int]:
    """Status by control, as a 7.2 node gave it the first time it was asked."""
    golden = Path(__file__).parent.parent / "golden"
    asked, answers = (frames((golden / f"control_keys.0.{side}.bin").read_bytes()) for side in ("c2s", "s2c"))
    statuses = {answer.opaque: answer.status for answer in answers if answer.is_response}
    found: dict[tuple[str, str], int] = {}
    for frame in asked:
        if frame.opcode == Opcode.DCP_CONTROL:
            found.setdefault((frame.key.decode(), frame.value.decode()), statuses[frame.opaque])
    return found


def test_what_a_real_node_grants() -> None:
    """It has no markers of version 2.2 and, being Couchstore, no history."""
    answers = recorded_answers()
    refused = {asked: status for asked, status in answers.items() if status != Status.SUCCESS}
    # The recording was made without the feature that packing values needs.
    settings = replace(ALL, change_streams=False, stream_id=None, compression=False)
    connection, asked = shake_hands(settings, refused)
    asked_for = controls(asked)
    # Numbers apart, every one was recorded.
    assert {key for key, _ in asked_for} <= {key for key, _ in answers}
    assert dict(connection.granted) == {key: value for key, value in asked_for if key != "max_marker_version"}
    with pytest.raises(ServerError, match="change_streams") as caught:
        shake_hands(replace(settings, change_streams=True), refused)
    assert "Magma" in str(caught.value)


def test_markers_with_purge_seqnos_need_collections() -> None:
    for features in (GRANTED, WITHOUT_COLLECTIONS):
        keys = [key for key, _ in controls(asked_with(ALL, features))]
        assert ("max_marker_version" in keys) == (Feature.COLLECTIONS in features)


# --- numbered streams


def test_a_numbered_stream_is_closed_by_its_number() -> None:
    connection, _ = shake_hands(replace(SETTINGS, stream_id=0x1234), {})
    stream = connection.request_stream(StreamRequest(3))
    (asked,) = frames(connection.data_to_send())
    assert feed(connection, good_answer(asked).encode()) == [Opened(stream)]
    connection.close_stream(3)
    data = connection.data_to_send()
    assert data[:8].hex() == "0852030000000003"
    assert data[24:].hex() == "221234"
    assert parse_request(*frames(data)) == CloseStream(3, 0x1234)


# --- options


@pytest.mark.parametrize(
    "wrong",
    [
        {"priority": "urgent"},
        {"compression": "gzip"},
        {"backfill_order": "any"},
        {"stream_id": 0},
        {"stream_id": 65536},
        *({"name": name} for name in ("", "travel{1}", "café", "a\nb", "n" * 168, 5)),
        # Zero is never meant by accident.
        {"feed_buffer_ack_threshold": 0.0},
        {"noop_interval_secs": 0},
        {"ping_timeout_ms": 0},
    ],
)
def test_options_that_cannot_be_meant(wrong: dict[str, Any]) -> None:
    (name,) = wrong
    with pytest.raises(ConfigurationError, match=name):
        BucketDataSourceOptions(**wrong)


def test_names_of_connections() -> None:
    """With the random part of 33 bytes, or whole, as ``upr_open`` takes them."""
    longest = BucketDataSourceOptions(name="n" * 167)
    name = connection_name(longest.name)
    assert len(name) == 200
    assert name != connection_name(longest.name)
    for options in (longest, BucketDataSourceOptions(name="Kafka connect #1 (travel|eu)~")):
        connection = DcpConnection(LOGIN, options, connection_name(options.name))
        turns = server.shake_hands(connection)
        opened = only(DcpOpen, [frame for asked in turns for frame in asked])
        assert opened.name.startswith(options.name)
    for wrong in ("", "n" * 201, "{", "}", "ü", "\0"):
        with pytest.raises(ConfigurationError, match="name of a DCP connection") as caught:
            upr_open(None, wrong)  # type: ignore[arg-type]
        assert caught.value.hint


# --- DCP on a socket of one's own

FEATURES = (Feature.COLLECTIONS, Feature.XERROR)


def test_opened(alone: LocalCluster) -> None:
    with Client(alone).login(FEATURES) as client:
        options = BucketDataSourceOptions(noop_interval_secs=20)
        granted = upr_open(client.sock, "mine:1", 4096, options=options)
        assert granted["connection_buffer_size"] == "4096"
        assert (granted["enable_noop"], granted["set_noop_interval"]) == ("true", "20")
        assert alone.dcp_connections() == 1
        # Not a byte of what comes next was taken.
        assert client.stream(0).status == 0
    with Client(alone).login(FEATURES) as client:
        assert "connection_buffer_size" not in upr_open(client.sock, "mine:1", 0)


def test_refused(alone: LocalCluster) -> None:
    alone.add_user("ann", "p", access="data")
    with Client(alone).login(FEATURES, auth=("ann", "p")) as client, pytest.raises(AccessError) as caught:
        upr_open(client.sock, "mine:1")
    assert caught.value.hint
    with Client(alone).login(FEATURES) as client:
        upr_open(client.sock, "mine:1")
        with pytest.raises(ServerError, match="DCP_OPEN was refused"):
            upr_open(client.sock, "mine:2")


class Script:
    """A socket that says what it was told to, after the first request."""

    def __init__(self, *said: Frame) -> None:
        self.said = b"".join(frame.encode() for frame in said)
        self.sent: list[bytes] = []

    def sendall(self, data: bytes) -> None:
        self.sent.append(data)

    def recv(self, size: int) -> bytes:
        # In small pieces, as sockets may.
        data, self.said = self.said[: min(size, 5)], self.said[min(size, 5) :]
        return data


def test_questions_in_between_are_answered() -> None:
    sock = Script(request(Opcode.DCP_NOOP, opaque=99), response(Opcode.DCP_OPEN, opaque=1))
    with pytest.raises(ConnectError, match="closed the connection while DCP was opened"):
        upr_open(sock, "mine:1")
    reply = Frame.parse(sock.sent[1])
    assert reply is not None
    assert (reply[0].magic, reply[0].opcode, reply[0].opaque) == (Magic.RESPONSE, Opcode.DCP_NOOP, 99)


def test_an_answer_to_something_else() -> None:
    with pytest.raises(ProtocolError, match="an answer to nothing that was asked"):
        upr_open(Script(response(Opcode.DCP_OPEN, opaque=5)), "mine:1")


def test_lengths_are_not_believed() -> None:
    sock = Script()
    sock.said = bytes.fromhex("8150000000000000ffffffff000000010000000000000000")
    with pytest.raises(ProtocolError, match="over the limit"):
        upr_open(sock, "mine:1")


def test_the_window_is_a_tenth_of_a_second() -> None:
    assert window_of(BucketDataSourceOptions(max_bytes_per_sec=50_000)) == 5000
    assert window_of(BucketDataSourceOptions(max_bytes_per_sec=10**10)) == 20_000_000
    several = BucketDataSourceOptions(max_bytes_per_sec=50_000, connections_per_node=5)
    assert (window_of(several), rate_of(several)) == (1000, 10_000)
    with pytest.raises(ConfigurationError, match="at least 1024"):
        BucketDataSourceOptions(max_bytes_per_sec=100)
    with pytest.raises(ConfigurationError, match="needs flow control"):
        BucketDataSourceOptions(max_bytes_per_sec=10_000, feed_buffer_size_bytes=0)


def test_the_window_is_divided_among_connections() -> None:
    for each, size in ((1, 20_000_000), (4, 5_000_000), (16, 1_250_000), ("auto", 5_000_000)):
        assert window_of(BucketDataSourceOptions(connections_per_node=each)) == size  # type: ignore[arg-type]
    assert window_of(BucketDataSourceOptions(connections_per_node=4, feed_buffer_size_bytes=0)) == 0
    assert window_of(BucketDataSourceOptions(connections_per_node=4, feed_buffer_size_bytes=3)) == 1


def test_how_long_a_receive_waits() -> None:
    assert BucketDataSourceOptions(receive_latency=0.0).receive_latency == 0.0
    with pytest.raises(ConfigurationError, match="receive_latency must be from 0 to 1"):
        BucketDataSourceOptions(receive_latency=1.5)
    with pytest.raises(ConfigurationError, match="receive_bytes must be at least 1"):
        BucketDataSourceOptions(receive_bytes=0)


def test_defaults_are_those_of_the_reference_but_for_the_interval_of_noops() -> None:
    options = BucketDataSourceOptions()
    assert (
        *(options.cluster_manager_backoff_factor, options.cluster_manager_sleep_init_ms),
        *(options.cluster_manager_sleep_max_ms, options.data_manager_backoff_factor),
        *(options.data_manager_sleep_init_ms, options.data_manager_sleep_max_ms),
        *(options.feed_buffer_size_bytes, options.feed_buffer_ack_threshold, options.noop_interval_secs),
        *(options.seq_end, options.ping_timeout_ms, options.trace_capacity, options.include_xattrs),
    ) == (1.5, 100, 1000, 1.5, 100, 1000, 20_000_000, 0.2, 20, None, 30_000, 200, False)
