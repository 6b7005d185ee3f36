"""Whether a bucket exists that a data node does not have, as cluster managers say."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from cbframe import LocalCluster, read_bucket
from cbframe.cluster import rest
from cbframe.cluster.auth import AuthLike, PasswordAuthenticator
from cbframe.cluster.connection_string import HostPort
from cbframe.cluster.rest import RestClient
from cbframe.dcp import maps as module
from cbframe.dcp.handshake import Login
from cbframe.dcp.maps import absence
from cbframe.errors import BucketNotFoundError
from cbframe.local.auth import User
from cbframe.local.cluster_manager import RestConnection

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
    no_hosts = [config(8091, host=host) for host in ("[", "[::1]]", "a" * 5000, "a b", "\ud800")]
    for answer in (b"", b"[]", b"no JSON", b"[" * 100_000, b'{"nodesExt": 3}', config(70_000), *no_hosts):
        assert absence(answer, ORIGIN, other, AUTH) is None


@pytest.mark.parametrize(
    ("login", "host", "scram"),
    [
        (LOGIN, "127.0.0.1", False),
        (LOGIN, "[::1]", False),
        (LOGIN, "localhost", False),
        (LOGIN, "192.0.2.1", True),
        (LOGIN, "node.example", True),
        (replace(LOGIN, allow_plain=True), "192.0.2.1", False),
        (replace(LOGIN, tls=True), "192.0.2.1", True),  # TLS that does not verify the server
        (replace(LOGIN, tls=True, allow_plain=True), "192.0.2.1", False),
    ],
)
def test_passwords_cross_no_network_in_clear_text(
    login: Login, host: str, scram: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[list[str], bool]] = []

    class Client(RestClient):
        def __init__(self, seeds: list[str], auth: AuthLike, **arguments: Any) -> None:
            asked.append((seeds, arguments["scram"]))
            super().__init__("http://127.0.0.1:1", auth)

    monkeypatch.setattr(rest, "RestClient", Client)
    content = json.loads(config(8091, host=host))
    content["nodesExt"][0]["services"]["mgmtSSL"] = 18091
    assert absence(json.dumps(content).encode(), HostPort("192.0.2.1", 1), login, AUTH) is None
    scheme, port = ("https", 18091) if login.tls else ("http", 8091)
    assert asked == [([f"{scheme}://{host}:{port}"], scram)]


@pytest.fixture
def elsewhere(cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The cluster as if it were on other hosts; what clients say of themselves to its managers."""
    monkeypatch.setattr(module, "_is_here", lambda _: False)
    said: list[str] = []
    authorized = RestConnection._authorized

    def noting(self: RestConnection, header: str) -> User | None:
        said.append(header.partition(" ")[0])
        return authorized(self, header)

    monkeypatch.setattr(RestConnection, "_authorized", noting)
    return said


def test_managers_on_other_hosts_are_asked_with_scram(cluster: LocalCluster, elsewhere: list[str]) -> None:
    there = config(port_of(cluster))
    found = absence(there, ORIGIN, replace(LOGIN, bucket="other"), AUTH)
    assert type(found) is BucketNotFoundError
    assert found.hint == "visible buckets: default"
    assert absence(there, ORIGIN, LOGIN, AUTH) is None
    wrong = PasswordAuthenticator("Administrator", "wrong")
    assert absence(there, ORIGIN, replace(LOGIN, bucket="other"), wrong) is None
    assert set(elsewhere) == {"SCRAM-SHA-512"}


def test_a_read_learns_at_once_that_there_is_no_bucket(cluster: LocalCluster, elsewhere: list[str]) -> None:
    began = time.monotonic()
    with pytest.raises(BucketNotFoundError, match="'other'"):
        read_bucket(cluster, "other")
    assert time.monotonic() - began < 5  # where nobody confirms it, the node is asked for 10 s
    assert set(elsewhere) == {"SCRAM-SHA-512"}


@pytest.mark.parametrize("answer", ["no proof", "another's proof", "no base64", "no challenge"])
def test_who_does_not_prove_that_it_knows_the_password_is_not_believed(
    answer: str, cluster: LocalCluster, elsewhere: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    reply = RestConnection._reply

    def replying(self: RestConnection, *arguments: Any) -> None:
        login = self._login
        if answer == "no challenge":
            login.pop("WWW-Authenticate", None)
        elif "Authentication-Info" in login:
            sid = login.pop("Authentication-Info").partition(",")[0]
            data = {"no proof": None, "another's proof": "dj1hYmM=", "no base64": "?"}[answer]
            if data is not None:
                login["Authentication-Info"] = f"{sid},data={data}"
        reply(self, *arguments)

    monkeypatch.setattr(RestConnection, "_reply", replying)
    assert absence(config(port_of(cluster)), ORIGIN, replace(LOGIN, bucket="other"), AUTH) is None
    assert elsewhere


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
