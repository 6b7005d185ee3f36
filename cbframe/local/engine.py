"""The cluster itself, in this process: nodes, bucket, users, and what can happen to them.

:class:`Engine` has the verbs of :class:`cbframe.local.LocalCluster`. Their arguments and results are
plain values (numbers, text, bytes, lists, dicts), so that they can be called through a pipe when the
cluster runs in its own process.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from itertools import takewhile
from typing import Any, Literal

from cbframe.errors import CbframeError, ConfigurationError
from cbframe.local.auth import ACCESS, Credentials, User
from cbframe.local.bucket import (
    FLAGS_JSON,
    Event,
    LocalBucket,
    LocalManifest,
    UnknownCollectionError,
    UnknownScopeError,
    Value,
    VBucket,
    check_vbuckets,
    json_datatype,
    to_bytes,
)
from cbframe.local.cluster_manager import ClusterConfig
from cbframe.local.items import expiry_of, flags_of, prefixed, value_of
from cbframe.local.loop import ServerTLS
from cbframe.local.node import LocalNode
from cbframe.local.sample import DEFAULT_SEED, load_sample
from cbframe.wire.constants import Datatype
from cbframe.wire.messages import body_offset

_DELETED = 24 + 29
"""Byte of a stored prepare that says whether it deletes the document."""


class Engine:
    """Nodes and bucket of one embedded cluster; see :class:`cbframe.local.LocalCluster`."""

    def __init__(
        self,
        *,
        nodes: int,
        vbuckets: int,
        bucket: str,
        username: str,
        password: str,
        noop_interval: float | None,
        tls: dict[str, Any] | None,
        internal_host: str | None,
        **options: Any,  # of the bucket
    ) -> None:
        self._context = None if tls is None else ServerTLS(**tls).context()
        self._noop_interval = noop_interval
        self.bucket = LocalBucket(bucket, vbuckets, nodes, **options)
        self.config = ClusterConfig(self.bucket, internal_host)
        self.credentials = Credentials(username, password)
        self.nodes: list[LocalNode] = []
        self._kept: dict[int, list[socket.socket]] = {}
        """The ports of nodes that stopped: clients go on asking there, and no other process is to answer."""
        try:
            for number in range(nodes):
                self._join(self._make_node(number, {}))
            for node in self.nodes:
                node.start()
        except (OSError, MemoryError, CbframeError):
            self.close()
            raise

    def _make_node(self, number: int, ports: dict[str, int]) -> LocalNode:
        node = LocalNode(
            number, self.bucket, self.config, self.credentials, self._noop_interval, self._context, ports
        )
        node.flush_bucket = partial(self._flush, wait=False)
        return node

    def _join(self, node: LocalNode) -> None:
        self.nodes.append(node)
        self.config.ports.append(node.ports)
        self.config.members.append(node.index)
        self.bucket.on_write.append(node.on_write)

    def close(self) -> None:
        for node in self.running():
            node.stop()
        for number in [*self._kept]:
            self._release_ports(number)

    # ------------------------------------------------------------------ nodes

    def addresses(self) -> dict[str, list[int]]:
        """The ports of every node by the name of the service."""
        with self.bucket.lock:
            ports = self.config.ports
            return {service: [of[service] for of in ports] for service in ports[0]}

    def members(self) -> list[int]:
        """Numbers of the nodes in the cluster, in the order of its map."""
        with self.bucket.lock:
            return list(self.config.members)

    def running(self) -> list[LocalNode]:
        """The nodes whose process lives."""
        return [node for node in self.nodes if node.alive]

    def _node(self, node: int) -> LocalNode:
        if not 0 <= node < len(self.nodes):
            raise ConfigurationError(f"no node {node}, only 0 to {len(self.nodes) - 1}")
        return self.nodes[node]

    def _living(self, node: int) -> LocalNode:
        found = self._node(node)
        if not found.alive:
            raise ConfigurationError(f"node {node} does not run", hint="restart it")
        return found

    def _member(self, node: int) -> LocalNode:
        found = self._node(node)
        if node not in self.config.members:
            raise ConfigurationError(f"node {node} is not in the cluster", hint="add_node() adds one")
        return found

    def _on_all(self, act: Callable[[LocalNode], None]) -> None:
        """Have every node that lives do something on its own thread, and wait for it.

        Never under the bucket's lock: the nodes' threads take it as well.
        """
        for member in self.running():
            member.loop.call(partial(act, member))

    def _push(self) -> None:
        self._on_all(LocalNode.push_config)

    def advertise(
        self,
        node: int,
        *,
        kv: int | None = None,
        mgmt: int | None = None,
        kvSSL: int | None = None,  # noqa: N803 - as the cluster map has it
        mgmtSSL: int | None = None,  # noqa: N803 - as above
    ) -> None:
        """Give clients other ports of a node's services: those of a proxy before it.

        Every address that this object names, and the cluster map, has them from now on. The node
        listens where it listened.
        """
        ports = _given(kv=kv, mgmt=mgmt, kvSSL=kvSSL, mgmtSSL=mgmtSSL)
        self._node(node)
        with self.bucket.lock:
            known = self.config.ports[node]
            if unknown := ports.keys() - known.keys():
                raise ConfigurationError(f"node {node} has no service {min(unknown)!r}")
            self.config.ports[node] = {**known, **ports}
            self.bucket.rev += 1
        self._push()

    def set_alternate_address(
        self,
        node: int,
        host: str,
        *,
        kv: int | None = None,
        mgmt: int | None = None,
        kvSSL: int | None = None,  # noqa: N803 - as the cluster map has it
        mgmtSSL: int | None = None,  # noqa: N803 - as above
    ) -> None:
        """Give a node an address on the network ``external``, as ``couchbase-cli setting-alternate-address``.

        Parameters
        ----------
        node
            Number of the node.
        host
            What clients outside know it by.
        kv, mgmt, kvSSL, mgmtSSL
            The ports there, none for services that cannot be reached; without any, the node's own.
        """
        ports = _given(kv=kv, mgmt=mgmt, kvSSL=kvSSL, mgmtSSL=mgmtSSL)
        self._node(node)
        with self.bucket.lock:
            self.config.alternates[node] = {"hostname": host} | ({"ports": ports} if ports else {})
            self.bucket.rev += 1
        self._push()

    # ------------------------------------------------------------------ documents

    def upsert(
        self,
        key: str | bytes,
        value: Value,
        *,
        expiry: int = 0,
        flags: int | None = None,
        datatype: int | None = None,
        xattrs: Mapping[str, Any] | None = None,
        collection: str | int = 0,
        compress: bool = False,
    ) -> int:
        """Write a document.

        Parameters
        ----------
        key
            1 to 250 bytes.
        value
            Bytes as they are, text as UTF-8, a dict or list as JSON.
        expiry
            0 for never; up to 30 days counts from now, more is seconds since 1970.
        flags
            Opaque to the server; None for what the SDKs set.
        datatype
            1 for JSON, 0 for binary; None finds out.
        xattrs
            Extended attributes, JSON values by name.
        collection
            Id or ``scope.collection``; 0 is the default one.
        compress
            Store it as a Snappy block, as one that a client sent so or that was read back from
            disk. Connections without Snappy get it inflated.

        Returns
        -------
        int
            Its seqno in its vbucket.
        """
        return self.bucket.upsert(
            as_key(key),
            value,
            cid=self._cid(collection),
            expiry=expiry,
            flags=flags,
            datatype=datatype,
            xattrs=xattrs,
            compress=compress,
        )

    def delete(self, key: str | bytes, *, collection: str | int = 0) -> int | None:
        """Delete a document; the tombstone's seqno, None if there is no such document."""
        return self.bucket.delete(as_key(key), cid=self._cid(collection))

    def expire(self, key: str | bytes, *, collection: str | int = 0) -> int | None:
        """Let a document expire now; the expiration's seqno, None if there is no such document."""
        return self.bucket.delete(as_key(key), cid=self._cid(collection), expired=True)

    def expire_due(self) -> int:
        """Turn every document whose expiry has passed into an expiration; how many.

        The real server does so once an hour or upon access; here it happens upon access or now.
        """
        return self.bucket.expire_due()

    def get(self, key: str | bytes, *, collection: str | int = 0) -> bytes | None:
        """A document's bytes, without attributes; None if it does not exist."""
        document = self.bucket.get(as_key(key), cid=self._cid(collection))
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
        """Write many documents fast; how many.

        ``datatype=None`` takes a value that begins with ``{`` or ``[`` for JSON, unproven.
        """
        cid = self._cid(collection)
        return self.bucket.bulk_load(pairs, cid=cid, flags=flags, datatype=datatype)

    def load_sample(self, documents: int = 100_000, seed: int = DEFAULT_SEED) -> int:
        """Load :func:`cbframe.local.sample.sample_documents`; how many keys."""
        return load_sample(self.bucket, documents, seed)

    def high_seqnos(self) -> dict[int, int]:
        """High seqno by vbucket, 0 included."""
        with self.bucket.lock:
            return {vb.id: vb.high_seqno for vb in self.bucket.vbuckets}

    def failover_log(self, vbucket: int) -> list[tuple[int, int]]:
        """``(vbuuid, seqno)`` of a vbucket's histories, newest first."""
        with self.bucket.lock:
            return [(entry.vbuuid, entry.seqno) for entry in self._vbucket(vbucket).failover]

    def item_count(self) -> int:
        """How many documents exist, tombstones not counted."""
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
            try:
                return self.bucket.manifest.scope(scope).id
            except UnknownScopeError as exc:
                raise ConfigurationError(f"no scope or collection {scope}") from exc

    def _vbucket(self, vbucket: int) -> VBucket:
        if not 0 <= vbucket < len(self.bucket.vbuckets):
            raise ConfigurationError(f"no vbucket {vbucket}, only 0 to {len(self.bucket.vbuckets) - 1}")
        return self.bucket.vbuckets[vbucket]

    # ------------------------------------------------------------------ collections

    def create_scope(self, name: str) -> None:
        """Create a scope."""
        self._change_manifest(lambda manifest: [manifest.create_scope(name)])

    def create_collection(self, scope: str, name: str, *, max_ttl: int = 0) -> int:
        """Create a collection; its id."""
        self._change_manifest(lambda manifest: [manifest.create_collection(scope, name, max_ttl)])
        return self._cid(f"{scope}.{name}")

    def drop_collection(self, scope: str, name: str) -> None:
        """Drop a collection with all its documents, which leave no tombstones."""
        self._change_manifest(lambda manifest: [manifest.drop_collection(scope, name)])

    def drop_scope(self, name: str) -> None:
        """Drop a scope with all its collections."""
        self._change_manifest(lambda manifest: manifest.drop_scope(name))

    def modify_collection(self, scope: str, name: str, *, max_ttl: int) -> None:
        """Give a collection another highest expiry."""
        self._change_manifest(lambda manifest: [manifest.modify_collection(scope, name, max_ttl)])

    def _change_manifest(self, change: Callable[[LocalManifest], list[Event]]) -> None:
        with self.bucket.lock:
            try:
                self.bucket.record(change(self.bucket.manifest))
            except (UnknownCollectionError, UnknownScopeError) as exc:
                raise ConfigurationError(f"no scope or collection {exc.args[0]}") from exc
        self._push()

    # ------------------------------------------------------------------ sync writes, memory, a damaged file

    def prepare(self, key: str | bytes, value: Value | None, *, collection: str | int = 0) -> int:
        """Begin a durable write, None for a delete, and leave it waiting; the seqno of the prepare.

        Nobody sees the value before :meth:`commit`, and other writes of the document are refused. A
        durable write of an SDK is prepared and committed in one go.
        """
        body = b"" if value is None else to_bytes(value)
        datatype = json_datatype(body)
        flags = FLAGS_JSON if datatype else 0
        key = as_key(key)
        bucket, stored = self.bucket, prefixed(self._cid(collection), key)
        with bucket.lock:
            vbucket = bucket.vbucket_for(key)
            if vbucket.pending(stored) is not None:
                raise ConfigurationError("the document has a prepared write", hint="commit or abort that one")
            cas, deleted = bucket.next_cas(), value is None
            seqno = vbucket.prepare(stored, body, cas=cas, flags=flags, datatype=datatype, deleted=deleted)
            bucket.written(vbucket.id)
        return seqno

    def commit(self, key: str | bytes, *, collection: str | int = 0) -> int:
        """Let the prepared write of a document happen; the seqno of the commit."""
        return self._complete(as_key(key), collection, commit=True)

    def abort(self, key: str | bytes, *, collection: str | int = 0) -> int:
        """Let the prepared write of a document never have happened; the seqno of the abort."""
        return self._complete(as_key(key), collection, commit=False)

    def _complete(self, key: bytes, collection: str | int, *, commit: bool) -> int:
        bucket, stored = self.bucket, prefixed(self._cid(collection), key)
        with bucket.lock:
            vbucket = bucket.vbucket_for(key)
            found = vbucket.pending(stored)
            if found is None:
                raise ConfigurationError("the document has no prepared write", hint="prepare() one first")
            prepared, frame = found
            seqno: int | None
            if not commit:
                seqno = vbucket.abort(stored, prepared)
            elif frame[_DELETED]:
                cas, now = bucket.next_cas(), bucket.now()
                seqno = vbucket.remove(stored, cas=cas, when=now, expired=False, prepared=prepared)
            else:
                seqno = vbucket.put(
                    stored,
                    value_of(frame),
                    cas=bucket.next_cas(),
                    flags=flags_of(frame),
                    expiry=expiry_of(frame),
                    datatype=frame[5],
                    prepared=prepared,
                )
            if seqno is None:
                raise ConfigurationError("the prepared write deletes a document that does not exist")
            bucket.written(vbucket.id)
        return seqno

    def hold_in_memory(self, vbucket: int, seqno: int | None) -> None:
        """Streams get what is at or above `seqno` in memory snapshots of its own; None for no such part.

        As on a node that has not yet written it to disk: a backfill ends below, and a stream that
        begins there has none.
        """
        with self.bucket.lock:
            self._vbucket(vbucket).memory_from = seqno

    def hold_persistence(self, node: int | None = None, *, vbucket: int | None = None) -> None:
        """Have a node, or all, write nothing to disk until :meth:`release`: if it is killed, that is lost."""
        for vb, each in self._copies(node, vbucket):
            vb.hold(each, replication=False)

    def hold_replication(self, node: int | None = None, *, vbucket: int | None = None) -> None:
        """Have the replicas of a node, or all, get no changes until :meth:`release`: failovers lose these."""
        for vb, each in self._copies(node, vbucket):
            if each != self.bucket.map[vb.id][0]:
                vb.hold(each, replication=True)

    def release(self, node: int | None = None, *, vbucket: int | None = None) -> None:
        """Have the copies of a node, or all, catch up."""
        for vb, each in self._copies(node, vbucket):
            vb.lags.pop(each, None)

    def _copies(self, node: int | None, vbucket: int | None) -> Iterator[tuple[VBucket, int]]:
        nodes = range(len(self.nodes)) if node is None else [self._node(node).index]
        with self.bucket.lock:
            for vb in self.bucket.vbuckets if vbucket is None else [self._vbucket(vbucket)]:
                yield from ((vb, each) for each in nodes)

    def corrupt(self, vbucket: int) -> None:
        """Damage the file of a vbucket: backfills end with BACKFILL_FAIL until :meth:`mend`."""
        with self.bucket.lock:
            self._vbucket(vbucket).unreadable = True

    def mend(self, vbucket: int) -> None:
        """The opposite of :meth:`corrupt`."""
        with self.bucket.lock:
            self._vbucket(vbucket).unreadable = False

    # ------------------------------------------------------------------ who is in the cluster

    def add_node(self) -> int:
        """A node joins, without a vbucket until :meth:`rebalance`; its number."""
        node = self._make_node(len(self.nodes), {})
        node.start()
        with self.bucket.lock:
            self._join(node)
            self.bucket.rev += 1
        self._push()
        return node.index

    def rebalance(self, *, eject: Iterable[int] = ()) -> None:
        """Spread the vbuckets evenly over the nodes, one after the other, without loss.

        Parameters
        ----------
        eject
            Nodes that leave: they end up without a vbucket, off the cluster map, and shut down.
        """
        gone = list(eject)
        for node in gone:
            self._member(node)
        if missing := [node for node in self.config.members if not self.nodes[node].alive]:
            raise ConfigurationError(
                f"node {missing[0]} does not run: nothing can be moved", hint="restart it, or fail it over"
            )
        stay = [node for node in self.config.members if node not in gone]
        self._check_rest(stay)
        count = len(self.bucket.vbuckets)
        for vbucket in range(count):
            owner = stay[vbucket * len(stay) // count]
            if self.bucket.map[vbucket][0] != owner:
                self.move_vbucket(vbucket, owner)
        with self.bucket.lock:
            self.config.members[:] = stay
            self._forget_copies(gone)
            self.bucket.rev += 1
        for node in gone:
            self._stop(self.nodes[node])
        self._push()

    def failover(self, node: int, *, lose: int = 0) -> None:
        """Hard failover of a node: it is gone, off the map, and others take over its vbuckets.

        Parameters
        ----------
        node
            Number of the node, which may have been killed before.
        lose
            How many of the last seqnos of each of its vbuckets had not reached a replica: they never
            happened, history forks there. So do those that :meth:`hold_replication` held.
        """
        member = self._member(node)
        stay = [other for other in self.config.members if other != node]
        self._check_rest([other for other in stay if self.nodes[other].alive])
        self._stop(member)
        with self.bucket.lock:
            self.config.members[:] = stay
            living = [other for other in stay if self.nodes[other].alive]
            for turn, vbucket in enumerate(self._active(node)):
                copies = [copy for copy in self.bucket.map[vbucket][1:] if copy in living]
                self._lose(vbucket, lose, copies[0] if copies else living[turn % len(living)])
            self._forget_copies([node])
            self.bucket.rev += 1
        self._push()

    def kill(self, node: int, *, lose: int = 0, clean: bool = False) -> None:
        """End a node as SIGKILL ends a server: its sockets close at once. The map still names it.

        Parameters
        ----------
        node
            Number of the node.
        lose
            How many of the last seqnos of each of its vbuckets were not on disk yet: they never
            happened, as those that :meth:`hold_persistence` held.
        clean
            An orderly shutdown: nothing is lost, and each vbucket keeps its history's uuid. Not so in an
            ephemeral bucket: there all that the node had is lost in any case.
        """
        self._stop(self._living(node))
        with self.bucket.lock:
            for vbucket in self._active(node):
                vb = self._vbucket(vbucket)
                if self.bucket.ephemeral:
                    vb.flush()
                elif not clean:
                    self._lose(vbucket, max(lose, vb.high_seqno - vb.copy(node)[1]), None)

    def restart(self, node: int, *, same_ports: bool = False) -> None:
        """Bring a killed node back, on other ports without `same_ports`."""
        before = self._member(node)
        if before.alive:
            raise ConfigurationError(f"node {node} runs")
        if same_ports:
            self._release_ports(node)
        try:
            fresh = self._make_node(node, before.ports if same_ports else {})
        except OSError as exc:
            self._keep_ports(before)
            raise ConfigurationError(
                f"node {node} cannot have its ports back: {exc.strerror}", hint="let it have others"
            ) from exc
        fresh.start()
        with self.bucket.lock:
            self.nodes[node] = fresh
            if not same_ports:
                self.config.ports[node] = fresh.ports
            self.bucket.on_write.append(fresh.on_write)
            self.bucket.rev += 1
        self._push()

    def _check_rest(self, living: list[int]) -> None:
        if not living:
            raise ConfigurationError("no node that runs would be left to take the vbuckets")

    def _lose(self, vbucket: int, lose: int, node: int | None) -> None:
        self._fork(vbucket, max(0, self._left(vbucket, lose, node)), node)

    def _left(self, vbucket: int, lose: int, node: int | None) -> int:
        """What is left without the last seqnos, and without what the new owner never got."""
        vb = self._vbucket(vbucket)
        left = [vb.high_seqno - lose]
        if node in self.bucket.map[vbucket][1:]:
            received, _, log = vb.copy(node)
            # Of a history that it does not know, it may have what was before the fork.
            newer = takewhile(lambda entry: entry != log[0], vb.failover)
            left += [received, *(entry.seqno for entry in newer)]
        return min(left)

    def _active(self, node: int) -> list[int]:
        return [vb for vb, row in enumerate(self.bucket.map) if row[0] == node]

    def _forget_copies(self, nodes: Iterable[int]) -> None:
        gone = set(nodes)
        for row in self.bucket.map:
            row[1:] = [-1 if copy in gone else copy for copy in row[1:]]

    def _stop(self, node: LocalNode) -> None:
        if not node.alive:
            return
        with self.bucket.lock:
            self.bucket.on_write.remove(node.on_write)
        node.stop()
        self._keep_ports(node)

    def _keep_ports(self, node: LocalNode) -> None:
        self._release_ports(node.index)
        for port in node.ports.values():
            kept = socket.socket()
            kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections to it were just closed
            self._kept.setdefault(node.index, []).append(kept)
            with suppress(OSError):  # another process was faster
                kept.bind(("127.0.0.1", port))

    def _release_ports(self, node: int) -> None:
        for kept in self._kept.pop(node, ()):
            kept.close()

    # ------------------------------------------------------------------ who has a vbucket, and its history

    def _owner(self, node: int) -> None:
        """Check that a node can be given a vbucket."""
        self._living(node)
        self._member(node)

    def move_vbucket(self, vbucket: int, node: int) -> None:
        """Rebalance one vbucket to `node`: same data, same history, other owner.

        Streams at the old owner end with STATE_CHANGED; requests there get NOT_MY_VBUCKET.
        """
        self._vbucket(vbucket)
        self._owner(node)
        with self.bucket.lock:
            self._give(vbucket, node)
            self.bucket.rev += 1
        self._on_all(lambda member: member.end_streams(vbucket, only_if_lost=True))
        self._push()

    def fail_over(self, vbucket: int, *, lose: int = 0, node: int | None = None) -> int:
        """Hard failover of one vbucket: the last `lose` seqnos never happened, history forks there.

        Its streams end with STATE_CHANGED. With `node`, that node is the owner from now on, with what it has.

        Returns
        -------
        int
            The new vbuuid.
        """
        if node is not None:
            self._owner(node)
        with self.bucket.lock:
            vbuuid = self._fork(vbucket, self._left(vbucket, lose, node), node)
        self._end_streams(vbucket)
        return vbuuid

    def roll_back(self, vbucket: int, seqno: int) -> int:
        """As :meth:`fail_over`, with everything above `seqno` lost."""
        with self.bucket.lock:
            vbuuid = self._fork(vbucket, seqno, None)
        self._end_streams(vbucket)
        return vbuuid

    def _fork(self, vbucket: int, seqno: int, node: int | None) -> int:
        vb = self._vbucket(vbucket)
        if not 0 <= seqno <= vb.high_seqno:
            raise ConfigurationError(f"vbucket {vbucket} has no seqno {seqno}, only 0 to {vb.high_seqno}")
        vb.truncate(seqno)
        if node is not None:
            self._give(vbucket, node)
        self.bucket.rev += 1
        return vb.vbuuid

    def _give(self, vbucket: int, node: int) -> None:
        row = self.bucket.map[vbucket]
        if (lag := self._vbucket(vbucket).lags.get(node)) is not None:
            lag.received = None  # it has all that there is
        # The new owner may have been a replica: then the two change places.
        self.bucket.map[vbucket] = [node, *(row[0] if copy == node else copy for copy in row[1:])]

    def flush_vbucket(self, vbucket: int) -> None:
        """Lose all data of one vbucket; its failover log starts over."""
        with self.bucket.lock:
            self._vbucket(vbucket).flush()
            self.bucket.rev += 1
        self._end_streams(vbucket)

    def set_purge_seqno(self, vbucket: int, seqno: int) -> None:
        """Pretend that tombstones up to `seqno` were purged: older positions roll back to 0."""
        with self.bucket.lock:
            self._vbucket(vbucket).purge_seqno = seqno

    def purge(self, vbucket: int | None = None) -> int:
        """Let the tombstones of one vbucket, or of all, really be gone, as they are after some days.

        Backfills do not have them any more, and clients whose position is older than the last of them
        roll back to 0: they would never learn of those deletions. The newest change of a vbucket stays.

        Returns
        -------
        int
            How many were purged.
        """
        with self.bucket.lock:
            wanted = self.bucket.vbuckets if vbucket is None else [self._vbucket(vbucket)]
            return sum(vb.purge() for vb in wanted)

    def _end_streams(self, vbucket: int) -> None:
        self._on_all(lambda member: member.end_streams(vbucket, only_if_lost=False))
        self._push()

    # ------------------------------------------------------------------ the bucket's life

    def flush(self) -> None:
        """Empty the bucket: same uuid, but every vbucket begins a new history.

        All streams end with STATE_CHANGED. What clients had is rolled back to 0 when they come back.
        REST does the same: ``POST /pools/default/buckets/NAME/controller/doFlush``.

        Raises
        ------
        ConfigurationError
            The cluster was made with ``flush_enabled=False``.
        """
        self._flush(wait=True)

    def _flush(self, *, wait: bool) -> None:
        """With `wait`, all streams have ended afterwards; a node's own thread cannot wait for others."""
        if not self.bucket.flush_enabled:
            raise ConfigurationError(
                "flush is not enabled for the bucket", hint="LocalCluster(flush_enabled=True)"
            )
        with self.bucket.lock:
            self._present()
            for vbucket in self.bucket.vbuckets:
                vbucket.flush()
            self.bucket.record(self.bucket.manifest.events())
        for member in self.running():
            run = member.loop.call if wait else member.loop.post
            run(member.end_all_streams)
            run(member.push_config)

    def delete_bucket(self) -> None:
        """Delete the bucket: its connections close, and nobody finds it until :meth:`recreate`."""
        with self.bucket.lock:
            self._present()
            self.bucket.deleted = True
        self._leave_nodes()

    def recreate(self, vbuckets: int | None) -> None:
        """See :meth:`cbframe.local.LocalCluster.recreate`."""
        with self.bucket.lock:
            count = len(self.bucket.vbuckets) if vbuckets is None else vbuckets
            check_vbuckets(count)
            # Its connections close either way: nobody may find the new data under the old name.
            self.bucket.deleted = True
        self._leave_nodes()
        with self.bucket.lock:
            self.bucket.renew(count, self.config.members)
            self.bucket.deleted = self.bucket.paused = False
        self._push()

    def pause_bucket(self) -> None:
        """Pause (hibernate) the bucket: it keeps its data and leaves the nodes until :meth:`resume_bucket`.

        Its connections close. Clients that may use the bucket get KEY_ENOENT to SELECT_BUCKET, the
        cluster map has no vbuckets, and REST says ``"hibernationState": "paused"``.
        """
        self._set_paused(True)

    def resume_bucket(self) -> None:
        """The opposite of :meth:`pause_bucket`: same uuid, same data, same history."""
        self._set_paused(False)

    def _set_paused(self, paused: bool) -> None:
        with self.bucket.lock:
            self._present()
            self.bucket.paused = paused
            self.bucket.rev += 1
        if paused:
            self._on_all(LocalNode.close_bucket)
        self._push()

    def _present(self) -> None:
        if self.bucket.deleted:
            raise ConfigurationError("the bucket is deleted", hint="recreate() creates it again")

    def _leave_nodes(self) -> None:
        self._on_all(LocalNode.close_bucket)
        self._on_all(LocalNode.close_config_streams)

    # ------------------------------------------------------------------ users

    def add_user(
        self,
        name: str,
        password: str,
        *,
        access: Literal["none", "data", "dcp", "admin"] = "dcp",
        scopes: Iterable[str] | None = None,
        collections: Iterable[str] | None = None,
        elsewhere: Literal["none", "data", "dcp"] = "none",
        external: bool = False,
    ) -> None:
        """Add a user, in place of one of the same name: open connections have the new rights at once.

        Parameters
        ----------
        name, password
            To log in with.
        access
            Each includes the ones before: log in only; read and write documents; stream them; manage, and
            see statistics.
        scopes, collections
            What `access` is for: whole scopes, and collections as ``scope.collection``. None, both: the
            whole bucket.
        elsewhere
            Access to the rest of the bucket. ``"none"``: it does not exist for the user. ``"data"``: it is
            in the manifest, and may not be streamed.
        external
            The user is one of a directory (LDAP): the cluster has no hash of the password, so that SCRAM
            fails and PLAIN works. As soon as there is such a user, the cluster asks the directory about
            users that it does not know.

        Raises
        ------
        ConfigurationError
            There is no such access, scope or collection.
        """
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
        self._on_all(lambda member: member.change_user(name, user))

    def revoke(self, name: str) -> None:
        """Take all rights of a user: streams end with LOST_PRIVILEGES, and nobody logs in by that name."""
        if not self.credentials.remove(name):
            raise ConfigurationError(f"no user {name!r}", hint="add_user() adds one")
        self._on_all(lambda member: member.change_user(name, None))

    # ------------------------------------------------------------------ faults

    def cut(self, node: int = 0, *, after_bytes: int = 0) -> int:
        """Cut DCP connections of a node.

        Parameters
        ----------
        node
            Number of the node.
        after_bytes
            0 cuts all of them now. Otherwise one is cut, once, when the node's DCP connections
            have sent that many more bytes, be it in the middle of a message.

        Returns
        -------
        int
            How many were cut now.
        """
        member = self._living(node)
        return member.loop.call(lambda: member.cut(after_bytes))

    def set_fault(self, node: int, fault: str, value: Any) -> None:
        """Begin or end a state of a node that :class:`LocalCluster` has a context manager for."""
        if fault in {"starting", "config_only"}:
            nodes: set[int] = getattr(self.config, fault)
            self._node(node)
            with self.bucket.lock:
                (nodes.add if value else nodes.discard)(node)
                self.bucket.rev += 1
            if self.nodes[node].alive:
                self.nodes[node].loop.call(self.nodes[node].close_bucket)
            self._push()
            return
        member = self._living(node)
        if fault == "stalled":
            member.loop.call(partial(member.loop.set_stalled, value))
        else:
            owner = member.loop if fault in {"chop", "delay"} else member
            member.loop.call(partial(setattr, owner, fault, value))

    def garble(self, at: int = 0, *, node: int = 0) -> None:
        """Turn over all bits of one byte, once: the node's DCP connections send `at` others before it."""
        if at < 0:
            raise ConfigurationError(f"byte {at} lies in the past")
        self.set_fault(node, "garble_after", at)

    def dcp_connections(self, node: int = 0) -> int:
        """How many DCP connections a node has open."""
        member = self._living(node)
        return member.loop.call(member.dcp_connections)


def _given(**ports: int | None) -> dict[str, int]:
    return {service: port for service, port in ports.items() if port is not None}


def as_key(key: str | bytes) -> bytes:
    return key.encode() if isinstance(key, str) else key
