"""The one description of a scan, which every public function that reads a bucket makes of its arguments.

A new argument is a field of :class:`ScanSpec` with its check, a key of :class:`ScanArguments`, and a
parameter with its documentation in :func:`cbframe.scan_bucket` and the other functions that take it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import timedelta
from math import inf, isnan, nan
from numbers import Real
from operator import index
from reprlib import repr as shortened
from typing import Any, Literal, Self, TypeAlias, TypedDict, get_args

import numpy as np
import pyarrow as pa

from cbframe.arrow.columns import KEY_FORMS, KeyForm
from cbframe.arrow.current_rows import TRANSACTION_PREFIX, KeyFilter, KeyPattern, key_test
from cbframe.arrow.declared_types import arrow_type
from cbframe.arrow.filters import Filters, Predicate, make_filters, predicates
from cbframe.cluster.auth import Authenticator, as_authenticator, pem_text
from cbframe.cluster.cluster_map import ClusterMap
from cbframe.cluster.connection_string import ConnectionString, parse_connection_string
from cbframe.cluster.tls import TLSContext, TLSLike, named_context
from cbframe.dcp.receiver import BlockReceiver, DeferringReceiver
from cbframe.dcp.source import BucketDataSource
from cbframe.dcp.stats import EventLogLike
from cbframe.dcp.survey import BucketState, survey_bucket
from cbframe.errors import ConfigurationError
from cbframe.json.layout import OnConflict, Path, Policy, path_of, tree_of
from cbframe.json.typer import OURS
from cbframe.options import BucketDataSourceOptions
from cbframe.public import Connectable, ServerURLs
from cbframe.scan.progress import FORMS, Progress
from cbframe.wire.constants import MAX_VBUCKETS

Errors: TypeAlias = Literal["keep", "drop", "raise"]
Nested: TypeAlias = Literal["struct", "flatten", "json"]
ColumnsLike: TypeAlias = Iterable[str | tuple[str, ...]]
"""A list of names or paths, or the ``columns`` of a DataFrame."""
FiltersLike: TypeAlias = (
    Sequence[tuple[str | tuple[str, ...], str, Any]] | Sequence[Sequence[tuple[Any, str, Any]]]
)
SchemaLike: TypeAlias = pa.Schema | Mapping[str, Any]
Exclusion: TypeAlias = Literal["drop", "keep"]
Consistency: TypeAlias = Literal["snapshot", "strict"]
Check: TypeAlias = Callable[[str, Any], Any]
"""Takes the name of an argument and its value, and returns the value in its stored form, or raises."""

NESTED: tuple[str, ...] = get_args(Nested)
DTYPE_BACKENDS = ("pyarrow", "numpy_nullable", None)
METADATA_NAMES = (
    "key",
    "vbucket",
    "seqno",
    "cas",
    "rev_seqno",
    "expiry",
    "flags",
    "datatype",
    "xattrs",
    "scope",
    "collection",
)
"""Metadata that can be asked for; each becomes a column with the prefix ``_cb_``."""
VISIBLE: Literal["visible"] = "visible"
"""As ``collections=``: those that the user sees."""
BATCH_BYTES = 2 << 20
"""Bytes of values that are converted at once: what fits in a cache is converted faster."""
BOUNDED_WINDOW = 4 << 20
"""Bytes that a node may send ahead where memory is bounded, unless ``buffer_bytes=`` says otherwise."""
_MOST = (1 << 63) - 1
_STANDARD = BucketDataSourceOptions()
_NO_UNIT = re.compile(r"\s*[-+]?[0-9_.]*(e[-+]?[0-9]+)?\s*", re.IGNORECASE)
"""A number without a unit, or nothing: pandas takes it for nanoseconds."""
_PLAIN_SPAN = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?) *(s|min|h|d)")
"""What needs no pandas, which is slow to import."""
_UNITS = {"s": 1, "min": 60, "h": 3600, "d": 86400}


class ScanArguments(TypedDict, total=False):
    """What :func:`cbframe.scan_bucket` takes besides the bucket, for the overloads of other functions."""

    auth: Any
    tls: TLSLike
    network: str
    scope: str | None
    collections: str | Iterable[str] | None
    columns: ColumnsLike | None
    filters: FiltersLike | None
    keys_only: bool
    parse: bool
    metadata: str | Iterable[str]
    keys: KeyForm
    vbuckets: Iterable[int] | None
    key_prefix: str | bytes | None
    key_pattern: KeyPattern | None
    n_rows: int | None
    errors: Errors
    nested: Nested
    schema: SchemaLike | None
    infer_schema_length: int | None
    on_conflict: OnConflict
    max_struct_fields: int
    parse_dates: bool | Iterable[str]
    expired: Exclusion
    transaction_records: Exclusion
    consistency: Consistency
    batch_bytes: int | None
    buffer_bytes: int | None
    spool_dir: str | os.PathLike[str] | None
    spill_bytes: int | None
    timeout: float | None
    dtype_backend: str | None
    progress: Progress
    event_log: EventLogLike | None
    options: BucketDataSourceOptions | None


# --- checks


def _wrong(name: str, value: object, why: str, hint: str) -> ConfigurationError:
    return ConfigurationError(f"{name}={shortened(value)}{why}", hint=hint)


def _is_number(value: object, kind: type | tuple[type, ...]) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool | np.bool_)


def flag(name: str, value: Any) -> bool:
    """True or False."""
    if not isinstance(value, bool | np.bool_):
        raise _wrong(name, value, "", "give True or False")
    return bool(value)


def positive(name: str, value: Any, *, least: int = 1) -> int:
    """A positive integer."""
    if not _is_number(value, (int, np.integer)):
        raise _wrong(name, value, " is no integer", f"give an integer of at least {least}")
    if not least <= value <= _MOST:
        size = "small" if value < least else "large"
        raise _wrong(name, value, f" is too {size}", f"give an integer from {least} to 2**63 - 1")
    return int(value)


def count(name: str, value: Any) -> int | None:
    """A positive integer, or None."""
    return None if value is None else positive(name, value)


def size(name: str, value: Any) -> int | None:
    """An integer that is not negative, or None."""
    return None if value is None else positive(name, value, least=0)


def seconds(name: str, value: Any) -> float | None:
    """A positive number of seconds, or None."""
    if value is None:
        return None
    if not _is_number(value, Real) or isnan(value) or not value > 0:
        raise _wrong(name, value, f": {name} must be positive, or None", "give a number of seconds")
    return float(value)


def not_negative(name: str, value: Any) -> float:
    """A number of seconds, which may be 0."""
    if not _is_number(value, Real) or not value >= 0:
        raise _wrong(name, value, f": {name} must not be negative", "give a number of seconds")
    return float(value)


def seconds_of(name: str, span: Any) -> float:
    """Seconds of a span of time: ``"5min"``, a ``timedelta``, or a number of seconds."""
    hint = 'give a text with a unit such as "5min", a timedelta, or a number of seconds'
    found = nan
    if isinstance(span, str | timedelta | np.timedelta64):
        found = _seconds(span)
    elif isinstance(span, int | float | np.integer | np.floating) and not isinstance(span, bool):
        found = float(span)
    if isnan(found):
        raise ConfigurationError(f"{name}={span!r} is no span of time", hint=hint)
    if not 0 <= found < inf:
        raise ConfigurationError(f"{name}={span!r} is negative or infinite", hint=hint)
    return found


def _seconds(span: str | timedelta | np.timedelta64) -> float:
    if isinstance(span, str):
        if (plain := _PLAIN_SPAN.fullmatch(span)) is not None:
            return float(plain[1]) * _UNITS[plain[2]]
        if _NO_UNIT.fullmatch(span):
            return nan
    import pandas as pd  # noqa: PLC0415 - slow to import

    try:
        return float(pd.Timedelta(span).total_seconds())
    except (ValueError, OverflowError):
        return nan


def one_of(*choices: str | None) -> Check:
    """One of some words."""

    def check(name: str, value: Any) -> Any:
        if not isinstance(value, str | None) or value not in choices:
            raise _wrong(name, value, "", f"choose from: {', '.join(map(str, choices))}")
        return value

    return check


def name_or_none(name: str, value: Any) -> str | None:
    """A name, or None."""
    if value is not None and (not isinstance(value, str) or not value):
        raise _wrong(name, value, " is no name", "give a string, or None")
    return value


def path_of_files(name: str, value: Any) -> str:
    """The path of a folder or a file, or a URI."""
    if not isinstance(value, str | os.PathLike) or not (path := os.fspath(value)) or isinstance(path, bytes):
        raise _wrong(name, value, " is no path", "give a string, or a Path")
    return path


def path_or_none(name: str, value: Any) -> str | None:
    """The path of a folder or a file, or None."""
    return None if value is None else path_of_files(name, value)


def names(name: str, value: Any, *, hint: str) -> tuple[str, ...]:
    """Strings: one, or any iterable of them but a mapping."""
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, Iterable) or isinstance(value, bytes | Mapping):
        raise _wrong(name, value, " is no list of names", hint)
    found = tuple(value)
    for each in found:
        if not isinstance(each, str):
            raise ConfigurationError(f"{name}= has {shortened(each)}, which is no name", hint=hint)
    return tuple(map(str, found))


def _collections(name: str, value: Any) -> tuple[str, ...] | Literal["visible"] | None:
    if value is None or (isinstance(value, str) and value == VISIBLE):
        return value
    found = names(name, value, hint="give a list of collections, or None for all")
    if not all(found) or not found:
        raise _wrong(name, value, " names no collections", "leave it out to read all")
    return found


def _metadata(name: str, value: Any) -> tuple[str, ...]:
    hint = f"choose from: {', '.join(METADATA_NAMES)}"
    found = names(name, value, hint=hint)
    for each in found:
        if each not in METADATA_NAMES:
            raise ConfigurationError(f"metadata {each!r} does not exist", hint=hint)
    return found


def _dates(name: str, value: Any) -> bool | tuple[str, ...]:
    if isinstance(value, bool | np.bool_):
        return bool(value)
    return names(name, value, hint="give True for all columns, or a list of names")


def _vbuckets(name: str, value: Any) -> tuple[int, ...] | None:
    # Plain integers, also of numpy's: they become keys of ``as_of``, which has to be JSON.
    if value is None:
        return None
    hint = "give a list of integers, or None for all"
    try:
        found = tuple(value)
        if any(isinstance(each, bool | np.bool_) for each in found):
            raise TypeError("a bool is no number")  # noqa: TRY301 - reported in the same words
        numbers = tuple(map(index, found))
    except TypeError as exc:
        raise _wrong(name, value, " are no numbers", hint) from exc
    for number in numbers:
        if not 0 <= number < MAX_VBUCKETS:
            raise ConfigurationError(f"vbucket {number} does not exist", hint=hint)
    return numbers


def _key_prefix(name: str, value: Any) -> bytes | None:
    # The value is not shown: it may be a whole key.
    if value is not None and not isinstance(value, str | bytes):
        raise ConfigurationError(
            f"{name}= is a {type(value).__name__}", hint="give text or bytes, or None for all keys"
        )
    return value.encode() if isinstance(value, str) else value


def _key_pattern(name: str, value: Any) -> Any:
    if value is None:
        return None
    if not isinstance(value, re.Pattern) and (not isinstance(value, str) or not value):
        raise ConfigurationError(f"{name}= is no pattern", hint="give a glob such as 'hotel_*', or None")
    key_test(value)
    return value


def _columns(_name: str, value: Any) -> tuple[Path, ...] | None:
    return None if value is None else paths_of(value)


def _filters(_name: str, value: Any) -> Filters | None:
    match value:
        case None | ((Predicate(), *_), *_):
            return value
        case _:
            return make_filters(value)


def _schema(_name: str, value: Any) -> dict[str, pa.DataType]:
    return {} if value is None else declared_types(value)


def _progress(name: str, value: Any) -> Any:
    if not (isinstance(value, bool | None) or callable(value) or value in FORMS):
        hint = f"choose from: {', '.join(FORMS)}, None, or give a function"
        raise ConfigurationError(f"{name}={value!r}", hint=hint)
    return value


def _event_log(name: str, value: Any) -> Any:
    return value if callable(value) else path_or_none(name, value)


def _options(name: str, value: Any) -> BucketDataSourceOptions:
    if value is None:
        return _STANDARD
    if not isinstance(value, BucketDataSourceOptions):
        raise ConfigurationError(
            f"{name}= is a {type(value).__name__}", hint="give BucketDataSourceOptions(...), or None"
        )
    return value


def _auth(_name: str, value: Any) -> Any:
    # A callable is not called yet: it gives what is right at the time of each connection.
    if value is None or callable(value) or isinstance(value, Authenticator):
        return value
    return as_authenticator(value)


def _tls(name: str, value: Any) -> Any:
    # Text, of the file's path or of the file itself: a scan can be sent to other processes.
    if value is None or isinstance(value, TLSContext):
        return value
    return pem_text(value, f"{name}=") or os.fspath(value)


def paths_of(columns: ColumnsLike, nested: Nested = "struct") -> tuple[Path, ...]:
    """The paths that ``columns=`` names, each once."""
    hint = "give a list of field names, or None for all"
    given: object = columns
    no_list = not isinstance(given, Iterable) or isinstance(given, str | bytes | Mapping)
    listed = [] if no_list else list(columns)
    if not listed:
        raise ConfigurationError(f"columns={shortened(given)} names no columns", hint=hint)
    for each in listed:
        parts = each if isinstance(each, tuple | list) else (each,)
        if not parts or not all(isinstance(part, str) for part in parts):
            raise ConfigurationError(
                f"columns= has {shortened(each)}, which is no name of a field", hint=hint
            )
    paths = tuple(dict.fromkeys(map(path_of, listed)))
    joined = [".".join(path) for path in paths]
    twice = next((name for name in joined if joined.count(name) > 1), None)
    if twice is not None:
        raise ConfigurationError(
            f"columns= names two fields whose column is {twice!r}", hint="read one of them at a time"
        )
    _refuse_members_of_text(paths, nested)
    return paths


def _refuse_members_of_text(paths: tuple[Path, ...] | None, nested: Nested) -> None:
    inside = next((path for path in paths or () if len(path) > 1), None)
    if inside is not None and nested == "json":
        raise ConfigurationError(
            f'columns= names {".".join(inside)!r}, and nested="json" keeps {inside[0]!r} as text',
            hint=f"read {inside[0]!r}, or leave nested= out",
        )


def declared_types(schema: Any) -> dict[str, pa.DataType]:
    """Arrow types by name, of a pyarrow schema or a mapping."""
    if isinstance(schema, pa.Schema):
        twice = next((name for name in schema.names if schema.names.count(name) > 1), None)
        if twice is not None:
            raise ConfigurationError(
                f"schema= has two columns {twice!r}", hint="name each field of documents once"
            )
        schema = {each.name: each.type for each in schema}
    if isinstance(schema, Mapping):
        odd = next((name for name in schema if not isinstance(name, str)), None)
        if odd is not None:
            raise ConfigurationError(f"schema= names {shortened(odd)}", hint="names of fields are strings")
        ours = [name for name in schema if name.startswith(OURS)]
        if ours:
            raise ConfigurationError(
                f"schema= names {ours[0]!r}", hint=f"it is about fields of documents; {OURS}* is metadata"
            )
        return {name: arrow_type(kind, name) for name, kind in schema.items()}
    raise ConfigurationError(
        f"schema= is a {type(schema).__name__}", hint="give a pyarrow.Schema, or a dict of names and types"
    )


# --- the description


def _argument(check: Check, default: Any = None) -> Any:
    """A field that `check` puts into its stored form; its default is that of all public functions."""
    return field(default=default, metadata={"check": check})


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class ScanSpec:
    """A scan: the arguments of :func:`cbframe.scan_bucket`, which documents them, checked and in one form.

    ``dataclasses.replace`` checks again; an argument that is invalid is a ConfigurationError.
    """

    server_urls: ServerURLs
    bucket: str
    auth: Any = _argument(_auth)
    tls: TLSLike = _argument(_tls)
    network: str = "auto"
    scope: str | None = _argument(name_or_none)
    collections: tuple[str, ...] | Literal["visible"] | None = _argument(_collections)
    columns: tuple[Path, ...] | None = _argument(_columns)
    filters: Filters | None = _argument(_filters)
    keys_only: bool = _argument(flag, default=False)
    parse: bool = _argument(flag, default=True)
    metadata: tuple[str, ...] = _argument(_metadata, ("key",))
    keys: KeyForm = _argument(one_of(*KEY_FORMS), "text")
    vbuckets: tuple[int, ...] | None = _argument(_vbuckets)
    key_prefix: bytes | None = _argument(_key_prefix)
    key_pattern: KeyPattern | None = _argument(_key_pattern)
    n_rows: int | None = _argument(count)
    errors: Errors = _argument(one_of(*get_args(Errors)), "keep")
    nested: Nested = _argument(one_of(*NESTED), "struct")
    schema: Mapping[str, pa.DataType] = _argument(_schema)
    infer_schema_length: int | None = _argument(count)
    on_conflict: OnConflict = _argument(one_of(*get_args(OnConflict)), "widen")
    max_struct_fields: int = _argument(positive, 1000)
    parse_dates: bool | tuple[str, ...] = _argument(_dates, default=False)
    expired: Exclusion = _argument(one_of(*get_args(Exclusion)), "drop")
    transaction_records: Exclusion = _argument(one_of(*get_args(Exclusion)), "drop")
    consistency: Consistency = _argument(one_of(*get_args(Consistency)), "snapshot")
    only_persisted: bool = _argument(flag, default=False)
    batch_bytes: int | None = _argument(count)
    buffer_bytes: int | None = _argument(size)
    spool_dir: str | None = _argument(path_or_none)
    spill_bytes: int | None = _argument(size)
    timeout: float | None = _argument(seconds)
    dtype_backend: str | None = _argument(one_of(*DTYPE_BACKENDS), "pyarrow")
    progress: Progress = _argument(_progress, "auto")
    event_log: EventLogLike | None = _argument(_event_log)
    options: BucketDataSourceOptions = _argument(_options)

    @classmethod
    def of(
        cls,
        conn: ServerURLs | Connectable,
        bucket: str | None = None,
        *,
        auth: Any = None,
        tls: TLSLike = None,
        network: str = "auto",
        **arguments: Any,
    ) -> Self:
        """The scan of a bucket that a connection string, a list of seeds or a ``LocalCluster`` leads to."""
        # The types may lie: this comes from notebooks.
        given: object = conn
        urls: ServerURLs
        if isinstance(given, Connectable):
            urls = given.connection_string
            auth = auth if auth is not None else (given.username, given.password)
        elif isinstance(given, str):
            urls = given
        elif isinstance(given, Sequence) and not isinstance(given, bytes | bytearray):
            urls = tuple(given)
        else:
            raise ConfigurationError(
                f"cannot connect to a {type(conn).__name__}",
                hint="give 'couchbase://host/bucket', a list of seeds, or a LocalCluster",
            )
        parsed: ConnectionString = parse_connection_string(urls).on_network(network)
        name = name_or_none("bucket", bucket) or parsed.bucket
        if not name:
            raise ConfigurationError(
                "no bucket is named",
                hint="give bucket=, or put it into the connection string: couchbase://host/bucket",
            )
        if tls is not None and not parsed.tls:
            raise ConfigurationError(
                f"tls= is given, but {parsed.scheme}:// is not encrypted",
                hint="write couchbases:// or https://",
            )
        arguments["options"] = parsed.with_options(_options("options", arguments.get("options")))
        spec = cls(
            server_urls=urls,
            bucket=name,
            auth=auth if auth is not None else parsed.credentials,
            tls=tls,
            network=network,
            **arguments,
        )
        # A file that cannot be read is reported now, not when the scan is read.
        named_context(spec.tls, parsed)
        return spec

    def __post_init__(self) -> None:
        if self.columns is not None and not self.parsed:
            raise ConfigurationError(
                "columns= needs the documents", hint="leave keys_only=True and parse=False out"
            )
        if isinstance(self.schema, pa.Schema):
            if self.columns is not None:
                raise ConfigurationError(
                    "a pyarrow schema says which columns there are",
                    hint="leave columns= out, or give schema= as a dict",
                )
            if not self.schema.names:
                raise ConfigurationError("schema= has no columns", hint="keys_only=True reads the keys alone")
            object.__setattr__(self, "columns", [(name,) for name in dict.fromkeys(self.schema.names)])
        for each in fields(self):
            if (check := each.metadata.get("check")) is not None:
                object.__setattr__(self, each.name, check(each.name, getattr(self, each.name)))
        if self.keys_only and not all(each.of_metadata for each in predicates(self.filters)):
            raise ConfigurationError(
                "filters= on fields needs the documents",
                hint="leave keys_only=True out, or filter by _cb_ columns",
            )
        prefix = self.key_prefix or b""
        start = b"" if self.key_pattern is None else key_test(self.key_pattern)[0]
        if TRANSACTION_PREFIX in (prefix[:5], start[:5]) and self.transaction_records == "drop":
            raise ConfigurationError(
                "key_prefix= or key_pattern= names records of transactions, which are left out",
                hint='give transaction_records="keep", too',
            )
        _refuse_members_of_text(self.columns, self.nested)
        options = self.options
        if self.timeout is not None:
            options = replace(options, connect_timeout=min(options.connect_timeout, self.timeout))
        if self.only_persisted:
            options = replace(options, only_persisted=True)
        if self.buffer_bytes is not None:
            options = replace(options, feed_buffer_size_bytes=self.buffer_bytes)
        object.__setattr__(self, "options", options)

    def __repr__(self) -> str:
        # No credentials, keys or values: filters, key_prefix and key_pattern may hold any.
        return f"<ScanSpec of {self.bucket!r}>"

    def key_filter(self) -> KeyFilter:
        """What leaves out rows by their keys."""
        drops = self.transaction_records == "drop"
        return KeyFilter(self.key_prefix, self.key_pattern, drops_transactions=drops)

    @property
    def named(self) -> tuple[str, ...] | None:
        """The names of `collections`; None for all. Those that the user sees were looked up before."""
        assert self.collections != VISIBLE, "cbframe.scan.names.settled() comes first"
        return self.collections

    @property
    def parsed(self) -> bool:
        """Whether documents become columns."""
        return self.parse and not self.keys_only

    @property
    def batch_size(self) -> int:
        """Bytes of values that are converted at once."""
        return self.batch_bytes or BATCH_BYTES

    def window(self, *, bounded: bool) -> int:
        """Flow-control window of each node's connection in bytes; 0 turns flow control off.

        `bounded`: memory must not depend on the size of the bucket.
        """
        given = self.options.feed_buffer_size_bytes
        return min(given, BOUNDED_WINDOW) if bounded and self.buffer_bytes is None else given

    def data_source(
        self,
        receiver: BlockReceiver | DeferringReceiver,
        options: BucketDataSourceOptions,
        *,
        vbuckets: tuple[int, ...] | None,
        bucket_uuid: str,
        first_map: ClusterMap | None,
    ) -> BucketDataSource:
        """What streams it, not started yet."""
        return BucketDataSource(
            self.server_urls,
            "default",
            self.bucket,
            bucket_uuid,
            vbuckets,
            self.auth,
            receiver,
            options,
            tls_context=self.tls,
            network=self.network,
            first_map=first_map,
            event_log=self.event_log,
        )

    def look(
        self,
        vbuckets: Iterable[int] | None,
        *,
        first_map: ClusterMap | None = None,
        sizes: bool = False,
        time: bool = False,
        persisted: bool = False,
    ) -> BucketState:
        """Where vbuckets are now, as :func:`cbframe.dcp.survey.survey_bucket` finds out."""
        return survey_bucket(
            self.server_urls,
            self.bucket,
            self.auth,
            self.options,
            self.tls,
            self.network,
            vbuckets=vbuckets,
            first_map=first_map,
            sizes=sizes,
            time=time,
            persisted=persisted,
        )

    def policy(self) -> Policy:
        """What is asked for about types."""
        return Policy(
            max_members=self.max_struct_fields,
            on_conflict=self.on_conflict,
            nested_as_text=self.nested == "json",
            declared=self.schema,
            infer_length=self.infer_schema_length,
            wanted=tree_of(self.columns) if self.columns else None,
        )
