"""Batches of documents, and the columns that were made of them so far."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import pyarrow as pa

from cbframe.arrow.documents.guard import Verdicts, blank
from cbframe.arrow.documents.order import Places
from cbframe.arrow.documents.plan import Place, Plan
from cbframe.arrow.documents.rewrite import Tally


@dataclass(frozen=True, slots=True)
class Chunk:
    """Columns of some documents of a batch, as they were parsed.

    Attributes
    ----------
    start, stop
        Rows of the batch.
    plan
        The plan by which they were parsed.
    columns
        By name.
    rest
        The members that are no columns, JSON text; None if the plan has columns for all.
    tallies
        For each field without a common type, by path, the rows with each kind of value.
    """

    start: int
    stop: int
    plan: Plan
    columns: dict[str, pa.Array]
    rest: pa.Array | None
    tallies: Mapping[Place, Tally]

    def __len__(self) -> int:
        return self.stop - self.start


class Batch:
    """Some values.

    Parameters
    ----------
    values
        Binary array without nulls.
    places
        Where each stands in the bucket.
    verdicts
        What is known of each.

    Attributes
    ----------
    places, verdicts
        As given; verdicts change.
    inspected
        Whether the verdicts of all rows are final; before, a good row may prove unsound.
    refused
        The plan by which its documents have to be rewritten one by one, as was found.
    chunks
        In the order of the rows, without gaps once all are converted.
    """

    __slots__ = ("_fetch", "_rows", "_values", "chunks", "inspected", "places", "refused", "verdicts")

    def __init__(self, values: pa.Array, places: Places, verdicts: Verdicts) -> None:
        self._rows = len(values)
        self._values: pa.Array | None = values
        self._fetch: Callable[[], pa.Array] | None = None
        self.places = places
        self.verdicts = verdicts
        self.inspected = False
        self.refused: Plan | None = None
        self.chunks: list[Chunk] = []

    def __len__(self) -> int:
        return self._rows

    @property
    def values(self) -> pa.Array:
        """The values; fetched each time if they were put aside, unless :meth:`fetch` was called."""
        if self._values is not None:
            return self._values
        assert self._fetch is not None
        return self._fetch()

    def fetch(self) -> None:
        """Take up the values again, until they are released."""
        self._values = self.values

    def release(self, put: Callable[[pa.Array], Callable[[], pa.Array]]) -> None:
        """Put the values aside; `put` is called once for the batch, and returns what fetches them."""
        if self._fetch is None:
            self._fetch = put(self.values)
        self._values = None

    def documents(self, start: int, stop: int) -> pa.Array:
        """Rows as JSON objects: those that are rejected are ``{}``."""
        return blank(self.values[start:stop], self.verdicts[start:stop])


def chunks_of(batches: list[Batch]) -> Iterator[tuple[Batch, Chunk]]:
    """All chunks, in the order of the rows."""
    return ((batch, chunk) for batch in batches for chunk in batch.chunks)
