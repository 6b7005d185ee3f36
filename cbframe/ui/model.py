"""What there is to know of a stream while it runs: rates, lag, time to go. No pixels."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from cbframe.dcp.handover import monotonic
from cbframe.dcp.records import VBucketPhase
from cbframe.dcp.source import Problem
from cbframe.errors import ConfigurationError
from cbframe.ui.prometheus import exposition
from cbframe.ui.snapshot import StatsSnapshot, Watched, reconnects_of, take_snapshot, total_of

if TYPE_CHECKING:
    import pandas as pd

SPAN = 120.0
"""Seconds of the past that are kept, if a sample is taken every quarter of one."""
_CAPACITY = 481
_RATE_OVER = 2.0
"""Seconds from which the present rate is computed: blocks come in bursts."""
_ANCHORS = 8
"""Snapshots within that time that are kept as they are; all others are numbers in the history."""
_ETA_OVER = 10.0
_SAMPLE_SEQNOS_EVERY = 2.0
_LARGEST = 0x7FFF_FFFF_FFFF_FFFF
_HISTORY = np.dtype(
    [
        ("at", np.float64),
        ("documents", np.int64),
        ("nbytes", np.int64),
        ("lag", np.int64),
        ("reached", np.int64),
        ("errors", np.int64),
        ("reconnects", np.int64),
        ("rollbacks", np.int64),
        ("fill", np.float64),
    ]
)


class NodeRow(NamedTuple):
    """What there is to tell of a data node."""

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
    """Looks at something that streams, and remembers the last two minutes.

    Any thread may use it. What it returns as tables or text, it looks at once more for.

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
        self._count = 0
        self._recent: deque[StatsSnapshot] = deque()
        """Some of the last seconds, from which rates are computed."""
        self._source: Watched | None = None
        self._began: float | None = None
        self._ended: float | None = None
        self._seqnos_at: float | None = None
        self._latest = take_snapshot(None, at=clock())
        self._lock = threading.Lock()
        """Held while a snapshot is taken: a thread may do so while another asks."""

    @property
    def latest(self) -> StatsSnapshot:
        """The newest snapshot."""
        return self._latest

    @property
    def elapsed(self) -> float:
        """Seconds since something runs, until it ended."""
        if self._began is None:
            return 0.0
        return (self._latest.at if self._ended is None else self._ended) - self._began

    def sample(self) -> StatsSnapshot:
        """Take a snapshot, and remember it."""
        with self._lock:
            return self._sample()

    def _update(self) -> None:
        """Take a snapshot unless the newest one is of this moment."""
        with self._lock:
            if self._clock() > self._latest.at:
                self._sample()

    def _sample(self) -> StatsSnapshot:
        if self.target is None:
            return self._latest
        now = self._clock()
        source, state = self._look_up()
        if source is not self._source:
            self._forget(source)
        before = self._latest if self._count else None
        snapshot = self._latest = take_snapshot(source, at=now, state=state, before=before)
        if source is None:
            return snapshot
        if self._began is None:
            self._began = now
        if self._ended is None:
            # What comes after the end is no throughput.
            self._remember(snapshot)
        if snapshot.ended and self._ended is None:
            self._ended = now
        if not snapshot.bounded and not snapshot.ended:
            self._ask_how_far(source, now)
        return snapshot

    def let_go(self) -> None:
        """Keep what was seen, and let go of what was looked at: it may hold much memory."""
        self.target = self._source = None

    def _look_up(self) -> tuple[Watched | None, str | None]:
        target = self.target
        if not hasattr(target, "source"):
            return target, None
        state = getattr(target, "state", None)
        state = getattr(state, "value", state)  # An enumeration's member has its word there.
        source = target.source
        if source is None:
            # It is over: what it was last is the picture that stays.
            source = self._source
        return source, state if isinstance(state, str) else None

    def _forget(self, source: Watched | None) -> None:
        self._source = source
        self._count = 0
        self._recent.clear()
        self._began = self._ended = self._seqnos_at = None

    def _remember(self, snapshot: StatsSnapshot) -> None:
        total = snapshot.stats.total
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

    def _ask_how_far(self, source: Watched, now: float) -> None:
        """Without an end, lag is known only as well as the nodes have reported."""
        ask = getattr(source, "sample_seqnos", None)
        if ask is not None and (self._seqnos_at is None or now - self._seqnos_at >= _SAMPLE_SEQNOS_EVERY):
            self._seqnos_at = now
            ask()

    def history(self) -> npt.NDArray[np.void]:
        """The remembered samples, oldest first: a structured array."""
        if self._count <= len(self._history):
            return self._history[: self._count].copy()
        return np.roll(self._history, -(self._count % len(self._history)))

    # -- what follows from it

    def rates(self) -> tuple[float, float]:
        """Documents and bytes a second, of the last seconds; of the whole once it has ended."""
        latest = self._latest
        first = self._recent[0] if self._recent and self._ended is None else None
        seconds = latest.at - first.at if first is not None else self.elapsed
        if seconds <= 0:
            return 0.0, 0.0
        documents = latest.documents - (first.documents if first else 0)
        nbytes = latest.stats.total.bytes_received - (first.stats.total.bytes_received if first else 0)
        return documents / seconds, nbytes / seconds

    def eta(self) -> float | None:
        """Seconds until a bounded source is complete, at the pace of the last ones; None if unknown."""
        latest = self._latest
        if not latest.bounded or latest.ended or not latest.wanted:
            return None
        history = self.history()
        recent = history[history["at"] >= latest.at - _ETA_OVER]
        gained = int(recent["reached"][-1] - recent["reached"][0])
        seconds = float(recent["at"][-1] - recent["at"][0])
        if gained <= 0 or seconds <= 0:
            return None
        return (latest.wanted - latest.reached) * seconds / gained

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
        """What there is to tell of each node: those of the map, then those that have left it."""
        latest, table = self._latest, self._latest.table
        first = self._recent[0] if self._recent and self._ended is None else None
        seconds = latest.at - first.at if first is not None else self.elapsed
        wanted = table.phase != VBucketPhase.UNWANTED
        rows = []
        for node in dict.fromkeys((*table.nodes, *latest.stats.nodes)):
            owned = (
                wanted & (table.owner == table.nodes.index(node)) if node in table.nodes else wanted & False
            )
            stats = latest.stats.nodes.get(node)
            before = None if first is None else first.stats.nodes.get(node)
            window = latest.windows.get(node)
            documents = 0 if stats is None else stats.documents
            nbytes = 0 if stats is None else stats.bytes_received
            rows.append(
                NodeRow(
                    node,
                    int(owned.sum()),
                    int((owned & (table.phase == VBucketPhase.RUNNING)).sum()),
                    int((owned & (table.phase == VBucketPhase.DONE)).sum()),
                    documents,
                    nbytes,
                    (documents - (before.documents if before else 0)) / seconds if seconds > 0 else 0.0,
                    (nbytes - (before.bytes_received if before else 0)) / seconds if seconds > 0 else 0.0,
                    total_of(latest.lag[owned]),
                    0.0 if window is None else window.fill,
                    0 if stats is None else stats.errors,
                    0 if stats is None else reconnects_of(stats.tot_worker_connect_ok),
                    0 if stats is None else stats.rollbacks,
                )
            )
        return rows

    def problems(self) -> list[tuple[float, Problem]]:
        """The last problems, oldest first, and when they came: in seconds since the begin."""
        latest = self._latest
        begin = latest.stats.at - (latest.at - (latest.at if self._began is None else self._began))
        return [(max(0.0, problem.at - begin), problem) for problem in latest.problems]

    def phases(self) -> dict[str, int]:
        """How many vbuckets are in each phase, those that are not wanted left out."""
        counts = np.bincount(self._latest.table.phase, minlength=len(VBucketPhase))
        return {p.name.lower(): int(counts[p]) for p in VBucketPhase if p is not VBucketPhase.UNWANTED}

    # -- for other programs

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
        latest, table = self._latest, self._latest.table
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
        """The counters of this moment in the text format that Prometheus reads."""
        self._update()
        return exposition(self._latest, self.phases())
