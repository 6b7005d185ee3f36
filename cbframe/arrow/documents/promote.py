"""Columns of early batches, brought to the types that later batches made necessary."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cbframe.arrow.documents.parse import as_lists, as_map
from cbframe.arrow.documents.plan import Place, Plan

MINUS_ZERO = r"-0[\s,\]}]"
"""Documents without it have no integer -0."""
_EXACT = 1 << 53
_KINDS = {
    pa.bool_(): "boolean",
    pa.int64(): "integer",
    pa.uint64(): "integer",
    pa.string(): "string",
}

Rows = npt.NDArray[np.int64]


def lossless(array: pa.Array, narrow: Plan, wide: Plan, minus_zero: Callable[[], bool]) -> bool:
    """Whether :func:`promote` makes of a column what parsing its documents again would make.

    Parameters
    ----------
    array
        The column.
    narrow
        The plan by which it was made.
    wide
        A plan that its values have been found to fit, as far as they were looked at.
    minus_zero
        Whether a document may hold the integer ``-0``, which becomes -0.0 only where the parser
        knows that it makes doubles.
    """
    if narrow is wide or array.null_count == len(array):
        return True
    if narrow.only != wide.only:
        return False
    if narrow.how != wide.how:
        if wide.how == "text":
            return narrow.how == "plain" and _one_text(array, minus_zero)
        return wide.how == "digits" and pa.types.is_integer(array.type)
    if narrow.how == "map" and narrow.item is not None and wide.item is not None:
        return lossless(as_lists(array).values.field(1), narrow.item, wide.item, minus_zero)
    if narrow.how != "plain":
        # Text is counted by kind while it is made.
        return narrow == wide
    if pa.types.is_integer(array.type):
        return wide.type.equals(array.type) or _fits(array, wide.type, minus_zero)
    if pa.types.is_list(array.type):
        if narrow.item is None or wide.item is None:
            return False
        return lossless(array.values, narrow.item, wide.item, minus_zero)
    if pa.types.is_struct(array.type):
        return pa.types.is_struct(wide.type) and all(
            lossless(array.field(index), member, wide.members[name], minus_zero)
            for index, (name, member) in enumerate(narrow.members.items())
        )
    return bool(array.type.equals(wide.type))


def _one_text(array: pa.Array, minus_zero: Callable[[], bool]) -> bool:
    """Whether the text of each value is known: it is a string, or is only ever written in one way."""
    if pa.types.is_integer(array.type):
        return not (pc.any(pc.equal(array, pa.scalar(0, array.type))).as_py() and minus_zero())
    return bool(pa.types.is_boolean(array.type) or pa.types.is_string(array.type))


def _fits(array: pa.Array, wide: pa.DataType, minus_zero: Callable[[], bool]) -> bool:
    bounds = pc.min_max(array).as_py()
    if pa.types.is_uint64(wide):
        return bool(bounds["min"] >= 0)
    if not pa.types.is_floating(wide) or bounds["min"] < -_EXACT or bounds["max"] > _EXACT:
        return False
    return bounds["min"] > 0 or bounds["max"] < 0 or not minus_zero()


def promote(array: pa.Array, wide: pa.DataType) -> pa.Array:
    """Widen a column: null to anything, integers to other numbers, structs by the members that they lack.

    To a string only what has no common type with others: as it is written.
    """
    narrow = array.type
    if narrow.equals(wide):
        return array
    if array.null_count == len(array):
        return pa.nulls(len(array), wide)
    if pa.types.is_integer(narrow) or pa.types.is_decimal(narrow) or pa.types.is_boolean(narrow):
        return array.cast(wide)
    if pa.types.is_map(narrow):
        lists = as_lists(array)
        names, values = (lists.values.field(at) for at in (0, 1))
        return as_map(lists, names, promote(values, wide.item_type), wide)
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


def kinds(array: pa.Array, narrow: Plan, wide: Plan, path: Place) -> Iterator[tuple[Place, str, Rows]]:
    """The rows of a column with values that :func:`promote` makes text of, by place and kind."""
    yield from _kinds(array, narrow, wide, path, np.arange(len(array)))


def _kinds(
    array: pa.Array, narrow: Plan, wide: Plan, path: Place, rows: Rows
) -> Iterator[tuple[Place, str, Rows]]:
    if narrow is wide or narrow.how not in ("plain", "map") or array.null_count == len(array):
        return
    if wide.how == "text":
        yield path, _KINDS[array.type], rows[array.is_valid().to_numpy(zero_copy_only=False)]
    elif narrow.item is not None and wide.item is not None:
        lists = as_lists(array) if narrow.how == "map" else array
        lengths = lists.value_lengths().fill_null(0).to_numpy()
        items = lists.flatten().field(1) if narrow.how == "map" else lists.flatten()
        yield from _kinds(items, narrow.item, wide.item, (*path, None), np.repeat(rows, lengths))
    elif pa.types.is_struct(array.type):
        for (name, member), cells in zip(narrow.members.items(), array.flatten(), strict=True):
            yield from _kinds(cells, member, wide.members[name], (*path, name), rows)
