"""What is read, from where: the arguments of a scan, checked and frozen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import index
from typing import Any, Literal, TypeAlias, get_args

import pyarrow as pa

from cbframe.arrow.columns import OURS
from cbframe.arrow.documents.filters import Filters, make_filters, predicates
from cbframe.arrow.documents.fit import arrow_type
from cbframe.arrow.documents.plan import OnConflict, Policy
from cbframe.arrow.documents.projection import Path, path_of
from cbframe.arrow.exclusion import TRANSACTION_PREFIX
from cbframe.cluster.connstr import ConnectionString, parse_connection_string
from cbframe.cluster.tls import TLSLike, make_tls_context
from cbframe.errors import ConfigurationError
from cbframe.frame.shape import ERRORS, NESTED, Errors, Nested
from cbframe.typing import Connectable, ServerURLs

Exclusion: TypeAlias = Literal["drop", "keep"]
ON_CONFLICT: tuple[str, ...] = get_args(OnConflict)
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


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanTarget:
    """The arguments of :func:`cbframe.scan_bucket`, as it documents them."""

    server_urls: ServerURLs
    bucket: str
    auth: Any = field(repr=False)
    tls: TLSLike = field(default=None, repr=False)
    network: str = "auto"
    scope: str | None = None
    collections: tuple[str, ...] | None = None
    columns: tuple[Path, ...] | None = None
    filters: Filters | None = None
    keys_only: bool = False
    parse: bool = True
    metadata: tuple[str, ...] = ("key",)
    vbuckets: tuple[int, ...] | None = None
    errors: Errors = "keep"
    nested: Nested = "struct"
    key_prefix: bytes | None = None
    n_rows: int | None = None
    schema: Mapping[str, pa.DataType] = field(default_factory=dict)
    infer_schema_length: int | None = None
    on_conflict: OnConflict = "widen"
    max_struct_fields: int = 1000
    parse_dates: bool | tuple[str, ...] = False
    expired: Exclusion = "drop"
    transaction_records: Exclusion = "drop"

    @property
    def parsed(self) -> bool:
        """Whether documents become columns."""
        return self.parse and not self.keys_only

    def of_vbuckets(self, vbuckets: tuple[int, ...]) -> ScanTarget:
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
        )


def make_target(
    conn: ServerURLs | Connectable,
    bucket: str | None,
    *,
    auth: Any,
    tls: TLSLike,
    network: str,
    scope: str | None,
    collections: str | Sequence[str] | None,
    columns: Sequence[str | tuple[str, ...]] | None,
    filters: Any,
    keys_only: bool,
    parse: bool,
    metadata: str | Sequence[str],
    vbuckets: Iterable[int] | None,
    errors: Errors,
    nested: Nested,
    key_prefix: str | bytes | None,
    n_rows: int | None,
    schema: Any,
    infer_schema_length: int | None,
    on_conflict: OnConflict,
    max_struct_fields: int,
    parse_dates: bool | Sequence[str],
    expired: Exclusion = "drop",
    transaction_records: Exclusion = "drop",
) -> ScanTarget:
    """Check the arguments of a scan.

    Raises
    ------
    ConfigurationError
        An argument cannot be meant; nothing was connected.
    """
    urls: ServerURLs
    if isinstance(conn, Connectable):
        urls = conn.connection_string
        auth = auth if auth is not None else (conn.username, conn.password)
    elif isinstance(conn, str | Sequence):
        urls = conn
    else:
        raise ConfigurationError(
            f"cannot connect to a {type(conn).__name__}",
            hint="give 'couchbase://host/bucket', a list of seeds, or a LocalCluster",
        )
    parsed: ConnectionString = parse_connection_string(urls).on_network(network)
    name = bucket or parsed.bucket
    if not name:
        raise ConfigurationError(
            "no bucket is named",
            hint="give bucket=, or put it into the connection string: couchbase://host/bucket",
        )
    if columns is not None and not columns:
        raise ConfigurationError(
            "columns=[] names no columns", hint="give a list of field names, or None for all"
        )
    if key_prefix is not None and not isinstance(key_prefix, str | bytes):
        raise ConfigurationError(
            f"key_prefix= is a {type(key_prefix).__name__}", hint="give text or bytes, or None for all keys"
        )
    if columns is not None and (keys_only or not parse):
        raise ConfigurationError(
            "columns= needs the documents", hint="leave keys_only=True and parse=False out"
        )
    made = None if filters is None else make_filters(filters)
    if keys_only and not all(each.of_metadata for each in predicates(made)):
        raise ConfigurationError(
            "filters= on fields needs the documents",
            hint="leave keys_only=True out, or filter by _cb_ columns",
        )
    _check(
        {
            "errors": (errors, ERRORS),
            "nested": (nested, NESTED),
            "on_conflict": (on_conflict, ON_CONFLICT),
            "expired": (expired, get_args(Exclusion)),
            "transaction_records": (transaction_records, get_args(Exclusion)),
        },
        n_rows=n_rows,
        infer_schema_length=infer_schema_length,
        max_struct_fields=max_struct_fields,
    )
    declared = {} if schema is None else declared_types(schema)
    if isinstance(schema, pa.Schema):
        if columns is not None:
            raise ConfigurationError(
                "a pyarrow schema says which columns there are",
                hint="leave columns= out, or give schema= as a dict",
            )
        columns = [(name,) for name in declared]
    paths = None if columns is None else paths_of(columns, nested)
    names = (metadata,) if isinstance(metadata, str) else tuple(metadata)
    unknown = [n for n in names if n not in METADATA_NAMES]
    if unknown:
        raise ConfigurationError(
            f"metadata {unknown[0]!r} does not exist", hint=f"choose from: {', '.join(METADATA_NAMES)}"
        )
    if tls is not None and not parsed.tls:
        raise ConfigurationError(
            f"tls= is given, but {parsed.scheme}:// is not encrypted", hint="write couchbases:// or https://"
        )
    make_tls_context(tls)  # a file that cannot be read is told of now, not when the scan is read
    if isinstance(collections, str):
        collections = (collections,)
    prefix = key_prefix.encode() if isinstance(key_prefix, str) else key_prefix
    if prefix is not None and prefix.startswith(TRANSACTION_PREFIX) and transaction_records == "drop":
        raise ConfigurationError(
            "key_prefix= names records of transactions, which are left out",
            hint='give transaction_records="keep", too',
        )
    return ScanTarget(
        server_urls=urls,
        bucket=name,
        auth=auth if auth is not None else parsed.credentials,
        tls=tls,
        network=network,
        scope=scope,
        collections=None if collections is None else tuple(collections),
        columns=paths,
        filters=made,
        keys_only=keys_only,
        parse=parse,
        metadata=names,
        vbuckets=None if vbuckets is None else _numbers(vbuckets),
        errors=errors,
        nested=nested,
        key_prefix=prefix,
        n_rows=n_rows,
        schema=declared,
        infer_schema_length=infer_schema_length,
        on_conflict=on_conflict,
        max_struct_fields=max_struct_fields,
        parse_dates=parse_dates if isinstance(parse_dates, bool) else tuple(parse_dates),
        expired=expired,
        transaction_records=transaction_records,
    )


def raw_target(
    conn: ServerURLs | Connectable,
    bucket: str | None,
    *,
    auth: Any,
    tls: TLSLike,
    network: str,
    scope: str | None = None,
    collections: str | Sequence[str] | None = None,
    metadata: str | Sequence[str] = ("key",),
    vbuckets: Iterable[int] | None = None,
    key_prefix: str | bytes | None = None,
    transaction_records: Exclusion = "drop",
) -> ScanTarget:
    """Check the arguments of what does not look into documents; raises as :func:`make_target`."""
    return make_target(
        conn,
        bucket,
        auth=auth,
        tls=tls,
        network=network,
        scope=scope,
        collections=collections,
        columns=None,
        filters=None,
        keys_only=False,
        parse=False,
        metadata=metadata,
        vbuckets=vbuckets,
        errors="keep",
        nested="struct",
        key_prefix=key_prefix,
        n_rows=None,
        schema=None,
        infer_schema_length=None,
        on_conflict="widen",
        max_struct_fields=1000,
        parse_dates=False,
        expired="keep",
        transaction_records=transaction_records,
    )


def _check(choices: Mapping[str, tuple[str, tuple[str, ...]]], **numbers: int | None) -> None:
    for argument, (chosen, allowed) in choices.items():
        if chosen not in allowed:
            raise ConfigurationError(f"{argument}={chosen!r}", hint=f"choose from: {', '.join(allowed)}")
    for argument, number in numbers.items():
        if number is not None and number < 1:
            raise ConfigurationError(
                f"{argument}={number} is too small", hint="give a positive number, or None for all"
            )


def paths_of(columns: Sequence[str | tuple[str, ...]], nested: Nested) -> tuple[Path, ...]:
    """The paths that ``columns=`` names, each once.

    Raises
    ------
    ConfigurationError
        It is no list; two fields would be columns of one name; or what a field is in stays text.
    """
    if isinstance(columns, str):
        raise ConfigurationError(
            f"columns={columns!r} names no columns", hint="give a list of field names, or None for all"
        )
    paths = tuple(dict.fromkeys(map(path_of, columns)))
    names = [".".join(path) for path in paths]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConfigurationError(
            f"columns= names two fields whose column is {twice!r}", hint="read one of them at a time"
        )
    inside = next((path for path in paths if len(path) > 1), None)
    if inside is not None and nested == "json":
        raise ConfigurationError(
            f'columns= names {".".join(inside)!r}, and nested="json" keeps {inside[0]!r} as text',
            hint=f"read {inside[0]!r}, or leave nested= out",
        )
    return paths


def declared_types(schema: Any) -> dict[str, pa.DataType]:
    """Arrow types by name, of a pyarrow schema or a mapping.

    Raises
    ------
    ConfigurationError
        It is neither, or names what is no type.
    """
    if isinstance(schema, pa.Schema):
        twice = next((name for name in schema.names if schema.names.count(name) > 1), None)
        if twice is not None:
            raise ConfigurationError(
                f"schema= has two columns {twice!r}", hint="name each field of documents once"
            )
        schema = {each.name: each.type for each in schema}
    if isinstance(schema, Mapping):
        ours = [name for name in schema if str(name).startswith(OURS)]
        if ours:
            raise ConfigurationError(
                f"schema= names {ours[0]!r}", hint=f"it is about fields of documents; {OURS}* is metadata"
            )
        return {str(name): arrow_type(kind) for name, kind in schema.items()}
    raise ConfigurationError(
        f"schema= is a {type(schema).__name__}", hint="give a pyarrow.Schema, or a dict of names and types"
    )


def _numbers(vbuckets: Iterable[int]) -> tuple[int, ...]:
    """Plain integers, also of numpy's: they become keys of ``as_of``, which has to be JSON."""
    try:
        return tuple(index(vbucket) for vbucket in vbuckets)
    except TypeError as exc:
        raise ConfigurationError(
            f"vbuckets={vbuckets!r} are no numbers", hint="give a list of integers, or None for all"
        ) from exc
