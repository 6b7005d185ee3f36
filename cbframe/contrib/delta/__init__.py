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

from cbframe.contrib.delta.mirror import DeltaResult, to_delta, update_delta

__all__ = ["DeltaResult", "to_delta", "update_delta"]
