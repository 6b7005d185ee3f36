"""Filters on columns that are typed already, and row groups that need not be read for them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cbframe.arrow.columns import COLLECTION_ID, KEY, METADATA_TYPES, OURS, REASON, VALUE
from cbframe.arrow.documents.filters import Filters, Predicate, compare
from cbframe.arrow.documents.projection import Path

_OURS = {KEY, VALUE, REASON, COLLECTION_ID, "_cb_scope", "_cb_collection", "_cb_rest", *METADATA_TYPES}


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
            whole &= compare(_cells(table, predicate.path), predicate)
        passed |= whole
    return passed


def _cells(table: pa.Table, path: Path) -> pa.ChunkedArray:
    name = column_of(path)
    column = table[name] if name in table.column_names else None
    for member in path[1:]:
        at = -1
        if column is not None and pa.types.is_struct(column.type):
            at = column.type.get_field_index(member)
        column = None if at < 0 else pc.struct_field(column, [at])
    return pa.chunked_array([pa.nulls(len(table))]) if column is None else column


def may_pass(filters: Filters, group: pq.RowGroupMetaData) -> bool:
    """Whether a row group may have rows that pass, as its statistics tell.

    A file may hold numbers where the whole snapshot has text: what is of another kind than the filter's
    value decides nothing.
    """
    places = {group.column(at).path_in_schema: at for at in range(group.num_columns)}
    return any(
        all(
            _may_hold(each, group, places.get(".".join((column_of(each.path), *each.path[1:]))))
            for each in some
        )
        for some in filters
    )


def _may_hold(predicate: Predicate, group: pq.RowGroupMetaData, at: int | None) -> bool:
    column = None if at is None else group.column(at)
    statistics = None if column is None else column.statistics
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
