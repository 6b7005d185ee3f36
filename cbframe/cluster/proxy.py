"""Requests to cluster managers through an HTTP proxy, which is asked for nothing but CONNECT.

A proxy that gets the requests themselves would read the user's password.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote, urlsplit

from urllib3 import HTTPConnectionPool, HTTPSConnectionPool, PoolManager
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.util.connection import create_connection

from cbframe.cluster.connection_string import HostPort
from cbframe.errors import ConnectError
from cbframe.limits import shortage

_MAX_HEAD = 8192
_PORT = 80
_REMEDIES = {
    403: "it allows no connection to this port: have CONNECT allowed there, or read without proxies=",
    405: "it knows no CONNECT: use another proxy, or read without proxies=",
    407: 'it wants a login: proxies={"https": "http://user:password@host:port"}',
    502: "it cannot reach the node: check host and port",
    503: "it cannot reach the node now: check host and port, or try again",
    504: "the node does not answer it: check host and port",
}


def proxy_for(scheme: str, proxies: Mapping[str, str] | None) -> str | None:
    """The proxy of a scheme, or of all."""
    return None if proxies is None else proxies.get(scheme) or proxies.get("all")


def shown(proxy: str) -> HostPort:
    """Where a proxy is, without what may be a password in its URL."""
    parts = urlsplit(proxy)
    return HostPort(parts.hostname or "", parts.port or _PORT)


def tunnel(pools: PoolManager, proxy: str) -> None:
    """Have the connections of a pool manager made through a proxy."""
    parts = urlsplit(proxy)
    place = shown(proxy)
    login = b""
    if parts.username is not None:
        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        login = b"Proxy-Authorization: Basic %s\r\n" % base64.b64encode(pair.encode())

    def connect(connection: Any) -> Any:
        name = f"[{connection.host}]" if ":" in connection.host else connection.host
        node = f"{name}:{connection.port}"
        try:
            sock = create_connection((place.host, place.port or _PORT), connection.timeout)
        except OSError as exc:
            raise shortage(exc) or ConnectError(
                f"the proxy {place} cannot be reached: {exc.strerror or exc}",
                node=node,
                hint="check proxies=",
            ) from None
        try:
            sock.sendall(b"CONNECT %s HTTP/1.1\r\nHost: %s\r\n%s\r\n" % (node.encode(), node.encode(), login))
            _check(_head(sock), str(place), node)
        except OSError as exc:
            sock.close()
            raise ConnectError(f"the proxy {place} gave no answer: {exc}", node=node) from None
        except ConnectError:
            sock.close()
            raise
        return sock

    class Plain(HTTPConnection):
        _new_conn = connect

    class Secure(HTTPSConnection):
        _new_conn = connect

    class PlainPool(HTTPConnectionPool):
        ConnectionCls = Plain

    class SecurePool(HTTPSConnectionPool):
        ConnectionCls = Secure

    pools.pool_classes_by_scheme = {"http": PlainPool, "https": SecurePool}


def _head(sock: Any) -> bytes:
    """The head of the answer, and not a byte of what comes after it."""
    head = b""
    while not head.endswith(b"\r\n\r\n") and len(head) < _MAX_HEAD:
        byte = sock.recv(1)
        if not byte:
            break
        head += byte
    return head


def _check(head: bytes, proxy: str, node: str) -> None:
    words = head.partition(b"\r\n")[0].split(b" ")
    if not words[0].startswith(b"HTTP/1.") or len(words) < 2 or not words[1].isdigit():
        raise ConnectError(f"the proxy {proxy} does not answer as one", node=node, hint="check proxies=")
    status = int(words[1])
    if not 200 <= status < 300:
        raise ConnectError(
            f"the proxy {proxy} makes no connection: it answers with HTTP status {status}",
            node=node,
            hint=_REMEDIES.get(status, "check proxies=, or read without"),
        )
