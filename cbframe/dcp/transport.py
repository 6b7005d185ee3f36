"""Sockets: connecting, waiting, and being woken up. The only module that connects one.

:class:`Stream` and :class:`Transport` are the seam for tests: a scripted transport stands in for the network.
:class:`Line` is a connection for questions: the cluster map, the collections manifest, where vbuckets are.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import ssl
import time
import warnings
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import partial
from typing import Any, Protocol, TypeAlias, TypeVar

from cbframe.cluster.auth import Authenticator
from cbframe.cluster.connection_string import NO_NAME, ConnectionString, is_capella, zone_of
from cbframe.cluster.connection_string import split_address as address_parts
from cbframe.cluster.tls import (
    Peer,
    TLSContext,
    TLSLike,
    capella_root_ending,
    client_context,
    peer_of,
    tls_error,
)
from cbframe.dcp.handshake import Steps
from cbframe.errors import (
    CbframeError,
    ConfigurationError,
    ConnectError,
    ProtocolError,
    ReadCancelledError,
    ReadTimeoutError,
)
from cbframe.options import BucketDataSourceOptions
from cbframe.system import (
    CONNECTING,
    EVENT_READ,
    EVENT_WRITE,
    Call,
    OwnThread,
    Selector,
    allocate,
    error_text,
    ready,
    reported,
    shortage,
    waited,
)
from cbframe.wire.constants import MAX_BODY_LENGTH, Opcode, Status
from cbframe.wire.framing import Frame

T = TypeVar("T")
Address: TypeAlias = tuple[int, int, int, str, tuple[Any, ...]]
"""Family, kind, protocol, canonical name, and what ``connect`` takes."""
_CIPHERTEXT = 256 * 1024
"""Bytes that are received of a TLS connection at once: they stay in the cache until they are decrypted."""
_PAUSE = 0.001
"""Seconds for which bytes are collected where the system has no low-water mark."""
_warned: list[str] = []
"""What this process was warned of."""


class Bell(Protocol):
    """What can be waited for beside an answer; readable when it rings."""

    def fileno(self) -> int: ...


def run_cancellable(work: Callable[[], T], name: str, bell: Bell, timeout: float | None, during: str) -> T:
    """What `work` returns or raises, done on a thread of that name.

    For calls of the system and of libraries that cannot be interrupted. If the bell rings, or the time is
    over (TimeoutError), the thread is left alone: its outcome is thrown away, whenever it comes.
    """
    call = Call(work)
    with reported(), contextlib.ExitStack() as undo:
        done, finished = socket.socketpair()
        undo.callback(done.close)
        undo.callback(finished.close)
        thread = OwnThread(_settle, name, (call, finished))
        thread.start()
        undo.pop_all()
    with contextlib.closing(done):
        found = ready(timeout, (done, EVENT_READ), (bell, EVENT_READ))
        if done not in found:
            if bell in found:
                raise ReadCancelledError(f"cancelled while {during}")
            raise TimeoutError
    thread.join()
    try:
        return call.outcome()
    finally:
        del call  # an error holds on to this frame


def _settle(call: Call[T], finished: socket.socket) -> None:
    with finished:
        call()


def resolve(host: str, port: int, bell: Bell, timeout: float, node: str) -> Sequence[Address]:
    """The addresses of a host; the system's look-up knows no timeout and cannot be interrupted."""
    look_up = partial(_look_up, host, port, node)
    if _is_address(host):
        return look_up()
    try:
        return run_cancellable(look_up, "cbframe-resolve", bell, max(0.0, timeout), "the name was resolved")
    except TimeoutError:
        raise _unresolved(host, node, f"no answer within {timeout:g} s") from None
    except CbframeError as exc:
        exc.node = exc.node or node
        raise


def _look_up(host: str, port: int, node: str) -> Sequence[Address]:
    if (zone := zone_of(host)) is not None:
        if host.lower() not in zone.hosts:
            raise _unresolved(host, node, NO_NAME)
        host = zone.hosts[host.lower()]
    try:
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError, MemoryError) as exc:
        with reported(node):
            # The look-up opens files and sockets, and says only that it failed where it may not.
            socket.socket().close()
        again = isinstance(exc, socket.gaierror) and exc.errno == socket.EAI_AGAIN
        said = "no name server answers" if again else NO_NAME
        raise shortage(exc, node) or _unresolved(host, node, said) from None


def _unresolved(host: str, node: str, said: str) -> ConnectError:
    hint = "check the host name, and DNS; a name with SRV records only is given alone, without a port"
    if is_capella(host):
        hint = "give the connection string of the cluster's Connect page in Capella: one name, without a port"
    error = ConnectError(f"the name {host!r} cannot be resolved: {said}", node=node, hint=hint)
    error.unresolved = said
    return error


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True


class Waker:
    """Ends another thread's wait: one byte through a socket pair."""

    def __init__(self) -> None:
        with reported():
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

    def wait(self, timeout: float | None, least: int = 1) -> bool:
        """Wait until there is something to read or the waker rings; whether there is to read."""

    def close(self) -> None: ...


class Transport(Protocol):
    """Makes streams."""

    def connect(self, node: str, waker: Waker, timeout: float) -> Stream:
        """Connect to ``host:port``."""


class SocketTransport:
    """TCP, with TLS if there is a context."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls

    def connect(self, node: str, waker: Waker, timeout: float) -> Stream:
        host, port = split_address(node)
        addresses = resolve(host, port, waker, timeout, node)
        failure: ConnectError | None = None
        for family, kind, proto, _, address in addresses:
            with reported(node), contextlib.ExitStack() as undo:
                sock = undo.enter_context(socket.socket(family, kind, proto))
                try:
                    _connect(sock, address, node, waker, timeout)
                    secured = None
                    if self._tls is not None:
                        secured = _secure(self._tls, sock, host, node, waker, timeout)
                except ConnectError as exc:
                    failure = exc
                else:
                    stream = SocketStream(sock, node, waker, secured)
                    undo.pop_all()
                    return stream
        raise failure or ConnectError(f"the name {host!r} has no address", node=node)


class HookedTransport:
    """Sockets that someone else has connected."""

    def __init__(self, connect: Callable[[str], socket.socket]) -> None:
        self._connect = connect

    def connect(self, node: str, waker: Waker, timeout: float) -> Stream:  # noqa: ARG002
        try:
            sock = self._connect(node)
        except OSError as exc:
            raise shortage(exc, node) or ConnectError(
                f"cannot connect: {exc.strerror or exc}", node=node
            ) from exc
        sock.setblocking(False)
        return SocketStream(sock, node, waker)


class Encryption:
    """TLS over a non-blocking socket. What is there is received at once, and decrypted in a loop.

    An ``ssl.SSLSocket`` makes two system calls for each record, and a node sends a record for each document.
    """

    def __init__(self, tls: ssl.SSLContext, sock: socket.socket, host: str) -> None:
        self._sock = sock
        self._arrived, self._leaving = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.session = tls.wrap_bio(self._arrived, self._leaving, server_hostname=host)
        self._read: Any = self.session.read  # what it returns depends on its arguments
        self._buffer = memoryview(allocate(_CIPHERTEXT))
        self._unsent = b""
        self._failure: OSError | None = None
        self.pending = False
        """Whether more may be decrypted before anything is received."""

    def shake_hands(self) -> None:
        """Go on with the handshake."""
        while True:
            try:
                self.session.do_handshake()
            except ssl.SSLWantReadError:
                self._flush()
                self._fill()
            except ssl.SSLError:
                with contextlib.suppress(OSError):
                    self._flush()  # the alert that says why
                raise
            else:
                self._flush()
                self.pending = self._arrived.pending > 0
                return

    def receive_into(self, view: memoryview) -> int:
        """As ``recv_into`` of a non-blocking socket: 0 at the end, also at one that was not announced."""
        if self._failure is not None:
            raise self._failure
        self.pending = False
        count, more = 0, True
        try:
            while count < len(view):
                try:
                    length = self._read(len(view) - count, view[count:])
                except ssl.SSLWantReadError:
                    with contextlib.suppress(OSError):
                        self._flush()  # TLS may have had something to answer; what is left goes with the next
                    if count and not more:
                        return count
                    more = self._fill()
                else:
                    count += length
                    if not length:
                        break
        except ssl.SSLEOFError:
            pass
        except (ssl.SSLWantReadError, OSError) as exc:
            if not count:
                raise
            if isinstance(exc, ssl.SSLWantReadError):
                return count
            self._failure = exc  # after whole records; OpenSSL itself would not repeat it
        # What is left, also an end or a failure, is had without the network.
        self.pending = True
        return count

    def encrypted(self, data: bytes, timeout: float) -> bytes:
        """What is to be sent for some bytes; TimeoutError if TLS waited in vain for the peer."""
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[self.session.write(rest) :]
            except ssl.SSLWantReadError:
                self._flush()
                if not ready(timeout, (self._sock, EVENT_READ)):
                    raise TimeoutError(f"TLS got no answer for {timeout:g} s") from None
                with contextlib.suppress(ssl.SSLWantReadError):
                    self._fill()
        unsent, self._unsent = self._unsent + self._leaving.read(), b""
        return unsent

    def _fill(self) -> bool:
        """Receive what is there; whether there may be more. SSLWantReadError if nothing is."""
        try:
            length = self._sock.recv_into(self._buffer)
        except BlockingIOError:
            raise ssl.SSLWantReadError from None
        if length:
            self._arrived.write(self._buffer[:length])
        else:
            self._arrived.write_eof()
        return length == len(self._buffer)

    def _flush(self) -> None:
        """Send what TLS itself has to say."""
        self._unsent += self._leaving.read()
        while self._unsent:
            try:
                self._unsent = self._unsent[self._sock.send(self._unsent) :]
            except BlockingIOError:
                raise ssl.SSLWantWriteError from None


class SocketStream:
    """A non-blocking socket and the waker of the thread that reads it."""

    def __init__(
        self, sock: socket.socket, node: str, waker: Waker, secured: Encryption | None = None
    ) -> None:
        self._sock = sock
        self._secured = secured
        self._node = node
        self._waker = waker
        # Made once: a wait costs what it costs the system.
        self._selector = Selector()
        self._selector.register(sock, EVENT_READ)
        self._selector.register(waker, EVENT_READ)
        self._least = 1
        self._has_mark = True
        """Whether the system wakes up at a low-water mark."""

    def receive_into(self, view: memoryview) -> int | None:
        count = 0
        try:
            if self._secured is not None:
                return self._secured.receive_into(view)
            count = self._sock.recv_into(view)
            if isinstance(self._sock, ssl.SSLSocket):
                # One call gives one record of at most 16 KiB, which is little for a block.
                while 0 < count < len(view) and (more := self._sock.recv_into(view[count:])):
                    count += more
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return count or None
        except OSError as exc:
            # After whole records, the error comes again with the next call.
            if not count:
                raise self._broken(exc) from None
        return count

    def send_all(self, data: bytes, timeout: float) -> None:
        rest = memoryview(data)
        secured = self._secured
        while rest:
            try:
                if secured is not None:
                    rest, secured = memoryview(secured.encrypted(data, timeout)), None
                rest = rest[self._sock.send(rest) :]
            except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError) as exc:
                # TLS may have to read before it can write.
                event = EVENT_READ if isinstance(exc, ssl.SSLWantReadError) else EVENT_WRITE
                if not ready(timeout, (self._sock, event)):
                    raise ReadTimeoutError(
                        f"the node took no bytes for {timeout:g} s", node=self._node
                    ) from None
            except OSError as exc:
                raise self._broken(exc) from None

    def wait(self, timeout: float | None, least: int = 1) -> bool:
        if isinstance(self._sock, ssl.SSLSocket) and self._sock.pending():
            return True
        if self._secured is not None and self._secured.pending:
            return True
        if self._has_mark and least != self._least:
            self._set_mark(least)
        if not self._has_mark and least > 1:
            # How much is there cannot be known: what comes within a moment is taken together.
            pause = _PAUSE if timeout is None else min(timeout, _PAUSE)
            if not ready(pause, (self._waker, EVENT_READ)):
                return True
            self._waker.drain()
            return False
        woken = [key.fileobj for key, _ in waited(self._selector.select, timeout)]
        if self._waker in woken:
            self._waker.drain()
        return self._sock in woken

    def _set_mark(self, least: int) -> None:
        try:
            # Linux keeps it within half of the largest receive buffer, and makes room for it; macOS keeps it
            # within the buffer.
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, least)
        except OSError:
            self._has_mark = False  # Windows
            with contextlib.suppress(OSError):
                # What comes during a pause has to find room.
                self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2 * least)
        else:
            self._least = least

    def tls_peer(self) -> Peer:
        """What the node has shown in the TLS handshake; nothing in plain text."""
        return Peer() if self._secured is None else peer_of(self._secured.session)

    def _broken(self, cause: OSError) -> CbframeError:
        hears: Any = self._sock.recv_into if isinstance(self._sock, ssl.SSLSocket) else None
        if self._secured is not None:
            hears = self._secured.receive_into
        if hears is not None and not isinstance(cause, ssl.SSLError):
            # A node that refuses our certificate says so, and hangs up while we are sending.
            try:
                hears(memoryview(bytearray(1)))
            except ssl.SSLError as said:
                cause = said
            except OSError:
                pass  # it said nothing more
        failure = shortage(cause, self._node) or tls_error(cause, self._node)
        if failure is None:
            failure = ConnectError(f"the connection broke: {cause.strerror or cause}", node=self._node)
        return failure

    def close(self) -> None:
        self._selector.close()
        self._sock.close()


def tls_peer(tls: ssl.SSLContext, node: str, waker: Waker, timeout: float) -> Peer:
    """Make a TLS connection and close it: what the node has shown."""
    stream = SocketTransport(tls).connect(node, waker, timeout)
    try:
        return stream.tls_peer() if isinstance(stream, SocketStream) else Peer()
    finally:
        stream.close()


def split_address(node: str) -> tuple[str, int]:
    """Host and port of ``host:port`` or ``[v6]:port``."""
    address = address_parts(node)
    if address is None:
        raise ConfigurationError(f"{node!r} is no host:port")
    return address


def _secure(
    tls: ssl.SSLContext, sock: socket.socket, host: str, node: str, waker: Waker, timeout: float
) -> Encryption:
    """TLS over a connected socket, after the handshake."""
    deadline = time.monotonic() + timeout
    try:
        secured = Encryption(tls, sock, host)
        while True:
            try:
                secured.shake_hands()
            except ssl.SSLWantReadError:
                _await(sock, EVENT_READ, node, waker, deadline, timeout)
            except ssl.SSLWantWriteError:
                _await(sock, EVENT_WRITE, node, waker, deadline, timeout)
            else:
                return secured
    except (OSError, ValueError) as exc:  # ValueError: a host name that no certificate can have
        raise tls_error(exc, node) or ConnectError(
            f"the TLS handshake failed: {exc}", node=node, hint="check that this is the TLS port (11207)"
        ) from None


def _await(sock: socket.socket, event: int, node: str, waker: Waker, deadline: float, timeout: float) -> None:
    if not _ready_or_woken(sock, event, waker, deadline - time.monotonic(), node, "during the TLS handshake"):
        raise ConnectError(
            f"no TLS handshake within {timeout:g} s",
            node=node,
            hint="the port is open but silent: is it the TLS port (11207)?",
        )


def _connect(
    sock: socket.socket, address: tuple[object, ...], node: str, waker: Waker, timeout: float
) -> None:
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    code = sock.connect_ex(address)
    if code in CONNECTING:
        if not _ready_or_woken(sock, EVENT_WRITE, waker, timeout, node, "while connecting"):
            raise ConnectError(
                f"no connection within {timeout:g} s",
                node=node,
                hint=_unreached(
                    node, "a firewall may drop the packets, or the address is not reachable from here"
                ),
            )
        code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if code:
        raise ConnectError(
            f"cannot connect: {error_text(code)}",
            node=node,
            hint=_unreached(node, "check that the node runs and that the port is right"),
        )


def _unreached(node: str, hint: str) -> str:
    """What to do about a node that does not accept a connection."""
    if not is_capella(split_address(node)[0]):
        return hint
    return (
        "Capella accepts connections from allowed IP addresses only: add this machine's in Capella, "
        "in the cluster's Settings under Networking, Allowed IP Addresses; a private endpoint is reached "
        "from its own network only"
    )


def _ready_or_woken(
    sock: socket.socket, event: int, waker: Waker, timeout: float, node: str, when: str
) -> bool:
    """Whether the socket is ready in time; ReadCancelledError if the waker rings before."""
    found = ready(max(0.0, timeout), (sock, event), (waker, EVENT_READ))
    if waker in found:
        raise ReadCancelledError(f"cancelled {when}", node=node)
    return bool(found)


class Dialer:
    """Makes transports."""

    def __init__(
        self,
        options: BucketDataSourceOptions,
        tls: TLSLike,  # in place of `tls_config`
        authenticator: Authenticator,  # may have a certificate
        target: ConnectionString,  # where the cluster is, and whether TLS is asked for
        *,
        by_hand: Transport | None = None,  # A transport to be used in place of all this
    ) -> None:
        if tls is not None and options.tls_config is not None:
            raise ConfigurationError("tls_context and the option tls_config are the same: give one")
        self._options = options
        self._tls = tls
        self._authenticator = authenticator
        self._target = target
        self.by_hand = by_hand
        self.context: TLSContext | None = None
        """That of the connections made from now on; None for plain text."""
        self.renew()

    def renew(self) -> None:
        """Take what ``tls_config`` gives now."""
        config = self._options.tls_config
        chosen = config() if callable(config) else config
        tls = self._tls if chosen is None else chosen
        ending = capella_root_ending(tls, self._target, time.time())
        if ending is not None and not _warned:
            _warned.append(ending)
            warnings.warn(ending, UserWarning, stacklevel=4)
        self.context = client_context(tls, self._authenticator, self._target)

    def transport(self) -> Transport:
        """To data nodes."""
        if self.by_hand is not None:
            return self.by_hand
        context, connect, connect_tls = self.context, self._options.connect, self._options.connect_tls
        if context is not None and connect_tls is not None:
            return HookedTransport(lambda node: connect_tls("tcp", node, context))
        if context is None and connect is not None:
            return HookedTransport(lambda node: connect("tcp", node))
        return SocketTransport(context)


# --- questions over a connection


_PORTS = "is this port the data service (couchbase:// is 11210, couchbases:// is 11207)?"
_WINDOW = 512
"""Requests under way at most: they are small, and fit in the buffers of a socket, so that sending them does
not wait for a node that waits for us to read."""
_MOST_ANSWERS = 1 << 20
"""To one request: a node has no more to report of 1024 vbuckets and their replicas."""
TURNS = 12
"""A conversation may take this many times the time-out of a turn. No healthy one has more turns that each
take all of their time; a node that answers a little at a time must not delay a caller without end."""
_RECEIVE = 256 * 1024


class Line:
    """A connection to a node, for one conversation after the other."""

    def __init__(
        self, node: str, *, transport: Transport, waker: Waker, clock: Callable[[], float], timeout: float
    ) -> None:
        self._node = node
        self._clock = clock
        self._timeout = timeout
        self._began = self._progressed = clock()
        self._buffer = bytearray()
        self._view = memoryview(allocate(_RECEIVE))
        self._opaque = 0
        self._unsent: deque[Frame] = deque()
        self._waiting: deque[tuple[int, int]] = deque()
        self._lines = 0
        """Of the answer that is coming, where it has several."""
        self._answered = False
        # Last: what else may fail would leave it open.
        self._stream = transport.connect(node, waker, timeout)

    def run(self, steps: Steps[T]) -> T:
        """The result of a conversation; after an error, the connection is of no more use."""
        self._began = self._progressed = self._clock()
        try:
            frames = next(steps)
            while True:
                frames = steps.send(self._exchange(frames))
        except StopIteration as done:
            result: T = done.value
            return result
        except CbframeError as exc:
            _complete(exc, self._node)
            raise
        finally:
            steps.close()

    def close(self) -> None:
        """Hang up."""
        self._stream.close()

    def _exchange(self, frames: Sequence[Frame]) -> Frame:
        """Send requests, and give the next answer."""
        self._unsent += frames
        # Not one by one: each time a packet would go out.
        if len(self._waiting) <= _WINDOW // 2:
            self._send(_WINDOW - len(self._waiting))
        assert self._waiting, "whoever waits has asked"
        answer = self._answer()
        opcode = answer.opcode
        if (answer.opaque, opcode) != self._waiting[0]:
            raise ProtocolError("an answer to nothing that was asked", opcode=opcode)
        if opcode == Opcode.STAT and answer.key and answer.status == Status.SUCCESS:
            self._lines += 1
            if self._lines >= _MOST_ANSWERS:
                raise ProtocolError(f"over {self._lines:,} answers to one question", opcode=opcode)
        else:
            self._lines = 0
            self._waiting.popleft()
        return answer

    def _send(self, count: int) -> None:
        data = bytearray()
        while self._unsent and count:
            frame = self._unsent.popleft()
            count -= 1
            self._opaque += 1
            self._waiting.append((self._opaque, frame.opcode))
            data += replace(frame, opaque=self._opaque).encode()
        if data:
            self._stream.send_all(bytes(data), self._timeout)

    def _answer(self) -> Frame:
        """The next answer; what the node says by itself is passed over."""
        while True:
            parsed = Frame.parse(self._buffer, max_body=MAX_BODY_LENGTH)
            if parsed is None:
                self._receive()
                continue
            frame, end = parsed
            del self._buffer[:end]
            if frame.is_response:
                self._answered, self._progressed = True, self._clock()
                return frame

    def _receive(self) -> None:
        last = self._began + TURNS * self._timeout
        deadline = min(self._progressed + self._timeout, last)
        left = deadline - self._clock()
        if left <= 0:
            raise ReadTimeoutError(
                f"no answer within {self._timeout:g} s"
                if deadline < last
                else f"not all answers came within {TURNS * self._timeout:g} s",
                hint="it answered before, and may be too busy now: try again, or give connect_timeout more"
                if self._answered
                else "the port is open but silent: is it the data service?",
            )
        if not self._stream.wait(left):
            if self._clock() < deadline:
                # Nothing to read, and time is left: the waker rang.
                raise ReadCancelledError("cancelled while waiting for an answer")
            return
        count = self._stream.receive_into(self._view)
        if count == 0:
            raise ConnectError("the node closed the connection during the handshake", hint=_PORTS)
        if count:
            self._buffer += self._view[:count]


def _complete(error: CbframeError, node: str) -> None:
    """Say of an error where it was, and whether another attempt may do better."""
    error.node = error.node or node
    if type(error) in (ConnectError, ProtocolError):
        # A TLS port resets the connection of a client that speaks in plain text.
        error.hint = error.hint or _PORTS
    if isinstance(error, ProtocolError):
        error.permanent = True  # what speaks another protocol now will not speak ours next time
    if isinstance(error, ReadTimeoutError):
        error.permanent = False


def at_once(works: Sequence[Callable[[Waker], T]]) -> list[T | CbframeError]:
    """Run functions that wait for the network, all at the same time; their results or errors, in order."""
    outcomes: list[T | CbframeError] = []
    with ExitStack() as stack:
        wakers = [stack.enter_context(closing(Waker())) for _ in works]
        try:
            calls = [Call(partial(work, waker)) for work, waker in zip(works, wakers, strict=True)]
            for call in calls:
                thread = OwnThread(call, "cbframe-ask")
                stack.callback(thread.join)
                thread.start()
            for call in calls:
                try:
                    outcomes.append(call.outcome())
                except CbframeError as exc:
                    outcomes.append(exc)
        except BaseException:  # Ctrl-C, too: nobody is waited for any more, and it is raised again
            for waker in wakers:
                waker.wake()
            raise
    return outcomes
