"""A consumer to be killed: it stores changes and checkpoint in one transaction, and says so."""

from __future__ import annotations

import sqlite3
import sys
from pathlib import Path
from typing import Any

from group_member import NAMES, OPTIONS, SCHEMA

from cbframe import ChangeStream, Checkpoint, stream_bucket


def say(what: str) -> None:
    sys.stdout.write(what + "\n")
    sys.stdout.flush()


def opened(conn: str, user: str, password: str, start: Any, **arguments: Any) -> ChangeStream:
    arguments |= {"batch_bytes": 5000, "max_latency": 0.005, "options": OPTIONS}
    return stream_bucket(conn, auth=(user, password), start=start, **arguments)


def main(conn: str, user: str, password: str, path: str, until: str) -> None:
    database = sqlite3.connect(path)
    database.executescript(SCHEMA)
    database.execute("CREATE TABLE IF NOT EXISTS checkpoint (id INTEGER PRIMARY KEY, json TEXT)")
    row = database.execute("SELECT json FROM checkpoint").fetchone()
    start = "beginning" if row is None else Checkpoint.from_json(row[0])
    with opened(conn, user, password, start, keys="binary") as stream:
        say("begun")
        while (batch := stream.poll(None if until == "killed" else 2.0)) is not None:
            rows = batch.record_batch
            say("storing")
            with database:
                for rollback in batch.rollbacks:
                    place = rollback.vbucket, rollback.seqno
                    database.execute("DELETE FROM changes WHERE vbucket = ? AND seqno > ?", place)
                # A change that is there already is an error.
                columns = (rows.column(name).to_pylist() for name in NAMES)
                database.executemany("INSERT INTO changes VALUES (?, ?, ?, ?)", zip(*columns, strict=True))
                checkpoint = stream.checkpoint_after(batch).to_json()
                database.execute("INSERT OR REPLACE INTO checkpoint VALUES (1, ?)", (checkpoint,))
            stream.ack(batch)
            say("stored")
    database.close()


def write_files(conn: str, user: str, password: str, path: str, until: str) -> None:
    """The same into Parquet files."""
    folder = Path(path)
    start = Checkpoint.load(folder) if list(folder.glob("*.parquet")) else "beginning"
    with opened(conn, user, password, start) as stream:
        say("begun")
        stream.to_parquet(
            folder, rotate={"rows": 200, "seconds": 0.02}, seconds=None if until == "killed" else 3.0
        )


if __name__ == "__main__":
    kind, *arguments = sys.argv[1:]
    (write_files if kind == "files" else main)(*arguments)
