"""Columns of files that were typed on their own, as columns of one table.

Typing the documents of all files together would look at them again. The types of the columns tell
nearly as much, by the same lattice (``kinds``), and :func:`~cbframe.arrow.documents.unify.widen`
makes of each file what a reader of all wants. What is different from typing all documents together:

* What a file keeps as numbers, booleans or timestamps is not as it was written: where that becomes
  text, 1.50 is ``1.5``, 1e2 is ``100.0``, -0 is ``0``, and a timestamp is in UTC.
* What a file keeps as objects or arrays has no blanks as JSON text, and no members that are null.
* What a file keeps as text is strings by then: where that becomes JSON text, a number that stood
  among strings is in quotes.
* Integers of more than 38 digits are text in a file, and stay so where all together would be doubles.
* Values without a common type become what ``on_conflict="widen"`` makes of them, whatever it was.
* Columns stand in the order in which they appear first in the files, not in the bucket.
* There is no limit for columns at the top; ``_cb_rest`` has what was beyond the limit in each file.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cbframe.arrow.documents import kinds as lattice
from cbframe.arrow.documents.kinds import Kind, Marks, as_lists, as_map
from cbframe.arrow.documents.written import as_json, as_text, pieces, with_items
from cbframe.errors import ConfigurationError
from cbframe.json.layout import Column, Place, is_list
from cbframe.json.typer import OURS, REASON, REST, VALUE, shown

_LAST = (REST, VALUE, REASON)
"""These are no fields of documents, and stand behind them."""
_LATER = ("digits", "mixed", "lost")
"""Marks that descriptions of earlier versions of this package do not have."""
_MARKS = ("json", "inexact", "negative", "far", *_LATER)


@dataclass(frozen=True, slots=True)
class Columns:
    """What the columns of a file are.

    Places begin with the name of a column, as it is in the schema.
    """

    schema: pa.Schema
    json: frozenset[Place] = frozenset()  # where text is JSON text
    inexact: frozenset[Place] = frozenset()  # where one of the integers or decimals has no exact double
    negative: frozenset[Place] = frozenset()  # where one of the integers is negative
    far: frozenset[Place] = frozenset()  # where one of the timestamps is beyond nanoseconds
    digits: frozenset[Place] = frozenset()  # where text is numbers only, as they are written
    mixed: frozenset[Place] = frozenset()
    lost: frozenset[Place] = frozenset()
    widths: Mapping[Place, tuple[int, int]] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        schema: pa.Schema,
        plan: Column,
        tables: Iterable[pa.Table],
        widths: Mapping[Place, tuple[int, int]] | None = None,
    ) -> Columns:
        """What the columns of some tables are, which a plan made."""
        builder = ColumnsBuilder(schema, plan, widths)
        for table in tables:
            builder.look(table)
        return builder.columns()

    @classmethod
    def of_kinds(cls, kinds: Mapping[str, Kind]) -> Columns:
        """Columns by name."""
        marked: dict[str, set[Place]] = {mark: set() for mark in _MARKS}
        widths: dict[Place, tuple[int, int]] = {}
        for name, kind in kinds.items():
            for place, inner in _walk(kind, (name,)):
                if inner.width is not None:
                    widths[place] = inner.width
                for mark, places in marked.items():
                    if getattr(inner, mark):
                        places.add(place)
        schema = pa.schema([(name, kind.type) for name, kind in kinds.items()])
        return cls(schema, **{mark: frozenset(places) for mark, places in marked.items()}, widths=widths)

    def kinds(self) -> dict[str, Kind]:
        """By name, what each column is."""
        return {each.name: self._kind(each.type, (each.name,)) for each in self.schema}

    def text(self) -> frozenset[Place]:
        """Where values are text."""
        kinds = self.kinds()
        places = (inside for name, kind in kinds.items() for inside in _walk(kind, (name,)))
        return frozenset(place for place, inner in places if lattice.is_text(inner.type))

    def reported(self, paths: Mapping[str, Mapping[str, Iterable[str]]]) -> Columns:
        """The columns with what a read reported of values that have no common type."""
        marked: dict[str, set[Place]] = {mark: set() for mark in _LATER}
        for name, kind in self.kinds().items():
            for place, inner in _walk(kind, (name,)):
                # Where members are columns, "geo.lat" is the name of one.
                inside = shown((unescaped(name), *place[1:])), f"{name}{shown((None, *place[1:]))[2:]}"
                found = (item for path in dict.fromkeys(inside) for item in paths.get(path, {}).items())
                for action, families in found:
                    if action == "null":
                        marked["lost"].add(place)
                        if not families:
                            # Of a declared type: values inside of it may be null, too.
                            marked["lost"].update(within for within, _ in _walk(inner, place))
                    elif action == "text" and lattice.is_text(inner.type):
                        marked["digits" if {*families} == {"number"} else "mixed"].add(place)
        digits, mixed, lost = (frozenset(marked[mark]) for mark in _LATER)
        return replace(self, digits=digits, mixed=mixed, lost=lost)

    def select(self, names: Iterable[str]) -> Columns:
        """Some of the columns, in that order."""
        kinds = self.kinds()
        return Columns.of_kinds({name: kinds[name] for name in names})

    def to_dict(self) -> dict[str, Any]:
        """What JSON can hold: the schema as Arrow's own message in base64, places as lists."""
        message = self.schema.serialize().to_pybytes()
        places = {mark: sorted(map(list, getattr(self, mark)), key=repr) for mark in _MARKS}
        found: dict[str, Any] = {"schema": base64.b64encode(message).decode(), **places}
        if self.widths:
            found["widths"] = [[list(place), *self.widths[place]] for place in sorted(self.widths, key=repr)]
        return found

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Columns:
        """The columns of which :meth:`to_dict` made this."""
        try:
            message = base64.b64decode(fields["schema"], validate=True)
            schema = pa.ipc.read_schema(pa.py_buffer(message))
            later = all(mark in fields for mark in _LATER)
            marks = _MARKS if later else _MARKS[: -len(_LATER)]
            places = {mark: frozenset(_place(place) for place in fields[mark]) for mark in marks}
            widths = {
                _place(place): (int(objects), int(members))
                for place, objects, members in fields.get("widths", ())
            }
        except (KeyError, TypeError, ValueError, OSError, binascii.Error, pa.ArrowException) as exc:
            raise _broken(f"{type(exc).__name__}: {exc}") from exc
        columns = cls(schema, **places, widths=widths)
        if not later:
            # Nothing is known of how text came to be.
            columns = replace(columns, mixed=columns.text())
        if len(set(schema.names)) < len(schema.names):
            raise _broken("two columns have one name")
        kinds = columns.kinds()
        misplaced = any(
            lattice.misplaced(inner) for name, kind in kinds.items() for _, inner in _walk(kind, (name,))
        )
        if misplaced or Columns.of_kinds(kinds) != columns:
            raise _broken("a mark is where it cannot be")
        return columns

    def _kind(self, kind: pa.DataType, place: Place) -> Kind:
        lost = place in self.lost
        if pa.types.is_struct(kind):
            members = {m.name: self._kind(m.type, (*place, m.name)) for m in kind}
            return Kind(kind, lost=lost, members=members, width=self.widths.get(place))
        if is_list(kind):
            return Kind(kind, lost=lost, item=self._kind(kind.value_type, (*place, None)))
        if pa.types.is_map(kind):
            return Kind(kind, lost=lost, item=self._kind(kind.item_type, (*place, None)))
        return Kind(
            kind,
            json=place in self.json,
            inexact=place in self.inexact,
            negative=place in self.negative,
            far=place in self.far,
            digits=place in self.digits,
            mixed=place in self.mixed,
            lost=lost,
        )


class ColumnsBuilder:
    """Finds out what columns are, table by table."""

    def __init__(
        self, schema: pa.Schema, plan: Column, widths: Mapping[Place, tuple[int, int]] | None = None
    ) -> None:
        self._fields = [each for each in schema if _is_of_documents(each.name)]
        self._json = frozenset(
            place
            for each in self._fields
            for place in _json(each.type, plan.members.get(unescaped(each.name)), (each.name,))
        )
        if REST in schema.names:
            self._json |= {(REST,)}
        self._marks = Marks()
        self._widths = dict(widths or {})

    def look(self, table: pa.Table) -> None:
        """Take in one more table."""
        for each in self._fields:
            for chunk in table.column(each.name).chunks:
                self._marks.look(chunk, (each.name,))

    def columns(self) -> Columns:
        """What the columns are, now that all tables are looked at."""
        marks = self._marks
        return Columns(
            pa.schema([(each.name, each.type) for each in self._fields]),
            self._json,
            frozenset(marks.inexact),
            frozenset(marks.negative),
            frozenset(marks.far),
            widths={
                place: self._widths[where]
                for each in self._fields
                for place in _structs(each.type, (each.name,))
                if (where := (unescaped(each.name), *place[1:])) in self._widths
            },
        )


def unify(many: Sequence[Columns], *, max_members: int = 1000) -> Columns:
    """What holds the columns of all.

    Columns, and members of structs, are in order of first appearance: those of the first that has
    them first. Those that are null in all come last, by name. Then ``_cb_rest``, ``_cb_value`` and
    ``_cb_reason``. Apart from that the order of `many` does not matter.
    """
    every = lattice.members((columns.kinds() for columns in many), max_members)
    kinds = {name: kind for name, kind in every.items() if name not in _LAST}
    _hold(kinds, max_members)
    return Columns.of_kinds(kinds | {name: every[name] for name in _LAST if name in every})


class Difference(NamedTuple):
    """Where two schemas differ: ``items[].price``, and the types there; None where there is no such field."""

    path: str
    before: str | None
    after: str | None


def differences(narrow: Columns, wide: Columns) -> list[Difference]:
    """What is not the same in both, in the order of `wide`: as far inside as both are structs, or lists."""
    before, after = narrow.kinds(), wide.kinds()
    names = dict.fromkeys([*after, *before])
    return [each for name in names for each in _differences(before.get(name), after.get(name), (name,))]


def _differences(before: Kind | None, after: Kind | None, place: Place) -> Iterator[Difference]:
    if before is None or after is None:
        yield Difference(shown(place), _told(before), _told(after))
    elif pa.types.is_struct(before.type) and pa.types.is_struct(after.type):
        for name in dict.fromkeys([*after.members, *before.members]):
            yield from _differences(before.members.get(name), after.members.get(name), (*place, name))
    elif before.item is not None and after.item is not None and type(before.type) is type(after.type):
        yield from _differences(before.item, after.item, (*place, None))
    elif not before.same(after):
        yield Difference(shown(place), _told(before), _told(after))


def _told(kind: Kind | None) -> str | None:
    if kind is None:
        return None
    return "JSON text" if kind.json else str(kind.type)


def _hold(kinds: dict[str, Kind], max_members: int) -> None:
    """Make JSON text of the columns with most fields inside, as a plan of all documents would."""
    sizes = {name: kind.nested() for name, kind in kinds.items()}
    total = sum(sizes.values())
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        if total <= max_members:
            break
        kinds[name] = lattice.as_json(kinds[name])
        total -= sizes[name]


def _walk(kind: Kind, place: Place) -> Iterator[tuple[Place, Kind]]:
    yield place, kind
    for name, member in kind.members.items():
        yield from _walk(member, (*place, name))
    if kind.item is not None:
        yield from _walk(kind.item, (*place, None))


def _json(kind: pa.DataType, plan: Column | None, place: Place) -> Iterator[Place]:
    """Where a column is JSON text."""
    if plan is None:
        return
    if pa.types.is_string(kind) and plan.how == "json":
        yield place
    elif pa.types.is_struct(kind):
        for member in kind:
            yield from _json(member.type, plan.members.get(member.name), (*place, member.name))
    elif is_list(kind):
        yield from _json(kind.value_type, plan.item, (*place, None))
    elif pa.types.is_map(kind):
        yield from _json(kind.item_type, plan.item, (*place, None))


def _structs(kind: pa.DataType, place: Place) -> Iterator[Place]:
    """Where there are structs."""
    if pa.types.is_struct(kind):
        yield place
        for member in kind:
            yield from _structs(member.type, (*place, member.name))
    elif is_list(kind) or pa.types.is_map(kind):
        yield from _structs(kind.value_type if is_list(kind) else kind.item_type, (*place, None))


def _is_of_documents(name: str) -> bool:
    return name in _LAST or not name.startswith(OURS) or name.endswith("_")


def unescaped(name: str) -> str:
    """The field that became a column: names that begin like ours have one more ``_``."""
    return name[:-1] if name.startswith(OURS) else name


def _place(place: Any) -> Place:
    if not isinstance(place, list) or not all(name is None or isinstance(name, str) for name in place):
        raise TypeError(f"{place!r} is no place")
    return tuple(place)


def _broken(why: str) -> ConfigurationError:
    return ConfigurationError(f"this is no description of columns: {why}")


def widen(table: pa.Table, narrow: Columns, wide: Columns) -> pa.Table:
    """The columns of `wide`, in its order: those that are missing are null, others hold the same values."""
    have = narrow.kinds()
    columns = [
        pa.chunked_array(_cells(table.column(name), have[name], kind), kind.type)
        if name in have
        else pa.chunked_array([pa.nulls(len(table), kind.type)])
        for name, kind in wide.kinds().items()
    ]
    if not columns:
        # Nothing but select() leaves rows without columns.
        return pa.table({"": pa.nulls(len(table))}).select([])
    return pa.Table.from_arrays(columns, schema=wide.schema)


def _cells(column: pa.ChunkedArray, have: Kind, want: Kind) -> Iterator[pa.Array]:
    same = have.same(want)
    for chunk in column.chunks:
        array = _restored(chunk, have.type)
        if same:
            yield array
        else:
            for piece in pieces(array):
                yield _widened(piece, have, want)


def _widened(array: pa.Array, have: Kind, want: Kind) -> pa.Array:
    if have.same(want):
        return array
    if array.null_count == len(array):
        return pa.nulls(len(array), want.type)
    if want.json:
        return as_json(array, have)
    if pa.types.is_map(want.type) and want.item is not None:
        return _map(array, have, want.type, want.item)
    if pa.types.is_struct(want.type):
        members = dict(zip(have.members, array.flatten(), strict=True))
        return _struct(
            array,
            want.type,
            [
                _widened(members[name], have.members[name], member)
                if name in members
                else pa.nulls(len(array), member.type)
                for name, member in want.members.items()
            ],
        )
    if want.item is not None and have.item is not None:
        return with_items(array, _widened(array.flatten(), have.item, want.item), want.type)
    if pa.types.is_string(want.type):
        return as_text(array)
    if pa.types.is_dictionary(have.type):
        array = array.cast(have.type.value_type)
    # No integer is inexact here; a safe cast refuses all beyond 2**53.
    return array.cast(want.type, safe=not pa.types.is_floating(want.type))


def _map(array: pa.Array, have: Kind, kind: pa.DataType, item: Kind) -> pa.Array:
    """A map of a map or a struct: members of a struct that are null are not there."""
    if have.item is not None:
        lists = as_lists(array)
        names, values = lists.flatten().flatten()
        lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
        values = _widened(values, have.item, item)
    else:
        rows: list[npt.NDArray[np.int64]] = []
        each: list[pa.Array] = []
        there: list[int] = []
        for at, member in enumerate(array.flatten()):
            valid = member.is_valid()
            rows.append(np.flatnonzero(valid.to_numpy(zero_copy_only=False)))
            there += [at] * len(rows[-1])
            each.append(_widened(member.filter(valid), have.members[array.type.field(at).name], item))
        row = np.concatenate([np.zeros(0, np.int64), *rows])
        order = pa.array(np.argsort(row, kind="stable"))
        names = pa.array([member.name for member in array.type], pa.string()).take(
            pa.array(there, pa.int64()).take(order)
        )
        values = pa.concat_arrays([pa.nulls(0, kind.item_type), *each]).take(order)
        lengths = np.bincount(row, minlength=len(array))
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
    lists = pa.ListArray.from_arrays(offsets, pa.nulls(len(values)), mask=array.is_null())
    return as_map(lists, names, values, kind)


def _struct(array: pa.Array, kind: pa.DataType, members: list[pa.Array]) -> pa.Array:
    mask = array.is_null() if array.null_count else None
    return pa.StructArray.from_arrays(members, fields=list(kind), mask=mask)


def _restored(array: pa.Array, kind: pa.DataType) -> pa.Array:
    """An array as it was before it was in a Parquet file."""
    if array.type.equals(kind):
        return array
    if pa.types.is_null(kind):
        return pa.nulls(len(array))
    if pa.types.is_map(kind) and pa.types.is_map(array.type):
        lists = as_lists(array)
        names, values = (lists.values.field(at) for at in (0, 1))
        return as_map(lists, names, _restored(values, kind.item_type), kind)
    if pa.types.is_struct(kind):
        if not kind.num_fields:
            valid = pc.is_valid(array)
            return pa.Array.from_buffers(kind, len(array), [valid.buffers()[1]], offset=valid.offset)
        members = [_restored(each, member.type) for member, each in zip(kind, array.flatten(), strict=True)]
        return _struct(array, kind, members)
    if is_list(kind):
        return with_items(array, _restored(array.flatten(), kind.value_type), kind)
    return array.cast(kind)
