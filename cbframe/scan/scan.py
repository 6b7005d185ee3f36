"""``scan_bucket`` and ``read_bucket``: a read of a bucket, described once and run as often as wanted."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, Unpack, get_args, overload

import pyarrow as pa
import pyarrow.fs as pafs

from cbframe.arrow.columns import KeyForm
from cbframe.arrow.current_rows import KeyPattern
from cbframe.cluster.tls import TLSLike
from cbframe.dcp.source import BucketDataSource
from cbframe.dcp.stats import BucketDataSourceStats, EventLogLike
from cbframe.errors import ConfigurationError, ConversionError
from cbframe.json.layout import OnConflict
from cbframe.options import BucketDataSourceOptions
from cbframe.public import Connectable, ServerURLs, public
from cbframe.scan.parquet import Destination, check_compression, write_batches, write_folders, write_table
from cbframe.scan.partition import ScanPartition, divided, to_folder
from cbframe.scan.plan import ScanPlan
from cbframe.scan.progress import Progress
from cbframe.scan.result import AsOf, Conflict, ReadResult
from cbframe.scan.session import ReadSession, sampled
from cbframe.scan.spec import (
    METADATA_NAMES,
    ColumnsLike,
    Consistency,
    Errors,
    Exclusion,
    FiltersLike,
    Nested,
    ScanArguments,
    ScanSpec,
    SchemaLike,
    flag,
    names,
    one_of,
)

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl

ReturnType: TypeAlias = Literal["pandas", "arrow", "polars"]


class ArrowExport:
    """A consumer that asks for the schema first, as DuckDB does, gets the stream of that same read."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: pa.RecordBatchReader | None = None
        self._schema: pa.Schema | None = None

    def __reduce__(self) -> tuple[type[ArrowExport], tuple[()]]:
        # What waits for its consumer is of this process.
        return ArrowExport, ()

    def schema(self, read: Callable[[], pa.RecordBatchReader], *, again: bool = False) -> Any:
        """The schema as a capsule; reads, unless a read waits for its consumer."""
        with self._lock:
            if self._waiting is None or again:
                self._waiting = read()
            self._schema = self._waiting.schema
            return self._schema.__arrow_c_schema__()

    def stream(self, read: Callable[[], pa.RecordBatchReader], requested_schema: Any) -> Any:
        """The stream as a capsule: of the read that waits, or of another one with the same schema."""
        with self._lock:
            reader, self._waiting = self._waiting or read(), None
            given, self._schema = self._schema, reader.schema if self._schema is not None else None
        if given is not None and not given.equals(reader.schema):
            self._schema = None
            other = next(
                (
                    name
                    for name in [*given.names, *reader.schema.names]
                    if _type(given, name) != _type(reader.schema, name)
                ),
                "the order of its columns",
            )
            raise ConversionError(
                f"the bucket's schema changed while it was queried: {other!r} "
                f"was {_type(given, other)} and is {_type(reader.schema, other)}",
                hint="run the query again, or declare the type with schema=",
            )
        return reader.__arrow_c_stream__(requested_schema)


def _type(schema: pa.Schema, name: str) -> str:
    at = schema.get_field_index(name)
    return "absent" if at < 0 else str(schema.field(at).type)


class BucketScan:
    """A read of a bucket as it is now, run each time that a result is asked for.

    Made by :func:`cbframe.scan_bucket`. Any consumer of the Arrow PyCapsule interface (polars,
    duckdb, pyarrow, pandas) takes a scan as it is.

    Attributes
    ----------
    last
        The :class:`ReadResult` of the latest run without its table; None before the first.
    """

    def __init__(self, spec: ScanSpec) -> None:
        self._spec = spec
        self._session: ReadSession | None = None
        self._export = ArrowExport()
        self.last: ReadResult | None = None

    def __repr__(self) -> str:
        last = self.last
        latest = "" if last is None else f": last read {last.as_of!r} in {last.seconds:.1f} s"
        return f"<BucketScan of {self._spec.bucket!r}{latest}>"

    def __reduce__(self) -> tuple[type[BucketScan], tuple[ScanSpec]]:
        # The description alone: its runs are of this process.
        return BucketScan, (self._spec,)

    @property
    def as_of(self) -> AsOf | None:
        """The vbucket positions of the latest run."""
        return None if self.last is None else self.last.as_of

    @property
    def conflicts(self) -> tuple[Conflict, ...]:
        """Fields of the latest run whose values had no common type."""
        return () if self.last is None else self.last.conflicts

    @property
    def stats(self) -> BucketDataSourceStats | None:
        """Counters of the latest run."""
        return None if self.last is None else self.last.stats

    @property
    def source(self) -> BucketDataSource | None:
        """What streams at present; None while nothing is read."""
        return None if self._session is None else self._session.source

    @public
    def read(self) -> ReadResult:
        """Read the bucket.

        Raises
        ------
        CbframeError
            The read could not be completed; never is a part of it returned.
        """
        result = self._begin().read()
        self.last = replace(result, table=result.table.schema.empty_table())
        return result

    def _begin(self) -> ReadSession:
        self._session = ReadSession(self._spec)
        return self._session

    @public
    def peek(self, n: int = 5) -> pd.DataFrame:
        """Look at some documents, fast: only as many vbuckets are read as that takes.

        Which documents these are is not defined, and columns have the types that these few need.
        """
        return BucketScan(replace(self._spec, n_rows=n)).to_pandas()

    @public
    def explain(self) -> ScanPlan:
        """What a read will do: what nodes send, what is tested here, how much there is, what memory it takes.

        Nodes are asked where vbuckets are and, by users who may see statistics, how much is in them.

        Examples
        --------
        >>> import cbframe
        >>> with cbframe.LocalCluster(vbuckets=64) as cluster:
        ...     _ = cluster.upsert("hotel_1", {"type": "hotel", "price": 310})
        ...     plan = cbframe.scan_bucket(cluster, filters=[("price", ">", 100)]).explain()
        >>> plan.size.documents, plan.values, plan.tests
        (1, True, ("'price' > ...",))
        """
        return ScanPlan(self._spec)

    @public
    def sample(self, n: int, *, seed: int = 0) -> pd.DataFrame:
        """Read a random sample of the documents: rows of a few vbuckets, both chosen at random.

        The same `seed` gives the same documents in the same order as long as the bucket does not change. Four
        vbuckets are read in bounded memory, or as many as have `n` documents that pass filters. Columns and
        types follow from all that is in these, which ``df.attrs["cbframe"]["as_of"]`` names.

        Raises
        ------
        CbframeError
            As :meth:`read`; a ConfigurationError if `n` or `seed` is invalid, or the scan has `n_rows`.

        Notes
        -----
        It is a cluster sample. All vbuckets have the same chance to be read, and all documents of those that
        are, to be chosen: means and shares have no bias but a slight one towards smaller vbuckets. Documents
        count as independent only if content does not depend on the vbucket, a checksum of the key: keys that
        are made to fall into one vbucket come together, or not at all. Extremes, and numbers of different
        values, are not those of the bucket.

        Examples
        --------
        >>> import cbframe
        >>> with cbframe.LocalCluster(vbuckets=64) as cluster:
        ...     for n in range(1000):
        ...         _ = cluster.upsert(f"k{n}", {"n": n})
        ...     scan = cbframe.scan_bucket(cluster)
        ...     df, again = scan.sample(20, seed=7), scan.sample(20, seed=7)
        >>> len(df), df.equals(again), len(df.attrs["cbframe"]["as_of"])
        (20, True, 4)
        """
        return sampled(self._spec, n, seed).to_pandas(self._spec.dtype_backend)

    @public
    def to_arrow(self) -> pa.Table:
        """Read into an Arrow table.

        The key is the column ``_cb_key``; the schema's metadata tells the vbucket positions of the table.
        """
        return self.read().table

    @public
    def to_pandas(self) -> pd.DataFrame:
        """Read into a DataFrame whose index is the document key.

        ``df.attrs["cbframe"]`` holds ``as_of``, ``conflicts`` and ``rejected``.
        """
        return self.read().to_pandas(self._spec.dtype_backend)

    @public
    def split(self, by: str | tuple[str, ...]) -> dict[str | None, ReadResult]:
        """Read into one table for each kind of document, each with columns of its own.

        Parameters
        ----------
        by
            The field whose value tells the kind: ``"type"``, or a path as in ``columns=``.

        Returns
        -------
        dict
            By value; numbers and booleans by their JSON text. Under None is what has no such value:
            the field is missing, null, an array or an object, or the value is no document.

        Raises
        ------
        ConfigurationError
            The field has more than a thousand different values, or documents are not parsed.
        CbframeError
            As :meth:`read`.
        """
        self.last, results = self._begin().split(by)
        return results

    @public
    def to_polars(self) -> pl.DataFrame:
        """Read into a polars DataFrame; the key is the column ``_cb_key``.

        Raises
        ------
        DependencyError
            polars is not installed.
        """
        return self.read().to_polars()

    @public
    def to_reader(self) -> pa.RecordBatchReader:
        """Read into a stream of record batches, in memory that does not depend on the bucket's size.

        What is read goes to a temporary file first (``spool_dir=``): columns and their types depend on
        all documents, and which of them count is known at the end. So the read is complete before the
        first batch is there. The file is deleted with the last batch, or when the reader is no longer used.

        Raises
        ------
        CbframeError
            The read could not be completed, or its documents do not fit on the disk.
        """
        self.last, reader = self._begin().stream()
        return reader

    @public
    def iter_batches(self) -> Iterator[pa.RecordBatch]:
        """Iterate over record batches, none of them empty; memory as with :meth:`to_reader`."""
        yield from self.to_reader()

    @public
    def to_parquet(
        self,
        path: str | os.PathLike[str],
        *,
        compression: str = "zstd",
        workers: int | None = None,
        table_per: Literal["collection"] | None = None,
        overwrite: bool = False,
        filesystem: pafs.FileSystem | None = None,
        storage_options: Mapping[str, Any] | None = None,
        partition_by: str | Iterable[str] | None = None,
    ) -> Path | str:
        """Read into a Parquet file, which appears whole or not at all; memory as with :meth:`to_reader`.

        It is written from Arrow, so that ``pandas.read_parquet`` reads nested columns without help.

        Parameters
        ----------
        path
            Of the file; of a folder with `workers` or `table_per`. A path, or a URI that pyarrow or fsspec
            know.
        compression
            What Parquet calls it.
        workers
            Have this many processes of this machine read, each its :meth:`partitions`. They get what this
            scan has, a password among it. A script has to call this below ``if __name__ == "__main__":``.
            Not for small buckets: to start them and to look at a sample takes about a second each.
            In an object store the files appear one after the other, once all are complete in `spool_dir`.
        table_per
            ``"collection"``: a folder ``scope.collection`` for each collection that has documents, with a
            file of columns of its own; all are of one read, and `as_of` of :attr:`last` is that of each.
            Documents wait on disk twice. Not with `workers`.
        overwrite
            Replace what is at `path`, once the new file or folder is complete.
        filesystem, storage_options
            What `path` is in: a file system of pyarrow's, or options for that of fsspec.
        partition_by
            Columns of text, integers, booleans or days (date32), whose values name folders in the folder
            `path`, in Hive's way: ``cb_scope=shop/cb_collection=users/part-00000-0.parquet``. A ``_`` before
            names is left out: pyarrow passes over it. At most 1,000 folders, with 64 files open at a time;
            none without documents. Nulls are in the folder ``type=__HIVE_DEFAULT_PARTITION__``. Readers guess
            the types of these columns, and may take "007" for a number; where there are nulls, pandas raises
            "Cannot yet unify dictionaries with nulls". Name the types, as in the example.

        Returns
        -------
        Path or str
            Where it is; a URI as it was given.

        Raises
        ------
        ConfigurationError
            There is something at `path` already, or the scan cannot be divided.
        ConversionError
            Documents do not fit the schema that a sample has: declare it, with ``schema=``.
        CbframeError
            As :meth:`read`; or a process was ended from outside.

        Examples
        --------
        A folder for each type, and one for documents without; pandas reads all of them:

        >>> import cbframe, pandas as pd, pyarrow as pa, pyarrow.dataset as ds, tempfile
        >>> with cbframe.LocalCluster(vbuckets=8) as cluster, tempfile.TemporaryDirectory() as folder:
        ...     cas = cluster.upsert("hotel_1", {"type": "hotel"}), cluster.upsert("note", {"text": "?"})
        ...     path = cbframe.scan_bucket(cluster).to_parquet(f"{folder}/all", partition_by="type")
        ...     hive = ds.partitioning(pa.schema([("type", "string")]), flavor="hive")
        ...     print(pd.read_parquet(path, partitioning=hive).set_index("_cb_key")["type"].isna().to_dict())
        {'note': True, 'hotel_1': False}
        """
        check_compression(compression)
        place = Destination(
            path,
            overwrite=flag("overwrite", overwrite),
            filesystem=filesystem,
            storage_options=storage_options,
        )
        by = () if partition_by is None else names("partition_by", partition_by, hint="give names of columns")
        ours = [each for each in METADATA_NAMES if f"_cb_{each}" in by]
        spec = replace(self._spec, metadata=tuple(dict.fromkeys((*self._spec.metadata, *ours))))
        if table_per is not None:
            one_of("collection")("table_per", table_per)
            if by or workers is not None:
                raise ConfigurationError("table_per=, partition_by= and workers= exclude each other")
        place.refuse_existing(folder=bool(by) or workers is not None or table_per is not None)
        if workers is not None:
            self.last = to_folder(spec, place, compression, workers, by)
            return place.name
        self._session = ReadSession(spec)
        if table_per is not None:
            with place.folder(spec.spool_dir) as scratch:
                self.last = self._session.by_collection(partial(write_table, scratch, compression))
            return place.name
        with place.folder(spec.spool_dir) if by else place.file() as target:
            result, reader = self._session.stream()
            how = reader, target, compression
            self.last = replace(result, documents=write_folders(*how, by) if by else write_batches(*how))
        return place.name

    @public
    def partitions(
        self,
        n: int,
        *,
        consistency: Consistency | None = None,
        sample_rows: int | None = 10_000,
        include_credentials: bool = False,
    ) -> list[ScanPartition]:
        """Divide the read into parts that other processes and machines can do.

        All seqnos and histories are taken now, with one look at all nodes, and the parts together are a
        read as of this moment: each reads its vbuckets to these seqnos. Whether one is read first or
        last, once or again, makes a difference only where there are writes meanwhile:
        :meth:`ScanPartition.result` says what happens then, and :meth:`ReadReport.merged` makes one report
        of those of the parts. Scheduling and retries are those of whatever runs them.

        Parameters
        ----------
        n
            How many; fewer if there are not as many vbuckets. With as many as there are nodes, or more,
            each part is of one node only, and its reader opens one connection for documents.
        consistency
            What happens with a vbucket that has gone on, or has another history, when its part is read:
            ``"snapshot"`` takes it as it is then and says so in ``as_of``; ``"strict"`` is an error. None: as
            the scan has it.
        sample_rows
            All parts have one schema, which follows from this many documents of vbuckets far from each
            other; None looks at all documents, and takes as long as to read them. What does not fit is an
            error that names the field, or null and reported with ``on_conflict="null"``. Where the scan has
            a pyarrow schema, that is it, and nothing is looked at.
        include_credentials
            Pickle a plain password with the parts. Without it, a part with a password in it refuses to be
            pickled: give ``auth=EnvironmentAuth("CB_USER", "CB_PASSWORD")``, or a callable that the other
            side can import.

        Returns
        -------
        list of ScanPartition
            By turns of all nodes. About as much is in each: by bytes, or documents, if the nodes tell
            (:attr:`ScanPartition.bytes`), or else by changes.

        Raises
        ------
        ConfigurationError
            The scan has ``n_rows``, ``infer_schema_length`` or ``parse_dates``, which nobody can know who
            does not see all documents.
        CbframeError
            The bucket could not be looked at.
        """
        return divided(
            self._spec, n, sample_rows=sample_rows, consistency=consistency, with_secrets=include_credentials
        )

    @public
    def __arrow_c_schema__(self) -> Any:
        """The schema, for consumers that ask for it before the stream; reads the bucket.

        The next stream that a consumer asks for is of this read.
        """
        return self._export.schema(self.to_reader)

    @public
    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
        """Hand a read over to any Arrow consumer."""
        return self._export.stream(self.to_reader, requested_schema)


@public
def scan_bucket(
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
) -> BucketScan:
    r"""Describe a read of a bucket as it is now; nothing is connected yet.

    The read is over DCP, straight from the data service: no index and no query service is needed. What it
    guarantees is in the notes below; :mod:`cbframe.json` documents the types of columns.

    Parameters
    ----------
    conn
        ``couchbase://h1,h2/bucket``, ``couchbases://…`` for TLS, ``http://h:8091`` (one seed or a
        list), or a :class:`~cbframe.LocalCluster`. :mod:`cbframe.cluster.connection_string` lists the options
        that may follow, as ``?network=external``.
    bucket
        The bucket, if the connection string does not name it.
    auth
        ``(user, password)``, a :class:`~cbframe.PasswordAuthenticator`, with TLS a
        :class:`~cbframe.CertificateAuthenticator`, or a callable that gives one of these.
    tls
        For ``couchbases://`` and ``https://``: the cluster's certificate authority, as the path of a PEM
        file or as PEM text (str or bytes), or an ``ssl.SSLContext``. Text is sent along where other processes
        read parts. None trusts the system's authorities and, for hosts under ``cloud.couchbase.com``,
        Capella's root certificate, which comes with cbframe. Without one of these schemes it is an error:
        nothing falls back to plain text.
    network
        Which addresses of the nodes to use: ``"default"`` for their own, or the name of alternate ones,
        such as ``"external"``. ``"auto"`` takes what the connection string says
        (``?network=external``), or else the network on which a node has the seed's host and port, or its
        host; if the seed is no node, as a load balancer, ``"external"`` where all nodes are on it.
    scope, collections
        Read only these; collections by name within `scope`, or as ``"scope.collection"``. Filtered
        by the server. By default all, without the server's own scope ``_system``; a user who may read some
        collections only is refused that. ``collections="visible"`` reads those that the user sees, of
        `scope` or of the bucket, as they are when the read begins (a collection of that name is
        ``"_default.visible"``).
    columns
        Keep only these fields of the documents: a list, or the ``columns`` of a DataFrame. ``"geo.lat"``
        is a field of an object, and its column's name. A name with a dot in it stands in backquotes, as in
        schemas: ``"`a.b`"``; or a tuple names a path by its parts. Nothing else is parsed.
    filters
        Keep only documents that pass, written as for pyarrow and pandas: ``[("type", "==", "hotel"),
        ("geo.alt", ">", 100)]``, all of which must hold, or a list of such lists, one of which must.
        Operators are ``== != < <= > >=``, ``in`` and ``not in`` with a list, ``is`` and ``is not`` with
        None (a missing field is null). Values are numbers (also Decimal), text, booleans, ``date`` and
        ``datetime``; each is compared with values of its own kind, and is different from others.
        ``_cb_key`` and other columns of metadata can be named, too. A field that no document has, and a
        comparison that can never be true, are errors. :mod:`cbframe.arrow.filters` has the
        whole rule, which holds for snapshots as well. What does not pass has no part in the columns and
        their types.
    keys_only
        No values: keys and metadata.
    parse
        False keeps each value as it is, in the binary column ``_cb_value``.
    metadata
        Names out of key, vbucket, seqno, cas, rev_seqno, expiry, flags, datatype, xattrs, scope,
        collection; each becomes a column ``_cb_NAME``. Extended attributes are a map from their names to
        JSON text. Scope and collection are added if documents come from more than the default collection.
    vbuckets
        Read only these vbuckets.
    keys
        The form of keys, the same in every row and every part: ``"text"`` or ``"binary"``, the bytes as they
        are. As text, a key that is UTF-8 is itself, and a byte that is not UTF-8 is ``\xHH``; where a key
        contains these four characters, its backslash is ``\x5c``. No two keys have the same text.
    key_prefix
        Keep only documents whose key begins so. They are looked for in all that the server sends.
    key_pattern
        Keep only documents whose key matches, before any value is parsed. Text, ``"hotel::*::eu"``, is a glob
        of the whole key: ``*`` is anything, ``?`` one character, ``[a-c]`` one of some, ``[!a-c]`` none of
        them, ``[*]`` a ``*``. A compiled expression, ``re.compile(r"^hotel::\d+$")``, is searched for by RE2,
        Arrow's engine: ``\d \w \s \b`` are those of ASCII, ``$`` is the very end, and what it has not, as
        lookaround, is an error. Keys are compared as UTF-8, or as bytes with an expression of bytes.
    n_rows
        Stop when this many documents are there, whichever they are: such a read has no ``as_of``. Only as
        many vbuckets are read as that takes.
    errors
        What to do with values that are no JSON objects: ``"keep"`` puts them into ``_cb_value``, with the
        reason in ``_cb_reason``; ``"drop"`` leaves them out, and counts them; ``"raise"`` raises a
        :class:`~cbframe.ConversionError`.
    nested
        How objects and arrays are given: ``"struct"`` keeps them as structs and lists; ``"flatten"`` makes
        a column of each field of an object, ``geo.lat``; ``"json"`` keeps their JSON text as it was written.
    schema
        Types that columns must have, whatever the documents have: a pyarrow schema, which says which
        columns there are, or a dict from names to types, for these fields; the others are inferred. Types
        are those of pyarrow, pandas, numpy or Python (``datetime.date``), or their names as a read prints
        them: ``"timestamp[us, tz=UTC]"``, ``"list<string>"``, ``"map<string, int64>"``. A value that does
        not fit is an error, or null with ``on_conflict="null"``. To a string any value fits.
    infer_schema_length
        Only fields that the first documents, this many, have become columns; those that come later are in
        ``_cb_rest``, as JSON text. Types follow from all documents in any case. None for all.
    on_conflict
        What to do with values of one field that have no common type: ``"widen"`` makes text of scalars,
        and JSON text where arrays or objects are among them; ``"json"`` makes JSON text; ``"null"`` keeps
        the most frequent kind, others become null; ``"raise"`` raises a
        :class:`~cbframe.ConversionError`. The result's ``conflicts`` tell of each.
    max_struct_fields
        Names of objects that have more different ones than that, over all documents, are data: the objects
        are a map, or JSON text where values have no common type. So are names that are many and rare, where
        there are fewer: more than 32, of which an object has fewer than one in 16 on average, in a struct of
        more than 16,384 cells. The result's ``conflicts`` tell of each. Also the largest columns become JSON
        text, until all that are left have no more fields inside than that.
    parse_dates
        Make timestamps of strings that are ISO 8601 dates and times, in the columns that are named, or in
        all (True): where all values of the column are such, with an offset, as UTC, or all without.
    expired
        ``"drop"`` leaves out documents whose expiry has passed, as a GET does: the server goes on sending
        them until it removes them. ``"keep"`` gives them. There is one moment for the whole read, or set of
        partitions: by the clock of a data node where it is reported, which needs the right to see statistics
        of the bucket, or else by the clock of this machine. The report has it (``moment``), and how many
        documents were left out.
    transaction_records
        ``"drop"`` leaves out what distributed transactions keep in the bucket, documents whose keys begin
        with ``_txn:``, and counts them; ``"keep"`` gives them.
    consistency
        What happens when a node loses data while the bucket is read, as one that crashes before it has
        written them to disk, and some of its vbuckets had been read completely. ``"snapshot"`` keeps such a
        vbucket as it was then: its rows are of a history that does not exist any more, which `as_of` names.
        ``"strict"`` compares the histories of all vbuckets once more at the end, which takes one more request
        for each, and reads those again that have lost something; if that fails, so does the read. Partitions
        take the same argument: :meth:`BucketScan.partitions`.
    batch_bytes
        Values are converted in batches of about this many bytes; by default 2 MiB.
    buffer_bytes
        Flow-control window of each node's connection; by default that of `options`, but no more than
        4 MiB where memory is bounded (``to_reader``, ``iter_batches``, ``to_parquet``). 0 turns flow
        control off: nodes send as fast as they can, and memory is not bounded anywhere.
    spool_dir
        Where documents wait in a temporary file until it is certain that they need not be looked at again;
        it is about as large as they are. None for the system's directory for such, or for ``/var/tmp``
        where that directory is in memory (tmpfs) or nearly full and ``/var/tmp`` is not. A directory that
        is in memory, or has less than 64 MiB left, is named in a warning before the read, and one in which
        the rest will not fit, by what the first documents took, soon after its begin.
    spill_bytes
        Bytes of documents that wait in memory before others wait in that file; by default 16 MiB.
    timeout
        Seconds for the whole read; None for as long as it takes.
    dtype_backend
        Of ``to_pandas``: ``"pyarrow"``, ``"numpy_nullable"``, or None for numpy's own: integers with missing
        values are floats then, or objects where a float would be another number.
    progress
        ``"auto"`` shows a live widget in a notebook and a line in a terminal, once half a second has
        passed, and nothing elsewhere; ``"widget"`` and ``"text"`` show one at once. A function is called
        about ten times a second with a :class:`~cbframe.ScanProgress`. None and False are silent.
    event_log
        Where to write reconnects, rebalances, failovers, rollbacks, ends of streams and problems: the path
        of a file, to which lines of JSON are appended, also by processes that read parts; or a function of a
        dict, called in this process. :class:`cbframe.dcp.stats.EventLog` lists them.
    options
        Finer settings of the connections.

    Returns
    -------
    BucketScan
        ``.to_arrow() .to_pandas() .to_reader() .iter_batches() .to_parquet(path)``; each reads again.

    Raises
    ------
    ConfigurationError
        An argument is invalid.

    Notes
    -----
    * Whole: every document that exists when the read begins is in the result, once, in its newest version.
      One that is written during the read is there in its old or in its new version.
    * Consistent within each vbucket: each is read up to the end of a snapshot. There is no common moment
      across vbuckets: Couchbase orders changes per vbucket only.
    * Dated: ``as_of`` of the result names, for each vbucket, the history and the seqno up to which it is
      whole. If a node loses data in the middle of the read, vbuckets that were complete before keep rows of
      the lost history, unless `consistency` is ``"strict"``.
    * Never partial: a read that cannot be completed raises an error that names the node or vbucket, the
      cause and what to do. A file appears whole or not at all.
    * Through changes: cut connections, rebalances, failovers and rollbacks are followed. A collection that
      is dropped during the read is gone from all of the result; a bucket that is replaced by another one of
      its name is an error.

    Each read sends the whole bucket, or the chosen collections, over the network, and nodes read from disk
    what they do not have in memory. ``BucketDataSourceOptions(max_bytes_per_sec=...)`` limits each node;
    ``connections_per_node="auto"`` opens several connections to a node that has millions of changes.

    Examples
    --------
    >>> import cbframe
    >>> with cbframe.LocalCluster(vbuckets=64) as cluster:
    ...     _ = cluster.upsert("hotel_1", {"type": "hotel", "geo": {"lat": 47.4, "alt": 408}})
    ...     _ = cluster.upsert("route_1", {"type": "route", "stops": 0})
    ...     scan = cbframe.scan_bucket(
    ...         cluster, columns=["geo.lat"], filters=[("type", "==", "hotel"), ("geo.alt", ">", 100)]
    ...     )
    ...     print(scan.to_arrow().to_pylist())
    [{'_cb_key': 'hotel_1', 'geo.lat': 47.4}]
    """
    return BucketScan(ScanSpec.of(**locals()))


@overload
def read_bucket(
    conn: ServerURLs | Connectable,
    bucket: str | None = None,
    *,
    return_type: Literal["pandas"] = "pandas",
    split_by: None = None,
    **arguments: Unpack[ScanArguments],
) -> pd.DataFrame: ...


@overload
def read_bucket(
    conn: ServerURLs | Connectable,
    bucket: str | None = None,
    *,
    return_type: Literal["arrow"],
    split_by: None = None,
    **arguments: Unpack[ScanArguments],
) -> pa.Table: ...


@overload
def read_bucket(
    conn: ServerURLs | Connectable,
    bucket: str | None = None,
    *,
    return_type: Literal["polars"],
    split_by: None = None,
    **arguments: Unpack[ScanArguments],
) -> pl.DataFrame: ...


@overload
def read_bucket(
    conn: ServerURLs | Connectable,
    bucket: str | None = None,
    *,
    return_type: Literal["pandas"] = "pandas",
    split_by: str | tuple[str, ...],
    **arguments: Unpack[ScanArguments],
) -> dict[str | None, pd.DataFrame]: ...


@overload
def read_bucket(
    conn: ServerURLs | Connectable,
    bucket: str | None = None,
    *,
    return_type: Literal["arrow"],
    split_by: str | tuple[str, ...],
    **arguments: Unpack[ScanArguments],
) -> dict[str | None, pa.Table]: ...


@overload
def read_bucket(
    conn: ServerURLs | Connectable,
    bucket: str | None = None,
    *,
    return_type: Literal["polars"],
    split_by: str | tuple[str, ...],
    **arguments: Unpack[ScanArguments],
) -> dict[str | None, pl.DataFrame]: ...


@public
def read_bucket(
    conn: ServerURLs | Connectable,
    bucket: str | None = None,
    *,
    return_type: ReturnType = "pandas",
    split_by: str | tuple[str, ...] | None = None,
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
) -> pd.DataFrame | pa.Table | pl.DataFrame | dict[str | None, Any]:
    """Read a bucket into a typed DataFrame whose index is the document key.

    Short for ``scan_bucket(...).to_pandas()``. A node that loses data in the middle of the read leaves the
    vbuckets that were complete as they were, with rows of the lost history, as ``as_of`` of the result
    says; ``consistency="strict"`` reads them again.

    Parameters
    ----------
    conn, bucket, auth, tls, network, scope, collections, columns, filters, keys_only, parse, metadata, \
vbuckets, keys, key_prefix, key_pattern, n_rows, errors, nested, schema, infer_schema_length, on_conflict, \
max_struct_fields, parse_dates, expired, transaction_records, consistency, batch_bytes, buffer_bytes, \
spool_dir, spill_bytes, timeout, dtype_backend, progress, event_log, options
        As for :func:`scan_bucket`.
    return_type
        ``"pandas"``, or ``"arrow"`` or ``"polars"``, where the key is a column, ``_cb_key``.
    split_by
        A field whose value tells kinds of documents apart, such as ``"type"``: then the result is a dict
        with a frame for each kind, each with the columns of its own documents: :meth:`BucketScan.split`.

    Returns
    -------
    pandas.DataFrame, or pyarrow.Table or polars.DataFrame
        A column for each field. ``df.attrs["cbframe"]`` says its vbucket positions (``as_of``), which fields
        had values without a common type (``conflicts``; those columns hold text) and how many documents are
        no JSON objects (``rejected``; they are in ``_cb_value``, and why they are none in ``_cb_reason``).

    Raises
    ------
    CbframeError
        The read could not be completed. Never is a part of it returned.

    Examples
    --------
    >>> import cbframe
    >>> with cbframe.LocalCluster(nodes=1, vbuckets=64) as cluster:
    ...     _ = cluster.upsert("airline_10", {"name": "40-Mile Air", "fleet": 12})
    ...     df = cbframe.read_bucket(cluster)
    >>> df.loc["airline_10", "name"]
    '40-Mile Air'
    """
    arguments = dict(locals())
    del arguments["return_type"], arguments["split_by"]
    scan = BucketScan(ScanSpec.of(**arguments))
    one_of(*get_args(ReturnType))("return_type", return_type)

    def frame(result: ReadResult) -> pd.DataFrame | pa.Table | pl.DataFrame:
        match return_type:
            case "arrow":
                return result.table
            case "polars":
                return result.to_polars()
            case _:
                return result.to_pandas(dtype_backend)

    if split_by is None:
        return frame(scan.read())
    return {kind: frame(result) for kind, result in scan.split(split_by).items()}
