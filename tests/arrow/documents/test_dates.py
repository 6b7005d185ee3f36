"""Strings that become timestamps, and those that do not."""

from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pytest

from cbframe.arrow.documents.fit import Dates
from cbframe.errors import ConfigurationError


def parse_dates(table: pa.Table, names: list[str] | None) -> pa.Table:
    dates = Dates(names)
    dates.look(table)
    return dates.apply(table)


def parsed(*cells: str | None) -> pa.ChunkedArray:
    return parse_dates(pa.table({"a": pa.array(cells, pa.string())}), None)["a"]


@pytest.mark.parametrize(
    ("cells", "kind", "first"),
    [
        (["2026-01-02"], pa.timestamp("us"), datetime(2026, 1, 2)),  # noqa: DTZ001 - as the clock showed
        (["2026-01-02T03:04", None], pa.timestamp("us"), datetime(2026, 1, 2, 3, 4)),  # noqa: DTZ001
        (["2026-01-02 03:04:05.5", "2026-01-02"], pa.timestamp("us"), datetime(2026, 1, 2, 3, 4, 5, 500000)),  # noqa: DTZ001
        (["2026-01-02T03:04:05Z"], pa.timestamp("us", "UTC"), datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)),
        (
            ["2026-01-02T03:04:05+02:00", "2026-01-02T03:04Z", "2026-01-02T03:04:05.123456-0330"],
            pa.timestamp("us", "UTC"),
            datetime(2026, 1, 2, 1, 4, 5, tzinfo=UTC),
        ),
        (["0001-01-01", "9999-12-31T23:59:59.999999"], pa.timestamp("us"), datetime(1, 1, 1)),  # noqa: DTZ001
    ],
)
def test_dates(cells: list[str | None], kind: pa.DataType, first: datetime) -> None:
    column = parsed(*cells)
    assert column.type == kind
    assert column[0].as_py() == first
    assert [cell is None for cell in column.to_pylist()] == [cell is None for cell in cells]


def test_parts_of_a_microsecond() -> None:
    column = parsed("2026-01-02T03:04:05.123456789Z")
    assert column.type == pa.timestamp("ns", "UTC")
    assert column[0].value % 1_000_000_000 == 123_456_789


@pytest.mark.parametrize(
    "cells",
    [
        ["2026-01-02", "soon"],
        ["2026-01-02T03:04:05Z", "2026-01-02T03:04:05"],
        ["2026-01-02Z"],
        ["2026-02-30"],
        ["2026-01-02T25:00"],
        ["1600-01-01T00:00:00.1234567"],
        ["20260102"],
        ["2026"],
        ["12"],
        [" 2026-01-02"],
        ["2026-01-02T03:04:05,5"],
        [None],
        [],
    ],
)
def test_what_is_left_as_it_is(cells: list[Any]) -> None:
    column = parsed(*cells)
    assert column.type == pa.string()
    assert column.to_pylist() == cells


def test_by_name() -> None:
    table = pa.table({"a": ["2026-01-02"], "b": ["2026-01-02"], "n": [1], "_cb_reason": ["2026-01-02"]})
    assert parse_dates(table, ["b", "n"]).schema.types == [
        pa.string(),
        pa.timestamp("us"),
        pa.int64(),
        pa.string(),
    ]
    assert parse_dates(table, None)["_cb_reason"].type == pa.string()
    with pytest.raises(ConfigurationError, match="'c', which is no column"):
        parse_dates(table, ["c"])
