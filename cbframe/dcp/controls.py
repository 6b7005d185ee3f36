"""What is asked of a DCP connection with DCP_CONTROL: one table, in the order in which it is sent."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from secrets import token_hex
from typing import Self, TypeAlias

from cbframe.options import RANDOM_PART, BucketDataSourceOptions, check_connection_name
from cbframe.wire.constants import Feature, StreamFlag


def connection_name(prefix: str) -> str:
    """A name that no other connection has: the server closes the older of two with one name."""
    return f"{prefix}:{token_hex((RANDOM_PART - 1) // 2)}"


_AUTO = 4
"""Connections to a node with ``connections_per_node="auto"``, at most."""


def connections_at_most(options: BucketDataSourceOptions) -> int:
    """Connections to a node, at most: all that is limited for each node is divided by this."""
    if options.connections_per_node == "auto":
        return 1 if options.max_bytes_per_sec is not None else _AUTO
    return options.connections_per_node


def rate_of(options: BucketDataSourceOptions) -> int | None:
    """Bytes a second of each connection; None for no limit."""
    rate = options.max_bytes_per_sec
    return None if rate is None else max(1, rate // connections_at_most(options))


def window_of(options: BucketDataSourceOptions) -> int:
    """Flow-control window of each connection in bytes; 0 for none."""
    window, rate = options.feed_buffer_size_bytes // connections_at_most(options), rate_of(options)
    if rate is not None:
        # What a node sends at first, unasked, must not spoil the average.
        window = min(window, rate // 10)
    return max(1, window) if options.feed_buffer_size_bytes else 0


@dataclass(frozen=True, slots=True)
class DcpSettings:
    """What is asked of a DCP connection.

    The options of the same names say what each means.
    """

    name: str
    xattrs: bool = False
    no_value: bool = False
    buffer_size: int = 0
    noop_interval: float = 20
    compression: bool | str = False
    priority: str | None = None
    backfill_order: str | None = None
    out_of_order: bool = False
    change_streams: bool = False
    skip_first_deletions: bool = False
    flatbuffers_system_events: bool = False
    stream_id: int | None = None
    ask_time: bool = False
    collections: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        check_connection_name(self.name)

    @classmethod
    def of(cls, options: BucketDataSourceOptions, name: str, *, takes_compressed: bool = False) -> Self:
        """What the options say, for a connection of this name and a receiver that does this."""
        return cls(
            name,
            xattrs=options.include_xattrs,
            no_value=options.no_value,
            buffer_size=window_of(options),
            noop_interval=options.noop_interval_secs,
            compression=takes_compressed and options.compression,
            priority=options.priority,
            backfill_order=options.backfill_order,
            out_of_order=options.out_of_order,
            change_streams=options.change_streams,
            skip_first_deletions=options.skip_first_deletions,
            flatbuffers_system_events=options.flatbuffers_system_events,
            stream_id=options.stream_id,
            ask_time=options.ask_time,
            collections=options.collections or (),
        )


Values: TypeAlias = Callable[[DcpSettings], tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Control:
    """One option of a connection."""

    key: str  # its name on the wire
    values: Values
    needed: bool = False
    hint: str | None = None  # what to do where a needed one is refused
    feature: Feature | None = None  # it is asked for only where HELLO granted this


def _always(value: str) -> Values:
    return lambda _: (value,)


def _if_wanted(wanted: Callable[[DcpSettings], bool], *values: str) -> Values:
    return lambda settings: values if wanted(settings) else ()


def _as_given(given: Callable[[DcpSettings], str | None]) -> Values:
    def values(settings: DcpSettings) -> tuple[str, ...]:
        value = given(settings)
        return () if value is None else (value,)

    return values


CONTROLS: tuple[Control, ...] = (
    # Noop is a must with collections or xattrs, and old servers want it enabled before its interval.
    Control("enable_noop", _always("true"), needed=True),
    Control("set_noop_interval", lambda settings: (_interval(settings.noop_interval),), needed=True),
    Control(
        "connection_buffer_size",
        _as_given(lambda settings: str(settings.buffer_size) if settings.buffer_size else None),
        needed=True,
    ),
    # Without these a node keeps a slow reader's place in memory.
    Control("supports_cursor_dropping", _always("true")),
    Control("supports_cursor_dropping_vulcan", _always("true")),
    # Has an effect with INCLUDE_DELETE_TIMES only, which numbered streams do without.
    Control("enable_expiry_opcode", _if_wanted(lambda settings: settings.stream_id is None, "true")),
    Control("send_stream_end_on_client_close_stream", _always("true")),
    Control("v7_dcp_status_codes", _always("true")),
    Control("max_marker_version", _always("2.2"), feature=Feature.COLLECTIONS),
    # Needs the feature; a node that does not compress sends what it has.
    Control("force_value_compression", _if_wanted(lambda settings: settings.compression == "force", "true")),
    Control("set_priority", _as_given(lambda settings: settings.priority)),
    Control("backfill_order", _as_given(lambda settings: settings.backfill_order)),
    Control(
        "enable_out_of_order_snapshots",
        _if_wanted(lambda settings: settings.out_of_order, "true_with_seqno_advanced", "true"),
    ),
    Control(
        "flatbuffers_system_events", _if_wanted(lambda settings: settings.flatbuffers_system_events, "true")
    ),
    Control(
        "change_streams",
        _if_wanted(lambda settings: settings.change_streams, "true"),
        needed=True,
        hint="only Magma buckets of Enterprise Edition 7.2 and later keep a history",
    ),
    Control(
        "enable_stream_id",
        _if_wanted(lambda settings: settings.stream_id is not None, "true"),
        needed=True,
        hint="servers before 6.5 cannot number their streams: leave stream_id out",
    ),
)
"""Everything that a client may ask for."""


def _interval(seconds: float) -> str:
    """Whole seconds where possible: old servers take no fractions."""
    return str(int(seconds)) if float(seconds).is_integer() else str(seconds)


def stream_flags(options: BucketDataSourceOptions) -> StreamFlag:
    """Flags of each stream request; not STRICT_VBUUID: a fresh start has no history to insist on."""
    flags = StreamFlag.ACTIVE_ONLY
    return flags | StreamFlag.IGNORE_PURGED_TOMBSTONES if options.ignore_purged_tombstones else flags
