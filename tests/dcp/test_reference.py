"""What the reference does, and its known faults, each of which is mended here.

The faults by their letter in the list of the project's own notes, and where the test of each is:

==  =====================================================================  ===============================
a   a bounded stream is asked for again at its end, and then wiped         ``test_coordinator`` (pinned)
b   a stream that was closed waits for an end that never comes             ``test_counters`` (closed …)
c   a replica may serve a stream                                           here
d   refused streams are asked for again without a wait                     ``test_coordinator`` (refused)
e   a rollback names no history                                            ``test_hooks``
f   newer messages end the connection                                      ``test_connection``, here (p)
g   a dead connection is not noticed                                       ``test_node`` (silence)
h   one failing node holds up the others                                   here
i   a map without owners is not asked for again                            ``test_coordinator`` (owner)
j   two processes get the same connection name                             here
k   options that are zero mean something else                              here
l   a user named as the bucket selects none                                here
m   xattrs without noop are refused                                        ``test_handshake`` (asked)
n   helper threads are left; messages keep parts of earlier ones           ``conftest``, here
o   a crash before the first item of a snapshot wipes the vbucket          ``test_streams`` (clamped)
p   bytes of a prepare are taken for a length                              here
q   each error of a callback ends the connection, and is told of once      ``test_node`` (raises)
r   a write that fails while streams are requested blocks for ever         ``test_counters`` (nothing …)
==  =====================================================================  ===============================
"""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from cbframe.dcp.connection import DcpConnection
from cbframe.dcp.messages import FetchMap, NodeDown, NodeReady, OpenStreams, StreamRolledBack
from cbframe.dcp.positions import VBucketMetaData
from cbframe.dcp.stats import COUNTERS
from cbframe.errors import ClusterMapError, ConfigurationError, ConnectError, ProtocolError
from cbframe.local import LocalCluster
from cbframe.options import BucketDataSourceOptions
from cbframe.testing import RecordingReceiver
from cbframe.wire.constants import MAX_SEQNO, Opcode, StreamFlag
from cbframe.wire.framing import Frame, request
from cbframe.wire.messages import SelectBucket, StreamRequest, parse_request

from .rig import Rig, serving
from .server import LOGIN, connect, feed, frames, good_answer
from .test_coordinator import A, B, Hand, cluster, end
from .test_source import LONG, source_of, until


class Listening:
    """A node that grants everything, and remembers what it was asked."""

    def __init__(self) -> None:
        self.frames: list[Frame] = []

    def __call__(self, frame: Frame) -> bytes | None:
        self.frames.append(frame)
        return serving()(frame)

    def asked(self, opcode: int) -> list[Frame]:
        return [frame for frame in self.frames if frame.opcode == opcode]


# --- faults


def test_a_position_behind_the_end_asks_for_nothing_and_loses_nothing() -> None:
    receiver = RecordingReceiver()
    receiver.seqnos[1] = 7
    node = Listening()
    events = Rig(node, receiver).run((1, 5))
    (frame,) = node.asked(Opcode.DCP_STREAM_REQ)
    asked = parse_request(frame)
    assert isinstance(asked, StreamRequest)
    assert (asked.start, asked.end, asked.snap_start, asked.snap_end) == (7, 7, 7, 7)
    assert not [event for event in events if isinstance(event, StreamRolledBack)]
    assert receiver.rollbacks == []


def test_only_the_active_copy_is_streamed() -> None:
    node = Listening()
    Rig(node).run((1, 3))
    (frame,) = node.asked(Opcode.DCP_STREAM_REQ)
    asked = parse_request(frame)
    assert isinstance(asked, StreamRequest)
    assert asked.flags == StreamFlag.ACTIVE_ONLY


def test_a_failing_node_does_not_hold_up_another() -> None:
    hand = Hand({0: 5, 1: 5})
    hand.begin(cluster(0, 1))
    for _ in range(20):
        hand(NodeDown(A, ConnectError("the bucket cannot be selected"), progressed=False))
    assert hand(NodeReady(B, {1: 5})) == [OpenStreams(B, ((1, 5),))]
    hand.until(FetchMap)
    hand(end(1, node=B))
    assert set(hand.coordinator.done) == {1}


def holds(receiver: RecordingReceiver, documents: int) -> bool:
    return len(receiver.values()) == documents


def test_no_two_connections_have_one_name() -> None:
    """The server closes the older of two: each would throw the other out, again and again."""
    with LocalCluster(vbuckets=1) as local:
        receivers = [RecordingReceiver(), RecordingReceiver()]
        options: dict[str, Any] = {"name": "reader", "seq_end": None}
        with source_of(local, receivers[0], **options), source_of(local, receivers[1], **options):
            for n in range(3):
                local.upsert(f"k{n}", {"n": n})
                for receiver in receivers:
                    until(receiver, partial(holds, receiver, n + 1))
            assert local.dcp_connections() == 2
        assert [receiver.errors for receiver in receivers] == [[], []]


@pytest.mark.parametrize(
    "fields", [{"feed_buffer_ack_threshold": 0.0}, {"noop_interval_secs": 0}, {"ping_timeout_ms": 0}]
)
def test_an_option_is_never_zero_by_accident(fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        BucketDataSourceOptions(**fields)


def test_defaults_are_those_of_the_reference_but_for_the_interval_of_noops() -> None:
    options = BucketDataSourceOptions()
    assert (
        *(options.cluster_manager_backoff_factor, options.cluster_manager_sleep_init_ms),
        *(options.cluster_manager_sleep_max_ms, options.data_manager_backoff_factor),
        *(options.data_manager_sleep_init_ms, options.data_manager_sleep_max_ms),
        *(options.feed_buffer_size_bytes, options.feed_buffer_ack_threshold, options.noop_interval_secs),
        *(options.seq_end, options.ping_timeout_ms, options.trace_capacity, options.include_xattrs),
    ) == (1.5, 100, 1000, 1.5, 100, 1000, 20_000_000, 0.2, 20, None, 30_000, 200, False)


def test_a_user_named_as_the_bucket_selects_it_too() -> None:
    node = Listening()
    Rig(node, login=replace(LOGIN, username="bucket")).run()
    (frame,) = node.asked(Opcode.SELECT_BUCKET)
    assert parse_request(frame) == SelectBucket("bucket")


def test_a_prepare_is_no_document_and_hides_none() -> None:
    """Its byte 29 says *deleted*; the reference took bytes 28 and 29 for a length."""
    connection = connect()
    stream = connection.request_stream(StreamRequest(1))
    feed(connection, granted(connection))
    extras = bytes(28) + b"\x00\x01\x02"
    prepare = request(0x60, vbucket=1, opaque=stream.opaque, extras=extras, key=b"\0k", value=b"{}").encode()
    before = connection.unacked
    assert feed(connection, prepare) == []
    # That is how servers count it.
    assert connection.unacked == before + len(prepare) + 2
    abort = request(0x63, vbucket=1, opaque=stream.opaque, extras=bytes(16), key=b"\0k").encode()
    assert feed(connection, abort) == []
    assert connection.unacked == before + len(prepare) + 2 + len(abort)
    assert connection.stats.tot_upr_data_change == 0


def test_a_commit_cannot_be_passed_over() -> None:
    """The document that it makes true was not shown: without it the read would not be whole."""
    connection = connect()
    stream = connection.request_stream(StreamRequest(1))
    feed(connection, granted(connection))
    commit = request(0x62, vbucket=1, opaque=stream.opaque, extras=bytes(16), key=b"\0k").encode()
    with pytest.raises(ProtocolError, match="commit") as caught:
        feed(connection, commit)
    assert (caught.value.opcode, caught.value.vbucket) == (0x62, 1)


def granted(connection: DcpConnection) -> bytes:
    (asked,) = frames(connection.data_to_send())
    return good_answer(asked).encode()


def test_nothing_is_counted_before_the_start() -> None:
    with LocalCluster(vbuckets=1) as local:
        source = source_of(local, RecordingReceiver())
        stats = source.stats()
        source.close()
    assert stats.counts() == dict.fromkeys(COUNTERS, 0)


def test_another_bucket_of_that_name_is_not_connected_to() -> None:
    with LocalCluster(vbuckets=1) as local:
        receiver = RecordingReceiver()
        source = source_of(local, receiver, bucket_uuid="another uuid")
        with source, pytest.raises(ClusterMapError, match="uuid is not the one"):
            source.wait(LONG)
    assert receiver.errors
    assert source.stats().tot_worker_start == 0


# --- what its tests check


def test_a_node_that_refuses_is_told_of_once_for_each_attempt() -> None:
    with LocalCluster(vbuckets=1) as local, local.refuse(0):
        receiver = RecordingReceiver()
        long_wait: dict[str, Any] = {
            "data_manager_sleep_init_ms": 60_000,
            "data_manager_sleep_max_ms": 60_000,
        }
        source = source_of(local, receiver, seeds=local.rest_urls, seq_end=None, **long_wait)
        with source:
            until(receiver, lambda: bool(receiver.errors))
            stats = source.stats()
    assert len(receiver.errors) == 1
    assert stats.tot_worker_body == 1
    assert not receiver.metadata


def test_metadata_is_stored_with_the_log_and_with_the_first_item_of_a_snapshot() -> None:
    calls: list[str] = []

    class Receiver(RecordingReceiver):
        def get_metadata(self, vbucket: int) -> tuple[bytes | None, int]:
            calls.append("get")
            return super().get_metadata(vbucket)

        def set_metadata(self, vbucket: int, metadata: bytes) -> None:
            calls.append("set")
            super().set_metadata(vbucket, metadata)

        def snapshot_start(self, vbucket: int, start: int, end: int, flags: int) -> None:
            calls.append("snapshot")

        def data_update(self, vbucket: int, key: bytes, *rest: Any) -> None:
            calls.append(key.decode())

    Rig(serving(), Receiver()).run((2, 3))
    assert calls == ["get", "set", "snapshot", "set", "a", "b", "c"]


# --- what a source asks of its nodes


def test_a_node_has_one_connection_with_many_streams() -> None:
    receiver = RecordingReceiver()
    with LocalCluster(nodes=2, vbuckets=64, seed=1) as cluster:
        cluster.bulk_load((b"k%d" % n, b"{}") for n in range(500))
        with source_of(cluster, receiver, seq_end=None) as source:
            until(receiver, partial(holds, receiver, 500))
            assert [cluster.dcp_connections(node) for node in range(2)] == [1, 1]
            assert len(source.vbucket_states()) == 64


def test_collections_are_filtered_by_the_server() -> None:
    with LocalCluster(vbuckets=1, seed=1) as cluster:
        cid = cluster.create_collection("_default", "c")
        cluster.upsert("a", {}, collection="c")
        cluster.upsert("b", {})
        receiver = RecordingReceiver()
        with source_of(cluster, receiver, collections=(cid,)) as source:
            source.wait(LONG)
            assert source.stats().total.documents == 1
        assert set(receiver.values()) == {b"a"}


def test_the_version_of_the_manifest_is_stored_and_told_when_a_stream_is_resumed() -> None:
    receiver = RecordingReceiver()
    with LocalCluster(vbuckets=1, seed=1) as cluster:
        cluster.create_collection("_default", "c")
        cluster.upsert("a", {})
        with source_of(cluster, receiver, seq_end=None):
            until(receiver, lambda: b"a" in receiver.values())
    stored = VBucketMetaData.from_json(receiver.metadata[0])
    assert stored.manifest_uid == 1
    node = Listening()
    receiver.metadata[1], receiver.seqnos[1] = stored.to_json(), receiver.seqnos[0]
    Rig(node, receiver).run((1, MAX_SEQNO))
    (frame,) = node.asked(Opcode.DCP_STREAM_REQ)
    assert json.loads(frame.value) == {"uid": "1"}
