"""One vbucket: its history, which of it is current, its failover log."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import compress, takewhile
from typing import NamedTuple

from cbframe.local import items
from cbframe.local.items import Encoded, Variant, encode, ready
from cbframe.typing import ReadableBuffer
from cbframe.wire.constants import FAILOVER_LOG_MAX_ENTRIES, Datatype, SystemEventId
from cbframe.wire.messages import FailoverEntry, join_xattrs, split_xattrs


class StoredDocument(NamedTuple):
    """The current version of a document, as KV operations see it."""

    value: bytes
    flags: int
    expiry: int
    datatype: int
    cas: int
    rev: int


@dataclass(slots=True)
class VBucket:
    """History and current state of one vbucket.

    Seqnos are dense, so the frame of seqno ``s`` is ``history[s - 1]``. A superseded version stays
    in the history (``roll_back`` needs it) and is only marked in ``live``. The owner holds the
    bucket's lock around every call.
    """

    id: int
    rng: random.Random = field(repr=False)
    purge_seqno: int = 0
    failover: list[FailoverEntry] = field(default_factory=list)
    history: list[bytes] = field(default_factory=list, repr=False)
    live: bytearray = field(default_factory=bytearray, repr=False)
    latest: dict[bytes, int] = field(default_factory=dict, repr=False)
    documents: int = 0
    exceptions: int = 0
    """Frames in the history that need more than joining: tombstones, attributes, collections."""
    packed: int = 0
    """Frames in the history whose value is a Snappy block."""
    commits: dict[int, int] = field(default_factory=dict, repr=False)
    """Seqno of the prepared write by the seqno of its commit."""
    dropped: set[int] = field(default_factory=set, repr=False)
    """Collections that are gone; their ids never come back."""
    memory_from: int | None = None
    """Changes from here on are still in memory: streams get them in snapshots of their own."""
    checkpoints: list[int] = field(default_factory=list, repr=False)
    """Seqnos at which 8.0 began a checkpoint: it had a change of the same key that may not be left out."""
    unreadable: bool = False
    """Backfills fail, as from a damaged file."""
    default_high: int = 0
    """Highest seqno of the default collection: all that connections without collections see."""
    encoded: dict[Variant, Encoded] = field(default_factory=dict, repr=False)
    """Backfills already encoded; each knows the state it was made of."""
    generation: int = 0
    """Counts the changes to the history, rollbacks included."""

    def __post_init__(self) -> None:
        if not self.failover:
            self.failover.append(FailoverEntry(self.new_uuid(), 0))

    def new_uuid(self) -> int:
        """A name for a new history: 48 bits, never 0."""
        return self.rng.randrange(1, 1 << 48)

    @property
    def high_seqno(self) -> int:
        return len(self.history)

    @property
    def vbuuid(self) -> int:
        return self.failover[0].vbuuid

    @property
    def stored_bytes(self) -> int:
        """Of everything that nothing has superseded: documents and tombstones, with keys and metadata."""
        return sum(map(len, self.current(0)))

    def find(self, key: bytes) -> bytes | None:
        """The current frame of a prefixed key: a mutation or a tombstone."""
        seqno = self.latest.get(key)
        return None if seqno is None else self.history[seqno - 1]

    def document(self, key: bytes) -> StoredDocument | None:
        """The current document under a prefixed key."""
        frame = self.find(key)
        if frame is None or frame[1] != items.MUTATION:
            return None
        value, datatype = items.plain_value_of(frame)
        return StoredDocument(
            value,
            items.flags_of(frame),
            items.expiry_of(frame),
            datatype,
            items.cas_of(frame),
            items.rev_of(frame),
        )

    def put(
        self,
        key: bytes,
        value: ReadableBuffer,
        *,
        cas: int,
        flags: int,
        expiry: int,
        datatype: int,
        prepared: int = 0,
    ) -> int:
        """Append a mutation, which commits the write at seqno `prepared` if that is not 0; its seqno."""
        old = self.find(key)
        seqno = len(self.history) + 1
        if prepared:
            self.commits[seqno] = prepared
        frame = items.mutation(
            self.id,
            key,
            value,
            seqno=seqno,
            rev=1 if old is None else items.rev_of(old) + 1,
            cas=cas,
            flags=flags,
            expiry=expiry,
            datatype=datatype,
        )
        self._append(key, frame, old)
        return seqno

    def prepare(
        self,
        key: bytes,
        value: ReadableBuffer,
        *,
        cas: int,
        flags: int = 0,
        expiry: int = 0,
        datatype: int = 0,
        deleted: bool = False,
        level: int = 1,
    ) -> int:
        """Append a write that nobody sees before its commit; its seqno."""
        old, prepared = self.find(key), self.find(items.PREPARED_KEY_PREFIX + key)
        seqno = len(self.history) + 1
        frame = items.prepare(
            self.id,
            key,
            value,
            seqno=seqno,
            rev=1 if old is None else items.rev_of(old) + 1,
            cas=cas,
            flags=flags,
            expiry=expiry,
            datatype=datatype,
            deleted=deleted,
            level=level,
        )
        self._append(items.stored_key(frame), frame, prepared)
        return seqno

    def pending(self, key: bytes) -> tuple[int, bytes] | None:
        """Seqno and frame of the prepared write of a document that is neither committed nor aborted."""
        seqno = self.latest.get(items.PREPARED_KEY_PREFIX + key)
        if seqno is None or self.history[seqno - 1][1] != items.PREPARE:
            return None
        return seqno, self.history[seqno - 1]

    def abort(self, key: bytes, prepared: int) -> int:
        """Append the end of a prepared write that is never seen; its seqno."""
        seqno = len(self.history) + 1
        frame = items.completion(items.ABORT, self.id, key, prepared=prepared, seqno=seqno)
        self._append(items.stored_key(frame), frame, self.history[prepared - 1])
        return seqno

    def remove(self, key: bytes, *, cas: int, when: int, expired: bool, prepared: int = 0) -> int | None:
        """Append a tombstone; its seqno, or None if there is no such document."""
        old = self.find(key)
        if old is None or old[1] != items.MUTATION:
            return None
        if prepared:
            self.commits[len(self.history) + 1] = prepared
        section = b""
        if old[5] & Datatype.XATTR:
            # System attributes (leading underscore) outlive the document.
            value, _ = items.plain_value_of(old)
            kept = {n: v for n, v in split_xattrs(value).xattrs.items() if n.startswith("_")}
            section = join_xattrs(kept, b"") if kept else b""
        seqno = len(self.history) + 1
        rev = items.rev_of(old) + 1
        frame = items.tombstone(
            self.id, key, section, seqno=seqno, rev=rev, cas=cas, when=when, expired=expired
        )
        self._append(key, frame, old)
        return seqno

    def add_event(self, event: int, name: bytes, value: bytes, version: int = 0) -> int:
        """Append a system event; its seqno."""
        seqno = len(self.history) + 1
        frame = items.system_event(self.id, event, name, value, seqno=seqno, version=version)
        key = items.stored_key(frame)
        self._append(key, frame, self.find(key))
        return seqno

    def _append(self, key: bytes, frame: bytes, old: bytes | None) -> None:
        if (frame[1] != items.MUTATION or self.commits) and self._opens_checkpoint(key, frame):
            self.checkpoints.append(len(self.history) + 1)
        if old is not None:
            self.live[self.latest[key] - 1] = 0
            self.documents -= old[1] == items.MUTATION
        self.history.append(frame)
        self.live.append(1)
        self.latest[key] = len(self.history)
        self.documents += frame[1] == items.MUTATION
        if key[0] == 0:
            self.default_high = len(self.history)
        if (prepared := self.commits.get(len(self.history))) is not None:
            self.live[prepared - 1] = 0
            self.latest.pop(items.PREPARED_KEY_PREFIX + key, None)
        self.generation += 1
        self.exceptions += not ready(frame)
        self.packed += bool(frame[5] & items.SNAPPY)
        if frame[1] == items.EVENT:
            event, _, cid = items.event_of(frame)
            if event == SystemEventId.DROP_COLLECTION:
                self._forget(cid)

    def _opens_checkpoint(self, key: bytes, frame: bytes) -> bool:
        """Whether the checkpoint has a change of the key, and either of the two is no plain one."""
        before = self.latest.get(key)
        if before is None and frame[1] == items.PREPARE:
            # The prepared write before it was committed.
            before = self.commits.get(self.latest.get(key.removeprefix(items.PREPARED_KEY_PREFIX), 0))
        if before is None or before < (self.checkpoints[-1] if self.checkpoints else 1):
            return False
        plain = frame[1] in (items.MUTATION, items.DELETION, items.EXPIRATION)
        return not plain or before in self.commits or len(self.history) + 1 in self.commits

    def hidden_after(self, start: int, end: int, variant: Variant) -> int:
        """The newest prepared or aborted write in ``(start, end]``, of which a client gets the seqno only."""
        if not variant.collections or variant.sync_writes:
            return 0
        for seqno in range(end, start, -1):
            frame = self.history[seqno - 1]
            if frame[1] in (items.PREPARE, items.ABORT):
                cid = items.collection_of(items.key_of(frame))
                if variant.filter_ids is None or cid in variant.filter_ids:
                    return seqno
        return 0

    def _forget(self, cid: int) -> None:
        """A dropped collection's documents vanish from backfills without tombstones."""
        self.dropped.add(cid)
        self.latest.pop(items.modification_key(cid), None)
        gone = [
            key
            for key in self.latest
            if items.collection_of(key.removeprefix(items.PREPARED_KEY_PREFIX)) == cid
        ]
        for key in gone:
            seqno = self.latest.pop(key)
            self.live[seqno - 1] = 0
            self.documents -= self.history[seqno - 1][1] == items.MUTATION

    def encode(
        self,
        start: int,
        variant: Variant,
        *,
        end: int | None = None,
        memory: bool = False,
        as_of: bool = False,
    ) -> Encoded:
        """What a connection of this kind gets of everything current above `start`, up to `end`.

        With `as_of` it is what was current at `end`; else what is now, without what changed later.
        From `memory` connections that follow sync writes get each prepared write and its commit; in
        a backfill a commit is a mutation.
        """
        frames = None
        if memory:
            variant = variant._replace(key_only=False, packed=False)
        if variant.sync_writes and memory:
            frames = self._with_sync_writes(start)
        elif variant.history:
            frames = self._versions(start)
        elif end is not None:
            as_of = as_of and end < len(self.history)
            frames = self._as_of(start, end) if as_of else self.current(start)
        if frames is not None:
            return encode(self._until(frames, end), variant, self.generation)
        special = self.exceptions or (self.packed and not variant.snappy)
        if special or len(self.latest) < len(self.history):
            return encode(self.current(start), variant, self.generation)
        return encode(self.history[start:], variant, self.generation, uniform=True)

    def current(self, start: int) -> Iterator[bytes]:
        """The frames above `start` that nothing has superseded, in seqno order."""
        if start == 0:
            return compress(self.history, self.live)
        return compress(self.history[start:], self.live[start:])

    def _as_of(self, start: int, end: int) -> Iterator[bytes]:
        """The frames in ``(start, end]`` that nothing up to `end` has superseded, in seqno order.

        Those of a node that has the changes after `end` in memory only, or in another checkpoint.
        """
        newest: dict[bytes, int] = {}
        dropped: dict[int, int] = {}
        for seqno, frame in enumerate(self.history[:end], 1):
            newest[items.stored_key(frame)] = seqno
            if frame[1] == items.EVENT and items.event_of(frame)[0] == SystemEventId.DROP_COLLECTION:
                dropped[items.event_of(frame)[2]] = seqno
        committed = {prepared for done, prepared in self.commits.items() if done <= end}
        for seqno, frame in enumerate(self.history[start:end], start + 1):
            key = items.stored_key(frame)
            if newest[key] != seqno or seqno in committed:
                continue
            if frame[1] != items.EVENT and dropped.get(items.collection_of(items.key_of(frame)), 0) > seqno:
                continue
            purged = seqno <= self.purge_seqno and not self.live[seqno - 1] and key not in self.latest
            if not (purged and frame[1] in (items.DELETION, items.EXPIRATION)):
                yield frame

    def _versions(self, start: int) -> Iterator[bytes]:
        """All frames above `start`, superseded or not, but those of dropped collections."""
        for frame in self.history[start:]:
            if frame[1] == items.EVENT or items.collection_of(items.key_of(frame)) not in self.dropped:
                yield frame

    def _with_sync_writes(self, start: int) -> Iterator[bytes]:
        for seqno, frame in enumerate(self.history[start:], start + 1):
            if frame[1] == items.PREPARE:
                yield frame
            elif self.live[seqno - 1]:
                prepared = self.commits.get(seqno)
                if prepared is not None:
                    key = items.key_of(frame)
                    yield items.completion(items.COMMIT, self.id, key, prepared=prepared, seqno=seqno)
                else:
                    yield frame

    @staticmethod
    def _until(frames: Iterator[bytes], end: int | None) -> Iterator[bytes]:
        return frames if end is None else takewhile(lambda frame: items.seqno_of(frame) <= end, frames)

    def max_visible(self, end: int) -> int:
        """The newest seqno up to `end` that everybody may see."""
        while end and self.history[end - 1][1] in (items.PREPARE, items.ABORT):
            end -= 1
        return end

    def high_prepared(self) -> int:
        """The newest seqno of a prepared write, whether it waits or not."""
        found = (seqno for seqno, frame in enumerate(self.history, 1) if frame[1] == items.PREPARE)
        return max(found, default=0)

    def high_completed(self) -> int:
        """The newest seqno of a prepared write that was committed or aborted."""
        aborted = (items.prepared_of(frame) for frame in self.history if frame[1] == items.ABORT)
        return max([*self.commits.values(), *aborted], default=0)

    def keys(self) -> Iterator[bytes]:
        """Prefixed keys of the documents that exist."""
        return (items.key_of(f) for f in compress(self.history, self.live) if f[1] == items.MUTATION)

    def collection_begin(self, cid: int) -> int:
        """Seqno of a collection's creation; 0 of the default one, and of one that is not in this vbucket."""
        created = self.latest.get(items.event_key(0, cid), 0) if cid else 0
        known = created and items.event_of(self.history[created - 1])[0] == SystemEventId.CREATE_COLLECTION
        return created if known else 0

    def collection_high(self, cid: int) -> int | None:
        """Highest seqno of a collection, its creation included; None if it is not in this vbucket."""
        if cid == 0:
            return self.default_high
        created = self.collection_begin(cid)
        if not created:
            return None
        for seqno in range(len(self.history), created, -1):
            frame = self.history[seqno - 1]
            if frame[1] != items.EVENT and items.collection_of(items.key_of(frame)) == cid:
                return seqno
        return created

    def truncate(self, seqno: int) -> None:
        """Lose all history above `seqno` and begin a new one there, as a hard failover does."""
        kept = self.history[:seqno]
        commits = {done: prepared for done, prepared in self.commits.items() if done <= seqno}
        self._clear()
        self.commits = commits
        for frame in kept:
            key = items.stored_key(frame)
            self._append(key, frame, self.find(key))
        entry = FailoverEntry(self.new_uuid(), seqno)
        older = [e for e in self.failover if e.seqno <= seqno]
        self.failover = [entry, *older][:FAILOVER_LOG_MAX_ENTRIES]
        self.purge_seqno = min(self.purge_seqno, seqno)

    def purge(self) -> int:
        """Forget tombstones for good, but that of the newest change; how many."""
        gone = [
            (key, seqno)
            for key, seqno in self.latest.items()
            if seqno < len(self.history) and self.history[seqno - 1][1] in (items.DELETION, items.EXPIRATION)
        ]
        for key, seqno in gone:
            del self.latest[key]
            self.live[seqno - 1] = 0
        if gone:
            self.purge_seqno = max(self.purge_seqno, *(seqno for _, seqno in gone))
            self.generation += 1
        return len(gone)

    def flush(self) -> None:
        """Lose everything; the failover log starts over."""
        self._clear()
        self.purge_seqno = 0
        self.failover = [FailoverEntry(self.new_uuid(), 0)]

    def _clear(self) -> None:
        self.history, self.live, self.latest = [], bytearray(), {}
        self.commits, self.dropped, self.memory_from, self.checkpoints = {}, set(), None, []
        self.documents = self.exceptions = self.packed = self.default_high = 0
        self.encoded.clear()
        self.generation += 1
