"""The bucket: all vbuckets, who owns them, scopes and collections, and every change of these."""

from __future__ import annotations

import json
import random
import re
import struct
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from cbframe.errors import ConfigurationError
from cbframe.local.items import deflate, inflate, prefixed
from cbframe.local.release import RELEASES
from cbframe.local.vbucket import StoredDocument, VBucket
from cbframe.wire.constants import MAX_KEY_LENGTH, MAX_VALUE_LENGTH, MAX_VBUCKETS, Datatype, SystemEventId
from cbframe.wire.messages import join_xattrs, vbucket_of

_NAME = re.compile(r"[A-Za-z0-9-][A-Za-z0-9_%-]{0,250}")
_FIRST_FREE_ID = 8
"""Ids below are reserved."""


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


class UnknownScopeError(KeyError):
    """No scope of that name or id."""


class UnknownCollectionError(KeyError):
    """No collection of that name or id."""


class CollectionsManifest:
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
        return Event(SystemEventId.CREATE_SCOPE, name.encode(), struct.pack(">QI", self.uid, scope.id))

    def create_collection(self, scope_name: str, name: str, max_ttl: int = 0) -> tuple[int, Event]:
        _check_name(name)
        scope = self.scope(scope_name)
        if name in scope.collections:
            raise ConfigurationError(f"collection {scope_name}.{name} exists already")
        cid = scope.collections[name] = self._next_collection
        self._next_collection += 1
        self.uid += 1
        if max_ttl:
            self._max_ttl[cid] = max_ttl
        return cid, self._created(scope, name)

    def _created(self, scope: Scope, name: str) -> Event:
        cid = scope.collections[name]
        value = struct.pack(">QII", self.uid, scope.id, cid)
        max_ttl = self._max_ttl.get(cid, 0)
        if max_ttl:
            value += struct.pack(">I", max_ttl)
        return Event(SystemEventId.CREATE_COLLECTION, name.encode(), value, 1 if max_ttl else 0)

    def events(self) -> list[Event]:
        """Events for an empty vbucket: all scopes and collections but the default ones."""
        found = []
        for scope_name, scope in self.scopes.items():
            if scope.id:
                value = struct.pack(">QI", self.uid, scope.id)
                found.append(Event(SystemEventId.CREATE_SCOPE, scope_name.encode(), value))
            found += [self._created(scope, name) for name, cid in scope.collections.items() if cid]
        return found

    def modify_collection(self, scope_name: str, name: str, max_ttl: int) -> Event:
        scope = self.scope(scope_name)
        cid = self.collection(scope_name, name)
        self._max_ttl[cid] = max_ttl
        self.uid += 1
        value = struct.pack(">QIII", self.uid, scope.id, cid, max_ttl)
        return Event(SystemEventId.MODIFY_COLLECTION, name.encode(), value, 1)

    def drop_collection(self, scope_name: str, name: str) -> Event:
        scope = self.scope(scope_name)
        cid = self.collection(scope_name, name)
        if cid == 0:
            raise ConfigurationError("the embedded cluster keeps its default collection")
        del scope.collections[name]
        self.uid += 1
        return Event(SystemEventId.DROP_COLLECTION, b"", struct.pack(">QII", self.uid, scope.id, cid))

    def drop_scope(self, name: str) -> list[Event]:
        """The scope's collections go first; only the last event has the new manifest uid."""
        scope = self.scope(name)
        if scope.id == 0:
            raise ConfigurationError("the default scope cannot be dropped")
        events = [
            Event(SystemEventId.DROP_COLLECTION, b"", struct.pack(">QII", self.uid, scope.id, cid))
            for cid in scope.collections.values()
        ]
        del self.scopes[name]
        self.uid += 1
        events.append(Event(SystemEventId.DROP_SCOPE, b"", struct.pack(">QI", self.uid, scope.id)))
        return events

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


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise ConfigurationError(f"{name!r} is no name for a scope or collection")


FLAGS_JSON = 0x0200_0000
FLAGS_BINARY = 0x0300_0000
"""How the SDKs mark what a document is."""
_BULK_STEP = 4096
"""Documents loaded under one hold of the lock, so that streams go on meanwhile."""
_RELATIVE_EXPIRY_LIMIT = 30 * 24 * 3600

Value = bytes | str | dict[str, Any] | list[Any]


class LocalBucket:
    """Data and topology of one bucket, shared by all nodes of the embedded cluster."""

    def __init__(
        self, name: str, vbuckets: int, nodes: int, replicas: int, seed: int | None, *, history: bool = False
    ) -> None:
        if nodes < 1:
            raise ConfigurationError("a cluster needs at least one node")
        if not 0 <= replicas < min(nodes, 4):
            raise ConfigurationError(f"{replicas} replicas need more nodes than {nodes}, and are at most 3")
        self._rng = random.Random(seed)
        self._replicas = replicas
        self.history = history
        self.name = name
        self.lock = threading.RLock()
        self.rev = 0
        self.renew(vbuckets, list(range(nodes)))
        self.cluster_uuid = f"{self._rng.getrandbits(128):032x}"
        self.on_write: list[Callable[[int], None]] = []
        """Called with the vbucket, lock held, after its high seqno rose. Must not block."""
        self.deleted = False
        """Whether nobody finds it."""
        self.paused = False
        """Whether it is in the cluster, and on no node."""
        self.flush_enabled = True
        self.ephemeral = False
        """Whether it is in memory only: what a node had is gone with it."""
        self.skip_deletions = False
        """Whether clients may have deletions left out of first backfills."""
        self.release = RELEASES["7.2"]
        """The server release whose behaviour is reproduced."""
        self.bulk = False
        """Whether nodes send as much as they have in one call."""
        self.marker_version = self.release.marker_version
        """The newest version of snapshot markers that clients may ask for."""
        self._cas = 0

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
        self.manifest = CollectionsManifest(history=self.history)
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
            datatype = int(Datatype.JSON) if is_json(body) else 0
        if flags is None:
            flags = FLAGS_JSON if datatype & Datatype.JSON else FLAGS_BINARY
        if xattrs:
            names = sorted(xattrs) if self.release.is_8 else xattrs
            section = {name: to_json(xattrs[name]) for name in names}
            body = join_xattrs(section, body)
            datatype |= Datatype.XATTR
        if datatype & Datatype.SNAPPY:
            inflate(body, 2 * MAX_VALUE_LENGTH)  # A broken block would break every stream.
        if compress:
            body = deflate(body)
            datatype |= Datatype.SNAPPY
        with self.lock:
            vbucket = self.vbucket_for(key)
            seqno = vbucket.put(
                prefixed(cid, key),
                body,
                cas=self.next_cas(),
                flags=flags,
                expiry=absolute_expiry(expiry),
                datatype=datatype,
            )
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
            document = self.vbucket_for(key).document(prefixed(cid, key))
            if document is not None and 0 < document.expiry < self.now():
                self.delete(key, cid=cid, expired=True)
                return None
        return document

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
                    kind = (value[:1] in {b"{", b"["}) if datatype is None else datatype
                    vb = vbucket_of(key, count)
                    self._cas += 1
                    self.vbuckets[vb].put(
                        prefix + key,
                        value,
                        cas=self._cas,
                        flags=(FLAGS_JSON if kind else FLAGS_BINARY) if flags is None else flags,
                        expiry=0,
                        datatype=int(kind),
                    )
                    touched.add(vb)
                self.next_cas()
                for vb in touched:
                    self.written(vb)
            loaded += len(batch)
        return loaded

    def expire_due(self) -> int:
        """Turn every document whose expiry has passed into an expiration; how many."""
        now, count = self.now(), 0
        with self.lock:
            for vbucket in self.vbuckets:
                for key in list(vbucket.keys()):
                    document = vbucket.document(key)
                    if document is not None and 0 < document.expiry < now:
                        self.expire_stored(vbucket, key)
                        count += 1
        return count

    def expire_stored(self, vbucket: VBucket, key: bytes) -> None:
        """Turn the document under a prefixed key into an expiration; the lock is held."""
        vbucket.remove(key, cas=self.next_cas(), when=self.now(), expired=True)
        self.written(vbucket.id)

    @staticmethod
    def now() -> int:
        """Seconds since the epoch, as expiries and delete times count."""
        return int(time.time())

    def written(self, vb: int) -> None:
        """Tell the nodes that the vbucket's high seqno rose; the lock is held."""
        for listener in self.on_write:
            listener(vb)

    # ------------------------------------------------------------------ collections

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
    if isinstance(value, str):
        return value.encode()
    return to_json(value)


def to_json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def is_json(value: bytes) -> bool:
    """Whether the bytes are one JSON value, as the data service checks on every write."""
    try:
        json.loads(value)
    except (ValueError, RecursionError):
        return False
    return True


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
    if 0 < expiry <= _RELATIVE_EXPIRY_LIMIT:
        return int(time.time()) + expiry
    return expiry
