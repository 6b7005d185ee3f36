"""What is known of a stream while it runs: a snapshot of the moment, rates, lag, time to go. No pixels.

A :class:`StatsSnapshot` is what a source said at one moment. A :class:`StatsModel` takes them, and keeps
the last two minutes as numbers; what is drawn, and what other programs read, is computed from these.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from time import monotonic
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

import numpy as np
import numpy.typing as npt

from cbframe.dcp.stats import (
    BucketDataSourceStats,
    NodeStats,
    Problem,
    VBucketPhase,
    VBucketTable,
    Window,
    empty_table,
)
from cbframe.dcp.streams import VBucketState
from cbframe.errors import ConfigurationError
from cbframe.scan.progress import Pace

if TYPE_CHECKING:
    import pandas as pd

ENDED = frozenset({"complete", "failed", "finished", "closed"})
"""States after which nothing changes any more."""
REOPENED_FOR = 15.0
"""Seconds for which a stream counts as reopened."""
SPAN = 120.0
"""Seconds of the past that are kept, if a sample is taken every quarter of one."""
_CAPACITY = 481
_RATE_OVER = 2.0
"""Seconds from which the present rate is computed: blocks come in bursts."""
_ANCHORS = 8
"""Snapshots within that time that are kept as they are; all others are numbers in the history."""
_SAMPLE_SEQNOS_EVERY = 2.0
_LARGEST = 0x7FFF_FFFF_FFFF_FFFF
_COUNTS = ("documents", "nbytes", "lag", "reached", "errors", "reconnects", "rollbacks")
_HISTORY = np.dtype([("at", np.float64), *((name, np.int64) for name in _COUNTS), ("fill", np.float64)])
_PHASES = {phase.name.lower(): phase for phase in VBucketPhase}
_SILENT = NodeStats()
"""Of a node that nothing came from."""


# --- one moment


@runtime_checkable
class Watched(Protocol):
    """What can be watched. A :class:`~cbframe.BucketDataSource` has more, and that is used, too."""

    def stats(self) -> BucketDataSourceStats: ...
    def vbucket_states(self) -> dict[int, VBucketState]: ...
    def progress(self) -> tuple[int, int]: ...


@dataclass(frozen=True, slots=True, eq=False)
class StatsSnapshot:
    """What was seen at one moment. It does not change."""

    at: float  # seconds of the model's clock
    bucket: str  # its name; empty where it is not known
    state: str
    bounded: bool  # whether there is an end to reach
    reached: int  # seqnos of a bounded source, summed over its vbuckets
    wanted: int
    stats: BucketDataSourceStats  # all counters, in all and by node
    table: VBucketTable  # the vbuckets as columns. A vbucket without a stream has the seqno that it had last
    lag: npt.NDArray[np.int64]
    moved_at: npt.NDArray[np.float64]
    windows: Mapping[str, Window]  # flow control, by node
    problems: tuple[Problem, ...]  # the last ones, oldest first
    unpersisted: int = 0  # changes that came, and are held back until they are on all disks

    @property
    def ended(self) -> bool:
        """Whether nothing changes any more."""
        return self.state in ENDED

    @property
    def documents(self) -> int:
        """Data messages of all kinds."""
        return self.stats.total.documents

    @property
    def total_lag(self) -> int | None:
        """Seqnos still to come, over all vbuckets, and changes held back; None where nothing is known."""
        total = _total(self.lag)
        return None if total is None else total + self.unpersisted

    @property
    def reconnects(self) -> int:
        """Connections beyond the first of each node."""
        return self.stats.total.reconnects

    @property
    def fill(self) -> float:
        """Of the fullest flow-control window, between 0 and 1."""
        return max((window.fill for window in self.windows.values()), default=0.0)

    @property
    def share(self) -> float | None:
        """How much of a bounded source is received, between 0 and 1; None without an end."""
        if not self.bounded:
            return None
        if self.wanted:
            return min(1.0, self.reached / self.wanted)
        return float(self.state == "complete")

    def reopened(self) -> npt.NDArray[np.bool_]:
        """The vbuckets that moved a short while ago."""
        return self.moved_at > self.at - REOPENED_FOR


def _total(lag: npt.NDArray[np.int64]) -> int | None:
    """The sum of what is known; None where nothing is."""
    known = lag[lag >= 0]
    return sum(known.tolist()) if len(known) else None


def take_snapshot(
    source: Watched | None,
    *,
    at: float,
    state: str | None = None,
    before: StatsSnapshot | None = None,
    target: object = None,
) -> StatsSnapshot:
    """The present state of a source, and of what it belongs to; None: there is none yet."""
    if source is None:
        stats, (reached, wanted), table = BucketDataSourceStats((), {}, at=at), (0, 0), empty_table()
    else:
        stats, (reached, wanted), table = source.stats(), source.progress(), _table_of(source)
    bounded = _attribute(source, "bounded", wanted > 0)
    ours = _attribute(target, "stats", None)
    if source is not None and not bounded and isinstance(ours, BucketDataSourceStats):
        stats = ours  # a stream's are of all its sources so far, a scan's of its last run
    if before is not None and len(before.table) == len(table):
        moved_at = np.where(_moved(before.table, table), at, before.moved_at)
        table = _with_last_known(table, before.table)
    else:
        moved_at = np.full(len(table), -np.inf)
    if not state:
        state = "waiting" if source is None else _attribute(source, "state", "running")
        if state == "running" and not (table.phase >= VBucketPhase.REQUESTED).any():
            state = "connecting"
    return StatsSnapshot(
        at=at,
        bucket=_attribute(source, "bucket", ""),
        state=state,
        bounded=bounded,
        reached=reached,
        wanted=wanted,
        stats=stats,
        table=table,
        lag=_read_only(_lag(table)),
        moved_at=_read_only(moved_at),
        windows=MappingProxyType(_attribute(source, "windows", {})),
        problems=_attribute(source, "problems", ()),
        unpersisted=_attribute(target, "unpersisted", 0),
    )


def _attribute(source: object, name: str, otherwise: Any) -> Any:
    """What a source says of itself, by an attribute or a method, if it has one."""
    value = getattr(source, name, otherwise)
    return value() if callable(value) else value


def _table_of(source: Watched) -> VBucketTable:
    """The vbuckets, made of what streams are there if need be; a vbucket without one is unknown."""
    taken = _attribute(source, "vbucket_table", None)
    if isinstance(taken, VBucketTable):
        return taken
    states = source.vbucket_states()
    size = 1 << max(states).bit_length() if states else 0
    nodes = tuple(sorted({state.node for state in states.values()}))
    phase, owner = np.zeros(size, np.uint8), np.full(size, -1, np.int16)
    seqno, high = np.full(size, -1, np.int64), np.full(size, -1, np.int64)
    vbuuid = np.zeros(size, np.uint64)
    for vb, state in states.items():
        phase[vb] = _PHASES.get(state.state, VBucketPhase.WAITING)
        owner[vb] = nodes.index(state.node)
        seqno[vb] = state.seqno
        high[vb] = max(state.seqno, state.snap_end) if state.snap_end < 1 << 63 else -1
        vbuuid[vb] = state.failover_log[0].vbuuid if state.failover_log else 0
    return VBucketTable(nodes, phase, owner, seqno, high, vbuuid)


def _moved(before: VBucketTable, now: VBucketTable) -> npt.NDArray[np.bool_]:
    """The vbuckets that have another owner or another history than before."""
    places = {node: index for index, node in enumerate(now.nodes)}
    # One more, for "no owner": index −1 finds the last.
    renamed = np.array([*(places.get(node, -2) for node in before.nodes), -1], np.int16)
    # Without an owner it has not arrived anywhere yet.
    elsewhere = (renamed[before.owner] != now.owner) & (now.owner >= 0)
    other_history = (before.vbuuid != now.vbuuid) & (before.vbuuid != 0) & (now.vbuuid != 0)
    moved: npt.NDArray[np.bool_] = elsewhere | other_history
    return moved


def _with_last_known(now: VBucketTable, before: VBucketTable) -> VBucketTable:
    silent = now.seqno < 0
    if not silent.any():
        return now
    seqno = np.where(silent, before.seqno, now.seqno)
    high = np.where(silent & (now.high < 0), before.high, now.high)
    vbuuid = np.where(silent, before.vbuuid, now.vbuuid)
    return VBucketTable(now.nodes, now.phase, now.owner, seqno, high, vbuuid)


def _lag(table: VBucketTable) -> npt.NDArray[np.int64]:
    lag = np.maximum(table.high - np.maximum(table.seqno, 0), 0)
    lag[table.phase == VBucketPhase.DONE] = 0
    lag[(table.high < 0) & (table.phase != VBucketPhase.DONE)] = -1
    lag[table.phase == VBucketPhase.UNWANTED] = -1
    return lag


def _read_only(array: Any) -> Any:
    array.flags.writeable = False
    return array


# --- the last two minutes


class NodeRow(NamedTuple):
    """The figures of a data node."""

    node: str  # `host:port`
    vbuckets: int  # how many of the source's it has
    streams: int  # those that are running, and those that are complete
    done: int
    documents: int  # received since the begin
    nbytes: int
    documents_per_second: float  # of the last seconds; of the whole once it has ended
    bytes_per_second: float
    lag: int | None  # seqnos still to come from it; None where nothing is known
    fill: float  # of its flow-control window
    errors: int  # since the begin
    reconnects: int
    rollbacks: int


class StatsModel:
    """Watches something that streams, and remembers the last two minutes.

    Any thread may use it. For what it returns as tables or text, it takes a new snapshot.

    Examples
    --------
    >>> import cbframe
    >>> from cbframe.ui.model import StatsModel
    >>> with cbframe.LocalCluster(vbuckets=8) as cluster:
    ...     scan = cbframe.scan_bucket(cluster)
    ...     model = StatsModel(scan)
    ...     model.sample().state
    'waiting'
    """

    def __init__(
        self, target: Any, *, clock: Callable[[], float] = monotonic, capacity: int = _CAPACITY
    ) -> None:
        if not hasattr(target, "source") and not isinstance(target, Watched):
            raise ConfigurationError(
                f"a {type(target).__name__} has no stats to show",
                hint="give a BucketDataSource, a BucketScan or a ChangeStream",
            )
        self.target = target
        self._clock = clock
        self._history = np.zeros(capacity, _HISTORY)
        self._earlier: _Metrics = {}  # as of the end of the source before this one
        self._begin(None)
        self.latest = take_snapshot(None, at=clock())
        """The newest snapshot."""
        self._lock = threading.Lock()
        """Held while a snapshot is taken: a thread may do so while another asks."""

    def _begin(self, source: Watched | None) -> None:
        """Forget what was of another source."""
        self._source = source
        self._count = 0
        self._recent: deque[StatsSnapshot] = deque()
        """Some of the last seconds, from which rates are computed."""
        self._to_end = Pace()
        self._eta: float | None = None
        self._began: float | None = None
        self._ended: float | None = None
        self._seqnos_at: float | None = None

    @property
    def elapsed(self) -> float:
        """Seconds since something runs, until it ended."""
        if self._began is None:
            return 0.0
        return (self.latest.at if self._ended is None else self._ended) - self._began

    def sample(self) -> StatsSnapshot:
        """Take a snapshot, and remember it."""
        with self._lock:
            return self._sample()

    def _update(self) -> None:
        """Take a snapshot unless the newest one is of this moment."""
        with self._lock:
            if self._clock() > self.latest.at:
                self._sample()

    def _sample(self) -> StatsSnapshot:
        if self.target is None:
            return self.latest
        now = self._clock()
        source, state = self._watched()
        if source is not self._source:
            # A member of a group has one source after the other, and counts on.
            adds_up = isinstance(getattr(self.target, "stats", None), BucketDataSourceStats)
            if self._source is None or self.latest.bounded or not adds_up:
                if self._source is not None:
                    self.latest = take_snapshot(self._source, at=now)  # it may have counted since
                    self._earlier = self._metrics()
                self._begin(source)
            self._source, self._ended = source, None
        before = self.latest if self._count else None
        snapshot = self.latest = take_snapshot(source, at=now, state=state, before=before, target=self.target)
        if source is None:
            return snapshot
        if self._began is None or snapshot.state == "new":
            self._began = now
        if self._ended is None:
            # What comes after the end is no throughput.
            self._remember(snapshot)
            self._ended = now if snapshot.ended else None
        if not (snapshot.bounded or snapshot.ended):
            # Without an end, lag is known only as well as the nodes have reported.
            ask = getattr(source, "sample_seqnos", None)
            if ask is not None and (self._seqnos_at is None or now - self._seqnos_at >= _SAMPLE_SEQNOS_EVERY):
                self._seqnos_at = now
                ask()
        return snapshot

    def let_go(self) -> None:
        """Keep what was seen, and release the target: it may hold much memory."""
        self.target = self._source = None

    def _watched(self) -> tuple[Watched | None, str | None]:
        """The source at present, and the state of what it belongs to."""
        target = self.target
        if not hasattr(target, "source"):
            return target, None
        state = getattr(target, "state", None)
        state = getattr(state, "value", state)  # An enumeration's member has its word there.
        # Once it is over, the last source is the one that is still shown.
        source = self._source if target.source is None else target.source
        return source, state if isinstance(state, str) else None

    def _remember(self, snapshot: StatsSnapshot) -> None:
        total = snapshot.stats.total
        requests = total.tot_upr_stream_req
        self._eta = self._to_end.add(snapshot.at, snapshot.reached, snapshot.wanted, requests)
        lag = snapshot.total_lag
        self._history[self._count % len(self._history)] = (
            snapshot.at,
            snapshot.documents,
            total.bytes_received,
            -1 if lag is None else min(lag, _LARGEST),
            min(snapshot.reached, _LARGEST),
            total.errors,
            snapshot.reconnects,
            total.rollbacks,
            snapshot.fill,
        )
        self._count += 1
        recent = self._recent
        if not recent or snapshot.at - recent[-1].at >= _RATE_OVER / _ANCHORS:
            recent.append(snapshot)
        while len(recent) > 1 and snapshot.at - recent[1].at >= _RATE_OVER:
            recent.popleft()

    def history(self) -> npt.NDArray[np.void]:
        """The remembered samples, oldest first: a structured array."""
        if self._count <= len(self._history):
            return self._history[: self._count].copy()
        return np.roll(self._history, -(self._count % len(self._history)))

    # --- what follows from it

    def _pace(self) -> tuple[StatsSnapshot | None, float]:
        """From when rates are computed (None: from the begin), and how many seconds ago that was."""
        first = self._recent[0] if self._recent and self._ended is None else None
        return first, self.elapsed if first is None else self.latest.at - first.at

    def rates(self) -> tuple[float, float]:
        """Documents and bytes a second, of the last seconds; of the whole once it has ended."""
        latest, (first, seconds) = self.latest, self._pace()
        if seconds <= 0:
            return 0.0, 0.0
        documents = latest.documents - (first.documents if first else 0)
        nbytes = latest.stats.total.bytes_received - (first.stats.total.bytes_received if first else 0)
        return documents / seconds, nbytes / seconds

    def eta(self) -> float | None:
        """Seconds until a bounded source is complete, at the pace of the last ones; None if unknown."""
        latest = self.latest
        return self._eta if latest.bounded and not latest.ended else None

    def throughput(self, bins: int = 120, seconds: float = SPAN) -> npt.NDArray[np.float64]:
        """Documents and bytes a second over the last minutes, for drawing."""
        history = self.history()
        if len(history) < 2:
            return np.full((2, bins), np.nan)
        edges = history["at"][-1] + np.linspace(-seconds, 0, bins + 1)
        rates = np.empty((2, bins))
        for row, name in enumerate(("documents", "nbytes")):
            reached = np.interp(edges, history["at"], history[name], left=np.nan)
            rates[row] = np.diff(reached) / (seconds / bins)
        return rates

    def nodes(self) -> list[NodeRow]:
        """The figures of each node: those of the map, then those that have left it."""
        latest, table = self.latest, self.latest.table
        first, seconds = self._pace()
        earlier = {} if first is None else first.stats.nodes
        wanted = table.phase != VBucketPhase.UNWANTED
        rows = []
        for node in dict.fromkeys((*table.nodes, *latest.stats.nodes)):
            owned = wanted & (table.owner == (table.nodes.index(node) if node in table.nodes else -2))
            stats, before = latest.stats.nodes.get(node, _SILENT), earlier.get(node, _SILENT)
            window = latest.windows.get(node)
            documents = stats.documents - before.documents
            nbytes = stats.bytes_received - before.bytes_received
            rows.append(
                NodeRow(
                    node,
                    vbuckets=int(owned.sum()),
                    streams=int((owned & (table.phase == VBucketPhase.RUNNING)).sum()),
                    done=int((owned & (table.phase == VBucketPhase.DONE)).sum()),
                    documents=stats.documents,
                    nbytes=stats.bytes_received,
                    documents_per_second=documents / seconds if seconds > 0 else 0.0,
                    bytes_per_second=nbytes / seconds if seconds > 0 else 0.0,
                    lag=_total(latest.lag[owned]),
                    fill=0.0 if window is None else window.fill,
                    errors=stats.errors,
                    reconnects=stats.reconnects,
                    rollbacks=stats.rollbacks,
                )
            )
        return rows

    def problems(self) -> list[tuple[float, Problem]]:
        """The last problems, oldest first, and when they came: in seconds since the begin."""
        latest = self.latest
        # Their times are of the source's clock.
        begin = latest.stats.at - (latest.at - (latest.at if self._began is None else self._began))
        return [(max(0.0, problem.at - begin), problem) for problem in latest.problems]

    def phases(self) -> dict[str, int]:
        """How many vbuckets are in each phase, those that are not wanted left out."""
        counts = np.bincount(self.latest.table.phase, minlength=len(VBucketPhase))
        return {p.name.lower(): int(counts[p]) for p in VBucketPhase if p is not VBucketPhase.UNWANTED}

    # --- for other programs

    def to_pandas(self) -> pd.DataFrame:
        """The remembered samples as a DataFrame: one row each, by seconds since the begin.

        ``documents_per_second`` and ``mb_per_second`` are those between a sample and the one before it.
        """
        import pandas as pd  # noqa: PLC0415 - the only thing here that needs it

        self._update()
        history = self.history()
        began = history["at"][0] if self._began is None and len(history) else self._began or 0.0
        frame = pd.DataFrame({name: history[name] for name in history.dtype.names or ()})
        # Clocks of Windows may stand still for 16 ms.
        seconds = frame["at"].diff().where(lambda passed: passed > 0)
        frame.insert(3, "documents_per_second", frame["documents"].diff() / seconds)
        frame.insert(4, "mb_per_second", frame["nbytes"].diff() / seconds / 1e6)
        frame["lag"] = frame["lag"].astype("Int64").mask(frame["lag"] < 0)
        frame.index = pd.Index(frame.pop("at") - began, name="seconds")
        return frame

    def per_vbucket(self) -> pd.DataFrame:
        """The vbuckets as a DataFrame, by number: phase, node, seqno, high, lag, vbuuid."""
        import pandas as pd  # noqa: PLC0415 - the only thing here that needs it

        self._update()
        latest, table = self.latest, self.latest.table
        frame = pd.DataFrame(
            {
                "phase": [VBucketPhase(phase).name.lower() for phase in table.phase.tolist()],
                "node": [table.nodes[index] if index >= 0 else None for index in table.owner.tolist()],
                "seqno": table.seqno,
                "high": table.high,
                "lag": latest.lag,
                "vbuuid": [f"{vbuuid:016x}" if vbuuid else None for vbuuid in table.vbuuid.tolist()],
            },
            index=pd.RangeIndex(len(table), name="vbucket"),
        )
        for name in ("seqno", "high", "lag"):
            frame[name] = frame[name].astype("Int64").mask(frame[name] < 0)
        return frame

    def to_prometheus(self) -> str:
        """The counters of all sources so far, and the gauges of the last one, as text for Prometheus."""
        self._update()
        with self._lock:  # a source counts among the earlier ones, or as the last one
            found = self._metrics()
        lines = []
        for (name, kind, about), values in found.items():
            if values:
                lines += [f"# HELP cbframe_{name} {about}", f"# TYPE cbframe_{name} {kind}"]
            lines += [f"cbframe_{name}{{{labels}}} {value!r}" for labels, value in values.items()]
        return "\n".join([*lines, ""])

    def _metrics(self) -> _Metrics:
        found: _Metrics = {}
        for name, kind, about, samples in _families(self.latest, self.phases()):
            family = name, kind, about
            values = {**self._earlier.get(family, {})} if kind == "counter" else {}
            for labels, value in samples:
                pairs = ({"bucket": self.latest.bucket} | labels).items()
                inner = ",".join(f'{label}="{text.translate(_ESCAPES)}"' for label, text in pairs)
                values[inner] = values.get(inner, 0) + value
            found[family] = values
        return found


# --- Prometheus, text format 0.0.4

_Samples: TypeAlias = Sequence[tuple[dict[str, str], float]]
_Metrics: TypeAlias = dict[tuple[str, str, str], dict[str, float]]
_ESCAPES = str.maketrans({"\\": r"\\", "\n": r"\n", '"': r"\""})
_COUNTERS: tuple[tuple[str, str, Callable[[NodeStats], int]], ...] = (
    ("received_bytes_total", "Bytes received.", lambda node: node.bytes_received),
    ("connection_errors_total", "Connections that ended with an error.", lambda node: node.errors),
    ("rollbacks_total", "Vbuckets rolled back.", lambda node: node.rollbacks),
    ("snapshots_total", "Snapshot markers received.", lambda node: node.snapshots),
    ("streams_opened_total", "Streams that the node granted.", lambda node: node.streams_opened),
    ("reconnects_total", "Connections beyond the first.", lambda node: node.reconnects),
)


def _families(snapshot: StatsSnapshot, phases: Mapping[str, int]) -> Iterator[tuple[str, str, str, _Samples]]:
    """Name, type, help text and samples of every metric; one without samples is left out."""
    nodes, windows = snapshot.stats.nodes.items(), snapshot.windows.items()
    documents: list[tuple[dict[str, str], float]] = []
    for address, node in nodes:
        kinds = {"mutation": node.mutations, "deletion": node.deletions, "expiration": node.expirations}
        documents += [({"node": address, "kind": kind}, count) for kind, count in kinds.items()]
    yield "documents_total", "counter", "Data messages received.", documents
    for name, about, count in _COUNTERS:
        yield name, "counter", about, [({"node": address}, count(node)) for address, node in nodes]
    held = [({"node": address}, window.held) for address, window in windows]
    yield "window_held_bytes", "gauge", "Bytes received and not consumed yet.", held
    sizes = [({"node": address}, window.size) for address, window in windows]
    yield "window_size_bytes", "gauge", "Bytes that a node sends ahead at most, 0 for no limit.", sizes
    counts = [({"phase": phase}, number) for phase, number in phases.items()]
    yield "vbuckets", "gauge", "Vbuckets by phase.", counts
    if (lag := snapshot.total_lag) is not None:
        most = int(snapshot.lag.max())
        yield "lag_seqnos", "gauge", "Seqnos still to come, and changes held back.", [({}, lag)]
        yield "lag_seqnos_max", "gauge", "Seqnos still to come of the vbucket with the most.", [({}, most)]
    if snapshot.share is not None:
        yield "progress_ratio", "gauge", "Share of a bounded read that is received.", [({}, snapshot.share)]
    yield "running", "gauge", "1 until the stream has ended.", [({}, int(not snapshot.ended))]
    events = [({"event": name}, number) for name, number in snapshot.stats.counts().items()]
    about = "Counters of the client by their names; what each counts is in its documentation."
    yield "events_total", "counter", about, events
