"""A Delta table that mirrors a bucket, and is updated exactly once with what changed.

Needs ``pip install 'cbframe[delta]'``.

>>> from cbframe.contrib.delta import to_delta, update_delta  # doctest: +SKIP
>>> to_delta("couchbase://host/travel", "travel-delta", auth=("reader", "…"))  # doctest: +SKIP
>>> update_delta("couchbase://host/travel", "travel-delta", auth=("reader", "…"))  # doctest: +SKIP

The table
---------
One row for each document, in any order: ``_cb_key``, the metadata ``_cb_…``, and the fields, as
:func:`cbframe.read_bucket` has them. Delta has fewer types than Arrow, and delta-rs some limits:

* ``_cb_seqno``, ``_cb_cas`` and ``_cb_rev_seqno`` are unsigned 64-bit numbers. They are ``long`` here, bit by
  bit: the same number up to 2^63, which no server reaches before the year 2262; ``view("uint64")`` of
  numpy gives any back. As decimals they would be exact, too, but delta-rs (1.6) rounds the statistics of
  decimals to doubles and cuts them at 2^63, and then finds no row by ``cas = …``; so do polars and
  duckdb, which read those statistics.
* Fields that are uint64 in Arrow are ``decimal(20, 0)``, exact in deltalake, polars and duckdb. For the
  said reason the table has no statistics but of metadata (``delta.dataSkippingStatsColumns``): rows are found
  as they should, and files are not skipped by the values of fields.
* The narrower unsigned numbers are the next wider signed ones.
* A field that is null in all documents is no column. In a list of nothing but nulls, items are strings. An
  object in which nothing was ever found is the text ``{}``.
* Delta's names differ in more than upper and lower case: of ``name`` and ``Name`` the second, in order of
  appearance, is ``Name_``. A backtick or NUL in a name is ``_``.

Updates
-------
What changed comes as one MERGE: data and positions are one commit, so a crash loses and doubles nothing.
The positions are in its metadata, under ``cbframe``, in the format of a snapshot's manifest; its version is
the application transaction ``cbframe``, and both must fit. Columns that no document had before are added.
Where a type gets wider, or a field appears inside of an object, the table is rewritten in one commit:
Delta cannot change a column's type, and MERGE of delta-rs (1.6) makes nulls of objects that get a new member.
No value is lost by that; what :mod:`cbframe.arrow.column_types` says of text holds: where a column was
double before it became text, 1 is ``1.0``.

A document whose expiry has passed is a row until the server removes it: no change reports that it expires.
Rows are found by ``_cb_expiry``, in seconds since the epoch, where 0 is never. Records of transactions, whose
keys begin with ``_txn:``, are no rows unless ``transaction_records="keep"`` says so; an update deletes those
that earlier releases have written.

What the server rolls back, the table rolls back: rows are deleted, and those that they had replaced come from
an earlier version of the table. Where its files are vacuumed, or it is more than fifty commits ago, that
vbucket alone is read again from the start.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Literal, Unpack, cast

from cbframe.contrib.delta.table import Delta, DeltaResult
from cbframe.contrib.mirror import MirrorArguments, mirrored, mirroring
from cbframe.public import Connectable, ServerURLs

__all__ = ["DeltaResult", "to_delta", "update_delta"]


@mirroring
def to_delta(
    conn: ServerURLs | Connectable,
    uri: str | os.PathLike[str],
    *,
    mode: Literal["error", "overwrite"] = "error",
    storage_options: Mapping[str, str] | None = None,
    table_per: Literal["collection"] | None = None,
    **arguments: Unpack[MirrorArguments],
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
    storage_options
        Of deltalake, for what `uri` is in.
    table_per
        ``"collection"`` makes a table for each collection that has documents, with columns of its own, named
        as ``travel__inventory__hotel``. The table `uri`, without rows, has the positions of all, and is
        committed last: by it an update finds what a process that ended has left unfinished.
    scope, collections, columns, filters, keys, key_prefix, key_pattern, keys_only, parse, xattrs, nested, \
schema, on_conflict, max_struct_fields, parse_dates, transaction_records
        What the table holds, as of :func:`cbframe.write_snapshot`; updates hold to it.
    consistency, only_persisted
        As of :func:`cbframe.write_snapshot`, and for this commit only.
    batch_bytes, buffer_bytes, spool_dir, spill_bytes, timeout, progress, event_log, options
        As of :func:`cbframe.scan_bucket`.
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
    return cast("DeltaResult", mirrored(Delta, {**locals(), **arguments}))


@mirroring
def update_delta(
    conn: ServerURLs | Connectable,
    uri: str | os.PathLike[str],
    *,
    storage_options: Mapping[str, str] | None = None,
    **arguments: Unpack[MirrorArguments],
) -> DeltaResult:
    """Bring a Delta table up to date with what changed in the bucket since.

    Rows and positions are one commit: a process that ends at any moment leaves the table as it was, or as it
    should be, and the next update goes on from there. Where nothing changed, there is no commit.

    Parameters
    ----------
    uri
        Where :func:`to_delta` made the table.
    scope, collections, columns, filters, keys, key_prefix, key_pattern, keys_only, parse, xattrs, nested, \
schema, on_conflict, max_struct_fields, parse_dates, transaction_records
        What the table holds need not be given again; anything else than then is an error.
    conn, bucket, auth, tls, network, consistency, only_persisted, batch_bytes, buffer_bytes, spool_dir, \
spill_bytes, timeout, progress, event_log, options, storage_options, clock
        As of :func:`to_delta`.

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
    return cast("DeltaResult", mirrored(Delta, {**locals(), **arguments}))
