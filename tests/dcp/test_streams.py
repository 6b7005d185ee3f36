"""The table of streams: every transition, matching by opaque, requests that continue."""

from __future__ import annotations

from itertools import product

import pytest

from cbframe.dcp.positions import VBucketMetaData, VBucketOffset
from cbframe.dcp.streams import Stream, StreamEvent, StreamState, StreamTable, request_from
from cbframe.errors import ProtocolError
from cbframe.local.dcp import rollback_point
from cbframe.wire.constants import MAX_SEQNO
from cbframe.wire.messages import FailoverEntry, SnapshotMarker, StreamRequest

S, E = StreamState, StreamEvent
ALLOWED = {
    S.REQUESTED: {E.ACCEPTED: S.RUNNING, E.REFUSED: S.OVER},
    S.RUNNING: {E.MARKER: S.RUNNING, E.ITEM: S.RUNNING, E.END: S.OVER, E.CLOSE: S.CLOSING},
    S.CLOSING: {E.MARKER: S.CLOSING, E.ITEM: S.CLOSING, E.END: S.OVER, E.CLOSED: S.OVER},
    S.OVER: {},
}


@pytest.mark.parametrize(("state", "event"), list(product(S, E)))
def test_transitions(state: StreamState, event: StreamEvent) -> None:
    stream = Stream(7, 1, 0, 10, state=state)
    if event in ALLOWED[state]:
        stream.step(event)
        assert stream.state is ALLOWED[state][event]
    else:
        with pytest.raises(ProtocolError, match="out of place") as caught:
            stream.step(event)
        assert caught.value.vbucket == 7
        assert stream.state is state


def running() -> Stream:
    return Stream(7, 1, 0, 10, state=S.RUNNING)


def test_a_marker_begins_a_snapshot_that_is_not_saved_yet() -> None:
    stream = running()
    stream.mark(SnapshotMarker(7, 3, 9, 2))
    assert (stream.snap_start, stream.snap_end, stream.snap_flags) == (3, 9, 2)
    assert (stream.snapshots, stream.snap_saved) == (1, False)


def test_what_is_wrong_with_a_document_out_of_place() -> None:
    stream = running()
    place = {"opcode": 0x57, "offset": 24}
    words = " (opcode 0x57) at offset 24"
    assert stream.misplaced(5, vbucket=7, **place).message == f"seqno 5 after 0 in no snapshot{words}"
    stream.mark(SnapshotMarker(7, 0, 10, 1))
    stream.reach(5)
    assert stream.misplaced(5, vbucket=7, **place).message == f"seqno 5 after 5 in the snapshot 0-10{words}"
    error = stream.misplaced(6, vbucket=8, **place)
    assert error.message == f"a document under the opaque of vbucket 7{words}"
    assert (error.vbucket, error.opcode, error.offset) == (8, 0x57, 24)


@pytest.mark.parametrize("state", [S.REQUESTED, S.OVER])
def test_items_of_a_stream_that_does_not_run(state: StreamState) -> None:
    with pytest.raises(ProtocolError, match="item is out of place"):
        raise Stream(7, 1, 0, 10, state=state).misplaced(1, vbucket=7, opcode=0x57, offset=0)


def test_unordered_items_mark_no_progress() -> None:
    stream = running()
    stream.begin_unordered()
    stream.reach(9)
    assert stream.seqno == 0
    stream.end_unordered()
    assert (stream.seqno, stream.snap_end) == (9, 9)


def test_a_stream_that_is_over_keeps_its_seqno() -> None:
    table = StreamTable()
    first = table.open(StreamRequest(3, 5, 9))
    table.reached[3] = 8
    table.remove(first)
    again = table.open(StreamRequest(3, 2, 9))
    assert (first.seqno, again.seqno) == (8, 2)


def test_vbuuid_is_that_of_the_newest_history() -> None:
    stream = running()
    assert stream.vbuuid == 0
    stream.failover_log = (FailoverEntry(22, 5), FailoverEntry(11, 0))
    assert stream.vbuuid == 22


def test_the_table_matches_by_opaque() -> None:
    table = StreamTable()
    first = table.open(StreamRequest(3))
    second = table.open(StreamRequest(4, 5, 9, 1, 5, 7))
    assert len(table) == 2
    assert list(table) == [first, second]
    assert table.get(first.opaque) is first
    assert table.of_vbucket(4) is second
    assert (second.start, second.seqno, second.end, second.snap_end) == (5, 5, 9, 7)
    with pytest.raises(ValueError, match="already has a stream"):
        table.open(StreamRequest(3))
    table.remove(first)
    assert table.get(first.opaque) is None
    again = table.open(StreamRequest(3))
    assert again.opaque not in (first.opaque, second.opaque)
    assert table.get(first.opaque) is None


def at(seqno: int, snap_start: int, snap_end: int) -> VBucketOffset:
    log = (FailoverEntry(2, 0),)
    return VBucketOffset.of(
        VBucketMetaData(snap_start=snap_start, snap_end=snap_end, failover_log=log), seqno
    )


@pytest.mark.parametrize(
    ("seqno", "stored", "sent"),
    [
        (0, (0, 0), (0, 0)),
        (0, (0, 9), (0, 9)),
        (5, (5, 9), (4, 9)),
        (6, (5, 9), (6 - 1, 9)),
        (9, (5, 9), (9, 9)),
        (12, (5, 9), (12, 12)),
        (4, (5, 9), (4, 4)),
        (0, (5, 9), (0, 0)),
    ],
)
def test_the_range_is_clamped_around_the_seqno(
    seqno: int, stored: tuple[int, int], sent: tuple[int, int]
) -> None:
    request = request_from(1, at(seqno, *stored))
    assert (request.start, request.end, request.vbuuid) == (seqno, MAX_SEQNO, 2 if seqno else 0)
    assert (request.snap_start, request.snap_end) == sent


def test_the_first_change_of_a_snapshot_is_inside_of_it() -> None:
    """A node takes who says otherwise for consistent, whatever became of the rest of the snapshot."""
    request = request_from(1, at(45, 45, 80))
    assert rollback_point(request, [FailoverEntry(9, 64), FailoverEntry(2, 0)], 68) == 44


def test_the_end_is_not_before_the_start() -> None:
    assert request_from(1, at(8, 0, 8), end=5).end == 8


def test_the_end_is_not_inside_a_snapshot_under_way() -> None:
    assert request_from(1, at(6, 0, 9), end=5).end == 9
    assert request_from(1, at(6, 0, 9), end=12).end == 12
