"""The whole of it over real sockets, against an embedded cluster and what can happen to it."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
from servers import TcpServer

from cbframe.dcp.source import BucketDataSource
from cbframe.errors import (
    AuthFailError,
    CbframeError,
    ConfigurationError,
    ReadCancelledError,
    ReadTimeoutError,
)
from cbframe.local import LocalCluster
from cbframe.local.auth import Credentials
from cbframe.options import BucketDataSourceOptions
from cbframe.testing import RecordingReceiver
from cbframe.wire.messages import vbucket_of

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


def filled(**fields: Any) -> LocalCluster:
    cluster = LocalCluster(nodes=2, vbuckets=VBUCKETS, seed=1, **fields).start()
    cluster.bulk_load((b"k%d" % n, b'{"n":%d,"pad":"%s"}' % (n, b"x" * 100)) for n in range(DOCUMENTS))
    for n in range(0, DOCUMENTS, 10):
        cluster.delete(b"k%d" % n)
    return cluster


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


def test_a_bounded_read() -> None:
    with filled() as cluster:
        receiver = RecordingReceiver()
        source = read(cluster, receiver)
        assert receiver.values() == truth(cluster)
        assert {vb: at.seqno for vb, at in source.as_of.items()} == cluster.high_seqnos()
        assert all(len(threads) == 1 for threads in receiver.threads.values())
        stats = source.stats()
        assert stats.total.mutations == DOCUMENTS * 9 // 10
        assert stats.total.deletions == DOCUMENTS // 10
        assert (stats.vbuckets, stats.vbuckets_done, stats.total.streams_opened) == (8, 8, 8)
        reached, wanted = source.progress()
        assert reached == wanted == sum(cluster.high_seqnos().values())
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
def test_a_fault_in_the_middle_of_a_read(fault: str, after: int) -> None:
    with filled() as cluster:
        receiver = TriggeredReceiver(lambda: FAULTS[fault](cluster), after)
        # A small window: most of the data is still at the nodes when it happens.
        source = read(cluster, receiver, feed_buffer_size_bytes=20_000)
        expected = truth(cluster)
        done = {vb: at.seqno for vb, at in source.as_of.items()}
        high = cluster.high_seqnos()
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


def test_several_connections_to_a_node_of_which_one_breaks() -> None:
    with filled() as cluster:
        receiver = Stumbling()
        with source_of(cluster, receiver, connections_per_node=3) as source:
            source.wait(LONG)
            stats, windows = source.stats(), source.windows()
        assert receiver.values() == truth(cluster)
        assert receiver.failed
        names = {f"{node}{number}" for node in cluster.kv_addresses for number in ("", "#2", "#3")}
        assert set(stats.nodes) == names
        made = {name: each.tot_worker_connect_ok for name, each in stats.nodes.items()}
        assert made == {name: 1 + (name == receiver.failed) for name in names}
        assert [error.node for error in receiver.errors] == [receiver.failed]
        assert "from 2 nodes" in repr(stats)
        assert {window.size for window in windows.values()} == {20_000_000 // 3}
        assert all(each.documents for each in stats.nodes.values())


def test_a_node_that_refuses_for_a_while() -> None:
    with filled() as cluster:
        receiver = RecordingReceiver()
        with cluster.refuse(1):
            source = source_of(cluster, receiver)
            source.start()
            until(receiver, lambda: len(receiver.errors) >= 2)
            assert not receiver.documents
        try:
            source.wait(LONG)
        finally:
            source.close()
        assert receiver.values() == truth(cluster)


def test_live_writes() -> None:
    with LocalCluster(nodes=2, vbuckets=4, seed=1) as cluster:
        receiver = RecordingReceiver()
        with source_of(cluster, receiver, seq_end=None) as source:
            cluster.upsert("a", {"n": 1})
            until(receiver, lambda: b"a" in receiver.values())
            cluster.delete("a")
            cluster.upsert("b", {"n": 2})
            until(receiver, lambda: set(receiver.values()) == {b"b"})
            cluster.cut(0)
            cluster.cut(1)
            cluster.upsert("c", {"n": 3})
            until(receiver, lambda: b"c" in receiver.values())
            assert not source.finished
            with pytest.raises(ReadTimeoutError):
                source.wait(0)
        with pytest.raises(ReadCancelledError):
            source.wait()


@pytest.mark.parametrize("service", ["kv", "rest"])
def test_a_password_that_is_changed_in_the_middle(service: str) -> None:
    with LocalCluster(nodes=2, vbuckets=4, seed=1) as cluster:
        handed: list[str] = []
        password = [cluster.password]

        def credentials() -> tuple[str, str]:
            handed.append(password[0])
            return cluster.username, password[0]

        receiver = RecordingReceiver()
        seeds = cluster.connection_string if service == "kv" else cluster.rest_urls
        with source_of(cluster, receiver, seeds=seeds, auth=credentials, seq_end=None):
            cluster.upsert("a", {"n": 1})
            until(receiver, lambda: b"a" in receiver.values())
            for node in cluster._engine.nodes:
                node.credentials = Credentials(cluster.username, "the next one")
            password[0] = "the next one"
            cluster.cut(0)
            cluster.cut(1)
            for n in range(20):
                cluster.upsert(f"b{n}", {"n": 2})
            until(receiver, lambda: {b"b%d" % n for n in range(20)} <= set(receiver.values()))
        assert "the next one" in handed
        assert not any(isinstance(error, AuthFailError) for error in receiver.errors)


def test_a_node_that_refuses_once_is_asked_again_with_fresh_credentials() -> None:
    """The callable gave the old password, the node had the new one by then: no reason to give up."""
    with LocalCluster(vbuckets=1, seed=1) as cluster:
        # Construction, the map, then the first connection to the node.
        given = iter([cluster.password, cluster.password, "old"])
        receiver = RecordingReceiver()
        auth = lambda: (cluster.username, next(given, cluster.password))  # noqa: E731
        with source_of(cluster, receiver, auth=auth) as source:
            source.wait(LONG)
        assert [type(error) for error in receiver.errors] == [AuthFailError]


def test_a_password_that_stays_wrong_ends_a_bounded_read() -> None:
    with LocalCluster(vbuckets=1) as cluster:
        given = iter([cluster.password, cluster.password])
        receiver = RecordingReceiver()
        auth = lambda: (cluster.username, next(given, "wrong"))  # noqa: E731
        with source_of(cluster, receiver, auth=auth) as source, pytest.raises(AuthFailError):
            source.wait(LONG)


def test_a_listener_that_fails_does_not_stop_the_source(caplog: pytest.LogCaptureFixture) -> None:
    """Regression: the node's thread died before it could say so, and the read hung."""
    with filled() as cluster:
        receiver = TriggeredReceiver(lambda: cluster.cut(0), 10)

        def fail(error: CbframeError) -> None:
            raise LookupError

        receiver.on_error = fail  # type: ignore[method-assign]
        read(cluster, receiver, feed_buffer_size_bytes=20_000)
        assert receiver.values() == truth(cluster)
    assert "on_error raised" in caplog.text


# --- life


def test_life() -> None:
    with LocalCluster(vbuckets=1) as cluster:
        source = source_of(cluster, RecordingReceiver())
        assert set(source.stats().counts().values()) == {0}
        with pytest.raises(ConfigurationError, match="not started"):
            source.wait(0)
        source.start()
        with pytest.raises(ConfigurationError):
            source.start()
        source.close()
        source.close()
        never = source_of(cluster, RecordingReceiver())
        never.close()
        with pytest.raises(ConfigurationError):
            never.start()


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
def test_close_ends_all_threads(stage: str, seq_end: Any) -> None:
    with filled() as cluster:
        fault: AbstractContextManager[None] = nullcontext()
        if stage == "connect":
            fault = cluster.refuse(0)
        elif stage == "handshake":
            fault = cluster.stall(0)
        receiver = RecordingReceiver()
        with fault:
            source = source_of(cluster, receiver, seq_end=seq_end, feed_buffer_size_bytes=20_000)
            source.start()
            if stage == "streaming":
                until(receiver, lambda: bool(receiver.documents))
            elif stage == "connect":
                until(receiver, lambda: bool(receiver.errors))
            source.close()
        assert not [
            t for t in threading.enumerate() if t.name.startswith(("cbframe-node", "cbframe-cluster"))
        ]


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
