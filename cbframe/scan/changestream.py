"""A change stream: batches, acknowledgements, checkpoints."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self, TypeAlias

from cbframe import core
from cbframe.arrow.changes import ChangeReceiver
from cbframe.cluster.collections_manifest import CollectionName, CollectionsManifest
from cbframe.dcp.handover import Switch, monotonic
from cbframe.dcp.positions import Position
from cbframe.dcp.source import BucketDataSource
from cbframe.dcp.stats import BucketDataSourceStats
from cbframe.errors import CbframeError, ReadCancelledError, ReadTimeoutError
from cbframe.options import BucketDataSourceOptions
from cbframe.public import public
from cbframe.scan.changelog import ChangeLog, Rotation
from cbframe.scan.changerows import ChangeRows, Directory
from cbframe.scan.changes import ChangeBatch, Rollback
from cbframe.scan.checkpoint import Checkpoint
from cbframe.scan.gatherer import Gatherer
from cbframe.scan.high_seqnos import HighSeqnos
from cbframe.scan.names import Names, described
from cbframe.scan.parquet import place_of
from cbframe.scan.progress import ShowsItself
from cbframe.scan.spec import ScanSpec, positive
from cbframe.scan.tail import Tail, seconds_of

if TYPE_CHECKING:
    import pandas as pd

OnRollback: TypeAlias = Literal["emit", "restart", "raise"] | Callable[[Rollback], object]
_LOOK = 0.05
"""Seconds between two looks at how far the stream is."""
_LOOK_SOON = 0.005
"""The same, while it is not known how far it has to come: that takes two answers of each node."""


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
        core.warn_of_reference()
        self._target = target
        self._clock = clock
        self._bucket_uuid = bucket_uuid
        self._on_rollback = on_rollback if callable(on_rollback) else None
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
        first_map = names.map

        def fetch_manifest() -> CollectionsManifest | None:
            nonlocal first_map
            first_map, manifest = described(target)
            return manifest

        directory = self._directory = Directory(fetch_manifest, collection_names)
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
            first_map=first_map,
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
        counts = f"{total.documents:,} changes, {total.bytes_received / 1e6:,.1f} MB received"
        more = f", {total.rollbacks} rollbacks" if total.rollbacks else ""
        if self.transaction_records:
            more += f", {self.transaction_records:,} changes of transaction records left out"
        return f"<ChangeStream of {self._target.bucket!r}, {self.state}: {counts}{more}>"

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
            if not self._again:
                self.ack(self._given)
            elif not self._closed:
                self._again = False
                return self._given
        if self._closed:
            raise StopIteration
        batch = self._next(None)
        if batch is None:
            raise StopIteration
        self._given = batch
        return batch

    @public
    def poll(self, timeout: float | None = 0.0) -> ChangeBatch | None:
        """The next batch, acknowledged by nobody yet; None if there is none within `timeout` seconds.

        Also None at the end, when every collection that it was for is gone.

        Parameters
        ----------
        timeout
            Seconds; None for as long as it takes.

        Raises
        ------
        ReadCancelledError
            The stream is closed, or was closed meanwhile by another thread. Iterating ends instead.
        ConfigurationError
            `timeout` is no number.
        CbframeError
            The stream cannot go on. What came before was given out.
        """
        if timeout is not None:
            # What is left until some deadline may be negative.
            given: object = timeout
            timeout = 0.0 if isinstance(given, float) and given < 0 else seconds_of("timeout", timeout)
        if self._closed:
            raise _closed()
        batch = self._next(timeout)
        if batch is None and self._closed:
            raise _closed()
        return batch

    def _next(self, timeout: float | None) -> ChangeBatch | None:
        """The next batch, also of what had come when the stream was closed; None if there is none."""
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

        Its bytes no longer count against the window of the connection, and :attr:`checkpoint` is after it.
        Also of a stream that is closed: then :attr:`checkpoint` is where the next one continues.
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
        """End all threads and sockets, and wait for them. What was not acknowledged comes again next time.

        After that :meth:`poll` and :meth:`to_pandas` raise, iterating ends, and :meth:`to_parquet` writes
        what had come. :meth:`ack`, :attr:`checkpoint`, :attr:`stats` and :attr:`errors` work as before.
        """
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
            dict(sorted(acked.items())),
            target.scope,
            target.named,
            target.key_prefix,
            self._directory.known,
        )

    def checkpoint_after(self, batch: ChangeBatch) -> Checkpoint:
        """What :attr:`checkpoint` will be once `batch` is acknowledged: to be stored together with it."""
        return self.checkpoint.updated(self._gatherer.after(batch))

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
        last: str | float | timedelta | None = None,
        *,
        rows: int = 100_000,
        columns: Sequence[str | tuple[str, ...]] | None = None,
        dtype_backend: str | None = "pyarrow",
        timeout: float | None = 60.0,
    ) -> pd.DataFrame:
        """The newest version of each document among the last changes.

        Takes every change that the bucket has at the time of the call, and acknowledges it: all nodes are
        asked for their high seqnos, and it waits until the stream has come to these, also while it is still
        connecting. A stream that is paused waits for nothing. What is older than `last`, or before
        the last `rows` changes, is forgotten: memory is bounded, however long this goes on. Documents that
        are gone are left out; rollbacks are followed.

        Parameters
        ----------
        last
            Seconds since their arrival, a ``timedelta``, or a text with a unit such as ``"5min"``; None for
            any age.
        rows
            How many changes are kept.
        columns, dtype_backend
            As for :func:`cbframe.scan_bucket`.
        timeout
            Seconds for which it waits; None for as long as it takes.

        Raises
        ------
        ReadTimeoutError
            The stream has not come so far in time. What came is kept, and the next call continues.
        ReadCancelledError
            The stream is closed, or was closed meanwhile by another thread.
        ConfigurationError
            An argument is invalid.
        CbframeError
            The stream cannot go on.
        """
        age = None if last is None else seconds_of("last", last)
        limit = None if timeout is None else seconds_of("timeout", timeout)
        rows = positive("rows", rows)
        if self._closed:
            raise _closed()
        if self._tail is None:
            self._tail = Tail(self.schema, self._clock)
        self._catch_up(self._tail, rows, limit)
        return self._tail.to_pandas(age, rows, columns=columns, dtype_backend=dtype_backend)

    def _catch_up(self, tail: Tail, rows: int, timeout: float | None) -> None:
        """Put every change that the bucket has now into the tail."""
        until = None if timeout is None else self._clock() + timeout
        high = HighSeqnos(self._source, self._clock)
        while not self._paused:
            missing = high.missing(self._gatherer.given)
            if missing == 0:
                return
            left = _LOOK if high.known else _LOOK_SOON
            if until is not None:
                if self._clock() >= until:
                    raise _not_caught_up(missing, timeout)
                left = min(left, until - self._clock())
            batch = self.poll(max(0.0, left))
            if batch is not None:
                tail.add(batch, rows)
                self.ack(batch)
            elif self._source.finished:
                return
        # What had been taken before the pause is there.
        while (batch := self.poll(0)) is not None:
            tail.add(batch, rows)
            self.ack(batch)

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
        limit = None if seconds is None else seconds_of("seconds", seconds)
        place = place_of(folder, compression)
        log = ChangeLog(self, place, Rotation.of(rotate), compression, self._clock, poll=self._next)
        return log.run(limit)


def _closed() -> ReadCancelledError:
    return ReadCancelledError(
        "the stream is closed", hint="open another one, with start=stream.checkpoint to continue from there"
    )


def _not_caught_up(missing: int | None, timeout: float | None) -> ReadTimeoutError:
    what = (
        "the stream is still connecting"
        if missing is None
        else f"{missing:,} vbuckets are not where the bucket was when to_pandas() was called"
    )
    return ReadTimeoutError(
        f"{what}, after {timeout:g} s",
        hint="what came is kept: call it again, or give a larger timeout=; stream.errors has what went wrong",
    )
