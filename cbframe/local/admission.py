"""Whether a stream may begin, and from where: the server's checks, in its order.

Pure functions of the request and the vbucket's state, so that the tables of the protocol can be
tested without a socket. Source: kv_engine ``engines/ep/src/dcp/producer.cc`` (streamRequest) and
``failover-table.cc`` (needsRollback).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from cbframe.local.manifest import Manifest, UnknownScopeError
from cbframe.wire.constants import MAX_SEQNO, Status, StreamFlag
from cbframe.wire.messages import FailoverEntry
from cbframe.wire.requests import StreamRequest

KNOWN_FLAGS = (
    StreamFlag.DISK_ONLY
    | StreamFlag.TO_LATEST
    | StreamFlag.ACTIVE_ONLY
    | StreamFlag.STRICT_VBUUID
    | StreamFlag.FROM_LATEST
    | StreamFlag.IGNORE_PURGED_TOMBSTONES
)
_FILTER_KEYS = frozenset({"collections", "scope", "uid", "sid", "purge_seqno"})
_MAX_STREAM_ID = 0xFFFF


@dataclass(frozen=True, slots=True)
class Refusal:
    """A status other than success, and the rollback seqno if that is the status."""

    status: Status
    rollback: int = 0


@dataclass(frozen=True, slots=True)
class Filter:
    """Collections of a stream, as its JSON value asks: ids, or a scope with whatever it holds."""

    ids: frozenset[int] | None = None
    scope: int | None = None
    sid: int = 0
    """Number of the stream; 0 on connections without stream numbers."""
    purge_seqno: int | None = None
    """The purge seqno that the client has seen."""


def rollback_point(
    request: StreamRequest,
    log: Sequence[FailoverEntry],
    high: int,
    purge: int = 0,
    collection_high: int | None = None,
) -> int | None:
    """Seqno that the client must go back to; None if its position is part of this history.

    `collection_high` is that of the collections that a stream is filtered by: with all changes of
    theirs, the client has missed nothing that was purged.
    """
    start, snap_start, snap_end = request.start, request.snap_start, request.snap_end
    strict = request.flags & StreamFlag.STRICT_VBUUID
    if start == 0 and (not strict or request.vbuuid == 0):
        return None
    complete = collection_high is not None and collection_high <= min(start, purge)
    if 0 < start < purge and not request.flags & StreamFlag.IGNORE_PURGED_TOMBSTONES and not complete:
        return 0
    position = next((i for i, entry in enumerate(log) if entry.vbuuid == request.vbuuid), None)
    if position is None:
        return 0
    upper = high if position == 0 else log[position - 1].seqno
    if start == snap_start:
        snap_end = start
    if snap_end <= upper:
        return None
    if start == snap_end:
        snap_start = start
    return min(upper, snap_start)


def check_range(request: StreamRequest) -> Refusal | None:
    """The order of the request's seqnos."""
    if request.start > request.end or not request.snap_start <= request.start <= request.snap_end:
        return Refusal(Status.ERANGE)
    return None


def parse_filter(value: bytes, manifest: Manifest, *, stream_ids: bool = False) -> Filter | Refusal:
    """The JSON value of a stream request on a collections connection."""
    if not value:
        return Refusal(Status.DCP_STREAM_ID_INVALID) if stream_ids else Filter()
    invalid = Refusal(Status.EINVAL)
    try:
        wish = json.loads(value)
    except ValueError:
        return invalid
    if not isinstance(wish, dict) or not wish.keys() & _FILTER_KEYS:
        return invalid
    sid, purge = wish.get("sid", 0), wish.get("purge_seqno")
    if type(sid) is not int or not (purge is None or (isinstance(purge, str) and purge.isdecimal())):
        return invalid
    if ("sid" in wish) != stream_ids or not 0 <= sid <= _MAX_STREAM_ID or stream_ids > sid:
        return Refusal(Status.DCP_STREAM_ID_INVALID)
    plain = Filter(sid=sid, purge_seqno=None if purge is None else int(purge))
    if "scope" in wish and "collections" in wish:
        return invalid
    try:
        if "scope" in wish:
            scope = _hex(wish["scope"])
            manifest.scope_ids(scope)
            return replace(plain, scope=scope)
        if "collections" in wish:
            ids = frozenset(_hex(cid) for cid in wish["collections"])
            return replace(plain, ids=ids) if ids <= manifest.ids() else Refusal(Status.UNKNOWN_COLLECTION)
    except UnknownScopeError:
        return Refusal(Status.UNKNOWN_SCOPE)
    except (ValueError, TypeError):
        return invalid
    return plain


def permitted(
    wanted: Filter, manifest: Manifest, status: Callable[[int | None, int | None], Status], *, legacy: bool
) -> Status:
    """SUCCESS, or how a user is refused who may not stream all that a filter lets through.

    Without a filter that is the whole bucket, and on a connection without collections the default one.
    Source: kv_engine ``collections/vbucket_filter.cc`` (checkPrivileges).
    """
    if legacy:
        return status(0, 0)
    if wanted.ids is None:
        return status(wanted.scope, None)
    found = {status(manifest.scope_of(cid), cid) for cid in wanted.ids & manifest.ids()}
    refusals = (Status.UNKNOWN_COLLECTION, Status.EACCESS)
    return next((each for each in refusals if each in found), Status.SUCCESS)


def _hex(text: object) -> int:
    if not isinstance(text, str):
        raise TypeError(f"an id is a hexadecimal string, not {type(text).__name__}")
    return int(text, 16)


def effective_end(request: StreamRequest, high: int, newest: int | None = None) -> int:
    """Where the stream may end, after the flags that mean 'what is there now'.

    `newest` is the high seqno of the collections that the stream is filtered by.
    """
    if newest is not None and request.flags & StreamFlag.TO_LATEST:
        return newest
    if request.flags & (StreamFlag.TO_LATEST | StreamFlag.DISK_ONLY):
        return min(request.end, high)
    return min(request.end, MAX_SEQNO)
