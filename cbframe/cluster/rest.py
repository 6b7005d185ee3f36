"""The cluster manager over HTTP: with :mod:`cbframe.cluster.https` the only one to load ``requests``.

A call opens a session and closes it; a ``with`` block around several calls lets them share one.
Either way none is left open, and a password that changes is used from the next call on.
"""

from __future__ import annotations

import base64
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self, TypeVar
from urllib.parse import quote

import requests

from cbframe.cluster import fields
from cbframe.cluster.address import HostPort, bare_host, strip_userinfo
from cbframe.cluster.answers import Answer, uuid_mismatch
from cbframe.cluster.auth import Authenticator, AuthLike, as_authenticator
from cbframe.cluster.connstr import parse_connection_string
from cbframe.cluster.https import ContextAdapter
from cbframe.cluster.manifest import Manifest
from cbframe.cluster.map import ClusterMap, parse_bucket_config
from cbframe.cluster.nodes import with_node_services
from cbframe.cluster.seeds import first_success
from cbframe.cluster.tls import TLSContext, TLSLike, client_context, tls_error
from cbframe.errors import (
    BucketNotFoundError,
    ConfigurationError,
    ConnectError,
)

_T = TypeVar("_T")
MAX_ANSWER_BYTES = 64 << 20
"""The largest real answer, all buckets of a big cluster, is a few MiB."""
_CHUNK_BYTES = 64 << 10
_SHOWN_BUCKETS = 20


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


class RestClient:
    """Asks the cluster manager, seed after seed until one answers.

    Parameters
    ----------
    seeds
        Base URLs, ``http://host:8091``. A ``user:password@`` in them serves if `auth` is None.
    auth
        What :func:`~cbframe.cluster.auth.as_authenticator` takes; evaluated anew for each call.
    timeout
        Seconds to wait for a connection, and between two parts of an answer.
    verify
        Whether to check the server's certificate, or the path of the CA certificates to trust.
    cert
        Path of a client certificate with its key, or of both.
    tls_context
        A context that says all this in place of `verify` and `cert`.
    session_factory
        Makes the session of one call; tests put theirs here.
    max_answer_bytes
        Longer answers are refused while they arrive.

    Raises
    ------
    ConfigurationError
        A seed is no ``http`` or ``https`` URL.
    """

    def __init__(
        self,
        seeds: str | Sequence[str],
        auth: AuthLike,
        *,
        timeout: float = 10.0,
        verify: bool | str = True,
        cert: str | tuple[str, str] | None = None,
        tls_context: TLSContext | None = None,
        session_factory: Callable[[], requests.Session] = requests.Session,
        max_answer_bytes: int = MAX_ANSWER_BYTES,
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
        self._terms = _Terms(timeout, verify, cert, max_answer_bytes)
        self._session_factory = session_factory
        self._context = tls_context
        self._shared: requests.Session | None = None

    def __enter__(self) -> Self:
        self.close()
        self._shared = self._new_session()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the session of a ``with`` block; the client can still be used."""
        if self._shared is not None:
            self._shared.close()
            self._shared = None

    def __repr__(self) -> str:
        return f"RestClient({', '.join(self.seeds)})"

    def bucket_config(self, bucket: str, *, bucket_uuid: str | None = None) -> tuple[dict[str, object], str]:
        """The config of a bucket, and the host that gave it.

        Returns
        -------
        tuple[dict, str]
            The terse config, or from a server that does not know it the verbose one completed with
            ``nodesExt``; and the host for ``$HOST``, without brackets.

        Raises
        ------
        AuthFailError, AccessError, BucketNotFoundError
            At once, from the first seed that says so.
        ClusterMapError
            The bucket's uuid is not `bucket_uuid`.
        AllServerURLsConnectBucketError
            No seed gave a config; the last cause is chained.
        """
        return self._any_seed(lambda node: (node.bucket_config(bucket, bucket_uuid), node.host))

    def legacy_bucket_config(self, pool: str, bucket: str) -> tuple[dict[str, object], str]:
        """The same through the walk of the reference, from ``/pools`` on."""
        return self._any_seed(lambda node: (node.walk(pool, bucket), node.host))

    def node_services(self) -> dict[str, object]:
        """All nodes of the cluster with their ports; needs no access to a bucket."""
        return self._any_seed(lambda node: node.get("/pools/default/nodeServices").json_object())

    def manifest(self, bucket: str) -> Manifest:
        """The scopes and collections of a bucket; raises as :meth:`bucket_config`."""
        return self._any_seed(lambda node: Manifest.parse(node.manifest(bucket)))

    def _any_seed(self, ask: Callable[[_Manager], _T]) -> _T:
        authenticator = as_authenticator(self._auth)

        def attempt(seed: str) -> _T:
            with self._open(seed, authenticator) as manager:
                return ask(manager)

        return first_success(self.seeds, attempt)

    def _new_session(self) -> requests.Session:
        session = self._session_factory()
        if self._context is not None:
            session.mount("https://", ContextAdapter(self._context))
        return session

    @contextmanager
    def _open(self, seed: str, authenticator: Authenticator) -> Iterator[_Manager]:
        session = self._shared or self._new_session()
        try:
            session.auth = _basic(authenticator)
            session.headers["Accept"] = "application/json"
            # An answer that unpacks to a thousand times its length would pass under the limit.
            session.headers["Accept-Encoding"] = "identity"
            yield _Manager(session, seed, self._nodes[seed], self._terms)
        finally:
            if session is not self._shared:
                session.close()


def connect_bucket(
    server_url: str, pool_name: str, bucket_name: str, auth: AuthLike, *, tls: TLSLike = None
) -> Bucket:
    """Describe a bucket through one seed, by the walk of the reference (``cbdatasource``).

    Parameters
    ----------
    tls
        For ``https://``: as for :func:`~cbframe.scan_bucket`.

    Raises
    ------
    CbframeError
        As :meth:`RestClient.bucket_config`; with a single seed its error comes unwrapped.
    """
    target = parse_connection_string(server_url)
    authenticator = as_authenticator(target.credentials if auth is None else auth)
    context = client_context(tls, authenticator, encrypted=target.tls)
    client = RestClient(server_url, authenticator, tls_context=context)
    if len(client.seeds) != 1:
        raise ConfigurationError("connect_bucket takes one server URL", hint="try them one after the other")
    seed = client.seeds[0]
    with client._open(seed, authenticator) as manager:  # noqa: SLF001 - same module, one seam
        config = manager.walk(pool_name, bucket_name)
    cluster_map = parse_bucket_config(config, origin_host=manager.host, tls=client.tls)
    services = tuple(fields.mappings(config, "nodesExt"))
    return Bucket(cluster_map.bucket, cluster_map.uuid, cluster_map, services)


@dataclass(frozen=True, slots=True)
class _Terms:
    """What holds for every request of a client."""

    timeout: float
    verify: bool | str
    cert: str | tuple[str, str] | None
    max_answer_bytes: int


class _Manager:
    """One node's cluster manager, in one session."""

    def __init__(self, session: requests.Session, base_url: str, address: HostPort, terms: _Terms) -> None:
        self._session = session
        self._base_url = base_url
        self._node = str(address)
        self._terms = terms
        self.host = bare_host(address.host)

    def bucket_config(self, bucket: str, bucket_uuid: str | None) -> dict[str, object]:
        query = f"?bucket_uuid={quote(bucket_uuid, safe='')}" if bucket_uuid else ""
        answer = self.get(f"/pools/default/b/{quote(bucket, safe='')}{query}")
        if answer.status == 404 and b"uuid does not match" not in answer.body:
            # Unknown bucket, unknown endpoint, or a node outside any cluster: the walk tells.
            config = self.walk("default", bucket)
        else:
            config = answer.json_object()
        # Checked here too: an old server ignores the parameter.
        if bucket_uuid and fields.text(config, "uuid", "") != bucket_uuid:
            raise uuid_mismatch(self._node)
        return config

    def walk(self, pool: str, bucket: str) -> dict[str, object]:
        """The verbose config: ``/pools``, the pool, its list of buckets, the bucket."""
        entries = self._buckets(pool)
        for entry in entries:
            if entry.get("name") != bucket:
                continue
            answer = self.get(self._local(fields.text(entry, "uri")))
            if answer.status == 404 and b"uuid does not match" not in answer.body:
                break  # deleted between the two requests
            config = answer.json_object()
            services = self.get("/pools/default/nodeServices")
            # The oldest servers have none; their configs go by serverList alone.
            if services.status == 404:
                return config
            return with_node_services(config, services.json_object(), self.host)
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
        pools = fields.mappings(self.get("/pools").json_object(), "pools")
        if not pools:
            raise ConnectError(
                "the node belongs to no cluster",
                node=self._node,
                hint="it is new, or was removed: use another seed",
            )
        by_name = {fields.text(entry, "name"): entry for entry in pools}
        if pool not in by_name:
            raise ConfigurationError(
                f"no pool {pool!r}", node=self._node, hint=f"there are: {', '.join(sorted(by_name))}"
            )
        overview = self.get(self._local(fields.text(by_name[pool], "uri"))).json_object()
        uri = fields.text(fields.mapping(overview, "buckets"), "uri")
        return [fields.as_mapping(entry, "buckets") for entry in self.get(self._local(uri)).json_array()]

    def _no_bucket(self, bucket: str, names: Sequence[str]) -> BucketNotFoundError:
        shown = ", ".join(names[:_SHOWN_BUCKETS]) + (", …" if len(names) > _SHOWN_BUCKETS else "")
        return BucketNotFoundError(
            f"no bucket {bucket!r}, or the user may not see it",
            node=self._node,
            hint=f"visible buckets: {shown}" if shown else "the user sees no other bucket",
        )

    def _local(self, uri: str) -> str:
        """`uri` if it is a path on this node. Credentials go nowhere else."""
        if not uri.startswith("/") or uri.startswith("//"):
            raise ConnectError("the cluster manager refers to another host", node=self._node)
        return uri

    def get(self, path: str) -> Answer:
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
                return Answer(
                    self._node,
                    shown,
                    response.status_code,
                    headers.get("Content-Type", ""),
                    headers.get("Location", ""),
                    bytes(body),
                )
        except requests.RequestException as error:
            raise self._no_answer(shown, error, _root_cause(error, outside)) from error
        except OSError as error:
            # Not a RequestException: requests could not read the certificates it was told to use.
            raise ConfigurationError(
                f"cannot use the certificates: {strip_userinfo(str(error))}",
                hint="check the paths of verify and cert",
            ) from error

    def _no_answer(self, path: str, error: requests.RequestException, root: BaseException) -> ConnectError:
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


def _basic(authenticator: Authenticator) -> Callable[[requests.PreparedRequest], requests.PreparedRequest]:
    """HTTP Basic in UTF-8; ``requests`` itself would encode as Latin-1.

    Always a callable, also without credentials: ``requests`` looks into ``~/.netrc`` otherwise.
    """
    credentials = authenticator.credentials()

    def sign(request: requests.PreparedRequest) -> requests.PreparedRequest:
        if credentials is not None:
            token = base64.b64encode(":".join(credentials).encode()).decode()
            request.headers["Authorization"] = f"Basic {token}"
        return request

    return sign
