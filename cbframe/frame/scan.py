"""A bounded read of a bucket, described once and run as often as wanted."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from cbframe.arrow.batcher import BatchingReceiver
from cbframe.cluster.connstr import parse_connection_string
from cbframe.dcp.handover import monotonic
from cbframe.dcp.source import BucketDataSource
from cbframe.dcp.stats import BucketDataSourceStats
from cbframe.errors import DependencyError, ReadTimeoutError
from cbframe.frame.asof import AsOf
from cbframe.frame.assemble import Assembler
from cbframe.frame.conflicts import Conflict
from cbframe.frame.target import ProgressCallback, ScanProgress, ScanTarget
from cbframe.options import BucketDataSourceOptions

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl

_POLL = 0.05
"""Seconds between two looks at whether the source is over, while nothing arrives."""
_PROGRESS_EVERY = 0.1
_GROWTH = 8
"""How many more vbuckets each time, until a look has found enough."""


@dataclass(frozen=True, slots=True)
class ReadResult:
    """A finished read.

    Attributes
    ----------
    table
        The documents.
    as_of
        What the table is a picture of.
    conflicts
        Fields whose values had no common type.
    rejected
        Documents that are no JSON objects, by reason.
    stats
        Counters of the connections.
    seconds
        How long it took.
    """

    table: pa.Table
    as_of: AsOf
    conflicts: tuple[Conflict, ...]
    rejected: dict[str, int]
    stats: BucketDataSourceStats
    seconds: float


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
        batch_bytes: int,
        timeout: float | None,
        dtype_backend: str | None,
        progress: ProgressCallback | None,
    ) -> None:
        self._target = target
        self._options = options
        self._batch_bytes = batch_bytes
        self._timeout = timeout
        self._dtype_backend = dtype_backend
        self._progress = progress
        self.last: ReadResult | None = None

    def __repr__(self) -> str:
        lines = [f"<BucketScan of {self._target.bucket!r}"]
        if self.last is not None:
            lines.append(f": last read {self.last.as_of!r} in {self.last.seconds:.1f} s")
        return "".join(lines) + ">"

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

    def read(self) -> ReadResult:
        """Read the bucket.

        Raises
        ------
        CbframeError
            The read could not be completed; never is a part of it returned.
        """
        began = monotonic()
        options = replace(
            self._options,
            seq_end="now",
            no_value=self._target.keys_only,
            include_xattrs=self._options.include_xattrs or "xattrs" in self._target.metadata,
        )
        assembler = Assembler(self._target, options, self._batch_bytes)
        options = assembler.resolve_collections()
        receiver = BatchingReceiver(assembler.wire_metadata, options.max_body_bytes)
        positions: dict[int, tuple[int, int]] = {}
        parts = _parts(self._target)
        vbuckets = next(parts)
        while True:
            source = self._source(vbuckets, receiver, options)
            # Not a with block: Ctrl-C may come while the threads are being started.
            try:
                source.start()
                complete = self._gather(source, receiver, assembler, began)
                if complete:
                    source.wait(0)
                positions |= {vb: (at.vbuuid, at.seqno) for vb, at in source.as_of.items()}
                stats = source.stats()
            finally:
                source.close()
            if not complete or assembler.has_enough():
                break
            assert source.map is not None, "it is complete"
            try:
                vbuckets = parts.send(source.map.vbuckets)
            except StopIteration:
                break
        # A look at some documents is no picture of anything.
        as_of = AsOf(positions if self._target.n_rows is None else {})
        typed = assembler.finish(receiver)
        info = json.dumps({"bucket": self._target.bucket, "as_of": as_of})
        table = typed.table.replace_schema_metadata({b"cbframe": info.encode()})
        result = ReadResult(table, as_of, typed.conflicts, typed.rejected, stats, monotonic() - began)
        self.last = replace(result, table=table.slice(0, 0))
        return result

    def _source(
        self, vbuckets: tuple[int, ...] | None, receiver: BatchingReceiver, options: BucketDataSourceOptions
    ) -> BucketDataSource:
        target = self._target
        return BucketDataSource(
            target.server_urls,
            "default",
            target.bucket,
            "",
            vbuckets,
            target.auth,
            receiver,
            options,
            tls_context=target.tls,
            network=target.network,
        )

    def _gather(
        self, source: BucketDataSource, receiver: BatchingReceiver, assembler: Assembler, began: float
    ) -> bool:
        """Take what comes, until the source is complete or there is enough; whether it is complete."""
        told = began
        while True:
            finished = source.finished
            batches = receiver.take(0 if finished else _POLL)
            assembler.add(batches)
            now = monotonic()
            if self._progress is not None and (finished or now - told >= _PROGRESS_EVERY):
                told = now
                self._progress(_progress_of(source, now - began))
            if finished or assembler.has_enough():
                return finished
            if self._timeout is not None and now - began > self._timeout:
                raise self._too_slow(source, receiver)

    def _too_slow(self, source: BucketDataSource, receiver: BatchingReceiver) -> ReadTimeoutError:
        stats = source.stats()
        problem = receiver.last_error
        told = "" if problem is None else f"; last problem: {problem.message}"
        error = ReadTimeoutError(
            f"the read is not complete after {self._timeout:g} s: "
            f"{stats.vbuckets_done} of {stats.vbuckets or '?'} vbuckets{told}",
            node=_unfinished(source, self._target),
            hint="raise timeout=, or read fewer vbuckets or collections",
        )
        error.__cause__ = problem
        return error

    def peek(self, n: int = 5) -> pd.DataFrame:
        """Look at some documents, fast: as few vbuckets are read as have so many.

        Which documents these are is not defined, and columns have the types that these few need.
        """
        return self._limited(n).to_pandas()

    def _limited(self, n: int) -> BucketScan:
        limited = copy.copy(self)
        limited._target = replace(self._target, n_rows=n)  # noqa: SLF001 - one of us
        limited.last = None
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
        from cbframe.frame.convert import to_pandas  # noqa: PLC0415 - pandas is slow to import

        result = self.read()
        frame = to_pandas(result.table, self._dtype_backend)
        frame.attrs["cbframe"] = {
            "bucket": self._target.bucket,
            "as_of": result.as_of,
            "conflicts": [conflict.to_dict() for conflict in result.conflicts],
            "rejected": dict(result.rejected),
        }
        return frame

    def to_polars(self) -> pl.DataFrame:
        """Read into a polars DataFrame; the key is the column ``_cb_key``.

        Raises
        ------
        DependencyError
            polars is not installed.
        """
        try:
            import polars as pl  # noqa: PLC0415 - optional
        except ImportError as exc:
            raise DependencyError("polars is not installed", hint="pip install 'cbframe[polars]'") from exc
        frame = pl.from_arrow(self.to_arrow())
        assert isinstance(frame, pl.DataFrame), "a table is no series"
        return frame

    def to_reader(self) -> pa.RecordBatchReader:
        """Read into a stream of record batches.

        The columns' types depend on all documents, so the read is complete before the first batch.
        """
        return self.to_arrow().to_reader()

    def iter_batches(self) -> Iterator[pa.RecordBatch]:
        """Iterate over record batches, none of them empty."""
        for batch in self.to_reader():
            if batch.num_rows:
                yield batch

    def to_parquet(self, path: str | os.PathLike[str], *, compression: str = "zstd") -> Path:
        """Read into a Parquet file, which appears whole or not at all.

        It is written from Arrow, so that ``pandas.read_parquet`` reads nested columns without help.
        """
        from cbframe.frame.convert import write_parquet  # noqa: PLC0415

        return write_parquet(self.to_arrow(), Path(path), compression)

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
        """Hand a new read over to any Arrow consumer."""
        return self.to_reader().__arrow_c_stream__(requested_schema)


def _parts(target: ScanTarget) -> Generator[tuple[int, ...] | None, int, None]:
    """The vbuckets to read, one part after the other; it is sent how many the bucket has.

    All at once, but for a look at some documents: then a few at first, and more if they have too little.
    """
    if target.n_rows is None:
        yield target.vbuckets
        return
    if target.vbuckets is None:
        # One that every bucket has.
        left = tuple(range(1, (yield (0,))))
    else:
        _ = yield target.vbuckets[:1]
        left = target.vbuckets[1:]
    size = _GROWTH
    while left:
        _ = yield left[:size]
        left, size = left[size:], size * _GROWTH


def _progress_of(source: BucketDataSource, seconds: float) -> ScanProgress:
    reached, total = source.progress()
    stats = source.stats()
    return ScanProgress(
        stats.total.documents,
        stats.total.bytes_received,
        reached,
        total,
        stats.vbuckets_done,
        stats.vbuckets,
        seconds,
    )


def _unfinished(source: BucketDataSource, target: ScanTarget) -> str:
    """Whom the read waits for: the owners of what is not complete, or the seeds."""
    found, done = source.map, source.as_of
    if found is None:
        return ", ".join(map(str, parse_connection_string(target.server_urls).seeds()))
    wanted = range(found.vbuckets) if target.vbuckets is None else target.vbuckets
    owners = {found.node_of(vb) or "without owner" for vb in wanted if vb not in done}
    return ", ".join(sorted(owners))
