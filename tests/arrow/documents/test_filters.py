"""Filters: how they are written, and what passes, against plain Python."""

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cbframe.arrow.documents.filters import Matcher, Predicate, make_filters
from cbframe.errors import ConfigurationError


def passing(filters: Any, *values: bytes | str) -> list[int]:
    octets = [value.encode() if isinstance(value, str) else value for value in values]
    mask = Matcher(make_filters(filters)).mask(pa.array(octets, pa.binary()), np.ones(len(octets), bool))
    return np.flatnonzero(mask).tolist()


def test_both_ways_to_write_them() -> None:
    one = (Predicate(("a",), "==", 1), Predicate(("b", "c"), "in", ("x", "y")))
    assert make_filters([("a", "=", 1), ("b.c", "in", ["x", "y"])]) == (one,)
    assert make_filters([[("a", "==", np.int64(1)), (("b", "c"), "in", {"x": 0, "y": 0})]]) == (one,)


@pytest.mark.parametrize(
    "wrong",
    [
        [],
        [[]],
        5,
        "a == 1",
        [("a", "==")],
        [("a", "~", 1)],
        [("a", "==", None)],
        [("a", "==", [1])],
        [("a", "in", "xy")],
        [("a", "in", 5)],
        {"a": 1},
        pa.compute.field("a") == 1,
        [("a", "==", np.datetime64("2026-01-02"))],
        [("a", "==", "\ud800")],
    ],
)
def test_what_cannot_be_meant(wrong: Any) -> None:
    with pytest.raises(ConfigurationError, match="no filters"):
        make_filters(wrong)


DOCUMENTS = [
    '{"t":"hotel","n":5}',
    '{"t":"hotel","n":5.5}',
    '{"t":"inn","n":"5"}',
    '{"n":9007199254740993}',
    '{"t":null,"n":null}',
    '{"t":["hotel"],"n":{"x":1}}',
    '{"t":true,"n":false,"g":{"x":1}}',
]


@pytest.mark.parametrize(
    ("filters", "rows"),
    [
        ([("t", "==", "hotel")], [0, 1]),
        ([("t", "!=", "hotel")], [2, 5, 6]),
        ([("t", "in", ["hotel", "inn"])], [0, 1, 2]),
        ([("t", "not in", ["hotel", True])], [2, 5]),
        ([("n", "==", 5)], [0]),
        ([("n", "==", 5.0)], [0]),
        ([("n", ">", 5)], [1, 3]),
        ([("n", ">", 9007199254740992)], [3]),
        ([("n", ">", 9007199254740992.0)], [3]),
        ([("n", "==", 9007199254740992.0)], []),
        ([("n", "<=", 5.5)], [0, 1]),
        ([("n", "==", False)], [6]),
        ([("n", ">=", "5")], [2]),
        ([("g.x", "<", 2)], [6]),
        ([("g.y", "!=", 2)], []),
        ([("n.x", "==", 1)], [5]),
        ([("n", "==", 5), ("t", "==", "inn")], []),
        ([[("n", "==", 5)], [("t", "==", "inn")]], [0, 2]),
        ([("nowhere", "!=", 1)], []),
    ],
)
def test_what_passes(filters: Any, rows: list[int]) -> None:
    assert passing(filters, *DOCUMENTS) == rows
    # Each document by itself is compared in Arrow where it can be; together they are compared here.
    assert [n for n, document in enumerate(DOCUMENTS) if passing(filters, document)] == rows


def test_numbers_beyond_a_double_are_compared() -> None:
    values = ['{"a":1e400}', '{"a":-1e400}', '{"a":1}', '{"a":"x"}', '{"a":%s}' % ("9" * 5000)]
    assert passing([("a", ">", 1)], *values) == [0, 4]
    assert passing([("a", "<", 2)], *values) == [1, 2]
    assert passing([("a", "<", float("inf"))], *values) == [0, 1, 2, 4]
    assert passing([("a", "!=", 1)], *values) == [0, 1, 3, 4]
    # Not even Decimal has such an exponent.
    assert passing([("a", ">", 1)], '{"a":1e99999999999999999999}', '{"a":0}') == [0]


def test_both_zeros_are_in_a_list() -> None:
    values = ['{"a":-0.0}', '{"a":0.0}', '{"a":1.5}']
    for zero in (0, 0.0, -0.0):
        assert passing([("a", "in", [zero])], *values) == [0, 1]
        assert passing([("a", "not in", [zero])], *values) == [2]


def test_nothing_is_in_an_empty_list() -> None:
    for value in ('{"b":1}', "[1]", "1", '"x"', "true"):
        assert passing([("a", "in", [])], f'{{"a":{value}}}', "{}") == []
        assert passing([("a", "not in", [])], f'{{"a":{value}}}', "{}") == [0]


def test_what_is_no_document_does_not_pass() -> None:
    assert passing([("a", "!=", 2)], b"", b"[]", b"\xff", b'{"a":1}', b'{"a":1}}') == [3]
    mask = Matcher(make_filters([("a", "==", 1)])).mask(
        pa.array([b'{"a":1}', b'{"a":1}']), np.array([True, False])
    )
    assert mask.tolist() == [True, False]


LITERALS = [0, 1, -1, 2, 0.5, 1.0, 2**53, 2**53 + 1, float(2**53), 2**63, 2**64, True, False, "", "x", "1"]


@settings(deadline=None)
@given(
    st.lists(st.sampled_from([*LITERALS, None, [], {}, [1], {"a": 1}]), min_size=1, max_size=6),
    st.sampled_from(["==", "!=", "<", "<=", ">", ">="]),
    st.sampled_from(LITERALS),
)
def test_one_by_one_and_together_are_the_same(values: list[Any], op: str, literal: Any) -> None:
    documents = [json.dumps({"a": value}) for value in values]
    alone = [n for n, document in enumerate(documents) if passing([("a", op, literal)], document)]
    assert passing([("a", op, literal)], *documents) == alone
