"""What has been seen of the values of each field: the widening lattice, as plain facts.

Facts only ever become more, whatever the order in which documents are looked at: the same documents
make the same facts. Which type follows from them is decided elsewhere (``plan``).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import isinf
from typing import Any, Literal

from cbframe.json.reference import MAX_DIGITS

Family = Literal["boolean", "number", "string", "array", "object"]
"""Values of one family may have a common type."""

_LONGEST = 400
"""Integers of more digits are beyond the range of a double, and slow to read."""


_TOO_LONG = 10**MAX_DIGITS


class Huge:
    """An integer of so many digits that only its text can be kept."""


class MinusZero(int):
    """The integer token ``-0``: zero among integers, negative zero once its column is double."""

    def __float__(self) -> float:
        return -0.0


_HUGE = Huge()
_MINUS_ZERO = MinusZero()


def _integer(token: str) -> int | Huge:
    if len(token) > _LONGEST:
        return _HUGE
    number = int(token)
    return _MINUS_ZERO if number == 0 and token[0] == "-" else number


_DECODE = json.JSONDecoder(parse_int=_integer).decode


def load(document: bytes) -> Any:
    """Decode sound JSON, the slow way, token by token.

    Integers of hundreds of digits come as :class:`Huge`, and ``-0`` as :class:`MinusZero`; the last
    of several members with one name wins.
    """
    return _DECODE(document.decode())


def exact(integer: int) -> bool:
    """Whether an integer has an exact double."""
    try:
        return int(float(integer)) == integer
    except OverflowError:
        return False


def family_of(value: Any) -> Family:
    """The family of a value that is not null, as :func:`load` made it."""
    match value:
        case dict():
            return "object"
        case list():
            return "array"
        case str():
            return "string"
        case bool():
            return "boolean"
    return "number"


@dataclass(slots=True)
class Facts:
    """What one field has been so far.

    Attributes
    ----------
    boolean, integer, double, string
        Such a value was seen.
    low, high
        The smallest and the largest integer, 0 included.
    inexact
        Some integer has no exact double.
    beyond
        Some number is beyond the range of a double, or an integer of more than 400 digits.
    item
        Items of arrays; None if there was no array.
    fields
        Members of objects, in the order in which they were seen; None if there was no object.
    values
        Values of all members together, where the names of objects are data; None where members are fields.
    keep
        Whether members are fields (``"struct"``) or names are data (``"map"``), where that is decided.
    sampled
        How many fields there were when their names were last looked at.
    opaque
        It is kept as JSON text: it was an array or an object, and also something else, or a name of an object
        has a NUL in it. Nothing is remembered of what is inside of it.
    only
        The one family of values that counts; None if all do.
    others
        A value of another family was seen.
    written
        Values are wanted as they are written: numbers with all of their digits, objects as JSON text;
        if all families count, anything.
    """

    boolean: bool = False
    integer: bool = False
    double: bool = False
    string: bool = False
    low: int = 0
    high: int = 0
    inexact: bool = False
    beyond: bool = False
    item: Facts | None = None
    fields: dict[str, Facts] | None = None
    values: Facts | None = None
    keep: Literal["struct", "map"] | None = None
    sampled: int = 0
    opaque: bool = False
    only: Family | None = None
    others: bool = False
    written: bool = False

    @property
    def number(self) -> bool:
        """Whether a number was seen."""
        return self.integer or self.double

    @property
    def long(self) -> bool:
        """Whether some integer has more digits than a decimal."""
        return bool(max(-self.low, self.high) >= _TOO_LONG)

    def families(self) -> tuple[Family, ...]:
        """Kinds of values that have no common type, in a fixed order."""
        seen: dict[Family, bool] = {
            "boolean": self.boolean,
            "number": self.number,
            "string": self.string,
            "array": self.item is not None,
            "object": self.fields is not None,
        }
        return tuple(name for name, is_seen in seen.items() if is_seen)

    def learn(self, value: Any, max_members: int) -> bool:
        """Take one value in, as :func:`load` made it; whether anything is new."""
        if value is None:
            return False
        if self.only is not None and family_of(value) != self.only:
            new = not self.others
            self.others = True
            return new
        match value:
            case dict():
                new = self._object(value, max_members)
            case list():
                new = self._array(value, max_members)
            case str():
                new = not self.string
                self.string = True
            case bool():
                new = not self.boolean
                self.boolean = True
            case int():
                new = self._integer(value)
            case float():
                new = self._double(value)
            case _:
                assert isinstance(value, Huge)
                new = not (self.integer and self.beyond)
                self.integer = self.inexact = self.beyond = True
        if new:
            self._limit(max_members)
        return new

    def restart(self, only: Family) -> None:
        """Forget everything; from now on values of one family count, and there are others."""
        fresh = Facts(only=only, others=True)
        for name in self.__slots__:
            setattr(self, name, getattr(fresh, name))

    def close(self) -> None:
        """Make it opaque."""
        self.opaque = True
        self.values = None
        self.item = None if self.item is None else Facts()
        self.fields = None if self.fields is None else {}

    def _limit(self, max_members: int) -> None:
        """Make it opaque where values have no common type, and data of too many names."""
        if self.opaque:
            return
        if (self.item is not None or self.fields is not None) and len(self.families()) > 1:
            self.close()
        elif self.fields is not None and len(self.fields) > max_members:
            self.to_map(max_members)

    def to_map(self, max_members: int) -> None:
        """From now on the names of objects are data."""
        if self.only is not None:
            # What was declared, or was chosen among several families, is made of the text.
            self.opaque = self.written = True
            self.fields = {}
            return
        self.values = Facts()
        for facts in (self.fields or {}).values():
            self.values.merge(facts, max_members)
        self.fields = None if self.fields is None else {}

    def to_struct(self) -> None:
        """From now on members are fields, of which nothing is known."""
        self.values = None

    def merge(self, other: Facts, max_members: int) -> None:
        """Take in what another field has been."""
        for name in _FLAGS:
            setattr(self, name, getattr(self, name) or getattr(other, name))
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)
        if other.item is not None:
            self.item = self.item or Facts()
            self.item.merge(other.item, max_members)
        if other.fields is not None:
            self.fields = self.fields or {}
            if other.values is not None and self.values is None:
                self.to_map(max_members)
            for name, facts in other.fields.items():
                into = self.fields.setdefault(name, Facts()) if self.values is None else self.values
                into.merge(facts, max_members)
        if other.values is not None and self.values is not None:
            self.values.merge(other.values, max_members)
        if self.opaque:
            self.close()
        self._limit(max_members)

    def _double(self, value: float) -> bool:
        beyond = isinf(value)
        new = not self.double or beyond > self.beyond
        self.double = True
        self.beyond |= beyond
        return new

    def _integer(self, value: int) -> bool:
        inexact = not exact(value)
        new = not self.integer or inexact > self.inexact or value < self.low or value > self.high
        self.integer = True
        self.inexact |= inexact
        self.low, self.high = min(self.low, value), max(self.high, value)
        return new

    def _array(self, value: list[Any], max_members: int) -> bool:
        new = self.item is None
        if self.item is None:
            self.item = Facts()
        if self.opaque:
            return new
        for member in value:
            new |= self.item.learn(member, max_members)
        return new

    def _object(self, value: dict[str, Any], max_members: int) -> bool:
        new = self.fields is None
        if self.fields is None:
            self.fields = {}
        if self.opaque:
            return new
        if any("\0" in name for name in value):
            self.close()
            return True
        if self.values is None and self.keep == "map":
            self.values = Facts()
        if self.values is not None:
            for member in value.values():
                new |= self.values.learn(member, max_members)
            return new
        for name, member in value.items():
            facts = self.fields.get(name)
            if facts is None:
                facts = self.fields[name] = Facts()
                new = True
            new |= facts.learn(member, max_members)
        return new

    def nested(self) -> int:
        """How many fields there are inside, at any depth."""
        count = sum(each.nested() for each in (self.item, self.values) if each is not None)
        return count + sum(1 + facts.nested() for facts in (self.fields or {}).values())


_FLAGS = ("boolean", "integer", "double", "string", "inexact", "beyond", "opaque", "others", "written")


def at(columns: Mapping[str, Facts], path: Iterable[str | None]) -> Facts:
    """The facts of a place inside of columns; None stands for items of a list, or values of a map."""
    first, *rest = path
    assert first is not None
    facts = columns[first]
    for name in rest:
        inner = (facts.item or facts.values) if name is None else (facts.fields or {})[name]
        assert inner is not None
        facts = inner
    return facts
