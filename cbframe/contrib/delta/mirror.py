"""One write of a Delta table: what changed in the bucket becomes one commit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from cbframe.arrow.columns import COLLECTION_ID, KEY, VBUCKET
from cbframe.arrow.documents.unify import Columns, unify
from cbframe.arrow.documents.widen import widen
from cbframe.arrow.exclusion import TRANSACTION_PREFIX, of_transactions
from cbframe.arrow.keys import KeyForm, has_literals
from cbframe.contrib.delta.commit import Committer
from cbframe.contrib.delta.log import Base, delta_errors
from cbframe.contrib.delta.result import DeltaResult
from cbframe.contrib.delta.rows import HEAD, Places, Waiting, beyond
from cbframe.contrib.delta.shape import Shape
from cbframe.contrib.delta.source import Back, News, Source
from cbframe.errors import SnapshotError
from cbframe.scan.asof import AsOf
from cbframe.scan.moment import Clock
from cbframe.scan.spec import ScanSpec
from cbframe.snapshot.fetch import Fetch, Fetched, Known
from cbframe.snapshot.history import Boundaries, following, lag
from cbframe.snapshot.manifest import Counts, Manifest, Rollback
from cbframe.snapshot.sink import CHANGE_TYPE, UPSERT, Changes
from cbframe.snapshot.update import is_news, refuse_conflicts, warn_of_nothing

_Opener = Callable[[int], Any]


class _GoneError(Exception):
    """An older version of the table cannot be read any more."""

    def __init__(self, version: int) -> None:
        super().__init__(version)
        self.version = version


class Mirror:
    """A write under way."""

    def __init__(
        self,
        uri: str,
        base: Base | None,  # what is continued; None to begin
        committer: Committer,
        *,
        version: int,  # number of the update that is made
        target: ScanSpec,
        stored: Mapping[str, Any],  # what of the bucket the table holds, as its metadata has it
        opener: _Opener,  # opens an earlier version of the table
        clock: Clock,
    ) -> None:
        self._uri = uri
        self._base = base
        self._committer = committer
        self._version = version
        self._target = target
        self._stored = stored
        self._opener = opener
        self._now = clock()
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
                # Its vbuckets are taken back to an even earlier version, or read from the start.
                gone.add(exc.version)

    def _attempt(self, gone: set[int]) -> DeltaResult:
        known, boundaries = Known(), None
        if self._base is not None:
            base = self._base.manifest
            ancestors = [each for each in self._base.ancestors if each.version not in gone]
            boundaries = Boundaries(base, ancestors)
            starts = dict(enumerate(base.positions))
            documents = not self._target.parsed or bool(base.columns[0].schema.names)
            known = Known(base.bucket_uuid, starts, boundaries, base.collections, documents)
        with (
            Fetch(self._target, known, other_bucket=self._other_bucket, net=True) as fetch,
            Waiting(self._target.spool_dir) as waiting,
        ):
            fetched = fetch.run()
            changes = fetch.changes()
            counts = {UPSERT: 0, "": 0}
            for table in changes.tables:
                waiting.put(table)
                upserts = pc.sum(pc.equal(table[CHANGE_TYPE], UPSERT)).as_py() or 0
                counts[UPSERT] += upserts
                counts[""] += len(table) - upserts
            found = changes.documents.columns()
            dead = changes.dead
            if self._base is not None:
                dead |= set(self._base.manifest.dead)
            news = News(waiting, found, counts[UPSERT], counts[""], dead, fetch.receiver.ended())
            return self._write(fetched, changes, news, boundaries, lambda: fetch.seconds)

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
        fetched: Fetched,
        changes: Changes,
        news: News,
        boundaries: Boundaries | None,
        seconds: Callable[[], float],
    ) -> DeltaResult:
        base = self._base
        if base is None or boundaries is None:
            shape = Shape(news.columns, xattrs=self._xattrs, keys=self._keys)
            manifest = self._manifest(fetched, changes, news, shape.columns, 0)
            self._committer.overwrite(shape.schema, news.upserts(shape), manifest)
            return self._result(fetched, changes, manifest, seconds(), changed=True, rewritten=True)
        old = self._shape_of(base.manifest, base.table)
        most = self._stored.get("max_struct_fields", 1000)
        wide = unify([old.columns, news.columns], max_members=most)
        refuse_conflicts(old.columns, wide, self._stored)
        if news.upserted:
            warn_of_nothing(self._target, [wide])
        shape = Shape(wide, xattrs=self._xattrs, keys=self._keys)
        back = self._taken_back(base, old, shape, fetched.taken_back, boundaries, news)
        manifest = self._manifest(fetched, changes, news, wide, sum(map(len, back.lost)))
        changed, rewritten = True, not shape.holds(old) or self._has_bare_literals(base, old)
        source = Source(shape, news, back)
        if rewritten:
            self._rewrite(base, old, shape, source, manifest)
        elif source.some:
            self._committer.merge(source.changes(), manifest, widen=len(shape.names) > len(old.names))
        elif is_news(base.manifest, manifest):
            self._committer.note(manifest)
        else:
            changed = False
        return self._result(fetched, changes, manifest, seconds(), changed=changed, rewritten=rewritten)

    def _rewrite(self, base: Base, old: Shape, shape: Shape, source: Source, manifest: Manifest) -> None:
        """Write the whole table in another shape."""
        # deltalake must not be called while it takes rows: those that are read of it wait on disk.
        with Waiting(self._target.spool_dir) as untouched:
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

    # -- what is taken back

    def _taken_back(
        self,
        base: Base,
        old: Shape,
        shape: Shape,
        limits: dict[int, int],
        boundaries: Boundaries,
        news: News,
    ) -> Back:
        back = Back()
        concerned = {cid for _, cid in news.ended} | (news.dead - set(base.manifest.dead))
        if concerned:
            heads = self._heads(base, old, pc.field(COLLECTION_ID).isin(sorted(concerned)))
            back.dropped.append(heads.filter(pa.array(news.of_dropped(heads))))
        if not base.manifest.knows_transactions:
            # Earlier releases mirrored them.
            prefix = TRANSACTION_PREFIX.decode() if old.keys == "text" else TRANSACTION_PREFIX
            back.dropped.append(self._heads(base, old, pc.starts_with(pc.field(KEY), prefix)))
        if not limits:
            return back
        heads = self._heads(base, old, pc.field(VBUCKET).isin(sorted(limits)))
        lost = beyond(heads, limits)
        back.lost.append(heads.filter(pa.array(lost)))
        standing = Places(heads.filter(pa.array(~lost)))
        versions: dict[int, tuple[Manifest, list[int]]] = {}
        for vbucket, seqno in limits.items():
            manifest = boundaries.version_below(vbucket, seqno)
            # The start has no documents.
            if manifest is not None:
                versions.setdefault(manifest.version, (manifest, []))[1].append(vbucket)
        for manifest, vbuckets in versions.values():
            back.restored += self._restored(base, manifest, vbuckets, standing, shape, news)
        return back

    def _restored(
        self,
        base: Base,
        manifest: Manifest,
        vbuckets: list[int],
        standing: Places,
        shape: Shape,
        news: News,
    ) -> list[pa.Table]:
        """Rows of an earlier version of the table that the table has not now."""
        from deltalake.exceptions import DeltaError  # noqa: PLC0415 - optional

        restored = []
        try:
            table = self._opener(base.versions[manifest.version])
            earlier = self._shape_of(manifest, table)
            for head, documents in self._rows(table, earlier, vbuckets):
                gone = standing.have(head) | news.of_dropped(head)
                if self._stored["transaction_records"] == "drop":
                    gone |= of_transactions(head[KEY])
                some = pa.array(~gone)
                wide = widen(documents.filter(some), earlier.columns, shape.columns)
                restored.append(shape.stored(head.filter(some), wide))
        except (DeltaError, OSError) as exc:
            raise _GoneError(manifest.version) from exc
        return restored

    # -- reports

    def _manifest(
        self, fetched: Fetched, changes: Changes, news: News, columns: Columns, retracted: int
    ) -> Manifest:
        base = None if self._base is None else self._base.manifest
        rollbacks: list[Rollback] = []
        collections = changes.collections if base is None else {**base.collections, **changes.collections}
        if self._base is not None:
            oldest = self._base.ancestors[-1].version
            rollbacks += [each for each in self._base.manifest.rollbacks if each.version > oldest]
        if fetched.taken_back:
            rollbacks.append(Rollback(self._version, "rollback", fetched.taken_back))
        return Manifest(
            version=self._version,
            parent=0 if base is None else base.version,
            kind="create" if base is None else "update",
            created=following(self._before, self._now),
            bucket=self._target.bucket,
            bucket_uuid=fetched.ran.map.uuid,
            cluster_uuid=fetched.ran.map.cluster_uuid,
            options=self._stored,
            positions=fetched.positions,
            floors=[0] * len(fetched.positions),
            columns=(columns,),
            rollbacks=tuple(rollbacks),
            dead=tuple(sorted(news.dead)),
            collections={number: name for number, name in collections.items() if number not in news.dead},
            counts=Counts(news.upserted, news.deleted, retracted),
        )

    def _result(
        self,
        fetched: Fetched,
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
            rolled_back=fetched.rolled_back,
            read_again=fetched.taken_back,
            seconds=seconds,
            as_of=AsOf(fetched.ran.as_of, manifest.created),
            conflicts=changes.conflicts,
            rejected=changes.rejected,
            transaction_records=changes.transaction_records,
            clock_behind=lag(self._before, self._now),
        )
