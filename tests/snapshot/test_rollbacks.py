"""What the server rolls back, a snapshot rolls back: over seeds, with and without compaction."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from scan.kit import QUICK, WIRE_METADATA, Row, rows_of, truth, values_of
from scan.test_faults import complete_and_half_read, keys_by_vbucket
from worlds import seeds, version_of, world_of

from cbframe import LocalCluster, Snapshot, SnapshotResult, read_snapshot, write_snapshot

from .conftest import Calendar

KEYS = [f"key-{n:03d}" for n in range(120)]


def update(cluster: LocalCluster, path: Path, **arguments: object) -> SnapshotResult:
    arguments.setdefault("parse", False)
    return write_snapshot(cluster, path, options=QUICK, timeout=60, **arguments)  # type: ignore[arg-type]


def held(path: Path, as_of: int | None = None) -> dict[bytes, Row]:
    """Every document of a snapshot, with all of its metadata."""
    return rows_of(read_snapshot(path, metadata=WIRE_METADATA, as_of=as_of, return_type="arrow"))


class Life:
    """Random changes of a bucket, and losses of some of them."""

    def __init__(self, cluster: LocalCluster, seed: int) -> None:
        self.cluster = cluster
        self.rng = random.Random(seed)
        self.number = 0

    def changes(self, count: int) -> None:
        for _ in range(count):
            key = self.rng.choice(KEYS)
            self.number += 1
            what = self.rng.random()
            if what < 0.15:
                self.cluster.delete(key)
            elif what < 0.2:
                self.cluster.expire(key)
            else:
                self.cluster.upsert(key, {"n": self.number})

    def failover(self) -> None:
        vbucket = self.rng.randrange(8)
        high = self.cluster.high_seqnos()[vbucket]
        self.cluster.fail_over(vbucket, lose=min(high, self.rng.choice([1, 2, 5, 20, high])))


def live(seed: int, path: Path, calendar: Calendar) -> Counter[str]:
    """Updates of a snapshot, of a bucket that changes and loses changes; what happened."""
    happened: Counter[str] = Counter()
    told: dict[int, dict[bytes, Row]] = {}
    with LocalCluster(nodes=2, vbuckets=8, seed=seed, version=version_of(seed)) as cluster:
        life = Life(cluster, seed)
        life.changes(150)
        for _ in range(8):
            result = update(cluster, path, clock=calendar, file_bytes=life.rng.choice([500, 1 << 20]))
            told[result.version] = truth(cluster)
            assert held(path) == told[result.version]
            happened["retracted"] += result.retracted
            happened["rolled back"] += len(result.rolled_back)
            happened["read again from the start"] += sum(not seqno for seqno in result.read_again.values())
            happened["read again from within"] += sum(bool(seqno) for seqno in result.read_again.values())
            calendar.go_on(minutes=10)
            if life.rng.random() < 0.3:
                Snapshot(path).compact(keep=life.rng.choice(["0s", "25min", "1d"]), clock=calendar)
                happened["compactions"] += 1
                assert held(path) == told[result.version]
                if life.rng.random() < 0.3:
                    Snapshot(path).vacuum(keep=1, clock=calendar)
                    told = {Snapshot(path).version: told[result.version]}
            life.changes(life.rng.choice([0, 3, 30]))
            for _ in range(life.rng.choice([0, 1, 1, 3])):
                life.failover()
            life.changes(life.rng.choice([0, 3, 30]))
        # What older versions were is still what they are.
        there = {each.version for each in Snapshot(path).versions}
        assert told.keys() <= there
        for version, documents in told.items():
            assert held(path, version) == documents
        verification = Snapshot(path).verify()
        assert verification.ok, str(verification)
    return happened


@pytest.mark.parametrize("first", range(0, 100, 25))
def test_losses(first: int, tmp_path: Path) -> None:
    happened: Counter[str] = Counter()
    for seed in range(first, first + 25):
        happened += live(seed, tmp_path / str(seed), Calendar())
    assert min(happened[what] for what in ("rolled back", "retracted", "compactions")) > 20
    assert min(happened[f"read again from {where}"] for where in ("the start", "within")) > 5


@pytest.mark.parametrize("compacted", [False, True])
@pytest.mark.parametrize(
    "change",
    [
        lambda cluster: cluster.upsert("key", {"lost": 1}),
        lambda cluster: cluster.delete("key"),
        lambda cluster: cluster.upsert("new", {"lost": 1}),
    ],
    ids=["overwritten", "deleted", "created"],
)
def test_one_rolled_back_change(
    change: Callable[[LocalCluster], object], compacted: bool, path: Path, calendar: Calendar
) -> None:
    with LocalCluster(nodes=1, vbuckets=1, seed=3) as cluster:
        cluster.upsert("key", {"n": 1})
        update(cluster, path, clock=calendar)
        before = held(path)
        change(cluster)
        update(cluster, path, clock=calendar)
        assert held(path) != before
        if compacted:
            # Within the last day nothing is left out.
            Snapshot(path).compact(clock=calendar)
        cluster.fail_over(0, lose=1)
        cluster.upsert("other", {})
        result = update(cluster, path, clock=calendar)
        assert (result.retracted, result.rolled_back, result.read_again) == (1, {0: 1}, {0: 1})
        assert held(path) == truth(cluster) == before | {b"other": truth(cluster)[b"other"]}


def test_as_many_are_kept_as_are_left_out(path: Path, calendar: Calendar) -> None:
    """An older version stays for a rollback, a deletion goes: as many rows, and yet a document twice."""
    with LocalCluster(nodes=1, vbuckets=1, seed=3) as cluster:
        cluster.upsert("key", {"n": 1})
        cluster.upsert("other", {})
        update(cluster, path, clock=calendar)
        cluster.delete("other")
        update(cluster, path, clock=calendar)
        calendar.go_on(hours=1)
        cluster.upsert("key", {"n": 2})
        update(cluster, path, clock=calendar)
        Snapshot(path).compact(keep="30min", clock=calendar)
        assert held(path) == truth(cluster)


def test_what_was_never_sent_comes_after_all(path: Path) -> None:
    """Of one snapshot, the server sends the newest version of a document only."""
    with LocalCluster(nodes=1, vbuckets=1, seed=3) as cluster:
        cluster.upsert("key", {"n": 1})
        cluster.upsert("key", {"n": 2})
        update(cluster, path)
        cluster.fail_over(0, lose=1)
        result = update(cluster, path)
        assert held(path) == truth(cluster)
        assert held(path)[b"key"].value == b'{"n":1}'
        # The server says 1, where the first version is: the snapshot never had it.
        assert (result.rolled_back, result.read_again) == ({0: 1}, {0: 0})


def test_a_vbucket_that_lost_everything(path: Path) -> None:
    with LocalCluster(nodes=1, vbuckets=2, seed=3) as cluster:
        for number in range(40):
            cluster.upsert(f"key-{number}", {"n": number})
        update(cluster, path)
        cluster.fail_over(1, lose=cluster.high_seqnos()[1])
        result = update(cluster, path)
        assert held(path) == truth(cluster)
        assert result.read_again == {1: 0}
        assert result.retracted == 40 - len(held(path)) > 0


def test_tombstones_that_were_purged(path: Path) -> None:
    """Deletions that the server has forgotten: the vbuckets are read again from the start."""
    with LocalCluster(nodes=1, vbuckets=2, seed=3) as cluster:
        for number in range(40):
            cluster.upsert(f"key-{number}", {"n": number})
        update(cluster, path)
        for number in range(30):
            cluster.delete(f"key-{number}")
        cluster.upsert("last-1", {})
        cluster.upsert("last-2", {})
        assert cluster.purge() > 20
        result = update(cluster, path)
        assert held(path) == truth(cluster)
        assert set(result.read_again.values()) == {0}


@pytest.mark.timeout(400)
@pytest.mark.parametrize("first", range(0, 16, 8))
def test_worlds_that_break(first: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    happened: Counter[str] = Counter()
    for seed in range(first, first + 8):
        with monkeypatch.context() as patched:
            happened += _break(seed, tmp_path / str(seed), patched)
    assert happened["read again"] > 5, "no history was lost while it was read: too little was tested"


@pytest.mark.slow
@pytest.mark.parametrize("seed", seeds(1000, 1100))
def test_many_worlds_that_break(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _break(seed, tmp_path / str(seed), monkeypatch)


def _break(seed: int, path: Path, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Four updates in the world of a seed, each of which says its vbucket positions."""
    happened: Counter[str] = Counter()
    with world_of(seed, monkeypatch) as world:
        for _ in range(4):
            world.left = 4
            result = write_snapshot(
                world.seeds,
                path,
                bucket=world.cluster.bucket,
                auth=world.auth,
                parse=False,
                timeout=60,
                options=QUICK,
                buffer_bytes=world.rng.choice([2000, 20_000]),
            )
            world.check(values_of(read_snapshot(path, return_type="arrow")), result.as_of)
            happened["read again"] += len(result.read_again)
            happened["rolled back"] += len(result.rolled_back)
        world.revive()
    verification = Snapshot(path).verify()
    assert verification.ok, str(verification)
    return happened


@pytest.mark.parametrize(
    ("before", "lose"), [(0, 7), (5, 7), (5, 22)], ids=["first", "later", "further back"]
)
def test_a_history_is_lost_of_what_was_complete(
    before: int, lose: int, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read again before the version is published, if that is wanted; else the next update takes it back."""
    for consistency in ("strict", "snapshot"):
        with LocalCluster(vbuckets=2, seed=1) as cluster:
            target = path / consistency
            if before:
                for key in keys_by_vbucket()[0][:before]:
                    cluster.upsert(key, {"n": 1})
                update(cluster, target)
            sent = complete_and_half_read(monkeypatch, cluster, lose, 3)
            result = update(cluster, target, buffer_bytes=2000, consistency=consistency)
            assert not sent.pending
            assert (held(target) == truth(cluster)) == (consistency == "strict")
            histories = {vb: vbuuid for vb, (vbuuid, _) in result.as_of.items()}
            newest = {vb: cluster.failover_log(vb)[0][0] for vb in histories}
            assert (histories == newest) == (consistency == "strict")
            update(cluster, target)
            assert held(target) == truth(cluster)
            assert Snapshot(target).verify().ok
