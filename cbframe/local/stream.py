"""One DCP stream: which bytes come next."""

from __future__ import annotations

import struct
from collections import deque
from dataclasses import dataclass, field

from cbframe.local.admission import Filter
from cbframe.local.bucket import Bucket
from cbframe.local.encode import Encoded, Variant
from cbframe.local.store import VBucket
from cbframe.wire.constants import Opcode, SnapshotFlag, StreamEndReason
from cbframe.wire.messages import SeqnoAdvanced, SnapshotMarker, StreamEnd

_MAX_VARIANTS = 2
"""Backfills kept ready per vbucket; each is as large as the data."""
_BACKFILL = SnapshotFlag.DISK | SnapshotFlag.CHECKPOINT
_FIRST_LIVE = SnapshotFlag.MEMORY | SnapshotFlag.CHECKPOINT
_MARKER_V2 = struct.Struct(">BBHBBHIIQBQQIQQ")


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


@dataclass(slots=True)
class Stream:
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
    sync_writes: bool = False
    queued: bool = False
    finished: bool = False
    _started: bool = False
    _small: deque[bytes] = field(default_factory=deque)
    _chunk: Encoded | None = None
    _view: memoryview = field(default_factory=lambda: memoryview(b""))
    _position: int = 0
    _chunk_end: int = 0
    _backfill: bool = False

    def next(self, bucket: Bucket, room: int, spent: list[Encoded]) -> bytes | memoryview | None:
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
        return StreamEnd(self.vbucket, reason).frame(self.opaque).encode()

    def _slice(self, chunk: Encoded, room: int) -> memoryview:
        start = self._position
        # The first frame boundary at or behind the room: at most one message more than fits.
        boundary = int(chunk.starts.searchsorted(start + max(room, 1), "left"))
        self._position = int(chunk.starts[min(boundary, len(chunk))])
        return self._view[start : self._position]

    def _end_chunk(self, chunk: Encoded, spent: list[Encoded]) -> None:
        last = int(chunk.seqnos[-1]) if len(chunk) else 0
        if self._backfill and self.variant.collections and last < self._chunk_end:
            self._small.append(SeqnoAdvanced(self.vbucket, self._chunk_end).frame(self.opaque).encode())
        self.sent = self._chunk_end
        self._chunk = None
        self._view = memoryview(b"")
        spent.append(chunk)

    def _prepare(self, bucket: Bucket) -> bool:
        with bucket.lock:
            vbucket = bucket.vbuckets[self.vbucket]
            high = vbucket.high_seqno if self.variant.collections else vbucket.default_high
            if vbucket.vbuuid != self.vbuuid:
                return False  # History has forked: the end of the stream is on its way.
            if self.sent >= self.end:
                self._finish(StreamEndReason.OK)
                return True
            if high <= self.sent:
                gone = self.filter.ids and not self.filter.ids & bucket.manifest.ids()
                if gone:
                    self._finish(StreamEndReason.FILTER_EMPTY)
                return bool(gone)
            return self._begin_chunk(bucket, vbucket, high)

    def _begin_chunk(self, bucket: Bucket, vbucket: VBucket, high: int) -> bool:
        variant = self.variant
        if self.filter.scope is not None:
            # Resolved at each snapshot: the scope may have got collections since.
            scopes = bucket.manifest.scopes.values()
            ids = frozenset(c for s in scopes if s.id == self.filter.scope for c in s.collections.values())
            variant = variant._replace(filter_ids=ids, filter_scope=self.filter.scope)
        self._backfill = not self._started
        if self._backfill:
            chunk, self._position = acquire(vbucket, variant, self.sent, self.opaque)
        else:
            chunk, self._position = vbucket.encode(self.sent, variant), 0
            chunk.stamp(self.opaque)
        empty = self._position >= chunk.nbytes
        if empty and not (self._backfill and variant.collections):
            # Nothing of this is for the client, and a live stream is not told so.
            chunk.busy = False
            self.sent = high
            self._started = True
            return True
        self._chunk, self._view, self._chunk_end = chunk, chunk.view(), high
        if self._backfill:
            self._mark(self.snap_start, high, _BACKFILL)
        else:
            first = self.snap_start if self.snap_start >= 0 else int(chunk.seqnos[0])
            flags = _FIRST_LIVE if self.snap_start >= 0 else SnapshotFlag.MEMORY
            self._mark(first, int(chunk.seqnos[-1]), flags)
        self._started = True
        self.snap_start = -1
        return True

    def begin_live(self) -> None:
        """The client has everything there is: no backfill, the first snapshot comes from memory."""
        self._started = True

    def _mark(self, start: int, end: int, flags: SnapshotFlag) -> None:
        if not self.sync_writes:
            self._small.append(SnapshotMarker(self.vbucket, start, end, flags).frame(self.opaque).encode())
            return
        # Replication-like connections get version 2.0; nothing here is ever prepared.
        head = 0x80, Opcode.DCP_SNAPSHOT_MARKER, 0, 1, 0, self.vbucket, 37, self.opaque, 0
        self._small.append(_MARKER_V2.pack(*head, 0, start, end, flags, end, 0))

    def _finish(self, reason: StreamEndReason) -> None:
        self._small.append(self.end_frame(reason))
        self.finished = True
