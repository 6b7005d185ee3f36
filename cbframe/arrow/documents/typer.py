"""JSON documents to typed Arrow columns, one schema over all batches.

Per batch: judge all values at once (``guard``), parse them in one proven call against the types
known so far (``parse``). Only where that fails are documents looked at one by one, and only as many
as needed: the range is halved until the documents that do not fit stand in a range of 64; those add
to the facts (``facts``), from which a new plan follows (``plan``). Where the plan keeps text,
documents are rewritten before (``rewrite``).

Types, values, and the order of columns follow from the documents alone: not from how they came in
batches, nor from the order in which they came.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from decimal import Decimal
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cbframe.arrow.documents.chunks import Batch, Chunk
from cbframe.arrow.documents.facts import Facts, Family, at, load
from cbframe.arrow.documents.guard import inspect, screen
from cbframe.arrow.documents.order import Places
from cbframe.arrow.documents.parse import Lines
from cbframe.arrow.documents.plan import Plan, Policy, declared_facts, plan_of
from cbframe.arrow.documents.promote import lossless
from cbframe.arrow.documents.result import TypedColumns, assemble, count
from cbframe.arrow.documents.rewrite import FAMILIES, count_names, rewrite, within

_LEAF = 64
"""Documents that are looked at one by one when no smaller range is worth a call of the parser."""
_PIECE = 64 << 20
"""Bytes that are parsed at once at most."""
_MOST_FIELDS = 20
"""Times ``max_members``: a column that ever has so many fields inside stays JSON text."""
_LONG_INTEGER = r"[0-9]{16}"
"""Documents without it have no integer that a double would round: 2**53 has 16 digits."""
_MINUS_ZERO = r"-0[\s,\]}]"
"""Documents without it have no integer -0."""


class JsonTyper:
    """Typed columns for JSON documents, one schema over all batches.

    No value ever makes a call fail. Values are kept until :meth:`finish`, for the columns that turn
    out to be text later.

    Parameters
    ----------
    policy
        What the caller decides about types.
    max_depth
        Documents whose arrays and objects nest deeper are rejected (``too_deep``). At most 400:
        the decoders in C recurse.
    """

    def __init__(self, policy: Policy | None = None, *, max_depth: int = 200) -> None:
        self._policy = policy or Policy()
        self._max_depth = min(max_depth, 400)
        self._columns = {name: declared_facts(kind) for name, kind in self._policy.declared.items()}
        self._plan = plan_of(self._columns, self._policy)
        self._wide = False
        """There are more names than may be columns: which ones is known when all documents are."""
        self._rest = False
        self._to_infer = self._policy.infer_length or 0
        self._batches: list[Batch] = []

    def add(
        self,
        values: pa.Array,
        is_json: npt.NDArray[np.bool_] | None = None,
        places: Places | None = None,
    ) -> None:
        """Convert a batch.

        Parameters
        ----------
        values
            Binary or large binary array without nulls: one document a row, any bytes at all.
        is_json
            What the server says of each row; rows that it does not call JSON are not tried.
        places
            Where each document stands; by default in the order in which they are added.
        """
        assert values.null_count == 0
        if places is None:
            before = sum(len(batch.values) for batch in self._batches)
            places = Places(
                np.zeros(len(values), np.uint16),
                np.arange(before, before + len(values), dtype=np.uint64),
            )
        start = 0
        while start < len(values):
            stop = min(_piece(values, start), start + (self._to_infer or len(values)))
            piece = values[start:stop]
            verdicts = screen(piece, None if is_json is None else is_json[start:stop])
            batch = Batch(piece, places[start:stop], verdicts)
            if not self._wide:
                self._convert(batch, 0, len(piece))
            self._batches.append(batch)
            start = stop
            if self._to_infer:
                self._to_infer -= len(piece)
                if not self._to_infer:
                    self._close()

    def finish(self) -> TypedColumns:
        """All rows as one table; the typer is empty afterwards and cannot be used again."""
        if self._wide:
            self._choose_columns()
        self._settle()
        while self._policy.on_conflict == "null" and self._narrow():
            self._settle()
        batches, self._batches = self._batches, []
        return assemble(batches, self._plan)

    # -- one batch after the other

    def _convert(self, batch: Batch, start: int, stop: int) -> None:
        while start < stop and not self._wide:
            start = self._advance(batch, start, stop)

    def _advance(self, batch: Batch, start: int, stop: int) -> int:
        """Convert documents until done, or until the plan changes; return where to go on."""
        plan = self._plan
        if (plan.rewrites or plan.rest) and not batch.inspected:
            self._inspect(batch)
        originals = batch.documents(start, stop)
        rewritten = rewrite(originals, plan)
        if self._learn(originals, rewritten.odd) or self._learn(originals, rewritten.held):
            return start
        lines = Lines(rewritten.documents)
        ranges = [(start, stop)]
        while ranges:
            low, high = ranges.pop()
            here, there = low - start, high - start
            columns = self._parse(batch, lines, originals, here, there)
            if self._plan is not plan:
                return low
            if columns is None:
                if not batch.inspected:
                    self._inspect(batch)
                    return low
                if high - low > _LEAF:
                    middle = (low + high) // 2
                    ranges += [(middle, high), (low, middle)]
                    continue
                if self._learn(originals, range(here, there)):
                    return low
                columns = _by_hand(rewritten.documents[here:there].to_pylist(), plan)
            rest = None if rewritten.rest is None else rewritten.rest[here:there]
            tallies = {path: within(tally, here, there) for path, tally in rewritten.tallies.items()}
            batch.chunks.append(Chunk(low, high, plan, columns, rest, tallies))
        return stop

    def _inspect(self, batch: Batch) -> None:
        batch.verdicts = inspect(batch.values, batch.verdicts, self._max_depth)
        batch.inspected = True

    def _parse(
        self, batch: Batch, lines: Lines, originals: pa.Array, start: int, stop: int
    ) -> dict[str, pa.Array] | None:
        """Columns of a range, or None if a document in it is unsound or does not fit the plan."""
        parsed = lines.parse(start, stop, self._plan.types)
        if parsed is None:
            return None
        if not parsed.finite and not batch.inspected:
            return None
        if len(parsed.doubtful):
            doubtful = originals[start:stop].take(pa.array(parsed.doubtful))
            suspects = doubtful.filter(pc.match_substring_regex(doubtful, _LONG_INTEGER))
            if self._learn(suspects, range(len(suspects))):
                return None
        return parsed.columns

    def _learn(self, documents: pa.Array, rows: Iterable[int]) -> bool:
        """Add to the facts what sound documents tell; whether the plan is another one now."""
        new = False
        limit = self._policy.max_members
        for row in rows:
            for name, value in load(documents[row].as_py()).items():
                facts = self._columns.get(name)
                if facts is None:
                    if self._rest:
                        continue
                    facts = self._columns[name] = Facts()
                    new = True
                new |= facts.learn(value, limit)
        return new and self._replan()

    def _replan(self) -> bool:
        """Make the plan anew; whether it is another one."""
        self._wide = len(self._columns) > self._policy.max_columns
        for facts in self._columns.values():
            if facts.nested() > _MOST_FIELDS * self._policy.max_members:
                facts.close()
        plan = plan_of(self._columns, self._policy, rest=self._rest)
        if plan == self._plan:
            return False
        self._plan = plan
        return True

    # -- all batches

    def _choose_columns(self) -> None:
        """Of too many names take the most frequent ones."""
        counts: Counter[str] = Counter()
        for batch in self._batches:
            batch.chunks.clear()
            if not batch.inspected:
                self._inspect(batch)
            count_names(batch.documents(0, len(batch.values)), counts)
        declared = self._policy.declared
        chosen = sorted(counts.keys() - declared.keys(), key=lambda name: (-counts[name], name))
        self._columns = {name: declared_facts(kind) for name, kind in declared.items()}
        self._columns |= {name: Facts() for name in chosen[: self._policy.max_columns - len(declared)]}
        self._rest = True
        self._replan()
        for batch in self._batches:
            self._convert(batch, 0, len(batch.values))

    def _close(self) -> None:
        """There are to be no more columns than there are now."""
        if self._wide:
            self._choose_columns()
        self._rest = True
        self._replan()

    def _narrow(self) -> bool:
        """Where values have no common type, keep the most frequent family; whether there was such."""
        counts = count(self._batches)
        narrowed = False
        for path, _ in list(self._plan.conflicts()):
            facts = at(self._columns, path)
            families = facts.families()
            if facts.only is not None or len(families) < 2:
                continue
            sizes: Counter[Family] = Counter()
            for kind, number in counts[path].items():
                sizes[FAMILIES[kind]] += number
            facts.restart(max(families, key=lambda family: sizes[family]))
            narrowed = True
        return narrowed and self._replan()

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
                if self._wide:
                    self._choose_columns()
                    settled = False

    def _holds(self, batch: Batch, chunk: Chunk) -> bool:
        """Whether the columns of a chunk can be promoted to what the plan is now."""

        def minus_zero() -> bool:
            values = batch.values[chunk.start : chunk.stop]
            return bool(pc.any(pc.match_substring_regex(values, _MINUS_ZERO)).as_py())

        return all(
            lossless(array, chunk.plan.members[name], self._plan.members[name], minus_zero)
            for name, array in chunk.columns.items()
        )


def _piece(values: pa.Array, start: int) -> int:
    """Where the piece that starts at `start` ends: `_PIECE` bytes, but at least one row."""
    width = np.int64 if pa.types.is_large_binary(values.type) else np.int32
    offsets = np.frombuffer(values.buffers()[1], width)[values.offset : values.offset + len(values) + 1]
    stop = int(np.searchsorted(offsets, int(offsets[start]) + _PIECE, side="right")) - 1
    return max(stop, start + 1)


def _by_hand(documents: list[bytes], plan: Plan) -> dict[str, pa.Array]:
    """Columns of a few documents that fit the plan, and were rewritten by it."""
    loaded = [load(document) for document in documents]
    return {
        name: pa.array([_cell(document.get(name), member) for document in loaded], member.type)
        for name, member in plan.members.items()
    }


def _cell(value: Any, plan: Plan) -> Any:
    """The Python value of which ``pa.array(..., plan.type)`` makes the cell."""
    if value is None:
        return None
    if plan.how == "digits":
        return Decimal(value)
    if pa.types.is_floating(plan.type):
        return float(value)
    if pa.types.is_integer(plan.type):
        return int(value)
    if plan.item is not None:
        return [_cell(item, plan.item) for item in value]
    if pa.types.is_struct(plan.type):
        return {name: _cell(member, plan.members[name]) for name, member in value.items()}
    return value
