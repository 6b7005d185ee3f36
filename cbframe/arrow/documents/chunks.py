"""Batches of documents, and the columns that were made of them so far."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

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
    tallies: dict[Place, Tally]

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(slots=True)
class Batch:
    """Some values.

    Attributes
    ----------
    values
        Binary array.
    places
        Where each stands in the bucket.
    verdicts
        What is known of each.
    inspected
        Whether the verdicts of all rows are final; before, a good row may prove unsound.
    chunks
        In the order of the rows, without gaps once all are converted.
    """

    values: pa.Array
    places: Places
    verdicts: Verdicts
    inspected: bool = False
    chunks: list[Chunk] = field(default_factory=list)

    def documents(self, start: int, stop: int) -> pa.Array:
        """Rows as JSON objects: those that are rejected are ``{}``."""
        return blank(self.values[start:stop], self.verdicts[start:stop])


def chunks_of(batches: list[Batch]) -> Iterator[tuple[Batch, Chunk]]:
    """All chunks, in the order of the rows."""
    return ((batch, chunk) for batch in batches for chunk in batch.chunks)
