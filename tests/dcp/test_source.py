"""The whole of it over real sockets, against an embedded cluster and what can happen to it."""

from __future__ import annotations

import gc
import json
import logging
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from servers import TcpServer

import cbframe
from cbframe import scan_bucket
from cbframe.dcp import messages
from cbframe.dcp.maps import MapSource
from cbframe.dcp.messages import UPDATE_SECURITY_SETTINGS
from cbframe.dcp.positions import VBucketMetaData
from cbframe.dcp.source import BucketDataSource, Supervisor
from cbframe.dcp.stats import COUNTERS, VBucketPhase
from cbframe.errors import (
    AuthFailError,
    CbframeError,
    ClusterMapError,
    ConfigurationError,
    ConnectError,
    ProtocolError,
    ReadCancelledError,
    ReadTimeoutError,
)
from cbframe.local import LocalCluster, kv
from cbframe.local.auth import Credentials
from cbframe.local.kv import KvConnection
from cbframe.options import BucketDataSourceOptions
from cbframe.testing import RecordingReceiver
from cbframe.wire.constants import MAX_SEQNO, Feature
from cbframe.wire.messages import vbucket_of

from .rig import Listening, Rig
from .server import push

LONG = 30.0
VBUCKETS = 8
DOCUMENTS = 4000


def source_of(cluster: LocalCluster, receiver: Any, **fields: Any) -> BucketDataSource:
    """A source of a cluster: what is no option is an argument of its own, with a default."""
    fields.setdefault("seq_end", "now")
    vbuckets, uuid = fields.pop("vbuckets", None), fields.pop("bucket_uuid", "")
    auth = fields.pop("auth", (cluster.username, fields.pop("password", cluster.password)))
    seeds, options = fields.pop("seeds", cluster.connection_string), BucketDataSourceOptions(**fields)
    return BucketDataSource(seeds, "default", cluster.bucket, uuid, vbuckets, auth, receiver, options)


def unreachable(
    receiver: Any, seeds: str = "couchbase://h", *, tls: Any = None, **fields: Any
) -> BucketDataSource:
    options = BucketDataSourceOptions(**fields)
    return BucketDataSource(seeds, "default", "b", "", None, ("u", "p"), receiver, options, tls_context=tls)


@pytest.fixture
def filled() -> Iterator[LocalCluster]:
    """Two nodes with documents, of which some were deleted."""
    with LocalCluster(nodes=2, vbuckets=VBUCKETS, seed=1) as cluster:
        cluster.bulk_load((b"k%d" % n, b'{"n":%d,"pad":"%s"}' % (n, b"x" * 100)) for n in range(DOCUMENTS))
        for n in range(0, DOCUMENTS, 10):
            cluster.delete(b"k%d" % n)
        yield cluster


def truth(cluster: LocalCluster) -> dict[bytes, bytes]:
    found = {b"k%d" % n: cluster.get(b"k%d" % n) for n in range(DOCUMENTS)}
    return {key: value for key, value in found.items() if value is not None}


def until(receiver: RecordingReceiver, condition: Callable[[], bool]) -> None:
    with receiver.changed:
        assert receiver.changed.wait_for(condition, LONG)


class TriggeredReceiver(RecordingReceiver):
    """Does something to the cluster when a part of the documents is there, once."""

    def __init__(self, action: Callable[[], object], after: int) -> None:
        super().__init__()
        self._action = action
        self._left = after
        self._once = threading.Lock()
        self.trigger = -1
        """The vbucket whose document it was."""

    def data_update(self, vbucket: int, *rest: Any) -> None:
        super().data_update(vbucket, *rest)
        with self._once:
            self._left -= 1
            fire = self._left == 0
        if fire:
            self.trigger = vbucket
            self._action()


def read(cluster: LocalCluster, receiver: RecordingReceiver, **fields: Any) -> BucketDataSource:
    with source_of(cluster, receiver, **fields) as source:
        source.wait(LONG)
    return source


def test_a_bounded_read(filled: LocalCluster) -> None:
    receiver = RecordingReceiver()
    source = read(filled, receiver)
    assert receiver.values() == truth(filled)
    assert {vb: at.seqno for vb, at in source.as_of.items()} == filled.high_seqnos()
    assert all(len(threads) == 1 for threads in receiver.threads.values())
    stats = source.stats()
    assert stats.total.mutations == DOCUMENTS * 9 // 10
    assert stats.total.deletions == DOCUMENTS // 10
    assert (stats.vbuckets, stats.vbuckets_done, stats.total.streams_opened) == (8, 8, 8)
    reached, wanted = source.progress()
    assert reached == wanted == sum(filled.high_seqnos().values())
    assert not receiver.errors
    with pytest.raises(ConfigurationError, match="can be started once"):
        source.start()
    source.close()


FAULTS: dict[str, Callable[[LocalCluster], object]] = {
    "cut": lambda c: (c.cut(0), c.cut(1)),
    "move": lambda c: [c.move_vbucket(vb, 1) for vb in range(VBUCKETS)],
    "fail over": lambda c: [c.fail_over(vb, lose=20) for vb in range(VBUCKETS)],
    "fail over elsewhere": lambda c: [c.fail_over(vb, lose=5, node=0) for vb in range(VBUCKETS)],
    "roll back": lambda c: [c.roll_back(vb, 100) for vb in range(VBUCKETS)],
    "flush": lambda c: [c.flush_vbucket(vb) for vb in range(VBUCKETS)],
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("after", [1, 1500])
def test_a_fault_in_the_middle_of_a_read(filled: LocalCluster, fault: str, after: int) -> None:
    receiver = TriggeredReceiver(lambda: FAULTS[fault](filled), after)
    # A small window: most of the data is still at the nodes when it happens.
    source = read(filled, receiver, feed_buffer_size_bytes=20_000)
    expected = truth(filled)
    done = {vb: at.seqno for vb, at in source.as_of.items()}
    high = filled.high_seqnos()
    complete = {vb for vb in done if done[vb] <= high[vb]}
    # A vbucket that was complete before the fault is as of then; all others are as of now.
    for vb in complete:
        now = {key for key in expected if vbucket_of(key, VBUCKETS) == vb}
        assert set(receiver.documents[vb]) == now
    if after == 1:
        # No more than a window's bytes of it had come.
        assert receiver.trigger in complete
        assert fault in ("cut", "move") or receiver.rollbacks
    assert set(done) == set(range(VBUCKETS))


class Stumbling(RecordingReceiver):
    """Fails once, at a document that a further connection to a node has brought."""

    def __init__(self) -> None:
        super().__init__()
        self.failed = ""

    def data_update(self, vbucket: int, *rest: Any) -> None:
        name = threading.current_thread().name
        if not self.failed and name.endswith("#2") and len(self.documents[vbucket]) > 100:
            self.failed = name.removeprefix("cbframe-node-")
            raise LookupError("once")
        super().data_update(vbucket, *rest)


def test_several_connections_to_a_node_of_which_one_breaks(filled: LocalCluster) -> None:
    receiver = Stumbling()
    with source_of(filled, receiver, connections_per_node=3) as source:
        source.wait(LONG)
        stats, windows = source.stats(), source.windows()
    assert receiver.values() == truth(filled)
    assert receiver.failed
    names = {f"{node}{number}" for node in filled.kv_addresses for number in ("", "#2", "#3")}
    assert set(stats.nodes) == names
    again = {name: each.reconnects for name, each in stats.nodes.items()}
    assert again == {name: int(name == receiver.failed) for name in names}
    assert [error.node for error in receiver.errors] == [receiver.failed]
    assert "from 2 nodes" in repr(stats)
    assert {window.size for window in windows.values()} == {20_000_000 // 3}
    assert all(each.documents for each in stats.nodes.values())


def test_a_node_that_refuses_for_a_while(filled: LocalCluster) -> None:
    receiver = RecordingReceiver()
    with filled.refuse(1):
        source = source_of(filled, receiver)
        source.start()
        until(receiver, lambda: len(receiver.errors) >= 2)
        assert not receiver.documents
    try:
        source.wait(LONG)
    finally:
        source.close()
    assert receiver.values() == truth(filled)


def test_live_writes(pair: LocalCluster) -> None:
    receiver = RecordingReceiver()
    with source_of(pair, receiver, seq_end=None) as source:
        pair.upsert("a", {"n": 1})
        until(receiver, lambda: b"a" in receiver.values())
        pair.delete("a")
        pair.upsert("b", {"n": 2})
        until(receiver, lambda: set(receiver.values()) == {b"b"})
        pair.cut(0)
        pair.cut(1)
        pair.upsert("c", {"n": 3})
        until(receiver, lambda: b"c" in receiver.values())
        assert not source.finished
        with pytest.raises(ReadTimeoutError):
            source.wait(0)
    with pytest.raises(ReadCancelledError):
        source.wait()


@pytest.mark.parametrize("service", ["kv", "rest"])
def test_a_password_that_is_changed_in_the_middle(pair: LocalCluster, service: str) -> None:
    handed: list[str] = []
    password = [pair.password]

    def credentials() -> tuple[str, str]:
        handed.append(password[0])
        return pair.username, password[0]

    receiver = RecordingReceiver()
    seeds = pair.connection_string if service == "kv" else pair.rest_urls
    with source_of(pair, receiver, seeds=seeds, auth=credentials, seq_end=None):
        pair.upsert("a", {"n": 1})
        until(receiver, lambda: b"a" in receiver.values())
        for node in pair._engine.nodes:
            node.credentials = Credentials(pair.username, "the next one")
        password[0] = "the next one"
        pair.cut(0)
        pair.cut(1)
        for n in range(20):
            pair.upsert(f"b{n}", {"n": 2})
        until(receiver, lambda: {b"b%d" % n for n in range(20)} <= set(receiver.values()))
    assert "the next one" in handed
    assert not any(isinstance(error, AuthFailError) for error in receiver.errors)


@pytest.mark.parametrize("stays", [False, True])
def test_a_password_that_a_node_refuses(alone: LocalCluster, stays: bool) -> None:
    """The callable gave the old one, the node had the new one by then: no reason to give up at once."""
    # Construction, the map, then the first connection to the node.
    given = iter([alone.password, alone.password, "wrong"])
    receiver, rest = RecordingReceiver(), "wrong" if stays else alone.password
    auth = lambda: (alone.username, next(given, rest))  # noqa: E731
    ends = pytest.raises(AuthFailError) if stays else nullcontext()
    with source_of(alone, receiver, auth=auth) as source, ends:
        source.wait(LONG)
    assert stays or [type(error) for error in receiver.errors] == [AuthFailError]


def test_a_listener_that_fails_does_not_stop_the_source(
    filled: LocalCluster, caplog: pytest.LogCaptureFixture
) -> None:
    """Regression: the node's thread died before it could say so, and the read hung."""
    receiver = TriggeredReceiver(lambda: filled.cut(0), 10)

    def fail(error: CbframeError) -> None:
        raise LookupError

    receiver.on_error = fail  # type: ignore[method-assign]
    read(filled, receiver, feed_buffer_size_bytes=20_000)
    assert receiver.values() == truth(filled)
    assert "on_error raised" in caplog.text


# --- life


def test_life(alone: LocalCluster) -> None:
    source = source_of(alone, RecordingReceiver())
    assert source.stats().counts() == dict.fromkeys(COUNTERS, 0)
    with pytest.raises(ConfigurationError, match="not started"):
        source.wait(0)
    source.start()
    with pytest.raises(ConfigurationError):
        source.start()
    source.close()
    source.close()
    never = source_of(alone, RecordingReceiver())
    never.close()
    never.close()
    with pytest.raises(ConfigurationError):
        never.start()
    # One that was never started holds nothing.
    forgotten = source_of(alone, RecordingReceiver())
    assert repr(forgotten).startswith("<BucketDataSource 'default' new")


def test_one_that_is_closed_before_it_was_started() -> None:
    source, over = unreachable(RecordingReceiver()), []
    source.on_finished = lambda: over.append(source.state)
    for _ in range(2):
        source.close()
    assert source.finished
    assert over == ["closed"]
    with pytest.raises(ReadCancelledError, match="closed before it was started"):
        source.wait(LONG)
    with pytest.raises(ConfigurationError, match="the data source is closed"):
        source.start()


@pytest.mark.parametrize("missing", range(4))
def test_missing_arguments(missing: int) -> None:
    arguments: list[Any] = ["couchbase://h", "default", "b", "", None, ("u", "p"), RecordingReceiver()]
    arguments[(0, 1, 2, 6)[missing]] = None if missing == 3 else ""
    with pytest.raises(ConfigurationError, match=r"is (empty|None)"):
        BucketDataSource(*arguments)


@pytest.mark.parametrize("seq_end", ["now", None])
@pytest.mark.parametrize("stage", ["connect", "handshake", "streaming"])
def test_close_ends_all_threads(filled: LocalCluster, stage: str, seq_end: Any) -> None:
    receiver = RecordingReceiver()
    faults = {"connect": filled.refuse, "handshake": filled.stall}
    with faults[stage](0) if stage in faults else nullcontext():
        source = source_of(filled, receiver, seq_end=seq_end, feed_buffer_size_bytes=20_000)
        source.start()
        if stage != "handshake":
            until(receiver, lambda: bool(receiver.documents if stage == "streaming" else receiver.errors))
        source.close()
    assert not [t for t in threading.enumerate() if t.name.startswith(("cbframe-node", "cbframe-cluster"))]


def test_close_interrupts_a_map_fetch() -> None:
    """Regression: the wake-up was swallowed, and close() took as long as the timeout."""
    asked = threading.Event()

    def talk(sock: socket.socket) -> None:
        assert sock.recv(24)
        asked.set()
        while sock.recv(4096):
            pass

    with TcpServer(talk) as silent:
        source = unreachable(RecordingReceiver(), f"couchbase://{silent.address}", connect_timeout=100)
        source.start()
        assert asked.wait(LONG)
        closing = threading.Thread(target=source.close)
        closing.start()
        closing.join(LONG)
        assert not closing.is_alive()


@pytest.mark.parametrize(("user", "asks"), [("admin", True), ("admin", False), ("reader", True)])
def test_the_time_of_a_node(user: str, asks: bool) -> None:
    """It is known before the first document is; documents also come to whom it is not told."""
    known: list[int | None] = []

    class Receiver(RecordingReceiver):
        def data_update(self, *arguments: Any) -> None:
            known.append(source.node_time)
            super().data_update(*arguments)

    with LocalCluster(nodes=2, vbuckets=VBUCKETS) as cluster:
        cluster.add_user("admin", cluster.password, access="admin")
        cluster.add_user("reader", cluster.password, access="dcp")
        cluster.bulk_load((b"k%d" % n, b"{}") for n in range(100))
        before = int(time.time())
        source = source_of(cluster, Receiver(), auth=(user, cluster.password), ask_time=asks)
        with source:
            source.wait(LONG)
        assert len(known) == 100
        if user == "admin" and asks:
            assert all(each is not None and before <= each <= time.time() for each in known)
        else:
            assert set(known) == {None}


# --- maps that nodes push, or that the cluster manager streams


@pytest.mark.parametrize("streaming", [True, False])
def test_a_rebalance_is_followed_by_what_the_manager_streams(
    pair: LocalCluster, monkeypatch: pytest.MonkeyPatch, streaming: bool
) -> None:
    """Where nodes push nothing, and maps are not to be fetched a second time."""
    pushes = {Feature.CLUSTERMAP_CHANGE_NOTIFICATION, Feature.DUPLEX}
    monkeypatch.setattr("cbframe.local.kv.GRANTED", frozenset(Feature) - pushes)
    fetches = Fetches(monkeypatch, most=1)
    # A node that has lost a vbucket tells its new map with the refusal; not here.
    monkeypatch.setattr("cbframe.dcp.source.Supervisor.on_config", only_from(pair))
    receiver = RecordingReceiver()
    pair.upsert("before", {})
    # When a stream ends a map is wanted: what is streamed has to be there before one is fetched.
    wait = 20_000 if streaming else 1
    pauses = {"cluster_manager_sleep_init_ms": wait, "cluster_manager_sleep_max_ms": wait}
    options = {"seq_end": None, "map_poll_interval": None, "map_streaming": streaming, **pauses}
    with source_of(pair, receiver, seeds=pair.rest_urls, **options) as source:
        until(receiver, lambda: b"before" in receiver.values())
        for vbucket in range(4):
            pair.move_vbucket(vbucket, 0 if vbucket >= 2 else 1)
        for n in range(20):
            pair.upsert(f"k{n}", {})
        if streaming:
            until(receiver, lambda: len(receiver.values()) == 21)
            assert fetches.count == 1
            assert not receiver.errors
        else:
            until(receiver, lambda: fetches.count > 1 and bool(receiver.errors))
        assert source.map is not None


def only_from(cluster: LocalCluster) -> Callable[..., None]:
    original = Supervisor.on_config
    managers = {url.removeprefix("http://") for url in cluster.rest_urls}

    def on_config(self: Supervisor, node: str, body: bytes) -> None:
        if node in managers:
            original(self, node, body)

    return on_config


# --- a source follows them


class Fetches:
    """Counts the fetches of maps; those after `most` fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, most: int | None = None) -> None:
        self.count = 0
        self.done = threading.Semaphore(0)
        fetch = MapSource.fetch

        def counted(source: MapSource, *arguments: tuple[str, ...]) -> object:
            self.count += 1
            if most is not None and self.count > most:
                raise CbframeError("maps are not to be fetched here")
            found = fetch(source, *arguments)
            self.done.release()
            return found

        monkeypatch.setattr(MapSource, "fetch", counted)


def test_a_rebalance_is_followed_by_what_is_pushed(
    pair: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    Fetches(monkeypatch, most=1)
    receiver = RecordingReceiver()
    pair.upsert("before", {})
    with source_of(pair, receiver, seq_end=None, map_poll_interval=None) as source:
        until(receiver, lambda: b"before" in receiver.values())
        for node in (0, 1, 0):
            for vbucket in range(4):
                pair.move_vbucket(vbucket, node)
            for n in range(20):
                pair.upsert(f"{node}-{n}", {})
            last = {b"%d-%d" % (node, n) for n in range(20)}
            until(receiver, lambda last=last: last <= set(receiver.values()))  # type: ignore[misc]
        assert source.stats().total.tot_worker_start >= 2


def test_a_push_without_a_body_is_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As 8.0 sends it to those who ask for brief ones: the map is fetched."""
    full, brief = Feature.CLUSTERMAP_CHANGE_NOTIFICATION, Feature.CLUSTERMAP_CHANGE_NOTIFICATION_BRIEF
    monkeypatch.setattr(kv, "granted_in_8", lambda _wanted, granted: granted - {full} | {brief})
    fetches = Fetches(monkeypatch)
    receiver = RecordingReceiver()
    with LocalCluster(vbuckets=2, version="8.0", seed=1) as cluster:
        cluster.upsert("before", {})
        with source_of(cluster, receiver, seq_end=None, map_poll_interval=None) as source:
            until(receiver, lambda: b"before" in receiver.values())
            assert fetches.done.acquire(timeout=20)
            cluster.create_scope("s")
            assert fetches.done.acquire(timeout=20)
            # Nothing was wrong with the streams.
            assert source.stats().total.tot_worker_start == 1


def test_pushes_that_cannot_be_read(pair: LocalCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Told of, and made good by asking."""
    fetches = Fetches(monkeypatch)
    receiver = RecordingReceiver()
    pair.upsert("before", {})
    with source_of(pair, receiver, seq_end=None, map_poll_interval=None):
        until(receiver, lambda: b"before" in receiver.values())
        before = fetches.count
        # The node that "before" came from: the other's connection may not be open yet.
        _, node = pair._engine.nodes

        def spoil() -> None:
            for channel in list(node.loop.channels):
                if isinstance(channel, KvConnection) and channel.producer is not None:
                    channel.send(push(b"{not JSON", bucket=b"default", extras=struct.pack(">qq", 9, 9)))
                    channel.flush()

        node.loop.call(spoil)
        until(receiver, lambda: any(isinstance(e, ProtocolError) for e in receiver.errors))
        while fetches.count == before:
            assert fetches.done.acquire(timeout=20)
        pair.upsert("after", {})
        until(receiver, lambda: b"after" in receiver.values())
    assert "cannot be read" in str(next(e for e in receiver.errors if isinstance(e, ProtocolError)))


# --- what an embedding program may do itself


def dial(protocol: str, address: str) -> socket.socket:
    assert protocol == "tcp"
    host, _, port = address.rpartition(":")
    return socket.create_connection((host, int(port)), LONG)


def test_an_own_connect_and_connect_bucket(pair: LocalCluster) -> None:
    pair.upsert("a", {"n": 1})
    dialled: list[str] = []
    asked: list[tuple[str, ...]] = []

    def connect(protocol: str, address: str) -> socket.socket:
        dialled.append(address)
        return dial(protocol, address)

    def connect_bucket(url: str, pool: str, bucket: str, auth: Any) -> Any:
        asked.append((url, pool, bucket))
        return cbframe.connect_bucket(url, pool, bucket, auth)

    receiver = RecordingReceiver()
    seeds = pair.rest_urls
    hooks: dict[str, Any] = {"connect": connect, "connect_bucket": connect_bucket}
    source = source_of(pair, receiver, seeds=seeds, **hooks)
    with source:
        source.wait(LONG)
    assert receiver.values() == {b"a": b'{"n":1}'}
    assert asked[0] == (seeds[0], "default", pair.bucket)
    assert source.map is not None
    assert set(dialled) == set(source.map.nodes)


def test_a_connect_bucket_that_fails_is_told_of_first() -> None:
    def connect_bucket(*arguments: object) -> None:
        raise LookupError("nobody there")

    receiver = RecordingReceiver()
    source = unreachable(receiver, connect_bucket=connect_bucket)
    with source:
        until(receiver, lambda: bool(receiver.errors))
    assert isinstance(receiver.errors[0], ConnectError)
    assert "raised LookupError" in str(receiver.errors[0])


def test_a_connect_that_is_refused(alone: LocalCluster) -> None:
    def connect(protocol: str, address: str) -> socket.socket:
        raise ConnectionRefusedError(111, "Connection refused")

    receiver = RecordingReceiver()
    options: dict[str, Any] = {"connect": connect, "connect_timeout": 0.5}
    with source_of(alone, receiver, **options) as source, pytest.raises(CbframeError):
        source.wait(LONG)
    assert "Connection refused" in str(receiver.errors[0])


def test_one_of_two_tls_settings() -> None:
    with pytest.raises(ConfigurationError, match="give one"):
        unreachable(RecordingReceiver(), "couchbases://h", tls="ca.pem", tls_config="ca.pem")


def test_other_security_settings_make_all_connections_anew(pair: LocalCluster) -> None:
    receiver = RecordingReceiver()
    with source_of(pair, receiver, seq_end=None) as source:
        pair.upsert("a", {"n": 1})
        until(receiver, lambda: b"a" in receiver.values())
        source.kick(UPDATE_SECURITY_SETTINGS)
        until(receiver, lambda: len(receiver.errors) >= 2)
        pair.upsert("b", {"n": 2})
        until(receiver, lambda: b"b" in receiver.values())
        stats = source.stats()
    assert stats.tot_refresh_workers_security_updates == 1
    assert stats.tot_refresh_workers_remove_worker == 2
    assert {error.node for error in receiver.errors} == set(stats.nodes)


def test_a_signal_handler_may_kick_it(pair: LocalCluster) -> None:
    """It may come at any moment: here, while its thread kicks already."""
    with source_of(pair, RecordingReceiver(), seq_end=None) as source:

        def kick() -> None:
            with source._supervisor._lock, source._calls_lock:
                source.kick("again")

        thread = threading.Thread(target=kick, daemon=True)
        thread.start()
        thread.join(LONG)
        assert not thread.is_alive()


def test_a_look_inside(pair: LocalCluster, caplog: pytest.LogCaptureFixture) -> None:
    receiver = RecordingReceiver()
    logger = logging.getLogger("of.the.program")
    with caplog.at_level(logging.DEBUG, logger.name):
        with source_of(pair, receiver, seq_end=None, logger=logger) as source:
            for n in range(40):
                pair.upsert(f"secret-key-{n}", {"n": n})
            until(receiver, lambda: receiver.seqnos == pair.high_seqnos())
            states = source.vbucket_states()
            assert {vb: state.seqno for vb, state in states.items()} == pair.high_seqnos()
            written = 3
            assert states[written].state == "running"
            assert states[written].snap_saved
            assert states[written].failover_log == tuple(pair.failover_log(written))
            assert any("Opened" in line for line in source.trace()[states[written].node])
            pair.cut(0)
            until(receiver, lambda: bool(receiver.errors))
        assert source.vbucket_states() == {}
    assert {record.name for record in caplog.records} == {logger.name}
    assert "before that: connected" in caplog.text
    assert "secret-key" not in caplog.text
    assert pair.password not in caplog.text


# --- what can be seen of a source while it runs


def test_a_source_says_its_state(filled: LocalCluster) -> None:
    source = source_of(filled, RecordingReceiver())
    assert (source.state, source.bounded, source.bucket) == ("new", True, "default")
    assert len(source.vbucket_table()) == 0
    with source:
        assert source.state in {"running", "complete"}
        source.wait(LONG)
        assert source.state == "complete"
    assert source.state == "complete"
    table = source.vbucket_table()
    assert (table.phase == VBucketPhase.DONE).all()
    assert {vb: int(seqno) for vb, seqno in enumerate(table.seqno)} == filled.high_seqnos()
    assert (table.high == table.seqno).all()


def test_a_source_without_an_end_is_closed(filled: LocalCluster) -> None:
    receiver = RecordingReceiver()
    source = source_of(filled, receiver, seq_end=None)
    with source:
        until(receiver, lambda: sum(map(len, receiver.documents.values())) > 0)
        assert source.state == "running"
        assert not source.bounded
    assert source.state == "closed"
    assert source.problems() == ()


def test_a_failed_source_says_why_once() -> None:
    with LocalCluster(vbuckets=4) as cluster:
        source = source_of(cluster, RecordingReceiver(), password="wrong")
        with source, pytest.raises(AuthFailError):
            source.wait(LONG)
        assert source.state == "failed"
        [problem] = source.problems()
        assert problem.kind == "AuthFailError"
        assert problem.hint
        assert "wrong" not in (problem.message + problem.hint).replace("wrong user", "")


def test_a_cut_connection_is_a_problem_with_a_place_and_a_time(filled: LocalCluster) -> None:
    receiver = RecordingReceiver()
    source = source_of(filled, receiver, seq_end=None)
    with source:
        until(receiver, lambda: receiver.values().keys() >= {b"k3999"})
        before = source.stats().at
        filled.cut(1)
        until(receiver, lambda: len(receiver.errors) == 1)
        [problem] = source.problems()
        assert problem.at >= before
        assert problem.node == source.map.nodes[1]  # type: ignore[union-attr]
        assert problem.message == receiver.errors[0].message


def test_seqnos_are_asked_for(filled: LocalCluster) -> None:
    receiver = RecordingReceiver()
    source = source_of(filled, receiver, seq_end=None, vbuckets=[2])
    source.sample_seqnos()  # nothing is connected: nobody is asked
    with source:
        until(receiver, lambda: len(receiver.documents[2]) > 0)
        filled.bulk_load((b"more%d" % n, b"{}") for n in range(500))
        wanted = filled.high_seqnos()
        told = threading.Event()
        handle = source._coordinator.handle

        def spy(event: messages.Event, now: float, received: int) -> list[messages.Instruction]:
            instructions = handle(event, now, received)
            if isinstance(event, messages.NodeSampled):
                told.set()
            return instructions

        source._coordinator.handle = spy  # type: ignore[method-assign]
        source.sample_seqnos()
        assert told.wait(LONG)
        source.close()
    table = source.vbucket_table()
    owner = table.owner[2]
    # Of the node that was connected to; the other one has not told.
    for vb, high in enumerate(table.high.tolist()):
        assert high == (wanted[vb] if table.owner[vb] == owner else -1)
    assert table.phase.tolist() == [0, 0, VBucketPhase.WAITING, 0, 0, 0, 0, 0]


# --- a hundred lives leave nothing behind

CYCLES = 100


def at_once(cluster: LocalCluster) -> None:
    source = source_of(cluster, RecordingReceiver())
    source.start()
    source.close()


def never_started(cluster: LocalCluster) -> None:
    source_of(cluster, RecordingReceiver()).close()


def complete(cluster: LocalCluster) -> None:
    receiver = RecordingReceiver()
    with source_of(cluster, receiver) as source:
        source.wait(LONG)
    assert len(receiver.values()) == 20


def in_the_middle(cluster: LocalCluster) -> None:
    receiver = RecordingReceiver()
    with source_of(cluster, receiver, seq_end=None):
        until(receiver, lambda: bool(receiver.documents))


def failed(cluster: LocalCluster) -> None:
    with source_of(cluster, RecordingReceiver(), password="wrong") as source, pytest.raises(CbframeError):
        source.wait(LONG)


def left_behind() -> tuple[int, int]:
    """Threads and file descriptors; those of objects that nobody has any more do not count."""
    gc.collect()
    return threading.active_count(), len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize("life", [at_once, never_started, complete, in_the_middle, failed])
def test_a_hundred_cycles(life: Callable[[LocalCluster], None]) -> None:
    with LocalCluster(nodes=2, vbuckets=4, seed=1, process=True) as cluster:
        for n in range(20):
            cluster.upsert(f"k{n}", {"n": n})
        life(cluster)
        before = left_behind()
        for _ in range(CYCLES):
            life(cluster)
        assert left_behind() == before


def test_a_whole_read() -> None:
    with LocalCluster(nodes=2, vbuckets=16) as cluster:
        cluster.bulk_load((b"%d" % n, b'{"n":%d}' % n) for n in range(2000))
        options = BucketDataSourceOptions(noop_interval_secs=20, max_bytes_per_sec=1_000_000)
        assert scan_bucket(cluster, options=options).to_arrow().num_rows == 2000


def holds(receiver: RecordingReceiver, documents: int) -> bool:
    return len(receiver.values()) == documents


def test_no_two_connections_have_one_name(alone: LocalCluster) -> None:
    """The server closes the older of two: each would throw the other out, again and again."""
    receivers = [RecordingReceiver(), RecordingReceiver()]
    options: dict[str, Any] = {"name": "reader", "seq_end": None}
    with source_of(alone, receivers[0], **options), source_of(alone, receivers[1], **options):
        for n in range(3):
            alone.upsert(f"k{n}", {"n": n})
            for receiver in receivers:
                until(receiver, partial(holds, receiver, n + 1))
        assert alone.dcp_connections() == 2
    assert [receiver.errors for receiver in receivers] == [[], []]


def test_another_bucket_of_that_name_is_not_connected_to(alone: LocalCluster) -> None:
    receiver = RecordingReceiver()
    source = source_of(alone, receiver, bucket_uuid="another uuid")
    with source, pytest.raises(ClusterMapError, match="uuid is not the one"):
        source.wait(LONG)
    assert receiver.errors
    assert source.stats().tot_worker_start == 0


# --- what its tests check


def test_a_node_that_refuses_is_told_of_once_for_each_attempt(alone: LocalCluster) -> None:
    receiver = RecordingReceiver()
    long_wait = {"data_manager_sleep_init_ms": 60_000, "data_manager_sleep_max_ms": 60_000}
    source = source_of(alone, receiver, seeds=alone.rest_urls, seq_end=None, **long_wait)
    with alone.refuse(0), source:
        until(receiver, lambda: bool(receiver.errors))
        stats = source.stats()
    assert len(receiver.errors) == 1
    assert stats.tot_worker_body == 1
    assert not receiver.metadata


# --- what a source asks of its nodes


def test_a_node_has_one_connection_with_many_streams() -> None:
    receiver = RecordingReceiver()
    with LocalCluster(nodes=2, vbuckets=64, seed=1) as cluster:
        cluster.bulk_load((b"k%d" % n, b"{}") for n in range(500))
        with source_of(cluster, receiver, seq_end=None) as source:
            until(receiver, partial(holds, receiver, 500))
            assert [cluster.dcp_connections(node) for node in range(2)] == [1, 1]
            assert len(source.vbucket_states()) == 64


def test_collections_are_filtered_by_the_server(alone: LocalCluster) -> None:
    cid = alone.create_collection("_default", "c")
    alone.upsert("a", {}, collection="c")
    alone.upsert("b", {})
    receiver = RecordingReceiver()
    with source_of(alone, receiver, collections=(cid,)) as source:
        source.wait(LONG)
        assert source.stats().total.documents == 1
    assert set(receiver.values()) == {b"a"}


def test_the_version_of_the_manifest_is_stored_and_told_when_a_stream_is_resumed(alone: LocalCluster) -> None:
    receiver, node = RecordingReceiver(), Listening()
    alone.create_collection("_default", "c")
    alone.upsert("a", {})
    with source_of(alone, receiver, seq_end=None):
        until(receiver, lambda: b"a" in receiver.values())
    stored = VBucketMetaData.from_json(receiver.metadata[0])
    assert stored.manifest_uid == 1
    receiver.metadata[1], receiver.seqnos[1] = stored.to_json(), receiver.seqnos[0]
    Rig(node, receiver).run((1, MAX_SEQNO))
    (asked,) = node.streams()
    assert json.loads(asked.value) == {"uid": "1"}
