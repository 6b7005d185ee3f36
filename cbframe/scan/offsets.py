"""Where a sequence of bounded reads of changes is, for engines that keep no more than a small JSON of it.

Such an engine (Spark, for one) asks where the bucket is, stores that, and has other processes read what
lies between two such offsets. These processes cannot report what they met. So an offset holds no snapshot
and no failover log, only each vbucket's newest history and a seqno, and one rule makes up for it: whenever
a vbucket is not in the history any more that it was in, it is given again from its beginning.

Less would not be right. Of several versions of a document the server sends the last. So a read to a seqno,
from a vbucket that has gone on meanwhile, may not contain versions at or before that seqno which later
changes had replaced: the next read brings the later ones. If a failover loses those, the older versions
come back to light, *before* the seqno where the next read begins, also where the server's history has
nothing against beginning there. Nobody would ever get them.

An offset says, too, which scope and collections it is of. Those that are asked for later have documents
before it that were never given, and what was given of those that are asked for no more would never go.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from cbframe.dcp.positions import Position, u64_of
from cbframe.errors import ClusterMapError, ConfigurationError
from cbframe.wire.constants import MAX_SEQNO, MAX_VBUCKETS

_HINT = "offsets belong to the stream that wrote them: take a new checkpoint location"


BEGINNING = Position()


class Selection(NamedTuple):
    """Of which documents an offset is."""

    scope: str | None = None  # the name that was asked for; None if none was
    collections: tuple[str, ...] | None = None  # the names that were asked for, sorted; None if none were

    @classmethod
    def of(cls, scope: str | None, collections: Iterable[str] | None) -> Selection:
        """Whatever order the names come in."""
        return cls(scope, None if collections is None else tuple(sorted({*collections})))

    def __str__(self) -> str:
        names = None if self.collections is None else ", ".join(self.collections)
        choices = [("scope", self.scope), ("collections", names)]
        return (
            " and ".join(f"{what} {name!r}" for what, name in choices if name is not None)
            or "all collections"
        )


ALL = Selection()


class Range(NamedTuple):
    """The changes of one vbucket behind `start`, up to `end`."""

    vbucket: int
    start: Position
    end: Position

    @property
    def reset(self) -> bool:
        """Whether what was given before is void: then all up to `end` is given, and not only what is new."""
        return bool(self.start.seqno) and (
            self.end.history != self.start.history or self.end.seqno < self.start.seqno
        )

    @property
    def base(self) -> int:
        """Behind which seqno it is read."""
        return 0 if self.reset else self.start.seqno

    @property
    def changes(self) -> int:
        """As many rows as there can be at most; one of them says that what was before is void."""
        return self.end.seqno - self.base + self.reset


@dataclass(frozen=True, slots=True)
class Offset:
    """How far all vbuckets are."""

    bucket_uuid: str = ""  # of the bucket; empty if none was looked at
    marks: Mapping[int, Position] = field(default_factory=dict)
    turn: int = 0  # the vbucket from which on the next read takes what there is, if reads are limited
    initial: bool = False
    began: Mapping[int, Position] | None = None
    selection: Selection = ALL

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON: vbuuid and seqno by vbucket, as text, since many readers lose digits."""
        found: dict[str, Any] = {"bucket_uuid": self.bucket_uuid, **_plain(self.marks)}
        if self.turn:
            found["turn"] = self.turn
        if self.initial:
            found["initial"] = True
        if self.began is not None:
            found["began"] = _plain(self.began)
        if self.selection.scope is not None:
            found["scope"] = self.selection.scope
        if self.selection.collections is not None:
            found["collections"] = [*self.selection.collections]
        return found

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Offset:
        """Read what :meth:`to_dict` gave; nothing is the beginning."""
        if not isinstance(fields, Mapping):
            raise ConfigurationError(f"an offset is a {type(fields).__name__}, and no object", hint=_HINT)
        rest = dict(fields)
        names = ("bucket_uuid", "turn", "initial", "began", "scope", "collections")
        uuid, turn, initial, began, scope, collections = (rest.pop(name, None) for name in names)
        _check("bucket_uuid", uuid is None or isinstance(uuid, str))
        _check("turn", turn is None or (type(turn) is int and 0 <= turn < MAX_VBUCKETS))
        _check("initial", initial is None or isinstance(initial, bool))
        _check("began", began is None or isinstance(began, Mapping))
        _check("scope", scope is None or isinstance(scope, str))
        given = collections if isinstance(collections, list) else [collections]
        _check("collections", collections is None or all(isinstance(name, str) for name in given))
        return cls(
            uuid or "",
            _marks(rest),
            turn or 0,
            bool(initial),
            None if began is None else _marks(began, "began."),
            Selection.of(scope, None if collections is None else given),
        )

    def ahead(
        self,
        positions: Mapping[int, Position],  # the newest history and the high seqno of every vbucket
        bucket_uuid: str,
        most: int | None = None,
        selection: Selection = ALL,  # what is asked for
    ) -> Offset:
        """The offset that is to be read to, when the bucket is at `positions`."""
        self.check(positions, bucket_uuid, selection)
        marks = {vb: self.marks.get(vb, BEGINNING) for vb in sorted(positions)}
        left = MAX_SEQNO if most is None else most
        order = sorted(positions, key=lambda vb: (vb < self.turn, vb))
        turn = 0
        for at, vb in enumerate(order):
            wanted = Range(vb, marks[vb], positions[vb])
            if not wanted.changes:
                # An empty vbucket with a new history has nothing to give, and no more had the old one.
                continue
            if wanted.changes > left:
                # The next one's turn, however much is left of this one: or who writes much would be
                # the only one to be read. One that had nothing keeps its turn.
                turn = order[(at + 1) % len(order)] if left else vb
                if left:
                    marks[vb] = Position.at(wanted.end.history, wanted.base + left - wanted.reset)
                break
            marks[vb] = wanted.end
            left -= wanted.changes
        if marks == {vb: self.marks.get(vb, BEGINNING) for vb in marks} and self.marks:
            return self
        began = dict(self.marks) if self.initial else None
        return Offset(bucket_uuid, marks, turn, began=began, selection=selection)

    def check(self, positions: Mapping[int, Position], bucket_uuid: str, selection: Selection = ALL) -> None:
        """See that it is of this bucket and of these collections."""
        self._check_selection(selection)
        other = self.bucket_uuid and bucket_uuid and bucket_uuid != self.bucket_uuid
        if other or (self.marks and self.marks.keys() != positions.keys()):
            error = ClusterMapError(
                "it is not the bucket that the checkpoint is of: that was deleted and created again, or is "
                "of another cluster",
                fault="other bucket",
                hint="nothing that was given before belongs to it: take a new checkpoint location, and "
                "an empty target",
            )
            error.permanent = True
            raise error

    def _check_selection(self, selection: Selection) -> None:
        if self.marks and self.selection != selection:
            raise ConfigurationError(
                f"the checkpoint is of {self.selection}, and {selection} is asked for",
                hint="a checkpoint's scope and collections stay as they are, or documents would be missing "
                "or stay for ever: ask for the same, or take a new checkpoint location and an empty target",
            )

    def ranges_to(self, end: Offset) -> list[Range]:
        """What is to be read between this offset and a later one."""
        self._check_selection(end.selection)
        if end.initial:
            # Nothing had come since the beginning that this is.
            return []
        before = self.marks if end.began is None else end.began
        found = (Range(vb, before.get(vb, BEGINNING), mark) for vb, mark in end.marks.items())
        return [each for each in found if each.start != each.end and each.changes]

    @classmethod
    def now(cls, positions: Mapping[int, Position], bucket_uuid: str, selection: Selection = ALL) -> Offset:
        """The initial offset of who wants only what comes from now on."""
        return cls(bucket_uuid, dict(sorted(positions.items())), initial=True, selection=selection)


def _plain(marks: Mapping[int, Position]) -> dict[str, list[str]]:
    return {str(vb): [str(at.history), str(at.seqno)] for vb, at in sorted(marks.items())}


def _marks(fields: Mapping[Any, Any], prefix: str = "") -> dict[int, Position]:
    found = {}
    for name, mark in fields.items():
        try:
            number = u64_of(name)
            vbuuid, seqno = map(u64_of, mark if isinstance(mark, list | tuple) else ())
        except ValueError:
            number = MAX_VBUCKETS
        _check(f"{prefix}{name}", number < MAX_VBUCKETS)
        found[number] = Position.at(vbuuid, seqno)
    return found


def _check(name: str, holds: bool) -> None:
    if not holds:
        raise ConfigurationError(f"the field {name!r} of an offset cannot be read", hint=_HINT)
