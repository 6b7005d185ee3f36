"""What changed in a bucket since some positions: one read, for snapshots and Delta tables."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from cbframe.dcp.positions import Position
from cbframe.errors import ClusterMapError, SnapshotError
from cbframe.scan.run import Ran, Run
from cbframe.scan.spec import ScanSpec
from cbframe.snapshot.history import Boundaries
from cbframe.snapshot.resume import ResumingReceiver
from cbframe.snapshot.sink import Changes, ChangeSink


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of the bucket already; by default nothing."""

    bucket_uuid: str = ""  # another bucket of the name is refused; empty to take any
    positions: Mapping[int, Position] = field(default_factory=dict)  # where each vbucket is continued
    boundaries: Boundaries | None = None  # what vbuckets can be taken back to; None for their start
    collections: Collection[int] = ()  # those of which there are changes
    documents: bool = False  # whether there were documents, and not only deletions


@dataclass(frozen=True, slots=True)
class Fetched:
    """What the bucket had to tell."""

    ran: Ran  # the run
    positions: list[Position]  # where each vbucket is complete now
    taken_back: dict[int, int]  # by vbucket, the seqno behind which nothing counts that was known
    rolled_back: dict[int, int]  # vbuckets that the server rolled back, and the lowest seqno to which


class Fetch:
    """One read of what changed; a context manager, since documents wait in temporary files."""

    def __init__(
        self,
        target: ScanSpec,
        known: Known,
        *,
        other_bucket: Callable[[str], SnapshotError],
        net: bool = False,  # of each document only the newest change is wanted
    ) -> None:
        self._known = known
        self._other_bucket = other_bucket
        self._manifest_uid = 0
        self._run = Run(target, bounded=True, bucket_uuid=known.bucket_uuid, ask_time=True)
        names = self._run.names
        self.receiver = ResumingReceiver(names.wire_metadata, self._run.options.max_body_bytes)
        self.receiver.resume(known.positions, known.boundaries)
        self.sink = ChangeSink(target, names, self.receiver, net=net)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.sink.close()

    @property
    def seconds(self) -> float:
        """Since it was made."""
        return self._run.seconds

    def run(self) -> Fetched:
        """Read to the end."""
        ran = self._into()
        starts, receiver = self._known.positions, self.receiver
        reached = {vbucket: seqno for vbucket, (_, seqno) in ran.as_of.items()}
        limits = receiver.taken_back | receiver.vanished(reached)
        emptied = [vbucket for vbucket, seqno in limits.items() if not seqno]
        everything = len(emptied) == sum(bool(position.seqno) for position in starts.values())
        # A node that fails takes some vbuckets back, and leaves their histories.
        if emptied and everything and receiver.replaced(emptied):
            raise self._other_bucket("it was emptied, and no vbucket knows anything of what was read of it")
        positions = [receiver.position_at(vbucket, reached[vbucket]) for vbucket in range(ran.map.vbuckets)]
        self._manifest_uid = max((at.manifest_uid for at in positions), default=0)
        return Fetched(ran, positions, limits, dict(receiver.rolled_back))

    def _into(self) -> Ran:
        starts = self._known.positions
        try:
            ran = self._run.into(self.receiver, self.sink)
        except ClusterMapError as exc:
            if exc.fault != "other bucket" or not self._known.bucket_uuid:
                raise
            raise self._other_bucket(
                "it was deleted and created again, or it is one of another cluster"
            ) from exc
        if starts and len(starts) != ran.map.vbuckets:
            raise self._other_bucket(f"it has {ran.map.vbuckets} vbuckets, and it had {len(starts)}")
        return ran

    def changes(self) -> Changes:
        """The changes, once it has run."""
        known = self._known
        return self.sink.changes(
            known.collections, self._manifest_uid, whole=not known.positions, first=not known.documents
        )
