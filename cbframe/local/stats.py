"""Lines of the STAT groups that clients ask for."""

from __future__ import annotations

import os
from collections.abc import Iterator

from cbframe.local.bucket import Bucket
from cbframe.local.store import VBucket


def stats(bucket: Bucket, node: int, group: list[str]) -> list[tuple[str, str]] | None:
    """Names and values of a group, ``NAME [vbucket]``, or of the node; None if it is not known."""
    if not group:
        return [*_general(bucket)]
    if group[0] not in _GROUPS:
        return None
    wanted = [vb for vb in bucket.vbuckets if node in bucket.map[vb.id]]
    if len(group) > 1:
        wanted = [vb for vb in wanted if str(vb.id) == group[1]]
    lines = _GROUPS[group[0]]
    return [
        line for vb in wanted for line in lines(vb, "active" if bucket.map[vb.id][0] == node else "replica")
    ]


def _general(bucket: Bucket) -> Iterator[tuple[str, str]]:
    """What a node says of itself, of the hundreds of lines those by which clients tell the time."""
    yield "pid", str(os.getpid())
    yield "time", str(bucket.now())
    yield "pointer_size", "64"


def _seqnos(vb: VBucket, _state: str) -> Iterator[tuple[str, str]]:
    high = vb.high_seqno
    for name, number in (
        ("high_seqno", high),
        ("abs_high_seqno", high),
        ("last_persisted_seqno", high),
        ("uuid", vb.vbuuid),
        ("purge_seqno", vb.purge_seqno),
        ("last_persisted_snap_start", high),
        ("last_persisted_snap_end", high),
        ("high_prepared_seqno", 0),
        ("high_completed_seqno", 0),
        ("max_visible_seqno", high),
    ):
        yield f"vb_{vb.id}:{name}", str(number)


def _details(vb: VBucket, state: str) -> Iterator[tuple[str, str]]:
    yield f"vb_{vb.id}", state
    for name, number in (
        ("num_items", vb.documents),
        ("db_data_size", vb.stored_bytes),
        ("high_seqno", vb.high_seqno),
        ("uuid", vb.vbuuid),
        ("purge_seqno", vb.purge_seqno),
        ("max_visible_seqno", vb.max_visible(vb.high_seqno)),
    ):
        yield f"vb_{vb.id}:{name}", str(number)


def _failovers(vb: VBucket, _state: str) -> Iterator[tuple[str, str]]:
    yield f"vb_{vb.id}:num_entries", str(len(vb.failover))
    yield f"vb_{vb.id}:num_erroneous_entries_erased", "0"
    for i, entry in enumerate(vb.failover):
        yield f"vb_{vb.id}:{i}:id", str(entry.vbuuid)
        yield f"vb_{vb.id}:{i}:seq", str(entry.seqno)


_GROUPS = {"vbucket-seqno": _seqnos, "vbucket-details": _details, "failovers": _failovers}
