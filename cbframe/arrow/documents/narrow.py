"""Documents parsed by narrower types than those of their plan, and the columns widened afterwards.

Where a plan keeps text, most documents still have one kind of value there. They go to the parser as they
are; what it makes of truth values and integers becomes text in one call, as it can only be written in one
way, and of other values the text is captured (``capture``). Only the few documents with another kind
of value are rewritten, and what is made of them is put in between.

Everything here either gives what rewriting all documents would give, or gives up.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cbframe.arrow.documents.capture import NESTED, Found, Path, Spot, Tokens, capture, spots_of, usual
from cbframe.arrow.documents.chunks import Batch, Chunk
from cbframe.arrow.documents.guard import Reason, inspect
from cbframe.arrow.documents.parse import Lines, doubts
from cbframe.arrow.documents.plan import Place, Plan
from cbframe.arrow.documents.promote import MINUS_ZERO
from cbframe.arrow.documents.rewrite import Tally, rewrite
from cbframe.arrow.slices import POOL

_FEW = 64
"""So few documents are rewritten: to know what most of them have costs as much."""
_MOST_ODD = 3
"""If more than one of so many is odd, all are rewritten."""

_FIELDS = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_ENCODE = msgspec.json.Encoder().encode
_NULL = msgspec.Raw(b"null")
_BLANK = ord(" ")
_ZERO = ord("0")
_EXPONENT = ord("e")
_LOWER = 0x20
_OBJECT = ord("{")
_BRACKETS = {"array": ord("["), "object": _OBJECT, "string": ord('"')}
_NUMBERS = ("integer", "double")
_EXPECTED = {
    "digits": ("integer",),
    "text": ("boolean", "string", *_NUMBERS),
    "json": ("boolean", "string", *_NUMBERS, *NESTED),
}
"""What values may be where a plan rewrites them in a way; with others there is something to learn."""
_TYPES = {
    "boolean": pa.bool_(),
    "integer": pa.int64(),
    "double": pa.float64(),
    "string": pa.string(),
    **dict.fromkeys(NESTED, pa.int64()),
}

Rows = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


def _firsts(characters: bytes) -> Mask:
    table = np.zeros(256, bool)
    table[list(characters)] = True
    return table


_NUMBER = _firsts(b"-0123456789")
_FIRSTS = {
    "boolean": _firsts(b"tf"),
    "integer": _NUMBER,
    "double": _NUMBER,
    "string": _firsts(b'"'),
    # Whatever ends where it is complete: of a number what is found might be the beginning of another.
    "array": _firsts(b'[{"'),
    "object": _firsts(b'[{"'),
}


def convert(batch: Batch, start: int, stop: int, plan: Plan, max_depth: int) -> Chunk | None:
    """Make columns of some rows of a batch; None if that is not worth it, or if they do not fit.

    Rows that prove unsound get their verdicts in any case.
    """
    spots = [spot for spot in spots_of(plan) if spot is not None]
    if not spots or plan.rest or stop - start < _FEW or len(spots) < len(list(spots_of(plan))):
        return None
    values = batch.documents(start, stop)
    if not pa.types.is_binary(values.type):
        return None
    return _Conversion(values, spots, plan).run(batch, start, max_depth)


class _Conversion:
    """Of a range of documents."""

    def __init__(self, documents: pa.Array, spots: Sequence[Spot], plan: Plan) -> None:
        self._documents = documents
        self._plan = plan
        sample = documents.take(pa.array(np.arange(0, len(documents), max(1, len(documents) // _FEW))))
        self._spots = usual(sample.to_pylist(), spots)
        self._odd = np.zeros(len(documents), bool)
        """Rows that are rewritten."""
        self._void = np.zeros(0, np.int64)
        """Rows that turned out to be no documents."""

    def run(self, batch: Batch, start: int, max_depth: int) -> Chunk | None:
        if any(spot.kind not in _expected(spot.plan) for spot in self._spots):
            return None
        tokens, failed = capture(self._documents, self._spots)
        deep = [
            row
            for number, each in tokens.items()
            for row in each.nesting(max_depth - len(self._spots[number].path))
        ]
        self._judge(batch, start, failed, deep, max_depth)
        for number, each in tokens.items():
            each.present[self._void] = False
            self._mark(self._spots[number], each)
        documents = self._without(tokens.values())
        if documents is None:
            return None
        types = {name: _narrow(member, (name,), self._spots) for name, member in self._plan.members.items()}
        columns = Lines(documents).columns(0, len(documents), types)
        tallies: dict[Place, Tally] = {}
        if columns is None or not self._widen(columns, tokens, tallies):
            return None
        doubtful, finite = doubts(columns.values())
        if len(doubtful) or not finite:
            return None
        return Chunk(start, start + len(documents), self._plan, columns, None, tallies)

    def _judge(self, batch: Batch, start: int, failed: list[int], deep: list[int], max_depth: int) -> None:
        """Look closer at documents that are odd, or may nest deep."""
        self._odd[failed] = True
        suspects = np.union1d(failed, deep).astype(np.int64)
        verdicts = batch.verdicts.copy()
        some = inspect(self._documents.take(pa.array(suspects)), verdicts[start + suspects], max_depth)
        verdicts[start + suspects] = some
        batch.verdicts = verdicts
        self._void = suspects[some != Reason.GOOD]
        self._odd[self._void] = False

    def _mark(self, spot: Spot, tokens: Tokens) -> None:
        """Mark rows with other values than most have."""
        self._odd |= tokens.present & ~_FIRSTS[spot.kind][tokens.first]
        if spot.plan.family is not None:
            self._odd |= tokens.present & (tokens.first != _BRACKETS[spot.plan.family])
        if tokens.begins is not None:
            self._odd |= tokens.present & (tokens.begins < 0)
        if spot.kind in ("integer", "double") and ((tokens.data | _LOWER) == _EXPONENT).any():
            # It may be beyond a double. The parser would refuse it.
            self._odd |= tokens.having(b"eE") & tokens.present & _NUMBER[tokens.first]

    def _without(self, tokens: Collection[Tokens]) -> pa.Array | None:
        """The documents for the parser: without arrays and objects that are text; None if most are odd."""
        while np.count_nonzero(self._odd) * _MOST_ODD <= len(self._odd):
            documents = self._emptied()
            wrong: Rows = np.zeros(0, np.int64)
            for each in tokens:
                if each.begins is not None:
                    documents, wrong = _struck(documents, each, np.flatnonzero(each.present & ~self._odd))
                if len(wrong):
                    break
            if not len(wrong):
                return documents
            self._odd[wrong] = True
        return None

    def _emptied(self) -> pa.Array:
        """The documents, the odd ones without the fields in question."""
        paths = [spot.path for spot in self._spots]
        odd = np.flatnonzero(self._odd)
        sources = self._documents.take(pa.array(odd)).to_pylist()
        changed = {row: _empty(source, paths) for row, source in zip(odd.tolist(), sources, strict=True)}
        changed |= dict.fromkeys(self._void.tolist(), b"{}")
        if not changed:
            return self._documents
        rows = np.zeros(len(self._documents), bool)
        rows[list(changed)] = True
        replacements = pa.array([changed[row] for row in sorted(changed)], self._documents.type)
        return pc.replace_with_mask(self._documents, pa.array(rows), replacements, memory_pool=POOL)

    def _widen(
        self, columns: dict[str, pa.Array], tokens: Mapping[int, Tokens], tallies: dict[Place, Tally]
    ) -> bool:
        """Make of the columns what the plan says, and count the values; whether that was possible."""
        odd = np.flatnonzero(self._odd)
        rewritten = rewrite(self._documents.take(pa.array(odd)), self._plan)
        if rewritten.odd or rewritten.held:
            return False
        patches = Found(rewritten.documents.to_pylist(), [(spot.path, "string") for spot in self._spots])
        if patches.failed:
            # A name is there twice, and the first value is none that could be captured.
            return False
        for number, spot in enumerate(self._spots):
            narrow = _member(columns, spot.path)
            wide = self._wide(spot, narrow, tokens.get(number))
            if wide is None:
                return False
            if spot.plan.conflict:
                masks = _kinds(spot, narrow, tokens.get(number))
                told = rewritten.tallies.get(spot.path, {})
                tallies[spot.path] = self._tally(masks, {kind: odd[rows] for kind, rows in told.items()})
            if len(odd):
                patch = pa.array(patches.values(number), pa.string()).cast(spot.plan.type)
                wide = pc.replace_with_mask(wide, pa.array(self._odd), patch, memory_pool=POOL)
            name = spot.path[0]
            columns[name] = _with(columns[name], spot.path[1:], wide)
        return True

    def _tally(self, masks: Mapping[str, Mask], told: Mapping[str, Rows]) -> Tally:
        """The rows with each kind of value, those that were rewritten among them."""
        tally = {}
        for kind in masks.keys() | told.keys():
            mask = masks[kind] & ~self._odd if kind in masks else np.zeros(len(self._odd), bool)
            mask[told.get(kind, [])] = True
            if mask.any():
                tally[kind] = np.flatnonzero(mask)
        return tally

    def _wide(self, spot: Spot, narrow: pa.Array, tokens: Tokens | None) -> pa.Array | None:
        """What the plan makes of the values that are not odd; None if that cannot be said."""
        if tokens is not None:
            there = narrow.is_valid().to_numpy(zero_copy_only=False)
            if ((there != tokens.present) & ~self._odd).any():
                return None
            if spot.kind in NESTED and pc.any(pc.not_equal(narrow, 0)).as_py():
                return None
            return tokens.column()
        if spot.kind == "integer" and spot.plan.how == "text":
            zeros = pc.fill_null(pc.equal(narrow, 0), False)
            if pc.any(pc.match_substring_regex(self._documents.filter(zeros), MINUS_ZERO)).as_py():
                return None
        return pc.cast(narrow, spot.plan.type, memory_pool=POOL)


def _expected(plan: Plan) -> tuple[str, ...]:
    return _EXPECTED[plan.how] if plan.family is None else (plan.family,)


def _narrow(plan: Plan, path: Path, spots: Sequence[Spot]) -> pa.DataType:
    """What the parser is asked for: the usual type of each field in question."""
    for spot in spots:
        if spot.path == path:
            # Struck out, it is the number 0. Of captured numbers only the text is wanted.
            return pa.float64() if spot.field[1] is None and spot.kind == "integer" else _TYPES[spot.kind]
    if plan.rewrites:
        return pa.struct(
            [(name, _narrow(member, (*path, name), spots)) for name, member in plan.members.items()]
        )
    return plan.type


def _struck(documents: pa.Array, tokens: Tokens, rows: Rows) -> tuple[pa.Array, Rows]:
    """The documents with 0 and blanks in the place of some values, and the rows where these are not there.

    That one is another value than meant is not ruled out here. But if the parser then finds 0 wherever
    one of them should be, nothing else was struck out: so many values were, and no more.
    """
    _, offsets, data = documents.buffers()
    bounds = np.frombuffer(offsets, np.int32)[documents.offset : documents.offset + len(documents) + 1]
    text = np.frombuffer(data, np.uint8)[bounds[0] : bounds[-1]].copy()
    bounds = bounds - bounds[0]
    begins = (bounds[:-1] + tokens.begins)[rows]
    while len(blanks := np.flatnonzero(text[begins] <= _BLANK)):
        begins[blanks] += 1
    meant = tokens.of(rows)
    lengths = np.diff(tokens.offsets)[rows]
    at = np.arange(len(meant), dtype=np.int32)
    at += np.repeat((begins - np.cumsum(lengths) + lengths).astype(np.int32), lengths)
    wrong = text[np.minimum(at, len(text) - 1)] != meant
    if wrong.any():
        return documents, np.unique(np.repeat(rows, lengths)[wrong])
    text[at] = _BLANK
    text[begins] = _ZERO
    buffers = [None, pa.py_buffer(bounds), pa.py_buffer(text)]
    return pa.Array.from_buffers(documents.type, len(documents), buffers, null_count=0), rows[:0]


def _empty(source: bytes, paths: Iterable[Path]) -> bytes:
    """A document with null for some fields."""
    fields = _FIELDS(source)
    for name, *rest in paths:
        if name in fields:
            inner = bytes(fields[name])
            if not rest:
                fields[name] = _NULL
            elif inner[0] == _OBJECT:
                fields[name] = msgspec.Raw(_empty(inner, [tuple(rest)]))
    return _ENCODE(fields)


def _kinds(spot: Spot, narrow: pa.Array, tokens: Tokens | None) -> dict[str, Mask]:
    """Which rows have a value of each kind, but for the odd ones."""
    if tokens is None:
        return {spot.kind: narrow.is_valid().to_numpy(zero_copy_only=False)}
    if spot.kind in NESTED:
        return {kind: tokens.present & (tokens.first == first) for kind, first in _BRACKETS.items()}
    if spot.kind in _NUMBERS:
        double = tokens.having(b".eE")
        return {"double": tokens.present & double, "integer": tokens.present & ~double}
    return {spot.kind: tokens.present}


def _member(columns: Mapping[str, pa.Array], path: Path) -> pa.Array:
    """The column of a field inside of others; null where one of these is."""
    array = columns[path[0]]
    for name in path[1:]:
        array = array.flatten()[array.type.get_field_index(name)]
    return array


def _with(array: pa.Array, path: Path, new: pa.Array) -> pa.Array:
    """The column with another one in the place of a field inside."""
    if not path:
        return new
    members = [array.field(index) for index in range(array.type.num_fields)]
    index = array.type.get_field_index(path[0])
    members[index] = _with(members[index], path[1:], new)
    fields = [pa.field(each.name, member.type) for each, member in zip(array.type, members, strict=True)]
    mask = array.is_null() if array.null_count else None
    return pa.StructArray.from_arrays(members, fields=fields, mask=mask)
