"""A conversation with a data node, without a socket."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from cbframe.dcp.connection import (
    Advanced,
    Data,
    DcpConnection,
    Ended,
    MapPushed,
    Nooped,
    Opened,
    Ordered,
    Refused,
    RollbackRequired,
    Sampled,
    Snapshot,
    Timed,
)
from cbframe.dcp.streams import Stream
from cbframe.errors import (
    AccessError,
    AuthFailError,
    BucketNotFoundError,
    CbframeError,
    ProtocolError,
    ServerError,
    XAttrsNotSupportedError,
)
from cbframe.local.auth import Credentials, SaslServer
from cbframe.wire.constants import (
    DATA_OPCODES,
    MAX_SEQNO,
    Datatype,
    Feature,
    Magic,
    Opcode,
    SnapshotFlag,
    Status,
    StreamEndReason,
)
from cbframe.wire.framing import Frame, request, response
from cbframe.wire.messages import (
    DcpNoop,
    OsoSnapshot,
    SeqnoAdvanced,
    SnapshotMarker,
    StreamEnd,
    StreamRequest,
    encode_failover_log,
    encode_vbucket_seqnos,
    parse_request,
)

from . import server
from .server import (
    LOGIN,
    SETTINGS,
    connect,
    consumed,
    deletion,
    feed,
    frames,
    good_answer,
    mutation,
    open_stream,
    push,
    refusal,
    shake_hands,
)


def marker(stream: Stream, start: int, end: int, flags: int = 1) -> bytes:
    return SnapshotMarker(stream.vbucket, start, end, flags).frame(stream.opaque).encode()


def streaming(vb: int = 0, window: int = 1000, **fields: int) -> tuple[DcpConnection, Stream]:
    """A connection with a stream that is granted."""
    connection = connect(replace(SETTINGS, feed_buffer_size_bytes=window))
    return connection, open_stream(connection, vb, **fields)


def seqnos(events: list[object]) -> list[int]:
    return [s for event in events if isinstance(event, Data) for s in event.block.seqno.tolist()]


WIDE = 1 << 20
"""A window that nothing here fills."""


# --- handshake

LOGGING_IN = [Opcode.HELLO, Opcode.SASL_LIST_MECHS, Opcode.SASL_AUTH]
OPENING = [Opcode.SELECT_BUCKET, Opcode.GET_ALL_VB_SEQNOS, Opcode.DCP_OPEN, *[Opcode.DCP_CONTROL] * 9]
TURNS = [LOGGING_IN, [Opcode.SASL_AUTH, *OPENING]]
"""Of a node that refuses SCRAM and takes PLAIN: what goes out together."""
ORDER = [opcode for turn in TURNS for opcode in turn]
OPTIONAL = range(10, 16)
"""Places of the controls that old servers do not know."""
FIRST_TRY = 2
"""Place of the SASL_AUTH that is a try."""


def test_the_handshake_in_order() -> None:
    connection = DcpConnection(LOGIN, SETTINGS)
    turns = server.shake_hands(connection)
    assert [[frame.opcode for frame in asked] for asked in turns] == TURNS
    asked = [frame for turn in turns for frame in turn]
    assert len({frame.opaque for frame in asked}) == len(asked)
    assert connection.session is not None
    assert connection.session.seqnos == {0: 5, 1: 0}
    controls = [(f.key.decode(), f.value.decode()) for f in asked if f.opcode == Opcode.DCP_CONTROL]
    assert controls[:3] == [
        ("enable_noop", "true"),
        ("set_noop_interval", "20"),
        ("connection_buffer_size", "1000"),
    ]
    assert connection.data_to_send() == b""


def scram_of_a_node(asked: Frame, sasl: SaslServer) -> Frame:
    """How a node of today answers, which knows the user's password."""
    if asked.opcode == Opcode.SASL_LIST_MECHS:
        return replace(good_answer(asked), value=b"SCRAM-SHA512 SCRAM-SHA256 SCRAM-SHA1 PLAIN")
    if asked.opcode not in (Opcode.SASL_AUTH, Opcode.SASL_STEP):
        return good_answer(asked)
    take = sasl.step if asked.opcode == Opcode.SASL_STEP else partial(sasl.auth, asked.key.decode())
    answer = take(asked.value)
    return response(asked.opcode, opaque=asked.opaque, status=answer.status, value=answer.value)


def test_a_handshake_takes_two_turns() -> None:
    sasl = SaslServer(Credentials("user", "secret"))
    connection = DcpConnection(LOGIN, SETTINGS)
    turns = server.shake_hands(connection, partial(scram_of_a_node, sasl=sasl))
    assert [[frame.opcode for frame in asked] for asked in turns] == [
        LOGGING_IN,
        [Opcode.SASL_STEP, *OPENING],
    ]
    assert connection.session is not None


def test_a_certificate_takes_two_turns() -> None:
    connection = DcpConnection(replace(LOGIN, username=None, password=""), SETTINGS)
    turns = server.shake_hands(connection)
    assert [[frame.opcode for frame in asked] for asked in turns] == [[Opcode.HELLO], OPENING]


def test_a_wrong_password_is_an_error_before_what_was_sent_with_it() -> None:
    """Regression for the order: the node refuses the bucket, too, whose user it does not know."""
    sasl = SaslServer(Credentials("user", "another"))
    connection = DcpConnection(LOGIN, SETTINGS)

    def answer(asked: Frame) -> Frame:
        if asked.opcode in OPENING:
            return refusal(asked, Status.EACCESS)
        return scram_of_a_node(asked, sasl)

    with pytest.raises(AuthFailError, match="SCRAM-SHA512"):
        server.shake_hands(connection, answer)


def test_a_list_without_the_best_mechanism() -> None:
    """SCRAM-SHA512 was tried before the list was known; another one is tried after it."""
    sasl = SaslServer(Credentials("user", "secret"))
    connection = DcpConnection(LOGIN, SETTINGS)

    def answer(asked: Frame) -> Frame:
        if asked.opcode == Opcode.SASL_LIST_MECHS:
            return replace(good_answer(asked), value=b"PLAIN SCRAM-SHA1")
        if asked.key == b"SCRAM-SHA512":
            return refusal(asked, Status.AUTH_ERROR)
        return scram_of_a_node(asked, sasl)

    turns = server.shake_hands(connection, answer)
    assert connection.session is not None
    assert [(f.opcode, f.key) for f in turns[1]] == [(Opcode.SASL_AUTH, b"SCRAM-SHA1")]
    assert turns[2][0].opcode == Opcode.SASL_STEP


def refused_at(place: int, status: int) -> DcpConnection:
    """A connection, one of whose requests was refused."""
    connection = DcpConnection(LOGIN, SETTINGS)
    numbers = iter(range(100))
    server.shake_hands(
        connection, lambda asked: refusal(asked, status) if next(numbers) == place else good_answer(asked)
    )
    return connection


@pytest.mark.parametrize("place", range(len(ORDER)))
@pytest.mark.parametrize("status", server.STATUSES)
def test_a_refusal_at_each_step(place: int, status: Status) -> None:
    absent = place in OPTIONAL and status in (Status.EINVAL, Status.NOT_SUPPORTED)
    if absent or place == FIRST_TRY:
        assert refused_at(place, status).session is not None
        return
    with pytest.raises(CbframeError) as caught:
        refused_at(place, status)
    error = caught.value
    if status == Status.EACCESS:
        expected = {3: AuthFailError, 4: BucketNotFoundError}.get(place, AccessError)
        assert type(error) is expected
    else:
        assert type(error) is ServerError
        assert error.status == status
    assert error.permanent == (status != Status.ETMPFAIL)
    assert "secret" not in f"{error}{error!r}"


def test_a_directory_that_does_not_answer_is_asked_again_later() -> None:
    """Its users are those of whom the node has no keys: PLAIN is passed on."""

    def answer(asked: Frame) -> Frame:
        if asked.opcode == Opcode.SASL_LIST_MECHS:
            return replace(good_answer(asked), value=b"SCRAM-SHA512 PLAIN")
        if asked.opcode == Opcode.SASL_AUTH:
            return refusal(asked, Status.ETMPFAIL if asked.key == b"PLAIN" else Status.AUTH_ERROR)
        return good_answer(asked)

    with pytest.raises(ServerError, match="SCRAM-SHA512, then PLAIN failed") as caught:
        server.shake_hands(DcpConnection(LOGIN, SETTINGS), answer)
    assert not caught.value.permanent
    assert caught.value.hint == "the directory (LDAP) that the cluster asks does not answer"


def refused_with(status: int, *opcodes: Opcode) -> Any:
    """The error of a handshake in which some kinds of requests are refused."""
    with pytest.raises(CbframeError) as caught:
        server.shake_hands(
            DcpConnection(LOGIN, SETTINGS),
            lambda asked: refusal(asked, status) if asked.opcode in opcodes else good_answer(asked),
        )
    return caught.value


@pytest.mark.parametrize("status", [Status.CONFIG_ONLY, Status.NO_BUCKET, Status.ETMPFAIL])
def test_a_node_that_is_not_ready_is_known_by_its_first_answer(status: Status) -> None:
    """Regression: it hangs up when it is ready, and the answers to what was sent with it do not come."""
    answered: list[int] = []

    def answer(asked: Frame) -> Frame:
        answered.append(asked.opcode)
        return refusal(asked, status) if asked.opcode == Opcode.GET_ALL_VB_SEQNOS else good_answer(asked)

    with pytest.raises(ServerError, match="GET_ALL_VB_SEQNOS") as caught:
        server.shake_hands(DcpConnection(LOGIN, SETTINGS), answer)
    assert (caught.value.status, caught.value.permanent) == (status, False)
    assert answered[-1] == Opcode.GET_ALL_VB_SEQNOS


def test_who_may_not_read_over_dcp_hears_of_that_role_first() -> None:
    """The high seqnos are asked for before, and refused, too."""
    error = refused_with(Status.EACCESS, Opcode.GET_ALL_VB_SEQNOS, Opcode.DCP_OPEN)
    assert type(error) is AccessError
    assert "over DCP" in error.message


LIMITS = [Status.WOULD_THROTTLE, *(status for status in Status if status.name.startswith("RATE_LIMITED"))]


@pytest.mark.parametrize(
    ("status", "opcode", "kind", "permanent", "words"),
    [
        # The node may not have the bucket yet: whether there is one is for others to say.
        (Status.KEY_ENOENT, Opcode.SELECT_BUCKET, BucketNotFoundError, False, "check the bucket's name"),
        *((limit, Opcode.DCP_OPEN, ServerError, False, "") for limit in LIMITS),
        *(
            (status, opcode, ServerError, False, "try again")
            for status in (Status.CONFIG_ONLY, Status.NO_BUCKET)  # it is not loaded yet
            for opcode in (Opcode.DCP_OPEN, Opcode.DCP_CONTROL, Opcode.GET_ALL_VB_SEQNOS)
        ),
        *(
            (Status.BUCKET_PAUSED, opcode, BucketNotFoundError, True, "paused")
            for opcode in (Opcode.SELECT_BUCKET, Opcode.DCP_OPEN, Opcode.GET_ALL_VB_SEQNOS)
        ),
    ],
)
def test_what_a_refusal_means(
    status: Status, opcode: Opcode, kind: type[CbframeError], permanent: bool, words: str
) -> None:
    error = refused_with(status, opcode)
    assert (type(error), error.permanent) == (kind, permanent)
    assert isinstance(error, BucketNotFoundError) or error.status == status
    assert words in str(error)


def test_xattrs_that_are_not_granted() -> None:
    with pytest.raises(XAttrsNotSupportedError):
        connect(replace(SETTINGS, include_xattrs=True), (Feature.SELECT_BUCKET,))


def test_a_noop_during_the_handshake_is_answered() -> None:
    """Regression: the server may send it as soon as it is enabled."""
    connection = DcpConnection(LOGIN, SETTINGS)
    connection.data_to_send()
    assert feed(connection, DcpNoop(5).frame().encode()) == [Nooped()]
    (answer,) = frames(connection.data_to_send())
    assert (answer.magic, answer.opcode, answer.opaque) == (Magic.RESPONSE, Opcode.DCP_NOOP, 5)


@pytest.mark.parametrize(
    "data",
    [mutation(0, 1, 1), SnapshotMarker(0, 0, 1, 1).frame(1).encode(), response(Opcode.GET).encode(), b"HTTP"],
)
def test_what_does_not_belong_into_a_handshake(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        feed(DcpConnection(LOGIN, SETTINGS), data)


# --- streaming


def conversation(a: Stream, b: Stream) -> bytes:
    return b"".join(
        (
            marker(a, 0, 3, 2),
            mutation(0, a.opaque, 1),
            mutation(0, a.opaque, 2),
            marker(b, 0, 9, 1),
            mutation(1, b.opaque, 4),
            deletion(0, a.opaque, 3),
            DcpNoop(9).frame().encode(),
            StreamEnd(0, 0).frame(a.opaque).encode(),
            mutation(1, b.opaque, 5),
            SeqnoAdvanced(1, 9).frame(b.opaque).encode(),
        )
    )


def outline(events: list[object]) -> dict[int, list[object]]:
    """What each vbucket's receiver would see, whatever the blocks."""
    found: dict[int, list[object]] = {0: [], 1: []}
    for event in events:
        match event:
            case Data(block=block):
                for vb, seqno, opcode in zip(
                    block.vbucket.tolist(), block.seqno.tolist(), block.opcode.tolist(), strict=True
                ):
                    found[vb].append((opcode, seqno))
            case Snapshot(stream=stream) | Advanced(stream=stream) | Ended(stream=stream):
                found[stream.vbucket].append(type(event).__name__)
    return found


@pytest.mark.parametrize("step", [1, 7, 24, 25, 61, 10_000])
def test_pieces_of_any_size_give_the_same_events(step: int) -> None:
    connection = connect(replace(SETTINGS, feed_buffer_size_bytes=WIDE))
    data = conversation(open_stream(connection, 0), open_stream(connection, 1))
    events: list[object] = []
    buffer = b""
    for start in range(0, len(data), step):
        buffer += data[start : start + step]
        view = bytearray(buffer)
        events += consumed(connection, view)
        buffer = buffer[connection.consumed :]
    assert buffer == b""
    assert outline(events) == {
        0: ["Snapshot", (0x57, 1), (0x57, 2), (0x58, 3), "Ended"],
        1: ["Snapshot", (0x57, 4), (0x57, 5), "Advanced"],
    }
    assert sum(isinstance(event, Nooped) for event in events) == 1
    assert connection.unacked == len(data) - 24
    fresh = [stream.vbucket for event in events if isinstance(event, Data) for stream in event.fresh]
    assert sorted(fresh) == [0, 1]
    (rest,) = connection.streams
    assert (rest.vbucket, rest.seqno) == (1, 9)


@pytest.mark.parametrize(
    "say",
    [
        lambda s: mutation(0, s.opaque, 1),
        lambda s: marker(s, 0, 9) + mutation(1, s.opaque, 1),
        lambda s: marker(s, 0, 9) + mutation(0, s.opaque, 5) + mutation(0, s.opaque, 4),
        lambda s: marker(s, 0, 9) + mutation(0, s.opaque, 5) + mutation(0, s.opaque, 5),
        lambda s: marker(s, 0, 3) + mutation(0, s.opaque, 4),
        lambda s: SnapshotMarker(1, 0, 9, 1).frame(s.opaque).encode(),
        lambda s: response(Opcode.DCP_STREAM_REQ, opaque=s.opaque, value=bytes(16)).encode(),
        lambda s: response(Opcode.DCP_STREAM_REQ, opaque=1, value=bytes(16)).encode(),
        lambda s: response(Opcode.DCP_BUFFER_ACK, status=4).encode(),
        lambda s: response(Opcode.GET_ALL_VB_SEQNOS).encode(),
    ],
    ids=[
        *("before the marker", "wrong vbucket", "descending", "twice", "outside", "marker of another"),
        *("accepted twice", "answer to nothing", "refused acknowledgement", "sample that was not asked for"),
    ],
)
def test_broken_rules(say: Callable[[Stream], bytes]) -> None:
    connection, stream = streaming()
    with pytest.raises(ProtocolError):
        feed(connection, say(stream))


def test_flow_control_counts_everything_but_noops() -> None:
    connection, stream = streaming(window=1000)  # the threshold is 200
    data = marker(stream, 0, 9)
    feed(connection, data)
    assert connection.unacked == len(data) == 44
    feed(connection, DcpNoop(1).frame().encode())
    assert connection.unacked == 44
    connection.data_to_send()
    unknown = request(0x6F, opaque=stream.opaque, value=b"?" * 50).encode()
    assert feed(connection, unknown) == []
    assert connection.unacked == 44 + 74
    late = mutation(0, 12345, 7)
    assert feed(connection, late) == []
    total = 44 + 74 + len(late)
    assert connection.unacked == total
    assert connection.data_to_send() == b""
    feed(connection, unknown)
    (ack,) = frames(connection.data_to_send())
    assert int.from_bytes(ack.extras, "big") == total + 74
    assert (connection.unacked, connection.stats.tot_upr_buffer_ack) == (0, 1)


def test_documents_wait_for_whoever_takes_them() -> None:
    connection, stream = streaming()
    items = mutation(0, stream.opaque, 1, value=b"x" * 300) + mutation(0, stream.opaque, 2)
    view = bytearray(marker(stream, 0, 9) + items)
    (_, data) = connection.receive(view, len(view))
    assert isinstance(data, Data)
    assert (connection.unacked, data.nbytes) == (44, len(items))
    assert connection.data_to_send() == b""
    connection.acknowledge(data.nbytes)
    (ack,) = frames(connection.data_to_send())
    assert int.from_bytes(ack.extras, "big") == 44 + len(items)


def test_without_flow_control_nothing_is_acknowledged() -> None:
    connection, stream = streaming(window=0)
    feed(connection, marker(stream, 0, 9) + mutation(0, stream.opaque, 1, value=b"x" * 5000))
    assert connection.data_to_send() == b""


def test_late_packets_of_an_earlier_stream_are_dropped() -> None:
    connection = connect()
    old = open_stream(connection)
    feed(connection, StreamEnd(0, 2).frame(old.opaque).encode())
    new = open_stream(connection)
    late = marker(old, 0, 9) + mutation(0, old.opaque, 3) + StreamEnd(0, 0).frame(old.opaque).encode()
    assert feed(connection, late) == []
    assert seqnos(feed(connection, marker(new, 0, 9) + late + mutation(0, new.opaque, 1))) == [1]
    assert new.seqno == 1


def test_closing_a_stream() -> None:
    connection, stream = streaming()
    feed(connection, marker(stream, 0, 9))
    connection.data_to_send()
    connection.close_stream(0)
    connection.close_stream(0)
    connection.close_stream(5)
    (asked,) = frames(connection.data_to_send())
    assert asked.opcode == Opcode.DCP_CLOSE_STREAM
    before = connection.unacked
    late = mutation(0, stream.opaque, 1)
    assert feed(connection, late) == []
    assert connection.unacked == before + len(late)
    assert feed(connection, good_answer(asked).encode()) == [Ended(stream, None)]
    assert len(connection.streams) == 0
    assert feed(connection, StreamEnd(0, 1).frame(stream.opaque).encode()) == []


def test_a_stream_that_the_node_does_not_have_any_more_is_closed() -> None:
    """0x0a is one of v7_dcp_status_codes."""
    connection, stream = streaming()
    connection.close_stream(0)
    (asked,) = frames(connection.data_to_send())
    feed(connection, replace(good_answer(asked), vbucket=0x0A).encode())
    assert connection.streams.get(stream.opaque) is None


@pytest.mark.parametrize("reason", list(StreamEndReason))
def test_stream_end(reason: int) -> None:
    connection, stream = streaming()
    assert feed(connection, StreamEnd(0, reason).frame(stream.opaque).encode()) == [Ended(stream, reason)]
    assert connection.streams.of_vbucket(0) is None


def answered(status: int, value: bytes) -> tuple[Stream, list[object], int]:
    """A stream that was asked for, what comes of the answer, and how many streams there are then."""
    connection = connect()
    stream = connection.request_stream(StreamRequest(0, 5, 9, 1, 5, 5))
    (asked,) = frames(connection.data_to_send())
    assert parse_request(asked) == StreamRequest(0, 5, 9, 1, 5, 5)
    answer = response(asked.opcode, opaque=asked.opaque, status=status, value=value).encode()
    return stream, feed(connection, answer), len(connection.streams)


def test_refused_and_rolled_back() -> None:
    stream, events, left = answered(Status.NOT_MY_VBUCKET, b"{}")
    assert (events, left) == ([Refused(stream, Status.NOT_MY_VBUCKET, b"{}")], 0)
    stream, events, left = answered(Status.ROLLBACK, (3).to_bytes(8, "big"))
    assert (events, left) == ([RollbackRequired(stream, 3)], 0)


@pytest.mark.parametrize("value", [b"", bytes(15)])
@pytest.mark.parametrize("status", [Status.SUCCESS, Status.ROLLBACK])
def test_broken_answers_to_a_stream_request(value: bytes, status: int) -> None:
    with pytest.raises(ProtocolError):
        answered(status, value)


def test_a_marker_that_wants_an_answer() -> None:
    connection, stream = streaming()
    feed(connection, marker(stream, 0, 9, SnapshotFlag.MEMORY | SnapshotFlag.ACK))
    (answer,) = frames(connection.data_to_send())
    assert (answer.magic, answer.opcode) == (Magic.RESPONSE, Opcode.DCP_SNAPSHOT_MARKER)
    assert answer.opaque == stream.opaque


def test_sampling_again() -> None:
    connection = connect()
    connection.sample()
    connection.sample()
    (asked,) = frames(connection.data_to_send())
    stream = open_stream(connection, 1)
    answer = response(asked.opcode, opaque=asked.opaque, value=encode_vbucket_seqnos({0: 9})).encode()
    assert feed(connection, answer) == [Sampled({0: 9})]
    connection.sample()
    assert len(frames(connection.data_to_send())) == 1
    assert connection.streams.of_vbucket(1) is stream


def test_the_failover_log_comes_with_the_stream() -> None:
    stream = open_stream(connect())
    assert encode_failover_log(stream.failover_log) == encode_failover_log(server.LOG)
    assert stream.vbuuid == 22


def test_the_time_is_asked_for_without_waiting() -> None:
    connection = connect(replace(SETTINGS, ask_time=True))
    (asked,) = frames(connection.data_to_send())
    assert (asked.opcode, asked.key) == (Opcode.STAT, b"")
    # Streams and seqnos are asked for meanwhile; answers to these come between the lines.
    stream = connection.request_stream(StreamRequest(0))
    connection.sample()
    (stream_asked, sample_asked) = frames(connection.data_to_send())

    def line(key: bytes, value: bytes) -> bytes:
        return response(Opcode.STAT, opaque=asked.opaque, key=key, value=value).encode()

    assert feed(connection, line(b"pid", b"12") + line(b"time", b"1772366400")) == [Timed(1772366400)]
    assert feed(connection, good_answer(sample_asked).encode()) == [Sampled({0: 5, 1: 0})]
    assert feed(connection, line(b"times", b"1") + line(b"", b"")) == []
    assert feed(connection, good_answer(stream_asked).encode()) == [Opened(stream)]
    with pytest.raises(ProtocolError, match="an answer to nothing that was asked"):
        feed(connection, line(b"time", b"1"))


@pytest.mark.parametrize("value", [b"", b"-5", b"1e9", b"99999999999999999"])
def test_nonsense_is_no_time(value: bytes) -> None:
    connection = connect(replace(SETTINGS, ask_time=True))
    (asked,) = frames(connection.data_to_send())
    told = response(Opcode.STAT, opaque=asked.opaque, key=b"time", value=value).encode()
    assert feed(connection, told) == []
    assert feed(connection, refusal(asked, Status.EACCESS).encode()) == []


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (push(), [MapPushed((1, 7), b'{"rev":7}')]),
        (push(extras=struct.pack(">I", 7)), [MapPushed((0, 7), b'{"rev":7}')]),
        (push(b""), [MapPushed((1, 7), b"")]),
        # What is packed is fetched.
        (push(b"\x01\x00x", datatype=Datatype.JSON | Datatype.SNAPPY), [MapPushed((1, 7), b"")]),
        # Of another bucket, of the cluster as a whole, of another kind.
        (push(bucket=b"other"), []),
        (push(bucket=b""), []),
        (push(bucket=b"", extras=b""), []),
        (push(opcode=2), []),
        (push(opcode=9, extras=b""), []),
    ],
)
def test_what_a_push_tells(data: bytes, expected: list[object]) -> None:
    connection = connect()
    assert feed(connection, data) == expected
    assert connection.data_to_send() == b""


@pytest.mark.parametrize("length", [0, 3, 5, 15, 17])
def test_a_revision_of_a_wrong_length(length: int) -> None:
    with pytest.raises(ProtocolError, match="extras of"):
        feed(connect(), push(extras=bytes(length)))


def test_what_a_real_node_pushes() -> None:
    """As recorded: its pushes are read, and their maps have the revisions that they announce."""
    golden = Path(__file__).parent.parent / "golden"
    recorded = frames((golden / "clustermap_push.s2c.bin").read_bytes())
    pushed = [frame for frame in recorded if frame.magic == Magic.SERVER_REQUEST]
    names = {frame.key for frame in pushed} - {b""}
    assert names
    for name in names:
        connection = DcpConnection(replace(LOGIN, bucket=name.decode()), SETTINGS)
        shake_hands(connection)
        events = feed(connection, b"".join(frame.encode() for frame in pushed))
        assert len(events) == sum(frame.key == name for frame in pushed)
        for event in events:
            assert isinstance(event, MapPushed)
            found = json.loads(event.body)
            assert event.revision == (found["revEpoch"], found["rev"])


def test_the_connection_counts_for_itself_if_nobody_else_does() -> None:
    connection = DcpConnection(LOGIN, SETTINGS)
    assert connection.data_to_send()
    assert (connection.handed, connection.stats.tot_worker_transmit) == (3, 3)


# --- snapshots without an order


def message(stream: Stream, what: OsoSnapshot | SeqnoAdvanced | SnapshotMarker | StreamEnd) -> bytes:
    return what.frame(stream.opaque).encode()


def begin_oso(stream: Stream) -> bytes:
    return message(stream, OsoSnapshot(1, 1))


def end_oso(stream: Stream) -> bytes:
    return message(stream, OsoSnapshot(1, 2))


@pytest.mark.parametrize("advanced", [0, 7, 9, 12], ids=lambda seqno: f"advanced to {seqno}")
@pytest.mark.parametrize("after", [False, True])
def test_an_out_of_order_snapshot(advanced: int, after: bool) -> None:
    """No position inside of it; behind it, the highest seqno that was seen or told."""
    connection, stream = streaming(1, WIDE)
    told = message(stream, SeqnoAdvanced(1, advanced)) if advanced else b""
    documents = b"".join(mutation(1, stream.opaque, seqno) for seqno in (9, 3, 5))
    events = feed(connection, begin_oso(stream) + documents)
    assert isinstance(events[0], Snapshot)
    assert (stream.snap_start, stream.snap_end, stream.snap_flags) == (0, MAX_SEQNO, SnapshotFlag.DISK)
    assert (stream.unordered, stream.seqno) == (True, 0)
    assert isinstance(events[1], Data)
    assert events[1].block.seqno.tolist() == [9, 3, 5]
    events = feed(connection, end_oso(stream) + told if after else told + end_oso(stream))
    kinds = [Ordered, Advanced] if after else [Advanced, Ordered]
    assert [type(event) for event in events] == (kinds if advanced else [Ordered])
    assert not stream.unordered
    assert stream.seqno == max(9, advanced)
    # What follows has an order again.
    feed(connection, message(stream, SnapshotMarker(1, 13, 14, 1)) + mutation(1, stream.opaque, 14))
    assert stream.seqno == 14
    with pytest.raises(ProtocolError):
        feed(connection, mutation(1, stream.opaque, 13))


def test_what_a_real_node_sends() -> None:
    """As recorded: a bounded stream, and one that goes on after such a snapshot."""
    recorded = frames((Path(__file__).parent.parent / "golden" / "oso.s2c.bin").read_bytes())
    opaques = {frame.opaque: frame.vbucket for frame in recorded if frame.opcode == Opcode.DCP_OSO_SNAPSHOT}
    reached = []
    for opaque, vbucket in opaques.items():
        connection, stream = streaming(vbucket, WIDE)
        sent = [frame for frame in recorded if frame.opaque == opaque and not frame.is_response]
        events = feed(connection, b"".join(replace(f, opaque=stream.opaque).encode() for f in sent))
        kinds = [type(event) for event in events]
        assert kinds.index(Snapshot) < kinds.index(Data) < kinds.index(Ordered)
        found = [seqno for event in events if isinstance(event, Data) for seqno in event.block.seqno.tolist()]
        assert found == [int.from_bytes(f.extras[:8], "big") for f in sent if f.opcode in DATA_OPCODES]
        reached.append((stream.seqno, max(found)))
    assert len(reached) == 2
    assert all(seqno == highest for seqno, highest in reached)


def test_order_broken_off() -> None:
    """A stream cannot be complete then; other ends may come at any time."""
    connection, stream = streaming(1, WIDE)
    feed(connection, begin_oso(stream) + mutation(1, stream.opaque, 9))
    with pytest.raises(ProtocolError, match="complete inside an out-of-order snapshot") as caught:
        feed(connection, message(stream, StreamEnd(1, StreamEndReason.OK)))
    assert caught.value.vbucket == 1
    connection, stream = streaming(1, WIDE)
    feed(connection, begin_oso(stream) + mutation(1, stream.opaque, 9))
    feed(connection, message(stream, StreamEnd(1, StreamEndReason.STATE_CHANGED)))
    assert connection.streams.of_vbucket(1) is None


@pytest.mark.parametrize(
    "say",
    [
        lambda s: begin_oso(s) + begin_oso(s),
        end_oso,
        lambda s: begin_oso(s) + end_oso(s) + begin_oso(s),
        lambda s: begin_oso(s) + message(s, SnapshotMarker(1, 0, 9, 1)),
        lambda s: message(s, SnapshotMarker(1, 0, 9, 1)) + begin_oso(s),
        lambda s: message(s, OsoSnapshot(1, 0)),
        lambda s: message(s, OsoSnapshot(1, 3)),
    ],
    ids=["twice", "end_oso only", "again", "marker inside", "after a marker", "flags 0", "flags 3"],
)
def test_out_of_order_snapshots_out_of_place(say: Callable[[Stream], bytes]) -> None:
    connection, stream = streaming(1, WIDE)
    with pytest.raises(ProtocolError, match="out-of-order snapshot") as caught:
        feed(connection, say(stream))
    assert caught.value.vbucket == 1


def test_an_out_of_order_snapshot_is_for_a_start_from_nothing() -> None:
    connection, stream = streaming(1, WIDE, start=5, vbuuid=22)
    with pytest.raises(ProtocolError, match="not the first"):
        feed(connection, begin_oso(stream))


def test_a_prepare_is_no_document_and_hides_none() -> None:
    """Its byte 29 says *deleted*; the reference took bytes 28 and 29 for a length."""
    connection, stream = streaming(1)
    extras = bytes(28) + b"\x00\x01\x02"
    prepare = request(0x60, vbucket=1, opaque=stream.opaque, extras=extras, key=b"\0k", value=b"{}").encode()
    before = connection.unacked
    assert feed(connection, prepare) == []
    # That is how servers count it.
    assert connection.unacked == before + len(prepare) + 2
    abort = request(0x63, vbucket=1, opaque=stream.opaque, extras=bytes(16), key=b"\0k").encode()
    assert feed(connection, abort) == []
    assert connection.unacked == before + len(prepare) + 2 + len(abort)
    assert connection.stats.tot_upr_data_change == 0


def test_a_commit_cannot_be_passed_over() -> None:
    """The document that it makes true was not shown: without it the read would not be whole."""
    connection, stream = streaming(1)
    commit = request(0x62, vbucket=1, opaque=stream.opaque, extras=bytes(16), key=b"\0k").encode()
    with pytest.raises(ProtocolError, match="commit") as caught:
        feed(connection, commit)
    assert (caught.value.opcode, caught.value.vbucket) == (0x62, 1)
