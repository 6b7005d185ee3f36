"""Declared types: which names mean which, and which values fit."""

from decimal import Decimal
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from typed_documents import JsonTyper, TypedColumns

from cbframe.arrow.documents.fit import fit
from cbframe.json.layout import Policy


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
    kind = pa.struct([("t", pa.string()), ("n", pa.struct([("x", pa.int8())]))])
    few = ['{"t":60}', '{"t":"60"}', '{"t":[1, 2]}', '{"t":1E2,"n":{"x":1}}', '{"n":"{}"}', '{"t":null}']
    more = [f'{{"t":"m",{",".join(f"{chr(34)}{n}-{m}{chr(34)}:0" for m in range(20))}}}' for n in range(60)]
    _, values, misfits = declared(kind, *few)
    typed, again, _ = declared(kind, *few, *more)
    assert again == [*values, *[{"t": "m", "n": None}] * 60]
    assert [each and each["t"] for each in values] == ["60", "60", "[1, 2]", "1E2", None, None]
    assert not misfits
    assert {conflict.path for conflict in typed.conflicts} <= {"a", "a.n"}


def test_a_field_that_no_document_has() -> None:
    typer = JsonTyper(Policy(declared={"a": pa.int64()}))
    typer.add(pa.array([b"{}"], pa.binary()))
    typed = typer.finish()
    assert fit(typed.table["a"], pa.int64())[0].to_pylist() == [None]
    nothing = JsonTyper(Policy(declared={"a": POINT})).finish()
    assert fit(nothing.table["a"], POINT)[0].type == POINT
