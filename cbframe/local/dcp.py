"""DCP from the server's side: whether a stream may begin, which bytes come next, and the client's window.

The checks are the server's, in its order: pure functions of the request and the vbucket's state, so
that the tables of the protocol can be tested without a socket. Source: kv_engine
``engines/ep/src/dcp/producer.cc`` (streamRequest) and ``failover-table.cc`` (needsRollback).

A :class:`Producer` is what a connection has from DCP_OPEN on: its options (:class:`Controls`) and its
streams (:class:`ActiveStream`). The channel asks for more when everything before was sent
(:meth:`Producer.fill`). Streams that have something to send wait in a queue, and each gives one message,
or in bulk one slice, when it has its turn. While the client's window is full, nothing is queued.

========================  ==================================================================
a stream                  is
========================  ==================================================================
in ``streams``            open: granted and not ended
also in the queue         to be asked for its next bytes
also in ``_backfills``    with a number, and its backfill waits for another's of the vbucket
in ``streams`` only       up to date: a write wakes it
========================  ==================================================================
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import NamedTuple, Protocol

from cbframe.local import items
from cbframe.local.bucket import LocalBucket, LocalManifest, UnknownScopeError, VBucket
from cbframe.local.items import Encoded, Variant
from cbframe.wire.constants import (
    MAX_SEQNO,
    Datatype,
    Feature,
    Magic,
    OpenFlag,
    SnapshotFlag,
    Status,
    StreamEndReason,
    StreamFlag,
)
from cbframe.wire.framing import Frame, stream_id_framing
from cbframe.wire.messages import (
    BufferAck,
    DcpControl,
    DcpNoop,
    DcpOpen,
    FailoverEntry,
    OsoSnapshot,
    SeqnoAdvanced,
    SnapshotMarker,
    StreamEnd,
    StreamRequest,
    encode_failover_log,
)

_KNOWN_FLAGS = (
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

_SWITCHES: Mapping[str, str] = {
    "enable_noop": "noop",
    "force_value_compression": "force_snappy",
    "supports_cursor_dropping": "",  # these three, and v7_dcp_status_codes, have no effect here
    "supports_cursor_dropping_vulcan": "",
    "supports_hifi_MFU": "",
    "enable_expiry_opcode": "expirations",
}
"""Options that are on or off, and the attributes of :class:`Controls` that hold them."""
_LASTING: Mapping[str, str] = {
    "enable_stream_id": "stream_ids",
    "enable_sync_writes": "sync_writes",
    "v7_dcp_status_codes": "",
    "flatbuffers_system_events": "flatbuffers",
    "change_streams": "history",
}
"""The same, of options that 8.0 does not let clients unset."""
_NAMES = (
    "backfill_order",
    "connection_buffer_size",
    "stream_buffer_size",
    "enable_noop",
    "force_value_compression",
    "supports_cursor_dropping",
    "supports_cursor_dropping_vulcan",
    "supports_hifi_MFU",
    "set_noop_interval",
    "set_priority",
    "send_stream_end_on_client_close_stream",
    "enable_expiry_opcode",
    "enable_stream_id",
    "enable_sync_writes",
    "consumer_name",
    "enable_out_of_order_snapshots",
    "include_deleted_user_xattrs",
    "v7_dcp_status_codes",
    "flatbuffers_system_events",
    "change_streams",
    "max_marker_version",
)
"""In the order in which a node compares."""
_BY_PREFIX = frozenset(
    {
        "backfill_order",
        "connection_buffer_size",
        "stream_buffer_size",
        "enable_noop",
        "force_value_compression",
        "supports_hifi_MFU",
        "set_noop_interval",
        "set_priority",
        "enable_expiry_opcode",
    }
)
"""Of these a node compares as many letters as it was sent: "e" is "enable_noop"."""
_BOOLEANS = ("true", "false")
_LONGEST_NOOP_INTERVAL = 10_800
_SHORTEST_NOOP_INTERVAL_OF_8 = 0.1
_DEFAULT_NOOP_INTERVAL = 20.0
_SHORTEST_NOOP_INTERVAL = 0.01
_FIRST_NOOP_OPAQUE = 10_000_001

_BATCH = 1024 * 1024
"""Bytes handed to the socket in one go, in bulk."""
_SLICE = 128 * 1024
"""Bytes of one vbucket before the next one has its turn, in bulk."""
_BEFORE_BACKFILL = 0.05
"""Seconds until the backfill of a numbered stream begins: a node reads it on another thread, and answers
the requests for other streams of the vbucket meanwhile. Streams without numbers begin at once."""

_NO_VALUE_FLAG = 0x8
"""Of stream requests, before DCP_OPEN had one."""
_VALID_FLAGS = (
    OpenFlag.PRODUCER
    | OpenFlag.INCLUDE_XATTRS
    | OpenFlag.NO_VALUE
    | OpenFlag.INCLUDE_DELETE_TIMES
    | OpenFlag.NO_VALUE_WITH_UNDERLYING_DATATYPE
    | OpenFlag.INCLUDE_DELETED_USER_XATTRS
)
_OPEN_FLAGS = {0x80: "PiTR"}
_STREAM_FLAGS: Mapping[int, str] = {
    StreamFlag.TAKEOVER: "Takeover",
    StreamFlag.DISK_ONLY: "DiskOnly",
    StreamFlag.TO_LATEST: "ToLatest",
    StreamFlag.ACTIVE_ONLY: "ActiveVbOnly",
    StreamFlag.STRICT_VBUUID: "StrictVbUuid",
    StreamFlag.FROM_LATEST: "FromLatest",
    StreamFlag.IGNORE_PURGED_TOMBSTONES: "IgnorePurgedTombstones",
}
_SKIPS = frozenset({Feature.SKIP_DELETIONS_IN_FIRST_BACKFILL, Feature.COLLECTIONS})
"""Features without which deletions cannot be skipped."""


# ------------------------------------------------------------------ DCP_OPEN


def open_error(
    message: DcpOpen, name: bytes, features: frozenset[int] = frozenset(), *, is_8: bool = False
) -> str | None:
    """Why a DCP_OPEN is refused as invalid; None if it is not."""
    flags = message.flags
    if features >= _SKIPS:
        flags &= ~OpenFlag.SKIP_DELETIONS_IN_FIRST_BACKFILL
    if is_8 and not name:
        return "Request must include key"
    if unknown := flags & ~int(_VALID_FLAGS):
        named = f": {_named(unknown, _OPEN_FLAGS)}" if is_8 else ""
        return f"Request contains invalid flags{named}"
    if flags & OpenFlag.NO_VALUE and flags & OpenFlag.NO_VALUE_WITH_UNDERLYING_DATATYPE:
        return "Request contains invalid flags combination (NO_VALUE && NO_VALUE_WITH_UNDERLYING_DATATYPE)"
    if flags & OpenFlag.INCLUDE_DELETED_USER_XATTRS and not flags & OpenFlag.INCLUDE_XATTRS:
        return "Request contains invalid flags combination - IncludeDeletedUserXattrs but not IncludeXattrs"
    return None if name else "Request must include key"


def value_error(message: DcpOpen, frame: Frame) -> str | None:
    """Why the value of a DCP_OPEN is refused, of which only consumers have one; None if it is not."""
    if not frame.value:
        return "datatype should be set to RAW" if frame.datatype else None
    if frame.datatype != Datatype.JSON:
        return "datatype should be set to JSON for non-empty value"
    try:
        wish = json.loads(frame.value)
    except ValueError:
        return "value is not valid JSON"
    if not isinstance(wish, dict):
        return "value must be JSON of type object"
    for name in sorted(wish):
        if name != "consumer_name":
            return f"Unsupported JSON property {name}"
        if message.flags & OpenFlag.PRODUCER:
            return "consumer_name only valid for Consumer connections"
        if not isinstance(wish[name], str):
            return "consumer_name must be a string"
    return None


def _named(flags: int, names: Mapping[int, str]) -> str:
    """Flags as 8.0 names them in errors: JSON, a list if there are several."""
    bits = [1 << bit for bit in range(32) if flags >> bit & 1]
    found = [names.get(bit, f"unknown:0x{bit:x}") for bit in bits]
    return json.dumps(found if len(found) > 1 else found[0], separators=(",", ":"))


# ------------------------------------------------------------------ stream requests


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


def parse_filter(value: bytes, manifest: LocalManifest, *, stream_ids: bool = False) -> Filter | Status:
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
    manifest: LocalManifest,
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


# ------------------------------------------------------------------ one stream


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

    def _put(self, message: SeqnoAdvanced | OsoSnapshot | SnapshotMarker) -> None:
        self._small.append(self._encode(message.frame(self.opaque)))

    def _encode(self, frame: Frame) -> bytes:
        if self.variant.sid:
            framing = stream_id_framing(self.variant.sid)
            frame = replace(frame, magic=Magic.FLEX_REQUEST, framing_extras=framing)
        return frame.encode()

    def _finish(self, reason: StreamEndReason) -> None:
        self._small.append(self.end_frame(reason))
        self.finished = True


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


# ------------------------------------------------------------------ one connection


class Connection(Protocol):
    """What the producer needs of the connection under it."""

    out: deque[bytes | memoryview]
    deadline: float | None
    features: frozenset[int]

    def respond(
        self, frame: Frame, status: Status = ..., *, value: bytes = ..., context: str = ...
    ) -> None: ...
    def not_my_vbucket(self, frame: Frame) -> None: ...
    def refuse(self, frame: Frame, status: Status) -> None: ...
    def deny(self, frame: Frame, privilege: str) -> None: ...
    def rights(self, access: str, scope: int | None = ..., collection: int | None = ...) -> Status: ...
    def may_stream(self) -> bool: ...
    def holds(self, vbucket: int, *, active: bool) -> bool: ...
    def watch(self, vbucket: int, change: int) -> None: ...
    def later(self, seconds: float, call: Callable[[], None]) -> None: ...
    def now(self) -> float: ...


class Controls:
    """Options of one connection, with the values they have before anything is set."""

    def __init__(self, bucket: LocalBucket, flags: int, features: frozenset[int]) -> None:
        self._bucket = bucket
        self._flags = flags
        self._features = features
        self.buffer_size = 0
        self.noop = False
        self.noop_interval = _DEFAULT_NOOP_INTERVAL
        self.priority = "medium"
        self.expirations = False
        self.end_on_close = False
        self.sync_writes = False
        self.consumer_name = ""
        self.force_snappy = False
        self.flatbuffers = False
        self.oso = self.oso_advanced = False
        self.stream_ids = False
        self.history = False
        self.marker_v22 = False

    def set(self, message: DcpControl) -> tuple[Status, str]:
        """Set an option; the status, and the words that go with it or none."""
        asked, value = message.key, message.value
        if not asked or not value:
            return Status.EINVAL, f"Request must include {'value' if asked else 'key'}"
        names = _NAMES if self._bucket.marker_version == "2.2" else _NAMES[:-1]
        same = (name for name in names if name == asked or (name in _BY_PREFIX and name.startswith(asked)))
        name = next(same, "")
        if name == "force_value_compression" and Feature.SNAPPY not in self._features:
            return Status.EINVAL, (
                "The ctrl parameter force_value_compression is only supported if datatype snappy is enabled "
                "on the connection"
            )
        if name == "backfill_order" and value not in {"round-robin", "sequential"}:
            # The real node names the option, as it was sent, instead of the value.
            return Status.EINVAL, f"Unsupported value '{asked}' for ctrl parameter '{name}'"
        return self._set(name, value), ""

    def _set(self, name: str, value: str) -> Status:
        is_8, on = self._bucket.is_8, value == "true"
        good = True
        match name:
            case "backfill_order":
                pass
            case "connection_buffer_size":
                good = value.isdecimal() and int(value) <= 0xFFFF_FFFF
                self.buffer_size = int(value) if good else self.buffer_size
            case "stream_buffer_size":
                return Status.NOT_SUPPORTED
            case "set_noop_interval":
                good = self._set_interval(value)
            case "set_priority":
                good = value in self._bucket.release.messages_per_send
                self.priority = value if good else self.priority
            case "send_stream_end_on_client_close_stream":
                self.end_on_close = self.end_on_close or on  # once on, it stays on
                good = is_8 or value in _BOOLEANS
            case "consumer_name":
                self.consumer_name = value
            case "enable_out_of_order_snapshots":
                good = value in {"true", "true_with_seqno_advanced"}
                if good:
                    self.oso, self.oso_advanced = True, not on
            case "include_deleted_user_xattrs":
                good = on and bool(self._flags & OpenFlag.INCLUDE_DELETED_USER_XATTRS)
            case "max_marker_version":
                good = value == "2.2"
                if good and Feature.COLLECTIONS not in self._features:
                    return Status.NOT_SUPPORTED
                self.marker_v22 = self.marker_v22 or good
            case _:
                return self._switch(name, value)
        return Status.SUCCESS if good else Status.EINVAL

    def _set_interval(self, value: str) -> bool:
        try:
            interval = float(value)
        except ValueError:
            return False
        shortest = _SHORTEST_NOOP_INTERVAL_OF_8 if self._bucket.is_8 else 0
        if not shortest <= interval <= _LONGEST_NOOP_INTERVAL:
            return False
        self.noop_interval = interval
        return True

    def _switch(self, name: str, value: str) -> Status:
        """Set an option to whether the value is "true"; 8.0 does not mind what else it is."""
        on = value == "true"
        attribute = _LASTING.get(name, _SWITCHES.get(name))
        if on and (
            (name == "enable_stream_id" and self.sync_writes)
            or (name == "enable_sync_writes" and self.stream_ids)
            or (name == "change_streams" and not self._bucket.history)
        ):
            return Status.NOT_SUPPORTED
        good = (on or name in _SWITCHES) if self._bucket.is_8 else value in _BOOLEANS
        if attribute is None or not good:
            return Status.EINVAL
        if attribute:
            setattr(self, attribute, on)
        return Status.SUCCESS

    def style(self) -> Style:
        """How the streams that begin now announce their snapshots."""
        # A replica, which has a name, gets more than others with sync writes.
        replicates = bool(self.sync_writes and self.consumer_name)
        memory = "v2.0" if replicates else "v1"
        disk = "v2.2" if self.marker_v22 else memory
        return Style(disk, memory, self.oso, self.oso_advanced, replicates)


class Producer:
    """Streams of one connection, round robin, within the client's window."""

    def __init__(
        self, connection: Connection, bucket: LocalBucket, message: DcpOpen, noop_interval: float | None
    ) -> None:
        self._conn = connection
        self._bucket = bucket
        self.name = message.name
        self._flags = message.flags
        self.streams: dict[tuple[int, int], ActiveStream] = {}
        self.outstanding = 0
        self._ready: deque[ActiveStream] = deque()
        self._backfills: dict[int, deque[ActiveStream]] = {}
        """Numbered streams by vbucket, in the order of the requests: the others wait for the first."""
        self._spent: list[Encoded] = []
        self.controls = Controls(bucket, message.flags, connection.features)
        self._forced_interval = noop_interval
        self._noop_opaque = _FIRST_NOOP_OPAQUE
        self._noop_unanswered = False

    @property
    def _interval(self) -> float:
        """Seconds between NOOPs."""
        wanted = self._forced_interval or self.controls.noop_interval
        return max(wanted, _SHORTEST_NOOP_INTERVAL)

    @property
    def messages_per_send(self) -> int | None:
        """How many messages a node of this release puts into one call of ``send``; None: in bulk."""
        if self._bucket.bulk:
            return None
        return self._bucket.release.messages_per_send[self.controls.priority]

    def control(self, message: DcpControl) -> tuple[Status, str]:
        """Set an option; the status, and the words that go with it or none."""
        before = self.controls.noop, self._interval
        answer = self.controls.set(message)
        if before != (self.controls.noop, self._interval):
            self._schedule_noop()
        return answer

    # ------------------------------------------------------------------ streams

    def stream_request(self, frame: Frame, message: StreamRequest) -> None:
        """Answer a STREAM_REQ and, if it is granted, begin the stream."""
        conn = self._conn
        collections = Feature.COLLECTIONS in conn.features
        if not conn.may_stream():
            conn.deny(frame, "DcpProducer")
            return
        if message.value and not collections:
            conn.respond(frame, Status.EINVAL, context="Request must not include value")
            return
        if message.flags & _NO_VALUE_FLAG:
            context = "DCP_ADD_STREAM_FLAG_NO_VALUE{8} flag is no longer used"
            conn.respond(frame, Status.EINVAL, context=context)
            return
        is_8 = self._bucket.is_8
        known = _KNOWN_FLAGS | StreamFlag.TAKEOVER if is_8 else _KNOWN_FLAGS
        if message.flags & ~int(known):
            named = f": {_named(message.flags, _STREAM_FLAGS)}" if is_8 else ""
            conn.respond(frame, Status.EINVAL, context=f"Request contains invalid flags{named}")
            return
        if not conn.holds(message.vbucket, active=bool(message.flags & StreamFlag.ACTIVE_ONLY)):
            conn.not_my_vbucket(frame)
            return
        with self._bucket.lock:
            self._admit(frame, message, collections)

    def _admit(self, frame: Frame, message: StreamRequest, collections: bool) -> None:
        conn, vbucket, is_8 = self._conn, self._bucket.vbuckets[message.vbucket], self._bucket.is_8
        high = vbucket.high_seqno if collections else vbucket.default_high
        start, vbuuid, snap_start = message.start, message.vbuuid, message.snap_start
        if message.flags & StreamFlag.FROM_LATEST:
            start = snap_start = high
            vbuuid = vbuuid or vbucket.vbuuid
            message = StreamRequest(
                message.vbucket, high, message.end, vbuuid, high, high, message.flags, message.value
            )
        if not self.controls.noop and (collections or self._flags & OpenFlag.INCLUDE_XATTRS):
            conn.respond(frame, Status.NOT_SUPPORTED)
            return
        if not check_range(message):
            conn.respond(frame, Status.ERANGE)
            return
        wanted = parse_filter(message.value, self._bucket.manifest, stream_ids=self.controls.stream_ids)
        if isinstance(wanted, Status):
            conn.refuse(frame, wanted)
            return
        if (status := self._permitted(wanted)) is not Status.SUCCESS:
            conn.refuse(frame, status)
            return
        if is_8 and wanted.ids is not None and self.controls.sync_writes:
            conn.respond(frame, Status.NOT_SUPPORTED)
            return
        if (message.vbucket, wanted.sid) in self.streams:
            conn.respond(frame, Status.KEY_EEXISTS)
            return
        purge = 0 if wanted.purge_seqno == vbucket.purge_seqno else vbucket.purge_seqno
        newest = self._newest(vbucket, wanted, collections) if is_8 else None
        point = rollback_point(message, vbucket.failover, vbucket.high_seqno, purge, newest)
        if point is not None:
            conn.respond(frame, Status.ROLLBACK, value=point.to_bytes(8, "big"))
            return
        end = effective_end(message, high, newest)
        if start > vbucket.high_seqno or (start > end and start > high):
            conn.respond(frame, Status.ERANGE)
            return
        conn.respond(frame, value=encode_failover_log(vbucket.failover))
        style = self.controls.style()._replace(
            disk_only=bool(message.flags & StreamFlag.DISK_ONLY),
            takeover=bool(message.flags & StreamFlag.TAKEOVER),
            is_8=is_8,
            skips_deletions=not start and bool(self._flags & OpenFlag.SKIP_DELETIONS_IN_FIRST_BACKFILL),
        )
        variant = self._variant(collections, wanted)
        places = message.vbucket, frame.opaque, end, start, snap_start
        stream = ActiveStream(*places, wanted, variant, vbucket.vbuuid, style)
        self.streams[stream.key] = stream
        conn.watch(message.vbucket, 1)
        if start >= high:
            stream.begin_live()
        if stream.live or not self.controls.stream_ids:
            self._wake(stream)
        else:
            self._schedule_backfill(stream)

    def _permitted(self, wanted: Filter) -> Status:
        legacy = Feature.COLLECTIONS not in self._conn.features
        status = partial(self._conn.rights, "dcp")
        return permitted(wanted, self._bucket.manifest, status, legacy=legacy)

    def check_rights(self) -> None:
        """The user has other rights: streams end that would not be granted now."""
        with self._bucket.lock:
            streams = list(self.streams.values())
            lost = [each for each in streams if self._permitted(each.filter) is not Status.SUCCESS]
        for stream in lost:
            self._drop(stream.key)
            self._count(stream.end_frame(StreamEndReason.LOST_PRIVILEGES))

    def _newest(self, vbucket: VBucket, wanted: Filter, collections: bool) -> int | None:
        """High seqno of the collections that a stream is filtered by; None of one without a filter."""
        if not collections:
            return vbucket.default_high
        ids = wanted.ids if wanted.scope is None else self._bucket.manifest.scope_ids(wanted.scope)
        return None if ids is None else max((vbucket.collection_high(cid) or 0 for cid in ids), default=0)

    def _variant(self, collections: bool, wanted: Filter) -> Variant:
        flags, is_8 = self._flags, self._bucket.is_8
        # MB-23898: without XATTRs a backfill reads the keys alone, not what belongs to them.
        key_only = flags & OpenFlag.NO_VALUE and not flags & OpenFlag.INCLUDE_XATTRS
        return Variant(
            collections=collections,
            xattrs=bool(flags & OpenFlag.INCLUDE_XATTRS),
            no_value=bool(flags & OpenFlag.NO_VALUE),
            underlying_datatype=bool(flags & OpenFlag.NO_VALUE_WITH_UNDERLYING_DATATYPE),
            key_only=bool(key_only) and is_8,
            packed=is_8,
            delete_times=bool(flags & OpenFlag.INCLUDE_DELETE_TIMES),
            expirations=self.controls.expirations,
            filter_ids=wanted.ids,
            snappy=Feature.SNAPPY in self._conn.features,
            force_snappy=self.controls.force_snappy,
            flatbuffers=self.controls.flatbuffers,
            collection_history=self._bucket.history,
            history=self.controls.history,
            sync_writes=self.controls.sync_writes,
            sid=wanted.sid,
        )

    def close_stream(self, frame: Frame, sid: int) -> None:
        """Answer a CLOSE_STREAM; no STREAM_END unless that was asked for."""
        if bool(sid) != self.controls.stream_ids:
            self._conn.respond(frame, Status.DCP_STREAM_ID_INVALID)
            return
        stream = self._drop((frame.vbucket, sid))
        if stream is None:
            self._conn.respond(frame, Status.KEY_ENOENT)
            return
        self._conn.respond(frame)
        if self.controls.end_on_close:
            self._count(stream.end_frame(StreamEndReason.CLOSED))

    def end_stream(self, vbucket: int, reason: StreamEndReason) -> None:
        """End a vbucket's streams from the server's side, whatever they have sent so far."""
        for key in self._of(vbucket):
            stream = self._drop(key)
            if stream is not None:
                self._count(stream.end_frame(reason))

    def close(self) -> None:
        """The connection is gone."""
        for key in list(self.streams):
            self._drop(key)
        self._release()

    def _drop(self, key: tuple[int, int]) -> ActiveStream | None:
        stream = self.streams.pop(key, None)
        if stream is not None:
            stream.abandon(self._spent)
            self._end_backfill(stream)
            self._conn.watch(stream.vbucket, -1)
        return stream

    def _of(self, vbucket: int) -> list[tuple[int, int]]:
        """The vbucket's streams: one, but with stream numbers."""
        if not self.controls.stream_ids:
            return [(vbucket, 0)] if (vbucket, 0) in self.streams else []
        return [key for key in self.streams if key[0] == vbucket]

    # ------------------------------------------------------------------ sending

    def wake(self, vbucket: int) -> bool:
        """The vbucket may have something new for its streams; whether it has streams here."""
        keys = self._of(vbucket)
        for key in keys:
            self._wake(self.streams[key])
        return bool(keys)

    def _wake(self, stream: ActiveStream) -> None:
        if not stream.queued:
            stream.queued = True
            self._ready.append(stream)

    def _schedule_backfill(self, stream: ActiveStream) -> None:
        """Of several streams of a vbucket, the backfills come one after another, each whole."""
        stream.queued = True
        waiting = self._backfills.setdefault(stream.vbucket, deque())
        waiting.append(stream)
        if len(waiting) == 1:
            self._conn.later(_BEFORE_BACKFILL, partial(self._begin_backfill, stream))

    def _begin_backfill(self, stream: ActiveStream) -> None:
        if not stream.finished:
            self._ready.append(stream)

    def _end_backfill(self, stream: ActiveStream) -> None:
        """The backfill was sent, or is not wanted any more: the next one of the vbucket begins."""
        waiting = self._backfills.get(stream.vbucket)
        if waiting is None or stream not in waiting:
            return
        first = waiting[0] is stream
        waiting.remove(stream)
        if not waiting:
            del self._backfills[stream.vbucket]
        elif first:
            self._ready.append(waiting[0])

    def acknowledge(self, message: BufferAck) -> None:
        """The client has consumed bytes; more than there were is no error."""
        self.outstanding = max(0, self.outstanding - message.nbytes)

    def fill(self) -> None:
        """Queue the next batch; everything queued before has been sent.

        A node sends message by message, each of the stream whose turn it is.
        """
        self._release()
        messages = self.messages_per_send
        most = _SLICE if messages is None else 1
        budget = _BATCH if messages is None else messages
        ready, out, bucket = self._ready, self._conn.out, self._bucket
        while ready and budget > 0:
            room = min(most, budget)
            if self.controls.buffer_size:
                # Sends while less than the window is outstanding: at most one message beyond it.
                window = self.controls.buffer_size - self.outstanding
                if window <= 0:
                    return
                room = min(room, window)
            stream = ready[0]
            data = stream.next(bucket, room, self._spent)
            if data is None or stream.live:
                self._end_backfill(stream)
            if data is None:
                ready.popleft()
                stream.queued = False
                if stream.finished and self.streams.get(stream.key) is stream:
                    del self.streams[stream.key]
                    self._conn.watch(stream.vbucket, -1)
                continue
            out.append(data)
            self.outstanding += len(data) if self.controls.buffer_size else 0
            budget -= len(data) if messages is None else 1
            if len(data) * 2 > most:
                ready.rotate(-1)

    def _count(self, data: bytes) -> None:
        self._conn.out.append(data)
        self.outstanding += len(data) if self.controls.buffer_size else 0

    def _release(self) -> None:
        for chunk in self._spent:
            chunk.busy = False
        self._spent.clear()

    # ------------------------------------------------------------------ keep-alive

    def on_timer(self, now: float) -> None:
        """Send a NOOP, unless one is still unanswered."""
        if not self._noop_unanswered:
            self._conn.out.append(DcpNoop(self._noop_opaque).frame().encode())
            self._noop_opaque += 1
            self._noop_unanswered = True
        self._conn.deadline = now + self._interval

    def noop_answered(self) -> None:
        self._noop_unanswered = False

    def _schedule_noop(self) -> None:
        self._conn.deadline = self._conn.now() + self._interval if self.controls.noop else None
