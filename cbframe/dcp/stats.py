"""The counters of a data source at one moment, and the difference of two."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, MutableMapping
from dataclasses import dataclass, fields
from types import MappingProxyType

from cbframe.dcp.plan import address_of


class _Counters:
    __slots__ = ()

    def count(self, name: str) -> None:
        """Move a counter that is known by its name."""
        setattr(self, name, getattr(self, name) + 1)


@dataclass(slots=True)
class ClusterCounters(_Counters):
    """What happened around the cluster map."""

    tot_start: int = 0
    """Calls of ``start``, those that failed too."""
    tot_kick: int = 0
    """Reasons to look at the cluster afresh: calls of ``kick``, and what the nodes meet."""
    tot_kick_deduped: int = 0
    """Those that came while an earlier one was not served yet."""
    tot_kick_ok: int = 0
    """Those that were served."""

    tot_refresh_cluster: int = 0
    """Passes over the seeds."""
    tot_refresh_cluster_connect_bucket: int = 0
    """Seeds tried."""
    tot_refresh_cluster_connect_bucket_err: int = 0
    tot_refresh_cluster_connect_bucket_ok: int = 0
    tot_refresh_cluster_bucket_uuid_err: int = 0
    """Seeds whose bucket of that name is another one."""
    tot_refresh_cluster_vbm_nil_err: int = 0
    """Seeds whose bucket has no vbucket map yet."""
    tot_refresh_cluster_kick_workers: int = 0
    """Maps that were there to be used: fetched, or pushed by a node."""
    tot_refresh_cluster_kick_workers_closed: int = 0
    """Those that came after the source was complete."""
    tot_refresh_cluster_kick_workers_stopped: int = 0
    """Those that came while the source was being closed."""
    tot_refresh_cluster_kick_workers_ok: int = 0
    """Those that were used."""
    tot_refresh_cluster_stopped: int = 0
    """Whether it was closed while it had nothing to do."""
    tot_refresh_cluster_awoken_closed: int = 0
    """Reasons that came after the source was complete."""
    tot_refresh_cluster_awoken_stopped: int = 0
    """Reasons that came while the source was being closed."""
    tot_refresh_cluster_awoken_restart: int = 0
    """Reasons that led to another pass over the seeds."""
    tot_refresh_cluster_awoken: int = 0
    """Reasons that the map at hand was good enough for: a node is connected."""
    tot_refresh_cluster_all_server_urls_connect_bucket_err: int = 0
    """Passes in which all seeds failed."""
    tot_refresh_cluster_done: int = 0

    tot_refresh_workers_started: int = 0
    tot_refresh_workers: int = 0
    """Passes over the wanted vbuckets, with a new map."""
    tot_refresh_workers_cluster_ch_kicks: int = 0
    """Maps taken up."""
    tot_refresh_workers_security_updates: int = 0
    """Calls of ``kick(UPDATE_SECURITY_SETTINGS)``."""
    tot_refresh_workers_vbm_nil_err: int = 0
    """Reasons that came before there was any map."""
    tot_refresh_workers_vbucket_id_err: int = 0
    """Wanted vbuckets that the bucket does not have."""
    tot_refresh_workers_server_idxs_err: int = 0
    """Maps refused for a row without columns."""
    tot_refresh_workers_master_idx_err: int = 0
    """Times that a wanted vbucket had no owner, and maps refused for an owner that they do not list."""
    tot_refresh_workers_master_server_err: int = 0
    """Maps refused for a server without a name."""
    tot_refresh_workers_remove_worker: int = 0
    """Connections given up because nothing is wanted of their node any more, or for other TLS settings."""
    tot_refresh_workers_add_worker: int = 0
    """Connections begun."""
    tot_refresh_workers_kick_worker: int = 0
    """Lists of vbuckets given to a connection."""
    tot_refresh_workers_close_worker: int = 0
    """Connections ended because the source was."""
    tot_refresh_workers_loop: int = 0
    """Passes over the wanted vbuckets that were completed."""
    tot_refresh_workers_loop_done: int = 0
    tot_refresh_workers_done: int = 0


@dataclass(slots=True)
class NodeStats(_Counters):
    """What happened on the connections to one data node."""

    tot_worker_start: int = 0
    tot_worker_done: int = 0
    tot_worker_body: int = 0
    """Attempts to connect, those that were called off at once too."""
    tot_worker_body_kick: int = 0
    """Connections that became ready for streams."""

    tot_worker_connect: int = 0
    tot_worker_connect_err: int = 0
    tot_worker_connect_ok: int = 0
    tot_worker_auth: int = 0
    """Authentications with a user name (SASL)."""
    tot_worker_auth_err: int = 0
    """Those that broke off."""
    tot_worker_auth_fail: int = 0
    """Those that the server refused."""
    tot_worker_auth_ok: int = 0
    tot_worker_upr_open_err: int = 0
    """Failures from DCP_OPEN until the connection was ready."""
    tot_worker_upr_open_ok: int = 0
    tot_worker_authenticate_memcached_conn: int = 0
    """Connections that need no user name: the client's certificate says who it is."""
    tot_worker_authenticate_memcached_conn_err: int = 0
    tot_worker_authenticate_memcached_conn_ok: int = 0
    tot_worker_client_close: int = 0
    tot_worker_client_close_done: int = 0

    tot_worker_transmit_start: int = 0
    tot_worker_transmit: int = 0
    """Messages to be sent."""
    tot_worker_transmit_err: int = 0
    """Attempts to send that failed."""
    tot_worker_transmit_ok: int = 0
    tot_worker_transmit_done: int = 0
    tot_worker_receive_start: int = 0
    tot_worker_receive: int = 0
    """Messages waited for: those that came, and the one that is waited for now."""
    tot_worker_receive_err: int = 0
    tot_worker_receive_ok: int = 0
    tot_worker_receive_done: int = 0
    tot_worker_send_end_ch: int = 0
    """Connections that ended because nothing could be sent."""
    tot_worker_recv_end_ch: int = 0
    """Connections that ended because nothing came, or nothing good."""
    tot_worker_handle_recv: int = 0
    """Messages other than documents."""
    tot_worker_handle_recv_err: int = 0
    tot_worker_handle_recv_ok: int = 0
    tot_worker_cleanup: int = 0
    tot_worker_cleanup_done: int = 0

    tot_refresh_worker: int = 0
    """Orders from the supervisor, the one to end too."""
    tot_refresh_worker_done: int = 0
    """Orders to end."""
    tot_refresh_worker_ok: int = 0
    """Other orders, carried out."""

    tot_upr_data_change: int = 0
    """Documents, deletions and expirations."""
    tot_upr_data_change_state_err: int = 0
    tot_upr_data_change_mutation: int = 0
    tot_upr_data_change_deletion: int = 0
    tot_upr_data_change_expiration: int = 0
    tot_upr_data_change_err: int = 0
    """Those at which the receiver raised."""
    tot_upr_data_change_ok: int = 0
    """Those that the receiver took."""
    tot_upr_close_stream: int = 0
    tot_upr_close_stream_res: int = 0
    tot_upr_close_stream_res_state_err: int = 0
    tot_upr_close_stream_res_err: int = 0
    tot_upr_close_stream_res_ok: int = 0
    tot_upr_stream_req: int = 0
    """Stream requests on their way."""
    tot_upr_stream_req_want: int = 0
    """Streams that the supervisor asked for."""
    tot_upr_stream_req_res: int = 0
    tot_upr_stream_req_res_state_err: int = 0
    tot_upr_stream_req_res_fail: int = 0
    """Answers other than success, rollbacks too."""
    tot_upr_stream_req_res_fail_not_my_vbucket: int = 0
    tot_upr_stream_req_res_fail_erange: int = 0
    tot_upr_stream_req_res_fail_enomem: int = 0
    tot_upr_stream_req_res_rollback: int = 0
    tot_upr_stream_req_res_rollback_start: int = 0
    """Rollbacks that the receiver got, those after ERANGE too."""
    tot_upr_stream_req_res_rollback_err: int = 0
    tot_upr_stream_req_res_want_after_rollback_err: int = 0
    """Streams wanted again after a rollback that the receiver carried out."""
    tot_upr_stream_req_res_kick: int = 0
    """Other refusals: the cluster is looked at afresh."""
    tot_upr_stream_req_res_success: int = 0
    tot_upr_stream_req_res_success_ok: int = 0
    tot_upr_stream_req_res_flog_err: int = 0
    """Answers without a readable failover log."""
    tot_upr_stream_end: int = 0
    tot_upr_stream_end_state_err: int = 0
    tot_upr_stream_end_kick: int = 0
    """Streams that the server ended before their end."""
    tot_upr_snapshot: int = 0
    tot_upr_snapshot_state_err: int = 0
    tot_upr_snapshot_start: int = 0
    tot_upr_snapshot_start_err: int = 0
    tot_upr_snapshot_ok: int = 0
    tot_upr_noop: int = 0
    tot_upr_control: int = 0
    """Options of the connection that the server answered to."""
    tot_upr_control_err: int = 0
    """Options that it does not have."""
    tot_upr_buffer_ack: int = 0

    tot_want_close_requested_vbucket_err: int = 0
    """Streams to be closed before the server had answered their request."""
    tot_want_closing_vbucket_err: int = 0
    """Streams asked for again while they were being closed."""
    tot_select_bucket_err: int = 0
    tot_handshake_err: int = 0
    """Connections that ended with HELLO."""
    tot_get_vbucket_metadata: int = 0
    tot_get_vbucket_metadata_unmarshal_err: int = 0
    tot_get_vbucket_metadata_err: int = 0
    tot_get_vbucket_metadata_ok: int = 0
    tot_set_vbucket_metadata: int = 0
    tot_set_vbucket_metadata_marshal_err: int = 0
    tot_set_vbucket_metadata_err: int = 0
    tot_set_vbucket_metadata_ok: int = 0
    tot_ping_timeout: int = 0
    """Times that a connection was silent for ``ping_timeout_ms``."""
    tot_ping_req: int = 0
    tot_ping_req_done: int = 0

    # Not of the reference:
    bytes_received: int = 0
    receives: int = 0
    """Reads of the socket that gave something."""
    blocks: int = 0
    """Runs of documents handed to the receiver."""
    errors: int = 0
    """Connections that ended with an error."""

    @property
    def documents(self) -> int:
        """Data messages of all kinds, without those that came for streams already closed."""
        return self.mutations + self.deletions + self.expirations

    @property
    def mutations(self) -> int:
        return self.tot_upr_data_change_mutation

    @property
    def deletions(self) -> int:
        return self.tot_upr_data_change_deletion

    @property
    def expirations(self) -> int:
        return self.tot_upr_data_change_expiration

    @property
    def snapshots(self) -> int:
        return self.tot_upr_snapshot

    @property
    def streams_opened(self) -> int:
        return self.tot_upr_stream_req_res_success

    @property
    def streams_ended(self) -> int:
        return self.tot_upr_stream_end + self.tot_upr_close_stream_res_ok

    @property
    def rollbacks(self) -> int:
        """Vbuckets taken back, those after ERANGE too."""
        return self.tot_upr_stream_req_res_rollback_start

    @property
    def noops(self) -> int:
        return self.tot_upr_noop

    @property
    def buffer_acks(self) -> int:
        return self.tot_upr_buffer_ack


CLUSTER_COUNTERS = tuple(f.name for f in fields(ClusterCounters))
NODE_COUNTERS = tuple(f.name for f in fields(NodeStats))


def copy_of(stats: NodeStats) -> NodeStats:
    """The counters at this moment: each of them whole, and perhaps a moment old."""
    return NodeStats(*(getattr(stats, name) for name in NODE_COUNTERS))


COUNTERS = (*CLUSTER_COUNTERS, *NODE_COUNTERS)
"""Names of all counters."""


class BucketDataSourceStats:
    """The counters of a data source at one moment. It does not change.

    Every counter of the reference is an attribute, summed over the nodes: ``tot_kick``,
    ``tot_upr_stream_req``… (:class:`~cbframe.dcp.stats.ClusterCounters` and
    :class:`~cbframe.dcp.stats.NodeStats` say what each counts), besides ``bytes_received``,
    ``receives``, ``blocks`` and ``errors``. The difference of two pictures gives rates::

        before = source.stats()
        ...
        rates = source.stats() - before
        rates.bytes_received, rates.nodes["host:11210"].tot_upr_data_change

    Attributes
    ----------
    nodes
        Counters by node address; with several connections to a node also ``host:port#2`` and so on.
    total
        Their sum.
    vbuckets, vbuckets_done
        Wanted, and finished in a bounded read.
    at
        When it was taken, in seconds of the source's clock.
    """

    __slots__ = ("_counts", "at", "nodes", "total", "vbuckets", "vbuckets_done")

    _counts: dict[str, int]
    nodes: Mapping[str, NodeStats]
    total: NodeStats
    vbuckets: int
    vbuckets_done: int
    at: float

    def __init__(
        self,
        cluster: Iterable[ClusterCounters],
        nodes: Mapping[str, NodeStats],
        *,
        vbuckets: int = 0,
        vbuckets_done: int = 0,
        at: float = 0.0,
    ) -> None:
        taken = {address: copy_of(stats) for address, stats in sorted(nodes.items())}
        total = add_up(taken.values())
        parts = list(cluster)
        counts = {name: sum(getattr(part, name) for part in parts) for name in CLUSTER_COUNTERS}
        counts |= {name: getattr(total, name) for name in NODE_COUNTERS}
        set_once = super().__setattr__
        set_once("_counts", counts)
        set_once("nodes", MappingProxyType(taken))
        set_once("total", total)
        set_once("vbuckets", vbuckets)
        set_once("vbuckets_done", vbuckets_done)
        set_once("at", at)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"counters of one moment do not change: {name} cannot be set")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"counters of one moment do not change: {name} cannot be deleted")

    def __getattr__(self, name: str) -> int:
        # Slots that are not set yet end here too, while an object is being copied.
        if name in BucketDataSourceStats.__slots__ or name not in self._counts:
            raise AttributeError(f"there is no counter {name!r}")
        return self._counts[name]

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *COUNTERS]

    def __repr__(self) -> str:
        total, nodes = self.total, len(set(map(address_of, self.nodes)))
        return (
            f"<BucketDataSourceStats: {self.vbuckets_done} of {self.vbuckets} vbuckets done, "
            f"{total.documents:,} documents, {total.bytes_received:,} bytes from {nodes} nodes>"
        )

    def counts(self) -> dict[str, int]:
        """Every counter by its name."""
        return dict(self._counts)

    def atomic_copy_to(
        self, dest: MutableMapping[str, int], fn: Callable[[int, int], int] | None = None
    ) -> None:
        """Copy every counter, or combine it with what `dest` has.

        Parameters
        ----------
        dest
            Counters by name; what is missing counts as 0.
        fn
            Called with a counter of this picture and that of `dest`; what it returns is stored.
            Without it the counters are copied.
        """
        for name, count in self._counts.items():
            dest[name] = count if fn is None else fn(count, dest.get(name, 0))

    def __sub__(self, earlier: object) -> StatsRates:
        if not isinstance(earlier, BucketDataSourceStats):
            return NotImplemented
        seconds = self.at - earlier.at
        none = NodeStats()
        nodes = {
            address: StatsRates(_difference(stats, earlier.nodes.get(address, none)), seconds, {})
            for address, stats in self.nodes.items()
        }
        change = {name: count - getattr(earlier, name) for name, count in self._counts.items()}
        return StatsRates(change, seconds, nodes)


class StatsRates:
    """What happened between two pictures. Each counter is an attribute, in events per second.

    Attributes
    ----------
    seconds
        Between the two.
    counts
        How far each counter moved.
    nodes
        The same by node address.
    """

    __slots__ = ("counts", "nodes", "seconds")

    def __init__(self, counts: Mapping[str, int], seconds: float, nodes: Mapping[str, StatsRates]) -> None:
        self.counts = MappingProxyType(dict(counts))
        self.seconds = seconds
        self.nodes = MappingProxyType(dict(nodes))

    def __getattr__(self, name: str) -> float:
        if name in StatsRates.__slots__ or name not in self.counts:
            raise AttributeError(f"there is no counter {name!r}")
        return self.counts[name] / self.seconds if self.seconds > 0 else 0.0

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self.counts]

    def __repr__(self) -> str:
        return (
            f"<StatsRates over {self.seconds:.1f} s: {self.tot_upr_data_change:,.0f} documents/s, "
            f"{self.bytes_received:,.0f} bytes/s>"
        )


def add_up(stats: Iterable[NodeStats]) -> NodeStats:
    """The sum of several nodes' counters."""
    parts = list(stats)
    return NodeStats(*(sum(getattr(part, name) for part in parts) for name in NODE_COUNTERS))


def _difference(later: NodeStats, earlier: NodeStats) -> dict[str, int]:
    return {name: getattr(later, name) - getattr(earlier, name) for name in NODE_COUNTERS}
