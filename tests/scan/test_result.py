"""Reports of partitions, and the one that they make together."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from cbframe import AsOf, Conflict, LocalCluster, ReadReport, scan_bucket
from cbframe.errors import ConfigurationError

from .kit import QUICK

OF_A = Conflict("n", {"int64": 3, "string": 1}, "text", {"int64": ("k1", "k2"), "string": ("k3",)})
OF_B = (
    Conflict("m", {"misfit": 1}, "null", {"misfit": (b"\xff",)}),
    Conflict("n", {"int64": 2, "bool": 4}, "text", {"int64": ("k4", "k5"), "bool": ()}),
    Conflict("n", {"misfit": 7}, "null", {}),
)
A = ReadReport("b", AsOf({3: (1, 10)}), (OF_A,), {"binary": 2}, 5, 100, 1.5)
B = ReadReport("b", AsOf({1: (2, 20), 2: (3, 0)}), OF_B, {"binary": 1, "not_an_object": 4}, 7, 50, 2.0)


def test_merged() -> None:
    both = ReadReport.merged([A, B])
    assert both.as_of == {1: (2, 20), 2: (3, 0), 3: (1, 10)}
    assert list(both.as_of) == [1, 2, 3]
    assert both.rejected == {"binary": 3, "not_an_object": 4}
    assert (both.documents, both.bytes, both.seconds) == (12, 150, 3.5)
    assert [(each.path, each.action, each.types) for each in both.conflicts] == [
        ("n", "text", {"int64": 5, "string": 1, "bool": 4}),
        ("m", "null", {"misfit": 1}),
        ("n", "null", {"misfit": 7}),
    ]
    assert both.conflicts[0].samples == {"int64": ("k1", "k2", "k4"), "string": ("k3",)}
    assert "k1" not in repr(both)


def test_the_order_makes_no_difference_but_to_samples() -> None:
    one, other = ReadReport.merged([A, B]), ReadReport.merged([B, A])
    assert one.as_of == other.as_of
    assert {(each.path, each.action): each.types for each in one.conflicts} == {
        (each.path, each.action): each.types for each in other.conflicts
    }
    again = ReadReport.merged([ReadReport.merged([A]), ReadReport.merged([B])])
    assert again == one


def test_documents_that_were_not_counted() -> None:
    assert ReadReport.merged([A, replace(B, documents=None)]).documents is None


@pytest.mark.parametrize(
    ("reports", "message"),
    [([], "0 buckets"), ([A, replace(B, bucket="c")], "2 buckets"), ([A, A], "the same vbucket")],
)
def test_what_cannot_be_merged(reports: list[ReadReport], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        ReadReport.merged(reports)


def test_there_and_back() -> None:
    for report in (A, B):
        assert ReadReport.of_dict(report.to_dict()) == report
    assert json.dumps(A.to_dict())


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(nodes=2, vbuckets=16, seed=1) as found:
        for number in range(120):
            found.upsert(f"k{number}", {"n": "x" if number % 3 else number, "m": number % 2 or {}})
            found.upsert(f"bad{number}", b"\xff")
        yield found


def test_more_beside_it() -> None:
    assert ReadReport.of_dict({**A.to_dict(), "mine": 1}) == A


@pytest.mark.parametrize("on_conflict", ["widen", "null"])
def test_partitions_tell_what_the_whole_read_tells(cluster: LocalCluster, on_conflict: str) -> None:
    scan = scan_bucket(cluster, options=QUICK, on_conflict=on_conflict, schema={"n": "int64"})  # type: ignore[arg-type]
    if on_conflict == "widen":
        scan = scan_bucket(cluster, options=QUICK)
    results = [part.result() for part in scan.partitions(4, sample_rows=None)]
    report = ReadReport.merged(result.report for result in results)
    whole = scan.read()
    assert report.as_of == whole.as_of
    assert report.rejected == whole.rejected
    assert report.documents == whole.documents == len(whole.table)
    assert report.bytes == sum(result.stats.bytes_received for result in results)
    assert {(each.path, each.action): each.types for each in report.conflicts} == {
        (each.path, each.action): each.types for each in whole.conflicts
    }
    assert report.conflicts


def test_documents_are_counted(cluster: LocalCluster, tmp_path: Path) -> None:
    """Also where the table is not kept; not where it is handed on."""
    scan = scan_bucket(cluster, options=QUICK)
    scan.to_arrow()
    assert scan.last.documents == 240
    scan.to_reader().close()
    assert scan.last.documents is None
    assert scan.last.report.documents is None
    scan.to_parquet(tmp_path / "one.parquet")
    assert scan.last.documents == 240
    assert pq.read_metadata(tmp_path / "one.parquet").num_rows == 240
    scan.to_parquet(tmp_path / "many", workers=1)
    assert scan.last.documents == 240
    assert scan.last.report.bytes > 10_000
    assert set(scan.last.stats.nodes) == set(cluster.kv_addresses)
    scan.split("n")
    assert scan.last.documents == 240
