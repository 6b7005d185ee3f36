"""The data source: streams a bucket, or some of its vbuckets, into a receiver."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Self

import numpy as np

from cbframe.cluster.auth import Authenticator, AuthLike, as_authenticator
from cbframe.cluster.cluster_map import ClusterMap
from cbframe.cluster.connection_string import parse_connection_string
from cbframe.cluster.tls import TLSLike
from cbframe.dcp import plan, verdicts
from cbframe.dcp.connection import DcpConnection
from cbframe.dcp.controls import DcpSettings, connection_name, rate_of, stream_flags, window_of
from cbframe.dcp.coordinator import Coordinator
from cbframe.dcp.handshake import Login
from cbframe.dcp.maps import MapFollower, MapSource, make_login, with_credentials
from cbframe.dcp.node import NodeSetup, NodeThread
from cbframe.dcp.positions import Position
from cbframe.dcp.receiver import BlockReceiver, DeferringReceiver, Receiver, taker_of_blocks
from cbframe.dcp.records import VBucketTable, Window, take_table
from cbframe.dcp.stats import BucketDataSourceStats, ClusterCounters, NodeStats
from cbframe.dcp.streams import VBucketState
from cbframe.dcp.supervisor import Supervisor
from cbframe.dcp.timers import Timeouts
from cbframe.dcp.transport import Dialer, SocketTransport, Transport
from cbframe.errors import (
    AccessError,
    AuthFailError,
    CbframeError,
    ConfigurationError,
    ProtocolError,
    ReadCancelledError,
    ReadTimeoutError,
    ResourceError,
)
from cbframe.options import BucketDataSourceOptions
from cbframe.public import public
from cbframe.system import waited
from cbframe.typing import ServerURLs
from cbframe.wire.messages import StreamFilter

PROBLEMS = 20
"""How many problems are kept."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that went wrong, and that the source may have got over.

    The words of an error without the error: that one holds on to all that was at hand where it came from.
    """

    at: float  # seconds of the source's clock
    kind: str  # name of the error's class
    message: str  # as of CbframeError
    hint: str | None = None
    node: str | None = None
    vbucket: int | None = None


class SourceView:
    """The part of a data source that only looks. Nothing here waits, or holds anyone up."""

    _coordinator: Coordinator
    _supervisor: Supervisor
    _counters: ClusterCounters
    _map_counters: ClusterCounters
    _calls: ClusterCounters
    _stats: dict[str, NodeStats]
    _problems: deque[Problem]
    _times: dict[str, int]
    _options: BucketDataSourceOptions
    _login: Login
    _clock: Callable[[], float]

    @property
    def bucket(self) -> str:
        """Name of the bucket."""
        return self._login.bucket

    def stats(self) -> BucketDataSourceStats:
        """Counters at this moment."""
        return BucketDataSourceStats(
            (self._counters, self._map_counters, self._calls),
            dict(self._stats),
            vbuckets=self._coordinator.vbuckets,
            vbuckets_done=len(self._coordinator.done),
            at=self._clock(),
        )

    def vbucket_states(self) -> dict[int, VBucketState]:
        """The streams at this moment, by vbucket; those that wait or are done have none."""
        states: dict[int, VBucketState] = {}
        for node in list(self._supervisor.nodes.values()):
            states |= node.streams()
        return dict(sorted(states.items()))

    def vbucket_table(self) -> VBucketTable:
        """All vbuckets at this moment, as columns: for looking at them often."""
        coordinator = self._coordinator
        nodes = list(self._supervisor.nodes.values())
        wanted, high_seqnos = coordinator.look()
        return take_table(
            coordinator.map,
            placement=coordinator.placement,
            wanted=wanted,
            done=list(coordinator.done.items()),
            ends=dict(coordinator.ends),
            high_seqnos=high_seqnos,
            streams=[stream for node in nodes for stream in node.open_streams()],
        )

    def sample_seqnos(self) -> None:
        """Have the nodes tell how far their vbuckets are; :meth:`vbucket_table` knows it soon after.

        For a source without an end, which has no other way to know what it lacks.
        """
        for node in list(self._supervisor.nodes.values()):
            node.sample()

    @property
    def bounded(self) -> bool:
        """Whether the streams have an end."""
        return self._options.seq_end is not None

    def windows(self) -> dict[str, Window]:
        """The flow-control window of each connection, by its name."""
        size = window_of(self._options)
        return {address: Window(node.held(), size) for address, node in list(self._supervisor.nodes.items())}

    def problems(self) -> tuple[Problem, ...]:
        """What went wrong last, oldest first; no more than :data:`PROBLEMS`."""
        return tuple(self._problems)

    def trace(self) -> dict[str, list[str]]:
        """What happened last on each connection, by its name; oldest first."""
        return {address: node.trace.lines() for address, node in list(self._supervisor.nodes.items())}

    def progress(self) -> tuple[int, int]:
        """Seqnos received and wanted of a bounded source, summed over its vbuckets."""
        ends = dict(self._coordinator.ends)
        if not ends:
            return 0, 0
        done = set(self._coordinator.done)
        reached = sum(ends.get(vb, 0) for vb in done)
        vbuckets = np.array([vb for vb in ends if vb not in done], np.intp)
        limits = np.array([ends[vb] for vb in vbuckets.tolist()], np.uint64)
        for node in list(self._supervisor.nodes.values()):
            reached += int(np.minimum(node.seqnos(vbuckets), limits).sum())
        return reached, sum(ends.values())

    @property
    def map(self) -> ClusterMap | None:
        """The newest cluster map."""
        return self._coordinator.map

    @property
    def high_seqnos(self) -> dict[int, int]:
        """High seqnos by vbucket, as the nodes last reported."""
        return self._coordinator.high_seqnos

    @property
    def node_time(self) -> int | None:
        """The latest time of day that a node has reported, in seconds since the epoch.

        None if none has: nodes are asked with ``ask_time``, and tell it to users who may see statistics.
        """
        return max(list(self._times.values()), default=None)

    @property
    def wanted(self) -> list[int]:
        """The vbuckets to be streamed; none before there is a cluster map."""
        return self._coordinator.look()[0]

    def seqno_reports(self) -> dict[str, tuple[int, Mapping[int, int]]]:
        """By connection, how often its node has reported its high seqnos, and the last report."""
        return self._coordinator.reports()

    def connection_of(self, vbucket: int) -> str | None:
        """Name of the connection that a wanted vbucket belongs to; None while no node has it."""
        placement = self._coordinator.placement
        return None if placement is None else placement.connection_of(vbucket)

    @property
    def as_of(self) -> dict[int, Position]:
        """Where each finished vbucket is complete: the end of its last snapshot."""
        return dict(sorted(self._coordinator.done.items()))

    def _note(self, error: CbframeError) -> None:
        """Keep a problem; the last one may be reported twice, to the receiver and as the end of all."""
        problem = Problem(
            self._clock(), type(error).__name__, error.message, error.hint, error.node, error.vbucket
        )
        if not self._problems or replace(problem, at=self._problems[-1].at) != self._problems[-1]:
            self._problems.append(problem)


UPDATE_SECURITY_SETTINGS = plan.UPDATE_SECURITY_SETTINGS
"""Reason for :meth:`BucketDataSource.kick`: certificates or authorities are others now."""


class BucketDataSource(SourceView):
    """Streams the vbuckets of a bucket into a receiver, over all nodes, through all changes.

    Parameters
    ----------
    server_urls
        Seeds: ``couchbase://h1,h2``, ``couchbases://…``, or ``http://h:8091`` (string or list).
    pool_name
        ``"default"``; kept from the reference.
    bucket_name
        The bucket.
    bucket_uuid
        Refuse a bucket of this name with another uuid; empty to take any.
    vbucket_ids
        The vbuckets to stream; None for all.
    auth
        ``(user, password)``, an authenticator (of passwords or certificates), or a callable that gives
        one: it is called for each connection and each look at the map, on any thread, so that a
        password that was changed meanwhile is taken up. (A client certificate is read once.)
    receiver
        A :class:`~cbframe.dcp.receiver.Receiver`,
        :class:`~cbframe.dcp.receiver.BlockReceiver` or
        :class:`~cbframe.dcp.receiver.DeferringReceiver`.
    options
        See :class:`~cbframe.options.BucketDataSourceOptions`.
    tls_context
        As ``tls=`` of :func:`cbframe.scan_bucket`.
    network
        Which addresses of the nodes to use: ``"default"`` for their own, or the name of alternate ones,
        such as ``"external"``. ``"auto"`` takes what the connection string says, or else the network
        on which a node has the seed's host and port, or its host; if the seed is no node, ``"external"``
        where all nodes are on it.
    first_map
        The cluster map to begin with, where one was fetched a moment ago; None to fetch it. Not with the
        option ``connect_bucket``.
    transport, clock
        Stand-ins for tests.

    Raises
    ------
    ConfigurationError
        An argument is missing or cannot be meant. Nothing is connected before :meth:`start`.
    """

    def __init__(
        self,
        server_urls: ServerURLs,
        pool_name: str,
        bucket_name: str,
        bucket_uuid: str,
        vbucket_ids: Iterable[int] | None,
        auth: AuthLike,
        receiver: Receiver | BlockReceiver | DeferringReceiver,
        options: BucketDataSourceOptions | None = None,
        *,
        tls_context: TLSLike = None,
        network: str = "auto",
        first_map: ClusterMap | None = None,
        transport: Transport | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        _check_arguments(server_urls, pool_name, bucket_name, receiver)
        target = parse_connection_string(server_urls).on_network(network)
        options = target.with_options(options or BucketDataSourceOptions())
        authenticator = as_authenticator(auth)
        self._options = options
        self._log = options.logger or logging.getLogger("cbframe.dcp")
        self._receiver = taker_of_blocks(receiver)
        self._authenticated = authenticator
        self._dialer = Dialer(options, tls_context, authenticator, target, by_hand=transport)
        self._transport = transport = self._dialer.transport()
        self._clock = clock
        # One for each thread that counts: the supervisor's, the one that fetches maps, the callers'.
        self._counters, self._map_counters, self._calls = (ClusterCounters() for _ in range(3))
        self._login = make_login(
            target, authenticator, bucket_name, self._dialer.context, allow_plain=options.allow_plain
        )
        self._auth = auth if callable(auth) else None
        self._refused: set[str] = set()
        self._maps = MapSource(
            target,
            self._login,
            authenticator,
            bucket_uuid=bucket_uuid,
            transport=transport,
            clock=clock,
            timeout=options.connect_timeout,
            tls_context=self._dialer.context,
            connect_bucket=options.connect_bucket,
            counters=self._map_counters,
            proxies=options.proxies,
            renew=None if self._auth is None else self._authenticator,
        )
        self._first_map = None if options.connect_bucket else first_map
        self._wanted = StreamFilter(options.collections, options.scope_id, options.stream_id)
        self._calls_lock = threading.Lock()
        self._coordinator = Coordinator(vbucket_ids, options, self._counters)
        self._supervisor = Supervisor(
            self._coordinator,
            fetch_map=self._fetch_map,
            cancel_fetch=self._maps.cancel,
            make_node=self._make_node,
            on_error=self._report,
            on_over=self._on_over,
            on_begin=self._on_begin,
            on_end=self._on_end,
            clock=clock,
            counters=self._counters,
        )
        self._target = target
        self._follower: MapFollower | None = None
        self._stats: dict[str, NodeStats] = {}
        self._problems: deque[Problem] = deque(maxlen=PROBLEMS)
        self._times: dict[str, int] = {}
        self._life = ""
        self._over = threading.Event()
        self.on_finished: Callable[[], None] | None = None
        """Called when there is nothing more to come, on a thread of the source."""
        self._error: CbframeError | None = None

    def __repr__(self) -> str:
        return (
            f"<BucketDataSource {self._login.bucket!r} {self._life or 'new'}: "
            f"{len(self._coordinator.done)} of {self._coordinator.vbuckets} vbuckets done>"
        )

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @public
    def start(self) -> None:
        """Begin to stream, and return at once.

        Raises
        ------
        ConfigurationError
            It was started before.
        ResourceError
            There is no thread for it: it is as if it had not been called.
        """
        with self._calls_lock:
            self._calls.tot_start += 1
            if self._life:
                raise ConfigurationError(f"the data source is {self._life}: it can be started once")
            self._life = "running"
            try:
                self._supervisor.start()
            except ResourceError:
                self._life = ""
                raise

    def kick(self, reason: str) -> None:
        """Have the cluster map looked at afresh; does nothing unless the source runs.

        Parameters
        ----------
        reason
            For the log. :data:`UPDATE_SECURITY_SETTINGS` has all connections made again, with what
            ``tls_config`` gives now.
        """
        if self._life != "running":
            return
        with self._calls_lock:
            self._calls.tot_kick += 1
        self._log.debug("kicked: %s", reason)
        if reason == UPDATE_SECURITY_SETTINGS and self._dialer.by_hand is None:
            self._dialer.renew()
            self._transport = self._dialer.transport()
            self._maps.secure(self._transport, self._dialer.context)
        self._supervisor.post(plan.Kicked(reason))

    @public
    def wait(self, timeout: float | None = None) -> None:
        """Wait until a bounded source is complete.

        Parameters
        ----------
        timeout
            Seconds; None waits as long as it takes.

        Raises
        ------
        ReadTimeoutError
            The time is over; the source goes on until it is closed.
        CbframeError
            What ended the source before it was complete.
        """
        if not self._life:
            raise ConfigurationError("the data source was not started: there is nothing to wait for")
        if not waited(self._over.wait, timeout):
            done, wanted = len(self._coordinator.done), self._coordinator.vbuckets
            raise ReadTimeoutError(f"{done} of {wanted} vbuckets are complete after {timeout:g} s")
        if self._error is not None:
            # Without the frames of the thread that met it.
            raise self._error.with_traceback(None)

    @property
    def finished(self) -> bool:
        """Whether a bounded source is complete, or any source has failed."""
        return self._over.is_set()

    @property
    def state(self) -> str:
        """``new``, ``running``, ``complete``, ``failed`` or ``closed``."""
        if self._over.is_set() and not isinstance(self._error, ReadCancelledError):
            return "complete" if self._error is None else "failed"
        return self._life or "new"

    def close(self) -> None:
        """End all threads and sockets, and wait for them. May be called again, and from any thread.

        A callback runs on one of those threads: there, it does not wait.
        """
        self._life = "closed"
        self._maps.cancel()
        self._supervisor.close()

    def _make_follower(self) -> MapFollower | None:
        """Where maps come from cluster managers, and nobody has put something in their place."""
        options = self._options
        by_hand = self._dialer.by_hand is not None or options.connect_bucket is not None
        if self._target.bootstrap == "kv" or by_hand or options.proxies or not options.map_streaming:
            return None
        return MapFollower(
            self._target,
            self._login.bucket,
            lambda: self._authenticated if self._auth is None else self._authenticator(),
            options,
            transport=lambda: SocketTransport(self._dialer.context),
            on_config=self._on_config,
            on_error=self._report,
            clock=self._clock,
        )

    # -- called by the threads

    def _on_begin(self) -> None:
        # On the thread that ends what begins here: Ctrl-C comes to another.
        self._maps.open()
        self._follower = self._make_follower()
        if self._follower is not None:
            self._follower.start()

    def _on_end(self) -> None:
        self._maps.close()
        if self._follower is not None:
            self._follower.close()

    def _fetch_map(self) -> plan.Event:
        first, self._first_map = self._first_map, None
        if first is not None and self._maps.adopt(first):
            return plan.MapFetched(first)
        newest = self._coordinator.map
        try:
            return plan.MapFetched(self._maps.fetch(() if newest is None else newest.nodes))
        except CbframeError as exc:
            return plan.MapFailed(exc)

    def _make_node(self, address: str) -> NodeThread:
        options = self._options
        stats = self._stats.setdefault(address, NodeStats())
        settings = DcpSettings.of(
            options,
            connection_name(options.name),
            takes_compressed=getattr(self._receiver, "takes_compressed", False),
        )
        setup = NodeSetup(
            transport=self._transport,
            receiver=self._receiver,
            make_connection=lambda stats: DcpConnection(
                self._fresh_login(),
                settings,
                ack_threshold=options.feed_buffer_ack_threshold,
                max_body=options.max_body_bytes,
                stats=stats,
                paced=options.max_bytes_per_sec is not None,
            ),
            post=self._post,
            on_config=self._on_config,
            on_push=self._on_push,
            on_time=self._times.__setitem__,
            on_error=self._report,
            clock=self._clock,
            timeouts=Timeouts.of(options),
            buffer_bytes=options.receive_buffer_bytes,
            max_body=options.max_body_bytes,
            receive_bytes=options.receive_bytes,
            receive_latency=options.receive_latency,
            wanted=self._wanted,
            stream_flags=stream_flags(options),
            trace_capacity=options.trace_capacity,
            logger=self._log,
            max_rate=rate_of(options),
        )
        return NodeThread(address, setup, stats)

    def _authenticator(self) -> Authenticator:
        return as_authenticator(self._auth)

    def _fresh_login(self) -> Login:
        return self._login if self._auth is None else with_credentials(self._login, self._authenticator())

    def _post(self, event: plan.Event) -> None:
        match event:
            case plan.NodeReady(node=node):
                self._refused.discard(node)
            case plan.NodeDown(node=node, error=AuthFailError() as error) if (
                self._auth is not None and node not in self._refused
            ):
                # The password may have been changed between our question and the node's.
                self._refused.add(node)
                error.permanent = False
        self._supervisor.post(event)

    def _on_config(self, node: str, body: bytes) -> None:
        pushed = self._maps.parse_pushed(node, body)
        if pushed is not None:
            self._supervisor.post(plan.MapFetched(pushed, pushed=True))

    def _on_push(self, node: str, revision: tuple[int, int], body: bytes) -> None:
        """A node has another map, and tells all its connections: most of them are not the first."""
        known = self._coordinator.map
        if known is not None and revision <= known.revision:
            return
        pushed = self._maps.parse_pushed(node, body) if body else None
        if pushed is not None:
            self._supervisor.post(plan.MapFetched(pushed, pushed=True))
            return
        if body:
            self._report(ProtocolError("the node pushed a cluster map that cannot be read", node=node))
        self._supervisor.post(plan.Kicked(f"{node} has a newer cluster map"))

    def _report(self, error: CbframeError) -> None:
        if isinstance(error, ReadCancelledError):
            return
        self._note(error)
        try:
            self._receiver.on_error(error)
        except Exception:  # noqa: BLE001 - advisory: a listener that fails must not stop the source
            self._log.exception("the receiver's on_error raised")

    def _on_over(self, error: CbframeError | None) -> None:
        if isinstance(error, AccessError) and error.hint is None:
            # The node says only that something was refused. What the user may see tells why.
            try:
                seen = self._maps.fetch_manifest()
            except CbframeError:
                seen = None
            error.hint = verdicts.access_hint(self._wanted, seen)
        self._error = error
        if error is not None and not isinstance(error, ReadCancelledError):
            self._note(error)
        self._over.set()
        if self.on_finished is not None:
            self.on_finished()


def _check_arguments(server_urls: object, pool_name: str, bucket_name: str, receiver: object) -> None:
    """Refuse what the reference refuses, in its order."""
    if not server_urls:
        raise ConfigurationError("missing at least 1 serverURL")
    if not pool_name:
        raise ConfigurationError("missing poolName")
    if not bucket_name:
        raise ConfigurationError("missing bucketName")
    if receiver is None:
        raise ConfigurationError("missing receiver")
