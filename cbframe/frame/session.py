"""Runs a scan once: into a table, into one table for each kind of document, or into record batches."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack, closing
from dataclasses import replace
from typing import TypeVar

import pyarrow as pa

from cbframe.arrow.batcher import BatchingReceiver, GatheringReceiver
from cbframe.arrow.exclusion import LeftOut
from cbframe.arrow.spool import DeferringBatchReceiver
from cbframe.cluster.manifest import Manifest
from cbframe.dcp.source import BucketDataSource
from cbframe.errors import ConfigurationError
from cbframe.frame.agreed import Agreement
from cbframe.frame.assemble import Assembled, Assembler, raw_table
from cbframe.frame.gather import RawSink
from cbframe.frame.pins import Pins
from cbframe.frame.result import ReadResult
from cbframe.frame.run import Ran, Run, Sink
from cbframe.frame.split import split_tables, without_rows
from cbframe.frame.streamed import SpoolingSink
from cbframe.scan.spec import ScanSpec, paths_of

T = TypeVar("T")


class ReadSession:
    """One read of a bucket, to be run by one of its methods, once.

    Parameters
    ----------
    pins
        Read to these seqnos, of these histories; None to read to where the bucket is now.
    agreement
        Columns that there have to be; None for what the documents have.
    """

    def __init__(
        self, spec: ScanSpec, *, pins: Pins | None = None, agreement: Agreement | None = None
    ) -> None:
        self._spec = spec
        self._pins = pins
        self._agreement = agreement
        self._run: Run | None = None

    @property
    def source(self) -> BucketDataSource | None:
        """What streams at present; None while nothing is read."""
        return None if self._run is None else self._run.source

    def read(self) -> ReadResult:
        """Read into a table.

        Raises
        ------
        CbframeError
            The read could not be completed; never is a part of it returned.
        """
        run = self._begin()
        if not self._spec.parsed:
            ran, raw, manifest, left_out = self._gather(run, self._spec)
            table = raw_table(raw, manifest, self._spec, run.names)
            return self._result(run, ran, Assembled(table, (), {}, left_out))
        spec = self._spec
        receiver = DeferringBatchReceiver(run.names.received, run.options.max_body_bytes)
        assembler = Assembler(
            spec, run.names, receiver, spec.batch_size, spec.spool_dir, self._agreement, run.moment
        )
        with closing(assembler):
            ran = self._into(run, receiver, assembler)
            typed = assembler.finish()
        return self._result(run, ran, typed)

    def split(self, by: str | tuple[str, ...]) -> tuple[ReadResult, dict[str | None, ReadResult]]:
        """Read into a table for each kind of document, after what there is to say about all of them.

        Raises
        ------
        ConfigurationError
            `by` is no field, or has too many different values; or documents are not parsed.
        CbframeError
            The read could not be completed.
        """
        (path,) = paths_of([by])
        if not self._spec.parsed:
            raise ConfigurationError(
                "documents that are not parsed have no kind", hint="leave keys_only=True and parse=False out"
            )
        run = self._begin()
        ran, raw, manifest, left_out = self._gather(run, replace(self._spec, parse=False, columns=None))
        tables = split_tables(raw, manifest, path, self._spec, run.names)
        rows = sum(len(each.table) for each in tables.values())
        whole = replace(without_rows(tables.values()), left_out=left_out)
        about = replace(self._result(run, ran, whole), documents=rows)
        return about, {label: self._result(run, ran, each) for label, each in tables.items()}

    def stream(self) -> tuple[ReadResult, pa.RecordBatchReader]:
        """Read into record batches, by way of a temporary file; before them, what there is to say.

        The reader deletes the file at its end, or when it is no longer used.

        Raises
        ------
        CbframeError
            The read could not be completed, or its documents do not fit on the disk.
        """
        if self._spec.n_rows is not None:
            result = self.read()
            batches: Iterable[pa.RecordBatch] = (each for each in result.table.to_batches() if len(each))
            reader = pa.RecordBatchReader.from_batches(result.table.schema, batches)
            return replace(result, table=result.table.schema.empty_table()), reader
        run = self._begin(bounded=True)
        spec = self._spec
        receiver = DeferringBatchReceiver(run.names.received, run.options.max_body_bytes)
        sink = SpoolingSink(
            spec, run.names, receiver, spec.batch_size, spec.spool_dir, self._agreement, run.moment
        )
        with ExitStack() as stack:
            stack.callback(sink.close)
            ran = self._into(run, receiver, sink)
            streamed = sink.finish()
            # The files are needed now: who reads the batches closes them.
            stack.pop_all()
        empty = Assembled(
            streamed.schema.empty_table(), streamed.conflicts, streamed.rejected, streamed.left_out
        )
        about = replace(self._result(run, ran, empty), documents=None)
        batches = (batch for table in streamed.tables for batch in table.to_batches())
        return about, pa.RecordBatchReader.from_batches(about.table.schema, batches)

    def _begin(self, *, bounded: bool = False) -> Run:
        pins = self._pins
        self._run = Run(
            self._spec,
            bounded=bounded,
            bucket_uuid="" if pins is None else pins.bucket_uuid,
            ends=None if pins is None else pins.ends(),
            moment=None if pins is None else pins.moment,
            skip_first_deletions=True,
        )
        return self._run

    def _gather(self, run: Run, spec: ScanSpec) -> tuple[Ran, pa.Table, Manifest | None, LeftOut]:
        """Documents as they are, the collections that they are of, and how many were left out."""
        receiver = BatchingReceiver(run.names.received, run.options.max_body_bytes)
        sink = RawSink(spec, run.names, receiver, run.moment)
        ran = self._into(run, receiver, sink)
        raw, manifest = sink.finish()
        return ran, raw, manifest, sink.left_out

    def _into(self, run: Run, receiver: GatheringReceiver[T], sink: Sink[T]) -> Ran:
        ran = run.into(receiver, sink)
        if self._pins is not None:
            self._pins.check(ran.as_of, receiver)
        return ran

    def _result(self, run: Run, ran: Ran, found: Assembled) -> ReadResult:
        """A result whose schema says as of when it is."""
        result = ReadResult(
            found.table,
            self._spec.bucket,
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
