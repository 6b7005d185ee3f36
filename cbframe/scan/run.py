"""One run of a bounded read: from starting the source to its end, whatever is done with the documents."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Generator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Protocol, TypeVar

from cbframe import core
from cbframe.arrow.batcher import GatheringReceiver
from cbframe.arrow.spill import Progressed
from cbframe.cluster.cluster_map import ClusterMap
from cbframe.cluster.connection_string import parse_connection_string
from cbframe.dcp.ends import ReachedEnds
from cbframe.dcp.handover import monotonic
from cbframe.dcp.positions import Position
from cbframe.dcp.receiver import BlockReceiver, DeferringReceiver
from cbframe.dcp.source import BucketDataSource
from cbframe.dcp.stats import BucketDataSourceStats
from cbframe.errors import ReadTimeoutError
from cbframe.scan.asof import AsOf
from cbframe.scan.moment import Clock, Moment, utc_now
from cbframe.scan.names import Names
from cbframe.scan.progress import ScanProgress, Watcher, teller_of
from cbframe.scan.spec import Consistency, ScanSpec

_POLL = 0.05
"""Seconds between two looks at whether the source is over, while nothing arrives."""
_PROGRESS_EVERY = 0.1
_KEPT = 60.0
"""Seconds for which a connection is kept that nothing is said on: routers and nodes forget such ones."""
_GROWTH = 8
"""How many more vbuckets each time, until a look has found enough."""
_FEW = 8
"""Documents of a vbucket on average up to which a look takes all others next: they cost less than turns."""

T = TypeVar("T")


class Sink(Protocol[T]):
    """What takes the documents of a run."""

    def add(self, arrived: list[T]) -> None:
        """Take what came, in the order in which it came."""

    def has_enough(self) -> bool:
        """Whether no more is wanted."""

    def foresee(self, progress: Progressed) -> None:
        """Look at whether what is put on disk will fit there; several times a second."""


@dataclass(frozen=True, slots=True)
class Ran:
    """A run that reached its end."""

    as_of: AsOf  # what was read is as of this; empty if the run was only a look at some documents
    stats: BucketDataSourceStats  # counters of the connections
    map: ClusterMap  # the bucket as it was at the end
    moment: Moment | None  # by when documents have expired; None if none is left out for that
    node_time: int | None


class Run:
    """One run, not started yet."""

    def __init__(
        self,
        target: ScanSpec,
        *,
        bounded: bool = False,
        bucket_uuid: str = "",  # refuse a bucket of the name with another uuid; empty to take any
        ends: ReachedEnds | None = None,
        first_map: ClusterMap | None = None,  # the cluster map, where one was fetched a moment ago
        moment: Moment | None = None,
        ask_time: bool = False,  # ask the nodes what time it is, also where no document is left out for that
        skip_first_deletions: bool = False,
        clock: Clock = utc_now,  # tells the time of day
    ) -> None:
        self._began = monotonic()
        self._time = clock()
        self._clock = clock
        self._moment = moment
        self._bucket_uuid = bucket_uuid
        self._target = target
        self._timeout = target.timeout
        self._tell = teller_of(target.progress)
        self.source: BucketDataSource | None = None
        """What runs at present."""
        options = replace(
            target.options,
            feed_buffer_size_bytes=target.window(bounded=bounded),
            seq_end="now" if ends is None else ends,
            no_value=target.keys_only,
            consistency=_consistency(target),
            ask_time=ask_time or (target.expired == "drop" and moment is None),
            skip_first_deletions=skip_first_deletions or target.options.skip_first_deletions,
            include_xattrs=target.options.include_xattrs or "xattrs" in target.metadata,
        )
        self.names = Names(target, options)
        self._asked = ExitStack()
        """Closes the connection that was asked for names; it is asked again at the end."""
        weakref.finalize(self, self._asked.close)
        try:
            self.options = self.names.resolve_collections(self._asked)
        except BaseException:  # Ctrl-C, too: no connection is left open, and it is raised again
            self._asked.close()
            raise
        self._map = first_map or self.names.map

    @property
    def seconds(self) -> float:
        """Since it was made."""
        return monotonic() - self._began

    @property
    def moment(self) -> Callable[[], int] | None:
        """Tells by when documents have expired, in seconds since the epoch; None if none is left out."""
        return (lambda: self._decided().seconds) if self._target.expired == "drop" else None

    def _decided(self) -> Moment:
        """One moment for all of the read: that of the nodes, if the first to send documents reported one."""
        if self._moment is None:
            self._moment = Moment.of(None if self.source is None else self.source.node_time, self._clock)
        return self._moment

    def into(self, receiver: GatheringReceiver[T], sink: Sink[T]) -> Ran:
        """Run to the end."""
        core.warn_of_reference()
        try:
            ran = self._into(receiver, sink)
            if self.seconds < _KEPT:
                self.names.look_again()
            return ran
        finally:
            self.source = None
            self._asked.close()
            if isinstance(self._tell, Watcher):
                self._tell.end()

    def _into(self, receiver: GatheringReceiver[T], sink: Sink[T]) -> Ran:
        positions: dict[int, Position] = {}
        parts = _parts(self._target)
        vbuckets = next(parts)
        while True:
            source = self.source = self._source(vbuckets, receiver)
            if isinstance(self._tell, Watcher):
                self._tell.begin(source)
            # Not a with block: Ctrl-C may come while the threads are being started.
            try:
                source.start()
                # pyarrow imports pandas with its first array: while nodes are waited for, it costs no time.
                import_module("pandas")
                complete = self._gather(source, receiver, sink)
                if complete:
                    source.wait(0)
                positions |= source.as_of
                stats = source.stats()
                moment = self._decided() if self._target.expired == "drop" else None
            finally:
                source.close()
            self._map = found = source.map
            assert found is not None, "documents came"
            if not complete or sink.has_enough():
                break
            try:
                vbuckets = parts.send((found.vbuckets, stats.total.documents))
            except StopIteration:
                break
        # A look at some documents is not as of anything.
        as_of = AsOf.of(positions, self._time) if self._target.n_rows is None else AsOf({})
        return Ran(as_of, stats, found, moment, source.node_time)

    def _source(self, vbuckets: tuple[int, ...] | None, receiver: GatheringReceiver[T]) -> BucketDataSource:
        target = self._target
        assert isinstance(receiver, BlockReceiver | DeferringReceiver)
        return BucketDataSource(
            target.server_urls,
            "default",
            target.bucket,
            self._bucket_uuid,
            vbuckets,
            target.auth,
            receiver,
            self.options,
            tls_context=target.tls,
            network=target.network,
            first_map=self._map,
        )

    def _gather(self, source: BucketDataSource, receiver: GatheringReceiver[T], sink: Sink[T]) -> bool:
        """Take what comes, until the source is complete or there is enough; whether it is complete."""
        shown = self._began
        while True:
            finished = source.finished
            sink.add(receiver.take(0 if finished else _POLL))
            now = monotonic()
            if finished or now - shown >= _PROGRESS_EVERY:
                shown = now
                sink.foresee(source.progress)
                if self._tell is not None:
                    self._tell(_progress_of(source, now - self._began))
            if finished or sink.has_enough():
                return finished
            if self._timeout is not None and now - self._began > self._timeout:
                raise self._too_slow(source, receiver)

    def _too_slow(self, source: BucketDataSource, receiver: GatheringReceiver[T]) -> ReadTimeoutError:
        stats = source.stats()
        problem = receiver.last_error
        if problem is not None and not stats.total.documents:
            # It never got to its documents: what is in the way comes first.
            error = ReadTimeoutError(
                f"{problem.message}; the read was given up after {self._timeout:g} s",
                node=problem.node or _unfinished(source, self._target),
                vbucket=problem.vbucket,
                hint=problem.hint,
            )
            error.__cause__ = problem
            return error
        shown = "" if problem is None else f"; last problem: {problem.message}"
        error = ReadTimeoutError(
            f"the read is not complete after {self._timeout:g} s: "
            f"{stats.vbuckets_done} of {stats.vbuckets or '?'} vbuckets{shown}",
            node=_unfinished(source, self._target) or (None if problem is None else problem.node),
            hint="raise timeout=, or read fewer vbuckets or collections",
        )
        error.__cause__ = problem
        return error


def _consistency(target: ScanSpec) -> Consistency:
    """A look at some documents has no position that could be compared."""
    wanted = "strict" in (target.consistency, target.options.consistency)
    return "strict" if wanted and target.n_rows is None else "snapshot"


def _parts(target: ScanSpec) -> Generator[tuple[int, ...] | None, tuple[int, int], None]:
    """The vbuckets to read, one part after the other.

    It is sent how many vbuckets the bucket has, and how many documents came from the part before. All at
    once, but for a look at some documents: then a few at first, and more if they have too little.
    """
    if target.n_rows is None:
        yield target.vbuckets
        return
    part = (0,) if target.vbuckets is None else target.vbuckets[:1]
    total, documents = yield part
    left = tuple(range(1, total)) if target.vbuckets is None else target.vbuckets[1:]
    size = _GROWTH
    while left:
        if documents <= _FEW * len(part):
            size = len(left)
        part, left, size = left[:size], left[size:], size * _GROWTH
        _, documents = yield part


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


def _unfinished(source: BucketDataSource, target: ScanSpec) -> str:
    """Whom the read waits for: the owners of what is not complete, or the seeds."""
    found, done = source.map, source.as_of
    if found is None:
        return ", ".join(map(str, parse_connection_string(target.server_urls).seeds()))
    wanted = range(found.vbuckets) if target.vbuckets is None else target.vbuckets
    owners = {found.node_of(vb) or "without owner" for vb in wanted if vb not in done}
    return ", ".join(sorted(owners))
