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
from functools import wraps
from inspect import Parameter, Signature, signature
from itertools import chain
from typing import Any, ClassVar, Literal, TypeAlias, TypedDict

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cbframe.arrow.column_types import Columns, unify, widen
from cbframe.arrow.columns import COLLECTION_ID, KEY, SEQNO, VBUCKET, KeyForm, Mask, formed, has_literals
from cbframe.arrow.current_rows import (
    TRANSACTION_PREFIX,
    by_vbucket,
    of_dropped,
    of_transactions,
    rolled_back,
)
from cbframe.cluster.tls import TLSLike
from cbframe.contrib.stored_rows import Documents, Format, Shape, Waiting, places_of
from cbframe.dcp.stats import EventLogLike
from cbframe.errors import CbframeError, ConfigurationError, SnapshotError
from cbframe.json.layout import OnConflict
from cbframe.options import BucketDataSourceOptions
from cbframe.public import P, T, public
from cbframe.scan.changes import CHANGE_TYPE, UPSERT
from cbframe.scan.progress import Progress
from cbframe.scan.result import Clock, Conflict
from cbframe.scan.spec import ColumnsLike, Consistency, Exclusion, FiltersLike, SchemaLike, one_of
from cbframe.snapshot.bucket_changes import ChangeReader, Changes
from cbframe.snapshot.manifest import BLANK, Counts, Manifest, Rollback, RollbackPoints, following
from cbframe.snapshot.writer import (
    UpdateResult,
    agreed,
    is_news,
    named,
    refuse_conflicts,
    spec_of,
    stored_form,
    warn_of_nothing,
    write_snapshot,
)

APP = "cbframe"
"""Under which commits have the positions."""
CHANGE = "_cb_change"
"""What to do with a row of a merge; no column of the table, and no field can have the name."""
LOOK_BACK = 50
"""Commits among which versions are looked for that can be gone back to."""
TABLE_PER = "table_per"
"""An option of mirrors that have a table for each collection."""
HEAD = (KEY, COLLECTION_ID, VBUCKET, SEQNO)
"""What tells which rows count."""
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
    bucket, upserted, deleted, retracted, rolled_back, read_again, seconds, as_of, conflicts, rejected, \
transaction_records, clock_behind
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


@dataclass(frozen=True, slots=True)
class Base:
    """What a table is that is continued, and was before, newest first: what each was made from, if known."""

    states: Sequence[State]

    @classmethod
    def of(cls, ours: Sequence[State]) -> Base:
        """From what is known of all updates, newest first."""
        return cls([*_line(ours)])

    @property
    def newest(self) -> State:
        """The one that is continued."""
        return self.states[0]

    def upto(self, version: int) -> Base | None:
        """The table at that version of the mirror; None if there was none, or nobody knows."""
        states = [each for each in self.states if each.manifest.version <= version]
        return Base(states) if states else None


def _line(ours: Sequence[State]) -> Iterator[State]:
    parent = ours[0].manifest.version
    for each in ours:
        if each.manifest.version == parent:
            yield each
            if each.manifest.kind == "create":
                return
            parent = each.manifest.parent


class GoneError(Exception):
    """An older version of the mirror cannot be read any more."""

    def __init__(self, version: int) -> None:
        super().__init__(f"version {version}")
        self.version = version


class Table(ABC):
    """A table, as it was when it was opened, and the next commit of it."""

    format: ClassVar[Format]
    made_by: ClassVar[str]  # the functions that make such a table, and update it
    updated_by: ClassVar[str]
    removed: ClassVar[str]  # what happens to old versions at last

    where: str
    exists: bool
    number: int  # what the format calls the state in which it was opened
    updates: int  # how many there were, in all tables that were here
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
    def base(self) -> Base:
        """What the log tells of the last update; an error if there was none."""

    def is_text(self, number: int) -> bool:
        """Whether keys are text in a state that does not say so."""
        raise NotImplementedError

    @abstractmethod
    def _read(self, number: int, schema: pa.Schema, some: pc.Expression | None) -> Iterator[pa.Table]: ...

    @abstractmethod
    def overwrite(
        self,
        schema: pa.Schema,
        tables: Iterable[pa.Table],
        kept: Iterable[pa.Table],  # what is read of the table for that
        manifest: Manifest,
        *,
        before: pa.Schema,  # of what is kept
    ) -> None:
        """Have these rows be the whole table."""

    @abstractmethod
    def merge(self, source: Source, manifest: Manifest, *, grown: bool) -> None:
        """Change, add and delete rows; if it has `grown`, there are columns that the table has not yet."""

    @abstractmethod
    def note(self, manifest: Manifest) -> None:
        """Write down how far the bucket was read: no row changed."""

    @abstractmethod
    def result(self, **fields: Any) -> MirrorResult:
        """What there is to say."""

    def refusal(self, why: str) -> SnapshotError:
        """The table is no mirror that can be continued."""
        return SnapshotError(
            why,
            path=self.where,
            hint=f'{self.made_by}(..., mode="overwrite") makes it again; old versions stay until they are '
            f"{self.removed}",
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
        self.shape = shape
        self._news = news
        upserts, deletions = [*news.heads(upserts=True)], [*news.heads(upserts=False)]
        reported = Documents([*upserts, *deletions])
        self._restored = [
            rows.filter(pa.array(~reported.have(shape.head_of(rows)))) for rows in corrections.restored
        ]
        upserts += map(shape.head_of, self._restored)
        covered = Documents([*upserts, *deletions])
        self._deleted = deletions
        for head in corrections.gone:
            some = head.filter(pa.array(~covered.have(head))).select([KEY, COLLECTION_ID])
            self._deleted.append(some)
            # One that was rolled back and dropped is there twice.
            covered = Documents([*upserts, *self._deleted])
        self.touched = covered
        self.some = any(map(len, (*upserts, *self._deleted)))

    def changes(self) -> tuple[pa.Schema, Iterator[pa.Table]]:
        """Rows with what to do with them, for a MERGE."""
        return self.shape.schema.append(pa.field(CHANGE, pa.string())), self._changes()

    def rows(self) -> Iterator[pa.Table]:
        """Those that the table gets."""
        yield from self._news.upserts(self.shape)
        yield from self._restored

    def _changes(self) -> Iterator[pa.Table]:
        for rows in self.rows():
            yield rows.append_column(CHANGE, _repeated("upsert", len(rows)))
        schema = self.shape.schema
        for head in self._deleted:
            known = {
                KEY: formed(head[KEY], self.shape.keys),
                COLLECTION_ID: head[COLLECTION_ID].cast(schema.field(COLLECTION_ID).type),
            }
            columns = [known.get(each.name, pa.nulls(len(head), each.type)) for each in schema]
            rows = pa.Table.from_arrays(columns, schema=schema)
            yield rows.append_column(CHANGE, _repeated("delete", len(rows)))

    def untouched(self, current: Iterator[tuple[pa.Table, pa.Table]], narrow: Columns) -> Iterator[pa.Table]:
        """Rows that stay what they are, as they will be stored, of metadata and fields (`narrow`) of all."""
        for head, documents in current:
            some = pa.array(~self.touched.have(head))
            wide = widen(documents.filter(some), narrow, self.shape.columns)
            yield self.shape.stored(head.filter(some), wide)


def _repeated(text: str, count: int) -> pa.Array:
    return pa.array([text]).take(pa.array(np.zeros(count, np.int8)))


class Mirror:
    """A write under way."""

    def __init__(
        self,
        table: Table,
        base: Base | None,  # what is continued; None to begin
        stored: Mapping[str, Any],  # what of the bucket the table holds, as its metadata has it
        arguments: Mapping[str, Any],  # the `locals()` of a public function
    ) -> None:
        self._table = table
        self._base = base
        self._is_part = False
        self._mode = arguments.get("mode")
        self._version = table.updates + 1
        of_bucket = {name: value for name, value in stored.items() if name != TABLE_PER}
        self._target = spec_of(arguments, of_bucket)
        self._stored = stored
        self._now = arguments["clock"]()
        self._before = None if base is None else base.newest.manifest.created
        self._xattrs = bool(stored.get("xattrs"))
        self._keys: KeyForm = stored["keys"]

    def run(self) -> MirrorResult:
        """Read, and commit."""
        gone: set[int] = set()
        while True:
            try:
                return self._attempt(gone)
            except GoneError as exc:
                if exc.version in gone:
                    # A table that is ahead of the positions is made of what it was.
                    raise self._table.refusal(
                        f"{exc} of a table is needed, and cannot be read any more"
                    ) from exc
                # Its vbuckets are rolled back to an even earlier version, or read from the start.
                gone.add(exc.version)

    def _attempt(self, gone: set[int]) -> MirrorResult:
        base, points, documents = BLANK, None, False
        if self._base is not None:
            base = self._base.newest.manifest
            known = [each.manifest for each in self._base.states]
            points = RollbackPoints(base, [each for each in known if each.version not in gone])
            documents = not self._target.parsed or bool(base.columns[0].kinds or TABLE_PER in self._stored)
        reader = ChangeReader(
            self._target,
            base,
            points,
            documents=documents,
            net=True,
            per_collection=TABLE_PER in self._stored,
            other_bucket=self._other_bucket,
        )
        with closing(reader):
            changes = reader.read()
            if TABLE_PER in self._stored:
                changes, manifest, written = self._write_each(changes, reader, points)
            else:
                with closing(Waiting(self._target.spool_dir)) as waiting:
                    manifest, written = self._write(changes, self._news(changes, waiting), points)
            return self._table.result(
                changed=written is not None,
                rewritten=written == "rewritten",
                seconds=reader.seconds,
                **MirrorResult.fields_of(changes, manifest, self._before, self._now),
            )

    def _news(self, changes: Changes, waiting: Waiting) -> News:
        rows = upserted = 0
        for table in changes.tables:
            waiting.put(table)
            rows += len(table)
            upserted += pc.sum(pc.equal(table[CHANGE_TYPE], UPSERT)).as_py() or 0
        return News(
            waiting,
            changes.documents.columns(),
            upserted,
            rows - upserted,
            self._dead(changes),
            changes.ended,
        )

    def _dead(self, changes: Changes) -> frozenset[int]:
        return changes.dead | set(() if self._base is None else self._base.newest.manifest.dead)

    def _other_bucket(self, why: str) -> SnapshotError:
        assert self._base is not None
        return self._table.refusal(
            f"bucket {self._base.newest.manifest.bucket!r} is not the one that the table mirrors: {why}"
        )

    # -- writing

    def _write_each(
        self, changes: Changes, reader: ChangeReader, points: RollbackPoints | None
    ) -> tuple[Changes, Manifest, How]:
        """Commit to a table for each collection, and then the positions: what counts is what these say."""
        known = set(() if self._base is None else self._base.newest.manifest.collections.values())
        names = known | {*changes.collections.values()}
        if len({name.replace(".", "__") for name in names}) < len(names):
            raise ConfigurationError(
                "two collections would have one table", hint="name some with collections="
            )
        others = ((name, changes) for name in sorted(known - {*changes.collections.values()}))
        made: list[Manifest] = []
        written: set[How] = set()
        conflicts: list[Conflict] = []
        rejected: Counter[str] = Counter()
        for name, part in chain(reader.by_collection(changes), others):
            if name in changes.collections.values():
                conflicts += part.conflicts
                rejected.update(part.rejected)
            else:
                part = replace(part, tables=iter(()))  # noqa: PLW2901 - nothing came of it
            with (
                closing(Waiting(self._target.spool_dir)) as waiting,
                closing(self._table.beside(name.replace(".", "__"))) as table,
            ):
                news = self._news(part, waiting)
                if name in known or news.upserted:
                    write: Mirror = self._part(table, known=name in known)
                    manifest, how = write._write(part, news, points)
                    made.append(manifest)
                    written.add(how)
        warn_of_nothing(self._target, [manifest.columns[0] for manifest in made])
        counts = [
            sum(getattr(each.counts, name) for each in made) for name in ("upserted", "deleted", "retracted")
        ]
        manifest = self._manifest(changes, Counts(*counts), Columns({}))
        how = "rewritten" if "rewritten" in written else "changed"
        if self._base is None:
            schema = self._shape(Columns({}), self._keys).schema
            self._table.overwrite(schema, (), (), manifest, before=pa.schema([]))
        elif is_news(self._base.newest.manifest, manifest):
            self._table.note(manifest)
        else:
            how = None
        return replace(changes, conflicts=tuple(conflicts), rejected=dict(rejected)), manifest, how

    def _part(self, table: Table, *, known: bool) -> Mirror:
        """The write of the table of one collection."""
        part: Mirror = copy(self)
        part._table, part._base, part._is_part = table, None, True
        if known and self._base is not None:
            # A process that ended before the positions were committed has left it ahead of them.
            found = table.base().upto(self._base.newest.manifest.version) if table.exists else None
            if found is None:
                raise self._table.refusal(
                    f"the table {table.where} of the mirror is gone, or its versions are"
                )
            part._base = found
        elif table.exists and (self._mode == "error" or (self._mode is None and not table.updates)):
            raise _taken(table)
        return part

    def _write(self, changes: Changes, news: News, points: RollbackPoints | None) -> tuple[Manifest, How]:
        """Commit; what was committed, and how."""
        base = self._base
        if base is None or points is None:
            shape = self._shape(news.columns, self._keys)
            manifest = self._manifest(changes, Counts(news.upserted, news.deleted), shape.columns)
            self._table.overwrite(shape.schema, news.upserts(shape), (), manifest, before=pa.schema([]))
            return manifest, "rewritten"
        old = self._shape_of(base.newest)
        most = self._stored.get("max_struct_fields", 1000)
        wide = unify([old.columns, news.columns], max_members=most)
        refuse_conflicts(old.columns, wide, self._stored)
        if news.upserted and not self._is_part:
            warn_of_nothing(self._target, [wide])
        shape = self._shape(wide, self._keys)
        corrections = self._corrections(base, old, shape, changes.rollback_seqnos, points, news)
        manifest = self._manifest(changes, Counts(news.upserted, news.deleted, corrections.rolled_back), wide)
        source = Source(shape, news, corrections)
        is_ahead = base.newest.number != self._table.number
        if is_ahead or not shape.holds(old) or self._has_bare_literals(base, old):
            kept = source.untouched(self._rows(base.newest, old), old.columns)
            before = pa.schema([]) if is_ahead else old.schema
            self._table.overwrite(shape.schema, source.rows(), kept, manifest, before=before)
            return manifest, "rewritten"
        if source.some:
            self._table.merge(source, manifest, grown=len(shape.names) > len(old.names))
        elif not self._is_part and is_news(base.newest.manifest, manifest):
            self._table.note(manifest)
        else:
            return manifest, None
        return manifest, "changed"

    def _shape(self, columns: Columns, keys: KeyForm, *, escaped: bool = True) -> Shape:
        return Shape(self._table.format, columns, xattrs=self._xattrs, keys=keys, escaped=escaped)

    def _shape_of(self, state: State) -> Shape:
        """How a version of the table holds its columns."""
        columns, options = state.manifest.columns[0], state.manifest.options
        if "keys" in options:
            return self._shape(columns, options["keys"])
        return self._shape(columns, "text" if self._table.is_text(state.number) else "binary", escaped=False)

    def _has_bare_literals(self, base: Base, old: Shape) -> bool:
        """Whether a table of an earlier version of cbframe has keys that are written in another way now."""
        if old.keys != "text" or "keys" in base.newest.manifest.options:
            return False
        found = self._table.read(base.newest, pa.schema([old.schema.field(KEY)]))
        return any(has_literals(table[KEY]) for table in found)

    def _rows(
        self, state: State, shape: Shape, vbuckets: list[int] | None = None
    ) -> Iterator[tuple[pa.Table, pa.Table]]:
        """Metadata and fields of the rows of a version of the table."""
        some = None if vbuckets is None else pc.field(VBUCKET).isin(vbuckets)
        for rows in self._table.read(state, shape.schema, some):
            yield shape.head_of(rows), shape.documents_of(rows)

    def _heads(self, base: Base, shape: Shape, some: pc.Expression) -> pa.Table:
        """Which rows of the table there are."""
        schema = pa.schema([shape.schema.field(name) for name in HEAD])
        found = self._table.read(base.newest, schema, some)
        return shape.head_of(pa.concat_tables([schema.empty_table(), *found]))

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
        concerned = {cid for _, cid in news.ended} | (news.dead - set(base.newest.manifest.dead))
        if concerned:
            heads = self._heads(base, old, pc.field(COLLECTION_ID).isin(sorted(concerned)))
            corrections.gone.append(heads.filter(pa.array(news.of_dropped(heads))))
        if not base.newest.manifest.knows_transactions:
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
        """Rows of the table at an earlier version of the mirror that it has not now."""
        restored: list[pa.Table] = []
        found = base.upto(manifest.version)
        if found is None and base.states[-1].manifest.kind != "create":
            raise GoneError(manifest.version)
        if found is None:
            return restored  # it had no documents then
        earlier = self._shape_of(found.newest)
        for head, documents in self._rows(State(manifest, found.newest.number), earlier, vbuckets):
            gone = np.isin(places_of(head), standing) | news.of_dropped(head)
            if self._stored["transaction_records"] == "drop":
                gone |= of_transactions(head[KEY])
            some = pa.array(~gone)
            wide = widen(documents.filter(some), earlier.columns, shape.columns)
            restored.append(shape.stored(head.filter(some), wide))
        return restored

    # -- reports

    def _manifest(self, changes: Changes, counts: Counts, columns: Columns) -> Manifest:
        base = None if self._base is None else self._base.newest.manifest
        rollbacks: list[Rollback] = []
        dead = self._dead(changes)
        collections = changes.collections if base is None else {**base.collections, **changes.collections}
        if self._base is not None and base is not None:
            oldest = self._base.states[-1].manifest.version
            rollbacks += [each for each in base.rollbacks if each.version > oldest]
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
            dead=tuple(sorted(dead)),
            collections={number: name for number, name in collections.items() if number not in dead},
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


def mirroring(function: Callable[P, T]) -> Callable[P, T]:
    """Call a function with all arguments of :class:`MirrorArguments`, and show them in its signature."""
    parameters = signature(write_snapshot).parameters
    own = [each for each in signature(function).parameters.values() if each.kind is not Parameter.VAR_KEYWORD]
    shown = Signature([*own, *(parameters[name] for name in MirrorArguments.__annotations__)])

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        bound = shown.bind(*args, **kwargs)
        bound.apply_defaults()
        return function(*bound.args, **bound.kwargs)

    call.__signature__ = shown  # type: ignore[attr-defined]
    return public(call)


def mirrored(open_table: Callable[[Mapping[str, Any]], Table], arguments: Mapping[str, Any]) -> Any:
    """One commit, as the ``locals()`` of a public function say: without ``mode``, an update."""
    if arguments.get("mode", "error") not in ("error", "overwrite"):
        raise ConfigurationError(f"mode={arguments['mode']!r}", hint="choose from: error, overwrite")
    if arguments.get(TABLE_PER) is not None:
        one_of("collection")(TABLE_PER, arguments[TABLE_PER])
    given = stored_form(arguments)
    # What is invalid is reported before anything is touched.
    spec_of(arguments, given)
    with closing(open_table(arguments)) as table:
        return _written(table, given, arguments)


def _taken(table: Table) -> SnapshotError:
    kind = table.format.name
    return SnapshotError(
        f"there is {'an' if kind[0] in 'AEIOU' else 'a'} {kind} table already",
        path=table.where,
        hint=f'{table.updated_by}() brings it up to date; mode="overwrite" makes it again',
    )


def _written(table: Table, given: dict[str, Any], arguments: Mapping[str, Any]) -> MirrorResult:
    mode = arguments.get("mode")
    kind = f"{table.format.name} table"
    if table.exists and mode == "error":
        raise _taken(table)
    if mode is not None:
        # Always written down: tables of earlier versions of cbframe, without it, hold keys in another way.
        stored = {"transaction_records": "drop", "keys": "text", **named(given, arguments)}
        if arguments[TABLE_PER] is not None:
            stored[TABLE_PER] = arguments[TABLE_PER]
        return Mirror(table, None, stored, arguments).run()
    if not table.exists:
        raise SnapshotError(f"there is no {kind}", path=table.where, hint=f"{table.made_by}() makes one")
    base = table.base()
    stored = {"keys": "text", **base.newest.manifest.options}
    given = named(given, arguments, stored)
    agreed(given, stored, made="the table", remedy=f'{table.made_by}(..., mode="overwrite")')
    stored.setdefault("transaction_records", "drop")  # mirrors of earlier releases have them: they go now
    return Mirror(table, base, stored, arguments).run()
