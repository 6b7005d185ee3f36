"""Mirrors with a table for each collection: one position for all, whatever happens between two commits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake
from scan.conftest import nothing_left  # noqa: F401 - as above
from scan.kit import QUICK, truth
from worlds import either_version  # noqa: F401 - as above

from cbframe import ConfigurationError, LocalCluster, SnapshotError, scan_bucket
from cbframe.contrib.mirror import Mirror
from contrib.delta import kit as delta
from contrib.delta.conftest import _runtime  # noqa: F401 - a fixture that is used by itself
from contrib.iceberg import kit as iceberg


class Delta:
    def __init__(self, folder: Path) -> None:
        self.uri = str(folder / "travel")

    def make(self, cluster: LocalCluster, **arguments: Any) -> Any:
        return delta.make(cluster, self.uri, table_per="collection", **arguments)

    def update(self, cluster: LocalCluster) -> Any:
        return delta.update(cluster, self.uri)

    def tables(self) -> dict[str, pa.Table]:
        """By the name of the collection."""
        found = {}
        for path in Path(self.uri).parent.glob("travel__*"):
            name = path.name.removeprefix("travel__").replace("__", ".")
            found[name] = DeltaTable(path).to_pyarrow_table()
        return found

    def put(self, name: str) -> None:
        """A table of someone else."""
        write_deltalake(f"{self.uri}__{name}", pa.table({"a": [1]}))

    def told(self, table: pa.Table) -> Any:
        return delta.told(table)


class Iceberg:
    def __init__(self, folder: Path) -> None:
        self.catalog = iceberg.catalog_of(folder / "lake")

    def make(self, cluster: LocalCluster, **arguments: Any) -> Any:
        return iceberg.make(cluster, self.catalog, table_per="collection", **arguments)

    def update(self, cluster: LocalCluster) -> Any:
        return iceberg.update(cluster, self.catalog)

    def tables(self) -> dict[str, pa.Table]:
        names = [name for _, name in self.catalog.list_tables("lake") if name.startswith("travel__")]
        return {
            name.removeprefix("travel__").replace("__", "."): iceberg.by_polars(
                self.catalog.load_table(("lake", name))
            )
            for name in names
        }

    def put(self, name: str) -> None:
        self.catalog.create_table(f"lake.travel__{name}", pa.schema([("a", pa.int64())]))

    def told(self, table: pa.Table) -> Any:
        return iceberg.told(table)


@pytest.fixture(params=[Iceberg, Delta])
def tables(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    found = request.param(tmp_path)
    yield found
    if isinstance(found, Iceberg):
        found.catalog.close()


class Shop:
    """A bucket with collections, and their numbers."""

    def __init__(self, cluster: LocalCluster) -> None:
        self.cluster = cluster
        cluster.create_scope("s")
        self.ids = {"_default._default": 0}
        for name in ("one", "two"):
            self.create(name)
        for number in range(20):
            for name in self.ids:
                self.put(number, name)

    def create(self, name: str) -> None:
        self.ids[f"s.{name}"] = self.cluster.create_collection("s", name)

    def drop(self, name: str) -> None:
        self.cluster.drop_collection("s", name)
        del self.ids[f"s.{name}"]

    def put(self, number: int, name: str, value: Any = 0) -> None:
        self.cluster.upsert(f"key-{number}", {"n": value}, collection=self.ids[name])

    def lose(self, count: int) -> None:
        for vbucket, high in self.cluster.high_seqnos().items():
            self.cluster.fail_over(vbucket, lose=min(high, count))

    def check(self, tables: Any) -> None:
        """Each table is its collection, with all metadata; of collections that went, nothing is left."""
        found = tables.tables()
        assert found.keys() >= {name for name, cid in self.ids.items() if truth(self.cluster, cid)}
        for name, table in found.items():
            wanted = truth(self.cluster, self.ids[name]) if name in self.ids else {}
            assert tables.told(table) == wanted, name


@pytest.fixture
def shop() -> Iterator[Shop]:
    with LocalCluster(nodes=2, vbuckets=4, seed=1) as cluster:
        yield Shop(cluster)


def test_each_table_has_columns_of_its_own(shop: Shop, tables: Any) -> None:
    for number in range(20):
        shop.put(number, "s.one", f"text {number}")
        shop.cluster.upsert(f"key-{number}", {"n": number / 2, "more": [number]}, collection="s.two")
    shop.cluster.upsert("gone", {}, collection="s.one")
    shop.cluster.delete("gone", collection="s.one")
    result = tables.make(shop.cluster)
    assert (result.upserted, result.deleted, len(result.as_of)) == (60, 0, 4)
    shop.put(5, "s.one", "new")
    shop.cluster.delete("key-6", collection="s.two")
    result = tables.update(shop.cluster)
    assert (result.upserted, result.deleted, result.changed, result.rewritten) == (1, 1, True, False)
    for name, table in tables.tables().items():
        scan = scan_bucket(shop.cluster, collections=[name], options=QUICK)
        wanted = scan.to_arrow().replace_schema_metadata(None).sort_by("_cb_key")
        assert table.select(wanted.column_names).sort_by("_cb_key").to_pylist() == wanted.to_pylist()
        ours = {each for each in table.column_names if not each.startswith("_cb_")}
        assert ours == {each for each in wanted.column_names if not each.startswith("_cb_")}
    assert not tables.update(shop.cluster).changed
    # A value that has no common type with others makes text of one table.
    shop.cluster.upsert("key-7", {"n": "text"}, collection="s.two")
    assert tables.update(shop.cluster).rewritten
    types = {name: table.schema.field("n").type for name, table in tables.tables().items()}
    assert types == {"_default._default": pa.int64(), "s.one": types["s.one"], "s.two": types["s.one"]}


def test_collections_come_and_go(shop: Shop, tables: Any) -> None:
    tables.make(shop.cluster, parse=False)
    shop.check(tables)
    shop.drop("one")
    shop.create("three")
    shop.put(1, "s.three")
    tables.update(shop.cluster)
    shop.check(tables)
    assert len(tables.tables()) == 4
    shop.create("one")
    shop.create("nobody")
    shop.put(2, "s.one", 5)
    shop.drop("two")
    shop.create("two")
    shop.put(3, "s.two", 6)
    tables.update(shop.cluster)
    shop.check(tables)
    assert len(tables.tables()) == 4
    assert not tables.update(shop.cluster).changed


def test_a_failover_is_followed_in_all_tables(shop: Shop, tables: Any) -> None:
    tables.make(shop.cluster, parse=False)
    for number in range(20):
        shop.put(number, "s.one", number)
    tables.update(shop.cluster)
    shop.create("three")
    for number in range(10):
        shop.put(number, "s.three", number)
        shop.put(number, "s.two", number)
    shop.put(5, "s.one", "lost")
    tables.update(shop.cluster)
    shop.check(tables)
    # Back to where the third collection had no documents, and two had others.
    shop.lose(4)
    result = tables.update(shop.cluster)
    assert result.rolled_back
    assert any(result.read_again.values())
    shop.check(tables)
    shop.lose(100)
    shop.put(1, "s.two", "last")
    tables.update(shop.cluster)
    shop.check(tables)


@pytest.mark.parametrize(
    ("after", "lose"),
    [
        *((1, 3), (2, 0), (4, 3)),
        *(pytest.param(after, lose, marks=pytest.mark.slow) for after in range(5) for lose in (0, 2, 5)),
    ],
)
def test_a_process_that_ends_between_two_tables(
    shop: Shop, tables: Any, after: int, lose: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables.make(shop.cluster, parse=False)
    shop.put(1, "s.one", "before")
    tables.update(shop.cluster)
    shop.create("three")
    for number in range(15):
        for name in shop.ids:
            shop.put(number, name, "ahead")
    shop.cluster.delete("key-19", collection="s.one")
    written = 0
    original = Mirror._write

    def write(self: Mirror, *arguments: Any) -> Any:
        nonlocal written
        if written == after:
            raise RuntimeError("the end")
        written += 1
        found = original(self, *arguments)
        if written == after == 4:
            raise RuntimeError("the end")
        return found

    with monkeypatch.context() as patched:
        patched.setattr(Mirror, "_write", write)
        with pytest.raises(RuntimeError, match="the end"):
            tables.update(shop.cluster)
    # What one table got ahead of the others may be lost, or be of a collection that is gone.
    shop.lose(lose)
    shop.put(2, "s.two", "after")
    shop.cluster.delete("key-3", collection="s.one")
    tables.update(shop.cluster)
    shop.check(tables)
    shop.put(4, "s.one", "more")
    tables.update(shop.cluster)
    shop.check(tables)
    assert not tables.update(shop.cluster).changed


def test_the_table_of_one_collection_is_no_mirror(shop: Shop, tmp_path: Path) -> None:
    tables = Delta(tmp_path)
    shop.put(1, "s.one", "text")
    tables.make(shop.cluster)
    with pytest.raises(SnapshotError, match="is gone") as error:
        delta.update(shop.cluster, f"{tables.uri}__s__one")
    assert "__s__one is the table of one collection, update the mirror" in (error.value.hint or "")


def test_what_a_table_was_before_it_got_ahead_is_gone(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = Delta(tmp_path)
    tables.make(shop.cluster, parse=False)
    shop.put(1, "_default._default", "ahead")
    original = Mirror._write

    def write(self: Mirror, *arguments: Any) -> Any:
        original(self, *arguments)
        raise RuntimeError("the end")

    with monkeypatch.context() as patched:
        patched.setattr(Mirror, "_write", write)
        with pytest.raises(RuntimeError, match="the end"):
            tables.update(shop.cluster)
    table = DeltaTable(f"{tables.uri}___default___default")
    table.vacuum(retention_hours=0, enforce_retention_duration=False, dry_run=False)
    with pytest.raises(SnapshotError, match="version 1 of a table is needed") as error:
        tables.update(shop.cluster)
    assert 'mode="overwrite"' in (error.value.hint or "")
    tables.make(shop.cluster, parse=False, mode="overwrite")
    shop.check(tables)


def test_a_first_copy_that_ended(shop: Shop, tables: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("the end")

    with monkeypatch.context() as patched:
        patched.setattr("cbframe.snapshot.writer.warn_of_nothing", fail)
        with pytest.raises(RuntimeError, match="the end"):
            tables.make(shop.cluster, parse=False)
    with pytest.raises(SnapshotError, match="there is no"):
        tables.update(shop.cluster)
    with pytest.raises(SnapshotError, match=r"there is an? \w+ table already"):
        tables.make(shop.cluster, parse=False)
    shop.drop("two")
    tables.make(shop.cluster, parse=False, mode="overwrite")
    left = tables.tables()
    del left["s.two"]  # nobody knows of it
    assert {name: tables.told(table) for name, table in left.items()} == {
        name: truth(shop.cluster, cid) for name, cid in shop.ids.items()
    }


def test_what_is_refused(shop: Shop, tables: Any) -> None:
    with pytest.raises(ConfigurationError, match="table_per='scope'"):
        (iceberg if isinstance(tables, Iceberg) else delta).make(
            shop.cluster, getattr(tables, "catalog", None) or tables.uri, table_per="scope"
        )
    tables.make(shop.cluster, parse=False)
    tables.put("s__three")
    shop.create("three")
    shop.put(1, "s.three")
    with pytest.raises(SnapshotError, match="table already"):
        tables.update(shop.cluster)
    shop.drop("three")
    shop.cluster.create_scope("s__x")
    for scope, name in (("s__x", "y"), ("s", "x__y")):
        cid = shop.cluster.create_collection(scope, name)
        shop.cluster.upsert("a", {}, collection=cid)
    with pytest.raises(ConfigurationError, match="two collections would have one table"):
        tables.update(shop.cluster)


def test_fields_that_no_document_has(shop: Shop, tables: Any) -> None:
    with pytest.warns(UserWarning, match="columns= names 'nothing'"):
        tables.make(shop.cluster, columns=["n", "nothing"])
    assert tables.tables()["s.one"]["n"].to_pylist() == [0] * 20
