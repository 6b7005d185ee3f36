"""The counters of a data source at one moment, and the difference of two."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, MutableMapping
from types import MappingProxyType

from cbframe.dcp.counters import CLUSTER_COUNTERS, NODE_COUNTERS, ClusterCounters, NodeStats, copy_of
from cbframe.dcp.plan import address_of

COUNTERS = (*CLUSTER_COUNTERS, *NODE_COUNTERS)
"""Names of all counters."""


class BucketDataSourceStats:
    """The counters of a data source at one moment. It does not change.

    Every counter of the reference is an attribute, summed over the nodes: ``tot_kick``,
    ``tot_upr_stream_req``… (:class:`~cbframe.dcp.counters.ClusterCounters` and
    :class:`~cbframe.dcp.counters.NodeStats` say what each counts), besides ``bytes_received``,
    ``receives``, ``blocks`` and ``errors``. The difference of two pictures gives rates::

        before = source.stats()
        ...
        rates = source.stats() - before
        rates.bytes_received, rates.nodes["host:11210"].tot_upr_data_change

    Attributes
    ----------
    nodes
        Counters by node address; with several connections to a node also ``host:port#2`` and so on.
    total
        Their sum.
    vbuckets, vbuckets_done
        Wanted, and finished in a bounded read.
    at
        When it was taken, in seconds of the source's clock.
    """

    __slots__ = ("_counts", "at", "nodes", "total", "vbuckets", "vbuckets_done")

    _counts: dict[str, int]
    nodes: Mapping[str, NodeStats]
    total: NodeStats
    vbuckets: int
    vbuckets_done: int
    at: float

    def __init__(
        self,
        cluster: Iterable[ClusterCounters],
        nodes: Mapping[str, NodeStats],
        *,
        vbuckets: int = 0,
        vbuckets_done: int = 0,
        at: float = 0.0,
    ) -> None:
        taken = {address: copy_of(stats) for address, stats in sorted(nodes.items())}
        total = add_up(taken.values())
        parts = list(cluster)
        counts = {name: sum(getattr(part, name) for part in parts) for name in CLUSTER_COUNTERS}
        counts |= {name: getattr(total, name) for name in NODE_COUNTERS}
        set_once = super().__setattr__
        set_once("_counts", counts)
        set_once("nodes", MappingProxyType(taken))
        set_once("total", total)
        set_once("vbuckets", vbuckets)
        set_once("vbuckets_done", vbuckets_done)
        set_once("at", at)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"counters of one moment do not change: {name} cannot be set")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"counters of one moment do not change: {name} cannot be deleted")

    def __getattr__(self, name: str) -> int:
        # Slots that are not set yet end here too, while an object is being copied.
        if name in BucketDataSourceStats.__slots__ or name not in self._counts:
            raise AttributeError(f"there is no counter {name!r}")
        return self._counts[name]

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *COUNTERS]

    def __repr__(self) -> str:
        total, nodes = self.total, len(set(map(address_of, self.nodes)))
        return (
            f"<BucketDataSourceStats: {self.vbuckets_done} of {self.vbuckets} vbuckets done, "
            f"{total.documents:,} documents, {total.bytes_received:,} bytes from {nodes} nodes>"
        )

    def counts(self) -> dict[str, int]:
        """Every counter by its name."""
        return dict(self._counts)

    def atomic_copy_to(
        self, dest: MutableMapping[str, int], fn: Callable[[int, int], int] | None = None
    ) -> None:
        """Copy every counter, or combine it with what `dest` has.

        Parameters
        ----------
        dest
            Counters by name; what is missing counts as 0.
        fn
            Called with a counter of this picture and that of `dest`; what it returns is stored.
            Without it the counters are copied.
        """
        for name, count in self._counts.items():
            dest[name] = count if fn is None else fn(count, dest.get(name, 0))

    def __sub__(self, earlier: object) -> StatsRates:
        if not isinstance(earlier, BucketDataSourceStats):
            return NotImplemented
        seconds = self.at - earlier.at
        none = NodeStats()
        nodes = {
            address: StatsRates(_difference(stats, earlier.nodes.get(address, none)), seconds, {})
            for address, stats in self.nodes.items()
        }
        change = {name: count - getattr(earlier, name) for name, count in self._counts.items()}
        return StatsRates(change, seconds, nodes)


class StatsRates:
    """What happened between two pictures. Each counter is an attribute, in events per second.

    Attributes
    ----------
    seconds
        Between the two.
    counts
        How far each counter moved.
    nodes
        The same by node address.
    """

    __slots__ = ("counts", "nodes", "seconds")

    def __init__(self, counts: Mapping[str, int], seconds: float, nodes: Mapping[str, StatsRates]) -> None:
        self.counts = MappingProxyType(dict(counts))
        self.seconds = seconds
        self.nodes = MappingProxyType(dict(nodes))

    def __getattr__(self, name: str) -> float:
        if name in StatsRates.__slots__ or name not in self.counts:
            raise AttributeError(f"there is no counter {name!r}")
        return self.counts[name] / self.seconds if self.seconds > 0 else 0.0

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self.counts]

    def __repr__(self) -> str:
        return (
            f"<StatsRates over {self.seconds:.1f} s: {self.tot_upr_data_change:,.0f} documents/s, "
            f"{self.bytes_received:,.0f} bytes/s>"
        )


def add_up(stats: Iterable[NodeStats]) -> NodeStats:
    """The sum of several nodes' counters."""
    parts = list(stats)
    return NodeStats(*(sum(getattr(part, name) for part in parts) for name in NODE_COUNTERS))


def _difference(later: NodeStats, earlier: NodeStats) -> dict[str, int]:
    return {name: getattr(later, name) - getattr(earlier, name) for name in NODE_COUNTERS}
