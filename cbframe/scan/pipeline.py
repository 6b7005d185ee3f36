"""From the record batches of a run to tables: one way for all reads.

Batches are cut down to what is wanted as they come (``intake``), their documents are converted, and all of it
waits (``spill``) until the read is complete: only then it is known which rows count (``current_rows``) and
which columns hold all values. Types, conflicts and counts are those of the rows that count.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cbframe.arrow.column_types import Columns
from cbframe.arrow.columns import (
    COLLECTION_ID,
    COLLECTION_NAMES,
    DATATYPE,
    DELETION,
    EXPIRY,
    MUTATION,
    OPCODE,
    POOL,
    SEQNO,
    VBUCKET,
    Mask,
    distinct,
    is_json,
)
from cbframe.arrow.current_rows import (
    ARRIVED,
    EXPIRED,
    NOTHING,
    TRANSACTION_RECORD,
    CurrentRows,
    LeftOut,
    has_expired,
)
from cbframe.arrow.filters import METADATA, Matcher, predicates
from cbframe.arrow.receivers import DeferringBatchReceiver, GatheringReceiver
from cbframe.arrow.spill import Progressed, Spill
from cbframe.cluster.collections_manifest import CollectionsManifest
from cbframe.dcp.receiver import Receipt
from cbframe.json.layout import Policy
from cbframe.json.typer import VALUE, Documents, Piece, Settled, Typer, Where, fetched
from cbframe.public import warn
from cbframe.scan.names import Names, alive
from cbframe.scan.result import Conflict
from cbframe.scan.shape import Fitter, Outcome, keys_at, policy_of
from cbframe.scan.spec import ScanSpec

T = TypeVar("T")

_ENOUGH = 1 << 20
"""Bytes of documents that are worth converting."""
_REST, _REJECTED = "\0rest", "\0rejected"
"""Columns of pieces that wait; no field has such a name."""


class Intake:
    """Cuts batches down to what is wanted."""

    def __init__(
        self,
        target: ScanSpec,
        names: Names,  # know the collections of documents
        receiver: GatheringReceiver[Any],
        moment: Callable[[], int] | None = None,
        *,
        of_changes: bool = False,
    ) -> None:
        self.by_key = target.key_filter()
        self._names = names
        self._receiver = receiver
        self.matcher = Matcher(target.filters) if target.filters else None
        named = {each.path[0] for each in predicates(target.filters) if each.of_metadata}
        self._metadata = [name for name in METADATA if name in named and name not in COLLECTION_NAMES]
        self._by_name = not named.isdisjoint(COLLECTION_NAMES)
        self._collections: set[int] = set()
        self._moment = moment
        self._of_changes = of_changes

    def reduce(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """A batch without what is not wanted; it may be empty."""
        if self._of_changes:
            batch = self.by_key.reduce(batch)
        else:
            batch, theirs = self.by_key.split(batch)
            if theirs is not None:
                batch = _marked(batch, theirs, TRANSACTION_RECORD)
        if self._moment is not None:
            expiry = batch.column(EXPIRY).to_numpy()
            if len(expiry) and expiry.max():  # faster than any()
                batch = _marked(batch, has_expired(expiry, self._moment()), EXPIRED)
        return batch if self.matcher is None else self._matched(batch, self.matcher)

    def refuse_filters(self) -> None:
        """Everything was read: raise where it shows that the filters are a mistake."""
        if self.matcher is not None and self.saw_documents():
            self.matcher.refuse()

    def warn_of_filters(self) -> None:
        """The same as a warning, since earlier changes may have been others."""
        if self.matcher is not None and self.saw_documents():
            for error in self.matcher.errors():
                warn(f"in what has changed, and no document has passed the filters so far: {error}")

    def saw_documents(self) -> bool:
        """Whether there was a document, filtered or not."""
        return self._names.any_visible(self._collections, self._receiver)

    def _matched(self, batch: pa.RecordBatch, matcher: Matcher) -> pa.RecordBatch:
        """Only documents that pass the filters."""
        opcode, ids = batch.column(OPCODE).to_numpy(), batch.column(COLLECTION_ID).to_numpy()
        mutation = opcode == MUTATION
        self._collections.update(distinct(ids[mutation]))
        metadata = {name: batch.column(name) for name in self._metadata}
        if self._by_name:
            metadata |= self._names.of_collections(ids, self._receiver)
        values, called_json = batch.column(VALUE), is_json(batch.column(DATATYPE).to_numpy())
        wanted = matcher.mask(values, called_json & mutation, metadata, mutation)
        columns = {name: batch.column(name) for name in batch.schema.names}
        # One that does not pass stands as a deletion: an older version of it must not count.
        columns[OPCODE] = pa.array(np.where(wanted | ~mutation, opcode, DELETION))
        # Not if_else(): that of pyarrow 16 makes broken offsets of binary values and a null.
        empty = pa.array([b""] * len(batch), values.type)
        columns[VALUE] = pc.replace_with_mask(empty, pa.array(wanted), values.filter(pa.array(wanted)))
        return pa.RecordBatch.from_arrays(list(columns.values()), schema=batch.schema)


def _marked(batch: pa.RecordBatch, rows: npt.NDArray[np.bool_], mark: np.uint8) -> pa.RecordBatch:
    """The batch with some of its documents marked as left out."""
    if not rows.any():
        return batch
    opcode = batch.column(OPCODE).to_numpy()
    marked = np.where(rows & (opcode == MUTATION), mark, opcode)
    columns = {name: batch.column(name) for name in batch.schema.names} | {OPCODE: pa.array(marked)}
    return pa.RecordBatch.from_arrays(list(columns.values()), schema=batch.schema)


@dataclass(slots=True)
class _Waiting:
    """A batch that waits."""

    heads: Callable[[], pa.RecordBatch]  # gives keys and metadata of its rows
    values: Callable[[], pa.Array]
    piece: Piece | None = None  # its documents, without their columns; None if they are not converted
    cells: Callable[[], pa.RecordBatch] | None = None  # gives these columns

    def loaded(self) -> Piece:
        """The piece with its columns."""
        assert self.piece is not None
        assert self.cells is not None
        cells = self.cells()
        columns = dict(zip(cells.schema.names, cells.columns, strict=True))
        rest, rejected = columns.pop(_REST, None), columns.pop(_REJECTED, None)
        return replace(self.piece, columns=columns, rest=rest, rejected=rejected)

    def documents(self) -> Documents:
        """The documents that were converted."""
        heads = self.heads()
        return documents_of(heads, self.values(), _are_documents(heads))


@dataclass(frozen=True, slots=True)
class Typed:
    """Converted documents on their way to what was asked for."""

    empty: pa.Table  # their columns, without rows
    form: Callable[[pa.Table, pa.Table], tuple[pa.Table, pa.Table]]
    conflicts: tuple[Conflict, ...] = ()  # as of a read
    rejected: Mapping[str, int] = field(default_factory=dict)
    settled: Settled | None = None  # the layout; None if they are not converted


@dataclass(frozen=True, slots=True)
class DocumentTables:
    """The documents of a read."""

    schema: pa.Schema  # of every table
    tables: Iterator[pa.Table]  # to be consumed once; what is not empty
    conflicts: tuple[Conflict, ...] = ()  # fields whose values had no common type
    rejected: dict[str, int] = field(default_factory=dict)  # documents that are no JSON objects, by reason
    left_out: LeftOut = NOTHING  # how many were left out

    @classmethod
    def several(cls, many: Iterable[DocumentTables]) -> DocumentTables:
        """What there is to say about several tables of one read."""
        every = [*many]
        rejected: Counter[str] = Counter()
        left_out = NOTHING
        for each in every:
            rejected.update(each.rejected)
            left_out += each.left_out
        conflicts = tuple(conflict for each in every for conflict in each.conflicts)
        return cls(pa.schema([]), iter(()), conflicts, dict(rejected), left_out)


class Pipeline:
    """Takes the rows of one run.

    First :meth:`add` what comes, then :meth:`complete`, :meth:`keep` what counts, and :meth:`typed`;
    :meth:`finish` does that for a read. Then batches are taken by number.
    """

    def __init__(
        self,
        target: ScanSpec,
        names: Names,
        receiver: DeferringBatchReceiver,
        agreed: Columns | None = None,  # columns that there have to be; None for what the documents have
        moment: Callable[[], int] | None = None,  # as of Intake
        *,
        bounded: bool = False,
        of_changes: bool = False,  # not documents are read but changes
        enough: int | None = None,  # documents after which no more need come; None for as `n_rows` says
    ) -> None:
        self._target = target
        self._enough = enough or target.n_rows
        self._names = names
        self._receiver = receiver
        self._agreed = agreed
        self.intake = Intake(target, names, receiver, moment, of_changes=of_changes)
        self._policy: Policy | None = policy_of(target, agreed) if target.parsed else None
        self._typer = None if self._policy is None else Typer(self._policy)
        # What is handed out as it is in memory needs no disk.
        self._spill = Spill(target.spool_dir, target.spill_bytes) if bounded or target.parsed else None
        self._put_rows = self._spill.put if bounded and self._spill is not None else _held
        self._put_values = _held if self._spill is None else self._spill.put_values
        # What is given batch by batch has their size; in memory it need not, and what is not converted stays
        # as it came.
        enough = _ENOUGH if target.parsed else 1
        self._batch_bytes = target.batch_size if bounded else min(target.batch_size, enough)
        self._waiting: list[_Waiting] = []
        self._pending: list[tuple[int, pa.RecordBatch]] = []
        self._pending_bytes = 0
        self._arrived = self._came = 0
        self.nbytes = self.rows = self.documents = 0
        self.left_out = NOTHING
        self.collections: set[int] = set()
        self.fields = pa.schema([])
        """What the documents have, before that has the form that was asked for; at the end."""

    def has_enough(self) -> bool:
        """Whether as many documents came as were asked for."""
        return self._enough is not None and self._came >= self._enough

    def foresee(self, progress: Progressed) -> None:
        """Look at whether what is put on disk will fit there."""
        if self._spill is not None:
            self._spill.foresee(progress)

    def add(self, arrived: list[tuple[pa.RecordBatch, Receipt]]) -> None:
        """Take batches in the order in which they arrived."""
        for raw, receipt in arrived:
            batch = self.intake.reduce(raw)
            if len(batch):
                self._pending.append((self._arrived, batch))
                self._pending_bytes += batch.nbytes
                if self._target.n_rows is not None:
                    self._came += int(_are_documents(batch).sum())
            self._arrived += 1
            if self._pending_bytes >= self._batch_bytes:
                self._put_pending()
            # Not before: what the server may send on must not be more than what was taken. And what is
            # pending is acknowledged, or a window smaller than a batch would never be opened again.
            receipt.done()

    def _put_pending(self) -> None:
        if not self._pending:
            return
        lengths = [len(batch) for _, batch in self._pending]
        numbers = np.repeat(np.array([number for number, _ in self._pending], np.int32), lengths)
        table = pa.Table.from_batches([batch for _, batch in self._pending])
        self.nbytes += self._pending_bytes
        self._pending.clear()
        self._pending_bytes = 0
        # One batch, unless there are more bytes of keys or values than one array holds.
        table = table.append_column(ARRIVED, pa.array(numbers))
        for batch in (table if len(lengths) == 1 else table.combine_chunks(memory_pool=POOL)).to_batches():
            self._put(batch.drop_columns([VALUE]), batch.column(VALUE))

    def _put(self, heads: pa.RecordBatch, values: pa.Array) -> None:
        """Put rows away; their documents are converted before."""
        typer = self._typer
        if typer is None:
            self._wait(heads, values, None)
            return
        mutation = _are_documents(heads)
        if not mutation.all():
            values = values.filter(pa.array(mutation))
        documents = documents_of(heads, values, mutation)
        ends = np.flatnonzero(mutation)
        start = row = 0
        for part in typer.split(documents):
            row += len(part)
            # Deletions stand with the documents before them.
            stop = int(ends[row]) if row < len(documents) else len(heads)
            self._wait(heads[start:stop], part.values, typer.convert(part))
            start = stop
        if start < len(heads):
            self._wait(heads[start:], documents.values[:0], typer.convert(documents[:0]))

    def _wait(self, heads: pa.RecordBatch, values: pa.Array, piece: Piece | None) -> None:
        waiting = _Waiting(self._put_rows(heads), self._put_values(values))
        if piece is not None:
            cells = dict(piece.columns)
            if piece.rest is not None:
                cells[_REST] = piece.rest
            if piece.rejected is not None:
                cells[_REJECTED] = piece.rejected
            waiting.cells = self._put_rows(pa.RecordBatch.from_arrays(list(cells.values()), list(cells)))
            waiting.piece = replace(piece, columns={}, rest=None, rejected=None)
        self._waiting.append(waiting)

    def give(self, other: Pipeline, collection: int) -> None:
        """Have another one convert the documents of a collection, which are not converted here."""
        for waiting in self._waiting:
            heads = waiting.heads()
            some = heads.column(COLLECTION_ID).to_numpy() == collection
            if some.any():
                other._put(heads.filter(pa.array(some)), waiting.values().filter(pa.array(some)))

    # -- when nothing more comes

    def complete(self, known: Iterable[int] = ()) -> CollectionsManifest | None:
        """Nothing more comes: the collections as they are now; None if there is only the default one."""
        self._put_pending()
        self._names.refuse_dropped(self._receiver)
        ids = {*known}
        for each in self._waiting:
            ids.update(distinct(each.heads().column(COLLECTION_ID).to_numpy()))
        self.collections = ids
        return self._names.manifest_of(np.array(sorted(ids), np.uint32), self._receiver)

    def heads(self) -> list[Callable[[], pa.RecordBatch]]:
        """Gives keys and metadata of each batch."""
        return [each.heads for each in self._waiting]

    def keep(
        self,
        mask: Callable[[int, pa.RecordBatch], Mask],
        manifest: CollectionsManifest | None,
        *,
        documents: bool,
    ) -> None:
        """Keep the rows that count; with `documents`, none but those."""
        # What was learned of documents that do not count must not show in any column, type or count: the
        # others of a batch are converted again.
        every, self._waiting = self._waiting, []
        masks = []
        went = False
        for number, waiting in enumerate(every):
            heads = waiting.heads()
            keep = mask(number, heads)
            if manifest is not None:
                keep &= alive(pa.Table.from_batches([heads]), manifest)
            opcode = heads.column(OPCODE).to_numpy()
            if documents:
                self.left_out += LeftOut.of(opcode[keep])
                keep &= opcode == MUTATION
            went |= not keep[opcode == MUTATION].all()
            masks.append(keep)
        infers = self._policy is not None and bool(self._policy.infer_length)
        if went and infers and self._policy is not None:
            # The first documents decide which columns there are, and others are the first now.
            self._typer = Typer(self._policy)
        self.collections = set()
        for waiting, keep in zip(every, masks, strict=True):
            self._keep(waiting, keep, again=went and infers)

    def _keep(self, waiting: _Waiting, keep: Mask, *, again: bool) -> None:
        heads = waiting.heads()
        mutation = _are_documents(heads)
        left = heads if keep.all() else heads.filter(pa.array(keep))
        self.rows += len(left)
        self.documents += int((mutation & keep).sum())
        self.collections.update(distinct(left.column(COLLECTION_ID).to_numpy()))
        if left is heads and not again:
            self._waiting.append(waiting)
        elif waiting.piece is not None and keep[mutation].all() and not again:
            self._waiting.append(replace(waiting, heads=self._put_rows(left)))
        elif waiting.piece is not None:
            # Values are those of documents; deletions have none.
            values = waiting.values().filter(pa.array(keep[mutation]))
            rows = np.cumsum(_are_documents(left)) - 1
            there = pa.array(rows, mask=~_are_documents(left))
            self._put(left, pc.fill_null(values.take(there), b"") if there.null_count else values)
        else:
            self._wait(left, waiting.values().filter(pa.array(keep)), None)

    def __len__(self) -> int:
        """How many batches there are."""
        return len(self._waiting)

    def raw(self, number: int) -> pa.Table:
        """Keys and metadata of the documents of a batch."""
        heads = self._waiting[number].heads()
        mutation = _are_documents(heads)
        return pa.Table.from_batches([heads if mutation.all() else heads.filter(pa.array(mutation))])

    def all_of(self, number: int) -> pa.Table:
        """Keys and metadata of all rows of a batch, deletions among them."""
        return pa.Table.from_batches([self._waiting[number].heads()])

    def table(self, number: int, typed: Typed) -> pa.Table:
        """The documents of a batch, before they have the form that was asked for."""
        waiting = self._waiting[number]
        if typed.settled is not None:
            assert self._typer is not None
            return self._typer.table(waiting.loaded(), typed.settled, waiting.documents)
        if not typed.empty.num_columns:
            return typed.empty
        mutation, values = _are_documents(waiting.heads()), waiting.values()
        if not mutation.all():
            values = values.filter(pa.array(mutation))
        return pa.table([values], schema=typed.empty.schema)

    def typed(self, *, lenient: bool = False, final: bool = True) -> Typed:
        """Decide what the documents that count are in the end."""
        if self._typer is None:
            schema = self._receiver.schema
            fields = [] if self._target.keys_only else [schema.field(VALUE)]
            return Typed(pa.schema(fields).empty_table(), lambda raw, table: (raw, table))
        settled = self._typer.settle([each.piece for each in self._waiting if each.piece], self._fetch)
        fitter: Fitter | None = None
        if self._agreed is not None:
            fitter = Fitter(self._agreed, self._target, settled.empty().schema, settled.layout.root)
        outcome = Outcome(
            self._target, self.documents, settled.reasons(), fitter, lenient=lenient, final=final
        )
        typed = Typed(settled.empty(), outcome.form, (), settled.reasons(), settled)
        for number in range(len(self)) if outcome.looks else ():
            outcome.look(self.raw(number), self.table(number, typed))
        return replace(typed, conflicts=outcome.conflicts(settled.disagreements(), self._keys))

    def _fetch(self, places: Collection[Where]) -> Mapping[Where, bytes]:
        return fetched((each.documents() for each in self._waiting), places)

    def _keys(self, places: Collection[Where]) -> dict[Where, str | bytes]:
        return keys_at(map(self.raw, range(len(self))), places, self._target.keys)

    def finish(self, *, lenient: bool = False) -> DocumentTables:
        """The documents that count; if `lenient`, none need have a field that was asked for."""
        manifest = self._keep_documents()
        self.refuse_filters()
        typed = self.typed(lenient=lenient or self._agreed is not None)
        self.fields = typed.empty.schema

        def formed(raw: pa.Table, table: pa.Table) -> pa.Table:
            raw, table = typed.form(raw, table)
            return beside(self._names.head(raw, manifest), table)

        def tables() -> Iterator[pa.Table]:
            left = self._target.n_rows
            try:
                while self._waiting:
                    table = formed(self.raw(0), self.table(0, typed)).slice(0, left)
                    # Nobody asks for it again: keys and metadata need not be there twice.
                    self._waiting.pop(0)
                    if left is not None:
                        left -= len(table)
                    if len(table):
                        yield table
            finally:
                self.close()

        schema = formed(self._receiver.schema.empty_table(), typed.empty).schema
        return DocumentTables(schema, tables(), typed.conflicts, dict(typed.rejected), self.left_out)

    def refuse_filters(self) -> None:
        """Raise where it shows that the filters are a mistake."""
        if self._agreed is None and not self.has_enough():
            self.intake.refuse_filters()

    def keep_documents(self, *, lenient: bool = False) -> Typed:
        """Nothing more comes: keep the documents that count, and decide what they are in the end."""
        self._keep_documents()
        return self.typed(lenient=lenient)

    def _keep_documents(self) -> CollectionsManifest | None:
        manifest = self.complete()
        current = CurrentRows(self.heads(), self._receiver)
        self.keep(current.mask, manifest, documents=True)
        return manifest

    def unconverted(self) -> tuple[pa.Table, CollectionsManifest | None]:
        """Keys, metadata and values of the documents that count, where they are not converted."""
        manifest = self._keep_documents()
        self.refuse_filters()
        typed = self.typed()
        tables = [beside(self.raw(number), self.table(number, typed)) for number in range(len(self))]
        empty = beside(self._receiver.schema.empty_table().drop_columns([VALUE]), typed.empty)
        return (pa.concat_tables(tables) if tables else empty).slice(0, self._target.n_rows), manifest

    def close(self) -> None:
        """Delete the files; allowed at any time, and more than once."""
        if self._spill is not None:
            self._spill.close()


def _held(some: T) -> Callable[[], T]:
    return lambda: some


def documents_of(heads: pa.RecordBatch, values: pa.Array, documents: Mask) -> Documents:
    """The values of some rows that are documents, to be converted."""
    datatype, vbucket, seqno = (heads.column(name).to_numpy() for name in (DATATYPE, VBUCKET, SEQNO))
    if not documents.all():
        datatype, vbucket, seqno = datatype[documents], vbucket[documents], seqno[documents]
    return Documents(values, is_json(datatype), vbucket, seqno)


def beside(left: pa.Table, right: pa.Table) -> pa.Table:
    """The columns of both."""
    schema = pa.schema([*left.schema, *right.schema])
    return pa.table([*left.columns, *right.columns], schema=schema)


def _are_documents(heads: pa.RecordBatch) -> Mask:
    mutation: Mask = heads.column(OPCODE).to_numpy() == MUTATION
    return mutation
