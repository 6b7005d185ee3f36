"""Waiting longer after each failure. Nothing here sleeps by itself."""

from __future__ import annotations

from collections.abc import Callable

from cbframe.errors import ConfigurationError


class Backoff:
    """The delays between attempts, for state machines that wait by deadline."""

    __slots__ = ("_factor", "_max_ms", "_next_ms", "_start_ms")

    def __init__(self, start_ms: int = 100, factor: float = 1.5, max_ms: int = 1000) -> None:
        if start_ms < 0 or max_ms < 0 or not factor >= 1:  # "not" also refuses NaN
            raise ConfigurationError(
                f"a back-off cannot start at {start_ms} ms, grow by {factor} and end at {max_ms} ms",
                hint="times are not negative, the factor is at least 1",
            )
        self._start_ms = start_ms
        self._factor = factor
        self._max_ms = max_ms
        self._next_ms = start_ms

    def next_delay(self) -> float:
        """Seconds to wait now; the next call gives more."""
        delay_ms = self._next_ms
        # The comparison comes before int(): a huge factor may make the product infinite.
        self._next_ms = int(min(delay_ms * self._factor, self._max_ms)) if delay_ms else 0
        return delay_ms / 1000

    def reset(self) -> None:
        """Begin again with the first delay: there was progress."""
        self._next_ms = self._start_ms

    def __repr__(self) -> str:
        return f"Backoff(next {self._next_ms} ms, from {self._start_ms} by {self._factor} to {self._max_ms})"


def exponential_backoff_loop(
    f: Callable[[], int],
    start_sleep_ms: int = 100,
    factor: float = 1.5,
    max_sleep_ms: int = 1000,
    *,
    sleep: Callable[[float], object],
) -> None:
    """Call `f` until it returns a negative number, sleeping longer after each call without progress.

    Parameters
    ----------
    f
        Negative: stop. Positive: progress, call again at once and forget the growth. Zero: sleep.
    start_sleep_ms, factor, max_sleep_ms
        As :class:`Backoff`; the defaults sleep 100, 150, 225, 337, 505, 757, 1000, 1000 … ms.
    sleep
        Called with seconds. It may return early; then `f` should say that it is time to stop.
    """
    backoff = Backoff(start_sleep_ms, factor, max_sleep_ms)
    while (progress := f()) >= 0:
        if progress > 0:
            backoff.reset()
        else:
            sleep(backoff.next_delay())
