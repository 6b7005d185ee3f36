"""When a cluster map is fetched: when it is wanted, after a wait, and every now and then."""

from __future__ import annotations

from cbframe.cluster.backoff import Backoff
from cbframe.dcp.counters import ClusterCounters
from cbframe.dcp.plan import Event, Kicked, MapFetched


class MapRefresh:
    """The times of the fetches, in seconds of any monotonic clock.

    One at a time, with a wait between two of them, and all reasons that come meanwhile count as one.
    """

    def __init__(self, backoff: Backoff, interval: float | None, counters: ClusterCounters) -> None:
        self._backoff = backoff
        self._interval = interval
        self._counters = counters
        self.fetching = False
        """Whether a fetch is under way."""
        self._routine = False
        self._reason = False
        self._due: float | None = None
        self._look_at: float | None = None

    def wakeup(self) -> float | None:
        """When a fetch is due; None if none is, or one is under way."""
        times = (self._due, self._look_at)
        return None if self.fetching else min((at for at in times if at is not None), default=None)

    def begin_at_once(self, now: float) -> None:
        """Have the first map fetched."""
        self._due = now

    def kick(self, now: float) -> None:
        """The source itself has met a reason to look again."""
        self._counters.tot_kick += 1
        self.want(now)

    def not_needed(self) -> None:
        """There is a reason to look again at who wants what, and the map at hand will do."""
        self._counters.tot_kick += 1
        self._counters.tot_kick_ok += 1
        self._counters.tot_refresh_cluster_awoken += 1

    def want(self, now: float) -> None:
        """There is a reason: have a map fetched as soon as the wait between two fetches is over."""
        if self.fetching or self._due is not None:
            self._routine = False
            self._counters.tot_kick_deduped += 1
        else:
            self._reason = True
            self._due = now + self._backoff.next_delay()

    def begin(self, now: float) -> bool:
        """Whether a fetch is to begin now; it counts as begun then."""
        at = self.wakeup()
        if at is None or now < at:
            return False
        counters = self._counters
        counters.tot_refresh_cluster += 1
        counters.tot_kick_ok += self._reason
        counters.tot_refresh_cluster_awoken_restart += self._reason
        self._routine = self._due is None or now < self._due
        self.fetching, self._due, self._reason = True, None, False
        return True

    def came(self, now: float, *, pushed: bool) -> None:
        """A map came: fetched, or pushed by a node."""
        counters = self._counters
        counters.tot_refresh_cluster_kick_workers += 1
        counters.tot_refresh_cluster_kick_workers_ok += 1
        counters.tot_refresh_workers_cluster_ch_kicks += 1
        counters.tot_refresh_workers += 1
        if not pushed:
            self.fetching, self._due = False, None
            self._rest(now)

    def failed(self, now: float) -> bool:
        """The fetch failed; whether nobody was waiting for it."""
        self._counters.tot_refresh_cluster_all_server_urls_connect_bucket_err += 1
        self.fetching = False
        if self._routine:
            self._rest(now)
        else:
            self._due = now + self._backoff.next_delay()
        return self._routine

    def changed(self) -> None:
        """There is a newer map: whatever one was wanted for, it is the answer."""
        self._counters.tot_kick_ok += self._reason
        self._counters.tot_refresh_cluster_awoken += self._reason
        self._due, self._reason = None, False
        self._backoff.reset()

    def dismiss(self, event: Event, *, over: bool) -> None:
        """A map or a reason came too late: the source is over, or else is being closed."""
        counters = self._counters
        if isinstance(event, MapFetched):
            counters.tot_refresh_cluster_kick_workers += 1
            counters.tot_refresh_cluster_kick_workers_closed += over
            counters.tot_refresh_cluster_kick_workers_stopped += not over
        elif isinstance(event, Kicked):
            counters.tot_refresh_cluster_awoken_closed += over
            counters.tot_refresh_cluster_awoken_stopped += not over

    def _rest(self, now: float) -> None:
        self._look_at = None if self._interval is None else now + self._interval
