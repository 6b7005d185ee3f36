"""Strings that are dates and times, as timestamps: only where that was asked for."""

from __future__ import annotations

from collections.abc import Collection

import pyarrow as pa
import pyarrow.compute as pc

from cbframe.arrow.columns import OURS
from cbframe.errors import ConfigurationError

_DAY = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}"
_TIME = r"[T ][0-9]{2}:[0-9]{2}(:[0-9]{2}(\.[0-9]{1,9})?)?"
_ZONE = r"(Z|[+-][0-9]{2}(:?[0-9]{2})?)"
_LOCAL = f"{_DAY}({_TIME})?$"
_ABSOLUTE = f"{_DAY}{_TIME}{_ZONE}$"
_FINE = r"\.[0-9]{7}"


def parse_dates(table: pa.Table, names: Collection[str] | None) -> pa.Table:
    """Make timestamps of the columns all of whose strings are ISO 8601 dates or times.

    With an offset everywhere they are moments, ``timestamp[us, UTC]``; without one anywhere they are
    what a clock showed, ``timestamp[us]``; with more than six digits of a second ``ns`` in the place of
    ``us``. Where some have one and some have not, where one is no date (the 30th of February), or
    beyond the type, the column stays as it is.

    Parameters
    ----------
    names
        Columns to look at; None for all.

    Raises
    ------
    ConfigurationError
        There is no such column.
    """
    missing = [name for name in names or () if name not in table.column_names]
    if missing:
        raise ConfigurationError(
            f"parse_dates= names {missing[0]!r}, which is no column",
            hint='name columns as they are in the result; those inside of objects with nested="flatten"',
        )
    for at, name in enumerate(table.column_names):
        wanted = not name.startswith(OURS) if names is None else name in names
        if wanted and pa.types.is_string(table[name].type):
            parsed = _parsed(table[name])
            if parsed is not None:
                table = table.set_column(at, name, parsed)
    return table


def _parsed(column: pa.ChunkedArray) -> pa.ChunkedArray | None:
    if column.null_count == len(column):
        return None
    unit = "ns" if _any(column, _FINE) else "us"
    for pattern, kind in ((_LOCAL, pa.timestamp(unit)), (_ABSOLUTE, pa.timestamp(unit, "UTC"))):
        if pc.all(pc.match_substring_regex(column, pattern)).as_py():
            try:
                return column.cast(kind)
            except pa.ArrowInvalid:
                return None
    return None


def _any(column: pa.ChunkedArray, pattern: str) -> bool:
    return bool(pc.any(pc.match_substring_regex(column, pattern)).as_py())
