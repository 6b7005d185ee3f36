"""Where the cluster map comes from: any seed, over REST or over the data service.

:class:`MapSource` fetches, over all seeds and known nodes in turn; :class:`MapFollower` has cluster managers
send each new map. A data node that has no bucket of the name may be starting: whether the bucket exists at
all, cluster managers are asked (:func:`absence`).
"""

from __future__ import annotations

import ipaddress
import json
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from functools import partial
from itertools import cycle
from secrets import token_hex
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

from cbframe.cluster.answers import ConfigFeed, feed_request, uuid_mismatch
from cbframe.cluster.auth import Authenticator, AuthLike, as_authenticator
from cbframe.cluster.cluster_map import (
    AUTO_NETWORK,
    ClusterMap,
    parse_bucket_config,
    read_nodes,
    select_network,
)
from cbframe.cluster.collections_manifest import CollectionsManifest
from cbframe.cluster.connection_string import (
    ConnectionString,
    HostPort,
    Lookup,
    Seeds,
    bare_host,
    first_success,
    join_address,
    parse_connection_string,
)
from cbframe.cluster.tls import TLSContext, TLSLike
from cbframe.dcp.handshake import (
    Login,
    Steps,
    T,
    fetch_cluster_config,
    fetch_config,
    fetch_manifest,
    fetch_manifest_again,
)
from cbframe.dcp.stats import ClusterCounters
from cbframe.dcp.timers import Backoff
from cbframe.dcp.transport import Dialer, Line, Transport, Waker, run_cancellable, split_address
from cbframe.errors import (
    AllServerURLsConnectBucketError,
    AuthFailError,
    BucketNotFoundError,
    CbframeError,
    ClusterMapError,
    ConfigurationError,
    ConnectError,
    MapFault,
    ProtocolError,
    ReadCancelledError,
    ReadTimeoutError,
    ServerError,
)
from cbframe.options import BucketDataSourceOptions
from cbframe.public import ServerURLs
from cbframe.system import Event, OwnThread, allocate

if TYPE_CHECKING:
    from cbframe.cluster.rest import RestClient


_MANAGERS = 3
"""Cluster managers that are asked at most."""
_MANAGER_TIMEOUT = 2.0
"""Seconds for one of them: there is another attempt if none answers."""
_HEARTBEAT = 20
"""Seconds after which a manager that sends maps says something at the latest."""
_PAUSE = 0.2
"""Seconds until a node is asked again that does not have the bucket yet."""
_ASK_DNS_AGAIN = 5.0
"""Seconds after which DNS may be asked for the seeds again."""
_FAULTS: dict[MapFault, str] = {
    "other bucket": "tot_refresh_cluster_bucket_uuid_err",
    "no map": "tot_refresh_cluster_vbm_nil_err",
    "empty row": "tot_refresh_workers_server_idxs_err",
    "no such server": "tot_refresh_workers_master_idx_err",
    "nameless server": "tot_refresh_workers_master_server_err",
}


class BucketLike(Protocol):
    """What an own ``connect_bucket`` returns; :class:`cbframe.cluster.rest.Bucket` is one."""

    @property
    def uuid(self) -> str: ...
    @property
    def map(self) -> ClusterMap | None: ...


def make_login(
    target: ConnectionString,
    authenticator: Authenticator,
    bucket: str,
    context: TLSContext | None,
    *,
    allow_plain: bool,
) -> Login:
    """What the data service learns about who connects."""
    username, password = authenticator.credentials() or (None, "")
    # Whoever is not verified could be anyone, and would only have to refuse SCRAM to get the password.
    verified = context is not None and context.verify_mode == ssl.CERT_REQUIRED
    return Login(username, password, bucket, target.tls, allow_plain or verified, lambda: token_hex(16))


def with_credentials(login: Login, authenticator: Authenticator) -> Login:
    """The same login for another password."""
    username, password = authenticator.credentials() or (None, "")
    return replace(login, username=username, password=password)


class MapSource:
    """Fetches cluster maps and manifests, over all seeds in turn."""

    def __init__(
        self,
        target: ConnectionString,
        login: Login,  # the same credentials for the data service and for REST
        auth: Authenticator,
        options: BucketDataSourceOptions,
        *,
        transport: Transport,
        clock: Callable[[], float],
        tls_context: TLSContext | None = None,  # for REST over TLS: the one that the transport has too
        bucket_uuid: str = "",  # refuse a bucket of the same name with another uuid; empty to take any
        counters: ClusterCounters | None = None,  # to be moved
        renew: Callable[[], Authenticator] | None = None,  # gives credentials that may have changed
        lookup: Lookup | None = None,  # asks DNS for seeds, in place of dnspython
    ) -> None:
        self._seeds = Seeds(target, lookup)
        self._login = login
        self._auth = auth
        self._options = options
        self._timeout = options.connect_timeout
        self._transport = transport
        self._clock = clock
        self._tls_context = tls_context
        self._bucket_uuid = bucket_uuid
        self._counters = ClusterCounters() if counters is None else counters
        self._renew = renew
        self._network = target.network
        """The network chosen; before the first map, that of the connection string."""
        self._known_nodes: tuple[str, ...] = ()
        self._asked_at: float | None = None
        """When DNS was asked last."""
        self._waker: Waker | None = None
        self._line: Line | None = None
        """The connection that described the bucket, if it was kept."""

    @property
    def _target(self) -> ConnectionString:
        return self._seeds.target

    def open(self) -> None:
        """Take the file descriptors that :meth:`cancel` needs; before anything is fetched."""
        self._waker = Waker()

    def fetch(self, known: tuple[str, ...] = ()) -> ClusterMap:
        """The map of the first seed that has one."""
        self._known_nodes = known or self._known_nodes
        self._renew_credentials()
        try:
            found = self._fetch_anywhere()
        except AuthFailError:
            if not self._renew_credentials():
                raise
            found = self._fetch_anywhere()
        self._known_nodes = found.nodes
        return found

    def adopt(self, found: ClusterMap) -> bool:
        """Go on from a map that was fetched elsewhere; False if it is of another bucket of this name."""
        if self._bucket_uuid and found.uuid != self._bucket_uuid:
            return False
        self._network, self._known_nodes = found.network, found.nodes
        return True

    def _ask_dns(self) -> bool:
        """Ask DNS for the seeds; whether they are others now."""
        if self._seeds.name is None:
            return False
        self._asked_at = self._clock()
        return self._run_cancellable(lambda: self._seeds.ask(self._timeout))

    def _fetch_anywhere(self) -> ClusterMap:
        if (connect := self._options.connect_bucket) is not None:
            return self._over_urls(partial(self._fetch_by_hand, connect))
        if self._target.bootstrap == "rest":
            return self._over_urls(self._fetch_over_rest)
        return self._over_seeds(self._counted(self._fetch_from))

    def _renew_credentials(self) -> bool:
        """Ask for the credentials again; whether they are others than before."""
        before = self._auth
        if self._renew is not None:
            self._auth = self._renew()
            self._login = with_credentials(self._login, self._auth)
        return self._auth != before

    def fetch_manifest(self) -> CollectionsManifest | None:
        """The collections of the bucket; None where the server has no collections."""
        return self.describe()[1]

    def describe(self, *, keep: bool = False) -> tuple[ClusterMap, CollectionsManifest | None]:
        """The map of the bucket, and its collections as :meth:`fetch_manifest` gives them.

        With `keep` the connection stays open for :meth:`manifest_again`.
        """
        if self._target.bootstrap == "rest":
            return self._run_cancellable(self._describe_over_rest)

        def attempt(node: str) -> tuple[ClusterMap, CollectionsManifest | None]:
            self._hang_up()
            self._line = self.connect(node)
            config, data = self._line.run(fetch_manifest(self._login))
            return self._parse_json(node, config), None if data is None else CollectionsManifest.parse(data)

        try:
            return self._over_seeds(attempt)
        finally:
            if not keep:
                self._hang_up()

    def manifest_again(self) -> CollectionsManifest | None:
        """As :meth:`fetch_manifest`, over the connection that was kept if it is still good."""
        if self._line is not None:
            with suppress(CbframeError):  # whatever is wrong with it, or with the question, shows again
                data = self._line.run(fetch_manifest_again())
                return None if data is None else CollectionsManifest.parse(data)
        return self.fetch_manifest()

    def query(self, node: str, steps: Callable[[Login], Steps[T]], waker: Waker) -> T:
        """Ask a node something else, over a connection of its own; from any thread."""
        try:
            return self._ask(node, steps(self._login), waker)
        except CbframeError as exc:
            exc.node = exc.node or node
            raise

    def parse_pushed(self, node: str, body: bytes) -> ClusterMap | None:
        """The map that came with NOT_MY_VBUCKET; None if it is none: then one is fetched."""
        try:
            return self._parse_json(node, body)
        except CbframeError:
            return None

    def cancel(self) -> None:
        """End a fetch that is under way on another thread."""
        if self._waker is not None:
            self._waker.wake()

    def close(self) -> None:
        self._hang_up()
        if self._waker is not None:
            self._waker.close()

    def _hang_up(self) -> None:
        if self._line is not None:
            self._line.close()
        self._line = None

    def secure(self, transport: Transport, tls_context: TLSContext | None) -> None:
        """Connect in another way from now on."""
        self._transport, self._tls_context = transport, tls_context

    def _rest(self, *urls: str) -> RestClient:
        from cbframe.cluster.rest import RestClient  # noqa: PLC0415 - requests is slow to import

        return RestClient(
            list(urls or self._target.urls()),
            self._auth,
            timeout=self._timeout,
            tls_context=self._tls_context,
            proxies=self._options.proxies,
        )

    def _run_cancellable(self, work: Callable[[], T]) -> T:
        """For requests over HTTP, and for DNS."""
        assert self._waker is not None, "open() comes first"
        return run_cancellable(work, "cbframe-rest", self._waker, None, "the cluster manager was asked")

    def _over_urls(self, attempt: Callable[[str], ClusterMap]) -> ClusterMap:
        """The map of the first URL that has one."""
        urls = self._target.urls()
        return self._run_cancellable(lambda: first_success(urls, self._counted(attempt)))

    def _fetch_by_hand(self, connect: Callable[..., BucketLike], url: str) -> ClusterMap:
        try:
            bucket = connect(url, "default", self._login.bucket, self._auth)
        except CbframeError:
            raise
        except Exception as exc:
            raise ConnectError(f"connect_bucket raised {type(exc).__name__}") from exc
        if self._bucket_uuid and bucket.uuid != self._bucket_uuid:
            raise uuid_mismatch(url)
        if bucket.map is None:
            raise ClusterMapError("connect_bucket gave a bucket without a map", fault="no map")
        return bucket.map

    def _fetch_over_rest(self, url: str) -> ClusterMap:
        with self._rest(url) as client:
            config, origin = client.bucket_config(self._login.bucket, bucket_uuid=self._bucket_uuid or None)
        return self._parse(config, origin)

    def _counted(self, attempt: Callable[[str], ClusterMap]) -> Callable[[str], ClusterMap]:
        counters = self._counters

        def counting(seed: str) -> ClusterMap:
            try:
                found = attempt(seed)
            except CbframeError as exc:
                counters.tot_refresh_cluster_connect_bucket_err += 1
                if isinstance(exc, ClusterMapError) and exc.fault is not None:
                    counters.count(_FAULTS[exc.fault])
                raise
            counters.tot_refresh_cluster_connect_bucket_ok += 1
            return found

        return counting

    def _describe_over_rest(self) -> tuple[ClusterMap, CollectionsManifest | None]:
        with self._rest() as client:
            config, origin = client.bucket_config(self._login.bucket)
            found = self._parse(config, origin)
            return found, client.manifest(self._login.bucket) if found.collections else None

    def _fetch_from(self, node: str) -> ClusterMap:
        return self._parse_json(node, self._ask(node, fetch_config(self._login)))

    def _parse_json(self, node: str, body: bytes) -> ClusterMap:
        try:
            config = json.loads(body)
        except (ValueError, RecursionError) as exc:
            raise ProtocolError("the cluster map is no JSON", node=node) from exc
        if not isinstance(config, dict):
            raise ProtocolError("the cluster map is no JSON object", node=node)
        return self._parse(config, HostPort(*split_address(node)))

    def _parse(self, config: dict[str, Any], origin: HostPort) -> ClusterMap:
        try:
            found = self._parse_on(self._network, config, origin)
        except CbframeError as exc:
            exc.node = exc.node or str(origin)
            raise
        if self._bucket_uuid and found.uuid != self._bucket_uuid:
            raise uuid_mismatch(str(origin))
        # What was chosen stays: a node that joins without an alternate address is no reason to leave all.
        self._network = found.network
        return found

    def _parse_on(self, network: str, config: dict[str, Any], origin: HostPort) -> ClusterMap:
        try:
            return parse_bucket_config(config, origin=origin, network=network, tls=self._login.tls)
        except ConfigurationError:
            if network == self._target.network:
                raise
        return self._parse_on(self._target.network, config, origin)  # no node is on the one chosen

    def _ask(self, node: str, steps: Steps[T], waker: Waker | None = None) -> T:
        with closing(self.connect(node, waker)) as line:
            return line.run(steps)

    def connect(self, node: str, waker: Waker | None = None) -> Line:
        """A connection for questions."""
        waker = waker or self._waker
        assert waker is not None, "open() comes first"
        return Line(node, transport=self._transport, waker=waker, clock=self._clock, timeout=self._timeout)

    def _over_seeds(self, attempt: Callable[[str], T]) -> T:
        """What comes of the first seed or node with which it works; DNS is asked again if none answers."""
        if self._asked_at is None:
            self._ask_dns()
        try:
            return self._over_nodes(attempt)
        except CbframeError as exc:
            if isinstance(exc, ConnectError):
                self._seeds.explain(exc)
            silent = type(exc) in (ConnectError, AllServerURLsConnectBucketError, ReadTimeoutError)
            asked_at = self._asked_at
            if not silent or asked_at is None or self._clock() < asked_at + _ASK_DNS_AGAIN:
                raise
            if not self._ask_dns():
                raise
        return self._over_nodes(attempt)

    def _over_nodes(self, attempt: Callable[[str], T]) -> T:
        seeds = [str(seed) for seed in self._target.seeds()]
        nodes = [*seeds, *(node for node in self._known_nodes if node not in seeds)]
        without_bucket: list[str] = []

        def named(node: str) -> T:
            try:
                return attempt(node)
            except CbframeError as exc:
                exc.node = exc.node or node
                if isinstance(exc, BucketNotFoundError) and not exc.permanent:
                    without_bucket.append(node)
                raise

        try:
            return named(nodes[0]) if len(nodes) == 1 else first_success(nodes, named)
        except CbframeError:
            if without_bucket and (error := self.absence(without_bucket[-1])) is not None:
                raise error from None
            raise

    def absence(self, node: str) -> BucketNotFoundError | None:
        """The error of a bucket that does not exist, where a data node has none of its name.

        None if it exists, or nobody knows: then another attempt may find it.
        """
        try:
            config = self._ask(node, fetch_cluster_config(self._login))
        except ReadCancelledError:
            raise
        except CbframeError:
            return None
        return self._run_cancellable(
            lambda: absence(
                config,
                HostPort(*split_address(node)),
                self._login,
                self._auth,
                network=self._target.network,
                tls_context=self._tls_context,
                timeout=self._timeout,
            )
        )


def absence(
    config: bytes,  # the configuration of the whole cluster, from the data node at `origin`
    origin: HostPort,
    login: Login,
    auth: Authenticator,
    *,
    network: str = AUTO_NETWORK,
    tls_context: TLSContext | None = None,
    timeout: float = _MANAGER_TIMEOUT,
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
        client = RestClient(
            urls, auth, timeout=min(timeout, _MANAGER_TIMEOUT), tls_context=tls_context, scram=scram
        )
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


class MapFollower:
    """Has every new configuration of a bucket from any of its cluster managers."""

    def __init__(
        self,
        target: ConnectionString,  # the managers, taken in turn whenever a connection ends
        bucket: str,  # whose configurations
        auth: Callable[[], Authenticator],  # gives the credentials of each connection
        options: BucketDataSourceOptions,  # how long a connection may take, and the waits between two of them
        *,
        transport: Callable[[], Transport],  # connects to the managers
        on_config: Callable[[str, bytes], None],  # called with the manager's `host:port` and the JSON
        on_error: Callable[[CbframeError], None],  # called with each problem
        clock: Callable[[], float],  # monotonic seconds
    ) -> None:
        self._managers = tuple(str(seed) for seed in target.seeds())
        self._bucket = bucket
        self._auth = auth
        self._transport = transport
        self._on_config = on_config
        self._on_error = on_error
        self._timeout = options.connect_timeout
        self._backoff = map_backoff(options)
        self._clock = clock
        self._closing = Event()
        self._buffer = allocate(64 * 1024)
        self._waker = Waker()
        self._thread = OwnThread(self._run, "cbframe-config")

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """End the thread, and wait for it."""
        self._closing.set()
        self._waker.wake()
        self._thread.join()
        self._waker.close()

    def _run(self) -> None:
        for manager in cycle(self._managers):
            try:
                self._follow(manager)
            except ReadCancelledError:
                pass
            except CbframeError as exc:
                exc.node = exc.node or manager
                self._on_error(exc)
            if self._closing.wait(self._backoff.next_delay()):
                return

    def _follow(self, manager: str) -> None:
        stream = self._transport().connect(manager, self._waker, self._timeout)
        try:
            stream.send_all(feed_request(manager, self._bucket, self._auth(), _HEARTBEAT), self._timeout)
            feed = ConfigFeed(manager)
            view = memoryview(self._buffer)
            heard = self._clock()
            while not self._closing.is_set():
                count = stream.receive_into(view)
                if count == 0:
                    raise ConnectError("the cluster manager closed the connection", node=manager)
                if count:
                    heard = self._clock()
                    for config in feed.receive(view[:count]):
                        self._backoff.reset()
                        self._on_config(manager, config)
                    continue
                left = heard + 2 * _HEARTBEAT - self._clock()
                if left <= 0:
                    raise ReadTimeoutError(
                        f"the cluster manager was silent for {2 * _HEARTBEAT} s", node=manager
                    )
                stream.wait(left)
        finally:
            stream.close()


def map_backoff(options: BucketDataSourceOptions) -> Backoff:
    """The waits for a cluster map."""
    return Backoff(
        options.cluster_manager_sleep_init_ms,
        options.cluster_manager_backoff_factor,
        options.cluster_manager_sleep_max_ms,
    )


def when_loaded(
    attempt: Callable[[], T],
    seconds: float,
    *,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> T:
    """What `attempt` returns; it is called again, for `seconds`, while nodes do not have the bucket yet."""
    until = clock() + seconds
    late = False
    while True:
        try:
            return attempt()
        except CbframeError as exc:
            # A node that gets the bucket closes the connections that were without it.
            late = late or is_not_yet(exc)
            if not late or exc.permanent or clock() >= until:
                raise
        sleep(_PAUSE)


def is_not_yet(error: CbframeError) -> bool:
    """Whether a node answered, and says that another time may be better: it or the bucket is starting."""
    causes = (error, error.__cause__)
    return any(isinstance(e, BucketNotFoundError | ServerError) and not e.permanent for e in causes)


@contextmanager
def map_source(
    server_urls: ServerURLs,
    bucket: str,
    auth: AuthLike,
    options: BucketDataSourceOptions,
    tls: TLSLike = None,
    network: str = "auto",
    *,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[MapSource]:
    """Where the map and the collections of a bucket can be asked for, and the nodes themselves."""
    target = parse_connection_string(server_urls).on_network(network)
    authenticator = as_authenticator(auth)
    dialer = Dialer(options, tls, authenticator, target)
    source = MapSource(
        target,
        make_login(target, authenticator, bucket, dialer.context, allow_plain=options.allow_plain),
        authenticator,
        options,
        transport=dialer.transport(),
        clock=clock,
        tls_context=dialer.context,
    )
    source.open()
    try:
        yield source
    finally:
        source.close()
