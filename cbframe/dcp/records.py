"""What the coordinator knows of each node and of each vbucket."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from cbframe.cluster.backoff import Backoff
from cbframe.errors import CbframeError, ProtocolError
from cbframe.options import BucketDataSourceOptions

_MAX_PROTOCOL_ERRORS = 3
"""Connections of one node that may end in broken bytes."""


class NodeState(Enum):
    STARTING = "starting"
    READY = "ready"
    WAITING = "waiting"
    LEAVING = "leaving"
    """No longer in the cluster map; told to stop."""


@dataclass(slots=True)
class NodeRecord:
    """A node that was wanted at some time."""

    backoff: Backoff
    state: NodeState = NodeState.WAITING
    retry_at: float = 0.0
    seqnos: Mapping[int, int] = field(default_factory=dict)
    """High seqnos of its active vbuckets, as told last."""
    sampling: bool = False
    protocol_errors: int = 0

    def lost(self, error: CbframeError, now: float, *, progressed: bool) -> None:
        """The connection is over: wait before the next one.

        Broken bytes again and again are no accident; then the error is made permanent.
        """
        if progressed:
            self.backoff.reset()
        if isinstance(error, ProtocolError):
            self.protocol_errors += 1
            error.permanent |= self.protocol_errors >= _MAX_PROTOCOL_ERRORS
        self.state = NodeState.WAITING
        self.sampling = False
        self.retry_at = now + self.backoff.next_delay()


@dataclass(slots=True)
class VBucketRecord:
    """A wanted vbucket."""

    backoff: Backoff
    node: str | None = None
    """Who was asked for it."""
    retry_at: float = 0.0
    end: int = 0
    """Up to where it was asked for."""
    attempts: int = 0
    """How often it was asked for."""
    rollbacks: int = 0
    stale: bool = False
    """Asked for before: the owner's high seqno must be looked at again."""


def node_backoff(options: BucketDataSourceOptions) -> Backoff:
    """The waits for a data node or one of its streams."""
    return Backoff(
        options.data_manager_sleep_init_ms,
        options.data_manager_backoff_factor,
        options.data_manager_sleep_max_ms,
    )


def map_backoff(options: BucketDataSourceOptions) -> Backoff:
    """The waits for a cluster map."""
    return Backoff(
        options.cluster_manager_sleep_init_ms,
        options.cluster_manager_backoff_factor,
        options.cluster_manager_sleep_max_ms,
    )
