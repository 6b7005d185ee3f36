"""A writer that is killed at any moment costs nothing: the last version is whole, the next one is right."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from frame.kit import background, truth

from cbframe import LocalCluster, Snapshot, SnapshotError
from cbframe.snapshot.history import History
from cbframe.snapshot.manifest import name_of
from cbframe.snapshot.store import LocalStore

from .test_rollbacks import Life, held

SCRIPT = Path(__file__).with_name("mortal.py")
KILLED = -signal.SIGKILL


class Mortals:
    """Processes that update a snapshot.

    Attributes
    ----------
    moments
        At how many the last one that was left alone could have died.
    """

    def __init__(self, cluster: LocalCluster, path: Path) -> None:
        self._job = {
            "conn": cluster.connection_string,
            "auth": (cluster.username, cluster.password),
            "path": str(path),
        }
        self.moments = 150
        self._process = subprocess.Popen(
            [sys.executable, str(SCRIPT)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def update(
        self,
        *,
        die_at: int | None = None,
        kill_after: float | None = None,
        publication: str | None = None,
        compact: bool = False,
    ) -> int:
        """Have a child update the snapshot; its exit status, negative for a signal."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        job: dict[str, Any] = {
            "die_at": die_at,
            "kill_after": kill_after,
            "publication": publication,
            "compact": compact,
        }
        self._process.stdin.write(json.dumps(self._job | job) + "\n")
        self._process.stdin.flush()
        told = json.loads(self._process.stdout.readline())
        if told["moments"]:
            self.moments = int(told["moments"])
        return int(told["status"])

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
    happened: Counter[str] = Counter()
    before: list[dict[bytes, Any]] = [{}]
    while happened["killed"] < kills:
        life.changes(life.rng.choice([1, 10, 60]))
        now = truth(cluster)
        compact = life.rng.random() < 0.2 and path.exists() and has_version(path)
        if life.rng.random() < 0.75:
            # Often in the end, where a version is published.
            end = life.rng.random() < 0.3
            die_at = mortals.moments - life.rng.randrange(12) if end else life.rng.randrange(mortals.moments)
            status = mortals.update(die_at=die_at, compact=compact)
        else:
            status = mortals.update(kill_after=life.rng.random() * 0.3, compact=compact)
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
    rng = random.Random(3)

    def write(stop: threading.Event) -> None:
        while not stop.wait(0.001):
            life.changes(5)

    with background(write):
        for _ in range(15):
            assert mortals.update(die_at=rng.randrange(mortals.moments + 5)) in (0, KILLED)
            if has_version(path):
                verification = Snapshot(path).verify()
                assert verification.ok, str(verification)
    assert mortals.update() == 0
    assert held(path) == truth(cluster)
