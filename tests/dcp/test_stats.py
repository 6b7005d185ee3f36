"""Pictures of counters: they do not change, they can be copied, and two of them make rates."""

from __future__ import annotations

from collections import Counter

import pytest

from cbframe.dcp.stats import COUNTERS, BucketDataSourceStats, ClusterCounters, NodeStats

BIG = (1 << 40) + 7


def picture(at: float = 0.0, **nodes: NodeStats) -> BucketDataSourceStats:
    return BucketDataSourceStats([ClusterCounters(tot_kick=2), ClusterCounters(tot_kick=3)], nodes, at=at)


def test_a_picture_does_not_change() -> None:
    node = NodeStats(bytes_received=1)
    stats = picture(a=node, b=NodeStats(bytes_received=BIG))
    node.bytes_received += 1
    assert (stats.bytes_received, stats.nodes["a"].bytes_received) == (BIG + 1, 1)
    assert stats.tot_kick == 5
    with pytest.raises(AttributeError, match="do not change"):
        stats.tot_kick = 6  # type: ignore[misc]
    with pytest.raises(AttributeError, match="do not change"):
        del stats.nodes
    with pytest.raises(AttributeError, match="no counter 'tot_nothing'"):
        _ = stats.tot_nothing
    assert set(COUNTERS) <= set(dir(stats))
    assert "2 nodes" in repr(stats)


def test_counters_beyond_32_bits_are_copied_and_others_left_alone() -> None:
    dest = Counter({"mine": 1, "tot_kick": 9})
    picture(a=NodeStats(tot_upr_noop=BIG)).atomic_copy_to(dest)
    assert (dest["tot_upr_noop"], dest["tot_kick"], dest["mine"]) == (BIG, 5, 1)
    assert set(dest) == {"mine", *COUNTERS}


def test_counters_are_combined() -> None:
    dest = {"tot_kick": 9}
    picture().atomic_copy_to(dest, lambda own, other: other - own)
    assert dest["tot_kick"] == 4
    assert dest["tot_start"] == 0


def test_two_pictures_make_rates() -> None:
    before = picture(10.0, a=NodeStats(bytes_received=100))
    after = picture(12.0, a=NodeStats(bytes_received=500), b=NodeStats(bytes_received=60))
    rates = after - before
    assert (rates.seconds, rates.counts["bytes_received"]) == (2.0, 460)
    assert (rates.bytes_received, rates.tot_kick) == (230.0, 0.0)
    assert (rates.nodes["a"].bytes_received, rates.nodes["b"].bytes_received) == (200.0, 30.0)
    assert (before - before).bytes_received == 0.0
    assert "230 bytes/s" in repr(rates)
    with pytest.raises(AttributeError, match="no counter"):
        _ = rates.tot_nothing
    with pytest.raises(TypeError):
        _ = after - 1
