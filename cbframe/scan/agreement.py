"""One schema for documents that are read in parts, each part on its own.

The parts are typed on their own, knowing where the others have text, and then brought to the agreed
columns (``unify``, ``widen``). What does not fit is an error, or null and reported where the scan
says ``on_conflict="null"``; it is never left out without a word.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa

from cbframe.arrow.columns import KEY, SEQNO, VBUCKET, KeyForm, formed_key
from cbframe.arrow.documents import kinds as lattice
from cbframe.arrow.documents.kinds import Kind, as_lists
from cbframe.arrow.documents.unify import Columns, ColumnsBuilder, differences, unescaped, unify, widen
from cbframe.errors import ConversionError
from cbframe.json.layout import Column, Policy, is_list
from cbframe.json.typer import OURS, REASON, REST, VALUE, Disagreement, Where, quoted
from cbframe.scan.spec import ScanSpec

KeysAt: TypeAlias = Callable[[Collection[Where]], Mapping[Where, str | bytes]]
"""Gives the keys of the documents at some places."""
_SAMPLES = 3


@dataclass(frozen=True, slots=True)
class Conflict:
    """A field whose values have no common type.

    Attributes
    ----------
    path
        Where in the document: ``total``, ``customer.id``, ``items[].price``; a name that has dots, brackets
        or backquotes itself is in backquotes.
    types
        Kinds of values there, and how many, over all documents.
    action
        What became of the values: ``"text"`` (strings as they are, other scalars as they are
        written), ``"json"`` (JSON text), or ``"null"``: values that do not fit are gone. ``"map"``: there is
        no conflict, but names of objects are data.
    samples
        For each kind the keys of a few documents that have it; not in the ``repr``.
    names
        How many different names the objects have, where names are data: they are a map, or JSON text where
        values have no common type. None elsewhere. Of several partitions the largest number.
    """

    path: str
    types: dict[str, int]
    action: str
    samples: dict[str, tuple[str | bytes, ...]] = field(repr=False)
    names: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as in ``df.attrs``."""
        stored = {
            "path": self.path,
            "types": dict(self.types),
            "action": self.action,
            "samples": {kind: list(keys) for kind, keys in self.samples.items()},
        }
        return stored if self.names is None else stored | {"names": self.names}

    @classmethod
    def of_dict(cls, stored: Mapping[str, Any]) -> Conflict:
        """What :meth:`to_dict` gave."""
        samples = {kind: tuple(keys) for kind, keys in stored["samples"].items()}
        return cls(stored["path"], dict(stored["types"]), stored["action"], samples, stored.get("names"))


def merged(parts: Iterable[Iterable[Conflict]]) -> tuple[Conflict, ...]:
    """What several parts of a bucket tell, as one report: in order of first appearance."""
    found: dict[tuple[str, str], Conflict] = {}
    for conflict in (conflict for part in parts for conflict in part):
        place = conflict.path, conflict.action
        before = found.get(place, Conflict(conflict.path, {}, conflict.action, {}))
        kinds = dict.fromkeys([*before.types, *conflict.types])
        samples = {
            kind: (*before.samples.get(kind, ()), *conflict.samples.get(kind, ()))[:_SAMPLES]
            for kind in kinds
        }
        found[place] = Conflict(
            conflict.path,
            {kind: before.types.get(kind, 0) + conflict.types.get(kind, 0) for kind in kinds},
            conflict.action,
            {kind: keys for kind, keys in samples.items() if keys},
            max(filter(None, (before.names, conflict.names)), default=None),
        )
    return tuple(found.values())


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


_OURS = frozenset({REST, VALUE, REASON})
_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Agreement:
    """What all parts have in common."""

    documents: Columns

    def declared(self, target: ScanSpec) -> ScanSpec:
        """The target of each part.

        Where values that do not fit become null, the agreed types are declared: then it is decided
        value by value. That cannot be done for JSON text, which every value fits.
        """
        if target.on_conflict != "null":
            return target
        json = {place[0] for place in self.documents.json}
        agreed = {
            each.name: each.type
            for each in self.documents.schema
            # A field that begins like our names cannot be declared.
            if each.name not in json and not each.name.startswith(OURS) and not pa.types.is_null(each.type)
        }
        return replace(target, schema={**agreed, **target.schema})


def policy_of(target: ScanSpec, agreement: Agreement | None) -> Policy:
    """What a part does about types: where others have text, its values are text as they are written.

    Not where values that do not fit become null, or an error: there each part says what it has.
    """
    policy = target.policy()
    if agreement is None or target.on_conflict in ("null", "raise"):
        return policy
    known = {
        unescaped(name): lattice.known(kind, nested_as_text=policy.nested_as_text)
        for name, kind in agreement.documents.kinds().items()
        if name not in _OURS and name not in target.schema
    }
    return replace(policy, known={name: facts for name, facts in known.items() if facts is not None})


class Fitter:
    """Brings the typed documents of one part to the agreed columns.

    Where :attr:`looks` says so, :meth:`look` at all tables first. Then :meth:`settle`.
    """

    def __init__(self, agreement: Agreement, target: ScanSpec, schema: pa.Schema, plan: Column) -> None:
        self._target = target
        self._builder = ColumnsBuilder(schema, plan)
        mine = self._builder.columns().schema.names
        self._order = agreement.documents.schema.names
        # Not a part of the agreement, where the scan leaves them out in any case.
        unseen: set[str] = set()
        if target.errors == "drop":
            unseen |= {VALUE, REASON}
        if target.columns is not None:
            unseen |= _OURS - {path[0] for path in target.columns}
        self._free = [name for name in (VALUE, REASON) if name in unseen and name in mine]
        apart = unseen | set(target.schema)
        self._wide = agreement.documents.select(name for name in self._order if name not in apart)
        self._mine = [name for name in mine if name not in apart]
        self._narrow = self._builder.columns().select(self._mine)
        self._declared = {
            each.name: each.type
            for each in agreement.documents.schema
            if each.name in target.schema and each.type.equals(target.schema[each.name])
        }
        self._values: Counter[str] = Counter()
        self._unexpected: Counter[str] = Counter()
        self._misfits: list[str] = []
        wide, have = self._wide.kinds(), self._narrow.kinds()
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
        wide, both = self._wide.kinds(), together.kinds()
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
        """Where other parts made text of what is none here, there is no common type."""
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
            hint="partitions(..., sample_rows=None) looks at all documents, schema={...} declares types, "
            "columns=[...] chooses fields",
        )

    def conflicts(self, own: Iterable[Conflict]) -> tuple[Conflict, ...]:
        """What there is to say, besides of the part's own conflicts.

        Fields of which the agreed schema does not know were left out. And values that are of one kind here
        were made text, where they are of other kinds in other parts.
        """
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
        """The agreed columns; a table without columns does not know its rows."""
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
    """Values that are neither text here nor in an object or an array that becomes JSON text as a whole.

    The path, what becomes of them, their kind, and how many there are. Objects become JSON text for other
    reasons, too, such as many different members: nothing is said of those.
    """
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


_SCALARS = {
    "boolean": pa.types.is_boolean,
    "integer": pa.types.is_integer,
    "double": pa.types.is_floating,
    "string": pa.types.is_string,
}


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
