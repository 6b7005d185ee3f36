"""Every test here leaves no thread and no socket behind."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from certificates import files  # noqa: F401 - a fixture

from cbframe import LocalCluster
from cbframe.arrow.receivers import GatheringReceiver
from cbframe.local.dcp import Producer
from cbframe.wire.blocks import DataBlock
from cbframe.wire.framing import Frame
from cbframe.wire.messages import StreamRequest


def open_sockets() -> set[str]:
    """The sockets of this process, by inode; empty where there is no /proc."""
    found = set()
    for entry in Path("/proc/self/fd").glob("*"):
        try:
            target = str(entry.readlink())
        except OSError:
            continue
        if target.startswith("socket:"):
            found.add(target)
    return found


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    threads, sockets = set(threading.enumerate()), open_sockets()
    yield
    for thread in set(threading.enumerate()) - threads:
        if thread.name == "cbframe-rest":  # a request that was left: nothing but its own end stops it
            thread.join(20)
    # A thread of another library (duckdb's) that once called into Python is listed as a dummy, and polars
    # keeps a pool. Ours have names of their own.
    theirs = ("Dummy-", "ThreadPoolExecutor-")
    left = {thread for thread in threading.enumerate() if not thread.name.startswith(theirs)}
    assert left <= threads
    # A cluster of the whole module closes its ends when it sees that ours are closed: soon, but not at once.
    for _ in range(500):
        if open_sockets() <= sockets:
            break
        threading.Event().wait(0.01)
    assert open_sockets() <= sockets


@pytest.fixture
def came(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[int]]:
    """Of each document that came from the nodes, before anything is made of it."""
    found: dict[str, list[int]] = {"datatype": [], "collection_id": []}
    record_batch = GatheringReceiver._record_batch

    def spy(receiver: GatheringReceiver[Any], block: DataBlock) -> pa.RecordBatch:
        for name in found:
            found[name] += getattr(block, name).tolist()
        return record_batch(receiver, block)

    monkeypatch.setattr(GatheringReceiver, "_record_batch", spy)
    return found


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Vbuckets whose streams were asked for."""
    found: list[int] = []
    stream_request = Producer.stream_request

    def spy(producer: Producer, frame: Frame, message: StreamRequest) -> None:
        found.append(message.vbucket)
        stream_request(producer, frame, message)

    monkeypatch.setattr(Producer, "stream_request", spy)
    return found


@pytest.fixture
def cluster() -> Iterator[LocalCluster]:
    """One node, 16 vbuckets."""
    with LocalCluster(nodes=1, vbuckets=16, seed=1) as running:
        yield running


@pytest.fixture
def pair() -> Iterator[LocalCluster]:
    """Two nodes, 16 vbuckets."""
    with LocalCluster(nodes=2, vbuckets=16, seed=1) as running:
        yield running
