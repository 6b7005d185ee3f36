"""A cluster whose every history is kept, and the hand that breaks it while someone reads.

A proxy stands between client and nodes. Between the receives of a read, and so in the middle of it,
documents are written and deleted, and faults happen: connections are cut within a message, held up,
delayed, refused, vbuckets move, fail over and lose their last changes, whole nodes crash and come back
elsewhere, fail over, join and leave. Each history that a vbucket ever had is kept, so what a read says
(these documents, at this seqno of this history) can be compared with what was written.

The long forms take any seeds, here 250 of each kind of reader::

    WORLDS=5000-5250 python -m pytest -m slow -k many_worlds tests/scan tests/test_mirrors.py
"""

from __future__ import annotations

import os
import random
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal
from weakref import WeakSet
from zlib import crc32

import pytest

from cbframe import LocalCluster
from cbframe.cluster.cluster_map import ClusterMap
from cbframe.dcp.maps import MapSource
from cbframe.dcp.transport import SocketStream, SocketTransport
from cbframe.testing import Direction, FaultProxy
from cbframe.wire.messages import vbucket_of

NODES = 3
VBUCKETS = 16
KEYS = [b"key-%03d" % n for n in range(800)]
FAULTS = 8
"""A read during which faults never end need not end either."""
USUAL = 1000
"""Bytes that are received at once, at most, where they do not come few at a time."""

RECEIVE, CONNECT, PARSE = SocketStream.receive_into, SocketTransport.connect, MapSource._parse

Version = Literal["7.2", "8.0"]
Change = tuple[bytes, bytes | None]
History = list[Change]
"""Changes in order of their seqnos, which start at 1; None for a deletion."""


def seeds(first: int, last: int, variable: str = "WORLDS") -> range:
    """Of a long form; with ``WORLDS=2000-4000`` in the environment, those from 2000 up to 4000."""
    asked, _, end = os.environ.get(variable, "").partition("-")
    return range(int(asked), int(end)) if end else range(first, last)


def state(history: History) -> dict[bytes, bytes]:
    """The documents after all changes of a history."""
    found = dict(history)
    return {key: value for key, value in found.items() if value is not None}


def version_of(seed: int) -> Version:
    """The server release of a seed's cluster: both are met, and none twice as long."""
    return "8.0" if seed % 2 else "7.2"


@pytest.fixture(autouse=True)
def either_version(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clusters are of one of the releases, by the name of the test, where the test does not say which."""
    version = version_of(crc32(request.node.nodeid.encode()))
    monkeypatch.setitem(LocalCluster.__init__.__kwdefaults__, "version", version)


class World:
    """A cluster, the histories that it had, and the hand that breaks it.

    Parameters
    ----------
    most
        Bytes that come at once, at most. If these are few, they come so behind each connection and within
        short spans, whose places are random: all the time would take a hundred times as long, and show
        the same ends of messages.

    Attributes
    ----------
    most
        Bytes that come at once now, at most.
    """

    def __init__(self, cluster: LocalCluster, proxy: FaultProxy, rng: random.Random, most: int) -> None:
        self.cluster = cluster
        self.proxy = proxy
        self.most = self._fewest = most
        self._span = 0
        """Receives until there are more bytes at once, or fewer."""
        self._first_span = rng.choice([60, 300, 1000] if most == 1 else [10, 60])
        proxy.chop(most)
        self.left = FAULTS
        self.members = list(range(NODES))
        self.dead: int | None = None
        self.known: tuple[str, ...] = ()
        """The nodes of the map that the reader got last."""
        self._lock = threading.Lock()
        self._pause = {1: 300, 30: 50}.get(most, 3)
        # Faults begin with the first connection, or once documents come.
        self._until = rng.choice([1, 11, 21]) * self._pause
        self.rng = rng
        self.generation = 0
        self.faults: Counter[str] = Counter()
        self.vbuuid = {vb: cluster.failover_log(vb)[0][0] for vb in range(VBUCKETS)}
        self.histories: dict[tuple[int, int], History] = {item: [] for item in self.vbuuid.items()}

    @property
    def seeds(self) -> str:
        """A connection string of the nodes that there are now."""
        return "couchbase://" + ",".join(self.cluster.kv_addresses)

    @property
    def auth(self) -> tuple[str, str]:
        """Who may read it."""
        return self.cluster.username, self.cluster.password

    def history(self, vbucket: int) -> History:
        return self.histories[vbucket, self.vbuuid[vbucket]]

    def change(self) -> None:
        key = self.rng.choice(KEYS)
        history = self.history(vbucket_of(key, VBUCKETS))
        if self.rng.random() < 0.15:
            seqno = self.cluster.delete(key)
            if seqno is None:
                return
            history.append((key, None))
        else:
            self.generation += 1
            value = b'{"generation":%d,"pad":"%s"}' % (self.generation, b"x" * self.rng.randrange(300))
            seqno = self.cluster.upsert(key, value)
            history.append((key, value))
        assert seqno == len(history)

    def changes(self, most: int) -> None:
        for _ in range(self.rng.randrange(most)):
            self.change()

    def fault(self) -> None:
        of_connections = [self.cut, self.cut_soon, self.refuse, self.stall, self.delay]
        of_vbuckets = [self.move, self.fail_over, self.lose]
        of_nodes = [self.kill, self.fail_over_node, self.rebalance_in, self.rebalance_out]
        verb = self.rng.choice([*of_connections, *of_vbuckets, *of_nodes])
        if verb in of_nodes or self.members == [self.dead]:
            self.revive()  # with a node down, no other can be moved
        verb()
        self.faults[verb.__name__] += 1

    def node(self) -> int:
        return self.rng.choice([node for node in self.members if node != self.dead])

    def cut(self) -> None:
        self.proxy.cut(node=self.node())

    def cut_soon(self) -> None:
        direction: Direction = self.rng.choice(["down", "down", "down", "up"])
        after = self.rng.randint(0, 5000 if direction == "down" else 300)
        self.proxy.cut(after_bytes=after, direction=direction, node=self.node())

    def refuse(self) -> None:
        node = self.node()
        with self.cluster.refuse(node):
            self.cluster.cut(node)
            self.changes(20)

    def stall(self) -> None:
        with self.proxy.stall(self.node()):
            self.changes(20)

    def delay(self) -> None:
        self.proxy.delay(self.rng.choice([0, 0.001]))

    def move(self) -> None:
        self.cluster.move_vbucket(self.rng.randrange(VBUCKETS), self.node())

    def fail_over(self) -> None:
        vbucket = self.rng.randrange(VBUCKETS)
        history = self.history(vbucket)
        lost = self.rng.choice([0, 1, 5, len(history) // 2, len(history)])
        lost = min(lost, len(history))
        self.vbuuid[vbucket] = self.cluster.fail_over(vbucket, lose=lost, node=self.node())
        self.histories[vbucket, self.vbuuid[vbucket]] = history[: len(history) - lost]

    def lose(self) -> None:
        """The vbuckets of a node at once: what a node that crashed does to the others."""
        for _ in range(VBUCKETS // NODES):
            self.fail_over()

    def victim(self) -> int | None:
        """A node that the reader can do without: it knows the present address of another."""
        living = [node for node in self.members if node != self.dead]
        reached = {node for node in living if f"127.0.0.1:{self.cluster.ports(node)['kv']}" in self.known}
        return self.rng.choice([None, *(node for node in living if reached - {node})])

    def kill(self) -> None:
        if (node := self.victim()) is not None:
            self.dead = node
            self.cluster.kill(node, lose=self.rng.choice([0, 1, 10]), clean=self.rng.random() < 0.2)
            self.forked()

    def revive(self) -> None:
        if self.dead is not None:
            self.cluster.restart(self.dead, same_ports=self.rng.random() < 0.5)
            self.proxy.follow()
            self.dead = None

    def fail_over_node(self) -> None:
        if (node := self.victim()) is not None:
            self.cluster.failover(node, lose=self.rng.choice([0, 1, 10]))
            self.members.remove(node)
            self.forked()

    def rebalance_in(self) -> None:
        self.members.append(self.cluster.add_node())
        self.proxy.follow()
        self.cluster.rebalance()

    def rebalance_out(self) -> None:
        if (node := self.victim()) is not None:
            self.cluster.rebalance(eject=[node])
            self.members.remove(node)

    def forked(self) -> None:
        """Take note of the histories that began with what a node lost."""
        for vbucket in range(VBUCKETS):
            vbuuid, seqno = self.cluster.failover_log(vbucket)[0]
            if vbuuid != self.vbuuid[vbucket]:
                history = self.history(vbucket)
                self.vbuuid[vbucket] = vbuuid
                self.histories[vbucket, vbuuid] = history[:seqno]

    def turn(self) -> None:
        """Go on; called by the threads of the read with each receive and each connection."""
        with self._lock:
            self._span -= 1
            if self._span < 0 and self.most == self._fewest:
                self._have_come(USUAL, self.rng.randrange(1, 20))
            elif self._span < 0:
                self._have_come(self._fewest, self.rng.randrange(1, 60))
            self._until -= 1 if self.most == self._fewest else self._pause // 10
            if not self.left:
                self.revive()
            elif self._until <= 0:
                self._until += self._pause
                self.changes(20)
                if self.rng.random() < 0.5:
                    self.fault()
                    self.left -= 1

    def answered(self) -> None:
        """A connection says its first: this comes few bytes at a time, where they are few at all."""
        with self._lock:
            self._have_come(self._fewest, max(self._span, 0) + self._first_span)

    def _have_come(self, most: int, span: int) -> None:
        """Have that many bytes come at once, at most, with that many receives."""
        self._span = span
        if most != self.most and self._fewest < USUAL:
            self.most = most
            self.proxy.chop(most)

    def check(self, found: dict[bytes, bytes], as_of: dict[int, tuple[int, int]]) -> None:
        """What was read is what the histories say of the moment that the read names."""
        assert sorted(as_of) == list(range(VBUCKETS))
        expected: dict[bytes, bytes] = {}
        for vbucket, (vbuuid, seqno) in as_of.items():
            if seqno:
                history = self.histories[vbucket, vbuuid]
                assert seqno <= len(history)
                expected |= state(history[:seqno])
        wrong = sorted(key for key in found.keys() | expected if found.get(key) != expected.get(key))
        assert not wrong, [self._tell(key, found.get(key), as_of) for key in wrong]

    def _tell(self, key: bytes, found: bytes | None, as_of: dict[int, tuple[int, int]]) -> str:
        """What was read of a document, and when it changed in each history of its vbucket."""
        vbucket = vbucket_of(key, VBUCKETS)
        changes = {
            vbuuid: [(n, value == found) for n, (name, value) in enumerate(history, 1) if name == key]
            for (number, vbuuid), history in self.histories.items()
            if number == vbucket
        }
        return f"{key!r} is {found!r}, in vbucket {vbucket} as of {as_of[vbucket]}: {changes}"


@contextmanager
def world_of(
    seed: int,
    monkeypatch: pytest.MonkeyPatch,
    *,
    changes: int = 1000,
    receives: Sequence[int] = (30, 1000, 1 << 20),
) -> Iterator[World]:
    """A world of documents that breaks with each receive and each connection of this process.

    Parameters
    ----------
    changes
        That were made before.
    receives
        Bytes that are received at once, at most: one of these.
    """
    rng = random.Random(seed)
    most = rng.choice(receives)
    version = version_of(seed)
    with (
        LocalCluster(nodes=NODES, vbuckets=VBUCKETS, seed=seed, version=version) as cluster,
        FaultProxy(cluster) as proxy,
    ):
        world = World(cluster, proxy, rng, most)
        for _ in range(changes):
            world.change()
        if version == "8.0":
            # What was written last comes from memory.
            for vbucket, high in cluster.high_seqnos().items():
                cluster.hold_in_memory(vbucket, rng.choice([None, 1, high // 2 + 1, high + 1]))
        _break_with(world, monkeypatch)
        yield world


def _break_with(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the world go on with each receive and each connection of this process."""
    answered = WeakSet[SocketStream]()

    def receive(self: SocketStream, view: memoryview) -> int | None:
        count = RECEIVE(self, view[: world.most])
        if count:
            if self not in answered:
                answered.add(self)
                world.answered()
            world.turn()
        return count

    def connect(self: SocketTransport, *arguments: Any) -> Any:
        world.turn()
        return CONNECT(self, *arguments)

    def parse(self: MapSource, *arguments: Any) -> ClusterMap:
        found = PARSE(self, *arguments)
        world.known = found.nodes
        return found

    monkeypatch.setattr(MapSource, "_parse", parse)
    monkeypatch.setattr(SocketStream, "receive_into", receive)
    monkeypatch.setattr(SocketTransport, "connect", connect)
