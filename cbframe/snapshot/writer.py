"""One update of a snapshot: what changed since its last version becomes the next one."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Any, Literal, Self, get_args

import pyarrow as pa
import pyarrow.fs as pafs

from cbframe.arrow.columns import KeyForm
from cbframe.arrow.documents.unify import Columns, differences, unify
from cbframe.cluster.cluster_map import ClusterMap
from cbframe.cluster.tls import TLSLike
from cbframe.dcp.positions import Position
from cbframe.errors import ClusterMapError, ConfigurationError, ConversionError, SnapshotError
from cbframe.json.layout import OnConflict
from cbframe.options import BucketDataSourceOptions
from cbframe.public import public, warn
from cbframe.scan.progress import Progress
from cbframe.scan.result import AsOf, Clock, utc_now
from cbframe.scan.session import Ran, Run
from cbframe.scan.shape import joined
from cbframe.scan.spec import ColumnsLike, Consistency, Exclusion, FiltersLike, ScanSpec, SchemaLike, flag
from cbframe.snapshot.contents import agreed, named, spec_of, stored_form
from cbframe.snapshot.files import DATA, FILE_BYTES, ChangeFiles, check_form, parts_for
from cbframe.snapshot.manifest import FOLDER, Counts, Drop, FileEntry, Kind, Manifest, Rollback, name_of
from cbframe.snapshot.reader import documents_of
from cbframe.snapshot.result import SnapshotResult
from cbframe.snapshot.rows import taken_back
from cbframe.snapshot.sink import Changes, ChangeSink, ResumingReceiver, made_way
from cbframe.snapshot.store import Store, open_store, writing
from cbframe.snapshot.verification import mended
from cbframe.snapshot.versions import Boundaries, History, following, lag
from cbframe.typing import Connectable, ServerURLs


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of the bucket already; by default nothing."""

    bucket_uuid: str = ""  # another bucket of the name is refused; empty to take any
    positions: Mapping[int, Position] = field(default_factory=dict)  # where each vbucket is continued
    boundaries: Boundaries | None = None  # what vbuckets can be taken back to; None for their start
    collections: Collection[int] = ()  # those of which there are changes
    documents: bool = False  # whether there were documents, and not only deletions


@dataclass(frozen=True, slots=True)
class Fetched:
    """What the bucket had to tell."""

    ran: Ran  # the run
    positions: list[Position]  # where each vbucket is complete now
    taken_back: dict[int, int]  # by vbucket, the seqno behind which nothing counts that was known
    rolled_back: dict[int, int]  # vbuckets that the server rolled back, and the lowest seqno to which


class Fetch:
    """One read of what changed; a context manager, since documents wait in temporary files."""

    def __init__(
        self,
        target: ScanSpec,
        known: Known,
        *,
        other_bucket: Callable[[str], SnapshotError],
        net: bool = False,  # of each document only the newest change is wanted
    ) -> None:
        self._known = known
        self._other_bucket = other_bucket
        self._manifest_uid = 0
        self._run = Run(target, bounded=True, bucket_uuid=known.bucket_uuid, ask_time=True)
        names = self._run.names
        self.receiver = ResumingReceiver(names.wire_metadata, self._run.options.max_body_bytes)
        self.receiver.resume(known.positions, known.boundaries)
        self.sink = ChangeSink(target, names, self.receiver, net=net)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.sink.close()

    @property
    def seconds(self) -> float:
        """Since it was made."""
        return self._run.seconds

    def run(self) -> Fetched:
        """Read to the end."""
        ran = self._into()
        starts, receiver = self._known.positions, self.receiver
        reached = {vbucket: seqno for vbucket, (_, seqno) in ran.as_of.items()}
        limits = receiver.taken_back | receiver.vanished(reached)
        emptied = [vbucket for vbucket, seqno in limits.items() if not seqno]
        everything = len(emptied) == sum(bool(position.seqno) for position in starts.values())
        # A node that fails takes some vbuckets back, and leaves their histories.
        if emptied and everything and receiver.replaced(emptied):
            raise self._other_bucket("it was emptied, and no vbucket knows anything of what was read of it")
        positions = [receiver.position_at(vbucket, reached[vbucket]) for vbucket in range(ran.map.vbuckets)]
        self._manifest_uid = max((at.manifest_uid for at in positions), default=0)
        return Fetched(ran, positions, limits, dict(receiver.rolled_back))

    def _into(self) -> Ran:
        starts = self._known.positions
        try:
            ran = self._run.into(self.receiver, self.sink)
        except ClusterMapError as exc:
            if exc.fault != "other bucket" or not self._known.bucket_uuid:
                raise
            raise self._other_bucket(
                "it was deleted and created again, or it is one of another cluster"
            ) from exc
        if starts and len(starts) != ran.map.vbuckets:
            raise self._other_bucket(f"it has {ran.map.vbuckets} vbuckets, and it had {len(starts)}")
        return ran

    def changes(self) -> Changes:
        """The changes, once it has run."""
        known = self._known
        return self.sink.changes(
            known.collections, self._manifest_uid, whole=not known.positions, first=not known.documents
        )


class Update:
    """An update under way; whoever makes it holds the lock."""

    def __init__(
        self,
        store: Store,
        base: Manifest | None,  # the version that is continued; None to begin
        boundaries: Boundaries | None,  # what its vbuckets can be taken back to; None where there is no base
        *,
        version: int,  # the version that is made
        before: datetime | None,
        target: ScanSpec,
        stored: Mapping[str, Any],  # what the snapshot holds, as its manifest has it
    ) -> None:
        self._store = store
        self._base = base
        self._boundaries = boundaries
        self._version = version
        self._before = before
        self._target = target
        self._stored = stored

    def run(self, kind: Kind, now: datetime, *, compression: str, file_bytes: int) -> SnapshotResult:
        """Read, write, publish."""
        base, boundaries = self._base, self._boundaries
        known = Known()
        if base is not None and boundaries is not None:
            starts = dict(enumerate(base.positions))
            documents = any(entry.upserts for entry in base.files)
            known = Known(base.bucket_uuid, starts, boundaries, base.collections, documents)
        with Fetch(self._target, known, other_bucket=self._other_bucket) as fetch:
            fetched = fetch.run()
            changes = fetch.changes()
            entries, columns = self._write(fetch, changes, fetched.ran.map, compression, file_bytes)
        created = following(self._before, now)
        manifest = self._manifest(kind, created, fetch.receiver, fetched, changes, entries, columns)
        return self._publish(manifest, fetched, changes, fetch.seconds, lag(self._before, now))

    def _other_bucket(self, why: str) -> SnapshotError:
        assert self._base is not None
        return SnapshotError(
            f"bucket {self._base.bucket!r} is not the one that the snapshot is of: {why}",
            path=self._store.root,
            hint='mode="overwrite" makes the snapshot again; its old versions stay until vacuum()',
        )

    # -- writing

    def _write(
        self,
        fetch: Fetch,
        changes: Changes,
        bucket: ClusterMap,
        compression: str,
        file_bytes: int,
    ) -> tuple[tuple[FileEntry, ...], tuple[Columns, ...]]:
        """The files of the changes, and what columns all files have."""
        columns = () if self._base is None else self._base.columns
        tables = iter(changes.tables)
        first = next(tables, None)
        if first is None:
            return (), columns
        with ChangeFiles(
            self._store,
            writer_prefix(self._version),
            first.schema,
            parts=parts_for(fetch.sink.nbytes, file_bytes),
            vbuckets=bucket.vbuckets,
            compression=compression,
        ) as files:
            files.add(first)
            for table in tables:
                files.add(table)
            found = changes.documents.columns()
            if found not in columns:
                columns = (*columns, found)
            self._refuse_conflicts(columns)
            if self._base is not None:
                warn_of_nothing(self._target, columns)
            unique = not fetch.receiver.several_versions().any()
            entries = files.finish(self._version, columns=columns.index(found), unique=unique)
        return entries, columns

    def _refuse_conflicts(self, columns: Sequence[Columns]) -> None:
        """Raise where documents have no common type with earlier ones, if that was asked for."""
        if self._base is not None:
            refuse_conflicts(documents_of(self._base), unify(columns), self._stored)

    def _manifest(
        self,
        kind: Kind,
        created: datetime,
        receiver: ResumingReceiver,
        fetched: Fetched,
        changes: Changes,
        entries: tuple[FileEntry, ...],
        columns: tuple[Columns, ...],
    ) -> Manifest:
        base, version = self._base, self._version
        files, rollbacks, before = ((), (), ()) if base is None else (base.files, base.rollbacks, base.drops)
        floors: Sequence[int] = [0] * len(fetched.positions) if base is None else base.floors
        collections = changes.collections if base is None else {**base.collections, **changes.collections}
        dead = changes.dead if base is None else changes.dead | set(base.dead)
        drops = [drop.without(fetched.taken_back) for drop in before]
        drops += [Drop(version, each, seqnos) for each, seqnos in receiver.drops(collections).items()]
        upserted = sum(entry.upserts for entry in entries)
        counts = Counts(
            upserted,
            sum(entry.rows for entry in entries) - upserted,
            0 if base is None else taken_back(self._store, base, fetched.taken_back),
        )
        news = [Rollback(version, "rollback", fetched.taken_back)] if fetched.taken_back else []
        return Manifest(
            version=version,
            parent=0 if base is None else base.version,
            kind=kind,
            created=created,
            bucket=self._target.bucket,
            bucket_uuid=fetched.ran.map.uuid,
            cluster_uuid=fetched.ran.map.cluster_uuid,
            node_time=_latest(None if base is None else base.node_time, fetched.ran.node_time),
            options=self._stored,
            positions=fetched.positions,
            floors=[
                min(floor, fetched.taken_back.get(vbucket, floor)) for vbucket, floor in enumerate(floors)
            ],
            files=(*files, *entries),
            columns=columns,
            rollbacks=(*rollbacks, *news),
            drops=tuple(drop for drop in drops if drop.vbuckets),
            dead=tuple(sorted(dead)),
            collections={number: name for number, name in collections.items() if number not in dead},
            counts=counts,
        )

    def _publish(
        self, manifest: Manifest, fetched: Fetched, changes: Changes, seconds: float, behind: timedelta
    ) -> SnapshotResult:
        base = self._base
        changed = base is None or is_news(base, manifest)
        nbytes = 0
        if changed:
            data = manifest.to_bytes()
            nbytes = len(data) + sum(
                entry.nbytes for entry in manifest.files if entry.version == self._version
            )
            publish(self._store, manifest, data)
        return SnapshotResult(
            path=self._store.root,
            bucket=self._target.bucket,
            version=manifest.version if changed or base is None else base.version,
            changed=changed,
            upserted=manifest.counts.upserted,
            deleted=manifest.counts.deleted,
            retracted=manifest.counts.retracted,
            rolled_back=fetched.rolled_back,
            read_again=dict(fetched.taken_back),
            nbytes=nbytes,
            seconds=seconds,
            as_of=AsOf(fetched.ran.as_of, manifest.created),
            conflicts=changes.conflicts,
            rejected=changes.rejected,
            transaction_records=changes.transaction_records,
            clock_behind=behind,
        )


def _latest(before: datetime | None, node_time: int | None) -> datetime | None:
    """The latest time of day that a node has reported, so far."""
    if node_time is None:
        return before
    now = datetime.fromtimestamp(node_time, UTC)
    return now if before is None else max(before, now)


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


def writer_prefix(version: int) -> str:
    """What the names of a version's files begin with: no other attempt to make it has the same."""
    return f"{version:08d}-{uuid.uuid4().hex[:8]}"


def publish(store: Store, manifest: Manifest, data: bytes) -> None:
    """Make a version the newest one."""
    try:
        store.publish(name_of(manifest.version), data)
    except FileExistsError as exc:
        raise SnapshotError(
            f"version {manifest.version} was published by another writer",
            path=store.root,
            hint="let one process write at a time, and update again",
        ) from exc


def sweep(store: Store, newest: int) -> None:
    """Delete what a writer that was killed left behind: nothing names it, and nobody writes now."""
    for name in store.names(DATA):
        version = name.partition("-")[0]
        if version.isdigit() and int(version) > newest:
            store.remove(f"{DATA}/{name}")
    for name in store.names(FOLDER):
        if name.startswith("."):
            store.remove(f"{FOLDER}/{name}")


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


Mode = Literal["update", "create", "overwrite", "repair"]


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
    file_bytes: int = FILE_BYTES,
    batch_bytes: int | None = None,
    buffer_bytes: int | None = None,
    spool_dir: str | os.PathLike[str] | None = None,
    spill_bytes: int | None = None,
    timeout: float | None = None,
    progress: Progress = "auto",
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
    scope, collections, columns, filters, keys, key_prefix, keys_only, parse, nested, schema, on_conflict, \
max_struct_fields, parse_dates, transaction_records
        What the snapshot holds, as of :func:`cbframe.scan_bucket`; decided when it is made. Updates hold
        to it: what is left out is as it was, and anything else is an error. With ``filters=``, a document
        that does not pass any more counts as deleted. ``collections="visible"`` is looked up when the
        snapshot is made, and the names are kept; where it is given again and the user sees others by then,
        that is an error.
    xattrs
        Keep extended attributes, in ``_cb_xattrs``.
    consistency
        As of :func:`cbframe.scan_bucket`, and for this version only. With ``"snapshot"``, where a node loses
        data during the update, vbuckets that were complete keep rows of the lost history until the next
        update takes them back. ``"strict"`` compares all histories before the version is published, and reads
        again what was lost: then each position of the version is of a history that existed at its end.
    file_bytes
        Changes of more bytes than that, as they are in memory, go to several files, each of a range of
        vbuckets; 16 at most.
    batch_bytes, buffer_bytes, spool_dir, spill_bytes, timeout, progress, options
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
        base = None
        kind: Kind = "update"
        if mode == "repair":
            base, damaged = mended(store, history, newest + 1)
            kind = "repair" if damaged else kind
        elif mode != "overwrite":
            base = history.latest()
        given = named(given, arguments, None if base is None else base.options)
        stored = {"transaction_records": "drop", **given}
        if base is not None:
            agreed(given, base.options)
            stored = dict(base.options)
        update = Update(
            store,
            base,
            None if base is None else Boundaries(base, history.ancestors(base)),
            version=newest + 1,
            before=history.latest_time(),
            target=spec_of(arguments, stored),
            stored=stored,
        )
        return update.run(
            "create" if base is None else kind, clock(), compression=compression, file_bytes=file_bytes
        )
