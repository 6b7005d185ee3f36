"""The proxy between two plain sockets, and before an embedded cluster."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from cbframe import ConfigurationError, LocalCluster, read_bucket
from cbframe.testing import FaultProxy

LONG = 20.0
TEXT = bytes(range(200))


class Ends(NamedTuple):
    proxy: FaultProxy
    listener: socket.socket
    address: str

    @contextlib.contextmanager
    def connected(self) -> Iterator[tuple[socket.socket, socket.socket]]:
        """A client's socket and the one of the server that it reached."""
        host, port = self.address.split(":")
        with socket.create_connection((host, int(port)), timeout=LONG) as client:
            server, _ = self.listener.accept()
            server.settimeout(LONG)
            with server:
                yield client, server


@pytest.fixture
def ends() -> Iterator[Ends]:
    threads = set(threading.enumerate())
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(LONG)
        with FaultProxy(record=True) as proxy:
            host, port = listener.getsockname()
            yield Ends(proxy, listener, proxy.forward(f"{host}:{port}"))
    assert set(threading.enumerate()) == threads
    assert not proxy._wires.links


def everything(sock: socket.socket) -> bytes:
    """What arrives until the other side closes."""
    found = b""
    # What was in flight towards a closed socket turns its close into a reset.
    with contextlib.suppress(ConnectionResetError):
        while data := sock.recv(65536):
            found += data
    return found


def exactly(sock: socket.socket, count: int) -> bytes:
    found = b""
    while len(found) < count:
        data = sock.recv(count - len(found))
        assert data, "closed too early"
        found += data
    return found


def test_it_passes_everything_both_ways(ends: Ends) -> None:
    with ends.connected() as (client, server):
        client.sendall(TEXT)
        assert exactly(server, len(TEXT)) == TEXT
        server.sendall(TEXT[::-1])
        # A close comes after everything that was sent before it.
        server.close()
        assert everything(client) == TEXT[::-1]
    assert ends.proxy.passed("up") == ends.proxy.passed("down") == len(TEXT)
    assert {piece.direction: piece.data for piece in ends.proxy.record} == {"up": TEXT, "down": TEXT[::-1]}


@pytest.mark.parametrize("after", [0, 1, 7, 199])
@pytest.mark.parametrize("direction", ["down", "up"])
def test_a_cut_is_exact_to_the_byte(ends: Ends, after: int, direction: str) -> None:
    ends.proxy.cut(after_bytes=after, direction=direction)  # type: ignore[arg-type]
    with ends.connected() as (client, server):
        giver, taker = (server, client) if direction == "down" else (client, server)
        giver.sendall(TEXT)
        assert everything(taker) == TEXT[:after]
        assert everything(giver) == b""
    assert ends.proxy.pending == 0
    with ends.connected() as (again, server):
        again.sendall(b"once")
        assert exactly(server, 4) == b"once"


def test_a_cut_counts_over_connections(ends: Ends) -> None:
    ends.proxy.cut(after_bytes=len(TEXT) + 3)
    for expected in (TEXT, TEXT[:3]):
        with ends.connected() as (client, server):
            server.sendall(TEXT)
            assert exactly(client, len(expected)) == expected
            if expected != TEXT:
                assert everything(client) == b""


def test_a_cut_now(ends: Ends) -> None:
    with ends.connected() as (client, server):
        client.sendall(b"x")
        exactly(server, 1)
        assert ends.proxy.connections() == 1
        assert ends.proxy.cut(node=5) == 0
        assert ends.proxy.cut() == 1
        assert everything(client) == everything(server) == b""
    assert ends.proxy.connections() == 0


def test_silence(ends: Ends) -> None:
    ends.proxy.silence(after_bytes=5)
    with ends.connected() as (client, server):
        server.sendall(TEXT)
        assert exactly(client, 5) == TEXT[:5]
        client.sendall(b"still there?")
        with ends.connected() as (other, its_server):
            other.sendall(b"x")
            exactly(its_server, 1)
            # By now the earlier bytes went by the proxy, which works in order.
            client.setblocking(False)
            server.setblocking(False)
            for sock in (client, server):
                with pytest.raises(BlockingIOError):
                    sock.recv(1)
            assert ends.proxy.connections() == 2


@pytest.mark.parametrize("at", [0, 1, 150])
def test_garble(ends: Ends, at: int) -> None:
    ends.proxy.garble(at)
    with ends.connected() as (client, server):
        server.sendall(TEXT)
        found = exactly(client, len(TEXT))
    assert [i for i in range(len(TEXT)) if found[i] != TEXT[i]] == [at]
    assert found[at] == TEXT[at] ^ 0xFF


def test_stall(ends: Ends) -> None:
    with ends.connected() as (client, server):
        with ends.proxy.stall():
            client.sendall(TEXT)
            client.shutdown(socket.SHUT_WR)
            assert ends.proxy.passed("up") == 0
            server.setblocking(False)
            with pytest.raises(BlockingIOError):
                server.recv(1)
        server.settimeout(LONG)
        assert everything(server) == TEXT


def test_chop(ends: Ends) -> None:
    ends.proxy.chop(3)
    with ends.connected() as (client, server):
        server.sendall(TEXT)
        assert exactly(client, len(TEXT)) == TEXT
    assert [len(piece.data) for piece in ends.proxy.record] == [3] * 66 + [2]


def test_delay(ends: Ends) -> None:
    now = [100.0]
    loop = ends.proxy._wires.loop
    loop.clock = lambda: now[0]
    ends.proxy.delay(5)
    with ends.connected() as (client, server):
        client.sendall(TEXT)
        server.sendall(TEXT)
        while not all(link.up.later and link.down.later for link in ends.proxy._wires.links):
            ends.proxy.connections()  # lets the proxy's thread go on
        assert ends.proxy.passed("up") == ends.proxy.passed("down") == 0
        now[0] += 5
        ends.proxy.delay(0)  # what was delayed stays before what comes now
        client.sendall(b"later")
        assert exactly(server, len(TEXT) + 5) == TEXT + b"later"
        assert exactly(client, len(TEXT)) == TEXT


def test_a_server_that_is_not_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    with FaultProxy() as proxy:
        host, own = proxy.forward(f"127.0.0.1:{port}").split(":")
        with socket.create_connection((host, int(own)), timeout=LONG) as client:
            assert everything(client) == b""


def test_what_cannot_be_meant(ends: Ends) -> None:
    for address in ("nothing", "host:", ":1", "h:x"):
        with pytest.raises(ConfigurationError):
            ends.proxy.forward(address)
    for wrong in (
        lambda: ends.proxy.chop(0),
        lambda: ends.proxy.delay(-1),
        lambda: ends.proxy.cut(after_bytes=-1),
    ):
        with pytest.raises(ConfigurationError):
            wrong()


@pytest.mark.parametrize("process", [False, True])
def test_before_a_cluster(process: bool) -> None:
    with LocalCluster(nodes=2, vbuckets=8, seed=1, process=process) as cluster:
        cluster.bulk_load((b"k%d" % n, b'{"n":%d}' % n) for n in range(200))
        own = [cluster.connection_string, *cluster.kv_addresses, *cluster.rest_urls]
        for rest in (False, True):
            with FaultProxy(cluster, record=True) as proxy:
                told = [cluster.connection_string, *cluster.kv_addresses, *cluster.rest_urls]
                assert not set(own) & set(told)
                conn = cluster.rest_urls if rest else cluster.connection_string
                auth = (cluster.username, cluster.password)
                frame = read_bucket(conn, cluster.bucket, auth=auth, timeout=LONG)
                assert sorted(frame["n"]) == list(range(200))
                # The map named the proxy: both nodes' documents came through it.
                passed = {n: b"".join(p.data for p in proxy.record if p.node == n) for n in (0, 1)}
                assert sum(passed[n].count(b'{"n":') for n in (0, 1)) == 200
                assert all(b'{"n":' in data for data in passed.values())
            assert [cluster.connection_string, *cluster.kv_addresses, *cluster.rest_urls] == own


def test_a_service_that_a_node_does_not_have() -> None:
    with LocalCluster(vbuckets=1) as cluster:
        with pytest.raises(ConfigurationError, match="no service 'kvSSL'"):
            cluster.advertise(0, kvSSL=1)
        assert set(cluster.ports()) == {"kv", "mgmt"}


def test_the_cluster_may_end_first() -> None:
    cluster = LocalCluster(vbuckets=1).start()
    proxy = FaultProxy(cluster)
    cluster.close()
    proxy.close()
    proxy.close()
    assert not [t for t in threading.enumerate() if t.name.startswith(("cbframe-proxy", "cbframe-local"))]


def test_it_follows_nodes_that_come_and_come_back() -> None:
    with LocalCluster(nodes=2, vbuckets=4) as cluster, FaultProxy(cluster, record=True) as proxy:
        own = {port for node in proxy._own_ports.values() for port in node.values()}
        assert cluster.add_node() == 2
        cluster.kill(1, clean=True)
        cluster.restart(1)
        before = cluster.ports(0), cluster.ports(1)
        proxy.follow()
        assert cluster.ports(0) == before[0]
        assert cluster.ports(1) != before[1]
        told = {port for node in range(3) for port in cluster.ports(node).values()}
        assert len(told) == 6
        assert not told & (own | set(before[1].values()))
        again = [cluster.ports(node) for node in range(3)]
        proxy.follow()
        assert [cluster.ports(node) for node in range(3)] == again
        cluster.rebalance()
        cluster.upsert("k", {"n": 1})
        assert read_bucket(cluster, timeout=LONG).loc["k", "n"] == 1
        assert {piece.node for piece in proxy.record} == {0, 1, 2}
    with FaultProxy() as proxy, pytest.raises(ConfigurationError, match="no cluster to follow"):
        proxy.follow()
