"""Cluster maps that nodes push over the connections that they stream on."""

from __future__ import annotations

import json
import struct
import threading
from pathlib import Path

import pytest

from cbframe import LocalCluster
from cbframe.dcp.connection import DcpConnection, MapPushed
from cbframe.dcp.handshake import Login
from cbframe.dcp.maps import MapSource
from cbframe.errors import CbframeError, ProtocolError
from cbframe.local import kv
from cbframe.local.kv import KvConnection
from cbframe.testing import RecordingReceiver
from cbframe.wire.constants import Datatype, Feature, Magic, Opcode
from cbframe.wire.framing import Frame
from cbframe.wire.messages import Hello, parse_request

from .rig import Rig, serving
from .server import LOGIN, SETTINGS, connect, feed, frames, shake_hands
from .test_source import source_of, until


def push(
    body: bytes = b'{"rev":7}',
    *,
    bucket: bytes = b"bucket",
    extras: bytes = struct.pack(">qq", 1, 7),
    opcode: int = 1,
    datatype: int = Datatype.JSON,
) -> bytes:
    return Frame(
        Magic.SERVER_REQUEST, opcode, extras=extras, key=bucket, value=body, datatype=int(datatype)
    ).encode()


def test_pushes_are_asked_for() -> None:
    connection = DcpConnection(LOGIN, SETTINGS)
    message = parse_request(frames(connection.data_to_send())[0])
    assert isinstance(message, Hello)
    assert {Feature.DUPLEX, Feature.CLUSTERMAP_CHANGE_NOTIFICATION} <= set(message.features)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (push(), [MapPushed((1, 7), b'{"rev":7}')]),
        (push(extras=struct.pack(">I", 7)), [MapPushed((0, 7), b'{"rev":7}')]),
        (push(b""), [MapPushed((1, 7), b"")]),
        # What is packed is fetched.
        (push(b"\x01\x00x", datatype=Datatype.JSON | Datatype.SNAPPY), [MapPushed((1, 7), b"")]),
        # Of another bucket, of the cluster as a whole, of another kind.
        (push(bucket=b"other"), []),
        (push(bucket=b""), []),
        (push(opcode=2), []),
        (push(opcode=9, extras=b""), []),
    ],
)
def test_what_a_push_tells(data: bytes, expected: list[object]) -> None:
    connection = connect()
    assert feed(connection, data) == expected
    assert connection.data_to_send() == b""


@pytest.mark.parametrize("length", [0, 3, 5, 15, 17])
def test_a_revision_of_a_wrong_length(length: int) -> None:
    with pytest.raises(ProtocolError, match="extras of"):
        feed(connect(), push(extras=bytes(length)))


def test_what_a_real_node_pushes() -> None:
    """As recorded: its pushes are read, and their maps have the revisions that they announce."""
    golden = Path(__file__).parent.parent / "golden"
    recorded = frames((golden / "clustermap_push.s2c.bin").read_bytes())
    pushed = [frame for frame in recorded if frame.magic == Magic.SERVER_REQUEST]
    assert pushed
    login = Login("user", "p", "travel", False, True, lambda: "nonce")
    names = {frame.key for frame in pushed} - {b""}
    for name in names:
        connection = DcpConnection(
            Login(login.username, login.password, name.decode(), False, True, login.nonce), SETTINGS
        )
        shake_hands(connection)
        events = feed(connection, b"".join(frame.encode() for frame in pushed))
        assert len(events) == sum(frame.key == name for frame in pushed)
        for event in events:
            assert isinstance(event, MapPushed)
            found = json.loads(event.body)
            assert event.revision == (found["revEpoch"], found["rev"])
    assert names


def test_the_thread_hands_it_on() -> None:
    def peer(frame: Frame) -> bytes | None:
        answer = serving()(frame)
        if frame.opcode == Opcode.DCP_STREAM_REQ and answer is not None:
            return push() + answer
        return answer

    rig = Rig(peer)
    rig.run((1, 3))
    assert rig.pushes == [((1, 7), b'{"rev":7}')]
    assert sorted(rig.receiver.values()) == [b"a", b"b", b"c"]


# --- a source follows them


def no_fetches_but_one(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Every fetch of a map after the first one fails."""
    fetches: list[object] = []
    fetch = MapSource.fetch

    def once(self: MapSource, *arguments: tuple[str, ...]) -> object:
        fetches.append(arguments)
        if len(fetches) > 1:
            raise CbframeError("maps are not to be fetched here")
        return fetch(self, *arguments)

    monkeypatch.setattr(MapSource, "fetch", once)
    return fetches


def test_a_rebalance_is_followed_by_what_is_pushed(monkeypatch: pytest.MonkeyPatch) -> None:
    no_fetches_but_one(monkeypatch)
    receiver = RecordingReceiver()
    with LocalCluster(nodes=2, vbuckets=4, seed=1) as cluster:
        cluster.upsert("before", {})
        with source_of(cluster, receiver, seq_end=None, map_poll_interval=None) as source:
            until(receiver, lambda: b"before" in receiver.values())
            for node in (0, 1, 0):
                for vbucket in range(4):
                    cluster.move_vbucket(vbucket, node)
                for n in range(20):
                    cluster.upsert(f"{node}-{n}", {})
                last = {b"%d-%d" % (node, n) for n in range(20)}
                until(receiver, lambda last=last: last <= set(receiver.values()))  # type: ignore[misc]
            assert source.stats().total.tot_worker_start >= 2


def test_a_push_without_a_body_is_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As 8.0 sends it to those who ask for brief ones: the map is fetched."""
    full, brief = Feature.CLUSTERMAP_CHANGE_NOTIFICATION, Feature.CLUSTERMAP_CHANGE_NOTIFICATION_BRIEF
    monkeypatch.setattr(kv, "granted_in_8", lambda _wanted, granted: granted - {full} | {brief})
    fetched = threading.Semaphore(0)
    fetch = MapSource.fetch

    def counting(self: MapSource, *arguments: tuple[str, ...]) -> object:
        found = fetch(self, *arguments)
        fetched.release()
        return found

    monkeypatch.setattr(MapSource, "fetch", counting)
    receiver = RecordingReceiver()
    with LocalCluster(vbuckets=2, version="8.0", seed=1) as cluster:
        cluster.upsert("before", {})
        with source_of(cluster, receiver, seq_end=None, map_poll_interval=None) as source:
            until(receiver, lambda: b"before" in receiver.values())
            assert fetched.acquire(timeout=20)
            cluster.create_scope("s")
            assert fetched.acquire(timeout=20)
            # Nothing was wrong with the streams.
            assert source.stats().total.tot_worker_start == 1


def test_pushes_that_cannot_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Told of, and made good by asking."""
    spoiled, asked_again = threading.Event(), threading.Event()
    fetch = MapSource.fetch

    def counting(self: MapSource, *arguments: tuple[str, ...]) -> object:
        if spoiled.is_set():
            asked_again.set()
        return fetch(self, *arguments)

    monkeypatch.setattr(MapSource, "fetch", counting)
    receiver = RecordingReceiver()
    with LocalCluster(nodes=1, vbuckets=4, seed=1) as cluster:
        cluster.upsert("before", {})
        with source_of(cluster, receiver, seq_end=None, map_poll_interval=None):
            until(receiver, lambda: b"before" in receiver.values())
            spoiled.set()
            (node,) = cluster._engine.nodes

            def spoil() -> None:
                for channel in list(node.loop.channels):
                    if isinstance(channel, KvConnection) and channel.producer is not None:
                        channel.send(push(b"{not JSON", bucket=b"default", extras=struct.pack(">qq", 9, 9)))
                        channel.flush()

            node.loop.call(spoil)
            until(receiver, lambda: any(isinstance(e, ProtocolError) for e in receiver.errors))
            assert asked_again.wait(20)
            cluster.upsert("after", {})
            until(receiver, lambda: b"after" in receiver.values())
    assert "cannot be read" in str(next(e for e in receiver.errors if isinstance(e, ProtocolError)))
