"""Columns of early batches, brought to the types that later batches made necessary."""

from __future__ import annotations

import pyarrow as pa


def lossless(narrow: pa.DataType, wide: pa.DataType) -> bool:
    """Whether :func:`promote` can go from one type to the other.

    Integers that became doubles are not promoted but parsed again: the parser knows ``-0``, and
    whether a double is exact is judged in one place only.
    """
    if pa.types.is_integer(narrow):
        return bool(pa.types.is_integer(wide))
    if pa.types.is_list(narrow):
        return lossless(narrow.value_type, wide.value_type)
    if pa.types.is_struct(narrow):
        return all(lossless(member.type, wide.field(member.name).type) for member in narrow)
    return True


def promote(array: pa.Array, wide: pa.DataType) -> pa.Array:
    """Widen a column: null to anything, structs by the members that they lack."""
    narrow = array.type
    if narrow.equals(wide):
        return array
    if pa.types.is_null(narrow):
        return pa.nulls(len(array), wide)
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
