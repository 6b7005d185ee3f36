"""Streams that share the vbuckets of a bucket: batches, acknowledgements and sinks through hand-overs."""

from __future__ import annotations

import copy
import gc
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from failovers import PATIENCE, until

from cbframe import (
    ChangeBatch,
    ChangeStream,
    Checkpoint,
    ConsumerGroup,
    LocalCluster,
    VBucketOffset,
    stream_bucket,
)
from cbframe.arrow.receivers import ChangeReceiver
from cbframe.dcp.source import BucketDataSource
from cbframe.errors import ConfigurationError, GroupError, ReadCancelledError, ResourceError
from cbframe.scan.group import Membership, Records
from cbframe.scan.store import LocalStore
from cbframe.testing import FakeClock

from .consumers import LogKeeper, consume_until, rows_of, truth_of
from .consumers import take as take_batch
from .kit import QUICK, background, create, fill

LEASE = 8.0
BEAT = LEASE / 8


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    """Time goes on as the test says, and leases are renewed when it says so."""
    found = FakeClock(100.0)
    monkeypatch.setattr("cbframe.scan.stream.Membership", partial(Membership, clock=found))
    monkeypatch.setattr(Membership, "start", lambda *_: None)
    for name in ("sync", "sync_folder"):
        monkeypatch.setattr(f"cbframe.scan.store.{name}", lambda _: None)  # nobody pulls a plug
    return found


def opened(cluster: LocalCluster, group: Any, **arguments: Any) -> ChangeStream:
    arguments.setdefault("options", QUICK)
    arguments.setdefault("max_latency", 0)
    return stream_bucket(cluster, group=group, **arguments)


def beat(*streams: ChangeStream) -> None:
    for stream in streams:
        stream._group.beat(stream._position)


def kill(stream: ChangeStream) -> None:
    """End it as SIGKILL does: it says nothing to anybody."""
    stream._group.left.set()
    stream.close()


def stored(folder: Path) -> dict[int, int]:
    """How far the folder says that all vbuckets are: leases, and what was handed over."""
    records = Records(LocalStore(folder))
    owners = records.newest("owners")
    found = dict(owners[1].checkpoint.offsets)
    for name in records.look().keys() - {"owners"}:
        lease = records.newest(name)
        found |= lease[1].checkpoint.offsets
    return {vb: offset.seqno for vb, offset in found.items() if offset.seqno}


class FencedError(Exception):
    pass


class Sink:
    """Keeps every change, with positions and epochs, in transactions; an old epoch is refused."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.log = LogKeeper()
        self.epochs: dict[int, int] = {}
        self.positions: dict[int, VBucketOffset] = {}
        self.seen: set[tuple[int, int]] = set()

    def assigned(self, epochs: Mapping[int, int]) -> dict[int, VBucketOffset]:
        with self.lock:
            for vb, epoch in epochs.items():
                if epoch < self.epochs.get(vb, 0):
                    raise FencedError
                self.epochs[vb] = epoch
            return {vb: self.positions[vb] for vb in epochs if vb in self.positions}

    def store(self, batch: ChangeBatch, epochs: Mapping[int, int]) -> None:
        with self.lock:
            self.seen |= {(vb, seqno) for vb, seqno, _, _ in rows_of(batch)}
            if any(self.epochs[vb] != epochs[vb] for vb in batch.offsets):
                raise FencedError
            self.log.apply(batch)  # a change that comes twice is an error
            self.positions |= batch.offsets


def whole(sink: Sink, cluster: LocalCluster) -> bool:
    high = {vb: seqno for vb, seqno in cluster.high_seqnos().items() if seqno}
    return {vb: log[-1][0] for vb, log in sink.log.log.items() if log} == high


# --- members that come, go, and die


class Life:
    """Up to five members on one thread, which come, go, die and stand still in the order that a seed says."""

    def __init__(self, cluster: LocalCluster, folder: Path, clock: FakeClock, seed: int) -> None:
        self.cluster = cluster
        self.clock = clock
        self.rng = random.Random(seed)
        self.sink = Sink()
        self.group = ConsumerGroup(folder, lease=LEASE, on_assigned=self.sink.assigned)
        self.members: list[ChangeStream] = []
        self.happened: Counter[str] = Counter()
        self.stops = True

    def join(self) -> None:
        self.members.append(opened(self.cluster, self.group, batch_bytes=self.rng.choice([200, 4000])))

    def step(self) -> None:
        """Each member takes and stores a batch; who is refused ends."""
        self.clock.now += BEAT / 2
        for stream in tuple(self.members):
            try:
                beat(stream)
                if (batch := stream.poll(0.002)) is not None:
                    epochs = stream.epochs
                    if self.stops and self.rng.random() < 0.1:
                        self.stand_still(stream)
                    self.sink.store(batch, epochs)
                    stream.ack(batch)
            except (GroupError, FencedError) as exc:
                self.happened[type(exc).__name__] += 1
                self.members.remove(stream)
                kill(stream)

    def stand_still(self, stream: ChangeStream) -> None:
        """With a batch in its hands, until others have what it had."""
        self.happened["stood still"] += 1
        for _ in range(12):
            self.clock.now += BEAT
            for other in self.members:
                if other is not stream:
                    beat(other)
                    if (batch := other.poll(0)) is not None:
                        self.sink.store(batch, other.epochs)
                        other.ack(batch)

    def trouble(self) -> None:
        rng = self.rng
        for _ in range(rng.randrange(8)):
            self.cluster.upsert(f"key-{rng.randrange(50)}", {"n": rng.random()})
        what = rng.random()
        if what < 0.25 and len(self.members) < 5:
            self.join()
        elif what < 0.41 and self.members:
            member = self.members.pop(rng.randrange(len(self.members)))
            self.happened["killed" if what < 0.33 else "left"] += 1
            kill(member) if what < 0.33 else member.close()

    def settle(self) -> None:
        """Let it become whole, and see that it does."""
        self.stops = False
        while len(self.members) < 5:
            self.join()

        def settled() -> bool:
            self.step()
            return whole(self.sink, self.cluster) and self.shares == [3, 3, 3, 3, 4]

        until(settled, lambda: (self.members, self.shares))
        assert self.sink.log.documents() == truth_of(self.cluster)

    @property
    def shares(self) -> list[int]:
        return sorted(len(stream.epochs) for stream in self.members)


def live(folder: Path, clock: FakeClock, seed: int, steps: int) -> Counter[str]:
    with LocalCluster(nodes=2, vbuckets=16, seed=seed) as cluster:
        life = Life(cluster, folder, clock, seed)
        try:
            for _ in range(steps):
                life.trouble()
                life.step()
            life.settle()
        finally:
            for stream in life.members:
                stream.close()
        assert stored(folder) == {vb: seqno for vb, seqno in cluster.high_seqnos().items() if seqno}
    return life.happened


def test_members_that_come_go_and_die(tmp_path: Path, clock: FakeClock) -> None:
    happened = live(tmp_path, clock, seed=3, steps=50)
    for what in ("killed", "left", "stood still", "FencedError"):
        assert happened[what], f"{what}: too little was tested ({happened})"


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("first", range(100, 200, 20))
def test_many_members_that_come_go_and_die(first: int, tmp_path: Path, clock: FakeClock) -> None:
    for seed in range(first, first + 20):
        live(tmp_path / str(seed), clock, seed, steps=100)


# --- one thing at a time


def take(stream: ChangeStream, count: int) -> set[bytes]:
    """So many changes, acknowledged; their keys."""
    keys: set[bytes] = set()
    seen = 0
    while seen < count:
        batch = take_batch(stream)
        rows = rows_of(batch)
        seen += len(rows)
        keys |= {key for _, _, key, _ in rows}
        stream.ack(batch)
    assert seen == count
    return keys


def test_one_member_has_all(cluster: LocalCluster, tmp_path: Path, clock: FakeClock) -> None:
    fill(cluster, 100)
    with opened(cluster, tmp_path) as stream:
        assert stream.state == "waiting"
        assert stream.epochs == {}
        assert len(take(stream, 100)) == 100
        assert sorted(stream.epochs) == list(range(16))
        assert stream.state == "streaming"
        assert stored(tmp_path) == {}
        stream.commit()
        assert stored(tmp_path) == cluster.high_seqnos()
    cluster.upsert("later", {})
    with opened(cluster, str(tmp_path), start="now") as stream:
        assert take(stream, 1) == {b"later"}, "a group that exists goes on where it is"


def test_a_loop_over_batches(cluster: LocalCluster, tmp_path: Path, clock: FakeClock) -> None:
    fill(cluster, 100)
    seen = 0
    with opened(cluster, tmp_path, batch_bytes=500) as stream:
        for batch in stream:
            seen += len(batch)
            if seen == 100:
                stream.ack(batch)
                break
    assert stored(tmp_path) == cluster.high_seqnos()
    assert stream.state == "closed"
    stream.close()


def test_batches_are_as_large_as_without_a_group(
    cluster: LocalCluster, tmp_path: Path, clock: FakeClock
) -> None:
    """Looking after the lease makes no batches of what has come so far."""

    def write(stop: threading.Event) -> None:
        number = 0
        while not stop.wait(0.005):
            number += 1
            cluster.upsert(f"key-{number}", "x" * 100)

    with opened(cluster, tmp_path, batch_bytes=10_000, max_latency=1000) as stream, background(write):
        for _ in range(2):
            batch = stream.poll(None)
            assert batch is not None
            assert len(batch) > 40
            stream.ack(batch)


def test_a_hand_over_waits_for_acknowledgements(pair: LocalCluster, tmp_path: Path, clock: FakeClock) -> None:
    fill(pair, 3000)
    with opened(pair, tmp_path, batch_bytes=500) as first:
        batches = [take_batch(first), take_batch(first)]
        with opened(pair, tmp_path) as second:
            beat(first, second)
            # It gets more, and gives up nothing.
            batches.append(take_batch(first))
            assert len(first.epochs) == 16
            assert second.poll(0) is None
            first.ack(batches[-1])
            more = first.poll(0)  # now it does
            assert len(first.epochs) == 8
            beat(second)
            seen = Counter(row for batch in batches for row in rows_of(batch))
            rest = {first: more, second: second.poll(0)}
            assert len(second.epochs) == 8
            while seen.total() < 3000:
                for stream, waiting in rest.items():
                    batch, rest[stream] = waiting or stream.poll(0.01), None
                    if batch is not None:
                        seen.update(rows_of(batch))
                        stream.ack(batch)
            assert set(seen.values()) == {1}, "a clean hand-over doubles nothing"
            assert first.checkpoint.offsets.keys() == first.epochs.keys()


def test_a_consumer_that_never_acknowledges(pair: LocalCluster, tmp_path: Path, clock: FakeClock) -> None:
    fill(pair, 10)
    group = ConsumerGroup(tmp_path, lease=LEASE)
    with opened(pair, group) as first:
        batches = [take_batch(first)]
        with opened(pair, group) as second:
            for _ in range(10 * 8):
                beat(first, second)
                batches.append(first.poll(0))
                clock.now += BEAT
            beat(first, second)
            with pytest.raises(GroupError, match=r"waited 8. s for vbuckets whose batches are not acknow"):
                first.poll(None)
            first.ack([batch for batch in batches if batch is not None][-1])
            first.poll(0)
            assert len(first.epochs) == 8


def test_a_stale_owner(pair: LocalCluster, tmp_path: Path, clock: FakeClock) -> None:
    fill(pair, 100)
    group = ConsumerGroup(tmp_path, lease=LEASE)
    with opened(pair, group) as first, opened(pair, group) as second:
        batch = take_batch(first)
        for _ in range(8):
            clock.now += BEAT
            beat(second)
        take(second, 100)
        first.ack(batch)
        with pytest.raises(
            GroupError, match="the lease of this member has ended, and others have its vbuckets"
        ):
            first.commit()
        with pytest.raises(GroupError, match="has ended"):
            first.poll(None)
        with pytest.raises(GroupError, match="has ended"):
            next(first)
        second.commit()
        assert stored(tmp_path) == pair.high_seqnos()


def test_a_sink_whose_positions_count(cluster: LocalCluster, tmp_path: Path, clock: FakeClock) -> None:
    """It has stored more than was committed, and less than is there."""
    fill(cluster, 100)
    with opened(cluster, tmp_path / "one") as stream:
        batch = take_batch(stream)
        offsets = {vb: at for vb, at in batch.offsets.items() if vb % 2}
    calls: list[Mapping[int, int]] = []

    def assigned(epochs: Mapping[int, int]) -> Mapping[int, VBucketOffset]:
        calls.append(epochs)
        if len(calls) == 1:
            raise FencedError
        return {**offsets, 99: VBucketOffset()}

    with opened(cluster, ConsumerGroup(tmp_path / "two", on_assigned=assigned)) as stream:
        with pytest.raises(FencedError):
            stream.poll(0)
        assert stream.epochs == {}
        seen: set[tuple[int, int]] = set()
        wanted = {(vb, seqno) for vb, high in cluster.high_seqnos().items() for seqno in range(1, high + 1)}
        wanted -= {(vb, seqno) for vb, at in offsets.items() for seqno in range(1, at.seqno + 1)}
        while seen < wanted:
            batch = take_batch(stream)
            seen |= {(vb, seqno) for vb, seqno, _, _ in rows_of(batch)}
            stream.ack(batch)
        assert seen == wanted
        assert calls[0] == calls[1] == stream.epochs
    assert len(calls) == 2


def test_a_rollback_after_a_hand_over(pair: LocalCluster, tmp_path: Path, clock: FakeClock) -> None:
    """The new owner tells of what the old one got, and the server has lost."""
    fill(pair, 100)
    keeper = LogKeeper()
    with opened(pair, tmp_path) as first:
        consume_until(lambda: keeper.documents() == truth_of(pair), keeper, first)
    for vbucket in range(16):
        pair.fail_over(vbucket, lose=min(2, pair.high_seqnos()[vbucket]))
    pair.upsert("more", {})
    with opened(pair, tmp_path) as second:
        consume_until(lambda: keeper.documents() == truth_of(pair), keeper, second)
    assert keeper.rollbacks


def test_leases_are_renewed_by_a_thread(pair: LocalCluster, tmp_path: Path) -> None:
    fill(pair, 100)
    group = ConsumerGroup(tmp_path, lease=1.0)
    before = set(threading.enumerate())
    with opened(pair, group) as first:
        take(first, 100)
        until(lambda: stored(tmp_path) == pair.high_seqnos(), lambda: "what is acknowledged is committed")
        with opened(pair, group) as second:
            # The first one learns of it, and gives up its surplus.
            while len(second.epochs) < 8:
                assert first.poll(0.01) is second.poll(0.01) is None
        while len(first.epochs) < 16:
            assert first.poll(0.01) is None
    assert set(threading.enumerate()) <= before


def test_a_stream_that_nobody_refers_to(cluster: LocalCluster, tmp_path: Path) -> None:
    before = set(threading.enumerate())
    stream = opened(cluster, ConsumerGroup(tmp_path, lease=0.08))
    stream.poll(0)
    assert {thread.name for thread in set(threading.enumerate()) - before} >= {"cbframe-lease"}
    del stream
    gc.collect()
    until(lambda: set(threading.enumerate()) <= before)


def test_another_thread_closes_it(cluster: LocalCluster, tmp_path: Path) -> None:
    with opened(cluster, tmp_path) as stream:
        timer = threading.Timer(0.05, stream.close)
        timer.start()
        with pytest.raises(ReadCancelledError, match="the stream is closed"):
            stream.poll(None)
        timer.join()
        assert list(stream) == []
    with opened(cluster, tmp_path) as stream:
        # While it waits for the folder.
        settle = stream._group.settle

        def slow(*arguments: Any) -> bool:
            stream.close()
            return settle(*arguments)

        stream._group.settle = slow  # type: ignore[method-assign]
        with pytest.raises(ReadCancelledError, match="the stream is closed"):
            stream.poll(None)


@pytest.mark.parametrize("waits", ["member", "share", "lease", "no group"])
@pytest.mark.parametrize("paused", [False, True])
def test_it_is_closed_while_it_waits(
    waits: str,
    paused: bool,
    cluster: LocalCluster,
    tmp_path: Path,
    clock: FakeClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """For changes, for its first vbuckets, or for the folder; and paused, before and after the close."""
    group = None if waits == "no group" else ConsumerGroup(tmp_path, lease=LEASE)
    with opened(cluster, group) as first, opened(cluster, group) as second:
        stream = second if waits == "share" else first
        if waits in ("share", "member"):
            assert first.poll(0) is None
            assert first.epochs
        if waits == "lease":
            monkeypatch.setattr(Membership, "lives", lambda *_: False)
        if paused:
            stream.pause()
        rounds = 0

        def wait(*_: object) -> None:
            nonlocal rounds
            rounds += 1
            if rounds == 2:
                stream.close()
                if paused:
                    stream.pause()
            assert rounds < 50, "it goes on although it is closed"

        monkeypatch.setattr(ChangeReceiver, "wait", wait)
        if stream._group is not None:
            monkeypatch.setattr(stream._group.left, "wait", wait)
        with pytest.raises(ReadCancelledError, match="the stream is closed"):
            stream.poll(None)
        assert rounds == 2
        assert list(stream) == []


@pytest.mark.parametrize("group", [True, False])
def test_what_had_come_before_the_close_is_delivered(
    group: bool, cluster: LocalCluster, tmp_path: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(cluster, tmp_path if group else None, batch_bytes=1 << 20, max_latency=1000) as stream:
        if group:
            assert stream.poll(0) is None
        fill(cluster, 10)
        end = time.monotonic() + PATIENCE

        def wait(*_: object) -> None:
            assert time.monotonic() < end
            if stream.stats.total.documents == 10 and not stream._closed:
                stream.close()
                stream.pause()

        monkeypatch.setattr(ChangeReceiver, "wait", wait)
        batch = stream.poll(None)
        assert batch is not None
        assert len(batch) == 10
        stream.ack(batch)
        found = stream.checkpoint.offsets
        assert {vb: at for vb, at in cluster.high_seqnos().items() if at} == {
            vb: at.seqno for vb, at in found.items() if at.seqno
        }


def test_no_wait_is_longer_than_the_timeout(
    cluster: LocalCluster, tmp_path: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(cluster, tmp_path) as stream:
        assert stream._group is not None
        waits: list[float] = []
        monkeypatch.setattr(Membership, "lives", lambda *_: False)
        monkeypatch.setattr(stream._group.left, "wait", waits.append)
        assert stream.poll(0) is None
        assert waits == []
        assert stream.poll(0.001) is None
        assert waits
        assert max(waits) <= 0.001


def test_collections_and_counters_through_hand_overs(
    pair: LocalCluster, tmp_path: Path, clock: FakeClock
) -> None:
    create(pair, "inventory", "hotels")
    for n in range(40):
        pair.upsert(f"hotel-{n}", {}, collection="inventory.hotels")
        pair.upsert(f"_txn:{n}", {}, collection="inventory.hotels")
    names: set[Any] = set()
    with opened(pair, tmp_path, collections="inventory.hotels") as first:
        take(first, 40)
        assert first.transaction_records == 40
        received = first.stats
        assert received.total.documents == 80
        with opened(pair, tmp_path, collections="inventory.hotels") as second:
            beat(first, second)
            first.poll(0)
            beat(second)
            second.poll(0)
            assert len(first.epochs) == len(second.epochs) == 8
            assert first.transaction_records == 40
            assert first.stats.total.documents == 80
            assert first.stats.tot_start == received.tot_start + 1
            assert first.stats.total.streams_opened >= received.total.streams_opened
            until(lambda: {first.state, second.state} == {"streaming"})
            assert first.stats.total.reconnects == 0
            pair.drop_collection("inventory", "hotels")
            vbuckets = set()
            while len(vbuckets) < 16:
                for stream in (first, second):
                    if (batch := stream.poll(0.01)) is not None:
                        vbuckets |= {drop.vbucket for drop in batch.drops}
                        names |= {(drop.scope, drop.collection) for drop in batch.drops}
                        stream.ack(batch)
    assert names == {("inventory", "hotels")}
    with pytest.raises(ConfigurationError):
        opened(pair, tmp_path)


def test_a_collection_that_is_dropped_before_others_take_over(
    pair: LocalCluster, tmp_path: Path, clock: FakeClock
) -> None:
    """Nobody can look its name up any more: the last owner has left it."""
    create(pair, "inventory", "hotels")
    for n in range(40):
        pair.upsert(f"hotel-{n}", {}, collection="inventory.hotels")
    with opened(pair, tmp_path) as first:
        take(first, 40)
    pair.drop_collection("inventory", "hotels")
    names = []
    with opened(pair, tmp_path) as second:
        while len(names) < 16:
            batch = take_batch(second)
            names += [(drop.scope, drop.collection) for drop in batch.drops]
            second.ack(batch)
    assert set(names) == {("inventory", "hotels")}


def test_a_vbucket_that_was_with_others_in_between(
    cluster: LocalCluster, tmp_path: Path, clock: FakeClock
) -> None:
    """Given up and taken again in one go: it goes on where the others were."""
    fill(cluster, 100)
    with opened(cluster, tmp_path) as stream:
        take(stream, 100)
        high = stream.checkpoint
        epochs = {vb: epoch + (vb == 3) for vb, epoch in stream.epochs.items()}
        there = high.updated({3: VBucketOffset()})
        stream._hand_over((epochs, there))
        assert stream.checkpoint == there
        assert len(take(stream, high.offsets[3].seqno)) == high.offsets[3].seqno


def test_a_stream_that_cannot_begin(
    cluster: LocalCluster, tmp_path: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What could not be taken at first is taken when a batch is asked for again."""
    fill(cluster, 10)

    def start(_: object) -> None:
        raise ResourceError("no thread")

    with opened(cluster, tmp_path) as stream:
        with monkeypatch.context() as patch:
            patch.setattr("cbframe.dcp.source.BucketDataSource.start", start)
            with pytest.raises(ResourceError):
                stream.poll(None)
        assert stream.epochs == {}
        take(stream, 10)


def test_it_is_closed_while_vbuckets_are_taken(
    cluster: LocalCluster, tmp_path: Path, clock: FakeClock
) -> None:
    stream = opened(cluster, ConsumerGroup(tmp_path, on_assigned=lambda _: stream.close()))
    with pytest.raises(ReadCancelledError, match="the stream is closed"):
        stream.poll(None)
    assert stream.state == "closed"


def test_it_is_closed_just_before_it_begins(
    cluster: LocalCluster, tmp_path: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = BucketDataSource.start
    before = set(threading.enumerate())

    def slow(source: BucketDataSource) -> None:
        stream.close()
        start(source)

    with opened(cluster, tmp_path) as stream:
        monkeypatch.setattr(BucketDataSource, "start", slow)
        with pytest.raises(ReadCancelledError, match="the stream is closed"):
            stream.poll(None)
    assert set(threading.enumerate()) <= before


# --- shares that are fixed


def test_fixed_shares_without_a_group(pair: LocalCluster) -> None:
    fill(pair, 100)
    checkpoints: list[Checkpoint] = []
    keys: list[set[bytes]] = []
    for member in range(3):
        with opened(pair, None, member=member, members=3) as stream:
            vbuckets = set(range(member, 16, 3))
            count = sum(high for vb, high in pair.high_seqnos().items() if vb in vbuckets)
            keys.append(take(stream, count))
            checkpoints.append(stream.checkpoint)
            assert stream.checkpoint.offsets.keys() == vbuckets
            assert stream.epochs == {}
            with pytest.raises(ConfigurationError, match="the stream is of no group"):
                stream.commit()
    assert sum(map(len, keys)) == len(set().union(*keys)) == 100
    whole_of_them = checkpoints[0].updated(checkpoints[1].offsets).updated(checkpoints[2].offsets)
    pair.upsert("later", {})
    with opened(pair, None, start=whole_of_them) as stream:
        assert take(stream, 1) == {b"later"}
    with opened(pair, None, start="now", member=1, members=2, vbuckets=range(4)) as stream:
        assert stream.checkpoint.offsets.keys() == {1, 3}


# --- what cannot be meant


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"member": 1}, "member=1, members=None: one without the other"),
        ({"members": 3}, "member=None, members=3: one without the other"),
        ({"member": 3, "members": 3}, "member=3, members=3"),
        ({"member": 2, "members": 3, "group": "there"}, "member=2, members=3"),
        ({"key_pattern": re.compile("k")}, "key_pattern= is a regular expression"),
        ({"member": -1, "members": 3}, "member=-1 is too small"),
        ({"member": "1", "members": 3}, "member='1' is no integer"),
        ({"group": 5}, "group=5 is no path"),
        ({"group": ""}, "group='' is no path"),
    ],
)
def test_arguments(arguments: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigurationError, match=told):
        stream_bucket("couchbase://nobody.invalid/b", auth=("u", "p"), **arguments)


def test_members_of_other_streams(pair: LocalCluster, tmp_path: Path, clock: FakeClock) -> None:
    with opened(pair, tmp_path):
        with pytest.raises(ConfigurationError, match="is of a stream with another key_prefix") as caught:
            opened(pair, tmp_path, key_prefix="a")
        assert "another folder" in str(caught.value.hint)
        with pytest.raises(ConfigurationError, match="has 16 vbuckets, and not these 2"):
            opened(pair, tmp_path, vbuckets=[1, 2])
        other = tmp_path / "other"
        with (
            LocalCluster(bucket="b", vbuckets=16) as elsewhere,
            opened(elsewhere, other),
            pytest.raises(ConfigurationError, match="is of bucket 'b', not of 'default'"),
        ):
            opened(pair, other)
        pair.recreate()
        with pytest.raises(ConfigurationError, match="is of another bucket of that name"):
            opened(pair, tmp_path)


def test_a_group_begins_with_a_checkpoint(pair: LocalCluster, tmp_path: Path, clock: FakeClock) -> None:
    fill(pair, 20)
    with opened(pair, None, start="now") as stream:
        checkpoint = copy.deepcopy(stream.checkpoint)
    pair.upsert("later", {})
    with opened(pair, tmp_path, start=checkpoint) as stream:
        assert take(stream, 1) == {b"later"}
    other = Checkpoint(checkpoint.bucket, "f" * 32, {})
    with pytest.raises(ConfigurationError, match="is of another bucket of that name"):
        opened(pair, tmp_path / "other", start=other)


@pytest.mark.parametrize("write", [lambda s, path: s.to_pandas(), lambda s, path: s.to_parquet(path)])
def test_outputs_of_a_whole_stream(
    write: Callable[[ChangeStream, Path], object], cluster: LocalCluster, tmp_path: Path, clock: FakeClock
) -> None:
    with opened(cluster, tmp_path) as stream, pytest.raises(ConfigurationError, match="come and go"):
        write(stream, tmp_path / "changes")
