"""Where a vbucket's stream is, and where it can go back to.

Pure bookkeeping: no thread, no socket. Within a snapshot a document occurs once: of several versions the
server sends the last. So what was received is the state of the vbucket only at the end of a snapshot, and a
rollback into the middle of one leads to a state that the stream never had. The end of an earlier snapshot
is the nearest place to which whoever has kept all changes can go back. So the ends of the last snapshots
are remembered.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from cbframe.errors import ConfigurationError
from cbframe.wire.constants import MAX_SEQNO
from cbframe.wire.messages import FailoverEntry, FailoverLog

MOST_ENDS = 32
"""Ends of snapshots that are remembered, at most."""
GO_BACK = "use an older checkpoint, or start from the beginning: the changes since then are delivered again"
"""What to do about a checkpoint or position that cannot be read."""


@dataclass(frozen=True, slots=True)
class VBucketMetaData:
    """Snapshot range and failover log of a vbucket, as a receiver stores them: in the reference's JSON.

    The last seqno is not part of it: it belongs to the data, and is stored with the data.
    """

    seq_start: int = 0
    seq_end: int = 0
    snap_start: int = 0
    snap_end: int = 0
    failover_log: FailoverLog = ()
    purge_seqno: int = 0
    manifest_uid: int = 0

    def to_json(self) -> bytes:
        """The reference's JSON: seqStart, seqEnd, snapStart, snapEnd, failOverLog.

        And purgeSeqno and manifestUid, where there are such; the reference passes over them.
        """
        found: dict[str, object] = {
            "seqStart": self.seq_start,
            "seqEnd": self.seq_end,
            "snapStart": self.snap_start,
            "snapEnd": self.snap_end,
            "failOverLog": [list(entry) for entry in self.failover_log],
        }
        if self.purge_seqno:
            found["purgeSeqno"] = self.purge_seqno
        if self.manifest_uid:
            found["manifestUid"] = self.manifest_uid
        return json.dumps(found, separators=(",", ":")).encode()

    @classmethod
    def from_json(cls, data: bytes) -> VBucketMetaData:
        """Read what :meth:`to_json`, or the reference, wrote.

        Raises
        ------
        ConfigurationError
            The bytes are no such JSON.
        """
        try:
            stored: dict[str, Any] = json.loads(data)
            log = tuple(FailoverEntry(_u64(u), _u64(s)) for u, s in stored.get("failOverLog") or ())
            names = ("seqStart", "seqEnd", "snapStart", "snapEnd", "purgeSeqno", "manifestUid")
            first, last, start, end, *later = (_u64(stored.get(name, 0)) for name in names)
            return cls(first, last, start, end, log, *later)
        except (ValueError, TypeError, AttributeError, RecursionError) as exc:
            raise ConfigurationError(
                "stored vbucket metadata is not readable",
                hint="store what set_metadata gave byte for byte, or start that vbucket again from 0",
            ) from exc

    def vbuuid_at(self, seqno: int) -> int:
        """The history that `seqno` belongs to; 0 where none is known or needed."""
        return vbuuid_at(self.failover_log, seqno)


@dataclass(frozen=True, slots=True, repr=False)
class VBucketOffset:
    """The position of one vbucket: how far it is, and what the server needs to know to go on from there.

    Attributes
    ----------
    seqno
        Everything up to here was received, or consumed.
    snap_start, snap_end
        The snapshot that it is in. At its end the vbucket's state is consistent; inside of it, it is not.
    failover_log
        The vbucket's histories, newest first: vbuuid, and the seqno at which it began.
    manifest_uid, purge_seqno
        Newest change of the collections that was received, and how far deletions were purged; 0 for unknown.
    snapshots
        Ends of some snapshots before, newest first: after a rollback the stream goes back to one of them.
    base
        Where the stream began; 0 for the beginning of the vbucket.

    Raises
    ------
    ConfigurationError
        The seqno is outside of its snapshot, or before what came before it.
    """

    seqno: int = 0
    snap_start: int = 0
    snap_end: int = 0
    failover_log: tuple[tuple[int, int], ...] = ()
    manifest_uid: int = 0
    purge_seqno: int = 0
    snapshots: tuple[int, ...] = ()
    base: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.snap_start <= self.seqno <= self.snap_end <= MAX_SEQNO:
            problem = f"outside of its snapshot, {self.snap_start} to {self.snap_end}"
        elif not 0 <= self.base <= self.seqno:
            problem = f"before seqno {self.base}, where the stream began"
        elif self.snapshots and self.snapshots[0] > self.seqno:
            problem = f"before the end of an earlier snapshot, {self.snapshots[0]}"
        else:
            return
        raise ConfigurationError(f"the position of a vbucket has seqno {self.seqno}, {problem}", hint=GO_BACK)

    def __repr__(self) -> str:
        log = tuple((vbuuid, seqno) for vbuuid, seqno in self.failover_log)
        values = {each.name: getattr(self, each.name) for each in fields(self)} | {"failover_log": log}
        return f"VBucketOffset({', '.join(f'{name}={value!r}' for name, value in values.items())})"

    @classmethod
    def at(cls, vbuuid: int, seqno: int, snapshots: tuple[int, ...] = ()) -> VBucketOffset:
        """The end of a snapshot in a history of which no more is known than its vbuuid."""
        return cls(seqno, seqno, seqno, ((vbuuid, 0),) if vbuuid else (), snapshots=snapshots)

    @classmethod
    def of(
        cls, stored: VBucketMetaData | None, seqno: int, snapshots: tuple[int, ...] = (), base: int = 0
    ) -> VBucketOffset:
        """What was stored for a vbucket, with the last seqno.

        A seqno outside of the stored range comes of a crash between saving the range and its first item,
        or of a snapshot that is complete. Both times the state at `seqno` is consistent: a snapshot of its
        own. Before the range, deletions that were purged from it are still needed.
        """
        if stored is None:
            return cls(seqno, seqno, seqno, snapshots=snapshots, base=base)
        start, end, purged = stored.snap_start, stored.snap_end, stored.purge_seqno
        if seqno < start:
            purged = 0
        if not start <= seqno <= end:
            start = end = seqno
        return cls(seqno, start, end, stored.failover_log, stored.manifest_uid, purged, snapshots, base)

    @property
    def vbuuid(self) -> int:
        """The history that `seqno` belongs to; 0 where none is known or needed."""
        return vbuuid_at(self.failover_log, self.seqno)

    @property
    def history(self) -> int:
        """The newest history that the vbucket had, also where its seqno is 0; 0 if none is known."""
        return self.failover_log[0][0] if self.failover_log else 0

    @property
    def metadata(self) -> VBucketMetaData | None:
        """What a receiver stores of it besides the seqno; None where no history is known."""
        if not self.failover_log:
            return None
        log = tuple(FailoverEntry(*entry) for entry in self.failover_log)
        return VBucketMetaData(0, 0, self.snap_start, self.snap_end, log, self.purge_seqno, self.manifest_uid)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; numbers as text: many readers of JSON lose digits beyond 2^53."""
        return {
            "vbuuid": str(self.vbuuid),
            "seqno": str(self.seqno),
            "snap_start": str(self.snap_start),
            "snap_end": str(self.snap_end),
            "failover_log": [[str(vbuuid), str(seqno)] for vbuuid, seqno in self.failover_log],
            "manifest_uid": str(self.manifest_uid),
            "purge_seqno": str(self.purge_seqno),
            "snapshots": [str(end) for end in self.snapshots],
            "base": str(self.base),
        }

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> VBucketOffset:
        """Read what :meth:`to_dict` gave.

        Raises
        ------
        ConfigurationError
            A field is missing, or is no number in text; or the numbers contradict each other.
        """
        try:
            return cls(
                u64_of(stored["seqno"]),
                u64_of(stored["snap_start"]),
                u64_of(stored["snap_end"]),
                tuple((u64_of(vbuuid), u64_of(seqno)) for vbuuid, seqno in stored["failover_log"]),
                u64_of(stored["manifest_uid"]),
                u64_of(stored["purge_seqno"]),
                tuple(u64_of(end) for end in stored["snapshots"]),
                u64_of(stored["base"]),
            )
        except ConfigurationError:
            raise
        except (KeyError, TypeError, ValueError) as exc:
            raise ConfigurationError("the position of a vbucket is not readable", hint=GO_BACK) from exc


@dataclass(slots=True)
class Track:
    """The position of one vbucket, moved by what its streams report; touched by one thread at a time."""

    seqno: int = 0
    metadata: VBucketMetaData | None = None
    ends: tuple[int, ...] = ()
    base: int = 0
    _snap_end: int | None = None
    """Of the snapshot under way; None before the first one of the present stream."""
    _asked: bool = False
    """A stream was asked for, and not granted yet."""

    @classmethod
    def at(cls, position: VBucketOffset) -> Track:
        """A track that goes on from a position."""
        return cls(position.seqno, position.metadata, position.snapshots, position.base)

    def position(self) -> VBucketOffset:
        return VBucketOffset.of(self.metadata, self.seqno, self.ends, self.base)

    def requested(self) -> VBucketOffset:
        """A stream is about to be requested: where from.

        The snapshot that was under way is not complete, and what comes next does not make it so.
        """
        self._snap_end = None
        self._asked = True
        return self.position()

    def stored(self, metadata: VBucketMetaData) -> bool:
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

    def rolled_back(self, seqno: int, *, to_base: bool = False) -> VBucketOffset:
        """The server has rolled the vbucket back to `seqno`: go back as far as needed."""
        if to_base or seqno <= self.base:
            # Of what lies before its beginning, the stream has delivered nothing: it can begin anywhere.
            target = self.base = min(seqno, self.base)
        else:
            target = max((end for end in self.ends if end <= seqno), default=self.base)
        self.ends = tuple(end for end in self.ends if end <= target)
        self.seqno = target
        self._snap_end = None
        if self.metadata is not None:
            # Not the purge seqno: deletions that were rolled back with the rest may have been purged since.
            log = tuple(entry for entry in self.metadata.failover_log if entry.seqno <= target)
            self.metadata = VBucketMetaData(0, 0, target, target, log) if target else None
        return self.position()


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


def vbuuid_at(log: tuple[tuple[int, int], ...], seqno: int) -> int:
    """The newest history that began at or before a seqno; nothing has happened in any before seqno 1."""
    return next((vbuuid for vbuuid, began in log if began <= seqno), 0) if seqno else 0


def has_place(log: tuple[tuple[int, int], ...], vbuuid: int, seqno: int) -> bool:
    """Whether the newest of some histories contains what an earlier one had at a seqno."""
    # Each history ends where the newer one begins, which stands before it.
    ends = [MAX_SEQNO, *(began for _, began in log)]
    return any(name == vbuuid and seqno <= end for (name, _), end in zip(log, ends, strict=False))


def u64_of(text: object) -> int:
    """An unsigned 64-bit integer that was written as text: what went through a double has lost digits."""
    if not isinstance(text, str) or str(int(text)) != text:
        raise ValueError(f"{text!r} is no unsigned 64-bit integer in text")
    return _u64(int(text))


def _u64(number: object) -> int:
    if not isinstance(number, int) or not 0 <= number <= MAX_SEQNO:
        raise ValueError(f"{number!r} is no unsigned 64-bit integer")
    return number


class ReachedEnds(dict[int, int]):
    """Ends by vbucket, as `seq_end`, that the vbuckets had reached when they were asked.

    Other than with a plain mapping, a history that does not reach its end any more is read as far as it
    goes, and not waited for.
    """


class Ends:
    """The ends of all streams of a data source.

    With ``"now"`` all ends are pinned, to the high seqnos that the owners report, before the first
    stream opens: the read is as of one moment.
    """

    def __init__(self, seq_end: Mapping[int, int] | Literal["now"] | None) -> None:
        self._given = seq_end
        self._unpinned: set[int] = set()
        self.pinned: dict[int, int] = {}
        """The ends, by vbucket; none of an unbounded source."""

    @property
    def bounded(self) -> bool:
        return self._given is not None

    @property
    def now(self) -> bool:
        """Whether all ends were reached at some time: what the nodes report shows whether they still are."""
        return self._given == "now" or isinstance(self._given, ReachedEnds)

    @property
    def known(self) -> bool:
        """Whether no end has to be pinned any more."""
        return not self._unpinned

    def begin(self, vbuckets: Collection[int]) -> None:
        """Take note of the wanted vbuckets."""
        if self._given == "now":
            self._unpinned = set(vbuckets)
        elif isinstance(self._given, Mapping):
            self.pinned = {vb: self._given.get(vb, MAX_SEQNO) for vb in vbuckets}

    def pin(self, vbuckets: Iterable[int], seqnos: Mapping[int, int]) -> None:
        """Pin those of `vbuckets` that are not pinned yet to their high seqnos."""
        for vb in self._unpinned.intersection(vbuckets):
            self.pinned[vb] = seqnos[vb]
            self._unpinned.discard(vb)

    def of(self, vb: int, seqnos: Mapping[int, int]) -> int:
        """The end to ask for, given the owner's high seqnos.

        A history that lost its pinned end would be waited for without end, so it is read as far as
        it goes now.
        """
        if not self.bounded:
            return MAX_SEQNO
        end = self.pinned[vb]
        if self.now and seqnos[vb] < end:
            end = seqnos[vb]
        return end
