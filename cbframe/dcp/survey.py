"""Where the vbuckets of a bucket are: asked of all nodes at the same time, over connections of their own.

:func:`survey_bucket` asks with ordinary requests (high seqnos, failover logs, statistics), again and again
until each vbucket was found once in one go. :func:`current_positions` has the failover logs in full, and
works for users who may read some collections only: it opens DCP streams that end where they begin.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Container, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from time import monotonic
from time import sleep as pause
from typing import Any, NamedTuple, TypeAlias, TypeVar

from cbframe.cluster.auth import AuthLike
from cbframe.cluster.cluster_map import ClusterMap
from cbframe.cluster.tls import TLSLike
from cbframe.dcp import messages
from cbframe.dcp.handshake import NUMBER, SEQNOS, TIME, Login, Steps, high_seqnos, log_in, require, time_of
from cbframe.dcp.maps import MapSource, map_source, when_loaded
from cbframe.dcp.persistence import Floors, Found, PersistedSeqnos, nothing_on_disk, observe
from cbframe.dcp.positions import VBucketMetaData, VBucketOffset
from cbframe.dcp.receiver import DiscardingReceiver
from cbframe.dcp.source import BucketDataSource
from cbframe.dcp.transport import Waker, at_once
from cbframe.errors import ROLES_HINT, CbframeError, ConnectError, ReadTimeoutError, StreamError
from cbframe.options import BucketDataSourceOptions
from cbframe.public import ServerURLs
from cbframe.wire.constants import MAX_SEQNO, MAX_VBUCKETS, Opcode, OpenFlag, Status
from cbframe.wire.framing import Frame
from cbframe.wire.messages import DcpOpen, GetFailoverLog, Plain, parse_failover_log

T = TypeVar("T")
_Work: TypeAlias = Callable[[Waker], Any]

_DETAILS = Plain(Opcode.STAT, b"vbucket-details")
_LINE = re.compile(rb"vb_([0-9]{1,5}):(num_items|db_data_size)")
_ATTEMPTS = 5
_PAUSE = 0.5
"""Seconds between two attempts, while vbuckets are on their way from node to node."""
_SAMPLES = 3


class Size(NamedTuple):
    """About how much is in a vbucket, all collections together; None for what the node does not report."""

    documents: int | None  # documents that exist
    bytes: int | None  # what takes up the disk, as it is stored: compressed, and with keys and metadata

    @classmethod
    def total(cls, sizes: Iterable[Size]) -> Size:
        """All together; None for what is not known of all."""
        many = [*sizes]
        columns = [each.documents for each in many], [each.bytes for each in many]
        return cls(*(None if None in column else sum(filter(None, column)) for column in columns))


UNKNOWN = Size(None, None)


@dataclass(frozen=True, slots=True)
class BucketState:
    """A bucket at one moment."""

    map: ClusterMap  # who has which vbucket
    positions: dict[int, VBucketOffset]  # by vbucket: its high seqno, and its newest history
    sizes: dict[int, Size] = field(
        default_factory=dict
    )  # about how much is in each, where that was asked for
    time: int | None = None  # seconds since the epoch, at a node


def survey_bucket(
    server_urls: ServerURLs,
    bucket: str,
    auth: AuthLike,
    options: BucketDataSourceOptions,
    tls: TLSLike = None,
    network: str = "auto",
    *,
    vbuckets: Iterable[int] | None = None,  # None for all
    first_map: ClusterMap | None = None,  # the cluster map to begin with, where one was fetched a moment ago
    sizes: bool = False,  # ask how much is in them, too
    time: bool = False,  # ask what time it is, too
    persisted: bool = False,  # with all histories, and up to where all copies have them on disk
    sleep: Callable[[float], None] = pause,  # stand-ins for tests
    clock: Callable[[], float] = monotonic,
) -> BucketState:
    """Ask all nodes at the same time, one connection each, where their vbuckets are.

    Once there is a map, a node that cannot be asked is waited for, as long as ``recovery_timeout`` says.
    """
    wanted = None if vbuckets is None else set(vbuckets)
    with map_source(server_urls, bucket, auth, options, tls, network, clock=clock) as source:
        if first_map is None or not source.adopt(first_map):
            first_map = when_loaded(source.fetch, options.connect_timeout, sleep=sleep, clock=clock)
        found = first_map
        until = clock() + options.recovery_timeout
        attempts, first = 0, True
        while True:
            chosen = set(range(found.vbuckets)) if wanted is None else wanted
            if (bad := messages.bad_choice(chosen, found)) is not None:
                raise bad
            # At the first attempt, nothing waits for the other; statistics are not asked for with each.
            more = _other_questions(source, found, chosen, sizes=sizes, time=time)
            try:
                positions, outcomes = _ask_nodes(source, found, chosen, more if first else [])
                if persisted and chosen <= positions.keys():
                    positions = _on_disk(source, found, positions, options)
                elif not persisted:
                    positions = {vb: VBucketOffset.at(at.history, at.seqno) for vb, at in positions.items()}
            except CbframeError as exc:
                # A node that is being restarted, or was taken away just now.
                if exc.permanent or clock() >= until:
                    messages.with_addresses(exc, found)
                    raise
            else:
                missing = chosen - positions.keys()
                if not missing:
                    outcomes = outcomes if first else at_once(more)
                    seconds = _result(outcomes.pop()) if time else None
                    estimates = _estimates(outcomes, positions) if sizes else {}
                    return BucketState(found, dict(sorted(positions.items())), estimates, seconds)
                attempts += 1
                if attempts == _ATTEMPTS:
                    raise messages.ownerless(missing, found.vbuckets)
            first = False
            sleep(_PAUSE)
            try:
                found = source.fetch()
            except CbframeError as exc:
                if exc.permanent or clock() >= until:
                    raise


def _ask_nodes(
    source: MapSource, found: ClusterMap, chosen: set[int], more: list[_Work]
) -> tuple[dict[int, VBucketOffset], list[Any]]:
    """Where the vbuckets are; and the outcomes of what else is to be done at the same time."""
    nodes = sorted({owner for vb in chosen if (owner := found.node_of(vb)) is not None})
    ask = partial(survey, wanted=chosen)
    outcomes: list[Any] = at_once([*(partial(source.query, node, ask) for node in nodes), *more])
    positions: dict[int, VBucketOffset] = {}
    for node, outcome in zip(nodes, outcomes, strict=False):
        for vb, at in _result(outcome).items():
            # One that is on its way may be with two nodes: the old one goes on answering for a while.
            if found.node_of(vb) == node or vb not in positions:
                positions[vb] = at
    return positions, outcomes[len(nodes) :]


def _on_disk(
    source: MapSource, found: ClusterMap, now: dict[int, VBucketOffset], options: BucketDataSourceOptions
) -> dict[int, VBucketOffset]:
    """Up to where all copies of vbuckets have the newest histories on disk."""
    seqnos = PersistedSeqnos(options, monotonic)
    nodes = seqnos.follow(found)
    for vb, at in now.items():
        seqnos.want(vb, at.history, MAX_SEQNO)

    def ask(node: str, waker: Waker) -> Floors:
        def steps(login: Login) -> Steps[Found]:
            yield from log_in(login, then=lambda _: [])
            return (yield from observe(asked))

        asked = seqnos.questions(node)
        return seqnos.answered(node, asked, source.query(node, steps, waker))[0]

    outcomes = at_once([partial(ask, node) for node in nodes])
    floors = {vb: floor for outcome in outcomes for vb, floor in _result(outcome).items()}
    if not seqnos.has_disk and any(at.seqno for at in now.values()):
        error = nothing_on_disk(options.recovery_timeout)
        error.permanent = False  # the first change may be on its way
        raise error
    return {vb: VBucketOffset.of(at.metadata, floors.get(vb, (0, 0))[1]) for vb, at in now.items()}


def _other_questions(
    source: MapSource, found: ClusterMap, chosen: set[int], *, sizes: bool, time: bool
) -> list[_Work]:
    """What asks how much is in the vbuckets, and last what time it is, where these are wanted."""
    of_node: dict[str, list[int]] = {}
    for vb in sorted(chosen) if sizes else ():
        if (node := found.node_of(vb)) is not None:
            of_node.setdefault(node, []).append(vb)
    works: list[_Work] = [
        partial(source.query, node, partial(survey_sizes, vbuckets=own)) for node, own in of_node.items()
    ]
    return [*works, partial(_time, source, found)] if time else works


def _time(source: MapSource, found: ClusterMap, waker: Waker) -> int | None:
    """That of the first node that reports it."""
    for node in found.nodes:
        try:
            seconds = source.query(node, survey_time, waker)
        except (ConnectError, ReadTimeoutError):
            continue
        if seconds is not None:
            return seconds
    return None


def _estimates(outcomes: list[Any], vbuckets: Iterable[int]) -> dict[int, Size]:
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


# -- what one node is asked


def survey(login: Login, wanted: Container[int]) -> Steps[dict[int, VBucketOffset]]:
    """Log in and ask where each of the wanted vbuckets is that the node has."""
    yield from log_in(login, then=lambda _: [SEQNOS])
    there = high_seqnos((yield ()))
    vbuckets = sorted(vb for vb in there if vb in wanted)
    found = yield from _positions(vbuckets, Opcode.GET_FAILOVER_LOG)
    if found is None:
        # Who may not read the whole bucket may ask a producer still.
        opening = DcpOpen(f"cbframe:look:{login.nonce()}", OpenFlag.PRODUCER).frame()
        found = yield from _positions(vbuckets, Opcode.DCP_GET_FAILOVER_LOG, opening)
    assert found is not None, "the second refusal is an error"
    return found


def _positions(
    vbuckets: Sequence[int], opcode: Opcode, *before: Frame
) -> Steps[dict[int, VBucketOffset] | None]:
    """Histories and high seqnos, after requests `before`; None where the user may not ask in this way."""
    # Seqnos last: one with a history that ended meanwhile shows later on. The other way round,
    # a new history would have a seqno that it never reached, and nobody could see that.
    asked: list[Frame] = [*before, *(GetFailoverLog(vb, opcode).frame() for vb in vbuckets), SEQNOS]
    for _ in before:
        require((yield asked), "DCP_OPEN was refused", ROLES_HINT)
        asked = []
    histories: dict[int, VBucketMetaData] = {}
    refused = False
    for vb in vbuckets:
        answer = yield asked
        asked = []
        if answer.status == Status.NOT_MY_VBUCKET:
            continue  # it went meanwhile: another node has it
        if answer.status == Status.EACCESS and not before:
            refused = True
            continue
        require(answer, "the failover log was refused", ROLES_HINT)
        log = parse_failover_log(answer.value)
        if log:
            histories[vb] = VBucketMetaData(failover_log=log)
    seqnos = high_seqnos((yield asked))
    if refused:
        return None
    return {vb: VBucketOffset.of(log, seqnos[vb]) for vb, log in histories.items() if vb in seqnos}


def survey_sizes(login: Login, vbuckets: Collection[int]) -> Steps[dict[int, Size]]:
    """Log in and ask how much is in vbuckets that the node has.

    A node that refuses is one that does not say, whatever the reason: no right to statistics, or no such
    statistics. Nothing but an estimate depends on it.
    """
    yield from log_in(login, then=lambda _: [_DETAILS.frame()])
    documents: dict[int, int] = {}
    stored: dict[int, int] = {}
    found = {b"num_items": documents, b"db_data_size": stored}
    while True:
        answer = yield ()
        if answer.status != Status.SUCCESS:
            return dict.fromkeys(vbuckets, UNKNOWN)
        if not answer.key:
            return {vb: Size(documents.get(vb), stored.get(vb)) for vb in vbuckets}
        # There are some 70 lines for each vbucket, replicas among them: of most the end is enough.
        if answer.key.endswith((b":num_items", b":db_data_size")):
            line = _LINE.fullmatch(answer.key)
            if line and int(line[1]) in vbuckets and NUMBER.fullmatch(answer.value):
                found[line[2]][int(line[1])] = int(answer.value)


def survey_time(login: Login) -> Steps[int | None]:
    """Log in and ask what time it is at the node; None if the user may not see statistics."""
    yield from log_in(login, then=lambda _: [TIME.frame()])
    found: int | None = None
    while True:
        answer = yield ()
        found = time_of(answer) if found is None else found
        if not answer.key or answer.status != Status.SUCCESS:
            return found


# -- by DCP


@dataclass(slots=True)
class _Logs(DiscardingReceiver):
    """A receiver that keeps failover logs, of streams that have nothing in them."""

    logs: dict[int, VBucketMetaData] = field(default_factory=dict)

    def store(self, vbucket: int, metadata: VBucketMetaData) -> None:
        self.logs[vbucket] = metadata


def current_positions(
    server_urls: ServerURLs,
    bucket: str,
    vbuckets: Iterable[int] | None,
    auth: AuthLike,
    options: BucketDataSourceOptions,
    *,
    tls: TLSLike = None,
    network: str = "auto",
) -> BucketState:
    """High seqnos and failover logs; streams that go on from there bring what changes later.

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
            positions = {
                vb: VBucketOffset.of(
                    replace(log, snap_start=seqnos[vb], snap_end=seqnos[vb]), seqnos[vb], base=seqnos[vb]
                )
                for vb, log in logs.items()
            }
            return BucketState(found, positions)
    raise StreamError(
        "vbuckets moved between nodes while their seqnos were read",
        hint="wait for the end of the rebalance, and try again",
    )
