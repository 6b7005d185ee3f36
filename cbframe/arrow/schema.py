"""One schema over all documents: what each field has been, and the Arrow type that holds all of it.

The order of types is small and honest: *null* widens to anything, *integer* widens to *double*
while every integer seen has an exact double, lists and structs widen member by member. Whatever
does not fit (a string against a number, an object against a scalar, an integer beyond 64 bits, a
number beyond the range of a double) turns the whole top-level column into JSON text.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isinf
from typing import Any, Literal

import pyarrow as pa

Kind = Literal["null", "boolean", "integer", "double", "string", "array", "object"]

_INT64 = range(-(1 << 63), 1 << 63)
_SCALARS = {
    "null": pa.null(),
    "boolean": pa.bool_(),
    "integer": pa.int64(),
    "double": pa.float64(),
    "string": pa.string(),
}


class Beyond:
    """An integer of a document that int64 cannot hold."""


class MinusZero(int):
    """The integer token ``-0``: zero among integers, negative zero once its column is double."""

    def __float__(self) -> float:
        return -0.0


_BEYOND = Beyond()
_MINUS_ZERO = MinusZero()


def _integer(token: str) -> int | Beyond:
    # The length is asked first: int() refuses tokens of more than 4300 digits, and is slow before.
    if len(token) > 20:
        return _BEYOND
    number = int(token)
    if number == 0 and token[0] == "-":
        return _MINUS_ZERO
    return number if number in _INT64 else _BEYOND


_DECODE = json.JSONDecoder(parse_int=_integer).decode


def load(document: bytes) -> dict[str, Any]:
    """Decode one sound document (a JSON object): the slow way, token by token.

    Integers beyond int64 come as :class:`Beyond`, and ``-0`` as :class:`MinusZero`; the last of
    several members with one name wins.
    """
    value: dict[str, Any] = _DECODE(document.decode())
    return value


class Mismatch(Exception):
    """A value fits no type that its field can still take: unwinds the walk, never leaves this module."""

    def __init__(self, path: str, types: Counter[str]) -> None:
        super().__init__(path)
        self.path = path
        self.types = types


@dataclass(slots=True)
class Node:
    """What one field has been so far.

    Attributes
    ----------
    kind
        The narrowest kind that holds every value seen.
    fields
        Members of an object, in order of first appearance.
    item
        Items of an array.
    inexact
        Some integer seen has no exact double.
    seen
        Values by kind; counts only the values that were looked at one by one.
    """

    kind: Kind = "null"
    fields: dict[str, Node] = field(default_factory=dict)
    item: Node | None = None
    inexact: bool = False
    seen: Counter[str] = field(default_factory=Counter)

    def type(self) -> pa.DataType:
        """The Arrow type of the field."""
        if self.kind == "array":
            assert self.item is not None
            return pa.list_(self.item.type())
        if self.kind == "object":
            return pa.struct([(name, node.type()) for name, node in self.fields.items()])
        return _SCALARS[self.kind]

    def widen(self, value: Any, path: str) -> int:
        """Take one value in; return how many fields are new.

        Raises
        ------
        Mismatch
            No type holds this value and the earlier ones.
        """
        if value is None:
            return 0
        kind, name = _KINDS[type(value)]
        if kind == "double" and isinf(value):
            name = "double beyond range"
        self.seen[name] += 1
        if name != kind or not self._holds(kind, value):
            raise Mismatch(path, self.seen)
        added = 0
        if kind == "object":
            for key, member in value.items():
                node = self.fields.get(key)
                if node is None:
                    node = self.fields[key] = Node()
                    added += 1
                added += node.widen(member, f"{path}.{key}")
        elif kind == "array":
            if self.item is None:
                self.item = Node()
            for member in value:
                added += self.item.widen(member, f"{path}[]")
        return added

    def _holds(self, kind: Kind, value: Any) -> bool:
        """Widen the kind alone; whether that is possible."""
        if kind == "integer" and int(float(value)) != value:
            self.inexact = True
        if self.kind == "null":
            self.kind = kind
        elif kind != self.kind:
            if {kind, self.kind} != {"integer", "double"}:
                return False
            self.kind = "double"
        return not (self.inexact and self.kind == "double")

    def coerce(self, value: Any) -> Any:
        """The Python value from which ``pa.array(..., type=self.type())`` builds the cell."""
        if value is None:
            return None
        if self.kind == "double":
            return float(value)
        if self.kind == "integer":
            return int(value)
        if self.kind == "array":
            assert self.item is not None
            return [self.item.coerce(member) for member in value]
        if self.kind == "object":
            return {key: self.fields[key].coerce(member) for key, member in value.items()}
        return value


_KINDS: Mapping[type, tuple[Kind, str]] = {
    bool: ("boolean", "boolean"),
    int: ("integer", "integer"),
    MinusZero: ("integer", "integer"),
    Beyond: ("integer", "integer beyond 64 bits"),
    float: ("double", "double"),
    str: ("string", "string"),
    list: ("array", "array"),
    dict: ("object", "object"),
}


@dataclass(slots=True)
class Column:
    """One top-level field: a typed column, or JSON text once ``text`` is set."""

    name: str
    node: Node = field(default_factory=Node)
    nested: int = 0
    """Fields inside the column, at any depth."""
    text: bool = False
    conflict: tuple[str, Counter[str]] | None = None
    """Path and kinds seen there, when the column is text because of them."""


class Schema:
    """The columns of all documents so far.

    Parameters
    ----------
    max_fields
        No more than this many top-level columns; fields beyond them are ``overflow``. And no more
        than this many fields inside of columns, over all: when one more comes, the column that has
        most of them becomes JSON text. Both rules look at one document after another, so they do
        not depend on how documents came in batches.
    """

    def __init__(self, max_fields: int) -> None:
        self.columns: dict[str, Column] = {}
        self.overflow = False
        self.plan = 0
        """Changes when a field leaves the typed columns: for text, or for the overflow."""
        self._max_fields = max_fields
        self._nested = 0

    @property
    def splits(self) -> bool:
        """Whether documents must be taken apart before their typed fields can be parsed."""
        return self.overflow or any(column.text for column in self.columns.values())

    def typed(self) -> dict[str, pa.DataType]:
        """Name and type of each typed column."""
        return {name: column.node.type() for name, column in self.columns.items() if not column.text}

    def learn(self, document: Mapping[str, Any]) -> None:
        """Widen the columns so that they hold one more document."""
        for name, value in document.items():
            column = self.columns.get(name)
            if column is None:
                if len(self.columns) >= self._max_fields:
                    self.plan += not self.overflow
                    self.overflow = True
                    continue
                column = self.columns[name] = Column(name)
            if not column.text:
                self._widen(column, value)

    def _widen(self, column: Column, value: Any) -> None:
        try:
            added = column.node.widen(value, column.name)
        except Mismatch as mismatch:
            column.conflict = mismatch.path, mismatch.types
            self._give_up(column)
            return
        column.nested += added
        self._nested += added
        while self._nested > self._max_fields:
            self._give_up(max(self.columns.values(), key=lambda other: other.nested))

    def _give_up(self, column: Column) -> None:
        self._nested -= column.nested
        column.nested = 0
        column.text = True
        self.plan += 1
        column.node = Node()
