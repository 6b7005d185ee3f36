"""Documents typed as a file of a snapshot would be: on their own, in batches."""

from __future__ import annotations

import pyarrow as pa
from typed_documents import JsonTyper

from cbframe.arrow.column_types import Columns, ColumnsBuilder
from cbframe.json.layout import Column, FieldPath, Policy, struct

File = tuple[pa.Table, Columns]


def typed(values: list[bytes], policy: Policy | None = None, size: int = 4) -> File:
    """The table of some documents, in chunks, and what its columns are."""
    typer = JsonTyper(policy)
    for start in range(0, len(values), size):
        typer.add(pa.array(values[start : start + size], pa.binary()))
    found = typer.finish()
    columns = described(found.table, found.root)
    if not found.table.num_columns:
        return pa.table({"": pa.nulls(len(values))}).select([]), columns
    return found.table, columns


def described(table: pa.Table, plan: Column | None = None) -> Columns:
    """What the columns of a table are, which a plan made."""
    builder = ColumnsBuilder(table.schema, plan or struct({}))
    builder.look(table)
    return builder.columns()


def marked(columns: Columns, mark: str) -> set[FieldPath]:
    """Where columns have a mark."""
    return {place for place, kind in columns.walk() if getattr(kind, mark)}
