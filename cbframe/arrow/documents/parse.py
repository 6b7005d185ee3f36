"""Documents to typed columns in one call of ``pyarrow.json``, with a proof that rows are rows.

The parser reads a stream of objects, so alone it shifts rows without a word: an empty value
vanishes, two documents in one value are two rows, a document cut in two values is one. Here each
value ``v`` becomes the line ``{"N":v}`` where ``N`` is a random name that no document can know, and
``N`` is the only field which the parser may meet at the top. If as many rows as values come back,
and none of them is null at ``N``, then each row holds exactly one of the names that we wrote (a
second one in a row is refused as a duplicate). A name at the top of a row is the first thing in its
row, since we wrote the bracket before it; so each row starts where a value's line starts, and can
only end where it ends: each value was exactly one object.

Unknown fields are refused as well, at any depth. So the nesting is bounded by that of the schema,
and nothing can explode: what does not fit costs an error, not memory.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pj

from cbframe.arrow.documents.rewrite import MAP_NAME, MAP_VALUE
from cbframe.arrow.slices import POOL

_NAME = "_" + secrets.token_hex(8)
_EXACT = float(1 << 53)
"""Below it every integer token has its exact double."""


@dataclass(frozen=True, slots=True)
class Parsed:
    """Typed columns of a range of documents.

    Attributes
    ----------
    columns
        In the order of the types asked for.
    doubtful
        Rows with a double of 2**53 or more (or NaN, or an infinity), where an integer token may have
        lost digits.
    finite
        Whether there is neither NaN nor an infinity: the parser takes both, JSON knows neither.
    """

    columns: dict[str, pa.Array]
    doubtful: npt.NDArray[np.int64]
    finite: bool


class Lines:
    """Documents, joined for the parser once, to be parsed by ranges.

    Parameters
    ----------
    documents
        Binary array without nulls, UTF-8; anything else about them is checked by :meth:`parse`.
    """

    def __init__(self, documents: pa.Array) -> None:
        binary = documents.type
        prefix = pa.scalar(b'{"%b":' % _NAME.encode(), binary)
        joined = pc.binary_join_element_wise(
            prefix, documents, pa.scalar(b"}\n", binary), pa.scalar(b"", binary), memory_pool=POOL
        )
        _, offsets, data = joined.buffers()
        width = np.int64 if pa.types.is_large_binary(binary) else np.int32
        self._offsets = np.frombuffer(offsets, width)[joined.offset :]
        self._data = data

    def parse(self, start: int, stop: int, types: Mapping[str, pa.DataType]) -> Parsed | None:
        """Parse documents ``start`` to ``stop``; None if any of them is not an object of these types."""
        columns = self.columns(start, stop, types)
        return None if columns is None else Parsed(columns, *doubts(columns.values()))

    def columns(self, start: int, stop: int, types: Mapping[str, pa.DataType]) -> dict[str, pa.Array] | None:
        """The columns alone."""
        begin, end = int(self._offsets[start]), int(self._offsets[stop])
        wanted = pa.struct(list(types.items()))
        schema = pa.schema([(_NAME, _parseable(wanted))])
        try:
            table = pj.read_json(
                pa.BufferReader(self._data.slice(begin, end - begin)),
                # One block, so that a line end inside of a document cuts nothing.
                read_options=pj.ReadOptions(use_threads=False, block_size=end - begin + 1),
                parse_options=pj.ParseOptions(explicit_schema=schema, unexpected_field_behavior="error"),
                memory_pool=POOL,
            )
        except pa.ArrowInvalid:
            return None
        column = table.column(0)
        if len(column) != stop - start or column.null_count or column.num_chunks != 1:
            return None
        documents = _restore(column.chunk(0), wanted)
        if documents is None:
            return None
        return {name: documents.field(index) for index, name in enumerate(types)}


def doubts(columns: Iterable[pa.Array]) -> tuple[npt.NDArray[np.int64], bool]:
    """What :class:`Parsed` says of its columns: ``doubtful`` and ``finite``."""
    each = [_doubtful(column) for column in columns]
    return np.unique(np.concatenate([_NONE, *(rows for rows, _ in each)])), all(finite for _, finite in each)


def _parseable(kind: pa.DataType) -> pa.DataType:
    """The type to ask the parser for.

    Of several nulls in one list of nulls the parser (16 to 26) makes a single item, and an array
    that is out of bounds. So it is asked for booleans there. Asked for decimals it would take 1.0 and
    1e2, too, which are no integers: documents are rewritten so that their digits are strings. And so that
    maps are lists of names and values.
    """
    if pa.types.is_null(kind):
        return pa.bool_()
    if pa.types.is_decimal(kind):
        return pa.string()
    if pa.types.is_map(kind):
        return pa.list_(_parseable(_entry(kind)))
    if pa.types.is_list(kind):
        return pa.list_(_parseable(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([(m.name, m.type if pa.types.is_null(m.type) else _parseable(m.type)) for m in kind])
    return kind


def _entry(kind: pa.DataType) -> pa.DataType:
    return pa.struct([(MAP_NAME, pa.string()), (MAP_VALUE, kind.item_type)])


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


def _restore(array: pa.Array, kind: pa.DataType) -> pa.Array | None:
    """Make lists of nulls of the lists of booleans, None if a boolean is among them; decimals of digits."""
    if array.type.equals(kind):
        return array
    if pa.types.is_decimal(kind):
        return array.cast(kind)
    if pa.types.is_map(kind):
        entries = _restore(array.values, _entry(kind))
        return None if entries is None else as_map(array, entries.field(0), entries.field(1), kind)
    if pa.types.is_null(kind):
        return pa.nulls(len(array)) if array.null_count == len(array) else None
    if pa.types.is_list(kind):
        items = _restore(array.values, kind.value_type)
        if items is None:
            return None
        validity, offsets = array.buffers()[:2]
        return pa.Array.from_buffers(
            kind, len(array), [validity, offsets], array.null_count, array.offset, [items]
        )
    members = [_restore(array.field(index), member.type) for index, member in enumerate(kind)]
    if any(member is None for member in members):
        return None
    mask = array.is_null() if array.null_count else None
    return pa.StructArray.from_arrays(members, fields=list(kind), mask=mask)


_NONE = np.empty(0, np.int64)


def _doubtful(array: pa.Array) -> tuple[npt.NDArray[np.int64], bool]:
    """Rows of a column that hold a doubtful double at any depth; whether all doubles are finite."""
    kind = array.type
    if pa.types.is_floating(kind):
        numbers = np.frombuffer(array.buffers()[1], np.float64, len(array), array.offset * 8)
        doubtful = ~(np.abs(numbers) < _EXACT)
        if doubtful.any():
            doubtful &= array.is_valid().to_numpy(zero_copy_only=False)
            return np.flatnonzero(doubtful), bool(np.isfinite(numbers[doubtful]).all())
    elif pa.types.is_struct(kind):
        members = [_doubtful(array.field(index)) for index in range(kind.num_fields)]
        return np.concatenate([_NONE, *(rows for rows, _ in members)]), all(ok for _, ok in members)
    elif pa.types.is_list(kind) or pa.types.is_map(kind):
        lists = as_lists(array) if pa.types.is_map(kind) else array
        items, finite = _doubtful(lists.values)
        rows = np.searchsorted(lists.offsets.to_numpy(), items, side="right") - 1
        return np.asarray(rows[(rows >= 0) & (rows < len(array))], np.int64), finite
    return _NONE, True
