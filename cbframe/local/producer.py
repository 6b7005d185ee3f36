"""The producer: a connection after DCP_OPEN, its options, its streams, its flow control.

The channel asks for more when everything before was sent (:meth:`Producer.fill`). Streams that have
something to send wait in a queue, and each gives one message, or in bulk one slice, when it has its turn.
While the client's window is full, nothing is queued, and the streams stay where they are.

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
from collections.abc import Callable, Mapping
from functools import partial
from typing import Protocol

from cbframe.local.bucket import LocalBucket, VBucket
from cbframe.local.items import Encoded, Variant
from cbframe.local.stream import (
    KNOWN_FLAGS,
    ActiveStream,
    Filter,
    Style,
    check_range,
    effective_end,
    parse_filter,
    permitted,
    rollback_point,
)
from cbframe.wire.constants import Datatype, Feature, OpenFlag, Status, StreamEndReason, StreamFlag
from cbframe.wire.framing import Frame
from cbframe.wire.messages import BufferAck, DcpControl, DcpNoop, DcpOpen, StreamRequest, encode_failover_log

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
        known = KNOWN_FLAGS | StreamFlag.TAKEOVER if is_8 else KNOWN_FLAGS
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
