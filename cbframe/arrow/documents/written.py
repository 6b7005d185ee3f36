"""Columns as text and as JSON text, column by column in C++.

Numbers are written as Python writes them: ``1``, ``0.5``, ``100.0``, ``1e+22``, the fewest digits
that read back as the same double. Moments are ISO 8601, in UTC where they have a time zone:
``2026-01-02T03:04:05.5Z``. JSON has no blanks, no escapes but those that it must have, and no members
that are null: a null and a missing member are the same in a struct. What
is JSON text already stays as it is, also inside of other values.
"""

from __future__ import annotations

from collections.abc import Container, Iterator

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cbframe.arrow.documents.kinds import Kind, as_lists, as_map, decoded
from cbframe.json import reference
from cbframe.json.layout import is_list

_ENCODE = msgspec.json.Encoder().encode
_MOST = 4 << 20
"""Bytes to be converted at once: text may be several hundred times as long, and 2 GiB is the end."""
_ESCAPED = r'["\\\x00-\x1f]'
_WHOLE = r"^(-?[0-9]+)$"
_EXPONENT = r"e|0\.0000"
"""Doubles for which Arrow begins to use an exponent earlier, or later, than Python; and a few more."""


def pieces(array: pa.Array) -> Iterator[pa.Array]:
    """An array in pieces that are small enough to become text."""
    if array.nbytes <= _MOST or len(array) < 2:
        yield array
    else:
        middle = len(array) // 2
        yield from pieces(array[:middle])
        yield from pieces(array[middle:])


def with_items(array: pa.Array, items: pa.Array, kind: pa.DataType) -> pa.Array:
    """Lists like those of an array, of other items: one for each that ``array.flatten()`` has."""
    lengths = pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False)
    large = pa.types.is_large_list(kind)
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int64() if large else pa.int32())
    make = pa.LargeListArray if large else pa.ListArray
    return make.from_arrays(offsets, items, type=kind, mask=array.is_null())


def as_text(array: pa.Array) -> pa.Array:
    """Scalars as text: strings unchanged."""
    kind = array.type
    if pa.types.is_dictionary(kind):
        return as_text(array.cast(kind.value_type))
    if pa.types.is_floating(kind):
        return _doubles(array.cast(pa.float64()))
    if pa.types.is_timestamp(kind):
        return _moments(array)
    if pa.types.is_decimal(kind) and kind.scale:
        # Arrow writes an exponent where there are many zeros, and that of version 16 is no JSON.
        return pa.array([None if each is None else f"{each:f}" for each in array.to_pylist()], pa.string())
    return array.cast(pa.string())


def as_json(array: pa.Array, kind: Kind) -> pa.Array:
    """Any values as JSON text; null where they are null."""
    if array.null_count == len(array):
        return pa.nulls(len(array), pa.string())
    if kind.json:
        return array
    if pa.types.is_dictionary(kind.type):
        return as_json(array.cast(kind.type.value_type), decoded(kind))
    if pa.types.is_struct(kind.type):
        return _objects(array, kind)
    if pa.types.is_map(kind.type):
        return _maps(array, kind.item or _bare(kind.type.item_type))
    if kind.item is not None:
        items = pc.fill_null(as_json(array.flatten(), kind.item), "null")
        return _joined("[", pc.binary_join(with_items(array, items, _TEXTS), ","), "]")
    text = as_text(array)
    return text if _is_token(kind.type) else _quoted(text)


_TEXTS = pa.list_(pa.string())


def _objects(array: pa.Array, kind: Kind) -> pa.Array:
    # What is null in there is left out; what is null itself is dealt with last.
    written = [
        _joined(f",{_ENCODE(name).decode()}:", as_json(values, member))
        for (name, member), values in zip(kind.members.items(), array.flatten(), strict=True)
    ]
    if not written:
        written = [pa.nulls(len(array), pa.string())]
    inside = pc.binary_join_element_wise(*written, "", null_handling="replace", null_replacement="")
    objects = _joined("{", pc.ascii_ltrim(inside, ","), "}")
    # Not if_else(): that of pyarrow 16 makes broken offsets of binary values and a null.
    return pc.replace_with_mask(objects, array.is_null(), pa.scalar(None, pa.string()))


def _maps(array: pa.Array, item: Kind) -> pa.Array:
    entries = as_lists(array)
    names, values = entries.flatten().flatten()
    inner = as_json(values, item)
    members = _joined("", _quoted(as_text(names)), ":", pc.fill_null(inner, "null"))
    return _joined("{", pc.binary_join(with_items(entries, members, _TEXTS), ","), "}")


def _bare(kind: pa.DataType) -> Kind:
    """A type of which nothing else is known."""
    if pa.types.is_struct(kind):
        return Kind(kind, members={member.name: _bare(member.type) for member in kind})
    return Kind(kind, item=_bare(kind.value_type) if is_list(kind) else None)


def _is_token(kind: pa.DataType) -> bool:
    """Whether the text of a value is JSON already."""
    number = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    return bool(number or pa.types.is_boolean(kind))


def _joined(*parts: object) -> pa.Array:
    return pc.binary_join_element_wise(*parts, "")


def _quoted(array: pa.Array) -> pa.Array:
    quoted = _joined('"', array, '"')
    special = pc.fill_null(pc.match_substring_regex(array, _ESCAPED), False)
    if not pc.any(special).as_py():
        return quoted
    escaped = [_ENCODE(text) for text in array.filter(special).to_pylist()]
    return pc.replace_with_mask(quoted, special, pa.array(escaped, pa.binary()).cast(pa.string()))


def _doubles(array: pa.Array) -> pa.Array:
    text = array.cast(pa.string())
    different = pc.fill_null(pc.match_substring_regex(text, _EXPONENT), False)
    text = pc.replace_substring_regex(text, _WHOLE, r"\1.0")
    if not pc.any(different).as_py():
        return text
    numbers = map(repr, array.filter(different).to_pylist())
    return pc.replace_with_mask(text, different, pa.array(list(numbers), pa.string()))


def _moments(array: pa.Array) -> pa.Array:
    kind = array.type
    if kind.tz is not None:
        array = array.cast(pa.timestamp(kind.unit, "UTC"))
    text = pc.replace_substring(array.cast(pa.string()), " ", "T")
    if kind.unit == "s":
        return text
    text = pc.replace_substring_regex(text, r"(\.[0-9]*?)0+(Z?)$", r"\1\2")
    return pc.replace_substring_regex(text, r"\.(Z?)$", r"\1")


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
