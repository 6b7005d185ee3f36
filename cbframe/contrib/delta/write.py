"""The front doors: ``to_delta`` and ``update_delta``."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, Literal

from cbframe.arrow.keys import KeyForm
from cbframe.cluster.tls import TLSLike
from cbframe.contrib.delta.commit import Committer
from cbframe.contrib.delta.log import APP, Base, base_of, library, open_table
from cbframe.contrib.delta.mirror import Mirror
from cbframe.contrib.delta.result import DeltaResult
from cbframe.errors import ConfigurationError, SnapshotError
from cbframe.json.layout import OnConflict
from cbframe.options import BucketDataSourceOptions
from cbframe.public import public
from cbframe.scan.moment import Clock, utc_now
from cbframe.scan.progress import Progress
from cbframe.scan.spec import ColumnsLike, Consistency, Exclusion, FiltersLike, SchemaLike, path_of_files
from cbframe.snapshot.wanted import agreed, named, spec_of, stored_form
from cbframe.typing import Connectable, ServerURLs


@public
def to_delta(
    conn: ServerURLs | Connectable,
    uri: str | os.PathLike[str],
    *,
    bucket: str | None = None,
    mode: Literal["error", "overwrite"] = "error",
    auth: Any = None,
    tls: TLSLike = None,
    network: str = "auto",
    scope: str | None = None,
    collections: str | Iterable[str] | None = None,
    columns: ColumnsLike | None = None,
    filters: FiltersLike | None = None,
    keys: KeyForm | None = None,
    key_prefix: str | bytes | None = None,
    keys_only: bool | None = None,
    parse: bool | None = None,
    xattrs: bool | None = None,
    nested: Literal["struct", "json"] | None = None,
    schema: SchemaLike | None = None,
    on_conflict: OnConflict | None = None,
    max_struct_fields: int | None = None,
    parse_dates: bool | Iterable[str] | None = None,
    transaction_records: Exclusion | None = None,
    consistency: Consistency = "snapshot",
    batch_bytes: int | None = None,
    buffer_bytes: int | None = None,
    spool_dir: str | os.PathLike[str] | None = None,
    spill_bytes: int | None = None,
    timeout: float | None = None,
    progress: Progress = "auto",
    options: BucketDataSourceOptions | None = None,
    storage_options: Mapping[str, str] | None = None,
    clock: Clock = utc_now,
) -> DeltaResult:
    """Copy a bucket into a Delta table, which :func:`update_delta` brings up to date.

    The table appears whole or not at all. Documents wait in temporary files (`spool_dir`); memory is
    some hundred MB, since deltalake makes files of 100 MB in memory. What the table looks like is in the
    documentation of this package. It has documents whose expiry has passed until the server removes them.

    Parameters
    ----------
    conn, bucket, auth, tls, network
        As of :func:`cbframe.scan_bucket`.
    uri
        A folder, or what deltalake knows: ``s3://…``, ``abfss://…``.
    mode
        ``"error"`` refuses to if there is a table. ``"overwrite"`` begins again in the same table: earlier
        versions stay until they are vacuumed.
    scope, collections, columns, filters, keys, key_prefix, keys_only, parse, xattrs, nested, schema, \
on_conflict, max_struct_fields, parse_dates, transaction_records
        What the table holds, as of :func:`cbframe.write_snapshot`; updates hold to it.
    consistency
        As of :func:`cbframe.write_snapshot`, and for this commit only.
    batch_bytes, buffer_bytes, spool_dir, spill_bytes, timeout, progress, options
        As of :func:`cbframe.scan_bucket`.
    storage_options
        Of deltalake, for what `uri` is in.
    clock
        Tells the time of day that is written down.

    Raises
    ------
    ConfigurationError
        An argument is invalid.
    ConversionError
        A type was declared that Delta does not have.
    DependencyError
        deltalake is not installed.
    SnapshotError
        There is a table, or it cannot be written.
    CbframeError
        The bucket could not be read.
    """
    if mode not in ("error", "overwrite"):
        raise ConfigurationError(f"mode={mode!r}", hint="choose from: error, overwrite")
    arguments = locals()
    if transaction_records is None:
        arguments["transaction_records"] = "drop"
    if keys is None:
        # Always written down: tables of earlier versions of cbframe, without it, hold keys in another way.
        arguments["keys"] = "text"
    stored = stored_form(arguments)
    # What is invalid is reported before anything is touched.
    spec_of(arguments, stored)
    path = path_of_files("uri", uri)
    table = open_table(path, storage_options)
    if table is not None and mode == "error":
        raise SnapshotError(
            "there is a Delta table already",
            path=path,
            hint='update_delta() brings it up to date; mode="overwrite" makes it again',
        )
    stored = named(stored, arguments)
    return Mirror(
        path,
        None,
        Committer(path, table, storage_options),
        version=1 if table is None else 1 + (table.transaction_version(APP) or 0),
        target=spec_of(arguments, stored),
        stored=stored,
        opener=_no_version,
        clock=clock,
    ).run()


@public
def update_delta(
    conn: ServerURLs | Connectable,
    uri: str | os.PathLike[str],
    *,
    bucket: str | None = None,
    auth: Any = None,
    tls: TLSLike = None,
    network: str = "auto",
    scope: str | None = None,
    collections: str | Iterable[str] | None = None,
    columns: ColumnsLike | None = None,
    filters: FiltersLike | None = None,
    keys: KeyForm | None = None,
    key_prefix: str | bytes | None = None,
    keys_only: bool | None = None,
    parse: bool | None = None,
    xattrs: bool | None = None,
    nested: Literal["struct", "json"] | None = None,
    schema: SchemaLike | None = None,
    on_conflict: OnConflict | None = None,
    max_struct_fields: int | None = None,
    parse_dates: bool | Iterable[str] | None = None,
    transaction_records: Exclusion | None = None,
    consistency: Consistency = "snapshot",
    batch_bytes: int | None = None,
    buffer_bytes: int | None = None,
    spool_dir: str | os.PathLike[str] | None = None,
    spill_bytes: int | None = None,
    timeout: float | None = None,
    progress: Progress = "auto",
    options: BucketDataSourceOptions | None = None,
    storage_options: Mapping[str, str] | None = None,
    clock: Clock = utc_now,
) -> DeltaResult:
    """Bring a Delta table up to date with what changed in the bucket since.

    Rows and positions are one commit: a process that ends at any moment leaves the table as it was, or as it
    should be, and the next update goes on from there. Where nothing changed, there is no commit.

    Parameters
    ----------
    conn, bucket, auth, tls, network, consistency, batch_bytes, buffer_bytes, spool_dir, \
spill_bytes, timeout, progress, options, storage_options, clock
        As of :func:`to_delta`.
    uri
        Where :func:`to_delta` made the table.
    scope, collections, columns, filters, keys, key_prefix, keys_only, parse, xattrs, nested, schema, \
on_conflict, max_struct_fields, parse_dates, transaction_records
        What the table holds, as of :func:`to_delta`. It need not be given again; anything else than then is
        an error.

    Raises
    ------
    ConfigurationError
        An argument is invalid, or differs from what the table was made with.
    DependencyError
        deltalake is not installed.
    SnapshotError
        There is no table that :func:`to_delta` made, or someone else changed it; the bucket was flushed or
        created again; another writer was faster. The table stays as it is.
    CbframeError
        The bucket could not be read.
    """
    arguments = locals()
    given = stored_form(arguments)
    # What is invalid is reported before anything is touched.
    spec_of(arguments, given)
    path = path_of_files("uri", uri)
    table = open_table(path, storage_options)
    if table is None:
        raise SnapshotError("there is no Delta table", path=path, hint="to_delta() makes one")
    base: Base = base_of(table, path)
    stored = {"keys": "text", **base.manifest.options}
    given = named(given, arguments, stored)
    agreed(given, stored, made="the table", remedy='to_delta(..., mode="overwrite")')
    stored.setdefault("transaction_records", "drop")  # mirrors of earlier releases have them: they go now
    return Mirror(
        path,
        base,
        Committer(path, table, storage_options),
        version=base.manifest.version + 1,
        target=spec_of(arguments, stored),
        stored=stored,
        opener=partial(_version, path, storage_options),
        clock=clock,
    ).run()


def _version(uri: str, storage_options: Mapping[str, str] | None, version: int) -> Any:
    options = None if storage_options is None else dict(storage_options)
    return library().DeltaTable(uri, version=version, storage_options=options)


def _no_version(version: int) -> Any:
    raise AssertionError(f"nothing is continued, least of all version {version}")
