"""The collections manifest: which scopes and collections there are, and their numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from cbframe.cluster.answers import as_mapping, hexadecimal_field, mappings_field, text_field
from cbframe.errors import ClusterMapError, ConfigurationError

SYSTEM_SCOPE = "_system"
"""The server's own."""
_MAX_ID = 0xFFFFFFFF


@dataclass(frozen=True, slots=True, order=True)
class CollectionName:
    """Scope and collection; ``str()`` gives ``scope.collection``."""

    scope: str
    name: str

    def __str__(self) -> str:
        return f"{self.scope}.{self.name}"


@dataclass(frozen=True, slots=True)
class CollectionsManifest:
    """The scopes and collections of a bucket at one moment."""

    uid: int  # version of the manifest; grows with every change
    scopes: Mapping[str, int]  # number of each scope, by name
    collections: Mapping[int, CollectionName]  # name of each collection, by number

    @classmethod
    def parse(cls, answer: Mapping[str, object] | str | bytes) -> CollectionsManifest:
        """Read the JSON of the cluster manager or of GET_COLLECTIONS_MANIFEST."""
        source = _decode(answer) if isinstance(answer, str | bytes) else answer
        scopes: dict[str, int] = {}
        collections: dict[int, CollectionName] = {}
        for scope in mappings_field(source, "scopes"):
            scope_name = text_field(scope, "name")
            if scope_name in scopes:
                raise ClusterMapError(f"the manifest has scope {scope_name!r} twice")
            scopes[scope_name] = _number(scope)
            for collection in mappings_field(scope, "collections"):
                name = CollectionName(scope_name, text_field(collection, "name"))
                number = _number(collection)
                if number in collections:
                    raise ClusterMapError(f"the manifest has collection 0x{number:x} twice")
                collections[number] = name
        return cls(hexadecimal_field(source, "uid"), scopes, collections)

    def id_of(self, path: str) -> int:
        """Number of the collection at ``scope.collection``."""
        scope, dot, name = path.partition(".")
        if not dot:
            raise ConfigurationError(
                f"{path!r} names no collection", hint=f"write scope.collection, as in _default.{path}"
            )
        wanted = CollectionName(scope, name)
        for number, found in self.collections.items():
            if found == wanted:
                return number
        known = ", ".join(map(str, sorted(self.collections.values())))
        raise ConfigurationError(
            f"no collection {path!r} in the bucket that this user sees",
            hint=f"the user sees: {known or 'none'}",
        )

    def scope_id(self, name: str) -> int:
        """Number of a scope."""
        if name not in self.scopes:
            known = ", ".join(sorted(self.scopes))
            raise ConfigurationError(
                f"no scope {name!r} in the bucket that this user sees",
                hint=f"the user sees: {known or 'none'}",
            )
        return self.scopes[name]

    def collections_of(self, scope: str | None) -> dict[int, CollectionName]:
        """The collections of one scope, by number; None: of all but the server's own."""
        if scope is None:
            return {cid: name for cid, name in self.collections.items() if name.scope != SYSTEM_SCOPE}
        self.scope_id(scope)
        return {cid: name for cid, name in self.collections.items() if name.scope == scope}


def _decode(answer: str | bytes) -> Mapping[str, object]:
    try:
        value = json.loads(answer)
    except (ValueError, RecursionError) as error:
        raise ClusterMapError("the collections manifest is not JSON") from error
    return as_mapping(value, "manifest")


def _number(source: Mapping[str, object]) -> int:
    number = hexadecimal_field(source, "uid")
    if number > _MAX_ID:
        raise ClusterMapError(f"the manifest has the number 0x{number:x}, longer than 32 bits")
    return number
