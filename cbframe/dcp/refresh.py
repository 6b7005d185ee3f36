"""When a cluster map is fetched: when it is wanted, after a wait, and every now and then."""

from __future__ import annotations

from cbframe.cluster.backoff import Backoff


class MapRefresh:
    """The times of the fetches, one at a time, in seconds of any monotonic clock.

    Parameters
    ----------
    backoff
        Waits between two fetches that were wanted.
    interval
        Seconds without a fetch after which there is one all the same; None for never.
    """

    def __init__(self, backoff: Backoff, interval: float | None) -> None:
        self._backoff = backoff
        self._interval = interval
        self._fetching = False
        self._routine = False
        self._due: float | None = None
        self._look_at: float | None = None

    def wakeup(self) -> float | None:
        """When a fetch is due; None if none is, or one is under way."""
        times = (self._due, self._look_at)
        return None if self._fetching else min((at for at in times if at is not None), default=None)

    def want(self, now: float, *, at_once: bool = False) -> None:
        """Have a map fetched as soon as the wait between two fetches is over."""
        if self._fetching:
            self._routine = False
        elif self._due is None:
            self._due = now if at_once else now + self._backoff.next_delay()

    def begin(self, now: float) -> bool:
        """Whether a fetch is to begin now; it counts as begun then."""
        at = self.wakeup()
        if at is None or now < at:
            return False
        self._routine = self._due is None or now < self._due
        self._fetching, self._due = True, None
        return True

    def arrived(self, now: float) -> None:
        """The fetch brought a map."""
        self._fetching, self._due = False, None
        self._rest(now)

    def failed(self, now: float) -> bool:
        """The fetch failed; whether nobody was waiting for it."""
        self._fetching = False
        if self._routine:
            self._rest(now)
        else:
            self._due = now + self._backoff.next_delay()
        return self._routine

    def changed(self) -> None:
        """There is a newer map: whatever one was wanted for, it is the answer."""
        self._due = None
        self._backoff.reset()

    def _rest(self, now: float) -> None:
        self._look_at = None if self._interval is None else now + self._interval
