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

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from cbframe.arrow.columns import OURS
from cbframe.cluster.auth import EnvironmentAuth
from cbframe.errors import ConfigurationError, DependencyError
from cbframe.frame.partition import ScanPartition
from cbframe.frame.read import scan_bucket
from cbframe.frame.scan import BucketScan
from cbframe.frame.target import METADATA_NAMES

try:
    from pyspark.sql.datasource import DataSource, DataSourceReader, InputPartition
    from pyspark.sql.pandas.types import from_arrow_schema, to_arrow_schema
except ImportError as exc:
    raise DependencyError("pyspark 4 is not installed", hint="pip install 'cbframe[spark]'") from exc

if TYPE_CHECKING:
    from pyspark.sql import SparkSession
    from pyspark.sql.types import StructType

_LARGER = {
    pa.uint8(): pa.int16(),
    pa.uint16(): pa.int32(),
    pa.uint32(): pa.int64(),
    pa.uint64(): pa.decimal128(20, 0),
    pa.null(): pa.string(),
}
_KNOWN = frozenset(
    (
        *("connection", "bucket", "partitions", "columns", "scope", "collections", "metadata", "consistency"),
        *("on_conflict", "sample_rows", "tls", "user_env", "password_env"),
    )
)


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
        options = dict(self.options)
        parts = _scan(options).partitions(1, sample_rows=int(options.get("sample_rows", 10_000)))
        fields = [pa.field(each.name, _larger(each.type)) for each in parts[0].schema if _is_told(each.name)]
        return from_arrow_schema(pa.schema(fields))

    def reader(self, schema: StructType) -> CouchbaseReader:
        """What reads it once."""
        return CouchbaseReader(dict(self.options), schema)


class CouchbasePartition(InputPartition):  # type: ignore[misc]
    """A :class:`~cbframe.ScanPartition` on its way to an executor."""

    def __init__(self, part: ScanPartition) -> None:
        super().__init__(part.number)
        self.part = part


class CouchbaseReader(DataSourceReader):  # type: ignore[misc]
    """Reads a bucket as of the moment at which Spark plans the read."""

    def __init__(self, options: dict[str, str], schema: StructType) -> None:
        self._options = options
        self._schema = to_arrow_schema(schema)

    def partitions(self) -> list[CouchbasePartition]:
        """On the driver."""
        fields = [each for each in self._schema if not each.name.startswith(OURS)]
        scan = (
            _scan(self._options, schema=pa.schema(fields)) if fields else _scan(self._options, keys_only=True)
        )
        parts = scan.partitions(
            int(self._options.get("partitions", 16)),
            consistency=self._options.get("consistency", "snapshot"),  # type: ignore[arg-type]
        )
        return [CouchbasePartition(part) for part in parts]

    def read(self, partition: CouchbasePartition) -> Iterator[pa.RecordBatch]:
        """On an executor: batches with exactly the schema that Spark was told."""
        reader = partition.part.to_reader()
        absent = [name for name in self._schema.names if name not in reader.schema.names]
        if absent:
            raise ConfigurationError(f"there is no column {absent[0]!r}", hint="metadata= adds such columns")
        for batch in reader:
            table = pa.Table.from_batches([batch]).select(self._schema.names)
            yield from table.cast(self._schema).to_batches()


def _scan(options: Mapping[str, str], **arguments: Any) -> BucketScan:
    unknown = [name for name in options if name.lower() not in _KNOWN]
    if unknown or "connection" not in options:
        raise ConfigurationError(
            f"there is no option {unknown[0]!r}" if unknown else 'option("connection", ...) is missing',
            hint=f"options are: {', '.join(sorted(_KNOWN))}",
        )
    names = {name: _list(options[name]) for name in ("collections", "columns") if name in options}
    if "schema" in arguments:
        names.pop("columns", None)
    return scan_bucket(
        options["connection"],
        options.get("bucket"),
        auth=EnvironmentAuth(options.get("user_env", "CB_USER"), options.get("password_env", "CB_PASSWORD")),
        tls=options.get("tls"),
        scope=options.get("scope"),
        metadata=("key", *_list(options.get("metadata", ""))),
        on_conflict=options.get("on_conflict", "widen" if "schema" not in arguments else "raise"),  # type: ignore[arg-type]
        **names,  # type: ignore[arg-type]
        **arguments,
    )


def _list(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _is_told(name: str) -> bool:
    """Whether a column can be had of a schema: those of fields, the key, and metadata."""
    return not name.startswith(OURS) or name.removeprefix(OURS) in {"key", *METADATA_NAMES}


def _larger(kind: pa.DataType) -> pa.DataType:
    """A type that Spark has."""
    if pa.types.is_struct(kind):
        return pa.struct([(member.name, _larger(member.type)) for member in kind])
    if pa.types.is_list(kind):
        return pa.list_(_larger(kind.value_type))
    return _LARGER.get(kind, kind)
