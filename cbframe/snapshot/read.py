"""The front door for reading: ``read_snapshot``."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow.fs as pafs

from cbframe.arrow.keys import KeyForm
from cbframe.errors import ConfigurationError
from cbframe.public import public
from cbframe.scan.spec import ColumnsLike, Exclusion, FiltersLike, Nested
from cbframe.snapshot.history import AsOf
from cbframe.snapshot.snapshot import Snapshot


@public
def read_snapshot(
    path: str | os.PathLike[str],
    *,
    columns: ColumnsLike | None = None,
    filters: FiltersLike | None = None,
    as_of: AsOf = None,
    metadata: str | Iterable[str] = ("key",),
    nested: Nested = "struct",
    keys: KeyForm | None = None,
    expired: Exclusion = "drop",
    return_type: str = "pandas",
    dtype_backend: str | None = "pyarrow",
    filesystem: pafs.FileSystem | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> Any:
    """Read the documents of a snapshot: of each the newest version that counts, without deleted ones.

    No cluster is needed. Files, and parts of files, that no wanted row can be in are not read.

    Parameters
    ----------
    path
        Where :func:`cbframe.write_snapshot` made it.
    columns, filters, metadata, nested
        As of :func:`cbframe.scan_bucket`. Filters give the rows that they give of a bucket; where a
        version no longer has what they compare (text that holds 60 and ``"60"``), they are an error.
    as_of
        A version, or a time (``datetime`` or ISO 8601; without zone it is UTC); None for the newest.
    keys
        ``"text"`` or ``"binary"``, as of :func:`cbframe.scan_bucket`; None for the form that the snapshot was
        made with.
    expired
        ``"drop"`` leaves out documents whose expiry had passed at the time of the version, as
        :func:`cbframe.scan_bucket` does; ``"keep"`` gives those that the server had not removed. The time is
        the latest that a data node had reported, or that of the version where none had. Files have these
        documents in any case, and no event says that one expires.
    return_type
        ``"pandas"``, ``"arrow"`` or ``"polars"``.
    dtype_backend
        Of pandas: ``"pyarrow"``, ``"numpy_nullable"`` or None.
    filesystem, storage_options
        What `path` is in.

    Raises
    ------
    ConfigurationError
        An argument cannot be meant.
    SnapshotError
        There is no snapshot, or a file of it is gone or damaged.
    """
    snapshot = Snapshot(path, filesystem=filesystem, storage_options=storage_options)
    wanted: dict[str, Any] = {
        "as_of": as_of,
        "columns": columns,
        "filters": filters,
        "metadata": metadata,
        "nested": nested,
        "keys": keys,
        "expired": expired,
    }
    match return_type:
        case "pandas":
            return snapshot.to_pandas(dtype_backend=dtype_backend, **wanted)
        case "arrow":
            return snapshot.to_arrow(**wanted)
        case "polars":
            return snapshot.to_polars(**wanted)
    raise ConfigurationError(f"return_type={return_type!r}", hint="choose from: pandas, arrow, polars")
