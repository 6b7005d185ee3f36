"""The cluster itself, in this process: nodes, bucket, and what can happen to them.

Arguments and results are plain values (numbers, text, bytes, lists, dicts), so that the same
methods can be called through a pipe when the cluster runs in its own process.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from itertools import accumulate, pairwise
from typing import Any

from cbframe.errors import CbframeError, ConfigurationError
from cbframe.local.auth import ACCESS, Credentials, User
from cbframe.local.bucket import (
    LocalBucket,
    UnknownCollectionError,
    UnknownScopeError,
    Value,
)
from cbframe.local.cluster_manager import ClusterConfig
from cbframe.local.faults import EngineFaults
from cbframe.local.lifecycle import EngineLifecycle
from cbframe.local.loop import ServerTLS
from cbframe.local.node import LocalNode
from cbframe.local.release import RELEASES
from cbframe.local.sample import load_sample
from cbframe.local.states import EngineStates
from cbframe.local.topology import EngineTopology
from cbframe.local.vbucket import VBucket
from cbframe.wire.constants import Datatype
from cbframe.wire.items import body_offset


class EngineUsers:
    """The engine's methods."""

    credentials: Credentials
    running: Callable[[], list[LocalNode]]
    _cid: Callable[[str | int], int]
    _sid: Callable[[str], int]

    def add_user(
        self,
        name: str,
        password: str,
        *,
        access: str,
        scopes: list[str] | None,
        collections: list[str] | None,
        elsewhere: str,
        external: bool,
    ) -> None:
        for each in (access, elsewhere):
            if each not in ACCESS:
                raise ConfigurationError(f"no access {each!r}, only {', '.join(ACCESS)}")
        limited = scopes is not None or collections is not None
        user = User(
            name,
            password,
            access,
            frozenset(map(self._sid, scopes or ())),
            frozenset(map(self._cid, collections or ())) if limited else None,
            elsewhere,
            external,
        )
        self.credentials.add(user)
        for member in self.running():
            member.loop.call(partial(member.change_user, name, user))

    def revoke(self, name: str) -> None:
        if not self.credentials.remove(name):
            raise ConfigurationError(f"no user {name!r}", hint="add_user() adds one")
        for member in self.running():
            member.loop.call(partial(member.change_user, name, None))


class Engine(EngineStates, EngineTopology, EngineLifecycle, EngineUsers, EngineFaults):
    """Nodes and bucket of one embedded cluster; see :class:`cbframe.local.LocalCluster`."""

    def __init__(
        self,
        *,
        nodes: int,
        vbuckets: int,
        bucket: str,
        username: str,
        password: str,
        replicas: int,
        version: str = "7.2",
        sending: str = "node",
        noop_interval: float | None,
        seed: int | None,
        tls: dict[str, Any] | None = None,
        history: bool = False,
        marker_version: str | None = None,
        internal_host: str | None = None,
        flush_enabled: bool = True,
        ephemeral: bool = False,
        skip_deletions: bool = False,
    ) -> None:
        context = None if tls is None else ServerTLS(**tls).context()
        release = RELEASES[version]
        self.bucket = LocalBucket(bucket, vbuckets, nodes, replicas, seed, history=history)
        self.bucket.release = release
        self.bucket.bulk = sending == "bulk"
        self.bucket.marker_version = marker_version or release.marker_version
        self.bucket.flush_enabled = flush_enabled
        self.bucket.ephemeral = ephemeral
        self.bucket.skip_deletions = skip_deletions
        config = self.config = ClusterConfig(self.bucket, internal_host)
        credentials = self.credentials = Credentials(username, password)
        self.nodes: list[LocalNode] = []

        def make_node(number: int, ports: dict[str, int]) -> LocalNode:
            node = LocalNode(number, self.bucket, config, credentials, noop_interval, context, ports)
            node.flush_bucket = partial(self.flush, wait=False)
            return node

        self.make_node = make_node
        try:
            for index in range(nodes):
                node = self.make_node(index, {})
                self.nodes.append(node)
                config.members.append(index)
                config.ports.append(node.ports)
                self.bucket.on_write.append(node.on_write)
            for node in self.nodes:
                node.start()
        except (OSError, MemoryError, CbframeError):
            self.close()
            raise

    def close(self) -> None:
        for node in self.running():
            node.stop()

    def addresses(self) -> dict[str, list[int]]:
        """The ports of every node by the name of the service."""
        with self.bucket.lock:
            ports = self.config.ports
            return {service: [of[service] for of in ports] for service in ports[0]}

    def members(self) -> list[int]:
        """Numbers of the nodes in the cluster, in the order of its map."""
        with self.bucket.lock:
            return list(self.config.members)

    def advertise(self, node: int, ports: dict[str, int]) -> None:
        self._node(node)
        with self.bucket.lock:
            known = self.config.ports[node]
            if unknown := ports.keys() - known.keys():
                raise ConfigurationError(f"node {node} has no service {min(unknown)!r}")
            self.config.ports[node] = {**known, **ports}
            self.bucket.rev += 1
        self._push()

    # ------------------------------------------------------------------ documents

    def upsert(
        self,
        key: bytes,
        value: Value,
        *,
        expiry: int = 0,
        flags: int | None = None,
        datatype: int | None = None,
        xattrs: Mapping[str, Any] | None = None,
        collection: str | int = 0,
        compress: bool = False,
    ) -> int:
        return self.bucket.upsert(
            key,
            value,
            cid=self._cid(collection),
            expiry=expiry,
            flags=flags,
            datatype=datatype,
            xattrs=xattrs,
            compress=compress,
        )

    def delete(self, key: bytes, *, expired: bool = False, collection: str | int = 0) -> int | None:
        return self.bucket.delete(key, cid=self._cid(collection), expired=expired)

    def expire_due(self) -> int:
        return self.bucket.expire_due()

    def get(self, key: bytes, *, collection: str | int = 0) -> bytes | None:
        document = self.bucket.get(key, cid=self._cid(collection))
        if document is None:
            return None
        start = body_offset(document.value) if document.datatype & Datatype.XATTR else 0
        return document.value[start:]

    def bulk_load(
        self,
        pairs: Iterable[tuple[bytes, bytes]],
        *,
        collection: str | int = 0,
        flags: int | None = None,
        datatype: int | None = None,
    ) -> int:
        cid = self._cid(collection)
        return self.bucket.bulk_load(pairs, cid=cid, flags=flags, datatype=datatype)

    def bulk_load_packed(self, lengths: bytes, data: bytes, **options: Any) -> int:
        """As :meth:`bulk_load`, of keys and values back to back and their 32-bit lengths."""
        ends = list(accumulate(array("I", lengths), initial=0))
        parts = (data[start:end] for start, end in pairwise(ends))
        return self.bulk_load(zip(parts, parts, strict=True), **options)

    def load_sample(self, documents: int, seed: int) -> int:
        return load_sample(self.bucket, documents, seed)

    def high_seqnos(self) -> list[tuple[int, int]]:
        with self.bucket.lock:
            return [(vb.id, vb.high_seqno) for vb in self.bucket.vbuckets]

    def failover_log(self, vbucket: int) -> list[tuple[int, int]]:
        with self.bucket.lock:
            return [(entry.vbuuid, entry.seqno) for entry in self._vbucket(vbucket).failover]

    def item_count(self) -> int:
        with self.bucket.lock:
            return sum(vb.documents for vb in self.bucket.vbuckets)

    def _cid(self, collection: str | int) -> int:
        if collection == 0:
            return 0
        with self.bucket.lock:
            try:
                return self.bucket.manifest.resolve(collection)
            except (UnknownCollectionError, UnknownScopeError) as exc:
                raise ConfigurationError(f"no collection {collection}: create it first") from exc

    def _sid(self, scope: str) -> int:
        with self.bucket.lock:
            return int(self._known(lambda m: m.scope(scope)).id)

    def _vbucket(self, vbucket: int) -> VBucket:
        if not 0 <= vbucket < len(self.bucket.vbuckets):
            raise ConfigurationError(f"no vbucket {vbucket}, only 0 to {len(self.bucket.vbuckets) - 1}")
        return self.bucket.vbuckets[vbucket]

    # ------------------------------------------------------------------ collections

    def create_scope(self, name: str) -> None:
        with self.bucket.lock:
            self.bucket.record([self.bucket.manifest.create_scope(name)])
        self._push()

    def create_collection(self, scope: str, name: str, max_ttl: int = 0) -> int:
        with self.bucket.lock:
            cid, event = self._known(lambda m: m.create_collection(scope, name, max_ttl))
            self.bucket.record([event])
        self._push()
        return int(cid)

    def drop_collection(self, scope: str, name: str) -> None:
        with self.bucket.lock:
            self.bucket.record([self._known(lambda m: m.drop_collection(scope, name))])
        self._push()

    def drop_scope(self, name: str) -> None:
        with self.bucket.lock:
            self.bucket.record(self._known(lambda m: m.drop_scope(name)))
        self._push()

    def _known(self, change: Any) -> Any:
        try:
            return change(self.bucket.manifest)
        except (UnknownCollectionError, UnknownScopeError) as exc:
            raise ConfigurationError(f"no scope or collection {exc.args[0]}") from exc
