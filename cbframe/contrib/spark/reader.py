"""The changes of a bucket as a stream: what is between two offsets, micro-batch by micro-batch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
from pyspark.sql.datasource import DataSourceReader, DataSourceStreamReader, Filter, InputPartition
from pyspark.sql.streaming.datasource import (
    ReadAllAvailable,
    ReadLimit,
    ReadMaxRows,
    SupportsTriggerAvailableNow,
)
from pyspark.sql.types import StructType

from cbframe.contrib.spark.options import (
    BATCH,
    STREAM,
    Written,
    arrow_schema,
    auth_of,
    checked,
    choice_of,
    collections_of,
    listed,
    number_of,
    pushed,
    scan_of,
)
from cbframe.dcp.survey import BucketState
from cbframe.errors import ConfigurationError
from cbframe.json.typer import OURS
from cbframe.public import public
from cbframe.scan.microbatch import REQUIRED, MicroBatchPart, Offset, micro_batch_reader
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


class CouchbaseChangesPartition(InputPartition):  # type: ignore[misc]
    """A :class:`~cbframe.scan.microbatch.MicroBatchPart` on its way to an executor."""

    def __init__(self, part: MicroBatchPart) -> None:
        super().__init__(part.number)
        part.refuse_secrets()
        self.part = part


class CouchbaseStreamReader(DataSourceStreamReader, SupportsTriggerAvailableNow):  # type: ignore[misc]
    """Reads the changes of a bucket between two looks at it.

    It is on the driver, but for :meth:`read`, and keeps nothing that a driver that is restarted would
    need.
    """

    def __init__(self, options: dict[str, str], schema: StructType) -> None:
        options = checked(options, STREAM)
        declared = arrow_schema(schema)
        if any(name not in declared.names for name in REQUIRED):
            raise ConfigurationError(
                f"the schema of the stream lacks one of the columns {', '.join(REQUIRED)}",
                hint='with option("changes", "true") they are in the schema that a sample has; '
                "one that is declared has to have them",
            )
        _refuse_undeclared(options, declared)
        # Of no use with a schema that is declared, but a slip in it is one all the same.
        number_of(options, "sample_rows", 10_000)
        self._start = choice_of(options, "start", "beginning", "now")
        self._parts = number_of(options, "partitions", 16)
        self._most = (
            number_of(options, "max_changes_per_batch", 1) if "max_changes_per_batch" in options else None
        )
        # Of a vbucket that is read in part, what lies beyond the part may be all the rest, each time.
        whole = ("true", "false") if self._most is None else ("false", "true")
        self._changes = micro_batch_reader(
            options["connection"],
            options.get("bucket"),
            auth=auth_of(options),
            tls=options.get("tls"),
            scope=options.get("scope"),
            collections=collections_of(options),
            schema=declared,
            on_conflict=choice_of(options, "on_conflict", "raise", "null"),  # type: ignore[arg-type]
            transaction_records=choice_of(options, "transaction_records", "drop", "keep"),
            on_rollback=choice_of(options, "on_rollback", "reset", "fail"),  # type: ignore[arg-type]
            whole_snapshots=choice_of(options, "whole_snapshots", *whole) == "true",
        )
        self._look: BucketState | None = None
        self._last: BucketState | None = None

    @public
    def initialOffset(self) -> dict[str, Any]:  # noqa: N802 - Spark's name
        """Where a new query begins."""
        if self._start == "beginning":
            return Offset().to_dict()
        return self._changes.now(self._changes.look()).to_dict()

    def getDefaultReadLimit(self) -> ReadLimit:  # noqa: N802 - Spark's name
        """As many rows as were asked for."""
        return ReadAllAvailable() if self._most is None else ReadMaxRows(self._most)

    @public
    def prepareForTriggerAvailableNow(self) -> None:  # noqa: N802 - Spark's name
        """What is there now is all that is read."""
        self._last = self._changes.look()

    @public
    def latestOffset(self, start: dict[str, Any], limit: ReadLimit) -> dict[str, Any]:  # noqa: N802 - Spark's name
        """Where the bucket is now, or as far as the limit allows; the start if there is nothing new."""
        before = Offset.from_dict(start)
        look = self._look = self._last or self._changes.look()
        end = self._changes.ahead(before, look, limit.max_rows if isinstance(limit, ReadMaxRows) else None)
        # Spark takes offsets for the same if their JSON is.
        return start if end is before else end.to_dict()

    @public
    def partitions(self, start: dict[str, Any], end: dict[str, Any]) -> list[CouchbaseChangesPartition]:
        """What is to be read, by node."""
        # A driver that was restarted plans the last batch again, without having looked.
        look = self._look or self._changes.look()
        parts = self._changes.parts(Offset.from_dict(start), Offset.from_dict(end), look, self._parts)
        return [CouchbaseChangesPartition(part) for part in parts]

    def read(self, partition: CouchbaseChangesPartition) -> Iterator[pa.RecordBatch]:
        """On an executor: batches with exactly the schema that Spark knows."""
        return partition.part.read()


def _refuse_undeclared(options: dict[str, str], declared: pa.Schema) -> None:
    """The schema says what columns there are; what is asked for besides must not be passed over.

    Raises
    ------
    ConfigurationError
        An option names a column that the schema lacks.
    """
    asked = [("columns", name, name) for name in listed(options.get("columns", ""))]
    asked += [("metadata", name, OURS + name) for name in listed(options.get("metadata", ""))]
    for option, name, column in asked:
        if column not in declared.names:
            raise ConfigurationError(
                f"the option {option} names {name!r}, and the schema of the stream has no column {column!r}",
                hint="a declared schema says which columns there are: add it there, or leave the option out",
            )
