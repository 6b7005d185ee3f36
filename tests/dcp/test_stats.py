"""Counters of one moment do not change, can be copied, and two of them make rates; vbuckets as columns."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from cbframe.cluster.auth import PasswordAuthenticator
from cbframe.cluster.cluster_map import ClusterMap, parse_bucket_config
from cbframe.cluster.connection_string import HostPort, parse_connection_string
from cbframe.dcp.coordinator import Coordinator
from cbframe.dcp.maps import MapSource
from cbframe.dcp.messages import (
    UPDATE_SECURITY_SETTINGS,
    Event,
    Kicked,
    MapFailed,
    MapFetched,
    NodeReady,
    Started,
    Tick,
)
from cbframe.dcp.positions import VBucketMetaData, VBucketOffset
from cbframe.dcp.stats import (
    CLUSTER_COUNTERS,
    COUNTERS,
    NODE_COUNTERS,
    BucketDataSourceStats,
    ClusterCounters,
    NodeStats,
    VBucketPhase,
    VBucketTable,
    Window,
    empty_table,
    vbucket_table,
)
from cbframe.dcp.streams import Stream, StreamState
from cbframe.errors import CbframeError, ConnectError, ProtocolError
from cbframe.local import LocalCluster
from cbframe.options import BucketDataSourceOptions
from cbframe.testing import FakeClock, Peer, RecordingReceiver, ScriptedTransport
from cbframe.wire.constants import MAX_SEQNO, Opcode, Status, StreamEndReason
from cbframe.wire.framing import Frame, response
from cbframe.wire.messages import DcpNoop, FailoverEntry, SnapshotMarker, StreamEnd, StreamRequest

from .rig import NODE, Rig, refusing, sending, serving
from .server import LOGIN, connect, feed, frames, good_answer, mutation, refusal
from .test_coordinator import A, cluster
from .test_source import LONG, source_of

BIG = (1 << 40) + 7


def picture(at: float = 0.0, **nodes: NodeStats) -> BucketDataSourceStats:
    return BucketDataSourceStats([ClusterCounters(tot_kick=2), ClusterCounters(tot_kick=3)], nodes, at=at)


def test_a_picture_does_not_change() -> None:
    node = NodeStats(bytes_received=1)
    stats = picture(a=node, b=NodeStats(bytes_received=BIG))
    node.bytes_received += 1
    assert (stats.bytes_received, stats.nodes["a"].bytes_received) == (BIG + 1, 1)
    assert stats.tot_kick == 5
    with pytest.raises(AttributeError, match="do not change"):
        stats.tot_kick = 6  # type: ignore[misc]
    with pytest.raises(AttributeError, match="do not change"):
        del stats.nodes
    with pytest.raises(AttributeError, match="no counter 'tot_nothing'"):
        _ = stats.tot_nothing
    assert set(COUNTERS) <= set(dir(stats))
    assert "2 nodes" in repr(stats)


def test_counters_beyond_32_bits_are_copied_and_others_left_alone() -> None:
    dest = Counter({"mine": 1, "tot_kick": 9})
    picture(a=NodeStats(noops=BIG)).atomic_copy_to(dest)
    assert (dest["tot_upr_noop"], dest["tot_kick"], dest["mine"]) == (BIG, 5, 1)
    assert set(dest) == {"mine", *COUNTERS}


def test_counters_are_combined() -> None:
    dest = {"tot_kick": 9}
    picture().atomic_copy_to(dest, lambda own, other: other - own)
    assert dest["tot_kick"] == 4
    assert dest["tot_start"] == 0


def test_two_pictures_make_rates() -> None:
    before = picture(10.0, a=NodeStats(bytes_received=100))
    after = picture(12.0, a=NodeStats(bytes_received=500), b=NodeStats(bytes_received=60))
    rates = after - before
    assert (rates.seconds, rates.counts["bytes_received"]) == (2.0, 460)
    assert (rates.bytes_received, rates.tot_kick) == (230.0, 0.0)
    assert (rates.nodes["a"].bytes_received, rates.nodes["b"].bytes_received) == (200.0, 30.0)
    assert (before - before).bytes_received == 0.0
    assert "230 bytes/s" in repr(rates)
    with pytest.raises(AttributeError, match="no counter"):
        _ = rates.tot_nothing
    with pytest.raises(TypeError):
        _ = after - 1


# -- vbuckets as columns


def cluster_map(*active: int) -> ClusterMap:
    return ClusterMap("travel", "u", (1, 1), ("a:1", "b:1"), np.array(active, np.int16))


def stream(vbucket: int, seqno: int, snap_end: int, state: StreamState = StreamState.RUNNING) -> Stream:
    log = (FailoverEntry(0xABC, 0),) if state is not StreamState.REQUESTED else ()
    reached = np.array([seqno], np.uint64)
    return Stream(vbucket, 1, 0, MAX_SEQNO, state, log, reached=reached, snap_end=snap_end)


def take(found: ClusterMap, **fields: Any) -> VBucketTable:
    return vbucket_table(found.nodes, found.active, **fields)


def test_before_there_is_a_map() -> None:
    assert len(empty_table()) == 0


def test_phases() -> None:
    table = take(
        cluster_map(0, 0, -1, 1, 1, 1, 1),
        wanted=range(1, 7),
        streams=[
            stream(3, 0, 0, StreamState.REQUESTED),
            stream(4, 5, 9),
            stream(5, 9, 9, StreamState.CLOSING),
        ],
        done=[(6, VBucketOffset.at(0xDEF, 12))],
        ends={6: 10},
    )
    assert table.phase.tolist() == list(VBucketPhase)
    assert table.owner.tolist() == [0, 0, -1, 1, 1, 1, 1]
    assert table.seqno.tolist() == [-1, -1, -1, 0, 5, 9, 12]
    assert table.high.tolist() == [-1, -1, -1, 0, 9, 9, 10]
    assert table.vbuuid.tolist() == [0, 0, 0, 0, 0xABC, 0xABC, 0xDEF]
    with pytest.raises(ValueError, match="read-only"):
        table.phase[0] = 1


def test_where_there_is_something_to_receive() -> None:
    table = take(
        cluster_map(0, 0, 0, 1),
        wanted=range(4),
        # What node b tells of vbucket 2 is history that was lost with it.
        high_seqnos={"a:1": {0: 50, 1: 50, 2: 50}, "b:1": {2: 99, 3: 7, 4: 1, 70_000: 1}, "gone:1": {0: 999}},
        streams=[stream(0, 40, 60), stream(1, 40, 45)],
    )
    assert table.high.tolist() == [60, 50, 50, 7]


def test_no_end_is_no_number() -> None:
    table = take(
        cluster_map(0, 0),
        wanted=range(2),
        ends={0: MAX_SEQNO, 1: 1 << 63},
        streams=[stream(0, 3, MAX_SEQNO), stream(1, 3, 3)],
    )
    assert table.high.tolist() == [-1, (1 << 63) - 1]


def test_windows() -> None:
    assert Window(250, 1000).fill == 0.25
    assert Window(250, 0).fill == 0.0


# --- each counter of the reference, and what moves it; none is dead

NAMES = """
TotStart TotKick TotKickDeduped TotKickOk TotRefreshCluster TotRefreshClusterConnectBucket
TotRefreshClusterConnectBucketErr TotRefreshClusterConnectBucketOk TotRefreshClusterBucketUUIDErr
TotRefreshClusterVBMNilErr TotRefreshClusterKickWorkers TotRefreshClusterKickWorkersClosed
TotRefreshClusterKickWorkersStopped TotRefreshClusterKickWorkersOk TotRefreshClusterStopped
TotRefreshClusterAwokenClosed TotRefreshClusterAwokenStopped TotRefreshClusterAwokenRestart
TotRefreshClusterAwoken TotRefreshClusterAllServerURLsConnectBucketErr TotRefreshClusterDone
TotRefreshWorkersStarted TotRefreshWorkers TotRefreshWorkersClusterChKicks
TotRefreshWorkersSecurityUpdates TotRefreshWorkersVBMNilErr TotRefreshWorkersVBucketIDErr
TotRefreshWorkersServerIdxsErr TotRefreshWorkersMasterIdxErr TotRefreshWorkersMasterServerErr
TotRefreshWorkersRemoveWorker TotRefreshWorkersAddWorker TotRefreshWorkersKickWorker
TotRefreshWorkersCloseWorker TotRefreshWorkersLoop TotRefreshWorkersLoopDone TotRefreshWorkersDone
TotWorkerStart TotWorkerDone TotWorkerBody TotWorkerBodyKick TotWorkerConnect TotWorkerConnectErr
TotWorkerConnectOk TotWorkerAuth TotWorkerAuthErr TotWorkerAuthFail TotWorkerAuthOk
TotWorkerUPROpenErr TotWorkerUPROpenOk TotWorkerAuthenticateMemcachedConn
TotWorkerAuthenticateMemcachedConnErr TotWorkerAuthenticateMemcachedConnOk TotWorkerClientClose
TotWorkerClientCloseDone TotWorkerTransmitStart TotWorkerTransmit TotWorkerTransmitErr
TotWorkerTransmitOk TotWorkerTransmitDone TotWorkerReceiveStart TotWorkerReceive TotWorkerReceiveErr
TotWorkerReceiveOk TotWorkerReceiveDone TotWorkerSendEndCh TotWorkerRecvEndCh TotWorkerHandleRecv
TotWorkerHandleRecvErr TotWorkerHandleRecvOk TotWorkerCleanup TotWorkerCleanupDone TotRefreshWorker
TotRefreshWorkerDone TotRefreshWorkerOk TotUPRDataChange TotUPRDataChangeStateErr
TotUPRDataChangeMutation TotUPRDataChangeDeletion TotUPRDataChangeExpiration TotUPRDataChangeErr
TotUPRDataChangeOk TotUPRCloseStream TotUPRCloseStreamRes TotUPRCloseStreamResStateErr
TotUPRCloseStreamResErr TotUPRCloseStreamResOk TotUPRStreamReq TotUPRStreamReqWant
TotUPRStreamReqRes TotUPRStreamReqResStateErr TotUPRStreamReqResFail
TotUPRStreamReqResFailNotMyVBucket TotUPRStreamReqResFailERange TotUPRStreamReqResFailENoMem
TotUPRStreamReqResRollback TotUPRStreamReqResRollbackStart TotUPRStreamReqResRollbackErr
TotUPRStreamReqResWantAfterRollbackErr TotUPRStreamReqResKick TotUPRStreamReqResSuccess
TotUPRStreamReqResSuccessOk TotUPRStreamReqResFLogErr TotUPRStreamEnd TotUPRStreamEndStateErr
TotUPRStreamEndKick TotUPRSnapshot TotUPRSnapshotStateErr TotUPRSnapshotStart TotUPRSnapshotStartErr
TotUPRSnapshotOk TotUPRNoop TotUPRControl TotUPRControlErr TotUPRBufferAck
TotWantCloseRequestedVBucketErr TotWantClosingVBucketErr TotSelectBucketErr TotHandShakeErr
TotGetVBucketMetaData TotGetVBucketMetaDataUnmarshalErr TotGetVBucketMetaDataErr
TotGetVBucketMetaDataOk TotSetVBucketMetaData TotSetVBucketMetaDataMarshalErr
TotSetVBucketMetaDataErr TotSetVBucketMetaDataOk TotPingTimeout TotPingReq TotPingReqDone
"""
REFERENCE = set(NAMES.split())
OWN = {"bytes_received", "receives", "blocks", "errors", "reconnects"}
WORDS = {
    "UPR": "Upr",
    "VBM": "Vbm",
    "UUID": "Uuid",
    "URLs": "Urls",
    "VBucket": "Vbucket",
    "ID": "Id",
    "MetaData": "Metadata",
    "HandShake": "Handshake",
    "ERange": "Erange",
    "ENoMem": "Enomem",
    "FLog": "Flog",
}

Moved = dict[str, int]


def python_name(name: str) -> str:
    """A counter of the reference in snake_case, words in capitals and compounds as one word."""
    for word, plain in WORDS.items():
        name = name.replace(word, plain)
    return re.sub("(?<=[a-z])([A-Z])", r"_\1", name).lower()


SCENARIOS: dict[str, tuple[Callable[[], Moved], str]] = {}
"""What happens, and the counters that it takes from 0: to 1, or as it says."""


def counts(stats: ClusterCounters | NodeStats) -> Moved:
    names = CLUSTER_COUNTERS if isinstance(stats, ClusterCounters) else NODE_COUNTERS
    return {name: getattr(stats, name) for name in names}


def test_the_reference_has_these() -> None:
    assert {python_name(name) for name in REFERENCE} == set(COUNTERS) - OWN
    assert len(set(COUNTERS)) == len(COUNTERS) == len(REFERENCE) + len(OWN)


# --- around the cluster map


def coordinated(*events: Event, wanted: tuple[int, ...] = (), late: tuple[Event, ...] = ()) -> Moved:
    """What a coordinator counts of some events, and of those that come when it is being closed."""
    counters = ClusterCounters()
    coordinator = Coordinator(wanted or None, BucketDataSourceOptions(), counters)
    now = 0.0
    for event in events:
        now += 10 * isinstance(event, Tick)
        coordinator.handle(event, now)
    for event in late:
        coordinator.dismiss(event)
    return counts(counters)


LATE = (MapFetched(cluster(0)), Kicked("a"))
SCENARIOS |= {
    "a node is connected": (
        lambda: coordinated(Started(), MapFetched(cluster(0, 0)), NodeReady(A, {0: 5, 1: 5})),
        """
        refresh_cluster refresh_cluster_kick_workers refresh_cluster_kick_workers_ok refresh_cluster_awoken
        refresh_workers refresh_workers_cluster_ch_kicks refresh_workers_loop refresh_workers_add_worker
        refresh_workers_kick_worker kick kick_ok
        """,
    ),
    "kicked three times before the map came": (
        lambda: coordinated(Started(), MapFetched(cluster(0)), *[Kicked("a")] * 3, Tick()),
        "refresh_cluster=2 refresh_cluster_awoken_restart kick_ok kick_deduped=2",
    ),
    "kicked before there was any map": (
        lambda: coordinated(Started(), MapFailed(ConnectError("no seed")), Kicked("a")),
        "refresh_cluster_all_server_urls_connect_bucket_err refresh_workers_vbm_nil_err",
    ),
    "vbuckets wanted that do not exist": (
        lambda: coordinated(Started(), MapFetched(cluster(0, 0)), wanted=(0, 7, 8)),
        "refresh_workers_vbucket_id_err=2",
    ),
    "a vbucket without an owner": (
        lambda: coordinated(Started(), MapFetched(cluster(0, -1))),
        "refresh_workers_master_idx_err kick",
    ),
    "other security settings": (
        lambda: coordinated(Started(), MapFetched(cluster(0)), Kicked(UPDATE_SECURITY_SETTINGS)),
        "refresh_workers_security_updates refresh_workers_remove_worker",
    ),
    "too late because it is being closed": (
        lambda: coordinated(Started(), late=LATE),
        "refresh_cluster_kick_workers refresh_cluster_kick_workers_stopped refresh_cluster_awoken_stopped",
    ),
    "too late because it is over: a vbucket does not exist": (
        lambda: coordinated(Started(), MapFetched(cluster(0)), wanted=(9,), late=LATE),
        "refresh_cluster_kick_workers_closed refresh_cluster_awoken_closed",
    ),
}


def served_config(**fields: Any) -> dict[str, Any]:
    server_map = {"serverList": ["127.0.0.1:11210"], "vBucketMap": [[0]], **fields}
    return {"name": "b", "uuid": "u", "nodeLocator": "vbucket", "vBucketServerMap": server_map}


def seeds_with(*configs: dict[str, Any] | None, uuid: str = "") -> Moved:
    """What one pass over seeds moves that describe the bucket so; None cannot be reached."""
    left = list(configs)

    class Described:
        def __init__(self, found: ClusterMap) -> None:
            self.map, self.uuid = found, found.uuid

    def connect_bucket(url: str, pool: str, bucket: str, auth: object) -> Described:
        found = left.pop(0)
        if found is None:
            raise LookupError(url)
        return Described(parse_bucket_config(found, origin=HostPort("h")))

    counters = ClusterCounters()
    maps = MapSource(
        parse_connection_string([f"http://h{n}" for n in range(len(configs))]),
        LOGIN,
        PasswordAuthenticator("user", "secret"),
        BucketDataSourceOptions(connect_timeout=LONG, connect_bucket=connect_bucket),
        bucket_uuid=uuid,
        transport=ScriptedTransport({}, FakeClock()),
        clock=FakeClock(),
        counters=counters,
    )
    with closing(maps), suppress(CbframeError):
        maps.open()
        maps.fetch()
    assert not left
    return counts(counters)


SCENARIOS |= {
    "one seed is gone and one has no map yet": (
        lambda: seeds_with(None, served_config(vBucketMap=[]), served_config()),
        """
        refresh_cluster_connect_bucket=3 refresh_cluster_connect_bucket_err=2
        refresh_cluster_connect_bucket_ok refresh_cluster_vbm_nil_err
        """,
    ),
    "another bucket of that name": (
        lambda: seeds_with(served_config(), uuid="other"),
        "refresh_cluster_connect_bucket refresh_cluster_bucket_uuid_err",
    ),
    "maps that make no sense": (
        lambda: seeds_with(
            served_config(vBucketMap=[[]]), served_config(vBucketMap=[[1]]), served_config(serverList=[""])
        ),
        "refresh_workers_server_idxs_err refresh_workers_master_idx_err refresh_workers_master_server_err",
    ),
}

# --- on one connection

# A handshake has 16 requests: HELLO, three of SASL, SELECT, GET_ALL_VB_SEQNOS, OPEN, nine CONTROL. Then come
# a stream request, a sample and an acknowledgement; received are two answers, a marker, three documents
# and an end.


ROLLBACK = refusing(Status.ROLLBACK, (2).to_bytes(8, "big"))
CERTIFIED = replace(LOGIN, username=None, password="")


def read(peer: Peer | None = None, *streams: tuple[int, int], at: int = 0, **options: Any) -> Moved:
    """What the connection to a node counts, of which one stream is read; `at` is where the receiver is."""
    receiver = options.pop("receiver", None) or RecordingReceiver()
    receiver.seqnos[1] = at
    rig = Rig(peer or serving(), receiver, **options)
    rig.run(*streams)
    return counts(rig.stats)


def refused(peer: Peer) -> Moved:
    """A stream is asked for from seqno 5 on."""
    return read(peer, (1, 9), at=5)


def broken(opcode: int, status: int | None = None, key: bytes | None = None, **options: Any) -> Moved:
    """A node that hangs up at a request, or refuses it."""

    def peer(frame: Frame) -> bytes | None:
        if frame.opcode != opcode or key not in {None, frame.key}:
            return serving()(frame)
        return None if status is None else refusal(frame, status).encode()

    return read(peer, **options)


def unreachable_node() -> Moved:
    rig = Rig(serving())
    rig.transport.forget(NODE)
    rig.run()
    return counts(rig.stats)


def nothing_can_be_sent() -> Moved:
    rig = Rig(serving())

    def failing(data: bytes, timeout: float) -> None:
        raise ConnectError("the pipe is broken")

    rig.transport.on_connect = lambda stream: setattr(stream, "send_all", failing)
    rig.run()
    return counts(rig.stats)


def raising(callback: str, peer: Peer | None = None, *, at: int = 0) -> Moved:
    """A callback of the receiver raises."""
    receiver = RecordingReceiver()

    def fail(*args: object) -> None:
        raise LookupError("nothing here")

    setattr(receiver, callback, fail)
    return read(peer, (1, 3), receiver=receiver, at=at)


def something_else_was_stored() -> Moved:
    receiver = RecordingReceiver()
    receiver.metadata[1] = b"[]"
    return read(None, (1, 3), receiver=receiver)


def metadata_without_a_json_form() -> Moved:
    def fail(metadata: VBucketMetaData) -> bytes:
        raise ValueError("out of range")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(VBucketMetaData, "to_json", fail)
        return read(None, (1, 3))


def asked_to_live(frame: Frame) -> bytes | None:
    """A node that asks whether the client lives, with an answer."""
    answer = serving()(frame)
    if frame.opcode == Opcode.GET_ALL_VB_SEQNOS and answer is not None:
        answer += DcpNoop(10_000_001).frame().encode()
    return answer


SCENARIOS |= {
    "a stream and then silence": (
        lambda: read(serving(), (1, 3), ping_timeout=1000),
        """
        worker_start worker_body worker_connect worker_connect_ok worker_auth worker_auth_ok
        worker_upr_open_ok worker_body_kick worker_transmit_start worker_transmit=19 worker_transmit_ok=19
        worker_transmit_done worker_receive_start worker_receive=24 worker_receive_ok=23 worker_receive_done
        worker_receive_err worker_recv_end_ch worker_handle_recv=20 worker_handle_recv_ok=20
        worker_client_close worker_client_close_done worker_cleanup worker_cleanup_done worker_done
        refresh_worker refresh_worker_ok get_vbucket_metadata get_vbucket_metadata_ok
        set_vbucket_metadata=2 set_vbucket_metadata_ok=2 upr_control=9 upr_stream_req_want upr_stream_req
        upr_stream_req_res upr_stream_req_res_success upr_stream_req_res_success_ok upr_snapshot
        upr_snapshot_start upr_snapshot_ok upr_data_change=3 upr_data_change_mutation=3 upr_data_change_ok=3
        upr_stream_end
        """,
    ),
    "a ping every 30 s of silence, until it is given up after 240 s": (
        read,
        "ping_timeout=7 ping_req=7 ping_req_done=7",
    ),
    "a node that cannot be reached": (
        unreachable_node,
        "worker_connect worker_connect_err worker_body worker_done",
    ),
    "the node hangs up at HELLO": (
        lambda: broken(Opcode.HELLO),
        "handshake_err worker_recv_end_ch worker_receive_err",
    ),
    "the node hangs up at the password": (lambda: broken(Opcode.SASL_AUTH), "worker_auth worker_auth_err"),
    "the password is wrong": (
        lambda: broken(Opcode.SASL_AUTH, Status.AUTH_ERROR),
        "worker_auth worker_auth_fail worker_handle_recv_err",
    ),
    "there is no such bucket": (
        lambda: broken(Opcode.SELECT_BUCKET, Status.EACCESS),
        "select_bucket_err worker_auth_ok",
    ),
    "the user may not open a stream": (
        lambda: broken(Opcode.DCP_OPEN, Status.EACCESS),
        "worker_upr_open_err",
    ),
    "an option that must be is refused": (
        lambda: broken(Opcode.DCP_CONTROL, Status.EINVAL, b"connection_buffer_size"),
        "upr_control=3 upr_control_err worker_upr_open_err",
    ),
    "a certificate says who it is": (
        lambda: read(login=CERTIFIED),
        "worker_authenticate_memcached_conn worker_authenticate_memcached_conn_ok worker_auth=0",
    ),
    "a certificate of nobody": (
        lambda: broken(Opcode.SELECT_BUCKET, Status.EACCESS, login=CERTIFIED),
        "worker_authenticate_memcached_conn worker_authenticate_memcached_conn_err select_bucket_err",
    ),
    "nothing can be sent": (nothing_can_be_sent, "worker_transmit_err worker_send_end_ch"),
    "the receiver raises at a document": (
        lambda: raising("data_update"),
        "upr_data_change=3 upr_data_change_err=3 worker_recv_end_ch",
    ),
    "the receiver raises at a snapshot": (
        lambda: raising("snapshot_start"),
        "upr_snapshot upr_snapshot_start upr_snapshot_start_err worker_handle_recv_err",
    ),
    "the receiver raises at metadata to store": (
        lambda: raising("set_metadata"),
        "set_vbucket_metadata set_vbucket_metadata_err",
    ),
    "the receiver raises at metadata asked for": (
        lambda: raising("get_metadata"),
        "get_vbucket_metadata get_vbucket_metadata_err",
    ),
    "the receiver raises at a rollback": (
        lambda: raising("rollback", ROLLBACK, at=5),
        """
        upr_stream_req_res_fail upr_stream_req_res_rollback upr_stream_req_res_rollback_start
        upr_stream_req_res_rollback_err
        """,
    ),
    "the receiver has stored something else": (
        something_else_was_stored,
        "get_vbucket_metadata get_vbucket_metadata_unmarshal_err",
    ),
    "metadata without a JSON form": (
        metadata_without_a_json_form,
        "set_vbucket_metadata set_vbucket_metadata_marshal_err",
    ),
    "a rollback": (
        lambda: refused(ROLLBACK),
        """
        upr_stream_req_res upr_stream_req_res_fail upr_stream_req_res_rollback
        upr_stream_req_res_rollback_start upr_stream_req_res_want_after_rollback_err
        """,
    ),
    "a position outside the history": (
        lambda: refused(refusing(Status.ERANGE)),
        """
        upr_stream_req_res_fail upr_stream_req_res_fail_erange upr_stream_req_res_rollback_start
        upr_stream_req_res_want_after_rollback_err
        """,
    ),
    "a vbucket that is elsewhere": (
        lambda: refused(refusing(Status.NOT_MY_VBUCKET)),
        "upr_stream_req_res_fail upr_stream_req_res_fail_not_my_vbucket upr_stream_req_res_kick",
    ),
    "a node without memory": (
        lambda: refused(refusing(Status.ENOMEM)),
        "upr_stream_req_res_fail upr_stream_req_res_fail_enomem upr_stream_req_res_kick",
    ),
    "a failover log that is none": (
        lambda: refused(refusing(Status.SUCCESS, b"odd")),
        "upr_stream_req_res_success upr_stream_req_res_flog_err",
    ),
    "the server ends a stream": (
        lambda: refused(sending(StreamEnd(1, StreamEndReason.STATE_CHANGED))),
        "upr_stream_end upr_stream_end_kick",
    ),
    "the server asks whether the client lives": (lambda: read(asked_to_live), "upr_noop"),
}

# --- without a thread


class Wire:
    """A connection that is ready, with one stream requested, and granted."""

    def __init__(self, *, granted: bool = True) -> None:
        self.connection = connect()
        self.stream = self.connection.request_stream(StreamRequest(1))
        (asked,) = frames(self.connection.data_to_send())
        self.grant = good_answer(asked).encode()
        if granted:
            self.told(self.grant)

    def told(self, *messages: bytes) -> Moved:
        feed(self.connection, b"".join(messages))
        return counts(self.connection.stats)

    def refused(self, *messages: bytes) -> Moved:
        with pytest.raises(ProtocolError):
            feed(self.connection, b"".join(messages))
        return counts(self.connection.stats)

    def marker(self) -> bytes:
        return SnapshotMarker(1, 0, 900, 1).frame(self.stream.opaque).encode()

    def mutation(self, seqno: int, value: bytes = b"{}") -> bytes:
        return mutation(1, self.stream.opaque, seqno, value=value)

    def closed(self, status: int = 0) -> bytes:
        return response(Opcode.DCP_CLOSE_STREAM, opaque=self.stream.opaque, status=status).encode()


def early(say: Callable[[Wire], bytes]) -> Moved:
    """Something is said of a stream before it was granted."""
    wire = Wire(granted=False)
    return wire.refused(say(wire))


def closed_stream(status: int = 0) -> Moved:
    wire = Wire()
    wire.connection.close_stream(1)
    return wire.told(wire.closed(status))


def granted_twice() -> Moved:
    wire = Wire()
    return wire.refused(wire.grant)


def closed_before_it_was_granted() -> Moved:
    wire = Wire(granted=False)
    wire.connection.close_stream(1)
    assert wire.connection.data_to_send() == b""
    moved = wire.told(wire.grant)
    (close,) = frames(wire.connection.data_to_send())
    assert close.opcode == Opcode.DCP_CLOSE_STREAM
    return moved


def wanted_again_while_it_closes() -> Moved:
    wire = Wire()
    wire.connection.close_stream(1)
    wire.connection.want_stream(StreamRequest(1, 5, vbuuid=22, snap_start=5, snap_end=5))
    (close,) = frames(wire.connection.data_to_send())
    moved = wire.told(wire.closed())
    (again,) = frames(wire.connection.data_to_send())
    assert (close.opcode, again.opcode) == (Opcode.DCP_CLOSE_STREAM, Opcode.DCP_STREAM_REQ)
    return moved


def more_than_a_fifth_of_the_window() -> Moved:
    wire = Wire()
    return wire.told(wire.marker(), wire.mutation(1, b"x" * 300))


SCENARIOS |= {
    "a document before the stream was granted": (
        lambda: early(lambda wire: wire.mutation(1)),
        "upr_data_change_state_err",
    ),
    "a snapshot before the stream was granted": (lambda: early(Wire.marker), "upr_snapshot_state_err"),
    "an end before the stream was granted": (
        lambda: early(lambda wire: StreamEnd(1, 0).frame(wire.stream.opaque).encode()),
        "upr_stream_end_state_err",
    ),
    "a closing that was not asked for": (
        lambda: (wire := Wire()).refused(wire.closed()),
        "upr_close_stream_res upr_close_stream_res_ok upr_close_stream_res_state_err",
    ),
    "a stream granted twice": (granted_twice, "upr_stream_req_res=2 upr_stream_req_res_state_err"),
    "a stream is closed": (closed_stream, "upr_close_stream upr_close_stream_res upr_close_stream_res_ok"),
    "a stream is closed that the server has forgotten": (
        lambda: closed_stream(Status.KEY_ENOENT),
        "upr_close_stream upr_close_stream_res upr_close_stream_res_err",
    ),
    "a stream is closed before it was granted": (
        closed_before_it_was_granted,
        "want_close_requested_vbucket_err upr_close_stream",
    ),
    "a stream is wanted again while it closes": (
        wanted_again_while_it_closes,
        "want_closing_vbucket_err upr_stream_req_want upr_stream_req=2",
    ),
    "a document of more than a fifth of the window": (
        more_than_a_fifth_of_the_window,
        "upr_data_change upr_buffer_ack",
    ),
}

# --- all of it


def started_twice_idle_and_closed() -> Moved:
    with LocalCluster(nodes=2, vbuckets=4, seed=1) as local:
        for key in "abc":
            local.upsert(key, 1)
        local.delete("a")
        local.expire("b")
        receiver = RecordingReceiver()
        source = source_of(local, receiver, seq_end=None)
        with source:
            with pytest.raises(CbframeError):
                source.start()
            with receiver.changed:
                assert receiver.changed.wait_for(lambda: sum(receiver.seqnos.values()) == 5, LONG)
    return source.stats().counts()


SCENARIOS["started twice, idle, and closed"] = (
    started_twice_idle_and_closed,
    """
    start=2 refresh_workers_started refresh_workers_close_worker=2 refresh_workers_loop_done
    refresh_workers_done refresh_cluster_stopped refresh_cluster_done refresh_worker_done=2 worker_done=2
    upr_data_change_mutation upr_data_change_deletion upr_data_change_expiration
    """,
)


def expected(counters: str) -> Moved:
    parts = (each.partition("=") for each in counters.split())
    return {f"tot_{name}": int(count or 1) for name, _, count in parts}


@pytest.mark.parametrize(("scenario", "counters"), SCENARIOS.values(), ids=SCENARIOS)
def test_what_moves_a_counter(scenario: Callable[[], Moved], counters: str) -> None:
    moved, wanted = scenario(), expected(counters)
    assert {counter: moved[counter] for counter in wanted} == wanted


def test_no_counter_is_dead() -> None:
    alive = {name for _, counters in SCENARIOS.values() for name, n in expected(counters).items() if n}
    assert set(COUNTERS) - alive == OWN
