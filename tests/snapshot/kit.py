"""Snapshots of a bucket that changes and loses changes."""

from __future__ import annotations

import random
from pathlib import Path

from scan.kit import QUICK, WIRE_METADATA, Row, rows_of

from cbframe import LocalCluster, SnapshotResult, read_snapshot, write_snapshot

KEYS = [f"key-{n:03d}" for n in range(120)]


def update(cluster: LocalCluster, path: Path, **arguments: object) -> SnapshotResult:
    arguments.setdefault("parse", False)
    return write_snapshot(cluster, path, options=QUICK, timeout=60, **arguments)  # type: ignore[arg-type]


def held(path: Path, as_of: int | None = None) -> dict[bytes, Row]:
    """Every document of a snapshot, with all of its metadata."""
    return rows_of(read_snapshot(path, metadata=WIRE_METADATA, as_of=as_of, return_type="arrow"))


class Life:
    """Random changes of a bucket, and losses of some of them."""

    def __init__(self, cluster: LocalCluster, seed: int) -> None:
        self.cluster = cluster
        self.rng = random.Random(seed)
        self.number = 0

    def changes(self, count: int) -> None:
        for _ in range(count):
            key = self.rng.choice(KEYS)
            self.number += 1
            what = self.rng.random()
            if what < 0.15:
                self.cluster.delete(key)
            elif what < 0.2:
                self.cluster.expire(key)
            else:
                self.cluster.upsert(key, {"n": self.number})

    def failover(self) -> None:
        vbucket = self.rng.randrange(8)
        high = self.cluster.high_seqnos()[vbucket]
        self.cluster.fail_over(vbucket, lose=min(high, self.rng.choice([1, 2, 5, 20, high])))
