"""Maps as lists and back, and the members of objects in columns."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc


def as_map(lists: pa.Array, names: pa.Array, values: pa.Array, kind: pa.DataType) -> pa.Array:
    """A map with the entries that lists have places for."""
    entries = pa.StructArray.from_arrays([names, values], fields=[kind.key_field, kind.item_field])
    validity, offsets = lists.buffers()[:2]
    return pa.Array.from_buffers(
        kind, len(lists), [validity, offsets], lists.null_count, lists.offset, [entries]
    )


def as_lists(array: pa.Array) -> pa.Array:
    """Maps as lists of names and values."""
    kind = array.type
    return array.cast(pa.list_(pa.struct([("key", kind.key_type), ("value", kind.item_type)])))


def member_of(column: pa.ChunkedArray, name: str) -> pa.ChunkedArray | None:
    """What objects have under a name: a field of structs, a value of maps; None if no object can have it."""
    kind = column.type
    if pa.types.is_map(kind):
        return pc.map_lookup(column, pa.scalar(name, kind.key_type), "first")
    at = kind.get_field_index(name) if pa.types.is_struct(kind) else -1
    return None if at < 0 else pc.struct_field(column, [at])
