"""What streams, as tests say: counters, vbuckets and problems, set by hand."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from cbframe.dcp.stats import (
    BucketDataSourceStats,
    ClusterCounters,
    NodeStats,
    Problem,
    VBucketPhase,
    VBucketTable,
    Window,
)
from cbframe.dcp.streams import VBucketState
from cbframe.testing import FakeClock


class Source:
    """Looks like a :class:`~cbframe.BucketDataSource`.

    Attributes
    ----------
    nodes
        Counters by address.
    phase, owner, seqno, high, vbuuid
        As of a :class:`~cbframe.dcp.stats.VBucketTable`.
    """

    def __init__(self, clock: FakeClock, *, vbuckets: int = 8, nodes: int = 2, bounded: bool = False) -> None:
        self.clock = clock
        self.bucket = "travel"
        self.state = "running"
        self.bounded = bounded
        self.nodes = {f"n{number}:11210": NodeStats() for number in range(nodes)}
        self.phase = np.full(vbuckets, VBucketPhase.RUNNING, np.uint8)
        self.owner = (np.arange(vbuckets) * nodes // max(1, vbuckets)).astype(np.int16)
        self.seqno = np.zeros(vbuckets, np.int64)
        self.high = np.full(vbuckets, 100 if bounded else -1, np.int64)
        self.vbuuid = np.arange(1, vbuckets + 1).astype(np.uint64)
        self.problem_list: list[Problem] = []
        self.held = dict.fromkeys(self.nodes, 0)
        self.asked = 0

    def receive(self, documents: int, nbytes: int = 0, node: int = 0) -> None:
        """Some more documents of a node."""
        stats = list(self.nodes.values())[node]
        stats.mutations += documents
        stats.bytes_received += nbytes

    def trouble(self, message: str, hint: str | None = None, node: str | None = None) -> None:
        """Something that goes wrong now."""
        self.problem_list.append(Problem(self.clock(), "ConnectError", message, hint, node))

    def stats(self) -> BucketDataSourceStats:
        done = int((self.phase == VBucketPhase.DONE).sum())
        return BucketDataSourceStats(
            [ClusterCounters(tot_kick=3)],
            self.nodes,
            vbuckets=len(self.phase),
            vbuckets_done=done,
            at=self.clock(),
        )

    def vbucket_states(self) -> dict[int, VBucketState]:
        raise AssertionError("the table tells more")

    def vbucket_table(self) -> VBucketTable:
        columns = (each.copy() for each in (self.phase, self.owner, self.seqno, self.high, self.vbuuid))
        return VBucketTable(tuple(self.nodes), *columns)

    def progress(self) -> tuple[int, int]:
        if not self.bounded:
            return 0, 0
        return int(np.minimum(self.seqno, self.high).sum()), int(self.high.sum())

    def windows(self) -> dict[str, Window]:
        return {node: Window(held, 1000) for node, held in self.held.items()}

    def problems(self) -> tuple[Problem, ...]:
        return tuple(self.problem_list)

    def sample_seqnos(self) -> None:
        self.asked += 1


class Plain:
    """Has the three methods that are needed, and nothing else."""

    def __init__(self, states: dict[int, VBucketState]) -> None:
        self.states = states

    def stats(self) -> BucketDataSourceStats:
        return BucketDataSourceStats([], {"n0:11210": NodeStats(mutations=7)})

    def vbucket_states(self) -> dict[int, VBucketState]:
        return self.states

    def progress(self) -> tuple[int, int]:
        return 30, 40


class Stream:
    """Looks like a change stream: it has a source, and can be paused."""

    def __init__(self, source: Source | None) -> None:
        self.source = source
        self.state = "running"
        self.calls: list[str] = []

    def pause(self) -> None:
        self.calls.append("pause")
        self.state = "paused"

    def resume(self) -> None:
        self.calls.append("resume")
        self.state = "running"

    def close(self) -> None:
        self.calls.append("close")
        self.state = "closed"


def every(seconds: float, clock: FakeClock, times: int) -> Iterable[int]:
    """Count, while the clock goes on before each number."""
    for number in range(times):
        clock.advance(seconds)
        yield number
