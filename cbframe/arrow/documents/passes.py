"""Typed documents of any number in bounded memory: batches are read again instead of kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Protocol

import pyarrow as pa

from cbframe.arrow.documents.census import Census
from cbframe.arrow.documents.chunks import Batch
from cbframe.arrow.documents.compiled import engine
from cbframe.arrow.documents.plan import Plan, Policy
from cbframe.arrow.documents.result import Layout
from cbframe.arrow.documents.rewrite import count_names


class Pieces(Protocol):
    """Batches of documents that can be read any number of times."""

    def __len__(self) -> int:
        """How many there are."""

    def load(self, number: int) -> Batch:
        """Read one."""


class PassingTyper:
    """Finds the columns of documents, and makes them, batch by batch.

    First :meth:`learn` from each batch as it comes. When all are there, :meth:`settle` reads those
    again that came before the types were known, and :meth:`tables` reads all and makes the tables. The
    result is that of :class:`~cbframe.arrow.documents.typer.JsonTyper`.

    Attributes
    ----------
    census
        What all documents tell, once they are settled; samples are numbers of a batch and of a row in it.
    """

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._to_infer = policy.infer_length or 0
        self._head: list[Batch] = []
        self._engine = engine(policy)
        self._plans: list[Plan | None] = []
        """By which plan each batch was converted; None if by none, or by several."""
        self._counted = self._engine.plan
        """The plan of the batches that are in the census."""
        self.census = Census()

    def learn(self, batch: Batch) -> None:
        """Look at the next batch."""
        head = min(self._to_infer, len(batch))
        if head:
            self._infer(batch, head)
        self._engine.convert(batch, head)
        self._plans.append(None)
        self._count(len(self._plans) - 1, batch)

    def _infer(self, batch: Batch, head: int) -> None:
        """Columns are what the first documents have: these are kept until all of them are there."""
        self._engine.convert(batch, 0, head)
        first = Batch(batch.values[:head], batch.places[:head], batch.verdicts[:head])
        self._head.append(first)
        self._to_infer -= head
        if self._to_infer:
            return
        if self._engine.wide:
            counts: Counter[str] = Counter()
            for each in self._head:
                self._names(each, counts)
            self._engine.choose(counts)
        self._engine.close()
        self._head.clear()

    def settle(self, pieces: Pieces) -> Layout:
        """Read batches again until one plan fits all of them, and lay out the columns."""
        assert len(self._plans) == len(pieces)
        while True:
            if self._engine.wide:
                self._choose_columns(pieces)
            for number, plan in enumerate(self._plans):
                if plan is not self._engine.plan:
                    batch = pieces.load(number)
                    self._engine.convert(batch)
                    self._count(number, batch)
            if self._engine.wide or any(plan is not self._engine.plan for plan in self._plans):
                continue
            if self._engine.settle(self.census.widths):
                continue
            if self._policy.on_conflict != "null" or not self._engine.narrow(self.census.counts):
                return Layout.of(self._engine.plan, self.census)

    def tables(self, pieces: Pieces, layout: Layout) -> Iterator[pa.Table]:
        """The columns of each batch."""
        for number in range(len(pieces)):
            batch = pieces.load(number)
            self._engine.convert(batch)
            assert self._engine.plan is layout.plan, "it has seen all documents"
            yield layout.table([batch])

    def _count(self, number: int, batch: Batch) -> None:
        """Add a batch to the census, if the last plan fits all of it."""
        plan = self._engine.plan
        if plan is not self._counted:
            self._counted, self.census = plan, Census()
        self._plans[number] = None
        whole = sum(map(len, batch.chunks)) == len(batch)
        if whole and all(chunk.plan is plan for chunk in batch.chunks):
            self._plans[number] = plan
            self.census.add(batch, plan, lambda row: (number, row))

    def _choose_columns(self, pieces: Pieces) -> None:
        counts: Counter[str] = Counter()
        for number in range(len(pieces)):
            self._names(pieces.load(number), counts)
        self._engine.choose(counts)

    def _names(self, batch: Batch, counts: Counter[str]) -> None:
        self._engine.inspect(batch)
        count_names(batch.documents(0, len(batch)), counts)
