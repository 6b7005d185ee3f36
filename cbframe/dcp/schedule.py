"""When the cluster is asked for its map: for a reason, and not too often."""

from __future__ import annotations

from cbframe.cluster.backoff import Backoff
from cbframe.dcp.counters import ClusterCounters
from cbframe.dcp.plan import Event, Kicked, MapFetched


class MapSchedule:
    """One fetch at a time, a wait between two of them, and all reasons that come meanwhile as one.

    Parameters
    ----------
    backoff
        The waits.
    counters
        To be moved.
    """

    def __init__(self, backoff: Backoff, counters: ClusterCounters) -> None:
        self._backoff = backoff
        self._counters = counters
        self._fetching = False
        self._reason = False
        self.due: float | None = None
        """When the next fetch is to begin; None if there is no reason for one."""

    def kick(self, now: float) -> None:
        """There is a reason, met by the source itself."""
        self._counters.tot_kick += 1
        self.want(now)

    def want(self, now: float) -> None:
        """There is a reason: fetch when the wait is over."""
        if self._fetching or self.due is not None:
            self._counters.tot_kick_deduped += 1
        else:
            self._reason = True
            self.due = now + self._backoff.next_delay()

    def is_due(self, now: float) -> bool:
        return not self._fetching and self.due is not None and now >= self.due

    def begin(self) -> None:
        """A fetch begins."""
        counters = self._counters
        counters.tot_refresh_cluster += 1
        counters.tot_kick_ok += self._reason
        counters.tot_refresh_cluster_awoken_restart += self._reason
        self._reason = False
        self._fetching = True
        self.due = None

    def failed(self, now: float) -> None:
        """The fetch gave no map: try again after the wait."""
        self._counters.tot_refresh_cluster_all_server_urls_connect_bucket_err += 1
        self._fetching = False
        self.due = now + self._backoff.next_delay()

    def came(self, *, changed: bool) -> None:
        """A map came, fetched or pushed."""
        counters = self._counters
        counters.tot_refresh_cluster_kick_workers += 1
        counters.tot_refresh_cluster_kick_workers_ok += 1
        counters.tot_refresh_workers_cluster_ch_kicks += 1
        counters.tot_refresh_workers += 1
        # A pushed map serves those who waited for one.
        counters.tot_kick_ok += self._reason
        counters.tot_refresh_cluster_awoken += self._reason
        self._reason = self._fetching = False
        self.due = None
        if changed:
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
