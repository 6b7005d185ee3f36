"""One DCP stream: whether and where it may begin, and which bytes come next.

The checks are the server's, in its order: pure functions of the request and the vbucket's state, so
that the tables of the protocol can be tested without a socket. Source: kv_engine
``engines/ep/src/dcp/producer.cc`` (streamRequest) and ``failover-table.cc`` (needsRollback).
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol

from cbframe.local import items
from cbframe.local.bucket import CollectionsManifest, LocalBucket, UnknownScopeError, VBucket
from cbframe.local.items import Encoded, Variant
from cbframe.wire.constants import MAX_SEQNO, Magic, SnapshotFlag, Status, StreamEndReason, StreamFlag
from cbframe.wire.framing import Frame, stream_id_framing
from cbframe.wire.messages import (
    FailoverEntry,
    OsoSnapshot,
    SeqnoAdvanced,
    SnapshotMarker,
    StreamEnd,
    StreamRequest,
)

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
_MAX_VARIANTS = 2
"""Backfills kept ready per vbucket; each is as large as the data."""
_BACKFILL = SnapshotFlag.DISK | SnapshotFlag.CHECKPOINT
_FIRST_LIVE = SnapshotFlag.MEMORY | SnapshotFlag.CHECKPOINT
_HISTORY = SnapshotFlag.HISTORY | SnapshotFlag.MAY_CONTAIN_DUPLICATE_KEYS
_OSO_START, _OSO_END = 1, 2


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


def check_range(request: StreamRequest) -> bool:
    """Whether the request's seqnos are in order."""
    return request.start <= request.end and request.snap_start <= request.start <= request.snap_end


def parse_filter(value: bytes, manifest: CollectionsManifest, *, stream_ids: bool = False) -> Filter | Status:
    """The JSON value of a stream request on a collections connection, or the status of its refusal."""
    if not value:
        return Status.DCP_STREAM_ID_INVALID if stream_ids else Filter()
    try:
        wish = json.loads(value)
    except ValueError:
        return Status.EINVAL
    if not isinstance(wish, dict) or not wish.keys() & _FILTER_KEYS:
        return Status.EINVAL
    sid, purge = wish.get("sid", 0), wish.get("purge_seqno")
    if type(sid) is not int or not (purge is None or (isinstance(purge, str) and purge.isdecimal())):
        return Status.EINVAL
    if ("sid" in wish) != stream_ids or not 0 <= sid <= _MAX_STREAM_ID or stream_ids > sid:
        return Status.DCP_STREAM_ID_INVALID
    plain = Filter(sid=sid, purge_seqno=None if purge is None else int(purge))
    if "scope" in wish and "collections" in wish:
        return Status.EINVAL
    try:
        if "scope" in wish:
            scope = _hex(wish["scope"])
            manifest.scope_ids(scope)
            return replace(plain, scope=scope)
        if "collections" in wish:
            ids = frozenset(_hex(cid) for cid in wish["collections"])
            return replace(plain, ids=ids) if ids <= manifest.ids() else Status.UNKNOWN_COLLECTION
    except UnknownScopeError:
        return Status.UNKNOWN_SCOPE
    except (ValueError, TypeError):
        return Status.EINVAL
    return plain


def permitted(
    wanted: Filter,
    manifest: CollectionsManifest,
    status: Callable[[int | None, int | None], Status],
    *,
    legacy: bool,
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


def acquire(vbucket: VBucket, variant: Variant, start: int, opaque: int) -> tuple[Encoded, int]:
    """Frames above `start` for one stream alone, stamped, and where they begin; lock held."""
    cached = vbucket.encoded.get(variant)
    if cached is None or cached.generation != vbucket.generation:
        made = vbucket.encode(start, variant)
        if start == 0:
            vbucket.encoded.pop(variant, None)
            while len(vbucket.encoded) >= _MAX_VARIANTS:
                del vbucket.encoded[next(iter(vbucket.encoded))]
            vbucket.encoded[variant] = made
        cached = made
    elif cached.busy:
        cached = cached.copy()
    cached.busy = True
    cached.stamp(opaque)
    first = int(cached.seqnos.searchsorted(start, "right"))
    return cached, int(cached.starts[first])


class Message(Protocol):
    """A control message of the wire."""

    def frame(self, opaque: int = 0) -> Frame: ...


class Style(NamedTuple):
    """How the snapshots of a stream are announced."""

    disk_marker: str = "v1"
    memory_marker: str = "v1"
    oso: bool = False
    """A backfill of a single collection comes in key order."""
    oso_advanced: bool = False
    """…and says how far it reaches."""
    replicates: bool = False
    """Markers have the seqnos of sync writes."""
    disk_only: bool = False
    takeover: bool = False
    is_8: bool = False
    skips_deletions: bool = False
    """The backfill has none."""


@dataclass(slots=True, eq=False)
class ActiveStream:
    """State of one open stream.

    ``sent`` is the seqno up to which everything was sent or left out on purpose; ``chunk`` is the
    snapshot under way.
    """

    vbucket: int
    opaque: int
    end: int
    sent: int
    snap_start: int
    filter: Filter
    variant: Variant
    vbuuid: int
    """The history that the stream was granted for."""
    style: Style
    queued: bool = False
    finished: bool = False
    _started: bool = False
    _fresh: bool = True
    """Nothing came from memory yet: its first snapshot opens a checkpoint."""
    _small: deque[bytes] = field(default_factory=deque)
    _chunk: Encoded | None = None
    _view: memoryview = field(default_factory=lambda: memoryview(b""))
    _position: int = 0
    _chunk_end: int = 0
    _backfill: bool = False
    _after_backfill: bool = False
    """The snapshot under way is the first from memory after a backfill."""
    _from_disk: int = 0
    """End of what the backfill covered."""
    _marked: int = 0
    """End of the snapshot that was announced last."""
    _hidden: int = 0
    """Seqno of a write that is hidden from the client, and the end of the snapshot under way; 0 for none."""
    _oso: bool = False

    @property
    def key(self) -> tuple[int, int]:
        """What names the stream on its connection: vbucket and stream number."""
        return self.vbucket, self.variant.sid

    @property
    def live(self) -> bool:
        """Whether there is no backfill, or all of it was sent."""
        return self._started and not self._backfill

    def next(self, bucket: LocalBucket, room: int, spent: list[Encoded]) -> bytes | memoryview | None:
        """The next message, or frames of about `room` bytes and at least one; None: nothing now.

        Chunks whose last bytes were handed out go to `spent`: they stay busy until those are sent.
        """
        while True:
            if self._small:
                return self._small.popleft()
            if self.finished:
                return None
            if self._chunk is not None:
                if self._position < self._chunk.nbytes:
                    return self._slice(self._chunk, room)
                self._end_chunk(self._chunk, spent)
            elif not self._prepare(bucket):
                return None

    def abandon(self, spent: list[Encoded]) -> None:
        """Stop here; a chunk under way is not needed any more."""
        self.finished = True
        self._small.clear()
        if self._chunk is not None:
            spent.append(self._chunk)
            self._chunk = None

    def end_frame(self, reason: StreamEndReason) -> bytes:
        return self._encode(StreamEnd(self.vbucket, reason).frame(self.opaque))

    def begin_live(self) -> None:
        """The client has everything there is: no backfill, the first snapshot comes from memory."""
        self._started = True

    def _slice(self, chunk: Encoded, room: int) -> memoryview:
        start = self._position
        # The first frame boundary at or after the room: at most one message more than fits.
        boundary = int(chunk.starts.searchsorted(start + max(room, 1), "left"))
        self._position = int(chunk.starts[min(boundary, len(chunk))])
        return self._view[start : self._position]

    def _end_chunk(self, chunk: Encoded, spent: list[Encoded]) -> None:
        last = int(chunk.seqnos[-1]) if len(chunk) else 0
        # In key order the last seqno is any: only a client that asked learns where that ends.
        tells = self.style.oso_advanced if self._oso else self._backfill and self.variant.collections
        if self._hidden or (tells and last != self._chunk_end):
            self._put(SeqnoAdvanced(self.vbucket, self._hidden or self._chunk_end))
            self._hidden = 0
        if self._oso:
            self._put(OsoSnapshot(self.vbucket, _OSO_END))
            self._oso, self._marked = False, self._chunk_end
            if not len(chunk) or int(chunk.seqnos.max()) < self._chunk_end:
                self.snap_start = self._chunk_end
        self.sent = self._chunk_end
        self._chunk = None
        self._view = memoryview(b"")
        spent.append(chunk)

    def _prepare(self, bucket: LocalBucket) -> bool:
        with bucket.lock:
            vbucket = bucket.vbuckets[self.vbucket]
            high = vbucket.high_seqno
            visible = high if self.variant.collections else vbucket.default_high
            if vbucket.vbuuid != self.vbuuid:
                return False  # History has forked: the end of the stream is on its way.
            if self.sent >= self.end and not self.style.takeover:
                self._finish(StreamEndReason.OK)
                return True
            if high <= self.sent:
                gone = self.filter.ids and not self.filter.ids & bucket.manifest.ids()
                if gone:
                    self._finish(StreamEndReason.FILTER_EMPTY)
                return bool(gone)
            if visible <= self.sent:
                # Changes of other collections: they count for where the stream ends, silently.
                self.sent = high
                return True
            variant = self._resolved(bucket)
            on_disk = high
            if vbucket.memory_from is not None and not self.style.disk_only:
                on_disk = min(high, vbucket.memory_from - 1)
            sent = self.sent
            if self.style.is_8 and not sent and self.filter.ids:
                # Nothing before its collections were created is for the stream.
                begun = min(vbucket.collection_begin(cid) for cid in self.filter.ids)
                sent = max(sent, begun - 1)
            if self._started or sent >= on_disk:
                self._begin_snapshot(vbucket, variant, high)
            elif self._unreadable(bucket, vbucket):
                self._finish(StreamEndReason.BACKFILL_FAIL)
            else:
                self._begin_backfill(vbucket, variant, on_disk, min(visible, on_disk))
            return True

    def _resolved(self, bucket: LocalBucket) -> Variant:
        """The variant with the collections that the filter means now."""
        if self.filter.scope is None:
            return self.variant
        # Resolved at each snapshot: the scope may have got collections since.
        scopes = bucket.manifest.scopes.values()
        ids = frozenset(c for s in scopes if s.id == self.filter.scope for c in s.collections.values())
        return self.variant._replace(filter_ids=ids, filter_scope=self.filter.scope)

    def _unreadable(self, bucket: LocalBucket, vbucket: VBucket) -> bool:
        # The real node cannot give a replica of the default collection alone, either.
        partial = self.variant.sync_writes and not self.variant.collections
        return vbucket.unreadable or (partial and bucket.manifest.uid > 0)

    def _begin_backfill(self, vbucket: VBucket, variant: Variant, end: int, visible: int) -> None:
        """Everything up to `end`, of which this kind of connection knows up to `visible`."""
        variant = variant._replace(skip_deletions=self.style.skips_deletions)
        ids = self.filter.ids
        self._oso = self.style.oso and self.sent == 0 and ids is not None and len(ids) == 1
        if end == vbucket.high_seqno and not self._oso:
            chunk, self._position = acquire(vbucket, variant, self.sent, self.opaque)
        else:
            chunk = vbucket.encode(self.sent, variant, end=end, as_of=self.style.is_8)
            self._position = 0
            if self._oso:
                chunk = chunk.in_key_order()
            chunk.stamp(self.opaque)
        self._started = self._backfill = True
        self._from_disk = end
        # 8.0 does not scan where the collections of a filter have nothing on disk.
        skips = self.style.is_8 and bool(variant.filter_ids) and vbucket.purge_seqno <= self.sent
        if self._position >= chunk.nbytes and (skips or not variant.collections) and not self._oso:
            # Nothing of this is for the client, and the node does not say so.
            self._backfill = self._backfill and not skips
            chunk.busy = False
            self.sent = end
            return
        self._chunk, self._view, self._chunk_end = chunk, chunk.view(), end
        if self._oso:
            self._put(OsoSnapshot(self.vbucket, _OSO_START))
        else:
            flags = _BACKFILL | _HISTORY if variant.history else _BACKFILL
            self._mark(vbucket, self.snap_start, visible, flags, self.style.disk_marker)
        self.snap_start = -1

    def _begin_snapshot(self, vbucket: VBucket, variant: Variant, end: int) -> None:
        """What came since, from memory."""
        if self.style.is_8:
            # A snapshot has changes of one checkpoint.
            end = min([end, *(start - 1 for start in vbucket.checkpoints if start > self.sent + 1)])
        part = end if end < vbucket.high_seqno else None
        chunk = vbucket.encode(self.sent, variant, end=part, memory=True, as_of=True)
        self._started, self._after_backfill, self._backfill = True, self._backfill, False
        last = int(chunk.seqnos[-1]) if len(chunk) else 0
        if self.style.is_8:
            self._hidden = vbucket.hidden_after(max(self.sent, last), end, variant)
        if not last and not self._hidden:
            # Nothing of this is for the client, and the node does not say so in a live stream.
            self.sent = end
            return
        chunk.stamp(self.opaque)
        self._chunk, self._view, self._position, self._chunk_end = chunk, chunk.view(), 0, end
        flags = SnapshotFlag.MEMORY
        first = int(chunk.seqnos[0]) if last else self._hidden
        if self.style.is_8:
            begun = [start for start in vbucket.checkpoints if self._marked < start <= first]
            # A checkpoint begins at the newest change before it.
            start = begun[-1] - 1 if begun else self._from_disk if self._fresh else 0
            first = start if start > self._marked else first
        else:
            # In 7.2 each change of the manifest begins a checkpoint.
            begun = [first] if self._view[1] == items.EVENT else []
        if self._fresh or begun:
            flags = _FIRST_LIVE
        if self.style.takeover:
            flags |= SnapshotFlag.ACK
        if self.snap_start >= 0:
            first = self.snap_start
        elif (
            not self.style.is_8
            and self._fresh
            and self._after_backfill
            and variant.filter_ids is None
            and variant.collections
        ):
            # The checkpoint begins after the backfill, with versions that were superseded meanwhile.
            first = min(first, self.sent + 1)
        flags = flags | _HISTORY if variant.history else flags
        self._mark(vbucket, first, max(last, self._hidden), flags, self.style.memory_marker)
        self._fresh = False
        self.snap_start = -1

    def _mark(self, vbucket: VBucket, start: int, end: int, flags: SnapshotFlag, version: str) -> None:
        self._marked = end
        if version == "v1":
            self._put(SnapshotMarker(self.vbucket, start, end, flags))
            return
        completed = visible = prepared = 0
        on_disk, replicates = flags & SnapshotFlag.DISK, self.style.replicates
        if replicates:
            visible = vbucket.max_visible(end)
            completed = vbucket.high_completed() if on_disk else 0
        if on_disk and (replicates or not self.style.is_8):
            prepared = vbucket.high_prepared()
        purged = vbucket.purge_seqno
        self._put(
            SnapshotMarker(self.vbucket, start, end, flags, version, visible, completed, purged, prepared)
        )

    def _put(self, message: Message) -> None:
        self._small.append(self._encode(message.frame(self.opaque)))

    def _encode(self, frame: Frame) -> bytes:
        if self.variant.sid:
            framing = stream_id_framing(self.variant.sid)
            frame = replace(frame, magic=Magic.FLEX_REQUEST, framing_extras=framing)
        return frame.encode()

    def _finish(self, reason: StreamEndReason) -> None:
        self._small.append(self.end_frame(reason))
        self.finished = True
