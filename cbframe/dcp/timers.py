"""When a connection receives, acknowledges, pings and gives up. No clock: `now` comes with each call.

:class:`Gather` says for how many bytes a receive waits, :class:`Pace` when an acknowledgement is sent, and
:class:`Waits` how long the node may be silent. All three belong to the thread of one connection.
:class:`Backoff` has the delays between attempts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import groupby

from cbframe.dcp.connection import DcpConnection
from cbframe.dcp.transport import TURNS
from cbframe.errors import ConfigurationError, ReadTimeoutError
from cbframe.options import BucketDataSourceOptions


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


_LATE = 0.1
"""Seconds that one may be late and still catch up: a thread does not wake up to the moment."""
_FIRST = 0.001
"""Seconds that are waited for more after the first receive; they double with each, up to the latency."""
_STILL = 0.005
"""Seconds after which a node whose window is closed is sent a small acknowledgement."""
QUIET = 10.0
"""Seconds without a message, while the node may send, after which it is checked what it owes."""
_NAMED = 20
"""Ranges of vbuckets that are named at most."""


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
            self.acknowledged(connection.send_ack(little=still and now >= self._little_at), now)
        if connection.ack_is_due:
            return self.left(now)
        return max(self.left(now), self._little_at - now) if still and connection.unacked else 0.0


class Waits:
    """The waits of one connection, in seconds."""

    def __init__(self, options: BucketDataSourceOptions, now: float) -> None:
        self._connect = options.connect_timeout
        self._silence = 2 * options.noop_interval_secs
        self._request = options.stream_request_timeout
        self._ping = options.ping_timeout_ms / 1000
        # Of a source without an end, streams that get nothing may be complete.
        self._owed_for = None if options.seq_end is None else options.idle_timeout
        self._last = now + TURNS * self._connect
        self._made = self._heard = self._active = self._answered = self._moved = now
        self._answers = self._messages = 0
        self._idle = self._warned = False
        self._owing = ""

    def sent(self, now: float) -> None:
        """Bytes were sent."""
        self._active = now

    def heard(self, now: float) -> None:
        """Bytes came."""
        self._heard = self._active = now

    def progress(self, now: float, messages: int, *, waiting: bool) -> None:
        """Take note how many messages the streams got so far, and whether the node may send more."""
        if messages != self._messages or not waiting:
            self._moved, self._messages, self._warned = now, messages, False
        self._idle = waiting

    def owed_is_due(self, now: float) -> bool:
        """Whether it is time to check which streams the node owes something: see :meth:`owed`."""
        return self._idle and now >= self._check_at()

    def owed(self, now: float, owing: Sequence[int]) -> str:
        """Take note of the vbuckets to which the node owes messages; a warning to log, or nothing.

        There is one warning until the next message. Where nothing is owed, the wait begins again.
        """
        if not owing:
            self._moved, self._warned = now, False
            return ""
        self._owing = vbucket_ranges(owing)
        if self._warned or now < self._moved + QUIET:
            return ""
        self._warned = True
        idle = self._owed_for
        then = "" if idle is None else f"; after {idle:g} s (idle_timeout) the connection is made again"
        return f"the node answers, but has sent nothing for {QUIET:g} s, and owes {self._owing}{then}"

    def _check_at(self) -> float:
        idle = float("inf") if self._owed_for is None else self._owed_for
        return self._moved + (idle if self._warned else min(QUIET, idle))

    def check(self, now: float, *, ready: bool, unanswered: int, answers: int) -> None:
        """Raise if a wait is over."""
        if not unanswered or answers != self._answers:
            self._answered, self._answers = now, answers
        if not ready and now >= min(self._answered + self._connect, self._last):
            silent = now >= self._answered + self._connect
            raise ReadTimeoutError(
                f"no answer within {self._connect:g} s during the handshake"
                if silent
                else f"the handshake took longer than {self._last - self._made:g} s",
                hint="the port is open but silent: is it the data service?"
                if not answers
                else "it answered before, and may be too busy now: try again, or give connect_timeout more",
            )
        if ready and now >= self._heard + self._silence:
            raise ReadTimeoutError(f"the node was silent for {self._silence:g} s, not even a NOOP came")
        if ready and now >= self._answered + self._request:
            asked = "1 request was" if unanswered == 1 else f"{unanswered} requests were"
            raise ReadTimeoutError(f"{asked} not answered for {self._request:g} s")
        if self._idle and self._owed_for is not None and now >= self._moved + self._owed_for:
            raise ReadTimeoutError(
                f"the node answers, but has sent nothing for {self._owed_for:g} s, and owes {self._owing}",
                hint="a node that searches a large disk may take longer: give idle_timeout more seconds, "
                "or None; otherwise look at the node's log",
            )

    def wants_ping(self, now: float, *, ready: bool) -> bool:
        """Whether the node should be asked if it lives."""
        return ready and now >= self._active + self._ping

    def left(self, now: float, *, ready: bool, unanswered: int) -> float:
        """Seconds until one of these has to be checked."""
        if not ready:
            return min(self._answered + self._connect, self._last) - now
        ends = [self._heard + self._silence, self._active + self._ping]
        if self._idle:
            ends.append(self._check_at())
        if unanswered:
            ends.append(self._answered + self._request)
        return min(ends) - now


def vbucket_ranges(vbuckets: Iterable[int]) -> str:
    """For messages: ``vbuckets 0-5, 9``; of very many the first ranges, and how many there are."""
    ordered = sorted(vbuckets)
    ranges = []
    for _, run in groupby(enumerate(ordered), lambda pair: pair[1] - pair[0]):
        numbers = [vb for _, vb in run]
        ranges.append(f"{numbers[0]}" if len(numbers) == 1 else f"{numbers[0]}-{numbers[-1]}")
    if len(ordered) == 1:
        return f"vbucket {ranges[0]}"
    if len(ranges) > _NAMED:
        return f"{len(ordered)} vbuckets ({', '.join(ranges[:_NAMED])}, …)"
    return f"vbuckets {', '.join(ranges)}"
