"""Faults on command, as clients meet them."""

from __future__ import annotations

import time

import pytest

from cbframe import LocalCluster, read_bucket
from cbframe.errors import ConfigurationError
from cbframe.wire.constants import Opcode
from cbframe.wire.messages import StreamRequest

from .client import Client, noop, seqnos


def documents(cluster: LocalCluster, count: int = 50, size: int = 200) -> None:
    for n in range(count):
        cluster.upsert(f"k{n}", b"x" * size)


def test_chop(cluster: LocalCluster, dcp: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    documents(cluster, 20)
    node = cluster._engine.nodes[0]
    original, writes = node.count_sent, list[int]()

    def count_sent(nbytes: int) -> None:
        writes.append(nbytes)
        original(nbytes)

    with cluster.chop(7):
        monkeypatch.setattr(node, "count_sent", count_sent)
        frames = dcp.read(0, 20)
        assert seqnos(frames) == list(range(1, 21))
        assert max(writes) == 7
        assert sum(writes) >= sum(map(len, frames))
        assert node.loop.chop == 7
    assert node.loop.chop is None
    with pytest.raises(ConfigurationError, match="at least 1 byte"), cluster.chop(0):
        pass


def test_delay(cluster: LocalCluster, kv: Client) -> None:
    """By the node's own clock, which stands still until it is set."""
    documents(cluster, 3)
    now = [time.monotonic()]
    loop = cluster._engine.nodes[0].loop
    loop.call(lambda: setattr(loop, "clock", lambda: now[0]))
    with cluster.delay(30):
        kv.send(noop())
        # The call is behind the request on the loop, or the request comes later: held either way.
        deadline = time.monotonic() + 20
        while not loop.call(lambda: len(loop._later)):
            assert time.monotonic() < deadline
        assert kv.silent()
        now[0] += 29.9
        loop.wake()
        assert kv.silent()
        now[0] += 0.2
        loop.wake()
        assert kv.next().opcode == Opcode.NOOP
    with pytest.raises(ConfigurationError, match="cannot be"), cluster.delay(-1):
        pass


def test_a_read_with_delays_and_small_pieces(cluster: LocalCluster) -> None:
    for n in range(30):
        cluster.upsert(f"k{n}", {"n": n})
    with cluster.delay(0.002), cluster.chop(50):
        assert sorted(read_bucket(cluster, timeout=30)["n"]) == list(range(30))


def test_acknowledgements_that_are_forgotten(cluster: LocalCluster) -> None:
    documents(cluster)
    with Client(cluster).login().open(connection_buffer_size="1000") as client, cluster.drop_acks():
        assert client.stream(0).status == 0
        frames = []
        while sum(map(len, frames)) < 1000:
            frames.append(client.next())
        client.ack(1000)
        # It took note of nothing: what comes next is the answer to a question, and no document.
        assert client.operate(Opcode.NOOP).opcode == Opcode.NOOP
        assert client.silent()


@pytest.mark.parametrize("at", [0, 1, 100, 5000])
@pytest.mark.parametrize("nbytes", [1, 64, None])
def test_garble(cluster: LocalCluster, at: int, nbytes: int | None) -> None:
    """One byte, there, once, however the writes are cut; not in what the cluster keeps."""
    documents(cluster)
    found = []
    for garble in (False, True):
        with Client(cluster).login().open() as client:
            cluster._engine.set_fault(0, "chop", nbytes)
            client.send(noop())
            assert client.receive() is not None
            if garble:
                cluster.garble(at)
            client.send(StreamRequest(0, end=50))
            found.append(client.raw(7000))
            cluster._engine.set_fault(0, "chop", None)
    plain, garbled = found
    # Opaques and all: each connection asked the same.
    assert [i for i in range(7000) if plain[i] != garbled[i]] == [at]
    assert plain[at] ^ garbled[at] == 0xFF
    with Client(cluster).login().open() as client:
        assert seqnos(client.read(0, 50)) == list(range(1, 51))
    with pytest.raises(ConfigurationError, match="lies in the past"):
        cluster.garble(-1)
