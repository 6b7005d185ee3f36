"""What changed between versions: who applies it to the one has the other, whatever happened between."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from scan.kit import QUICK
from worlds import version_of

from cbframe import LocalCluster, Snapshot, read_snapshot, scan_bucket, write_snapshot
from cbframe.errors import ConfigurationError, SnapshotError

from .conftest import Calendar
from .kit import Life

Key = tuple[str, str]


def documents(path: Path, as_of: int) -> dict[Key, int]:
    """The field ``n`` of each document."""
    metadata = ("key", "scope", "collection")
    return by_key(read_snapshot(path, as_of=as_of, columns=["n"], metadata=metadata, return_type="arrow"))


def by_key(table: pa.Table) -> dict[Key, int]:
    return {(row["_cb_collection"], row["_cb_key"]): row["n"] for row in table.to_pylist()}


def write(cluster: LocalCluster, path: Path, calendar: Calendar) -> None:
    """Update the snapshot, which then has what a read of the bucket gives."""
    version = write_snapshot(cluster, path, options=QUICK, clock=calendar).version
    metadata = ("key", "scope", "collection")
    scan = scan_bucket(cluster, columns=["n"], metadata=metadata, options=QUICK)
    assert documents(path, version) == by_key(scan.to_arrow())


def applied(before: dict[Key, int], changes: Any) -> dict[Key, int]:
    """What someone has who had documents and was told of changes."""
    have = dict(before)
    for row in changes.reset_index().to_dict("records"):
        key = row["_cb_collection"], row["_cb_key"]
        match row["_change_type"]:
            case "upsert" | "restore":
                have[key] = int(row["n"])
            case "delete" | "expire":
                have.pop(key, None)
            case "retract" | "drop":
                del have[key]  # it was there: nothing is said in vain
            case other:
                raise AssertionError(other)
    return have


def test_kinds(cluster: LocalCluster, path: Path) -> None:
    for key in "abcd":
        cluster.upsert(key, {"n": 1})
    write_snapshot(cluster, path, options=QUICK)
    cluster.upsert("a", {"n": 2})
    cluster.delete("b")
    cluster.expire("c")
    cluster.upsert("e", {"n": 3})
    write_snapshot(cluster, path, options=QUICK)
    told = Snapshot(path).changes(1)
    assert told["_change_type"].to_dict() == {"a": "upsert", "b": "delete", "c": "expire", "e": "upsert"}
    assert told["n"].dropna().to_dict() == {"a": 2, "e": 3}
    assert len(Snapshot(path).changes(2)) == 0
    assert len(Snapshot(path).changes(1, until=1)) == 0
    with pytest.raises(ConfigurationError, match="version 1 was not made from version 2"):
        Snapshot(path).changes(2, until=1)


def test_rolled_back(path: Path) -> None:
    with LocalCluster(nodes=1, vbuckets=1, seed=3) as cluster:
        for key in "abc":
            cluster.upsert(key, {"n": 1})
        write_snapshot(cluster, path, options=QUICK)
        cluster.upsert("a", {"n": 2})
        cluster.delete("b")
        cluster.upsert("new", {"n": 3})
        cluster.upsert("c", {"n": 4})
        write_snapshot(cluster, path, options=QUICK)
        cluster.fail_over(0, lose=4)
        cluster.upsert("c", {"n": 5})
        write_snapshot(cluster, path, options=QUICK)
    told = Snapshot(path).changes(2)
    assert told["_change_type"].to_dict() == {"a": "restore", "b": "restore", "new": "retract", "c": "upsert"}
    assert told["n"].dropna().to_dict() == {"a": 1, "b": 1, "c": 5}
    # Who did not hear of what was rolled back hears nothing of it now.
    assert Snapshot(path).changes(1)["_change_type"].to_dict() == {"c": "upsert"}


def test_a_dropped_collection(cluster: LocalCluster, path: Path) -> None:
    cluster.create_scope("s")
    cid = cluster.create_collection("s", "a")
    for n in range(5):
        cluster.upsert(f"key-{n}", {"n": n}, collection=cid)
        cluster.upsert(f"key-{n}", {"n": n})
    write_snapshot(cluster, path, options=QUICK)
    cluster.drop_collection("s", "a")
    write_snapshot(cluster, path, options=QUICK)
    told = Snapshot(path).changes(1)
    assert told["_change_type"].to_list() == ["drop"] * 5
    assert set(told["_cb_collection"]) == {"a"}


@pytest.mark.parametrize("seed", range(7))
def test_every_pair_of_versions(seed: int, path: Path) -> None:
    calendar = Calendar()
    with LocalCluster(nodes=1, vbuckets=8, seed=seed, version=version_of(seed)) as cluster:
        life = Life(cluster, seed)
        rng = random.Random(seed)
        cluster.create_scope("s")
        for _ in range(6):
            cid = cluster.create_collection("s", "a")
            life.changes(40)
            for n in range(3):
                cluster.upsert(f"key-{n:03d}", {"n": life.number}, collection=cid)
            write(cluster, path, calendar)
            calendar.go_on(days=1)
            if rng.random() < 0.3:
                Snapshot(path).compact(keep=rng.choice(["0s", "3d"]), clock=calendar)
            life.failover()
            life.changes(10)
            if rng.random() < 0.5:
                write(cluster, path, calendar)
            cluster.drop_collection("s", "a")
            life.failover()
    versions = [each.version for each in Snapshot(path).versions]
    kinds = set()
    for since in versions:
        for until in versions[since - 1 :]:
            told = Snapshot(path).changes(since, until=until)
            kinds |= set(told["_change_type"])
            assert applied(documents(path, since), told) == documents(path, until), (since, until)
    assert {"upsert", "delete"} < kinds


def test_files_that_are_gone(cluster: LocalCluster, path: Path) -> None:
    for n in range(3):
        cluster.upsert(f"key-{n}", {"n": n})
        write_snapshot(cluster, path, options=QUICK)
    Snapshot(path).compact(keep="0s")
    Snapshot(path).vacuum()
    with pytest.raises(SnapshotError, match=r"is gone|there is no version"):
        Snapshot(path).changes(1)


def test_a_field_of_that_name(cluster: LocalCluster, path: Path) -> None:
    """Documents may have a field that is called as the column is that tells what changed."""
    cluster.upsert("a", {"_change_type": 1, "_change_type_": 2})
    write_snapshot(cluster, path, options=QUICK)
    cluster.upsert("b", {"_change_type": {"x": "y"}})
    write_snapshot(cluster, path, options=QUICK)
    told = Snapshot(path).changes(1)
    assert told["_change_type"].to_dict() == {"b": "upsert"}
    assert told["_change_type_"].to_dict() == {"b": '{"x":"y"}'}
    Snapshot(path).compact()
    kept = read_snapshot(path, columns=["_change_type", ("_change_type_",)], return_type="arrow")
    assert sorted(kept.to_pylist(), key=lambda row: row["_cb_key"]) == [
        {"_cb_key": "a", "_change_type_": "1", "_change_type__": 2},
        {"_cb_key": "b", "_change_type_": '{"x":"y"}', "_change_type__": None},
    ]
    assert read_snapshot(path, filters=[("_change_type", "==", 1)]).index.to_list() == ["a"]
