"""The documents of one version, read file by file: one schema, only what is wanted, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cbframe.arrow.columns import COLLECTION_ID, KEY, METADATA_TYPES
from cbframe.arrow.documents.filters import Filters, Predicate, predicates
from cbframe.arrow.documents.rendered import rendered
from cbframe.arrow.documents.unify import Columns, unify
from cbframe.arrow.documents.widen import widen
from cbframe.arrow.keys import KEY_TYPES, KeyForm, formed
from cbframe.errors import ConfigurationError
from cbframe.json.layout import Path, path_of
from cbframe.json.typer import OURS, REST
from cbframe.scan.shape import flattened, selected
from cbframe.scan.spec import METADATA_NAMES, Nested
from cbframe.snapshot.live import Live, Part
from cbframe.snapshot.manifest import FileEntry, Manifest
from cbframe.snapshot.parquet import opened
from cbframe.snapshot.pick import FileFilter, column_of, refuse_rest
from cbframe.snapshot.sink import CHANGE_TYPE, made_way
from cbframe.snapshot.store import Store

_NAMES = ("_cb_scope", "_cb_collection")
_DEFAULT = "_default._default"
_TYPES = {**METADATA_TYPES, COLLECTION_ID: pa.uint32(), **dict.fromkeys((*_NAMES, CHANGE_TYPE), pa.string())}


class VersionReader:
    """Reads the rows of a version."""

    def __init__(
        self,
        store: Store,
        manifest: Manifest,
        *,
        metadata: Sequence[str] = ("key",),
        columns: Sequence[Path] | None = None,  # paths of fields; None for all
        filters: Filters | None = None,  # rows that do not pass are left out
        nested: Nested = "struct",  # as of a scan; `"flatten"` makes columns of members
        changes: bool = False,
        moment: int | None = None,
        documents: Columns | None = None,
        keys: KeyForm | None = None,  # the form of keys; None for that of the snapshot
    ) -> None:
        self._store = store
        self._manifest = manifest
        self._nested = nested
        self._moment = moment
        self.expired = 0
        self._documents = documents_of(manifest) if documents is None else documents
        self._columns = None if columns is None else [self._path(path, "columns") for path in columns]
        self._filter = None if filters is None else self._by_column(filters)
        self._keys: KeyForm = keys or manifest.options.get("keys", "text")
        self._named = {column_of(path) for path in self._columns or ()}
        self._head = self._head_of(metadata, changes=changes)
        self._wanted = self._fields()
        empty = pa.schema([*self._metadata(), *self._wanted.schema]).empty_table()
        self.schema = self._formed(empty).schema

    def _head_of(self, metadata: Sequence[str], *, changes: bool) -> list[pa.Field]:
        unknown = [name for name in metadata if name not in METADATA_NAMES]
        if unknown:
            raise ConfigurationError(
                f"metadata {unknown[0]!r} does not exist", hint=f"choose from: {', '.join(METADATA_NAMES)}"
            )
        if "xattrs" in metadata and not self._manifest.options.get("xattrs"):
            raise ConfigurationError(
                "the snapshot has no extended attributes", hint="make it again with xattrs=True"
            )
        names = [f"{OURS}{name}" for name in metadata if name != "key"]
        if any(name != _DEFAULT for name in self._manifest.collections.values()):
            names = list(dict.fromkeys([*names, *_NAMES]))
        if changes:
            names = list(dict.fromkeys([CHANGE_TYPE, *names, *_NAMES, COLLECTION_ID]))
        return [
            pa.field(KEY, KEY_TYPES[self._keys]),
            *(pa.field(name, _TYPES[name]) for name in names),
        ]

    def _path(self, path: Path, asked: str) -> Path:
        """Where a snapshot holds members only, they are columns with a dot in their names."""
        joined = ".".join(path)
        names = self._documents.schema.names
        path = (made_way(path[0]), *path[1:])
        if joined in names and list(path) in map(_parts, self._manifest.options.get("columns") or ()):
            return (joined,)
        text = next((path[:end] for end in range(1, len(path)) if path[:end] in self._documents.json), None)
        if text is not None and asked == "columns":
            # There may well be documents that have it, and none would be found.
            raise ConfigurationError(
                f"{asked}= names {joined!r}, and {'.'.join(text)!r} is JSON text in this snapshot",
                hint=f"read {'.'.join(text)!r}, and look into the text",
            )
        if REST in names and column_of(path) not in {*names, *_TYPES}:
            raise ConfigurationError(
                f"{asked}= names {joined!r}, and some fields are in {REST}, as JSON text",
                hint=f"read {REST!r} and look into the text, or make the snapshot again with columns=",
            )
        return path

    def _by_column(self, filters: Filters) -> FileFilter:
        options = self._manifest.options
        if options.get("keys_only") or not options.get("parse", True):
            fields = [each for each in predicates(filters) if not each.of_metadata]
            if fields:
                raise ConfigurationError(
                    f"filters= names {'.'.join(fields[0].path)!r}, and the snapshot has no fields",
                    hint="it was made with keys_only=True or parse=False: filter by columns of metadata",
                )
        made = tuple(
            tuple(
                each if each.of_metadata else replace(each, path=self._path(each.path, "filters"))
                for each in group
            )
            for group in filters
        )
        used = dict.fromkeys(entry.columns for entry in self._manifest.files if entry.upserts)
        return FileFilter(made, self._manifest.version, [self._manifest.columns[at] for at in used])

    def _fields(self) -> Columns:
        """The columns of documents that have to be read."""
        names = self._documents.schema.names
        if self._columns is None:
            return self._documents
        return self._documents.select([name for name in names if name in self._named])

    def _metadata(self) -> list[pa.Field]:
        """What is read of it: also what only filters want."""
        there = {field.name for field in self._head}
        asked = [] if self._filter is None else self._filter.metadata()
        more = [name for name in asked if name not in there]
        return [*self._head, *(pa.field(name, _TYPES[name]) for name in more)]

    def _filter_fields(self) -> list[Predicate]:
        return [] if self._filter is None else self._filter.of_fields()

    def tables(self, parts: Sequence[Part] | None = None) -> Iterator[pa.Table]:
        """The rows that count, a table for each row group that has some."""
        if parts is None:
            live = Live(self._store, self._manifest, moment=self._moment)
            parts = live.parts()
            self.expired = live.expired
        for part in parts:
            if part.count:
                yield from self._of_part(part)

    def _of_part(self, part: Part) -> Iterator[pa.Table]:
        columns = self._manifest.columns_of(part.entry)
        with opened(self._store, part.entry) as file:
            start = 0
            for group in range(file.num_row_groups):
                metadata = file.metadata.row_group(group)
                keep = None if part.keep is None else part.keep[start : start + metadata.num_rows]
                start += metadata.num_rows
                if keep is not None and not keep.any():
                    continue
                if self._filter is not None and not self._filter.may_pass(metadata, columns):
                    continue
                table = self._formed(self._group(file, group, columns, keep, part.entry))
                if len(table):
                    yield table

    def _group(
        self, file: pq.ParquetFile, group: int, columns: Columns, keep: Any, entry: FileEntry
    ) -> pa.Table:
        """A row group with the columns that are wanted, as the whole snapshot has them."""
        fields, names = self._metadata(), columns.schema.names
        there = [name for name in self._wanted.schema.names if name in names]
        compared = [] if self._filter is None else self._filter.documents(columns)
        named = {*self._named, *(column_of(each.path) for each in self._filter_fields())}
        absent = [name for name in self._documents.schema.names if name in named and name not in names]
        beside = [REST] if absent and REST in names else []
        read = dict.fromkeys([*(field.name for field in fields), *there, *compared, *beside])
        table = file.read_row_group(group, columns=[*read])
        if keep is not None and not keep.all():
            table = table.filter(pa.array(keep))
        if beside:
            refuse_rest(table[REST], absent, self._store.where(entry.name))
        if self._filter is not None:
            table = table.filter(pa.array(self._filter.passing(table, columns)))
        documents = widen(table.select(there), columns.select(there), self._wanted)
        # Files that earlier versions of cbframe wrote may hold keys as strings.
        head = [
            formed(table[KEY], self._keys) if field.name == KEY else table[field.name].cast(field.type)
            for field in fields
        ]
        schema = pa.schema([*fields, *documents.schema])
        return pa.table([*head, *documents.columns], schema=schema)

    def _formed(self, table: pa.Table) -> pa.Table:
        """The columns that were asked for."""
        head = table.select([field.name for field in self._head])
        documents = table.select(self._wanted.schema.names)
        if self._columns is not None:
            documents = selected(documents, self._columns, rows=len(head))
        if self._nested == "flatten":
            documents = flattened(documents)
        documents = rendered(documents)
        if not documents.column_names:
            return head
        schema = pa.schema([*head.schema, *documents.schema])
        return pa.table([*head.columns, *documents.columns], schema=schema)


def _parts(column: str | list[str]) -> list[str]:
    return list(path_of(column))


def documents_of(manifest: Manifest) -> Columns:
    """The columns of the documents of all files together."""
    used = dict.fromkeys(entry.columns for entry in manifest.files)
    most = manifest.options.get("max_struct_fields", 1000)
    return unify([manifest.columns[number] for number in used], max_members=most)
