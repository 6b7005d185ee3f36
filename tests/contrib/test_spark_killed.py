"""A Python worker of Spark is killed in the middle of a partition: Spark does it again, and nothing shows."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

import pytest
from scan.kit import Sent, background, fill
from scan.test_writers import KEYS, Writer

import cbframe
from cbframe import LocalCluster

from .spark_kit import cluster_of, session_of

pytestmark = [pytest.mark.spark, pytest.mark.timeout(300), pytest.mark.filterwarnings("default")]
pytest.importorskip("pyspark.sql")

PROC = Path("/proc")
if not (PROC / "net" / "tcp").exists():
    pytest.skip("which process has a connection is known from Linux only", allow_module_level=True)


@pytest.fixture(scope="module")
def spark() -> Iterator[Any]:
    # Two tasks at a time, each of which is tried four times.
    with session_of("local[2,4]") as session:
        yield session


def below(ancestor: int) -> set[int]:
    """The processes that a process has started, and those that these have."""
    parents = {}
    for path in PROC.glob("[0-9]*"):
        try:
            # The name, in parentheses, may have spaces.
            parents[int(path.name)] = int((path / "stat").read_text().rpartition(")")[2].split()[1])
        except FileNotFoundError:
            continue
    found = {ancestor}
    while new := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= new
    return found - {ancestor}


def connected_to(port: int) -> set[str]:
    """Inodes of the sockets that are connected to a port."""
    lines = (line.split() for line in (PROC / "net" / "tcp").read_text().splitlines()[1:])
    return {fields[9] for fields in lines if int(fields[2].rpartition(":")[2], 16) == port}


def sockets_of(pid: int) -> set[str]:
    """Inodes of a process's sockets; none of one that is over."""
    found = set()
    try:
        for path in (PROC / str(pid) / "fd").iterdir():
            with suppress(FileNotFoundError):
                found.add(str(path.readlink()).removeprefix("socket:[").removesuffix("]"))
    except FileNotFoundError:
        return set()
    return found


class Killer:
    """Kills the worker that the first node is sending documents to, so many times.

    Parameters
    ----------
    totals
        When it tries to, in bytes that the node has sent: there may be nobody at the moment.
    """

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, cluster: LocalCluster, times: int, totals: Iterable[int]
    ) -> None:
        self._port = int(cluster.kv_addresses[0].rpartition(":")[2])
        self._times = times
        self.killed: list[int] = []
        sent = Sent(monkeypatch, cluster)
        for total in totals:
            sent.at(total, self)

    def __call__(self) -> None:
        inodes = connected_to(self._port)
        # Who was killed before may still be ending, and be hit again.
        candidates = sorted(below(os.getpid()) - {*self.killed})
        pids = [pid for pid in candidates if not inodes.isdisjoint(sockets_of(pid))]
        for pid in pids[: min(1, self._times - len(self.killed))]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                self.killed.append(pid)


def in_pieces(cluster: LocalCluster) -> AbstractContextManager[None]:
    """Have the first node send little at a time, so that who is sent to has not got all yet."""
    return cluster.chop(10_000)


def load(spark: Any, cluster: LocalCluster, schema: str) -> Any:
    reader = spark.read.format("couchbase").option("connection", cluster.connection_string)
    return reader.option("partitions", 4).schema(schema).load()


def test_at_rest_the_union_is_the_read(monkeypatch: pytest.MonkeyPatch, spark: Any) -> None:
    with cluster_of(2) as cluster:
        fill(cluster, 8000, size=500)
        frame = load(spark, cluster, "_cb_key string, n bigint, text string")
        killer = Killer(monkeypatch, cluster, 2, range(300_000, 1_700_000, 50_000))
        with in_pieces(cluster):
            rows = frame.collect()
        assert len(killer.killed) == 2, killer.killed
        found = {row["_cb_key"]: (row["n"], row["text"]) for row in rows}
        assert len(found) == len(rows)
        whole = cbframe.read_bucket(cluster)
        assert found == dict(zip(whole.index, zip(whole["n"], whole["text"], strict=True), strict=True))


def test_under_a_writer(monkeypatch: pytest.MonkeyPatch, spark: Any) -> None:
    with cluster_of(2) as cluster:
        fill(cluster, 4000, size=500)
        writer = Writer(cluster, 5)
        with background(writer.run):
            assert writer.going.wait(20)
            frame = load(spark, cluster, "_cb_key string, generation bigint, pad string, n bigint")
            killer = Killer(monkeypatch, cluster, 1, range(300_000, 900_000, 50_000))
            at_start = {key: len(written) for key, written in writer.history.copy().items() if key in KEYS}
            with in_pieces(cluster):
                rows = frame.collect()
        assert len(killer.killed) == 1
        found = {
            row["_cb_key"].encode(): b'{"generation":%d,"pad":"%s"}'
            % (row["generation"], row["pad"].encode())
            for row in rows
            if row["n"] is None
        }
        writer.check(found, at_start)
        filled = {row["_cb_key"]: row["n"] for row in rows if row["n"] is not None}
        assert filled == {f"key-{n:06}": n for n in range(4000)}
        assert len(found) + len(filled) == len(rows)
