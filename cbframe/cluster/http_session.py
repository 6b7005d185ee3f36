"""How requests reach a cluster manager: who verifies it, through which proxy, and with which login.

A proxy is asked for nothing but CONNECT: one that gets the requests themselves would read the user's
password.
"""

from __future__ import annotations

import base64
import binascii
import secrets
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias
from urllib.parse import unquote, urlsplit

import requests
from requests.adapters import HTTPAdapter
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool, PoolManager
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.util.connection import create_connection

from cbframe.cluster.auth import Authenticator, basic_header
from cbframe.cluster.connection_string import HostPort
from cbframe.cluster.tls import TLSContext
from cbframe.errors import CbframeError, ConnectError, ProtocolError
from cbframe.system import shortage
from cbframe.wire.sasl import ScramClient

Sign: TypeAlias = Callable[[requests.PreparedRequest], requests.PreparedRequest]
"""What puts a login into a request."""
_SCRAM = "SCRAM-SHA-512"
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


# --- TLS


class ContextAdapter(HTTPAdapter):
    """Verifies peers by a context, and by nothing else.

    ``requests`` by itself trusts the authorities of ``certifi``, and would add them, or those of
    ``REQUESTS_CA_BUNDLE``, to any context.
    """

    def __init__(self, context: TLSContext) -> None:
        self._context = context
        super().__init__()

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, ssl_context=self._context, **kwargs)

    def build_connection_pool_key_attributes(
        self,
        request: requests.PreparedRequest,
        verify: bool | str,  # noqa: ARG002 - the context says it
        cert: Any = None,  # noqa: ARG002 - the context has it
    ) -> tuple[Any, Any]:
        host, _ = super().build_connection_pool_key_attributes(request, True, None)
        return host, {}

    def cert_verify(self, conn: Any, url: Any, verify: Any, cert: Any) -> None:
        """Leave the pool alone: everything is in the context."""


# --- proxies


def proxy_for(scheme: str, proxies: Mapping[str, str] | None) -> str | None:
    """The proxy of a scheme, or of all."""
    return None if proxies is None else proxies.get(scheme) or proxies.get("all")


def proxy_address(proxy: str) -> HostPort:
    """Where a proxy is, without what may be a password in its URL."""
    parts = urlsplit(proxy)
    return HostPort(parts.hostname or "", parts.port or _PORT)


def use_proxy(pools: PoolManager, proxy: str) -> None:
    """Have the connections of a pool manager made through a proxy."""
    parts = urlsplit(proxy)
    place = proxy_address(proxy)
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
            _check_tunnel(_read_head(sock), str(place), node)
        except OSError as exc:
            sock.close()
            raise ConnectError(f"the proxy {place} gave no answer: {exc}", node=node) from None
        except ConnectError:
            sock.close()
            raise
        return sock

    class TunnelledConnection(HTTPConnection):
        _new_conn = connect

    class TunnelledTLSConnection(HTTPSConnection):
        _new_conn = connect

    class TunnelledPool(HTTPConnectionPool):
        ConnectionCls = TunnelledConnection

    class TunnelledTLSPool(HTTPSConnectionPool):
        ConnectionCls = TunnelledTLSConnection

    pools.pool_classes_by_scheme = {"http": TunnelledPool, "https": TunnelledTLSPool}


def _read_head(sock: Any) -> bytes:
    """The head of the answer, and not a byte of what comes after it."""
    head = b""
    while not head.endswith(b"\r\n\r\n") and len(head) < _MAX_HEAD:
        byte = sock.recv(1)
        if not byte:
            break
        head += byte
    return head


def _check_tunnel(head: bytes, proxy: str, node: str) -> None:
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


# --- logins


def basic_auth(authenticator: Authenticator) -> Sign:
    """HTTP Basic in UTF-8; ``requests`` itself would encode as Latin-1.

    Always a callable, also without credentials: ``requests`` looks into ``~/.netrc`` otherwise.
    """
    value = basic_header(authenticator)

    def sign(request: requests.PreparedRequest) -> requests.PreparedRequest:
        if value is not None:
            request.headers["Authorization"] = value
        return request

    return sign


def scram_auth(authenticator: Authenticator) -> Sign:
    """HTTP SCRAM (RFC 7804): the password crosses no network, and the manager proves that it knows it."""
    user, password = authenticator.credentials() or ("", "")

    def sign(request: requests.PreparedRequest) -> requests.PreparedRequest:
        client = ScramClient(_SCRAM.replace("SHA-", "SHA"), user, password, lambda: secrets.token_urlsafe(18))

        def answered(response: requests.Response, **arguments: Any) -> requests.Response:
            response.close()
            sid, data = _scram_fields(response.headers.get("WWW-Authenticate", ""))
            if response.status_code != 401 or not sid:
                raise ProtocolError(f"the cluster manager does not know {_SCRAM}")
            again = response.request.copy()
            again.hooks = {"response": []}
            proof = base64.b64encode(client.final(data)).decode()
            again.headers["Authorization"] = f"{_SCRAM} sid={sid},data={proof}"
            final: requests.Response = response.connection.send(again, **arguments)
            try:
                if final.status_code != 401:
                    client.verify(_scram_fields(final.headers.get("Authentication-Info", ""))[1])
            except CbframeError:
                final.close()
                raise
            return final

        first = base64.b64encode(client.first()).decode()
        request.headers["Authorization"] = f"{_SCRAM} data={first}"
        request.hooks["response"].append(answered)
        return request

    return sign


def _scram_fields(header: str) -> tuple[str, bytes]:
    """The exchange that a header is of, and the message; nothing where there is none."""
    parts = dict(part.split("=", 1) for part in header.removeprefix(_SCRAM).strip().split(",") if "=" in part)
    try:
        return parts.get("sid", ""), base64.b64decode(parts.get("data", ""), validate=True)
    except binascii.Error as exc:
        raise ProtocolError("a SCRAM message of the cluster manager is no base64") from exc
