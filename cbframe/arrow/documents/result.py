"""From the columns of batches to a table."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from cbframe.arrow.columns import OURS, REASON, VALUE
from cbframe.arrow.documents.census import Census, Disagreement
from cbframe.arrow.documents.chunks import Batch, chunks_of
from cbframe.arrow.documents.density import Width
from cbframe.arrow.documents.guard import Reason
from cbframe.arrow.documents.order import Order
from cbframe.arrow.documents.plan import Place, Plan
from cbframe.arrow.documents.promote import promote

REST = "_cb_rest"


@dataclass(frozen=True, slots=True)
class TypedColumns:
    """Documents as columns.

    Attributes
    ----------
    table
        The columns in order of first appearance in the bucket, rows in the order in which they were
        added. Then ``_cb_rest`` (JSON text: the fields beyond the limit), ``_cb_value`` (binary:
        values that are no JSON object) and ``_cb_reason`` (why they are none), each only if it has a
        row. A field named ``_cb_x`` is the column ``_cb_x_``: names that start with ``_cb_`` are ours.
    rows
        Number of rows, also when no document has a field and the table has no column.
    rejected
        Rows in ``_cb_value`` by reason: ``binary``, ``empty``, ``not_utf8``, ``too_deep``,
        ``invalid_json``, ``not_an_object``.
    conflicts
        Fields that are text because of their values, in the order of the columns; samples are rows.
    plan
        By which the columns were made.
    widths
        How many names there are where names of objects may be data.
    """

    table: pa.Table
    rows: int
    rejected: dict[str, int]
    conflicts: tuple[Disagreement, ...]
    plan: Plan
    widths: Mapping[Place, Width] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Layout:
    """The columns of all documents, by which each batch becomes a table.

    Attributes
    ----------
    plan
        What all chunks fit.
    order
        Of first appearance.
    rest, rejected
        There are fields that are no columns, or values that are no documents.
    """

    plan: Plan
    order: Order
    rest: bool
    rejected: bool

    @classmethod
    def of(cls, plan: Plan, census: Census) -> Layout:
        """The layout of the batches of a census."""
        return cls(plan, census.order(plan), census.rest, bool(census.rejected))

    def names(self) -> list[str]:
        """Names of fields that are columns."""
        return self.order.names(self.plan.members)

    def table(self, batches: list[Batch]) -> pa.Table:
        """Some batches as a table; each chunk becomes a chunk of it."""
        arrays: dict[str, pa.ChunkedArray] = {}
        for name in self.names():
            kind = self.order.get(name, Order()).of(self.plan.members[name].type)
            arrays[name + "_" if name.startswith(OURS) else name] = _chunked(
                _cells(batches, name, kind), kind
            )
        if self.rest:
            arrays[REST] = _chunked(_rests(batches), pa.string())
        if self.rejected:
            arrays[VALUE] = _chunked(map(_rejected, batches), pa.binary())
            arrays[REASON] = _chunked(
                (_reasons().take(pa.array(batch.verdicts)) for batch in batches), pa.string()
            )
        rows = sum(len(batch) for batch in batches)
        assert all(len(array) == rows for array in arrays.values())
        return pa.table(arrays)


def assemble(batches: list[Batch], plan: Plan) -> TypedColumns:
    """Make the table of batches that all hold columns which fit `plan`."""
    census = Census()
    rows = 0
    for batch in batches:
        before = rows
        census.add(batch, plan, lambda row, before=before: before + row)  # type: ignore[misc]
        rows += len(batch)
    layout = Layout.of(plan, census)
    return TypedColumns(
        table=layout.table(batches),
        rows=rows,
        rejected=census.reasons(),
        conflicts=tuple(census.disagreements(plan, layout.names())),
        plan=plan,
        widths=census.widths,
    )


def _cells(batches: list[Batch], name: str, kind: pa.DataType) -> Iterator[pa.Array]:
    for _, chunk in chunks_of(batches):
        array = chunk.columns.get(name)
        yield pa.nulls(len(chunk), kind) if array is None else promote(array, kind)


def _rests(batches: list[Batch]) -> Iterator[pa.Array]:
    for _, chunk in chunks_of(batches):
        yield pa.nulls(len(chunk), pa.string()) if chunk.rest is None else chunk.rest


def _chunked(arrays: Iterable[pa.Array], kind: pa.DataType) -> pa.ChunkedArray:
    return pa.chunked_array(list(arrays), kind)


def _rejected(batch: Batch) -> pa.Array:
    if not batch.verdicts.any():
        return pa.nulls(len(batch), pa.binary())
    # Not if_else(): that of pyarrow 16 makes broken offsets of binary values and a null.
    good = pa.array(batch.verdicts == Reason.GOOD)
    values = batch.values
    null = pa.scalar(None, values.type)
    return pc.replace_with_mask(values, good, null).cast(pa.binary())


def _reasons() -> pa.Array:
    """By number; null for values that are sound."""
    return pa.array(
        [None if reason is Reason.GOOD else reason.name.lower() for reason in Reason], pa.string()
    )
