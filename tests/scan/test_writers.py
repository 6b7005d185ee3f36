"""Reads of buckets that are written to all the time: nothing lost, nothing doubled, nothing made up."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator

import pytest

from cbframe import LocalCluster, scan_bucket

from .kit import QUICK, Sent, background, values_of

KEYS = [b"stays-%05d" % n for n in range(400)]


class Writer:
    """Overwrites every key over and over, and lets others come and go; knows all it wrote."""

    def __init__(self, cluster: LocalCluster, seed: int) -> None:
        self.cluster = cluster
        self.history: dict[bytes, list[bytes]] = {key: [] for key in KEYS}
        self.generation = 0
        self.laps = 0
        self._rng = random.Random(seed)
        self.going = threading.Event()
        for key in KEYS:
            self.write(key)

    def write(self, key: bytes) -> None:
        self.generation += 1
        value = b'{"generation":%d,"pad":"%s"}' % (self.generation, b"x" * self._rng.randrange(200))
        # Before the write: a read may be quicker than this thread.
        self.history.setdefault(key, []).append(value)
        self.cluster.upsert(key, value)

    def run(self, stop: threading.Event) -> None:
        order = KEYS.copy()
        while not stop.is_set():
            self._rng.shuffle(order)
            for number, key in enumerate(order):
                if stop.is_set():
                    break
                self.write(key)
                if number % 20 == 0:
                    other = b"comes-and-goes-%03d" % self._rng.randrange(100)
                    if self._rng.random() < 0.5:
                        self.write(other)
                    else:
                        self.cluster.delete(other)
                self.going.set()
            self.laps += 1

    def at_start(self) -> dict[bytes, int]:
        """How often each key was written so far."""
        return {key: len(self.history[key]) for key in KEYS}

    def check(self, found: dict[bytes, bytes], at_start: dict[bytes, int]) -> int:
        """Each value was written, the newest at the start or a later one; how many are later."""
        assert found.keys() >= set(KEYS)
        later = 0
        for key, value in found.items():
            written = self.history[key]
            position = written.index(value)
            # The last write before the start may still have been under way in its own thread.
            assert position >= at_start.get(key, 0) - 1, key
            later += position >= at_start.get(key, 0)
        return later


def rounds(
    cluster: LocalCluster,
    count: int,
    seed: int,
    before_each: Iterator[object] | None = None,
    streamed: bool = False,
    **arguments: int,
) -> None:
    writer = Writer(cluster, seed)
    later = 0
    with background(writer.run):
        assert writer.going.wait(20)
        for _ in range(count):
            if before_each is not None:
                next(before_each)
            at_start = writer.at_start()
            scan = scan_bucket(cluster, parse=False, timeout=60, options=QUICK, **arguments)
            found = values_of(scan.to_reader().read_all() if streamed else scan.to_arrow())
            later += writer.check(found, at_start)
    assert later, "the writer never overtook a read: nothing was tested"


@pytest.mark.parametrize("streamed", [False, True])
def test_reads_under_a_writer_with_a_small_window(streamed: bool) -> None:
    """The read is slow, so that the writer is around every key several times."""
    with LocalCluster(nodes=2, vbuckets=16, seed=1) as cluster:
        rounds(cluster, 5, seed=3, streamed=streamed, buffer_bytes=3000)


@pytest.mark.parametrize("streamed", [False, True])
def test_reads_under_a_writer_with_cuts(monkeypatch: pytest.MonkeyPatch, streamed: bool) -> None:
    """A resumed stream sends newer versions of what was received before: only those may remain."""
    with LocalCluster(nodes=2, vbuckets=16, seed=1) as cluster:
        sents = [Sent(monkeypatch, cluster, node) for node in range(2)]
        rng = random.Random(9)

        def cuts() -> Iterator[None]:
            while True:
                for sent in sents:
                    sent.cut(iter([rng.randint(2000, 30_000) for _ in range(3)]))
                yield

        rounds(cluster, 6, seed=4, before_each=cuts(), streamed=streamed)
        assert sum(sent.cuts for sent in sents) > 10


def test_parsed_reads_under_a_writer() -> None:
    with LocalCluster(nodes=2, vbuckets=16, seed=1) as cluster:
        writer = Writer(cluster, 6)
        with background(writer.run):
            assert writer.going.wait(20)
            for _ in range(5):
                at_start = writer.at_start()
                frame = scan_bucket(cluster, timeout=60, options=QUICK).to_pandas()
                assert frame.index.is_unique
                assert set(frame.index) >= {key.decode() for key in KEYS}
                assert str(frame["generation"].dtype) == "int64[pyarrow]"
                for key in KEYS:
                    row = frame.loc[key.decode()]
                    value = b'{"generation":%d,"pad":"%s"}' % (row["generation"], row["pad"].encode())
                    assert writer.history[key].index(value) >= at_start[key] - 1
