"""Documents as the tables of other formats can hold them.

:class:`Shape` brings columns into types that a format has (:class:`Format`), and back: every value stays what
it is. :class:`Documents` tells rows apart.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cbframe.arrow.column_types import Columns, widen
from cbframe.arrow.columns import (
    COLLECTION_ID,
    DATATYPE,
    KEY,
    KEY_TYPES,
    METADATA_TYPES,
    SEQNO,
    VBUCKET,
    XATTRS,
    KeyForm,
    Mask,
    formed,
    key_bytes,
)
from cbframe.arrow.spill import Spill
from cbframe.errors import ConversionError
from cbframe.json.arrays import as_lists, as_map, is_list, recast, with_items, with_members

Tables: TypeAlias = Iterable[pa.Table]
Fields: TypeAlias = Iterable[pa.Field]
HEAD = (KEY, COLLECTION_ID, VBUCKET, SEQNO)
"""What tells which rows count."""
_PLACE = np.dtype([("vbucket", np.uint16), ("seqno", np.uint64)])


class Waiting:
    """Tables of one schema that wait, to be read as often as needed, until all of them are there."""

    def __init__(self, directory: str | os.PathLike[str] | None) -> None:
        self._spill = Spill(directory)
        self._batches: list[Callable[[], pa.RecordBatch]] = []

    def close(self) -> None:
        """Delete the file."""
        self._spill.close()

    def put(self, table: pa.Table) -> None:
        """Put one more away."""
        self._batches += map(self._spill.put, table.to_batches())

    def tables(self) -> Iterator[pa.Table]:
        """All that was put away."""
        for load in self._batches:
            yield pa.Table.from_batches([load()])


def identities(head: pa.Table) -> pa.ChunkedArray:
    """What documents are known by: collection and key."""
    collection = head[COLLECTION_ID].cast(pa.string()).cast(pa.large_binary())
    separator = pa.scalar(b":", pa.large_binary())
    return pc.binary_join_element_wise(collection, head[KEY].cast(pa.large_binary()), separator)


class Documents:
    """A set of documents."""

    def __init__(self, heads: Sequence[pa.Table]) -> None:
        chunks = [chunk for head in heads for chunk in identities(head).chunks]
        self._values = pa.chunked_array(chunks, pa.large_binary()).unique()

    def have(self, head: pa.Table) -> Mask:
        """Which rows are of them."""
        found: Mask = pc.is_in(identities(head), value_set=self._values).to_numpy()
        return found


def places_of(head: pa.Table) -> npt.NDArray[np.void]:
    """What versions of documents are known by: vbucket and seqno."""
    places = np.empty(len(head), _PLACE)
    places["vbucket"], places["seqno"] = head[VBUCKET].to_numpy(), head[SEQNO].to_numpy()
    return places


_BITS = (SEQNO, "_cb_cas", "_cb_rev_seqno")
"""Unsigned numbers that are stored bit by bit."""
_STORED = {
    VBUCKET: pa.int32(),
    **dict.fromkeys(_BITS, pa.int64()),
    "_cb_expiry": pa.int64(),
    "_cb_flags": pa.int64(),
    DATATYPE: pa.int16(),
    XATTRS: METADATA_TYPES[XATTRS],
    "_cb_scope": pa.string(),
    "_cb_collection": pa.string(),
    COLLECTION_ID: pa.int64(),
}
_U64 = pa.decimal128(20, 0)
_EMPTY = pa.string()
"""What objects without members are stored as: the text ``{}``."""


@dataclass(frozen=True, slots=True)
class Format:
    """What the tables of a format can hold."""

    name: str
    wider: Mapping[pa.DataType, pa.DataType]  # integers that it does not have, and what holds them
    no_letters: str  # what no name can have

    def fields(self, fields: Fields, where: str, taken: Iterable[str]) -> dict[str, pa.Field]:
        """What fields are stored as, by their names; those of nothing but nulls are left out.

        Stored names differ in more than case; of some that do not, the first has its own.
        """
        found: dict[str, pa.Field] = {}
        seen = {name.lower() for name in taken}
        replaced = str.maketrans(dict.fromkeys(self.no_letters, "_"))
        for each in fields:
            kind = self.type_of(each.type, where + each.name)
            if kind is None:
                continue
            name = each.name.translate(replaced)
            while name.lower() in seen:
                name += "_"
            seen.add(name.lower())
            found[each.name] = pa.field(name, kind)
        return found

    def type_of(self, kind: pa.DataType, where: str) -> pa.DataType | None:
        """What a type is stored as; None where there is nothing to be stored."""
        if pa.types.is_null(kind):
            return None
        if pa.types.is_struct(kind):
            members = self.fields(kind, f"{where}.", ())
            return pa.struct(list(members.values())) if members else _EMPTY
        if is_list(kind):
            item = self.type_of(kind.value_type, f"{where}[]")
            return pa.list_(pa.string() if item is None else item)
        if pa.types.is_map(kind):
            key, item = (self.type_of(each, f"{where}[]") for each in (kind.key_type, kind.item_type))
            return pa.map_(pa.string() if key is None else key, pa.string() if item is None else item)
        if pa.types.is_dictionary(kind):
            return self.type_of(kind.value_type, where)
        if pa.types.is_uint64(kind):
            return _U64
        if pa.types.is_large_string(kind) or pa.types.is_string(kind):
            return pa.string()
        if pa.types.is_large_binary(kind) or pa.types.is_binary(kind) or pa.types.is_fixed_size_binary(kind):
            return pa.binary()
        if pa.types.is_timestamp(kind) and kind.unit != "ns":
            return pa.timestamp("us", "UTC" if kind.tz else None)
        if (
            pa.types.is_integer(kind)
            or pa.types.is_boolean(kind)
            or pa.types.is_date32(kind)
            or (pa.types.is_floating(kind) and not pa.types.is_float16(kind))
            or (pa.types.is_decimal128(kind) and kind.scale >= 0)
        ):
            return self.wider.get(kind, kind)
        raise ConversionError(
            f"{self.name} has no type for {where!r}, which is {kind}",
            hint="declare another type of it with schema=",
        )


class Shape:
    """How a table holds the columns of documents."""

    def __init__(
        self, holds: Format, columns: Columns, *, xattrs: bool, keys: KeyForm, escaped: bool = True
    ) -> None:
        self._format = holds
        self.columns = columns
        self.keys = keys
        self._escaped = escaped
        self._head = [pa.field(KEY, KEY_TYPES[keys])]
        self._head += [
            pa.field(name, holds.wider.get(kind, kind))
            for name, kind in _STORED.items()
            if xattrs or name != XATTRS
        ]
        fields = holds.fields(columns.schema, "", [each.name for each in self._head])
        self.names = {name: each.name for name, each in fields.items()}
        """Fields that have a column, and its name."""
        self.schema = pa.schema([*self._head, *fields.values()])

    def stored(self, head: pa.Table, documents: pa.Table, narrow: Columns) -> pa.Table:
        """Rows as the table holds them, of metadata, and of fields that are as the narrower columns."""
        documents = widen(documents, narrow, self.columns)
        arrays = [
            formed(head[KEY], self.keys) if field.name == KEY else _bits(head[field.name], field.type)
            for field in self._head
        ]
        arrays += [
            _converted(documents[name], self.schema.field(stored).type, self._format, back=False)
            for name, stored in self.names.items()
        ]
        return pa.Table.from_arrays(arrays, schema=self.schema)

    def head_of(self, table: pa.Table) -> pa.Table:
        """Metadata of stored rows, as far as it is there, as the wire has it."""
        types = {**METADATA_TYPES, COLLECTION_ID: pa.uint32()}
        names = [field.name for field in self._head if field.name in table.column_names]
        return pa.table(
            {
                name: (key_bytes(table[KEY]) if self._escaped else formed(table[KEY], "binary"))
                if name == KEY
                else _bits(table[name], types.get(name, self.schema.field(name).type))
                for name in names
            }
        )

    def documents_of(self, table: pa.Table) -> pa.Table:
        """Fields of stored rows: `columns`."""
        arrays = [
            _converted(table[self.names[each.name]], each.type, self._format, back=True)
            if each.name in self.names
            else pa.chunked_array([pa.nulls(len(table), each.type)])
            for each in self.columns.schema
        ]
        if not arrays:
            # Nothing but select() leaves rows without columns.
            return pa.table({"": pa.nulls(len(table))}).select([])
        return pa.Table.from_arrays(arrays, schema=self.columns.schema)

    def holds(self, other: Shape) -> bool:
        """Whether rows of another shape are right as they are, but for columns that they do not have."""
        ours, theirs = self.columns.kinds, other.columns.kinds
        return self.keys == other.keys and all(
            self.names.get(name) == stored and theirs[name].same(ours[name])
            for name, stored in other.names.items()
        )


def _bits(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    """Metadata as another type; unsigned 64-bit numbers and signed ones are the same bits."""
    if {column.type, kind} == {pa.uint64(), pa.int64()}:
        return pa.chunked_array([chunk.view(kind) for chunk in column.chunks], kind)
    return column if column.type.equals(kind) else column.cast(kind)


def _converted(column: pa.ChunkedArray, kind: pa.DataType, holds: Format, *, back: bool) -> pa.ChunkedArray:
    """Documents' values as the type that :meth:`Format.type_of` gives for theirs, or `back` from it."""
    if column.type.equals(kind):
        return column
    return pa.chunked_array([_convert(chunk, kind, holds, back=back) for chunk in column.chunks], kind)


def _convert(array: pa.Array, kind: pa.DataType, holds: Format, *, back: bool) -> pa.Array:
    have = array.type
    if have.equals(kind):
        return array
    if pa.types.is_struct(kind) and kind.num_fields:
        # What has no members that are stored is text.
        there = [each.name for each in have] if pa.types.is_struct(have) else []
        members = dict(zip(there, array.flatten() if there else (), strict=True))
        stored = {name: each.name for name, each in holds.fields(kind if back else have, "", ()).items()}
        source = stored if back else {name: own for own, name in stored.items()}
        found = [
            _convert(members[source[each.name]], each.type, holds, back=back)
            if each.name in source
            else pa.nulls(len(array), each.type)
            for each in kind
        ]
        return with_members(array, found, kind)
    if is_nested(kind):
        return with_inner(array, kind, partial(_convert, holds=holds, back=back))
    if pa.types.is_dictionary(kind):
        return array.cast(kind.value_type).dictionary_encode().cast(kind)
    return recast(array, kind)


def is_nested(kind: pa.DataType) -> bool:
    """Whether it is a list or a map."""
    return is_list(kind) or bool(pa.types.is_map(kind))


def with_inner(
    array: pa.Array, kind: pa.DataType, convert: Callable[[pa.Array, pa.DataType], pa.Array]
) -> pa.Array:
    """Lists or maps as others of their kind: what is inside is converted."""
    if is_list(kind):
        return with_items(array, convert(array.flatten(), kind.value_type), kind)
    lists = as_lists(array)
    names, values = (lists.values.field(at) for at in (0, 1))
    return as_map(lists, convert(names, kind.key_type), convert(values, kind.item_type), kind)
