"""What the vbuckets of a source are doing, as columns: cheap enough to be taken several times a second."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cbframe.cluster.cluster_map import ClusterMap
from cbframe.dcp.positions import Position
from cbframe.dcp.records import Placement
from cbframe.dcp.streams import Stream, StreamState
from cbframe.wire.constants import MAX_SEQNO

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
