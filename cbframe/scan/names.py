"""Scopes and collections of a read: names to ids before it, ids to names after it.

The server filters streams by ids, and reports documents with them. So a read by name asks for the manifest
first, keeps that connection, and asks once more when the streams have ended: a collection that was asked for
and is gone then is an error, and not a result without its documents.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cbframe.arrow.columns import COLLECTION_ID, EXPIRY, KEY, METADATA_TYPES, KeyForm, distinct, formed
from cbframe.arrow.filters import predicates
from cbframe.arrow.receivers import GatheringReceiver
from cbframe.cluster.cluster_map import ClusterMap
from cbframe.cluster.collections_manifest import SYSTEM_SCOPE, CollectionName, CollectionsManifest
from cbframe.dcp.maps import MapSource, map_source, when_loaded
from cbframe.errors import ROLES_HINT, AccessError, ConfigurationError
from cbframe.options import BucketDataSourceOptions
from cbframe.scan.spec import VISIBLE, ScanSpec

_NAMES = frozenset({"scope", "collection"})


class Names:
    """The collections of one read."""

    def __init__(self, target: ScanSpec, options: BucketDataSourceOptions) -> None:
        self.target = target
        """The scan; once collections were looked up, with the names of those that the user sees."""
        self._options = options
        self._wanted: dict[int, str] = {}
        self._known: dict[int, CollectionName] = {}
        self._scope_id: int | None = None
        self._manifest_uid = 0
        self.map: ClusterMap | None = None
        """The map that came with the names, if there were any to look up."""
        self._source: MapSource | None = None
        self._at_end: CollectionsManifest | None = None
        """The manifest after the streams, where it was looked at."""

    @property
    def received(self) -> tuple[str, ...]:
        """Metadata that the read needs: also what tells whether a document has expired."""
        needed = (EXPIRY,) if self.target.expired == "drop" else ()
        return tuple(dict.fromkeys((*self.wire_metadata, *needed)))

    @property
    def wire_metadata(self) -> tuple[str, ...]:
        """Metadata columns that come from the wire: those that are asked for, and those of filters."""
        filtered = (each.path[0] for each in predicates(self.target.filters))
        return tuple(dict.fromkeys([*self._asked, *(name for name in filtered if name in METADATA_TYPES)]))

    @property
    def _asked(self) -> list[str]:
        names = (f"_cb_{name}" for name in self.target.metadata)
        return [name for name in names if name in METADATA_TYPES]

    def resolve_collections(self, until: ExitStack | None = None) -> BucketDataSourceOptions:
        """Turn the names of scopes and collections into the ids that the server filters by."""
        target, options = self.target, self._options
        if target.scope is None and target.collections is None:
            return options
        with ExitStack() as stack:
            source = (until or stack).enter_context(_source_of(target))
            self.map, found = _describe(source, target, keep=until is not None)
        self._source = None if until is None else source
        manifest = _existing(found, target)
        self._manifest_uid = manifest.uid
        target = self.target = _named(target, manifest)
        if target.named is None:
            assert target.scope is not None
            self._scope_id = manifest.scope_id(target.scope)
            return replace(options, scope_id=self._scope_id)
        scope = target.scope or "_default"
        names = [name if "." in name else f"{scope}.{name}" for name in target.named]
        self._wanted = {manifest.id_of(name): name for name in names}
        return replace(options, collections=tuple(self._wanted))

    def look_again(self) -> None:
        """Ask for the collections after the streams, over the connection that was asked before."""
        if self._source is not None:
            self._at_end = _existing(self._source.manifest_again(), self.target)

    def refuse_dropped(self, receiver: GatheringReceiver[Any]) -> None:
        """Raise if a collection or scope that was asked for by name was dropped during the read."""
        if not self._wanted and self._scope_id is None:
            return
        dropped, dropped_scopes = receiver.dropped, receiver.dropped_scopes
        # Streams that end before the drop do not report it, and the documents are gone all the same.
        manifest = self._at_end = self._at_end or fetch_manifest(self.target)
        if manifest.uid >= self._manifest_uid:
            dropped = dropped | (self._wanted.keys() - manifest.collections.keys())
            if self._scope_id is not None and self._scope_id not in manifest.scopes.values():
                dropped_scopes = dropped_scopes | {self._scope_id}
        gone = next((name for cid, name in self._wanted.items() if cid in dropped), None)
        what = f"collection {gone!r}"
        if gone is None and self._scope_id in dropped_scopes:
            gone, what = self.target.scope, f"scope {self.target.scope!r}"
        if gone is not None:
            raise ConfigurationError(
                f"{what} was dropped during the read, or is hidden from this user now",
                hint="read again, without it if it is gone",
            )

    def manifest_of(
        self, ids: npt.NDArray[np.uint32], receiver: GatheringReceiver[Any]
    ) -> CollectionsManifest | None:
        """The collections as they are now, if the documents are from more than the default one."""
        if not ids.any() and not _NAMES.intersection(self.target.metadata):
            return None
        self._at_end = self._at_end or fetch_manifest(self.target)
        return _current(self._at_end, receiver)

    def head(
        self, raw: pa.Table, manifest: CollectionsManifest | None, *, keys: KeyForm | None = None
    ) -> pa.Table:
        """The metadata columns."""
        columns: dict[str, pa.ChunkedArray | pa.Array] = {KEY: formed(raw[KEY], keys or self.target.keys)}
        for name in self._asked:
            columns[name] = raw[name]
        if manifest is not None:
            known = manifest.collections
            columns |= name_columns(raw[COLLECTION_ID].to_numpy(), lambda ids: [known[cid] for cid in ids])
        return pa.table(columns)

    def of_collections(
        self, ids: npt.NDArray[np.uint32], receiver: GatheringReceiver[Any]
    ) -> dict[str, pa.Array]:
        """Scope and collection of documents that are arriving, by column; null where it is gone."""
        if not self._known.keys() >= set(distinct(ids)):
            manifest = described(self.target)[1]
            self._known = (
                {0: CollectionName("_default", "_default")}
                if manifest is None
                else dict(_current(manifest, receiver).collections)
            )
        return name_columns(ids, lambda unique: map(self._known.get, unique))

    def any_visible(self, ids: Collection[int], receiver: GatheringReceiver[Any]) -> bool:
        """Whether one of some collections exists, and is not the server's own."""
        if not ids or 0 in ids:
            return bool(ids)
        scopes = self.of_collections(np.array(sorted(ids), np.uint32), receiver)["_cb_scope"]
        return any(scope not in (None, SYSTEM_SCOPE) for scope in scopes.to_pylist())


def _current(manifest: CollectionsManifest, receiver: GatheringReceiver[Any]) -> CollectionsManifest:
    """A manifest with the collections that the streams reported and the node does not know yet."""
    scopes = {number: name for name, number in manifest.scopes.items()} | receiver.scopes
    news = {
        cid: CollectionName(scopes[event.scope_id], event.name)
        for cid, event in receiver.created.items()
        if event.manifest_uid is not None and event.manifest_uid >= manifest.uid
        if event.scope_id in scopes and cid not in receiver.dropped
    }
    return replace(manifest, collections={**news, **manifest.collections})


def name_columns(
    ids: npt.NDArray[np.uint32], names_of: Callable[[list[int]], Iterable[CollectionName | None]]
) -> dict[str, pa.Array]:
    """Scope and collection of rows, by column; null where nobody knows the name."""
    unique, codes = np.unique(ids, return_inverse=True)
    names = [*names_of(unique.tolist())]
    indices = pa.array(codes.astype(np.int32))
    return {
        "_cb_scope": pa.array([name and name.scope for name in names], pa.string()).take(indices),
        "_cb_collection": pa.array([name and name.name for name in names], pa.string()).take(indices),
    }


def settled(target: ScanSpec) -> ScanSpec:
    """The same scan; where it asks for the collections that the user sees, it has their names now."""
    return _named(target, fetch_manifest(target)) if target.collections == VISIBLE else target


def _named(target: ScanSpec, manifest: CollectionsManifest) -> ScanSpec:
    if target.collections != VISIBLE:
        return target
    found = manifest.collections_of(target.scope).values()
    if not found:
        where = f"bucket {target.bucket!r}" if target.scope is None else f"scope {target.scope!r}"
        raise AccessError(f"the user sees no collection of {where}", hint=ROLES_HINT)
    # In one order, whatever the server's is: what was read can be compared.
    return replace(target, collections=tuple(sorted(map(str, found))))


def fetch_manifest(target: ScanSpec) -> CollectionsManifest:
    """The collections that the user sees now."""
    return _existing(described(target)[1], target)


def described(target: ScanSpec) -> tuple[ClusterMap, CollectionsManifest | None]:
    """The map of the bucket, and its collections; None where the server has none."""
    with _source_of(target) as source:
        return _describe(source, target)


def _source_of(target: ScanSpec) -> AbstractContextManager[MapSource]:
    return map_source(
        target.server_urls, target.bucket, target.auth, target.options, target.tls, target.network
    )


def _describe(
    source: MapSource, target: ScanSpec, *, keep: bool = False
) -> tuple[ClusterMap, CollectionsManifest | None]:
    return when_loaded(partial(source.describe, keep=keep), target.options.connect_timeout)


def _existing(manifest: CollectionsManifest | None, target: ScanSpec) -> CollectionsManifest:
    if manifest is None:
        raise ConfigurationError(
            f"bucket {target.bucket!r} is on a server without collections",
            hint="leave scope= and collections= out",
        )
    return manifest


def difference(before: Collection[str] | None, now: Collection[str] | None) -> str:
    """How the collections of two reads differ, as the end of a sentence; empty where not both have names."""
    if before is None or now is None:
        return ""
    changes = [("more now", {*now} - {*before}), ("no more", {*before} - {*now})]
    return "".join(f"; {what}: {', '.join(sorted(names))}" for what, names in changes if names)


def alive(raw: pa.Table, manifest: CollectionsManifest) -> npt.NDArray[np.bool_]:
    """Which rows are of a collection that still exists and is not the server's own."""
    # A collection's documents outlive it for a while.
    unique, codes = np.unique(raw[COLLECTION_ID].to_numpy(), return_inverse=True)
    names = [manifest.collections.get(int(cid)) for cid in unique]
    known = np.array([name is not None and name.scope != SYSTEM_SCOPE for name in names], bool)
    living: npt.NDArray[np.bool_] = known[codes]
    return living
