"""A bucket that is emptied, deleted or created anew while it is read."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

from cbframe import CbframeError, LocalCluster, scan_bucket
from cbframe.errors import ClusterMapError

from .kit import QUICK, Sent, background, fill, read_rows, truth


@pytest.fixture
def one() -> Iterator[LocalCluster]:
    """With one vbucket: with more, those that were complete before stay as they were."""
    with LocalCluster(vbuckets=1, seed=1) as cluster:
        yield cluster


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
        one._engine.flush(wait=False)
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


@pytest.mark.xfail(
    strict=True, reason="the client retries KEY_ENOENT of SELECT_BUCKET without asking for the map"
)
@pytest.mark.parametrize("after", AFTER)
def test_deleted_in_the_middle(cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    fill(cluster, 500)
    at(monkeypatch, cluster, after, cluster._engine.delete_bucket)
    with pytest.raises(CbframeError, match="bucket 'default'") as caught:
        scan_bucket(cluster, options=QUICK, buffer_bytes=2000, timeout=30).to_arrow()
    assert "does not exist" in str(caught.value)


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
        with background(lambda _: restart(cluster, gone)):
            assert read_rows(cluster, buffer_bytes=2000, timeout=30) == truth(cluster) == {}


def restart(cluster: LocalCluster, gone: threading.Event) -> None:
    assert gone.wait(20)
    cluster.kill(0)
    cluster.restart(0, same_ports=True)


@pytest.mark.parametrize("vbuckets", [1, 64, 128, 1024])
def test_buckets_of_any_size(vbuckets: int) -> None:
    """The count is what the map says: it depends on the server, its platform and its storage."""
    with LocalCluster(nodes=3, vbuckets=vbuckets, seed=1, replicas=1) as cluster:
        fill(cluster, 2000, 5)
        cluster.rebalance(eject=[2])
        found = read_rows(cluster, timeout=30)
        assert found == truth(cluster)
        assert len({row.vbucket for row in found.values()}) > vbuckets // 2
