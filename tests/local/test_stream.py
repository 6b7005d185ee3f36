"""Streams that asked for more: out of order, numbered, with history, with sync writes, later markers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cbframe.local import LocalCluster, dcp
from cbframe.wire.constants import MAX_SEQNO, Magic, Opcode, Status, StreamEndReason
from cbframe.wire.framing import Frame, request
from cbframe.wire.messages import CloseStream, DcpControl, SeqnoAdvanced, StreamRequest, parse_message

from .client import (
    COLLECTIONS,
    DATA,
    LEGACY,
    Client,
    marker,
    names,
    noop,
    reason,
    seqno,
    seqnos,
    snapshot,
    vbuuid,
)

ONE = b'{"collections":["0"]}'


# ---------------------------------------------------------------------- out of order


@pytest.fixture
def unsorted(cluster: LocalCluster) -> LocalCluster:
    """Seqnos 1 to 3 in another order than the keys, then a scope and a collection: 4 and 5."""
    for key in "cab":
        cluster.upsert(key, b"1")
    cluster.create_scope("s")
    cluster.create_collection("s", "c")
    return cluster


def test_after_it_the_stream_is_in_order_again(unsorted: LocalCluster) -> None:
    with Client(unsorted).login().open(enable_out_of_order_snapshots="true") as client:
        assert client.stream(0, value=ONE).status == Status.SUCCESS
        assert names(client.take(5))[-1] == "OSO_SNAPSHOT"
        unsorted.upsert("d", b"2")
        first, second = client.take(2)
        assert (marker(first), seqno(second)) == ((5, 6, 5), 6)


@pytest.mark.parametrize(("value", "start"), [(b"", 0), (b'{"collections":["0","8"]}', 0), (ONE, 1)])
def test_in_order_where_that_is_not_allowed(unsorted: LocalCluster, value: bytes, start: int) -> None:
    with Client(unsorted).login().open(enable_out_of_order_snapshots="true") as client:
        frames = client.read(0, 5, start, value=value, vbuuid=vbuuid(unsorted))
    assert marker(frames[0])[1] == 5
    assert seqnos(frames) == [s for s in (1, 2, 3) if s > start]


# ---------------------------------------------------------------------- numbered streams


def sids(frames: list[Frame]) -> set[bytes]:
    return {frame.framing_extras for frame in frames}


def test_two_streams_of_one_vbucket(unsorted: LocalCluster) -> None:
    unsorted.upsert("x", b"1", collection="s.c")
    with Client(unsorted).login().open(enable_stream_id="true") as client:
        first = client.read(0, 6, value=b'{"sid":1,"collections":["0"]}')
        assert client.stream(0, value=b'{"sid":513,"collections":["8"]}').status == Status.SUCCESS
        second = client.take(3)
        assert names(second) == ["SNAPSHOT_MARKER", "SYSTEM_EVENT", "MUTATION"]
        assert (sids(first), sids(second)) == ({b"\x22\0\1"}, {b"\x22\2\1"})
        assert {f.magic for f in first + second} == {Magic.FLEX_REQUEST}
        assert seqnos(first) == [1, 2, 3]
        assert (second[2].key, second[2].value, seqno(second[2])) == (b"\x08x", b"1", 6)
        client.stream(0, value=b'{"sid":2}')
        client.take(7)
        unsorted.upsert("y", b"2", collection="s.c")
        live = client.take(4)
        assert sids([f for f in live if f.opcode in DATA]) == {b"\x22\2\1", b"\x22\0\2"}


def ask(client: Client, *numbers: int, end: int = MAX_SEQNO) -> None:
    """Ask for streams of vbucket 0 with these numbers and opaques, in one go."""
    requests = [StreamRequest(0, end=end, value=b'{"sid":%d}' % sid).frame(sid) for sid in numbers]
    client.sock.sendall(b"".join(frame.encode() for frame in requests))


def test_backfills_of_one_vbucket_come_one_after_another(unsorted: LocalCluster) -> None:
    one = ["SNAPSHOT_MARKER", *["MUTATION"] * 3, *["SYSTEM_EVENT"] * 2]
    with Client(unsorted).login().open(enable_stream_id="true") as client:
        ask(client, 7, 3, 5, end=5)
        answers = client.take(3)
        assert [(f.is_response, f.opaque) for f in answers] == [(True, 7), (True, 3), (True, 5)]
        for sid in (7, 3, 5):
            frames = client.take(7)
            assert names(frames) == [*one, "STREAM_END"]
            assert {(frame.sid, frame.opaque) for frame in frames} == {(sid, sid)}


def test_a_backfill_that_is_closed_makes_way(unsorted: LocalCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dcp, "_BEFORE_BACKFILL", 60.0)
    with Client(unsorted).login().open(enable_stream_id="true") as client:
        ask(client, 7, 3, 5)
        client.take(3)
        # The last while it waits, the first before it has begun.
        for sid in (5, 7):
            assert client.call(CloseStream(0, sid)).status == Status.SUCCESS
        assert [frame.sid for frame in client.take(6)] == [3] * 6


def test_the_number_is_asked_for(unsorted: LocalCluster) -> None:
    with Client(unsorted).login().open(enable_stream_id="true") as client:
        for value in (b"", b'{"collections":["0"]}', b'{"sid":0}', b'{"sid":65536}'):
            assert client.stream(0, value=value).status == Status.DCP_STREAM_ID_INVALID
        assert client.stream(0, value=b'{"sid":"1"}').status == Status.EINVAL
        assert client.stream(0, 5, value=b'{"sid":1}', vbuuid=vbuuid(unsorted)).status == Status.SUCCESS
        assert client.stream(0, value=b'{"sid":1}').status == Status.KEY_EEXISTS
        assert client.call(CloseStream(0)).status == Status.DCP_STREAM_ID_INVALID
        for sid, status in ((7, Status.KEY_ENOENT), (1, Status.SUCCESS)):
            close = request(Opcode.DCP_CLOSE_STREAM, opaque=9)
            close = Frame(Magic.FLEX_REQUEST, close.opcode, 0, 9, framing_extras=bytes((0x22, 0, sid)))
            assert client.call(close).status == status
        assert client.call(DcpControl("enable_sync_writes", "true")).status == Status.NOT_SUPPORTED
    with Client(unsorted).login().open(enable_sync_writes="true") as client:
        assert client.call(DcpControl("enable_stream_id", "true")).status == Status.NOT_SUPPORTED


def test_the_window_counts_the_framing_extras(unsorted: LocalCluster) -> None:
    controls = {"enable_stream_id": "true", "connection_buffer_size": "1"}
    with Client(unsorted).login().open(**controls) as client:
        assert client.stream(0, end=5, value=b'{"sid":1}').status == Status.SUCCESS
        frames = []
        while not frames or frames[-1].opcode != Opcode.DCP_STREAM_END:
            frames += client.take(1)
            # One byte less would stop the stream: each message was counted whole.
            client.ack(len(frames[-1].encode()))
        assert seqnos(frames) == [1, 2, 3]


def test_a_lost_vbucket_ends_all_of_them(unsorted: LocalCluster) -> None:
    with Client(unsorted).login().open(enable_stream_id="true") as client:
        for sid in (1, 2):
            value = b'{"sid":%d}' % sid
            assert client.stream(0, 5, value=value, vbuuid=vbuuid(unsorted)).status == Status.SUCCESS
        unsorted.fail_over(0)
        ends = client.take(2)
        assert {reason(f) for f in ends} == {StreamEndReason.STATE_CHANGED}
        assert sids(ends) == {b"\x22\0\1", b"\x22\0\2"}


# ---------------------------------------------------------------------- system events of version 2


def test_a_modification_is_a_seqno_to_others(unsorted: LocalCluster, dcp: Client) -> None:
    unsorted.modify_collection("s", "c", max_ttl=60)
    frames = dcp.read(0, 6)
    assert names(frames)[-3:] == ["SYSTEM_EVENT", "SEQNO_ADVANCED", "STREAM_END"]
    assert parse_message(frames[-2]) == SeqnoAdvanced(0, 6)


# ---------------------------------------------------------------------- markers


def test_marker_2_2_says_what_was_purged() -> None:
    with LocalCluster(vbuckets=1, marker_version="2.2") as cluster:
        cluster.upsert("a", b"1")
        cluster.upsert("b", b"1")
        cluster.set_purge_seqno(0, 2)
        with Client(cluster).login().open(max_marker_version="2.2") as client:
            assert client.stream(0).status == Status.SUCCESS
            first = snapshot(client.take(3)[0])
            assert (first.version, first.start, first.end) == ("v2.2", 0, 2)
            # The newest visible seqno is for connections with sync writes.
            assert (first.max_visible_seqno, first.purge_seqno, first.high_prepared_seqno) == (0, 2, 0)
            cluster.prepare("c", b"1")
            cluster.upsert("d", b"1")
            assert snapshot(client.take(2)[0]).version == "v1"
        with Client(cluster).login().open(max_marker_version="2.2") as client:
            answer = client.stream(0, 1, vbuuid=vbuuid(cluster))
            assert answer.status == Status.ROLLBACK
            seen = b'{"purge_seqno":"2"}'
            assert client.stream(0, 1, vbuuid=vbuuid(cluster), value=seen).status == Status.SUCCESS
            assert snapshot(client.take(1)[0]).high_prepared_seqno == 3


def test_the_first_snapshot_after_a_backfill_begins_where_that_ended(
    cluster: LocalCluster, dcp: Client
) -> None:
    cluster.upsert("a", b"1")
    assert dcp.stream(0).status == Status.SUCCESS
    dcp.take(2)
    with cluster.stall():
        for version in (b"2", b"3"):
            cluster.upsert("b", version)
    frames = dcp.take(2)
    assert [marker(frames[0])[:2], seqno(frames[1])] == [(2, 3), 3]


def test_forced_compression_needs_snappy(dcp: Client) -> None:
    answer = dcp.call(DcpControl("force_value_compression", "true"))
    assert answer.status == Status.EINVAL
    assert b'"context":"The ctrl parameter force_value_compression is only supported' in answer.value


@pytest.fixture
def deleted() -> Iterator[LocalCluster]:
    """An 8.0 cluster with one document, and one that was deleted."""
    with LocalCluster(vbuckets=1, version="8.0") as cluster:
        cluster.upsert("kept", {"x": 1}, flags=7)
        cluster.upsert("gone", b"1")
        cluster.delete("gone")
        yield cluster


def kinds(cluster: LocalCluster, flags: int, features: tuple[int, ...] = COLLECTIONS) -> list[str]:
    with Client(cluster).login(features).open(flags) as client:
        assert client.stream(0, end=3).status == Status.SUCCESS
        return names(client.take(3))[1:]


def test_a_key_only_backfill_of_8_0_has_deleted_documents(deleted: LocalCluster) -> None:
    assert kinds(deleted, 0x1 | 0x8) == ["MUTATION", "MUTATION"]
    assert kinds(deleted, 0x1 | 0x8, LEGACY) == ["MUTATION", "MUTATION"]


def test_other_streams_of_8_0_have_deletions(deleted: LocalCluster) -> None:
    for flags in (0x1, 0x1 | 0x40, 0x1 | 0x4 | 0x8, 0x1 | 0x4 | 0x40):
        assert kinds(deleted, flags) == ["MUTATION", "DELETION"]
    deleted.hold_in_memory(0, 1)
    assert kinds(deleted, 0x1 | 0x8) == ["MUTATION", "DELETION"]


# ---------------------------------------------------------------------- history


@pytest.fixture
def history() -> Iterator[LocalCluster]:
    with LocalCluster(vbuckets=1, history=True) as cluster:
        yield cluster


def test_every_version_of_a_document(history: LocalCluster) -> None:
    history.upsert("a", b"1")
    history.upsert("a", b"2")
    history.delete("a")
    with Client(history).login().open(change_streams="true") as client:
        assert client.stream(0).status == Status.SUCCESS
        frames = client.take(4)
        assert marker(frames[0]) == (0, 3, 0x36)
        assert seqnos(frames) == [1, 2, 3]
        assert [f.value for f in frames[1:]] == [b"1", b"2", b""]
        history.upsert("a", b"3")
        assert marker(client.take(2)[0]) == (4, 4, 0x35)
    with Client(history).login().open() as client:
        frames = client.read(0, 4)
        assert marker(frames[0])[2] == 6
        assert seqnos(frames) == [4]


def test_a_dropped_collection_has_no_history(history: LocalCluster) -> None:
    history.create_collection("_default", "c")
    history.upsert("a", b"1", collection="c")
    history.upsert("a", b"2", collection="c")
    history.drop_collection("_default", "c")
    with Client(history).login().open(change_streams="true") as client:
        assert names(client.read(0, 4))[1:] == ["SYSTEM_EVENT", "SYSTEM_EVENT", "STREAM_END"]


def test_history_needs_a_bucket_with_history(dcp: Client) -> None:
    assert dcp.call(DcpControl("change_streams", "true")).status == Status.NOT_SUPPORTED


# ---------------------------------------------------------------------- memory and disk


def test_what_is_in_memory_comes_in_snapshots_of_its_own(cluster: LocalCluster, dcp: Client) -> None:
    for key in "abcd":
        cluster.upsert(key, b"1")
    cluster.hold_in_memory(0, 3)
    frames = dcp.read(0, 4)
    assert [marker(f) for f in frames if f.opcode == Opcode.DCP_SNAPSHOT_MARKER] == [(0, 2, 6), (3, 4, 5)]
    assert seqnos(frames) == [1, 2, 3, 4]
    assert marker(dcp.read(0, 4, 2, vbuuid=vbuuid(cluster))[0]) == (2, 4, 5)
    # The snapshot that contains the end is sent whole.
    assert seqnos(dcp.read(0, 1)) == [1, 2]
    cluster.hold_in_memory(0, None)
    assert marker(dcp.read(0, 4)[0]) == (0, 4, 6)


def test_a_damaged_file(cluster: LocalCluster, dcp: Client) -> None:
    cluster.upsert("a", b"1")
    cluster.corrupt(0)
    frames = dcp.read(0, 1)
    assert (names(frames), reason(frames[0])) == (["STREAM_END"], StreamEndReason.BACKFILL_FAIL)
    assert reason(dcp.read(0, 1, 1, vbuuid=vbuuid(cluster))[0]) == StreamEndReason.OK
    cluster.mend(0)
    assert seqnos(dcp.read(0, 1)) == [1]


# ---------------------------------------------------------------------- sync writes


def test_prepared_writes_are_for_those_who_ask(cluster: LocalCluster) -> None:
    with (
        Client(cluster).login().open(enable_sync_writes="true", name="s") as asks,
        Client(cluster).login().open(name="c") as other,
        Client(cluster).login(LEGACY).open(name="l") as legacy,
    ):
        for client in (asks, other, legacy):
            assert client.stream(0).status == Status.SUCCESS
        assert cluster.prepare("a", b"1") == 1
        assert cluster.get("a") is None
        assert names(asks.take(2)) == ["SNAPSHOT_MARKER", "PREPARE"]
        for client in (other, legacy):
            assert client.call(noop()).opcode == Opcode.NOOP, "nothing came before the answer"
        assert cluster.commit("a") == 2
        assert cluster.get("a") == b"1"
        first, commit = asks.take(2)
        assert (marker(first), names([commit])) == ((2, 2, 1), ["COMMIT"])
        assert (commit.extras, commit.key) == (bytes((*bytes(7), 1, *bytes(7), 2)), b"\0a")
        for client in (other, legacy):
            assert seqnos(client.take(2)) == [2]
        cluster.prepare("a", None)
        cluster.abort("a")
        cluster.upsert("b", b"2")
        # Into how many snapshots they are divided depends on how fast the writes were.
        rest = asks.take(4)
        asks.send(DcpControl("supports_hifi_MFU", "true"))
        while not (frame := asks.next()).is_response:
            rest.append(frame)
        assert {"PREPARE", "ABORT", "MUTATION"} <= set(names(rest))
        for client in (other, legacy):
            assert seqnos(client.take(2)) == [5]


def test_sync_writes_without_collections_cannot_be_read_from_disk(cluster: LocalCluster) -> None:
    cluster.upsert("a", b"1")
    with Client(cluster).login(LEGACY).open(enable_sync_writes="true") as client:
        assert seqnos(client.read(0, 1)) == [1]
        cluster.create_scope("s")
        assert reason(client.read(0, 1)[0]) == StreamEndReason.BACKFILL_FAIL


def test_a_durable_write_is_prepared_and_committed(cluster: LocalCluster, kv: Client) -> None:
    write = Frame(Magic.FLEX_REQUEST, Opcode.SET, 0, 9, 0, 0, bytes(8), b"\0k", b"1", b"\x11\x02")
    delete = Frame(Magic.FLEX_REQUEST, Opcode.DELETE, 0, 9, key=b"\0k", framing_extras=b"\x11\x01")
    with Client(cluster).login().open(enable_sync_writes="true") as client:
        assert client.stream(0, end=4).status == Status.SUCCESS
        assert kv.call(write).status == Status.SUCCESS
        assert kv.call(delete).status == Status.SUCCESS
        data = [f for f in client.until_end() if f.opcode != Opcode.DCP_SNAPSHOT_MARKER]
        prepares = [f for f in data if f.opcode == Opcode.DCP_PREPARE]
        assert [(f.extras[30], f.extras[29]) for f in prepares] == [(2, 0), (1, 1)]
        cluster.prepare("k", b"2")
        plain = request(Opcode.SET, opaque=9, key=b"\0k", extras=bytes(8), value=b"3")
        assert kv.call(plain).status == Status.SYNC_WRITE_IN_PROGRESS
        cluster.abort("k")
        assert kv.call(plain).status == Status.SUCCESS


def test_a_fork_keeps_what_was_prepared_before(cluster: LocalCluster) -> None:
    cluster.prepare("a", b"1")
    cluster.commit("a")
    cluster.roll_back(0, 1)
    assert cluster.get("a") is None
    assert cluster.commit("a") == 2
    assert cluster.get("a") == b"1"
