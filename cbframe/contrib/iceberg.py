"""An Iceberg table that mirrors a bucket, and is updated exactly once with what changed.

Needs ``pip install 'cbframe[iceberg]'``, and what pyiceberg needs for the catalogue.

>>> from cbframe.contrib.iceberg import to_iceberg, update_iceberg  # doctest: +SKIP
>>> catalog = {"type": "rest", "uri": "https://…", "credential": "…"}  # doctest: +SKIP
>>> to_iceberg("couchbase://host/travel", "lake.travel", catalog=catalog, auth=auth)  # doctest: +SKIP
>>> update_iceberg("couchbase://host/travel", "lake.travel", catalog=catalog, auth=auth)  # doctest: +SKIP

The table
---------
One row for each document, as :mod:`cbframe.contrib.delta` describes it, with these differences:

* Integers of 8 and 16 bits are ``int``.
* A dot in a name is ``_``: Iceberg names fields inside of objects with dots.

pyiceberg (0.12) reads a list of objects that is null as an empty one; other readers do not.

Updates
-------
Data and positions are one commit of the catalogue. The positions are a property of the table,
``cbframe.positions``, and those of earlier updates in the summaries of their snapshots: a manifest as of
:mod:`cbframe.snapshot.manifest`, compressed; some 60 kB for 1,024 vbuckets. ``cbframe.snapshot-id`` is the
snapshot that they belong to. Columns that no document had before are added. Where a type gets wider, or a
field appears inside of an object, the table is rewritten in one commit.

Of two writers the catalogue refuses the later one: the table must still have the snapshot that was continued.
pyiceberg would apply the commit to the newer one; so the table has the property ``commit.retry.num-retries``,
and it is 0. Others may compact the table (snapshots of the operation ``replace``), and expire snapshots
before the last update; any other change ends the mirror.

What copy-on-write costs
------------------------
pyiceberg writes no delete files. An update reads the keys of all data files, and writes again each one that
has a document that changed. Documents are in no order, so some changes in many files cost as much as the
first copy: the whole table is read, sent and stored once more. What was replaced stays until its snapshots
are expired; files of writes that failed stay until ``remove_orphan_files``. Update large tables rarely, or
use a snapshot (:func:`cbframe.write_snapshot`), which only adds what changed.

What the server rolls back, the table rolls back: rows are deleted, and those that they had replaced come from
an earlier snapshot of the table. Where that is expired, or more than fifty snapshots ago, that vbucket alone
is read again from the start.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any, ClassVar, Literal, TypeAlias, Unpack, cast
from uuid import uuid4

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cbframe.arrow.columns import COLLECTION_ID, KEY
from cbframe.contrib import mirror
from cbframe.contrib.stored_rows import Fields, Format, Tables, is_nested, with_inner
from cbframe.errors import ConfigurationError, DependencyError, SnapshotError
from cbframe.json.arrays import is_list, with_members
from cbframe.public import Connectable, ServerURLs
from cbframe.scan.parquet import row_groups
from cbframe.snapshot.manifest import Manifest

__all__ = ["IcebergResult", "to_iceberg", "update_iceberg"]

CatalogLike: TypeAlias = Any
"""A ``pyiceberg.catalog.Catalog``, its name in pyiceberg's configuration, or its properties."""
_UPDATE, _SNAPSHOT, _POSITIONS = (f"{mirror.APP}.{name}" for name in ("update", "snapshot-id", "positions"))
"""Properties of the table: the number of the last update, its snapshot, and its manifest."""
_PROPERTIES = {"commit.retry.num-retries": "0"}
"""After any other commit the positions were read of another table."""
_NUMBER = b"PARQUET:field_id"
_INSTALL, _OLDEST_PYARROW = "pip install 'cbframe[iceberg]'", 17
_FILE_BYTES = 256 << 20
"""Bytes of a data file, as they are in memory."""
_ROWS = 1 << 14
"""Rows that are read at once."""
_MOST_BYTES = 1 << 28
"""Of positions: what is larger is none of ours."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IcebergResult(mirror.MirrorResult):
    """An Iceberg table that was written.

    Attributes
    ----------
    identifier
        Its name in the catalogue.
    snapshot_id
        Of the table, now; see :class:`~cbframe.contrib.mirror.MirrorResult` for the others.
    """

    identifier: str
    snapshot_id: int

    def _place(self) -> tuple[str, str]:
        return "table", self.identifier


class Iceberg(mirror.Table):
    """A table of pyiceberg's."""

    format = Format(
        "Iceberg",
        {
            **dict.fromkeys((pa.int8(), pa.int16(), pa.uint8(), pa.uint16()), pa.int32()),
            pa.uint32(): pa.int64(),
        },
        "\0.",
    )
    made_by, updated_by, removed = "to_iceberg", "update_iceberg", "expired"
    _hints: ClassVar = {
        "NoSuchNamespaceError": "make the namespace with catalog.create_namespace()",
        "CommitStateUnknownException": "nobody knows whether it was committed: update again, that finds out",
    }

    def __init__(self, identifier: object, catalog: CatalogLike) -> None:
        parts: Any = identifier.split(".") if isinstance(identifier, str) else identifier
        is_name = isinstance(parts, list | tuple) and all(isinstance(each, str) for each in parts)
        if not is_name or len(parts) < 2 or not all(map(str.strip, parts)):
            raise ConfigurationError("identifier= names no table of a namespace", hint='give "space.table"')
        self._name = tuple(parts)
        self.where = ".".join(parts)
        self._table: Any = None  # a `pyiceberg.table.Table`; None if there is none
        self._lost, self._failed = _errors()
        with self.errors("open"), ExitStack() as stack:
            self._catalog, self._is_ours = _catalog_of(catalog)
            stack.callback(self.close)
            self.exists = self._catalog.table_exists(self._name)
            if self.exists:
                self._table = self._catalog.load_table(self._name)
                self.number = self._table.metadata.current_snapshot_id or 0
                self.updates = int(self._table.properties.get(_UPDATE, 0))
            stack.pop_all()

    def close(self) -> None:
        if self._is_ours:
            self._catalog.close()

    def beside(self, name: str) -> Iceberg:
        *namespace, last = self._catalog.identifier_to_tuple(self._name)
        return Iceberg((*namespace, f"{last}__{name}"), self._catalog)

    # -- what there is

    def states(self) -> list[mirror.State]:
        properties = self._table.properties
        if not {_POSITIONS, _SNAPSHOT} <= properties.keys():
            raise self.refusal("the table does not tell how far it was read: it was not made by to_iceberg()")
        newest = self._manifest(properties[_POSITIONS])
        with self.errors("read the properties of"):
            committed = int(properties[_SNAPSHOT])
        snapshot, number = self._table.current_snapshot(), self.number
        while snapshot is not None and number != committed:
            what = "unknown" if snapshot.summary is None else snapshot.summary.operation.value
            if _packed(snapshot) is not None:
                raise self.changed(f"rolled back to an older snapshot ({number})", back=True)
            if what != "replace":
                raise self.changed(f"{what}, snapshot {number}")
            # What came after it has the same rows. It may be expired, and pyiceberg hides it then.
            number = snapshot.parent_snapshot_id
            snapshot = None if number is None else self._table.snapshot_by_id(number)
        if number != committed:
            raise self.refusal(
                f"snapshots after the last update were expired (that was {committed}), and nobody knows "
                "whether they had the same rows"
            )
        ours = [mirror.State(newest, self.number)]
        while snapshot is not None and snapshot.parent_snapshot_id and len(ours) < mirror.LOOK_BACK:
            snapshot = self._table.snapshot_by_id(snapshot.parent_snapshot_id)
            if snapshot is not None and (packed := _packed(snapshot)) is not None:
                ours.append(mirror.State(self._manifest(packed), snapshot.snapshot_id))
        return mirror.lineage(ours)

    def _manifest(self, packed: str) -> Manifest:
        try:
            text = zlib.decompressobj().decompress(base64.b64decode(packed, validate=True), _MOST_BYTES)
        except (ValueError, zlib.error) as exc:
            raise SnapshotError(f"the positions of the table are damaged ({exc})", path=self.where) from exc
        return Manifest.from_bytes(text, self.where)

    def _read(self, number: int, schema: pa.Schema, some: pc.Expression | None) -> Iterator[pa.Table]:
        snapshot = self._table.snapshot_by_id(number)
        if snapshot is None:
            raise SnapshotError("the snapshot was expired", path=self.where)
        fields = _numbered(schema, self._table.schemas()[snapshot.schema_id])
        for task in self._table.scan(snapshot_id=number).plan_files():
            for rows in self._rows(task, fields):
                found = rows.cast(schema) if some is None else rows.cast(schema).filter(some)
                if len(found):
                    yield found

    def _rows(self, task: Any, schema: pa.Schema) -> Iterator[pa.Table]:
        """Rows of a data file, whose fields are known by their numbers."""
        if task.delete_files:
            raise self.refusal("rows of the table were deleted by someone else: it is no mirror any more")
        kind, wanted = pa.struct(list(schema)), {_number(each) for each in schema}
        with self._table.io.new_input(task.file.file_path).open() as file, pq.ParquetFile(file) as parquet:
            found = [each.name for each in parquet.schema_arrow if _number(each) in wanted]
            for batch in parquet.iter_batches(batch_size=_ROWS, columns=found):
                rows = pa.RecordBatch.from_struct_array(_aligned(batch.to_struct_array(), kind))
                yield pa.Table.from_batches([rows])

    # -- commits

    def result(self, **fields: Any) -> IcebergResult:
        return IcebergResult(identifier=self.where, snapshot_id=self.number, version=self.updates, **fields)

    def overwrite(
        self, schema: pa.Schema, tables: Tables, manifest: Manifest, *, kept: Tables = (), before: Fields = ()
    ) -> None:
        gone: list[Any] = []
        with self.errors("write"):
            if self._table is None:
                work = self._catalog.create_table_transaction(self._name, schema, properties=_PROPERTIES)
            else:
                work = self._begun()
                same = {each.name for each in before if each in schema}
                with work.update_schema(allow_incompatible_changes=True) as update:
                    for each in self._table.schema().fields:
                        if each.name not in same:
                            update.delete_column((each.name,))
                _add_columns(work, schema)
                gone += [task.file for task in self._table.scan().plan_files()]
        self._commit(work, schema, chain(tables, kept), gone, manifest)

    def merge(self, source: mirror.Source, manifest: Manifest, *, grown: bool) -> None:
        shape = source.shape
        with self.errors("update"):
            work = self._begun()
            if grown:
                _add_columns(work, shape.schema)
            tasks = [*self._table.scan().plan_files()]
        stored, head = (
            work.table_metadata.schema(),
            [shape.schema.field(name) for name in (KEY, COLLECTION_ID)],
        )
        keys, fields = _numbered(pa.schema(head), stored), _numbered(shape.schema, stored)
        with self.errors("read"):
            touched = [
                task
                for task in tasks
                if any(source.touched.have(shape.head_of(rows)).any() for rows in self._rows(task, keys))
            ]
        rows = chain(source.rows(), self._untouched(touched, fields, source))
        self._commit(work, shape.schema, rows, [task.file for task in touched], manifest)

    def _untouched(self, tasks: list[Any], fields: pa.Schema, source: mirror.Source) -> Iterator[pa.Table]:
        """What stays of data files."""
        with self.errors("read"):
            for task in tasks:
                for rows in self._rows(task, fields):
                    some = ~source.touched.have(source.shape.head_of(rows))
                    yield rows.filter(pa.array(some)).cast(source.shape.schema)

    def note(self, manifest: Manifest) -> None:
        with self.errors("update"):
            work = self._begun()
        self._commit(work, pa.schema([]), (), [], manifest)

    def _begun(self) -> Any:
        """A transaction that is committed to the table as it was opened, or not at all."""
        if not _PROPERTIES.items() <= self._table.properties.items():
            self._table.transaction().set_properties(_PROPERTIES).commit_transaction()
        if (now := self._table.metadata.current_snapshot_id or 0) != self.number:
            raise self._lost[0](f"its snapshot is {now}")
        return self._table.transaction()

    def _commit(
        self, work: Any, schema: pa.Schema, tables: Iterable[pa.Table], gone: list[Any], manifest: Manifest
    ) -> None:
        """Have rows take the place of data files."""
        with mirror.unchanged_errors(tables) as batches, self.errors("write"):
            files = [*self._written(work, schema, batches)]
        packed = base64.b64encode(zlib.compress(manifest.to_bytes())).decode()
        with self.errors("commit"):
            update = work.update_snapshot(snapshot_properties={mirror.APP: packed})
            snapshot = update.overwrite() if gone else update.fast_append()
            for each in gone:
                snapshot.delete_data_file(each)
            for each in files:
                snapshot.append_data_file(each)
            snapshot.commit()
            number = str(snapshot.snapshot_id)
            work.set_properties({_UPDATE: str(manifest.version), _SNAPSHOT: number, _POSITIONS: packed})
            work.commit_transaction()
        self.number, self.updates = snapshot.snapshot_id, manifest.version

    def _written(self, work: Any, schema: pa.Schema, batches: Iterator[pa.RecordBatch]) -> Iterator[Any]:
        """Rows as data files, which are of no table yet.

        pyiceberg's own writer (0.12) makes null lists of objects empty ones.
        """
        from pyiceberg.io.pyarrow import parquet_file_to_data_file  # noqa: PLC0415 - optional
        from pyiceberg.table.locations import load_location_provider  # noqa: PLC0415 - as above

        metadata = work.table_metadata
        io = work._table.io  # noqa: SLF001 - that of a table that is not there yet is nowhere else
        fields = _numbered(schema, metadata.schema())
        place = load_location_provider(metadata.location, metadata.properties)
        groups = row_groups(batches)
        for first in groups:
            path = place.new_data_location(f"{uuid4()}.parquet")
            with (
                io.new_output(path).create() as output,
                pq.ParquetWriter(output, fields, compression="zstd", store_decimal_as_integer=True) as writer,
            ):
                size = 0
                for group in chain([first], groups):
                    writer.write_table(group.cast(fields), row_group_size=len(group))
                    size += group.nbytes
                    if size >= _FILE_BYTES:
                        break
            yield parquet_file_to_data_file(io, metadata, path)


def _packed(snapshot: Any) -> str | None:
    """The manifest of a snapshot, if it is one of ours."""
    found = {} if snapshot.summary is None else snapshot.summary.additional_properties
    packed: str | None = found.get(mirror.APP)
    return packed


def _errors() -> tuple[tuple[type[Exception], ...], tuple[type[Exception], ...]]:
    """Those of pyiceberg that say that another writer was faster, and all others."""
    try:
        import pyiceberg.io.pyarrow  # noqa: F401, PLC0415 - optional
        from pyiceberg import exceptions  # noqa: PLC0415 - as above
    except ImportError as exc:
        raise DependencyError("pyiceberg is not installed", hint=_INSTALL) from exc
    if int(pa.__version__.split(".")[0]) < _OLDEST_PYARROW:
        raise DependencyError(f"pyarrow is older than {_OLDEST_PYARROW}", hint=_INSTALL)
    known = [each for each in vars(exceptions).values() if isinstance(each, type)]
    try:
        from sqlalchemy.exc import SQLAlchemyError  # noqa: PLC0415 - optional, for catalogues in databases
    except ImportError:
        SQLAlchemyError = OSError  # noqa: N806 - a class
    lost = exceptions.CommitFailedException, exceptions.TableAlreadyExistsError
    return lost, (*known, SQLAlchemyError, OSError, ValueError)


def _catalog_of(catalog: CatalogLike) -> tuple[Any, bool]:
    """The catalogue, and whether it was opened here."""
    from pyiceberg.catalog import Catalog, load_catalog  # noqa: PLC0415 - optional
    from pyiceberg.exceptions import NotInstalledError  # noqa: PLC0415 - as above

    if isinstance(catalog, Catalog):
        return catalog, False
    try:
        return (load_catalog(catalog) if isinstance(catalog, str) else load_catalog(**catalog)), True
    except NotInstalledError as exc:
        raise DependencyError(f"pyiceberg needs a library for the catalogue: {exc}") from exc
    except (TypeError, ValueError):
        # What pyiceberg says has all properties in it, passwords, too.
        raise ConfigurationError(
            f"catalog= {'names' if isinstance(catalog, str) else 'is'} no catalogue of pyiceberg",
            hint="give a Catalog, its name in pyiceberg's configuration, or its properties: type, uri, …",
        ) from None


def _add_columns(work: Any, schema: pa.Schema) -> None:
    """Those that the table has not yet."""
    have = {each.name for each in work.table_metadata.schema().fields}
    with work.update_schema() as update:
        update.union_by_name(pa.schema([each for each in schema if each.name not in have]))


# --- fields, known by their numbers


def _numbered(schema: pa.Schema, stored: Any) -> pa.Schema:
    """Columns with the numbers that they and what is inside have in a table; without, where it has none."""
    fields = {each.name: each for each in stored.fields}
    return pa.schema(
        [_field(each.type, fields[each.name]) if each.name in fields else each for each in schema]
    )


def _field(kind: pa.DataType, stored: Any) -> pa.Field:
    """A type as a field of a table, a `pyiceberg.types.NestedField`."""
    inner = stored.field_type
    if pa.types.is_struct(kind):
        kind = pa.struct([_field(kind.field(each.name).type, each) for each in inner.fields])
    elif is_list(kind):
        kind = pa.list_(_field(kind.value_type, inner.element_field))
    elif pa.types.is_map(kind):
        name = _field(kind.key_type, inner.key_field).with_nullable(False)
        kind = pa.map_(name, _field(kind.item_type, inner.value_field))
    return pa.field(stored.name, kind, metadata={_NUMBER: str(stored.field_id)})


def _number(field: pa.Field) -> bytes | None:
    return (field.metadata or {}).get(_NUMBER)


def _aligned(array: pa.Array, kind: pa.DataType) -> pa.Array:
    """Values of a file under the names, and in the order, that the table has; other writers have others."""
    if pa.types.is_struct(kind):
        there = {_number(each): values for values, each in zip(array.flatten(), array.type, strict=True)}
        members = [
            pa.nulls(len(array), each.type)
            if (values := there.get(_number(each))) is None
            else _aligned(values, each.type)
            for each in kind
        ]
        return with_members(array, members, kind)
    return with_inner(array, kind, _aligned) if is_nested(kind) else array.cast(kind)


# --- what is called


@mirror.with_arguments
def to_iceberg(
    conn: ServerURLs | Connectable,
    identifier: str | tuple[str, ...],
    *,
    catalog: CatalogLike,
    mode: Literal["error", "overwrite"] = "error",
    table_per: Literal["collection"] | None = None,
    **arguments: Unpack[mirror.MirrorArguments],
) -> IcebergResult:
    """Copy a bucket into an Iceberg table, which :func:`update_iceberg` brings up to date.

    The table appears whole or not at all. Documents wait in temporary files (`spool_dir`), and memory does
    not depend on the size of the bucket. What the table looks like is in the documentation of this module. It
    has documents whose expiry has passed until the server removes them.

    Parameters
    ----------
    identifier
        The name of the table, after that of its namespace: ``"lake.travel"``. The namespace must be there.
    catalog
        A ``pyiceberg.catalog.Catalog``; or the name of one in pyiceberg's configuration; or its properties,
        as ``{"type": "sql", "uri": "sqlite:///…", "warehouse": "file://…"}``, its ``name`` among them.
    conn, mode, table_per, bucket, auth, tls, network, scope, collections, columns, filters, keys, \
key_prefix, key_pattern, keys_only, parse, xattrs, nested, schema, on_conflict, max_struct_fields, \
parse_dates, transaction_records, consistency, only_persisted, batch_bytes, buffer_bytes, spool_dir, \
spill_bytes, timeout, progress, event_log, options, clock
        As of :func:`cbframe.contrib.delta.to_delta`.

    Raises
    ------
    DependencyError
        pyiceberg is not installed, or what it needs for the catalogue.
    CbframeError
        Otherwise as :func:`cbframe.contrib.delta.to_delta`.
    """
    table = partial(Iceberg, identifier, catalog)
    return cast("IcebergResult", mirror.copied(table, {"conn": conn, **arguments}, mode, table_per))


@mirror.with_arguments
def update_iceberg(
    conn: ServerURLs | Connectable,
    identifier: str | tuple[str, ...],
    *,
    catalog: CatalogLike,
    **arguments: Unpack[mirror.MirrorArguments],
) -> IcebergResult:
    """Bring an Iceberg table up to date with what changed in the bucket since.

    Rows and positions are one commit: a process that ends at any moment leaves the table as it was, or as it
    should be, and the next update goes on from there. Where nothing changed, there is no commit.

    Parameters
    ----------
    identifier, catalog
        Where :func:`to_iceberg` made the table.
    conn, bucket, auth, tls, network, scope, collections, columns, filters, keys, key_prefix, key_pattern, \
keys_only, parse, xattrs, nested, schema, on_conflict, max_struct_fields, parse_dates, \
transaction_records, consistency, only_persisted, batch_bytes, buffer_bytes, spool_dir, spill_bytes, \
timeout, progress, event_log, options, clock
        As of :func:`cbframe.contrib.delta.update_delta`.

    Raises
    ------
    CbframeError
        As :func:`cbframe.contrib.delta.update_delta`. The table stays as it is.
    """
    table = partial(Iceberg, identifier, catalog)
    return cast("IcebergResult", mirror.updated(table, {"conn": conn, **arguments}))
