"""What an embedding program may do itself: describe the bucket, connect, log; and look inside."""

from __future__ import annotations

import logging
import socket
from typing import Any

import pytest

import cbframe
from cbframe.dcp.connection import DcpConnection
from cbframe.dcp.messages import UPDATE_SECURITY_SETTINGS
from cbframe.errors import CbframeError, ConfigurationError, ConnectError
from cbframe.local import LocalCluster
from cbframe.testing import RecordingReceiver
from cbframe.wire.constants import Status

from .rig import Rig, refusing, serving
from .server import LOGIN, SETTINGS
from .test_source import LONG, source_of, unreachable, until


def dial(protocol: str, address: str) -> socket.socket:
    assert protocol == "tcp"
    host, _, port = address.rpartition(":")
    return socket.create_connection((host, int(port)), LONG)


def test_an_own_connect_and_connect_bucket() -> None:
    with LocalCluster(nodes=2, vbuckets=4, seed=1) as cluster:
        cluster.upsert("a", {"n": 1})
        dialled: list[str] = []
        asked: list[tuple[str, ...]] = []

        def connect(protocol: str, address: str) -> socket.socket:
            dialled.append(address)
            return dial(protocol, address)

        def connect_bucket(url: str, pool: str, bucket: str, auth: Any) -> Any:
            asked.append((url, pool, bucket))
            return cbframe.connect_bucket(url, pool, bucket, auth)

        receiver = RecordingReceiver()
        seeds = cluster.rest_urls
        hooks: dict[str, Any] = {"connect": connect, "connect_bucket": connect_bucket}
        source = source_of(cluster, receiver, seeds=seeds, **hooks)
        with source:
            source.wait(LONG)
        assert receiver.values() == {b"a": b'{"n":1}'}
        assert asked[0] == (seeds[0], "default", cluster.bucket)
        assert source.map is not None
        assert set(dialled) == set(source.map.nodes)


def test_a_connect_bucket_that_fails_is_told_of_first() -> None:
    def connect_bucket(*arguments: object) -> None:
        raise LookupError("nobody there")

    receiver = RecordingReceiver()
    source = unreachable(receiver, connect_bucket=connect_bucket)
    with source:
        until(receiver, lambda: bool(receiver.errors))
    assert isinstance(receiver.errors[0], ConnectError)
    assert "raised LookupError" in str(receiver.errors[0])


def test_a_connect_that_is_refused() -> None:
    def connect(protocol: str, address: str) -> socket.socket:
        raise ConnectionRefusedError(111, "Connection refused")

    with LocalCluster(vbuckets=1) as cluster:
        receiver = RecordingReceiver()
        options: dict[str, Any] = {"connect": connect, "connect_timeout": 0.5}
        with source_of(cluster, receiver, **options) as source, pytest.raises(CbframeError):
            source.wait(LONG)
    assert "Connection refused" in str(receiver.errors[0])


def test_one_of_two_tls_settings() -> None:
    with pytest.raises(ConfigurationError, match="give one"):
        unreachable(RecordingReceiver(), "couchbases://h", tls="ca.pem", tls_config="ca.pem")


def test_other_security_settings_make_all_connections_anew() -> None:
    with LocalCluster(nodes=2, vbuckets=4, seed=1) as cluster:
        receiver = RecordingReceiver()
        with source_of(cluster, receiver, seq_end=None) as source:
            cluster.upsert("a", {"n": 1})
            until(receiver, lambda: b"a" in receiver.values())
            source.kick(UPDATE_SECURITY_SETTINGS)
            until(receiver, lambda: len(receiver.errors) >= 2)
            cluster.upsert("b", {"n": 2})
            until(receiver, lambda: b"b" in receiver.values())
            stats = source.stats()
    assert stats.tot_refresh_workers_security_updates == 1
    assert stats.tot_refresh_workers_remove_worker == 2
    assert {error.node for error in receiver.errors} == set(stats.nodes)


def test_a_look_inside(caplog: pytest.LogCaptureFixture) -> None:
    with LocalCluster(nodes=2, vbuckets=4, seed=1) as cluster:
        receiver = RecordingReceiver()
        logger = logging.getLogger("of.the.program")
        with caplog.at_level(logging.DEBUG, logger.name):
            with source_of(cluster, receiver, seq_end=None, logger=logger) as source:
                for n in range(40):
                    cluster.upsert(f"secret-key-{n}", {"n": n})
                until(receiver, lambda: receiver.seqnos == cluster.high_seqnos())
                states = source.vbucket_states()
                assert {vb: state.seqno for vb, state in states.items()} == cluster.high_seqnos()
                written = 3
                assert states[written].state == "running"
                assert states[written].snap_saved
                assert states[written].failover_log == tuple(cluster.failover_log(written))
                assert any("Opened" in line for line in source.trace()[states[written].node])
                cluster.cut(0)
                until(receiver, lambda: bool(receiver.errors))
            assert source.vbucket_states() == {}
        assert {record.name for record in caplog.records} == {logger.name}
        assert "before that: connected" in caplog.text
        assert "secret-key" not in caplog.text
        assert cluster.password not in caplog.text


def test_no_trace_is_kept_without_capacity() -> None:
    rig = Rig(serving(), trace_capacity=0)
    rig.run((1, 3))
    assert rig.thread.trace.lines() == []


def test_a_rollback_names_the_history_that_remains() -> None:
    """Regression: the vbuuid was always 0, since a refused stream has no failover log."""
    told: list[tuple[int, int, int]] = []

    class Receiver(RecordingReceiver):
        def rollback_ex(self, vbucket: int, vbuuid: int, seqno: int) -> None:
            told.append((vbucket, vbuuid, seqno))

    receiver = Receiver()
    Rig(serving(), receiver).run((1, 3))  # under the failover log [(22, 5), (11, 0)]
    for seqno in (2, 0):
        Rig(refusing(Status.ROLLBACK, seqno.to_bytes(8, "big")), receiver).run((1, 9))
    receiver.seqnos[1] = 9
    Rig(refusing(Status.ROLLBACK, (6).to_bytes(8, "big")), receiver).run((1, 9))
    assert told == [(1, 11, 2), (1, 0, 0), (1, 22, 6)]


def test_the_connection_counts_for_itself_if_nobody_else_does() -> None:
    connection = DcpConnection(LOGIN, SETTINGS)
    assert connection.data_to_send()
    assert (connection.handed, connection.stats.tot_worker_transmit) == (3, 3)
