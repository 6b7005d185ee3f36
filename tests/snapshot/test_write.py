"""Writing: modes, what a snapshot holds, collections, other buckets, one writer at a time."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from scan.kit import QUICK, background, fill, truth

import cbframe
from cbframe import LocalCluster, Snapshot, read_snapshot, write_snapshot
from cbframe.errors import ConfigurationError, ConversionError, SnapshotError
from cbframe.scan.store import LOCK, LocalStore, writing

from .conftest import Calendar
from .kit import held, update


def typed(cluster: LocalCluster, path: Path, **arguments: Any) -> Any:
    return write_snapshot(cluster, path, options=QUICK, timeout=60, **arguments)


def same(cluster: LocalCluster, path: Path, **arguments: Any) -> None:
    """A snapshot has what a read of the bucket gives: rows, columns, types and values."""
    read = cbframe.read_bucket(cluster, options=QUICK, timeout=60, **arguments).sort_index()
    kept = read_snapshot(path).sort_index()
    assert sorted(kept.columns) == sorted(read.columns)
    assert kept[read.columns].dtypes.equals(read.dtypes)
    assert kept[read.columns].equals(read)


def test_keys_alone_follow_deletions_on_later_servers(path: Path) -> None:
    """From 7.6 on, a backfill of keys alone would have the deleted document as a new version."""
    with LocalCluster(vbuckets=2, version="8.0", seed=1) as later:
        for key in ("a", "b", "c"):
            later.upsert(key, {"n": 1})
        typed(later, path, keys_only=True)
        later.delete("b")
        typed(later, path, keys_only=True)
        assert sorted(read_snapshot(path).index) == ["a", "c"]
        same(later, path, keys_only=True)


def test_updates_follow_the_bucket(cluster: LocalCluster, path: Path) -> None:
    fill(cluster, 300)
    first = typed(cluster, path)
    assert (first.version, first.upserted, first.deleted, first.changed) == (1, 300, 0, True)
    same(cluster, path)
    cluster.upsert("key-000001", {"n": 1, "text": "other"})
    cluster.delete("key-000002")
    cluster.expire("key-000003")
    cluster.upsert("new", {"n": 5})
    second = typed(cluster, path)
    assert (second.version, second.upserted, second.deleted, second.retracted) == (2, 2, 2, 0)
    assert second.nbytes < first.nbytes
    same(cluster, path)
    third = typed(cluster, path)
    assert (third.version, third.changed, third.nbytes) == (2, False, 0)
    assert "nothing new" in str(third)
    assert third.as_of == second.as_of == Snapshot(path).as_of


def test_an_empty_bucket(cluster: LocalCluster, path: Path) -> None:
    assert typed(cluster, path).version == 1
    assert len(read_snapshot(path)) == len(Snapshot(path)) == 0
    assert typed(cluster, path).changed is False
    cluster.upsert("first", {"n": 1})
    typed(cluster, path)
    same(cluster, path)
    cluster.delete("first")
    typed(cluster, path)
    assert len(read_snapshot(path)) == 0


def test_the_sample(cluster: LocalCluster, path: Path) -> None:
    cluster.load_sample(3000)
    typed(cluster, path, file_bytes=20_000)
    assert len(list((path / "data").iterdir())) > 3
    same(cluster, path)
    assert Snapshot(path).verify().ok
    Snapshot(path).compact(keep="0s")
    same(cluster, path)


def test_types_drift(cluster: LocalCluster, path: Path) -> None:
    cluster.upsert("a", {"n": 1, "o": {"x": 1}, "l": [1], "same": True})
    typed(cluster, path)
    cluster.upsert("b", {"n": 2.5, "o": {"y": "z"}, "l": [], "new": None})
    typed(cluster, path)
    same(cluster, path)
    cluster.upsert("c", {"n": "text", "o": 3, "l": ["x"]})
    typed(cluster, path)
    kept = read_snapshot(path).sort_index()
    assert kept["n"].to_list() == ["1", "2.5", "text"]
    assert kept["o"].to_list() == ['{"x":1}', '{"y":"z"}', "3"]
    assert [list(each) for each in kept["l"]] == [["1"], [], ["x"]]
    drift = Snapshot(path).schema_history()
    assert drift[drift.version == 3][["field", "before", "after"]].to_numpy().tolist() == [
        ["n", "double", "string"],
        ["o", "struct<x: int64, y: string>", "JSON text"],
        ["l[]", "int64", "string"],
    ]


def test_conflicts_are_refused(cluster: LocalCluster, path: Path) -> None:
    """Also those between documents of this update and earlier ones."""
    cluster.upsert("a", {"n": 1, "o": None})
    typed(cluster, path, on_conflict="raise")
    cluster.upsert("b", {"n": 1.5, "o": "x", "more": True})
    typed(cluster, path)
    before = read_snapshot(path)
    cluster.upsert("c", {"n": "text"})
    with pytest.raises(ConversionError, match="values of 'n' have no common type: it was double"):
        typed(cluster, path)
    assert read_snapshot(path).equals(before)
    assert len(list((path / "data").iterdir())) == 2


@pytest.mark.parametrize(
    "arguments",
    [
        {"columns": ["n", "o.x"]},
        {"key_prefix": "key-0000"},
        {"filters": [("n", "<", 100)]},
        {"nested": "json"},
        {"schema": {"n": "double"}},
        {"keys_only": True},
        {"parse": False},
        {"parse_dates": ["when"]},
        {"on_conflict": "null"},
    ],
    ids=lambda arguments: next(iter(arguments)),
)
def test_what_it_holds(arguments: dict[str, Any], cluster: LocalCluster, path: Path) -> None:
    for n in range(200):
        when = f"2026-01-{n % 28 + 1:02d}T00:00:00Z"
        cluster.upsert(f"key-{n:06d}", {"n": n, "o": {"x": n}, "when": when})
    typed(cluster, path, **arguments)
    same(cluster, path, **arguments)
    cluster.upsert("key-000001", {"n": 1000, "o": {"x": 1}, "when": "2026-05-05T00:00:00Z"})
    cluster.upsert("other", {"n": 1, "o": {"x": 5}, "when": "2026-05-06T00:00:00Z"})
    cluster.delete("key-000007")
    # What is left out is as it was.
    typed(cluster, path)
    same(cluster, path, **arguments)
    typed(cluster, path, **arguments)
    [name] = arguments
    if name != "columns":
        with pytest.raises(ConfigurationError, match="the snapshot was made with columns=None") as caught:
            typed(cluster, path, columns=["n"])
        assert 'mode="overwrite"' in str(caught.value)


def test_what_a_snapshot_was_made_with_is_not_shown_where_it_may_be_secret(
    cluster: LocalCluster, path: Path
) -> None:
    cluster.upsert("secret-1", {"n": 1})
    filters = [("_cb_key", "in", {"secret-1", "secret-2"})]
    write_snapshot(cluster, path, filters=filters, key_prefix="secret", options=QUICK)
    for arguments in ({"filters": [("n", "==", 1)]}, {"key_prefix": "x"}):
        with pytest.raises(
            ConfigurationError, match=f"was made with another {next(iter(arguments))}="
        ) as caught:
            write_snapshot(cluster, path, options=QUICK, **arguments)
        assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"nested": "flatten"}, "for reading a snapshot"),
        ({"filters": [("n", "==", object())]}, "a value of type object"),
        ({"key_prefix": b"\xff"}, "has to be text"),
        ({"storage_options": {}, "filesystem": pa.fs.LocalFileSystem()}, "exclude each other"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_meant(
    arguments: dict[str, Any], message: str, cluster: LocalCluster, path: Path
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        typed(cluster, path, **arguments)
    assert not path.exists()


def test_modes(cluster: LocalCluster, path: Path) -> None:
    fill(cluster, 10)
    assert update(cluster, path, mode="create").version == 1
    with pytest.raises(SnapshotError, match="there is a snapshot already"):
        update(cluster, path, mode="create")
    cluster.delete("key-000001")
    result = update(cluster, path, mode="overwrite")
    assert (result.version, result.upserted) == (2, 9)
    assert len(held(path, 1)) == 10
    assert held(path) == truth(cluster)
    assert [each.kind for each in Snapshot(path).versions] == ["create", "create"]
    Snapshot(path).vacuum()
    assert [each.version for each in Snapshot(path).versions] == [2]


def test_collections(cluster: LocalCluster, path: Path) -> None:
    cluster.create_scope("s")
    first, second = (cluster.create_collection("s", name) for name in ("a", "b"))
    for n in range(30):
        for collection in (0, first, second):
            cluster.upsert(f"key-{n}", {"n": n, "c": collection}, collection=collection)
    typed(cluster, path)
    kept = read_snapshot(path)
    assert len(kept) == 90
    assert kept.groupby(["_cb_scope", "_cb_collection"]).size().to_dict() == {
        ("_default", "_default"): 30,
        ("s", "a"): 30,
        ("s", "b"): 30,
    }
    cluster.upsert("key-1", {"n": -1, "c": first}, collection=first)
    cluster.delete("key-2", collection=second)
    cluster.drop_collection("s", "b")
    result = typed(cluster, path)
    assert result.dropped == ("s.b",)
    assert "\ndropped     s.b\n" in str(result)
    assert typed(cluster, path).dropped == ()
    kept = read_snapshot(path)
    assert sorted(kept["_cb_collection"].unique()) == ["_default", "a"]
    assert len(kept) == 60
    # One of the same name is another one.
    third = cluster.create_collection("s", "b")
    cluster.upsert("key-1", {"n": 7}, collection=third)
    typed(cluster, path)
    assert read_snapshot(path, filters=[("_cb_collection", "==", "b")])["n"].to_list() == [7]
    Snapshot(path).compact(keep="0s")
    assert len(read_snapshot(path)) == 61
    assert Snapshot(path).verify().ok


def test_a_collection_that_is_read_again_was_not_dropped(path: Path) -> None:
    with LocalCluster(vbuckets=2, seed=1) as cluster:
        fill(cluster, 6)
        cluster.create_scope("s")
        cluster.create_collection("s", "a")
        for n in range(6):
            cluster.upsert(f"key-{n}", {}, collection="s.a")
        typed(cluster, path)
        cluster.fail_over(0, lose=1)
        result = typed(cluster, path)
        assert result.rolled_back
        assert result.dropped == ()
        for file in path.glob("data/*"):
            file.write_bytes(b"")
        result = typed(cluster, path, mode="repair")
        assert (result.upserted, result.dropped) == (11, ())


def test_some_collections(cluster: LocalCluster, path: Path) -> None:
    cluster.create_scope("s")
    for name in ("a", "b"):
        cid = cluster.create_collection("s", name)
        cluster.upsert(f"in-{name}", {"n": 1}, collection=cid)
    typed(cluster, path, scope="s", collections="a")
    assert read_snapshot(path).index.to_list() == ["in-a"]
    cluster.upsert("in-b-again", {}, collection="s.b")
    cluster.upsert("in-a-again", {}, collection="s.a")
    assert typed(cluster, path).upserted == 1
    assert sorted(read_snapshot(path).index) == ["in-a", "in-a-again"]


def test_extended_attributes(cluster: LocalCluster, path: Path) -> None:
    cluster.upsert("a", {"n": 1}, xattrs={"tag": {"x": 1}})
    typed(cluster, path, xattrs=True)
    cluster.upsert("b", {"n": 2})
    typed(cluster, path)
    kept = read_snapshot(path, metadata=("key", "xattrs"), return_type="arrow").sort_by("_cb_key")
    assert kept["_cb_xattrs"].to_pylist() == [[("tag", '{"x":1}')], []]


def test_keys_that_are_no_text(cluster: LocalCluster, path: Path) -> None:
    cluster.upsert("a", {"n": 1})
    typed(cluster, path)
    cluster.upsert(b"\xff", {"n": 2})
    typed(cluster, path)
    assert sorted(read_snapshot(path).index) == ["\\xff", "a"]
    assert sorted(read_snapshot(path, keys="binary").index) == [b"a", b"\xff"]
    assert read_snapshot(path, as_of=1).index.to_list() == ["a"]


def test_one_writer(cluster: LocalCluster, path: Path, calendar: Calendar) -> None:
    fill(cluster, 10)
    update(cluster, path)
    before = held(path)
    with writing(LocalStore(path), clock=calendar):
        calendar.go_on(hours=3)
        for write in (
            lambda: update(cluster, path, clock=calendar),
            lambda: Snapshot(path).compact(clock=calendar),
        ):
            with pytest.raises(
                SnapshotError, match=f"process {os.getpid()} on .*, since .*3 hours"
            ) as caught:
                write()
            assert "wait until it is done" in str(caught.value.hint)
        # Who reads does not wait.
        assert held(path) == before
    assert update(cluster, path).changed is False


def test_a_lock_that_a_killed_writer_left(cluster: LocalCluster, path: Path) -> None:
    """The system lets go of it; what the file says does not count."""
    fill(cluster, 10)
    update(cluster, path)
    (path / LOCK).write_text(json.dumps({"pid": 1, "host": "gone", "since": "2020-01-01T00:00:00+00:00"}))
    cluster.upsert("more", {})
    assert update(cluster, path).version == 2


def test_readers_see_whole_versions(cluster: LocalCluster, path: Path) -> None:
    """While versions are written, compacted and published, each read gives one of them."""
    for n in range(100):
        cluster.upsert(f"key-{n:03d}", {"round": 0})
    typed(cluster, path)

    def write(stop: threading.Event) -> None:
        turn = 0
        while not stop.is_set():
            turn += 1
            for n in range(100):
                cluster.upsert(f"key-{n:03d}", {"round": turn})
            typed(cluster, path)
            if not turn % 4:
                Snapshot(path).compact(keep="0s")

    seen = set()
    with background(write):
        while len(seen) < 6:
            kept = read_snapshot(path)
            assert len(kept) == 100
            [turn] = set(kept["round"])
            seen.add(turn)


def test_what_it_says(cluster: LocalCluster, path: Path) -> None:
    cluster.upsert("<b>", {"n": 1})
    cluster.upsert("c", {"n": "x"})
    cluster.upsert("d", b"binary")
    result = typed(cluster, path)
    text = str(result)
    assert "3 upserted, 0 deleted, 0 retracted" in text
    assert "no common type: n" in text
    assert "1 binary" in text
    assert "<b>" not in text + repr(result)
    assert f"<td style='text-align:left'>{path}, bucket &#x27;default&#x27;</td>" in result._repr_html_()
    assert "version 1" in repr(Snapshot(path))
    with pytest.raises(SnapshotError, match="there is no snapshot"):
        Snapshot(path / "nothing")
