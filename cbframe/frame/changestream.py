"""A change stream: batches, acknowledgements, checkpoints."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self, TypeAlias

from cbframe.arrow.changes import ChangeReceiver
from cbframe.cluster.manifest import CollectionName
from cbframe.dcp.handover import Switch, monotonic
from cbframe.dcp.maps import bucket_manifest
from cbframe.dcp.positions import Position
from cbframe.dcp.source import BucketDataSource
from cbframe.dcp.stats import BucketDataSourceStats
from cbframe.errors import CbframeError, ReadCancelledError
from cbframe.frame.changelog import ChangeLog, Rotation
from cbframe.frame.changerows import ChangeRows, Directory
from cbframe.frame.changes import ChangeBatch, Rollback
from cbframe.frame.checkpoint import Checkpoint, VBucketOffset
from cbframe.frame.display import ShowsItself
from cbframe.frame.gatherer import Gatherer
from cbframe.frame.names import Names
from cbframe.frame.parquet import place_of
from cbframe.frame.tail import Tail, seconds_of
from cbframe.options import BucketDataSourceOptions
from cbframe.public import public
from cbframe.scan.spec import ScanSpec

if TYPE_CHECKING:
    import pandas as pd

OnRollback: TypeAlias = Literal["emit", "restart", "raise"] | Callable[[Rollback], object]
_CATCH_UP = 1.0
"""Seconds that are taken for what has come, at most: there may be ever more."""
_LULL = 0.05
"""Seconds without anything new after which everything that has come is there."""


class ChangeStream(ShowsItself):
    """The changes of a bucket, batch by batch, from somewhere on and without an end.

    Made by :func:`cbframe.stream_bucket`; it runs until it is closed. One thread takes batches; the other
    methods and properties may be used from any thread.
    """

    def __init__(
        self,
        target: ScanSpec,
        options: BucketDataSourceOptions,
        *,
        names: Names,
        start: Mapping[int, Position],
        bucket_uuid: str,
        collection_names: Mapping[int, CollectionName],
        on_rollback: OnRollback,
        batch_bytes: int,
        max_latency: float,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._target = target
        self._clock = clock
        self._bucket_uuid = bucket_uuid
        self._on_rollback = on_rollback if callable(on_rollback) else None
        self._offsets: dict[int, tuple[Position, VBucketOffset]] = {}
        self._given: ChangeBatch | None = None
        self._again = False
        self._undelivered: ChangeBatch | None = None
        self._tail: Tail | None = None
        self._closed = False
        self._paused = Switch()
        self._receiver = ChangeReceiver(
            start,
            names.wire_metadata,
            to_base=on_rollback == "restart",
            refuse=on_rollback == "raise",
            max_value=options.max_body_bytes,
        )
        directory = self._directory = Directory(
            lambda: bucket_manifest(
                target.server_urls, target.bucket, target.auth, options, target.tls, target.network
            ),
            collection_names,
        )
        if start and not collection_names:
            # Collections were created before the streams begin: they report the end of one by its id.
            directory.learn()
        rows = self._rows = ChangeRows(
            self._receiver.schema,
            target.metadata,
            directory,
            target.key_prefix,
            target.keys,
            transaction_records=target.transaction_records == "keep",
        )
        self.schema = rows.schema
        self._source = BucketDataSource(
            target.server_urls,
            "default",
            target.bucket,
            bucket_uuid,
            target.vbuckets,
            target.auth,
            self._receiver,
            options,
            tls_context=target.tls,
            network=target.network,
        )
        source = self._source
        self._gatherer = Gatherer(
            self._receiver,
            rows,
            directory,
            start,
            batch_bytes=batch_bytes,
            max_latency=max_latency,
            paused=self._paused,
            is_over=lambda: source.finished,
            clock=clock,
        )
        # Whoever forgets a stream has no more use for its threads.
        self._end = weakref.finalize(self, source.close)
        source.start()

    def __repr__(self) -> str:
        total = self.stats.total
        told = f"{total.documents:,} changes, {total.bytes_received / 1e6:,.1f} MB received"
        more = f", {total.rollbacks} rollbacks" if total.rollbacks else ""
        if self.transaction_records:
            more += f", {self.transaction_records:,} changes of transaction records left out"
        return f"<ChangeStream of {self._target.bucket!r}, {self.state}: {told}{more}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- batches

    def __iter__(self) -> Self:
        """Begin to iterate; the last batch comes again, unless it was acknowledged.

        A loop that was left in the middle of a batch has not consumed it.
        """
        self._again = self._given is not None
        return self

    @public
    def __next__(self) -> ChangeBatch:
        """The next batch; the one before is acknowledged."""
        if self._given is not None:
            if self._again:
                self._again = False
                return self._given
            self.ack(self._given)
        if self._closed:
            raise StopIteration
        batch = self.poll(None)
        if batch is None:
            raise StopIteration
        self._given = batch
        return batch

    @public
    def poll(self, timeout: float | None = 0.0) -> ChangeBatch | None:
        """The next batch, acknowledged by nobody yet; None if there is none within `timeout` seconds.

        Also None at the end: the stream is closed, or every collection that it was for is gone.

        Parameters
        ----------
        timeout
            Seconds; None for as long as it takes.

        Raises
        ------
        CbframeError
            The stream cannot go on. What came before was given out.
        """
        batch = self._undelivered or self._gatherer.next(timeout)
        if batch is None:
            if self._source.finished and not self._paused:
                self._raise_failure()
            return None
        if self._on_rollback is not None and batch.rollbacks:
            # If the function raises, the batch has not been given out.
            self._undelivered = batch
            for rollback in batch.rollbacks:
                self._on_rollback(rollback)
            self._undelivered = None
        return batch

    def ack(self, batch: ChangeBatch) -> None:
        """Say that a batch is consumed, and all that were given out before it.

        Its bytes no longer count against the window of the connection, and :attr:`checkpoint` is behind it.
        """
        self._gatherer.ack(batch)
        if self._given is not None and not self._gatherer.awaits(self._given):
            self._given = None

    def release(self, batch: ChangeBatch) -> None:
        """Say that the bytes of a batch take no memory any more, but that it is not consumed yet.

        For sinks that put rows down as they come, and store a checkpoint now and then: the node may send
        more, and :attr:`checkpoint` stays where it is.
        """
        self._gatherer.release(batch)

    def _raise_failure(self) -> None:
        if self._closed:
            return
        try:
            self._source.wait(0)
        except ReadCancelledError:
            if not self._closed:
                raise

    # -- control

    def pause(self) -> None:
        """Give out nothing, and acknowledge nothing: the nodes stop sending when their windows are full."""
        self._paused.on()

    def resume(self) -> None:
        """The opposite of :meth:`pause`."""
        self._paused.off()
        self._receiver.wake()

    def close(self) -> None:
        """End all threads and sockets, and wait for them. What was not acknowledged comes again next time."""
        self._closed = True
        self._paused.off()
        self._end.detach()
        # It waits for its threads, also if another thread has begun to close it.
        self._source.close()
        self._receiver.wake()

    @property
    def state(self) -> str:
        """One of ``connecting``, ``streaming``, ``paused``, ``failed``, ``finished`` and ``closed``."""
        if self._closed:
            return "closed"
        if self._source.finished:
            try:
                self._source.wait(0)
            except CbframeError:
                return "failed"
            return "finished"
        if self._paused:
            return "paused"
        found = self._source.map
        if found is None:
            return "connecting"
        wanted = found.vbuckets if self._target.vbuckets is None else len(self._target.vbuckets)
        running = sum(each.state == "running" for each in self._source.vbucket_states().values())
        return "streaming" if running + len(self._source.as_of) >= wanted else "connecting"

    @property
    def source(self) -> BucketDataSource:
        """What it streams with: counters, states of vbuckets, the cluster map."""
        return self._source

    @property
    def stats(self) -> BucketDataSourceStats:
        """Counters at this moment."""
        return self._source.stats()

    @property
    def errors(self) -> tuple[CbframeError, ...]:
        """The last problems, newest last; what could be healed was healed."""
        return tuple(self._receiver.errors)

    @property
    def checkpoint(self) -> Checkpoint:
        """How far the consumer is: behind everything that was acknowledged."""
        target = self._target
        acked = dict(self._gatherer.acked)
        return Checkpoint(
            target.bucket,
            self._uuid(),
            {vb: self._offset(vb, position) for vb, position in sorted(acked.items())},
            target.scope,
            target.collections,
            target.key_prefix,
            self._directory.known,
        )

    def checkpoint_after(self, batch: ChangeBatch) -> Checkpoint:
        """What :attr:`checkpoint` will be once `batch` is acknowledged: to be stored together with it."""
        positions = self._gatherer.after(batch)
        return self.checkpoint.updated({vb: self._offset(vb, each) for vb, each in positions.items()})

    def _offset(self, vbucket: int, position: Position) -> VBucketOffset:
        known = self._offsets.get(vbucket)
        if known is None or known[0] is not position:
            known = self._offsets[vbucket] = position, VBucketOffset.of(position)
        return known[1]

    def _uuid(self) -> str:
        found = self._source.map
        return self._bucket_uuid if found is None else found.uuid

    @property
    def transaction_records(self) -> int:
        """How many changes of records of transactions were left out: keys that begin with ``_txn:``."""
        return self._rows.left_out

    # -- whole outputs

    @public
    def to_pandas(
        self,
        last: str | float | None = None,
        *,
        rows: int = 100_000,
        columns: Sequence[str | tuple[str, ...]] | None = None,
        dtype_backend: str | None = "pyarrow",
    ) -> pd.DataFrame:
        """The newest version of each document among the last changes.

        Takes what has come since the last call, and acknowledges it. What is older than `last`, or before
        the last `rows` changes, is forgotten: memory is bounded, however long this goes on. Documents that
        are gone are left out; rollbacks are followed.

        Parameters
        ----------
        last
            Seconds since their arrival, or a text such as ``"5min"``; None for any age.
        rows
            How many changes are kept.
        columns, dtype_backend
            As for :func:`cbframe.scan_bucket`.
        """
        if self._tail is None:
            self._tail = Tail(self.schema, self._clock)
        age = None if last is None else seconds_of(last)
        until = self._clock() + _CATCH_UP
        while (batch := self.poll(max(0.0, min(_LULL, until - self._clock())))) is not None:
            self._tail.add(batch, rows)
            self.ack(batch)
            if self._clock() >= until:
                break
        return self._tail.to_pandas(age, rows, columns=columns, dtype_backend=dtype_backend)

    @public
    def to_parquet(
        self,
        folder: str | os.PathLike[str],
        *,
        rotate: Mapping[str, float] | None = None,
        seconds: float | None = None,
        compression: str = "zstd",
    ) -> list[Path]:
        """Write changes into a folder of Parquet files, until the stream is closed or `seconds` are over.

        A file appears whole or not at all, and holds the checkpoint behind its last row: whatever ends
        the process, nothing is lost and nothing comes twice if the next one goes on with
        ``start=Checkpoint.load(folder)``.

        Rows are those of :attr:`ChangeBatch.record_batch`. Two more kinds keep the log complete, both
        without key and value: ``rollback``, all rows of that vbucket before it with a larger seqno are
        void; and ``drop``, all rows of that vbucket and collection with a smaller seqno are.

        Parameters
        ----------
        folder
            Made if it is missing. If it has files, the stream must begin where they end.
        rotate
            When a file is complete: ``{"rows": 1_000_000, "bytes": 64 << 20, "seconds": 60}``.
        seconds
            How long; None for until another thread closes the stream, or Ctrl-C.

        Returns
        -------
        list of Path
            The files that were written.
        """
        log = ChangeLog(self, place_of(folder, compression), Rotation.of(rotate), compression, self._clock)
        return log.run(seconds)
