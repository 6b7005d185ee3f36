from __future__ import annotations

import contextlib
import json
import socket
import struct

import pytest

from cbframe.local import LocalCluster
from cbframe.wire.constants import Feature, Opcode, Status
from cbframe.wire.framing import Frame
from cbframe.wire.messages import (
    GetAllVBucketSeqnos,
    Hello,
    SaslAuth,
    SelectBucket,
    parse_vbucket_seqnos,
    vbucket_of,
)

from .client import COLLECTIONS, LEGACY, TIMEOUT, Client, context, noop


def test_plain_and_unknown_mechanisms(cluster: LocalCluster) -> None:
    with Client(cluster) as client:
        mechanisms = client.call(noop(Opcode.SASL_LIST_MECHS)).value
        assert mechanisms == b"SCRAM-SHA512 SCRAM-SHA256 SCRAM-SHA1 PLAIN"
        assert client.plain(cluster.username, "wrong") == Status.AUTH_ERROR
        assert client.plain("nobody", cluster.password) == Status.AUTH_ERROR
        assert client.call(SaslAuth("CRAM-MD5", b"")).status == Status.AUTH_ERROR
        assert client.call(SaslAuth("SCRAM-SHA1", b"y,,n=u,r=x")).status == Status.EINVAL
        assert client.call(SaslAuth("SCRAM-SHA1", b"", Opcode.SASL_STEP)).status == Status.EINVAL
        assert client.plain(cluster.username, cluster.password) == Status.SUCCESS


def test_nothing_before_authentication(cluster: LocalCluster) -> None:
    with Client(cluster) as client:
        for opcode in (
            *(Opcode.SELECT_BUCKET, Opcode.DCP_OPEN, Opcode.GET, Opcode.GET_CLUSTER_CONFIG, Opcode.NOOP),
            *(Opcode.VERSION, Opcode.GET_ALL_VB_SEQNOS),
        ):
            assert client.call(noop(opcode)).status == Status.EACCESS, opcode


def test_hello_grants_sorted_and_replaces(cluster: LocalCluster) -> None:
    with Client(cluster) as client:
        granted = client.call(Hello("t", (0x12, 0x0A, 0x0C, 0x99, 0x07, 0x03)))
        assert granted.value.hex() == "00030007000a000c0012"
        assert client.call(Hello("t", (Feature.JSON,))).value.hex() == "000b"
        needs = client.call(Hello("t", (Feature.VATTR,)))
        assert (needs.status, context(needs)) == (Status.EINVAL, "VAttr needs XATTR")
        assert client.call(Frame(0x80, Opcode.HELLO, value=b"\0")).status == Status.EINVAL


def test_select_bucket(cluster: LocalCluster) -> None:
    with Client(cluster).login(select=False) as client:
        assert client.call(noop(Opcode.GET_ALL_VB_SEQNOS)).status == Status.NO_BUCKET
        assert client.call(SelectBucket("other")).status == Status.KEY_ENOENT
        config = json.loads(client.call(noop(Opcode.GET_CLUSTER_CONFIG)).value)
        assert "vBucketServerMap" not in config
        assert config["nodesExt"]
        assert client.call(SelectBucket("default")).status == Status.SUCCESS
        answer = client.call(noop(Opcode.GET_CLUSTER_CONFIG))
        assert answer.datatype == 1
        assert json.loads(answer.value)["vBucketServerMap"]["vBucketMap"] == [[0]]


def test_small_commands(kv: Client) -> None:
    assert kv.call(noop()).status == Status.SUCCESS
    assert kv.call(noop(Opcode.VERSION)).value.startswith(b"7.2")
    assert json.loads(kv.call(noop(Opcode.GET_ERROR_MAP)).value)["errors"]["7"]
    assert kv.call(noop(0xEE)).status == Status.UNKNOWN_COMMAND
    manifest = json.loads(kv.call(noop(Opcode.COLLECTIONS_GET_MANIFEST)).value)
    assert manifest["scopes"][0]["collections"][0]["uid"] == "0"
    assert kv.operate(Opcode.COLLECTIONS_GET_ID, value=b"_default._default").extras == bytes(12)
    kv.operate(Opcode.COLLECTIONS_GET_ID, value=b"_default.no", expect=Status.UNKNOWN_COLLECTION)
    kv.operate(Opcode.COLLECTIONS_GET_ID, value=b"no.no", expect=Status.UNKNOWN_SCOPE)
    assert kv.call(noop(Opcode.QUIT)).status == Status.SUCCESS
    assert kv.closed_by_server()


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n" + bytes(24),
        struct.pack(">BBHBBHIIQ", 0x80, 0, 0, 0, 0, 0, (30 << 20) + 1, 0, 0),
        struct.pack(">BBHBBHIIQ", 0x80, 0, 9, 0, 0, 0, 3, 0, 0) + b"abc",
    ],
    ids=["magic", "too long", "key beyond body"],
)
def test_broken_frames_close_the_connection(cluster: LocalCluster, data: bytes) -> None:
    host, port = cluster.kv_addresses[0].split(":")
    with socket.create_connection((host, int(port)), TIMEOUT) as sock:
        sock.sendall(data)
        with contextlib.suppress(ConnectionResetError):
            assert sock.recv(1) == b""


def test_pipelined_requests_are_answered_in_order_byte_by_byte(kv: Client) -> None:
    frames = [Frame(0x80, Opcode.NOOP, opaque=n) for n in (7, 8, 9)]
    for byte in b"".join(frame.encode() for frame in frames):
        kv.sock.sendall(bytes((byte,)))
    assert [answer.opaque for answer in kv.take(3)] == [7, 8, 9]


@pytest.mark.parametrize(("features", "prefix"), [(COLLECTIONS, b"\0"), (LEGACY, b"")])
def test_documents(cluster: LocalCluster, features: tuple[int, ...], prefix: bytes) -> None:
    key, extras = prefix + b"doc", struct.pack(">II", 0x02000000, 0)
    with Client(cluster).login(features) as client:
        client.operate(Opcode.GET, key=key, expect=Status.KEY_ENOENT)
        client.operate(Opcode.REPLACE, key=key, extras=extras, value=b"1", expect=Status.KEY_ENOENT)
        added = client.operate(Opcode.ADD, key=key, extras=extras, value=b'{"a":1}')
        uuid, seqno = struct.unpack(">QQ", added.extras)
        assert (uuid, seqno) == (cluster.failover_log(0)[0][0], 1)
        client.operate(Opcode.ADD, key=key, extras=extras, value=b"2", expect=Status.KEY_EEXISTS)
        got = client.operate(Opcode.GET, key=key)
        assert (got.value, got.extras, got.cas, got.datatype) == (b'{"a":1}', extras[:4], added.cas, 1)
        stored = client.operate(Opcode.SET, key=key, extras=extras, value=b"\xff")
        assert stored.cas > added.cas
        assert client.operate(Opcode.GET, key=key).datatype == 0
        client.operate(
            Opcode.SET, key=key, extras=extras, value=b"3", cas=added.cas, expect=Status.KEY_EEXISTS
        )
        client.operate(Opcode.REPLACE, key=key, extras=extras, value=b"3", cas=stored.cas)
        meta = client.operate(Opcode.GET_META, key=key, extras=b"\x02").extras
        assert struct.unpack(">IIIQB", meta) == (0, 0x02000000, 0, 3, 1)
        client.operate(Opcode.DELETE, key=key)
        client.operate(Opcode.DELETE, key=key, expect=Status.KEY_ENOENT)
        assert cluster.item_count() == 0
        assert cluster.high_seqnos() == {0: 4}


def test_documents_have_limits(kv: Client) -> None:
    kv.operate(Opcode.GET, key=b"", expect=Status.EINVAL)
    kv.operate(Opcode.GET, key=b"\0", expect=Status.EINVAL)
    kv.operate(Opcode.GET, key=b"\0" + b"k" * 251, expect=Status.EINVAL)
    kv.operate(Opcode.SET, key=b"\0k", value=b"1", expect=Status.EINVAL)
    kv.operate(Opcode.GET, key=b"\x09k", expect=Status.UNKNOWN_COLLECTION)


def test_an_expired_document_is_gone_upon_access(cluster: LocalCluster, kv: Client) -> None:
    cluster.upsert("doc", {}, expiry=1_000_000_000)
    kv.operate(Opcode.GET, key=b"\0doc", expect=Status.KEY_ENOENT)
    assert cluster.high_seqnos() == {0: 2}


def test_mutation_token_only_if_asked(cluster: LocalCluster) -> None:
    with Client(cluster).login((Feature.XERROR,)) as client:
        assert client.operate(Opcode.SET, key=b"k", extras=bytes(8), value=b"1").extras == b""


def test_vbuckets_of_other_nodes() -> None:
    with LocalCluster(nodes=2, vbuckets=4, replicas=1) as cluster, Client(cluster, node=1).login() as client:
        wrong = client.operate(Opcode.GET, key=b"\0k", vbucket=0, expect=Status.NOT_MY_VBUCKET)
        assert json.loads(wrong.value)["vBucketServerMap"]["vBucketMap"] == [[0, 1], [0, 1], [1, 0], [1, 0]]
        client.operate(Opcode.GET, key=b"\0k", vbucket=4, expect=Status.NOT_MY_VBUCKET)
        client.operate(Opcode.GET, key=b"\0k", vbucket=3, expect=Status.KEY_ENOENT)
        by_state = {
            state: set(parse_vbucket_seqnos(client.call(GetAllVBucketSeqnos(state)).value))
            for state in (0, 1, 2, 4)
        }
        assert by_state == {0: {0, 1, 2, 3}, 1: {2, 3}, 2: {0, 1}, 4: set()}


def test_vbucket_details(cluster: LocalCluster, kv: Client) -> None:
    """Of what is there now: older versions and deleted documents are no items."""

    def details() -> dict[bytes, bytes]:
        kv.send(Frame(0x80, Opcode.STAT, key=b"vbucket-details 0"))
        lines = {}
        while (frame := kv.next()).key:
            lines[frame.key] = frame.value
        return lines

    empty = details()
    assert empty[b"vb_0"] == b"active"
    assert (empty[b"vb_0:num_items"], empty[b"vb_0:db_data_size"]) == (b"0", b"0")
    for document, low, high in (({"text": "x" * 10_000}, 10_000, 10_200), ({}, 0, 100)):
        cluster.upsert("only", document)
        found = details()
        assert found[b"vb_0:num_items"] == b"1"
        assert low < int(found[b"vb_0:db_data_size"]) < high
    cluster.delete("only")
    gone = details()
    assert gone[b"vb_0:num_items"] == b"0"
    assert gone[b"vb_0:high_seqno"] == gone[b"vb_0:max_visible_seqno"] == b"3"


def test_keys_live_where_the_hash_says() -> None:
    with LocalCluster(vbuckets=48) as cluster:
        for key in ("hello", "été", "日本"):
            cluster.upsert(key, b"1")
            assert cluster.high_seqnos()[vbucket_of(key.encode(), 48)] == 1
