"""Keep a table of a bucket in SQLite with Spark, right after every failure of Spark and of Couchbase.

Needs ``pip install 'cbframe[spark]'``, and Java.
"""

import os
import sqlite3
import sys
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any

from pyspark.sql import SparkSession

from cbframe import LocalCluster, read_bucket
from cbframe.contrib.spark import register

SCHEMA = "_change_type string, _cb_key string, _cb_vbucket int, _cb_seqno bigint, name string"


class Names:
    """The table: all of a batch or nothing, and the same if a batch comes twice."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with closing(sqlite3.connect(path)) as database:
            database.execute("CREATE TABLE names (key TEXT PRIMARY KEY, vbucket INTEGER, name TEXT)")

    def store(self, batch: Any, number: int) -> None:
        rows = batch.toArrow().to_pylist()  # once: Spark reads a batch again for each use of it
        with closing(sqlite3.connect(self._path)) as database, database:  # one transaction
            for row in sorted(rows, key=lambda row: row["_cb_seqno"]):  # a reset has seqno 0
                if row["_change_type"] == "reset":  # a failover lost changes: all of the vbucket follows
                    database.execute("DELETE FROM names WHERE vbucket = ?", [row["_cb_vbucket"]])
                elif row["_change_type"] == "upsert":
                    values = row["_cb_key"], row["_cb_vbucket"], row["name"]
                    database.execute("REPLACE INTO names VALUES (?, ?, ?)", values)
                else:  # delete or expire
                    database.execute("DELETE FROM names WHERE key = ?", [row["_cb_key"]])

    def to_dict(self) -> dict[str, str]:
        with closing(sqlite3.connect(self._path)) as database:
            return dict(database.execute("SELECT key, name FROM names"))


def update(spark: SparkSession, cluster: LocalCluster, names: Names, folder: Path) -> None:
    """Store what changed since the last call."""
    changes = (
        spark.readStream.format("couchbase")
        .option("connection", cluster.connection_string)
        .schema(SCHEMA)
        .load()
    )
    writer = changes.writeStream.foreachBatch(names.store)
    writer = writer.option("checkpointLocation", str(folder / "checkpoint"))
    # A query that goes on has trigger(processingTime="10 seconds") instead.
    writer.trigger(availableNow=True).start().awaitTermination()


def main() -> None:
    with tempfile.TemporaryDirectory() as name, LocalCluster(nodes=2, vbuckets=64) as cluster:
        # Driver and executors have the password in their environment. It is not sent.
        os.environ.update(CB_USER=cluster.username, CB_PASSWORD=cluster.password)
        os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
        builder = SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false")
        spark = builder.config("spark.driver.host", "127.0.0.1").getOrCreate()
        register(spark)

        folder = Path(name)
        names = Names(folder / "names.db")
        for n in range(1000):
            cluster.upsert(f"person-{n}", {"name": f"Person {n}"})
        update(spark, cluster, names, folder)
        print(f"{len(names.to_dict()):,} names")

        cluster.upsert("person-7", {"name": "Somebody Else"})
        cluster.delete("person-8")
        update(spark, cluster, names, folder)
        print(f"{len(names.to_dict()):,} names; person-7 is {names.to_dict()['person-7']}")

        # A node fails, and with it the last changes of a vbucket.
        vbucket = max(cluster.high_seqnos(), key=cluster.high_seqnos().__getitem__)
        cluster.fail_over(vbucket, lose=3)
        update(spark, cluster, names, folder)
        print(f"{len(names.to_dict()):,} names after the failover")

        assert names.to_dict() == read_bucket(cluster)["name"].to_dict()
        assert len(names.to_dict()) < 999
        spark.stop()


if __name__ == "__main__":
    main()
