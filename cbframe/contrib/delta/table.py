"""A Delta table: documents as it can hold them, and commits of data, positions and the number of the update.

:class:`Shape` brings columns into types that Delta has, and back: every value stays what it is.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cbframe.arrow.column_types import Columns
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
from cbframe.errors import CbframeError, ConversionError, DependencyError, SnapshotError
from cbframe.json.arrays import as_lists, as_map, is_list, with_items
from cbframe.snapshot.manifest import Manifest

APP = "cbframe"
"""The application whose transaction counts the updates, and the name of the commits' metadata."""
_LOOK_BACK = 50
"""Commits among which versions are looked for that can be gone back to."""
_HARMLESS = {"OPTIMIZE", "VACUUM START", "VACUUM END", "SET TBLPROPERTIES"}
"""What others may do: the rows stay as they are."""
_OVERWRITE = 'to_delta(..., mode="overwrite") makes it again; old versions stay until they are vacuumed'


@dataclass(frozen=True, slots=True)
class Base:
    """The state of a table that is continued."""

    table: Any  # A `deltalake.DeltaTable`, at the version that is continued
    manifest: Manifest  # of the last update. Its `files` are empty: those are in Delta's own log
    ancestors: list[Manifest]  # it and the updates before it, newest first
    versions: Mapping[int, int]  # by the version of an update, that of the table


def library() -> Any:
    """The module ``deltalake``."""
    try:
        import deltalake  # noqa: PLC0415 - optional
    except ImportError as exc:
        raise DependencyError("deltalake is not installed", hint="pip install 'cbframe[delta]'") from exc
    return deltalake


@contextmanager
def delta_errors(uri: str, doing: str) -> Iterator[None]:
    """Turns an error of deltalake's into one that says what to do."""
    from deltalake.exceptions import CommitFailedError, DeltaError  # noqa: PLC0415 - optional

    try:
        yield
    except CbframeError:
        raise
    except CommitFailedError as exc:
        raise SnapshotError(
            "another writer has changed the table meanwhile",
            path=uri,
            hint="nothing was written: let one process write at a time, and update again",
        ) from exc
    except (DeltaError, OSError) as exc:
        raise SnapshotError(f"cannot {doing} ({exc})", path=uri) from exc


def open_table(uri: str, storage_options: Mapping[str, str] | None) -> Any:
    """The table as it is now; None if there is none."""
    deltalake = library()
    options = None if storage_options is None else dict(storage_options)
    with delta_errors(uri, "open the Delta table"):
        if not deltalake.DeltaTable.is_deltatable(uri, storage_options=options):
            return None
        return deltalake.DeltaTable(uri, storage_options=options)


def base_of(table: Any, uri: str) -> Base:
    """What the log tells of the last update."""
    with delta_errors(uri, "read the log of the Delta table"):
        commits = table.history(_LOOK_BACK)
        if not any(APP in commit for commit in commits):
            commits = table.history()
        transaction = table.transaction_version(APP)
    for commit in commits:
        if APP in commit:
            break
        if commit["operation"] not in _HARMLESS:
            raise _changed(commit, uri)
    else:
        raise SnapshotError(
            "the log of the table does not tell how far it was read: it was not made by to_delta(), or that "
            "commit was cleaned up",
            path=uri,
            hint=_OVERWRITE,
        )
    ours = [(commit["version"], _manifest(commit, uri)) for commit in commits if APP in commit]
    newest = ours[0][1]
    if transaction != newest.version:
        raise SnapshotError(
            f"the table does not fit its log: the last update is number {newest.version}, and its "
            f"transaction says {transaction}",
            path=uri,
            hint=_OVERWRITE,
        )
    ancestors = [*_line([manifest for _, manifest in ours])]
    return Base(table, newest, ancestors, {manifest.version: version for version, manifest in ours})


def _manifest(commit: Mapping[str, Any], uri: str) -> Manifest:
    return Manifest.from_bytes(commit[APP].encode(), f"{uri}, version {commit['version']}")


def _line(manifests: list[Manifest]) -> Iterator[Manifest]:
    """A version, and what it was made from, as far as they are there."""
    parent = manifests[0].version
    for each in manifests:
        if each.version == parent:
            yield each
            if each.kind == "create":
                return
            parent = each.parent


def _changed(commit: Mapping[str, Any], uri: str) -> SnapshotError:
    what, version = commit["operation"], commit["version"]
    if what == "RESTORE":
        return SnapshotError(
            f"the table was restored to what it was (version {version}): its rows are older than the "
            "positions up to which the bucket was read, and the changes in between would be missing",
            path=uri,
            hint=_OVERWRITE,
        )
    return SnapshotError(
        f"the table was changed by someone else ({what}, version {version}): it is no mirror any more",
        path=uri,
        hint=_OVERWRITE,
    )


# --- rows as a table can hold them


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
_WIDER = {pa.uint8(): pa.int16(), pa.uint16(): pa.int32(), pa.uint32(): pa.int64()}
_U64 = pa.decimal128(20, 0)
_EMPTY = pa.string()
"""What objects without members are stored as: the text ``{}``."""
_Convert = Callable[[pa.Array, pa.DataType], pa.Array]


class Shape:
    """How a table holds the columns of documents."""

    def __init__(self, columns: Columns, *, xattrs: bool, keys: KeyForm, escaped: bool = True) -> None:
        self.columns = columns
        self.keys = keys
        self._escaped = escaped
        self._head = [pa.field(KEY, KEY_TYPES[keys])]
        self._head += [pa.field(name, kind) for name, kind in _STORED.items() if xattrs or name != XATTRS]
        kept = [each for each in columns.schema if _stored_type(each.type, each.name) is not None]
        self.names = dict(
            zip(
                (each.name for each in kept),
                _distinct((each.name for each in kept), [field.name for field in self._head]),
                strict=True,
            )
        )
        """Fields that have a column, and its name."""
        self.schema = pa.schema(
            [*self._head, *((self.names[each.name], _stored_type(each.type, each.name)) for each in kept)]
        )

    def stored(self, head: pa.Table, documents: pa.Table) -> pa.Table:
        """Rows as the table holds them."""
        arrays = [
            formed(head[KEY], self.keys) if field.name == KEY else _bits(head[field.name], field.type)
            for field in self._head
        ]
        arrays += [
            _by_chunk(documents[name], self.schema.field(stored).type, _stored)
            for name, stored in self.names.items()
        ]
        return pa.Table.from_arrays(arrays, schema=self.schema)

    def head_of(self, table: pa.Table) -> pa.Table:
        """Metadata of stored rows, as far as it is there, as the wire has it."""
        types = {**METADATA_TYPES, COLLECTION_ID: pa.uint32()}
        names = [field.name for field in self._head if field.name in table.column_names]
        return pa.table(
            {
                name: self._key_bytes(table[KEY])
                if name == KEY
                else _bits(table[name], types.get(name, self.schema.field(name).type))
                for name in names
            }
        )

    def _key_bytes(self, stored: pa.ChunkedArray) -> pa.ChunkedArray:
        return key_bytes(stored) if self._escaped else formed(stored, "binary")

    def documents_of(self, table: pa.Table) -> pa.Table:
        """Fields of stored rows: `columns`."""
        arrays = [
            _by_chunk(table[self.names[each.name]], each.type, _restored)
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


def _distinct(names: Iterable[str], taken: Sequence[str] = ()) -> Iterator[str]:
    """Names that differ in more than case, and that delta-rs can read; the first has its own."""
    seen = {name.lower() for name in taken}
    for each in names:
        name = each.replace("`", "_").replace("\0", "_")
        while name.lower() in seen:
            name += "_"
        seen.add(name.lower())
        yield name


def _stored_type(kind: pa.DataType, where: str) -> pa.DataType | None:
    """What a type is stored as; None where there is nothing to be stored."""
    if pa.types.is_null(kind):
        return None
    if pa.types.is_struct(kind):
        members = [(each.name, _stored_type(each.type, f"{where}.{each.name}")) for each in kind]
        some = [(name, member) for name, member in members if member is not None]
        names = _distinct(name for name, _ in some)
        return (
            pa.struct([(name, member) for name, (_, member) in zip(names, some, strict=True)])
            if some
            else _EMPTY
        )
    if is_list(kind):
        item = _stored_type(kind.value_type, f"{where}[]")
        return pa.list_(pa.string() if item is None else item)
    if pa.types.is_map(kind):
        key, item = (_stored_type(each, f"{where}[]") for each in (kind.key_type, kind.item_type))
        return pa.map_(pa.string() if key is None else key, pa.string() if item is None else item)
    if pa.types.is_dictionary(kind):
        return _stored_type(kind.value_type, where)
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
        return _WIDER.get(kind, kind)
    raise ConversionError(
        f"Delta has no type for {where!r}, which is {kind}", hint="declare another type of it with schema="
    )


def _bits(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    """Metadata as another type; unsigned 64-bit numbers and signed ones are the same bits."""
    if {column.type, kind} == {pa.uint64(), pa.int64()}:
        return pa.chunked_array([chunk.view(kind) for chunk in column.chunks], kind)
    return column if column.type.equals(kind) else column.cast(kind)


def _by_chunk(column: pa.ChunkedArray, kind: pa.DataType, convert: _Convert) -> pa.ChunkedArray:
    if column.type.equals(kind):
        return column
    return pa.chunked_array([convert(chunk, kind) for chunk in column.chunks], kind)


def _stored(array: pa.Array, kind: pa.DataType) -> pa.Array:
    """An array as a type that :func:`_stored_type` gave for its own."""
    have = array.type
    if have.equals(kind):
        return array
    if pa.types.is_struct(have):
        if not pa.types.is_struct(kind):
            return pc.if_else(pc.is_null(array), pa.scalar(None, _EMPTY), pa.scalar("{}"))
        some = [
            (member, each.name)
            for member, each in zip(array.flatten(), have, strict=True)
            if _stored_type(each.type, each.name) is not None
        ]
        members = [_stored(member, into.type) for (member, _), into in zip(some, kind, strict=True)]
        return pa.StructArray.from_arrays(members, fields=list(kind), mask=_missing(array))
    if is_list(have):
        items = array.flatten()
        if pa.types.is_null(have.value_type):
            return with_items(array, pa.nulls(len(items), pa.string()), kind)
        return with_items(array, _stored(items, kind.value_type), kind)
    if pa.types.is_null(have):
        return pa.nulls(len(array), kind)
    if pa.types.is_map(have):
        return _mapped(array, kind, _stored)
    return array.cast(kind)


def _mapped(array: pa.Array, kind: pa.DataType, convert: _Convert) -> pa.Array:
    """A map of the names and values of another one, converted."""
    lists = as_lists(array)
    names, values = (lists.values.field(at) for at in (0, 1))
    return as_map(lists, convert(names, kind.key_type), convert(values, kind.item_type), kind)


def _restored(array: pa.Array, kind: pa.DataType) -> pa.Array:
    """An array as the type that it had before it was stored."""
    if array.type.equals(kind):
        return array
    if pa.types.is_null(kind):
        return pa.nulls(len(array))
    if pa.types.is_struct(kind):
        kept = [_stored_type(each.type, each.name) is not None for each in kind]
        stored = (
            dict(zip([each.name for each in array.type], array.flatten(), strict=True)) if any(kept) else {}
        )
        names = _distinct(each.name for each, there in zip(kind, kept, strict=True) if there)
        members = [
            _restored(stored[next(names)], each.type) if there else pa.nulls(len(array), each.type)
            for each, there in zip(kind, kept, strict=True)
        ]
        if members:
            return pa.StructArray.from_arrays(members, fields=list(kind), mask=_missing(array))
        valid = pc.is_valid(array)
        return pa.Array.from_buffers(kind, len(array), [valid.buffers()[1]], offset=valid.offset)
    if is_list(kind):
        return with_items(array, _restored(array.flatten(), kind.value_type), kind)
    if pa.types.is_map(kind):
        return _mapped(array, kind, _restored)
    if pa.types.is_dictionary(kind):
        return array.cast(kind.value_type).dictionary_encode().cast(kind)
    return array.cast(kind)


def _missing(array: pa.Array) -> pa.Array | None:
    return array.is_null() if array.null_count else None


# --- commits


CHANGE = "_cb_change"
"""What to do with a row of a MERGE; no column of the table, and no field can have the name."""
STATISTICS = {
    "delta.dataSkippingStatsColumns": ",".join(
        (KEY, VBUCKET, SEQNO, "_cb_cas", "_cb_rev_seqno", "_cb_expiry", COLLECTION_ID)
    )
}
"""delta-rs rounds those of decimals, and what is looked for by them is not found."""
_ROWS = 1 << 17
"""Rows of a row group: deltalake holds those that are not complete in memory."""
_SAME = "t._cb_collection_id = s._cb_collection_id AND t._cb_key = s._cb_key"


class Committer:
    """Writes one commit."""

    def __init__(self, uri: str, table: Any, storage_options: Mapping[str, str] | None) -> None:
        self._uri = uri
        self._table = table
        self._storage_options = None if storage_options is None else dict(storage_options)
        self._library = library()
        self._writing = self._library.WriterProperties(compression="ZSTD", max_row_group_size=_ROWS)

    def version(self) -> int:
        """Of the table."""
        with delta_errors(self._uri, "read the log of the Delta table"):
            if self._table is None:
                options = self._storage_options
                self._table = self._library.DeltaTable(self._uri, storage_options=options)
            else:
                self._table.update_incremental()
            return int(self._table.version())

    def overwrite(self, schema: pa.Schema, tables: Iterable[pa.Table], manifest: Manifest) -> None:
        """Have these rows be the whole table."""
        with _unchanged_errors(tables) as batches, delta_errors(self._uri, "write the Delta table"):
            place: Any = self._table
            how: dict[str, Any] = {"mode": "overwrite", "schema_mode": "overwrite"}
            if place is None:
                place = self._uri
                how = {"mode": "error", "configuration": STATISTICS, "storage_options": self._storage_options}
            elif not STATISTICS.items() <= place.metadata().configuration.items():
                place.alter.set_table_properties(STATISTICS)
            self._library.write_deltalake(
                place,
                pa.RecordBatchReader.from_batches(schema, batches),
                writer_properties=self._writing,
                commit_properties=self._properties(manifest),
                **how,
            )

    def merge(
        self, changes: tuple[pa.Schema, Iterator[pa.Table]], manifest: Manifest, *, widen: bool
    ) -> None:
        """Change, add and delete rows."""
        schema, tables = changes
        before = self._table.version()
        with _unchanged_errors(tables) as batches, delta_errors(self._uri, "update the Delta table"):
            (
                self._table.merge(
                    pa.RecordBatchReader.from_batches(schema, batches),
                    predicate=_SAME,
                    source_alias="s",
                    target_alias="t",
                    merge_schema=widen,
                    writer_properties=self._writing,
                    commit_properties=self._properties(manifest),
                )
                .when_matched_delete(predicate=f"s.{CHANGE} = 'delete'")
                .when_matched_update_all(predicate=f"s.{CHANGE} = 'upsert'", except_cols=[CHANGE])
                .when_not_matched_insert_all(predicate=f"s.{CHANGE} = 'upsert'", except_cols=[CHANGE])
                .execute()
            )
        # Nothing comes of deletions of what the table does not have.
        if self._table.version() == before:
            self.note(manifest)

    def note(self, manifest: Manifest) -> None:
        """Write down how far the bucket was read: no row changed."""
        with delta_errors(self._uri, "update the Delta table"):
            self._library.write_deltalake(
                self._table,
                self._table.to_pyarrow_dataset().schema.empty_table(),
                mode="append",
                commit_properties=self._properties(manifest),
            )

    def _properties(self, manifest: Manifest) -> Any:
        return self._library.CommitProperties(
            custom_metadata={APP: manifest.to_bytes().decode()},
            # After any other commit the positions were read of another table.
            max_commit_retries=0,
            app_transactions=[self._library.Transaction(APP, manifest.version)],
        )


@contextmanager
def _unchanged_errors(tables: Iterable[pa.Table]) -> Iterator[Iterator[pa.RecordBatch]]:
    """Batches for a library that makes its own error of any that comes on the way; raises it as it was."""
    error: BaseException | None = None

    def batches() -> Iterator[pa.RecordBatch]:
        nonlocal error
        try:
            for table in tables:
                yield from table.to_batches()
        except BaseException as exc:
            error = exc
            raise

    try:
        yield batches()
    except Exception as exc:
        if error is None or error is exc:
            raise
        raise error from None
