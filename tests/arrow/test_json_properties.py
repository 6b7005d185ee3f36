"""Random documents in random batches, against a converter that is slow and obvious."""

import json
import math
import re
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cbframe.arrow import json as typer_module
from cbframe.arrow.guard import Reason
from cbframe.arrow.json import JsonTyper, TypedColumns

# --- the reference ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Number:
    token: str

    @property
    def is_integer(self) -> bool:
        return re.fullmatch("-?[0-9]+", self.token) is not None


class Unsound(ValueError):
    pass


def constant(token: str) -> None:
    raise Unsound(token)


def members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # All of them are looked at, also those whose name comes again and which do not count.
    if any(has_surrogate(name) or has_surrogate(member) for name, member in pairs):
        raise Unsound("half a surrogate pair")
    return dict(pairs)


DECODER = json.JSONDecoder(
    parse_int=Number, parse_float=Number, parse_constant=constant, object_pairs_hook=members
)


def has_surrogate(value: Any) -> bool:
    if isinstance(value, list):
        return any(has_surrogate(member) for member in value)
    return isinstance(value, str) and any("\ud800" <= c <= "\udfff" for c in value)


def read(value: bytes) -> dict[str, Any] | None:
    try:
        text = value.decode()
        document = DECODER.decode(text)
    except ValueError:
        return None
    return document if isinstance(document, dict) else None


def sources(value: bytes) -> dict[str, str]:
    """The source text of each top-level member."""
    text = value.decode()
    found = {}
    at = text.index("{") + 1
    blanks = re.compile(r"[ \t\r\n,:]*")
    while True:
        at = blanks.match(text, at).end()
        if text[at] == "}":
            return found
        name, at = DECODER.raw_decode(text, at)
        at = blanks.match(text, at).end()
        _, end = DECODER.raw_decode(text, at)
        found[name] = text[at:end]
        at = end


def unify(values: list[Any]) -> pa.DataType | None:
    """The type of a field that has these values; None if there is none."""
    values = [value for value in values if value is not None]
    if not values:
        return pa.null()
    kinds = {type(value) for value in values}
    if len(kinds) > 1:
        return None
    kind = kinds.pop()
    if kind is bool:
        return pa.bool_()
    if kind is str:
        return pa.string()
    if kind is Number:
        integers = [int(value.token) for value in values if value.is_integer]
        doubles = [float(value.token) for value in values if not value.is_integer]
        if any(not -(2**63) <= integer < 2**63 for integer in integers) or any(map(math.isinf, doubles)):
            return None
        if not doubles:
            return pa.int64()
        exact = all(Fraction(float(integer)) == integer for integer in integers)
        return pa.float64() if exact else None
    if kind is list:
        item = unify([item for value in values for item in value])
        return None if item is None else pa.list_(item)
    names = dict.fromkeys(name for value in values for name in value)
    members = [(name, unify([value.get(name) for value in values])) for name in names]
    return None if any(member is None for _, member in members) else pa.struct(members)


def cell(value: Any, kind: pa.DataType) -> Any:
    if value is None:
        return None
    if pa.types.is_integer(kind):
        return int(value.token)
    if pa.types.is_floating(kind):
        return float(value.token)
    if pa.types.is_list(kind):
        return [cell(item, kind.value_type) for item in value]
    if pa.types.is_struct(kind):
        return {member.name: cell(value.get(member.name), member.type) for member in kind}
    return value


SOME_REASON = "some reason"


def shown(table: pa.Table) -> list[dict[str, Any]]:
    """The rows; why a value is no document is not a matter of this reference."""
    rows: list[dict[str, Any]] = table.to_pylist()
    for row in rows:
        if row.get("_cb_reason") is not None:
            assert Reason[row["_cb_reason"].upper()] is not Reason.GOOD
            row["_cb_reason"] = SOME_REASON
    return rows


def reference(values: list[bytes]) -> tuple[pa.Schema, list[dict[str, Any]]]:
    documents = [read(value) for value in values]
    names = dict.fromkeys(name for document in documents if document for name in document)
    kinds = {name: unify([d.get(name) for d in documents if d is not None]) for name in names}
    texts = [
        None if document is None else sources(value)
        for document, value in zip(documents, values, strict=True)
    ]
    rows: list[dict[str, Any]] = [{} for _ in values]
    for name, kind in kinds.items():
        for row, document, text in zip(rows, documents, texts, strict=True):
            if document is None or document.get(name) is None:
                row[name] = None
            else:
                row[name] = text[name] if kind is None else cell(document[name], kind)
    fields = [(name, pa.string() if kind is None else kind) for name, kind in kinds.items()]
    if None in documents:
        fields += [("_cb_value", pa.binary()), ("_cb_reason", pa.string())]
        for row, document, value in zip(rows, documents, values, strict=True):
            row["_cb_value"] = value if document is None else None
            row["_cb_reason"] = SOME_REASON if document is None else None
    return pa.schema(fields), rows


# --- the strategies --------------------------------------------------------------------------------

EDGES = [0, 2**53 - 1, 2**53, 2**53 + 1, 2**53 + 2, 2**63 - 1024, 2**63 - 1, 2**63, 2**64, 10**25]
numbers = st.one_of(
    st.integers(-3, 3).map(str),
    st.sampled_from([sign + str(edge) for edge in EDGES for sign in ("", "-")]),
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.sampled_from(["1.50", "1e2", "1E+2", "-0.0", "0e0", "1e400", "1e-400", "9007199254740993.0", "1e19"]),
)
strings = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=4).map(json.dumps),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=4).map(
        lambda s: json.dumps(s, ensure_ascii=False)
    ),
    st.sampled_from(['"2024-02-17T17:33:38Z"', '"2026-01-02"', '"{\\"a\\":1}"', '"},{"', '"NaN"']),
)
names = st.sampled_from(['"a"', '"b"', '"c"', '"\\u0061"', '""', '"a.b"', '"ü"'])
blanks = st.sampled_from(["", "", "", " ", "\n", " \r\n\t"])


def objects(values: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    member = st.tuples(blanks, names, blanks, values, blanks).map(
        lambda m: f"{m[0]}{m[1]}{m[2]}:{m[3]}{m[4]}"
    )
    return st.lists(member, max_size=3).map(lambda members: "{" + ",".join(members) + "}")


def nest(values: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    arrays = st.tuples(blanks, st.lists(values, max_size=3)).map(lambda a: "[" + a[0] + ",".join(a[1]) + "]")
    return st.one_of(arrays, objects(values))


scalars = st.one_of(st.sampled_from(["null", "true", "false"]), numbers, strings)
anything = st.recursive(scalars, nest, max_leaves=6)
tame = st.recursive(
    st.one_of(st.just("null"), st.integers(-9, 9).map(str), st.just("1.5")), nest, max_leaves=5
)
UNSOUND = [
    b"",
    b" ",
    b"{",
    b"}",
    b"}{",
    b'{"a":',
    b"1}",
    b'{"a":1}{"a":2}',
    b'{"a":NaN}',
    b"[]",
    b"1",
    b'{"a":"\xff"}',
]
UNSOUND += [
    b'{"a":"\\ud800"}',
    b'{"a":1}}',
    b'{"a":1},{"a":2}',
    b'{"a":1}\0',
    b"null",
    b'{"a":-Infinity}',
    b'{"a":01}',
]
unsound = st.sampled_from(UNSOUND)


def documents(values: st.SearchStrategy[str]) -> st.SearchStrategy[bytes]:
    return st.tuples(blanks, objects(values), blanks).map(lambda parts: "".join(parts).encode())


values = st.one_of(
    st.lists(documents(tame), max_size=12),
    st.lists(documents(anything), max_size=12),
    st.lists(st.one_of(documents(tame), documents(anything), unsound), max_size=12),
)


@st.composite
def runs(draw: st.DrawFn) -> list[bytes]:
    """Values, each of them repeated: long enough runs that most are parsed in C++."""
    return [value for value in draw(values) for _ in range(draw(st.sampled_from([1, 1, 2, 5])))]


def convert(values: list[bytes], cuts: list[int], **options: int) -> TypedColumns:
    typer = JsonTyper(**options)
    edges = [0, *sorted(min(cut, len(values)) for cut in cuts), len(values)]
    for start, stop in pairwise(edges):
        typer.add(pa.array(values[start:stop], pa.binary()))
    return typer.finish()


@pytest.fixture(autouse=True, scope="module")
def small_leaves() -> Any:
    """Few documents are enough to take every way through the converter."""
    patch = pytest.MonkeyPatch()
    patch.setattr(typer_module, "_LEAF", 2)
    yield
    patch.undo()


@settings(deadline=None)
@given(runs(), st.lists(st.integers(0, 40), max_size=4))
def test_the_table_is_that_of_the_reference(values: list[bytes], cuts: list[int]) -> None:
    result = convert(values, cuts)
    schema, rows = reference(values)
    assert result.rows == len(values)
    assert result.table.schema == schema
    if schema.names:
        result.table.validate(full=True)
        # repr tells -0.0 from 0.0, which == does not.
        assert repr(shown(result.table)) == repr(rows)
    assert sum(result.rejected.values()) == sum(read(value) is None for value in values)


@settings(deadline=None)
@given(runs(), st.lists(st.integers(0, 40), max_size=4), st.integers(1, 6))
def test_limits_do_not_depend_on_the_batches(values: list[bytes], cuts: list[int], max_fields: int) -> None:
    whole, parts = convert(values, [], max_fields=max_fields), convert(values, cuts, max_fields=max_fields)
    assert parts.table.schema == whole.table.schema
    assert repr(parts.table.to_pylist()) == repr(whole.table.to_pylist())
    assert parts.rejected == whole.rejected
    assert [c.path.split(".")[0] for c in parts.conflicts] == [c.path.split(".")[0] for c in whole.conflicts]


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
    schema, rows = reference(octets)
    result = convert(octets, [])
    assert result.table.schema == schema
    if schema.names:
        assert repr(shown(result.table)) == repr(rows)


@settings(deadline=None)
@given(st.lists(st.binary(max_size=12), max_size=20), st.lists(st.integers(0, 20), max_size=3))
def test_any_bytes_at_all(values: list[bytes], cuts: list[int]) -> None:
    result = convert(values, cuts)
    assert result.rows == len(values)
