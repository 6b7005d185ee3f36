"""What is read, from where: the arguments of a scan, checked and frozen."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from operator import index
from typing import Any

from cbframe.arrow.documents.filters import Filters, make_filters
from cbframe.arrow.documents.projection import Path, path_of
from cbframe.cluster.connstr import ConnectionString, parse_connection_string
from cbframe.cluster.tls import TLSLike, make_tls_context
from cbframe.errors import ConfigurationError
from cbframe.frame.shape import ERRORS, NESTED, Errors, Nested
from cbframe.typing import Connectable, ServerURLs

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


@dataclass(frozen=True, slots=True)
class ScanProgress:
    """How far a read is.

    Attributes
    ----------
    rows, nbytes
        Messages with documents received, and their bytes on the wire.
    seqnos, seqnos_total
        Summed over all vbuckets: reached, and to be reached. Exact; de-duplicated changes count.
    vbuckets, vbuckets_total
        Complete, and wanted.
    seconds
        Since the read began.
    """

    rows: int
    nbytes: int
    seqnos: int
    seqnos_total: int
    vbuckets: int
    vbuckets_total: int
    seconds: float

    @property
    def share(self) -> float:
        """Between 0 and 1."""
        if self.seqnos_total:
            return min(1.0, self.seqnos / self.seqnos_total)
        return float(self.vbuckets_total > 0 and self.vbuckets == self.vbuckets_total)


ProgressCallback = Callable[[ScanProgress], None]


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
    if columns is not None and (isinstance(columns, str) or not columns):
        raise ConfigurationError(
            f"columns={columns!r} names no columns", hint="give a list of field names, or None for all"
        )
    for argument, given in (("columns", columns), ("filters", filters)):
        if given is not None and (keys_only or (argument == "columns" and not parse)):
            raise ConfigurationError(
                f"{argument}= needs the documents", hint="leave keys_only=True and parse=False out"
            )
    for argument, chosen, choices in (("errors", errors, ERRORS), ("nested", nested, NESTED)):
        if chosen not in choices:
            raise ConfigurationError(f"{argument}={chosen!r}", hint=f"choose from: {', '.join(choices)}")
    if n_rows is not None and n_rows < 1:
        raise ConfigurationError(
            f"n_rows={n_rows} are no rows", hint="give a positive number, or None for all"
        )
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
    return ScanTarget(
        server_urls=urls,
        bucket=name,
        auth=auth if auth is not None else parsed.credentials,
        tls=tls,
        network=network,
        scope=scope,
        collections=None if collections is None else tuple(collections),
        columns=None if columns is None else tuple(path_of(column) for column in columns),
        filters=None if filters is None else make_filters(filters),
        keys_only=keys_only,
        parse=parse,
        metadata=names,
        vbuckets=None if vbuckets is None else _numbers(vbuckets),
        errors=errors,
        nested=nested,
        key_prefix=key_prefix.encode() if isinstance(key_prefix, str) else key_prefix,
        n_rows=n_rows,
    )


def _numbers(vbuckets: Iterable[int]) -> tuple[int, ...]:
    """Plain integers, also of numpy's: they become keys of ``as_of``, which has to be JSON."""
    try:
        return tuple(index(vbucket) for vbucket in vbuckets)
    except TypeError as exc:
        raise ConfigurationError(
            f"vbuckets={vbuckets!r} are no numbers", hint="give a list of integers, or None for all"
        ) from exc
