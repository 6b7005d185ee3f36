"""Questions about vbuckets and collections: answered from the bucket, changing nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from cbframe.local.bucket import is_json
from cbframe.local.manifest import UnknownCollectionError, UnknownScopeError
from cbframe.local.stats import stats
from cbframe.wire.constants import Datatype, Feature, Opcode, Status, VBucketStateCode
from cbframe.wire.framing import Frame
from cbframe.wire.messages import encode_failover_log, encode_vbucket_seqnos
from cbframe.wire.requests import GetAllVBucketSeqnos

if TYPE_CHECKING:
    from cbframe.local.kv import KvConnection

ONLY_DCP = "The command can only be sent on a DCP connection"
"""The real server's words for a DCP command before DCP_OPEN."""


def manifest(conn: KvConnection, frame: Frame) -> None:
    with conn.bucket.lock:
        conn.respond_json(frame, conn.bucket.manifest.json(conn.sees))


def collection_id(conn: KvConnection, frame: Frame) -> None:
    path = (frame.value or frame.key).decode(errors="replace")
    scope, dot, name = path.partition(".")
    if not dot:
        conn.respond(frame, Status.EINVAL)
        return
    with conn.bucket.lock:
        manifest = conn.bucket.manifest
        try:
            cid = manifest.collection(scope, name)
        except UnknownScopeError:
            conn.unknown_collection(frame, Status.UNKNOWN_SCOPE)
            return
        except UnknownCollectionError:
            cid = -1
        if cid < 0 or not conn.sees(manifest.scope_of(cid), cid):
            conn.unknown_collection(frame, Status.UNKNOWN_COLLECTION)
            return
        conn.respond(frame, extras=manifest.uid.to_bytes(8, "big") + cid.to_bytes(4, "big"))


def scope_id(conn: KvConnection, frame: Frame) -> None:
    name = (frame.value or frame.key).decode(errors="replace")
    with conn.bucket.lock:
        manifest = conn.bucket.manifest
        scope = manifest.scopes.get(name)
        if scope is None or not conn.sees(scope.id, None):
            conn.unknown_collection(frame, Status.UNKNOWN_SCOPE)
        else:
            conn.respond(frame, extras=manifest.uid.to_bytes(8, "big") + scope.id.to_bytes(4, "big"))


def all_seqnos(conn: KvConnection, frame: Frame) -> None:
    message = GetAllVBucketSeqnos.parse(frame)
    collections = Feature.COLLECTIONS in conn.features
    cid = message.collection_id
    state = message.state or VBucketStateCode.ANY_ALIVE
    if state > VBucketStateCode.DEAD or (cid is not None and not collections):
        context = "" if cid is not None else "Request vbucket state invalid"
        conn.respond(frame, Status.EINVAL, context=context)
        return
    with conn.bucket.lock:
        if cid is not None or not collections:
            manifest = conn.bucket.manifest
            if cid is not None and cid not in manifest.ids():
                status = Status.UNKNOWN_COLLECTION
            else:
                status = conn.rights("data", manifest.scope_of(cid or 0), cid or 0)
            if status is not Status.SUCCESS and (status is Status.EACCESS or not collections):
                conn.deny(frame, "Read")
                return
            if status is not Status.SUCCESS:
                conn.unknown_collection(frame, status)
                return
        seqnos: dict[int, int] = {}
        for vbucket, row in zip(conn.bucket.vbuckets, conn.bucket.map, strict=True):
            if not _in_state(row, conn.node.index, state):
                continue
            high: int | None = vbucket.high_seqno
            if not collections or cid is not None:
                high = vbucket.collection_high(cid or 0)
            if high is not None:
                seqnos[vbucket.id] = high
    conn.respond(frame, value=encode_vbucket_seqnos(seqnos))


def failover_log(conn: KvConnection, frame: Frame) -> None:
    if frame.opcode == Opcode.DCP_GET_FAILOVER_LOG and conn.producer is None:
        conn.respond(frame, Status.EINVAL, context=ONLY_DCP)
    elif frame.opcode == Opcode.GET_FAILOVER_LOG and conn.rights("data") is not Status.SUCCESS:
        conn.deny(frame, "Read")
    elif frame.opcode == Opcode.DCP_GET_FAILOVER_LOG and not conn.may_stream():
        conn.deny(frame, "DcpProducer")
    elif not conn.holds(frame.vbucket, active=False):
        conn.not_my_vbucket(frame)
    else:
        with conn.bucket.lock:
            log = encode_failover_log(conn.bucket.vbuckets[frame.vbucket].failover)
        conn.respond(frame, value=log)


def stat(conn: KvConnection, frame: Frame) -> None:
    group = frame.key.decode(errors="replace").split()
    if conn.user is None or not conn.user.may("admin"):
        conn.deny(frame, "SimpleStats")
        return
    with conn.bucket.lock:
        lines = stats(conn.bucket, conn.node.index, group)
    if lines is None:
        conn.respond(frame, Status.KEY_ENOENT)
        return
    marks = conn.is_8 and Feature.JSON in conn.features and group[:1] not in (["collections"], ["scopes"])
    for name, text in [*lines, ("", "")]:
        datatype = int(Datatype.JSON) if marks and is_json(text.encode()) else 0
        conn.reply(frame, key=name.encode(), value=text.encode(), datatype=datatype)


def _in_state(row: list[int], node: int, state: int) -> bool:
    if state == VBucketStateCode.ANY_ALIVE:
        return node in row
    if state == VBucketStateCode.ACTIVE:
        return row[0] == node
    return state == VBucketStateCode.REPLICA and node in row[1:]


QUERIES: dict[int, Callable[[KvConnection, Frame], None]] = {
    Opcode.COLLECTIONS_GET_MANIFEST: manifest,
    Opcode.COLLECTIONS_GET_ID: collection_id,
    Opcode.COLLECTIONS_GET_SCOPE_ID: scope_id,
    Opcode.GET_ALL_VB_SEQNOS: all_seqnos,
    Opcode.GET_FAILOVER_LOG: failover_log,
    Opcode.DCP_GET_FAILOVER_LOG: failover_log,
    Opcode.STAT: stat,
}
