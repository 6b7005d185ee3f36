"""Bounded reads while the world breaks, by seeds: the result is the server's truth at its as-of vector.

In some worlds bytes come one by one, or a few at a time.
"""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import replace

import pytest
from worlds import seeds, world_of

from cbframe import scan_bucket

from .kit import QUICK, values_of


def run(seed: int, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
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
@pytest.mark.parametrize("seed", seeds(1000, 1500))
def test_many_worlds_that_break(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    run(seed, monkeypatch)
