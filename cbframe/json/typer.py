"""JSON documents to typed columns, one layout over all of them.

Each batch is read once: facts are learned of its documents, and columns are built by what is known so far
(:meth:`Typer.convert`). When all batches are there, one layout follows from the facts of all
(:meth:`Typer.settle`), and the columns of each batch are brought to it (:meth:`Typer.table`): by casts where
these give what the documents would give, else those columns are built from the documents again.

Types, values, and the order of columns follow from the documents alone: not from how they came in batches,
nor from the order in which they came.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cbframe.core import COMPILED
from cbframe.json.arrays import array_of, recast
from cbframe.json.layout import (
    FAMILIES,
    FIELDS,
    MAX_MEMBERS,
    NO_FACTS,
    SOME,
    Column,
    Configuration,
    Family,
    FieldFacts,
    FieldPath,
    Instructions,
    Layout,
    Path,
    Policy,
    Tree,
    at,
    firsts,
    layout_of,
    struct,
    tree_of,
    type_of,
    widths,
)

OURS = "_cb_"
"""Documents own every name that does not begin so."""
REST, VALUE, REASON = "_cb_rest", "_cb_value", "_cb_reason"

_PIECE = 64 << 20
"""Bytes that are converted at once at most."""
_SPECIAL = frozenset(".[]`")
_EVERYTHING: Configuration = (FIELDS, [], None, None)
_DROPPED = {
    family: sum(1 << number for number, kind in enumerate(FAMILIES) if FAMILIES[kind] != family)
    for family in FAMILIES.values()
}
"""Kinds of values of other families, a bit for each."""
_DECODE = json.JSONDecoder(parse_int=str, parse_float=str).decode
_Key: TypeAlias = tuple[frozenset[str] | None, bool]
Where: TypeAlias = tuple[int, int]
"""Vbucket and seqno of a document."""


def column_name(field: str) -> str:
    """The column of a field: names that begin like ours have one more ``_``."""
    return f"{field}_" if field.startswith(OURS) else field


def field_name(column: str) -> str:
    """The field that became a column."""
    return column[:-1] if column.startswith(OURS) else column


class CompiledConverter:
    """The compiled converter; see :class:`cbframe.json.reference.Converter`."""

    def __init__(
        self, max_members: int, known: Configuration | None = None, *, keeps_rest: bool = False
    ) -> None:
        self._core = COMPILED.Converter(max_members, known, keeps_rest=keeps_rest)

    def shred(
        self,
        data: Any,
        offsets: npt.NDArray[np.int32],
        reasons: npt.NDArray[np.uint8],
        vbuckets: npt.NDArray[np.uint16],
        seqnos: npt.NDArray[np.uint64],
    ) -> npt.NDArray[np.uint8]:
        """Take in a batch, and forget the one before; the reasons with those of what is no document."""
        return np.frombuffer(self._core.shred(data, offsets, reasons, vbuckets, seqnos), np.uint8)

    def facts(self) -> Any:
        """What the batch's documents have in common; to be asked for before :meth:`build`."""
        return self._core.facts()

    def build(self, columns: Sequence[tuple[bytes, Instructions]]) -> list[pa.Array]:
        """Columns of the batch; ValueError if one cannot hold its values."""
        parts = self._core.build(columns)
        return [array_of(type_of(layout), each) for (_, layout), each in zip(columns, parts, strict=True)]

    def rest(self) -> pa.Array:
        """The members that are no columns, as JSON text; null where there is none."""
        return array_of(pa.string(), self._core.rest())

    def rows_by_kind(self, place: Sequence[bytes | None]) -> list[tuple[str, npt.NDArray[np.uint32]]]:
        """The documents with a value of each kind in a place: names of members, None for items and values."""
        return [(kind, np.frombuffer(rows, np.uint32)) for kind, rows in self._core.rows_by_kind(place)]


# Those of the core that runs: the interface and the results are the same.
Converter: Any
Facts: Any
if COMPILED is None:
    from cbframe.json.reference import Converter, Facts
else:
    Converter, Facts = CompiledConverter, COMPILED.Facts


class Reason(IntEnum):
    """Why a value has no columns; the name in lower case is the key of ``rejected``."""

    GOOD = 0
    BINARY = 1
    """The server does not call it JSON."""
    EMPTY = 2
    """No bytes, or blanks only."""
    NOT_UTF8 = 3
    TOO_DEEP = 4
    INVALID_JSON = 5
    """Also NaN and Infinity, lone surrogates, and two documents in one value."""
    NOT_AN_OBJECT = 6
    """A JSON array or scalar."""


@dataclass(frozen=True, slots=True)
class Documents:
    """Some values, and where they stand in the bucket."""

    values: pa.Array  # binary array without nulls
    is_json: npt.NDArray[np.bool_]  # what the server says of each; other values are not tried
    vbucket: npt.NDArray[np.uint16]
    seqno: npt.NDArray[np.uint64]

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, rows: slice) -> Documents:
        return Documents(self.values[rows], self.is_json[rows], self.vbucket[rows], self.seqno[rows])

    def filter(self, keep: npt.NDArray[np.bool_]) -> Documents:
        """Those that are kept."""
        values = self.values.filter(pa.array(keep))
        return Documents(values, self.is_json[keep], self.vbucket[keep], self.seqno[keep])


@dataclass(frozen=True, slots=True)
class Piece:
    """The columns of a batch of documents, by a layout."""

    layout: Layout  # by which they were built
    columns: Mapping[str, pa.Array]  # by name
    rest: pa.Array | None
    reasons: npt.NDArray[np.uint8]  # one Reason a row
    rejected: pa.Array | None  # values that are no documents, null elsewhere; None where there are none
    facts: Facts  # what was seen of the documents
    has_rest: bool = False  # whether a document has members that are no columns

    def __len__(self) -> int:
        return len(self.reasons)


@dataclass(frozen=True, slots=True)
class Disagreement:
    """Values of a field that have no common type."""

    path: str  # where in the document: `total`, `customer.id`, `items[].price`
    types: dict[str, int]  # kinds of values there, and how many, over all documents
    action: str
    samples: dict[str, tuple[Any, ...]] = field(repr=False)
    names: int | None = None  # how many different names its objects have, where these are data; else None


class Order(dict[str, "Order"]):
    """Names in order of first appearance, each with the order of what is inside.

    A field appears first in the document with the smallest vbucket and seqno that has a value for it; fields
    that appear first in the same document stand as they stand there. Fields that are null wherever they are
    come last, by name.
    """

    def add(self, value: Any, column: Column) -> None:
        """Take in one more value, later than all before; only what the column has is looked at."""
        if isinstance(value, dict) and column.how == "map" and column.item is not None:
            for member in value.values():
                self.add(member, column.item)
        elif isinstance(value, dict):
            for name, member in value.items():
                inner = None if member is None else column.members.get(name)
                if inner is not None:
                    self.setdefault(name, Order()).add(member, inner)
        elif isinstance(value, list) and column.item is not None and column.how == "plain":
            for item in value:
                self.add(item, column.item)

    def of(self, column: Column) -> Column:
        """A column with the members of its structs in this order."""
        if column.item is not None:
            item = self.of(column.item)
            kind = pa.map_(pa.string(), item.type) if column.how == "map" else pa.list_(item.type)
            return replace(column, type=kind, item=item)
        if not pa.types.is_struct(column.type):
            return column
        names = [
            *(name for name in self if name in column.members),
            *sorted(column.members.keys() - self.keys()),
        ]
        members = {name: self.get(name, Order()).of(column.members[name]) for name in names}
        return replace(column, type=struct(members).type, members=members)


@dataclass(frozen=True, slots=True)
class Settled:
    """The layout of all documents."""

    layout: Layout  # columns in order of first appearance
    found: FieldFacts  # facts of all documents
    has_rest: bool  # some document has fields that are no columns
    rejected: Counter[int]  # rows that are no documents, by reason

    def reasons(self) -> dict[str, int]:
        """Rows that are no documents, by the name of the reason."""
        return {Reason(reason).name.lower(): count for reason, count in sorted(self.rejected.items())}

    def disagreements(self) -> Iterator[Disagreement]:
        """What there is to say of the fields without a common type, in the order of the columns."""
        names = list(self.layout.columns)
        every = [
            (names.index(str(place[0])), shown(place), place, c) for place, c in self.layout.root.conflicts()
        ]
        for _, path, place, column in sorted(every, key=lambda each: each[:2]):
            found = at(self.found, place)
            kinds = dict(sorted(found["counts"].items()))
            count = len(found["fields"]) or len(found["names"])
            if column.how == "map":
                yield Disagreement(path, {"object": kinds.get("object", 0)}, "map", {}, count)
                continue
            if column.only is not None and all(FAMILIES[kind] == column.only for kind in kinds):
                continue
            data = column.data and kinds.keys() == {"object"}
            samples = {kind: tuple(found["samples"].get(kind, ())) for kind in kinds}
            action = "null" if column.only else column.how
            yield Disagreement(path, kinds, action, samples, count if data else None)

    def widths(self) -> dict[FieldPath, tuple[int, int]]:
        """Of structs with many names: how many objects there are, and how many members together."""
        return dict(widths(self.layout.root, self.found))

    def empty(self) -> pa.Table:
        """The columns, without rows."""
        return self.table({}, None, None, np.zeros(0, np.uint8))

    def table(
        self,
        columns: Mapping[str, pa.Array],
        rest: pa.Array | None,
        rejected: pa.Array | None,
        reasons: npt.NDArray[np.uint8],
    ) -> pa.Table:
        """Columns of some rows; those that are missing are null."""
        rows = len(reasons)
        arrays = {
            column_name(name): columns.get(name, pa.nulls(rows, column.type))
            for name, column in self.layout.columns.items()
        }
        if self.has_rest:
            arrays[REST] = pa.nulls(rows, pa.string()) if rest is None else rest
        if self.rejected:
            arrays[VALUE] = pa.nulls(rows, pa.binary()) if rejected is None else rejected
            # Not when this is imported: pyarrow imports pandas with its first array.
            names = [None if each is Reason.GOOD else each.name.lower() for each in Reason]
            arrays[REASON] = pa.array(names, pa.string()).take(pa.array(reasons))
        return pa.table(arrays)


class Typer:
    """Types documents batch by batch."""

    def __init__(self, policy: Policy | None = None) -> None:
        self._policy = policy or Policy()
        self._to_infer = self._policy.infer_length or 0
        self._names: frozenset[str] | None = None
        """The fields that become columns, once the first documents have decided that."""
        self._facts: Facts | None = None
        self._shapes: set[int] = set()
        self._rows = self._looked = 0
        self._firsts: dict[Where, bytes] = {}
        """The documents in which fields appear first, so far."""
        self._converters: dict[bool, tuple[_Key, Converter]] = {}
        self._layout = layout_of(NO_FACTS, self._policy)

    def split(self, documents: Documents) -> Iterator[Documents]:
        """Parts of a batch that are to be converted one after the other."""
        start = 0
        while start < len(documents):
            stop = min(_end(documents.values, start), start + (self._to_infer or len(documents)))
            yield documents[start:stop]
            start = stop

    def convert(self, documents: Documents) -> Piece:
        """Convert a batch: a part of :meth:`split`, which must be taken in its order."""
        converter = self._converter(self._names)
        reasons = _shred(converter, documents)
        facts = converter.facts()
        self._facts = facts if self._facts is None else self._facts | facts
        found = self._facts.to_dict()
        self._rows += len(documents)
        if facts.shape() not in self._shapes or self._rows >= 2 * self._looked:
            # Whether names are data, and which kind of values is the most frequent, follows from the counts.
            self._shapes.add(facts.shape())
            self._looked = self._rows
            layout = layout_of(found, self._policy, self._names)
            if layout != self._layout:
                self._layout = layout
        places = set(firsts(self._layout.root, found))
        self._firsts = {where: each for where, each in self._firsts.items() if where in places}
        if news := places - self._firsts.keys():
            self._firsts |= fetched([documents], news)
        if self._to_infer:
            self._to_infer -= len(documents)
            if not self._to_infer:
                # From now on there are no more columns.
                self._names = self._layout.names or frozenset(self._layout.columns)
                self._layout = replace(self._layout, names=self._names, rest=True)
        return self._built(documents, converter, self._layout, reasons, facts)

    def _converter(self, names: frozenset[str] | None, *, rest: bool | None = None) -> Converter:
        """What reads these fields, None for all; `rest` keeps the others as text."""
        rest = (names is not None if rest is None else rest) and self._policy.wanted is None
        key = names, rest
        last = self._converters.get(rest)
        if last is None or last[0] != key:
            known = _configuration(self._policy, names)
            last = self._converters[rest] = key, Converter(self._policy.max_members, known, keeps_rest=rest)
        return last[1]

    def _built(
        self,
        documents: Documents,
        shredded: Converter | None,
        layout: Layout,
        reasons: npt.NDArray[np.uint8],
        facts: Facts,
    ) -> Piece:
        converter = self._converter(layout.names, rest=layout.rest)
        if converter is not shredded:
            _shred(converter, documents)
        columns = _build(converter, layout.columns)
        rest = converter.rest() if layout.rest and self._policy.wanted is None else None
        has_rest = rest is not None and rest.null_count < len(rest)
        return Piece(layout, columns, rest, reasons, _rejected(documents.values, reasons), facts, has_rest)

    def settle(
        self, pieces: Sequence[Piece], fetch: Callable[[Collection[Where]], Mapping[Where, bytes]]
    ) -> Settled:
        """Decide the layout of all documents."""
        facts: Facts | None = None
        rejected: Counter[int] = Counter()
        rest = False
        for piece in pieces:
            facts = piece.facts if facts is None else facts | piece.facts
            bad = piece.reasons[piece.reasons != Reason.GOOD]
            rejected.update({int(each): int((bad == each).sum()) for each in np.unique(bad)})
            rest |= piece.has_rest
        found = NO_FACTS if facts is None else facts.to_dict()
        layout = layout_of(found, self._policy, self._names)
        order = Order()
        places = set(firsts(layout.root, found))
        some = {where: document for where, document in self._firsts.items() if where in places}
        if missing := places - some.keys():
            some |= fetch(missing)
        for _, document in sorted(some.items()):
            order.add(_DECODE(document.decode()), layout.root)
        layout = replace(layout, root=order.of(layout.root))
        if layout.rest and self._policy.wanted is None:
            rest |= self._names is None or any(_lacks_rest(piece, layout) for piece in pieces)
        return Settled(layout, found, rest, rejected)

    def table(self, piece: Piece, settled: Settled, load: Callable[[], Documents]) -> pa.Table:
        """The columns of a batch, by the layout of all documents."""
        columns, rest = piece.columns, piece.rest
        layout = settled.layout
        if _lacks_rest(piece, layout):
            again = self._built(load(), None, layout, piece.reasons, piece.facts)
            columns, rest = again.columns, again.rest
        found: FieldFacts | None = None
        cells: dict[str, pa.Array] = {}
        lossy: dict[str, Column] = {}
        for name, want in layout.columns.items():
            have = piece.layout.columns.get(name)
            array = columns.get(name)
            if array is None:
                continue
            if columns is piece.columns and have is not None and have != want:
                if found is None:
                    found = dict(piece.facts.to_dict()["fields"])
                if not lossless(have, want, found.get(name)):
                    lossy[name] = want
                    continue
            cells[name] = recast(array, want.type)
        if lossy:
            converter = Converter(self._policy.max_members, _configuration(self._policy, frozenset(lossy)))
            _shred(converter, load())
            cells |= _build(converter, lossy)
        return settled.table(cells, rest, piece.rejected, piece.reasons)


def typed(batches: Sequence[Documents], policy: Policy | None = None) -> tuple[pa.Table, Settled]:
    """Type documents that are all in memory."""
    typer = Typer(policy)
    parts = [part for documents in batches for part in typer.split(documents)]
    pieces = [typer.convert(part) for part in parts]
    settled = typer.settle(pieces, lambda places: fetched(parts, places))
    tables = [
        typer.table(piece, settled, lambda part=part: part)  # type: ignore[misc]
        for piece, part in zip(pieces, parts, strict=True)
    ]
    return pa.concat_tables(tables) if tables else settled.empty(), settled


def fetched(batches: Iterable[Documents], places: Collection[Where]) -> dict[Where, bytes]:
    """Documents by where they stand."""
    wanted = set(places)
    seqnos = np.array([seqno for _, seqno in wanted], np.uint64)
    found: dict[Where, bytes] = {}
    for batch in batches:
        for row in np.flatnonzero(np.isin(batch.seqno, seqnos)).tolist():
            where = int(batch.vbucket[row]), int(batch.seqno[row])
            if where in wanted:
                found[where] = batch.values[row].as_py()
    return found


def texts_at(documents: Documents, path: Path) -> pa.Array:
    """The value that each document has at a path, as JSON text; null where it has none."""
    converter = Converter(MAX_MEMBERS, _some(tree_of([path])))
    _shred(converter, documents)
    column = Column(pa.string(), "json")
    for name in path[:0:-1]:
        column = replace(struct({name: column}), cut=True)
    found = _build(converter, {path[0]: column})[path[0]]
    for _ in path[1:]:
        found = pc.struct_field(found, [0])
    return found


def _end(values: pa.Array, start: int) -> int:
    """Where the part that starts at `start` ends: `_PIECE` bytes, but at least one row."""
    width = np.int64 if pa.types.is_large_binary(values.type) else np.int32
    offsets = np.frombuffer(values.buffers()[1], width)[values.offset : values.offset + len(values) + 1]
    stop = int(np.searchsorted(offsets, int(offsets[start]) + _PIECE, side="right")) - 1
    return max(stop, start + 1)


def _shred(converter: Converter, documents: Documents) -> npt.NDArray[np.uint8]:
    """Read documents; why each is none."""
    values = documents.values
    if not pa.types.is_binary(values.type):
        values = values.cast(pa.binary())
    _, offsets, data = values.buffers()
    bounds = np.frombuffer(offsets, np.int32)[values.offset : values.offset + len(values) + 1]
    octets = np.frombuffer(data, np.uint8) if data is not None and len(data) else np.zeros(0, np.uint8)
    reasons = np.where(documents.is_json, Reason.GOOD, Reason.BINARY).astype(np.uint8)
    found = converter.shred(
        octets,
        bounds,
        reasons,
        np.ascontiguousarray(documents.vbucket),
        np.ascontiguousarray(documents.seqno),
    )
    return np.frombuffer(found, np.uint8)


def _rejected(values: pa.Array, reasons: npt.NDArray[np.uint8]) -> pa.Array | None:
    if not reasons.any():
        return None
    # Not if_else(): that of pyarrow 16 makes broken offsets of binary values and a null.
    good = pa.array(reasons == Reason.GOOD)
    return pc.replace_with_mask(values, good, pa.scalar(None, values.type)).cast(pa.binary())


def _lacks_rest(piece: Piece, layout: Layout) -> bool:
    """Whether the fields that are no columns are others than when the batch was converted."""
    have = piece.layout
    if (have.rest, have.names) == (layout.rest, layout.names):
        return False
    return piece.has_rest or any(name not in layout.columns for name, _ in piece.facts.to_dict()["fields"])


def _configuration(policy: Policy, names: frozenset[str] | None) -> Configuration:
    """What the converter does with what is inside of fields."""
    if policy.wanted is not None:
        tree = policy.wanted
        if names is not None:
            tree = {name: inside for name, inside in tree.items() if name in names}
        return _some(tree)
    if names is not None:
        return _some(dict.fromkeys(sorted(names)))
    return _EVERYTHING


def _some(tree: Tree) -> Configuration:
    fields = [
        (name.encode(), _EVERYTHING if inside is None else _some(inside)) for name, inside in tree.items()
    ]
    return SOME, fields, None, None


def _build(converter: Converter, columns: Mapping[str, Column]) -> dict[str, pa.Array]:
    layouts = [(name.encode(), _instructions(column)) for name, column in columns.items()]
    return dict(zip(columns, converter.build(layouts), strict=True))


def _instructions(column: Column) -> Instructions:
    """How the converter builds a column."""
    only: Family | None = "object" if column.cut else column.only
    dropped = 0 if only is None else _DROPPED[only]
    if column.how == "map" and column.item is not None:
        return "map", dropped, _instructions(column.item)
    if column.how != "plain":
        return {"text": "text", "json": "json", "string": "written"}[column.how], dropped, None
    if column.item is not None:
        return "list", dropped, _instructions(column.item)
    if pa.types.is_struct(column.type):
        members = [(name.encode(), _instructions(member)) for name, member in column.members.items()]
        return "struct", dropped, members
    name = "decimal" if pa.types.is_decimal(column.type) else str(column.type)
    return "text" if name == "string" else name, dropped, None


def lossless(have: Column, want: Column, found: FieldFacts | None) -> bool:
    """Whether :func:`recast` makes of a column what its documents would give."""
    counts = {} if found is None else found["counts"]
    if found is None or not counts or have == want:
        return True
    dropped = [
        {kind for kind in counts if column.only is not None and FAMILIES[kind] != column.only}
        for column in (have, want)
    ]
    if dropped[0] != dropped[1]:
        return False
    if want.how == "text":
        # Doubles are written in several ways, and so is zero.
        plain = have.how == "plain" and not pa.types.is_floating(have.type) and not found["minus_zero"]
        return have.how == "text" or (plain and not pa.types.is_nested(have.type))
    if want.how in ("string", "json"):
        return have.how == want.how
    if have.how != want.how:
        return False
    if want.how == "map":
        assert have.item is not None
        assert want.item is not None
        return lossless(have.item, want.item, at(found, (None,)))
    if have.item is not None and want.item is not None:
        return lossless(have.item, want.item, found["item"])
    if pa.types.is_struct(have.type) and pa.types.is_struct(want.type):
        inside = dict(found["fields"])
        return all(
            name not in inside
            or (name in have.members and lossless(have.members[name], member, inside[name]))
            for name, member in want.members.items()
        )
    if pa.types.is_floating(want.type) and pa.types.is_integer(have.type):
        return not found["minus_zero"]
    whole = pa.types.is_integer(have.type) and (
        pa.types.is_integer(want.type) or pa.types.is_decimal(want.type)
    )
    return whole or bool(have.type.equals(want.type))


def shown(place: FieldPath) -> str:
    """A place as it is written: ``items[].price``; names that would look like a path are quoted."""
    return "".join("[]" if name is None else f".{quoted(name)}" for name in place).removeprefix(".")


def quoted(name: str) -> str:
    """A name within a path: in backquotes, as in SQL++, where it has dots, brackets or backquotes itself."""
    if name and not _SPECIAL.intersection(name):
        return name
    return "`" + name.replace("`", "``") + "`"
