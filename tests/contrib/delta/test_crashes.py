"""A writer of a Delta table that is killed at any moment loses nothing and doubles nothing."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from deltalake import DeltaTable
from scan.kit import truth
from snapshot.test_rollbacks import Life

from cbframe import LocalCluster

from .kit import held, update

SCRIPT = Path(__file__).with_name("mortal.py")
KILLED = -signal.SIGKILL


def child(
    cluster: LocalCluster, uri: str, *, die_at: int | None = None, kill_after: float | None = None
) -> int:
    """Have a process write the table; its exit status, negative for a signal."""
    job = {
        "conn": cluster.connection_string,
        "auth": (cluster.username, cluster.password),
        "uri": uri,
        "exists": DeltaTable.is_deltatable(uri),
        "die_at": die_at,
    }
    with subprocess.Popen(
        [sys.executable, str(SCRIPT)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.stdin.write(json.dumps(job) + "\n")
        process.stdin.flush()
        if kill_after is not None:
            time.sleep(kill_after)
            process.kill()
        return process.wait(60)


def survive(cluster: LocalCluster, uri: str, kills: int, seed: int) -> Counter[str]:
    """Kill that many writers, at moments of all kinds, in a bucket that changes and loses changes."""
    life = Life(cluster, seed)
    life.changes(200)
    happened: Counter[str] = Counter()
    before: dict[bytes, Any] = {}
    while happened["killed"] < kills:
        life.changes(life.rng.choice([1, 10, 60]))
        if life.rng.random() < 0.2:
            life.failover()
        now = truth(cluster)
        chance = life.rng.random()
        if chance < 0.2:
            # Just before the commit, or just behind it.
            status = child(cluster, uri, die_at=life.rng.choice([-1, -2]))
        elif chance < 0.6:
            status = child(cluster, uri, die_at=life.rng.randrange(80))
        else:
            status = child(cluster, uri, kill_after=life.rng.random() * 0.5)
        assert status in (0, KILLED)
        happened["killed" if status == KILLED else "completed"] += 1
        if not DeltaTable.is_deltatable(uri):
            assert status == KILLED
            happened["before the first version"] += 1
            continue
        documents = held(uri)
        assert documents == now or (status == KILLED and documents == before)
        if status == KILLED and now != before:
            happened["killed behind the commit" if documents == now else "killed before the commit"] += 1
        before = documents
    assert child(cluster, uri) == 0
    assert held(uri) == truth(cluster)
    assert not update(cluster, uri).changed
    return happened


@pytest.mark.timeout(120)
def test_killed_at_five_moments(cluster: LocalCluster, uri: str) -> None:
    assert survive(cluster, uri, kills=5, seed=5)["killed"] == 5


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_at_fifty_moments(cluster: LocalCluster, uri: str) -> None:
    happened = survive(cluster, uri, kills=50, seed=1)
    assert happened["killed before the commit"] > 0
    assert happened["killed behind the commit"] > 0
    assert happened["completed"] > 0


@pytest.mark.parametrize(("die_at", "committed"), [("before", False), ("behind", True)])
def test_killed_just_there(cluster: LocalCluster, uri: str, die_at: str, committed: bool) -> None:
    """Everything is read, and it is about to be committed; or it was, and nobody knows yet."""
    cluster.upsert("key", {"n": 1})
    assert child(cluster, uri) == 0
    before = held(uri)
    cluster.upsert("key", {"n": 2})
    cluster.upsert("new", {"n": 1})
    cluster.delete("gone")
    assert child(cluster, uri, die_at={"before": -1, "behind": -2}[die_at]) == KILLED
    assert held(uri) == (truth(cluster) if committed else before)
    assert update(cluster, uri).changed is not committed
    assert held(uri) == truth(cluster)
