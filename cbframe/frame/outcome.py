"""From typed documents to what was asked for: declared types, dates, chosen columns, no rejects."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cbframe.arrow.columns import KEY, SEQNO, VBUCKET
from cbframe.arrow.documents.census import Disagreement
from cbframe.arrow.documents.dates import parse_dates
from cbframe.arrow.documents.fit import fit
from cbframe.arrow.documents.result import TypedColumns
from cbframe.errors import ConversionError
from cbframe.frame import shape
from cbframe.frame.conflicts import Conflict, named
from cbframe.frame.target import ScanTarget

_SAMPLES = 3


@dataclass(frozen=True, slots=True)
class Documents:
    """Documents as they were asked for.

    Attributes
    ----------
    raw
        Their keys and metadata.
    table
        Their fields, the same rows.
    conflicts
        Fields whose values had no common type, or not the declared one.
    rejected
        How many values are no JSON objects, by reason.
    """

    raw: pa.Table
    table: pa.Table
    conflicts: tuple[Conflict, ...] = ()
    rejected: dict[str, int] = field(default_factory=dict)


def documents_of(raw: pa.Table, typed: TypedColumns, target: ScanTarget) -> Documents:
    """Give typed documents the form that was asked for.

    Raises
    ------
    ConfigurationError
        ``columns=`` or ``parse_dates=`` names a field that no document has.
    ConversionError
        Values are no JSON objects, or do not fit, and that was to be an error.
    """
    table, rejected = typed.table, typed.rejected
    found = list(typed.conflicts)
    for name, kind in target.schema.items():
        column, misfits = fit(table[name], kind)
        table = table.set_column(table.column_names.index(name), name, column)
        if len(misfits):
            rows = {"misfit": _earliest(raw, misfits)}
            found.append(Disagreement(name, {"misfit": len(misfits)}, "null", rows))
    conflicts = named(found, raw[KEY])
    _refuse_conflicts(conflicts, target)
    if rejected and target.errors == "raise":
        shape.refuse_rejected(rejected, typed.rows)
    if rejected and target.errors == "drop":
        sound = pa.array(shape.sound_rows(table))
        raw, table = raw.filter(sound), shape.without_rejected(table.filter(sound))
    if target.columns is not None:
        table = shape.selected(table, target.columns)
    if target.nested == "flatten":
        table = shape.flattened(table)
    if isinstance(target.parse_dates, tuple):
        table = parse_dates(table, target.parse_dates)
    elif target.parse_dates:
        table = parse_dates(table, None)
    return Documents(raw, table, conflicts, rejected)


def _earliest(raw: pa.Table, rows: npt.NDArray[np.int64]) -> tuple[int, ...]:
    """The few rows that stand first in the bucket."""
    vbucket, seqno = raw[VBUCKET].to_numpy()[rows], raw[SEQNO].to_numpy()[rows]
    return tuple(rows[np.lexsort((seqno, vbucket))][:_SAMPLES].tolist())


def _refuse_conflicts(conflicts: tuple[Conflict, ...], target: ScanTarget) -> None:
    """Raise where values that do not fit were to be an error: keys are in the error, not in its words."""
    refused = [*_refused(conflicts, target)]
    if refused:
        told = "; ".join(
            f"{conflict.path!r} has "
            + ", ".join(f"{count:,} {kind}" for kind, count in conflict.types.items())
            for conflict in refused[:5]
        )
        more = f"; and {len(refused) - 5} more" if len(refused) > 5 else ""
        raise ConversionError(
            f"values have no common type, or not the declared one: {told}{more}",
            hint='on_conflict="null" makes nulls of the values that do not fit, and reports them; without '
            'schema=, on_conflict="widen" keeps them as text',
        )


def _refused(conflicts: tuple[Conflict, ...], target: ScanTarget) -> Iterator[Conflict]:
    for conflict in conflicts:
        declared = conflict.action == "null" and target.on_conflict != "null"
        if declared or target.on_conflict == "raise":
            yield conflict
