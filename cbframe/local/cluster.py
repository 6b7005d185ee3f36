"""``LocalCluster``: the public entry point of the embedded cluster."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any, Literal, Self, cast
from urllib.parse import quote

from cbframe.errors import ConfigurationError, ConnectError
from cbframe.limits import reported
from cbframe.local.bucket import Value, to_bytes
from cbframe.local.cluster_manager import HOST
from cbframe.local.engine import Engine
from cbframe.local.faults import ClusterFaults
from cbframe.local.lifecycle import ClusterLifecycle
from cbframe.local.loop import ServerTLS
from cbframe.local.process import RemoteEngine
from cbframe.local.release import check_release
from cbframe.local.sample import DEFAULT_SEED
from cbframe.local.states import ClusterStates
from cbframe.local.topology import ClusterTopology


class ClusterUsers(ABC):
    """The verbs of :class:`cbframe.local.LocalCluster` about users."""

    @property
    @abstractmethod
    def _engine(self) -> Any: ...

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
        self._engine.add_user(
            name,
            password,
            access=access,
            scopes=None if scopes is None else list(scopes),
            collections=None if collections is None else list(collections),
            elsewhere=elsewhere,
            external=external,
        )

    def revoke(self, name: str) -> None:
        """Take all rights of a user: streams end with LOST_PRIVILEGES, and nobody logs in by that name."""
        self._engine.revoke(name)


class LocalCluster(ClusterStates, ClusterTopology, ClusterLifecycle, ClusterUsers, ClusterFaults):
    """An embedded Couchbase on the loopback: real protocol, no installation.

    It holds one bucket in memory and serves it over KV, DCP and REST as a cluster does, well
    enough for cbframe, for the official SDKs' key-value part, and for learning what DCP does.

    Parameters
    ----------
    nodes
        How many; each has a data port and a REST port on 127.0.0.1, chosen by the system.
    vbuckets
        How many; 1 to 1024.
    bucket, username, password
        The one bucket and the one user.
    replicas
        Replica columns of the cluster map, fewer than `nodes`.
    process
        Run the cluster in a process of its own, for measurements: it then shares neither the
        interpreter lock nor the memory with the caller. It ends with its parent.
    version
        The server release whose behaviour is reproduced, 7.2.9 or 8.0.2 with Couchstore. "8.0" grants
        more features, refuses a HELLO that misses one that others need, names unknown flags, sends
        cluster maps only to those with an older one, has snapshot markers of version 2.2 with the
        purge seqno, begins fewer checkpoints, sorts extended attributes, and has more statuses and
        statistics. Its disk backfills of streams without values (DCP_OPEN flag 0x08, and no XATTRs)
        have a mutation for each key, deletions included. Data is on disk until :meth:`hold_in_memory`
        says otherwise.
    sending
        How DCP messages are handed to the socket. "node" is a data node's way: one message in each
        ``send`` (a TLS record each), the streams that have something in turn; in version "8.0" 1, 5 or
        50 messages with ``set_priority`` low, medium (the default) or high. "bulk" sends up to 128 KiB
        of one vbucket at a time, up to 1 MiB in a call: faster, and unlike any node.
    noop_interval
        Seconds between DCP NOOPs whatever the client asks for; None does as asked.
    seed
        Makes the vbucket and bucket uuids repeatable.
    tls
        Certificates: every node then has a TLS port beside each of its two.
    history
        Keep every version of every document, as a Magma bucket with change history does: clients
        may ask for change streams.
    marker_version
        The newest version of snapshot markers that clients may ask for: "2.0" or "2.2"; None for
        the newest of `version`.
    internal_host
        What the nodes call themselves in place of 127.0.0.1, which is then only their alternate address
        on the network ``external``; as in a container network, nobody outside can reach them by it.
    flush_enabled
        Whether the bucket may be flushed.
    ephemeral
        A bucket in memory only: a node that ends takes its data with it.
    skip_deletions
        Grant the feature of servers after 8.0 by which clients may have deletions left out of the first
        backfill of streams that begin at 0.

    Examples
    --------
    >>> from cbframe.local import LocalCluster
    >>> with LocalCluster(vbuckets=64) as cluster:
    ...     cluster.upsert("greeting", {"text": "hello"})
    1
    """

    def __init__(
        self,
        nodes: int = 1,
        vbuckets: int = 1024,
        *,
        bucket: str = "default",
        username: str = "Administrator",
        password: str = "password",  # noqa: S107 - a cluster on the loopback with made-up data
        replicas: int = 0,
        process: bool = False,
        version: Literal["7.2", "8.0"] = "7.2",
        sending: Literal["node", "bulk"] = "node",
        noop_interval: float | None = None,
        seed: int | None = None,
        tls: ServerTLS | None = None,
        history: bool = False,
        marker_version: Literal["2.0", "2.2"] | None = None,
        internal_host: str | None = None,
        flush_enabled: bool = True,
        ephemeral: bool = False,
        skip_deletions: bool = False,
    ) -> None:
        check_release(version)
        if sending not in {"node", "bulk"}:
            raise ConfigurationError(f"sending={sending!r} is neither 'node' nor 'bulk'")
        if marker_version not in {None, "2.0", "2.2"}:
            raise ConfigurationError(f"no snapshot marker has version {marker_version}, only 2.0 and 2.2")
        self.bucket = bucket
        self.username = username
        self.password = password
        self._options: dict[str, Any] = {
            "nodes": nodes,
            "vbuckets": vbuckets,
            "bucket": bucket,
            "username": username,
            "password": password,
            "replicas": replicas,
            "version": version,
            "sending": sending,
            "noop_interval": noop_interval,
            "seed": seed,
            "tls": None if tls is None else tls.options(),
            "history": history,
            "marker_version": marker_version,
            "internal_host": internal_host,
            "flush_enabled": flush_enabled,
            "ephemeral": ephemeral,
            "skip_deletions": skip_deletions,
        }
        self._process = process
        self._running: Engine | None = None
        self._ports: dict[str, list[int]] = {}

    def __repr__(self) -> str:
        state = f"{self.connection_string!r}" if self._running is not None else "not running"
        nodes, vbuckets = self._options["nodes"], self._options["vbuckets"]
        where = ", own process" if self._process else ""
        return f"<LocalCluster {state}, nodes={nodes}, vbuckets={vbuckets}{where}>"

    # ------------------------------------------------------------------ life

    def start(self) -> Self:
        """Bring the cluster up; does nothing if it is up.

        Raises
        ------
        ResourceError
            There is no thread, descriptor, memory or process for it; nothing of it runs then.
        """
        if self._running is not None:
            return self
        with reported():
            if self._process:
                # The remote engine has the engine's methods by name, not by inheritance.
                self._running = cast("Engine", RemoteEngine(self._options))
            else:
                self._running = Engine(**self._options)
            self._ports = self._running.addresses()
        return self

    def close(self) -> None:
        """Shut down: every socket, thread and process is gone afterwards. May be repeated."""
        running, self._running = self._running, None
        if running is not None:
            running.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def _engine(self) -> Engine:
        if self._running is None:
            raise ConnectError(
                "the local cluster is not running", hint="start() it, or use it in a with block"
            )
        return self._running

    # ------------------------------------------------------------------ addresses

    @property
    def members(self) -> list[int]:
        """Numbers of the nodes in the cluster: those that were ejected or failed over are not."""
        return list(self._engine.members())

    @property
    def connection_string(self) -> str:
        """``couchbase://127.0.0.1:PORT/BUCKET`` with the data port of the first node in the cluster."""
        return f"couchbase://{self.kv_addresses[0]}/{quote(self.bucket, safe='')}"

    @property
    def kv_addresses(self) -> list[str]:
        """``host:port`` of the data service of every node in the cluster, those that left not included."""
        return [f"{HOST}:{port}" for port in self._ports_of("kv")]

    @property
    def rest_urls(self) -> list[str]:
        """Base URL of the cluster manager of every node in the cluster."""
        return [f"http://{HOST}:{port}" for port in self._ports_of("mgmt")]

    @property
    def tls_connection_string(self) -> str:
        """``couchbases://127.0.0.1:PORT/BUCKET`` with the TLS port of the first node in the cluster.

        Raises
        ------
        ConfigurationError
            The cluster was made without certificates.
        """
        return f"couchbases://{HOST}:{self._tls_ports('kvSSL')[0]}/{quote(self.bucket, safe='')}"

    @property
    def tls_rest_urls(self) -> list[str]:
        """As `rest_urls`, with TLS; raises as `tls_connection_string`."""
        return [f"https://{HOST}:{port}" for port in self._tls_ports("mgmtSSL")]

    def _tls_ports(self, service: str) -> list[int]:
        _ = self._engine
        if service not in self._ports:
            raise ConfigurationError(
                "the local cluster has no TLS ports", hint="give LocalCluster(tls=ServerTLS(...))"
            )
        return self._ports_of(service)

    def _ports_of(self, service: str) -> list[int]:
        return [self._ports[service][node] for node in self.members]

    def ports(self, node: int = 0) -> dict[str, int]:
        """The ports of a node by the name of the service, as the cluster map has them."""
        _ = self._engine
        return {service: ports[node] for service, ports in self._ports.items()}

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
        named = {"kv": kv, "mgmt": mgmt, "kvSSL": kvSSL, "mgmtSSL": mgmtSSL}
        ports = {service: port for service, port in named.items() if port is not None}
        self._engine.advertise(node, ports)
        for service, port in ports.items():
            self._ports[service][node] = port

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
        return self._engine.upsert(
            _key(key),
            to_bytes(value),
            expiry=expiry,
            flags=flags,
            datatype=datatype,
            xattrs=xattrs,
            collection=collection,
            compress=compress,
        )

    def delete(self, key: str | bytes, *, collection: str | int = 0) -> int | None:
        """Delete a document; the tombstone's seqno, None if there is no such document."""
        return self._engine.delete(_key(key), collection=collection)

    def expire(self, key: str | bytes, *, collection: str | int = 0) -> int | None:
        """Let a document expire now; the expiration's seqno, None if there is no such document."""
        return self._engine.delete(_key(key), expired=True, collection=collection)

    def expire_due(self) -> int:
        """Turn every document whose expiry has passed into an expiration; how many.

        The real server does so once an hour or upon access; here it happens upon access or now.
        """
        return self._engine.expire_due()

    def get(self, key: str | bytes, *, collection: str | int = 0) -> bytes | None:
        """A document's bytes, without attributes; None if it does not exist."""
        return self._engine.get(_key(key), collection=collection)

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
        return self._engine.bulk_load(pairs, collection=collection, flags=flags, datatype=datatype)

    def load_sample(self, documents: int = 100_000, seed: int = DEFAULT_SEED) -> int:
        """Load :func:`cbframe.local.sample.sample_documents`; how many keys."""
        return self._engine.load_sample(documents, seed)

    def high_seqnos(self) -> dict[int, int]:
        """High seqno by vbucket, 0 included."""
        return dict(self._engine.high_seqnos())

    def failover_log(self, vbucket: int) -> list[tuple[int, int]]:
        """``(vbuuid, seqno)`` of a vbucket's histories, newest first."""
        return [(uuid, seqno) for uuid, seqno in self._engine.failover_log(vbucket)]

    def item_count(self) -> int:
        """How many documents exist, tombstones not counted."""
        return self._engine.item_count()

    # ------------------------------------------------------------------ collections

    def create_scope(self, name: str) -> None:
        """Create a scope."""
        self._engine.create_scope(name)

    def create_collection(self, scope: str, name: str, *, max_ttl: int = 0) -> int:
        """Create a collection; its id."""
        return self._engine.create_collection(scope, name, max_ttl)

    def drop_collection(self, scope: str, name: str) -> None:
        """Drop a collection with all its documents, which leave no tombstones."""
        self._engine.drop_collection(scope, name)

    def drop_scope(self, name: str) -> None:
        """Drop a scope with all its collections."""
        self._engine.drop_scope(name)


def _key(key: str | bytes) -> bytes:
    return key.encode() if isinstance(key, str) else key
