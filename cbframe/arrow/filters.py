"""Filters: which documents are wanted, decided before anything else is made of them.

A filter is written as pyarrow and pandas write it for Parquet: ``[("type", "==", "hotel"),
("geo.alt", ">", 100)]``, all of which must hold; or a list of such lists, one of which must. The name is
that of a field: ``"geo.alt"`` or ``("geo", "alt")`` is a member, ``"`geo.alt`"`` or ``("geo.alt",)`` a field
with a dot in its name. ``_cb_key`` and the other columns of metadata can be named, read or not.

One rule holds for reads, scans, partitions, Dask, Spark and snapshots. It is about the values of the
documents, not about the columns that they become:

=========================  ======================  =================================================
the filter has             it is compared with     and
=========================  ======================  =================================================
int, float, Decimal        numbers                 exactly, integers of any size; a number with a
                                                   fraction is the nearest double on both sides;
                                                   ``-0.0`` equals ``0``
bool                       true, false             never with numbers; false is less than true
str                        text                    by code points; also if it looks like a date
datetime with a zone       text such as            as moments, to the nanosecond; and timestamps that
                           2024-05-01T12:00:00Z    ``parse_dates=`` or ``schema=`` made of such text
date, naive datetime       text such as            as what a clock showed, without a zone; a day without a
                           2024-05-01 12:00        time is its midnight
bytes                      ``_cb_key``             a str is the text of a key
``("x", "is", None)``      anything                null and missing fields alike
``("x", "is not", None)``  anything                the opposite
=========================  ======================  =================================================

=============================================  ============================================================
a value that is                                passes
=============================================  ============================================================
null or missing                                ``is`` only
of another kind than the filter's              ``!=``, ``not in`` and ``is not``
of one kind, where others are of another       as it does by itself: each value is compared as what it is
no JSON object (binary, an array)              no filter on a field; those on ``_cb_…`` as any document
=============================================  ============================================================

Instead of an answer there is a :class:`~cbframe.ConfigurationError` where

* the field is in none of the documents, and there is one at least;
* the comparison can never be true: the field holds values, and none is of the filter's kind (``==``,
  ``<``, ``<=``, ``>``, ``>=``, ``in``; an empty list is just never true). Where types follow from a sample
  (partitions, :func:`~cbframe.scan_polars`), which proves neither, both are warnings;
* a snapshot no longer has what the rule needs: text cannot tell the number 60 from the string "60" where the
  field holds both, a timestamp cannot tell how it was written, a float32 was rounded. The message says
  how to read such a field.
"""

from __future__ import annotations

import json
import operator
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal, InvalidOperation
from math import floor, isinf, isnan
from typing import Any, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cbframe.arrow.columns import (
    COLLECTION_ID,
    COLLECTION_NAMES,
    KEY,
    METADATA_TYPES,
    OPCODE,
    XATTRS,
    Mask,
    key_of_text,
)
from cbframe.errors import ConfigurationError
from cbframe.json.arrays import is_list
from cbframe.json.layout import Column, Path, Policy, Tree, path_of, tree_of
from cbframe.json.typer import OURS, REASON, VALUE, Documents, shown, typed

ORDER = ("<", "<=", ">", ">=")
SETS = ("in", "not in")
NULLS = ("is", "is not")
OPERATORS = ("==", "!=", *ORDER, *SETS, *NULLS)
METADATA: dict[str, pa.DataType] = {
    KEY: pa.binary(),
    **{name: kind for name, kind in METADATA_TYPES.items() if name != XATTRS},
    **dict.fromkeys(COLLECTION_NAMES, pa.string()),
}
"""Columns of metadata that filters can name, whether they are read or not."""
_RESERVED = {VALUE, REASON, XATTRS, OPCODE, COLLECTION_ID, "_cb_rest"}
_HINT = 'write filters=[("type", "==", "hotel"), ("geo.alt", ">", 100)], or a list of such lists'
_VALUES = "values are numbers, text, True or False, Decimal, date and datetime"
_LARGEST = 5000
"""Digits of a Decimal."""
_COMPARE: dict[str, tuple[Callable[[Any, Any], bool], Callable[[Any, Any], pa.Array]]] = {
    "==": (operator.eq, pc.equal),
    "!=": (operator.ne, pc.not_equal),
    "<": (operator.lt, pc.less),
    "<=": (operator.le, pc.less_equal),
    ">": (operator.gt, pc.greater),
    ">=": (operator.ge, pc.greater_equal),
}
_NANOSECONDS = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}
_DECODE = msgspec.json.Decoder().decode
_NOUNS = {
    "number": "numbers",
    "boolean": "true or false",
    "string": "text",
    "array": "arrays",
    "object": "objects",
    "moment": "dates and times with a time zone",
    "clock": "dates and times without a time zone",
}
_EPOCH = datetime.fromisoformat("1970-01-01")
_TEXT = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2})"
    r"(?:[T ]([0-9]{2}:[0-9]{2})(?::([0-9]{2})(?:\.([0-9]{1,9}))?)?(Z|[+-][0-9]{2}(?::?[0-9]{2})?)?)?"
)


@dataclass(frozen=True, slots=True)
class Moment:
    """A date or a time."""

    nanoseconds: int  # since 1970
    aware: bool  # whether that is in UTC, or what a clock showed somewhere

    @classmethod
    def of(cls, value: date) -> Moment:
        """That of a date, or of a datetime with or without a zone."""
        if not isinstance(value, datetime):
            value = datetime.fromisoformat(value.isoformat())
        aware = value.utcoffset() is not None
        since = (value.astimezone(UTC) if aware else value).replace(tzinfo=None) - _EPOCH
        # pandas' timestamps have nanoseconds.
        return cls(since // timedelta(microseconds=1) * 1000 + int(getattr(value, "nanosecond", 0)), aware)

    @classmethod
    def of_text(cls, text: str) -> Moment | None:
        """That of text which ``parse_dates=`` would take for one; None of other text."""
        match = _TEXT.fullmatch(text)
        if match is None:
            return None
        day, minute, second, fraction, zone = match.groups()
        try:
            since = datetime.fromisoformat(f"{day}T{minute or '00:00'}:{second or '00'}") - _EPOCH
        except ValueError:
            return None
        seconds = since.days * 86400 + since.seconds
        if zone not in (None, "Z"):
            hours, minutes = int(zone[1:3]), int(zone[3:].lstrip(":") or 0)
            if hours > 23 or minutes > 59:
                return None
            seconds -= (hours * 3600 + minutes * 60) * (-1 if zone[0] == "-" else 1)
        return cls(seconds * 10**9 + int((fraction or "").ljust(9, "0")), zone is not None)


@dataclass(frozen=True, slots=True)
class Predicate:
    """One comparison."""

    path: Path  # of the field, or the name of a column of metadata
    op: str  # one of `OPERATORS`
    value: Any  # A str, int, float, bool, bytes, Moment or None; a tuple of them for `in` and `not in`

    @property
    def literals(self) -> tuple[Any, ...]:
        """What is compared with."""
        return self.value if self.op in SETS else (self.value,)

    @property
    def negative(self) -> bool:
        """Whether values of other kinds pass."""
        return self.op in ("!=", "not in", "is not")

    @property
    def of_metadata(self) -> bool:
        """Whether it is about metadata, and not about a field."""
        return self.path[0] in METADATA

    def __str__(self) -> str:
        return f"{'.'.join(self.path)!r} {self.op}"


Filters: TypeAlias = tuple[tuple[Predicate, ...], ...]
"""One of these has to hold, each of them as a whole."""


def make_filters(filters: Any) -> Filters:
    """Check filters as they were written."""
    if not isinstance(filters, list | tuple):
        raise _invalid("is not a list of comparisons")
    if not filters:
        raise _invalid("is an empty list")
    groups = [filters] if _is_predicate(filters[0]) else filters
    made = []
    for group in groups:
        if not isinstance(group, list | tuple):
            raise _invalid(f"has {_shown(group)} in it")
        if not group:
            raise _invalid("has an empty list in it")
        made.append(tuple(_predicate(each) for each in group))
    return tuple(made)


def predicates(filters: Filters | None) -> Iterator[Predicate]:
    """All comparisons."""
    return (predicate for group in filters or () for predicate in group)


def stored_filters(filters: Any) -> Any:
    """Filters as JSON holds them; :func:`restored_filters` is the way back."""
    if isinstance(filters, set | frozenset):
        return sorted(map(stored_filters, filters), key=repr)  # the same in every process
    if isinstance(filters, list | tuple) or (
        hasattr(filters, "__len__") and not isinstance(filters, str | bytes)
    ):
        return [stored_filters(each) for each in filters]
    plain = _plain(filters)
    if getattr(plain, "nanosecond", 0):
        return {"timestamp": plain.isoformat()}  # of pandas, which alone has nanoseconds
    if isinstance(plain, datetime | date):
        return {"datetime" if isinstance(plain, datetime) else "date": plain.isoformat()}
    if isinstance(plain, Decimal):
        return {"decimal": str(plain)}
    if isinstance(plain, bytes):
        return {"bytes": plain.hex()}
    return plain


def restored_filters(stored: Any) -> Any:
    """Filters of which :func:`stored_filters` made this."""
    if isinstance(stored, list):
        return [restored_filters(each) for each in stored]
    if isinstance(stored, dict):
        ((kind, text),) = stored.items()
        return _RESTORED[kind](text)
    return stored


def _timestamp(text: str) -> Any:
    import pandas as pd  # noqa: PLC0415 - slow to import

    return pd.Timestamp(text)


_RESTORED: dict[str, Any] = {
    "date": date.fromisoformat,
    "datetime": datetime.fromisoformat,
    "timestamp": _timestamp,
    "decimal": Decimal,
    "bytes": bytes.fromhex,
}


def family_of(literal: Any) -> str:
    """The kind of a filter's value."""
    if isinstance(literal, bool):
        return "boolean"
    if isinstance(literal, str | bytes):
        return "string"
    if isinstance(literal, Moment):
        return "moment" if literal.aware else "clock"
    return "number"


def nouns(families: Sequence[str]) -> str:
    """Kinds of values in words."""
    *some, last = (_NOUNS[each] for each in families)
    return f"{', '.join(some)} and {last}" if some else last


def never(predicate: Predicate, families: Sequence[str]) -> ConfigurationError | None:
    """The error for a comparison that cannot be true."""
    literals = predicate.literals
    if predicate.negative or predicate.op == "is" or not families or not literals:
        return None
    asked = list(dict.fromkeys(map(family_of, literals)))
    if any(each in families for each in asked):
        return None
    name = ".".join(predicate.path)
    held = [each for each in families if each not in ("moment", "clock") or "string" not in families]
    return ConfigurationError(
        f"filters= compares {name!r} with {nouns(asked)}, and it holds {nouns(held)}: that is never true",
        hint=f"compare it with {nouns(held)}"
        if not {*held} <= {"array", "object"}
        else f"name a member of it: filters=[(({predicate.path[0]!r}, ...), {predicate.op!r}, ...)]",
    )


def unknown(argument: str, path: Path) -> ConfigurationError:
    """The error for a field that no document has."""
    return ConfigurationError(
        f"{argument}= names {shown(path)!r}, which no document has",
        hint="read_schema() lists the fields; a member is geo.lat, a name with a dot in it `geo.lat`",
    )


def _is_predicate(each: Any) -> bool:
    return isinstance(each, list | tuple) and len(each) == 3 and isinstance(each[1], str)


def _predicate(each: Any) -> Predicate:
    if not _is_predicate(each):
        raise _invalid(f"has {_shown(each)} in it, which is not (field, operator, value)")
    column, op, value = each
    if isinstance(column, str):
        path = path_of(column)
    elif isinstance(column, list | tuple) and column and all(isinstance(name, str) for name in column):
        path = tuple(column)
    else:
        raise _invalid(f"names {_shown(column)}, which is no field")
    op = "==" if op == "=" else op
    if op not in OPERATORS:
        raise _invalid(f"has the operator {op!r}", f"choose from: {', '.join(OPERATORS)}")
    name = ".".join(path)
    if op in SETS:
        if isinstance(value, str | bytes) or not hasattr(value, "__iter__"):
            raise _invalid(f"has no list of values after {op!r}", f'write ("{name}", "{op}", ["a", "b"])')
        literal: Any = tuple(_literal(each, path, op) for each in value)
    else:
        literal = _literal(value, path, op)
    predicate = Predicate(path, op, literal)
    _check_metadata(predicate)
    return predicate


def _literal(value: Any, path: Path, op: str) -> Any:
    value = _plain(value)
    name = ".".join(path)
    if op in NULLS:
        if value is not None:
            raise _invalid(f"has {op!r} with a value", f'write ("{name}", "{op}", None), or use "=="')
        return None
    if value is None:
        raise _invalid(f"compares {name!r} with None", f'write ("{name}", "is", None), or "is not"')
    if isinstance(value, bool | int):
        return value
    if isinstance(value, float | Decimal):
        if value.is_nan() if isinstance(value, Decimal) else isnan(value):
            raise _invalid(
                f"compares {name!r} with NaN, which no document holds", 'null is ("x", "is", None)'
            )
        return value if isinstance(value, float) else _number(value)
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise _invalid(f"compares {name!r} with text that is not Unicode") from None
        return key_of_text(value) if path == (KEY,) else value
    if isinstance(value, date):
        if value != value:  # noqa: PLR0124 - pandas' NaT is a datetime
            raise _invalid(f"compares {name!r} with NaT", f'write ("{name}", "is", None)')
        return Moment.of(value)
    if isinstance(value, bytes) and path == (KEY,):
        return value
    hint = 'lists are for "in" and "not in"' if isinstance(value, list | tuple | set) else None
    raise _invalid(f"compares {name!r} with a value of type {type(value).__name__}", hint or _VALUES)


def _plain(value: Any) -> Any:
    if isinstance(value, np.datetime64):
        micros = value.astype("datetime64[us]")
        # A datetime has no nanoseconds, and NaT is not equal to itself.
        return micros.item() if micros == value else value
    return value.item() if isinstance(value, np.generic) else value


def _number(value: Decimal) -> int | float:
    if value.is_infinite() or value != value.to_integral_value():
        return float(value)
    if value.adjusted() > _LARGEST:
        raise _invalid(f"compares with a number of {value.adjusted() + 1} digits")
    return int(value)


def _check_metadata(predicate: Predicate) -> None:
    """Refuse what metadata cannot be compared with: its types are known."""
    name, *inside = predicate.path
    if name in _RESERVED or (name in METADATA and inside):
        raise ConfigurationError(
            f"filters= names {'.'.join(predicate.path)!r}, which is not compared with anything",
            hint=f"choose a field, or from: {', '.join(METADATA)}",
        )
    if name not in METADATA:
        return
    kind = METADATA[name]
    families = ["number" if pa.types.is_integer(kind) else "string"]
    error = never(predicate, families)
    if predicate.op == "is":
        error = ConfigurationError(f"filters= asks for {name!r} that is null: it never is")
    if error is not None:
        raise error


def _shown(value: Any) -> str:
    """A value by its type: it may be a key, or what nobody should read in a log."""
    return f"a value of type {type(value).__name__}"


def _invalid(what: str, hint: str = _HINT) -> ConfigurationError:
    return ConfigurationError(f"filters= {what}", hint=hint)


def _is_exact(integer: int) -> bool:
    """Whether an integer has an exact double."""
    try:
        return int(float(integer)) == integer
    except OverflowError:
        return False


def family(kind: pa.DataType) -> str | None:
    """The kind of the values of a column; None of nulls, and of types that no value of JSON becomes."""
    if pa.types.is_boolean(kind):
        return "boolean"
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return "number"
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_binary(kind):
        return "string"
    if pa.types.is_timestamp(kind):
        return "clock" if kind.tz is None else "moment"
    if pa.types.is_struct(kind) or pa.types.is_map(kind):
        return "object"
    return "array" if is_list(kind) else None


def families_of(values: Iterable[Any]) -> set[str]:
    """The kinds of decoded values; text that is a date or a time is that, too."""
    found: set[str] = set()
    for value in values:
        if isinstance(value, str):
            found.add("string")
            if (moment := Moment.of_text(value)) is not None:
                found.add(family_of(moment))
        elif value is not None:
            found.add(_family(value))
    return found


def compared(cells: pa.ChunkedArray, predicate: Predicate) -> Mask:
    """Which values of a column pass: booleans, numbers, text, bytes, timestamps, or nested ones."""
    valid: Mask = cells.is_valid().to_numpy()
    if predicate.op == "is":
        return ~valid
    held = family(cells.type)
    literals = tuple(each for each in predicate.literals if family_of(each) == held)
    dates = held == "string" and any(isinstance(each, Moment) for each in predicate.literals)
    if predicate.op == "is not" or held is None or not (literals or dates):
        # Of another kind than all of them.
        return valid if predicate.negative else np.zeros(len(cells), bool)
    fast = None if dates else _fast(cells, predicate.op, literals)
    if fast is None:
        return np.fromiter((holds(value, predicate) for value in cells.to_pylist()), bool, len(cells))
    mask: Mask = fast.fill_null(False).to_numpy() if isinstance(fast, pa.ChunkedArray) else fast & valid
    return mask & valid


def holds(value: Any, predicate: Predicate) -> bool:
    """Whether one decoded value passes."""
    if value is None:
        return predicate.op == "is"
    if predicate.op in ("is", "is not"):
        return predicate.negative
    compare = _COMPARE["==" if predicate.op not in ORDER else predicate.op][0]
    found = False
    for literal in predicate.literals:
        mine = value
        if isinstance(literal, Moment) and isinstance(value, str):
            mine = Moment.of_text(value)
        if mine is None or _family(mine) != family_of(literal):
            continue
        if isinstance(literal, Moment):
            found |= compare(mine.nanoseconds, literal.nanoseconds)
        else:
            found |= compare(mine, literal)
    return found != predicate.negative


def decoded(text: str | bytes) -> Any:
    """Sound JSON as Python's values: numbers with a fraction are doubles, integers are exact."""
    try:
        return _DECODE(text)
    except msgspec.ValidationError:
        # It has numbers beyond a double, or of very many digits.
        return _EXACTLY(text if isinstance(text, str) else text.decode())


def value_at(document: Any, path: Path) -> Any:
    """What a decoded value has at a path; None where it has nothing."""
    for name in path:
        if not isinstance(document, dict):
            return None
        document = document.get(name)
    return document


def _double(token: str) -> float | Decimal:
    number = float(token)
    if not isinf(number):
        return number
    try:
        return Decimal(token)
    except InvalidOperation:
        return number  # beyond even that


_EXACTLY = json.JSONDecoder(parse_int=Decimal, parse_float=_double).decode


def _family(value: Any) -> str:
    if isinstance(value, dict):
        return "object"
    return "array" if isinstance(value, list | tuple) else family_of(value)


def _fast(cells: pa.ChunkedArray, op: str, literals: Sequence[Any]) -> pa.ChunkedArray | Mask | None:
    """Compare in one call; None where Arrow would not compare exactly."""
    kind = cells.type
    if pa.types.is_timestamp(kind):
        unit = _NANOSECONDS[kind.unit]
        parts = [divmod(each.nanoseconds, unit) for each in literals]
        return _integers(cells.cast(pa.int64()), op, [(whole, not rest) for whole, rest in parts])
    if pa.types.is_integer(kind):
        if any(isinstance(each, float) and isinf(each) for each in literals):
            return None
        return _integers(cells, op, [(floor(each), each == floor(each)) for each in literals])
    if pa.types.is_floating(kind):
        doubles = all(isinstance(each, float) or _is_exact(each) for each in literals)
        if not doubles or not pa.types.is_float64(kind):
            return None
        literals = tuple(map(float, literals))
        if op in SETS and 0.0 in literals:
            # To is_in() they are different.
            literals += (0.0, -0.0)
    elif pa.types.is_decimal(kind) or pa.types.is_nested(kind):
        return None
    if pa.types.is_binary(kind):
        literals = tuple(each.encode() if isinstance(each, str) else each for each in literals)
    elif any(isinstance(each, bytes) for each in literals):
        return None
    return _in_arrow(cells, op, literals)


def _in_arrow(cells: pa.ChunkedArray, op: str, literals: Sequence[Any]) -> pa.ChunkedArray:
    if op in SETS:
        found = pc.is_in(cells, value_set=pa.array(literals, cells.type))
        return pc.invert(found) if op == "not in" else found
    return _COMPARE[op][1](cells, pa.scalar(literals[0], cells.type))


def _integers(
    cells: pa.ChunkedArray, op: str, literals: Sequence[tuple[int, bool]]
) -> pa.ChunkedArray | Mask:
    """Integers compared with numbers, of each the next integer below and whether that is all of it."""
    kind = cells.type
    low, high = 0, (1 << kind.bit_width) - 1
    if pa.types.is_signed_integer(kind):
        low, high = -(high + 1) // 2, high // 2
    if op not in ORDER:
        some = [whole for whole, all_of_it in literals if all_of_it and low <= whole <= high]
        return _in_arrow(cells, "not in" if op in ("!=", "not in") else "in", some)
    ((whole, all_of_it),) = literals
    if not all_of_it:
        op = {"<": "<=", ">=": ">"}.get(op, op)
    if not low <= whole <= high:
        return np.full(len(cells), (whole > high) == (op in ("<", "<=")))
    return _in_arrow(cells, op, [whole])


def passing(filters: Filters, rows: int, holding: Callable[[Predicate], Mask]) -> Mask:
    """Which rows pass, when `holding` tells for which of them one comparison holds."""
    passed = np.zeros(rows, bool)
    for group in filters:
        whole = np.ones(rows, bool)
        for predicate in group:
            whole &= holding(predicate)
        passed |= whole
    return passed


class Matcher:
    """Finds the documents that pass filters, and learns what they hold in the fields that are compared."""

    def __init__(self, filters: Filters) -> None:
        self._filters = filters
        self._of_fields = [each for each in predicates(filters) if not each.of_metadata]
        self._wanted = tree_of(each.path for each in self._of_fields)
        self._dates = {
            each.path
            for each in self._of_fields
            if any(isinstance(literal, Moment) for literal in each.literals)
        }
        self._seen: dict[Path, set[str]] = {}
        """The kinds of values of the fields that some document has, if only as null."""

    def mask(
        self,
        values: pa.Array,  # binary array without nulls
        is_json: npt.NDArray[np.bool_],  # what the server says of each
        metadata: Mapping[str, pa.Array] | None = None,  # the columns of metadata that the filters name
        documents: npt.NDArray[np.bool_] | None = None,
    ) -> Mask:
        """Which rows pass."""
        if not len(values):
            return np.zeros(0, bool)
        fields = _Fields(values, is_json, self._wanted) if self._of_fields else None
        for path in dict.fromkeys(each.path for each in self._of_fields):
            assert fields is not None
            families = fields.families(path, dates=path in self._dates)
            if families is not None:
                self._seen.setdefault(path, set()).update(families)

        def holding(predicate: Predicate) -> Mask:
            if predicate.of_metadata:
                assert metadata is not None
                return compared(pa.chunked_array([metadata[predicate.path[0]]]), predicate)
            assert fields is not None
            return fields.holding(predicate)

        passed = passing(self._filters, len(values), holding)
        return passed if documents is None else passed & documents

    def update(self, other: Matcher) -> None:
        """Take in what another one with the same filters learned."""
        for path, families in other._seen.items():
            self._seen.setdefault(path, set()).update(families)

    def errors(self) -> list[ConfigurationError]:
        """What the documents show to be a mistake: fields that none has, comparisons that are never true."""
        found = []
        for predicate in self._of_fields:
            families = self._seen.get(predicate.path)
            if families is None:
                found.append(unknown("filters", predicate.path))
            elif (error := never(predicate, sorted(families))) is not None:
                found.append(error)
        return found

    def refuse(self) -> None:
        """Raise the first of :meth:`errors`: there was a document at least."""
        for error in self.errors():
            raise error


class _Fields:
    """The fields of some documents: as columns, and decoded where their values have no common type."""

    def __init__(self, values: pa.Array, is_json: npt.NDArray[np.bool_], wanted: Tree) -> None:
        self._documents = values
        rows = np.arange(len(values), dtype=np.uint64)
        documents = Documents(values, is_json, np.zeros(len(values), np.uint16), rows)
        self._table, settled = typed([documents], Policy(wanted=wanted))
        self._root = settled.layout.root
        self._sound: Mask = np.ones(len(values), bool)
        """Which rows are JSON objects."""
        if settled.rejected:
            self._sound = self._table[REASON].is_null().to_numpy()
        self._columns: dict[Path, tuple[bool, pa.ChunkedArray | None]] = {}
        self._decoded: list[Any] | None = None

    def holding(self, predicate: Predicate) -> Mask:
        """Of which one comparison holds."""
        _, cells = self._column(predicate.path)
        if cells is not None:
            found = compared(cells, predicate)
        else:
            values = self._values(predicate.path)
            found = np.fromiter((holds(value, predicate) for value in values), bool, len(values))
        return found & self._sound if predicate.op == "is" else found

    def families(self, path: Path, *, dates: bool) -> set[str] | None:
        """The kinds of values of a field; None if no document has it."""
        present, cells = self._column(path)
        if not present:
            return None
        if cells is None:
            return families_of(self._values(path))
        held = family(cells.type)
        if held is None or cells.null_count == len(cells):
            return set()
        return {held} | (families_of(cells.drop_null().to_pylist()) if held == "string" and dates else set())

    def _column(self, path: Path) -> tuple[bool, pa.ChunkedArray | None]:
        """Whether some document has a field, and its column if that has the values as they are."""
        if path not in self._columns:
            self._columns[path] = self._found(path)
        return self._columns[path]

    def _found(self, path: Path) -> tuple[bool, pa.ChunkedArray | None]:
        name, *rest = path
        if name.startswith(OURS) or "\0" in name:
            return self._is_present(path), None
        plan = self._root.members.get(name)
        column: Any = None if plan is None else self._table[name]
        for member in rest:
            if plan is None:
                break
            if not _is_plain(column, plan):
                return self._is_present(path), None
            plan = plan.members.get(member)
            if plan is not None:
                column = pc.struct_field(column, [column.type.get_field_index(member)])
        if plan is None:
            return False, pa.chunked_array([pa.nulls(len(self._documents))])
        return (True, column) if _is_plain(column, plan) else (self._is_present(path), None)

    def _is_present(self, path: Path) -> bool:
        *outer, name = path
        return any(isinstance(inside, dict) and name in inside for inside in self._values(tuple(outer)))

    def _values(self, path: Path) -> list[Any]:
        if self._decoded is None:
            self._decoded = [
                decoded(document) if sound else None
                for document, sound in zip(self._documents.to_pylist(), self._sound, strict=True)
            ]
        return [value_at(document, path) for document in self._decoded]


def _is_plain(column: pa.ChunkedArray, plan: Column) -> bool:
    """Whether a column has the values as they are in the documents."""
    if plan.how != "plain" or pa.types.is_map(plan.type):
        return False
    return family(column.type) == family(plan.type)
