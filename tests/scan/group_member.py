"""Processes that are members of a group, to be killed, stopped and told to leave. Jobs come as lines of JSON.

Run as a script. Members are forks, so that a new one costs no start of an interpreter.
"""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cbframe import BucketDataSourceOptions, ChangeBatch, ConsumerGroup, VBucketOffset, stream_bucket
from cbframe.errors import GroupError

OPTIONS = BucketDataSourceOptions(
    noop_interval_secs=20,
    data_manager_sleep_init_ms=1,
    data_manager_sleep_max_ms=10,
    cluster_manager_sleep_init_ms=1,
    cluster_manager_sleep_max_ms=10,
)
SCHEMA = """
PRAGMA journal_mode = WAL;
CREATE TABLE IF NOT EXISTS changes
    (vbucket INTEGER, seqno INTEGER, key BLOB, value BLOB, PRIMARY KEY (vbucket, seqno));
CREATE TABLE IF NOT EXISTS progress (vbucket INTEGER PRIMARY KEY, epoch INTEGER, position TEXT);
"""
NAMES = ("_cb_vbucket", "_cb_seqno", "_cb_key", "_cb_value")


class FencedError(Exception):
    """A newer owner has been here."""


class Rows:
    """A table that takes every change exactly once."""

    def __init__(self, path: Path) -> None:
        self.database = sqlite3.connect(path, timeout=60, isolation_level=None)
        self.database.executescript(SCHEMA)

    def assigned(self, epochs: Mapping[int, int]) -> dict[int, VBucketOffset]:
        found = {}
        with self.database:
            self.database.execute("BEGIN IMMEDIATE")
            for vbucket, epoch in epochs.items():
                known, position = self.progress(vbucket)
                if known > epoch:
                    raise FencedError
                if position is not None:
                    found[vbucket] = VBucketOffset.from_dict(json.loads(position))
                row = (vbucket, epoch, position)
                self.database.execute("INSERT OR REPLACE INTO progress VALUES (?, ?, ?)", row)
        return found

    def progress(self, vbucket: int) -> tuple[int, str | None]:
        query = "SELECT epoch, position FROM progress WHERE vbucket = ?"
        found: tuple[int, str | None] = self.database.execute(query, (vbucket,)).fetchone() or (0, None)
        return found

    def store(self, batch: ChangeBatch, epochs: Mapping[int, int]) -> None:
        rows = batch.record_batch
        with self.database:
            self.database.execute("BEGIN IMMEDIATE")
            for vbucket, offset in batch.offsets.items():
                if self.progress(vbucket)[0] != epochs[vbucket]:
                    raise FencedError
                row = (vbucket, epochs[vbucket], json.dumps(offset.to_dict()))
                self.database.execute("INSERT OR REPLACE INTO progress VALUES (?, ?, ?)", row)
            for rollback in batch.rollbacks:
                place = rollback.vbucket, rollback.seqno
                self.database.execute("DELETE FROM changes WHERE vbucket = ? AND seqno > ?", place)
            # A change that is there already is an error.
            columns = (rows.column(name).to_pylist() for name in NAMES)
            self.database.executemany("INSERT INTO changes VALUES (?, ?, ?, ?)", zip(*columns, strict=True))


class Lines:
    """A file of its own for each member: every change at least once."""

    def __init__(self, path: Path) -> None:
        self.path = path.with_name(f"{path.name}.{os.getpid()}")

    def assigned(self, epochs: Mapping[int, int]) -> None:
        pass

    def store(self, batch: ChangeBatch, epochs: Mapping[int, int]) -> None:
        rows = batch.record_batch
        with self.path.open("a") as file:
            for vbucket, seqno in zip(*(rows.column(name).to_pylist() for name in NAMES[:2]), strict=True):
                file.write(f"{vbucket} {seqno}\n")


leaving: list[int] = []


def member(conn: str, user: str, password: str, kind: str, path: str, folder: str, lease: float) -> None:
    signal.signal(signal.SIGTERM, lambda number, _: leaving.append(number))
    sink = {"rows": Rows, "lines": Lines}[kind](Path(path))
    group = ConsumerGroup(folder, lease=lease, on_assigned=sink.assigned)
    settings: dict[str, Any] = {
        "keys": "binary",
        "batch_bytes": 2000,
        "max_latency": 0.005,
        "options": OPTIONS,
    }
    while not leaving:
        try:
            with stream_bucket(conn, auth=(user, password), group=group, **settings) as stream:
                while not leaving:
                    if (batch := stream.poll(0.05)) is not None:
                        sink.store(batch, stream.epochs)
                        stream.ack(batch)
        except (GroupError, FencedError):
            continue  # it takes part again


def main() -> None:
    for line in sys.stdin:
        if pid := os.fork():
            sys.stdout.write(f"{pid}\n")
            sys.stdout.flush()
            continue
        try:
            member(*json.loads(line))
        except BaseException:  # noqa: BLE001 - told to the test, as is the status
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
        os._exit(0)
    while True:
        try:
            pid, status = os.wait()
        except ChildProcessError:
            return
        sys.stdout.write(f"{pid} {os.waitstatus_to_exitcode(status)}\n")


if __name__ == "__main__":
    main()
