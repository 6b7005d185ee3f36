"""The rules by which JSON documents become typed columns, in plain Python over ``json``.

Slow and obvious: other implementations are compared with this one. :func:`read` parses a document,
:class:`Facts` holds what was seen of the values of a field (facts of batches merge with ``|``, in any
order), :meth:`Facts.column` is the column that follows, and :func:`cell` a value of it. :func:`typed` does
all of that for some documents.

==========================================  =====================================================
values of a field                           column
==========================================  =====================================================
null only, or none                          null
true, false                                 bool
integers within int64                       int64
integers within uint64, none negative       uint64
integers of up to 38 digits                 decimal128(38, 0)
an integer of more digits among numbers     text: the numbers as they are written
numbers, some with a point or an exponent   double, the nearest one of each
... an integer without an exact double      text: the numbers as they are written
... a number beyond the range of a double   text: the numbers as they are written
strings                                     string
several of: boolean, number, string         text: strings unchanged, the others as they are written
arrays                                      list, items by this table
objects                                     struct, members by this table
objects whose names are data                map of string to the values' column by this table; JSON
                                            text if the values are of several of: boolean, number,
                                            string, array, object
an object with NUL in a name                JSON text
arrays or objects deeper than level 60      JSON text
arrays or objects, and anything else        JSON text
==========================================  =====================================================

JSON text is each value as it is written. The document itself is level 1. A map takes two levels, since it is
a list of structs to Arrow, whose C interface ends at 64 levels.

The types form a lattice: a further document never makes a column narrower (:meth:`Column.holds`). Null is
below everything, ``{}`` below every object and ``[]`` below every array; :func:`rendered` makes JSON text of
a column that is still ``{}``, and text items of one that is still ``[]``, at the very end only. Whether the
names of an object are data (:func:`names_are_data`) is the one exception: that follows from the counts of
all documents together.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import zip_longest
from math import isinf
from typing import Any, Literal, TypeAlias

import pyarrow as pa

from cbframe.json.layout import MAX_DIGITS, MAX_LEVELS, MAX_MEMBERS, names_are_data
from cbframe.json.reference import MAX_DEPTH

Kind: TypeAlias = Literal["null", "boolean", "integer", "double", "string", "array", "object"]


@dataclass(frozen=True, slots=True)
class Value:
    """A JSON value.

    Attributes
    ----------
    source
        As it is written.
    content
        A bool, a str, a list of values, or values by name (of a name that is there twice the last one);
        None for null and for numbers, which have their source.
    """

    kind: Kind
    source: str
    content: Any = None

    @property
    def depth(self) -> int:
        """How many arrays and objects are inside one another."""
        if self.kind not in ("array", "object"):
            return 0
        inside = self.content if self.kind == "array" else self.content.values()
        return 1 + max((value.depth for value in inside), default=0)


def read(document: bytes) -> Value | None:
    """Parse a document; None if it is no JSON object, or nests deeper than 200 levels."""
    try:
        text = document.decode()
        _DECODER.decode(text)
        value, _ = _scan(text, 0)
    except (ValueError, RecursionError):
        return None
    return value if value.kind == "object" else None


def _refuse(token: str) -> None:
    raise ValueError(f"{token} is no JSON")


_DECODER = json.JSONDecoder(parse_int=str, parse_float=str, parse_constant=_refuse)
_BLANKS = re.compile(r"[ \t\r\n]*")
_NUMBER = re.compile(r"-?[0-9]+([.eE][-+.eE0-9]*)?")


def _scan(text: str, at: int, depth: int = 0) -> tuple[Value, int]:
    """The value at a place of sound JSON, and where it ends; ValueError if it nests too deep."""
    at = begin = _past_blanks(text, at)
    if depth == MAX_DEPTH and text[at] in "{[":
        raise ValueError("it nests too deep")
    match text[at]:
        case "{":
            members: dict[str, Value] = {}
            at += 1
            while text[at := _past_blanks(text, at)] != "}":
                name, at = _scan(text, at + (text[at] == ","), depth)
                member, at = _scan(text, _past_blanks(text, at) + 1, depth + 1)
                members[name.content] = member
            return Value("object", text[begin : at + 1], members), at + 1
        case "[":
            items: list[Value] = []
            at += 1
            while text[at := _past_blanks(text, at)] != "]":
                item, at = _scan(text, at + (text[at] == ","), depth + 1)
                items.append(item)
            return Value("array", text[begin : at + 1], items), at + 1
        case '"':
            string, at = _DECODER.raw_decode(text, at)
            string.encode()  # a ValueError for half of a surrogate pair
            return Value("string", text[begin:at], string), at
        case "t" | "f" | "n":
            constant, at = _DECODER.raw_decode(text, at)
            return Value("null" if constant is None else "boolean", text[begin:at], constant), at
    number = _NUMBER.match(text, at)
    assert number is not None, "it was decoded before"
    return Value("double" if number[1] else "integer", number[0]), number.end()


def _past_blanks(text: str, at: int) -> int:
    blanks = _BLANKS.match(text, at)
    assert blanks is not None, "it matches anything"
    return blanks.end()


@dataclass(frozen=True)
class Column:
    """A column, or what is inside of one.

    Attributes
    ----------
    type
        Its type.
    json
        Text that is JSON.
    members
        Of a struct.
    item
        Of a list; or of a map, its values.
    """

    type: pa.DataType
    json: bool = False
    members: Mapping[str, Column] = field(default_factory=dict)
    item: Column | None = None

    def holds(self, other: Column) -> bool:
        """Whether this column is as wide as another one, or wider: the order of the lattice.

        Whether names are data is no matter of width: struct, map, and the JSON text that such objects become
        where values differ, are only compared with what is no object.
        """
        if self.json or pa.types.is_null(other.type):
            return True
        if other.json:
            return False
        if pa.types.is_map(self.type) or pa.types.is_map(other.type):
            return self._of_objects() and other._of_objects()
        if pa.types.is_struct(self.type) and pa.types.is_struct(other.type):
            inside = other.members.items()
            return all(name in self.members and self.members[name].holds(each) for name, each in inside)
        if self.item is not None and other.item is not None:
            return self.item.holds(other.item)
        return self.type.equals(other.type) or str(other.type) in _BELOW.get(str(self.type), ())

    def _of_objects(self) -> bool:
        return bool(pa.types.is_struct(self.type) or pa.types.is_map(self.type))

    def nested(self) -> int:
        """How many fields there are inside, at any depth."""
        count = 0 if self.item is None else self.item.nested()
        return count + sum(1 + member.nested() for member in self.members.values())


_INTEGERS = ("int64", "uint64", "decimal128(38, 0)")
_BELOW: dict[str, tuple[str, ...]] = {
    "uint64": _INTEGERS[:1],
    "decimal128(38, 0)": _INTEGERS[:2],
    "double": _INTEGERS,
    "string": ("bool", *_INTEGERS, "double"),
}
"""The types of scalars that each one holds, besides its own."""
_JSON = Column(pa.string(), json=True)
_TEXT = Column(pa.string())


@dataclass
class Facts:
    """What was seen of the values of a field.

    Attributes
    ----------
    kinds
        How many values there are of each kind, nulls not counted.
    low, high
        The smallest and the largest integer of up to 38 digits, and 0.
    inexact
        Some integer has no exact double.
    long
        Some integer has more than 38 digits.
    beyond
        Some number is beyond the range of a double.
    item
        Items of all arrays; None if there was no item.
    members
        Members of all objects, by name.
    count
        How many members all objects have, null ones included.
    """

    kinds: Counter[Kind] = field(default_factory=Counter)
    low: int = 0
    high: int = 0
    inexact: bool = False
    long: bool = False
    beyond: bool = False
    item: Facts | None = None
    members: dict[str, Facts] = field(default_factory=dict)
    count: int = 0

    @classmethod
    def of(cls, value: Value) -> Facts:
        """Facts of one value."""
        if value.kind == "null":
            return cls()
        facts = cls(Counter([value.kind]))
        match value.kind:
            case "integer" if len(value.source.lstrip("-")) > MAX_DIGITS:
                facts.long = True
            case "integer":
                number = int(value.source)
                facts.low, facts.high = min(0, number), max(0, number)
                facts.inexact = int(float(number)) != number
            case "double":
                facts.beyond = isinf(float(value.source))
            case "array":
                facts.item = merged(map(cls.of, value.content)) if value.content else None
            case "object":
                facts.members = {name: cls.of(member) for name, member in value.content.items()}
                facts.count = len(facts.members)
        return facts

    def __or__(self, other: Facts) -> Facts:
        """Facts of the values of both."""
        return Facts(
            self.kinds + other.kinds,
            min(self.low, other.low),
            max(self.high, other.high),
            self.inexact or other.inexact,
            self.long or other.long,
            self.beyond or other.beyond,
            self.item if other.item is None else other.item if self.item is None else self.item | other.item,
            {
                name: self.members.get(name, Facts()) | other.members.get(name, Facts())
                for name in [*self.members, *(name for name in other.members if name not in self.members)]
            },
            self.count + other.count,
        )

    def families(self) -> set[str]:
        """Kinds of values that have no common type."""
        return {"number" if kind in ("integer", "double") else kind for kind in self.kinds}

    def column(self, max_members: int = MAX_MEMBERS, level: int = 2) -> Column:
        """The column that holds all values.

        Parameters
        ----------
        max_members
            Different names of an object that are not data yet.
        level
            Of arrays and objects here: 2 in a field of a document.
        """
        families = self.families()
        nested = families & {"array", "object"}
        if nested and (len(families) > 1 or level > MAX_LEVELS):
            return _JSON
        if len(families) > 1:
            return _TEXT
        match families.pop() if families else "null":
            case "null":
                return Column(pa.null())
            case "boolean":
                return Column(pa.bool_())
            case "string":
                return Column(pa.string())
            case "number":
                return Column(self._number())
            case "array":
                item = (self.item or Facts()).column(max_members, level + 1)
                return Column(pa.list_(item.type), item=item)
        return self._objects(max_members, level)

    def _number(self) -> pa.DataType:
        if self.long or self.beyond or (self.kinds["double"] and self.inexact):
            return pa.string()
        if self.kinds["double"]:
            return pa.float64()
        if self.low >= -(1 << 63) and self.high < 1 << 63:
            return pa.int64()
        return pa.uint64() if not self.low and self.high < 1 << 64 else pa.decimal128(MAX_DIGITS, 0)

    def _objects(self, max_members: int, level: int) -> Column:
        if any("\0" in name for name in self.members):
            return _JSON
        if names_are_data(self.kinds["object"], len(self.members), self.count, max_members):
            values = merged(self.members.values())
            if len(values.families()) > 1:
                return _JSON
            item = values.column(max_members, level + 2)
            return Column(pa.map_(pa.string(), item.type), item=item)
        members = {name: facts.column(max_members, level + 1) for name, facts in self.members.items()}
        return Column(pa.struct([(name, each.type) for name, each in members.items()]), members=members)


def merged(many: Iterable[Facts]) -> Facts:
    """Facts of the values of all."""
    level = list(many)
    while len(level) > 1:
        # In pairs, so that facts with many members are not copied once for each value.
        level = [one | other for one, other in zip_longest(level[::2], level[1::2], fillvalue=Facts())]
    return level[0] if level else Facts()


def columns(facts: Facts, max_members: int = MAX_MEMBERS) -> dict[str, Column]:
    """The columns of documents, by name, of what was seen of them.

    A field with NUL in its name is no column. Where columns together have more than `max_members` fields
    inside, those with most become JSON text, until the others have few enough.
    """
    found = {name: member.column(max_members) for name, member in facts.members.items() if "\0" not in name}
    sizes = {name: column.nested() for name, column in found.items()}
    total = sum(sizes.values())
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        if total <= max_members:
            break
        found[name] = _JSON
        total -= sizes[name]
    return found


def cell(value: Value | None, column: Column) -> Any:
    """A value as the Python value that a cell of the column has."""
    if value is None or value.kind == "null":
        return None
    kind = column.type
    if column.json:
        return value.source
    if pa.types.is_struct(kind):
        return {name: cell(value.content.get(name), member) for name, member in column.members.items()}
    if column.item is not None and pa.types.is_map(kind):
        return [(name, cell(member, column.item)) for name, member in value.content.items()]
    if column.item is not None:
        return [cell(item, column.item) for item in value.content]
    if pa.types.is_string(kind):
        return value.content if value.kind == "string" else value.source
    if pa.types.is_boolean(kind):
        return value.content
    if pa.types.is_floating(kind):
        return float(value.source)
    number = int(value.source)  # -0 is 0
    return Decimal(number) if pa.types.is_decimal(kind) else number


@dataclass(frozen=True)
class Typed:
    """Documents as columns.

    Attributes
    ----------
    columns
        In order of first appearance: of a value that is not null; those without one last, by name.
    cells
        Of each column; a row for each document, of nulls where it is none.
    rest
        For each document the source of its fields that are no columns, by name.
    """

    columns: Mapping[str, Column]
    cells: Mapping[str, Sequence[Any]]
    rest: Sequence[Mapping[str, str]]


def typed(documents: Iterable[bytes], max_members: int = MAX_MEMBERS) -> Typed:
    """Type some documents; what is none is a row of nulls."""
    values = [read(document) for document in documents]
    found = columns(merged(Facts.of(value) for value in values if value is not None), max_members)
    whole = Column(pa.struct([]), members=found)
    ordered = in_order(whole, [value for value in values if value is not None]).members
    fields = [{} if value is None else value.content for value in values]
    return Typed(
        ordered,
        {name: [cell(each.get(name), column) for each in fields] for name, column in ordered.items()},
        [{name: value.source for name, value in each.items() if name not in found} for each in fields],
    )


def in_order(column: Column, values: Sequence[Value]) -> Column:
    """A column with the members of structs in order of first appearance, those without a value last, by name.

    Parameters
    ----------
    values
        All that it holds, none of them null.
    """

    def inside(found: Iterable[Value | None]) -> list[Value]:
        return [each for each in found if each is not None and each.kind != "null"]

    if column.item is not None:
        is_map = pa.types.is_map(column.type)
        lists = (value.content.values() if is_map else value.content for value in values)
        item = in_order(column.item, inside(each for some in lists for each in some))
        return Column(pa.map_(pa.string(), item.type) if is_map else pa.list_(item.type), item=item)
    if not pa.types.is_struct(column.type):
        return column
    some = {name: inside(value.content.get(name) for value in values) for name in column.members}
    seen = dict.fromkeys(
        name for value in values for name, member in value.content.items() if member.kind != "null"
    )
    names = [*(name for name in seen if name in some), *sorted(some.keys() - seen.keys())]
    members = {name: in_order(column.members[name], some[name]) for name in names}
    return Column(pa.struct([(name, each.type) for name, each in members.items()]), members=members)
