"""Readers of Spark's data source: they plan on the driver and read on executors; options, types, filters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pyarrow as pa
from pyspark.sql import datasource
from pyspark.sql.pandas.types import from_arrow_schema, to_arrow_schema
from pyspark.sql.streaming.datasource import (
    ReadAllAvailable,
    ReadLimit,
    ReadMaxRows,
    SupportsTriggerAvailableNow,
)
from pyspark.sql.types import StructType

from cbframe.cluster.auth import EnvironmentAuth
from cbframe.contrib.pushdown import Written, type_at, written
from cbframe.dcp.survey import BucketState
from cbframe.errors import ConfigurationError
from cbframe.json.typer import OURS
from cbframe.public import public
from cbframe.scan.changes import CHANGE_TYPE
from cbframe.scan.microbatch import REQUIRED, MicroBatchPart, Offset, micro_batch_reader
from cbframe.scan.partition import ScanPartition
from cbframe.scan.scan import BucketScan, scan_bucket
from cbframe.scan.shape import cast_to
from cbframe.scan.spec import METADATA_NAMES, VISIBLE, one_of

__all__ = [
    "CouchbaseChangesPartition",
    "CouchbasePartition",
    "CouchbaseReader",
    "CouchbaseStreamReader",
    "FilteringReader",
]

_LARGER = {
    pa.uint8(): pa.int16(),
    pa.uint16(): pa.int32(),
    pa.uint32(): pa.int64(),
    pa.uint64(): pa.decimal128(20, 0),
    pa.null(): pa.string(),
}
_BOTH = frozenset(
    (
        *("connection", "bucket", "partitions", "columns", "scope", "collections", "metadata"),
        *("on_conflict", "sample_rows", "tls", "user_env", "password_env", "transaction_records"),
    )
)
BATCH = _BOTH | {"consistency", "expired", "pushdown"}
STREAM = _BOTH | {"changes", "start", "max_changes_per_batch", "on_rollback"}
STREAM |= {"whole_snapshots", "only_persisted"}
_OPERATORS: dict[type[datasource.Filter], str] = {
    datasource.EqualTo: "==",
    datasource.GreaterThan: ">",
    datasource.GreaterThanOrEqual: ">=",
    datasource.LessThan: "<",
    datasource.LessThanOrEqual: "<=",
    datasource.In: "in",
    datasource.IsNotNull: "is not",
}


# --- options


def checked(options: Mapping[str, str], known: Iterable[str]) -> dict[str, str]:
    """Options by their names in small letters."""
    found = {name.lower(): value for name, value in options.items()}
    unknown = [name for name in options if name.lower() not in known]
    if unknown or "connection" not in found:
        raise ConfigurationError(
            f"there is no option {unknown[0]!r}" if unknown else 'option("connection", ...) is missing',
            hint=f"options are: {', '.join(sorted(known))}",
        )
    for name in ("collections", "columns"):
        if name in found and not listed(found[name]):
            raise ConfigurationError(
                f"{name}={found[name]!r} names no {name}", hint="leave the option out for all"
            )
    for name in listed(found.get("columns", "")):
        if "." in name:
            raise ConfigurationError(
                f"columns={name!r}: a member of an object is no column here",
                hint=f"take {name.partition('.')[0]!r}, and select {name!r} of the frame",
            )
    # Of no use with a schema that is declared, but a slip in it is one all the same.
    number_of(found, "sample_rows", 10_000)
    return found


def listed(text: str) -> list[str]:
    """Names between commas."""
    return [name.strip() for name in text.split(",") if name.strip()]


def number_of(options: Mapping[str, str], name: str, default: int) -> int:
    """A positive number."""
    text = options.get(name, str(default))
    if not text.isdecimal() or not int(text):
        raise ConfigurationError(f"{name}={text!r} is no positive number")
    return int(text)


def choice_of(options: Mapping[str, str], name: str, *choices: str) -> str:
    """One of some words; the first if nothing is said."""
    return str(one_of(*choices)(name, options.get(name, choices[0])))


def read_arguments(options: Mapping[str, str]) -> dict[str, Any]:
    """What to read, and with which rights, as arguments of a scan: no secret is among the options."""
    collections = options.get("collections")
    visible = collections is None or collections.strip() == VISIBLE
    return {
        "auth": EnvironmentAuth(
            options.get("user_env", "CB_USER"), options.get("password_env", "CB_PASSWORD")
        ),
        "tls": options.get("tls"),
        "scope": options.get("scope"),
        "collections": collections if visible else listed(collections or ""),
        "transaction_records": choice_of(options, "transaction_records", "drop", "keep"),
    }


def scan_of(options: Mapping[str, str], **arguments: Any) -> BucketScan:
    """The scan that the options ask for."""
    on_conflict = choice_of(options, "on_conflict", "raise", "null")
    if "schema" not in arguments:
        if on_conflict == "raise":
            on_conflict = "widen"  # a schema is sought that holds all values
        if "columns" in options:
            arguments["columns"] = listed(options["columns"])
    arguments.setdefault("metadata", ("key", *listed(options.get("metadata", ""))))
    return scan_bucket(
        options["connection"],
        options.get("bucket"),
        on_conflict=on_conflict,  # type: ignore[arg-type]
        expired=choice_of(options, "expired", "drop", "keep"),  # type: ignore[arg-type]
        **read_arguments(options),
        **arguments,
    )


# --- schemas


def arrow_schema(schema: StructType) -> pa.Schema:
    """What Spark calls a schema, as Arrow has it; TIMESTAMP is a moment, in whatever zone it is shown."""
    twice = [name for name, count in Counter(schema.fieldNames()).items() if count > 1]
    if twice:
        raise ConfigurationError(f"the schema has two columns {twice[0]!r}", hint="leave one out")
    return to_arrow_schema(schema, timezone="UTC")


def larger(kind: pa.DataType) -> pa.DataType:
    """A type that Spark has."""
    if pa.types.is_struct(kind):
        return pa.struct([(member.name, larger(member.type)) for member in kind])
    if pa.types.is_list(kind):
        return pa.list_(larger(kind.value_type))
    if pa.types.is_map(kind):
        return pa.map_(larger(kind.key_type), larger(kind.item_type))
    return _LARGER.get(kind, kind)


def sampled_schema(given: Mapping[str, str]) -> StructType:
    """The schema of a sample."""
    # Nobody says here whether it is for a stream.
    options = checked(given, BATCH | STREAM)
    changes = choice_of(options, "changes", "false", "true") == "true"
    asked = listed(options.get("metadata", ""))
    if changes:
        asked = ["vbucket", "seqno", *(name for name in asked if name not in ("vbucket", "seqno"))]
    scan = scan_of(options, metadata=("key", *asked))
    parts = scan.partitions(1, sample_rows=number_of(options, "sample_rows", 10_000))
    fields = [
        pa.field(each.name, larger(each.type))
        for each in parts[0].schema
        if not each.name.startswith(OURS) or each.name.removeprefix(OURS) in METADATA_NAMES
    ]
    kind = [pa.field(CHANGE_TYPE, pa.string())] if changes else []
    return from_arrow_schema(pa.schema([*kind, *fields]))


# --- filters


def pushed(filters: Iterable[datasource.Filter], schema: pa.Schema) -> list[Written]:
    """Those of the filters that a scan can take, as ``filters=`` of it."""
    found = []
    for each in filters:
        negative = isinstance(each, datasource.Not)
        inner = each.child if negative else each
        if (op := _OPERATORS.get(type(inner))) is not None:
            path = tuple(inner.attribute)
            kind = type_at(path, pa.struct(list(schema)))
            found.append(written(path, kind, op, getattr(inner, "value", None), negative=negative))
    return [each for each in found if each is not None]


# --- reading


class CouchbasePartition(datasource.InputPartition):  # type: ignore[misc]
    """A :class:`~cbframe.ScanPartition` on its way to an executor."""

    def __init__(self, part: ScanPartition) -> None:
        super().__init__(part.number)
        self.part = part


class CouchbaseReader(datasource.DataSourceReader):  # type: ignore[misc]
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

    def pushFilters(self, filters: list[datasource.Filter]) -> list[datasource.Filter]:  # noqa: N802 - Spark's name
        """Take what is safe to take; all of them are evaluated again."""
        self._filters = pushed(filters, self._schema)
        return filters


def reader_of(options: dict[str, str], schema: StructType) -> CouchbaseReader:
    """What reads once; the options say whether it takes filters."""
    if "changes" in options:
        raise ConfigurationError('option("changes", ...) is for streams', hint="use spark.readStream")
    pushes = choice_of(checked(options, BATCH), "pushdown", "false", "true") == "true"
    return (FilteringReader if pushes else CouchbaseReader)(options, schema)


class CouchbaseChangesPartition(datasource.InputPartition):  # type: ignore[misc]
    """A :class:`~cbframe.scan.microbatch.MicroBatchPart` on its way to an executor."""

    def __init__(self, part: MicroBatchPart) -> None:
        super().__init__(part.number)
        part.refuse_secrets()
        self.part = part


class CouchbaseStreamReader(datasource.DataSourceStreamReader, SupportsTriggerAvailableNow):  # type: ignore[misc]
    """Reads the changes of a bucket between two offsets.

    It is on the driver, but for :meth:`read`, and keeps nothing that a restarted driver would need.
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
        self._start = choice_of(options, "start", "beginning", "now")
        self._parts = number_of(options, "partitions", 16)
        limited = "max_changes_per_batch" in options
        self._most = number_of(options, "max_changes_per_batch", 1) if limited else None
        # Of a vbucket that is read in part, what lies beyond the part may be all the rest, each time.
        whole = ("false", "true") if limited else ("true", "false")
        self._changes = micro_batch_reader(
            options["connection"],
            options.get("bucket"),
            schema=declared,
            on_conflict=choice_of(options, "on_conflict", "raise", "null"),  # type: ignore[arg-type]
            on_rollback=choice_of(options, "on_rollback", "reset", "fail"),  # type: ignore[arg-type]
            whole_snapshots=choice_of(options, "whole_snapshots", *whole) == "true",
            only_persisted=choice_of(options, "only_persisted", "false", "true") == "true",
            **read_arguments(options),
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
    """A declared schema says what columns there are; what is asked for besides must not be passed over."""
    asked = [("columns", name, name) for name in listed(options.get("columns", ""))]
    asked += [("metadata", name, OURS + name) for name in listed(options.get("metadata", ""))]
    for option, name, column in asked:
        if column not in declared.names:
            raise ConfigurationError(
                f"the option {option} names {name!r}, and the schema of the stream has no column {column!r}",
                hint="a declared schema says which columns there are: add it there, or leave the option out",
            )
