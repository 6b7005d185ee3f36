"""Doubles for tests of programs that use cbframe, and of cbframe itself.

==========================  ==================================================================================
double                      stands in for
==========================  ==================================================================================
:class:`RecordingReceiver`  a program that takes documents: keeps them, and every call
:class:`ScriptedTransport`  the network, in this process and without a thread: a function for each node
                            answers frame by frame, and waits take time of a :class:`FakeClock` only
:class:`FaultProxy`         a network that fails: a proxy between clients and a ``LocalCluster``, which breaks
                            connections at the byte that a test names
:class:`LocalCapella`       a cluster of Couchbase's cloud: names, certificates and rights as there
==========================  ==================================================================================
"""

from __future__ import annotations

import contextlib
import secrets
import tempfile
import threading
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self, TypeAlias
from urllib.parse import quote

from cbframe.cluster.connection_string import CAPELLA, ZONES, SrvRecord, Zone
from cbframe.dcp.receiver import Document
from cbframe.dcp.transport import Stream, Waker
from cbframe.errors import CbframeError, ConnectError, DependencyError
from cbframe.local import LocalCluster, ServerTLS
from cbframe.local.cluster_manager import HOST
from cbframe.testing.proxy import FaultProxy
from cbframe.wire.framing import Frame

__all__ = ["FakeClock", "FaultProxy", "LocalCapella", "RecordingReceiver", "ScriptedTransport"]

Peer: TypeAlias = Callable[[Frame], bytes | None]
"""Bytes that follow a frame from the client; None hangs up."""


class RecordingReceiver:
    """Holds the newest version of each document, and reads a vbucket again after a rollback.

    Attributes
    ----------
    documents
        By vbucket and key (without collection): what exists now.
    errors
        What `on_error` was given.
    rollbacks
        Vbucket and seqno of each rollback.
    threads
        Names of the threads that called, by vbucket.
    """

    def __init__(self) -> None:
        self.documents: defaultdict[int, dict[bytes, Document]] = defaultdict(dict)
        self.seqnos: dict[int, int] = {}
        self.metadata: dict[int, bytes] = {}
        self.snapshots: list[tuple[int, int, int, int]] = []
        self.errors: list[CbframeError] = []
        self.rollbacks: list[tuple[int, int]] = []
        self.threads: defaultdict[int, set[str]] = defaultdict(set)
        self.changed = threading.Condition()

    def data_update(self, vbucket: int, key: bytes, seqno: int, document: Document) -> None:
        with self.changed:
            self.documents[vbucket][key] = document
            self._took(vbucket, seqno)

    def data_delete(self, vbucket: int, key: bytes, seqno: int, document: Document) -> None:  # noqa: ARG002
        with self.changed:
            self.documents[vbucket].pop(key, None)
            self._took(vbucket, seqno)

    def _took(self, vbucket: int, seqno: int) -> None:
        self.seqnos[vbucket] = seqno
        self.threads[vbucket].add(threading.current_thread().name)
        self.changed.notify_all()

    def on_error(self, error: CbframeError) -> None:
        with self.changed:
            self.errors.append(error)
            self.changed.notify_all()

    def snapshot_start(self, vbucket: int, start: int, end: int, flags: int) -> None:
        self.snapshots.append((vbucket, start, end, flags))

    def set_metadata(self, vbucket: int, metadata: bytes) -> None:
        self.metadata[vbucket] = metadata

    def get_metadata(self, vbucket: int) -> tuple[bytes | None, int]:
        return self.metadata.get(vbucket), self.seqnos.get(vbucket, 0)

    def rollback(self, vbucket: int, seqno: int) -> None:
        with self.changed:
            self.rollbacks.append((vbucket, seqno))
            self.documents.pop(vbucket, None)
            self.seqnos.pop(vbucket, None)
            self.metadata.pop(vbucket, None)
            self.changed.notify_all()

    def values(self) -> dict[bytes, bytes]:
        """Key and value of every document there is."""
        with self.changed:
            return {key: doc.value for docs in self.documents.values() for key, doc in docs.items()}


class FakeClock:
    """Seconds since some moment; call it to read it."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds


class ScriptedTransport:
    """Connects to peers by address; any other address cannot be reached.

    Waiting for bytes that do not come moves the clock on by the whole wait.
    """

    def __init__(self, peers: Mapping[str, Peer], clock: FakeClock) -> None:
        self._peers = dict(peers)
        self._clock = clock
        self.connected: list[str] = []
        self.closed = 0
        self.on_connect: Callable[[Stream], object] | None = None
        """Called with each stream before it is used."""

    def forget(self, node: str) -> None:
        """A node cannot be reached any more."""
        del self._peers[node]

    def connect(self, node: str, waker: Waker, timeout: float) -> Stream:  # noqa: ARG002
        self.connected.append(node)
        if node not in self._peers:
            raise ConnectError("cannot connect", node=node)
        stream = _ScriptedStream(self, self._peers[node], self._clock)
        if self.on_connect is not None:
            self.on_connect(stream)
        return stream


class _ScriptedStream:
    def __init__(self, transport: ScriptedTransport, peer: Peer, clock: FakeClock) -> None:
        self._transport = transport
        self._peer = peer
        self._clock = clock
        self._incoming = bytearray()
        self._over = False

    def receive_into(self, view: memoryview) -> int | None:
        count = min(len(view), len(self._incoming))
        if not count:
            return 0 if self._over else None
        view[:count] = self._incoming[:count]
        del self._incoming[:count]
        return count

    def send_all(self, data: bytes, timeout: float) -> None:  # noqa: ARG002
        offset = 0
        while (parsed := Frame.parse(data, offset)) is not None:
            frame, offset = parsed
            answer = self._peer(frame)
            if answer is None:
                self._over = True
                return
            self._incoming += answer

    def wait(self, timeout: float | None, least: int = 1) -> bool:
        if len(self._incoming) >= least or self._over:
            return True
        self._clock.advance(timeout or 0.0)
        return False

    def close(self) -> None:
        self._transport.closed += 1


class LocalCapella:
    """A :class:`~cbframe.LocalCluster` that is reached as a Capella cluster is.

    Its name has SRV records only. Its nodes take TLS only, by names of their own; those by which they know
    each other exist inside only. Its user may read and stream, and see no statistics of the nodes. While it
    runs, this process, and no other, resolves its names without DNS, and trusts its certificate authority
    for them in place of Capella's root certificate.

    Parameters
    ----------
    nodes, vbuckets, bucket
        As for :class:`~cbframe.LocalCluster`.
    name
        Part of the host names, different for each that runs at the same time.
    private_endpoint
        All nodes have the one name of a private endpoint, and differ by their ports.

    Attributes
    ----------
    cluster
        The cluster itself, to write documents and to change nodes.
    username, password
        The user, who may only read.

    Raises
    ------
    DependencyError
        :mod:`trustme` is not installed, which makes the certificates.

    Examples
    --------
    >>> from cbframe import read_bucket
    >>> from cbframe.testing import LocalCapella
    >>> with LocalCapella(vbuckets=4) as capella:
    ...     _ = capella.cluster.upsert("greeting", {"text": "hello"})
    ...     len(read_bucket(capella.connection_string, auth=capella.auth))
    1
    """

    def __init__(
        self,
        nodes: int = 2,
        vbuckets: int = 64,
        *,
        bucket: str = "travel",
        name: str = "local",
        private_endpoint: bool = False,
    ) -> None:
        try:
            import trustme  # noqa: PLC0415 - optional
        except ImportError as exc:
            raise DependencyError("LocalCapella needs trustme", hint="pip install trustme") from exc
        domain = f"{name}.{CAPELLA}"
        self.host = f"{'pe' if private_endpoint else 'cb'}.{domain}"
        """The name of the cluster."""
        self.username, self.password = "reader", secrets.token_urlsafe(12)
        self._private = private_endpoint
        self._undo = contextlib.ExitStack()
        authority = trustme.CA(organization_name="cbframe.testing.LocalCapella")
        self._certificate = authority.issue_cert(f"*.{domain}")
        self._zone = Zone(domain, {}, {}, authority.cert_pem.bytes().decode())
        self._shape = (nodes, vbuckets, bucket)

    def __repr__(self) -> str:
        return f"<LocalCapella {self.connection_string!r}>"

    @property
    def connection_string(self) -> str:
        """``couchbases://cb.NAME.cloud.couchbase.com/BUCKET``."""
        return f"couchbases://{self.host}/{quote(self._shape[2], safe='')}"

    @property
    def auth(self) -> tuple[str, str]:
        """User and password."""
        return self.username, self.password

    def start(self) -> Self:
        """Bring it up; does nothing if it is up. Raises as :meth:`cbframe.LocalCluster.start`."""
        if self._zone in ZONES:
            return self
        nodes, vbuckets, bucket = self._shape
        with contextlib.ExitStack() as undo:
            folder = Path(undo.enter_context(tempfile.TemporaryDirectory(prefix="cbframe-")))
            self._certificate.private_key_and_cert_chain_pem.write_to_path(folder / "node.pem")
            self.cluster = undo.enter_context(
                LocalCluster(
                    nodes,
                    vbuckets,
                    bucket=bucket,
                    password=secrets.token_urlsafe(12),
                    tls=ServerTLS(folder / "node.pem"),
                    internal_host=f"node.internal.{self._zone.domain}",
                )
            )
            self.cluster.add_user(self.username, self.password, access="dcp")
            self.follow()
            ZONES.append(self._zone)
            undo.callback(ZONES.remove, self._zone)
            self._undo = undo.pop_all()
        return self

    def close(self) -> None:
        """Shut down; its names and its authority are forgotten. May be repeated."""
        self._undo.close()

    def follow(self) -> None:
        """Name the nodes that joined the cluster since, or came back on other ports, and no others."""
        records: list[SrvRecord] = []
        for node in self.cluster.members:
            host = self.host if self._private else f"node-{node + 1:03}.{self._zone.domain}"
            ports = {name: port for name, port in self.cluster.ports(node).items() if name.endswith("SSL")}
            self.cluster.set_alternate_address(node, host, **ports)
            records.append(SrvRecord(0, 0, f"{host}.", ports["kvSSL"]))
        self._zone.hosts.clear()
        self._zone.hosts.update({record.target.rstrip("."): HOST for record in records})
        self._zone.services[f"_couchbases._tcp.{self.host}"] = records

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
