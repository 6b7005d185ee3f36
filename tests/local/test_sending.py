"""How many messages a node hands to its socket at once, and whose: seen at the socket."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import pytest
import trustme

from cbframe import LocalCluster, scan_bucket
from cbframe.errors import ConfigurationError
from cbframe.local import ServerTLS
from cbframe.testing import FaultProxy
from cbframe.wire.constants import Status
from cbframe.wire.framing import Frame
from cbframe.wire.messages import DcpControl, StreamRequest

from .client import DATA, Client, seqnos

VBUCKETS = 4
DOCUMENTS = 60
"""In each vbucket."""
APPLICATION_DATA = 23
"""Type of a TLS record."""


class RecordingSocket:
    """A node's end of a connection that keeps what each call of ``send`` was given."""

    def __init__(self, sock: Any) -> None:
        self._sock = sock
        self.sends: list[list[bytes]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)

    def sendmsg(self, buffers: Iterable[bytes | memoryview]) -> int:
        given = [bytes(buffer) for buffer in buffers]
        self.sends.append(given)  # before the client can have it
        count = int(self._sock.sendmsg(given))
        assert count == sum(map(len, given)), "the test reads too slowly"
        return count


def frames_of(send: list[bytes]) -> list[Frame]:
    data, offset, found = b"".join(send), 0, []
    while offset < len(data):
        parsed = Frame.parse(data, offset)
        assert parsed is not None, "a part of a message"
        found.append(parsed[0])
        offset = parsed[1]
    return found


def loaded(**options: Any) -> LocalCluster:
    """A cluster with as many documents in each vbucket."""
    cluster = LocalCluster(vbuckets=VBUCKETS, **options).start()
    counts = dict.fromkeys(range(VBUCKETS), 0)
    number = 0
    while min(counts.values()) < DOCUMENTS:
        vbucket = cluster._engine.bucket.vbucket_for(b"k%d" % number).id
        if counts[vbucket] < DOCUMENTS:
            cluster.upsert(f"k{number}", b"x" * 100)
            counts[vbucket] += 1
        number += 1
    return cluster


def sends(cluster: LocalCluster, priority: str | None) -> list[list[Frame]]:
    """What the node sent of one stream for each vbucket, all of them asked for before it began."""
    node = cluster._engine.nodes[0]
    with Client(cluster).login().open() as client:
        if priority is not None:
            assert client.call(DcpControl("set_priority", priority)).status == Status.SUCCESS
        (connection,) = node.loop.call(lambda: list(node._connections))
        with cluster.stall():
            recording = RecordingSocket(connection.sock)
            node.loop.call(lambda: setattr(connection, "sock", recording))
            for vbucket in range(VBUCKETS):
                client.send(StreamRequest(vbucket, end=DOCUMENTS))
            deadline = time.monotonic() + 20
            while node.loop.call(lambda: len(connection.producer.streams)) < VBUCKETS:
                assert time.monotonic() < deadline
        received = [frame for _ in range(VBUCKETS) for frame in client.until_end()]
    assert sorted(seqnos(received)) == sorted(list(range(1, DOCUMENTS + 1)) * VBUCKETS)
    return [frames_of(send) for send in recording.sends]


@pytest.mark.parametrize(
    ("version", "priority", "expected"),
    [
        *(("7.2", None, 1), ("7.2", "high", 1)),
        *(("8.0", None, 5), ("8.0", "medium", 5), ("8.0", "low", 1), ("8.0", "high", 50)),
    ],
)
def test_messages_per_send(version: Literal["7.2", "8.0"], priority: str | None, expected: int) -> None:
    with loaded(version=version) as cluster:
        found = sends(cluster, priority)
    counts = [len(send) for send in found if not send[0].is_response]
    assert counts[:-1] == [expected] * (len(counts) - 1)
    assert 0 < counts[-1] <= expected
    # A marker, the documents and an end of each; each stream in its turn.
    messages = [frame for send in found for frame in send if not frame.is_response]
    assert [frame.vbucket for frame in messages] == list(range(VBUCKETS)) * (DOCUMENTS + 2)


def test_bulk() -> None:
    with loaded(sending="bulk") as cluster:
        found = sends(cluster, None)
    counts = [len(send) for send in found]
    assert max(counts) > DOCUMENTS
    owners = [frame.vbucket for send in found for frame in send if frame.opcode in DATA]
    assert owners == sorted(owners)


def test_no_other_way_of_sending() -> None:
    with pytest.raises(ConfigurationError, match="neither 'node' nor 'bulk'"):
        LocalCluster(sending="slow")  # type: ignore[arg-type]


@pytest.mark.parametrize("sending", ["node", "bulk"])
def test_tls_records(sending: Literal["node", "bulk"], tmp_path: Path) -> None:
    ca, server = trustme.CA(), tmp_path / "server.pem"
    ca.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(server)
    ca.cert_pem.write_to_path(tmp_path / "ca.pem")
    with loaded(tls=ServerTLS(server), sending=sending) as cluster, FaultProxy(cluster, record=True) as proxy:
        auth = cluster.username, cluster.password
        table = scan_bucket(cluster.tls_connection_string, auth=auth, tls=tmp_path / "ca.pem").to_arrow()
        assert len(table) == VBUCKETS * DOCUMENTS
        records = most_records(proxy)
    assert (records > VBUCKETS * DOCUMENTS) is (sending == "node")


def most_records(proxy: FaultProxy) -> int:
    """TLS records of application data that came on the connection that had most of them."""
    counts: Counter[int] = Counter()
    received: defaultdict[int, bytes] = defaultdict(bytes)
    for piece in proxy.record:
        if piece.direction == "down":
            received[piece.connection] += piece.data
    for connection, data in received.items():
        offset = 0
        while offset < len(data):
            counts[connection] += data[offset] == APPLICATION_DATA
            offset += 5 + int.from_bytes(data[offset + 3 : offset + 5])
    return max(counts.values())
