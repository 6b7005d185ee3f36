"""Filters on columns that are typed already, and row groups that need not be read for them."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cbframe.arrow.columns import COLLECTION_ID, KEY, METADATA_TYPES, OURS, REASON, VALUE
from cbframe.arrow.documents.filters import Filters, Predicate, compare
from cbframe.arrow.documents.plan import Place
from cbframe.arrow.documents.projection import Path
from cbframe.arrow.documents.result import REST
from cbframe.errors import ConfigurationError

_OURS = {KEY, VALUE, REASON, COLLECTION_ID, "_cb_scope", "_cb_collection", REST, *METADATA_TYPES}


def column_of(path: Path) -> str:
    """The column that has a field: of metadata, or of documents."""
    name = path[0]
    return name + "_" if name.startswith(OURS) and name not in _OURS else name


def passing(table: pa.Table, filters: Filters) -> npt.NDArray[np.bool_]:
    """Which rows pass. A field that no document has passes no filter."""
    passed = np.zeros(len(table), bool)
    for group in filters:
        whole = np.ones(len(table), bool)
        for predicate in group:
            cells = _cells(table, predicate.path)
            whole &= compare(cells, _as_bytes(predicate) if pa.types.is_binary(cells.type) else predicate)
        passed |= whole
    return passed


def _as_bytes(predicate: Predicate) -> Predicate:
    """Keys are bytes where one of them is no text; the order is that of text."""

    def encoded(value: Any) -> Any:
        return value.encode("utf-8", "surrogatepass") if isinstance(value, str) else value

    value = predicate.value
    return replace(
        predicate, value=tuple(map(encoded, value)) if isinstance(value, tuple) else encoded(value)
    )


def _cells(table: pa.Table, path: Path) -> pa.ChunkedArray:
    name = column_of(path)
    column = table[name] if name in table.column_names else None
    for member in path[1:]:
        at = -1
        if column is not None and pa.types.is_struct(column.type):
            at = column.type.get_field_index(member)
        column = None if at < 0 else pc.struct_field(column, [at])
    return pa.chunked_array([pa.nulls(len(table))]) if column is None else column


def may_pass(filters: Filters, group: pq.RowGroupMetaData, rewritten: Collection[Place]) -> bool:
    """Whether a row group may have rows that pass, as its statistics tell.

    A file may hold numbers where the whole snapshot has text: what is of another kind than the filter's
    value decides nothing.

    Parameters
    ----------
    rewritten
        Where text of the file is other text in the whole snapshot.
    """
    names = [group.column(at).path_in_schema for at in range(group.num_columns)]

    def may_hold(predicate: Predicate) -> bool:
        place = column_of(predicate.path), *predicate.path[1:]
        name = ".".join(place)
        # A field "a.b" and the field b of a have one name there.
        told = place not in rewritten and names.count(name) == 1
        return not told or _may_hold(predicate, group.column(names.index(name)))

    return any(all(map(may_hold, some)) for some in filters)


def _may_hold(predicate: Predicate, column: pq.ColumnChunkMetaData) -> bool:
    statistics = column.statistics
    if statistics is None or not statistics.has_min_max:
        return True
    low, high = statistics.min, statistics.max
    values: tuple[Any, ...] = predicate.value if predicate.op in ("in", "not in") else (predicate.value,)
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
    if isinstance(low, bool) or isinstance(value, bool):
        return False
    return (isinstance(low, str) and isinstance(value, str)) or (
        isinstance(low, int | float) and isinstance(value, int | float)
    )


def refuse_rest(rest: pa.ChunkedArray, names: Collection[str], file: str) -> None:
    """See that documents have none of some fields beyond the columns of their file.

    Raises
    ------
    ConfigurationError
        One has: it would look as if it had not.
    """
    for name in names:
        start = json.dumps(name, ensure_ascii=False) + ":"
        suspects = rest.filter(pc.match_substring(rest, start))
        # Members have names, too.
        if any(name in json.loads(text) for text in suspects.to_pylist()):
            raise ConfigurationError(
                f"{name!r} is a column of some files only: documents in {file} have it in {REST}",
                hint=f"read all columns and look into {REST}, or make the snapshot anew with columns=",
            )
