"""What the coordinator knows of each node and of each vbucket."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt

from cbframe.cluster.backoff import Backoff
from cbframe.cluster.cluster_map import ClusterMap
from cbframe.dcp.plan import address_of, connections_to
from cbframe.dcp.positions import Position
from cbframe.dcp.streams import Stream, StreamState
from cbframe.errors import CbframeError, ProtocolError
from cbframe.options import BucketDataSourceOptions
from cbframe.wire.constants import MAX_SEQNO

_MAX_PROTOCOL_ERRORS = 3
"""Connections of one node that may end in broken bytes."""


class NodeState(Enum):
    STARTING = "starting"
    READY = "ready"
    WAITING = "waiting"
    LEAVING = "leaving"
    """No longer in the cluster map; to be stopped."""


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
        before: Self | None = None,  # A vbucket whose node is the same stays where it was,
        resized: str | None = None,  # but for those of this node
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


@dataclass(slots=True)
class NodeRecord:
    """A connection that was wanted at some time."""

    backoff: Backoff
    state: NodeState = NodeState.WAITING
    retry_at: float = 0.0
    seqnos: Mapping[int, int] = field(default_factory=dict)
    """High seqnos of its active vbuckets, as last reported."""
    reports: int = 0
    """How often it has reported them."""
    sampling: bool = False
    tried: bool = False
    """Whether a connection to it has ended: until then its turns have their own time-outs."""
    protocol_errors: int = 0

    def lost(self, error: CbframeError, now: float, *, progressed: bool) -> None:
        """The connection is over: wait before the next one.

        Broken bytes again and again are no accident; then the error is made permanent.
        """
        if progressed:
            self.backoff.reset()
        if isinstance(error, ProtocolError):
            self.protocol_errors += 1
            error.permanent |= self.protocol_errors >= _MAX_PROTOCOL_ERRORS
        self.state, self.tried = NodeState.WAITING, True
        self.sampling = False
        self.retry_at = now + self.backoff.next_delay()


@dataclass(slots=True)
class VBucketRecord:
    """A wanted vbucket."""

    backoff: Backoff
    node: str | None = None
    """Who was asked for it."""
    retry_at: float = 0.0
    end: int = 0
    """Up to where it was asked for."""
    attempts: int = 0
    """How often it was asked for."""
    rollbacks: int = 0
    stale: bool = False
    """Asked for before: the owner's high seqno must be looked at again."""


class VBuckets:
    """The wanted vbuckets: pending, asked of a node, or done."""

    def __init__(self) -> None:
        self.records: dict[int, VBucketRecord] = {}
        self.pending: set[int] = set()
        self.done: dict[int, Position] = {}
        self._unchecked: set[int] = set()

    def begin(self, wanted: Collection[int], options: BucketDataSourceOptions) -> None:
        """Take note of what is wanted; all of it is pending."""
        self.records = {vb: VBucketRecord(node_backoff(options)) for vb in wanted}
        self.pending = set(wanted)

    def ask(self, vb: int, node: str, end: int) -> None:
        """It is being asked of a node, up to `end`."""
        record = self.records[vb]
        record.node, record.end = node, end
        record.attempts += 1
        self.pending.discard(vb)

    def asked(self, node: str) -> list[tuple[int, int]]:
        """Those that were asked of a node and are not over, with their ends."""
        return [(vb, record.end) for vb, record in self.records.items() if record.node == node]

    def lost(self, node: str) -> None:
        """The connection to a node is over: what was asked of it is pending again."""
        for vb, _ in self.asked(node):
            self._give_back(vb)

    def retry(self, vb: int, now: float, *, wait: bool = True) -> None:
        """It failed, and is pending again: at once, or after a while."""
        record = self.records[vb]
        delay = record.backoff.next_delay()
        record.retry_at = now + delay if wait else 0.0
        self._give_back(vb)

    def finish(self, vb: int, position: Position) -> None:
        """It is done, or still is: its stream was asked for again from where it had ended."""
        before = self.done.get(vb)
        if before is not None:
            position = Position.at(position.history, max(position.seqno, before.seqno))
        self.done[vb] = position
        self.pending.discard(vb)
        self._unchecked.discard(vb)
        self.records[vb].node = None

    def withdraw(self, vb: int) -> None:
        """What was done of it is void."""
        self.done.pop(vb, None)
        self._unchecked.discard(vb)

    def check_again(self) -> bool:
        """Ask for what is done once more, from where it ended; whether there is anything to ask for."""
        self._unchecked = {vb for vb, position in self.done.items() if position.seqno}
        for vb in self._unchecked:
            self.records[vb].retry_at = 0.0
            self._give_back(vb)
        return bool(self._unchecked)

    @property
    def missing(self) -> int:
        """How many are not done, or not known to be still."""
        return len(self.records) - len(self.done) + len(self._unchecked)

    @property
    def all_done(self) -> bool:
        return not self.missing

    @property
    def all_tried(self) -> bool:
        """Whether there are some, and each was asked for at least once."""
        tried = (record.attempts or vb in self.done for vb, record in self.records.items())
        return bool(self.records) and all(tried)

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


def map_backoff(options: BucketDataSourceOptions) -> Backoff:
    """The waits for a cluster map."""
    return Backoff(
        options.cluster_manager_sleep_init_ms,
        options.cluster_manager_backoff_factor,
        options.cluster_manager_sleep_max_ms,
    )


_LARGEST = 0x7FFF_FFFF_FFFF_FFFF
"""Seqnos have 64 bits on the wire; what does not fit in a signed integer is the mark for "no end"."""


class VBucketPhase(IntEnum):
    """What becomes of a vbucket at a moment."""

    UNWANTED = 0
    """Not one of the source's."""
    WAITING = 1
    """Wanted, and not asked for: its node is connected to, or is tried again later."""
    OWNERLESS = 2
    """Wanted, and no node has it, as during a failover."""
    REQUESTED = 3
    RUNNING = 4
    CLOSING = 5
    DONE = 6
    """Complete, of a bounded source."""


_PHASES = {
    StreamState.REQUESTED: VBucketPhase.REQUESTED,
    StreamState.RUNNING: VBucketPhase.RUNNING,
    StreamState.CLOSING: VBucketPhase.CLOSING,
    StreamState.OVER: VBucketPhase.WAITING,
}


class Window(NamedTuple):
    """The flow-control window of a node's connection."""

    held: int  # bytes that came and that the receiver has not consumed
    size: int  # bytes that it sends ahead at most; 0 without flow control

    @property
    def fill(self) -> float:
        """Between 0 and 1; more while a document that is larger than the window is held."""
        return self.held / self.size if self.size else 0.0


@dataclass(frozen=True, slots=True, eq=False)
class VBucketTable:
    """The vbuckets of a bucket at one moment. Arrays have one entry for each, and are read-only."""

    nodes: tuple[str, ...]
    phase: npt.NDArray[np.uint8]  # uint8, a VBucketPhase
    owner: npt.NDArray[np.int16]  # int16, index into `nodes` of the owner by the newest map, −1 for none
    seqno: npt.NDArray[np.int64]  # int64, received last; −1 where no stream tells
    high: npt.NDArray[np.int64]
    vbuuid: npt.NDArray[np.uint64]  # uint64, the history that is streamed; 0 where no stream tells

    def __post_init__(self) -> None:
        for column in (self.phase, self.owner, self.seqno, self.high, self.vbuuid):
            column.flags.writeable = False

    def __len__(self) -> int:
        return len(self.phase)


def take_table(
    cluster_map: ClusterMap | None,  # the newest; without one the table is empty
    *,
    wanted: Iterable[int],  # the source's vbuckets
    done: Iterable[tuple[int, Position]],
    ends: Mapping[int, int],
    high_seqnos: Mapping[str, Mapping[int, int]],
    streams: Iterable[Stream],  # those of all connections
    placement: Placement | None = None,
) -> VBucketTable:
    """Make a table."""
    if cluster_map is None:
        return empty_table()
    size = cluster_map.vbuckets
    nodes = cluster_map.nodes if placement is None else placement.connections
    owner = (cluster_map.active if placement is None else placement.owner).copy()
    phase = np.zeros(size, np.uint8)
    seqno, high = np.full(size, -1, np.int64), np.full(size, -1, np.int64)
    vbuuid = np.zeros(size, np.uint64)
    ours = np.fromiter(wanted, np.intp)
    phase[ours] = np.where(owner[ours] < 0, VBucketPhase.OWNERLESS, VBucketPhase.WAITING)
    for index, node in enumerate(nodes):
        seqnos = high_seqnos.get(node, {})
        of = np.fromiter(seqnos, np.intp, len(seqnos))
        known = np.fromiter(seqnos.values(), np.uint64, len(seqnos))
        its = (of < size) & (owner[np.minimum(of, size - 1)] == index)
        _raise_to(high, of[its], known[its])
    running = list(streams)
    at = np.fromiter((stream.vbucket for stream in running), np.intp, len(running))
    phase[at] = [_PHASES[stream.state] for stream in running]
    seqno[at] = [min(stream.seqno, _LARGEST) for stream in running]
    vbuuid[at] = [stream.vbuuid for stream in running]
    _raise_to(high, at, np.fromiter((stream.snap_end for stream in running), np.uint64, len(running)))
    for vb, end in ends.items():
        if end != MAX_SEQNO:
            high[vb] = min(end, _LARGEST)
    for vb, position in done:
        phase[vb], seqno[vb], vbuuid[vb] = VBucketPhase.DONE, min(position.seqno, _LARGEST), position.vbuuid
    return VBucketTable(nodes, phase, owner, seqno, high, vbuuid)


def empty_table() -> VBucketTable:
    """The table of a source that knows nothing yet."""
    return VBucketTable(
        (),
        np.zeros(0, np.uint8),
        np.zeros(0, np.int16),
        np.zeros(0, np.int64),
        np.zeros(0, np.int64),
        np.zeros(0, np.uint64),
    )


def _raise_to(
    column: npt.NDArray[np.int64], at: npt.NDArray[np.intp], values: npt.NDArray[np.uint64]
) -> None:
    """Set entries to values that are larger; what has the highest bit, as "no end" has, is none."""
    column[at] = np.maximum(column[at], values.astype(np.int64))
