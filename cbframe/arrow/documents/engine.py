"""Batches of documents to columns, and what is learned of them on the way.

Judge all values at once (``guard``), parse them in one proven call against the types known so far
(``parse``). Only where that fails are documents looked at one by one, and only as many as needed: the
range is halved until the documents that do not fit stand in a range of 64; those add to the facts
(``facts``), from which a new plan follows (``plan``). Where the plan keeps text, documents are
rewritten before (``rewrite``).
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from cbframe.arrow.documents import density, narrow
from cbframe.arrow.documents.chunks import Batch, Chunk
from cbframe.arrow.documents.density import Width
from cbframe.arrow.documents.facts import Facts, Family, at, load
from cbframe.arrow.documents.guard import inspect
from cbframe.arrow.documents.parse import Lines
from cbframe.arrow.documents.plan import Place, Plan, Policy, declared_facts, plan_of
from cbframe.arrow.documents.promote import MINUS_ZERO, kinds, lossless
from cbframe.arrow.documents.rewrite import FAMILIES, MAP_NAME, MAP_VALUE, rewrite, within

_LEAF = 64
"""Documents that are looked at one by one when no smaller range is worth a call of the parser."""
_STEP = 512
"""Documents that are converted at once after one that made the plan change; then twice as many."""
_MOST_FIELDS = 20
"""Times ``max_members``: a column that ever has so many fields inside stays JSON text."""
_LONG_INTEGER = r"[0-9]{16}"
"""Documents without it have no integer that a double would round: 2**53 has 16 digits."""


class Engine:
    """Converts batches, and widens its plan by them.

    Whatever comes in which order, the plan after all of it is the same.

    Parameters
    ----------
    max_depth
        Documents whose arrays and objects nest deeper are rejected (``too_deep``). At most 400:
        the decoders in C recurse.

    Attributes
    ----------
    plan
        It holds all documents so far; as long as it is the same object, nothing was learned.
    wide
        There are more names than may be columns: nothing is converted until :meth:`choose` is told
        how frequent each is.
    """

    def __init__(self, policy: Policy | None = None, *, max_depth: int = 200) -> None:
        self._policy = policy or Policy()
        self._max_depth = min(max_depth, 400)
        self._columns = self._known()
        self._rest = False
        self._unnamed = False
        """Some fields have NUL in their names."""
        self.plan = plan_of(self._columns, self._policy)
        self.wide = False

    def convert(self, batch: Batch, start: int = 0, stop: int | None = None) -> None:
        """Make chunks of some rows of a batch; not all fit the last plan if it changes on the way."""
        stop = len(batch) if stop is None else stop
        step = stop - start
        while start < stop and not self.wide:
            plan = self.plan
            start = self._advance(batch, start, min(start + step, stop))
            # Where something was new, more is: no large range is begun, to be left again.
            step = 2 * step if self.plan is plan else _STEP

    def attempt(self, batch: Batch, plan: Plan) -> bool:
        """Make one chunk of a batch by a plan, without learning anything: whether that worked.

        May run on any thread, for different batches at the same time.
        """
        stop = len(batch)
        if self._narrow(batch, 0, stop, plan):
            return True
        if (plan.rewrites or plan.rest) and not batch.inspected:
            self.inspect(batch)
        rewritten = rewrite(batch.documents(0, stop), plan)
        if rewritten.odd or rewritten.held:
            return False
        parsed = Lines(rewritten.documents).parse(0, stop, plan.types)
        if parsed is None or len(parsed.doubtful) or not parsed.finite:
            return False
        batch.chunks = [Chunk(0, stop, plan, parsed.columns, rewritten.rest, rewritten.tallies)]
        return True

    def _narrow(self, batch: Batch, start: int, stop: int, plan: Plan) -> bool:
        """Make one chunk of rows without rewriting most of them, unless that was tried."""
        if batch.refused is plan:
            return False
        chunk = narrow.convert(batch, start, stop, plan, self._max_depth)
        if chunk is None:
            batch.refused = plan
            return False
        batch.chunks.append(chunk)
        return True

    def _advance(self, batch: Batch, start: int, stop: int) -> int:
        """Convert documents until done, or until the plan changes; return where to go on."""
        plan = self.plan
        if self._narrow(batch, start, stop, plan):
            return stop
        if (plan.rewrites or plan.rest) and not batch.inspected:
            self.inspect(batch)
        originals = batch.documents(start, stop)
        rewritten = rewrite(originals, plan)
        if self._learn(originals, rewritten.odd, batch) or self._learn(originals, rewritten.held, batch):
            return start
        lines = Lines(rewritten.documents)
        ranges = [(start, stop)]
        while ranges:
            low, high = ranges.pop()
            here, there = low - start, high - start
            columns = self._parse(batch, lines, originals, here, there)
            if self.plan is not plan:
                return low
            if columns is None:
                if not batch.inspected:
                    self.inspect(batch)
                    return low
                if high - low > _LEAF:
                    middle = (low + high) // 2
                    ranges += [(middle, high), (low, middle)]
                    continue
                if self._learn(originals, range(here, there), batch):
                    return low
                columns = _by_hand(rewritten.documents[here:there].to_pylist(), plan)
            rest = None if rewritten.rest is None else rewritten.rest[here:there]
            tallies = {path: within(tally, here, there) for path, tally in rewritten.tallies.items()}
            batch.chunks.append(Chunk(low, high, plan, columns, rest, tallies))
        return stop

    def inspect(self, batch: Batch) -> None:
        """Judge each row."""
        batch.verdicts = inspect(batch.values, batch.verdicts, self._max_depth)
        batch.inspected = True

    def _parse(
        self, batch: Batch, lines: Lines, originals: pa.Array, start: int, stop: int
    ) -> dict[str, pa.Array] | None:
        """Columns of a range, or None if a document in it is unsound or does not fit the plan."""
        parsed = lines.parse(start, stop, self.plan.types)
        if parsed is None:
            return None
        if not parsed.finite and not batch.inspected:
            return None
        if len(parsed.doubtful):
            doubtful = originals[start:stop].take(pa.array(parsed.doubtful))
            suspects = doubtful.filter(pc.match_substring_regex(doubtful, _LONG_INTEGER))
            if self._learn(suspects, range(len(suspects)), batch):
                return None
        return parsed.columns

    def _learn(self, documents: pa.Array, rows: Iterable[int], batch: Batch) -> bool:
        """Add to the facts what sound documents of a batch tell; whether the plan is another one now."""
        new = False
        limit = self._policy.max_members
        for row in rows:
            for name, value in load(documents[row].as_py()).items():
                facts = self._columns.get(name)
                if facts is None:
                    if "\0" in name:
                        new |= not self._unnamed
                        self._unnamed = True
                        continue
                    if self._rest:
                        continue
                    facts = self._columns[name] = Facts()
                    new = True
                new |= facts.learn(value, limit)
        if new:
            density.keep(self._columns, self._policy.maps, limit)
        if new and batch.inspected:
            density.guess(self._columns, batch, limit)
        return new and self._replan()

    def _replan(self) -> bool:
        """Make the plan anew; whether it is another one."""
        self.wide = len(self._columns) > self._policy.max_columns
        for facts in self._columns.values():
            if facts.nested() > _MOST_FIELDS * self._policy.max_members:
                facts.close()
        plan = plan_of(self._columns, self._policy, closed=self._rest, unnamed=self._unnamed)
        if plan == self.plan:
            return False
        self.plan = plan
        return True

    def choose(self, counts: Mapping[str, int]) -> None:
        """Of too many names take the most frequent ones."""
        declared = self._policy.declared
        counts = {name: count for name, count in counts.items() if "\0" not in name}
        chosen = sorted(counts.keys() - declared.keys(), key=lambda name: (-counts[name], name))
        known = self._known()
        names = [*declared, *chosen[: self._policy.max_columns - len(declared)]]
        self._columns = {name: known.get(name) or Facts() for name in names}
        self.close()

    def _known(self) -> dict[str, Facts]:
        """What is known of fields before any document."""
        known = copy.deepcopy(dict(self._policy.known))
        return known | {name: declared_facts(kind) for name, kind in self._policy.declared.items()}

    def close(self) -> None:
        """There are to be no more columns than there are now."""
        self._rest = True
        self._replan()

    def settle(self, widths: Mapping[Place, Width]) -> bool:
        """Decide where names of objects are data, by all documents; whether the plan is another one now."""
        return density.settle(self._columns, widths, self._policy.max_members) and self._replan()

    def narrow(self, counts: Mapping[Place, Mapping[str, int]]) -> bool:
        """Where values have no common type, keep the most frequent family; whether there was such."""
        narrowed = False
        for place, _ in list(self.plan.conflicts()):
            facts = at(self._columns, place)
            families = facts.families()
            if facts.only is not None or len(families) < 2:
                continue
            sizes: Counter[Family] = Counter()
            for kind, number in counts[place].items():
                sizes[FAMILIES[kind]] += number
            facts.restart(max(families, key=lambda family: sizes[family]))
            narrowed = True
        return narrowed and self._replan()

    def holds(self, batch: Batch, chunk: Chunk) -> bool:
        """Whether the columns of a chunk can be promoted to what the plan is now."""

        def minus_zero() -> bool:
            values = batch.values[chunk.start : chunk.stop]
            return bool(pc.any(pc.match_substring_regex(values, MINUS_ZERO)).as_py())

        return all(
            lossless(array, chunk.plan.members[name], self.plan.members[name], minus_zero)
            for name, array in chunk.columns.items()
        )

    def told(self, chunk: Chunk) -> Chunk:
        """A chunk that holds, with the kinds of values that have become text since it was made."""
        if chunk.plan is self.plan:
            return chunk
        tallies = {place: dict(tally) for place, tally in chunk.tallies.items()}
        for name, array in chunk.columns.items():
            for place, kind, rows in kinds(array, chunk.plan.members[name], self.plan.members[name], (name,)):
                tallies[place] = {kind: rows}
        return replace(chunk, tallies=tallies)


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
    if plan.how == "map" and plan.item is not None:
        return [(each[MAP_NAME], _cell(each[MAP_VALUE], plan.item)) for each in value]
    if pa.types.is_floating(plan.type):
        return float(value)
    if pa.types.is_integer(plan.type):
        return int(value)
    if plan.item is not None:
        return [_cell(item, plan.item) for item in value]
    if pa.types.is_struct(plan.type):
        return {name: _cell(member, plan.members[name]) for name, member in value.items()}
    return value
