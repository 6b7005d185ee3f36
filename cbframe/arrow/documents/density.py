"""How many objects, names and members there are, where the names of objects may be data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cbframe.arrow.documents.chunks import Batch, Chunk
from cbframe.arrow.documents.facts import Facts, load
from cbframe.arrow.documents.parse import as_lists
from cbframe.arrow.documents.plan import Place, Plan
from cbframe.json import reference

_SAMPLE = 256
_NAMES = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


@dataclass(slots=True)
class Width:
    """Of the objects of one place.

    Attributes
    ----------
    objects
        How many there are.
    members
        How many members they have together.
    names
        The names of these.
    exact
        Members that are null were counted, too.
    """

    objects: int = 0
    members: int = 0
    names: set[str] = field(default_factory=set)
    exact: bool = True

    def merge(self, other: Width) -> None:
        """Add others of the same place."""
        self.objects += other.objects
        self.members += other.members
        self.names |= other.names

    def are_data(self, max_members: int) -> bool:
        """Whether the names are data."""
        return reference.names_are_data(self.objects, len(self.names), self.members, max_members)


Widths = dict[Place, Width]


def merge(widths: Widths, more: Mapping[Place, Width]) -> None:
    """Add those of more documents."""
    for place, width in more.items():
        widths.setdefault(place, Width()).merge(width)


def matters(plan: Plan) -> bool:
    """Whether there are so many names anywhere that they may be data."""
    if plan.data or plan.held or len(plan.members) > reference.MANY_NAMES:
        return True
    return any(map(matters, plan.members.values())) or (plan.item is not None and matters(plan.item))


def widths_of(batch: Batch, plan: Plan) -> Widths:
    """Of a batch that is converted, where it matters.

    Parameters
    ----------
    plan
        To which all chunks can be promoted.
    """
    found: Widths = {}
    wide = {name: member for name, member in plan.members.items() if matters(member)}
    for chunk in batch.chunks if wide else ():
        for name in wide.keys() & chunk.columns.keys():
            for place, width in _widths(chunk.columns[name], wide[name], (name,)):
                merge(found, {place: width})
                if not width.exact and _seems_rare(width):
                    found[place].members += _nulls(batch, chunk, place, width)
    return found


def _widths(array: pa.Array, plan: Plan, place: Place) -> Iterator[tuple[Place, Width]]:
    """Of a column; of the members of structs those that are not null."""
    if array.null_count == len(array):
        return
    if plan.held:
        yield from _inside([load(text.encode()) for text in array.drop_null().to_pylist()], place)
    elif plan.data and plan.item is None:
        # As JSON text other values fit, too.
        names = [_NAMES(text) for text in array.drop_null().to_pylist() if text.startswith("{")]
        yield place, Width(len(names), sum(map(len, names)), set().union(*names))
    elif plan.how == "map" and plan.item is not None:
        values = as_lists(array).flatten()
        keys = values.field(0)
        yield place, Width(len(array) - array.null_count, len(keys), set(pc.unique(keys).to_pylist()))
        if matters(plan.item):
            yield from _widths(values.field(1), plan.item, (*place, None))
    elif plan.item is not None and pa.types.is_list(array.type):
        yield from _widths(array.flatten(), plan.item, (*place, None))
    elif plan.members and pa.types.is_struct(array.type):
        members = dict(zip((each.name for each in array.type), array.flatten(), strict=True))
        if len(plan.members) > reference.MANY_NAMES:
            present = sum(len(member) - member.null_count for member in members.values())
            yield place, Width(len(array) - array.null_count, present, set(plan.members), exact=False)
        for name, inner in plan.members.items():
            if name in members and matters(inner):
                yield from _widths(members[name], inner, (*place, name))


def _inside(values: list[Any], place: Place) -> Iterator[tuple[Place, Width]]:
    """Of values that are text only because there are too many fields."""
    objects = [value for value in values if isinstance(value, dict)]
    names = set[str]().union(*objects)
    if objects:
        yield place, Width(len(objects), sum(map(len, objects)), names)
    for name in names:
        yield from _inside([each[name] for each in objects if name in each], (*place, name))
    items = [item for value in values if isinstance(value, list) for item in value]
    if items:
        yield from _inside(items, (*place, None))


def _seems_rare(width: Width) -> bool:
    return width.members * reference.RARE < width.objects * len(width.names)


def _nulls(batch: Batch, chunk: Chunk, place: Place, width: Width) -> int:
    """How many members are null: in columns they look as if they were missing."""
    documents = batch.documents(chunk.start, chunk.stop).to_pylist()
    return sum(len(each) for each in _objects(map(load, documents), place)) - width.members


def _objects(documents: Iterable[Any], place: Sequence[str | None]) -> Iterator[dict[str, Any]]:
    """The objects that documents have at a place."""
    level = list(documents)
    for name in place:
        inside: list[Any] = []
        for value in level:
            if name is not None:
                inside.append(value.get(name) if isinstance(value, dict) else None)
            elif isinstance(value, dict | list):
                inside += value.values() if isinstance(value, dict) else value
        level = inside
    return (value for value in level if isinstance(value, dict))


def guess(columns: Mapping[str, Facts], batch: Batch, max_members: int) -> None:
    """Take names for data where a sample of a batch says so; that is decided in the end (:func:`settle`)."""
    wide = [each for name, facts in columns.items() for each in _wide(facts, (name,))]
    if not wide:
        return
    rows = np.unique(np.linspace(0, len(batch) - 1, _SAMPLE).astype(np.int64))
    documents = batch.documents(0, len(batch)).take(pa.array(rows))
    loaded = [load(document) for document in documents.to_pylist()]
    scale = len(batch) / len(rows)
    for place, facts in wide:
        facts.sampled = len(facts.fields or ())
        objects = list(_objects(loaded, place))
        names = set(facts.fields or ()).union(*objects)
        members = sum(map(len, objects))
        if reference.names_are_data(int(len(objects) * scale), len(names), int(members * scale), max_members):
            facts.to_map(max_members)


def _wide(facts: Facts, place: Place) -> Iterator[tuple[Place, Facts]]:
    """Objects of many names, twice as many as when they were last looked at."""
    fields = facts.fields or {}
    if len(fields) > max(reference.MANY_NAMES, 2 * facts.sampled) and facts.keep is None:
        yield place, facts
    for name, member in fields.items():
        yield from _wide(member, (*place, name))
    for inner in (facts.item, facts.values):
        if inner is not None:
            yield from _wide(inner, (*place, None))


def keep(columns: Mapping[str, Facts], maps: Iterable[Place], max_members: int) -> None:
    """Take names for data in some places, in any case."""
    for place in maps:
        facts = _at(columns, place)
        if facts is not None and facts.fields is not None and facts.keep is None and not facts.opaque:
            facts.keep = "map"
            if facts.values is None:
                facts.to_map(max_members)


def settle(columns: Mapping[str, Facts], widths: Mapping[Place, Width], max_members: int) -> bool:
    """Decide where names are data, by the counts of all documents; whether anything is different now."""
    different = False
    for place in sorted(widths, key=len):
        facts = _at(columns, place)
        if facts is None or facts.keep is not None or facts.opaque:
            continue
        data = widths[place].are_data(max_members)
        facts.keep = "map" if data else "struct"
        if data != (facts.values is not None):
            facts.to_map(max_members) if data else facts.to_struct()
            different = True
    return different


def _at(columns: Mapping[str, Facts], place: Place) -> Facts | None:
    """The facts of a place; None where what it is in has changed since."""
    facts = columns.get(str(place[0]))
    for name in place[1:]:
        if facts is None:
            return None
        facts = facts.item or facts.values if name is None else (facts.fields or {}).get(name)
    return facts
