"""A typed table on the way out: rows that are no documents, columns inside of columns."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cbframe.arrow.documents.parse import member_of
from cbframe.errors import ConfigurationError, ConversionError
from cbframe.json.layout import Path
from cbframe.json.typer import OURS, REASON, VALUE


def refuse_rejected(rejected: dict[str, int], rows: int) -> None:
    """Raise where any value is no JSON object."""
    if rejected:
        kinds = ", ".join(f"{count:,} {reason}" for reason, count in rejected.items())
        raise ConversionError(
            f"{sum(rejected.values()):,} of {rows:,} values are no JSON objects: {kinds}",
            hint=f'errors="keep" puts them into the column {VALUE}, errors="drop" leaves them out',
        )


def sound_rows(table: pa.Table) -> npt.NDArray[np.bool_]:
    """Which rows are documents."""
    sound: npt.NDArray[np.bool_] = np.asarray(table[VALUE].is_null())
    return sound


def without_rejected(table: pa.Table) -> pa.Table:
    """The documents, without the columns for what is none."""
    return table.drop_columns([name for name in (VALUE, REASON) if name in table.column_names])


def cast_to(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The columns of a schema that somebody else declared, metadata among them."""
    try:
        return table.select(schema.names).cast(schema)
    except (pa.ArrowException, ValueError):
        wrong = next((each for each in schema if not _holds(each, table[each.name])), schema.field(0))
    # Not from the other error: that one tells of keys and values.
    raise ConversionError(
        f"column {wrong.name!r} is {table[wrong.name].type}, and has values for which there is no place in "
        f"the declared {wrong.type}{'' if wrong.nullable else ' not null'}",
        hint="declare a type that holds all values, and NOT NULL only what every row has",
    )


def _holds(declared: pa.Field, column: pa.ChunkedArray) -> bool:
    try:
        cast = column.cast(declared.type)
    except pa.ArrowException:
        return False
    return bool(declared.nullable or not cast.null_count)


def selected(table: pa.Table, paths: Iterable[Path], *, rows: int, lenient: bool = False) -> pa.Table:
    """The columns that were asked for: fields by their path, named as :func:`joined` does it."""
    columns: dict[str, pa.ChunkedArray] = {}
    for path in paths:
        name, members = joined(path[:1]), path[1:]
        column = table[name] if name in table.column_names else None
        for depth, member in enumerate(members, 1):
            if column is not None and pa.types.is_string(column.type):
                # There may well be documents that have it.
                outer = ".".join(path[:depth])
                raise ConfigurationError(
                    f"columns= names {'.'.join(path)!r}, and {outer!r} is text",
                    hint=f"leave {outer!r} out of columns=, or read it alone and look into the text",
                )
            column = None if column is None else member_of(column, member)
        if column is None and lenient:
            column = pa.chunked_array([pa.nulls(rows)])
        if column is None:
            raise ConfigurationError(
                f"columns= names {'.'.join(path)!r}, which no document has",
                hint="read without columns= to see the fields, or look with peek()",
            )
        columns[joined(path)] = column
    return pa.table(columns)


def lacking(schema: pa.Schema, path: Path) -> bool:
    """Whether no document has a field, as columns that are not selected tell; of text and maps nobody can."""
    name = joined(path[:1])
    kind = schema.field(name).type if name in schema.names else None
    for member in path[1:]:
        if kind is None or pa.types.is_string(kind) or pa.types.is_map(kind):
            break
        at = kind.get_field_index(member) if pa.types.is_struct(kind) else -1
        kind = None if at < 0 else kind.field(at).type
    return kind is None


def joined(path: Path) -> str:
    """The name of a field's column: ``parent.child``, and a ``_`` behind it if it begins as ours do."""
    name = ".".join(path)
    return name + "_" if name.startswith(OURS) and name not in (VALUE, REASON) else name


def flattened(table: pa.Table) -> pa.Table:
    """Each field of a struct as a column of its own, named ``parent.child``; lists and maps stay as they are.

    A name that a column has already gets a ``_`` behind it.
    """
    columns: dict[str, pa.ChunkedArray] = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        own = name.startswith(OURS) and name.endswith("_")
        for path, leaf in _leaves(name.removesuffix("_") if own else name, column):
            free = path + "_" if own else path
            while free in columns or (free != name and free in table.column_names):
                free += "_"
            columns[free] = leaf
    return pa.table(columns)


def _leaves(name: str, column: pa.ChunkedArray) -> list[tuple[str, pa.ChunkedArray]]:
    # A struct without fields is all that there is of it.
    if not pa.types.is_struct(column.type) or not column.type.num_fields:
        return [(name, column)]
    return [
        leaf
        for field, child in zip(column.type, column.flatten(), strict=True)
        for leaf in _leaves(f"{name}.{field.name}", child)
    ]
