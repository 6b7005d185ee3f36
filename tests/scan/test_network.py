"""Alternate addresses, and clusters that are far away."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trustme

import cbframe
from cbframe import BucketDataSourceOptions, LocalCluster, doctor, read_bucket, scan_bucket
from cbframe.cli import main
from cbframe.errors import CbframeError, ConfigurationError
from cbframe.local import ServerTLS
from cbframe.scan import doctor as module
from cbframe.testing import FaultProxy

from .far import Distance
from .kit import QUICK, fill

INTERNAL = "192.0.2.1"
"""Of a block that is set aside for documentation."""
HASTY = replace(QUICK, connect_timeout=0.8)


@pytest.fixture
def hidden() -> Iterator[LocalCluster]:
    with LocalCluster(nodes=2, vbuckets=8, seed=1, internal_host=INTERNAL) as running:
        fill(running, 50)
        yield running


def seeds(cluster: LocalCluster, service: str) -> tuple[Any, str]:
    return (cluster.connection_string if service == "kv" else cluster.rest_urls), cluster.bucket


@pytest.mark.parametrize("service", ["kv", "rest"])
@pytest.mark.parametrize("network", ["auto", "external"])
def test_the_external_network(hidden: LocalCluster, service: str, network: str) -> None:
    target, bucket = seeds(hidden, service)
    auth = (hidden.username, hidden.password)
    scan = scan_bucket(
        target, bucket, auth=auth, network=network, collections="_default._default", options=QUICK
    )
    assert scan.to_arrow().num_rows == 50
    assert sorted(scan.stats.nodes) == sorted(hidden.kv_addresses)


@pytest.mark.parametrize("service", ["kv", "rest"])
def test_the_keyword_wins_over_the_connection_string(hidden: LocalCluster, service: str) -> None:
    target, bucket = seeds(hidden, service)
    told = f"{target}?network=external" if service == "kv" else [f"{target[0]}?network=external"]
    auth = (hidden.username, hidden.password)
    assert len(read_bucket(told, bucket, auth=auth, options=QUICK)) == 50
    with pytest.raises(CbframeError) as caught:
        read_bucket(told, bucket, auth=auth, network="default", options=HASTY)
    assert INTERNAL in str(caught.value)


def test_a_network_that_is_not_there(hidden: LocalCluster) -> None:
    with pytest.raises(ConfigurationError, match="'lan'") as caught:
        read_bucket(hidden, network="lan", options=QUICK)
    assert caught.value.hint == "there are: default, external"


def unreachable(error: CbframeError, cluster: LocalCluster) -> str:
    """The hint, with the ports by the names of the services."""
    hint = str(error.hint)
    for service, port in cluster.ports().items():
        hint = hint.replace(str(port), service.upper())
    return hint


@contextmanager
def container() -> Iterator[LocalCluster]:
    """A node in a container: it knows its own address there, and nobody else does."""
    with LocalCluster(vbuckets=8, seed=1, internal_host=INTERNAL) as running:
        fill(running, 50)
        running.set_alternate_address(0, "localhost", **running.ports())
        yield running


def test_a_container_whose_ports_are_mapped() -> None:
    """As of Docker or Testcontainers."""
    with container() as cluster:
        auth = (cluster.username, cluster.password)
        kv, mgmt = cluster.ports()["kv"], cluster.ports()["mgmt"]
        for seed in (f"couchbase://localhost:{kv}", f"http://localhost:{mgmt}"):
            assert len(read_bucket(seed, cluster.bucket, auth=auth, options=QUICK)) == 50
        with pytest.raises(CbframeError) as caught:
            read_bucket(f"couchbase://localhost:{kv}", "default", auth=auth, network="default", options=HASTY)
        assert unreachable(caught.value, cluster) == (
            f"the cluster was reached at localhost:KV, and advertises {INTERNAL}:KV, which cannot be reached "
            "from here; the nodes are also on the network 'external' (localhost:KV): give network='external'"
        )


def test_the_way_of_a_docker_user() -> None:
    """From a node that knows only its own address, to a read: what each step says."""
    with LocalCluster(vbuckets=8, seed=1, internal_host=INTERNAL) as cluster:
        fill(cluster, 50)
        cluster._engine.config._alternate = None
        auth = (cluster.username, cluster.password)
        target = f"couchbase://localhost:{cluster.ports()['kv']}"
        advice = (
            f"the cluster was reached at localhost:KV, and advertises {INTERNAL}:KV, which cannot be reached "
            "from here: publish the nodes' ports and give the nodes alternate addresses with these "
            "(couchbase-cli setting-alternate-address), or run where theirs can be reached"
        )
        with pytest.raises(CbframeError) as caught:
            read_bucket(target, "default", auth=auth, options=HASTY)
        assert unreachable(caught.value, cluster) == advice
        scan = scan_bucket(target, "default", auth=auth, options=replace(HASTY, recovery_timeout=0.1))
        with pytest.raises(CbframeError) as caught:
            scan.partitions(2)
        assert unreachable(caught.value, cluster) == advice
        found = doctor(target, "default", auth=auth, timeout=2.5).failed
        assert found.detail.startswith("1 of 1 nodes cannot be reached: ")
        assert unreachable(CbframeError("", hint=found.remedy), cluster) == advice

        cluster.set_alternate_address(0, "localhost", **cluster.ports())
        assert len(read_bucket(target, "default", auth=auth, options=QUICK)) == 50
        assert doctor(target, "default", auth=auth).ok


def test_a_balancer_before_the_nodes(hidden: LocalCluster) -> None:
    """Its address is no node's, and all nodes have alternate ones."""
    with FaultProxy() as proxy:
        for service, address in (("kv", hidden.kv_addresses[0]), ("rest", hidden.rest_urls[0])):
            scheme = "couchbase" if service == "kv" else "http"
            # By name: the nodes' alternate host is the address.
            balancer = proxy.forward(address.removeprefix("http://")).replace("127.0.0.1", "localhost")
            scan = scan_bucket(
                f"{scheme}://{balancer}", "default", auth=(hidden.username, hidden.password), options=QUICK
            )
            assert scan.to_arrow().num_rows == 50


def test_a_node_that_is_down_is_no_matter_of_networks(hidden: LocalCluster) -> None:
    hidden.kill(1)
    with pytest.raises(CbframeError) as caught:
        read_bucket(hidden, options=HASTY)
    assert caught.value.hint == "check that the node runs and that the port is right"


def test_the_command_line(
    hidden: LocalCluster, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CB_PASSWORD", hidden.password)
    login = ["read", hidden.connection_string, "--user", hidden.username, "--password-env", "CB_PASSWORD"]
    assert main([*login, "--network", "external", "--limit", "100"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1 + 50
    assert main([*login, "--network", "lan"]) == 1
    assert "there are: default, external" in capsys.readouterr().err


# --- Clusters that are far away: how many round trips things take, and time-outs that count for one of them.


AUTH = ("Administrator", "password")


def streams(target: str) -> bool:
    with cbframe.stream_bucket(target, auth=AUTH, start="now") as changes:
        return not changes.errors


DOINGS: list[tuple[Callable[[str], object], int, int]] = [
    (lambda target: len(cbframe.read_bucket(target, auth=AUTH)) == 200, 10, 4),
    (lambda target: len(cbframe.read_bucket(target, auth=AUTH, scope="_default")) == 200, 11, 4),
    (lambda target: len(cbframe.scan_bucket(target, auth=AUTH).peek(20)) == 20, 14, 5),
    (lambda target: cbframe.doctor(target, auth=AUTH).ok, 16, 9),
    (lambda target: len(cbframe.scan_bucket(target, auth=AUTH).partitions(3)) == 3, 28, 16),
    (streams, 12, 8),
]
"""What is done, and how many turns and connections it takes at most."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(3, 64, seed=1) as running:
        running.bulk_load((b"k%d" % n, b'{"n": 1}') for n in range(200))
        yield running


@pytest.mark.parametrize(("do", "turns", "connections"), DOINGS)
def test_how_many_round_trips_it_takes(
    cluster: LocalCluster, do: Callable[[str], object], turns: int, connections: int
) -> None:
    """To connect is one. They were 26, 40, 26, 69, 181 and 33: each request waited for the one before.

    Nodes are asked at the same time: their number makes no difference.
    """
    results: list[object] = []
    with Distance(cluster) as far:
        target = cluster.connection_string
        assert far.of(lambda: results.append(do(target))) <= turns
        assert far.connections <= connections
    assert results == [True]


def test_a_look_where_most_vbuckets_are_empty() -> None:
    """All of them are read next, and not a few more each time."""
    with LocalCluster(1, 1024, seed=1) as cluster, Distance(cluster) as far:
        cluster.bulk_load((b"k%d" % n, b"{}") for n in range(3))
        scan = cbframe.scan_bucket(cluster.connection_string, auth=AUTH)
        assert far.of(lambda: scan.peek(3)) <= 16
        assert far.connections == 3


def test_with_tls_each_connection_takes_one_more(tmp_path: Path) -> None:
    ca = trustme.CA()
    ca.cert_pem.write_to_path(tmp_path / "ca.pem")
    ca.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(tmp_path / "node.pem")
    with LocalCluster(2, 16, seed=1, tls=ServerTLS(tmp_path / "node.pem")) as cluster:
        cluster.upsert("k", {})
        with Distance(cluster) as far:
            arguments: dict[str, Any] = {"auth": AUTH, "tls": tmp_path / "ca.pem", "scope": "_default"}
            scan = cbframe.scan_bucket(cluster.tls_connection_string, **arguments)
            assert far.of(scan.to_arrow) <= 13
            assert far.connections == 3


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.3, 0.5])
def test_a_cluster_on_another_continent(cluster: LocalCluster, seconds: float) -> None:
    """Nothing takes it for a broken one, although the time-out of a turn is over long before the end."""
    options = BucketDataSourceOptions(
        connect_timeout=2.6 * seconds
    )  # here, to connect shows with the first answer
    with Distance(cluster, seconds):
        target = cluster.connection_string
        assert cbframe.doctor(target, auth=AUTH).ok
        frame = cbframe.read_bucket(target, auth=AUTH, scope="_default", options=options, progress=None)
        assert len(frame) == 200
        assert len(cbframe.scan_bucket(target, auth=AUTH, options=options).peek()) == 5


@pytest.mark.slow
def test_each_turn_of_a_diagnosis_has_its_time(
    cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Regression: a conversation had it, and a healthy cluster was found broken."""
    monkeypatch.setattr(module, "_EACH", 1.0)
    with Distance(cluster, 0.4):
        assert cbframe.doctor(cluster.connection_string, auth=AUTH).ok


@pytest.mark.parametrize("seconds", [0.15, 0.4, 0.75])
def test_a_diagnosis_without_enough_time_says_so(cluster: LocalCluster, seconds: float) -> None:
    """It does not take a cluster that is far away for one that is silent, whatever the step."""
    with Distance(cluster, 0.1):
        found = cbframe.doctor(cluster.connection_string, auth=AUTH, timeout=seconds)
    assert found.failed.remedy == "give doctor() a larger timeout"
    assert "no time left" in found.failed.detail
