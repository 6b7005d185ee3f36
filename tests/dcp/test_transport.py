"""Sockets of this machine: what a wait waits for, and TLS that is decrypted by the bufferful."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
import trustme
from servers import TlsServer

from cbframe.dcp.transport import SocketStream, SocketTransport, Waker
from cbframe.errors import ConnectError

NODE = "127.0.0.1:11207"
LONG = 60.0
"""Seconds that no wait here takes."""


def connected(stack: ExitStack) -> tuple[socket.socket, socket.socket]:
    """Two ends of a TCP connection, of which the first does not block."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = stack.enter_context(socket.create_connection(listener.getsockname()))
        theirs = stack.enter_context(listener.accept()[0])
    ours.setblocking(False)
    return ours, theirs


@pytest.fixture
def ends(waker: Waker) -> Iterator[tuple[SocketStream, socket.socket]]:
    with ExitStack() as stack:
        ours, theirs = connected(stack)
        yield stack.enter_context(closing(SocketStream(ours, NODE, waker))), theirs


# --- waiting for many bytes


def test_a_wait_is_over_when_enough_is_there(ends: tuple[SocketStream, socket.socket]) -> None:
    stream, theirs = ends
    theirs.sendall(bytes(999))
    assert stream.wait(LONG)
    assert not stream.wait(0.02, 1000)
    theirs.sendall(bytes(1))
    assert stream.wait(LONG, 1000)
    assert stream.receive_into(memoryview(bytearray(4000))) == 1000
    theirs.sendall(bytes(1))
    assert not stream.wait(0.02, 1000)
    assert stream.receive_into(memoryview(bytearray(4000))) == 1  # what is there is had all the same
    theirs.sendall(bytes(1))
    assert stream.wait(LONG)


def test_more_than_the_system_can_hold_is_not_waited_for(ends: tuple[SocketStream, socket.socket]) -> None:
    stream, theirs = ends
    theirs.settimeout(LONG)
    sender = threading.Thread(target=theirs.sendall, args=(bytes(64 * 1024 * 1024),))
    sender.start()
    taken, view = 0, memoryview(bytearray(64 * 1024 * 1024))
    while taken < len(view):
        assert stream.wait(LONG, 10**9 if taken < len(view) // 2 else 1)
        taken += stream.receive_into(view[taken:]) or 0
    sender.join()


@pytest.mark.parametrize("how", ["end", "waker"])
def test_an_end_and_the_waker_are_not_waited_out(
    ends: tuple[SocketStream, socket.socket], waker: Waker, how: str
) -> None:
    stream, theirs = ends
    theirs.sendall(b"abc")
    assert stream.wait(LONG)
    waking = threading.Thread(target=theirs.close if how == "end" else waker.wake)
    waking.start()
    assert stream.wait(LONG, 1000) == (how == "end")
    waking.join()
    assert stream.receive_into(memoryview(bytearray(10))) == 3


def test_a_system_without_a_mark_waits_a_moment(
    ends: tuple[SocketStream, socket.socket], waker: Waker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: socket.socket, level: int, option: int, value: int) -> None:
        if option == socket.SO_RCVLOWAT:
            raise OSError(10042, "WSAENOPROTOOPT")
        setsockopt(self, level, option, value)

    setsockopt = socket.socket.setsockopt
    monkeypatch.setattr(socket.socket, "setsockopt", refuse)
    stream, theirs = ends
    theirs.sendall(b"abc")
    assert stream.wait(LONG)
    assert stream.wait(LONG, 1000)
    assert stream.receive_into(memoryview(bytearray(10))) == 3
    assert stream.wait(LONG, 1000)  # there may be something, as far as it knows
    assert stream.receive_into(memoryview(bytearray(10))) is None
    waker.wake()
    assert not stream.wait(LONG, 1000)
    assert not stream.wait(0.02)


# --- TLS


CA = trustme.CA()


def node(
    folder: Path,
    talk: Callable[[ssl.SSLSocket], object] = lambda secured: secured.recv(1),
    version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3,
) -> TlsServer:
    """Accepts TLS connections, and has a function talk over them."""
    CA.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(folder / "node.pem")
    server = TlsServer(folder / "node.pem", talk)
    server.context.maximum_version = version
    return server


VERSIONS = pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])


@contextlib.contextmanager
def talking(
    folder: Path,
    talk: Callable[[ssl.SSLSocket], object],
    waker: Waker,
    version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3,
) -> Iterator[SocketStream]:
    context = ssl.create_default_context()
    CA.configure_trust(context)
    with node(folder, talk, version) as server:
        stream = SocketTransport(context).connect(server.address, waker, LONG)
        assert isinstance(stream, SocketStream)
        with closing(stream):
            yield stream


def drain(stream: SocketStream, view: memoryview) -> tuple[bytes, int]:
    """Everything until the end, and how many receives it took."""
    found, receives = b"", 0
    while True:
        assert stream.wait(LONG)
        count = stream.receive_into(view)
        if count == 0:
            return found, receives
        receives += count is not None
        found += view[: count or 0]


@VERSIONS
def test_many_records_are_one_receive(tmp_path: Path, waker: Waker, version: ssl.TLSVersion) -> None:
    """A node sends a record for each document."""
    sent = threading.Event()

    def talk(secured: ssl.SSLSocket) -> None:
        for number in range(100):
            secured.sendall(b"%03d" % number * 100)
        sent.set()
        secured.recv(1)

    with talking(tmp_path, talk, waker, version) as stream:
        assert sent.wait(LONG)
        assert stream.wait(LONG, 30_000)
        view = memoryview(bytearray(40_000))
        assert stream.receive_into(view) == 30_000
        assert bytes(view[:30_000]) == b"".join(b"%03d" % number * 100 for number in range(100))
        assert stream.receive_into(view) is None


@pytest.mark.parametrize("room", [1, 299, 300, 17_000])
def test_what_did_not_fit_is_there_without_the_network(tmp_path: Path, waker: Waker, room: int) -> None:
    whole = bytes(range(256)) * (4 if room == 1 else 200)

    def talk(secured: ssl.SSLSocket) -> None:
        for start in range(0, len(whole), 300):
            secured.sendall(whole[start : start + 300])
        secured.unwrap()

    with talking(tmp_path, talk, waker) as stream:
        assert drain(stream, memoryview(bytearray(room)))[0] == whole


@pytest.mark.parametrize("announced", [True, False])
def test_an_end_is_one_whether_or_not_it_was_announced(tmp_path: Path, waker: Waker, announced: bool) -> None:
    def talk(secured: ssl.SSLSocket) -> None:
        secured.sendall(b"all of it")
        if announced:
            with contextlib.suppress(OSError):  # the client closes without an answer
                secured.unwrap()

    with talking(tmp_path, talk, waker) as stream:
        assert drain(stream, memoryview(bytearray(100))) == (b"all of it", 1)
        assert stream.receive_into(memoryview(bytearray(100))) == 0


def test_a_damaged_record_ends_the_connection(tmp_path: Path, waker: Waker) -> None:
    def talk(secured: ssl.SSLSocket) -> None:
        secured.sendall(b"good")
        socket.socket.sendall(secured, b"\x17\x03\x03\x00\x20" + bytes(32))
        secured.recv(1)

    with talking(tmp_path, talk, waker, ssl.TLSVersion.TLSv1_2) as stream:
        view = memoryview(bytearray(100))
        assert stream.wait(LONG, 70)
        assert stream.receive_into(view) == 4
        assert stream.wait(LONG)
        with pytest.raises(ConnectError, match="TLS failed"):
            stream.receive_into(view)


@VERSIONS
def test_more_than_a_record_is_sent(tmp_path: Path, waker: Waker, version: ssl.TLSVersion) -> None:
    whole = bytes(range(256)) * 20_000
    got = bytearray()

    def talk(secured: ssl.SSLSocket) -> None:
        while len(got) < len(whole):
            got.extend(secured.recv(65536))

    with talking(tmp_path, talk, waker, version) as stream:
        stream.send_all(whole[:2_000_000], LONG)
        stream.send_all(whole[2_000_000:], LONG)
        assert drain(stream, memoryview(bytearray(100)))[0] == b""
    assert got == whole


def test_a_node_hears_why_its_certificate_is_refused(tmp_path: Path, waker: Waker) -> None:
    with node(tmp_path) as server, pytest.raises(ConnectError, match="certificate is not accepted"):
        SocketTransport(ssl.create_default_context()).connect(server.address, waker, LONG)
    assert "ALERT" in str(server.error)
