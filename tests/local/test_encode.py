"""How one and the same change looks on connections that asked for different things."""

from __future__ import annotations

import json

import pyarrow as pa
import pytest

from cbframe.local import LocalCluster
from cbframe.wire.constants import Datatype, Feature, Opcode, OpenFlag, Status
from cbframe.wire.framing import Frame, request
from cbframe.wire.messages import DcpControl, split_xattrs

from .client import COLLECTIONS, DATA, LEGACY, Client

SNAPPY = (*COLLECTIONS, Feature.SNAPPY)
LONG = json.dumps({"pad": "x" * 300}).encode()
PLAIN, PACKED = Datatype.JSON, Datatype.JSON | Datatype.SNAPPY


def unpack(frame: Frame) -> bytes:
    if not frame.datatype & Datatype.SNAPPY:
        return frame.value
    size, shift, at = 0, 0, 0
    while True:
        size |= (frame.value[at] & 0x7F) << shift
        if frame.value[at] < 0x80:
            break
        at, shift = at + 1, shift + 7
    return bytes(pa.Codec("snappy").decompress(frame.value, size, asbytes=True))


def documents(client: Client, cluster: LocalCluster) -> list[Frame]:
    return [f for f in client.read(0, cluster.high_seqnos()[0]) if f.opcode in DATA]


@pytest.mark.parametrize("collections", [False, True])
def test_packed_and_plain_mixed(cluster: LocalCluster, collections: bool) -> None:
    cluster.upsert("plain", LONG)
    cluster.upsert("packed", LONG, compress=True)
    base = COLLECTIONS if collections else LEGACY
    for features, datatypes in (((*base, Feature.SNAPPY), [PLAIN, PACKED]), (base, [PLAIN, PLAIN])):
        with Client(cluster).login(features).open() as client:
            sent = documents(client, cluster)
        assert [f.datatype for f in sent] == datatypes
        assert [unpack(f) for f in sent] == [LONG, LONG]
        assert [f.key[collections:] for f in sent] == [b"plain", b"packed"]
    assert cluster.get("packed") == LONG


def test_force_packs_what_gets_smaller(cluster: LocalCluster) -> None:
    cluster.upsert("short", b"{}")
    cluster.upsert("long", LONG)
    with Client(cluster).login(SNAPPY).open(force_value_compression="true") as client:
        sent = documents(client, cluster)
    assert [f.datatype for f in sent] == [PLAIN, PACKED]
    assert len(sent[1].value) < len(LONG)
    assert [unpack(f) for f in sent] == [b"{}", LONG]


def test_force_needs_snappy(cluster: LocalCluster) -> None:
    with Client(cluster).login().open() as client:
        assert client.call(DcpControl("force_value_compression", "true")).status == Status.EINVAL


def test_attributes_inside_a_packed_value(cluster: LocalCluster) -> None:
    cluster.upsert("a", LONG, xattrs={"_sync": {"rev": 1}}, compress=True)
    with Client(cluster).login(SNAPPY).open(OpenFlag.INCLUDE_XATTRS) as client:
        (whole,) = documents(client, cluster)
    assert whole.datatype == PACKED | Datatype.XATTR
    assert split_xattrs(unpack(whole)).body == LONG
    with Client(cluster).login(SNAPPY).open() as client:
        (body,) = documents(client, cluster)
    assert (body.datatype, body.value) == (PLAIN, LONG)
    with Client(cluster).login(SNAPPY).open(OpenFlag.INCLUDE_XATTRS | OpenFlag.NO_VALUE) as client:
        (section,) = documents(client, cluster)
    assert section.datatype == Datatype.XATTR
    assert split_xattrs(section.value).xattrs == {"_sync": b'{"rev":1}'}
    cluster.delete("a")
    with Client(cluster).login(SNAPPY).open(OpenFlag.INCLUDE_XATTRS) as client:
        (tombstone,) = documents(client, cluster)
    assert (tombstone.datatype, split_xattrs(tombstone.value).xattrs["_sync"]) == (4, b'{"rev":1}')


@pytest.mark.parametrize(("features", "datatype"), [(SNAPPY, PACKED), (COLLECTIONS, PLAIN)])
def test_underlying_datatype_is_the_stored_one(
    cluster: LocalCluster, features: tuple[int, ...], datatype: int
) -> None:
    cluster.upsert("a", LONG, compress=True)
    with Client(cluster).login(features).open(OpenFlag.NO_VALUE_WITH_UNDERLYING_DATATYPE) as client:
        (sent,) = documents(client, cluster)
    assert (sent.datatype, sent.value) == (datatype, b"")


def test_what_a_client_sent_packed_is_stored_so(cluster: LocalCluster) -> None:
    block = bytes(pa.Codec("snappy").compress(LONG, asbytes=True))
    with Client(cluster).login(SNAPPY) as client:
        write = request(Opcode.SET, key=b"\0k", extras=bytes(8), value=block, datatype=int(PACKED))
        assert client.call(write).status == Status.SUCCESS
    assert cluster.get("k") == LONG
    with Client(cluster).login(SNAPPY).open() as client:
        (sent,) = documents(client, cluster)
    assert (sent.datatype, sent.value) == (PACKED, block)
