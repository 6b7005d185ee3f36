"""Columns of files that were typed on their own: what they become together, and what becomes of values."""

import base64
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from documents_in_files import File, described, marked, typed

from cbframe.arrow.column_types import Columns, Difference, differences, unify, widen
from cbframe.arrow.declared_types import Dates
from cbframe.errors import ConfigurationError
from cbframe.json.layout import Policy
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


UTC = pa.timestamp("us", "UTC")
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
        ((DATE, [1]), (UTC, [1500000]), TEXT, ["1970-01-02", "1970-01-01T00:00:01.5Z"]),
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
            (UTC, [0, None]),
            (UTC, [1]),
            UTC,
            ["1970-01-01 00:00:00+00:00", None, "1970-01-01 00:00:00.000001+00:00"],
        ),
        (
            (UTC, [0, 123456]),
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
        ((pa.timestamp("us"), [0]), (UTC, [0]), TEXT, ["1970-01-01T00:00:00", "1970-01-01T00:00:00Z"]),
        (
            (pa.timestamp("ms", "Europe/Berlin"), [0]),
            (UTC, [1]),
            UTC,
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
    assert one[1].schema.field("a").type == UTC
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
