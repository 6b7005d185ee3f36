"""Streams: what is granted, what they send and when, and what they send to those who ask for more."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cbframe.local import LocalCluster
from cbframe.local import dcp as local_dcp
from cbframe.local.bucket import LocalManifest
from cbframe.local.dcp import Filter, check_range, effective_end, parse_filter, rollback_point
from cbframe.wire.constants import MAX_SEQNO, Magic, Opcode, Status, StreamEndReason, StreamFlag
from cbframe.wire.framing import Frame, request
from cbframe.wire.messages import (
    BufferAck,
    CloseStream,
    DcpControl,
    DcpOpen,
    FailoverEntry,
    Hello,
    SeqnoAdvanced,
    StreamRequest,
    parse_message,
    parse_rollback_seqno,
)

from .client import (
    COLLECTIONS,
    DATA,
    LEGACY,
    Client,
    context,
    marker,
    names,
    noop,
    reason,
    seqno,
    seqnos,
    snapshot,
    vbuuid,
)

LOG = (FailoverEntry(2222, 3), FailoverEntry(1111, 0))
HIGH = 10


def wish(start: int, snap: tuple[int, int] | None = None, uuid: int = 2222, flags: int = 0) -> StreamRequest:
    low, high = snap or (start, start)
    return StreamRequest(0, start, MAX_SEQNO, uuid, low, high, flags)


@pytest.mark.parametrize(
    ("request_", "point"),
    [
        (wish(3, (1, 4), 1111), 1),
        (wish(3, (3, 3), 1111), None),
        (wish(5, (5, 5), 1111), 3),
        (wish(5, (5, 5), 9999), 0),
        (wish(12, (12, 12)), 10),
        (wish(0, uuid=0), None),
        (wish(0, uuid=9999), None),
        (wish(0, uuid=9999, flags=StreamFlag.STRICT_VBUUID), 0),
        (wish(0, uuid=0, flags=StreamFlag.STRICT_VBUUID), None),
        (wish(4, uuid=0), 0),
        (wish(10), None),
        (wish(4, (4, 40)), None),  # nothing of that snapshot was received
        (wish(5, (4, 40)), 4),
        (wish(12, (2, 12)), 10),  # a complete snapshot goes back no further than the history
        (wish(3, (0, 3), 1111), None),
        (wish(4, (0, 8), 1111), 0),
    ],
)
def test_rollback_table(request_: StreamRequest, point: int | None) -> None:
    assert rollback_point(request_, LOG, HIGH) == point


def test_purged_tombstones_roll_back_to_zero() -> None:
    assert rollback_point(wish(4), LOG, HIGH, purge=5) == 0
    assert rollback_point(wish(5), LOG, HIGH, purge=5) is None
    ignoring = wish(4, flags=StreamFlag.IGNORE_PURGED_TOMBSTONES)
    assert rollback_point(ignoring, LOG, HIGH, purge=5) is None
    assert rollback_point(wish(0, uuid=0), LOG, HIGH, purge=5) is None


@pytest.mark.parametrize(
    ("numbers", "good"),
    [((10, 5, 10, 10), False), ((5, 100, 6, 10), False), ((5, 100, 1, 4), False), ((5, 5, 5, 5), True)],
)
def test_range(numbers: tuple[int, int, int, int], good: bool) -> None:
    start, end, low, high = numbers
    assert check_range(StreamRequest(0, start, end, 1, low, high)) is good


@pytest.mark.parametrize(
    ("value", "result"),
    [
        (b"", Filter()),
        (b'{"uid":"ff"}', Filter()),
        (b'{"collections":["0"]}', Filter(frozenset({0}))),
        (b'{"collections":[]}', Filter(frozenset())),
        (b'{"scope":"8"}', Filter(scope=8)),
        (b'{"scope":"77"}', Status.UNKNOWN_SCOPE),
        (b'{"collections":["77"]}', Status.UNKNOWN_COLLECTION),
        (b'{"scope":"8","collections":["8"]}', Status.EINVAL),
        (b"{}", Status.EINVAL),
        (b"[]", Status.EINVAL),
        (b"{bad", Status.EINVAL),
        (b'{"collections":[8]}', Status.EINVAL),
        (b'{"collections":8}', Status.EINVAL),
        (b'{"sid":1,"collections":["8"]}', Status.DCP_STREAM_ID_INVALID),
    ],
)
def test_filters_as_the_real_node_answers(value: bytes, result: Filter | Status) -> None:
    manifest = LocalManifest()
    manifest.create_scope("inventory")
    assert parse_filter(value, manifest) == result


def test_to_latest_ends_at_the_high_seqno() -> None:
    assert effective_end(wish(3), HIGH) == MAX_SEQNO
    assert effective_end(wish(3, flags=StreamFlag.TO_LATEST), HIGH) == HIGH
    assert effective_end(wish(3, flags=StreamFlag.DISK_ONLY), HIGH) == HIGH


DISK, LIVE, FIRST_LIVE = 6, 1, 5


def fill(cluster: LocalCluster, count: int, size: int = 10) -> None:
    for number in range(1, count + 1):
        cluster.upsert(f"key{number:03d}", b"x" * size)


# ---------------------------------------------------------------------- open and control


def test_open_refuses_bad_flags(kv: Client) -> None:
    """Others are in the recording dcp_open_errors."""
    assert kv.call(DcpOpen("x", 0x80)).status == Status.EINVAL


def test_open_once_and_with_a_name(kv: Client) -> None:
    assert kv.call(DcpOpen("", 1)).status == Status.EINVAL
    assert kv.call(DcpOpen("x", 1)).status == Status.SUCCESS
    assert kv.call(DcpOpen("x", 1)).status == Status.EINVAL


def test_names_that_are_too_long(cluster: LocalCluster) -> None:
    """A recorded node takes one of 201 bytes; of any request, its key has a limit, which HELLO moves."""
    with Client(cluster).login(COLLECTIONS) as client:
        answer = client.call(DcpOpen("n" * 252, 1))
        assert (answer.status, context(answer)) == (Status.EINVAL, "Key length exceeds 251")
        assert client.call(DcpOpen("n" * 201, 1)).status == Status.SUCCESS
    with Client(cluster).login(LEGACY) as client:
        answer = client.call(DcpOpen("n" * 251, 1))
        assert (answer.status, context(answer)) == (Status.EINVAL, "Key length exceeds 250")
        assert client.call(Hello("a" * 251, LEGACY)).status == Status.EINVAL
        assert client.call(Hello("a" * 250, LEGACY)).status == Status.SUCCESS


def test_the_same_name_closes_the_older_connection(cluster: LocalCluster) -> None:
    with Client(cluster).login().open(name="n") as old, Client(cluster).login().open(name="n") as new:
        assert old.closed_by_server()
        assert new.stream(0).status == Status.SUCCESS


def test_controls(dcp: Client) -> None:
    """Others are in the recording control_keys."""
    assert dcp.call(DcpControl("enable_noop", "maybe")).status == Status.EINVAL
    assert dcp.call(DcpControl("enable_stream_id", "true")).status == Status.SUCCESS


def test_dcp_commands_need_dcp_open(kv: Client) -> None:
    assert kv.call(DcpControl("enable_noop", "true")).status == Status.EINVAL
    assert kv.call(StreamRequest(0)).status == Status.EINVAL


# ---------------------------------------------------------------------- stream requests


def test_statuses_in_order(cluster: LocalCluster, dcp: Client) -> None:
    fill(cluster, 5)
    uuid = vbuuid(cluster)
    assert dcp.stream(1).status == Status.NOT_MY_VBUCKET
    assert dcp.stream(0, 3, end=2).status == Status.ERANGE
    assert dcp.stream(0, 3, snap_start=4, snap_end=5).status == Status.ERANGE
    assert dcp.stream(0, value=b"{}").status == Status.EINVAL
    assert dcp.stream(0, flags=0x4000).status == Status.EINVAL
    assert dcp.stream(0, value=b'{"collections":["9"]}').status == Status.UNKNOWN_COLLECTION
    rollback = dcp.stream(0, 3, vbuuid=uuid + 1)
    assert (rollback.status, parse_rollback_seqno(rollback.value), rollback.extras) == (0x23, 0, b"")
    assert parse_rollback_seqno(dcp.stream(0, 9, vbuuid=uuid).value) == 5
    assert dcp.stream(0, 3, vbuuid=uuid).status == Status.SUCCESS
    # Already open comes before the rollback check.
    dcp.send(StreamRequest(0, 3, vbuuid=uuid + 1, snap_start=3, snap_end=3))
    assert Status.KEY_EEXISTS in [f.status for f in dcp.take(4) if f.is_response]


def test_start_at_the_end_ends_at_once_without_a_marker(cluster: LocalCluster, dcp: Client) -> None:
    fill(cluster, 3)
    assert names(dcp.read(0, 3, 3, vbuuid=vbuuid(cluster))) == names(dcp.read(0, 0)) == ["STREAM_END"]


def test_from_latest(cluster: LocalCluster, dcp: Client) -> None:
    fill(cluster, 3)
    assert dcp.stream(0, flags=StreamFlag.FROM_LATEST).status == Status.SUCCESS
    cluster.upsert("new", b"1")
    assert marker(dcp.next()) == (3, 4, FIRST_LIVE)


# ---------------------------------------------------------------------- snapshots


def test_what_is_written_before_the_backfill_begins_is_in_it(cluster: LocalCluster, dcp: Client) -> None:
    fill(cluster, 3)
    with cluster.stall():
        dcp.send(StreamRequest(0, 0, 3))
        cluster.upsert("key003", b"again")
    dcp.next()
    assert seqnos(dcp.until_end())[-1] >= 3


def test_a_live_tail_and_its_bounded_end(cluster: LocalCluster, dcp: Client) -> None:
    fill(cluster, 2)
    assert dcp.stream(0, end=4).status == 0
    assert seqnos(dcp.take(3)) == [1, 2]
    cluster.upsert("a", b"1")
    first = dcp.take(2)
    assert (marker(first[0]), seqnos(first)) == ((3, 3, FIRST_LIVE), [3])
    cluster.delete("a")
    rest = dcp.until_end()
    assert (marker(rest[0]), names(rest[1:])) == ((4, 4, LIVE), ["DELETION", "STREAM_END"])


def test_two_connections_at_once_get_the_same(cluster: LocalCluster) -> None:
    fill(cluster, 200, 2000)
    with (
        Client(cluster).login().open(name="a", connection_buffer_size="1000") as first,
        Client(cluster).login().open(name="b") as second,
    ):
        first.sock.sendall(StreamRequest(0, 0, 200).frame(0xAAAA).encode())
        second.sock.sendall(StreamRequest(0, 0, 200).frame(0xBBBB).encode())
        second.next()
        theirs = second.until_end()
        first.ack(1 << 30)
        first.call(DcpControl("connection_buffer_size", "0"))
        ours = [frame for frame in first.until_end() if not frame.is_response]
        assert {f.opaque for f in theirs} == {0xBBBB}
        assert {f.opaque for f in ours} <= {0xAAAA}
        assert seqnos(theirs)[-1] == seqnos(ours)[-1] == 200


# ---------------------------------------------------------------------- what a change looks like


def test_thousand_documents_byte_for_byte() -> None:
    truth = {
        b"doc-%d-\xc3\xbc" % n: b'{"n":%d,"t":"%s"}' % (n, "été".encode() * (n % 50)) for n in range(1000)
    }
    with LocalCluster(vbuckets=8) as cluster:
        cluster.bulk_load(truth.items())
        for features, prefix in ((COLLECTIONS, b"\0"), (LEGACY, b"")):
            found: dict[bytes, bytes] = {}
            with Client(cluster).login(features).open() as client:
                for vbucket, high in cluster.high_seqnos().items():
                    for frame in client.read(vbucket, high):
                        if frame.opcode in DATA:
                            assert frame.key.startswith(prefix)
                            assert frame.datatype == 1
                            found[frame.key[len(prefix) :]] = frame.value
            assert found == truth


def test_dropping_a_filtered_collection_ends_the_stream(cluster: LocalCluster, dcp: Client) -> None:
    cluster.create_scope("s")
    cluster.create_collection("s", "c")
    cluster.upsert("x", b"1", collection="s.c")
    assert dcp.stream(0, value=b'{"collections":["8"]}').status == 0
    assert names(dcp.take(3)) == ["SNAPSHOT_MARKER", "SYSTEM_EVENT", "MUTATION"]
    cluster.upsert("other", b"2")  # not for this stream
    cluster.drop_collection("s", "c")
    frames = dcp.until_end()
    assert names(frames) == ["SNAPSHOT_MARKER", "SYSTEM_EVENT", "STREAM_END"]
    assert (marker(frames[0]), reason(frames[-1])) == ((5, 5, FIRST_LIVE), StreamEndReason.FILTER_EMPTY)
    assert dcp.stream(0, value=b'{"collections":["8"]}').status == Status.UNKNOWN_COLLECTION
    assert [f.key for f in dcp.read(0, 5) if f.opcode in DATA] == [b"\0other"]


# ---------------------------------------------------------------------- flow control


def test_flow_control_pauses_and_resumes_by_bytes(cluster: LocalCluster) -> None:
    fill(cluster, 30, 500)
    message = 24 + 31 + 1 + 6 + 500
    with Client(cluster).login().open(connection_buffer_size="2000") as client:
        assert client.stream(0, end=30).status == 0
        got = client.take(1 + 4)  # marker, then the one that crosses 2000
        assert [len(f) for f in got] == [44] + [message] * 4
        assert client.call(noop()).opcode == Opcode.NOOP  # nothing more came before it
        outstanding = 44 + 4 * message
        client.ack(outstanding - 1999)  # one byte of the window is free: exactly one message
        assert seqno(client.next()) == 5
        assert client.call(noop()).opcode == Opcode.NOOP
        client.ack(1999 + message)
        frames = []
        while (frame := client.next()).opcode != Opcode.DCP_STREAM_END:
            frames.append(frame)
            client.ack(len(frame))
        assert seqnos(frames) == list(range(6, 31))


def test_a_window_smaller_than_any_message(cluster: LocalCluster) -> None:
    fill(cluster, 2, 500)
    with Client(cluster).login().open(connection_buffer_size="10") as client:
        assert client.stream(0, end=2).status == 0
        for expected in (0x56, 0x57, 0x57, 0x55):
            frame = client.next()
            assert frame.opcode == expected
            client.ack(len(frame) + 1_000_000)
        assert client.call(Frame(0x80, Opcode.DCP_BUFFER_ACK, extras=b"\0\0")).status == Status.EINVAL


def test_acks_without_flow_control_are_ignored(dcp: Client) -> None:
    dcp.send(BufferAck(5))
    assert dcp.read(0, 0)


# ---------------------------------------------------------------------- closing and keep-alive


def test_noops_come_and_wait_for_their_answer() -> None:
    with LocalCluster(vbuckets=1, noop_interval=0.02) as cluster, Client(cluster).login().open() as client:
        assert client.stream(0).status == 0
        first = client.frame()
        assert first == Frame(0x80, Opcode.DCP_NOOP, opaque=10_000_001)
        # Unanswered: no second one comes, whatever else does.
        client.send(noop())
        assert (answer := client.frame()) is not None
        assert answer.opcode == Opcode.NOOP
        client.send(Frame(0x81, Opcode.DCP_NOOP, opaque=10_000_001))
        assert client.frame() == Frame(0x80, Opcode.DCP_NOOP, opaque=10_000_002)


def test_the_client_asks_for_the_interval(cluster: LocalCluster) -> None:
    with Client(cluster).login().open(set_noop_interval="0.02") as client:
        assert client.sock.recv(24)[1] == Opcode.DCP_NOOP


ONE = b'{"collections":["0"]}'


# ---------------------------------------------------------------------- out of order


@pytest.fixture
def unsorted(cluster: LocalCluster) -> LocalCluster:
    """Seqnos 1 to 3 in another order than the keys, then a scope and a collection: 4 and 5."""
    for key in "cab":
        cluster.upsert(key, b"1")
    cluster.create_scope("s")
    cluster.create_collection("s", "c")
    return cluster


def test_after_it_the_stream_is_in_order_again(unsorted: LocalCluster) -> None:
    with Client(unsorted).login().open(enable_out_of_order_snapshots="true") as client:
        assert client.stream(0, value=ONE).status == Status.SUCCESS
        assert names(client.take(5))[-1] == "OSO_SNAPSHOT"
        unsorted.upsert("d", b"2")
        first, second = client.take(2)
        assert (marker(first), seqno(second)) == ((5, 6, 5), 6)


@pytest.mark.parametrize(("value", "start"), [(b"", 0), (b'{"collections":["0","8"]}', 0), (ONE, 1)])
def test_in_order_where_that_is_not_allowed(unsorted: LocalCluster, value: bytes, start: int) -> None:
    with Client(unsorted).login().open(enable_out_of_order_snapshots="true") as client:
        frames = client.read(0, 5, start, value=value, vbuuid=vbuuid(unsorted))
    assert marker(frames[0])[1] == 5
    assert seqnos(frames) == [s for s in (1, 2, 3) if s > start]


# ---------------------------------------------------------------------- numbered streams


@pytest.fixture
def numbered(unsorted: LocalCluster) -> Iterator[Client]:
    """A connection on which streams have numbers."""
    with Client(unsorted).login().open(enable_stream_id="true") as client:
        yield client


def sids(frames: list[Frame]) -> set[bytes]:
    return {frame.framing_extras for frame in frames}


def test_two_streams_of_one_vbucket(unsorted: LocalCluster, numbered: Client) -> None:
    unsorted.upsert("x", b"1", collection="s.c")
    first = numbered.read(0, 6, value=b'{"sid":1,"collections":["0"]}')
    assert numbered.stream(0, value=b'{"sid":513,"collections":["8"]}').status == Status.SUCCESS
    second = numbered.take(3)
    assert names(second) == ["SNAPSHOT_MARKER", "SYSTEM_EVENT", "MUTATION"]
    assert (sids(first), sids(second)) == ({b"\x22\0\1"}, {b"\x22\2\1"})
    assert {f.magic for f in first + second} == {Magic.FLEX_REQUEST}
    assert seqnos(first) == [1, 2, 3]
    assert (second[2].key, second[2].value, seqno(second[2])) == (b"\x08x", b"1", 6)
    numbered.stream(0, value=b'{"sid":2}')
    numbered.take(7)
    unsorted.upsert("y", b"2", collection="s.c")
    live = numbered.take(4)
    assert sids([f for f in live if f.opcode in DATA]) == {b"\x22\2\1", b"\x22\0\2"}


def ask(client: Client, *numbers: int, end: int = MAX_SEQNO) -> None:
    """Ask for streams of vbucket 0 with these numbers and opaques, in one go."""
    requests = [StreamRequest(0, end=end, value=b'{"sid":%d}' % sid).frame(sid) for sid in numbers]
    client.sock.sendall(b"".join(frame.encode() for frame in requests))


def test_backfills_of_one_vbucket_come_one_after_another(numbered: Client) -> None:
    one = ["SNAPSHOT_MARKER", *["MUTATION"] * 3, *["SYSTEM_EVENT"] * 2]
    ask(numbered, 7, 3, 5, end=5)
    answers = numbered.take(3)
    assert [(f.is_response, f.opaque) for f in answers] == [(True, 7), (True, 3), (True, 5)]
    for sid in (7, 3, 5):
        frames = numbered.take(7)
        assert names(frames) == [*one, "STREAM_END"]
        assert {(frame.sid, frame.opaque) for frame in frames} == {(sid, sid)}


def test_a_backfill_that_is_closed_makes_way(numbered: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_dcp, "_BEFORE_BACKFILL", 60.0)
    ask(numbered, 7, 3, 5)
    numbered.take(3)
    # The last while it waits, the first before it has begun.
    for sid in (5, 7):
        assert numbered.call(CloseStream(0, sid)).status == Status.SUCCESS
    assert [frame.sid for frame in numbered.take(6)] == [3] * 6


def test_the_number_is_asked_for(unsorted: LocalCluster) -> None:
    with Client(unsorted).login().open(enable_stream_id="true") as client:
        for value in (b"", b'{"collections":["0"]}', b'{"sid":0}', b'{"sid":65536}'):
            assert client.stream(0, value=value).status == Status.DCP_STREAM_ID_INVALID
        assert client.stream(0, value=b'{"sid":"1"}').status == Status.EINVAL
        assert client.stream(0, 5, value=b'{"sid":1}', vbuuid=vbuuid(unsorted)).status == Status.SUCCESS
        assert client.stream(0, value=b'{"sid":1}').status == Status.KEY_EEXISTS
        assert client.call(CloseStream(0)).status == Status.DCP_STREAM_ID_INVALID
        for sid, status in ((7, Status.KEY_ENOENT), (1, Status.SUCCESS)):
            close = request(Opcode.DCP_CLOSE_STREAM, opaque=9)
            close = Frame(Magic.FLEX_REQUEST, close.opcode, 0, 9, framing_extras=bytes((0x22, 0, sid)))
            assert client.call(close).status == status
        assert client.call(DcpControl("enable_sync_writes", "true")).status == Status.NOT_SUPPORTED
    with Client(unsorted).login().open(enable_sync_writes="true") as client:
        assert client.call(DcpControl("enable_stream_id", "true")).status == Status.NOT_SUPPORTED


def test_the_window_counts_the_framing_extras(unsorted: LocalCluster) -> None:
    controls = {"enable_stream_id": "true", "connection_buffer_size": "1"}
    with Client(unsorted).login().open(**controls) as client:
        assert client.stream(0, end=5, value=b'{"sid":1}').status == Status.SUCCESS
        frames = []
        while not frames or frames[-1].opcode != Opcode.DCP_STREAM_END:
            frames += client.take(1)
            # One byte less would stop the stream: each message was counted whole.
            client.ack(len(frames[-1].encode()))
        assert seqnos(frames) == [1, 2, 3]


def test_a_lost_vbucket_ends_all_of_them(unsorted: LocalCluster, numbered: Client) -> None:
    for sid in (1, 2):
        value = b'{"sid":%d}' % sid
        assert numbered.stream(0, 5, value=value, vbuuid=vbuuid(unsorted)).status == Status.SUCCESS
    unsorted.fail_over(0)
    ends = numbered.take(2)
    assert {reason(f) for f in ends} == {StreamEndReason.STATE_CHANGED}
    assert sids(ends) == {b"\x22\0\1", b"\x22\0\2"}


# ---------------------------------------------------------------------- system events of version 2


def test_a_modification_is_a_seqno_to_others(unsorted: LocalCluster, dcp: Client) -> None:
    unsorted.modify_collection("s", "c", max_ttl=60)
    frames = dcp.read(0, 6)
    assert names(frames)[-3:] == ["SYSTEM_EVENT", "SEQNO_ADVANCED", "STREAM_END"]
    assert parse_message(frames[-2]) == SeqnoAdvanced(0, 6)


# ---------------------------------------------------------------------- markers


def test_marker_2_2_says_what_was_purged() -> None:
    with LocalCluster(vbuckets=1, marker_version="2.2") as cluster:
        cluster.upsert("a", b"1")
        cluster.upsert("b", b"1")
        cluster.set_purge_seqno(0, 2)
        with Client(cluster).login().open(max_marker_version="2.2") as client:
            assert client.stream(0).status == Status.SUCCESS
            first = snapshot(client.take(3)[0])
            assert (first.version, first.start, first.end) == ("v2.2", 0, 2)
            # The newest visible seqno is for connections with sync writes.
            assert (first.max_visible_seqno, first.purge_seqno, first.high_prepared_seqno) == (0, 2, 0)
            cluster.prepare("c", b"1")
            cluster.upsert("d", b"1")
            assert snapshot(client.take(2)[0]).version == "v1"
        with Client(cluster).login().open(max_marker_version="2.2") as client:
            answer = client.stream(0, 1, vbuuid=vbuuid(cluster))
            assert answer.status == Status.ROLLBACK
            seen = b'{"purge_seqno":"2"}'
            assert client.stream(0, 1, vbuuid=vbuuid(cluster), value=seen).status == Status.SUCCESS
            assert snapshot(client.take(1)[0]).high_prepared_seqno == 3


def test_the_first_snapshot_after_a_backfill_begins_where_that_ended(
    cluster: LocalCluster, dcp: Client
) -> None:
    cluster.upsert("a", b"1")
    assert dcp.stream(0).status == Status.SUCCESS
    dcp.take(2)
    with cluster.stall():
        for version in (b"2", b"3"):
            cluster.upsert("b", version)
    frames = dcp.take(2)
    assert [marker(frames[0])[:2], seqno(frames[1])] == [(2, 3), 3]


def test_forced_compression_needs_snappy(dcp: Client) -> None:
    answer = dcp.call(DcpControl("force_value_compression", "true"))
    assert answer.status == Status.EINVAL
    assert b'"context":"The ctrl parameter force_value_compression is only supported' in answer.value


@pytest.fixture
def deleted() -> Iterator[LocalCluster]:
    """An 8.0 cluster with one document, and one that was deleted."""
    with LocalCluster(vbuckets=1, version="8.0") as cluster:
        cluster.upsert("kept", {"x": 1}, flags=7)
        cluster.upsert("gone", b"1")
        cluster.delete("gone")
        yield cluster


def kinds(cluster: LocalCluster, flags: int, features: tuple[int, ...] = COLLECTIONS) -> list[str]:
    with Client(cluster).login(features).open(flags) as client:
        assert client.stream(0, end=3).status == Status.SUCCESS
        return names(client.take(3))[1:]


def test_a_key_only_backfill_of_8_0_has_deleted_documents(deleted: LocalCluster) -> None:
    assert kinds(deleted, 0x1 | 0x8) == ["MUTATION", "MUTATION"]
    assert kinds(deleted, 0x1 | 0x8, LEGACY) == ["MUTATION", "MUTATION"]


def test_other_streams_of_8_0_have_deletions(deleted: LocalCluster) -> None:
    for flags in (0x1, 0x1 | 0x40, 0x1 | 0x4 | 0x8, 0x1 | 0x4 | 0x40):
        assert kinds(deleted, flags) == ["MUTATION", "DELETION"]
    deleted.hold_in_memory(0, 1)
    assert kinds(deleted, 0x1 | 0x8) == ["MUTATION", "DELETION"]


# ---------------------------------------------------------------------- history


@pytest.fixture
def history() -> Iterator[LocalCluster]:
    with LocalCluster(vbuckets=1, history=True) as cluster:
        yield cluster


def test_every_version_of_a_document(history: LocalCluster) -> None:
    history.upsert("a", b"1")
    history.upsert("a", b"2")
    history.delete("a")
    with Client(history).login().open(change_streams="true") as client:
        assert client.stream(0).status == Status.SUCCESS
        frames = client.take(4)
        assert marker(frames[0]) == (0, 3, 0x36)
        assert seqnos(frames) == [1, 2, 3]
        assert [f.value for f in frames[1:]] == [b"1", b"2", b""]
        history.upsert("a", b"3")
        assert marker(client.take(2)[0]) == (4, 4, 0x35)
    with Client(history).login().open() as client:
        frames = client.read(0, 4)
        assert marker(frames[0])[2] == 6
        assert seqnos(frames) == [4]


def test_a_dropped_collection_has_no_history(history: LocalCluster) -> None:
    history.create_collection("_default", "c")
    history.upsert("a", b"1", collection="c")
    history.upsert("a", b"2", collection="c")
    history.drop_collection("_default", "c")
    with Client(history).login().open(change_streams="true") as client:
        assert names(client.read(0, 4))[1:] == ["SYSTEM_EVENT", "SYSTEM_EVENT", "STREAM_END"]


def test_history_needs_a_bucket_with_history(dcp: Client) -> None:
    assert dcp.call(DcpControl("change_streams", "true")).status == Status.NOT_SUPPORTED


# ---------------------------------------------------------------------- memory and disk


def test_what_is_in_memory_comes_in_snapshots_of_its_own(cluster: LocalCluster, dcp: Client) -> None:
    for key in "abcd":
        cluster.upsert(key, b"1")
    cluster.hold_in_memory(0, 3)
    frames = dcp.read(0, 4)
    assert [marker(f) for f in frames if f.opcode == Opcode.DCP_SNAPSHOT_MARKER] == [(0, 2, 6), (3, 4, 5)]
    assert seqnos(frames) == [1, 2, 3, 4]
    assert marker(dcp.read(0, 4, 2, vbuuid=vbuuid(cluster))[0]) == (2, 4, 5)
    # The snapshot that contains the end is sent whole.
    assert seqnos(dcp.read(0, 1)) == [1, 2]
    cluster.hold_in_memory(0, None)
    assert marker(dcp.read(0, 4)[0]) == (0, 4, 6)


def test_a_damaged_file(cluster: LocalCluster, dcp: Client) -> None:
    cluster.upsert("a", b"1")
    cluster.corrupt(0)
    frames = dcp.read(0, 1)
    assert (names(frames), reason(frames[0])) == (["STREAM_END"], StreamEndReason.BACKFILL_FAIL)
    assert reason(dcp.read(0, 1, 1, vbuuid=vbuuid(cluster))[0]) == StreamEndReason.OK
    cluster.mend(0)
    assert seqnos(dcp.read(0, 1)) == [1]


# ---------------------------------------------------------------------- sync writes


def test_prepared_writes_are_for_those_who_ask(cluster: LocalCluster) -> None:
    with (
        Client(cluster).login().open(enable_sync_writes="true", name="s") as asks,
        Client(cluster).login().open(name="c") as other,
        Client(cluster).login(LEGACY).open(name="l") as legacy,
    ):
        for client in (asks, other, legacy):
            assert client.stream(0).status == Status.SUCCESS
        assert cluster.prepare("a", b"1") == 1
        assert cluster.get("a") is None
        assert names(asks.take(2)) == ["SNAPSHOT_MARKER", "PREPARE"]
        for client in (other, legacy):
            assert client.call(noop()).opcode == Opcode.NOOP, "nothing came before the answer"
        assert cluster.commit("a") == 2
        assert cluster.get("a") == b"1"
        first, commit = asks.take(2)
        assert (marker(first), names([commit])) == ((2, 2, 1), ["COMMIT"])
        assert (commit.extras, commit.key) == (bytes((*bytes(7), 1, *bytes(7), 2)), b"\0a")
        for client in (other, legacy):
            assert seqnos(client.take(2)) == [2]
        cluster.prepare("a", None)
        cluster.abort("a")
        cluster.upsert("b", b"2")
        # Into how many snapshots they are divided depends on how fast the writes were.
        rest = asks.take(4)
        asks.send(DcpControl("supports_hifi_MFU", "true"))
        while not (frame := asks.next()).is_response:
            rest.append(frame)
        assert {"PREPARE", "ABORT", "MUTATION"} <= set(names(rest))
        for client in (other, legacy):
            assert seqnos(client.take(2)) == [5]


def test_sync_writes_without_collections_cannot_be_read_from_disk(cluster: LocalCluster) -> None:
    cluster.upsert("a", b"1")
    with Client(cluster).login(LEGACY).open(enable_sync_writes="true") as client:
        assert seqnos(client.read(0, 1)) == [1]
        cluster.create_scope("s")
        assert reason(client.read(0, 1)[0]) == StreamEndReason.BACKFILL_FAIL


def test_a_durable_write_is_prepared_and_committed(cluster: LocalCluster, kv: Client) -> None:
    write = Frame(Magic.FLEX_REQUEST, Opcode.SET, 0, 9, 0, 0, bytes(8), b"\0k", b"1", b"\x11\x02")
    delete = Frame(Magic.FLEX_REQUEST, Opcode.DELETE, 0, 9, key=b"\0k", framing_extras=b"\x11\x01")
    with Client(cluster).login().open(enable_sync_writes="true") as client:
        assert client.stream(0, end=4).status == Status.SUCCESS
        assert kv.call(write).status == Status.SUCCESS
        assert kv.call(delete).status == Status.SUCCESS
        data = [f for f in client.until_end() if f.opcode != Opcode.DCP_SNAPSHOT_MARKER]
        prepares = [f for f in data if f.opcode == Opcode.DCP_PREPARE]
        assert [(f.extras[30], f.extras[29]) for f in prepares] == [(2, 0), (1, 1)]
        cluster.prepare("k", b"2")
        plain = request(Opcode.SET, opaque=9, key=b"\0k", extras=bytes(8), value=b"3")
        assert kv.call(plain).status == Status.SYNC_WRITE_IN_PROGRESS
        cluster.abort("k")
        assert kv.call(plain).status == Status.SUCCESS


def test_a_fork_keeps_what_was_prepared_before(cluster: LocalCluster) -> None:
    cluster.prepare("a", b"1")
    cluster.commit("a")
    cluster.roll_back(0, 1)
    assert cluster.get("a") is None
    assert cluster.commit("a") == 2
    assert cluster.get("a") == b"1"
