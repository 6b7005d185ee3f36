"""From the columns of all batches to one table, and what there is to say of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from operator import itemgetter

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cbframe.arrow.columns import OURS, REASON, VALUE
from cbframe.arrow.documents.chunks import Batch, chunks_of
from cbframe.arrow.documents.facts import load
from cbframe.arrow.documents.guard import Reason
from cbframe.arrow.documents.order import Order, Path, Places, firsts
from cbframe.arrow.documents.plan import Place, Plan
from cbframe.arrow.documents.promote import promote
from cbframe.arrow.documents.rewrite import FAMILIES

_REST = "_cb_rest"
_SAMPLES = 3


@dataclass(frozen=True, slots=True)
class Disagreement:
    """Values of a field that have no common type.

    Attributes
    ----------
    path
        Where in the document: ``total``, ``customer.id``, ``items[].price``.
    types
        Kinds of values there, and how many, over all documents.
    action
        What became of the values: ``"text"``, ``"json"``, or ``"null"``: those of other kinds than the
        column's are gone.
    rows
        For each kind the few rows of the table that have it and stand first in the bucket.
    """

    path: str
    types: dict[str, int]
    action: str
    rows: dict[str, tuple[int, ...]] = field(repr=False)


@dataclass(frozen=True, slots=True)
class TypedColumns:
    """All documents as columns.

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
        Fields that are text because of their values, in the order of the columns.
    """

    table: pa.Table
    rows: int
    rejected: dict[str, int]
    conflicts: tuple[Disagreement, ...]


def assemble(batches: list[Batch], plan: Plan) -> TypedColumns:
    """Make the table of batches that all hold columns which fit `plan`."""
    rows = sum(len(batch.values) for batch in batches)
    order = _order(batches)
    names = order.names(plan.members)
    arrays: dict[str, pa.ChunkedArray] = {}
    for name in names:
        kind = order.get(name, Order()).of(plan.members[name].type)
        arrays[name + "_" if name.startswith(OURS) else name] = _chunked(_cells(batches, name, kind), kind)
    if plan.rest:
        arrays[_REST] = _chunked(
            (
                pa.nulls(len(chunk), pa.string()) if chunk.rest is None else chunk.rest
                for _, chunk in chunks_of(batches)
            ),
            pa.string(),
        )
    rejected: Counter[int] = Counter()
    for batch in batches:
        if batch.verdicts.any():
            rejected.update(batch.verdicts[batch.verdicts != Reason.GOOD].tolist())
    if rejected:
        arrays[VALUE] = _chunked((_rejected(batch) for batch in batches), pa.binary())
        arrays[REASON] = _chunked((_REASONS.take(pa.array(batch.verdicts)) for batch in batches), pa.string())
    assert all(len(array) == rows for array in arrays.values())
    return TypedColumns(
        table=pa.table(arrays),
        rows=rows,
        rejected={Reason(reason).name.lower(): count for reason, count in sorted(rejected.items())},
        conflicts=tuple(_disagreements(batches, plan, names)),
    )


def _cells(batches: list[Batch], name: str, kind: pa.DataType) -> Iterator[pa.Array]:
    for _, chunk in chunks_of(batches):
        array = chunk.columns.get(name)
        yield pa.nulls(len(chunk), kind) if array is None else promote(array, kind)


def _order(batches: list[Batch]) -> Order:
    """The order of first appearance: that of the documents in which something appears first."""
    best: dict[Path, tuple[tuple[int, int], bytes]] = {}
    for batch, chunk in chunks_of(batches):
        places = batch.places[chunk.start : chunk.stop]
        for path, row in firsts(chunk.columns, places).items():
            place = places.of(row)
            if path not in best or place < best[path][0]:
                best[path] = place, batch.values[chunk.start + row].as_py()
    order = Order()
    for _, document in sorted(set(best.values())):
        order.add(load(document))
    return order


def count(batches: list[Batch]) -> dict[Place, Counter[str]]:
    """How many values of each kind there are where there is no common type."""
    counts: dict[Place, Counter[str]] = {}
    for _, chunk in chunks_of(batches):
        for path, tally in chunk.tallies.items():
            counts.setdefault(path, Counter()).update({kind: len(rows) for kind, rows in tally.items()})
    return counts


def _disagreements(batches: list[Batch], plan: Plan, names: list[str]) -> Iterator[Disagreement]:
    """What there is to say of the fields without a common type."""
    found: dict[tuple[Place, str], list[tuple[tuple[int, int], int]]] = {}
    before = 0
    for batch in batches:
        for chunk in batch.chunks:
            for path, tally in chunk.tallies.items():
                for kind, rows in tally.items():
                    some = _earliest(rows, batch.places[chunk.start : chunk.stop])
                    found.setdefault((path, kind), []).extend(
                        (batch.places.of(chunk.start + row), before + chunk.start + row) for row in some
                    )
        before += len(batch.values)
    counts = count(batches)
    told = [(names.index(str(path[0])), shown(path), path, member) for path, member in plan.conflicts()]
    for _, name, path, member in sorted(told, key=itemgetter(0, 1)):
        kinds = dict(sorted(counts.get(path, {}).items()))
        if member.only is not None and all(FAMILIES[kind] == member.only for kind in kinds):
            continue
        samples = {kind: tuple(row for _, row in sorted(found[path, kind])[:_SAMPLES]) for kind in kinds}
        yield Disagreement(name, kinds, "null" if member.only else member.how, samples)


def shown(path: Place) -> str:
    """A place as it is written: ``items[].price``."""
    return "".join("[]" if name is None else f".{name}" for name in path).removeprefix(".")


def _earliest(rows: list[int], places: Places) -> list[int]:
    """The few rows that stand first in the bucket."""
    unique = np.unique(np.array(rows, np.int64))
    order = np.lexsort((places.seqno[unique], places.vbucket[unique]))
    some: list[int] = unique[order[:_SAMPLES]].tolist()
    return some


def _chunked(arrays: Iterable[pa.Array], kind: pa.DataType) -> pa.ChunkedArray:
    return pa.chunked_array(list(arrays), kind)


def _rejected(batch: Batch) -> pa.Array:
    if not batch.verdicts.any():
        return pa.nulls(len(batch.values), pa.binary())
    # Not if_else(): that of pyarrow 16 makes broken offsets of binary values and a null.
    good = pa.array(batch.verdicts == Reason.GOOD)
    null = pa.scalar(None, batch.values.type)
    return pc.replace_with_mask(batch.values, good, null).cast(pa.binary())


_REASONS = pa.array(
    [None if reason is Reason.GOOD else reason.name.lower() for reason in Reason], pa.string()
)
"""By number; null for values that are sound."""
