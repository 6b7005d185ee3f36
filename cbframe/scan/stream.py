"""``stream_bucket``: the changes of a bucket, batch by batch, with acknowledgements and checkpoints.

Node threads put what they receive into a :class:`~cbframe.arrow.receivers.ChangeReceiver`. The consumer's
thread takes it from there, in :meth:`~cbframe.scan.changes.Gatherer.turn`, and forms batches. A
batch that was acknowledged moves the checkpoint, and its bytes are acknowledged to the nodes, which send no
more than their windows until then.
"""

from __future__ import annotations

import os
import re
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from functools import partial
from math import inf
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias

from cbframe import core
from cbframe.arrow.columns import KeyForm
from cbframe.arrow.receivers import ChangeReceiver
from cbframe.cluster.collections_manifest import CollectionsManifest
from cbframe.cluster.tls import TLSLike
from cbframe.dcp.persistence import warn_of_few_copies
from cbframe.dcp.positions import VBucketOffset, has_place
from cbframe.dcp.source import BucketDataSource
from cbframe.dcp.stats import BucketDataSourceStats, EventLogLike
from cbframe.dcp.survey import current_positions
from cbframe.errors import CbframeError, ConfigurationError, GroupError, ReadCancelledError, ReadTimeoutError
from cbframe.json.layout import FieldPath
from cbframe.options import BucketDataSourceOptions
from cbframe.public import Closing, Connectable, ServerURLs, public
from cbframe.scan.changes import POLL, ChangeBatch, ChangeRows, Directory, Gatherer, Rollback, Switch, Tail
from cbframe.scan.checkpoint import ChangeLog, Checkpoint, Rotation
from cbframe.scan.group import ConsumerGroup, Membership, Position
from cbframe.scan.names import Names, described, difference
from cbframe.scan.parquet import check_compression
from cbframe.scan.persisted import PersistedChangeReceiver
from cbframe.scan.progress import ShowsItself
from cbframe.scan.result import AsOf
from cbframe.scan.spec import Exclusion, ScanSpec, not_negative, positive, seconds_of

if TYPE_CHECKING:
    import pandas as pd

OnRollback: TypeAlias = Literal["emit", "restart", "raise"] | Callable[[Rollback], object]
_ON_ROLLBACK = ("emit", "restart", "raise")
_ANOTHER_GROUP = "members of a group stream the same: another stream is another group, in another folder"
_WINDOW = 16 << 20
_BATCH = 4 << 20
RECOVERY = 300.0
_AGAIN = 1.0
"""Seconds after which nodes are asked again: a failover may have shortened a history meanwhile."""
_POLL_SOON = 0.005
"""The same, while it is not known how far it has to come: that takes two answers of each node."""


class HighSeqnos:
    """The high seqnos at the moment at which this object is made."""

    # No node is asked twice at a time. So of each node the first report after that moment may have been asked
    # for before it, and the second one was not.

    def __init__(self, source: BucketDataSource) -> None:
        self._source = source
        self._before = {node: count for node, (count, _) in source.seqno_reports().items()}
        self._seqnos: dict[int, int] = {}
        self._asked = float("-inf")
        self.known = False

    def missing(self, reached: Mapping[int, VBucketOffset]) -> int | None:
        """How many vbuckets are not there yet; None while there is no cluster map."""
        source = self._source
        done, reports = source.as_of, source.seqno_reports()
        if source.map is None:
            return None
        short, self.known = 0, True
        for vbucket in source.wanted:
            if vbucket in done:
                continue
            node = source.connection_of(vbucket) or ""
            count, seqnos = reports.get(node, (0, {}))
            if count >= self._before.get(node, 0) + 2 and vbucket in seqnos:
                # It is lower than before only where a history was shortened.
                self._seqnos[vbucket] = min(seqnos[vbucket], self._seqnos.get(vbucket, seqnos[vbucket]))
            wanted = self._seqnos.get(vbucket)
            self.known &= wanted is not None
            position = reached.get(vbucket)
            short += wanted is None or (0 if position is None else position.seqno) < wanted
        short = short or self._lost(reached)
        if not self.known or (short and monotonic() >= self._asked + _AGAIN):
            self._asked = monotonic()
            source.sample_seqnos()
        return short

    def _lost(self, reached: Mapping[int, VBucketOffset]) -> int:
        """How many vbuckets are not in the history that their owner streams, whatever their seqno."""
        # After the reports: a node that ended a stream, for a failover, has said so before it reported.
        source, count = self._source, 0
        streams, done = source.vbucket_states(), source.as_of
        for vbucket in source.wanted:
            at, stream = reached.get(vbucket), streams.get(vbucket)
            if at is not None and at.seqno and vbucket not in done:
                there = stream is not None and stream.node == source.connection_of(vbucket)
                log = stream.failover_log if stream is not None and there else ()
                count += not has_place(log, at.history, at.seqno)
        return count


class ChangeStream(ShowsItself, Closing):
    """The changes of a bucket, batch by batch, from somewhere on and without an end.

    Made by :func:`cbframe.stream_bucket`; it runs until it is closed. One thread takes batches; the other
    methods and properties may be used from any thread.
    """

    def __init__(
        self,
        target: ScanSpec,
        options: BucketDataSourceOptions,
        names: Names,
        start: Checkpoint,
        *,
        on_rollback: OnRollback,
        batch_bytes: int,
        max_latency: float,
        group: Membership | None,
    ) -> None:
        core.warn_of_reference()
        self._target = target
        self._how = (options, names, on_rollback, batch_bytes, max_latency)
        self._on_rollback = on_rollback if callable(on_rollback) else None
        self._group = group
        self._last: ChangeBatch | None = None
        self._again = False
        self._undelivered: ChangeBatch | None = None
        self._tail: Tail | None = None
        self._closed = False
        self._paused = Switch()
        self._promises = options.only_persisted  # what it is worth is to be said, once there is a map
        self._maps: set[FieldPath] = set()
        self._earlier: BucketDataSourceStats | None = None  # of sources that were for other vbuckets
        self._rolled_back = 0
        self._connect(start, None if group is None else {})
        if group is not None:
            group.start(weakref.WeakMethod(self._position))

    def _connect(self, start: Checkpoint, epochs: Mapping[int, int] | None) -> None:
        """Begin to stream from there; of a member of a group, the vbuckets that it has."""
        target = self._target
        options, names, on_rollback, batch_bytes, max_latency = self._how
        self._bucket_uuid = start.bucket_uuid
        self._receiver = (PersistedChangeReceiver if options.only_persisted else ChangeReceiver)(
            start.offsets,
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

        resumed = {vbucket for vbucket, offset in start.offsets.items() if offset.seqno}
        self._directory = Directory(fetch_manifest, start.collection_names, resumed)
        if start.offsets and not start.collection_names:
            # Collections were created before the streams begin: they report the end of one by its id.
            self._directory.learn()
        self._rows = ChangeRows(self._receiver.schema, target, self._directory)
        self.schema = self._rows.schema
        source = target.data_source(
            self._receiver,
            options,
            vbuckets=target.vbuckets if epochs is None else tuple(epochs),
            bucket_uuid=start.bucket_uuid,
            first_map=first_map,
        )
        # A stream that nobody refers to any more ends its threads.
        self._end = weakref.finalize(self, source.close)
        if epochs is None or epochs:
            source.start()
        self._source = source  # not earlier: another thread may close it
        self._counted = source, self._earlier
        self._gatherer = Gatherer(
            self._receiver,
            self._source,
            self._rows,
            self._directory,
            start.offsets,
            batch_bytes=batch_bytes,
            max_latency=max_latency,
            paused=self._paused,
            maps=self._maps,
            epochs=epochs or {},
        )
        if self._closed:
            self._source.close()  # another thread has closed the one before

    def __repr__(self) -> str:
        total = self.stats.total
        counts = f"{total.documents:,} changes, {total.bytes_received / 1e6:,.1f} MB received"
        more = f", {unpersisted:,} not on all disks yet" if (unpersisted := self.unpersisted) else ""
        more += f", {self._rolled_back:,} rollbacks" if self._rolled_back else ""
        if self.transaction_records:
            more += f", {self.transaction_records:,} changes of transaction records left out"
        return f"<ChangeStream of {self._target.bucket!r}, {self.state}: {counts}{more}>"

    # -- batches

    def __iter__(self) -> Self:
        """Begin to iterate; the last batch is delivered again, unless it was acknowledged.

        A loop that was left in the middle of a batch has not consumed it.
        """
        self._again = self._last is not None
        return self

    @public
    def __next__(self) -> ChangeBatch:
        """The next batch; the one before is acknowledged."""
        if self._last is not None:
            if not self._again:
                self.ack(self._last)
            elif not self._closed:
                self._again = False
                return self._last
        if self._closed:
            raise StopIteration
        batch = self._next(None)
        if batch is None:
            raise StopIteration
        self._last = batch
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
            The stream cannot go on. What came before was delivered.
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
        batch = self._undelivered or self._gathered(timeout)
        if self._promises and (found := self._source.map) is not None:
            self._promises = False
            warn_of_few_copies(found)
        if batch is None:
            if self._source.finished and not self._paused and not self._closed:
                try:
                    self._source.wait(0)
                except ReadCancelledError:
                    # Another thread may have closed it meanwhile.
                    if not self._closed:
                        raise
            return None
        if batch is not self._undelivered:
            self._rolled_back += len(batch.rollbacks)
        if self._on_rollback is not None and batch.rollbacks:
            # If the function raises, the batch has not been delivered.
            self._undelivered = batch
            for rollback in batch.rollbacks:
                self._on_rollback(rollback)
            self._undelivered = None
        return batch

    def _gathered(self, timeout: float | None) -> ChangeBatch | None:
        """The next batch; None if there is none within `timeout` seconds, or nothing more will come."""
        deadline = inf if timeout is None else monotonic() + timeout
        group, turn = self._group, POLL if self._group is None else min(POLL, self._group.lease / 16)
        while True:
            if self._closed:
                self._paused.off()  # another thread may have paused it after that
            if group is None or self._closed or self._may_go_on(group):
                batch, left = self._gatherer.turn(deadline)
                if batch is not None or left is None:
                    return batch
                self._receiver.wait(min(left, turn))
            elif (left := deadline - monotonic()) <= 0:
                return None
            else:
                group.left.wait(min(left, turn))

    def _may_go_on(self, group: Membership) -> bool:
        """Whether the lease is fresh, and what is due was given up and taken."""
        fresh, waited = group.lives(self._position), group.due
        if not fresh or waited is None:
            return fresh
        if self._gatherer.idle:
            return group.settle(self._position(), self._hand_over)
        if waited < 10 * group.lease:
            return True  # most consumers acknowledge all that they have now and then
        raise GroupError(
            f"other members have waited {waited:.0f} s for vbuckets whose batches are not acknowledged",
            hint="acknowledge all batches now and then, before you ask for more",
        )

    def _hand_over(self, after: Position) -> None:
        """Stream the vbuckets that this member has now."""
        assert self._group is not None
        epochs, stored = after
        before, mine = self._position()
        taken = {vb: epoch for vb, epoch in epochs.items() if before.get(vb) != epoch}
        positions = {**stored.offsets, **{vb: at for vb, at in mine.offsets.items() if vb not in taken}}
        if taken and self._group.on_assigned is not None:
            positions |= self._group.on_assigned(taken) or {}
        start = replace(
            mine,
            offsets={vb: positions[vb] for vb in epochs if vb in positions},
            collection_names={**stored.collection_names, **mine.collection_names},
        )
        self._end.detach()
        self._source.close()
        self._earlier = self.stats
        by_key, names = self._rows.by_key, self._how[1]
        names.map = self._source.map or names.map
        self._connect(start, epochs)
        self._rows.by_key = by_key  # it counts

    def ack(self, batch: ChangeBatch) -> None:
        """Say that a batch is consumed, and all that were delivered before it.

        Its bytes no longer count against the window of the connection, and :attr:`checkpoint` is after it.
        Also of a stream that is closed: then :attr:`checkpoint` is where the next one continues.
        """
        self._gatherer.ack(batch)
        if self._last is not None and not self._gatherer.awaits(self._last):
            self._last = None

    def release(self, batch: ChangeBatch) -> None:
        """Say that the bytes of a batch take no memory any more, but that it is not consumed yet.

        For sinks that put rows down as they come, and store a checkpoint now and then: the node may send
        more, and :attr:`checkpoint` stays where it is.
        """
        self._gatherer.release(batch)

    # -- control

    def pause(self) -> None:
        """Give out nothing, and acknowledge nothing: the nodes stop sending when their windows are full."""
        self._paused.on()

    def resume(self) -> None:
        """The opposite of :meth:`pause`."""
        self._paused.off()
        self._receiver.wake()

    @public
    def close(self) -> None:
        """End all threads and sockets, and wait for them. The next stream delivers what was not acknowledged.

        A member of a group commits, and leaves its vbuckets to others; GroupError if that was not possible.
        After that :meth:`poll` and :meth:`to_pandas` raise, iterating ends, and :meth:`to_parquet` writes
        what had come. :meth:`ack`, :attr:`checkpoint`, :attr:`stats` and :attr:`errors` work as before.
        """
        self._closed = True
        self._paused.off()
        self._end.detach()
        # It waits for its threads, also if another thread has begun to close it.
        self._source.close()
        self._receiver.wake()
        if self._group is not None:
            self._group.leave(self._position())

    @property
    def state(self) -> str:
        """``connecting``, ``streaming``, ``paused``, ``failed``, ``finished``, ``closed`` or ``waiting``."""
        if self._closed:
            return "closed"
        if self._group is not None and not self.epochs:
            return "waiting"
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
        chosen = self.epochs or self._target.vbuckets
        wanted = found.vbuckets if chosen is None else len(chosen)
        running = sum(each.state == "running" for each in self._source.vbucket_states().values())
        return "streaming" if running + len(self._source.as_of) >= wanted else "connecting"

    @property
    def source(self) -> BucketDataSource:
        """What it streams with: counters, states of vbuckets, the cluster map."""
        return self._source

    @property
    def stats(self) -> BucketDataSourceStats:
        """Counters at this moment, since the stream was made: of all that the nodes sent."""
        source, earlier = self._counted
        return source.stats() if earlier is None else source.stats() + earlier

    @property
    def unpersisted(self) -> int:
        """How many changes have come, and are held back until they are on all disks (`only_persisted`)."""
        return self._receiver.held if isinstance(self._receiver, PersistedChangeReceiver) else 0

    @property
    def errors(self) -> tuple[CbframeError, ...]:
        """The last problems, newest last; what could be healed was healed."""
        return tuple(self._receiver.errors)

    @property
    def checkpoint(self) -> Checkpoint:
        """How far the consumer is: after everything that was acknowledged."""
        return self._position()[1]

    def _position(self) -> Position:
        target, gatherer, found = self._target, self._gatherer, self._source.map
        assert isinstance(target.key_pattern, str | None), "stream_bucket() takes no other"
        checkpoint = Checkpoint(
            target.bucket,
            self._bucket_uuid if found is None else found.uuid,
            dict(sorted(gatherer.acked.items())),
            target.scope,
            target.named,
            target.key_prefix,
            self._directory.known,
            target.transaction_records,
            target.key_pattern,
        )
        return gatherer.epochs, checkpoint

    @property
    def epochs(self) -> dict[int, int]:
        """Of a member of a group: its vbuckets, each with its epoch, which ascends with each owner."""
        return dict(self._gatherer.epochs)

    @public
    def commit(self) -> None:
        """Write :attr:`checkpoint` into the folder of the group, which also happens eight times a lease.

        Raises
        ------
        GroupError
            The lease has ended, and other members have the vbuckets; or the folder cannot be reached.
        """
        if self._group is None:
            raise ConfigurationError("the stream is of no group", hint="checkpoint.save() writes a file")
        if self._closed:
            raise _closed()
        self._group.commit(self._position())

    def checkpoint_after(self, batch: ChangeBatch) -> Checkpoint:
        """What :attr:`checkpoint` will be once `batch` is acknowledged: to be stored together with it."""
        return self.checkpoint.updated(self._gatherer.after(batch))

    @property
    def transaction_records(self) -> int:
        """How many changes of records of transactions were left out: keys that begin with ``_txn:``."""
        return self._rows.by_key.transaction_records

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
        self._refuse_group()
        if self._closed:
            raise _closed()
        if self._tail is None:
            self._tail = Tail(self.schema, monotonic)
        self._catch_up(self._tail, rows, limit)
        return self._tail.to_pandas(age, rows, columns=columns, dtype_backend=dtype_backend)

    def _catch_up(self, tail: Tail, rows: int, timeout: float | None) -> None:
        """Put every change that the bucket has now into the tail."""
        until = None if timeout is None else monotonic() + timeout
        high = HighSeqnos(self._source)
        while not self._paused:
            missing = high.missing(self._gatherer.delivered)
            if missing == 0:
                return
            left = POLL if high.known else _POLL_SOON
            if until is not None:
                if monotonic() >= until:
                    raise _not_caught_up(missing, timeout)
                left = min(left, until - monotonic())
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

        A file appears whole or not at all, and holds the checkpoint after its last row: whatever ends
        the process, nothing is lost or written twice if the next one goes on with
        ``start=Checkpoint.load(folder)``.

        Rows are those of :attr:`ChangeBatch.record_batch`. Two more kinds keep the log complete, both
        without key and value: ``rollback``, all rows of that vbucket before it with a larger seqno are
        to be deleted; and ``drop``, all rows of that vbucket and collection with a smaller seqno are.

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
        self._refuse_group()
        limit = None if seconds is None else seconds_of("seconds", seconds)
        check_compression(compression)
        place = Path(folder).expanduser()
        log = ChangeLog(self, place, Rotation.of(rotate), compression, poll=self._next)
        return log.run(limit)

    def _refuse_group(self) -> None:
        if self._group is not None:
            hint = "take its batches one by one"
            raise ConfigurationError("the vbuckets of a member of a group come and go", hint=hint)


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
        hint="no change is lost: call it again, or give a larger timeout=; stream.errors has the failures",
    )


@public
def stream_bucket(
    conn: ServerURLs | Connectable,
    bucket: str | None = None,
    *,
    auth: Any = None,
    tls: TLSLike = None,
    network: str = "auto",
    scope: str | None = None,
    collections: str | Iterable[str] | None = None,
    keys: KeyForm = "text",
    key_prefix: str | bytes | None = None,
    key_pattern: str | None = None,
    vbuckets: Iterable[int] | None = None,
    metadata: str | Iterable[str] = ("key", "vbucket", "seqno", "scope", "collection"),
    start: Literal["beginning", "now"] | Checkpoint | AsOf = "beginning",
    on_rollback: OnRollback = "emit",
    only_persisted: bool = False,
    batch_bytes: int | None = None,
    max_latency: float = 0.25,
    buffer_bytes: int | None = None,
    transaction_records: Exclusion = "drop",
    event_log: EventLogLike | None = None,
    group: str | os.PathLike[str] | ConsumerGroup | None = None,
    member: int | None = None,
    members: int | None = None,
    options: BucketDataSourceOptions | None = None,
) -> ChangeStream:
    """Stream the changes of a bucket: what is there from `start` on, and whatever comes later.

    Every change comes at least once, per vbucket in the order in which it happened. Of several changes
    of one document in quick succession, the server may send the last only. A consumer that stores the
    checkpoint together with the data, in one transaction (:meth:`ChangeStream.checkpoint_after`), gets every
    change exactly once. :meth:`ChangeStream.to_parquet` does that with files.

    A document whose expiry has passed is still a document here: no change reports that, until the server
    removes it.

    Cut connections, rebalances and failovers are followed. What no further attempt can heal is raised
    when the next batch is asked for.

    Parameters
    ----------
    conn, bucket, auth, tls, network, scope, collections, vbuckets, event_log
        As for :func:`cbframe.scan_bucket`. ``collections="visible"`` is looked up once: what the user may
        read later is not in the stream, and where the user loses the right to one of them, the stream ends
        with an :class:`~cbframe.AccessError`. The checkpoint has the names, and goes with no others.
    keys
        As for :func:`cbframe.scan_bucket`: ``_cb_key`` has this form in every batch.
    key_prefix
        Give out only documents whose key begins so.
    key_pattern
        Give out only documents whose key matches a glob, as for :func:`cbframe.scan_bucket`.
    metadata
        Names as for :func:`cbframe.scan_bucket`; each becomes a column ``_cb_NAME``. Key, vbucket and seqno
        are always there.
    start
        ``"beginning"``: every document that exists, then what changes. ``"now"``: only what changes from
        now on; all nodes are asked where they are before this returns. Or a :class:`Checkpoint`, or the
        ``as_of`` of a read of the same scope and collections: then what changed since.
    on_rollback
        What is done when the server rolls back changes that were delivered, after a failover that lost
        some. ``"emit"``: the next batch has it in ``rollbacks``, and the stream goes on at the end of the
        last snapshot before. ``"restart"``: the same, but the vbucket is streamed again from where the
        stream began; for those who keep only the newest version of a document. ``"raise"``: the stream ends
        with a :class:`~cbframe.RollbackError`. Or a function, called with each :class:`Rollback` before the
        batch that has it is delivered; otherwise as ``"emit"``.
    only_persisted
        Give out nothing that is not on the disks of the active copy and of all replicas of its vbucket, so
        that no failover takes it back (:mod:`cbframe.dcp.persistence` has the limits). What waits counts
        against the window. An error if no copy of a vbucket has got on for ``recovery_timeout`` of `options`,
        and with ephemeral buckets. Without replicas, a warning says that it is for restarts only.
        :attr:`ChangeStream.unpersisted` counts what waits. ``stats`` are of what the nodes send: they count
        that, too, and rollbacks of it, which no batch has.
    batch_bytes
        A batch is delivered when it has about this many bytes on the wire (by default 4 MiB, or a quarter of
        the window),
    max_latency
        or when its first change arrived this many seconds ago.
    buffer_bytes
        Flow-control window of each node's connection: what is not acknowledged is never more than that
        for each node, plus one item. By default that of `options`, but no more than 16 MiB. 0, which turns
        flow control off in reads, is refused: without a window nothing bounds what waits for the consumer.
    transaction_records
        As for :func:`cbframe.scan_bucket`; :attr:`ChangeStream.transaction_records` counts what is left out.
    group
        Share the vbuckets with all other streams of this group: a folder that all of them reach, or a
        :class:`ConsumerGroup`. Each has an equal share, which changes when members come, go or die. The
        folder keeps checkpoints of what is acknowledged; `start` is where the first member begins.
        Vbuckets are handed over when all that was delivered is acknowledged, and a batch is asked for.
    member, members
        Stream a fixed share of the vbuckets: that of one member of several, counted from 0, as pods of
        a StatefulSet are. No two may have one number, and each keeps its own checkpoint; for another number
        of members, put them together: ``one.updated(other.offsets)``.
    options
        Finer settings of the connections. By default streams go on for five minutes while all attempts
        fail (``recovery_timeout``).

    Returns
    -------
    ChangeStream
        Iterate over it, or ask it with ``poll(timeout)``; use it in a ``with`` block.

    Raises
    ------
    ConfigurationError
        An argument is invalid, or the checkpoint is of another bucket.
    GroupError
        The folder of the group cannot be reached.
    CbframeError
        ``start="now"``, or the names of collections, could not be looked up.

    Examples
    --------
    >>> import cbframe
    >>> with cbframe.LocalCluster(vbuckets=64) as cluster:
    ...     with cbframe.stream_bucket(cluster, start="now") as stream:
    ...         _ = cluster.upsert("airline_10", {"name": "40-Mile Air"})
    ...         batch = next(stream)
    >>> batch.to_pandas().loc["airline_10", "name"]
    '40-Mile Air'
    """
    if not callable(on_rollback) and on_rollback not in _ON_ROLLBACK:
        raise ConfigurationError(
            f"on_rollback={on_rollback!r}", hint=f"choose from: {', '.join(_ON_ROLLBACK)}, or give a function"
        )
    arguments = dict(locals())
    for name in ("start", "on_rollback", "max_latency", "group", "member", "members"):
        del arguments[name]
    if member is not None or members is not None:
        if member is None or members is None:
            raise ConfigurationError(
                f"member={member}, members={members}: one without the other", hint="give both"
            )
        member, members = positive("member", member, least=0), positive("members", members)
        if member >= members or group is not None:
            hint = (
                "members count from 0" if group is None else "leave them out: members of a group come and go"
            )
            raise ConfigurationError(f"member={member}, members={members}", hint=hint)
    if group is not None and not isinstance(group, ConsumerGroup):
        group = ConsumerGroup(group)
    if options is None:
        arguments["options"] = BucketDataSourceOptions(recovery_timeout=RECOVERY)
    spec = ScanSpec.of(**arguments)
    if isinstance(key_pattern, re.Pattern):
        raise ConfigurationError("key_pattern= is a regular expression", hint="give a stream a glob")
    max_latency = not_negative("max_latency", max_latency)
    options = spec.options
    if options.seq_end is not None:
        raise ConfigurationError(
            "a change stream has no end", hint="leave seq_end out; scan_bucket() has one"
        )
    if options.out_of_order:
        raise ConfigurationError(
            "a change stream cannot continue after out-of-order snapshots", hint="leave out_of_order out"
        )
    window = options.feed_buffer_size_bytes
    if buffer_bytes is None:
        window = min(window, _WINDOW)
    batch_bytes = spec.batch_bytes or max(1, min(_BATCH, window // 4))
    _check_window(batch_bytes, window)
    options = replace(
        options,
        endless_retry=False,
        receive_latency=min(max_latency, options.receive_latency),
        feed_buffer_size_bytes=window,
        # What a node thread hands over at a time is at most this.
        receive_buffer_bytes=min(options.receive_buffer_bytes, max(64 * 1024, batch_bytes)),
        include_xattrs=options.include_xattrs or "xattrs" in spec.metadata,
    )
    names = Names(spec, options)
    options = names.resolve_collections()
    spec = names.target
    membership = None
    if members is not None or group is not None:
        names.map = now = names.map or described(spec)[0]
        vbuckets = tuple(range(now.vbuckets)) if spec.vbuckets is None else spec.vbuckets
        if group is not None:
            begin = partial(_beginning, start, spec, options, now.uuid)
            membership = Membership(group, vbuckets, begin)
        elif members is not None:
            spec = replace(spec, vbuckets=tuple(vb for vb in vbuckets if vb % members == member))
    return ChangeStream(
        spec,
        options,
        names,
        _checkpoint(start, spec, options) if membership is None else membership.checkpoint,
        on_rollback=on_rollback,
        batch_bytes=batch_bytes,
        max_latency=max_latency,
        group=membership,
    )


def _check_window(batch_bytes: int, window: int) -> None:
    if window < 1:
        raise ConfigurationError(
            "a change stream needs flow control",
            hint="without it, nothing limits what nodes send: set buffer_bytes",
        )
    if window < 2 * batch_bytes:
        raise ConfigurationError(
            f"batch_bytes={batch_bytes} is more than half of the window of {window} bytes",
            hint="nodes stop sending before such a batch is complete: raise buffer_bytes",
        )


def _checkpoint(start: object, target: ScanSpec, options: BucketDataSourceOptions) -> Checkpoint:
    """Where streams begin, and the bucket that this is about."""
    match start:
        case AsOf():
            return Checkpoint.after(start, target.bucket)
        case Checkpoint():
            _check_checkpoint(start, target)
            return start
        case "beginning":
            return Checkpoint(target.bucket, "", {})
        case "now":
            now = current_positions(
                target.server_urls,
                target.bucket,
                target.vbuckets,
                target.auth,
                options,
                tls=target.tls,
                network=target.network,
            )
            return Checkpoint(target.bucket, now.map.uuid, now.positions)
    raise ConfigurationError(
        f"start={start!r}", hint='"beginning", "now" or a Checkpoint: Checkpoint.load(path) reads one'
    )


def _beginning(
    start: object, spec: ScanSpec, options: BucketDataSourceOptions, uuid: str, there: Checkpoint | None
) -> Checkpoint:
    """Where a group is; or begins, with what its members stream."""
    if there is not None:
        try:
            _check_checkpoint(there, spec)
        except ConfigurationError as exc:
            exc.hint = _ANOTHER_GROUP
            raise
    found = there or _checkpoint(start, spec, options)
    if (found.bucket_uuid or uuid) != uuid:
        hint = "start without it" if there is None else _ANOTHER_GROUP
        raise ConfigurationError("the checkpoint is of another bucket of that name", hint=hint)
    if there is not None:
        return there
    assert isinstance(spec.key_pattern, str | None), "stream_bucket() takes no other"
    return replace(
        found,
        bucket_uuid=uuid,
        scope=spec.scope,
        collections=spec.named,
        key_prefix=spec.key_prefix,
        transaction_records=spec.transaction_records,
        key_pattern=spec.key_pattern,
    )


def _check_checkpoint(start: Checkpoint, target: ScanSpec) -> None:
    if start.bucket != target.bucket:
        raise ConfigurationError(
            f"the checkpoint is of bucket {start.bucket!r}, not of {target.bucket!r}",
            hint="take the one that belongs to this bucket, or start again",
        )
    for name in ("scope", "collections", "key_prefix", "key_pattern", "transaction_records"):
        before, now = getattr(start, name), getattr(target, name)
        unknown = name == "transaction_records" and before is None  # as of 0.1.0, and of a read
        if before != now and not unknown:
            choice = f"another {name}" if name.startswith("key_") else f"{name}={before!r}"
            if name == "collections":
                choice += difference(before, now)
            raise ConfigurationError(
                f"the checkpoint is of a stream with {choice}",
                hint="documents of other choices were not read so far: make the same, or start again",
            )
