"""Reading: columns, filters, versions and times, other tools, and that little is read for little."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest
from scan.kit import QUICK

import cbframe
from cbframe import ConfigurationError, LocalCluster, Snapshot, SnapshotError, read_snapshot, write_snapshot

from .conftest import Calendar


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LocalCluster, Path]]:
    """A bucket, and a snapshot of three versions of it, a day apart each."""
    path = tmp_path_factory.mktemp("read") / "snapshot"
    calendar = Calendar()
    with LocalCluster(nodes=2, vbuckets=16, seed=2) as cluster:
        for n in range(500):
            geo = {"lat": n / 7, "lon": -n, "none": {}}
            cluster.upsert(f"key-{n:04d}", {"n": n, "type": "ab"[n % 2], "geo": geo, "tags": [n]})
        write_snapshot(cluster, path, options=QUICK, clock=calendar, file_bytes=20_000)
        calendar.go_on(days=1)
        for n in range(50):
            cluster.upsert(f"key-{n:04d}", {"n": -n, "type": "c", "big": 1 << 63})
        write_snapshot(cluster, path, options=QUICK, clock=calendar)
        calendar.go_on(days=1)
        for n in range(50, 100):
            cluster.delete(f"key-{n:04d}")
        cluster.upsert("odd", b"\x00")
        write_snapshot(cluster, path, options=QUICK, clock=calendar)
        yield cluster, path


@pytest.fixture
def path(made: tuple[LocalCluster, Path]) -> Path:
    return made[1]


def test_as_the_bucket(made: tuple[LocalCluster, Path]) -> None:
    cluster, path = made
    read = cbframe.read_bucket(cluster, options=QUICK).sort_index()
    kept = read_snapshot(path).sort_index()
    assert kept[read.columns].equals(read)
    about = kept.attrs["cbframe"]
    assert (about["bucket"], about["version"]) == ("default", 3)
    assert about["as_of"] == read.attrs["cbframe"]["as_of"] == Snapshot(path).as_of


@pytest.mark.parametrize(
    ("rows", "many"),
    [
        (500, [1, np.int64(1), date(2026, 1, 1), "2026-01-01T00:00:00Z", "2026-01-01T23:59:59"]),
        (500, ["2026-01-02T12:00:00+12:00"]),
        (451, [3, None, "2026-01-03", pd.Timestamp("2026-01-03")]),
    ],
)
def test_versions_and_times(rows: int, many: list[Any], path: Path) -> None:
    """As an argument and as ``schema_history()`` has them."""
    for as_of in many:
        assert len(read_snapshot(path, as_of=as_of, columns=["n"])) == rows, as_of


@pytest.mark.parametrize(
    ("as_of", "error", "message"),
    [
        (9, SnapshotError, "there is no version 9"),
        ("2025-12-31", ConfigurationError, "before the oldest version"),
        ("yesterday", ConfigurationError, "is no time"),
        (1.5, ConfigurationError, "as_of=1.5 is no time"),
        (True, ConfigurationError, "as_of=True is no time"),
    ],
)
def test_no_such_version(as_of: Any, error: type[Exception], message: str, path: Path) -> None:
    with pytest.raises(error, match=message):
        read_snapshot(path, as_of=as_of)


def test_a_time_of_which_the_version_is_gone(tmp_path: Path, calendar: Calendar) -> None:
    """The one before has a file that is still needed, and is not what was there at that time."""
    with LocalCluster(nodes=1, vbuckets=1, seed=1) as cluster:
        for n in range(3):
            cluster.upsert(f"key-{n}", {"n": n})
            write_snapshot(cluster, tmp_path, options=QUICK, clock=calendar)
            calendar.go_on(hours=1)
            if n == 1:
                cluster.fail_over(0, lose=1)
    assert len(read_snapshot(tmp_path, as_of="2026-01-01T01:30")) == 2
    assert Snapshot(tmp_path).vacuum() == ["manifest/00000002.json"]
    with pytest.raises(SnapshotError, match="is between versions 1 and 3; those in between were deleted"):
        read_snapshot(tmp_path, as_of="2026-01-01T01:30")
    for as_of in (1, "2026-01-01T00:00"):
        assert len(read_snapshot(tmp_path, as_of=as_of)) == 1
    with pytest.raises(SnapshotError, match="version 2, which is between 1 and 3, is damaged"):
        Snapshot(tmp_path).changes(1)


@pytest.mark.parametrize(
    ("filters", "wanted"),
    [
        ([("n", ">=", 490)], lambda n: n >= 490),
        ([("n", "<", 0)], lambda n: n < 0),
        ([("n", "==", 120)], lambda n: n == 120),
        ([("n", "in", [3, -3, 300])], lambda n: n in (-3, 300)),
        ([("n", "not in", [120]), ("n", ">", 115), ("n", "<", 125)], lambda n: 115 < n < 125 and n != 120),
        ([[("n", "==", 120)], [("type", "==", "c"), ("n", ">", -3)]], lambda n: n == 120 or -3 < n <= 0),
        ([("geo.lat", ">", 70.0)], lambda n: n / 7 > 70),
        ([("type", "==", "z")], lambda _: False),
    ],
)
def test_filters(filters: Any, wanted: Any, path: Path) -> None:
    every = read_snapshot(path, columns=["n"])["n"]
    found = read_snapshot(path, columns=["n"], filters=filters)["n"]
    assert sorted(found) == sorted(n for n in every.dropna() if wanted(n))


def test_filters_of_metadata(path: Path) -> None:
    rows = read_snapshot(path, metadata=("key", "vbucket", "cas"))
    some = read_snapshot(path, columns=["n"], filters=[("_cb_vbucket", "==", 3)])
    assert sorted(some.index) == sorted(rows.index[rows["_cb_vbucket"] == 3])
    assert list(some.columns) == ["n"]
    cas = int(rows["_cb_cas"].iloc[5])
    assert read_snapshot(path, filters=[("_cb_cas", "==", cas)]).index.to_list() == [rows.index[5]]


@pytest.mark.parametrize(
    ("documents", "filters"),
    [
        # One file has text, which becomes JSON text together with the other.
        (({"a": "x"}, {"a": {}}), [("a", "==", "x")]),
        # The one field is called in Parquet as the other one is.
        (({"a": {"b": 5}, "a.b": 1}, {}), [("a.b", "==", 5)]),
    ],
)
def test_filters_of_columns_that_look_alike(
    documents: Any, filters: Any, cluster: LocalCluster, tmp_path: Path
) -> None:
    for key, document in zip("ab", documents, strict=True):
        cluster.upsert(key, document)
        write_snapshot(cluster, tmp_path, options=QUICK)
    assert read_snapshot(tmp_path, filters=filters).index.to_list() == ["a"]
    Snapshot(tmp_path).compact()
    assert read_snapshot(tmp_path, filters=filters).index.to_list() == ["a"]


def test_filters_of_keys_that_are_no_text(cluster: LocalCluster, tmp_path: Path) -> None:
    for key in (b"a", b"b", b"c", b"\xff"):
        cluster.upsert(key, {})
    write_snapshot(cluster, tmp_path, options=QUICK)
    for filters, keys in (
        ([("_cb_key", "==", "a")], [b"a"]),
        ([("_cb_key", "in", ["a", "c", "d"])], [b"a", b"c"]),
        ([("_cb_key", ">", "b")], [b"c", b"\xff"]),
    ):
        assert sorted(read_snapshot(tmp_path, filters=filters, keys="binary").index) == keys


def test_inside_of_text(cluster: LocalCluster, tmp_path: Path) -> None:
    """Filters look into JSON text. Columns do not: nothing would be found, and nobody would know."""
    cluster.upsert("a", {"a": {"b": {"c": 1}}})
    cluster.upsert("b", {"a": {"b": 1}})
    write_snapshot(cluster, tmp_path, options=QUICK)
    assert read_snapshot(tmp_path, filters=[("a.b.c", "==", 1)]).index.to_list() == ["a"]
    with pytest.raises(ConfigurationError, match=r"names 'a\.b\.c', and 'a\.b' is JSON text"):
        read_snapshot(tmp_path, columns=["a.b.c"])


def test_beyond_the_thousandth_field(cluster: LocalCluster, tmp_path: Path) -> None:
    """What is a column of one file may be among the others' rest."""
    for n in range(1050):
        cluster.upsert(f"a{n}", {f"f{n}": n})
    cluster.upsert("every", {f"f{n}": 1 for n in range(1000)})  # these are the most frequent ones
    cluster.upsert("deep", {"deep": {"f1049": 0}})
    write_snapshot(cluster, tmp_path, options=QUICK)
    message = r"names 'f1049', and some fields are in _cb_rest"
    for wanted in ({"filters": [("f1049", ">=", 0)]}, {"columns": ["f1049"]}):
        with pytest.raises(ConfigurationError, match=message):
            read_snapshot(tmp_path, **wanted)
    cluster.upsert("b", {"f1049": -1})
    write_snapshot(cluster, tmp_path, options=QUICK)
    for wanted in ({"filters": [("f1049", "<", 2000)]}, {"columns": ["f1049"]}):
        with pytest.raises(ConfigurationError, match="'f1049' is a column of some files only"):
            read_snapshot(tmp_path, **wanted)
    # Inside of another field it is another one.
    cluster.delete("a1049")
    write_snapshot(cluster, tmp_path, options=QUICK)
    assert read_snapshot(tmp_path, filters=[("f1049", "<", 2000)]).index.tolist() == ["b"]
    assert read_snapshot(tmp_path, columns=["f1049"])["f1049"].dropna().tolist() == [-1]


def test_columns(path: Path) -> None:
    kept = read_snapshot(path, columns=["geo.lat", "type"], metadata=("key", "seqno"))
    assert list(kept.columns) == ["_cb_seqno", "geo.lat", "type"]
    assert kept.loc["key-0400", "geo.lat"] == 400 / 7
    flat = read_snapshot(path, nested="flatten")
    assert {"geo.lat", "geo.lon"} < set(flat.columns)
    with pytest.raises(ConfigurationError, match="which no document has"):
        read_snapshot(path, columns=["nothing"])
    for wanted, message in (
        ({"metadata": ("colour",)}, "metadata 'colour' does not exist"),
        ({"metadata": ("xattrs",)}, "no extended attributes"),
        ({"metadata": None}, "metadata=None is no list of names"),
        ({"metadata": [1]}, "metadata= has 1"),
        ({"columns": [1]}, "no name of a field"),
        ({"columns": "n"}, "names no columns"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            read_snapshot(path, **wanted)


def test_kinds_of_results(path: Path) -> None:
    arrow = read_snapshot(path, return_type="arrow")
    assert isinstance(arrow, pa.Table)
    assert read_snapshot(path, return_type="polars").equals(pl.from_arrow(arrow))
    assert read_snapshot(path, dtype_backend="numpy_nullable")["n"].dtype == pd.Int64Dtype()
    with pytest.raises(ConfigurationError, match="return_type='list'"):
        read_snapshot(path, return_type="list")
    snapshot = Snapshot(path)
    assert isinstance(snapshot.dataset(), pads.Dataset)
    assert snapshot.dataset().count_rows() == len(snapshot) == 451
    assert pl.DataFrame(snapshot).shape == (451, len(snapshot.schema))
    assert pa.table(snapshot).sort_by("_cb_key").equals(pa.table(arrow).sort_by("_cb_key"))
    batches = [*snapshot.to_reader(columns=["n"])]
    assert len(batches) > 1
    assert all(len(batch) for batch in batches)


def test_parts_that_cannot_match_are_not_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    original = pq.ParquetFile.read_row_group

    def spy(self: pq.ParquetFile, group: int, columns: Any = None, **named: Any) -> pa.Table:
        if "n" in columns:
            read.append(group)
        return original(self, group, columns=columns, **named)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", spy)
    assert len(read_snapshot(path, columns=["n"])) == 451
    every = len(read)
    read.clear()
    assert len(read_snapshot(path, columns=["n"], filters=[("n", "<", -10)])) == 39
    assert len(read) == 1 < every


def test_export(path: Path, tmp_path: Path) -> None:
    """A plain folder, which every tool reads alike, with no help."""
    folder = Snapshot(path).export(tmp_path / "plain")
    kept = read_snapshot(path, return_type="arrow")
    expected = kept.drop_columns(["geo", "big"]).sort_by("_cb_key").to_pylist()
    names = [name for name in kept.column_names if name not in ("geo", "big")]

    def rows(table: Any) -> list[dict[str, Any]]:
        return pa.table(table).select(names).sort_by("_cb_key").to_pylist()

    assert rows(pq.read_table(folder)) == expected
    assert rows(pa.Table.from_pandas(pd.read_parquet(folder, dtype_backend="pyarrow"))) == expected
    assert rows(pl.read_parquet(folder / "*.parquet").rechunk().to_arrow()) == expected
    assert rows(duckdb.sql(f"from '{folder}/*.parquet'").to_arrow_table()) == expected
    wanted = sorted(kept["big"].drop_null().to_pylist())
    assert wanted == [1 << 63] * 50
    assert sorted(pl.read_parquet(folder / "*.parquet")["big"].drop_nulls()) == wanted
    assert duckdb.sql(f"select distinct big from '{folder}/*.parquet' where big is not null").fetchall() == [
        (1 << 63,)
    ]
    lat = {row["_cb_key"]: row["geo"] and row["geo"]["lat"] for row in kept.to_pylist()}
    found = duckdb.sql(f"select _cb_key, geo.lat from '{folder}/*.parquet'").fetchall()
    assert dict(found) == lat
    with pytest.raises(SnapshotError, match="there is something already"):
        Snapshot(path).export(folder)
    assert not [each for each in tmp_path.iterdir() if each.name.startswith(".")]


@pytest.mark.parametrize(
    ("folder", "wanted", "error", "message"),
    [
        ("memory://plain", {}, ConfigurationError, "export\\(\\) writes a folder of this machine"),
        ("plain", {"compression": "zip"}, ConfigurationError, "compression='zip'"),
        ("file/plain", {}, SnapshotError, "cannot export the documents: Not a directory"),
    ],
)
def test_export_elsewhere(
    folder: str, wanted: Any, error: type[Exception], message: str, path: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("here")
    with pytest.raises(error, match=message):
        Snapshot(path).export(folder if "://" in folder else tmp_path / folder, **wanted)
    assert Snapshot(path).export((tmp_path / "a b").as_uri()) == tmp_path / "a b"


@pytest.mark.parametrize(
    "wanted", [{"compression": "zip"}, {"file_bytes": 0}, {"keep": 5}, {"keep": "5"}, {"keep": timedelta(-1)}]
)
def test_compaction_that_cannot_be_meant(wanted: Any, path: Path) -> None:
    with pytest.raises(ConfigurationError, match=f"{next(iter(wanted))}="):
        Snapshot(path).compact(**wanted)


def test_a_version_whose_files_are_gone(made: tuple[LocalCluster, Path], tmp_path: Path) -> None:
    cluster, _ = made
    path = tmp_path / "other"
    write_snapshot(cluster, path, options=QUICK)
    Snapshot(path).compact(keep=timedelta())
    assert [each.version for each in Snapshot(path).versions] == [1, 2]
    deleted = Snapshot(path).vacuum()
    assert any(name.startswith("data/00000001-") for name in deleted)
    assert [each.version for each in Snapshot(path).versions] == [2]
    with pytest.raises(SnapshotError, match="is gone") as caught:
        read_snapshot(path, as_of=1)
    assert "vacuum()" in str(caught.value)
    assert Snapshot(path).verify().ok
    for keep in (0, "1", True):
        with pytest.raises(ConfigurationError, match=f"keep={keep!r}"):
            Snapshot(path).vacuum(keep=keep)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="is no span of time"):
        Snapshot(path).compact(keep="a while")


def test_a_query_of_duckdb_is_of_the_newest_version(cluster: LocalCluster, tmp_path: Path) -> None:
    path = tmp_path / "snapshot"
    cluster.upsert("a", {"n": 1})
    write_snapshot(cluster, path, options=QUICK)
    snapshot = Snapshot(path)  # noqa: F841 - duckdb finds it by its name
    assert [str(kind) for kind in duckdb.sql("from snapshot").types] == ["VARCHAR", "BIGINT"]
    cluster.upsert("b", {"n": "one"})
    write_snapshot(cluster, path, options=QUICK)
    assert duckdb.sql("select n from snapshot order by n").fetchall() == [("1",), ("one",)]


def test_the_columns_of_a_frame(path: Path) -> None:
    frame = read_snapshot(path)
    assert list(read_snapshot(path, columns=frame.columns).columns) == list(frame.columns)
