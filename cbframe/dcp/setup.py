"""What the threads of the nodes get from their data source."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from cbframe.dcp import plan
from cbframe.dcp.connection import DcpConnection
from cbframe.dcp.counters import NodeStats
from cbframe.dcp.receiver import BlockReceiver, DeferringReceiver
from cbframe.dcp.transport import Transport
from cbframe.dcp.waits import Timeouts
from cbframe.errors import CbframeError
from cbframe.wire.constants import StreamFlag
from cbframe.wire.requests import StreamFilter


@dataclass(frozen=True, slots=True)
class NodeSetup:
    """What every node's thread of one data source needs."""

    transport: Transport
    receiver: BlockReceiver | DeferringReceiver
    make_connection: Callable[[NodeStats], DcpConnection]
    post: Callable[[plan.Event], None]
    on_config: Callable[[str, bytes], None]
    on_push: Callable[[str, tuple[int, int], bytes], None]
    on_time: Callable[[str, int], None]
    on_error: Callable[[CbframeError], None]
    clock: Callable[[], float]
    timeouts: Timeouts
    buffer_bytes: int
    max_body: int
    receive_bytes: int
    receive_latency: float
    wanted: StreamFilter
    stream_flags: StreamFlag
    trace_capacity: int
    logger: logging.Logger
    max_rate: int | None = None
