"""What the server's developers recommend to clients, one row each, and how this client does it.

Source: couchbase/kv_engine ``docs/dcp/documentation/recommended-apis.md``. Rows follow its sections;
what does not apply says why.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache

import pytest

from cbframe import BucketDataSourceOptions, LocalCluster
from cbframe.dcp import messages
from cbframe.dcp.connection import Advanced, DcpConnection
from cbframe.dcp.positions import VBucketMetaData, VBucketOffset
from cbframe.dcp.streams import request_from
from cbframe.errors import ReadTimeoutError
from cbframe.testing import RecordingReceiver
from cbframe.wire.constants import MAX_SEQNO, Feature, Opcode, OpenFlag, StreamFlag
from cbframe.wire.framing import Frame
from cbframe.wire.messages import (
    BufferAck,
    DcpControl,
    DcpNoop,
    DcpOpen,
    Hello,
    OsoSnapshot,
    SeqnoAdvanced,
    SnapshotMarker,
    StreamRequest,
    parse_request,
)

from .rig import Rig, down, refusing, serving
from .server import LOGIN, SETTINGS, connect, feed, frames, good_answer, mutation, shake_hands
from .test_source import source_of, until

Check = Callable[[], None]
ROWS: dict[str, Check] = {}


def row(section: str, recommendation: str) -> Callable[[Check], Check]:
    def add(check: Check) -> Check:
        ROWS[f"{section}: {recommendation}"] = check
        return check

    return add


@cache
def asked(**options: object) -> tuple[object, ...]:
    """What a connection of a source with these options asks of a good node, up to its first stream."""
    connection = DcpConnection(LOGIN, BucketDataSourceOptions(**options), "cbframe:1")  # type: ignore[arg-type]
    return tuple(parse_request(frame) for turn in shake_hands(connection) for frame in turn)


def controls(**options: object) -> dict[str, str]:
    return {m.key: m.value for m in asked(**options) if isinstance(m, DcpControl)}


def opened(**options: object) -> DcpOpen:
    (message,) = [m for m in asked(**options) if isinstance(m, DcpOpen)]
    return message


def spoken(receiver: RecordingReceiver | None = None) -> list[Frame]:
    """What a thread says in a life with one stream."""
    heard = []

    def peer(frame: Frame) -> bytes | None:
        heard.append(frame)
        return serving()(frame)

    Rig(peer, receiver).run((1, 3))
    return heard


# --- connection setup


@row("Connection setup", "a name that says who it is and is like no other")
def _() -> None:
    with LocalCluster(nodes=2, vbuckets=2, seed=1) as cluster, two_sources(cluster):
        names = [
            channel.producer.name  # type: ignore[attr-defined]
            for node in cluster._engine.nodes
            for channel in list(node.loop.channels)
            if getattr(channel, "producer", None) is not None
        ]
    assert len(set(names)) == len(names) == 4
    for name in names:
        service, _, unique = name.partition(":")
        assert service == BucketDataSourceOptions().name
        assert len(unique) == 32
        assert len(name) <= 200


@contextmanager
def two_sources(cluster: LocalCluster) -> Iterator[None]:
    receivers = RecordingReceiver(), RecordingReceiver()
    for n in range(10):
        cluster.upsert(f"k{n}", {})
    with source_of(cluster, receivers[0], seq_end=None), source_of(cluster, receivers[1], seq_end=None):
        for receiver in receivers:
            until(receiver, lambda receiver=receiver: len(receiver.values()) == 10)  # type: ignore[misc]
        yield


@row("Connection setup", "HELLO before DCP_OPEN")
def _() -> None:
    kinds = [type(message) for message in asked()]
    assert kinds.index(Hello) < kinds.index(DcpOpen)


@row("Connection setup", "one connection for each node, with many streams")
def _() -> None:
    receiver = RecordingReceiver()
    with LocalCluster(nodes=2, vbuckets=64, seed=1) as cluster:
        cluster.bulk_load((b"k%d" % n, b"{}") for n in range(500))
        with source_of(cluster, receiver, seq_end=None) as source:
            until(receiver, lambda: len(receiver.values()) == 500)
            assert [cluster.dcp_connections(node) for node in range(2)] == [1, 1]
            assert len(source.vbucket_states()) == 64


# --- dead connections


@row("Dead connections", "enable_noop, then set_noop_interval, which is 20 s")
def _() -> None:
    found = list(controls().items())
    assert found.index(("enable_noop", "true")) < found.index(("set_noop_interval", "20"))


@row("Dead connections", "every NOOP is answered")
def _() -> None:
    connection = connect()
    feed(connection, DcpNoop(77).frame().encode())
    (answer,) = frames(connection.data_to_send())
    assert (answer.opcode, answer.opaque, answer.is_response, answer.status) == (Opcode.DCP_NOOP, 77, True, 0)


@row("Dead connections", "two silent intervals end the connection")
def _() -> None:
    rig = Rig(serving())
    error = down(rig.run()).error
    assert isinstance(error, ReadTimeoutError)
    assert not error.permanent


# --- flow control


@row("Flow control", "connection_buffer_size")
def _() -> None:
    assert int(controls()["connection_buffer_size"]) == BucketDataSourceOptions().feed_buffer_size_bytes


@row("Flow control", "acknowledged after a fifth of the window, when it is consumed")
def _() -> None:
    assert BucketDataSourceOptions().feed_buffer_ack_threshold == 0.2
    acks = [m for m in map(parse_request, filter(is_request, spoken())) if isinstance(m, BufferAck)]
    assert acks
    assert all(ack.nbytes > 200 for ack in acks)


@row("Flow control", "an item larger than the window")
def _() -> None:
    receiver = RecordingReceiver()
    rig = Rig(serving(large=300_000), receiver)
    rig.run((1, 3))
    assert max(map(len, receiver.values().values())) > 300_000 > 1000


@row("Flow control", "no stream_buffer_size: the server has none")
def _() -> None:
    assert "stream_buffer_size" not in controls()


# --- cursor dropping


@row("Cursor dropping", "supports_cursor_dropping")
def _() -> None:
    assert controls()["supports_cursor_dropping"] == "true"


# --- streams


@row("Streams", "high seqnos are asked for, also after a change of the topology")
def _() -> None:
    sampled = [frame for frame in spoken() if frame.opcode == Opcode.GET_ALL_VB_SEQNOS]
    assert len(sampled) == 2  # with the connection, and with the stream


@row("Streams", "the failover log of each stream is stored")
def _() -> None:
    receiver = RecordingReceiver()
    spoken(receiver)
    assert json.loads(receiver.metadata[1])["failOverLog"] == [[22, 5], [11, 0]]


@row("Streams", "seqno and snapshot are stored, and resumed from in this order")
def _() -> None:
    receiver = RecordingReceiver()
    spoken(receiver)
    stored = VBucketMetaData.from_json(receiver.metadata[1])
    for seqno in range(10):
        request = request_from(1, VBucketOffset.of(stored, seqno))
        assert request.snap_start <= request.start <= request.snap_end


@row("Streams", "rolled back to where the server says, and no further")
def _() -> None:
    receiver = RecordingReceiver()
    receiver.metadata[1] = VBucketMetaData(snap_start=9, snap_end=9).to_json()
    receiver.seqnos[1] = 9
    events = Rig(refusing(0x23, (4).to_bytes(8, "big")), receiver).run((1, MAX_SEQNO))
    assert receiver.rollbacks == [(1, 4)]
    assert any(isinstance(event, messages.StreamRolledBack) for event in events)


@row("Streams", "of the active copy only")
def _() -> None:
    requests = [m for m in map(parse_request, filter(is_request, spoken())) if isinstance(m, StreamRequest)]
    assert [m.flags & StreamFlag.ACTIVE_ONLY for m in requests] == [StreamFlag.ACTIVE_ONLY]


@row("Streams", "expirations are told from deletions")
def _() -> None:
    assert controls()["enable_expiry_opcode"] == "true"
    assert opened().flags & OpenFlag.INCLUDE_DELETE_TIMES


@row("Streams", "closed when not wanted, and the end of it told")
def _() -> None:
    assert controls()["send_stream_end_on_client_close_stream"] == "true"
    connection = connect()
    connection.request_stream(StreamRequest(1))
    (request,) = frames(connection.data_to_send())
    feed(connection, good_answer(request).encode())
    connection.close_stream(1)
    (frame,) = frames(connection.data_to_send())
    assert (frame.opcode, frame.vbucket) == (Opcode.DCP_CLOSE_STREAM, 1)


# --- payload


@row("Payload", "Snappy; values that come plain are not forced to be compressed, unless asked for")
def _() -> None:
    (hello,) = [m for m in asked() if isinstance(m, Hello)]
    assert Feature.SNAPPY in hello.features
    assert "force_value_compression" not in controls()
    assert controls(compression="force")["force_value_compression"] == "true"


@row("Payload", "no values where none are wanted; with the datatype, since 0x08 alone gives invented rows")
def _() -> None:
    assert opened(no_value=True).flags & OpenFlag.NO_VALUE_WITH_UNDERLYING_DATATYPE
    assert not opened(no_value=True).flags & OpenFlag.NO_VALUE
    assert not opened().flags & (OpenFlag.NO_VALUE | OpenFlag.NO_VALUE_WITH_UNDERLYING_DATATYPE)


@row("Payload", "extended attributes where they are wanted only")
def _() -> None:
    assert not opened().flags & OpenFlag.INCLUDE_XATTRS
    assert opened(include_xattrs=True).flags & OpenFlag.INCLUDE_XATTRS


# --- out of order


@row("Out of order", "asked for with SEQNO_ADVANCED")
def _() -> None:
    assert controls(out_of_order=True)["enable_out_of_order_snapshots"] == "true_with_seqno_advanced"


@row("Out of order", "resumed from before the snapshot, or from its highest seqno")
def _() -> None:
    connection = connect(replace(SETTINGS, feed_buffer_size_bytes=1 << 20))
    stream = connection.request_stream(StreamRequest(1))
    (request,) = frames(connection.data_to_send())
    feed(connection, good_answer(request).encode())
    begin, end = (OsoSnapshot(1, flags).frame(stream.opaque).encode() for flags in (1, 2))
    feed(connection, begin + mutation(1, stream.opaque, 9) + mutation(1, stream.opaque, 4))
    assert stream.seqno == 0
    feed(connection, end)
    assert stream.seqno == 9


@row("Out of order", "SEQNO_ADVANCED counts as progress anywhere")
def _() -> None:
    connection = connect()
    stream = connection.request_stream(StreamRequest(1))
    (request,) = frames(connection.data_to_send())
    feed(connection, good_answer(request).encode())
    marker = SnapshotMarker(1, 1, 9, 1).frame(stream.opaque).encode()
    events = feed(connection, marker + SeqnoAdvanced(1, 9).frame(stream.opaque).encode())
    assert Advanced(stream) in events
    assert stream.seqno == 9


# --- collections


@row("Collections", "asked for with HELLO")
def _() -> None:
    (hello,) = [m for m in asked() if isinstance(m, Hello)]
    assert Feature.COLLECTIONS in hello.features


@row("Collections", "filtered by the server")
def _() -> None:
    with LocalCluster(vbuckets=1, seed=1) as cluster:
        cluster.create_scope("s")
        cid = cluster.create_collection("s", "c")
        cluster.upsert("a", {}, collection="s.c")
        cluster.upsert("b", {})
        receiver = RecordingReceiver()
        with source_of(cluster, receiver, collections=(cid,)) as source:
            source.wait(20)
            assert source.stats().total.documents == 1
        assert set(receiver.values()) == {b"a"}


@row("Collections", "the manifest's version is stored, and told when a stream is resumed")
def _() -> None:
    receiver = RecordingReceiver()
    with LocalCluster(vbuckets=1, seed=1) as cluster:
        cluster.create_scope("s")
        cluster.create_collection("s", "c")
        cluster.upsert("a", {})
        with source_of(cluster, receiver, seq_end=None):
            until(receiver, lambda: b"a" in receiver.values())
    stored = VBucketMetaData.from_json(receiver.metadata[0])
    assert stored.manifest_uid == 2
    told = []

    def peer(frame: Frame) -> bytes | None:
        if frame.opcode == Opcode.DCP_STREAM_REQ:
            told.append(json.loads(frame.value))
        return serving()(frame)

    receiver.metadata[1], receiver.seqnos[1] = stored.to_json(), receiver.seqnos[0]
    Rig(peer, receiver).run((1, MAX_SEQNO))
    assert told == [{"uid": "2"}]


@row("Collections", "system events that tell of modified collections, too")
def _() -> None:
    assert controls()["flatbuffers_system_events"] == "true"


@row("Collections", "max_marker_version, and purge_seqno when a stream is resumed")
def _() -> None:
    assert controls()["max_marker_version"] == "2.2"
    # That it is given back: test_order.test_purge_seqnos_are_stored_and_given_back.


# --- sync writes


@row("Sync writes", "not asked for: what is not settled is nothing for a reader")
def _() -> None:
    assert not {"enable_sync_writes", "consumer_name"} & set(controls())


# --- priority and compatibility


@row("Priority", "set_priority and backfill_order where they are wanted")
def _() -> None:
    assert not {"set_priority", "backfill_order"} & set(controls())
    found = controls(priority="low", backfill_order="sequential")
    assert (found["set_priority"], found["backfill_order"]) == ("low", "sequential")


@row("Compatibility", "v7_dcp_status_codes, and what they mean")
def _() -> None:
    assert controls()["v7_dcp_status_codes"] == "true"
    connection = connect()
    stream = connection.request_stream(StreamRequest(1))
    (request,) = frames(connection.data_to_send())
    feed(connection, good_answer(request).encode())
    connection.close_stream(1)
    (frame,) = frames(connection.data_to_send())
    # 0x0a: there is no such stream any more. It is closed, as it was meant to be.
    feed(connection, replace(good_answer(frame), vbucket=0x0A).encode())
    assert connection.streams.get(stream.opaque) is None


def is_request(frame: Frame) -> bool:
    return not frame.is_response


@pytest.mark.parametrize("recommendation", ROWS)
def test_as_recommended(recommendation: str) -> None:
    ROWS[recommendation]()


def test_no_row_is_missing() -> None:
    """By section of the source, as it was read: how many rows each has here."""
    sections: dict[str, int] = {}
    for name in ROWS:
        section = name.partition(":")[0]
        sections[section] = sections.get(section, 0) + 1
    assert sections == {
        "Connection setup": 3,
        "Dead connections": 3,
        "Flow control": 4,
        "Cursor dropping": 1,
        "Streams": 7,
        "Payload": 3,
        "Out of order": 3,
        "Collections": 5,
        "Sync writes": 1,
        "Priority": 1,
        "Compatibility": 1,
    }
