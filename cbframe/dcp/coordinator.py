"""Who streams what from where: messages in, instructions out.

No socket, no thread and no clock: `now` comes with each message, in seconds of any monotonic clock. The
supervisor's thread (:mod:`cbframe.dcp.source`) passes messages and carries instructions out, so every
race of a cluster can be written down in a test as a list of messages.

A connection (:class:`NodeState`)::

    WAITING ──StartNode──▶ STARTING ──NodeReady──▶ READY
       ▲                      │                      │ left the cluster map: StopNode
       └──────NodeDown────────┴───────────┐          ▼
                                          └─── LEAVING ──NodeDown──▶ forgotten

A wanted vbucket (:class:`VBuckets`)::

    pending ──OpenStreams──▶ requested ──StreamEnded at its end──▶ done
       ▲                         │ ended early, refused, rolled back, connection lost
       └───────after a wait──────┘

A bounded source finishes when all vbuckets are done; an unbounded one never does.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Self

import numpy as np
import numpy.typing as npt

from cbframe.cluster.cluster_map import ClusterMap
from cbframe.dcp import messages
from cbframe.dcp.handshake import connections_at_most
from cbframe.dcp.maps import map_backoff
from cbframe.dcp.messages import address_of, connections_to
from cbframe.dcp.positions import Ends, VBucketOffset
from cbframe.dcp.stats import ClusterCounters
from cbframe.dcp.timers import Backoff
from cbframe.dcp.transport import TURNS
from cbframe.errors import (
    AccessError,
    AuthFailError,
    BucketNotFoundError,
    CbframeError,
    ClusterMapError,
    ProtocolError,
    ResourceError,
)
from cbframe.options import BucketDataSourceOptions
from cbframe.wire.constants import Status, StreamEndReason

_MAX_PROTOCOL_ERRORS = 3
"""Connections of one node that may end in broken bytes."""
_DONE = (StreamEndReason.OK, StreamEndReason.FILTER_EMPTY)
_NOT_NOW = (AccessError, AuthFailError, ResourceError)
"""What no further attempt heals, and what may be different when another map is needed."""
_ELSEWHERE = (Status.NOT_MY_VBUCKET, Status.CONFIG_ONLY, Status.NO_BUCKET, Status.BUCKET_PAUSED)
"""Refusals of a stream to which the cluster map has the answer."""
_CHANGES = 1_000_000
"""A node gets a further connection for each this many changes, with ``connections_per_node="auto"``."""
_QUICK_ROLLBACKS = 2
"""Rollbacks of one vbucket that are followed at once; a server that wants ever more is waited for."""


class NodeState(Enum):
    """Where a connection is in its life."""

    WAITING = "waiting"
    STARTING = "starting"
    READY = "ready"
    LEAVING = "leaving"


@dataclass(slots=True)
class _Connection:
    """A connection that was wanted at some time."""

    backoff: Backoff
    state: NodeState = NodeState.WAITING
    retry_at: float = 0.0
    seqnos: Mapping[int, int] = field(default_factory=dict)  # high seqnos, as last reported
    reports: int = 0  # how often they were reported
    sampling: bool = False  # they were asked for again, and have not come yet
    tried: bool = False  # one has ended: until then its turns have their own time-outs
    protocol_errors: int = 0

    def lost(self, error: CbframeError, now: float, *, progressed: bool) -> None:
        """The connection is over: wait before the next one."""
        if progressed:
            self.backoff.reset()
        if isinstance(error, ProtocolError):
            # Broken bytes again and again are no accident.
            self.protocol_errors += 1
            error.permanent |= self.protocol_errors >= _MAX_PROTOCOL_ERRORS
        self.state, self.tried, self.sampling = NodeState.WAITING, True, False
        self.retry_at = now + self.backoff.next_delay()


@dataclass(slots=True)
class _VBucket:
    """A wanted vbucket."""

    backoff: Backoff
    node: str | None = None  # who was asked for it
    retry_at: float = 0.0
    end: int = 0  # up to where it was requested
    attempts: int = 0  # how often it was requested
    rollbacks: int = 0
    stale: bool = False  # requested before: the owner's high seqno must be sampled again


class VBuckets:
    """The wanted vbuckets: pending, requested of a node, or done."""

    def __init__(self) -> None:
        self.records: dict[int, _VBucket] = {}
        self.pending: set[int] = set()
        self.done: dict[int, VBucketOffset] = {}
        self._unchecked: set[int] = set()
        """Done, and requested once more to see whether they still are."""

    @property
    def missing(self) -> int:
        """How many are not done, or not known to be still."""
        return len(self.records) - len(self.done) + len(self._unchecked)

    def all_tried(self) -> bool:
        """Whether there are some, and each was requested at least once."""
        tried = (record.attempts or vb in self.done for vb, record in self.records.items())
        return bool(self.records) and all(tried)

    def begin(self, wanted: Collection[int], options: BucketDataSourceOptions) -> None:
        self.records = {vb: _VBucket(node_backoff(options)) for vb in wanted}
        self.pending = set(wanted)

    def request(self, vb: int, node: str, end: int) -> None:
        """It is being requested of a node, up to `end`."""
        record = self.records[vb]
        record.node, record.end = node, end
        record.attempts += 1
        self.pending.discard(vb)

    def requested(self, node: str) -> list[tuple[int, int]]:
        """Those that were requested of a node and are not over, with their ends."""
        return [(vb, record.end) for vb, record in self.records.items() if record.node == node]

    def lost(self, node: str) -> None:
        """The connection to a node is over: what was requested of it is pending again."""
        for vb, _ in self.requested(node):
            self._give_back(vb)

    def retry(self, vb: int, now: float, *, wait: bool = True) -> None:
        """It failed, and is pending again: at once, or after a while."""
        record = self.records[vb]
        delay = record.backoff.next_delay()
        record.retry_at = now + delay if wait else 0.0
        self._give_back(vb)

    def finish(self, vb: int, position: VBucketOffset) -> None:
        """It is done, or still is: its stream was requested again from where it had ended."""
        before = self.done.get(vb)
        if before is not None:
            position = VBucketOffset.at(position.history, max(position.seqno, before.seqno))
        self.done[vb] = position
        self.pending.discard(vb)
        self._unchecked.discard(vb)
        self.records[vb].node = None

    def check_again(self, vbuckets: Collection[int]) -> bool:
        """Request what is done once more, from where it ended; whether there is anything to request."""
        done = {vb for vb in vbuckets if vb in self.done and self.done[vb].seqno} - self._unchecked
        self._unchecked |= done
        for vb in done:
            self.records[vb].retry_at = 0.0
            self._give_back(vb)
        return bool(done)

    def rolled_back(self, vb: int) -> int:
        """It was rolled back, and is not done any more; how often that has happened to it."""
        self.done.pop(vb, None)
        self._unchecked.discard(vb)
        self.records[vb].rollbacks += 1
        return self.records[vb].rollbacks

    def _give_back(self, vb: int) -> None:
        record = self.records[vb]
        record.node, record.stale = None, True
        self.pending.add(vb)


def node_backoff(options: BucketDataSourceOptions) -> Backoff:
    """The waits for a data node or one of its streams."""
    return Backoff(
        options.data_manager_sleep_init_ms,
        options.data_manager_backoff_factor,
        options.data_manager_sleep_max_ms,
    )


@dataclass(frozen=True, slots=True, eq=False)
class Placement:
    """Which connection each vbucket belongs to."""

    connections: tuple[str, ...]  # their names, in the order of the nodes
    owner: npt.NDArray[np.int16]  # int16, by vbucket: index into `connections`, −1 while no node has it

    @classmethod
    def of(
        cls,
        found: ClusterMap,
        counts: Mapping[str, int],  # connections to each node, where there are several
        wanted: Collection[int],  # the vbuckets that count
        before: Self | None,  # a vbucket whose node is the same stays where it was,
        resized: str | None,  # but for those of this node
    ) -> Self:
        """The vbuckets of each node, divided evenly among its connections."""
        if not counts:
            return cls(found.nodes, found.active)
        names = [connections_to(address, counts.get(address, 1)) for address in found.nodes]
        connections = tuple(name for each in names for name in each)
        index = {name: number for number, name in enumerate(connections)}
        owner = np.full(found.vbuckets, -1, np.int16)
        loads = dict.fromkeys(connections, 0)
        for vb in sorted(wanted):
            last = None if before is None else before.connection_of(vb)
            if last in index and resized != address_of(last) == found.node_of(vb):
                owner[vb] = index[last]
                loads[last] += 1
        for vb in sorted(wanted):
            node = int(found.active[vb])
            if owner[vb] < 0 <= node:
                least = min(names[node], key=loads.__getitem__)
                owner[vb] = index[least]
                loads[least] += 1
        return cls(connections, owner)

    def connection_of(self, vb: int) -> str | None:
        """Name of the connection that a wanted vbucket belongs to; None while no node has it."""
        number = int(self.owner[vb])
        return None if number < 0 else self.connections[number]


class Patience:
    """When a source that can fail gives up: it must get to its streams, and recover from failures."""

    def __init__(self, options: BucketDataSourceOptions) -> None:
        self._connect_timeout = options.connect_timeout
        self._recovery_timeout = options.recovery_timeout
        self._endless = options.seq_end is None
        self._started_at = 0.0
        self._streaming = False
        self._failing_since: float | None = None
        self._failed_at = 0.0
        self._received = 0
        self._gone_since: float | None = None
        """Since when the bucket was not found."""

    def begin(self, now: float) -> None:
        """The source starts, or has come nearer to its streams."""
        self._started_at = now

    def deadline(self) -> float | None:
        """When the streams must have been requested; None once there was progress."""
        return None if self._streaming else self._started_at + self._connect_timeout

    def progressed(self) -> None:
        """A stream ended, a connection with data did, or all streams were requested: they count from 0."""
        self._streaming = True
        self._failing_since = None

    def exhausted_by_failure(self, now: float, received: int) -> bool:
        """Take note of a failure; whether it is one too many.

        A bounded source is patient as long as something is received, of whatever node. One without an end
        must not be: it would go on for ever without a node that is gone.
        """
        if not self._streaming:
            return False  # the deadline counts
        recovered = (
            now - self._failed_at > self._recovery_timeout if self._endless else received != self._received
        )
        self._failed_at, self._received = now, received
        if self._failing_since is None or recovered:
            self._failing_since = now
        return now - self._failing_since > self._recovery_timeout

    def lost_bucket(self, error: CbframeError, now: float) -> bool:
        """Whether a failed fetch ends any source: one without an end outlives much, but not its bucket."""
        if isinstance(error, ClusterMapError):
            return error.permanent
        if not isinstance(error, BucketNotFoundError):
            return False
        if self._gone_since is None:
            self._gone_since = now
        return now - self._gone_since > self._recovery_timeout

    def found_bucket(self) -> None:
        self._gone_since = None


class MapRefresh:
    """When a cluster map is fetched.

    One fetch at a time, with a wait between two of them, and all reasons that come meanwhile count as one.
    """

    def __init__(self, options: BucketDataSourceOptions, counters: ClusterCounters) -> None:
        self._backoff = map_backoff(options)
        self._interval = options.map_poll_interval
        self._counters = counters
        self.fetching = False
        self._routine = False
        """The fetch under way has no reason but the interval."""
        self._reason = False
        """Whether the fetch that is due has a reason other than the interval."""
        self._due: float | None = None
        self._poll_at: float | None = None

    def wakeup(self) -> float | None:
        """When a fetch is due; None if none is, or one is under way."""
        times = (self._due, self._poll_at)
        return None if self.fetching else min((at for at in times if at is not None), default=None)

    def begin_at_once(self, now: float) -> None:
        """Have the first map fetched."""
        self._due = now

    def kick(self, now: float) -> None:
        """The source itself has met a reason to fetch a map."""
        self._counters.tot_kick += 1
        self.want(now)

    def not_needed(self) -> None:
        """A reason to plan again for which the map at hand will do."""
        self._counters.tot_kick += 1
        self._counters.tot_refresh_cluster_awoken += 1

    def want(self, now: float) -> None:
        """There is a reason: have a map fetched as soon as the wait between two fetches is over."""
        if self.fetching or self._due is not None:
            self._routine = False
            self._counters.tot_kick_deduped += 1
        else:
            self._reason = True
            self._due = now + self._backoff.next_delay()

    def begin(self, now: float) -> bool:
        """Whether a fetch is to begin now; it counts as begun then."""
        at = self.wakeup()
        if at is None or now < at:
            return False
        self._counters.tot_refresh_cluster += 1
        self._counters.tot_refresh_cluster_awoken_restart += self._reason
        self._routine = self._due is None or now < self._due
        self.fetching, self._due, self._reason = True, None, False
        return True

    def came(self, now: float, *, pushed: bool) -> None:
        """A map came: fetched, or pushed by a node."""
        self._counters.tot_refresh_cluster_kick_workers_ok += 1
        if not pushed:
            self.fetching, self._due = False, None
            self._rest(now)

    def failed(self, now: float) -> bool:
        """The fetch failed; whether nobody was waiting for it."""
        self._counters.tot_refresh_cluster_all_server_urls_connect_bucket_err += 1
        self.fetching = False
        if self._routine:
            self._rest(now)
        else:
            self._due = now + self._backoff.next_delay()
        return self._routine

    def changed(self) -> None:
        """There is a newer map: whatever one was wanted for, it is the answer."""
        self._counters.tot_refresh_cluster_awoken += self._reason
        self._due, self._reason = None, False
        self._backoff.reset()

    def _rest(self, now: float) -> None:
        self._poll_at = None if self._interval is None else now + self._interval


class Coordinator:
    """The logic of a data source over all nodes."""

    def __init__(
        self,
        vbuckets: Iterable[int] | None,  # wanted vbuckets; None for all of the bucket
        options: BucketDataSourceOptions,
        counters: ClusterCounters | None = None,  # to be moved
    ) -> None:
        self.map: ClusterMap | None = None
        """The newest cluster map."""
        self.placement: Placement | None = None
        """Which connection each vbucket belongs to."""
        self._counters = ClusterCounters() if counters is None else counters
        self._wanted = None if vbuckets is None else sorted(set(vbuckets))
        self._options = options
        self._ends = Ends(options.seq_end)
        self._gives_up = self._ends.bounded or not options.endless_retry
        self._patience = Patience(options)
        self._nodes: dict[str, _Connection] = {}
        self._counts: dict[str, int] = {}
        """Connections by node, where there are several."""
        self._sized: set[str] = set()
        """Nodes of which it is known how many connections they get."""
        self._vbuckets = VBuckets()
        self._refresh = MapRefresh(options, self._counters)
        self._last_error: CbframeError | None = None
        self._over = False
        self._strict = options.consistency == "strict"
        self._disturbed = True
        """Whether a node may have lost what is done, since it was checked."""
        self._checking = False
        self._settled: dict[int, VBucketOffset] | None = {} if options.only_persisted else None
        """Vbuckets that are done, and on the disks of all copies; None if that is not asked for."""
        self.unsettled: dict[int, VBucketOffset] = {}  # the rest of them, when all are done
        self._now = 0.0
        self._received = 0
        self._out: list[messages.Instruction] = []
        """What the present message leads to."""

    # -- read by other threads

    @property
    def vbuckets(self) -> int:
        """How many vbuckets are wanted; 0 until the first map is there."""
        return len(self._vbuckets.records)

    @property
    def wanted(self) -> list[int]:
        """The wanted vbuckets; none until the first map is there."""
        return list(self._vbuckets.records)

    @property
    def done(self) -> dict[int, VBucketOffset]:
        """Finished vbuckets."""
        return self._vbuckets.done

    @property
    def ends(self) -> dict[int, int]:
        """Where each vbucket's stream may end, as pinned at the start."""
        return self._ends.pinned

    def reports(self) -> dict[str, tuple[int, Mapping[int, int]]]:
        """By connection, how often its node has reported its high seqnos, and the last report."""
        return {node: (known.reports, known.seqnos) for node, known in list(self._nodes.items())}

    @property
    def high_seqnos(self) -> dict[int, int]:
        """High seqnos by vbucket, as their owners last reported."""
        return {vb: seqno for _, seqnos in self.reports().values() for vb, seqno in seqnos.items()}

    # -- messages

    def next_wakeup(self) -> float | None:
        """When a `Tick` is due, in the clock of `now`; None if only messages matter."""
        if self._over:
            return None
        refresh = self._refresh.wakeup()
        times = set() if refresh is None else {refresh}
        for vb in self._vbuckets.pending:
            owner = self._owner(vb)
            node = None if owner is None else self._nodes.get(owner)
            due = self._vbuckets.records[vb].retry_at
            if node is not None and node.state is NodeState.WAITING:
                # Nodes that nothing is wanted of are not waited for.
                due = max(due, node.retry_at)
            if due > 0:
                times.add(due)
        if (deadline := self._deadline()) is not None:
            times.add(deadline)
        return min(times, default=None)

    def handle(
        self,
        event: messages.Event,
        now: float,
        received: int = 0,  # another number than before: the nodes have sent something meanwhile
    ) -> list[messages.Instruction]:
        """Take a message and say what is to be done."""
        if self._over:
            return []
        self._now, self._received, self._out = now, received, []
        self._disturbed |= isinstance(
            event, messages.NodeDown | messages.StreamRefused | messages.StreamRolledBack
        )
        match event:
            case messages.Started():
                self._patience.begin(now)
                self._refresh.begin_at_once(now)
            case messages.MapFetched(map=new, pushed=pushed):
                self._refresh.came(now, pushed=pushed)
                self._on_map(new)
            case messages.MapFailed(error=error):
                self._on_map_failed(error)
            case messages.NodeReady() | messages.NodeSampled():
                self._on_seqnos(event)
            case messages.NodeDown():
                self._on_down(event)
            case messages.StreamEnded():
                self._on_ended(event)
                if not self._vbuckets.pending:
                    return self._out  # there is nothing to plan, and for what is due a tick comes
            case messages.StreamRefused():
                self._on_refused(event)
            case messages.StreamRolledBack():
                self._on_rolled_back(event)
            case messages.Kicked(reason=reason):
                self._on_kick(reason)
            case messages.Persisted():
                self._on_persisted(event)
        if not self._over:
            self._plan()
            if self._checking:
                self._checking = False
                self._plan()
            self._counters.tot_refresh_workers_loop += isinstance(event, messages.MapFetched)
        return self._out

    def dismiss(self, event: messages.Event) -> None:
        """Take note of a message that came too late: the source is over, or is being closed."""
        counters, over = self._counters, self._over
        if isinstance(event, messages.MapFetched):
            counters.tot_refresh_cluster_kick_workers_closed += over
            counters.tot_refresh_cluster_kick_workers_stopped += not over
        elif isinstance(event, messages.Kicked):
            counters.tot_refresh_cluster_awoken_closed += over
            counters.tot_refresh_cluster_awoken_stopped += not over

    def _on_kick(self, reason: str) -> None:
        self._counters.tot_refresh_workers_vbm_nil_err += self.map is None
        if reason == messages.UPDATE_SECURITY_SETTINGS:
            self._counters.tot_refresh_workers_security_updates += 1
            for name, node in self._nodes.items():
                if node.state is not NodeState.WAITING:
                    self._stop(name, "the connection is made again")
        self._refresh.want(self._now)

    def _on_map(self, new: ClusterMap) -> None:
        old = self.map
        if old is not None and (error := messages.other_bucket(old, new)) is not None:
            self._fail(error)
            return
        if old is None:
            self._begin(new)
        elif old.newer_than(new):
            return
        elif new != old:
            self._refresh.changed()
            self._disturbed = True
        self._patience.found_bucket()
        self.map = new
        self._place(new)
        for name, node in self._nodes.items():
            # Its streams are requested of others once its thread has ended: never two at a time.
            if address_of(name) not in new.nodes and node.state in (NodeState.STARTING, NodeState.READY):
                node.state = NodeState.LEAVING
                self._stop(name, "the node has left the cluster map")

    def _begin(self, new: ClusterMap) -> None:
        wanted = range(new.vbuckets) if self._wanted is None else self._wanted
        if (error := messages.bad_choice(wanted, new)) is not None:
            bad = sum(not 0 <= vb < new.vbuckets for vb in wanted)
            self._counters.tot_refresh_workers_vbucket_id_err += bad
            self._fail(error)
            return
        self._patience.begin(self._now)
        self._vbuckets.begin(wanted, self._options)
        self._ends.begin(wanted)
        self._finish_if_done()

    def _on_map_failed(self, error: CbframeError) -> None:
        routine = self._refresh.failed(self._now)
        # A password that was changed meanwhile does no harm before another map, or connection, is needed.
        if not routine or (error.permanent and not isinstance(error, _NOT_NOW)):
            self._on_failure(error)
        if not self._over and self._patience.lost_bucket(error, self._now):
            self._fail(error)

    def _on_seqnos(self, event: messages.NodeReady | messages.NodeSampled) -> None:
        node = self._nodes.get(event.node)
        if node is None:
            return
        node.seqnos = event.seqnos
        node.reports += 1
        node.sampling = False
        if isinstance(event, messages.NodeReady) and node.state is NodeState.STARTING:
            node.state = NodeState.READY
            if not node.tried:
                self._patience.begin(self._now)
            self._refresh.not_needed()
            self._size(address_of(event.node), event.seqnos)
        for vb in self._vbuckets.pending:
            if self._owner(vb) == event.node:
                self._vbuckets.records[vb].stale = False
        if self._ends.now:
            # Between sample and request a history may have lost its end: that stream would never end.
            requested = self._vbuckets.requested(event.node)
            lost = [vb for vb, end in requested if event.seqnos.get(vb, end) < end]
            if lost:
                self._out.append(messages.CloseStreams(event.node, tuple(lost)))

    def _on_down(self, event: messages.NodeDown) -> None:
        node = self._nodes.get(event.node)
        if node is None:
            return
        if event.progressed:
            self._patience.progressed()
        node.lost(event.error, self._now, progressed=event.progressed)
        self._vbuckets.lost(event.node)
        if self.map is not None and address_of(event.node) not in self.map.nodes:
            del self._nodes[event.node]
        self._on_failure(event.error)
        if not self._over:
            self._refresh.kick(self._now)

    def _on_ended(self, event: messages.StreamEnded) -> None:
        vb, reason = event.vbucket, event.reason
        if event.progressed or reason in _DONE:
            self._patience.progressed()
        if reason == StreamEndReason.FILTER_EMPTY or (reason == StreamEndReason.OK and self._ends.bounded):
            self._done(vb, event.position)
            return
        self._disturbed = True
        if reason == StreamEndReason.STATE_CHANGED:
            self._refresh.kick(self._now)
        elif (error := messages.ended(event)) is not None:
            self._on_failure(error)
        self._vbuckets.retry(vb, self._now, wait=reason != StreamEndReason.ROLLBACK)

    def _on_refused(self, event: messages.StreamRefused) -> None:
        if event.status in _ELSEWHERE:
            self._refresh.kick(self._now)
        self._on_failure(messages.refused(event))
        self._vbuckets.retry(event.vbucket, self._now)

    def _on_rolled_back(self, event: messages.StreamRolledBack) -> None:
        times = self._vbuckets.rolled_back(event.vbucket)
        patient = times > _QUICK_ROLLBACKS
        if patient:
            self._on_failure(messages.rolled_back(event, times))
        self._vbuckets.retry(event.vbucket, self._now, wait=patient)

    def _on_persisted(self, event: messages.Persisted) -> None:
        if event.error is not None:
            if self._gives_up:
                self._fail(event.error)
            return
        if self._settled is None or self._vbuckets.missing or self._over:
            return
        for vb, (vbuuid, seqno) in event.seqnos.items():
            at = self.done.get(vb)
            if at is not None and at.history == vbuuid and at.seqno <= seqno:
                self._settled[vb] = at
        # Streams from where they ended to where they ended: the node rolls them back.
        if not self._vbuckets.check_again(event.lost):
            self._finish_if_done()

    # -- planning

    def _plan(self) -> None:
        """Request what is pending where it can be had."""
        if self._refresh.begin(self._now):
            self._out.append(messages.FetchMap())
        if self.map is None:
            self._check_patience()
            return
        wanted: dict[str, list[int]] = {}
        ownerless = []
        for vb in self._vbuckets.pending:
            vbucket = self._vbuckets.records[vb]
            if vbucket.retry_at > self._now:
                continue
            vbucket.retry_at = 0.0
            owner = self._owner(vb)
            if owner is None:
                ownerless.append(vb)
            else:
                wanted.setdefault(owner, []).append(vb)
        if ownerless:
            self._counters.tot_refresh_workers_master_idx_err += len(ownerless)
            self._on_failure(messages.ownerless(ownerless, self.map.vbuckets))
            if self._over:
                return
            self._refresh.kick(self._now)
        known = self._ends.known
        for name, vbs in wanted.items():
            self._plan_node(name, sorted(vbs))
        if self._ends.known and not known:
            # The last end was pinned just now: the nodes that were ready before may begin too.
            for name, vbs in wanted.items():
                self._plan_node(name, sorted(self._vbuckets.pending.intersection(vbs)))
        self._check_patience()

    def _plan_node(self, name: str, vbs: list[int]) -> None:
        node = self._nodes.get(name)
        if node is None:
            node = self._nodes[name] = _Connection(node_backoff(self._options))
        if node.state is NodeState.WAITING and self._now >= node.retry_at:
            node.state = NodeState.STARTING
            self._counters.tot_refresh_workers_add_worker += 1
            self._out.append(messages.StartNode(name))
        if node.state is not NodeState.READY or node.sampling:
            return
        if self._ends.now and not self._is_sampled(name, node, vbs):
            return
        if not self._ends.known:
            return
        streams = []
        for vb in vbs:
            end = self._ends.of(vb, node.seqnos)
            if end == 0 and self._ends.now and not self._vbuckets.records[vb].attempts:
                self._done(vb, VBucketOffset())
                continue
            streams.append((vb, end))
            self._vbuckets.request(vb, name, end)
        if streams:
            self._counters.tot_refresh_workers_kick_worker += 1
            self._out.append(messages.OpenStreams(name, tuple(streams)))

    def _is_sampled(self, name: str, node: _Connection, vbs: list[int]) -> bool:
        """Whether the node's high seqnos are fresh enough for these vbuckets; if not, ask again.

        After its first try, a vbucket's owner or history may have changed.
        """
        absent = [vb for vb in vbs if vb not in node.seqnos]
        for vb in absent:
            self._vbuckets.retry(vb, self._now)
        if absent:
            self._refresh.kick(self._now)
        if absent or any(self._vbuckets.records[vb].stale for vb in vbs):
            node.sampling = True
            self._out.append(messages.SampleNode(name))
            return False
        self._ends.pin(vbs, node.seqnos)
        return True

    def _owner(self, vb: int) -> str | None:
        """The connection that a vbucket belongs to."""
        return None if self.placement is None else self.placement.connection_of(vb)

    def _place(self, new: ClusterMap, resized: str | None = None) -> None:
        """Divide the vbuckets among the connections; `resized` is a node that gets more of them."""
        each = self._options.connections_per_node
        if isinstance(each, int) and each > 1:
            self._counts = dict.fromkeys(new.nodes, each)
        self.placement = Placement.of(new, self._counts, self._vbuckets.records, self.placement, resized)

    def _size(self, address: str, seqnos: Mapping[int, int]) -> None:
        """Decide how many connections a node gets, where that depends on what it has."""
        if self._options.connections_per_node != "auto" or self.map is None or address in self._sized:
            return
        self._sized.add(address)
        changes = sum(seqnos.get(vb, 0) for vb in self._vbuckets.records)
        count = min(connections_at_most(self._options), 1 + changes // _CHANGES)
        if count > 1:
            self._counts[address] = count
            self._place(self.map, address)

    def _stop(self, name: str, why: str) -> None:
        self._counters.tot_refresh_workers_remove_worker += 1
        self._out.append(messages.StopNode(name, why))

    def _done(self, vb: int, position: VBucketOffset) -> None:
        self._vbuckets.finish(vb, position)
        self._finish_if_done()

    def _finish_if_done(self) -> None:
        if self._vbuckets.missing:
            return
        done = self._vbuckets.done
        if self._strict and self._disturbed and self._vbuckets.check_again(done):
            # Streams from where each ended to where it ended: a node that lost data rolls them back.
            self._disturbed, self._checking = False, True
            return
        if (settled := self._settled) is not None:
            self.unsettled = {vb: at for vb, at in done.items() if at.seqno and at != settled.get(vb)}
            if self.unsettled:
                return
        self._over = True
        self._out.append(messages.Finish())

    # -- failure

    def _on_failure(self, error: CbframeError) -> None:
        """A failure that a bounded source gets over for a while, and one without an end for ever."""
        self._last_error = error
        if not self._gives_up:
            return
        if error.permanent:
            self._fail(error)
        elif self._patience.exhausted_by_failure(self._now, self._received):
            missing = self._vbuckets.missing if self._ends.bounded else None
            self._fail(messages.gave_up(error, self._options.recovery_timeout, missing, self.vbuckets))

    def _deadline(self) -> float | None:
        """When a source that can fail must have got to its streams.

        The first fetch of a map has time-outs of its own, for each turn, and its error says which seed was
        silent. So has the first connection to each node; if its thread says nothing, there is a last resort.
        """
        if not self._gives_up or (self.map is None and self._refresh.fetching):
            return None
        deadline = self._patience.deadline()
        connecting = any(n.state is NodeState.STARTING and not n.tried for n in self._nodes.values())
        if deadline is not None and connecting:
            deadline += TURNS * self._options.connect_timeout
        return deadline

    def _check_patience(self) -> None:
        """End a source that never got to its streams."""
        deadline = self._deadline()
        if self._over or deadline is None or self._now < deadline:
            return
        if self._vbuckets.all_tried():
            self._patience.progressed()
            return
        error = self._last_error
        if error is None:
            silent = [name for name, n in self._nodes.items() if n.state is not NodeState.READY]
            error = messages.no_answer(sorted(silent), self._options.connect_timeout)
        if self.map is not None:
            error = messages.with_addresses(error, self.map)
        self._fail(error)

    def _fail(self, error: CbframeError) -> None:
        self._over = True
        self._out.append(messages.Fail(error))
