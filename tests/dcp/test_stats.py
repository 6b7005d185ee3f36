"""Counters of one moment do not change, can be copied, and two of them make rates; vbuckets as columns."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from cbframe.cluster.cluster_map import ClusterMap
from cbframe.dcp.positions import VBucketOffset
from cbframe.dcp.stats import (
    COUNTERS,
    BucketDataSourceStats,
    ClusterCounters,
    NodeStats,
    VBucketPhase,
    VBucketTable,
    Window,
    empty_table,
    vbucket_table,
)
from cbframe.dcp.streams import Stream, StreamState
from cbframe.wire.constants import MAX_SEQNO
from cbframe.wire.messages import FailoverEntry

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
    picture(a=NodeStats(noops=BIG)).atomic_copy_to(dest)
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


# -- vbuckets as columns


def cluster_map(*active: int) -> ClusterMap:
    return ClusterMap("travel", "u", (1, 1), ("a:1", "b:1"), np.array(active, np.int16))


def stream(vbucket: int, seqno: int, snap_end: int, state: StreamState = StreamState.RUNNING) -> Stream:
    log = (FailoverEntry(0xABC, 0),) if state is not StreamState.REQUESTED else ()
    reached = np.array([seqno], np.uint64)
    return Stream(vbucket, 1, 0, MAX_SEQNO, state, log, reached=reached, snap_end=snap_end)


def take(found: ClusterMap, **fields: Any) -> VBucketTable:
    return vbucket_table(found.nodes, found.active, **fields)


def test_before_there_is_a_map() -> None:
    assert len(empty_table()) == 0


def test_phases() -> None:
    table = take(
        cluster_map(0, 0, -1, 1, 1, 1, 1),
        wanted=range(1, 7),
        streams=[
            stream(3, 0, 0, StreamState.REQUESTED),
            stream(4, 5, 9),
            stream(5, 9, 9, StreamState.CLOSING),
        ],
        done=[(6, VBucketOffset.at(0xDEF, 12))],
        ends={6: 10},
    )
    assert table.phase.tolist() == list(VBucketPhase)
    assert table.owner.tolist() == [0, 0, -1, 1, 1, 1, 1]
    assert table.seqno.tolist() == [-1, -1, -1, 0, 5, 9, 12]
    assert table.high.tolist() == [-1, -1, -1, 0, 9, 9, 10]
    assert table.vbuuid.tolist() == [0, 0, 0, 0, 0xABC, 0xABC, 0xDEF]
    with pytest.raises(ValueError, match="read-only"):
        table.phase[0] = 1


def test_where_there_is_something_to_receive() -> None:
    table = take(
        cluster_map(0, 0, 0, 1),
        wanted=range(4),
        # What node b tells of vbucket 2 is history that was lost with it.
        high_seqnos={"a:1": {0: 50, 1: 50, 2: 50}, "b:1": {2: 99, 3: 7, 4: 1, 70_000: 1}, "gone:1": {0: 999}},
        streams=[stream(0, 40, 60), stream(1, 40, 45)],
    )
    assert table.high.tolist() == [60, 50, 50, 7]


def test_no_end_is_no_number() -> None:
    table = take(
        cluster_map(0, 0),
        wanted=range(2),
        ends={0: MAX_SEQNO, 1: 1 << 63},
        streams=[stream(0, 3, MAX_SEQNO), stream(1, 3, 3)],
    )
    assert table.high.tolist() == [-1, (1 << 63) - 1]


def test_windows() -> None:
    assert Window(250, 1000).fill == 0.25
    assert Window(250, 0).fill == 0.0
