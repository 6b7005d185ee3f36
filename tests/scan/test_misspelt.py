"""A column that no document has is reported, by every function that can tell."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from contrib.delta.conftest import _runtime  # noqa: F401 - a fixture that is used by itself

from cbframe import ConfigurationError, LocalCluster, read_snapshot, scan_bucket, write_snapshot
from cbframe.contrib.delta import to_delta, update_delta


@pytest.fixture
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(1, vbuckets=4) as cluster:
        yield cluster


@pytest.mark.parametrize("name", ["nmae", "geo.lta", ("geo", "lta"), "n.x"])
def test_a_misspelt_column_is_reported_by_the_sample(cluster: LocalCluster, name: Any) -> None:
    scan = scan_bucket(cluster, columns=[name, "name", "geo.lat"])
    assert scan.partitions(2)  # of an empty bucket nothing can be said
    cluster.upsert("a", {"name": 1, "n": 5, "geo": {"lat": None}})
    told = name if isinstance(name, str) else "geo.lta"
    with pytest.warns(UserWarning, match=f"sample.*'{told}', which no document has") as caught:
        scan.partitions(2)
    assert [each.filename for each in caught] == [__file__]
    with pytest.raises(ConfigurationError, match=f"'{told}', which no document has"):
        scan.partitions(2, sample_rows=None)
    declared = scan_bucket(cluster, columns=["nmae", "name"], schema={"nmae": "int64"})
    assert declared.partitions(2)[0].schema.field("nmae").type == "int64"


def test_tables_of_each_kind(cluster: LocalCluster) -> None:
    cluster.upsert("a", {"type": "x", "when": None, "geo": {}})
    cluster.upsert("b", {"type": "y", "geo": {"lat": None}})
    wanted = ["when", "geo.lat"]
    assert {*scan_bucket(cluster, columns=wanted).split("type")} == {"x", "y"}
    for name in ("wehn", "geo.lta"):
        with pytest.raises(ConfigurationError, match=f"columns= names '{name}', which no document has"):
            scan_bucket(cluster, columns=[*wanted, name]).split("type")


def test_a_snapshot_is_made_of_fields_that_are_there(cluster: LocalCluster, tmp_path: Path) -> None:
    cluster.upsert("a", {"name": 1, "geo": {"lat": None}})
    for wrong, told in (
        ({"columns": ["name", "geo.lta"]}, "columns= names 'geo.lta', which no document has"),
        ({"parse_dates": ["wehn"]}, "parse_dates= names 'wehn', which is no column"),
        ({"filters": [("nmae", "==", 1)]}, "filters= names 'nmae', which no document has"),
    ):
        with pytest.raises(ConfigurationError, match=told):
            write_snapshot(cluster, tmp_path / "s", **wrong)  # type: ignore[arg-type]
        with pytest.raises(ConfigurationError, match=told):
            to_delta(cluster, tmp_path / "t", **wrong)  # type: ignore[arg-type]
    assert write_snapshot(cluster, tmp_path / "s", columns=["name", "geo.lat"]).version == 1
    assert write_snapshot(cluster, tmp_path / "d", schema={"nmae": "int64"}).version == 1


def _snapshot(cluster: LocalCluster, path: Path, **arguments: Any) -> int:
    return write_snapshot(cluster, path, **arguments).version


def _mirror(cluster: LocalCluster, path: Path, **arguments: Any) -> int:
    return (update_delta if path.exists() else to_delta)(cluster, path, **arguments).version


@pytest.mark.parametrize("copy", [_snapshot, _mirror])
@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"columns": ["name", "geo.lta"]}, "columns= names 'geo.lta', a field of which no document so far"),
        ({"parse_dates": ["wehn"]}, "parse_dates= names 'wehn', a field of which no document so far"),
        (
            {"filters": [("nmae", "==", 1)]},
            "in what has changed.*filters= names 'nmae', which no document has",
        ),
    ],
    ids=["columns", "dates", "filters"],
)
def test_an_update_warns(
    cluster: LocalCluster, tmp_path: Path, copy: Callable[..., int], arguments: dict[str, Any], told: str
) -> None:
    """What began with an empty bucket goes on: documents that have the field may come."""
    copy(cluster, tmp_path / "s", **arguments)
    cluster.upsert("a", {"name": 1, "geo": {"lat": 1}, "when": "2026-01-01"})
    for _ in range(2):
        with pytest.warns(UserWarning, match=told) as caught:
            copy(cluster, tmp_path / "s", **arguments)
        assert [each.filename for each in caught] == [__file__]
        cluster.upsert("b", {"name": 2})
    cluster.upsert("c", {"name": 1, "geo": {"lta": 1}, "wehn": "2026-01-01", "nmae": 1})
    for _ in range(2):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            copy(cluster, tmp_path / "s", **arguments)
        cluster.upsert("d", {"name": 2})


def test_an_old_snapshot_with_a_misspelt_column_is_still_read(cluster: LocalCluster, tmp_path: Path) -> None:
    write_snapshot(cluster, tmp_path / "s", columns=["nmae"])
    cluster.upsert("a", {"name": 1})
    with pytest.warns(UserWarning, match="'nmae'"):
        write_snapshot(cluster, tmp_path / "s")
    assert read_snapshot(tmp_path / "s")["nmae"].isna().all()
