"""Columns of files that were typed on their own, as columns of one table: common types, and conversion.

Typing the documents of all files together would read them again. The types of the columns tell nearly as
much, with a few marks for what a type does not say (:class:`Kind`). :func:`unify` finds the columns that hold
those of all files, by this table, which is that of :mod:`cbframe.json.layout`; :func:`widen` converts the
columns of one file to them.

==========================================  ==================================================
types of a column                           common type
==========================================  ==================================================
null, and another                           the other
int64, uint64                               uint64; decimal128(38, 0) if one is negative
int64, uint64, decimal128(38, 0)            decimal128(38, 0)
integers or decimal128(38, 0), and double   double; text if one of them has no exact double
timestamps                                  of the finest unit; text if one does not fit
several of: boolean, number, string, time   text
lists                                       list, items by this table
structs                                     struct, members by this table
structs whose names together are data       map, values by this table; JSON text if they differ
maps, and structs                           the same
lists, or structs and maps, with others     JSON text
JSON text, and anything                     JSON text
other integers                              the narrowest that holds both
other floats                                the widest; double with integers, as above
decimals of several scales                  decimal128 that holds both, if one does; text otherwise
==========================================  ==================================================

Equal types stay as they are, also those that only a declaration makes. For any types in any order, in pairs
or all at once, the result is the same; decimals with digits after the point are text with integers and
doubles for that.

Text is written as follows. Numbers are as Python writes them: ``1``, ``0.5``, ``100.0``, ``1e+22``, the
fewest digits that read back as the same double. Timestamps are ISO 8601, in UTC where they have a time zone:
``2026-01-02T03:04:05.5Z``. JSON has no blanks, no escapes but those that it must have, and no members that
are null: a null and a missing member are the same in a struct. What is JSON text already stays as it is, also
inside of other values.

What is different from typing all documents together:

* What a file keeps as numbers, booleans or timestamps is not as it was written: where that becomes
  text, 1.50 is ``1.5``, 1e2 is ``100.0``, -0 is ``0``, and a timestamp is in UTC.
* What a file keeps as objects or arrays has no blanks as JSON text, and no members that are null.
* What a file keeps as text is strings by then: where that becomes JSON text, a number that stood
  among strings is in quotes.
* Integers of more than 38 digits are text in a file, and stay so where all together would be doubles.
* Values without a common type become what ``on_conflict="widen"`` makes of them, whatever it was.
* Columns stand in the order in which they appear first in the files, not in the bucket.
* There is no limit for columns at the top; ``_cb_rest`` has what was beyond the limit in each file.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cbframe.errors import ConfigurationError
from cbframe.json.arrays import as_lists, as_map, is_list, recast, with_items, with_members
from cbframe.json.layout import MANY_NAMES, Column, FieldPath, Known, names_are_data, rendered_type, too_many
from cbframe.json.typer import OURS, REASON, REST, VALUE, column_name, field_name, shown

_LAST = (REST, VALUE, REASON)
"""These are no fields of documents, and stand after them."""
_LATER = ("digits", "mixed", "lost")
"""Marks that descriptions of earlier versions of this package do not have."""
_MARKS = ("json", "inexact", "negative", "far", *_LATER)

_EXACT = 1 << 53
_DIGITS = 38
_UNITS = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}
_LAST_NANOSECOND = (1 << 63) - 1
_SIGNED = {8: pa.int8(), 16: pa.int16(), 32: pa.int32(), 64: pa.int64()}
_UNSIGNED = {8: pa.uint8(), 16: pa.uint16(), 32: pa.uint32(), 64: pa.uint64()}

_ENCODE = msgspec.json.Encoder().encode
_TEXT_BYTES = 4 << 20
"""Bytes that become text at once: it may be several hundred times as long, and 2 GiB is the end."""
_TEXTS = pa.list_(pa.string())
_ESCAPED = r'["\\\x00-\x1f]'
_WHOLE = r"^(-?[0-9]+)$"
_EXPONENT = r"e|0\.0000"
"""Doubles for which Arrow begins to use an exponent earlier, or later, than Python; and a few more."""


# What a column is -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Kind:
    """A column, or a field inside of one: its type, and what the type does not tell."""

    type: pa.DataType
    json: bool = False  # text that is JSON
    inexact: bool = False  # integers or decimals, one of which has no exact double
    negative: bool = False  # integers, one of which is negative
    far: bool = False  # timestamps, one of which is beyond nanoseconds
    digits: bool = False  # text of numbers only, as they are written
    mixed: bool = False  # text of strings and of other scalars
    lost: bool = False  # some values of the documents are null, or not as they were written
    members: Mapping[str, Kind] = field(default_factory=dict)  # of a struct
    item: Kind | None = None  # of a list; or of a map, its values
    width: tuple[int, int] | None = None  # of a struct of many names: objects, and their members together

    def same(self, other: Kind) -> bool:
        """Whether values are the same in both."""
        return (
            self.json == other.json
            and bool(self.type.equals(other.type))
            and all(member.same(other.members[name]) for name, member in self.members.items())
            and (self.item is None or other.item is None or self.item.same(other.item))
        )

    def nested(self) -> int:
        """How many fields there are inside, at any depth."""
        count = 0 if self.item is None else self.item.nested()
        return count + sum(1 + member.nested() for member in self.members.values())

    def walk(self, place: FieldPath = ()) -> Iterator[tuple[FieldPath, Kind]]:
        """The column at `place`, and all fields inside."""
        yield place, self
        for name, member in self.members.items():
            yield from member.walk((*place, name))
        if self.item is not None:
            yield from self.item.walk((*place, None))

    def mapped(self, change: Callable[[FieldPath, Kind], Kind], place: FieldPath = ()) -> Kind:
        """What `change` makes of it, once it was applied to all fields inside."""
        members = {name: member.mapped(change, (*place, name)) for name, member in self.members.items()}
        item = None if self.item is None else self.item.mapped(change, (*place, None))
        return change(place, replace(self, members=members, item=item))


TEXT = Kind(pa.string())
JSON = Kind(pa.string(), json=True)


def is_text(kind: pa.DataType) -> bool:
    """Whether values are strings."""
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(value) or pa.types.is_large_string(value))


def kind_of(
    kind: pa.DataType,
    place: FieldPath = (),
    marks: Mapping[str, Collection[FieldPath]] | None = None,
    widths: Mapping[FieldPath, tuple[int, int]] | None = None,
) -> Kind:
    """A type with the marks that there are for its place, and for those inside."""

    def made(kind: pa.DataType, place: FieldPath) -> Kind:
        marked: dict[str, Any] = {mark: True for mark, places in (marks or {}).items() if place in places}
        lost = "lost" in marked
        if pa.types.is_struct(kind):
            members = {each.name: made(each.type, (*place, each.name)) for each in kind}
            return Kind(kind, lost=lost, members=members, width=(widths or {}).get(place))
        if is_list(kind) or pa.types.is_map(kind):
            item = kind.value_type if is_list(kind) else kind.item_type
            return Kind(kind, lost=lost, item=made(item, (*place, None)))
        return replace(Kind(kind), **marked)

    return made(kind, place)


class Marks:
    """Where values do not fit the type that others may need."""

    def __init__(self) -> None:
        self.inexact: set[FieldPath] = set()
        self.negative: set[FieldPath] = set()
        self.far: set[FieldPath] = set()

    def look(self, array: pa.Array, place: FieldPath) -> None:
        """Take in values; below nulls there are none, whatever stands there."""
        if array.null_count == len(array):
            return
        kind = array.type
        if pa.types.is_dictionary(kind):
            self.look(array.cast(kind.value_type), place)
        elif pa.types.is_struct(kind):
            for member, values in zip(kind, array.flatten(), strict=True):
                self.look(values, (*place, member.name))
        elif is_list(kind):
            self.look(array.flatten(), (*place, None))
        elif pa.types.is_map(kind):
            self.look(as_lists(array).flatten().field(1), (*place, None))
        elif pa.types.is_integer(kind):
            self._integers(array, place)
        elif pa.types.is_decimal(kind):
            # Such large numbers are rare.
            if place not in self.inexact and not all(map(_exact, array.drop_null().to_pylist())):
                self.inexact.add(place)
        elif pa.types.is_timestamp(kind):
            least, most = _bounds(array.view(pa.int64()))
            last = _LAST_NANOSECOND // _UNITS[kind.unit]
            if least < -last or most > last:
                self.far.add(place)

    def _integers(self, array: pa.Array, place: FieldPath) -> None:
        least, most = _bounds(array)
        if least < 0:
            self.negative.add(place)
        if least < -_EXACT or most > _EXACT:
            numbers = array.drop_null().to_numpy()
            sizes = np.abs(numbers).view(np.uint64)  # that of the least int64 is right as unsigned, too
            sizes = sizes[sizes > _EXACT]
            # Without the zeros at its end, what a double holds has no more than 53 bits.
            if (sizes // (sizes & (~sizes + np.uint64(1))) > _EXACT).any():
                self.inexact.add(place)


def _bounds(array: pa.Array) -> tuple[int, int]:
    bounds = pc.min_max(array)
    return bounds["min"].as_py(), bounds["max"].as_py()


def _exact(number: Decimal) -> bool:
    return Decimal(float(number)) == number


@dataclass(frozen=True, slots=True, eq=False)
class Columns:
    """The columns of a file, by name and in order."""

    kinds: Mapping[str, Kind]

    @classmethod
    def of_schema(cls, schema: pa.Schema) -> Columns:
        """Columns of which nothing but the types is known."""
        return cls({each.name: kind_of(each.type) for each in schema})

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Columns) and [*self.kinds.items()] == [*other.kinds.items()]

    def __hash__(self) -> int:
        return hash((*self.kinds,))

    @property
    def schema(self) -> pa.Schema:
        """The types of the columns."""
        return pa.schema([(name, kind.type) for name, kind in self.kinds.items()])

    def select(self, names: Iterable[str]) -> Columns:
        """Some of the columns, in that order."""
        return Columns({name: self.kinds[name] for name in names})

    def walk(self) -> Iterator[tuple[FieldPath, Kind]]:
        """All columns and fields inside of them; places begin with the name of a column."""
        for name, kind in self.kinds.items():
            yield from kind.walk((name,))

    def mapped(self, change: Callable[[FieldPath, Kind], Kind]) -> Columns:
        """What `change` makes of all columns and fields inside of them."""
        return Columns({name: kind.mapped(change, (name,)) for name, kind in self.kinds.items()})

    def reported(self, paths: Mapping[str, Mapping[str, Iterable[str]]]) -> Columns:
        """The columns with what a read reported of values that have no common type, by path and action."""

        def marked(place: FieldPath, kind: Kind) -> Kind:
            name, *inside = place
            # Where members are columns, "geo.lat" is the name of one.
            both = shown((field_name(str(name)), *inside)), f"{name}{shown((None, *inside))[2:]}"
            for path in dict.fromkeys(both):
                for action, families in paths.get(path, {}).items():
                    if action == "null" and families:
                        kind = replace(kind, lost=True)
                    elif action == "null":
                        # Of a declared type: values inside of it may be null, too.
                        kind = kind.mapped(lambda _, inner: replace(inner, lost=True))
                    elif action == "text" and is_text(kind.type):
                        numbers = {*families} == {"number"}
                        kind = replace(kind, digits=kind.digits or numbers, mixed=kind.mixed or not numbers)
            return kind

        return self.mapped(marked)

    def to_dict(self) -> dict[str, Any]:
        """What JSON can hold: the schema as Arrow's own message in base64, places as lists."""
        message = self.schema.serialize().to_pybytes()
        found: dict[str, Any] = {"schema": base64.b64encode(message).decode()}
        for mark in _MARKS:
            places = (list(place) for place, kind in self.walk() if getattr(kind, mark))
            found[mark] = sorted(places, key=repr)
        widths = {place: kind.width for place, kind in self.walk() if kind.width is not None}
        if widths:
            found["widths"] = [[list(place), *widths[place]] for place in sorted(widths, key=repr)]
        return found

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Columns:
        """The columns of which :meth:`to_dict` made this."""
        try:
            message = base64.b64decode(fields["schema"], validate=True)
            schema = pa.ipc.read_schema(pa.py_buffer(message))
            later = all(mark in fields for mark in _LATER)
            marks = {
                mark: {_place(place) for place in fields[mark]}
                for mark in (_MARKS if later else _MARKS[: -len(_LATER)])
            }
            widths = {
                _place(place): (int(objects), int(members))
                for place, objects, members in fields.get("widths", ())
            }
        except (KeyError, TypeError, ValueError, OSError, binascii.Error, pa.ArrowException) as exc:
            raise _broken(f"{type(exc).__name__}: {exc}") from exc
        if len(set(schema.names)) < len(schema.names):
            raise _broken("two columns have one name")
        columns = cls({each.name: kind_of(each.type, (each.name,), marks, widths) for each in schema})
        there = [*columns.walk()]
        if (
            any(_misplaced(kind) for _, kind in there)
            or any({place for place, kind in there if getattr(kind, mark)} != marks[mark] for mark in marks)
            or {place: kind.width for place, kind in there if kind.width is not None} != widths
        ):
            raise _broken("a mark is where it cannot be")
        if not later:
            # Nothing is known of how text came to be.
            columns = columns.mapped(lambda _, kind: replace(kind, mixed=is_text(kind.type)))
        return columns


def _place(place: Any) -> FieldPath:
    if not isinstance(place, list) or not all(name is None or isinstance(name, str) for name in place):
        raise TypeError(f"{place!r} is no place")
    return tuple(place)


def _misplaced(kind: Kind) -> bool:
    """Whether a mark says something that means nothing for the type."""
    meant = _marked(kind.type, [kind])
    traits = [(each.inexact, each.negative, each.far) for each in (kind, meant)]
    text = (kind.digits or kind.mixed) and not is_text(kind.type)
    return traits[0] != traits[1] or text or (kind.json and not pa.types.is_string(kind.type))


def _broken(why: str) -> ConfigurationError:
    return ConfigurationError(f"this is no description of columns: {why}")


class ColumnsBuilder:
    """Finds out what columns are, table by table."""

    def __init__(
        self,
        schema: pa.Schema,
        plan: Column,  # by which they were made
        widths: Mapping[FieldPath, tuple[int, int]] | None = None,  # of structs of many names
    ) -> None:
        self._fields = [
            each
            for each in schema
            if each.name in _LAST or not each.name.startswith(OURS) or each.name.endswith("_")
        ]
        self._json: set[FieldPath] = {(REST,)} if REST in schema.names else set()
        for each in self._fields:
            if each.name not in _LAST:
                self._json.update(_json(each.type, plan.members.get(field_name(each.name)), (each.name,)))
        self._marks = Marks()
        self._widths = {
            (column_name(str(name)), *inside): width for (name, *inside), width in (widths or {}).items()
        }

    def look(self, table: pa.Table) -> None:
        """Take in one more table."""
        for each in self._fields:
            for chunk in table.column(each.name).chunks:
                self._marks.look(chunk, (each.name,))

    def columns(self) -> Columns:
        """What the columns are, now that all tables are looked at."""
        marks = {
            "json": self._json,
            "inexact": self._marks.inexact,
            "negative": self._marks.negative,
            "far": self._marks.far,
        }
        return Columns(
            {each.name: kind_of(each.type, (each.name,), marks, self._widths) for each in self._fields}
        )


def _json(kind: pa.DataType, plan: Column | None, place: FieldPath) -> Iterator[FieldPath]:
    """Where a column is JSON text."""
    if plan is None:
        return
    if pa.types.is_string(kind) and plan.how == "json":
        yield place
    elif pa.types.is_struct(kind):
        for member in kind:
            yield from _json(member.type, plan.members.get(member.name), (*place, member.name))
    elif is_list(kind):
        yield from _json(kind.value_type, plan.item, (*place, None))
    elif pa.types.is_map(kind):
        yield from _json(kind.item_type, plan.item, (*place, None))


# Common types -----------------------------------------------------------------------------------------------


def unify(many: Sequence[Columns], *, max_members: int = 1000) -> Columns:
    """What holds the columns of all.

    Columns, and members of structs, are in order of first appearance: those of the first that has
    them first. Those that are null in all come last, by name. Then ``_cb_rest``, ``_cb_value`` and
    ``_cb_reason``. Apart from that the order of `many` does not matter.
    """
    every = _members((columns.kinds for columns in many), max_members)
    kinds = {name: kind for name, kind in every.items() if name not in _LAST}
    for name in too_many({name: kind.nested() for name, kind in kinds.items()}, max_members):
        kinds[name] = _remembered(JSON, [kinds[name]])
    return Columns(kinds | {name: every[name] for name in _LAST if name in every})


def _members(structs: Iterable[Mapping[str, Kind]], max_members: int) -> dict[str, Kind]:
    """The fields of all, in order of first appearance; those that are null everywhere last, by name."""
    found: dict[str, list[Kind]] = {}
    nowhere: dict[str, list[Kind]] = {}
    for struct in structs:
        for name, kind in struct.items():
            (nowhere if pa.types.is_null(kind.type) else found).setdefault(name, []).append(kind)
    last = sorted(nowhere.keys() - found.keys())
    return {name: _common(found.get(name, ()), max_members) for name in [*found, *last]}


def _common(kinds: Sequence[Kind], max_members: int) -> Kind:
    """What holds the values of all."""
    some = [kind for kind in kinds if not pa.types.is_null(kind.type)]
    return _remembered(_common_type(some, max_members), some)


def _remembered(wide: Kind, some: Sequence[Kind]) -> Kind:
    """A type with what is known of the text that values became, which does not matter for the type."""
    lost = any(kind.lost for kind in some)
    if not is_text(wide.type):
        return replace(wide, lost=lost)
    # How a timestamp was written is not known any more.
    lost |= any(pa.types.is_temporal(kind.type) for kind in some)
    if wide.json:
        inside = [each for kind in some for _, each in kind.walk()]
        lost = any(each.lost or pa.types.is_temporal(each.type) for each in inside)
        return replace(wide, lost=lost, mixed=any(each.mixed or each.digits for each in inside))
    digits = bool(some) and all(kind.digits or _family(kind.type) == "number" for kind in some)
    strings = all(is_text(kind.type) and not kind.digits and not kind.mixed for kind in some)
    return replace(wide, lost=lost, digits=digits, mixed=not (digits or strings))


def _common_type(some: Sequence[Kind], max_members: int) -> Kind:
    if not some:
        return Kind(pa.null())
    if any(kind.json for kind in some):
        return JSON
    equal = all(kind.type.equals(some[0].type) for kind in some)
    families = {_family(kind.type) for kind in some}
    if len(families) > 1:
        return JSON if families & {"list", "object"} else TEXT
    family = families.pop()
    if family == "object":
        return _objects(some, max_members, equal=equal)
    if family == "list":
        return _lists(some, max_members, equal=equal)
    if equal:
        return _marked(some[0].type, some)
    if any(pa.types.is_dictionary(kind.type) for kind in some):
        return _common([_undictionaried(kind) for kind in some], max_members)
    wide = _number(some) if family == "number" else _moment(some) if family == "moment" else None
    return TEXT if wide is None else _marked(wide, some)


def _family(kind: pa.DataType) -> str:
    if pa.types.is_dictionary(kind):
        return _family(kind.value_type)
    if is_list(kind):
        return "list"
    if pa.types.is_struct(kind) or pa.types.is_map(kind):
        return "object"
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return "number"
    if pa.types.is_timestamp(kind):
        return "moment"
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return "string"
    return str(kind)


def _marked(wide: pa.DataType, kinds: Sequence[Kind]) -> Kind:
    """A type with those of the marks that mean something for it."""
    value = wide.value_type if pa.types.is_dictionary(wide) else wide
    integer = pa.types.is_integer(value)
    return Kind(
        wide,
        inexact=(integer or pa.types.is_decimal(value)) and any(kind.inexact for kind in kinds),
        negative=integer and any(kind.negative for kind in kinds),
        far=pa.types.is_timestamp(value) and any(kind.far for kind in kinds),
    )


def _undictionaried(kind: Kind) -> Kind:
    """What a dictionary is of; anything else as it is."""
    return _marked(kind.type.value_type, [kind]) if pa.types.is_dictionary(kind.type) else kind


def _objects(kinds: Sequence[Kind], max_members: int, *, equal: bool) -> Kind:
    if any(pa.types.is_map(kind.type) for kind in kinds):
        return _map(kinds, max_members)
    inside = _members((kind.members for kind in kinds), max_members)
    width = _width(kinds)
    objects, count = width or (0, 0)
    if len(kinds) > 1 and names_are_data(objects, len(inside), count, max_members):
        return _map(kinds, max_members)
    if equal:
        inside = {name: inside[name] for name in kinds[0].members}
    counted = width if len(inside) > MANY_NAMES else None
    kind = pa.struct([(name, member.type) for name, member in inside.items()])
    return Kind(kinds[0].type if kind.equals(kinds[0].type) else kind, members=inside, width=counted)


def _width(kinds: Sequence[Kind]) -> tuple[int, int] | None:
    """The width of all together; None where one of many names was not counted."""
    if any(kind.width is None and len(kind.members) > MANY_NAMES for kind in kinds):
        return None
    # Objects of few names are not counted: there was one at least.
    widths = [kind.width or (1, len(kind.members)) for kind in kinds]
    return sum(objects for objects, _ in widths), sum(count for _, count in widths)


def _map(kinds: Sequence[Kind], max_members: int) -> Kind:
    """Structs and maps as one map; JSON text where values have no common type."""
    values: list[Kind] = []
    keys = set()
    for kind in kinds:
        values += kind.members.values() if kind.item is None else [kind.item]
        keys.add(pa.string() if kind.item is None else kind.type.key_type)
    if len(keys) > 1:
        return JSON
    some = [value for value in values if not pa.types.is_null(value.type)]
    if any(value.json for value in some) or len({_family(value.type) for value in some}) > 1:
        return JSON
    item = _common(values, max_members)
    return Kind(pa.map_(keys.pop(), item.type), item=item)


def _lists(kinds: Sequence[Kind], max_members: int, *, equal: bool) -> Kind:
    item = _common([kind.item for kind in kinds if kind.item is not None], max_members)
    if equal and item.type.equals(kinds[0].type.value_type):
        return Kind(kinds[0].type, item=item)
    large = any(pa.types.is_large_list(kind.type) for kind in kinds)
    return Kind((pa.large_list if large else pa.list_)(item.type), item=item)


def _number(kinds: Sequence[Kind]) -> pa.DataType | None:
    types = [kind.type for kind in kinds]
    floats = [each for each in types if pa.types.is_floating(each)]
    decimals = [each for each in types if pa.types.is_decimal(each)]
    if len(floats) == len(types):
        return max(floats, key=lambda each: each.bit_width)
    if floats:
        whole = all(each.scale == 0 and each.precision <= _DIGITS for each in decimals)
        return pa.float64() if whole and not any(kind.inexact for kind in kinds) else None
    if not decimals:
        return _integer(types, negative=any(kind.negative for kind in kinds))
    if len(decimals) < len(types):
        decimals.append(pa.decimal128(_DIGITS, 0))
    scale = max(each.scale for each in decimals)
    precision = scale + max(each.precision - each.scale for each in decimals)
    return pa.decimal128(precision, scale) if precision <= _DIGITS else None


def _integer(types: Sequence[pa.DataType], *, negative: bool) -> pa.DataType:
    signed = max((each.bit_width for each in types if pa.types.is_signed_integer(each)), default=0)
    unsigned = max((each.bit_width for each in types if pa.types.is_unsigned_integer(each)), default=0)
    if not signed:
        return _UNSIGNED[unsigned]
    if unsigned < 64:
        return _SIGNED[max(signed, 2 * unsigned)]
    return pa.decimal128(_DIGITS, 0) if negative else pa.uint64()


def _moment(kinds: Sequence[Kind]) -> pa.DataType | None:
    zones = {kind.type.tz for kind in kinds}
    unit = min((kind.type.unit for kind in kinds), key=_UNITS.__getitem__)
    if len(zones) > 1 and None in zones:
        return None
    if unit == "ns" and any(kind.far for kind in kinds):
        return None
    return pa.timestamp(unit, zones.pop() if len(zones) == 1 else "UTC")


def known(kind: Kind, *, nested_as_text: bool) -> Known | None:
    """What has to be known of a field for its values to be as in a column of which it is a part.

    That is where values are as they were written, and where integers are doubles; None where documents
    that are typed on their own have the same values in any case.
    """
    if kind.json:
        return Known(frozenset({"array"})) if nested_as_text else Known(opaque=True)
    if pa.types.is_string(kind.type):
        return Known(frozenset({"string"}))
    if pa.types.is_float64(kind.type):
        return Known(frozenset({"double"}))
    if pa.types.is_map(kind.type) and kind.item is not None:
        return Known(keep="map", values=known(kind.item, nested_as_text=nested_as_text))
    if kind.item is not None:
        item = known(kind.item, nested_as_text=nested_as_text)
        return None if item is None else Known(frozenset({"array"}), item=item)
    inside = {name: known(each, nested_as_text=nested_as_text) for name, each in kind.members.items()}
    fields = {name: each for name, each in inside.items() if each is not None}
    keep: Literal["struct"] | None = "struct" if len(kind.members) > MANY_NAMES else None
    if not fields:
        return Known(keep=keep) if keep else None
    return Known(frozenset({"object"}), fields=fields, keep=keep)


class Difference(NamedTuple):
    """Where two schemas differ: ``items[].price``, and the types there; None where there is no such field."""

    path: str
    before: str | None
    after: str | None


def differences(narrow: Columns, wide: Columns) -> list[Difference]:
    """What is not the same in both, in the order of `wide`: as far inside as both are structs, or lists."""
    names = dict.fromkeys([*wide.kinds, *narrow.kinds])
    return [
        each for name in names for each in _differences(narrow.kinds.get(name), wide.kinds.get(name), (name,))
    ]


def _differences(before: Kind | None, after: Kind | None, place: FieldPath) -> Iterator[Difference]:
    if before is not None and after is not None:
        if pa.types.is_struct(before.type) and pa.types.is_struct(after.type):
            for name in dict.fromkeys([*after.members, *before.members]):
                yield from _differences(before.members.get(name), after.members.get(name), (*place, name))
            return
        if before.item is not None and after.item is not None and type(before.type) is type(after.type):
            yield from _differences(before.item, after.item, (*place, None))
            return
        if before.same(after):
            return
    types = [
        None if kind is None else "JSON text" if kind.json else str(kind.type) for kind in (before, after)
    ]
    yield Difference(shown(place), *types)


# Values of one type as values of another --------------------------------------------------------------------


def widen(table: pa.Table, narrow: Columns, wide: Columns) -> pa.Table:
    """The columns of `wide`, in its order: those that are missing are null, others hold the same values."""
    if not wide.kinds:
        return without_columns(len(table))
    columns = [
        pa.chunked_array(_cells(table.column(name), narrow.kinds[name], kind), kind.type)
        if name in narrow.kinds
        else pa.chunked_array([pa.nulls(len(table), kind.type)])
        for name, kind in wide.kinds.items()
    ]
    return pa.Table.from_arrays(columns, schema=wide.schema)


def without_columns(rows: int) -> pa.Table:
    """A table of rows and no columns, which nothing but ``select()`` makes."""
    return pa.table({"": pa.nulls(rows)}).select([])


def _cells(column: pa.ChunkedArray, have: Kind, want: Kind) -> Iterator[pa.Array]:
    same = have.same(want)
    for chunk in column.chunks:
        # In a Parquet file, it is as `rendered` makes it.
        array = recast(chunk, have.type)
        if same:
            yield array
        else:
            for piece in _pieces(array):
                yield _widened(piece, have, want)


def _pieces(array: pa.Array) -> Iterator[pa.Array]:
    """An array in pieces that are small enough to become text."""
    if array.nbytes <= _TEXT_BYTES or len(array) < 2:
        yield array
    else:
        middle = len(array) // 2
        yield from _pieces(array[:middle])
        yield from _pieces(array[middle:])


def _widened(array: pa.Array, have: Kind, want: Kind) -> pa.Array:
    if have.same(want):
        return array
    if array.null_count == len(array):
        return pa.nulls(len(array), want.type)
    if want.json:
        return as_json(array, have)
    if pa.types.is_map(want.type) and want.item is not None:
        return _as_wide_map(array, have, want.type, want.item)
    if pa.types.is_struct(want.type):
        there = dict(zip(have.members, array.flatten(), strict=True))
        members = [
            _widened(there[name], have.members[name], member)
            if name in there
            else pa.nulls(len(array), member.type)
            for name, member in want.members.items()
        ]
        return with_members(array, members, want.type)
    if want.item is not None and have.item is not None:
        return with_items(array, _widened(array.flatten(), have.item, want.item), want.type)
    if pa.types.is_string(want.type):
        return as_text(array)
    if pa.types.is_dictionary(have.type):
        array = array.cast(have.type.value_type)
    # No integer is inexact here; a safe cast refuses all beyond 2**53.
    return array.cast(want.type, safe=not pa.types.is_floating(want.type))


def _as_wide_map(array: pa.Array, have: Kind, kind: pa.DataType, item: Kind) -> pa.Array:
    """A map of a map or a struct: members of a struct that are null are not there."""
    if have.item is not None:
        lists = as_lists(array)
        names, values = lists.flatten().flatten()
        lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
        values = _widened(values, have.item, item)
    else:
        rows: list[npt.NDArray[np.int64]] = []
        each: list[pa.Array] = []
        there: list[int] = []
        for at, member in enumerate(array.flatten()):
            valid = member.is_valid()
            rows.append(np.flatnonzero(valid.to_numpy(zero_copy_only=False)))
            there += [at] * len(rows[-1])
            each.append(_widened(member.filter(valid), have.members[array.type.field(at).name], item))
        row = np.concatenate([np.zeros(0, np.int64), *rows])
        order = pa.array(np.argsort(row, kind="stable"))
        names = pa.array([member.name for member in array.type], pa.string()).take(
            pa.array(there, pa.int64()).take(order)
        )
        values = pa.concat_arrays([pa.nulls(0, kind.item_type), *each]).take(order)
        lengths = np.bincount(row, minlength=len(array))
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
    lists = pa.ListArray.from_arrays(offsets, pa.nulls(len(values)), mask=array.is_null())
    return as_map(lists, names, values, kind)


def as_text(array: pa.Array) -> pa.Array:
    """Scalars as text: strings unchanged."""
    kind = array.type
    if pa.types.is_dictionary(kind):
        return as_text(array.cast(kind.value_type))
    if pa.types.is_floating(kind):
        return _doubles(array.cast(pa.float64()))
    if pa.types.is_timestamp(kind):
        return _moments(array)
    if pa.types.is_decimal(kind) and kind.scale:
        # Arrow writes an exponent where there are many zeros, and that of version 16 is no JSON.
        return pa.array([None if each is None else f"{each:f}" for each in array.to_pylist()], pa.string())
    return array.cast(pa.string())


def _doubles(array: pa.Array) -> pa.Array:
    text = array.cast(pa.string())
    different = pc.fill_null(pc.match_substring_regex(text, _EXPONENT), False)
    text = pc.replace_substring_regex(text, _WHOLE, r"\1.0")
    if not pc.any(different).as_py():
        return text
    numbers = map(repr, array.filter(different).to_pylist())
    return pc.replace_with_mask(text, different, pa.array(list(numbers), pa.string()))


def _moments(array: pa.Array) -> pa.Array:
    kind = array.type
    if kind.tz is not None:
        array = array.cast(pa.timestamp(kind.unit, "UTC"))
    text = pc.replace_substring(array.cast(pa.string()), " ", "T")
    if kind.unit == "s":
        return text
    text = pc.replace_substring_regex(text, r"(\.[0-9]*?)0+(Z?)$", r"\1\2")
    return pc.replace_substring_regex(text, r"\.(Z?)$", r"\1")


def as_json(array: pa.Array, kind: Kind) -> pa.Array:
    """Any values as JSON text; null where they are null."""
    if array.null_count == len(array):
        return pa.nulls(len(array), pa.string())
    if kind.json:
        return array
    if pa.types.is_dictionary(kind.type):
        return as_json(array.cast(kind.type.value_type), _undictionaried(kind))
    if pa.types.is_struct(kind.type):
        return _json_objects(array, kind)
    if pa.types.is_map(kind.type):
        return _json_maps(array, kind.item or kind_of(kind.type.item_type))
    if kind.item is not None:
        items = pc.fill_null(as_json(array.flatten(), kind.item), "null")
        return _joined("[", pc.binary_join(with_items(array, items, _TEXTS), ","), "]")
    text = as_text(array)
    return text if _family(kind.type) in ("number", "bool") else _quoted(text)


def _json_objects(array: pa.Array, kind: Kind) -> pa.Array:
    # What is null in there is left out; what is null itself is dealt with last.
    written = [
        _joined(f",{_ENCODE(name).decode()}:", as_json(values, member))
        for (name, member), values in zip(kind.members.items(), array.flatten(), strict=True)
    ]
    if not written:
        written = [pa.nulls(len(array), pa.string())]
    inside = pc.binary_join_element_wise(*written, "", null_handling="replace", null_replacement="")
    objects = _joined("{", pc.ascii_ltrim(inside, ","), "}")
    # Not if_else(): that of pyarrow 16 makes broken offsets of binary values and a null.
    return pc.replace_with_mask(objects, array.is_null(), pa.scalar(None, pa.string()))


def _json_maps(array: pa.Array, item: Kind) -> pa.Array:
    entries = as_lists(array)
    names, values = entries.flatten().flatten()
    inner = as_json(values, item)
    members = _joined("", _quoted(as_text(names)), ":", pc.fill_null(inner, "null"))
    return _joined("{", pc.binary_join(with_items(entries, members, _TEXTS), ","), "}")


def _joined(*parts: object) -> pa.Array:
    return pc.binary_join_element_wise(*parts, "")


def _quoted(array: pa.Array) -> pa.Array:
    quoted = _joined('"', array, '"')
    special = pc.fill_null(pc.match_substring_regex(array, _ESCAPED), False)
    if not pc.any(special).as_py():
        return quoted
    escaped = [_ENCODE(text) for text in array.filter(special).to_pylist()]
    return pc.replace_with_mask(quoted, special, pa.array(escaped, pa.binary()).cast(pa.string()))


def rendered(table: pa.Table, declared: Container[str] = ()) -> pa.Table:
    """A table as it is handed out; columns that are `declared` stay as they are."""
    for at, each in enumerate(table.schema):
        kind = rendered_type(each.type)
        if not kind.equals(each.type) and each.name not in declared:
            column = pa.chunked_array([recast(chunk, kind) for chunk in table.column(at).chunks], kind)
            table = table.set_column(at, each.with_type(kind), column)
    return table
