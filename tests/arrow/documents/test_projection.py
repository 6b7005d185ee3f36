"""Documents cut down to wanted fields: what is kept, and that nothing unsound slips through."""

import json

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cbframe.arrow.documents.guard import Reason, inspect, screen
from cbframe.arrow.documents.projection import Path, Projection, path_of


def cut(values: list[bytes], *paths: Path, is_json: list[bool] | None = None) -> list[bytes]:
    flags = np.ones(len(values), bool) if is_json is None else np.array(is_json)
    return Projection(paths).apply(pa.array(values, pa.binary()), flags).to_pylist()


def test_names_are_paths() -> None:
    assert path_of("geo.lat") == ("geo", "lat")
    assert path_of(("geo.lat",)) == ("geo.lat",)


def test_names_may_be_any_text() -> None:
    names = ['a"b', "a\\b", "a\nb", "\x00", "é", ""]
    value = json.dumps({name: {name: 1, "x": 2} for name in [*names, "other"]}).encode()
    for name in names:
        (kept,) = cut([value], (name, name))
        assert json.loads(kept) == {name: {name: 1}}


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        (b'{"a":1.50,"geo":{"lat":1E2,"lon":2},"b":[1,{"x":2}]}', b'{"a":1.50,"geo":{"lat":1E2}}'),
        (b'{"b":1}', b"{}"),
        (b" { } ", b"{}"),
        (b'{"geo":null,"a":null}', b'{"a":null,"geo":null}'),
        (b'{"geo":"x","a":2}', b'{"a":2}'),
        (b'{"geo":[{"lat":1}]}', b"{}"),
        (b'{"geo":{"lat":{"z": [1 , 2]}}}', b'{"geo":{"lat":{"z": [1 , 2]}}}'),
        (b'{"a":1,"a":2}', b'{"a":2}'),
        (rb'{"\u0061":1}', b'{"a":1}'),
    ],
)
def test_what_is_kept(value: bytes, kept: bytes) -> None:
    # Alone, and beside one that takes the slow way.
    assert cut([value], ("a",), ("geo", "lat")) == [kept]
    assert cut([value, b"[]", b'{"geo":7}'], ("a",), ("geo", "lat")) == [kept, b"[]", b"{}"]


def test_a_path_inside_of_another_one() -> None:
    assert cut([b'{"geo":{"lat":1,"lon":2}}'], ("geo", "lat"), ("geo",)) == [b'{"geo":{"lat":1,"lon":2}}']


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"[]",
        b"7",
        b'{"a":1}{"a":2}',
        b'{"a":1},"b":{}',
        b'{"b":"\xff","a":1}',
        rb'{"b":"\ud800","a":1}',
        b'{"b":NaN,"a":1}',
        b'{"b":01,"a":1}',
        b'{"b":' + b"[" * 300 + b"]" * 300 + b"}",
    ],
)
def test_what_is_no_document_is_left_as_it_is(value: bytes) -> None:
    assert cut([value], ("a",)) == [value]
    assert cut([b'{"a":1,"b":2}', value], ("a",)) == [b'{"a":1}', value]


def test_what_the_server_does_not_call_json_is_left_as_it_is() -> None:
    assert cut([b'{"a":1,"b":2}'] * 2, ("a",), is_json=[True, False]) == [b'{"a":1}', b'{"a":1,"b":2}']


VALUES = st.recursive(
    st.sampled_from(["null", "1", "-0.50", '"x"', "true", '"\\u00e9"']),
    lambda inner: st.one_of(
        st.lists(inner, max_size=2).map(lambda items: "[" + ",".join(items) + "]"),
        st.lists(st.tuples(st.sampled_from("abc"), inner), max_size=3).map(
            lambda members: "{" + ",".join(f'"{name}":{value}' for name, value in members) + "}"
        ),
    ),
    max_leaves=6,
)


@settings(deadline=None)
@given(
    st.lists(VALUES.map(str.encode), max_size=8),
    st.lists(st.lists(st.sampled_from("abc"), min_size=1, max_size=3).map(tuple), min_size=1, max_size=3),
)
def test_against_the_standard_library(values: list[bytes], paths: list[Path]) -> None:
    def wanted(value: object, tree: list[Path]) -> object:
        if () in tree or not isinstance(value, dict):
            return value
        below = {name: [path[1:] for path in tree if path[0] == name] for name in value}
        return {
            name: wanted(member, below[name])
            for name, member in value.items()
            if below[name] and (() in below[name] or member is None or isinstance(member, dict))
        }

    array = pa.array(values, pa.binary())
    verdicts = inspect(array, screen(array, None), 200)
    for before, after, verdict in zip(values, cut(values, *paths), verdicts, strict=True):
        if verdict == Reason.GOOD:
            assert json.loads(after) == wanted(json.loads(before), paths)
        else:
            assert after == before
