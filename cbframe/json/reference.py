"""JSON documents to typed columns in Python: what runs where the compiled core is not installed.

:class:`Converter` has the interface of the compiled one, and gives the same results. Documents are read by
``json``'s scanner in C, which keeps no source text; those that it cannot read exactly, and those of which
some text is wanted as it is written, are read by :func:`scan`. Then values are taken field by field: each
:class:`_Field` has the list of its values, from which facts and columns follow.

The instructions of converters, and the limits, are in :mod:`cbframe.json.layout`.
"""

from __future__ import annotations

import gc
import json
import re
from bisect import bisect
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, reduce
from itertools import chain
from json.decoder import scanstring  # type: ignore[attr-defined]
from math import inf, isfinite, isinf
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cbframe.json.layout import (
    FAMILIES,
    FIELDS,
    MAX_DIGITS,
    MAX_LEVELS,
    MAX_MEMBERS,
    NAMES,
    NOTHING,
    SAMPLES,
    SOME,
    Configuration,
    Instructions,
    type_of,
)

KINDS = tuple(FAMILIES)
MAX_DEPTH = 200
"""Documents that nest deeper are rejected."""
GOOD, _BINARY, EMPTY, NOT_UTF8, TOO_DEEP, INVALID_JSON, NOT_AN_OBJECT = range(7)

Place: TypeAlias = tuple[int, int]
"""A vbucket and a seqno."""
_Rows: TypeAlias = npt.NDArray[np.int64]


# Values with their source -----------------------------------------------------------------------------------


class Integer(int):
    """An integer that ``str`` would not write as its source: ``-0``, or one of more than 38 digits."""

    source: str

    @classmethod
    def of(cls, source: str) -> int:
        """An integer by its source; of too many digits to be converted, any one that fits no column."""
        digits = len(source.lstrip("-"))
        if digits <= MAX_DIGITS and source != "-0":
            return int(source)
        number = cls(0 if source == "-0" else 10**MAX_DIGITS * (-1 if source[0] == "-" else 1))
        number.source = source
        return number


class Double(float):
    """A number with a point or an exponent."""

    __slots__ = ("source",)
    source: str


class String(str):
    """A string; the source has its quotes."""

    __slots__ = ("source",)
    source: str


class Array(list[Any]):
    """An array."""

    __slots__ = ("begin", "end", "text")
    text: str
    begin: int
    end: int

    @property
    def source(self) -> str:
        """As it is written."""
        return self.text[self.begin : self.end]


class Object(dict[str, Any]):
    """An object: of a name that is there twice the last value."""

    __slots__ = ("begin", "end", "text")
    text: str
    begin: int
    end: int

    @property
    def source(self) -> str:
        """As it is written."""
        return self.text[self.begin : self.end]


_KIND: dict[type, int] = {
    type(None): -1,
    bool: 0,
    int: 1,
    Integer: 1,
    float: 2,
    Double: 2,
    str: 3,
    String: 3,
    list: 4,
    Array: 4,
    dict: 5,
    Object: 5,
}
_BOOLEAN, _INTEGER, _DOUBLE, _STRING, _ARRAY, _OBJECT = range(6)


class TooDeepError(ValueError):
    """Arrays and objects nest deeper than 200 levels."""


_BLANKS = " \t\r\n"
_TOKEN = re.compile(
    r"[ \t\r\n]*+(?:(?P<sign>[{}\[\],:])"
    r'|(?P<string>"[^"\\\x00-\x1f]*+(?:\\.[^"\\\x00-\x1f]*+)*+")'
    r"|(?P<number>-?(?:0|[1-9][0-9]*+)(?P<double>(?:\.[0-9]++)?(?:[eE][-+]?[0-9]++)?))"
    r"|(?P<constant>true|false|null))"
)
_CONSTANTS = {"true": True, "false": False, "null": None}


def scan(text: str) -> Any:  # noqa: C901 - one loop over tokens, which does not recurse
    """Read a JSON text exactly (RFC 8259), with the source of each value."""
    at = 0
    unfinished: list[tuple[Any, str]] = []
    """Arrays, and objects with the name of the member that is being read; the innermost last."""

    def token() -> re.Match[str]:
        nonlocal at
        found = _TOKEN.match(text, at)
        if found is None:
            raise ValueError("no token")
        at = found.end()
        return found

    def name(found: re.Match[str]) -> str:
        if found["string"] is None or token()["sign"] != ":":
            raise ValueError("no name")
        return _string(text, found)

    found = token()
    while True:
        if found["sign"] in ("{", "["):
            if len(unfinished) == MAX_DEPTH:
                raise TooDeepError
            value: Any = Object() if found["sign"] == "{" else Array()
            value.text, value.begin = text, at - 1
            found = token()
            if found["sign"] != ("}" if type(value) is Object else "]"):
                if type(value) is Object:
                    unfinished.append((value, name(found)))
                    found = token()
                else:
                    unfinished.append((value, ""))
                continue
            value.end = at
        else:
            value = _scalar(text, found)
        while unfinished:
            container, key = unfinished[-1]
            if type(container) is Object:
                container[key] = value
            else:
                container.append(value)
            found = token()
            if found["sign"] == ",":
                found = token()
                if type(container) is Object:
                    unfinished[-1] = (container, name(found))
                    found = token()
                break
            if found["sign"] != ("}" if type(container) is Object else "]"):
                raise ValueError("neither a comma nor an end")
            container.end = at
            value = container
            unfinished.pop()
        else:
            if text[at:].strip(_BLANKS):
                raise ValueError("something comes after the value")
            return value


def _scalar(text: str, found: re.Match[str]) -> Any:
    if found["string"] is not None:
        string = String(_string(text, found))
        string.source = found["string"]
        return string
    if found["number"] is not None:
        if not found["double"]:
            return Integer.of(found["number"])
        double = Double(found["number"])
        double.source = found["number"]
        return double
    if found["constant"] is None:
        raise ValueError("no value")
    return _CONSTANTS[found["constant"]]


def _string(text: str, found: re.Match[str]) -> str:
    string: str = scanstring(text, found.start("string") + 1)[0]
    string.encode()  # a ValueError for half of a surrogate pair
    return string


def _encoder(ensure_ascii: bool, comma: str, colon: str) -> Callable[[Any], str]:
    return json.JSONEncoder(ensure_ascii=ensure_ascii, separators=(comma, colon), check_circular=False).encode


_FORMS = [
    _encoder(ascii_only, *separators)
    for separators in ((",", ":"), (", ", ": "))
    for ascii_only in (False, True)
]
"""Ways to write JSON: where one gives the source of a document, it gives that of each value in it."""
_SCANNED = -1


def _source(value: Any, form: int) -> str:
    """A value as it is written, in a document that is written in some form, or was scanned."""
    if form != _SCANNED:
        return _FORMS[form](value)
    if value is None or type(value) is bool or type(value) is int:
        return _FORMS[0](value)
    return value.source  # type: ignore[no-any-return]


# Facts ------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Facts:
    """What the values of a field have in common: of batches and of buckets, merged in any order."""

    counts: list[int] = field(default_factory=lambda: [0] * len(KINDS))
    samples: list[tuple[Place, ...]] = field(default_factory=lambda: [()] * len(KINDS))
    low: int = 0  # the smallest and the largest integer of up to 38 digits, and 0
    high: int = 0
    inexact: bool = False  # some integer has no exact double
    long: bool = False  # some integer has more than 38 digits
    beyond: bool = False  # some number is beyond the range of a double
    minus_zero: bool = False  # some integer is `-0`
    nul: bool = False  # some name of a member has a NUL
    item: Facts | None = None  # of the items of arrays
    fields: dict[str, Facts] = field(default_factory=dict)  # of members of objects, by name
    values: Facts | None = None
    names: frozenset[int] = frozenset()  # hashes of these names
    members: int = 0  # how many members, nulls included, all objects have
    present: int = 0  # how many values there are, nulls included
    max_members: int = MAX_MEMBERS

    def __or__(self, other: Facts) -> Facts:
        """Facts of the documents of both; names of the documents themselves never are data."""
        return self._with(other)

    def merged(self, other: Facts) -> Facts:
        """Facts of the values of both inside of documents; of too many names these are data."""
        both = self._with(other)
        if len(both.fields) > both.max_members:
            both.values, both.names, both.fields = both.all_values(), _hashes(both.fields), {}
        return both

    def _with(self, other: Facts) -> Facts:
        both = Facts(
            [one + more for one, more in zip(self.counts, other.counts, strict=True)],
            [
                one if not more else more if not one else tuple(sorted({*one, *more})[:SAMPLES])
                for one, more in zip(self.samples, other.samples, strict=True)
            ],
            min(self.low, other.low),
            max(self.high, other.high),
            self.inexact or other.inexact,
            self.long or other.long,
            self.beyond or other.beyond,
            self.minus_zero or other.minus_zero,
            self.nul or other.nul,
            other.item
            if self.item is None
            else self.item
            if other.item is None
            else self.item.merged(other.item),
            members=self.members + other.members,
            present=self.present + other.present,
            max_members=self.max_members,
        )
        if self.values is None and other.values is None:
            both.fields = self.fields | other.fields
            for name in self.fields.keys() & other.fields.keys():
                both.fields[name] = self.fields[name].merged(other.fields[name])
        else:
            both.values = self.all_values().merged(other.all_values())
            both.names = self.names | other.names | _hashes([*self.fields, *other.fields])
        return both

    def all_values(self) -> Facts:
        """Of the values of all members."""
        values = self.values or Facts(max_members=self.max_members)
        return reduce(Facts.merged, self.fields.values(), values)

    def shape(self) -> int:
        """A number that is the same for facts of the same columns, but for how many names there are.

        It holds within a process.
        """
        return hash(self.parts()) & (1 << 64) - 1

    def parts(self) -> tuple[Any, ...]:
        """What columns follow from."""
        return (
            tuple(count > 0 for count in self.counts),
            (self.low < 0, self.low < -(1 << 63), self.high >= 1 << 63, self.high >= 1 << 64),
            (self.inexact, self.long, self.beyond, self.nul),
            tuple((name, self.fields[name].parts()) for name in sorted(self.fields)),
            None if self.item is None else self.item.parts(),
            None if self.values is None else self.values.parts(),
        )

    def to_dict(self) -> dict[str, Any]:
        """As objects of which JSON can be made."""
        return self.inner_dict() | {"max_members": self.max_members}

    def inner_dict(self) -> dict[str, Any]:
        """The same, without `max_members`."""
        some = [(number, kind) for number, kind in enumerate(KINDS) if self.counts[number]]
        return {
            "counts": {kind: self.counts[number] for number, kind in some},
            "samples": {kind: self.samples[number] for number, kind in some},
            "low": self.low,
            "high": self.high,
            "inexact": self.inexact,
            "long": self.long,
            "beyond": self.beyond,
            "minus_zero": self.minus_zero,
            "nul": self.nul,
            "names": sorted(self.names),
            "members": self.members,
            "present": self.present,
            "item": None if self.item is None else self.item.inner_dict(),
            "values": None if self.values is None else self.values.inner_dict(),
            "fields": [(name, self.fields[name].inner_dict()) for name in sorted(self.fields)],
        }

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> Facts:
        """What :meth:`to_dict` gave, of either core."""
        return cls._from_dict(found, found["max_members"])

    @classmethod
    def _from_dict(cls, found: Mapping[str, Any], most: int) -> Facts:
        item, values = found["item"], found["values"]
        facts = cls(
            [found["counts"].get(kind, 0) for kind in KINDS],
            [tuple((place[0], place[1]) for place in found["samples"].get(kind, ())) for kind in KINDS],
            item=None if item is None else cls._from_dict(item, most),
            fields={name: cls._from_dict(inner, most) for name, inner in found["fields"]},
            values=None if values is None else cls._from_dict(values, most),
            names=frozenset(found["names"]),
            max_members=most,
        )
        for name in ("low", "high", "inexact", "long", "beyond", "minus_zero", "nul", "members", "present"):
            setattr(facts, name, found[name])
        return facts


_SHORT = 64
"""Bytes of names that are hashed together."""


def _hashes(names: Iterable[str]) -> frozenset[int]:
    """FNV-1a of 64 bits of each name, to count names: the same everywhere, since facts are stored."""
    encoded = sorted((name.encode() for name in names), key=len)
    short = encoded[: bisect(encoded, _SHORT, key=len)]
    sizes = np.array(list(map(len, short)), np.int64)
    octets = np.frombuffer(b"".join(name.ljust(_SHORT) for name in short), np.uint8).reshape(-1, _SHORT)
    hashes = np.full(len(short), _FNV_START, np.uint64)
    for place in range(sizes.max(initial=0)):
        at = np.searchsorted(sizes, place, "right")
        hashes[at:] = (hashes[at:] ^ octets[at:, place]) * np.uint64(_FNV_PRIME)
    found = set(hashes.tolist())
    for name in encoded[len(short) :]:
        number = _FNV_START
        for octet in name:
            number = (number ^ octet) * _FNV_PRIME & (1 << 64) - 1
        found.add(number)
    return frozenset(found)


_FNV_START, _FNV_PRIME = 0xCBF29CE484222325, 0x100000001B3


class _Places:
    """Where the documents of a batch stand in the bucket, in order."""

    def __init__(self, vbuckets: npt.NDArray[np.uint16], seqnos: npt.NDArray[np.uint64]) -> None:
        self._vbuckets, self._seqnos = vbuckets, seqnos
        self._order = np.lexsort((seqnos, vbuckets))
        self._of_all = self._named(self._order)

    def first(self, documents: _Rows | None) -> tuple[Place, ...]:
        """The first places of some documents."""
        if documents is None:
            return self._of_all
        chosen = np.zeros(len(self._order), np.bool_)
        chosen[documents] = True
        found = self._named(self._order[:_FIRST][chosen[self._order[:_FIRST]]])
        return found if len(found) == SAMPLES else self._named(self._order[chosen[self._order]])

    def _named(self, documents: _Rows) -> tuple[Place, ...]:
        found: dict[Place, None] = {}
        for row in documents:
            found[int(self._vbuckets[row]), int(self._seqnos[row])] = None
            if len(found) == SAMPLES:
                break
        return tuple(found)


_FIRST = 64
"""Documents among which the first ones of a field mostly are."""

# Fields -----------------------------------------------------------------------------------------------------

_UNKNOWN: Configuration = (FIELDS, (), None, None)


class MisfitError(ValueError):
    """A column cannot hold its values: it was decided without them."""

    def __init__(self) -> None:
        super().__init__("a column cannot hold its values")


class _Field:
    """The values of a field in a batch."""

    def __init__(
        self,
        values: list[Any],  # those that there are, nulls included
        rows: _Rows | None,  # the row of each, ascending; None if there is one in every row
        length: int,  # how many rows there are: documents, or items of arrays, or members of objects
        documents: _Rows | None,  # the document of each row; None where rows are documents
        limit: int,
        configuration: Configuration,
        level: int,  # of arrays and objects here as columns have it: a map takes two
        depth: int,  # how many arrays and objects are around the values
    ) -> None:
        self.values, self._rows, self.length, self._documents_of_rows = values, rows, length, documents
        self._limit, self._level, self.depth = limit, level, depth
        self.inside = configuration[0]
        self._members = dict(configuration[1])
        self._item, self._value = configuration[2] or _UNKNOWN, configuration[3] or _UNKNOWN
        if self.inside == FIELDS and 0 < depth < MAX_LEVELS and len(self.names) > limit:
            self.take_as(NAMES)

    def take_as(self, inside: int) -> None:
        """Take what is inside of the values in another way; what was known of it no longer matters."""
        self.inside = inside
        self._members, self._item, self._value = {}, _UNKNOWN, _UNKNOWN
        for known in ("names", "_columns", "_fields", "item", "value"):
            self.__dict__.pop(known, None)

    @cached_property
    def types(self) -> Counter[type]:
        """How many values there are of each type."""
        kinds = set(map(type, self.values))
        if len(kinds) == 1:
            return Counter({kinds.pop(): len(self.values)})
        if len(kinds) == 2 and type(None) in kinds:
            nulls = self.values.count(None)
            return Counter({each: len(self.values) - nulls for each in kinds} | {type(None): nulls})
        return Counter(map(type, self.values))

    @cached_property
    def counts(self) -> list[int]:
        """How many values there are of each kind."""
        counts = [0] * (len(KINDS) + 1)
        for each, count in self.types.items():
            counts[_KIND[each]] += count
        return counts[:-1]

    @cached_property
    def documents(self) -> _Rows | None:
        """The document of each value; None if there is one in every document."""
        if self._documents_of_rows is None or self._rows is None:
            return self._rows if self._documents_of_rows is None else self._documents_of_rows
        return self._documents_of_rows[self._rows]

    def _documents_of(self, kind: int) -> _Rows | None:
        """The document of each value of a kind."""
        documents = self.documents
        if self.counts[kind] == len(self.values):
            return documents
        kinds = np.fromiter(map(_KIND.__getitem__, map(type, self.values)), np.int8, len(self.values))
        chosen = np.flatnonzero(kinds == kind)
        return chosen if documents is None else documents[chosen]

    def _of_kind(self, kind: int) -> tuple[list[Any], _Rows | None]:
        """The arrays or objects, and the row of each."""
        if self.counts[kind] == len(self.values):
            return self.values, self._rows
        wanted = list if kind == _ARRAY else dict
        chosen = np.array(
            [row for row, value in enumerate(self.values) if isinstance(value, wanted)], np.int64
        )
        values = [value for value in self.values if isinstance(value, wanted)]
        return values, chosen if self._rows is None else self._rows[chosen]

    @cached_property
    def _arrays(self) -> tuple[list[Any], _Rows | None]:
        return self._of_kind(_ARRAY)

    @cached_property
    def _objects(self) -> tuple[list[Any], _Rows | None]:
        return self._of_kind(_OBJECT)

    @cached_property
    def names(self) -> Collection[str]:
        """The different names of all members."""
        if self.inside in (FIELDS, SOME):
            return self._columns.keys()
        return dict.fromkeys(chain.from_iterable(self._objects[0])).keys()

    @cached_property
    def _columns(self) -> dict[str, tuple[list[Any], list[int]]]:
        """The values of each name, and which objects have it."""
        columns: dict[str, tuple[list[Any], list[int]]] = {}
        for place, members in enumerate(self._objects[0] if self.counts[_OBJECT] else ()):
            for name, value in members.items():
                column = columns.get(name)
                if column is None:
                    column = columns[name] = [], []
                column[0].append(value)
                column[1].append(place)
        return columns

    def _inner(self, values: list[Any], documents: _Rows | None, of: Configuration, level: int) -> _Field:
        """Items of arrays, or values of objects whose names are data."""
        return _Field(
            values, None, len(values), documents, self._limit, of, self._level + level, self.depth + 1
        )

    @cached_property
    def _fields(self) -> dict[str, _Field]:
        return {}

    def member(self, name: str) -> _Field:
        """The members of a name, in the rows of their objects."""
        found = self._fields.get(name)
        if found is None:
            values, places = self._columns.get(name, ([], []))
            objects, rows = self._objects
            if len(values) < len(objects):
                chosen = np.array(places, np.int64)
                rows = chosen if rows is None else rows[chosen]
            if rows is not None and len(rows) == self.length:
                rows = None
            found = self._fields[name] = _Field(
                values,
                rows,
                self.length,
                self._documents_of_rows,
                self._limit,
                self._members.get(name.encode(), _UNKNOWN),
                self._level + 1,
                self.depth + 1,
            )
        return found

    @cached_property
    def item(self) -> _Field:
        """The items of arrays."""
        arrays, _ = self._arrays
        return self._inner(list(chain.from_iterable(arrays)), self._repeated(_ARRAY, arrays), self._item, 1)

    @cached_property
    def value(self) -> _Field:
        """The values of all members."""
        objects, _ = self._objects
        values = list(chain.from_iterable(map(dict.values, objects)))
        return self._inner(values, self._repeated(_OBJECT, objects), self._value, 2)

    def _repeated(self, kind: int, containers: list[Any]) -> _Rows:
        """The document of each item of arrays, or of each member of objects."""
        documents = self._documents_of(kind)
        if documents is None:
            documents = np.arange(len(containers))
        return np.repeat(documents, list(map(len, containers)))

    def wanted(self) -> Iterable[str]:
        """Names of members that are fields."""
        if self.inside == SOME:
            return [name for name in self.names if name.encode() in self._members]
        return self.names

    def is_known(self, name: str) -> bool:
        """Whether a member was configured."""
        return name.encode() in self._members

    # Facts

    def facts(self, places: _Places) -> Facts:
        """What its values have in common."""
        facts = Facts(self.counts, present=len(self.values), max_members=self._limit)
        for kind, count in enumerate(self.counts):
            if count:
                facts.samples[kind] = places.first(self._documents_of(kind))
        if facts.counts[_INTEGER]:
            self._integers(facts)
        if facts.counts[_DOUBLE]:
            # A sum is finite if all are; not so often otherwise.
            finite = len(self.types) == 1 and isfinite(sum(self.values))
            facts.beyond |= not finite and (inf in self.values or -inf in self.values)
        if self._level > MAX_LEVELS or self.inside == NOTHING:
            return facts
        if facts.counts[_ARRAY] and self.item.values:
            facts.item = self.item.facts(places)
        if facts.counts[_OBJECT] and self.inside == NAMES:
            facts.values = self.value.facts(places)
            facts.members = facts.values.present
            facts.names = _hashes(self.names)
            facts.nul = any("\0" in name for name in self.names)
        elif facts.counts[_OBJECT]:
            self.fields(facts, places)
        return facts

    def fields(self, facts: Facts, places: _Places, unwanted: Callable[[str], bool] | None = None) -> None:
        """Add facts of the members of objects."""
        for name in self.wanted():
            if unwanted is None or not unwanted(name):
                facts.fields[name] = self.member(name).facts(places)
                facts.members += facts.fields[name].present
                facts.nul |= "\0" in name

    def _numbers(self, kind: type) -> list[Any]:
        return [value for value in self.values if isinstance(value, kind) and type(value) is not bool]

    def _integers(self, facts: Facts) -> None:
        numbers = self.values if self.types[int] == len(self.values) else self._numbers(int)
        low, high = min(numbers), max(numbers)
        if Integer in self.types or low <= -(10**MAX_DIGITS) or high >= 10**MAX_DIGITS:
            numbers = self._long(numbers, facts)
            low, high = min(numbers, default=0), max(numbers, default=0)
        facts.low, facts.high = min(0, low), max(0, high)
        if low < -(1 << 53) or high > 1 << 53:
            facts.inexact |= any(int(float(number)) != number for number in numbers)

    def _long(self, numbers: list[int], facts: Facts) -> list[int]:
        """Look at integers that are no usual ones, and give the others."""
        usual: list[int] = []
        for number in numbers:
            if type(number) is Integer and number.source == "-0":
                facts.minus_zero = True
            elif abs(number) < 10**MAX_DIGITS:
                usual.append(number)
            else:
                facts.long = facts.inexact = True
                facts.beyond = facts.beyond or isinf(_double(number))
        return usual

    def step(self, name: str | None) -> _Field | None:
        """The members of a name, or the items of arrays or values of objects; None if there are none."""
        if self.inside == NOTHING or self.depth >= MAX_LEVELS:
            return None
        if name is None:
            return self.value if self.inside == NAMES else self.item
        if self.inside == NAMES or (self.inside == SOME and not self.is_known(name)):
            return None
        return self.member(name)

    def rows_by_kind(self) -> list[tuple[str, npt.NDArray[np.uint32]]]:
        """The documents with a value of each kind."""
        rows = []
        for kind, count in enumerate(self.counts):
            if count:
                documents = self._documents_of(kind)
                rows.append((KINDS[kind], np.arange(count) if documents is None else documents))
        return [(kind, documents.astype(np.uint32)) for kind, documents in rows]

    # Columns

    def prepare(self, layout: Instructions) -> None:
        """Take what is inside of the values as a column has it."""
        name, _, inside = layout
        if name == "map" and self.inside != NAMES:
            self.take_as(NAMES)
        elif (name == "struct" and self.inside in (NAMES, NOTHING)) or (
            name == "list" and self.inside == NOTHING
        ):
            self.take_as(FIELDS)
        if name == "list" and self.counts[_ARRAY]:
            self.item.prepare(inside)
        elif name == "map" and self.counts[_OBJECT]:
            self.value.prepare(inside)
        elif name == "struct" and self.counts[_OBJECT]:
            for member, each in inside:
                self.member(member.decode()).prepare(each)

    def needs_source(self, layout: Instructions) -> bool:
        """Whether a column has text that only the documents have."""
        name, dropped, inside = layout
        counts = self.counts
        if name in _FROM_SOURCE:
            return any(counts[kind] and not dropped >> kind & 1 for kind in _FROM_SOURCE[name])
        if name == "list":
            return bool(counts[_ARRAY]) and self.item.needs_source(inside)
        if name == "map":
            return bool(counts[_OBJECT]) and self.value.needs_source(inside)
        if name == "struct" and counts[_OBJECT]:
            return any(self.member(member.decode()).needs_source(each) for member, each in inside)
        return False

    def with_values(self, values: list[Any]) -> _Field:
        """The same field with the same values, read with their source."""
        of: Configuration = (self.inside, list(self._members.items()), self._item, self._value)
        return _Field(
            values, self._rows, self.length, self._documents_of_rows, self._limit, of, self._level, self.depth
        )

    def column(
        self, layout: Instructions, forms: Sequence[int] = (), written: list[str | None] | None = None
    ) -> pa.Array:
        """A column with a row for each row."""
        name, dropped, _ = layout
        values, counts = self.values, self.counts
        if dropped and any(count and dropped >> kind & 1 for kind, count in enumerate(counts)):
            gone = {each for each, kind in _KIND.items() if kind >= 0 and dropped >> kind & 1}
            values = [None if type(value) in gone else value for value in values]
            counts = [0 if dropped >> kind & 1 else count for kind, count in enumerate(counts)]
        if any(count and kind not in _HELD[name] for kind, count in enumerate(counts)):
            raise MisfitError
        if name in ("list", "map", "struct"):
            return self._nested(layout, forms, dropped=counts != self.counts)
        if name == "null":
            return pa.nulls(self.length)
        if written is None and name in _FROM_SOURCE and self.needs_source(layout):
            written = self._written(values, forms)
        try:
            array = _array(_cells(name, values, counts, written), type_of(layout))
        except (OverflowError, pa.ArrowInvalid):
            raise MisfitError from None
        return array if self._rows is None else _spread(array, self._rows, self.length)

    def _written(self, values: list[Any], forms: Sequence[int]) -> list[str | None]:
        documents = self.documents
        rows = range(len(values)) if documents is None else documents.tolist()
        return [
            None if value is None else _source(value, forms[row])
            for value, row in zip(values, rows, strict=True)
        ]

    def _nested(self, layout: Instructions, forms: Sequence[int], *, dropped: bool) -> pa.Array:
        name, _, inside = layout
        kind = _ARRAY if name == "list" else _OBJECT
        containers, rows = self._arrays if name == "list" else self._objects
        if not self.counts[kind]:
            return pa.nulls(self.length, type_of(layout))
        if self.depth >= MAX_LEVELS or (dropped and layout[1] >> kind & 1):
            raise MisfitError
        valid = None
        if rows is not None:
            bits = np.zeros(self.length, np.bool_)
            bits[rows] = True
            valid = pa.py_buffer(np.packbits(bits, bitorder="little"))
        buffers, children = [valid], []
        if name == "struct":
            children = [self._member_column(member.decode(), each, forms) for member, each in inside]
        else:
            sizes = np.zeros(self.length + 1, np.int32)
            sizes[slice(1, None) if rows is None else rows + 1] = list(map(len, containers))
            buffers.append(pa.py_buffer(np.cumsum(sizes, dtype=np.int32)))
            child = (self.item if name == "list" else self.value).column(inside, forms)
            if name == "map":
                keys = _array(list(chain.from_iterable(containers)), pa.string())
                of = type_of(layout)
                entries = pa.struct([of.key_field, of.item_field])
                child = pa.Array.from_buffers(entries, len(keys), [None], 0, children=[keys, child])
            children = [child]
        nulls = self.length - len(containers)
        return pa.Array.from_buffers(type_of(layout), self.length, buffers, nulls, children=children)

    def _member_column(self, name: str, layout: Instructions, forms: Sequence[int]) -> pa.Array:
        if self.inside == SOME and not self.is_known(name):
            return pa.nulls(self.length, type_of(layout))
        return self.member(name).column(layout, forms)


_EVERY = range(len(KINDS))
_SCALARS = (_BOOLEAN, _INTEGER, _DOUBLE, _STRING)
_HELD: dict[str, Sequence[int]] = {
    "null": (),
    "bool": (_BOOLEAN,),
    "int64": (_INTEGER,),
    "uint64": (_INTEGER,),
    "decimal": (_INTEGER,),
    "double": (_INTEGER, _DOUBLE),
    "text": _SCALARS,
    "written": _EVERY,
    "json": _EVERY,
    "list": (_ARRAY,),
    "struct": (_OBJECT,),
    "map": (_OBJECT,),
}
"""The kinds of values that a type holds."""
_FROM_SOURCE: dict[str, Sequence[int]] = {
    "text": (_DOUBLE,),
    "written": (_DOUBLE, _ARRAY, _OBJECT),
    "json": (_DOUBLE, _STRING, _ARRAY, _OBJECT),
}
"""The kinds of values of which a text has the source."""
_PIECE = 1 << 14
"""Values that are converted at once, while no other thread runs."""


def _cells(name: str, values: list[Any], counts: list[int], written: list[str | None] | None) -> list[Any]:
    """Values as pyarrow takes them for a type."""
    if name == "double" and counts[_INTEGER]:
        return [None if value is None else _double(value) for value in values]
    if name not in _FROM_SOURCE or (name != "json" and sum(counts) == counts[_STRING]):
        return values
    if written is None:
        return [None if value is None else _text(value) for value in values]
    if name == "json":
        return [None if value is None else text for value, text in zip(values, written, strict=True)]
    return [
        value if value is None or isinstance(value, str) else text
        for value, text in zip(values, written, strict=True)
    ]


def _text(value: Any) -> str:
    """A string, an integer or a boolean as text."""
    if isinstance(value, str):
        return value
    if type(value) is Integer:
        return value.source
    return "true" if value is True else "false" if value is False else str(value)


def _double(number: float) -> float:
    """The nearest double of a number."""
    try:
        return float(number.source if type(number) is Integer else number)
    except OverflowError:
        return inf if number > 0 else -inf


def _array(values: list[Any], kind: pa.DataType) -> pa.Array:
    if len(values) <= _PIECE:
        return pa.array(values, kind)
    return pa.concat_arrays(
        [pa.array(values[start : start + _PIECE], kind) for start in range(0, len(values), _PIECE)]
    )


def _spread(array: pa.Array, rows: _Rows, length: int) -> pa.Array:
    """An array with nulls in the rows between."""
    places = np.full(length, -1)
    places[rows] = np.arange(len(rows))
    return array.take(pa.array(places, mask=places < 0))


# Documents --------------------------------------------------------------------------------------------------


class Converter:
    """Documents to columns; for one thread at a time."""

    def __init__(
        self, max_members: int, known: Configuration | None = None, *, keeps_rest: bool = False
    ) -> None:
        self._limit, self._known, self._keeps_rest = max_members, known or _UNKNOWN, keeps_rest
        self._decode: Callable[[str, int], tuple[Any, int]] = json.JSONDecoder(
            parse_constant=_refuse
        ).scan_once  # type: ignore[attr-defined]
        self._root: _Field | None = None

    def shred(
        self,
        data: Any,  # those of a binary array
        offsets: npt.NDArray[np.int32],
        reasons: npt.NDArray[np.uint8],  # A byte for each document; those that are not 0 are passed over
        vbuckets: npt.NDArray[np.uint16],  # where each document stands in the bucket
        seqnos: npt.NDArray[np.uint64],
    ) -> npt.NDArray[np.uint8]:
        """Take in a batch, and forget the one before."""
        self._root = None
        rows = len(reasons)
        sound = len(offsets) == rows + 1 and len(vbuckets) == len(seqnos) == rows
        if not sound or offsets[0] < 0 or (np.diff(offsets) < 0).any() or offsets[-1] > len(data):
            raise ValueError("the parts of a batch do not belong together")
        self._data = bytes(memoryview(data)[offsets[0] : offsets[-1]])
        self._bounds = (offsets - offsets[0]).tolist()
        self._where = vbuckets, seqnos
        self._exact: dict[int, Any] = {}
        verdicts = reasons.copy()
        with _without_collections():
            documents = self._read(verdicts)
        good = None if len(documents) == rows else np.flatnonzero(verdicts == GOOD)
        self._root = _Field(documents, good, rows, None, self._limit, self._known, 1, 0)
        return verdicts

    def _read(self, verdicts: npt.NDArray[np.uint8]) -> list[Any]:
        """The documents; where there is none, the reason goes to the verdicts."""
        documents: list[Any] = []
        decode, odd = self._decode, self._odd()
        data, bounds = self._data, self._bounds
        for row in np.flatnonzero(verdicts == GOOD).tolist():
            source = data[bounds[row] : bounds[row + 1]]
            if row not in odd and (len(source) <= 2 * MAX_DEPTH or not _is_deep(source)):
                try:
                    text = source.decode().strip(_BLANKS)
                    document, end = decode(text, 0)
                except (ValueError, StopIteration, RecursionError):
                    pass
                else:
                    if type(document) is dict and end == len(text):
                        documents.append(document)
                        continue
            reason, document = _scanned(source)
            verdicts[row] = reason
            if reason == GOOD:
                self._exact[row] = document
                documents.append(document)
        return documents

    def _odd(self) -> set[int]:
        """Rows that the decoder would not read exactly: with ``-0``, or with half of a surrogate pair."""
        escapes = self._rows_with(_SURROGATE)
        return self._rows_with(_MINUS_ZERO) | {
            row for row in escapes if any(_HALF.findall(self._source(row)))
        }

    def _rows_with(self, token: re.Pattern[bytes]) -> set[int]:
        places = [found.start() for found in token.finditer(self._data)]
        return set((np.searchsorted(self._bounds, places, "right") - 1).tolist())

    def _source(self, row: int) -> bytes:
        return self._data[self._bounds[row] : self._bounds[row + 1]]

    def facts(self) -> Facts:
        """What the batch's documents have in common; to be asked for before :meth:`build`."""
        root = self._batch()
        facts = Facts(present=len(root.values), max_members=self._limit)
        facts.counts[_OBJECT] = len(root.values)
        root.fields(facts, _Places(*self._where), self._is_unwanted)
        return facts

    def build(self, columns: Sequence[tuple[bytes, Instructions]]) -> list[pa.Array]:
        """Columns of the batch."""
        root = self._batch()
        return [
            pa.nulls(root.length, type_of(layout))
            if self._is_unwanted(name.decode())
            else self._built(name.decode(), root.member(name.decode()), layout)
            for name, layout in columns
        ]

    def _built(self, name: str, member: _Field, layout: Instructions) -> pa.Array:
        member.prepare(layout)
        if not member.needs_source(layout):
            return member.column(layout)
        rows = range(member.length) if member.documents is None else member.documents.tolist()
        if layout[0] in _FROM_SOURCE:
            written = [
                None if value is None else self._sources(row)[name]
                for value, row in zip(member.values, rows, strict=True)
            ]
            return member.column(layout, written=written)
        forms = [_SCANNED] * member.length
        values = []
        for value, row in zip(member.values, rows, strict=True):
            if value is not None:
                forms[row], document = self._form(row)
                values.append(document[name])
            else:
                values.append(None)
        return member.with_values(values).column(layout, forms)

    def rest(self) -> pa.Array:
        """The members that are no columns, as JSON text; null where there is none."""
        root = self._batch()
        texts: list[str | None] = [None] * root.length
        unwanted = {name for name in root.names if self._is_unwanted(name)} if self._keeps_rest else set()
        rows = range(root.length) if root.documents is None else root.documents.tolist()
        for document, row in zip(root.values, rows, strict=True) if unwanted else ():
            names = [name for name in document if name in unwanted]
            if names:
                sources = self._sources(row)
                texts[row] = "{" + ",".join(f"{_QUOTED(name)}:{sources[name]}" for name in names) + "}"
        return _array(texts, pa.string())

    def rows_by_kind(self, place: Sequence[bytes | None]) -> list[tuple[str, npt.NDArray[np.uint32]]]:
        """The documents with a value of each kind in a place: names of members, None for items and values."""
        found: _Field | None = self._batch()
        if not place or (place[0] is not None and self._is_unwanted(place[0].decode())):
            return []
        for step in place:
            found = None if found is None else found.step(None if step is None else step.decode())
        return [] if found is None else found.rows_by_kind()

    def _is_unwanted(self, name: str) -> bool:
        root = self._batch()
        if root.is_known(name):
            return False
        return root.inside == SOME or (self._keeps_rest and "\0" in name)

    def _batch(self) -> _Field:
        if self._root is None:
            raise ValueError("there is no batch")
        return self._root

    def _text(self, row: int) -> str:
        return self._source(row).decode().strip(_BLANKS)

    def _sources(self, row: int) -> dict[str, str]:
        """The source of each member of a document."""
        if row in self._exact:
            return {name: _source(value, _SCANNED) for name, value in self._exact[row].items()}
        text = self._text(row)
        found: dict[str, str] = {}
        at = _past(text, 1)
        while text[at] != "}":
            name, at = scanstring(text, _past(text, at + (text[at] == ",")) + 1)
            begin = _past(text, _past(text, at) + 1)
            _, end = self._decode(text, begin)
            found[name], at = text[begin:end], _past(text, end)
        return found

    def _form(self, row: int) -> tuple[int, Any]:
        """How a document is written, and its values: with their source if it has no usual form."""
        if row in self._exact:
            return _SCANNED, self._exact[row]
        text = self._text(row)
        document, _ = self._decode(text, 0)
        for form, encode in enumerate(_FORMS):
            if encode(document) == text:
                return form, document
        return _SCANNED, scan(text)


@contextmanager
def _without_collections() -> Iterator[None]:
    """Keep the collector of cycles from looking through all documents again and again while they are read."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _refuse(token: str) -> None:
    raise ValueError(f"{token} is no JSON")


_QUOTED = json.JSONEncoder(ensure_ascii=False).encode
_MINUS_ZERO = re.compile(rb"-0(?=[\]}, \t\r\n])(?<=[\[:, \t\r\n]-0)")
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_HALF = re.compile(rb"\\(?:u[dD][89abAB]..\\u[dD][c-fC-F]|(u[dD][89a-fA-F])|.)", re.DOTALL)
"""An escape; the group is that of half of a surrogate pair."""
# Linear on any input: a string without an end is taken to the end of the document.
_STRING_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)
_STEPS = np.zeros(256, np.int8)
_STEPS[list(b"[{")] = 1
_STEPS[list(b"]}")] = -1
_BLANK_RUN = re.compile(r"[ \t\r\n]*+")


def _past(text: str, at: int) -> int:
    """Where blanks end."""
    return _BLANK_RUN.match(text, at).end()  # type: ignore[union-attr]


def _is_deep(source: bytes) -> bool:
    """Whether sound JSON nests deeper than 200 levels."""
    if source.count(b"[") + source.count(b"{") <= MAX_DEPTH:
        return False
    steps = _STEPS[np.frombuffer(_STRING_TOKEN.sub(b"", source), np.uint8)]
    return bool(steps.cumsum(dtype=np.int64).max(initial=0) > MAX_DEPTH)


def _scanned(source: bytes) -> tuple[int, Any]:
    """The reason and the values of a document, which may be none."""
    if not source.strip(_BLANKS.encode()):
        return EMPTY, None
    try:
        document = scan(source.decode())
    except UnicodeDecodeError:
        return NOT_UTF8, None
    except TooDeepError:
        return TOO_DEEP, None
    except ValueError:
        return INVALID_JSON, None
    return (GOOD, document) if type(document) is Object else (NOT_AN_OBJECT, None)
