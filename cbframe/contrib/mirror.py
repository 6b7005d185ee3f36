"""Mirrors of a bucket in tables of other formats: what changed becomes one commit of the table.

A write reads changes as a snapshot's update does, with a ``ChangeReader``: of each document the newest. They
wait on disk until their columns are known. Then the table is merged with them, or, where a type got wider,
written again with them. :class:`Mirror` is that write; :class:`Table` is what it needs of a format.

What the server rolls back, the table rolls back: rows are deleted, and those that they had replaced come from
an earlier version of the table.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from copy import copy
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any, ClassVar, Literal, TypeAlias, TypedDict, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cbframe.arrow import current_rows
from cbframe.arrow.column_types import Columns, unify
from cbframe.arrow.columns import COLLECTION_ID, KEY, VBUCKET, KeyForm, Mask, formed, has_literals
from cbframe.arrow.current_rows import TRANSACTION_PREFIX
from cbframe.cluster.tls import TLSLike
from cbframe.contrib import spelled
from cbframe.contrib.stored_rows import HEAD, Documents, Fields, Format, Shape, Tables, Waiting, places_of
from cbframe.dcp.stats import EventLogLike
from cbframe.errors import CbframeError, ConfigurationError, SnapshotError
from cbframe.json.layout import OnConflict
from cbframe.options import BucketDataSourceOptions
from cbframe.scan.changes import CHANGE_TYPE, UPSERT
from cbframe.scan.progress import Progress
from cbframe.scan.result import Clock, Conflict
from cbframe.scan.spec import ColumnsLike, Consistency, Exclusion, FiltersLike, SchemaLike, one_of
from cbframe.snapshot import writer
from cbframe.snapshot.bucket_changes import ChangeReader, Changes
from cbframe.snapshot.manifest import BLANK, Counts, Manifest, Rollback, RollbackPoints, following
from cbframe.snapshot.writer import UpdateResult, write_snapshot

APP = "cbframe"
"""Under which commits have the positions."""
CHANGE = "_cb_change"
"""What to do with a row of a merge; no column of the table, and no field can have the name."""
LOOK_BACK = 50
"""Commits among which versions are looked for that can be gone back to."""
TABLE_PER = "table_per"
"""An option of mirrors that have a table for each collection."""
Mode: TypeAlias = Literal["error", "overwrite"]
How: TypeAlias = Literal["rewritten", "changed"] | None
"""What became of a table; None for nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MirrorResult(UpdateResult):
    """A table that was written.

    Attributes
    ----------
    version
        Of the table, now: its own number of it in Delta, the number of the update in Iceberg.
    changed
        Whether there was anything new; if not, there is no commit.
    rewritten
        Whether the whole table was written, since types got wider, or at first.
    bucket, upserted, deleted, retracted, dropped, rolled_back, read_again, seconds, as_of, conflicts, \
rejected, transaction_records, clock_behind
        As of :class:`~cbframe.SnapshotResult`; each document counts once.
    """

    rewritten: bool

    def _version(self) -> str:
        return super(MirrorResult, self)._version() + (", rewritten" if self.rewritten else "")


# --- what there is


@dataclass(frozen=True, slots=True)
class State:
    """What a table was after an update."""

    manifest: Manifest  # its `files` are empty: the format has its own list
    number: int  # what the format calls it


def lineage(ours: Sequence[State]) -> list[State]:
    """Of all updates, newest first: the newest, and what each was made from, as far as it is known."""
    states, parent = [], ours[0].manifest.version
    for each in ours:
        if each.manifest.version == parent:
            states.append(each)
            parent = each.manifest.parent
    return states


def upto(states: Sequence[State], version: int) -> list[State]:
    """What a table was at a version of the mirror, and before."""
    return [each for each in states if each.manifest.version <= version]


class GoneError(Exception):
    """An older version of the mirror, whose number this has, cannot be read any more."""


class Table(ABC):
    """A table, as it was when it was opened, and the next commit of it."""

    format: ClassVar[Format]
    made_by: ClassVar[str]  # the functions that make such a table, and update it
    updated_by: ClassVar[str]
    removed: ClassVar[str]  # what happens to old versions at last

    where: str
    exists: bool
    number: int = 0  # what the format calls the state in which it was opened
    updates: int = 0  # how many there were, in all tables that were here
    _lost: tuple[type[Exception], ...]  # errors of the library: another writer was faster
    _failed: tuple[type[Exception], ...]  # the others
    _hints: ClassVar[Mapping[str, str]] = {}  # what to do about some of them, by name

    def close(self) -> None:  # noqa: B027 - not every format opens something
        """Let go of what was opened."""

    @contextmanager
    def errors(self, doing: str) -> Iterator[None]:
        """Turns errors of the format's library into ours."""
        try:
            yield
        except CbframeError:
            raise
        except self._lost as exc:
            raise SnapshotError(
                "another writer has changed the table meanwhile",
                path=self.where,
                hint="nothing was written: let one process write at a time, and update again",
            ) from exc
        except self._failed as exc:
            raise SnapshotError(
                f"cannot {doing} the {self.format.name} table ({exc})",
                path=self.where,
                hint=self._hints.get(type(exc).__name__),
            ) from exc

    def read(self, state: State, schema: pa.Schema, some: pc.Expression | None = None) -> Iterator[pa.Table]:
        """Rows of a state of the table; raises :class:`GoneError` if an older one cannot be read any more."""
        try:
            with self.errors("read"):
                yield from self._read(state.number, schema, some)
        except SnapshotError as exc:
            if state.number == self.number:
                raise
            raise GoneError(state.manifest.version) from exc

    @abstractmethod
    def beside(self, name: str) -> Table:
        """The table whose name has this one after that of the table."""

    @abstractmethod
    def states(self) -> list[State]:
        """The :func:`lineage` of the table; an error if none is known, or the rows are others now."""

    def is_text(self, number: int) -> bool:
        """Whether keys are text in a state that does not say so."""
        raise NotImplementedError

    @abstractmethod
    def _read(self, number: int, schema: pa.Schema, some: pc.Expression | None) -> Iterator[pa.Table]: ...

    @abstractmethod
    def overwrite(
        self, schema: pa.Schema, tables: Tables, manifest: Manifest, *, kept: Tables = (), before: Fields = ()
    ) -> None:
        """Have these rows be all, and those `kept`, which are read of the table: `before` are its fields."""

    @abstractmethod
    def merge(self, source: Source, manifest: Manifest, *, grown: bool) -> None:
        """Change, add and delete rows; if it has `grown`, there are columns that the table has not yet."""

    @abstractmethod
    def note(self, manifest: Manifest) -> None:
        """Write down how far the bucket was read: no row changed."""

    @abstractmethod
    def result(self, **fields: Any) -> MirrorResult:
        """What there is to say."""

    def changed(self, how: str, *, back: bool = False) -> SnapshotError:
        """Others have changed the table, or gone back to what it was."""
        if back:
            return self.refusal(
                f"the table was {how}: its rows are older than the positions up to which the bucket was "
                "read, and the changes in between would be missing"
            )
        return self.refusal(f"the table was changed by someone else ({how}): it is no mirror any more")

    def taken(self) -> SnapshotError:
        """There is a table where one is to be made."""
        kind = self.format.name
        return SnapshotError(
            f"there is {'an' if kind[0] in 'AEIOU' else 'a'} {kind} table already",
            path=self.where,
            hint=f'{self.updated_by}() brings it up to date; mode="overwrite" makes it again',
        )

    def refusal(self, why: str, hint: str = "") -> SnapshotError:
        """The table is no mirror that can be continued."""
        return SnapshotError(
            why,
            path=self.where,
            hint=f'{hint}{self.made_by}(..., mode="overwrite") makes it again; old versions stay until they '
            f"are {self.removed}",
        )


# --- what becomes of it


@dataclass(slots=True)
class Corrections:
    """What is to be done to the rows of the table besides what changed."""

    rolled_back: int = 0  # how many rows were
    gone: list[pa.Table] = field(default_factory=list)  # these, and rows of collections that went
    restored: list[pa.Table] = field(default_factory=list)  # rows of earlier versions that count again


@dataclass(frozen=True, slots=True)
class News:
    """What the bucket reported."""

    changes: Changes
    waiting: Waiting  # their tables, which have of each document one row
    columns: Columns  # what the fields of the documents are
    upserted: int  # how many there are
    deleted: int
    dead: frozenset[int]  # collections that were dropped, now or before

    def of_dropped(self, head: pa.Table) -> Mask:
        """Which rows are of a collection that was dropped, or emptied since."""
        gone = current_rows.of_dropped(head, set(self.dead), self.changes.ended)
        return np.zeros(len(head), bool) if gone is None else gone

    def upserts(self, shape: Shape) -> Iterator[pa.Table]:
        """Documents, as they will be stored."""
        for table in self.waiting.tables():
            some = table.filter(pc.equal(table[CHANGE_TYPE], UPSERT))
            yield shape.stored(some, some.select(self.columns.schema.names), self.columns)

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
        self.shape = shape
        self._news = news
        upserts, self._deleted = [*news.heads(upserts=True)], [*news.heads(upserts=False)]
        reported = Documents([*upserts, *self._deleted])
        self._restored = [
            rows.filter(pa.array(~reported.have(shape.head_of(rows)))) for rows in corrections.restored
        ]
        upserts += map(shape.head_of, self._restored)
        for head in corrections.gone:
            # One that was rolled back and dropped is there twice.
            covered = Documents([*upserts, *self._deleted])
            self._deleted.append(head.filter(pa.array(~covered.have(head))).select([KEY, COLLECTION_ID]))
        self.touched = Documents([*upserts, *self._deleted])
        self.some = any(map(len, (*upserts, *self._deleted)))

    def rows(self) -> Iterator[pa.Table]:
        """Those that the table gets."""
        yield from self._news.upserts(self.shape)
        yield from self._restored

    def changes(self) -> Iterator[pa.Table]:
        """Those, and those that go, with what to do with them, for a MERGE."""
        for rows in self.rows():
            yield rows.append_column(CHANGE, pa.repeat("upsert", len(rows)))
        schema = self.shape.schema
        for head in self._deleted:
            known = {
                KEY: formed(head[KEY], self.shape.keys),
                COLLECTION_ID: head[COLLECTION_ID].cast(schema.field(COLLECTION_ID).type),
            }
            columns = [known.get(each.name, pa.nulls(len(head), each.type)) for each in schema]
            rows = pa.Table.from_arrays(columns, schema=schema)
            yield rows.append_column(CHANGE, pa.repeat("delete", len(rows)))

    def untouched(self, current: Iterator[tuple[pa.Table, pa.Table]], narrow: Columns) -> Iterator[pa.Table]:
        """Rows that stay what they are, as they will be stored, of metadata and fields (`narrow`) of all."""
        for head, documents in current:
            some = pa.array(~self.touched.have(head))
            yield self.shape.stored(head.filter(some), documents.filter(some), narrow)


class Mirror:
    """A write under way."""

    def __init__(
        self,
        table: Table,
        base: Sequence[State],  # what is continued, newest first; empty to begin
        stored: Mapping[str, Any],  # what of the bucket the table holds, as its metadata has it
        arguments: Mapping[str, Any],  # of the public function
        mode: Mode | None = None,  # None for an update
    ) -> None:
        self._table, self._base, self._stored, self._mode = table, base, stored, mode
        self._points: RollbackPoints | None = None  # those of `base`
        self._is_part = False
        self._version = table.updates + 1
        of_bucket = {name: value for name, value in stored.items() if name != TABLE_PER}
        self._target = writer.spec_of(arguments, of_bucket)
        self._per_collection = TABLE_PER in stored
        self._now = arguments["clock"]()
        self._before = base[0].manifest.created if base else None

    @property
    def _newest(self) -> Manifest:
        """What is continued."""
        return self._base[0].manifest if self._base else BLANK

    def run(self) -> MirrorResult:
        """Read, and commit."""
        gone: set[int] = set()
        while True:
            try:
                return self._attempt(gone)
            except GoneError as exc:
                (version,) = exc.args
                if version in gone:
                    # A table that is ahead of the positions is made of what it was.
                    raise self._table.refusal(
                        f"version {version} of a table is needed, and cannot be read any more"
                    ) from exc
                # Its vbuckets are rolled back to an even earlier version, or read from the start.
                gone.add(version)

    def _attempt(self, gone: set[int]) -> MirrorResult:
        base, documents = self._newest, False
        if self._base:
            known = [each.manifest for each in self._base]
            self._points = RollbackPoints(base, [each for each in known if each.version not in gone])
            documents = not self._target.parsed or bool(base.columns[0].kinds or self._per_collection)
        reader = ChangeReader(
            self._target,
            base,
            self._points,
            documents=documents,
            net=True,
            per_collection=self._per_collection,
            other_bucket=self._other_bucket,
        )
        with closing(reader):
            changes = reader.read()
            if self._per_collection:
                changes, manifest, written = self._write_each(changes, reader)
            else:
                with closing(Waiting(self._target.spool_dir)) as waiting:
                    manifest, written = self._write(self._news(changes, waiting))
            return self._table.result(
                changed=written is not None,
                rewritten=written == "rewritten",
                seconds=reader.seconds,
                **MirrorResult.fields_of(changes, self._newest, manifest, self._before, self._now),
            )

    def _news(self, changes: Changes, waiting: Waiting) -> News:
        rows = upserted = 0
        for table in changes.tables:
            waiting.put(table)
            rows += len(table)
            upserted += pc.sum(pc.equal(table[CHANGE_TYPE], UPSERT)).as_py() or 0
        columns = changes.documents.columns()
        return News(changes, waiting, columns, upserted, rows - upserted, self._dead(changes))

    def _dead(self, changes: Changes) -> frozenset[int]:
        return changes.dead | set(self._newest.dead)

    def _other_bucket(self, why: str) -> SnapshotError:
        return self._table.refusal(
            f"bucket {self._newest.bucket!r} is not the one that the table mirrors: {why}"
        )

    # -- writing

    def _write_each(self, changes: Changes, reader: ChangeReader) -> tuple[Changes, Manifest, How]:
        """Commit to a table for each collection, and then the positions: what counts is what these say."""
        known, read = {*self._newest.collections.values()}, {*changes.collections.values()}
        if len({name.replace(".", "__") for name in known | read}) < len(known | read):
            raise ConfigurationError(
                "two collections would have one table", hint="name some with collections="
            )
        nothing = replace(changes, tables=iter(()), conflicts=(), rejected={})
        made: list[Manifest] = []
        written: set[How] = set()
        conflicts: list[Conflict] = []
        rejected: Counter[str] = Counter()
        others = ((name, nothing) for name in sorted(known - read))
        for name, part in chain(reader.by_collection(changes), others):
            conflicts += part.conflicts
            rejected.update(part.rejected)
            with (
                closing(Waiting(self._target.spool_dir)) as waiting,
                closing(self._table.beside(name.replace(".", "__"))) as table,
            ):
                news = self._news(part, waiting)
                if name in known or news.upserted:
                    write: Mirror = self._part(table, known=name in known)
                    manifest, how = write._write(news)
                    made.append(manifest)
                    written.add(how)
        writer.warn_of_nothing(self._target, [manifest.columns[0] for manifest in made])
        upserted, deleted, retracted = (
            sum(getattr(each.counts, name) for each in made) for name in ("upserted", "deleted", "retracted")
        )
        manifest = self._manifest(changes, Counts(upserted, deleted, retracted), Columns({}))
        how = "rewritten" if "rewritten" in written else "changed"
        if not self._base:
            self._table.overwrite(self._shape(Columns({})).schema, (), manifest)
        elif writer.is_news(self._newest, manifest):
            self._table.note(manifest)
        else:
            how = None
        return replace(changes, conflicts=tuple(conflicts), rejected=dict(rejected)), manifest, how

    def _part(self, table: Table, *, known: bool) -> Mirror:
        """The write of the table of one collection."""
        part: Mirror = copy(self)
        part._table, part._base, part._is_part = table, [], True
        if known:
            # A process that ended before the positions were committed has left it ahead of them.
            part._base = upto(table.states(), self._newest.version) if table.exists else []
            if not part._base:
                # Who names the table of one collection must not make it again: it would be a mirror of all.
                raise self._table.refusal(
                    f"the table {table.where} of the mirror is gone, or its versions are",
                    f"if {self._table.where} is the table of one collection, update the mirror; else ",
                )
        elif table.exists and (self._mode == "error" or (self._mode is None and not table.updates)):
            raise table.taken()
        return part

    def _write(self, news: News) -> tuple[Manifest, How]:
        """Commit; what was committed, and how."""
        if not self._base:
            shape = self._shape(news.columns)
            manifest = self._manifest(news.changes, Counts(news.upserted), shape.columns)
            self._table.overwrite(shape.schema, news.upserts(shape), manifest)
            return manifest, "rewritten"
        newest = self._base[0]
        old = self._shape_of(newest)
        most = self._stored.get("max_struct_fields", 1000)
        wide = unify([old.columns, news.columns], max_members=most)
        writer.refuse_conflicts(old.columns, wide, self._stored)
        if news.upserted and not self._is_part:
            writer.warn_of_nothing(self._target, [wide])
        shape = self._shape(wide)
        corrections = self._corrections(old, shape, news)
        counts = Counts(news.upserted, news.deleted, corrections.rolled_back)
        manifest = self._manifest(news.changes, counts, wide)
        source = Source(shape, news, corrections)
        is_ahead = newest.number != self._table.number
        again = is_ahead or not shape.holds(old)
        if not again and old.keys == "text" and "keys" not in newest.manifest.options:
            # A table of an earlier version of cbframe may have keys that are written in another way now.
            found = self._table.read(newest, pa.schema([old.schema.field(KEY)]))
            again = any(has_literals(table[KEY]) for table in found)
        if again:
            kept = source.untouched(self._rows(newest, old), old.columns)
            before = () if is_ahead else old.schema
            self._table.overwrite(shape.schema, source.rows(), manifest, kept=kept, before=before)
            return manifest, "rewritten"
        if source.some:
            self._table.merge(source, manifest, grown=len(shape.names) > len(old.names))
        elif not self._is_part and writer.is_news(newest.manifest, manifest):
            self._table.note(manifest)
        else:
            return manifest, None
        return manifest, "changed"

    def _shape(self, columns: Columns, keys: KeyForm | None = None, *, escaped: bool = True) -> Shape:
        xattrs, keys = bool(self._stored.get("xattrs")), keys or self._stored["keys"]
        return Shape(self._table.format, columns, xattrs=xattrs, keys=keys, escaped=escaped)

    def _shape_of(self, state: State) -> Shape:
        """How a version of the table holds its columns."""
        columns, options = state.manifest.columns[0], state.manifest.options
        if "keys" in options:
            return self._shape(columns, options["keys"])
        return self._shape(columns, "text" if self._table.is_text(state.number) else "binary", escaped=False)

    def _rows(
        self, state: State, shape: Shape, vbuckets: list[int] | None = None
    ) -> Iterator[tuple[pa.Table, pa.Table]]:
        """Metadata and fields of the rows of a version of the table."""
        some = None if vbuckets is None else pc.field(VBUCKET).isin(vbuckets)
        for rows in self._table.read(state, shape.schema, some):
            yield shape.head_of(rows), shape.documents_of(rows)

    def _heads(self, shape: Shape, some: pc.Expression) -> pa.Table:
        """Which rows of the table there are."""
        schema = pa.schema([shape.schema.field(name) for name in HEAD])
        found = self._table.read(self._base[0], schema, some)
        return shape.head_of(pa.concat_tables([schema.empty_table(), *found]))

    # -- what is rolled back, or dropped

    def _corrections(self, old: Shape, shape: Shape, news: News) -> Corrections:
        corrections, known = Corrections(), self._newest
        concerned = {cid for _, cid in news.changes.ended} | (news.dead - set(known.dead))
        if concerned:
            heads = self._heads(old, pc.field(COLLECTION_ID).isin(sorted(concerned)))
            corrections.gone.append(heads.filter(pa.array(news.of_dropped(heads))))
        if not known.knows_transactions:
            # Earlier releases mirrored them.
            prefix = TRANSACTION_PREFIX.decode() if old.keys == "text" else TRANSACTION_PREFIX
            corrections.gone.append(self._heads(old, pc.starts_with(pc.field(KEY), prefix)))
        if news.changes.rollback_seqnos:
            self._roll_back(old, shape, news, corrections)
        return corrections

    def _roll_back(self, old: Shape, shape: Shape, news: News, corrections: Corrections) -> None:
        """Find the rows that went, and rows of earlier versions of the mirror that the table has not now."""
        assert self._points is not None, "what has no base is not rolled back"
        seqnos = news.changes.rollback_seqnos
        heads = self._heads(old, pc.field(VBUCKET).isin(sorted(seqnos)))
        gone = current_rows.rolled_back(heads, current_rows.by_vbucket(seqnos))
        corrections.rolled_back = int(gone.sum())
        corrections.gone.append(heads.filter(pa.array(gone)))
        standing = places_of(heads.filter(pa.array(~gone)))
        versions: dict[int, tuple[Manifest, list[int]]] = {}
        for vbucket, seqno in seqnos.items():
            # The start has no documents.
            if (manifest := self._points.version(vbucket, seqno)) is not None:
                versions.setdefault(manifest.version, (manifest, []))[1].append(vbucket)
        for manifest, vbuckets in versions.values():
            found = upto(self._base, manifest.version)
            if not found:
                if self._base[-1].manifest.kind != "create":
                    raise GoneError(manifest.version)
                continue  # it had no documents then
            earlier = self._shape_of(found[0])
            for head, documents in self._rows(State(manifest, found[0].number), earlier, vbuckets):
                gone = np.isin(places_of(head), standing) | news.of_dropped(head)
                if self._stored["transaction_records"] == "drop":
                    gone |= current_rows.of_transactions(head[KEY])
                some = pa.array(~gone)
                rows = shape.stored(head.filter(some), documents.filter(some), earlier.columns)
                corrections.restored.append(rows)

    # -- reports

    def _manifest(self, changes: Changes, counts: Counts, columns: Columns) -> Manifest:
        base, dead = self._newest, self._dead(changes)
        oldest = self._base[-1].manifest.version if self._base else 0
        rollbacks = [each for each in base.rollbacks if each.version > oldest]
        if changes.rollback_seqnos:
            rollbacks.append(Rollback(self._version, "rollback", changes.rollback_seqnos))
        return Manifest(
            version=self._version,
            parent=base.version,
            kind="update" if self._base else "create",
            created=following(self._before, self._now),
            bucket=self._target.bucket,
            bucket_uuid=changes.ran.map.uuid,
            cluster_uuid=changes.ran.map.cluster_uuid,
            options=self._stored,
            positions=changes.positions,
            floors=[0] * len(changes.positions),
            columns=(columns,),
            rollbacks=tuple(rollbacks),
            dead=tuple(sorted(dead)),
            collections={
                number: name
                for number, name in {**base.collections, **changes.collections}.items()
                if number not in dead
            },
            counts=counts,
        )


@contextmanager
def unchanged_errors(tables: Iterable[pa.Table]) -> Iterator[Iterator[pa.RecordBatch]]:
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


# --- the functions that begin it


class MirrorArguments(TypedDict, total=False):
    """What all of them take, besides where the table is; defaults are those of ``write_snapshot``."""

    bucket: str | None
    auth: Any
    tls: TLSLike
    network: str
    scope: str | None
    collections: str | Iterable[str] | None
    columns: ColumnsLike | None
    filters: FiltersLike | None
    keys: KeyForm | None
    key_prefix: str | bytes | None
    key_pattern: str | None
    keys_only: bool | None
    parse: bool | None
    xattrs: bool | None
    nested: Literal["struct", "json"] | None
    schema: SchemaLike | None
    on_conflict: OnConflict | None
    max_struct_fields: int | None
    parse_dates: bool | Iterable[str] | None
    transaction_records: Exclusion | None
    consistency: Consistency
    only_persisted: bool
    batch_bytes: int | None
    buffer_bytes: int | None
    spool_dir: str | os.PathLike[str] | None
    spill_bytes: int | None
    timeout: float | None
    progress: Progress
    event_log: EventLogLike | None
    options: BucketDataSourceOptions | None
    clock: Clock


with_arguments = spelled(write_snapshot, MirrorArguments.__annotations__)
"""For a function that takes these arguments."""


def copied(
    open_table: Callable[[], Table], arguments: Mapping[str, Any], mode: Mode, table_per: str | None
) -> Any:
    """Make a table: its first commit, with the arguments of a public function."""
    one_of(*get_args(Mode))("mode", mode)
    one_of("collection", None)(TABLE_PER, table_per)
    given = _checked(arguments)
    with closing(open_table()) as table:
        if table.exists and mode == "error":
            raise table.taken()
        # Always written down: tables of earlier versions of cbframe, without it, hold keys in another way.
        stored = {"transaction_records": "drop", "keys": "text", **writer.named(given, arguments)}
        if table_per is not None:
            stored[TABLE_PER] = table_per
        return Mirror(table, [], stored, arguments, mode).run()


def updated(open_table: Callable[[], Table], arguments: Mapping[str, Any]) -> Any:
    """Bring a table up to date: one more commit, with the arguments of a public function."""
    given = _checked(arguments)
    with closing(open_table()) as table:
        if not table.exists:
            raise SnapshotError(
                f"there is no {table.format.name} table",
                path=table.where,
                hint=f"{table.made_by}() makes one",
            )
        base = table.states()
        stored = {"keys": "text", **base[0].manifest.options}
        remedy = f'{table.made_by}(..., mode="overwrite")'
        writer.agreed(writer.named(given, arguments, stored), stored, made="the table", remedy=remedy)
        stored.setdefault("transaction_records", "drop")  # mirrors of earlier releases have them: they go now
        return Mirror(table, base, stored, arguments).run()


def _checked(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """What the table is to hold as it is written down; what is invalid is reported before it is touched."""
    given = writer.stored_form(arguments)
    writer.spec_of(arguments, given)
    return given
