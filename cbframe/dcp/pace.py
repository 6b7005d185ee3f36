"""How fast a node may send: no socket, no thread, `now` comes with each call."""

from __future__ import annotations

from cbframe.dcp.connection import DcpConnection

_LATE = 0.1
"""Seconds that one may be late and still catch up: a thread does not wake up to the moment."""


class Pace:
    """Spreads acknowledgements over time.

    A node that is told of `n` bytes sends so many more. So the next ones are told of when these would
    have come at the rate that is wanted.

    Parameters
    ----------
    rate
        Bytes a second.
    now
        When the connection was made.
    """

    def __init__(self, rate: int, now: float) -> None:
        self._rate = rate
        self._next = now

    def told(self, nbytes: int, now: float) -> None:
        """So many bytes were acknowledged."""
        self._next = max(self._next, now - _LATE) + nbytes / self._rate

    def left(self, now: float) -> float:
        """Seconds until the next may be; 0 if they may be now."""
        return max(0.0, self._next - now)

    def acknowledge(self, connection: DcpConnection, now: float) -> float:
        """Acknowledge what is due; seconds until the next may be that waits for its time, 0 if none does."""
        if not self.left(now):
            self.told(connection.tell(), now)
        return self.left(now) if connection.wants_to_tell else 0.0
