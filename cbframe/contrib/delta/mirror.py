"""``to_delta`` and ``update_delta``: what changed in the bucket becomes one commit of a Delta table.

A write reads changes as a snapshot's update does, with a ``ChangeReader``: of each document the newest. They
wait on disk until their columns are known. Then the table is merged with them, or, where a type got wider,
written again with them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from datetime import timedelta
from html import escape
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cbframe.arrow.column_types import Columns, unify, widen
from cbframe.arrow.columns import COLLECTION_ID, KEY, VBUCKET, KeyForm, Mask, formed, has_literals
from cbframe.arrow.current_rows import (
    TRANSACTION_PREFIX,
    by_vbucket,
    of_dropped,
    of_transactions,
    rolled_back,
)
from cbframe.cluster.tls import TLSLike
from cbframe.contrib.delta.table import (
    APP,
    CHANGE,
    HEAD,
    Base,
    Committer,
    Documents,
    Shape,
    Waiting,
    base_of,
    delta_errors,
    library,
    open_table,
    places_of,
)
from cbframe.dcp.stats import EventLogLike
from cbframe.errors import ConfigurationError, SnapshotError
from cbframe.json.layout import OnConflict
from cbframe.options import BucketDataSourceOptions
from cbframe.public import Connectable, ServerURLs, public
from cbframe.scan.changes import CHANGE_TYPE, UPSERT
from cbframe.scan.progress import Progress
from cbframe.scan.result import AsOf, Clock, Conflict, utc_now
from cbframe.scan.spec import (
    ColumnsLike,
    Consistency,
    Exclusion,
    FiltersLike,
    SchemaLike,
    path_of_files,
)
from cbframe.snapshot.bucket_changes import ChangeReader, Changes
from cbframe.snapshot.maintenance import count
from cbframe.snapshot.manifest import (
    BLANK,
    Counts,
    Manifest,
    Rollback,
    RollbackPoints,
    behind,
    following,
    lag,
)
from cbframe.snapshot.writer import (
    agreed,
    is_news,
    named,
    refuse_conflicts,
    some,
    spec_of,
    stored_form,
    warn_of_nothing,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeltaResult:
    """A Delta table that was written.

    Attributes
    ----------
    uri
        Where it is.
    bucket
        What it mirrors.
    version
        Of the table, now.
    changed
        Whether there was anything new; if not, there is no commit.
    rewritten
        Whether the whole table was written, since types got wider, or at first.
    upserted, deleted
        Documents that the bucket reported, and deletions or expirations; each document counts once.
    retracted
        Rows that were rolled back: deleted, or replaced by older ones.
    rolled_back
        Vbuckets that the server rolled back, and the seqno to which.
    read_again
        Vbuckets that were read again from an earlier position than the table's, and that position; 0 is
        the start.
    seconds
        How long it took.
    as_of
        The vbucket positions of the table now.
    conflicts, rejected
        As of a read, of the documents that came.
    transaction_records
        As of :class:`~cbframe.SnapshotResult`.
    clock_behind
        As of :class:`~cbframe.SnapshotResult`.
    """

    uri: str
    bucket: str
    version: int
    changed: bool
    rewritten: bool
    upserted: int
    deleted: int
    retracted: int
    rolled_back: dict[int, int] = field(repr=False)
    read_again: dict[int, int] = field(repr=False)
    seconds: float
    as_of: AsOf
    conflicts: tuple[Conflict, ...] = field(default=(), repr=False)
    rejected: dict[str, int] = field(default_factory=dict, repr=False)
    transaction_records: int = 0
    clock_behind: timedelta = timedelta()

    def __str__(self) -> str:
        return "\n".join(f"{name:<12}{value}" for name, value in self._lines())

    def _lines(self) -> list[tuple[str, str]]:
        how = "" if self.changed else ", nothing new"
        lines = [
            ("table", f"{self.uri}, bucket {self.bucket!r}"),
            ("version", f"{self.version}{how}" + (", rewritten" if self.rewritten else "")),
            ("rows", f"{self.upserted:,} upserted, {self.deleted:,} deleted, {self.retracted:,} retracted"),
            ("seconds", f"{self.seconds:.1f}"),
            ("as of", f"{len(self.as_of):,} vbuckets, {self.as_of.changes:,} changes"),
        ]
        if self.rolled_back:
            lines.append(("rolled back", f"{some(self.rolled_back)} by the server"))
        if self.read_again:
            lines.append(("read again", some(self.read_again)))
        conflicts = [each for each in self.conflicts if each.names is None]
        if conflicts:
            lines.append(("conflicts", f"no common type: {len(conflicts):,} fields"))
        if self.rejected:
            reasons = ", ".join(f"{count:,} {reason}" for reason, count in self.rejected.items())
            lines.append(("_cb_value", reasons))
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


@dataclass(slots=True)
class Corrections:
    """What is to be done to the rows of the table besides what changed."""

    rolled_back: int = 0  # how many rows were
    gone: list[pa.Table] = field(default_factory=list)  # these, and rows of collections that went
    restored: list[pa.Table] = field(default_factory=list)  # rows of earlier versions that count again


@dataclass(frozen=True, slots=True)
class News:
    """What the bucket reported."""

    waiting: Waiting  # changes, of each document one
    columns: Columns  # what the fields of the documents are
    upserted: int  # how many there are
    deleted: int
    dead: frozenset[int]  # collections that were dropped, now or before
    ended: dict[tuple[int, int], int]

    def of_dropped(self, head: pa.Table) -> Mask:
        """Which rows are of a collection that was dropped, or emptied since."""
        gone = of_dropped(head, set(self.dead), self.ended)
        return np.zeros(len(head), bool) if gone is None else gone

    def upserts(self, shape: Shape) -> Iterator[pa.Table]:
        """Documents, as they will be stored."""
        for table in self.waiting.tables():
            some = table.filter(pc.equal(table[CHANGE_TYPE], UPSERT))
            documents = widen(some.select(self.columns.schema.names), self.columns, shape.columns)
            yield shape.stored(some, documents)

    def heads(self, *, upserts: bool) -> Iterator[pa.Table]:
        """What changed: documents, or deletions."""
        for table in self.waiting.tables():
            is_upsert = pc.equal(table[CHANGE_TYPE], UPSERT)
            yield table.filter(is_upsert if upserts else pc.invert(is_upsert)).select([KEY, COLLECTION_ID])


class Source:
    """What becomes of the table: of each document that is touched, one row or none.

    What the bucket reported comes first, then what counts again, then what goes.
    """

    def __init__(self, shape: Shape, news: News, corrections: Corrections) -> None:
        self._shape = shape
        self._news = news
        upserts, deletions = [*news.heads(upserts=True)], [*news.heads(upserts=False)]
        reported = Documents([*upserts, *deletions])
        self._restored = [rows.filter(pa.array(~reported.have(rows))) for rows in corrections.restored]
        covered = Documents([*upserts, *deletions, *self._restored])
        self._deleted = deletions
        for head in corrections.gone:
            some = head.filter(pa.array(~covered.have(head))).select([KEY, COLLECTION_ID])
            self._deleted.append(some)
            # One that was rolled back and dropped is there twice.
            covered = Documents([*upserts, *self._restored, *self._deleted])
        self._touched = covered
        self.some = any(map(len, (*upserts, *self._restored, *self._deleted)))

    def changes(self) -> tuple[pa.Schema, Iterator[pa.Table]]:
        """Rows with what to do with them, for a MERGE."""
        return self._shape.schema.append(pa.field(CHANGE, pa.string())), self._changes()

    def _changes(self) -> Iterator[pa.Table]:
        for rows in (*self._news.upserts(self._shape), *self._restored):
            yield rows.append_column(CHANGE, _repeated("upsert", len(rows)))
        schema = self._shape.schema
        for head in self._deleted:
            known = {
                KEY: formed(head[KEY], self._shape.keys),
                COLLECTION_ID: head[COLLECTION_ID].cast(schema.field(COLLECTION_ID).type),
            }
            columns = [known.get(each.name, pa.nulls(len(head), each.type)) for each in schema]
            rows = pa.Table.from_arrays(columns, schema=schema)
            yield rows.append_column(CHANGE, _repeated("delete", len(rows)))

    def untouched(self, current: Iterator[tuple[pa.Table, pa.Table]], narrow: Columns) -> Iterator[pa.Table]:
        """Rows that stay what they are, as they will be stored, of metadata and fields (`narrow`) of all."""
        for head, documents in current:
            some = pa.array(~self._touched.have(head))
            wide = widen(documents.filter(some), narrow, self._shape.columns)
            yield self._shape.stored(head.filter(some), wide)

    def all_rows(self, untouched: Iterator[pa.Table]) -> Iterator[pa.Table]:
        """The whole table as it will be."""
        yield from self._news.upserts(self._shape)
        yield from self._restored
        yield from untouched


def _repeated(text: str, count: int) -> pa.Array:
    return pa.array([text]).take(pa.array(np.zeros(count, np.int8)))


class _GoneError(Exception):
    """An older version of the table cannot be read any more: its number."""


class Mirror:
    """A write under way."""

    def __init__(
        self,
        uri: str,
        table: Any,  # a `deltalake.DeltaTable`; None if there is none
        base: Base | None,  # what is continued; None to begin
        stored: Mapping[str, Any],  # what of the bucket the table holds, as its metadata has it
        arguments: Mapping[str, Any],  # the `locals()` of a public function
    ) -> None:
        self._uri = uri
        self._base = base
        self._storage_options = arguments["storage_options"]
        self._committer = Committer(uri, table, self._storage_options)
        if base is not None:
            self._version = base.manifest.version + 1
        else:
            self._version = 1 if table is None else 1 + (table.transaction_version(APP) or 0)
        self._target = spec_of(arguments, stored)
        self._stored = stored
        self._now = arguments["clock"]()
        self._before = None if base is None else base.manifest.created
        self._xattrs = bool(stored.get("xattrs"))
        self._keys: KeyForm = stored["keys"]

    def run(self) -> DeltaResult:
        """Read, and commit."""
        gone: set[int] = set()
        while True:
            try:
                return self._attempt(gone)
            except _GoneError as exc:
                # Its vbuckets are rolled back to an even earlier version, or read from the start.
                gone.add(exc.args[0])

    def _attempt(self, gone: set[int]) -> DeltaResult:
        base, points, documents = BLANK, None, False
        if self._base is not None:
            base = self._base.manifest
            ancestors = [each for each in self._base.ancestors if each.version not in gone]
            points = RollbackPoints(base, ancestors)
            documents = not self._target.parsed or bool(base.columns[0].kinds)
        reader = ChangeReader(
            self._target, base, points, documents=documents, net=True, other_bucket=self._other_bucket
        )
        with closing(reader), closing(Waiting(self._target.spool_dir)) as waiting:
            changes = reader.read()
            rows = upserted = 0
            for table in changes.tables:
                waiting.put(table)
                rows += len(table)
                upserted += pc.sum(pc.equal(table[CHANGE_TYPE], UPSERT)).as_py() or 0
            found = changes.documents.columns()
            dead = changes.dead | set(base.dead)
            news = News(waiting, found, upserted, rows - upserted, dead, changes.ended)
            return self._write(changes, news, points, lambda: reader.seconds)

    def _other_bucket(self, why: str) -> SnapshotError:
        assert self._base is not None
        return SnapshotError(
            f"bucket {self._base.manifest.bucket!r} is not the one that the table mirrors: {why}",
            path=self._uri,
            hint='to_delta(..., mode="overwrite") makes the table again; its old versions stay until '
            "they are vacuumed",
        )

    # -- writing

    def _write(
        self,
        changes: Changes,
        news: News,
        points: RollbackPoints | None,
        seconds: Callable[[], float],
    ) -> DeltaResult:
        base = self._base
        if base is None or points is None:
            shape = Shape(news.columns, xattrs=self._xattrs, keys=self._keys)
            manifest = self._manifest(changes, news, shape.columns, 0)
            self._committer.overwrite(shape.schema, news.upserts(shape), manifest)
            return self._result(changes, manifest, seconds(), changed=True, rewritten=True)
        old = self._shape_of(base.manifest, base.table)
        most = self._stored.get("max_struct_fields", 1000)
        wide = unify([old.columns, news.columns], max_members=most)
        refuse_conflicts(old.columns, wide, self._stored)
        if news.upserted:
            warn_of_nothing(self._target, [wide])
        shape = Shape(wide, xattrs=self._xattrs, keys=self._keys)
        corrections = self._corrections(base, old, shape, changes.rollback_seqnos, points, news)
        manifest = self._manifest(changes, news, wide, corrections.rolled_back)
        changed, rewritten = True, not shape.holds(old) or self._has_bare_literals(base, old)
        source = Source(shape, news, corrections)
        if rewritten:
            self._rewrite(base, old, shape, source, manifest)
        elif source.some:
            self._committer.merge(source.changes(), manifest, widen=len(shape.names) > len(old.names))
        elif is_news(base.manifest, manifest):
            self._committer.note(manifest)
        else:
            changed = False
        return self._result(changes, manifest, seconds(), changed=changed, rewritten=rewritten)

    def _rewrite(self, base: Base, old: Shape, shape: Shape, source: Source, manifest: Manifest) -> None:
        """Write the whole table in another shape."""
        # deltalake must not be called while it takes rows: those that are read of it wait on disk.
        with closing(Waiting(self._target.spool_dir)) as untouched:
            with delta_errors(self._uri, "read the Delta table"):
                for table in source.untouched(self._rows(base.table, old), old.columns):
                    untouched.put(table)
            self._committer.overwrite(shape.schema, source.all_rows(untouched.tables()), manifest)

    def _shape_of(self, manifest: Manifest, table: Any) -> Shape:
        """How a version of the table holds its columns."""
        text = table.to_pyarrow_dataset().schema.field(KEY).type == pa.string()
        return Shape(
            manifest.columns[0],
            xattrs=self._xattrs,
            keys="text" if text else "binary",
            escaped="keys" in manifest.options,
        )

    def _has_bare_literals(self, base: Base, old: Shape) -> bool:
        """Whether a table of an earlier version of cbframe has keys that are written in another way now."""
        if old.keys != "text" or "keys" in base.manifest.options:
            return False
        with delta_errors(self._uri, "read the Delta table"):
            batches = base.table.to_pyarrow_dataset().to_batches(columns=[KEY])
            return any(has_literals(batch.column(KEY)) for batch in batches)

    def _rows(
        self, table: Any, shape: Shape, vbuckets: list[int] | None = None
    ) -> Iterator[tuple[pa.Table, pa.Table]]:
        """Metadata and fields of the rows of a version of the table."""
        names = shape.schema.names
        some = None if vbuckets is None else pc.field(VBUCKET).isin(vbuckets)
        for batch in table.to_pyarrow_dataset().to_batches(columns=names, filter=some):
            if len(batch):
                rows = pa.Table.from_batches([batch])
                yield shape.head_of(rows), shape.documents_of(rows)

    def _heads(self, base: Base, shape: Shape, some: pc.Expression) -> pa.Table:
        """Which rows of the table there are."""
        with delta_errors(self._uri, "read the Delta table"):
            rows = base.table.to_pyarrow_dataset().to_table(columns=list(HEAD), filter=some)
        return shape.head_of(rows)

    # -- what is rolled back, or dropped

    def _corrections(
        self,
        base: Base,
        old: Shape,
        shape: Shape,
        rollback_seqnos: dict[int, int],
        points: RollbackPoints,
        news: News,
    ) -> Corrections:
        corrections = Corrections()
        concerned = {cid for _, cid in news.ended} | (news.dead - set(base.manifest.dead))
        if concerned:
            heads = self._heads(base, old, pc.field(COLLECTION_ID).isin(sorted(concerned)))
            corrections.gone.append(heads.filter(pa.array(news.of_dropped(heads))))
        if not base.manifest.knows_transactions:
            # Earlier releases mirrored them.
            prefix = TRANSACTION_PREFIX.decode() if old.keys == "text" else TRANSACTION_PREFIX
            corrections.gone.append(self._heads(base, old, pc.starts_with(pc.field(KEY), prefix)))
        if not rollback_seqnos:
            return corrections
        heads = self._heads(base, old, pc.field(VBUCKET).isin(sorted(rollback_seqnos)))
        gone = rolled_back(heads, by_vbucket(rollback_seqnos))
        corrections.rolled_back = int(gone.sum())
        corrections.gone.append(heads.filter(pa.array(gone)))
        standing = places_of(heads.filter(pa.array(~gone)))
        versions: dict[int, tuple[Manifest, list[int]]] = {}
        for vbucket, seqno in rollback_seqnos.items():
            manifest = points.version(vbucket, seqno)
            # The start has no documents.
            if manifest is not None:
                versions.setdefault(manifest.version, (manifest, []))[1].append(vbucket)
        for manifest, vbuckets in versions.values():
            corrections.restored += self._restored(base, manifest, vbuckets, standing, shape, news)
        return corrections

    def _restored(
        self,
        base: Base,
        manifest: Manifest,
        vbuckets: list[int],
        standing: npt.NDArray[np.void],
        shape: Shape,
        news: News,
    ) -> list[pa.Table]:
        """Rows of an earlier version of the table that the table has not now."""
        from deltalake.exceptions import DeltaError  # noqa: PLC0415 - optional

        restored = []
        try:
            options = None if self._storage_options is None else dict(self._storage_options)
            table = library().DeltaTable(
                self._uri, version=base.versions[manifest.version], storage_options=options
            )
            earlier = self._shape_of(manifest, table)
            for head, documents in self._rows(table, earlier, vbuckets):
                gone = np.isin(places_of(head), standing) | news.of_dropped(head)
                if self._stored["transaction_records"] == "drop":
                    gone |= of_transactions(head[KEY])
                some = pa.array(~gone)
                wide = widen(documents.filter(some), earlier.columns, shape.columns)
                restored.append(shape.stored(head.filter(some), wide))
        except (DeltaError, OSError) as exc:
            raise _GoneError(manifest.version) from exc
        return restored

    # -- reports

    def _manifest(self, changes: Changes, news: News, columns: Columns, retracted: int) -> Manifest:
        base = None if self._base is None else self._base.manifest
        rollbacks: list[Rollback] = []
        collections = changes.collections if base is None else {**base.collections, **changes.collections}
        if self._base is not None:
            oldest = self._base.ancestors[-1].version
            rollbacks += [each for each in self._base.manifest.rollbacks if each.version > oldest]
        if changes.rollback_seqnos:
            rollbacks.append(Rollback(self._version, "rollback", changes.rollback_seqnos))
        return Manifest(
            version=self._version,
            parent=0 if base is None else base.version,
            kind="create" if base is None else "update",
            created=following(self._before, self._now),
            bucket=self._target.bucket,
            bucket_uuid=changes.ran.map.uuid,
            cluster_uuid=changes.ran.map.cluster_uuid,
            options=self._stored,
            positions=changes.positions,
            floors=[0] * len(changes.positions),
            columns=(columns,),
            rollbacks=tuple(rollbacks),
            dead=tuple(sorted(news.dead)),
            collections={number: name for number, name in collections.items() if number not in news.dead},
            counts=Counts(news.upserted, news.deleted, retracted),
        )

    def _result(
        self,
        changes: Changes,
        manifest: Manifest,
        seconds: float,
        *,
        changed: bool,
        rewritten: bool,
    ) -> DeltaResult:
        return DeltaResult(
            uri=self._uri,
            bucket=self._target.bucket,
            version=self._committer.version(),
            changed=changed,
            rewritten=rewritten,
            upserted=manifest.counts.upserted,
            deleted=manifest.counts.deleted,
            retracted=manifest.counts.retracted,
            rolled_back=changes.rolled_back,
            read_again=changes.rollback_seqnos,
            seconds=seconds,
            as_of=AsOf(changes.ran.as_of, manifest.created),
            conflicts=changes.conflicts,
            rejected=changes.rejected,
            transaction_records=changes.transaction_records,
            clock_behind=lag(self._before, self._now),
        )


@public
def to_delta(
    conn: ServerURLs | Connectable,
    uri: str | os.PathLike[str],
    *,
    bucket: str | None = None,
    mode: Literal["error", "overwrite"] = "error",
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
    batch_bytes: int | None = None,
    buffer_bytes: int | None = None,
    spool_dir: str | os.PathLike[str] | None = None,
    spill_bytes: int | None = None,
    timeout: float | None = None,
    progress: Progress = "auto",
    event_log: EventLogLike | None = None,
    options: BucketDataSourceOptions | None = None,
    storage_options: Mapping[str, str] | None = None,
    clock: Clock = utc_now,
) -> DeltaResult:
    """Copy a bucket into a Delta table, which :func:`update_delta` brings up to date.

    The table appears whole or not at all. Documents wait in temporary files (`spool_dir`); memory is
    some hundred MB, since deltalake makes files of 100 MB in memory. What the table looks like is in the
    documentation of this package. It has documents whose expiry has passed until the server removes them.

    Parameters
    ----------
    conn, bucket, auth, tls, network
        As of :func:`cbframe.scan_bucket`.
    uri
        A folder, or what deltalake knows: ``s3://…``, ``abfss://…``.
    mode
        ``"error"`` refuses to if there is a table. ``"overwrite"`` begins again in the same table: earlier
        versions stay until they are vacuumed.
    scope, collections, columns, filters, keys, key_prefix, key_pattern, keys_only, parse, xattrs, nested, \
schema, on_conflict, max_struct_fields, parse_dates, transaction_records
        What the table holds, as of :func:`cbframe.write_snapshot`; updates hold to it.
    consistency, only_persisted
        As of :func:`cbframe.write_snapshot`, and for this commit only.
    batch_bytes, buffer_bytes, spool_dir, spill_bytes, timeout, progress, event_log, options
        As of :func:`cbframe.scan_bucket`.
    storage_options
        Of deltalake, for what `uri` is in.
    clock
        Tells the time of day that is written down.

    Raises
    ------
    ConfigurationError
        An argument is invalid.
    ConversionError
        A type was declared that Delta does not have.
    DependencyError
        deltalake is not installed.
    SnapshotError
        There is a table, or it cannot be written.
    CbframeError
        The bucket could not be read.
    """
    if mode not in ("error", "overwrite"):
        raise ConfigurationError(f"mode={mode!r}", hint="choose from: error, overwrite")
    if transaction_records is None:
        transaction_records = "drop"
    if keys is None:
        # Always written down: tables of earlier versions of cbframe, without it, hold keys in another way.
        keys = "text"
    return _mirrored(locals(), mode)


@public
def update_delta(
    conn: ServerURLs | Connectable,
    uri: str | os.PathLike[str],
    *,
    bucket: str | None = None,
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
    batch_bytes: int | None = None,
    buffer_bytes: int | None = None,
    spool_dir: str | os.PathLike[str] | None = None,
    spill_bytes: int | None = None,
    timeout: float | None = None,
    progress: Progress = "auto",
    event_log: EventLogLike | None = None,
    options: BucketDataSourceOptions | None = None,
    storage_options: Mapping[str, str] | None = None,
    clock: Clock = utc_now,
) -> DeltaResult:
    """Bring a Delta table up to date with what changed in the bucket since.

    Rows and positions are one commit: a process that ends at any moment leaves the table as it was, or as it
    should be, and the next update goes on from there. Where nothing changed, there is no commit.

    Parameters
    ----------
    conn, bucket, auth, tls, network, consistency, only_persisted, batch_bytes, buffer_bytes, spool_dir, \
spill_bytes, timeout, progress, event_log, options, storage_options, clock
        As of :func:`to_delta`.
    uri
        Where :func:`to_delta` made the table.
    scope, collections, columns, filters, keys, key_prefix, key_pattern, keys_only, parse, xattrs, nested, \
schema, on_conflict, max_struct_fields, parse_dates, transaction_records
        What the table holds, as of :func:`to_delta`. It need not be given again; anything else than then is
        an error.

    Raises
    ------
    ConfigurationError
        An argument is invalid, or differs from what the table was made with.
    DependencyError
        deltalake is not installed.
    SnapshotError
        There is no table that :func:`to_delta` made, or someone else changed it; the bucket was flushed or
        created again; another writer was faster. The table stays as it is.
    CbframeError
        The bucket could not be read.
    """
    return _mirrored(locals(), "update")


def _mirrored(arguments: Mapping[str, Any], mode: Literal["error", "overwrite", "update"]) -> DeltaResult:
    """One commit, as the ``locals()`` of a public function say."""
    given = stored_form(arguments)
    # What is invalid is reported before anything is touched.
    spec_of(arguments, given)
    path = path_of_files("uri", arguments["uri"])
    table = open_table(path, arguments["storage_options"])
    if table is not None and mode == "error":
        raise SnapshotError(
            "there is a Delta table already",
            path=path,
            hint='update_delta() brings it up to date; mode="overwrite" makes it again',
        )
    if mode != "update":
        return Mirror(path, table, None, named(given, arguments), arguments).run()
    if table is None:
        raise SnapshotError("there is no Delta table", path=path, hint="to_delta() makes one")
    base: Base = base_of(table, path)
    stored = {"keys": "text", **base.manifest.options}
    given = named(given, arguments, stored)
    agreed(given, stored, made="the table", remedy='to_delta(..., mode="overwrite")')
    stored.setdefault("transaction_records", "drop")  # mirrors of earlier releases have them: they go now
    return Mirror(path, table, base, stored, arguments).run()
