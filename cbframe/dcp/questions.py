"""Requests of a connection: its handshake, and what is asked later; and the node's time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace

from cbframe.dcp.controls import DcpSettings
from cbframe.dcp.counters import NodeStats
from cbframe.dcp.events import Ready, Sampled, Timed
from cbframe.dcp.handshake import Login, Session, Steps, open_dcp, sample_seqnos
from cbframe.dcp.survey import TIME, time_of
from cbframe.dcp.tally import HandshakeTally
from cbframe.errors import CbframeError
from cbframe.wire.constants import Opcode, Status
from cbframe.wire.framing import Frame


class Questions:
    """Runs the handshake, and a sample after it; a node answers in the order in which it is asked."""

    def __init__(
        self, login: Login, settings: DcpSettings, queue: Callable[[Frame], None], stats: NodeStats
    ) -> None:
        self._queue = queue
        self._stats = stats
        self._tally = HandshakeTally(stats)
        self._opaque = 0
        self._waiting: deque[tuple[int, int]] = deque()
        """Opaques and opcodes of the requests that have no answer yet, in order."""
        self._handshake: Steps[Session] | None = open_dcp(login, settings)
        self._sampling: Steps[dict[int, int]] | None = None
        self._collections = settings.collections
        self._asks_time = settings.ask_time
        self._time_opaque: int | None = None
        self.answers = 0
        """Requests that were answered so far."""
        self._ask(next(self._handshake))

    @property
    def unanswered(self) -> int:
        """Requests that have no answer yet, other than the one for the time."""
        return len(self._waiting)

    def sample(self) -> None:
        """Ask for the node's high seqnos, unless that is under way."""
        if self._sampling is None:
            self._sampling = sample_seqnos(self._collections)
            self._ask(next(self._sampling))

    def awaits(self, answer: Frame) -> bool:
        """Whether this is the next answer."""
        if answer.opcode == Opcode.STAT:
            return answer.opaque == self._time_opaque
        return bool(self._waiting) and (answer.opaque, answer.opcode) == self._waiting[0]

    def answered(self, answer: Frame) -> Ready | Sampled | Timed | None:
        """Take the answer and ask on; what has come to its end with it."""
        if answer.opcode == Opcode.STAT:
            return self._took_time(answer)
        self._waiting.popleft()
        self.answers += 1
        self._tally.answered(answer)
        try:
            if self._handshake is not None:
                self._ask(self._handshake.send(answer))
            elif self._sampling is not None:
                self._ask(self._sampling.send(answer))
        except StopIteration as done:
            if self._handshake is not None:
                self._handshake = None
                self._stats.tot_worker_upr_open_ok += 1
                self._ask_time()
                return Ready(done.value)
            self._sampling = None
            return Sampled(done.value)
        return None

    def _ask_time(self) -> None:
        """Have the node say what time it is: before the first stream, and without waiting for it."""
        if self._asks_time:
            self._opaque += 1
            self._time_opaque = self._opaque
            self._queue(replace(TIME.frame(), opaque=self._opaque))

    def _took_time(self, answer: Frame) -> Timed | None:
        if answer.status != Status.SUCCESS or not answer.key:
            self._time_opaque = None  # the last line, or a refusal: nothing but the time depends on it
        seconds = time_of(answer)
        return None if seconds is None else Timed(seconds)

    def broke_off(self, error: CbframeError) -> None:
        """Take note that the connection is over, with `error`."""
        if self._handshake is not None:
            self._tally.broke(error)

    def _ask(self, frames: Sequence[Frame]) -> None:
        for frame in frames:
            self._opaque += 1
            self._waiting.append((self._opaque, frame.opcode))
            self._queue(replace(frame, opaque=self._opaque))
        self._tally.awaits(self._waiting[0][1])
