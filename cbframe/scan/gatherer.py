"""From what the node threads hand over to batches, and from acknowledged batches to positions.

Used by one thread, that of the consumer.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping

import pyarrow as pa

from cbframe.arrow.changes import Arrived, ChangeReceiver, EventArrived, Item, Reached, Withdrawn
from cbframe.dcp.handover import Switch
from cbframe.dcp.positions import Position
from cbframe.errors import ReadCancelledError
from cbframe.json.layout import Place
from cbframe.scan.changerows import ChangeRows, Directory
from cbframe.scan.changes import ChangeBatch, CollectionDrop, Given, Rollback
from cbframe.wire.messages import SystemEvent

_POLL = 0.05
"""Seconds between two looks at whether the source is over, while nothing arrives."""


class Gatherer:
    """Makes batches, and knows which of them were consumed."""

    def __init__(
        self,
        receiver: ChangeReceiver,  # where items come from
        rows: ChangeRows,  # give rows their form
        directory: Directory,
        start: Mapping[int, Position],  # where the consumer is at first
        *,
        batch_bytes: int,  # a batch with this many bytes, on the wire, is given out
        max_latency: float,  # so is one whose first row arrived this many seconds ago
        paused: Switch,  # while it is on, nothing is given out, and nothing is acknowledged to the nodes
        is_over: Callable[[], bool],  # whether nothing more will arrive
        clock: Callable[[], float],  # monotonic seconds
    ) -> None:
        self._receiver = receiver
        self._rows = rows
        self._directory = directory
        self._batch_bytes = batch_bytes
        self._max_latency = max_latency
        self._paused = paused
        self._is_over = is_over
        self._clock = clock
        self.acked: dict[int, Position] = dict(start)
        self._inbox: deque[Item] = deque()
        self._outstanding: deque[Given] = deque()
        self._maps: set[Place] = set()
        self._torn = False
        self._begin()

    def _begin(self) -> None:
        self._batches: list[pa.RecordBatch] = []
        self._rollbacks: list[Rollback] = []
        self._events: list[SystemEvent] = []
        self._drops: list[CollectionDrop] = []
        self._given = Given()
        self._nbytes = 0
        self._since: float | None = None
        """When the first thing in the batch came that is worth giving out."""

    def next(self, timeout: float | None) -> ChangeBatch | None:
        """The next batch; None if there is none within `timeout` seconds, or nothing more will come."""
        deadline = None if timeout is None else self._clock() + timeout
        while True:
            if self._torn:
                raise ReadCancelledError(
                    "the stream was interrupted while a batch was made",
                    hint="close it, and stream on from its checkpoint",
                )
            # Ctrl-C may come anywhere. Here it would lose what is neither there any more nor here yet.
            self._torn = True
            over = self._is_over()
            self._inbox.extend(self._receiver.take())
            batch, left = self._look(deadline, over=over)
            self._torn = False
            if batch is not None or left is None:
                return batch
            self._receiver.wait(left)

    def _look(self, deadline: float | None, *, over: bool) -> tuple[ChangeBatch | None, float | None]:
        """A batch, if it is time for one; or else how long to wait for more, None for no longer."""
        paused = bool(self._paused)
        full = not paused and self._fill()
        now = self._clock()
        expired = deadline is not None and now >= deadline
        late = self._since is not None and now >= self._since + self._max_latency
        if self._since is not None and not paused and (full or late or expired or (over and not self._inbox)):
            return self._cut(), None
        if expired or (over and not paused):
            self._settle()
            return None, None
        left = _POLL if deadline is None else min(_POLL, deadline - now)
        if self._since is not None and not paused:
            left = min(left, self._since + self._max_latency - now)
        return None, max(0.0, left)

    def _fill(self) -> bool:
        """Take items into the batch that is being made; whether it is to be given out as it is."""
        while self._inbox:
            item = self._inbox[0]
            if isinstance(item, Withdrawn) and (self._batches or self._events):
                # What is withdrawn comes between the changes before and those after it.
                return True
            self._inbox.popleft()
            self._take(item)
            if self._nbytes >= self._batch_bytes:
                return True
        return False

    def _take(self, item: Item) -> None:
        given = self._given
        match item:
            case Arrived(batch=batch, receipt=receipt, positions=positions):
                given.positions |= positions
                batch = self._rows.reduce(batch)
                if not len(batch):
                    # Nothing of it is held here, so nothing is held up.
                    self._paused.when_off(receipt.done)
                    return
                self._batches.append(batch)
                self._nbytes += receipt.nbytes
                given.receipts.append(receipt)
            case Withdrawn(vbucket=vbucket, position=position, asked=asked):
                given.positions[vbucket] = position
                self._rollbacks.append(Rollback(vbucket, position.seqno, asked))
            case EventArrived(event=event, position=position):
                given.positions[event.vbucket] = position
                if (drop := self._directory.apply(event)) is not None:
                    self._drops.append(drop)
                self._events.append(event)
            case Reached(vbucket=vbucket, position=position):
                given.positions[vbucket] = position
                return
        if self._since is None:
            self._since = self._clock()

    def _cut(self) -> ChangeBatch:
        record, datatype, ids = self._rows.formed(self._batches)
        batch = ChangeBatch(
            record,
            tuple(self._rollbacks),
            tuple(self._events),
            tuple(self._drops),
            self._given,
            datatype,
            ids,
            self._maps,
        )
        self._outstanding.append(self._given)
        self._begin()
        return batch

    def awaits(self, batch: ChangeBatch) -> bool:
        """Whether a batch was given out, and is not acknowledged."""
        return any(given is batch.given for given in self._outstanding)

    def ack(self, batch: ChangeBatch) -> None:
        """Take note that a batch, and all before it, is consumed; once is enough."""
        wanted = batch.given
        if not self.awaits(batch):
            return
        while True:
            given = self._outstanding.popleft()
            self.acked |= given.positions
            for receipt in given.receipts:
                self._paused.when_off(receipt.done)
            if given is wanted:
                break
        self._settle()

    @property
    def given(self) -> dict[int, Position]:
        """Where vbuckets are after all that was given out, acknowledged or not."""
        found = dict(self.acked)
        for given in self._outstanding:
            found |= given.positions
        return found if self._since is not None else found | self._given.positions

    def release(self, batch: ChangeBatch) -> None:
        """Have the bytes of a batch acknowledged to the nodes, and nothing else."""
        given = batch.given
        receipts, given.receipts = given.receipts, []
        for receipt in receipts:
            self._paused.when_off(receipt.done)

    def after(self, batch: ChangeBatch) -> dict[int, Position]:
        """Where vbuckets will be when a batch is acknowledged; none if it was, or is not ours."""
        wanted = batch.given
        found: dict[int, Position] = {}
        for given in self._outstanding:
            found |= given.positions
            if given is wanted:
                return found
        return {}

    def _settle(self) -> None:
        """Positions that were reached without anything to give out need nobody's acknowledgement."""
        if not self._outstanding and self._since is None:
            self.acked |= self._given.positions
            self._given = Given()
