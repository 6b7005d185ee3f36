"""Documents typed as a file of a snapshot would be: on their own, in bounded memory."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from cbframe.arrow.documents.chunks import Batch
from cbframe.arrow.documents.guard import screen
from cbframe.arrow.documents.order import Places
from cbframe.arrow.documents.passes import PassingTyper
from cbframe.arrow.documents.plan import Policy
from cbframe.arrow.documents.unify import Columns, ColumnsBuilder

File = tuple[pa.Table, Columns]


@dataclass
class Documents:
    """Batches of a few documents, made anew each time."""

    values: list[bytes]
    size: int

    def __len__(self) -> int:
        return (len(self.values) + self.size - 1) // self.size

    def load(self, number: int) -> Batch:
        start = number * self.size
        values = pa.array(self.values[start : start + self.size], pa.binary())
        rows = np.arange(start, start + len(values))
        places = Places(np.zeros(len(values), np.uint16), rows.astype(np.uint64))
        return Batch(values, places, screen(values, None))


def typed(values: list[bytes], policy: Policy | None = None, size: int = 4) -> File:
    """The table of some documents, in chunks, and what its columns are."""
    documents = Documents(values, size)
    typer = PassingTyper(policy or Policy())
    for number in range(len(documents)):
        typer.learn(documents.load(number))
    layout = typer.settle(documents)
    schema = layout.table([]).schema
    builder = ColumnsBuilder(schema, layout.plan)
    tables = list(typer.tables(documents, layout))
    for table in tables:
        builder.look(table)
    if not schema.names:
        return pa.table({"": pa.nulls(len(values))}).select([]), builder.columns()
    return pa.concat_tables([schema.empty_table(), *tables]), builder.columns()
