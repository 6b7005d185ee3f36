"""Keep a table of a bucket in SQLite, exactly once: documents and checkpoint in one transaction."""

import sqlite3
import tempfile
from pathlib import Path

from cbframe import ChangeBatch, Checkpoint, LocalCluster, stream_bucket

SCHEMA = """
CREATE TABLE IF NOT EXISTS documents (
    vbucket INTEGER, key TEXT, seqno INTEGER, value BLOB, changes INTEGER, PRIMARY KEY (vbucket, key)
);
CREATE TABLE IF NOT EXISTS checkpoint (id INTEGER PRIMARY KEY CHECK (id = 1), json TEXT);
"""
UPSERT = """
INSERT INTO documents VALUES (?, ?, ?, ?, 1)
ON CONFLICT (vbucket, key) DO UPDATE SET seqno = excluded.seqno, value = excluded.value, changes = changes + 1
"""


def stored_checkpoint(database: sqlite3.Connection) -> Checkpoint | None:
    row = database.execute("SELECT json FROM checkpoint").fetchone()
    return None if row is None else Checkpoint.from_json(row[0])


def store(database: sqlite3.Connection, batch: ChangeBatch, checkpoint: Checkpoint) -> None:
    rows = batch.record_batch
    columns = (rows.column(name).to_pylist() for name in ("_cb_vbucket", "_cb_key", "_cb_seqno", "_cb_value"))
    with database:  # all of this, or nothing
        for rollback in batch.rollbacks:
            database.execute(
                "DELETE FROM documents WHERE vbucket = ? AND seqno > ?", (rollback.vbucket, rollback.seqno)
            )
        # A document that is gone keeps its row, without a value: SQLite's integers hold seqnos up to 2^63.
        database.executemany(UPSERT, zip(*columns, strict=True))
        database.execute("INSERT OR REPLACE INTO checkpoint VALUES (1, ?)", (checkpoint.to_json(),))


def follow(cluster: LocalCluster, path: Path, batches: int | None = None) -> int:
    """Take a number of batches, or all there are. The next call goes on from the stored checkpoint."""
    database = sqlite3.connect(path)
    database.executescript(SCHEMA)
    start = stored_checkpoint(database) or "beginning"
    seen = taken = 0
    # The table has the newest version of each document only. What a rolled-back change replaced is lost to
    # it, so after a failover with losses a vbucket is streamed again from its start: "restart".
    with stream_bucket(cluster, start=start, on_rollback="restart", batch_bytes=20_000) as stream:
        while taken != batches and (batch := stream.poll(1.0)) is not None:
            store(database, batch, stream.checkpoint_after(batch))
            stream.ack(batch)
            seen, taken = seen + len(batch), taken + 1
    database.close()
    return seen


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, LocalCluster(nodes=2, vbuckets=64) as cluster:
        path = Path(folder) / "copy.db"
        for n in range(1000):
            cluster.upsert(f"order-{n}", {"n": n, "state": "new"})
        first = follow(cluster, path, batches=1)
        cluster.upsert("order-7", {"n": 7, "state": "paid"})
        cluster.delete("order-8")
        print(f"{first} changes in the first run, {follow(cluster, path)} in the second")

        database = sqlite3.connect(path)
        found = dict(database.execute("SELECT key, value FROM documents WHERE value IS NOT NULL"))
        (twice,) = database.execute("SELECT count(*) FROM documents WHERE changes > 1").fetchone()
        database.close()
        print(f"{len(found)} documents; order-7 is {found['order-7'].decode()}")

        assert len(found) == cluster.item_count() == 999
        assert all(cluster.get(key) == value for key, value in found.items())
        assert twice <= 2  # nothing came twice but what was changed twice


if __name__ == "__main__":
    main()
