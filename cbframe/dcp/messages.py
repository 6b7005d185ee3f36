"""What the coordinator gets (events), what it has done (instructions), and the errors of bad events.

Plain values: all that the threads of a data source say to each other can be logged, and made up in tests.
`node` is the name of a connection everywhere: ``host:port``, or ``host:port#2`` of a second one to the same
node.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from cbframe.cluster.cluster_map import ClusterMap
from cbframe.cluster.collections_manifest import CollectionsManifest
from cbframe.dcp.positions import VBucketOffset
from cbframe.errors import (
    ROLES_HINT,
    AccessError,
    AllServerURLsConnectBucketError,
    CbframeError,
    ClusterMapError,
    ConfigurationError,
    ConnectError,
    ReadTimeoutError,
    StreamError,
)
from cbframe.system import shortage
from cbframe.wire.constants import Status, StreamEndReason
from cbframe.wire.messages import StreamFilter

UPDATE_SECURITY_SETTINGS = "UpdateSecuritySettings"
"""Reason of a :class:`Kicked` after which all connections are made again."""
_FINAL = (Status.UNKNOWN_COLLECTION, Status.UNKNOWN_SCOPE, Status.EINVAL)
"""Refusals that the next attempt would meet again."""
_MOST_NAMES = 8
"""Collections that an error names at most."""


def connections_to(address: str, count: int) -> tuple[str, ...]:
    """Names of the connections to a node: ``host:port``, ``host:port#2``…"""
    return (address, *(f"{address}#{number}" for number in range(2, count + 1)))


def address_of(connection: str) -> str:
    """``host:port`` of the node that a connection leads to."""
    return connection.partition("#")[0]


# -- events


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
    position: VBucketOffset
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
    seqno: int = field(default=0, compare=False)  # to which the server did


@dataclass(frozen=True, slots=True)
class Kicked:
    """There is a reason to fetch the cluster map."""

    reason: str


@dataclass(frozen=True, slots=True)
class Persisted:
    """Up to which history and seqno all copies of vbuckets have them on disk, or why nobody will know."""

    seqnos: Mapping[int, tuple[int, int]] = field(default_factory=dict)
    lost: tuple[int, ...] = ()  # whose owner has lost what was read
    error: CbframeError | None = None


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
    | Persisted
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


# -- the errors of bad events


def unexpected(exc: Exception, where: str, kind: type[CbframeError] = CbframeError) -> CbframeError:
    """Of an exception that nobody foresaw: no attempt after it can do better."""
    if (refusal := shortage(exc)) is not None:
        return refusal
    error = kind(f"an unexpected {type(exc).__name__} {where}")
    error.__cause__ = exc
    error.permanent = True
    return error


def bad_choice(wanted: Collection[int], new: ClusterMap) -> ConfigurationError | None:
    """Of wanted vbuckets that the bucket does not have."""
    bad = next((vb for vb in wanted if not 0 <= vb < new.vbuckets), None)
    if bad is None:
        return None
    return ConfigurationError(
        f"vbucket {bad} does not exist: bucket {new.bucket!r} has {new.vbuckets} vbuckets"
    )


def other_bucket(old: ClusterMap, new: ClusterMap) -> ClusterMapError | None:
    """Of a map that belongs to another bucket than the map before."""
    if new.vbuckets != old.vbuckets:
        return ClusterMapError(
            f"bucket {new.bucket!r} now has {new.vbuckets} vbuckets instead of {old.vbuckets}",
            hint="the bucket was deleted and created again: start over",
        )
    if new.uuid and old.uuid and new.uuid != old.uuid:
        return ClusterMapError(
            f"bucket {new.bucket!r} was replaced by another of the same name",
            hint="start over: nothing that was read before belongs to the new bucket",
        )
    return None


def ownerless(vbuckets: Collection[int], total: int) -> ClusterMapError:
    """Of vbuckets that have no owner now."""
    return ClusterMapError(
        f"the map names no owner for {len(vbuckets)} of {total} vbuckets",
        vbucket=min(vbuckets),
        hint="a node has failed and was not failed over: recover it or fail it over",
    )


def no_answer(nodes: list[str], seconds: float) -> AllServerURLsConnectBucketError:
    """Of nodes, or of all seeds, that said nothing at all."""
    return AllServerURLsConnectBucketError(
        nodes, f"no answer within {seconds:g} s from: {', '.join(nodes) or 'any seed'}"
    )


def with_addresses(error: CbframeError, found: ClusterMap) -> CbframeError:
    """The error of nodes that were not reached, with a hint about their addresses.

    Not where the cluster was reached at an address of one of them: then a node is down.
    """
    away = error.server_urls if isinstance(error, AllServerURLsConnectBucketError) else [error.node or ""]
    listed = [node for node in dict.fromkeys(map(address_of, away)) if node in found.nodes]
    silent = type(error) in (ConnectError, AllServerURLsConnectBucketError, ReadTimeoutError)
    if not silent or error.permanent or not found.origin or not listed:
        return error
    error.hint = (
        f"the cluster was reached at {found.origin}, and advertises {_some(listed)}, which cannot be reached "
        "from here"
    )
    others = {name for node in listed for name in found.elsewhere[node]}
    if others:
        name = min(others)
        there = _some([found.elsewhere[node][name] for node in listed if name in found.elsewhere[node]])
        error.hint += f"; the nodes are also on the network {name!r} ({there}): give network={name!r}"
    else:
        error.hint += (
            ": publish the nodes' ports and give the nodes alternate addresses with these "
            "(couchbase-cli setting-alternate-address), or run where theirs can be reached"
        )
    return error


def _some(names: Sequence[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def ended(event: StreamEnded) -> CbframeError | None:
    """Of a stream that the server ended; None if that is in order or a vbucket has moved."""
    reason = event.reason
    if reason in (StreamEndReason.OK, StreamEndReason.FILTER_EMPTY, StreamEndReason.STATE_CHANGED):
        return None
    if reason == StreamEndReason.LOST_PRIVILEGES:
        return AccessError(
            "the user lost the privilege to read this vbucket's collections",
            node=event.node,
            vbucket=event.vbucket,
        )
    name = StreamEndReason(reason).name if reason in list(StreamEndReason) else str(reason)
    return StreamError(f"the server ended the stream: {name}", node=event.node, vbucket=event.vbucket)


def refused(event: StreamRefused) -> StreamError | AccessError:
    """Of a stream that the server did not grant."""
    if event.status == Status.EACCESS:
        return AccessError(
            "the user may not stream all that was asked for", node=event.node, vbucket=event.vbucket
        )
    error = StreamError(
        f"the stream was refused ({Status.describe(event.status)})", node=event.node, vbucket=event.vbucket
    )
    error.permanent = event.status in _FINAL
    return error


def access_hint(wanted: StreamFilter, seen: CollectionsManifest | None) -> str:
    """What a user can do who may not stream all that was asked for."""
    names = sorted(map(str, seen.collections_of(None).values())) if seen is not None else []
    if seen is None or not names:
        return ROLES_HINT
    visible = f"the user sees {_some(names, _MOST_NAMES)}"
    if wanted.collections is not None:
        return f"{visible}, and may not stream all of these: name fewer; to read more, {ROLES_HINT}"
    scope = next((name for name, number in seen.scopes.items() if number == wanted.scope), None)
    inside = [name for name in names if scope in (None, name.partition(".")[0])]
    give = f"collections={inside}" if len(inside) <= _MOST_NAMES else "some of these as collections=[...]"
    every = 'collections="visible" for all that the user sees'
    return f"{visible}: give {give}, or {every}; to read more, {ROLES_HINT}"


def rolled_back(event: StreamRolledBack, times: int) -> StreamError:
    """Of a vbucket that the server wants back again and again."""
    return StreamError(
        f"the server asked for {times} rollbacks of the vbucket, one after the other",
        node=event.node,
        vbucket=event.vbucket,
        hint="the histories of its copies disagree: see the server's log about the vbucket",
    )


def gave_up(error: CbframeError, seconds: float, missing: int | None, total: int) -> StreamError:
    """Of a source after too many failures; `error` is the last of them.

    `missing` vbuckets are not complete; None of a source without an end.
    """
    if missing is None:
        what = f"attempts have failed for {seconds:g} s"
        hint = "resume from the last checkpoint when the cluster is healthy, or raise recovery_timeout"
    else:
        what = f"no progress for {seconds:g} s, {missing} of {total} vbuckets are not complete"
        hint = "no documents are returned, since some are missing; raise recovery_timeout to wait longer"
    failure = StreamError(
        f"{what}; last problem: {error.message}", node=error.node, vbucket=error.vbucket, hint=hint
    )
    failure.__cause__ = error
    return failure
