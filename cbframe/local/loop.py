"""One thread per node: sockets, with TLS or without, timers and calls from other threads.

There is nothing of the protocol here.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import selectors
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from os import PathLike, fspath
from typing import Any, TypeAlias, TypeVar

from cbframe.errors import ConfigurationError, ConnectError, ResourceError
from cbframe.system import Call, OwnThread, shortage

T = TypeVar("T")
_RECORD = 16 * 1024
"""The longest TLS record: sending more at once gains nothing."""
_RECEIVE = 256 * 1024
_ACCEPT_AGAIN = 0.05
"""Seconds until a loop that was out of descriptors takes connections again."""
_JOINED = 64 * 1024
"""Bytes of one write, where they have to be copied for it."""
_MAX_BUFFERS = 512
"""Below IOV_MAX (1024)."""


@dataclass(frozen=True, slots=True)
class ServerTLS:
    """The certificates of a :class:`~cbframe.LocalCluster`, as paths of PEM files.

    Attributes
    ----------
    certificate
        The chain that every node shows, its own certificate first. It has to be valid for
        ``127.0.0.1``.
    key
        Its private key; None if it is in the same file.
    client_ca
        Authorities whose client certificates are taken in place of a password: the common name is
        the user. None asks for no certificate.
    mandatory
        Refuse clients without a certificate.

    Raises
    ------
    ConfigurationError
        Certificates are mandatory, but no authority says which.
    """

    certificate: str | PathLike[str]
    key: str | PathLike[str] | None = None
    client_ca: str | PathLike[str] | None = None
    mandatory: bool = False

    def __post_init__(self) -> None:
        if self.mandatory and self.client_ca is None:
            raise ConfigurationError("mandatory client certificates need client_ca")

    def options(self) -> dict[str, Any]:
        """The same as plain values, which can go to another process."""
        paths = {"certificate": self.certificate, "key": self.key, "client_ca": self.client_ca}
        plain = {name: None if path is None else fspath(path) for name, path in paths.items()}
        return {**plain, "mandatory": self.mandatory}

    def context(self) -> ssl.SSLContext:
        """The context of the listeners.

        Raises
        ------
        ConfigurationError
            A file cannot be read, or does not hold what it should.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            context.load_cert_chain(self.certificate, self.key)
            if self.client_ca is not None:
                context.load_verify_locations(self.client_ca)
                context.verify_mode = ssl.CERT_REQUIRED if self.mandatory else ssl.CERT_OPTIONAL
        except OSError as exc:  # SSLError is one
            raise ConfigurationError(f"the cluster's certificates cannot be used: {exc}") from exc
        return context


class TlsSocket:
    """TLS over a non-blocking socket, with the methods that a channel uses.

    Whatever TLS waits for, it raises BlockingIOError as a plain socket does. If that is the
    permission to write, :attr:`wants_write` is set until the next attempt.
    """

    def __init__(self, sock: socket.socket, context: ssl.SSLContext) -> None:
        self._tls = context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
        self._secured = False
        self._unsent = b""
        self.wants_write = False
        self.on_secured: Callable[[str | None], None] = lambda _user: None
        """Called after the handshake with the common name of the client's certificate, if any."""

    def fileno(self) -> int:
        return self._tls.fileno()

    def close(self) -> None:
        self._tls.close()

    def recv(self, nbytes: int) -> bytes:
        """What there is, up to about `nbytes`.

        It takes all records that have come: the selector does not see what TLS has read already.
        """
        chunks: list[bytes] = []
        total = 0
        while total < nbytes:
            try:
                chunk = self._read()
            except BlockingIOError:
                if not chunks:
                    raise
                break
            if not chunk:
                break
            chunks.append(chunk)
            total += len(chunk)
        return b"".join(chunks)

    def sendmsg(self, buffers: Sequence[bytes | memoryview]) -> int:
        """Send the beginning of `buffers`; how many bytes of it."""
        # What TLS could not send has to be offered to it again, not shorter than before.
        if not self._unsent:
            self._unsent = _beginning(buffers)
        count = self._attempt(lambda: self._tls.send(self._unsent))
        self._unsent = b""
        return count

    def _read(self) -> bytes:
        if not self._secured:
            self._attempt(self._tls.do_handshake)
            self._secured = True
            self.on_secured(_common_name(self._tls))
        return self._attempt(lambda: self._tls.recv(_RECORD))

    def _attempt(self, call: Callable[[], T]) -> T:
        self.wants_write = False
        try:
            return call()
        except ssl.SSLWantReadError:
            raise BlockingIOError from None
        except ssl.SSLWantWriteError:
            self.wants_write = True
            raise BlockingIOError from None


AnySocket: TypeAlias = socket.socket | TlsSocket


def _beginning(buffers: Sequence[bytes | memoryview]) -> bytes:
    """One record's worth of bytes."""
    chunk = bytearray()
    for buffer in buffers:
        chunk += memoryview(buffer)[: _RECORD - len(chunk)]
        if len(chunk) == _RECORD:
            break
    return bytes(chunk)


def _common_name(tls: ssl.SSLSocket) -> str | None:
    """The common name in the subject of the client's certificate; None without a certificate."""
    certificate = tls.getpeercert() or {}
    subject: Any = certificate.get("subject", ())
    return next((value for part in subject for name, value in part if name == "commonName"), None)


class Channel:
    """One accepted connection. Everything runs on the loop's thread.

    Subclasses override :meth:`received`, :meth:`fill`, :meth:`on_timer`, :meth:`on_close` and
    :meth:`on_secured`.
    """

    def __init__(self, loop: Loop, sock: AnySocket) -> None:
        self.loop = loop
        self.sock = sock
        self.out: deque[bytes | memoryview] = deque()
        self.deadline: float | None = None
        """When :meth:`on_timer` wants to be called, on the loop's clock."""
        self.closed = False
        self.closing = False
        """Close as soon as everything is sent."""
        self._writing = False
        self._held = False
        """Waits for its delay to pass."""
        self._tls = sock if isinstance(sock, TlsSocket) else None
        if self._tls is not None:
            self._tls.on_secured = self.on_secured

    def received(self, data: bytes) -> None:
        """Bytes have come."""

    def fill(self) -> None:
        """Everything is sent: put more into ``out`` if there is more."""

    def on_timer(self, now: float) -> None:
        """The deadline has passed; set the next one."""

    def on_close(self) -> None:
        """The socket is closed."""

    def on_secured(self, user: str | None) -> None:
        """The TLS handshake is over; `user` is the one that the client's certificate names."""

    def limit(self) -> int | None:
        """How many bytes may still be sent before the connection is cut; None for no cut."""
        return None

    def garbled(self) -> int | None:
        """How many bytes are sent before the one whose bits are turned over; None for no such byte."""
        return None

    def messages_per_send(self) -> int:
        """How many of the buffers in ``out`` go into one call of ``send``."""
        return _MAX_BUFFERS

    def sent(self, nbytes: int) -> None:
        """That many bytes went into the socket."""

    def send(self, data: bytes) -> None:
        """Queue bytes after everything queued before."""
        self.out.append(data)

    def flush(self) -> None:
        """Send one batch; the loop comes back while there is more."""
        if self.closed or self.loop.stalled or self._held:
            return
        if not self.out:
            self.fill()
        if self.out and self.loop.delay:
            self._held = True
            self._want_write(False)
            self.loop.call_later(self.loop.delay, self._release)
            return
        self._flush()

    def _release(self) -> None:
        self._held = False
        if not (self.closed or self.loop.stalled):
            self._flush()

    def _flush(self) -> None:
        """Send once, or as many small messages as make a batch, while the socket takes all of them."""
        most = self.messages_per_send()
        for _ in range(_MAX_BUFFERS // most):
            if not (self.out and self._send(most)) or self.closed:
                break
        if self.closed:
            return
        if not self.out and self.closing:
            self.close()
            return
        self._want_write(bool(self.out) or self._tls_waits_to_write())

    def _send(self, most: int) -> bool:
        """One call of ``send`` with at most that many buffers; whether the socket took all of it."""
        buffers = list(islice(self.out, most))
        limit = self.limit()
        for nbytes in (limit, self.loop.chop):
            if nbytes is not None:
                buffers = _within(buffers, nbytes)
        if (place := self.garbled()) is not None:
            buffers = _with_garbled(buffers, place)
        try:
            count = send_buffers(self.sock, buffers)
        except BlockingIOError:
            return False
        except OSError:
            self.close()
            return False
        self._consume(count)
        self.sent(count)
        if limit is not None and count >= limit:
            self.close()
            return False
        if not self.out:
            self.fill()
        return count == sum(map(len, buffers))

    def _consume(self, count: int) -> None:
        out = self.out
        while count:
            first = out[0]
            if count < len(first):
                out[0] = memoryview(first)[count:]
                return
            count -= len(first)
            out.popleft()

    def _tls_waits_to_write(self) -> bool:
        return self._tls is not None and self._tls.wants_write

    def _want_write(self, wanted: bool) -> None:
        if wanted != self._writing and not self.closed:
            self._writing = wanted
            mask = selectors.EVENT_READ | (selectors.EVENT_WRITE if wanted else 0)
            self.loop.selector.modify(self.sock, mask, self)

    def ready(self, mask: int) -> None:
        """The selector says that the socket can be read or written."""
        if mask & selectors.EVENT_READ or self._tls_waits_to_write():
            try:
                data = self.sock.recv(_RECEIVE)
            except BlockingIOError:
                data = None
            except OSError:
                data = b""
            if data == b"":
                self.close()
                return
            if data:
                self.received(data)
        if self.loop.stalled:
            self._want_write(self._tls_waits_to_write())
        else:
            self.flush()

    def close(self) -> None:
        """Close now; what is queued is lost."""
        if self.closed:
            return
        self.closed = True
        self.loop.selector.unregister(self.sock)
        self.loop.channels.discard(self)
        self.sock.close()
        self.out.clear()
        self.on_close()


def send_buffers(sock: AnySocket, buffers: list[bytes | memoryview]) -> int:
    """Send the beginning of some buffers; how many bytes of it."""
    if isinstance(sock, TlsSocket) or hasattr(sock, "sendmsg"):
        return sock.sendmsg(buffers)
    return sock.send(b"".join(_within(buffers, _JOINED)))  # Windows


def _with_garbled(buffers: list[bytes | memoryview], place: int) -> list[bytes | memoryview]:
    """The buffers with all bits of one byte turned over, if it is among them; they themselves stay."""
    found = list(buffers)
    for number, buffer in enumerate(buffers):
        if place < len(buffer):
            changed = bytearray(buffer)
            changed[place] ^= 0xFF
            found[number] = bytes(changed)
            break
        place -= len(buffer)
    return found


def _within(buffers: list[bytes | memoryview], limit: int) -> list[bytes | memoryview]:
    kept: list[bytes | memoryview] = []
    for buffer in buffers:
        if limit <= 0:
            break
        kept.append(buffer if len(buffer) <= limit else memoryview(buffer)[:limit])
        limit -= len(buffer)
    return kept


class Loop:
    """A thread that owns listeners and channels."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.channels: set[Channel] = set()
        self.stalled = False
        self.chop: int | None = None
        """Bytes that a write has at most."""
        self.delay = 0.0
        """Seconds before each write."""
        self._later: list[tuple[float, int, Callable[[], None]]] = []
        self._turns = itertools.count()
        self.clock = time.monotonic
        self._listeners: list[socket.socket] = []
        self._calls: deque[Callable[[], None]] = deque()
        with contextlib.ExitStack() as undo:
            self.selector = undo.enter_context(selectors.DefaultSelector())
            self._bell_in, self._bell_out = socket.socketpair()
            undo.pop_all()
        self._bell_in.setblocking(False)
        self._bell_out.setblocking(False)
        self.selector.register(self._bell_out, selectors.EVENT_READ, self._bell_rung)
        self._rung = False
        self._stopping = False
        self._gate = threading.Lock()
        self._thread = OwnThread(self._run, name)

    def listen(
        self,
        accepted: Callable[[AnySocket], Channel | None],
        tls: ssl.SSLContext | None = None,
        port: int = 0,
    ) -> int:
        """Listen on a loopback port, a free one for 0, with TLS if there is a context; before :meth:`start`.

        `accepted` makes the channel of a connection; None refuses it.
        """
        listener = socket.create_server(("127.0.0.1", port), backlog=128)
        listener.setblocking(False)
        self._listeners.append(listener)

        def resume() -> None:
            if not self._stopping:
                self.selector.register(listener, selectors.EVENT_READ, accept)

        def accept(_mask: int) -> None:
            try:
                plain, _ = listener.accept()
            except OSError as exc:
                if shortage(exc) is not None:
                    # The client stays in the queue, and the listener would be ready all the time.
                    self.selector.unregister(listener)
                    self.call_later(_ACCEPT_AGAIN, resume)
                return  # Or else the client has gone already.
            try:
                plain.setblocking(False)
                # Of a client that has gone already, macOS raises here.
                plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock: AnySocket = plain if tls is None else TlsSocket(plain, tls)
            except OSError:
                plain.close()
                return
            channel = accepted(sock)
            if channel is None:
                sock.close()
            else:
                self.channels.add(channel)
                self.selector.register(sock, selectors.EVENT_READ, channel)

        self.selector.register(listener, selectors.EVENT_READ, accept)
        return int(listener.getsockname()[1])

    def start(self) -> None:
        """Begin; ResourceError if there is no thread, and nothing is left open then."""
        try:
            self._thread.start()
        except ResourceError:
            self._close_all()
            raise

    def stop(self) -> None:
        """End the thread, close every socket, wait for both."""
        with self._gate:
            self._stopping = True
        self.wake()
        if self._thread.ident is None:
            self._close_all()
        else:
            self._thread.join()

    def post(self, call: Callable[[], None]) -> None:
        """Run `call` on the loop's thread soon."""
        self._calls.append(call)
        self.wake()

    def call_later(self, seconds: float, call: Callable[[], None]) -> None:
        """Run `call` after some time; from the loop's thread only."""
        heapq.heappush(self._later, (self.clock() + seconds, next(self._turns), call))

    def call(self, function: Callable[[], T]) -> T:
        """Run `function` on the loop's thread and return what it returns."""
        if threading.current_thread() is self._thread:
            return function()
        call = Call(function)
        with self._gate:
            if self._stopping or self._thread.ident is None:
                raise ConnectError(f"{self.name} is not running")
            self._calls.append(call)
        self.wake()
        return call.outcome()

    def wake(self) -> None:
        """Make the thread look at its work; from any thread."""
        if self._rung:
            return
        self._rung = True
        try:
            self._bell_in.send(b"!")
        except OSError:
            return  # Full, so it will wake; or closed, so nobody needs to.

    def on_wake(self) -> None:
        """Work of the owner after each wake-up."""

    def set_stalled(self, stalled: bool) -> None:
        """Stop or resume all sending; sockets stay open and are still read."""
        self.stalled = stalled
        if not stalled:
            for channel in list(self.channels):
                channel.flush()

    def _bell_rung(self, _mask: int) -> None:
        with contextlib.suppress(BlockingIOError):
            self._bell_out.recv(4096)
        # Cleared after the bytes are read and before the work is taken: whoever still saw it set
        # had left its work before, whoever sees it cleared rings again.
        self._rung = False

    def _run(self) -> None:
        try:
            while not self._stopping:
                for key, mask in self.selector.select(self._timeout()):
                    if isinstance(key.data, Channel):
                        if not key.data.closed:
                            key.data.ready(mask)
                    else:
                        handler: Any = key.data
                        handler(mask)
                while self._calls:
                    self._calls.popleft()()
                self.on_wake()
                self._fire_timers()
            while self._calls:
                self._calls.popleft()()
        finally:
            self._close_all()

    def _timeout(self) -> float | None:
        deadlines = [channel.deadline for channel in self.channels if channel.deadline is not None]
        deadlines += [when for when, _, _ in self._later[:1]]
        if self._calls:
            return 0.0
        return max(0.0, min(deadlines) - self.clock()) if deadlines else None

    def _fire_timers(self) -> None:
        now = self.clock()
        while self._later and self._later[0][0] <= now:
            heapq.heappop(self._later)[2]()
        for channel in list(self.channels):
            if channel.deadline is not None and channel.deadline <= now:
                channel.on_timer(now)
                channel.flush()

    def _close_all(self) -> None:
        for channel in list(self.channels):
            channel.close()
        for listener in self._listeners:
            listener.close()
        self.selector.close()
        self._bell_in.close()
        self._bell_out.close()
