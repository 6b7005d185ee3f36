"""Who streams what from where: events in, instructions out.

No socket, no thread and no clock: `now` comes with each event, in seconds of any monotonic clock.
The supervisor's thread (:mod:`cbframe.dcp.supervisor`) feeds events and carries instructions out.

A vbucket goes from *pending* (wanted, not asked for) to *asked* (of its owner) to *done*. What
fails makes it pending again, after a wait. A bounded source finishes when all are done; an unbounded
one never does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from cbframe.cluster.backoff import Backoff
from cbframe.cluster.cluster_map import ClusterMap
from cbframe.dcp import plan, verdicts
from cbframe.dcp.controls import connections_at_most
from cbframe.dcp.plan import Event, Kicked, MapFetched
from cbframe.dcp.positions import Ends, Position
from cbframe.dcp.records import NodeRecord, NodeState, Placement, VBuckets, map_backoff, node_backoff
from cbframe.dcp.requests import TURNS
from cbframe.dcp.stats import ClusterCounters
from cbframe.errors import (
    AccessError,
    AuthFailError,
    BucketNotFoundError,
    CbframeError,
    ClusterMapError,
    ResourceError,
)
from cbframe.options import BucketDataSourceOptions
from cbframe.wire.constants import Status, StreamEndReason


class Patience:
    """The two waits of a source that can fail, in seconds of any monotonic clock."""

    def __init__(self, connect_timeout: float, recovery_timeout: float, *, endless: bool = False) -> None:
        self._connect_timeout = connect_timeout
        self.recovery_timeout = recovery_timeout
        self._started_at = 0.0
        self._streaming = False
        self._endless = endless
        self._failing_since: float | None = None
        self._failed_at = 0.0
        self._gone_since: float | None = None

    def begin(self, now: float) -> None:
        """The source starts, or has come nearer to its streams."""
        self._started_at = now

    def deadline(self) -> float | None:
        """When the streams must have been asked for; None once there was progress."""
        return None if self._streaming else self._started_at + self._connect_timeout

    def progressed(self) -> None:
        """Something useful came, or all streams were asked for: failures count from here on."""
        self._streaming = True
        self._failing_since = None

    def exhausted_by_failure(self, now: float) -> bool:
        """Take note of a failure; whether it is one too many."""
        if not self._streaming:
            return False  # the deadline counts
        long_ago = self._endless and now - self._failed_at > self.recovery_timeout
        self._failed_at = now
        if self._failing_since is None or long_ago:
            self._failing_since = now
        return now - self._failing_since > self.recovery_timeout

    def lost_bucket(self, error: CbframeError, now: float) -> bool:
        """Whether a map that could not be had is the end of any source.

        One without an end outlives much, but not its bucket.
        """
        if isinstance(error, ClusterMapError):
            return error.permanent
        if not isinstance(error, BucketNotFoundError):
            return False
        if self._gone_since is None:
            self._gone_since = now
        return now - self._gone_since > self.recovery_timeout

    def found_bucket(self) -> None:
        """There is a map: the bucket is there."""
        self._gone_since = None


class MapRefresh:
    """The times of the fetches, in seconds of any monotonic clock.

    One at a time, with a wait between two of them, and all reasons that come meanwhile count as one.
    """

    def __init__(self, backoff: Backoff, interval: float | None, counters: ClusterCounters) -> None:
        self._backoff = backoff
        self._interval = interval
        self._counters = counters
        self.fetching = False
        """Whether a fetch is under way."""
        self._routine = False
        self._reason = False
        self._due: float | None = None
        self._look_at: float | None = None

    def wakeup(self) -> float | None:
        """When a fetch is due; None if none is, or one is under way."""
        times = (self._due, self._look_at)
        return None if self.fetching else min((at for at in times if at is not None), default=None)

    def begin_at_once(self, now: float) -> None:
        """Have the first map fetched."""
        self._due = now

    def kick(self, now: float) -> None:
        """The source itself has met a reason to look again."""
        self._counters.tot_kick += 1
        self.want(now)

    def not_needed(self) -> None:
        """There is a reason to look again at who wants what, and the map at hand will do."""
        self._counters.tot_kick += 1
        self._counters.tot_kick_ok += 1
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
        counters = self._counters
        counters.tot_refresh_cluster += 1
        counters.tot_kick_ok += self._reason
        counters.tot_refresh_cluster_awoken_restart += self._reason
        self._routine = self._due is None or now < self._due
        self.fetching, self._due, self._reason = True, None, False
        return True

    def came(self, now: float, *, pushed: bool) -> None:
        """A map came: fetched, or pushed by a node."""
        counters = self._counters
        counters.tot_refresh_cluster_kick_workers += 1
        counters.tot_refresh_cluster_kick_workers_ok += 1
        counters.tot_refresh_workers_cluster_ch_kicks += 1
        counters.tot_refresh_workers += 1
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
        self._counters.tot_kick_ok += self._reason
        self._counters.tot_refresh_cluster_awoken += self._reason
        self._due, self._reason = None, False
        self._backoff.reset()

    def dismiss(self, event: Event, *, over: bool) -> None:
        """A map or a reason came too late: the source is over, or else is being closed."""
        counters = self._counters
        if isinstance(event, MapFetched):
            counters.tot_refresh_cluster_kick_workers += 1
            counters.tot_refresh_cluster_kick_workers_closed += over
            counters.tot_refresh_cluster_kick_workers_stopped += not over
        elif isinstance(event, Kicked):
            counters.tot_refresh_cluster_awoken_closed += over
            counters.tot_refresh_cluster_awoken_stopped += not over

    def _rest(self, now: float) -> None:
        self._look_at = None if self._interval is None else now + self._interval


_DONE = (StreamEndReason.OK, StreamEndReason.FILTER_EMPTY)
_NOT_NOW = (AccessError, AuthFailError, ResourceError)
"""What no further attempt heals, and what may be different when another map is needed."""
_ELSEWHERE = (Status.NOT_MY_VBUCKET, Status.CONFIG_ONLY, Status.NO_BUCKET, Status.BUCKET_PAUSED)
"""Refusals of a stream to which the cluster map has the answer."""
_CHANGES = 1_000_000
"""A node gets a further connection for each this many changes, with ``connections_per_node="auto"``."""
_QUICK_ROLLBACKS = 2
"""Rollbacks of one vbucket that are followed at once; a server that wants ever more is waited for."""


class Coordinator:
    """The logic of a data source over all nodes."""

    def __init__(
        self,
        vbuckets: Iterable[int] | None,  # wanted vbuckets; None for all of the bucket
        options: BucketDataSourceOptions,  # back-off, ends and timeouts
        counters: ClusterCounters | None = None,  # to be moved
    ) -> None:
        self._counters = ClusterCounters() if counters is None else counters
        self._wanted = None if vbuckets is None else sorted(set(vbuckets))
        self._options = options
        self._ends = Ends(options.seq_end)
        bounded = self._ends.bounded
        self._gives_up = bounded or not options.endless_retry
        self._patience = Patience(options.connect_timeout, options.recovery_timeout, endless=not bounded)
        self._map: ClusterMap | None = None
        self._nodes: dict[str, NodeRecord] = {}
        self._placement: Placement | None = None
        self._counts: dict[str, int] = {}
        """Connections by node, where there are several."""
        self._sized: set[str] = set()
        """Nodes of which it is known how many connections they get."""
        self._vbuckets = VBuckets()
        self._refresh = MapRefresh(map_backoff(options), options.map_poll_interval, self._counters)
        self._last_error: CbframeError | None = None
        self._over = False
        self._strict = options.consistency == "strict"
        self._disturbed = True
        """Whether a node may have lost what is done, since it was checked."""
        self._checking = False

    @property
    def map(self) -> ClusterMap | None:
        """The newest cluster map."""
        return self._map

    @property
    def placement(self) -> Placement | None:
        """Which connection each vbucket belongs to."""
        return self._placement

    @property
    def vbuckets(self) -> int:
        """How many vbuckets are wanted; 0 until the first map is there."""
        return len(self._vbuckets.records)

    @property
    def done(self) -> dict[int, Position]:
        """Finished vbuckets."""
        return self._vbuckets.done

    @property
    def ends(self) -> dict[int, int]:
        """Where each vbucket's stream may end, as pinned at the start."""
        return self._ends.pinned

    def look(self) -> tuple[list[int], dict[str, Mapping[int, int]]]:
        """The wanted vbuckets, and high seqnos by node and vbucket as last reported; from any thread."""
        return list(self._vbuckets.records), {node: known.seqnos for node, known in list(self._nodes.items())}

    def reports(self) -> dict[str, tuple[int, Mapping[int, int]]]:
        """By node, how often it has reported its high seqnos, and the last report; from any thread."""
        return {node: (known.reports, known.seqnos) for node, known in list(self._nodes.items())}

    @property
    def high_seqnos(self) -> dict[int, int]:
        """High seqnos by vbucket, as their owners last reported."""
        return {vb: seqno for node in list(self._nodes.values()) for vb, seqno in node.seqnos.items()}

    @property
    def shortened(self) -> dict[int, int]:
        """Vbuckets whose history lost its end meanwhile, with the end that they have now."""
        return self._ends.shortened

    def next_wakeup(self) -> float | None:
        """When a `Tick` is due, in the clock of `now`; None if only events matter."""
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

    def handle(self, event: plan.Event, now: float) -> list[plan.Instruction]:
        """Take an event and say what is to be done."""
        if self._over:
            return []
        out: list[plan.Instruction] = []
        self._disturbed |= isinstance(event, plan.NodeDown | plan.StreamRefused | plan.StreamRolledBack)
        match event:
            case plan.Started():
                self._patience.begin(now)
                self._refresh.begin_at_once(now)
            case plan.MapFetched(map=new, pushed=pushed):
                self._refresh.came(now, pushed=pushed)
                self._on_map(new, now, out)
            case plan.MapFailed(error=error):
                self._on_map_failed(error, now, out)
            case plan.NodeReady() | plan.NodeSampled():
                self._on_seqnos(event, now, out)
            case plan.NodeDown():
                self._on_down(event, now, out)
            case plan.StreamEnded():
                self._on_ended(event, now, out)
                if not self._vbuckets.pending:
                    return out  # there is nothing to plan, and for what is due a tick comes
            case plan.StreamRefused():
                self._on_refused(event, now, out)
            case plan.StreamRolledBack():
                self._on_rolled_back(event, now, out)
            case plan.Kicked(reason=reason):
                self._on_kick(reason, now, out)
        if not self._over:
            self._plan(now, out)
            if self._checking:
                self._checking = False
                self._plan(now, out)
            self._counters.tot_refresh_workers_loop += isinstance(event, plan.MapFetched)
        return out

    def dismiss(self, event: plan.Event) -> None:
        """Take note of an event that came too late: the source is over, or is being closed."""
        self._refresh.dismiss(event, over=self._over)

    # -- events

    def _on_kick(self, reason: str, now: float, out: list[plan.Instruction]) -> None:
        counters = self._counters
        counters.tot_refresh_workers_vbm_nil_err += self._map is None
        if reason == plan.UPDATE_SECURITY_SETTINGS:
            counters.tot_refresh_workers_security_updates += 1
            for address, node in self._nodes.items():
                if node.state is not NodeState.WAITING:
                    counters.tot_refresh_workers_remove_worker += 1
                    out.append(plan.StopNode(address, "the connection is made again"))
        self._refresh.want(now)

    def _on_map(self, new: ClusterMap, now: float, out: list[plan.Instruction]) -> None:
        old = self._map
        if old is not None and (error := verdicts.other_bucket(old, new)) is not None:
            self._fail(error, out)
            return
        if old is None:
            self._begin(new, now, out)
        elif old.newer_than(new):
            return
        elif new != old:
            self._refresh.changed()
            self._disturbed = True
        self._patience.found_bucket()
        self._map = new
        self._place(new)
        for address, node in self._nodes.items():
            # Its streams are asked of others once its thread has ended: never two at a time.
            if plan.address_of(address) not in new.nodes and node.state in (
                NodeState.STARTING,
                NodeState.READY,
            ):
                node.state = NodeState.LEAVING
                self._counters.tot_refresh_workers_remove_worker += 1
                out.append(plan.StopNode(address, "the node has left the cluster map"))

    def _on_map_failed(self, error: CbframeError, now: float, out: list[plan.Instruction]) -> None:
        routine = self._refresh.failed(now)
        # A password that was changed meanwhile does no harm before another map, or connection, is needed.
        if not routine or (error.permanent and not isinstance(error, _NOT_NOW)):
            self._on_failure(error, now, out)
        if not self._over and self._patience.lost_bucket(error, now):
            self._fail(error, out)

    def _begin(self, new: ClusterMap, now: float, out: list[plan.Instruction]) -> None:
        wanted = range(new.vbuckets) if self._wanted is None else self._wanted
        if (error := verdicts.bad_choice(wanted, new)) is not None:
            bad = sum(not 0 <= vb < new.vbuckets for vb in wanted)
            self._counters.tot_refresh_workers_vbucket_id_err += bad
            self._fail(error, out)
            return
        self._patience.begin(now)
        self._vbuckets.begin(wanted, self._options)
        self._ends.begin(wanted)
        self._finish_if_done(out)

    def _on_seqnos(
        self, event: plan.NodeReady | plan.NodeSampled, now: float, out: list[plan.Instruction]
    ) -> None:
        node = self._nodes.get(event.node)
        if node is None:
            return
        node.seqnos = event.seqnos
        node.reports += 1
        node.sampling = False
        if isinstance(event, plan.NodeReady) and node.state is NodeState.STARTING:
            node.state = NodeState.READY
            if not node.tried:
                self._patience.begin(now)
            self._refresh.not_needed()
            self._size(plan.address_of(event.node), event.seqnos)
        for vb in self._vbuckets.pending:
            if self._owner(vb) == event.node:
                self._vbuckets.records[vb].stale = False
        if self._ends.now:
            # Between sample and request a history may have lost its end: that stream would never end.
            lost = [vb for vb, end in self._vbuckets.asked(event.node) if event.seqnos.get(vb, end) < end]
            if lost:
                out.append(plan.CloseStreams(event.node, tuple(lost)))

    def _on_down(self, event: plan.NodeDown, now: float, out: list[plan.Instruction]) -> None:
        node = self._nodes.get(event.node)
        if node is None:
            return
        if event.progressed:
            self._patience.progressed()
        node.lost(event.error, now, progressed=event.progressed)
        self._vbuckets.lost(event.node)
        if self._map is not None and plan.address_of(event.node) not in self._map.nodes:
            del self._nodes[event.node]
        self._on_failure(event.error, now, out)
        if not self._over:
            self._refresh.kick(now)

    def _on_ended(self, event: plan.StreamEnded, now: float, out: list[plan.Instruction]) -> None:
        vb, reason = event.vbucket, event.reason
        if event.progressed or reason in _DONE:
            self._patience.progressed()
        if reason == StreamEndReason.FILTER_EMPTY or (reason == StreamEndReason.OK and self._ends.bounded):
            self._done(vb, event.position, out)
            return
        self._disturbed = True
        if reason == StreamEndReason.STATE_CHANGED:
            self._refresh.kick(now)
        elif (error := verdicts.ended(event)) is not None:
            self._on_failure(error, now, out)
        self._vbuckets.retry(vb, now, wait=reason != StreamEndReason.ROLLBACK)

    def _on_refused(self, event: plan.StreamRefused, now: float, out: list[plan.Instruction]) -> None:
        if event.status in _ELSEWHERE:
            self._refresh.kick(now)
        self._on_failure(verdicts.refused(event), now, out)
        self._vbuckets.retry(event.vbucket, now)

    def _on_rolled_back(self, event: plan.StreamRolledBack, now: float, out: list[plan.Instruction]) -> None:
        self._vbuckets.withdraw(event.vbucket)
        vbucket = self._vbuckets.records[event.vbucket]
        vbucket.rollbacks += 1
        patient = vbucket.rollbacks > _QUICK_ROLLBACKS
        if patient:
            self._on_failure(verdicts.rolled_back(event, vbucket.rollbacks), now, out)
        self._vbuckets.retry(event.vbucket, now, wait=patient)

    # -- planning

    def _plan(self, now: float, out: list[plan.Instruction]) -> None:
        """Ask for what is pending where it can be had."""
        if self._refresh.begin(now):
            out.append(plan.FetchMap())
        if self._map is None:
            self._check_patience(now, out)
            return
        wanted: dict[str, list[int]] = {}
        ownerless = []
        for vb in self._vbuckets.pending:
            vbucket = self._vbuckets.records[vb]
            if vbucket.retry_at > now:
                continue
            vbucket.retry_at = 0.0
            owner = self._owner(vb)
            if owner is None:
                ownerless.append(vb)
            else:
                wanted.setdefault(owner, []).append(vb)
        if ownerless:
            self._counters.tot_refresh_workers_master_idx_err += len(ownerless)
            self._on_failure(verdicts.ownerless(ownerless, self._map.vbuckets), now, out)
            if self._over:
                return
            self._refresh.kick(now)
        known = self._ends.known
        for address, vbs in wanted.items():
            self._plan_node(address, sorted(vbs), now, out)
        if self._ends.known and not known:
            # The last end was pinned just now: the nodes that were ready before may begin too.
            for address, vbs in wanted.items():
                self._plan_node(address, sorted(self._vbuckets.pending.intersection(vbs)), now, out)
        self._check_patience(now, out)

    def _plan_node(self, address: str, vbs: list[int], now: float, out: list[plan.Instruction]) -> None:
        node = self._nodes.get(address)
        if node is None:
            node = self._nodes[address] = NodeRecord(node_backoff(self._options))
        if node.state is NodeState.WAITING and now >= node.retry_at:
            node.state = NodeState.STARTING
            self._counters.tot_refresh_workers_add_worker += 1
            out.append(plan.StartNode(address))
        if node.state is not NodeState.READY or node.sampling:
            return
        if self._ends.now and not self._is_sampled(address, node, vbs, now, out):
            return
        if not self._ends.known:
            return
        streams = []
        for vb in vbs:
            end = self._ends.of(vb, node.seqnos)
            if end == 0 and self._ends.now and not self._vbuckets.records[vb].attempts:
                self._done(vb, Position(), out)
                continue
            streams.append((vb, end))
            self._vbuckets.ask(vb, address, end)
        if streams:
            self._counters.tot_refresh_workers_kick_worker += 1
            out.append(plan.OpenStreams(address, tuple(streams)))

    def _is_sampled(
        self, address: str, node: NodeRecord, vbs: list[int], now: float, out: list[plan.Instruction]
    ) -> bool:
        """Whether the node's high seqnos are fresh enough for these vbuckets; if not, ask again.

        After its first try, a vbucket's owner or history may have changed.
        """
        absent = [vb for vb in vbs if vb not in node.seqnos]
        for vb in absent:
            self._vbuckets.retry(vb, now)
        if absent:
            self._refresh.kick(now)
        if absent or any(self._vbuckets.records[vb].stale for vb in vbs):
            node.sampling = True
            out.append(plan.SampleNode(address))
            return False
        self._ends.pin(vbs, node.seqnos)
        return True

    def _owner(self, vb: int) -> str | None:
        """The connection that a vbucket belongs to."""
        return None if self._placement is None else self._placement.connection_of(vb)

    def _place(self, new: ClusterMap, resized: str | None = None) -> None:
        """Divide the vbuckets among the connections; `resized` is a node that gets more of them."""
        each = self._options.connections_per_node
        if isinstance(each, int) and each > 1:
            self._counts = dict.fromkeys(new.nodes, each)
        wanted = self._vbuckets.records
        self._placement = Placement.of(new, self._counts, wanted, self._placement, resized)

    def _size(self, address: str, seqnos: Mapping[int, int]) -> None:
        """Decide how many connections a node gets, where that depends on what it has."""
        if self._options.connections_per_node != "auto" or self._map is None or address in self._sized:
            return
        self._sized.add(address)
        changes = sum(seqnos.get(vb, 0) for vb in self._vbuckets.records)
        count = min(connections_at_most(self._options), 1 + changes // _CHANGES)
        if count > 1:
            self._counts[address] = count
            self._place(self._map, address)

    def _done(self, vb: int, position: Position, out: list[plan.Instruction]) -> None:
        self._vbuckets.finish(vb, position)
        self._finish_if_done(out)

    def _finish_if_done(self, out: list[plan.Instruction]) -> None:
        if not self._vbuckets.all_done:
            return
        if self._strict and self._disturbed and self._vbuckets.check_again():
            # Streams from where each ended to where it ended: a node that lost data rolls them back.
            self._disturbed, self._checking = False, True
            return
        self._over = True
        out.append(plan.Finish())

    # -- failure

    def _on_failure(self, error: CbframeError, now: float, out: list[plan.Instruction]) -> None:
        self._last_error = error
        if not self._gives_up:
            return
        if error.permanent:
            self._fail(error, out)
        elif self._patience.exhausted_by_failure(now):
            total = self.vbuckets
            seconds = self._patience.recovery_timeout
            missing = self._vbuckets.missing if self._ends.bounded else None
            self._fail(verdicts.gave_up(error, seconds, missing, total), out)

    def _deadline(self) -> float | None:
        """When a source that can fail must have got to its streams.

        The first fetch of a map has time-outs of its own, for each turn, and its error says which seed was
        silent. So has the first connection to each node; if its thread says nothing, there is a last resort.
        """
        if not self._gives_up or (self._map is None and self._refresh.fetching):
            return None
        deadline = self._patience.deadline()
        connecting = any(n.state is NodeState.STARTING and not n.tried for n in self._nodes.values())
        if deadline is not None and connecting:
            deadline += TURNS * self._options.connect_timeout
        return deadline

    def _check_patience(self, now: float, out: list[plan.Instruction]) -> None:
        """End a source that never got to its streams."""
        deadline = self._deadline()
        if self._over or deadline is None or now < deadline:
            return
        if self._vbuckets.all_tried:
            self._patience.progressed()
            return
        error = self._last_error
        if error is None:
            silent = [a for a, n in self._nodes.items() if n.state is not NodeState.READY]
            error = verdicts.no_answer(sorted(silent), self._options.connect_timeout)
        if self._map is not None:
            error = verdicts.with_addresses(error, self._map)
        self._fail(error, out)

    def _fail(self, error: CbframeError, out: list[plan.Instruction]) -> None:
        self._over = True
        out.append(plan.Fail(error))
