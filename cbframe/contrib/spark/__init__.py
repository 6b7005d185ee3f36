"""A bucket as a Spark DataFrame, and its changes as a stream: a data source for Spark 4.3 or newer.

::

    from cbframe.contrib.spark import register

    register(spark)
    frame = spark.read.format("couchbase").option("connection", "couchbase://host/travel").load()

User name and password are those that the environment of the driver and of every executor has, in
``CB_USER`` and ``CB_PASSWORD``, or in the variables that the options ``user_env`` and ``password_env``
name. Options:

===================  =====================================================================
connection           the connection string; the bucket in it, or as ``bucket``
partitions           how many, by default 16
columns              fields, separated by commas; default all
scope                a scope
collections          collections, separated by commas; ``visible`` for those that the user sees
metadata             columns of metadata besides the key, separated by commas
consistency          ``snapshot`` or ``strict``, as of ``BucketScan.partitions``; not of streams
pushdown             ``true``: executors leave out documents that cannot pass the filters of a query,
                     before they are typed. Spark has to push them down, too: ``spark.conf.set(
                     "spark.sql.python.filterPushdown.enabled", "true")``. Values that do not fit the
                     schema are no error in documents that are left out; not of streams
on_conflict          ``raise`` (the default) or ``null``: of values that do not fit the schema
sample_rows          number of documents that are looked at for the schema, if none is given
tls                  certificate authorities, as PEM text, or the path of a file that every executor has
expired              ``drop`` (the default) or ``keep``, as of ``scan_bucket``; not of streams
transaction_records  ``drop`` (the default) or ``keep``, as of ``scan_bucket``
===================  =====================================================================

Without a schema it is inferred from a sample; with one (``.schema("name STRING, fleet INT")``) nothing is
looked at. Either way it says which fields there are: others, and members of objects that it does not have,
are left out. ``_cb_key`` is text, with escapes for bytes that are not UTF-8, or bytes if it is declared as
``BINARY``. ``TIMESTAMP`` takes text with a time zone, ``TIMESTAMP_NTZ`` text without one. In SQL it is
``CREATE TEMPORARY VIEW … USING couchbase OPTIONS (…)``: of what ``CREATE TABLE`` is given, Spark hands no
option to sources in Python. Integers without sign become the next larger type that Spark has, fields of which
the sample has no value become text.

Streams
-------
::

    import sqlite3

    changes = (
        spark.readStream.format("couchbase")
        .option("connection", "couchbase://host/travel")
        .schema("_change_type string, _cb_key string, _cb_vbucket int, _cb_seqno bigint, name string")
        .load()
    )


    def store(batch, number):
        rows = batch.toArrow().to_pylist()  # once: what is done with a batch twice is read twice
        with sqlite3.connect("names.db") as db:  # one transaction
            for row in sorted(rows, key=lambda row: row["_cb_seqno"]):  # a reset has seqno 0
                if row["_change_type"] == "reset":
                    db.execute("DELETE FROM names WHERE vbucket = ?", [row["_cb_vbucket"]])
                elif row["_change_type"] == "upsert":
                    place = row["_cb_key"], row["_cb_vbucket"], row["name"]
                    db.execute("REPLACE INTO names VALUES (?, ?, ?)", place)
                else:
                    db.execute("DELETE FROM names WHERE key = ?", [row["_cb_key"]])


    with sqlite3.connect("names.db") as db:
        db.execute("CREATE TABLE IF NOT EXISTS names (key TEXT PRIMARY KEY, vbucket INTEGER, name TEXT)")
    writer = changes.writeStream.foreachBatch(store).option("checkpointLocation", "names.checkpoint")
    query = writer.trigger(processingTime="10 seconds").start()

The repository has a whole program of it: ``examples/spark/changes_to_sqlite.py``.

Each row is a change: what happened, which document, where in its vbucket, and the fields, which are null
where the document is gone. A document that is no JSON object is an upsert with null fields. Each change is
delivered at least once, in order; of several changes of one document the server may send the last only.
``_change_type`` is one of

=========  ===============================================================================
upsert     the document is this now
delete     it was deleted
expire     it had expired, and the server has removed it: until then there is no change
reset      without a key: delete all rows of this vbucket; it is delivered again from its beginning
=========  ===============================================================================

A sink that takes the rows in the order of ``_cb_seqno``, or first the resets and then of each document the
newest row, and that accepts a batch twice, is right after every failure of Spark and of Couchbase. The server
rolls back changes that a failover lost, and Spark keeps too little of the position to delete only these
(:mod:`cbframe.scan.microbatch` says why). So a vbucket with a new history is delivered again. So is one with
a purged deletion that was not delivered yet, and one of which a collection was created, emptied or dropped,
or the scope that is asked for created again (other collections than those that are asked for make no
difference). A flush of the bucket gives every vbucket a new history; a bucket that was deleted and
created again is refused.

``scope`` and ``collections`` belong to the checkpoint: a query that asks for others than the checkpoint is
of is refused. Documents of a collection that is asked for later may lie before the offsets, and those of one
that is asked for no more would never be deleted. Take a new checkpoint location and an empty sink.

With a schema that is declared, a stream has its columns: ``columns`` and ``metadata`` may name no others.

Options of streams, besides those above:

=====================  ===================================================================
changes                ``true``: the schema that a sample has gets the columns of a stream. Spark does not
                       say for what it asks, so it has to be said here
start                  ``beginning`` (the default): all documents, then what changes; or ``now``. It is for
                       new queries; after a reset all documents of the vbucket come in any case
max_changes_per_batch  most rows of a batch, but for resets that were not foreseen; default all
                       there are. Every batch looks at all nodes, and reads again what the last one left of a
                       vbucket: ten thousands are sensible, tens are not
on_rollback            ``reset`` (the default), or ``fail``: the query ends with a RollbackError, also
                       where deletions were purged that no batch had come to
only_persisted         ``true``: deliver only what is on the disks of the active copy and of all replicas of
                       its vbucket. Then a failover is no reason for a reset. A batch goes up to where the
                       copies are; limits are those of ``cbframe.stream_bucket``
whole_snapshots        ``true`` (the default): deliver also what the server sends after the end of a batch,
                       now and once more in the next batch. ``false`` (the default with
                       ``max_changes_per_batch``): deliver each change once. Then a document that changes
                       between every look and the read after it is delivered only when it changes no more
=====================  ===================================================================

Give a trigger: without one Spark looks for changes all the time, and each look connects to all nodes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cbframe.errors import DependencyError
from cbframe.public import public

try:
    from pyspark.sql.datasource import DataSource

    # An older Spark lacks what these need.
    from cbframe.contrib.spark.reader import CouchbaseReader, CouchbaseStreamReader, reader_of, sampled_schema
except ImportError as exc:
    raise DependencyError("pyspark 4.3 or newer is needed", hint="pip install 'cbframe[spark]'") from exc

if TYPE_CHECKING:
    from pyspark.sql import SparkSession
    from pyspark.sql.types import StructType

__all__ = ["CouchbaseDataSource", "register"]


def register(spark: SparkSession) -> None:
    """Make the format ``couchbase`` known to a session."""
    spark.dataSource.register(CouchbaseDataSource)


class CouchbaseDataSource(DataSource):  # type: ignore[misc]
    """The format ``couchbase``."""

    @classmethod
    def name(cls) -> str:
        """How Spark calls it."""
        return "couchbase"

    @public
    def schema(self) -> StructType:
        """The schema of a sample."""
        return sampled_schema(self.options)

    @public
    def reader(self, schema: StructType) -> CouchbaseReader:
        """What reads it once."""
        return reader_of(dict(self.options), schema)

    @public
    def streamReader(self, schema: StructType) -> CouchbaseStreamReader:  # noqa: N802 - Spark's name
        """What reads its changes."""
        return CouchbaseStreamReader(dict(self.options), schema)
