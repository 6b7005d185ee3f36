"""The bucket emptied, deleted, created anew and purged, as clients see it."""

from __future__ import annotations

from typing import Any

import pytest

from cbframe import LocalCluster
from cbframe.errors import ConfigurationError
from cbframe.wire.constants import Opcode, OpenFlag, SnapshotFlag, Status, StreamEndReason, StreamFlag
from cbframe.wire.messages import (
    DcpOpen,
    GetAllVBucketSeqnos,
    Plain,
    SelectBucket,
    parse_failover_log,
    parse_rollback_seqno,
)

from .client import Client, marker, reason, rest, seqnos, vbuuid

BUCKET = "/pools/default/buckets/default"


def uuid(cluster: LocalCluster) -> str:
    return str(rest(cluster, BUCKET).json()["uuid"])


# --- flush


@pytest.mark.parametrize("how", ["verb", "REST"])
def test_flush(how: str) -> None:
    with LocalCluster(nodes=2, vbuckets=2, seed=1) as cluster:
        cluster.create_scope("shop")
        cid = cluster.create_collection("shop", "orders", max_ttl=60)
        cluster.upsert("k", {}, collection="shop.orders")
        before, old = uuid(cluster), [vbuuid(cluster, vb) for vb in range(2)]
        clients = [Client(cluster, node).login().open() for node in range(2)]
        for vb, client in enumerate(clients):
            assert client.stream(vb).status == 0
        if how == "verb":
            cluster.flush()
        else:
            assert rest(cluster, f"{BUCKET}/controller/doFlush", "POST").status_code == 200
        for vb, client in enumerate(clients):
            assert reason(client.until_end()[-1]) == StreamEndReason.STATE_CHANGED
            refused = client.stream(vb, 2, vbuuid=old[vb])
            assert refused.status == Status.ROLLBACK
            assert parse_rollback_seqno(refused.value) == 0
            # A history of its own, that begins with the collections that are still there.
            frames = client.read(vb, 2)
            assert [f.key for f in frames if f.opcode == Opcode.DCP_SYSTEM_EVENT] == [b"shop", b"orders"]
            client.close()
        assert uuid(cluster) == before
        assert cluster.item_count() == 0
        assert all(vbuuid(cluster, vb) != old[vb] for vb in range(2))
        assert [len(cluster.failover_log(vb)) for vb in range(2)] == [1, 1]
        assert cluster.create_collection("shop", "more") > cid


def test_flush_that_is_not_enabled() -> None:
    with LocalCluster(vbuckets=1, flush_enabled=False) as cluster:
        cluster.upsert("k", {})
        with pytest.raises(ConfigurationError, match="not enabled"):
            cluster.flush()
        answer = rest(cluster, f"{BUCKET}/controller/doFlush", "POST")
        assert (answer.status_code, answer.json()) == (400, {"_": "Flush is disabled for the bucket"})
        assert cluster.item_count() == 1
        assert rest(cluster, "/pools/default/buckets/other/controller/doFlush", "POST").status_code == 404
        assert rest(cluster, BUCKET, "POST").status_code == 405


# --- delete, create anew


def test_a_deleted_bucket(cluster: LocalCluster, dcp: Client) -> None:
    cluster.upsert("k", {})
    with Client(cluster).login(select=False) as other:
        assert dcp.stream(0).status == 0
        cluster.delete_bucket()
        while (frame := dcp.receive()) is not None:
            assert frame.opcode != Opcode.DCP_STREAM_END
        # Who had not selected it stays connected, and cannot any more.
        assert other.call(SelectBucket("default")).status == Status.KEY_ENOENT
    assert rest(cluster, "/pools/default/buckets").json() == []
    assert rest(cluster, "/pools/default").json()["bucketNames"] == []
    for kind in ("buckets", "b", "bs"):
        assert rest(cluster, f"/pools/default/{kind}/default").status_code == 404
    assert rest(cluster, f"{BUCKET}/controller/doFlush", "POST").status_code == 404
    for verb in (cluster.delete_bucket, cluster.flush):
        with pytest.raises(ConfigurationError, match="the bucket is deleted"):
            verb()
    cluster.recreate()
    with Client(cluster).login() as again:
        assert again.operate(Opcode.NOOP).status == 0


@pytest.mark.parametrize("vbuckets", [None, 1, 4])
def test_a_bucket_created_anew(vbuckets: int | None) -> None:
    with LocalCluster(nodes=2, vbuckets=2, seed=1) as cluster:
        cluster.create_scope("shop")
        cluster.upsert("k", {})
        before, old = uuid(cluster), [vbuuid(cluster, vb) for vb in range(2)]
        rev = rest(cluster, "/pools/default/b/default").json()["rev"]
        with Client(cluster).login().open() as client:
            cluster.recreate(vbuckets=vbuckets)
            assert client.closed_by_server()
        count = vbuckets or 2
        found = rest(cluster, "/pools/default/b/default").json()
        assert len(found["vBucketServerMap"]["vBucketMap"]) == count
        assert found["rev"] > rev
        assert uuid(cluster) != before
        assert cluster.high_seqnos() == dict.fromkeys(range(count), 0)
        assert not {vbuuid(cluster, vb) for vb in range(count)} & set(old)
        with pytest.raises(ConfigurationError, match="no collection"):
            cluster.upsert("k", {}, collection="shop.orders")
        assert cluster.upsert("k", {}) == 1
        assert f"vbuckets={count}" in repr(cluster)
        with pytest.raises(ConfigurationError, match="0 vbuckets"):
            cluster.recreate(vbuckets=0)
        assert cluster.get("k") == b"{}"
        with Client(cluster).login() as client:
            assert client.operate(Opcode.NOOP).status == 0


# --- on no node, or not yet


USERS: dict[str, Any] = {"all": "admin", "one": "dcp", "no": "none"}
"""Who may see all buckets, who may use this one, and who may do nothing."""


def selected(cluster: LocalCluster, bucket: str = "default") -> list[int]:
    """The answers to SELECT_BUCKET of each of the users."""
    found = []
    for name in USERS:
        with Client(cluster) as client:
            assert client.plain(name, "p") == Status.SUCCESS
            found.append(client.call(SelectBucket(bucket)).status)
    return found


@pytest.fixture
def users(cluster: LocalCluster) -> LocalCluster:
    for name, access in USERS.items():
        cluster.add_user(name, "p", access=access)
    return cluster


def test_a_bucket_that_is_missing_is_denied_to_those_who_could_not_see_it(users: LocalCluster) -> None:
    assert selected(users, "other") == [Status.KEY_ENOENT, Status.EACCESS, Status.EACCESS]
    assert selected(users) == [Status.SUCCESS, Status.SUCCESS, Status.EACCESS]
    users.delete_bucket()
    assert selected(users) == [Status.KEY_ENOENT, Status.EACCESS, Status.EACCESS]


def test_a_paused_bucket(users: LocalCluster, kv: Client) -> None:
    users.upsert("k", {})
    before = vbuuid(users)
    with Client(users).login(select=False) as other:
        users.pause_bucket()
        assert kv.closed_by_server()
        assert other.call(SelectBucket("default")).status == Status.KEY_ENOENT
    assert selected(users)[1:] == [Status.KEY_ENOENT, Status.EACCESS]
    for kind in ("buckets", "b"):
        found = rest(users, f"/pools/default/{kind}/default").json()
        assert found["vBucketServerMap"]["vBucketMap"] == found["nodes"] == []
        assert found.get("hibernationState") == ("paused" if kind == "buckets" else None)
    assert rest(users, "/pools/default").json()["bucketNames"] != []
    users.resume_bucket()
    assert selected(users)[1] == Status.SUCCESS
    assert (users.get("k"), vbuuid(users)) == (b"{}", before)
    assert len(rest(users, "/pools/default/b/default").json()["vBucketServerMap"]["vBucketMap"]) == 1


def test_a_node_that_starts(users: LocalCluster, kv: Client) -> None:
    with users.starting():
        assert kv.closed_by_server()
        assert selected(users) == [Status.KEY_ENOENT, Status.KEY_ENOENT, Status.EACCESS]
        assert statuses(users) == ["warmup"]
    assert selected(users)[1] == Status.SUCCESS
    assert statuses(users) == ["healthy"]


def statuses(cluster: LocalCluster) -> list[str]:
    return [node["status"] for node in rest(cluster, "/pools/default").json()["nodes"]]


def test_a_node_that_has_only_the_map() -> None:
    with LocalCluster(vbuckets=1, version="8.0") as cluster:
        with cluster.config_only():
            with Client(cluster).login() as client:
                assert client.operate(Opcode.GET_CLUSTER_CONFIG).value
                for asked in (
                    DcpOpen("test", OpenFlag.PRODUCER),
                    GetAllVBucketSeqnos(),
                    Plain(Opcode.COLLECTIONS_GET_MANIFEST),
                    Plain(Opcode.STAT),
                    Plain(Opcode.GET),
                ):
                    assert client.call(asked).status == Status.CONFIG_ONLY
            assert statuses(cluster) == ["warmup"]
            waiting = Client(cluster).login()
        # The bucket takes the place of its placeholder, which closes the connections to that.
        with waiting:
            assert waiting.closed_by_server()
        with Client(cluster).login() as client:
            assert client.call(DcpOpen("test", OpenFlag.PRODUCER)).status == Status.SUCCESS


def test_older_nodes_do_not_say_that_they_have_only_the_map(cluster: LocalCluster) -> None:
    with pytest.raises(ConfigurationError, match="do not answer CONFIG_ONLY"), cluster.config_only():
        pass


def test_verbs_of_a_cluster_in_its_own_process() -> None:
    with LocalCluster(vbuckets=2, process=True, seed=1) as cluster:
        cluster.upsert("k", {})
        cluster.delete("k")
        cluster.upsert("j", {})
        cluster.flush()
        assert cluster.high_seqnos() == {0: 0, 1: 0}
        cluster.recreate(vbuckets=3)
        assert len(cluster.high_seqnos()) == 3
        assert cluster.purge() == 0
        with cluster.starting():
            assert statuses(cluster) == ["warmup"]
        cluster.pause_bucket()
        cluster.resume_bucket()
        cluster.delete_bucket()
        assert rest(cluster, "/pools/default/buckets").json() == []


# --- purge


def test_purge(cluster: LocalCluster, dcp: Client) -> None:
    for n in range(4):
        cluster.upsert(f"k{n}", {})
    cluster.delete("k0")
    cluster.expire("k1")
    cluster.upsert("k2", {})
    assert seqnos(dcp.read(0, 7)) == [4, 5, 6, 7]
    assert cluster.purge() == 2
    assert seqnos(dcp.read(0, 7)) == [4, 7]
    # Who has not seen both deletions goes back to the start, unless that does not matter to it.
    known = vbuuid(cluster)
    assert dcp.stream(0, 5, vbuuid=known).status == Status.ROLLBACK
    flags = StreamFlag.IGNORE_PURGED_TOMBSTONES
    assert seqnos(dcp.read(0, 7, 5, vbuuid=known, flags=flags)) == [7]
    assert seqnos(dcp.read(0, 7, 6, vbuuid=known)) == [7]
    assert parse_failover_log(dcp.stream(0, 7, vbuuid=known, end=7).value)[0].vbuuid == known
    assert cluster.purge() == 0


def test_the_newest_change_is_not_purged(cluster: LocalCluster, dcp: Client) -> None:
    cluster.upsert("k", {})
    cluster.delete("k")
    assert cluster.purge(0) == 0
    assert seqnos(dcp.read(0, 2)) == [2]
    cluster.upsert("k", {})
    cluster.upsert("j", {})
    assert cluster.purge(0) == 0, "the document is back: its tombstone is history"


# --- in memory only


def test_an_ephemeral_bucket() -> None:
    with LocalCluster(nodes=2, vbuckets=2, seed=1, ephemeral=True) as cluster:
        for n in range(40):
            cluster.upsert(f"k{n}", {"n": n})
        found = rest(cluster, BUCKET).json()
        assert (found["bucketType"], found["storageBackend"]) == ("ephemeral", "undefined")
        logs = [cluster.failover_log(vb) for vb in range(2)]
        high = cluster.high_seqnos()
        with Client(cluster, 1).login().open() as client:
            assert marker(client.read(1, high[1])[0])[2] == SnapshotFlag.DISK | SnapshotFlag.CHECKPOINT
        cluster.kill(1, clean=True)
        cluster.restart(1)
        assert cluster.high_seqnos() == {0: high[0], 1: 0}
        assert cluster.failover_log(0) == logs[0]
        assert [seqno for _, seqno in cluster.failover_log(1)] == [0]
        assert cluster.failover_log(1) != logs[1]
        with Client(cluster, 1).login().open() as client:
            assert client.stream(1, high[1], vbuuid=logs[1][0][0]).status == Status.ROLLBACK
