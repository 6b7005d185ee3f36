"""Nodes that join, leave, crash and come back: map, failover logs, and a reader's result."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator

import pytest
import requests

from cbframe import LocalCluster, read_bucket
from cbframe.errors import ConfigurationError

from .client import rest

VBUCKETS = 12
DOCUMENTS = 300


@pytest.fixture(params=[False, True], ids=["in process", "own process"])
def cluster(request: pytest.FixtureRequest) -> Iterator[LocalCluster]:
    with LocalCluster(nodes=3, vbuckets=VBUCKETS, seed=1, process=request.param) as made:
        for n in range(DOCUMENTS):
            made.upsert(f"k{n}", {"n": n})
        yield made


def owners(cluster: LocalCluster, node: int = 0) -> list[str]:
    """The address of each vbucket's owner, as a node tells it; empty for none."""
    found = rest(cluster, f"/pools/default/b/{cluster.bucket}", node=node).json()["vBucketServerMap"]
    servers = found["serverList"]
    return ["" if row[0] < 0 else servers[row[0]] for row in found["vBucketMap"]]


def logs(cluster: LocalCluster) -> list[list[tuple[int, int]]]:
    return [cluster.failover_log(vb) for vb in range(VBUCKETS)]


def numbers(cluster: LocalCluster, seed: int = 0) -> list[int]:
    """What a read that begins at one node finds."""
    auth = cluster.username, cluster.password
    return sorted(read_bucket(f"couchbase://{cluster.kv_addresses[seed]}", cluster.bucket, auth=auth)["n"])


def test_a_node_joins(cluster: LocalCluster) -> None:
    before, histories = owners(cluster), logs(cluster)
    assert cluster.add_node() == 3
    assert owners(cluster) == owners(cluster, 3) == before
    cluster.rebalance()
    assert owners(cluster) == [cluster.kv_addresses[vb // 3] for vb in range(VBUCKETS)]
    assert logs(cluster) == histories
    assert numbers(cluster) == numbers(cluster, 3) == list(range(DOCUMENTS))


def test_a_node_is_ejected(cluster: LocalCluster) -> None:
    histories = logs(cluster)
    cluster.rebalance(eject=[1])
    assert owners(cluster) == [address for address in cluster.kv_addresses for _ in range(6)]
    assert logs(cluster) == histories
    with pytest.raises(requests.ConnectionError):
        owners(cluster, 1)
    assert numbers(cluster) == list(range(DOCUMENTS))
    for verb in (cluster.restart, cluster.failover, lambda node: cluster.rebalance(eject=[node])):
        with pytest.raises(ConfigurationError, match="node 1 is not in the cluster"):
            verb(1)


@pytest.mark.parametrize("process", [False, True])
def test_addresses_name_the_nodes_in_the_cluster(process: bool) -> None:
    with LocalCluster(nodes=3, vbuckets=3, process=process) as cluster:
        cluster.upsert("k", {})
        kv, mgmt = cluster.kv_addresses, cluster.rest_urls
        cluster.rebalance(eject=[0])
        assert cluster.members == [1, 2]
        assert (cluster.kv_addresses, cluster.rest_urls) == (kv[1:], mgmt[1:])
        assert cluster.connection_string == f"couchbase://{kv[1]}/default"
        assert len(read_bucket(cluster)) == 1
        cluster.kill(1)
        assert cluster.kv_addresses == kv[1:]
        cluster.failover(1)
        assert (cluster.kv_addresses, cluster.rest_urls) == (kv[2:], mgmt[2:])
        number = cluster.add_node()
        assert cluster.kv_addresses == [kv[2], f"127.0.0.1:{cluster.ports(number)['kv']}"]


def test_ports_that_someone_else_has_taken(cluster: LocalCluster) -> None:
    host, _, port = cluster.kv_addresses[1].rpartition(":")
    cluster.kill(1)
    with socket.create_server((host, int(port))):
        with pytest.raises(ConfigurationError, match="node 1 cannot have its ports back"):
            cluster.restart(1, same_ports=True)
        cluster.restart(1)
    assert numbers(cluster, 1) == list(range(DOCUMENTS))


def test_a_node_that_stopped_keeps_its_ports() -> None:
    with LocalCluster(nodes=2, vbuckets=4, seed=1, process=False) as cluster:
        for _ in range(3):
            ports = [*cluster.ports(1).values()]
            cluster.kill(1)
            for port in ports:
                with socket.socket() as other, pytest.raises(OSError, match="in use"):
                    other.bind(("127.0.0.1", port))
                with pytest.raises(ConnectionRefusedError):
                    socket.create_connection(("127.0.0.1", port), timeout=10)
            cluster.restart(1, same_ports=True)
            assert [*cluster.ports(1).values()] == ports
            cluster.kill(1)
            cluster.restart(1)
        assert sum(map(len, cluster._engine._kept.values())) == len(ports)
        cluster.rebalance(eject=[1])
        assert len(read_bucket(cluster)) == 0


def test_a_node_fails_over(cluster: LocalCluster) -> None:
    histories, high = logs(cluster), cluster.high_seqnos()
    cluster.failover(2, lose=3)
    found = owners(cluster)
    assert set(found[8:]) == set(found) == set(cluster.kv_addresses[:2])
    for vb, log in enumerate(logs(cluster)):
        if vb < 8:
            assert log == histories[vb]
        else:
            assert log[1:] == histories[vb]
            assert log[0][1] == high[vb] - 3 == cluster.high_seqnos()[vb]
    assert len(numbers(cluster)) == DOCUMENTS - 4 * 3
    with pytest.raises(ConfigurationError, match="node 2 is not in the cluster"):
        cluster.failover(2)


def test_a_replica_is_promoted() -> None:
    with LocalCluster(nodes=3, vbuckets=VBUCKETS, seed=1, replicas=1) as cluster:
        cluster.failover(0)
        assert owners(cluster, 1)[:4] == [cluster.kv_addresses[0]] * 4


def test_a_node_crashes_and_comes_back(cluster: LocalCluster) -> None:
    before, histories, high = owners(cluster), logs(cluster), cluster.high_seqnos()
    cluster.kill(1, lose=2)
    assert owners(cluster) == before
    with pytest.raises(requests.ConnectionError):
        owners(cluster, 1)
    for verb in (cluster.cut, cluster.kill, cluster.dcp_connections):
        with pytest.raises(ConfigurationError, match="node 1 does not run"):
            verb(1)
    with pytest.raises(ConfigurationError, match="node 1 does not run: nothing can be moved"):
        cluster.rebalance()
    cluster.restart(1)
    assert cluster.kv_addresses[1] not in before
    assert owners(cluster, 1)[4:8] == [cluster.kv_addresses[1]] * 4
    for vb, log in enumerate(logs(cluster)):
        if 4 <= vb < 8:
            assert log[1:] == histories[vb]
            assert log[0][1] == high[vb] - 2
        else:
            assert log == histories[vb]
    assert len(numbers(cluster)) == DOCUMENTS - 4 * 2
    with pytest.raises(ConfigurationError, match="node 1 runs"):
        cluster.restart(1)


def test_an_orderly_shutdown_loses_nothing(cluster: LocalCluster) -> None:
    histories, addresses = logs(cluster), cluster.kv_addresses
    cluster.kill(1, clean=True)
    cluster.restart(1, same_ports=True)
    assert (logs(cluster), cluster.kv_addresses) == (histories, addresses)
    assert numbers(cluster) == list(range(DOCUMENTS))


def test_a_killed_node_fails_over(cluster: LocalCluster) -> None:
    cluster.kill(0)
    cluster.failover(0)
    assert set(owners(cluster, 1)) == set(cluster.kv_addresses)
    assert numbers(cluster) == list(range(DOCUMENTS))


REFUSED: dict[str, Callable[[LocalCluster], object]] = {
    "eject all": lambda c: c.rebalance(eject=[0, 1, 2]),
    "eject a stranger": lambda c: c.rebalance(eject=[7]),
    "kill a stranger": lambda c: c.kill(-1),
    "restart one that runs": lambda c: c.restart(0),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be(cluster: LocalCluster, what: str) -> None:
    before = owners(cluster)
    with pytest.raises(ConfigurationError, match=r"no node|runs"):
        REFUSED[what](cluster)
    assert owners(cluster) == before


def test_the_last_node_cannot_go() -> None:
    with LocalCluster(nodes=2, vbuckets=4, seed=1) as cluster:
        cluster.failover(0)
        with pytest.raises(ConfigurationError, match="no node that runs would be left"):
            cluster.failover(1)
        with pytest.raises(ConfigurationError, match="node 0 does not run"):
            cluster.move_vbucket(0, 0)
