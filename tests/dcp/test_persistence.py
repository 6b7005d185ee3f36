"""The books of what is on the disks of all copies, the question to a node, and who waits for the answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from cbframe.cluster.cluster_map import ClusterMap
from cbframe.dcp.coordinator import Coordinator
from cbframe.dcp.messages import (
    Event,
    Fail,
    Finish,
    Instruction,
    MapFetched,
    NodeReady,
    NodeSampled,
    OpenStreams,
    Persisted,
    Started,
    StreamEnded,
    StreamRolledBack,
)
from cbframe.dcp.persistence import PersistedSeqnos, observe, warn_of_few_copies
from cbframe.dcp.positions import VBucketOffset
from cbframe.errors import AccessError, ConfigurationError, ConnectError, ReadTimeoutError, ServerError
from cbframe.options import BucketDataSourceOptions
from cbframe.testing import FakeClock
from cbframe.wire.constants import Opcode, Status
from cbframe.wire.framing import Frame, response
from cbframe.wire.messages import Observed, ObserveSeqno

A, B, C = "a:11210", "b:11210", "c:11210"
OPTIONS = BucketDataSourceOptions(recovery_timeout=60, connect_timeout=10, only_persisted=True)


def map_of(*rows: Sequence[int], capabilities: Sequence[str] = ("couchapi",), rev: int = 1) -> ClusterMap:
    table = np.array(rows, np.int16)
    return ClusterMap(
        "bucket",
        "u1",
        (0, rev),
        (A, B, C),
        table[:, 0],
        replicas=table[:, 1:],
        capabilities=frozenset(capabilities),
    )


class Books:
    def __init__(self, *rows: Sequence[int], **more: Any) -> None:
        self.clock = FakeClock()
        self.seqnos = PersistedSeqnos(OPTIONS, self.clock)
        self.nodes = self.seqnos.follow(map_of(*rows, **more))

    def want(self, vbucket: int, vbuuid: int, seqno: int) -> None:
        self.seqnos.want(vbucket, vbuuid, seqno)

    def say(self, node: str, *answers: Observed | None, vbucket: int = 0) -> Any:
        """A node answers what it is asked, about one vbucket after the other."""
        asked = self.seqnos.questions(node)
        found = dict(zip([vb for vb, _ in asked], answers, strict=True))
        return self.seqnos.answered(node, asked, found)


def has(persisted: int, vbuuid: int = 7, **older: int) -> Observed:
    return Observed(0, vbuuid, persisted, 100, **older)


# --- the books


def test_the_copy_that_has_least_decides() -> None:
    books = Books([0, 1, 2])
    assert books.nodes == {A, B, C}
    assert books.seqnos.questions(A) == []
    books.want(0, 7, 20)
    assert books.seqnos.questions(C) == [(0, 7)]
    assert books.say(A, has(30)) == ({}, ())
    assert books.say(B, has(20)) == ({}, ()), "nothing is known of the third"
    assert books.say(C, has(12)) == ({0: (7, 12)}, ())
    assert books.say(C, has(25)) == ({0: (7, 20)}, ())
    assert books.seqnos.questions(A) == [], "all have what was waited for"


def test_no_replica_where_the_map_names_none() -> None:
    books = Books([0, -1, 1], [1, -1, -1])
    assert books.nodes == {A, B}
    books.want(0, 7, 20)
    books.want(1, 8, 5)
    assert books.seqnos.questions(A) == [(0, 7)]
    assert books.say(B, has(20), has(5, 8)) == ({1: (8, 5)}, ())
    assert books.say(A, has(20)) == ({0: (7, 20)}, ())


def test_without_an_owner_nothing_is_known() -> None:
    books = Books([-1, 1])
    books.want(0, 7, 20)
    assert books.nodes == set()
    assert books.seqnos.questions(B) == []


def test_another_history() -> None:
    books = Books([0, 1])
    books.want(0, 7, 20)
    # The replica has not heard of the history yet, or of a newer one than we have.
    books.say(A, has(20))
    assert books.say(B, None) == ({}, ())
    assert books.say(B, has(30, 9, asked=7, ends=12)) == ({0: (7, 12)}, ())
    assert books.say(B, has(3, 9, asked=7, ends=12)) == ({0: (7, 3)}, ())
    # What was said of a former history does not count for the next.
    asked = books.seqnos.questions(A)
    books.want(0, 9, 20)
    assert books.seqnos.answered(A, asked, {0: has(50)}) == ({}, ())
    assert books.say(B, has(50, 9)) == ({}, ())
    assert books.say(A, has(50, 9)) == ({0: (9, 50)}, ())


def test_what_the_owner_has_lost() -> None:
    books = Books([0, 1])
    books.want(0, 7, 20)
    assert books.say(B, has(30, 9, asked=7, ends=12)) == ({}, ()), "a replica says nothing of that"
    assert books.say(A, has(30, 9, asked=7, ends=20)) == ({0: (7, 12)}, ())
    assert books.say(A, has(30, 9, asked=7, ends=19)) == ({0: (7, 12)}, (0,))
    assert books.say(A, None) == ({}, (0,))


def test_nodes_that_leave_and_join() -> None:
    books = Books([0, 1])
    books.want(0, 7, 20)
    books.say(A, has(20))
    asked = books.seqnos.questions(B)
    assert books.seqnos.follow(map_of([0, 2])) == {A, C}
    assert books.seqnos.answered(B, asked, {0: has(20)}) == ({}, ()), "it is no copy any more"
    assert books.seqnos.questions(B) == []
    assert books.say(C, has(20)) == ({0: (7, 20)}, ())


def test_more_is_waited_for_and_none_any_more() -> None:
    books = Books([0])
    books.want(0, 7, 20)
    books.want(0, 7, 10)
    assert books.say(A, has(15)) == ({0: (7, 15)}, ())
    assert books.seqnos.questions(A)
    books.want(0, 0, 0)
    books.want(0, 0, 0)
    assert books.seqnos.questions(A) == []


def test_when_nothing_gets_on() -> None:
    books = Books([0, 1])
    books.want(0, 7, 20)
    books.clock.now += 59
    assert books.seqnos.overdue() is None
    books.say(A, has(20))
    books.clock.now += 59
    books.say(B, has(3))
    books.clock.now += 59
    books.say(B, has(4))  # a little is enough
    books.clock.now += 59
    books.say(B, has(4))
    assert books.seqnos.overdue() is None
    books.clock.now += 1
    error = books.seqnos.overdue()
    assert isinstance(error, ReadTimeoutError)
    assert (error.node, error.vbucket, error.permanent) == (B, 0, True)
    assert "seqno 20" in error.message
    assert "60 s" in error.message
    books.seqnos.follow(map_of([-1, 1]))
    error = books.seqnos.overdue()
    assert error is not None
    assert error.node is None
    books.want(0, 0, 0)
    assert books.seqnos.overdue() is None


def test_a_bucket_without_disks() -> None:
    books = Books([0], capabilities=["dcp"])
    books.want(0, 7, 20)
    books.clock.now += 30
    assert books.seqnos.overdue() is None, "nobody has said anything yet"
    books.say(A, has(0))
    books.clock.now += 9
    assert books.seqnos.overdue() is None
    books.clock.now += 1
    error = books.seqnos.overdue()
    assert isinstance(error, ConfigurationError)
    assert "within 10 s" in error.message
    books.say(A, has(1))
    books.clock.now += 30
    assert books.seqnos.overdue() is None, "it has one"


def test_what_can_be_promised() -> None:
    warn_of_few_copies(map_of([0, 1], [1, 0]))  # a warning would be an error
    with pytest.warns(UserWarning, match="bucket 'bucket' has no replicas: "):
        warn_of_few_copies(map_of([0], [1]))
    with pytest.warns(UserWarning, match="has no replica of 1 vbuckets now: "):
        warn_of_few_copies(map_of([0, 1], [1, -1]))


# --- the question


def asked_of(answers: dict[int, tuple[int, bytes]]) -> Any:
    """What comes of asking about vbuckets, all in one go, given status and value of each answer."""
    steps = observe([(vb, 7) for vb in answers])
    frames = next(steps)
    assert [ObserveSeqno.parse(frame) for frame in frames] == [ObserveSeqno(vb, 7) for vb in answers]
    try:
        for status, value in answers.values():
            assert steps.send(answer(status, value)) == []
    except StopIteration as done:
        return done.value
    raise AssertionError("there was no end")


def answer(status: int, value: bytes = b"") -> Frame:
    return response(Opcode.OBSERVE_SEQNO, opaque=1, status=status, value=value)


def test_answers() -> None:
    newer = has(30, 9, asked=7, ends=12)
    found = asked_of(
        {
            1: (Status.SUCCESS, has(5).encode()),
            2: (Status.KEY_ENOENT, b""),
            3: (Status.NOT_MY_VBUCKET, b"{}"),
            4: (Status.SUCCESS, newer.encode()),
        }
    )
    assert found == {1: has(5), 2: None, 4: newer}


@pytest.mark.parametrize(
    ("status", "kind", "hint"),
    [
        (Status.EACCESS, AccessError, "Data Reader"),
        (Status.UNKNOWN_COMMAND, ServerError, "leave only_persisted out"),
        (Status.NOT_SUPPORTED, ServerError, "leave only_persisted out"),
    ],
)
def test_refusals(status: Status, kind: type[ServerError], hint: str) -> None:
    with pytest.raises(kind, match="OBSERVE_SEQNO was refused") as caught:
        asked_of({1: (status, b"")})
    assert caught.value.permanent
    assert hint in (caught.value.hint or "")


def test_a_node_that_is_busy_is_asked_again() -> None:
    with pytest.raises(ServerError) as caught:
        asked_of({1: (Status.ETMPFAIL, b"")})
    assert not caught.value.permanent


# --- who waits


class Hand:
    """A coordinator of two vbuckets on one node, with everything received."""

    def __init__(self, **options: Any) -> None:
        self.coordinator = Coordinator(None, replace(OPTIONS, seq_end="now", **options))
        self.now = 0.0
        self.said: list[Instruction] = []
        for event in (Started(), MapFetched(map_of([0, 1], [0, 1])), NodeReady(A, {0: 5, 1: 9})):
            self(event)
        self.end(0, 5)
        self.end(1, 9)

    def __call__(self, event: Event) -> list[Instruction]:
        self.said = self.coordinator.handle(event, self.now)
        return self.said

    def end(self, vbucket: int, seqno: int, vbuuid: int = 7) -> list[Instruction]:
        return self(StreamEnded(A, vbucket, 0, VBucketOffset.at(vbuuid, seqno), progressed=True))

    @property
    def unsettled(self) -> dict[int, int]:
        return {vb: at.seqno for vb, at in self.coordinator.unsettled.items()}


def test_a_source_is_complete_when_all_is_on_disk() -> None:
    hand = Hand()
    assert hand.unsettled == {0: 5, 1: 9}
    assert hand(Persisted({0: (7, 5), 1: (7, 8)})) == []
    assert hand.unsettled == {1: 9}
    assert hand(Persisted({1: (8, 9)})) == [], "that is another history"
    assert hand(Persisted({1: (7, 9)})) == [Finish()]


def test_without_it_nothing_is_waited_for() -> None:
    hand = Hand(only_persisted=False)
    assert hand.said == [Finish()]


def test_what_was_lost_is_read_again() -> None:
    hand = Hand()
    assert hand(Persisted({0: (7, 5)}, (1,))) != []
    hand(NodeSampled(A, {0: 5, 1: 4}))
    assert hand.said == [OpenStreams(A, ((1, 4),))]
    assert hand(Persisted({1: (7, 9)}, (1,))) == [], "it is being looked at"
    hand(StreamRolledBack(A, 1))
    hand(NodeSampled(A, {0: 5, 1: 4}))
    assert hand.said == [OpenStreams(A, ((1, 4),))]
    assert hand.end(1, 4, vbuuid=8) == []
    assert hand.unsettled == {1: 4}
    assert hand(Persisted({1: (8, 4)})) == [Finish()]


def test_what_was_not_lost_after_all() -> None:
    hand = Hand()
    hand(Persisted({0: (7, 5)}, (1,)))
    hand(NodeSampled(A, {0: 5, 1: 9}))
    hand.end(1, 9, vbuuid=8)
    assert hand.unsettled == {1: 9}
    assert hand(Persisted({1: (8, 9)})) == [Finish()]


def test_an_error_ends_a_source_that_can_fail() -> None:
    hand = Hand()
    error = ConnectError("it is over")
    assert hand(Persisted(error=error)) == [Fail(error)]
    endless = Coordinator(None, replace(OPTIONS, endless_retry=True))
    assert endless.handle(Persisted(error=error), 0.0) == []
