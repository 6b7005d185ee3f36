"""The doctor, and clusters that are ill in one way each: the right step fails, and says what to do."""

from __future__ import annotations

import json
import random
import re
import socket
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from certificates import CAPELLA_HOST, Files
from servers import PASSWORD, USER, Garbage, Memcached, Reply, TcpServer, answer_to, manager

from cbframe import BucketNotFoundError, Diagnosis, LocalCluster, core, doctor
from cbframe.dcp import probe, transport
from cbframe.local import ServerTLS
from cbframe.scan import doctor as module
from cbframe.scan.doctor import STEPS, Step
from cbframe.testing import FakeClock
from cbframe.wire.constants import Opcode, Status

from .kit import fill

SECRET = "hunter2-of-the-doctor"
QUICK = 1.0


def secured(certificate: Path) -> LocalCluster:
    return LocalCluster(2, 16, seed=1, password=SECRET, tls=ServerTLS(certificate))


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second for each question."""
    monkeypatch.setattr(module, "_EACH", QUICK)


def examine(conn: Any, bucket: str | None = "default", **arguments: Any) -> Diagnosis:
    """A diagnosis; made in time, and without the password."""
    began = time.monotonic()
    found = doctor(conn, bucket, **arguments)
    assert time.monotonic() - began < 15
    told = f"{found}{found!r}{found._repr_html_()}{json.dumps(found.to_dict())}"
    assert SECRET not in told
    assert [step.name for step in found.steps] == list(STEPS)
    return found


def expect(found: Diagnosis, failed: str, detail: str, remedy: str) -> None:
    step = found.failed
    assert step is not None, found
    assert step.name == failed, found
    assert re.search(detail, step.detail), found
    assert step.remedy is not None, found
    assert re.search(remedy, step.remedy), found
    assert not found.ok
    before = list(STEPS).index(failed)
    assert all(each.status != "failed" for each in found.steps[:before])
    later = [each for each in found.steps[before + 1 :] if each.status == "skipped"]
    assert all(each.detail == f"after {failed} has failed" for each in later)
    assert found.steps[-1].status == "skipped" or failed == STEPS[-1]


def plain(found: Diagnosis) -> str:
    """With the ports and the breaks of long lines taken out."""
    return re.sub(r"127\.0\.0\.1:\d+", "HOST", re.sub(r"\n {20,}(?!->)", " ", str(found)))


# --- what it looks like


HEALTHY = """\
bucket 'default' at couchbase://HOST/default: everything is well
  ok       arguments bucket 'default' at couchbase://HOST/default
  ok       DNS       HOST is 127.0.0.1
  ok       TCP       HOST is open
  skipped  TLS       couchbase:// is not encrypted
  ok       service   HOST is a data node
  ok       login     user 'Administrator' is known, by SCRAM-SHA512
  ok       bucket    16 vbuckets on 2 nodes
  ok       nodes     HOST, HOST can be reached
  ok       role      user 'Administrator' may stream
  ok       DCP       opened on 2 of 2 nodes
  ok       stream    changes come: vbucket 0 up to seqno 20
           core      the compiled core reads"""
ILL = f"""\
bucket 'default' at couchbase://HOST/default: the step 'nodes' has failed
  ok       arguments bucket 'default' at couchbase://HOST/default
  ok       DNS       HOST is 127.0.0.1
  ok       TCP       HOST is open
  skipped  TLS       couchbase:// is not encrypted
  ok       service   HOST is a data node
  ok       login     user 'Administrator' is known, by SCRAM-SHA512
  ok       bucket    16 vbuckets on 2 nodes
  failed   nodes     1 of 2 nodes cannot be reached: cannot connect: Connection refused [HOST]
                  -> check that the node runs and that the port is right
  ok       role      user 'Administrator' may stream
  ok       DCP       opened on 1 of 2 nodes
  skipped  stream    after nodes has failed
           core      the Python reference reads: the results are the same, and it is slower
                  -> {core.HINT}"""


def test_a_healthy_cluster_and_one_with_a_node_down(pair: LocalCluster) -> None:
    for n in range(320):
        pair.upsert(f"key-{n}", {})
    found = examine(pair, None)
    assert found.ok
    assert found.failed is None
    assert found.core == core.NAME
    told = plain(replace(found, core="rust"))
    assert re.sub(r"vbucket \d+ up to seqno \d+", "vbucket 0 up to seqno 20", told) == HEALTHY
    assert repr(found) == str(found)
    pair.kill(1)
    found = examine(pair, None)
    expect(found, "nodes", "1 of 2 nodes cannot be reached", "check that the node runs")
    found = replace(found, core="python")
    assert plain(found) == ILL
    assert "the Python reference reads" in found._repr_html_()
    told = found.to_dict()
    assert told["ok"] is False
    assert told["core"] == "python"
    assert told["steps"][7]["remedy"] == "check that the node runs and that the port is right"
    assert json.loads(json.dumps(told)) == told
    assert "<table>" in found._repr_html_()


def test_the_cluster_manager(pair: LocalCluster) -> None:
    auth = (pair.username, pair.password)
    found = examine(pair.rest_urls, auth=auth)
    assert found.ok, found
    assert "the cluster manager answers" in str(found)
    assert "there are no documents" in str(found)


def test_html_is_escaped() -> None:
    found = examine("couchbase://127.0.0.1/<b>", None, auth=("u", "p"))
    assert found._repr_html_().count("<b>") == 0
    found = Diagnosis("<i>", (Step("DNS", "failed", "<b>&", "<u>"),), 0.0)
    assert not re.search("<[biu]>", found._repr_html_())
    assert "&lt;b&gt;&amp;" in found._repr_html_()


# --- one illness each


@pytest.mark.parametrize(
    ("conn", "bucket", "arguments", "detail", "remedy"),
    [
        (5, "b", {}, "cannot connect to a int", "couchbase://"),
        (None, None, {}, "NoneType", "couchbase://"),
        ([1], "b", {}, "is not a string", "couchbase://"),
        ("couchbase://h", None, {}, "no bucket is named", "bucket="),
        ("couchbase://h/b", None, {}, "no user name and password", "auth="),
        (
            "couchbase://h:8091/b",
            None,
            {"auth": ("u", SECRET)},
            "8091 is the cluster manager's",
            "http://h:8091",
        ),
        (f"http://u:{SECRET}@x@h:99999", "b", {}, "not a port", "65535"),
        ("couchbase://h/b", None, {"auth": ("u", SECRET), "tls": "ca.pem"}, "not encrypted", "couchbases://"),
        ("couchbases://h/b", None, {"auth": ("u", SECRET), "tls": "no.pem"}, "no file with", "PEM"),
        ("couchbase://h/b", None, {"auth": lambda: 1 / 0}, "raised ZeroDivisionError", "user name"),
        (LocalCluster(), None, {}, "not running", "start"),
    ],
)
def test_arguments(conn: Any, bucket: str | None, arguments: Any, detail: str, remedy: str) -> None:
    expect(examine(conn, bucket, **arguments), "arguments", detail, remedy)


def test_a_name_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(transport.socket, "getaddrinfo", unknown)
    found = examine("couchbase://nowhere.invalid/default", None, auth=(USER, SECRET))
    expect(found, "DNS", r"'nowhere\.invalid' cannot be resolved", "check the host name, and DNS")


def test_a_port_that_is_closed() -> None:
    found = examine("couchbase://127.0.0.1:1/default", None, auth=(USER, SECRET))
    expect(found, "TCP", "Connection refused", "port is right")


def test_all_seeds_that_are_closed_are_told() -> None:
    found = examine("couchbase://127.0.0.1:1,127.0.0.1:2/default", None, auth=(USER, SECRET))
    expect(found, "TCP", r"refused \[127\.0\.0\.1:1\]; .* refused \[127\.0\.0\.1:2\]", "port is right")


def test_one_seed_of_two_is_enough(cluster: LocalCluster) -> None:
    conn = f"couchbase://127.0.0.1:1,{cluster.kv_addresses[0]}/default"
    found = examine(conn, None, auth=(cluster.username, cluster.password))
    assert found.ok, found
    assert "127.0.0.1:1: cannot connect: Connection refused" in found.steps[2].detail


def test_tls(files: Files) -> None:
    with secured(files.server) as cluster:
        auth = (cluster.username, SECRET)
        for conn in (cluster.tls_connection_string, cluster.tls_rest_urls):
            found = examine(conn, auth=auth, tls=files.ca)
            assert found.ok, found
            assert re.search(r"speaks TLSv1\.[23]; its certificate holds until 20\d\d-\d\d-\d\d", str(found))
            assert "soon" not in str(found)
            found = examine(conn, auth=auth, tls=files.other_ca)
            expect(
                found, "TLS", "unable to get local issuer|self.signed", "certificate authority: tls='ca.pem'"
            )
            expect(examine(conn, auth=auth), "TLS", "certificate is not accepted", "certificate authority")
        # Plain text where TLS is spoken, and the other way round.
        wrong = cluster.tls_connection_string.replace("couchbases", "couchbase")
        expect(examine(wrong, auth=auth), "service", "closed the connection|broke", "11210.*11207")
        wrong = cluster.tls_rest_urls[0].replace("https", "http")
        expect(examine(wrong, auth=auth), "service", "no whole answer", "18091")
        wrong = cluster.connection_string.replace("couchbase:", "couchbases:")
        expect(examine(wrong, auth=auth, tls=files.ca), "TLS", "closed|does not speak TLS", "11207")
        wrong = cluster.rest_urls[0].replace("http", "https")
        expect(examine(wrong, auth=auth, tls=files.ca), "TLS", "closed|does not speak TLS", "18091")


def test_certificates_that_are_not_in_order(files: Files) -> None:
    auth = ("Administrator", SECRET)
    with secured(files.elsewhere) as cluster:
        found = examine(cluster.tls_connection_string, auth=auth, tls=files.ca)
        expect(found, "TLS", "mismatch", "a name that is in the certificate")
    with secured(files.expired) as cluster:
        found = examine(cluster.tls_connection_string, auth=auth, tls=files.ca)
        expect(found, "TLS", "expired", "renew the node's certificate.*clock")
    with secured(files.soon) as cluster:
        found = examine(cluster.tls_connection_string, auth=auth, tls=files.ca)
        assert found.ok
        step = next(each for each in found.steps if each.name == "TLS")
        assert re.search(
            r"its certificate holds until \d{4}-\d\d-\d\d; O=trustme.* vouches for it", step.detail
        )
        assert re.search("renew the node's certificate before .*: nobody can connect after that", step.remedy)


def test_options_that_are_not_known(pair: LocalCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are named however often it is asked, also where warnings are errors."""
    monkeypatch.setattr("cbframe.cluster.connection_string._warned", set())
    conn = f"{pair.connection_string}?newtork=external"
    auth = (pair.username, pair.password)
    failed = doctor(conn, "default", auth=auth).failed
    assert (failed.name, "'newtork'" in failed.detail) == ("arguments", True)
    found = doctor(conn, "default", auth=auth)
    assert found.ok
    assert found.steps[0].remedy.endswith("is not known, and has no effect: did you mean 'network'?")


def test_capellas_certificate(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which authority vouches, and that it ends before long: the one that is in the package, or another."""
    host = CAPELLA_HOST
    monkeypatch.setattr("cbframe.cluster.tls.CAPELLA_ROOT", str(files.ca))
    original = transport.socket.getaddrinfo
    monkeypatch.setattr(
        transport.socket,
        "getaddrinfo",
        lambda name, *rest, **more: original("127.0.0.1" if name == host else name, *rest, **more),
    )

    def look(conn: str, **tls: Any) -> Any:
        return next(each for each in examine(conn, auth=("u", SECRET), **tls).steps if each.name == "TLS")

    with secured(files.server) as cluster:
        conn = cluster.tls_connection_string.replace("127.0.0.1", host)
        step = look(conn)
        assert (step.status, step.remedy) == ("ok", None)
        assert "; Capella's root certificate, which comes with cbframe (O=trustme" in step.detail
        # The authorities of a test end in 3000.
        monkeypatch.setattr(module, "AUTHORITY_AHEAD", 1000 * 366 * 86400.0)
        assert look(conn).remedy.startswith("update cbframe before ")
        assert "update cbframe" in look(conn, tls=files.ca.read_text()).remedy
        monkeypatch.setattr("cbframe.cluster.tls.CAPELLA_ROOT", str(files.other_ca))
        remedy = look(conn, tls=files.ca.read_text()).remedy
        assert remedy.startswith("give the successor of the authority O=trustme")
        step = look(conn)
        assert step.status == "failed"
        assert "Capella's root certificate comes with cbframe" in step.remedy


@pytest.mark.usefixtures("hasty")
def test_a_port_that_is_silent() -> None:
    with TcpServer() as server:
        expect(examine(server.url, auth=(USER, SECRET)), "service", "no answer within 1 s", "data service")
        found = examine(server.url.replace("couchbase", "couchbases"), auth=(USER, SECRET))
        expect(found, "TLS", "no TLS handshake within 1 s", "silent")
        found = examine(f"http://{server.address}", auth=(USER, SECRET))
        expect(found, "service", "gave no answer within 1 s", "overloaded|firewall")
        began = time.monotonic()
        seeds = [f"couchbase://{server.address}"] * 1 + ["couchbase://127.0.0.2:1"] * 1
        assert not examine(seeds, auth=(USER, SECRET), timeout=0.2).ok
        assert time.monotonic() - began < 5


@pytest.mark.usefixtures("hasty")
def test_something_else_answers() -> None:
    with Garbage(b"SSH-2.0-OpenSSH_9.2p1 Debian\r\n" * 4) as server:
        expect(examine(server.url, auth=(USER, SECRET)), "service", "magic", "data service")
        expect(examine(f"http://{server.address}", auth=(USER, SECRET)), "service", "answer", "8091")
    with manager(Reply(200, b"<html>", "text/html")) as server:
        found = examine(f"http://{server.address}", auth=(USER, SECRET))
        expect(found, "service", "not JSON", "and not a proxy")
    with manager(Reply(302, b"")) as server:
        found = examine(f"http://{server.address}", auth=(USER, SECRET))
        expect(found, "service", "redirects", "name that host")


@pytest.mark.parametrize("service", ["kv", "rest"])
def test_a_wrong_password(cluster: LocalCluster, service: str) -> None:
    conn = cluster.connection_string if service == "kv" else cluster.rest_urls
    found = examine(conn, auth=(cluster.username, SECRET))
    expect(found, "login", "refused", "check")
    assert found.steps[4].status == "ok"


@pytest.mark.parametrize("service", ["kv", "rest"])
def test_a_bucket_that_is_not_there_or_paused(cluster: LocalCluster, service: str) -> None:
    conn = f"couchbase://{cluster.kv_addresses[0]}" if service == "kv" else cluster.rest_urls
    auth = (cluster.username, cluster.password)
    expect(examine(conn, "nothing", auth=auth), "bucket", "'nothing'", "^visible buckets: default$")
    cluster.pause_bucket()
    expect(examine(conn, auth=auth), "bucket", "is paused", ".")


@pytest.mark.parametrize("service", ["kv", "rest"])
def test_a_user_without_the_role(cluster: LocalCluster, service: str) -> None:
    conn = cluster.connection_string if service == "kv" else cluster.rest_urls
    cluster.add_user("ann", SECRET, access="data")
    found = examine(conn, auth=("ann", SECRET))
    expect(found, "role", "may not read bucket 'default' over DCP", "Data DCP Reader")
    assert found.steps[7].status == "ok"
    cluster.add_user("ann", SECRET, access="none")
    expect(examine(conn, auth=("ann", SECRET)), "bucket", "default", "Data DCP Reader|sees no other")


def test_a_node_that_hangs_up(pair: LocalCluster) -> None:
    with pair.refuse(1):
        found = examine(pair, None)
    expect(found, "nodes", "1 of 2 nodes cannot be reached: the node closed|broke", "data service")


@pytest.mark.usefixtures("hasty")
def test_nodes_that_are_silent(pair: LocalCluster) -> None:
    with pair.stall(1):
        found = examine(pair, None)
    expect(found, "nodes", "1 of 2 nodes cannot be reached: no answer within 1 s", "data service")


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("service", ["kv", "rest"])
def test_only_other_addresses_can_be_reached(service: str) -> None:
    with LocalCluster(nodes=2, vbuckets=8, seed=1, internal_host="192.0.2.1") as hidden:
        auth = (hidden.username, hidden.password)
        conn = hidden.connection_string if service == "kv" else hidden.rest_urls
        found = examine(conn, auth=auth)
        assert found.ok, found
        assert "by their addresses on network 'external'" in plain(found)
        found = examine(conn, auth=auth, network="default")
        expect(
            found, "nodes", "2 of 2 nodes cannot be reached", r'give network="external": .* can be reached'
        )
        expect(examine(conn, auth=auth, network="lan"), "bucket", "'lan'", "there are: default, external")


def test_a_vbucket_without_a_node(pair: LocalCluster) -> None:
    pair._engine.bucket.map[3][0] = -1
    expect(examine(pair, None), "bucket", "1 vbuckets have no node", "bring the node")


def test_a_node_that_does_not_open_dcp() -> None:
    auth = (USER, PASSWORD)
    refused = {Opcode.DCP_OPEN: lambda frame: answer_to(frame, status=Status.NOT_SUPPORTED)}
    with Memcached(refused) as server:
        expect(examine(server.url, auth=auth), "role", "has no DCP", "memcached buckets")
    refused = {Opcode.GET_ALL_VB_SEQNOS: lambda frame: answer_to(frame, status=Status.EINTERNAL)}
    with Memcached(refused) as server:
        found = examine(server.url, auth=auth)
        assert found.failed.name == "DCP"


@pytest.mark.parametrize("answer", [b"", b"[]", b"[" * 100_000, b'{"name":"default"}'])
def test_a_map_that_is_none(answer: bytes) -> None:
    config = {Opcode.GET_CLUSTER_CONFIG: lambda frame: answer_to(frame, answer)}
    with Memcached(config) as server:
        found = examine(server.url, auth=(USER, PASSWORD))
    assert found.failed.name == "bucket"


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("close_after", range(1, 24))
def test_a_node_that_hangs_up_at_any_question(close_after: int) -> None:
    with Memcached(close_after=close_after) as server:
        found = examine(server.url, auth=(USER, PASSWORD))
    assert not found.ok
    # The hand-shake of the map has seven questions, that of DCP has more.
    wanted = {1: "service", 2: "login", 3: "login", 4: "login", 5: "bucket", 6: "bucket"}
    assert found.failed.name == wanted.get(close_after, found.failed.name)
    assert found.failed.name in ("service", "login", "bucket", "nodes", "role", "DCP", "stream")


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("seed", range(12))
def test_whatever_a_node_answers_nothing_is_raised(seed: int) -> None:
    rng = random.Random(seed)
    opcodes = [Opcode.HELLO, Opcode.SASL_LIST_MECHS, Opcode.SASL_AUTH, Opcode.SASL_STEP, Opcode.SELECT_BUCKET]
    opcodes += [Opcode.GET_CLUSTER_CONFIG, Opcode.DCP_OPEN, Opcode.DCP_CONTROL, Opcode.GET_ALL_VB_SEQNOS]
    status = rng.choice([0, 1, 4, 0x20, 0x21, 0x24, 0x81, 0x83, 0x86, 0x1234])
    value = rng.choice([b"", b"{}", b"[]", b"null", bytes(rng.randrange(256) for _ in range(30))])
    answers = {rng.choice(opcodes): lambda frame: answer_to(frame, value, status=status)}
    with Memcached(answers) as server:
        examine(server.url, auth=(USER, PASSWORD))


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("status", [200, 301, 401, 403, 404, 500])
@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b"null", b'{"nodesExt":5}', b"[" * 100_000, b"\xff"])
def test_whatever_a_manager_answers_nothing_is_raised(status: int, body: bytes) -> None:
    with manager(Reply(status, body)) as server:
        found = examine(f"http://{server.address}", auth=(USER, PASSWORD))
    assert found.failed.name == {401: "login", 403: "bucket"}.get(status, found.failed.name)


@pytest.mark.usefixtures("hasty")
def test_no_change_comes(cluster: LocalCluster) -> None:
    fill(cluster, 10)
    for vbucket in range(16):
        cluster.corrupt(vbucket)
    expect(examine(cluster, None), "stream", "no snapshot began within|no progress|BACKFILL", ".")


@pytest.mark.parametrize(("after", "found"), [(3, b"map"), (1000, b"")])
def test_a_bucket_that_is_on_its_way_is_asked_for_again(after: int, found: bytes) -> None:
    """For the seconds of a turn, with pauses."""
    clock = FakeClock(0.0)
    not_yet = BucketNotFoundError("not yet")
    not_yet.permanent = False
    asked = 0

    def attempt() -> probe.Outcome:
        nonlocal asked
        asked += 1
        return probe.Outcome(answer=b"map") if asked == after else probe.Outcome(not_yet)

    asking = probe.Probe(None, 5.0, lambda: 30.0, sleep=clock.advance, clock=clock)
    outcome = asking._when_loaded(attempt, probe.Outcome(not_yet))
    assert (outcome.answer, outcome.error is None) == (found, bool(found))
    assert clock.now == pytest.approx(asked * 0.2)
    assert clock.now < 5.3


def test_nothing_is_left(pair: LocalCluster) -> None:
    for _ in range(3):
        assert doctor(pair).ok
    assert pair.dcp_connections(0) == pair.dcp_connections(1) == 0
    assert probe.first_marker.__doc__


@pytest.fixture(autouse=True)
def _no_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test asks a name server."""
    original = transport.socket.getaddrinfo

    def only_addresses(host: str, *arguments: Any, **more: Any) -> Any:
        assert re.fullmatch(r"[\d.]+", host), host
        return original(host, *arguments, **more)

    monkeypatch.setattr(transport.socket, "getaddrinfo", only_addresses)
