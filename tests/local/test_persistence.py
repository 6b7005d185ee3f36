"""OBSERVE_SEQNO as nodes answer it, and copies that stay behind by the test's will."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from cbframe import ConfigurationError, LocalCluster
from cbframe.wire.constants import Opcode, Status
from cbframe.wire.framing import Frame
from cbframe.wire.messages import Observed, ObserveSeqno, vbucket_of

from .client import Client


@pytest.fixture
def cluster() -> Iterator[LocalCluster]:
    """Three nodes; vbucket 0 is active on node 0, with replicas on 1 and 2."""
    with LocalCluster(nodes=3, vbuckets=2, replicas=2, seed=1) as running:
        yield running


def asked(cluster: LocalCluster, node: int, vbuuid: int | None = None, vbucket: int = 0) -> Frame:
    if vbuuid is None:
        vbuuid = cluster.failover_log(vbucket)[0][0]
    with Client(cluster, node).login() as client:
        return client.call(ObserveSeqno(vbucket, vbuuid))


def observed(cluster: LocalCluster, node: int, vbuuid: int | None = None) -> tuple[int, int]:
    """What a copy of vbucket 0 has on disk, and in memory."""
    answer = asked(cluster, node, vbuuid)
    assert (answer.status, answer.extras, answer.key) == (Status.SUCCESS, b"", b"")
    found = Observed.parse(answer.value)
    assert found.vbucket == 0
    return found.persisted, found.current


def write(cluster: LocalCluster, count: int) -> None:
    """Changes of vbucket 0."""
    keys = (key for key in map("key-{}".format, itertools.count()) if not vbucket_of(key.encode(), 2))
    for key in itertools.islice(keys, count):
        cluster.upsert(key, {})


def test_the_bytes(cluster: LocalCluster) -> None:
    write(cluster, 3)
    old = cluster.failover_log(0)[0][0]
    answer = asked(cluster, 1)
    assert answer.value.hex() == f"00{0:04x}{old:016x}{3:016x}{3:016x}"
    new = cluster.fail_over(0, lose=1)
    write(cluster, 2)
    answer = asked(cluster, 0, old)
    assert answer.value.hex() == f"01{0:04x}{new:016x}{4:016x}{4:016x}{old:016x}{2:016x}"
    assert asked(cluster, 0, 77).status == Status.KEY_ENOENT


def test_what_is_refused(cluster: LocalCluster, kv: Client) -> None:
    kv.operate(Opcode.OBSERVE_SEQNO, value=b"1234", expect=Status.EINVAL)
    cluster.fail_over(0, node=1)
    assert asked(cluster, 0).status == Status.SUCCESS, "it is a replica now"
    cluster.failover(2)
    assert asked(cluster, 0, vbucket=1).status == Status.SUCCESS
    with LocalCluster(nodes=2, vbuckets=2, seed=1) as bare:
        assert asked(bare, 1).status == Status.NOT_MY_VBUCKET


def test_persistence_that_is_held(cluster: LocalCluster) -> None:
    write(cluster, 2)
    cluster.hold_persistence(1, vbucket=0)
    write(cluster, 3)
    assert [observed(cluster, node) for node in range(3)] == [(5, 5), (2, 5), (5, 5)]
    cluster.hold_persistence()
    write(cluster, 1)
    assert [observed(cluster, node) for node in range(3)] == [(5, 6), (2, 6), (5, 6)]
    cluster.release(1)
    assert [observed(cluster, node) for node in range(3)] == [(5, 6), (6, 6), (5, 6)]
    cluster.release()
    assert [observed(cluster, node) for node in range(3)] == [(6, 6)] * 3


def test_a_crash_loses_what_is_not_on_disk(cluster: LocalCluster) -> None:
    write(cluster, 4)
    cluster.hold_persistence(0)
    write(cluster, 3)
    cluster.kill(0)
    cluster.restart(0, same_ports=True)
    assert cluster.high_seqnos()[0] == 4
    assert observed(cluster, 0) == (4, 4)
    write(cluster, 2)
    assert observed(cluster, 0) == (4, 6), "it is still held"
    cluster.kill(0, clean=True)
    assert cluster.high_seqnos()[0] == 6


def test_a_failover_loses_what_the_replica_never_got(cluster: LocalCluster) -> None:
    write(cluster, 4)
    old = cluster.failover_log(0)[0][0]
    cluster.hold_replication(1)
    write(cluster, 2)
    cluster.hold_replication(2)
    write(cluster, 2)
    assert [observed(cluster, node)[1] for node in range(3)] == [8, 4, 6]
    new = cluster.fail_over(0, node=1)
    assert cluster.high_seqnos()[0] == 4
    write(cluster, 4)
    assert observed(cluster, 1) == (8, 8)
    # The other replica has not heard of that: it has other changes at the same seqnos.
    assert asked(cluster, 2, new).status == Status.KEY_ENOENT
    assert observed(cluster, 2, old) == (6, 6)
    # What it shares with the present history is all that is left of that, if it takes over now.
    cluster.fail_over(0, node=2)
    assert cluster.high_seqnos()[0] == 4
    cluster.release()
    write(cluster, 1)
    assert [observed(cluster, node) for node in range(3)] == [(5, 5)] * 3


def test_a_node_that_fails_over(cluster: LocalCluster) -> None:
    write(cluster, 4)
    cluster.hold_replication()
    write(cluster, 2)
    cluster.failover(0)
    assert cluster.high_seqnos()[0] == 4


def test_an_ephemeral_bucket_has_nothing_on_disk() -> None:
    with LocalCluster(vbuckets=1, seed=1, ephemeral=True) as cluster:
        write(cluster, 3)
        assert observed(cluster, 0) == (0, 3)


def test_holds_of_a_node_that_is_not_there(cluster: LocalCluster) -> None:
    with pytest.raises(ConfigurationError, match="no node 7"):
        cluster.hold_persistence(7)
    with pytest.raises(ConfigurationError, match="no vbucket 9"):
        cluster.release(vbucket=9)
