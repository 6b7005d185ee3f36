"""Sockets of this machine: what a wait waits for, and TLS that is decrypted by the bufferful."""

from __future__ import annotations

import contextlib
import datetime as dt
import re
import selectors
import socket
import ssl
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trustme
from servers import TlsServer

from cbframe import BucketDataSourceOptions, PasswordAuthenticator
from cbframe.cluster.connection_string import ZONES, Zone, parse_connection_string
from cbframe.cluster.tls import capella_root
from cbframe.dcp import transport
from cbframe.dcp.handshake import fetch_config, fetch_manifest
from cbframe.dcp.survey import survey_time
from cbframe.dcp.transport import (
    TURNS,
    Dialer,
    SocketStream,
    SocketTransport,
    Waker,
    at_once,
    resolve,
    run_cancellable,
)
from cbframe.errors import ConnectError, ReadCancelledError, ReadTimeoutError
from cbframe.testing import FakeClock, ScriptedTransport
from cbframe.wire.constants import Opcode
from cbframe.wire.framing import Frame, response

from .server import LOGIN, ask, good_answer

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


# --- calls that cannot be interrupted: waiting for them can


def ran(work: Callable[[], object], waker: Waker, timeout: float | None = None) -> object:
    return run_cancellable(work, "cbframe-rest", waker, timeout, "it was asked")


@contextlib.contextmanager
def woken(waker: Waker, when: threading.Event) -> Iterator[None]:
    """Another thread wakes who waits, once something has happened."""
    waking = threading.Thread(target=lambda: when.wait(20) and waker.wake())
    waking.start()
    yield
    waking.join()


def test_gives_the_result_and_raises_the_error(waker: Waker) -> None:
    assert ran(lambda: threading.current_thread().name, waker) == "cbframe-rest"

    def fail() -> None:
        raise ConnectError("no way", node="a:1")

    with pytest.raises(ConnectError, match="no way"):
        ran(fail, waker)
    assert ran(lambda: 2, waker) == 2


@pytest.mark.parametrize("cancelled", [True, False])
def test_the_waiting_ends_and_the_late_outcome_is_thrown_away(waker: Waker, cancelled: bool) -> None:
    began, go_on = threading.Event(), threading.Event()
    workers: list[threading.Thread] = []

    def work() -> int:
        workers.append(threading.current_thread())
        began.set()
        assert go_on.wait(10)
        return 1

    if cancelled:
        with woken(waker, began), pytest.raises(ReadCancelledError, match="cancelled while it was asked"):
            ran(work, waker)
    else:
        with pytest.raises(TimeoutError):
            ran(work, waker, 0.01)
        assert began.wait(10)
    assert workers[0].is_alive()
    go_on.set()
    workers[0].join(10)
    assert not workers[0].is_alive()


def test_a_cancelled_one_is_not_waited_for(waker: Waker) -> None:
    waker.wake()
    go_on = threading.Event()
    with pytest.raises(ReadCancelledError):
        ran(lambda: go_on.wait(10), waker)
    go_on.set()


# --- threads that wait for the network


def test_at_once() -> None:
    """None waits for another; an error of ours is a result, too."""
    everybody = threading.Barrier(9)

    def work(number: int, waker: Waker) -> int:
        assert waker.fileno() >= 0
        everybody.wait(20)
        if number == 5:
            raise ConnectError("gone")
        return number

    before = set(threading.enumerate())
    outcomes = at_once([partial(work, number) for number in range(9)])
    assert isinstance(outcomes.pop(5), ConnectError)
    assert outcomes == [0, 1, 2, 3, 4, 6, 7, 8]
    assert set(threading.enumerate()) == before
    assert at_once([]) == []


def test_at_once_is_over_at_once() -> None:
    """As with Ctrl-C: what others wait for is of no interest any more, and no thread is left."""
    rung = []

    def wait(waker: Waker) -> None:
        selector = selectors.DefaultSelector()
        with selector:
            selector.register(waker.fileno(), selectors.EVENT_READ)
            rung.append(bool(selector.select(20)))

    def fail(_: Waker) -> None:
        raise LookupError("unforeseen")

    before = set(threading.enumerate())
    with pytest.raises(LookupError):
        at_once([fail, wait, wait])
    assert rung == [True, True]
    assert set(threading.enumerate()) == before


# --- how connections are made

CAPELLA = "couchbases://cb.x1y2z3.cloud.couchbase.com"


def made(conn: str, when: str, monkeypatch: pytest.MonkeyPatch, tls: str | None = None) -> list[str]:
    """The warnings of two dialers that are made on a day."""
    monkeypatch.setattr(transport.time, "time", dt.datetime.fromisoformat(f"{when}T00:00Z").timestamp)
    monkeypatch.setattr(transport, "_warned", [])
    login = PasswordAuthenticator("u", "p")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            assert Dialer(BucketDataSourceOptions(), tls, login, parse_connection_string(conn)).context
    return [str(each.message) for each in caught]


def test_the_end_of_capellas_root_certificate(monkeypatch: pytest.MonkeyPatch) -> None:
    """A year ahead, once, and only where it is relied on."""
    assert made(CAPELLA, "2028-11-30", monkeypatch) == []
    ending = "update cbframe before 2029-12-06: the root certificate of Capella that is in it ends then"
    for day in ("2028-12-08", "2029-12-01", "2030-01-01"):
        assert made(CAPELLA, day, monkeypatch) == [ending]
    assert made("couchbases://db.example.com", "2029-12-01", monkeypatch) == []
    assert made(CAPELLA, "2029-12-01", monkeypatch, tls=capella_root()) == []


# --- names that are resolved, are not, or take for ever

NAMED = "db.example.com:11210"


@pytest.fixture
def hanging(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """A system whose look-ups do not end before the test does; set when one has begun."""
    begun, over = threading.Event(), threading.Event()

    def getaddrinfo(*_arguments: object, **_fields: object) -> list[object]:
        begun.set()
        over.wait(30)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    yield begun
    over.set()
    for thread in threading.enumerate():
        if thread.name == "cbframe-resolve":
            thread.join(20)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_addresses(waker: Waker, host: str) -> None:
    found = resolve(host, 11210, waker, 20, NAMED)
    assert {address[4][1] for address in found} == {11210}
    assert all(kind == socket.SOCK_STREAM for _, kind, *_ in found)


def test_a_name_that_there_is_not(monkeypatch: pytest.MonkeyPatch, waker: Waker) -> None:
    def getaddrinfo(*_arguments: object, **_fields: object) -> list[object]:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    with pytest.raises(ConnectError, match="cannot be resolved") as caught:
        resolve("db.example.com", 11210, waker, 20, NAMED)
    assert caught.value.node == NAMED
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


@pytest.mark.usefixtures("hanging")
def test_a_look_up_that_takes_too_long(waker: Waker) -> None:
    with pytest.raises(ConnectError, match=r"cannot be resolved: no answer within 0\.05 s") as caught:
        SocketTransport().connect(NAMED, waker, 0.05)
    assert (caught.value.node, caught.value.permanent) == (NAMED, False)


def test_a_look_up_that_nobody_waits_for_any_more(hanging: threading.Event, waker: Waker) -> None:
    with woken(waker, hanging), pytest.raises(ReadCancelledError, match="while the name was resolved"):
        SocketTransport().connect(NAMED, waker, 20)


@pytest.fixture
def zone() -> Iterator[Zone]:
    """Two names of Capella; one of them has an address."""
    made = Zone("x.cloud.couchbase.com", {}, {"n1.x.cloud.couchbase.com": "127.0.0.1"}, "")
    ZONES.append(made)
    yield made
    ZONES.remove(made)


@pytest.mark.usefixtures("zone")
def test_names_of_a_zone(waker: Waker) -> None:
    (found,) = resolve("N1.x.cloud.couchbase.com", 11207, waker, 20, NAMED)
    assert found[4] == ("127.0.0.1", 11207)
    with pytest.raises(ConnectError, match="cannot be resolved: no such name") as caught:
        resolve("n2.x.cloud.couchbase.com", 11207, waker, 20, NAMED)
    assert caught.value.unresolved == "no such name"


@pytest.mark.usefixtures("zone")
@pytest.mark.parametrize(
    ("silent", "what"), [(False, "cannot connect"), (True, r"no connection within 0\.1 s")]
)
def test_connections_that_capella_does_not_accept(waker: Waker, silent: bool, what: str) -> None:
    with socket.socket() as listener, socket.socket() as first, socket.socket() as second:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        if silent:  # its queue is full
            listener.listen(0)
            for filler in (first, second):
                filler.setblocking(False)
                filler.connect_ex(("127.0.0.1", port))
        for host, hint in (("n1.x.cloud.couchbase.com", "Allowed IP Addresses"), ("127.0.0.1", "not|that")):
            with pytest.raises(ConnectError, match=what) as caught:
                SocketTransport().connect(f"{host}:{port}", waker, 0.1)
            assert re.search(hint, str(caught.value.hint))
            assert ("Capella" in str(caught.value.hint)) == ("cloud" in host)


# --- conversations with nodes that are far away, or slow

TIMEOUT = 7.0


class Far:
    """A stream whose bytes come some at a time, each time after some seconds.

    Attributes
    ----------
    turns
        How often something was sent after something had come, and the first time.
    """

    def __init__(self, stream: Any, clock: FakeClock, seconds: float, step: int) -> None:
        self._stream, self._clock = stream, clock
        self._seconds, self._step = seconds, step
        self._sent, self._received = stream.send_all, stream.receive_into
        self._left = 0
        self._heard = True
        self.turns = 0
        stream.send_all, stream.receive_into, stream.wait = self.send_all, self.receive_into, self.wait

    def send_all(self, data: bytes, timeout: float) -> None:
        self.turns += self._heard
        self._heard = False
        self._sent(data, timeout)

    def wait(self, timeout: float | None, least: int = 1) -> bool:
        assert timeout is not None
        if not self._stream._incoming or timeout < self._seconds:
            self._clock.advance(timeout)
            return False
        self._clock.advance(self._seconds)
        self._left = self._step
        return True

    def receive_into(self, view: memoryview) -> int | None:
        self._heard = True
        count: int | None = self._received(view[: self._left])
        return count


def talk(steps: Any, waker: Waker, *, seconds: float, step: int, peer: Callable[[Frame], bytes]) -> Any:
    """The result, the seconds that it took, and the stream."""
    clock = FakeClock()
    transport = ScriptedTransport({NAMED: peer}, clock)
    streams: list[Far] = []
    transport.on_connect = lambda stream: streams.append(Far(stream, clock, seconds, step))
    began = clock()
    try:
        found = ask(NAMED, steps, transport=transport, waker=waker, clock=clock, timeout=TIMEOUT)
    except ReadTimeoutError as exc:
        found = exc
    return found, clock() - began, streams[0]


def peer(frame: Frame) -> bytes:
    return good_answer(frame).encode()


@pytest.mark.parametrize("steps", [fetch_config, fetch_manifest])
def test_each_turn_has_its_time(steps: Callable[..., Any], waker: Waker) -> None:
    """Regression: all turns together had it, and at a great distance that was too little."""
    found, took, stream = talk(steps(LOGIN), waker, seconds=6, step=1 << 16, peer=peer)
    assert not isinstance(found, Exception), found
    # A node of today takes the first mechanism, and the bucket with its last step: as here.
    assert stream.turns == 2
    assert took == 12 > TIMEOUT


def test_a_byte_now_and_then_is_no_progress(waker: Waker) -> None:
    found, took, _ = talk(fetch_config(LOGIN), waker, seconds=2, step=1, peer=peer)
    assert isinstance(found, ReadTimeoutError)
    assert "no answer within 7 s" in found.message
    assert took == TIMEOUT


def test_an_answer_now_and_then_is_not_progress_for_ever(waker: Waker) -> None:
    """One request with answers without end, each of them in time."""

    def endless(frame: Frame) -> bytes:
        if frame.opcode != Opcode.STAT:
            return peer(frame)
        return response(Opcode.STAT, opaque=frame.opaque, key=b"pid", value=b"1").encode() * 1000

    found, took, _ = talk(survey_time(LOGIN), waker, seconds=5, step=50, peer=endless)
    assert isinstance(found, ReadTimeoutError)
    assert "not all answers came within 84 s" in found.message
    assert took == TURNS * TIMEOUT
