"""The ways to read a bucket, alike: each gives the keys that it found."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, TypeAlias

import pytest

import cbframe

Door: TypeAlias = Callable[..., list[str]]
"""Of a bucket, a folder that it may use, and arguments that all reads have."""


def read(conn: Any, _folder: Path, **arguments: Any) -> list[str]:
    return list(cbframe.read_bucket(conn, **arguments).index)


def batches(conn: Any, _folder: Path, **arguments: Any) -> list[str]:
    scan = cbframe.scan_bucket(conn, **arguments)
    return [key for batch in scan.iter_batches() for key in batch["_cb_key"].to_pylist()]


def partitions(conn: Any, _folder: Path, **arguments: Any) -> list[str]:
    parts = cbframe.scan_bucket(conn, **arguments).partitions(2)
    return [key for part in parts for key in part.read()["_cb_key"].to_pylist()]


def lazily(conn: Any, _folder: Path, **arguments: Any) -> list[str]:
    found: list[str] = cbframe.scan_polars(conn, **arguments).select("_cb_key").collect()["_cb_key"].to_list()
    return found


def stream(conn: Any, _folder: Path, **arguments: Any) -> list[str]:
    arguments.pop("timeout", None)
    with cbframe.stream_bucket(conn, **arguments) as changes:
        return list(changes.to_pandas().index)


def snapshot(conn: Any, folder: Path, **arguments: Any) -> list[str]:
    cbframe.write_snapshot(conn, folder / "snapshot", mode="overwrite", **arguments)
    return list(cbframe.read_snapshot(folder / "snapshot").index)


def delta(conn: Any, folder: Path, **arguments: Any) -> list[str]:
    table = pytest.importorskip("deltalake", reason="needs the extra delta").DeltaTable
    from cbframe.contrib.delta import to_delta  # noqa: PLC0415

    to_delta(conn, folder / "table", mode="overwrite", **arguments)
    keys: list[str] = table(str(folder / "table")).to_pyarrow_table()["_cb_key"].to_pylist()
    return keys


def iceberg(conn: Any, folder: Path, **arguments: Any) -> list[str]:
    catalogs = pytest.importorskip("pyiceberg.catalog", reason="needs the extra iceberg")
    pytest.importorskip("sqlalchemy", reason="needs pyiceberg[sql-sqlite]")
    from cbframe.contrib.iceberg import to_iceberg  # noqa: PLC0415

    properties = {"uri": f"sqlite:///{folder}/catalog.db", "warehouse": folder.as_uri()}
    with closing(catalogs.load_catalog(None, type="sql", **properties)) as catalog:
        catalog.create_namespace_if_not_exists("lake")
        to_iceberg(conn, "lake.table", catalog=catalog, mode="overwrite", **arguments)
        keys: list[str] = catalog.load_table("lake.table").scan().to_arrow()["_cb_key"].to_pylist()
    return keys


DOORS: list[Door] = [read, batches, partitions, lazily, stream, snapshot, delta, iceberg]


def each_door(*doors: Door) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        "door", doors or DOORS, ids=lambda door: getattr(door, "__name__", "other")
    )
