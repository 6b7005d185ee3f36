"""The typer gives what ``json_oracle`` gives: types, cells, order, and the rest."""

from __future__ import annotations

import json
from typing import Any

import json_oracle
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from json_documents import anything, documents, scalars
from typed_documents import typed_values

from cbframe.json import layout
from cbframe.json.layout import Column

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


@pytest.fixture(autouse=True)
def _small_objects(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names are data in few and small objects."""
    for name, number in (("MANY_NAMES", 2), ("SMALL", 6), ("RARE", 2)):
        monkeypatch.setattr(layout, name, number)


def json_places(plan: Column) -> set[str]:
    return {name for name, member in plan.members.items() if member.how == "json"}


def told(table: pa.Table, names: list[str]) -> list[tuple[str, pa.DataType, list[str]]]:
    # By their text: -0.0 is another number than 0.0, and there are no NaN.
    return [(name, table[name].type, [repr(cell) for cell in table[name].to_pylist()]) for name in names]


def compare(values: list[bytes], table: pa.Table, plan: Column, max_members: int) -> None:
    wanted = json_oracle.typed(values, max_members)
    ours = ("_cb_rest", "_cb_value", "_cb_reason")
    names = [name for name in table.column_names if name not in ours]
    assert told(table, names) == [
        (name, column.type, [repr(cell) for cell in wanted.cells[name]])
        for name, column in wanted.columns.items()
    ]
    assert json_places(plan) == {name for name, column in wanted.columns.items() if column.json}
    rest = table["_cb_rest"].to_pylist() if "_cb_rest" in table.column_names else [None] * len(values)
    assert [{} if each is None else json.loads(each, parse_int=str) for each in rest] == [
        {name: json.loads(source, parse_int=str) for name, source in each.items()} for each in wanted.rest
    ]


def typed(values: list[bytes], step: int, **policy: Any) -> tuple[pa.Table, Column]:
    found = typed_values(values, step, **policy)
    return found.table, found.root


@settings(deadline=None, max_examples=150)
@given(some, st.integers(1, 6), st.sampled_from([8, 1000]))
def test_equal(values: list[bytes], step: int, max_members: int) -> None:
    compare(values, *typed(values, step, max_members=max_members), max_members)


@pytest.mark.slow
@settings(deadline=None, max_examples=20_000)
@given(st.lists(some | some.map(lambda each: each * 20), min_size=1, max_size=3), st.integers(1, 90))
def test_equal_for_long(parts: list[list[bytes]], step: int) -> None:
    values = [value for part in parts for value in part]
    compare(values, *typed(values, step), 1000)
