"""The data source: streams a bucket, or some of its vbuckets, into a receiver.

:class:`BucketDataSource` is the part that users hold. It waits for the end, and reads what the threads have
written down of themselves.

:class:`Supervisor` is the thread that runs the coordinator, and starts and ends all other threads. It passes
messages to the coordinator one at a time and carries its instructions out. Maps are fetched on a thread of
their own: a seed that does not answer must not hold up the nodes. Whatever ends the run, this thread stops
and joins the others before it ends itself: a source that is closed has no threads or sockets.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, replace
from typing import Self

import numpy as np

from cbframe.cluster.auth import Authenticator, AuthLike, as_authenticator
from cbframe.cluster.cluster_map import ClusterMap
from cbframe.cluster.connection_string import ConnectionString, parse_connection_string
from cbframe.cluster.tls import TLSLike
from cbframe.dcp import messages
from cbframe.dcp.coordinator import Coordinator
from cbframe.dcp.handshake import Login, window_of
from cbframe.dcp.maps import MapFollower, MapSource, make_login, with_credentials
from cbframe.dcp.node import NodeThread
from cbframe.dcp.persistence import PersistedSeqnos, PersistencePoller
from cbframe.dcp.positions import VBucketOffset
from cbframe.dcp.receiver import BlockReceiver, DeferringReceiver, HoldingReceiver, Receiver, taker_of_blocks
from cbframe.dcp.stats import (
    BucketDataSourceStats,
    ClusterCounters,
    EventLog,
    EventLogLike,
    NodeStats,
    Problem,
    VBucketTable,
    Window,
    empty_table,
    vbucket_table,
)
from cbframe.dcp.streams import Stream, VBucketState
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
from cbframe.public import Closing, ServerURLs, public
from cbframe.system import Event, OwnThread, waited
from cbframe.wire.constants import Status, StreamEndReason
from cbframe.wire.messages import StreamFilter

PROBLEMS = 20
"""How many problems are kept."""
_REASONS = {int(each): each.name for each in StreamEndReason}


class Supervisor:
    """Runs a data source."""

    def __init__(
        self,
        target: ConnectionString,
        bucket: str,
        bucket_uuid: str,
        vbuckets: Iterable[int] | None,
        auth: AuthLike,
        receiver: BlockReceiver | DeferringReceiver,
        options: BucketDataSourceOptions,
        *,
        tls: TLSLike,
        first_map: ClusterMap | None,  # the cluster map to begin with, where there is one
        transport: Transport | None,
        clock: Callable[[], float],
        on_over: Callable[[], None],  # called once, after `over` is set
        event_log: EventLogLike | None = None,
    ) -> None:
        self.log = options.logger or logging.getLogger("cbframe.dcp")
        self._event_log = EventLog(event_log, bucket, self.log)
        self._target = target
        self._options = options
        self._receiver = receiver
        self._node_options = options
        if not getattr(receiver, "takes_compressed", False):
            self._node_options = replace(options, compression=False)
        self._clock = clock
        self._on_over = on_over
        # One for each thread that counts: this one, and the one that fetches maps.
        self.counters, self.map_counters = ClusterCounters(), ClusterCounters()
        self._authenticated = as_authenticator(auth)
        self._auth = auth if callable(auth) else None
        """Gives credentials that may be others each time."""
        self._refused: set[str] = set()
        """Connections that were refused with credentials that may have been changed just then."""
        self._dialer = Dialer(options, tls, self._authenticated, target, by_hand=transport)
        self._transport = self._dialer.transport()
        self.login = make_login(
            target, self._authenticated, bucket, self._dialer.context, allow_plain=options.allow_plain
        )
        self._maps = MapSource(
            target,
            self.login,
            self._authenticated,
            options,
            bucket_uuid=bucket_uuid,
            transport=self._transport,
            clock=clock,
            tls_context=self._dialer.context,
            counters=self.map_counters,
            renew=None if self._auth is None else self._authenticator,
        )
        self._first_map = None if options.connect_bucket else first_map
        self._follower: MapFollower | None = None
        self.coordinator = Coordinator(vbuckets, options, self.counters)
        """Touched by the supervisor's thread only, once started."""
        self._poller = self._make_poller(receiver) if options.only_persisted else None
        self.nodes: dict[str, NodeThread] = {}
        self.stats: dict[str, NodeStats] = {}
        self.problems: deque[Problem] = deque(maxlen=PROBLEMS)
        self.times: dict[str, int] = {}
        """By connection, the time of day that its node has reported."""
        self._histories: dict[int, int] = {}  # vbuuids by vbucket, as streams were granted
        self.over = Event()
        self.error: CbframeError | None = None
        """What ended the run before it was complete; set before `over`."""
        self._events: deque[messages.Event] = deque([messages.Started()])
        self._lock, self._arrived = threading.RLock(), Event()  # a signal handler may call kick()
        self._arrived.set()
        self._closing = False
        self._ended_for_good = False
        self._ended: list[NodeThread] = []
        self._fetcher: OwnThread | None = None
        self._thread = OwnThread(self._run, "cbframe-cluster")

    def _make_poller(self, receiver: BlockReceiver | DeferringReceiver) -> PersistencePoller:
        """What asks the nodes what they have on disk, and tells a receiver that holds the rest back."""
        seqnos = PersistedSeqnos(self._options, self._clock)
        poller = PersistencePoller(self._options, self, self._maps.connect, self._fresh_login, seqnos)
        if isinstance(receiver, HoldingReceiver):
            receiver.hold(seqnos.want)
            poller.on_persisted = receiver.on_persisted
        elif self._options.seq_end is None:
            raise ConfigurationError(
                "only_persisted: nothing holds back what the receiver is given",
                hint="stream_bucket(only_persisted=True) does; a source with seq_end= waits at its end",
            )
        return poller

    # -- callable from any thread

    def start(self) -> None:
        """Begin; ResourceError if there is no thread."""
        self._thread.start()

    def post(self, event: messages.Event) -> None:
        """Hand a message over."""
        match event:
            case messages.NodeReady(node=node):
                self._refused.discard(node)
            case messages.NodeDown(node=node, error=AuthFailError() as error) if (
                self._auth is not None and node not in self._refused
            ):
                # The password may have been changed between our question and the node's.
                self._refused.add(node)
                error.permanent = False
        with self._lock:
            if self._ended_for_good:
                self.coordinator.dismiss(event)
                return
            self._events.append(event)
            self._arrived.set()

    def renew_tls(self) -> None:
        """Make connections from now on with what ``tls_config`` gives now."""
        if self._dialer.by_hand is None:
            self._dialer.renew()
            self._transport = self._dialer.transport()
            self._maps.secure(self._transport, self._dialer.context)

    def close(self) -> None:
        """End all threads, and wait for them unless this is one of them."""
        self._maps.cancel()
        self._closing = True
        self._arrived.set()
        current = threading.current_thread()
        ours = {self._thread, self._fetcher, *(node.thread for node in list(self.nodes.values()))}
        if current not in ours:
            self._thread.join()
        if self._thread.ident is None and not self.over.is_set():
            self.error = ReadCancelledError("the data source was closed before it was started")
            self.over.set()
            self._on_over()

    def on_error(self, error: CbframeError) -> None:
        if isinstance(error, ReadCancelledError):
            return
        self._note(error)
        try:
            self._receiver.on_error(error)
        except Exception:  # advisory: a listener that fails must not stop the source
            self.log.exception("the receiver's on_error raised")

    def on_config(self, node: str, body: bytes) -> None:
        pushed = self._maps.parse_pushed(node, body)
        if pushed is not None:
            self.post(messages.MapFetched(pushed, pushed=True))

    def on_push(self, node: str, revision: tuple[int, int], body: bytes) -> None:
        # A node pushes its map over all its connections: most of them are not the first.
        known = self.coordinator.map
        if known is not None and revision <= known.revision:
            return
        pushed = self._maps.parse_pushed(node, body) if body else None
        if pushed is not None:
            self.post(messages.MapFetched(pushed, pushed=True))
            return
        if body:
            self.on_error(ProtocolError("the node pushed a cluster map that cannot be read", node=node))
        self.post(messages.Kicked(f"{node} has a newer cluster map"))

    def on_time(self, node: str, seconds: int) -> None:
        self.times[node] = seconds

    def on_history(self, node: str, stream: Stream, before: int) -> None:
        # After a rollback the receiver may know of none.
        vb, now = stream.vbucket, stream.vbuuid
        before, self._histories[vb] = self._histories.get(vb, before), now
        if before not in (0, now):
            self._event_log.write(
                "failover", node=node, vbucket=vb, vbuuid=f"{now:016x}", before=f"{before:016x}"
            )

    def _note(self, error: CbframeError) -> None:
        """Keep a problem; the last one may be reported twice, to the receiver and as the end of all."""
        problem = Problem(
            self._clock(), type(error).__name__, error.message, error.hint, error.node, error.vbucket
        )
        if not self.problems or replace(problem, at=self.problems[-1].at) != self.problems[-1]:
            self.problems.append(problem)
            self._event_log.write("problem", **asdict(problem) | {"at": None})

    def _authenticator(self) -> Authenticator:
        return self._authenticated if self._auth is None else as_authenticator(self._auth)

    def _fresh_login(self) -> Login:
        return self.login if self._auth is None else with_credentials(self.login, self._authenticator())

    # -- on the thread

    def _run(self) -> None:
        error: CbframeError | None = None
        counters = self.counters
        counters.tot_refresh_workers_started += 1
        try:
            self._event_log.open()
            self._event_log.write("start")
            # On the thread that ends what begins here: Ctrl-C comes to another.
            self._maps.open()
            self._start_follower()
            self._loop()
        except CbframeError as exc:
            error = exc
        except Exception as exc:  # noqa: BLE001 - a fault of ours must end the read, not hang it
            error = messages.unexpected(exc, "in the coordinator")
        finally:
            self._maps.cancel()
            for node in self.nodes.values():
                counters.tot_refresh_workers_close_worker += 1
                node.stop()
            if self._poller is not None:
                self._poller.close()
            for node in [*self.nodes.values(), *self._ended]:
                node.join()
            if self._fetcher is not None:
                self._fetcher.join()
            self._maps.close()
            if self._follower is not None:
                self._follower.close()
            with self._lock:
                self._ended_for_good = True
                for event in self._events:
                    self.coordinator.dismiss(event)
                self._events.clear()
            counters.tot_refresh_workers_done += 1
            self._finish(error)
            self._event_log.close()

    def _start_follower(self) -> None:
        """Follow the maps of cluster managers, unless something was put in their place."""
        options = self._options
        by_hand = self._dialer.by_hand is not None or options.connect_bucket is not None
        if self._target.bootstrap == "kv" or by_hand or options.proxies or not options.map_streaming:
            return
        self._follower = MapFollower(
            self._target,
            self.login.bucket,
            self._authenticator,
            options,
            transport=lambda: SocketTransport(self._dialer.context),
            on_config=self.on_config,
            on_error=self.on_error,
            clock=self._clock,
        )
        self._follower.start()

    def _loop(self) -> None:
        while True:
            wakeup = self.coordinator.next_wakeup()
            due = not self._arrived.wait(None if wakeup is None else wakeup - self._clock())
            with self._lock:
                self._arrived.clear()
                if self._closing:
                    self.counters.tot_refresh_cluster_stopped += not self._events
                    raise ReadCancelledError("the data source was closed before it was complete")
                events = list(self._events) or [messages.Tick()] * due
                self._events.clear()
            for event in events:
                if isinstance(event, messages.NodeDown):
                    gone = self.nodes.pop(event.node, None)
                    if gone is not None:
                        self._ended.append(gone)
                if isinstance(event, messages.MapFailed):
                    self.on_error(event.error)
                if self._event_log.active:
                    self._log_event(event)
                received = sum(node.received for node in self.nodes.values())
                for instruction in self.coordinator.handle(event, self._clock(), received):
                    if not self._carry_out(instruction):
                        return
            if self._poller is not None:
                self._poller.follow(self.coordinator.map, self.coordinator.unsettled)

    def _log_event(self, event: messages.Event) -> None:
        """Write to the event log what came."""
        write, old = self._event_log.write, self.coordinator.map
        match event:
            case messages.NodeReady(node=node):
                again = self.stats[node].tot_worker_connect_ok > 1
                write("reconnected" if again else "connected", node=node)
            case messages.NodeDown(node=node):
                write("disconnected", node=node)
            case messages.MapFetched(map=new) if old is not None and not old.newer_than(new):
                both = range(min(old.vbuckets, new.vbuckets))
                moved = sum(old.node_of(vb) != new.node_of(vb) for vb in both)
                joined, left = sorted({*new.nodes} - {*old.nodes}), sorted({*old.nodes} - {*new.nodes})
                if moved or joined or left:
                    write("moved", vbuckets=moved, nodes_joined=joined, nodes_left=left)
            case messages.StreamEnded(node=node, vbucket=vb, position=at):
                reason = _REASONS.get(event.reason, str(event.reason))
                write("stream_end", node=node, vbucket=vb, reason=reason, seqno=at.seqno)
            case messages.StreamRefused(node=node, vbucket=vb, status=status):
                write("stream_refused", node=node, vbucket=vb, status=Status.describe(status))
            case messages.StreamRolledBack(node=node, vbucket=vb, seqno=seqno):
                write("rollback", node=node, vbucket=vb, seqno=seqno)

    def _carry_out(self, instruction: messages.Instruction) -> bool:
        """Whether the run goes on after that."""
        match instruction:
            case messages.FetchMap():
                if self._fetcher is not None:
                    self._fetcher.join()
                self._fetcher = OwnThread(self._fetch, "cbframe-map")
                try:
                    self._fetcher.start()
                except ResourceError as exc:
                    self.post(messages.MapFailed(exc))
            case messages.StartNode(node=name):
                self._start_node(name)
            case (
                messages.StopNode(node=name)
                | messages.SampleNode(node=name)
                | messages.OpenStreams(node=name)
                | messages.CloseStreams(node=name)
            ):
                # The connection may have ended a moment ago; its NodeDown is on its way then.
                if (thread := self.nodes.get(name)) is not None:
                    thread.post(instruction)
            case messages.Fail(error=error):
                self._finish(error)
                return False
            case messages.Finish():
                self._finish(None)
                return False
        return True

    def _start_node(self, name: str) -> None:
        for thread in self._ended:
            thread.join()
        self._ended.clear()
        try:
            node = NodeThread(
                name,
                self._node_options,
                self._receiver,
                self,
                self.stats.setdefault(name, NodeStats()),
                login=self._fresh_login,
                transport=self._transport,
                clock=self._clock,
            )
            node.start()
        except ResourceError as exc:
            exc.node = name
            self.on_error(exc)
            self.post(messages.NodeDown(name, exc, progressed=False))
        else:
            self.nodes[name] = node

    def _fetch(self) -> None:
        event: messages.Event
        try:
            first, self._first_map = self._first_map, None
            if first is None or not self._maps.adopt(first):
                newest = self.coordinator.map
                first = self._maps.fetch(() if newest is None else newest.nodes)
            event = messages.MapFetched(first)
        except CbframeError as exc:
            event = messages.MapFailed(exc)
        except Exception as exc:  # noqa: BLE001 - a fault of ours must end the read, not hang it
            event = messages.MapFailed(messages.unexpected(exc, "while the map was fetched"))
        self.post(event)

    def _finish(self, error: CbframeError | None) -> None:
        """Report the end; only the first one counts."""
        if self.over.is_set():
            return
        if isinstance(error, AccessError) and error.hint is None:
            # The node says only that something was refused. What the user may see is the reason.
            try:
                seen = self._maps.fetch_manifest()
            except CbframeError:
                seen = None
            options = self._options
            wanted = StreamFilter(options.collections, options.scope_id, options.stream_id)
            error.hint = messages.access_hint(wanted, seen)
        self.error = error
        if error is not None and not isinstance(error, ReadCancelledError):
            self._note(error)
        cancelled = isinstance(error, ReadCancelledError)
        self._event_log.write(
            "end", state="complete" if error is None else "closed" if cancelled else "failed"
        )
        self.over.set()
        self._on_over()


class BucketDataSource(Closing):
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
        one: it is called for each connection and each fetch of the map, on any thread, so that a
        password that was changed meanwhile is taken up. (A client certificate is read once.)
    receiver
        A :class:`~cbframe.dcp.receiver.Receiver`, :class:`~cbframe.dcp.receiver.BlockReceiver` or
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
    event_log
        The path of a file, or a function: where events go (:class:`~cbframe.dcp.stats.EventLog`).
    transport, clock
        Stand-ins for tests.

    Raises
    ------
    ConfigurationError
        An argument is missing or invalid. Nothing is connected before :meth:`start`.
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
        event_log: EventLogLike | None = None,
        transport: Transport | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        _check_arguments(server_urls, pool_name, bucket_name, receiver)
        target = parse_connection_string(server_urls).on_network(network)
        self._options = target.with_options(options or BucketDataSourceOptions())
        self._clock = clock
        self._supervisor = Supervisor(
            target,
            bucket_name,
            bucket_uuid,
            vbucket_ids,
            auth,
            taker_of_blocks(receiver),
            self._options,
            tls=tls_context,
            first_map=first_map,
            transport=transport,
            clock=clock,
            on_over=self._on_over,
            event_log=event_log,
        )
        self.on_finished: Callable[[], None] | None = None
        """Called when there is nothing more to come, on a thread of the source if it was started."""
        self._coordinator = self._supervisor.coordinator
        self._over = self._supervisor.over
        self._calls = ClusterCounters()
        """What the callers' threads count."""
        self._calls_lock = threading.RLock()  # a finalizer may close it at any moment
        self._life = ""

    def __repr__(self) -> str:
        return (
            f"<BucketDataSource {self.bucket!r} {self._life or 'new'}: "
            f"{len(self._coordinator.done)} of {self._coordinator.vbuckets} vbuckets done>"
        )

    def __enter__(self) -> Self:
        self.start()
        return self

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
        """Have the cluster map fetched again; does nothing unless the source runs.

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
        self._supervisor.log.debug("kicked: %s", reason)
        if reason == messages.UPDATE_SECURITY_SETTINGS:
            self._supervisor.renew_tls()
        self._supervisor.post(messages.Kicked(reason))

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
        if (error := self._supervisor.error) is not None:
            # Without the frames of the thread that met it.
            raise error.with_traceback(None)

    @property
    def finished(self) -> bool:
        """Whether a bounded source is complete, or any source has failed."""
        return self._over.is_set()

    @property
    def state(self) -> str:
        """``new``, ``running``, ``complete``, ``failed`` or ``closed``."""
        error = self._supervisor.error
        if self._over.is_set() and not isinstance(error, ReadCancelledError):
            return "complete" if error is None else "failed"
        return self._life or "new"

    def close(self) -> None:
        """End all threads and sockets, and wait for them. May be called again, and from any thread.

        A callback runs on one of those threads: there, it does not wait.
        """
        with self._calls_lock:
            self._life = "closed"  # nobody is about to start it
        self._supervisor.close()

    def _on_over(self) -> None:
        if self.on_finished is not None:
            self.on_finished()

    # -- what is read at any moment: nothing here waits, or holds anyone up

    @property
    def bucket(self) -> str:
        """Name of the bucket."""
        return self._supervisor.login.bucket

    def stats(self) -> BucketDataSourceStats:
        """Counters at this moment."""
        return BucketDataSourceStats(
            (self._supervisor.counters, self._supervisor.map_counters, self._calls),
            dict(self._supervisor.stats),
            vbuckets=self._coordinator.vbuckets,
            vbuckets_done=len(self._coordinator.done),
            at=self._clock(),
        )

    def vbucket_states(self) -> dict[int, VBucketState]:
        """The streams at this moment, by vbucket; those that wait or are done have none.

        Of a vbucket that moves, it is the stream of the new owner, where there is one.
        """
        states = [
            (stream.vbucket, stream.state_now(node.node))
            for node in list(self._supervisor.nodes.values())
            for stream in node.open_streams()
        ]
        return dict(sorted(states, key=lambda each: (each[0], each[1].node == self.connection_of(each[0]))))

    def vbucket_table(self) -> VBucketTable:
        """All vbuckets at this moment, as columns: for looking at them often."""
        coordinator = self._coordinator
        placement = coordinator.placement
        if placement is None:
            return empty_table()
        nodes = list(self._supervisor.nodes.values())
        return vbucket_table(
            placement.connections,
            placement.owner,
            wanted=coordinator.wanted,
            done=list(coordinator.done.items()),
            ends=dict(coordinator.ends),
            high_seqnos={node: seqnos for node, (_, seqnos) in coordinator.reports().items()},
            streams=[stream for node in nodes for stream in node.open_streams()],
        )

    def sample_seqnos(self) -> None:
        """Have the nodes report their high seqnos; :meth:`vbucket_table` has them soon after.

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
        """What went wrong last, oldest first; no more than 20."""
        return tuple(self._supervisor.problems)

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

        None if none has: nodes are asked with ``ask_time``, and report it to users who may see statistics.
        """
        return max(list(self._supervisor.times.values()), default=None)

    @property
    def wanted(self) -> list[int]:
        """The vbuckets to be streamed; none before there is a cluster map."""
        return self._coordinator.wanted

    def seqno_reports(self) -> dict[str, tuple[int, Mapping[int, int]]]:
        """By connection, how often its node has reported its high seqnos, and the last report."""
        return self._coordinator.reports()

    def connection_of(self, vbucket: int) -> str | None:
        """Name of the connection that a wanted vbucket belongs to; None while no node has it."""
        placement = self._coordinator.placement
        return None if placement is None else placement.connection_of(vbucket)

    @property
    def as_of(self) -> dict[int, VBucketOffset]:
        """Where each finished vbucket is complete: the end of its last snapshot."""
        return dict(sorted(self._coordinator.done.items()))


def _check_arguments(server_urls: object, pool_name: str, bucket_name: str, receiver: object) -> None:
    """Refuse what the reference refuses, in its order."""
    if not server_urls:
        raise ConfigurationError("server_urls is empty: name at least one node")
    if not pool_name:
        raise ConfigurationError("pool_name is empty", hint='most often it is "default"')
    if not bucket_name:
        raise ConfigurationError("bucket_name is empty")
    if receiver is None:
        raise ConfigurationError("receiver is None")
