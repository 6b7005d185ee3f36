from __future__ import annotations

import inspect
import json
import threading

import pytest

from cbframe.errors import ConfigurationError, ConnectError
from cbframe.local import LocalCluster
from cbframe.wire.constants import Opcode, Status
from cbframe.wire.messages import DcpOpen, StreamRequest, parse_failover_log, parse_rollback_seqno

from .client import Client, reason, seqnos, vbuuid


def test_life() -> None:
    cluster = LocalCluster(vbuckets=1, password="hunter2")
    with pytest.raises(ConnectError, match="not running"):
        cluster.upsert("a", b"1")
    assert cluster.start() is cluster.start()
    assert cluster.connection_string == f"couchbase://{cluster.kv_addresses[0]}/default"
    assert "hunter2" not in repr(cluster)
    cluster.close()
    cluster.close()
    assert "not running" in repr(cluster)


@pytest.mark.parametrize("options", [{"nodes": 0}, {"vbuckets": 0}, {"vbuckets": 1025}, {"replicas": 1}])
def test_impossible_clusters(options: dict[str, int]) -> None:
    with pytest.raises(ConfigurationError):
        LocalCluster(**options).start()  # type: ignore[arg-type]


def test_documents(cluster: LocalCluster) -> None:
    assert cluster.upsert("a", {"ü": 1}) == 1
    assert cluster.get("a") == '{"ü":1}'.encode()
    assert cluster.upsert(b"a", "text") == 2
    assert cluster.delete("a") == 3
    assert cluster.delete("a") is None
    assert cluster.get("a") is None
    cluster.upsert("b", [1], xattrs={"x": 1})
    assert cluster.get("b") == b"[1]"
    assert cluster.expire("b") == 5
    cluster.upsert("c", b"1", expiry=1_000_000_000)
    assert cluster.item_count() == 1
    assert cluster.expire_due() == 1
    assert (cluster.item_count(), cluster.high_seqnos()) == (0, {0: 7})
    with pytest.raises(ConfigurationError):
        cluster.upsert("k" * 251, b"1")
    with pytest.raises(ConfigurationError, match="no collection"):
        cluster.upsert("k", b"1", collection="no.no")


def test_move_vbucket() -> None:
    with (
        LocalCluster(nodes=2, vbuckets=2) as cluster,
        Client(cluster, 0).login().open() as old,
        Client(cluster, 1).login().open() as new,
    ):
        log = cluster.failover_log(0)
        assert old.stream(0).status == 0
        cluster.move_vbucket(0, 1)
        assert reason(old.until_end()[-1]) == 2
        refused = old.stream(0)
        assert refused.status == Status.NOT_MY_VBUCKET
        config = json.loads(refused.value)
        assert (config["rev"], config["vBucketServerMap"]["vBucketMap"]) == (2, [[1], [1]])
        assert list(parse_failover_log(new.stream(0).value)) == log


def test_fail_over_forks_history(cluster: LocalCluster, dcp: Client) -> None:
    for number in range(6):
        cluster.upsert(f"k{number % 4}", {"n": number})
    old = vbuuid(cluster)
    assert dcp.stream(0, 6, vbuuid=old).status == 0
    assert cluster.fail_over(0, lose=2) == vbuuid(cluster) != old
    assert reason(dcp.until_end()[-1]) == 2
    assert [seqno for _, seqno in cluster.failover_log(0)] == [4, 0]
    assert cluster.get("k0") == b'{"n":0}'  # the version that seqno 5 had replaced
    back = dcp.stream(0, 6, vbuuid=old)
    assert (back.status, parse_rollback_seqno(back.value)) == (Status.ROLLBACK, 4)
    cluster.upsert("other", b"1")
    frames = dcp.read(0, 5, 4, vbuuid=old)
    assert seqnos(frames) == [5]
    with pytest.raises(ConfigurationError):
        cluster.roll_back(0, 99)


def test_flush(cluster: LocalCluster, dcp: Client) -> None:
    cluster.upsert("a", b"1")
    old = vbuuid(cluster)
    assert dcp.stream(0, 1, vbuuid=old).status == 0
    cluster.flush_vbucket(0)
    assert reason(dcp.until_end()[-1]) == 2
    assert dcp.stream(0, 1, vbuuid=old).status == Status.ROLLBACK
    assert cluster.item_count() == 0


def test_cut_now(cluster: LocalCluster, dcp: Client, kv: Client) -> None:
    assert cluster.dcp_connections() == 1
    assert cluster.cut() == 1
    assert dcp.closed_by_server()
    assert kv.operate(Opcode.NOOP).status == 0
    assert cluster.dcp_connections() == 0


def test_cut_after_bytes_happens_once_and_exactly(cluster: LocalCluster, dcp: Client) -> None:
    for number in range(50):
        cluster.upsert(f"k{number}", b"x" * 1000)
    cluster.cut(after_bytes=12_345)
    dcp.send(StreamRequest(0, 0, 50))
    received = b""
    while data := dcp.sock.recv(1 << 16):
        received += data
    assert len(received) == 12_345
    with Client(cluster).login().open() as client:
        assert len(seqnos(client.read(0, 50))) == 50


def test_refuse(cluster: LocalCluster, kv: Client) -> None:
    with cluster.refuse(), Client(cluster) as refused:
        assert refused.closed_by_server()
        assert kv.operate(Opcode.NOOP).status == 0
    with Client(cluster).login():
        pass


def test_stall(cluster: LocalCluster, kv: Client) -> None:
    with cluster.stall():
        kv.send(DcpOpen("x", 1))
        assert kv.silent()
    assert kv.next().status == 0


def test_writers_and_streams_at_the_same_time() -> None:
    """Whatever the interleaving: seqnos rise, and the last version of every key arrives."""
    total = 3000
    with LocalCluster(vbuckets=1) as cluster, Client(cluster).login().open() as client:
        assert client.stream(0, end=total).status == 0

        def write() -> None:
            for number in range(total):
                cluster.upsert(f"k{number % 97}", b"%d" % number)

        writer = threading.Thread(target=write)
        writer.start()
        frames = client.until_end()
        writer.join()
        assert seqnos(frames) == sorted(set(seqnos(frames)))
        state = {frame.key: frame.value for frame in frames if frame.opcode == Opcode.DCP_MUTATION}
        assert state == {b"\0k%d" % n: cluster.get(f"k{n}") for n in range(97)}


def test_forks_while_streams_run() -> None:
    """A stream never carries two histories."""
    with LocalCluster(vbuckets=1) as cluster, Client(cluster).login().open() as client:
        for round_ in range(20):
            for number in range(50):
                cluster.upsert(f"k{number}", b"%d" % round_)
            assert client.stream(0).status == 0
            cluster.fail_over(0, lose=10)
            assert reason(client.until_end()[-1]) == 2
        assert len(cluster.failover_log(0)) == 21


def test_verbs_have_the_signatures_and_documentation_of_the_engine() -> None:
    upsert = inspect.signature(LocalCluster.upsert)
    assert str(upsert).startswith("(self, key: 'str | bytes', value: 'Value', *, expiry: 'int' = 0")
    assert LocalCluster.upsert.__qualname__ == "LocalCluster.upsert"
    for name, verb in inspect.getmembers(LocalCluster, callable):
        if not name.startswith("_"):
            assert verb.__doc__, name
            assert next(iter(inspect.signature(verb).parameters)) == "self"
