"""What an Iceberg table holds, told like what the cluster itself knows."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from pyiceberg.catalog import Catalog, load_catalog
from pyiceberg.io.pyarrow import _dataframe_to_data_files
from pyiceberg.table import Table
from pyiceberg.table.snapshots import Operation, Summary
from scan.kit import QUICK, Row, rows_of

from cbframe import LocalCluster
from cbframe.contrib.iceberg import Iceberg, IcebergResult, _packed, to_iceberg, update_iceberg

NAME = "lake.travel"
os.environ["POLARS_ICEBERG_PLANNER"] = "pyiceberg"  # it warns where it has not the plugin that is faster
BITS = ("_cb_seqno", "_cb_cas", "_cb_rev_seqno")


def properties_of(folder: Path) -> dict[str, str]:
    """Of a catalogue in SQLite, whose tables are beside it."""
    return {"type": "sql", "uri": f"sqlite:///{folder}/catalog.db", "warehouse": folder.as_uri()}


def catalog_of(folder: Path) -> Catalog:
    folder.mkdir(exist_ok=True)
    catalog = load_catalog(None, **properties_of(folder))
    catalog.create_namespace_if_not_exists("lake")
    return catalog


def make(cluster: LocalCluster, catalog: Catalog, **arguments: Any) -> IcebergResult:
    return to_iceberg(cluster, NAME, catalog=catalog, options=QUICK, timeout=60, **arguments)


def update(cluster: LocalCluster, catalog: Catalog, **arguments: Any) -> IcebergResult:
    return update_iceberg(cluster, NAME, catalog=catalog, options=QUICK, timeout=60, **arguments)


def numbers(catalog: Catalog) -> dict[int, int]:
    """Snapshots by the number of their update."""
    opened = Iceberg(NAME, catalog)
    table = opened._table
    packed = {each.snapshot_id: _packed(each) for each in table.snapshots()}
    ours = {opened._manifest(text).version: number for number, text in packed.items() if text}
    return ours | {int(table.properties["cbframe.update"]): table.metadata.current_snapshot_id}


def by_pyiceberg(table: Table, number: int | None = None) -> pa.Table:
    return table.scan(snapshot_id=number).to_arrow()


def by_polars(table: Table) -> pa.Table:
    return pl.scan_iceberg(table).collect().to_arrow()


def by_duckdb(table: Table) -> pa.Table:
    """From the data files themselves: DuckDB's own extension has to be downloaded."""
    paths = [task.file.file_path.removeprefix("file://") for task in table.scan().plan_files()]
    if not paths:
        return by_pyiceberg(table)
    with duckdb.connect() as database:
        found = database.read_parquet(paths, union_by_name=True).to_arrow_table()
    return found.select([each.name for each in table.schema().fields])


READERS = [by_pyiceberg, by_polars, by_duckdb]


def held(catalog: Catalog, version: int | None = None) -> dict[bytes, Row]:
    """Every document of a table that keeps values as they are, with all of its metadata."""
    number = None if version is None else numbers(catalog)[version]
    return told(by_pyiceberg(catalog.load_table(NAME), number))


def told(table: pa.Table) -> dict[bytes, Row]:
    for name in BITS:
        values = table[name].to_numpy().astype(np.int64).view(np.uint64)
        table = table.set_column(table.column_names.index(name), name, pa.array(values))
    return rows_of(table)


def compact(catalog: Catalog) -> None:
    """What Spark's ``rewrite_data_files`` does: other files with other names of columns, of the same rows."""
    table = catalog.load_table(NAME)
    work = table.transaction()
    snapshot = work.update_snapshot().overwrite()
    summarized = snapshot._summary

    def summary(*arguments: Any) -> Summary:
        found: Summary = summarized(*arguments)
        object.__setattr__(found, "operation", Operation.REPLACE)
        return found

    snapshot._summary = summary  # type: ignore[method-assign]
    for task in table.scan().plan_files():
        snapshot.delete_data_file(task.file)
    rows = by_polars(table)
    if len(rows):
        rows = rows.cast(table.schema().as_arrow())
        for each in _dataframe_to_data_files(table_metadata=work.table_metadata, df=rows, io=table.io):
            snapshot.append_data_file(each)
    snapshot.commit()
    work.commit_transaction()


def expire(catalog: Catalog) -> None:
    """Have nothing but the newest snapshot, and no file but its own."""
    catalog.load_table(NAME).maintenance.expire_snapshots().older_than(
        datetime.now(UTC) + timedelta(days=1)
    ).commit()
    table = catalog.load_table(NAME)
    assert len(table.snapshots()) == 1
    there = {task.file.file_path.removeprefix("file://") for task in table.scan().plan_files()}
    for path in Path(table.location().removeprefix("file://")).glob("data/*.parquet"):
        if str(path) not in there:
            path.unlink()


def files(table: Table) -> dict[str, int]:
    """Data files, and how many rows they have."""
    paths = [task.file.file_path.removeprefix("file://") for task in table.scan().plan_files()]
    return {path: pq.read_metadata(path).num_rows for path in paths}
