"""JSON documents to typed Arrow columns, one schema over all batches, all of them in memory.

Types, values, and the order of columns follow from the documents alone: not from how they came in
batches, nor from the order in which they came.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cbframe.arrow.documents.census import Census
from cbframe.arrow.documents.chunks import Batch
from cbframe.arrow.documents.compiled import engine
from cbframe.arrow.documents.density import Widths, merge, widths_of
from cbframe.arrow.documents.guard import screen
from cbframe.arrow.documents.order import Places
from cbframe.arrow.documents.plan import Place, Policy
from cbframe.arrow.documents.result import TypedColumns, assemble
from cbframe.arrow.documents.rewrite import count_names
from cbframe.arrow.shelf import Shelf

Submit = Callable[[Callable[[], bool]], Callable[[], bool]]

_PIECE = 64 << 20
"""Bytes that are parsed at once at most."""


class JsonTyper:
    """Typed columns for JSON documents, one schema over all batches.

    No value ever makes a call fail. Values are kept until :meth:`finish`, for the columns that turn
    out to be text later.

    Parameters
    ----------
    policy
        What the caller decides about types.
    max_depth
        Documents whose arrays and objects nest deeper are rejected (``too_deep``).
    submit
        Begins with some work on another thread, and returns what waits for its end; None to do all
        work at once. Also then only :meth:`add` and :meth:`finish` learn of documents, one by one.
    most
        How many batches are under way on other threads.
    shelf
        Where values are put aside when they are converted: to be read again if later documents make their
        columns wrong. By default in memory.
    """

    def __init__(
        self,
        policy: Policy | None = None,
        *,
        max_depth: int = 200,
        submit: Submit | None = None,
        most: int = 2,
        shelf: Shelf | None = None,
    ) -> None:
        self._policy = policy or Policy()
        self._engine = engine(self._policy, max_depth=max_depth)
        self._to_infer = self._policy.infer_length or 0
        self._batches: list[Batch] = []
        self._submit = submit
        self._most = most
        self._shelf = shelf
        self._under_way: deque[tuple[Batch, Callable[[], bool]]] = deque()

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
            before = sum(len(batch) for batch in self._batches)
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
            self._batches.append(batch)
            self._convert(batch)
            start = stop
            if self._to_infer:
                self._to_infer -= len(piece)
                if not self._to_infer:
                    self._choose_columns()
                    self._engine.close()

    def _convert(self, batch: Batch) -> None:
        plan = self._engine.plan
        if self._submit is None or self._to_infer or self._engine.wide or not plan.members:
            self._engine.convert(batch)
            self._release(batch)
            return
        if len(self._under_way) >= self._most:
            self._complete()
        self._under_way.append((batch, self._submit(partial(self._engine.attempt, batch, plan))))

    def _complete(self) -> None:
        """Wait for the first batch that is under way; if it does not fit, there is something to learn."""
        batch, wait = self._under_way.popleft()
        if not wait():
            self._engine.convert(batch)
        self._release(batch)

    def _release(self, batch: Batch) -> None:
        if self._shelf is not None:
            batch.release(self._shelf.put)

    def _complete_all(self) -> None:
        while self._under_way:
            self._complete()

    def batches(self) -> Iterator[tuple[pa.Array, Places]]:
        """Values and places of all batches so far, as they were added."""
        self._complete_all()
        return ((batch.values, batch.places) for batch in self._batches)

    def finish(self) -> TypedColumns:
        """All rows as one table; the typer is empty afterwards and cannot be used again."""
        self._complete_all()
        self._settle()
        while self._engine.settle(self._widths()) or (
            self._policy.on_conflict == "null" and self._engine.narrow(self._counts())
        ):
            self._settle()
        batches, self._batches = self._batches, []
        return assemble(batches, self._engine.plan)

    def _widths(self) -> Widths:
        found: Widths = {}
        for batch in self._batches:
            merge(found, widths_of(batch, self._engine.plan))
        return found

    def _counts(self) -> dict[Place, Counter[str]]:
        census = Census()
        for batch in self._batches:
            census.add(batch, self._engine.plan, int)
        return census.counts

    def _choose_columns(self) -> None:
        """If there are too many names, take the most frequent ones, and begin anew."""
        if not self._engine.wide:
            return
        counts: Counter[str] = Counter()
        for batch in self._batches:
            batch.chunks.clear()
            with self._fetched(batch):
                if not batch.inspected:
                    self._engine.inspect(batch)
                count_names(batch.documents(0, len(batch)), counts)
        self._engine.choose(counts)
        for batch in self._batches:
            with self._fetched(batch):
                self._engine.convert(batch)

    @contextmanager
    def _fetched(self, batch: Batch) -> Iterator[None]:
        """Values are in memory while they are looked at again and again."""
        batch.fetch()
        yield
        self._release(batch)

    def _settle(self) -> None:
        """Parse again, until nothing changes, what later documents made wrong."""
        settled = False
        while not settled:
            self._choose_columns()
            settled = True
            for batch in self._batches:
                chunks, batch.chunks = batch.chunks, []
                held = [self._engine.holds(batch, chunk) for chunk in chunks]
                if all(held):
                    batch.chunks = [self._engine.told(chunk) for chunk in chunks]
                    continue
                settled = False
                with self._fetched(batch):
                    for chunk, holds in zip(chunks, held, strict=True):
                        if holds:
                            batch.chunks.append(chunk)
                        else:
                            self._engine.convert(batch, chunk.start, chunk.stop)


def _piece(values: pa.Array, start: int) -> int:
    """Where the piece that starts at `start` ends: `_PIECE` bytes, but at least one row."""
    width = np.int64 if pa.types.is_large_binary(values.type) else np.int32
    offsets = np.frombuffer(values.buffers()[1], width)[values.offset : values.offset + len(values) + 1]
    stop = int(np.searchsorted(offsets, int(offsets[start]) + _PIECE, side="right")) - 1
    return max(stop, start + 1)
