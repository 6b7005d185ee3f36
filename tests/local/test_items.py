"""Stored frames as connections get them; FlatBuffers and Snappy as others write and read them."""

from __future__ import annotations

import json
import random
import struct

import pyarrow as pa
import pytest

from cbframe.errors import ProtocolError
from cbframe.local import LocalCluster
from cbframe.local.items import deflate, event_value, inflate
from cbframe.wire.constants import Datatype, Feature, Opcode, OpenFlag, Status, SystemEventId
from cbframe.wire.framing import Frame, request
from cbframe.wire.messages import split_xattrs

from .client import COLLECTIONS, DATA, LEGACY, Client
from .replay import frames

SNAPPY = (*COLLECTIONS, Feature.SNAPPY)
LONG = json.dumps({"pad": "x" * 300}).encode()
PLAIN, PACKED = Datatype.JSON, Datatype.JSON | Datatype.SNAPPY


def unpack(frame: Frame) -> bytes:
    return inflate(frame.value, 1 << 20) if frame.datatype & Datatype.SNAPPY else frame.value


def documents(cluster: LocalCluster, features: tuple[int, ...], flags: int = 0) -> list[Frame]:
    with Client(cluster).login(features).open(flags) as client:
        return [f for f in client.read(0, cluster.high_seqnos()[0]) if f.opcode in DATA]


def document(cluster: LocalCluster, flags: int = 0) -> Frame:
    """The only one, as it is sent to who takes Snappy."""
    (found,) = documents(cluster, SNAPPY, flags)
    return found


@pytest.mark.parametrize("collections", [False, True])
def test_packed_and_plain_mixed(cluster: LocalCluster, collections: bool) -> None:
    cluster.upsert("plain", LONG)
    cluster.upsert("packed", LONG, compress=True)
    base = COLLECTIONS if collections else LEGACY
    for features, datatypes in (((*base, Feature.SNAPPY), [PLAIN, PACKED]), (base, [PLAIN, PLAIN])):
        sent = documents(cluster, features)
        assert [f.datatype for f in sent] == datatypes
        assert [unpack(f) for f in sent] == [LONG, LONG]
        assert [f.key[collections:] for f in sent] == [b"plain", b"packed"]
    assert cluster.get("packed") == LONG


def test_attributes_inside_a_packed_value(cluster: LocalCluster) -> None:
    cluster.upsert("a", LONG, xattrs={"_sync": {"rev": 1}}, compress=True)
    whole = document(cluster, OpenFlag.INCLUDE_XATTRS)
    assert whole.datatype == PACKED | Datatype.XATTR
    assert split_xattrs(unpack(whole)).body == LONG
    body = document(cluster)
    assert (body.datatype, body.value) == (PLAIN, LONG)
    section = document(cluster, OpenFlag.INCLUDE_XATTRS | OpenFlag.NO_VALUE)
    assert section.datatype == Datatype.XATTR
    assert split_xattrs(section.value).xattrs == {"_sync": b'{"rev":1}'}
    cluster.delete("a")
    tombstone = document(cluster, OpenFlag.INCLUDE_XATTRS)
    assert (tombstone.datatype, split_xattrs(tombstone.value).xattrs["_sync"]) == (4, b'{"rev":1}')


def test_what_a_client_sent_packed_is_stored_so(cluster: LocalCluster) -> None:
    block = bytes(pa.Codec("snappy").compress(LONG, asbytes=True))
    with Client(cluster).login(SNAPPY) as client:
        write = request(Opcode.SET, key=b"\0k", extras=bytes(8), value=block, datatype=int(PACKED))
        assert client.call(write).status == Status.SUCCESS
    assert cluster.get("k") == LONG
    sent = document(cluster)
    assert (sent.datatype, sent.value) == (PACKED, block)


def test_the_bytes_of_the_real_node() -> None:
    """Two conversations have the events of one vbucket: numbers alone, and as FlatBuffers (version 2)."""
    plain, packed = (
        [f for f in frames(f"disk_coll_events.{n}", "s2c") if f.opcode == Opcode.DCP_SYSTEM_EVENT]
        for n in (0, 1)
    )
    seen = set()
    for numbers, real in zip(plain, packed, strict=True):
        _, event, version = struct.unpack(">QIB", real.extras)
        assert version == 2
        seen.add(event)
        uid, scope, *cid = struct.unpack(f">Q{len(numbers.value) // 4 - 2}I", numbers.value)
        ours = event_value(event, real.key, uid, scope, *(cid or [0]), None, history=False)
        assert ours == real.value
    assert seen >= set(SystemEventId) - {SystemEventId.MODIFY_COLLECTION}


def field(value: bytes, slot: int, width: int) -> int:
    table = struct.unpack_from("<I", value)[0]
    vtable = table - struct.unpack_from("<i", value, table)[0]
    if 4 + 2 * slot >= struct.unpack_from("<H", value, vtable)[0]:
        return 0
    offset = struct.unpack_from("<H", value, vtable + 4 + 2 * slot)[0]
    return int.from_bytes(value[table + offset : table + offset + width], "little") if offset else 0


@pytest.mark.parametrize("event", [SystemEventId.CREATE_COLLECTION, SystemEventId.MODIFY_COLLECTION])
@pytest.mark.parametrize("max_ttl", [None, 0, 60])
@pytest.mark.parametrize("history", [False, True])
def test_what_a_reader_finds(event: int, max_ttl: int | None, history: bool) -> None:
    value = event_value(event, b"beer", 7, 8, 9, max_ttl, history=history)
    assert [field(value, slot, width) for slot, width in ((0, 8), (1, 4), (2, 4))] == [7, 8, 9]
    assert field(value, 3, 1) == (max_ttl is not None)
    assert field(value, 4, 4) == (max_ttl or 0)
    assert field(value, 6, 1) == history
    assert b"\x04\0\0\0beer\0" in value


@pytest.fixture(params=range(20))
def repetitive(request: pytest.FixtureRequest) -> bytes:
    rng = random.Random(request.param)
    pieces = [rng.randbytes(rng.randrange(1, 100)) for _ in range(8)]
    return b"".join(rng.choice(pieces) * rng.randrange(1, 40) for _ in range(request.param * 4))


def test_what_another_implementation_packed(repetitive: bytes) -> None:
    plain = repetitive
    packed = pa.Codec("snappy").compress(plain, asbytes=True)
    assert inflate(packed, len(plain)) == plain
    for cut in (1, len(packed) // 2, len(packed) - 1):
        if cut < len(packed):
            with pytest.raises(ProtocolError):
                inflate(packed[:cut], len(plain))
    if plain:
        with pytest.raises(ProtocolError):
            inflate(packed, len(plain) - 1)


@pytest.mark.parametrize(
    "block", ["", "05", "ff" * 6, "0401ff", "04000105", "0a0861", "0161" * 2, "04fcffffff7f"]
)
def test_what_is_no_block(block: str) -> None:
    with pytest.raises(ProtocolError):
        inflate(bytes.fromhex(block), 1000)


def test_what_is_packed_here_another_implementation_reads(repetitive: bytes) -> None:
    packed = deflate(repetitive)
    assert inflate(packed, len(repetitive)) == repetitive
    assert pa.Codec("snappy").decompress(packed, len(repetitive), asbytes=True) == repetitive
    if len(repetitive) > 1000:
        assert len(packed) < len(repetitive) / 2


def test_what_does_not_repeat_grows_by_its_lengths_only() -> None:
    plain = random.Random(1).randbytes(70_000)
    assert len(deflate(plain)) <= len(plain) + 10


def test_nearly_as_small_as_the_real_node_packs() -> None:
    compared = 0
    for frame in frames("stream_force_snappy", "s2c"):
        if frame.opcode == Opcode.DCP_MUTATION and frame.datatype & Datatype.SNAPPY:
            plain = inflate(frame.value, 10_000)
            assert len(deflate(plain)) <= len(frame.value) * 1.1 + 4
            compared += 1
    assert compared > 40
