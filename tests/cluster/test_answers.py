"""The bytes of the cluster manager's stream of configurations."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbframe.cluster.answers import ConfigFeed, feed_request
from cbframe.cluster.auth import CertificateAuthenticator, PasswordAuthenticator
from cbframe.errors import (
    AccessError,
    AuthFailError,
    BucketNotFoundError,
    CbframeError,
    ConnectError,
    ProtocolError,
)

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: Chunked\r\n\r\n"
END = b"\n\n\n\n"


def chunk(data: bytes, note: bytes = b"") -> bytes:
    return b"%x%s\r\n%s\r\n" % (len(data), note, data)


SAID = (
    HEAD
    + chunk(b'{"rev":1}' + END)
    + chunk(END)  # nothing new
    + chunk(b'{"rev"', b";note=1")
    + chunk(b":2}\n\n")
    + chunk(b'\n\n{"rev":3}' + END + b'{"rev":4}' + END)
)
CONFIGS = [b'{"rev":%d}' % n for n in (1, 2, 3, 4)]


def test_the_request() -> None:
    made = feed_request("h:8091", "my bucket/1", PasswordAuthenticator("ann", "p:w"), 20)
    assert made == (
        b"GET /pools/default/bs/my%20bucket%2F1?heartbeat=20 HTTP/1.1\r\nHost: h:8091\r\n"
        b"Accept: application/json\r\nAuthorization: Basic YW5uOnA6dw==\r\n\r\n"
    )


def test_who_has_a_certificate_sends_no_password() -> None:
    assert b"Authorization" not in feed_request("h", "b", CertificateAuthenticator("c.pem", "k.pem"), 20)


def take_all(feed: ConfigFeed, pieces: Iterable[bytes]) -> list[bytes]:
    return [config for piece in pieces for config in feed.receive(piece)]


@given(cuts=st.lists(st.integers(0, len(SAID)), max_size=30))
def test_in_pieces_of_any_size(cuts: list[int]) -> None:
    feed = ConfigFeed("h:8091")
    edges = sorted({0, *cuts, len(SAID)})
    assert take_all(feed, [SAID[a:b] for a, b in pairwise(edges)]) == CONFIGS


def test_byte_by_byte() -> None:
    feed = ConfigFeed("h:8091")
    assert [c for i in range(len(SAID)) for c in feed.receive(SAID[i : i + 1])] == CONFIGS


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        (b"HTTP/1.1 401 Unauthorized\r\n\r\n", AuthFailError),
        (b"HTTP/1.1 403 Forbidden\r\n\r\n", AccessError),
        (b"HTTP/1.1 404 Object Not Found\r\n\r\n", BucketNotFoundError),
        (b"HTTP/1.1 503 Busy\r\n\r\n", ConnectError),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", ProtocolError),
        (b"HTTP/1.1 OK\r\n\r\n", ProtocolError),
        (b"HTTP/2 200 OK\r\n\r\n", ProtocolError),
        (b"HTTP/1.1 " + b"1" * 5000 + b" OK\r\n\r\n", ProtocolError),
        (b"\x81", ProtocolError),
        (b"SSH-2.0-x\r\n", ProtocolError),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70_000, ProtocolError),
        (HEAD + b"0\r\n\r\n", ConnectError),
        (HEAD + b"zz\r\n", ProtocolError),
        (HEAD + b"-5\r\n", ProtocolError),
        (HEAD + b"\r\n", ProtocolError),
        (HEAD + b"fffffffff\r\n", ProtocolError),
        (HEAD + b"ffffffff\r\n", ProtocolError),
        (HEAD + b"5" * 2000, ProtocolError),
        (HEAD + b"2\r\n{}xx", ProtocolError),
    ],
)
def test_what_is_refused(said: bytes, kind: type[CbframeError]) -> None:
    for step in (len(said), 1):
        pieces = [said[at : at + step] for at in range(0, len(said), step)]
        with pytest.raises(kind) as caught:
            take_all(ConfigFeed("h:8091"), pieces)
        assert type(caught.value) is kind
        assert caught.value.node == "h:8091"


def test_a_configuration_without_end_takes_no_memory_without_end() -> None:
    feed = ConfigFeed("h:8091")
    pieces = [HEAD, *[chunk(b"x" * (1 << 20))] * 40]
    with pytest.raises(ProtocolError, match="a configuration of more than"):
        take_all(feed, pieces)
