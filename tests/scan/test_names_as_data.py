"""Names that are data, and objects that are always empty, through every door."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import cbframe
from cbframe import LocalCluster, read_bucket, read_snapshot, scan_bucket, stream_bucket, write_snapshot

from .kit import QUICK

COUNTS = pa.map_(pa.string(), pa.int64())


def document(number: int, value: Any = None) -> bytes:
    counts = {f"user{number % 300}": number if value is None else value}
    return json.dumps({"day": number % 31, "counts": counts}).encode()


@pytest.fixture(scope="module")
def counted() -> Iterator[LocalCluster]:
    """Objects with 300 names, one each."""
    with LocalCluster(nodes=1, vbuckets=8, seed=1) as cluster:
        cluster.bulk_load((b"k%d" % n, document(n)) for n in range(1500))
        yield cluster


def test_memory_is_a_small_multiple_of_the_json(counted: LocalCluster) -> None:
    table = scan_bucket(counted).to_arrow()
    assert table.schema.field("counts").type == COUNTS
    assert sorted(dict(cell).popitem() for cell in table["counts"].to_pylist())[:2] == [
        ("user0", 0),
        ("user0", 300),
    ]
    assert table.nbytes < 3 * sum(len(document(n)) for n in range(1500))


def test_the_report_says_so(counted: LocalCluster) -> None:
    scan = scan_bucket(counted)
    scan.to_arrow()
    assert scan.last is not None
    (told,) = scan.last.conflicts
    assert (told.path, told.types, told.action, told.names) == ("counts", {"object": 1500}, "map", 300)
    assert read_bucket(counted).attrs["cbframe"]["conflicts"] == [
        {"path": "counts", "types": {"object": 1500}, "action": "map", "samples": {}, "names": 300}
    ]


def test_streamed_reads_have_the_same_types(counted: LocalCluster, tmp_path: Path) -> None:
    scan = scan_bucket(counted)
    assert scan.to_reader().read_all().schema.field("counts").type == COUNTS
    scan.to_parquet(tmp_path / "file.parquet")
    assert pq.read_table(tmp_path / "file.parquet").schema.field("counts").type == COUNTS


@pytest.mark.parametrize(
    ("declared", "kind", "cell"),
    [
        ("map<string, double>", pa.map_(pa.string(), pa.float64()), [("user7", 7.0)]),
        (
            "struct<user7: int64, user8: int64>",
            pa.struct([("user7", pa.int64()), ("user8", pa.int64())]),
            {"user7": 7, "user8": None},
        ),
        ("string", pa.string(), '{"user7": 7}'),
    ],
)
def test_schema_overrules(counted: LocalCluster, declared: str, kind: pa.DataType, cell: Any) -> None:
    table = scan_bucket(counted, schema={"counts": declared}).to_arrow()
    assert table.schema.field("counts").type == kind
    assert dict(zip(table["_cb_key"].to_pylist(), table["counts"].to_pylist(), strict=True))["k7"] == cell


def test_a_policy_that_raises_does_not(counted: LocalCluster) -> None:
    assert scan_bucket(counted, on_conflict="raise").to_arrow().schema.field("counts").type == COUNTS


def test_one_name_is_a_column_or_a_filter(counted: LocalCluster) -> None:
    chosen = scan_bucket(counted, columns=["counts.user7"], filters=[("counts.user7", ">", 300)]).to_arrow()
    assert sorted(chosen["counts.user7"].to_pylist()) == [307, 607, 907, 1207]
    flat = scan_bucket(counted, nested="flatten").to_arrow()
    assert flat.schema.field("counts").type == COUNTS
    assert scan_bucket(counted, nested="json").to_arrow().schema.field("counts").type == pa.string()


@pytest.mark.parametrize("backend", ["pyarrow", "numpy_nullable", None])
def test_pandas(counted: LocalCluster, backend: Any, tmp_path: Path) -> None:
    frame = read_bucket(counted, dtype_backend=backend)
    assert dict(frame.loc["k7", "counts"]) == {"user7": 7}
    frame.to_parquet(tmp_path / "file.parquet")
    assert len(pq.read_table(tmp_path / "file.parquet")) == 1500


def test_partitions_agree(counted: LocalCluster) -> None:
    parts = scan_bucket(counted).partitions(3, sample_rows=None)
    tables = [part.read() for part in parts]
    assert [table.schema.field("counts").type for table in tables] == [COUNTS] * 3
    assert sum(map(len, tables)) == 1500


def test_values_of_several_types_are_json_text() -> None:
    with LocalCluster(nodes=1, vbuckets=4, seed=1) as cluster:
        cluster.bulk_load((b"k%d" % n, document(n, "x" if n % 2 else 1)) for n in range(900))
        scan = scan_bucket(cluster, on_conflict="raise")
        table = scan.to_arrow()
        assert table.schema.field("counts").type == pa.string()
        assert scan.last is not None
        assert [(each.action, each.names) for each in scan.last.conflicts] == [("json", 300)]


def test_snapshots_never_go_back(tmp_path: Path) -> None:
    path = str(tmp_path / "copy")
    with LocalCluster(nodes=1, vbuckets=4, seed=1) as cluster:
        cluster.upsert("first", {"counts": {"user1": 1, "user2": None}})
        write_snapshot(cluster, path, options=QUICK)
        assert pa.types.is_struct(read_snapshot(path, return_type="arrow").schema.field("counts").type)
        cluster.bulk_load((b"k%d" % n, document(n)) for n in range(900))
        write_snapshot(cluster, path, options=QUICK)
        cluster.upsert("last", {"counts": {"user1": 7}})
        write_snapshot(cluster, path, options=QUICK)
        table = read_snapshot(path, return_type="arrow")
        assert table.schema.field("counts").type == COUNTS
        cells = dict(zip(table["_cb_key"].to_pylist(), table["counts"].to_pylist(), strict=True))
        # What is absent from a struct is no member of the map.
        assert (cells["first"], cells["last"], cells["k5"]) == (
            [("user1", 1)],
            [("user1", 7)],
            [("user5", 5)],
        )
        chosen = read_snapshot(path, columns=["counts.user1"], filters=[("counts.user1", "in", [1, 7])])
        assert chosen["counts.user1"].to_dict() == {"first": 1, "last": 7, "k1": 1}
        for key in [b"k%d" % n for n in range(900)]:
            cluster.delete(key.decode())
        write_snapshot(cluster, path, options=QUICK)
        cbframe.Snapshot(path).compact()
        assert read_snapshot(path, return_type="arrow").schema.field("counts").type == COUNTS


def test_many_small_updates_of_a_snapshot_are_counted_together(tmp_path: Path) -> None:
    path = str(tmp_path / "copy")
    with LocalCluster(nodes=1, vbuckets=4, seed=1) as cluster:
        for first in range(0, 280, 40):
            cluster.bulk_load((b"k%d" % n, document(n)) for n in range(first, first + 40))
            write_snapshot(cluster, path, options=QUICK)
        assert read_snapshot(path, return_type="arrow").schema.field("counts").type == COUNTS


def test_batches_of_a_stream_never_go_back() -> None:
    with LocalCluster(nodes=1, vbuckets=4, seed=1) as cluster:
        cluster.bulk_load((b"k%d" % n, document(n)) for n in range(900))
        with stream_bucket(cluster, options=QUICK, max_latency=0.05) as stream:
            seen: list[pa.DataType] = []
            rows = 0
            while rows < 901:
                batch = stream.poll(20)
                assert batch is not None
                rows += len(batch)
                seen.append(batch.to_arrow().schema.field("counts").type)
                stream.ack(batch)
                if rows == 900:
                    cluster.upsert("late", {"counts": {"user1": 1}})
        assert seen[-1] == COUNTS
        assert [pa.types.is_struct(kind) for kind in seen] == sorted(
            (pa.types.is_struct(kind) for kind in seen), reverse=True
        )


EMPTY = {"o": {}, "l": [], "in": {"o": {}, "l": [{}], "deep": {"l": []}, "n": None}, "n": None}


def test_what_was_empty_in_a_snapshot_may_be_an_object_later(tmp_path: Path) -> None:
    path = str(tmp_path / "copy")
    with LocalCluster(nodes=1, vbuckets=4, seed=1) as cluster:
        cluster.upsert("old", EMPTY)
        write_snapshot(cluster, path, options=QUICK)
        first = read_snapshot(path, return_type="arrow")
        assert [first.schema.field(name).type for name in ("o", "l")] == [pa.string(), pa.list_(pa.string())]
        assert first["in"][0].as_py() == {"o": "{}", "l": ["{}"], "deep": {"l": []}, "n": None}
        cluster.upsert(
            "new", {"o": {"a": 1}, "l": [2], "in": {"l": [{"x": 0.5}], "deep": {"l": [[True]]}, "n": [1]}}
        )
        write_snapshot(cluster, path, options=QUICK)
        table = read_snapshot(path, return_type="arrow").sort_by("_cb_key")
        assert table.select(["o", "l", "in"]).to_pylist() == [
            {
                "o": {"a": 1},
                "l": [2],
                "in": {"l": [{"x": 0.5}], "deep": {"l": [[True]]}, "n": [1], "o": None},
            },
            {"o": {"a": None}, "l": [], "in": {"l": [{"x": None}], "deep": {"l": []}, "n": None, "o": "{}"}},
        ]


def test_changes_of_empty_objects_are_text() -> None:
    with LocalCluster(nodes=1, vbuckets=1, seed=1) as cluster:
        cluster.upsert("k", EMPTY)
        with stream_bucket(cluster, options=QUICK) as stream:
            batch = stream.poll(20)
            assert batch is not None
            assert batch.to_arrow()["o"].to_pylist() == ["{}"]
