"""Random buckets, read over the wire, against the rules in plain Python: equal to the digit, or reported."""

from __future__ import annotations

from typing import Any

import json_oracle
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from json_documents import runs
from json_oracle import Column, Value

from cbframe import LocalCluster, ReadResult, scan_bucket
from cbframe.json.typer import quoted

from .kit import QUICK

BUCKETS = 350
"""For each number of nodes."""
PICKED = [
    b'{"a":1}',
    b'{"a":-0}',
    b'{"a":-0.0}',
    b'{"a":9007199254740993}',
    b'{"a":18446744073709551615}',
    b'{"a":-9223372036854775809}',
    b'{"a":123456789012345678901234567890123456789012}',
    b'{"a":1e400}',
    b'{"a":0.1}',
    b'{"a":null,"b":[]}',
    b'{"a":{},"b":[null]}',
    b'{"a":{"b":{"c":[{"d":1}]}}}',
    b'{"a":"x","a":"y"}',
    b'{"a":"\\ud83d\\ude00 \xc3\xa4\\u0000"}',
    b'{"a":"\\ud800"}',
    b'{"":1,"a.b":2,"_cb_key":3,"_cb_value":4}',
    b'{"a":[1,"1",true,null,{"b":2},[3]]}',
    b'{"a":"2026-01-02T03:04:05+02:00"}',
    b'{"a":' + b"[" * 300 + b"]" * 300 + b"}",
    b"{" + b",".join(b'"f%d":%d' % (i, i) for i in range(300)) + b"}",
    b"[1]",
    b"{",
    b"",
    b"\x00\xff",
]


def written(cell: Any) -> str:
    """A cell by its text, with names in order: -0.0 is another number than 0.0. Empty objects are text."""
    if isinstance(cell, dict):
        return repr([f"{name}: {written(cell[name])}" for name in sorted(cell)]) if cell else repr("{}")
    return repr([written(each) for each in cell]) if isinstance(cell, list | tuple) else repr(cell)


def texts(value: Value | None, column: Column, path: str) -> set[str]:
    """Where the column has text, and the value is none; numbers are text as they are written."""
    if value is None or value.kind in ("null", "number"):
        return set()
    if column.json or pa.types.is_string(column.type):
        return set() if value.kind == "string" and not column.json else {path}
    found: set[str] = set()
    for name, member in column.members.items():
        found |= texts(value.content.get(name), member, f"{path}.{quoted(name)}")
    if column.item is not None and pa.types.is_list(column.type):
        found = found.union(*(texts(each, column.item, f"{path}[]") for each in value.content))
    return found


def assert_told(rows: list[dict[str, Any]], values: list[bytes], result: ReadResult) -> None:
    rows = sorted(rows, key=lambda row: int(row["_cb_key"][1:]))
    assert [row.pop("_cb_key") for row in rows] == [f"k{at}" for at in range(len(values))]
    documents, wanted = [json_oracle.read(value) for value in values], json_oracle.typed(values)
    reported = {conflict.path for conflict in result.conflicts}
    for at, (row, document) in enumerate(zip(rows, documents, strict=True)):
        kept, reason = row.pop("_cb_value", None), row.pop("_cb_reason", None)
        assert (kept, reason is None) == ((values[at], False) if document is None else (None, True))
        cells = {name[:-1] if name.startswith("_cb_") else name: written(cell) for name, cell in row.items()}
        assert cells == {name: written(column[at]) for name, column in wanted.cells.items()}
        for name, column in wanted.columns.items():
            assert document is None or texts(document.content.get(name), column, quoted(name)) <= reported
    assert sum(result.rejected.values()) == documents.count(None)


@pytest.mark.parametrize("nodes", [1, 2, 3])
def test_random_buckets(nodes: int) -> None:
    @settings(
        max_examples=BUCKETS,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(
        runs() | st.lists(st.sampled_from(PICKED), max_size=10),
        st.sampled_from([1, 60, 8 << 20]),
        st.booleans(),
    )
    @example([b'{"a":-0}', b'{"a":-9223372036854775809}'], 1, False)
    def check(values: list[bytes], batch_bytes: int, streamed: bool) -> None:
        assert_read(nodes, values, batch_bytes, streamed=streamed)

    check()


def test_picked_documents() -> None:
    for batch_bytes in (1, 8 << 20):
        for streamed in (False, True):
            assert_read(2, PICKED, batch_bytes, streamed=streamed)


def assert_read(nodes: int, values: list[bytes], batch_bytes: int, *, streamed: bool) -> None:
    with LocalCluster(nodes=nodes, vbuckets=4, seed=1) as cluster:
        for at, value in enumerate(values):
            cluster.upsert(f"k{at}", value, datatype=1)
        scan = scan_bucket(cluster, options=QUICK, batch_bytes=batch_bytes)
        if streamed:
            table = scan.to_reader().read_all()
            assert scan.last is not None
            result = scan.last
        else:
            result = scan.read()
            table = result.table
        assert_told(table.to_pylist(), values, result)
