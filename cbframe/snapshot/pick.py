"""Filters on the files of a snapshot: rows that pass, and row groups that need not be read.

Each file is compared as it was written: numbers that became text with a later file are still numbers in
theirs. The rule is that of :mod:`cbframe.arrow.documents.filters`; where a file no longer has what it needs,
and a row depends on that, there is an error.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from msgspec import DecodeError

from cbframe.arrow.columns import COLLECTION_ID, DATATYPE, KEY, METADATA_TYPES, is_json
from cbframe.arrow.documents.comparison import Mask, compared, decoded, family, holds, value_at
from cbframe.arrow.documents.filters import (
    Filters,
    Moment,
    Predicate,
    family_of,
    never,
    nouns,
    predicates,
    unknown,
)
from cbframe.arrow.documents.kinds import Kind, is_text
from cbframe.arrow.documents.parse import member_of
from cbframe.arrow.documents.unify import Columns
from cbframe.errors import ConfigurationError
from cbframe.json.layout import Path
from cbframe.json.typer import OURS, REASON, REST, VALUE

_OURS = {KEY, VALUE, REASON, COLLECTION_ID, "_cb_scope", "_cb_collection", REST, *METADATA_TYPES}
_TEXT = ("string", "moment", "clock")
_EVERY = ("boolean", "number", *_TEXT, "array", "object")


def column_of(path: Path) -> str:
    """The column that has a field: of metadata, or of documents."""
    name = path[0]
    return name + "_" if name.startswith(OURS) and name not in _OURS else name


def kind_at(columns: Columns, path: Path) -> tuple[Kind, int] | None:
    """What a file holds of a field; None of one that it does not have."""
    name = column_of(path)
    if name not in columns.schema.names:
        return None
    kind = columns.select([name]).kinds()[name]
    for length in range(1, len(path)):
        if kind.json:
            return kind, length
        if pa.types.is_map(kind.type):
            if kind.item is None or not pa.types.is_string(kind.type.key_type):
                return kind, length
            kind = kind.item
        elif path[length] in kind.members:
            kind = kind.members[path[length]]
        else:
            return None
    return kind, len(path)


def families(kind: Kind) -> tuple[str, ...]:
    """The kinds of values that a field may have had."""
    if kind.json:
        return _EVERY
    if is_text(kind.type):
        return ("number",) if kind.digits else _EVERY if kind.mixed else _TEXT
    if pa.types.is_temporal(kind.type):
        return _TEXT
    if pa.types.is_binary(kind.type):
        return _EVERY
    held = family(kind.type)
    return () if held is None else (held,)


class FileFilter:
    """Filters on the rows of one version of a snapshot."""

    def __init__(self, filters: Filters, version: int, every: Sequence[Columns]) -> None:
        self._filters = filters
        self._version = version
        for predicate in self.of_fields():
            places = [kind_at(columns, predicate.path) for columns in every]
            kinds = [place[0] for place in places if place is not None]
            if every and not kinds:
                raise unknown(predicate)
            held = dict.fromkeys(each for kind in kinds for each in families(kind))
            # Some values are gone, of whatever kind.
            error = None if any(kind.lost for kind in kinds) else never(predicate, list(held))
            if error is not None:
                raise error

    def of_fields(self) -> list[Predicate]:
        """Comparisons that are not about metadata."""
        return [each for each in predicates(self._filters) if not each.of_metadata]

    def metadata(self) -> list[str]:
        """Columns of metadata that are needed."""
        names = [each.path[0] for each in predicates(self._filters) if each.of_metadata]
        if any(each.op == "is" for each in self.of_fields()):
            names.append(DATATYPE)
        return list(dict.fromkeys(names))

    def documents(self, columns: Columns) -> list[str]:
        """Columns of a file that are needed."""
        names = [column_of(each.path) for each in self.of_fields()]
        if any(each.op == "is" for each in self.of_fields()):
            names.append(REASON)
        return [name for name in dict.fromkeys(names) if name in columns.schema.names]

    def passing(self, table: pa.Table, columns: Columns) -> Mask:
        """Which rows of a file pass."""
        passed = np.zeros(len(table), bool)
        for group in self._filters:
            whole = np.ones(len(table), bool)
            for predicate in group:
                whole &= self._holding(table, columns, predicate)
            passed |= whole
        return passed

    def may_pass(self, group: pq.RowGroupMetaData, columns: Columns) -> bool:
        """Whether a row group may have rows that pass, as its statistics tell."""
        names = [group.column(at).path_in_schema for at in range(group.num_columns)]

        def may_hold(predicate: Predicate) -> bool:
            if predicate.of_metadata:
                return _may_hold(predicate, group.column(names.index(predicate.path[0])))
            place = kind_at(columns, predicate.path)
            name = ".".join((column_of(predicate.path), *predicate.path[1:]))
            # A field "a.b" and the field b of a have one name there.
            if place is None or names.count(name) != 1:
                return True
            kind = place[0]
            if kind.json or kind.mixed or kind.digits or kind.lost or _is_rounded(kind.type):
                return True
            return _may_hold(predicate, group.column(names.index(name)))

        return any(all(map(may_hold, some)) for some in self._filters)

    def _holding(self, table: pa.Table, columns: Columns, predicate: Predicate) -> Mask:
        if predicate.of_metadata:
            cells = table[predicate.path[0]]
            if predicate.path[0] == KEY:
                cells = cells.cast(pa.binary())
            return compared(cells, predicate)
        place = kind_at(columns, predicate.path)
        if place is None:
            found = np.full(len(table), predicate.op == "is")
        else:
            kind, length = place
            cells = _cells(table, predicate.path[:length])
            found = self._compared(cells, kind, predicate, predicate.path[length:])
        if predicate.op == "is":
            # What is no document has no field that could be null.
            sound = table[REASON].is_null() if REASON in table.column_names else None
            found &= is_json(table[DATATYPE].to_numpy()) if sound is None else sound.to_numpy()
        return found

    def _compared(self, cells: pa.ChunkedArray, kind: Kind, predicate: Predicate, rest: Path) -> Mask:
        if kind.lost:
            raise self._refusal(predicate, "no longer has all values of it as they were in the documents")
        if kind.json:
            return self._in_text(cells, kind, predicate, rest)
        if predicate.op in ("is", "is not"):
            return compared(cells, predicate)
        if pa.types.is_dictionary(kind.type):
            cells = cells.cast(kind.type.value_type)
        if kind.digits or kind.mixed:
            return self._in_text(cells, kind, predicate)
        if pa.types.is_nested(kind.type):
            # None of them equals a scalar.
            valid: Mask = cells.is_valid().to_numpy()
            return valid & predicate.negative
        if pa.types.is_temporal(kind.type):
            return self._in_time(cells, predicate)
        if _is_rounded(kind.type) and any(family_of(each) == "number" for each in predicate.literals):
            raise self._refusal(predicate, f"has it as {kind.type}, rounded")
        if pa.types.is_decimal(kind.type) and kind.type.scale:
            # Numbers with a fraction are doubles.
            cells = pa.chunked_array([pa.array(map(_double, cells.to_pylist()), pa.float64())])
        # Bytes, which are declared, are the text of any value.
        if pa.types.is_binary(kind.type) or (family(kind.type) is None and not pa.types.is_null(kind.type)):
            raise self._refusal(predicate, f"has it as {kind.type}")
        return compared(cells, predicate)

    def _in_text(self, cells: pa.ChunkedArray, kind: Kind, predicate: Predicate, rest: Path = ()) -> Mask:
        """Text of which each value has to be looked at."""
        found = np.zeros(len(cells), bool)
        for row, text in enumerate(cells.to_pylist()):
            value = decoded(text) if text is not None and (kind.json or kind.digits) else text
            value = value_at(value, rest)
            found[row] = holds(value, predicate)
            other = _otherwise(value) if kind.mixed and isinstance(value, str) else None
            if other is not None and holds(other, predicate) != found[row]:
                raise self._refusal(predicate, 'has it as text, in which the number 60 and "60" are the same')
        return found

    def _in_time(self, cells: pa.ChunkedArray, predicate: Predicate) -> Mask:
        if any(isinstance(each, str) for each in predicate.literals):
            raise self._refusal(
                predicate,
                f"has it as {cells.type}, and no longer as text",
                "compare it with a datetime, with a time zone where it has one",
            )
        if pa.types.is_date(cells.type):
            cells = cells.cast(pa.timestamp("s"))
        elif not pa.types.is_timestamp(cells.type):
            raise self._refusal(predicate, f"has it as {cells.type}")
        return compared(cells, predicate)

    def _refusal(self, predicate: Predicate, why: str, hint: str | None = None) -> ConfigurationError:
        name = ".".join(predicate.path)
        asked = nouns(list(dict.fromkeys(map(family_of, predicate.literals)))) if predicate.value else "null"
        return ConfigurationError(
            f"filters= compares {name!r} with {asked}, and version {self._version} of the snapshot {why}",
            hint=hint
            or f"read {name!r} without the filter and compare it there, use read_bucket(filters=...), which "
            'compares documents, or write the snapshot again (mode="overwrite") with on_conflict="json", '
            "which keeps what each value is",
        )


def _is_rounded(kind: pa.DataType) -> bool:
    """Whether numbers of a column are not those of the documents."""
    return bool(pa.types.is_floating(kind) and not pa.types.is_float64(kind))


def _otherwise(text: str) -> Any:
    """The value that text may have been in the document if it was no string; None if there is none."""
    if text[:1] not in _BEGINNINGS:
        return None
    try:
        return decoded(text)
    except DecodeError:
        return None


_BEGINNINGS = frozenset("-0123456789tf{[")


def _double(value: Any) -> float | None:
    return None if value is None else float(value)


def _cells(table: pa.Table, path: Path) -> pa.ChunkedArray:
    column = table[column_of(path)]
    for member in path[1:]:
        inside = member_of(column, member)
        assert inside is not None, "the file has it"
        column = inside
    return column


def _may_hold(predicate: Predicate, column: pq.ColumnChunkMetaData) -> bool:
    statistics = column.statistics
    if statistics is None or not statistics.has_min_max:
        return True
    low, high = statistics.min, statistics.max
    values = predicate.literals
    if not all(_like(low, value) for value in values):
        return True
    match predicate.op:
        case "==" | "in":
            return any(bool(low <= value <= high) for value in values)
        case "<":
            return bool(low < values[0])
        case "<=":
            return bool(low <= values[0])
        case ">":
            return bool(high > values[0])
        case ">=":
            return bool(high >= values[0])
        case _:
            return True


def _like(low: Any, value: Any) -> bool:
    if isinstance(low, bool) or isinstance(value, bool | Moment):
        return False
    return (isinstance(low, str) and isinstance(value, str)) or (
        isinstance(low, int | float) and isinstance(value, int | float)
    )


def refuse_rest(rest: pa.ChunkedArray, names: Collection[str], file: str) -> None:
    """See that documents have none of some fields beyond the columns of their file."""
    for name in names:
        start = json.dumps(name, ensure_ascii=False) + ":"
        suspects = rest.filter(pc.match_substring(rest, start))
        # Members have names, too.
        if any(name in json.loads(text) for text in suspects.to_pylist()):
            raise ConfigurationError(
                f"{name!r} is a column of some files only: documents in {file} have it in {REST}",
                hint=f"read all columns and look into {REST}, or make the snapshot again with columns=",
            )
