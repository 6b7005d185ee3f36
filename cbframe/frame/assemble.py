"""From the record batches of a read to its table: types, newest versions, names of collections."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cbframe.arrow.columns import DATATYPE, KEY, OPCODE, SEQNO, VALUE, VBUCKET, is_json
from cbframe.arrow.documents.order import Places
from cbframe.arrow.documents.result import TypedColumns
from cbframe.arrow.documents.typer import JsonTyper
from cbframe.arrow.exclusion import NOTHING, LeftOut
from cbframe.arrow.keys import formed_key
from cbframe.arrow.shelf import Shelf
from cbframe.arrow.slices import POOL
from cbframe.arrow.spill import Progressed
from cbframe.arrow.spool import DeferringBatchReceiver
from cbframe.cluster.manifest import Manifest
from cbframe.dcp.receiver import Receipt
from cbframe.dcp.workers import Workers
from cbframe.frame.agreed import Agreement, fitted, policy_of
from cbframe.frame.conflicts import Conflict
from cbframe.frame.gather import Rows, filtered
from cbframe.frame.intake import Intake
from cbframe.frame.names import Names
from cbframe.frame.outcome import Outcome
from cbframe.scan.spec import ScanSpec
from cbframe.wire.constants import Opcode


@dataclass(frozen=True, slots=True)
class Assembled:
    """The table of a read, and what there is to say about it."""

    table: pa.Table
    conflicts: tuple[Conflict, ...]
    rejected: dict[str, int]
    left_out: LeftOut = NOTHING


class Assembler:
    """Takes the documents of one run and makes a table of them.

    Values become columns as they come, and are put aside on disk then: they are looked at once more only
    if later documents make their columns wrong.

    Parameters
    ----------
    batch_bytes
        Documents are typed in batches of about so many bytes.
    spool_dir
        Where values are put aside.
    agreement
        Columns that there have to be; None for what the documents have.
    moment
        As of :class:`~cbframe.frame.intake.Intake`.

    Attributes
    ----------
    intake
        What cuts batches down, and learns what filters compare with.
    """

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
        self._receiver = receiver
        self._batch_bytes = batch_bytes
        self.intake = Intake(target, names, receiver, moment)
        schema = receiver.schema
        self._rows = Rows(target, names, schema.remove(schema.get_field_index(VALUE)))
        self._workers = Workers()
        self._shelf = Shelf(spool_dir)
        self._typer = self._new_typer()
        self._pending: list[pa.RecordBatch] = []
        self._pending_bytes = 0

    def _new_typer(self) -> JsonTyper:
        return JsonTyper(
            policy_of(self._target, self._agreement),
            submit=self._workers.submit,
            most=self._workers.count,
            shelf=self._shelf,
        )

    def has_enough(self) -> bool:
        """Whether as many documents came as were asked for."""
        return self._rows.has_enough()

    def foresee(self, progress: Progressed) -> None:
        """Look at whether what is put on disk will fit there."""
        self._shelf.foresee(progress)

    def add(self, arrived: list[tuple[pa.RecordBatch, Receipt]]) -> None:
        """Take batches in the order in which they arrived."""
        for raw, receipt in arrived:
            batch = self.intake.reduce(raw)
            self._rows.add(batch)
            mutation = batch.column(OPCODE).to_numpy() == Opcode.DCP_MUTATION
            documents = batch if mutation.all() else batch.filter(pa.array(mutation))
            if len(documents):
                self._pending.append(documents)
                self._pending_bytes += documents.column(VALUE).nbytes
            # Many may have come while the last ones were parsed. Still no more is parsed at once than
            # asked for: then the parser's memory is used again and again, not asked of the system anew.
            if self._pending_bytes >= self._batch_bytes:
                self._convert()
            # Not before: more may come as soon as it is said.
            receipt.done()

    def _convert(self) -> None:
        if self._pending:
            add_documents(self._typer, self._pending)
        self._pending.clear()
        self._pending_bytes = 0

    def finish(self) -> Assembled:
        """Make the table.

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
        enough = self.has_enough()
        raw, typed, manifest = self.typed()
        if self._agreement is None and not enough:
            self.intake.refuse_filters()
        assembled = assembled_of(raw, typed, manifest, self._target, self._names, agreement=self._agreement)
        table = assembled.table.slice(0, self._target.n_rows)
        return replace(assembled, table=table, left_out=self._rows.left_out)

    def typed(self) -> tuple[pa.Table, TypedColumns, Manifest | None]:
        """Keys and metadata of the documents that count, their columns, and their collections."""
        self._convert()
        raw, keep, manifest = self._rows.gathered(self._receiver)
        mutation = raw[OPCODE].to_numpy() == Opcode.DCP_MUTATION
        if keep is not None and not keep[mutation].all():
            self._type_again(raw, keep, mutation)
            mutation &= keep
        return filtered(raw, mutation), self._typer.finish(), manifest

    def _type_again(
        self, raw: pa.Table, keep: npt.NDArray[np.bool_], mutation: npt.NDArray[np.bool_]
    ) -> None:
        """Type what counts of all that was typed.

        Versions that do not count must not show in any column, type, conflict or count.
        """
        called_json = is_json(raw[DATATYPE].to_numpy()[mutation])
        keep = keep[mutation]
        typer, self._typer = self._typer, self._new_typer()
        start = 0
        for values, places in typer.batches():
            rows = slice(start, start + len(values))
            kept = keep[rows]
            self._typer.add(values.filter(pa.array(kept)), called_json[rows][kept], places.where(kept))
            start = rows.stop

    def close(self) -> None:
        """Nothing more is wanted."""
        self._workers.close()
        self._shelf.close()


def raw_table(raw: pa.Table, manifest: Manifest | None, target: ScanSpec, names: Names) -> pa.Table:
    """The table that was asked for, of documents that are not typed."""
    return beside(names.head(raw, manifest), raw.select([] if target.keys_only else [VALUE]))


def beside(left: pa.Table, right: pa.Table) -> pa.Table:
    """The columns of both."""
    schema = pa.schema([*left.schema, *right.schema])
    return pa.table([*left.columns, *right.columns], schema=schema)


def assembled_of(
    raw: pa.Table,
    typed: TypedColumns,
    manifest: Manifest | None,
    target: ScanSpec,
    names: Names,
    *,
    lenient: bool = False,
    agreement: Agreement | None = None,
) -> Assembled:
    """The table that was asked for, of typed documents.

    Parameters
    ----------
    raw
        Their keys and metadata.
    lenient
        A field that was asked for need not be there.
    agreement
        Columns that there have to be.
    """
    outcome = Outcome(target, typed.rows, typed.rejected, lenient=lenient or agreement is not None)
    if outcome.looks:
        outcome.look(raw, typed.table, int)
    keys = raw[KEY]
    conflicts = outcome.conflicts(typed.conflicts, lambda row: formed_key(keys[row].as_py(), target.keys))
    table = typed.table
    if agreement is not None:
        table, fitter = fitted(typed, agreement, target)
        conflicts = (*conflicts, *fitter.conflicts(conflicts))
    raw, table = outcome.form(raw, table)
    head = _in_chunks_of(table, names.head(raw, manifest))
    return Assembled(beside(head, table), conflicts, typed.rejected)


def _in_chunks_of(documents: pa.Table, head: pa.Table) -> pa.Table:
    """Metadata with the chunks of documents, where these have structs inside of structs.

    Where chunks differ, consumers slice columns. The library below deltalake (arrow-rs, up to 59 at least)
    ends the process at a slice of a struct in a struct.
    """
    column = next((each for each in documents.columns if _is_deep(each.type)), None)
    if column is None or not len(column):
        return head
    head = head.combine_chunks()
    ends = np.cumsum([len(chunk) for chunk in column.chunks]).tolist()
    return pa.concat_tables(
        head.slice(start, end - start) for start, end in zip([0, *ends], ends, strict=False) if end > start
    )


def _is_deep(kind: pa.DataType, *, inside: bool = False) -> bool:
    if pa.types.is_struct(kind):
        return inside or any(_is_deep(kind.field(at).type, inside=True) for at in range(kind.num_fields))
    return any(_is_deep(kind.field(at).type, inside=inside) for at in range(kind.num_fields))


def add_documents(typer: JsonTyper, batches: list[pa.RecordBatch]) -> None:
    """Convert the values of batches, at once."""
    values = [batch.column(VALUE) for batch in batches]

    def column(name: str) -> npt.NDArray[Any]:
        return np.concatenate([batch.column(name).to_numpy() for batch in batches])

    typer.add(
        values[0] if len(values) == 1 else pa.concat_arrays(values, memory_pool=POOL),
        is_json(column(DATATYPE)),
        Places(column(VBUCKET), column(SEQNO)),
    )
