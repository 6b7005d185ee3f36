"""Vbuckets as columns, from what a source knows of them."""

from __future__ import annotations

import numpy as np
import pytest

from cbframe.cluster.cluster_map import ClusterMap
from cbframe.dcp.positions import Position
from cbframe.dcp.records import VBucketPhase, VBucketTable, Window, take_table
from cbframe.dcp.streams import Stream, StreamState
from cbframe.wire.constants import MAX_SEQNO
from cbframe.wire.messages import FailoverEntry


def cluster_map(*active: int) -> ClusterMap:
    return ClusterMap("travel", "u", (1, 1), ("a:1", "b:1"), np.array(active, np.int16))


def stream(vbucket: int, seqno: int, snap_end: int, state: StreamState = StreamState.RUNNING) -> Stream:
    log = (FailoverEntry(0xABC, 0),) if state is not StreamState.REQUESTED else ()
    reached = np.array([seqno], np.uint64)
    return Stream(vbucket, 1, 0, MAX_SEQNO, state, log, reached=reached, snap_end=snap_end)


def take(found: ClusterMap | None, **fields: object) -> VBucketTable:
    arguments = {"wanted": (), "done": (), "ends": {}, "high_seqnos": {}, "streams": (), **fields}
    return take_table(found, **arguments)  # type: ignore[arg-type]


def test_before_there_is_a_map() -> None:
    assert len(take(None)) == 0


def test_phases() -> None:
    table = take(
        cluster_map(0, 0, -1, 1, 1, 1, 1),
        wanted=range(1, 7),
        streams=[
            stream(3, 0, 0, StreamState.REQUESTED),
            stream(4, 5, 9),
            stream(5, 9, 9, StreamState.CLOSING),
        ],
        done=[(6, Position.at(0xDEF, 12))],
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
