"""A proxy that breaks connections: exact to the byte, on command, at a place that the test names."""

from __future__ import annotations

import contextlib
import selectors
import socket
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import Literal, NamedTuple, Self, TypeAlias

from cbframe.errors import ConfigurationError, ConnectError
from cbframe.local import LocalCluster
from cbframe.local.cluster_manager import HOST
from cbframe.local.loop import Channel, Loop, send_buffers

Direction: TypeAlias = Literal["down", "up"]
"""Down is from the node to the client, up from the client to the node."""


class Passed(NamedTuple):
    """Bytes that went through in one piece."""

    connection: int
    """Number of the connection, in the order in which they were made."""
    node: int
    direction: Direction
    data: bytes


class FaultProxy:
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

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

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
