"""Alternate addresses: the nodes call themselves what nobody out here can reach."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from cbframe import (
    CbframeError,
    ConfigurationError,
    LocalCluster,
    read_bucket,
    scan_bucket,
)
from cbframe.cli import main

from .kit import QUICK, fill

INTERNAL = "192.0.2.1"
"""Of a block that is set aside for documentation."""
HASTY = replace(QUICK, connect_timeout=0.3)


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
    assert scan.stats is not None
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


def test_the_command_line(
    hidden: LocalCluster, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CB_PASSWORD", hidden.password)
    login = ["read", hidden.connection_string, "--user", hidden.username, "--password-env", "CB_PASSWORD"]
    assert main([*login, "--network", "external"]) == 0
    assert "50 documents" in capsys.readouterr().out
    assert main([*login, "--network", "lan"]) == 1
    assert "there are: default, external" in capsys.readouterr().err
