"""The data source: streams a bucket, or some of its vbuckets, into a receiver.

The part that users hold. It waits for the end, and reads what the threads have written down of themselves;
the threads belong to :mod:`cbframe.dcp.supervisor`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Self

import numpy as np

from cbframe.cluster.auth import AuthLike
from cbframe.cluster.cluster_map import ClusterMap
from cbframe.cluster.connection_string import parse_connection_string
from cbframe.cluster.tls import TLSLike
from cbframe.dcp import messages
from cbframe.dcp.handshake import window_of
from cbframe.dcp.positions import Position
from cbframe.dcp.receiver import BlockReceiver, DeferringReceiver, Receiver, taker_of_blocks
from cbframe.dcp.stats import (
    BucketDataSourceStats,
    ClusterCounters,
    Problem,
    VBucketTable,
    Window,
    empty_table,
    vbucket_table,
)
from cbframe.dcp.streams import VBucketState
from cbframe.dcp.supervisor import Supervisor
from cbframe.dcp.transport import Transport
from cbframe.errors import ConfigurationError, ReadCancelledError, ReadTimeoutError, ResourceError
from cbframe.options import BucketDataSourceOptions
from cbframe.public import ServerURLs, public
from cbframe.system import waited


class BucketDataSource:
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
        )
        self.on_finished: Callable[[], None] | None = None
        """Called when there is nothing more to come, on a thread of the source."""
        self._coordinator = self._supervisor.coordinator
        self._over = self._supervisor.over
        self._calls = ClusterCounters()
        """What the callers' threads count."""
        self._calls_lock = threading.Lock()
        self._life = ""

    def __repr__(self) -> str:
        return (
            f"<BucketDataSource {self.bucket!r} {self._life or 'new'}: "
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
        self._life = "closed"
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
        """The streams at this moment, by vbucket; those that wait or are done have none."""
        states = [
            (stream.vbucket, stream.state_now(node.node))
            for node in list(self._supervisor.nodes.values())
            for stream in node.open_streams()
        ]
        return dict(sorted(states, key=lambda state: state[0]))

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
    def as_of(self) -> dict[int, Position]:
        """Where each finished vbucket is complete: the end of its last snapshot."""
        return dict(sorted(self._coordinator.done.items()))


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
