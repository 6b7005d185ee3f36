"""Change streams and their consumers: one keeps every change, another the newest version of a document."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
from failovers import until

from cbframe import ChangeBatch, ChangeStream, Checkpoint, LocalCluster, stream_bucket
from cbframe.arrow.columns import key_bytes

from .kit import QUICK, truth

PATIENCE = 20.0


class LogKeeper:
    """Keeps every change, and deletes those that were rolled back."""

    def __init__(self) -> None:
        self.log: dict[int, list[tuple[int, bytes, bytes | None]]] = defaultdict(list)
        self.rollbacks = 0

    def apply(self, batch: ChangeBatch) -> None:
        for rollback in batch.rollbacks:
            self.rollbacks += 1
            assert rollback.seqno <= rollback.server_seqno
            log = self.log[rollback.vbucket]
            self.log[rollback.vbucket] = [change for change in log if change[0] <= rollback.seqno]
        for vbucket, seqno, key, value in rows_of(batch):
            log = self.log[vbucket]
            assert not log or log[-1][0] < seqno, "a change came twice, or out of order"
            log.append((seqno, key, value))

    def documents(self) -> dict[bytes, bytes]:
        state = {key: value for log in self.log.values() for _, key, value in log}
        return {key: value for key, value in state.items() if value is not None}


class StateKeeper:
    """Keeps the newest version of each document: what a rolled-back change replaced is lost to it."""

    def __init__(self) -> None:
        self.state: dict[tuple[int, bytes], tuple[int, bytes | None]] = {}
        self.rollbacks = 0

    def apply(self, batch: ChangeBatch) -> None:
        for rollback in batch.rollbacks:
            self.rollbacks += 1
            gone = [
                p
                for p, (seqno, _) in self.state.items()
                if p[0] == rollback.vbucket and seqno > rollback.seqno
            ]
            for place in gone:
                del self.state[place]
        for vbucket, seqno, key, value in rows_of(batch):
            self.state[vbucket, key] = seqno, value

    def documents(self) -> dict[bytes, bytes]:
        return {key: value for (_, key), (_, value) in self.state.items() if value is not None}


def open_stream(cluster: LocalCluster, **arguments: Any) -> ChangeStream:
    return stream_bucket(cluster, **{"options": QUICK, "max_latency": 0.01, **arguments})


def take(stream: ChangeStream) -> ChangeBatch:
    batch = stream.poll(PATIENCE)
    assert batch is not None
    return batch


def take_rows(stream: ChangeStream) -> ChangeBatch:
    """The next batch that has rows."""
    while not len(batch := take(stream)):
        stream.ack(batch)
    return batch


def consume_until(
    done: Callable[[], object], consumer: LogKeeper | StateKeeper, *streams: ChangeStream
) -> None:
    def step() -> object:
        for stream in streams:
            if (batch := stream.poll(0.01)) is not None:
                consumer.apply(batch)
                stream.ack(batch)
        return done()

    until(step, lambda: [(stream, stream.errors[-3:]) for stream in streams])


def follow(stream: ChangeStream, consumer: LogKeeper | StateKeeper, cluster: LocalCluster) -> None:
    """Consume until there is nothing more to come."""
    consume_until(lambda: has_caught_up(cluster, stream.checkpoint), consumer, stream)


def rows_of(batch: ChangeBatch) -> list[tuple[int, int, bytes, bytes | None]]:
    """Vbucket, seqno, key and value of each change; no value where the document is gone."""
    rows = batch.record_batch
    kinds = rows.column("_change_type").to_pylist()
    values = rows.column("_cb_value").to_pylist()
    assert all((value is None) == (kind != "upsert") for kind, value in zip(kinds, values, strict=True))
    places = (rows.column(name).to_pylist() for name in ("_cb_vbucket", "_cb_seqno"))
    return list(zip(*places, key_bytes(rows.column("_cb_key")).to_pylist(), values, strict=True))


def has_caught_up(cluster: LocalCluster, checkpoint: Checkpoint) -> bool:
    """Whether everything that the cluster has was consumed, in the histories that it has now."""
    bucket = cluster._engine.bucket
    with bucket.lock:
        for vbucket in bucket.vbuckets:
            offset = checkpoint.offsets.get(vbucket.id)
            seqno, known = (0, ()) if offset is None else (offset.seqno, offset.failover_log)
            if seqno != vbucket.high_seqno or (seqno and known[0][0] != vbucket.vbuuid):
                return False
    return True


def truth_of(cluster: LocalCluster) -> dict[bytes, bytes]:
    return {key: row.value for key, row in truth(cluster).items()}


def seqnos_of(batch: ChangeBatch) -> list[int]:
    return np.asarray(batch.record_batch.column("_cb_seqno")).tolist()
