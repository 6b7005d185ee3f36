"""What the disks of all copies of a vbucket have: OBSERVE_SEQNO, asked of all nodes again and again.

A node that crashes has lost what it had not written to disk, and a failover to a replica loses what that had
not received. What the active copy and all replicas have on disk is lost by neither. :class:`PersistedSeqnos`
keeps the books; :class:`PersistencePoller` has a thread for each node, which asks about the vbuckets of which
somebody waits for more, all in one go.

A copy is asked about the history that the stream has. If it does not know that history, nothing of it counts:
a replica learns of a new history from the active copy, and until then it may have other changes at the same
seqnos. If it has a newer one, what lies before the fork counts.

What this cannot show: a replica that becomes active in the middle of a snapshot begins its history at the
start of that. Clients that are beyond it are rolled back then, and get the same changes again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import TypeAlias

from cbframe.cluster.cluster_map import ClusterMap
from cbframe.dcp import messages
from cbframe.dcp.coordinator import node_backoff
from cbframe.dcp.handshake import Login, Steps, log_in, require
from cbframe.dcp.node import NodeOwner
from cbframe.dcp.positions import VBucketOffset
from cbframe.dcp.transport import Line, Waker
from cbframe.errors import (
    ROLES_HINT,
    AuthFailError,
    BucketNotFoundError,
    CbframeError,
    ConfigurationError,
    ReadCancelledError,
    ReadTimeoutError,
)
from cbframe.options import BucketDataSourceOptions
from cbframe.public import warn
from cbframe.system import EVENT_READ, OwnThread, ready
from cbframe.wire.constants import Status
from cbframe.wire.messages import Observed, ObserveSeqno

Asked: TypeAlias = Sequence[tuple[int, int]]  # vbuckets, each with the history that is asked about
Found: TypeAlias = dict[int, Observed | None]  # by vbucket
Floors: TypeAlias = Mapping[int, tuple[int, int]]  # by vbucket: history, and seqno up to which all have it
_WITH_DISK = frozenset({"couchapi", "rangeScan", "nonDedupedHistory"})
"""Capabilities that no ephemeral bucket has; some others have none of them."""


def warn_of_few_copies(found: ClusterMap) -> None:
    """Say what only_persisted cannot promise where there are no replicas."""
    alone = sum(len(found.copies_of(vb)) == 1 for vb in range(found.vbuckets))
    which = "has no replicas" if alone == found.vbuckets else f"has no replica of {alone} vbuckets now"
    limit = "only_persisted protects from restarts of a node, and not from its loss"
    if alone:
        warn(f"bucket {found.bucket!r} {which}: {limit}")


def nothing_on_disk(seconds: float) -> ConfigurationError:
    """Of a bucket whose nodes do not write."""
    return ConfigurationError(
        f"nothing of the bucket has come to any disk within {seconds:g} s: only_persisted cannot be kept",
        hint="an ephemeral bucket has no disk: leave only_persisted out; else the nodes' disks do not work",
    )


def observe(asked: Asked) -> Steps[Found]:
    """Ask a node about its copies: None where it does not know the history. It may have none any more."""
    found: Found = {}
    frames = [ObserveSeqno(vb, vbuuid).frame() for vb, vbuuid in asked]
    for vb, _ in asked:
        answer = yield frames
        frames = []
        if answer.status == Status.KEY_ENOENT:
            found[vb] = None
        elif answer.status != Status.NOT_MY_VBUCKET:
            hint = ROLES_HINT if answer.status == Status.EACCESS else "nothing is known to be on disk then"
            require(answer, "OBSERVE_SEQNO was refused", f"{hint}; or leave only_persisted out")
            found[vb] = Observed.parse(answer.value)
    return found


@dataclass(slots=True)
class _Wait:
    """A vbucket of which somebody waits for more."""

    vbuuid: int
    seqno: int
    since: float  # when a copy got on last
    reports: dict[str, int] = field(default_factory=dict)  # by node: what it has on disk of the history


class PersistedSeqnos:
    """What is waited for, and what copies have reported of it; used by many threads."""

    def __init__(self, options: BucketDataSourceOptions, clock: Callable[[], float]) -> None:
        self._options = options
        self._clock = clock
        self._lock = threading.Lock()
        self._waits: dict[int, _Wait] = {}
        self._copies: Sequence[tuple[str, ...]] = ()
        self.has_disk = False  # the bucket is known to be one that is written to disk

    def follow(self, found: ClusterMap) -> set[str]:
        """Take the copies from a cluster map; the nodes that have some."""
        copies = [found.copies_of(vb) for vb in range(found.vbuckets)]
        with self._lock:
            self._copies = copies
            self.has_disk |= not _WITH_DISK.isdisjoint(found.capabilities)
        return {node for nodes in copies for node in nodes}

    def want(self, vbucket: int, vbuuid: int, seqno: int) -> None:
        """Have a vbucket asked about, until all copies have its history on disk up to `seqno`; 0: no more."""
        with self._lock:
            wait = self._waits.get(vbucket)
            if not seqno:
                self._waits.pop(vbucket, None)
            elif wait is None or wait.vbuuid != vbuuid:
                self._waits[vbucket] = _Wait(vbuuid, seqno, self._clock())
            else:
                wait.seqno = max(wait.seqno, seqno)

    def questions(self, node: str) -> Asked:
        """What a node is to be asked."""
        with self._lock:
            return [(vb, wait.vbuuid) for vb, wait in self._waits.items() if node in self._copies[vb]]

    def answered(self, node: str, asked: Asked, found: Found) -> tuple[Floors, tuple[int, ...]]:
        """Take answers; what is on disk everywhere now, and vbuckets whose owner lost what is waited for."""
        floors: dict[int, tuple[int, int]] = {}
        lost = []
        with self._lock:
            for vb, vbuuid in asked:
                wait, copies = self._waits.get(vb), self._copies[vb]
                if vb not in found or wait is None or wait.vbuuid != vbuuid or node not in copies:
                    continue
                answer = found[vb]
                seqno = 0 if answer is None else answer.shared
                self.has_disk |= answer is not None and answer.persisted > 0
                if seqno > wait.reports.get(node, -1):
                    wait.since = self._clock()
                wait.reports[node] = seqno
                floor = min(wait.reports.get(copy, 0) for copy in copies)
                if floor:
                    floors[vb] = (vbuuid, floor)
                if floor >= wait.seqno:
                    del self._waits[vb]
                elif node == copies[0] and (answer is None or answer.ends < wait.seqno):
                    lost.append(vb)
        return floors, tuple(lost)

    def overdue(self) -> CbframeError | None:
        """The error of a vbucket of which no copy has got on for too long."""
        with self._lock:
            vb, wait = min(self._waits.items(), key=lambda item: item[1].since, default=(0, None))
            options, no_disk = self._options, wait is not None and wait.reports and not self.has_disk
            patience = min(options.recovery_timeout, options.connect_timeout if no_disk else inf)
            if wait is None or self._clock() - wait.since < patience:
                return None
            if no_disk:
                return nothing_on_disk(patience)
            slowest = min(self._copies[vb], key=lambda node: wait.reports.get(node, -1), default=None)
            return ReadTimeoutError(
                f"seqno {wait.seqno} of the vbucket is not on the disks of all copies (only_persisted), and "
                f"none has written more for {patience:g} s; the node has written the least, or is silent",
                node=slowest,
                vbucket=vb,
                hint="recover the node or fail it over; raise recovery_timeout to wait longer",
            )


@dataclass(slots=True, eq=False)
class PersistencePoller:
    """Asks all nodes, each on a thread and over a connection of its own; owned by the supervisor's thread."""

    options: BucketDataSourceOptions
    owner: NodeOwner
    connect: Callable[[str, Waker], Line]
    login: Callable[[], Login]
    seqnos: PersistedSeqnos
    on_persisted: Callable[[Floors], None] | None = None  # of who holds back the rest; called on our threads
    _map: ClusterMap | None = None
    _nodes: dict[str, tuple[Waker, OwnThread]] = field(default_factory=dict)
    _ended: list[tuple[Waker, OwnThread]] = field(default_factory=list)

    def follow(self, found: ClusterMap | None, wanted: Mapping[int, VBucketOffset]) -> None:
        """Ask the nodes of a map from now on, also about the vbuckets of a read that is complete."""
        for vb, at in wanted.items():
            self.seqnos.want(vb, at.history, at.seqno)
        if found is None or found is self._map:
            return
        self._map = found
        nodes = self.seqnos.follow(found)
        self._end(self._nodes.keys() - nodes)
        for name in nodes - self._nodes.keys():
            waker = Waker()
            thread = OwnThread(self._run, f"cbframe-persistence-{name}", (name, waker))
            self._nodes[name] = waker, thread
            thread.start()

    def close(self) -> None:
        """End all threads, and wait for them."""
        self._end([*self._nodes])
        for waker, thread in self._ended:
            thread.join()
            waker.close()

    def _end(self, names: Iterable[str]) -> None:
        for name in names:
            gone = self._nodes.pop(name)
            gone[0].wake()
            self._ended.append(gone)

    def _run(self, node: str, waker: Waker) -> None:
        options, owner, seqnos = self.options, self.owner, self.seqnos
        backoff = node_backoff(options)
        line: Line | None = None
        while self._nodes.get(node, (None,))[0] is waker:
            pause = options.persistence_interval
            try:
                if (asked := seqnos.questions(node)) and line is None:
                    line = self.connect(node, waker)
                    line.run(log_in(self.login(), then=lambda _: []))
                if asked and line is not None:
                    found = line.run(observe(asked))
                    floors, lost = seqnos.answered(node, asked, found)
                    if floors and self.on_persisted is not None:
                        self.on_persisted(floors)
                    if floors or lost:
                        owner.post(messages.Persisted(floors, lost))
                    if len(found) < len(asked):
                        owner.post(messages.Kicked(f"{node} has no copy of some vbuckets any more"))
                backoff.reset()
                error = seqnos.overdue()
            except ReadCancelledError:
                continue
            except CbframeError as exc:
                if line is not None:
                    line.close()
                line, pause = None, backoff.next_delay()
                exc.node = exc.node or node
                owner.on_error(exc)
                # Whether there is such a user, and such a bucket, the streams find out as well.
                final = exc.permanent and not isinstance(exc, AuthFailError | BucketNotFoundError)
                error = exc if final else seqnos.overdue()
            except Exception as exc:  # noqa: BLE001 - a fault of ours must end the read, not hang it
                error = messages.unexpected(exc, "where nodes are asked what is on disk")
            if error is not None:
                owner.post(messages.Persisted(error=error))
            ready(pause, (waker, EVENT_READ))
        if line is not None:
            line.close()
        waker.close()
