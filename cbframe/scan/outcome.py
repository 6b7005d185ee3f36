"""From typed documents to what was asked for: declared types, dates, chosen columns, no rejects."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa

from cbframe.arrow.columns import SEQNO, VBUCKET
from cbframe.arrow.documents.dates import Dates
from cbframe.arrow.documents.fit import fit
from cbframe.arrow.documents.rendered import rendered
from cbframe.errors import ConversionError
from cbframe.json.typer import Disagreement, Where, quoted
from cbframe.scan import shape
from cbframe.scan.conflicts import Conflict, KeysAt, named
from cbframe.scan.spec import ScanSpec

_SAMPLES = 3


class Outcome:
    """Gives typed documents the form that was asked for, a table at a time.

    Where :attr:`looks` says so, :meth:`look` at all tables first: their types follow from all of them.
    """

    def __init__(
        self,
        target: ScanSpec,
        rows: int,  # how many documents there are
        rejected: dict[str, int],  # how many of them are no JSON objects, by reason
        *,
        lenient: bool = False,  # A field that was asked for need not be there
        final: bool = True,  # the tables are handed out, and not unified with others
    ) -> None:
        if rejected and target.errors == "raise":
            shape.refuse_rejected(rejected, rows)
        self._target = target
        self._final = final
        # Where there is no document, no name can be wrong.
        self._lenient = lenient or not rows
        self._drops = bool(rejected) and target.errors == "drop"
        self._dates: Dates | None = None
        if target.parse_dates:
            named = target.parse_dates if isinstance(target.parse_dates, tuple) else None
            self._dates = Dates(named, lenient=self._lenient)
        self._misfits: dict[str, int] = {}
        self._samples: dict[str, list[Where]] = {}
        self.looks = bool(target.schema) or self._dates is not None

    def look(self, raw: pa.Table, table: pa.Table) -> None:
        """Take in one more table."""
        for column, kind in self._target.schema.items():
            _, misfits = fit(table[column], kind)
            if len(misfits):
                self._misfits[column] = self._misfits.get(column, 0) + len(misfits)
                vbucket, seqno = raw[VBUCKET].to_numpy()[misfits], raw[SEQNO].to_numpy()[misfits]
                samples = self._samples.setdefault(column, [])
                first = np.lexsort((seqno, vbucket))[:_SAMPLES]
                samples += [(int(vbucket[at]), int(seqno[at])) for at in first]
                samples.sort()
                del samples[_SAMPLES:]
        if self._dates is not None:
            self._dates.look(self._cut(raw, table)[1])

    def form(self, raw: pa.Table, table: pa.Table) -> tuple[pa.Table, pa.Table]:
        """The rows that were asked for: their metadata, and their fields."""
        raw, table = self._cut(raw, table)
        if self._dates is not None:
            table = self._dates.apply(table)
        return raw, rendered(table, self._target.schema) if self._final else table

    def conflicts(self, found: Iterable[Disagreement], keys_at: KeysAt) -> tuple[Conflict, ...]:
        """Fields whose values had no common type, or not the declared one."""
        misfits = [
            Disagreement(quoted(name), {"misfit": count}, "null", {"misfit": tuple(samples)})
            for (name, count), samples in zip(self._misfits.items(), self._samples.values(), strict=True)
        ]
        conflicts = named([*found, *misfits], keys_at)
        _refuse_conflicts(conflicts, self._target)
        return conflicts

    def _cut(self, raw: pa.Table, table: pa.Table) -> tuple[pa.Table, pa.Table]:
        target = self._target
        for name, kind in target.schema.items():
            table = table.set_column(table.column_names.index(name), name, fit(table[name], kind)[0])
        if self._drops:
            sound = pa.array(shape.sound_rows(table))
            raw, table = raw.filter(sound), shape.without_rejected(table.filter(sound))
        if target.columns is not None:
            table = shape.selected(table, target.columns, rows=len(raw), lenient=self._lenient)
        if target.nested == "flatten":
            table = shape.flattened(table)
        return raw, table


def _refuse_conflicts(conflicts: tuple[Conflict, ...], target: ScanSpec) -> None:
    """Raise where values that do not fit were to be an error: keys are in the error, not in its words."""
    refused = [*_refused(conflicts, target)]
    if refused:
        shown = "; ".join(
            f"{conflict.path!r} has "
            + ", ".join(f"{count:,} {kind}" for kind, count in conflict.types.items())
            for conflict in refused[:5]
        )
        more = f"; and {len(refused) - 5} more" if len(refused) > 5 else ""
        raise ConversionError(
            f"values have no common type, or not the declared one: {shown}{more}",
            hint='on_conflict="null" makes nulls of the values that do not fit, and reports them; without '
            'schema=, on_conflict="widen" keeps them as text',
        )


def _refused(conflicts: tuple[Conflict, ...], target: ScanSpec) -> Iterator[Conflict]:
    for conflict in conflicts:
        declared = conflict.action == "null" and target.on_conflict != "null"
        if declared or (target.on_conflict == "raise" and conflict.names is None):
            yield conflict
