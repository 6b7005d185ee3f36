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
import selectors
import socket
import tempfile
import threading
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple, Self, TypeAlias
from urllib.parse import quote

from cbframe.cluster.connection_string import CAPELLA, ZONES, SrvRecord, Zone
from cbframe.dcp.receiver import Document
from cbframe.dcp.transport import Stream, Waker
from cbframe.errors import CbframeError, ConfigurationError, ConnectError, DependencyError
from cbframe.local import LocalCluster, ServerTLS
from cbframe.local.cluster_manager import HOST
from cbframe.local.loop import Channel, Loop, send_buffers
from cbframe.public import Closing
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


class LocalCapella(Closing):
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


# --- a network that fails


Direction: TypeAlias = Literal["down", "up"]
"""Down is from the node to the client, up from the client to the node."""


class Passed(NamedTuple):
    """Bytes that went through in one piece."""

    connection: int
    """Number of the connection, in the order in which they were made."""
    node: int
    direction: Direction
    data: bytes


class FaultProxy(Closing):
    """Stands between clients and nodes on 127.0.0.1; one thread serves all connections.

    Parameters
    ----------
    cluster
        Stand before every node of this running cluster: from now until :meth:`close` it tells
        clients the proxy's ports instead of its own; :meth:`follow` when its nodes change. None to use
        :meth:`forward` by hand.
    record
        Keep everything that passes, in :attr:`record`.

    Examples
    --------
    >>> from cbframe.local import LocalCluster
    >>> from cbframe.testing import FaultProxy
    >>> with LocalCluster(vbuckets=4) as cluster, FaultProxy(cluster) as proxy:
    ...     proxy.cut(after_bytes=100)  # the first connection ends in the middle of its handshake
    """

    def __init__(self, cluster: LocalCluster | None = None, *, record: bool = False) -> None:
        self._wires = _Wires(Loop("cbframe-proxy"), [] if record else None)
        self._made = 0
        self._forwards = 0
        self._cluster = cluster
        self._own_ports: dict[int, dict[str, int]] = {}
        self._advertised: dict[int, dict[str, int]] = {}
        self._wires.loop.start()
        if cluster is not None:
            with contextlib.ExitStack() as undo:
                undo.callback(self.close)
                self.follow()
                undo.pop_all()

    def follow(self) -> None:
        """Stand before the nodes that joined the cluster since, or came back on other ports."""
        if self._cluster is None:
            raise ConfigurationError("there is no cluster to follow", hint="FaultProxy(cluster)")
        for node in self._cluster.members:
            own = self._cluster.ports(node)
            if own != self._advertised.get(node):
                advertised = {service: self._listen(node, HOST, port) for service, port in own.items()}
                self._cluster.advertise(node, **advertised)
                self._own_ports[node], self._advertised[node] = own, advertised

    def close(self) -> None:
        """Break every connection, end the thread; the cluster tells its own ports again."""
        ports, self._own_ports = self._own_ports, {}
        for node, own in ports.items():
            assert self._cluster is not None
            with contextlib.suppress(ConnectError):  # It was shut down before.
                self._cluster.advertise(node, **own)
        self._wires.loop.stop()

    def forward(self, address: str) -> str:
        """Forward to any ``host:port``; the proxy's own ``host:port`` for it.

        The verbs know it by its number: the first call is node 0, the second node 1.
        """
        host, _, port = address.rpartition(":")
        if self._cluster is not None or not host or not port.isdecimal():
            raise ConfigurationError(
                f"cannot forward to {address!r} here", hint="FaultProxy().forward('h:1')"
            )
        number, self._forwards = self._forwards, self._forwards + 1
        return f"{HOST}:{self._listen(number, host, int(port))}"

    def _listen(self, node: int, host: str, port: int) -> int:
        return self._wires.loop.call(
            lambda: self._wires.loop.listen(partial(self._accept, node, (host, port)))
        )

    # ------------------------------------------------------------------ what can be seen

    @property
    def record(self) -> list[Passed]:
        """What has passed, in order; empty if it is not kept."""
        return self._wires.loop.call(lambda: list(self._wires.record or ()))

    def connections(self, node: int | None = None) -> int:
        """How many connections are open now."""
        return self._wires.loop.call(lambda: len(self._of(node)))

    def passed(self, direction: Direction) -> int:
        """Bytes that went through in a direction."""
        return self._wires.loop.call(lambda: self._wires.passed[direction])

    @property
    def pending(self) -> int:
        """Faults that were asked for and have not happened."""
        return self._wires.loop.call(lambda: len(self._wires.faults))

    # ------------------------------------------------------------------ faults

    def cut(
        self, *, after_bytes: int | None = None, direction: Direction = "down", node: int | None = None
    ) -> int:
        """Cut connections: both ends see them close.

        Parameters
        ----------
        after_bytes
            None cuts all now. Otherwise one is cut, once, when that many more bytes have gone through
            in `direction`, over all connections: the one that the last of them was on. 0 cuts the one
            that the next byte wants to take.
        node
            Only connections to this node; None for all.

        Returns
        -------
        int
            How many were cut now.
        """
        if after_bytes is None:
            return self._now(_Link.cut, node)
        return self._arm(_Fault("cut", direction, node, after_bytes))

    def silence(
        self, *, after_bytes: int | None = None, direction: Direction = "down", node: int | None = None
    ) -> int:
        """Connections pass nothing more, in neither direction, and stay open.

        That is what a firewall does that forgot them, or a machine that lost its power. New
        connections work. Arguments and result as for :meth:`cut`.
        """
        if after_bytes is None:
            return self._now(_Link.silence, node)
        return self._arm(_Fault("silence", direction, node, after_bytes))

    def garble(self, at: int = 0, *, direction: Direction = "down", node: int | None = None) -> None:
        """Turn over all bits of one byte: `at` more bytes pass unharmed before it."""
        self._arm(_Fault("garble", direction, node, at))

    @contextmanager
    def stall(self, node: int | None = None) -> Iterator[None]:
        """Pass nothing while inside; afterwards everything that came meanwhile, nothing lost."""
        self._wires.loop.call(lambda: self._wires.stalled.add(node))
        try:
            yield
        finally:
            self._wires.loop.call(lambda: self._resume(node))

    def chop(self, nbytes: int | None) -> None:
        """Pass at most that many bytes with each write, in both directions; None for no limit."""
        if nbytes is not None and nbytes < 1:
            raise ConfigurationError(f"chop needs at least 1 byte, not {nbytes}")
        self._wires.loop.call(lambda: setattr(self._wires, "chop", nbytes))

    def delay(self, seconds: float) -> None:
        """What comes from now on goes through this many seconds later, in both directions."""
        if seconds < 0:
            raise ConfigurationError(f"a delay of {seconds} s cannot be")
        self._wires.loop.call(lambda: setattr(self._wires, "delay", seconds))

    # ------------------------------------------------------------------ on the loop's thread

    def _accept(self, node: int, target: tuple[str, int], sock: socket.socket) -> Channel | None:
        try:
            ahead = socket.create_connection(target, timeout=5)
        except OSError:
            return None
        ahead.setblocking(False)
        with contextlib.suppress(OSError):  # macOS: the node has hung up already
            ahead.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        link = _Link(self._wires, self._made, node, sock, ahead)
        self._made += 1
        self._wires.links.append(link)
        self._wires.loop.channels.add(link.up)
        self._wires.loop.selector.register(ahead, selectors.EVENT_READ, link.up)
        return link.down

    def _of(self, node: int | None) -> list[_Link]:
        return [link for link in self._wires.links if node is None or link.node == node]

    def _now(self, act: Callable[[_Link], None], node: int | None) -> int:
        """Do something to all connections; to how many."""

        def run() -> int:
            links = self._of(node)
            for link in links:
                act(link)
            return len(links)

        return self._wires.loop.call(run)

    def _arm(self, fault: _Fault) -> int:
        if fault.left < 0:
            raise ConfigurationError(f"a fault after {fault.left} bytes lies in the past")
        self._wires.loop.call(lambda: self._wires.faults.append(fault))
        return 0

    def _resume(self, node: int | None) -> None:
        self._wires.stalled.discard(node)
        for link in self._of(None):
            link.down.flush()
            link.up.flush()


@dataclass(slots=True, eq=False)
class _Fault:
    kind: Literal["cut", "silence", "garble"]
    direction: Direction
    node: int | None
    left: int
    """Bytes that pass before it happens."""


@dataclass(slots=True, eq=False)
class _Wires:
    """What the connections share; touched by the loop's thread only."""

    loop: Loop
    record: list[Passed] | None
    links: list[_Link] = field(default_factory=list)
    passed: dict[Direction, int] = field(default_factory=lambda: {"down": 0, "up": 0})
    faults: list[_Fault] = field(default_factory=list)
    stalled: set[int | None] = field(default_factory=set)
    chop: int | None = None
    delay: float = 0.0


class _Link:
    """A client's connection and the one to the node that belongs to it."""

    def __init__(
        self, wires: _Wires, number: int, node: int, client: socket.socket, ahead: socket.socket
    ) -> None:
        self.wires = wires
        self.number = number
        self.node = node
        self.silent = False
        self.down = _End(self, "down", client)
        self.up = _End(self, "up", ahead)

    def cut(self) -> None:
        self.silence()
        self.down.close()
        self.up.close()

    def silence(self) -> None:
        self.silent = True
        for end in (self.down, self.up):
            end.out.clear()
            end.later.clear()

    def ended(self, end: _End) -> None:
        """One end has closed: the other does so when it has sent what it has."""
        other = self.up if end is self.down else self.down
        if other.closed:
            self.wires.links.remove(self)
        else:
            other.closing = True
            other.flush()


class _End(Channel):
    """One of a link's sockets. Its direction is that of the bytes that it sends."""

    def __init__(self, link: _Link, direction: Direction, sock: socket.socket) -> None:
        super().__init__(link.wires.loop, sock)
        self._link = link
        self._wires = link.wires
        self._direction = direction
        self.later: deque[tuple[float, bytes]] = deque()
        """Delayed bytes, and when they are due."""

    def received(self, data: bytes) -> None:
        if self._link.silent:
            return
        other = self._link.up if self is self._link.down else self._link.down
        if self._wires.delay or other.later:
            other.later.append((self.loop.clock() + self._wires.delay, data))
            other.deadline = other.later[0][0]
        else:
            other.send(data)
            other.flush()

    def on_timer(self, now: float) -> None:
        while self.later and self.later[0][0] <= now:
            self.send(self.later.popleft()[1])
        self.deadline = self.later[0][0] if self.later else None

    def on_close(self) -> None:
        self._link.ended(self)

    def flush(self) -> None:
        """Send one piece: up to the next fault, or as long as pieces may be."""
        wires = self._wires
        if self.closed or wires.stalled & {None, self._link.node}:
            self._want_write(False)
            return
        if self.out and not self._happen():
            piece = self._piece()
            try:
                count = send_buffers(self.sock, [piece])
            except BlockingIOError:
                count = 0
            except OSError:
                self.close()
                return
            self._account(bytes(piece[:count]))
            self._consume(count)
            if count and self._happen():
                return
        if not self.out and not self.later and self.closing:
            self.close()
            return
        self._want_write(bool(self.out))

    def _faults(self) -> list[_Fault]:
        return [
            fault
            for fault in self._wires.faults
            if fault.direction == self._direction and fault.node in (None, self._link.node)
        ]

    def _happen(self) -> bool:
        """Let the faults happen whose byte has come; whether nothing more is to be sent."""
        due = [fault for fault in self._faults() if not fault.left]
        for fault in due:
            if fault.kind == "garble":
                if not self.out:
                    continue  # The byte is still to come.
                first = self.out[0]
                self.out[0] = bytes([first[0] ^ 0xFF]) + first[1:]
            self._wires.faults.remove(fault)
            if fault.kind == "silence":
                self._link.silence()
            elif fault.kind == "cut":
                self._link.cut()
        return self._link.silent

    def _piece(self) -> memoryview:
        first = memoryview(self.out[0])
        limits = [fault.left for fault in self._faults() if fault.left]
        if self._wires.chop is not None:
            limits.append(self._wires.chop)
        return first[: min(limits, default=len(first))]

    def _account(self, data: bytes) -> None:
        self._wires.passed[self._direction] += len(data)
        for fault in self._faults():
            fault.left -= len(data)
        if self._wires.record is not None and data:
            self._wires.record.append(Passed(self._link.number, self._link.node, self._direction, data))
