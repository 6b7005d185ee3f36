"""From the record batches of a read to its table: types, newest versions, names of collections."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cbframe.arrow.batcher import BatchingReceiver
from cbframe.arrow.columns import COLLECTION_ID, DATATYPE, KEY, OPCODE, SEQNO, VALUE, VBUCKET
from cbframe.arrow.documents.order import Places
from cbframe.arrow.documents.result import TypedColumns
from cbframe.arrow.documents.typer import JsonTyper
from cbframe.arrow.memory import POOL
from cbframe.cluster.manifest import Manifest
from cbframe.dcp.workers import Workers
from cbframe.frame.conflicts import Conflict
from cbframe.frame.intake import Intake
from cbframe.frame.names import Names, alive
from cbframe.frame.outcome import Outcome
from cbframe.frame.target import ScanTarget
from cbframe.wire.constants import Datatype, Opcode


@dataclass(frozen=True, slots=True)
class Assembled:
    """The table of a read, and what there is to say about it."""

    table: pa.Table
    conflicts: tuple[Conflict, ...]
    rejected: dict[str, int]


class Assembler:
    """Takes the batches of one read and makes its table."""

    def __init__(self, target: ScanTarget, names: Names, batch_bytes: int) -> None:
        self._target = target
        self._names = names
        self._batch_bytes = batch_bytes
        self._intake = Intake(target)
        self._workers = Workers()
        self._typer: JsonTyper | None = None
        if target.parsed:
            submit, most = self._workers.submit, self._workers.count
            self._typer = JsonTyper(target.policy(), submit=submit, most=most)
        self._documents = 0
        self._batches: list[pa.RecordBatch] = []
        self._pending: list[pa.RecordBatch] = []
        self._pending_bytes = 0

    def has_enough(self) -> bool:
        """Whether as many documents came as were asked for."""
        wanted = self._target.n_rows
        return wanted is not None and self._documents >= wanted

    def add(self, batches: list[pa.RecordBatch]) -> None:
        """Take batches in the order in which they arrived."""
        # Also where nothing is left: batches are known by their number.
        batches = [self._intake.reduce(batch) for batch in batches]
        if self._target.n_rows is not None:
            self._documents += sum(
                int((batch.column(OPCODE).to_numpy() == Opcode.DCP_MUTATION).sum()) for batch in batches
            )
        self._batches += batches
        if self._typer is None:
            return
        # Many may have come while the last ones were parsed. Still no more is parsed at once than
        # asked for: then the parser's memory is used again and again, not asked of the system anew.
        for batch in batches:
            self._pending.append(batch)
            self._pending_bytes += batch.column(VALUE).nbytes
            if self._pending_bytes >= self._batch_bytes:
                self._convert()

    def _convert(self) -> None:
        assert self._typer is not None
        batches = []
        for batch in self._pending:
            mutation = batch.column(OPCODE).to_numpy() == Opcode.DCP_MUTATION
            if not mutation.all():
                batch = batch.filter(pa.array(mutation))  # noqa: PLW2901
            batches.append(batch)
        self._pending.clear()
        self._pending_bytes = 0
        if sum(map(len, batches)):
            add_documents(self._typer, batches)

    def finish(self, receiver: BatchingReceiver) -> Assembled:
        """Make the table.

        Raises
        ------
        ConfigurationError
            ``columns=`` names a field that no document has, or a collection that was asked for is gone.
        ConversionError
            Values are no JSON objects, or do not fit, and that was to be an error.
        """
        raw, keep, manifest = self._gathered(receiver)
        if self._typer is not None:
            raw, typed = self._type(self._typer, raw, keep)
            assembled = assembled_of(raw, typed, manifest, self._target, self._names)
        else:
            raw = _filter(raw, keep)
            table = raw.select([] if self._target.keys_only else [VALUE])
            assembled = Assembled(beside(self._names.head(raw, manifest), table), (), {})
        return replace(assembled, table=assembled.table.slice(0, self._target.n_rows))

    def close(self) -> None:
        """Nothing more is wanted."""
        self._workers.close()

    def rows(self, receiver: BatchingReceiver) -> tuple[pa.Table, Manifest | None]:
        """The rows that count, as they came, and the collections that they are of."""
        raw, keep, manifest = self._gathered(receiver)
        return _filter(raw, keep).slice(0, self._target.n_rows), manifest

    def _gathered(
        self, receiver: BatchingReceiver
    ) -> tuple[pa.Table, npt.NDArray[np.bool_] | None, Manifest | None]:
        """All rows, and which of them count: None for all."""
        self._names.refuse_dropped(receiver)
        keep = receiver.surviving(self._batches)
        raw = pa.Table.from_batches(self._batches, receiver.schema)
        self._batches.clear()
        manifest = self._names.manifest_of(raw[COLLECTION_ID].to_numpy(), receiver)
        if manifest is not None and not (living := alive(raw, manifest)).all():
            keep = living if keep is None else keep & living
        return raw, keep, manifest

    def _type(
        self, typer: JsonTyper, raw: pa.Table, keep: npt.NDArray[np.bool_] | None
    ) -> tuple[pa.Table, TypedColumns]:
        """The rows that count, and their documents as columns.

        What was typed while it arrived may hold versions that do not count. They must not show in
        any column, type, conflict or count, so then what is left is typed once more.
        """
        mutation = raw[OPCODE].to_numpy() == Opcode.DCP_MUTATION
        if keep is None or keep[mutation].all():
            if self._pending:
                self._convert()
            return _filter(raw, mutation), typer.finish()
        raw = _filter(raw, keep & mutation)
        self._pending.clear()
        self._typer = typer = JsonTyper(self._target.policy())
        for batch in raw.to_batches():
            add_documents(typer, [batch])
        return raw, typer.finish()


def beside(left: pa.Table, right: pa.Table) -> pa.Table:
    """The columns of both."""
    schema = pa.schema([*left.schema, *right.schema])
    return pa.table([*left.columns, *right.columns], schema=schema)


def assembled_of(
    raw: pa.Table,
    typed: TypedColumns,
    manifest: Manifest | None,
    target: ScanTarget,
    names: Names,
    *,
    lenient: bool = False,
) -> Assembled:
    """The table that was asked for, of typed documents.

    Parameters
    ----------
    raw
        Their keys and metadata.
    lenient
        A field that was asked for need not be there.
    """
    outcome = Outcome(target, typed.rows, typed.rejected, lenient=lenient)
    if outcome.looks:
        outcome.look(raw, typed.table, int)
    keys = raw[KEY]
    conflicts = outcome.conflicts(typed.conflicts, lambda row: keys[row].as_py())
    raw, table = outcome.form(raw, typed.table)
    return Assembled(beside(names.head(raw, manifest), table), conflicts, typed.rejected)


def add_documents(typer: JsonTyper, batches: list[pa.RecordBatch]) -> None:
    """Convert the values of batches, at once."""
    values = [batch.column(VALUE) for batch in batches]

    def column(name: str) -> npt.NDArray[Any]:
        return np.concatenate([batch.column(name).to_numpy() for batch in batches])

    typer.add(
        values[0] if len(values) == 1 else pa.concat_arrays(values, memory_pool=POOL),
        (column(DATATYPE) & Datatype.JSON) != 0,
        Places(column(VBUCKET), column(SEQNO)),
    )


def _filter(table: pa.Table, keep: npt.NDArray[np.bool_] | None) -> pa.Table:
    return table if keep is None or keep.all() else table.filter(pa.array(keep))
