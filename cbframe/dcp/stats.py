"""What can be seen of a data source: its counters, its problems, and its vbuckets as columns.

The counters of the reference keep their names (``tot_upr_stream_req``…). What happens is counted once, in the
fields of :class:`ClusterCounters` and :class:`NodeStats`; :data:`SUMS` says which of these add up to each
other name. A field is moved by one thread only and read by any: a reader sees whole numbers, perhaps a moment
old.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from enum import IntEnum
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from cbframe.dcp.positions import VBucketOffset
from cbframe.dcp.streams import Stream, StreamState
from cbframe.errors import ConfigurationError
from cbframe.wire.constants import MAX_SEQNO

SUMS = {
    name: tuple(parts.split())
    for name, parts in {
        "tot_kick_ok": "tot_refresh_cluster_awoken tot_refresh_cluster_awoken_restart",
        "tot_refresh_cluster_connect_bucket": (
            "tot_refresh_cluster_connect_bucket_ok tot_refresh_cluster_connect_bucket_err"
        ),
        "tot_refresh_cluster_kick_workers": (
            "tot_refresh_cluster_kick_workers_ok tot_refresh_cluster_kick_workers_closed"
            " tot_refresh_cluster_kick_workers_stopped"
        ),
        "tot_refresh_cluster_done": "tot_refresh_workers_done",
        "tot_refresh_workers_loop_done": "tot_refresh_workers_done",
        "tot_refresh_workers": "tot_refresh_cluster_kick_workers_ok",
        "tot_refresh_workers_cluster_ch_kicks": "tot_refresh_cluster_kick_workers_ok",
        "tot_worker_body": "tot_worker_start",
        "tot_worker_body_kick": "tot_worker_upr_open_ok",
        "tot_worker_connect": "tot_worker_connect_ok tot_worker_connect_err",
        "tot_worker_auth": "tot_worker_auth_ok tot_worker_auth_fail tot_worker_auth_err",
        "tot_worker_authenticate_memcached_conn": (
            "tot_worker_authenticate_memcached_conn_ok tot_worker_authenticate_memcached_conn_err"
        ),
        "tot_worker_client_close_done": "tot_worker_client_close",
        "tot_worker_transmit_start": "tot_worker_connect_ok",
        "tot_worker_transmit_done": "tot_worker_client_close",
        "tot_worker_receive_start": "tot_worker_connect_ok",
        "tot_worker_receive": "tot_worker_receive_ok tot_worker_connect_ok",
        "tot_worker_receive_done": "tot_worker_client_close",
        "tot_worker_send_end_ch": "tot_worker_transmit_err",
        "tot_worker_handle_recv": "tot_worker_handle_recv_ok tot_worker_handle_recv_err",
        "tot_worker_cleanup": "tot_worker_client_close",
        "tot_worker_cleanup_done": "tot_worker_client_close",
        "tot_upr_close_stream_res": "tot_upr_close_stream_res_ok tot_upr_close_stream_res_err",
        "tot_upr_stream_req_res": (
            "streams_opened tot_upr_stream_req_res_fail tot_upr_stream_req_res_state_err"
        ),
        "tot_upr_snapshot": "tot_upr_snapshot_ok tot_upr_snapshot_start_err",
        "tot_upr_snapshot_start": "tot_upr_snapshot_ok tot_upr_snapshot_start_err",
        "tot_upr_stream_req_res_rollback_start": "rollbacks",
        "tot_upr_stream_req_res_success": "streams_opened",
        "tot_upr_data_change_mutation": "mutations",
        "tot_upr_data_change_deletion": "deletions",
        "tot_upr_data_change_expiration": "expirations",
        "tot_upr_noop": "noops",
        "tot_upr_buffer_ack": "buffer_acks",
        "tot_get_vbucket_metadata": (
            "tot_get_vbucket_metadata_ok tot_get_vbucket_metadata_err tot_get_vbucket_metadata_unmarshal_err"
        ),
        "tot_set_vbucket_metadata": (
            "tot_set_vbucket_metadata_ok tot_set_vbucket_metadata_err tot_set_vbucket_metadata_marshal_err"
        ),
        "tot_ping_req": "tot_ping_timeout",
        "tot_ping_req_done": "tot_ping_timeout",
    }.items()
}
"""Counters of the reference that are not counted themselves: what they are the sum of."""


class _Counters:
    __slots__ = ()

    def __getattr__(self, name: str) -> int:
        if name not in SUMS:
            raise AttributeError(f"there is no counter {name!r}")
        return sum(getattr(self, part) for part in SUMS[name])

    def count(self, name: str) -> None:
        """Move a counter that is known by its name."""
        setattr(self, name, getattr(self, name) + 1)


@dataclass(slots=True)
class ClusterCounters(_Counters):
    """What happened around the cluster map."""

    tot_start: int = 0  # calls of ``start``, those that failed too
    tot_kick: int = 0  # reasons to fetch the cluster map: calls of ``kick``, and what the nodes meet
    tot_kick_deduped: int = 0  # those that came while an earlier one was not served yet

    tot_refresh_cluster: int = 0  # passes over the seeds
    tot_refresh_cluster_connect_bucket_err: int = 0
    tot_refresh_cluster_connect_bucket_ok: int = 0
    tot_refresh_cluster_bucket_uuid_err: int = 0  # seeds whose bucket of that name is another one
    tot_refresh_cluster_vbm_nil_err: int = 0  # seeds whose bucket has no vbucket map yet
    tot_refresh_cluster_kick_workers_closed: int = 0  # those that came after the source was complete
    tot_refresh_cluster_kick_workers_stopped: int = 0  # those that came while the source was being closed
    tot_refresh_cluster_kick_workers_ok: int = 0  # those that were used
    tot_refresh_cluster_stopped: int = 0  # whether it was closed while it had nothing to do
    tot_refresh_cluster_awoken_closed: int = 0  # reasons that came after the source was complete
    tot_refresh_cluster_awoken_stopped: int = 0  # reasons that came while the source was being closed
    tot_refresh_cluster_awoken_restart: int = 0  # reasons that led to another pass over the seeds
    tot_refresh_cluster_awoken: int = 0  # reasons that the map at hand answered: a node is connected
    tot_refresh_cluster_all_server_urls_connect_bucket_err: int = 0  # passes in which all seeds failed

    tot_refresh_workers_started: int = 0
    tot_refresh_workers_security_updates: int = 0  # calls of ``kick(UPDATE_SECURITY_SETTINGS)``
    tot_refresh_workers_vbm_nil_err: int = 0  # reasons that came before there was any map
    tot_refresh_workers_vbucket_id_err: int = 0  # wanted vbuckets that the bucket does not have
    tot_refresh_workers_server_idxs_err: int = 0  # maps refused for a row without columns
    tot_refresh_workers_master_idx_err: int = 0  # wanted vbuckets without an owner, maps with an unlisted one
    tot_refresh_workers_master_server_err: int = 0  # maps refused for a server without a name
    tot_refresh_workers_remove_worker: int = 0  # connections given up: the node left, or TLS has changed
    tot_refresh_workers_add_worker: int = 0  # connections begun
    tot_refresh_workers_kick_worker: int = 0  # lists of vbuckets given to a connection
    tot_refresh_workers_close_worker: int = 0  # connections ended because the source was
    tot_refresh_workers_loop: int = 0  # passes over the wanted vbuckets that were completed
    tot_refresh_workers_done: int = 0


@dataclass(slots=True)
class NodeStats(_Counters):
    """What happened on the connections to one data node."""

    tot_worker_start: int = 0
    tot_worker_done: int = 0

    tot_worker_connect_err: int = 0
    tot_worker_connect_ok: int = 0
    tot_worker_auth_err: int = 0  # those that broke off
    tot_worker_auth_fail: int = 0  # those that the server refused
    tot_worker_auth_ok: int = 0
    tot_worker_upr_open_err: int = 0  # failures from DCP_OPEN until the connection was ready
    tot_worker_upr_open_ok: int = 0
    tot_worker_authenticate_memcached_conn_err: int = 0
    tot_worker_authenticate_memcached_conn_ok: int = 0
    tot_worker_client_close: int = 0

    tot_worker_transmit: int = 0  # messages to be sent
    tot_worker_transmit_err: int = 0  # attempts to send that failed
    tot_worker_transmit_ok: int = 0
    tot_worker_receive_err: int = 0
    tot_worker_receive_ok: int = 0
    tot_worker_recv_end_ch: int = 0  # connections that ended because nothing came, or nothing good
    tot_worker_handle_recv_err: int = 0
    tot_worker_handle_recv_ok: int = 0

    tot_refresh_worker: int = 0  # orders from the supervisor, the one to end too
    tot_refresh_worker_done: int = 0  # orders to end
    tot_refresh_worker_ok: int = 0  # other orders, carried out

    tot_upr_data_change: int = 0  # documents, deletions and expirations
    tot_upr_data_change_state_err: int = 0
    mutations: int = 0
    deletions: int = 0
    expirations: int = 0
    tot_upr_data_change_err: int = 0  # those at which the receiver raised
    tot_upr_data_change_ok: int = 0  # those that the receiver took
    tot_upr_close_stream: int = 0
    tot_upr_close_stream_res_state_err: int = 0
    tot_upr_close_stream_res_err: int = 0
    tot_upr_close_stream_res_ok: int = 0
    tot_upr_stream_req: int = 0  # stream requests on their way
    tot_upr_stream_req_want: int = 0  # streams that the supervisor asked for
    tot_upr_stream_req_res_state_err: int = 0
    tot_upr_stream_req_res_fail: int = 0  # answers other than success, rollbacks too
    tot_upr_stream_req_res_fail_not_my_vbucket: int = 0
    tot_upr_stream_req_res_fail_erange: int = 0
    tot_upr_stream_req_res_fail_enomem: int = 0
    tot_upr_stream_req_res_rollback: int = 0
    rollbacks: int = 0  # vbuckets rolled back, those after ERANGE too
    tot_upr_stream_req_res_rollback_err: int = 0
    tot_upr_stream_req_res_want_after_rollback_err: int = 0  # rollbacks that the receiver carried out
    tot_upr_stream_req_res_kick: int = 0  # other refusals: the map is fetched
    streams_opened: int = 0
    tot_upr_stream_req_res_success_ok: int = 0
    tot_upr_stream_req_res_flog_err: int = 0  # answers without a readable failover log
    tot_upr_stream_end: int = 0
    tot_upr_stream_end_state_err: int = 0
    tot_upr_stream_end_kick: int = 0  # streams that the server ended before their end
    tot_upr_snapshot_state_err: int = 0
    tot_upr_snapshot_start_err: int = 0
    tot_upr_snapshot_ok: int = 0
    noops: int = 0
    tot_upr_control: int = 0  # options of the connection that the server answered to
    tot_upr_control_err: int = 0  # options that it does not have
    buffer_acks: int = 0

    tot_want_close_requested_vbucket_err: int = 0  # streams closed before they were granted
    tot_want_closing_vbucket_err: int = 0  # streams asked for again while they were being closed
    tot_select_bucket_err: int = 0
    tot_handshake_err: int = 0  # connections that ended with HELLO
    tot_get_vbucket_metadata_unmarshal_err: int = 0
    tot_get_vbucket_metadata_err: int = 0
    tot_get_vbucket_metadata_ok: int = 0
    tot_set_vbucket_metadata_marshal_err: int = 0
    tot_set_vbucket_metadata_err: int = 0
    tot_set_vbucket_metadata_ok: int = 0
    tot_ping_timeout: int = 0  # times that a connection was silent for ``ping_timeout_ms``

    # Not of the reference:
    bytes_received: int = 0
    receives: int = 0  # reads of the socket that gave something
    blocks: int = 0  # runs of documents handed to the receiver
    errors: int = 0  # connections that ended with an error
    reconnects: int = 0  # connections after the first

    @property
    def documents(self) -> int:
        """Data messages of all kinds, without those that came for streams already closed."""
        return self.mutations + self.deletions + self.expirations

    @property
    def snapshots(self) -> int:
        return self.tot_upr_snapshot

    @property
    def streams_ended(self) -> int:
        return self.tot_upr_stream_end + self.tot_upr_close_stream_res_ok


def _names(counted: tuple[str, ...]) -> tuple[str, ...]:
    """What is counted, by the reference's name where it has one, and the sums of that."""
    sums = {name: parts for name, parts in SUMS.items() if parts[0] in counted}
    renamed = {part for parts in sums.values() for part in parts if not part.startswith("tot_")}
    return (*(name for name in counted if name not in renamed), *sums)


_NODE_FIELDS = tuple(field.name for field in fields(NodeStats))
CLUSTER_COUNTERS = _names(tuple(field.name for field in fields(ClusterCounters)))
NODE_COUNTERS = _names(_NODE_FIELDS)
COUNTERS = (*CLUSTER_COUNTERS, *NODE_COUNTERS)
"""Names of all counters."""


def add_up(stats: Iterable[NodeStats]) -> NodeStats:
    """The sum of several nodes' counters."""
    parts = list(stats)
    return NodeStats(*(sum(getattr(part, name) for part in parts) for name in _NODE_FIELDS))


class BucketDataSourceStats:
    """The counters of a data source at one moment. It does not change.

    Every counter of the reference is an attribute, summed over the nodes: ``tot_kick``,
    ``tot_upr_stream_req``… (:class:`~cbframe.dcp.stats.ClusterCounters` and
    :class:`~cbframe.dcp.stats.NodeStats` say what each counts), besides ``bytes_received``,
    ``receives``, ``blocks`` and ``errors``. The difference of two gives rates::

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
        taken = {address: add_up([stats]) for address, stats in sorted(nodes.items())}
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
        total, nodes = self.total, len({name.partition("#")[0] for name in self.nodes})
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
            Called with a counter of this object and that of `dest`; what it returns is stored.
            Without it the counters are copied.
        """
        for name, count in self._counts.items():
            dest[name] = count if fn is None else fn(count, dest.get(name, 0))

    def __add__(self, earlier: BucketDataSourceStats) -> BucketDataSourceStats:
        """The sum of both, for a source that took the place of another; the rest is as here."""
        parts: dict[str, list[NodeStats]] = {}
        for address, stats in (*earlier.nodes.items(), *self.nodes.items()):
            parts.setdefault(address, []).append(stats)
        nodes = {address: add_up(stats) for address, stats in parts.items()}
        found = BucketDataSourceStats(
            (), nodes, vbuckets=self.vbuckets, vbuckets_done=self.vbuckets_done, at=self.at
        )
        for name in CLUSTER_COUNTERS:
            found._counts[name] = self._counts[name] + earlier._counts[name]
        return found

    def __sub__(self, earlier: object) -> StatsRates:
        if not isinstance(earlier, BucketDataSourceStats):
            return NotImplemented
        seconds = self.at - earlier.at
        none = NodeStats()
        nodes = {
            address: StatsRates(_change(NODE_COUNTERS, stats, earlier.nodes.get(address, none)), seconds, {})
            for address, stats in self.nodes.items()
        }
        return StatsRates(_change(COUNTERS, self, earlier), seconds, nodes)


def _change(names: Iterable[str], later: object, earlier: object) -> dict[str, int]:
    return {name: getattr(later, name) - getattr(earlier, name) for name in names}


class StatsRates:
    """What happened between two moments. Each counter is an attribute, in events per second.

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


NOW = partial(datetime.now, UTC)
EventLogLike: TypeAlias = str | os.PathLike[str] | Callable[[dict[str, Any]], object]


class EventLog:
    """Events of a source, as they happen: each is given to a function, or is a line of JSON in a file.

    An event is a dict of plain values, without any document's key or value: ``time`` (ISO 8601, UTC),
    ``event``, ``bucket``, and for

    * ``start``; ``end``: ``state`` (complete, failed, closed); ``connected``, ``reconnected``,
      ``disconnected``: ``node``
    * ``moved``, by a rebalance or after a failover: how many ``vbuckets``, ``nodes_joined``, ``nodes_left``
    * ``failover``: ``node``, ``vbucket``, the ``vbuuid`` of its new history, and that ``before``
    * ``rollback``: ``node``, ``vbucket``, and the ``seqno`` to which the server has taken it back
    * ``stream_end``: ``node``, ``vbucket``, ``seqno``, ``reason``; ``stream_refused``: ``status``
    * ``problem``: ``kind``, ``message``, ``hint``, ``node``, ``vbucket``, as of :class:`Problem`

    Several sources and processes may append to one file. A function is called on the source's threads. One
    that fails gets no more events, which is logged: the source goes on.
    """

    def __init__(
        self, target: EventLogLike | None, bucket: str, log: logging.Logger, now: Callable[[], datetime] = NOW
    ) -> None:
        self._path = None if target is None or callable(target) else Path(target).expanduser()
        self._emit = target if callable(target) else self._append
        self._bucket, self._log, self._now = bucket, log, now
        self._file: IO[bytes] | None = None
        self.active = target is not None

    def open(self) -> None:
        """Open the file; ConfigurationError if that cannot be done."""
        if self._path is not None:
            try:
                self._file = self._path.open("ab", buffering=0)
            except OSError as exc:
                raise ConfigurationError(
                    f"the event log {str(self._path)!r} cannot be written: {exc.strerror or exc}",
                    hint="name a file in a folder that is there",
                ) from None

    def write(self, event: str, **fields: Any) -> None:
        """Write an event, on any thread; fields that are None are left out."""
        if not self.active:
            return
        known = {name: value for name, value in fields.items() if value is not None}
        try:
            self._emit({"time": self._now().isoformat(), "event": event, "bucket": self._bucket, **known})
        except Exception:  # noqa: BLE001 - whatever a listener raises must not stop the source
            self.active = False
            self._log.exception("the event log has failed: no further event goes there")

    def _append(self, event: dict[str, Any]) -> None:
        line = json.dumps(event).encode() + b"\n"
        if self._file is not None and self._file.write(line) != len(line):
            raise OSError("a line was cut: the disk is full")

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


class VBucketPhase(IntEnum):
    """What a vbucket of the source does at a moment."""

    UNWANTED = 0  # not one of the source's
    WAITING = 1  # wanted, and not requested: its node is being connected to, or is tried again later
    OWNERLESS = 2  # wanted, and no node has it, as during a failover
    REQUESTED = 3
    RUNNING = 4
    CLOSING = 5
    DONE = 6  # complete, of a bounded source


_PHASES = {
    StreamState.REQUESTED: VBucketPhase.REQUESTED,
    StreamState.RUNNING: VBucketPhase.RUNNING,
    StreamState.CLOSING: VBucketPhase.CLOSING,
    StreamState.OVER: VBucketPhase.WAITING,
}
_LARGEST = 0x7FFF_FFFF_FFFF_FFFF
"""Seqnos have 64 bits on the wire; what does not fit in a signed integer is the mark for "no end"."""


class Window(NamedTuple):
    """The flow-control window of a node's connection."""

    held: int  # bytes that came and that the receiver has not consumed
    size: int  # bytes that it sends ahead at most; 0 without flow control

    @property
    def fill(self) -> float:
        """Between 0 and 1; more while a document that is larger than the window is held."""
        return self.held / self.size if self.size else 0.0


@dataclass(frozen=True, slots=True, eq=False)
class VBucketTable:
    """The vbuckets of a bucket at one moment. Arrays have one entry for each, and are read-only."""

    nodes: tuple[str, ...]
    phase: npt.NDArray[np.uint8]  # uint8, a VBucketPhase
    owner: npt.NDArray[np.int16]  # int16, index into `nodes` of the owner by the newest map, −1 for none
    seqno: npt.NDArray[np.int64]  # int64, received last; −1 without a stream
    high: npt.NDArray[np.int64]
    vbuuid: npt.NDArray[np.uint64]  # uint64, the history that is streamed; 0 without a stream

    def __post_init__(self) -> None:
        for column in (self.phase, self.owner, self.seqno, self.high, self.vbuuid):
            column.flags.writeable = False

    def __len__(self) -> int:
        return len(self.phase)


def vbucket_table(
    nodes: tuple[str, ...],
    owner: npt.NDArray[np.int16],  # by vbucket, index into `nodes`
    *,
    wanted: Iterable[int] = (),  # the source's vbuckets
    done: Iterable[tuple[int, VBucketOffset]] = (),
    ends: Mapping[int, int] = MappingProxyType({}),
    high_seqnos: Mapping[str, Mapping[int, int]] = MappingProxyType({}),
    streams: Iterable[Stream] = (),  # those of all connections
) -> VBucketTable:
    """Make a table of what is known of each vbucket."""
    size = len(owner)
    phase = np.zeros(size, np.uint8)
    seqno, high = np.full(size, -1, np.int64), np.full(size, -1, np.int64)
    vbuuid = np.zeros(size, np.uint64)
    ours = np.fromiter(wanted, np.intp)
    phase[ours] = np.where(owner[ours] < 0, VBucketPhase.OWNERLESS, VBucketPhase.WAITING)
    for index, node in enumerate(nodes):
        seqnos = high_seqnos.get(node, {})
        of = np.fromiter(seqnos, np.intp, len(seqnos))
        known = np.fromiter(seqnos.values(), np.uint64, len(seqnos))
        its = (of < size) & (owner[np.minimum(of, size - 1)] == index)
        _raise_to(high, of[its], known[its])
    running = list(streams)
    at = np.fromiter((stream.vbucket for stream in running), np.intp, len(running))
    phase[at] = [_PHASES[stream.state] for stream in running]
    seqno[at] = [min(stream.seqno, _LARGEST) for stream in running]
    vbuuid[at] = [stream.vbuuid for stream in running]
    _raise_to(high, at, np.fromiter((stream.snap_end for stream in running), np.uint64, len(running)))
    for vb, end in ends.items():
        if end != MAX_SEQNO:
            high[vb] = min(end, _LARGEST)
    for vb, position in done:
        phase[vb], seqno[vb], vbuuid[vb] = VBucketPhase.DONE, min(position.seqno, _LARGEST), position.vbuuid
    return VBucketTable(nodes, phase, owner.copy(), seqno, high, vbuuid)


def empty_table() -> VBucketTable:
    """The table of a source that has no cluster map yet."""
    return vbucket_table((), np.zeros(0, np.int16))


def _raise_to(
    column: npt.NDArray[np.int64], at: npt.NDArray[np.intp], values: npt.NDArray[np.uint64]
) -> None:
    """Set entries to values that are larger; what has the highest bit, as "no end" has, is none."""
    column[at] = np.maximum(column[at], values.astype(np.int64))
