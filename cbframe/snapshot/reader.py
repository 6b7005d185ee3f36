"""The documents of one version, read file by file, and what changed between two.

One schema, only what is wanted, in bounded memory.

:class:`VersionReader` reads row groups, leaves out the rows that do not count or do not pass filters, and
brings the columns of each file to those of the whole version. :class:`FileFilter` gives filters the answer
that they have on the documents themselves, or refuses where a file no longer has what that needs.

:func:`changes` gives what changed between two versions. Most of it was recorded: the rows that the versions
in between wrote, and that still count. What was taken back, or went with its collection, left no rows: for
the vbuckets concerned, the documents of both versions are compared (:class:`_Compensation`).
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from msgspec import DecodeError

from cbframe.arrow.column_types import Columns, Kind, is_text, rendered, unify, widen
from cbframe.arrow.columns import (
    COLLECTION_ID,
    COLLECTION_NAMES,
    DATATYPE,
    KEY,
    KEY_TYPES,
    METADATA_TYPES,
    SEQNO,
    VBUCKET,
    KeyForm,
    Mask,
    formed,
    is_json,
    with_keys,
)
from cbframe.arrow.filters import (
    Filters,
    Moment,
    Predicate,
    compared,
    decoded,
    family,
    family_of,
    holds,
    never,
    nouns,
    passing,
    predicates,
    unknown,
    value_at,
)
from cbframe.errors import ConfigurationError, SnapshotError
from cbframe.json.arrays import member_of
from cbframe.json.layout import Path, path_of
from cbframe.json.typer import OURS, REASON, REST, VALUE, column_name
from cbframe.scan.changes import CHANGE_TYPE, UPSERT
from cbframe.scan.shape import flattened, selected
from cbframe.scan.spec import METADATA_NAMES, Nested
from cbframe.scan.store import Store
from cbframe.snapshot.files import (
    HEAD,
    METADATA,
    Live,
    Part,
    RollbackSeqnos,
    damaged,
    heads,
    made_way,
    matching,
    opened,
    shown,
)
from cbframe.snapshot.manifest import Drop, FileEntry, History, Manifest, Rollback

_DEFAULT = "_default._default"
_TYPES = {
    **METADATA_TYPES,
    COLLECTION_ID: pa.uint32(),
    **dict.fromkeys((*COLLECTION_NAMES, CHANGE_TYPE), pa.string()),
}
_OURS = {KEY, VALUE, REASON, REST, COLLECTION_ID, *COLLECTION_NAMES, *METADATA_TYPES}
_TEXT = ("string", "moment", "clock")
_EVERY = ("boolean", "number", *_TEXT, "array", "object")
_BEGINNINGS = frozenset("-0123456789tf{[")
"""Of JSON values that are neither strings nor null."""


def column_of(path: Path) -> str:
    """The column that has a field: of metadata, or of documents."""
    return path[0] if path[0] in _OURS else column_name(path[0])


def kind_at(columns: Columns, path: Path) -> tuple[Kind, int] | None:
    """What a file holds of a field; None of one that it does not have."""
    kind = columns.kinds.get(column_of(path))
    if kind is None:
        return None
    for length in range(1, len(path)):
        if kind.json:
            return kind, length
        if pa.types.is_map(kind.type):
            if kind.item is None or not pa.types.is_string(kind.type.key_type):
                return kind, length
            kind = kind.item
        elif path[length] in kind.members:
            kind = kind.members[path[length]]
        else:
            return None
    return kind, len(path)


def families(kind: Kind) -> tuple[str, ...]:
    """The kinds of values that a field may have had."""
    if kind.json:
        return _EVERY
    if is_text(kind.type):
        return ("number",) if kind.digits else _EVERY if kind.mixed else _TEXT
    if pa.types.is_temporal(kind.type):
        return _TEXT
    if pa.types.is_binary(kind.type):
        return _EVERY
    held = family(kind.type)
    return () if held is None else (held,)


class FileFilter:
    """Filters on the rows of one version of a snapshot."""

    def __init__(self, filters: Filters | None, version: int, every: Sequence[Columns]) -> None:
        # Without filters, there is one group of no comparisons: all rows pass.
        self._filters = filters or ((),)
        self._version = version
        for predicate in self.of_fields():
            places = [kind_at(columns, predicate.path) for columns in every]
            kinds = [place[0] for place in places if place is not None]
            if every and not kinds:
                raise unknown("filters", predicate.path)
            held = dict.fromkeys(each for kind in kinds for each in families(kind))
            # Some values are gone, of whatever kind.
            error = None if any(kind.lost for kind in kinds) else never(predicate, list(held))
            if error is not None:
                raise error

    def of_fields(self) -> list[Predicate]:
        """Comparisons that are not about metadata."""
        return [each for each in predicates(self._filters) if not each.of_metadata]

    def metadata(self) -> list[str]:
        """Columns of metadata that are needed."""
        names = [each.path[0] for each in predicates(self._filters) if each.of_metadata]
        if any(each.op == "is" for each in self.of_fields()):
            names.append(DATATYPE)
        return list(dict.fromkeys(names))

    def documents(self, columns: Columns) -> list[str]:
        """Columns of a file that are needed."""
        names = [column_of(each.path) for each in self.of_fields()]
        if any(each.op == "is" for each in self.of_fields()):
            names.append(REASON)
        return [name for name in dict.fromkeys(names) if name in columns.kinds]

    def passing(self, table: pa.Table, columns: Columns) -> Mask:
        """Which rows of a file pass."""
        return passing(self._filters, len(table), partial(self._holding, table, columns))

    def may_pass(self, group: pq.RowGroupMetaData, columns: Columns) -> bool:
        """Whether a row group may have rows that pass, as its statistics tell."""
        if not any(self._filters):
            return True
        names = [group.column(at).path_in_schema for at in range(group.num_columns)]

        def may_hold(predicate: Predicate) -> bool:
            if predicate.of_metadata:
                return _may_hold(predicate, group.column(names.index(predicate.path[0])))
            place = kind_at(columns, predicate.path)
            name = ".".join((column_of(predicate.path), *predicate.path[1:]))
            # A field "a.b" and the field b of a have one name there.
            if place is None or names.count(name) != 1:
                return True
            kind = place[0]
            if kind.json or kind.mixed or kind.digits or kind.lost or _is_rounded(kind.type):
                return True
            return _may_hold(predicate, group.column(names.index(name)))

        return any(all(map(may_hold, some)) for some in self._filters)

    def _holding(self, table: pa.Table, columns: Columns, predicate: Predicate) -> Mask:
        if predicate.of_metadata:
            cells = table[predicate.path[0]]
            if predicate.path[0] == KEY:
                cells = cells.cast(pa.binary())
            return compared(cells, predicate)
        place = kind_at(columns, predicate.path)
        if place is None:
            found = np.full(len(table), predicate.op == "is")
        else:
            kind, length = place
            cells = _cells(table, predicate.path[:length])
            found = self._compared(cells, kind, predicate, predicate.path[length:])
        if predicate.op == "is":
            # What is no document has no field that could be null.
            sound = table[REASON].is_null() if REASON in table.column_names else None
            found &= is_json(table[DATATYPE].to_numpy()) if sound is None else sound.to_numpy()
        return found

    def _compared(self, cells: pa.ChunkedArray, kind: Kind, predicate: Predicate, rest: Path) -> Mask:
        if kind.lost:
            raise self._refusal(predicate, "no longer has all values of it as they were in the documents")
        if kind.json:
            return self._in_text(cells, kind, predicate, rest)
        if predicate.op in ("is", "is not"):
            return compared(cells, predicate)
        if pa.types.is_dictionary(kind.type):
            cells = cells.cast(kind.type.value_type)
        if kind.digits or kind.mixed:
            return self._in_text(cells, kind, predicate)
        if pa.types.is_nested(kind.type):
            # None of them equals a scalar.
            valid: Mask = cells.is_valid().to_numpy()
            return valid & predicate.negative
        if pa.types.is_temporal(kind.type):
            return self._in_time(cells, predicate)
        if _is_rounded(kind.type) and any(family_of(each) == "number" for each in predicate.literals):
            raise self._refusal(predicate, f"has it as {kind.type}, rounded")
        if pa.types.is_decimal(kind.type) and kind.type.scale:
            # Numbers with a fraction are doubles.
            cells = pa.chunked_array([pa.array(map(_double, cells.to_pylist()), pa.float64())])
        # Bytes, which are declared, are the text of any value.
        if pa.types.is_binary(kind.type) or (family(kind.type) is None and not pa.types.is_null(kind.type)):
            raise self._refusal(predicate, f"has it as {kind.type}")
        return compared(cells, predicate)

    def _in_text(self, cells: pa.ChunkedArray, kind: Kind, predicate: Predicate, rest: Path = ()) -> Mask:
        """Text of which each value has to be looked at."""
        found = np.zeros(len(cells), bool)
        for row, text in enumerate(cells.to_pylist()):
            value = decoded(text) if text is not None and (kind.json or kind.digits) else text
            value = value_at(value, rest)
            found[row] = holds(value, predicate)
            other = _otherwise(value) if kind.mixed and isinstance(value, str) else None
            if other is not None and holds(other, predicate) != found[row]:
                raise self._refusal(predicate, 'has it as text, in which the number 60 and "60" are the same')
        return found

    def _in_time(self, cells: pa.ChunkedArray, predicate: Predicate) -> Mask:
        if any(isinstance(each, str) for each in predicate.literals):
            raise self._refusal(
                predicate,
                f"has it as {cells.type}, and no longer as text",
                "compare it with a datetime, with a time zone where it has one",
            )
        if pa.types.is_date(cells.type):
            cells = cells.cast(pa.timestamp("s"))
        elif not pa.types.is_timestamp(cells.type):
            raise self._refusal(predicate, f"has it as {cells.type}")
        return compared(cells, predicate)

    def _refusal(self, predicate: Predicate, why: str, hint: str | None = None) -> ConfigurationError:
        name = ".".join(predicate.path)
        asked = nouns(list(dict.fromkeys(map(family_of, predicate.literals)))) if predicate.value else "null"
        return ConfigurationError(
            f"filters= compares {name!r} with {asked}, and version {self._version} of the snapshot {why}",
            hint=hint
            or f"read {name!r} without the filter and compare it there, use read_bucket(filters=...), which "
            'compares documents, or write the snapshot again (mode="overwrite") with on_conflict="json", '
            "which keeps what each value is",
        )


def _is_rounded(kind: pa.DataType) -> bool:
    """Whether numbers of a column are not those of the documents."""
    return bool(pa.types.is_floating(kind) and not pa.types.is_float64(kind))


def _otherwise(text: str) -> Any:
    """The value that text may have been in the document if it was no string; None if there is none."""
    if text[:1] not in _BEGINNINGS:
        return None
    try:
        return decoded(text)
    except DecodeError:
        return None


def _double(value: Any) -> float | None:
    return None if value is None else float(value)


def _cells(table: pa.Table, path: Path) -> pa.ChunkedArray:
    column = table[column_of(path)]
    for member in path[1:]:
        inside = member_of(column, member)
        assert inside is not None, "the file has it"
        column = inside
    return column


def _may_hold(predicate: Predicate, column: pq.ColumnChunkMetaData) -> bool:
    statistics = column.statistics
    if statistics is None or not statistics.has_min_max:
        return True
    low, high = statistics.min, statistics.max
    values = predicate.literals
    if not all(_like(low, value) for value in values):
        return True
    match predicate.op:
        case "==" | "in":
            return any(bool(low <= value <= high) for value in values)
        case "<":
            return bool(low < values[0])
        case "<=":
            return bool(low <= values[0])
        case ">":
            return bool(high > values[0])
        case ">=":
            return bool(high >= values[0])
        case _:
            return True


def _like(low: Any, value: Any) -> bool:
    if isinstance(low, bool) or isinstance(value, bool | Moment):
        return False
    return (isinstance(low, str) and isinstance(value, str)) or (
        isinstance(low, int | float) and isinstance(value, int | float)
    )


def refuse_rest(rest: pa.ChunkedArray, names: Collection[str], file: str) -> None:
    """See that documents have none of some fields beyond the columns of their file."""
    for name in names:
        start = json.dumps(name, ensure_ascii=False) + ":"
        suspects = rest.filter(pc.match_substring(rest, start))
        # Members have names, too.
        if any(name in json.loads(text) for text in suspects.to_pylist()):
            raise ConfigurationError(
                f"{name!r} is a column of some files only: documents in {file} have it in {REST}",
                hint=f"read all columns and look into {REST}, or make the snapshot again with columns=",
            )


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
        changes: bool = False,  # rows are changes: what kind, and of which collection
        moment: int | None = None,  # by when documents have expired; None to keep them
        documents: Columns | None = None,  # the columns of documents; None for those of the version
        keys: KeyForm | None = None,  # the form of keys; None for that of the snapshot
    ) -> None:
        self._store = store
        self._manifest = manifest
        self._nested = nested
        self._moment = moment
        self.expired = 0
        self._documents = documents_of(manifest) if documents is None else documents
        self._columns = None if columns is None else [self._path(path, "columns") for path in columns]
        self._filter = self._by_column(filters)
        self._keys: KeyForm = keys or manifest.options.get("keys", "text")
        self._named = {column_of(path) for path in self._columns or ()}
        self._wanted = self._documents
        if self._columns is not None:
            self._wanted = self._documents.select(
                name for name in self._documents.kinds if name in self._named
            )
        self._head = self._head_of(metadata, changes=changes)
        there = {field.name for field in self._head}
        asked = [name for name in self._filter.metadata() if name not in there]
        self._read_head = [*self._head, *(pa.field(name, _TYPES[name]) for name in asked)]
        """Also what only filters ask for."""
        empty = pa.schema([*self._read_head, *self._wanted.schema]).empty_table()
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
            names += COLLECTION_NAMES
        if changes:
            names = [CHANGE_TYPE, *names, *COLLECTION_NAMES, COLLECTION_ID]
        return [
            pa.field(KEY, KEY_TYPES[self._keys]),
            *(pa.field(name, _TYPES[name]) for name in dict.fromkeys(names)),
        ]

    def _path(self, path: Path, asked: str) -> Path:
        """Where a snapshot holds members only, they are columns with a dot in their names."""
        joined = ".".join(path)
        path = (made_way(path[0]), *path[1:])
        members = [list(path_of(each)) for each in self._manifest.options.get("columns") or ()]
        if joined in self._documents.kinds and list(path) in members:
            return (joined,)
        text = self._json_text_on(path)
        if text is not None and asked == "columns":
            # There may well be documents that have it, and none would be found.
            raise ConfigurationError(
                f"{asked}= names {joined!r}, and {'.'.join(text)!r} is JSON text in this snapshot",
                hint=f"read {'.'.join(text)!r}, and look into the text",
            )
        if REST in self._documents.kinds and column_of(path) not in {*self._documents.kinds, *_TYPES}:
            raise ConfigurationError(
                f"{asked}= names {joined!r}, and some fields are in {REST}, as JSON text",
                hint=f"read {REST!r} and look into the text, or make the snapshot again with columns=",
            )
        return path

    def _json_text_on(self, path: Path) -> Path | None:
        """The field on the way to another one that is JSON text."""
        kind = self._documents.kinds.get(path[0])
        for length in range(1, len(path)):
            if kind is None or kind.json:
                return None if kind is None else path[:length]
            kind = kind.members.get(path[length])
        return None

    def _by_column(self, filters: Filters | None) -> FileFilter:
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
            for group in filters or ()
        )
        used = dict.fromkeys(entry.columns for entry in self._manifest.files if entry.upserts)
        return FileFilter(made, self._manifest.version, [self._manifest.columns[at] for at in used])

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
        columns = self._manifest.columns[part.entry.columns]
        with opened(self._store, part.entry) as file:
            start = 0
            for group in range(file.num_row_groups):
                metadata = file.metadata.row_group(group)
                keep = None if part.keep is None else part.keep[start : start + metadata.num_rows]
                start += metadata.num_rows
                if (keep is None or keep.any()) and self._filter.may_pass(metadata, columns):
                    table = self._formed(self._group(file, group, columns, keep, part.entry))
                    if len(table):
                        yield table

    def _group(
        self, file: pq.ParquetFile, group: int, columns: Columns, keep: Mask | None, entry: FileEntry
    ) -> pa.Table:
        """A row group with the columns that are wanted, as the whole snapshot has them."""
        there = [name for name in self._wanted.kinds if name in columns.kinds]
        named = {*self._named, *(column_of(each.path) for each in self._filter.of_fields())}
        absent = [name for name in self._documents.kinds if name in named and name not in columns.kinds]
        beside = [REST] if absent and REST in columns.kinds else []
        head = [field.name for field in self._read_head]
        read = dict.fromkeys([*head, *there, *self._filter.documents(columns), *beside])
        table = file.read_row_group(group, columns=[*read])
        if read and len(table) != (rows := file.metadata.row_group(group).num_rows):
            raise damaged(self._store, entry, f"{len(table):,} rows instead of {rows:,}")
        if keep is not None and not keep.all():
            table = table.filter(pa.array(keep))
        if beside:
            refuse_rest(table[REST], absent, self._store.where(entry.name))
        passing = self._filter.passing(table, columns)
        if not passing.all():
            table = table.filter(pa.array(passing))
        documents = widen(table.select(there), columns.select(there), self._wanted)
        # Files that earlier versions of cbframe wrote may hold keys as strings.
        cells = [
            formed(table[KEY], self._keys) if field.name == KEY else table[field.name].cast(field.type)
            for field in self._read_head
        ]
        schema = pa.schema([*self._read_head, *documents.schema])
        return pa.table([*cells, *documents.columns], schema=schema)

    def _formed(self, table: pa.Table) -> pa.Table:
        """The columns that were asked for."""
        head = table.select([field.name for field in self._head])
        documents = table.select(list(self._wanted.kinds))
        if self._columns is not None:
            documents = selected(documents, self._columns, rows=len(head))
        if self._nested == "flatten":
            documents = flattened(documents)
        documents = rendered(documents)
        if not documents.column_names:
            return head
        schema = pa.schema([*head.schema, *documents.schema])
        return pa.table([*head.columns, *documents.columns], schema=schema)


def documents_of(manifest: Manifest) -> Columns:
    """The columns of the documents of all files together."""
    used = dict.fromkeys(entry.columns for entry in manifest.files)
    most = manifest.options.get("max_struct_fields", 1000)
    return unify([manifest.columns[number] for number in used], max_members=most)


# --- what changed between two versions


RESTORE, RETRACT, DROP = "restore", "retract", "drop"
_BEFORE, _THEN = 0, 1
"""In each vbucket: rows that no change of the server explains, then its changes."""
_Place: TypeAlias = tuple[int, int]
"""Vbucket and seqno."""
_NOTHING = pa.schema(
    [
        (KEY, pa.binary()),
        (COLLECTION_ID, pa.uint32()),
        (VBUCKET, pa.uint16()),
        (SEQNO, pa.uint64()),
        (CHANGE_TYPE, pa.string()),
    ]
).empty_table()


def changes(
    store: Store, history: History, since: Manifest, until: Manifest, keys: KeyForm | None = None
) -> pa.Table:
    """The changes, in order within each vbucket."""
    line = _line(history, since, until)
    documents = unify([columns for each in (since, *line) for columns in each.columns])

    def reader(manifest: Manifest) -> VersionReader:
        # What was recorded is compared with what files hold: by the bytes.
        return VersionReader(
            store, manifest, metadata=METADATA, changes=True, documents=documents, keys="binary"
        )

    rollback_seqnos = RollbackSeqnos(until.rollbacks)
    tables = [reader(until).schema.empty_table()]
    for manifest in line:
        tables += reader(manifest).tables(_own_parts(store, manifest, rollback_seqnos))
    recorded = pa.concat_tables(tables)
    # Another collection of the same name may have taken the place of one that was dropped.
    dead = pc.is_in(recorded[COLLECTION_ID], value_set=pa.array(until.dead, pa.uint32()))
    recorded = recorded.filter(pc.invert(dead))
    pieces = [(_THEN, recorded)]
    affected = _affected(since, until)
    if affected:
        pieces += _Compensation(store, reader, since, until, affected).pieces(recorded)
    whole = pa.concat_tables([table for _, table in pieces])
    rank = np.concatenate([np.full(len(table), rank) for rank, table in pieces])
    order = np.lexsort((whole[SEQNO].to_numpy(), rank, whole[VBUCKET].to_numpy()))
    found = whole.take(pa.array(order)).drop_columns([COLLECTION_ID])
    return with_keys(found, keys or until.options.get("keys", "text"))


def _line(history: History, since: Manifest, until: Manifest) -> list[Manifest]:
    """Versions from the one after `since` to `until`."""
    line: list[Manifest] = []
    for each in history.ancestors(until):
        if each.version == since.version:
            return line[::-1]
        line.append(each)
    if line and line[-1].kind != "create" and line[-1].parent > since.version:
        raise SnapshotError(
            f"version {line[-1].parent}, which is between {since.version} and {until.version}, is damaged "
            "or was deleted",
            path=history.root,
            hint="Snapshot(path).versions lists what there is; vacuum(keep=...) keeps more",
        )
    raise ConfigurationError(
        f"version {until.version} was not made from version {since.version}",
        hint='changes() needs an earlier version, with all in between; mode="overwrite" begins again',
    )


def _own_parts(store: Store, manifest: Manifest, rollback_seqnos: RollbackSeqnos) -> list[Part]:
    """What a version brought, and was not rolled back since."""
    parts = []
    for entry in manifest.files:
        if entry.version != manifest.version or manifest.kind == "compact":
            continue
        part = Part(entry, None)
        if rollback_seqnos.concern(entry):
            counts = partial(rollback_seqnos.mask, entry.version)
            part = part.only(matching(store, entry, (VBUCKET, SEQNO), counts))
        parts.append(shown(store, manifest, part))
    return parts


def _affected(since: Manifest, until: Manifest) -> list[int]:
    """Vbuckets in which something went that no deletion tells of."""
    if until.dead != since.dead:
        return list(range(len(until.positions)))
    news: list[Rollback | Drop] = [*until.rollbacks, *until.drops]
    return sorted({vbucket for each in news if each.version > since.version for vbucket in each.vbuckets})


class _Compensation:
    """What has to be done besides what was recorded, to come from one version to the other.

    Looks at the documents of the vbuckets concerned one by one: rollbacks are rare.
    """

    def __init__(
        self, store: Store, reader: Any, since: Manifest, until: Manifest, affected: Sequence[int]
    ) -> None:
        self._store = store
        self._reader = reader
        self._since = since
        self._until = until
        self._affected = pa.array(affected, pa.uint16())

    def pieces(self, recorded: pa.Table) -> Iterator[tuple[int, pa.Table]]:
        """Rows, and where they belong in their vbuckets."""
        old, new, log = (
            self._documents(self._since),
            self._documents(self._until),
            self._some(recorded.select(HEAD)),
        )
        codes = _codes([old, log, new])
        before = dict(zip(codes[: len(old)].tolist(), _places(old), strict=True))
        came: dict[int, _Place | None] = {}
        order = np.lexsort((log[SEQNO].to_numpy(), log[VBUCKET].to_numpy())).tolist()
        places, kinds, some = _places(log), log[CHANGE_TYPE].to_pylist(), codes[len(old) :].tolist()
        for row in order:
            came[some[row]] = places[row] if kinds[row] == UPSERT else None
        after = dict(zip(codes[len(old) + len(log) :].tolist(), _places(new), strict=True))
        # Who applied what was recorded has what came, or what was before.
        have = before | came
        restored = {place for code, place in after.items() if have.get(code) != place}
        yield _BEFORE, _marked(self._at(self._until, restored), RESTORE)
        lost = {place for code, place in before.items() if code not in after and code not in came}
        yield from self._gone(self._at(self._since, lost))
        lost = {place for code, place in came.items() if code not in after and place is not None}
        yield from self._gone(recorded.filter(pa.array(_standing(recorded, lost))))

    def _gone(self, table: pa.Table) -> Iterator[tuple[int, pa.Table]]:
        ends = {
            (vbucket, drop.collection): seqno
            for drop in self._until.drops
            if drop.version > self._since.version
            for vbucket, seqno in drop.vbuckets.items()
        }
        of = zip(table[VBUCKET].to_pylist(), table[COLLECTION_ID].to_pylist(), strict=True)
        emptied_at = pa.array([ends.get(place) for place in of], pa.uint64())
        dead = np.isin(table[COLLECTION_ID].to_numpy(), self._until.dead)
        emptied = emptied_at.is_valid().to_numpy(zero_copy_only=False) & ~dead
        yield _BEFORE, _bare(table.filter(pa.array(dead)), DROP)
        yield _BEFORE, _bare(table.filter(pa.array(~emptied & ~dead)), RETRACT)
        # Where it was emptied: more may follow.
        dropped = _bare(table.filter(pa.array(emptied)), DROP)
        at = dropped.column_names.index(SEQNO)
        yield _THEN, dropped.set_column(at, SEQNO, emptied_at.filter(pa.array(emptied)))

    def _some(self, table: pa.Table) -> pa.Table:
        return table.filter(pc.is_in(table[VBUCKET], value_set=self._affected))

    def _documents(self, manifest: Manifest) -> pa.Table:
        """Which documents a version has in the vbuckets concerned."""
        tables = [_NOTHING]
        for part in Live(self._store, manifest).parts():
            table = pa.concat_tables([*heads(self._store, part.entry)])
            tables.append(self._some(table if part.keep is None else table.filter(pa.array(part.keep))))
        return pa.concat_tables(tables)

    def _at(self, manifest: Manifest, places: set[_Place]) -> pa.Table:
        """Documents of a version that stand there."""
        parts = []
        for part in Live(self._store, manifest).parts() if places else ():
            standing = partial(_standing, places=places)
            parts.append(part.only(matching(self._store, part.entry, (VBUCKET, SEQNO), standing)))
        reader = self._reader(manifest)
        return pa.concat_tables([reader.schema.empty_table(), *reader.tables(parts)])


def _codes(tables: Iterable[pa.Table]) -> npt.NDArray[np.int64]:
    """A number for each document, alike in all tables."""
    whole = pa.concat_tables(tables).combine_chunks()
    indices = whole[KEY].dictionary_encode().unify_dictionaries().combine_chunks().indices
    number: npt.NDArray[np.int64] = np.asarray(indices).astype(np.int64)
    collection: npt.NDArray[np.int64] = whole[COLLECTION_ID].to_numpy().astype(np.int64)
    return number << 32 | collection


def _places(table: pa.Table) -> list[_Place]:
    return list(zip(table[VBUCKET].to_pylist(), table[SEQNO].to_pylist(), strict=True))


def _standing(table: pa.Table, places: set[_Place]) -> npt.NDArray[np.bool_]:
    found: npt.NDArray[np.bool_] = np.fromiter(
        (place in places for place in _places(table)), bool, len(table)
    )
    return found


def _marked(table: pa.Table, kind: str) -> pa.Table:
    at = table.column_names.index(CHANGE_TYPE)
    return table.set_column(at, CHANGE_TYPE, pa.array([kind] * len(table), pa.string()))


def _bare(table: pa.Table, kind: str) -> pa.Table:
    """What is recorded of a document that is gone: not its fields."""
    kept = {*HEAD, *COLLECTION_NAMES}
    columns = [
        column if field.name in kept else pa.nulls(len(table), field.type)
        for field, column in zip(table.schema, table.columns, strict=True)
    ]
    return _marked(pa.table(columns, schema=table.schema), kind)
