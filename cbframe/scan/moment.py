"""The moment by which documents of a read have expired, and whose clock it is of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, Self, TypeAlias

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
