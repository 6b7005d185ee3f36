"""Whether a bucket exists that a data node does not have, as cluster managers say."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from cbframe import LocalCluster
from cbframe.cluster.address import HostPort
from cbframe.cluster.auth import PasswordAuthenticator
from cbframe.dcp import absence as module
from cbframe.dcp.absence import absence
from cbframe.dcp.handshake import Login
from cbframe.errors import BucketNotFoundError

LOGIN = Login("Administrator", "password", "default", False, False, lambda: "nonce")
AUTH = PasswordAuthenticator("Administrator", "password")
HOST = "127.0.0.1"
ORIGIN = HostPort(HOST, 11210)


@pytest.fixture
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(vbuckets=1) as running:
        yield running


def config(*ports: int, host: str = HOST, **more: Any) -> bytes:
    return json.dumps(
        {"nodesExt": [{"hostname": host, "services": {"kv": 1, "mgmt": port}, **more} for port in ports]}
    ).encode()


def port_of(cluster: LocalCluster) -> int:
    return int(cluster.rest_urls[0].rpartition(":")[2])


def test_a_bucket_that_does_not_exist(cluster: LocalCluster) -> None:
    found = absence(config(port_of(cluster)), ORIGIN, replace(LOGIN, bucket="other"), AUTH)
    assert type(found) is BucketNotFoundError
    assert found.permanent
    assert found.hint == "visible buckets: default"


def test_a_bucket_that_exists(cluster: LocalCluster) -> None:
    assert absence(config(port_of(cluster)), ORIGIN, LOGIN, AUTH) is None


def test_nobody_knows(cluster: LocalCluster) -> None:
    other = replace(LOGIN, bucket="other")
    wrong = PasswordAuthenticator("Administrator", "wrong")
    assert absence(config(port_of(cluster)), ORIGIN, other, wrong) is None
    assert absence(config(port_of(cluster)), ORIGIN, replace(other, tls=True), AUTH) is None
    for answer in (b"", b"[]", b"no JSON", b"[" * 100_000, b'{"nodesExt": 3}', config(70_000)):
        assert absence(answer, ORIGIN, other, AUTH) is None


@pytest.mark.parametrize(
    ("login", "host", "asked"),
    [
        (LOGIN, "127.0.0.1", True),
        (LOGIN, "[::1]", True),
        (LOGIN, "localhost", True),
        (LOGIN, "192.0.2.1", False),
        (LOGIN, "node.example", False),
        (replace(LOGIN, allow_plain=True), "192.0.2.1", True),
        (replace(LOGIN, tls=True), "192.0.2.1", True),
    ],
)
def test_passwords_cross_no_network_in_clear_text(login: Login, host: str, asked: bool) -> None:
    content = json.loads(config(8091, host=host))
    content["nodesExt"][0]["services"]["mgmtSSL"] = 18091
    urls = list(module._managers(content, HostPort("192.0.2.1", 1), login, "default"))
    scheme, port = ("https", 18091) if login.tls else ("http", 8091)
    assert urls == ([f"{scheme}://{host}:{port}"] if asked else [])


def test_the_node_itself_comes_first_on_the_network_in_use() -> None:
    login = replace(LOGIN, tls=True)
    content = {
        "nodesExt": [
            {
                "hostname": f"10.0.0.{n}",
                "services": {"kvSSL": 1, "mgmtSSL": 18091},
                "alternateAddresses": {"external": {"hostname": f"ext{n}", "ports": {"mgmtSSL": 30000 + n}}},
            }
            for n in range(3)
        ]
    }
    assert next(module._managers(content, HostPort("10.0.0.2", 1), login, "auto")) == "https://10.0.0.2:18091"
    assert list(module._managers(content, HostPort("ext1", 1), login, "auto")) == [
        "https://ext1:30001",
        "https://ext0:30000",
        "https://ext2:30002",
    ]
