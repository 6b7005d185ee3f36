"""Reads and streams while the world breaks, by seeds."""

from __future__ import annotations

import copy
import random
import threading
from collections import Counter
from dataclasses import replace
from time import monotonic
from typing import Any

import pytest
from worlds import World, seeds, world_of

from cbframe import ChangeStream, ConnectError, LocalCluster, scan_bucket, stream_bucket

from .consumers import LogKeeper, StateKeeper, has_caught_up, truth_of
from .kit import QUICK, values_of


def read_in_world(seed: int, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Read once in the world of a seed; what happened."""
    before = set(threading.enumerate())
    receives = [1, *[30, 1000, 1 << 20] * 3]
    with world_of(seed, monkeypatch, changes=1500, receives=receives) as world:
        scan = scan_bucket(
            world.seeds,
            world.cluster.bucket,
            auth=world.auth,
            parse=False,
            timeout=60,
            # Where bytes come one by one, so do cluster maps that are pushed into a handshake.
            options=replace(QUICK, connect_timeout=60, connections_per_node=1 + seed % 3),
            buffer_bytes=world.rng.choice([2000, 20_000]),
        )
        table = scan.to_arrow()
        world.check(values_of(table), scan.as_of)
    assert set(threading.enumerate()) <= before
    world.faults["rollbacks"] = scan.stats.total.rollbacks
    return world.faults


@pytest.mark.timeout(400)
@pytest.mark.parametrize("first", range(0, 50, 25))
def test_reads_in_worlds_that_break(first: int, monkeypatch: pytest.MonkeyPatch) -> None:
    happened: Counter[str] = Counter()
    for seed in range(first, first + 25):
        happened += read_in_world(seed, monkeypatch)
    assert min(happened[verb] for verb in ("kill", "fail_over_node", "rebalance_out")) > 0
    assert happened["rollbacks"] > 0, "no history was lost while it was read: too little was tested"


@pytest.mark.slow
@pytest.mark.parametrize("seed", seeds(1000, 1500))
def test_many_worlds_that_break_under_reads(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    read_in_world(seed, monkeypatch)


# --- Change streams while the world breaks, by seeds: what a consumer has made of the changes is the truth.
#
# The world is that of bounded reads (worlds): connections are cut, vbuckets move and lose their
# last changes, nodes crash, come back, fail over, join and leave, and documents change all the while. The
# consumer crashes as well: it then goes on with what it had stored, checkpoint and data together.


PATIENCE = 60.0


def stream_in_world(seed: int, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Stream in the world of a seed, until it is whole again and everything has come; what happened."""
    before = set(threading.enumerate())
    with world_of(seed, monkeypatch, changes=400) as world:
        cluster, rng = world.cluster, world.rng
        consumer = rng.choice([LogKeeper, StateKeeper])()
        arguments = {
            "auth": world.auth,
            "on_rollback": "emit" if isinstance(consumer, LogKeeper) else "restart",
            "batch_bytes": rng.choice([500, 5000, 100_000]),
            "max_latency": rng.choice([0, 0.002]),
            "buffer_bytes": 200_000,
            "options": replace(QUICK, connect_timeout=30),
            # With a filter, nodes tell of progress without documents.
            "collections": rng.choice([None, None, "_default._default"]),
        }
        start: Any = "beginning"
        crashes = rng.choice([0, 1, 3])
        until = monotonic() + PATIENCE
        stored = copy.deepcopy(consumer)
        while True:
            seeds = "couchbase://" + ",".join(world.known or cluster.kv_addresses)
            with opened(seeds, cluster.bucket, world, start=start, **arguments) as stream:
                crashed = consume(stream, stored, cluster, world, rng if crashes else None, until)
                start = stream.checkpoint
            if not crashed:
                break
            crashes -= 1
        assert world.left == 0
        assert stored.documents() == truth_of(cluster)
        if isinstance(stored, LogKeeper):
            seqnos = {vb: log[-1][0] for vb, log in stored.log.items() if log}
            assert seqnos == {vb: seqno for vb, seqno in cluster.high_seqnos().items() if seqno}
    assert set(threading.enumerate()) <= before
    world.faults["rollbacks"] = stored.rollbacks
    return world.faults


def opened(seeds: str, bucket: str, world: World, **arguments: Any) -> ChangeStream:
    """A stream; names of collections cannot be looked up while no seed can be reached."""
    for _ in range(20):
        try:
            return stream_bucket(seeds, bucket, **arguments)
        except ConnectError:
            world.revive()
    raise AssertionError("the names cannot be looked up")


def consume(
    stream: ChangeStream,
    stored: LogKeeper | StateKeeper,
    cluster: LocalCluster,
    world: World,
    rng: random.Random | None,
    until: float,
) -> bool:
    """Take batches until everything has come, or a crash; whether it was one."""
    while True:
        assert monotonic() < until, (stream, stream.errors[-3:], world.left)
        batch = stream.poll(0.02)
        if rng is not None and rng.random() < 0.05:
            return True  # the batch is lost, and was not acknowledged
        if batch is not None:
            stored.apply(batch)
            stream.ack(batch)
        elif world.left:
            # Nothing moves: what makes the world go on are receives.
            world.turn()
        elif has_caught_up(cluster, stream.checkpoint):
            return False


@pytest.mark.timeout(400)
@pytest.mark.parametrize("first", range(0, 40, 10))
def test_streams_in_worlds_that_break(first: int, monkeypatch: pytest.MonkeyPatch) -> None:
    happened: Counter[str] = Counter()
    for seed in range(first, first + 10):
        happened += stream_in_world(seed, monkeypatch)
    assert happened["rollbacks"] > 0, "no history was lost while it was streamed: too little was tested"


@pytest.mark.slow
@pytest.mark.parametrize("seed", seeds(1000, 1300))
def test_many_worlds_that_break_under_streams(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    stream_in_world(seed, monkeypatch)
