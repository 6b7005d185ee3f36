"""A table brought to the columns that it has together with others."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cbframe.arrow.documents.kinds import Kind
from cbframe.arrow.documents.parse import as_lists, as_map
from cbframe.arrow.documents.unify import Columns
from cbframe.arrow.documents.written import as_json, as_text, pieces, with_items
from cbframe.json.layout import is_list


def widen(table: pa.Table, narrow: Columns, wide: Columns) -> pa.Table:
    """The columns of `wide`, in its order: those that are missing are null, others hold the same values."""
    have = narrow.kinds()
    columns = [
        pa.chunked_array(_cells(table.column(name), have[name], kind), kind.type)
        if name in have
        else pa.chunked_array([pa.nulls(len(table), kind.type)])
        for name, kind in wide.kinds().items()
    ]
    if not columns:
        # Nothing but select() leaves rows without columns.
        return pa.table({"": pa.nulls(len(table))}).select([])
    return pa.Table.from_arrays(columns, schema=wide.schema)


def _cells(column: pa.ChunkedArray, have: Kind, want: Kind) -> Iterator[pa.Array]:
    same = have.same(want)
    for chunk in column.chunks:
        array = _restored(chunk, have.type)
        if same:
            yield array
        else:
            for piece in pieces(array):
                yield _widened(piece, have, want)


def _widened(array: pa.Array, have: Kind, want: Kind) -> pa.Array:
    if have.same(want):
        return array
    if array.null_count == len(array):
        return pa.nulls(len(array), want.type)
    if want.json:
        return as_json(array, have)
    if pa.types.is_map(want.type) and want.item is not None:
        return _map(array, have, want.type, want.item)
    if pa.types.is_struct(want.type):
        members = dict(zip(have.members, array.flatten(), strict=True))
        return _struct(
            array,
            want.type,
            [
                _widened(members[name], have.members[name], member)
                if name in members
                else pa.nulls(len(array), member.type)
                for name, member in want.members.items()
            ],
        )
    if want.item is not None and have.item is not None:
        return with_items(array, _widened(array.flatten(), have.item, want.item), want.type)
    if pa.types.is_string(want.type):
        return as_text(array)
    if pa.types.is_dictionary(have.type):
        array = array.cast(have.type.value_type)
    # No integer is inexact here; a safe cast refuses all beyond 2**53.
    return array.cast(want.type, safe=not pa.types.is_floating(want.type))


def _map(array: pa.Array, have: Kind, kind: pa.DataType, item: Kind) -> pa.Array:
    """A map of a map or a struct: members of a struct that are null are not there."""
    if have.item is not None:
        lists = as_lists(array)
        names, values = lists.flatten().flatten()
        lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
        values = _widened(values, have.item, item)
    else:
        rows: list[npt.NDArray[np.int64]] = []
        each: list[pa.Array] = []
        there: list[int] = []
        for at, member in enumerate(array.flatten()):
            valid = member.is_valid()
            rows.append(np.flatnonzero(valid.to_numpy(zero_copy_only=False)))
            there += [at] * len(rows[-1])
            each.append(_widened(member.filter(valid), have.members[array.type.field(at).name], item))
        row = np.concatenate([np.zeros(0, np.int64), *rows])
        order = pa.array(np.argsort(row, kind="stable"))
        names = pa.array([member.name for member in array.type], pa.string()).take(
            pa.array(there, pa.int64()).take(order)
        )
        values = pa.concat_arrays([pa.nulls(0, kind.item_type), *each]).take(order)
        lengths = np.bincount(row, minlength=len(array))
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
    lists = pa.ListArray.from_arrays(offsets, pa.nulls(len(values)), mask=array.is_null())
    return as_map(lists, names, values, kind)


def _struct(array: pa.Array, kind: pa.DataType, members: list[pa.Array]) -> pa.Array:
    mask = array.is_null() if array.null_count else None
    return pa.StructArray.from_arrays(members, fields=list(kind), mask=mask)


def _restored(array: pa.Array, kind: pa.DataType) -> pa.Array:
    """An array as it was before it was in a Parquet file."""
    if array.type.equals(kind):
        return array
    if pa.types.is_null(kind):
        return pa.nulls(len(array))
    if pa.types.is_map(kind) and pa.types.is_map(array.type):
        lists = as_lists(array)
        names, values = (lists.values.field(at) for at in (0, 1))
        return as_map(lists, names, _restored(values, kind.item_type), kind)
    if pa.types.is_struct(kind):
        if not kind.num_fields:
            valid = pc.is_valid(array)
            return pa.Array.from_buffers(kind, len(array), [valid.buffers()[1]], offset=valid.offset)
        members = [_restored(each, member.type) for member, each in zip(kind, array.flatten(), strict=True)]
        return _struct(array, kind, members)
    if is_list(kind):
        return with_items(array, _restored(array.flatten(), kind.value_type), kind)
    return array.cast(kind)
