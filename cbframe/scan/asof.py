"""As of what a read is: for each vbucket, the history and the seqno up to which it is whole."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, NoReturn, Self, TypeAlias

from cbframe.dcp.positions import Position


class AsOf(dict[int, tuple[int, int]]):
    """An immutable mapping of vbucket to ``(vbuuid, seqno)``.

    It is consistent within each vbucket, not across vbuckets: Couchbase orders changes per vbucket only. A
    plain dict to JSON, so that pandas can store it; copies are the object itself, since pandas copies
    ``DataFrame.attrs`` at every step.

    Parameters
    ----------
    positions
        By vbucket: vbuuid, and seqno.
    time
        When the read began: every change that was there at this time is in it.

    Attributes
    ----------
    time
        As above; None if it is not known.
    """

    __slots__ = ("time",)

    def __init__(self, positions: Mapping[int, tuple[int, int]], time: datetime | None = None) -> None:
        super().__init__(positions)
        self.time = time

    @classmethod
    def of(cls, positions: Mapping[int, Position], time: datetime | None = None) -> AsOf:
        """Where vbuckets are, in order of their numbers."""
        return cls({vb: (at.vbuuid, at.seqno) for vb, at in sorted(positions.items())}, time)

    @property
    def changes(self) -> int:
        """The seqnos of all vbuckets, summed: how many changes the bucket had seen."""
        return sum(seqno for _, seqno in self.values())

    def __repr__(self) -> str:
        time = "" if self.time is None else f"{self.time.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC, "
        return f"AsOf({time}{len(self):,} vbuckets, {self.changes:,} changes)"

    def __copy__(self) -> AsOf:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> AsOf:
        return self

    def __reduce__(self) -> tuple[type[AsOf], tuple[dict[int, tuple[int, int]], datetime | None]]:
        return AsOf, (dict(self), self.time)

    def _refuse(self, *_: object) -> NoReturn:
        raise TypeError("an AsOf cannot be changed")

    __setitem__ = __delitem__ = update = pop = popitem = clear = setdefault = __ior__ = _refuse


Clock: TypeAlias = Callable[[], datetime]
ClockOwner: TypeAlias = Literal["node", "client"]


def utc_now() -> datetime:
    """The time of day, with its zone."""
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class Moment:
    """A time of day, in whole seconds.

    Attributes
    ----------
    time
        The time, in UTC.
    clock
        ``"node"``: a data node reported it. ``"client"``: no node did, since the user may not see statistics
        of the bucket, and it is that of this machine.
    """

    time: datetime
    clock: ClockOwner

    @classmethod
    def of(cls, node_time: int | None, clock: Clock = utc_now) -> Self:
        """That of a node, in seconds since the epoch, or else of the clock."""
        if node_time is not None:
            return cls(datetime.fromtimestamp(node_time, UTC), "node")
        return cls(clock().astimezone(UTC).replace(microsecond=0), "client")

    @property
    def seconds(self) -> int:
        """Since the epoch, as expiries are counted."""
        return int(self.time.timestamp())

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {"time": self.time.isoformat(), "clock": self.clock}

    @classmethod
    def of_dict(cls, fields: dict[str, Any]) -> Self:
        """What :meth:`to_dict` gave."""
        return cls(datetime.fromisoformat(fields["time"]), fields["clock"])
