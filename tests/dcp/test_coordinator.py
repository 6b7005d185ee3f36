"""Events in, instructions out, with a clock moved by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import pytest

from cbframe.cluster.cluster_map import ClusterMap
from cbframe.dcp.coordinator import Coordinator
from cbframe.dcp.messages import (
    CloseStreams,
    Event,
    Fail,
    FetchMap,
    Finish,
    Instruction,
    Kicked,
    MapFailed,
    MapFetched,
    NodeDown,
    NodeReady,
    NodeSampled,
    OpenStreams,
    SampleNode,
    Started,
    StartNode,
    StopNode,
    StreamEnded,
    StreamRefused,
    StreamRolledBack,
    Tick,
)
from cbframe.dcp.positions import VBucketOffset
from cbframe.dcp.transport import TURNS
from cbframe.errors import (
    AccessError,
    AllServerURLsConnectBucketError,
    AuthFailError,
    BucketNotFoundError,
    CbframeError,
    ClusterMapError,
    ConfigurationError,
    ConnectError,
    ProtocolError,
    StreamError,
)
from cbframe.options import BucketDataSourceOptions
from cbframe.wire.constants import MAX_SEQNO, Status, StreamEndReason

A, B = "a:11210", "b:11210"
CUT = ConnectError("cut")
LEFT = "the node has left the cluster map"


def cluster(*owners: int, rev: int = 1, uuid: str = "u1") -> ClusterMap:
    return ClusterMap("bucket", uuid, (0, rev), (A, B), np.array(owners, np.int16))


class Hand:
    """A coordinator, its clock, what it has said, and when."""

    def __init__(
        self,
        seq_end: Mapping[int, int] | Literal["now"] | None = "now",
        vbuckets: list[int] | None = None,
        **options: Any,
    ) -> None:
        options.setdefault("map_poll_interval", None)
        self.coordinator = Coordinator(vbuckets, BucketDataSourceOptions(seq_end=seq_end, **options))
        self.now = 1000.0
        self.received = 0
        self.said: list[Instruction] = []
        self.times: list[float] = []

    def __call__(self, event: Event) -> list[Instruction]:
        out = self.coordinator.handle(event, self.now, self.received)
        self.said += out
        self.times += [self.now] * len(out)
        return out

    def tick(self) -> list[Instruction]:
        """Go on to the next wake-up."""
        wakeup = self.coordinator.next_wakeup()
        assert wakeup is not None
        self.now = max(self.now, wakeup)
        return self(Tick())

    def until(self, kind: type, limit: int = 50) -> Instruction:
        for _ in range(limit):
            for instruction in self.tick():
                if isinstance(instruction, kind):
                    return instruction
        raise AssertionError(f"no {kind.__name__} within {limit} wake-ups")

    def play(self, world: Mapping[type, list[Event]], *events: Event, until: Callable[[], bool]) -> None:
        """Events and wake-ups, with what the world answers to each kind of instruction."""
        queue = list(events)
        for _ in range(2000):
            if until():
                return
            for instruction in self(queue.pop(0)) if queue else self.tick():
                queue += world.get(type(instruction), [])
        raise AssertionError("it did not come to this")

    def begin(self, new: ClusterMap) -> list[Instruction]:
        assert self(Started()) == [FetchMap()]
        return self(MapFetched(new))

    def streaming(self, *seqnos: int, on: ClusterMap | None = None) -> Hand:
        """All streams open: of one node, or of those of a map."""
        on = cluster(*(0 for _ in seqnos)) if on is None else on
        self.begin(on)
        for number, node in enumerate(on.nodes):
            if number in on.active:
                self(NodeReady(node, {vb: s for vb, s in enumerate(seqnos) if on.active[vb] == number}))
        return self

    @property
    def failed(self) -> bool:
        return any(isinstance(each, Fail) for each in self.said)

    def error(self) -> CbframeError:
        (failure,) = (i for i in self.said if isinstance(i, Fail))
        return failure.error


def end(vb: int, reason: int = 0, *, node: str = A, seqno: int = 9, progressed: bool = True) -> StreamEnded:
    return StreamEnded(node, vb, reason, VBucketOffset.at(1, seqno), progressed)


# --- the plain way


def test_all_ends_are_pinned_before_a_stream_opens() -> None:
    hand = Hand()
    assert hand.begin(cluster(0, 1, 0, 1)) == [StartNode(A), StartNode(B)]
    assert hand(NodeReady(A, {0: 5, 2: 7})) == []
    hand.now += 3
    out = hand(NodeReady(B, {1: 6, 3: 8}))
    assert sorted(out, key=repr) == [OpenStreams(A, ((0, 5), (2, 7))), OpenStreams(B, ((1, 6), (3, 8)))]
    assert hand.coordinator.ends == {0: 5, 1: 6, 2: 7, 3: 8}
    for vb, node in ((0, A), (1, B), (2, A)):
        assert hand(end(vb, node=node)) == []
    assert hand(end(3, node=B)) == [Finish()]
    assert hand.coordinator.next_wakeup() is None
    assert hand(Tick()) == []


def test_empty_vbuckets_are_done_without_a_stream() -> None:
    hand = Hand()
    hand.begin(cluster(0, 0))
    assert hand(NodeReady(A, {0: 0, 1: 4})) == [OpenStreams(A, ((1, 4),))]
    assert hand.coordinator.done == {0: VBucketOffset()}
    assert hand(end(1)) == [Finish()]
    assert Hand().streaming(0, 0).said[-1] == Finish()


def test_an_explicit_end_needs_no_sample() -> None:
    """And it may lie ahead."""
    hand = Hand({0: 3})
    hand.begin(cluster(0, 0))
    assert hand(NodeReady(A, {})) == [OpenStreams(A, ((0, 3), (1, MAX_SEQNO)))]
    assert Hand({0: 9}).streaming(5)(NodeSampled(A, {0: 5})) == []


def test_wanted_vbuckets() -> None:
    hand = Hand(vbuckets=[2, 0, 2])
    hand.begin(cluster(0, 1, 0))
    assert hand(NodeReady(A, {0: 1, 2: 2})) == [OpenStreams(A, ((0, 1), (2, 2)))]
    assert hand.coordinator.vbuckets == 2


@pytest.mark.parametrize("bad", [-1, 3])
def test_a_vbucket_out_of_range(bad: int) -> None:
    hand = Hand(vbuckets=[0, bad])
    hand.begin(cluster(0, 0, 0))
    assert isinstance(hand.error(), ConfigurationError)
    assert str(bad) in str(hand.error())


def test_no_vbuckets_is_finished_at_once() -> None:
    assert Hand(vbuckets=[]).begin(cluster(0)) == [Finish()]


def test_unbounded_never_ends() -> None:
    hand = Hand(None).streaming(1, 0)
    assert hand.said[-1] == OpenStreams(A, ((0, MAX_SEQNO), (1, MAX_SEQNO)))
    hand(end(0))
    assert hand.until(OpenStreams) == OpenStreams(A, ((0, MAX_SEQNO),))
    error = AuthFailError("wrong")
    for _ in range(20):
        hand(NodeDown(A, error, progressed=False))
        hand.now += 100
        assert StartNode(A) in hand(Tick())
        hand(MapFailed(error))
    assert not any(isinstance(i, Fail | Finish) for i in hand.said)


# --- nodes


def test_a_node_that_is_down_is_tried_again_later_and_later() -> None:
    hand = Hand()
    down: list[Event] = [NodeDown(A, CUT, progressed=False)]
    world: dict[type, list[Event]] = {FetchMap: [MapFetched(cluster(0))], StartNode: down}
    hand.play(world, Started(), until=lambda: hand.said.count(StartNode(A)) == 9)
    started = [at for at, said in zip(hand.times, hand.said, strict=True) if said == StartNode(A)]
    waits = [round(after - before, 3) for before, after in pairwise(started)]
    assert waits[:3] == [0.1, 0.15, 0.225]
    assert waits[-1] == 1.0


def test_progress_resets_the_wait_for_a_node() -> None:
    hand = Hand(None).streaming(1)
    waits = []
    for progressed in (False, False, True):
        hand(NodeDown(A, CUT, progressed))
        began = hand.now
        hand.until(StartNode)
        waits.append(round(hand.now - began, 3))
        hand(NodeReady(A, {0: 1}))
    assert waits == [0.1, 0.15, 0.1]


def test_after_a_failure_the_map_is_looked_at_and_the_new_owner_asked() -> None:
    hand = Hand().streaming(5)
    hand(NodeDown(A, CUT, progressed=True))
    hand.until(FetchMap)
    assert StartNode(B) in hand(MapFetched(cluster(1, rev=2)))
    assert hand(NodeReady(B, {0: 9})) == [OpenStreams(B, ((0, 5),))]


def test_a_history_that_lost_its_end_is_read_as_far_as_it_goes() -> None:
    hand = Hand().streaming(5)
    hand(NodeDown(A, CUT, progressed=True))
    hand.until(StartNode)
    assert hand(NodeReady(A, {0: 3})) == [OpenStreams(A, ((0, 3),))]
    assert hand.coordinator.ends == {0: 5}


def test_a_flush_to_nothing_is_still_asked_for() -> None:
    """The receiver has documents that are gone: only the server's answer says so."""
    hand = Hand().streaming(5)
    hand(end(0, StreamEndReason.STATE_CHANGED))
    assert hand.until(SampleNode) == SampleNode(A)
    assert hand(NodeSampled(A, {0: 0})) == [OpenStreams(A, ((0, 0),))]
    hand(StreamRolledBack(A, 0))
    assert hand(NodeSampled(A, {0: 0})) == [OpenStreams(A, ((0, 0),))]
    assert hand(end(0, seqno=0)) == [Finish()]


def test_a_history_that_loses_its_end_between_sample_and_request() -> None:
    """Regression: the server granted the stream and waited for the old end, and so did we."""
    hand = Hand().streaming(5, 6)
    assert hand(NodeSampled(A, {0: 0, 1: 6})) == [CloseStreams(A, (0,))]
    hand(end(0, StreamEndReason.CLOSED, seqno=0, progressed=False))
    assert hand.until(SampleNode) == SampleNode(A)
    assert hand(NodeSampled(A, {0: 0, 1: 6})) == [OpenStreams(A, ((0, 0),))]
    assert hand(NodeSampled(A, {0: 0, 1: 6})) == []


def test_three_connections_of_broken_bytes_are_no_accident() -> None:
    hand = Hand().streaming(5)
    for count in range(3):
        assert not hand.failed, count
        hand(NodeDown(A, ProtocolError("garbage"), progressed=True))
    assert isinstance(hand.error(), ProtocolError)


def test_events_of_unknown_nodes_are_ignored() -> None:
    hand = Hand().streaming(5)
    assert hand(NodeDown("c:1", CUT, progressed=False)) == []
    assert hand(NodeSampled("c:1", {})) == []


# --- streams


@pytest.mark.parametrize(
    "reason",
    [
        *(StreamEndReason.CLOSED, StreamEndReason.STATE_CHANGED, StreamEndReason.DISCONNECTED),
        *(StreamEndReason.TOO_SLOW, StreamEndReason.BACKFILL_FAIL, StreamEndReason.ROLLBACK, 77),
    ],
)
def test_reasons_to_ask_again(reason: int) -> None:
    hand = Hand().streaming(5)
    out = hand(end(0, reason))
    if reason == StreamEndReason.ROLLBACK:
        assert out == [SampleNode(A)]
    else:
        assert out == []
        assert hand.until(SampleNode) == SampleNode(A)
    assert hand(NodeSampled(A, {0: 7})) == [OpenStreams(A, ((0, 5),))]
    wants_map = reason == StreamEndReason.STATE_CHANGED
    assert (FetchMap() in hand.said[1:]) == wants_map or hand.coordinator.next_wakeup() is not None


@pytest.mark.parametrize("seq_end", ["now", None])
def test_a_filter_without_collections_is_done(seq_end: Literal["now"] | None) -> None:
    assert Hand(seq_end).streaming(5)(end(0, StreamEndReason.FILTER_EMPTY)) == [Finish()]


def test_lost_privileges_end_a_bounded_source() -> None:
    hand = Hand().streaming(5)
    hand(end(0, StreamEndReason.LOST_PRIVILEGES))
    assert isinstance(hand.error(), AccessError)


def test_not_my_vbucket_leads_to_the_new_owner() -> None:
    hand = Hand().streaming(5)
    assert hand(StreamRefused(A, 0, Status.NOT_MY_VBUCKET)) == []
    assert hand(MapFetched(cluster(1, rev=2))) == []
    assert hand.until(StartNode) == StartNode(B)
    assert hand(NodeReady(B, {0: 5})) == [OpenStreams(B, ((0, 5),))]


def test_a_node_that_does_not_have_the_vbucket_is_asked_again_with_a_new_map() -> None:
    hand = Hand()
    hand.begin(cluster(0))
    assert hand(NodeReady(A, {})) == [SampleNode(A)]
    assert hand(NodeSampled(A, {})) == []
    hand.until(FetchMap)
    assert not any(isinstance(i, OpenStreams) for i in hand.said)


@pytest.mark.parametrize(
    "status", [Status.UNKNOWN_COLLECTION, Status.UNKNOWN_SCOPE, Status.EACCESS, Status.EINVAL]
)
def test_permanent_refusals(status: int) -> None:
    hand = Hand().streaming(5)
    hand(StreamRefused(A, 0, status))
    assert isinstance(hand.error(), AccessError if status == Status.EACCESS else StreamError)
    assert (hand.error().node, hand.error().vbucket) == (A, 0)


@pytest.mark.parametrize("status", [Status.ENOMEM, Status.ETMPFAIL, Status.KEY_EEXISTS, 0x7777])
def test_other_refusals_wait_until_the_patience_is_over(status: int) -> None:
    hand = Hand(recovery_timeout=5.0).streaming(5)
    world: dict[type, list[Event]] = {SampleNode: [NodeSampled(A, {0: 5}), StreamRefused(A, 0, status)]}
    hand.play(world, end(0, StreamEndReason.TOO_SLOW), until=lambda: hand.failed)
    assert "no progress for 5 s, 1 of 1 vbuckets" in str(hand.error())
    assert Status.describe(status) in str(hand.error())
    assert 1005 < hand.now < 1008
    assert sum(isinstance(i, OpenStreams) for i in hand.said) < 20


def test_a_failure_after_a_long_healthy_read_is_no_reason_to_give_up() -> None:
    hand = Hand(recovery_timeout=5.0).streaming(5, 5)
    hand.now += 20
    hand(Tick())
    for _ in range(3):
        hand.now += 1000
        hand(end(0, StreamEndReason.TOO_SLOW))
        hand.until(SampleNode)
        hand(NodeSampled(A, {0: 5, 1: 5}))
        hand(StreamRefused(A, 0, Status.ETMPFAIL))
        hand.until(SampleNode)
        hand(NodeSampled(A, {0: 5, 1: 5}))
    assert not hand.failed


@pytest.mark.parametrize("received", [True, False])
def test_documents_of_any_stream_are_progress(received: bool) -> None:
    """Streams that go on for long do not end: that documents come must count, too."""
    hand = Hand(recovery_timeout=5.0).streaming(5, 5, 5)
    hand.now += 20
    hand(Tick())
    for vb in (0, 1):
        hand.received += received
        hand(StreamRefused(A, vb, Status.ETMPFAIL))
        hand.now += 1000
    assert hand.failed is not received


def test_a_source_without_an_end_is_not_patient_with_a_node_because_others_send() -> None:
    hand = unending(recovery_timeout=5.0).streaming(5)
    began = hand.now
    while not hand.failed:
        hand.received += 1
        hand(MapFailed(CUT))
        hand.now += 1
        assert hand.now < began + 60
    assert hand.now > began + 5


def test_a_rollback_is_followed_at_once_but_not_for_ever() -> None:
    hand = Hand(recovery_timeout=5.0).streaming(5)
    hand.now += 11
    hand(Tick())
    began, rounds = hand.now, 0
    while not hand.failed:
        rounds += 1
        assert rounds < 50
        out = hand(StreamRolledBack(A, 0))
        assert (out == [SampleNode(A)]) == (rounds <= 2) or isinstance(out[0], Fail)
        if not out:
            hand.until(SampleNode)
        hand(NodeSampled(A, {0: 5}))
    assert "rollbacks" in str(hand.error())
    assert hand.now - began > 5


# --- the cluster


@pytest.mark.parametrize("seq_end", ["now", {}])
def test_no_owner_until_the_timeout(seq_end: Mapping[int, int] | Literal["now"]) -> None:
    hand = Hand(seq_end, connect_timeout=4.0)
    hand.begin(cluster(0, -1))
    world: dict[type, list[Event]] = {FetchMap: [MapFetched(cluster(0, -1))]}
    hand.play(world, NodeReady(A, {0: 5}), until=lambda: hand.failed)
    assert isinstance(hand.error(), ClusterMapError)
    assert hand.error().vbucket == 1
    assert hand.now == 1004


def test_an_owner_that_goes_for_good_ends_a_read_under_way() -> None:
    hand = Hand(connect_timeout=4.0, recovery_timeout=6.0).streaming(5)
    hand.now += 4
    world: dict[type, list[Event]] = {FetchMap: [MapFetched(cluster(-1, rev=2))]}
    hand.play(world, Tick(), NodeDown(A, CUT, progressed=True), until=lambda: hand.failed)
    assert "names no owner" in str(hand.error())


def test_a_silent_cluster() -> None:
    """The last resort: the threads of the nodes have their own time-outs."""
    hand = Hand(connect_timeout=4.0)
    hand.begin(cluster(0, 1))
    assert isinstance(hand.until(Fail), Fail)
    assert isinstance(hand.error(), AllServerURLsConnectBucketError)
    assert A in str(hand.error())
    assert hand.now == 1004 + TURNS * 4


def test_a_cluster_that_is_far_away() -> None:
    """Regression: the turns of a map and of all handshakes together had the time of one."""
    hand = Hand(connect_timeout=4.0)
    assert hand(Started()) == [FetchMap()]
    hand.now += 9
    assert hand(MapFetched(cluster(0, 1))) == [StartNode(A), StartNode(B)]
    hand.now += 3
    assert hand(NodeReady(A, {0: 5})) == []
    hand.now += 6
    assert hand(Tick()) == []
    out = hand(NodeReady(B, {1: 6}))
    assert sorted(out, key=repr) == [OpenStreams(A, ((0, 5),)), OpenStreams(B, ((1, 6),))]


def test_a_node_that_was_tried_and_failed_is_not_waited_for() -> None:
    hand = Hand(connect_timeout=4.0)
    hand.begin(cluster(0, 1))
    hand.now += 3
    hand(NodeReady(A, {0: 5}))
    hand.now += 3
    assert Fail(CUT) not in hand(NodeDown(B, CUT, progressed=False))
    hand.until(StartNode)
    hand.now += 1
    assert hand(NodeDown(B, CUT, progressed=False))[-1:] == [Fail(CUT)]


def test_a_permanent_error_ends_a_bounded_source_at_once() -> None:
    hand, error = Hand(), AuthFailError("wrong")
    hand(Started())
    assert hand(MapFailed(error)) == [Fail(error)]


def test_map_failures_are_repeated_with_pauses() -> None:
    hand = Hand(connect_timeout=5.0)
    hand.play({FetchMap: [MapFailed(CUT)]}, Started(), until=lambda: hand.failed)
    assert 5 < hand.said.count(FetchMap()) - 1 < 15
    assert hand.error() is CUT


def test_a_kick_fetches_a_map() -> None:
    hand = Hand(None).streaming(5)
    hand(Kicked("because"))
    hand(Kicked("because"))
    hand.until(FetchMap)
    assert hand.said.count(FetchMap()) == 2


@pytest.mark.parametrize("seq_end", ["now", None])
@pytest.mark.parametrize(
    "new", [cluster(0, uuid="u2"), cluster(0, 0, rev=2)], ids=["other uuid", "other number of vbuckets"]
)
def test_another_bucket_ends_every_source(seq_end: Literal["now"] | None, new: ClusterMap) -> None:
    hand = Hand(seq_end).streaming(5)
    hand(MapFetched(new))
    assert isinstance(hand.error(), ClusterMapError)


# --- no busy loop


def test_a_node_that_nothing_is_wanted_of_is_not_waited_for() -> None:
    """Regression: its retry time lay in the past for ever, and the supervisor never slept."""
    hand = Hand().streaming(5, 5, on=cluster(0, 1))
    hand(end(0))
    hand(NodeDown(A, CUT, progressed=True))
    ticks = 0
    while (wakeup := hand.coordinator.next_wakeup()) is not None:
        hand.now = max(hand.now, wakeup) + 0.001
        if FetchMap() in hand(Tick()):
            hand(MapFetched(cluster(0, 1)))
        ticks += 1
        assert ticks < 5
    assert StartNode(A) not in hand.said[2:]


@pytest.mark.parametrize("seq_end", ["now", None, {0: 5}])
def test_wakeups_are_never_in_the_past_for_ever(seq_end: Any) -> None:
    """A node that always fails, one that always refuses, and one vbucket without owner."""
    hand = Hand(seq_end, recovery_timeout=1e9, connect_timeout=1e9)
    hand.begin(cluster(0, 1, -1))
    stuck = 0
    queue: list[Event] = []
    for _ in range(2000):
        before = hand.now
        if queue:
            out = hand(queue.pop(0))
        else:
            out = hand.tick()
            stuck = stuck + 1 if hand.now == before and not out else 0
            assert stuck < 3
        for instruction in out:
            match instruction:
                case FetchMap():
                    queue.append(MapFetched(cluster(0, 1, -1)))
                case StartNode(node="a:11210"):
                    queue.append(NodeDown(A, CUT, progressed=False))
                case StartNode() | SampleNode():
                    queue.append(NodeReady(B, {1: 5}))
                case OpenStreams(streams=streams):
                    queue += [StreamRefused(B, vb, Status.ETMPFAIL) for vb, _ in streams]
    seconds = hand.now - 1000
    assert seconds > 100
    assert len(hand.said) < 12 * seconds


# --- following the map


def only(owners: int, *nodes: str, rev: int = 1) -> ClusterMap:
    return ClusterMap("bucket", "u1", (0, rev), nodes, np.zeros(owners, np.int16))


def test_a_node_that_left_the_map_is_stopped_before_others_are_asked() -> None:
    hand = Hand(None).streaming(5, on=only(1, A))
    assert hand(MapFetched(only(1, B, rev=2), pushed=True)) == [StopNode(A, LEFT)]
    # Its thread may still deliver documents of the vbucket.
    assert hand(MapFetched(only(1, B, rev=3), pushed=True)) == []
    assert hand(NodeDown(A, CUT, progressed=False)) == [StartNode(B)]
    assert hand(NodeReady(B, {0: 5})) == [OpenStreams(B, ((0, MAX_SEQNO),))]


def test_a_node_that_left_the_map_while_it_was_connected_to() -> None:
    hand = Hand(None)
    hand.begin(only(1, A))
    assert hand(MapFetched(only(1, B, rev=2))) == [StopNode(A, LEFT), StartNode(B)]
    assert hand(NodeReady(A, {0: 5})) == []
    assert hand(NodeReady(B, {0: 5})) == [OpenStreams(B, ((0, MAX_SEQNO),))]


def test_a_node_that_left_and_came_back() -> None:
    hand = Hand(None).streaming(5, on=only(1, A))
    hand(MapFetched(only(1, B, rev=2)))
    assert hand(MapFetched(only(1, A, rev=3))) == []
    hand(NodeDown(A, CUT, progressed=False))
    assert hand.until(StartNode) == StartNode(A)


def test_the_map_is_looked_at_every_now_and_then() -> None:
    hand = Hand(None, map_poll_interval=10).streaming(5)
    for _ in range(5):
        began = hand.now
        assert hand.tick() == [FetchMap()]
        assert hand.now == began + 10
        assert hand.coordinator.next_wakeup() is None, "one fetch at a time"
        hand(MapFetched(cluster(0)))


def test_a_routine_look_that_fails_is_no_failure_of_the_read() -> None:
    hand = Hand(map_poll_interval=10, recovery_timeout=15).streaming(5)
    hand.now += 20
    for _ in range(10):
        assert hand.until(FetchMap)
        hand(MapFailed(CUT))
    assert not hand.failed
    assert hand.said.count(FetchMap()) == 11


@pytest.mark.parametrize("error", [AuthFailError("no"), AccessError("no")])
def test_a_password_that_was_changed_meanwhile_is_no_failure_of_the_read(error: CbframeError) -> None:
    """The connections that it has go on; it fails when it needs another map."""
    error.permanent = True
    hand = Hand(map_poll_interval=10, recovery_timeout=15).streaming(5)
    for _ in range(3):
        assert hand.until(FetchMap)
        hand(MapFailed(error))
    assert not hand.failed
    hand(Kicked("a stream was refused"))
    assert hand.until(FetchMap)
    hand(MapFailed(error))
    assert hand.error() is error


def test_a_pushed_map_does_not_end_the_fetch_under_way() -> None:
    hand = Hand(None)
    assert hand(Started()) == [FetchMap()]
    hand(MapFetched(cluster(0), pushed=True))
    hand(Kicked("test"))
    assert hand.coordinator.next_wakeup() is None
    hand(MapFetched(cluster(0)))
    hand(Kicked("test"))
    assert hand.until(FetchMap)


def test_a_stale_map_with_a_refusal_is_not_believed() -> None:
    """The node answers NOT_MY_VBUCKET with an older map, or with none: a newer one is fetched."""
    hand = Hand(None).streaming(5, on=cluster(0, rev=5))
    for pushed in (False, True):
        hand(MapFetched(cluster(1, rev=4), pushed=pushed))
        assert hand.coordinator.map == cluster(0, rev=5)
    hand(StreamRefused(A, 0, Status.NOT_MY_VBUCKET))
    assert hand.until(FetchMap)
    assert StartNode(B) not in hand.said
    hand(MapFetched(cluster(1, rev=6)))
    hand(StreamRefused(A, 0, Status.NOT_MY_VBUCKET))
    assert hand.until(StartNode) == StartNode(B)


@pytest.mark.parametrize("seq_end", ["now", None])
def test_a_deleted_bucket_ends_every_source(seq_end: Literal["now"] | None) -> None:
    hand = Hand(seq_end, recovery_timeout=30).streaming(5)
    began = hand.now
    world: dict[type, list[Event]] = {
        FetchMap: [MapFailed(BucketNotFoundError("gone"))],
        StartNode: [NodeDown(A, CUT, progressed=False)],
    }
    hand.play(world, NodeDown(A, CUT, progressed=True), until=lambda: hand.failed)
    assert isinstance(hand.error(), BucketNotFoundError)
    assert hand.coordinator.next_wakeup() is None
    assert hand.now - began < 40


@pytest.mark.parametrize("permanent", [True, False])
def test_a_bucket_that_was_never_there_ends_every_source(permanent: bool) -> None:
    """Also one without an end, after the time in which it might have come."""
    hand = Hand(None, recovery_timeout=30)
    error = BucketNotFoundError("none")
    error.permanent = permanent
    began = hand.now
    hand.play({FetchMap: [MapFailed(error)]}, Started(), until=lambda: hand.failed)
    assert hand.error() is error
    assert began + 30 < hand.now < began + 40


@pytest.mark.parametrize("status", [Status.CONFIG_ONLY, Status.NO_BUCKET, Status.BUCKET_PAUSED])
def test_a_stream_of_a_bucket_that_is_not_there_yet(status: Status) -> None:
    """The map says what became of the bucket; while it has it, the stream is asked for again."""
    hand = Hand().streaming(5)
    hand(StreamRefused(A, 0, status))
    assert hand.until(FetchMap)
    hand(MapFetched(cluster(0)))
    assert SampleNode(A) in hand.said
    hand(NodeSampled(A, {0: 5}))
    assert hand.said.count(OpenStreams(A, ((0, 5),))) == 2
    assert not hand.failed


def test_a_bucket_that_another_node_knows_is_not_gone() -> None:
    hand = Hand(None, recovery_timeout=30).streaming(5)
    for _ in range(4):
        hand(Kicked("test"))
        hand.until(FetchMap)
        hand(MapFailed(BucketNotFoundError("not warmed up here")))
        hand.until(FetchMap)
        hand(MapFetched(cluster(0)))
        hand.now += 20
    assert not hand.failed


@pytest.mark.parametrize("status", [Status.EBUSY, Status.ETMPFAIL, Status.ENOMEM, Status.NOT_SUPPORTED, 0x7F])
def test_a_vbucket_that_is_refused_for_ever_neither_spins_nor_stops_the_others(status: int) -> None:
    hand = Hand(None, map_poll_interval=10).streaming(5, 5, on=cluster(0, 1))
    began, before, refused = hand.now, len(hand.said), StreamRefused(A, 0, status)
    world: dict[type, list[Event]] = {OpenStreams: [refused], FetchMap: [MapFetched(cluster(0, 1))]}
    hand.play(world, refused, until=lambda: hand.now >= began + 600)
    said, again = hand.said[before:], OpenStreams(A, ((0, MAX_SEQNO),))
    assert all(each in (FetchMap(), again) for each in said)
    # About one a second, as data_manager_sleep_max_ms says.
    assert 500 < said.count(again) < 700
    assert said.count(FetchMap()) < 65


@pytest.mark.parametrize("reason", [1, 3, 4, 200])
def test_other_reasons_of_a_stream_end_are_told(reason: int) -> None:
    hand = Hand(recovery_timeout=1).streaming(5)
    for _ in range(20):
        if hand.failed:
            break
        hand(end(0, reason, progressed=False))
        hand.now += 1
        hand(Tick())
        hand(NodeSampled(A, {0: 5}))
    assert isinstance(hand.error(), StreamError)
    assert "ended the stream" in str(hand.error())


# --- streams without an end that can fail


def unending(**options: Any) -> Hand:
    return Hand(None, endless_retry=False, **options)


@pytest.mark.parametrize("error", [AuthFailError("wrong"), AccessError("no"), BucketNotFoundError("none")])
def test_what_cannot_be_healed(error: CbframeError) -> None:
    """A source that tries for ever outlives it; one that does not ends with it."""
    hand = unending()
    hand(Started())
    hand(MapFailed(error))
    assert hand.error() is error
    hand = Hand(None)
    hand(Started())
    hand(MapFailed(error))
    hand.until(FetchMap)
    assert not hand.failed


def test_it_has_to_get_to_its_streams() -> None:
    hand = unending(connect_timeout=4.0)
    hand.play({FetchMap: [MapFailed(CUT)]}, Started(), until=lambda: hand.failed)
    assert hand.error() is CUT
    assert 1004 <= hand.now < 1010


def test_it_ends_after_failures_only() -> None:
    hand = unending(recovery_timeout=5.0).streaming(5)
    began, down = hand.now, NodeDown(A, CUT, progressed=False)
    hand.play({StartNode: [down]}, down, until=lambda: hand.failed)
    assert began + 5 < hand.now < began + 60
    assert "attempts have failed for 5 s; last problem: cut" in hand.error().message
    assert "last checkpoint" in str(hand.error().hint)


def test_a_failure_long_after_another_is_the_first() -> None:
    hand = unending(recovery_timeout=5.0).streaming(5)
    hand(NodeDown(A, CUT, progressed=False))
    hand.until(StartNode)
    hand(NodeReady(A, {0: 5}))
    # Nothing changes in the bucket for an hour, and so nothing comes.
    hand.now += 3600
    hand(NodeDown(A, CUT, progressed=False))
    hand.until(StartNode)
    assert not hand.failed


def test_high_seqnos_of_all_nodes() -> None:
    assert Hand(None).streaming(5, 7, on=cluster(0, 1)).coordinator.high_seqnos == {0: 5, 1: 7}


# --- vbuckets that were complete, and nodes that lose data afterwards


def strict(*seqnos: int) -> Hand:
    return Hand(consistency="strict").streaming(*seqnos)


def checked(hand: Hand, *seqnos: int) -> list[Instruction]:
    """The node reports its high seqnos again, before anything is asked for again."""
    assert hand.said[-1] == SampleNode(A)
    return hand(NodeSampled(A, dict(enumerate(seqnos))))


def test_what_is_complete_is_asked_for_once_more() -> None:
    """From where it ended to where it ended; what was empty has nothing to lose."""
    hand = strict(5, 0, 7)
    hand(end(0, seqno=5))
    assert hand(end(2, seqno=7)) == [SampleNode(A)]
    assert checked(hand, 5, 0, 7) == [OpenStreams(A, ((0, 5), (2, 7)))]
    assert hand(end(0, seqno=4)) == []
    assert hand.coordinator.done[0] == VBucketOffset.at(1, 5)
    assert hand(end(2, seqno=7)) == [Finish()]


def test_what_was_lost_is_read_again_and_checked_again() -> None:
    hand = strict(5, 7)
    hand(end(0, seqno=5))
    hand(end(1, seqno=7))
    checked(hand, 3, 7)
    hand(end(1, seqno=7))
    assert hand(StreamRolledBack(A, 0)) == [SampleNode(A)]
    assert 0 not in hand.coordinator.done
    assert checked(hand, 3, 7) == [OpenStreams(A, ((0, 3),))]
    assert hand(end(0, seqno=3)) == [SampleNode(A)]
    assert hand.coordinator.done == {0: VBucketOffset.at(1, 3), 1: VBucketOffset.at(1, 7)}
    assert checked(hand, 3, 7) == [OpenStreams(A, ((0, 3), (1, 7)))]
    hand(end(0, seqno=3))
    assert hand(end(1, seqno=7)) == [Finish()]


@pytest.mark.parametrize(
    "disturbance",
    [NodeDown(A, CUT, progressed=True), MapFetched(cluster(0, rev=2)), end(0, StreamEndReason.STATE_CHANGED)],
    ids=["lost connection", "new map", "moved"],
)
def test_what_happens_during_the_check_is_checked(disturbance: Event) -> None:
    hand = strict(5)
    hand(end(0, seqno=5))
    checked(hand, 5)
    hand(disturbance)
    rounds = 0
    for _ in range(50):
        last = hand.said[-1]
        if last == Finish():
            break
        if last == SampleNode(A):
            hand(NodeSampled(A, {0: 5}))
        elif last == StartNode(A):
            hand(NodeReady(A, {0: 5}))
        elif last == FetchMap():
            hand(MapFetched(cluster(0, rev=2)))
        elif last == OpenStreams(A, ((0, 5),)):
            rounds += 1
            hand(end(0, seqno=5))
        if hand.said[-1] == last:
            hand.tick()
    assert hand.said[-1] == Finish()
    assert rounds >= 2


def test_without_it_nothing_is_asked_for_again() -> None:
    hand = Hand().streaming(5)
    hand(NodeDown(A, CUT, progressed=True))
    hand.until(StartNode)
    hand(NodeReady(A, {0: 5}))
    assert hand(end(0, seqno=5)) == [Finish()]


# --- several connections to a node

A2, A3, B2 = f"{A}#2", f"{A}#3", f"{B}#2"


def opened(out: list[Instruction]) -> dict[str, list[int]]:
    """The vbuckets that are asked for, by connection."""
    return {i.node: [vb for vb, _ in i.streams] for i in out if isinstance(i, OpenStreams)}


def ready(hand: Hand, connections: Iterable[str], seqnos: Mapping[int, int]) -> list[Instruction]:
    """All of them, one after the other; what the last one leads to."""
    out: list[Instruction] = []
    for connection in connections:
        out = hand(NodeReady(connection, seqnos))
    return out


def several(each: int, *owners: int) -> tuple[Hand, list[str], dict[str, list[int]]]:
    """So many connections to each node, and the vbuckets that are asked for on them."""
    hand = Hand(connections_per_node=each)
    connections = [i.node for i in hand.begin(cluster(*owners)) if isinstance(i, StartNode)]
    return hand, connections, opened(ready(hand, connections, dict.fromkeys(range(len(owners)), 5)))


def test_the_vbuckets_of_a_node_are_divided_evenly_among_its_connections() -> None:
    """However the nodes' vbuckets lie."""
    for owners in ((0, 1) * 6, (0,) * 6 + (1,) * 6):
        _, connections, streams = several(2, *owners)
        assert sorted(connections) == [A, A2, B, B2]
        assert {node: len(vbs) for node, vbs in streams.items()} == {A: 3, A2: 3, B: 3, B2: 3}
        assert all(owners[vb] == (node.startswith(B)) for node, vbs in streams.items() for vb in vbs)


def test_a_connection_that_is_cut_leaves_the_others() -> None:
    hand, _, streams = several(3, 0, 0, 0, 0, 0, 0)
    assert sorted(streams) == [A, A2, A3]
    out = hand(NodeDown(A2, CUT, progressed=True))
    assert not [i for i in out if isinstance(i, StopNode | CloseStreams | OpenStreams)]
    assert hand.until(StartNode) == StartNode(A2)
    assert opened(hand(NodeReady(A2, dict.fromkeys(range(6), 5)))) == {A2: streams[A2]}


def test_a_vbucket_that_moves_goes_to_the_connection_with_the_fewest() -> None:
    hand, _, before = several(2, 0, 0, 0, 1, 1, 1)
    assert {node: len(vbs) for node, vbs in before.items()} == {A: 2, A2: 1, B: 2, B2: 1}
    hand(MapFetched(cluster(0, 0, 0, 1, 0, 1, rev=2)))
    (owner,) = (node for node, vbs in before.items() if 4 in vbs)
    hand(end(4, StreamEndReason.STATE_CHANGED, node=owner, progressed=False))
    assert hand.until(SampleNode) == SampleNode(A2)
    assert opened(hand(NodeSampled(A2, {4: 5}))) == {A2: [4]}


def test_a_node_that_leaves_takes_all_its_connections_with_it() -> None:
    hand, _, _ = several(2, 0, 0, 1, 1)
    stopped = [i for i in hand(MapFetched(only(4, A, rev=2))) if isinstance(i, StopNode)]
    assert stopped == [StopNode(B, LEFT), StopNode(B2, LEFT)]
    out = hand(NodeDown(B, CUT, progressed=True)) + hand(NodeDown(B2, CUT, progressed=True))
    assert {i.node for i in out if isinstance(i, SampleNode)} == {A, A2}


def test_as_many_connections_as_there_is_work_for() -> None:
    hand = Hand(connections_per_node=3, vbuckets=[1, 5])
    assert sorted(hand.begin(cluster(0, 0, 0, 0, 0, 0)), key=repr) == [StartNode(A2), StartNode(A)]


@pytest.mark.parametrize(
    ("changes", "count", "options"),
    [(999_999, 1, {}), (2_500_000, 3, {}), (10**9, 4, {}), (10**9, 1, {"max_bytes_per_sec": 10**6})],
)
def test_a_large_node_gets_several(changes: int, count: int, options: dict[str, Any]) -> None:
    """By what it has, as it says when the first connection is ready; those then have their part."""
    hand = Hand(connections_per_node="auto", **options)
    assert hand.begin(cluster(*(0,) * 8)) == [StartNode(A)]
    seqnos = dict.fromkeys(range(8), changes // 8)
    out = hand(NodeReady(A, seqnos))
    more = [i.node for i in out if isinstance(i, StartNode)]
    assert len(more) == count - 1
    streams = opened(out if count == 1 else ready(hand, more, seqnos))
    assert sorted(vb for vbs in streams.values() for vb in vbs) == list(range(8))
    assert {len(vbs) for vbs in streams.values()} <= {8 // count, 8 // count + 1}


@pytest.mark.parametrize("wrong", [0, 17, True, 2.0, "many"])
def test_how_many_connections_there_can_be(wrong: Any) -> None:
    with pytest.raises(ConfigurationError, match="connections_per_node is from 1 to 16"):
        BucketDataSourceOptions(connections_per_node=wrong)


def test_a_failing_node_does_not_hold_up_another() -> None:
    hand = Hand({0: 5, 1: 5})
    hand.begin(cluster(0, 1))
    for _ in range(20):
        hand(NodeDown(A, ConnectError("the bucket cannot be selected"), progressed=False))
    assert hand(NodeReady(B, {1: 5})) == [OpenStreams(B, ((1, 5),))]
    hand.until(FetchMap)
    hand(end(1, node=B))
    assert set(hand.coordinator.done) == {1}
