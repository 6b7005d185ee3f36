"""A bounded read of a bucket, described once and run as often as wanted."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pyarrow as pa

from cbframe.arrow.batcher import BatchingReceiver, GatheringReceiver
from cbframe.arrow.documents.projection import path_of
from cbframe.arrow.exclusion import LeftOut
from cbframe.arrow.spool import DeferringBatchReceiver
from cbframe.cluster.manifest import Manifest
from cbframe.dcp.source import BucketDataSource
from cbframe.dcp.stats import BucketDataSourceStats
from cbframe.errors import ConfigurationError
from cbframe.frame.agreed import Agreement
from cbframe.frame.arrow_export import ArrowExport
from cbframe.frame.asof import AsOf
from cbframe.frame.assemble import Assembled, Assembler, raw_table
from cbframe.frame.conflicts import Conflict
from cbframe.frame.divide import Divider
from cbframe.frame.gather import RawSink
from cbframe.frame.parquet import place_of, write_parquet
from cbframe.frame.pins import Consistency, Pins
from cbframe.frame.progress import Progress
from cbframe.frame.result import ReadResult
from cbframe.frame.run import Ran, Run, Sink
from cbframe.frame.split import split_tables, without_rows
from cbframe.frame.streamed import SpoolingSink
from cbframe.frame.target import ScanTarget
from cbframe.options import BucketDataSourceOptions

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl

    from cbframe.frame.partition import ScanPartition

T = TypeVar("T")

_BATCH = 2 << 20
"""Bytes of values that are converted at once: what fits in a cache is converted faster."""
_BOUNDED_WINDOW = 4 << 20
"""Bytes that a node may send ahead, where memory counts."""


class BucketScan:
    """A read of a bucket as it is now, run each time that a result is asked for.

    Made by :func:`cbframe.scan_bucket`. Any consumer of the Arrow PyCapsule interface (polars,
    duckdb, pyarrow, pandas) takes a scan as it is.

    Attributes
    ----------
    last
        The :class:`ReadResult` of the latest run without its table; None before the first.
    """

    def __init__(
        self,
        target: ScanTarget,
        *,
        options: BucketDataSourceOptions,
        batch_bytes: int | None,
        buffer_bytes: int | None,
        timeout: float | None,
        dtype_backend: str | None,
        progress: Progress,
        spool_dir: str | os.PathLike[str] | None,
        agreement: Agreement | None = None,
        pins: Pins | None = None,
    ) -> None:
        self._agreement = agreement
        self._pins = pins
        self._target = target
        self._options = options
        self._batch_bytes = batch_bytes
        self._buffer_bytes = buffer_bytes
        self._timeout = timeout
        self._dtype_backend = dtype_backend
        self._progress = progress
        self._spool_dir = spool_dir
        self._run: Run | None = None
        self._export = ArrowExport()
        self.last: ReadResult | None = None

    def __repr__(self) -> str:
        last = self.last
        told = "" if last is None else f": last read {last.as_of!r} in {last.seconds:.1f} s"
        return f"<BucketScan of {self._target.bucket!r}{told}>"

    @property
    def as_of(self) -> AsOf | None:
        """What the latest run is a picture of."""
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
        return None if self._run is None else self._run.source

    def read(self) -> ReadResult:
        """Read the bucket.

        Raises
        ------
        CbframeError
            The read could not be completed; never is a part of it returned.
        """
        run = self._new_run(self._options.feed_buffer_size_bytes)
        result = self._read_typed(run) if self._target.parsed else self._read_raw(run)
        self.last = replace(result, table=result.table.schema.empty_table())
        return result

    def _read_raw(self, run: Run) -> ReadResult:
        ran, raw, manifest, left_out = self._gather(run, self._target)
        table = raw_table(raw, manifest, self._target, run.names, agreement=self._agreement)
        return self._result(run, ran, Assembled(table, (), {}, left_out))

    def _read_typed(self, run: Run) -> ReadResult:
        receiver = DeferringBatchReceiver(run.names.received, run.options.max_body_bytes)
        assembler = Assembler(
            self._target,
            run.names,
            receiver,
            self._batch_bytes or _BATCH,
            self._spool_dir,
            self._agreement,
            run.moment,
        )
        with closing(assembler):
            ran = self._into(run, receiver, assembler)
            typed = assembler.finish()
        return self._result(run, ran, typed)

    def _gather(self, run: Run, target: ScanTarget) -> tuple[Ran, pa.Table, Manifest | None, LeftOut]:
        """Documents as they are, the collections that they are of, and how many were left out."""
        receiver = BatchingReceiver(run.names.received, run.options.max_body_bytes)
        sink = RawSink(target, run.names, receiver, run.moment)
        ran = self._into(run, receiver, sink)
        raw, manifest = sink.finish()
        return ran, raw, manifest, sink.left_out

    def _into(self, run: Run, receiver: GatheringReceiver[T], sink: Sink[T]) -> Ran:
        ran = run.into(receiver, sink)
        if self._pins is not None:
            self._pins.check(ran.as_of, receiver)
        return ran

    def _result(self, run: Run, ran: Ran, found: Assembled) -> ReadResult:
        """A result whose schema tells what it is a picture of."""
        result = ReadResult(
            found.table,
            self._target.bucket,
            ran.as_of,
            found.conflicts,
            found.rejected,
            ran.stats,
            run.seconds,
            len(found.table),
            found.left_out.expired,
            found.left_out.transaction_records,
            ran.moment,
        )
        # Whoever gets the table of a partition alone, from another process, has no other report.
        return result.labelled(report=self._pins is not None)

    def _new_run(self, window: int) -> Run:
        window = window if self._buffer_bytes is None else self._buffer_bytes
        options = replace(self._options, feed_buffer_size_bytes=window)
        pins = self._pins
        self._run = Run(
            self._target,
            options,
            timeout=self._timeout,
            progress=self._progress,
            bucket_uuid="" if pins is None else pins.bucket_uuid,
            ends=None if pins is None else pins.ends(),
            moment=None if pins is None else pins.moment,
        )
        return self._run

    def peek(self, n: int = 5) -> pd.DataFrame:
        """Look at some documents, fast: as few vbuckets are read as have so many.

        Which documents these are is not defined, and columns have the types that these few need.
        """
        return self._limited(n).to_pandas()

    def _limited(self, n: int) -> BucketScan:
        limited = copy.copy(self)
        limited._target = replace(self._target, n_rows=n)  # noqa: SLF001 - one of us
        limited.last = limited._run = None  # noqa: SLF001 - as above
        limited._export = ArrowExport()  # noqa: SLF001 - as above
        return limited

    def to_arrow(self) -> pa.Table:
        """Read into an Arrow table.

        The key is the column ``_cb_key``; the schema's metadata tells what the table is a picture of.
        """
        return self.read().table

    def to_pandas(self) -> pd.DataFrame:
        """Read into a DataFrame whose index is the document key.

        ``df.attrs["cbframe"]`` holds ``as_of``, ``conflicts`` and ``rejected``.
        """
        return self.read().to_pandas(self._dtype_backend)

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
        if not self._target.parsed:
            raise ConfigurationError(
                "documents that are not parsed have no kind", hint="leave keys_only=True and parse=False out"
            )
        run = self._new_run(self._options.feed_buffer_size_bytes)
        ran, raw, manifest, left_out = self._gather(run, replace(self._target, parse=False))
        tables = split_tables(raw, manifest, path_of(by), self._target, run.names)
        rows = sum(len(each.table) for each in tables.values())
        whole = replace(without_rows(tables.values()), left_out=left_out)
        self.last = replace(self._result(run, ran, whole), documents=rows)
        return {label: self._result(run, ran, each) for label, each in tables.items()}

    def to_polars(self) -> pl.DataFrame:
        """Read into a polars DataFrame; the key is the column ``_cb_key``.

        Raises
        ------
        DependencyError
            polars is not installed.
        """
        return self.read().to_polars()

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
        if self._target.n_rows is not None:
            table = self.to_arrow()
            some = (batch for batch in table.to_batches() if len(batch))
            return pa.RecordBatchReader.from_batches(table.schema, some)
        run = self._new_run(min(self._options.feed_buffer_size_bytes, _BOUNDED_WINDOW))
        receiver = DeferringBatchReceiver(run.names.received, run.options.max_body_bytes)
        batch_bytes = self._batch_bytes or _BATCH
        sink = SpoolingSink(
            self._target, run.names, receiver, batch_bytes, self._spool_dir, self._agreement, run.moment
        )
        with ExitStack() as stack:
            stack.callback(sink.close)
            ran = self._into(run, receiver, sink)
            streamed = sink.finish()
            # The files are needed now: who reads the batches closes them.
            stack.pop_all()
        told = Assembled(
            streamed.schema.empty_table(), streamed.conflicts, streamed.rejected, streamed.left_out
        )
        self.last = replace(self._result(run, ran, told), documents=None)
        batches = (batch for table in streamed.tables for batch in table.to_batches())
        return pa.RecordBatchReader.from_batches(self.last.table.schema, batches)

    def iter_batches(self) -> Iterator[pa.RecordBatch]:
        """Iterate over record batches, none of them empty; memory as with :meth:`to_reader`."""
        yield from self.to_reader()

    def to_parquet(
        self, path: str | os.PathLike[str], *, compression: str = "zstd", workers: int | None = None
    ) -> Path:
        """Read into a Parquet file, which appears whole or not at all; memory as with :meth:`to_reader`.

        It is written from Arrow, so that ``pandas.read_parquet`` reads nested columns without help.

        Parameters
        ----------
        path
            Of the file; of a new folder of files with `workers`.
        compression
            What Parquet calls it.
        workers
            Have so many processes of this machine read, each its :meth:`partitions`. They get what this
            scan has, a password among it. A script has to call this below ``if __name__ == "__main__":``.

        Raises
        ------
        ConfigurationError
            There is something at `path` already, or the scan cannot be divided.
        ConversionError
            Documents do not fit the schema that a sample has: declare it, with ``schema=``.
        CbframeError
            As :meth:`read`; or a process was ended from outside.
        """
        place = place_of(path, compression)
        if workers is None:
            count = write_parquet(self.to_reader(), place, compression)
            assert self.last is not None, "it was read"
            self.last = replace(self.last, documents=count)
        else:
            from cbframe.frame.parts import to_folder  # noqa: PLC0415 - it reads by scans

            self.last = to_folder(self, place, compression, workers)
        return place

    def partitions(
        self,
        n: int,
        *,
        consistency: Consistency = "snapshot",
        sample_rows: int | None = 10_000,
        binary_keys: bool | None = None,
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
            What becomes of a vbucket that has gone on, or has another history, when its part is read:
            ``"snapshot"`` takes it as it is then and tells so in ``as_of``; ``"strict"`` is an error.
        sample_rows
            All parts have one schema, which follows from so many documents of vbuckets far from each
            other; None looks at all documents, and takes as long as to read them. What does not fit is an
            error that names the field, or null and reported with ``on_conflict="null"``. Where the scan has
            a pyarrow schema, that is it, and nothing is looked at.
        binary_keys
            Whether keys are bytes; None for what the sample has.
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
        from cbframe.frame.partition import divided  # noqa: PLC0415 - it reads by scans

        divider = Divider(
            target=self._target,
            options=self._options,
            timeout=self._timeout,
            batch_bytes=self._batch_bytes or _BATCH,
            spool_dir=None if self._spool_dir is None else os.fspath(self._spool_dir),
            sample_rows=sample_rows,
            binary_keys=binary_keys,
        )
        return divided(
            divider,
            n,
            consistency=consistency,
            batch_bytes=self._batch_bytes,
            buffer_bytes=self._buffer_bytes,
            dtype_backend=self._dtype_backend,
            with_secrets=include_credentials,
        )

    def __arrow_c_schema__(self) -> Any:
        """The schema, for consumers that ask for it before the stream; reads the bucket.

        The next stream that a consumer asks for is of this read.
        """
        return self._export.schema(self.to_reader)

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
        """Hand a read over to any Arrow consumer."""
        return self._export.stream(self.to_reader, requested_schema)
