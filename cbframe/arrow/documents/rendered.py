"""Columns as they are handed out: what is still ``{}`` or ``[]`` has types that every consumer takes.

No Parquet file has a struct without members, and Delta has no lists of nulls. So ``{}`` is JSON text in the
end, and items that are null everywhere are text. Types that have yet to be unified with others stay as they
are: there ``{}`` is below every object, and ``[]`` below every array.
"""

from __future__ import annotations

from collections.abc import Container

import numpy as np
import pyarrow as pa

from cbframe.arrow.documents.parse import as_lists, as_map
from cbframe.arrow.documents.written import with_items
from cbframe.json import reference


def rendered(table: pa.Table, declared: Container[str] = ()) -> pa.Table:
    """A table as it is handed out; columns that are `declared` stay as they are."""
    for at, field in enumerate(table.schema):
        kind = reference.rendered(field.type)
        if not kind.equals(field.type) and field.name not in declared:
            column = pa.chunked_array([_array(chunk, kind) for chunk in table.column(at).chunks], kind)
            table = table.set_column(at, field.with_type(kind), column)
    return table


def _array(array: pa.Array, kind: pa.DataType) -> pa.Array:
    have = array.type
    if have.equals(kind):
        return array
    if pa.types.is_null(have):
        return pa.nulls(len(array), kind)
    if pa.types.is_list(have):
        return with_items(array, _array(array.flatten(), kind.value_type), kind)
    if pa.types.is_map(have):
        lists = as_lists(array)
        names, values = (lists.values.field(at) for at in (0, 1))
        return as_map(lists, names, _array(values, kind.item_type), kind)
    missing = array.is_null()
    if not have.num_fields:
        return pa.array(["{}"]).take(pa.array(np.zeros(len(array), np.int64), mask=np.asarray(missing)))
    members = [_array(member, into.type) for member, into in zip(array.flatten(), kind, strict=True)]
    return pa.StructArray.from_arrays(members, fields=list(kind), mask=missing)
