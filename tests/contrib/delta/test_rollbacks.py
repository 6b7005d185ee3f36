"""What the server rolls back, a Delta table rolls back: over seeds, with older versions and without them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from deltalake import DeltaTable
from scan.kit import QUICK, Row, truth, values_of
from scan.test_faults import complete_and_half_read
from snapshot.test_rollbacks import Life
from worlds import seeds, version_of, world_of

from cbframe import LocalCluster
from cbframe.contrib.delta import to_delta, update_delta

from .kit import by_deltalake, held, make, update


def live(seed: int, uri: str) -> Counter[str]:
    """Updates of a table, of a bucket that changes and loses changes; what happened."""
    happened: Counter[str] = Counter()
    told: dict[int, dict[bytes, Row]] = {}
    with LocalCluster(nodes=2, vbuckets=8, seed=seed, version=version_of(seed)) as cluster:
        life = Life(cluster, seed)
        life.changes(150)
        result = make(cluster, uri, parse=False)
        told[result.version] = truth(cluster)
        for _ in range(7):
            life.changes(life.rng.choice([0, 3, 30]))
            for _ in range(life.rng.choice([0, 1, 1, 3])):
                life.failover()
            life.changes(life.rng.choice([0, 3, 30]))
            tidy(life, uri, happened, told)
            result = update(cluster, uri)
            told[result.version] = truth(cluster)
            assert held(uri) == told[result.version]
            happened["retracted"] += result.retracted
            happened["rolled back"] += len(result.rolled_back)
            happened["read again from the start"] += sum(not seqno for seqno in result.read_again.values())
            happened["read again from within"] += sum(bool(seqno) for seqno in result.read_again.values())
            assert not update(cluster, uri).changed
        # What older versions were is still what they are.
        for version, documents in told.items():
            assert held(uri, version) == documents
    return happened


def tidy(life: Life, uri: str, happened: Counter[str], told: dict[int, dict[bytes, Row]]) -> None:
    """What others may do to the table."""
    if life.rng.random() < 0.2:
        DeltaTable(uri).optimize.compact()
        happened["compactions"] += 1
    if life.rng.random() < 0.15:
        newest = max(told)
        DeltaTable(uri).vacuum(retention_hours=0, enforce_retention_duration=False, dry_run=False)
        happened["vacuumed"] += 1
        told.clear()
        assert newest <= DeltaTable(uri).version()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("first", range(0, 16, 8))
def test_losses(first: int, tmp_path: Path) -> None:
    happened: Counter[str] = Counter()
    for seed in range(first, first + 8):
        happened += live(seed, str(tmp_path / str(seed)))
    assert min(happened[what] for what in ("rolled back", "retracted", "compactions", "vacuumed")) > 3
    assert min(happened[f"read again from {where}"] for where in ("the start", "within")) > 3


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("first", range(100, 300, 25))
def test_losses_of_many_seeds(first: int, tmp_path: Path) -> None:
    for seed in range(first, first + 25):
        live(seed, str(tmp_path / str(seed)))


@pytest.mark.parametrize("vacuumed", [False, True])
@pytest.mark.parametrize(
    "change",
    [
        lambda cluster: cluster.upsert("key", {"lost": 1}),
        lambda cluster: cluster.delete("key"),
        lambda cluster: cluster.upsert("new", {"lost": 1}),
    ],
    ids=["overwritten", "deleted", "created"],
)
def test_one_rolled_back_change(change: Callable[[LocalCluster], object], vacuumed: bool, uri: str) -> None:
    with LocalCluster(nodes=1, vbuckets=1, seed=3) as cluster:
        cluster.upsert("key", {"n": 1})
        make(cluster, uri, parse=False)
        before = held(uri)
        change(cluster)
        update(cluster, uri)
        assert held(uri) != before
        if vacuumed:
            DeltaTable(uri).vacuum(retention_hours=0, enforce_retention_duration=False, dry_run=False)
        cluster.fail_over(0, lose=1)
        cluster.upsert("other", {})
        result = update(cluster, uri)
        assert held(uri) == truth(cluster) == before | {b"other": truth(cluster)[b"other"]}
        assert result.rolled_back == {0: 1}
        # Without files of the version that it was rolled back to, the vbucket is read from the start. Where
        # the change added nothing to the first version's files, these are still the table's own.
        assert result.read_again in ([{0: 0}, {0: 1}] if vacuumed else [{0: 1}])


def test_what_was_never_sent_comes_after_all(uri: str) -> None:
    """Of one snapshot, the server sends the newest version of a document only."""
    with LocalCluster(nodes=1, vbuckets=1, seed=3) as cluster:
        cluster.upsert("key", {"n": 1})
        cluster.upsert("key", {"n": 2})
        make(cluster, uri, parse=False)
        cluster.fail_over(0, lose=1)
        result = update(cluster, uri)
        assert held(uri) == truth(cluster)
        assert held(uri)[b"key"].value == b'{"n":1}'
        # The server says 1, where the first version is: the table never had it.
        assert (result.rolled_back, result.read_again) == ({0: 1}, {0: 0})


def test_only_the_vbucket_concerned_is_read_again(uri: str) -> None:
    with LocalCluster(nodes=1, vbuckets=4, seed=3) as cluster:
        for number in range(400):
            cluster.upsert(f"key-{number}", {"n": number})
        make(cluster, uri, parse=False)
        cluster.fail_over(2, lose=3)
        result = update(cluster, uri)
        assert held(uri) == truth(cluster)
        assert result.read_again == {2: 0}
        assert 0 < result.upserted < 150


def test_a_vbucket_that_lost_everything(uri: str) -> None:
    with LocalCluster(nodes=1, vbuckets=2, seed=3) as cluster:
        for number in range(40):
            cluster.upsert(f"key-{number}", {"n": number})
        make(cluster, uri, parse=False)
        cluster.fail_over(1, lose=cluster.high_seqnos()[1])
        result = update(cluster, uri)
        assert held(uri) == truth(cluster)
        assert result.read_again == {1: 0}
        assert result.retracted == 40 - len(held(uri)) > 0


def test_tombstones_that_were_purged(uri: str) -> None:
    """Deletions that the server has forgotten: the vbuckets are read again from the start."""
    with LocalCluster(nodes=1, vbuckets=2, seed=3) as cluster:
        for number in range(40):
            cluster.upsert(f"key-{number}", {"n": number})
        make(cluster, uri, parse=False)
        for number in range(30):
            cluster.delete(f"key-{number}")
        cluster.upsert("last-1", {})
        cluster.upsert("last-2", {})
        assert cluster.purge() > 20
        result = update(cluster, uri)
        assert held(uri) == truth(cluster)
        assert set(result.read_again.values()) == {0}


@pytest.mark.timeout(400)
def test_worlds_that_break(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    happened: Counter[str] = Counter()
    for seed in range(8):
        with monkeypatch.context() as patched:
            happened += _break(seed, str(tmp_path / str(seed)), patched)
    assert happened["read again"] > 3, "no history was lost while it was read: too little was tested"


@pytest.mark.slow
@pytest.mark.parametrize("seed", seeds(1000, 1050))
def test_many_worlds_that_break(seed: int, uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _break(seed, uri, monkeypatch)


def _break(seed: int, uri: str, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Four writes in the world of a seed, each of which says its vbucket positions."""
    happened: Counter[str] = Counter()
    with world_of(seed, monkeypatch) as world:
        for number in range(4):
            world.left = 4
            arguments: dict[str, Any] = {
                "bucket": world.cluster.bucket,
                "auth": world.auth,
                "timeout": 60,
                "options": QUICK,
                "buffer_bytes": world.rng.choice([2000, 20_000]),
            }
            if number:
                result = update_delta(world.seeds, uri, **arguments)
            else:
                result = to_delta(world.seeds, uri, parse=False, **arguments)
            world.check(values_of(by_deltalake(uri)), result.as_of)
            happened["read again"] += len(result.read_again)
        world.revive()
    return happened


def test_a_history_is_lost_of_what_was_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read again before it is committed, if that is wanted; else the next update takes it back."""
    for consistency in ("strict", "snapshot"):
        uri = str(tmp_path / consistency)
        with LocalCluster(vbuckets=2, seed=1) as cluster:
            make(cluster, uri, parse=False)
            sent = complete_and_half_read(monkeypatch, cluster, 7, 3)
            update(cluster, uri, buffer_bytes=2000, consistency=consistency)
            assert not sent.pending
            assert (held(uri) == truth(cluster)) == (consistency == "strict")
            update(cluster, uri)
            assert held(uri) == truth(cluster)
