"""Which column follows from the facts of a field: one table, applied at any depth.

=========================================  ===================================================
values of a field                          column
=========================================  ===================================================
null only, or none                         null
true, false                                bool
integers within int64                      int64
integers within uint64, none negative      uint64
integers of up to 38 digits                decimal128(38, 0)
... and one of more digits among numbers   text: the numbers as they are written
numbers, some with a point or an exponent  float64, the nearest double of each
... some integer has no exact double       text: the numbers as they are written
... some number is beyond a double         text: the numbers as they are written
strings, also those that look like dates   string, unchanged
several of: boolean, number, string        text: strings unchanged, the others as written
arrays                                     list, items by this table
objects                                    struct, members by this table
objects whose names are data               map, values by this table; JSON text if they differ
an object with NUL in a name               JSON text: each value as it is written
arrays or objects deeper than level 60     JSON text: each value as it is written
arrays or objects, and anything else       JSON text: each value as it is written
=========================================  ===================================================

It is that of :mod:`cbframe.json.reference`, whose results are the same.

There is no decimal256: polars ends the process at one, and DuckDB makes a double of it in a Parquet file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import pyarrow as pa

from cbframe.arrow.documents.facts import Facts, Family
from cbframe.json.reference import MAX_DIGITS, MAX_LEVELS, MAX_MEMBERS

How = Literal["plain", "text", "json", "string", "digits", "map"]
OnConflict = Literal["widen", "json", "null", "raise"]

Place = tuple[str | None, ...]
"""Where a field is: names of members from the outside in, None for items of a list and values of a map."""

_INT64 = (-(1 << 63), (1 << 63) - 1)
_UINT64 = (0, (1 << 64) - 1)
_SCALARS = {"boolean": pa.bool_(), "string": pa.string()}


@dataclass(frozen=True, slots=True)
class Policy:
    """What the caller decides about types.

    Attributes
    ----------
    max_columns
        Top-level fields that become columns: the most frequent ones.
    max_members
        Different members that an object may have before its names are data, and fields inside of all columns
        together before objects become JSON text.
    on_conflict
        What values without a common type become: ``"widen"`` makes text of scalars, and JSON text of
        what has arrays or objects; ``"json"`` makes JSON text in any case; ``"null"`` keeps the most
        frequent family. ``"raise"`` is like ``"widen"``: the caller raises.
    nested_as_text
        Arrays and objects are JSON text.
    declared
        Types of top-level fields, which are columns in any case. Values of another family become null.
    infer_length
        Only fields of the first so many documents become columns.
    known
        What is known of fields before any document: from others, that are typed on their own.
    maps
        Where names of objects are data, since they are in others that are typed on their own.
    """

    max_columns: int = 1000
    max_members: int = MAX_MEMBERS
    on_conflict: OnConflict = "widen"
    nested_as_text: bool = False
    declared: Mapping[str, pa.DataType] = field(default_factory=dict)
    infer_length: int | None = None
    known: Mapping[str, Facts] = field(default_factory=dict)
    maps: frozenset[Place] = frozenset()


@dataclass(frozen=True, slots=True)
class Plan:
    """How one field becomes a column.

    Attributes
    ----------
    type
        The column's type.
    how
        ``plain``: as the parser makes it. Otherwise each value is rewritten as a JSON string before:
        ``text`` quotes scalars that are no strings, ``string`` anything that is no string, ``json`` any
        value, and ``digits`` integers, of which decimals are made. ``map`` makes a list of names and values.
    members
        Of a struct.
    item
        Of a list; or of a map, its values.
    conflict
        Its values have no common type.
    data
        Names of objects are data.
    held
        It would be typed if it had fewer fields, and may yet have: facts are still gathered.
    rewrites
        Documents have to be rewritten for it, or for something inside of it.
    rest
        Members that are no columns go to a column of their own, of JSON text.
    closed
        There are to be no further columns.
    only
        Values of other families become null.
    family
        Of JSON text that was asked for: what all values are so far, arrays or objects.
    """

    type: pa.DataType
    how: How = "plain"
    members: Mapping[str, Plan] = field(default_factory=dict)
    item: Plan | None = None
    conflict: bool = False
    data: bool = False
    held: bool = False
    rewrites: bool = False
    rest: bool = False
    closed: bool = False
    only: Family | None = None
    family: Family | None = None

    @property
    def types(self) -> dict[str, pa.DataType]:
        """Name and type of each member."""
        return {name: plan.type for name, plan in self.members.items()}

    def nested(self) -> int:
        """How many fields there are inside, at any depth."""
        count = 0 if self.item is None else self.item.nested()
        return count + sum(1 + member.nested() for member in self.members.values())

    def conflicts(self, path: Place = ()) -> Iterator[tuple[Place, Plan]]:
        """The field at `path`, and those inside: where there is no common type, or names are data."""
        if self.conflict or self.data:
            yield path, self
        for name, member in self.members.items():
            yield from member.conflicts((*path, name))
        if self.item is not None:
            yield from self.item.conflicts((*path, None))


def plan_of(
    columns: Mapping[str, Facts], policy: Policy, *, closed: bool = False, unnamed: bool = False
) -> Plan:
    """The plan of documents with these fields.

    Parameters
    ----------
    closed
        Documents have more fields than these, and they are no columns.
    unnamed
        Documents have fields with NUL in their names, which no column can have.
    """
    members = {name: _resolve(facts, policy, 2) for name, facts in columns.items()}
    _hold(members, policy)
    return replace(_struct(members), rest=closed or unnamed, closed=closed)


def declared_facts(kind: pa.DataType) -> Facts:
    """What is known of a field before any document, where its type is declared."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_boolean(kind):
        return Facts(only="boolean")
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return Facts(only="number")
    if pa.types.is_decimal(kind):
        return Facts(only="number", written=True)
    if pa.types.is_temporal(kind):
        return Facts(only="string")
    if pa.types.is_map(kind):
        return Facts(only="object", opaque=True, written=True)
    if pa.types.is_struct(kind):
        return Facts(only="object", fields={each.name: declared_facts(each.type) for each in kind})
    if is_list(kind):
        return Facts(only="array", item=declared_facts(kind.value_type))
    return Facts(opaque=True, written=True)


def is_list(kind: pa.DataType) -> bool:
    """Whether it is any of Arrow's lists."""
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _written(facts: Facts) -> Plan:
    if facts.only is None:
        plain = all(family == "string" for family in facts.families())
        return Plan(pa.string()) if plain else _quoted("string")
    # Quoted, a value of another family would not be noticed by the parser.
    return replace(_quoted("json" if facts.only == "object" else "text", conflict=True), only=facts.only)


def _hold(members: dict[str, Plan], policy: Policy) -> None:
    """Make JSON text of the columns with most fields inside, until the others have few enough."""
    sizes = {name: plan.nested() for name, plan in members.items() if name not in policy.declared}
    total = sum(sizes.values())
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        if total <= policy.max_members:
            break
        members[name] = _quoted("json", conflict=True, held=True)
        total -= sizes[name]


def _resolve(facts: Facts, policy: Policy, level: int) -> Plan:
    """The plan of a field; arrays and objects there are of a level: 1 is that of the document."""
    families = facts.families()
    nested = facts.item is not None or facts.fields is not None
    if facts.written:
        return _written(facts)
    if facts.only is not None:
        plan = replace(_resolve(replace(facts, only=None), policy, level), conflict=False)
        return replace(plan, only=facts.only, conflict=True, rewrites=True) if facts.others else plan
    if facts.opaque:
        return _quoted("json", conflict=True)
    if nested and policy.nested_as_text:
        return replace(_quoted("json"), family=families[0])
    if nested and level > MAX_LEVELS:
        return _quoted("json", conflict=True)
    if len(families) > 1:
        return _quoted("text" if policy.on_conflict == "widen" else "json", conflict=True)
    if facts.fields is not None and facts.values is not None:
        return _map(facts.values, policy, level)
    if facts.fields is not None:
        return _struct({name: _resolve(member, policy, level + 1) for name, member in facts.fields.items()})
    if facts.item is not None:
        item = _resolve(facts.item, policy, level + 1)
        return Plan(pa.list_(item.type), item=item, rewrites=item.rewrites)
    if facts.number:
        return _number(facts)
    return Plan(_SCALARS[families[0]] if families else pa.null())


def _number(facts: Facts) -> Plan:
    if facts.beyond or facts.long or (facts.double and facts.inexact):
        return _quoted("text", conflict=True)
    if facts.double:
        return Plan(pa.float64())
    for low, high, kind in ((*_INT64, pa.int64()), (*_UINT64, pa.uint64())):
        if low <= facts.low and facts.high <= high:
            return Plan(kind)
    return Plan(pa.decimal128(MAX_DIGITS, 0), "digits", rewrites=True)


def _map(values: Facts, policy: Policy, level: int) -> Plan:
    if len(values.families()) > 1:
        return replace(_quoted("json", conflict=True), data=True)
    # To Arrow a map is a list of structs: two levels.
    item = _resolve(values, policy, level + 2)
    return Plan(pa.map_(pa.string(), item.type), "map", item=item, data=True, rewrites=True)


def _quoted(how: How, *, conflict: bool = False, held: bool = False) -> Plan:
    return Plan(pa.string(), how, conflict=conflict, held=held, rewrites=True)


def _struct(members: dict[str, Plan]) -> Plan:
    return Plan(
        pa.struct([(name, plan.type) for name, plan in members.items()]),
        members=members,
        rewrites=any(plan.rewrites for plan in members.values()),
    )
