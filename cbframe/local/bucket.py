"""The bucket: its vbuckets and their histories, who owns them, its scopes and collections.

One lock guards all of it. The nodes' threads take it for each request, and whoever calls
:class:`~cbframe.LocalCluster` takes it for each verb. A write ends with :meth:`LocalBucket.written`, under
the lock, which wakes the nodes that have a stream of the vbucket.
"""

from __future__ import annotations

import json
import random
import re
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import compress, islice, takewhile
from typing import Any, NamedTuple

from cbframe.errors import ConfigurationError
from cbframe.local import items
from cbframe.local.items import Encoded, Variant, deflate, encode, inflate, prefixed, ready
from cbframe.local.release import RELEASES
from cbframe.wire.constants import (
    FAILOVER_LOG_MAX_ENTRIES,
    MAX_KEY_LENGTH,
    MAX_VALUE_LENGTH,
    MAX_VBUCKETS,
    Datatype,
    SystemEventId,
)
from cbframe.wire.framing import ReadableBuffer
from cbframe.wire.messages import FailoverEntry, join_xattrs, split_xattrs, vbucket_of

Value = bytes | str | dict[str, Any] | list[Any]

FLAGS_JSON = 0x0200_0000
FLAGS_BINARY = 0x0300_0000
"""How the SDKs mark what a document is."""
_NAME = re.compile(r"[A-Za-z0-9-][A-Za-z0-9_%-]{0,250}")
_FIRST_FREE_ID = 8
"""Ids below are reserved."""
_BULK_STEP = 4096
"""Documents loaded under one hold of the lock, so that streams go on meanwhile."""
_RELATIVE_EXPIRY_LIMIT = 30 * 24 * 3600


# ------------------------------------------------------------------ vbuckets


class StoredDocument(NamedTuple):
    """The current version of a document, as KV operations see it."""

    value: bytes
    flags: int
    expiry: int
    datatype: int
    cas: int
    rev: int


@dataclass(slots=True)
class Lag:
    """What keeps a node's copy of a vbucket behind."""

    received: int | None = None  # it gets no changes after this seqno; None: all
    persisted: int | None = None  # what it has on disk, where it writes no more; None: all that it gets
    log: list[FailoverEntry] = field(default_factory=list)  # as it was when it got its last change


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
    lags: dict[int, Lag] = field(default_factory=dict, repr=False)
    """By node; the other copies have everything, on disk, too."""
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
        value, datatype = items.inflated(items.value_of(frame), frame[5])
        flags, expiry = items.flags_of(frame), items.expiry_of(frame)
        return StoredDocument(value, flags, expiry, datatype, items.cas_of(frame), items.rev_of(frame))

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
        rev = 1 if old is None else items.rev_of(old) + 1
        seqno = len(self.history) + 1
        if prepared:
            self.commits[seqno] = prepared
        frame = items.mutation(
            self.id, key, value, seqno=seqno, rev=rev, cas=cas, flags=flags, expiry=expiry, datatype=datatype
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
        rev = 1 if old is None else items.rev_of(old) + 1
        seqno = len(self.history) + 1
        frame = items.prepare(
            self.id,
            key,
            value,
            seqno=seqno,
            rev=rev,
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
            value, _ = items.inflated(items.value_of(old), old[5])
            kept = {n: v for n, v in split_xattrs(value).xattrs.items() if n.startswith("_")}
            section = join_xattrs(kept, b"") if kept else b""
        seqno, rev = len(self.history) + 1, items.rev_of(old) + 1
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
        plain = frame[1] in (items.MUTATION, *items.REMOVALS)
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
        if memory:
            variant = variant._replace(key_only=False, packed=False)
        if variant.sync_writes and memory:
            frames = self._with_sync_writes(start)
        elif variant.history:
            frames = self._versions(start)
        elif end is not None and as_of and end < len(self.history):
            frames = self._as_of(start, end)
        else:
            special = self.exceptions or (self.packed and not variant.snappy)
            if end is None and not special and len(self.latest) == len(self.history):
                return encode(self.history[start:], variant, self.generation, uniform=True)
            frames = self.current(start)
        if end is not None:
            frames = takewhile(lambda frame: items.seqno_of(frame) <= end, frames)
        return encode(frames, variant, self.generation)

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
            if not (purged and frame[1] in items.REMOVALS):
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

    def document_keys(self) -> Iterator[bytes]:
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

    def hold(self, node: int, *, replication: bool) -> None:
        """Have a node's copy stay behind from now on: it gets no changes, or writes none to disk."""
        received, persisted, log = self.copy(node)
        lag = self.lags.setdefault(node, Lag())
        if replication:
            lag.received, lag.log = received, log
        else:
            lag.persisted = persisted

    def copy(self, node: int) -> tuple[int, int, list[FailoverEntry]]:
        """How much a node's copy has, how much of it on disk, and the histories that it knows of."""
        lag = self.lags.get(node, Lag())
        received = self.high_seqno if lag.received is None else lag.received
        persisted = received if lag.persisted is None else min(received, lag.persisted)
        return received, persisted, self.failover if lag.received is None else lag.log

    def truncate(self, seqno: int) -> None:
        """Lose all history above `seqno` and begin a new one there, as a hard failover does."""
        for lag in self.lags.values():
            if lag.received is None and lag.persisted is not None:
                lag.persisted = min(lag.persisted, seqno)
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
            if seqno < len(self.history) and self.history[seqno - 1][1] in items.REMOVALS
        ]
        for key, seqno in gone:
            del self.latest[key]
            self.live[seqno - 1] = 0
        if gone:
            self.purge_seqno = max(self.purge_seqno, *(seqno for _, seqno in gone))
            self.generation += 1
        return len(gone)

    def flush(self) -> None:
        """Lose everything; the failover log starts over, and no copy is behind."""
        self._clear()
        self.lags.clear()
        self.purge_seqno = 0
        self.failover = [FailoverEntry(self.new_uuid(), 0)]

    def _clear(self) -> None:
        self.history, self.live, self.latest = [], bytearray(), {}
        self.commits, self.dropped, self.memory_from, self.checkpoints = {}, set(), None, []
        self.documents = self.exceptions = self.packed = self.default_high = 0
        self.encoded.clear()
        self.generation += 1


# ------------------------------------------------------------------ scopes and collections


class UnknownScopeError(KeyError):
    """No scope of that name or id."""


class UnknownCollectionError(KeyError):
    """No collection of that name or id."""


@dataclass(frozen=True, slots=True)
class Event:
    """A change of the manifest, as every vbucket records it."""

    event: SystemEventId
    name: bytes
    value: bytes
    version: int = 0


@dataclass(slots=True)
class Scope:
    id: int
    collections: dict[str, int] = field(default_factory=dict)


class LocalManifest:
    """Names and ids; the owner holds the bucket's lock around every call."""

    def __init__(self, *, history: bool = False) -> None:
        self.uid = 0
        self.history = history
        """Whether collections keep every version."""
        self.scopes: dict[str, Scope] = {"_default": Scope(0, {"_default": 0})}
        self._max_ttl: dict[int, int] = {}
        self._next_scope = self._next_collection = _FIRST_FREE_ID

    def create_scope(self, name: str) -> Event:
        _check_name(name)
        if name in self.scopes:
            raise ConfigurationError(f"scope {name} exists already")
        scope = self.scopes[name] = Scope(self._next_scope)
        self._next_scope += 1
        self.uid += 1
        return self._event(SystemEventId.CREATE_SCOPE, name, scope.id)

    def create_collection(self, scope_name: str, name: str, max_ttl: int = 0) -> Event:
        _check_name(name)
        scope = self.scope(scope_name)
        if name in scope.collections:
            raise ConfigurationError(f"collection {scope_name}.{name} exists already")
        cid = scope.collections[name] = self._next_collection
        self._next_collection += 1
        self.uid += 1
        if max_ttl:
            self._max_ttl[cid] = max_ttl
        return self._created(scope, name)

    def _created(self, scope: Scope, name: str) -> Event:
        cid = scope.collections[name]
        max_ttl = [ttl] if (ttl := self._max_ttl.get(cid, 0)) else []
        return self._event(
            SystemEventId.CREATE_COLLECTION, name, scope.id, cid, *max_ttl, version=len(max_ttl)
        )

    def _event(self, event: SystemEventId, name: str, *numbers: int, version: int = 0) -> Event:
        value = struct.pack(f">Q{len(numbers)}I", self.uid, *numbers)
        return Event(event, name.encode(), value, version)

    def events(self) -> list[Event]:
        """Events for an empty vbucket: all scopes and collections but the default ones."""
        found = []
        for scope_name, scope in self.scopes.items():
            if scope.id:
                found.append(self._event(SystemEventId.CREATE_SCOPE, scope_name, scope.id))
            found += [self._created(scope, name) for name, cid in scope.collections.items() if cid]
        return found

    def modify_collection(self, scope_name: str, name: str, max_ttl: int) -> Event:
        scope = self.scope(scope_name)
        cid = self.collection(scope_name, name)
        self._max_ttl[cid] = max_ttl
        self.uid += 1
        return self._event(SystemEventId.MODIFY_COLLECTION, name, scope.id, cid, max_ttl, version=1)

    def drop_collection(self, scope_name: str, name: str) -> Event:
        scope = self.scope(scope_name)
        cid = self.collection(scope_name, name)
        if cid == 0:
            raise ConfigurationError("the embedded cluster keeps its default collection")
        del scope.collections[name]
        self.uid += 1
        return self._event(SystemEventId.DROP_COLLECTION, "", scope.id, cid)

    def drop_scope(self, name: str) -> list[Event]:
        """The scope's collections go first; only the last event has the new manifest uid."""
        scope = self.scope(name)
        if scope.id == 0:
            raise ConfigurationError("the default scope cannot be dropped")
        collections = scope.collections.values()
        events = [self._event(SystemEventId.DROP_COLLECTION, "", scope.id, cid) for cid in collections]
        del self.scopes[name]
        self.uid += 1
        return [*events, self._event(SystemEventId.DROP_SCOPE, "", scope.id)]

    def scope(self, name: str) -> Scope:
        if name not in self.scopes:
            raise UnknownScopeError(name)
        return self.scopes[name]

    def collection(self, scope_name: str, name: str) -> int:
        """Id by names; an empty name is the default one."""
        scope = self.scope(scope_name or "_default")
        name = name or "_default"
        if name not in scope.collections:
            raise UnknownCollectionError(name)
        return scope.collections[name]

    def resolve(self, path: str | int) -> int:
        """Id of ``scope.collection``, of ``collection`` in the default scope, or of an id."""
        if isinstance(path, int):
            if path not in self.ids():
                raise UnknownCollectionError(path)
            return path
        scope, _, name = path.rpartition(".")
        return self.collection(scope, name)

    def ids(self) -> frozenset[int]:
        """Ids of all collections."""
        return frozenset(cid for scope in self.scopes.values() for cid in scope.collections.values())

    def scope_ids(self, scope_id: int) -> frozenset[int]:
        """Ids of the collections of a scope."""
        for scope in self.scopes.values():
            if scope.id == scope_id:
                return frozenset(scope.collections.values())
        raise UnknownScopeError(scope_id)

    def scope_of(self, collection_id: int) -> int:
        """Id of the scope of a collection."""
        for scope in self.scopes.values():
            if collection_id in scope.collections.values():
                return scope.id
        raise UnknownCollectionError(collection_id)

    def json(self, visible: Callable[[int, int | None], bool] = lambda _scope, _cid: True) -> dict[str, Any]:
        """As REST and KV answer it, of all collections or some: ids in hexadecimal, without prefix."""
        scopes = []
        for name, scope in self.scopes.items():
            shown = [
                {
                    "name": collection,
                    "uid": f"{cid:x}",
                    "maxTTL": self._max_ttl.get(cid, 0),
                    "history": self.history,
                }
                for collection, cid in scope.collections.items()
                if visible(scope.id, cid)
            ]
            if shown or visible(scope.id, None):
                scopes.append({"name": name, "uid": f"{scope.id:x}", "collections": shown})
        return {"uid": f"{self.uid:x}", "scopes": scopes}


# ------------------------------------------------------------------ all of it


class LocalBucket:
    """Data and topology of one bucket, shared by all nodes; see :class:`~cbframe.LocalCluster`."""

    def __init__(
        self,
        name: str,
        vbuckets: int,
        nodes: int,
        *,
        replicas: int = 0,
        seed: int | None = None,
        version: str = "7.2",
        sending: str = "node",
        marker_version: str | None = None,
        history: bool = False,
        flush_enabled: bool = True,
        ephemeral: bool = False,
        skip_deletions: bool = False,
    ) -> None:
        if nodes < 1:
            raise ConfigurationError("a cluster needs at least one node")
        if not 0 <= replicas < min(nodes, 4):
            raise ConfigurationError(f"{replicas} replicas need more nodes than {nodes}, and are at most 3")
        self._rng = random.Random(seed)
        self._replicas = replicas
        self._cas = 0
        self.name = name
        self.history = history
        self.flush_enabled = flush_enabled
        self.ephemeral = ephemeral
        self.skip_deletions = skip_deletions
        self.release = RELEASES[version]
        self.is_8 = self.release.is_8
        self.bulk = sending == "bulk"
        """Whether nodes send as much as they have in one call."""
        self.marker_version = marker_version or self.release.marker_version
        self.lock = threading.RLock()
        self.rev = 0
        self.deleted = False
        """Whether nobody finds it."""
        self.paused = False
        """Whether it is in the cluster, and on no node."""
        self.on_write: list[Callable[[int], None]] = []
        """Called with the vbucket, lock held, after its high seqno rose. Must not block."""
        self.renew(vbuckets, list(range(nodes)))
        self.cluster_uuid = f"{self._rng.getrandbits(128):032x}"

    def renew(self, vbuckets: int, members: list[int]) -> None:
        """Be another bucket of the same name, on these nodes; the lock is held."""
        check_vbuckets(vbuckets)
        count = len(members)
        self.uuid = f"{self._rng.getrandbits(128):032x}"
        self.vbuckets = [VBucket(vb, self._rng) for vb in range(vbuckets)]
        self.map = [
            [members[(vb * count // vbuckets + copy) % count] for copy in range(1 + self._replicas)]
            for vb in range(vbuckets)
        ]
        self.manifest = LocalManifest(history=self.history)
        self.rev += 1

    # ------------------------------------------------------------------ documents

    def vbucket_for(self, key: bytes) -> VBucket:
        return self.vbuckets[vbucket_of(key, len(self.vbuckets))]

    def next_cas(self) -> int:
        """A hybrid logical clock: nanoseconds, the low 16 bits a counter; strictly rising."""
        self._cas = max(time.time_ns() & ~0xFFFF, self._cas + 1)
        return self._cas

    def upsert(
        self,
        key: bytes,
        value: Value,
        *,
        cid: int = 0,
        expiry: int = 0,
        flags: int | None = None,
        datatype: int | None = None,
        xattrs: Mapping[str, Any] | None = None,
        compress: bool = False,
    ) -> int:
        """Write a document; its seqno. `datatype` None: JSON if the value is valid JSON."""
        body = to_bytes(value)
        check_size(key, body)
        if datatype is None:
            datatype = json_datatype(body)
        if flags is None:
            flags = FLAGS_JSON if datatype & Datatype.JSON else FLAGS_BINARY
        if xattrs:
            names = sorted(xattrs) if self.is_8 else xattrs
            body = join_xattrs({name: to_json(xattrs[name]) for name in names}, body)
            datatype |= Datatype.XATTR
        if datatype & Datatype.SNAPPY:
            inflate(body, 2 * MAX_VALUE_LENGTH)  # A broken block would break every stream.
        if compress:
            body = deflate(body)
            datatype |= Datatype.SNAPPY
        with self.lock:
            vbucket = self.vbucket_for(key)
            expiry = absolute_expiry(expiry)
            cas = self.next_cas()
            stored = prefixed(cid, key)
            seqno = vbucket.put(stored, body, cas=cas, flags=flags, expiry=expiry, datatype=datatype)
            self.written(vbucket.id)
        return seqno

    def delete(self, key: bytes, *, cid: int = 0, expired: bool = False) -> int | None:
        """Turn a document into a tombstone; its seqno, or None without such a document."""
        with self.lock:
            vbucket = self.vbucket_for(key)
            seqno = vbucket.remove(prefixed(cid, key), cas=self.next_cas(), when=self.now(), expired=expired)
            if seqno is not None:
                self.written(vbucket.id)
        return seqno

    def get(self, key: bytes, *, cid: int = 0) -> StoredDocument | None:
        """The document; one whose time has come turns into an expiration here."""
        with self.lock:
            return self.read(self.vbucket_for(key), prefixed(cid, key))

    def read(self, vbucket: VBucket, key: bytes) -> StoredDocument | None:
        """The document under a prefixed key, unless its time has come: then it expires; the lock is held."""
        document = vbucket.document(key)
        if document is None or not 0 < document.expiry < self.now():
            return document
        vbucket.remove(key, cas=self.next_cas(), when=self.now(), expired=True)
        self.written(vbucket.id)
        return None

    def bulk_load(
        self, pairs: Iterable[tuple[bytes, bytes]], *, cid: int, flags: int | None, datatype: int | None
    ) -> int:
        """Write many documents; how many.

        With `datatype` None a value that begins like an object or array is JSON, without proof.
        """
        count = len(self.vbuckets)
        prefix = prefixed(cid, b"")
        iterator = iter(pairs)
        loaded = 0
        while batch := list(islice(iterator, _BULK_STEP)):
            touched = set()
            with self.lock:
                for key, value in batch:
                    check_size(key, value)
                    kind = int(value[:1] in {b"{", b"["}) if datatype is None else datatype
                    marks = (FLAGS_JSON if kind else FLAGS_BINARY) if flags is None else flags
                    vb = vbucket_of(key, count)
                    self._cas += 1
                    self.vbuckets[vb].put(
                        prefix + key, value, cas=self._cas, flags=marks, expiry=0, datatype=kind
                    )
                    touched.add(vb)
                self.next_cas()
                for vb in touched:
                    self.written(vb)
            loaded += len(batch)
        return loaded

    def expire_due(self) -> int:
        """Turn every document whose expiry has passed into an expiration; how many."""
        with self.lock:
            documents = [(vbucket, key) for vbucket in self.vbuckets for key in vbucket.document_keys()]
            return sum(self.read(vbucket, key) is None for vbucket, key in documents)

    @staticmethod
    def now() -> int:
        """Seconds since the epoch, as expiries and delete times count."""
        return int(time.time())

    def written(self, vb: int) -> None:
        """Tell the nodes that the vbucket's high seqno rose; the lock is held."""
        for listener in self.on_write:
            listener(vb)

    def record(self, events: Iterable[Event]) -> None:
        """Write manifest changes into every vbucket; the lock is held."""
        for event in events:
            for vbucket in self.vbuckets:
                vbucket.add_event(event.event, event.name, event.value, event.version)
        self.rev += 1
        for vbucket in self.vbuckets:
            self.written(vbucket.id)


def to_bytes(value: Value) -> bytes:
    """A document's bytes: text as UTF-8, a dict or list as JSON."""
    if isinstance(value, bytes):
        return value
    return value.encode() if isinstance(value, str) else to_json(value)


def to_json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def is_json(value: bytes) -> bool:
    """Whether the bytes are one JSON value, as the data service checks on every write."""
    try:
        json.loads(value)
    except (ValueError, RecursionError):
        return False
    return True


def json_datatype(value: bytes) -> int:
    return int(Datatype.JSON) if is_json(value) else 0


def check_vbuckets(vbuckets: int) -> None:
    if not 1 <= vbuckets <= MAX_VBUCKETS:
        raise ConfigurationError(f"{vbuckets} vbuckets are outside 1-{MAX_VBUCKETS}")


def check_size(key: bytes, value: bytes) -> None:
    if not 0 < len(key) <= MAX_KEY_LENGTH:
        raise ConfigurationError(f"a key of {len(key)} bytes is outside 1-{MAX_KEY_LENGTH}")
    if len(value) > MAX_VALUE_LENGTH:
        raise ConfigurationError(f"a value of {len(value)} bytes is over {MAX_VALUE_LENGTH}")


def absolute_expiry(expiry: int) -> int:
    """Expiry as stored: up to 30 days count from now, more is a time already."""
    return int(time.time()) + expiry if 0 < expiry <= _RELATIVE_EXPIRY_LIMIT else expiry


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise ConfigurationError(f"{name!r} is no name for a scope or collection")
