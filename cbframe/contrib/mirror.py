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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import wraps
from inspect import Parameter, Signature, signature
from typing import Any, ClassVar, Literal, TypedDict

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
from cbframe.errors import CbframeError, ConfigurationError, SnapshotError
from cbframe.json.layout import OnConflict
from cbframe.options import BucketDataSourceOptions
from cbframe.public import P, T, public
from cbframe.scan.changes import CHANGE_TYPE, UPSERT
from cbframe.scan.progress import Progress
from cbframe.scan.result import Clock
from cbframe.scan.spec import ColumnsLike, Consistency, Exclusion, FiltersLike, SchemaLike
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
HEAD = (KEY, COLLECTION_ID, VBUCKET, SEQNO)
"""What tells which rows count."""


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
class Base:
    """The state of a table that is continued."""

    manifest: Manifest  # of the last update. Its `files` are empty: the format has its own list
    ancestors: list[Manifest]  # it and the updates before it, newest first
    numbers: Mapping[int, int]  # by the version of an update, what the format calls that state of the table

    @classmethod
    def of(cls, ours: Sequence[tuple[Manifest, int]]) -> Base:
        """From what is known of all updates, newest first."""
        newest = ours[0][0]
        line = [*_line(ours)]
        return cls(
            newest, [manifest for manifest, _ in line], {each.version: number for each, number in line}
        )


def _line(ours: Sequence[tuple[Manifest, int]]) -> Iterator[tuple[Manifest, int]]:
    """A version, and what it was made from, as far as they are there."""
    parent = ours[0][0].version
    for manifest, number in ours:
        if manifest.version == parent:
            yield manifest, number
            if manifest.kind == "create":
                return
            parent = manifest.parent


class GoneError(Exception):
    """An older state of the table cannot be read any more: its number."""


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

    def read(self, number: int, schema: pa.Schema, some: pc.Expression | None = None) -> Iterator[pa.Table]:
        """Rows of a state of the table; raises :class:`GoneError` if an older one cannot be read any more."""
        try:
            with self.errors("read"):
                yield from self._read(number, schema, some)
        except SnapshotError as exc:
            if number == self.number:
                raise
            raise GoneError(number) from exc

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
        self._version = table.updates + 1
        self._target = spec_of(arguments, stored)
        self._stored = stored
        self._now = arguments["clock"]()
        self._before = None if base is None else base.manifest.created
        self._xattrs = bool(stored.get("xattrs"))
        self._keys: KeyForm = stored["keys"]

    def run(self) -> MirrorResult:
        """Read, and commit."""
        gone: set[int] = set()
        while True:
            try:
                return self._attempt(gone)
            except GoneError as exc:
                # Its vbuckets are rolled back to an even earlier version, or read from the start.
                gone.add(exc.args[0])

    def _attempt(self, gone: set[int]) -> MirrorResult:
        base, points, documents = BLANK, None, False
        if self._base is not None:
            base = self._base.manifest
            numbers = self._base.numbers
            ancestors = [each for each in self._base.ancestors if numbers[each.version] not in gone]
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
            manifest, written = self._write(changes, news, points)
            return self._table.result(
                changed=written is not None,
                rewritten=written == "rewritten",
                seconds=reader.seconds,
                **MirrorResult.fields_of(changes, manifest, self._before, self._now),
            )

    def _other_bucket(self, why: str) -> SnapshotError:
        assert self._base is not None
        return self._table.refusal(
            f"bucket {self._base.manifest.bucket!r} is not the one that the table mirrors: {why}"
        )

    # -- writing

    def _write(
        self, changes: Changes, news: News, points: RollbackPoints | None
    ) -> tuple[Manifest, Literal["rewritten", "changed"] | None]:
        """Commit; what was committed, and how."""
        base = self._base
        if base is None or points is None:
            shape = self._shape(news.columns, self._keys)
            manifest = self._manifest(changes, news, shape.columns, 0)
            self._table.overwrite(shape.schema, news.upserts(shape), (), manifest, before=pa.schema([]))
            return manifest, "rewritten"
        old = self._shape_of(base, base.manifest)
        most = self._stored.get("max_struct_fields", 1000)
        wide = unify([old.columns, news.columns], max_members=most)
        refuse_conflicts(old.columns, wide, self._stored)
        if news.upserted:
            warn_of_nothing(self._target, [wide])
        shape = self._shape(wide, self._keys)
        corrections = self._corrections(base, old, shape, changes.rollback_seqnos, points, news)
        manifest = self._manifest(changes, news, wide, corrections.rolled_back)
        source = Source(shape, news, corrections)
        if not shape.holds(old) or self._has_bare_literals(base, old):
            kept = source.untouched(self._rows(base, base.manifest, old), old.columns)
            self._table.overwrite(shape.schema, source.rows(), kept, manifest, before=old.schema)
            return manifest, "rewritten"
        if source.some:
            self._table.merge(source, manifest, grown=len(shape.names) > len(old.names))
        elif is_news(base.manifest, manifest):
            self._table.note(manifest)
        else:
            return manifest, None
        return manifest, "changed"

    def _shape(self, columns: Columns, keys: KeyForm, *, escaped: bool = True) -> Shape:
        return Shape(self._table.format, columns, xattrs=self._xattrs, keys=keys, escaped=escaped)

    def _shape_of(self, base: Base, manifest: Manifest) -> Shape:
        """How a version of the table holds its columns."""
        if "keys" in manifest.options:
            return self._shape(manifest.columns[0], manifest.options["keys"])
        text = self._table.is_text(base.numbers[manifest.version])
        return self._shape(manifest.columns[0], "text" if text else "binary", escaped=False)

    def _has_bare_literals(self, base: Base, old: Shape) -> bool:
        """Whether a table of an earlier version of cbframe has keys that are written in another way now."""
        if old.keys != "text" or "keys" in base.manifest.options:
            return False
        found = self._table.read(base.numbers[base.manifest.version], pa.schema([old.schema.field(KEY)]))
        return any(has_literals(table[KEY]) for table in found)

    def _rows(
        self, base: Base, manifest: Manifest, shape: Shape, vbuckets: list[int] | None = None
    ) -> Iterator[tuple[pa.Table, pa.Table]]:
        """Metadata and fields of the rows of a version of the table."""
        some = None if vbuckets is None else pc.field(VBUCKET).isin(vbuckets)
        for rows in self._table.read(base.numbers[manifest.version], shape.schema, some):
            yield shape.head_of(rows), shape.documents_of(rows)

    def _heads(self, base: Base, shape: Shape, some: pc.Expression) -> pa.Table:
        """Which rows of the table there are."""
        schema = pa.schema([shape.schema.field(name) for name in HEAD])
        found = self._table.read(base.numbers[base.manifest.version], schema, some)
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
        restored = []
        earlier = self._shape_of(base, manifest)
        for head, documents in self._rows(base, manifest, earlier, vbuckets):
            gone = np.isin(places_of(head), standing) | news.of_dropped(head)
            if self._stored["transaction_records"] == "drop":
                gone |= of_transactions(head[KEY])
            some = pa.array(~gone)
            wide = widen(documents.filter(some), earlier.columns, shape.columns)
            restored.append(shape.stored(head.filter(some), wide))
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
    batch_bytes: int | None
    buffer_bytes: int | None
    spool_dir: str | os.PathLike[str] | None
    spill_bytes: int | None
    timeout: float | None
    progress: Progress
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
    given = stored_form(arguments)
    # What is invalid is reported before anything is touched.
    spec_of(arguments, given)
    with closing(open_table(arguments)) as table:
        return _written(table, given, arguments)


def _written(table: Table, given: dict[str, Any], arguments: Mapping[str, Any]) -> MirrorResult:
    mode = arguments.get("mode")
    kind = f"{table.format.name} table"
    if table.exists and mode == "error":
        raise SnapshotError(
            f"there is {'an' if kind[0] in 'AEIOU' else 'a'} {kind} already",
            path=table.where,
            hint=f'{table.updated_by}() brings it up to date; mode="overwrite" makes it again',
        )
    if mode is not None:
        # Always written down: tables of earlier versions of cbframe, without it, hold keys in another way.
        stored = {"transaction_records": "drop", "keys": "text", **named(given, arguments)}
        return Mirror(table, None, stored, arguments).run()
    if not table.exists:
        raise SnapshotError(f"there is no {kind}", path=table.where, hint=f"{table.made_by}() makes one")
    base = table.base()
    stored = {"keys": "text", **base.manifest.options}
    given = named(given, arguments, stored)
    agreed(given, stored, made="the table", remedy=f'{table.made_by}(..., mode="overwrite")')
    stored.setdefault("transaction_records", "drop")  # mirrors of earlier releases have them: they go now
    return Mirror(table, base, stored, arguments).run()
