"""Conditions of query engines as filters of a scan: only what no row fails that the engine keeps.

An engine compares columns, a filter what documents hold (:mod:`cbframe.arrow.filters`). They differ in text
columns, which hold numbers, too, as text; in values that do not fit a column and are null there; and where
an engine rounds. A condition is taken as far as every row that passes it passes the filter; whoever asks
evaluates all of it again.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import pyarrow as pa
from msgspec import DecodeError

from cbframe.arrow.columns import KEY
from cbframe.arrow.filters import METADATA, decoded, make_filters
from cbframe.errors import ConfigurationError
from cbframe.json.layout import Path
from cbframe.json.typer import OURS

Written: TypeAlias = tuple[Path, str, Any]
"""A filter as scans take it: path, operator, value."""
_NEGATIVE = {"==": "!=", "in": "not in"}


def written(path: Path, kind: pa.DataType | None, op: str, value: Any, *, negative: bool) -> Written | None:
    """The filter of a comparison with a column of a type, or of its opposite; None if there is none."""
    if kind is None or (path[0].startswith(OURS) and (path[0] not in METADATA or op == "is not")):
        return None
    values: tuple[Any, ...] = () if op == "is not" else (value,)
    if op == "in":
        values = tuple(value)
    if not all(_is_exact(kind, one, path, op) for one in values) or (negative and op not in _NEGATIVE):
        return None
    try:
        make_filters([(path, op, value)])
    except ConfigurationError:
        return None
    return path, _NEGATIVE[op] if negative else op, value


def type_at(path: Path, kind: pa.DataType | None) -> pa.DataType | None:
    """The type of a member, or of a member of that; None if there is none."""
    for name in path:
        at = kind.get_field_index(name) if kind is not None and pa.types.is_struct(kind) else -1
        kind = None if kind is None or at < 0 else kind.field(at).type
    return kind


def _is_exact(kind: pa.DataType, value: Any, path: Path, op: str) -> bool:
    """Whether every document that passes in the engine passes as a document."""
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
