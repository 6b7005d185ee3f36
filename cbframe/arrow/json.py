"""JSON documents to typed Arrow columns, one schema over all batches.

Per batch: judge all values at once (``guard``), parse them in one proven call against the types
known so far (``parse``). Only where that fails are documents looked at one by one, and only as many
as needed: the range is halved until the documents that do not fit stand in a range of 64; those
widen the schema (``schema``) and are converted in Python, the rest goes on in C++.

=======================================  =====================================================
values of a field                        column
=======================================  =====================================================
null only                                null
true, false                              bool
integers within 64 bits                  int64
numbers, every integer exact as double   float64, the nearest double of each number
strings, also those that look like dates string, unchanged
arrays, objects                          list, struct; members widen by the same rules
integers beyond 64 bits, or integers     JSON text
that a float64 column would round
numbers beyond the range of a double     JSON text
anything else, at any depth              JSON text
=======================================  =====================================================

JSON text is the exact source of each value (``1.50`` stays ``1.50``, strings keep their quotes), in
the whole top-level column, null where the field is missing or null. Of a name that occurs twice in
one object the last counts. A field named ``_cb_x`` becomes the column ``_cb_x_``: names that start with
``_cb_`` are ours.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cbframe.arrow.columns import REASON, VALUE
from cbframe.arrow.guard import Reason, Verdicts, blank, inspect, screen
from cbframe.arrow.parse import Lines
from cbframe.arrow.promote import lossless, promote
from cbframe.arrow.schema import Column, Schema, load
from cbframe.arrow.split import extract, split

_LEAF = 64
"""Documents that are looked at one by one when no smaller range is worth a call of the parser."""
_PIECE = 64 << 20
"""Bytes that are parsed at once at most."""
_OURS = "_cb_"
_LONG_INTEGER = r"[0-9]{16}"
"""Documents without it have no integer that a double would round: 2**53 has 16 digits."""
_MINUS_ZERO = r"-0[\s,\]}]"
"""Documents without it have no integer -0."""


@dataclass(frozen=True, slots=True)
class Conflict:
    """A column that is JSON text because no type holds its values.

    Attributes
    ----------
    path
        Where in the document it was first found: ``total``, ``customer.id``, ``items[].price``.
    types
        Kinds of values there, and how many. If `path` is the column itself, all its values are
        counted. Inside of a column only those that were looked at one by one: the first ones, and
        at least one of each kind that does not fit.
    action
        What became of the column: ``"json"``.
    """

    path: str
    types: dict[str, int]
    action: str = "json"


@dataclass(frozen=True, slots=True)
class TypedColumns:
    """What :class:`JsonTyper` made of all documents.

    Attributes
    ----------
    table
        The columns in order of first appearance, rows in the order in which they were added. Then
        ``_cb_rest`` (JSON text: the fields beyond the limit), ``_cb_value`` (binary: values that are
        no JSON object) and ``_cb_reason`` (why they are none), each only if it has a row.
    rows
        Number of rows, also when no document has a field and the table has no column.
    rejected
        Rows in ``_cb_value`` by reason: ``binary``, ``empty``, ``not_utf8``, ``too_deep``,
        ``invalid_json``, ``not_an_object``.
    conflicts
        Columns that are text because of their values, in the order of the columns.
    """

    table: pa.Table
    rows: int
    rejected: dict[str, int]
    conflicts: tuple[Conflict, ...]


@dataclass(frozen=True, slots=True)
class _Chunk:
    """Columns of the documents ``start`` to ``stop`` of a batch, as they were parsed."""

    start: int
    stop: int
    typed: dict[str, pa.Array]
    texts: dict[str, pa.Array]
    rest: pa.Array | None


@dataclass(slots=True)
class _Batch:
    values: pa.Array
    verdicts: Verdicts
    inspected: bool = False
    """Whether the verdicts of all rows are final; before, a good row may prove unsound."""
    chunks: list[_Chunk] = field(default_factory=list)

    def documents(self, start: int, stop: int) -> pa.Array:
        return blank(self.values[start:stop], self.verdicts[start:stop])


class JsonTyper:
    """Typed columns for JSON documents, one schema over all batches.

    The result does not depend on how rows were split into batches. No value ever makes a call fail.
    Values are kept until :meth:`finish`, for the columns that turn out to be text later.

    Parameters
    ----------
    max_depth
        Documents whose arrays and objects nest deeper are rejected (``too_deep``). At most 400:
        the decoders in C recurse.
    max_fields
        No more top-level columns than this, further fields go to ``_cb_rest``; and no more fields
        than this inside of columns, over all: then the column with most of them becomes text. So
        objects that are used as maps, with data for keys, cost no more than their bytes.
    nested_as_text
        Arrays and objects become JSON text, their exact source, and not lists and structs.
    """

    def __init__(self, *, max_depth: int = 200, max_fields: int = 1000, nested_as_text: bool = False) -> None:
        self._nested_as_text = nested_as_text
        self._max_depth = min(max_depth, 400)
        self._schema = Schema(max_fields)
        self._batches: list[_Batch] = []

    def add(self, values: pa.Array, is_json: npt.NDArray[np.bool_] | None = None) -> None:
        """Convert a batch.

        Parameters
        ----------
        values
            Binary or large binary array without nulls: one document a row, any bytes at all.
        is_json
            What the server says of each row; rows that it does not call JSON are not tried.
        """
        assert values.null_count == 0
        start = 0
        while start < len(values):
            stop = _piece(values, start)
            piece = values[start:stop]
            batch = _Batch(piece, screen(piece, None if is_json is None else is_json[start:stop]))
            self._convert(batch, 0, len(piece))
            self._batches.append(batch)
            start = stop

    def finish(self) -> TypedColumns:
        """All rows as one table; the typer is empty afterwards and cannot be used again."""
        self._settle()
        columns = self._schema.columns.values()
        arrays: dict[str, pa.ChunkedArray] = {}
        conflicts = []
        for column in columns:
            array = self._text(column) if column.text or self._as_text(column) else self._typed(column)
            arrays[column.name + "_" if column.name.startswith(_OURS) else column.name] = array
            if column.conflict is not None:
                path, types = column.conflict
                conflicts.append(Conflict(path, _kinds(array) if path == column.name else dict(types)))
        if self._schema.overflow:
            arrays["_cb_rest"] = _chunked(
                (
                    pa.nulls(chunk.stop - chunk.start, pa.string()) if chunk.rest is None else chunk.rest
                    for _, chunk in self._chunks()
                ),
                pa.string(),
            )
        rejected: Counter[int] = Counter()
        for batch in self._batches:
            if batch.verdicts.any():
                rejected.update(batch.verdicts[batch.verdicts != Reason.GOOD].tolist())
        if rejected:
            arrays[VALUE] = _chunked((_rejected(batch) for batch in self._batches), pa.binary())
            arrays[REASON] = _chunked((_reasons(batch) for batch in self._batches), pa.string())
        rows = sum(len(batch.values) for batch in self._batches)
        self._batches = []
        assert all(len(array) == rows for array in arrays.values())
        return TypedColumns(
            table=pa.table(arrays),
            rows=rows,
            rejected={Reason(reason).name.lower(): count for reason, count in sorted(rejected.items())},
            conflicts=tuple(conflicts),
        )

    def _as_text(self, column: Column) -> bool:
        return self._nested_as_text and pa.types.is_nested(column.node.type())

    def _chunks(self) -> list[tuple[_Batch, _Chunk]]:
        return [(batch, chunk) for batch in self._batches for chunk in batch.chunks]

    def _convert(self, batch: _Batch, start: int, stop: int) -> None:
        while start < stop:
            start = self._advance(batch, start, stop)

    def _advance(self, batch: _Batch, start: int, stop: int) -> int:
        """Convert documents until done, or until the plan changes; return where to go on."""
        schema, plan = self._schema, self._schema.plan
        if schema.splits and not batch.inspected:
            self._inspect(batch)
        documents = batch.documents(start, stop)
        texts: dict[str, pa.Array] = {}
        rest = None
        if schema.splits:
            apart = split(
                documents,
                [name for name, column in schema.columns.items() if column.text],
                schema.columns.keys(),
                overflow=schema.overflow,
            )
            documents, texts, rest = apart.documents, apart.texts, apart.rest
        lines = Lines(documents)
        ranges = [(start, stop)]
        while ranges:
            low, high = ranges.pop()
            here, there = low - start, high - start
            columns = self._parse(batch, lines, documents, here, there)
            if schema.plan != plan:
                return low
            if columns is None:
                if not batch.inspected:
                    self._inspect(batch)
                    return low
                if high - low > _LEAF:
                    middle = (low + high) // 2
                    ranges += [(middle, high), (low, middle)]
                    continue
                columns = self._study(documents[here:there].to_pylist())
                if schema.plan != plan:
                    return low
            batch.chunks.append(
                _Chunk(
                    low,
                    high,
                    columns,
                    {name: cells[here:there] for name, cells in texts.items()},
                    None if rest is None else rest[here:there],
                )
            )
        return stop

    def _inspect(self, batch: _Batch) -> None:
        batch.verdicts = inspect(batch.values, batch.verdicts, self._max_depth)
        batch.inspected = True

    def _parse(
        self, batch: _Batch, lines: Lines, documents: pa.Array, start: int, stop: int
    ) -> dict[str, pa.Array] | None:
        """Columns of a range, or None if a document in it is unsound or does not fit the schema."""
        types = self._schema.typed()
        parsed = lines.parse(start, stop, types)
        if parsed is None:
            return None
        if not parsed.finite and not batch.inspected:
            return None
        if len(parsed.doubtful):
            doubtful = documents[start:stop].take(pa.array(parsed.doubtful))
            suspects = doubtful.filter(pc.match_substring_regex(doubtful, _LONG_INTEGER))
            for document in suspects.to_pylist():
                self._schema.learn(load(document))
            if self._schema.typed() != types:
                return None
        return parsed.columns

    def _study(self, documents: list[bytes]) -> dict[str, pa.Array]:
        """Widen the schema by a few sound documents, and convert them."""
        loaded = [load(document) for document in documents]
        for document in loaded:
            self._schema.learn(document)
        columns = {}
        for name, kind in self._schema.typed().items():
            node = self._schema.columns[name].node
            columns[name] = pa.array([node.coerce(document.get(name)) for document in loaded], kind)
        return columns

    def _settle(self) -> None:
        """Parse again, until nothing changes, what later documents made wrong."""
        settled = False
        while not settled:
            settled = True
            for batch in self._batches:
                chunks, batch.chunks = batch.chunks, []
                for chunk in chunks:
                    if self._holds(batch, chunk):
                        batch.chunks.append(chunk)
                    else:
                        self._convert(batch, chunk.start, chunk.stop)
                        settled = False

    def _holds(self, batch: _Batch, chunk: _Chunk) -> bool:
        """Whether the columns of a chunk can be promoted to what the schema is now."""

        def minus_zero() -> bool:
            values = batch.values[chunk.start : chunk.stop]
            return bool(pc.any(pc.match_substring_regex(values, _MINUS_ZERO)).as_py())

        types = self._schema.typed()
        return all(
            array.type.equals(types[name]) or lossless(array, types[name], minus_zero)
            for name, array in chunk.typed.items()
            if name in types
        )

    def _typed(self, column: Column) -> pa.ChunkedArray:
        kind = column.node.type()
        arrays = []
        for _, chunk in self._chunks():
            array = chunk.typed.get(column.name)
            if array is None:
                array = pa.nulls(chunk.stop - chunk.start, kind)
            arrays.append(promote(array, kind))
        return _chunked(arrays, kind)

    def _text(self, column: Column) -> pa.ChunkedArray:
        arrays = []
        for batch, chunk in self._chunks():
            array = chunk.texts.get(column.name)
            if array is None:
                if column.name in chunk.typed:
                    array = extract(batch.documents(chunk.start, chunk.stop), column.name)
                else:
                    array = pa.nulls(chunk.stop - chunk.start, pa.string())
            arrays.append(array)
        return _chunked(arrays, pa.string())


def _piece(values: pa.Array, start: int) -> int:
    """Where the piece that starts at `start` ends: `_PIECE` bytes, but at least one row."""
    width = np.int64 if pa.types.is_large_binary(values.type) else np.int32
    offsets = np.frombuffer(values.buffers()[1], width)[values.offset : values.offset + len(values) + 1]
    stop = int(np.searchsorted(offsets, int(offsets[start]) + _PIECE, side="right")) - 1
    return max(stop, start + 1)


def _chunked(arrays: Iterable[pa.Array], kind: pa.DataType) -> pa.ChunkedArray:
    return pa.chunked_array(list(arrays), kind)


def _rejected(batch: _Batch) -> pa.Array:
    if not batch.verdicts.any():
        return pa.nulls(len(batch.values), pa.binary())
    # Not if_else(): that of pyarrow 16 makes broken offsets of binary values and a null.
    good = pa.array(batch.verdicts == Reason.GOOD)
    null = pa.scalar(None, batch.values.type)
    return pc.replace_with_mask(batch.values, good, null).cast(pa.binary())


def _reasons(batch: _Batch) -> pa.Array:
    return _REASONS.take(pa.array(batch.verdicts))


_REASONS = pa.array(
    [None if reason is Reason.GOOD else reason.name.lower() for reason in Reason], pa.string()
)
"""By number; null for values that are sound."""


def _kinds(texts: pa.ChunkedArray) -> dict[str, int]:
    """How many values of each kind a JSON text column has."""
    first = pc.utf8_slice_codeunits(texts, 0, 1)
    counts: Counter[str] = Counter()
    for entry in first.value_counts().to_pylist():
        if entry["values"] is not None:
            counts[_KINDS.get(entry["values"], "number")] += entry["counts"]
    numbers = counts.pop("number", 0)
    if numbers:
        digits = pc.match_substring_regex(texts, r"^-?[0-9]+$")
        integers = pc.sum(digits).as_py()
        counts.update({"integer": integers, "double": numbers - integers})
    return dict(+counts)


_KINDS = {"{": "object", "[": "array", '"': "string", "t": "boolean", "f": "boolean"}
