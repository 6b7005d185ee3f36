"""Compaction where there is nothing to gain, and where there is little."""

from __future__ import annotations

from pathlib import Path

import pytest

from cbframe import LocalCluster, Snapshot, write_snapshot


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
