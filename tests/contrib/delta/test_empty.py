"""What is always empty in a bucket, written by everybody who can write a table."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake

from cbframe import LocalCluster, read_bucket, scan_bucket

EMPTY = {"o": {}, "l": [], "in": {"o": {}, "l": [{}], "deep": {"l": []}}}


@pytest.fixture
def emptied() -> Iterator[LocalCluster]:
    with LocalCluster(nodes=1, vbuckets=8, seed=1) as cluster:
        cluster.bulk_load((b"k%d" % n, json.dumps({"i": n, **EMPTY}).encode()) for n in range(1200))
        yield cluster


def test_every_consumer_can_write_what_is_empty(emptied: LocalCluster, tmp_path: Path) -> None:
    table = scan_bucket(emptied).to_arrow()
    text, texts = pa.string(), pa.list_(pa.string())
    members = [("o", text), ("l", texts), ("deep", pa.struct([("l", texts)]))]
    assert table.schema.field("o").type == text
    assert table.schema.field("l").type == texts
    assert table.schema.field("in").type == pa.struct(members)
    assert table["in"][0].as_py() == {"o": "{}", "l": ["{}"], "deep": {"l": []}}
    for backend in ("pyarrow", "numpy_nullable", None):
        read_bucket(emptied, dtype_backend=backend).to_parquet(tmp_path / f"{backend}.parquet")
        assert len(pq.read_table(tmp_path / f"{backend}.parquet")) == 1200
    frame = pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame)
    frame.write_parquet(tmp_path / "polars.parquet")
    assert pl.read_parquet(tmp_path / "polars.parquet").equals(frame)
    for name, given in (("table", table), ("frame", read_bucket(emptied).reset_index())):
        write_deltalake(tmp_path / name, given)
        assert DeltaTable(tmp_path / name).to_pyarrow_table().num_rows == 1200
    scan_bucket(emptied).to_parquet(tmp_path / "scan.parquet")
    assert pq.read_table(tmp_path / "scan.parquet").schema.field("o").type == text
