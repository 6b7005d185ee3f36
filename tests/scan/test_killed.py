"""Consumers as processes, which are killed again and again while documents change."""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest

from cbframe import LocalCluster

from .consumers import truth_of
from .kit import background, truth
from .test_changes import replay

CONSUMER = Path(__file__).with_name("killed_consumer.py")
KEYS = [b"key-%03d" % n for n in range(400)]


def consume(kind: str, cluster: LocalCluster, path: Path, until: str) -> subprocess.Popen[str]:
    arguments = [cluster.connection_string, cluster.username, cluster.password, str(path), until]
    command = [sys.executable, "-W", "error", str(CONSUMER), kind, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def writer(
    cluster: LocalCluster, rng: random.Random, keys: list[bytes], *, pause: float, many: int, forks_every: int
) -> Callable[[threading.Event], None]:
    """Writes so many documents at a time, and loses some of them now and then."""

    def write(stop: threading.Event) -> None:
        number = 0
        while not stop.wait(pause):
            for _ in range(many):
                number += 1
                if rng.random() < 0.1:
                    cluster.delete(rng.choice(keys))
                else:
                    cluster.upsert(rng.choice(keys), b'{"n":%d}' % number)
            if forks_every and number % forks_every == 0:
                vbucket = rng.randrange(16)
                cluster.fail_over(vbucket, lose=min(rng.randrange(3), cluster.high_seqnos()[vbucket]))

    return write


def kill_again_and_again(kind: str, path: Path, times: int, seed: int) -> None:
    rng = random.Random(seed)
    with LocalCluster(nodes=2, vbuckets=16, seed=seed) as cluster:
        write = writer(cluster, rng, KEYS, pause=0.001, many=10, forks_every=1000)
        with background(write):
            for turn in range(times):
                with consume(kind, cluster, path, "killed") as process:
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
    with closing(sqlite3.connect(database, timeout=60)) as connection:
        rows = connection.execute("SELECT key, value FROM changes ORDER BY vbucket, seqno")
        found: dict[bytes, bytes | None] = dict(rows.fetchall())
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


# --- Members of a group as processes, which are killed, stopped, told to leave, and replaced.


MEMBER = Path(__file__).with_name("group_member.py")
LEASE = 2.0
PATIENCE = 60.0


class Members:
    """The processes of a group."""

    def __init__(self, server: subprocess.Popen[str], job: list[object]) -> None:
        self._server = server
        self._job = job
        self.pids: list[int] = []
        self.stopped: list[tuple[float, int]] = []

    def start(self) -> None:
        self._server.stdin.write(json.dumps(self._job) + "\n")
        self._server.stdin.flush()
        self.pids.append(int(self._server.stdout.readline()))

    def end(self, number: signal.Signals, pid: int) -> None:
        self.pids.remove(pid)
        os.kill(pid, number)  # it is not reaped before: the number is still its own

    def stop(self, pid: int, seconds: float) -> None:
        os.kill(pid, signal.SIGSTOP)
        self.stopped.append((time.monotonic() + seconds, pid))

    def wake(self, until: float) -> None:
        for at, pid in self.stopped:
            if at <= until and pid in self.pids:
                os.kill(pid, signal.SIGCONT)
        self.stopped = [each for each in self.stopped if each[0] > until]


@contextmanager
def members(job: list[object]) -> Iterator[Members]:
    # Newer versions of Python warn of forks.
    arguments = [sys.executable, "-W", "error", "-W", "ignore::DeprecationWarning", str(MEMBER)]
    with subprocess.Popen(
        arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as server:
        found = Members(server, job)
        try:
            yield found
            for pid in tuple(found.pids):
                found.end(signal.SIGTERM, pid)
        except BaseException:
            for pid in tuple(found.pids):
                found.end(signal.SIGKILL, pid)
            raise
        finally:
            out, problems = server.communicate(timeout=PATIENCE)
            sys.stderr.write(problems)
        statuses = {int(line.split()[1]) for line in out.splitlines()}
        assert statuses <= {0, -signal.SIGKILL}
        assert problems == ""


def live(kind: str, folder: Path, seed: int, events: int = 6) -> None:
    rng = random.Random(seed)
    place = folder / "sink"
    with LocalCluster(nodes=2, vbuckets=16, seed=seed) as cluster:
        forks = 500 if kind == "rows" else 0
        write = writer(cluster, rng, KEYS[:300], pause=0.005, many=5, forks_every=forks)
        login = [cluster.connection_string, cluster.username, cluster.password]
        with members([*login, kind, str(place), str(folder / "group"), LEASE]) as group:
            for _ in range(5):
                group.start()
            with background(write):
                for _ in range(events):
                    trouble(group, random.Random(rng.random()))
            group.wake(float("inf"))
            until = time.monotonic() + PATIENCE
            while not (has_all_rows if kind == "rows" else has_all_lines)(place, cluster):
                assert time.monotonic() < until
                threading.Event().wait(0.05)
    left = {path.name.partition(".")[0] for path in (folder / "group" / "group").iterdir()}
    # Some were killed while they wrote; who was killed just before the end was not missed yet.
    assert "owners" in left


def trouble(group: Members, rng: random.Random) -> None:
    threading.Event().wait(rng.uniform(0, LEASE / 2))
    group.wake(time.monotonic())
    what = rng.random()
    pid = rng.choice(group.pids)
    if what < 0.6:
        group.end(signal.SIGKILL, pid)
    elif what < 0.8:
        group.stop(pid, rng.uniform(0, 2 * LEASE))
    elif pid not in {each for _, each in group.stopped}:
        group.end(signal.SIGTERM, pid)
    while len(group.pids) < rng.randint(1, 5):
        group.start()


def has_all_rows(path: Path, cluster: LocalCluster) -> bool:
    with suppress(sqlite3.OperationalError):  # it is just being made
        return stored_rows(path) == truth_of(cluster)
    return False


def has_all_lines(path: Path, cluster: LocalCluster) -> bool:
    """Every document in its newest version: the server may leave out older ones."""
    found = set()
    for file in path.parent.glob(f"{path.name}.*"):
        # The last line of who was killed may be half a line.
        found |= {tuple(map(int, line.split())) for line in file.read_text().split("\n")[:-1]}
    return found >= {(row.vbucket, row.seqno) for row in truth(cluster).values()}


@pytest.mark.slow
@pytest.mark.timeout(200)
@pytest.mark.parametrize("seed", range(100))
def test_members_that_are_killed(tmp_path: Path, seed: int) -> None:
    live("lines" if seed % 4 == 0 else "rows", tmp_path, seed)
