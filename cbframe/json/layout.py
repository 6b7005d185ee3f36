"""Which columns follow from what was seen of the values of each field: one table, applied at any depth.

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

Types follow from the facts of all documents together (those of a converter, as a dictionary), whatever their
order. A converter of either core builds a column as :data:`Instructions` say, of fields that are taken as a
:data:`Configuration` says.

There is no decimal256: polars ends the process at one, and DuckDB makes a double of it in a Parquet file.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

import pyarrow as pa

from cbframe.json.arrays import is_list

MAX_LEVELS = 60
"""Arrays and objects of a deeper level are JSON text; the document itself is level 1."""
MAX_DIGITS = 38
"""Integers of more digits are text."""
MAX_MEMBERS = 1000
"""Names of an object of more different ones are data; default of ``max_struct_fields=``."""
MANY_NAMES = 32
"""Names of an object of no more different ones are not data."""
SMALL = 1 << 14
"""Cells of a struct's members: a struct of fewer cells is small, however empty it is."""
RARE = 16
"""Names are rare where an object has fewer than one in this number of them, on average."""
SAMPLES = 3
"""How many documents are named for each kind of value."""

Family = Literal["boolean", "number", "string", "array", "object"]
"""Values of one family may have a common type."""
How = Literal["plain", "text", "json", "string", "map"]
OnConflict = Literal["widen", "json", "null", "raise"]
FieldFacts: TypeAlias = Mapping[str, Any]
"""Facts of a field, as a dictionary."""
FieldPath = tuple[str | None, ...]
"""Where a field is: names of members from the outside in, None for items of a list and values of a map."""
Path = tuple[str, ...]
"""Names of members, from the outside in."""
Tree = dict[str, "Tree | None"]
"""Members that are wanted: all of a member's value, or only some of its members."""

FAMILIES: Mapping[str, Family] = {
    "boolean": "boolean",
    "integer": "number",
    "double": "number",
    "string": "string",
    "array": "array",
    "object": "object",
}
"""The family of each kind of value, in the order in which a tie is decided."""
_FLAGS = ("inexact", "long", "beyond", "minus_zero", "nul")
NO_FACTS: FieldFacts = {
    "counts": {},
    "samples": {},
    "low": 0,
    "high": 0,
    **dict.fromkeys(_FLAGS, False),
    "names": [],
    "members": 0,
    "present": 0,
    "item": None,
    "values": None,
    "fields": [],
}
"""Facts of a field without values."""
FIELDS, SOME, NAMES, NOTHING = range(4)
"""Members are fields; only configured ones are wanted; names of members are data; values stay as written."""
Configuration: TypeAlias = tuple[int, Sequence[tuple[bytes, Any]], Any, Any]
"""What is known of a field before documents are read: how members of its objects are taken (as above), and
configurations: of members by name, of items of arrays, and of values of objects whose names are data."""
Instructions: TypeAlias = tuple[str, int, Any]
"""How a column is built: its type, the kinds of values that are dropped (a bit for each), and what is inside:
of a list or a map other instructions, of a struct pairs of a name and instructions.

===========  ========================================================================
``null``     no value
``bool``     true, false
``int64``    integers
``uint64``   integers
``decimal``  integers of up to 38 digits: decimal128(38, 0)
``double``   numbers, the nearest double of each
``text``     strings as they are, other scalars as they are written
``written``  strings as they are, any other value as it is written
``json``     every value as it is written
``list``     arrays
``struct``   objects; members without instructions are passed over
``map``      objects, their names are keys
===========  ========================================================================
"""
_TYPES = {
    "null": pa.null(),
    "bool": pa.bool_(),
    "int64": pa.int64(),
    "uint64": pa.uint64(),
    "decimal": pa.decimal128(MAX_DIGITS, 0),
    "double": pa.float64(),
    "text": pa.string(),
    "written": pa.string(),
    "json": pa.string(),
}


def names_are_data(objects: int, names: int, members: int, max_members: int = MAX_MEMBERS) -> bool:
    """Whether names of objects are data, so that a struct would be almost empty."""
    if names > max_members:
        return True
    cells = objects * names
    return names > MANY_NAMES and cells > SMALL and members * RARE < cells


def rendered_type(kind: pa.DataType) -> pa.DataType:
    """The type of a column in the output: ``{}`` is JSON text, and nulls in a list or a map are text."""
    if pa.types.is_struct(kind):
        members = [(each.name, rendered_type(each.type)) for each in kind]
        return pa.struct(members) if members else pa.string()
    if pa.types.is_list(kind):
        return pa.list_(pa.string() if pa.types.is_null(kind.value_type) else rendered_type(kind.value_type))
    if pa.types.is_map(kind):
        null = pa.types.is_null(kind.item_type)
        return pa.map_(kind.key_type, pa.string() if null else rendered_type(kind.item_type))
    return kind


def type_of(layout: Instructions) -> pa.DataType:
    """The Arrow type of a column that is built so."""
    name, _, inside = layout
    if name == "list":
        return pa.list_(type_of(inside))
    if name == "map":
        return pa.map_(pa.string(), type_of(inside))
    if name == "struct":
        return pa.struct([(member.decode(), type_of(each)) for member, each in inside])
    return _TYPES[name]


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of a field before any document."""

    kinds: frozenset[str] = frozenset()  # values that count as seen
    only: Family | None = None  # the one family of values that counts; None if all do
    written: bool = False
    opaque: bool = False  # it is JSON text in any case
    keep: Literal["struct", "map"] | None = None
    fields: Mapping[str, Known] = field(default_factory=dict)
    item: Known | None = None
    values: Known | None = None
    cut: bool = False  # only these members are wanted, and values that are no objects are not


@dataclass(frozen=True, slots=True)
class Policy:
    """What the caller decides about types."""

    max_columns: int = 1000  # top-level fields that become columns: the most frequent ones
    max_members: int = MAX_MEMBERS
    on_conflict: OnConflict = "widen"
    nested_as_text: bool = False  # arrays and objects are JSON text
    declared: Mapping[str, pa.DataType] = field(default_factory=dict)
    infer_length: int | None = None  # only fields of the first documents, at most this many, become columns
    known: Mapping[str, Known] = field(default_factory=dict)
    maps: frozenset[FieldPath] = frozenset()
    wanted: Tree | None = None  # the members that are read at all; None for all

    def fields(self) -> dict[str, Known]:
        """What is known of top-level fields."""
        found = dict(self.known) | {name: declared(kind) for name, kind in self.declared.items()}
        for place in sorted(self.maps, key=len):
            name = str(place[0])
            found[name] = _with_map(found.get(name, Known()), place[1:])
        for name, inside in (self.wanted or {}).items():
            if inside is not None:
                found[name] = _cut(found.get(name, Known()), inside)
        return found


@dataclass(frozen=True, slots=True)
class Column:
    """How one field becomes a column."""

    type: pa.DataType  # the column's type
    how: How = "plain"
    members: Mapping[str, Column] = field(default_factory=dict)  # of a struct
    item: Column | None = None  # of a list; or of a map, its values
    conflict: bool = False  # its values have no common type
    data: bool = False  # names of objects are data
    only: Family | None = None  # values of other families become null
    family: Family | None = None  # of JSON text that was asked for: what all values are, arrays or objects
    cut: bool = False  # values that are no objects are not wanted

    def nested(self) -> int:
        """How many fields there are inside, at any depth."""
        count = 0 if self.item is None else self.item.nested()
        return count + sum(1 + member.nested() for member in self.members.values())

    def conflicts(self, path: FieldPath = ()) -> Iterator[tuple[FieldPath, Column]]:
        """The field at `path`, and those inside: where there is no common type, or names are data."""
        if self.conflict or self.data:
            yield path, self
        for name, member in self.members.items():
            yield from member.conflicts((*path, name))
        if self.item is not None:
            yield from self.item.conflicts((*path, None))


NULL = Column(pa.null())


_NAME = r"(?:`(?:[^`]|``)+`|[^`.]+)"


def path_of(column: str | Iterable[str]) -> Path:
    """The path that a name means: ``geo.lat``, with ```a.b``` as in schemas, or its parts as a tuple."""
    if not isinstance(column, str):
        return tuple(column)
    if re.fullmatch(rf"{_NAME}(?:\.{_NAME})*", column):
        names = re.findall(_NAME, column)
        return tuple(n[1:-1].replace("``", "`") if n[0] == "`" else n for n in names)
    return tuple(column.split("."))


def tree_of(paths: Iterable[Path]) -> Tree:
    """The members that some paths name."""
    tree: Tree = {}
    # What contains another one comes first.
    for path in sorted(set(paths)):
        inside: Tree | None = tree
        for name in path[:-1]:
            inside = None if inside is None else inside.setdefault(name, {})
        if inside is not None:
            inside[path[-1]] = None
    return tree


@dataclass(frozen=True, slots=True)
class Layout:
    """The columns of documents."""

    root: Column  # columns by name, as members of a struct
    rest: bool = False  # documents have fields that are no columns
    names: frozenset[str] | None = None

    @property
    def columns(self) -> Mapping[str, Column]:
        """By name."""
        return self.root.members


def struct(members: Mapping[str, Column]) -> Column:
    """A struct of columns."""
    return Column(pa.struct([(name, each.type) for name, each in members.items()]), members=members)


def declared(kind: pa.DataType) -> Known:
    """What is known of a field whose type is declared."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_boolean(kind):
        return Known(only="boolean")
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return Known(only="number")
    if pa.types.is_decimal(kind):
        return Known(only="number", written=True)
    if pa.types.is_temporal(kind):
        return Known(only="string")
    if pa.types.is_map(kind):
        return Known(only="object", opaque=True, written=True)
    if pa.types.is_struct(kind):
        inside = {each.name: declared(each.type) for each in kind}
        return Known(frozenset({"object"}), only="object", fields=inside)
    if is_list(kind):
        return Known(frozenset({"array"}), only="array", item=declared(kind.value_type))
    return Known(opaque=True, written=True)


def _with_map(known: Known, place: FieldPath) -> Known:
    """What is known of a field, and that names are data in a place inside of it."""
    if not place:
        return replace(known, keep="map")
    name, *inner = place
    if name is not None:
        there = known.fields.get(name, Known())
        return replace(known, fields={**known.fields, name: _with_map(there, tuple(inner))})
    rest = tuple(inner)
    item, values = _with_map(known.item or Known(), rest), _with_map(known.values or Known(), rest)
    return replace(known, item=item, values=values)


def _cut(known: Known, tree: Tree) -> Known:
    """What is known of a field of which only some members are wanted."""
    fields = {
        name: known.fields.get(name, Known())
        if inside is None
        else _cut(known.fields.get(name, Known()), inside)
        for name, inside in tree.items()
    }
    return replace(known, fields=fields, cut=True)


def layout_of(found: FieldFacts, policy: Policy, names: frozenset[str] | None = None) -> Layout:
    """The columns of documents."""
    fields = dict(found["fields"])
    known = policy.fields()
    unnamed = any("\0" in name for name in fields)
    wanted = [name for name in dict.fromkeys([*policy.declared, *policy.known, *fields]) if "\0" not in name]
    if names is not None:
        wanted = [name for name in wanted if name in names]
    elif len(wanted) > policy.max_columns and policy.wanted is None:
        names = chosen(fields, policy)
        wanted = [name for name in wanted if name in names]
    resolve = _Resolver(policy)
    columns = {
        name: resolve.column(fields.get(name, NO_FACTS), known.get(name, Known()), 2) for name in wanted
    }
    sizes = {name: column.nested() for name, column in columns.items() if name not in policy.declared}
    columns |= dict.fromkeys(too_many(sizes, policy.max_members), _text("json", conflict=True))
    return Layout(struct(columns), unnamed or names is not None, names)


def chosen(fields: Mapping[str, FieldFacts], policy: Policy) -> frozenset[str]:
    """The fields that become columns, where there are too many: declared ones, and the most frequent."""
    some = [name for name in fields if "\0" not in name and name not in policy.declared]
    some.sort(key=lambda name: (-fields[name]["present"], name))
    return frozenset([*policy.declared, *some[: policy.max_columns - len(policy.declared)]])


def too_many(sizes: Mapping[str, int], most: int) -> list[str]:
    """The columns with most fields inside, which become JSON text so that all others have `most` together."""
    names = sorted(sizes, key=lambda name: (-sizes[name], name))
    total = sum(sizes.values())
    count = 0
    while total > most:
        total -= sizes[names[count]]
        count += 1
    return names[:count]


def _text(how: How, *, conflict: bool = False, data: bool = False, only: Family | None = None) -> Column:
    return Column(pa.string(), how, conflict=conflict, data=data, only=only)


def _families(kinds: Iterable[str]) -> list[Family]:
    seen = set(kinds)
    return list(dict.fromkeys(family for kind, family in FAMILIES.items() if kind in seen))


def _most_frequent(families: list[Family], found: FieldFacts) -> Family:
    sizes: Counter[str] = Counter()
    for kind, count in found["counts"].items():
        sizes[FAMILIES[kind]] += count
    return max(families, key=lambda family: sizes[family])


class _Resolver:
    """Columns of fields, by one policy."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy

    def column(self, found: FieldFacts, known: Known, level: int) -> Column:
        """The column of a field; arrays and objects there are of a level: 1 is that of the document."""
        kinds = {*found["counts"], *known.kinds}
        if known.cut:
            return replace(self._objects(found, known, level) if "object" in kinds else NULL, cut=True)
        families = _families(kinds)
        only = known.only
        if known.written:
            return self._written(families, only)
        if only is None and len(families) > 1 and self._policy.on_conflict == "null" and not known.opaque:
            only = _most_frequent(families, found)
        if only is None:
            return self._of(kinds, found, known, level)
        others = any(family != only for family in families)
        kinds = {kind for kind in kinds if FAMILIES[kind] == only}
        if "object" in kinds and self._names_are_data(found, known) and not _has_nul(found):
            # What was declared, or was chosen among several families, is made of the text.
            return _text("json", conflict=True, only=only)
        column = replace(self._of(kinds, found, known, level), conflict=False)
        return replace(column, only=only, conflict=True) if others else column

    @staticmethod
    def _written(families: list[Family], only: Family | None) -> Column:
        if only is None:
            return Column(pa.string()) if all(each == "string" for each in families) else _text("string")
        return _text("json" if only == "object" else "text", conflict=True, only=only)

    def _of(self, kinds: set[str], found: FieldFacts, known: Known, level: int) -> Column:
        policy, families = self._policy, _families(kinds)
        nested = bool(kinds & {"array", "object"})
        if known.opaque or (nested and len(families) > 1) or ("object" in kinds and _has_nul(found)):
            return _text("json", conflict=True)
        if nested and policy.nested_as_text:
            return replace(_text("json"), family=families[0])
        if nested and level > MAX_LEVELS:
            return _text("json", conflict=True)
        if len(families) > 1:
            return _text("text" if policy.on_conflict == "widen" else "json", conflict=True)
        match families[0] if families else None:
            case None:
                return NULL
            case "object":
                return self._objects(found, known, level)
            case "array":
                item = self.column(found["item"] or NO_FACTS, known.item or Known(), level + 1)
                return Column(pa.list_(item.type), item=item)
            case "number":
                return _number(kinds, found)
        return Column(pa.bool_() if families == ["boolean"] else pa.string())

    def _names_are_data(self, found: FieldFacts, known: Known) -> bool:
        if found["values"] is not None:
            return True  # there were more than may be
        names = {name for name, _ in found["fields"]} | (known.fields.keys() if known.kinds else set())
        if len(names) > self._policy.max_members:
            return True
        if known.keep is not None:
            return known.keep == "map"
        count = found["counts"].get("object", 0)
        return names_are_data(count, len(names), found["members"], self._policy.max_members)

    def _objects(self, found: FieldFacts, known: Known, level: int) -> Column:
        fields = dict(found["fields"])
        if not known.cut and self._names_are_data(found, known):
            values = values_of(found)
            if len(_families({*values["counts"], *(known.values or Known()).kinds})) > 1:
                return _text("json", conflict=True, data=True)
            # To Arrow a map is a list of structs: two levels.
            item = self.column(values, known.values or Known(), level + 2)
            return Column(pa.map_(pa.string(), item.type), "map", item=item, data=True)
        return struct(
            {
                name: self.column(fields.get(name, NO_FACTS), known.fields.get(name, Known()), level + 1)
                for name in dict.fromkeys([*(known.fields if known.only or known.kinds else ()), *fields])
            }
        )


def _has_nul(found: FieldFacts) -> bool:
    return found["nul"] or any("\0" in name for name, _ in found["fields"])


def _number(kinds: set[str], found: FieldFacts) -> Column:
    double = "double" in kinds
    if found["beyond"] or found["long"] or (double and found["inexact"]):
        return _text("text", conflict=True)
    if double:
        return Column(pa.float64())
    low, high = found["low"], found["high"]
    if low >= -(1 << 63) and high < 1 << 63:
        return Column(pa.int64())
    if not low and high < 1 << 64:
        return Column(pa.uint64())
    return Column(pa.decimal128(MAX_DIGITS, 0))


def values_of(found: FieldFacts) -> FieldFacts:
    """Facts of the values of all members of objects together."""
    every = [inner for _, inner in found["fields"]]
    if found["values"] is not None:
        every.append(found["values"])
    return merged(every)


def merged(many: list[FieldFacts]) -> FieldFacts:
    """Facts of the values of several fields together."""
    if len(many) == 1:
        return many[0]
    counts: Counter[str] = Counter()
    samples: dict[str, set[tuple[int, int]]] = {}
    fields: dict[str, list[FieldFacts]] = {}
    for each in many:
        counts.update(each["counts"])
        for kind, places in each["samples"].items():
            samples.setdefault(kind, set()).update(places)
        for name, inner in each["fields"]:
            fields.setdefault(name, []).append(inner)
    items = [each["item"] for each in many if each["item"] is not None]
    values = [each["values"] for each in many if each["values"] is not None]
    return {
        "counts": dict(counts),
        "samples": {kind: tuple(sorted(places)[:SAMPLES]) for kind, places in samples.items()},
        "low": min((each["low"] for each in many), default=0),
        "high": max((each["high"] for each in many), default=0),
        **{flag: any(each[flag] for each in many) for flag in _FLAGS},
        "names": [],
        "members": sum(each["members"] for each in many),
        "present": sum(each["present"] for each in many),
        "item": merged(items) if items else None,
        "values": merged(values + [inner for some in fields.values() for inner in some]) if values else None,
        "fields": [] if values else [(name, merged(some)) for name, some in fields.items()],
    }


def at(found: FieldFacts, place: FieldPath) -> FieldFacts:
    """The facts of a place inside of documents; nothing where none has it."""
    for name in place:
        if name is not None:
            found = dict(found["fields"]).get(name, NO_FACTS)
        elif found["item"] is not None:
            found = found["item"]
        else:
            found = values_of(found) if found["values"] is not None or found["fields"] else NO_FACTS
    return found


def firsts(column: Column, found: FieldFacts) -> Iterator[tuple[int, int]]:
    """Where the first documents are that have a value of each field of a column: vbucket and seqno."""
    for name, member in column.members.items():
        inner = dict(found["fields"]).get(name)
        if inner is None:
            continue
        places = [
            some[0]
            for kind, some in inner["samples"].items()
            if some and (member.only is None or FAMILIES[kind] == member.only)
        ]
        if places:
            yield min(places)
        yield from _inside(member, inner)


def _inside(column: Column, found: FieldFacts) -> Iterator[tuple[int, int]]:
    if column.how == "map" and column.item is not None:
        yield from _inside(column.item, values_of(found))
    elif column.item is not None and found["item"] is not None:
        yield from _inside(column.item, found["item"])
    elif column.members:
        yield from firsts(column, found)


def widths(
    column: Column, found: FieldFacts, place: FieldPath = ()
) -> Iterator[tuple[FieldPath, tuple[int, int]]]:
    """Of structs with many names: how many objects there are, and how many members these have together."""
    if column.members and place and len(column.members) > MANY_NAMES:
        yield place, (found["counts"].get("object", 0), found["members"])
    fields = dict(found["fields"]) if column.members else {}
    for name, member in column.members.items():
        yield from widths(member, fields.get(name, NO_FACTS), (*place, name))
    if column.item is not None:
        yield from widths(column.item, at(found, (None,)), (*place, None))
