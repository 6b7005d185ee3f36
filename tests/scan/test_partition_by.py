"""Folders that are named by values: whole or not at all, and read back as they were, by all who know Hive."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import duckdb
import fsspec
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest

from cbframe import ConfigurationError, ConversionError, LocalCluster, scan_bucket
from cbframe.scan import parquet
from cbframe.scan.parquet import write_folders

from .kit import QUICK

NULL = "__HIVE_DEFAULT_PARTITION__"
KINDS = ["hotel", "a/b", "é ü", "", "100%", "007", "x=y", "a+b", "..", "A", "null", None]


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(2, vbuckets=8) as cluster:
        for n in range(60):
            kind = KINDS[n % len(KINDS)]
            cluster.upsert(f"k{n}", {"n": n, **({} if kind is None else {"kind": kind}), "even": n % 2 == 0})
        cluster.create_scope("shop")
        cluster.create_collection("shop", "orders")
        for n in range(10):
            cluster.upsert(f"o{n}", {"n": n, "kind": "order", "even": None}, collection="shop.orders")
        yield cluster


def expected(cluster: LocalCluster, column: str = "kind") -> list[tuple[str, Any]]:
    table = scan_bucket(cluster, options=QUICK).to_arrow()
    return sorted(zip(table["_cb_key"].to_pylist(), table[column].to_pylist(), strict=True))


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def with_pyarrow(folder: Path, kind: pa.DataType) -> list[tuple[str, Any]]:
    partitioning = pads.partitioning(pa.schema([("kind", kind)]), flavor="hive")
    table = pads.dataset(folder, partitioning=partitioning).to_table()
    return list(zip(table["_cb_key"].to_pylist(), table["kind"].to_pylist(), strict=True))


def with_pandas(folder: Path, kind: pa.DataType) -> list[tuple[str, Any]]:
    partitioning = pads.partitioning(pa.schema([("kind", kind)]), flavor="hive")
    frame = pd.read_parquet(folder, partitioning=partitioning, dtype_backend="pyarrow")
    kinds = [None if pd.isna(each) else each for each in frame["kind"]]
    return list(zip(frame["_cb_key"], kinds, strict=True))


def with_polars(folder: Path, _: pa.DataType) -> list[tuple[str, Any]]:
    return pl.read_parquet(folder / "**/*.parquet", hive_partitioning=True).select("_cb_key", "kind").rows()


def with_duckdb(folder: Path, _: pa.DataType) -> list[tuple[str, Any]]:
    files = f"read_parquet('{folder}/**/*.parquet', hive_partitioning=true)"
    return duckdb.sql(f"select _cb_key, kind from {files}").fetchall()


@pytest.fixture(scope="module", params=[None, 2], ids=["alone", "workers"])
def by_kind(cluster: LocalCluster, tmp_path_factory: pytest.TempPathFactory, request: Any) -> Path:
    scan = scan_bucket(cluster, options=QUICK)
    place = tmp_path_factory.mktemp("place")
    assert scan.to_parquet(place / "by", partition_by="kind", workers=request.param) == place / "by"
    assert scan.last is not None
    assert scan.last.documents == 70
    assert [path.name for path in place.iterdir()] == ["by"]
    return place / "by"


@pytest.mark.parametrize("read", [with_pyarrow, with_pandas, with_polars, with_duckdb])
def test_others_read_it_as_it_was(cluster: LocalCluster, by_kind: Path, read: Any) -> None:
    found, wanted = sorted(read(by_kind, pa.string()), key=lambda row: row[0]), expected(cluster)
    library = {with_polars: pl, with_duckdb: duckdb}.get(read)
    if library is not None and int(library.__version__.partition(".")[0]) < 2:
        # Earlier releases take other texts for null, or not this one.
        absent = {"": None, "null": None, NULL: None}
        found, wanted = ([(key, absent.get(kind, kind)) for key, kind in rows] for rows in (found, wanted))
    assert found == wanted
    schema = pq.read_schema(next(by_kind.rglob("*.parquet")))
    assert schema.names == ["_cb_key", "_cb_scope", "_cb_collection", "n", "even"]


def test_the_folders(cluster: LocalCluster, tmp_path: Path) -> None:
    scan_bucket(cluster, options=QUICK).to_parquet(tmp_path / "by", partition_by=["_cb_scope", "even"])
    assert files(tmp_path / "by") == [
        "cb_scope=_default/even=false/part-00000-0.parquet",
        "cb_scope=_default/even=true/part-00000-0.parquet",
        f"cb_scope=shop/even={NULL}/part-00000-0.parquet",
    ]
    # Without nulls pandas needs not be told anything.
    names = ["_cb_scope", "_cb_collection"]
    scan_bucket(cluster, options=QUICK).to_parquet(tmp_path / "plain", partition_by=names)
    frame = pd.read_parquet(tmp_path / "plain", filters=[("cb_scope", "==", "shop")])
    assert sorted(frame["_cb_key"]) == [f"o{n}" for n in range(10)]
    assert set(frame["cb_collection"]) == {"orders"}


def test_metadata_need_not_be_asked_for(cluster: LocalCluster, tmp_path: Path) -> None:
    scan = scan_bucket(cluster, options=QUICK, keys_only=True, scope="_default")
    scan.to_parquet(tmp_path / "by", partition_by=["_cb_collection", "_cb_vbucket"])
    found = files(tmp_path / "by")
    assert [name.partition("/part")[0] for name in found] == [
        f"cb_collection=_default/cb_vbucket={vb}" for vb in range(8)
    ]
    table = pq.read_table(tmp_path / "by")
    assert table.column_names == ["_cb_key", "_cb_scope", "cb_collection", "cb_vbucket"]
    assert len(table) == 60


def test_days_and_integers(tmp_path: Path) -> None:
    days = [date(2024, 2, 29), None, date(1, 1, 1)]
    table = pa.table(
        {
            "x": [1, 2, 3],
            "day": pa.array(days, pa.date32()),
            "big": pa.array([2**64 - 1, 0, None], pa.uint64()),
            "small": pa.array([-128, None, 127], pa.int8()),
        }
    )
    assert write_folders(table.to_reader(), tmp_path, "zstd", ["day", "big", "small"]) == 3
    assert files(tmp_path) == sorted(
        [
            "day=2024-02-29/big=18446744073709551615/small=-128/part-00000-0.parquet",
            f"day={NULL}/big=0/small={NULL}/part-00000-0.parquet",
            f"day=0001-01-01/big={NULL}/small=127/part-00000-0.parquet",
        ]
    )
    schema = pa.schema([table.schema.field(name) for name in ("day", "big", "small")])
    read = pads.dataset(tmp_path, partitioning=pads.partitioning(schema, flavor="hive")).to_table()
    assert read.sort_by("x").to_pylist() == table.to_pylist()


def reader_of(table: pa.Table, size: int) -> pa.RecordBatchReader:
    return pa.RecordBatchReader.from_batches(table.schema, table.to_batches(max_chunksize=size))


@pytest.mark.parametrize(("pending", "opened"), [(0, 1), (0, 3), (2000, 2), (1 << 30, 64)])
def test_few_files_are_open_and_little_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pending: int, opened: int
) -> None:
    """Whatever is written when, and closed in between, all rows are there once, in their order by folder."""
    monkeypatch.setattr(parquet, "_PENDING_BYTES", pending)
    monkeypatch.setattr(parquet, "_OPEN_FILES", opened)
    monkeypatch.setattr(parquet, "_ROW_GROUP_ROWS", 10)
    most = 0
    write = parquet._Folders._write

    def spy(self: parquet._Folders, place: str) -> None:
        nonlocal most
        write(self, place)
        most = max(most, len(self._files))
        assert pending == 0 or self._sizes.total() <= pending + 10_000

    monkeypatch.setattr(parquet._Folders, "_write", spy)
    table = pa.table({"x": range(500), "kind": [f"v{x * x % 7}" for x in range(500)]})
    assert write_folders(reader_of(table, 3), tmp_path, "snappy", ["kind"]) == 500
    assert most == min(opened, 4)
    for folder in tmp_path.iterdir():
        parts = sorted(folder.iterdir(), key=lambda path: int(path.stem.rpartition("-")[2]))
        rows = [x for path in parts for x in pq.ParquetFile(path).read()["x"].to_pylist()]
        assert rows == [x for x in range(500) if f"kind=v{x * x % 7}" == folder.name]
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".parquet"]


@pytest.mark.parametrize(
    ("by", "words"),
    [
        ("nothing", "names 'nothing', a column of which no folders can be named: type none"),
        ("f", "type double"),
        ("list", "type list"),
        ("raw", "type binary"),
        ("when", "type timestamp"),
        ("a b", "names 'a b'"),
        ("_", "names '_'"),
        ("_x", "names '_x'"),
        (["x", "_x"], "partition_by= names 'x'"),
    ],
)
def test_columns_that_cannot_name_folders(tmp_path: Path, by: Any, words: str) -> None:
    table = pa.table(
        {
            "x": [1],
            "_x": [1],
            "_": [1],
            "f": [1.5],
            "list": [[1]],
            "raw": [b"x"],
            "when": pa.array([1], pa.timestamp("us")),
            "a b": [1],
        }
    )
    with pytest.raises(ConfigurationError, match=words):
        write_folders(table.to_reader(), tmp_path, "zstd", [by] if isinstance(by, str) else by)
    assert not list(tmp_path.iterdir())


def test_some_column_is_left(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="partition_by= names 'x'"):
        write_folders(pa.table({"x": [1]}).to_reader(), tmp_path, "zstd", ["x"])


@pytest.mark.parametrize("value", ["x" * 300, NULL])
def test_values_that_cannot_name_folders(tmp_path: Path, value: str) -> None:
    with pytest.raises(
        ConversionError, match="'kind', which has a value that cannot name a folder"
    ) as caught:
        write_folders(pa.table({"kind": [value], "n": [1]}).to_reader(), tmp_path, "zstd", ["kind"])
    assert value not in str(caught.value)


def test_it_appears_whole_or_not_at_all(
    cluster: LocalCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan = scan_bucket(cluster, options=QUICK)
    monkeypatch.setattr(parquet, "_MOST_FOLDERS", 5)
    monkeypatch.setattr(parquet, "_PENDING_BYTES", 0)
    with pytest.raises(ConversionError, match="more than 5 folders"):
        scan.to_parquet(tmp_path / "by", partition_by="kind")
    for workers in (None, 1):
        with pytest.raises(ConfigurationError, match="'nothing'"):
            scan.to_parquet(tmp_path / "by", partition_by="nothing", workers=workers)
    assert not list(tmp_path.iterdir())
    monkeypatch.undo()
    (tmp_path / "by").mkdir()
    (tmp_path / "by" / "mine").write_bytes(b"x")
    with pytest.raises(ConfigurationError, match="there is something"):
        scan.to_parquet(tmp_path / "by", partition_by="kind")
    assert files(tmp_path) == ["by/mine"]
    scan.to_parquet(tmp_path / "by", partition_by="kind", overwrite=True)
    assert "by/mine" not in files(tmp_path)
    for wrong in (5, [5], b"x"):
        with pytest.raises(ConfigurationError, match="partition_by="):
            scan.to_parquet(tmp_path / "other", partition_by=wrong)  # type: ignore[arg-type]


def test_an_object_store(cluster: LocalCluster) -> None:
    memory = fsspec.filesystem("memory")
    try:
        scan_bucket(cluster, options=QUICK).to_parquet("memory://bucket/by", partition_by="kind")
        found = pafs.PyFileSystem(pafs.FSSpecHandler(memory))
        partitioning = pads.partitioning(pa.schema([("kind", pa.string())]), flavor="hive")
        table = pads.dataset("/bucket/by", filesystem=found, partitioning=partitioning).to_table()
        rows = zip(table["_cb_key"].to_pylist(), table["kind"].to_pylist(), strict=True)
        assert sorted(rows, key=lambda row: row[0]) == expected(cluster)
    finally:
        memory.rm("/", recursive=True)


def test_without_documents_there_are_no_folders(tmp_path: Path) -> None:
    with LocalCluster(1, vbuckets=4) as cluster:
        scan = scan_bucket(cluster, options=QUICK)
        scan.to_parquet(tmp_path / "by", partition_by="_cb_vbucket")
    assert list((tmp_path / "by").iterdir()) == []
    assert scan.last is not None
    assert scan.last.documents == 0
