"""Bounded reads of changes between offsets: whatever happens between, a store of documents ends up right."""

from __future__ import annotations

import json
import pickle
import random
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pyarrow as pa
import pytest
from failovers import VBUCKETS, Asked, Hand

from cbframe import EnvironmentAuth, LocalCluster
from cbframe.dcp.positions import VBucketOffset
from cbframe.errors import AccessError, ClusterMapError, ConfigurationError, ConversionError, RollbackError
from cbframe.scan.microbatch import MicroBatchReader, Offset, micro_batch_reader

from .kit import QUICK, Sent, truth

USER, SECRET = "reader", "a-word-that-is-secret"
PLACE = [("_cb_key", pa.string()), ("_cb_vbucket", pa.int32()), ("_cb_seqno", pa.int64())]
SCHEMA = pa.schema([("_change_type", pa.string()), *PLACE, ("n", pa.int64())])


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CB_USER", USER)
    monkeypatch.setenv("CB_PASSWORD", SECRET)


@pytest.fixture
def cluster() -> Iterator[LocalCluster]:
    with cluster_of() as found:
        yield found


def schema_with(*names: str) -> pa.Schema:
    return pa.schema([*SCHEMA, *((f"_cb_{name}", pa.string()) for name in names)])


def cluster_of(seed: int = 3, **arguments: Any) -> LocalCluster:
    return LocalCluster(**{"nodes": 2, "vbuckets": 4, **arguments}, seed=seed, username=USER, password=SECRET)


def reader_of(cluster: LocalCluster, schema: pa.Schema = SCHEMA, **arguments: Any) -> MicroBatchReader:
    auth = EnvironmentAuth("CB_USER", "CB_PASSWORD")
    arguments.setdefault("options", QUICK)
    return micro_batch_reader(cluster.connection_string, None, auth=auth, schema=schema, **arguments)


class Engine:
    """Does what Spark does: logs an offset, has what lies before it read elsewhere, and keeps documents.

    Rows are applied without regard to their order: resets first, then of each document the newest row.
    """

    def __init__(
        self, reader: MicroBatchReader, start: Offset | None = None, most: int | None = None
    ) -> None:
        self.reader = reader
        self.most = most
        self.log: list[str] = [self._logged(start or Offset())]
        self.store: dict[tuple[int, str, str | None], dict[str, Any]] = {}
        self.resets = 0
        self.delivered: list[tuple[int, int]] = []

    def _logged(self, offset: Offset) -> str:
        return json.dumps(offset.to_dict())

    def offset(self, at: int) -> Offset:
        return Offset.from_dict(json.loads(self.log[at]))

    def plan(self) -> bool:
        """Log where to read to; whether there is anything."""
        start = self.offset(-1)
        end = self.reader.ahead(start, self.reader.look(), self.most)
        if end is start:
            return False
        self.log.append(self._logged(end))
        return True

    def read(self, n: int = 3) -> list[dict[str, Any]]:
        """The rows up to the last offset in the log, as other processes would read them."""
        parts = self.reader.parts(self.offset(-2), self.offset(-1), self.reader.look(), n)
        rows = []
        for part in parts:
            for batch in pickle.loads(pickle.dumps(part)).read():
                assert batch.schema.equals(self.reader.schema)
                rows += batch.to_pylist()
        return rows

    def apply(self, rows: Iterable[dict[str, Any]]) -> None:
        rows = list(rows)
        reset: set[int] = set()
        for number, row in enumerate(rows):
            if row["_change_type"] == "reset":
                assert (row["_cb_key"], row["_cb_seqno"]) == (None, 0)
                vbucket = row["_cb_vbucket"]
                assert not any(each["_cb_vbucket"] == vbucket for each in rows[:number]), "it comes first"
                reset.add(vbucket)
        self.resets += len(reset)
        self.store = {place: row for place, row in self.store.items() if place[0] not in reset}
        places = [(row["_cb_vbucket"], row["_cb_seqno"]) for row in rows if row["_change_type"] != "reset"]
        assert len({*places}) == len(places), "no change comes twice in a read"
        self.delivered += places
        newest: dict[tuple[int, str, str | None], dict[str, Any]] = {}
        for row in rows:
            if row["_change_type"] != "reset":
                place = row["_cb_vbucket"], row["_cb_key"], row.get("_cb_collection")
                if place not in newest or newest[place]["_cb_seqno"] < row["_cb_seqno"]:
                    newest[place] = row
        for place, row in newest.items():
            if row["_change_type"] == "upsert":
                self.store[place] = row
            else:
                assert row["_change_type"] in ("delete", "expire")
                assert row["n"] is None
                self.store.pop(place, None)

    def turn(self) -> bool:
        if not self.plan():
            return False
        self.again()
        return True

    def catch_up(self) -> None:
        for _ in range(1000):
            if not self.turn():
                return
        raise AssertionError("it never ends")

    def again(self) -> None:
        """Read up to the last offset in the log, be it once more."""
        self.apply(self.read())

    def caught_up(self) -> dict[str, Any]:
        self.catch_up()
        return self.documents()

    def documents(self) -> dict[str, Any]:
        found = {key: row["n"] for (_, key, _), row in self.store.items()}
        assert len(found) == len(self.store)
        return found


def documents_of(cluster: LocalCluster, collection: int = 0) -> dict[str, Any]:
    return {key.decode(): json.loads(row.value)["n"] for key, row in truth(cluster, collection).items()}


def numbered(cluster: LocalCluster, count: int) -> None:
    for n in range(count):
        cluster.upsert(f"key-{n}", {"n": n})


def engine_of(cluster: LocalCluster, **arguments: Any) -> Engine:
    """One that has read twenty documents."""
    engine = Engine(reader_of(cluster, **arguments))
    numbered(cluster, 20)
    assert engine.turn()
    return engine


def write(cluster: LocalCluster, rng: random.Random, count: int) -> None:
    for _ in range(count):
        key = f"key-{rng.randrange(40)}"
        kind = rng.random()
        if kind < 0.7:
            cluster.upsert(key, {"n": rng.randrange(10**9)})
        elif kind < 0.9:
            cluster.delete(key)
        else:
            cluster.expire(key)


def fail_over(cluster: LocalCluster, rng: random.Random, most: int = 6) -> None:
    vbucket = rng.randrange(4)
    cluster.fail_over(vbucket, lose=min(rng.randrange(most), cluster.high_seqnos()[vbucket]))


@pytest.mark.parametrize("most", [None, 2, 7])
def test_each_change_once(cluster: LocalCluster, most: int | None) -> None:
    rng = random.Random(1)
    engine = Engine(reader_of(cluster), most=most)
    for _ in range(4):
        write(cluster, rng, 10)
        engine.plan()
        # Not behind the end, though the server has it: the next read has it.
        write(cluster, rng, 5)
        rows = engine.read()
        assert most is None or len(rows) <= most
        engine.apply(rows)
    assert engine.caught_up() == documents_of(cluster)
    assert len({*engine.delivered}) == len(engine.delivered), "a change came twice"
    assert engine.resets == 0
    assert not engine.plan()


@pytest.mark.parametrize("seed", range(4))
def test_whatever_happens(seed: int) -> None:
    whatever_happens(seed, whole=seed % 2 == 0)


@pytest.mark.slow
@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("seed", range(10, 40))
def test_whatever_happens_more_often(seed: int, whole: bool) -> None:
    whatever_happens(seed, whole=whole)


def whatever_happens(seed: int, *, whole: bool) -> None:
    """Writes, failovers with loss and purges, before and after a read is planned, and reads done again."""
    rng = random.Random(seed)
    with cluster_of(seed) as cluster:
        most = rng.choice([None, None, 5, 30])
        engine = Engine(reader_of(cluster, whole_snapshots=whole), most=most)
        for _ in range(15):
            write(cluster, rng, rng.randrange(15))
            happened = rng.random()
            if happened < 0.25:
                fail_over(cluster, rng)
            elif happened < 0.35:
                cluster.purge(rng.randrange(4))
            elif happened < 0.4:
                cluster.flush_vbucket(rng.randrange(4))
            if not engine.plan():
                continue
            for _ in range(rng.choice([1, 1, 2, 3])):
                # Done again, in part or whole, by a driver or task that began again.
                if rng.random() < 0.5:
                    write(cluster, rng, rng.randrange(10))
                if rng.random() < 0.25:
                    fail_over(cluster, rng)
                rows = engine.read(rng.choice([1, 3]))
                if rng.random() < 0.7:
                    engine.apply(rows)
                    rows = []
            if rows:
                engine.apply(rows)
        assert engine.caught_up() == documents_of(cluster)


def fail_over_again_and_again(
    seed: int, monkeypatch: pytest.MonkeyPatch, *, only_persisted: bool
) -> tuple[int, int]:
    """Copies that lag, and failovers that take what they lack: resets, and changes that were lost."""
    options = replace(QUICK, persistence_interval=0.002)
    with cluster_of(seed, nodes=3, vbuckets=VBUCKETS, replicas=1 + seed % 2) as cluster:
        hand = Hand(cluster, seed)
        asked = Asked(monkeypatch)
        most, whole = hand.rng.choice([None, None, 7]), hand.rng.random() < 0.5
        reader = reader_of(cluster, options=options, whole_snapshots=whole, only_persisted=only_persisted)
        engine = Engine(reader, most=most)
        hand.write()
        for _ in range(5):
            hand.hold()
            hand.write()
            if engine.plan():
                for _ in range(hand.rng.choice([1, 2])):
                    hand.write(5)
                    if hand.rng.random() < 0.5:
                        hand.lose()
                    # It waits for the copies: they catch up after some questions.
                    asked.then(10, cluster.release)
                    rows = engine.read(hand.rng.choice([1, 3]))
                engine.apply(rows)
            hand.hold()
            hand.write()
            hand.lose()
        cluster.release()
        assert engine.caught_up() == documents_of(cluster)
    return engine.resets, hand.lost


def no_resets(seeds: Iterable[int], monkeypatch: pytest.MonkeyPatch) -> int:
    """With only_persisted no failover is a reset; how many changes were lost."""
    found = [fail_over_again_and_again(seed, monkeypatch, only_persisted=True) for seed in seeds]
    assert all(resets == 0 for resets, _ in found)
    return sum(lost for _, lost in found)


def test_with_only_persisted_no_failover_is_a_reset(monkeypatch: pytest.MonkeyPatch) -> None:
    assert no_resets((1, 4), monkeypatch) > 10, "too little was lost"


def test_without_it_failovers_are_resets(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [fail_over_again_and_again(seed, monkeypatch, only_persisted=False) for seed in (1, 4)]
    assert all(resets > 0 for resets, _ in found)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("first", range(100, 300, 25))
def test_with_only_persisted_no_failover_is_a_reset_more_often(
    first: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert no_resets(range(first, first + 25), monkeypatch) > 100


@pytest.mark.parametrize("initial", [False, True])
def test_a_history_that_is_on_no_disk_is_in_no_offset(initial: bool) -> None:
    """A failover that takes nothing begins one, and a crash takes that with what came before and after it."""
    with LocalCluster(nodes=2, vbuckets=1, replicas=1, seed=3, username=USER, password=SECRET) as cluster:
        reader = reader_of(cluster, only_persisted=True)
        numbered(cluster, 3)
        engine = Engine(reader)
        assert engine.turn()
        cluster.upsert("key-0", {"n": 7})
        cluster.hold_persistence()
        cluster.upsert("key-2", {"n": 8})
        cluster.fail_over(0)
        if initial:
            engine = Engine(reader, reader.now(reader.look()))
        else:
            assert engine.plan()
        assert engine.offset(-1).marks[0].seqno == 4
        node = cluster._engine.bucket.map[0][0]
        cluster.kill(node)
        cluster.restart(node, same_ports=True)
        cluster.release()
        cluster.upsert("key-1", {"n": 9})
        if not initial:
            engine.apply(engine.read())
        engine.catch_up()
        assert engine.resets == 0
        assert engine.documents() == {"key-1": 9} | ({} if initial else {"key-0": 7, "key-2": 2})


def test_a_batch_is_up_to_where_the_copies_are() -> None:
    with cluster_of(vbuckets=1, replicas=1) as cluster:
        engine = Engine(reader_of(cluster, only_persisted=True))
        numbered(cluster, 3)
        cluster.hold_replication()
        assert engine.plan()
        cluster.upsert("key-0", {"n": 7})
        assert engine.offset(-1).marks[0].seqno == 3
        cluster.release()
        engine.again()
        engine.catch_up()
        cluster.hold_persistence(1)
        cluster.upsert("key-1", {"n": 8})
        assert not engine.plan()
        assert engine.documents() == {"key-0": 7, "key-1": 1, "key-2": 2}
        cluster.fail_over(0, node=1)
        # A replica that is made anew has less for a while: nothing is taken back for that.
        cluster.hold_persistence(0)
        cluster._engine.bucket.vbuckets[0].lags[0].persisted = 2
        assert not engine.plan()
        cluster.release()
        assert engine.caught_up() == documents_of(cluster)
        assert engine.resets == 0


def test_an_ephemeral_bucket_has_no_place_for_only_persisted() -> None:
    options = replace(QUICK, recovery_timeout=0.1)
    with cluster_of(nodes=1, vbuckets=1, ephemeral=True) as cluster:
        numbered(cluster, 1)
        reader = reader_of(cluster, only_persisted=True, options=options)
        with pytest.raises(ConfigurationError, match="an ephemeral bucket has no disk"):
            reader.look()


@pytest.mark.parametrize("whole", [False, True])
def test_a_document_that_never_rests(whole: bool) -> None:
    """It changes between every look and the read behind it."""
    with cluster_of(nodes=1, vbuckets=1) as cluster:
        engine = Engine(reader_of(cluster, whole_snapshots=whole))
        seen = []
        for n in range(5):
            cluster.upsert("counter", {"n": n})
            assert engine.plan()
            cluster.upsert("counter", {"n": n + 100})
            engine.again()
            seen.append(engine.documents().get("counter"))
        assert seen == ([n + 100 for n in range(5)] if whole else [None] * 5)
        assert engine.caught_up() == documents_of(cluster)


def test_what_is_not_asked_for_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server sends whole snapshots: of a vbucket that is read in part, the rest is not taken."""
    with cluster_of(nodes=1, vbuckets=1) as cluster:
        cluster.bulk_load((b"key-%05d" % n, b'{"n":%d,"pad":"%s"}' % (n, b"x" * 500)) for n in range(10_000))
        options = replace(QUICK, feed_buffer_size_bytes=50_000)
        engine = Engine(reader_of(cluster, options=options), most=100)
        sent = Sent(monkeypatch, cluster)
        engine.turn()
        assert len(engine.store) == 100
        assert sent.total < 500_000


@pytest.mark.parametrize("most", [None, 1500])
@pytest.mark.parametrize("base", [False, True])
def test_a_failover_in_the_middle_of_a_read(
    monkeypatch: pytest.MonkeyPatch, base: bool, most: int | None
) -> None:
    """What came before it does not count, whether the read began at the beginning or not."""
    with cluster_of(nodes=1) as cluster:

        def fill(first: int) -> None:
            pairs = ((b"key-%04d" % n, b'{"n":%d,"pad":"%s"}' % (n, b"x" * 100)) for n in range(first, 2000))
            cluster.bulk_load(pairs)

        # A small window: streams are under way when histories fork.
        options = replace(QUICK, feed_buffer_size_bytes=4000)
        engine = Engine(reader_of(cluster, options=options), most=most)
        if base:
            fill(1500)
            engine.turn()
        fill(0)
        engine.plan()
        sent = Sent(monkeypatch, cluster)
        for vbucket, seqno in cluster.high_seqnos().items():
            fork = partial(cluster._engine.fail_over, vbucket, lose=seqno * 3 // 4)
            sent.at(60_000, fork)
        engine.apply(engine.read(1))
        assert not sent.pending
        assert engine.resets > 0
        assert engine.caught_up() == documents_of(cluster)
        assert 0 < len(engine.documents()) < 2000


def test_an_older_version_that_comes_back_to_light(cluster: LocalCluster) -> None:
    """What the server left out for a newer version must not be lost when that version is."""
    reader = reader_of(cluster)
    engine = Engine(reader)
    cluster.upsert("key", {"n": 1})
    (vbucket,) = [vb for vb, seqno in cluster.high_seqnos().items() if seqno]
    engine.plan()
    cluster.upsert("key", {"n": 2})
    engine.again()
    assert engine.documents() == {}, "the newer version is behind the end"
    cluster.fail_over(vbucket, lose=1)
    # Nothing is behind the seqno where the next read begins, and the server would let it begin there.
    assert engine.caught_up() == {"key": 1}
    assert engine.resets == 1


def test_a_logged_end_on_a_lost_history(cluster: LocalCluster) -> None:
    """A read that is done again after its history was lost gives what there is; the next one, once more."""
    engine = engine_of(cluster)
    for n in range(10):
        cluster.upsert(f"key-{n}", {"n": 100 + n})
    engine.turn()
    for vbucket, seqno in cluster.high_seqnos().items():
        cluster.fail_over(vbucket, lose=seqno // 4)
    assert engine.documents() != documents_of(cluster)
    engine.again()
    assert engine.resets == 4
    assert engine.documents() == documents_of(cluster)
    engine.catch_up()
    assert engine.resets == 8
    assert engine.documents() == documents_of(cluster)


def test_the_first_read_done_again_on_another_history(cluster: LocalCluster) -> None:
    """What was stored of documents that never were must go, also if it was the beginning."""
    engine = Engine(reader_of(cluster))
    cluster.upsert("stays", {"n": 1})
    cluster.upsert("lost", {"n": 2})
    engine.turn()
    for vbucket, seqno in cluster.high_seqnos().items():
        cluster.fail_over(vbucket, lose=min(1, seqno))
    engine.again()
    assert engine.documents() == documents_of(cluster)


def test_purged_deletions(cluster: LocalCluster) -> None:
    engine = engine_of(cluster)
    for n in range(10):
        cluster.delete(f"key-{n}")
    cluster.upsert("new", {"n": 0})
    assert cluster.purge() > 5
    engine.catch_up()
    assert engine.resets > 0
    assert engine.documents() == documents_of(cluster)
    assert len(engine.documents()) == 11
    # The history is the planned one, so not even then is anything delivered that the next read delivers.
    assert not engine.plan()


def test_a_flushed_bucket(cluster: LocalCluster) -> None:
    empty = Engine(reader_of(cluster))
    empty.turn()
    cluster.fail_over(0, lose=0)
    assert not empty.plan(), "a failover of an empty vbucket is nothing new"
    engine = engine_of(cluster)
    cluster.flush()
    cluster.upsert("new", {"n": 0})
    assert engine.caught_up() == {"new": 0}
    assert engine.resets == 4


def test_another_bucket_of_the_name(cluster: LocalCluster) -> None:
    engine = Engine(reader_of(cluster))
    cluster.upsert("key", {"n": 1})
    engine.turn()
    cluster.upsert("other", {"n": 1})
    engine.plan()
    parts = engine.reader.parts(engine.offset(-2), engine.offset(-1), engine.reader.look(), 1)
    cluster.recreate()
    with pytest.raises(ClusterMapError, match="deleted and created again") as caught:
        engine.plan()
    assert caught.value.permanent
    assert "new checkpoint location" in str(caught.value)
    with pytest.raises(ClusterMapError):
        list(parts[0].read())


@pytest.mark.parametrize("vbuckets", [2, 4, 8])
def test_a_planned_read_of_another_bucket(cluster: LocalCluster, vbuckets: int) -> None:
    """A driver that is restarted has not looked ahead before it plans the last read again."""
    engine = Engine(reader_of(cluster))
    numbered(cluster, 20)
    engine.plan()
    with cluster_of(4, nodes=1, vbuckets=vbuckets) as other:
        reader = reader_of(other)
        with pytest.raises(ClusterMapError, match="deleted and created again") as caught:
            reader.parts(engine.offset(-2), engine.offset(-1), reader.look(), 3)
        assert caught.value.permanent


@pytest.mark.parametrize("when", ["planned", "read"])
def test_fail(cluster: LocalCluster, when: str) -> None:
    engine = engine_of(cluster, on_rollback="fail")
    cluster.upsert("key-1", {"n": 1})
    engine.plan()
    (given,) = engine.offset(-2).ranges_to(engine.offset(-1))
    if when == "planned":
        engine.again()
        cluster.fail_over(given.vbucket, lose=1)
        with pytest.raises(RollbackError) as caught:
            engine.plan()
    else:
        cluster.fail_over(given.vbucket, lose=1)
        with pytest.raises(RollbackError) as caught:
            engine.read()
    error = caught.value
    assert error.vbucket == given.vbucket
    assert error.node in cluster.kv_addresses
    assert f"read to seqno {given.end.seqno if when == 'planned' else given.start.seqno}" in str(error)
    assert "new checkpoint location" in str(error)


def test_fail_has_nothing_to_refuse_at_the_beginning(cluster: LocalCluster) -> None:
    """Nothing was delivered that could be rolled back; a first read that is done again has a reset."""
    engine = Engine(reader_of(cluster, on_rollback="fail"))
    numbered(cluster, 20)
    engine.plan()
    for vbucket in range(4):
        cluster.fail_over(vbucket, lose=1)
    engine.again()
    assert engine.documents() == documents_of(cluster)


def test_fail_tells_purges_from_failovers(cluster: LocalCluster) -> None:
    engine = engine_of(cluster, on_rollback="fail")
    for n in range(10):
        cluster.delete(f"key-{n}")
    cluster.upsert("new", {"n": 0})
    cluster.purge()
    engine.plan()
    with pytest.raises(RollbackError, match="though its history is the same") as caught:
        engine.read()
    error = caught.value
    assert error.node in cluster.kv_addresses
    given = {each.vbucket: each for each in engine.offset(-2).ranges_to(engine.offset(-1))}[error.vbucket]
    assert f"does not go on after seqno {given.start.seqno}" in str(error)
    assert "deletions after it were purged" in str(error)
    assert "failover" not in str(error)
    for vbucket in range(4):
        cluster.fail_over(vbucket, lose=1)
    with pytest.raises(RollbackError, match="is not the vbucket's any more") as caught:
        engine.read()
    assert "purged" not in str(caught.value)


def test_fail_where_a_history_is_shorter(cluster: LocalCluster) -> None:
    """It is not said to be another one."""
    reader = reader_of(cluster, on_rollback="fail")
    cluster.upsert("key", {"n": 1})
    look = reader.look()
    marks = {vb: VBucketOffset.at(at.history, at.seqno + 5) for vb, at in look.positions.items()}
    with pytest.raises(RollbackError, match=r"was read to seqno .*, and its history ends at seqno") as caught:
        reader.ahead(Offset(look.map.uuid, marks), look)
    assert caught.value.node in cluster.kv_addresses


def test_fail_leaves_alone_what_is_no_rollback(cluster: LocalCluster) -> None:
    cluster.create_collection("_default", "other")
    schema = schema_with("scope", "collection")
    engine = Engine(reader_of(cluster, schema, on_rollback="fail"))
    cluster.upsert("a", {"n": 1}, collection="_default.other")
    cluster.upsert("b", {"n": 2})
    engine.turn()
    assert {(row["_cb_scope"], row["_cb_collection"]) for row in engine.store.values()} == {
        ("_default", "other"),
        ("_default", "_default"),
    }
    cluster.drop_collection("_default", "other")
    cluster.upsert("c", {"n": 3})
    assert engine.caught_up() == {"b": 2, "c": 3}
    assert engine.resets == 4


def test_a_collection_of_its_own(cluster: LocalCluster) -> None:
    cid = cluster.create_collection("_default", "other")
    engine = Engine(reader_of(cluster, collections="other"))
    for turn in range(3):
        for n in range(10):
            cluster.upsert(f"key-{n}", {"n": n + turn}, collection=cid)
            # The last seqnos are of documents that nobody asked for.
            cluster.upsert(f"key-{n}", {"n": -1})
        engine.turn()
        assert engine.documents() == documents_of(cluster, cid)
    assert engine.resets == 0
    cluster.create_collection("_default", "third")
    cluster.upsert("key-1", {"n": 1}, collection=cid)
    engine.catch_up()
    assert engine.resets == 0, "it is not about what is not asked for"


@pytest.mark.parametrize("begin", ["beginning", "now"])
@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ({"collections": "a"}, {"collections": ["a", "b"]}, "of collections 'a', and collections 'a, b' is"),
        ({"collections": ["b", "a"]}, {"collections": "a"}, "of collections 'a, b', and collections 'a' is"),
        ({"collections": "a"}, {}, "of collections 'a', and all collections is asked for"),
        ({}, {"scope": "_default"}, "of all collections, and scope '_default' is asked for"),
        (
            {"scope": "s", "collections": "a"},
            {"scope": "t", "collections": "a"},
            "of scope 's' and collections 'a', and scope 't' and collections 'a' is asked for",
        ),
    ],
)
def test_a_checkpoint_of_other_collections(
    cluster: LocalCluster, begin: str, before: dict[str, Any], after: dict[str, Any], message: str
) -> None:
    """Their documents would never come, or never go."""
    for scope in ("s", "t"):
        cluster.create_scope(scope)
        cluster.create_collection(scope, "a")
    for name in ("a", "b"):
        cluster.upsert("key", {"n": 1}, collection=cluster.create_collection("_default", name))
    schema = schema_with("scope", "collection")
    reader, other = (reader_of(cluster, schema, **arguments) for arguments in (before, after))
    engine = Engine(reader, reader.now(reader.look()) if begin == "now" else None)
    cluster.upsert("more", {"n": 1}, collection="_default.a")
    engine.plan()
    engine.reader = other
    # A driver that is restarted, with others, and reads what was planned.
    with pytest.raises(ConfigurationError, match=message) as caught:
        engine.read()
    assert "new checkpoint location and an empty target" in str(caught.value)
    if begin == "now":
        # It asks first where to begin.
        engine.log[-2] = json.dumps(other.now(other.look()).to_dict())
        with pytest.raises(ConfigurationError, match=message):
            engine.read()
    with pytest.raises(ConfigurationError, match=message):
        engine.plan()


@pytest.mark.parametrize("most", [None, 3])
def test_another_scope_of_the_name(cluster: LocalCluster, most: int | None) -> None:
    """What was given of the one that was dropped goes, also while the new one has no collection."""
    schema = schema_with("collection")
    cluster.create_scope("s")
    cid = cluster.create_collection("s", "other")
    engine = Engine(reader_of(cluster, schema, scope="s"), most=most)
    for n in range(20):
        cluster.upsert(f"key-{n}", {"n": n}, collection=cid)
    engine.catch_up()
    assert len(engine.documents()) == 20
    cluster.create_scope("elsewhere")
    cluster.upsert("key", {"n": 1})
    engine.catch_up()
    assert engine.resets == 0
    cluster.drop_scope("s")
    cluster.create_scope("s")
    assert engine.caught_up() == {}
    cluster.upsert("new", {"n": 1}, collection=cluster.create_collection("s", "other"))
    assert engine.caught_up() == {"new": 1}


def test_the_order_of_collections_is_no_matter(cluster: LocalCluster) -> None:
    schema = schema_with("collection")
    for name in ("a", "b"):
        cluster.upsert("key", {"n": 1}, collection=cluster.create_collection("_default", name))
    engine = Engine(reader_of(cluster, schema, collections=["a", "b"]))
    engine.plan()
    engine.reader = reader_of(cluster, schema, collections=["b", "a", "b"])
    engine.again()
    assert len(engine.store) == 2
    assert not engine.plan()


def test_a_user_of_some_collections(cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the user sees is looked up once; a checkpoint keeps to it."""
    for name in ("a", "b"):
        cluster.create_collection("_default", name)
        cluster.upsert(f"key-{name}", {"n": 1}, collection=f"_default.{name}")
    monkeypatch.setenv("CB_USER", "ann")
    monkeypatch.setenv("CB_PASSWORD", "p")
    cluster.add_user("ann", "p", collections=["a"])
    with pytest.raises(AccessError, match="may not stream all") as caught:
        Engine(reader_of(cluster)).turn()
    assert 'collections="visible"' in str(caught.value.hint)
    engine = Engine(reader_of(cluster, collections="visible"))
    assert engine.caught_up() == {"key-a": 1}
    cluster.add_user("ann", "p")
    cluster.upsert("more", {"n": 2}, collection="_default.a")
    engine.reader = reader_of(cluster, collections="a", scope="_default")
    with pytest.raises(ConfigurationError, match=r"of collections '_default\.a'"):
        engine.plan()
    engine.reader = reader_of(cluster, collections="_default.a")
    assert engine.caught_up() == {"key-a": 1, "more": 2}
    engine.reader = reader_of(cluster, collections="visible")
    with pytest.raises(
        ConfigurationError, match=r"and collections '_default\._default, _default\.a, _default\.b'"
    ):
        engine.plan()


@pytest.mark.parametrize(
    ("arguments", "columns", "needed"),
    [
        ({}, [], "_cb_scope and _cb_collection"),
        ({}, ["collection"], "_cb_scope and _cb_collection"),
        ({}, ["scope"], "_cb_scope and _cb_collection"),
        ({}, ["scope", "collection"], None),
        ({"scope": "s"}, ["scope"], "_cb_collection"),
        ({"scope": "s"}, ["collection"], None),
        ({"collections": "s.a"}, [], None),
        ({"collections": ["s.a", "t.a"]}, ["collection"], "_cb_scope"),
        ({"collections": ["s.a", "t.a"]}, ["scope"], None),
        ({"scope": "s", "collections": ["a", "b"]}, ["scope"], "_cb_collection"),
        ({"scope": "s", "collections": ["a", "b"]}, ["collection"], None),
        ({"scope": "s", "collections": ["a", "b", "t.a"]}, ["collection"], "_cb_scope and _cb_collection"),
    ],
)
def test_one_key_in_several_collections(
    cluster: LocalCluster, arguments: dict[str, Any], columns: list[str], needed: str | None
) -> None:
    """They must not look like one document."""
    schema = schema_with(*columns)
    for scope in ("s", "t"):
        cluster.create_scope(scope)
        for name in ("a", "b"):
            cluster.upsert("key", {"n": 1}, collection=cluster.create_collection(scope, name))
    engine = Engine(reader_of(cluster, schema, **arguments))
    engine.plan()
    if needed is None:
        rows = engine.read()
        assert rows
        assert len({tuple(row.get(f"_cb_{name}") for name in columns) for row in rows}) == len(rows)
    else:
        with pytest.raises(ConversionError, match="no columns for them") as caught:
            engine.read()
        assert f"declare {needed} as string" in str(caught.value)


def test_from_now_on(cluster: LocalCluster) -> None:
    reader = reader_of(cluster)
    cluster.upsert("before", {"n": 0})
    look = reader.look()
    start = Offset.now(look.positions, look.map.uuid)
    engine = Engine(reader, start)
    assert not engine.plan()
    cluster.upsert("after", {"n": 1})
    engine.plan()
    # A driver that begins again before its first read is done asks for another now.
    cluster.upsert("later", {"n": 2})
    look = reader.look()
    engine.log[-2] = json.dumps(Offset.now(look.positions, look.map.uuid).to_dict())
    engine.again()
    assert engine.documents() == {"after": 1}
    assert engine.caught_up() == {"after": 1, "later": 2}
    assert engine.resets == 0


def test_a_vbucket_that_moves(cluster: LocalCluster) -> None:
    engine = engine_of(cluster)
    for turn in range(4):
        cluster.upsert("key-1", {"n": turn})
        engine.plan()
        cluster.move_vbucket(turn, turn % 2)
        engine.again()
    assert engine.caught_up() == documents_of(cluster)
    assert engine.resets == 0


def test_types(cluster: LocalCluster) -> None:
    schema = pa.schema(
        [
            ("n", pa.decimal128(20, 0)),
            ("_cb_seqno", pa.decimal128(20, 0)),
            ("tags", pa.list_(pa.string())),
            ("_cb_key", pa.binary()),
            ("_cb_cas", pa.decimal128(20, 0)),
            ("_change_type", pa.string()),
            ("_cb_vbucket", pa.int16()),
        ]
    )
    cluster.upsert("a", {"n": 2**64 - 1, "tags": ["x"], "more": 1})
    cluster.upsert("b", {"n": None})
    cluster.upsert("c", b"no document")
    cluster.upsert(b"\xff", {"n": 5})
    cluster.delete("b")
    engine = Engine(reader_of(cluster, schema))
    engine.plan()
    rows = {row["_cb_key"]: row for row in engine.read()}
    assert (int(rows[b"a"]["n"]), rows[b"a"]["tags"]) == (2**64 - 1, ["x"])
    assert (rows[b"b"]["_change_type"], rows[b"b"]["n"]) == ("delete", None)
    assert (rows[b"c"]["_change_type"], rows[b"c"]["n"]) == ("upsert", None)
    assert int(rows[b"\xff"]["_cb_cas"]) == truth(cluster)[b"\xff"].cas


def test_what_does_not_fit(cluster: LocalCluster) -> None:
    cluster.upsert("secret-key", {"n": "secret-text"})
    engine = Engine(reader_of(cluster))
    engine.plan()
    with pytest.raises(ConversionError, match="'n' has") as caught:
        engine.read()
    assert "secret" not in str(caught.value)
    engine.reader = reader_of(cluster, on_conflict="null")
    assert [row["n"] for row in engine.read()] == [None]
    cluster.upsert(b"\xff", {"n": 5})
    engine.plan()
    assert [row["_cb_key"] for row in engine.read()] == ["\\xff"]


def test_keys_only(cluster: LocalCluster) -> None:
    schema = pa.schema([each for each in SCHEMA if each.name != "n"])
    cluster.upsert("a", {"n": 1})
    cluster.upsert("b", {"n": 1})
    cluster.delete("b")
    engine = Engine(reader_of(cluster, schema))
    engine.plan()
    assert {(row["_cb_key"], row["_change_type"]) for row in engine.read()} == {
        ("a", "upsert"),
        ("b", "delete"),
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": pa.schema([("n", pa.int64())])}, "no column '_change_type'"),
        ({"schema": SCHEMA.append(pa.field("_cb_nothing", pa.int64()))}, "no column '_cb_nothing'"),
        ({"on_rollback": "emit"}, "on_rollback='emit'"),
        ({"on_conflict": "widen"}, "on_conflict='widen'"),
    ],
)
def test_what_cannot_be_meant(change: dict[str, Any], message: str) -> None:
    arguments = {"schema": SCHEMA, "auth": None, **change}
    with pytest.raises(ConfigurationError, match=message):
        micro_batch_reader("couchbase://127.0.0.1/none", None, **arguments)


NO_OFFSETS: dict[str, list[Any]] = {
    "an offset is a list": [[1]],
    "an offset is a str": ["0"],
    "an offset is a NoneType": [None],
    "the field '0'": [
        *({"0": "12"}, {"0": ["1_0", " 5 "]}, {"0": ["1", "05"]}, {"0": ["1", "\u0661"]}, {"0": ["1", 2]}),
        *({"0": ["1", "2", "3"]}, {"0": {"1": "2", "3": "4"}}, {"0": ["1", str(2**64)]}),
        {"0": ["1", "9" * 5000]},
    ],
    "the field '1024'": [{"1024": ["1", "2"]}],
    "the field ' 1'": [{" 1": ["1", "2"]}],
    "the field '01'": [{"1": ["1", "2"], "01": ["1", "2"]}],
    "the field 'other'": [{"other": ["1", "2"]}],
    "the field 'bucket_uuid'": [{"bucket_uuid": 5}],
    "the field 'turn'": [{"bucket_uuid": "x", "turn": -5}, {"turn": 1024}, {"turn": True}],
    "the field 'initial'": [{"initial": 1}],
    "the field 'began'": [{"began": ["1", "2"]}],
    "the field 'began.3'": [{"began": {"3": "12"}}],
    "the field 'scope'": [{"scope": 1}],
    "the field 'collections'": [{"collections": {"a": 1}}, {"collections": ["a", 1]}],
}


@pytest.mark.parametrize("message", NO_OFFSETS)
def test_what_is_no_offset(message: str) -> None:
    for fields in NO_OFFSETS[message]:
        with pytest.raises(ConfigurationError, match=message) as caught:
            Offset.from_dict(fields)
        assert "new checkpoint location" in str(caught.value)


def test_no_password_is_sent(cluster: LocalCluster) -> None:
    cluster.upsert("a", {"n": 1})
    reader = micro_batch_reader(
        cluster.connection_string, None, auth=(USER, SECRET), schema=SCHEMA, options=QUICK
    )
    start = Offset()
    look = reader.look()
    (part,) = reader.parts(start, reader.ahead(start, look), look, 1)
    assert SECRET not in repr(part)
    with pytest.raises(ConfigurationError, match="password"):
        part.refuse_secrets()
    with pytest.raises(ConfigurationError, match="password"):
        pickle.dumps(part)
