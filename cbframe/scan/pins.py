"""What a part of a read is bound to: seqnos and histories, taken for all parts at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cbframe.arrow.batcher import GatheringReceiver
from cbframe.dcp.ends import ReachedEnds
from cbframe.errors import RollbackError, StreamError
from cbframe.scan.asof import AsOf
from cbframe.scan.moment import Moment
from cbframe.scan.spec import Consistency
from cbframe.wire.messages import FailoverLog


@dataclass(frozen=True, slots=True)
class Pins:
    """Where vbuckets are to be read to."""

    as_of: AsOf  # history and seqno of each vbucket when the parts were made
    bucket_uuid: str  # of the bucket that they are of
    consistency: Consistency
    moment: Moment | None = None  # by when documents have expired; None if none is left out for that

    def ends(self) -> ReachedEnds:
        """The end of each vbucket's stream."""
        return ReachedEnds({vb: seqno for vb, (_, seqno) in self.as_of.items()})

    def check(self, reached: Mapping[int, tuple[int, int]], receiver: GatheringReceiver[Any]) -> None:
        """Compare with what a read reached."""
        if self.consistency != "strict":
            return
        lost = [vb for vb in self.as_of if not self._has(vb, reached[vb], receiver.failover_log(vb))]
        if lost:
            raise RollbackError(
                f"the history of {len(lost)} vbuckets is not that of the partitions any more",
                vbucket=lost[0],
                hint="make the partitions again, or accept it with consistency='snapshot'",
            )
        past = [vb for vb, (_, seqno) in self.as_of.items() if reached[vb][1] > seqno]
        if past:
            error = StreamError(
                f"{len(past)} vbuckets were written to since the partitions were made",
                vbucket=past[0],
                hint="the older versions are gone from the server: make the partitions again, or accept "
                "the newer ones with consistency='snapshot'",
            )
            error.permanent = True
            raise error

    def _has(self, vb: int, reached: tuple[int, int], log: FailoverLog) -> bool:
        """Whether what was read contains the pinned moment: certainly, or it counts as another history."""
        vbuuid, seqno = self.as_of[vb]
        if not seqno:
            return True
        if reached[1] < seqno:
            return False
        if reached[0] == vbuuid:
            return True
        if not log or log[0].vbuuid != reached[0]:
            return False
        # Each history ends where the newer one begins, which stands before it.
        ends = [None, *(entry.seqno for entry in log)]
        return any(
            entry.vbuuid == vbuuid and (end is None or seqno <= end)
            for entry, end in zip(log, ends, strict=False)
        )
