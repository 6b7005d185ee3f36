"""What distinguishes 8.0 beyond the recorded conversations: the rules, in other cases."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import replace

import pytest

from cbframe import ConfigurationError
from cbframe.local import LocalCluster
from cbframe.local.items import inflate
from cbframe.wire.constants import Datatype, Feature, Magic, Opcode, SnapshotFlag, Status, StreamFlag
from cbframe.wire.framing import Frame
from cbframe.wire.messages import DcpControl, DcpOpen, Hello, SnapshotMarker, StreamRequest, split_xattrs

from .client import COLLECTIONS, LEGACY, Client, context, marker, names, snapshot, vbuuid

BRIEF = (*COLLECTIONS, Feature.DUPLEX, Feature.CLUSTERMAP_CHANGE_NOTIFICATION_BRIEF)


@pytest.fixture
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(vbuckets=1, version="8.0", seed=1) as running:
        yield running


def revision(frame: Frame) -> tuple[int, int]:
    epoch, number = struct.unpack(">qq", frame.extras)
    return epoch, number


def test_a_version_that_is_not_reproduced() -> None:
    with pytest.raises(ConfigurationError, match=r"'9\.0' is not reproduced"):
        LocalCluster(version="9.0")  # type: ignore[arg-type]


# ---------------------------------------------------------------------- HELLO


def test_the_first_missing_feature_refuses_the_whole_hello(cluster: LocalCluster) -> None:
    with Client(cluster) as client:
        both = Hello("t", (Feature.GET_RANDOM_KEY_INCLUDE_XATTR, Feature.RANGE_SCAN_INCLUDE_XATTR))
        answer = client.call(both)
        assert (answer.status, context(answer)) == (Status.EINVAL, "RangeScanIncludeXattr needs XATTR")
        # As 7.2 does not know these, it cannot miss anything.
        with LocalCluster(vbuckets=1) as older, Client(older) as other:
            assert other.call(both).status == Status.SUCCESS


def test_answers_are_timed_as_the_newest_hello_says(cluster: LocalCluster) -> None:
    with Client(cluster) as client:
        magics = [client.call(Hello("t", codes)).magic for codes in ((Feature.TRACING,), (), ())]
    assert magics == [Magic.FLEX_RESPONSE, Magic.RESPONSE, Magic.RESPONSE]


def test_requests_in_any_order_exclude_dcp(cluster: LocalCluster) -> None:
    with Client(cluster).login((*COLLECTIONS, Feature.UNORDERED_EXECUTION)) as client:
        assert client.call(DcpOpen("test", 1)).status == Status.NOT_SUPPORTED
    with Client(cluster).login().open() as client:
        answer = client.call(Hello("t", (Feature.UNORDERED_EXECUTION, Feature.XERROR)))
        assert answer.value == struct.pack(">H", Feature.XERROR)


# ---------------------------------------------------------------------- cluster maps


def test_maps_are_pushed_once_and_without_a_body(cluster: LocalCluster) -> None:
    full = Feature.CLUSTERMAP_CHANGE_NOTIFICATION
    with Client(cluster).login((*BRIEF, full)) as client:
        # Of the two kinds of pushes the brief one is granted.
        cluster.create_scope("s")
        bucket, whole = client.receive(), client.receive()
        assert bucket is not None
        assert whole is not None
        assert [(f.magic, f.key, f.value, f.datatype) for f in (bucket, whole)] == [
            (Magic.SERVER_REQUEST, b"default", b"", 0),
            (Magic.SERVER_REQUEST, b"", b"", 0),
        ]
        asked = client.operate(Opcode.GET_CLUSTER_CONFIG)
        found = json.loads(asked.value)
        assert revision(bucket) == revision(whole) == (found["revEpoch"], found["rev"])
        # The map that it was sent is not pushed again.
        cluster._engine._push()
        assert client.next().key == b""


def test_a_map_is_sent_to_those_with_an_older_one(kv: Client) -> None:
    new = json.loads(kv.operate(Opcode.GET_CLUSTER_CONFIG).value)["rev"]
    for epoch, number, comes in ((1, new - 1, True), (1, new, False), (1, new + 1, False), (2, 1, False)):
        if number:
            known = struct.pack(">qq", epoch, number)
            assert bool(kv.operate(Opcode.GET_CLUSTER_CONFIG, extras=known).value) == comes
    for extras, words in ((bytes(16), "must not be less than 1"), (bytes(8), "extras of length 16")):
        answer = kv.operate(Opcode.GET_CLUSTER_CONFIG, extras=extras, expect=Status.EINVAL)
        assert words in context(answer)


def test_the_map_of_a_refusal_comes_once(cluster: LocalCluster) -> None:
    cluster._engine.bucket.map[0] = [-1]

    def refused(client: Client) -> bytes:
        return client.operate(Opcode.GET, key=b"\0k", expect=Status.NOT_MY_VBUCKET).value

    sparing = (*COLLECTIONS, Feature.DEDUPE_NOT_MY_VBUCKET_CLUSTERMAP)
    with Client(cluster).login(sparing) as client:
        assert [bool(refused(client)) for _ in range(2)] == [True, False]
        cluster._engine.bucket.rev += 1
        assert [bool(refused(client)) for _ in range(2)] == [True, False]
        # Selecting the bucket again forgets what was sent; asking for the map counts as having it.
        client.operate(Opcode.SELECT_BUCKET, key=b"default")
        client.operate(Opcode.GET_CLUSTER_CONFIG)
        assert refused(client) == b""
    with Client(cluster).login() as client:
        assert [bool(refused(client)) for _ in range(2)] == [True, True]


def test_maps_are_packed_for_those_who_take_snappy_everywhere(cluster: LocalCluster) -> None:
    with Client(cluster).login((*COLLECTIONS, Feature.SNAPPY_EVERYWHERE)) as client:
        answer = client.operate(Opcode.GET_CLUSTER_CONFIG)
        assert answer.datatype == Datatype.JSON | Datatype.SNAPPY
        assert json.loads(inflate(answer.value, 1 << 20))["name"] == "default"


def test_a_placeholder_refuses_old_clients_otherwise(cluster: LocalCluster) -> None:
    with cluster.config_only():
        with Client(cluster).login((Feature.JSON,)) as client:
            assert client.operate(Opcode.NOOP, expect=Status.NOT_SUPPORTED)
        with Client(cluster).login() as client:
            assert client.operate(Opcode.NOOP, expect=Status.CONFIG_ONLY)
            assert client.operate(0xEE, expect=Status.UNKNOWN_COMMAND)


# ---------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (0x2 | 0x10, 'invalid flags: ["unknown:0x2","unknown:0x10"]'),
        (0x80 | 0x8 | 0x40, 'invalid flags: "PiTR"'),
        (0x100, "IncludeDeletedUserXattrs but not IncludeXattrs"),
    ],
)
def test_dcp_open_says_which_flags_are_unknown(kv: Client, flags: int, words: str) -> None:
    answer = kv.call(DcpOpen("test", 1 | flags))
    assert answer.status == Status.EINVAL
    assert words in context(answer)


@pytest.mark.parametrize(
    ("value", "datatype", "words"),
    [
        (b"", 1, "datatype should be set to RAW"),
        (b"{}", 0, "datatype should be set to JSON for non-empty value"),
        (b"{", 1, "value is not valid JSON"),
        (b"[]", 1, "value must be JSON of type object"),
        (b'{"consumer_name":"x"}', 1, "consumer_name only valid for Consumer connections"),
        (b'{"a":1,"consumer_name":"x"}', 1, "Unsupported JSON property a"),
    ],
)
def test_the_value_of_dcp_open(kv: Client, value: bytes, datatype: int, words: str) -> None:
    frame = replace(DcpOpen("test", 1).frame(), value=value, datatype=datatype)
    answer = kv.call(frame)
    assert (answer.status, context(answer)) == (Status.EINVAL, words)


def test_errors_of_dcp_connections_are_json(cluster: LocalCluster) -> None:
    with Client(cluster).login((Feature.XERROR,)).open() as client:
        answer = client.call(StreamRequest(0, flags=0x200))
    assert answer.datatype == Datatype.JSON
    assert context(answer) == 'Request contains invalid flags: "unknown:0x200"'


def test_stream_requests_are_refused_with_all_their_flags(dcp: Client) -> None:
    answer = dcp.call(StreamRequest(0, flags=0x200 | StreamFlag.DISK_ONLY))
    assert context(answer) == 'Request contains invalid flags: ["DiskOnly","unknown:0x200"]'


@pytest.mark.parametrize(
    ("key", "value", "status"),
    [
        ("set_noop_interval", "0.1", Status.SUCCESS),
        ("set_noop_interval", "0.05", Status.EINVAL),
        ("enable_noop", "maybe", Status.SUCCESS),
        ("flatbuffers_system_events", "false", Status.EINVAL),
        ("v7_dcp_status_codes", "false", Status.EINVAL),
        # As many letters as there are, of some.
        ("enable_e", "true", Status.SUCCESS),
        ("enable_st", "true", Status.EINVAL),
        ("s", "1", Status.NOT_SUPPORTED),
        ("b", "round-robin", Status.SUCCESS),
    ],
)
def test_controls(dcp: Client, key: str, value: str, status: int) -> None:
    assert dcp.call(DcpControl(key, value)).status == status


def test_both_versions_of_the_error_map(kv: Client) -> None:
    asked = [kv.operate(Opcode.GET_ERROR_MAP, value=bytes([0, n])) for n in (1, 2, 9)]
    maps = [json.loads(answer.value) for answer in asked]
    heads = [(found["version"], found["revision"], len(found["errors"])) for found in maps]
    assert heads == [(1, 10, 83), (2, 6, 83), (2, 6, 83)]
    assert maps[1]["errors"]["c"]["name"] == "EWOULD_THROTTLE"
    assert [m["errors"]["c"]["attrs"] for m in maps[:2]] == [
        ["temp", "retry-later"],
        ["temp", "retry-later", "rate-limit"],
    ]


# ---------------------------------------------------------------------- documents


def test_attributes_are_sorted(cluster: LocalCluster) -> None:
    cluster.upsert("a", {}, xattrs={"z": 1, "_s": 2})
    value = b"".join(
        struct.pack(">BBHI", 0xC8, 0x04 | 0x01, len(path), len(text)) + path + text
        for path, text in ((b"y", b'{"b":1,"a":2}'), (b"x.p", b"3"))
    )
    with Client(cluster).login().open(0x4) as client:
        client.operate(Opcode.SUBDOC_MULTI_MUTATION, key=b"\0a", value=value)
        frames = client.read(0, 2)
    found = split_xattrs(frames[1].value).xattrs
    assert [*found.items()] == [("_s", b"2"), ("x", b'{"p":3}'), ("y", b'{"a":2,"b":1}'), ("z", b"1")]


# ---------------------------------------------------------------------- streams


def shown(frames: list[Frame]) -> list[tuple[int, int, int] | str]:
    """Markers as numbers, other messages as names."""
    return [
        marker(frame) if name == "SNAPSHOT_MARKER" else name
        for frame, name in zip(frames, names(frames), strict=True)
    ]


def test_a_checkpoint_begins_where_a_change_may_not_be_left_out(cluster: LocalCluster, dcp: Client) -> None:
    cluster.create_scope("s")
    assert dcp.stream(0).status == Status.SUCCESS
    assert shown(dcp.take(2)) == [(0, 1, 6), "SYSTEM_EVENT"]
    cluster.create_collection("s", "c")
    assert shown(dcp.take(2)) == [(2, 2, 5), "SYSTEM_EVENT"]
    cluster.upsert("k", {})
    assert shown(dcp.take(2)) == [(3, 3, 1), "MUTATION"]
    cluster.create_collection("s", "d")
    assert shown(dcp.take(2)) == [(4, 4, 1), "SYSTEM_EVENT"]
    # The creation of this collection is in the present checkpoint, that of the scope is not.
    cluster.drop_collection("s", "c")
    assert shown(dcp.take(2)) == [(5, 5, 5), "SYSTEM_EVENT"]
    cluster.drop_scope("s")
    assert shown(dcp.take(3)) == [(6, 7, 1), "SYSTEM_EVENT", "SYSTEM_EVENT"]


def test_checkpoints_are_not_mixed_in_a_snapshot(cluster: LocalCluster, dcp: Client) -> None:
    cluster.create_scope("s")
    cluster.create_collection("s", "c")
    cluster.upsert("k", {})
    cluster.upsert("k", {})
    cluster.drop_collection("s", "c")
    cluster.upsert("k", {})
    cluster.hold_in_memory(0, 1)
    assert dcp.stream(0, end=6).status == Status.SUCCESS
    # What a later checkpoint replaces is left out of no earlier one.
    assert shown(dcp.until_end()) == [
        *((0, 4, 5), "SYSTEM_EVENT", "SYSTEM_EVENT", "MUTATION"),
        *((5, 6, 5), "SYSTEM_EVENT", "MUTATION", "STREAM_END"),
    ]


def test_prepared_writes_are_seqnos_to_others(cluster: LocalCluster) -> None:
    cluster.upsert("k", {})
    with Client(cluster).login().open() as client, Client(cluster).login(LEGACY).open(name="old") as old:
        for each in (client, old):
            assert each.stream(0).status == Status.SUCCESS
            assert shown(each.take(2)) == [(0, 1, 6), "MUTATION"]
        cluster.prepare("k", {})
        assert shown(client.take(2)) == [(2, 2, 5), "SEQNO_ADVANCED"]
        cluster.abort("k")
        # The prepared write may not be left out: a checkpoint begins.
        assert shown(client.take(2)) == [(3, 3, 5), "SEQNO_ADVANCED"]
        cluster.upsert("j", {})
        assert shown(client.take(2)) == [(4, 4, 1), "MUTATION"]
        # A checkpoint begins at the newest change before it, of which this client has no marker.
        assert shown(old.take(2)) == [(2, 4, 5), "MUTATION"]


def test_markers_of_sync_writes_are_for_replicas(cluster: LocalCluster) -> None:
    cluster.upsert("k", {})
    cluster.prepare("k", {})
    cluster.commit("k")
    cluster.prepare("j", {})

    def first(**controls: str) -> SnapshotMarker:
        with Client(cluster).login().open(max_marker_version="2.2", **controls) as client:
            assert client.stream(0).status == Status.SUCCESS
            return snapshot(client.next())

    for controls, numbers in (
        ({}, (0, 0, 0, 0)),
        ({"enable_sync_writes": "true"}, (0, 0, 0, 0)),
        ({"consumer_name": "n", "enable_sync_writes": "true"}, (3, 2, 0, 4)),
    ):
        m = first(**controls)
        assert m.version == "v2.2"
        assert (m.max_visible_seqno, m.high_completed_seqno, m.purge_seqno, m.high_prepared_seqno) == numbers


def test_disk_only_and_takeover(cluster: LocalCluster, dcp: Client) -> None:
    cluster.upsert("k", {})
    cluster.hold_in_memory(0, 1)
    frames = dcp.read(0, 9, flags=StreamFlag.DISK_ONLY)
    assert marker(frames[0]) == (0, 1, SnapshotFlag.DISK | SnapshotFlag.CHECKPOINT)
    assert dcp.stream(0, end=1, flags=StreamFlag.TAKEOVER).status == Status.SUCCESS
    assert shown(dcp.take(2)) == [(0, 1, 0xD), "MUTATION"]
    # The vbucket is not handed over before the markers are acknowledged: the stream goes on.
    cluster.upsert("k", {})
    assert shown(dcp.take(2)) == [(2, 2, 0x9), "MUTATION"]


def test_a_collection_that_misses_nothing_that_was_purged(cluster: LocalCluster, dcp: Client) -> None:
    cluster.create_scope("s")
    cid = cluster.create_collection("s", "c")
    cluster.upsert("k", {}, collection=cid)
    for n in range(3):
        cluster.upsert(f"k{n}", {})
    cluster.set_purge_seqno(0, 5)
    of_collection = json.dumps({"collections": [f"{cid:x}"]}).encode()
    for start, value, status in (
        (3, b"", Status.ROLLBACK),
        (3, of_collection, Status.SUCCESS),
        (2, of_collection, Status.ROLLBACK),
    ):
        answer = dcp.call(StreamRequest(0, start, 6, vbuuid(cluster), start, start, value=value))
        assert answer.status == status, (start, value)
        if not answer.status:
            dcp.until_end()


def test_a_filtered_stream_without_anything_on_disk(cluster: LocalCluster, dcp: Client) -> None:
    cluster.create_scope("s")
    cluster.upsert("k", {})
    cid = cluster.create_collection("s", "c")
    of_collection = json.dumps({"collections": [f"{cid:x}"]}).encode()
    cluster.upsert("k", {})

    def read(start: int) -> list[tuple[int, int, int] | str]:
        return shown(dcp.read(0, 4, start, vbuuid=vbuuid(cluster), value=of_collection))

    assert read(0) == [(0, 4, 6), "SYSTEM_EVENT", "SEQNO_ADVANCED", "STREAM_END"]
    # The collection has nothing newer: the file is not looked into.
    assert read(3) == ["STREAM_END"]
    # What was before it was created is not looked for on disk.
    cluster.hold_in_memory(0, 3)
    assert read(0) == [(0, 3, 5), "SYSTEM_EVENT", "STREAM_END"]
