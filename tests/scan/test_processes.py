"""A folder of Parquet files, written by processes: whole or not at all."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from cbframe import CbframeError, ConversionError, LocalCluster, scan_bucket
from cbframe.errors import ConfigurationError
from cbframe.scan.partition import in_processes, spread
from cbframe.wire.messages import vbucket_of

from .kit import QUICK, fill
from .test_partitions import sorted_rows


def test_a_folder(tmp_path: Path) -> None:
    with LocalCluster(nodes=2, vbuckets=64, seed=1) as cluster:
        fill(cluster, 1000)
        scan = scan_bucket(cluster, options=QUICK)
        folder = scan.to_parquet(tmp_path / "bucket", workers=2)
        files = sorted(folder.iterdir())
        assert [file.name for file in files] == [f"part-{n:05d}.parquet" for n in range(8)]
        assert [each.name for each in tmp_path.iterdir()] == ["bucket"]
        schemas = [pq.read_schema(file) for file in files]
        assert all(schema.equals(schemas[0]) for schema in schemas)
        assert scan.last is not None
        last = scan.last
        whole = scan.to_arrow()
        assert last.as_of == scan.as_of
        assert last.table.schema.equals(whole.schema)
        assert sorted_rows(pq.read_table(folder)) == sorted_rows(whole)
        assert len(pd.read_parquet(folder)) == 1000
        with pytest.raises(ConfigurationError, match="there is something at"):
            scan.to_parquet(folder, workers=2)


def test_or_none(tmp_path: Path) -> None:
    """A document of which the sample knows nothing is found by a worker."""
    with LocalCluster(nodes=1, vbuckets=1024, seed=1) as cluster:
        fill(cluster, 20_000, size=1)
        last = spread(range(1024))[-1]
        key = next(key for n in range(100_000) if vbucket_of(key := b"odd-%d" % n, 1024) == last)
        cluster.upsert(key, {"n": "text"})
        scan = scan_bucket(cluster, options=QUICK)
        with pytest.raises(ConversionError, match="'n' is int64 there and has to be string"):
            scan.to_parquet(tmp_path / "bucket", workers=1)
        assert [*tmp_path.iterdir()] == []
        assert scan.last is None
        with pytest.raises(ConfigurationError, match="workers=0"):
            scan.to_parquet(tmp_path / "bucket", workers=0)


def test_reports_are_merged(tmp_path: Path) -> None:
    with LocalCluster(nodes=1, vbuckets=8, seed=1) as cluster:
        for number in range(60):
            cluster.upsert(f"k{number}", {"n": "x" if number % 3 else 1})
            cluster.upsert(f"bad{number}", b"\xff")
        scan = scan_bucket(cluster, options=QUICK)
        scan.to_parquet(tmp_path / "bucket", workers=1)
        assert scan.last is not None
        merged = scan.last
        whole = scan.read()
        assert merged.rejected == whole.rejected == {"binary": 60}
        assert [each.types for each in merged.conflicts] == [each.types for each in whole.conflicts]


def _die(_: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _pid(_: int) -> int:
    return os.getpid()


def _fail(number: int) -> int:
    raise ConfigurationError(f"item {number}")


def test_processes() -> None:
    pids = in_processes(_pid, range(4), 2)
    assert len(pids) == 4
    assert os.getpid() not in pids
    with pytest.raises(CbframeError, match="a worker process ended") as caught:
        in_processes(_die, [1], 1)
    assert "__main__" in str(caught.value)
    with pytest.raises(ConfigurationError, match="item 7"):
        in_processes(_fail, [7, 8], 1)
