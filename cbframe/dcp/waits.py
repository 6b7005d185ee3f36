"""How long a connection may be silent, in each respect: no socket, no thread, `now` comes with each call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from cbframe.errors import ReadTimeoutError
from cbframe.options import BucketDataSourceOptions


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds.

    Attributes
    ----------
    connect
        For the connection, and for its handshake.
    silence
        Without a byte from the node.
    request
        Without an answer to any of the stream requests under way.
    idle
        Without anything but questions whether the client lives, while streams are to be completed; None
        for no limit.
    ping
        Without a byte in either direction, until the node is asked whether it lives.
    """

    connect: float
    silence: float
    request: float
    ping: float
    idle: float | None = None

    @classmethod
    def of(cls, options: BucketDataSourceOptions) -> Self:
        """What the options say."""
        return cls(
            connect=options.connect_timeout,
            silence=2 * options.noop_interval_secs,
            request=options.stream_request_timeout,
            ping=options.ping_timeout_ms / 1000,
            # Of a source without an end, streams that get nothing may be complete.
            idle=None if options.seq_end is None else options.idle_timeout,
        )


class Waits:
    """The waits of one connection.

    Parameters
    ----------
    timeouts
        How long each may be.
    now
        When the connection was made.
    """

    def __init__(self, timeouts: Timeouts, now: float) -> None:
        self._timeouts = timeouts
        self._made = self._heard = self._active = self._answered = self._moved = now
        self._answers = self._messages = 0
        self._idle = False

    def sent(self, now: float) -> None:
        """Bytes were sent."""
        self._active = now

    def heard(self, now: float) -> None:
        """Bytes came."""
        self._heard = self._active = now

    def progress(self, now: float, messages: int, *, waiting: bool) -> None:
        """Take note how many messages the streams got so far, and whether they are to get more."""
        if messages != self._messages or not waiting:
            self._moved, self._messages = now, messages
        self._idle = waiting

    def check(self, now: float, *, ready: bool, unanswered: int, answers: int) -> None:
        """Look whether a wait is over.

        Parameters
        ----------
        ready
            Whether the handshake is done.
        unanswered, answers
            Stream requests that wait for an answer, and how many have got one so far.

        Raises
        ------
        ReadTimeoutError
            One is.
        """
        if not unanswered or answers != self._answers:
            self._answered, self._answers = now, answers
        limits = self._timeouts
        if not ready and now >= self._made + limits.connect:
            raise ReadTimeoutError(
                f"the handshake took longer than {limits.connect:g} s",
                hint="the port is open but silent: is it the data service?",
            )
        if ready and now >= self._heard + limits.silence:
            raise ReadTimeoutError(f"the node was silent for {limits.silence:g} s, not even a NOOP came")
        if now >= self._answered + limits.request:
            raise ReadTimeoutError(f"{unanswered} stream requests were not answered for {limits.request:g} s")
        if self._idle and limits.idle is not None and now >= self._moved + limits.idle:
            raise ReadTimeoutError(
                f"nothing came over the streams for {limits.idle:g} s, and they are not complete",
                hint="the node answers, but sends no documents; a larger idle_timeout waits longer",
            )

    def wants_ping(self, now: float, *, ready: bool) -> bool:
        """Whether the node should be asked if it lives."""
        return ready and now >= self._active + self._timeouts.ping

    def left(self, now: float, *, ready: bool, unanswered: int) -> float:
        """Seconds until one of these has to be looked at."""
        limits = self._timeouts
        if not ready:
            return self._made + limits.connect - now
        ends = [self._heard + limits.silence, self._active + limits.ping]
        if self._idle and limits.idle is not None:
            ends.append(self._moved + limits.idle)
        if unanswered:
            ends.append(self._answered + limits.request)
        return min(ends) - now
