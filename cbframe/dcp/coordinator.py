"""Who streams what from where: events in, instructions out.

No socket, no thread and no clock: `now` comes with each event, in seconds of any monotonic clock.
The supervisor's thread (:mod:`cbframe.dcp.runtime`) feeds events and carries instructions out.

A vbucket goes from *pending* (wanted, not asked for) to *asked* (of its owner) to *done*. What
fails makes it pending again, after a wait. A bounded source finishes when all are done; an unbounded
one never does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum

from cbframe.cluster.backoff import Backoff
from cbframe.cluster.map import ClusterMap
from cbframe.dcp.plan import (
    Event,
    Fail,
    FetchMap,
    Finish,
    Instruction,
    Kicked,
    MapFailed,
    MapFetched,
    NodeDown,
    NodeReady,
    NodeSampled,
    OpenStreams,
    Position,
    SampleNode,
    Started,
    StartNode,
    StreamEnded,
    StreamRefused,
    StreamRolledBack,
    Tick,
)
from cbframe.errors import (
    AccessError,
    AllServerURLsConnectBucketError,
    CbframeError,
    ClusterMapError,
    ConfigurationError,
    ProtocolError,
    StreamError,
)
from cbframe.options import BucketDataSourceOptions
from cbframe.wire.constants import MAX_SEQNO, Status, StreamEndReason

_MAX_PROTOCOL_ERRORS = 3
"""Connections of one node that may end in broken bytes; then it is no accident."""


class NodeState(Enum):
    STARTING = "starting"
    READY = "ready"
    WAITING = "waiting"


@dataclass(slots=True)
class _Node:
    backoff: Backoff
    state: NodeState = NodeState.WAITING
    retry_at: float = 0.0
    seqnos: Mapping[int, int] = field(default_factory=dict)
    sampling: bool = False
    protocol_errors: int = 0


@dataclass(slots=True)
class _VBucket:
    backoff: Backoff
    node: str | None = None
    retry_at: float = 0.0
    attempts: int = 0
    """How often it was asked for."""
    stale: bool = False
    """Asked for before: the owner's high seqno must be looked at again."""


class Coordinator:
    """The logic of a data source over all nodes.

    Parameters
    ----------
    vbuckets
        Wanted vbuckets; None for all of the bucket.
    options
        Back-off, ends and timeouts.
    """

    def __init__(self, vbuckets: Iterable[int] | None, options: BucketDataSourceOptions) -> None:
        self._wanted = None if vbuckets is None else sorted(set(vbuckets))
        self._options = options
        self._bounded = options.seq_end is not None
        self._pin_now = options.seq_end == "now"
        self._map: ClusterMap | None = None
        self._nodes: dict[str, _Node] = {}
        self._vbuckets: dict[int, _VBucket] = {}
        self._pending: set[int] = set()
        self._unpinned: set[int] = set()
        self.done: dict[int, Position] = {}
        """Finished vbuckets."""
        self.ends: dict[int, int] = {}
        """Where each vbucket's stream may end, as pinned at the start."""
        self.shortened: dict[int, int] = {}
        """Vbuckets whose history lost its end meanwhile, with the end that they have now."""
        self._fetching = False
        self._map_backoff = self._backoff("cluster_manager")
        self._map_due: float | None = None
        self._started_at = 0.0
        self._progress_at: float | None = None
        self._last_error: CbframeError | None = None
        self._over = False

    @property
    def map(self) -> ClusterMap | None:
        """The newest cluster map."""
        return self._map

    @property
    def vbuckets(self) -> int:
        """How many vbuckets are wanted; 0 until the first map is there."""
        return len(self._vbuckets)

    def next_wakeup(self) -> float | None:
        """When a `Tick` is due, in the clock of `now`; None if only events matter."""
        times = [node.retry_at for node in self._nodes.values() if node.state is NodeState.WAITING]
        if self._map_due is not None:
            times.append(self._map_due)
        times += [t for vb in self._pending if (t := self._vbuckets[vb].retry_at) > 0]
        if self._bounded and not self._over and self._progress_at is None:
            times.append(self._started_at + self._options.connect_timeout)
        return min(times, default=None)

    def handle(self, event: Event, now: float) -> list[Instruction]:
        """Take an event and say what is to be done."""
        if self._over:
            return []
        out: list[Instruction] = []
        match event:
            case Started():
                self._started_at = now
                self._want_map(now, out)
            case MapFetched(map=new):
                self._on_map(new, out)
            case MapFailed(error=error):
                self._fetching = False
                self._on_failure(error, now, out)
                self._map_due = now + self._map_backoff.next_delay()
            case NodeReady() | NodeSampled():
                self._on_seqnos(event)
            case NodeDown():
                self._on_down(event, now, out)
            case StreamEnded():
                self._on_ended(event, now, out)
            case StreamRefused():
                self._on_refused(event, now, out)
            case StreamRolledBack(vbucket=vb):
                self._retry(vb, now, wait=False)
            case Kicked():
                self._want_map(now, out)
            case Tick():
                pass
        if not self._over:
            self._plan(now, out)
        return out

    # -- events

    def _on_map(self, new: ClusterMap, out: list[Instruction]) -> None:
        self._fetching = False
        self._map_due = None
        old = self._map
        if old is not None and new.vbuckets != old.vbuckets:
            self._fail(
                ClusterMapError(
                    f"bucket {new.bucket!r} now has {new.vbuckets} vbuckets instead of {old.vbuckets}",
                    hint="the bucket was deleted and created anew: start over",
                ),
                out,
            )
            return
        if old is not None and new.uuid and old.uuid and new.uuid != old.uuid:
            self._fail(
                ClusterMapError(
                    f"bucket {new.bucket!r} was replaced by another of the same name",
                    hint="start over: nothing that was read before belongs to the new bucket",
                ),
                out,
            )
            return
        if old is None:
            self._begin(new, out)
        elif old.newer_than(new):
            return
        self._map = new

    def _begin(self, new: ClusterMap, out: list[Instruction]) -> None:
        wanted = range(new.vbuckets) if self._wanted is None else self._wanted
        bad = [vb for vb in wanted if not 0 <= vb < new.vbuckets]
        if bad:
            self._fail(
                ConfigurationError(
                    f"vbucket {bad[0]} does not exist: bucket {new.bucket!r} has {new.vbuckets} vbuckets"
                ),
                out,
            )
            return
        self._vbuckets = {vb: _VBucket(self._backoff("data_manager")) for vb in wanted}
        self._pending = set(wanted)
        if self._pin_now:
            self._unpinned = set(wanted)
        elif isinstance(self._options.seq_end, Mapping):
            self.ends = {vb: self._options.seq_end.get(vb, MAX_SEQNO) for vb in wanted}
        if not self._vbuckets:
            self._finish(out)

    def _on_seqnos(self, event: NodeReady | NodeSampled) -> None:
        node = self._nodes.get(event.node)
        if node is None:
            return
        node.seqnos = event.seqnos
        node.sampling = False
        if isinstance(event, NodeReady):
            node.state = NodeState.READY
            node.backoff.reset()
        for vb in self._pending:
            if self._owner(vb) == event.node:
                self._vbuckets[vb].stale = False

    def _on_down(self, event: NodeDown, now: float, out: list[Instruction]) -> None:
        node = self._nodes.get(event.node)
        if node is None:
            return
        if event.progressed:
            self._progress_at = now
        if isinstance(event.error, ProtocolError):
            node.protocol_errors += 1
            if node.protocol_errors >= _MAX_PROTOCOL_ERRORS:
                event.error.permanent = True
        node.state = NodeState.WAITING
        node.sampling = False
        node.retry_at = now + node.backoff.next_delay()
        for vb, vbucket in self._vbuckets.items():
            if vbucket.node == event.node and vb not in self.done:
                vbucket.node = None
                vbucket.stale = True
                self._pending.add(vb)
        self._on_failure(event.error, now, out)
        if not self._over:
            self._want_map(now, out)

    def _on_ended(self, event: StreamEnded, now: float, out: list[Instruction]) -> None:
        vb, reason = event.vbucket, event.reason
        if reason in (StreamEndReason.OK, StreamEndReason.FILTER_EMPTY):
            self._progress_at = now
            if self._bounded or reason == StreamEndReason.FILTER_EMPTY:
                self._done(vb, event.position, out)
            else:
                self._retry(vb, now)
            return
        if reason == StreamEndReason.LOST_PRIVILEGES:
            self._on_failure(
                AccessError(
                    "the user lost the privilege to read this vbucket's collections",
                    node=event.node,
                    vbucket=vb,
                ),
                now,
                out,
            )
            self._retry(vb, now)
            return
        if reason == StreamEndReason.STATE_CHANGED:
            self._want_map(now, out)
        else:
            name = StreamEndReason(reason).name if reason in list(StreamEndReason) else str(reason)
            self._on_failure(
                StreamError(f"the server ended the stream: {name}", node=event.node, vbucket=vb), now, out
            )
        self._retry(vb, now, wait=reason != StreamEndReason.ROLLBACK)

    def _on_refused(self, event: StreamRefused, now: float, out: list[Instruction]) -> None:
        status = event.status
        error = StreamError(
            f"the stream was refused ({Status.describe(status)})", node=event.node, vbucket=event.vbucket
        )
        if status in (Status.UNKNOWN_COLLECTION, Status.UNKNOWN_SCOPE, Status.EACCESS, Status.EINVAL):
            error.permanent = True
        elif status == Status.NOT_MY_VBUCKET:
            self._want_map(now, out)
        self._on_failure(error, now, out)
        self._retry(event.vbucket, now)

    # -- planning

    def _plan(self, now: float, out: list[Instruction]) -> None:
        """Ask for what is pending where it can be had."""
        if self._map is None:
            if not self._fetching and self._map_due is not None and now >= self._map_due:
                self._fetch(out)
            self._check_patience(now, out)
            return
        if self._map_due is not None and now >= self._map_due and not self._fetching:
            self._fetch(out)
        wanted: dict[str, list[int]] = {}
        ownerless = []
        for vb in self._pending:
            vbucket = self._vbuckets[vb]
            if vbucket.retry_at > now:
                continue
            vbucket.retry_at = 0.0
            owner = self._owner(vb)
            if owner is None:
                ownerless.append(vb)
            else:
                wanted.setdefault(owner, []).append(vb)
        if ownerless:
            self._last_error = ClusterMapError(
                f"the map names no owner for {len(ownerless)} of {self._map.vbuckets} vbuckets",
                vbucket=min(ownerless),
                hint="a node has failed and was not failed over: bring it back or fail it over",
            )
            self._want_map(now, out)
        unpinned = len(self._unpinned)
        for address, vbs in wanted.items():
            self._plan_node(address, sorted(vbs), now, out)
        if unpinned and not self._unpinned:
            # The last end was pinned just now: the nodes that were ready before may begin too.
            for address, vbs in wanted.items():
                self._plan_node(address, sorted(self._pending.intersection(vbs)), now, out)
        self._check_patience(now, out)

    def _plan_node(self, address: str, vbs: list[int], now: float, out: list[Instruction]) -> None:
        node = self._nodes.get(address)
        if node is None:
            node = self._nodes[address] = _Node(self._backoff("data_manager"))
        if node.state is NodeState.WAITING and now >= node.retry_at:
            node.state = NodeState.STARTING
            out.append(StartNode(address))
        if node.state is not NodeState.READY or node.sampling:
            return
        if self._pin_now and not self._is_sampled(address, node, vbs, now, out):
            return
        if self._unpinned:
            return  # all ends are pinned before the first stream: the read is as of one moment
        streams = []
        for vb in vbs:
            end = self._end_of(vb, node)
            if end == 0 and self._pin_now and not self._vbuckets[vb].attempts:
                self._done(vb, Position(0, 0), out)
                continue
            streams.append((vb, end))
            self._vbuckets[vb].node = address
            self._vbuckets[vb].attempts += 1
            self._pending.discard(vb)
        if streams:
            out.append(OpenStreams(address, tuple(streams)))

    def _is_sampled(
        self, address: str, node: _Node, vbs: list[int], now: float, out: list[Instruction]
    ) -> bool:
        """Whether the node's high seqnos are fresh enough for these vbuckets; if not, ask again.

        After its first try, a vbucket's owner or history may have changed. A history that lost its
        end would be waited for without end, so the node is asked how far it goes now.
        """
        absent = [vb for vb in vbs if vb not in node.seqnos]
        for vb in absent:
            self._retry(vb, now)
        if absent:
            self._want_map(now, out)
        if absent or any(self._vbuckets[vb].stale for vb in vbs):
            node.sampling = True
            out.append(SampleNode(address))
            return False
        for vb in self._unpinned.intersection(vbs):
            self.ends[vb] = node.seqnos[vb]
            self._unpinned.discard(vb)
        return True

    def _end_of(self, vb: int, node: _Node) -> int:
        if not self._bounded:
            return MAX_SEQNO
        end = self.ends[vb]
        if self._pin_now and node.seqnos[vb] < end:
            end = self.shortened[vb] = node.seqnos[vb]
        return end

    def _owner(self, vb: int) -> str | None:
        return None if self._map is None else self._map.node_of(vb)

    def _retry(self, vb: int, now: float, *, wait: bool = True) -> None:
        vbucket = self._vbuckets[vb]
        vbucket.node = None
        vbucket.stale = True
        delay = vbucket.backoff.next_delay()
        vbucket.retry_at = now + delay if wait else 0.0
        self._pending.add(vb)

    def _done(self, vb: int, position: Position, out: list[Instruction]) -> None:
        self.done[vb] = position
        self._pending.discard(vb)
        self._vbuckets[vb].node = None
        if len(self.done) == len(self._vbuckets):
            self._finish(out)

    def _finish(self, out: list[Instruction]) -> None:
        self._over = True
        out.append(Finish())

    # -- failure

    def _on_failure(self, error: CbframeError, now: float, out: list[Instruction]) -> None:
        self._last_error = error
        if not self._bounded:
            return
        if error.permanent:
            self._fail(error, out)
        elif self._progress_at is not None and now - self._progress_at > self._options.recovery_timeout:
            missing = len(self._vbuckets) - len(self.done)
            failure = StreamError(
                f"no progress for {self._options.recovery_timeout:g} s, {missing} of "
                f"{len(self._vbuckets)} vbuckets are not complete; last problem: {error}",
                node=error.node,
                hint="nothing was returned: a partial read is no read",
            )
            failure.__cause__ = error
            self._fail(failure, out)

    def _check_patience(self, now: float, out: list[Instruction]) -> None:
        """End a bounded source that never got to its first stream."""
        if not self._bounded or self._over or self._progress_at is not None:
            return
        if now - self._started_at < self._options.connect_timeout:
            return
        if not self._unpinned and self._map is not None:
            self._progress_at = now  # all nodes are connected; from here on streams have to progress
            return
        error = self._last_error
        if error is None:
            nodes = sorted(a for a, n in self._nodes.items() if n.state is not NodeState.READY)
            error = AllServerURLsConnectBucketError(
                nodes,
                f"no answer within {self._options.connect_timeout:g} s "
                f"from: {', '.join(nodes) or 'any seed'}",
            )
        self._fail(error, out)

    def _fail(self, error: CbframeError, out: list[Instruction]) -> None:
        self._over = True
        out.append(Fail(error))

    def _want_map(self, now: float, out: list[Instruction]) -> None:
        """Fetch a map now, or as soon as the wait between two fetches is over."""
        if self._fetching or self._map_due is not None:
            return
        if self._map is None:
            self._fetch(out)
        else:
            self._map_due = now + self._map_backoff.next_delay()

    def _fetch(self, out: list[Instruction]) -> None:
        self._fetching = True
        self._map_due = None
        out.append(FetchMap())

    def _backoff(self, prefix: str) -> Backoff:
        options = self._options
        return Backoff(
            getattr(options, f"{prefix}_sleep_init_ms"),
            getattr(options, f"{prefix}_backoff_factor"),
            getattr(options, f"{prefix}_sleep_max_ms"),
        )
