"""A bounded read of a bucket, described once and run as often as wanted."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.fs as pafs

from cbframe.dcp.source import BucketDataSource
from cbframe.dcp.stats import BucketDataSourceStats
from cbframe.errors import ConversionError
from cbframe.public import public
from cbframe.scan.agreement import Conflict
from cbframe.scan.asof import AsOf
from cbframe.scan.parquet import Destination, check_compression, write_batches
from cbframe.scan.partition import Divider, ScanPartition, divided, to_folder
from cbframe.scan.result import ReadResult
from cbframe.scan.session import ReadSession
from cbframe.scan.spec import Consistency, ScanSpec, flag

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl


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
        overwrite: bool = False,
        filesystem: pafs.FileSystem | None = None,
        storage_options: Mapping[str, Any] | None = None,
    ) -> Path | str:
        """Read into a Parquet file, which appears whole or not at all; memory as with :meth:`to_reader`.

        It is written from Arrow, so that ``pandas.read_parquet`` reads nested columns without help.

        Parameters
        ----------
        path
            Of the file; of a folder of files with `workers`. A path, or a URI that pyarrow or fsspec know.
        compression
            What Parquet calls it.
        workers
            Have this many processes of this machine read, each its :meth:`partitions`. They get what this
            scan has, a password among it. A script has to call this below ``if __name__ == "__main__":``.
            In an object store the files appear one after the other, once all are complete in `spool_dir`.
        overwrite
            Replace what is at `path`, once the new file or folder is complete.
        filesystem, storage_options
            What `path` is in: a file system of pyarrow's, or options for that of fsspec.

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
        """
        check_compression(compression)
        place = Destination(
            path,
            overwrite=flag("overwrite", overwrite),
            filesystem=filesystem,
            storage_options=storage_options,
        )
        place.refuse_existing(folder=workers is not None)
        if workers is None:
            with place.file() as file:
                count = write_batches(self.to_reader(), file, compression)
            assert self.last is not None, "it was read"
            self.last = replace(self.last, documents=count)
        else:
            self.last = to_folder(self._spec, place, compression, workers)
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
        :meth:`ScanPartition.result` tells what happens then.

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
        divider = Divider(self._spec, sample_rows=sample_rows)
        return divided(divider, n, consistency=consistency, with_secrets=include_credentials)

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
