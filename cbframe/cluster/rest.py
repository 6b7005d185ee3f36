"""The cluster manager over HTTP: one node's answers, the seeds in turn, and how requests reach them.

A call opens a session and closes it; a ``with`` block around several calls lets them share one.
Either way none is left open, and a password that changes is used from the next call on. Only this
module loads ``requests``.

A proxy is asked for nothing but CONNECT: one that gets the requests themselves would read the user's
password.
"""

from __future__ import annotations

import base64
import binascii
import secrets
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Self, TypeAlias, TypeVar
from urllib.parse import quote, unquote, urlsplit

import requests
from requests.adapters import HTTPAdapter
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool, PoolManager
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.util.connection import create_connection

from cbframe.cluster.answers import (
    RestAnswer,
    as_mapping,
    mapping_field,
    mappings_field,
    text_field,
    uuid_mismatch,
)
from cbframe.cluster.auth import Authenticator, AuthLike, as_authenticator, basic_header
from cbframe.cluster.cluster_map import ClusterMap, parse_bucket_config, with_node_services
from cbframe.cluster.collections_manifest import CollectionsManifest
from cbframe.cluster.connection_string import (
    HostPort,
    bare_host,
    first_success,
    parse_connection_string,
    strip_userinfo,
)
from cbframe.cluster.tls import TLSContext, TLSLike, client_context, tls_error
from cbframe.errors import (
    PAUSED_HINT,
    ROLES_HINT,
    BucketNotFoundError,
    CbframeError,
    ConfigurationError,
    ConnectError,
    ProtocolError,
)
from cbframe.options import BucketDataSourceOptions
from cbframe.public import Closing, public
from cbframe.system import shortage
from cbframe.wire.sasl import ScramClient

_CHUNK_BYTES = 64 << 10
_SHOWN_BUCKETS = 20
_PAUSED = ("pausing", "paused")
_T = TypeVar("_T")
MAX_ANSWER_BYTES = 64 << 20
"""The largest real answer, all buckets of a big cluster, is a few MiB."""


# --- one node


@dataclass(frozen=True, slots=True)
class Terms:
    """What holds for every request of a client."""

    timeout: float
    verify: bool | str
    cert: str | tuple[str, str] | None
    max_answer_bytes: int


class Manager:
    """One node's cluster manager, in one session."""

    def __init__(self, session: requests.Session, base_url: str, address: HostPort, terms: Terms) -> None:
        self._session = session
        self._base_url = base_url
        self._node = str(address)
        self._terms = terms
        self.address = HostPort(bare_host(address.host), address.port)

    def bucket_config(self, bucket: str, bucket_uuid: str | None) -> dict[str, object]:
        query = f"?bucket_uuid={quote(bucket_uuid, safe='')}" if bucket_uuid else ""
        answer = self.get(f"/pools/default/b/{quote(bucket, safe='')}{query}")
        if answer.status == 404 and b"uuid does not match" not in answer.body:
            # Unknown bucket, unknown endpoint, or a node outside any cluster: the walk tells.
            config = self.walk("default", bucket)
        else:
            config = answer.json_object()
        # Checked here too: an old server ignores the parameter.
        if bucket_uuid and text_field(config, "uuid", "") != bucket_uuid:
            raise uuid_mismatch(self._node)
        if not mapping_field(config, "vBucketServerMap").get("vBucketMap"):
            self._refuse_paused(bucket)
        return config

    def check_bucket(self, bucket: str) -> None:
        """Raise if the bucket does not exist, or is paused."""
        if self._refuse_paused(bucket) == 404:
            names = _names(self._buckets("default"))
            if bucket not in names:
                raise self._no_bucket(bucket, names)

    def _refuse_paused(self, bucket: str) -> int:
        """The status of the answer about the bucket; raises if it says that the bucket is paused."""
        answer = self.get(f"/pools/default/buckets/{quote(bucket, safe='')}")
        if answer.status == 404:
            return answer.status
        if text_field(answer.json_object(), "hibernationState", "") in _PAUSED:
            raise BucketNotFoundError(f"bucket {bucket!r} is paused", node=self._node, hint=PAUSED_HINT)
        return answer.status

    def walk(self, pool: str, bucket: str) -> dict[str, object]:
        """The verbose config: ``/pools``, the pool, its list of buckets, the bucket."""
        entries = self._buckets(pool)
        for entry in entries:
            if entry.get("name") != bucket:
                continue
            answer = self.get(self._local(text_field(entry, "uri")))
            if answer.status == 404 and b"uuid does not match" not in answer.body:
                break  # deleted between the two requests
            config = answer.json_object()
            services = self.get("/pools/default/nodeServices")
            # The oldest servers have none; their configs go by serverList alone.
            if services.status == 404:
                return config
            return with_node_services(config, services.json_object(), self.address.host)
        raise self._no_bucket(bucket, [name for name in _names(entries) if name != bucket])

    def manifest(self, bucket: str) -> dict[str, object]:
        answer = self.get(f"/pools/default/buckets/{quote(bucket, safe='')}/scopes")
        if answer.status != 404:
            return answer.json_object()
        names = _names(self._buckets("default"))
        if bucket not in names:
            raise self._no_bucket(bucket, names)
        raise ConnectError(
            f"the server has no collections manifest for bucket {bucket!r}",
            node=self._node,
            hint="collections need Couchbase Server 7.0",
        )

    def _buckets(self, pool: str) -> list[Mapping[str, object]]:
        pools = mappings_field(self.get("/pools").json_object(), "pools")
        if not pools:
            raise ConnectError(
                "the node belongs to no cluster",
                node=self._node,
                hint="it is new, or was removed: use another seed",
            )
        by_name = {text_field(entry, "name"): entry for entry in pools}
        if pool not in by_name:
            raise ConfigurationError(
                f"no pool {pool!r}", node=self._node, hint=f"there are: {', '.join(sorted(by_name))}"
            )
        overview = self.get(self._local(text_field(by_name[pool], "uri"))).json_object()
        uri = text_field(mapping_field(overview, "buckets"), "uri")
        return [as_mapping(entry, "buckets") for entry in self.get(self._local(uri)).json_array()]

    def _no_bucket(self, bucket: str, names: Sequence[str]) -> BucketNotFoundError:
        shown = ", ".join(names[:_SHOWN_BUCKETS]) + (", …" if len(names) > _SHOWN_BUCKETS else "")
        return BucketNotFoundError(
            f"no bucket {bucket!r}, or the user may not see it",
            node=self._node,
            hint=f"visible buckets: {shown}" if shown else f"the user sees no other bucket; {ROLES_HINT}",
        )

    def _local(self, uri: str) -> str:
        """`uri` if it is a path on this node. Credentials go nowhere else."""
        if not uri.startswith("/") or uri.startswith("//"):
            raise ConnectError("the cluster manager refers to another host", node=self._node)
        return uri

    def get(self, path: str) -> RestAnswer:
        """One request; a status of any kind is an answer, anything less a `ConnectError`."""
        shown = path.partition("?")[0]
        outside = sys.exception()
        try:
            with self._session.get(
                self._base_url + path,
                timeout=self._terms.timeout,
                # Not on the session: there, REQUESTS_CA_BUNDLE would overrule them.
                verify=self._terms.verify,
                cert=self._terms.cert,
                allow_redirects=False,
                stream=True,
            ) as response:
                body = bytearray()
                for chunk in response.iter_content(_CHUNK_BYTES):
                    body += chunk
                    if len(body) > self._terms.max_answer_bytes:
                        raise ConnectError(
                            f"{shown} answers with more than {self._terms.max_answer_bytes} bytes",
                            node=self._node,
                        )
                headers = response.headers
                return RestAnswer(
                    self._node,
                    shown,
                    response.status_code,
                    headers.get("Content-Type", ""),
                    headers.get("Location", ""),
                    bytes(body),
                    headers.get("Server", ""),
                    headers.get("WWW-Authenticate", ""),
                )
        except requests.RequestException as error:
            # Not chained: what is below says the same at length, in frames of libraries.
            raise self._no_answer(shown, error, _root_cause(error, outside)) from None
        except OSError as error:
            if (refusal := shortage(error, self._node)) is not None:
                raise refusal from None
            # Not a RequestException: requests could not read the certificates that it is to use.
            raise ConfigurationError(
                f"cannot use the certificates: {strip_userinfo(str(error))}",
                hint="check the paths of verify and cert",
            ) from error

    def _no_answer(self, path: str, error: requests.RequestException, root: BaseException) -> CbframeError:
        if (refusal := shortage(root, self._node)) is not None:
            return refusal
        if (failure := tls_error(root, self._node, f" (asked for {path})")) is not None:
            return failure
        if isinstance(error, requests.Timeout) or isinstance(root, TimeoutError):
            return ConnectError(
                f"{path} gave no answer within {self._terms.timeout:g} s",
                node=self._node,
                hint="the node is overloaded, or a firewall drops the packets",
            )
        reason = strip_userinfo(str(root)) or type(root).__name__
        return ConnectError(
            f"no whole answer from {path}: {reason}",
            node=self._node,
            hint="check host and port: http:// is 8091, https:// is 18091",
        )


def _names(entries: Sequence[Mapping[str, object]]) -> list[str]:
    return sorted(str(entry.get("name")) for entry in entries)


def _root_cause(error: BaseException, outside: BaseException | None) -> BaseException:
    """The error at the bottom: the wrappers around it repeat themselves at length.

    `outside` is what the caller was handling when it asked; it is in the chain, but no cause.
    """
    while (below := error.__cause__ or error.__context__) is not None and below is not outside:
        error = below
    # urllib3 hands on what the ssl module raised as an argument, not as a cause.
    wrapped = error.args[0] if error.args else None
    return wrapped if isinstance(wrapped, BaseException) else error


# --- the seeds


@dataclass(frozen=True, slots=True)
class Bucket:
    """A bucket as one node described it.

    Attributes
    ----------
    name, uuid
        The bucket, and this life of it.
    map
        Owners of its vbuckets.
    node_services
        The nodes of the cluster and their ports, data nodes of the bucket first; none where the
        server is too old to tell.
    """

    name: str
    uuid: str
    map: ClusterMap
    node_services: tuple[Mapping[str, object], ...] = field(repr=False)


class RestClient(Closing):
    """Asks the cluster manager, seed after seed until one answers."""

    def __init__(
        self,
        seeds: str | Sequence[str],
        auth: AuthLike,  # what as_authenticator takes; evaluated again for each call
        *,
        timeout: float = 10.0,  # seconds to wait for a connection, and between two parts of an answer
        verify: bool | str = True,
        cert: str | tuple[str, str] | None = None,  # path of a client certificate with its key, or of both
        tls_context: TLSContext | None = None,  # A context that says all this in place of `verify` and `cert`
        proxies: Mapping[str, str] | None = None,
        scram: bool = False,  # log in with SCRAM, which sends no password, in place of Basic
        session_factory: Callable[[], requests.Session] = requests.Session,
        max_answer_bytes: int = MAX_ANSWER_BYTES,  # longer answers are refused while they arrive
    ) -> None:
        target = parse_connection_string(seeds)
        if target.bootstrap != "rest":
            raise ConfigurationError(
                f"{target.scheme}:// does not name the cluster manager", hint="use http://host:8091"
            )
        self.seeds = target.rest_urls()
        self.tls = target.tls
        self._nodes = dict(zip(self.seeds, target.seeds(), strict=True))
        self._auth: AuthLike = target.credentials if auth is None else auth
        self._terms = Terms(timeout, verify, cert, max_answer_bytes)
        self._proxy = proxy_for("https" if self.tls else "http", proxies)
        self._sign: Callable[[Authenticator], Sign] = scram_auth if scram else basic_auth
        self._session_factory = session_factory
        self._context = tls_context
        self._shared: requests.Session | None = None

    def __enter__(self) -> Self:
        self.close()
        self._shared = self._new_session()
        return self

    def close(self) -> None:
        """End the session of a ``with`` block; the client can still be used."""
        if self._shared is not None:
            self._shared.close()
            self._shared = None

    def __repr__(self) -> str:
        return f"RestClient({', '.join(self.seeds)})"

    def bucket_config(
        self, bucket: str, *, bucket_uuid: str | None = None
    ) -> tuple[dict[str, object], HostPort]:
        """The config of a bucket, and the address that gave it."""
        return self._any_seed(lambda node: (node.bucket_config(bucket, bucket_uuid), node.address))

    def node_services(self) -> dict[str, object]:
        """All nodes of the cluster with their ports; needs no access to a bucket."""
        return self._any_seed(lambda node: node.get("/pools/default/nodeServices").json_object())

    def check_bucket(self, bucket: str) -> None:
        """Do nothing if the cluster has the bucket, and it is in use."""
        self._any_seed(lambda node: node.check_bucket(bucket))

    def manifest(self, bucket: str) -> CollectionsManifest:
        """The scopes and collections of a bucket; raises as :meth:`bucket_config`."""
        return self._any_seed(lambda node: CollectionsManifest.parse(node.manifest(bucket)))

    def _any_seed(self, ask: Callable[[Manager], _T]) -> _T:
        authenticator = as_authenticator(self._auth)

        def attempt(seed: str) -> _T:
            with self._open(seed, authenticator) as manager:
                return ask(manager)

        return first_success(self.seeds, attempt)

    def _new_session(self) -> requests.Session:
        session = self._session_factory()
        # A proxy, or a login in ~/.netrc, is for the web: nodes are not there.
        session.trust_env = False
        if self._context is not None:
            session.mount("https://", ContextAdapter(self._context))
        if self._proxy is not None:
            for adapter in session.adapters.values():
                assert isinstance(adapter, HTTPAdapter)
                use_proxy(adapter.poolmanager, self._proxy)
        return session

    @contextmanager
    def _open(self, seed: str, authenticator: Authenticator) -> Iterator[Manager]:
        session = self._shared or self._new_session()
        try:
            session.auth = self._sign(authenticator)
            session.headers["Accept"] = "application/json"
            # An answer that unpacks to a thousand times its length would pass under the limit.
            session.headers["Accept-Encoding"] = "identity"
            yield Manager(session, seed, self._nodes[seed], self._terms)
        finally:
            if session is not self._shared:
                session.close()


@public
def connect_bucket(
    server_url: str,
    pool_name: str,
    bucket_name: str,
    auth: AuthLike,
    *,
    tls: TLSLike = None,
    proxies: Mapping[str, str] | None = None,
) -> Bucket:
    """Describe a bucket through one seed, by the walk of the reference (``cbdatasource``).

    Parameters
    ----------
    tls
        For ``https://``: as for :func:`~cbframe.scan_bucket`.
    proxies
        As of :class:`~cbframe.BucketDataSourceOptions`.

    Raises
    ------
    CbframeError
        As :meth:`RestClient.bucket_config`; with a single seed its error comes unwrapped.
    """
    target = parse_connection_string(server_url)
    authenticator = as_authenticator(target.credentials if auth is None else auth)
    context = client_context(tls, authenticator, target)
    checked = BucketDataSourceOptions(proxies=proxies).proxies
    client = RestClient(server_url, authenticator, tls_context=context, proxies=checked)
    if len(client.seeds) != 1:
        raise ConfigurationError("connect_bucket takes one server URL", hint="try them one after the other")
    seed = client.seeds[0]
    with client._open(seed, authenticator) as manager:  # noqa: SLF001 - same module, one seam
        config = manager.walk(pool_name, bucket_name)
    cluster_map = parse_bucket_config(config, origin=manager.address, tls=client.tls)
    services = tuple(mappings_field(config, "nodesExt"))
    return Bucket(cluster_map.bucket, cluster_map.uuid, cluster_map, services)


# --- how requests reach a node


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
