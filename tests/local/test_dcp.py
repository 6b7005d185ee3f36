from __future__ import annotations

import json

import pytest

from cbframe.local import LocalCluster
from cbframe.wire.constants import Opcode, Status, StreamFlag
from cbframe.wire.framing import Frame
from cbframe.wire.messages import (
    BufferAck,
    DcpControl,
    DcpOpen,
    Hello,
    StreamRequest,
    parse_rollback_seqno,
)

from .client import (
    COLLECTIONS,
    DATA,
    LEGACY,
    Client,
    marker,
    reason,
    seqno,
    seqnos,
    vbuuid,
)

DISK, LIVE, FIRST_LIVE = 6, 1, 5


def fill(cluster: LocalCluster, count: int, size: int = 10) -> None:
    for number in range(1, count + 1):
        cluster.upsert(f"key{number:03d}", b"x" * size)


def error_context(answer: Frame) -> str:
    found: str = json.loads(answer.value)["error"]["context"]
    return found


# ---------------------------------------------------------------------- open and control


def test_open_refuses_bad_flags(cluster: LocalCluster) -> None:
    """Others are in the recording dcp_open_errors."""
    with Client(cluster).login() as client:
        assert client.call(DcpOpen("x", 0x80)).status == Status.EINVAL


def test_open_once_and_with_a_name(cluster: LocalCluster) -> None:
    with Client(cluster).login() as client:
        assert client.call(DcpOpen("", 1)).status == Status.EINVAL
        assert client.call(DcpOpen("x", 1)).status == Status.SUCCESS
        assert client.call(DcpOpen("x", 1)).status == Status.EINVAL


def test_names_that_are_too_long(cluster: LocalCluster) -> None:
    """A recorded node takes one of 201 bytes; of any request, its key has a limit, which HELLO moves."""
    with Client(cluster).login(COLLECTIONS) as client:
        answer = client.call(DcpOpen("n" * 252, 1))
        assert (answer.status, error_context(answer)) == (Status.EINVAL, "Key length exceeds 251")
        assert client.call(DcpOpen("n" * 201, 1)).status == Status.SUCCESS
    with Client(cluster).login(LEGACY) as client:
        answer = client.call(DcpOpen("n" * 251, 1))
        assert (answer.status, error_context(answer)) == (Status.EINVAL, "Key length exceeds 250")
        assert client.call(Hello("a" * 251, LEGACY)).status == Status.EINVAL
        assert client.call(Hello("a" * 250, LEGACY)).status == Status.SUCCESS


def test_the_same_name_closes_the_older_connection(cluster: LocalCluster) -> None:
    with Client(cluster).login().open(name="n") as old, Client(cluster).login().open(name="n") as new:
        assert old.closed_by_server()
        assert new.stream(0).status == Status.SUCCESS


@pytest.mark.parametrize(
    ("key", "value", "status"),
    [("enable_noop", "maybe", 4), ("enable_stream_id", "true", 0), ("force_value_compression", "true", 4)],
)
def test_controls(cluster: LocalCluster, key: str, value: str, status: int) -> None:
    """Others are in the recording control_keys."""
    with Client(cluster).login().open() as client:
        assert client.call(DcpControl(key, value)).status == status


def test_dcp_commands_need_dcp_open(cluster: LocalCluster) -> None:
    with Client(cluster).login() as client:
        assert client.call(DcpControl("enable_noop", "true")).status == Status.EINVAL
        assert client.call(StreamRequest(0)).status == Status.EINVAL


# ---------------------------------------------------------------------- stream requests


def test_statuses_in_order(cluster: LocalCluster) -> None:
    fill(cluster, 5)
    uuid = vbuuid(cluster)
    with Client(cluster).login().open() as client:
        assert client.stream(1).status == Status.NOT_MY_VBUCKET
        assert client.stream(0, 3, end=2).status == Status.ERANGE
        assert client.stream(0, 3, snap_start=4, snap_end=5).status == Status.ERANGE
        assert client.stream(0, value=b"{}").status == Status.EINVAL
        assert client.stream(0, flags=0x4000).status == Status.EINVAL
        assert client.stream(0, value=b'{"collections":["9"]}').status == Status.UNKNOWN_COLLECTION
        rollback = client.stream(0, 3, vbuuid=uuid + 1)
        assert (rollback.status, parse_rollback_seqno(rollback.value), rollback.extras) == (0x23, 0, b"")
        assert parse_rollback_seqno(client.stream(0, 9, vbuuid=uuid).value) == 5
        assert client.stream(0, 3, vbuuid=uuid).status == Status.SUCCESS
        # Already open comes before the rollback check.
        client.send(StreamRequest(0, 3, vbuuid=uuid + 1, snap_start=3, snap_end=3))
        frames = [client.receive() for _ in range(4)]
        assert Status.KEY_EEXISTS in [f.status for f in frames if f is not None and f.is_response]


def test_start_at_the_end_ends_at_once_without_a_marker(cluster: LocalCluster) -> None:
    fill(cluster, 3)
    with Client(cluster).login().open() as client:
        frames = client.read(0, 3, 3, vbuuid=vbuuid(cluster))
        assert [frame.opcode for frame in frames] == [Opcode.DCP_STREAM_END]
        assert [f.opcode for f in client.read(0, 0)] == [Opcode.DCP_STREAM_END]


def test_from_latest(cluster: LocalCluster) -> None:
    fill(cluster, 3)
    with Client(cluster).login().open() as client:
        assert client.stream(0, flags=StreamFlag.FROM_LATEST).status == Status.SUCCESS
        cluster.upsert("new", b"1")
        frame = client.receive()
        assert frame is not None
        assert marker(frame) == (3, 4, FIRST_LIVE)


# ---------------------------------------------------------------------- snapshots


def test_what_is_written_before_the_backfill_begins_is_in_it(cluster: LocalCluster) -> None:
    fill(cluster, 3)
    with Client(cluster).login().open() as client:
        with cluster.stall():
            client.send(StreamRequest(0, 0, 3))
            cluster.upsert("key003", b"again")
        assert client.receive() is not None
        assert seqnos(client.until_end())[-1] >= 3


def test_a_live_tail_and_its_bounded_end(cluster: LocalCluster) -> None:
    fill(cluster, 2)
    with Client(cluster).login().open() as client:
        assert client.stream(0, end=4).status == 0
        frames = [client.receive() for _ in range(3)]
        assert seqnos(f for f in frames if f) == [1, 2]
        cluster.upsert("a", b"1")
        first = [f for f in (client.receive(), client.receive()) if f]
        assert marker(first[0]) == (3, 3, FIRST_LIVE)
        assert seqnos(first) == [3]
        cluster.delete("a")
        rest = client.until_end()
        assert marker(rest[0]) == (4, 4, LIVE)
        assert [frame.opcode for frame in rest[1:]] == [Opcode.DCP_DELETION, Opcode.DCP_STREAM_END]


def test_two_connections_at_once_get_the_same(cluster: LocalCluster) -> None:
    fill(cluster, 200, 2000)
    with (
        Client(cluster).login().open(name="a", connection_buffer_size="1000") as first,
        Client(cluster).login().open(name="b") as second,
    ):
        first.sock.sendall(StreamRequest(0, 0, 200).frame(0xAAAA).encode())
        second.sock.sendall(StreamRequest(0, 0, 200).frame(0xBBBB).encode())
        assert second.receive() is not None
        theirs = second.until_end()
        first.ack(1 << 30)
        first.call(DcpControl("connection_buffer_size", "0"))
        ours: list[Frame] = []
        while not ours or ours[-1].opcode != Opcode.DCP_STREAM_END:
            frame = first.receive()
            assert frame is not None
            if not frame.is_response:
                ours.append(frame)
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


def test_dropping_a_filtered_collection_ends_the_stream(cluster: LocalCluster) -> None:
    cluster.create_scope("s")
    cluster.create_collection("s", "c")
    cluster.upsert("x", b"1", collection="s.c")
    with Client(cluster).login().open() as client:
        assert client.stream(0, value=b'{"collections":["8"]}').status == 0
        assert [getattr(client.receive(), "opcode", None) for _ in range(3)] == [0x56, 0x5F, 0x57]
        cluster.upsert("other", b"2")  # not for this stream
        cluster.drop_collection("s", "c")
        frames = client.until_end()
        assert marker(frames[0]) == (5, 5, FIRST_LIVE)
        assert [f.opcode for f in frames] == [0x56, 0x5F, 0x55]
        assert reason(frames[-1]) == 7
        assert client.stream(0, value=b'{"collections":["8"]}').status == Status.UNKNOWN_COLLECTION
        assert [f.key for f in client.read(0, 5) if f.opcode in DATA] == [b"\0other"]


# ---------------------------------------------------------------------- flow control


def test_flow_control_pauses_and_resumes_by_bytes(cluster: LocalCluster) -> None:
    fill(cluster, 30, 500)
    message = 24 + 31 + 1 + 6 + 500
    with Client(cluster).login().open(connection_buffer_size="2000") as client:
        assert client.stream(0, end=30).status == 0
        got = [client.receive() for _ in range(1 + 4)]  # marker, then the one that crosses 2000
        assert [len(f) for f in got if f] == [44] + [message] * 4
        client.send(Frame(0x80, Opcode.NOOP, opaque=99))
        answer = client.receive()
        assert answer is not None
        assert answer.opaque == 99  # nothing more came before it
        outstanding = 44 + 4 * message
        client.ack(outstanding - 1999)  # one byte of the window is free: exactly one message
        more = client.receive()
        assert more is not None
        assert seqno(more) == 5
        client.send(Frame(0x80, Opcode.NOOP, opaque=100))
        answer = client.receive()
        assert answer is not None
        assert answer.opaque == 100
        count = 5
        client.ack(1999 + message)
        while True:
            frame = client.receive()
            assert frame is not None
            if frame.opcode == Opcode.DCP_STREAM_END:
                break
            count += 1
            client.ack(len(frame))
        assert count == 30


def test_a_window_smaller_than_any_message(cluster: LocalCluster) -> None:
    fill(cluster, 2, 500)
    with Client(cluster).login().open(connection_buffer_size="10") as client:
        assert client.stream(0, end=2).status == 0
        for expected in (0x56, 0x57, 0x57, 0x55):
            frame = client.receive()
            assert frame is not None
            assert frame.opcode == expected
            client.ack(len(frame) + 1_000_000)
        client.send(Frame(0x80, Opcode.DCP_BUFFER_ACK, extras=b"\0\0"))
        answer = client.receive()
        assert answer is not None
        assert answer.status == Status.EINVAL


def test_acks_without_flow_control_are_ignored(cluster: LocalCluster) -> None:
    with Client(cluster).login().open() as client:
        client.send(BufferAck(5))
        assert client.read(0, 0)


# ---------------------------------------------------------------------- closing and keep-alive


def test_noops_come_and_wait_for_their_answer() -> None:
    with LocalCluster(vbuckets=1, noop_interval=0.02) as cluster, Client(cluster).login().open() as client:
        assert client.stream(0).status == 0
        frame = Frame.parse(client.sock.recv(24))
        assert frame is not None
        assert (frame[0].opcode, frame[0].opaque, len(frame[0])) == (Opcode.DCP_NOOP, 10_000_001, 24)
        # Unanswered: no second one comes, whatever else does.
        client.call(Frame(0x80, Opcode.NOOP, opaque=1))
        assert client.noops == 0
        client.send(Frame(0x81, Opcode.DCP_NOOP, opaque=10_000_001))
        client.sock.settimeout(20)
        second = Frame.parse(client.sock.recv(24))
        assert second is not None
        assert second[0].opaque == 10_000_002


def test_the_client_asks_for_the_interval(cluster: LocalCluster) -> None:
    with Client(cluster).login().open(set_noop_interval="0.02") as client:
        assert client.sock.recv(24)[1] == Opcode.DCP_NOOP
