"""The typer gives what ``json_oracle`` gives: types, cells, order, and the rest; in any batches and order."""

from __future__ import annotations

import json
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
from cbframe.json.layout import Policy
from cbframe.json.typer import Reason

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
@given(
    runs(),
    cuts,
    st.randoms(use_true_random=False),
    st.integers(2, 6),
    st.sampled_from(["widen", "json"]),
)
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
