"""A consumer is killed again and again while documents change: nothing is lost, and nothing comes twice."""

from __future__ import annotations

import random
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from cbframe import LocalCluster

from .consumers import truth_of
from .kit import background
from .test_tail import replay

CONSUMER = Path(__file__).with_name("killed_consumer.py")
KEYS = [b"key-%03d" % n for n in range(400)]


def consume(kind: str, cluster: LocalCluster, path: Path, until: str) -> subprocess.Popen[str]:
    arguments = [cluster.connection_string, cluster.username, cluster.password, str(path), until]
    return subprocess.Popen(
        [sys.executable, "-W", "error", str(CONSUMER), kind, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def kill_again_and_again(kind: str, path: Path, times: int, seed: int) -> None:
    rng = random.Random(seed)
    with LocalCluster(nodes=2, vbuckets=16, seed=seed) as cluster:

        def write(stop: threading.Event) -> None:
            number = 0
            while not stop.wait(0.001):
                for _ in range(10):
                    number += 1
                    if rng.random() < 0.1:
                        cluster.delete(rng.choice(KEYS))
                    else:
                        cluster.upsert(rng.choice(KEYS), b'{"n":%d}' % number)
                if number % 1000 == 0:
                    vbucket = rng.randrange(16)
                    cluster.fail_over(vbucket, lose=min(rng.randrange(3), cluster.high_seqnos()[vbucket]))

        with background(write):
            for turn in range(times):
                with consume(kind, cluster, path, "killed") as process:
                    assert process.stdout is not None
                    # Killed before the first batch, while one is being stored, or just after.
                    for _ in range(1 + turn % 6 if kind == "rows" else 1):
                        if not process.stdout.readline():
                            break
                    if rng.random() < 0.5:
                        threading.Event().wait(rng.random() * (0.02 if kind == "rows" else 0.3))
                    process.kill()
                    _, problems = process.communicate()
                    assert not problems
        with consume(kind, cluster, path, "complete") as process:
            _, problems = process.communicate(timeout=60)
            assert (process.returncode, problems) == (0, "")
        assert (stored_rows if kind == "rows" else replay)(path) == truth_of(cluster)


def stored_rows(database: Path) -> dict[bytes, bytes]:
    connection = sqlite3.connect(database)
    rows = connection.execute("SELECT key, value FROM changes ORDER BY vbucket, seqno")
    found: dict[bytes, bytes | None] = dict(rows.fetchall())
    connection.close()
    return {key: value for key, value in found.items() if value is not None}


def place(kind: str, folder: Path) -> Path:
    return folder / "changes.db" if kind == "rows" else folder


@pytest.mark.parametrize("kind", ["rows", "files"])
def test_a_consumer_that_is_killed(tmp_path: Path, kind: str) -> None:
    kill_again_and_again(kind, place(kind, tmp_path), 6, seed=1)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("kind", "seed"), [("rows", 2), ("rows", 3), ("files", 4)])
def test_a_consumer_that_is_killed_fifty_times(tmp_path: Path, kind: str, seed: int) -> None:
    kill_again_and_again(kind, place(kind, tmp_path), 50, seed)
