"""Documents rewritten for the parser: values that stay text become JSON strings of their source."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import msgspec
import pyarrow as pa

from cbframe.arrow.documents.facts import Family
from cbframe.arrow.documents.plan import Place, Plan

_FIELDS = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_ITEMS = msgspec.json.Decoder(list[msgspec.Raw]).decode
_ENCODE = msgspec.json.Encoder().encode
_OBJECT, _ARRAY, _STRING, _NULL = b'{["n'
_KINDS = {_OBJECT: "object", _ARRAY: "array", _STRING: "string", ord("t"): "boolean", ord("f"): "boolean"}

FAMILIES: dict[str, Family] = {
    "boolean": "boolean",
    "integer": "number",
    "double": "number",
    "string": "string",
    "array": "array",
    "object": "object",
}
Tally = dict[str, list[int]]
"""Rows with a value of each kind, in ascending order."""


def kind_of(source: bytes) -> str:
    """The kind of a sound value by its source text."""
    kind = _KINDS.get(source[0])
    if kind is not None:
        return kind
    return "integer" if source.lstrip(b"-").isdigit() else "double"


@dataclass(slots=True)
class Rewritten:
    """A range of documents, rewritten.

    Attributes
    ----------
    documents
        The documents; those to which nothing had to be done are the same.
    odd
        Rows whose document holds something that the plan does not expect.
    held
        Rows with a value that is text only because there are too many fields.
    tallies
        For each field without a common type, by path, the rows with each kind of value.
    rest
        The members that are no columns as one JSON object a row; null where there are none. None if
        the plan has columns for all.
    """

    documents: pa.Array
    odd: list[int] = field(default_factory=list)
    held: list[int] = field(default_factory=list)
    tallies: dict[Place, Tally] = field(default_factory=dict)
    rest: pa.Array | None = None


def within(tally: Tally, start: int, stop: int) -> Tally:
    """The part of a tally that is about a range of rows, counted from its start."""
    parts = {}
    for kind, rows in tally.items():
        some = rows[bisect_left(rows, start) : bisect_left(rows, stop)]
        if some:
            parts[kind] = [row - start for row in some] if start else some
    return parts


def count_names(documents: pa.Array, counts: Counter[str]) -> None:
    """Count the documents that have a value for each name."""
    for document in documents.to_pylist():
        counts.update(name for name, raw in _FIELDS(document).items() if bytes(raw) != b"null")


def rewrite(documents: pa.Array, plan: Plan) -> Rewritten:
    """Rewrite sound documents, one by one: about a microsecond each."""
    done = Rewritten(documents)
    if not plan.rewrites and not plan.rest:
        return done
    writer = _Writer(done)
    work = [(name, member, (name,)) for name, member in plan.members.items() if member.rewrites]
    sources = documents.to_pylist()
    rest: list[bytes | None] = []
    for row, source in enumerate(sources):
        writer.row = row
        fields = _FIELDS(source)
        changed = False
        if plan.rest:
            more = {name: fields.pop(name) for name in list(fields) if name not in plan.members}
            rest.append(_ENCODE(more) if more else None)
            changed = bool(more)
        if writer.members(fields, work) or changed:
            sources[row] = _ENCODE(fields)
    done.documents = pa.array(sources, documents.type)
    if plan.rest:
        done.rest = pa.array(rest, pa.binary()).cast(pa.string())
    return done


_Work = Iterable[tuple[str, Plan, Place]]


class _Writer:
    def __init__(self, done: Rewritten) -> None:
        self.row = 0
        self._done = done
        self._work: dict[Place, list[tuple[str, Plan, Place]]] = {}

    def members(self, fields: dict[str, msgspec.Raw], work: _Work) -> bool:
        """Rewrite members of an object; whether any of them is different now."""
        changed = False
        for name, plan, path in work:
            raw = fields.get(name)
            if raw is None:
                continue
            source = bytes(raw)
            new = self._value(source, plan, path)
            if new is not source:
                fields[name] = msgspec.Raw(new)
                changed = True
        return changed

    def _value(self, source: bytes, plan: Plan, path: Place) -> bytes:
        first = source[0]
        if first == _NULL:
            return source
        if plan.conflict:
            kind = kind_of(source)
            self._done.tallies.setdefault(path, {}).setdefault(kind, []).append(self.row)
            if plan.only is not None and FAMILIES[kind] != plan.only:
                return b"null"
        match plan.how:
            case "json":
                if plan.held:
                    self._done.held.append(self.row)
                return _ENCODE(source.decode())
            case "text" if first not in (_OBJECT, _ARRAY):
                return source if first == _STRING else b'"' + source + b'"'
            case "string":
                return source if first == _STRING else _ENCODE(source.decode())
            case "digits" if kind_of(source) == "integer" and len(source.lstrip(b"-")) <= plan.type.precision:
                return b'"' + source + b'"'
            case "plain" if plan.item is not None and first == _ARRAY:
                return self._array(source, plan.item, (*path, None)) if plan.item.rewrites else source
            case "plain" if pa.types.is_struct(plan.type) and first == _OBJECT:
                return self._object(source, plan, path)
            case "plain" if not pa.types.is_nested(plan.type):
                return source  # of a family that was asked for; the parser looks closer
        self._done.odd.append(self.row)
        return source

    def _array(self, source: bytes, item: Plan, path: Place) -> bytes:
        items = [bytes(raw) for raw in _ITEMS(source)]
        new = [self._value(each, item, path) for each in items]
        if all(one is other for one, other in zip(items, new, strict=True)):
            return source
        return b"[" + b",".join(new) + b"]"

    def _object(self, source: bytes, plan: Plan, path: Place) -> bytes:
        work = self._work.get(path)
        if work is None:
            work = [(name, member, (*path, name)) for name, member in plan.members.items() if member.rewrites]
            self._work[path] = work
        if not work:
            return source
        fields = _FIELDS(source)
        return _ENCODE(fields) if self.members(fields, work) else source
