"""A hundred lives of a data source leave nothing behind."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from cbframe.errors import CbframeError
from cbframe.local import LocalCluster
from cbframe.testing import RecordingReceiver

from .test_source import LONG, source_of, until

CYCLES = 100


def at_once(cluster: LocalCluster) -> None:
    source = source_of(cluster, RecordingReceiver())
    source.start()
    source.close()


def never_started(cluster: LocalCluster) -> None:
    source_of(cluster, RecordingReceiver()).close()


def complete(cluster: LocalCluster) -> None:
    receiver = RecordingReceiver()
    with source_of(cluster, receiver) as source:
        source.wait(LONG)
    assert len(receiver.values()) == 20


def in_the_middle(cluster: LocalCluster) -> None:
    receiver = RecordingReceiver()
    with source_of(cluster, receiver, seq_end=None):
        until(receiver, lambda: bool(receiver.documents))


def failed(cluster: LocalCluster) -> None:
    with source_of(cluster, RecordingReceiver(), password="wrong") as source, pytest.raises(CbframeError):
        source.wait(LONG)


def left_behind() -> tuple[int, int]:
    """Threads and file descriptors; those of objects that nobody has any more do not count."""
    gc.collect()
    return threading.active_count(), len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize("life", [at_once, never_started, complete, in_the_middle, failed])
def test_a_hundred_cycles(life: Callable[[LocalCluster], None]) -> None:
    with LocalCluster(nodes=2, vbuckets=4, seed=1, process=True) as cluster:
        for n in range(20):
            cluster.upsert(f"k{n}", {"n": n})
        life(cluster)
        before = left_behind()
        for _ in range(CYCLES):
            life(cluster)
        assert left_behind() == before
