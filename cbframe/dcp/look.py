"""One look at a bucket: who has which vbucket, and where each of them is."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from time import monotonic
from time import sleep as pause
from typing import Any, TypeAlias, TypeVar

from cbframe.cluster.auth import AuthLike
from cbframe.cluster.cluster_map import ClusterMap
from cbframe.cluster.tls import TLSLike
from cbframe.dcp import verdicts
from cbframe.dcp.maps import MapSource, map_source, when_loaded
from cbframe.dcp.positions import Position, VBucketMetaData
from cbframe.dcp.receiver import PositionReceiver
from cbframe.dcp.source import BucketDataSource
from cbframe.dcp.survey import UNKNOWN, Size, survey, survey_sizes, survey_time
from cbframe.dcp.threads import at_once
from cbframe.dcp.transport import Waker
from cbframe.errors import CbframeError, ConnectError, ReadTimeoutError, StreamError
from cbframe.options import BucketDataSourceOptions
from cbframe.typing import ServerURLs
from cbframe.wire.blocks import DataBlock
from cbframe.wire.constants import MAX_VBUCKETS

T = TypeVar("T")
_Work: TypeAlias = Callable[[Waker], Any]

_ATTEMPTS = 5
_PAUSE = 0.5
"""Seconds between two attempts, while vbuckets are on their way from node to node."""


@dataclass(frozen=True, slots=True)
class Look:
    """A bucket at one moment."""

    map: ClusterMap  # who has which vbucket
    positions: dict[int, Position]  # by vbucket: its high seqno, and its newest history
    sizes: dict[int, Size]  # about how much is in each; empty if that was not asked for
    time: int | None = None


def look_at(
    server_urls: ServerURLs,
    bucket: str,
    auth: AuthLike,
    options: BucketDataSourceOptions,
    tls: TLSLike = None,
    network: str = "auto",
    *,
    vbuckets: Iterable[int] | None = None,  # those to look at; None for all
    first_map: ClusterMap | None = None,  # the cluster map to begin with, where one was fetched a moment ago
    sizes: bool = False,  # ask how much is in them, too
    time: bool = False,  # ask what time it is, too
    sleep: Callable[[float], None] = pause,  # stand-ins for tests
    clock: Callable[[], float] = monotonic,
) -> Look:
    """Ask all nodes at the same time, one connection each, where their vbuckets are.

    Once there is a map, a node that cannot be asked is waited for, as long as ``recovery_timeout`` says.
    """
    wanted = None if vbuckets is None else set(vbuckets)
    with map_source(server_urls, bucket, auth, options, tls, network, clock=clock) as source:
        if first_map is None or not source.adopt(first_map):
            first_map = when_loaded(source.fetch, options.connect_timeout, sleep=sleep, clock=clock)
        looking = _Looking(source, wanted, options.recovery_timeout, sleep, clock)
        return looking.look(first_map, sizes=sizes, time=time)


class _Looking:
    """Looks again and again, until every vbucket was seen once in one go."""

    def __init__(
        self,
        source: MapSource,
        wanted: set[int] | None,  # vbuckets; None for all
        patience: float,
        sleep: Callable[[float], None],
        clock: Callable[[], float],
    ) -> None:
        self._source = source
        self._wanted = wanted
        self._patience = patience
        self._sleep = sleep
        self._clock = clock

    def look(self, found: ClusterMap, *, sizes: bool, time: bool) -> Look:
        until = self._clock() + self._patience
        attempts = 0
        together = True
        while True:
            chosen = set(range(found.vbuckets)) if self._wanted is None else self._wanted
            if (bad := verdicts.bad_choice(chosen, found)) is not None:
                raise bad
            # At the first attempt, nothing waits for the other; statistics are not asked for with each.
            more = self._more(found, chosen, sizes=sizes, time=time)
            try:
                positions, outcomes = self._positions(found, chosen, more if together else [])
            except CbframeError as exc:
                # A node that is being restarted, or was taken away just now.
                if not self._may_heal(exc, until):
                    verdicts.with_addresses(exc, found)
                    raise
            else:
                missing = chosen - positions.keys()
                if not missing:
                    outcomes = outcomes if together else at_once(more)
                    seconds = _result(outcomes.pop()) if time else None
                    estimates = _sizes(outcomes, positions) if sizes else {}
                    return Look(found, dict(sorted(positions.items())), estimates, seconds)
                attempts += 1
                if attempts == _ATTEMPTS:
                    raise verdicts.ownerless(missing, found.vbuckets)
            together = False
            self._sleep(_PAUSE)
            found = self._next_map(found, until)

    def _may_heal(self, error: CbframeError, until: float) -> bool:
        return not error.permanent and self._clock() < until

    def _next_map(self, found: ClusterMap, until: float) -> ClusterMap:
        try:
            return self._source.fetch()
        except CbframeError as exc:
            if not self._may_heal(exc, until):
                raise
            return found

    def _positions(
        self, found: ClusterMap, chosen: set[int], more: list[_Work]
    ) -> tuple[dict[int, Position], list[Any]]:
        """Where the vbuckets are; and the outcomes of what else is to be done at the same time."""
        nodes = sorted({owner for vb in chosen if (owner := found.node_of(vb)) is not None})
        ask = partial(survey, wanted=chosen)
        outcomes: list[Any] = at_once([*(partial(self._source.query, node, ask) for node in nodes), *more])
        positions: dict[int, Position] = {}
        for node, outcome in zip(nodes, outcomes, strict=False):
            for vb, at in _result(outcome).items():
                # One that is on its way may be with two nodes: the old one goes on answering for a while.
                if found.node_of(vb) == node or vb not in positions:
                    positions[vb] = at
        return positions, outcomes[len(nodes) :]

    def _more(self, found: ClusterMap, chosen: set[int], *, sizes: bool, time: bool) -> list[_Work]:
        """What asks how much is in the vbuckets, and last what time it is, where these are wanted."""
        of_node: dict[str, list[int]] = {}
        for vb in sorted(chosen) if sizes else ():
            if (node := found.node_of(vb)) is not None:
                of_node.setdefault(node, []).append(vb)
        works: list[_Work] = [
            partial(self._source.query, node, partial(survey_sizes, vbuckets=own))
            for node, own in of_node.items()
        ]
        return [*works, partial(self._time, found)] if time else works

    def _time(self, found: ClusterMap, waker: Waker) -> int | None:
        """That of the first node that reports it."""
        for node in found.nodes:
            try:
                seconds = self._source.query(node, survey_time, waker)
            except (ConnectError, ReadTimeoutError):
                continue
            if seconds is not None:
                return seconds
        return None


def _sizes(outcomes: list[Any], vbuckets: Iterable[int]) -> dict[int, Size]:
    found = {
        vb: size
        for outcome in outcomes
        # A node without time for statistics, or that hangs up on who asks: an estimate is missing.
        if not isinstance(outcome, ConnectError | ReadTimeoutError)
        for vb, size in _result(outcome).items()
    }
    return {vb: found.get(vb, UNKNOWN) for vb in sorted(vbuckets)}


def _result(outcome: T | CbframeError) -> T:
    """The result; an error is raised."""
    if isinstance(outcome, CbframeError):
        raise outcome
    return outcome


_SAMPLES = 3


@dataclass(frozen=True, slots=True)
class Now:
    """One moment of a bucket."""

    bucket_uuid: str  # of this life of the bucket
    positions: dict[int, Position]  # by vbucket; streams that go on from there bring what changes later


@dataclass(slots=True)
class _Logs(PositionReceiver):
    """A receiver that keeps failover logs, of streams that have nothing in them."""

    logs: dict[int, VBucketMetaData] = field(default_factory=dict)

    def on_block(self, block: DataBlock) -> None:
        """Not called: the streams end where they begin."""

    def on_error(self, error: CbframeError) -> None:
        """What matters is raised by the source."""

    def snapshot_start(self, vbucket: int, start: int, end: int, flags: int) -> None:
        """Nothing to do."""

    def store(self, vbucket: int, metadata: VBucketMetaData) -> None:
        self.logs[vbucket] = metadata

    def position(self, vbucket: int) -> Position:  # noqa: ARG002
        return Position()

    def rollback(self, vbucket: int, seqno: int) -> None:
        """Nothing was received."""


def sample_now(
    server_urls: ServerURLs,
    bucket: str,
    vbuckets: Iterable[int] | None,
    auth: AuthLike,
    options: BucketDataSourceOptions,
    *,
    tls: TLSLike = None,
    network: str = "auto",
) -> Now:
    """Ask all nodes for their high seqnos, and for the failover logs.

    Every node is asked once, when it is connected, and no stream begins before.
    """
    for _ in range(_SAMPLES):
        receiver = _Logs()
        # Streams from 0 to 0 end as soon as they are granted, with the failover log. All are asked at once.
        wanted = replace(
            options,
            seq_end=dict.fromkeys(range(MAX_VBUCKETS), 0),
            stream_id=None,
            connections_per_node=1,  # a question needs no more
        )
        source = BucketDataSource(
            server_urls,
            "default",
            bucket,
            "",
            vbuckets,
            auth,
            receiver,
            wanted,
            tls_context=tls,
            network=network,
        )
        try:
            source.start()
            source.wait()
            seqnos, found = source.high_seqnos, source.map
        finally:
            source.close()
        assert found is not None, "it is complete"
        logs = receiver.logs
        if logs.keys() <= seqnos.keys():
            return Now(found.uuid, {vb: _position(log, seqnos[vb]) for vb, log in logs.items()})
    raise StreamError(
        "vbuckets went from node to node while all were asked where they are",
        hint="wait for the end of the rebalance, and try again",
    )


def _position(log: VBucketMetaData, seqno: int) -> Position:
    return Position.of(replace(log, snap_start=seqno, snap_end=seqno), seqno, base=seqno)
