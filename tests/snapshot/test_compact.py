"""Compaction where there is nothing to gain, and where there is little."""

from __future__ import annotations

from pathlib import Path

import pytest
from scan.kit import truth

from cbframe import LocalCluster, Snapshot, write_snapshot
from cbframe.scan.store import LocalStore
from cbframe.snapshot.manifest import History

from .conftest import Calendar
from .kit import held, update


def test_nothing_to_gain(cluster: LocalCluster, path: Path) -> None:
    cluster.bulk_load((f"k{n}".encode(), b'{"n":%d}' % n) for n in range(100))
    write_snapshot(cluster, path)
    before = sorted(path.rglob("*.*"))
    done = Snapshot(path).compact(keep="0s")
    assert not done.changed
    assert (done.version, done.rows, done.files) == (1, (100, 100), (1, 1))
    assert str(done) == "version 1: nothing to gain, 100 rows in 1 file stay as they are"
    assert sorted(path.rglob("*.*")) == before


@pytest.mark.parametrize("compression", ["none", "lz4"])
def test_nothing_to_gain_in_files_of_another_compression(
    cluster: LocalCluster, path: Path, compression: str
) -> None:
    cluster.upsert("a", {"n": 1})
    write_snapshot(cluster, path, compression=compression)
    assert not Snapshot(path).compact(compression=compression).changed


def test_something_to_gain(cluster: LocalCluster, path: Path) -> None:
    cluster.upsert("a", {"n": 1})
    cluster.upsert("b", {"n": 1})
    write_snapshot(cluster, path)
    snapshot = Snapshot(path)
    # The same rows, compressed in another way.
    assert snapshot.compact(compression="gzip", keep="0s").changed
    # Two files, of which nothing is left out.
    cluster.upsert("c", {"n": 1})
    write_snapshot(cluster, path)
    done = snapshot.compact(keep="0s")
    assert (done.changed, done.version, done.rows, done.files) == (True, 4, (3, 3), (2, 1))
    # Rows that no rollback can bring back.
    cluster.delete("c")
    write_snapshot(cluster, path)
    done = snapshot.compact(keep="0s")
    assert (done.changed, done.version, done.rows, done.files) == (True, 6, (4, 2), (2, 1))
    assert not snapshot.compact(keep="0s").changed
    assert len(snapshot) == 2


def test_as_many_are_kept_as_are_left_out(path: Path, calendar: Calendar) -> None:
    """An older version stays for a rollback, a deletion goes: as many rows, and yet a document twice."""
    with LocalCluster(nodes=1, vbuckets=1, seed=3) as cluster:
        cluster.upsert("key", {"n": 1})
        cluster.upsert("other", {})
        update(cluster, path, clock=calendar)
        cluster.delete("other")
        update(cluster, path, clock=calendar)
        calendar.go_on(hours=1)
        cluster.upsert("key", {"n": 2})
        update(cluster, path, clock=calendar)
        Snapshot(path).compact(keep="30min", clock=calendar)
        assert held(path) == truth(cluster)


@pytest.mark.parametrize("only_persisted", [False, True])
def test_what_no_failover_takes_back_need_not_be_kept(
    path: Path, calendar: Calendar, only_persisted: bool
) -> None:
    with LocalCluster(nodes=2, vbuckets=1, replicas=1, seed=3) as cluster:
        for n in range(3):
            cluster.upsert("key", {"n": n})
            update(cluster, path, clock=calendar, only_persisted=only_persisted)
        manifest = History(LocalStore(path)).latest()
        assert manifest.persisted == only_persisted
        done = Snapshot(path).compact(clock=calendar)
        assert done.rows == ((3, 1) if only_persisted else (3, 3))
        assert held(path) == truth(cluster)
        # What came since may still be taken back.
        cluster.upsert("key", {"n": 3})
        update(cluster, path, clock=calendar)
        assert not History(LocalStore(path)).latest().persisted
        Snapshot(path).compact(clock=calendar)
        cluster.fail_over(0, lose=1)
        result = update(cluster, path, clock=calendar)
        assert held(path) == truth(cluster)
        assert (result.retracted, result.read_again) == (1, {0: 3})
        # Against all promises: it is read from the start then.
        cluster.fail_over(0, lose=2)
        result = update(cluster, path, clock=calendar)
        assert held(path) == truth(cluster)
        assert result.read_again == {0: 0}
        assert Snapshot(path).verify().ok
