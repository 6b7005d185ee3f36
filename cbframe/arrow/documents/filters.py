"""Filters: which documents are wanted, decided before anything else is made of them.

A filter is written as pyarrow and pandas write it for Parquet: ``[("type", "==", "hotel"),
("geo.alt", ">", 100)]``, all of which must hold; or a list of such lists, one of which must. The name is
that of a field: ``"geo.alt"`` or ``("geo", "alt")`` is a member, ``("geo.alt",)`` a field with a dot in its
name. ``_cb_key`` and the other columns of metadata can be named whether they are read or not.

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
datetime without a zone    text such as            as what a clock showed; a day without a time is its
or date                    2024-05-01 12:00        midnight
bytes                      ``_cb_key``             a str is the text of a key
``("x", "is", None)``      anything                null and missing fields alike
``("x", "is not", None)``  anything                the opposite
=========================  ======================  =================================================

=============================================  ============================================================
a value that is                                passes
=============================================  ============================================================
null or missing                                ``is`` only
of another kind than the filter's              ``!=``, ``not in`` and ``is not``
in a document of which other documents hold    as it does by itself: each value is compared as what it is
values of another kind
no JSON object (binary, an array)              no filter on a field; those on ``_cb_…`` as any document
=============================================  ============================================================

Instead of an answer there is a :class:`~cbframe.ConfigurationError` where

* the field is in none of the documents, and there is one at least (partitions, which are typed from a
  sample, warn instead);
* the comparison can never be true: the field holds values, and none is of the filter's kind (``==``,
  ``<``, ``<=``, ``>``, ``>=``, ``in``; an empty list is just never true);
* a snapshot no longer has what the rule needs: text cannot tell the number 60 from the string "60" where the
  field holds both, a timestamp cannot tell how it was written, a float32 was rounded. The message says
  how to read such a field.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from math import isnan
from typing import Any

import numpy as np
import pyarrow as pa

from cbframe.arrow.columns import COLLECTION_ID, KEY, METADATA_TYPES, OPCODE, XATTRS
from cbframe.arrow.keys import key_of_text
from cbframe.errors import ConfigurationError
from cbframe.json.layout import Path, path_of
from cbframe.json.typer import REASON, VALUE

ORDER = ("<", "<=", ">", ">=")
SETS = ("in", "not in")
NULLS = ("is", "is not")
OPERATORS = ("==", "!=", *ORDER, *SETS, *NULLS)
NAMES = ("_cb_scope", "_cb_collection")
METADATA: dict[str, pa.DataType] = {
    KEY: pa.binary(),
    **{name: kind for name, kind in METADATA_TYPES.items() if name != XATTRS},
    **dict.fromkeys(NAMES, pa.string()),
}
"""Columns of metadata that filters can name, whether they are read or not."""
_RESERVED = {VALUE, REASON, XATTRS, OPCODE, COLLECTION_ID, "_cb_rest"}
_HINT = 'write filters=[("type", "==", "hotel"), ("geo.alt", ">", 100)], or a list of such lists'
_LARGEST = 5000
"""Digits of a Decimal."""
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


Filters = tuple[tuple[Predicate, ...], ...]
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


def unknown(predicate: Predicate) -> ConfigurationError:
    """The error for a field that is nowhere."""
    return ConfigurationError(
        f"filters= names {'.'.join(predicate.path)!r}, which no document has",
        hint='read_schema() lists the fields; a member is "geo.lat" or ("geo", "lat"), '
        'a name with a dot in it ("geo.lat",)',
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


_VALUES = "values are numbers, text, True or False, Decimal, date and datetime"


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
