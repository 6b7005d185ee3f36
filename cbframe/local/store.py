"""One vbucket: its history, which of it is current, its failover log."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import compress
from typing import NamedTuple

from cbframe.local import items
from cbframe.local.encode import Encoded, Variant, encode, ready
from cbframe.typing import ReadableBuffer
from cbframe.wire.constants import FAILOVER_LOG_MAX_ENTRIES, Datatype, SystemEventId
from cbframe.wire.failover import FailoverEntry
from cbframe.wire.xattrs import join_xattrs, split_xattrs


class Document(NamedTuple):
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

    def find(self, key: bytes) -> bytes | None:
        """The current frame of a prefixed key: a mutation or a tombstone."""
        seqno = self.latest.get(key)
        return None if seqno is None else self.history[seqno - 1]

    def document(self, key: bytes) -> Document | None:
        """The current document under a prefixed key."""
        frame = self.find(key)
        if frame is None or frame[1] != items.MUTATION:
            return None
        value, datatype = items.plain_value_of(frame)
        return Document(
            value,
            items.flags_of(frame),
            items.expiry_of(frame),
            datatype,
            items.cas_of(frame),
            items.rev_of(frame),
        )

    def put(
        self, key: bytes, value: ReadableBuffer, *, cas: int, flags: int, expiry: int, datatype: int
    ) -> int:
        """Append a mutation; its seqno."""
        old = self.find(key)
        seqno = len(self.history) + 1
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

    def remove(self, key: bytes, *, cas: int, when: int, expired: bool) -> int | None:
        """Append a tombstone; its seqno, or None if there is no such document."""
        old = self.find(key)
        if old is None or old[1] != items.MUTATION:
            return None
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
        if old is not None:
            self.live[self.latest[key] - 1] = 0
            self.documents -= old[1] == items.MUTATION
        self.history.append(frame)
        self.live.append(1)
        self.latest[key] = len(self.history)
        self.documents += frame[1] == items.MUTATION
        if key[0] == 0:
            self.default_high = len(self.history)
        self.generation += 1
        self.exceptions += not ready(frame)
        self.packed += bool(frame[5] & items.SNAPPY)
        if frame[1] == items.EVENT:
            event, _, cid = items.event_of(frame)
            if event == SystemEventId.DROP_COLLECTION:
                self._forget(cid)

    def _forget(self, cid: int) -> None:
        """A dropped collection's documents vanish from backfills without tombstones."""
        gone = [key for key in self.latest if items.collection_of(key) == cid]
        for key in gone:
            seqno = self.latest.pop(key)
            self.live[seqno - 1] = 0
            self.documents -= self.history[seqno - 1][1] == items.MUTATION

    def encode(self, start: int, variant: Variant) -> Encoded:
        """What a connection of this kind gets of everything current above `start`."""
        special = self.exceptions or (self.packed and not variant.snappy)
        if special or len(self.latest) < len(self.history):
            return encode(self.current(start), variant, self.generation)
        return encode(self.history[start:], variant, self.generation, uniform=True)

    def current(self, start: int) -> Iterator[bytes]:
        """The frames above `start` that nothing has superseded, in seqno order."""
        if start == 0:
            return compress(self.history, self.live)
        return compress(self.history[start:], self.live[start:])

    def keys(self) -> Iterator[bytes]:
        """Prefixed keys of the documents that exist."""
        return (items.key_of(f) for f in compress(self.history, self.live) if f[1] == items.MUTATION)

    def collection_high(self, cid: int) -> int | None:
        """Highest seqno of a collection, its creation included; None if it is not in this vbucket."""
        if cid == 0:
            return self.default_high
        created = self.latest.get(items.event_key(0, cid))
        if created is None or items.event_of(self.history[created - 1])[0] != SystemEventId.CREATE_COLLECTION:
            return None
        for seqno in range(len(self.history), created, -1):
            frame = self.history[seqno - 1]
            if frame[1] != items.EVENT and items.collection_of(items.key_of(frame)) == cid:
                return seqno
        return created

    def truncate(self, seqno: int) -> None:
        """Lose all history above `seqno` and begin a new one there, as a hard failover does."""
        kept = self.history[:seqno]
        self._clear()
        for frame in kept:
            key = items.stored_key(frame)
            self._append(key, frame, self.find(key))
        entry = FailoverEntry(self.new_uuid(), seqno)
        older = [e for e in self.failover if e.seqno <= seqno]
        self.failover = [entry, *older][:FAILOVER_LOG_MAX_ENTRIES]
        self.purge_seqno = min(self.purge_seqno, seqno)

    def flush(self) -> None:
        """Lose everything; the failover log starts over."""
        self._clear()
        self.purge_seqno = 0
        self.failover = [FailoverEntry(self.new_uuid(), 0)]

    def _clear(self) -> None:
        self.history, self.live, self.latest = [], bytearray(), {}
        self.documents = self.exceptions = self.packed = self.default_high = 0
        self.encoded.clear()
        self.generation += 1
