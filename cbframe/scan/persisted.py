"""Changes that wait until the active copy and all replicas of their vbucket have them on disk.

What is held back counts against the windows of the connections, as what the consumer has not acknowledged.
Changes are let go by whole snapshots: who is in the middle of one that a failover cut is rolled back to its
start. They stay in order in each vbucket; a batch of several vbuckets is parted where it must be. A rollback
of what is held back is none for the consumer: the stream is requested again from where the consumer is.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from cbframe.arrow.columns import VBUCKET
from cbframe.arrow.receivers import Arrived, ChangeReceiver, EventArrived, Item, Reached, RolledBack
from cbframe.dcp.positions import Track, VBucketOffset
from cbframe.dcp.receiver import MergingHandover
from cbframe.wire.constants import MAX_VBUCKETS


class PersistedHandover(MergingHandover[Item]):
    """Items that pass when they are on disk everywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.want: Callable[[int, int, int], None]
        self.given: dict[int, VBucketOffset] = {}  # where the consumer is after all that has passed
        self._guard = threading.Lock()
        self._held: MergingHandover[Item] = MergingHandover()
        self._count = 0  # of changes in these
        self._stuck: set[int] = set()  # vbuckets of which something is held
        self._floors: dict[int, tuple[int, int]] = {}
        """By vbucket: its newest history, and up to which seqno that is on disk everywhere."""

    def put(self, item: Item, keys: Iterable[int]) -> None:  # noqa: ARG002
        with self._guard:
            if isinstance(item, RolledBack):
                self._pass(item)
                return
            for vb, at in _places(item).items():
                if vb not in self._floors or self._floors[vb][0] != at.history:
                    self._floors[vb] = at.history, 0
                if _needed(at) > self._floors[vb][1]:
                    self.want(vb, at.history, _needed(at))
            self._sort(item)

    def news(self, key: int, item: Item) -> None:
        self.put(item, (key,))

    def on_persisted(self, floors: Mapping[int, tuple[int, int]]) -> None:
        """Let go of what is on disk everywhere."""
        with self._guard:
            known = self._floors
            news = {vb: floor for vb, floor in floors.items() if known.get(vb, (None,))[0] == floor[0]}
            known.update(news)
            if not self._stuck.isdisjoint(news):
                self._sort_again()

    def count(self) -> int:
        """How many changes are held."""
        with self._guard:
            return self._count

    def drop(self, vbucket: int) -> VBucketOffset:
        """Forget what is held of a vbucket; where the consumer is."""
        with self._guard:
            self._floors.pop(vbucket, None)
            self.want(vbucket, 0, 0)
            if vbucket in self._stuck:
                self._sort_again(vbucket)
            return self.given.get(vbucket, VBucketOffset())

    def _sort_again(self, dropped: int = -1) -> None:
        items, self._stuck, self._count = self._held.take(), set(), 0
        for item in items:
            gone, left = _parted(item, {dropped})
            if isinstance(gone, Arrived):
                gone.receipt.done()
            if left is not None:
                self._sort(left)

    def _sort(self, item: Item) -> None:
        """What can pass of an item passes; the rest is held."""
        self._stuck |= {vb for vb, at in _places(item).items() if _needed(at) > self._floors[vb][1]}
        held, passing = _parted(item, self._stuck)
        if passing is not None:
            self._pass(passing)
        if isinstance(held, Reached):
            self._held.news(held.vbucket, held)
        elif held is not None:
            self._held.put(held, _places(held))
            self._count += len(held.batch) if isinstance(held, Arrived) else 0

    def _pass(self, item: Item) -> None:
        self.given.update(_places(item))
        if isinstance(item, Reached):
            super().news(item.vbucket, item)
        else:
            super().put(item, _places(item))


def _needed(position: VBucketOffset) -> int:
    """What has to be on disk before a consumer can be there: the snapshot to its end."""
    return max(position.seqno, position.snap_end)


def _places(item: Item) -> Mapping[int, VBucketOffset]:
    """Where vbuckets are after an item."""
    if isinstance(item, Arrived):
        return item.positions
    return {item.event.vbucket if isinstance(item, EventArrived) else item.vbucket: item.position}


def _parted(item: Item, vbuckets: AbstractSet[int]) -> tuple[Item | None, Item | None]:
    """What an item has of some vbuckets, and the rest; None for nothing."""
    places = _places(item)
    if vbuckets.isdisjoint(places) or places.keys() <= vbuckets:
        return (None, item) if vbuckets.isdisjoint(places) else (item, None)
    assert isinstance(item, Arrived), "other items are of one vbucket"
    some = np.zeros(MAX_VBUCKETS, bool)
    some[[*vbuckets & places.keys()]] = True
    mask = some[item.batch.column(VBUCKET).to_numpy()]
    receipt = item.receipt.split(item.receipt.nbytes * int(mask.sum()) // max(1, len(mask)))
    ours = {vb: at for vb, at in places.items() if some[vb]}
    rest = {vb: at for vb, at in places.items() if not some[vb]}
    first = Arrived(item.batch.filter(pa.array(mask)), receipt, ours)
    return first, Arrived(item.batch.filter(pa.array(~mask)), item.receipt, rest)


@dataclass(slots=True)
class PersistedChangeReceiver(ChangeReceiver):
    """Takes changes, and gives them out when they are on the disks of all copies."""

    _items: PersistedHandover = field(default_factory=PersistedHandover, init=False, repr=False)

    @property
    def held(self) -> int:
        """How many changes are held back, those among them that filters leave out."""
        return self._items.count()

    def hold(self, want: Callable[[int, int, int], None]) -> None:
        self._items.want = want
        self._items.given.update(self.start)

    def on_persisted(self, floors: Mapping[int, tuple[int, int]]) -> None:
        self._items.on_persisted(floors)

    def rollback(self, vbucket: int, seqno: int) -> VBucketOffset | None:
        asked = self._tracks[vbucket].position()
        given = self._items.drop(vbucket)
        track = self._tracks[vbucket] = Track.at(given)
        if (asked.seqno, asked.history) != (given.seqno, given.history):
            # That was about what is held back. The server is asked about where the consumer is.
            return None
        if given.seqno > given.base:
            return ChangeReceiver.rollback(self, vbucket, seqno)
        # Nothing was given out since the beginning of the stream.
        self._items.given[vbucket] = position = track.rolled_back(seqno)
        return position
