"""Columns of files that were typed on their own: what they become together, and what becomes of values."""

import base64
import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, date, datetime
from decimal import Decimal
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from documents_in_files import File, described, marked, typed
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from json_documents import runs

from cbframe.arrow import column_types
from cbframe.arrow.column_types import Columns, Difference, Kind, Marks, differences, unify, widen
from cbframe.arrow.declared_types import Dates
from cbframe.errors import ConfigurationError
from cbframe.json.layout import FieldPath, Policy
from cbframe.scan.parquet import write_parquet

BIG = 2**53 + 1
BOOL, TEXT, BYTES, DATE = pa.bool_(), pa.string(), pa.binary(), pa.date32()
I8, I16, I32, I64 = pa.int8(), pa.int16(), pa.int32(), pa.int64()
U8, U16, U32, U64 = pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()
F32, F64, DECIMAL = pa.float32(), pa.float64(), pa.decimal128(38, 0)


def cells_of(*cells: str) -> File:
    """A file of documents that have one field with these cells."""
    return typed([f'{{"a":{cell}}}'.encode() for cell in cells])


def together(*files: File) -> tuple[pa.Table, Columns]:
    wide = unify([columns for _, columns in files])
    tables = [widen(table, columns, wide) for table, columns in files]
    for table in tables:
        table.validate(full=True)
        assert table.schema == wide.schema
    return pa.concat_tables(tables), wide


def declared(kind: pa.DataType, values: list[Any]) -> File:
    """A file whose column `a` is of a type that only a declaration makes."""
    table = pa.table({"a": pa.array(values, kind)})
    return table, described(table)


MOMENT = pa.timestamp("us", "UTC")
CATEGORIES = pa.dictionary(I32, TEXT)


@pytest.mark.parametrize(
    ("one", "other", "kind", "values"),
    [
        (["null"], ["null"], pa.null(), [None, None]),
        (["null"], ["true"], BOOL, [None, True]),
        (["null"], ["1"], I64, [None, 1]),
        (["null"], ["[1]"], pa.list_(I64), [None, [1]]),
        (["null"], ["{}"], pa.struct([]), [None, {}]),
        (["null"], ['"x"'], TEXT, [None, "x"]),
        (["1", "null"], ["2"], I64, [1, None, 2]),
        (["7"], [str(2**63)], U64, [7, 2**63]),
        (["-7"], [str(2**63)], DECIMAL, [Decimal(-7), Decimal(2**63)]),
        (["-7", "7"], [str(2**64)], DECIMAL, [Decimal(-7), Decimal(7), Decimal(2**64)]),
        ([str(2**63)], [str(2**64)], DECIMAL, [Decimal(2**63), Decimal(2**64)]),
        (["1", "9" * 39], ["-2"], TEXT, ["1", "9" * 39, "-2"]),
        ([str(2**64)], ["9" * 39], TEXT, [str(2**64), "9" * 39]),
        (["1", "null", str(2**60)], ["0.5"], F64, [1.0, None, 2.0**60, 0.5]),
        ([str(2**63)], ["0.5"], F64, [2.0**63, 0.5]),
        ([str(2**100 + 2**60)], ["0.5"], F64, [float(2**100 + 2**60), 0.5]),
        ([str(-(2**63)), str(2**53)], ["0.5"], F64, [-(2.0**63), 2.0**53, 0.5]),
        ([str(BIG), "1"], ["0.5", "100.0"], TEXT, [str(BIG), "1", "0.5", "100.0"]),
        ([str(-BIG), str(2**60)], ["0.5"], TEXT, [str(-BIG), str(2**60), "0.5"]),
        ([str(2**64), str(2**64 + 1)], ["0.5"], TEXT, [str(2**64), str(2**64 + 1), "0.5"]),
        ([str(2**64 - 1)], ["1e22"], TEXT, [str(2**64 - 1), "1e+22"]),
        ([str(10**25)], ["-0.0"], TEXT, [str(10**25), "-0.0"]),
        (["true", "null"], ["1"], TEXT, ["true", None, "1"]),
        (["false"], ['"x"'], TEXT, ["false", "x"]),
        (["1", "-2"], ['"x"'], TEXT, ["1", "-2", "x"]),
        ([str(2**64)], ['"x"'], TEXT, [str(2**64), "x"]),
        (["1.0", "1e15", "1e-5"], ['"x"'], TEXT, ["1.0", "1000000000000000.0", "1e-05", "x"]),
        (["1.5", "true"], ["2.50"], TEXT, ["1.5", "true", "2.5"]),
        (['{"b":1}'], ['{"c":"x"}'], None, [{"b": 1, "c": None}, {"b": None, "c": "x"}]),
        (['{"b":1}', "null"], ['{"b":0.5}'], None, [{"b": 1.0}, None, {"b": 0.5}]),
        (["{}", "null"], ['{"b":true}'], None, [{"b": None}, None, {"b": True}]),
        (["[1,null]", "[]", "null"], ["[true]"], None, [["1", None], [], None, ["true"]]),
        (["[]"], ["[[{}]]"], None, [[], [[{}]]]),
        (["[null]", "null"], ["[0.5]"], None, [[None], None, [0.5]]),
        (["[[1]]"], ['[{"b":1}]'], pa.list_(TEXT), [["[1]"], ['{"b":1}']]),
        (["1", "null"], ["[1]"], TEXT, ["1", None, "[1]"]),
        (["true"], ['{"b":null,"c":[]}'], TEXT, ["true", '{"c":[]}']),
        (['"x"', r'"\"\\\n\u0001é😀/"'], ["{}"], TEXT, ['"x"', r'"\"\\\n\u0001é😀/"', "{}"]),
        (['"x"'], ["[]", "3"], TEXT, ['"x"', "[]", "3"]),
        (["0.5", "1e2"], ["[]", "3"], TEXT, ["0.5", "100.0", "[]", "3"]),
        (['{"b":[1,null,{"c":"x"}]}'], ["3"], TEXT, ['{"b":[1,null,{"c":"x"}]}', "3"]),
        (['{"b":1}'], ["[2,null]"], TEXT, ['{"b":1}', "[2,null]"]),
        (["[]", "3"], ["[ ]", "4"], TEXT, ["[]", "3", "[ ]", "4"]),
        (["null"], ["[ ]", "4"], TEXT, [None, "[ ]", "4"]),
    ],
)
def test_what_two_columns_become(one: list[str], other: list[str], kind: Any, values: list[Any]) -> None:
    files = cells_of(*one), cells_of(*other)
    table, wide = together(*files)
    assert kind is None or table.schema.field("a").type == kind
    assert repr(table["a"].to_pylist()) == repr(values)
    assert table.num_rows == len(one) + len(other)
    back, same = together(*reversed(files))
    again = back["a"].to_pylist()
    assert [*again[len(other) :], *again[: len(other)]] == values
    assert same == wide or pa.types.is_struct(wide.schema.field("a").type), "only members may stand elsewhere"


@pytest.mark.parametrize(
    ("one", "other", "kind", "values"),
    [
        ((DATE, [1, None]), (DATE, [2]), DATE, ["1970-01-02", None, "1970-01-03"]),
        ((DATE, [1]), (I64, [2]), TEXT, ["1970-01-02", "2"]),
        ((DATE, [1]), (MOMENT, [1500000]), TEXT, ["1970-01-02", "1970-01-01T00:00:01.5Z"]),
        ((I8, [-1]), (I32, [2]), I32, [-1, 2]),
        ((I8, [-1]), (U32, [2**32 - 1]), I64, [-1, 2**32 - 1]),
        ((I8, [1]), (U64, [2]), U64, [1, 2]),
        ((I8, [-1]), (U64, [2]), DECIMAL, [-1, 2]),
        ((U8, [1]), (U16, [2]), U16, [1, 2]),
        ((F32, [0.5, None]), (F32, [1]), F32, [0.5, None, 1.0]),
        ((F32, [0.5]), (F64, [0.1]), F64, [0.5, 0.1]),
        ((F32, [0.5]), (I8, [3]), F64, [0.5, 3.0]),
        ((F32, [0.1]), (TEXT, ["x"]), TEXT, ["0.10000000149011612", "x"]),
        (
            (pa.decimal128(5, 2), [Decimal("1.5")]),
            (pa.decimal128(5, 1), [2]),
            pa.decimal128(6, 2),
            ["1.50", "2.00"],
        ),
        ((pa.decimal128(5, 2), [Decimal("1.5")]), (I64, [2]), TEXT, ["1.50", "2"]),
        ((pa.decimal128(9, 8), [Decimal("1e-8")]), (BOOL, [True]), TEXT, ["0.00000001", "true"]),
        ((pa.decimal128(5, 0), [5]), (I64, [2]), DECIMAL, [5, 2]),
        ((pa.decimal128(5, 0), [5]), (F64, [0.5]), F64, [5.0, 0.5]),
        ((pa.decimal256(50, 0), [5]), (F64, [0.5]), TEXT, ["5", "0.5"]),
        (
            (MOMENT, [0, None]),
            (MOMENT, [1]),
            MOMENT,
            ["1970-01-01 00:00:00+00:00", None, "1970-01-01 00:00:00.000001+00:00"],
        ),
        (
            (MOMENT, [0, 123456]),
            (TEXT, ["x"]),
            TEXT,
            ["1970-01-01T00:00:00Z", "1970-01-01T00:00:00.123456Z", "x"],
        ),
        ((pa.timestamp("s"), [10]), (BOOL, [True]), TEXT, ["1970-01-01T00:00:10", "true"]),
        ((pa.timestamp("ms"), [10]), (pa.list_(I8), [[1]]), TEXT, ['"1970-01-01T00:00:00.01"', "[1]"]),
        ((pa.timestamp("us"), [10]), (pa.timestamp("ns"), [1]), pa.timestamp("ns"), [10000, 1]),
        (
            (pa.timestamp("us"), [253402300799999999]),
            (pa.timestamp("ns"), [1]),
            TEXT,
            ["9999-12-31T23:59:59.999999", "1970-01-01T00:00:00.000000001"],
        ),
        ((pa.timestamp("us"), [0]), (MOMENT, [0]), TEXT, ["1970-01-01T00:00:00", "1970-01-01T00:00:00Z"]),
        (
            (pa.timestamp("ms", "Europe/Berlin"), [0]),
            (MOMENT, [1]),
            MOMENT,
            ["1970-01-01 00:00:00+00:00", "1970-01-01 00:00:00.000001+00:00"],
        ),
        ((pa.large_string(), ["x"]), (TEXT, ["y"]), TEXT, ["x", "y"]),
        ((pa.large_list(I8), [[1], None]), (pa.list_(BOOL), [[]]), pa.large_list(TEXT), [["1"], None, []]),
        ((pa.list_(I8, 1), [[1], None, [2]]), (pa.list_(I16), [[]]), pa.list_(I16), [[1], None, [2], []]),
        (
            (pa.map_(TEXT, I8), [[("x", 1), ('"', None)], None]),
            (I8, [1]),
            TEXT,
            ['{"x":1,"\\"":null}', None, "1"],
        ),
        ((pa.map_(TEXT, I8), [[("x", 1)]]), (pa.map_(TEXT, I16), [[]]), pa.map_(TEXT, I16), [[("x", 1)], []]),
        ((pa.map_(I8, I8), [[(1, 1)]]), (pa.map_(TEXT, I8), [[("x", 2)]]), TEXT, ['{"1":1}', '{"x":2}']),
        (
            (pa.map_(TEXT, I8), [[("x", 1), ("y", None)], None]),
            (pa.struct([("y", F64), ("x", F64)]), [{"y": 0.5}, None, {"y": 1.0, "x": 2.0}]),
            pa.map_(TEXT, F64),
            [[("x", 1.0), ("y", None)], None, [("y", 0.5)], None, [("y", 1.0), ("x", 2.0)]],
        ),
        (
            (pa.map_(TEXT, I8), [[("x", 1), ("y", None)]]),
            (pa.struct([("y", TEXT)]), [{"y": "z"}, {"y": None}]),
            TEXT,
            ['{"x":1,"y":null}', '{"y":"z"}', "{}"],
        ),
        ((BYTES, [b"x"]), (BYTES, [b"\xff"]), BYTES, [b"x", b"\xff"]),
        ((BYTES, [b"x"]), (pa.null(), [None]), BYTES, [b"x", None]),
        ((CATEGORIES, ["x", None]), (CATEGORIES, ["y"]), CATEGORIES, ["x", None, "y"]),
        ((CATEGORIES, ["x", None]), (TEXT, ["y"]), TEXT, ["x", None, "y"]),
        ((CATEGORIES, ["x"]), (pa.list_(I8), [[]]), TEXT, ['"x"', "[]"]),
        ((pa.dictionary(I8, I64), [-1]), (U64, [2]), DECIMAL, [-1, 2]),
    ],
)
def test_types_that_only_a_declaration_makes(
    one: Any, other: Any, kind: pa.DataType, values: list[Any]
) -> None:
    table, wide = together(declared(*one), declared(*other))
    assert wide.schema.field("a").type == kind
    cells = table["a"]
    if pa.types.is_timestamp(kind) and kind.unit == "ns":
        cells = cells.cast(I64)
    # Decimals and moments are as they print.
    told = [
        str(cell) if isinstance(value, str) else cell
        for cell, value in zip(cells.to_pylist(), values, strict=True)
    ]
    assert told == values
    back, same = together(declared(*other), declared(*one))
    assert same == wide
    assert back.num_rows == table.num_rows


def test_columns_stand_in_order_of_first_appearance() -> None:
    one = typed([b'{"z":null,"c":1,"a":{"y":null,"m":1}}', b"[]"])
    other = typed([b'{"b":2,"a":{"k":1,"n":null},"c":3,"_cb_key":true,"x":null}'])
    table, wide = together(one, other)
    assert table.column_names == ["c", "a", "b", "_cb_key_", "x", "z", "_cb_value", "_cb_reason"]
    assert [member.name for member in wide.schema.field("a").type] == ["m", "k", "n", "y"]
    assert table["_cb_value"].to_pylist() == [None, b"[]", None]
    assert table["_cb_reason"].to_pylist() == [None, "not_an_object", None]
    assert unify([wide]) == wide
    assert unify([other[1], one[1]]).schema.names[:3] == ["b", "a", "c"]
    assert unify([]) == Columns.of_schema(pa.schema([]))
    assert unify([Columns.of_schema(pa.schema([])), wide]) == wide


def test_rows_without_columns_are_rows() -> None:
    _, wide = together(typed([b"{}", b"{}"]), typed([b"{}"]))
    rows = pa.table({"_cb_key": ["x", "y"]})
    assert widen(rows, wide, wide).num_rows == 2
    assert widen(rows, wide, wide).schema == pa.schema([])
    nulls = widen(rows, wide, typed([b'{"a":1,"b":{"c":[]},"d":"x"}'])[1])
    assert nulls.to_pylist() == [{"a": None, "b": None, "d": None}] * 2


def test_what_is_beyond_the_limit_of_columns_is_json_text() -> None:
    one = typed([b'{"a":1,"b":{"c": 2}}', b'{"a":1}'], Policy(max_columns=1))
    other = typed([b'{"b":"x","_cb_rest":7}'])
    table, wide = together(one, other)
    assert marked(wide, "json") == {("_cb_rest",)}
    assert table.to_pylist() == [
        {"a": 1, "b": None, "_cb_rest_": None, "_cb_rest": '{"b":{"c": 2}}'},
        {"a": 1, "b": None, "_cb_rest_": None, "_cb_rest": None},
        {"a": None, "b": "x", "_cb_rest_": 7, "_cb_rest": None},
    ]


def test_structs_of_too_many_different_members_become_maps() -> None:
    one, other = typed([b'{"a":{"x":1,"y":2},"b":{"c":1}}']), typed([b'{"a":{"x":null,"z":0.5}}'])
    wide = unify([one[1], other[1]], max_members=2)
    assert str(wide.schema.field("a").type) == "map<string, double>"
    assert widen(one[0], one[1], wide).to_pylist() == [{"a": [("x", 1.0), ("y", 2.0)], "b": {"c": 1}}]
    assert widen(other[0], other[1], wide).to_pylist() == [{"a": [("z", 0.5)], "b": None}]
    text = typed([b'{"a":{"z":"t"}}'])
    wide = unify([one[1], text[1]], max_members=2)
    assert marked(wide, "json") == {("a",)}
    assert widen(one[0], one[1], wide).to_pylist() == [{"a": '{"x":1,"y":2}', "b": {"c": 1}}]
    assert widen(text[0], text[1], wide).to_pylist() == [{"a": '{"z":"t"}', "b": None}]
    # Three members each would do, but not so many fields together: the largest column goes first.
    held = unify([one[1], other[1]], max_members=3)
    assert marked(held, "json") == {("a",)}
    assert marked(unify([one[1], other[1]], max_members=4), "json") == set()
    inside = unify([typed([b'{"l":[{"a":1,"b":1}]}'])[1], typed([b'{"l":[{"c":1}]}'])[1]], max_members=2)
    assert str(inside.schema.field("l").type) == "list<item: map<string, int64>>"


def test_json_text_is_known_at_any_depth() -> None:
    _, columns = cells_of('{"b":[1,[2]],"c":"x","d":["x",1]}')
    assert marked(columns, "json") == {("a", "b", None)}
    assert marked(typed([b'{"_cb_x":[1,[2]]}'])[1], "json") == {("_cb_x_", None)}
    table, wide = together(cells_of('{"b":["x", 1]}'), cells_of('{"b":[1,[2]]}'))
    assert marked(wide, "json") == {("a", "b", None)}
    assert table["a"].to_pylist() == [{"b": ['"x"', '"1"']}, {"b": ["1", "[2]"]}]


def test_what_is_lost_once_a_file_is_typed() -> None:
    """Where files are not what their documents together would be: the list in the module."""
    written, _ = together(cells_of("1.50", "1e2"), cells_of('"x"'))
    assert written["a"].to_pylist() == ["1.5", "100.0", "x"]
    minus, _ = together(cells_of("-0"), cells_of("0.5"))
    assert repr(minus["a"].to_pylist()) == "[0.0, 0.5]"
    blanks, _ = together(cells_of('{"b": null, "c":  1}'), cells_of("2"))
    assert blanks["a"].to_pylist() == ['{"c":1}', "2"]
    mixed, _ = together(cells_of("1", '"x"'), cells_of("[]"))
    assert mixed["a"].to_pylist() == ['"1"', '"x"', "[]"]
    long, _ = together(cells_of(str(2**200)), cells_of("0.5"))
    assert long["a"].to_pylist() == [str(2**200), "0.5"], "together they have exact doubles"


def test_dates_that_were_parsed() -> None:
    def dated(*cells: str) -> File:
        table, _ = cells_of(*cells)
        dates = Dates(None)
        dates.look(table)
        table = dates.apply(table)
        return table, described(table)

    one = dated('"2026-01-02T03:04:05+02:00"', '"2026-01-02 03:04:05.678Z"', "null")
    assert one[1].schema.field("a").type == MOMENT
    moments = ["2026-01-02T01:04:05Z", "2026-01-02T03:04:05.678Z"]
    table, _ = together(one, dated('"never"'))
    assert table["a"].to_pylist() == [*moments, None, "never"]
    nested, _ = together(one, dated("[1]"))
    assert nested["a"].to_pylist() == [*map(json.dumps, moments), None, "[1]"]
    fine, wide = together(one, dated('"2026-01-02T03:04:05.123456789Z"'))
    assert wide.schema.field("a").type == pa.timestamp("ns", "UTC")
    assert fine["a"].cast(I64).to_pylist()[1:] == [1767323045678000000, None, 1767323045123456789]
    far = dated('"1600-01-01T00:00:00Z"')
    assert marked(far[1], "far") == {("a",)}
    early, wide = together(far, dated('"2026-01-02T03:04:05.123456789Z"'))
    assert early["a"].to_pylist() == ["1600-01-01T00:00:00Z", "2026-01-02T03:04:05.123456789Z"]
    assert marked(wide, "far") == set()
    local, _ = together(dated('"2026-01-02"'), one)
    assert local["a"].to_pylist() == ["2026-01-02T00:00:00", *moments, None]


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (pa.timestamp("s"), [1, None]),
        (pa.timestamp("ns", "UTC"), [1, None]),
        (pa.large_string(), ["x", None]),
        (pa.list_(pa.struct([("a", pa.struct([])), ("b", pa.struct([("c", pa.struct([]))]))])), [[], None]),
        (pa.list_(pa.struct([("a", pa.struct([])), ("b", I8)])), [[{"a": {}, "b": 1}, {"b": 2}, None]]),
        (pa.struct([("a", pa.list_(pa.struct([])))]), [{"a": [{}, None]}, {"a": None}, None, {"a": []}]),
        (pa.dictionary(I32, TEXT), ["x", None, "x"]),
        (pa.map_(TEXT, I8), [[("x", 1)], None]),
        (pa.list_(I8, 2), [[1, 2], [3, None]]),
        (pa.decimal128(7, 3), [Decimal("1.5")]),
    ],
)
def test_what_parquet_changes_is_restored(kind: pa.DataType, values: list[Any], tmp_path: Path) -> None:
    table, narrow = declared(kind, values)
    write_parquet(table.to_reader(), tmp_path / "a.parquet")
    read = pq.read_table(tmp_path / "a.parquet")
    assert widen(read, narrow, narrow).equals(table)
    chunks = pa.concat_tables([read.slice(1), read.slice(0, 1)])
    again = widen(chunks, narrow, narrow)
    again.validate(full=True)
    assert again["a"].cast(kind).to_pylist() == [*table["a"].to_pylist()[1:], table["a"].to_pylist()[0]]
    text = unify([narrow, declared(pa.list_(BOOL), [[True]])[1], cells_of('"x"')[1]])
    assert widen(read, narrow, text).equals(widen(table, narrow, text))
    assert marked(text, "json") == {("a",)}


def test_the_marks_of_values() -> None:
    documents = [
        f'{{"i":{BIG},"l":[{{"n":-1}}],"e":{2**60},"m":{-(2**63)},"u":{2**64 - 1},"v":{2**63},'.encode()
        + f'"d":{10**37 + 1},"f":{2**100},"r":-0,"x":{BIG - 1}}}'.encode()
    ]
    _, columns = typed(documents)
    assert marked(columns, "inexact") == {("i",), ("u",), ("d",)}
    assert marked(columns, "negative") == {("l", None, "n"), ("m",)}
    assert marked(columns, "far") == set()


def test_what_is_known_of_text() -> None:
    """Whether it is strings only, numbers only, or both, through files, versions and JSON."""
    strings, numbers = cells_of('"x"')[1], cells_of("1")[1]
    reported = {"a": {"text": ["string", "number"]}}
    mixed = cells_of('"x"', "1")[1].reported(reported)
    digits = cells_of("1e400")[1].reported({"a": {"text": ["number"]}})
    place = {("a",)}
    assert marked(mixed, "mixed") == place
    assert marked(digits, "digits") == place
    for some, marks in (
        ([strings, strings], (set(), set())),
        ([numbers, digits], (place, set())),
        ([strings, numbers], (set(), place)),
        ([strings, digits], (set(), place)),
        ([mixed, cells_of("null")[1]], (set(), place)),
        ([cells_of("true")[1], numbers], (set(), place)),
        ([mixed, cells_of("[1]")[1]], (set(), place)),
        ([strings, cells_of("[1]")[1]], (set(), set())),
    ):
        together = unify(some)
        assert (marked(together, "digits"), marked(together, "mixed")) == marks
        assert Columns.from_dict(json.loads(json.dumps(together.to_dict()))) == together
        assert unify([together]) == together
    nulls = numbers.reported({"a": {"null": ["string"]}})
    assert marked(unify([nulls, strings]), "lost") == place
    dotted = typed([b'{"a.b":{"c":"x"},"a":{"b":{"c":"x"}}}'])[1]
    assert marked(dotted.reported({"`a.b`.c": {"text": ["string", "number"]}}), "mixed") == {("a.b", "c")}


def test_what_is_known_of_objects_and_arrays() -> None:
    """Where some values became null, and after a struct became JSON text."""
    objects = typed([b'{"a":{"b":"x"},"c":[1]}'])[1]
    lost = objects.reported({"a": {"null": ["object", "number"]}, "c": {"null": []}})
    assert marked(lost, "lost") == {("a",), ("c",), ("c", None)}
    assert Columns.from_dict(json.loads(json.dumps(lost.to_dict()))) == lost
    assert marked(unify([lost, objects]), "lost") == marked(lost, "lost")
    mixed = typed([b'{"a":{"b":"x","c":1}}'])[1].reported({"a.b": {"text": ["string", "number"]}})
    together = unify([mixed], max_members=1)
    assert (marked(together, "json"), marked(together, "mixed")) == ({("a",)}, {("a",)})


def test_columns_that_an_earlier_version_described() -> None:
    """Nothing is known of their text."""
    fields = typed([b'{"s":"x","i":1,"l":[{"t":"y"}]}'])[1].to_dict()
    earlier = {name: value for name, value in fields.items() if name not in ("digits", "mixed", "lost")}
    assert marked(Columns.from_dict(earlier), "mixed") == {("s",), ("l", None, "t")}


def test_what_is_below_nulls_does_not_count() -> None:
    inner = pa.array([-BIG, 3])
    struct = pa.StructArray.from_arrays([inner], ["b"], mask=pa.array([True, False]))
    lists = pa.Array.from_buffers(
        pa.list_(I64), 2, [pa.py_buffer(b"\x02"), pa.array([0, 1, 2], I32).buffers()[1]], children=[inner]
    )
    table = pa.table({"s": struct, "l": lists})
    narrow = described(table)
    assert narrow == Columns.of_schema(table.schema)
    wide = unify([narrow, typed([f'{{"s":{{"b":{2**63}}},"l":[{2**63}]}}'.encode()])[1]])
    assert wide.schema.field("l").type == pa.list_(U64)
    assert widen(table, narrow, wide).to_pylist() == [{"s": None, "l": None}, {"s": {"b": 3}, "l": [3]}]
    doubles = unify([narrow, typed([b'{"s":{"b":0.5},"l":[0.5]}'])[1]])
    assert widen(table, narrow, doubles).to_pylist() == [
        {"s": None, "l": None},
        {"s": {"b": 3.0}, "l": [3.0]},
    ]


def test_columns_are_kept_as_json() -> None:
    _, columns = typed([f'{{"a":{{"b":[1,[2]],"é":{{}}}},"i":-{BIG},"l":[]}}'.encode(), b"?"])
    kept = json.loads(json.dumps(columns.to_dict()))
    assert Columns.from_dict(kept) == columns
    assert columns.to_dict()["json"] == [["a", "b", None]]


@pytest.mark.parametrize(
    "broken",
    [
        {"schema": None},
        {"schema": "!"},
        {"schema": ""},
        {"schema": base64.b64encode(b"nothing of the kind").decode()},
        {"schema": base64.b64encode(pa.schema([("a", I8), ("a", I8)]).serialize()).decode()},
        {"json": None},
        {"json": ["a"]},
        {"json": [[1]]},
        {"json": [["i"]]},
        {"json": [["nowhere"]]},
        {"inexact": [["s"]]},
        {"negative": [["i", None]]},
        {"far": [["i"]]},
        {"far": [[["i"]]]},
        {"mixed": [["i"]]},
        {"digits": [["i"]]},
    ],
)
def test_a_broken_description_is_refused(broken: dict[str, Any]) -> None:
    fields = Columns.of_schema(pa.schema([("i", I64), ("s", TEXT)])).to_dict()
    assert Columns.from_dict(fields).schema.names == ["i", "s"]
    with pytest.raises(ConfigurationError, match="no description of columns"):
        Columns.from_dict(fields | broken)
    for mark in ("schema", "json", "inexact", "negative", "far"):
        with pytest.raises(ConfigurationError, match=mark):
            Columns.from_dict({name: value for name, value in fields.items() if name != mark})


def test_what_is_different() -> None:
    _, narrow = cells_of('{"b":[1],"c":{"d":1},"e":null,"f":"x"}')
    _, other = cells_of('{"b":[0.5,2],"c":[],"e":true,"f":"y","g":{"h":1}}')
    wide = unify([narrow, other])
    assert differences(narrow, wide) == [
        Difference("a.b[]", "int64", "double"),
        Difference("a.c", "struct<d: int64>", "JSON text"),
        Difference("a.e", "null", "bool"),
        Difference("a.g", None, "struct<h: int64>"),
    ]
    assert differences(wide, wide) == []
    assert differences(wide, narrow)[-1] == Difference("a.g", "struct<h: int64>", None)
    assert differences(cells_of('"x"')[1], cells_of("1", "[]")[1]) == [Difference("a", "string", "JSON text")]


# --- what holds of any files and any columns


@pytest.fixture(autouse=True, scope="module")
def small_pieces() -> Any:
    """A few values are enough to take every way through the converters."""
    patch = pytest.MonkeyPatch()
    patch.setattr(column_types, "_TEXT_BYTES", 40)
    yield
    patch.undo()


# --- documents -------------------------------------------------------------------------------------


def without_later_marks(columns: Columns) -> Columns:
    """Columns without what is known of how text came to be."""
    return columns.mapped(lambda _, kind: replace(kind, digits=False, mixed=False, lost=False))


def alike(ours: Any, theirs: Any, kind: Kind) -> bool:
    """Whether cells are the same, but for how numbers are written where they are text."""
    if ours is None or theirs is None:
        return ours is theirs
    if kind.json:
        return told_alike(json.loads(ours), json.loads(theirs))
    if kind.item is not None:
        return all(alike(*pair, kind.item) for pair in zip(ours, theirs, strict=True))
    if pa.types.is_struct(kind.type):
        return all(alike(ours[name], theirs[name], member) for name, member in kind.members.items())
    if pa.types.is_string(kind.type):
        return ours == theirs or number(ours) == number(theirs) != ()
    return bool(ours == theirs)


def number(text: str) -> Any:
    """What a JSON token of a number is; () of any other text."""
    try:
        value = json.loads(text)
    except ValueError:
        return ()
    return () if isinstance(value, bool) or not isinstance(value, int | float) else value


def told_alike(ours: Any, theirs: Any) -> bool:
    """Whether JSON says the same: nulls are no members, and what was text in a file is a string."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        some, others = ({n: v for n, v in each.items() if v is not None} for each in (ours, theirs))
        return some.keys() == others.keys() and all(told_alike(some[name], others[name]) for name in some)
    if isinstance(ours, list) and isinstance(theirs, list):
        return len(ours) == len(theirs) and all(map(told_alike, ours, theirs))
    if isinstance(ours, str) and not isinstance(theirs, str):
        return theirs is not None and told_alike(json.loads(ours), theirs)
    return isinstance(ours, bool) == isinstance(theirs, bool) and bool(ours == theirs)


POLICIES = st.sampled_from([Policy(), Policy(), Policy(nested_as_text=True)])


@settings(deadline=None)
@given(st.lists(runs(), min_size=1, max_size=3), POLICIES)
def test_files_together_are_the_documents_together(files: list[list[bytes]], policy: Policy) -> None:
    parts = [typed(values, policy) for values in files]
    wide = unify([columns for _, columns in parts])
    tables = [widen(table, columns, wide) for table, columns in parts]
    whole, columns = typed([value for values in files for value in values], policy)
    assert wide.schema == columns.schema
    # What became text of one read is in its report, which is not looked at here.
    assert without_later_marks(wide) == without_later_marks(columns)
    assert [len(table) for table in tables] == [len(values) for values in files]
    rows = [row for table in tables for row in table.to_pylist()]
    for ours, theirs in zip(rows, whole.to_pylist(), strict=True) if wide.schema.names else ():
        for name, kind in wide.kinds.items():
            assert alike(ours[name], theirs[name], kind), (name, ours[name], theirs[name])


@settings(deadline=None, max_examples=40)
@given(values=runs(), others=runs())
def test_a_file_is_the_same_table_from_the_disk(
    values: list[bytes], others: list[bytes], tmp_path_factory: pytest.TempPathFactory
) -> None:
    table, narrow = typed(values)
    wide = unify([narrow, typed(others)[1]])
    path = tmp_path_factory.mktemp("files") / "a.parquet"
    keyed = table.append_column("_cb_key", pa.array(range(len(table)), pa.int32()))
    write_parquet(keyed.to_reader(), path)
    read = pq.read_table(path)
    for columns in (narrow, wide):
        again = widen(read, narrow, columns)
        again.validate(full=True)
        assert again.num_rows == len(values)
        assert not again.num_columns or again.equals(widen(table, narrow, columns))


# --- columns of any types --------------------------------------------------------------------------

MAP = pa.map_(pa.string(), pa.int8())
LEAVES = [
    *(pa.null(), pa.bool_(), pa.int64(), pa.int64(), pa.uint64(), pa.decimal128(38, 0), pa.float64()),
    *(pa.string(), pa.string(), pa.int8(), pa.uint8(), pa.int16(), pa.uint32(), pa.float32()),
    *(pa.decimal128(5, 0), pa.decimal128(7, 3), pa.decimal128(38, 5), pa.decimal256(40, 0)),
    *(pa.large_string(), pa.date32(), pa.binary(), pa.timestamp("s"), pa.timestamp("us", "UTC")),
    *(pa.timestamp("ms", "Europe/Berlin"), pa.dictionary(pa.int32(), pa.string())),
    *(pa.dictionary(pa.int8(), pa.int64()), MAP),
]
NANOSECONDS = [pa.timestamp("ns"), pa.timestamp("ns", "UTC"), pa.timestamp("us")]
NAMES = st.sampled_from(["a", "b", "c", 'é"'])


@st.composite
def leaves(draw: st.DrawFn, types: Sequence[pa.DataType]) -> Kind:
    kind = column_types.kind_of(draw(st.sampled_from(types)))
    if pa.types.is_string(kind.type):
        return replace(kind, json=draw(st.booleans()))
    marked = replace(kind, **{mark: draw(st.booleans()) for mark in ("inexact", "negative", "far")})
    return kind if column_types._misplaced(marked) else marked


def struct_of(members: dict[str, Kind]) -> Kind:
    return Kind(pa.struct([(name, member.type) for name, member in members.items()]), members=members)


def list_of(item: Kind, make: Any) -> Kind:
    return Kind(make(item.type), item=item)


LISTS = [pa.list_, pa.list_, pa.large_list, lambda kind: pa.list_(kind, 2)]


def kinds(types: Sequence[pa.DataType]) -> st.SearchStrategy[Kind]:
    return st.recursive(
        leaves(types),
        lambda inner: st.one_of(
            st.dictionaries(NAMES, inner, max_size=3).map(struct_of),
            st.builds(list_of, inner, st.sampled_from(LISTS)),
        ),
        max_leaves=4,
    )


def columns(types: Sequence[pa.DataType]) -> st.SearchStrategy[Columns]:
    return st.dictionaries(NAMES, kinds(types), max_size=2).map(Columns)


def sorted_kind(kind: Kind) -> Kind:
    """The same with members by name.

    Whether strings in JSON text may have been numbers is left out: it depends on whether they were text of
    both before there was JSON, and so on what is unified first.
    """
    if kind.json:
        return replace(kind, mixed=False)
    if pa.types.is_struct(kind.type):
        return struct_of({name: sorted_kind(kind.members[name]) for name in sorted(kind.members)})
    if kind.item is not None:
        item = sorted_kind(kind.item)
        if pa.types.is_fixed_size_list(kind.type):
            return list_of(item, partial(pa.list_, list_size=kind.type.list_size))
        return list_of(item, pa.large_list if pa.types.is_large_list(kind.type) else pa.list_)
    return kind


def settled(each: Columns) -> dict[str, Kind]:
    return {name: sorted_kind(kind) for name, kind in sorted(each.kinds.items())}


@settings(deadline=None, max_examples=300)
@given(
    st.lists(columns([*LEAVES, *NANOSECONDS]), min_size=1, max_size=4),
    st.randoms(use_true_random=False),
    st.integers(0, 4),
)
def test_order_and_grouping_change_nothing(many: list[Columns], random: Random, cut: int) -> None:
    wide = unify(many)
    some = [Columns(settled(each)) for each in many]
    every = unify(some)
    assert settled(every) == settled(unify(some[::-1]))
    random.shuffle(some)
    assert settled(unify(some)) == settled(every)
    assert settled(unify([unify(some[:cut]), unify(some[cut:])])) == settled(every)
    assert settled(unify([*some, every, *some[:cut]])) == settled(every)
    assert unify([wide]) == wide
    assert unify([wide, wide]) == wide
    assert Columns.from_dict(json.loads(json.dumps(wide.to_dict()))) == wide
    assert differences(wide, wide) == []
    assert wide.select(wide.schema.names) == wide


@settings(deadline=None, max_examples=200)
@given(st.lists(columns(LEAVES[:9]), min_size=1, max_size=4), st.integers(0, 6))
def test_there_are_never_too_many_fields(many: list[Columns], limit: int) -> None:
    wide = unify(many, max_members=limit)
    assert sum(kind.nested() for kind in wide.kinds.values()) <= limit
    assert settled(wide).keys() == {name for each in many for name in each.schema.names}


def values_of(kind: Kind) -> st.SearchStrategy[Any]:
    return st.one_of(st.none(), sound_values(kind), sound_values(kind))


def sound_values(kind: Kind) -> st.SearchStrategy[Any]:
    of = kind.type
    if kind.json:
        return st.sampled_from(['"x"', "1", "[1, 2]", '{"a" :"\\n"}'])
    if pa.types.is_dictionary(of):
        of = of.value_type
    if pa.types.is_null(of):
        return st.none()
    if pa.types.is_boolean(of):
        return st.booleans()
    if pa.types.is_integer(of):
        most = 2 ** (of.bit_width - pa.types.is_signed_integer(of))
        edges = [0, 1, 2**53 + 1, 2**60, most - 1, -1, -most, -(2**53) - 1, -(2**60)]
        least = -most if pa.types.is_signed_integer(of) else 0
        some = [edge for edge in edges if least <= edge < most]
        return st.one_of(st.integers(least, most - 1), st.sampled_from(some))
    if pa.types.is_floating(of):
        return st.floats(width=of.bit_width, allow_nan=False, allow_infinity=False)
    if pa.types.is_decimal(of):
        most = 10**of.precision - 1
        units = st.one_of(st.integers(-most, most), st.sampled_from([0, -1, min(most, 2**100 + 2**60)]))
        return units.map(lambda unit: Decimal(f"{unit}e{-of.scale}"))
    if pa.types.is_date(of):
        return st.dates()
    if pa.types.is_timestamp(of):
        factor = {"s": 1, "ms": 10**3, "us": 10**6}[of.unit]
        return st.integers(-(10**10) * factor, 10**11 * factor)
    if pa.types.is_binary(of):
        return st.text(st.characters(exclude_categories=["Cs"]), max_size=3).map(str.encode)
    if pa.types.is_map(of):
        return st.lists(
            st.tuples(st.text('a"\n', max_size=2), st.one_of(st.none(), st.integers(0, 9))), max_size=2
        )
    if pa.types.is_struct(of):
        return st.fixed_dictionaries({name: values_of(member) for name, member in kind.members.items()})
    if kind.item is not None:
        size = {"min_size": 2, "max_size": 2} if pa.types.is_fixed_size_list(of) else {"max_size": 3}
        return st.lists(values_of(kind.item), **size)
    return st.one_of(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
        st.text('"\\/\x00\x1f\x7f x', max_size=4),
    )


def as_text(value: Any, kind: pa.DataType) -> str:
    match value:
        case str():
            return value
        case bytes():
            return value.decode()
        case bool():
            return "true" if value else "false"
        case Decimal():
            return f"{value:f}"
        case datetime():
            moment = value if value.tzinfo is None else value.astimezone(UTC)
            text = moment.replace(tzinfo=None).isoformat(timespec="microseconds").rstrip("0").rstrip(".")
            return text + ("" if value.tzinfo is None else "Z")
        case date():
            return value.isoformat()
    return repr(value)


def as_json(value: Any, kind: Kind) -> str:
    """One value as JSON text, the slow way."""
    if value is None:
        return "null"
    if kind.json:
        return str(value)
    if kind.item is not None and not pa.types.is_map(kind.type):
        return "[" + ",".join(as_json(item, kind.item) for item in value) + "]"
    if pa.types.is_struct(kind.type):
        pairs = [
            (name, as_json(value[name], member))
            for name, member in kind.members.items()
            if value[name] is not None
        ]
    elif pa.types.is_map(kind.type):
        item = kind.item or Kind(kind.type.item_type)
        pairs = [(name, as_json(inner, item)) for name, inner in value]
    else:
        text = as_text(value, kind.type)
        token = isinstance(value, bool | int | float | Decimal)
        return text if token else json.dumps(text, ensure_ascii=False)
    return "{" + ",".join(f"{json.dumps(name, ensure_ascii=False)}:{text}" for name, text in pairs) + "}"


def as_wide(value: Any, have: Kind, want: Kind) -> Any:
    """What becomes of one cell, the slow way."""
    if value is None or have.same(want):
        return value
    if want.json:
        return as_json(value, have)
    if pa.types.is_map(want.type):
        pairs = value.items() if have.members else value
        inside = {name: each for name, each in pairs if each is not None or not have.members}
        return [
            (name, as_wide(each, have.item or have.members[name], want.item)) for name, each in inside.items()
        ]
    if want.item is not None and have.item is not None:
        return [as_wide(item, have.item, want.item) for item in value]
    if pa.types.is_struct(want.type):
        return {
            name: as_wide(value[name], have.members[name], member) if name in have.members else None
            for name, member in want.members.items()
        }
    if pa.types.is_string(want.type):
        return as_text(value, have.type)
    if pa.types.is_floating(want.type):
        return float(value)
    return value


@st.composite
def files(draw: st.DrawFn) -> tuple[pa.Table, Columns]:
    """A table of sliced chunks, and what it is."""
    kinds_of = draw(st.dictionaries(NAMES, kinds(LEAVES), min_size=1, max_size=2))
    chunks, sizes = {}, draw(st.lists(st.integers(0, 5), max_size=3))
    marks = Marks()
    for name, kind in kinds_of.items():
        arrays = []
        for size in sizes:
            skipped = draw(st.integers(0, 2))
            cells = draw(st.lists(values_of(kind), min_size=size + 3, max_size=size + 3))
            arrays.append(pa.array(cells, kind.type)[skipped : skipped + size])
            marks.look(arrays[-1], (name,))
        chunks[name] = pa.chunked_array(arrays, kind.type)
    assume(all(map(valid, chunks.values())))
    bare = Columns(kinds_of)
    found = {mark: getattr(marks, mark) for mark in ("inexact", "negative", "far")}

    def marked(place: FieldPath, kind: Kind) -> Kind:
        return replace(kind, **{mark: place in places for mark, places in found.items()})

    return pa.table(chunks), bare.mapped(marked)


def valid(array: pa.ChunkedArray) -> bool:
    """Below a null struct, pa.array() makes an index into an empty dictionary."""
    try:
        array.validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


@settings(deadline=None, max_examples=300)
@given(st.lists(files(), min_size=1, max_size=3))
def test_every_value_is_kept(some: list[tuple[pa.Table, Columns]]) -> None:
    wide = unify([narrow for _, narrow in some])
    want = wide.kinds
    for table, narrow in some:
        result = widen(table, narrow, wide)
        assert result.schema == wide.schema
        assert len(result) == len(table)
        result.validate(full=True)
        have = narrow.kinds
        rows = table.to_pylist()
        for number, row in enumerate(result.to_pylist()):
            for name, kind in want.items():
                expected = as_wide(rows[number][name], have[name], kind) if name in have else None
                assert plain(row[name]) == plain(expected)
    pa.concat_tables([widen(table, narrow, wide) for table, narrow in some]).validate(full=True)


def plain(value: Any) -> Any:
    """So that equal means the same, but for the type of an exact number, and for time zones."""
    if isinstance(value, dict):
        return {name: plain(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [plain(inner) for inner in value]
    if isinstance(value, float):
        return repr(value)  # which tells -0.0 from 0.0
    if isinstance(value, datetime):
        return value if value.tzinfo is None else value.astimezone(UTC)
    return value


@settings(deadline=None)
@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1))
def test_doubles_are_written_as_python_writes_them(numbers: list[float]) -> None:
    table = pa.table({"a": [*numbers, None]})
    narrow = Columns.of_schema(table.schema)
    for json_text in (False, True):
        wide = unify([narrow, Columns({"a": Kind(pa.string(), json=json_text)})])
        assert widen(table, narrow, wide)["a"].to_pylist() == [*map(repr, numbers), None]


@settings(deadline=None)
@given(st.lists(st.integers(0, 2**64 - 1), min_size=1), st.integers(0, 63))
def test_integers_without_an_exact_double_are_found(numbers: list[int], shift: int) -> None:
    for number in [each << shift for each in numbers]:
        for sign in (1, -1):
            found = Marks()
            value = sign * (number & (2**64 - 1))
            kind = next((k for k in (pa.int64(), pa.uint64()) if fits(value, k)), pa.decimal128(38, 0))
            cell = Decimal(value) if pa.types.is_decimal(kind) else value
            found.look(pa.array([None, 1, cell], kind), ("a",))
            assert found.inexact == (set() if int(float(value)) == value else {("a",)})
            assert found.negative == ({("a",)} if value < 0 and pa.types.is_integer(kind) else set())


def fits(value: int, kind: pa.DataType) -> bool:
    least = -(2**63) if kind == pa.int64() else 0
    return least <= value < least + 2**64
