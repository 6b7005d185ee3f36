"""The changes of one update: put down on disk as they come, then typed, deletions among them."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cbframe.arrow.batcher import of_dropped
from cbframe.arrow.columns import COLLECTION_ID, KEY, OPCODE, VALUE, VBUCKET
from cbframe.arrow.documents.census import shown
from cbframe.arrow.documents.chunks import Batch
from cbframe.arrow.documents.density import Width
from cbframe.arrow.documents.passes import PassingTyper
from cbframe.arrow.documents.plan import Place, Plan, is_list
from cbframe.arrow.documents.rewrite import FAMILIES
from cbframe.arrow.documents.unify import Columns, ColumnsBuilder
from cbframe.arrow.keys import formed_key
from cbframe.arrow.spool import ARRIVED, Spool, Survivors
from cbframe.cluster.manifest import Manifest
from cbframe.frame.assemble import beside
from cbframe.frame.conflicts import Conflict
from cbframe.frame.names import Names, alive
from cbframe.frame.outcome import Outcome
from cbframe.frame.streamed import SpoolingSink, documents_of
from cbframe.scan.spec import ScanSpec
from cbframe.snapshot.resume import ResumingReceiver
from cbframe.wire.constants import Opcode

CHANGE_TYPE = "_change_type"
UPSERT, DELETE, EXPIRE = "upsert", "delete", "expire"
_KINDS = pa.array([UPSERT, DELETE, EXPIRE])
_OPCODES = np.array([Opcode.DCP_MUTATION, Opcode.DCP_DELETION, Opcode.DCP_EXPIRATION])
_DEFAULT = "_default"


def made_way(field: str) -> str:
    """The column of a field: a document's own ``_change_type`` makes way, as does what looks as if it had."""
    return f"{field}_" if field.rstrip("_") == CHANGE_TYPE else field


def _any_value(kind: pa.DataType, place: Place) -> Iterator[Place]:
    """Where a declared type may have text, which any value fits."""
    if pa.types.is_struct(kind):
        for member in kind:
            yield from _any_value(member.type, (*place, member.name))
    elif is_list(kind) or pa.types.is_map(kind):
        yield from _any_value(kind.value_type if is_list(kind) else kind.item_type, (*place, None))
    else:
        yield place


class Described:
    """What the columns of documents are, found out table by table.

    Parameters
    ----------
    plan
        By which they were made.
    conflicts
        Values that have no common type.
    declared
        Types of fields, where they are declared: text of them holds any value.
    widths
        How many names there are where there are many.
    """

    def __init__(
        self,
        plan: Plan,
        conflicts: Iterable[Conflict] = (),
        declared: Mapping[str, pa.DataType] | None = None,
        widths: Mapping[Place, Width] | None = None,
    ) -> None:
        self._plan = plan
        self._widths = widths
        self._reported: dict[str, dict[str, list[str]]] = {}
        for each in conflicts:
            families: list[str] = [FAMILIES[kind] for kind in each.types if kind in FAMILIES]
            self._reported.setdefault(made_way(each.path), {})[each.action] = families
        for name, kind in (declared or {}).items():
            for place in _any_value(kind, (made_way(name),)):
                self._reported.setdefault(shown(place), {})["text"] = ["string", "number"]
        self._builder: ColumnsBuilder | None = None

    def look(self, table: pa.Table) -> None:
        """Take in one more table; all have one schema."""
        if self._builder is None:
            self._builder = ColumnsBuilder(table.schema, self._plan, self._widths)
        self._builder.look(table)

    def columns(self) -> Columns:
        """What they are."""
        if self._builder is None:
            return Columns(pa.schema([]))
        return self._builder.columns().reported(self._reported)


@dataclass(frozen=True, slots=True)
class Changes:
    """What an update brought.

    Attributes
    ----------
    rows
        How many there are.
    tables
        Metadata, and the documents' columns behind it; to be consumed once.
    documents
        What the documents' columns are, once `tables` is consumed.
    collections
        Ids and names of those that rows are of.
    dead
        Those, of rows or known before, that do not exist any more.
    conflicts, rejected
        As of a read.
    transaction_records
        How many changes of such records were left out.
    """

    rows: int
    tables: Iterator[pa.Table]
    documents: Described
    collections: dict[int, str]
    dead: frozenset[int]
    conflicts: tuple[Conflict, ...]
    rejected: dict[str, int]
    transaction_records: int = 0


class ChangeSink(SpoolingSink):
    """Takes the changes of one run to disk.

    Parameters
    ----------
    net
        Of each document only the newest change counts, and none of before its collection was emptied.

    Attributes
    ----------
    nbytes
        What came, in bytes of memory.
    """

    of_changes = True
    nbytes = 0
    _receiver: ResumingReceiver

    def __init__(
        self,
        target: ScanSpec,
        names: Names,
        receiver: ResumingReceiver,
        batch_bytes: int,
        spool_dir: str | os.PathLike[str] | None = None,
        *,
        net: bool = False,
    ) -> None:
        super().__init__(target, names, receiver, batch_bytes, spool_dir)
        self._net = net

    def _put_down_batch(self, batch: pa.RecordBatch, numbers: npt.NDArray[np.int64]) -> None:
        self.nbytes += batch.nbytes
        super()._put_down_batch(batch, numbers)

    def changes(
        self,
        known: Collection[int] = (),
        manifest_uid: int = 0,
        *,
        whole: bool = False,
        first: bool = False,
    ) -> Changes:
        """Nothing more comes.

        Parameters
        ----------
        known
            Collections that the snapshot has.
        manifest_uid
            Of the newest version of the collections manifest that is known: a node may have an older one,
            in which collections are missing.
        whole
            Whether it was read from the start: a field that no document has is an error then, and so are
            filters that none can pass.
        first
            Whether no document has come before: where this shows of filters, it is a warning.

        Raises
        ------
        CbframeError
            As :meth:`~cbframe.frame.streamed.SpoolingSink.finish`.
        """
        if self._pending:
            self._put_down()
        self._spool.complete()
        self._names.refuse_dropped(self._receiver)
        if whole:
            self._intake.refuse_filters()
        elif first:
            self._intake.warn_of_filters()
        ids = np.array(sorted(self._collections), np.uint32)
        every = np.union1d(ids, np.array(sorted(known), np.uint32))
        manifest = self._names.manifest_of(every, self._receiver)
        rows = _ChangeRows(self._spool, self._receiver, manifest, net=self._net)
        dead = set(self._receiver.dropped)
        if manifest is not None and manifest.uid >= manifest_uid:
            dead |= set(every.tolist()) - manifest.collections.keys()
        head = _Head(self._names, manifest)
        if self._typer is None:
            found = self._unparsed_changes(rows, head, frozenset(dead))
        else:
            found = self._typed_changes(self._typer, rows, head, frozenset(dead), whole=whole)
        return replace(found, transaction_records=self._intake.transaction_records)

    def _unparsed_changes(self, rows: _ChangeRows, head: _Head, dead: frozenset[int]) -> Changes:
        kind = pa.schema([] if self._target.keys_only else [pa.field(VALUE, pa.binary())])
        columns = Described(Plan(pa.struct([])))

        def tables() -> Iterator[pa.Table]:
            for number in range(len(rows)):
                upserts, others = rows.parts(number)
                values = pa.table([rows.values(number)] if kind.names else [], schema=kind)
                yield from self._both(head, upserts, values, others, columns)

        return Changes(rows.count, tables(), columns, rows.collections(), dead, (), {})

    def _typed_changes(
        self, typer: PassingTyper, rows: _ChangeRows, head: _Head, dead: frozenset[int], *, whole: bool
    ) -> Changes:
        if rows.some_went:
            # What was learned of versions that do not count must not show in any column, type or count.
            typer = PassingTyper(self._target.policy())
            for number in range(len(rows)):
                typer.learn(rows.load(number))
        layout = typer.settle(rows)
        census = typer.census
        rejected = census.reasons()
        # An update may bring none of the documents that have a field.
        outcome = Outcome(self._target, rows.upserts, rejected, lenient=not whole, final=False)
        empty = layout.table([])
        outcome.form(self._receiver.schema.empty_table(), empty)

        def typed() -> Iterator[tuple[int, pa.Table]]:
            return enumerate(typer.tables(rows, layout))

        if outcome.looks:
            for number, table in typed():
                outcome.look(
                    rows.parts(number)[0],
                    table,
                    lambda row, number=number: (number, row),  # type: ignore[misc]
                )
        conflicts = outcome.conflicts(
            census.disagreements(layout.plan, layout.names()),
            lambda place: formed_key(rows.key(place), self._target.keys),
        )
        widths = _placed(census.widths, self._target)
        columns = Described(_named(layout.plan, self._target), conflicts, self._target.schema, widths)

        def tables() -> Iterator[pa.Table]:
            for number, table in typed():
                upserts, others = rows.parts(number)
                upserts, documents = outcome.form(upserts, table)
                documents = documents.rename_columns([*map(made_way, documents.column_names)])
                yield from self._both(head, upserts, documents, others, columns)

        return Changes(rows.count, tables(), columns, rows.collections(), dead, conflicts, rejected)

    @staticmethod
    def _both(
        head: _Head, upserts: pa.Table, documents: pa.Table, others: pa.Table, columns: Described
    ) -> Iterator[pa.Table]:
        """Documents, and behind them deletions, whose fields are null."""
        columns.look(documents)
        table = beside(head.of(upserts), documents)
        if len(others):
            nothing = pa.table(
                [pa.nulls(len(others), field.type) for field in documents.schema], schema=documents.schema
            )
            deleted = beside(head.of(others), nothing) if documents.schema.names else head.of(others)
            table = pa.concat_tables([table, deleted])
        if len(table):
            yield table


class _Head:
    """The metadata of changes."""

    def __init__(self, names: Names, manifest: Manifest | None) -> None:
        self._names = names
        self._manifest = manifest

    def of(self, raw: pa.Table) -> pa.Table:
        # What is kept are the bytes: who reads it gives them the form that is asked for.
        head = self._names.head(raw, self._manifest, keys="binary")
        if self._manifest is None:
            default = pa.array([_DEFAULT], pa.string()).take(pa.array(np.zeros(len(raw), np.int8)))
            head = head.append_column("_cb_scope", default).append_column("_cb_collection", default)
        head = head.append_column(COLLECTION_ID, raw[COLLECTION_ID])
        kinds = (raw[OPCODE].to_numpy()[:, None] == _OPCODES).argmax(axis=1)
        return head.append_column(CHANGE_TYPE, _KINDS.take(pa.array(kinds)))


class _ChangeRows:
    """The rows of a spool that count: documents, and deletions.

    Attributes
    ----------
    count, upserts
        How many there are, and how many of them are documents.
    some_went
        Whether there are documents that do not count.
    """

    def __init__(
        self, spool: Spool, receiver: ResumingReceiver, manifest: Manifest | None, *, net: bool
    ) -> None:
        self._spool = spool
        self._stale = Survivors(spool, receiver).stale if net else {}
        self._dropped = set(receiver.dropped) if net else set()
        self._ended = receiver.ended() if net else {}
        self._void_before = receiver.void_before()
        self._manifest = manifest
        self._seen: set[int] = set()
        self.count = self.upserts = documents = 0
        for number in range(len(self)):
            heads = spool.heads(number)
            keep, upsert = self._masks(number, heads)
            documents += int(_is_document(heads).sum())
            self.count += int(keep.sum())
            self.upserts += int(upsert.sum())
            self._seen.update(np.unique(heads.column(COLLECTION_ID).to_numpy()[keep]).tolist())
        self.some_went = documents != self.upserts

    def __len__(self) -> int:
        return len(self._spool)

    def collections(self) -> dict[int, str]:
        """Names of the rows' collections."""
        if self._manifest is None:
            return dict.fromkeys(self._seen, f"{_DEFAULT}.{_DEFAULT}")
        names = ((cid, self._manifest.collections[cid]) for cid in sorted(self._seen))
        return {cid: f"{name.scope}.{name.name}" for cid, name in names}

    def _masks(
        self, number: int, heads: pa.RecordBatch
    ) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
        """Which rows count, and which of them are documents."""
        vbucket = heads.column(VBUCKET).to_numpy()
        keep: npt.NDArray[np.bool_] = heads.column(ARRIVED).to_numpy() >= self._void_before[vbucket]
        table = pa.Table.from_batches([heads])
        if self._manifest is not None:
            keep &= alive(table, self._manifest)
        if number in self._stale:
            keep[self._stale[number]] = False
        gone = of_dropped(table, self._dropped, self._ended)
        if gone is not None:
            keep &= ~gone
        return keep, keep & _is_document(heads)

    def parts(self, number: int) -> tuple[pa.Table, pa.Table]:
        """Keys and metadata of documents, and of deletions."""
        heads = self._spool.heads(number)
        keep, upsert = self._masks(number, heads)
        return (
            pa.Table.from_batches([heads.filter(pa.array(upsert))]),
            pa.Table.from_batches([heads.filter(pa.array(keep & ~upsert))]),
        )

    def values(self, number: int) -> pa.Array:
        """Values of documents, as they are."""
        upsert = self._masks(number, self._spool.heads(number))[1]
        return self._spool.values(number).filter(pa.array(upsert))

    def load(self, number: int) -> Batch:
        """Documents of a batch, to be typed."""
        heads = self._spool.heads(number)
        return documents_of(heads, self._spool.values(number), self._masks(number, heads)[1])

    def key(self, place: tuple[int, int]) -> bytes:
        """The key of a document."""
        number, row = place
        key: bytes = self.parts(number)[0][KEY][row].as_py()
        return key


def _is_document(heads: pa.RecordBatch) -> npt.NDArray[np.bool_]:
    mutation: npt.NDArray[np.bool_] = heads.column(OPCODE).to_numpy() == Opcode.DCP_MUTATION
    return mutation


def _placed(widths: Mapping[Place, Width], target: ScanSpec) -> dict[Place, Width]:
    """Widths by the places of the columns in the result."""
    found: dict[Place, Width] = {}
    for path in target.columns or [(str(place[0]),) for place in widths]:
        for place, width in widths.items():
            if place[: len(path)] == path:
                found[made_way(".".join(path)), *place[len(path) :]] = width
    return found


def _named(plan: Plan, target: ScanSpec) -> Plan:
    """The plan of the columns as they are named in the result."""
    if target.columns is None:
        return replace(plan, members={made_way(name): each for name, each in plan.members.items()})
    chosen = {}
    for name, *inside in target.columns:
        member = plan.members.get(name)
        for each in inside:
            member = None if member is None else member.members.get(each)
        if member is not None:
            chosen[made_way(".".join([name, *inside]))] = member
    return replace(plan, members=chosen)
