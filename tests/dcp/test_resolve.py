"""Names that are resolved, are not, or take for ever."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Iterator

import pytest

from cbframe.cluster.connection_string import ZONES, Zone
from cbframe.dcp.transport import SocketTransport, Waker, resolve
from cbframe.errors import ConnectError, ReadCancelledError

NODE = "db.example.com:11210"


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
    found = resolve(host, 11210, waker, 20, NODE)
    assert {address[4][1] for address in found} == {11210}
    assert all(kind == socket.SOCK_STREAM for _, kind, *_ in found)


def test_a_name_that_there_is_not(monkeypatch: pytest.MonkeyPatch, waker: Waker) -> None:
    def getaddrinfo(*_arguments: object, **_fields: object) -> list[object]:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    with pytest.raises(ConnectError, match="cannot be resolved") as caught:
        resolve("db.example.com", 11210, waker, 20, NODE)
    assert caught.value.node == NODE
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


@pytest.mark.usefixtures("hanging")
def test_a_look_up_that_takes_too_long(waker: Waker) -> None:
    with pytest.raises(ConnectError, match=r"cannot be resolved: no answer within 0\.05 s") as caught:
        SocketTransport().connect(NODE, waker, 0.05)
    assert (caught.value.node, caught.value.permanent) == (NODE, False)


def test_a_look_up_that_nobody_waits_for_any_more(hanging: threading.Event, waker: Waker) -> None:
    canceller = threading.Thread(target=lambda: hanging.wait(20) and waker.wake())
    canceller.start()
    with pytest.raises(ReadCancelledError, match="while the name was resolved"):
        SocketTransport().connect(NODE, waker, 20)
    canceller.join()


@pytest.fixture
def zone() -> Iterator[Zone]:
    """Two names of Capella; one of them has an address."""
    made = Zone("x.cloud.couchbase.com", {}, {"n1.x.cloud.couchbase.com": "127.0.0.1"}, "")
    ZONES.append(made)
    yield made
    ZONES.remove(made)


@pytest.mark.usefixtures("zone")
def test_names_of_a_zone(waker: Waker) -> None:
    (found,) = resolve("N1.x.cloud.couchbase.com", 11207, waker, 20, NODE)
    assert found[4] == ("127.0.0.1", 11207)
    with pytest.raises(ConnectError, match="cannot be resolved: no such name") as caught:
        resolve("n2.x.cloud.couchbase.com", 11207, waker, 20, NODE)
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
