"""Random documents in random batches, against a converter that is slow and obvious."""

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from itertools import pairwise
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st
from json_documents import anything, documents, runs
from typed_documents import JsonTyper, Places, TypedColumns

from cbframe.json.layout import Policy
from cbframe.json.typer import Reason

# --- the reference ---------------------------------------------------------------------------------


class Unsound(ValueError):
    pass


@dataclass(frozen=True)
class Node:
    """A JSON value with its source; of several members with one name the last."""

    kind: str
    source: str
    value: Any = None


def constant(token: str) -> None:
    raise Unsound(token)


DECODER = json.JSONDecoder(parse_int=str, parse_float=str, parse_constant=constant)
BLANKS = re.compile(r"[ \t\r\n]*")
KINDS = {"{": "object", "[": "array", '"': "string", "t": "boolean", "f": "boolean", "n": "null"}


def parse(text: str, at: int) -> tuple[Node, int]:
    """The value that starts at a place of a sound text, and where it ends."""
    at = begin = BLANKS.match(text, at).end()
    kind = KINDS.get(text[at], "number")
    if kind == "object":
        members = {}
        at += 1
        while text[at := BLANKS.match(text, at).end()] != "}":
            name, at = parse(text, at + (text[at] == ","))
            member, at = parse(text, BLANKS.match(text, at).end() + 1)
            members[name.value] = member
        return Node(kind, text[begin : at + 1], members), at + 1
    if kind == "array":
        items = []
        at += 1
        while text[at := BLANKS.match(text, at).end()] != "]":
            item, at = parse(text, at + (text[at] == ","))
            items.append(item)
        return Node(kind, text[begin : at + 1], items), at + 1
    value, end = DECODER.raw_decode(text, at)
    if isinstance(value, str) and any("\ud800" <= c <= "\udfff" for c in value):
        raise Unsound("half a surrogate pair")
    return Node(kind, text[begin:end], value), end


def read(value: bytes) -> Node | None:
    try:
        text = value.decode()
        DECODER.decode(text)
        node, _ = parse(text, 0)
    except ValueError:
        return None
    return node if node.kind == "object" else None


Cell = Callable[[Node], Any]


def unify(nodes: list[Node]) -> tuple[pa.DataType, Cell]:
    """The type of a field that has these values, and what its cells are."""
    nodes = [node for node in nodes if node.kind != "null"]
    kinds = {node.kind for node in nodes}
    if kinds & {"array", "object"} and len(kinds) > 1:
        return pa.string(), lambda node: node.source
    if len(kinds) > 1:
        return pa.string(), lambda node: node.value if node.kind == "string" else node.source
    match kinds.pop() if kinds else "null":
        case "null":
            return pa.null(), lambda node: None
        case "boolean":
            return pa.bool_(), lambda node: node.value
        case "string":
            return pa.string(), lambda node: node.value
        case "number":
            return unify_numbers([node.source for node in nodes])
        case "array":
            kind, cell = unify([item for node in nodes for item in node.value])
            return pa.list_(kind), lambda node: [shown_cell(item, cell) for item in node.value]
    return unify_members(nodes)


def unify_members(nodes: list[Node]) -> tuple[pa.DataType, Cell]:
    order: dict[str, Any] = {}
    appearance(nodes, order)
    missing = {name for node in nodes for name in node.value} - order.keys()
    members = {
        name: unify([node.value[name] for node in nodes if name in node.value])
        for name in [*order, *sorted(missing)]
    }

    def cell(node: Node) -> dict[str, Any]:
        return {
            name: shown_cell(node.value[name], member) if name in node.value else None
            for name, (_, member) in members.items()
        }

    return pa.struct([(name, kind) for name, (kind, _) in members.items()]), cell


def appearance(nodes: list[Node], order: dict[str, Any]) -> None:
    for node in nodes:
        for name, member in node.value.items():
            if member.kind != "null":
                order.setdefault(name, None)


def unify_numbers(tokens: list[str]) -> tuple[pa.DataType, Cell]:
    integers = [int(token) for token in tokens if re.fullmatch("-?[0-9]+", token)]
    doubles = [float(token) for token in tokens if not re.fullmatch("-?[0-9]+", token)]
    if any(map(math.isinf, doubles)):
        return pa.string(), lambda node: node.source
    if doubles:
        if all(Fraction(float(integer)) == integer for integer in integers):
            return pa.float64(), lambda node: float(node.source)
        return pa.string(), lambda node: node.source
    for low, high, kind in ((-(2**63), 2**63 - 1, pa.int64()), (0, 2**64 - 1, pa.uint64())):
        if low <= min(integers) and max(integers) <= high:
            return kind, lambda node: int(node.source)
    digits = max(len(str(abs(integer))) for integer in integers)
    if digits <= 38:
        return pa.decimal128(38, 0), lambda node: Decimal(node.source) + 0
    return pa.string(), lambda node: node.source


def shown_cell(node: Node, cell: Cell) -> Any:
    return None if node.kind == "null" else cell(node)


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
    kind, cell = unify_members([document for document in documents if document is not None])
    nothing = dict.fromkeys(field.name for field in kind)
    rows = [dict(nothing) if document is None else cell(document) for document in documents]
    fields = list(kind)
    if None in documents:
        fields += [pa.field("_cb_value", pa.binary()), pa.field("_cb_reason", pa.string())]
        for row, document, value in zip(rows, documents, values, strict=True):
            row["_cb_value"] = value if document is None else None
            row["_cb_reason"] = SOME_REASON if document is None else None
    return pa.schema(fields), rows


# --- the tests -------------------------------------------------------------------------------------


def convert(
    values: list[bytes], cuts: list[int], order: list[int] | None = None, **policy: int
) -> TypedColumns:
    """Type values in batches, in an order of arrival; where they stand stays the same."""
    typer = JsonTyper(Policy(**policy))
    order = order or list(range(len(values)))
    edges = [0, *sorted(min(cut, len(values)) for cut in cuts), len(values)]
    for start, stop in pairwise(edges):
        rows = order[start:stop]
        places = Places(np.array(rows, np.uint16) // 5, np.array(rows, np.uint64))
        typer.add(pa.array([values[row] for row in rows], pa.binary()), None, places)
    return typer.finish()


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
@given(
    runs(),
    st.lists(st.integers(0, 40), max_size=4),
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


MUTATIONS = st.tuples(
    st.integers(0, 400), st.sampled_from(list(b'{}[]":,\\ \n01.eE-tfn\x00\x1f\xff\xc3\xa9NaI'))
)


@settings(deadline=None)
@given(runs(), st.lists(st.integers(0, 40), max_size=4), st.integers(1, 20), st.integers(1, 4))
def test_only_fields_of_the_first_documents(
    values: list[bytes], cuts: list[int], length: int, most: int
) -> None:
    """In memory, on other threads, and in bounded memory alike: convert() compares them."""
    result = convert(values, cuts, infer_length=length, max_columns=most)
    found = [read(value) for value in values]
    early = {name for node in found[:length] if node is not None for name in node.value}
    columns = {name for name in result.table.column_names if not name.startswith("_cb_")}
    assert columns <= early or len(values) <= length
    assert len(columns) <= most
    rest = result.table["_cb_rest"].to_pylist() if "_cb_rest" in result.table.column_names else []
    for row, node in enumerate(found):
        values_of = {} if node is None else node.value
        left = {name for name, member in values_of.items() if member.kind != "null"} - columns
        assert left <= (json.loads(rest[row] or "{}").keys() if rest else set())


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
