"""The front door for writing: ``write_snapshot``."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any, Literal, get_args

import pyarrow.fs as pafs

from cbframe.arrow.keys import KeyForm
from cbframe.cluster.tls import TLSLike
from cbframe.errors import ConfigurationError, SnapshotError
from cbframe.json.layout import OnConflict
from cbframe.options import BucketDataSourceOptions
from cbframe.public import public
from cbframe.scan.moment import Clock, utc_now
from cbframe.scan.progress import Progress
from cbframe.scan.spec import ColumnsLike, Consistency, Exclusion, FiltersLike, SchemaLike, flag
from cbframe.snapshot.files import FILE_BYTES, check_form
from cbframe.snapshot.history import Boundaries, History
from cbframe.snapshot.lock import writing
from cbframe.snapshot.manifest import Kind
from cbframe.snapshot.repair import mended
from cbframe.snapshot.result import SnapshotResult
from cbframe.snapshot.store import open_store
from cbframe.snapshot.update import Update, sweep
from cbframe.snapshot.wanted import agreed, named, spec_of, stored_form
from cbframe.typing import Connectable, ServerURLs

Mode = Literal["update", "create", "overwrite", "repair"]


@public
def write_snapshot(
    conn: ServerURLs | Connectable,
    path: str | os.PathLike[str],
    *,
    bucket: str | None = None,
    mode: Mode = "update",
    compression: str = "zstd",
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
    file_bytes: int = FILE_BYTES,
    batch_bytes: int | None = None,
    buffer_bytes: int | None = None,
    spool_dir: str | os.PathLike[str] | None = None,
    spill_bytes: int | None = None,
    timeout: float | None = None,
    progress: Progress = "auto",
    options: BucketDataSourceOptions | None = None,
    filesystem: pafs.FileSystem | None = None,
    storage_options: Mapping[str, Any] | None = None,
    break_lock: bool = False,
    clock: Clock = utc_now,
) -> SnapshotResult:
    """Copy a bucket into Parquet files, or bring such a copy up to date.

    The first call reads the bucket, each later one only what changed since. A version is published as a
    whole: a process that ends at any moment leaves the last version, and the next call goes on from it.
    Where the server takes changes back (a failover lost them), the snapshot takes them back.

    Memory does not depend on the bucket's size; documents wait in a temporary file (`spool_dir`).

    Parameters
    ----------
    conn, bucket, auth, tls, network
        As of :func:`cbframe.scan_bucket`.
    path
        A folder, or a URI that pyarrow or fsspec know.
    mode
        ``"update"`` makes the snapshot if there is none. ``"create"`` refuses to if there is one.
        ``"overwrite"`` begins again; old versions stay readable until ``vacuum()``. ``"repair"`` looks at
        all files first, and reads again what was in damaged ones.
    compression
        Of the Parquet files.
    scope, collections, columns, filters, keys, key_prefix, keys_only, parse, nested, schema, on_conflict, \
max_struct_fields, parse_dates, transaction_records
        What the snapshot holds, as of :func:`cbframe.scan_bucket`; decided when it is made. Updates hold
        to it: what is left out is as it was, and anything else is an error. With ``filters=``, a document
        that does not pass any more counts as deleted. ``collections="visible"`` is looked up when the
        snapshot is made, and the names are kept; where it is given again and the user sees others by then,
        that is an error.
    xattrs
        Keep extended attributes, in ``_cb_xattrs``.
    consistency
        As of :func:`cbframe.scan_bucket`, and for this version only. With ``"snapshot"``, where a node loses
        data during the update, vbuckets that were complete keep rows of the lost history until the next
        update takes them back. ``"strict"`` compares all histories before the version is published, and reads
        again what was lost: then each position of the version is of a history that existed at its end.
    file_bytes
        Changes of more bytes than that, as they are in memory, go to several files, each of a range of
        vbuckets; 16 at most.
    batch_bytes, buffer_bytes, spool_dir, spill_bytes, timeout, progress, options
        As of :func:`cbframe.scan_bucket`.
    filesystem, storage_options
        What `path` is in: a file system of pyarrow's, or options for that of fsspec.
    break_lock
        Take the lock away from another writer, which is known to be dead. Local folders need no such
        thing: the lock ends with its process.
    clock
        Tells the time of day that the version gets.

    Returns
    -------
    SnapshotResult
        What was written, and as of when the snapshot is.

    Raises
    ------
    ConfigurationError
        An argument is invalid, or differs from what the snapshot was made with.
    SnapshotError
        The bucket was flushed or created again; the snapshot is damaged, or another process writes it; the
        disk is full. The last version stays as it is.
    CbframeError
        The bucket could not be read.
    """
    if mode not in get_args(Mode):
        raise ConfigurationError(f"mode={mode!r}", hint=f"choose from: {', '.join(get_args(Mode))}")
    arguments = locals()
    given = stored_form(arguments)
    check_form(compression, file_bytes)
    flag("break_lock", break_lock)
    # What is invalid is reported before anything is touched.
    spec_of(arguments, given)
    store = open_store(path, filesystem=filesystem, storage_options=storage_options)
    with writing(store, clock=clock, break_lock=break_lock):
        history = History(store)
        numbers = history.numbers()
        if mode == "create" and numbers:
            raise SnapshotError(
                "there is a snapshot already", path=store.root, hint='mode="update" brings it up to date'
            )
        newest = numbers[-1] if numbers else 0
        sweep(store, newest)
        base = None
        kind: Kind = "update"
        if mode == "repair":
            base, damaged = mended(store, history, newest + 1)
            kind = "repair" if damaged else kind
        elif mode != "overwrite":
            base = history.latest()
        given = named(given, arguments, None if base is None else base.options)
        stored = {"transaction_records": "drop", **given}
        if base is not None:
            agreed(given, base.options)
            stored = dict(base.options)
        update = Update(
            store,
            base,
            None if base is None else Boundaries(base, history.ancestors(base)),
            version=newest + 1,
            before=history.latest_time(),
            target=spec_of(arguments, stored),
            stored=stored,
        )
        return update.run(
            "create" if base is None else kind, clock(), compression=compression, file_bytes=file_bytes
        )
