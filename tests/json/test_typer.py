"""Documents to columns: the table of values, one test a row, and what hostile values may not do."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from decimal import Decimal
from itertools import pairwise
from random import Random
from typing import Any

import json_oracle
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from json_documents import anything, documents, runs, scalars
from typed_documents import JsonTyper, Places, TypedColumns, typed_values

from cbframe.json import layout
from cbframe.json.layout import OnConflict, Policy
from cbframe.json.typer import Reason


def typed(*values: bytes | str, is_json: list[bool] | None = None, **policy: Any) -> TypedColumns:
    typer = JsonTyper(Policy(**policy))
    typer.add(octets(values), None if is_json is None else np.array(is_json))
    return typer.finish()


def octets(values: Iterable[bytes | str]) -> pa.Array:
    return pa.array([value.encode() if isinstance(value, str) else value for value in values], pa.binary())


def in_batches(*batches: Sequence[bytes | str], **policy: Any) -> TypedColumns:
    typer = JsonTyper(Policy(**policy))
    for batch in batches:
        typer.add(octets(batch))
    return typer.finish()


def column(*cells: str, name: str = "a") -> pa.ChunkedArray:
    """The column of documents that have one field with these cells."""
    result = typed(*(f'{{"{name}":{cell}}}' for cell in cells))
    assert result.rejected == {}
    return result.table.column(0)


def told(result: TypedColumns) -> list[tuple[str, dict[str, int], str]]:
    return [(c.path, c.types, c.action) for c in result.conflicts]


def shape(result: TypedColumns) -> dict[str, str]:
    return {field.name: str(field.type) for field in result.table.schema}


@pytest.mark.parametrize(
    ("cells", "kind", "values"),
    [
        (["null"], pa.null(), [None]),
        (["true", "null", "false"], pa.bool_(), [True, None, False]),
        (["1", "-2", "null"], pa.int64(), [1, -2, None]),
        (["-0"], pa.int64(), [0]),
        (["9223372036854775807", "-9223372036854775808"], pa.int64(), [2**63 - 1, -(2**63)]),
        (["9223372036854775808", "7", "-0"], pa.uint64(), [2**63, 7, 0]),
        (["18446744073709551615"], pa.uint64(), [2**64 - 1]),
        (["9223372036854775808", "-7"], pa.decimal128(38, 0), [Decimal(2**63), Decimal(-7)]),
        (["18446744073709551616", "-0"], pa.decimal128(38, 0), [Decimal(2**64), Decimal(0)]),
        (["-" + "9" * 38], pa.decimal128(38, 0), [Decimal("-" + "9" * 38)]),
        (["1" + "0" * 38], pa.string(), ["1" + "0" * 38]),
        (["-" + "9" * 76, "1"], pa.string(), ["-" + "9" * 76, "1"]),
        (["18446744073709551616", "0.5"], pa.float64(), [2.0**64, 0.5]),
        (["[18446744073709551616]", "[1,null]"], pa.list_(pa.decimal128(38, 0)), [[2**64], [1, None]]),
        (["1.5", "null"], pa.float64(), [1.5, None]),
        (["1e2", "1E-2"], pa.float64(), [100.0, 0.01]),
        (["1.0"], pa.float64(), [1.0]),
        (["1", "2.5"], pa.float64(), [1.0, 2.5]),
        (["0.1234567890123456789"], pa.float64(), [0.12345678901234568]),
        (["1e-400"], pa.float64(), [0.0]),
        (['""', '"x"', r'"\u00e9\n\ud83d\ude00\u0000"'], pa.string(), ["", "x", "é\n😀\0"]),
        (['"2024-02-17T17:33:38Z"', '"2026-01-02"'], pa.string(), ["2024-02-17T17:33:38Z", "2026-01-02"]),
        (['"2026-01-02 03:04:05+02:00"'], pa.string(), ["2026-01-02 03:04:05+02:00"]),
        (["[]", "null"], pa.list_(pa.null()), [[], None]),
        (["[]", "[1,null]", "[2.5]"], pa.list_(pa.float64()), [[], [1.0, None], [2.5]]),
        (["{}"], pa.struct([]), [{}]),
        (
            ['{"x":1}', '{"y":"s"}', "{}", "null"],
            pa.struct([("x", pa.int64()), ("y", pa.string())]),
            [{"x": 1, "y": None}, {"x": None, "y": "s"}, {"x": None, "y": None}, None],
        ),
        (
            ['[{"x":1}]', '[{"y":[true]},{}]'],
            pa.list_(pa.struct([("x", pa.int64()), ("y", pa.list_(pa.bool_()))])),
            [[{"x": 1, "y": None}], [{"x": None, "y": [True]}, {"x": None, "y": None}]],
        ),
    ],
)
def test_values_that_have_a_type(cells: list[str], kind: pa.DataType, values: list[object]) -> None:
    array = column(*cells)
    assert array.type == kind
    assert array.to_pylist() == values


@pytest.mark.parametrize("cell", ["[null,null,null]", "[[null,null],[],null]", '{"x":[null,null],"y":null}'])
def test_lists_of_nulls(cell: str) -> None:
    # pyarrow.json makes arrays out of bounds of them.
    array = column(*[cell, "null"] * 100)
    array.validate(full=True)
    assert array.to_pylist() == [json.loads(cell), None] * 100
    mixed = typed(*[f'{{"a":{cell}}}'] * 100, f'{{"a":{cell.replace("null", "true", 1)}}}')
    mixed.table.validate(full=True)
    assert mixed.table["a"].to_pylist()[-1] == json.loads(cell.replace("null", "true", 1))


@pytest.mark.parametrize(
    ("cells", "types", "action"),
    [
        (["1", "true", "null"], {"integer": 1, "boolean": 1}, "text"),
        (["1.50", '{"x": 1.50}', '"é"'], {"double": 1, "object": 1, "string": 1}, "json"),
        (["[1]", "{}"], {"array": 1, "object": 1}, "json"),
        (["1" * 77], {"integer": 1}, "text"),
        (["1" * 5000], {"integer": 1}, "text"),
        (["9007199254740993", "0.5"], {"integer": 1, "double": 1}, "text"),
        (["0.50", "9007199254740993"], {"integer": 1, "double": 1}, "text"),
        (["1e400", "-1e400", "1"], {"double": 2, "integer": 1}, "text"),
    ],
)
def test_values_that_have_no_type_keep_their_source(
    cells: list[str], types: dict[str, int], action: str
) -> None:
    result = typed(*(f'{{"a": {cell} }}' for cell in cells))
    array = result.table.column("a")
    assert array.type == pa.string()
    assert array.to_pylist() == [None if cell == "null" else cell for cell in cells]
    assert told(result) == [("a", types, action)]


def test_strings_among_other_scalars_are_unchanged() -> None:
    cells = ['"02134"', "2134", '"\\u00e9"', "true", "1.50", "null", '"null"']
    assert column(*cells).to_pylist() == ["02134", "2134", "é", "true", "1.50", None, "null"]
    result = typed(*(f'{{"a":{cell}}}' for cell in cells), on_conflict="json")
    assert result.table["a"].to_pylist() == [None if cell == "null" else cell for cell in cells]
    assert told(result) == [("a", {"boolean": 1, "double": 1, "integer": 1, "string": 3}, "json")]


def test_a_conflict_inside_stays_where_it_is() -> None:
    result = typed('{"k":1,"a":{"b":[{"c":1}]}}', '{"k":2,"a":{"b":[{"c":"x"}, {}]}}', '{"a":{"b":3}}')
    assert shape(result) == {"k": "int64", "a": "struct<b: string>"}
    assert result.table.column("a").to_pylist() == [{"b": '[{"c":1}]'}, {"b": '[{"c":"x"}, {}]'}, {"b": "3"}]
    assert told(result) == [("a.b", {"array": 2, "integer": 1}, "json")]
    deeper = typed('{"k":1,"a":{"b":[{"c":1}]}}', '{"k":2,"a":{"b":[{"c":"x"}, {}]}}')
    assert deeper.table.column("a").to_pylist() == [{"b": [{"c": "1"}]}, {"b": [{"c": "x"}, {"c": None}]}]
    assert told(deeper) == [("a.b[].c", {"integer": 1, "string": 1}, "text")]


@pytest.mark.parametrize("cut", [0, 1, 100, 150, 299, 300])
def test_conflicts_are_counted_over_all_documents(cut: int) -> None:
    values = [f'{{"a":{n}}}'.encode() for n in range(100)]
    values += [b'{"a":"x","b":[1,"y",2]}'] * 100 + [b'{"a":null,"b":["z"]}'] * 100
    result = in_batches(values[:cut], values[cut:])
    assert told(result) == [
        ("a", {"integer": 100, "string": 100}, "text"),
        ("b[]", {"integer": 200, "string": 200}, "text"),
    ]
    assert [c.samples for c in result.conflicts] == [
        {"integer": (0, 1, 2), "string": (100, 101, 102)},
        {"integer": (100, 101, 102), "string": (100, 101, 102)},
    ]


@pytest.mark.parametrize("exact", [2**53 - 1, 2**53, 2**53 + 2, -(2**53), 2**62, -(2**63)])
def test_integers_that_have_an_exact_double_may_stand_among_doubles(exact: int) -> None:
    assert column(str(exact), "0.5").to_pylist() == [float(exact), 0.5]
    assert column(*["0.5"] * 100, str(exact)).to_pylist()[-1] == float(exact)
    for among_themselves in (exact, 2**53 + 1, 2**63 - 1, -(2**53) - 1):
        assert column(*["1"] * 100, str(among_themselves)).to_pylist()[-1] == among_themselves


@pytest.mark.parametrize("lossy", [2**53 + 1, 2**63 - 1, -(2**53) - 1, 10**30, 10**80])
@pytest.mark.parametrize("before", [0, 1, 200])
@pytest.mark.parametrize("after", [0, 1, 200])
def test_no_digit_is_lost_wherever_the_integer_stands(lossy: int, before: int, after: int) -> None:
    cells = ["0.5"] * before + [str(lossy), "1.5"] + ["2.50"] * after
    array = column(*cells)
    assert array.type == pa.string()
    assert array.to_pylist() == cells


def test_large_doubles_stay_doubles() -> None:
    cells = ["1.7e300", "-1e20", "0.5", "9007199254740993.0"] * 50
    assert column(*cells).to_pylist() == [float(cell) for cell in cells]
    nested = column(*(f'[{{"x":{cell}}}]' for cell in cells))
    assert [row[0]["x"] for row in nested.to_pylist()] == [float(cell) for cell in cells]


def test_the_sign_of_zero_is_kept_in_doubles() -> None:
    for cells in (["-0.0", "1"], ["-0", "1.5"], ["-0", *["1"] * 200, "1.5"]):
        assert str(column(*cells).to_pylist()[0]) == "-0.0"


NO_JSON = [
    *(b'{"a":NaN}', b'{"a":Infinity}', b'{"a":-Infinity}', b'{"a":1', b"}", b"}{", b'{"a":1}{"a":2}'),
    *(b'{"a":1}\n{"a":2}', b'{"a":1},{"a":2}', b'{"a":1}}', b'{"a":1}}\n{"a":2', b'{"a":1}\0'),
    *(b'{"a":1}\0trailing', b'{"a":1}}\0', b'\xef\xbb\xbf{"a":1}', b'{"a":"\\ud800"}', b'{"a":"x\ny"}'),
    *(b'{"a":"\\x41"}', b"{'a':1}", b'{"a":01}', b'{"a":1.}', b'{"a":+1}', b'{"a":1,}', b'{"a":[1,]}'),
    *(b'{"a":1/**/}', b"{a:1}", b"nul"),
]
DEEP = [
    b'{"a":' + b"[" * 200 + b"]" * 200 + b"}",
    b'{"a":' * 201 + b"1" + b"}" * 201,
    b"[" * 100_000,
    b'{"a":' * 100_000,
]
REJECTED = {
    "empty": [b"", b" \n\t"],
    "not_utf8": [b"\xff\xfe", b'{"a":"\xff"}', b'{"a":"\xc3"}', b'{"a":"\xed\xa0\x80"}'],
    "invalid_json": NO_JSON,
    "not_an_object": [b"null", b"1", b' "text"', b'[{"a":1}]'],
    "too_deep": DEEP,
}


@pytest.mark.parametrize(
    ("value", "reason"), [(value, reason) for reason, values in REJECTED.items() for value in values]
)
@pytest.mark.parametrize("at", [0, 1, 150])
def test_values_that_are_rejected(value: bytes, reason: str, at: int) -> None:
    good = [f'{{"a":{n}}}'.encode() for n in range(150)]
    result = typed(*good[:at], value, *good[at:])
    assert result.rejected == {reason: 1}
    assert result.conflicts == ()
    assert result.table.column_names == ["a", "_cb_value", "_cb_reason"]
    assert result.table["_cb_reason"].to_pylist() == [None] * at + [reason] + [None] * (150 - at)
    assert result.table["a"].to_pylist() == [*range(at), None, *range(at, 150)]
    assert result.table["_cb_value"].to_pylist() == [None] * at + [value] + [None] * (150 - at)


def test_rejected_values_leave_nothing_in_the_schema() -> None:
    result = typed('{"b":1,"a":NaN}', '{"a":1}', '{"c":')
    assert result.table.column_names == ["a", "_cb_value", "_cb_reason"]


def test_only_rejected_values() -> None:
    result = typed(b"", b"\xff", b"7")
    assert result.table.to_pydict() == {
        "_cb_value": [b"", b"\xff", b"7"],
        "_cb_reason": ["empty", "not_utf8", "not_an_object"],
    }
    assert result.rejected == {"empty": 1, "not_utf8": 1, "not_an_object": 1}


def test_rows_that_the_server_does_not_call_json_are_not_tried() -> None:
    """And what it calls JSON is not believed."""
    result = typed('{"a":1}', '{"a":2}', b"", b"\x00\x01", is_json=[True, False, False, True])
    assert result.table.to_pydict() == {
        "a": [1, None, None, None],
        "_cb_value": [None, b'{"a":2}', b"", b"\x00\x01"],
        "_cb_reason": [None, "binary", "binary", "invalid_json"],
    }
    assert result.rejected == {"binary": 2, "invalid_json": 1}


@pytest.mark.parametrize("depth", [65, 199, 200])
def test_deeper_than_sixty_levels_is_json_text(depth: int) -> None:
    result = typed(
        b'{"a":' * depth + b"1" + b"}" * depth, b'{"a":[' + b'"[[{{",' * 500 + b'"]"]}', max_members=200
    )
    assert result.rejected == {}
    lists = typed(b'{"a":' + b"[" * (depth - 1) + b"1" + b"]" * (depth - 1) + b"}")
    assert lists.rejected == {}
    cell = lists.table["a"].to_pylist()[0]
    for _ in range(59):
        cell = cell[0]
    assert cell == "[" * (depth - 60) + "1" + "]" * (depth - 60)


def test_brackets_in_strings_do_not_nest() -> None:
    text = r"\"" + "[{" * 600 + r"\\"
    result = typed(f'{{"a":"{text}"}}')
    assert result.rejected == {}
    assert len(result.table["a"].to_pylist()[0]) == 1202


def test_blanks_and_line_ends_inside_and_around() -> None:
    result = typed('\r\n\t {"a":\n [1,\n2 ],\n\n"b" : "x" }\n\n', '{"a":[3]}', "{ }", "{}")
    assert result.rejected == {}
    assert result.table.to_pydict() == {"a": [[1, 2], [3], None, None], "b": ["x", None, None, None]}


def test_the_last_of_equal_names_counts() -> None:
    result = typed(*['{"a":1,"b":{"c":1}}'] * 100, '{"a":1,"b":{"c":1,"c":2},"a":2,"\\u0061":3}')
    assert result.table.slice(100).to_pylist() == [{"a": 3, "b": {"c": 2}}]


@pytest.mark.parametrize("name", ["", "a.b", "ü😀", "a b", "[]", "/", "$", "__proto__", "0"])
def test_any_name_is_a_column(name: str) -> None:
    result = typed(*[f'{{"{name}":{n},"s":{{"{name}":{n}}}}}' for n in range(100)])
    assert result.table[name].to_pylist() == list(range(100))
    assert result.table["s"].to_pylist() == [{name: n} for n in range(100)]


def test_names_that_are_ours_get_an_underscore() -> None:
    result = typed(
        '{"_cb_value":1,"_cb_value_":2,"_cb_rest":3,"_cb_":4,"cb_":5,"_CB_x":6,"s":{"_cb_x":7}}', b""
    )
    assert result.table.slice(0, 1).to_pylist() == [
        {
            "_cb_value_": 1,
            "_cb_value__": 2,
            "_cb_rest_": 3,
            "_cb__": 4,
            "cb_": 5,
            "_CB_x": 6,
            "s": {"_cb_x": 7},
            "_cb_value": None,
            "_cb_reason": None,
        }
    ]


def test_columns_stand_in_order_of_first_appearance() -> None:
    documents = [
        '{"b":null,"y":null,"n":null}',
        '{"a":"x","b":1}',
        '{"c":1,"a":2}',
        *["{}"] * 200,
        '{"d":{"z":1,"n":null}}',
        '{"d":{"y":[{"q":1},{"p":1}]}}',
    ]
    for order in (1, -1):
        values = pa.array([document.encode() for document in documents[::order]], pa.binary())
        places = Places(
            np.array([1] * 100 + [2] * 105, np.uint16)[::order], np.arange(205, dtype=np.uint64)[::order]
        )
        typer = JsonTyper()
        typer.add(values, None, places)
        result = typer.finish()
        assert result.table.column_names == ["a", "b", "c", "d", "n", "y"]
        members = result.table.schema.field("d").type
        assert [field.name for field in members] == ["z", "y", "n"]
        assert [field.name for field in members.field("y").type.value_type] == ["q", "p"]
        assert result.table["d"].to_pylist()[::order][-1] == {
            "z": None,
            "y": [{"q": 1, "p": None}, {"q": None, "p": 1}],
            "n": None,
        }


def test_no_rows_and_no_fields() -> None:
    nothing = JsonTyper().finish()
    assert (nothing.rows, nothing.table.num_columns) == (0, 0)
    empty = typed()
    assert (empty.rows, empty.table.num_columns) == (0, 0)
    blank = typed("{}", "{ }")
    assert (blank.rows, blank.table.num_columns, blank.rejected) == (2, 0, {})


def test_slices_and_large_binary() -> None:
    values = pa.array([b"x", b'{"a":1}', b"", b'{"a":2}', b"y"], pa.large_binary())
    typer = JsonTyper()
    typer.add(values[1:4])
    typer.add(values.cast(pa.binary())[3:4])
    result = typer.finish()
    assert result.table.to_pydict() == {
        "a": [1, None, 2, 2],
        "_cb_value": [None, b"", None, None],
        "_cb_reason": [None, "empty", None, None],
    }
    assert result.table.schema.field("_cb_value").type == pa.binary()


def test_types_widen_over_batches() -> None:
    result = in_batches(
        ['{"a":null,"b":1,"c":[],"d":{}}'] * 70,
        ['{"a":1,"b":2.5,"c":[null],"d":{"x":null}}'] * 70,
        ['{"c":["s"],"d":{"x":[{}]},"e":true}'] * 70,
        ['{"d":{"x":[{"y":1}]}}'] * 70,
    )
    table = result.table
    assert shape(result) == {
        "a": "int64",
        "b": "double",
        "c": "list<item: string>",
        "d": "struct<x: list<item: struct<y: int64>>>",
        "e": "bool",
    }
    assert table.slice(0, 1).to_pylist() == [{"a": None, "b": 1.0, "c": [], "d": {"x": None}, "e": None}]
    assert table["d"].to_pylist()[140] == {"x": [{"y": None}]}
    assert table["b"].to_pylist()[:1] + table["b"].to_pylist()[-1:] == [1.0, None]
    table.validate(full=True)


@pytest.mark.parametrize(
    "values",
    [
        [b"", b'{"a":1}{"a":2}'],
        [b'{"a":1', b"}"],
        [b'{"a":', b"1}"],
        [b'{"a":1},{"a":2}', b""],
        [b"", b'{"a":1},{"a":2}'],
        [b'{"a":[1', b"2]}"],
        [b'{"a":"x', b'y"}'],
        [b'{"a":{"a":1}', b"}"],
        [b'{"a":1}}{"a":{"a":2}', b""],
        [b'{"a":1}}\n{', b'"a":1}'],
        [b'{"a":1}\0', b'{"a":2}\0'],
    ],
)
def test_no_pair_of_values_shifts_the_rows(values: list[bytes]) -> None:
    good = [f'{{"a":{n}}}'.encode() for n in range(100)]
    result = typed(*good, *values, *good)
    assert result.table["a"].to_pylist() == [*range(100), *[None] * len(values), *range(100)]
    assert result.table["_cb_value"].to_pylist()[100:-100] == values
    assert sum(result.rejected.values()) == len(values)


def test_unclosed_documents_do_not_nest_into_one_another() -> None:
    result = typed(*[b'{"a":'] * 50_000)
    assert result.rejected == {"invalid_json": 50_000}


def test_top_level_names_that_are_data() -> None:
    documents = [f'{{"id":{n},"k{n}a":1,"k{n}b":"x","k{n}c": 1.50}}' for n in range(10_000)]
    began = time.process_time()
    before = pa.total_allocated_bytes()
    result = typed(*documents, max_columns=300)
    assert time.process_time() - began < 20
    assert pa.total_allocated_bytes() - before < 200 << 20
    assert result.table.num_columns == 301
    # Of the names that occur once, those that are first in the alphabet.
    assert result.table["k0a"].to_pylist()[:2] == [1, None]
    assert result.table["id"].to_pylist() == list(range(10_000))
    assert result.table["_cb_rest"].to_pylist()[-1] == '{"k9999a":1,"k9999b":"x","k9999c":1.50}'
    assert result.table["_cb_rest"].to_pylist()[0] is None
    assert result.conflicts == ()


def test_nested_names_that_are_data() -> None:
    documents = [f'{{"id":{n},"m":{{"k{n}a":1,"k{n}b":2,"k{n}c":3}}}}' for n in range(10_000)]
    began = time.process_time()
    result = typed(*documents)
    assert time.process_time() - began < 20
    assert shape(result) == {"id": "int64", "m": "map<string, int64>"}
    assert result.table["m"].to_pylist()[77] == [("k77a", 1), ("k77b", 2), ("k77c", 3)]
    assert told(result) == [("m", {"object": 10_000}, "map")]
    assert result.conflicts[0].names == 30_000


def test_a_map_inside_stays_where_it_is() -> None:
    """Of whatever order: before it is known to be one, the whole column looks too large."""
    documents = [f'{{"a":{{"m":{{"k{n}":{{"x":1,"y":{{}}}}}},"n":{n}}}}}' for n in range(1500)]
    for order in (1, -1):
        result = typed(*documents[::order])
        assert shape(result) == {"a": "struct<m: map<string, struct<x: int64, y: struct<>>>, n: int64>"}
        assert result.table["a"].to_pylist()[::order][77] == {"m": [("k77", {"x": 1, "y": {}})], "n": 77}


def test_of_two_columns_the_one_with_more_fields_gives_way() -> None:
    documents = [f'{{"small":{{"x":1,"y":2}},"map":{{"k{n}":1}}}}' for n in range(200)]
    result = typed(*documents, max_members=100)
    assert shape(result) == {"small": "struct<x: int64, y: int64>", "map": "map<string, int64>"}


def test_a_value_of_many_quotes_is_judged_in_linear_time() -> None:
    began = time.process_time()
    result = typed(b'"' + b'\\"' * 500_000 + b"[" * 1000, b'"\\' * 300_000 + b"{" * 1000)
    assert time.process_time() - began < 5
    assert sum(result.rejected.values()) == 2


def test_nested_values_as_text() -> None:
    """As they were written: no digit, blank or order is changed. What has a plain type keeps it."""
    source = '{"n":1, "geo":{"lat": 1.50,"z":1,"a":2}, "tags":[1, "x"], "e":{}, "none":null}'
    result = typed(source, '{"n":2,"geo":null}', '{"geo":{ }}', nested_as_text=True)
    assert result.table.to_pydict() == {
        "n": [1, 2, None],
        "geo": ['{"lat": 1.50,"z":1,"a":2}', None, "{ }"],
        "tags": ['[1, "x"]', None, None],
        "e": ["{}", None, None],
        "none": [None, None, None],
    }
    assert result.conflicts == ()


@pytest.mark.parametrize("others", [["5"], ["true", '"x"'], ["[1]"], ["[ ]", "1.50"]])
@pytest.mark.parametrize("on_conflict", ["widen", "null"])
def test_nested_values_as_text_hide_no_conflict(others: list[str], on_conflict: OnConflict) -> None:
    """Whatever comes first; of so many values most are captured, of fewer all are rewritten."""
    many, few = ['{"b": 1}'] * 100, ['{"b": 1}'] * 3
    results = []
    for parts in (
        [many, [*few, *others]],
        [[*few, *others], many],
        [[*few, *many, *others]],
        [few, [*many, *others]],
    ):
        batches = [[f'{{"a":{value}}}' for value in part] for part in parts]
        result = in_batches(*batches, nested_as_text=True, on_conflict=on_conflict)
        (conflict,) = result.conflicts
        results.append((sorted(result.table["a"].drop_null().to_pylist()), conflict.types))
    kept = [*many, *few] if on_conflict == "null" else [*many, *few, *others]
    assert results == [(sorted(kept), results[0][1])] * len(results)
    assert results[0][1]["object"] == len(many) + len(few)
    assert sum(results[0][1].values()) == len(many) + len(few) + len(others)


def test_of_values_without_a_common_type_the_most_frequent_kind_is_kept() -> None:
    documents = ['{"a":1,"b":{"x":1}}', '{"a":"s","b":{"x":"t","y":2}}', '{"a":2.5,"b":"u"}', '{"a":true}']
    for order in (1, -1):
        result = typed(*(documents * 50)[::order], on_conflict="null")
        rows = result.table.to_pylist()[::order][:4]
        assert [row["a"] for row in rows] == [1.0, None, 2.5, None]
        # Of as many numbers as strings, the numbers.
        assert [row["b"] for row in rows] == [{"x": 1, "y": None}, {"x": None, "y": 2}, None, None]
        assert told(result) == [
            ("a", {"boolean": 50, "double": 50, "integer": 50, "string": 50}, "null"),
            ("b", {"object": 100, "string": 50}, "null"),
            ("b.x", {"integer": 50, "string": 50}, "null"),
        ]


def test_numbers_that_no_type_holds_stay_text_and_maps_json() -> None:
    result = typed('{"a":9007199254740993}', '{"a":0.5}', on_conflict="null")
    assert result.table["a"].to_pylist() == ["9007199254740993", "0.5"]
    maps = typed(*(f'{{"m":{{"k{n}":1}}}}' for n in range(9)), on_conflict="null", max_members=3)
    assert shape(maps) == {"m": "map<string, int64>"}


def test_only_fields_of_the_first_documents_become_columns() -> None:
    documents = ['{"a":1}', '{"b":2}', '{"c": 3,"a":0.5}', '{"a":"x"}']
    result = typed(*documents, infer_length=2)
    assert result.table.to_pydict() == {
        "a": ["1", None, "0.5", "x"],
        "b": [None, 2, None, None],
        "_cb_rest": [None, None, '{"c":3}', None],
    }
    assert typed(*documents, infer_length=4).table.column_names == ["a", "b", "c"]


def test_declared_columns_are_kept_of_too_many() -> None:
    documents = [f'{{"k{n}":1}}' for n in range(20)]
    result = typed(*documents, max_columns=3, declared={"z": pa.int64(), "k9": pa.string()})
    assert result.table.column_names == ["k0", "k9", "z", "_cb_rest"]


@pytest.mark.parametrize(
    ("early", "late", "cells"),
    [
        ("true", '"x"', ["true", "x"]),
        ("-7", "false", ["-7", "false"]),
        ('"1.0"', "1.0", ["1.0", "1.0"]),
        ("[true,null,false]", "[5]", [["true", None, "false"], ["5"]]),
        ('[{"b":1},{"b":2}]', '[{"b":"x"}]', [[{"b": "1"}, {"b": "2"}], [{"b": "x"}]]),
        ('{"b":18446744073709551615}', '{"b":"x"}', [{"b": "18446744073709551615"}, {"b": "x"}]),
        # Written in more ways than one: looked at again.
        ("1.50", '"x"', ["1.50", "x"]),
        ("-0", '"x"', ["-0", "x"]),
    ],
)
def test_what_is_written_in_one_way_becomes_text_without_its_documents(
    early: str, late: str, cells: list[Any]
) -> None:
    typer = JsonTyper()
    typer.add(pa.array([b'{"a":null}', f'{{"a":{early}}}'.encode()], pa.binary()))
    typer.add(pa.array([f'{{"a":{late}}}'.encode()], pa.binary()))
    result = typer.finish()
    assert typer.read_again == (early in ("1.50", "-0"))
    assert result == typed('{"a":null}', f'{{"a":{early}}}', f'{{"a":{late}}}')
    assert result.table["a"].to_pylist() == [None, *cells]


@pytest.mark.parametrize("number", [-(2**53) - 2, 2**62, 2**63])
@pytest.mark.parametrize("cell", ["{}", "[{}]", '{{"b":{}}}'])
def test_large_integers_of_one_batch_and_doubles_of_another(number: int, cell: str) -> None:
    """Those that a double holds exactly are doubles."""
    values = [f'{{"a":{cell.format(each)}}}'.encode() for each in (number, 0.5)]
    whole, batches = typed_values(values), typed_values(values, 1)
    assert batches.table.equals(whole.table)
    assert str(float(number)) in str(batches.table["a"].to_pylist())


# --- the typer gives what json_oracle gives; in any batches and order

LONG = ["340282366920938463463374607431768211456", "-" + "9" * 39, "9" * 38, "1" * 5000]
ODD_NAMES = ['"\\u0000"', '"b\\u0000"', '"a"']
edges = st.one_of(
    st.sampled_from([*LONG, "0.5", "9007199254740993", "{}", "[]", "[null]", "[{}]", '{"a":{}}']),
    anything,
    st.sampled_from(ODD_NAMES).flatmap(lambda name: scalars.map(lambda value: f"{{{name}:{value}}}")),
    st.tuples(st.integers(55, 62), st.sampled_from(["[", '{"a":']), scalars).map(
        lambda parts: parts[1] * parts[0] + parts[2] + {"[": "]"}.get(parts[1], "}") * parts[0]
    ),
)
many_names = st.integers(0, 12).flatmap(lambda n: edges.map(lambda value: f'"n{n}":{value}'))
objects = st.one_of(
    st.lists(many_names, max_size=4).map(lambda members: "{" + ",".join(members) + "}"),
    st.lists(many_names, max_size=2).map(lambda members: '[{"x":{' + ",".join(members) + "}}]"),
    edges,
)
some = st.lists(st.one_of(documents(objects), documents(edges)), max_size=14)
cuts = st.lists(st.integers(0, 40), max_size=4)


@pytest.fixture
def small_objects(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names are data in few and small objects."""
    for name, number in (("MANY_NAMES", 2), ("SMALL", 6), ("RARE", 2)):
        monkeypatch.setattr(layout, name, number)


def shown(cells: Any) -> list[str]:
    """By their text: -0.0 is another number than 0.0, and there are no NaN."""
    return [repr(cell) for cell in cells]


def compare(values: list[bytes], found: TypedColumns, max_members: int = 1000) -> None:
    wanted, table = json_oracle.typed(values, max_members), found.table
    assert found.rows == len(values)
    table.validate(full=True)
    ours = {"_cb_rest", "_cb_value", "_cb_reason"}
    assert [
        (name, table[name].type, shown(table[name].to_pylist()))
        for name in table.column_names
        if name not in ours
    ] == [(name, column.type, shown(wanted.cells[name])) for name, column in wanted.columns.items()]
    assert {name for name, member in found.root.members.items() if member.how == "json"} == {
        name for name, column in wanted.columns.items() if column.json
    }
    rest = table["_cb_rest"].to_pylist() if "_cb_rest" in table.column_names else [None] * len(values)
    assert [{} if each is None else json.loads(each, parse_int=str) for each in rest] == [
        {name: json.loads(source, parse_int=str) for name, source in each.items()} for each in wanted.rest
    ]
    odd = [json_oracle.read(value) is None for value in values]
    assert sum(found.rejected.values()) == sum(odd)
    if any(odd):
        assert table["_cb_value"].to_pylist() == [
            value if bad else None for value, bad in zip(values, odd, strict=True)
        ]
        reasons = table["_cb_reason"].to_pylist()
        assert [reason is not None for reason in reasons] == odd
        assert all(Reason[reason.upper()] is not Reason.GOOD for reason in reasons if reason is not None)


@pytest.mark.usefixtures("small_objects")
@settings(deadline=None, max_examples=150)
@given(some, st.integers(1, 6), st.sampled_from([8, 1000]))
def test_equal(values: list[bytes], step: int, max_members: int) -> None:
    compare(values, typed_values(values, step, max_members=max_members), max_members)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.usefixtures("small_objects")
@settings(deadline=None, max_examples=20_000)
@given(st.lists(some | some.map(lambda each: each * 20), min_size=1, max_size=3), st.integers(1, 90))
def test_equal_for_long(parts: list[list[bytes]], step: int) -> None:
    values = [value for part in parts for value in part]
    compare(values, typed_values(values, step))


def convert(
    values: list[bytes], cuts: list[int], order: list[int] | None = None, **policy: Any
) -> TypedColumns:
    """Type values in batches, in an order of arrival; where they stand stays the same."""
    typer = JsonTyper(Policy(**policy))
    order = order or list(range(len(values)))
    for start, stop in pairwise([0, *sorted(min(cut, len(values)) for cut in cuts), len(values)]):
        rows = order[start:stop]
        places = Places(np.array(rows, np.uint16) // 5, np.array(rows, np.uint64))
        typer.add(pa.array([values[row] for row in rows], pa.binary()), None, places)
    return typer.finish()


@settings(deadline=None)
@given(runs(), cuts)
def test_in_any_batches(values: list[bytes], cuts: list[int]) -> None:
    compare(values, convert(values, cuts))


MUTATIONS = st.tuples(
    st.integers(0, 400), st.sampled_from(list(b'{}[]":,\\ \n01.eE-tfn\x00\x1f\xff\xc3\xa9NaI'))
)


@settings(deadline=None)
@given(st.lists(documents(anything), min_size=1, max_size=6), st.lists(MUTATIONS, max_size=4))
def test_damage_is_found_where_it_is(values: list[bytes], mutations: list[tuple[int, int]]) -> None:
    damaged = [bytearray(value) for value in values * 3]
    for at, octet in mutations:
        victim = damaged[at % len(damaged)]
        victim[at // len(damaged) % len(victim)] = octet
    octets = [bytes(value) for value in damaged]
    compare(octets, convert(octets, []))


@settings(deadline=None)
@given(st.lists(st.binary(max_size=12), max_size=20), cuts)
def test_any_bytes_at_all(values: list[bytes], cuts: list[int]) -> None:
    compare(values, convert(values, cuts))


@settings(deadline=None)
@given(runs(), cuts, st.randoms(use_true_random=False), st.integers(2, 6), st.sampled_from(["widen", "json"]))
def test_nothing_depends_on_batches_or_order(
    values: list[bytes], cuts: list[int], random: Random, limit: int, on_conflict: str
) -> None:
    policy: Any = {"max_columns": limit, "max_members": limit, "on_conflict": on_conflict}
    order = list(range(len(values)))
    random.shuffle(order)
    whole, parts = convert(values, [], **policy), convert(values, cuts, order, **policy)
    assert parts.table.schema == whole.table.schema
    rows = parts.table.to_pylist()
    arrived = [rows[order.index(row)] for row in range(len(values))] if rows else []
    assert repr(arrived) == repr(whole.table.to_pylist())
    assert parts.rejected == whole.rejected
    assert [(c.path, c.types, c.action) for c in parts.conflicts] == [
        (c.path, c.types, c.action) for c in whole.conflicts
    ]
    assert [
        {kind: tuple(order[row] for row in rows) for kind, rows in c.samples.items()} for c in parts.conflicts
    ] == [c.samples for c in whole.conflicts]


@settings(deadline=None)
@given(runs(), cuts, st.integers(1, 20), st.integers(1, 4))
def test_only_fields_of_the_first_documents(
    values: list[bytes], cuts: list[int], length: int, most: int
) -> None:
    result = convert(values, cuts, infer_length=length, max_columns=most)
    found = [json_oracle.read(value) for value in values]
    early = {name for value in found[:length] if value is not None for name in value.content}
    columns = {name for name in result.table.column_names if not name.startswith("_cb_")}
    assert columns <= early or len(values) <= length
    assert len(columns) <= most
    rest = result.table["_cb_rest"].to_pylist() if "_cb_rest" in result.table.column_names else []
    for row, value in enumerate(found):
        members = {} if value is None else value.content
        left = {name for name, member in members.items() if member.kind != "null"} - columns
        assert left <= (json.loads(rest[row] or "{}").keys() if rest else set())
