"""A bucket that is emptied, deleted or created again while it is read."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import doors
import pytest
from doors import Door, each_door

from cbframe import BucketDataSource, BucketNotFoundError, LocalCluster, doctor, scan_bucket
from cbframe.errors import ROLES_HINT, ClusterMapError
from cbframe.local.kv import KvConnection
from cbframe.testing import RecordingReceiver
from cbframe.wire.constants import Status
from cbframe.wire.framing import Frame

from .kit import QUICK, Sent, background, fill, read_rows, truth


@pytest.fixture
def one() -> Iterator[LocalCluster]:
    """With one vbucket: with more, those that were complete before stay as they were."""
    with LocalCluster(vbuckets=1, seed=1) as cluster:
        yield cluster


ADMIN = ("Administrator", "password")
AFTER = [100, 1500, 9000, 20_000]
"""Bytes of DCP until it happens: in the handshake, before and between documents."""


def at(monkeypatch: pytest.MonkeyPatch, cluster: LocalCluster, after: int, act: Callable[[], object]) -> Sent:
    sent = Sent(monkeypatch, cluster)
    sent.at(after, act)
    return sent


@pytest.mark.parametrize("after", AFTER)
@pytest.mark.parametrize("more", [0, 5, 2000])
def test_flushed_in_the_middle(
    one: LocalCluster, monkeypatch: pytest.MonkeyPatch, after: int, more: int
) -> None:
    """What was there is gone; what came after is there, be it more or less than before."""
    fill(one, 500)

    def flush() -> None:
        one._engine._flush(wait=False)
        one._engine.bulk_load((b"new-%05d" % n, b"{}") for n in range(more))

    sent = at(monkeypatch, one, after, flush)
    assert read_rows(one, buffer_bytes=2000, timeout=30) == truth(one)
    assert not sent.pending


@pytest.mark.parametrize("after", AFTER)
@pytest.mark.parametrize("vbuckets", [None, 8])
def test_created_anew_in_the_middle(
    cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch, after: int, vbuckets: int | None
) -> None:
    """Documents of two buckets do not mix: that is an error, which says what happened."""
    fill(cluster, 500)

    def recreate() -> None:
        cluster._engine.recreate(vbuckets)
        cluster._engine.bulk_load((b"new-%05d" % n, b"{}") for n in range(500))

    sent = at(monkeypatch, cluster, after, recreate)
    with pytest.raises(ClusterMapError, match=r"bucket 'default' (was replaced|now has 8)") as caught:
        read_rows(cluster, buffer_bytes=2000, timeout=30)
    assert not sent.pending
    assert "start over" in str(caught.value)
    fresh = read_rows(cluster, timeout=30)
    assert fresh == truth(cluster)
    assert len(fresh) == 500


@pytest.mark.parametrize("after", AFTER)
def test_deleted_in_the_middle(cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    fill(cluster, 500)
    at(monkeypatch, cluster, after, cluster._engine.delete_bucket)
    with pytest.raises(BucketNotFoundError, match="no bucket 'default'") as caught:
        scan_bucket(cluster, options=QUICK, buffer_bytes=2000, timeout=30).to_arrow()
    assert caught.value.hint == f"the user sees no other bucket; {ROLES_HINT}"


def test_purged_behind_the_reader(one: LocalCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut in the middle, it would continue behind a deletion that nobody tells it of any more."""
    fill(one, 500)
    sent = Sent(monkeypatch, one)

    def purge() -> None:
        for n in range(0, 500, 2):
            one._engine.delete(b"key-%06d" % n)
        one._engine.bulk_load((b"late-%05d" % n, b"{}") for n in range(50))
        assert one._engine.purge(None) > 200
        sent.node.cut(0)

    sent.at(20_000, purge)
    assert read_rows(one, buffer_bytes=2000, timeout=30) == truth(one)
    assert not sent.pending


@pytest.mark.parametrize("after", AFTER)
def test_an_ephemeral_node_restarts(monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """It comes back with nothing, so there is nothing."""
    with LocalCluster(vbuckets=1, seed=1, ephemeral=True) as cluster:
        fill(cluster, 500)
        sent = Sent(monkeypatch, cluster)
        gone = threading.Event()

        def stop() -> None:
            sent.node.loop.set_stalled(True)  # nothing more before it is gone
            gone.set()

        sent.at(after, stop)

        def restart(_: threading.Event) -> None:
            assert gone.wait(20)
            cluster.kill(0)
            cluster.restart(0, same_ports=True)

        with background(restart):
            assert read_rows(cluster, buffer_bytes=2000, timeout=30) == truth(cluster) == {}


# ---------------------------------------------------------------------- not there, not yet there, not in use

LATE = replace(QUICK, connect_timeout=30, recovery_timeout=30)
"""Whoever waited for such a bucket would wait for long."""


def collections(conn: Any, folder: Path, **arguments: Any) -> list[str]:
    return doors.read(conn, folder, collections="_default._default", **arguments)


some_doors = each_door(doors.read, doors.partitions, collections, doors.snapshot, doors.stream)


def count(door: Door, urls: Any, folder: Path, bucket: str = "default", auth: Any = ADMIN) -> int:
    return len(door(urls, folder, bucket=bucket, auth=auth, options=LATE, timeout=60))


def seeds_of(cluster: LocalCluster, scheme: str) -> Any:
    return cluster.connection_string if scheme == "couchbase" else cluster.rest_urls


@pytest.mark.parametrize("scheme", ["couchbase", "http"])
@some_doors
def test_no_such_bucket(cluster: LocalCluster, door: Door, scheme: str, tmp_path: Path) -> None:
    """At once, whoever asks: nodes say KEY_ENOENT to one, and EACCESS to the other."""
    cluster.add_user("ann", "secret-word")
    began = time.monotonic()
    for auth, hint in ((ADMIN, "visible buckets: default"), (("ann", "secret-word"), "")):
        with pytest.raises(BucketNotFoundError, match="bucket 'other'") as caught:
            count(door, seeds_of(cluster, scheme), tmp_path, "other", auth)
        assert hint in str(caught.value.hint)
        assert caught.value.node
    assert time.monotonic() - began < LATE.connect_timeout / 3


@pytest.mark.parametrize("scheme", ["couchbase", "http"])
@some_doors
def test_a_paused_bucket(cluster: LocalCluster, door: Door, scheme: str, tmp_path: Path) -> None:
    cluster.upsert("a", {"n": 1})
    cluster.pause_bucket()
    with pytest.raises(BucketNotFoundError, match="bucket 'default' is paused") as caught:
        count(door, seeds_of(cluster, scheme), tmp_path)
    assert "resume" in str(caught.value.hint)
    cluster.resume_bucket()
    assert count(door, seeds_of(cluster, scheme), tmp_path) == 1


@pytest.fixture
def later() -> Iterator[LocalCluster]:
    """Two nodes of a version that says when it has a bucket's map, and not the bucket yet."""
    with LocalCluster(nodes=2, vbuckets=8, version="8.0", seed=1) as running:
        yield running


class Slow:
    """A node that is starting, or has the map only, until it has said so three times."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, cluster: LocalCluster, state: str, node: int = 0
    ) -> None:
        self.begin = partial(cluster._engine.set_fault, node, state, True)
        self.answers = 0
        wanted = Status.KEY_ENOENT if state == "starting" else Status.CONFIG_ONLY
        respond = KvConnection.respond

        def spy(conn: KvConnection, frame: Frame, status: Status = Status.SUCCESS, **more: Any) -> None:
            respond(conn, frame, status, **more)
            self.answers += status == wanted
            if status == wanted and self.answers == 3:
                cluster._engine.set_fault(node, state, False)

        monkeypatch.setattr(KvConnection, "respond", spy)


@pytest.mark.parametrize("scheme", ["couchbase", "http"])
@pytest.mark.parametrize("state", ["starting", "config_only"])
@some_doors
def test_a_node_that_is_starting(
    later: LocalCluster, monkeypatch: pytest.MonkeyPatch, door: Door, state: str, scheme: str, tmp_path: Path
) -> None:
    """It is asked again, as long as the cluster has the bucket."""
    fill(later, 40, 5)
    slow = Slow(monkeypatch, later, state)
    slow.begin()
    assert count(door, seeds_of(later, scheme), tmp_path) == 40
    assert slow.answers >= 3


@pytest.mark.parametrize("state", ["starting", "config_only"])
def test_a_node_that_starts_again_in_the_middle(
    later: LocalCluster, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    fill(later, 2000)
    slow = Slow(monkeypatch, later, state, 1)
    sent = Sent(monkeypatch, later, 1)
    sent.at(20_000, slow.begin)
    assert read_rows(later, buffer_bytes=2000, timeout=60) == truth(later)
    assert not sent.pending
    assert slow.answers >= 3


@pytest.mark.parametrize("state", ["starting", "config_only"])
def test_the_doctor_waits_for_a_node_that_is_starting(
    later: LocalCluster, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    Slow(monkeypatch, later, state).begin()
    assert doctor(later).ok


@pytest.mark.parametrize("act", ["delete_bucket", "pause_bucket"])
@pytest.mark.parametrize("scheme", ["couchbase", "http"])
def test_a_source_without_an_end_ends_with_its_bucket(cluster: LocalCluster, scheme: str, act: str) -> None:
    options = replace(QUICK, recovery_timeout=0.5)
    receiver = RecordingReceiver()
    cluster.upsert("a", {"n": 1})
    with BucketDataSource(
        seeds_of(cluster, scheme), "default", "default", "", None, ADMIN, receiver, options
    ) as source:
        with receiver.changed:
            assert receiver.changed.wait_for(lambda: receiver.documents, 20)
        getattr(cluster, act)()
        with pytest.raises(BucketNotFoundError, match="bucket 'default'"):
            source.wait(30)
