"""Random buckets, read over the wire, against Python's own json: equal to the digit, or reported."""

from __future__ import annotations

import json
import re
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from json_documents import runs

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


class Number(str):
    """A number as it is written."""

    __slots__ = ()


def refuse(token: str) -> None:
    raise ValueError(token)


def loaded(value: bytes) -> dict[str, Any] | None:
    """A document by Python's json; None if it is none."""
    try:
        found = json.loads(value.decode(), parse_int=Number, parse_float=Number, parse_constant=refuse)
        json.dumps(found, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return None
    too_deep = len(value) > 400 and b"[" * 201 in value
    return found if isinstance(found, dict) and not too_deep else None


def equal(value: Any, cell: Any, path: str, reported: set[str]) -> bool:
    """Whether a cell is a value of Python's json, or is reported and tells it as text.

    Where all objects are ``{}``, they are text without being reported.
    """
    if value == {} and cell == "{}":
        return True
    if path in reported and isinstance(cell, str) and not (type(value) is str and cell == value):
        return told(cell, value)
    if value is None or cell is None:
        return value is None and cell is None
    if isinstance(value, Number):
        return same_number(value, cell)
    if isinstance(value, dict):
        return isinstance(cell, dict) and all(
            equal(value.get(name), cell.get(name), f"{path}.{quoted(name)}", reported)
            for name in value.keys() | cell
        )
    if isinstance(value, list):
        return (
            isinstance(cell, list)
            and len(cell) == len(value)
            and all(equal(*each, f"{path}[]", reported) for each in zip(value, cell, strict=True))
        )
    return type(value) is type(cell) and bool(value == cell)


def told(text: str, value: Any) -> bool:
    """Whether JSON text tells a value."""
    again = json.loads(text, parse_int=Number, parse_float=Number, parse_constant=refuse)
    return type(again) is type(value) and bool(again == value)


def same_number(token: str, cell: Any) -> bool:
    if isinstance(cell, str):
        # Beyond every number of a column: as it is written.
        return cell == token
    if isinstance(cell, bool):
        return False
    if isinstance(cell, float):
        # What a double is, and for integers no less than they are.
        minus = str(cell).startswith("-") == token.startswith("-")
        return (
            minus
            and cell == float(token)
            and (not re.fullmatch("-?[0-9]+", token) or int(cell) == int(token))
        )
    return Decimal(cell) == Decimal(token)


def assert_told(rows: list[dict[str, Any]], values: list[bytes], result: ReadResult) -> None:
    reported = {conflict.path for conflict in result.conflicts}
    assert sorted(row["_cb_key"] for row in rows) == sorted(f"k{at}" for at in range(len(values)))
    rejects = 0
    for row in rows:
        value = values[int(row.pop("_cb_key")[1:])]
        document = loaded(value)
        kept, reason = row.pop("_cb_value", None), row.pop("_cb_reason", None)
        if document is None:
            rejects += 1
            assert (kept, reason is None) == (value, False)
            assert set(row.values()) <= {None}
            continue
        assert (kept, reason) == (None, None)
        cells = {name[:-1] if name.startswith("_cb_") else name: cell for name, cell in row.items()}
        for name in document.keys() | cells.keys():
            assert equal(document.get(name), cells.get(name), quoted(name), reported), (name, document, cells)
    assert sum(result.rejected.values()) == rejects


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
        assert_told(pylist(table), values, result)


def pylist(table: pa.Table) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows
