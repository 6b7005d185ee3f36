"""A bucket read once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
from pyspark.sql.datasource import DataSourceReader, Filter, InputPartition
from pyspark.sql.types import StructType

from cbframe.contrib.spark.options import BATCH, arrow_schema, checked, number_of, scan_of
from cbframe.contrib.spark.pushdown import Written, pushed
from cbframe.errors import ConfigurationError
from cbframe.json.typer import OURS
from cbframe.public import public
from cbframe.scan.partition import ScanPartition
from cbframe.scan.shape import cast_to


class CouchbasePartition(InputPartition):  # type: ignore[misc]
    """A :class:`~cbframe.ScanPartition` on its way to an executor."""

    def __init__(self, part: ScanPartition) -> None:
        super().__init__(part.number)
        self.part = part


class CouchbaseReader(DataSourceReader):  # type: ignore[misc]
    """Reads a bucket as of the moment at which Spark plans the read."""

    def __init__(self, options: dict[str, str], schema: StructType) -> None:
        self._options = checked(options, BATCH)
        self._schema = arrow_schema(schema)
        self._filters: list[Written] = []

    @public
    def partitions(self) -> list[CouchbasePartition]:
        """On the driver."""
        options = self._options
        fields = [each for each in self._schema if not each.name.startswith(OURS)]
        wanted: dict[str, Any] = {"schema": pa.schema(fields)} if fields else {"keys_only": True}
        scan = scan_of(options, filters=self._filters or None, **wanted)
        parts = scan.partitions(
            number_of(options, "partitions", 16),
            consistency=options.get("consistency", "snapshot"),  # type: ignore[arg-type]
        )
        return [CouchbasePartition(part) for part in parts]

    def read(self, partition: CouchbasePartition) -> Iterator[pa.RecordBatch]:
        """On an executor: batches with exactly the schema that Spark knows."""
        reader = partition.part.to_reader()
        absent = [name for name in self._schema.names if name not in reader.schema.names]
        if absent:
            raise ConfigurationError(f"there is no column {absent[0]!r}", hint="metadata= adds such columns")
        for batch in reader:
            yield from cast_to(pa.Table.from_batches([batch]), self._schema).to_batches()


class FilteringReader(CouchbaseReader):
    """Reads what can pass Spark's filters only. Spark refuses it unless it is set to push filters down."""

    def pushFilters(self, filters: list[Filter]) -> list[Filter]:  # noqa: N802 - Spark's name
        """Take what is safe to take; all of them are evaluated again."""
        self._filters = pushed(filters, self._schema)
        return filters
