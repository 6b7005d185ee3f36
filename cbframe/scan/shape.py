"""From typed documents to the columns that were asked for: agreed, declared, selected, flattened.

Each part of a scan that is read in partitions is typed on its own, knowing where the others have text, and
then brought to the agreed columns (:class:`Fitter`). What does not fit is an error, or null and reported
where the scan says ``on_conflict="null"``; it is never left out without a word.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import TypeAlias

import numpy as np
import pyarrow as pa

from cbframe.arrow import column_types as lattice
from cbframe.arrow.column_types import Columns, ColumnsBuilder, Kind, differences, rendered, unify, widen
from cbframe.arrow.columns import KEY, SEQNO, VBUCKET, KeyForm, formed_key
from cbframe.arrow.declared_types import Dates, fit
from cbframe.arrow.filters import unknown
from cbframe.errors import ConfigurationError, ConversionError
from cbframe.json.arrays import as_lists, is_list, member_of
from cbframe.json.layout import Column, OnConflict, Path, Policy
from cbframe.json.typer import OURS, REASON, REST, VALUE, Disagreement, Where, field_name, quoted
from cbframe.scan.result import Conflict
from cbframe.scan.spec import ScanSpec

KeysAt: TypeAlias = Callable[[Collection[Where]], Mapping[Where, str | bytes]]
"""Gives the keys of the documents at some places."""
_SAMPLES = 3
"""Places that are kept of the values of a field that do not fit."""
_SHOWN = 5
"""Fields that an error names."""
_SCALARS = {
    "boolean": pa.types.is_boolean,
    "integer": pa.types.is_integer,
    "double": pa.types.is_floating,
    "string": pa.types.is_string,
}
_OURS = frozenset({REST, VALUE, REASON})


# --- the agreed columns of partitions


def declared(target: ScanSpec, agreed: Columns) -> ScanSpec:
    """The scan of each part."""
    if target.on_conflict != "null":
        return target
    # Where values that do not fit become null, the agreed types are declared: then it is decided value by
    # value. That cannot be done for JSON text, which every value fits.
    json = {place[0] for place, kind in agreed.walk() if kind.json}
    types = {
        each.name: each.type
        for each in agreed.schema
        # A field that begins like our names cannot be declared.
        if each.name not in json and not each.name.startswith(OURS) and not pa.types.is_null(each.type)
    }
    return replace(target, schema={**types, **target.schema})


def policy_of(target: ScanSpec, agreed: Columns | None) -> Policy:
    """What a part does about types: where others have text, its values are text as they are written."""
    policy = target.policy()
    # Where values that do not fit become null, or an error, each part says what it has.
    if agreed is None or target.on_conflict in ("null", "raise"):
        return policy
    known = {
        field_name(name): lattice.known(kind, nested_as_text=policy.nested_as_text)
        for name, kind in agreed.kinds.items()
        if name not in _OURS and name not in target.schema
    }
    # Which text is JSON is agreed.
    on_conflict: OnConflict = "widen" if policy.on_conflict == "json" else policy.on_conflict
    facts = {name: each for name, each in known.items() if each is not None}
    return replace(policy, on_conflict=on_conflict, known=facts)


class Fitter:
    """Brings the typed documents of one part to the agreed columns.

    :meth:`look` at all tables first where :attr:`looks` says so; then :meth:`settle`.
    """

    def __init__(self, agreed: Columns, target: ScanSpec, schema: pa.Schema, plan: Column) -> None:
        self._target = target
        self._builder = ColumnsBuilder(schema, plan)
        mine = self._builder.columns().schema.names
        self._order = agreed.schema.names
        # Not a part of the agreement, where the scan leaves them out in any case.
        unseen: set[str] = set()
        if target.errors == "drop":
            unseen |= {VALUE, REASON}
        if target.columns is not None:
            unseen |= _OURS - {path[0] for path in target.columns}
        self._free = [name for name in (VALUE, REASON) if name in unseen and name in mine]
        apart = unseen | set(target.schema)
        self._wide = agreed.select(name for name in self._order if name not in apart)
        self._mine = [name for name in mine if name not in apart]
        self._narrow = self._builder.columns().select(self._mine)
        self._declared = {
            each.name: each.type
            for each in agreed.schema
            if each.name in target.schema and each.type.equals(target.schema[each.name])
        }
        self._values: Counter[str] = Counter()
        self._unexpected: Counter[str] = Counter()
        self._misfits: list[str] = []
        wide, have = self._wide.kinds, self._narrow.kinds
        equal = all(name in wide and have[name].same(wide[name]) for name in self._mine)
        self.looks = bool(self._declared) or not equal
        self._widened = {
            name: (have[name], wide[name])
            for name in self._mine
            if name in wide and not have[name].same(wide[name])
        }
        self._made_text: dict[tuple[str, str], Counter[str]] = {}

    def look(self, table: pa.Table) -> None:
        """Take in one more table."""
        if not self.looks:
            return
        self._builder.look(table)
        for name in self._mine:
            self._values[name] += len(table) - table[name].null_count
        for name, (have, wide) in self._widened.items():
            for chunk in table[name].chunks:
                for path, action, kind, count in _made_text(chunk, have, wide, quoted(name)):
                    self._made_text.setdefault((path, action), Counter())[kind] += count
        for name, kind in self._declared.items():
            for chunk in table[name].chunks:
                for path, count in _unexpected(chunk, kind, quoted(name)):
                    self._unexpected[path] += count

    def settle(self) -> None:
        """All tables were looked at."""
        if not self.looks:
            return
        self._narrow = self._builder.columns().select(self._mine)
        together = unify([self._wide, self._narrow], max_members=self._target.max_struct_fields)
        wide, both = self._wide.kinds, together.kinds
        self._misfits = [
            name
            for name in self._mine
            if self._values[name] and (name not in wide or not wide[name].same(both[name]))
        ]
        if self._target.on_conflict == "raise":
            self._refuse_text()
        void = {name for name in self._misfits if name not in wide or pa.types.is_null(wide[name].type)}
        if self._misfits and (self._target.on_conflict != "null" or void != set(self._misfits)):
            raise self._refusal(together)
        self._unexpected.update({quoted(name): self._values[name] for name in self._misfits})

    def _refuse_text(self) -> None:
        # Where other parts made text of what is none here, there is no common type.
        mixed = [
            f"{path!r} is {before} here and {after} in other partitions"
            for path, before, after in differences(self._narrow, self._wide)
            if before not in (None, "null", "string") and after in ("string", "JSON text")
        ]
        if mixed:
            raise ConversionError(
                f"values have no common type: {'; '.join(mixed[:_SHOWN])}",
                hint='on_conflict="widen" makes text of them',
            )

    def _refusal(self, together: Columns) -> ConversionError:
        problems = [
            f"{path!r} ({after}) is not in it"
            if before is None
            else f"{path!r} is {before} there and has to be {after}"
            for path, before, after in differences(self._wide, together)
            if after is not None
        ]
        more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        return ConversionError(
            f"documents do not fit the agreed schema: {'; '.join(problems[:_SHOWN])}{more}",
            hint="sample_rows=None looks at all documents, schema={...} declares types, columns=[...] "
            'chooses fields, on_conflict="null" has null there',
        )

    def conflicts(self, own: Iterable[Conflict]) -> tuple[Conflict, ...]:
        """What there is to report besides the part's own conflicts."""
        # Fields that the agreed schema does not have were left out. And values that are of one kind here
        # were made text, where they are of other kinds in other parts.
        known = {conflict.path for conflict in own}
        return (
            *(
                Conflict(path, {"unexpected": count}, "null", {})
                for path, count in self._unexpected.items()
                if count
            ),
            *(
                Conflict(path, dict(kinds), action, {})
                for (path, action), kinds in self._made_text.items()
                if path not in known and kinds.total()
            ),
        )

    def apply(self, table: pa.Table, rows: int) -> pa.Table:
        """The agreed columns."""
        # A table without columns does not know its rows.
        if not table.num_columns:
            table = _without_columns(rows)
        names = self._wide.schema.names
        fits = [name for name in self._mine if name in names and name not in self._misfits]
        wide = widen(table.select(fits), self._narrow.select(fits), self._wide)
        columns = {
            name: wide[name] if name in names else table[name]
            for name in [*self._order, *self._free]
            if name in names or name in self._target.schema or name in self._free
        }
        return pa.table(columns) if columns else _without_columns(rows)


def _without_columns(rows: int) -> pa.Table:
    # Nothing but select() leaves rows without columns.
    return pa.table({"": pa.nulls(rows)}).select([])


def _made_text(array: pa.Array, have: Kind, wide: Kind, path: str) -> Iterator[tuple[str, str, str, int]]:
    """Path, action, kind and number of values that become text for the sake of other parts."""
    # Not those in an object or an array that becomes JSON text as a whole: that has other reasons, too, such
    # as many different members.
    if have.same(wide):
        return
    if have.members and wide.members:
        for member, values in zip(array.type, array.flatten(), strict=True):
            if member.name in wide.members:
                inner = have.members[member.name], wide.members[member.name]
                yield from _made_text(values, *inner, f"{path}.{quoted(member.name)}")
    elif have.item is not None and wide.item is not None:
        items = as_lists(array).flatten().field(1) if pa.types.is_map(array.type) else array.flatten()
        yield from _made_text(items, have.item, wide.item, f"{path}[]")
    elif pa.types.is_string(wide.type) and not have.json and (kind := _scalar(have.type)) is not None:
        yield path, "json" if wide.json else "text", kind, len(array) - array.null_count


def _scalar(kind: pa.DataType) -> str | None:
    """What values of a column are called in reports; None of objects, arrays, and where there are none."""
    if pa.types.is_decimal(kind):
        return "double" if kind.scale else "integer"
    return next((name for name, is_it in _SCALARS.items() if is_it(kind)), None)


def _unexpected(array: pa.Array, kind: pa.DataType, path: str) -> Iterator[tuple[str, int]]:
    """Members of objects that a type does not have, and how many values they have."""
    if pa.types.is_struct(array.type) and pa.types.is_struct(kind):
        for member, values in zip(array.type, array.flatten(), strict=True):
            at = kind.get_field_index(member.name)
            if at < 0:
                yield f"{path}.{quoted(member.name)}", len(values) - values.null_count
            else:
                yield from _unexpected(values, kind.field(at).type, f"{path}.{quoted(member.name)}")
    elif is_list(array.type) and is_list(kind):
        yield from _unexpected(array.flatten(), kind.value_type, f"{path}[]")


# --- the form that was asked for


class Outcome:
    """Gives typed documents the form that was asked for, a table at a time.

    Where :attr:`looks` says so, :meth:`look` at all tables first: their types follow from all of them.
    """

    def __init__(
        self,
        target: ScanSpec,
        rows: int,  # how many documents there are
        rejected: dict[str, int],  # how many of them are no JSON objects, by reason
        fitter: Fitter | None = None,  # brings them to the agreed columns of partitions
        *,
        lenient: bool = False,  # a field that was asked for need not be there
        final: bool = True,  # the tables are handed out, and not unified with others
    ) -> None:
        if rejected and target.errors == "raise":
            kinds = ", ".join(f"{count:,} {reason}" for reason, count in rejected.items())
            raise ConversionError(
                f"{sum(rejected.values()):,} of {rows:,} values are no JSON objects: {kinds}",
                hint=f'errors="keep" puts them into the column {VALUE}, errors="drop" leaves them out',
            )
        self._target = target
        self._fitter = fitter
        self._final = final
        # Where there is no document, no name can be wrong.
        self._lenient = lenient or not rows
        self._drops = bool(rejected) and target.errors == "drop"
        self._dates: Dates | None = None
        if target.parse_dates:
            named = target.parse_dates if isinstance(target.parse_dates, tuple) else None
            self._dates = Dates(named, lenient=self._lenient)
        self._misfits: Counter[str] = Counter()
        self._samples: dict[str, list[Where]] = {}
        fits = fitter is not None and fitter.looks
        self.looks = bool(target.schema) or self._dates is not None or fits

    def look(self, raw: pa.Table, table: pa.Table) -> None:
        """Take in one more table."""
        for column, kind in self._target.schema.items():
            _, misfits = fit(table[column], kind)
            if len(misfits):
                self._misfits[column] += len(misfits)
                vbucket, seqno = raw[VBUCKET].to_numpy()[misfits], raw[SEQNO].to_numpy()[misfits]
                first = np.lexsort((seqno, vbucket))[:_SAMPLES]
                samples = self._samples.get(column, []) + [(int(vbucket[at]), int(seqno[at])) for at in first]
                self._samples[column] = sorted(samples)[:_SAMPLES]
        if self._dates is not None:
            self._dates.look(self._cut(raw, table)[1])
        if self._fitter is not None:
            self._fitter.look(table)

    def conflicts(self, found: Iterable[Disagreement], keys_at: KeysAt) -> tuple[Conflict, ...]:
        """All tables were looked at: fields whose values had no common type, or not the declared one."""
        misfits = [
            Disagreement(quoted(name), {"misfit": count}, "null", {"misfit": tuple(self._samples[name])})
            for name, count in self._misfits.items()
        ]
        conflicts = named([*found, *misfits], keys_at)
        self._refuse(conflicts)
        if self._fitter is None:
            return conflicts
        self._fitter.settle()
        return (*conflicts, *self._fitter.conflicts(conflicts))

    def _refuse(self, conflicts: Iterable[Conflict]) -> None:
        """Raise where values that do not fit were to be an error: keys are in the error, not in its words."""
        on_conflict = self._target.on_conflict
        refused = [
            each
            for each in conflicts
            if (each.action == "null" and on_conflict != "null")
            or (on_conflict == "raise" and each.names is None)
        ]
        if refused:
            shown = "; ".join(
                f"{conflict.path!r} has "
                + ", ".join(f"{count:,} {kind}" for kind, count in conflict.types.items())
                for conflict in refused[:_SHOWN]
            )
            more = f"; and {len(refused) - _SHOWN} more" if len(refused) > _SHOWN else ""
            raise ConversionError(
                f"values have no common type, or not the declared one: {shown}{more}",
                hint='on_conflict="null" makes nulls of the values that do not fit, and reports them; '
                'without schema=, on_conflict="widen" keeps them as text',
            )

    def form(self, raw: pa.Table, table: pa.Table) -> tuple[pa.Table, pa.Table]:
        """The rows that were asked for: their metadata, and their fields."""
        if self._fitter is not None:
            table = self._fitter.apply(table, len(raw))
        raw, table = self._cut(raw, table)
        if self._dates is not None:
            table = self._dates.apply(table)
        return raw, rendered(table, self._target.schema) if self._final else table

    def _cut(self, raw: pa.Table, table: pa.Table) -> tuple[pa.Table, pa.Table]:
        target = self._target
        for name, kind in target.schema.items():
            table = table.set_column(table.column_names.index(name), name, fit(table[name], kind)[0])
        if self._drops:
            sound = pa.array(np.asarray(table[VALUE].is_null()))
            ours = [name for name in (VALUE, REASON) if name in table.column_names]
            raw, table = raw.filter(sound), table.filter(sound).drop_columns(ours)
        if target.columns is not None:
            table = selected(table, target.columns, rows=len(raw), lenient=self._lenient)
        if target.nested == "flatten":
            table = flattened(table)
        return raw, table


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
            raise unknown("columns", path)
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
    """The name of a field's column: ``parent.child``, and a ``_`` after it if it begins as ours do."""
    name = ".".join(path)
    return name + "_" if name.startswith(OURS) and name not in (VALUE, REASON) else name


def flattened(table: pa.Table) -> pa.Table:
    """Each field of a struct as a column of its own, named ``parent.child``; lists and maps stay as they are.

    A name that a column has already gets a ``_`` after it.
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


# --- reports


def named(found: Iterable[Disagreement], keys_at: KeysAt) -> tuple[Conflict, ...]:
    """What there is to say, with keys in place of where documents stand."""
    found = list(found)
    keys = keys_at({where for each in found for some in each.samples.values() for where in some})
    return tuple(
        Conflict(
            each.path,
            each.types,
            each.action,
            {kind: tuple(keys[where] for where in some) for kind, some in each.samples.items()},
            each.names,
        )
        for each in found
    )


def keys_at(
    tables: Iterable[pa.Table], places: Collection[Where], form: KeyForm | None
) -> dict[Where, str | bytes]:
    """The keys of the rows at some places; in their own form, if none is asked for."""
    found: dict[Where, str | bytes] = {}
    wanted = set(places)
    seqnos = np.array([seqno for _, seqno in wanted], np.uint64)
    for table in tables if wanted else ():
        seqno = table[SEQNO].to_numpy()
        for row in np.flatnonzero(np.isin(seqno, seqnos)).tolist():
            where = table[VBUCKET][row].as_py(), int(seqno[row])
            if where in wanted:
                key = table[KEY][row].as_py()
                found[where] = key if form is None else formed_key(key, form)
    return found
