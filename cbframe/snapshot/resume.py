"""The receiver of an update: it begins where the snapshot ends, and goes back only to where it was whole."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping

import pyarrow as pa

from cbframe.arrow.batcher import DeferringBatchReceiver
from cbframe.dcp.positions import Position
from cbframe.dcp.receiver import Receipt
from cbframe.snapshot.history import Boundaries
from cbframe.wire.constants import SystemEventId
from cbframe.wire.messages import SystemEvent


class ResumingReceiver(DeferringBatchReceiver):
    """Gathers what changed since a snapshot.

    Everything that was received counts, also deletions and older versions of documents, but for what the
    server took back during the read itself.
    """

    __slots__ = ("_boundaries", "_drops", "_starts", "_waiting", "rolled_back", "taken_back")

    rolled_back: dict[int, int]
    """Seqnos to which the server rolled vbuckets back, the lowest of each."""
    taken_back: dict[int, int]
    """Seqnos, by vbucket, behind which nothing counts that the snapshot has."""

    def resume(self, starts: Mapping[int, Position], boundaries: Boundaries | None) -> None:
        """Begin there; call it before anything is received."""
        self._starts = starts
        self._boundaries = boundaries
        self._waiting: deque[Callable[[], None]] = deque()
        self._drops: dict[tuple[int, int], int] = {}
        self.rolled_back = {}
        self.taken_back = {}
        for vbucket, position in starts.items():
            self._begin(vbucket, position)

    def _begin(self, vbucket: int, position: Position) -> None:
        state = self._vbuckets[vbucket]
        state.metadata = position.metadata if position.seqno else None
        self._last_seqno[vbucket] = position.seqno

    # -- on the threads of the nodes

    def prepare_rollback(self, ready: Callable[[], None]) -> bool:
        if self._boundaries is None or self._boundaries.loaded:
            return True
        self._waiting.append(ready)
        self._batches.wake()
        return False

    def rollback(self, vbucket: int, seqno: int) -> Position:
        state = self._vbuckets[vbucket]
        state.void_before = self._batches.count()
        target = self._below(vbucket, seqno)
        self.rolled_back[vbucket] = min(seqno, self.rolled_back.get(vbucket, seqno))
        if target.seqno < self._starts.get(vbucket, target).seqno:
            self.taken_back[vbucket] = min(target.seqno, self.taken_back.get(vbucket, target.seqno))
        for place in [
            place for place, at in self._drops.items() if place[0] == vbucket and at > target.seqno
        ]:
            del self._drops[place]
        self._begin(vbucket, target)
        return target

    def seqno_advanced(self, vbucket: int, seqno: int) -> None:
        self._last_seqno[vbucket] = seqno

    def system_event(self, vbucket: int, event: SystemEvent) -> None:
        DeferringBatchReceiver.system_event(self, vbucket, event)
        # A collection that is reported to begin behind the start of the stream is new, or was emptied.
        ends = {SystemEventId.DROP_COLLECTION}
        if self._last_seqno[vbucket]:
            ends.add(SystemEventId.CREATE_COLLECTION)
        if event.event in ends and event.collection_id is not None:
            self._drops[vbucket, event.collection_id] = event.seqno

    # -- on the consumer's thread

    def take(self, timeout: float | None = None) -> list[tuple[pa.RecordBatch, Receipt]]:
        found = DeferringBatchReceiver.take(self, timeout)
        if self._waiting and self._boundaries is not None:
            self._boundaries.load()
            while self._waiting:
                self._waiting.popleft()()
        return found

    # -- afterwards

    def _below(self, vbucket: int, seqno: int) -> Position:
        """The last position at or before a seqno at which the vbucket was whole."""
        return Position() if self._boundaries is None else self._boundaries.below(vbucket, seqno)

    def ended(self) -> dict[tuple[int, int], int]:
        """By vbucket and collection: the seqno at which it was dropped or emptied."""
        return dict(self._drops)

    def drops(self, collections: Iterable[int]) -> dict[int, dict[int, int]]:
        """By collection, of those that matter, and vbucket: the seqno at which it was dropped or emptied."""
        found: dict[int, dict[int, int]] = {number: {} for number in collections}
        for (vbucket, collection), seqno in self._drops.items():
            if collection in found:
                found[collection][vbucket] = seqno
        return {collection: seqnos for collection, seqnos in found.items() if seqnos}

    def vanished(self, reached: Mapping[int, int]) -> dict[int, int]:
        """Vbuckets of which less is there than the snapshot has, though nobody rolled them back.

        Nothing is asked about a vbucket that the server says is empty.
        """
        return {
            vbucket: self._below(vbucket, reached[vbucket]).seqno
            for vbucket, start in self._starts.items()
            if reached.get(vbucket, start.seqno) < start.seqno and vbucket not in self.taken_back
        }

    def position_at(self, vbucket: int, seqno: int) -> Position:
        """Where to continue, once all up to `seqno` was received."""
        return Position.of(self._vbuckets[vbucket].metadata, seqno) if seqno else Position()

    def replaced(self, vbuckets: Iterable[int]) -> bool:
        """Whether the snapshot knows none of the histories that the server reported for these vbuckets."""
        return not any(
            {vbuuid for vbuuid, _ in self.failover_log(vbucket)}
            & {vbuuid for vbuuid, _ in self._starts[vbucket].failover_log}
            for vbucket in vbuckets
            if vbucket in self.taken_back
        )
