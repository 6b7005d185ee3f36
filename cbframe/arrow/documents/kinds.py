"""The lattice of types (``plan``), where nothing but the types of columns is known, and a little more.

Files that were typed on their own have columns that their documents together might not have. What
those would be follows from the types, and from four marks which tell what a type does not: whether
text is JSON text, and whether numbers and moments fit the wider type.

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

Equal types stay as they are, also those that only a declaration makes. For any types in any order,
in pairs or all at once, the result is the same; decimals with digits behind the point are text with
integers and doubles for that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cbframe.json import reference
from cbframe.json.layout import Known, Place, is_list


def as_map(lists: pa.Array, names: pa.Array, values: pa.Array, kind: pa.DataType) -> pa.Array:
    """A map with the entries that lists have places for."""
    entries = pa.StructArray.from_arrays([names, values], fields=[kind.key_field, kind.item_field])
    validity, offsets = lists.buffers()[:2]
    return pa.Array.from_buffers(
        kind, len(lists), [validity, offsets], lists.null_count, lists.offset, [entries]
    )


def as_lists(array: pa.Array) -> pa.Array:
    """Maps as lists of names and values."""
    kind = array.type
    return array.cast(pa.list_(pa.struct([("key", kind.key_type), ("value", kind.item_type)])))


def member_of(column: pa.ChunkedArray, name: str) -> pa.ChunkedArray | None:
    """What objects have under a name: a field of structs, a value of maps; None if no object can have it."""
    kind = column.type
    if pa.types.is_map(kind):
        return pc.map_lookup(column, pa.scalar(name, kind.key_type), "first")
    at = kind.get_field_index(name) if pa.types.is_struct(kind) else -1
    return None if at < 0 else pc.struct_field(column, [at])


_EXACT = 1 << 53
_NANOSECONDS = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}
_LAST_NANOSECOND = (1 << 63) - 1


class Marks:
    """Where values do not fit the type that others may need."""

    def __init__(self) -> None:
        self.inexact: set[Place] = set()
        self.negative: set[Place] = set()
        self.far: set[Place] = set()

    def look(self, array: pa.Array, place: Place) -> None:
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
            last = _LAST_NANOSECOND // _NANOSECONDS[kind.unit]
            if least < -last or most > last:
                self.far.add(place)

    def _integers(self, array: pa.Array, place: Place) -> None:
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


_UNITS = ("s", "ms", "us", "ns")
_DIGITS = 38
_SIGNED = {8: pa.int8(), 16: pa.int16(), 32: pa.int32(), 64: pa.int64()}
_UNSIGNED = {8: pa.uint8(), 16: pa.uint16(), 32: pa.uint32(), 64: pa.uint64()}


@dataclass(frozen=True, slots=True)
class Kind:
    """A column, or a field inside of one."""

    type: pa.DataType  # the column's type
    json: bool = False  # text that is JSON
    inexact: bool = False  # integers or decimals, one of which has no exact double
    negative: bool = False  # integers, one of which is negative
    far: bool = False  # timestamps, one of which is beyond nanoseconds
    digits: bool = False  # text of numbers only, as they are written
    mixed: bool = False
    lost: bool = False  # some values of the documents are null, or not as they were written
    members: Mapping[str, Kind] = field(default_factory=dict)  # of a struct
    item: Kind | None = None  # of a list; or of a map, its values
    width: tuple[int, int] | None = None

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


TEXT = Kind(pa.string())
JSON = Kind(pa.string(), json=True)


def common(kinds: Sequence[Kind], max_members: int) -> Kind:
    """What holds the values of all."""
    return _remembered(_common(kinds, max_members), kinds)


def as_json(kind: Kind) -> Kind:
    """The JSON text of values."""
    return _remembered(JSON, [kind])


def _remembered(wide: Kind, kinds: Sequence[Kind]) -> Kind:
    """A type with what is known of the text that values became, which does not matter for the type."""
    some = [kind for kind in kinds if not pa.types.is_null(kind.type)]
    lost = any(kind.lost for kind in some)
    if not is_text(wide.type):
        return replace(wide, lost=lost)
    # How a timestamp was written is not known any more.
    lost |= any(pa.types.is_temporal(kind.type) for kind in some)
    if wide.json:
        inside = [each for kind in some for each in _every(kind)]
        lost = any(each.lost or pa.types.is_temporal(each.type) for each in inside)
        return replace(wide, lost=lost, mixed=any(each.mixed or each.digits for each in inside))
    digits = bool(some) and all(kind.digits or _family(kind.type) == "number" for kind in some)
    strings = all(is_text(kind.type) and not kind.digits and not kind.mixed for kind in some)
    return replace(wide, lost=lost, digits=digits, mixed=not (digits or strings))


def _every(kind: Kind) -> Iterator[Kind]:
    yield kind
    for member in kind.members.values():
        yield from _every(member)
    if kind.item is not None:
        yield from _every(kind.item)


def is_text(kind: pa.DataType) -> bool:
    """Whether values are strings."""
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(value) or pa.types.is_large_string(value))


def _common(kinds: Sequence[Kind], max_members: int) -> Kind:
    some = [kind for kind in kinds if not pa.types.is_null(kind.type)]
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
        return common([decoded(kind) for kind in some], max_members)
    unequal: Callable[[Sequence[Kind]], pa.DataType | None] | None
    unequal = {"number": _number, "moment": _moment}.get(family)
    if unequal is None:
        return TEXT
    wide = unequal(some)
    return TEXT if wide is None else _marked(wide, some)


def members(structs: Iterable[Mapping[str, Kind]], max_members: int) -> dict[str, Kind]:
    """The fields of all, in order of first appearance; those that are null everywhere last, by name."""
    found: dict[str, list[Kind]] = {}
    nowhere: dict[str, list[Kind]] = {}
    for struct in structs:
        for name, kind in struct.items():
            (nowhere if pa.types.is_null(kind.type) else found).setdefault(name, []).append(kind)
    last = sorted(nowhere.keys() - found.keys())
    return {name: common(found.get(name, ()), max_members) for name in [*found, *last]}


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
    keep: Literal["struct"] | None = "struct" if len(kind.members) > reference.MANY_NAMES else None
    if not fields:
        return Known(keep=keep) if keep else None
    return Known(frozenset({"object"}), fields=fields, keep=keep)


def decoded(kind: Kind) -> Kind:
    """What a dictionary is of; anything else as it is."""
    return _marked(kind.type.value_type, [kind]) if pa.types.is_dictionary(kind.type) else kind


def misplaced(kind: Kind) -> bool:
    """Whether a mark says something that means nothing for the type."""
    meant = _marked(kind.type, [kind])
    traits = [(each.inexact, each.negative, each.far) for each in (kind, meant)]
    text = (kind.digits or kind.mixed) and not is_text(kind.type)
    return traits[0] != traits[1] or text or (kind.json and not pa.types.is_string(kind.type))


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


def _objects(kinds: Sequence[Kind], max_members: int, *, equal: bool) -> Kind:
    if any(pa.types.is_map(kind.type) for kind in kinds):
        return _map(kinds, max_members)
    inside = members((kind.members for kind in kinds), max_members)
    width = _width(kinds)
    if len(kinds) > 1 and reference.names_are_data(
        width[0] if width else 0, len(inside), width[1] if width else 0, max_members
    ):
        return _map(kinds, max_members)
    if equal:
        inside = {name: inside[name] for name in kinds[0].members}
    counted = width if len(inside) > reference.MANY_NAMES else None
    kind = pa.struct([(name, member.type) for name, member in inside.items()])
    return Kind(kinds[0].type if kind.equals(kinds[0].type) else kind, members=inside, width=counted)


def _width(kinds: Sequence[Kind]) -> tuple[int, int] | None:
    """The width of all together; None where one of many names was not counted."""
    if any(kind.width is None and len(kind.members) > reference.MANY_NAMES for kind in kinds):
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
    some = [decoded(value) for value in values if not pa.types.is_null(value.type)]
    if any(value.json for value in some) or len({_family(value.type) for value in some}) > 1:
        return JSON
    item = common(values, max_members)
    return Kind(pa.map_(keys.pop(), item.type), item=item)


def _lists(kinds: Sequence[Kind], max_members: int, *, equal: bool) -> Kind:
    item = common([kind.item for kind in kinds if kind.item is not None], max_members)
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
        return _integer(kinds)
    if len(decimals) < len(types):
        decimals.append(pa.decimal128(_DIGITS, 0))
    scale = max(each.scale for each in decimals)
    precision = scale + max(each.precision - each.scale for each in decimals)
    return pa.decimal128(precision, scale) if precision <= _DIGITS else None


def _integer(kinds: Sequence[Kind]) -> pa.DataType:
    signed = max(_widths(kinds, pa.types.is_signed_integer), default=0)
    unsigned = max(_widths(kinds, pa.types.is_unsigned_integer), default=0)
    if not signed:
        return _UNSIGNED[unsigned]
    if unsigned < 64:
        return _SIGNED[max(signed, 2 * unsigned)]
    return pa.decimal128(_DIGITS, 0) if any(kind.negative for kind in kinds) else pa.uint64()


def _widths(kinds: Sequence[Kind], wanted: Callable[[pa.DataType], bool]) -> Iterator[int]:
    return (kind.type.bit_width for kind in kinds if wanted(kind.type))


def _moment(kinds: Sequence[Kind]) -> pa.DataType | None:
    zones = {kind.type.tz for kind in kinds}
    unit = max((kind.type.unit for kind in kinds), key=_UNITS.index)
    if len(zones) > 1 and None in zones:
        return None
    if unit == "ns" and any(kind.far for kind in kinds):
        return None
    return pa.timestamp(unit, zones.pop() if len(zones) == 1 else "UTC")
