"""DCP on a socket of one's own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from local.client import Client

from cbframe import AccessError, ConnectError, LocalCluster, ProtocolError, ServerError, upr_open
from cbframe.options import BucketDataSourceOptions
from cbframe.wire.constants import Feature, Magic, Opcode
from cbframe.wire.framing import Frame, request, response

FEATURES = (Feature.COLLECTIONS, Feature.XERROR)


@pytest.fixture
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(vbuckets=1, seed=1) as running:
        yield running


def test_opened(cluster: LocalCluster) -> None:
    with Client(cluster).login(FEATURES) as client:
        granted = upr_open(
            client.sock, "mine:1", 4096, options=BucketDataSourceOptions(noop_interval_secs=20)
        )
        assert granted["connection_buffer_size"] == "4096"
        assert (granted["enable_noop"], granted["set_noop_interval"]) == ("true", "20")
        assert cluster.dcp_connections() == 1
        # Not a byte of what comes next was taken.
        assert client.stream(0).status == 0


def test_without_a_window(cluster: LocalCluster) -> None:
    with Client(cluster).login(FEATURES) as client:
        assert "connection_buffer_size" not in upr_open(client.sock, "mine:1", 0)


def test_refused(cluster: LocalCluster) -> None:
    cluster.add_user("ann", "p", access="data")
    with Client(cluster).login(FEATURES, auth=("ann", "p")) as client, pytest.raises(AccessError) as caught:
        upr_open(client.sock, "mine:1")
    assert caught.value.hint
    with Client(cluster).login(FEATURES) as client:
        upr_open(client.sock, "mine:1")
        with pytest.raises(ServerError, match="DCP_OPEN was refused"):
            upr_open(client.sock, "mine:2")


class Script:
    """A socket that says what it was told to, after the first request."""

    def __init__(self, *said: Frame) -> None:
        self.said = b"".join(frame.encode() for frame in said)
        self.sent: list[bytes] = []

    def sendall(self, data: bytes) -> None:
        self.sent.append(data)

    def recv(self, size: int) -> bytes:
        # In small pieces, as sockets may.
        data, self.said = self.said[: min(size, 5)], self.said[min(size, 5) :]
        return data


def test_questions_in_between_are_answered() -> None:
    sock = Script(request(Opcode.DCP_NOOP, opaque=99), response(Opcode.DCP_OPEN, opaque=1))
    with pytest.raises(ConnectError, match="closed the connection while DCP was opened"):
        upr_open(sock, "mine:1")
    reply = Frame.parse(sock.sent[1])
    assert reply is not None
    assert (reply[0].magic, reply[0].opcode, reply[0].opaque) == (Magic.RESPONSE, Opcode.DCP_NOOP, 99)


def test_an_answer_to_something_else() -> None:
    with pytest.raises(ProtocolError, match="an answer to nothing that was asked"):
        upr_open(Script(response(Opcode.DCP_OPEN, opaque=5)), "mine:1")


def test_lengths_are_not_believed() -> None:
    sock = Script()
    sock.said = bytes.fromhex("8150000000000000ffffffff000000010000000000000000")
    with pytest.raises(ProtocolError, match="over the limit"):
        upr_open(sock, "mine:1")
