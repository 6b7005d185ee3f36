"""Processes share a bucket's changes; one is killed, another comes. Each change is stored exactly once."""

import json
import multiprocessing
import sqlite3
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from cbframe import ChangeBatch, ConsumerGroup, LocalCluster, VBucketOffset, stream_bucket

SCHEMA = """
PRAGMA journal_mode = WAL;
CREATE TABLE IF NOT EXISTS changes
    (vbucket INTEGER, seqno INTEGER, key TEXT, number INTEGER, member INTEGER, PRIMARY KEY (vbucket, seqno));
CREATE TABLE IF NOT EXISTS progress (vbucket INTEGER PRIMARY KEY, epoch INTEGER, position TEXT);
"""


class Sink:
    """A table of changes, and how far each vbucket is. It knows the newest owner, and refuses others."""

    def __init__(self, path: Path, member: int) -> None:
        self.member = member
        self.database = sqlite3.connect(path, timeout=30, isolation_level=None)
        self.database.executescript(SCHEMA)

    def progress(self, vbucket: int) -> tuple[int, str | None]:
        query = "SELECT epoch, position FROM progress WHERE vbucket = ?"
        return self.database.execute(query, (vbucket,)).fetchone() or (0, None)

    def taken(self, epochs: Mapping[int, int]) -> dict[int, VBucketOffset]:
        """This member owns these vbuckets now: from here on, older owners are refused."""
        positions = {}
        with self.database:  # all of this, or nothing
            self.database.execute("BEGIN IMMEDIATE")
            for vbucket, epoch in epochs.items():
                newest, position = self.progress(vbucket)
                if newest > epoch:
                    raise RuntimeError("another member has it already")
                self.save(vbucket, epoch, position)
                if position is not None:
                    positions[vbucket] = VBucketOffset.from_dict(json.loads(position))
        return positions

    def save(self, vbucket: int, epoch: int, position: str | None) -> None:
        self.database.execute("INSERT OR REPLACE INTO progress VALUES (?, ?, ?)", (vbucket, epoch, position))

    def store(self, batch: ChangeBatch, epochs: Mapping[int, int]) -> None:
        rows = batch.to_arrow(columns=["number"])
        columns = [rows[name].to_pylist() for name in ("_cb_vbucket", "_cb_seqno", "_cb_key", "number")]
        with self.database:
            self.database.execute("BEGIN IMMEDIATE")
            for vbucket, offset in batch.offsets.items():
                if self.progress(vbucket)[0] != epochs[vbucket]:
                    raise RuntimeError("another member has taken over")
                self.save(vbucket, epochs[vbucket], json.dumps(offset.to_dict()))
            for rollback in batch.rollbacks:
                place = (rollback.vbucket, rollback.seqno)
                self.database.execute("DELETE FROM changes WHERE vbucket = ? AND seqno > ?", place)
            # A change that came twice would be an error here: its vbucket and seqno are there.
            self.database.executemany(
                f"INSERT INTO changes VALUES (?, ?, ?, ?, {self.member})", zip(*columns, strict=True)
            )


def follow(conn: str, auth: tuple[str, str], folder: Path, member: int) -> None:
    """What each process does, until it is killed."""
    sink = Sink(folder / "changes.db", member)
    # With 30 s, the default, a member may stand still for longer; this example does not want to wait so long.
    group = ConsumerGroup(folder / "group", lease=2, on_assigned=sink.taken)
    with stream_bucket(conn, auth=auth, group=group, batch_bytes=20_000) as stream:
        for batch in stream:  # asking for the next one acknowledges the last one
            sink.store(batch, stream.epochs)


def write(cluster: LocalCluster, database: sqlite3.Connection, members: set[int]) -> None:
    """Write documents until each of these members has stored some of them."""
    until = time.monotonic() + 40
    first = cluster.item_count()
    query = "SELECT DISTINCT member FROM changes WHERE number >= ?"
    while not members <= {member for (member,) in database.execute(query, (first,))}:
        assert time.monotonic() < until, "the members are too slow"
        number = cluster.item_count()
        cluster.upsert(f"order-{number}", {"number": number})
        time.sleep(0.002)


def main() -> None:
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as name, LocalCluster(nodes=2, vbuckets=64) as cluster:
        folder = Path(name)
        login = (cluster.connection_string, (cluster.username, cluster.password), folder)
        database = sqlite3.connect(folder / "changes.db", timeout=30, isolation_level=None)
        database.executescript(SCHEMA)

        members = [context.Process(target=follow, args=(*login, number)) for number in range(4)]
        for member in members[:3]:
            member.start()
        write(cluster, database, {0, 1, 2})
        members[0].kill()  # it says nothing to anybody: its vbuckets are free when its lease ends
        members[3].start()
        write(cluster, database, {1, 2, 3})

        wanted, stored = cluster.item_count(), 0
        until = time.monotonic() + 40
        while stored < wanted:
            assert time.monotonic() < until, "the members are too slow"
            stored, keys = database.execute("SELECT count(*), count(DISTINCT key) FROM changes").fetchone()
        for member in members:
            member.kill()
            member.join()
        print(f"{stored} changes of {keys} documents are stored; the bucket has {wanted}")
        for number, count in database.execute("SELECT member, count(*) FROM changes GROUP BY member"):
            print(f"member {number} has stored {count}{', and was killed then' if number == 0 else ''}")
        database.close()
        assert stored == keys == wanted


if __name__ == "__main__":
    main()
