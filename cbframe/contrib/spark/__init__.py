"""A bucket as a Spark DataFrame: a data source of Spark 4, read by its Python workers.

::

    from cbframe.contrib.spark import register

    register(spark)
    frame = spark.read.format("couchbase").option("connection", "couchbase://host/travel").load()

User name and password are those that the environment of the driver and of every executor has, in
``CB_USER`` and ``CB_PASSWORD``, or in the variables that the options ``user_env`` and ``password_env``
name. Options:

================  ========================================================================
connection        the connection string; the bucket in it, or as ``bucket``
partitions        how many, by default 16
columns           fields, separated by commas; default all
scope             a scope
collections       collections, separated by commas
metadata          columns of metadata besides the key, separated by commas
consistency       ``snapshot`` or ``strict``, as of ``BucketScan.partitions``
on_conflict       ``raise`` (the default) or ``null``: of values that do not fit the schema
sample_rows       so many documents are looked at for the schema, if none is given
tls               path of a file with certificate authorities
================  ========================================================================

Without a schema it is inferred from a sample; with one (``.schema("name STRING, fleet INT")``) nothing
is looked at. Integers without sign become the next larger type that Spark has, fields of which the sample
has no value become text.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa

from cbframe.errors import ConfigurationError, DependencyError

try:
    from pyspark.sql.datasource import DataSource
    from pyspark.sql.pandas.types import from_arrow_schema
except ImportError as exc:
    raise DependencyError("pyspark 4 is not installed", hint="pip install 'cbframe[spark]'") from exc

from cbframe.contrib.spark.batch import CouchbaseReader
from cbframe.contrib.spark.options import (
    BATCH,
    STREAM,
    checked,
    choice_of,
    is_told,
    larger,
    listed,
    number_of,
    scan_of,
)
from cbframe.contrib.spark.stream import CouchbaseStreamReader
from cbframe.frame.changes import CHANGE_TYPE

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

    def schema(self) -> StructType:
        """The schema of a sample."""
        # Nobody says here whether it is for a stream.
        options = checked(self.options, BATCH | STREAM)
        changes = choice_of(options, "changes", "false", "true") == "true"
        asked = listed(options.get("metadata", ""))
        if changes:
            asked = ["vbucket", "seqno", *(name for name in asked if name not in ("vbucket", "seqno"))]
        scan = scan_of(options, metadata=("key", *asked))
        parts = scan.partitions(1, sample_rows=number_of(options, "sample_rows", 10_000))
        fields = [pa.field(each.name, larger(each.type)) for each in parts[0].schema if is_told(each.name)]
        kind = [pa.field(CHANGE_TYPE, pa.string())] if changes else []
        return from_arrow_schema(pa.schema([*kind, *fields]))

    def reader(self, schema: StructType) -> CouchbaseReader:
        """What reads it once."""
        if "changes" in self.options:
            raise ConfigurationError('option("changes", ...) is for streams', hint="use spark.readStream")
        return CouchbaseReader(dict(self.options), schema)

    def streamReader(self, schema: StructType) -> CouchbaseStreamReader:  # noqa: N802 - Spark's name
        """What reads its changes."""
        return CouchbaseStreamReader(dict(self.options), schema)
