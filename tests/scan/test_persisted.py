"""``only_persisted``: what is on the disks of all copies is given out, and no failover takes it back."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pytest
from failovers import VBUCKETS, Asked, Hand, floors, lags, until

from cbframe import (
    BucketDataSource,
    BucketDataSourceOptions,
    ChangeStream,
    LocalCluster,
    scan_bucket,
    stream_bucket,
)
from cbframe.arrow.receivers import Arrived, EventArrived, Item, Reached, RolledBack
from cbframe.dcp.positions import VBucketMetaData, VBucketOffset
from cbframe.dcp.receiver import Receipt
from cbframe.errors import AccessError, ConfigurationError, ReadTimeoutError, RollbackError, ServerError
from cbframe.local import kv
from cbframe.scan.persisted import PersistedChangeReceiver, PersistedHandover
from cbframe.testing import RecordingReceiver
from cbframe.wire.constants import Opcode, Status, SystemEventId
from cbframe.wire.messages import FailoverEntry, SystemEvent, vbucket_of

from .consumers import LogKeeper, has_caught_up, take_rows, truth_of
from .kit import QUICK, create

OPTIONS = replace(QUICK, persistence_interval=0.002, endless_retry=False)
PERSISTED = replace(OPTIONS, only_persisted=True)


@pytest.fixture
def trio() -> Iterator[LocalCluster]:
    """Three nodes, four vbuckets, each with a replica."""
    with LocalCluster(nodes=3, vbuckets=VBUCKETS, replicas=1, seed=1) as running:
        yield running


def open_stream(cluster: LocalCluster, **arguments: Any) -> ChangeStream:
    arguments = {"options": OPTIONS, "max_latency": 0.002, "only_persisted": True, **arguments}
    return stream_bucket(cluster, **arguments)


def follow(stream: ChangeStream, consumer: LogKeeper, cluster: LocalCluster) -> None:
    """Consume until there is nothing more to come."""
    until(
        lambda: consume(stream, consumer, cluster, polls=1) or has_caught_up(cluster, stream.checkpoint),
        lambda: (stream, stream.errors[-3:]),
    )


def consume(stream: ChangeStream, consumer: LogKeeper, cluster: LocalCluster, polls: int = 10) -> None:
    """Take what comes: with only_persisted, that is on disk everywhere."""
    for _ in range(polls):
        if (batch := stream.poll(0.005)) is None:
            continue
        if stream.source._options.only_persisted:
            disk = floors(cluster)
            assert all(offset.seqno <= disk[vb] for vb, offset in batch.offsets.items())
        consumer.apply(batch)
        stream.ack(batch)


# --- what is held back, without a cluster


class Books:
    """What a handover lets pass, and what it asks for."""

    def __init__(self) -> None:
        self.handover = PersistedHandover()
        self.wanted: list[tuple[int, int, int]] = []
        self.handover.want = lambda *asked: self.wanted.append(asked)
        self.acked: list[int] = []

    def at(self, seqno: int, end: int | None = None, history: int = 7) -> VBucketOffset:
        return VBucketOffset(seqno, 0, seqno if end is None else end, ((history, 0),))

    def rows(self, *places: tuple[int, VBucketOffset], nbytes: int = 100) -> Arrived:
        columns = [[vb for vb, _ in places], [at.seqno for _, at in places]]
        batch = pa.RecordBatch.from_arrays(list(map(pa.array, columns)), ["_cb_vbucket", "_cb_seqno"])
        return Arrived(batch, Receipt(nbytes, self.acked.append), dict(places))

    def put(self, *places: tuple[int, VBucketOffset]) -> None:
        self.handover.put(self.rows(*places), [vb for vb, _ in places])

    def passed(self) -> list[Any]:
        """Rows, as vbucket and seqno; of other items, what they are."""
        found: list[Any] = []
        for item in self.handover.take():
            if isinstance(item, Arrived):
                found += zip(*(column.to_pylist() for column in item.batch.columns), strict=True)
                item.receipt.done()
            else:
                found.append(item)
        return found


def test_a_snapshot_passes_when_its_end_is_on_disk() -> None:
    books = Books()
    books.put((1, books.at(5, end=9)))
    assert books.wanted == [(1, 7, 9)]
    books.handover.on_persisted({1: (7, 8)})
    assert books.passed() == []
    assert books.handover.given == {}
    books.handover.on_persisted({1: (7, 9)})
    assert books.passed() == [(1, 5)]
    # The rest of it need not wait, or be asked about, any more.
    books.put((1, books.at(9)))
    assert books.passed() == [(1, 9)]
    assert books.wanted == [(1, 7, 9)]
    assert books.handover.given == {1: books.at(9)}


def test_each_vbucket_waits_for_itself_and_in_order() -> None:
    books = Books()
    books.handover.on_persisted({2: (7, 100)})  # before anything is known of it
    books.put((1, books.at(3)), (2, books.at(4)))
    books.handover.on_persisted({2: (7, 4)})
    assert books.passed() == [(2, 4)]
    books.put((1, books.at(5)), (2, books.at(4)))
    assert books.passed() == [(2, 4)]
    reached = Reached(1, books.at(6))
    books.handover.news(1, Reached(1, books.at(5)))
    books.handover.news(1, reached)
    event = SystemEvent(1, 7, int(SystemEventId.CREATE_SCOPE), "s", 0, 0, 9)
    books.handover.put(EventArrived(event, books.at(7)), (1,))
    books.handover.on_persisted({1: (7, 5)})
    assert books.passed() == [(1, 3), (1, 5)]
    books.handover.on_persisted({1: (7, 7)})
    assert books.passed() == [reached, EventArrived(event, books.at(7))], "the last news are enough"
    assert sum(books.acked) == 200, "each byte is acknowledged once"


def test_another_history_is_waited_for_anew() -> None:
    books = Books()
    books.put((1, books.at(5)))
    books.handover.news(1, Reached(1, books.at(5, history=8)))
    assert books.wanted == [(1, 7, 5), (1, 8, 5)]
    books.handover.on_persisted({1: (7, 5)})
    assert books.passed() == [], "what was said of the history before counts no more"
    books.handover.on_persisted({1: (8, 5)})
    assert books.passed() == [(1, 5), Reached(1, books.at(5, history=8))]


def test_what_is_dropped_is_acknowledged_and_forgotten() -> None:
    books = Books()
    books.handover.given[1] = books.at(2)
    books.put((1, books.at(5)), (2, books.at(4)))
    books.handover.news(1, Reached(1, books.at(6)))
    assert books.handover.drop(1) == books.at(2)
    assert books.acked == [50]
    assert books.wanted[-1] == (1, 0, 0)
    rollback: Item = RolledBack(1, books.at(1), 1)
    books.handover.put(rollback, (1,))
    assert books.passed() == [rollback], "a rollback waits for nothing"
    books.handover.on_persisted({1: (7, 9), 2: (7, 9)})
    assert books.passed() == [(2, 4)]
    assert books.acked == [50, 50]
    assert books.handover.drop(3) == VBucketOffset()


def test_a_rollback_is_asked_about_again_from_where_the_consumer_is() -> None:
    """A server that takes over may not know a history that nothing was given out of."""
    receiver = PersistedChangeReceiver({}, refuse=True)
    receiver.hold(lambda *_: None)
    receiver.position(1)
    receiver.store(1, VBucketMetaData(0, 0, 0, 10, (FailoverEntry(7, 0),)))
    receiver.snapshot_start(1, 0, 10, 1)
    receiver.seqno_advanced(1, 10)
    receiver.on_persisted({1: (7, 10)})
    given = receiver.position(1)
    assert (given.seqno, given.history) == (10, 7)
    receiver.store(1, VBucketMetaData(0, 0, 10, 10, (FailoverEntry(8, 10), FailoverEntry(7, 0))))
    assert receiver.position(1).history == 8
    assert receiver.rollback(1, 0) is None
    assert receiver.position(1) == given
    with pytest.raises(RollbackError):
        receiver.rollback(1, 4)


# --- streams


def test_nothing_comes_before_it_is_on_all_disks(trio: LocalCluster) -> None:
    consumer = LogKeeper()
    trio.upsert("before", {})
    with open_stream(trio) as stream:
        follow(stream, consumer, trio)
        assert (stream.unpersisted, "disks" in repr(stream)) == (0, False)
        for node in range(3):
            trio.hold_persistence(node)
            for number in range(20):
                trio.upsert(f"key-{number}", {"node": node})
            until(lambda: stream.stats.total.documents >= sum(trio.high_seqnos().values()))
            # A copy of some vbuckets is on that node.
            disk, high = floors(trio), trio.high_seqnos()
            wait = sum(disk[vb] < high[vb] for n in range(20) for vb in [vbucket_of(b"key-%d" % n, VBUCKETS)])
            assert 0 < wait < 20

            def given(node: int = node) -> int:
                return sum(b'{"node":%d}' % node == value for value in consumer.documents().values())

            for _ in range(2000):
                if given() == 20 - wait:
                    break
                consume(stream, consumer, trio, polls=1)
            assert given() == 20 - wait
            assert stream.unpersisted == wait
            assert f", {wait} not on all disks yet" in repr(stream)
            trio.release()
            follow(stream, consumer, trio)
            assert stream.unpersisted == 0
            assert consumer.documents() == truth_of(trio)


def test_what_waits_counts_against_the_window(trio: LocalCluster) -> None:
    window = 200_000
    trio.hold_persistence()
    trio.bulk_load((b"key-%05d" % n, b'{"pad":"%s"}' % (b"x" * 1000)) for n in range(2000))
    consumer = LogKeeper()
    with open_stream(trio, buffer_bytes=window, batch_bytes=20_000) as stream:

        def full() -> bool:
            assert stream.poll(0.005) is None
            windows = stream.source.windows().values()
            assert all(each.held <= window + 2000 for each in windows)
            return len(windows) == 3 and all(each.held > window - 2000 for each in windows)

        until(full)
        trio.release()
        follow(stream, consumer, trio)
    assert len(consumer.documents()) == 2000


def test_part_of_a_snapshot_is_not_given_out(trio: LocalCluster) -> None:
    """A replica that takes over has the first half of it: who is in the middle is sent back to its start."""
    keys = [key for n in range(2000) if vbucket_of(key := b"key-%d" % n, VBUCKETS) == 0][:200]
    trio.bulk_load((key, b'{"pad":"%s"}' % (b"x" * 2000)) for key in keys[:100])
    trio.hold_replication()
    trio.bulk_load((key, b'{"pad":"%s"}' % (b"x" * 2000)) for key in keys[100:])
    consumer = LogKeeper()
    with open_stream(trio, batch_bytes=20_000) as stream:
        until(lambda: stream.stats.total.documents == 200)
        assert stream.stats.total.blocks > 2
        consume(stream, consumer, trio)
        assert stream.checkpoint.offsets.get(0, VBucketOffset()).seqno == 0
        trio.fail_over(0, node=trio._engine.bucket.map[0][1])
        trio.release()
        follow(stream, consumer, trio)
    assert consumer.rollbacks == 0
    assert len(consumer.documents()) == 100


def fail_over_again_and_again(seed: int, *, only_persisted: bool) -> tuple[int, int]:
    """Lags, failovers and crashes, and a consumer between them: its rollbacks, and changes that were lost."""
    options = replace(OPTIONS, connect_timeout=30, recovery_timeout=30)
    with LocalCluster(nodes=3, vbuckets=VBUCKETS, replicas=1 + seed % 2, seed=seed) as cluster:
        hand, consumer = Hand(cluster, seed), LogKeeper()
        hand.write()
        with open_stream(cluster, only_persisted=only_persisted, options=options) as stream:
            for _ in range(4):
                hand.write()
                hand.hold()
                hand.write()
                if only_persisted:
                    consume(stream, consumer, cluster, hand.rng.randrange(8))
                else:
                    follow(stream, consumer, cluster)
                hand.lose()
                hand.write()
                if hand.rng.random() < 0.5:
                    hand.release()
                consume(stream, consumer, cluster, hand.rng.randrange(4))
            cluster.release()
            follow(stream, consumer, cluster)
        assert consumer.documents() == truth_of(cluster), "something is missing, or too much"
    return consumer.rollbacks, hand.lost


@pytest.mark.parametrize("first", range(0, 10, 5))
def test_failovers_with_loss_take_nothing_back(first: int) -> None:
    with_it = [fail_over_again_and_again(seed, only_persisted=True) for seed in range(first, first + 5)]
    assert sum(lost for _, lost in with_it) > 20, "too little was lost"
    assert all(rollbacks == 0 for rollbacks, _ in with_it)


def test_without_it_they_do() -> None:
    found = [fail_over_again_and_again(seed, only_persisted=False) for seed in range(5)]
    assert all(rollbacks > 0 for rollbacks, lost in found if lost)
    assert sum(lost for _, lost in found) > 10


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("first", range(1000, 1200, 25))
def test_many_failovers_with_loss_take_nothing_back(first: int) -> None:
    with_it = [fail_over_again_and_again(seed, only_persisted=True) for seed in range(first, first + 25)]
    assert sum(lost for _, lost in with_it) > 200
    assert all(rollbacks == 0 for rollbacks, _ in with_it)
    without = [fail_over_again_and_again(seed, only_persisted=False) for seed in range(first, first + 25)]
    assert sum(rollbacks > 0 for rollbacks, _ in without) > 15


def test_from_now_on(trio: LocalCluster) -> None:
    """What was not on disk when the stream began may be lost: nothing of it was given out."""
    hand = Hand(trio, 1)
    hand.write()
    trio.hold_replication()
    hand.write(60)
    with open_stream(trio, start="now") as stream:
        hand.cluster.upsert("key-0", {"n": -1})
        for vbucket in range(VBUCKETS):
            row = trio._engine.bucket.map[vbucket]
            trio.fail_over(vbucket, node=row[1])
        trio.release()
        consumer = LogKeeper()
        for number in range(50):
            trio.upsert(f"new-{number}", {"n": number})
        follow(stream, consumer, trio)
        assert consumer.rollbacks == 0
        found = consumer.documents()
        assert {key: value for key, value in truth_of(trio).items() if key in found} == found
        assert sum(key.startswith(b"new") for key in found) == 50


def test_nodes_that_come_and_go() -> None:
    with LocalCluster(nodes=3, vbuckets=VBUCKETS, replicas=1, seed=1) as cluster:
        hand, consumer = Hand(cluster, 1), LogKeeper()
        with open_stream(cluster) as stream:
            for change in (
                lambda: (cluster.add_node(), cluster.rebalance()),
                lambda: cluster.rebalance(eject=[1]),
                lambda: cluster.failover(2),
            ):
                hand.write()
                change()
                hand.write()
                follow(stream, consumer, cluster)
        assert consumer.documents() == truth_of(cluster)
        assert consumer.rollbacks == 0


def test_a_replica_that_is_down_holds_its_vbuckets_back(trio: LocalCluster) -> None:
    hand, consumer = Hand(trio, 1), LogKeeper()
    hand.write(60)
    with open_stream(trio) as stream:
        follow(stream, consumer, trio)
        trio.kill(2, clean=True)
        here = {vb for vb, row in enumerate(trio._engine.bucket.map) if 2 in row}
        own = {vb for vb, row in enumerate(trio._engine.bucket.map) if row[0] == 2}
        before = {vb: len(log) for vb, log in consumer.log.items()}
        hand.write(60)

        def others() -> bool:
            consume(stream, consumer, trio, 1)
            high = trio.high_seqnos()
            return all(stream.checkpoint.offsets[vb].seqno == high[vb] for vb in high if vb not in here)

        until(others)
        assert all(len(consumer.log[vb]) == before.get(vb, 0) for vb in here - own)
        trio.restart(2, same_ports=True)
        follow(stream, consumer, trio)
    assert consumer.documents() == truth_of(trio)


# --- what can not be promised


def test_without_replicas_a_warning_says_so(pair: LocalCluster) -> None:
    pair.upsert("key", {})
    with open_stream(pair) as stream:
        with pytest.warns(UserWarning, match="has no replicas: .* restart") as told:
            assert stream.poll(20) is not None
        stream.poll(0.01)  # once is enough: another one would be an error
    assert len(told) == 1
    assert told[0].filename == __file__
    with pytest.warns(UserWarning, match="bucket 'default' has no replicas"):
        scan_bucket(pair, options=PERSISTED).to_arrow()


def test_with_fewer_replicas_after_a_failover(trio: LocalCluster) -> None:
    trio.upsert("key", {})
    trio.failover(2)
    with pytest.warns(UserWarning, match=r"has no replica of [0-9] vbuckets now"):
        scan_bucket(trio, options=PERSISTED).to_arrow()


def by_stream(cluster: LocalCluster, options: BucketDataSourceOptions) -> None:
    with open_stream(cluster, options=options) as stream:
        for batch in stream:
            stream.ack(batch)


def by_scan(cluster: LocalCluster, options: BucketDataSourceOptions) -> None:
    scan_bucket(cluster, options=options).to_arrow()


@pytest.mark.parametrize("read", [by_stream, by_scan])
def test_an_ephemeral_bucket(read: Callable[..., None]) -> None:
    options = replace(OPTIONS, only_persisted=True, connect_timeout=0.3)
    with LocalCluster(nodes=2, vbuckets=4, replicas=1, seed=1, ephemeral=True) as cluster:
        cluster.upsert("key", {})
        with pytest.raises(ConfigurationError, match=r"to any disk within 0\.3 s") as caught:
            read(cluster, options)
        assert "ephemeral" in (caught.value.hint or "")


@pytest.mark.parametrize("read", [by_stream, by_scan])
def test_nothing_more_is_written(trio: LocalCluster, read: Callable[..., None]) -> None:
    options = replace(OPTIONS, only_persisted=True, recovery_timeout=0.3)
    trio.upsert("key", {})
    (vbucket,) = [vb for vb, seqno in trio.high_seqnos().items() if seqno]
    slow = trio._engine.bucket.map[vbucket][1]
    trio.hold_persistence(slow)
    trio.upsert("key", {})
    with pytest.raises(ReadTimeoutError, match=r"seqno 2 .* is not on the disks of all copies") as caught:
        read(trio, options)
    assert (caught.value.vbucket, caught.value.node) == (vbucket, trio.kv_addresses[slow])
    assert "recovery_timeout" in (caught.value.hint or "")


def test_a_time_limit_says_what_it_waited_for(trio: LocalCluster) -> None:
    trio.hold_persistence()
    trio.upsert("key", {})
    scan = scan_bucket(trio, options=PERSISTED, timeout=0.5)
    what = r"4 of 4 vbuckets, and not all .* on the disks of all copies"
    with pytest.raises(ReadTimeoutError, match=what) as caught:
        scan.to_arrow()
    assert "replicas" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("status", "error", "hint"),
    [
        (Status.UNKNOWN_COMMAND, ServerError, "leave only_persisted out"),
        (Status.EACCESS, AccessError, "Data Reader"),
    ],
)
def test_the_question_is_refused(
    trio: LocalCluster, monkeypatch: pytest.MonkeyPatch, status: Status, error: type[ServerError], hint: str
) -> None:
    """By a node that does not know it, or because the user may not ask."""
    if status == Status.EACCESS:
        monkeypatch.setitem(kv.HANDLERS, Opcode.OBSERVE_SEQNO, lambda conn, frame: conn.deny(frame, "Read"))
    else:
        monkeypatch.delitem(kv.HANDLERS, Opcode.OBSERVE_SEQNO)
    trio.upsert("key", {})
    with pytest.raises(error, match="OBSERVE_SEQNO was refused") as caught:
        by_stream(trio, OPTIONS)
    assert getattr(caught.value, "status", status) == status  # who may not ask is told of roles
    assert hint in (caught.value.hint or "")
    assert caught.value.node in trio.kv_addresses


def test_users_who_may_read_some_collections(trio: LocalCluster) -> None:
    create(trio, "shop", "orders")
    trio.add_user("clerk", "secret", collections=["shop.orders"])
    trio.upsert("a", {}, collection="shop.orders")
    trio.upsert("b", {})
    with open_stream(trio, auth=("clerk", "secret"), collections=["shop.orders"]) as stream:
        assert take_rows(stream).record_batch.column("_cb_key").to_pylist() == ["a"]


def test_a_source_whose_receiver_holds_nothing_back(trio: LocalCluster) -> None:
    names = ("default", "default", "", None, (trio.username, trio.password))
    with pytest.raises(ConfigurationError, match="nothing holds back") as caught:
        BucketDataSource(trio.connection_string, *names, RecordingReceiver(), PERSISTED)
    assert "seq_end" in (caught.value.hint or "")
    with pytest.raises(ConfigurationError, match="persistence_interval must be positive"):
        replace(OPTIONS, persistence_interval=0)


# --- bounded reads


def test_a_read_waits_until_all_is_on_disk(trio: LocalCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    Hand(trio, 1).write(60)
    trio.hold_persistence(1)
    trio.upsert("key", {"last": 1})
    asked = Asked(monkeypatch)
    asked.then(30, trio.release)
    scan = scan_bucket(trio, parse=False, options=PERSISTED, timeout=60)
    table = scan.to_arrow()
    assert asked.count >= 30
    assert len(table) == len(truth_of(trio))
    assert "key" in table["_cb_key"].to_pylist()
    before = asked.count
    scan_bucket(trio, parse=False, options=OPTIONS).to_arrow()
    assert asked.count == before, "without it, nobody is asked"


@pytest.mark.parametrize("seed", range(4))
def test_a_failover_while_a_read_waits(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it takes away is read again: the result is what there is afterwards."""
    with LocalCluster(nodes=3, vbuckets=VBUCKETS, replicas=1, seed=seed) as cluster:
        hand = Hand(cluster, seed)
        hand.write(60)
        cluster.hold_replication()
        hand.write(60)

        def break_() -> None:
            # Under the hands of a node: its thread must not wait for itself.
            for vbucket in range(VBUCKETS):
                row = cluster._engine.bucket.map[vbucket]
                with cluster._engine.bucket.lock:
                    left = cluster._engine._left(vbucket, 0, row[1])
                    cluster._engine._fork(vbucket, left, row[1])
            cluster.release()
            for member in cluster._engine.running():
                member.loop.post(member.end_all_streams)
                member.loop.post(member.push_config)

        high = cluster.high_seqnos()
        Asked(monkeypatch).then(20, break_)
        scan = scan_bucket(cluster, parse=False, options=PERSISTED, timeout=60)
        table = scan.to_arrow()
        assert lags(cluster.high_seqnos(), high)
        found = dict(zip(table["_cb_key"].to_pylist(), table["_cb_value"].to_pylist(), strict=True))
        assert found == {key.decode(): value for key, value in truth_of(cluster).items()}
        seqnos = {vb: seqno for vb, (_, seqno) in scan.as_of.items()}
        assert seqnos == cluster.high_seqnos() == floors(cluster)


def test_no_time_passes_where_nothing_has_to_be_waited_for(trio: LocalCluster) -> None:
    began = time.monotonic()
    scan_bucket(trio, options=replace(OPTIONS, only_persisted=True, persistence_interval=3600)).to_arrow()
    assert time.monotonic() - began < 60
