"""Consumer groups: members that share the vbuckets of one change stream, and hand them over.

A folder that all members reach has, under ``group/``, two kinds of files::

    owners.000000000007.json           who has which vbucket, and how far it was when it was handed over
    HOST-PID-3f….000000000042.json     the lease of a member: what it has, and how far it is

Each name is a sequence of files, of which the newest counts (:class:`Records`). A file is created once: of
two that write the same next one, the file system refuses one. So whoever changes the owners has seen every
change before, and nothing else coordinates the members.

A member writes the next file of its lease eight times in ``lease`` seconds; that is the commit of its
checkpoint. The others count, each on its own clock, how long the number of the newest file stays. After half
of the time one of them ends the lease, by writing its next file, and frees the vbuckets, where the last
commit says. A commit of the old owner is refused from then on: the file that it would write is there.

A member that could not renew its lease for three eighths of the time gives out nothing, but its consumer may
still be at work. So each vbucket has an epoch, the number of the owners' file in which it was taken, which
ascends from owner to owner: a sink with transactions refuses older ones.

From the owners' file each member knows its share. Who has more gives up the rest, when its consumer has
acknowledged all that it got, and says where in the same file. Who has less takes what is free.
"""

from __future__ import annotations

import json
import os
import platform
import re
import threading
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from time import monotonic
from typing import Any, Self, TypeAlias, TypeVar

import pyarrow.fs as pafs

from cbframe.dcp.positions import VBucketOffset
from cbframe.errors import CbframeError, ConfigurationError, GroupError, SnapshotError
from cbframe.scan.checkpoint import Checkpoint
from cbframe.scan.spec import path_of_files, seconds
from cbframe.scan.store import Store, open_store
from cbframe.system import Event, OwnThread

T = TypeVar("T")
_FORMAT = {"format": "cbframe consumer group", "version": 1}
_OWNERS = "owners"
_FILE = re.compile(r"([A-Za-z0-9-]+)\.([0-9]{12})\.json")
_KEPT = 4
"""Older files of a sequence that stay: whoever has just listed one can read it."""
_TRIES = 100
_BEAT, _STALE, _DEAD = 1 / 8, 3 / 8, 4 / 8
"""Of a lease: when it is renewed, when its owner gives out nothing more, and when others end it."""

Numbers: TypeAlias = Mapping[str, Sequence[int]]
Position: TypeAlias = tuple[Mapping[int, int], Checkpoint]
"""Which vbuckets a member has, since which epochs, and how far its consumer is."""


@dataclass(frozen=True)
class ConsumerGroup:
    """Where the members of a group keep leases and checkpoints: ``group=`` of :func:`cbframe.stream_bucket`.

    Attributes
    ----------
    path
        A folder that all members reach: of a shared file system with hard links, such as NFS, or of an object
        store with conditional puts, by fsspec: ``s3://lake/groups/orders`` with ``storage_options={}``.
    lease
        Seconds within which the vbuckets of a member that died are free. All members give the same.
    on_assigned
        Called with the epochs of vbuckets that this member has just taken, by the thread that asks for
        batches, before there is any change of them. It may return positions to go on from. A sink with
        transactions stores the epochs, returns its positions, and from then on refuses older epochs.
    filesystem, storage_options
        As for :func:`cbframe.write_snapshot`.

    Examples
    --------
    >>> import cbframe
    >>> cbframe.ConsumerGroup("/mnt/shared/groups/orders", lease=10)
    ConsumerGroup(lease=10, on_assigned=None)
    """

    path: str | os.PathLike[str] = field(repr=False)  # a URI may have a password
    lease: float = 30.0
    on_assigned: Callable[[Mapping[int, int]], Mapping[int, VBucketOffset] | None] | None = None
    filesystem: pafs.FileSystem | None = field(default=None, repr=False)
    storage_options: Mapping[str, Any] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        path_of_files("group", self.path)
        if seconds("lease", self.lease) is None:
            raise ConfigurationError("lease=None", hint="give a number of seconds")


@dataclass(frozen=True)
class Record:
    """What a file says, of the group or of one member's lease."""

    checkpoint: Checkpoint  # where vbuckets are, or were when they were handed over
    members: tuple[str, ...]  # of a lease that has ended, nobody
    owners: Mapping[int, tuple[str, int] | None]  # by vbucket, the member that has it, and the epoch

    def to_json(self) -> bytes:
        """What :meth:`from_json` reads."""
        return json.dumps({**_FORMAT, **vars(self), "checkpoint": self.checkpoint.to_json()}).encode()

    @classmethod
    def from_json(cls, data: bytes, where: str) -> Self:
        """Read a file."""
        try:
            content = json.loads(data)
            if not content.items() >= _FORMAT.items():
                raise ValueError("of another format")  # noqa: TRY301 - reported in the same words
            owners = {int(vb): owner and (owner[0], owner[1]) for vb, owner in content["owners"].items()}
            return cls(Checkpoint.from_json(content["checkpoint"]), tuple(content["members"]), owners)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as exc:
            hint = "it is damaged, or of a later release: begin another group, from a checkpoint"
            raise GroupError(f"a file of the group cannot be read: {where}", hint=hint) from exc

    def held(self, member: str) -> dict[int, int]:
        """The vbuckets of a member, and their epochs."""
        return {vb: owner[1] for vb, owner in self.owners.items() if owner and owner[0] == member}

    def quota(self, member: str) -> int:
        """How many vbuckets a member should have; if it does not come out even, who has more keeps more."""
        sizes = Counter(owner[0] for owner in self.owners.values() if owner)
        ranks = sorted(self.members, key=lambda name: (-sizes[name], name))
        each, more = divmod(len(self.owners), len(ranks))
        return each + (ranks.index(member) < more)

    def released(self, vbuckets: Iterable[int], lease: Record) -> Record:
        """Some vbuckets without their owner, where its lease says."""
        offsets = lease.checkpoint.offsets
        # The lease may be of an earlier time with the vbucket; then nothing was committed since.
        known = {vb for vb in vbuckets if lease.owners.get(vb) == self.owners[vb] and vb in offsets}
        checkpoint = replace(
            self.checkpoint.updated({vb: offsets[vb] for vb in known}),
            collection_names={**self.checkpoint.collection_names, **lease.checkpoint.collection_names},
        )
        return replace(self, owners={**self.owners, **dict.fromkeys(vbuckets)}, checkpoint=checkpoint)

    def without(self, member: str, lease: Record) -> Record | None:
        """The group without a member, of which this is the lease; None if it has not got it."""
        if member not in self.members:
            return None
        members = tuple(name for name in self.members if name != member)
        return replace(self.released(self.held(member), lease), members=members)


@dataclass(frozen=True)
class Records:
    """Sequences of files: the newest of a name counts, and each is written once."""

    store: Store

    def look(self) -> Numbers:
        """What is there."""
        found = defaultdict(list)
        for file in sorted(self.store.names("group")):
            if (match := _FILE.fullmatch(file)) is not None:
                found[match[1]].append(int(match[2]))
        return found

    def newest(self, name: str) -> tuple[int, Record] | None:
        """The file that counts, and its number; None where there is none."""
        for _ in range(_TRIES):
            if not (numbers := self.look().get(name)):
                return None
            file = _file(name, numbers[-1])
            try:
                return numbers[-1], Record.from_json(self.store.read(file), self.store.where(file))
            except FileNotFoundError:
                continue  # newer ones are there
        raise GroupError(f"{file} is listed, and not there: {self.store.root}", hint="try again")

    def append(self, name: str, after: int, record: Record) -> Numbers | None:
        """Write the file that follows number `after`; what is there then.

        None if that was not to be: it, or a newer one, is there.
        """
        file = _file(name, after + 1)
        try:
            self.store.publish(file, record.to_json())
        except FileExistsError:
            # It may be ours: of an attempt that succeeded, and whose answer was lost.
            if self.newest(name) != (after + 1, record):
                return None
        found = self.look()
        numbers = found.get(name, ())
        if numbers[-1:] != [after + 1]:
            return None  # newer ones are there: ours was deleted long ago, or has a successor
        if after and after not in numbers:
            self.store.remove(file)  # the whole sequence was deleted
            return None
        for number in numbers:
            if number <= after - _KEPT:
                self.store.remove(_file(name, number))
        return found

    def remove(self, name: str) -> None:
        """Delete a sequence; the newest file last: so nobody goes on with it meanwhile."""
        for number in self.look().get(name, ()):
            self.store.remove(_file(name, number))


class Membership:
    """One member of a group: its lease, which a thread renews, and its share of the vbuckets."""

    def __init__(
        self,
        group: ConsumerGroup,
        vbuckets: Sequence[int],  # all that the group has
        begin: Callable[[Checkpoint | None], Checkpoint],  # where it is, if no other stream's; or else begins
        *,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self.lease, self.on_assigned = group.lease, group.on_assigned
        self.left = Event()
        self.lost = False  # for good
        self._clock = clock
        self._lock = threading.Lock()
        self._thread: OwnThread | None = None
        self._trouble: BaseException | None = None
        self._settled = 0  # number of the owners' file when this member last had its share
        self._due: float | None = clock()  # since when there is a newer one
        self._members: tuple[str, ...] = ()
        self._seen: dict[str, tuple[int, float]] = {}  # by lease, its newest number, and since when
        self.name = f"{re.sub('[^A-Za-z0-9]', '-', platform.node())}-{os.getpid()}-{uuid.uuid4().hex[:16]}"
        self._number, self._renewed = 0, clock()
        store = open_store(group.path, filesystem=group.filesystem, storage_options=group.storage_options)
        self._root, self._records = store.root, Records(store)
        if not self._attempt(partial(self._join, vbuckets, begin)):
            raise self._unreachable("the group cannot be joined")

    # -- on the consumer's thread

    @property
    def due(self) -> float | None:
        """For how many seconds :meth:`settle` has been due; None if it is not."""
        return None if (since := self._due) is None else self._clock() - since

    def lives(self, position: Callable[[], Position]) -> bool:
        """Whether the lease is so fresh that nobody can have ended it; GroupError if it has ended."""
        if self._clock() - self._renewed >= self.lease * _STALE:
            self.beat(position)  # the process stood still, or the folder was not reached: it may be now
        if self.lost:
            raise self._ended()
        if isinstance(self._trouble, CbframeError) and not isinstance(self._trouble, SnapshotError):
            raise self._trouble.with_traceback(None)
        age = self._clock() - self._renewed
        if age >= self.lease:
            raise self._unreachable(f"the lease could not be renewed for {age:.1f} s")
        return age < self.lease * _STALE

    def settle(self, position: Position, stream: Callable[[Position], None]) -> bool:
        """Give up and take vbuckets; `stream` what there is then, from where it was handed over.

        False if the folder was not reached: nothing may be given out before it is tried again.
        """
        plan = partial(self._planned, self._lease(position))
        if (found := self._attempt(lambda: self._change(plan))) is None:
            return False
        self._settled, owners = found
        self._members = owners.members
        if (held := owners.held(self.name)) != position[0]:
            stream((held, owners.checkpoint))
        self._due = None
        return True

    def commit(self, position: Position) -> None:
        """Renew the lease; GroupError if it has ended."""
        if not self._attempt(lambda: self._renew(self._lease(position))):
            raise self._unreachable("the checkpoint could not be committed")

    def leave(self, position: Position) -> None:
        """Commit, and give up all; GroupError if the lease has ended, unless that is known."""
        lease = self._lease(position)

        def work() -> bool:
            self._renew(lease)
            self._change(lambda _, owners: owners.without(self.name, lease))
            self._records.remove(self.name)
            self.left.set()
            return True

        try:
            if not (self.lost or self._attempt(work) or self.left.is_set()):
                raise self._unreachable("others get these vbuckets when the lease ends")
        finally:
            self.left.set()
            if self._thread is not None:
                self._thread.join(self.lease)

    # -- on the thread that renews the lease

    def start(self, position: Callable[[], Callable[[], Position] | None]) -> None:
        """Renew the lease from now on, until :meth:`leave`, or until nobody has a position any more."""

        def run() -> None:
            while not self.left.wait(self.lease * _BEAT) and not self.lost:
                if (found := position()) is None:
                    return
                self.beat(found)
                del found

        self._thread = OwnThread(run, "cbframe-lease")
        self._thread.start()

    def beat(self, position: Callable[[], Position]) -> None:
        """Renew the lease with how far the consumer is, and look at the others."""

        def work() -> None:
            seen = self._renew(self._lease(position()))
            self._watch(seen)
            if self._due is None and seen[_OWNERS][-1] != self._settled:
                self._due = self._clock()

        try:
            self._attempt(work)
        except Exception as exc:  # noqa: BLE001 - file systems raise what they like; the consumer gets it
            self._trouble = exc

    def _attempt(self, work: Callable[[], T]) -> T | None:
        """Do it, alone; None if the folder was not reached, which may change."""
        if not self._lock.acquire(timeout=self.lease):
            self._trouble = TimeoutError("the file system does not answer")
            return None
        try:
            found = None if self.left.is_set() else work()
        except (OSError, SnapshotError) as exc:
            self._trouble = exc
            return None
        finally:
            self._lock.release()
        self._trouble = None
        return found

    def _join(
        self, vbuckets: Sequence[int], begin: Callable[[Checkpoint | None], Checkpoint]
    ) -> tuple[int, Record]:
        if not self._records.store.decides():
            hint = "take a file system with hard links, or an object store with conditional puts, by fsspec"
            raise ConfigurationError(f"of two writers at {self._root}, both may succeed", hint=hint)
        if self._records.newest(_OWNERS) is None:
            # Of several that begin the group, one is first.
            self._records.append(_OWNERS, 0, Record(begin(None), (), dict.fromkeys(vbuckets)))
        _, owners = self._change(lambda *_: None)
        self.checkpoint = replace(begin(owners.checkpoint), offsets={})
        if sorted(owners.owners) != sorted(vbuckets):
            raise ConfigurationError(
                f"the group at {self._root} has {len(owners.owners)} vbuckets, and not these {len(vbuckets)}",
                hint="give the same vbuckets= to all members, or begin another group",
            )
        self._renew(self._lease(({}, self.checkpoint)))
        me = (self.name,)
        return self._change(lambda _, o: None if me[0] in o.members else replace(o, members=o.members + me))

    def _lease(self, position: Position) -> Record:
        epochs, checkpoint = position
        offsets = {vb: offset for vb, offset in checkpoint.offsets.items() if vb in epochs}
        owners = {vb: (self.name, epoch) for vb, epoch in epochs.items()}
        return Record(replace(checkpoint, offsets=offsets), (self.name,), owners)

    def _renew(self, lease: Record) -> Numbers:
        """Write the next file of our lease."""
        # The second time, if the answer to an earlier attempt was lost: then the file is there, and ours.
        for _ in range(0 if self.lost else 2):
            now = self._clock()
            if (seen := self._records.append(self.name, self._number, lease)) is not None:
                self._number += 1
                self._renewed = now
                return seen
            newest = self._records.newest(self.name)
            if newest is None or not newest[1].members:
                break
            self._number = newest[0]
        raise self._ended()

    def _change(self, change: Callable[[int, Record], Record | None]) -> tuple[int, Record]:
        """Change who has what, until there is nothing to change any more; how it is then."""
        for _ in range(_TRIES):
            if (found := self._records.newest(_OWNERS)) is None:
                raise GroupError(f"the files of the group are gone: {self._root}", hint="begin it again")
            if (new := change(*found)) is None:
                return found
            self._records.append(_OWNERS, found[0], new)
        raise GroupError(f"other members change the owners all the time: {self._root}", hint="try again")

    def _planned(self, lease: Record, number: int, owners: Record) -> Record | None:
        """Who should have what, as far as it is up to this member; None if it has its share."""
        if self.name not in owners.members:
            raise self._ended()
        mine = sorted(owners.held(self.name))
        free = sorted(vb for vb, owner in owners.owners.items() if owner is None)
        quota = owners.quota(self.name)
        give, take = _some(mine, len(mine) - quota), _some(free, quota - len(mine))
        if not give and not take:
            return None
        owners = owners.released(give, lease)
        return replace(owners, owners={**owners.owners, **dict.fromkeys(take, (self.name, number + 1))})

    def _watch(self, there: Numbers) -> None:
        """End the leases that have not changed for too long, and free what their owners have."""
        now = self._clock()
        names = {*there, *self._members} - {_OWNERS, self.name}
        newest = {name: (max(there.get(name, ()), default=0), now) for name in names}
        same = {name: at for name, at in self._seen.items() if name in names and newest[name][0] == at[0]}
        self._seen = newest | same
        for name, (number, since) in self._seen.items():
            if now - since >= self.lease * _DEAD:
                self._end_lease_of(name, number)

    def _end_lease_of(self, name: str, number: int) -> None:
        _, lease = self._records.newest(name) or (0, Record(self.checkpoint, (), {}))
        if lease.members and self._records.append(name, number, replace(lease, members=())) is None:
            return  # its owner was faster, or another member
        self._change(lambda _, owners: owners.without(name, lease))
        self._records.remove(name)

    def _ended(self) -> GroupError:
        self.lost = True
        return GroupError(
            f"the lease of this member has ended, and others have its vbuckets: {self._root}",
            hint=f"it was not renewed in time (lease={self.lease:g}): the process, or its file system, stood "
            "still. What was not committed is delivered to them. Open another stream to take part again",
        )

    def _unreachable(self, what: str) -> GroupError:
        reason = getattr(self._trouble, "message", self._trouble)
        hint = "see whether this machine reaches it, and may write there; then open another stream"
        error = GroupError(f"{what}: {self._root} cannot be reached ({reason})", hint=hint)
        error.__cause__ = self._trouble
        return error


def _file(name: str, number: int) -> str:
    return f"group/{name}.{number:012d}.json"


def _some(vbuckets: Sequence[int], count: int) -> list[int]:
    """A number of them, or all, evenly spread: neighbours are often on one node."""
    count = min(count, len(vbuckets))
    return [vbuckets[n * len(vbuckets) // count] for n in range(count)]
