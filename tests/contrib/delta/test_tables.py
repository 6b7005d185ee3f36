"""A Delta table mirrors a bucket: read back by three libraries, and refused where it could not be right."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from deltalake import DeltaTable, write_deltalake
from scan.kit import QUICK, WIRE_METADATA, truth

import cbframe.contrib.delta
from cbframe import (
    ConfigurationError,
    ConversionError,
    DependencyError,
    LocalCluster,
    SnapshotError,
    read_bucket,
    scan_bucket,
)
from cbframe.contrib.delta import DeltaResult, to_delta, update_delta
from cbframe.contrib.mirror import Mirror
from cbframe.snapshot.writer import WANTED

from .kit import READERS, by_deltalake, by_duckdb, held, make, told, update

NAMES = (*WIRE_METADATA, "scope", "collection")
Reader = Callable[[str], pa.Table]


def rows(table: pa.Table) -> dict[str, dict[str, Any]]:
    """Fields by key; those that are null are left out."""
    found = {}
    for row in table.to_pylist():
        fields = {name: value for name, value in row.items() if value is not None}
        found[fields.pop("_cb_key")] = {n: v for n, v in fields.items() if not n.startswith("_cb_")}
    assert len(found) == len(table)
    return found


def bucket_rows(cluster: LocalCluster) -> dict[str, dict[str, Any]]:
    return rows(scan_bucket(cluster, options=QUICK).to_arrow())


# --- what is in it


@pytest.mark.parametrize("reader", READERS)
def test_it_is_what_a_read_of_the_bucket_gives(cluster: LocalCluster, uri: str, reader: Reader) -> None:
    cluster.load_sample(3000)
    result = make(cluster, uri)
    assert (result.version, result.changed, result.rewritten) == (0, True, True)
    assert rows(reader(uri)) == bucket_rows(cluster)
    keys = by_deltalake(uri)["_cb_key"].to_pylist()
    for key in keys[:50]:
        cluster.delete(key)
    for number, key in enumerate(keys[50:150]):
        cluster.upsert(key, {"id": number, "type": "changed", "brand": {"new": number}})
    cluster.upsert("one more", {"id": -1})
    result = update(cluster, uri)
    assert (result.version, result.upserted, result.deleted, result.retracted) == (1, 101, 50, 0)
    assert not result.rewritten
    assert rows(reader(uri)) == bucket_rows(cluster)
    assert "2" not in repr(result.rolled_back)
    assert "101 upserted, 50 deleted" in str(result)
    assert "<th" in result._repr_html_()


@pytest.mark.parametrize("reader", READERS)
def test_metadata_is_exact(cluster: LocalCluster, uri: str, reader: Reader) -> None:
    for number in range(100):
        cluster.upsert(
            f"key-{number}", {"n": number}, expiry=2_000_000_000 + number, flags=0xFFFFFFFF - number
        )
    make(cluster, uri, parse=False)
    assert told(reader(uri)) == truth(cluster)
    cas = [row.cas for row in truth(cluster).values()]
    assert max(cas) > 1 << 53
    cluster.upsert("key-1", {"n": -1})
    update(cluster, uri)
    assert told(reader(uri)) == truth(cluster)


def test_rows_are_found_by_exact_numbers(cluster: LocalCluster, uri: str) -> None:
    """Statistics of decimals are rounded by delta-rs: there must be none."""
    numbers = [(1 << 64) - 1, (1 << 63) + 1, (1 << 53) + 1, 7]
    for at, number in enumerate(numbers):
        cluster.upsert(f"key-{at}", {"u": number, "d": 10**30 + number, "in": {"u": number}})
    make(cluster, uri)
    cluster.upsert("key-3", {"u": 8, "d": 10**30, "in": {"u": 8}})
    update(cluster, uri)
    DeltaTable(uri).optimize.compact()
    assert by_deltalake(uri).schema.field("u").type == pa.decimal128(20, 0)
    for at, number in enumerate([*numbers[:3], 8]):
        value = Decimal(number)
        wanted = [f"key-{at}"]
        assert pl.scan_delta(uri).filter(pl.col("u") == value).collect()["_cb_key"].to_list() == wanted
        dataset = DeltaTable(uri).to_pyarrow_dataset()
        found = dataset.to_table(filter=pc.field("u") == pa.scalar(value, pa.decimal128(20, 0)))
        assert found["_cb_key"].to_pylist() == wanted
        with duckdb.connect() as database:
            database.register("mirror", dataset)
            query = "select _cb_key from mirror where u = ?::decimal(20, 0)"
            assert database.execute(query, [str(number)]).fetchall() == [(f"key-{at}",)]
    row = truth(cluster)[b"key-0"]
    assert pl.scan_delta(uri).filter(pl.col("_cb_cas") == row.cas).collect()["_cb_key"].to_list() == ["key-0"]
    assert by_duckdb(uri).filter(pc.field("_cb_cas") == row.cas)["_cb_key"].to_pylist() == ["key-0"]


def test_types_that_delta_does_not_have(cluster: LocalCluster, uri: str) -> None:
    documents = {
        "a": {
            "nil": None,
            "void": {},
            "nils": [None, None],
            "of": {"nil": None, "n": 1},
            "deep": {"nil": None},
        },
        "b": {"void": {}, "nils": [], "of": {}, "big": (1 << 64) - 1, "in": [{"big": 1 << 63}, {}, None]},
        "c": {"name": 1, "Name": 2, "NAME": 3, "tick`": 4, "in": [{"a": 1, "A": 2}]},
    }
    for key, document in documents.items():
        cluster.upsert(key, document)
    make(cluster, uri)
    table = by_deltalake(uri)
    assert "nil" not in table.column_names
    found = rows(table)
    assert found["a"] == {"void": "{}", "nils": [None, None], "of": {"n": 1}, "deep": "{}"}
    assert found["b"] == {
        "void": "{}",
        "nils": [],
        "of": {"n": None},
        "big": Decimal((1 << 64) - 1),
        "in": [{"big": Decimal(1 << 63), "a": None, "A_": None}, {"big": None, "a": None, "A_": None}, None],
    }
    assert found["c"] == {
        "name": 1,
        "Name_": 2,
        "NAME__": 3,
        "tick_": 4,
        "in": [{"big": None, "a": 1, "A_": 2}],
    }
    # All of it comes back when the table is rewritten, and when rows are merged.
    for document in (
        {"nil": None, "big": 2},
        {"nil": {"now": "text"}},
        {"void": {"now": 1}},
        {"nils": ["x"]},
    ):
        cluster.upsert("d", document)
        update(cluster, uri)
        found = rows(by_deltalake(uri))
        assert found["b"]["big"] == Decimal((1 << 64) - 1)
        assert found["c"]["Name_"] == 2
        assert found["a"]["nils"] == [None, None]
    assert found["d"] == {"nils": ["x"]}
    assert found["a"]["void"] == {"now": None}


def test_names_that_are_no_words(cluster: LocalCluster, uri: str) -> None:
    names = [
        *("geo.lat", "first name", 'q"uote', "o'clock", "ünï", "a,b;{c}()=", "new\nline", "select", ""),
        *("t", "s"),
    ]
    cluster.upsert("a", dict.fromkeys(names, 1))
    cluster.upsert("b", {})
    make(cluster, uri)
    cluster.upsert("a", dict.fromkeys(names, 2))
    cluster.upsert("c", dict.fromkeys(names, 3))
    assert not update(cluster, uri).rewritten
    wanted = {"a": dict.fromkeys(names, 2), "b": {}, "c": dict.fromkeys(names, 3)}
    assert rows(by_deltalake(uri)) == wanted


def test_collections(uri: str) -> None:
    with LocalCluster(nodes=1, vbuckets=4, seed=1) as cluster:
        cluster.create_scope("s")
        ids = [cluster.create_collection("s", name) for name in ("one", "two")]
        for number in range(20):
            for collection in (0, *ids):
                cluster.upsert(f"key-{number}", {"n": number}, collection=collection)
        make(cluster, uri, parse=False)
        assert len(by_deltalake(uri)) == 60
        cluster.upsert("key-1", {"n": -1}, collection=ids[0])
        cluster.delete("key-2", collection=ids[0])
        cluster.drop_collection("s", "two")
        new = cluster.create_collection("s", "two")
        cluster.upsert("key-1", {"n": -2}, collection=new)
        assert update(cluster, uri).dropped == ("s.two",)
        table = by_deltalake(uri)
        for collection in (0, ids[0], new):
            some = table.filter(pc.field("_cb_collection_id") == collection)
            assert told(some) == truth(cluster, collection)
        assert len(table) == 20 + 19 + 1
        assert set(table["_cb_collection"].to_pylist()) == {"_default", "one", "two"}


def test_the_collections_that_the_user_sees(uri: str) -> None:
    """They are looked up when the table is made, and kept."""
    with LocalCluster(vbuckets=4, seed=1) as cluster:
        for name in ("a", "b"):
            cluster.create_collection("_default", name)
            cluster.upsert(name, {}, collection=f"_default.{name}")
        auth = ("ann", "p")
        cluster.add_user("ann", "p", collections=["a"])
        make(cluster, uri, auth=auth, collections="visible")
        cluster.upsert("more", {}, collection="_default.a")
        update(cluster, uri, auth=auth, collections="visible")
        cluster.add_user("ann", "p", collections=["a", "b"])
        update(cluster, uri, auth=auth)
        with pytest.raises(
            ConfigurationError, match=r"with collections=\['_default.a'\]; more now: _default.b"
        ):
            update(cluster, uri, auth=auth, collections="visible")
        assert sorted(by_deltalake(uri)["_cb_key"].to_pylist()) == ["a", "more"]


def test_a_collection_that_was_dropped_stays_so(uri: str) -> None:
    """Also where the vbuckets are rolled back to before that."""
    with LocalCluster(nodes=1, vbuckets=2, seed=1) as cluster:
        cluster.create_scope("s")
        first = cluster.create_collection("s", "one")
        for number in range(20):
            cluster.upsert(f"key-{number}", {"n": number}, collection=first)
            cluster.upsert(f"key-{number}", {"n": number})
        make(cluster, uri, parse=False)
        cluster.drop_collection("s", "one")
        assert update(cluster, uri).dropped == ("s.one",)
        assert held(uri) == truth(cluster)
        for vbucket in range(2):
            cluster.fail_over(vbucket, lose=1)
        cluster.upsert("more", {})
        result = update(cluster, uri)
        assert result.rolled_back
        assert held(uri) == truth(cluster)
        assert not update(cluster, uri).changed


def test_extended_attributes(cluster: LocalCluster, uri: str) -> None:
    cluster.upsert("a", {"n": 1}, xattrs={"x": {"y": 1}})
    cluster.upsert("b", {"n": 1})
    make(cluster, uri, xattrs=True)
    cluster.upsert("c", {"n": 2}, xattrs={"z": [1]})
    assert not update(cluster, uri).rewritten
    found = by_deltalake(uri)
    attributes = dict(zip(found["_cb_key"].to_pylist(), found["_cb_xattrs"].to_pylist(), strict=True))
    assert {key: dict(value or ()) for key, value in attributes.items()} == {
        "a": {"x": '{"y":1}'},
        "b": {},
        "c": {"z": "[1]"},
    }


def test_keys_that_are_no_text(cluster: LocalCluster, uri: str) -> None:
    cluster.upsert("text", {"n": 1})
    make(cluster, uri, parse=False)
    assert by_deltalake(uri).schema.field("_cb_key").type == pa.string()
    cluster.upsert(b"\xff\x00", {"n": 2})
    cluster.upsert("\\xff\x00", {"n": 2})
    assert not update(cluster, uri).rewritten
    assert by_deltalake(uri).schema.field("_cb_key").type == pa.string()
    assert held(uri) == truth(cluster)
    cluster.delete("\\xff\x00")
    update(cluster, uri)
    assert held(uri) == truth(cluster)
    cluster.upsert("text", {"n": 3})
    assert not update(cluster, uri).rewritten
    assert held(uri) == truth(cluster)


def test_keys_that_are_bytes(cluster: LocalCluster, uri: str) -> None:
    cluster.upsert("text", {"n": 1})
    make(cluster, uri, parse=False, keys="binary")
    cluster.upsert(b"\xff\x00", {"n": 2})
    assert not update(cluster, uri).rewritten
    assert by_deltalake(uri).schema.field("_cb_key").type == pa.binary()
    assert held(uri) == truth(cluster)


def test_only_keys(cluster: LocalCluster, uri: str) -> None:
    cluster.upsert("a", {"n": 1})
    make(cluster, uri, keys_only=True)
    cluster.upsert("b", {"n": 1})
    update(cluster, uri)
    table = by_deltalake(uri)
    assert sorted(table["_cb_key"].to_pylist()) == ["a", "b"]
    assert all(name.startswith("_cb_") for name in table.column_names)


def test_filters(cluster: LocalCluster, uri: str) -> None:
    """A document that does not pass any more is gone."""
    for number in range(10):
        cluster.upsert(f"key-{number}", {"n": number, "x": 0})
    make(cluster, uri, filters=[("n", ">=", 5)], columns=["n"])
    assert len(by_deltalake(uri)) == 5
    cluster.upsert("key-9", {"n": 0})
    cluster.upsert("key-0", {"n": 100})
    update(cluster, uri)
    assert rows(by_deltalake(uri)) == {f"key-{n}": {"n": n} for n in range(5, 9)} | {"key-0": {"n": 100}}


def test_an_empty_bucket(cluster: LocalCluster, uri: str) -> None:
    result = make(cluster, uri)
    assert (result.version, result.upserted) == (0, 0)
    assert len(by_deltalake(uri)) == 0
    assert not update(cluster, uri).changed
    cluster.upsert("a", {"n": 1})
    update(cluster, uri)
    assert rows(by_deltalake(uri)) == {"a": {"n": 1}}


def test_a_type_that_delta_cannot_have(cluster: LocalCluster, uri: str) -> None:
    cluster.upsert("a", {"t": "2026-01-02T03:04:05.123456789Z"})
    with pytest.raises(ConversionError, match="Delta has no type for 't'"):
        make(cluster, uri, schema={"t": pa.timestamp("ns", "UTC")})
    assert not DeltaTable.is_deltatable(uri)


# --- updates


def test_nothing_new_is_no_commit(cluster: LocalCluster, uri: str) -> None:
    cluster.upsert("a", {"n": 1})
    make(cluster, uri)
    result = update(cluster, uri)
    assert (result.version, result.changed) == (0, False)
    assert "nothing new" in str(result)
    # A deletion of what never was moves the position, and no row.
    cluster.upsert("b", {})
    cluster.delete("b")
    result = update(cluster, uri)
    assert (result.version, result.changed, result.deleted) == (1, True, 1)
    assert not update(cluster, uri).changed


def test_positions_that_moved_without_rows(cluster: LocalCluster, uri: str) -> None:
    cluster.upsert("a", {"n": 1})
    make(cluster, uri)
    vbucket = next(vb for vb, high in cluster.high_seqnos().items() if high)
    cluster.fail_over(vbucket)
    files = DeltaTable(uri).file_uris()
    result = update(cluster, uri)
    assert (result.version, result.changed, result.rewritten) == (1, True, False)
    assert not update(cluster, uri).changed
    assert DeltaTable(uri).file_uris() == files


def test_what_others_may_do(cluster: LocalCluster, uri: str) -> None:
    cluster.upsert("a", {"n": 1})
    make(cluster, uri)
    for number in range(5):
        cluster.upsert(f"key-{number}", {"n": number})
        update(cluster, uri)
    DeltaTable(uri).optimize.compact()
    DeltaTable(uri).vacuum(retention_hours=0, enforce_retention_duration=False, dry_run=False)
    DeltaTable(uri).alter.set_table_properties({"delta.logRetentionDuration": "interval 60 days"})
    DeltaTable(uri).create_checkpoint()
    cluster.upsert("b", {"n": 2})
    assert update(cluster, uri).upserted == 1
    assert rows(by_deltalake(uri)) == bucket_rows(cluster)


def test_overwrite_begins_anew(cluster: LocalCluster, uri: str) -> None:
    cluster.upsert("a", {"n": 1})
    cluster.upsert("gone", {})
    cluster.delete("gone")
    assert make(cluster, uri).deleted == 0  # of this table nothing was
    cluster.upsert("a", {"n": "text", "big": (1 << 64) - 1})
    result = make(cluster, uri, mode="overwrite", columns=["n", "big"])
    assert result.version == 1
    assert rows(by_deltalake(uri)) == {"a": {"n": "text", "big": Decimal((1 << 64) - 1)}}
    cluster.upsert("b", {"n": "x"})
    update(cluster, uri)
    assert len(by_deltalake(uri)) == 2
    # Nothing before is gone back to.
    vbucket = max(cluster.high_seqnos(), key=cluster.high_seqnos().__getitem__)
    cluster.fail_over(vbucket, lose=1)
    update(cluster, uri)
    assert {key.encode() for key in rows(by_deltalake(uri))} == truth(cluster).keys()


def test_overwrite_of_any_table(cluster: LocalCluster, uri: str) -> None:
    write_deltalake(uri, pa.table({"a": [1]}))
    cluster.upsert("a", {"u": (1 << 64) - 1})
    make(cluster, uri, mode="overwrite")
    assert pl.scan_delta(uri).filter(pl.col("u") == Decimal((1 << 64) - 1)).collect().height == 1


def test_conflicts_between_updates_are_refused_where_that_was_asked_for(
    cluster: LocalCluster, uri: str
) -> None:
    cluster.upsert("a", {"n": 1})
    make(cluster, uri, on_conflict="raise")
    cluster.upsert("b", {"n": "text"})
    with pytest.raises(ConversionError, match="values of 'n' have no common type: it was int64"):
        update(cluster, uri)
    assert rows(by_deltalake(uri)) == {"a": {"n": 1}}
    cluster.upsert("b", {"n": 2})
    update(cluster, uri)
    assert rows(by_deltalake(uri)) == {"a": {"n": 1}, "b": {"n": 2}}


def test_the_surface() -> None:
    """What a table holds is what a snapshot holds."""
    assert sorted(cbframe.contrib.delta.__all__) == ["DeltaResult", "to_delta", "update_delta"]
    ours, theirs = (inspect.signature(function).parameters for function in (to_delta, cbframe.write_snapshot))
    other = {"uri", "table_per", "path", "compression", "file_bytes", "filesystem", "break_lock"}
    assert ours.keys() - other == theirs.keys() - other
    assert (ours["mode"].default, theirs["mode"].default) == ("error", "update")
    both = ours.keys() - other - {"mode"}
    assert {name: ours[name].default for name in both} == {name: theirs[name].default for name in both}
    updates = inspect.signature(update_delta).parameters
    assert ours.keys() > WANTED
    assert updates.keys() == ours.keys() - {"mode", "table_per"}
    assert cbframe.contrib.delta.__doc__


def test_nothing_is_loaded_before_it_is_needed() -> None:
    script = "import sys, cbframe.contrib.delta; sys.exit('deltalake' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_a_rolled_back_change_of_a_key_that_is_no_text(uri: str) -> None:
    with LocalCluster(nodes=1, vbuckets=1, seed=3) as cluster:
        cluster.upsert(b"\xff", {"n": 1})
        cluster.upsert("other", {"n": 1})
        make(cluster, uri, parse=False)
        cluster.upsert(b"\xff", {"n": 2})
        cluster.upsert("other", {"n": 2})
        update(cluster, uri)
        cluster.fail_over(0, lose=2)
        cluster.upsert(b"\xff", {"n": 3})
        assert update(cluster, uri).read_again == {0: 2}
        assert held(uri) == truth(cluster)


# --- refused


def refused(uri: str, work: Callable[[], DeltaResult], match: str, hint: str) -> None:
    version = DeltaTable(uri).version()
    with pytest.raises(SnapshotError, match=match) as error:
        work()
    assert hint in (error.value.hint or "")
    assert uri in str(error.value)
    assert DeltaTable(uri).version() == version


def test_a_table_that_is_there(cluster: LocalCluster, uri: str) -> None:
    make(cluster, uri)
    refused(uri, lambda: make(cluster, uri), "there is a Delta table already", "update_delta()")
    with pytest.raises(ConfigurationError, match="mode='append'"):
        make(cluster, uri, mode="append")


def test_no_table(cluster: LocalCluster, uri: str) -> None:
    with pytest.raises(SnapshotError, match="there is no Delta table") as error:
        update(cluster, uri)
    assert "to_delta()" in (error.value.hint or "")
    assert not DeltaTable.is_deltatable(uri)


def test_a_table_of_someone_else(cluster: LocalCluster, uri: str) -> None:
    write_deltalake(uri, pa.table({"_cb_key": ["a"]}))
    refused(uri, lambda: update(cluster, uri), "someone else", 'mode="overwrite"')


def test_a_log_that_says_nothing(cluster: LocalCluster, uri: str) -> None:
    DeltaTable.create(uri, pa.schema([("_cb_key", pa.string())]))
    refused(uri, lambda: update(cluster, uri), "someone else|does not tell", 'mode="overwrite"')


def test_a_table_that_was_restored(cluster: LocalCluster, uri: str) -> None:
    cluster.upsert("a", {"n": 1})
    make(cluster, uri)
    cluster.upsert("b", {"n": 2})
    update(cluster, uri)
    DeltaTable(uri).restore(0)
    refused(uri, lambda: update(cluster, uri), "was restored", 'mode="overwrite"')
    make(cluster, uri, mode="overwrite")
    assert len(by_deltalake(uri)) == 2
    assert not update(cluster, uri).changed


def test_a_transaction_that_does_not_fit(cluster: LocalCluster, uri: str) -> None:
    cluster.upsert("a", {"n": 1})
    make(cluster, uri)
    cluster.upsert("b", {"n": 1})
    update(cluster, uri)
    commit = [
        {"commitInfo": {"timestamp": 0, "operation": "OPTIMIZE", "operationParameters": {}}},
        {"txn": {"appId": "cbframe", "version": 7}},
    ]
    log = Path(uri) / "_delta_log" / "00000000000000000002.json"
    log.write_text("".join(json.dumps(each) + "\n" for each in commit))
    refused(uri, lambda: update(cluster, uri), "does not fit its log", 'mode="overwrite"')


@pytest.mark.parametrize("how", ["append", "delete"])
def test_a_table_that_someone_changed(cluster: LocalCluster, uri: str, how: str) -> None:
    cluster.upsert("a", {"n": 1})
    make(cluster, uri)
    if how == "append":
        write_deltalake(uri, by_deltalake(uri), mode="append")
    else:
        DeltaTable(uri).delete()
    refused(uri, lambda: update(cluster, uri), "changed by someone else", 'mode="overwrite"')


def test_other_options(cluster: LocalCluster, uri: str) -> None:
    make(cluster, uri, columns=["n"], parse_dates=True)
    assert not update(cluster, uri, columns=["n"]).changed
    with pytest.raises(ConfigurationError, match=r"the table was made with columns=\['n'\]"):
        update(cluster, uri, columns=["m"])
    with pytest.raises(TypeError, match="unexpected keyword argument 'colums'"):
        update(cluster, uri, colums=["n"])


def test_deltalake_is_not_installed(cluster: LocalCluster, uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "deltalake", None)
    for function in (to_delta, update_delta):
        with pytest.raises(DependencyError, match="deltalake is not installed") as error:
            function(cluster, uri)
        assert "cbframe[delta]" in (error.value.hint or "")


# --- two writers


@pytest.mark.parametrize("first", ["merge", "rewrite", "note"])
@pytest.mark.parametrize("second", ["merge", "rewrite", "note"])
def test_two_writers(
    cluster: LocalCluster, uri: str, first: str, second: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one that commits later has read the same changes: it must not write them again."""
    for number in range(20):
        cluster.upsert(f"key-{number}", {"n": number})
    make(cluster, uri)

    def change(what: str) -> None:
        if what == "note":
            # Nothing is lost, but history forks.
            cluster.fail_over(next(vb for vb, high in cluster.high_seqnos().items() if high))
        else:
            cluster.upsert("key-1", {"n": 100 if what == "merge" else "text"})

    change(first)
    original = Mirror._write

    def meanwhile(self: Mirror, *arguments: Any) -> Any:
        monkeypatch.setattr(Mirror, "_write", original)
        change(second)
        update(cluster, uri)
        return original(self, *arguments)

    monkeypatch.setattr(Mirror, "_write", meanwhile)
    with pytest.raises(SnapshotError, match="another writer"):
        update(cluster, uri)
    update(cluster, uri)
    assert {key.encode() for key in rows(by_deltalake(uri))} == truth(cluster).keys()
    assert not update(cluster, uri).changed


def test_a_read_that_fails_leaves_the_table(
    cluster: LocalCluster, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.upsert("a", {"n": 1})
    make(cluster, uri)
    cluster.upsert("b", {"n": np.pi})

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("on the way")

    with monkeypatch.context() as patched:
        patched.setattr("cbframe.contrib.stored_rows.widen", fail)
        with pytest.raises(RuntimeError, match="on the way"):
            update(cluster, uri)
    assert len(by_deltalake(uri)) == 1
    update(cluster, uri)
    assert rows(by_deltalake(uri)) == {"a": {"n": 1.0}, "b": {"n": np.pi}}
    assert len(read_bucket(cluster)) == 2


def test_times_ascend_with_a_clock_that_is_behind(cluster: LocalCluster, uri: str) -> None:
    noon = datetime(2026, 3, 1, 12, tzinfo=UTC)
    cluster.upsert("a", {"n": 1})
    assert not to_delta(cluster, uri, clock=lambda: noon).clock_behind
    cluster.upsert("a", {"n": 2})
    result = update_delta(cluster, uri, clock=lambda: noon - timedelta(hours=1))
    assert result.clock_behind == timedelta(hours=1)
    assert "1:00:00 behind the time of the version before" in str(result)
    assert result.as_of.time == noon + timedelta(milliseconds=1)


def test_expired_documents_and_records(cluster: LocalCluster, uri: str, tmp_path: Path) -> None:
    cluster.upsert("a", {"n": 1}, expiry=1_700_000_000)
    cluster.upsert("_txn:client-record", {"records": {}})
    result = make(cluster, uri)
    assert (result.upserted, result.transaction_records) == (1, 1)
    assert "1 change of transaction records" in str(result)
    assert rows(by_deltalake(uri)) == {"a": {"n": 1}}
    cluster.delete("_txn:client-record")
    assert update(cluster, uri).deleted == 0
    # It goes when the server removes it.
    cluster.expire_due()
    assert update(cluster, uri).deleted == 1
    assert rows(by_deltalake(uri)) == {}
    with pytest.raises(ConfigurationError, match="was made with transaction_records='drop'"):
        update(cluster, uri, transaction_records="keep")
    other = str(tmp_path / "other")
    cluster.upsert("_txn:client-record", {"n": 5})
    make(cluster, other, transaction_records="keep")
    assert rows(by_deltalake(other)) == {"_txn:client-record": {"n": 5}}
