"""The cluster manager over HTTP: the seeds in turn.

A call opens a session and closes it; a ``with`` block around several calls lets them share one.
Either way none is left open, and a password that changes is used from the next call on. Only this
module and the two under it, ``manager`` and ``https``, load ``requests``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self, TypeVar

import requests
from requests.adapters import HTTPAdapter

from cbframe.cluster.answers import mappings_field
from cbframe.cluster.auth import Authenticator, AuthLike, as_authenticator
from cbframe.cluster.cluster_map import ClusterMap, parse_bucket_config
from cbframe.cluster.connection_string import HostPort, parse_connection_string
from cbframe.cluster.https import ContextAdapter
from cbframe.cluster.manager import Manager, Terms, basic_auth, scram_auth
from cbframe.cluster.manifest import Manifest
from cbframe.cluster.proxy import proxy_for, tunnel
from cbframe.cluster.seeds import first_success
from cbframe.cluster.tls import TLSContext, TLSLike, client_context
from cbframe.errors import ConfigurationError
from cbframe.options import BucketDataSourceOptions
from cbframe.public import public

_T = TypeVar("_T")
MAX_ANSWER_BYTES = 64 << 20
"""The largest real answer, all buckets of a big cluster, is a few MiB."""


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
        self._sign = scram_auth if scram else basic_auth
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

    def manifest(self, bucket: str) -> Manifest:
        """The scopes and collections of a bucket; raises as :meth:`bucket_config`."""
        return self._any_seed(lambda node: Manifest.parse(node.manifest(bucket)))

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
                tunnel(adapter.poolmanager, self._proxy)
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
