"""The one description of a scan, which every public function that reads a bucket makes of its arguments.

A new argument is a field of :class:`ScanSpec`, a check in ``_CHECKS``, a key of :class:`ScanArguments`, and a
parameter with its documentation in :func:`cbframe.scan_bucket` and the other functions that take it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import isnan
from numbers import Real
from operator import index
from reprlib import repr as shortened
from typing import Any, Literal, Self, TypeAlias, TypedDict, get_args

import numpy as np
import pyarrow as pa

from cbframe.arrow.columns import KEY_FORMS, KeyForm
from cbframe.arrow.current_rows import TRANSACTION_PREFIX
from cbframe.arrow.documents.filters import Filters, Predicate, make_filters, predicates
from cbframe.arrow.documents.typenames import arrow_type
from cbframe.cluster.auth import Authenticator, as_authenticator, pem_text
from cbframe.cluster.connection_string import ConnectionString, parse_connection_string
from cbframe.cluster.tls import TLSContext, TLSLike, named_context
from cbframe.errors import ConfigurationError
from cbframe.json.layout import OnConflict, Path, Policy, path_of, tree_of
from cbframe.json.typer import OURS
from cbframe.options import BucketDataSourceOptions
from cbframe.scan.progress import Progress, check_progress
from cbframe.typing import Connectable, ServerURLs

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
_MAX_VBUCKET = 0xFFFF
_MOST = (1 << 63) - 1


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
    options: BucketDataSourceOptions | None


# --- checks


def _is_number(value: object, kind: type | tuple[type, ...]) -> bool:
    """Whether it is a number, also one of numpy's, and no bool."""
    return isinstance(value, kind) and not isinstance(value, bool | np.bool_)


def flag(name: str, value: Any) -> bool:
    """True or False."""
    if not isinstance(value, bool | np.bool_):
        raise ConfigurationError(f"{name}={shortened(value)}", hint="give True or False")
    return bool(value)


def count(name: str, value: Any) -> int | None:
    """A positive integer, or None."""
    return None if value is None else positive(name, value)


def positive(name: str, value: Any) -> int:
    """A positive integer."""
    return _integer(name, value, least=1)


def size(name: str, value: Any) -> int | None:
    """An integer that is not negative, or None."""
    return None if value is None else _integer(name, value, least=0)


def _integer(name: str, value: Any, *, least: int) -> int:
    if not _is_number(value, (int, np.integer)):
        raise ConfigurationError(
            f"{name}={shortened(value)} is no integer", hint=f"give an integer of at least {least}"
        )
    if not least <= value <= _MOST:
        size = "small" if value < least else "large"
        raise ConfigurationError(
            f"{name}={shortened(value)} is too {size}", hint=f"give an integer from {least} to 2**63 - 1"
        )
    return int(value)


def seconds(name: str, value: Any) -> float | None:
    """A positive number of seconds, or None."""
    if value is None:
        return None
    if not _is_number(value, Real) or isnan(value) or not value > 0:
        raise ConfigurationError(
            f"{name}={shortened(value)}: {name} must be positive, or None", hint="give a number of seconds"
        )
    return float(value)


def not_negative(name: str, value: Any) -> float:
    """A number of seconds, which may be 0."""
    if not _is_number(value, Real) or not value >= 0:
        raise ConfigurationError(
            f"{name}={shortened(value)}: {name} must not be negative", hint="give a number of seconds"
        )
    return float(value)


def one_of(*choices: str | None) -> Check:
    """One of some words."""

    def check(name: str, value: Any) -> Any:
        if not isinstance(value, str | None) or value not in choices:
            raise ConfigurationError(
                f"{name}={shortened(value)}", hint=f"choose from: {', '.join(map(str, choices))}"
            )
        return value

    return check


def name_or_none(name: str, value: Any) -> str | None:
    """A name, or None."""
    if value is not None and (not isinstance(value, str) or not value):
        raise ConfigurationError(f"{name}={shortened(value)} is no name", hint="give a string, or None")
    return value


def path_or_none(name: str, value: Any) -> str | None:
    """The path of a folder or a file, or None."""
    if value is None:
        return None
    if not isinstance(value, str | os.PathLike) or not (path := os.fspath(value)) or isinstance(path, bytes):
        raise ConfigurationError(f"{name}={shortened(value)} is no path", hint="give a string, or a Path")
    return path


def path_of_files(name: str, value: Any) -> str:
    """The path of a folder or a file, or a URI."""
    path = path_or_none(name, value)
    if path is None:
        raise ConfigurationError(f"{name}=None is no path", hint="give a string, or a Path")
    return path


def names(name: str, value: Any, *, hint: str) -> tuple[str, ...]:
    """Strings: one, or any iterable of them but a mapping."""
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, Iterable) or isinstance(value, bytes | Mapping):
        raise ConfigurationError(f"{name}={shortened(value)} is no list of names", hint=hint)
    found = tuple(value)
    if not all(isinstance(each, str) for each in found):
        odd = next(each for each in found if not isinstance(each, str))
        raise ConfigurationError(f"{name}= has {shortened(odd)}, which is no name", hint=hint)
    return tuple(map(str, found))


def _collections(name: str, value: Any) -> tuple[str, ...] | Literal["visible"] | None:
    if value is None or (isinstance(value, str) and value == VISIBLE):
        return value
    found = names(name, value, hint="give a list of collections, or None for all")
    if not all(found) or not found:
        raise ConfigurationError(
            f"{name}={shortened(value)} names no collections", hint="leave it out to read all"
        )
    return found


def _metadata(name: str, value: Any) -> tuple[str, ...]:
    hint = f"choose from: {', '.join(METADATA_NAMES)}"
    found = names(name, value, hint=hint)
    unknown = next((each for each in found if each not in METADATA_NAMES), None)
    if unknown is not None:
        raise ConfigurationError(f"metadata {unknown!r} does not exist", hint=hint)
    return found


def _dates(name: str, value: Any) -> bool | tuple[str, ...]:
    if isinstance(value, bool | np.bool_):
        return bool(value)
    return names(name, value, hint="give True for all columns, or a list of names")


def _vbuckets(name: str, value: Any) -> tuple[int, ...] | None:
    """Plain integers, also of numpy's: they become keys of ``as_of``, which has to be JSON."""
    if value is None:
        return None
    hint = "give a list of integers, or None for all"
    try:
        found = tuple(value)
        if any(isinstance(each, bool | np.bool_) for each in found):
            raise TypeError("a bool is no number")  # noqa: TRY301 - reported in the same words
        numbers = tuple(map(index, found))
    except TypeError as exc:
        raise ConfigurationError(f"{name}={shortened(value)} are no numbers", hint=hint) from exc
    odd = next((each for each in numbers if not 0 <= each <= _MAX_VBUCKET), None)
    if odd is not None:
        raise ConfigurationError(f"vbucket {odd} does not exist", hint=hint)
    return numbers


def _key_prefix(name: str, value: Any) -> bytes | None:
    # The value is not shown: it may be a whole key.
    if value is not None and not isinstance(value, str | bytes):
        raise ConfigurationError(
            f"{name}= is a {type(value).__name__}", hint="give text or bytes, or None for all keys"
        )
    return value.encode() if isinstance(value, str) else value


def _columns(name: str, value: Any) -> tuple[Path, ...] | None:  # noqa: ARG001 - a check
    return None if value is None else paths_of(value)


def _filters(name: str, value: Any) -> Filters | None:  # noqa: ARG001 - a check
    match value:
        case None | ((Predicate(), *_), *_):
            return value
        case _:
            return make_filters(value)


def _schema(name: str, value: Any) -> dict[str, pa.DataType]:  # noqa: ARG001 - a check
    return {} if value is None else declared_types(value)


def _progress(name: str, value: Any) -> Any:  # noqa: ARG001 - a check
    check_progress(value)
    return value


def _options(name: str, value: Any) -> BucketDataSourceOptions:
    if value is None:
        return _STANDARD
    if not isinstance(value, BucketDataSourceOptions):
        raise ConfigurationError(
            f"{name}= is a {type(value).__name__}", hint="give BucketDataSourceOptions(...), or None"
        )
    return value


def _auth(name: str, value: Any) -> Any:  # noqa: ARG001 - a check
    """A callable is not called yet: it gives what is right at the time of each connection."""
    if value is None or callable(value) or isinstance(value, Authenticator):
        return value
    return as_authenticator(value)


def _tls(name: str, value: Any) -> Any:
    """Text, of the file's path or of the file itself: a scan can be sent to other processes."""
    if value is None or isinstance(value, TLSContext):
        return value
    return pem_text(value, f"{name}=") or os.fspath(value)


def paths_of(columns: ColumnsLike, nested: Nested = "struct") -> tuple[Path, ...]:
    """The paths that ``columns=`` names, each once."""
    hint = "give a list of field names, or None for all"
    given: object = columns
    if not isinstance(given, Iterable) or isinstance(given, str | bytes | Mapping):
        raise ConfigurationError(f"columns={shortened(given)} names no columns", hint=hint)
    listed = list(given)
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


_STANDARD = BucketDataSourceOptions()
_CHECKS: dict[str, Check] = {
    "auth": _auth,
    "tls": _tls,
    "scope": name_or_none,
    "collections": _collections,
    "columns": _columns,
    "filters": _filters,
    "keys_only": flag,
    "parse": flag,
    "metadata": _metadata,
    "keys": one_of(*KEY_FORMS),
    "vbuckets": _vbuckets,
    "key_prefix": _key_prefix,
    "n_rows": count,
    "errors": one_of(*get_args(Errors)),
    "nested": one_of(*NESTED),
    "schema": _schema,
    "infer_schema_length": count,
    "on_conflict": one_of(*get_args(OnConflict)),
    "max_struct_fields": positive,
    "parse_dates": _dates,
    "expired": one_of(*get_args(Exclusion)),
    "transaction_records": one_of(*get_args(Exclusion)),
    "consistency": one_of(*get_args(Consistency)),
    "batch_bytes": count,
    "buffer_bytes": size,
    "spool_dir": path_or_none,
    "spill_bytes": size,
    "timeout": seconds,
    "dtype_backend": one_of(*DTYPE_BACKENDS),
    "progress": _progress,
    "options": _options,
}


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class ScanSpec:
    """A scan: the arguments of :func:`cbframe.scan_bucket`, which documents them, checked and in one form.

    The fields' defaults are those of all public functions. ``dataclasses.replace`` checks again.

    Raises
    ------
    ConfigurationError
        If an argument is invalid.
    """

    server_urls: ServerURLs
    bucket: str
    auth: Any = None
    tls: TLSLike = None
    network: str = "auto"
    scope: str | None = None
    collections: tuple[str, ...] | Literal["visible"] | None = None
    columns: tuple[Path, ...] | None = None
    filters: Filters | None = None
    keys_only: bool = False
    parse: bool = True
    metadata: tuple[str, ...] = ("key",)
    keys: KeyForm = "text"
    vbuckets: tuple[int, ...] | None = None
    key_prefix: bytes | None = None
    n_rows: int | None = None
    errors: Errors = "keep"
    nested: Nested = "struct"
    schema: Mapping[str, pa.DataType] = field(default_factory=dict)
    infer_schema_length: int | None = None
    on_conflict: OnConflict = "widen"
    max_struct_fields: int = 1000
    parse_dates: bool | tuple[str, ...] = False
    expired: Exclusion = "drop"
    transaction_records: Exclusion = "drop"
    consistency: Consistency = "snapshot"
    batch_bytes: int | None = None
    buffer_bytes: int | None = None
    spool_dir: str | None = None
    spill_bytes: int | None = None
    timeout: float | None = None
    dtype_backend: str | None = "pyarrow"
    progress: Progress = "auto"
    options: BucketDataSourceOptions = _STANDARD

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

    @classmethod
    def of_arguments(cls, arguments: Mapping[str, Any]) -> Self:
        """The scan that the ``locals()`` of a public function ask for, whatever else is among them."""
        known = {"conn", "bucket", *ScanArguments.__annotations__}
        return cls.of(**{name: value for name, value in arguments.items() if name in known})

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
        for name, check in _CHECKS.items():
            object.__setattr__(self, name, check(name, getattr(self, name)))
        if self.keys_only and not all(each.of_metadata for each in predicates(self.filters)):
            raise ConfigurationError(
                "filters= on fields needs the documents",
                hint="leave keys_only=True out, or filter by _cb_ columns",
            )
        prefix = self.key_prefix or b""
        if prefix.startswith(TRANSACTION_PREFIX) and self.transaction_records == "drop":
            raise ConfigurationError(
                "key_prefix= names records of transactions, which are left out",
                hint='give transaction_records="keep", too',
            )
        _refuse_members_of_text(self.columns, self.nested)
        options = self.options
        if self.timeout is not None:
            options = replace(options, connect_timeout=min(options.connect_timeout, self.timeout))
        if self.buffer_bytes is not None:
            options = replace(options, feed_buffer_size_bytes=self.buffer_bytes)
        object.__setattr__(self, "options", options)

    def __repr__(self) -> str:
        # No credentials, keys or values: filters and key_prefix may hold any.
        return f"<ScanSpec of {self.bucket!r}>"

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

        Parameters
        ----------
        bounded
            Whether memory must not depend on the size of the bucket.
        """
        given = self.options.feed_buffer_size_bytes
        return min(given, BOUNDED_WINDOW) if bounded and self.buffer_bytes is None else given

    def of_vbuckets(self, vbuckets: tuple[int, ...]) -> Self:
        """The same, of these vbuckets only."""
        return replace(self, vbuckets=vbuckets)

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
