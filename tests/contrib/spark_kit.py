"""Sessions of Spark for tests: one Java machine for all, with the password in its environment."""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from cbframe import LocalCluster

USER, SECRET = "reader", "a-word-that-is-secret"
ENVIRONMENT = {
    "CB_USER": USER,
    "CB_PASSWORD": SECRET,
    "SPARK_LOCAL_IP": "127.0.0.1",
    "PYSPARK_PYTHON": sys.executable,
    # Tests are over before the better compiler would pay.
    "PYSPARK_SUBMIT_ARGS": "--driver-java-options '-XX:TieredStopAtLevel=1 -XX:+UseSerialGC' pyspark-shell",
}
CONFIG = {
    "spark.ui.enabled": "false",
    "spark.ui.showConsoleProgress": "false",
    "spark.driver.host": "127.0.0.1",
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.sql.shuffle.partitions": "2",
}


def cluster_of(nodes: int = 1, vbuckets: int = 64) -> LocalCluster:
    return LocalCluster(nodes=nodes, vbuckets=vbuckets, seed=1, username=USER, password=SECRET)


@contextmanager
def session_of(master: str) -> Iterator[Any]:
    # Absent, in most environments.
    from pyspark.sql import SparkSession  # noqa: PLC0415

    from cbframe.contrib.spark import register  # noqa: PLC0415

    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        builder = SparkSession.builder.master(master)
        for name, value in CONFIG.items():
            builder = builder.config(name, value)
        session = builder.getOrCreate()
        register(session)
        try:
            yield session
        finally:
            session.stop()


class Store:
    """Documents in SQLite: all of a batch or nothing, and the same if it comes twice."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with closing(self._open()) as db, db:
            db.execute("CREATE TABLE IF NOT EXISTS documents (key PRIMARY KEY, vbucket, n)")
            db.execute("CREATE TABLE IF NOT EXISTS rows (batch, kind)")

    def _open(self) -> sqlite3.Connection:
        return sqlite3.connect(self.path)

    def __call__(self, batch: Any, number: int) -> None:
        rows = batch.toArrow().to_pylist()
        with closing(self._open()) as db, db:
            # A reset has seqno 0.
            for row in sorted(rows, key=lambda row: row["_cb_seqno"]):
                kind, key, vbucket = row["_change_type"], row["_cb_key"], row["_cb_vbucket"]
                if kind == "reset":
                    db.execute("DELETE FROM documents WHERE vbucket = ?", (vbucket,))
                elif kind == "upsert":
                    db.execute("REPLACE INTO documents VALUES (?, ?, ?)", (key, vbucket, row["n"]))
                else:
                    db.execute("DELETE FROM documents WHERE key = ?", (key,))
                db.execute("INSERT INTO rows VALUES (?, ?)", (number, kind))

    def documents(self) -> dict[str, int]:
        return dict(self.select("SELECT key, n FROM documents"))

    def kinds(self) -> dict[str, int]:
        """How many rows there were of each kind."""
        return dict(self.select("SELECT kind, count(*) FROM rows GROUP BY kind"))

    def sizes(self) -> list[int]:
        """How many rows each batch had."""
        return [count for (count,) in self.select("SELECT count(*) FROM rows GROUP BY batch ORDER BY batch")]

    def select(self, query: str) -> list[Any]:
        with closing(self._open()) as db:
            return db.execute(query).fetchall()
