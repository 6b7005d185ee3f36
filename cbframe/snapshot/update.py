"""One update of a snapshot: what changed since its last version becomes the next one."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa

from cbframe.arrow.documents.unify import Columns, differences, unify
from cbframe.cluster.cluster_map import ClusterMap
from cbframe.errors import ConversionError, SnapshotError
from cbframe.public import warn
from cbframe.scan.asof import AsOf
from cbframe.scan.shape import joined
from cbframe.scan.spec import ScanSpec
from cbframe.snapshot.fetch import Fetch, Fetched, Known
from cbframe.snapshot.files import DATA, ChangeFiles, parts_for
from cbframe.snapshot.history import Boundaries, following, lag
from cbframe.snapshot.live import taken_back
from cbframe.snapshot.manifest import (
    FOLDER,
    Counts,
    Drop,
    FileEntry,
    Kind,
    Manifest,
    Rollback,
    name_of,
)
from cbframe.snapshot.reader import documents_of
from cbframe.snapshot.result import SnapshotResult
from cbframe.snapshot.resume import ResumingReceiver
from cbframe.snapshot.sink import Changes, made_way
from cbframe.snapshot.store import Store


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
