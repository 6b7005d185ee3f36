"""How fast bytes come: what is waited for before a receive, and when a node is allowed to send more.

No socket, no thread: `now` comes with each call.
"""

from __future__ import annotations

from cbframe.dcp.connection import DcpConnection

_LATE = 0.1
"""Seconds that one may be late and still catch up: a thread does not wake up to the moment."""
_FIRST = 0.001
"""Seconds that are waited for more after the first receive; they double with each, up to the latency."""
_STILL = 0.005
"""Seconds after which a node whose window is closed is sent a small acknowledgement."""


class Gather:
    """How many bytes a receive waits for, and how long.

    A node sends each document by itself, and each receive has a price. So while bytes flow, a receive waits
    until many have come together. What comes after a silence is taken at once.
    """

    def __init__(self, nbytes: int, latency: float) -> None:
        self._nbytes = nbytes
        self._latency = latency
        self._patience = 0.0
        self._until: float | None = None

    def received(self, now: float) -> None:
        """Bytes were received, and more may follow soon."""
        self._patience = min(self._latency, 2 * self._patience or _FIRST)
        self._until = now + self._patience

    def quiet(self) -> None:
        """Nothing comes at the moment, or nothing that is worth waiting for."""
        self._patience = 0.0
        self._until = None

    def left(self, now: float) -> float:
        """Seconds to wait before what is there is received; 0 if it should be taken as it comes."""
        return 0.0 if self._until is None else max(0.0, self._until - now)

    def least(self, now: float, most: int) -> int:
        """Bytes worth waiting for: no more than `most`, if that is all that can come."""
        return max(1, min(self._nbytes, most)) if self.left(now) else 1


class Pace:
    """When a node is sent an acknowledgement.

    A node that is sent one of `n` bytes sends as many more. So with a rate, the next one is sent when these
    would have come at the rate that is wanted.
    """

    def __init__(self, rate: int | None, now: float) -> None:
        self._rate = rate
        self._next = now
        self._unacked = 0
        self._little_at = now

    def acknowledged(self, nbytes: int, now: float) -> None:
        """As many bytes were acknowledged."""
        if self._rate is not None:
            self._next = max(self._next, now - _LATE) + nbytes / self._rate

    def left(self, now: float) -> float:
        """Seconds until the next may be; 0 if they may be now."""
        return max(0.0, self._next - now)

    def acknowledge(self, connection: DcpConnection, held: int, now: float) -> float:
        """Acknowledge what is due; seconds until something may be due, 0 if nothing waits for its time."""
        still = connection.unacked > 0 and connection.room(held) <= 0
        if connection.unacked != self._unacked or not still:
            self._unacked, self._little_at = connection.unacked, now + _STILL
        if not self.left(now):
            self.acknowledged(connection.tell(little=still and now >= self._little_at), now)
        if connection.wants_to_tell:
            return self.left(now)
        return max(self.left(now), self._little_at - now) if still and connection.unacked else 0.0
