"""What the coordinator gets (events) and what it wants done (instructions): plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from cbframe.cluster.cluster_map import ClusterMap
from cbframe.dcp.positions import Position
from cbframe.errors import CbframeError


def connections_to(address: str, count: int) -> tuple[str, ...]:
    """Names of the connections to a node: ``host:port``, ``host:port#2``…"""
    return (address, *(f"{address}#{number}" for number in range(2, count + 1)))


def address_of(connection: str) -> str:
    """``host:port`` of the node that a connection leads to."""
    return connection.partition("#")[0]


# -- events: `node` is the name of a connection


@dataclass(frozen=True, slots=True)
class Started:
    """The source was started."""


@dataclass(frozen=True, slots=True)
class MapFetched:
    """A cluster map arrived, asked for or `pushed`."""

    map: ClusterMap
    pushed: bool = False


@dataclass(frozen=True, slots=True)
class MapFailed:
    """A full pass over all seeds failed."""

    error: CbframeError


@dataclass(frozen=True, slots=True)
class NodeReady:
    """A connection is open; its node's active vbuckets have these high seqnos."""

    node: str
    seqnos: Mapping[int, int]


@dataclass(frozen=True, slots=True)
class NodeSampled:
    """A node reported its high seqnos again."""

    node: str
    seqnos: Mapping[int, int]


@dataclass(frozen=True, slots=True)
class NodeDown:
    """A connection ended. `progressed`: something useful came over it."""

    node: str
    error: CbframeError
    progressed: bool


@dataclass(frozen=True, slots=True)
class StreamEnded:
    """A stream is over; `reason` is a :class:`StreamEndReason`. `progressed`: something came over it."""

    node: str
    vbucket: int
    reason: int
    position: Position
    progressed: bool = False


@dataclass(frozen=True, slots=True)
class StreamRefused:
    """A stream request was answered with an error status."""

    node: str
    vbucket: int
    status: int


@dataclass(frozen=True, slots=True)
class StreamRolledBack:
    """The receiver took a vbucket back and it has to be asked for again."""

    node: str
    vbucket: int


UPDATE_SECURITY_SETTINGS = "UpdateSecuritySettings"
"""Reason of a :class:`Kicked` after which all connections are made again."""


@dataclass(frozen=True, slots=True)
class Kicked:
    """Someone wants the cluster looked at afresh."""

    reason: str


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


Event: TypeAlias = (
    Started
    | MapFetched
    | MapFailed
    | NodeReady
    | NodeSampled
    | NodeDown
    | StreamEnded
    | StreamRefused
    | StreamRolledBack
    | Kicked
    | Tick
)


# -- instructions


@dataclass(frozen=True, slots=True)
class FetchMap:
    """Ask the cluster for its map, over all seeds."""


@dataclass(frozen=True, slots=True)
class StartNode:
    node: str


@dataclass(frozen=True, slots=True)
class StopNode:
    """End the connection to a node, and say why; `NodeDown` follows."""

    node: str
    why: str


@dataclass(frozen=True, slots=True)
class SampleNode:
    """Ask a connected node for its high seqnos."""

    node: str


@dataclass(frozen=True, slots=True)
class OpenStreams:
    """Request streams of a connected node: pairs of vbucket and end seqno.

    Where there is an end, `NodeSampled` follows: it shows whether the server will ever get there.
    """

    node: str
    streams: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class CloseStreams:
    """Close streams of a connected node; `StreamEnded` follows for each."""

    node: str
    vbuckets: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Finish:
    """All vbuckets are done."""


@dataclass(frozen=True, slots=True)
class Fail:
    """The source cannot go on."""

    error: CbframeError


Instruction: TypeAlias = (
    FetchMap | StartNode | StopNode | SampleNode | OpenStreams | CloseStreams | Finish | Fail
)
