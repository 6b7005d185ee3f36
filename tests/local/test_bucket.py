from __future__ import annotations

import random
import struct

from cbframe.local import items
from cbframe.local.bucket import VBucket


def vbucket() -> VBucket:
    return VBucket(7, random.Random(1))


def put(vb: VBucket, key: bytes, value: bytes = b"{}") -> int:
    return vb.put(b"\0" + key, value, cas=vb.high_seqno + 1, flags=0, expiry=0, datatype=1)


def current(vb: VBucket, start: int = 0) -> list[int]:
    return [struct.unpack_from(">Q", frame, 24)[0] for frame in vb.current(start)]


def test_only_the_latest_version_is_current() -> None:
    vb = vbucket()
    assert [put(vb, key) for key in (b"a", b"b", b"a", b"c", b"b")] == [1, 2, 3, 4, 5]
    assert current(vb) == [3, 4, 5]
    assert current(vb, 3) == [4, 5]
    assert vb.documents == 3
    assert vb.high_seqno == 5


def test_rev_counts_versions_through_a_tombstone() -> None:
    vb = vbucket()
    put(vb, b"a")
    assert vb.remove(b"\0a", cas=9, when=1, expired=False) == 2
    assert vb.remove(b"\0a", cas=9, when=1, expired=False) is None
    put(vb, b"a")
    frame = vb.find(b"\0a")
    assert frame is not None
    assert items.rev_of(frame) == 3
    assert vb.documents == 1


def test_truncate_restores_the_state_at_that_seqno() -> None:
    vb = vbucket()
    first = vb.vbuuid
    put(vb, b"a", b"1")
    put(vb, b"b", b"2")
    before = list(vb.current(0))
    put(vb, b"a", b"3")
    vb.remove(b"\0b", cas=1, when=1, expired=True)
    vb.truncate(2)
    assert list(vb.current(0)) == before
    assert vb.documents == 2
    assert [(entry.seqno, entry.vbuuid == first) for entry in vb.failover] == [(2, False), (0, True)]
    assert put(vb, b"c") == 3


def test_truncate_erases_newer_histories() -> None:
    vb = vbucket()
    for key in (b"a", b"b", b"c"):
        put(vb, key)
    vb.truncate(2)
    vb.truncate(1)
    assert [entry.seqno for entry in vb.failover] == [1, 0]


def test_flush_starts_over() -> None:
    vb = vbucket()
    old = vb.vbuuid
    put(vb, b"a")
    vb.flush()
    assert (vb.high_seqno, vb.documents, list(vb.current(0))) == (0, 0, [])
    assert [(entry.seqno, entry.vbuuid != old) for entry in vb.failover] == [(0, True)]


def test_uuids_follow_the_seed() -> None:
    assert vbucket().vbuuid == vbucket().vbuuid != VBucket(7, random.Random(2)).vbuuid
