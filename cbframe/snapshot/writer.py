"""Writing a snapshot: what it holds, and one update, by which what changed becomes its next version.

What a snapshot holds (:data:`WANTED`) is decided when it is made and kept in its manifests, in the form that
:func:`stored_form` gives: :func:`agreed` refuses to update it with anything else. An update reads
(:class:`~cbframe.snapshot.bucket_changes.ChangeReader`), writes files, and publishes a manifest. Until then
no reader sees anything of it, and a writer that ends before that leaves only files that the next one deletes.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime, timedelta
from html import escape
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs

from cbframe.arrow.column_types import Columns, differences, unify
from cbframe.arrow.columns import KeyForm
from cbframe.arrow.filters import make_filters, restored_filters, stored_filters
from cbframe.cluster.tls import TLSLike
from cbframe.dcp.stats import EventLogLike
from cbframe.errors import ConfigurationError, ConversionError, SnapshotError
from cbframe.json.layout import OnConflict
from cbframe.options import BucketDataSourceOptions
from cbframe.public import Connectable, ServerURLs, public, warn
from cbframe.scan.names import difference, settled
from cbframe.scan.progress import Progress
from cbframe.scan.result import AsOf, Clock, Conflict, utc_now
from cbframe.scan.shape import joined
from cbframe.scan.spec import (
    VISIBLE,
    ColumnsLike,
    Consistency,
    Exclusion,
    FiltersLike,
    ScanSpec,
    SchemaLike,
    declared_types,
    flag,
)
from cbframe.scan.store import Store, open_store, writing
from cbframe.snapshot.bucket_changes import ChangeReader, Changes
from cbframe.snapshot.files import (
    FILE_BYTES,
    METADATA,
    ChangeFiles,
    check_form,
    count_rolled_back,
    made_way,
    parts_for,
    sweep,
)
from cbframe.snapshot.maintenance import count, mended
from cbframe.snapshot.manifest import (
    BLANK,
    Counts,
    Drop,
    FileEntry,
    History,
    Kind,
    Manifest,
    Rollback,
    RollbackPoints,
    behind,
    following,
    lag,
    publish,
)
from cbframe.snapshot.reader import documents_of

Mode = Literal["update", "create", "overwrite", "repair"]
_OF_SCANS = (
    "scope",
    "collections",
    "columns",
    "filters",
    "keys",
    "key_prefix",
    "key_pattern",
    "keys_only",
    "parse",
    "nested",
    "schema",
    "on_conflict",
    "max_struct_fields",
    "parse_dates",
    "transaction_records",
)
_DEFAULTS: dict[str, Any] = {
    **{each.name: each.default for each in fields(ScanSpec) if each.name in _OF_SCANS},
    "schema": None,
    "xattrs": False,
}
WANTED = frozenset(_DEFAULTS)
"""The arguments that are kept."""
HOW = (
    "conn",
    "bucket",
    "auth",
    "tls",
    "network",
    "consistency",
    "only_persisted",
    "batch_bytes",
    "buffer_bytes",
    "spool_dir",
    "spill_bytes",
    "timeout",
    "progress",
    "event_log",
    "options",
)
"""The arguments that say how one update reads."""


def stored_form(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """What was asked for, as JSON has it; what was left out is not in it."""
    chosen = {name: arguments[name] for name in _DEFAULTS if arguments.get(name) is not None}
    if isinstance(chosen.get("collections"), str) and chosen["collections"] != VISIBLE:
        chosen["collections"] = [chosen["collections"]]
    for name in ("collections", "columns", "parse_dates"):
        if isinstance(value := chosen.get(name), Iterable) and not isinstance(value, str | bytes | Mapping):
            chosen[name] = list(value)
    if isinstance(chosen.get("key_prefix"), bytes):
        try:
            chosen["key_prefix"] = chosen["key_prefix"].decode()
        except UnicodeDecodeError as exc:
            raise ConfigurationError("key_prefix= of a snapshot has to be text") from exc
    if "filters" in chosen:
        make_filters(chosen["filters"])
        chosen["filters"] = stored_filters(chosen["filters"])
    if "schema" in chosen:
        schema = pa.schema(list(declared_types(chosen["schema"]).items()))
        chosen["schema"] = base64.b64encode(schema.serialize().to_pybytes()).decode()
        if isinstance(arguments["schema"], pa.Schema):
            chosen["columns"] = [[name] for name in schema.names]
    if chosen.get("nested") == "flatten":
        raise ConfigurationError('nested="flatten" is for reading a snapshot, not for writing one')
    try:
        # As it will be read: tuples are lists.
        form: dict[str, Any] = json.loads(json.dumps(chosen, default=_plain))
    except (TypeError, ValueError) as exc:
        raise ConfigurationError(
            "an argument of a snapshot cannot be written to its manifest",
            hint="give plain numbers, strings and lists",
        ) from exc
    return form


def _plain(value: Any) -> Any:
    """A scalar of numpy's as Python has it."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"a {type(value).__name__} has no form in JSON")


def named(
    given: dict[str, Any], arguments: Mapping[str, Any], stored: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """What was given, with the names of the collections that the user sees now where it asks for these."""
    if given.get("collections") != VISIBLE:
        return given
    found = settled(spec_of(arguments, {**(stored or {}), **given})).named
    return {**given, "collections": list(found or ())}


def agreed(
    given: Mapping[str, Any],
    stored: Mapping[str, Any],
    *,
    made: str = "the snapshot",  # for messages: what was made, and how it is made again
    remedy: str = 'mode="overwrite"',
) -> None:
    """Refuse to update a snapshot with something else."""
    for name, value in given.items():
        before = stored.get(name, _DEFAULTS[name])
        if value != before:
            # Filters and prefixes may hold keys, or values that nobody should read in a log.
            secret = name in ("schema", "filters", "key_prefix", "key_pattern") and before is not None
            before_it = f"another {name}=" if secret else f"{name}={before!r}"
            what = difference(before, value) if name == "collections" else ""
            raise ConfigurationError(
                f"{made} was made with {before_it}{what}",
                hint=f"leave {name}= out to update it, or make it again with {remedy}",
            )


def spec_of(arguments: Mapping[str, Any], stored: Mapping[str, Any]) -> ScanSpec:
    """The scan that reads what is stored, in the way that the ``locals()`` of a function say."""
    asked = _DEFAULTS | dict(stored)
    if asked["schema"] is not None:
        read = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(asked["schema"])))
        asked["schema"] = {field.name: field.type for field in read}
    if isinstance(asked["columns"], list):  # what is no list is refused later
        asked["columns"] = [tuple(each) if isinstance(each, list) else each for each in asked["columns"]]
    asked["filters"] = restored_filters(asked["filters"])
    xattrs = flag("xattrs", asked.pop("xattrs"))
    asked["metadata"] = (*METADATA, "xattrs") if xattrs else METADATA
    # Files have documents until the server has removed them: who reads says by when they have expired.
    return ScanSpec.of(**{name: arguments[name] for name in HOW}, **asked, expired="keep")


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateResult:
    """What is said of any update of a copy of a bucket; :class:`SnapshotResult` says what the fields are."""

    bucket: str
    version: int
    changed: bool
    upserted: int
    deleted: int
    retracted: int
    dropped: tuple[str, ...]
    rolled_back: dict[int, int] = field(repr=False)
    read_again: dict[int, int] = field(repr=False)
    seconds: float
    as_of: AsOf
    conflicts: tuple[Conflict, ...] = field(default=(), repr=False)
    rejected: dict[str, int] = field(default_factory=dict, repr=False)
    transaction_records: int = 0
    clock_behind: timedelta = timedelta()

    @staticmethod
    def fields_of(
        changes: Changes, base: Manifest, manifest: Manifest, before: datetime | None, now: datetime
    ) -> dict[str, Any]:
        """Those that follow from what was read, and the version that was made of another one by that."""
        dropped = {*manifest.dead} - {*base.dead}
        return {
            "bucket": manifest.bucket,
            "upserted": manifest.counts.upserted,
            "deleted": manifest.counts.deleted,
            "retracted": manifest.counts.retracted,
            "dropped": tuple(sorted(base.collections[each] for each in dropped & base.collections.keys())),
            "rolled_back": changes.rolled_back,
            "read_again": changes.rollback_seqnos,
            "as_of": AsOf(changes.ran.as_of, manifest.created),
            "conflicts": changes.conflicts,
            "rejected": changes.rejected,
            "transaction_records": changes.transaction_records,
            "clock_behind": lag(before, now),
        }

    def __str__(self) -> str:
        return "\n".join(f"{name:<12}{value}" for name, value in self._lines())

    def _place(self) -> tuple[str, str]:
        """What the copy is, and where."""
        raise NotImplementedError

    def _cost(self) -> tuple[str, str]:
        return "seconds", f"{self.seconds:.1f}"

    def _version(self) -> str:
        return f"{self.version}" + ("" if self.changed else ", nothing new")

    def _lines(self) -> list[tuple[str, str]]:
        what, where = self._place()
        lines = [
            (what, f"{where}, bucket {self.bucket!r}"),
            ("version", self._version()),
            ("rows", f"{self.upserted:,} upserted, {self.deleted:,} deleted, {self.retracted:,} retracted"),
            *([("dropped", _few(self.dropped))] if self.dropped else []),
            self._cost(),
            ("as of", f"{len(self.as_of):,} vbuckets, {self.as_of.changes:,} changes"),
        ]
        if self.rolled_back:
            lines.append(("rolled back", f"{some(self.rolled_back)} by the server"))
        if self.read_again:
            lines.append(("read again", f"{some(self.read_again)}"))
        for label, some_conflicts in (
            ("no common type", [each for each in self.conflicts if each.names is None]),
            ("names are data", [each for each in self.conflicts if each.names is not None]),
        ):
            if some_conflicts:
                lines.append(("conflicts", f"{label}: {_few([each.path for each in some_conflicts])}"))
        if self.rejected:
            shown = ", ".join(f"{count:,} {reason}" for reason, count in self.rejected.items())
            lines.append(("_cb_value", shown))
        if self.transaction_records:
            lines.append(("left out", f"{count(self.transaction_records, 'change')} of transaction records"))
        if self.clock_behind:
            lines.append(("clock", behind(self.clock_behind)))
        return lines

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th style='text-align:left'>{escape(name)}</th>"
            f"<td style='text-align:left'>{escape(value)}</td></tr>"
            for name, value in self._lines()
        )
        return f"<table>{rows}</table>"


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotResult(UpdateResult):
    """A finished update of a snapshot.

    Attributes
    ----------
    path
        Where the snapshot is.
    bucket
        What it is a copy of.
    version
        The newest version now; the one before if there was nothing new.
    changed
        Whether there was anything new.
    upserted, deleted
        Rows written: documents, and deletions or expirations.
    retracted
        Rows of earlier versions that were rolled back.
    dropped
        Collections (``scope.collection``) that were dropped since the version before: none of their rows
        counts any more. One of the same name may have taken the place.
    rolled_back
        Vbuckets that the server rolled back, and the seqno to which.
    read_again
        Vbuckets that were read again from an earlier position than the snapshot's end, and that position;
        0 is the start.
    nbytes
        Written, the manifest included.
    seconds
        How long it took.
    as_of
        The vbucket positions of the snapshot now.
    conflicts, rejected
        As of a read, of the documents of this update.
    transaction_records
        How many changes of records of transactions were left out: keys that begin with ``_txn:``.
    clock_behind
        How far this machine's clock is behind the time of the version before. Versions have ascending times
        in any case: the new one is 1 ms after the one before.
    """

    path: str
    nbytes: int

    def _place(self) -> tuple[str, str]:
        return "snapshot", self.path

    def _cost(self) -> tuple[str, str]:
        return "written", f"{size(self.nbytes)} in {self.seconds:.1f} s"


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def some(seqnos: dict[int, int]) -> str:
    """A few vbuckets of many."""
    shown = ", ".join(f"vbucket {vbucket} to {seqno}" for vbucket, seqno in sorted(seqnos.items())[:3])
    return shown if len(seqnos) <= 3 else f"{len(seqnos):,} vbuckets: {shown}, …"


def size(nbytes: int) -> str:
    """For people to read."""
    for size, unit in ((1 << 30, "GB"), (1 << 20, "MB"), (1 << 10, "kB")):
        if nbytes >= size:
            return f"{nbytes / size:.1f} {unit}"
    return f"{nbytes} bytes"


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """An update; who makes it holds the lock."""

    store: Store
    base: Manifest  # the version that is continued; `BLANK` to begin
    points: RollbackPoints | None  # of its vbuckets; None where there is no base
    version: int  # the version that is made
    before: datetime | None  # the time of the version before
    target: ScanSpec
    stored: Mapping[str, Any]  # what the snapshot holds, as its manifest has it
    compression: str
    file_bytes: int

    def run(self, kind: Kind, now: datetime) -> SnapshotResult:
        """Read, write, publish."""
        reader = ChangeReader(
            self.target,
            self.base,
            self.points,
            documents=any(entry.upserts for entry in self.base.files),
            other_bucket=self._other_bucket,
        )
        with closing(reader):
            changes = reader.read()
            files, columns = self._write(changes)
        manifest = self._manifest(kind, following(self.before, now), changes, files, columns)
        changed = is_news(self.base, manifest)
        nbytes = 0
        if changed:
            nbytes = publish(self.store, manifest) + sum(entry.nbytes for entry in files)
        return SnapshotResult(
            path=self.store.root,
            version=manifest.version if changed else self.base.version,
            changed=changed,
            nbytes=nbytes,
            seconds=reader.seconds,
            **SnapshotResult.fields_of(changes, self.base, manifest, self.before, now),
        )

    def _other_bucket(self, why: str) -> SnapshotError:
        return SnapshotError(
            f"bucket {self.base.bucket!r} is not the one that the snapshot is of: {why}",
            path=self.store.root,
            hint='mode="overwrite" makes the snapshot again; its old versions stay until vacuum()',
        )

    def _write(self, changes: Changes) -> tuple[tuple[FileEntry, ...], tuple[Columns, ...]]:
        """The files of the changes, and what columns all files have."""
        columns = self.base.columns
        tables = iter(changes.tables)
        first = next(tables, None)
        if first is None:
            return (), columns
        with ChangeFiles(
            self.store,
            self.version,
            first.schema,
            parts=parts_for(changes.nbytes, self.file_bytes),
            vbuckets=len(changes.positions),
            compression=self.compression,
        ) as files:
            files.add(first)
            for table in tables:
                files.add(table)
            found = changes.documents.columns()
            if found not in columns:
                columns = (*columns, found)
            if self.base is not BLANK:
                refuse_conflicts(documents_of(self.base), unify(columns), self.stored)
                warn_of_nothing(self.target, columns)
            return files.finish(columns=columns.index(found), unique=changes.unique), columns

    def _manifest(
        self,
        kind: Kind,
        created: datetime,
        changes: Changes,
        files: tuple[FileEntry, ...],
        columns: tuple[Columns, ...],
    ) -> Manifest:
        base, version, rollback_seqnos = self.base, self.version, changes.rollback_seqnos
        floors = base.floors or [0] * len(changes.positions)
        collections = {**base.collections, **changes.collections}
        dead = changes.dead | set(base.dead)
        ended: dict[int, dict[int, int]] = {}
        for (vbucket, collection), seqno in changes.ended.items():
            ended.setdefault(collection, {})[vbucket] = seqno
        drops = [drop.without(rollback_seqnos) for drop in base.drops]
        drops += [Drop(version, each, ended[each]) for each in collections if each in ended]
        upserted = sum(entry.upserts for entry in files)
        rows = sum(entry.rows for entry in files)
        return Manifest(
            version=version,
            parent=base.version,
            kind=kind,
            created=created,
            bucket=self.target.bucket,
            bucket_uuid=changes.ran.map.uuid,
            cluster_uuid=changes.ran.map.cluster_uuid,
            node_time=_latest(base.node_time, changes.ran.node_time),
            options=self.stored,
            positions=changes.positions,
            persisted=self.target.options.only_persisted,
            floors=[min(floor, rollback_seqnos.get(vbucket, floor)) for vbucket, floor in enumerate(floors)],
            files=(*base.files, *files),
            columns=columns,
            rollbacks=(*base.rollbacks, Rollback(version, "rollback", rollback_seqnos))
            if rollback_seqnos
            else base.rollbacks,
            drops=tuple(drop for drop in drops if drop.vbuckets),
            dead=tuple(sorted(dead)),
            collections={number: name for number, name in collections.items() if number not in dead},
            counts=Counts(upserted, rows - upserted, count_rolled_back(self.store, base, rollback_seqnos)),
        )


def _latest(before: datetime | None, node_time: int | None) -> datetime | None:
    """The latest time of day that a node has reported, so far."""
    if node_time is None:
        return before
    now = datetime.fromtimestamp(node_time, UTC)
    return now if before is None else max(before, now)


def is_news(base: Manifest, manifest: Manifest) -> bool:
    """Whether a version says anything that the one before does not."""
    return (
        manifest.kind == "repair"
        or manifest.files != base.files
        or manifest.rollbacks != base.rollbacks
        or (manifest.drops, manifest.dead) != (base.drops, base.dead)
        or [position.seqno for position in manifest.positions] != [at.seqno for at in base.positions]
        or [position.failover_log for position in manifest.positions]
        != [position.failover_log for position in base.positions]
    )


def refuse_conflicts(before: Columns, after: Columns, stored: Mapping[str, Any]) -> None:
    """Raise where documents have no common type with earlier ones, if that was asked for."""
    if stored.get("on_conflict") != "raise":
        return
    for each in differences(before, after):
        if each.before not in (None, "null") and each.after in ("string", "JSON text"):
            raise ConversionError(
                f"values of {each.path!r} have no common type: it was {each.before}",
                hint='on_conflict="widen" keeps them as text; mode="overwrite" begins again',
            )


def warn_of_nothing(target: ScanSpec, many: Sequence[Columns]) -> None:
    """Warn of fields that were asked for, where no document so far has a value."""
    paths = [path for path in target.columns or () if path[0] not in target.schema]
    asked = [("columns", made_way(joined(path))) for path in paths]
    if isinstance(target.parse_dates, tuple):
        asked += [("parse_dates", name) for name in target.parse_dates]
    if asked:
        types = {each.name: each.type for each in unify(many).schema}
        for argument, name in asked:
            if types.get(name, pa.null()) == pa.null():
                warn(f"{argument}= names {name!r}, a field of which no document so far has a value")


@public
def write_snapshot(
    conn: ServerURLs | Connectable,
    path: str | os.PathLike[str],
    *,
    bucket: str | None = None,
    mode: Mode = "update",
    compression: str = "zstd",
    auth: Any = None,
    tls: TLSLike = None,
    network: str = "auto",
    scope: str | None = None,
    collections: str | Iterable[str] | None = None,
    columns: ColumnsLike | None = None,
    filters: FiltersLike | None = None,
    keys: KeyForm | None = None,
    key_prefix: str | bytes | None = None,
    key_pattern: str | None = None,
    keys_only: bool | None = None,
    parse: bool | None = None,
    xattrs: bool | None = None,
    nested: Literal["struct", "json"] | None = None,
    schema: SchemaLike | None = None,
    on_conflict: OnConflict | None = None,
    max_struct_fields: int | None = None,
    parse_dates: bool | Iterable[str] | None = None,
    transaction_records: Exclusion | None = None,
    consistency: Consistency = "snapshot",
    only_persisted: bool = False,
    file_bytes: int = FILE_BYTES,
    batch_bytes: int | None = None,
    buffer_bytes: int | None = None,
    spool_dir: str | os.PathLike[str] | None = None,
    spill_bytes: int | None = None,
    timeout: float | None = None,
    progress: Progress = "auto",
    event_log: EventLogLike | None = None,
    options: BucketDataSourceOptions | None = None,
    filesystem: pafs.FileSystem | None = None,
    storage_options: Mapping[str, Any] | None = None,
    break_lock: bool = False,
    clock: Clock = utc_now,
) -> SnapshotResult:
    """Copy a bucket into Parquet files, or bring such a copy up to date.

    The first call reads the bucket, each later one only what changed since. A version is published as a
    whole: a process that ends at any moment leaves the last version, and the next call goes on from it.
    Where the server takes changes back (a failover lost them), the snapshot takes them back.

    Memory does not depend on the bucket's size; documents wait in a temporary file (`spool_dir`). The format
    of the files is documented in :mod:`cbframe.snapshot.manifest`.

    Parameters
    ----------
    conn, bucket, auth, tls, network
        As of :func:`cbframe.scan_bucket`.
    path
        A folder, or a URI that pyarrow or fsspec know.
    mode
        ``"update"`` makes the snapshot if there is none. ``"create"`` refuses to if there is one.
        ``"overwrite"`` begins again; old versions stay readable until ``vacuum()``. ``"repair"`` looks at
        all files first, and reads again what was in damaged ones.
    compression
        Of the Parquet files.
    scope, collections, columns, filters, keys, key_prefix, key_pattern, keys_only, parse, nested, schema, \
on_conflict, max_struct_fields, parse_dates, transaction_records
        What the snapshot holds, as of :func:`cbframe.scan_bucket`; decided when it is made. Updates hold
        to it: what is left out is as it was, and anything else is an error. With ``filters=``, a document
        that does not pass any more counts as deleted. `key_pattern` is a glob. ``collections="visible"`` is
        looked up when the snapshot is made, and the names are kept; where it is given again and the user sees
        others by then, that is an error.
    xattrs
        Keep extended attributes, in ``_cb_xattrs``.
    consistency
        As of :func:`cbframe.scan_bucket`, and for this version only. With ``"snapshot"``, where a node loses
        data during the update, vbuckets that were complete keep rows of the lost history until the next
        update takes them back. ``"strict"`` compares all histories before the version is published, and reads
        again what was lost: then each position of the version is of a history that existed at its end.
    only_persisted
        Publish the version when what was read is on the disks of the active copy and of all replicas of its
        vbucket. ``compact()`` keeps nothing that it replaced. Errors as of :func:`cbframe.stream_bucket`.
    file_bytes
        Changes of more bytes than that, as they are in memory, go to several files, each of a range of
        vbuckets; 16 at most.
    batch_bytes, buffer_bytes, spool_dir, spill_bytes, timeout, progress, event_log, options
        As of :func:`cbframe.scan_bucket`.
    filesystem, storage_options
        What `path` is in: a file system of pyarrow's, or options for that of fsspec.
    break_lock
        Take the lock away from another writer, which is known to be dead. Local folders need no such
        thing: the lock ends with its process.
    clock
        Tells the time of day that the version gets.

    Returns
    -------
    SnapshotResult
        What was written, and as of when the snapshot is.

    Raises
    ------
    ConfigurationError
        An argument is invalid, or differs from what the snapshot was made with.
    SnapshotError
        The bucket was flushed or created again; the snapshot is damaged, or another process writes it; the
        disk is full. The last version stays as it is.
    CbframeError
        The bucket could not be read.
    """
    if mode not in get_args(Mode):
        raise ConfigurationError(f"mode={mode!r}", hint=f"choose from: {', '.join(get_args(Mode))}")
    arguments = locals()
    given = stored_form(arguments)
    check_form(compression, file_bytes)
    flag("break_lock", break_lock)
    # What is invalid is reported before anything is touched.
    spec_of(arguments, given)
    store = open_store(path, filesystem=filesystem, storage_options=storage_options)
    with writing(store, clock=clock, break_lock=break_lock):
        history = History(store)
        numbers = history.numbers()
        if mode == "create" and numbers:
            raise SnapshotError(
                "there is a snapshot already", path=store.root, hint='mode="update" brings it up to date'
            )
        newest = numbers[-1] if numbers else 0
        sweep(store, newest)
        base = BLANK
        kind: Kind = "update"
        if mode == "repair":
            base, kind = mended(store, history, newest + 1)
        elif mode != "overwrite":
            base = history.latest()
        given = named(given, arguments, base.options)
        stored = {"transaction_records": "drop", **given}
        if base is not BLANK:
            agreed(given, base.options)
            stored = dict(base.options)
        update = Update(
            store=store,
            base=base,
            points=None if base is BLANK else RollbackPoints(base, history.ancestors(base)),
            version=newest + 1,
            before=history.latest_time(),
            target=spec_of(arguments, stored),
            stored=stored,
            compression=compression,
            file_bytes=file_bytes,
        )
        return update.run("create" if base is BLANK else kind, clock())
