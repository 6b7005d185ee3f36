"""A cluster whose copies lag, and that loses no more than copies can: what no disk or no replica had."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from functools import partial
from itertools import takewhile
from operator import ne

import pytest

from cbframe import LocalCluster
from cbframe.local import kv
from cbframe.wire.constants import Opcode
from cbframe.wire.framing import Frame

VBUCKETS = 4
PATIENCE = 30.0


def floors(cluster: LocalCluster) -> dict[int, int]:
    """Up to which seqno all copies of each vbucket have on disk what it has now."""
    bucket = cluster._engine.bucket
    with bucket.lock:
        found = {}
        for vb in bucket.vbuckets:
            seqnos = []
            for _, persisted, log in (vb.copy(node) for node in bucket.map[vb.id] if node >= 0):
                # Of an older history, what was before the forks since then.
                seqnos += [persisted, *(fork.seqno for fork in takewhile(partial(ne, log[0]), vb.failover))]
            found[vb.id] = min(seqnos)
        return found


class Hand:
    """Writes, has copies lag, and breaks nodes.

    Attributes
    ----------
    lost
        Changes that failovers and crashes have taken.
    """

    def __init__(self, cluster: LocalCluster, seed: int, keys: int = 30) -> None:
        self.cluster = cluster
        self.rng = random.Random(seed)
        self.lost = 0
        self._keys = keys
        self._number = 0

    def write(self, most: int = 20) -> None:
        for _ in range(self.rng.randrange(1, most)):
            key = f"key-{self.rng.randrange(self._keys)}"
            self._number += 1
            if self.rng.random() < 0.15:
                self.cluster.delete(key)
            else:
                self.cluster.upsert(key, {"n": self._number})

    def hold(self) -> None:
        for _ in range(self.rng.choice([0, 1, 2, 4])):
            node = self.rng.choice([None, *self.cluster.members])
            hold = self.rng.choice([self.cluster.hold_persistence, self.cluster.hold_replication])
            hold(node, vbucket=self.rng.choice([None, *range(VBUCKETS)]))

    def release(self) -> None:
        self.cluster.release(vbucket=self.rng.choice([None, *range(VBUCKETS)]))

    def lose(self) -> None:
        """A replica takes over, or a node crashes: what only others had is lost."""
        before = self.cluster.high_seqnos()
        break_ = self.rng.choice([self._fail_over, self._fail_over, self._crash])
        break_()
        after = self.cluster.high_seqnos()
        self.lost += sum(before[vb] - after[vb] for vb in before)

    def _fail_over(self) -> None:
        for vbucket in self.rng.sample(range(VBUCKETS), 2):
            row = self.cluster._engine.bucket.map[vbucket]
            replicas = [node for node in row[1:] if node >= 0]
            if replicas:
                self.cluster.fail_over(vbucket, node=self.rng.choice(replicas))

    def _crash(self) -> None:
        node = self.rng.choice(self.cluster.members)
        self.cluster.kill(node)
        self.cluster.restart(node, same_ports=True)


class Asked:
    """How often nodes are asked what they have on disk, and what happens then.

    Attributes
    ----------
    count
        Questions so far.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        self._at = -1
        self._act: Callable[[], object] = lambda: None
        original = kv.KvConnection.observe_seqno

        def observe_seqno(connection: kv.KvConnection, frame: Frame) -> None:
            self.count += 1
            if self.count == self._at:
                self._act()
            original(connection, frame)

        monkeypatch.setitem(kv.HANDLERS, Opcode.OBSERVE_SEQNO, observe_seqno)

    def then(self, more: int, act: Callable[[], object]) -> None:
        """Do something on the thread of a node, with the last of as many questions more."""
        self._act, self._at = act, self.count + more


def until(reached: Callable[[], object], told: Callable[[], object] = lambda: None) -> None:
    """Wait for something that comes by itself."""
    end = time.monotonic() + PATIENCE
    while not reached():
        assert time.monotonic() < end, told()
        time.sleep(0.002)


def lags(found: Mapping[int, int], high: Mapping[int, int]) -> bool:
    return any(found[vb] < high[vb] for vb in high)
