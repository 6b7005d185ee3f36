"""Batches of one read put together, in memory and in bounded memory."""

from __future__ import annotations

import errno
import gc
import io
import json
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cbframe import ConfigurationError, ConversionError, LocalCluster, SpoolError, scan_bucket
from cbframe.arrow import spill
from cbframe.arrow.receivers import DeferringBatchReceiver
from cbframe.dcp.receiver import Receipt
from cbframe.options import BucketDataSourceOptions
from cbframe.scan import parquet
from cbframe.scan.names import Names
from cbframe.scan.pipeline import Pipeline
from cbframe.scan.result import Conflict
from cbframe.wire.constants import Datatype, Opcode

from .kit import QUICK, create

Row = tuple[int, int, str, bytes | None]
"""vbucket, seqno, key, and the value; None deletes."""


@pytest.fixture
def on_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also the few values of a test are put aside where those of a large bucket are."""
    monkeypatch.setattr(spill, "SPILL_BYTES", 0)


class Read(NamedTuple):
    table: pa.Table
    conflicts: tuple[Conflict, ...]
    rejected: dict[str, int]


def read(*steps: Row | int, batch_bytes: int = 1, **arguments: Any) -> Read:
    """A read of rows, one batch each; a number is a snapshot that begins in that vbucket.

    In memory, and in bounded memory: with the same result.
    """
    scan = scan_bucket("couchbase://127.0.0.1/b", auth=("u", "p"), batch_bytes=batch_bytes, **arguments)
    target = scan._spec
    names = Names(target, BucketDataSourceOptions())
    receiver = DeferringBatchReceiver()
    pipelines = [Pipeline(target, names, receiver, bounded=bounded) for bounded in (False, True)]
    for step in steps:
        if isinstance(step, int):
            receiver.snapshot_start(step, 0, 0, 0)
            continue
        vbucket, seqno, key, value = step
        columns = {
            "_cb_key": key.encode(),
            "_cb_value": value or b"",
            "_cb_opcode": Opcode.DCP_DELETION if value is None else Opcode.DCP_MUTATION,
            "_cb_collection_id": 0,
            "_cb_vbucket": vbucket,
            "_cb_seqno": seqno,
            "_cb_datatype": Datatype.JSON,
        }
        batch = pa.RecordBatch.from_arrays(
            [pa.array([columns[field.name]], field.type) for field in receiver.schema], schema=receiver.schema
        )
        done: list[int] = []
        receiver._batches.put((batch, Receipt(1, done.append)))
        arrived = receiver.take(0)
        for pipeline in pipelines:
            pipeline.add(arrived)
        assert done == [1]
    results = []
    for pipeline in pipelines:
        found = pipeline.finish()
        tables = list(found.tables)
        assert all(map(len, tables))
        table = pa.concat_tables([found.schema.empty_table(), *tables])
        results.append(Read(table, found.conflicts, found.rejected))
    assert results[0] == results[1]
    return results[0]


@pytest.mark.usefixtures("on_disk")
@pytest.mark.parametrize("batch_bytes", [1, 10_000])
def test_an_older_version_that_passes_a_filter_does_not_count(batch_bytes: int) -> None:
    first = (0, 1, "k", b'{"type":"hotel","a":1}'), (0, 2, "l", b'{"type":"hotel","b":1}')
    steps: list[Row | int] = [0, *first, 0, (0, 3, "k", b'{"type":"route","c":1}')]
    hotels = read(*steps, batch_bytes=batch_bytes, filters=[("type", "==", "hotel")])
    assert hotels.table.to_pylist() == [{"_cb_key": "l", "type": "hotel", "b": 1}]
    assert read(*steps, filters=[("type", "==", "route")], columns=["c"]).table.to_pylist() == [
        {"_cb_key": "k", "c": 1}
    ]


@pytest.mark.usefixtures("on_disk")
def test_an_older_version_has_no_part_in_conflicts() -> None:
    first = (0, 1, "k", b'{"a":1}'), (0, 2, "l", b'{"a":2}')
    steps: list[Row | int] = [0, *first, 0, (0, 3, "k", b'{"a":"x"}')]
    (both,) = read(*steps).conflicts
    assert (both.path, both.types) == ("a", {"integer": 1, "string": 1})
    assert both.samples == {"integer": ("l",), "string": ("k",)}
    alone = read(*steps, (0, 4, "k", None))
    assert alone.conflicts == ()
    assert alone.table.to_pylist() == [{"_cb_key": "l", "a": 2}]


@pytest.mark.usefixtures("on_disk")
def test_an_older_version_that_is_cut_down_does_not_count() -> None:
    steps: list[Row | int] = [0, (0, 1, "k", b'{"a":1,"b":1}'), 0, (0, 2, "k", b'{"a":2,"b":"x"}')]
    result = read(*steps, columns=["a"])
    assert result.table.to_pylist() == [{"_cb_key": "k", "a": 2}]


# --- Reads in bounded memory: what they give is what a read in memory gives.


ODD: dict[str, Any] = {"text": "soon", "list": [1], "large": 2**64, "nested": {"deep": {"er": None}}}


@pytest.fixture(scope="module")
def cluster() -> Any:
    with LocalCluster(nodes=2, vbuckets=16, seed=3, sending="bulk") as cluster:
        for i in range(400):
            cluster.upsert(
                f"k{i:03}", {"n": i, "at": f"2026-01-{i % 28 + 1:02}", "mixed": i, "geo": {"lat": i / 4}}
            )
        for i, (name, value) in enumerate(ODD.items()):
            cluster.upsert(name, {"mixed": value, f"rare_{i}": value})
        cluster.upsert("raw", b"\x00\xff", datatype=0)
        cluster.upsert("gone", {"never": 1})
        cluster.delete("gone")
        create(cluster, "shop", "orders")
        cluster.upsert("k000", {"n": -1}, collection="shop.orders")
        yield cluster


def ordered(table: pa.Table) -> pa.Table:
    return table.combine_chunks().sort_by([(name, "ascending") for name in ("_cb_scope", "_cb_key")])


@pytest.mark.parametrize("batch_bytes", [1, 5000, 8 << 20])
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"errors": "drop", "nested": "flatten", "parse_dates": True, "metadata": ["key", "cas", "seqno"]},
        {"on_conflict": "null", "nested": "json"},
        {"columns": ["geo.lat", "mixed"], "filters": [("n", ">=", 100)]},
        {"schema": {"n": pa.int16(), "mixed": pa.int64()}, "on_conflict": "null"},
        {"parse": False},
        {"keys_only": True},
        {"max_struct_fields": 1, "key_prefix": "k"},
    ],
    ids=lambda arguments: " ".join(arguments) or "plain",
)
def test_the_same_as_in_memory(cluster: LocalCluster, arguments: dict[str, Any], batch_bytes: int) -> None:
    scan = scan_bucket(cluster, options=QUICK, batch_bytes=batch_bytes, **arguments)
    eager = scan.read()
    reader = scan.to_reader()
    assert reader.schema.metadata == eager.table.schema.metadata
    batches = list(reader)
    assert all(batch.num_rows for batch in batches)
    assert len(batches) > (10 if batch_bytes == 1 else 0)
    table = pa.Table.from_batches(batches, reader.schema)
    assert ordered(table) == ordered(eager.table)
    assert scan.last.conflicts == eager.conflicts
    assert scan.last.rejected == eager.rejected
    assert scan.last.as_of == eager.as_of


def test_an_empty_bucket() -> None:
    with LocalCluster(vbuckets=4) as cluster:
        for arguments in ({}, {"columns": ["a"]}, {"parse_dates": ["a"]}, {"keys_only": True}):
            scan = scan_bucket(cluster, options=QUICK, **arguments)
            table = scan.to_reader().read_all()
            assert table.num_rows == 0
            assert table == scan.to_arrow()
            assert list(scan.iter_batches()) == []


@pytest.mark.parametrize("n_rows", [1, 7, 10_000])
def test_a_look_at_some_has_no_empty_batch(cluster: LocalCluster, n_rows: int) -> None:
    scan = scan_bucket(cluster, options=QUICK, n_rows=n_rows, batch_bytes=1, filters=[("n", ">=", 200)])
    batches = list(scan.to_reader())
    assert all(batch.num_rows for batch in batches)
    assert sum(batch.num_rows for batch in batches) == min(n_rows, 200)


def test_errors_are_raised_before_the_first_batch(cluster: LocalCluster, tmp_path: Path) -> None:
    wrong: list[tuple[type[Exception], dict[str, Any]]] = [
        (ConversionError, {"errors": "raise"}),
        (ConversionError, {"on_conflict": "raise"}),
        (ConversionError, {"schema": {"mixed": pa.int64()}}),
        (ConfigurationError, {"columns": ["nowhere"]}),
        (ConfigurationError, {"parse_dates": ["nowhere"]}),
    ]
    for error, arguments in wrong:
        with pytest.raises(error):
            scan_bucket(cluster, options=QUICK, spool_dir=tmp_path, **arguments).to_reader()
        assert list(tmp_path.iterdir()) == []


def test_temporary_files_go_away(
    cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """They have no names; what is open is closed with the last batch, or when nobody reads on."""
    files: list[Any] = []
    make = tempfile.TemporaryFile

    def seen(**arguments: Any) -> Any:
        files.append(make(**arguments))
        return files[-1]

    monkeypatch.setattr(spill.tempfile, "TemporaryFile", seen)
    scan = scan_bucket(cluster, options=QUICK, spool_dir=tmp_path, spill_bytes=0, batch_bytes=1000)
    reader = scan.to_reader()
    assert list(tmp_path.iterdir()) == []
    assert not files[0].closed
    reader.read_all()
    # Not read to the end, or not at all.
    batches = scan.iter_batches()
    next(batches)
    unread = scan.to_reader()
    del batches, unread, reader
    gc.collect()
    assert len(files) == 3
    assert all(file.closed for file in files)


def test_the_place_for_temporary_files_is_not_there(cluster: LocalCluster, tmp_path: Path) -> None:
    scan = scan_bucket(cluster, options=QUICK, spool_dir=tmp_path / "nowhere")
    for read in (scan.to_arrow, lambda: scan.to_parquet(tmp_path / "a.parquet")):
        with pytest.raises(SpoolError, match="nowhere"):
            read()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("batch_bytes", [1, 8 << 20])
def test_a_read_in_memory_puts_values_aside_on_disk(
    cluster: LocalCluster, tmp_path: Path, batch_bytes: int
) -> None:
    wanted: dict[str, Any] = {"options": QUICK, "batch_bytes": batch_bytes, "spool_dir": tmp_path}
    expected = ordered(scan_bucket(cluster, **wanted).to_arrow())
    assert ordered(scan_bucket(cluster, spill_bytes=0, **wanted).to_arrow()) == expected
    assert list(tmp_path.iterdir()) == []


def test_the_disk_is_full(cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The read ends at once with an error that says what to do; what is left is seen by the fixtures."""

    class Full(io.BytesIO):
        def write(self, _: Any) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(spill.tempfile, "TemporaryFile", lambda **_: Full())
    with pytest.raises(SpoolError, match="No space left") as caught:
        scan_bucket(cluster, options=QUICK, batch_bytes=1, spool_dir=tmp_path, spill_bytes=0).to_pandas()
    assert "spool_dir=" in str(caught.value)


def test_a_window_smaller_than_a_batch() -> None:
    """What waits for its batch is acknowledged: the window opens again."""
    with LocalCluster(vbuckets=2) as cluster:
        for i in range(300):
            cluster.upsert(f"k{i}", {"pad": "x" * 100})
        scan = scan_bucket(cluster, options=QUICK, buffer_bytes=2000, batch_bytes=1 << 20, timeout=30)
        assert scan.to_reader().read_all().num_rows == 300


def test_no_more_is_received_than_was_put_down(monkeypatch: pytest.MonkeyPatch) -> None:
    """Acknowledgements follow the consumer: a sink that takes nothing gets no more than a window."""
    with LocalCluster(vbuckets=2) as cluster:
        for i in range(200):
            cluster.upsert(f"k{i}", {"pad": "x" * 1000})
        most = 0
        add = Pipeline.add

        def measured(sink: Pipeline, arrived: list[Any]) -> None:
            nonlocal most
            # What arrived and is not acknowledged yet is all that the process holds of the stream.
            most = max(most, sum(receipt.nbytes for _, receipt in arrived))
            add(sink, arrived)

        monkeypatch.setattr(Pipeline, "add", measured)
        scan = scan_bucket(cluster, options=QUICK, buffer_bytes=10_000, batch_bytes=1, timeout=30)
        assert scan.to_reader().read_all().num_rows == 200
        assert 0 < most < 25_000


def test_a_document_of_twenty_megabytes(tmp_path: Path) -> None:
    with LocalCluster(vbuckets=2) as cluster:
        large = {"a": "x" * ((20 << 20) - 64), "n": 1}
        cluster.upsert("large", large)
        cluster.upsert("small", {"n": 2})
        scan = scan_bucket(cluster, options=QUICK, timeout=60)
        rows = {row["_cb_key"]: row for row in scan.to_reader().read_all().to_pylist()}
        assert rows["large"] == {"_cb_key": "large", **large}
        assert rows["small"]["n"] == 2
        assert pq.read_table(scan.to_parquet(tmp_path / "a.parquet"))["a"].null_count == 1


def test_row_groups_are_worth_it(
    cluster: LocalCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan = scan_bucket(cluster, options=QUICK, batch_bytes=1)
    whole = pq.ParquetFile(scan.to_parquet(tmp_path / "a.parquet"))
    assert whole.metadata.num_row_groups == 1
    monkeypatch.setattr(parquet, "_ROW_GROUP_ROWS", 100)
    some = pq.ParquetFile(scan.to_parquet(tmp_path / "b.parquet"))
    sizes = [some.metadata.row_group(i).num_rows for i in range(some.metadata.num_row_groups)]
    assert all(100 <= size < 300 for size in sizes[:-1])
    assert len(sizes) > 1
    assert json.loads(some.schema_arrow.metadata[b"cbframe"])["bucket"] == "default"
    assert ordered(some.read()).equals(ordered(whole.read()))
