"""Reads in bounded memory: documents go to disk as they come, and are typed again on the way out."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cbframe.arrow.columns import COLLECTION_ID, DATATYPE, KEY, OPCODE, SEQNO, VALUE, VBUCKET, is_json
from cbframe.arrow.documents.chunks import Batch
from cbframe.arrow.documents.guard import screen
from cbframe.arrow.documents.order import Places
from cbframe.arrow.documents.passes import PassingTyper
from cbframe.arrow.exclusion import NOTHING, LeftOut
from cbframe.arrow.keys import formed_key
from cbframe.arrow.spill import Progressed
from cbframe.arrow.spool import DeferringBatchReceiver, Spool, Survivors
from cbframe.cluster.manifest import Manifest
from cbframe.dcp.receiver import Receipt
from cbframe.frame.agreed import Agreement, Fitter, policy_of
from cbframe.frame.assemble import beside
from cbframe.frame.conflicts import Conflict
from cbframe.frame.intake import Intake
from cbframe.frame.names import Names, alive
from cbframe.frame.outcome import Outcome
from cbframe.scan.spec import ScanSpec
from cbframe.wire.constants import Opcode


@dataclass(frozen=True, slots=True)
class Streamed:
    """What a read gives, batch by batch.

    Attributes
    ----------
    schema
        Of every table.
    tables
        To be consumed once.
    conflicts, rejected, left_out
        As of a read in memory.
    """

    schema: pa.Schema
    tables: Iterator[pa.Table]
    conflicts: tuple[Conflict, ...]
    rejected: dict[str, int]
    left_out: LeftOut = NOTHING


@dataclass(frozen=True, slots=True)
class _Typing:
    """How the documents of a spool become columns, decided for all of them.

    Attributes
    ----------
    empty
        What has the columns, and no rows.
    tables
        The fields of each batch's documents, with its number.
    form
        Makes of a batch's raw rows and fields what is given of them.
    conflicts, rejected
        As of a read in memory.
    """

    empty: pa.Table
    tables: Callable[[], Iterator[tuple[int, pa.Table]]]
    form: Callable[[pa.Table, pa.Table], tuple[pa.Table, pa.Table]]
    conflicts: tuple[Conflict, ...]
    rejected: dict[str, int]


class SpoolingSink:
    """Takes the documents of one run to disk, and learns their types on the way.

    Parameters
    ----------
    batch_bytes
        Documents are put down and typed in batches of about so many bytes.
    agreement
        Columns that there have to be; None for what the documents have.
    moment
        As of :class:`~cbframe.frame.intake.Intake`.
    """

    of_changes: ClassVar[bool] = False
    """As of :class:`~cbframe.frame.intake.Intake`."""

    def __init__(
        self,
        target: ScanSpec,
        names: Names,
        receiver: DeferringBatchReceiver,
        batch_bytes: int,
        spool_dir: str | os.PathLike[str] | None = None,
        agreement: Agreement | None = None,
        moment: Callable[[], int] | None = None,
    ) -> None:
        self._agreement = agreement
        self._target = target
        self._names = names
        self._batch_bytes = batch_bytes
        self._receiver = receiver
        self._intake = Intake(target, names, receiver, moment, of_changes=self.of_changes)
        self._spool = Spool(receiver.schema, spool_dir)
        self._typer = PassingTyper(policy_of(target, agreement)) if target.parsed else None
        self._arrived = 0
        self._pending: list[tuple[int, pa.RecordBatch]] = []
        self._pending_bytes = 0
        self._collections: set[int] = set()

    def has_enough(self) -> bool:
        """Never: all of a bucket is read."""
        return False

    def foresee(self, progress: Progressed) -> None:
        """Look at whether what is put on disk will fit there."""
        self._spool.foresee(progress)

    def add(self, arrived: list[tuple[pa.RecordBatch, Receipt]]) -> None:
        """Take batches in the order in which they arrived."""
        for raw, receipt in arrived:
            batch = self._intake.reduce(raw)
            if len(batch):
                self._pending.append((self._arrived, batch))
                self._pending_bytes += batch.nbytes
            self._arrived += 1
            if self._pending_bytes >= self._batch_bytes:
                self._put_down()
            # Not before: what the server may send on must not be more than what was put down. And what
            # is pending is acknowledged, or a window smaller than a batch would never be opened again.
            receipt.done()

    def _put_down(self) -> None:
        numbers = np.repeat(
            [number for number, _ in self._pending], [len(batch) for _, batch in self._pending]
        )
        table = pa.Table.from_batches([batch for _, batch in self._pending])
        self._pending.clear()
        self._pending_bytes = 0
        # One batch, unless there are more bytes of keys or values than one array holds.
        start = 0
        for batch in table.combine_chunks().to_batches():
            self._put_down_batch(batch, numbers[start : start + len(batch)])
            start += len(batch)

    def _put_down_batch(self, batch: pa.RecordBatch, numbers: npt.NDArray[np.int64]) -> None:
        self._collections.update(batch.column(COLLECTION_ID).unique().to_pylist())
        if self._typer is not None:
            mutation = batch.column(OPCODE).to_numpy() == Opcode.DCP_MUTATION
            self._typer.learn(documents_of(batch, batch.column(VALUE), mutation))
        self._spool.write(batch, numbers)

    def finish(self) -> Streamed:
        """Nothing more comes.

        Raises
        ------
        ConfigurationError
            ``columns=`` or ``filters=`` name a field that no document has, a comparison can never be true,
            or a collection that was asked for is gone.
        ConversionError
            Values are no JSON objects, or do not fit, and that was to be an error.
        SpoolError
            The disk is full.
        """
        if self._pending:
            self._put_down()
        self._spool.complete()
        self._names.refuse_dropped(self._receiver)
        if self._agreement is None:
            self._intake.refuse_filters()
        ids = np.array(sorted(self._collections), np.uint32)
        manifest = self._names.manifest_of(ids, self._receiver)
        rows = SpooledRows(self._spool, Survivors(self._spool, self._receiver), manifest)
        some_went = rows.some_went()
        if self._typer is None:
            streamed = self._unparsed(rows)
        else:
            streamed = self._typed(self._typer, rows, some_went=some_went)
        return replace(streamed, left_out=rows.left_out)

    def _unparsed(self, rows: SpooledRows) -> Streamed:
        schema = pa.schema([] if self._target.keys_only else [self._receiver.schema.field(VALUE)])

        def tables() -> Iterator[pa.Table]:
            for number in range(len(rows)):
                raw = rows.raw(number)
                table = pa.table([rows.values(number)] if schema.names else [], schema=schema)
                yield beside(self._names.head(raw, rows.manifest), table)

        empty = self._receiver.schema.empty_table()
        head = self._names.head(empty, rows.manifest)
        return Streamed(beside(head, schema.empty_table()).schema, self._given(tables()), (), {})

    def _typed(self, typer: PassingTyper, rows: SpooledRows, *, some_went: bool) -> Streamed:
        typing = self._typing(typer, rows, some_went=some_went)

        def formed(raw: pa.Table, table: pa.Table) -> pa.Table:
            raw, table = typing.form(raw, table)
            return beside(self._names.head(raw, rows.manifest), table)

        schema = formed(self._receiver.schema.empty_table(), typing.empty).schema
        tables = (formed(rows.raw(number), table) for number, table in typing.tables())
        return Streamed(schema, self._given(tables), typing.conflicts, typing.rejected)

    def _typing(self, typer: PassingTyper, rows: SpooledRows, *, some_went: bool) -> _Typing:
        """Look at all documents as often as it takes to know the columns of each."""
        if some_went:
            # What was learned of versions that do not count must not show in any column, type or count.
            typer = PassingTyper(policy_of(self._target, self._agreement))
            for number in range(len(rows)):
                typer.learn(rows.load(number))
        layout = typer.settle(rows)
        census = typer.census
        rejected = census.reasons()
        agreement = self._agreement
        outcome = Outcome(self._target, rows.count, rejected, lenient=agreement is not None)
        fitter: Fitter | None = None
        if agreement is not None:
            fitter = Fitter(agreement, self._target, layout.table([]).schema, layout.plan)

        def typed() -> Iterator[tuple[int, pa.Table]]:
            return enumerate(typer.tables(rows, layout))

        if outcome.looks or (fitter is not None and fitter.looks):
            for number, table in typed():
                if outcome.looks:
                    outcome.look(rows.raw(number), table, lambda row, number=number: (number, row))  # type: ignore[misc]
                if fitter is not None and fitter.looks:
                    fitter.look(table)
        conflicts = outcome.conflicts(
            census.disagreements(layout.plan, layout.names()),
            lambda place: formed_key(rows.key(place), self._target.keys),
        )
        if fitter is not None:
            fitter.settle()
            conflicts = (*conflicts, *fitter.conflicts(conflicts))

        def form(raw: pa.Table, table: pa.Table) -> tuple[pa.Table, pa.Table]:
            return outcome.form(raw, table if fitter is None else fitter.apply(table, len(raw)))

        return _Typing(layout.table([]), typed, form, conflicts, rejected)

    def _given(self, tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
        """Tables that have rows; at the end the files are gone."""
        try:
            for table in tables:
                if len(table):
                    yield table
        finally:
            self._spool.close()

    def close(self) -> None:
        """Delete the files."""
        self._spool.close()


class Counting(Protocol):
    """Tells which rows of a spool count."""

    def mask(self, number: int, heads: pa.RecordBatch) -> npt.NDArray[np.bool_]:
        """Which of a batch; all of them documents."""


class SpooledRows:
    """The rows of a spool that count, by batch.

    Attributes
    ----------
    count
        How many there are; known after :meth:`some_went`.
    left_out
        How many documents were left out; known then, too.
    """

    def __init__(self, spool: Spool, survivors: Counting, manifest: Manifest | None) -> None:
        self._spool = spool
        self._survivors = survivors
        self.manifest = manifest
        self.count = 0
        self.left_out = LeftOut()

    def __len__(self) -> int:
        return len(self._spool)

    def _newest(self, number: int, heads: pa.RecordBatch) -> npt.NDArray[np.bool_]:
        """Which rows of a batch are documents that exist, also those that are left out."""
        keep = self._survivors.mask(number, heads)
        if self.manifest is not None:
            keep &= alive(pa.Table.from_batches([heads]), self.manifest)
        return keep

    def _mask(self, number: int, heads: pa.RecordBatch) -> npt.NDArray[np.bool_]:
        wanted: npt.NDArray[np.bool_] = heads.column(OPCODE).to_numpy() == Opcode.DCP_MUTATION
        return wanted & self._newest(number, heads)

    def some_went(self) -> bool:
        """Whether there are documents that do not count, besides deletions."""
        mutations = 0
        for number in range(len(self)):
            heads = self._spool.heads(number)
            opcode = heads.column(OPCODE).to_numpy()
            newest = self._newest(number, heads)
            wanted = opcode == Opcode.DCP_MUTATION
            mutations += int(wanted.sum())
            self.count += int((wanted & newest).sum())
            self.left_out += LeftOut.of(opcode[newest])
        return mutations != self.count

    def raw(self, number: int) -> pa.Table:
        """Keys and metadata of a batch."""
        heads = self._spool.heads(number)
        return pa.Table.from_batches([heads.filter(pa.array(self._mask(number, heads)))])

    def values(self, number: int) -> pa.Array:
        """Values of a batch."""
        keep = self._mask(number, self._spool.heads(number))
        return self._spool.values(number).filter(pa.array(keep))

    def load(self, number: int) -> Batch:
        """Documents of a batch."""
        heads = self._spool.heads(number)
        return documents_of(heads, self._spool.values(number), self._mask(number, heads))

    def key(self, place: tuple[int, int]) -> bytes:
        """The key of a row of a batch."""
        number, row = place
        key: bytes = self.raw(number)[KEY][row].as_py()
        return key


def documents_of(heads: pa.RecordBatch, values: pa.Array, keep: npt.NDArray[np.bool_]) -> Batch:
    """The documents of some rows of a batch, to be typed."""
    columns = [heads.column(name).to_numpy() for name in (DATATYPE, VBUCKET, SEQNO)]
    if not keep.all():
        values = values.filter(pa.array(keep))
        columns = [column[keep] for column in columns]
    datatype, vbucket, seqno = columns
    return Batch(values, Places(vbucket, seqno), screen(values, is_json(datatype)))
