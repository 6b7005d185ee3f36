"""A typed table on the way out: rows that are no documents, columns inside of columns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cbframe.arrow.columns import SEQNO, VBUCKET
from cbframe.arrow.documents.fit import Dates, fit
from cbframe.arrow.documents.kinds import member_of
from cbframe.arrow.documents.written import rendered
from cbframe.errors import ConfigurationError, ConversionError
from cbframe.json.layout import Path
from cbframe.json.typer import OURS, REASON, VALUE, Disagreement, Where, quoted
from cbframe.scan.agreement import Conflict, KeysAt, named
from cbframe.scan.spec import ScanSpec


def refuse_rejected(rejected: dict[str, int], rows: int) -> None:
    """Raise where any value is no JSON object."""
    if rejected:
        kinds = ", ".join(f"{count:,} {reason}" for reason, count in rejected.items())
        raise ConversionError(
            f"{sum(rejected.values()):,} of {rows:,} values are no JSON objects: {kinds}",
            hint=f'errors="keep" puts them into the column {VALUE}, errors="drop" leaves them out',
        )


def sound_rows(table: pa.Table) -> npt.NDArray[np.bool_]:
    """Which rows are documents."""
    sound: npt.NDArray[np.bool_] = np.asarray(table[VALUE].is_null())
    return sound


def without_rejected(table: pa.Table) -> pa.Table:
    """The documents, without the columns for what is none."""
    return table.drop_columns([name for name in (VALUE, REASON) if name in table.column_names])


def cast_to(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The columns of a schema that somebody else declared, metadata among them."""
    try:
        return table.select(schema.names).cast(schema)
    except (pa.ArrowException, ValueError):
        wrong = next((each for each in schema if not _holds(each, table[each.name])), schema.field(0))
    # Not from the other error: that one tells of keys and values.
    raise ConversionError(
        f"column {wrong.name!r} is {table[wrong.name].type}, and has values for which there is no place in "
        f"the declared {wrong.type}{'' if wrong.nullable else ' not null'}",
        hint="declare a type that holds all values, and NOT NULL only what every row has",
    )


def _holds(declared: pa.Field, column: pa.ChunkedArray) -> bool:
    try:
        cast = column.cast(declared.type)
    except pa.ArrowException:
        return False
    return bool(declared.nullable or not cast.null_count)


def selected(table: pa.Table, paths: Iterable[Path], *, rows: int, lenient: bool = False) -> pa.Table:
    """The columns that were asked for: fields by their path, named as :func:`joined` does it."""
    columns: dict[str, pa.ChunkedArray] = {}
    for path in paths:
        name, members = joined(path[:1]), path[1:]
        column = table[name] if name in table.column_names else None
        for depth, member in enumerate(members, 1):
            if column is not None and pa.types.is_string(column.type):
                # There may well be documents that have it.
                outer = ".".join(path[:depth])
                raise ConfigurationError(
                    f"columns= names {'.'.join(path)!r}, and {outer!r} is text",
                    hint=f"leave {outer!r} out of columns=, or read it alone and look into the text",
                )
            column = None if column is None else member_of(column, member)
        if column is None and lenient:
            column = pa.chunked_array([pa.nulls(rows)])
        if column is None:
            raise ConfigurationError(
                f"columns= names {'.'.join(path)!r}, which no document has",
                hint="read without columns= to see the fields, or look with peek()",
            )
        columns[joined(path)] = column
    return pa.table(columns)


def lacking(schema: pa.Schema, path: Path) -> bool:
    """Whether no document has a field, as columns that are not selected tell; of text and maps nobody can."""
    name = joined(path[:1])
    kind = schema.field(name).type if name in schema.names else None
    for member in path[1:]:
        if kind is None or pa.types.is_string(kind) or pa.types.is_map(kind):
            break
        at = kind.get_field_index(member) if pa.types.is_struct(kind) else -1
        kind = None if at < 0 else kind.field(at).type
    return kind is None


def joined(path: Path) -> str:
    """The name of a field's column: ``parent.child``, and a ``_`` behind it if it begins as ours do."""
    name = ".".join(path)
    return name + "_" if name.startswith(OURS) and name not in (VALUE, REASON) else name


def flattened(table: pa.Table) -> pa.Table:
    """Each field of a struct as a column of its own, named ``parent.child``; lists and maps stay as they are.

    A name that a column has already gets a ``_`` behind it.
    """
    columns: dict[str, pa.ChunkedArray] = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        own = name.startswith(OURS) and name.endswith("_")
        for path, leaf in _leaves(name.removesuffix("_") if own else name, column):
            free = path + "_" if own else path
            while free in columns or (free != name and free in table.column_names):
                free += "_"
            columns[free] = leaf
    return pa.table(columns)


def _leaves(name: str, column: pa.ChunkedArray) -> list[tuple[str, pa.ChunkedArray]]:
    # A struct without fields is all that there is of it.
    if not pa.types.is_struct(column.type) or not column.type.num_fields:
        return [(name, column)]
    return [
        leaf
        for field, child in zip(column.type, column.flatten(), strict=True)
        for leaf in _leaves(f"{name}.{field.name}", child)
    ]


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
            refuse_rejected(rejected, rows)
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
            sound = pa.array(sound_rows(table))
            raw, table = raw.filter(sound), without_rejected(table.filter(sound))
        if target.columns is not None:
            table = selected(table, target.columns, rows=len(raw), lenient=self._lenient)
        if target.nested == "flatten":
            table = flattened(table)
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
