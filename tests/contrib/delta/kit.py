"""What a Delta table holds, told like what the cluster itself knows."""

from __future__ import annotations

from typing import Any

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
from deltalake import DeltaTable
from scan.kit import QUICK, Row, rows_of

from cbframe import LocalCluster
from cbframe.contrib.delta import DeltaResult, to_delta, update_delta

BITS = ("_cb_seqno", "_cb_cas", "_cb_rev_seqno")


def make(cluster: LocalCluster, uri: str, **arguments: Any) -> DeltaResult:
    return to_delta(cluster, uri, options=QUICK, timeout=60, **arguments)


def update(cluster: LocalCluster, uri: str, **arguments: Any) -> DeltaResult:
    return update_delta(cluster, uri, options=QUICK, timeout=60, **arguments)


def by_deltalake(uri: str, version: int | None = None) -> pa.Table:
    return DeltaTable(uri, version=version).to_pyarrow_table()


def by_polars(uri: str) -> pa.Table:
    # In one piece: pyarrow 16 does not take a struct of polars in several.
    return pl.read_delta(uri).rechunk().to_arrow()


def by_duckdb(uri: str) -> pa.Table:
    """Through the dataset that deltalake makes of its log: DuckDB's own extension has to be downloaded."""
    dataset = DeltaTable(uri).to_pyarrow_dataset()
    with duckdb.connect() as database:
        database.register("mirror", dataset)
        return database.sql("select * from mirror").to_arrow_table()


READERS = [by_deltalake, by_polars, by_duckdb]


def held(uri: str, version: int | None = None) -> dict[bytes, Row]:
    """Every document of a table that keeps values as they are, with all of its metadata."""
    return told(by_deltalake(uri, version))


def told(table: pa.Table) -> dict[bytes, Row]:
    for name in BITS:
        values = table[name].to_numpy().astype(np.int64).view(np.uint64)
        table = table.set_column(table.column_names.index(name), name, pa.array(values))
    return rows_of(table)
