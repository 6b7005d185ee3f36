"""Runs a scan once: into a table, into one table for each kind of document, or into record batches."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack, closing
from dataclasses import replace
from typing import TypeVar

import pyarrow as pa

from cbframe.arrow.batcher import DeferringBatchReceiver, GatheringReceiver
from cbframe.dcp.source import BucketDataSource
from cbframe.errors import ConfigurationError
from cbframe.scan.agreed import Agreement
from cbframe.scan.pins import Pins
from cbframe.scan.pipeline import Found, Pipeline
from cbframe.scan.result import ReadResult
from cbframe.scan.run import Ran, Run, Sink
from cbframe.scan.spec import ScanSpec, paths_of
from cbframe.scan.split import split_tables, told_of

T = TypeVar("T")


class ReadSession:
    """One read of a bucket, to be run by one of its methods, once."""

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
        """Read into a table."""
        run = self._begin()
        receiver, pipeline = self._pipeline(run, self._spec)
        with closing(pipeline):
            ran = self._into(run, receiver, pipeline)
            found = pipeline.finish()
            tables = list(found.tables)
        table = pa.concat_tables([found.schema.empty_table(), *tables])
        return self._result(run, ran, found, table)

    def split(self, by: str | tuple[str, ...]) -> tuple[ReadResult, dict[str | None, ReadResult]]:
        """Read into a table for each kind of document, after what there is to say about all of them."""
        (path,) = paths_of([by])
        if not self._spec.parsed:
            raise ConfigurationError(
                "documents that are not parsed have no kind", hint="leave keys_only=True and parse=False out"
            )
        run = self._begin()
        receiver, pipeline = self._pipeline(run, replace(self._spec, parse=False, columns=None))
        with closing(pipeline):
            ran = self._into(run, receiver, pipeline)
            tables, left_out = split_tables(pipeline, path, self._spec, run.names)
        results = {label: self._result(run, ran, *each) for label, each in tables.items()}
        whole = Found(pa.schema([]), iter(()), *told_of(tables.values()), left_out)
        rows = sum(len(each.table) for each in results.values())
        return replace(self._result(run, ran, whole, pa.table({})), documents=rows), results

    def stream(self) -> tuple[ReadResult, pa.RecordBatchReader]:
        """Read into record batches, by way of a temporary file; before them, what there is to say.

        The reader deletes the file at its end, or when it is no longer used.
        """
        if self._spec.n_rows is not None:
            result = self.read()
            batches: Iterable[pa.RecordBatch] = (each for each in result.table.to_batches() if len(each))
            reader = pa.RecordBatchReader.from_batches(result.table.schema, batches)
            return replace(result, table=result.table.schema.empty_table()), reader
        run = self._begin(bounded=True)
        receiver, pipeline = self._pipeline(run, self._spec, bounded=True)
        with ExitStack() as stack:
            stack.callback(pipeline.close)
            ran = self._into(run, receiver, pipeline)
            found = pipeline.finish()
            # The files are needed now: who reads the batches closes them.
            stack.pop_all()
        about = replace(self._result(run, ran, found, found.schema.empty_table()), documents=None)
        batches = (batch for table in found.tables for batch in table.to_batches())
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

    def _pipeline(
        self, run: Run, spec: ScanSpec, *, bounded: bool = False
    ) -> tuple[DeferringBatchReceiver, Pipeline]:
        receiver = DeferringBatchReceiver(run.names.received, run.options.max_body_bytes)
        pipeline = Pipeline(spec, run.names, receiver, self._agreement, run.moment, bounded=bounded)
        return receiver, pipeline

    def _into(self, run: Run, receiver: GatheringReceiver[T], sink: Sink[T]) -> Ran:
        ran = run.into(receiver, sink)
        if self._pins is not None:
            self._pins.check(ran.as_of, receiver)
        return ran

    def _result(self, run: Run, ran: Ran, found: Found, table: pa.Table) -> ReadResult:
        """A result whose schema says its vbucket positions."""
        result = ReadResult(
            table,
            self._spec.bucket,
            ran.as_of,
            found.conflicts,
            dict(found.rejected),
            ran.stats,
            run.seconds,
            len(table),
            found.left_out.expired,
            found.left_out.transaction_records,
            ran.moment,
        )
        # Whoever gets the table of a partition alone, from another process, has no other report.
        return result.labelled(report=self._pins is not None)
