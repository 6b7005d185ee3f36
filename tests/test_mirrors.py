"""What the server rolls back, a mirror rolls back; a writer that is killed costs nothing and doubles nothing.

Snapshots, Delta and Iceberg tables alike. As many kills as are wanted, 50 of each mirror::

    KILLS=5000-6000 python -m pytest -m slow -k killed tests/test_mirrors.py
"""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from contrib.delta.conftest import _runtime  # noqa: F401 - a fixture that is used by itself
from failovers import VBUCKETS, Asked, Hand
from mirrors import KILLED, KINDS, Mirror, Mortals, SnapshotMirror
from scan.conftest import nothing_left  # noqa: F401 - as above
from scan.kit import Row, background, fill, truth
from scan.test_faults import complete_and_half_read, keys_by_vbucket
from snapshot.kit import Life
from worlds import (
    either_version,  # noqa: F401 - as above
    seeds,
    version_of,
    world_of,
)

from cbframe import LocalCluster, SnapshotError


@pytest.fixture
def cluster() -> Iterator[LocalCluster]:
    """Two nodes, 16 vbuckets."""
    with LocalCluster(nodes=2, vbuckets=16, seed=1) as running:
        yield running


@pytest.fixture(params=KINDS)
def mirror(request: pytest.FixtureRequest, tmp_path: Path) -> Mirror:
    return KINDS[request.param](tmp_path)


@pytest.fixture
def mortals(cluster: LocalCluster, mirror: Mirror) -> Iterator[Mortals]:
    some = Mortals(cluster, mirror)
    yield some
    some.close()


# --- rollbacks


def live(seed: int, mirror: Mirror) -> Counter[str]:
    """Updates of a mirror, of a bucket that changes and loses changes; what happened."""
    happened: Counter[str] = Counter()
    told: dict[int, dict[bytes, Row]] = {}
    with LocalCluster(nodes=2, vbuckets=8, seed=seed, version=version_of(seed)) as cluster:
        life = Life(cluster, seed)
        life.changes(150)
        for _ in range(8):
            snapshot = isinstance(mirror, SnapshotMirror)
            sizes = {"file_bytes": life.rng.choice([500, 1 << 20])} if snapshot else {}
            result = mirror.update(cluster, **sizes)
            told[result.version] = truth(cluster)
            assert mirror.held() == told[result.version]
            happened["retracted"] += result.retracted
            happened["rolled back"] += len(result.rolled_back)
            happened["read again from the start"] += sum(not seqno for seqno in result.read_again.values())
            happened["read again from within"] += sum(bool(seqno) for seqno in result.read_again.values())
            assert snapshot or not mirror.update(cluster).changed
            if mirror.tidy(life.rng, happened):
                told = {mirror.version(): truth(cluster)}
            assert mirror.held() == truth(cluster)
            life.changes(life.rng.choice([0, 3, 30]))
            for _ in range(life.rng.choice([0, 1, 1, 3])):
                life.failover()
            life.changes(life.rng.choice([0, 3, 30]))
        # What older versions were is still what they are.
        assert told.keys() <= mirror.versions()
        for version, documents in told.items():
            assert mirror.held(version) == documents
        mirror.verify()
    return happened


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("kind", "first", "count"),
    [
        *(("snapshot", first, 25) for first in range(0, 100, 25)),
        *(("delta", first, 8) for first in range(0, 16, 8)),
        ("iceberg", 0, 5),
        *(
            pytest.param(kind, first, 25, marks=[pytest.mark.slow, pytest.mark.timeout(1200)])
            for kind in ("delta", "iceberg")
            for first in range(100, 300, 25)
        ),
    ],
)
def test_losses(kind: str, first: int, count: int, tmp_path: Path) -> None:
    happened: Counter[str] = Counter()
    for seed in range(first, first + count):
        happened += live(seed, KINDS[kind](tmp_path / str(seed)))
    most, some, vacuums = {"snapshot": (20, 5, 3), "delta": (3, 3, 3), "iceberg": (3, 3, 1)}[kind]
    assert min(happened[what] for what in ("rolled back", "retracted", "compacted")) > most
    assert happened["vacuumed"] > vacuums
    assert min(happened[f"read again from {where}"] for where in ("the start", "within")) > some


def lag(seed: int, mirror: Mirror, asked: Asked) -> int:
    """Updates of a mirror, between failovers that take what only some copies have; how much that was."""
    with LocalCluster(nodes=3, vbuckets=VBUCKETS, replicas=1 + seed % 2, seed=seed) as cluster:
        hand = Hand(cluster, seed)
        hand.write(60)
        for _ in range(5):
            hand.hold()
            hand.write()
            # It waits for the copies: they catch up after some questions.
            asked.then(10, cluster.release)
            result = mirror.update(cluster, only_persisted=True)
            assert (result.retracted, result.read_again) == (0, {})
            assert mirror.held() == truth(cluster)
            cluster.release()
            hand.hold()
            hand.write()
            hand.lose()
        mirror.verify()
    return hand.lost


@pytest.mark.parametrize("seed", range(2))
def test_what_is_on_all_disks_is_not_retracted(
    seed: int, mirror: Mirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert lag(seed, mirror, Asked(monkeypatch)) > 0


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("kind", "count"), [("snapshot", 200), ("delta", 50)])
def test_what_is_on_all_disks_is_not_retracted_more_often(
    kind: str, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = Asked(monkeypatch)
    lost = [lag(seed, KINDS[kind](tmp_path / str(seed)), asked) for seed in range(100, 100 + count)]
    assert sum(lost) > 2 * count


@pytest.mark.parametrize("packed", [False, True])
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
    change: Callable[[LocalCluster], object], packed: bool, mirror: Mirror
) -> None:
    with LocalCluster(nodes=1, vbuckets=1, seed=3) as cluster:
        cluster.upsert("key", {"n": 1})
        mirror.update(cluster)
        before = mirror.held()
        change(cluster)
        mirror.update(cluster)
        assert mirror.held() != before
        if packed:
            mirror.pack()
        cluster.fail_over(0, lose=1)
        cluster.upsert("other", {})
        result = mirror.update(cluster)
        assert mirror.held() == truth(cluster) == before | {b"other": truth(cluster)[b"other"]}
        assert result.rolled_back == {0: 1}
        if isinstance(mirror, SnapshotMirror):
            assert (result.retracted, result.read_again) == (1, {0: 1})
        else:
            # Without files of the version that it was rolled back to, the vbucket is read from the start.
            # Where the change added nothing to the first version's files, these are still the table's own.
            assert result.read_again in ([{0: 0}, {0: 1}] if packed else [{0: 1}])


def test_what_was_never_sent_comes_after_all(mirror: Mirror) -> None:
    """Of one snapshot, the server sends the newest version of a document only."""
    with LocalCluster(nodes=1, vbuckets=1, seed=3) as cluster:
        cluster.upsert("key", {"n": 1})
        cluster.upsert("key", {"n": 2})
        mirror.update(cluster)
        cluster.fail_over(0, lose=1)
        result = mirror.update(cluster)
        assert mirror.held() == truth(cluster)
        assert mirror.held()[b"key"].value == b'{"n":1}'
        # The server says 1, where the first version is: the mirror never had it.
        assert (result.rolled_back, result.read_again) == ({0: 1}, {0: 0})


def forty(mirror: Mirror, cluster: LocalCluster) -> None:
    for number in range(40):
        cluster.upsert(f"key-{number}", {"n": number})
    mirror.update(cluster)


def test_a_vbucket_that_lost_everything(mirror: Mirror) -> None:
    with LocalCluster(nodes=1, vbuckets=2, seed=3) as cluster:
        forty(mirror, cluster)
        cluster.fail_over(1, lose=cluster.high_seqnos()[1])
        result = mirror.update(cluster)
        assert mirror.held() == truth(cluster)
        assert result.read_again == {1: 0}
        assert result.retracted == 40 - len(mirror.held()) > 0


def test_only_the_vbucket_concerned_is_read_again(mirror: Mirror) -> None:
    with LocalCluster(nodes=1, vbuckets=4, seed=3) as cluster:
        forty(mirror, cluster)
        cluster.fail_over(2, lose=3)
        result = mirror.update(cluster)
        assert mirror.held() == truth(cluster)
        assert result.read_again == {2: 0}
        assert 0 < result.upserted < 20


def test_tombstones_that_were_purged(mirror: Mirror) -> None:
    """Deletions that the server has forgotten: the vbuckets are read again from the start."""
    with LocalCluster(nodes=1, vbuckets=2, seed=3) as cluster:
        forty(mirror, cluster)
        for number in range(30):
            cluster.delete(f"key-{number}")
        cluster.upsert("last-1", {})
        cluster.upsert("last-2", {})
        assert cluster.purge() > 20
        result = mirror.update(cluster)
        assert mirror.held() == truth(cluster)
        assert set(result.read_again.values()) == {0}


@pytest.mark.parametrize(
    ("before", "lose"), [(0, 7), (5, 7), (5, 22)], ids=["first", "later", "further back"]
)
@pytest.mark.parametrize("kind", KINDS)
def test_a_history_is_lost_of_what_was_complete(
    kind: str, before: int, lose: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read again before the version is published, if that is wanted; else the next update takes it back."""
    for consistency in ("strict", "snapshot"):
        mirror = KINDS[kind](tmp_path / consistency)
        with LocalCluster(vbuckets=2, seed=1) as cluster:
            if before:
                for key in keys_by_vbucket()[0][:before]:
                    cluster.upsert(key, {"n": 1})
                mirror.update(cluster)
            sent = complete_and_half_read(monkeypatch, cluster, lose, 3)
            result = mirror.update(cluster, buffer_bytes=2000, consistency=consistency)
            assert not sent.pending
            assert (mirror.held() == truth(cluster)) == (consistency == "strict")
            histories = {vb: vbuuid for vb, (vbuuid, _) in result.as_of.items()}
            newest = {vb: cluster.failover_log(vb)[0][0] for vb in histories}
            assert (histories == newest) == (consistency == "strict")
            mirror.update(cluster)
            assert mirror.held() == truth(cluster)
            mirror.verify()


def in_a_world(seed: int, mirror: Mirror, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Four updates in the world of a seed, each of which says its vbucket positions."""
    happened: Counter[str] = Counter()
    with world_of(seed, monkeypatch) as world:
        for _ in range(4):
            world.left = 4
            arguments: dict[str, Any] = {"bucket": world.cluster.bucket, "auth": world.auth}
            result = mirror.update(world.seeds, buffer_bytes=world.rng.choice([2000, 20_000]), **arguments)
            world.check({key: row.value for key, row in mirror.held().items()}, result.as_of)
            happened["read again"] += len(result.read_again)
        world.revive()
    mirror.verify()
    return happened


@pytest.mark.timeout(400)
@pytest.mark.parametrize(("kind", "first"), [("snapshot", 0), ("snapshot", 8), ("delta", 0), ("iceberg", 0)])
def test_worlds_that_break(kind: str, first: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    happened: Counter[str] = Counter()
    for seed in range(first, first + 8):
        with monkeypatch.context() as patched:
            happened += in_a_world(seed, KINDS[kind](tmp_path / str(seed)), patched)
    least = 5 if kind == "snapshot" else 3
    assert happened["read again"] > least, "no history was lost while it was read: too little was tested"


@pytest.mark.slow
@pytest.mark.parametrize("seed", seeds(1000, 1100))
def test_many_worlds_that_break(seed: int, mirror: Mirror, monkeypatch: pytest.MonkeyPatch) -> None:
    in_a_world(seed, mirror, monkeypatch)


@pytest.mark.parametrize(
    ("how", "why"),
    [
        (lambda cluster: cluster.flush(), "it was emptied"),
        (lambda cluster: cluster.recreate(), "it was deleted and created again"),
        (lambda cluster: cluster.recreate(vbuckets=32), "it was deleted and created again"),
    ],
    ids=["flushed", "recreated", "recreated with other vbuckets"],
)
def test_another_bucket(
    how: Callable[[LocalCluster], object], why: str, cluster: LocalCluster, mirror: Mirror
) -> None:
    fill(cluster, 50)
    mirror.update(cluster)
    before, version = mirror.held(), mirror.version()
    how(cluster)
    for count in (0, 30):
        fill(cluster, count)
        with pytest.raises(SnapshotError, match=why) as caught:
            mirror.update(cluster)
        assert f"is not the one that the {mirror.what}" in str(caught.value)
        assert 'mode="overwrite"' in str(caught.value.hint)
    assert (mirror.held(), mirror.version()) == (before, version)
    mirror.update(cluster, mode="overwrite")
    assert mirror.held() == truth(cluster)
    assert mirror.held(version) == before


# --- kills


def survive(cluster: LocalCluster, mirror: Mirror, mortals: Mortals, kills: int, seed: int) -> Counter[str]:
    """Kill that many updates, at moments of all kinds; what happened."""
    life = Life(cluster, seed)
    life.changes(200)
    assert mortals.update(place=mirror.place.with_name("whole")) == 0
    happened: Counter[str] = Counter()
    before: dict[bytes, Row] = {}
    while happened["killed"] < kills:
        life.changes(life.rng.choice([1, 10, 60]))
        if life.rng.random() < 0.1:
            life.failover()
        now = truth(cluster)
        compact = life.rng.random() < 0.2 and mirror.exists()
        # The first dies before there is a version.
        chance = life.rng.random() if happened else 0.5
        if chance < 0.03:
            status = mortals.update(compact=compact)
        elif chance < 0.75:
            death = mortals.death(life.rng) if happened else ("receive_into", life.rng.randrange(20), True)
            status = mortals.update(die_at=death, compact=compact)
            assert mortals.dead == (status == KILLED)
            happened[death[0]] += mortals.dead
        else:
            status = mortals.update(kill_after=life.rng.random() * mortals.seconds, compact=compact)
            happened["from outside"] += status == KILLED
        assert status in (0, KILLED)
        happened["killed" if status == KILLED else "completed"] += 1
        if not mirror.exists():
            assert status == KILLED
            happened["before the first version"] += 1
            continue
        mirror.verify()
        documents = mirror.held()
        assert documents == now or (status == KILLED and documents == before)
        before = documents
    assert mortals.update() == 0
    assert mirror.held() == truth(cluster)
    mirror.nothing_left()
    return happened


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("mirror", "kills"),
    [
        *(("snapshot", 200), ("delta", 8), ("iceberg", 8)),
        *(pytest.param(kind, 50, marks=pytest.mark.slow) for kind in ("delta", "iceberg")),
    ],
    indirect=["mirror"],
)
def test_killed_at_any_moment(cluster: LocalCluster, mirror: Mirror, mortals: Mortals, kills: int) -> None:
    happened = survive(cluster, mirror, mortals, kills, seed=2)
    assert happened["before the first version"] > 0
    assert happened["killed"] == kills
    if kills == 200:
        assert happened["completed"] > 0
        assert min(happened[place] for place in (*mortals.calls, "from outside")) > 0


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("first", seeds(1000, 2000, "KILLS")[::50])
@pytest.mark.parametrize("mirror", ["snapshot"], indirect=True)
def test_killed_at_many_moments(first: int, cluster: LocalCluster, mirror: Mirror, mortals: Mortals) -> None:
    assert survive(cluster, mirror, mortals, kills=50, seed=first)["killed"] == 50


@pytest.mark.parametrize("published", [False, True])
def test_killed_at_the_publication(
    published: bool, cluster: LocalCluster, mirror: Mirror, mortals: Mortals
) -> None:
    """Everything is read, and it is about to be published; or it was, and nobody knows yet."""
    life = Life(cluster, 4)
    life.changes(100)
    assert mortals.update() == 0
    before, first = mirror.held(), mirror.version()
    life.changes(100)
    assert mortals.update(die_at=(mirror.publication, 0, published)) == KILLED
    assert mirror.held() == (truth(cluster) if published else before) != {}
    assert mirror.version() == first + published
    mirror.verify()
    assert mortals.update() == 0
    assert mirror.held() == truth(cluster)
    assert mirror.version() == first + 1


@pytest.mark.parametrize("mirror", ["snapshot"], indirect=True)
def test_killed_while_documents_are_written(cluster: LocalCluster, mirror: Mirror, mortals: Mortals) -> None:
    life = Life(cluster, 3)
    life.changes(300)
    assert mortals.update(place=mirror.place.with_name("whole")) == 0
    rng = random.Random(3)

    def write(stop: threading.Event) -> None:
        while not stop.wait(0.001):
            life.changes(5)

    with background(write):
        for _ in range(15):
            assert mortals.update(die_at=mortals.death(rng)) in (0, KILLED)
            if mirror.exists():
                mirror.verify()
    assert mortals.update() == 0
    assert mirror.held() == truth(cluster)
