"""An Iceberg table mirrors a bucket: read by three libraries, and refused where it could not be right."""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from pyiceberg.catalog import Catalog
from pyiceberg.table import Table
from scan.kit import QUICK, truth

import cbframe.contrib.iceberg
from cbframe import (
    ConfigurationError,
    ConversionError,
    DependencyError,
    LocalCluster,
    SnapshotError,
    scan_bucket,
)
from cbframe.contrib.delta import to_delta
from cbframe.contrib.iceberg import Iceberg, IcebergResult, to_iceberg, update_iceberg
from cbframe.contrib.mirror import Mirror

from .kit import (
    NAME,
    READERS,
    by_polars,
    by_pyiceberg,
    compact,
    expire,
    files,
    held,
    make,
    numbers,
    properties_of,
    told,
    update,
)

Reader = Callable[[Table], pa.Table]


def rows(table: pa.Table) -> dict[str, dict[str, Any]]:
    """Fields by key; those that are null are left out."""
    found = {}
    for row in table.to_pylist():
        fields = {name: value for name, value in row.items() if value is not None}
        found[fields.pop("_cb_key")] = {n: v for n, v in fields.items() if not n.startswith("_cb_")}
    assert len(found) == len(table)
    return found


def without_empty_lists(value: Any) -> Any:
    """pyiceberg reads lists of objects that are null as empty ones."""
    if isinstance(value, dict):
        inside = {name: without_empty_lists(each) for name, each in value.items()}
        return {name: each for name, each in inside.items() if each not in (None, [])}
    return [without_empty_lists(each) for each in value] if isinstance(value, list) else value


def table_rows(catalog: Catalog, reader: Reader = by_polars) -> dict[str, dict[str, Any]]:
    return rows(reader(catalog.load_table(NAME)))


def bucket_rows(cluster: LocalCluster) -> dict[str, dict[str, Any]]:
    return rows(scan_bucket(cluster, options=QUICK).to_arrow())


# --- what is in it


@pytest.mark.parametrize("reader", READERS)
def test_it_is_what_a_read_of_the_bucket_gives(
    cluster: LocalCluster, catalog: Catalog, reader: Reader
) -> None:
    cluster.load_sample(2000)
    result = make(cluster, catalog)
    assert (result.version, result.changed, result.rewritten) == (1, True, True)

    def compare() -> None:
        found, wanted = table_rows(catalog, reader), bucket_rows(cluster)
        if reader is by_pyiceberg:
            found, wanted = without_empty_lists(found), without_empty_lists(wanted)
        assert found == wanted

    compare()
    keys = [*table_rows(catalog)]
    for key in keys[:50]:
        cluster.delete(key)
    for number, key in enumerate(keys[50:150]):
        cluster.upsert(key, {"id": number, "type": "changed", "brand": {"new": number}})
    cluster.upsert("one more", {"id": -1})
    result = update(cluster, catalog)
    assert (result.version, result.upserted, result.deleted, result.retracted) == (2, 101, 50, 0)
    assert not result.rewritten
    compare()
    assert result.snapshot_id == catalog.load_table(NAME).metadata.current_snapshot_id
    assert "101 upserted, 50 deleted" in str(result)
    assert f"table       {NAME}, bucket" in str(result)
    assert "<th" in result._repr_html_()


@pytest.mark.parametrize("reader", READERS)
def test_metadata_is_exact(cluster: LocalCluster, catalog: Catalog, reader: Reader) -> None:
    for number in range(100):
        cluster.upsert(
            f"key-{number}", {"n": number}, expiry=2_000_000_000 + number, flags=0xFFFFFFFF - number
        )
    make(cluster, catalog, parse=False)
    assert told(reader(catalog.load_table(NAME))) == truth(cluster)
    cluster.upsert("key-1", {"n": -1})
    update(cluster, catalog)
    assert told(reader(catalog.load_table(NAME))) == truth(cluster)


def test_rows_are_found_by_exact_numbers(cluster: LocalCluster, catalog: Catalog) -> None:
    found = [(1 << 64) - 1, (1 << 63) + 1, (1 << 53) + 1, 7]
    for at, number in enumerate(found):
        cluster.upsert(f"key-{at}", {"u": number, "d": 10**30 + number})
    make(cluster, catalog)
    table = catalog.load_table(NAME)
    for at, number in enumerate(found):
        for name, value in (("u", number), ("d", 10**30 + number)):
            some = table.scan(row_filter=f"{name} == {value}").to_arrow()
            assert some["_cb_key"].to_pylist() == [f"key-{at}"]
            frame = pl.scan_iceberg(table).filter(pl.col(name) == Decimal(value)).collect()
            assert frame["_cb_key"].to_list() == [f"key-{at}"]
    cas = truth(cluster)[b"key-0"].cas
    assert table.scan(row_filter=f"_cb_cas == {cas}").to_arrow()["_cb_key"].to_pylist() == ["key-0"]


def test_types_and_names_that_iceberg_does_not_have(cluster: LocalCluster, catalog: Catalog) -> None:
    documents = {
        "a": {"nil": None, "void": {}, "nils": [None, None], "of": {"nil": None, "n.n": 1}},
        "b": {"void": {}, "nils": [], "of": {}, "in": [{"big": 1 << 63}, {}, None]},
        "c": {"name": 1, "Name": 2, "NAME": 3, "geo.lat": 4, "geo": {"lat": 5}, "geo_x2Elat": 6, "": 7},
        "d": {"in": [], "q\"'x\n": 1, "ünï": 2, "1": 3, "_1": 4, "select": 5},
    }
    for key, document in documents.items():
        cluster.upsert(key, document)
    make(cluster, catalog)
    for _ in range(2):
        found = table_rows(catalog)
        assert found["a"] == {"void": "{}", "nils": [None, None], "of": {"n_n": 1}}
        assert found["b"] == {
            "void": "{}",
            "nils": [],
            "of": {"n_n": None},
            "in": [{"big": Decimal(1 << 63)}, {"big": None}, None],
        }
        assert found["c"] == {
            "name": 1,
            "Name_": 2,
            "NAME__": 3,
            "geo_lat": 4,
            "geo": {"lat": 5},
            "geo_x2Elat": 6,
            "": 7,
        }
        assert found["d"] == {"in": [], "q\"'x\n": 1, "ünï": 2, "1": 3, "_1": 4, "select": 5}
        # The data file is written again.
        cluster.upsert("e", {"name": 1})
        cluster.upsert("d", documents["d"])
        assert not update(cluster, catalog).rewritten
        assert len(files(catalog.load_table(NAME))) == 1


def test_a_type_that_iceberg_cannot_have(cluster: LocalCluster, catalog: Catalog) -> None:
    cluster.upsert("a", {"t": "2026-01-02T03:04:05.123456789Z"})
    with pytest.raises(ConversionError, match="Iceberg has no type for 't'"):
        make(cluster, catalog, schema={"t": pa.timestamp("ns", "UTC")})
    assert not catalog.table_exists(NAME)


@pytest.mark.parametrize("keys", ["text", "binary"])
def test_keys_that_are_no_text(cluster: LocalCluster, catalog: Catalog, keys: str) -> None:
    cluster.upsert("text", {"n": 1})
    cluster.upsert("\\xff\x00", {"n": 2})
    make(cluster, catalog, parse=False, keys=keys)
    cluster.upsert(b"\xff\x00", {"n": 2})
    assert not update(cluster, catalog).rewritten
    assert by_pyiceberg(catalog.load_table(NAME)).schema.field("_cb_key").type == (
        pa.string() if keys == "text" else pa.binary()
    )
    assert held(catalog) == truth(cluster)
    cluster.delete("\\xff\x00")
    update(cluster, catalog)
    assert held(catalog) == truth(cluster)


def test_extended_attributes(cluster: LocalCluster, catalog: Catalog) -> None:
    cluster.upsert("a", {"n": 1}, xattrs={"x": {"y": 1}})
    cluster.upsert("b", {"n": 1})
    make(cluster, catalog, xattrs=True)
    cluster.upsert("c", {"n": 2}, xattrs={"z": [1]})
    assert not update(cluster, catalog).rewritten
    found = by_pyiceberg(catalog.load_table(NAME))
    attributes = dict(zip(found["_cb_key"].to_pylist(), found["_cb_xattrs"].to_pylist(), strict=True))
    assert {key: dict(value or ()) for key, value in attributes.items()} == {
        "a": {"x": '{"y":1}'},
        "b": {},
        "c": {"z": "[1]"},
    }


def test_collections(catalog: Catalog) -> None:
    with LocalCluster(nodes=1, vbuckets=4, seed=1) as cluster:
        cluster.create_scope("s")
        ids = [cluster.create_collection("s", name) for name in ("one", "two")]
        for number in range(20):
            for collection in (0, *ids):
                cluster.upsert(f"key-{number}", {"n": number}, collection=collection)
        make(cluster, catalog, parse=False)
        cluster.upsert("key-1", {"n": -1}, collection=ids[0])
        cluster.delete("key-2", collection=ids[0])
        cluster.drop_collection("s", "two")
        new = cluster.create_collection("s", "two")
        cluster.upsert("key-1", {"n": -2}, collection=new)
        update(cluster, catalog)
        table = by_pyiceberg(catalog.load_table(NAME))
        for collection in (0, ids[0], new):
            some = table.filter(pc.field("_cb_collection_id") == collection)
            assert told(some) == truth(cluster, collection)
        assert len(table) == 20 + 19 + 1


# --- updates


def test_an_empty_bucket(cluster: LocalCluster, catalog: Catalog) -> None:
    result = make(cluster, catalog)
    assert (result.version, result.upserted) == (1, 0)
    assert table_rows(catalog) == {}
    assert not update(cluster, catalog).changed
    cluster.upsert("a", {"n": 1})
    update(cluster, catalog)
    assert table_rows(catalog) == {"a": {"n": 1}}


def test_nothing_new_is_no_commit(cluster: LocalCluster, catalog: Catalog) -> None:
    cluster.upsert("a", {"n": 1})
    first = make(cluster, catalog)
    result = update(cluster, catalog)
    assert (result.version, result.snapshot_id, result.changed) == (1, first.snapshot_id, False)
    assert "nothing new" in str(result)
    before = files(catalog.load_table(NAME))
    # A deletion of what never was, and a failover, move positions, and no row.
    cluster.upsert("b", {})
    cluster.delete("b")
    result = update(cluster, catalog)
    assert (result.version, result.changed, result.deleted) == (2, True, 1)
    cluster.fail_over(next(vb for vb, high in cluster.high_seqnos().items() if high))
    result = update(cluster, catalog)
    assert (result.version, result.changed, result.rewritten) == (3, True, False)
    assert not update(cluster, catalog).changed
    assert files(catalog.load_table(NAME)) == before


def test_columns_that_are_new_or_wider(cluster: LocalCluster, catalog: Catalog) -> None:
    cluster.upsert("a", {"n": 1, "o": {"x": 1}})
    make(cluster, catalog)
    fields = {each.name: each.field_id for each in catalog.load_table(NAME).schema().fields}
    cluster.upsert("b", {"n": 2, "more": ["x"]})
    assert not update(cluster, catalog).rewritten
    assert table_rows(catalog) == {"a": {"n": 1, "o": {"x": 1}}, "b": {"n": 2, "more": ["x"]}}
    cluster.upsert("c", {"n": 0.5, "o": {"y": 2}})
    assert update(cluster, catalog).rewritten
    wanted = {
        "a": {"n": 1.0, "o": {"x": 1, "y": None}},
        "b": {"n": 2.0, "more": ["x"]},
        "c": {"n": 0.5, "o": {"x": None, "y": 2}},
    }
    assert table_rows(catalog) == wanted
    assert bucket_rows(cluster) == wanted
    # Columns that stay as they were are the same ones.
    now = {each.name: each.field_id for each in catalog.load_table(NAME).schema().fields}
    changed = {name for name in fields if now[name] != fields[name]}
    assert changed == {"n", "o"}
    # What older snapshots were is still what they are.
    earlier = by_pyiceberg(catalog.load_table(NAME), numbers(catalog)[1])
    assert rows(earlier) == {"a": {"n": 1, "o": {"x": 1}}}


def test_a_file_that_nothing_changed_in_stays(
    cluster: LocalCluster, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(10):
        cluster.upsert(f"key-{number}", {"n": number})
    make(cluster, catalog)
    before = files(catalog.load_table(NAME))
    cluster.upsert("more", {"n": 1})
    update(cluster, catalog)
    after = files(catalog.load_table(NAME))
    assert before.items() < after.items()
    assert sorted(after.values()) == [1, 10]
    cluster.delete("key-1")
    cluster.upsert("key-2", {"n": 100})
    update(cluster, catalog)
    last = files(catalog.load_table(NAME))
    assert last.keys() & after.keys() == after.keys() - before.keys()
    assert sorted(last.values()) == [1, 9]
    assert table_rows(catalog) == bucket_rows(cluster)
    # Many files are as good as one.
    monkeypatch.setattr("cbframe.contrib.iceberg._FILE_BYTES", 1)
    monkeypatch.setattr("cbframe.scan.parquet._ROW_GROUP_ROWS", 1)
    cluster.upsert("key-3", {"n": "text"})
    assert update(cluster, catalog).rewritten
    assert len(files(catalog.load_table(NAME))) == 3
    assert table_rows(catalog) == bucket_rows(cluster)


def test_a_rolled_back_change_of_a_key_that_is_no_text(catalog: Catalog) -> None:
    with LocalCluster(nodes=1, vbuckets=1, seed=3) as cluster:
        cluster.upsert(b"\xff", {"n": 1})
        cluster.upsert("other", {"n": 1})
        make(cluster, catalog, parse=False)
        cluster.upsert(b"\xff", {"n": 2})
        cluster.upsert("other", {"n": 2})
        update(cluster, catalog)
        cluster.fail_over(0, lose=2)
        cluster.upsert(b"\xff", {"n": 3})
        result = update(cluster, catalog)
        assert (result.rolled_back, result.read_again, result.retracted) == ({0: 2}, {0: 2}, 2)
        assert held(catalog) == truth(cluster)


def test_expired_documents_and_records(cluster: LocalCluster, catalog: Catalog) -> None:
    cluster.upsert("a", {"n": 1}, expiry=1_700_000_000)
    cluster.upsert("_txn:client-record", {"records": {}})
    result = make(cluster, catalog)
    assert (result.upserted, result.transaction_records) == (1, 1)
    assert table_rows(catalog) == {"a": {"n": 1}}
    # It goes when the server removes it.
    cluster.expire_due()
    assert update(cluster, catalog).deleted == 1
    assert table_rows(catalog) == {}
    with pytest.raises(ConfigurationError, match="was made with transaction_records='drop'"):
        update(cluster, catalog, transaction_records="keep")


def test_a_table_that_others_compacted(cluster: LocalCluster, catalog: Catalog) -> None:
    """Their files have other names for the same fields."""
    documents = {
        "a": {"1": 1, "a b": {"c d": [{"e f": 1}, None]}, "s": "x"},
        "b": {"1": None, "a b": {"c d": []}},
        "c": {"1": 3},
    }
    for key, document in documents.items():
        cluster.upsert(key, document)
    make(cluster, catalog)
    cluster.upsert("d", {"s": "y"})
    update(cluster, catalog)
    wanted = table_rows(catalog)
    compact(catalog)
    cluster.upsert("c", {"1": 4})
    assert not update(cluster, catalog).rewritten
    wanted["c"] = {"1": 4}
    assert table_rows(catalog) == wanted
    # pyiceberg, which compacted here, made an empty list of the null one.
    assert bucket_rows(cluster).keys() == wanted.keys()


def test_what_was_committed_may_be_expired(
    cluster: LocalCluster, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.upsert("a", {"n": 1})
    number = make(cluster, catalog).snapshot_id
    compact(catalog)
    cluster.upsert("b", {"n": 2})
    original = Table.snapshot_by_id
    with monkeypatch.context() as patched:
        # As Spark leaves it; pyiceberg takes the number away.
        patched.setattr(
            Table, "snapshot_by_id", lambda self, at: None if at == number else original(self, at)
        )
        assert update(cluster, catalog).upserted == 1
    assert table_rows(catalog) == {"a": {"n": 1}, "b": {"n": 2}}
    compact(catalog)
    expire(catalog)
    refused(catalog, lambda: update(cluster, catalog), "were expired", 'mode="overwrite"')


def test_overwrite_begins_anew(cluster: LocalCluster, catalog: Catalog) -> None:
    cluster.upsert("a", {"n": 1})
    make(cluster, catalog)
    cluster.upsert("a", {"n": "text", "big": (1 << 64) - 1})
    result = make(cluster, catalog, mode="overwrite", columns=["n", "big"])
    assert result.version == 2
    assert table_rows(catalog) == {"a": {"n": "text", "big": Decimal((1 << 64) - 1)}}
    cluster.upsert("b", {"n": "x"})
    update(cluster, catalog)
    # Nothing before is gone back to.
    vbucket = max(cluster.high_seqnos(), key=cluster.high_seqnos().__getitem__)
    cluster.fail_over(vbucket, lose=1)
    update(cluster, catalog)
    assert {key.encode() for key in table_rows(catalog)} == truth(cluster).keys()


def test_overwrite_of_any_table(cluster: LocalCluster, catalog: Catalog) -> None:
    other = catalog.create_table(NAME, pa.schema([("a", pa.int64()), ("_cb_key", pa.int64())]))
    other.append(pa.table({"a": [1], "_cb_key": [1]}))
    cluster.upsert("a", {"u": 1})
    make(cluster, catalog, mode="overwrite")
    assert table_rows(catalog) == {"a": {"u": 1}}
    cluster.upsert("b", {"u": 2})
    update(cluster, catalog)
    assert table_rows(catalog) == {"a": {"u": 1}, "b": {"u": 2}}


def test_conflicts_between_updates_are_refused_where_that_was_asked_for(
    cluster: LocalCluster, catalog: Catalog
) -> None:
    cluster.upsert("a", {"n": 1})
    make(cluster, catalog, on_conflict="raise")
    cluster.upsert("b", {"n": "text"})
    with pytest.raises(ConversionError, match="values of 'n' have no common type: it was int64"):
        update(cluster, catalog)
    assert table_rows(catalog) == {"a": {"n": 1}}


# --- catalogues, and the surface


def test_a_catalogue_by_its_properties(cluster: LocalCluster, catalog: Catalog, tmp_path: Path) -> None:
    properties = {"name": "default", **properties_of(tmp_path / "lake")}
    cluster.upsert("a", {"n": 1})
    to_iceberg(cluster, ("lake", "travel"), catalog=properties)
    assert table_rows(catalog) == {"a": {"n": 1}}
    cluster.upsert("a", {"n": 2})
    assert update_iceberg(cluster, NAME, catalog=properties).identifier == NAME
    assert table_rows(catalog) == {"a": {"n": 2}}


def test_a_catalogue_by_its_name(
    cluster: LocalCluster, catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def load(name: str) -> Catalog:
        asked.append(name)
        return catalog

    monkeypatch.setattr("pyiceberg.catalog.load_catalog", load)
    monkeypatch.setattr(catalog, "close", lambda: asked.append("closed"))
    make(cluster, "production")
    assert asked == ["production", "closed"]


@pytest.mark.parametrize("catalog", [{"uri": "nothing://secret"}, {"type": "secret"}, 5, "no such"])
def test_no_catalogue(cluster: LocalCluster, catalog: Any) -> None:
    verb = "names" if isinstance(catalog, str) else "is"
    with pytest.raises(ConfigurationError, match=f"catalog= {verb} no catalogue of pyiceberg") as error:
        make(cluster, catalog)
    assert "secret" not in str(error.value)


def test_an_old_pyarrow(cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """As beside a pyiceberg that was installed without the extra: its writer lacks an option."""
    monkeypatch.setattr(pa, "__version__", "16.1.0")
    with pytest.raises(DependencyError, match="pyarrow is older than 17"):
        make(cluster, {})


def test_no_namespace(cluster: LocalCluster, catalog: Catalog) -> None:
    with pytest.raises(SnapshotError, match=r"cannot write the Iceberg table \(Namespace sea") as error:
        to_iceberg(cluster, "sea.travel", catalog=catalog)
    assert "create_namespace" in (error.value.hint or "")
    for name in (5, "", "travel", ".travel", "sea. ", ("travel",), ("sea", 5)):
        with pytest.raises(ConfigurationError, match="identifier= names no table of a namespace"):
            to_iceberg(cluster, name, catalog=catalog)  # type: ignore[arg-type]


def test_the_surface() -> None:
    """It is that of Delta tables."""
    assert sorted(cbframe.contrib.iceberg.__all__) == ["IcebergResult", "to_iceberg", "update_iceberg"]
    ours, theirs = (inspect.signature(function).parameters for function in (to_iceberg, to_delta))
    assert ours.keys() - {"identifier", "catalog"} == theirs.keys() - {"uri", "storage_options"}
    assert inspect.signature(update_iceberg).parameters.keys() == ours.keys() - {"mode", "table_per"}
    assert cbframe.contrib.iceberg.__doc__


def test_nothing_is_loaded_before_it_is_needed() -> None:
    script = "import sys, cbframe.contrib.iceberg; sys.exit('pyiceberg' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_pyiceberg_is_not_installed(
    cluster: LocalCluster, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "pyiceberg"]:
        monkeypatch.setitem(sys.modules, name, None)
    for function in (to_iceberg, update_iceberg):
        with pytest.raises(DependencyError, match="pyiceberg is not installed") as error:
            function(cluster, NAME, catalog=catalog)
        assert "cbframe[iceberg]" in (error.value.hint or "")


# --- refused


def refused(catalog: Catalog, work: Callable[[], IcebergResult], match: str, hint: str) -> None:
    before = catalog.load_table(NAME).metadata
    with pytest.raises(SnapshotError, match=match) as error:
        work()
    assert hint in (error.value.hint or "")
    assert NAME in str(error.value)
    assert catalog.load_table(NAME).metadata == before


def test_a_table_that_is_there(cluster: LocalCluster, catalog: Catalog) -> None:
    make(cluster, catalog)
    refused(catalog, lambda: make(cluster, catalog), "there is an Iceberg table already", "update_iceberg()")
    with pytest.raises(ConfigurationError, match="mode='update'"):
        make(cluster, catalog, mode="update")


def test_no_table(cluster: LocalCluster, catalog: Catalog) -> None:
    with pytest.raises(SnapshotError, match="there is no Iceberg table") as error:
        update(cluster, catalog)
    assert "to_iceberg()" in (error.value.hint or "")
    assert not catalog.table_exists(NAME)


@pytest.mark.parametrize("name", ["cbframe.positions", "cbframe.snapshot-id"])
def test_a_property_that_someone_removed(cluster: LocalCluster, catalog: Catalog, name: str) -> None:
    cluster.upsert("a", {"n": 1})
    make(cluster, catalog)
    with catalog.load_table(NAME).transaction() as work:
        work.remove_properties(name)
    refused(catalog, lambda: update(cluster, catalog), "does not tell how far", 'mode="overwrite"')


@pytest.mark.parametrize("some", [False, True])
def test_a_table_of_someone_else(cluster: LocalCluster, catalog: Catalog, some: bool) -> None:
    other = catalog.create_table(NAME, pa.schema([("_cb_key", pa.string())]))
    if some:
        other.append(pa.table({"_cb_key": ["a"]}))
    refused(catalog, lambda: update(cluster, catalog), "does not tell how far", 'mode="overwrite"')


@pytest.mark.parametrize("how", ["append", "delete"])
def test_a_table_that_someone_changed(cluster: LocalCluster, catalog: Catalog, how: str) -> None:
    cluster.upsert("a", {"n": 1})
    make(cluster, catalog)
    table = catalog.load_table(NAME)
    if how == "append":
        table.append(table.scan().to_arrow())
    else:
        table.delete("n == 1")
    refused(catalog, lambda: update(cluster, catalog), "changed by someone else", 'mode="overwrite"')


def test_a_table_that_was_rolled_back(cluster: LocalCluster, catalog: Catalog) -> None:
    cluster.upsert("a", {"n": 1})
    make(cluster, catalog)
    cluster.upsert("b", {"n": 2})
    update(cluster, catalog)
    catalog.load_table(NAME).manage_snapshots().rollback_to_snapshot(numbers(catalog)[1]).commit()
    refused(catalog, lambda: update(cluster, catalog), "was rolled back", 'mode="overwrite"')
    make(cluster, catalog, mode="overwrite")
    assert len(table_rows(catalog)) == 2
    assert not update(cluster, catalog).changed


def test_positions_that_are_damaged(cluster: LocalCluster, catalog: Catalog) -> None:
    make(cluster, catalog)
    for packed in ("no base 64", "eA=="):
        work = catalog.load_table(NAME).transaction()
        work.set_properties({"cbframe.positions": packed}).commit_transaction()
        with pytest.raises(SnapshotError, match="damaged"):
            update(cluster, catalog)


def test_other_options(cluster: LocalCluster, catalog: Catalog) -> None:
    make(cluster, catalog, columns=["n"])
    assert not update(cluster, catalog, columns=["n"]).changed
    with pytest.raises(ConfigurationError, match=r"the table was made with columns=\['n'\]") as error:
        update(cluster, catalog, columns=["m"])
    assert "to_iceberg" in (error.value.hint or "")
    with pytest.raises(TypeError, match="unexpected keyword argument 'colums'"):
        update(cluster, catalog, colums=["n"])


# --- two writers, and ends on the way


@pytest.mark.parametrize("first", ["merge", "rewrite", "note"])
@pytest.mark.parametrize("second", ["merge", "rewrite", "note"])
@pytest.mark.parametrize("fenced", [True, False])
def test_two_writers(
    cluster: LocalCluster,
    catalog: Catalog,
    first: str,
    second: str,
    fenced: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The one that commits later has read the same changes: it must not write them again."""
    for number in range(20):
        cluster.upsert(f"key-{number}", {"n": number})
    make(cluster, catalog)
    if not fenced:
        # Someone has removed what keeps pyiceberg from applying a commit to what another one has made.
        name = "commit.retry.num-retries"
        catalog.load_table(NAME).transaction().remove_properties(name).commit_transaction()

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
        update(cluster, catalog)
        return original(self, *arguments)

    monkeypatch.setattr(Mirror, "_write", meanwhile)
    with pytest.raises(SnapshotError, match="another writer"):
        update(cluster, catalog)
    update(cluster, catalog)
    assert {key.encode() for key in table_rows(catalog)} == truth(cluster).keys()
    assert not update(cluster, catalog).changed


def test_the_other_writer_commits_at_the_last_moment(
    cluster: LocalCluster, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.upsert("a", {"n": 1})
    make(cluster, catalog)
    cluster.upsert("b", {"n": 2})
    original = Iceberg._commit

    def meanwhile(self: Iceberg, *arguments: Any) -> None:
        monkeypatch.setattr(Iceberg, "_commit", original)
        update(cluster, catalog)
        original(self, *arguments)

    monkeypatch.setattr(Iceberg, "_commit", meanwhile)
    with pytest.raises(SnapshotError, match="another writer"):
        update(cluster, catalog)
    assert table_rows(catalog) == {"a": {"n": 1}, "b": {"n": 2}}
    assert not update(cluster, catalog).changed


def test_two_first_copies(cluster: LocalCluster, catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster.upsert("a", {"n": 1})
    original = Mirror._write

    def meanwhile(self: Mirror, *arguments: Any) -> Any:
        monkeypatch.setattr(Mirror, "_write", original)
        make(cluster, catalog)
        return original(self, *arguments)

    monkeypatch.setattr(Mirror, "_write", meanwhile)
    with pytest.raises(SnapshotError, match="another writer"):
        make(cluster, catalog)
    assert table_rows(catalog) == {"a": {"n": 1}}
    assert not update(cluster, catalog).changed


@pytest.mark.parametrize(
    "place", ["cbframe.contrib.stored_rows.widen", "pyiceberg.io.pyarrow.parquet_file_to_data_file"]
)
def test_a_write_that_fails_leaves_the_table(
    cluster: LocalCluster, catalog: Catalog, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    cluster.upsert("a", {"n": 1})
    make(cluster, catalog)
    cluster.upsert("b", {"n": np.pi})

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("on the way")

    before = catalog.load_table(NAME).metadata
    with monkeypatch.context() as patched:
        patched.setattr(place, fail)
        with pytest.raises(RuntimeError, match="on the way"):
            update(cluster, catalog)
    assert catalog.load_table(NAME).metadata == before
    update(cluster, catalog)
    assert table_rows(catalog) == {"a": {"n": 1.0}, "b": {"n": np.pi}}


def test_a_file_system_that_fails(
    cluster: LocalCluster, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.upsert("a", {"n": 1})
    make(cluster, catalog)
    cluster.upsert("a", {"n": 2})
    (path,) = files(catalog.load_table(NAME))
    Path(path).rename(f"{path}.away")
    with pytest.raises(SnapshotError, match="cannot read the Iceberg table") as error:
        update(cluster, catalog)
    assert NAME in str(error.value)
    Path(f"{path}.away").rename(path)
    update(cluster, catalog)
    assert table_rows(catalog) == {"a": {"n": 2}}
