"""Whether a bucket that a data node does not have exists at all: the cluster managers know."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Iterator
from urllib.parse import urlsplit

from cbframe.cluster.auth import Authenticator
from cbframe.cluster.cluster_map import AUTO_NETWORK, read_nodes, select_network
from cbframe.cluster.connection_string import HostPort, bare_host, join_address
from cbframe.cluster.tls import TLSContext
from cbframe.dcp.handshake import Login
from cbframe.errors import BucketNotFoundError, CbframeError

_MANAGERS = 3
"""Cluster managers that are asked at most."""
_TIMEOUT = 2.0
"""Seconds for one of them: there is another attempt if none answers."""


def absence(
    config: bytes,  # the configuration of the whole cluster, from the data node at `origin`
    origin: HostPort,
    login: Login,
    auth: Authenticator,
    *,
    network: str = AUTO_NETWORK,
    tls_context: TLSContext | None = None,
    timeout: float = _TIMEOUT,
) -> BucketNotFoundError | None:
    """The error of a bucket that does not exist, or is paused; None if it exists, or nobody knows.

    The password does not cross a network in clear text for this: without TLS, managers on other hosts are
    asked with SCRAM, unless the login allows clear text.
    """
    from cbframe.cluster.rest import RestClient  # noqa: PLC0415 - requests is slow to import

    try:
        urls = list(_managers(json.loads(config), origin, login, network))[:_MANAGERS]
        scram = not (login.allow_plain or all(map(_is_here, urls)))
    except (CbframeError, ValueError, RecursionError):  # no JSON, or a host that no URL can have
        return None
    if not urls:
        return None
    try:
        client = RestClient(urls, auth, timeout=min(timeout, _TIMEOUT), tls_context=tls_context, scram=scram)
        client.check_bucket(login.bucket)
    except BucketNotFoundError as exc:
        return exc
    except CbframeError:
        return None
    return None


def _managers(config: object, origin: HostPort, login: Login, network: str) -> Iterator[str]:
    """Base URLs of the cluster managers that may be asked, this node's first."""
    if not isinstance(config, dict):
        return
    nodes = read_nodes(config, origin.host)
    chosen = select_network(nodes, origin, network, tls=login.tls)
    scheme, service = ("https", "mgmtSSL") if login.tls else ("http", "mgmt")
    endpoints = [node.networks[chosen] for node in nodes if chosen in node.networks]
    host = bare_host(origin.host)
    endpoints.sort(key=lambda each: (not each.has(origin, tls=login.tls), bare_host(each.host) != host))
    for endpoint in endpoints:
        port = endpoint.ports.get(service)
        if port:
            yield f"{scheme}://{join_address(endpoint.host, port)}"


def _is_here(url: str) -> bool:
    """Whether what is sent there leaves this machine not at all."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
