"""The rules of types: texts that say what becomes what, and what holds of any documents."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import json_oracle as oracle
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from json_documents import anything, documents
from json_oracle import Facts, columns, merged, read, typed
from typed_documents import typed_values

from cbframe.json.layout import names_are_data, rendered_type

GOLDEN = Path(__file__).with_name("golden.txt").read_text("utf-8")


def blocks() -> list[tuple[str, list[str], list[tuple[str, str, str, str]]]]:
    """Title, documents, and of each column name, type, type in the output, and cells."""
    found = []
    for block in GOLDEN.strip().split("\n\n")[1:]:
        title, *lines = block.splitlines()
        begin = next(at for at, line in enumerate(lines) if line.startswith('"'))
        wanted = []
        for head, cells in zip(lines[begin::2], lines[begin + 1 :: 2], strict=True):
            name, end = json.JSONDecoder().raw_decode(head)
            kind, _, output = head[end + 2 :].partition(" as ")
            wanted.append((name, kind, output or kind, cells))
        found.append((title, lines[:begin], wanted))
    return found


def told(cells: Any) -> str:
    """Cells as the texts have them."""
    return json.dumps(cells, ensure_ascii=False, default=int)


@pytest.mark.parametrize(
    ("documents", "wanted"), [block[1:] for block in blocks()], ids=[b[0] for b in blocks()]
)
def test_golden(documents: list[str], wanted: list[tuple[str, str, str, str]]) -> None:
    """Both by the rules of :mod:`json_oracle` and by the typer."""
    values = [document.encode() for document in documents]
    found = typed(values)
    assert [
        (name, str(column.type), str(rendered_type(column.type)), told(found.cells[name]))
        for name, column in found.columns.items()
    ] == wanted
    table = typed_values(values).table
    assert [
        (field.name.removesuffix("_"), str(field.type), told(table[field.name].to_pylist()))
        for field in table.schema
        if field.name not in ("_cb_value", "_cb_reason", "_cb_rest")
    ] == [(name, kind, cells) for name, kind, _, cells in wanted]


def nested(levels: int, inside: str) -> bytes:
    """A document in which a value is at a level: 1 is that of the document itself."""
    return b'{"a":' + b"[" * (levels - 2) + inside.encode() + b"]" * (levels - 2) + b"}"


def depth_of(kind: pa.DataType) -> int:
    return 1 + depth_of(kind.value_type) if pa.types.is_list(kind) else 0


def test_sixty_levels_are_typed() -> None:
    found = typed([nested(60, '{"b": 1}')])
    kind = found.columns["a"].type
    assert depth_of(kind) == 58
    assert str(kind).count("struct<b: int64>") == 1


def test_deeper_than_sixty_levels_is_json_text() -> None:
    found = typed([nested(61, '{"b":  1}'), nested(61, "[ ]")])
    kind, cells = found.columns["a"].type, found.cells["a"]
    assert depth_of(kind) == 59
    for _ in range(59):
        kind, cells = kind.value_type, [each[0] for each in cells]
    assert (kind, cells) == (pa.string(), ['{"b":  1}', "[ ]"])


def test_scalars_at_level_sixty_have_their_types() -> None:
    kind = typed([nested(60, "[1, null]")]).columns["a"].type
    assert depth_of(kind) == 59
    assert str(kind).count("int64") == 1


def test_deeper_than_two_hundred_levels_is_no_document() -> None:
    assert read(nested(200, "[]")) is not None
    assert read(nested(201, "[]")) is None
    assert read(b'{"a":' * 100_000) is None


def test_integers_too_long_for_python() -> None:
    digits = "9" * 5000
    found = typed([b'{"a":%s}' % digits.encode(), b'{"a":0.5}'])
    assert (str(found.columns["a"].type), found.cells["a"]) == ("string", [digits, "0.5"])


def counts(documents: int, names: int, value: Any = 1, per: int = 1) -> list[bytes]:
    """Documents with an object in which a few of many names are."""
    return [
        json.dumps({"a": {f"n{(n * per + i) % names}": value for i in range(per)}}).encode()
        for n in range(documents)
    ]


@pytest.mark.parametrize(
    ("objects", "names", "members", "are_data"),
    [
        (600, 32, 600, False),  # few names
        (600, 33, 600, True),
        (496, 33, 496, False),  # few cells: 16,368
        (497, 33, 497, True),
        (1000, 160, 9_999, True),
        (1000, 160, 10_000, False),  # an object has one of 16
        (1, 1000, 1000, False),
        (1, 1001, 1001, True),  # more than max_struct_fields
        (0, 0, 0, False),
    ],
)
def test_when_names_are_data(objects: int, names: int, members: int, are_data: bool) -> None:
    assert names_are_data(objects, names, members) == are_data


def test_rare_names_are_keys_of_a_map() -> None:
    found = typed(counts(900, 300, per=2))
    assert str(found.columns["a"].type) == "map<string, int64>"
    assert found.cells["a"][0] == [("n0", 1), ("n1", 1)]


def test_names_with_a_common_type_of_values() -> None:
    found = typed([*counts(900, 300), b'{"a":{"n1":0.5,"n2":null}}', b'{"a":{}}', b'{"a":null}'])
    assert str(found.columns["a"].type) == "map<string, double>"
    assert found.cells["a"][-3:] == [[("n1", 0.5), ("n2", None)], [], None]


def test_rare_names_with_different_values_are_json_text() -> None:
    found = typed([*counts(900, 300), b'{"a":{"n1":  "x"}}'])
    assert (found.columns["a"].json, found.cells["a"][-1]) == (True, '{"n1":  "x"}')


def test_values_of_a_map_are_structs_and_maps() -> None:
    structs = typed(counts(900, 300, {"x": 1, "y": []}))
    assert str(structs.columns["a"].type) == "map<string, struct<x: int64, y: list<item: null>>>"
    assert (
        str(rendered_type(structs.columns["a"].type))
        == "map<string, struct<x: int64, y: list<item: string>>>"
    )
    maps = typed(json.dumps({"a": {f"n{n % 300}": {f"m{n % 301}": None}}}).encode() for n in range(900))
    assert str(maps.columns["a"].type) == "map<string, map<string, null>>"
    assert str(rendered_type(maps.columns["a"].type)) == "map<string, map<string, string>>"


def test_names_that_many_objects_have_are_members() -> None:
    assert pa.types.is_struct(typed(counts(900, 300, per=100)).columns["a"].type)


def test_null_members_are_members() -> None:
    padded = [
        json.dumps({"a": {f"n{i}": None if i != n % 50 else n for i in range(50)}}).encode()
        for n in range(900)
    ]
    assert pa.types.is_struct(typed(padded).columns["a"].type)


def test_more_names_than_max_struct_fields() -> None:
    documents = counts(4, 40, per=10)
    assert pa.types.is_struct(typed(documents, max_members=40).columns["a"].type)
    assert str(typed(documents, max_members=39).columns["a"].type) == "map<string, int64>"


def test_a_map_takes_two_levels() -> None:
    deep = [
        json.dumps({"a": {f"n{n % 300}": json.loads("[" * 57 + "[1]" + "]" * 57)}}).encode()
        for n in range(900)
    ]
    item = typed(deep).columns["a"].type.item_type
    assert depth_of(item) == 57
    assert str(item).count("string") == 1


def facts_of(values: list[bytes]) -> Facts:
    return merged(Facts.of(value) for value in map(read, values) if value is not None)


some_documents = st.lists(documents(anything), max_size=5)


@settings(deadline=None)
@given(some_documents, some_documents)
def test_a_further_document_narrows_no_type(some: list[bytes], more: list[bytes]) -> None:
    before, after = columns(facts_of(some)), columns(facts_of(some) | facts_of(more))
    assert before.keys() <= after.keys()
    assert [name for name in before if not after[name].holds(before[name])] == []


@settings(deadline=None)
@given(some_documents, some_documents, some_documents)
def test_facts_of_batches_merge_in_any_order(a: list[bytes], b: list[bytes], c: list[bytes]) -> None:
    one, two, three = map(facts_of, (a, b, c))
    assert (one | two) | three == one | (two | three) == facts_of(a + b + c)
    assert one | two == two | one
    assert one | Facts() == one


def test_the_order_of_types_is_one() -> None:
    scalars = ("null", "true", "1", str(2**63), str(2**64), "0.5", '"x"')
    kinds = (*scalars, "[]", "[1]", "[[]]", "{}", '{"b":1}', '{"b":"x"}')
    several = [[b'{"a":%s}' % one.encode(), b'{"a":%s}' % other.encode()] for one in kinds for other in kinds]
    found = [columns(facts_of(each))["a"] for each in several]
    for one in found:
        for other in found:
            if one.holds(other) and other.holds(one):
                assert (one.type, one.json) == (other.type, other.json)


@settings(deadline=None)
@given(some_documents)
def test_every_cell_fits_its_column(some: list[bytes]) -> None:
    found = typed(some)
    for name, column in found.columns.items():
        array = pa.array(found.cells[name], column.type)
        assert array.to_pylist() == found.cells[name]


def test_decimals_are_exact() -> None:
    found = typed([b'{"a":18446744073709551617}'])
    assert found.cells["a"] == [Decimal(18446744073709551617)]
    assert oracle.MAX_DIGITS == 38
