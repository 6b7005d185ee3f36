"""The state of anything that streams, at one moment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from cbframe.dcp.records import VBucketPhase, VBucketTable, Window, empty_table
from cbframe.dcp.source import Problem
from cbframe.dcp.stats import BucketDataSourceStats
from cbframe.dcp.streams import VBucketState

_PHASE_OF = {
    "requested": VBucketPhase.REQUESTED,
    "running": VBucketPhase.RUNNING,
    "closing": VBucketPhase.CLOSING,
}
ENDED = frozenset({"complete", "failed", "finished", "closed"})
"""States after which nothing changes any more."""
REOPENED_FOR = 15.0
"""Seconds for which a stream counts as reopened."""


@runtime_checkable
class Watched(Protocol):
    """What can be looked at. A :class:`~cbframe.BucketDataSource` tells more, and that is used, too."""

    def stats(self) -> BucketDataSourceStats: ...
    def vbucket_states(self) -> dict[int, VBucketState]: ...
    def progress(self) -> tuple[int, int]: ...


@dataclass(frozen=True, slots=True, eq=False)
class StatsSnapshot:
    """What was seen at one moment. It does not change."""

    at: float  # seconds of the model's clock
    bucket: str  # its name; empty where nobody tells
    state: str
    bounded: bool  # whether there is an end to reach
    reached: int  # seqnos of a bounded source, summed over its vbuckets
    wanted: int
    stats: BucketDataSourceStats  # all counters, in all and by node
    table: VBucketTable  # the vbuckets as columns. A vbucket without a stream has the seqno that it had last
    lag: npt.NDArray[np.int64]
    moved_at: npt.NDArray[np.float64]
    windows: Mapping[str, Window]  # flow control, by node
    problems: tuple[Problem, ...]  # the last ones, oldest first

    @property
    def ended(self) -> bool:
        """Whether nothing changes any more."""
        return self.state in ENDED

    @property
    def documents(self) -> int:
        """Data messages of all kinds."""
        return self.stats.total.documents

    @property
    def total_lag(self) -> int | None:
        """Seqnos still to come, over all vbuckets; None where nothing is known."""
        return total_of(self.lag)

    @property
    def reconnects(self) -> int:
        """Connections beyond the first of each node."""
        return sum(reconnects_of(stats.tot_worker_connect_ok) for stats in self.stats.nodes.values())

    @property
    def fill(self) -> float:
        """Of the fullest flow-control window, between 0 and 1."""
        return max((window.fill for window in self.windows.values()), default=0.0)

    @property
    def share(self) -> float | None:
        """How much of a bounded source is received, between 0 and 1; None without an end."""
        if not self.bounded:
            return None
        if self.wanted:
            return min(1.0, self.reached / self.wanted)
        return float(self.state == "complete")

    def reopened(self) -> npt.NDArray[np.bool_]:
        """The vbuckets that moved a short while ago."""
        return self.moved_at > self.at - REOPENED_FOR


def reconnects_of(connections: int) -> int:
    """How many of a node's connections were not the first."""
    return max(0, connections - 1)


def total_of(lag: npt.NDArray[np.int64]) -> int | None:
    """The sum of what is known; None where nothing is."""
    known = lag[lag >= 0]
    return sum(known.tolist()) if len(known) else None


def take_snapshot(
    source: Watched | None, *, at: float, state: str | None = None, before: StatsSnapshot | None = None
) -> StatsSnapshot:
    """Look at a source."""
    if source is None:
        return _nothing(at, state or "waiting")
    stats = source.stats()
    reached, wanted = source.progress()
    table = _table_of(source)
    if before is not None and len(before.table) == len(table):
        moved_at = np.where(_moved(before.table, table), at, before.moved_at)
        table = _with_last_known(table, before.table)
    else:
        moved_at = np.full(len(table), -np.inf)
    return StatsSnapshot(
        at=at,
        bucket=_told(source, "bucket", ""),
        state=state or _state_of(source, table),
        bounded=_told(source, "bounded", wanted > 0),
        reached=reached,
        wanted=wanted,
        stats=stats,
        table=table,
        lag=_read_only(_lag(table)),
        moved_at=_read_only(moved_at),
        windows=MappingProxyType(_told(source, "windows", {})),
        problems=_told(source, "problems", ()),
    )


def _nothing(at: float, state: str) -> StatsSnapshot:
    return StatsSnapshot(
        at=at,
        bucket="",
        state=state,
        bounded=False,
        reached=0,
        wanted=0,
        stats=BucketDataSourceStats((), {}, at=at),
        table=empty_table(),
        lag=_read_only(np.zeros(0, np.int64)),
        moved_at=_read_only(np.zeros(0)),
        windows=MappingProxyType({}),
        problems=(),
    )


def _state_of(source: Watched, table: VBucketTable) -> str:
    """What the source says of itself, and how far it is with it."""
    state: str = _told(source, "state", "running")
    if state == "running" and not (table.phase >= VBucketPhase.REQUESTED).any():
        return "connecting"
    return state


def _told(source: object, name: str, otherwise: Any) -> Any:
    """What a source says of itself, by an attribute or a method, if it has one."""
    value = getattr(source, name, otherwise)
    return value() if callable(value) else value


def _table_of(source: Watched) -> VBucketTable:
    taken = _told(source, "vbucket_table", None)
    return taken if isinstance(taken, VBucketTable) else _from_states(source.vbucket_states())


def _from_states(states: Mapping[int, VBucketState]) -> VBucketTable:
    """A table of what streams are there; a vbucket without one is unknown."""
    size = 1 << max(states).bit_length() if states else 0
    nodes = tuple(sorted({state.node for state in states.values()}))
    phase, owner = np.zeros(size, np.uint8), np.full(size, -1, np.int16)
    seqno, high = np.full(size, -1, np.int64), np.full(size, -1, np.int64)
    vbuuid = np.zeros(size, np.uint64)
    for vb, state in states.items():
        phase[vb] = _PHASE_OF.get(state.state, VBucketPhase.WAITING)
        owner[vb] = nodes.index(state.node)
        seqno[vb] = state.seqno
        high[vb] = max(state.seqno, state.snap_end) if state.snap_end < 1 << 63 else -1
        vbuuid[vb] = state.failover_log[0].vbuuid if state.failover_log else 0
    return VBucketTable(nodes, phase, owner, seqno, high, vbuuid)


def _moved(before: VBucketTable, now: VBucketTable) -> npt.NDArray[np.bool_]:
    """The vbuckets that have another owner or another history than before."""
    places = {node: index for index, node in enumerate(now.nodes)}
    # One more, for "no owner": index −1 finds the last.
    renamed = np.array([*(places.get(node, -2) for node in before.nodes), -1], np.int16)
    # Without an owner it has not arrived anywhere yet.
    elsewhere = (renamed[before.owner] != now.owner) & (now.owner >= 0)
    other_history = (before.vbuuid != now.vbuuid) & (before.vbuuid != 0) & (now.vbuuid != 0)
    moved: npt.NDArray[np.bool_] = elsewhere | other_history
    return moved


def _with_last_known(now: VBucketTable, before: VBucketTable) -> VBucketTable:
    silent = now.seqno < 0
    if not silent.any():
        return now
    return VBucketTable(
        now.nodes,
        now.phase,
        now.owner,
        np.where(silent, before.seqno, now.seqno),
        np.where(silent & (now.high < 0), before.high, now.high),
        np.where(silent, before.vbuuid, now.vbuuid),
    )


def _lag(table: VBucketTable) -> npt.NDArray[np.int64]:
    lag = np.maximum(table.high - np.maximum(table.seqno, 0), 0)
    lag[table.phase == VBucketPhase.DONE] = 0
    lag[(table.high < 0) & (table.phase != VBucketPhase.DONE)] = -1
    lag[table.phase == VBucketPhase.UNWANTED] = -1
    return lag


def _read_only(array: Any) -> Any:
    array.flags.writeable = False
    return array
