"""Scopes and collections of the bucket, and the answers that describe them."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from cbframe.errors import ConfigurationError
from cbframe.wire.constants import SystemEventId

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


class Manifest:
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
        """What a vbucket that knows of nothing is told: all scopes and collections but the default ones."""
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
