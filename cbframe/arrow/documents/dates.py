"""Strings that are dates and times, as timestamps: only where that was asked for."""

from __future__ import annotations

from collections.abc import Collection

import pyarrow as pa
import pyarrow.compute as pc

from cbframe.errors import ConfigurationError
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
                self._left[name] = _fitting(column, self._left.get(name, list(_KINDS)))

    def apply(self, table: pa.Table) -> pa.Table:
        """A table that was looked at, with timestamps."""
        for at, name in enumerate(table.column_names):
            if left := self._left.get(name):
                table = table.set_column(at, name, table[name].cast(left[0][1]))
        return table


def _fitting(column: pa.ChunkedArray, kinds: list[tuple[str, pa.DataType]]) -> list[tuple[str, pa.DataType]]:
    matching = {
        pattern: pc.all(pc.match_substring_regex(column, pattern)).as_py()
        for pattern in dict.fromkeys(pattern for pattern, _ in kinds)
    }
    return [(pattern, kind) for pattern, kind in kinds if matching[pattern] and _casts(column, kind)]


def _casts(column: pa.ChunkedArray, kind: pa.DataType) -> bool:
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
