"""Documents typed as a file of a snapshot would be: on their own, in batches."""

from __future__ import annotations

import pyarrow as pa
from typed_documents import JsonTyper

from cbframe.arrow.documents.unify import Columns, ColumnsBuilder
from cbframe.json.layout import Policy

File = tuple[pa.Table, Columns]


def typed(values: list[bytes], policy: Policy | None = None, size: int = 4) -> File:
    """The table of some documents, in chunks, and what its columns are."""
    typer = JsonTyper(policy)
    for start in range(0, len(values), size):
        typer.add(pa.array(values[start : start + size], pa.binary()))
    found = typer.finish()
    builder = ColumnsBuilder(found.table.schema, found.root)
    builder.look(found.table)
    if not found.table.num_columns:
        return pa.table({"": pa.nulls(len(values))}).select([]), builder.columns()
    return found.table, builder.columns()
