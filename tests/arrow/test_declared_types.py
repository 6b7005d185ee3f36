"""Types that a caller asks for: what their names mean, which values fit, and which strings are dates."""

from __future__ import annotations

import datetime as dt
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typed_documents import JsonTyper, TypedColumns

from cbframe.arrow.declared_types import Dates, arrow_type, fit
from cbframe.errors import ConfigurationError
from cbframe.json.layout import Policy


@pytest.mark.parametrize(
    ("meant", "kind"),
    [
        (pa.int16(), pa.int16()),
        ("int64", pa.int64()),
        ("String", pa.string()),
        ("str", pa.string()),
        ("double", pa.float64()),
        ("float", pa.float32()),
        ("large_string", pa.large_string()),
        ("date32[day]", pa.date32()),
        ("time64[us]", pa.time64("us")),
        ("timestamp[us]", pa.timestamp("us")),
        ("timestamp[us, tz=UTC]", pa.timestamp("us", "UTC")),
        ("timestamp[ns,tz=Europe/Berlin]", pa.timestamp("ns", "Europe/Berlin")),
        ("decimal128(38, 0)", pa.decimal128(38, 0)),
        ("fixed_size_binary[3]", pa.binary(3)),
        ("list<string>", pa.list_(pa.string())),
        ("list<item: string>", pa.list_(pa.string())),
        ("struct<a: int64, b: list<double>>", pa.struct([("a", pa.int64()), ("b", pa.list_(pa.float64()))])),
        ("struct<a:int64,b:string>", pa.struct([("a", pa.int64()), ("b", pa.string())])),
        ("struct<>", pa.struct([])),
        ("map<string, int64>", pa.map_(pa.string(), pa.int64())),
        ("list<timestamp[us, tz=UTC]>", pa.list_(pa.timestamp("us", "UTC"))),
        ("int64[pyarrow]", pa.int64()),
        ("list<item: int64>[pyarrow]", pa.list_(pa.int64())),
        ("string[python]", pa.string()),
        ("datetime64[ns, UTC]", pa.timestamp("ns", "UTC")),
        ("datetime64[us]", pa.timestamp("us")),
        ("<i2", pa.int16()),
        (int, pa.int64()),
        (str, pa.string()),
        (dt.date, pa.date32()),
        (dt.datetime, pa.timestamp("us")),
        (dt.time, pa.time64("us")),
        (Decimal, pa.decimal128(38, 18)),
        (np.float32, pa.float32()),
        (np.dtype("uint8"), pa.uint8()),
        (np.dtype("datetime64[ms]"), pa.timestamp("ms")),
        (pd.ArrowDtype(pa.date32()), pa.date32()),
        (pd.Int64Dtype(), pa.int64()),
        (pd.BooleanDtype(), pa.bool_()),
        (pd.StringDtype(), pa.string()),
        (pd.DatetimeTZDtype("us", "UTC"), pa.timestamp("us", "UTC")),
    ],
)
def test_what_a_name_means(meant: Any, kind: pa.DataType) -> None:
    assert arrow_type(meant, "a") == kind


leaves = st.sampled_from(
    [
        *(pa.null(), pa.bool_(), pa.int8(), pa.uint64(), pa.float16(), pa.float32(), pa.float64()),
        *(pa.string(), pa.time32("s"), pa.time64("ns"), pa.timestamp("ns"), pa.timestamp("s", "+02:00")),
        *(pa.large_string(), pa.binary(), pa.large_binary(), pa.binary(7), pa.date32(), pa.date64()),
        *(pa.decimal128(5, 2), pa.decimal128(38, 0), pa.decimal256(76, -3), pa.duration("us")),
        pa.dictionary(pa.int8(), pa.string(), ordered=True),
    ]
)
names = st.sampled_from(["a", "b c", "", "x: y", "a, b", "ü", "d.e", "time:", "a<b>"])


def nested(inner: st.SearchStrategy[pa.DataType]) -> st.SearchStrategy[pa.DataType]:
    some = inner.filter(lambda kind: kind != pa.null())
    fields = st.one_of(
        st.builds(pa.field, names, inner), st.builds(pa.field, names, some, nullable=st.just(False))
    )
    return st.one_of(
        inner.map(pa.list_),
        inner.map(pa.large_list),
        inner.map(lambda item: pa.list_(item, 3)),
        inner.map(lambda item: pa.map_(pa.string(), item)),
        some.map(lambda item: pa.list_(pa.field("element", item, nullable=False))),
        st.lists(fields, max_size=3).map(pa.struct),
    )


@settings(deadline=None)
@given(st.recursive(leaves, nested, max_leaves=5))
def test_every_type_is_what_it_prints(kind: pa.DataType) -> None:
    assert arrow_type(str(kind), "a") == kind
    assert arrow_type(str(pd.ArrowDtype(kind)), "a") == kind


@pytest.mark.parametrize(
    "wrong",
    [
        *("no type", "", "list", "struct", "map", "list<", "list<int64", "list<int64>x", "map<string>"),
        *("struct<a>", "timestamp[fortnight]", "decimal128(39, 0)", "decimal128", "dictionary<int64>"),
        *("object", "category"),
        *(5, None, object(), list, dict, object, pd.CategoricalDtype(), "list<" * 80 + "int64" + ">" * 80),
    ],
)
def test_what_is_no_type(wrong: Any) -> None:
    with pytest.raises(ConfigurationError, match="for 'price', which is no type") as caught:
        arrow_type(wrong, "price")
    assert caught.value.hint is not None
    assert "timestamp[us, tz=UTC]" in caught.value.hint


# --- values of declared types


def declared(kind: pa.DataType, *cells: str) -> tuple[TypedColumns, list[Any], list[int]]:
    typer = JsonTyper(Policy(declared={"a": kind}))
    typer.add(pa.array([f'{{"a":{cell}}}'.encode() for cell in cells], pa.binary()))
    typed = typer.finish()
    column, misfits = fit(typed.table["a"], kind)
    assert column.type == kind
    column.validate(full=True)
    return typed, column.to_pylist(), misfits.tolist()


MAP = pa.map_(pa.string(), pa.int64())
POINT = pa.struct([("x", pa.int8()), ("y", pa.float64())])


@pytest.mark.parametrize("beside", [[], ["null"] * 3])
@pytest.mark.parametrize(
    ("kind", "fitting", "others"),
    [
        (pa.bool_(), {"true": True}, ["1", '"true"', "[]"]),
        (pa.int8(), {"-128": -128, "1.0": 1, "1e2": 100, "-0": 0}, ["128", "1.5", '"1"', "1e400"]),
        (pa.uint64(), {"18446744073709551615": 2**64 - 1}, ["-1", "18446744073709551616"]),
        (pa.int64(), {"9007199254740993": 2**53 + 1}, ["0.5", "9223372036854775808", "true"]),
        (pa.float64(), {"1": 1.0, "0.1": 0.1, "1e300": 1e300}, ["9007199254740993", '"1"', "1e400"]),
        (pa.float64(), {"18446744073709551616": 2.0**64}, ["18446744073709551617"]),
        (pa.float32(), {"0.5": 0.5, "16777216": 2.0**24}, ["16777217", "1e39"]),
        (pa.float16(), {"0.5": 0.5, "2048": 2048.0}, ["2049", "1e5", "100000"]),
        (
            pa.decimal128(5, 2),
            {"1.50": Decimal("1.50"), "-999.99": Decimal("-999.99"), "1e2": Decimal("100.00")},
            ["1000", "0.001", '"1.5"', "1e400", "1E999999"],
        ),
        (pa.string(), {'"x"': "x", "1.50": "1.50", "true": "true", '{"b": 1}': '{"b": 1}'}, []),
        (pa.large_string(), {'"x"': "x", "[1]": "[1]"}, []),
        (pa.binary(), {'"x"': b"x"}, []),
        (pa.dictionary(pa.int32(), pa.string()), {'"x"': "x", "7": "7"}, []),
        (
            pa.timestamp("us", "UTC"),
            {'"2026-01-02T03:04:05+02:00"': pd.Timestamp("2026-01-02T01:04:05Z")},
            ['"2026-01-02T03:04:05"', '"soon"', "5"],
        ),
        (pa.date32(), {'"2026-01-02"': pd.Timestamp("2026-01-02").date()}, ['"2026-02-30"']),
        (pa.list_(pa.int8()), {"[1,null]": [1, None], "[]": []}, ["{}", "1", '"[]"']),
        (POINT, {'{"x":1,"z":0}': {"x": 1, "y": None}, "{}": {"x": None, "y": None}}, ["[]", '"{}"']),
        (MAP, {'{"k":1,"l":null}': [("k", 1), ("l", None)], "{}": []}, ["[]", '"{}"']),
    ],
)
def test_what_fits(kind: pa.DataType, fitting: dict[str, Any], others: list[str], beside: list[str]) -> None:
    """Alone, and all together; what does not fit is null, and told: as a conflict or as a misfit."""
    for cell, value in fitting.items():
        typed, values, misfits = declared(kind, cell, *beside)
        assert values == [value] + [None] * len(beside)
        assert (typed.conflicts, misfits) == ((), [])
    cells = [*fitting, *others, *beside]
    typed, values, misfits = declared(kind, *cells)
    assert values == [*fitting.values()] + [None] * (len(others) + len(beside))
    assert set(misfits) <= set(range(len(fitting), len(fitting) + len(others)))
    if others:
        assert misfits or typed.conflicts
        assert all(conflict.action == "null" for conflict in typed.conflicts)
    for cell in others:
        typed, values, misfits = declared(kind, cell)
        assert values == [None]
        assert bool(misfits) != bool(typed.conflicts)


@pytest.mark.parametrize(
    ("kind", "cell", "value"),
    [
        (pa.list_(pa.int8()), '[1,128,"2",null]', [1, None, None, None]),
        (POINT, '{"x":300,"y":2}', {"x": None, "y": 2.0}),
        (POINT, '{"x":"3","y":2}', {"x": None, "y": 2.0}),
        (MAP, '{"k":"x","l":1}', [("k", None), ("l", 1)]),
        (pa.list_(pa.float64()), "[18446744073709551617,18446744073709551616]", [None, 2.0**64]),
        (pa.list_(pa.decimal128(4, 1)), "[1.5,0.25]", [Decimal("1.5"), None]),
        (pa.list_(pa.string()), '["x",1.50,{"a":1}]', ["x", "1.50", '{"a":1}']),
        (MAP, f'{{"k":{"1" * 5000}}}', [("k", None)]),
        (pa.map_(pa.string(), POINT), r'{"k":"{\"x\":1}","l":"?"}', [("k", None), ("l", None)]),
        (
            pa.map_(pa.string(), pa.string()),
            '{"k":1E2,"l":true,"m":[1, 2],"n":"x"}',
            [("k", "1E2"), ("l", "true"), ("m", "[1, 2]"), ("n", "x")],
        ),
    ],
)
def test_of_what_is_nested_only_the_part_that_does_not_fit_is_lost(
    kind: pa.DataType, cell: str, value: Any
) -> None:
    typed, values, misfits = declared(kind, cell)
    assert values == [value]
    assert bool(misfits or typed.conflicts) == ("None" in repr(value))


def test_objects_of_many_names_have_the_values_of_those_of_few() -> None:
    members = [
        ("t", pa.string()),
        ("k", pa.int64()),
        ("ok", pa.bool_()),
        ("n", pa.struct([("x", pa.int8())])),
    ]
    kind = pa.struct(members)
    few = [
        '{"k":"60","ok":"true"}',
        '{"k":60,"ok":true,"n":{"x":"1"}}',
        '{"t":60}',
        '{"t":"60"}',
        '{"t":[1, 2]}',
        '{"t":1E2,"n":{"x":1}}',
        '{"n":"{}"}',
        '{"t":null}',
    ]
    more = [f'{{"t":"m",{",".join(f"{chr(34)}{n}-{m}{chr(34)}:0" for m in range(20))}}}' for n in range(60)]
    _, values, misfits = declared(kind, *few)
    typed, again, _ = declared(kind, *few, *more)
    assert again == [*values, *[{"t": "m", "k": None, "ok": None, "n": None}] * 60]
    assert [each and each["t"] for each in values[2:]] == ["60", "60", "[1, 2]", "1E2", None, None]
    assert [(each["k"], each["ok"]) for each in values[:2]] == [(None, None), (60, True)]
    assert not misfits
    assert {conflict.path for conflict in typed.conflicts} <= {"a", "a.n"}


def test_a_field_that_no_document_has() -> None:
    typer = JsonTyper(Policy(declared={"a": pa.int64()}))
    typer.add(pa.array([b"{}"], pa.binary()))
    typed = typer.finish()
    assert fit(typed.table["a"], pa.int64())[0].to_pylist() == [None]
    nothing = JsonTyper(Policy(declared={"a": POINT})).finish()
    assert fit(nothing.table["a"], POINT)[0].type == POINT


# --- dates


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
