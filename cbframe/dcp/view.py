"""What can be seen of a data source while it runs, from any thread."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from cbframe.cluster.cluster_map import ClusterMap
from cbframe.dcp.controls import window_of
from cbframe.dcp.coordinator import Coordinator
from cbframe.dcp.counters import ClusterCounters, NodeStats
from cbframe.dcp.handshake import Login
from cbframe.dcp.positions import Position
from cbframe.dcp.stats import BucketDataSourceStats
from cbframe.dcp.streams import VBucketState
from cbframe.dcp.supervisor import Supervisor
from cbframe.dcp.table import VBucketTable, Window, take_table
from cbframe.errors import CbframeError
from cbframe.options import BucketDataSourceOptions

PROBLEMS = 20
"""How many problems are kept."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that went wrong, and that the source may have got over.

    The words of an error without the error: that one holds on to all that was at hand where it came from.
    """

    at: float  # seconds of the source's clock
    kind: str  # name of the error's class
    message: str  # as of CbframeError
    hint: str | None = None
    node: str | None = None
    vbucket: int | None = None


class SourceView:
    """The part of a data source that only looks. Nothing here waits, or holds anyone up."""

    _coordinator: Coordinator
    _supervisor: Supervisor
    _counters: ClusterCounters
    _map_counters: ClusterCounters
    _calls: ClusterCounters
    _stats: dict[str, NodeStats]
    _problems: deque[Problem]
    _times: dict[str, int]
    _options: BucketDataSourceOptions
    _login: Login
    _clock: Callable[[], float]

    @property
    def bucket(self) -> str:
        """Name of the bucket."""
        return self._login.bucket

    def stats(self) -> BucketDataSourceStats:
        """Counters at this moment."""
        return BucketDataSourceStats(
            (self._counters, self._map_counters, self._calls),
            dict(self._stats),
            vbuckets=self._coordinator.vbuckets,
            vbuckets_done=len(self._coordinator.done),
            at=self._clock(),
        )

    def vbucket_states(self) -> dict[int, VBucketState]:
        """The streams at this moment, by vbucket; those that wait or are done have none."""
        states: dict[int, VBucketState] = {}
        for node in list(self._supervisor.nodes.values()):
            states |= node.streams()
        return dict(sorted(states.items()))

    def vbucket_table(self) -> VBucketTable:
        """All vbuckets at this moment, as columns: for looking at them often."""
        coordinator = self._coordinator
        nodes = list(self._supervisor.nodes.values())
        wanted, high_seqnos = coordinator.look()
        return take_table(
            coordinator.map,
            placement=coordinator.placement,
            wanted=wanted,
            done=list(coordinator.done.items()),
            ends=dict(coordinator.ends),
            high_seqnos=high_seqnos,
            streams=[stream for node in nodes for stream in node.open_streams()],
        )

    def sample_seqnos(self) -> None:
        """Have the nodes tell how far their vbuckets are; :meth:`vbucket_table` knows it soon after.

        For a source without an end, which has no other way to know what it lacks.
        """
        for node in list(self._supervisor.nodes.values()):
            node.sample()

    @property
    def bounded(self) -> bool:
        """Whether the streams have an end."""
        return self._options.seq_end is not None

    def windows(self) -> dict[str, Window]:
        """The flow-control window of each connection, by its name."""
        size = window_of(self._options)
        return {address: Window(node.held(), size) for address, node in list(self._supervisor.nodes.items())}

    def problems(self) -> tuple[Problem, ...]:
        """What went wrong last, oldest first; no more than :data:`PROBLEMS`."""
        return tuple(self._problems)

    def trace(self) -> dict[str, list[str]]:
        """What happened last on each connection, by its name; oldest first."""
        return {address: node.trace.lines() for address, node in list(self._supervisor.nodes.items())}

    def progress(self) -> tuple[int, int]:
        """Seqnos received and wanted of a bounded source, summed over its vbuckets."""
        ends = dict(self._coordinator.ends)
        if not ends:
            return 0, 0
        done = set(self._coordinator.done)
        reached = sum(ends.get(vb, 0) for vb in done)
        vbuckets = np.array([vb for vb in ends if vb not in done], np.intp)
        limits = np.array([ends[vb] for vb in vbuckets.tolist()], np.uint64)
        for node in list(self._supervisor.nodes.values()):
            reached += int(np.minimum(node.seqnos(vbuckets), limits).sum())
        return reached, sum(ends.values())

    @property
    def map(self) -> ClusterMap | None:
        """The newest cluster map."""
        return self._coordinator.map

    @property
    def high_seqnos(self) -> dict[int, int]:
        """High seqnos by vbucket, as the nodes last reported."""
        return self._coordinator.high_seqnos

    @property
    def node_time(self) -> int | None:
        """The latest time of day that a node has reported, in seconds since the epoch.

        None if none has: nodes are asked with ``ask_time``, and tell it to users who may see statistics.
        """
        return max(list(self._times.values()), default=None)

    @property
    def wanted(self) -> list[int]:
        """The vbuckets to be streamed; none before there is a cluster map."""
        return self._coordinator.look()[0]

    def seqno_reports(self) -> dict[str, tuple[int, Mapping[int, int]]]:
        """By connection, how often its node has reported its high seqnos, and the last report."""
        return self._coordinator.reports()

    def connection_of(self, vbucket: int) -> str | None:
        """Name of the connection that a wanted vbucket belongs to; None while no node has it."""
        placement = self._coordinator.placement
        return None if placement is None else placement.connection_of(vbucket)

    @property
    def as_of(self) -> dict[int, Position]:
        """Where each finished vbucket is complete: the end of its last snapshot."""
        return dict(sorted(self._coordinator.done.items()))

    def _note(self, error: CbframeError) -> None:
        """Keep a problem; the last one may be reported twice, to the receiver and as the end of all."""
        problem = Problem(
            self._clock(), type(error).__name__, error.message, error.hint, error.node, error.vbucket
        )
        if not self._problems or replace(problem, at=self._problems[-1].at) != self._problems[-1]:
            self._problems.append(problem)
