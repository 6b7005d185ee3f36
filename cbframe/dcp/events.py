"""What a connection tells: its events, as plain values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from cbframe.dcp.handshake import Session
from cbframe.dcp.streams import Stream
from cbframe.wire.blocks import DataBlock
from cbframe.wire.messages import SystemEvent


@dataclass(frozen=True, slots=True)
class Ready:
    """The handshake is done; streams can be requested."""

    session: Session


@dataclass(frozen=True, slots=True)
class Sampled:
    """The answer to :meth:`DcpConnection.sample`: high seqnos by vbucket."""

    seqnos: dict[int, int]


@dataclass(frozen=True, slots=True)
class Timed:
    """What time it is at the node: seconds since the epoch."""

    seconds: int


@dataclass(frozen=True, slots=True)
class Data:
    """Documents, to be acknowledged with :meth:`DcpConnection.acknowledge` when they are consumed.

    `fresh` lists the streams whose snapshot has its first item in this block; `nbytes` is what the
    documents, and dropped ones among them, took on the wire.
    """

    block: DataBlock
    fresh: tuple[Stream, ...]
    nbytes: int


@dataclass(frozen=True, slots=True)
class Opened:
    """The server accepted a stream request; the stream has its failover log."""

    stream: Stream


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A snapshot begins."""

    stream: Stream


@dataclass(frozen=True, slots=True)
class Advanced:
    """Progress without a document."""

    stream: Stream


@dataclass(frozen=True, slots=True)
class Ordered:
    """An out-of-order snapshot is complete: the stream has a position again."""

    stream: Stream


@dataclass(frozen=True, slots=True)
class CollectionEvent:
    """A scope or collection came, went or changed."""

    stream: Stream
    event: SystemEvent


@dataclass(frozen=True, slots=True)
class RolledBack:
    """The server wants the vbucket taken back to `seqno` before it streams."""

    stream: Stream
    seqno: int


@dataclass(frozen=True, slots=True)
class Refused:
    """The server will not stream this vbucket; `body` may hold a cluster map (NOT_MY_VBUCKET)."""

    stream: Stream
    status: int
    body: bytes


@dataclass(frozen=True, slots=True)
class Ended:
    """A stream is over; `reason` is None when the client closed it."""

    stream: Stream
    reason: int | None


@dataclass(frozen=True, slots=True)
class MapPushed:
    """The node has a new cluster map, of this revision; an empty `body` if it does not show it."""

    revision: tuple[int, int]
    body: bytes


@dataclass(frozen=True, slots=True)
class Nooped:
    """The server asked whether the client lives, and the answer is on its way."""


Event: TypeAlias = (
    Ready
    | Sampled
    | Timed
    | Data
    | Opened
    | Snapshot
    | Advanced
    | Ordered
    | CollectionEvent
    | RolledBack
    | Refused
    | Ended
    | MapPushed
    | Nooped
)
