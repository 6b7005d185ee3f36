"""Counters: plain integers that one thread writes and any thread may read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields


@dataclass(slots=True)
class NodeStats:
    """What happened on the connections to one data node.

    Written by that node's thread only. A reader on another thread sees each counter whole, and
    perhaps a moment old.
    """

    mutations: int = 0
    deletions: int = 0
    expirations: int = 0
    bytes_received: int = 0
    receives: int = 0
    blocks: int = 0
    snapshots: int = 0
    streams_requested: int = 0
    streams_opened: int = 0
    streams_ended: int = 0
    streams_refused: int = 0
    rollbacks: int = 0
    noops: int = 0
    buffer_acks: int = 0
    connects: int = 0
    disconnects: int = 0
    errors: int = 0

    @property
    def documents(self) -> int:
        """Data messages of all kinds."""
        return self.mutations + self.deletions + self.expirations

    def copy(self) -> NodeStats:
        return NodeStats(*(getattr(self, name) for name in _COUNTERS))


_COUNTERS = tuple(f.name for f in fields(NodeStats))


@dataclass(frozen=True, slots=True)
class BucketDataSourceStats:
    """A moment's picture of a data source.

    Attributes
    ----------
    nodes
        Counters by node address.
    total
        Their sum.
    cluster_refreshes, cluster_errors, kicks
        Maps asked for, failures among them, calls of ``kick``.
    vbuckets, vbuckets_done
        Wanted, and finished in a bounded read.
    """

    nodes: dict[str, NodeStats]
    total: NodeStats
    cluster_refreshes: int
    cluster_errors: int
    kicks: int
    vbuckets: int
    vbuckets_done: int


def add_up(stats: Iterable[NodeStats]) -> NodeStats:
    """The sum of several nodes' counters."""
    total = NodeStats()
    for node in stats:
        for name in _COUNTERS:
            setattr(total, name, getattr(total, name) + getattr(node, name))
    return total
