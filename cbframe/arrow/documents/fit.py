"""Columns brought to the types that were declared for them."""

from __future__ import annotations

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
from cbframe.json.layout import declared, is_list
from cbframe.json.typer import OURS

_DAY = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}"
_TIME = r"[T ][0-9]{2}:[0-9]{2}(:[0-9]{2}(\.[0-9]{1,9})?)?"
_ZONE = r"(Z|[+-][0-9]{2}(:?[0-9]{2})?)"
_LOCAL = f"{_DAY}({_TIME})?$"
_ABSOLUTE = f"{_DAY}{_TIME}{_ZONE}$"
_KINDS = (
    (_LOCAL, pa.timestamp("us")),
    (_LOCAL, pa.timestamp("ns")),
    (_ABSOLUTE, pa.timestamp("us", "UTC")),
    (_ABSOLUTE, pa.timestamp("ns", "UTC")),
)
"""The first that all strings of a column fit, to the last digit."""
_FIRST, _LAST = "1677-09-23", "2262-04-10"
"""What fits in nanoseconds, whatever the offset: a day less than that at each end."""


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
                self._left[name] = _dated(column, self._left.get(name, list(_KINDS)))

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


_EXACT = 1 << 53
_FIELDS = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_ITEMS = msgspec.json.Decoder(list[msgspec.Raw]).decode
_STRING = msgspec.json.Decoder(str).decode


def fit(column: pa.ChunkedArray, kind: pa.DataType) -> tuple[pa.ChunkedArray, npt.NDArray[np.int64]]:
    """A column as another type."""
    if column.type.equals(kind) or column.null_count == len(column):
        return column.cast(kind) if column.type.equals(kind) else _nulls(len(column), kind), _NOBODY
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


_NOBODY = np.zeros(0, np.int64)


def _nulls(length: int, kind: pa.DataType) -> pa.ChunkedArray:
    return pa.chunked_array([pa.nulls(length, kind)])


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
        case b'"':
            return _STRING(source)
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
