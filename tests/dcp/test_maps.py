"""Asking a seed, and asking seed after seed."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any, Self

import pytest

from cbframe import read_bucket
from cbframe.cluster import rest
from cbframe.cluster.auth import AuthLike, PasswordAuthenticator
from cbframe.cluster.connection_string import (
    HostPort,
    Lookup,
    NoAnswerError,
    SrvRecord,
    parse_connection_string,
)
from cbframe.cluster.rest import RestClient
from cbframe.dcp import maps
from cbframe.dcp.handshake import Login, fetch_config
from cbframe.dcp.maps import MapFollower, MapSource, absence, when_loaded
from cbframe.dcp.transport import SocketTransport, Stream, Transport, Waker
from cbframe.errors import (
    AllServerURLsConnectBucketError,
    AuthFailError,
    BucketNotFoundError,
    CbframeError,
    ClusterMapError,
    ConnectError,
    ProtocolError,
    ReadCancelledError,
    ReadTimeoutError,
    ServerError,
)
from cbframe.local import LocalCluster
from cbframe.local.auth import User
from cbframe.local.cluster_manager import RestConnection
from cbframe.options import BucketDataSourceOptions
from cbframe.testing import FakeClock, Peer, ScriptedTransport
from cbframe.wire.constants import Feature, Magic, Opcode, Status
from cbframe.wire.framing import Frame, response

from .server import LOGIN, ask, good_answer, replaced

STEPS = 6
"""Requests: HELLO, three of SASL, SELECT_BUCKET, GET_CLUSTER_CONFIG."""
CONFIG = {
    "name": "bucket",
    "uuid": "u1",
    "rev": 3,
    "nodesExt": [{"services": {"kv": 11210}, "hostname": "a"}, {"services": {"kv": 11210}, "hostname": "c"}],
    "vBucketServerMap": {"serverList": ["a:11210", "c:11210"], "vBucketMap": [[0], [1]]},
}
MANIFEST = {"uid": "0", "scopes": [{"uid": "0", "name": "_default", "collections": []}]}


def good(frame: Frame) -> bytes | None:
    told = {Opcode.GET_CLUSTER_CONFIG: CONFIG, Opcode.COLLECTIONS_GET_MANIFEST: MANIFEST}
    answers = {opcode: json.dumps(content).encode() for opcode, content in told.items()}
    return replaced(lambda asked: good_answer(asked).encode(), answers)(frame)


def breaking(stage: int, how: Callable[[Frame], bytes | None]) -> Peer:
    """Good up to `stage`."""
    count = iter(range(100))
    return lambda frame: good(frame) if next(count) < stage else how(frame)


@pytest.mark.parametrize("stage", range(STEPS))
@pytest.mark.parametrize(
    ("how", "kind", "permanent"),
    [
        (lambda frame: None, ConnectError, False),
        (lambda frame: b"HTTP/1.1 400 Bad Request\r\n\r\n", ProtocolError, True),
        (lambda frame: b"", ReadTimeoutError, False),
        (lambda frame: response(Opcode.GET, opaque=frame.opaque).encode(), ProtocolError, True),
    ],
    ids=["closed", "garbage", "silent", "another answer"],
)
def test_each_stage_can_break(
    waker: Waker, stage: int, how: Callable[[Frame], bytes | None], kind: type[CbframeError], permanent: bool
) -> None:
    clock = FakeClock()
    transport = ScriptedTransport({"a:11210": breaking(stage, how)}, clock)
    with pytest.raises(CbframeError) as caught:
        ask("a:11210", fetch_config(LOGIN), transport=transport, waker=waker, clock=clock, timeout=7)
    assert type(caught.value) is kind
    assert (caught.value.node, caught.value.permanent) == ("a:11210", permanent)
    assert transport.closed == 1
    assert clock.now == (1007 if kind is ReadTimeoutError else 1000)


class Seeds:
    """A map source over scripted peers."""

    def __init__(self, **peers: Peer) -> None:
        self.transport = ScriptedTransport(
            {f"{name}:11210": peer for name, peer in peers.items()}, FakeClock()
        )
        self.sources: list[MapSource] = []

    def source(
        self, target: str, uuid: str = "", lookup: Lookup | None = None, clock: FakeClock | None = None
    ) -> MapSource:
        source = MapSource(
            parse_connection_string(target),
            LOGIN,
            PasswordAuthenticator("user", "secret"),
            BucketDataSourceOptions(connect_timeout=5),
            bucket_uuid=uuid,
            transport=self.transport,
            clock=clock or FakeClock(),
            lookup=lookup,
        )
        source.open()
        self.sources.append(source)
        return source


@pytest.fixture
def seeds() -> Iterator[Callable[..., Seeds]]:
    made: list[Seeds] = []

    def make(**peers: Peer) -> Seeds:
        made.append(Seeds(**peers))
        return made[-1]

    yield make
    for each in made:
        for source in each.sources:
            source.close()


Make = Callable[..., Seeds]


def test_the_second_seed_when_the_first_is_dead(seeds: Make) -> None:
    net = seeds(b=good)
    assert net.source("couchbase://a,b").fetch().nodes == ("a:11210", "c:11210")
    assert net.transport.connected == ["a:11210", "b:11210"]


def test_the_second_seed_when_the_first_speaks_http(seeds: Make) -> None:
    net = seeds(a=lambda frame: b"HTTP/1.1 400", b=good)
    assert net.source("couchbase://a,b").fetch().bucket == "bucket"


def test_nodes_of_the_last_map_are_seeds_too(seeds: Make) -> None:
    alive = {"a": True}
    net = seeds(a=lambda frame: good(frame) if alive["a"] else None, c=good)
    source = net.source("couchbase://a")
    source.fetch()
    alive["a"] = False
    source.fetch()
    assert net.transport.connected == ["a:11210", "a:11210", "c:11210"]


def test_nodes_of_a_newer_map_are_seeds_too(seeds: Make) -> None:
    """Regression: nodes that only a pushed map had named were not asked."""
    net = seeds(d=good)
    assert net.source("couchbase://a").fetch(("a:11210", "d:11210")).bucket == "bucket"
    assert net.transport.connected == ["a:11210", "d:11210"]


def test_one_dead_seed_tells_its_own_error(seeds: Make) -> None:
    with pytest.raises(ConnectError) as caught:
        seeds().source("couchbase://a").fetch()
    assert type(caught.value) is ConnectError
    assert caught.value.node == "a:11210"


def test_all_seeds_dead(seeds: Make) -> None:
    with pytest.raises(AllServerURLsConnectBucketError, match=r"a:11210: .*b:11210: ") as caught:
        seeds(b=lambda frame: b"HTTP/1.1 400").source("couchbase://a,b").fetch()
    assert not caught.value.permanent
    assert isinstance(caught.value.__cause__, ProtocolError)


def test_a_wrong_password_is_not_tried_elsewhere(seeds: Make) -> None:
    net = seeds(a=replaced(good, {Opcode.SASL_AUTH: Status.AUTH_ERROR}), b=good)
    with pytest.raises(AuthFailError):
        net.source("couchbase://a,b").fetch()
    assert net.transport.connected == ["a:11210"]


def test_another_uuid_is_permanent(seeds: Make) -> None:
    with pytest.raises(ClusterMapError, match="uuid") as caught:
        seeds(a=good).source("couchbase://a", "u2").fetch()
    assert caught.value.permanent


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b"5", b"[" * 100_000, b"\xff"])
def test_a_config_that_is_none(seeds: Make, body: bytes) -> None:
    source = seeds(a=replaced(good, {Opcode.GET_CLUSTER_CONFIG: body})).source("couchbase://a")
    with pytest.raises(CbframeError) as caught:
        source.fetch()
    assert type(caught.value) in (ProtocolError, ClusterMapError)
    assert source.parse_pushed("a:11210", body) is None


def test_a_pushed_map(seeds: Make) -> None:
    source = seeds().source("couchbase://a", "u1")
    pushed = source.parse_pushed("a:11210", json.dumps(CONFIG).encode())
    assert pushed is not None
    assert pushed.revision == (0, 3)
    assert source.parse_pushed("a:11210", json.dumps(CONFIG | {"uuid": "u2"}).encode()) is None


def test_manifest_over_the_data_service(seeds: Make) -> None:
    manifest = seeds(a=good).source("couchbase://a").fetch_manifest()
    assert manifest is not None
    assert manifest.scope_id("_default") == 0
    granted = good_answer(Frame(Magic.REQUEST, Opcode.HELLO), (Feature.SELECT_BUCKET,)).value
    for old in ({Opcode.HELLO: granted}, {Opcode.COLLECTIONS_GET_MANIFEST: Status.UNKNOWN_COMMAND}):
        assert seeds(a=replaced(good, old)).source("couchbase://a").fetch_manifest() is None


@pytest.mark.parametrize("answers", [True, False], ids=["it answers", "it was closed"])
def test_the_manifest_once_more(seeds: Make, answers: bool) -> None:
    """Over the same connection, or over another one if that is of no use any more."""
    asked = 0

    def peer(frame: Frame) -> bytes | None:
        nonlocal asked
        if frame.opcode == Opcode.COLLECTIONS_GET_MANIFEST:
            asked += 1
            if asked == 2 and not answers:
                return None
        return good(frame)

    net = seeds(a=peer)
    source = net.source("couchbase://a")
    found, manifest = source.describe(keep=True)
    assert (found.bucket, net.transport.closed) == ("bucket", 0)
    assert manifest is not None
    assert source.manifest_again() == manifest
    assert len(net.transport.connected) == (1 if answers else 2)
    source.close()
    assert net.transport.closed == len(net.transport.connected)


def test_map_and_manifest_over_rest(pair: LocalCluster) -> None:
    auth = PasswordAuthenticator(pair.username, pair.password)
    source = MapSource(
        parse_connection_string(["http://127.0.0.1:1", *pair.rest_urls]),
        Login(auth.username, auth.password, pair.bucket, False, True, lambda: "n"),
        auth,
        BucketDataSourceOptions(connect_timeout=5),
        transport=ScriptedTransport({}, FakeClock()),
        clock=FakeClock(),
    )
    with closing(source):
        source.open()
        assert source.fetch().nodes == tuple(pair.kv_addresses)
        assert source.fetch_manifest() is not None


def test_no_manifest_over_rest_where_there_are_no_collections(
    seeds: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Regression: an old server's 404 was an error."""
    monkeypatch.setattr(RestClient, "bucket_config", lambda self, bucket, **_: (CONFIG, HostPort("a", 8091)))
    assert seeds().source("http://a:8091").fetch_manifest() is None


# --- seeds that DNS names


class NameServer:
    """Names hosts, and knows what it was asked."""

    def __init__(self, *hosts: str) -> None:
        self.hosts = hosts
        self.asked: list[tuple[str, float]] = []

    def __call__(self, name: str, timeout: float) -> list[SrvRecord]:
        self.asked.append((name, timeout))
        return [SrvRecord(n, 1, f"{host}.", 11210) for n, host in enumerate(self.hosts)]


def test_seeds_from_dns(seeds: Make) -> None:
    """Asked for once, when they were found."""
    net, dns = seeds(b=good), NameServer("a", "b")
    source = net.source("couchbase://cluster", lookup=dns)
    for _ in range(2):
        assert source.fetch().bucket == "bucket"
    assert dns.asked == [("_couchbase._tcp.cluster", 5)]
    assert net.transport.connected[:2] == ["a:11210", "b:11210"]
    assert net.source("couchbase://cluster", lookup=dns).fetch_manifest() is not None


def test_dns_is_asked_again_when_no_node_answers(seeds: Make) -> None:
    """All nodes may have been replaced; not more often than every few seconds."""
    net, dns, clock = seeds(a=good, new=good), NameServer("a"), FakeClock()
    source = net.source("couchbase://cluster", lookup=dns, clock=clock)
    assert source.fetch().nodes == ("a:11210", "c:11210")
    net.transport.forget("a:11210")
    dns.hosts = ("new",)
    with pytest.raises(AllServerURLsConnectBucketError, match=r"a:11210: .*; c:11210: "):
        source.fetch()
    assert len(dns.asked) == 1
    clock.advance(5)
    assert source.fetch().bucket == "bucket"
    assert net.transport.connected[-1] == "new:11210"
    assert len(dns.asked) == 2
    clock.advance(5)
    assert source.fetch_manifest() is not None
    assert len(dns.asked) == 2  # a node answers


def test_what_a_node_says_is_no_reason_to_ask_dns_again(seeds: Make) -> None:
    dns, clock = NameServer("a"), FakeClock()
    refusing = seeds(a=replaced(good, {Opcode.SASL_AUTH: Status.AUTH_ERROR}))
    source = refusing.source("couchbase://cluster", lookup=dns, clock=clock)
    for _ in range(2):
        with pytest.raises(AuthFailError):
            source.fetch()
        clock.advance(60)
    assert len(dns.asked) == 1


def test_a_name_without_srv_records_and_without_address(seeds: Make) -> None:
    def lookup(_name: str, _timeout: float) -> list[SrvRecord]:
        raise NoAnswerError("no such name")

    def unknown(node: str, _waker: Waker, _timeout: float) -> Stream:
        error = ConnectError("as the transport says", node=node)
        error.unresolved = "no such name"
        raise error

    net = seeds()
    net.transport.connect = unknown  # type: ignore[method-assign]
    with pytest.raises(ConnectError) as caught:
        net.source("couchbase://nowhere.example", lookup=lookup).fetch()
    assert str(caught.value) == (
        "the name 'nowhere.example' cannot be resolved: no such name for SRV of "
        "_couchbase._tcp.nowhere.example, and no such name for A and AAAA of nowhere.example "
        "[node nowhere.example:11210]"
    )


def test_the_network_stays_what_it_was(seeds: Make) -> None:
    """A node that joins without an alternate address is no reason to take the others' inner ones."""

    def config(*hosts: str | None) -> bytes:
        nodes = [
            {"hostname": f"10.0.0.{n}", "services": {"kv": 11210}}
            | ({"alternateAddresses": {"external": {"hostname": host}}} if host else {})
            for n, host in enumerate(hosts)
        ]
        owners = {"serverList": [f"{node['hostname']}:11210" for node in nodes], "vBucketMap": [[0]]}
        told = {**CONFIG, "nodesExt": nodes, "vBucketServerMap": owners, "rev": len(hosts)}
        return json.dumps(told).encode()

    answers = [config("ext1", "ext2"), config("ext1", "ext2", None), config(None)]

    def balancer(frame: Frame) -> bytes | None:
        return replaced(good, {Opcode.GET_CLUSTER_CONFIG: answers[0]})(frame)

    source = seeds(balancer=balancer).source("couchbase://balancer")
    for nodes in (("ext1:11210", "ext2:11210"), ("ext1:11210", "ext2:11210"), ("10.0.0.0:11210",)):
        assert source.fetch().nodes == nodes
        del answers[0]


def test_a_name_that_stands_for_itself(seeds: Make) -> None:
    net = seeds(a=good)
    source = net.source("couchbase://a", lookup=lambda _name, _timeout: [])
    assert source.fetch().nodes == ("a:11210", "c:11210")


def test_a_name_server_that_does_not_answer_can_be_left(seeds: Make) -> None:
    asked, never = threading.Event(), threading.Event()

    def lookup(_name: str, _timeout: float) -> list[SrvRecord]:
        asked.set()
        never.wait(30)
        return []

    source = seeds(a=good).source("couchbase://a", lookup=lookup)
    canceller = threading.Thread(target=lambda: asked.wait(20) and source.cancel())
    canceller.start()
    with pytest.raises(ReadCancelledError):
        source.fetch()
    never.set()
    canceller.join()


# --- a bucket that a node does not have

lacking = replaced(good, {Opcode.SELECT_BUCKET: Status.KEY_ENOENT})
"""A node that has the cluster's configuration, and no such bucket."""


def test_another_seed_may_have_it(seeds: Make) -> None:
    source = seeds(a=lacking, b=good).source("couchbase://a,b")
    assert source.fetch().bucket == "bucket"


@pytest.mark.parametrize("known", [False, True], ids=["nobody knows", "a manager says so"])
def test_whether_there_is_none(seeds: Make, monkeypatch: pytest.MonkeyPatch, known: bool) -> None:
    asked: list[bytes] = []

    def told(config: bytes, *_args: object, **_options: object) -> BucketNotFoundError | None:
        asked.append(config)
        return BucketNotFoundError("no such bucket") if known else None

    monkeypatch.setattr(maps, "absence", told)
    source = seeds(a=lacking, b=lacking).source("couchbase://a,b")
    message = "no such bucket" if known else "the node has no bucket 'bucket'"
    for fetch in (source.fetch, source.fetch_manifest):
        with pytest.raises(BucketNotFoundError, match=message) as caught:
            fetch()
        assert caught.value.permanent == known
    assert [json.loads(config) for config in asked] == [CONFIG, CONFIG]


@pytest.mark.parametrize("last", [None, AuthFailError("wrong")])
def test_asked_again_while_the_bucket_is_not_loaded(last: CbframeError | None) -> None:
    clock = FakeClock()
    late = BucketNotFoundError("not here")
    late.permanent = False
    wrapped = AllServerURLsConnectBucketError(["a", "b"])
    wrapped.__cause__ = ServerError("DCP_OPEN was refused", status=Status.CONFIG_ONLY)
    # A node that gets the bucket closes its connections.
    answers: list[CbframeError | None] = [late, wrapped, ConnectError("closed"), last]

    def ask() -> str:
        if (error := answers.pop(0)) is not None:
            raise error
        return "answer"

    if last is None:
        assert when_loaded(ask, 10, sleep=clock.advance, clock=clock) == "answer"
    else:
        with pytest.raises(AuthFailError):
            when_loaded(ask, 10, sleep=clock.advance, clock=clock)
    assert not answers


@pytest.mark.parametrize("error", [ConnectError("down"), BucketNotFoundError("not here")])
def test_what_is_not_waited_for(error: CbframeError) -> None:
    """What cannot be reached; and the rest not for ever."""
    clock = FakeClock()
    error.permanent = False

    def ask() -> str:
        raise error

    with pytest.raises(type(error), match=error.message):
        when_loaded(ask, 10, sleep=clock.advance, clock=clock)
    assert clock.now == 1000 if type(error) is ConnectError else 1010 <= clock.now < 1011


# --- whether a bucket exists, as cluster managers say

ADMIN = Login("Administrator", "password", "default", False, False, lambda: "nonce")
AUTH = PasswordAuthenticator("Administrator", "password")
HOST = "127.0.0.1"
ORIGIN = HostPort(HOST, 11210)


def managed(*ports: int, host: str = HOST, **more: Any) -> bytes:
    return json.dumps(
        {"nodesExt": [{"hostname": host, "services": {"kv": 1, "mgmt": port}, **more} for port in ports]}
    ).encode()


def port_of(alone: LocalCluster) -> int:
    return int(alone.rest_urls[0].rpartition(":")[2])


def asked(
    cluster: LocalCluster, bucket: str = "other", auth: Any = AUTH, **login: Any
) -> CbframeError | None:
    """What the managers of a cluster say of a bucket."""
    return absence(managed(port_of(cluster)), ORIGIN, replace(ADMIN, bucket=bucket, **login), auth)


WRONG = PasswordAuthenticator("Administrator", "wrong")


def test_whether_a_bucket_exists(alone: LocalCluster) -> None:
    found = asked(alone)
    assert type(found) is BucketNotFoundError
    assert found.permanent
    assert found.hint == "visible buckets: default"
    assert asked(alone, "default") is None


def test_nobody_knows(alone: LocalCluster) -> None:
    other = replace(ADMIN, bucket="other")
    assert asked(alone, auth=WRONG) is None
    assert asked(alone, tls=True) is None
    no_hosts = [managed(8091, host=host) for host in ("[", "[::1]]", "a" * 5000, "a b", "\ud800")]
    for answer in (b"", b"[]", b"no JSON", b"[" * 100_000, b'{"nodesExt": 3}', managed(70_000), *no_hosts):
        assert absence(answer, ORIGIN, other, AUTH) is None


@pytest.mark.parametrize(
    ("login", "host", "scram"),
    [
        (ADMIN, "127.0.0.1", False),
        (ADMIN, "[::1]", False),
        (ADMIN, "localhost", False),
        (ADMIN, "192.0.2.1", True),
        (ADMIN, "node.example", True),
        (replace(ADMIN, allow_plain=True), "192.0.2.1", False),
        (replace(ADMIN, tls=True), "192.0.2.1", True),  # TLS that does not verify the server
        (replace(ADMIN, tls=True, allow_plain=True), "192.0.2.1", False),
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
    content = json.loads(managed(8091, host=host))
    content["nodesExt"][0]["services"]["mgmtSSL"] = 18091
    assert absence(json.dumps(content).encode(), HostPort("192.0.2.1", 1), login, AUTH) is None
    scheme, port = ("https", 18091) if login.tls else ("http", 8091)
    assert asked == [([f"{scheme}://{host}:{port}"], scram)]


@pytest.fixture
def elsewhere(alone: LocalCluster, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The alone as if it were on other hosts; what clients say of themselves to its managers."""
    monkeypatch.setattr(maps, "_is_here", lambda _: False)
    said: list[str] = []
    authorized = RestConnection._authorized

    def noting(self: RestConnection, header: str) -> User | None:
        said.append(header.partition(" ")[0])
        return authorized(self, header)

    monkeypatch.setattr(RestConnection, "_authorized", noting)
    return said


def test_managers_on_other_hosts_are_asked_with_scram(alone: LocalCluster, elsewhere: list[str]) -> None:
    found = asked(alone)
    assert type(found) is BucketNotFoundError
    assert found.hint == "visible buckets: default"
    assert asked(alone, "default") is None
    assert asked(alone, auth=WRONG) is None
    assert set(elsewhere) == {"SCRAM-SHA-512"}


def test_a_read_learns_at_once_that_there_is_no_bucket(alone: LocalCluster, elsewhere: list[str]) -> None:
    began = time.monotonic()
    with pytest.raises(BucketNotFoundError, match="'other'"):
        read_bucket(alone, "other")
    assert time.monotonic() - began < 5  # where nobody confirms it, the node is asked for 10 s
    assert set(elsewhere) == {"SCRAM-SHA-512"}


@pytest.mark.parametrize("answer", ["no proof", "another's proof", "no base64", "no challenge"])
def test_who_does_not_prove_that_it_knows_the_password_is_not_believed(
    answer: str, alone: LocalCluster, elsewhere: list[str], monkeypatch: pytest.MonkeyPatch
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
    assert asked(alone) is None
    assert elsewhere


def test_the_node_itself_comes_first_on_the_network_in_use() -> None:
    login = replace(ADMIN, tls=True)
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
    assert next(maps._managers(content, HostPort("10.0.0.2", 1), login, "auto")) == "https://10.0.0.2:18091"
    assert list(maps._managers(content, HostPort("ext1", 1), login, "auto")) == [
        "https://ext1:30001",
        "https://ext0:30000",
        "https://ext2:30002",
    ]


# --- cluster maps that the cluster manager streams

QUICK = BucketDataSourceOptions(cluster_manager_sleep_init_ms=1, cluster_manager_sleep_max_ms=10)


class Follow:
    """A follower, and what it told."""

    def __init__(
        self, urls: list[str], password: str = "password", transport: Transport | None = None
    ) -> None:
        self.told: list[int | CbframeError] = []
        """Revisions and errors."""
        self.clock = FakeClock()
        self._changed = threading.Condition()
        self._follower = MapFollower(
            parse_connection_string(urls),
            "default",
            lambda: PasswordAuthenticator("Administrator", password),
            QUICK,
            transport=lambda: transport or SocketTransport(),
            on_config=lambda _, config: self._tell(json.loads(config)["rev"]),
            on_error=self._tell,
            clock=self.clock,
        )

    def __enter__(self) -> Self:
        self._follower.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._follower.close()

    def _tell(self, what: int | CbframeError) -> None:
        with self._changed:
            self.told.append(what)
            self._changed.notify_all()

    def until(self, condition: Callable[[], bool]) -> None:
        with self._changed:
            assert self._changed.wait_for(condition, 20), self.told

    def revisions(self) -> list[int]:
        return [item for item in self.told if isinstance(item, int)]

    def errors(self) -> list[CbframeError]:
        return [item for item in self.told if not isinstance(item, int)]


def test_every_change_is_told(pair: LocalCluster) -> None:
    with Follow(pair.rest_urls) as follow:
        follow.until(lambda: len(follow.revisions()) == 1)
        for turn in range(3):
            pair.move_vbucket(0, (turn + 1) % 2)
            follow.until(lambda turn=turn: len(follow.revisions()) == turn + 2)  # type: ignore[misc]
        assert follow.revisions() == sorted(set(follow.revisions()))
        assert follow.errors() == []


def test_the_next_manager_when_one_goes(pair: LocalCluster) -> None:
    with Follow(pair.rest_urls) as follow:
        follow.until(lambda: len(follow.revisions()) == 1)
        pair.kill(0, clean=True)
        follow.until(lambda: len(follow.revisions()) == 2)
        (error, *_) = follow.errors()
        assert type(error) is ConnectError
        assert error.node == pair.rest_urls[0].removeprefix("http://")


def test_a_wrong_password(pair: LocalCluster) -> None:
    with Follow(pair.rest_urls, "wrong") as follow:
        follow.until(lambda: len(follow.errors()) >= 3)
    assert {type(error) for error in follow.errors()} == {AuthFailError}
    assert follow.revisions() == []


class Silent:
    """Connects at once, and says nothing: time passes with each wait."""

    def __init__(self) -> None:
        self.clock: FakeClock | None = None
        self.waits = 0

    def connect(self, node: str, waker: Waker, timeout: float) -> Stream:
        return self

    def receive_into(self, view: memoryview) -> int | None:
        return None

    def send_all(self, data: bytes, timeout: float) -> None: ...

    def wait(self, timeout: float | None, least: int = 1) -> bool:
        assert self.clock is not None
        assert timeout is not None
        self.clock.advance(timeout)
        self.waits += 1
        return False

    def close(self) -> None: ...


def test_a_manager_that_falls_silent() -> None:
    """It was asked to say something every 20 s."""
    silent = Silent()
    follow = Follow(["http://h:8091"], transport=silent)
    silent.clock = follow.clock
    with follow:
        follow.until(lambda: len(follow.errors()) >= 2)
    assert {type(error) for error in follow.errors()} == {ReadTimeoutError}
    assert "silent for 40 s" in str(follow.errors()[0])


def test_it_ends_while_it_connects() -> None:
    """Close does not wait for anything that is under way."""
    with LocalCluster(vbuckets=1, seed=1) as one, one.stall(), Follow(one.rest_urls) as follow:
        pass
    assert follow.told == []
