"""A simulated Capella: what its users do, rightly and wrongly."""

from __future__ import annotations

import logging
import re
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from scan.kit import QUICK

import cbframe
from cbframe import CbframeError, scan_bucket, stream_bucket, write_snapshot
from cbframe.cli import main
from cbframe.cluster.connection_string import ZONES
from cbframe.dcp import maps
from cbframe.local import kv
from cbframe.local.kv import KvConnection
from cbframe.testing import LocalCapella
from cbframe.wire.constants import Opcode, Status
from cbframe.wire.framing import Frame

HASTY = replace(QUICK, connect_timeout=1.0)
DOMAIN = "local.cloud.couchbase.com"
PATIENCE = 20.0


@pytest.fixture
def capella(request: pytest.FixtureRequest) -> Iterator[LocalCapella]:
    """With an endpoint on the public network, unless the test says private."""
    with LocalCapella(vbuckets=8, private_endpoint=getattr(request, "param", False)) as running:
        for n in range(40):
            running.cluster.upsert(f"key-{n}", {"n": n})
        yield running


def test_three_lines(capella: LocalCapella) -> None:
    assert capella.connection_string == f"couchbases://cb.{DOMAIN}/travel"
    auth = capella.auth

    import cbframe  # noqa: PLC0415 - the first line

    df = cbframe.read_bucket("couchbases://cb.local.cloud.couchbase.com/travel", auth=auth)
    assert df["n"].sum() == sum(range(40))


@pytest.mark.parametrize("capella", [False, True], ids=["public", "private endpoint"], indirect=True)
def test_the_nodes_are_reached_by_their_outer_names(capella: LocalCapella) -> None:
    scan = scan_bucket(capella, options=QUICK)
    assert scan.to_arrow().num_rows == 40
    assert scan.stats is not None
    ports = [capella.cluster.ports(node)["kvSSL"] for node in range(2)]
    if capella.host.startswith("pe."):
        assert sorted(scan.stats.nodes) == sorted(f"pe.{DOMAIN}:{port}" for port in ports)
    else:
        assert sorted(scan.stats.nodes) == [f"node-00{n + 1}.{DOMAIN}:{port}" for n, port in enumerate(ports)]


@pytest.fixture
def refused_statistics(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The groups that were asked for."""
    asked: list[bytes] = []

    def refuse(conn: KvConnection, frame: Frame) -> None:
        asked.append(frame.key)
        conn.respond(frame, Status.EACCESS)

    monkeypatch.setitem(kv.HANDLERS, Opcode.STAT, refuse)
    return asked


def test_no_way_needs_the_cluster_manager_or_statistics(
    capella: LocalCapella, refused_statistics: list[bytes], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    with ExitStack() as stack:
        managers = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(4)]
        for node in range(2):
            tls, plain = managers[2 * node : 2 * node + 2]
            # They take connections, and never answer.
            capella.cluster.advertise(node, mgmtSSL=tls.getsockname()[1], mgmt=plain.getsockname()[1])
        capella.follow()
        arguments: dict[str, Any] = {"auth": capella.auth, "options": QUICK}
        target = capella.connection_string
        assert len(cbframe.read_bucket(target, scope="_default", expired="drop", **arguments)) == 40
        assert len(scan_bucket(target, **arguments).peek(3)) == 3
        partitions = scan_bucket(target, **arguments).partitions(2)
        assert sum(part.read().num_rows for part in partitions) == 40
        write_snapshot(target, tmp_path / "copy", **arguments)
        assert len(cbframe.read_snapshot(tmp_path / "copy")) == 40
        assert cbframe.doctor(target, auth=capella.auth).ok
        with stream_bucket(target, **arguments) as stream:
            assert rows_of(stream, 40) == 40
        for manager in managers:
            manager.setblocking(False)
            with pytest.raises(BlockingIOError):
                manager.accept()
    assert b"vbucket-details" in refused_statistics
    assert b"" in refused_statistics
    assert not caplog.records


def rows_of(stream: cbframe.ChangeStream, count: int) -> int:
    """Rows of the batches, until there are so many."""
    until, found = time.monotonic() + PATIENCE, 0
    while found < count:
        assert time.monotonic() < until, stream.errors
        if (batch := stream.poll(0.05)) is not None:
            found += len(batch)
            stream.ack(batch)
    return found


def test_a_stream_outlives_all_its_nodes(capella: LocalCapella, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others are where it has never been; only DNS knows."""
    monkeypatch.setattr(maps, "_ASK_DNS_AGAIN", 0.05)
    with stream_bucket(capella, options=QUICK) as stream:
        assert rows_of(stream, 40) == 40
        for node in range(2):
            capella.cluster.kill(node, clean=True)
        for node in range(2):
            capella.cluster.restart(node)
        capella.follow()
        capella.cluster.upsert("late", {"n": -1})
        assert rows_of(stream, 1) == 1


def test_without_trustme(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trustme", None)
    with pytest.raises(cbframe.DependencyError) as caught:
        LocalCapella()
    assert caught.value.hint == "pip install trustme"


def test_its_names_are_known_while_it_runs_only() -> None:
    with LocalCapella(vbuckets=4) as first, LocalCapella(vbuckets=4, name="other") as second:
        assert [zone.domain for zone in ZONES] == [DOMAIN, "other.cloud.couchbase.com"]
        second.cluster.upsert("k", {})
        assert len(cbframe.read_bucket(second, options=QUICK)) == 1
        assert cbframe.read_bucket(first, options=QUICK).empty
        assert first.password not in repr(first)
    first.close()
    assert not ZONES
    with first.start(), first.start() as again:
        assert again is first
        assert len(ZONES) == 1
    assert not ZONES


SITE = f"couchbases://cb.{DOMAIN}/travel"
NO_TLS = "Capella takes connections with TLS only, and couchbase://, or no scheme, is without"
MANAGER = "{}:// is for the cluster manager, which Capella does not open to clients"
PORT = "the data service of Capella is at port 11207, which need not be given"


def test_wrong_strings(capella: LocalCapella) -> None:
    for text, message in (
        (f"cb.{DOMAIN}/travel", NO_TLS),
        (f"couchbase://cb.{DOMAIN}/travel", NO_TLS),
        (f"http://cb.{DOMAIN}:8091/travel", MANAGER.format("http")),
        (f"https://cb.{DOMAIN}/travel", MANAGER.format("https")),
        (f"couchbases://cb.{DOMAIN}:18091/travel", PORT),
        (f"couchbases://cb.{DOMAIN}:11210/travel", PORT),
    ):
        assert said(text, capella.auth) == f"{message}\n  hint: write {SITE}"
        assert diagnosed(text, capella) == ("arguments", message, f"write {SITE}")


def diagnosed(text: str, capella: LocalCapella) -> tuple[str, str, str]:
    """The step at which the doctor ends, what it found and what it advises."""
    found = cbframe.doctor(text, auth=capella.auth).failed
    assert found is not None
    return found.name, found.detail, found.remedy


def said(text: str, auth: Any, options: cbframe.BucketDataSourceOptions = QUICK) -> str:
    """The error of a read, with the ports of nodes taken out."""
    with pytest.raises(CbframeError) as caught:
        cbframe.read_bucket(text, auth=auth, options=options)
    return re.sub(r"(node-\d+\.[a-z.]+):\d+", r"\1", str(caught.value))


def test_wrong_names(capella: LocalCapella) -> None:
    misspelt, name = f"cb.lokal.{DOMAIN}", f"cb.{DOMAIN}"
    hint = "give the connection string of the cluster's Connect page in Capella: one name, without a port"
    neither = (
        f"no such name for SRV of _couchbases._tcp.{misspelt}, and no such name for A and AAAA of {misspelt}"
    )
    for host, port, reason in ((misspelt, "", neither), (name, ":11207", "no such name")):
        text = f"couchbases://{host}{port}/travel"
        message = f"the name '{host}' cannot be resolved: {reason} [node {host}:11207]"
        assert said(text, capella.auth, HASTY) == f"{message}\n  hint: {hint}"
        assert diagnosed(text, capella) == ("DNS", message.replace("[node ", "["), hint)


def test_an_address_that_is_not_allowed(capella: LocalCapella) -> None:
    for node in range(2):
        capella.cluster.kill(node)
    allowed = (
        "Capella accepts connections from allowed IP addresses only: add this machine's in Capella, in the "
        "cluster's Settings under Networking, Allowed IP Addresses; a private endpoint is reached from its "
        "own network only"
    )
    assert said(SITE, capella.auth, HASTY) == (
        f"could not connect to the bucket through any seed: node-001.{DOMAIN}: cannot connect: Connection "
        f"refused; node-002.{DOMAIN}: cannot connect: Connection refused\n  hint: {allowed}"
    )
    assert diagnosed(SITE, capella)[::2] == ("TCP", allowed)


def test_wrong_credentials(capella: LocalCapella) -> None:
    wrong = said(SITE, ("reader", "wrong"))
    refused = "the server refused user 'reader' or the password (SCRAM-SHA512, then PLAIN) [node"
    assert wrong.startswith(refused)
    assert "\n  hint: check user name and password" in wrong
    wrong = said(SITE.replace("travel", "travels"), capella.auth)
    absent = "bucket 'travels' does not exist or user 'reader' has no access to it [node node-001"
    assert wrong.startswith(absent)
    capella.cluster.add_user("writer", "secret", access="data")
    assert "user 'writer' may not read bucket 'travel' over DCP" in said(SITE, ("writer", "secret"))


def test_an_authority_that_is_not_capellas(capella: LocalCapella) -> None:
    with LocalCapella(vbuckets=4, name="other") as other:
        stranger = other._zone.authority
    ca = capella._zone.authority
    object.__setattr__(capella._zone, "authority", stranger)
    assert "the node's certificate is not accepted: " in said(SITE, capella.auth)
    object.__setattr__(capella._zone, "authority", ca)


def test_the_doctor_at_the_command_line(
    capella: LocalCapella, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CB_PASSWORD", capella.password)
    login = ["--user", capella.username, "--password-env", "CB_PASSWORD"]
    assert main(["doctor", SITE, *login]) == 0
    told = capsys.readouterr().out
    assert "SRV records name 2 seeds" in told
    assert "by their addresses on network 'external'" in re.sub(r"\s+", " ", told)
    assert main(["doctor", SITE.replace("couchbases", "couchbase"), *login]) == 1
    assert f"  hint: write {SITE}" in capsys.readouterr().err
