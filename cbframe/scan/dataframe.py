"""From Arrow to pandas."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Self

import pandas as pd
import pyarrow as pa

from cbframe.arrow.column_types import Marks
from cbframe.arrow.columns import KEY
from cbframe.errors import ConfigurationError
from cbframe.scan.spec import DTYPE_BACKENDS

_NULLABLE = {
    pa.bool_(): pd.BooleanDtype(),
    pa.int8(): pd.Int8Dtype(),
    pa.int16(): pd.Int16Dtype(),
    pa.int32(): pd.Int32Dtype(),
    pa.int64(): pd.Int64Dtype(),
    pa.uint8(): pd.UInt8Dtype(),
    pa.uint16(): pd.UInt16Dtype(),
    pa.uint32(): pd.UInt32Dtype(),
    pa.uint64(): pd.UInt64Dtype(),
    pa.float32(): pd.Float32Dtype(),
    pa.float64(): pd.Float64Dtype(),
    pa.string(): pd.StringDtype(),
    pa.large_string(): pd.StringDtype(),
}
_NULLABLE_ALONE = {
    kind: dtype for kind, dtype in _NULLABLE.items() if pa.types.is_integer(kind) or pa.types.is_boolean(kind)
}
"""Types of which numpy's cannot hold missing values."""


class FrameAttributes(dict[str, Any]):
    """The value of ``df.attrs["cbframe"]``."""

    # Copies of it are the object itself: pandas copies ``attrs`` deeply at every step, and a report of a
    # thousand fields would cost more than the step.
    __slots__ = ()

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self


def to_pandas(
    table: pa.Table,
    dtype_backend: str | None,
    attributes: dict[str, Any] | None = None,
    *,
    fixed_dtypes: bool = False,
) -> pd.DataFrame:
    """A DataFrame whose index is the column ``_cb_key``, with `attributes` as ``attrs["cbframe"]``."""
    # "pyarrow" keeps every type, "numpy_nullable" uses pandas' own nullable types, None numpy's, which turn
    # integers with missing values into floats, but for those that no float holds: these are objects, as are
    # integers in arrays with nulls among them. Extended attributes are lists of pairs with the first, and
    # dicts with the others.
    #
    # With `fixed_dtypes`, dtypes follow from the table's types alone, whatever its values are, so that those
    # of several tables are the same: with None, integers and booleans have pandas' nullable types, and
    # without "pyarrow" dictionaries, whose categories are those of the values, become what they are of.
    if dtype_backend not in DTYPE_BACKENDS:
        raise ConfigurationError(
            f"dtype_backend={dtype_backend!r}", hint="choose 'pyarrow', 'numpy_nullable' or None"
        )
    if fixed_dtypes and dtype_backend != "pyarrow":
        for at, field in enumerate(table.schema):
            if pa.types.is_dictionary(field.type):
                table = table.set_column(at, field.name, table.column(at).cast(field.type.value_type))
    numpy = _NULLABLE_ALONE.get if fixed_dtypes else None
    mapper = {"pyarrow": pd.ArrowDtype, "numpy_nullable": _NULLABLE.get, None: numpy}[dtype_backend]
    apart = [] if dtype_backend == "pyarrow" else [*_as_objects(table, exact=mapper is not None)]

    def convert(part: pa.Table, *, as_objects: bool) -> pd.DataFrame:
        frame: pd.DataFrame = part.to_pandas(
            types_mapper=mapper,
            ignore_metadata=True,
            maps_as_pydicts="strict",
            integer_object_nulls=as_objects,
        )
        return frame

    frame = convert(table.drop_columns(apart), as_objects=False)
    if apart:
        frame = pd.concat([frame, convert(table.select(apart), as_objects=True)], axis=1)[table.column_names]
    frame = frame.set_index(KEY)
    if attributes is not None:
        frame.attrs["cbframe"] = FrameAttributes(attributes)
    return frame


def _as_objects(table: pa.Table, *, exact: bool) -> Iterator[str]:
    """Columns of which pandas would make floats that are other numbers."""
    for name, column in zip(table.column_names, table.columns, strict=True):
        if pa.types.is_nested(column.type):
            yield name
        elif not exact and pa.types.is_integer(column.type) and column.null_count:
            marks = Marks()
            for chunk in column.chunks:
                marks.look(chunk, (name,))
            if marks.inexact:
                yield name
