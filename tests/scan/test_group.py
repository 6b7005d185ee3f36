"""Leases and owners by themselves: members step by step, each with its own clock, on a store that fails."""

from __future__ import annotations

import errno
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import fsspec
import pyarrow.fs as pafs
import pytest

from cbframe import Checkpoint, ConfigurationError, ConsumerGroup, GroupError, VBucketOffset
from cbframe.scan import group as group_module
from cbframe.scan.group import Membership, Position, Record, Records
from cbframe.scan.store import LocalStore, Store, open_store

LEASE = 8.0
BEAT = LEASE / 8
START = Checkpoint("travel", "1" * 32, {})


class MemoryStore(Store):
    """Files in memory, of which some are written and not acknowledged, and some are not written."""

    def __init__(self) -> None:
        self.root = "memory"
        self.files: dict[str, bytes] = {}
        self.fails: Callable[[], str | None] = lambda: None
        self.before_publishing: Callable[[str], object] = lambda _: None

    def _may_fail(self, moment: str, outcome: str | None) -> None:
        if outcome == moment:
            raise OSError(errno.EIO, "it does not answer")

    def names(self, folder: str) -> dict[str, int]:
        self._may_fail("before", self.fails())
        places = ((*name.rpartition("/"), len(data)) for name, data in self.files.items())
        return {name: size for place, _, name, size in places if place == folder}

    def read(self, name: str) -> bytes:
        if name not in self.files:
            raise FileNotFoundError(name)
        return self.files[name]

    def publish(self, name: str, data: bytes) -> None:
        self.before_publishing(name)
        outcome = self.fails()
        self._may_fail("before", outcome)
        if name in self.files:
            raise FileExistsError(name)
        self.files[name] = data
        self._may_fail("after", outcome)

    def decides(self) -> bool:
        return True

    def remove(self, name: str) -> bool:
        self.files.pop(name, None)
        return True

    def _absent(self, *_: str) -> Any:
        raise NotImplementedError

    input = create = rename = _absent


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> MemoryStore:
    found = MemoryStore()
    monkeypatch.setattr(group_module, "open_store", lambda *_, **__: found)
    return found


class FencedError(Exception):
    """The sink has seen a newer epoch."""


@dataclass
class Sink:
    """Takes changes in transactions, and refuses those of old epochs; and a log of all that came."""

    epochs: dict[int, int] = field(default_factory=dict)
    seqnos: Counter[int] = field(default_factory=Counter)
    log: set[tuple[int, int]] = field(default_factory=set)
    refused: int = 0

    def assigned(self, epochs: Mapping[int, int]) -> dict[int, VBucketOffset]:
        for vb, epoch in epochs.items():
            assert epoch >= self.epochs.get(vb, 0), "an epoch does not ascend"
        self.epochs.update(epochs)
        return {vb: VBucketOffset.at(7, self.seqnos[vb]) for vb in epochs}

    def store(self, changes: Mapping[int, tuple[int, int]], epochs: Mapping[int, int]) -> None:
        self.log |= {(vb, seqno) for vb, (first, last) in changes.items() for seqno in range(first, last + 1)}
        if any(epochs[vb] != self.epochs[vb] for vb in changes):
            self.refused += 1
            raise FencedError
        for vb, (first, last) in changes.items():
            assert first == self.seqnos[vb] + 1, "a change is lost, or comes twice"
            self.seqnos[vb] = last


class Member:
    """What a process does, one step at a time: in place of ChangeStream, and of a consumer that stores."""

    def __init__(self, now: Callable[[], float], rng: random.Random, sink: Sink, vbuckets: int) -> None:
        skew = rng.uniform(-1e6, 1e6)
        self.clock = lambda: now() + skew
        self.rng = rng
        self.sink = sink
        self.group = Membership(
            ConsumerGroup("anywhere", lease=LEASE), range(vbuckets), lambda _: START, clock=self.clock
        )
        self.epochs: Mapping[int, int] = {}
        self.seqnos: dict[int, int] = {}
        self.pending: dict[int, tuple[int, int]] = {}
        self.next_beat = self.clock() + BEAT
        self.stopped_until = 0.0

    def position(self) -> Position:
        return self.epochs, replace(
            START, offsets={vb: VBucketOffset.at(7, seqno) for vb, seqno in self.seqnos.items()}
        )

    def stream(self, after: Position) -> None:
        epochs, checkpoint = after
        taken = {vb: epoch for vb, epoch in epochs.items() if self.epochs.get(vb) != epoch}
        positions = self.sink.assigned(taken)
        for vb in taken:
            handed_over = checkpoint.offsets.get(vb, VBucketOffset()).seqno
            assert handed_over <= self.sink.seqnos[vb], "what was not stored was committed"
        kept = {vb: seqno for vb, seqno in self.seqnos.items() if vb in epochs and vb not in taken}
        self.seqnos = kept | {vb: positions[vb].seqno for vb in taken}
        self.epochs = epochs

    def beat(self) -> None:
        if self.clock() >= self.next_beat:
            self.next_beat = self.clock() + BEAT
            self.group.beat(self.position)

    def poll(self, high: Mapping[int, int]) -> bool:
        """Take or store some changes; False if there is nothing to do."""
        if self.pending:
            self.sink.store(self.pending, self.epochs)
            self.seqnos |= {vb: last for vb, (_, last) in self.pending.items()}
            self.pending = {}
            return True
        if not self.group.lives(self.position):
            return False
        if self.group.due is not None and not self.group.settle(self.position(), self.stream):
            return False
        for vb in self.rng.sample(sorted(self.epochs), min(3, len(self.epochs))):
            if self.seqnos[vb] < high[vb]:
                first = self.seqnos[vb] + 1
                self.pending[vb] = first, self.rng.randint(first, high[vb])
                assert self.epochs[vb] >= self.sink.epochs[vb], "given out by one who had lost it"
        return bool(self.pending)


class World:
    """Members that come, go, are killed, and stand still; and a bucket that grows."""

    def __init__(self, seed: int, store: MemoryStore, vbuckets: int = 24) -> None:
        self.rng = random.Random(seed)
        self.store = store
        self.now = 0.0
        self.pace = BEAT / 8
        self.sink = Sink()
        self.high = dict.fromkeys(range(vbuckets), 0)
        self.members: list[Member] = []
        self.happened: Counter[str] = Counter()

    def join(self) -> Member | None:
        try:
            member = Member(lambda: self.now, self.rng, self.sink, len(self.high))
        except GroupError:
            self.happened["not joined"] += 1
            return None
        self.members.append(member)
        return member

    def step(self) -> bool:
        """One thing; whether anything was done."""
        self.now += self.rng.uniform(0, self.pace)
        busy = False
        for member in self.rng.sample(self.members, len(self.members)):
            if member.stopped_until > self.now:
                continue
            try:
                member.beat()
                busy |= member.poll(self.high)
            except (GroupError, FencedError) as exc:
                self.happened[type(exc).__name__] += 1
                self.members.remove(member)
        return busy

    def trouble(self) -> None:
        """Something that happens in the life of a group."""
        what = self.rng.random()
        for vb in self.rng.sample(sorted(self.high), 3):
            self.high[vb] += self.rng.randint(0, 5)
        if what < 0.01 and self.members:
            self.members.remove(self.rng.choice(self.members))
            self.happened["killed"] += 1
        elif what < 0.03 and self.members:
            member = self.rng.choice(self.members)
            member.stopped_until = self.now + self.rng.uniform(0, 2 * LEASE)
            self.happened["stopped"] += 1
        elif what < 0.04 and self.members:
            member = self.rng.choice(self.members)
            if member.stopped_until <= self.now:
                self.members.remove(member)
                self.happened["left"] += 1
                with suppress(GroupError):
                    member.group.leave(member.position())
        elif what < 0.08 and len(self.members) < 5:
            self.join()

    def settle(self) -> None:
        """Let it become whole, and see that it does."""
        self.store.fails = lambda: None
        for member in self.members:
            member.stopped_until = 0.0
        while len(self.members) < 5:
            self.join()
        until = self.now + 3 * LEASE
        while self.step() or self.now < until:
            assert self.now < until + 100 * LEASE
        assert dict(self.sink.seqnos + Counter()) == {vb: high for vb, high in self.high.items() if high}
        assert self.sink.log >= {
            (vb, seqno) for vb, high in self.high.items() for seqno in range(1, high + 1)
        }
        sizes = sorted(len(member.epochs) for member in self.members)
        assert sum(sizes) == len(self.high)
        assert sizes[-1] - sizes[0] <= 1
        names = {member.group.name for member in self.members}
        assert set(Records(self.store).look()) == {"owners", *names}, "files of those that have gone"
        assert len(self.store.files) <= 6 * (1 + len(names))


def live(seed: int, store: MemoryStore, steps: int = 200) -> Counter[str]:
    store.files.clear()
    world = World(seed, store)
    for _ in range(world.rng.randint(1, 5)):
        world.join()
    odds = world.rng.choice([0, 0, 0.01, 0.1])
    store.fails = lambda: (
        world.rng.choice(["before", "after"]) if odds and world.rng.random() < odds else None
    )
    world.pace = BEAT / 2
    for _ in range(steps):
        world.step()
        world.trouble()
    world.settle()
    world.happened["refused"] = world.sink.refused
    return world.happened


def test_members_that_come_and_go(store: MemoryStore) -> None:
    happened: Counter[str] = Counter()
    for seed in range(12):
        happened += live(seed, store)
    for what in ("killed", "stopped", "left", "GroupError", "FencedError"):
        assert happened[what], f"{what}: too little was tested ({happened})"


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("first", range(1000, 2000, 100))
def test_many_members_that_come_and_go(first: int, store: MemoryStore) -> None:
    for seed in range(first, first + 100):
        live(seed, store)


# --- one thing at a time


@pytest.fixture
def world(store: MemoryStore) -> World:
    return World(0, store)


def members(world: World, count: int = 1, leases: float = 1) -> list[Member]:
    """So many that have joined, some time later."""
    joined = [member for _ in range(count) if (member := world.join()) is not None]
    run_for(world, leases)
    return joined


def shares(world: World) -> list[int]:
    return sorted(len(member.epochs) for member in world.members)


def handed_over(world: World) -> dict[int, int]:
    """Where the owners' file says that vbuckets were."""
    owners = Records(world.store).newest("owners")
    return {vb: offset.seqno for vb, offset in owners[1].checkpoint.offsets.items() if offset.seqno}


def run_for(world: World, leases: float) -> None:
    until = world.now + leases * LEASE
    while world.now < until:
        world.step()


def test_a_member_that_dies_is_replaced_within_the_lease(world: World) -> None:
    members(world, 5, leases=2)
    assert shares(world) == [4, 5, 5, 5, 5]
    for _ in range(4):
        dead = world.members.pop(0)
        # At the worst moment for the others: just after it renewed its lease.
        dead.group.beat(dead.position)
        at = world.now
        while sum(shares(world)) < 24:
            world.step()
        assert world.now - at <= LEASE
    assert shares(world) == [24]


def test_a_member_that_comes_gets_its_share_from_those_that_have_more(world: World) -> None:
    (first,) = members(world)
    before = dict(first.epochs)
    world.high = dict.fromkeys(world.high, 10)
    run_for(world, 1)
    (second,) = members(world)
    assert shares(world) == [12, 12]
    # What stays is not touched; what moves has a newer epoch, and goes on where it was.
    assert first.epochs.items() <= before.items()
    assert not first.epochs.keys() & second.epochs.keys()
    assert all(epoch > before[vb] for vb, epoch in second.epochs.items())
    assert second.seqnos == dict.fromkeys(second.epochs, 10)
    assert world.sink.refused == 0
    assert handed_over(world) == second.seqnos
    first.group.beat(first.position)
    assert first.group.due is None, "there is nothing to be handed over"


def test_nothing_is_handed_over_that_is_not_acknowledged(world: World) -> None:
    (first,) = members(world)
    world.high = dict.fromkeys(world.high, 10)
    assert first.poll(world.high)
    assert first.pending
    (second,) = members(world, leases=0)
    for _ in range(100):
        world.now += BEAT / 8
        first.beat()
        second.beat()
        second.poll(world.high)
    assert second.epochs == {}
    assert first.group.due is not None
    first.poll(world.high)  # it is stored
    first.poll(world.high)
    second.beat()
    run_for(world, 1)
    assert shares(world) == [12, 12]


def test_a_stale_owner_cannot_commit(world: World) -> None:
    first, second = members(world, 2)
    first.stopped_until = world.now + 10 * LEASE
    run_for(world, 1)
    assert len(second.epochs) == 24
    files = dict(world.store.files)
    with pytest.raises(GroupError, match="the lease of this member has ended") as caught:
        first.group.commit(first.position())
    assert "Open another stream" in caught.value.hint
    assert world.store.files == files
    with pytest.raises(GroupError, match="has ended"):
        first.group.commit(first.position())
    with pytest.raises(GroupError, match="has ended"):
        first.group.lives(first.position)
    first.group.leave(first.position())  # there is nothing to leave: no second error
    assert world.store.files == files


def test_whoever_leaves_too_late_is_told(world: World) -> None:
    first, _ = members(world, 2)
    first.stopped_until = world.now + 10 * LEASE
    run_for(world, 1)
    with pytest.raises(GroupError, match="has ended"):
        first.group.leave(first.position())


def test_who_leaves_commits_and_others_go_on_at_once(world: World) -> None:
    first, second = members(world, 2, leases=0)
    world.high = dict.fromkeys(world.high, 10)
    run_for(world, 1)
    world.members.remove(first)
    first.group.leave(first.position())
    at = world.now
    while len(second.epochs) < 24:
        world.step()
    assert world.now - at <= 1.2 * BEAT
    assert second.seqnos == dict.fromkeys(range(24), 10)


def test_a_member_that_stood_still_gives_out_nothing_before_it_has_renewed_its_lease(world: World) -> None:
    (first,) = members(world)
    world.now += LEASE * 0.4
    world.store.fails = lambda: "before"
    assert not first.group.lives(first.position)
    world.store.fails = lambda: None
    assert first.group.lives(first.position)


def test_a_folder_that_is_not_reached(world: World) -> None:
    (first,) = members(world)
    world.store.fails = lambda: "before"
    with pytest.raises(
        GroupError, match=r"could not be committed: memory cannot be reached .*does not answer"
    ):
        first.group.commit(first.position())
    world.now += LEASE
    with pytest.raises(GroupError, match=r"the lease could not be renewed for 8\.. s") as caught:
        first.group.lives(first.position)
    assert isinstance(caught.value.__cause__, OSError)
    with pytest.raises(GroupError, match="the group cannot be joined"):
        Member(lambda: world.now, world.rng, world.sink, 24)
    with pytest.raises(GroupError, match="others get these vbuckets when the lease ends"):
        first.group.leave(first.position())


def test_any_error_of_a_file_system_is_told(world: World) -> None:
    (first,) = members(world, leases=0)

    class TheirError(Exception):
        pass

    def fails() -> None:
        raise TheirError("no credentials")

    world.store.fails = fails
    world.now += LEASE
    with pytest.raises(GroupError, match="no credentials") as caught:
        first.group.lives(first.position)
    assert isinstance(caught.value.__cause__, TheirError)


def test_a_file_system_that_hangs(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread that renews the lease waits for it; the consumer does not wait for that thread for ever."""
    (first,) = members(world, leases=0)
    monkeypatch.setattr(first.group, "lease", 0.01)
    with first.group._lock:
        world.now += LEASE
        with pytest.raises(GroupError, match="the file system does not answer"):
            first.group.lives(first.position)


def test_a_member_that_wakes_before_its_lease_is_deleted(world: World) -> None:
    """Whoever has ended it has died since, or is about to free what it had."""
    first, second = members(world, 2)
    records = Records(world.store)
    number, lease = records.newest(first.group.name) or (0, None)
    assert lease is not None
    records.append(first.group.name, number, replace(lease, members=()))
    with pytest.raises(GroupError, match="has ended"):
        first.group.commit(first.position())
    world.members.remove(first)
    run_for(world, 1)
    assert len(second.epochs) == 24
    assert set(records.look()) == {"owners", second.group.name}


def test_a_member_that_wakes_just_before_its_lease_is_ended(world: World) -> None:
    first, _ = members(world, 2)
    first.stopped_until = world.now + LEASE
    name = f"group/{first.group.name}.{first.group._number + 1:012}.json"

    def wake(file: str) -> None:
        if file == name and first.stopped_until:
            first.stopped_until = 0.0
            first.group.beat(first.position)

    world.store.before_publishing = wake
    run_for(world, 1)
    assert not first.stopped_until, "nobody tried to end its lease"
    assert shares(world) == [12, 12]
    assert first.group.lives(first.position)


def test_a_lease_lasts_from_before_it_was_written(world: World) -> None:
    (first,) = members(world, leases=0)

    def slowly(_: str) -> None:
        world.now += LEASE * 0.4

    world.store.before_publishing = slowly
    first.group.beat(first.position)
    world.store.before_publishing = lambda _: None
    before = dict(world.store.files)
    assert first.group.lives(first.position)
    assert world.store.files != before, "it is renewed at once"


@pytest.mark.parametrize("more", [0, 1])
def test_an_answer_that_is_lost(more: int, world: World) -> None:
    (first,) = members(world, leases=0)
    assert first.group.settle(first.position(), first.stream)
    for _ in range(3):
        world.store.fails = lambda: "after"
        first.group.beat(first.position)
        world.store.fails = lambda: None
        first.seqnos = {vb: seqno + more for vb, seqno in first.seqnos.items()}
        first.group.beat(first.position)
        assert first.group.lives(first.position)


def test_an_answer_about_owners_that_is_lost(world: World) -> None:
    (first,) = members(world, leases=0)
    world.store.fails = lambda: "after"
    assert not first.group.settle(first.position(), first.stream)
    world.store.fails = lambda: None
    assert first.group.settle(first.position(), first.stream)
    assert len(first.epochs) == 24


def test_a_lease_of_an_earlier_time_with_the_vbucket_says_nothing(world: World) -> None:
    """It has the vbucket again, and dies before it commits: where it was once is not where it is."""
    lease = Record(replace(START, offsets={0: VBucketOffset.at(7, 100)}), ("a",), {0: ("a", 3)})
    owners = Record(replace(START, offsets={0: VBucketOffset.at(7, 200)}), ("a", "b"), {0: ("a", 9)})
    left = owners.without("a", lease)
    assert left.checkpoint.offsets[0].seqno == 200
    assert (left.members, left.owners) == (("b",), {0: None})
    assert left.without("a", lease) is None


def test_who_has_more_keeps_more() -> None:
    owners = Record(START, ("a", "b"), {vb: ("b" if vb else "a", 1) for vb in range(5)})
    assert (owners.quota("a"), owners.quota("b")) == (2, 3)


def test_members_that_join_and_are_never_heard_of_again(world: World, store: MemoryStore) -> None:
    """Killed between the lease and the owners, or between the owners and the next lease."""
    (first,) = members(world)
    (other,) = members(world, leases=0)
    world.members.remove(other)
    for name in [name for name in store.files if other.group.name in name]:
        del store.files[name]  # it is among the owners, and has no lease
    Records(store).append("somebody-1-2", 0, Record(START, ("somebody-1-2",), {}))  # the other way round
    run_for(world, 2)
    assert set(Records(store).look()) == {"owners", first.group.name}
    assert len(first.epochs) == 24


# --- sequences of files


def record(number: int, *members: str) -> Record:
    return Record(replace(START, bucket=f"bucket-{number}"), members or ("a",), {})


def sequence(store: MemoryStore, count: int) -> Records:
    """With so many files that were written one after the other."""
    records = Records(store)
    for number in range(count):
        assert records.append("a", number, record(number + 1)) is not None
    return records


def test_a_file_is_written_once(store: MemoryStore) -> None:
    records = Records(store)
    assert records.newest("a") is None
    assert records.append("a", 0, record(1)) == {"a": [1]}
    assert records.append("a", 0, record(2)) is None
    assert records.append("a", 0, record(1)) == {"a": [1]}, "the same again is an answer that was lost"
    for number in range(1, 9):
        assert records.append("a", number, record(number + 1)) is not None
    assert records.newest("a") == (9, record(9))
    assert records.look() == {"a": [5, 6, 7, 8, 9]}


def test_a_file_that_arrives_when_its_place_is_long_gone(store: MemoryStore) -> None:
    records = sequence(store, 10)
    assert records.append("a", 2, record(99)) is None
    assert records.newest("a") == (10, record(10))
    records.append("a", 10, record(11))
    assert 3 not in records.look()["a"], "it goes with the next"


def test_a_file_that_arrives_late_where_one_before_could_not_be_deleted(store: MemoryStore) -> None:
    records = sequence(store, 10)
    store.files["group/a.000000000002.json"] = record(2).to_json()
    assert records.append("a", 2, record(99)) is None
    assert records.newest("a") == (10, record(10))


def test_a_file_that_arrives_when_the_sequence_is_gone(store: MemoryStore) -> None:
    records = sequence(store, 3)
    records.remove("a")
    assert records.append("a", 3, record(4)) is None
    assert not store.files


def test_a_sequence_is_deleted_from_its_beginning(store: MemoryStore) -> None:
    """Who knows the newest file but one finds the newest, or nothing before it."""
    records = sequence(store, 3)
    deleted: list[str] = []
    store.remove = lambda name: deleted.append(name) is None  # type: ignore[method-assign]
    records.remove("a")
    assert deleted == sorted(deleted) == [f"group/a.{number:012}.json" for number in (1, 2, 3)]


def test_a_file_that_is_listed_and_never_there(store: MemoryStore) -> None:
    Records(store).append("a", 0, record(1))

    def read(name: str) -> bytes:
        raise FileNotFoundError(name)

    store.read = read  # type: ignore[method-assign]
    with pytest.raises(GroupError, match="is listed, and not there"):
        Records(store).newest("a")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{}",
        b'{"format": "cbframe consumer group", "version": 2}',
        b'{"format": "cbframe consumer group", "version": 1, "owners": {"x": null}}',
        b'{"format": "cbframe consumer group", "version": 1, "owners": {"1": ["a"]}, "members": []}',
        b'{"format": "cbframe consumer group", "version": 1, "owners": {}, "members": [], "checkpoint": "{"}',
    ],
)
def test_a_file_that_cannot_be_read(data: bytes, store: MemoryStore) -> None:
    store.files["group/a.000000000001.json"] = data
    with pytest.raises(GroupError, match=r"cannot be read: memory/group/a\.000000000001\.json"):
        Records(store).newest("a")


def test_what_a_file_says(store: MemoryStore) -> None:
    checkpoint = replace(START, offsets={3: VBucketOffset.at(5, 6)})
    found = Record(checkpoint, ("a", "b"), {3: ("a", 7), 4: None})
    assert Record.from_json(found.to_json(), "there") == found
    assert found.held("a") == {3: 7}


# --- where it is


def join(path: Any, vbuckets: int = 4, **more: Any) -> Membership:
    return Membership(ConsumerGroup(path, **more), range(vbuckets), lambda _: START)


def test_a_folder(tmp_path: Path) -> None:
    first, second = join(tmp_path / "group"), join(tmp_path / "group")
    found: list[Position] = []
    assert first.settle(({}, START), found.append)
    assert sorted(found[0][0]) == [0, 2]
    assert second.settle(({}, START), found.append)
    assert sorted(found[1][0]) == [1, 3]
    for member, position in zip((first, second), found, strict=True):
        member.leave(position)
    left = {path.name.partition(".")[0] for path in (tmp_path / "group").glob("**/*")}
    assert left == {"group", "owners"}


@pytest.fixture
def memory() -> Iterator[Any]:
    """fsspec's file system in memory."""
    found = fsspec.filesystem("memory")
    yield found
    found.store.clear()


def test_an_object_store_with_conditional_puts(memory: Any) -> None:
    member = join("memory://groups/one", storage_options={})
    assert member.settle(({}, START), lambda _: None)
    member.leave(({}, START))


def test_a_store_that_ignores_the_condition_of_a_put(memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    put = type(memory).pipe_file
    monkeypatch.setattr(type(memory), "pipe_file", lambda self, path, value, **_: put(self, path, value))
    with pytest.raises(ConfigurationError, match="both may succeed"):
        join("memory://groups/one", storage_options={})
    assert not memory.store


def test_a_store_without_conditional_puts(tmp_path: Path) -> None:
    filesystem = pafs.SubTreeFileSystem(str(tmp_path), pafs.LocalFileSystem())
    with pytest.raises(ConfigurationError, match=r"of two writers at .*, both may succeed") as caught:
        join("one", filesystem=filesystem)
    assert "by fsspec" in str(caught.value.hint)


def test_a_disk_without_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr("os.link", link)
    with pytest.raises(ConfigurationError, match="both may succeed"):
        join(tmp_path)
    assert not list(tmp_path.iterdir())
    monkeypatch.undo()
    assert open_store(tmp_path).decides()
    assert not list(tmp_path.iterdir())


def test_many_that_begin_a_group_at_once(tmp_path: Path) -> None:
    gate = threading.Barrier(4)
    found: list[tuple[Membership, Position]] = []

    def begin() -> None:
        gate.wait(20)
        member = join(tmp_path, vbuckets=16)
        assert member.settle(({}, START), lambda position: found.append((member, position)))

    threads = [threading.Thread(target=begin) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    owned = [vb for _, (epochs, _) in found for vb in epochs]
    assert len(owned) == len(set(owned))
    for member, position in found:
        member.leave(position)


# --- what cannot be meant


def test_members_that_do_not_fit(tmp_path: Path) -> None:
    join(tmp_path)
    with pytest.raises(ConfigurationError, match="has 4 vbuckets, and not these 8"):
        join(tmp_path, vbuckets=8)

    def begin(there: Checkpoint | None) -> Checkpoint:
        assert there == START
        raise ConfigurationError("of another stream")

    with pytest.raises(ConfigurationError, match="of another stream"):
        Membership(ConsumerGroup(tmp_path), range(4), begin)
    assert len(Records(LocalStore(tmp_path)).look()) == 2


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"path": ""}, "group='' is no path"),
        ({"path": 5}, "group=5 is no path"),
        ({"path": "x", "lease": 0}, "lease must be positive"),
        ({"path": "x", "lease": None}, "lease=None"),
    ],
)
def test_groups_that_cannot_be_meant(arguments: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigurationError, match=told):
        ConsumerGroup(**arguments)


def test_a_group_shows_no_secret() -> None:
    group = ConsumerGroup("s3://key:secret@bucket/group", storage_options={"secret": "secret"})
    assert "secret" not in f"{group!r} {group}"
