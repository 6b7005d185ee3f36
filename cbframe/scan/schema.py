"""The schema of a bucket: a report of its fields, and what differs between two."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cbframe.arrow.columns import KeyForm
from cbframe.arrow.current_rows import KeyPattern
from cbframe.cluster.tls import TLSLike
from cbframe.dcp.stats import EventLogLike
from cbframe.errors import ConfigurationError
from cbframe.json.arrays import as_lists
from cbframe.json.layout import OnConflict
from cbframe.json.typer import OURS, quoted
from cbframe.options import BucketDataSourceOptions
from cbframe.public import Connectable, ServerURLs, as_html, as_text, public
from cbframe.scan.progress import Progress
from cbframe.scan.result import AsOf, Conflict, Moment, left_out
from cbframe.scan.session import ReadSession
from cbframe.scan.spec import (
    ColumnsLike,
    Consistency,
    Errors,
    Exclusion,
    FiltersLike,
    Nested,
    ScanSpec,
    SchemaLike,
)

if TYPE_CHECKING:
    import pandas as pd


_SMALLEST = 1024
"""Hashes that are kept of a field: fewer different values are counted exactly, more within some 3 %."""
_MOST_EXAMPLES = 3
_LENGTH = 60
"""Characters of an example."""
_EXAMPLES = 46
"""Characters for all examples of a field."""
_HEAD = ("field", "type", "missing", "distinct", "kinds", "examples")
_DIFF_HEAD = ("", "field", "before", "after")


@dataclass(slots=True)
class Field:
    """What is known of one field."""

    path: str
    type: pa.DataType  # of the values; that of the last table
    places: int = 0
    values: int = 0  # where one is
    _hashes: npt.NDArray[np.uint64] = field(default_factory=lambda: np.zeros(0, np.uint64))
    _examples: dict[int, str] = field(default_factory=dict)

    @property
    def exact(self) -> bool:
        """Whether :attr:`distinct` is no estimate."""
        return len(self._hashes) < _SMALLEST

    @property
    def distinct(self) -> int | None:
        """How many different values there are, about; None of structs and lists."""
        if pa.types.is_nested(self.type):
            return None
        if self.exact:
            return len(self._hashes)
        # That many hashes out of all that are spread evenly lie below the largest of the smallest.
        share = int(self._hashes[-1]) / 2.0**64
        return min(self.values, round((_SMALLEST - 1) / share))

    @property
    def examples(self) -> tuple[str, ...]:
        """Some values as text: which ones depends on the values alone."""
        return tuple(self._examples[at] for at in sorted(self._examples))

    def add(self, array: pa.Array) -> None:
        """Take in the values of one more table."""
        self.type = array.type
        self.places += len(array)
        self.values += len(array) - array.null_count
        if pa.types.is_nested(array.type) or array.null_count == len(array):
            return
        values = pc.unique(array.drop_null())
        hashes = _hashes(values)
        smallest = np.argsort(hashes, kind="stable")
        self._hashes = np.union1d(self._hashes, hashes[smallest[:_SMALLEST]])[:_SMALLEST]
        for at in smallest[:_MOST_EXAMPLES].tolist():
            self._examples.setdefault(int(hashes[at]), _cut(str(values[at].as_py()), _LENGTH))
        for at in sorted(self._examples)[_MOST_EXAMPLES:]:
            del self._examples[at]


class Description:
    """The fields of any number of tables with one schema."""

    def __init__(self, is_path: Callable[[str], bool] = lambda name: False) -> None:  # noqa: ARG005
        self._is_path = is_path
        self.rows = 0
        self.fields: dict[str, Field] = {}

    def add(self, batch: pa.RecordBatch) -> None:
        """Take in some rows."""
        self.rows += len(batch)
        for name, array in zip(batch.schema.names, batch.columns, strict=True):
            if not name.startswith(OURS) or name.endswith("_"):
                self._visit(name if self._is_path(name) else quoted(name), array)

    def _visit(self, path: str, array: pa.Array) -> None:
        self.fields.setdefault(path, Field(path, array.type)).add(array)
        if pa.types.is_struct(array.type):
            # What is inside of nothing is not missing.
            inside = array.filter(array.is_valid())
            for at, member in enumerate(array.type):
                self._visit(f"{path}.{quoted(member.name)}", inside.field(at))
        elif pa.types.is_list(array.type):
            self._visit(f"{path}[]", array.flatten())
        elif pa.types.is_map(array.type):
            self._visit(f"{path}[]", as_lists(array).flatten().field(1))


def _hashes(values: pa.Array) -> npt.NDArray[np.uint64]:
    from pandas.util import hash_array  # noqa: PLC0415 - pandas is slow to import

    if pa.types.is_decimal(values.type):
        values = values.cast(pa.string())
    found = values.to_numpy(zero_copy_only=False)
    hashes: npt.NDArray[np.uint64] = hash_array(found, categorize=False)
    return hashes


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def short_type(kind: pa.DataType) -> str:
    """A type without what is inside of it."""
    if pa.types.is_struct(kind):
        return "struct"
    if pa.types.is_map(kind):
        return "map"
    return "list" if pa.types.is_list(kind) else str(kind)


def leaves_of(schema: pa.Schema) -> dict[str, str]:
    """Every field by its path, with its type."""
    description = Description()
    description.add(pa.RecordBatch.from_pylist([], schema))
    return {each.path: short_type(each.type) for each in description.fields.values()}


@dataclass(frozen=True, slots=True)
class SchemaReport:
    """What the fields of a bucket's documents look like. Renders in a notebook.

    Attributes
    ----------
    bucket
        Where they are from.
    rows
        How many documents were looked at.
    schema
        The columns that a read would have.
    fields
        Every field, and every field inside of one, in the order of the columns: ``path``, ``type``,
        ``places``, ``values``, ``distinct`` (exact up to a thousand, about right beyond) and ``examples``.
    conflicts
        Fields whose values have no common type.
    rejected
        How many values are no JSON objects, by reason.
    as_of
        As of when it is; empty after ``n_rows=``.
    expired, transaction_records, moment
        As of :class:`~cbframe.ReadResult`.
    """

    bucket: str
    rows: int
    schema: pa.Schema
    fields: tuple[Field, ...] = field(repr=False)
    conflicts: tuple[Conflict, ...]
    rejected: dict[str, int]
    as_of: AsOf
    expired: int = 0
    transaction_records: int = 0
    moment: Moment | None = None

    def __repr__(self) -> str:
        return as_text(self._title(), _HEAD, self._rows())

    def _repr_html_(self) -> str:
        return as_html(self._title(), _HEAD, self._rows())

    def to_pandas(self) -> pd.DataFrame:
        """A row for each field, its path as the index.

        ``type`` (text), ``values`` and ``places`` (where one is, and where one could be), ``missing``
        (the share that is null or absent), ``distinct``, ``examples`` and ``kinds`` (how many values of
        which kind, where there is no common type).
        """
        import pandas as pd  # noqa: PLC0415 - slow to import

        kinds = {conflict.path: conflict.types for conflict in self.conflicts}
        rows = [
            {
                "path": each.path,
                "type": short_type(each.type),
                "values": each.values,
                "places": each.places,
                "missing": _missing(each),
                "distinct": each.distinct,
                "examples": list(each.examples),
                "kinds": kinds.get(each.path),
            }
            for each in self.fields
        ]
        columns = ["path", "type", "values", "places", "missing", "distinct", "examples", "kinds"]
        frame = pd.DataFrame(rows, columns=columns).set_index("path")
        return frame.astype({"distinct": "Int64"})

    def _title(self) -> str:
        title = f"{self.bucket}: {self.rows:,} documents, {len(self.fields):,} fields"
        rejected = ", ".join(f"{count:,} {reason}" for reason, count in self.rejected.items())
        out = left_out(self.expired, self.transaction_records)
        title += f"; no JSON objects: {rejected}" if rejected else ""
        return f"{title}; left out: {out}" if out else title

    def _rows(self) -> list[tuple[str, ...]]:
        kinds = {
            conflict.path: ", ".join(f"{count:,} {kind}" for kind, count in conflict.types.items())
            for conflict in self.conflicts
        }
        return [
            (
                each.path,
                short_type(each.type),
                _percent(_missing(each)),
                _count(each),
                kinds.get(each.path, ""),
                _cut(", ".join(each.examples), _EXAMPLES),
            )
            for each in self.fields
        ]


@dataclass(frozen=True, slots=True)
class SchemaDiff:
    """What differs between two schemas; false if nothing does. Renders in a notebook.

    Attributes
    ----------
    added, removed
        Types by path, of fields that only the second, or only the first schema has.
    changed
        Both types of fields that have another type, by path.
    """

    added: dict[str, str]
    removed: dict[str, str]
    changed: dict[str, tuple[str, str]]

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.changed)

    def __repr__(self) -> str:
        return as_text(self._title(), _DIFF_HEAD, self._rows())

    def _repr_html_(self) -> str:
        return as_html(self._title(), _DIFF_HEAD, self._rows())

    def _title(self) -> str:
        if not self:
            return "the schemas are equal"
        return f"{len(self.added)} added, {len(self.removed)} removed, {len(self.changed)} changed"

    def _rows(self) -> list[tuple[str, str, str, str]]:
        return [
            *(("+", path, "", kind) for path, kind in self.added.items()),
            *(("-", path, kind, "") for path, kind in self.removed.items()),
            *(("~", path, *kinds) for path, kinds in self.changed.items()),
        ]


@public
def read_schema(
    conn: ServerURLs | Connectable,
    bucket: str | None = None,
    *,
    auth: Any = None,
    tls: TLSLike = None,
    network: str = "auto",
    scope: str | None = None,
    collections: str | Iterable[str] | None = None,
    columns: ColumnsLike | None = None,
    filters: FiltersLike | None = None,
    keys_only: bool = False,
    parse: bool = True,
    metadata: str | Iterable[str] = ("key",),
    vbuckets: Iterable[int] | None = None,
    keys: KeyForm = "text",
    key_prefix: str | bytes | None = None,
    key_pattern: KeyPattern | None = None,
    n_rows: int | None = None,
    errors: Errors = "keep",
    nested: Nested = "struct",
    schema: SchemaLike | None = None,
    infer_schema_length: int | None = None,
    on_conflict: OnConflict = "widen",
    max_struct_fields: int = 1000,
    parse_dates: bool | Iterable[str] = False,
    expired: Exclusion = "drop",
    transaction_records: Exclusion = "drop",
    consistency: Consistency = "snapshot",
    batch_bytes: int | None = None,
    buffer_bytes: int | None = None,
    spool_dir: str | os.PathLike[str] | None = None,
    spill_bytes: int | None = None,
    timeout: float | None = None,
    dtype_backend: str | None = "pyarrow",
    progress: Progress = "auto",
    event_log: EventLogLike | None = None,
    options: BucketDataSourceOptions | None = None,
) -> SchemaReport:
    """Look at all documents, and report what their fields look like.

    Memory does not depend on the bucket's size.

    Parameters
    ----------
    conn, bucket, auth, tls, network, scope, collections, columns, filters, keys_only, parse, metadata, \
vbuckets, keys, key_prefix, key_pattern, errors, nested, schema, infer_schema_length, on_conflict, \
max_struct_fields, parse_dates, expired, transaction_records, consistency, batch_bytes, buffer_bytes, \
spool_dir, spill_bytes, timeout, dtype_backend, progress, event_log, options
        As for :func:`~cbframe.scan_bucket`.
    n_rows
        ``10_000`` makes it a quick look at some documents.

    Raises
    ------
    CbframeError
        As :meth:`BucketScan.to_reader`.

    Examples
    --------
    >>> import cbframe
    >>> with cbframe.LocalCluster(vbuckets=4) as cluster:
    ...     _ = cluster.upsert("a", {"name": "x", "geo": {"lat": 1.5}})
    ...     _ = cluster.upsert("b", {"name": "y"})
    ...     report = cbframe.read_schema(cluster)
    >>> [(field.path, field.values) for field in report.fields]
    [('name', 2), ('geo', 1), ('geo.lat', 1)]
    """
    spec = ScanSpec.of(**locals())
    result, reader = ReadSession(spec).stream()
    members = {".".join(path) for path in spec.columns or () if len(path) > 1}
    description = Description(lambda name: spec.nested == "flatten" or name in members)
    # Also of no documents there are fields, if schema= declares them.
    description.add(pa.RecordBatch.from_pylist([], reader.schema))
    for batch in reader:
        description.add(batch)
    return SchemaReport(
        result.bucket,
        description.rows,
        reader.schema.remove_metadata(),
        tuple(description.fields.values()),
        result.conflicts,
        result.rejected,
        result.as_of,
        result.expired,
        result.transaction_records,
        result.moment,
    )


def diff_schema(before: Any, after: Any) -> SchemaDiff:
    """What differs between two schemas: fields at any depth, by their paths.

    A name that has dots, brackets or backquotes itself is in backquotes: ```user.name``` is a field,
    ``user.name`` is the member ``name`` of ``user``.

    Parameters
    ----------
    before, after
        A :class:`SchemaReport`, a pyarrow schema, or what has one: a table, a record batch, a dataset, a
        :class:`~cbframe.ReadResult`.

    Raises
    ------
    ConfigurationError
        One of them has no schema.
    """
    old, new = _leaves(before), _leaves(after)
    return SchemaDiff(
        {path: kind for path, kind in new.items() if path not in old},
        {path: kind for path, kind in old.items() if path not in new},
        {path: (kind, new[path]) for path, kind in old.items() if path in new and new[path] != kind},
    )


def _missing(each: Field) -> float:
    return 1 - each.values / each.places if each.places else 0.0


def _percent(share: float) -> str:
    """Never 0 % or 100 % unless it is."""
    if 0 < share < 0.001:
        return "< 0.1 %"
    if 0.999 < share < 1:
        return "> 99.9 %"
    return f"{100 * share:.3g} %"


def _count(each: Field) -> str:
    if each.distinct is None:
        return ""
    return f"{each.distinct:,}" if each.exact else f"~ {each.distinct:,}"


def _leaves(what: Any) -> dict[str, str]:
    if isinstance(what, SchemaReport):
        return {each.path: short_type(each.type) for each in what.fields}
    for each in (what, getattr(what, "schema", None), getattr(getattr(what, "table", None), "schema", None)):
        if isinstance(each, pa.Schema):
            return leaves_of(each)
    raise ConfigurationError(
        f"a {type(what).__name__} has no Arrow schema",
        hint="give what read_schema() returns, a pyarrow schema, or a table",
    )
