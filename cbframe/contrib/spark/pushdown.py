"""Filters that Spark pushes down, as far as no document is left out that Spark would keep.

Spark compares columns, whose types its schema says; a scan compares the values of documents. So nothing is
pushed where both may differ: text that a number, a boolean or JSON text may have become, decimals, floats,
dates, and ``IS NULL``, which is also what does not fit the schema. Spark evaluates every filter again.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pyarrow as pa
from msgspec import DecodeError
from pyspark.sql.datasource import (
    EqualTo,
    Filter,
    GreaterThan,
    GreaterThanOrEqual,
    In,
    IsNotNull,
    LessThan,
    LessThanOrEqual,
    Not,
)

from cbframe.arrow.columns import KEY
from cbframe.arrow.documents.comparison import decoded
from cbframe.arrow.documents.filters import METADATA, make_filters
from cbframe.errors import ConfigurationError
from cbframe.json.typer import OURS

Written = tuple[tuple[str, ...], str, Any]
_OPERATORS: dict[type[Filter], str] = {
    EqualTo: "==",
    GreaterThan: ">",
    GreaterThanOrEqual: ">=",
    LessThan: "<",
    LessThanOrEqual: "<=",
    In: "in",
    IsNotNull: "is not",
}
_NEGATIVE = {"==": "!=", "in": "not in"}


def pushed(filters: Iterable[Filter], schema: pa.Schema) -> list[Written]:
    """Those of the filters that a scan can take, as ``filters=`` of it.

    Parameters
    ----------
    schema
        Of the frame.
    """
    found = []
    for each in filters:
        negative = isinstance(each, Not)
        written = _written(each.child if negative else each, schema)
        if written is not None and negative:
            path, op, value = written
            written = (path, _NEGATIVE[op], value) if op in _NEGATIVE else None
        if written is not None:
            found.append(written)
    return found


def _written(each: Filter, schema: pa.Schema) -> Written | None:
    op = _OPERATORS.get(type(each))
    if op is None:
        return None
    path = tuple(each.attribute)
    kind = _type_of(path, schema)
    if kind is None or (path[0].startswith(OURS) and (path[0] not in METADATA or op == "is not")):
        return None
    value = getattr(each, "value", None)
    values: tuple[Any, ...] = () if op == "is not" else (value,)
    if op == "in":
        values = tuple(each.value)
    if not all(_is_exact(kind, one, path, op) for one in values):
        return None
    try:
        make_filters([(path, op, value)])
    except ConfigurationError:
        return None
    return path, op, value


def _type_of(path: tuple[str, ...], schema: pa.Schema) -> pa.DataType | None:
    kind: pa.DataType = pa.struct(list(schema))
    for name in path:
        at = kind.get_field_index(name) if pa.types.is_struct(kind) else -1
        if at < 0:
            return None
        kind = kind.field(at).type
    return kind


def _is_exact(kind: pa.DataType, value: Any, path: tuple[str, ...], op: str) -> bool:
    """Whether every document that passes in Spark passes as a document."""
    if pa.types.is_boolean(kind):
        return isinstance(value, bool)
    if pa.types.is_integer(kind) or pa.types.is_float64(kind):
        return isinstance(value, int | float) and not isinstance(value, bool)
    if path == (KEY,):
        # Keys that are not UTF-8 are shown with backslashes.
        return isinstance(value, str) and op in ("==", "in") and "\\" not in value
    if not (pa.types.is_string(kind) and isinstance(value, str) and op in ("==", "in")):
        return False
    try:
        decoded(value)
    except DecodeError:
        return True  # no number, boolean, array or object is written like that
    return False
