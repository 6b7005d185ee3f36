"""A writer that is killed at any moment costs nothing: the last version is whole, the next one is right.

As many kills as are wanted, 50 of each snapshot::

    KILLS=5000-6000 python -m pytest -m slow tests/snapshot/test_crashes.py
"""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from scan.kit import background, truth
from worlds import seeds

from cbframe import LocalCluster, Snapshot, SnapshotError
from cbframe.snapshot.manifest import History, name_of
from cbframe.snapshot.store import LocalStore

from .test_rollbacks import Life, held

SCRIPT = Path(__file__).with_name("mortal.py")
KILLED = -signal.SIGKILL
Death = tuple[str, int, bool]
"""A function, the number of its call, and whether it is behind the call rather than before it."""


class Mortals:
    """Processes that update a snapshot.

    Attributes
    ----------
    calls
        How often the last one that lived called each function in which it could have died.
    seconds
        That it took.
    dead
        Whether the last one died in the function, before anyone killed it from outside.
    """

    def __init__(self, cluster: LocalCluster, path: Path) -> None:
        self._job = {
            "conn": cluster.connection_string,
            "auth": (cluster.username, cluster.password),
            "path": str(path),
        }
        self.calls: dict[str, int] = {}
        self.seconds = 0.0
        self.dead = False
        self._process = subprocess.Popen(
            [sys.executable, str(SCRIPT)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def update(
        self,
        *,
        path: Path | None = None,
        die_at: Death | None = None,
        kill_after: float | None = None,
        publication: str | None = None,
        compact: bool = False,
    ) -> int:
        """Have a child update the snapshot; its exit status, negative for a signal."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        job: dict[str, Any] = self._job | {
            "die_at": die_at,
            "kill_after": kill_after,
            "publication": publication,
            "compact": compact,
        }
        if path is not None:
            job["path"] = str(path)
        began = time.monotonic()
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        told = json.loads(self._process.stdout.readline())
        self.dead = told["words"] == "dies"
        if told["words"] and not self.dead:
            self.calls, self.seconds = json.loads(told["words"]), time.monotonic() - began
        return int(told["status"])

    def death(self, rng: random.Random) -> Death:
        """One that is as likely in each function, and half of the time in its last calls."""
        name = rng.choice(list(self.calls))
        count = max(self.calls[name], 1)
        number = rng.randrange(count) if rng.random() < 0.5 else max(count - rng.randrange(1, 6), 0)
        return name, number, rng.random() < 0.5

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._process.wait(30)


@pytest.fixture
def mortals(cluster: LocalCluster, path: Path) -> Iterator[Mortals]:
    some = Mortals(cluster, path)
    yield some
    some.close()


def survive(cluster: LocalCluster, path: Path, mortals: Mortals, kills: int, seed: int) -> Counter[str]:
    """Kill that many updates, at moments of all kinds; what happened."""
    life = Life(cluster, seed)
    life.changes(200)
    assert mortals.update(path=path.with_name("whole")) == 0
    happened: Counter[str] = Counter()
    before: list[dict[bytes, Any]] = [{}]
    while happened["killed"] < kills:
        life.changes(life.rng.choice([1, 10, 60]))
        if life.rng.random() < 0.1:
            life.failover()
        now = truth(cluster)
        compact = life.rng.random() < 0.2 and path.exists() and has_version(path)
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
        if not has_version(path):
            assert status == KILLED
            happened["before the first version"] += 1
            continue
        verification = Snapshot(path).verify()
        assert verification.ok, str(verification)
        documents = held(path)
        assert documents == now or (status == KILLED and documents == before[-1])
        before.append(documents)
    assert mortals.update() == 0
    assert held(path) == truth(cluster)
    # What writers left that were killed is gone.
    history = History(LocalStore(path))
    named = {entry.name for number in history.numbers() for entry in history.load(number).files}
    assert {f"data/{each.name}" for each in (path / "data").iterdir()} <= named
    assert {each.name for each in (path / "manifest").iterdir()} == {
        name_of(number).partition("/")[2] for number in history.numbers()
    }
    return happened


def has_version(path: Path) -> bool:
    try:
        Snapshot(path)
    except SnapshotError:
        return False
    return True


@pytest.mark.timeout(300)
def test_killed_at_two_hundred_moments(cluster: LocalCluster, path: Path, mortals: Mortals) -> None:
    happened = survive(cluster, path, mortals, kills=200, seed=2)
    assert happened["before the first version"] > 0
    assert happened["completed"] > 0
    assert min(happened[place] for place in (*mortals.calls, "from outside")) > 0


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("first", seeds(1000, 2000, "KILLS")[::50])
def test_killed_at_many_moments(first: int, cluster: LocalCluster, path: Path, mortals: Mortals) -> None:
    happened = survive(cluster, path, mortals, kills=50, seed=first)
    assert happened["killed"] == 50


@pytest.mark.parametrize("moment", ["before", "behind"])
def test_killed_at_the_publication(moment: str, cluster: LocalCluster, path: Path, mortals: Mortals) -> None:
    life = Life(cluster, 4)
    life.changes(100)
    assert mortals.update() == 0
    before = held(path)
    life.changes(100)
    assert mortals.update(publication=moment) == KILLED
    assert held(path) == (before if moment == "before" else truth(cluster)) != {}
    assert Snapshot(path).version == (1 if moment == "before" else 2)
    verification = Snapshot(path).verify()
    assert verification.ok, str(verification)
    assert mortals.update() == 0
    assert held(path) == truth(cluster)
    assert Snapshot(path).version == 2


def test_killed_while_documents_are_written(cluster: LocalCluster, path: Path, mortals: Mortals) -> None:
    life = Life(cluster, 3)
    life.changes(300)
    assert mortals.update(path=path.with_name("whole")) == 0
    rng = random.Random(3)

    def write(stop: threading.Event) -> None:
        while not stop.wait(0.001):
            life.changes(5)

    with background(write):
        for _ in range(15):
            assert mortals.update(die_at=mortals.death(rng)) in (0, KILLED)
            if has_version(path):
                verification = Snapshot(path).verify()
                assert verification.ok, str(verification)
    assert mortals.update() == 0
    assert held(path) == truth(cluster)
