"""Options as frozen dataclasses: checked when they are made, never changed afterwards."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from cbframe.errors import ConfigurationError

if TYPE_CHECKING:
    import logging


_POSITIVE = (
    "connect_timeout",
    "stream_request_timeout",
    "recovery_timeout",
    "noop_interval_secs",
    "ping_timeout_ms",
    "persistence_interval",
)
_CHOICES: dict[str, tuple[object, ...]] = {
    "consistency": ("snapshot", "strict"),
    "compression": (True, False, "force"),
    "priority": ("low", "medium", "high"),
    "backfill_order": ("round-robin", "sequential"),
}
_MAX_STREAM_ID = 0xFFFF
RANDOM_PART = 33
"""Bytes that are appended to the name of a connection to make it unique."""
_LONGEST_NAME = 200
"""Servers up to 7.0.3 take no more bytes of it, and some of them fail with braces in it."""
_NAME = re.compile("[ -z|~]+")


def check_connection_name(name: object, room: int = 0) -> None:
    """Refuse a name of a DCP connection that a server may not take.

    Parameters
    ----------
    name
        The name, or its beginning.
    room
        Bytes that are still to be appended.

    Raises
    ------
    ConfigurationError
        It is too long, empty, or has characters other than printable ASCII without braces.
    """
    longest = _LONGEST_NAME - room
    if not isinstance(name, str) or not _NAME.fullmatch(name) or len(name) > longest:
        raise ConfigurationError(
            f"the name of a DCP connection is not usable: {name!r:.60}",
            hint=f"give 1 to {longest} characters of printable ASCII, without {{ and }}: servers show it in "
            "their logs and statistics",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class BucketDataSourceOptions:
    """How a :class:`~cbframe.dcp.source.BucketDataSource` behaves.

    Names and defaults follow the reference (Go ``cbdatasource``) where it has the option, but for
    ``noop_interval_secs``, which is 120 there: a dead link would be noticed after four minutes.

    Parameters
    ----------
    name
        Prefix of the DCP connection names, 1 to 167 characters of printable ASCII without braces; a random
        suffix makes each unique, since the server closes the older of two connections with one name.
    cluster_manager_backoff_factor, cluster_manager_sleep_init_ms, cluster_manager_sleep_max_ms
        Waits between attempts to get a cluster map: first, growth, longest.
    data_manager_backoff_factor, data_manager_sleep_init_ms, data_manager_sleep_max_ms
        The same for a connection to a data node, and for a stream that was refused.
    feed_buffer_size_bytes
        Flow-control window of each node's connection, in bytes; 0 turns flow control off.
    feed_buffer_ack_threshold
        Part of the window that is acknowledged at once, over 0 and at most 1.
    connections_per_node
        Connections to each node, 1 to 16. A node serves a connection by one thread: several are faster where
        that is the limit, for more work of the node. Its vbuckets, the window and `max_bytes_per_sec` are
        divided evenly among them; one that breaks leaves the others alone. ``"auto"``: up to 4, by how many
        changes a node has, and 1 with `max_bytes_per_sec`; each has a quarter of the window.
    max_bytes_per_sec
        So much may each node send, on average: acknowledgements wait, and the window is no larger than a
        tenth of a second's worth. None: as much as it can. Needs flow control.
    noop_interval_secs
        The server sends a NOOP this often; a connection that was silent for twice as long is dead.
    seq_end
        Where each vbucket's stream may end: ``"now"`` for the high seqnos at the start, a mapping of
        vbucket to seqno, or None for streams without an end.
    consistency
        What a bounded source does about a node that loses data after some of its vbuckets were complete, as
        one that crashes before it has written them to disk. ``"snapshot"`` leaves such a vbucket as it
        was when it was complete: its position tells the history. ``"strict"`` asks for each vbucket once
        more when all are complete, and reads those again whose history has lost what was received, until
        nothing has happened in between.
    only_persisted
        A bounded source is complete when the active copy and all replicas of each vbucket have on disk what
        was read of it; what a failover took away meanwhile is read again. An error if no copy of a vbucket
        has written more for `recovery_timeout`, and of ephemeral buckets.
    persistence_interval
        With `only_persisted`, seconds after which the nodes are asked again what they have on disk.
    include_xattrs
        Ask for the xattr section of documents.
    no_value
        Ask for keys and metadata only. The datatype is that of the stored document, but 0 on servers
        that are too old to send it.
    collections
        Collection ids to stream; None for all. Filtered by the server.
    scope_id
        Stream all collections of this scope; excludes `collections`.
    compression
        Let the server send values as it has them stored, compressed or not: fewer bytes on the way, and
        less work for the server, which inflates them otherwise. Asked for where the receiver says that it
        takes such values (``takes_compressed``); ``"force"``: the server is to compress them all.
    priority
        How soon the server serves the connections: ``"low"``, ``"medium"``, ``"high"``; None leaves it
        to the server.
    backfill_order
        ``"sequential"`` reads one vbucket after the other from disk, ``"round-robin"`` all by turns;
        None leaves it to the server.
    out_of_order
        Let the server send what is on disk in the order that is quickest to read, where it can: for
        streams from the start that are filtered by collection.
    change_streams
        Ask for the history of documents: a snapshot may hold several versions of one. An error where
        the bucket keeps none.
    ignore_purged_tombstones
        Continue a stream although deletions after its position were purged: they are not reported.
    skip_first_deletions
        Let servers after 8.0 leave deletions out of the first backfill of a stream that begins at 0, where
        there is nothing that they could delete. Reads ask for it by themselves.
    flatbuffers_system_events
        Let the server tell changes of collections in the newer form, which alone tells what was modified.
    stream_id
        Number of the streams, 1 to 65535, as several streams of one vbucket need; None for streams
        without one. Then expirations come as deletions, and no time comes with them.
    ask_time
        Ask each node for its time of day, when a connection to it is made: ``BucketDataSource.node_time``.
        It is a statistic, which not every user may see.
    idle_timeout
        Seconds during which a node answers but sends nothing over the streams of a bounded source,
        although they are not complete and its flow-control window is open: then the connection is made
        again, and the source goes on from there, for as long as `recovery_timeout` allows attempts
        without progress. A warning is logged after the first 10 seconds. A node that searches a large
        disk for a collection's few documents may take longer; None waits without end. Time during which
        the receiver holds the window closed does not count.
    connect_timeout
        Seconds for one turn: to connect, to make TLS, and from one answer of a node to the next while a
        connection is made. A cluster that is far away takes several turns, and each has this time; all
        turns of a connection together have twelve times as long. Also for how long a bounded source, once
        it has a cluster map, tries again to get to its streams.
    stream_request_timeout
        Seconds without an answer to any of the stream requests under way, after which the connection is
        made again.
    recovery_timeout
        Seconds that a bounded source goes on while attempts fail and no node sends anything: no document,
        no seqno, no end of a stream.
    endless_retry
        A source without an end goes on whatever happens, as the reference's does, and only its receiver's
        ``on_error`` learns of it. False: it ends as a bounded one does, with an error that no further
        attempt can heal, or after attempts have failed for `recovery_timeout`.
    map_poll_interval
        Seconds without news of the cluster map after which it is looked at all the same; None for never.
    map_streaming
        With ``http://`` and ``https://`` seeds: have the cluster manager send each new cluster map, as the
        data nodes do over their own connections.
    ping_timeout_ms
        A connection that was idle for this many milliseconds is asked whether it lives.
    receive_buffer_bytes
        Bytes of the receive buffer of each node's connection.
    receive_bytes
        While documents flow, a receive waits until as many bytes have come: nodes send each document by
        itself, and each receive has a price. It never waits for more than the node may send before it is
        sent an acknowledgement.
    receive_latency
        Seconds for which a receive waits at most; what comes after a silence is taken at once. 0 takes
        everything as it comes.
    max_body_bytes
        A longer message ends the connection with a ``ProtocolError``.
    allow_plain
        Without TLS, send the password in clear text where the server takes nothing better: it offers nothing
        else, or the user is one of a directory (LDAP). With TLS that is done in any case.
    connect_bucket
        ``connect_bucket(server_url, pool_name, bucket_name, auth)`` describes a bucket (an object with
        ``uuid`` and ``map``, as :func:`cbframe.connect_bucket` gives) in place of what is done otherwise.
    connect, connect_tls
        ``connect(protocol, address)`` and ``connect_tls(protocol, address, context)`` give a connected
        ``socket.socket`` to a data node, through a proxy for one. They should have a timeout of their own.
    proxies
        HTTP proxies for requests to cluster managers (``http://`` and ``https://`` seeds), by scheme:
        ``{"https": "http://user:password@host:3128"}``, or ``"all"``. They are asked to CONNECT. None for
        none: ``HTTP_PROXY`` and its like, and ``~/.netrc``, do not count. Data nodes are connected to
        without: `connect` is for them.
    tls_config
        As ``tls=`` of :func:`cbframe.scan_bucket`, or a callable that gives one of these, called again
        after ``kick(UPDATE_SECURITY_SETTINGS)``.
    logger
        Where diagnostics go; None for ``cbframe.dcp``. No password and no document key is ever logged.
    trace_capacity
        Events of each connection kept for the moment at which it breaks; 0 keeps none.
    """

    name: str = "cbframe"
    cluster_manager_backoff_factor: float = 1.5
    cluster_manager_sleep_init_ms: int = 100
    cluster_manager_sleep_max_ms: int = 1000
    data_manager_backoff_factor: float = 1.5
    data_manager_sleep_init_ms: int = 100
    data_manager_sleep_max_ms: int = 1000
    feed_buffer_size_bytes: int = 20_000_000
    feed_buffer_ack_threshold: float = 0.2
    connections_per_node: int | Literal["auto"] = 1
    max_bytes_per_sec: int | None = None
    noop_interval_secs: float = 20
    seq_end: Mapping[int, int] | Literal["now"] | None = None
    consistency: Literal["snapshot", "strict"] = "snapshot"
    only_persisted: bool = False
    persistence_interval: float = 0.1
    include_xattrs: bool = False
    no_value: bool = False
    collections: tuple[int, ...] | None = None
    scope_id: int | None = None
    compression: bool | Literal["force"] = True
    priority: Literal["low", "medium", "high"] | None = None
    backfill_order: Literal["round-robin", "sequential"] | None = None
    out_of_order: bool = False
    change_streams: bool = False
    ignore_purged_tombstones: bool = False
    skip_first_deletions: bool = False
    flatbuffers_system_events: bool = True
    stream_id: int | None = None
    ask_time: bool = False
    idle_timeout: float | None = 300.0
    connect_timeout: float = 10.0
    stream_request_timeout: float = 60.0
    recovery_timeout: float = 60.0
    endless_retry: bool = True
    map_poll_interval: float | None = 10.0
    map_streaming: bool = True
    ping_timeout_ms: int = 30_000
    receive_buffer_bytes: int = 4 * 1024 * 1024
    receive_bytes: int = 1024 * 1024
    receive_latency: float = 0.02
    max_body_bytes: int = 25 * 1024 * 1024
    allow_plain: bool = False
    connect_bucket: Callable[[str, str, str, Any], Any] | None = None
    connect: Callable[[str, str], Any] | None = None
    connect_tls: Callable[[str, str, Any], Any] | None = None
    proxies: Mapping[str, str] | None = field(default=None, repr=False)
    tls_config: Any = field(default=None, repr=False)
    logger: logging.Logger | None = None
    trace_capacity: int = 200

    def __post_init__(self) -> None:
        check_connection_name(self.name, RANDOM_PART)
        for name in _POSITIVE:
            if not getattr(self, name) > 0:
                raise ConfigurationError(f"{name} must be positive, not {getattr(self, name)}")
        for name in ("map_poll_interval", "idle_timeout"):
            if (seconds := getattr(self, name)) is not None and not seconds > 0:
                raise ConfigurationError(f"{name} must be positive, not {seconds}")
        self._check_proxies()
        self._check_backoff()
        self._check_flow()
        if self.receive_buffer_bytes < 64 * 1024:
            raise ConfigurationError("receive_buffer_bytes must be at least 65536")
        if self.receive_bytes < 1:
            raise ConfigurationError("receive_bytes must be at least 1")
        if not 0 <= self.receive_latency <= 1:
            raise ConfigurationError(f"receive_latency must be from 0 to 1, not {self.receive_latency}")
        if self.max_body_bytes < 1024:
            raise ConfigurationError("max_body_bytes must be at least 1024")
        if self.collections is not None and self.scope_id is not None:
            raise ConfigurationError("collections and scope_id exclude each other")
        for name, choices in _CHOICES.items():
            if (chosen := getattr(self, name)) is not None and chosen not in choices:
                known = ", ".join(map(str, choices))
                raise ConfigurationError(f"{name} is one of {known}, or None, not {chosen!r}")
        if self.stream_id is not None and not 1 <= self.stream_id <= _MAX_STREAM_ID:
            raise ConfigurationError(f"stream_id must be from 1 to {_MAX_STREAM_ID}, not {self.stream_id}")
        if isinstance(self.seq_end, str) and self.seq_end != "now":
            raise ConfigurationError(f"seq_end is 'now', a mapping or None, not {self.seq_end!r}")

    def _check_proxies(self) -> None:
        for scheme, url in (self.proxies or {}).items():
            parts = urlsplit(url)
            if scheme not in ("http", "https", "all") or parts.scheme != "http" or not parts.hostname:
                # Not the URL: it may hold a password.
                raise ConfigurationError(
                    f"proxies: the proxy for {scheme!r} is not usable",
                    hint='write proxies={"https": "http://host:port"}: only HTTP proxies can be used',
                )

    def _check_backoff(self) -> None:
        for prefix in ("cluster_manager", "data_manager"):
            factor = getattr(self, f"{prefix}_backoff_factor")
            first = getattr(self, f"{prefix}_sleep_init_ms")
            longest = getattr(self, f"{prefix}_sleep_max_ms")
            if factor < 1 or not 0 < first <= longest:
                raise ConfigurationError(
                    f"the {prefix} back-off needs a factor of at least 1 and 0 < init <= max, "
                    f"not {factor}, {first}, {longest}"
                )

    def _check_flow(self) -> None:
        if self.feed_buffer_size_bytes < 0:
            raise ConfigurationError("feed_buffer_size_bytes must not be negative")
        if not 0 < self.feed_buffer_ack_threshold <= 1:
            raise ConfigurationError(
                "feed_buffer_ack_threshold must be over 0 and at most 1",
                hint="a server whose window is never acknowledged stops sending",
            )
        each: object = self.connections_per_node
        if each != "auto" and (type(each) is not int or not 1 <= each <= 16):
            raise ConfigurationError(f"connections_per_node is from 1 to 16, or 'auto', not {each!r}")
        if self.max_bytes_per_sec is not None:
            if self.max_bytes_per_sec < 1024:
                raise ConfigurationError("max_bytes_per_sec must be at least 1024, or None")
            if not self.feed_buffer_size_bytes:
                raise ConfigurationError(
                    "max_bytes_per_sec needs flow control", hint="feed_buffer_size_bytes=0 turns it off"
                )
