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


def test_what_a_client_sent_packed_is_stored_so(cluster: LocalCluster) -> None:
    block = bytes(pa.Codec("snappy").compress(LONG, asbytes=True))
    with Client(cluster).login(SNAPPY) as client:
        write = request(Opcode.SET, key=b"\0k", extras=bytes(8), value=block, datatype=int(PACKED))
        assert client.call(write).status == Status.SUCCESS
    assert cluster.get("k") == LONG
    with Client(cluster).login(SNAPPY).open() as client:
        (sent,) = documents(client, cluster)
    assert (sent.datatype, sent.value) == (PACKED, block)


def recorded() -> list[tuple[int, bytes, bytes]]:
    """Event, name and value of every system event of version 2 that the real node sent."""
    events = []
    for frame in frames("disk_coll_events.1", "s2c"):
        if frame.opcode == Opcode.DCP_SYSTEM_EVENT:
            _, event, version = struct.unpack(">QIB", frame.extras)
            assert version == 2
            events.append((event, frame.key, frame.value))
    return events


def plain() -> list[tuple[int, ...]]:
    """The numbers of the same events, from the conversation of the same vbucket without version 2."""
    return [
        struct.unpack(f">Q{len(frame.value) // 4 - 2}I", frame.value)
        for frame in frames("disk_coll_events.0", "s2c")
        if frame.opcode == Opcode.DCP_SYSTEM_EVENT
    ]


def test_the_bytes_of_the_real_node() -> None:
    events = recorded()
    assert {event for event, _, _ in events} >= set(SystemEventId) - {SystemEventId.MODIFY_COLLECTION}
    for (event, name, value), (uid, scope, *cid) in zip(events, plain(), strict=True):
        assert event_value(event, name, uid, scope, *(cid or [0]), None, history=False) == value


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


@pytest.mark.parametrize("seed", range(20))
def test_what_another_implementation_packed(seed: int) -> None:
    rng = random.Random(seed)
    pieces = [rng.randbytes(rng.randrange(1, 100)) for _ in range(8)]
    plain = b"".join(rng.choice(pieces) * rng.randrange(1, 40) for _ in range(seed * 4))
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
    "block",
    ["", "05", "ff" * 6, "0401ff", "04000105", "0a0861", "0161" * 2, "04fcffffff7f"],
)
def test_what_is_no_block(block: str) -> None:
    with pytest.raises(ProtocolError):
        inflate(bytes.fromhex(block), 1000)


@pytest.mark.parametrize("seed", range(20))
def test_what_is_packed_here_another_implementation_reads(seed: int) -> None:
    rng = random.Random(seed)
    pieces = [rng.randbytes(rng.randrange(1, 100)) for _ in range(8)]
    plain = b"".join(rng.choice(pieces) * rng.randrange(1, 40) for _ in range(seed * 4))
    packed = deflate(plain)
    assert inflate(packed, len(plain)) == plain
    assert pa.Codec("snappy").decompress(packed, len(plain), asbytes=True) == plain
    if len(plain) > 1000:
        assert len(packed) < len(plain) / 2


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
