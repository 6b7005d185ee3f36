"""Filters: how they are written, and what passes, against plain Python."""

import json
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cbframe.arrow.filters import Matcher, Predicate, make_filters, restored_filters, stored_filters
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
        {"a": 1},
        pa.compute.field("a") == 1,
        [("a", "==")],
        *([("a", op, literal)] for op, literal in (("~", 1), ("in", "xy"), ("in", 5), ("is", 5))),
        *([("a", "==", literal)] for literal in (None, [1], b"x", "\ud800", float("nan"), pd.NaT)),
        *([("a", "==", Decimal(text))] for text in ("sNaN", "1e999999")),
        [("a", "==", np.datetime64("2026-01-02T00:00:00.000000001"))],
        [("a", "==", np.datetime64("NaT", "us"))],
        *([(name, "==", "x")] for name in ("_cb_vbucket", "_cb_xattrs", "_cb_value", "_cb_key.x")),
        *([("_cb_key", op, literal)] for op, literal in ((">", 5), ("is", None))),
        [((), "==", 1)],
    ],
)
def test_invalid_filters(wrong: Any) -> None:
    with pytest.raises(ConfigurationError, match="filters= ") as caught:
        make_filters(wrong)
    # Nothing of Python's or Arrow's own messages.
    assert caught.value.__cause__ is None
    assert "iterable" not in str(caught.value)


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


TIMES = [
    '{"t":"2024-05-01T12:00:00Z"}',
    '{"t":"2024-05-01 14:00+02:00"}',
    '{"t":"2024-05-01T12:00:00.000000001Z"}',
    '{"t":"2024-05-01"}',
    '{"t":"2024-05-01T12:00:00"}',
    '{"t":"2024-02-30"}',
    '{"t":1714564800}',
    '{"t":null}',
]
NOON = datetime(2024, 5, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("filters", "rows"),
    [
        ([("t", "==", NOON)], [0, 1]),
        ([("t", "==", NOON.astimezone(timezone(timedelta(hours=-7))))], [0, 1]),
        ([("t", ">", NOON)], [2]),
        ([("t", "==", pd.Timestamp("2024-05-01T12:00:00.000000001Z"))], [2]),
        ([("t", "!=", NOON)], [2, 3, 4, 5, 6]),
        ([("t", "in", [NOON, "2024-02-30", 1714564800])], [0, 1, 5, 6]),
        ([("t", "==", date(2024, 5, 1))], [3]),
        ([("t", ">=", date(2024, 5, 1))], [3, 4]),
        ([("t", "==", NOON.replace(tzinfo=None))], [4]),
        ([("t", "<", np.datetime64("2024-05-01T12:00"))], [3]),
        ([("t", "==", np.datetime64("2024-05-01"))], [3]),
        ([("t", "==", "2024-05-01")], [3]),
        ([("t", "is", None)], [7]),
        ([("t", "is not", None)], [0, 1, 2, 3, 4, 5, 6]),
    ],
)
def test_dates_and_times(filters: Any, rows: list[int]) -> None:
    assert passing(filters, *TIMES) == rows
    assert [n for n, document in enumerate(TIMES) if passing(filters, document)] == rows


@pytest.mark.parametrize(
    ("literal", "op", "rows"),
    [
        (Decimal("0.1"), "==", [0]),
        (Decimal("1e0"), "==", [1, 2]),
        (Decimal("Infinity"), "<", [0, 1, 2, 3]),
        (Decimal(2**64 + 1), "==", [3]),
        (2**64, "<", [0, 1, 2]),
        (True, "==", [4]),
        (1.5, "<=", [0, 1, 2]),
        (-1.5, "<", []),
    ],
)
def test_numbers(literal: Any, op: str, rows: list[int]) -> None:
    documents = ['{"a":0.1}', '{"a":1}', '{"a":1.0}', f'{{"a":{2**64 + 1}}}', '{"a":true}', '{"a":"1"}']
    assert passing([("a", op, literal)], *documents) == rows
    assert [n for n, each in enumerate(documents) if passing([("a", op, literal)], each)] == rows


def test_a_name_that_no_column_can_have() -> None:
    documents = ['{"a\\u0000":1}', '{"a\\u0000":null}', '{"a":1}']
    assert passing([(("a\0",), "==", 1)], *documents) == [0]
    assert passing([(("a\0",), "is", None)], *documents) == [1, 2]


def test_stored_filters_are_the_same_again() -> None:
    filters = [
        [("a", "==", Decimal("1.50")), (("b", "c.d"), "in", [date(2024, 5, 1), NOON, np.int64(3)])],
        [("_cb_key", "!=", b"\xff"), ("x", "is", None), ("t", "<", pd.Timestamp(1_714_564_800_123_456_789))],
    ]
    stored = json.loads(json.dumps(stored_filters(filters)))
    assert make_filters(restored_filters(stored)) == make_filters(filters)
    for values in ({"b", "a"}, np.array(["a", "b"]), pd.Index(["a", "b"])):
        assert stored_filters([("a", "in", values)]) == [["a", "in", ["a", "b"]]]
        assert make_filters([("a", "in", values)])


DOCUMENTS_OF_ONE_KIND = ['{"n":1,"o":{"x":1},"b":true,"e":null}', '{"n":2.5,"l":["x"],"t":"2024-05-01"}']


@pytest.mark.parametrize(
    ("filters", "message"),
    [
        ([("nowhere", "==", 1)], "names 'nowhere', which no document has"),
        ([("nowhere", "is", None)], "names 'nowhere', which no document has"),
        ([("o.y", "!=", 1)], r"names 'o\.y', which no document has"),
        ([("l.x", "!=", 1)], r"names 'l\.x', which no document has"),
        ([("n", ">", "3")], "compares 'n' with text, and it holds numbers: that is never true"),
        ([("n", "in", ["3", True])], "compares 'n' with text and true or false, and it holds numbers"),
        ([("b", "==", 1)], "compares 'b' with numbers, and it holds true or false"),
        ([("o", "==", 1)], "compares 'o' with numbers, and it holds objects"),
        ([("l", "==", "x")], "compares 'l' with text, and it holds arrays"),
        ([("t", "<", NOON)], "with dates and times with a time zone, and it holds text"),
        ([("n", "==", 1), ("n", "==", "1")], "compares 'n' with text"),
        ([("n", "!=", "3")], None),
        ([("n", "in", [])], None),
        ([("n", "in", [1, "x"])], None),
        ([("e", "==", "x")], None),
        ([("t", "<", date(2025, 1, 1))], None),
        ([("_cb_key", "==", "x")], None),
    ],
)
def test_what_is_refused_once_all_documents_are_seen(filters: Any, message: str | None) -> None:
    matcher = Matcher(make_filters(filters))
    for document in DOCUMENTS_OF_ONE_KIND:
        values = pa.array([document.encode()])
        matcher.mask(values, np.ones(1, bool), {"_cb_key": pa.array([b"x"])})
    if message is None:
        matcher.refuse()
        return
    with pytest.raises(ConfigurationError, match=message):
        matcher.refuse()
