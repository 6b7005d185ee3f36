"""Clusters that are far away: how many round trips things take, and time-outs that count for one of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

import cbframe
from cbframe import BucketDataSourceOptions, LocalCluster
from cbframe.local import ServerTLS
from cbframe.scan import doctor

from .far import Distance

Do = Callable[[str], object]
AUTH = ("Administrator", "password")


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(3, 64, seed=1) as running:
        running.bulk_load((b"k%d" % n, b'{"n": 1}') for n in range(200))
        yield running


def read(target: str) -> None:
    assert len(cbframe.read_bucket(target, auth=AUTH, progress=None)) == 200


def read_a_scope(target: str) -> None:
    assert len(cbframe.read_bucket(target, auth=AUTH, scope="_default", progress=None)) == 200


def peek(target: str) -> None:
    assert len(cbframe.scan_bucket(target, auth=AUTH).peek(20)) == 20


def partitions(target: str) -> None:
    assert len(cbframe.scan_bucket(target, auth=AUTH).partitions(3)) == 3


def examine(target: str) -> None:
    found = cbframe.doctor(target, auth=AUTH)
    assert found.ok, found


def open_a_stream(target: str) -> None:
    with cbframe.stream_bucket(target, auth=AUTH, start="now") as changes:
        assert not changes.errors


@pytest.mark.parametrize(
    ("do", "turns", "connections"),
    [
        (read, 10, 4),
        (read_a_scope, 11, 4),
        (peek, 14, 5),
        (examine, 16, 9),
        (partitions, 28, 16),
        (open_a_stream, 12, 8),
    ],
)
def test_how_many_round_trips_it_takes(cluster: LocalCluster, do: Do, turns: int, connections: int) -> None:
    """To connect is one. They were 26, 40, 26, 69, 181 and 33: each request waited for the one before.

    Nodes are asked at the same time: their number makes no difference.
    """
    with Distance(cluster) as far:
        target = cluster.connection_string
        assert far.of(lambda: do(target)) <= turns
        assert far.connections <= connections


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
        examine(target)
        frame = cbframe.read_bucket(target, auth=AUTH, scope="_default", options=options, progress=None)
        assert len(frame) == 200
        assert len(cbframe.scan_bucket(target, auth=AUTH, options=options).peek()) == 5


@pytest.mark.slow
def test_each_turn_of_a_diagnosis_has_its_time(
    cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Regression: a conversation had it, and a healthy cluster was found broken."""
    monkeypatch.setattr(doctor, "_EACH", 1.0)
    with Distance(cluster, 0.4):
        examine(cluster.connection_string)


@pytest.mark.parametrize("seconds", [0.15, 0.4, 0.75])
def test_a_diagnosis_without_enough_time_says_so(cluster: LocalCluster, seconds: float) -> None:
    """It does not take a cluster that is far away for one that is silent, whatever the step."""
    with Distance(cluster, 0.1):
        found = cbframe.doctor(cluster.connection_string, auth=AUTH, timeout=seconds)
    assert found.failed is not None
    assert found.failed.remedy == "give doctor() a larger timeout"
    assert "no time left" in found.failed.detail
