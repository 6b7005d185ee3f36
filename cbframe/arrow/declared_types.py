"""Types that a caller asks for: by their names (``schema=``), for dates (``parse_dates=``), and their values.

:func:`arrow_type` reads the names of types, as pyarrow, pandas, numpy and Python have them. :func:`fit`
brings a column to a declared type, value by value where Arrow would round or wrap. :class:`Dates` finds the
columns whose strings all are dates or times.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Collection, Mapping
from decimal import Decimal, InvalidOperation, localcontext
from math import isinf
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cbframe.errors import ConfigurationError
from cbframe.json.arrays import is_list
from cbframe.json.layout import declared
from cbframe.json.typer import OURS

_PYTHON: dict[type, pa.DataType] = {
    bool: pa.bool_(),
    int: pa.int64(),
    float: pa.float64(),
    str: pa.string(),
    bytes: pa.binary(),
    Decimal: pa.decimal128(38, 18),
    dt.date: pa.date32(),
    dt.datetime: pa.timestamp("us"),
    dt.time: pa.time64("us"),
}
_HINT = (
    "give a type of pyarrow, pandas, numpy or Python, or its name, such as 'int64', 'timestamp[us, tz=UTC]', "
    "'decimal128(38, 2)', 'list<string>', 'struct<a: int64, b: string>' or 'map<string, double>'"
)
_ATOM = re.compile(r"([A-Za-z][A-Za-z0-9_]*)(?:\[([^\]]*)\]|\(([^)]*)\))?")
_ITEM = re.compile(r"[^<>:,]*: ")
_STRINGS = {"string[python]", "string[pyarrow]", "string[pyarrow_numpy]"}
_NESTED = {"list", "large_list", "fixed_size_list", "map", "dictionary", "struct"}
_MOST = 64
"""Types inside of one another."""

_DAY = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}"
_TIME = r"[T ][0-9]{2}:[0-9]{2}(:[0-9]{2}(\.[0-9]{1,9})?)?"
_ZONE = r"(Z|[+-][0-9]{2}(:?[0-9]{2})?)"
_LOCAL = f"{_DAY}({_TIME})?$"
_ABSOLUTE = f"{_DAY}{_TIME}{_ZONE}$"
_TIMESTAMPS = (
    (_LOCAL, pa.timestamp("us")),
    (_LOCAL, pa.timestamp("ns")),
    (_ABSOLUTE, pa.timestamp("us", "UTC")),
    (_ABSOLUTE, pa.timestamp("ns", "UTC")),
)
"""The first that all strings of a column fit, to the last digit."""
_FIRST, _LAST = "1677-09-23", "2262-04-10"
"""What fits in nanoseconds, whatever the offset: a day less than that at each end."""

_EXACT = 1 << 53
_FIELDS = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_ITEMS = msgspec.json.Decoder(list[msgspec.Raw]).decode
_STRING = msgspec.json.Decoder(str).decode
_NOBODY = np.zeros(0, np.int64)


def arrow_type(kind: Any, field: str) -> pa.DataType:
    """The Arrow type that is meant."""
    if isinstance(kind, pa.DataType):
        return kind
    if isinstance(getattr(kind, "pyarrow_dtype", None), pa.DataType):
        return kind.pyarrow_dtype
    if isinstance(kind, type) and kind in _PYTHON:
        return _PYTHON[kind]
    try:
        if isinstance(kind, str):
            return named(kind)
        if hasattr(kind, "numpy_dtype"):
            return pa.from_numpy_dtype(kind.numpy_dtype)
        if hasattr(kind, "na_value"):
            return named(str(kind))  # pandas' own, of which numpy knows nothing
        # None is a double to numpy.
        return pa.from_numpy_dtype(np.dtype(kind if kind is not None else ""))
    except (ValueError, TypeError, pa.ArrowException) as exc:
        raise ConfigurationError(f"schema= has {kind!r} for {field!r}, which is no type", hint=_HINT) from exc


def named(text: str) -> pa.DataType:
    """The type of a name."""
    if text.lower() in _STRINGS:
        return pa.string()
    text = text.removesuffix("[pyarrow]")
    try:
        parser = _TypeParser(text)
        kind = parser.parse(_MOST)
        if parser.is_done:
            return kind
    except (ValueError, pa.ArrowException):
        if "<" in text[1:]:
            raise
    return pa.from_numpy_dtype(np.dtype(text))


class _TypeParser:
    """Reads a type as pyarrow prints it, or as people write it, from left to right."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    @property
    def is_done(self) -> bool:
        """Whether all of the text was read."""
        return self._at == len(self._text)

    def parse(self, most: int) -> pa.DataType:
        """The type that comes next, with at most that many levels."""
        atom = _ATOM.match(self._text, self._at)
        if atom is None or not most:
            raise ValueError(f"no type at {self._text[self._at :]!r}")
        name = atom[1].lower()
        self._at = atom.end()
        if name in _NESTED and self._accepts("<"):
            return self._nested(name, most - 1)
        inside = atom[2] if atom[2] is not None else atom[3]
        return _plain(name, [part.strip() for part in inside.split(",")] if inside else [])

    def _accepts(self, token: str) -> bool:
        found = self._text.startswith(token, self._at)
        self._at += len(token) if found else 0
        return found

    def _expect(self, token: str) -> None:
        if not self._accepts(token):
            raise ValueError(f"no {token!r} at {self._text[self._at :]!r}")

    def _nested(self, name: str, most: int) -> pa.DataType:
        if name == "struct":
            members = []
            while not self._accepts(">"):
                members.append(self._member(most))
                if self._accepts(","):
                    self._accepts(" ")
            return pa.struct(members)
        if name == "map":
            key = self.parse(most)
            self._expect(",")
            self._accepts(" ")
            item = self.parse(most)
            kind = pa.map_(key, item, self._accepts(", keys_sorted"))
        elif name == "dictionary":
            self._expect("values=")
            values = self.parse(most)
            self._expect(", indices=")
            indices = self.parse(most)
            self._expect(", ordered=")
            ordered = self._accepts("1")
            if not ordered:
                self._expect("0")
            kind = pa.dictionary(indices, values, ordered)
        elif name == "fixed_size_list":
            item = self._item(most)
            self._expect(">[")
            begin, self._at = self._at, self._text.index("]", self._at) + 1
            return pa.list_(item, int(self._text[begin : self._at - 1]))
        else:
            kind = (pa.list_ if name == "list" else pa.large_list)(self._item(most))
        self._expect(">")
        return kind

    def _item(self, most: int) -> pa.Field:
        """A type, with or without a name before it."""
        name = _ITEM.match(self._text, self._at)
        self._at = self._at if name is None else name.end()
        kind = self.parse(most)
        nullable = not self._accepts(" not null")
        return pa.field("item" if name is None else name[0][:-2], kind, nullable=nullable)

    def _member(self, most: int) -> pa.Field:
        """A name and a type; a name may have colons and commas in it."""
        begin = end = self._at
        while True:
            end = self._text.index(":", end) + 1
            self._at = end
            self._accepts(" ")
            try:
                kind = self.parse(most)
            except (ValueError, pa.ArrowException):
                continue
            nullable = not self._accepts(" not null")
            if self._text[self._at : self._at + 1] in (",", ">"):
                return pa.field(self._text[begin : end - 1], kind, nullable=nullable)


def _plain(name: str, arguments: list[str]) -> pa.DataType:
    match name, arguments:
        case (("timestamp" | "datetime64"), [unit, zone]):
            return pa.timestamp(unit, zone.removeprefix("tz="))
        case (("timestamp" | "datetime64"), [unit]):
            return pa.timestamp(unit)
        case "fixed_size_binary", [size]:
            return pa.binary(int(size))
        case "decimal128" | "decimal256", [precision, scale]:
            return (pa.decimal128 if name == "decimal128" else pa.decimal256)(int(precision), int(scale))
        case _, []:
            return pa.type_for_alias(name)
    return pa.type_for_alias(f"{name}[{', '.join(arguments)}]")


def fit(column: pa.ChunkedArray, kind: pa.DataType) -> tuple[pa.ChunkedArray, npt.NDArray[np.int64]]:
    """A column as another type, and the rows of which some value did not fit: it is null."""
    if column.type.equals(kind):
        return column.cast(kind), _NOBODY
    if column.null_count == len(column):
        return pa.chunked_array([pa.nulls(len(column), kind)]), _NOBODY
    if _casts(column.type, kind):
        try:
            return column.cast(kind), _NOBODY
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            pass
    cells: list[Any] = []
    misfits: list[int] = []
    for row, value in enumerate(column.to_pylist()):
        lost: list[Any] = []
        cells.append(_fitting(value, kind, lost))
        if lost:
            misfits.append(row)
    return pa.chunked_array([pa.array(cells, kind)]), np.array(misfits, np.int64)


def _fitting(value: Any, kind: pa.DataType, lost: list[Any]) -> Any:
    """The Python value of which ``pa.array(..., kind)`` makes the cell; None, and noted, if it fits not."""
    try:
        return _cell(value, kind, lost)
    except _MisfitError:
        lost.append(kind)
        return None


def _casts(natural: pa.DataType, kind: pa.DataType) -> bool:
    """Whether Arrow converts exactly, or refuses."""
    if pa.types.is_nested(natural) or pa.types.is_nested(kind):
        return False
    if pa.types.is_floating(kind) and not pa.types.is_float64(kind):
        return False
    # Of decimals, which are integers, it makes the nearest double.
    text = pa.types.is_string(natural) or pa.types.is_decimal(natural)
    return not (text and pa.types.is_floating(kind))


class _MisfitError(Exception):
    """A value does not fit; never leaves this module."""


def _cell(value: Any, kind: pa.DataType, lost: list[Any]) -> Any:
    if value is None:
        return None
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if isinstance(value, str) and (pa.types.is_map(kind) or pa.types.is_struct(kind)):
        # Objects of many names, and those that maps are made of, are JSON text until now.
        value = msgspec.Raw(value.encode())
    if isinstance(value, msgspec.Raw):
        value = _decoded(bytes(value), kind)
        if value is None:
            return None
    if pa.types.is_map(kind):
        return _pairs(value, kind, lost)
    if pa.types.is_struct(kind):
        return _members(value, kind, lost)
    if is_list(kind):
        return _items(value, kind, lost)
    if pa.types.is_boolean(kind) or isinstance(value, bool):
        return _is(value, bool, pa.types.is_boolean(kind))
    if pa.types.is_decimal(kind):
        return _decimal(value, kind)
    if pa.types.is_integer(kind):
        return _integer(value, kind)
    if pa.types.is_floating(kind):
        return _float(value, kind)
    _is(value, str, not pa.types.is_nested(kind))
    try:
        return pa.scalar(value).cast(kind).as_py()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as exc:
        raise _MisfitError from exc


def _decoded(source: bytes, kind: pa.DataType) -> Any:
    """The sources of members or items, or a scalar, which is the text as it is written where that fits."""
    match source[:1]:
        case b"n":
            return None
        case b'"' if declared(kind).only in (None, "string"):
            return _STRING(source)
        case b'"':
            raise _MisfitError
        case b"{" if pa.types.is_map(kind) or pa.types.is_struct(kind):
            return _FIELDS(source)
        case b"[" if is_list(kind):
            return _ITEMS(source)
    if declared(kind).only is None:
        return source.decode()
    match source[:1]:
        case b"t" | b"f":
            return source == b"true"
        case b"{" | b"[":
            raise _MisfitError
    return _number(source.decode())


def _is(value: Any, wanted: type, allowed: bool) -> Any:
    if not allowed or not isinstance(value, wanted):
        raise _MisfitError
    return value


def _number(value: Any) -> Decimal:
    if isinstance(value, dict | list):
        raise _MisfitError
    try:
        return Decimal(value)
    except InvalidOperation as exc:
        raise _MisfitError from exc


def _integer(value: Any, kind: pa.DataType) -> int:
    number = _number(value)
    # No token of a million digits is written out.
    if not number.is_finite() or number.adjusted() > 20 or number != int(number):
        raise _MisfitError
    try:
        pa.scalar(int(number), kind)
    except (pa.ArrowInvalid, OverflowError) as exc:
        raise _MisfitError from exc
    return int(number)


def _float(value: Any, kind: pa.DataType) -> float | np.float16:
    number = _number(value)
    with np.errstate(over="ignore"):
        rounded = float(kind.to_pandas_dtype()(number))
    # Where an integer stood among doubles, it is a double by now.
    integer = isinstance(value, int) or (isinstance(value, str) and value.lstrip("-").isdigit())
    integer |= isinstance(value, Decimal) and number.as_tuple().exponent == 0
    integer |= abs(number) < _EXACT and number == number.to_integral_value()
    if isinf(rounded) or (integer and rounded != number):
        raise _MisfitError
    # Older releases of pyarrow take no other number for one.
    return np.float16(rounded) if pa.types.is_float16(kind) else rounded


def _decimal(value: Any, kind: pa.DataType) -> Decimal:
    number = _number(value)
    with localcontext() as context:
        context.prec = 100
        try:
            scaled = number.quantize(Decimal(1).scaleb(-kind.scale))
        except InvalidOperation as exc:
            raise _MisfitError from exc
    if scaled != number or len(scaled.as_tuple().digits) > kind.precision:
        raise _MisfitError
    return scaled


def _items(value: Any, kind: pa.DataType, lost: list[Any]) -> list[Any]:
    if not isinstance(value, list) or (pa.types.is_fixed_size_list(kind) and len(value) != kind.list_size):
        raise _MisfitError
    return [_fitting(item, kind.value_type, lost) for item in value]


def _members(value: Any, kind: pa.DataType, lost: list[Any]) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise _MisfitError
    return {member.name: _fitting(value.get(member.name), member.type, lost) for member in kind}


def _pairs(value: Any, kind: pa.DataType, lost: list[Any]) -> list[tuple[Any, Any]]:
    if not isinstance(value, Mapping):
        raise _MisfitError
    return [
        (_cell(name, kind.key_type, lost), _fitting(member, kind.item_type, lost))
        for name, member in value.items()
    ]


class Dates:
    """Makes timestamps of the columns all of whose strings are ISO 8601 dates or times.

    With an offset everywhere they are moments, ``timestamp[us, UTC]``; without one anywhere they are
    what a clock showed, ``timestamp[us]``; with more than six digits of a second ``ns`` in the place of
    ``us``. Where some have one and some have not, where one is no date (the 30th of February), or
    beyond the type, the column stays as it is.

    First :meth:`look` at all tables, then :meth:`apply`.
    """

    def __init__(self, names: Collection[str] | None, *, lenient: bool = False) -> None:
        self._names = names
        self._lenient = lenient
        self._left: dict[str, list[tuple[str, pa.DataType]]] = {}
        """What all strings of a column fit so far; of columns with any string."""

    def look(self, table: pa.Table) -> None:
        """Take in one more table."""
        missing = [name for name in self._names or () if name not in table.column_names]
        if missing and not self._lenient:
            raise ConfigurationError(
                f"parse_dates= names {missing[0]!r}, which is no column",
                hint='name columns as they are in the result; those inside of objects with nested="flatten"',
            )
        for name, column in zip(table.column_names, table.columns, strict=True):
            wanted = not name.startswith(OURS) if self._names is None else name in self._names
            if wanted and pa.types.is_string(column.type) and column.null_count < len(column):
                self._left[name] = _dated(column, self._left.get(name, list(_TIMESTAMPS)))

    def apply(self, table: pa.Table) -> pa.Table:
        """A table that was looked at, with timestamps."""
        for at, name in enumerate(table.column_names):
            if left := self._left.get(name):
                table = table.set_column(at, name, table[name].cast(left[0][1]))
        return table


def _dated(column: pa.ChunkedArray, kinds: list[tuple[str, pa.DataType]]) -> list[tuple[str, pa.DataType]]:
    matching = {
        pattern: pc.all(pc.match_substring_regex(column, pattern)).as_py()
        for pattern in dict.fromkeys(pattern for pattern, _ in kinds)
    }
    return [(pattern, kind) for pattern, kind in kinds if matching[pattern] and _date_casts(column, kind)]


def _date_casts(column: pa.ChunkedArray, kind: pa.DataType) -> bool:
    if kind.unit == "ns":
        # The cast of pyarrow 16 wraps around beyond. Dates of this form are ordered as their text is.
        ends = pc.min_max(column)
        if ends["min"].as_py() < _FIRST or ends["max"].as_py() >= _LAST:
            return False
    try:
        column.cast(kind)
    except pa.ArrowInvalid:
        return False
    return True
