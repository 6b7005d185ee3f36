"""Documents of one receive buffer: checked stream by stream, delivered in as few blocks as order allows.

A node interleaves many vbuckets, with markers and stream ends between them. Order matters within a
vbucket only, so documents are gathered over such messages, and delivered when one comes that belongs
to a vbucket whose documents are waiting.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cbframe.dcp.events import Data, Ended, Event, MapPushed, Nooped, Ready, Sampled, Timed
from cbframe.dcp.streams import Stream, StreamState, StreamTable
from cbframe.errors import ProtocolError
from cbframe.wire.blocks import DataBlock


@dataclass(frozen=True, slots=True)
class Delivery:
    """Documents, bytes of documents that nobody gets, and events that come after them."""

    data: Data | None
    dropped: int
    held: list[Event]


class Pending:
    """The documents of a buffer on their way to the receiver.

    Parameters
    ----------
    block
        All of them.
    lengths
        Bytes of each message.
    frames
        Number of each message's frame in the buffer.
    streams
        The streams of the connection.
    """

    def __init__(
        self,
        block: DataBlock,
        lengths: npt.NDArray[np.int64],
        frames: npt.NDArray[np.intp],
        streams: StreamTable,
    ) -> None:
        self._block = block
        self._lengths = lengths
        self._streams = streams
        self._segments = _segments(block, frames)
        self._next = next(self._segments, None)
        self._first = self._stop = 0
        self._keep: npt.NDArray[np.bool_] | None = None
        self._waiting: set[int] = set()
        self._fresh: list[Stream] = []
        self._held: list[Event] = []

    def take_until(self, row: int) -> None:
        """Check the documents before `row`, against their streams as they are now.

        Raises
        ------
        ProtocolError
            One belongs to another vbucket than its stream, or its seqno is out of place.
        """
        while self._next is not None and self._next.start < row:
            self._take(self._next)
            self._next = next(self._segments, None)
        self._stop = row

    def _take(self, segment: _Segment) -> None:
        stream = self._streams.get(segment.opaque)
        if stream is None or stream.state is StreamState.CLOSING:
            if self._keep is None:
                self._keep = np.ones(len(self._block), bool)
            self._keep[segment.start : segment.stop] = False
            return
        if segment.vbucket != stream.vbucket:
            raise ProtocolError(
                f"a document under the opaque of vbucket {stream.vbucket}", vbucket=segment.vbucket
            )
        if not segment.ascending and not stream.unordered:
            raise ProtocolError("seqnos do not ascend", vbucket=stream.vbucket)
        last = segment.last
        if stream.unordered:
            last = int(self._block.seqno[segment.start : segment.stop].max())
        stream.advance(segment.first, last)
        self._waiting.add(segment.opaque)
        if not stream.snap_saved:
            stream.snap_saved = True
            self._fresh.append(stream)

    def holds_back(self, event: Event) -> bool:
        """Whether documents of the event's vbucket have to come first."""
        if isinstance(event, Ready | Sampled | Timed | Nooped | MapPushed | Data):
            return False
        return event.stream.opaque in self._waiting

    def hold(self, event: Event) -> bool:
        """Keep an event for after the documents, if nothing of its stream can follow it."""
        if isinstance(event, Ended):
            self._held.append(event)
            return True
        return False

    def deliver(self) -> Delivery:
        """Give out what was checked and not given out before."""
        rows = slice(self._first, self._stop)
        nbytes = int(self._lengths[rows].sum())
        block = replace(
            self._block if len(self._block) == self._stop - self._first else self._block.select(rows),
            nbytes=nbytes,
        )
        if self._keep is not None:
            block = block.select(self._keep[rows])
        data = Data(block, tuple(self._fresh), nbytes) if len(block) else None
        delivery = Delivery(data, nbytes if data is None else 0, self._held)
        self._first = self._stop
        self._waiting, self._fresh, self._held = set(), [], []
        return delivery


class _Segment(NamedTuple):
    """Neighbouring documents of one stream."""

    start: int
    stop: int
    opaque: int
    vbucket: int
    first: int
    last: int
    ascending: bool


def _segments(block: DataBlock, frames: npt.NDArray[np.intp]) -> Iterator[_Segment]:
    """Cut a block where the stream changes, and where another message stood in between."""
    opaque, vbucket, seqno = block.opaque, block.vbucket, block.seqno
    same = (opaque[1:] == opaque[:-1]) & (vbucket[1:] == vbucket[:-1]) & (np.diff(frames) == 1)
    edges = np.flatnonzero(~same) + 1
    starts = np.concatenate(([0], edges))
    stops = np.concatenate((edges, [len(block)]))
    descents = np.flatnonzero(same & (seqno[1:] <= seqno[:-1]))
    ascending = np.ones(len(starts), bool)
    ascending[np.searchsorted(starts, descents, side="right") - 1] = False
    columns = (
        starts,
        stops,
        opaque[starts],
        vbucket[starts],
        seqno[starts],
        seqno[stops - 1],
        ascending,
    )
    return map(_Segment._make, zip(*(column.tolist() for column in columns), strict=True))
