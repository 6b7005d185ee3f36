"""Columns of early batches, brought to the types that later batches made necessary."""

from __future__ import annotations

from collections.abc import Callable

import pyarrow as pa
import pyarrow.compute as pc

_EXACT = 1 << 53


def lossless(array: pa.Array, wide: pa.DataType, minus_zero: Callable[[], bool]) -> bool:
    """Whether :func:`promote` makes of a column what parsing its documents again would make.

    Parameters
    ----------
    array
        The column.
    wide
        A type that its values have been found to fit, as far as they were looked at.
    minus_zero
        Whether a document may hold the integer ``-0``, which becomes -0.0 only where the parser
        knows that it makes doubles.
    """
    narrow = array.type
    if pa.types.is_integer(narrow) and pa.types.is_floating(wide):
        bounds = pc.min_max(array).as_py()
        if bounds["min"] is None:
            return True
        if bounds["min"] < -_EXACT or bounds["max"] > _EXACT:
            return False
        return bounds["min"] > 0 or bounds["max"] < 0 or not minus_zero()
    if pa.types.is_list(narrow):
        return lossless(array.values, wide.value_type, minus_zero)
    if pa.types.is_struct(narrow):
        return all(
            lossless(array.field(index), wide.field(narrow.field(index).name).type, minus_zero)
            for index in range(narrow.num_fields)
        )
    return True


def promote(array: pa.Array, wide: pa.DataType) -> pa.Array:
    """Widen a column: null to anything, integers to doubles, structs by the members that they lack."""
    narrow = array.type
    if narrow.equals(wide):
        return array
    if pa.types.is_null(narrow):
        return pa.nulls(len(array), wide)
    if pa.types.is_integer(narrow):
        return array.cast(wide)
    if pa.types.is_list(narrow):
        validity, offsets = array.buffers()[:2]
        items = promote(array.values, wide.value_type)
        return pa.Array.from_buffers(
            wide, len(array), [validity, offsets], array.null_count, array.offset, [items]
        )
    members = []
    for member in wide:
        index = narrow.get_field_index(member.name)
        if index < 0:
            members.append(pa.nulls(len(array), member.type))
        else:
            members.append(promote(array.field(index), member.type))
    mask = array.is_null() if array.null_count else None
    return pa.StructArray.from_arrays(members, fields=list(wide), mask=mask)
