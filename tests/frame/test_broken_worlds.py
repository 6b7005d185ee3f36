"""Bounded reads while the world breaks, by seeds: the result is the server's truth at its as-of vector.

In some worlds bytes come one by one, or a few at a time.
"""

from __future__ import annotations

import random
import threading
from collections import Counter
from dataclasses import replace

import pytest
from worlds import NODES, VBUCKETS, World, break_with

from cbframe import LocalCluster, scan_bucket
from cbframe.testing import FaultProxy

from .kit import QUICK, values_of


def run(seed: int, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Read once in the world of a seed; what happened."""
    rng = random.Random(seed)
    few = rng.choice([1, *[30, 1000, 1 << 20] * 3])
    documents = 40 if few == 1 else 1500
    before = set(threading.enumerate())
    with (
        LocalCluster(nodes=NODES, vbuckets=VBUCKETS, seed=seed) as cluster,
        FaultProxy(cluster) as proxy,
    ):
        proxy.chop(few)
        world = World(cluster, proxy, rng, pause={1: 300, 30: 50}.get(few, 3))
        for _ in range(documents):
            world.change()
        break_with(world, few, monkeypatch)
        seeds = "couchbase://" + ",".join(cluster.kv_addresses)
        auth = cluster.username, cluster.password
        scan = scan_bucket(
            seeds,
            cluster.bucket,
            auth=auth,
            parse=False,
            timeout=60,
            # Where bytes come one by one, so do cluster maps that are pushed into a handshake.
            options=replace(QUICK, connect_timeout=60),
            buffer_bytes=rng.choice([2000, 20_000]),
        )
        table = scan.to_arrow()
        assert scan.as_of is not None
        world.check(values_of(table), scan.as_of)
    assert set(threading.enumerate()) <= before
    assert scan.stats is not None
    world.faults["rollbacks"] = scan.stats.total.rollbacks
    return world.faults


@pytest.mark.timeout(400)
@pytest.mark.parametrize("first", range(0, 50, 25))
def test_worlds_that_break(first: int, monkeypatch: pytest.MonkeyPatch) -> None:
    happened: Counter[str] = Counter()
    for seed in range(first, first + 25):
        happened += run(seed, monkeypatch)
    assert min(happened[verb] for verb in ("kill", "fail_over_node", "rebalance_out")) > 0
    assert happened["rollbacks"] > 0, "no history was lost while it was read: too little was tested"


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1000, 1500))
def test_many_worlds_that_break(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    run(seed, monkeypatch)
