from __future__ import annotations

from cbframe.local import LocalCluster
from cbframe.wire.constants import Opcode, Status, StreamEndReason, StreamFlag
from cbframe.wire.framing import Frame
from cbframe.wire.messages import BufferAck, DcpControl, DcpOpen, Hello, StreamRequest, parse_rollback_seqno

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
    vbuuid,
)

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
        frame = Frame.parse(client.sock.recv(24))
        assert frame is not None
        assert (frame[0].opcode, frame[0].opaque, len(frame[0])) == (Opcode.DCP_NOOP, 10_000_001, 24)
        # Unanswered: no second one comes, whatever else does.
        client.call(noop())
        assert client.noops == 0
        client.send(Frame(0x81, Opcode.DCP_NOOP, opaque=10_000_001))
        second = Frame.parse(client.sock.recv(24))
        assert second is not None
        assert second[0].opaque == 10_000_002


def test_the_client_asks_for_the_interval(cluster: LocalCluster) -> None:
    with Client(cluster).login().open(set_noop_interval="0.02") as client:
        assert client.sock.recv(24)[1] == Opcode.DCP_NOOP
