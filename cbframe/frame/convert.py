"""From Arrow to pandas."""

from __future__ import annotations

import pandas as pd
import pyarrow as pa

from cbframe.arrow.columns import KEY
from cbframe.errors import ConfigurationError

DTYPE_BACKENDS = ("pyarrow", "numpy_nullable", None)

_NULLABLE = {
    pa.bool_(): pd.BooleanDtype(),
    pa.int64(): pd.Int64Dtype(),
    pa.uint8(): pd.UInt8Dtype(),
    pa.uint16(): pd.UInt16Dtype(),
    pa.uint32(): pd.UInt32Dtype(),
    pa.uint64(): pd.UInt64Dtype(),
    pa.float64(): pd.Float64Dtype(),
    pa.string(): pd.StringDtype(),
}


def to_pandas(table: pa.Table, dtype_backend: str | None) -> pd.DataFrame:
    """A DataFrame whose index is the document key.

    Parameters
    ----------
    table
        With a column ``_cb_key``.
    dtype_backend
        ``"pyarrow"`` keeps every type; ``"numpy_nullable"`` uses pandas' own nullable types; None
        uses numpy's, which turn integers with missing values into floats. Extended attributes are lists
        of pairs with the first, and dicts with the others.
    """
    if dtype_backend not in DTYPE_BACKENDS:
        raise ConfigurationError(
            f"dtype_backend={dtype_backend!r}", hint="choose 'pyarrow', 'numpy_nullable' or None"
        )
    mapper = {"pyarrow": pd.ArrowDtype, "numpy_nullable": _NULLABLE.get, None: None}[dtype_backend]
    frame: pd.DataFrame = table.to_pandas(types_mapper=mapper, ignore_metadata=True, maps_as_pydicts="strict")
    return frame.set_index(KEY)
