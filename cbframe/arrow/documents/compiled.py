"""The engine that has documents converted by the compiled core."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from cbframe import core
from cbframe.arrow.documents import density
from cbframe.arrow.documents.chunks import Batch, Chunk
from cbframe.arrow.documents.density import Width
from cbframe.arrow.documents.engine import Engine
from cbframe.arrow.documents.facts import Facts
from cbframe.arrow.documents.plan import Place, Plan, Policy
from cbframe.arrow.documents.rewrite import FAMILIES, Tally
from cbframe.json.reference import MAX_DIGITS

_KINDS = ("boolean", "integer", "double", "string", "array", "object")
_DROPPED = {
    family: sum(1 << number for number, kind in enumerate(_KINDS) if FAMILIES[kind] != family)
    for family in FAMILIES.values()
}
"""Kinds of other families, a bit for each."""
_NAMES = {
    pa.null(): "null",
    pa.bool_(): "bool",
    pa.int64(): "int64",
    pa.uint64(): "uint64",
    pa.decimal128(MAX_DIGITS, 0): "decimal",
    pa.float64(): "double",
    pa.string(): "text",
}
_HOW = {"text": "text", "json": "json", "string": "written"}
_FIELDS, _SOME, _DATA, _NOTHING = range(4)


class CompiledEngine(Engine):
    """An engine whose work for every document is done by the compiled core."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._seen: set[int] = set()
        self._spare: list[tuple[Plan, Any]] = []
        """Converters that no thread uses."""
        super().__init__(*args, **kwargs)

    def attempt(self, batch: Batch, plan: Plan) -> bool:
        """Make one chunk of a batch by a plan: whether nothing in it is new."""
        converter = self._shredded(batch, 0, len(batch), plan)
        if converter.facts().shape() not in self._seen or self.plan is not plan:
            return False  # what was seen may not fit an earlier plan
        batch.chunks = [self._built(converter, 0, len(batch), plan)]
        self._spare.append((plan, converter))
        return True

    def convert(self, batch: Batch, start: int = 0, stop: int | None = None) -> None:
        """Make a chunk of some rows of a batch, and learn what is new in it."""
        stop = len(batch) if stop is None else stop
        if start >= stop or self.wide:
            return
        plan = self.plan
        converter = self._shredded(batch, start, stop, plan)
        facts = converter.facts()
        if facts.shape() not in self._seen:
            self._seen.add(facts.shape())
            if self._take(facts.to_dict(), batch):
                return
        if self.plan.rest != plan.rest:
            converter = self._shredded(batch, start, stop, self.plan)
        batch.chunks.append(self._built(converter, start, stop, self.plan))
        if self.plan is plan:
            self._spare.append((plan, converter))

    def choose(self, counts: Mapping[str, int]) -> None:
        """Of too many names take the most frequent ones."""
        self._seen.clear()
        super().choose(counts)

    def settle(self, widths: Mapping[Place, Width]) -> bool:
        """Decide where names of objects are data; whether the plan is another one now."""
        self._seen.clear()
        return super().settle(widths)

    def narrow(self, counts: Mapping[Place, Mapping[str, int]]) -> bool:
        """Where values have no common type, keep the most frequent family; whether there was such."""
        self._seen.clear()
        return super().narrow(counts)

    def inspect(self, batch: Batch) -> None:
        """Judge each row."""
        self._shredded(batch, 0, len(batch), self.plan)
        batch.inspected = True

    def _shredded(self, batch: Batch, start: int, stop: int, plan: Plan) -> Any:
        made_for: Plan | None = None
        converter: Any = None
        if self._spare:
            made_for, converter = self._spare.pop()
        if made_for is not plan:
            converter = core.compiled().Converter(
                self._policy.max_members, _configuration(plan, root=True), keeps_rest=plan.rest
            )
        values = batch.values[start:stop]
        if not pa.types.is_binary(values.type):
            values = values.cast(pa.binary())
        _, offsets, data = values.buffers()
        bounds = np.frombuffer(offsets, np.int32)[values.offset : values.offset + len(values) + 1]
        octets = np.frombuffer(data, np.uint8) if data is not None and len(data) else np.zeros(0, np.uint8)
        places = batch.places
        verdicts = np.ascontiguousarray(batch.verdicts[start:stop])
        found = converter.shred(
            octets,
            bounds,
            verdicts,
            np.ascontiguousarray(places.vbucket[start:stop]),
            np.ascontiguousarray(places.seqno[start:stop]),
        )
        verdicts = np.frombuffer(found, np.uint8)
        if not np.array_equal(verdicts, batch.verdicts[start:stop]):
            batch.verdicts = batch.verdicts.copy()
            batch.verdicts[start:stop] = verdicts
        if start == 0 and stop == len(batch):
            batch.inspected = True
        return converter

    def _built(self, converter: Any, start: int, stop: int, plan: Plan) -> Chunk:
        layouts = [(name.encode(), _layout(member)) for name, member in plan.members.items()]
        parts = converter.build(layouts)
        columns = {
            name: array_of(member.type, each)
            for (name, member), each in zip(plan.members.items(), parts, strict=True)
        }
        rest = array_of(pa.string(), converter.rest()) if plan.rest else None
        tallies: dict[Place, Tally] = {}
        for place, member in plan.conflicts():
            if member.conflict:
                rows = converter.rows_by_kind([None if name is None else name.encode() for name in place])
                tallies[place] = {
                    kind: np.frombuffer(each, np.uint32).astype(np.int64) for kind, each in rows
                }
        return Chunk(start, stop, plan, columns, rest, tallies)

    def _take(self, found: Mapping[str, Any], batch: Batch) -> bool:
        """Add what was found to the facts; whether there are too many names now."""
        limit = self._policy.max_members
        for name, inner in found["fields"]:
            if "\0" in name:
                self._unnamed = True
                continue
            facts = self._columns.get(name)
            if facts is None:
                if self._rest:
                    continue
                facts = self._columns[name] = Facts()
            _learn(facts, inner, limit)
        density.keep(self._columns, self._policy.maps, limit)
        density.guess(self._columns, batch, limit)
        self._replan()
        return self.wide


def engine(policy: Policy, *, max_depth: int = 200) -> Engine:
    """The engine of the core that runs."""
    return (Engine if core.compiled() is None else CompiledEngine)(policy, max_depth=max_depth)


def _learn(facts: Facts, found: Mapping[str, Any], limit: int) -> None:
    """Add what was found in a batch."""
    counts = found["counts"]
    if facts.only is not None:
        kinds = {kind for kind in counts if FAMILIES[kind] == facts.only}
        facts.others |= len(kinds) < len(counts)
    else:
        kinds = set(counts)
    for kind in ("boolean", "integer", "double", "string"):
        if kind in kinds:
            setattr(facts, kind, True)
    if "integer" in kinds:
        facts.low, facts.high = min(facts.low, found["low"]), max(facts.high, found["high"])
        facts.inexact |= found["inexact"]
        if found["long"]:
            facts.high = max(facts.high, 10**MAX_DIGITS)
    if kinds & {"integer", "double"}:
        facts.beyond |= found["beyond"]
    if "array" in kinds:
        facts.item = facts.item or Facts()
        if not facts.opaque and found["item"] is not None:
            _learn(facts.item, found["item"], limit)
    if "object" in kinds:
        facts.fields = {} if facts.fields is None else facts.fields
        if not facts.opaque:
            _learn_members(facts, found, limit)
    facts._limit(limit)  # noqa: SLF001 - one engine


def _learn_members(facts: Facts, found: Mapping[str, Any], limit: int) -> None:
    if any("\0" in name for name, _ in found["fields"]):
        facts.close()
        return
    if facts.values is None and facts.keep == "map":
        facts.values = Facts()
    if facts.values is None and found["values"] is not None:
        facts.to_map(limit)
    if facts.opaque or facts.fields is None:
        return
    for name, inner in found["fields"]:
        into = facts.values if facts.values is not None else facts.fields.setdefault(name, Facts())
        _learn(into, inner, limit)
    if found["values"] is not None and facts.values is not None:
        _learn(facts.values, found["values"], limit)


def _layout(plan: Plan) -> tuple[str, int, Any]:
    dropped = 0 if plan.only is None else _DROPPED[plan.only]
    if plan.how in _HOW:
        return _HOW[plan.how], dropped, None
    if plan.item is not None:
        return "map" if plan.how == "map" else "list", dropped, _layout(plan.item)
    if pa.types.is_struct(plan.type):
        return "struct", dropped, [(name.encode(), _layout(each)) for name, each in plan.members.items()]
    return _NAMES[plan.type], dropped, None


def _configuration(plan: Plan, *, root: bool = False) -> tuple[int, Any, Any, Any]:
    fields = [(name.encode(), _configuration(member)) for name, member in plan.members.items()]
    item = None if plan.item is None else _configuration(plan.item)
    if root:
        return _SOME if plan.closed else _FIELDS, fields, None, None
    if plan.how == "map":
        return _DATA, [], None, item
    if plan.how in _HOW and not plan.held and not plan.data:
        return _NOTHING, [], None, None
    return _FIELDS, fields, item, None


def array_of(kind: pa.DataType, parts: tuple[int, int, list[Any], list[Any]]) -> pa.Array:
    """An array of what the core has built."""
    length, nulls, buffers, children = parts
    if pa.types.is_null(kind):
        return pa.nulls(length)
    inner: list[pa.Array] | None = None
    if pa.types.is_struct(kind):
        inner = [array_of(member.type, each) for member, each in zip(kind, children, strict=True)]
    elif pa.types.is_map(kind):
        inner = [array_of(pa.struct([kind.key_field, kind.item_field]), children[0])]
    elif pa.types.is_list(kind):
        inner = [array_of(kind.value_type, children[0])]
    held = [None if buffer is None else pa.py_buffer(buffer) for buffer in buffers]
    return pa.Array.from_buffers(kind, length, held, nulls, children=inner)
