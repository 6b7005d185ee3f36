"""Sockets: connecting, waiting, and being woken up. The only module that opens one.

:class:`Stream` and :class:`Transport` are the seam for tests: a scripted transport stands in for
the network.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import ssl
from typing import Protocol

from cbframe.cluster.address import split_address as address_parts
from cbframe.errors import ConfigurationError, ConnectError, ReadCancelledError, ReadTimeoutError


class Waker:
    """Ends another thread's wait: one byte through a socket pair."""

    def __init__(self) -> None:
        self._read, self._write = socket.socketpair()
        self._read.setblocking(False)
        self._write.setblocking(False)

    def fileno(self) -> int:
        return self._read.fileno()

    def wake(self) -> None:
        """Wake the waiting thread; callable from any thread, and after `close`."""
        # A full pipe wakes as well as one more byte would; a closed one has no one to wake.
        with contextlib.suppress(BlockingIOError, OSError):
            self._write.send(b"\0")

    def drain(self) -> None:
        """Forget earlier calls of `wake`."""
        with contextlib.suppress(BlockingIOError):
            while self._read.recv(4096):
                pass

    def close(self) -> None:
        self._read.close()
        self._write.close()


class Stream(Protocol):
    """A connected byte stream."""

    def receive_into(self, view: memoryview) -> int | None:
        """Read what is there: its length, 0 at the end of the stream, None if nothing is there."""

    def send_all(self, data: bytes, timeout: float) -> None:
        """Write all of `data`."""

    def wait(self, timeout: float | None) -> bool:
        """Wait until there is something to read or the waker rings; whether there is to read."""

    def close(self) -> None: ...


class Transport(Protocol):
    """Makes streams."""

    def connect(self, node: str, waker: Waker, timeout: float) -> Stream:
        """Connect to ``host:port``, or raise ConnectError; ReadCancelledError if woken meanwhile."""


class SocketTransport:
    """TCP, with TLS if there is a context.

    Parameters
    ----------
    tls
        The context that verifies the peer; None for plain TCP.
    """

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls

    def connect(self, node: str, waker: Waker, timeout: float) -> Stream:
        host, port = split_address(node)
        try:
            addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as exc:
            raise ConnectError(
                f"the name {host!r} cannot be resolved", node=node, hint="check the host name and DNS"
            ) from exc
        failure: ConnectError | None = None
        for family, kind, proto, _, address in addresses:
            with contextlib.ExitStack() as undo:
                sock = undo.enter_context(socket.socket(family, kind, proto))
                try:
                    _connect(sock, address, node, waker, timeout)
                    if self._tls is not None:
                        sock = _wrap(self._tls, sock, host, node, timeout)
                except ConnectError as exc:
                    failure = exc
                else:
                    undo.pop_all()
                    return SocketStream(sock, node, waker)
        raise failure or ConnectError(f"the name {host!r} has no address", node=node)


class SocketStream:
    """A non-blocking socket and the waker of the thread that reads it."""

    def __init__(self, sock: socket.socket, node: str, waker: Waker) -> None:
        self._sock = sock
        self._node = node
        self._waker = waker
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)
        self._poll.register(waker.fileno(), select.POLLIN)

    def receive_into(self, view: memoryview) -> int | None:
        try:
            return self._sock.recv_into(view)
        except (BlockingIOError, ssl.SSLWantReadError):
            return None
        except OSError as exc:
            raise ConnectError(f"the connection broke: {exc.strerror or exc}", node=self._node) from exc

    def send_all(self, data: bytes, timeout: float) -> None:
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[self._sock.send(rest) :]
            except (BlockingIOError, ssl.SSLWantWriteError):
                if not _writable(self._sock, timeout):
                    raise ReadTimeoutError(
                        f"the node took no bytes for {timeout:g} s", node=self._node
                    ) from None
            except OSError as exc:
                raise ConnectError(f"the connection broke: {exc.strerror or exc}", node=self._node) from exc

    def wait(self, timeout: float | None) -> bool:
        if isinstance(self._sock, ssl.SSLSocket) and self._sock.pending():
            return True
        ready = self._poll.poll(None if timeout is None else max(0, int(timeout * 1000) + 1))
        woken = {fd for fd, _ in ready}
        if self._waker.fileno() in woken:
            self._waker.drain()
        return self._sock.fileno() in woken

    def close(self) -> None:
        self._sock.close()


def split_address(node: str) -> tuple[str, int]:
    """Host and port of ``host:port`` or ``[v6]:port``."""
    address = address_parts(node)
    if address is None:
        raise ConfigurationError(f"{node!r} is no host:port")
    return address


def _wrap(tls: ssl.SSLContext, sock: socket.socket, host: str, node: str, timeout: float) -> ssl.SSLSocket:
    sock.settimeout(timeout)
    try:
        wrapped = tls.wrap_socket(sock, server_hostname=host)
    except (ssl.SSLError, OSError) as exc:
        raise ConnectError(
            f"TLS failed: {exc}",
            node=node,
            hint="check the certificate authority, the host name and the TLS port (11207)",
        ) from exc
    wrapped.setblocking(False)
    return wrapped


def _connect(
    sock: socket.socket, address: tuple[object, ...], node: str, waker: Waker, timeout: float
) -> None:
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    code = sock.connect_ex(address)
    if code:
        poll = select.poll()
        poll.register(sock, select.POLLOUT)
        poll.register(waker.fileno(), select.POLLIN)
        ready = {fd for fd, _ in poll.poll(int(timeout * 1000))}
        if waker.fileno() in ready:
            raise ReadCancelledError("cancelled while connecting", node=node)
        if not ready:
            raise ConnectError(
                f"no connection within {timeout:g} s",
                node=node,
                hint="a firewall may drop the packets, or this address is not reachable from here",
            )
        code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if code:
        error = OSError(code, os.strerror(code))
        raise ConnectError(
            f"cannot connect: {error.strerror}",
            node=node,
            hint="check that the node runs and that the port is right",
        ) from error


def _writable(sock: socket.socket, timeout: float) -> bool:
    poll = select.poll()
    poll.register(sock, select.POLLOUT)
    return bool(poll.poll(int(timeout * 1000)))
