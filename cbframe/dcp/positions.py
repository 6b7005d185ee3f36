"""How far a stream of changes has got in each vbucket, and where it can go back to.

Pure bookkeeping of one vbucket: no thread, no socket. Within a snapshot a document occurs once: of
several versions the server sends the last. So what was received is the state of the vbucket only at
the end of a snapshot, and a rollback into the middle of one leads to a state that the stream never
had. The end of an earlier snapshot is the nearest place to which whoever has kept all changes can go
back. So the ends of the last snapshots are remembered.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from cbframe.dcp.metadata import VBucketMetaData

MOST_ENDS = 32
"""Ends of snapshots that are remembered, at most."""


class Position(NamedTuple):
    """Where a vbucket's stream is.

    Attributes
    ----------
    seqno
        What was received last.
    metadata
        Snapshot range and failover log, in the JSON of :class:`~cbframe.dcp.metadata.VBucketMetaData`;
        None before a stream was granted.
    ends
        Ends of snapshots that were received whole, newest first.
    base
        Where the stream began: nothing at or before it was ever received.
    """

    seqno: int = 0
    metadata: bytes | None = None
    ends: tuple[int, ...] = ()
    base: int = 0


@dataclass(slots=True)
class Track:
    """The position of one vbucket, moved by what its streams tell; touched by one thread at a time."""

    seqno: int = 0
    metadata: bytes | None = None
    ends: tuple[int, ...] = ()
    base: int = 0
    _snap_end: int | None = None
    """Of the snapshot under way; None before the first one of the present stream."""
    _asked: bool = False
    """A stream was asked for, and not granted yet."""

    @classmethod
    def at(cls, position: Position) -> Track:
        """A track that goes on from a position."""
        return cls(*position)

    def position(self) -> Position:
        return Position(self.seqno, self.metadata, self.ends, self.base)

    def requested(self) -> tuple[bytes | None, int]:
        """A stream is about to be asked for: what it is asked for with.

        The snapshot that was under way is not complete, and what comes next does not make it so.
        """
        self._snap_end = None
        self._asked = True
        return self.metadata, self.seqno

    def stored(self, metadata: bytes) -> bool:
        """There is metadata to be stored; whether a stream was granted, perhaps in a new history."""
        granted, self._asked = self._asked, False
        self.metadata = metadata
        return granted

    def marked(self, end: int) -> bool:
        """A snapshot begins, and so the one before it is complete; whether the position moved."""
        before, self._snap_end = self._snap_end, end
        return before is not None and self._complete(before)

    def advanced(self, seqno: int) -> None:
        """Everything up to `seqno` was received."""
        self.seqno = max(self.seqno, seqno)
        if self._snap_end is not None and self.seqno >= self._snap_end:
            self._complete(self._snap_end)

    def _complete(self, end: int) -> bool:
        moved = end > self.seqno
        self.seqno = max(self.seqno, end)
        if not self.ends or self.ends[0] < self.seqno:
            self.ends = thinned((self.seqno, *self.ends))
        return moved

    def rolled_back(self, seqno: int, *, to_base: bool = False) -> int:
        """The server has withdrawn everything behind `seqno`: go back as far as needed.

        Parameters
        ----------
        to_base
            Go back to where the stream began: for those who keep only the newest versions, and so have
            lost the older ones that withdrawn changes replaced.

        Returns
        -------
        int
            Where the stream goes on from: what was received behind it is void.
        """
        if to_base or seqno <= self.base:
            # Of what lies before its beginning, the stream has given nothing: it can begin anywhere.
            target = self.base = min(seqno, self.base)
        else:
            target = max((end for end in self.ends if end <= seqno), default=self.base)
        self.ends = tuple(end for end in self.ends if end <= target)
        self.seqno = target
        self._snap_end = None
        self.metadata = None if self.metadata is None or not target else _metadata_at(self.metadata, target)
        return target


def thinned(ends: tuple[int, ...]) -> tuple[int, ...]:
    """Some of the ends: many of those just before the newest, few of those long ago.

    A rollback by some distance then leads back by about twice that distance at most, in however many
    snapshots that came.
    """
    newest = ends[0]
    kept = [newest]
    for at, end in enumerate(ends[1:], 1):
        older = ends[at + 1] if at + 1 < len(ends) else None
        # It can go if the next one is hardly farther from the newest than the one that is kept before it.
        if older is None or newest - older > 2 * (newest - kept[-1]):
            kept.append(end)
    return tuple(kept[:MOST_ENDS])


def _metadata_at(metadata: bytes, seqno: int) -> bytes:
    """What is stored for a vbucket that was taken back to the end of a snapshot.

    Not the purge seqno: deletions that were taken back with the rest may have been purged since.
    """
    stored = VBucketMetaData.from_json(metadata)
    log = tuple(entry for entry in stored.failover_log if entry.seqno <= seqno)
    return VBucketMetaData(snap_start=seqno, snap_end=seqno, failover_log=log).to_json()
