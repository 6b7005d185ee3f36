"""Where streams go on from, and back to: the bookkeeping of one vbucket against a server in memory."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cbframe.dcp.positions import (
    MOST_ENDS,
    Ends,
    ReachedEnds,
    Track,
    VBucketMetaData,
    VBucketOffset,
    thinned,
    u64_of,
)
from cbframe.dcp.streams import request_from
from cbframe.errors import ConfigurationError
from cbframe.local.dcp import rollback_point
from cbframe.wire.constants import MAX_SEQNO
from cbframe.wire.messages import FailoverEntry

LOG = (FailoverEntry(7, 0),)


def at(seqno: int, *ends: int, base: int = 0) -> Track:
    return Track.at(VBucketOffset(seqno, seqno, seqno, ((7, 0),), snapshots=ends, base=base))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"seqno": 4, "snap_start": 5, "snap_end": 9}, "seqno 4, outside of its snapshot, 5 to 9"),
        ({"seqno": 10, "snap_start": 5, "snap_end": 9}, "seqno 10, outside of its snapshot, 5 to 9"),
        ({"seqno": 2**64, "snap_start": 0, "snap_end": 2**64}, "outside of its snapshot"),
        ({"seqno": 3, "snap_end": 3, "base": 4}, "before seqno 4, where the stream began"),
        ({"seqno": 3, "snap_end": 3, "snapshots": (4, 2)}, "before the end of an earlier snapshot, 4"),
    ],
)
def test_a_position_that_cannot_be(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as caught:
        VBucketOffset(**fields)
    assert caught.value.hint


TWO = (FailoverEntry(MAX_SEQNO, 5), FailoverEntry(11, 0))


def test_metadata_and_back() -> None:
    """As the reference writes it."""
    go = (
        b'{"seqStart":0,"seqEnd":0,"snapStart":3,"snapEnd":9,"failOverLog":[[18446744073709551615,5],[11,0]]}'
    )
    assert VBucketMetaData.from_json(go) == VBucketMetaData(0, 0, 3, 9, TWO)
    assert VBucketMetaData(0, 0, 3, 9, TWO).to_json() == go
    assert VBucketMetaData.from_json(b'{"snapEnd":9,"failOverLog":null}') == VBucketMetaData(snap_end=9)
    metadata = VBucketMetaData(0, 0, 3, MAX_SEQNO, TWO)
    assert VBucketMetaData.from_json(metadata.to_json()) == metadata


@pytest.mark.parametrize(
    "data",
    [
        *(b"", b"[]", b"{", b"[" * 100_000, b"\xff"),
        *(b'{"snapEnd":"9"}', b'{"snapEnd":-1}', b'{"snapEnd":1.5}', b'{"snapEnd":1e999}'),
        *(b'{"snapEnd":18446744073709551616}', b'{"failOverLog":[[1]]}', b'{"failOverLog":5}'),
    ],
)
def test_metadata_that_cannot_be_read(data: bytes) -> None:
    with pytest.raises(ConfigurationError, match="not readable"):
        VBucketMetaData.from_json(data)


def test_what_was_stored_and_the_last_seqno() -> None:
    stored = VBucketMetaData(0, 0, 5, 9, LOG, 4, 3)
    assert VBucketOffset.of(stored, 7) == VBucketOffset(7, 5, 9, LOG, 3, 4)
    assert VBucketOffset.of(stored, 7, (2,), 1) == VBucketOffset(7, 5, 9, LOG, 3, 4, (2,), 1)
    assert VBucketOffset.of(stored, 7).metadata == stored
    # A snapshot that is complete.
    assert VBucketOffset.of(stored, 12) == VBucketOffset(12, 12, 12, LOG, 3, 4)
    # One that is not begun: the deletions that were purged from it are needed.
    assert VBucketOffset.of(stored, 2) == VBucketOffset(2, 2, 2, LOG, 3, 0)
    assert VBucketOffset.of(None, 2, (2,), 1) == VBucketOffset(2, 2, 2, snapshots=(2,), base=1)
    assert VBucketOffset.of(None, 2).metadata is None
    assert repr(VBucketOffset(7, 5, 9, LOG)) == (
        "VBucketOffset(seqno=7, snap_start=5, snap_end=9, failover_log=((7, 0),), manifest_uid=0, "
        "purge_seqno=0, snapshots=(), base=0)"
    )


def test_the_history_of_a_position() -> None:
    log = ((3, 20), (2, 10), (1, 0))
    found = {seqno: VBucketOffset(seqno, 0, 99, log).vbuuid for seqno in (0, 9, 10, 19, 20, 99)}
    # At seqno 0 nothing has happened in any history.
    assert found == {0: 0, 9: 1, 10: 2, 19: 2, 20: 3, 99: 3}
    assert VBucketOffset(0, 0, 99, log).history == 3
    assert {seqno: VBucketMetaData(failover_log=LOG).vbuuid_at(seqno) for seqno in (0, 1)} == {0: 0, 1: 7}
    unknown = VBucketOffset(9, 9, 9, log[:2]).vbuuid, VBucketOffset(9, 9, 9).vbuuid, VBucketOffset().history
    assert unknown == (0, 0, 0)


@pytest.mark.parametrize(
    "text", ["", "-1", "+1", "01", "1_0", " 1", "1.0", "٣", "18446744073709551616", 7, None]
)
def test_text_that_is_no_number(text: object) -> None:
    with pytest.raises(ValueError, match=r"no unsigned 64-bit integer|invalid literal"):
        u64_of(text)


def test_a_snapshot_is_complete_with_its_last_item() -> None:
    track = Track()
    track.requested()
    assert not track.marked(5)
    track.advanced(4)
    assert track.position().snapshots == ()
    track.advanced(5)
    assert track.position() == VBucketOffset(5, 5, 5, snapshots=(5,))


def test_a_snapshot_is_complete_when_the_next_one_begins() -> None:
    track = Track()
    track.requested()
    track.marked(5)
    track.advanced(3)
    assert track.marked(9), "the rest was of no interest"
    assert track.position() == VBucketOffset(5, 5, 5, snapshots=(5,))
    track.advanced(9)
    assert not track.marked(12)
    assert track.position().snapshots == (9, 5)


def test_the_next_stream_does_not_complete_a_snapshot() -> None:
    track = Track()
    track.requested()
    track.marked(5)
    track.advanced(3)
    assert track.requested() == VBucketOffset.at(0, 3)
    assert not track.marked(9)
    track.advanced(7)
    assert track.position() == VBucketOffset(7, 7, 7)


def test_a_stream_that_is_granted_is_news_and_a_snapshot_is_not() -> None:
    track = Track()
    track.requested()
    assert track.stored(VBucketMetaData())
    assert not track.stored(VBucketMetaData())


def test_a_rollback_forgets_what_was_purged() -> None:
    """The deletions that it rolls back may be among what was purged: they are needed once more."""
    track = Track.at(VBucketOffset(45, 31, 60, LOG, 0, 20, (30, 10)))
    assert track.rolled_back(15).seqno == 10
    assert track.position() == VBucketOffset(10, 10, 10, LOG, snapshots=(10,))


@pytest.mark.parametrize(
    ("track", "back", "to_base", "seqno", "ends", "base"),
    [
        (at(40, 40, 30, 10), 35, False, 30, (30, 10), 0),  # to the end of a snapshot
        (at(40, 40, 30), 29, False, 0, (), 0),  # where no end is known
        (at(50, base=50), 45, False, 45, (), 45),  # a stream from now on can begin anywhere before
        (at(60, 60, base=50), 55, False, 50, (), 50),
        (at(60, 60, base=50), 0, False, 0, (), 0),
        (at(60, 60, 55, base=50), 57, True, 50, (), 50),  # to where the stream began
        (at(60, 60, 55, base=50), 40, True, 40, (), 40),
        (at(60, 60, 55), 57, True, 0, (), 0),
    ],
)
def test_where_a_rollback_ends(
    track: Track, back: int, to_base: bool, seqno: int, ends: tuple[int, ...], base: int
) -> None:
    assert track.rolled_back(back, to_base=to_base).seqno == track.seqno == seqno
    assert (tuple(track.ends), track.base) == (ends, base)
    log = LOG if seqno else ()
    held = VBucketOffset(seqno, seqno, seqno, log, snapshots=ends, base=base)
    assert track.position() == track.requested() == held


def test_histories_that_began_later_are_forgotten() -> None:
    track = Track.at(VBucketOffset(40, 40, 40, ((9, 35), (8, 20), (7, 0)), snapshots=(40, 30, 10)))
    track.rolled_back(33)
    assert track.position().failover_log == ((8, 20), (7, 0))


@given(st.lists(st.integers(1, 50), min_size=1, max_size=400))
def test_few_ends_are_enough(steps: list[int]) -> None:
    everything: list[int] = [0]
    ends: tuple[int, ...] = ()
    for step in steps:
        everything.append(everything[-1] + step)
        ends = thinned((everything[-1], *ends))
    assert len(ends) <= MOST_ENDS
    assert list(ends) == sorted(set(ends), reverse=True)
    newest = everything[-1]
    for end in everything[1:]:
        if end >= ends[-1]:
            best = max(kept for kept in ends if kept <= end)
            # Twice the distance, and the size of a snapshot.
            assert newest - best <= 2 * (newest - end) + 2 * max(steps)


class Server:
    """One vbucket: every change of every history, and what a stream is sent of it."""

    def __init__(self) -> None:
        self.history: list[tuple[str, int | None]] = []
        """Key and value, None for a deletion."""
        self.log = [FailoverEntry(1, 0)]
        self.number = self.purge_seqno = 0

    def change(self, key: str) -> None:
        self.number += 1
        self.history.append((key, self.number))

    def delete(self, key: str) -> None:
        self.history.append((key, None))

    def purge(self) -> None:
        """Forget the deletions but the newest change, as a compaction does."""
        deletions = (seqno for seqno, (_, value) in enumerate(self.history[:-1], 1) if value is None)
        self.purge_seqno = max(deletions, default=self.purge_seqno)

    def lose(self, count: int) -> None:
        del self.history[max(0, len(self.history) - count) :]
        seqno = len(self.history)
        self.log = [
            FailoverEntry(self.log[0].vbuuid + 1, seqno),
            *(entry for entry in self.log if entry.seqno <= seqno),
        ]
        self.purge_seqno = min(self.purge_seqno, seqno)

    def snapshot(self, start: int, end: int) -> list[tuple[int, str, int | None]]:
        """Changes after `start` up to `end`, without those that a later one replaces, and what is purged."""
        newest = {key: seqno for seqno, (key, _) in enumerate(self.history[:end], 1) if seqno > start}
        found = sorted((seqno, key, self.history[seqno - 1][1]) for key, seqno in newest.items())
        return [item for item in found if item[2] is not None or item[0] > self.purge_seqno]

    def state(self) -> dict[str, int]:
        return documents(self.history)


def documents(changes: Iterable[tuple[str, int | None]]) -> dict[str, int]:
    return {key: value for key, value in dict(changes).items() if value is not None}


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("change"), st.sampled_from("abcdef")),
        st.tuples(st.just("delete"), st.sampled_from("abcdef")),
        st.tuples(st.just("purge"), st.none()),
        st.tuples(st.just("lose"), st.integers(0, 12)),
        # How many items of the next snapshot come before the connection is cut.
        st.tuples(st.just("stream"), st.one_of(st.none(), st.integers(0, 5))),
    ),
    max_size=80,
)


@settings(max_examples=200, deadline=None)
@given(steps=STEPS, to_base=st.booleans())
def test_whatever_is_lost_the_consumer_has_the_truth(steps: list[tuple[str, object]], to_base: bool) -> None:
    server, track = Server(), Track()
    log: list[tuple[int, str, int | None]] = []
    latest: dict[str, tuple[int, int | None]] = {}

    def stream(most: int | None) -> None:
        """One connection: asked for, rolled back as often as wanted, then a snapshot, or a part of it."""
        nonlocal log, latest
        for _ in range(100):
            held = track.requested()
            request = request_from(0, held)
            purge = 0 if held.purge_seqno == server.purge_seqno else server.purge_seqno
            back = rollback_point(request, server.log, len(server.history), purge)
            if back is None:
                break
            target = track.rolled_back(0 if back >= held.seqno else back, to_base=to_base).seqno
            log = [change for change in log if change[0] <= target]
            latest = {key: (at, value) for key, (at, value) in latest.items() if at <= target}
        else:
            raise AssertionError("rollbacks without end")
        failover = tuple(server.log)
        start, end = request.start, len(server.history)
        known = held.purge_seqno
        track.stored(VBucketMetaData(0, 0, start, start, failover, known))
        items = server.snapshot(start, end)
        if not items:
            return
        first = min(request.snap_start, start)
        track.marked(end)
        for number, (seqno, key, value) in enumerate(items):
            if most is not None and number >= most:
                return
            # All of it comes from disk, and so with the purge seqno.
            purged = server.purge_seqno or known
            track.stored(VBucketMetaData(0, 0, first, end, failover, purged))
            track.advanced(seqno)
            log.append((seqno, key, value))
            latest[key] = seqno, value

    for step, argument in steps:
        match step, argument:
            case "change", str(key):
                server.change(key)
            case "delete", str(key):
                server.delete(key)
            case "purge", None:
                server.purge()
            case "lose", int(count):
                server.lose(count)
            case "stream", most:
                stream(most)  # type: ignore[arg-type]
    stream(None)
    if to_base:
        assert documents((key, value) for key, (_, value) in latest.items()) == server.state()
    else:
        assert documents((key, value) for _, key, value in log) == server.state()


def test_ends_that_were_reached() -> None:
    """A plain mapping may lie ahead; what was reached and is not any more is read as far as it goes."""
    ahead, reached = Ends({0: 10}), Ends(ReachedEnds({0: 10}))
    for ends in (ahead, reached):
        ends.begin([0])
        assert ends.known
        assert ends.of(0, {0: 12}) == 10
    assert ahead.of(0, {0: 7}) == 10
    assert reached.of(0, {0: 7}) == 7
