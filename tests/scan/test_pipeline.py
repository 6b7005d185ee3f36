"""Batches of one read put together, without any network."""

from __future__ import annotations

from typing import Any, NamedTuple

import pyarrow as pa
import pytest

from cbframe.arrow import spill
from cbframe.arrow.receivers import DeferringBatchReceiver
from cbframe.dcp.receiver import Receipt
from cbframe.options import BucketDataSourceOptions
from cbframe.scan.names import Names
from cbframe.scan.pipeline import Pipeline
from cbframe.scan.result import Conflict
from cbframe.scan.scan import scan_bucket
from cbframe.wire.constants import Datatype, Opcode

Row = tuple[int, int, str, bytes | None]
"""vbucket, seqno, key, and the value; None deletes."""


@pytest.fixture(autouse=True)
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


@pytest.mark.parametrize("batch_bytes", [1, 10_000])
def test_an_older_version_that_passes_a_filter_does_not_count(batch_bytes: int) -> None:
    steps: list[Row | int] = [
        0,
        (0, 1, "k", b'{"type":"hotel","a":1}'),
        (0, 2, "l", b'{"type":"hotel","b":1}'),
        0,
        (0, 3, "k", b'{"type":"route","c":1}'),
    ]
    hotels = read(*steps, batch_bytes=batch_bytes, filters=[("type", "==", "hotel")])
    assert hotels.table.to_pylist() == [{"_cb_key": "l", "type": "hotel", "b": 1}]
    assert read(*steps, filters=[("type", "==", "route")], columns=["c"]).table.to_pylist() == [
        {"_cb_key": "k", "c": 1}
    ]


def test_an_older_version_has_no_part_in_conflicts() -> None:
    steps: list[Row | int] = [
        0,
        (0, 1, "k", b'{"a":1}'),
        (0, 2, "l", b'{"a":2}'),
        0,
        (0, 3, "k", b'{"a":"x"}'),
    ]
    both = read(*steps)
    assert [(c.path, c.types, c.samples) for c in both.conflicts] == [
        ("a", {"integer": 1, "string": 1}, {"integer": ("l",), "string": ("k",)})
    ]
    alone = read(*steps, (0, 4, "k", None))
    assert alone.conflicts == ()
    assert alone.table.to_pylist() == [{"_cb_key": "l", "a": 2}]


def test_an_older_version_that_is_cut_down_does_not_count() -> None:
    steps: list[Row | int] = [0, (0, 1, "k", b'{"a":1,"b":1}'), 0, (0, 2, "k", b'{"a":2,"b":"x"}')]
    result = read(*steps, columns=["a"])
    assert result.table.to_pylist() == [{"_cb_key": "k", "a": 2}]
