"""Arrays of nested types: made of buffers, taken apart, and brought to other types.

pyarrow casts scalars, but no structs, lists or maps whose members differ, and what it offers for maps copies
their entries. Here nested arrays are rebuilt from their parts: validity and offsets stay as they are, only
what is inside is converted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


def is_list(kind: pa.DataType) -> bool:
    """Whether it is any of Arrow's lists."""
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def array_of(kind: pa.DataType, parts: tuple[int, int, list[Any], list[Any]]) -> pa.Array:
    """An array of what the compiled core has built."""
    length, nulls, buffers, children = parts
    if pa.types.is_null(kind):
        return pa.nulls(length)
    inner: list[pa.Array] | None = None
    if pa.types.is_struct(kind):
        inner = [array_of(member.type, each) for member, each in zip(kind, children, strict=True)]
    elif pa.types.is_map(kind):
        inner = [array_of(pa.struct([kind.key_field, kind.item_field]), children[0])]
    elif pa.types.is_list(kind):
        inner = [array_of(kind.value_type, children[0])]
    held = [None if buffer is None else pa.py_buffer(buffer) for buffer in buffers]
    return pa.Array.from_buffers(kind, length, held, nulls, children=inner)


def as_lists(maps: pa.Array) -> pa.Array:
    """Maps as lists of names and values."""
    kind = maps.type
    return maps.cast(pa.list_(pa.struct([("key", kind.key_type), ("value", kind.item_type)])))


def as_map(lists: pa.Array, names: pa.Array, values: pa.Array, kind: pa.DataType) -> pa.Array:
    """A map with the entries that lists have places for."""
    entries = pa.StructArray.from_arrays([names, values], fields=[kind.key_field, kind.item_field])
    return _with_values(lists, entries, kind)


def _with_values(array: pa.Array, values: pa.Array, kind: pa.DataType) -> pa.Array:
    """Lists like those of an array, of other values: one for each that ``array.values`` has."""
    validity, offsets = array.buffers()[:2]
    return pa.Array.from_buffers(
        kind, len(array), [validity, offsets], array.null_count, array.offset, [values]
    )


def with_items(array: pa.Array, items: pa.Array, kind: pa.DataType) -> pa.Array:
    """Lists like those of an array, of other items: one for each that ``array.flatten()`` has."""
    lengths = pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False)
    large = pa.types.is_large_list(kind)
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int64() if large else pa.int32())
    make = pa.LargeListArray if large else pa.ListArray
    return make.from_arrays(offsets, items, type=kind, mask=array.is_null())


def with_members(array: pa.Array, members: Sequence[pa.Array], kind: pa.DataType) -> pa.Array:
    """Structs that are null where those of an array are, of other members."""
    mask = array.is_null() if array.null_count else None
    return pa.StructArray.from_arrays(members, fields=list(kind), mask=mask)


def member_of(column: pa.ChunkedArray, name: str) -> pa.ChunkedArray | None:
    """What objects have under a name: a field of structs, a value of maps; None if no object can have it."""
    kind = column.type
    if pa.types.is_map(kind):
        return pc.map_lookup(column, pa.scalar(name, kind.key_type), "first")
    at = kind.get_field_index(name) if pa.types.is_struct(kind) else -1
    return None if at < 0 else pc.struct_field(column, [at])


def recast(array: pa.Array, kind: pa.DataType) -> pa.Array:
    """An array as another type: null as anything, structs member by member, scalars by a cast.

    Members that a struct lacks are null. A struct without members and the text ``{}``, which stands for it in
    the output, become each other.
    """
    have = array.type
    if have.equals(kind):
        return array
    if array.null_count == len(array) or pa.types.is_null(kind):
        return pa.nulls(len(array), kind)
    if pa.types.is_map(have):
        lists = as_lists(array)
        names, values = (lists.values.field(at) for at in (0, 1))
        return as_map(lists, names, recast(values, kind.item_type), kind)
    if pa.types.is_list(have) or pa.types.is_large_list(have):
        return _with_values(array, recast(array.values, kind.value_type), kind)
    if pa.types.is_struct(have) and pa.types.is_struct(kind):
        members = {field.name: values for field, values in zip(have, array.flatten(), strict=True)}
        return with_members(
            array,
            [
                recast(members[field.name], field.type)
                if field.name in members
                else pa.nulls(len(array), field.type)
                for field in kind
            ],
            kind,
        )
    if pa.types.is_struct(kind):
        valid = pc.is_valid(array)
        return pa.Array.from_buffers(kind, len(array), [valid.buffers()[1]], offset=valid.offset)
    if pa.types.is_struct(have):
        missing = array.is_null().to_numpy(zero_copy_only=False)
        return pa.array(["{}"]).take(pa.array(np.zeros(len(array), np.int64), mask=missing))
    # What becomes a double has an exact one; a safe cast refuses all integers beyond 2**53.
    return array.cast(kind, safe=not pa.types.is_floating(kind))
